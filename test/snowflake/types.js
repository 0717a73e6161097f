// Data types: Snowflake's names, and what DuckDB keeps them in.
'use strict';

const { errors, compilation } = require('./sql');

const MAX_TEXT = 16777216;
const MAX_BINARY = 8388608;
const NUMBERS = ['NUMBER', 'DECIMAL', 'NUMERIC'];
const INTEGERS = ['INT', 'INTEGER', 'BIGINT', 'SMALLINT', 'TINYINT', 'BYTEINT'];
const FLOATS = ['FLOAT', 'FLOAT4', 'FLOAT8', 'DOUBLE', 'REAL'];
const TEXTS = ['VARCHAR', 'STRING', 'TEXT', 'CHAR', 'CHARACTER', 'NVARCHAR'];
const TIMES = { TIME: 'TIME', DATETIME: 'TIMESTAMP_NTZ', TIMESTAMP_NTZ: 'TIMESTAMP_NTZ', TIMESTAMP: 'TIMESTAMP_NTZ', TIMESTAMP_TZ: 'TIMESTAMP_TZ' };
const DUCK = { TIME: 'TIME', TIMESTAMP_NTZ: 'TIMESTAMP', TIMESTAMP_TZ: 'TIMESTAMPTZ', DATE: 'DATE', BOOLEAN: 'BOOLEAN', FLOAT: 'DOUBLE',
  VARIANT: 'JSON', OBJECT: 'JSON', ARRAY: 'JSON', GEOGRAPHY: 'VARCHAR', GEOMETRY: 'VARCHAR', BINARY: 'BLOB', VARCHAR: 'VARCHAR' };

const plain = (kind) => ({ kind, text: kind, duck: DUCK[kind] });

function number(precision, scale) {
  if (precision < 1 || precision > 38 || scale < 0 || scale > precision)
    throw compilation('001428', `Invalid value [${precision}] for parameter 'PRECISION'`, '22003');
  return { kind: 'NUMBER', precision, scale, text: `NUMBER(${precision},${scale})`, duck: `DECIMAL(${precision},${scale})` };
}

function sized(kind, length, max) {
  if (length < 1 || length > max) throw compilation('002000', `Invalid length ${length} for type ${kind}`, '22000');
  return { kind, length, text: `${kind}(${length})`, duck: DUCK[kind] };
}

function timed(kind, precision) {
  if (precision > 9) throw compilation('001428', `Invalid precision ${precision} for type ${kind}`, '22003');
  return { kind, precision, text: `${kind}(${precision})`, duck: DUCK[kind] };
}

// Reads a type: NUMBER(38,0), VARCHAR, TIMESTAMP_TZ(9) ...
function readType(reader) {
  const name = reader.take('word').u;
  const args = () => {
    if (!reader.isOp('(')) return [];
    return reader.inParens(() => reader.list(() => {
      const text = reader.take('number').v;
      if (!/^\d+$/.test(text)) reader.fail('wanted a whole number');
      return Number(text);
    }));
  };
  if (NUMBERS.includes(name)) {
    const [p = 38, s = 0] = args();
    return number(p, s);
  }
  if (INTEGERS.includes(name)) return number(38, 0);
  if (name === 'DOUBLE') reader.accept('PRECISION');
  if (FLOATS.includes(name)) return plain('FLOAT');
  if (TEXTS.includes(name)) {
    const [length = name.startsWith('CHAR') ? 1 : MAX_TEXT] = args();
    return sized('VARCHAR', length, MAX_TEXT);
  }
  if (name === 'BINARY' || name === 'VARBINARY') return sized('BINARY', args()[0] ?? MAX_BINARY, MAX_BINARY);
  if (TIMES[name]) return timed(TIMES[name], args()[0] ?? 9);
  if (['BOOLEAN', 'DATE', 'VARIANT', 'OBJECT', 'ARRAY', 'GEOGRAPHY', 'GEOMETRY'].includes(name)) return plain(name);
  reader.i--;
  throw compilation('002040', `Unsupported data type '${name}'.`, '42601');
}

// The type that a column made from a query has, by DuckDB's type.
function fromDuck(text) {
  const decimal = /^DECIMAL\((\d+),(\d+)\)$/.exec(text);
  if (decimal) return number(Number(decimal[1]), Number(decimal[2]));
  if (/INT/.test(text) && !/INTERVAL/.test(text)) return number(38, 0);
  const map = { DOUBLE: 'FLOAT', FLOAT: 'FLOAT', BOOLEAN: 'BOOLEAN', DATE: 'DATE', JSON: 'VARIANT' };
  if (map[text]) return plain(map[text]);
  if (text === 'TIME') return timed('TIME', 9);
  if (text === 'TIMESTAMP') return timed('TIMESTAMP_NTZ', 9);
  if (text === 'TIMESTAMP WITH TIME ZONE') return timed('TIMESTAMP_TZ', 9);
  if (text === 'BLOB') return sized('BINARY', MAX_BINARY, MAX_BINARY);
  return sized('VARCHAR', MAX_TEXT, MAX_TEXT);
}

// What INFORMATION_SCHEMA.COLUMNS calls it.
const dataTypeName = (type) => (type.kind === 'VARCHAR' ? 'TEXT' : type.kind);

module.exports = { readType, fromDuck, dataTypeName, MAX_TEXT, MAX_BINARY, number, plain, errors };
