// DuckDB: one connection, the functions that Snowflake has and it has not, and
// its errors said as Snowflake says them.
'use strict';

const duckdb = require('@duckdb/node-api');
const { SqlError, errors, compilation, decode, printName } = require('./sql');
const values = require('./values');

// Error codes that come out of error('CODE|text') and out of our functions.
const STATES = { 100038: '22018', 100040: '22007', 100035: '22007', 100069: '22P02', 100051: '22012', '002023': '22000', '001065': '22023' };

const MACROS = [
  `CREATE MACRO sf_text(x, d, t, n, z) AS CASE
     WHEN typeof(x) = 'JSON' THEN sf_json_text(x::VARCHAR)
     WHEN typeof(x) = 'BLOB' THEN upper(hex(x::VARCHAR::BLOB))
     WHEN typeof(x) IN ('DOUBLE', 'FLOAT') THEN sf_double(x::VARCHAR)
     WHEN typeof(x) = 'DATE' THEN strftime(x::VARCHAR::DATE, d)
     WHEN typeof(x) = 'TIME' THEN strftime(DATE '2000-01-01' + x::VARCHAR::TIME, t)
     WHEN typeof(x) = 'TIMESTAMP' THEN strftime(x::VARCHAR::TIMESTAMP, n)
     WHEN typeof(x) = 'TIMESTAMP WITH TIME ZONE' THEN strftime(x::VARCHAR::TIMESTAMPTZ, z)
     ELSE x::VARCHAR END`,
  `CREATE MACRO sf_div(a, b) AS CASE WHEN b = 0 THEN error('100051|Division by zero') ELSE a / b END`,
  `CREATE MACRO sf_only_text(x) AS CASE WHEN typeof(x) IN ('VARCHAR', '"NULL"') THEN x::VARCHAR
     ELSE error('001065|SQL compilation error: Function TRY_CAST cannot be used with arguments of type ' || typeof(x)) END`,
  `CREATE MACRO sf_into_variant(x) AS CASE WHEN typeof(x) IN ('JSON', '"NULL"') THEN x::VARCHAR::JSON
     ELSE error('002023|SQL compilation error: Expression type does not match column data type, expecting VARIANT but got ' || typeof(x)) END`,
  `CREATE MACRO sf_into_binary(x) AS CASE WHEN typeof(x) IN ('BLOB', '"NULL"') THEN x::VARCHAR::BLOB
     ELSE error('002023|SQL compilation error: Expression type does not match column data type, expecting BINARY but got ' || typeof(x)) END`,
  `CREATE MACRO sf_no_variant(x, want) AS CASE WHEN typeof(x) <> 'JSON' THEN x
     ELSE error('002023|SQL compilation error: Expression type does not match column data type, expecting ' || want || ' but got VARIANT') END`,
  `CREATE MACRO sf_variant(x) AS CASE WHEN typeof(x) = 'JSON' THEN x::VARCHAR::JSON
     WHEN typeof(x) LIKE 'DECIMAL%' OR typeof(x) LIKE '%INT%' OR typeof(x) IN ('BOOLEAN', 'DOUBLE') THEN x::VARCHAR::JSON
     ELSE to_json(x::VARCHAR)::VARCHAR::JSON END`,
  `CREATE MACRO sf_binary(x) AS CASE WHEN typeof(x) = 'BLOB' THEN x::VARCHAR::BLOB ELSE unhex(sf_hex(x::VARCHAR)) END`,
  `CREATE MACRO sf_value(x) AS CASE WHEN typeof(x) = 'JSON' THEN sf_json_text(x::VARCHAR) ELSE x::VARCHAR END`,
];

class Duck {
  static async create() {
    const duck = new Duck();
    duck.instance = await duckdb.DuckDBInstance.create(':memory:', { threads: '1' });
    duck.connection = await duck.instance.connect();
    await duck.run("SET TimeZone = 'UTC'");
    duck.functions();
    for (const macro of MACROS) await duck.run(macro);
    return duck;
  }

  // Text functions in JavaScript; what they throw becomes the statement's error.
  functions() {
    this.conversion('parse_json', (text, mode) => values.json(text, mode));
    this.define('sf_double', (text) => {
      const lower = text.toLowerCase();
      if (lower === 'nan') return 'NaN';
      if (lower.includes('inf')) return lower.startsWith('-') ? '-inf' : 'inf';
      return String(Number(text)).replace(/e([+-])(\d)$/, 'e$10$2');
    });
    // a VARIANT as text: a string without its quotes, JSON's null as NULL
    this.define('sf_json_text', (text) => (text === 'null' ? null : text[0] === '"' ? JSON.parse(text) : text));
    this.conversion('geo', (text) => values.geo(text));
    this.conversion('hex', (text) => values.hex(text));
    this.conversion('number', (text, precision, scale) => values.decimal(text, Number(precision), Number(scale)));
    this.conversion('float', (text) => values.float(text));
    this.conversion('boolean', (text) => values.boolean(text));
    this.conversion('date', (text, format) => values.date(text, format));
    this.conversion('time', (text, format) => values.time(text, format));
    this.conversion('ntz', (text, format) => values.timestampNtz(text, format));
    this.conversion('tz', (text, format, zone) => values.timestampTz(text, format, zone));
  }

  // sf_NAME, and sf_try_NAME that gives NULL for what cannot be read.
  conversion(name, convert) {
    const attempt = (...args) => {
      try {
        return convert(...args);
      } catch {
        return null;
      }
    };
    Object.defineProperty(attempt, 'length', { value: convert.length });
    this.define(`sf_${name}`, convert);
    this.define(`sf_try_${name}`, attempt);
  }

  define(name, compute) {
    const { VARCHAR } = duckdb;
    const count = Math.max(1, compute.length);
    this.connection.registerScalarFunction(duckdb.DuckDBScalarFunction.create({
      name,
      parameterTypes: Array(count).fill(VARCHAR),
      returnType: VARCHAR,
      mainFunction: (info, input, output) => {
        try {
          for (let row = 0; row < input.rowCount; row++) {
            const args = [];
            for (let n = 0; n < count; n++) args.push(input.getColumnVector(n).getItem(row));
            output.setItem(row, args.some((arg) => arg === null) ? null : compute(...args));
          }
          output.flush();
        } catch (error) {
          info.setError(`${error.code ?? '300002'}|${error.message}`);
        }
      },
    }));
  }

  run(sql) {
    return this.connection.run(sql);
  }

  // { names, types, rows, changed } of one statement; errors are Snowflake's.
  async query(sql) {
    try {
      const reader = await this.connection.runAndReadAll(sql);
      return {
        names: reader.columnNames().map(decode),
        types: reader.columnTypes().map((type) => type.alias ?? String(type)),
        rows: reader.getRows(),
        changed: Number(reader.rowsChanged),
      };
    } catch (error) {
      throw translateError(error, sql);
    }
  }

  async scalar(sql) {
    const { rows } = await this.query(sql);
    return rows[0][0];
  }

  // Appends rows, given as arrays of texts by column, to a table of VARCHARs.
  appender(table) {
    return this.connection.createAppender(table);
  }
}

const SIZE = 2048;

// Writes columns of text, in chunks of DuckDB's size.
function appendColumns(appender, columns, count) {
  const types = columns.map(() => duckdb.VARCHAR);
  for (let from = 0; from < count; from += SIZE) {
    const rows = Math.min(SIZE, count - from);
    const chunk = duckdb.DuckDBDataChunk.create(types, rows);
    columns.forEach((column, n) => chunk.setColumnValues(n, column.slice(from, from + rows)));
    appender.appendDataChunk(chunk);
  }
  appender.flushSync();
}

const shown = (name) => printName(decode(name));

// [pattern on DuckDB's message, the error it is at Snowflake]
const TRANSLATIONS = [
  [/(?:^|: )(\d{6})\|([\s\S]*)$/, (m) => new SqlError(m[1], m[2], STATES[m[1]] ?? '22000')],
  [/Referenced (?:column|table) "([^"]*)" (?:was )?not found/, (m) => errors.identifier(shown(m[1]))],
  [/(?:Table|Values list) "([^"]*)" does not have a column named "([^"]*)"/, (m) => errors.identifier(`${shown(m[1])}.${shown(m[2])}`)],
  [/Column "([^"]*)" (?:referenced that exists in the SELECT clause|.*(?:does not exist|not found))/, (m) => errors.identifier(shown(m[1]))],
  [/does not have a column (?:with name|named) "([^"]*)"/, (m) => errors.identifier(shown(m[1]))],
  [/Ambiguous reference to (?:column name|table) "([^"]*)"/, (m) => compilation('002028', `ambiguous column name '${shown(m[1])}'`, '42601')],
  [/Could not convert string ['"]([\s\S]*)['"] to (?:DECIMAL|DOUBLE|INT|BIGINT|HUGEINT)/, (m) => numeric(m[1])],
  [/Failed to cast value to decimal: ([\s\S]*)$/, (m) => numeric(m[1])],
  [/Could not cast value (\S+) to DECIMAL/, (m) => values.bad.range(m[1])],
  [/Overflow in/, () => new SqlError('100046', 'Number out of representable range', '22003')],
  [/Could not convert string ['"]([\s\S]*)['"] to BOOL/, (m) => values.bad.boolean(m[1])],
  [/date field value out of range: "([^"]*)"|invalid date field format: "([^"]*)"/, (m) => values.bad.date(m[1] ?? m[2])],
  [/time(?:stamp) field value out of range: "([^"]*)"|invalid timestamp field format: "([^"]*)"/, (m) => values.bad.timestamp(m[1] ?? m[2])],
  [/time field value out of range: "([^"]*)"/, (m) => values.bad.time(m[1])],
  [/Invalid input for hex digit|Hex string .*length/i, () => values.bad.hex('?')],
  [/NOT NULL constraint failed: \S*\.(.*)/, () => new SqlError('100072', 'NULL result in a non-nullable column', '22000')],
  [/CHECK constraint failed/, () => values.bad.long('...')],
  [/must appear in the GROUP BY clause[\s\S]*/, () => compilation('000979', 'expression is not a valid group by expression', '42601')],
  [/has (\d+) columns but (\d+) values were supplied/, (m) =>
    compilation('002020', `Insert value list does not match column list expecting ${m[1]} but got ${m[2]}`, '21S01')],
  [/^Binder Error: (?:Cannot|No function matches|Could not choose)([\s\S]*)/, (m) => compilation('001044', `Invalid argument types: ${decode(m[0])}`, '42P13')],
  [/Unimplemented type for cast \((.*)\)/, (m) => compilation('001007', `invalid type for a cast: ${m[1]}`, '22023')],
  [/UNION types|set operations can only apply/i, () => compilation('001789', 'invalid number of result columns for set operator input branches', '42601')],
  [/More than one row returned by a subquery/, () => new SqlError('090150', 'Single-row subquery returns more than one row.', '21000')],
];

function numeric(text) {
  return /^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$/.test(text) ? values.bad.range(text) : values.bad.number(text);
}

function translateError(error, sql) {
  if (error instanceof SqlError) return error;
  for (const [pattern, make] of TRANSLATIONS) {
    const match = pattern.exec(error.message.replace(/\n\nLINE \d+:[\s\S]*$/, ''));
    if (match) return make(match);
  }
  const unknown = new SqlError('300002', `the fake's DuckDB: ${decode(error.message)}`, 'XX000');
  unknown.duckSql = sql;
  return unknown;
}

// ---------------------------------------------------------------- values on the wire

const pad = (n, size) => String(n).padStart(size, '0');

// Epoch seconds with nine decimals.
function seconds(micros) {
  const negative = micros < 0n;
  const value = negative ? -micros : micros;
  return `${negative ? '-' : ''}${value / 1000000n}.${pad(value % 1000000n, 6)}000`;
}

const WIRE = [
  [/^BOOLEAN$/, 'boolean', (v) => (v ? '1' : '0')],
  [/^DECIMAL/, 'fixed', (v) => v.toString()],
  [/INT$|^INTEGER$/, 'fixed', (v) => String(v)],
  [/^(DOUBLE|FLOAT)$/, 'real', (v) => (Number.isFinite(v) ? String(v) : Number.isNaN(v) ? 'NaN' : v > 0 ? 'inf' : '-inf')],
  [/^DATE$/, 'date', (v) => String(v.days)],
  [/^TIME$/, 'time', (v) => seconds(v.micros)],
  [/^TIMESTAMP$/, 'timestamp_ntz', (v) => seconds(v.micros)],
  [/^TIMESTAMP WITH TIME ZONE$/, 'timestamp_tz', (v) => `${seconds(v.micros)} 1440`],
  [/^BLOB$/, 'binary', (v) => Buffer.from(v.bytes).toString('hex').toUpperCase()],
  [/^JSON$/, 'variant', (v) => v],
];

function wire(type) {
  const found = WIRE.find(([pattern]) => pattern.test(type));
  return found ? { type: found[1], print: found[2] } : { type: 'text', print: (v) => String(v) };
}

function rowType(name, type) {
  const decimal = /^DECIMAL\((\d+),(\d+)\)$/.exec(type);
  const kind = wire(type).type;
  const fixed = kind === 'fixed';
  return {
    name, type: kind, nullable: true, database: '', schema: '', table: '',
    precision: fixed ? Number(decimal?.[1] ?? 38) : null, scale: fixed ? Number(decimal?.[2] ?? 0) : kind.startsWith('time') ? 9 : null,
    length: kind === 'text' ? 16777216 : null, byteLength: kind === 'text' ? 16777216 : null, collation: null,
  };
}

// A result of query() as the wire has it.
function toWire(result) {
  const printers = result.types.map((type) => wire(type).print);
  return {
    rowtype: result.names.map((name, n) => rowType(name, result.types[n])),
    rows: result.rows.map((row) => row.map((value, n) => (value === null ? null : printers[n](value)))),
  };
}

module.exports = { Duck, toWire, appendColumns, rowType };
