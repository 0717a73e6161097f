// COPY INTO a table from files of a stage.
'use strict';

const { Reader, SqlError, errors, compilation, duckName, printName, lex } = require('./sql');
const { readType } = require('./types');
const { appendColumns } = require('./duck');
const { CsvReader, RowError } = require('./csv');
const values = require('./values');

const MAX_FILES = 1000;
const BATCH = 8192;

// ---------------------------------------------------------------- the statement

class CopyParser extends Reader {
  constructor(tokens, text, context) {
    super(tokens, text);
    this.context = context;
  }

  parse() {
    this.expect('COPY', 'INTO');
    this.context.used.tables = true;
    const table = this.context.catalog.table(this.names());
    this.context.authorize(table, 'INSERT');
    const columns = this.isOp('(') ? this.columns(table) : table.columns;
    this.expect('FROM');
    const plan = { table, columns, select: null, files: null, force: false, purge: false, format: null };
    if (this.isOp('(')) this.inParens(() => this.transformation(plan));
    else plan.stage = this.take('stage').v;
    while (this.token.t !== 'eof' && !this.isOp(';')) this.option(plan);
    this.end();
    if (!plan.format) plan.format = defaults();
    return plan;
  }

  columns(table) {
    return this.inParens(() => this.list(() => {
      const token = this.token;
      const name = this.name();
      const column = table.columns.find((c) => c.name === name);
      if (!column) throw errors.identifier(printName(name), token);
      return column;
    }));
  }

  transformation(plan) {
    this.expect('SELECT');
    plan.highest = 0;
    const from = this.i;
    this.skipSelectList(); // the alias of the stage comes after the list
    this.expect('FROM');
    plan.stage = this.take('stage').v;
    if (this.accept('AS') || this.isAlias()) plan.alias = this.name();
    const after = this.i;
    this.i = from;
    plan.select = this.list(() => this.item(plan));
    if (!this.isWord('FROM')) this.fail();
    this.i = after;
    if (plan.select.length !== plan.columns.length)
      throw compilation('002020', `Insert value list does not match column list expecting ${plan.columns.length} but got ${plan.select.length}`, '21S01');
  }

  skipSelectList() {
    while (!this.isWord('FROM')) {
      if (this.token.t === 'eof' || this.isOp(')')) this.fail();
      if (this.isOp('(')) this.skipParens();
      else this.i++;
    }
  }

  // ------------------------------------------------------------ options

  option(plan) {
    const name = this.take('word').u;
    this.expectOp('=');
    switch (name) {
      case 'FILES':
        plan.files = this.inParens(() => this.list(() => this.take('string').v));
        if (plan.files.length > MAX_FILES)
          throw compilation('001795', `maximum number of files in FILES exceeded, expected at most ${MAX_FILES}`, '42601');
        return;
      case 'FILE_FORMAT':
        plan.format = this.inParens(() => this.fileFormat());
        return;
      case 'ON_ERROR':
        if (!/^(ABORT_STATEMENT)$/i.test(this.tokens[this.i++].v)) this.fail('the fake has ON_ERROR = ABORT_STATEMENT only');
        return;
      case 'FORCE':
        plan.force = this.boolean();
        return;
      case 'PURGE':
        plan.purge = this.boolean();
        return;
      case 'ENFORCE_LENGTH':
        if (!this.boolean()) this.fail('the fake does not truncate');
        return;
      case 'TRUNCATECOLUMNS':
      case 'RETURN_FAILED_ONLY':
      case 'LOAD_UNCERTAIN_FILES':
        if (this.boolean()) this.fail(`the fake has ${name} = FALSE only`);
        return;
      default:
        this.i -= 2;
        this.fail('unknown option');
    }
  }

  boolean() {
    if (this.accept('TRUE')) return true;
    this.expect('FALSE');
    return false;
  }

  // A string or NONE.
  character() {
    if (this.accept('NONE')) return null;
    return this.take('string').v;
  }

  fileFormat() {
    const format = defaults();
    let typed = false;
    while (!this.isOp(')')) {
      const name = this.take('word').u;
      this.expectOp('=');
      if (name === 'TYPE') typed = true;
      this.formatOption(format, name);
      this.acceptOp(',');
    }
    if (!typed) this.fail('FILE_FORMAT without TYPE');
    return format;
  }

  formatOption(format, name) {
    const word = () => String(this.tokens[this.i++].v).toUpperCase();
    const only = (want) => {
      const got = word();
      if (got !== want) this.fail(`the fake has ${name} = ${want} only`);
    };
    switch (name) {
      case 'TYPE': return only('CSV');
      case 'COMPRESSION':
        format.compression = word();
        if (!['GZIP', 'NONE', 'AUTO'].includes(format.compression)) this.fail('compression');
        return undefined;
      case 'FIELD_DELIMITER': format.fieldDelimiter = this.take('string').v; return undefined;
      case 'RECORD_DELIMITER': return only('\n');
      case 'FIELD_OPTIONALLY_ENCLOSED_BY': format.enclosedBy = this.character(); return undefined;
      case 'ESCAPE': if (this.character() !== null) this.fail('ESCAPE'); return undefined;
      case 'ESCAPE_UNENCLOSED_FIELD': format.escapeUnenclosed = this.character() !== null; return undefined;
      case 'NULL_IF': format.nullIf = this.inParens(() => (this.isOp(')') ? [] : this.list(() => this.take('string').v))); return undefined;
      case 'EMPTY_FIELD_AS_NULL': format.emptyIsNull = this.boolean(); return undefined;
      case 'SKIP_HEADER': format.skipHeader = Number(this.take('number').v); return undefined;
      case 'SKIP_BLANK_LINES': format.skipBlank = this.boolean(); return undefined;
      case 'SKIP_BYTE_ORDER_MARK': format.skipBom = this.boolean(); return undefined;
      case 'BINARY_FORMAT':
        format.binary = word();
        if (!['HEX', 'BASE64', 'UTF8', 'UTF-8'].includes(format.binary)) this.fail('binary format');
        return undefined;
      case 'DATE_FORMAT': format.date = this.take('string').v; return undefined;
      case 'TIME_FORMAT': format.time = this.take('string').v; return undefined;
      case 'TIMESTAMP_FORMAT': format.timestamp = this.take('string').v; return undefined;
      case 'ENCODING': if (!/^UTF-?8$/.test(word())) this.fail('ENCODING'); return undefined;
      case 'ERROR_ON_COLUMN_COUNT_MISMATCH': if (!this.boolean()) this.fail(name); return undefined;
      case 'TRIM_SPACE':
      case 'REPLACE_INVALID_CHARACTERS': if (this.boolean()) this.fail(name); return undefined;
      case 'MULTI_LINE': if (!this.boolean()) this.fail(name); return undefined;
      default:
        this.i -= 2;
        return this.fail('unknown option of FILE_FORMAT');
    }
  }

  // ------------------------------------------------------------ expressions: { kind, get(row), ... }

  item(plan) {
    const node = this.node(plan);
    if (this.accept('AS') || this.isAlias()) this.name();
    return node;
  }

  node(plan) {
    let node = this.atom(plan);
    while (this.acceptOp('::')) node = castNode(node, readType(this), plan, this);
    return node;
  }

  atom(plan) {
    const token = this.token;
    if (this.isOp('(')) return this.inParens(() => this.node(plan));
    if (token.t === 'column') return this.column(plan);
    if (token.t === 'string') return constant('text', this.tokens[this.i++].v);
    if (token.t === 'number') return constant('text', this.tokens[this.i++].v);
    if (this.acceptOp('-')) return constant('text', '-' + this.take('number').v);
    if (this.accept('NULL')) return constant('null', null);
    if (this.accept('TRUE')) return constant('BOOLEAN', 'true');
    if (this.accept('FALSE')) return constant('BOOLEAN', 'false');
    if (this.isName() && this.ahead().v === '.' && this.ahead(2).t === 'column') {
      if (this.name() !== plan.alias) this.fail('not the alias of the stage');
      this.i++;
      return this.column(plan);
    }
    return this.call(plan);
  }

  column(plan) {
    const n = this.take('column').v;
    if (n < 1) this.fail();
    plan.highest = Math.max(plan.highest, n);
    return { kind: 'text', direct: true, get: (row) => row.fields[n - 1] };
  }

  call(plan) {
    const token = this.take('word');
    if (/^METADATA\$/.test(token.u)) return metadata(token, this);
    if (token.u === 'CURRENT_TIMESTAMP' && !this.isOp('(')) return now('TIMESTAMP_TZ');
    if (token.u === 'CAST' || token.u === 'TRY_CAST') return this.castCall(plan, token);
    const make = CALLS[token.u];
    if (!make) throw compilation('002140', `Unknown function ${token.u}`, '42601');
    this.expectOp('(');
    const args = this.isOp(')') ? [] : this.list(() => this.node(plan));
    this.expectOp(')');
    return make(args, plan, this);
  }

  castCall(plan, token) {
    if (token.u === 'TRY_CAST') this.fail('TRY_CAST in COPY');
    return this.inParens(() => {
      const node = this.node(plan);
      this.expect('AS');
      return castNode(node, readType(this), plan, this);
    });
  }
}

const defaults = () => ({
  compression: 'AUTO', fieldDelimiter: ',', enclosedBy: null, escapeUnenclosed: true, nullIf: ['\\N'], emptyIsNull: true, skipHeader: 0,
  skipBlank: false, skipBom: true, binary: 'HEX', date: 'AUTO', time: 'AUTO', timestamp: 'AUTO',
});

const constant = (kind, value) => ({ kind, constant: value, get: () => value });

function now(kind) {
  const text = new Date().toISOString().replace('T', ' ').replace('Z', '000');
  return constant(kind, kind === 'TIMESTAMP_TZ' ? text + '+00:00' : text);
}

function metadata(token, reader) {
  if (token.u === 'METADATA$FILENAME') return { kind: 'text', get: (row) => row.file };
  if (token.u === 'METADATA$FILE_ROW_NUMBER') return { kind: 'text', get: (row) => String(row.number) };
  return reader.fail();
}

// A node of another kind, by a function on texts; NULL stays.
function mapped(node, kind, convert, more = {}) {
  return {
    kind, ...more,
    get: (row) => {
      const text = node.get(row);
      return text === null || text === undefined ? null : convert(text);
    },
  };
}

function textOf(node, want) {
  if (node.kind !== 'text' && node.kind !== 'null') throw compilation('001044', `Invalid argument types for function 'TO_${want}': (${node.kind})`, '42P13');
  return node;
}

function formatOf(args, n, reader, otherwise = 'AUTO') {
  if (args[n] === undefined) return otherwise;
  if (typeof args[n].constant !== 'string') reader.fail('wanted a literal');
  return args[n].constant;
}

const timed = (kind, key, convert) => (args, plan, reader) => {
  if (args.length < 1 || args.length > 2) reader.fail('number of arguments');
  const format = formatOf(args, 1, reader, null);
  const zone = reader.context.session.timezone;
  if (format) values.formatParser(format);
  return mapped(textOf(args[0], kind), kind, (text) => convert(text, format ?? plan.format?.[key] ?? 'AUTO', zone));
};

const unary = (kind, convert) => (args, plan, reader) => {
  if (args.length !== 1) reader.fail('number of arguments');
  return mapped(textOf(args[0], kind), kind, convert);
};

// TRUE: whether the shape is valid does not matter, which is not looked at here.
const shape = (kind) => (args, plan, reader) => {
  if (args.length > 2 || (args.length === 2 && args[1].kind !== 'BOOLEAN')) reader.fail(`TO_${kind}`);
  return unary(kind, values.geo)(args.slice(0, 1), plan, reader);
};

function numberCall(args, plan, reader) {
  const [precision, scale] = [formatOf(args, 1, reader, '38'), formatOf(args, 2, reader, '0')].map(Number);
  if (args.length < 1 || args.length > 3 || !(precision <= 38)) reader.fail('TO_NUMBER');
  return mapped(textOf(args[0], 'NUMBER'), 'NUMBER', (text) => values.decimal(text, precision, scale));
}

const CALLS = {
  TO_DATE: timed('DATE', 'date', values.date),
  DATE: timed('DATE', 'date', values.date),
  TO_TIME: timed('TIME', 'time', values.time),
  TIME: timed('TIME', 'time', values.time),
  TO_TIMESTAMP: timed('TIMESTAMP_NTZ', 'timestamp', values.timestampNtz),
  TO_TIMESTAMP_NTZ: timed('TIMESTAMP_NTZ', 'timestamp', values.timestampNtz),
  TO_TIMESTAMP_TZ: timed('TIMESTAMP_TZ', 'timestamp', values.timestampTz),
  TO_BINARY: (args, plan, reader) => {
    const format = formatOf(args, 1, reader, 'HEX').toUpperCase();
    if (args.length < 1 || args.length > 2 || !['HEX', 'BASE64', 'UTF-8', 'UTF8'].includes(format)) reader.fail('TO_BINARY');
    return mapped(textOf(args[0], 'BINARY'), 'BINARY', (text) => values.binary(text, format));
  },
  // 'd' allows a key twice, of which the last one counts; 's' is strict
  PARSE_JSON: (args, plan, reader) => {
    const mode = formatOf(args, 1, reader, 's');
    if (args.length > 2 || !['d', 's'].includes(mode)) reader.fail('PARSE_JSON');
    return unary('VARIANT', (text) => values.json(text, mode))(args.slice(0, 1), plan, reader);
  },
  TO_VARIANT: (args, plan, reader) => castNode(args[0], { kind: 'VARIANT' }, plan, reader),
  TO_GEOGRAPHY: shape('GEOGRAPHY'),
  TO_GEOMETRY: shape('GEOMETRY'),
  TO_NUMBER: numberCall,
  TO_DECIMAL: numberCall,
  TO_NUMERIC: numberCall,
  TO_DOUBLE: unary('FLOAT', values.float),
  TO_BOOLEAN: unary('BOOLEAN', values.boolean),
  TO_VARCHAR: unary('text', (text) => text),
  NULLIF: (args, plan, reader) => {
    if (args.length !== 2) reader.fail('number of arguments');
    return { kind: args[0].kind, get: (row) => (args[0].get(row) === args[1].get(row) ? null : args[0].get(row)) };
  },
  NVL: (args) => ({ kind: args[0].kind, get: (row) => args[0].get(row) ?? args[1].get(row) }),
  COALESCE: (args) => ({ kind: args[0].kind, get: (row) => args.map((arg) => arg.get(row)).find((v) => v !== null && v !== undefined) ?? null }),
  CURRENT_TIMESTAMP: () => now('TIMESTAMP_TZ'),
  SYSDATE: () => now('TIMESTAMP_NTZ'),
};

function castNode(node, type, plan, reader) {
  if (node.kind === type.kind || (node.kind === 'text' && type.kind === 'VARCHAR' && type.length === 16777216)) return node;
  const convert = converter(type, plan, reader.context.session);
  if (type.kind === 'VARIANT') return mapped(node, 'VARIANT', (text) => (node.kind === 'text' ? values.printString(text) : text));
  if (node.kind === 'VARIANT' && (type.kind === 'ARRAY' || type.kind === 'OBJECT')) {
    const first = type.kind === 'ARRAY' ? '[' : '{';
    return mapped(node, type.kind, (text) => {
      if (text[0] !== first) throw new SqlError('100071', `Failed to cast variant value ${text.slice(0, 100)} to ${type.kind}`, '22000');
      return text;
    });
  }
  if (!convert || node.kind === 'VARIANT') throw compilation('001007', `invalid type [${node.kind}] for a cast to ${type.kind}`, '22023');
  return mapped(textOf(node, type.kind), type.kind === 'VARCHAR' ? 'text' : type.kind, convert);
}

// ---------------------------------------------------------------- values for columns

// The function that makes a text a value of the type, by the implicit rules.
function converter(type, plan, session) {
  const format = plan?.format ?? defaults();
  switch (type.kind) {
    case 'NUMBER': return (text) => values.decimal(text, type.precision, type.scale);
    case 'FLOAT': return values.float;
    case 'BOOLEAN': return values.boolean;
    case 'DATE': return (text) => values.date(text, format.date);
    case 'TIME': return (text) => values.time(text, format.time);
    case 'TIMESTAMP_NTZ': return (text) => values.timestampNtz(text, format.timestamp);
    case 'TIMESTAMP_TZ': return (text) => values.timestampTz(text, format.timestamp, session.timezone);
    case 'BINARY': return (text) => values.binary(text, format.binary);
    case 'VARIANT': return values.printString; // a text, not parsed
    case 'GEOGRAPHY':
    case 'GEOMETRY': return values.geo;
    case 'VARCHAR': return (text) => {
      if (text.length > type.length || text.length > 5592405) requireLength(text, type.length);
      return text;
    };
    default: return null;
  }
}

function requireLength(text, length) {
  if ([...text].length > length || Buffer.byteLength(text) > 16777216) throw values.bad.long(text);
}

const SAME_KIND = { VARIANT: ['OBJECT', 'ARRAY', 'VARIANT'] };

// get(row) of a column: the node's value made the column's.
function forColumn(node, column, plan, session) {
  const { type } = column;
  let get;
  if (node.kind === 'null') get = () => null;
  else if (node.kind === 'text') {
    const convert = plan.select === null && type.duck === 'JSON' ? values.json : converter(type, plan, session);
    if (!convert) throw errors.type(type.text, 'VARCHAR(16777216)', printName(column.name));
    get = mapped(node, '', convert).get;
  } else if (node.kind === type.kind || SAME_KIND[type.kind]?.includes(node.kind)) {
    get = type.kind === 'NUMBER' ? mapped(node, '', converter(type, plan, session)).get : node.get;
  } else throw errors.type(type.text, node.kind, printName(column.name));
  if (!column.notnull) return get;
  return (row) => {
    const text = get(row);
    if (text === null || text === undefined)
      throw new SqlError('100072', `NULL result in a non-nullable column`, '22000');
    return text;
  };
}

// DuckDB's expression for a text column of the staged rows.
function fromStaged(n, type) {
  if (type.duck === 'VARCHAR') return `c${n}`;
  if (type.duck === 'BLOB') return `unhex(c${n})`;
  // DuckDB reads long decimals a hundred times slower than short ones
  if (type.kind === 'NUMBER' && type.precision > 18 && type.scale < 18)
    return `CASE WHEN length(split_part(c${n}, '.', 1)) <= ${18 - type.scale} THEN c${n}::DECIMAL(18,${type.scale})::${type.duck} ELSE c${n}::${type.duck} END`;
  return `c${n}::${type.duck}`;
}

// ---------------------------------------------------------------- running it

class Copy {
  constructor(context, plan) {
    Object.assign(this, { context, plan });
    this.duck = context.service.duck;
    this.getters = this.prepare();
  }

  prepare() {
    const { plan, context } = this;
    const nodes = plan.select ?? plan.columns.map((_, n) => ({ kind: 'text', get: (row) => row.fields[n] }));
    if (!plan.select) plan.exact = plan.columns.length;
    return nodes.map((node, n) => forColumn(node, plan.columns[n], plan, context.session));
  }

  // The files: [{ name, key, bucket, data, etag }]; those that are not there are an error.
  async files() {
    const { stages, store } = this.context.service;
    const stage = stages.get(this.context.session, this.plan.stage.parts);
    const prefix = this.plan.stage.path;
    const base = stage.prefix;
    const names = this.plan.files ? this.plan.files.map((file) => join(prefix, file))
      : (await store.list(stage.bucket, base + prefix)).map((file) => file.key.slice(base.length));
    const files = [];
    for (const name of names) {
      const found = await store.get(stage.bucket, base + name);
      if (!found) throw new SqlError('091016', `Remote file '${name}' was not found. There are several potential causes. The file might not exist. ` +
        'The required credentials may be missing or invalid.', '02000');
      files.push({ name, bucket: stage.bucket, key: base + name, url: `${stage.bucket}/${base}${name}`, ...found });
    }
    return files;
  }

  // The work in DuckDB; can be done again if the transaction has to be replayed.
  async run() {
    this.undo?.();
    const files = await this.files();
    const { table } = this.plan;
    for (const file of files) file.skipped = !this.plan.force && table.loads.get(file.url) === file.etag;
    const wanted = files.filter((file) => !file.skipped);
    const staged = `s${++this.context.service.counter}`;
    await this.duck.query(`CREATE TEMP TABLE ${staged} (${this.plan.columns.map((_, n) => `c${n} VARCHAR`).join(', ')})`);
    try {
      for (const file of wanted) await this.stageFile(staged, file);
      if (wanted.length) await this.insert(staged);
    } finally {
      await this.duck.query(`DROP TABLE IF EXISTS ${staged}`).catch(() => {});
    }
    const undo = wanted.map((file) => [file.url, table.loads.get(file.url)]);
    for (const file of wanted) table.loads.set(file.url, file.etag);
    this.wanted = wanted;
    this.undo = () => undo.forEach(([url, etag]) => (etag === undefined ? table.loads.delete(url) : table.loads.set(url, etag)));
    return result(files);
  }

  async stageFile(staged, file) {
    const appender = await this.duck.appender(staged);
    const batch = this.getters.map(() => []);
    let count = 0;
    const flush = () => {
      if (count) appendColumns(appender, batch, count);
      batch.forEach((column) => (column.length = 0));
      count = 0;
    };
    const reader = new CsvReader(this.plan.format, (fields, line, number, starts) => {
      this.addRow(batch, { fields, file: file.name, number, line, starts });
      if (++count === BATCH) flush();
    });
    try {
      await reader.read(file.data);
      flush();
      file.rows = reader.row;
    } catch (error) {
      throw this.located(error, file);
    } finally {
      appender.closeSync();
    }
  }

  addRow(batch, row) {
    this.requireWidth(row);
    for (let n = 0; n < this.getters.length; n++) {
      try {
        batch[n].push(this.getters[n](row) ?? null);
      } catch (error) {
        if (!(error instanceof SqlError)) throw error;
        throw new RowError(error, row.line, row.starts[n] ?? 1, row.number, n + 1);
      }
    }
  }

  // Every record of a COPY has the same number of fields, and not too few.
  requireWidth(row) {
    const { plan } = this;
    const got = row.fields.length;
    plan.width ??= got;
    const want = plan.exact ?? Math.max(plan.highest, plan.width);
    if (got === want) return;
    const error = new SqlError('100080', `Number of columns in file (${got}) does not match that of the corresponding table (${want}), ` +
      'use file format option error_on_column_count_mismatch=false to ignore this error', '22000');
    throw new RowError(error, row.line, row.starts[got - 1] ?? 1, row.number, Math.min(got, this.getters.length));
  }

  located(error, file) {
    if (!(error instanceof RowError)) {
      if (error instanceof SqlError) error.message = error.message.replace('%s', file.name);
      return error;
    }
    const column = this.plan.columns[Math.max(0, error.column - 1)];
    const name = column ? `${printName(this.plan.table.name).replace(/^([^"].*)$/, '"$1"')}["${column.name}":${Math.max(1, error.column)}]` : '';
    return new SqlError(error.error.code, `${error.error.message}\n  File '${file.name}', line ${error.line}, character ${error.character}\n` +
      `  Row ${error.row}, column ${name}\n  If you would like to continue loading when an error is encountered, use other values such as ` +
      "'SKIP_FILE' or 'CONTINUE' for the ON_ERROR option. For more information on loading options, please run 'info loading_data' in a SQL client.",
    error.error.sqlState);
  }

  async insert(staged) {
    const { plan } = this;
    const names = plan.columns.map((c) => duckName(c.name)).join(', ');
    const list = plan.columns.map((c, n) => fromStaged(n, c.type)).join(', ');
    await this.duck.query(`INSERT INTO ${plan.table.duck} (${names}) SELECT ${list} FROM ${staged}`);
  }

  async purge() {
    if (!this.plan.purge) return;
    for (const file of this.wanted) await this.context.service.store.remove(file.bucket, file.key);
  }
}

const join = (prefix, file) => (prefix === '' || prefix.endsWith('/') ? prefix + file : `${prefix}/${file}`);

const COLUMNS = [['file', 'text'], ['status', 'text'], ['rows_parsed', 'fixed'], ['rows_loaded', 'fixed'], ['error_limit', 'fixed'],
  ['errors_seen', 'fixed'], ['first_error', 'text'], ['first_error_line', 'fixed'], ['first_error_character', 'fixed'], ['first_error_column_name', 'text']];

function result(files) {
  if (files.length === 0) {
    return { rowtype: [{ name: 'status', type: 'text', nullable: false }], rows: [['Copy executed with 0 files processed.']], typeId: 12288 };
  }
  const rows = files.map((file) => (file.skipped
    ? [file.name, 'LOAD_SKIPPED', '0', '0', '1', '1', 'File was loaded before.', null, null, null]
    : [file.name, 'LOADED', String(file.rows), String(file.rows), '1', '0', null, null, null, null]));
  return { rowtype: COLUMNS.map(([name, type]) => ({ name, type, precision: 38, scale: 0, nullable: true })), rows, typeId: 12288 };
}

const parseCopy = (text, context) => new CopyParser(lex(text), text, context).parse();

module.exports = { parseCopy, Copy };
