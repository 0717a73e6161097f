// One statement of a session: which kind it is, and doing it.
'use strict';

const { SqlError, Reader, errors, compilation, lex } = require('./sql');
const { Translator } = require('./translate');
const { Dml } = require('./dml');
const { Ddl, status } = require('./ddl');
const { Show } = require('./show');
const { parseCopy, Copy } = require('./copy');
const { Script } = require('./script');
const { toWire } = require('./duck');
const { shownAs } = require('./catalog');

const MAX_SQL = 1 << 20;
const PUT = /^\s*PUT\s+(?:'((?:[^'\\]|\\.|'')*)'|(file:\/\/\S+))\s+(?:'(@[^']*)'|(@(?:"(?:[^"]|"")*"|[^\s"])+))((?:\s+[A-Z_]+\s*=\s*\w+)*)\s*;?\s*$/i;

const PARAMETERS = ['AUTOCOMMIT', 'QUERY_TAG', 'TIMEZONE', 'CLIENT_SESSION_KEEP_ALIVE', 'STATEMENT_TIMEOUT_IN_SECONDS', 'LOCK_TIMEOUT', 'DATE_OUTPUT_FORMAT',
  'TIME_OUTPUT_FORMAT', 'TIMESTAMP_OUTPUT_FORMAT', 'TIMESTAMP_NTZ_OUTPUT_FORMAT', 'TIMESTAMP_TZ_OUTPUT_FORMAT', 'TIMESTAMP_LTZ_OUTPUT_FORMAT',
  'BINARY_OUTPUT_FORMAT', 'ERROR_ON_NONDETERMINISTIC_MERGE', 'ABORT_DETACHED_QUERY'];

class Statements {
  constructor(service) {
    this.service = service;
  }

  // What the parsers need to know of the session and of a block's variables.
  context(session, more = {}) {
    const { service } = this;
    return {
      service, session, catalog: service.catalog, role: session.role, admin: session.admin, vars: new Map(), bare: false, used: {},
      result: (id) => (id ? session.results.get(id) : session.lastResult),
      authorize: (object, privilege) => this.authorize(session, object, privilege),
      ...more,
    };
  }

  authorize(session, object, privilege) {
    const denied = this.service.settings.deny?.[`${object.database}.${object.schema}.${object.name}`] ?? [];
    if (!session.admin && denied.includes(privilege)) throw errors.privileges(object.kind === 'VIEW' ? 'view' : 'table', object.name);
  }

  requireWarehouse(session) {
    const { settings } = this.service;
    if (session.admin) return;
    if (!session.warehouse || !settings.warehouse_exists) throw errors.warehouse();
    if (!settings.resume_privilege) throw errors.privileges('warehouse', session.warehouse);
  }

  // A statement as a client sends it.
  async execute(sql, session, queryId, control = {}) {
    if (Buffer.byteLength(sql) > MAX_SQL) throw new SqlError('000005', 'SQL compilation error:\nThe query text exceeds the maximum size of 1 MB', '54001');
    const result = await this.run(sql, this.context(session, { control, queryId }));
    this.remember(session, queryId, result);
    return result;
  }

  remember(session, queryId, result) {
    result.queryId = queryId;
    session.lastResult = result;
    session.results.set(queryId, result);
    if (session.results.size > 50) session.results.delete(session.results.keys().next().value);
  }

  // A statement, alone or inside of a block (context.block).
  async run(sql, context) {
    const { service } = this;
    const match = /^\s*PUT\s/i.test(sql) ? PUT.exec(sql) : undefined;
    if (match) return this.put(match, context.session);
    const tokens = lex(sql);
    const first = tokens[0].u || tokens[0].v;
    const handler = this.handlers()[first];
    if (match === null || !handler) throw errors.syntax(tokens[0]);
    service.log({ statement: sql.length > 20000 ? sql.slice(0, 20000) + '...' : sql, inBlock: Boolean(context.block) });
    return handler(sql, context, tokens);
  }

  handlers() {
    const query = (sql, context, tokens) => this.query(sql, context, tokens);
    const dml = (method) => (sql, context, tokens) => this.dml(method, sql, context, tokens);
    const ddl = (method) => (sql, context, tokens) => this.ddl(method, sql, context, tokens);
    return {
      SELECT: query, WITH: query, '(': query,
      INSERT: dml('insert'), UPDATE: dml('update'), DELETE: dml('delete'), MERGE: dml('merge'),
      TRUNCATE: (sql, context, tokens) => this.truncate(sql, context, tokens),
      COPY: (sql, context) => this.copy(sql, context),
      CREATE: ddl('create'), ALTER: (sql, context, tokens) => this.alter(sql, context, tokens), DROP: ddl('drop'), COMMENT: ddl('commentOn'),
      GRANT: ddl('grant'), REVOKE: ddl('grant'),
      SHOW: (sql, context) => new Show(sql, context).show(),
      DESCRIBE: (sql, context) => new Show(sql, context).describe(),
      DESC: (sql, context) => new Show(sql, context).describe(),
      LIST: (sql, context, tokens) => this.list(sql, context, tokens), LS: (sql, context, tokens) => this.list(sql, context, tokens),
      REMOVE: (sql, context, tokens) => this.remove(sql, context, tokens), RM: (sql, context, tokens) => this.remove(sql, context, tokens),
      EXECUTE: (sql, context, tokens) => this.executeImmediate(sql, context, tokens),
      USE: (sql, context, tokens) => this.use(sql, context, tokens),
      BEGIN: (sql, context, tokens) => this.begin(sql, context, tokens),
      START: (sql, context, tokens) => this.begin(sql, context, tokens),
      COMMIT: (sql, context, tokens) => this.endTransaction('COMMIT', context, tokens, sql),
      ROLLBACK: (sql, context, tokens) => this.endTransaction('ROLLBACK', context, tokens, sql),
    };
  }

  // ------------------------------------------------------------ queries and DML

  async query(sql, context, tokens) {
    context.takeInto = Boolean(context.block);
    const translator = new Translator(tokens, sql, context);
    const text = translator.query();
    translator.end();
    if (context.used.tables) this.requireWarehouse(context.session);
    // an administrator of a test reads everything as text
    const shown = context.session.admin ? `SELECT COLUMNS(*)::VARCHAR FROM (${text})` : text;
    const answer = toWire(await this.service.isolated(() => this.service.duck.query(shown), false));
    const result = { ...answer, typeId: 4096 };
    if (context.into) context.block.assignInto(context.into, result);
    return result;
  }

  async dml(method, sql, context, tokens) {
    const plan = new Dml(tokens, sql, context)[method]();
    this.requireWarehouse(context.session);
    return this.service.isolated(() => plan(this.service.duck));
  }

  async truncate(sql, context, tokens) {
    const reader = new Reader(tokens, sql);
    reader.expect('TRUNCATE');
    reader.accept('TABLE');
    const quiet = reader.accept('IF', 'EXISTS');
    const parts = reader.names();
    reader.end();
    if (quiet && !context.catalog.find(parts)) return status('Statement executed successfully.');
    const object = context.catalog.table(parts);
    if (!context.admin && object.owner !== context.role) throw errors.privileges('table', object.name);
    this.requireWarehouse(context.session);
    await this.service.isolated(() => this.service.duck.query(`DELETE FROM ${object.duck}`));
    const loads = object.loads;
    object.loads = new Map();
    this.service.transaction?.undo.push(() => (object.loads = loads));
    return status('Statement executed successfully.');
  }

  async copy(sql, context) {
    const plan = parseCopy(sql, context);
    this.requireWarehouse(context.session);
    const copy = new Copy(context, plan);
    const result = await this.service.isolated(() => copy.run());
    if (this.service.transaction) this.service.transaction.undo.push(copy.undo);
    await copy.purge();
    return result;
  }

  // ------------------------------------------------------------ DDL and settings

  async ddl(method, sql, context, tokens) {
    const parser = new Ddl(tokens, sql, context);
    await this.service.commitBefore(sql);
    const result = await parser[method]();
    if (tokens[0].u === 'CREATE' && context.used.tables) this.requireWarehouse(context.session);
    return result;
  }

  alter(sql, context, tokens) {
    if (tokens[1]?.u === 'SESSION') return this.alterSession(sql, context, tokens);
    return this.ddl('alter', sql, context, tokens);
  }

  alterSession(sql, context, tokens) {
    const reader = new Reader(tokens, sql);
    reader.expect('ALTER', 'SESSION', 'SET');
    do {
      const token = reader.take('word');
      if (!PARAMETERS.includes(token.u) && !/_QUERY_RESULT_FORMAT$/.test(token.u)) throw compilation('001008', `invalid parameter '${token.u}'`, '22023');
      reader.expectOp('=');
      context.session.setParameter(token.u, reader.tokens[reader.i++].v);
    } while (reader.acceptOp(',') || !(reader.isOp(';') || reader.token.t === 'eof'));
    reader.end();
    return status('Statement executed successfully.');
  }

  use(sql, context, tokens) {
    const reader = new Reader(tokens, sql);
    const { session } = context;
    const { service } = this;
    reader.expect('USE');
    const kind = reader.take('word').u;
    const parts = reader.names();
    reader.end();
    const missing = () => errors.notThere(shownAs(parts));
    if (kind === 'WAREHOUSE' && parts.length === 1) {
      if (!service.warehouseExists(parts[0])) throw missing();
      session.warehouse = parts[0];
    } else if (kind === 'ROLE' && parts.length === 1) {
      if (!service.roles.has(parts[0])) throw missing();
      session.role = parts[0];
    } else if (kind === 'DATABASE' && parts.length === 1) {
      if (!service.catalog.databases.has(parts[0])) throw missing();
      session.database = parts[0];
      session.schema = 'PUBLIC';
    } else if (kind === 'SCHEMA' && parts.length === 2) {
      if (!service.catalog.hasSchema(...parts)) throw missing();
      [session.database, session.schema] = parts;
    } else throw errors.syntax(tokens[1]);
    return status('Statement executed successfully.');
  }

  // ------------------------------------------------------------ transactions

  begin(sql, context, tokens) {
    const words = tokens.slice(0, -1).filter((t) => t.v !== ';').map((t) => t.u).join(' ');
    if (!context.block || !/^(BEGIN (TRANSACTION|WORK)|START TRANSACTION)$/.test(words)) throw errors.syntax(tokens[0], 'transactions in blocks only');
    return this.service.begin(context.block).then(() => status('Statement executed successfully.'));
  }

  async endTransaction(what, context, tokens, sql) {
    const reader = new Reader(tokens, sql, 1);
    reader.accept('WORK');
    reader.end();
    if (!context.block) throw errors.syntax(tokens[0], 'transactions in blocks only');
    await this.service.endTransaction(what);
    return status('Statement executed successfully.');
  }

  // ------------------------------------------------------------ blocks

  async executeImmediate(sql, context, tokens) {
    const reader = new Reader(tokens, sql);
    reader.expect('EXECUTE', 'IMMEDIATE');
    let text;
    const variable = reader.token.t === 'var' ? reader.token.v : reader.token.u;
    if (context.block && variable && reader.i++) text = context.block.value(variable);
    else text = reader.take('string').v;
    reader.end();
    const inner = lex(text);
    if (!['BEGIN', 'DECLARE'].includes(inner[0].u) || /^(TRANSACTION|WORK)$/.test(inner[1]?.u)) {
      if (inner[0].u === 'EXECUTE') throw errors.syntax(inner[0]);
      return this.run(text, context);
    }
    this.requireWarehouse(context.session);
    return new Script(this, context, text, inner).run();
  }

  // ------------------------------------------------------------ stages

  put(match, session) {
    const { stages, proxy, options, settings: steering } = this.service;
    const source = match[1] === undefined ? match[2] : lex(`'${match[1]}'`)[0].v;
    if (!/^file:\/\/./.test(source)) throw compilation('001003', `syntax error: not a file '${source}'`);
    const given = match[3] ?? match[4];
    const tokens = lex(given);
    if (tokens.length !== 2 || tokens[0].t !== 'stage') throw errors.syntax(tokens[0]);
    const settings = putOptions(match[5]);
    const { parts, path } = tokens[0].v;
    const stage = stages.get(session, parts);
    if (stage.url) throw compilation('001003', 'PUT to an external stage');
    const location = `${stage.bucket}/${stage.prefix}${path}${path && !path.endsWith('/') ? '/' : ''}`;
    return {
      rowtype: [], rows: [], typeId: 24576,
      put: {
        uploadInfo: null, src_locations: [source.replace('file://', '')], parallel: settings.PARALLEL, threshold: 209715200, autoCompress: settings.AUTO_COMPRESS,
        overwrite: settings.OVERWRITE, sourceCompression: settings.SOURCE_COMPRESSION, clientShowEncryptionParameter: true, command: 'UPLOAD', kind: null, operation: 'Node',
        encryptionMaterial: stage.encrypted ? { queryStageMasterKey: Buffer.alloc(16, 7).toString('base64'), queryId: 'fake', smkId: 1 } : null,
        stageInfo: { ...proxy.place.info(location, options.credLife, source.split('/').pop()), isClientSideEncrypted: stage.encrypted,
          ...(steering.give_creds ? {} : { creds: {}, presignedUrl: null }) },
      },
    };
  }

  stageOf(sql, context, tokens) {
    const reader = new Reader(tokens, sql, 1);
    const { parts, path } = reader.take('stage').v;
    reader.end();
    return { stage: this.service.stages.get(context.session, parts), path };
  }

  async list(sql, context, tokens) {
    const { stage, path } = this.stageOf(sql, context, tokens);
    const files = await this.service.store.list(stage.bucket, stage.prefix + path);
    const rowtype = ['name', 'size', 'md5', 'last_modified'].map((name) => ({ name, type: name === 'size' ? 'fixed' : 'text', nullable: true }));
    return { rowtype, typeId: 20480, rows: files.map((f) => [`${stage.name.toLowerCase()}/${f.key.slice(stage.prefix.length)}`, String(f.size), f.etag.replace(/"/g, ''), f.modified]) };
  }

  async remove(sql, context, tokens) {
    const { stage, path } = this.stageOf(sql, context, tokens);
    const files = await this.service.store.list(stage.bucket, stage.prefix + path);
    for (const file of files) await this.service.store.remove(stage.bucket, file.key);
    const rowtype = ['name', 'result'].map((name) => ({ name, type: 'text', nullable: true }));
    return { rowtype, typeId: 20480, rows: files.map((f) => [`${stage.name.toLowerCase()}/${f.key.slice(stage.prefix.length)}`, 'removed']) };
  }
}

function putOptions(text) {
  const settings = { AUTO_COMPRESS: true, SOURCE_COMPRESSION: 'auto_detect', OVERWRITE: false, PARALLEL: 4 };
  for (const [, name, value] of text.matchAll(/([A-Z_]+)\s*=\s*(\w+)/gi)) {
    const key = name.toUpperCase();
    if (!(key in settings)) throw compilation('001003', `syntax error: unknown option of PUT '${name}'`);
    if (typeof settings[key] === 'boolean') settings[key] = /^true$/i.test(value);
    else if (typeof settings[key] === 'number') settings[key] = Number(value);
    else settings[key] = value.toLowerCase();
  }
  return settings;
}

module.exports = { Statements };
