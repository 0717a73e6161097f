// INSERT, UPDATE, DELETE and MERGE.  Each is read into a plan: a function that
// runs it in DuckDB and gives the row that Snowflake answers with.
'use strict';

const { SqlError, errors, compilation, duckName, printName } = require('./sql');
const { Translator, tooMany, MAX_LIST } = require('./translate');
const { shownAs } = require('./catalog');

const fixedColumn = (name) => ({ name, type: 'fixed', precision: 19, scale: 0, nullable: false });

// The counts of a DML statement as its result.
function counts(pairs, typeId) {
  return {
    rowtype: pairs.map(([name]) => fixedColumn(name)),
    rows: [pairs.map(([, count]) => String(count))],
    affected: pairs.filter(([name]) => !/multi-joined/.test(name)).reduce((sum, [, count]) => sum + Number(count), 0),
    typeId,
  };
}

class Dml extends Translator {
  // The table of a statement: { object, alias }.
  target(privilege) {
    const parts = this.names();
    this.context.used.tables = true;
    const object = this.catalog.table(parts);
    this.context.authorize(object, privilege);
    return { object, name: parts[2] };
  }

  targetAlias(target, ...stops) {
    if (this.accept('AS') || (this.isAlias() && !this.isWord(...stops))) target.name = this.name();
    target.sql = `${target.object.duck} AS ${duckName(target.name)}`;
  }

  column(object, name, token = this.token) {
    const column = object.columns.find((c) => c.name === name);
    if (!column) throw errors.identifier(printName(name), token);
    return column;
  }

  columnList(object) {
    if (!this.isOp('(')) return object.columns;
    const columns = this.inParens(() => this.list(() => this.column(object, this.name())));
    const twice = columns.find((c, n) => columns.indexOf(c) !== n);
    if (twice) throw compilation('002025', `duplicate column name '${twice.name}'`, '42S21');
    return columns;
  }

  // ------------------------------------------------------------ INSERT

  insert() {
    this.expect('INSERT', 'INTO');
    const { object } = this.target('INSERT');
    const columns = this.isOp('(') && !['SELECT', 'WITH', '('].includes(this.ahead().u || this.ahead().v) ? this.columnList(object) : object.columns;
    const source = this.isWord('VALUES') ? this.insertValues(columns) : this.insertQuery(columns);
    this.end();
    const names = columns.map((c) => duckName(c.name)).join(', ');
    return async (duck) => {
      if (source.check) await source.check(duck);
      const { changed } = await duck.query(`INSERT INTO ${object.duck} (${names}) ${source.sql}`);
      return counts([['number of rows inserted', changed]], 12544);
    };
  }

  insertValues(columns) {
    this.expect('VALUES');
    this.inValues = true;
    const rows = this.list(() => {
      const items = this.inParens(() => this.list(() => this.valueItem()));
      if (items.length !== columns.length) throw width(columns.length, items.length);
      return `(${items.map((sql, n) => (sql === 'DEFAULT' ? sql : this.assign(sql, columns[n].type))).join(', ')})`;
    });
    this.inValues = false;
    if (rows.length > MAX_LIST) throw tooMany();
    return { sql: `VALUES ${rows.join(', ')}` };
  }

  valueItem() {
    if (this.isWord('DEFAULT') && [',', ')'].includes(this.ahead().v)) {
      this.i++;
      return 'DEFAULT';
    }
    if (this.isOp('(') && this.ahead().u === 'SELECT')
      throw compilation('002014', 'Invalid expression [subquery] in VALUES clause', '22000');
    return this.expr();
  }

  insertQuery(columns) {
    if (!this.isWord('SELECT', 'WITH') && !this.isOp('(')) this.fail('wanted SELECT or VALUES');
    const query = this.query();
    const names = columns.map((_, n) => `c${n}`);
    const check = async (duck) => {
      const { rows } = await duck.query(`DESCRIBE ${query}`);
      if (rows.length !== columns.length) throw width(columns.length, rows.length);
    };
    const list = names.map((name, n) => this.assign(name, columns[n].type)).join(', ');
    return { sql: `SELECT ${list} FROM (${query}) AS q(${names.join(', ')})`, check };
  }

  // ------------------------------------------------------------ UPDATE

  assignments(target) {
    return this.list(() => {
      const token = this.token;
      const parts = this.names();
      if (parts.length === 2 && parts[0] !== target.name) throw errors.identifier(shownAs(parts), token);
      if (parts.length > 2) this.fail();
      const column = this.column(target.object, parts[parts.length - 1], token);
      this.expectOp('=');
      if (this.isWord('DEFAULT')) this.fail('DEFAULT in SET');
      return `${duckName(column.name)} = ${this.assign(this.expr(), column.type)}`;
    }).join(', ');
  }

  update() {
    this.expect('UPDATE');
    const target = this.target('UPDATE');
    this.targetAlias(target, 'SET');
    this.expect('SET');
    const set = this.assignments(target);
    const from = this.accept('FROM') ? this.from() : null;
    const where = this.accept('WHERE') ? this.expr() : 'TRUE';
    this.end();
    const self = `${duckName(target.name)}.rowid`;
    return async (duck) => {
      const joined = `SELECT count(*) AS n FROM ${target.sql}${from ? `, ${from}` : ''} WHERE ${where} GROUP BY ${self}`;
      const { rows } = await duck.query(`SELECT count(*), count(*) FILTER (n > 1) FROM (${joined})`);
      await duck.query(`UPDATE ${target.sql} SET ${set}${from ? ` FROM ${from}` : ''} WHERE ${where}`);
      return counts([['number of rows updated', rows[0][0]], ['number of multi-joined rows updated', rows[0][1]]], 12800);
    };
  }

  // ------------------------------------------------------------ DELETE

  delete() {
    this.expect('DELETE', 'FROM');
    const target = this.target('DELETE');
    this.targetAlias(target, 'USING', 'WHERE');
    const using = this.accept('USING') ? this.from() : null;
    const where = this.accept('WHERE') ? this.expr() : 'TRUE';
    this.end();
    return async (duck) => {
      const { changed } = await duck.query(`DELETE FROM ${target.sql}${using ? ` USING ${using}` : ''} WHERE ${where}`);
      return counts([['number of rows deleted', changed]], 13056);
    };
  }

  // ------------------------------------------------------------ MERGE

  merge() {
    this.expect('MERGE', 'INTO');
    const target = this.target('UPDATE');
    this.targetAlias(target, 'USING');
    this.expect('USING');
    const source = this.tableItem();
    this.expect('ON');
    const on = this.expr();
    const arms = [];
    while (this.isWord('WHEN')) arms.push(this.arm(target));
    if (arms.length === 0) this.fail('MERGE without WHEN');
    this.end();
    return (duck) => runMerge(duck, target, source, on, arms);
  }

  arm(target) {
    this.expect('WHEN');
    const matched = !this.accept('NOT');
    this.expect('MATCHED');
    const condition = this.accept('AND') ? this.expr() : 'TRUE';
    this.expect('THEN');
    if (!matched) return this.insertArm(target, condition);
    if (this.accept('DELETE')) return { kind: 'DELETE', condition, sql: 'DELETE' };
    this.expect('UPDATE', 'SET');
    return { kind: 'UPDATE', condition, sql: `UPDATE SET ${this.assignments(target)}` };
  }

  insertArm(target, condition) {
    this.expect('INSERT');
    const columns = this.columnList(target.object);
    this.expect('VALUES');
    const items = this.inParens(() => this.list(() => (this.accept('DEFAULT') ? 'DEFAULT' : this.expr())));
    if (items.length !== columns.length) throw width(columns.length, items.length);
    const given = items.map((sql, n) => (sql === 'DEFAULT' ? sql : this.assign(sql, columns[n].type))).join(', ');
    return { kind: 'INSERT', condition, sql: `INSERT (${columns.map((c) => duckName(c.name)).join(', ')}) VALUES (${given})` };
  }
}

const width = (want, got) => compilation('002020', `Insert value list does not match column list expecting ${want} but got ${got}`, '21S01');

async function runMerge(duck, target, source, on, arms) {
  await requireDeterministic(duck, target, source, on, arms.filter((arm) => arm.kind !== 'INSERT'));
  const clauses = arms.map((arm) => `WHEN ${arm.kind === 'INSERT' ? 'NOT ' : ''}MATCHED AND (${arm.condition}) THEN ${arm.sql}`).join(' ');
  const { rows } = await duck.query(`MERGE INTO ${target.sql} USING ${source} ON (${on}) ${clauses} RETURNING merge_action`);
  const done = { INSERT: 0, UPDATE: 0, DELETE: 0 };
  for (const [action] of rows) done[action]++;
  const names = { INSERT: 'inserted', UPDATE: 'updated', DELETE: 'deleted' };
  const kinds = ['INSERT', 'UPDATE', 'DELETE'].filter((kind) => arms.some((arm) => arm.kind === kind));
  return counts(kinds.map((kind) => [`number of rows ${names[kind]}`, done[kind]]), 13312);
}

// One row of the target must not be changed by several rows of the source,
// except that several may want it deleted.
async function requireDeterministic(duck, target, source, on, arms) {
  if (!arms.some((arm) => arm.kind === 'UPDATE')) return;
  const chosen = `CASE ${arms.map((arm, n) => `WHEN ${arm.condition} THEN ${n}`).join(' ')} END`;
  const updates = arms.map((arm, n) => (arm.kind === 'UPDATE' ? n : -1)).filter((n) => n >= 0).join(', ');
  const { rows } = await duck.query(
    `SELECT count(*) FROM (SELECT 1 FROM (SELECT ${duckName(target.name)}.rowid AS r, ${chosen} AS arm FROM ${target.sql} JOIN ${source} ON (${on}))
     WHERE arm IS NOT NULL GROUP BY r HAVING count(*) > 1 AND count(*) FILTER (arm IN (${updates})) > 0)`);
  if (rows[0][0] > 0n) throw new SqlError('100090', 'Duplicate row detected during DML action\nRow Values: [...]', '42P18');
}

module.exports = { Dml, counts, fixedColumn };
