// CREATE, ALTER, DROP, COMMENT, GRANT: read and done on the catalog.
'use strict';

const { SqlError, errors, compilation, decode, duckName, printName } = require('./sql');
const { Translator } = require('./translate');
const { readType, fromDuck } = require('./types');
const { shownAs } = require('./catalog');

const PRIVILEGES = ['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'REBUILD', 'EVOLVE SCHEMA', 'OWNERSHIP'];

const status = (text, typeId = 24576) => ({ rowtype: [{ name: 'status', type: 'text', nullable: true, length: 16777216 }], rows: [[text]], typeId });
const done = () => status('Statement executed successfully.');

class Ddl extends Translator {
  get duck() {
    return this.context.service.duck;
  }

  get role() {
    return this.context.role;
  }

  // ------------------------------------------------------------ rights

  requireOwner(object) {
    if (this.context.admin || object.owner === this.role) return;
    throw errors.privileges(object.kind === 'VIEW' ? 'view' : 'table', object.name);
  }

  requireCreate(parts) {
    if (!this.context.admin && !this.context.service.settings.can_create_table) throw errors.privileges('schema', parts[1]);
  }

  // ------------------------------------------------------------ CREATE

  async create() {
    this.expect('CREATE');
    const replace = this.accept('OR', 'REPLACE');
    const transient = this.accept('TRANSIENT');
    const temporary = !transient && (this.accept('TEMPORARY') || this.accept('TEMP'));
    if (this.accept('STAGE') && !transient) return this.createStage(replace, temporary);
    if (temporary) this.fail('the fake has temporary stages only');
    if (this.accept('TABLE')) return this.createTable(replace, transient);
    if (transient) this.fail();
    if (this.accept('VIEW')) return this.createView(replace);
    if (!replace && this.accept('SCHEMA')) return this.createSchema();
    if (!replace && this.context.admin && this.accept('TAG')) return this.createTag();
    return this.fail();
  }

  createTag() {
    this.names();
    this.end();
    return done();
  }

  createSchema() {
    const quiet = this.accept('IF', 'NOT', 'EXISTS');
    const parts = this.names();
    let comment = '';
    if (this.accept('COMMENT')) comment = this.equalsString();
    this.end();
    if (parts.length !== 2) this.fail('the schema has two parts');
    if (!this.catalog.databases.has(parts[0])) throw errors.missing('Database', printName(parts[0]));
    if (this.catalog.hasSchema(...parts)) {
      if (quiet) return status(`${printName(parts[1])} already exists, statement succeeded.`);
      throw errors.exists(printName(parts[1]));
    }
    if (!this.context.admin && !this.context.service.settings.can_create_schema) throw errors.privileges('database', parts[0]);
    this.catalog.addSchema(parts[0], parts[1], this.role, comment);
    return status(`Schema ${printName(parts[1])} successfully created.`);
  }

  equalsString() {
    this.expectOp('=');
    return this.take('string').v;
  }

  async createTable(replace, transient) {
    const quiet = this.accept('IF', 'NOT', 'EXISTS');
    if (quiet && replace) this.fail('OR REPLACE and IF NOT EXISTS');
    const parts = this.names();
    this.catalog.place(parts);
    const object = this.newTable(transient);
    const source = await this.tableSource(object);
    this.end();
    const old = this.catalog.find(parts);
    if (old && quiet) return status(`${printName(parts[2])} already exists, statement succeeded.`);
    if (old && !replace) throw errors.exists(shownAs(parts));
    if (old && old.kind === 'VIEW') throw errors.exists(shownAs(parts));
    if (old) this.requireOwner(old);
    this.requireCreate(parts);
    if (object.columns.length === 0) this.fail('a table without columns');
    // what is replaced comes before what is copied
    if (source.copyGrants) object.grants = ((old ?? source.like)?.grants ?? []).map((grant) => ({ ...grant }));
    await this.catalog.createDuck(object);
    if (source.rows) await this.fill(object, source.rows);
    if (old) await this.catalog.dropDuck(old);
    this.catalog.put(parts, object);
    return status(`Table ${printName(parts[2])} successfully created.`);
  }

  async fill(object, rows) {
    try {
      await this.duck.query(`INSERT INTO ${object.duck} ${rows}`);
    } catch (error) {
      await this.catalog.dropDuck(object);
      throw error;
    }
  }

  newTable(transient) {
    return { kind: transient ? 'TRANSIENT' : 'TABLE', comment: '', clusterBy: '', retention: null, changeTracking: false, owner: this.role,
      created: Date.now(), grants: [], tags: {}, columns: [], loads: new Map(), duck: null };
  }

  // What follows the name: { like, copyGrants, rows (a query) }.
  async tableSource(object) {
    if (this.accept('LIKE')) return this.likeTable(object);
    if (this.accept('CLONE')) return this.cloneTable(object);
    const source = {};
    if (this.isOp('(')) this.inParens(() => this.columnDefinitions(object));
    this.tableOptions(object, source);
    if (this.accept('AS')) await this.asQuery(object, source);
    return source;
  }

  likeTable(object) {
    const like = this.catalog.table(this.names());
    const source = { like };
    object.columns = like.columns.map((column) => ({ ...column }));
    Object.assign(object, { clusterBy: like.clusterBy, tags: { ...like.tags } });
    this.tableOptions(object, source);
    return source;
  }

  cloneTable(object) {
    const like = this.catalog.table(this.names());
    const copy = this.accept('COPY', 'GRANTS');
    if (like.kind === 'TRANSIENT' && object.kind === 'TABLE')
      throw compilation('002120', 'Transient object cannot be cloned to a permanent object.', '0A000');
    object.columns = like.columns.map((column) => ({ ...column }));
    Object.assign(object, { clusterBy: like.clusterBy, tags: { ...like.tags }, comment: like.comment, retention: like.retention,
      changeTracking: like.changeTracking });
    return { rows: `SELECT * FROM ${like.duck}`, copyGrants: copy, like };
  }

  tableOptions(object, source) {
    for (;;) {
      if (this.accept('CLUSTER', 'BY')) object.clusterBy = this.clustering(object);
      else if (this.accept('DATA_RETENTION_TIME_IN_DAYS')) object.retention = this.retention(object);
      else if (this.accept('CHANGE_TRACKING')) object.changeTracking = this.equalsBoolean();
      else if (this.accept('COMMENT')) object.comment = this.equalsString();
      else if (this.accept('COPY', 'GRANTS')) source.copyGrants = true;
      else return;
    }
  }

  equalsBoolean() {
    this.expectOp('=');
    if (this.accept('TRUE')) return true;
    this.expect('FALSE');
    return false;
  }

  retention(object) {
    this.expectOp('=');
    const days = Number(this.take('number').v);
    if (!(days <= (object.kind === 'TRANSIENT' ? 1 : 90)))
      throw compilation('001008', `invalid value [${days}] for parameter 'DATA_RETENTION_TIME_IN_DAYS'`, '22023');
    return days;
  }

  // CLUSTER BY [LINEAR] (a, expression) as the text that SHOW TABLES has.
  clustering(object) {
    this.accept('LINEAR');
    const items = this.inParens(() => this.list(() => {
      const start = this.i;
      this.expr();
      const tokens = this.tokens.slice(start, this.i);
      for (const token of tokens) this.requireClusterColumn(object, token, tokens.length === 1);
      return this.source(start);
    }));
    return `LINEAR(${items.join(', ')})`;
  }

  requireClusterColumn(object, token, alone) {
    if (token.t !== 'quoted' && !(alone && token.t === 'word')) return;
    const name = token.t === 'quoted' ? token.v : token.u;
    if (!object.columns.some((column) => column.name === name)) throw errors.identifier(printName(name), token);
  }

  async asQuery(object, source) {
    const query = this.query();
    const { rows } = await this.duck.query(`DESCRIBE ${query}`);
    if (object.columns.length === 0) {
      object.columns = rows.map(([name, type]) => ({ name: decode(name), type: fromDuck(type), notnull: false, defaultText: null, comment: null, pk: false, policy: null }));
    } else if (rows.length !== object.columns.length) {
      throw compilation('002026', `invalid number of columns specified for the query`, '42601');
    }
    source.rows = query;
    this.context.used.tables = true;
  }

  // ------------------------------------------------------------ columns

  columnDefinitions(object) {
    this.list(() => {
      if (this.accept('CONSTRAINT')) this.name();
      if (this.accept('PRIMARY', 'KEY')) return this.primaryKey(object);
      if (this.accept('UNIQUE')) return this.inParens(() => this.list(() => this.existing(object, this.name()))).forEach((c) => (c.unique = true));
      const column = this.columnDefinition();
      if (object.columns.some((c) => c.name === column.name)) throw compilation('002025', `duplicate column name '${column.name}'`, '42S21');
      return object.columns.push(column);
    });
  }

  columnDefinition() {
    const column = { name: this.name(), type: readType(this), notnull: false, defaultText: null, defaultDuck: null, comment: null, pk: false, policy: null };
    for (;;) {
      if (this.accept('NOT', 'NULL')) column.notnull = true;
      else if (this.accept('NULL')) column.notnull = false;
      else if (this.accept('DEFAULT')) this.defaultOf(column);
      else if (this.accept('COMMENT')) column.comment = this.take('string').v;
      else if (this.accept('PRIMARY', 'KEY')) column.pk = column.notnull = true;
      else if (this.accept('UNIQUE')) column.unique = true;
      else return column;
    }
  }

  defaultOf(column) {
    const start = this.i;
    column.defaultDuck = this.sum();
    column.defaultText = this.source(start);
  }

  existing(object, name) {
    const column = object.columns.find((c) => c.name === name);
    if (!column) throw errors.identifier(printName(name));
    return column;
  }

  primaryKey(object) {
    for (const column of this.inParens(() => this.list(() => this.existing(object, this.name())))) column.pk = column.notnull = true;
  }

  // ------------------------------------------------------------ views and stages

  async createView(replace) {
    const quiet = this.accept('IF', 'NOT', 'EXISTS');
    const parts = this.names();
    this.catalog.place(parts);
    let comment = '';
    if (this.accept('COMMENT')) comment = this.equalsString();
    this.expect('AS');
    const start = this.i;
    const query = this.query();
    const text = this.source(start);
    this.end();
    const old = this.catalog.find(parts);
    if (old && quiet) return status(`${printName(parts[2])} already exists, statement succeeded.`);
    if (old && (!replace || old.kind !== 'VIEW')) throw errors.exists(shownAs(parts));
    this.requireCreate(parts);
    const { rows } = await this.duck.query(`DESCRIBE ${query}`);
    const view = { ...this.newTable(false), kind: 'VIEW', text, comment, columns: rows.map(([name, type]) => ({ name: decode(name), type: fromDuck(type) })) };
    this.catalog.put(parts, view);
    return status(`View ${printName(parts[2])} successfully created.`);
  }

  createStage(replace, temporary) {
    const quiet = this.accept('IF', 'NOT', 'EXISTS');
    if (quiet && replace) this.fail('OR REPLACE and IF NOT EXISTS');
    const parts = this.names();
    const options = { encrypted: true, url: null };
    while (this.token.t !== 'eof' && !this.isOp(';')) this.stageOption(options);
    this.end();
    const { stages } = this.context.service;
    const made = stages.create(this.context.session, parts, { replace, temporary, quiet, ...options });
    const name = printName(parts[parts.length - 1]);
    return status(made ? `Stage area ${name} successfully created.` : `${name} already exists, statement succeeded.`);
  }

  stageOption(options) {
    if (this.accept('ENCRYPTION')) {
      this.expectOp('=');
      const type = this.inParens(() => {
        this.expect('TYPE');
        return this.equalsString();
      });
      if (!['SNOWFLAKE_SSE', 'SNOWFLAKE_FULL'].includes(type)) this.fail('type of encryption');
      options.encrypted = type !== 'SNOWFLAKE_SSE';
    } else if (this.accept('URL')) {
      options.url = this.equalsString();
    } else if (this.accept('COMMENT')) {
      this.equalsString();
    } else this.fail();
  }

  // ------------------------------------------------------------ ALTER TABLE

  async alter() {
    this.expect('ALTER', 'TABLE');
    const quiet = this.accept('IF', 'EXISTS');
    const parts = this.names();
    if (quiet && !this.catalog.find(parts)) return done();
    const object = this.catalog.table(parts, { ddl: true });
    this.requireOwner(object);
    await this.alterWhat(object);
    return done();
  }

  async alterWhat(object) {
    if (this.accept('RENAME', 'TO')) return this.rename(object);
    if (this.accept('RENAME', 'COLUMN')) return this.renameColumn(object);
    if (this.accept('SWAP', 'WITH')) return this.swap(object);
    if (this.accept('ADD', 'PRIMARY', 'KEY')) return this.change(object, () => this.primaryKey(object));
    if (this.accept('ADD')) return this.addColumns(object);
    if (this.accept('DROP', 'CLUSTERING', 'KEY')) return this.finish(() => (object.clusterBy = ''));
    if (this.accept('DROP', 'PRIMARY', 'KEY')) return this.finish(() => object.columns.forEach((c) => (c.pk = false)));
    if (this.accept('DROP')) return this.dropColumns(object);
    if (this.accept('CLUSTER', 'BY')) {
      const text = this.clustering(object);
      return this.finish(() => (object.clusterBy = text));
    }
    if (this.accept('ALTER') || this.accept('MODIFY')) return this.alterColumn(object);
    this.expect('SET');
    return this.set(object);
  }

  finish(change) {
    this.end();
    return change();
  }

  rename(object) {
    const parts = this.names();
    this.end();
    this.catalog.place(parts);
    if (this.catalog.find(parts)) throw errors.exists(shownAs(parts));
    this.requireCreate(parts);
    this.catalog.rename(object, parts);
  }

  swap(object) {
    const other = this.catalog.table(this.names(), { ddl: true });
    this.end();
    this.requireOwner(other);
    if (other !== object) this.catalog.swap(object, other);
  }

  // Runs a change of the columns and makes the table anew with its rows.
  async change(object, make) {
    const before = object.columns.map((column) => ({ ...column }));
    const old = object.duck;
    try {
      await make();
      this.end();
      await this.catalog.rebuild(object, before);
    } catch (error) {
      object.columns = before;
      object.duck = old;
      throw error;
    }
  }

  addColumns(object) {
    return this.change(object, async () => {
      this.accept('COLUMN');
      const columns = this.list(() => {
        this.accept('COLUMN');
        const quiet = this.accept('IF', 'NOT', 'EXISTS');
        return { quiet, column: this.columnDefinition() };
      });
      for (const { quiet, column } of columns) {
        if (object.columns.some((c) => c.name === column.name)) {
          if (quiet) continue;
          throw compilation('001430', `column '${column.name}' already exists`, '42601');
        }
        if (column.notnull && column.defaultText === null && (await this.duck.scalar(`SELECT count(*) FROM ${object.duck}`)) > 0n)
          throw compilation('002108', `Non-nullable column '${column.name}' cannot be added to non-empty table '${object.name}' unless it has a non-null default value.`);
        object.columns = [...object.columns, column];
      }
    });
  }

  dropColumns(object) {
    return this.change(object, () => {
      this.accept('COLUMN');
      const quiet = this.accept('IF', 'EXISTS');
      const names = this.list(() => this.name());
      for (const name of names) {
        const column = object.columns.find((c) => c.name === name);
        if (!column && quiet) continue;
        if (!column) throw errors.identifier(printName(name));
        this.requireDroppable(object, column);
        object.columns = object.columns.filter((c) => c !== column);
      }
      if (object.columns.length === 0) throw compilation('002262', 'cannot drop the only column of a table');
    });
  }

  requireDroppable(object, column) {
    const text = printName(column.name);
    const words = object.clusterBy.replace(/^LINEAR/, '').match(/"(?:[^"]|"")*"|[A-Za-z_][\w$]*/g) ?? [];
    if (words.some((word) => (word[0] === '"' ? word : word.toUpperCase()) === text || word === `"${column.name}"`))
      throw compilation('002264', `cannot drop column '${column.name}' used by clustering key`, '42601');
    if (column.pk) throw compilation('002265', `cannot drop column '${column.name}' used by constraint`, '42601');
  }

  renameColumn(object) {
    const column = this.existing(object, this.name());
    this.expect('TO');
    const name = this.name();
    this.end();
    if (object.columns.some((c) => c.name === name)) throw compilation('001430', `column '${name}' already exists`, '42601');
    return this.duck.query(`ALTER TABLE ${object.duck} RENAME COLUMN ${duckName(column.name)} TO ${duckName(name)}`).then(() => (column.name = name));
  }

  alterColumn(object) {
    this.accept('COLUMN');
    const name = this.name();
    const column = this.existing(object, name);
    const again = () => object.columns.find((c) => c.name === name);
    if (this.accept('DROP', 'NOT', 'NULL')) return this.change(object, () => (again().notnull = false));
    if (this.accept('SET', 'NOT', 'NULL')) return this.change(object, () => (again().notnull = true));
    if (this.accept('DROP', 'DEFAULT')) return this.change(object, () => Object.assign(again(), { defaultText: null, defaultDuck: null }));
    if (this.accept('SET', 'DATA', 'TYPE') || this.accept('TYPE')) {
      const type = readType(this);
      this.requireWider(column, type);
      return this.change(object, () => (again().type = type));
    }
    if (this.accept('COMMENT')) {
      const text = this.take('string').v;
      return this.finish(() => (column.comment = text));
    }
    if (this.context.admin && this.accept('SET', 'MASKING', 'POLICY')) {
      const policy = this.names().join('.');
      return this.finish(() => (column.policy = policy));
    }
    return this.fail();
  }

  requireWider(column, type) {
    const { type: old } = column;
    const wider = old.kind === type.kind && (old.kind === 'NUMBER' ? old.scale === type.scale && type.precision >= old.precision : (type.length ?? 0) >= (old.length ?? 0));
    if (!wider) throw compilation('002108', `cannot change column ${column.name} from type ${old.text} to ${type.text}`, '22000');
  }

  set(object) {
    if (this.accept('DATA_RETENTION_TIME_IN_DAYS')) {
      const days = this.retention(object);
      return this.finish(() => (object.retention = days));
    }
    if (this.accept('CHANGE_TRACKING')) {
      const on = this.equalsBoolean();
      return this.finish(() => (object.changeTracking = on));
    }
    if (this.accept('COMMENT')) {
      const text = this.equalsString();
      return this.finish(() => (object.comment = text));
    }
    this.expect('TAG');
    const tags = this.list(() => [this.names().join('.'), this.equalsString()]);
    return this.finish(() => tags.forEach(([name, value]) => (object.tags[name] = value)));
  }

  // ------------------------------------------------------------ COMMENT, DROP, TRUNCATE, GRANT

  commentOn() {
    this.expect('COMMENT');
    let quiet = this.accept('IF', 'EXISTS');
    this.expect('ON');
    if (this.accept('COLUMN')) return this.commentOnColumn();
    if (!this.accept('TABLE')) this.expect('VIEW');
    quiet = this.accept('IF', 'EXISTS') || quiet;
    const parts = this.names();
    this.expect('IS');
    const text = this.take('string').v;
    this.end();
    if (quiet && !this.catalog.find(parts)) return done();
    const object = this.catalog.get(parts, { ddl: true });
    this.requireOwner(object);
    object.comment = text;
    return done();
  }

  commentOnColumn() {
    const parts = this.names();
    this.expect('IS');
    const text = this.take('string').v;
    this.end();
    const object = this.catalog.get(parts.slice(0, -1), { ddl: true });
    this.requireOwner(object);
    this.existing(object, parts[parts.length - 1]).comment = text;
    return done();
  }

  async drop() {
    this.expect('DROP');
    if (this.accept('STAGE')) return this.dropStage();
    const kind = this.accept('TABLE') ? 'Table' : (this.expect('VIEW'), 'View');
    const quiet = this.accept('IF', 'EXISTS');
    const parts = this.names();
    this.end();
    const object = this.dropTarget(parts, quiet, kind);
    if (!object) return status('Drop statement executed successfully ' + `(${printName(parts[2])} already dropped).`);
    this.requireOwner(object);
    this.catalog.remove(object);
    await this.catalog.dropDuck(object);
    return status(`${printName(object.name)} successfully dropped.`);
  }

  dropTarget(parts, quiet, kind) {
    const object = this.catalog.find(parts);
    if (!object && quiet && parts.length === 3) return null;
    if (!object) throw errors.notThere(shownAs(parts));
    if ((object.kind === 'VIEW') !== (kind === 'View'))
      throw compilation('002203', `Object found is of type '${object.kind}', not specified type '${kind.toUpperCase()}'.`, '42601');
    return object;
  }

  dropStage() {
    const quiet = this.accept('IF', 'EXISTS');
    const parts = this.names();
    this.end();
    const { stages } = this.context.service;
    if (!stages.drop(this.context.session, parts) && !quiet) throw errors.missing('Stage', shownAs(parts));
    return status(`${printName(parts[parts.length - 1])} successfully dropped.`);
  }

  grant() {
    const revoke = this.accept('REVOKE');
    if (!revoke) this.expect('GRANT');
    const privileges = this.accept('ALL') ? (this.accept('PRIVILEGES'), PRIVILEGES.slice(0, -1)) : this.list(() => this.privilege());
    this.expect('ON', 'TABLE');
    const object = this.catalog.get(this.names(), { ddl: true });
    this.expect(revoke ? 'FROM' : 'TO');
    this.accept('ROLE');
    const role = this.name();
    const option = !revoke && this.accept('WITH', 'GRANT', 'OPTION');
    const copy = !revoke && this.accept('COPY', 'CURRENT', 'GRANTS');
    this.end();
    this.requireOwner(object);
    for (const privilege of privileges) this.changeGrant(object, privilege, role, { revoke, option, copy });
    return done();
  }

  privilege() {
    const word = this.take('word').u;
    const name = word === 'EVOLVE' ? (this.expect('SCHEMA'), 'EVOLVE SCHEMA') : word;
    if (!PRIVILEGES.includes(name)) this.fail(`privilege ${name}`);
    return name;
  }

  changeGrant(object, privilege, role, { revoke, option, copy }) {
    if (privilege === 'OWNERSHIP') {
      if (revoke) this.fail();
      if (object.grants.length && !copy) throw new SqlError('003170', 'Dependent grant of privilege must be revoked first', '42501');
      object.owner = role;
      return;
    }
    object.grants = object.grants.filter((grant) => !(grant.privilege === privilege && grant.grantee === role));
    if (!revoke) object.grants.push({ privilege, grantee: role, option, by: this.role, created: Date.now() });
  }
}

module.exports = { Ddl, status, done };
