// Queries and DML: parsed as Snowflake's SQL, written as DuckDB's.  What is not
// known here is a syntax error; nothing is passed through unread.
'use strict';

const { SqlError, Reader, errors, compilation, duckName, literal, printName } = require('./sql');
const { readType, number } = require('./types');
const values = require('./values');
const { shownAs } = require('./catalog');

const MAX_LIST = 16384;

// Functions with the same name and meaning in DuckDB.
const SAME = new Set(
  ('COUNT SUM MIN MAX AVG COALESCE NULLIF ABS ROUND FLOOR CEIL MOD ROW_NUMBER RANK DENSE_RANK LAG LEAD FIRST_VALUE LAST_VALUE IFNULL SIGN CHR STDDEV ' +
    'ANY_VALUE').split(' '));
const ORDERED = new Set('ROW_NUMBER RANK DENSE_RANK LAG LEAD FIRST_VALUE LAST_VALUE'.split(' '));
const WINDOW_ONLY = new Set('ROW_NUMBER RANK DENSE_RANK LAG LEAD FIRST_VALUE LAST_VALUE'.split(' '));

// Functions that VALUES of an INSERT does not take.
const NOT_IN_VALUES = new Set('PARSE_JSON TRY_PARSE_JSON TO_VARIANT TO_OBJECT TO_ARRAY OBJECT_CONSTRUCT ARRAY_CONSTRUCT'.split(' '));

// The text of a value whose type is known.
const TEXT_OF = {
  NUMBER: (sql) => `CAST(${sql} AS VARCHAR)`,
  BOOLEAN: (sql) => `CAST(${sql} AS VARCHAR)`,
  FLOAT: (sql) => `sf_double(CAST(CAST(${sql} AS DOUBLE) AS VARCHAR))`,
  VARIANT: (sql) => `sf_json_text(${sql}::VARCHAR)`,
  BINARY: (sql) => `upper(hex(${sql}))`,
  GEOGRAPHY: (sql) => sql,
  GEOMETRY: (sql) => sql,
  DATE: (sql, f) => `strftime(${sql}, ${f.date})`,
  TIME: (sql, f) => `strftime(DATE '2000-01-01' + ${sql}, ${f.time})`,
  TIMESTAMP_NTZ: (sql, f) => `strftime(${sql}, ${f.ntz})`,
  TIMESTAMP_TZ: (sql, f) => `strftime(${sql}, ${f.tz})`,
};

// Types of results, and functions whose result is of their arguments' type.
const RESULTS = { COUNT: 'NUMBER', UPPER: 'VARCHAR', LOWER: 'VARCHAR', TRIM: 'VARCHAR', LTRIM: 'VARCHAR', RTRIM: 'VARCHAR', SUBSTR: 'VARCHAR', SUBSTRING: 'VARCHAR',
  LEFT: 'VARCHAR', RIGHT: 'VARCHAR', REPLACE: 'VARCHAR', CONCAT: 'VARCHAR', MD5: 'VARCHAR', SHA2: 'VARCHAR', TO_VARCHAR: 'VARCHAR', TO_CHAR: 'VARCHAR', TO_JSON: 'VARCHAR',
  LENGTH: 'NUMBER', PARSE_JSON: 'VARIANT', TRY_PARSE_JSON: 'VARIANT', TO_VARIANT: 'VARIANT', TO_BINARY: 'BINARY', TO_DATE: 'DATE', DATE: 'DATE', TO_TIME: 'TIME',
  TO_TIMESTAMP: 'TIMESTAMP_NTZ', TO_TIMESTAMP_NTZ: 'TIMESTAMP_NTZ', TO_TIMESTAMP_TZ: 'TIMESTAMP_TZ', CURRENT_TIMESTAMP: 'TIMESTAMP_TZ', SYSDATE: 'TIMESTAMP_NTZ',
  CURRENT_DATE: 'DATE', TO_BOOLEAN: 'BOOLEAN', EQUAL_NULL: 'BOOLEAN', LISTAGG: 'VARCHAR', TO_GEOGRAPHY: 'GEOGRAPHY', TO_GEOMETRY: 'GEOMETRY', CURRENT_ROLE: 'VARCHAR' };
const SAME_KIND = new Set('COALESCE IFNULL NVL ZEROIFNULL MIN MAX GREATEST LEAST NULLIF'.split(' '));

class Translator extends Reader {
  // context: { service, session, catalog, vars, bare, result(id), used }
  constructor(tokens, text, context, from = 0) {
    super(tokens, text, from);
    this.context = context;
    this.catalog = context.catalog;
    this.ctes = [];
    this.inValues = false;
    this.kinds = new Map();
  }

  // Remembers the type of an expression, for casts of it; others are asked for
  // in DuckDB by typeof(), which repeats their text.
  known(sql, kind) {
    if (kind) this.kinds.set(sql, kind);
    return sql;
  }

  // The type that all of these have, NULL aside; undefined if it is not known.
  common(list) {
    const kinds = new Set(list.filter((sql) => sql !== 'NULL').map((sql) => this.kinds.get(sql)));
    return kinds.size === 1 ? [...kinds][0] : undefined;
  }

  // ------------------------------------------------------------ queries

  query() {
    const mark = this.ctes.length;
    const { bare } = this.context;
    this.context.bare = false; // in a query a name is a column
    let sql = '';
    if (this.accept('WITH')) {
      if (this.accept('RECURSIVE')) this.fail('WITH RECURSIVE');
      sql = `WITH ${this.list(() => this.cte()).join(', ')} `;
    }
    sql += this.setQuery() + this.orderBy() + this.limit();
    this.ctes.length = mark;
    this.context.bare = bare;
    return sql;
  }

  cte() {
    const name = this.name();
    const columns = this.isOp('(') ? ` (${this.inParens(() => this.list(() => duckName(this.name()))).join(', ')})` : '';
    this.expect('AS');
    const sql = `${duckName(name)}${columns} AS (${this.inParens(() => this.query())})`;
    this.ctes.push(name);
    return sql;
  }

  setQuery() {
    let sql = this.oneQuery();
    for (;;) {
      if (this.accept('UNION')) sql += this.accept('ALL') ? ' UNION ALL ' : ' UNION ';
      else if (this.accept('INTERSECT')) sql += ' INTERSECT ';
      else if (this.accept('EXCEPT') || this.accept('MINUS')) sql += ' EXCEPT ';
      else return sql;
      sql += this.oneQuery();
    }
  }

  oneQuery() {
    if (this.isOp('(')) return `(${this.inParens(() => this.query())})`;
    return this.select();
  }

  select() {
    this.expect('SELECT');
    const distinct = this.accept('DISTINCT') ? 'DISTINCT ' : (this.accept('ALL'), '');
    const top = this.accept('TOP') ? this.take('number').v : null;
    let sql = `SELECT ${distinct}${this.list(() => this.selectItem()).join(', ')}`;
    if (this.isWord('INTO')) this.into();
    if (this.accept('FROM')) sql += ` FROM ${this.from()}`;
    if (this.accept('WHERE')) sql += ` WHERE ${this.expr()}`;
    if (this.accept('GROUP', 'BY')) sql += this.accept('ALL') ? ' GROUP BY ALL' : ` GROUP BY ${this.list(() => this.expr()).join(', ')}`;
    if (this.accept('HAVING')) sql += ` HAVING ${this.expr()}`;
    if (this.accept('QUALIFY')) sql += ` QUALIFY ${this.expr()}`;
    return top ? `(${sql} LIMIT ${top})` : sql;
  }

  // SELECT a, b INTO :x, :y FROM ... of a block
  into() {
    if (!this.context.takeInto || this.context.into) this.fail('INTO');
    this.i++;
    this.context.into = this.list(() => this.take('var').v);
  }

  selectItem() {
    const start = this.i;
    if (this.acceptOp('*')) return `*${this.exclude()}`;
    if (this.isName() && this.ahead().v === '.' && this.ahead(2).v === '*') {
      const table = this.name();
      this.i += 2;
      return `${duckName(table)}.*${this.exclude()}`;
    }
    const sql = this.expr();
    const end = this.i;
    if (this.accept('AS') || this.isAlias()) return `${sql} AS ${duckName(this.name())}`;
    if (this.isColumn(start, end)) return sql;
    return `${sql} AS ${duckName(this.source(start, end).toUpperCase())}`;
  }

  // Whether the tokens are a column's name: it is the result's name as well.
  isColumn(start, end) {
    const tokens = this.tokens.slice(start, end);
    if (tokens.length === 1 && ['NULL', 'TRUE', 'FALSE'].includes(tokens[0].u)) return false;
    return tokens.every((t) => ['word', 'quoted'].includes(t.t) || t.v === '.') && (tokens.length === 1 || tokens[1].v === '.');
  }

  exclude() {
    if (!this.accept('EXCLUDE')) return '';
    const names = this.isOp('(') ? this.inParens(() => this.list(() => this.name())) : [this.name()];
    return ` EXCLUDE (${names.map(duckName).join(', ')})`;
  }

  orderBy() {
    if (!this.accept('ORDER', 'BY')) return '';
    return ` ORDER BY ${this.list(() => this.orderItem()).join(', ')}`;
  }

  // NULL is the highest value at Snowflake.
  orderItem() {
    const sql = this.expr();
    const descending = this.accept('DESC') || (this.accept('ASC'), false);
    let first = descending;
    if (this.accept('NULLS')) {
      first = this.accept('FIRST');
      if (!first) this.expect('LAST');
    }
    return `${sql} ${descending ? 'DESC' : 'ASC'} NULLS ${first ? 'FIRST' : 'LAST'}`;
  }

  limit() {
    let sql = '';
    if (this.accept('LIMIT')) sql += ` LIMIT ${this.limitCount()}`;
    if (this.accept('OFFSET')) sql += ` OFFSET ${this.limitCount()}`;
    return sql;
  }

  limitCount() {
    return this.token.t === 'var' ? this.primary() : this.take('number').v;
  }

  // ------------------------------------------------------------ FROM

  from() {
    return this.list(() => this.joined()).join(', ');
  }

  joined() {
    let sql = this.tableItem();
    for (;;) {
      const kind = this.joinKind();
      if (!kind) return sql;
      sql += ` ${kind} ${this.tableItem()}`;
      if (kind === 'CROSS JOIN') continue;
      if (this.accept('USING')) sql += ` USING (${this.inParens(() => this.list(() => duckName(this.name()))).join(', ')})`;
      else {
        this.expect('ON');
        sql += ` ON ${this.expr()}`;
      }
    }
  }

  joinKind() {
    if (this.accept('JOIN') || this.accept('INNER', 'JOIN')) return 'JOIN';
    if (this.accept('CROSS', 'JOIN')) return 'CROSS JOIN';
    for (const side of ['LEFT', 'RIGHT', 'FULL']) if (this.accept(side, 'OUTER', 'JOIN') || this.accept(side, 'JOIN')) return `${side} JOIN`;
    return null;
  }

  tableItem() {
    if (this.isWord('VALUES')) return this.aliased(this.valuesRows());
    if (this.isOp('(')) {
      const inner = this.inParens(() => (this.isWord('VALUES') ? this.valuesRows() : `(${this.query()})`));
      return this.aliased(inner);
    }
    if (this.isWord('TABLE') && this.ahead().v === '(') return this.aliased(this.resultScan());
    const { sql, name } = this.tableName();
    return this.aliased(sql, name);
  }

  // Columns of VALUES are COLUMN1, COLUMN2 ... unless an alias names them.
  valuesRows() {
    this.expect('VALUES');
    let width = 0;
    const list = this.list(() => {
      const row = this.inParens(() => this.list(() => this.expr()));
      width = row.length;
      return `(${row.join(', ')})`;
    });
    return { values: `(VALUES ${list.join(', ')})`, width };
  }

  aliased(item, name) {
    const alias = this.accept('AS') ? this.name() : this.isAlias() ? this.name() : name;
    const columns = alias !== undefined && this.isOp('(') ? this.inParens(() => this.list(() => duckName(this.name()))) : null;
    const list = columns ? `(${columns.join(', ')})` : '';
    if (typeof item === 'string') return alias === undefined ? item : `${item} AS ${duckName(alias)}${list}`;
    const names = columns ?? Array.from({ length: item.width }, (_, n) => duckName(`COLUMN${n + 1}`));
    return `${item.values} AS ${duckName(alias ?? 'VALUES')}(${names.join(', ')})`;
  }

  // TABLE(RESULT_SCAN(LAST_QUERY_ID())), also with an id as text or variable
  resultScan() {
    this.expect('TABLE');
    return this.inParens(() => {
      this.expect('RESULT_SCAN');
      return this.inParens(() => {
        if (this.accept('LAST_QUERY_ID')) {
          this.expectOp('(');
          this.expectOp(')');
          return this.resultRows(null);
        }
        if (this.token.t === 'var') return this.resultRows(this.variable(this.take('var')).text);
        return this.resultRows(this.take('string').v);
      });
    });
  }

  resultRows(id) {
    const result = this.context.result(id);
    if (!result) throw new SqlError('000709', `Statement ${id ?? ''} not found`, '02000');
    const cast = (n) => {
      const { type, precision, scale } = result.rowtype[n];
      if (type === 'fixed') return `::DECIMAL(${precision ?? 38},${scale ?? 0})`;
      return { real: '::DOUBLE', boolean: '::BOOLEAN', variant: '::JSON' }[type] ?? '::VARCHAR';
    };
    const names = result.rowtype.map((c) => duckName(c.name));
    const columns = names.map((name, n) => `c${n}${cast(n)} AS ${name}`).join(', ');
    const aliases = names.map((_, n) => `c${n}`).join(', ');
    if (result.rows.length === 0) return `(SELECT ${columns} FROM (SELECT ${names.map((_, n) => `NULL AS c${n}`).join(', ')} WHERE false))`;
    const rows = result.rows.map((row) => `(${row.map((v) => literal(v)).join(', ')})`).join(', ');
    return `(SELECT ${columns} FROM (VALUES ${rows}) AS v(${aliases}))`;
  }

  // A table, a view or a name of WITH: { sql, name }.
  tableName() {
    const token = this.token;
    if (token.t === 'string') this.fail();
    if (this.isWord('IDENTIFIER') && this.ahead().v === '(') return this.identifierCall();
    return this.tableByParts(this.names(), token);
  }

  // IDENTIFIER(:name) and IDENTIFIER('"D"."S"."T"')
  identifierCall() {
    this.expect('IDENTIFIER');
    const text = this.inParens(() => (this.token.t === 'var' ? this.variable(this.take('var')).text : this.take('string').v));
    const { lex } = require('./sql');
    const reader = new Reader(lex(text), text);
    const parts = reader.names();
    reader.end();
    return this.tableByParts(parts, this.token);
  }

  tableByParts(parts, token) {
    if (parts.length === 1) {
      if (this.ctes.includes(parts[0])) return { sql: duckName(parts[0]), name: parts[0] };
      throw errors.missing('Object', shownAs(parts), token);
    }
    this.context.used.tables = true;
    if (parts.length === 3 && parts[1] === 'INFORMATION_SCHEMA')
      return { sql: this.catalog.informationSchema(parts[0], parts[2]), name: parts[2] };
    const object = this.catalog.get(parts);
    this.context.authorize(object, 'SELECT');
    if (object.kind !== 'VIEW') return { sql: object.duck, name: parts[2], object };
    return { sql: `(${this.view(object)})`, name: parts[2], object };
  }

  // A view follows names: its text is read again each time.
  view(object) {
    const { lex } = require('./sql');
    const inner = new Translator(lex(object.text), object.text, { ...this.context, takeInto: false, vars: new Map() });
    const sql = inner.query();
    inner.end();
    const names = object.columns.map((c) => duckName(c.name)).join(', ');
    return `SELECT * FROM (${sql}) AS v(${names})`;
  }

  // ------------------------------------------------------------ expressions

  expr() {
    let sql = this.conjunction();
    while (this.accept('OR')) sql = `(${sql} OR ${this.conjunction()})`;
    return sql;
  }

  conjunction() {
    let sql = this.negation();
    while (this.accept('AND')) sql = `(${sql} AND ${this.negation()})`;
    return sql;
  }

  negation() {
    return this.accept('NOT') ? `(NOT ${this.negation()})` : this.comparison();
  }

  comparison() {
    let sql = this.sum();
    for (;;) {
      const op = this.isOp('=', '<>', '!=', '<', '>', '<=', '>=') && this.tokens[this.i++].v;
      if (op) {
        if (this.isWord('ALL', 'ANY', 'SOME')) this.fail();
        sql = `(${sql} ${op} ${this.sum()})`;
      } else if (this.accept('IS')) {
        sql = `(${sql} IS ${this.accept('NOT') ? 'NOT ' : ''}${this.isWhat()})`;
      } else {
        const next = this.predicate(sql);
        if (next === null) return sql;
        sql = next;
      }
    }
  }

  isWhat() {
    for (const word of ['NULL', 'TRUE', 'FALSE']) if (this.accept(word)) return word;
    this.expect('DISTINCT', 'FROM');
    return `DISTINCT FROM ${this.sum()}`;
  }

  // [NOT] IN, BETWEEN, LIKE, ILIKE
  predicate(sql) {
    const not = this.isWord('NOT') && ['IN', 'BETWEEN', 'LIKE', 'ILIKE'].includes(this.ahead().u) ? (this.i++, 'NOT ') : '';
    if (this.accept('IN')) return `(${sql} ${not}IN (${this.inParens(() => this.inList())}))`;
    if (this.accept('BETWEEN')) {
      const low = this.sum();
      this.expect('AND');
      return `(${sql} ${not}BETWEEN ${low} AND ${this.sum()})`;
    }
    for (const op of ['LIKE', 'ILIKE']) {
      if (!this.accept(op)) continue;
      const pattern = this.sum();
      return `(${sql} ${not}${op} ${pattern}${this.accept('ESCAPE') ? ` ESCAPE ${this.sum()}` : ''})`;
    }
    return null;
  }

  inList() {
    if (this.isWord('SELECT', 'WITH')) return this.query();
    const items = this.list(() => this.expr());
    if (items.length > MAX_LIST) throw tooMany();
    return items.join(', ');
  }

  sum() {
    let sql = this.product();
    for (;;) {
      const op = this.isOp('+', '-', '||') && this.tokens[this.i++].v;
      if (!op) return sql;
      const right = this.product();
      sql = op === '||' ? this.known(`(${this.asText(sql)} || ${this.asText(right)})`, 'VARCHAR') : `(${sql} ${op} ${right})`;
    }
  }

  product() {
    let sql = this.unary();
    for (;;) {
      if (this.acceptOp('*')) sql = `(${sql} * ${this.unary()})`;
      else if (this.acceptOp('%')) sql = `(${sql} % ${this.unary()})`;
      else if (this.acceptOp('/')) sql = `sf_div(${sql}, ${this.unary()})`;
      else return sql;
    }
  }

  unary() {
    if (this.acceptOp('-')) return `(- ${this.unary()})`;
    if (this.acceptOp('+')) return this.unary();
    return this.postfix();
  }

  postfix() {
    let sql = this.primary();
    for (;;) {
      if (this.acceptOp('::')) sql = this.cast(sql, readType(this));
      else if ((this.isOp(':') && ['word', 'quoted'].includes(this.ahead().t)) || this.isOp('[')) sql = this.path(sql);
      else return sql;
    }
  }

  // v:a.b[0]['c'] : names of a path are exact, quoted or not.
  path(sql) {
    let at;
    for (let first = true; ; first = false) {
      if (this.acceptOp('[')) {
        at = this.token.t === 'number' ? `$[${this.take('number').v}]` : jsonPath(this.take('string').v);
        this.expectOp(']');
      } else if (first ? this.acceptOp(':') : this.acceptOp('.')) {
        if (!['word', 'quoted'].includes(this.token.t)) this.fail();
        at = jsonPath(this.tokens[this.i++].v);
      } else return sql;
      sql = this.known(`json_extract(${sql}, ${literal(at)})`, 'VARIANT');
    }
  }

  primary() {
    const token = this.token;
    if (token.t === 'number') return this.known(this.tokens[this.i++].v, /e/i.test(token.v) ? 'FLOAT' : 'NUMBER');
    if (token.t === 'string') return this.known(literal(this.tokens[this.i++].v), 'VARCHAR');
    if (token.t === 'var') return this.variable(this.tokens[this.i++]).sql;
    if (this.isOp('(')) return this.parenthesis();
    if (token.t === 'word') {
      const sql = this.keyword();
      if (sql !== null) return sql;
    }
    if (!this.isName() && !(token.t === 'word' && this.ahead().v === '(' && FUNCTIONS[token.u])) this.fail();
    if (token.t === 'word' && this.ahead().v === '(') return this.call();
    return this.columnName();
  }

  parenthesis() {
    return this.inParens(() => {
      if (this.isWord('SELECT', 'WITH')) return `(${this.query()})`;
      const items = this.list(() => this.expr());
      return `(${items.join(', ')})`;
    });
  }

  keyword() {
    for (const word of ['NULL', 'TRUE', 'FALSE']) if (this.accept(word)) return word;
    if (this.isWord('CASE')) return this.caseOf();
    if (this.accept('EXISTS')) return `EXISTS (${this.inParens(() => this.query())})`;
    if (this.isWord('CAST', 'TRY_CAST') && this.ahead().v === '(') return this.castCall();
    if (this.isWord('CURRENT_TIMESTAMP', 'CURRENT_DATE', 'CURRENT_TIME', 'LOCALTIMESTAMP', 'CURRENT_USER') && this.ahead().v !== '(') {
      return { CURRENT_DATE: 'current_date', CURRENT_USER: literal(this.context.session.user) }[this.tokens[this.i++].u] ?? 'now()';
    }
    if (this.isWord('DATE', 'TIME', 'TIMESTAMP') && this.ahead().t === 'string') {
      const kind = this.tokens[this.i++].u;
      return `${literal(this.take('string').v)}::${kind}`;
    }
    if (this.context.bare && this.isName() && this.token.t === 'word' && this.ahead().v !== '(' && this.ahead().v !== '.') {
      const found = this.context.vars.get(this.token.u);
      if (found) {
        this.i++;
        return found.sql;
      }
    }
    return null;
  }

  variable(token) {
    const found = this.context.vars.get(token.v);
    if (!found) throw compilation('000904', `error line ${token.line} at position ${token.col}\ninvalid identifier '${token.v}'`);
    return found;
  }

  caseOf() {
    this.expect('CASE');
    let sql = 'CASE';
    const results = [];
    const result = () => {
      results.push(this.expr());
      return results[results.length - 1];
    };
    if (!this.isWord('WHEN')) sql += ` ${this.expr()}`;
    if (!this.isWord('WHEN')) this.fail();
    while (this.accept('WHEN')) {
      sql += ` WHEN ${this.expr()}`;
      this.expect('THEN');
      sql += ` THEN ${result()}`;
    }
    if (this.accept('ELSE')) sql += ` ELSE ${result()}`;
    this.expect('END');
    return this.known(`${sql} END`, this.common(results));
  }

  castCall() {
    const attempt = this.tokens[this.i++].u === 'TRY_CAST';
    return this.inParens(() => {
      const sql = this.expr();
      this.expect('AS');
      const type = readType(this);
      return attempt ? this.tryCast(sql, type) : this.cast(sql, type);
    });
  }

  // a, t.a, "D"."S"."T".a
  columnName() {
    const parts = this.names();
    if (parts.length === 1) return duckName(parts[0]);
    return parts.slice(-2).map(duckName).join('.');
  }

  // ------------------------------------------------------------ casts

  asText(sql) {
    const f = this.context.session.outputFormats;
    const kind = this.kinds.get(sql);
    if (kind === 'VARCHAR') return sql;
    return this.known(TEXT_OF[kind] ? TEXT_OF[kind](sql, f) : `sf_text(${sql}, ${f.date}, ${f.time}, ${f.ntz}, ${f.tz})`, 'VARCHAR');
  }

  cast(sql, type) {
    if (type.kind === 'VARCHAR') {
      const text = this.asText(sql);
      return type.length < 16777216 ? this.known(`left(${text}, ${type.length})`, 'VARCHAR') : text;
    }
    return this.known(this.castTo(sql, type), { OBJECT: 'VARIANT', ARRAY: 'VARIANT' }[type.kind] ?? type.kind);
  }

  castTo(sql, type) {
    const kind = this.kinds.get(sql);
    if (type.duck === 'JSON') return kind === 'VARIANT' ? sql : `sf_variant(${sql})`;
    if (type.kind === 'BINARY') return kind === 'BINARY' ? sql : kind === 'VARCHAR' ? `unhex(sf_hex(${sql}))` : `sf_binary(${sql})`;
    if (/^GEO/.test(type.kind)) return `sf_geo(${sql}::VARCHAR)`;
    if (kind === 'VARCHAR') return this.fromText(sql, type);
    if (kind === 'VARIANT') return this.fromText(`sf_json_text(${sql}::VARCHAR)`, type);
    if (kind) return `CAST(${sql} AS ${type.duck})`;
    return `CASE WHEN typeof(${sql}) = 'JSON' THEN ${this.fromText(`sf_value(${sql})`, type)} WHEN typeof(${sql}) = 'VARCHAR' ` +
      `THEN ${this.fromText(`${sql}::VARCHAR`, type)} ELSE CAST(${sql} AS ${type.duck}) END`;
  }

  // Text made a value as Snowflake reads it, not as DuckDB does.
  fromText(sql, type, attempt = '') {
    const more = { NUMBER: `, '${type.precision}', '${type.scale}'`, DATE: ", 'AUTO'", TIME: ", 'AUTO'", TIMESTAMP_NTZ: ", 'AUTO'",
      TIMESTAMP_TZ: `, 'AUTO', ${literal(this.context.session.timezone)}` }[type.kind] ?? '';
    const name = { TIMESTAMP_NTZ: 'ntz', TIMESTAMP_TZ: 'tz' }[type.kind] ?? type.kind.toLowerCase();
    return `CAST(sf_${attempt}${name}(${sql}${more}) AS ${type.duck})`;
  }

  tryCast(sql, type) {
    const text = this.kinds.get(sql) === 'VARCHAR' ? sql : `sf_only_text(${sql})`;
    if (type.duck === 'JSON' || /^GEO/.test(type.kind))
      throw compilation('001065', `Function TRY_CAST cannot be used with arguments of types VARCHAR and ${type.kind}`, '22023');
    return this.known(this.tryCastText(text, type), type.kind);
  }

  tryCastText(text, type) {
    if (type.kind === 'VARCHAR') return type.length < 16777216 ? `CASE WHEN length(${text}) <= ${type.length} THEN ${text} END` : text;
    if (type.kind === 'BINARY') return `CASE WHEN regexp_full_match(${text}, '([0-9a-fA-F]{2})*') THEN unhex(${text}) END`;
    return this.fromText(text, type, 'try_');
  }

  // A value for a column of this type, which some types take only as it is.
  assign(sql, type) {
    const kind = this.kinds.get(sql);
    if (type.duck === 'JSON') return kind === 'VARIANT' ? sql : `sf_into_variant(${sql})`;
    if (type.duck === 'BLOB') return kind === 'BINARY' ? sql : `sf_into_binary(${sql})`;
    if (kind === 'VARIANT') throw errors.type(type.text, 'VARIANT', '');
    const value = kind || sql === 'NULL' ? sql : `sf_no_variant(${sql}, '${type.text}')`;
    if (type.kind === 'VARCHAR') return kind ? this.asText(sql) : this.asText(value);
    if (/^GEO/.test(type.kind)) return `sf_geo(${sql}::VARCHAR)`;
    if (kind === 'VARCHAR') return this.fromText(sql, type);
    if (kind || sql === 'NULL') return sql;
    return `CASE WHEN typeof(${sql}) = 'VARCHAR' THEN ${this.fromText(`${sql}::VARCHAR`, type)} ELSE CAST(${value} AS ${type.duck}) END`;
  }

  // ------------------------------------------------------------ functions

  call() {
    const token = this.tokens[this.i++];
    const name = token.u;
    if (this.inValues && NOT_IN_VALUES.has(name))
      throw compilation('002014', `Invalid expression [${this.callSource()}] in VALUES clause`, '22000');
    const make = FUNCTIONS[name];
    if (!make && !SAME.has(name)) throw compilation('002140', `Unknown function ${printName(token.v.toUpperCase())}`, '42601');
    this.expectOp('(');
    let distinct = '';
    if (this.accept('DISTINCT')) distinct = 'DISTINCT ';
    const args = this.callArguments(name);
    this.expectOp(')');
    const within = this.accept('WITHIN', 'GROUP') ? ` ${this.inParens(() => this.orderBy())}` : '';
    const sql = make ? make(args, this, token, { distinct, within }) : `${name}(${distinct}${args.join(', ')}${within})`;
    if (this.isWord('OVER', 'IGNORE', 'RESPECT') || WINDOW_ONLY.has(name)) return this.over(name, sql);
    return this.known(sql, this.kinds.get(sql) ?? RESULTS[name] ?? (SAME_KIND.has(name) ? this.common(args) : undefined));
  }

  callSource() {
    const start = this.i - 1;
    this.skipParens();
    return this.source(start);
  }

  callArguments(name) {
    if (this.isOp(')')) return [];
    if (name === 'COUNT' && this.acceptOp('*')) return ['*'];
    return this.list(() => (this.isWord('SELECT') ? `(${this.query()})` : this.expr()));
  }

  over(name, sql) {
    const nulls = this.accept('IGNORE', 'NULLS') ? ' IGNORE NULLS' : (this.accept('RESPECT', 'NULLS'), '');
    if (!this.accept('OVER')) throw compilation('002076', `Window function [${name}] requires an OVER clause`, '42601');
    const call = nulls ? sql.replace(/\)$/, `${nulls})`) : sql;
    return `${call} OVER (${this.inParens(() => this.window(name))})`;
  }

  window(name) {
    let sql = '';
    if (this.accept('PARTITION', 'BY')) sql += `PARTITION BY ${this.list(() => this.expr()).join(', ')}`;
    const order = this.orderBy();
    if (!order && ORDERED.has(name))
      throw compilation('002303', `Window function type [${name}] requires ORDER BY in window specification`, '42601');
    sql += order;
    if (this.isWord('ROWS', 'RANGE')) {
      const kind = this.tokens[this.i++].u;
      this.expect('BETWEEN');
      const low = this.bound();
      this.expect('AND');
      sql += ` ${kind} BETWEEN ${low} AND ${this.bound()}`;
    }
    return sql;
  }

  bound() {
    if (this.accept('CURRENT', 'ROW')) return 'CURRENT ROW';
    const size = this.accept('UNBOUNDED') ? 'UNBOUNDED' : this.take('number').v;
    if (this.accept('PRECEDING')) return `${size} PRECEDING`;
    this.expect('FOLLOWING');
    return `${size} FOLLOWING`;
  }
}

const jsonPath = (name) => `$."${name.replace(/"/g, '\\"')}"`;
const tooMany = () => compilation('001795', `maximum number of expressions in a list exceeded, expected at most ${MAX_LIST}`, '42601');

// The text of an argument that has to be a literal.
function literalOf(sql, p) {
  const match = /^'((?:[^']|'')*)'$/.exec(sql ?? '');
  if (!match) p.fail('wanted a literal');
  return match[1].replace(/''/g, "'");
}

function arity(args, low, high, token) {
  if (args.length >= low && args.length <= (high ?? low)) return;
  throw compilation(args.length < low ? '000938' : '000939',
    `${args.length < low ? 'not enough' : 'too many'} arguments for function [${token.u}] expected ${args.length < low ? low : high ?? low}, got ${args.length}`, '22023');
}

const constant = (make) => (args, p, token) => {
  arity(args, 0, 0, token);
  return make(p.context.session, p.context);
};
const fixed = (count, make) => (args, p, token) => {
  arity(args, count, count, token);
  return make(...args);
};
// TO_DATE and the like: text by our own reader, anything else by a cast.
const toTime = (duck, reader) => (args, p, token) => {
  arity(args, 1, 2, token);
  const format = literal(args[1] === undefined ? 'AUTO' : literalOf(args[1], p));
  const zone = reader === 'sf_tz' ? `, ${literal(p.context.session.timezone)}` : '';
  const x = args[0];
  const kind = p.kinds.get(x);
  if (kind === 'VARCHAR') return `${reader}(${x}, ${format}${zone})::${duck}`;
  if (kind && kind !== 'VARIANT') return `CAST(${x} AS ${duck})`;
  return `CASE WHEN typeof(${x}) = 'VARCHAR' THEN ${reader}(${x}::VARCHAR, ${format}${zone})::${duck} ` +
    `WHEN typeof(${x}) = 'JSON' THEN ${reader}(sf_value(${x}), ${format}${zone})::${duck} ELSE CAST(${x} AS ${duck}) END`;
};

function toNumber(args, p, token) {
  arity(args, 1, 3, token);
  return p.cast(args[0], numberType(args, p));
}

function numberType(args, p) {
  const [, precision = '38', scale = '0'] = args;
  if (!/^\d+$/.test(precision) || !/^\d+$/.test(scale)) p.fail('precision and scale are numbers');
  return number(Number(precision), Number(scale));
}

function toVarchar(args, p, token) {
  arity(args, 1, 2, token);
  if (args.length === 1) return p.asText(args[0]);
  const format = literalOf(args[1], p);
  const x = args[0];
  if (/^hex$/i.test(format)) return `upper(hex(sf_binary(${x})))`;
  if (/^base64$/i.test(format)) return `to_base64(sf_binary(${x}))`;
  if (/^utf-?8$/i.test(format)) return `decode(sf_binary(${x}))`;
  if (/^TM9?$/i.test(format)) return p.asText(x);
  const f = literal(values.strftime(format));
  const kind = p.kinds.get(x);
  if (kind && kind !== 'VARIANT') return TEXT_OF[kind] ? TEXT_OF[kind](x, { date: f, time: f, ntz: f, tz: f }) : x;
  return `sf_text(${x}, ${f}, ${f}, ${f}, ${f})`;
}

const parseJson = (attempt) => (args, p, token) => {
  arity(args, 1, 2, token);
  return `sf_${attempt}parse_json(${args[0]}::VARCHAR, ${args[1] ?? "'s'"})::JSON`;
};
const tryTo = (type) => (args, p, token) => (arity(args, 1, 1, token), p.tryCast(args[0], type));

const VARIANT = { kind: 'VARIANT', duck: 'JSON' };

// A function of texts; what is none becomes one.
const ofText = (low, high, make) => (args, p, token) => {
  arity(args, low, high, token);
  return make(p.asText(args[0]), ...args.slice(1));
};
const textCall = (name) => (...args) => `${name}(${args.join(', ')})`;
// NULL if any argument is NULL; DuckDB's leave them out
const strict = (name) => (args, p, token) => {
  arity(args, 1, 100, token);
  return `CASE WHEN ${args.map((arg) => `${arg} IS NULL`).join(' OR ')} THEN NULL ELSE ${name}(${args.join(', ')}) END`;
};

const FUNCTIONS = {
  ...Object.fromEntries([['UPPER', 1, 1], ['LOWER', 1, 1], ['TRIM', 1, 2], ['LTRIM', 1, 2], ['RTRIM', 1, 2], ['LENGTH', 1, 1], ['SUBSTR', 2, 3], ['SUBSTRING', 2, 3],
    ['REPLACE', 3, 3], ['LEFT', 2, 2], ['RIGHT', 2, 2], ['MD5', 1, 1], ['REPEAT', 2, 2], ['REVERSE', 1, 1], ['ASCII', 1, 1], ['LPAD', 3, 3], ['RPAD', 3, 3]]
    .map(([name, low, high]) => [name, ofText(low, high, textCall(name.toLowerCase()))])),
  GREATEST: strict('greatest'),
  LEAST: strict('least'),
  CONCAT: (args, p, token) => (arity(args, 1, 100, token), `(${args.map((arg) => p.asText(arg)).join(' || ')})`),
  POSITION: fixed(2, (a, b) => `strpos(${b}, ${a})`),
  IFF: (args, p, token) => {
    arity(args, 3, 3, token);
    return p.known(`CASE WHEN ${args[0]} THEN ${args[1]} ELSE ${args[2]} END`, p.common(args.slice(1)));
  },
  NVL: fixed(2, (a, b) => `COALESCE(${a}, ${b})`),
  NVL2: fixed(3, (a, b, c) => `CASE WHEN ${a} IS NOT NULL THEN ${b} ELSE ${c} END`),
  ZEROIFNULL: fixed(1, (a) => `COALESCE(${a}, 0)`),
  EQUAL_NULL: fixed(2, (a, b) => `(${a} IS NOT DISTINCT FROM ${b})`),
  STARTSWITH: fixed(2, (a, b) => `starts_with(${a}, ${b})`),
  ENDSWITH: fixed(2, (a, b) => `ends_with(${a}, ${b})`),
  CONTAINS: fixed(2, (a, b) => `contains(${a}, ${b})`),
  COUNT_IF: fixed(1, (a) => `count_if(${a})`),
  SHA2: ofText(1, 2, (a) => `sha256(${a})`),
  OCTET_LENGTH: fixed(1, (a) => `octet_length(encode(${a}))`),
  HEX_ENCODE: fixed(1, (a) => `upper(hex(${a}))`),
  LISTAGG: (args, p, token, { distinct, within }) => {
    arity(args, 1, 2, token);
    return `string_agg(${distinct}${p.asText(args[0])}, ${args[1] ?? "''"}${within.replace(/^ /, ' ')})`;
  },
  PARSE_JSON: parseJson(''),
  TRY_PARSE_JSON: parseJson('try_'),
  TO_JSON: (args, p, token) => (arity(args, 1, 1, token), `${p.cast(args[0], VARIANT)}::VARCHAR`),
  ...Object.fromEntries(['TO_VARIANT', 'TO_OBJECT', 'TO_ARRAY'].map((name) => [name, (args, p, token) => (arity(args, 1, 1, token), p.cast(args[0], VARIANT))])),
  TYPEOF: fixed(1, (a) => `CASE json_type(${a}) WHEN 'UBIGINT' THEN 'INTEGER' WHEN 'BIGINT' THEN 'INTEGER' ELSE json_type(${a}) END`),
  TO_VARCHAR: toVarchar,
  TO_CHAR: toVarchar,
  TO_NUMBER: toNumber,
  TO_DECIMAL: toNumber,
  TO_NUMERIC: toNumber,
  TO_DOUBLE: (args, p, token) => (arity(args, 1, 1, token), p.cast(args[0], { kind: 'FLOAT', duck: 'DOUBLE' })),
  TO_BOOLEAN: (args, p, token) => (arity(args, 1, 1, token), p.cast(args[0], { kind: 'BOOLEAN', duck: 'BOOLEAN' })),
  TO_DATE: toTime('DATE', 'sf_date'),
  DATE: toTime('DATE', 'sf_date'),
  TO_TIME: toTime('TIME', 'sf_time'),
  TO_TIMESTAMP: toTime('TIMESTAMP', 'sf_ntz'),
  TO_TIMESTAMP_NTZ: toTime('TIMESTAMP', 'sf_ntz'),
  TO_TIMESTAMP_TZ: toTime('TIMESTAMPTZ', 'sf_tz'),
  TO_BINARY: (args, p, token) => {
    arity(args, 1, 2, token);
    const format = args[1] === undefined ? 'HEX' : literalOf(args[1], p).toUpperCase();
    if (format === 'HEX') return `sf_binary(${args[0]})`;
    if (format === 'BASE64') return `from_base64(${args[0]})`;
    if (format === 'UTF-8' || format === 'UTF8') return `encode(${args[0]})`;
    return p.fail('binary format');
  },
  // with allow_invalid and, of a geometry, an SRID
  TO_GEOGRAPHY: (args, p, token) => (arity(args, 1, 2, token), `sf_geo(${args[0]}::VARCHAR)`),
  TO_GEOMETRY: (args, p, token) => (arity(args, 1, 3, token), `sf_geo(${args[0]}::VARCHAR)`),
  TRY_TO_GEOGRAPHY: (args, p, token) => (arity(args, 1, 2, token), `sf_try_geo(${args[0]}::VARCHAR)`),
  TRY_TO_GEOMETRY: (args, p, token) => (arity(args, 1, 3, token), `sf_try_geo(${args[0]}::VARCHAR)`),
  TRY_TO_BOOLEAN: tryTo({ kind: 'BOOLEAN', duck: 'BOOLEAN' }),
  TRY_TO_DOUBLE: tryTo({ kind: 'FLOAT', duck: 'DOUBLE' }),
  TRY_TO_DATE: tryTo({ kind: 'DATE', duck: 'DATE' }),
  TRY_TO_TIME: tryTo({ kind: 'TIME', duck: 'TIME' }),
  TRY_TO_TIMESTAMP_NTZ: tryTo({ kind: 'TIMESTAMP_NTZ', duck: 'TIMESTAMP' }),
  TRY_TO_TIMESTAMP_TZ: tryTo({ kind: 'TIMESTAMP_TZ', duck: 'TIMESTAMPTZ' }),
  TRY_TO_BINARY: (args, p, token) => {
    arity(args, 1, 2, token);
    if (args[1] !== undefined && literalOf(args[1], p).toUpperCase() !== 'HEX') p.fail('binary format');
    return p.tryCast(args[0], { kind: 'BINARY', duck: 'BLOB' });
  },
  ST_ASWKT: fixed(1, (a) => a),
  ST_ASTEXT: fixed(1, (a) => a),
  TRY_TO_NUMBER: (args, p, token) => {
    arity(args, 1, 3, token);
    return p.tryCast(args[0], numberType(args, p));
  },
  CURRENT_TIMESTAMP: (args, p, token) => (arity(args, 0, 1, token), 'now()'),
  SYSDATE: constant(() => "timezone('UTC', now())"),
  CURRENT_DATE: constant(() => 'current_date'),
  CURRENT_VERSION: constant(() => "'9.31.0'"),
  CURRENT_ROLE: constant((s) => literal(s.role)),
  CURRENT_USER: constant((s) => literal(s.user)),
  CURRENT_WAREHOUSE: constant((s) => literal(s.warehouse)),
  CURRENT_DATABASE: constant((s) => literal(s.database)),
  CURRENT_SCHEMA: constant((s) => literal(s.schema)),
  CURRENT_ACCOUNT: constant((s) => literal(s.account)),
  CURRENT_SESSION: constant((s) => literal(s.id)),
  CURRENT_TRANSACTION: constant((s, c) => literal(c.service.transaction ? '1' : null)),
  LAST_QUERY_ID: constant((s, c) => literal(c.result(null)?.queryId ?? null)),
};

module.exports = { Translator, tooMany, MAX_LIST };
