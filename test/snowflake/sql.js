// Snowflake's SQL, as text: errors, the lexer, and a reader of tokens.
'use strict';

class SqlError extends Error {
  constructor(code, message, sqlState = '42000') {
    super(message);
    this.code = code;
    this.sqlState = sqlState;
  }
}

const compilation = (code, text, state) => new SqlError(code, `SQL compilation error:\n${text}`, state);

// The service's errors by what they are about.
const errors = {
  syntax: (token, why) =>
    compilation('001003', `syntax error line ${token.line} at position ${token.col} unexpected '${token.t === 'eof' ? '<EOF>' : token.raw}'.` +
      (why ? ` (${why})` : '')),
  missing: (kind, name) => compilation('002003', `${kind} '${name}' does not exist or not authorized.`, kind === 'Object' ? '42S02' : '02000'),
  notThere: (name) => compilation('002043', `Object does not exist, or operation cannot be performed.${name ? ` (${name})` : ''}`, '02000'),
  exists: (name) => compilation('002002', `Object '${name}' already exists.`, '42710'),
  identifier: (name, token) =>
    compilation('000904', `error line ${token ? token.line : 1} at position ${token ? token.col : 0}\ninvalid identifier '${name}'`),
  privileges: (kind, name) =>
    new SqlError('003001', `SQL access control error:\nInsufficient privileges to operate on ${kind} '${name}'`, '42501'),
  warehouse: () =>
    new SqlError('000606', 'No active warehouse selected in the current session.  Select an active warehouse with the \'use warehouse\' command.\n', '57P03'),
  cancelled: () => new SqlError('000604', 'SQL execution canceled', '57014'),
  type: (want, got, column) =>
    compilation('002023', `Expression type does not match column data type, expecting ${want} but got ${got} for column ${column}`, '22000'),
};

const LETTER = /[A-Za-z_\u0080-\uffff]/;
const WORD = /[A-Za-z0-9_$\u0080-\uffff]/;
const ESCAPES = { n: '\n', t: '\t', r: '\r', b: '\b', f: '\f', 0: '\0', '\\': '\\', "'": "'", '"': '"' };

class Lexer {
  constructor(text) {
    this.text = text;
    this.pos = 0;
    this.tokens = [];
    this.lineStart = 0;
    this.line = 1;
  }

  fail(pos) {
    throw errors.syntax({ ...this.place(pos), raw: this.text[pos] ?? '<EOF>', t: pos >= this.text.length ? 'eof' : 'op' });
  }

  // Line and column of a position that is not before the last one asked for.
  place(pos) {
    for (;;) {
      const at = this.text.indexOf('\n', this.lineStart);
      if (at < 0 || at >= pos) break;
      this.lineStart = at + 1;
      this.line++;
    }
    return { line: this.line, col: pos - this.lineStart };
  }

  add(t, v, start) {
    const raw = this.text.slice(start, this.pos);
    this.tokens.push({ t, v, u: t === 'word' ? v.toUpperCase() : '', raw, pos: start, end: this.pos, ...this.place(start) });
  }

  blank() {
    for (;;) {
      const two = this.text.substr(this.pos, 2);
      if (/^\s/.test(two)) {
        this.pos++;
      } else if (two === '--' || two === '//') {
        const at = this.text.indexOf('\n', this.pos);
        this.pos = at < 0 ? this.text.length : at + 1;
      } else if (two === '/*') {
        const at = this.text.indexOf('*/', this.pos + 2);
        if (at < 0) this.fail(this.text.length);
        this.pos = at + 2;
      } else {
        return;
      }
    }
  }

  string(start) {
    let value = '';
    for (this.pos = start + 1; ; ) {
      const c = this.text[this.pos];
      if (c === undefined) this.fail(this.pos);
      if (c === "'") {
        this.pos++;
        if (this.text[this.pos] !== "'") break;
        value += "'";
        this.pos++;
      } else if (c === '\\') {
        value += this.escape();
      } else {
        value += c;
        this.pos++;
      }
    }
    this.add('string', value, start);
  }

  escape() {
    const rest = this.text.substr(this.pos + 1, 5);
    const code = /^x([0-9a-fA-F]{2})|^u([0-9a-fA-F]{4})|^([0-7]{3})/.exec(rest);
    if (code) {
      this.pos += 1 + code[0].length;
      return String.fromCharCode(code[3] ? parseInt(code[3], 8) : parseInt(code[1] ?? code[2], 16));
    }
    this.pos += 2;
    return ESCAPES[rest[0]] ?? rest[0] ?? '';
  }

  quotedText(start) {
    let value = '';
    for (this.pos = start + 1; ; this.pos++) {
      const c = this.text[this.pos];
      if (c === undefined) this.fail(this.pos);
      if (c === '"') {
        if (this.text[this.pos + 1] !== '"') break;
        this.pos++;
      }
      value += c;
    }
    this.pos++;
    return value;
  }

  word(start) {
    for (this.pos = start; WORD.test(this.text[this.pos] ?? ''); ) this.pos++;
    return this.text.slice(start, this.pos);
  }

  // @"D"."S"."N"/a/path, @n, @~/path
  stage(start) {
    this.pos = start + 1;
    const { parts, path } = this.stageName();
    this.add('stage', { parts, path }, start);
  }

  stageName() {
    const parts = [];
    if (this.text[this.pos] === '~') {
      this.pos++;
      parts.push('~');
    } else {
      do {
        if (parts.length) this.pos++;
        const c = this.text[this.pos] ?? '';
        if (c === '"') parts.push(this.quotedText(this.pos));
        else if (LETTER.test(c)) parts.push(this.word(this.pos).toUpperCase());
        else this.fail(this.pos);
      } while (this.text[this.pos] === '.');
    }
    const path = /^(?:\/[^\s()',;]*)?/.exec(this.text.slice(this.pos))[0];
    this.pos += path.length;
    return { parts, path: path.replace(/^\/+/, '') };
  }

  // :name is a variable, except right after an expression (then it is a path).
  variable(start) {
    const last = this.tokens[this.tokens.length - 1];
    const adjacent = last && last.end === start && (['word', 'quoted'].includes(last.t) || last.v === ')' || last.v === ']');
    if (adjacent || !LETTER.test(this.text[start + 1] ?? '')) return false;
    this.pos = start + 1;
    const name = this.word(start + 1);
    this.add('var', name.toUpperCase(), start);
    return true;
  }

  run() {
    for (;;) {
      this.blank();
      const start = this.pos;
      const c = this.text[start];
      if (c === undefined) break;
      if (c === "'") this.string(start);
      else if (c === '"') this.add('quoted', this.quotedText(start), start);
      else if (c === '@') this.stage(start);
      else if (LETTER.test(c)) this.add('word', this.word(start), start);
      else if (this.text.startsWith('$$', start)) this.dollars(start);
      else if (c === '$') this.column(start);
      else if (/[0-9]/.test(c) || (c === '.' && /[0-9]/.test(this.text[start + 1] ?? ''))) this.number(start);
      else if (c !== ':' || this.text.substr(start, 2) === '::' || this.text.substr(start, 2) === ':=' || !this.variable(start)) this.op(start);
    }
    this.add('eof', '', this.pos);
    return this.tokens;
  }

  dollars(start) {
    const at = this.text.indexOf('$$', start + 2);
    if (at < 0) this.fail(this.text.length);
    this.pos = at + 2;
    this.add('string', this.text.slice(start + 2, at), start);
  }

  column(start) {
    const digits = /^\$([0-9]+)/.exec(this.text.substr(start, 12));
    if (!digits) this.fail(start);
    this.pos = start + digits[0].length;
    this.add('column', Number(digits[1]), start);
  }

  number(start) {
    const text = /^(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?/.exec(this.text.slice(start, start + 400))[0];
    this.pos = start + text.length;
    this.add('number', text, start);
  }

  op(start) {
    const two = this.text.substr(start, 2);
    const op = ['::', ':=', '||', '<>', '!=', '<=', '>=', '=>'].includes(two) ? two : this.text[start];
    if (!/^[-+*/%(),.;:=<>!|[\]]/.test(op)) this.fail(start);
    this.pos = start + op.length;
    this.add('op', op, start);
  }
}

const lex = (text) => new Lexer(text).run();

// Words that cannot be names without quotes, and those that end an expression
// where a name without AS could stand.
const RESERVED = new Set(
  ('ALL ALTER AND ANY AS BETWEEN BY CASE CAST CHECK COLUMN CONNECT CONSTRAINT CREATE CROSS CURRENT DELETE DISTINCT DROP ELSE EXISTS FALSE ' +
    'FOLLOWING FOR FROM FULL GRANT GROUP HAVING ILIKE IN INCREMENT INNER INSERT INTERSECT INTO IS JOIN LATERAL LEFT LIKE MINUS NATURAL NOT NULL ' +
    'OF ON OR ORDER QUALIFY REGEXP REVOKE RIGHT RLIKE ROW ROWS SAMPLE SELECT SET SOME START TABLE TABLESAMPLE THEN TO TRIGGER TRUE TRY_CAST ' +
    'UNION UNIQUE UPDATE USING VALUES WHEN WHENEVER WHERE WITH CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP CURRENT_USER LOCALTIME LOCALTIMESTAMP')
    .split(' '));
const NO_ALIAS = new Set('LIMIT OFFSET FETCH EXCEPT END OUTER IGNORE RESPECT OVER MATCHED'.split(' '));

// Reads tokens one after the other; what does not fit is a syntax error.
class Reader {
  constructor(tokens, text, from = 0) {
    this.tokens = tokens;
    this.text = text;
    this.i = from;
  }

  get token() {
    return this.tokens[this.i];
  }

  ahead(n = 1) {
    return this.tokens[Math.min(this.i + n, this.tokens.length - 1)];
  }

  fail(why) {
    throw errors.syntax(this.token, why);
  }

  isWord(...words) {
    return this.token.t === 'word' && words.includes(this.token.u);
  }

  isOp(...ops) {
    return this.token.t === 'op' && ops.includes(this.token.v);
  }

  // Takes these words if all of them follow.
  accept(...words) {
    for (let n = 0; n < words.length; n++) {
      const token = this.ahead(n);
      if (token.t !== 'word' || token.u !== words[n]) return false;
    }
    this.i += words.length;
    return true;
  }

  expect(...words) {
    for (const word of words) if (!this.accept(word)) this.fail(`wanted ${word}`);
  }

  acceptOp(op) {
    if (!this.isOp(op)) return false;
    this.i++;
    return true;
  }

  expectOp(op) {
    if (!this.acceptOp(op)) this.fail(`wanted ${op}`);
  }

  take(kind) {
    if (this.token.t !== kind) this.fail(`wanted a ${kind}`);
    return this.tokens[this.i++];
  }

  isName() {
    return this.token.t === 'quoted' || (this.token.t === 'word' && !RESERVED.has(this.token.u));
  }

  // A name as the catalog has it: unquoted ones in upper case.
  name() {
    if (!this.isName()) this.fail('wanted a name');
    const token = this.tokens[this.i++];
    return token.t === 'quoted' ? token.v : token.u;
  }

  // a[.b[.c]]
  names() {
    const parts = [this.name()];
    while (this.acceptOp('.')) parts.push(this.name());
    return parts;
  }

  isAlias() {
    return this.isName() && !(this.token.t === 'word' && NO_ALIAS.has(this.token.u));
  }

  // item[, item]...
  list(item) {
    const items = [item()];
    while (this.acceptOp(',')) items.push(item());
    return items;
  }

  inParens(item) {
    this.expectOp('(');
    const result = item();
    this.expectOp(')');
    return result;
  }

  // Past a parenthesis to the one that closes it; the reader stands on "(".
  skipParens() {
    let depth = 0;
    do {
      if (this.token.t === 'eof') this.fail();
      if (this.isOp('(', '[')) depth++;
      if (this.isOp(')', ']')) depth--;
      this.i++;
    } while (depth > 0);
  }

  // The source between two token indexes.
  source(from, to = this.i) {
    return to > from ? this.text.slice(this.tokens[from].pos, this.tokens[to - 1].end) : '';
  }

  end() {
    this.acceptOp(';');
    if (this.token.t !== 'eof') this.fail();
  }
}

// A name in SQL text as Snowflake prints it.
const printName = (name) => (/^[A-Z_][A-Z0-9_$]*$/.test(name) ? name : `"${name.replace(/"/g, '""')}"`);

// DuckDB does not tell "a" from "A": every name is written so that it does.
const encode = (name) => name.replace(/[A-Z^]/g, (c) => '^' + c.toLowerCase());
const decode = (name) => name.replace(/\^(.)/gs, (_, c) => c.toUpperCase());
const duckName = (name) => `"${encode(name).replace(/"/g, '""')}"`;
const literal = (text) => (text === null || text === undefined ? 'NULL' : `'${String(text).replace(/'/g, "''")}'`);

module.exports = { SqlError, errors, compilation, lex, Reader, printName, encode, decode, duckName, literal, RESERVED };
