#!/usr/bin/env node
// Snowflake's service for tests, on 127.0.0.1 only: the protocol of its drivers
// (not the SQL API), the statements that our client sends, stages in an object store.
//
//   NODE_PATH=<dir>/node_modules node service.js --key public.pem --account ACC
//     --user USER --database DB --warehouse WH --role ROLE --log FILE
//     [--token-life S=3600] [--ping-pong MS=0] [--cred-life S=3600]
//     [--schemas A,B=PUBLIC] [--page ROWS=10000] [--store S3|AZURE|GCS|PRESIGNED=S3]
//
// --store: the store that stages are at (places.js); PRESIGNED is Google's by an URL
// for each file instead of a token.
//
// It prints "port N" when it is ready, and ends with its parent.  It is strict:
// a statement, a clause or an option that is not known is a syntax error.
// Written by the drivers' sources and the documents, not by our client.
//
// FAULTS: POST /admin/fault {"action", "match", "skip", "count", ...}; match is a
// regular expression on "<METHOD> <path> <statement>" (of an upload, on
// "PUT /bucket/key").  The answer is the fault's number.
//   fail (status, body)              HTTP status, not done
//   fail (code, message)             success:false with this code, not done
//   sql_error (code, message, sqlState)  the same as a statement's error
//   drop, drop_before                done or not; the connection closed, no answer
//   delay (ms), hold, hold_after     before, until /admin/release, the same after it
//   garbage                          done, answered with what is no JSON
//   cut                              of an upload: the connection breaks in the body
//   fail_at (fail_at: {match, code, message, sqlState, after})  a statement in a block fails
//   hold_at (at)                     a statement in a block waits for /admin/release;
//                                    outside of a transaction others run meanwhile
// Also GET /admin/hits?id=, clear, release, held, running, sessions, expire,
// expire_master, expire_creds, down, up, objects; POST /admin/sql {sql, role},
// /admin/set {warehouse_exists, can_create_table, can_create_schema, owner_of,
// resume_privilege, give_creds, deny, roles}, /admin/put?path=bucket/key (a file for a stage),
// /admin/own_key?location=bucket/prefix (a key for a stage of the user's own).
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const os = require('os');
const path = require('path');
const zlib = require('zlib');
const { parseArgs } = require('util');
const { SqlError, errors } = require('./sql');
const { Duck } = require('./duck');
const { Catalog } = require('./catalog');
const { Statements } = require('./statements');
const { Stages } = require('./stages');
const { KINDS } = require('./places');
const { Store, Proxy, readAll, drop } = require('./stage');
const { Faults, sleep } = require('./faults');
const { Sessions, Session, Refused } = require('./sessions');

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

class Service extends Faults {
  constructor(options) {
    super();
    this.options = options;
    this.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'fake-snowflake-'));
    this.key = crypto.createPublicKey(fs.readFileSync(options.key));
    this.logFile = fs.openSync(options.log, 'a');
    this.counter = 0;
    this.guids = new Set();
    this.queries = new Map();
    this.transaction = null;
    this.turn = Promise.resolve();
    this.roles = new Set([options.role, 'ACCOUNTADMIN', 'PUBLIC']);
    this.settings = { warehouse_exists: true, can_create_table: true, can_create_schema: true, resume_privilege: true, give_creds: true, deny: {} };
    this.running = 0;
  }

  async start() {
    this.duck = await Duck.create();
    this.catalog = new Catalog(this.duck, this.options.database);
    for (const schema of this.options.schemas) this.catalog.addSchema(this.options.database, schema, this.options.role);
    this.store = new Store();
    await this.store.start(this.directory);
    this.stages = new Stages(this);
    this.proxy = new Proxy(this, this.store);
    await this.proxy.start();
    this.sessions = new Sessions(this);
    this.statements = new Statements(this);
    return this.listen();
  }

  listen() {
    this.sockets = new Set();
    this.server = http.createServer((request, response) => this.handle(request, response));
    this.server.keepAliveTimeout = 120000;
    this.server.requestTimeout = 0;
    for (const server of [this.server, this.proxy.server]) {
      server.on('connection', (socket) => {
        this.sockets.add(socket);
        socket.on('close', () => this.sockets.delete(socket));
      });
    }
    return new Promise((resolve) => this.server.listen(0, '127.0.0.1', () => resolve(this.server.address().port)));
  }

  // Ends at once, whatever DuckDB is doing (an ordinary exit waits for it).
  end() {
    fs.rmSync(this.directory, { recursive: true, force: true });
    process.kill(process.pid, 'SIGKILL');
  }

  log(entry) {
    fs.writeSync(this.logFile, JSON.stringify({ at: Date.now(), ...entry }) + '\n');
  }

  next() {
    return ++this.counter;
  }

  newQueryId() {
    return `01b${crypto.randomUUID().slice(3)}`;
  }

  warehouseExists(name) {
    return this.settings.warehouse_exists && name === this.options.warehouse;
  }

  // ------------------------------------------------------------ DuckDB's transaction

  // One after the other, whatever the session.
  async alone(work) {
    await this.enter();
    try {
      return await work();
    } finally {
      this.leave();
    }
  }

  async enter() {
    const before = this.turn;
    let leave;
    this.turn = new Promise((resolve) => (leave = resolve));
    await before;
    this.leave = leave;
  }

  // What works alone lets others have their turn meanwhile.
  async aside(wait) {
    this.leave();
    await wait();
    await this.enter();
  }

  // A statement: all of it or nothing.  In an open transaction DuckDB would give
  // up everything with an error, Snowflake only the statement: it is done again.
  async isolated(work, changes = true) {
    const { transaction } = this;
    if (!transaction) return changes ? this.inTransaction(work) : work();
    try {
      const result = await work();
      if (changes) transaction.done.push(work);
      return result;
    } catch (error) {
      await this.duck.run('ROLLBACK');
      await this.duck.run('BEGIN TRANSACTION');
      for (const again of transaction.done) await again();
      throw error;
    }
  }

  async inTransaction(work) {
    await this.duck.run('BEGIN TRANSACTION');
    try {
      const result = await work();
      await this.duck.run('COMMIT');
      return result;
    } catch (error) {
      await this.duck.run('ROLLBACK');
      throw error;
    }
  }

  async begin() {
    if (this.transaction) return;
    await this.duck.run('BEGIN TRANSACTION');
    this.transaction = { done: [], undo: [] };
  }

  async endTransaction(what) {
    const { transaction } = this;
    if (!transaction) return;
    this.transaction = null;
    if (what === 'ROLLBACK') for (const undo of transaction.undo.reverse()) undo();
    await this.duck.run(what);
  }

  // DDL commits what is open.
  async commitBefore(sql) {
    if (!this.transaction) return;
    this.log({ ddl_commits: sql });
    await this.endTransaction('COMMIT');
  }

  // Faults at a statement of a block.
  async beforeInner(text, control) {
    const what = control.what ?? '';
    if (this.fault(what, 'hold_at', text)) {
      const wait = () => this.hold(control.cancelled);
      await (this.transaction ? wait() : this.aside(wait));
    }
    if (control.cancelled?.()) throw errors.cancelled();
    const fault = this.fault(what, 'fail_at', text);
    if (fault) throw injected(fault.fail_at);
  }

  async afterInner(text, control) {
    const fault = this.fault(control.what ?? '', 'fail_after', text);
    if (fault) throw injected(fault.fail_at);
  }

  // ------------------------------------------------------------ HTTP

  async handle(request, response) {
    const url = new URL(request.url, 'http://127.0.0.1');
    const what = `${request.method} ${url.pathname}`;
    try {
      const raw = await readAll(request);
      if (url.pathname.startsWith('/admin/')) return await this.admin(url, raw, response);
      if (this.down) return drop(request, response);
      const body = parseBody(request, raw);
      await this.api(what, url, body, request, response);
    } catch (error) {
      if (error instanceof HttpError) return send(response, error.status, error.body);
      this.log({ what, trouble: String(error.stack) });
      if (!response.headersSent && !response.destroyed) send(response, 500, { trouble: String(error) });
    }
    return undefined;
  }

  async api(what, url, body, request, response) {
    const full = body?.sqlText === undefined || !url.pathname.endsWith('query-request') ? what : `${what} ${body.sqlText}`;
    const entry = { what, sql: body?.sqlText, requestId: url.searchParams.get('requestId'), guid: url.searchParams.get('request_guid') };
    const refuse = this.before(full);
    if (refuse === 'drop') {
      this.log({ ...entry, dropped: true });
      return drop(request, response);
    }
    let answer;
    try {
      answer = refuse ?? (await this.route(full, url, body, request));
    } catch (error) {
      if (error instanceof HttpError) {
        this.log({ ...entry, status: error.status });
        throw error;
      }
      if (!(error instanceof Refused)) throw error;
      answer = { success: false, code: error.code, message: error.message, data: null };
    }
    this.log({ ...entry, code: answer.code ?? null, status: answer.status, message: answer.success === false ? answer.message : undefined });
    if (this.down || this.fault(full, 'drop')) return drop(request, response);
    if (this.fault(full, 'garbage')) return send(response, 200, '<html>a page of a proxy</html>');
    if (answer.status) return send(response, answer.status, answer.body);
    return send(response, 200, answer);
  }

  // What a fault answers before anything is done, 'drop', or undefined.
  before(what) {
    if (this.fault(what, 'drop_before')) return 'drop';
    const fail = this.fault(what, 'fail');
    if (!fail) return undefined;
    if (fail.code) return { success: false, code: String(fail.code), message: fail.message ?? 'injected', data: null };
    return { status: Number(fail.status ?? 503), body: fail.body ?? fail.message ?? 'Service Unavailable' };
  }

  async route(what, url, body, request) {
    const { pathname, searchParams } = url;
    const header = request.headers.authorization;
    if (request.method === 'GET') {
      const id = /^\/queries\/([^/]+)\/result$/.exec(pathname)?.[1];
      if (!id) throw new HttpError(404, 'Not Found');
      return this.getResult(id, header, what);
    }
    if (request.method !== 'POST') throw new HttpError(404, 'Not Found');
    if (pathname !== '/queries/v1/query-request') await this.pauseBefore(what);
    switch (pathname) {
      case '/session/v1/login-request': return this.after(what, this.login(body, searchParams));
      case '/session/token-request': return this.after(what, this.renew(header, body));
      case '/session/heartbeat':
        this.sessions.authorize(header);
        return { success: true, code: null, message: null, data: null };
      case '/session':
        if (searchParams.get('delete') !== 'true') throw new HttpError(404, 'Not Found');
        this.sessions.end(this.sessions.authorize(header));
        return { success: true, code: null, message: null, data: null };
      case '/queries/v1/query-request': return this.queryRequest(what, searchParams, body, header);
      case '/queries/v1/abort-request': return this.abort(body, this.sessions.authorize(header));
      default: throw new HttpError(404, 'Not Found');
    }
  }

  async after(what, answer) {
    await this.pauseAfter(what);
    return answer;
  }

  // ------------------------------------------------------------ sessions

  login(body, query) {
    const data = body?.data ?? {};
    if (String(data.ACCOUNT_NAME).toUpperCase().split('.')[0] !== this.options.account.toUpperCase().split('.')[0])
      throw new HttpError(404, '<html><head><title>404 Not Found</title></head><body>404</body></html>');
    const { token, masterToken, session } = this.sessions.login(data, query);
    return { success: true, code: null, message: null, data: {
      token, masterToken, validityInSeconds: this.options.tokenLife, masterValidityInSeconds: 14400, displayUserName: session.user,
      serverVersion: '9.31.0', firstLogin: false, sessionId: Number(session.id), parameters: [],
      sessionInfo: { databaseName: session.database, schemaName: session.schema, warehouseName: session.warehouse, roleName: session.role } } };
  }

  renew(header, body) {
    const { token, masterToken } = this.sessions.renew(header, body ?? {});
    return { success: true, code: null, message: null,
      data: { sessionToken: token, masterToken, validityInSecondsST: this.options.tokenLife, validityInSecondsMT: 14400 } };
  }

  // ------------------------------------------------------------ statements

  async queryRequest(what, query, body, header) {
    const [requestId, guid] = [query.get('requestId'), query.get('request_guid')];
    if (!UUID.test(requestId ?? '') || !UUID.test(guid ?? '')) throw new HttpError(400, 'requestId and request_guid are wanted, as UUIDs');
    if (this.guids.has(guid)) throw new HttpError(400, 'this request_guid has been seen');
    this.guids.add(guid);
    const session = this.sessions.authorize(header);
    if (typeof body?.sqlText !== 'string' || body.asyncExec || body.bindings) throw new HttpError(400, 'sqlText is wanted, asyncExec and bindings are not known');
    let record = session.requests.get(requestId);
    if (record) this.log({ repeated: requestId, same: record.sql === body.sqlText });
    else record = this.startStatement(what, requestId, session, body.sqlText);
    return this.wait(record, '333333');
  }

  startStatement(what, requestId, session, sql) {
    const record = { what, sql, session, requestId, queryId: this.newQueryId(), answer: null, cancelled: false };
    session.requests.set(requestId, record);
    this.queries.set(record.queryId, record);
    this.running++;
    record.promise = this.runStatement(record).then((answer) => {
      record.answer = answer;
      this.running--;
    });
    return record;
  }

  async runStatement(record) {
    const { what, session, sql, queryId } = record;
    const cancelled = () => record.cancelled;
    const control = { what, cancelled };
    try {
      const fault = this.fault(what, 'sql_error');
      if (fault) throw injected(fault);
      await this.pauseBefore(what, cancelled);
      const result = await this.alone(() => {
        if (record.cancelled) throw errors.cancelled();
        return this.statements.execute(sql, session, queryId, control);
      });
      await this.pauseAfter(what);
      return this.answerOf(result, session, queryId);
    } catch (error) {
      return this.answerError(error, queryId, session);
    }
  }

  answerOf(result, session, queryId) {
    const common = { queryId, sqlState: '00000', finalDatabaseName: session.database, finalSchemaName: session.schema,
      finalWarehouseName: session.warehouse, finalRoleName: session.role, statementTypeId: result.typeId };
    if (result.put) return { success: true, code: null, message: null, data: { ...common, ...result.put } };
    const { page } = this.options;
    const chunks = [];
    for (let from = page; from < result.rows.length; from += page)
      chunks.push({ url: `http://127.0.0.1:1/chunk/${from}`, rowCount: Math.min(page, result.rows.length - from), uncompressedSize: 0, compressedSize: 0 });
    const rowset = result.rows.slice(0, page);
    return { success: true, code: null, message: null, data: {
      ...common, parameters: [], rowtype: result.rowtype, rowset, total: result.rows.length, returned: result.rows.length, queryResultFormat: 'json',
      ...(chunks.length ? { chunks, chunkHeaders: {}, qrmk: null } : {}), arrayBindSupported: false, version: 1 } };
  }

  answerError(error, queryId, session) {
    let shown = error;
    if (!(error instanceof SqlError)) shown = new SqlError('300002', `the fake itself: ${error.stack}`, 'XX000');
    if (shown.code === '300002') this.log({ trouble: shown.message, duckSql: shown.duckSql });
    return { success: false, code: shown.code, message: shown.message, headers: null, data: {
      internalError: false, errorCode: shown.code, age: 0, sqlState: shown.sqlState, queryId, line: -1, pos: -1, type: 'COMPILATION', finalRoleName: session?.role } };
  }

  // The answer, or that it is not there yet.
  async wait(record, code) {
    const { pingPong } = this.options;
    if (!pingPong) await record.promise;
    else await Promise.race([record.promise, sleep(pingPong)]);
    if (record.answer) return record.answer;
    return { success: true, code, message: 'Query execution in progress',
      data: { queryId: record.queryId, getResultUrl: `/queries/${record.queryId}/result`, queryAbortsAfterSecs: 300, progressDesc: null } };
  }

  getResult(id, header, what) {
    const session = this.sessions.authorize(header);
    const record = this.queries.get(id);
    if (!record || record.session !== session) throw new Refused('000709', `Statement ${id} not found`);
    return this.pauseBefore(what).then(() => this.wait(record, '333334'));
  }

  abort(body, session) {
    const record = session.requests.get(body?.requestId);
    if (!record || record.answer) return { success: false, code: '000605', message: 'Identified SQL statement is not currently executing.', data: null };
    record.cancelled = true;
    return { success: true, code: null, message: null, data: null };
  }

  // ------------------------------------------------------------ steering

  async admin(url, raw, response) {
    const what = url.pathname.slice('/admin/'.length);
    const body = raw.length && what !== 'put' ? JSON.parse(raw.toString()) : {};
    const result = await this.steer(what, url.searchParams, body, raw, response.socket);
    if (result === undefined) return send(response, 404, `no /admin/${what}`);
    return send(response, 200, typeof result === 'object' ? result : String(result));
  }

  steer(what, query, body, raw, own) {
    switch (what) {
      case 'fault': return this.add(body);
      case 'hits': return this.hits(Number(query.get('id')));
      case 'clear': return this.clear();
      case 'release': return this.release();
      case 'held': return this.held;
      case 'running': return this.running;
      case 'sessions': return this.sessions.all.size;
      case 'expire': return this.sessions.expire(this.sessions.tokens);
      case 'expire_master': return this.sessions.expire(this.sessions.masters);
      case 'expire_creds': return this.proxy.place.expireAll();
      case 'down': return this.setDown(true, own);
      case 'up': return this.setDown(false);
      case 'set': return this.set(body);
      case 'sql': return this.adminSql(body);
      case 'objects': return { objects: [...this.catalog.objects.values()].map((o) => ({ ...o, loads: o.loads?.size })) };
      case 'own_key': return this.proxy.place.ownKey(query.get('location'));
      case 'put': return this.store.put(...splitKey(query.get('path')), raw).then((answer) => answer.status);
      default: return undefined;
    }
  }

  // Every connection is closed but the one that asks for it.
  setDown(down, own) {
    this.down = down;
    if (down) for (const socket of this.sockets) if (socket !== own) socket.destroy();
    return 0;
  }

  set(values) {
    const { owner_of: owners = {}, roles = [], ...settings } = values;
    for (const name of Object.keys(settings)) if (!(name in this.settings)) throw new Error(`no setting ${name}`);
    Object.assign(this.settings, settings);
    for (const role of roles) this.roles.add(role);
    for (const [name, role] of Object.entries(owners)) {
      const object = [...this.catalog.objects.values()].find((o) => `${o.database}.${o.schema}.${o.name}` === name);
      if (!object) throw new Error(`no table ${name}`);
      object.owner = role;
    }
    return 0;
  }

  // A statement as an administrator; what it makes belongs to the role.
  async adminSql({ sql, role }) {
    const parameters = new Map([['TIMEZONE', 'UTC'], ['TIME_OUTPUT_FORMAT', 'HH24:MI:SS.FF6'], ['TIMESTAMP_NTZ_OUTPUT_FORMAT', 'YYYY-MM-DD HH24:MI:SS.FF6'],
      ['TIMESTAMP_TZ_OUTPUT_FORMAT', 'YYYY-MM-DD HH24:MI:SS.FF6TZH']]);
    this.adminSession ??= new Session({ id: '1', admin: true, user: 'ADMIN', account: this.options.account, warehouse: this.options.warehouse,
      database: this.options.database, schema: 'PUBLIC', parameters });
    this.adminSession.role = role ?? this.options.role;
    try {
      const result = await this.alone(() => this.statements.execute(sql, this.adminSession, this.newQueryId()));
      return { columns: result.rowtype.map((c) => c.name), rows: result.rows, ...(result.put ? { put: result.put } : {}) };
    } catch (error) {
      const { code, message } = this.answerError(error, '');
      return { error: message, code };
    }
  }
}

class HttpError extends Error {
  constructor(status, body) {
    super(body);
    Object.assign(this, { status, body });
  }
}

const injected = (fault) => new SqlError(String(fault.code ?? '000630'), fault.message ?? 'injected', fault.sqlState ?? '57014');

function splitKey(text) {
  const at = text.indexOf('/');
  return [text.slice(0, at), text.slice(at + 1)];
}

function parseBody(request, raw) {
  const data = /gzip/.test(request.headers['content-encoding'] ?? '') ? zlib.gunzipSync(raw) : raw;
  if (data.length === 0) return null;
  if (!/^application\/json/.test(request.headers['content-type'] ?? '')) throw new HttpError(415, 'Content-Type is not application/json');
  try {
    return JSON.parse(data.toString());
  } catch {
    throw new HttpError(400, 'the body is not JSON');
  }
}

function send(response, status, body) {
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  response.writeHead(status, { 'content-type': typeof body === 'string' ? 'text/html' : 'application/json', 'content-length': Buffer.byteLength(text) });
  response.end(text);
}

function readOptions() {
  const { values } = parseArgs({ options: {
    key: { type: 'string' }, account: { type: 'string' }, user: { type: 'string' }, database: { type: 'string' }, warehouse: { type: 'string' },
    role: { type: 'string' }, log: { type: 'string' }, 'token-life': { type: 'string', default: '3600' }, 'ping-pong': { type: 'string', default: '0' },
    'cred-life': { type: 'string', default: '3600' }, schemas: { type: 'string', default: 'PUBLIC' }, page: { type: 'string', default: '10000' },
    store: { type: 'string', default: 'S3' } } });
  for (const name of ['key', 'account', 'user', 'database', 'warehouse', 'role', 'log']) if (!values[name]) throw new Error(`--${name} is wanted`);
  if (!(values.store in KINDS)) throw new Error(`no store ${values.store}`);
  return { ...values, tokenLife: Number(values['token-life']), pingPong: Number(values['ping-pong']), credLife: Number(values['cred-life']),
    page: Number(values.page), schemas: values.schemas.split(',') };
}

async function main() {
  const parent = process.ppid;
  const service = new Service(readOptions());
  setInterval(() => process.ppid !== parent && service.end(), 500);
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => service.end());
  const port = await service.start();
  process.stdout.write(`port ${port}\n`);
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
