// Snowflake Scripting: an anonymous block, run statement by statement.
'use strict';

const { SqlError, Reader, errors, compilation, literal } = require('./sql');
const { Translator } = require('./translate');
const { readType } = require('./types');
const { toWire } = require('./duck');

class Return {
  constructor(value) {
    this.value = value;
  }
}

// A variable's value as it stands in DuckDB's SQL, and as text.
const variable = (sql, text) => ({ sql, text });
const NULL = variable('NULL', null);

// The value of a cell of a result.
function fromCell(column, text) {
  if (text === null || text === undefined) return NULL;
  const cast = { fixed: `DECIMAL(38,${column.scale ?? 0})`, real: 'DOUBLE', boolean: 'BOOLEAN', variant: 'JSON', date: null }[column.type];
  const shown = column.type === 'boolean' ? (text === '1' ? 'true' : 'false') : text;
  return variable(cast ? `${literal(shown)}::${cast}` : literal(shown), shown);
}

// The exception that is caught, for SQLERRM and RAISE.
class Script {
  constructor(statements, context, text, tokens) {
    Object.assign(this, { statements, text, tokens });
    this.service = statements.service;
    this.session = context.session;
    this.vars = new Map();
    this.exceptions = new Map();
    this.setSpecial('SQLROWCOUNT', null);
    this.setSpecial('SQLID', null);
    this.caught = [];
    // nested blocks see the variables of the outer one
    this.context = { ...context, vars: this.vars, block: this, takeInto: true };
    this.outer = context.block;
    this.control = context.control ?? context.block?.control ?? {};
  }

  setSpecial(name, value) {
    this.vars.set(name, value === null ? NULL : variable(/^-?\d+$/.test(value) && name !== 'SQLSTATE' ? `${value}::DECIMAL(38,0)` : literal(value), value));
  }

  value(name) {
    const found = this.vars.get(name);
    if (!found) throw errors.identifier(name);
    return found.text;
  }

  // ------------------------------------------------------------ running

  async run() {
    const reader = new Reader(this.tokens, this.text);
    const end = this.blockEnd(reader);
    if (!end) reader.fail();
    let value = NULL;
    const mine = this.service.transaction === null;
    try {
      await this.block(reader);
    } catch (signal) {
      if (!(signal instanceof Return)) {
        await this.abandon(mine);
        throw this.uncaught(signal);
      }
      value = signal.value;
    }
    await this.requireClosed(mine);
    return { rowtype: [{ name: 'anonymous block', type: 'text', nullable: true, length: 16777216 }], rows: [[value.text]], typeId: 8192 };
  }

  // Checks the shape of the whole block before anything is done.
  blockEnd(reader) {
    const check = new Checker(this.tokens, this.text);
    check.block();
    check.end();
    return reader;
  }

  // What an error leaves open is rolled back.
  async abandon(mine) {
    if (mine && this.service.transaction) await this.service.endTransaction('ROLLBACK');
  }

  async requireClosed(mine) {
    if (!mine || !this.service.transaction) return;
    await this.service.endTransaction('ROLLBACK');
    throw new SqlError('090232', 'Modifying a transaction that has started at a different scope is not allowed.', '25000');
  }

  uncaught(error) {
    if (!(error instanceof SqlError)) return error;
    if (error.uncaught) return error;
    const place = error.place ?? { line: 1, col: 0 };
    const shown = new SqlError(error.code, `Uncaught exception of type '${error.exception ?? 'STATEMENT_ERROR'}' on line ${place.line} at position ${place.col} : ${error.message}`, error.sqlState);
    shown.uncaught = true;
    shown.duckSql = error.duckSql;
    return shown;
  }

  // [DECLARE ...] BEGIN ... [EXCEPTION ...] END
  async block(reader) {
    if (reader.accept('DECLARE')) while (!reader.isWord('BEGIN')) await this.declaration(reader);
    reader.expect('BEGIN');
    const handler = this.find(reader, 'EXCEPTION');
    try {
      await this.statementsUntil(reader, ['EXCEPTION', 'END']);
    } catch (error) {
      if (error instanceof Return || !(error instanceof SqlError) || handler === null || error.code === '000604') throw error;
      reader.i = handler;
      await this.handle(reader, error);
      return;
    }
    if (reader.isWord('EXCEPTION')) this.skipHandlers(reader);
    reader.expect('END');
  }

  // Where this block's EXCEPTION stands, or null.
  find(reader) {
    const check = new Checker(this.tokens, this.text, reader.i);
    check.statements(['EXCEPTION', 'END']);
    return check.isWord('EXCEPTION') ? check.i : null;
  }

  skipHandlers(reader) {
    const check = new Checker(this.tokens, this.text, reader.i);
    check.handlers();
    reader.i = check.i;
  }

  async handle(reader, error) {
    reader.expect('EXCEPTION');
    for (;;) {
      reader.expect('WHEN');
      const names = [reader.take('word').u];
      while (reader.accept('OR')) names.push(reader.take('word').u);
      reader.expect('THEN');
      if (names.includes('OTHER') || names.includes(error.exception ?? 'STATEMENT_ERROR')) break;
      const check = new Checker(this.tokens, this.text, reader.i);
      check.statements(['WHEN', 'END']);
      reader.i = check.i;
      if (reader.isWord('END')) throw error;
    }
    this.caught.push(error);
    this.setSpecial('SQLERRM', error.message);
    this.setSpecial('SQLCODE', String(Number(error.code)));
    this.setSpecial('SQLSTATE', error.sqlState);
    await this.statementsUntil(reader, ['WHEN', 'END']);
    this.caught.pop();
    const check = new Checker(this.tokens, this.text, reader.i);
    check.restOfHandlers();
    reader.i = check.i;
    reader.expect('END');
  }

  async statementsUntil(reader, stops) {
    while (!reader.isWord(...stops)) await this.statement(reader);
  }

  async statement(reader) {
    const place = reader.token;
    try {
      await this.oneStatement(reader);
    } catch (error) {
      if (error instanceof SqlError && !error.place) error.place = { line: place.line, col: place.col };
      throw error;
    }
  }

  async oneStatement(reader) {
    if (this.control.cancelled?.()) throw errors.cancelled();
    if (isBlock(reader)) {
      await this.block(reader);
      return reader.expectOp(';');
    }
    if (reader.accept('LET')) return this.let(reader);
    if (reader.isWord('IF')) return this.ifThen(reader);
    if (reader.accept('RETURN')) throw new Return(reader.isOp(';') ? NULL : await this.expression(reader));
    if (reader.accept('RAISE')) return this.raise(reader);
    if (reader.accept('NULL')) return reader.expectOp(';');
    if (reader.token.t === 'word' && reader.ahead().v === ':=') return this.assign(reader);
    return this.sql(reader);
  }

  // ------------------------------------------------------------ statements of a block

  async declaration(reader) {
    const name = reader.name();
    if (reader.accept('EXCEPTION')) {
      const details = reader.isOp('(') ? reader.inParens(() => exceptionDetails(reader)) : { code: '-20000', message: '' };
      this.exceptions.set(name, details);
      return reader.expectOp(';');
    }
    const type = reader.isWord('DEFAULT') || reader.isOp(':=') || reader.isOp(';') ? null : readType(reader);
    let value = NULL;
    if (reader.accept('DEFAULT') || reader.acceptOp(':=')) value = await this.expression(reader, type);
    this.vars.set(name, { ...value, type });
    return reader.expectOp(';');
  }

  async let(reader) {
    const name = reader.name();
    const type = reader.isOp(':=') || reader.isWord('DEFAULT') ? null : readType(reader);
    if (!reader.accept('DEFAULT')) reader.expectOp(':=');
    this.vars.set(name, { ...(await this.expression(reader, type)), type });
    reader.expectOp(';');
  }

  async assign(reader) {
    const token = reader.token;
    const name = reader.name();
    const known = this.vars.get(name);
    if (!known || ['SQLROWCOUNT', 'SQLERRM', 'SQLCODE', 'SQLSTATE', 'SQLID'].includes(name)) throw errors.identifier(name, token);
    reader.expectOp(':=');
    this.vars.set(name, { ...(await this.expression(reader, known.type)), type: known.type });
    reader.expectOp(';');
  }

  async ifThen(reader) {
    reader.expect('IF');
    let open = true;
    for (let first = true; ; first = false) {
      if (!first && !reader.accept('ELSEIF')) break;
      const check = new Checker(this.tokens, this.text, reader.i);
      check.condition();
      const met = open && (await this.condition(reader));
      reader.i = check.i;
      reader.expect('THEN');
      open = !(await this.branch(reader, met)) && open;
    }
    if (reader.accept('ELSE')) await this.branch(reader, open);
    reader.expect('END', 'IF');
    reader.expectOp(';');
  }

  async branch(reader, run) {
    const stops = ['ELSEIF', 'ELSE', 'END'];
    if (run) await this.statementsUntil(reader, stops);
    else {
      const check = new Checker(this.tokens, this.text, reader.i);
      check.statements(stops);
      reader.i = check.i;
    }
    return run;
  }

  async condition(reader) {
    reader.expectOp('(');
    const value = await this.expression(reader);
    reader.expectOp(')');
    return value.text === 'true';
  }

  raise(reader) {
    if (reader.isOp(';')) {
      if (!this.caught.length) reader.fail('RAISE outside of a handler');
      throw this.caught[this.caught.length - 1];
    }
    const name = reader.name();
    const details = this.exceptions.get(name);
    if (!details) throw errors.identifier(name);
    const error = new SqlError(details.code, details.message, 'P0001');
    error.exception = name;
    throw error;
  }

  // An expression, computed by DuckDB; the reader then stands after it.
  async expression(reader, type = null) {
    const context = { ...this.context, bare: true, used: {}, takeInto: false };
    const translator = new Translator(this.tokens, this.text, context, reader.i);
    let sql = translator.expr();
    reader.i = translator.i;
    if (type) sql = translator.cast(sql, type);
    const run = () => this.service.duck.query(`SELECT v, ${translator.asText('v')} AS t FROM (SELECT ${sql} AS v)`);
    let result;
    try {
      result = await this.service.isolated(run, false);
    } catch (error) {
      if (error instanceof SqlError) error.exception = 'EXPRESSION_ERROR';
      throw error;
    }
    const { rowtype, rows } = toWire(result);
    return fromCellWithText(rowtype[0], rows[0][0], rows[0][1]);
  }

  // SELECT ... INTO :a, :b
  assignInto(names, result) {
    if (result.rows.length !== 1) throw new SqlError('002211', `A SELECT INTO statement expects exactly 1 returned row, but got ${result.rows.length}.`, '21000');
    if (names.length !== result.rowtype.length)
      throw compilation('002212', `number of columns (${result.rowtype.length}) and of variables (${names.length}) differ`, '42601');
    names.forEach((name, n) => {
      if (!this.vars.has(name)) throw errors.identifier(name);
      const { type } = this.vars.get(name);
      this.vars.set(name, { ...fromCell(result.rowtype[n], result.rows[0][n]), type });
    });
  }

  // A SQL statement up to its semicolon.
  async sql(reader) {
    const start = reader.i;
    const check = new Checker(this.tokens, this.text, start);
    check.sql();
    reader.i = check.i;
    const text = this.text.slice(this.tokens[start].pos, this.tokens[check.i - 1].pos);
    await this.service.beforeInner(text, this.control);
    const context = { ...this.context, used: {}, into: undefined };
    const result = await this.statements.run(text, context);
    const queryId = this.service.newQueryId();
    this.statements.remember(this.session, queryId, result);
    this.setSpecial('SQLID', queryId);
    if (result.affected !== undefined) this.setSpecial('SQLROWCOUNT', String(result.affected));
    await this.service.afterInner(text, this.control);
  }
}

// Dates and the like are kept as text: they cast back.
function fromCellWithText(column, wireText, text) {
  if (wireText === null) return NULL;
  const known = ['fixed', 'real', 'boolean', 'variant'].includes(column.type);
  if (known) return { ...fromCell(column, wireText), text: column.type === 'boolean' ? (wireText === '1' ? 'true' : 'false') : text };
  return variable(literal(text), text);
}

function exceptionDetails(reader) {
  const minus = reader.acceptOp('-') ? '-' : '';
  const code = minus + reader.take('number').v;
  if (Number(code) > -20000 || Number(code) < -20999) throw compilation('001500', `Invalid exception code ${code}`, '42601');
  reader.expectOp(',');
  return { code, message: reader.take('string').v };
}

// BEGIN that is not BEGIN TRANSACTION, or DECLARE
const isBlock = (reader) => reader.isWord('DECLARE') || (reader.isWord('BEGIN') && !['TRANSACTION', 'WORK'].includes(reader.ahead().u));

// Walks over statements without doing them.
class Checker extends Reader {
  block() {
    if (this.accept('DECLARE')) while (!this.isWord('BEGIN')) this.sql();
    this.expect('BEGIN');
    this.statements(['EXCEPTION', 'END']);
    if (this.isWord('EXCEPTION')) this.handlers();
    this.expect('END');
  }

  handlers() {
    this.expect('EXCEPTION');
    if (!this.isWord('WHEN')) this.fail();
    this.restOfHandlers();
  }

  restOfHandlers() {
    while (this.accept('WHEN')) {
      this.take('word');
      while (this.accept('OR')) this.take('word');
      this.expect('THEN');
      this.statements(['WHEN', 'END']);
    }
  }

  statements(stops) {
    if (this.isWord(...stops)) this.fail('a block without statements');
    while (!this.isWord(...stops)) this.statement();
  }

  statement() {
    if (this.token.t === 'eof') this.fail();
    if (isBlock(this)) {
      this.block();
      this.expectOp(';');
    } else if (this.accept('IF')) {
      this.branches();
    } else if (this.isWord('FOR', 'WHILE', 'LOOP', 'REPEAT', 'CASE', 'OPEN', 'FETCH', 'CLOSE', 'BREAK', 'CONTINUE', 'CALL', 'AWAIT', 'ASYNC')) {
      this.fail('the fake has no such statement');
    } else {
      this.sql();
    }
  }

  branches() {
    do {
      this.condition();
      this.expect('THEN');
      this.statements(['ELSEIF', 'ELSE', 'END']);
    } while (this.accept('ELSEIF'));
    if (this.accept('ELSE')) this.statements(['END']);
    this.expect('END', 'IF');
    this.expectOp(';');
  }

  condition() {
    if (!this.isOp('(')) this.fail('a condition stands in parentheses');
    this.skipParens();
  }

  // Up to and past the semicolon.
  sql() {
    while (!this.isOp(';')) {
      if (this.token.t === 'eof') this.fail();
      if (this.isOp('(')) this.skipParens();
      else this.i++;
    }
    this.i++;
  }
}

module.exports = { Script };
