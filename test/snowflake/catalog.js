// What exists: schemas, tables, views.  A table is an object with the name of
// its table in DuckDB; renames and swaps only change where an object is found.
'use strict';

const { errors, duckName, printName, literal } = require('./sql');

const key = (...parts) => parts.map((part) => `"${part.replace(/"/g, '""')}"`).join('.');
const shownAs = (parts) => parts.map(printName).join('.');

class Catalog {
  constructor(duck, database) {
    this.duck = duck;
    this.databases = new Set([database]);
    this.schemas = new Map();
    this.objects = new Map();
    this.count = 0;
  }

  addSchema(database, name, owner, comment = '') {
    this.schemas.set(key(database, name), { database, name, owner, comment, created: Date.now() });
  }

  hasSchema(database, name) {
    return this.schemas.has(key(database, name));
  }

  // Three parts, or an error: nothing here depends on the session's schema.
  place(parts, token) {
    if (parts.length !== 3) throw errors.missing('Object', shownAs(parts), token);
    if (!this.databases.has(parts[0])) throw errors.missing('Database', printName(parts[0]));
    if (!this.hasSchema(parts[0], parts[1])) throw errors.missing('Schema', shownAs(parts.slice(0, 2)));
    return key(...parts);
  }

  find(parts) {
    return parts.length === 3 ? this.objects.get(key(...parts)) : undefined;
  }

  // The object, or the error 002003 (DML) or 002043 (ALTER, DESCRIBE ...).
  get(parts, { ddl = false } = {}) {
    const object = this.find(parts);
    if (object) return object;
    if (ddl) throw errors.notThere(shownAs(parts));
    this.place(parts);
    throw errors.missing('Object', shownAs(parts));
  }

  table(parts, options) {
    const object = this.get(parts, options);
    if (object.kind === 'VIEW') throw options?.ddl ? errors.notThere(shownAs(parts)) : errors.missing('Table', shownAs(parts));
    return object;
  }

  newDuck() {
    return `t${++this.count}`;
  }

  put(parts, object) {
    [object.database, object.schema, object.name] = parts;
    this.objects.set(key(...parts), object);
  }

  remove(object) {
    this.objects.delete(key(object.database, object.schema, object.name));
  }

  rename(object, parts) {
    this.remove(object);
    this.put(parts, object);
  }

  swap(a, b) {
    const placeA = [a.database, a.schema, a.name];
    const placeB = [b.database, b.schema, b.name];
    this.put(placeB, a);
    this.put(placeA, b);
  }

  inSchema(database, schema) {
    return [...this.objects.values()].filter((o) => o.database === database && o.schema === schema)
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  // ------------------------------------------------------------ in DuckDB

  columnDefinition(column) {
    const limit = column.type.kind === 'VARCHAR' && column.type.length < 16777216
      ? ` CHECK (length(${duckName(column.name)}) <= ${column.type.length})` : '';
    return `${duckName(column.name)} ${column.type.duck}${column.notnull ? ' NOT NULL' : ''}` +
      `${column.defaultDuck ? ` DEFAULT (${column.defaultDuck})` : ''}${limit}`;
  }

  async createDuck(object) {
    object.duck = this.newDuck();
    await this.duck.query(`CREATE TABLE ${object.duck} (${object.columns.map((c) => this.columnDefinition(c)).join(', ')})`);
  }

  async dropDuck(object) {
    if (object.duck) await this.duck.query(`DROP TABLE ${object.duck}`);
  }

  // The columns have changed: a new table with the rows of the old one.
  async rebuild(object, before) {
    const old = object.duck;
    const kept = object.columns.filter((c) => before.some((b) => b.name === c.name));
    await this.createDuck(object);
    const names = kept.map((c) => duckName(c.name)).join(', ');
    if (names) await this.duck.query(`INSERT INTO ${object.duck} (${names}) SELECT ${names} FROM ${old}`);
    await this.duck.query(`DROP TABLE ${old}`);
  }

  async rowCount(object) {
    return object.duck ? String(await this.duck.scalar(`SELECT count(*) FROM ${object.duck}`)) : null;
  }

  // ------------------------------------------------------------ INFORMATION_SCHEMA

  // A view of the information schema as a query.
  informationSchema(database, view) {
    if (!this.databases.has(database)) throw errors.missing('Database', printName(database));
    const objects = [...this.objects.values()].filter((o) => o.database === database);
    if (view === 'TABLES') return rows(TABLES, objects.map(tableRow));
    if (view === 'COLUMNS') return rows(COLUMNS, objects.flatMap(columnRows));
    if (view === 'SCHEMATA') {
      const schemas = [...this.schemas.values()].filter((s) => s.database === database);
      return rows(['CATALOG_NAME', 'SCHEMA_NAME', 'SCHEMA_OWNER', 'COMMENT'],
        schemas.map((s) => [s.database, s.name, s.owner, s.comment].map(literal)));
    }
    throw errors.missing('Object', `${printName(database)}.INFORMATION_SCHEMA.${printName(view)}`);
  }
}

const TABLES = ['TABLE_CATALOG', 'TABLE_SCHEMA', 'TABLE_NAME', 'TABLE_OWNER', 'TABLE_TYPE', 'IS_TRANSIENT', 'CLUSTERING_KEY', 'ROW_COUNT',
  'RETENTION_TIME', 'CREATED', 'COMMENT'];
const COLUMNS = ['TABLE_CATALOG', 'TABLE_SCHEMA', 'TABLE_NAME', 'COLUMN_NAME', 'ORDINAL_POSITION', 'COLUMN_DEFAULT', 'DATA_TYPE',
  'IS_NULLABLE', 'CHARACTER_MAXIMUM_LENGTH', 'NUMERIC_PRECISION', 'NUMERIC_SCALE', 'DATETIME_PRECISION', 'COMMENT'];

const number = (n) => (n === null || n === undefined ? 'NULL' : `${n}::DECIMAL(38,0)`);

function rows(names, list) {
  const columns = names.map(duckName).join(', ');
  if (list.length === 0) return `(SELECT ${names.map((n) => `NULL::VARCHAR AS ${duckName(n)}`).join(', ')} WHERE false)`;
  return `(SELECT * FROM (VALUES ${list.map((row) => `(${row.join(', ')})`).join(', ')}) AS v(${columns}))`;
}

function tableRow(o) {
  return [
    ...[o.database, o.schema, o.name, o.owner, o.kind === 'VIEW' ? 'VIEW' : 'BASE TABLE', o.kind === 'TRANSIENT' ? 'YES' : 'NO'].map(literal),
    o.clusterBy ? literal(o.clusterBy) : 'NULL', o.duck ? `(SELECT count(*) FROM ${o.duck})::DECIMAL(38,0)` : 'NULL',
    o.kind === 'VIEW' ? 'NULL' : number(o.retention ?? 1), `make_timestamptz(${o.created * 1000})`, o.comment ? literal(o.comment) : 'NULL',
  ];
}

function columnRows(o) {
  const { dataTypeName } = require('./types');
  return o.columns.map((c, n) => [
    ...[o.database, o.schema, o.name, c.name].map(literal), number(n + 1), literal(c.defaultText ?? null), literal(dataTypeName(c.type)),
    literal(c.notnull ? 'NO' : 'YES'), number(c.type.length), number(c.type.kind === 'NUMBER' ? c.type.precision : null), number(c.type.scale),
    number(c.type.kind !== 'NUMBER' ? c.type.precision : null), literal(c.comment ?? null),
  ]);
}

module.exports = { Catalog, shownAs };
