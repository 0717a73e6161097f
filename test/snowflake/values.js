// Text to values, as Snowflake reads it: numbers, dates, times, JSON, formats.
// Every function gives a text that DuckDB's cast takes exactly, or throws.
'use strict';

const { SqlError } = require('./sql');

const bad = {
  number: (v) => new SqlError('100038', `Numeric value '${v}' is not recognized`, '22018'),
  range: (v) => new SqlError('100039', `Numeric value '${v}' is out of range`, '22003'),
  boolean: (v) => new SqlError('100037', `Boolean value '${v}' is not recognized`, '22018'),
  date: (v) => new SqlError('100040', `Date '${v}' is not recognized`, '22007'),
  time: (v) => new SqlError('100108', `Time '${v}' is not recognized`, '22007'),
  timestamp: (v) => new SqlError('100035', `Timestamp '${v}' is not recognized`, '22007'),
  hex: (v) => new SqlError('100044', `The following string is not a legal hex-encoded value: '${v}'`, '22000'),
  json: (why) => new SqlError('100069', `Error parsing JSON: ${why}`, '22P02'),
  long: (v) => new SqlError('100078', `String '${v.length > 100 ? v.slice(0, 100) + '...' : v}' is too long and would be truncated`, '22000'),
  geo: (v) => new SqlError('100205', `Not a valid geography or geometry: '${v.slice(0, 100)}'`, '22000'),
};

const NUMBER = /^\s*([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d{1,6}))?\s*$/;

// A decimal rounded half away from zero to the scale.
function decimal(text, precision, scale) {
  const m = NUMBER.exec(text);
  if (!m || (!m[2] && !m[3])) throw bad.number(text);
  const exponent = Number(m[4] ?? 0);
  if (!m[3] && exponent === 0 && m[2].length + scale <= precision) return m[1] + m[2]; // most of them
  const fraction = m[3] ?? '';
  let digits = (m[2] + fraction).replace(/^0+/, '');
  let shift = scale - fraction.length + exponent; // places to move the point to the right
  if (digits === '') return '0';
  if (digits.length + shift > precision) throw bad.range(text);
  let value;
  if (shift >= 0) {
    value = BigInt(digits + '0'.repeat(shift));
  } else if (-shift > digits.length) {
    value = 0n;
  } else {
    value = BigInt(digits.slice(0, digits.length + shift) || '0');
    if (digits.charCodeAt(digits.length + shift) >= 53) value += 1n;
  }
  const all = value.toString().padStart(scale + 1, '0');
  if (value.toString().length > precision) throw bad.range(text);
  return (m[1] === '-' ? '-' : '') + (scale ? all.slice(0, -scale) + '.' + all.slice(-scale) : all);
}

function float(text) {
  const m = NUMBER.exec(text);
  if (m && (m[2] || m[3])) {
    const value = Number(text);
    if (!Number.isFinite(value)) throw bad.range(text);
    return text.trim();
  }
  const special = /^\s*([+-]?)(nan|inf|infinity)\s*$/i.exec(text);
  if (!special) throw bad.number(text);
  if (/nan/i.test(special[2])) return 'nan';
  return special[1] === '-' ? '-inf' : 'inf';
}

function boolean(text) {
  const t = text.trim().toLowerCase();
  if (['true', 't', 'yes', 'y', 'on', '1'].includes(t)) return 'true';
  if (['false', 'f', 'no', 'n', 'off', '0'].includes(t)) return 'false';
  throw bad.boolean(text);
}

function hex(text) {
  if (text.length % 2 !== 0 || !/^[0-9a-fA-F]*$/.test(text)) throw bad.hex(text.slice(0, 100));
  return text;
}

// A UUID is hexadecimal in 16 bytes; other formats of TO_BINARY.
function binary(text, format) {
  if (format === 'HEX') return hex(text);
  if (format === 'UTF8' || format === 'UTF-8') return Buffer.from(text).toString('hex');
  if (format === 'BASE64') {
    if (!/^[A-Za-z0-9+/\s]*={0,2}\s*$/.test(text)) throw new SqlError('100046', `The following string is not a legal base64-encoded value: '${text}'`, '22000');
    return Buffer.from(text, 'base64').toString('hex');
  }
  throw new SqlError('001003', `SQL compilation error:\ninvalid binary format '${format}'`);
}

function geo(text) {
  const t = text.trim();
  const wkt = /^(SRID=\d+;)?\s*(POINT|LINESTRING|POLYGON|MULTIPOINT|MULTILINESTRING|MULTIPOLYGON|GEOMETRYCOLLECTION)\s*(Z\s*)?(\(|EMPTY)/i;
  if (wkt.test(t) || /^\{/.test(t) || (/^[0-9a-fA-F]{18,}$/.test(t) && t.length % 2 === 0)) return t;
  throw bad.geo(text);
}

// ---------------------------------------------------------------- dates and times

const daysIn = (y, m) => [31, (y % 4 === 0 && y % 100 !== 0) || y % 400 === 0 ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][m - 1];

function validDate(y, m, d) {
  return m >= 1 && m <= 12 && d >= 1 && d <= daysIn(y, m);
}

// Nanoseconds would be lost by DuckDB: refused, for no test needs them.
function micros(fraction) {
  if (!fraction) return '';
  const digits = fraction.padEnd(9, '0');
  if (digits.slice(6, 9) !== '000') throw new SqlError('300002', `the fake keeps microseconds only: .${fraction}`, 'XX000');
  return '.' + digits.slice(0, 6);
}

const AUTO_DATE = /^(\d{4})-(\d{1,2})-(\d{1,2})(?:[T ]\d.*)?$/;
const AUTO_TIME = /^(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?$/;
const AUTO_STAMP = /^(\d{4})-(\d{2})-(\d{2})(?:[T ](\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?)?(?:\s*(Z|[+-]\d{1,2}(?::?\d{2})?))?$/;

// { y, mo, d, h, mi, s, f, zone } of a text in Snowflake's automatic formats.
const autoDate = (t) => named(AUTO_DATE.exec(t), ['y', 'mo', 'd']);
const autoTime = (t) => named(AUTO_TIME.exec(t), ['h', 'mi', 's', 'f']);
const autoStamp = (t) => named(AUTO_STAMP.exec(t), ['y', 'mo', 'd', 'h', 'mi', 's', 'f', 'zone']);

function named(match, names) {
  if (!match) return null;
  const parts = {};
  names.forEach((name, n) => (parts[name] = match[n + 1]));
  return parts;
}

const ELEMENTS = [
  ['YYYY', '(\\d{4})', 'y'], ['MM', '(\\d{2})', 'mo'], ['DD', '(\\d{2})', 'd'], ['HH24', '(\\d{2})', 'h'], ['MI', '(\\d{2})', 'mi'],
  ['SS', '(\\d{2})', 's'], ['TZHTZM', '([+-]\\d{4})', 'zone'], ['TZH:TZM', '([+-]\\d{2}:\\d{2})', 'zone'], ['TZH', '([+-]\\d{2})', 'zone'],
];
const parsers = new Map();

// A reader of texts in a format such as 'YYYY-MM-DD HH24:MI:SS.FF6TZH:TZM'.
function formatParser(format) {
  if (format.toUpperCase() === 'AUTO') return null;
  let parser = parsers.get(format);
  if (!parser) {
    parser = buildParser(format);
    parsers.set(format, parser);
  }
  return parser;
}

function buildParser(format) {
  const names = [];
  let pattern = '';
  for (let i = 0; i < format.length; ) {
    const rest = format.slice(i).toUpperCase();
    const fraction = /^FF([0-9]?)/.exec(rest);
    const element = ELEMENTS.find(([text]) => rest.startsWith(text));
    if (element) {
      pattern += element[1];
      names.push(element[2]);
      i += element[0].length;
    } else if (fraction) {
      pattern += fraction[1] === '0' ? '()' : `(\\d{1,${fraction[1] || 9}})`;
      names.push('f');
      i += fraction[0].length;
    } else if (format[i] === '"') {
      const at = format.indexOf('"', i + 1);
      pattern += format.slice(i + 1, at).replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
      i = at + 1;
    } else {
      if (/[A-SU-Z]/i.test(format[i])) throw new SqlError('002148', `SQL compilation error:\ninvalid date/time format '${format}'`);
      pattern += format[i].replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
      i++;
    }
  }
  const regex = new RegExp(`^${pattern}$`);
  return (text) => named(regex.exec(text), names);
}

const two = (text) => (text ?? '0').padStart(2, '0');

function dateText(p, text, error) {
  if (!p || !validDate(Number(p.y), Number(p.mo), Number(p.d))) throw error(text);
  return `${p.y}-${two(p.mo)}-${two(p.d)}`;
}

function timeText(p, text, error) {
  if (!p || Number(p.h ?? 0) > 23 || Number(p.mi ?? 0) > 59 || Number(p.s ?? 0) > 59) throw error(text);
  return `${two(p.h)}:${two(p.mi)}:${two(p.s)}${micros(p.f)}`;
}

function zoneText(zone, text) {
  if (zone === 'Z') return '+00:00';
  const m = /^([+-])(\d{1,2}):?(\d{2})?$/.exec(zone);
  if (Number(m[2]) > 14 || Number(m[3] ?? 0) > 59) throw bad.timestamp(text);
  return `${m[1]}${two(m[2])}:${m[3] ?? '00'}`;
}

const date = (text, format = 'AUTO') => {
  const parser = formatParser(format);
  return dateText(parser ? parser(text) : autoDate(text.trim()), text, bad.date);
};

const time = (text, format = 'AUTO') => {
  const parser = formatParser(format);
  return timeText(parser ? parser(text) : autoTime(text.trim()), text, bad.time);
};

function stampParts(text, format) {
  const parser = formatParser(format);
  const parts = parser ? parser(text) : autoStamp(text.trim());
  if (!parts) throw bad.timestamp(text);
  return { parts, wall: `${dateText(parts, text, bad.timestamp)} ${timeText(parts, text, bad.timestamp)}` };
}

// The usual form, read fast: null if it is another one.
const USUAL = /^(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(\.\d{1,6})?([+-]\d\d(?::?\d\d)?|Z)?$/;

function usualStamp(text) {
  const m = USUAL.exec(text);
  if (!m || !validDate(+m[1], +m[2], +m[3]) || m[4] > '23' || m[5] > '59' || m[6] > '59') return null;
  return { wall: `${text.slice(0, 10)} ${text.slice(11, 19)}${m[7] ?? ''}`, zone: m[8] };
}

function timestampNtz(text, format = 'AUTO') {
  const usual = format === 'AUTO' ? usualStamp(text) : null;
  return usual ? usual.wall : stampParts(text, format).wall;
}

// Without an offset it is the session's time zone that counts.
function timestampTz(text, format = 'AUTO', zone = 'UTC') {
  const usual = format === 'AUTO' ? usualStamp(text) : null;
  if (usual?.zone) return usual.wall + zoneText(usual.zone, text);
  const { parts, wall } = stampParts(text, format);
  if (parts.zone) return wall + zoneText(parts.zone, text);
  return wall + (/^(Etc\/)?UTC$/i.test(zone) ? '+00:00' : '-08:00');
}

// DuckDB's strftime for a format of TO_VARCHAR.
function strftime(format) {
  const map = { YYYY: '%Y', MM: '%m', DD: '%d', HH24: '%H', MI: '%M', SS: '%S', FF: '%n', FF9: '%n', FF6: '%f', FF3: '%g', TZHTZM: '+0000', 'TZH:TZM': '+00:00', TZH: '+00' };
  const out = format.replace(/\.FF0/gi, '').replace(/"([^"]*)"|TZH:TZM|TZHTZM|TZH|YYYY|MM|DD|HH24|MI|SS|FF[369]?|[A-SU-Z%]/gi, (m, quoted) => {
    if (quoted !== undefined) return quoted.replace(/%/g, '%%');
    const text = map[m.toUpperCase()];
    if (!text) throw new SqlError('002148', `SQL compilation error:\ninvalid date/time format '${format}'`);
    return text;
  });
  return out;
}

// ---------------------------------------------------------------- JSON

// Parses JSON and prints it as a VARIANT is printed: no blanks, keys sorted,
// numbers exact up to 38 digits and as a double beyond.
class Json {
  constructor(text, duplicates) {
    this.text = text;
    this.duplicates = duplicates;
    this.i = 0;
  }

  fail(why) {
    throw bad.json(`${why}, pos ${this.i + 1}`);
  }

  blank() {
    while (' \t\r\n'.includes(this.text[this.i] ?? 'x')) this.i++;
  }

  value() {
    this.blank();
    const c = this.text[this.i];
    if (c === '{') return this.object();
    if (c === '[') return this.array();
    if (c === '"') return printString(this.string());
    const word = /^(?:true|false|null)\b/.exec(this.text.substr(this.i, 6));
    if (word) {
      this.i += word[0].length;
      return word[0];
    }
    return this.number();
  }

  number() {
    const m = /-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
    m.lastIndex = this.i;
    const found = m.exec(this.text);
    if (!found || /^-?0\d/.test(found[0])) this.fail(`unexpected character '${this.text[this.i] ?? 'end of input'}'`);
    this.i += found[0].length;
    return printNumber(found[0]);
  }

  string() {
    const start = this.i;
    let i = this.i + 1;
    for (;;) {
      const c = this.text.charCodeAt(i);
      if (Number.isNaN(c)) this.fail('unterminated string');
      if (c === 34) break;
      if (c < 32) this.fail('control character in a string');
      i += c === 92 ? 2 : 1;
    }
    this.i = i + 1;
    try {
      return JSON.parse(this.text.slice(start, this.i));
    } catch {
      return this.fail('bad escape in a string');
    }
  }

  object() {
    const members = new Map();
    this.i++;
    this.blank();
    if (this.text[this.i] === '}') {
      this.i++;
      return '{}';
    }
    for (;;) {
      this.blank();
      if (this.text[this.i] !== '"') this.fail('misplaced object attribute name');
      const key = this.string();
      this.blank();
      if (this.text[this.i++] !== ':') this.fail('missing colon');
      if (members.has(key) && !this.duplicates) this.fail(`duplicate object attribute "${key}"`);
      members.set(key, this.value());
      this.blank();
      const c = this.text[this.i++];
      if (c === '}') break;
      if (c !== ',') this.fail('missing comma');
    }
    const keys = [...members.keys()].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
    return `{${keys.map((key) => `${printString(key)}:${members.get(key)}`).join(',')}}`;
  }

  array() {
    const items = [];
    this.i++;
    this.blank();
    if (this.text[this.i] === ']') {
      this.i++;
      return '[]';
    }
    for (;;) {
      items.push(this.value());
      this.blank();
      const c = this.text[this.i++];
      if (c === ']') break;
      if (c !== ',') this.fail('missing comma');
    }
    return `[${items.join(',')}]`;
  }
}

const printString = (text) => JSON.stringify(text);

function printNumber(text) {
  const m = /^(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/.exec(text);
  const fraction = (m[3] ?? '').replace(/0+$/, '');
  const digits = (m[2] + fraction).replace(/^0+/, '');
  if (m[4] === undefined && digits.length <= 38) return digits === '' ? '0' : m[1] + m[2] + (fraction ? '.' + fraction : '');
  const value = Number(text);
  if (!Number.isFinite(value)) throw bad.json(`number out of range ${text.slice(0, 50)}`);
  const [mantissa, exponent] = value.toExponential(15).split('e');
  return `${mantissa}e${exponent[0]}${exponent.slice(1).padStart(2, '0')}`;
}

// Empty text is NULL; that is what PARSE_JSON makes of it.  Of a key that is
// there twice mode 'd' takes the last, 's' (strict) makes an error.
function json(text, mode = 's') {
  if (/^[ \t\r\n]*$/.test(text)) return null;
  if (mode !== 's' && mode !== 'd') throw new SqlError('001045', `SQL compilation error:\nunknown parameter '${mode}' of PARSE_JSON`);
  const parser = new Json(text, mode === 'd');
  const value = parser.value();
  parser.blank();
  if (parser.i < text.length) parser.fail(`unexpected character '${text[parser.i]}' after the value`);
  if (Buffer.byteLength(value) > 16777216) throw bad.long(value);
  return value;
}

module.exports = { bad, decimal, float, boolean, hex, binary, geo, date, time, timestampNtz, timestampTz, strftime, json, formatParser, printString };
