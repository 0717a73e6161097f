#!/usr/bin/env node
// Tests the Snowflake service for tests itself: NODE_PATH=<dir>/node_modules node selftest.js
// It prints TAP and leaves nothing behind.
'use strict';

const assert = require('assert');
const { spawn, execFileSync } = require('child_process');
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const os = require('os');
const path = require('path');
const zlib = require('zlib');
const { sha256, hmac } = require('./stage');

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'snowflake-selftest-'));
const file = (name) => path.join(directory, name);
const T = '"DB"."PUBLIC"';

// ---------------------------------------------------------------- the service and a client

function makeKey() {
  execFileSync('openssl', ['genrsa', '-out', file('key.pem'), '2048'], { stdio: 'ignore' });
  execFileSync('openssl', ['rsa', '-in', file('key.pem'), '-pubout', '-out', file('pub.pem')], { stdio: 'ignore' });
}

function startService(...more) {
  const child = spawn(process.execPath, [path.join(__dirname, 'service.js'), '--key', file('pub.pem'), '--account', 'acc.eu-west', '--user', 'bob',
    '--database', 'DB', '--warehouse', 'WH', '--role', 'LOADER', '--log', file('log'), ...more], { stdio: ['ignore', 'pipe', 'inherit'] });
  return new Promise((resolve, reject) => {
    child.stdout.once('data', (text) => resolve({ child, port: Number(/port (\d+)/.exec(text)[1]) }));
    child.once('exit', (code) => reject(new Error(`the service ends: ${code}`)));
  });
}

function request(port, method, url, { body, headers = {} } = {}) {
  return new Promise((resolve, reject) => {
    const outgoing = http.request({ host: '127.0.0.1', port, method, path: url, headers, agent: false }, (response) => {
      const parts = [];
      response.on('data', (part) => parts.push(part));
      response.on('end', () => resolve({ status: response.statusCode, text: Buffer.concat(parts).toString() }));
      response.on('error', reject);
    });
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

class Client {
  constructor(port) {
    this.port = port;
  }

  jwt(changes = {}) {
    const der = crypto.createPublicKey(fs.readFileSync(file('pub.pem'))).export({ type: 'spki', format: 'der' });
    const now = Math.floor(Date.now() / 1000);
    const claims = { iss: `ACC.BOB.SHA256:${sha256(der, 'base64')}`, sub: 'ACC.BOB', iat: now, exp: now + 60, ...changes };
    const text = [{ alg: 'RS256', typ: 'JWT' }, claims].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.');
    return `${text}.${crypto.sign('RSA-SHA256', Buffer.from(text), fs.readFileSync(file('key.pem'))).toString('base64url')}`;
  }

  async post(url, body, token, zipped = false) {
    const text = Buffer.from(JSON.stringify(body));
    const headers = { 'content-type': 'application/json', ...(token ? { authorization: `Snowflake Token="${token}"` } : {}), ...(zipped ? { 'content-encoding': 'gzip' } : {}) };
    const answer = await request(this.port, 'POST', url, { body: zipped ? zlib.gzipSync(text) : text, headers });
    try {
      return { status: answer.status, ...JSON.parse(answer.text) };
    } catch {
      return answer;
    }
  }

  async login({ claims, account = 'acc', user = 'bob', query = '&warehouse=WH&databaseName=DB&schemaName=PUBLIC', parameters = { TIMEZONE: 'UTC' } } = {}) {
    const answer = await this.post(`/session/v1/login-request?requestId=${crypto.randomUUID()}&request_guid=${crypto.randomUUID()}${query}`, { data: {
      ACCOUNT_NAME: account, LOGIN_NAME: user, AUTHENTICATOR: 'SNOWFLAKE_JWT', TOKEN: this.jwt(claims), CLIENT_APP_ID: 'selftest', SESSION_PARAMETERS: parameters } });
    if (answer.success) Object.assign(this, { token: answer.data.token, master: answer.data.masterToken });
    return answer;
  }

  query(sqlText, { requestId = crypto.randomUUID(), guid = crypto.randomUUID(), zipped = false } = {}) {
    return this.post(`/queries/v1/query-request?requestId=${requestId}&request_guid=${guid}`, { sqlText, sequenceId: 1, asyncExec: false }, this.token, zipped);
  }

  // The rows, or an error that has the service's code.
  async rows(sql) {
    const answer = await this.query(sql);
    if (!answer.success) throw Object.assign(new Error(`${answer.code} ${answer.message}`), { code: answer.code, state: answer.data?.sqlState });
    return answer.data.rowset;
  }

  async fails(code, sql) {
    const answer = await this.query(sql);
    assert.strictEqual(answer.code, code, `${sql} -> ${answer.code} ${answer.message}`);
    return answer;
  }

  async admin(what, body) {
    const answer = await request(this.port, body ? 'POST' : 'GET', `/admin/${what}`, body ? { body: JSON.stringify(body) } : {});
    return answer.text.startsWith('{') ? JSON.parse(answer.text) : answer.text;
  }

  put(stage, name = 'x') {
    return this.query(`PUT 'file:///tmp/${name}' @${stage} AUTO_COMPRESS=FALSE SOURCE_COMPRESSION=GZIP OVERWRITE=TRUE PARALLEL=1`).then((answer) => {
      assert.ok(answer.success, answer.message);
      return answer.data.stageInfo;
    });
  }
}

// An upload with a signature made by hand; changes spoil it.
function upload(info, name, body, { headers: more = {}, secret = info.creds.AWS_SECRET_KEY } = {}) {
  const port = Number(new URL(info.endPoint).port);
  const url = `/${info.location}${name}`.split('/').map(encodeURIComponent).join('/');
  const stamp = new Date().toISOString().replace(/[-:]|\.\d+/g, '');
  const headers = { host: `127.0.0.1:${port}`, 'x-amz-content-sha256': 'UNSIGNED-PAYLOAD', 'x-amz-date': stamp, 'x-amz-meta-sfc-digest': sha256(body, 'base64'),
    'x-amz-security-token': info.creds.AWS_TOKEN, ...more };
  const names = Object.keys(headers).sort();
  const canonical = ['PUT', url, '', ...names.map((n) => `${n}:${headers[n]}`), '', names.join(';'), headers['x-amz-content-sha256']].join('\n');
  const scope = [stamp.slice(0, 8), info.region, 's3', 'aws4_request'];
  const key = scope.reduce(hmac, 'AWS4' + secret);
  const signature = hmac(key, ['AWS4-HMAC-SHA256', stamp, scope.join('/'), sha256(canonical)].join('\n')).toString('hex');
  headers.authorization = `AWS4-HMAC-SHA256 Credential=${info.creds.AWS_KEY_ID}/${scope.join('/')}, SignedHeaders=${names.join(';')}, Signature=${signature}`;
  return request(port, 'PUT', url, { body, headers: { ...headers, 'content-length': body.length } });
}

const FORMAT = `FILE_FORMAT = (TYPE = CSV COMPRESSION = GZIP FIELD_DELIMITER = ',' RECORD_DELIMITER = '\\n' FIELD_OPTIONALLY_ENCLOSED_BY = '"' ESCAPE = NONE
  ESCAPE_UNENCLOSED_FIELD = NONE NULL_IF = () EMPTY_FIELD_AS_NULL = TRUE BINARY_FORMAT = HEX) ON_ERROR = ABORT_STATEMENT`;

async function stageFiles(client, files) {
  await client.rows(`CREATE TEMPORARY STAGE IF NOT EXISTS ${T}."st" ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')`);
  const info = await client.put(`${T}."st"/p`);
  for (const [name, text] of Object.entries(files)) {
    const answer = await upload(info, name, zlib.gzipSync(text));
    assert.strictEqual(answer.status, 200, answer.text);
  }
  return info;
}

// ---------------------------------------------------------------- tests

const tests = {
  async login(c) {
    assert.strictEqual((await c.login({ claims: { iss: 'X' } })).code, '390144');
    assert.strictEqual((await c.login({ claims: { exp: 1 } })).code, '390144');
    assert.strictEqual((await c.login({ claims: { exp: Math.floor(Date.now() / 1000) + 4000 } })).code, '390144');
    assert.strictEqual((await c.login({ user: 'eve' })).code, '390100');
    assert.strictEqual((await c.login({ account: 'other' })).status, 404);
    assert.strictEqual((await c.login({ query: '&roleName=NOBODY' })).code, '390189');
    const none = await c.login({ query: '&warehouse=NO&databaseName=NO' });
    assert.deepStrictEqual(none.data.sessionInfo, { databaseName: null, schemaName: null, warehouseName: null, roleName: 'LOADER' });
    await c.fails('000606', `SELECT COUNT(*) FROM "DB".INFORMATION_SCHEMA.TABLES`);
    assert.deepStrictEqual((await c.login()).data.sessionInfo, { databaseName: 'DB', schemaName: 'PUBLIC', warehouseName: 'WH', roleName: 'LOADER' });
    assert.deepStrictEqual(await c.rows('SELECT CURRENT_ROLE(), CURRENT_VERSION()'), [['LOADER', '9.31.0']]);
  },

  async protocol(c) {
    assert.strictEqual((await c.post('/queries/v1/query-request?requestId=x', { sqlText: 'SELECT 1' }, c.token)).status, 400);
    const guid = crypto.randomUUID();
    assert.deepStrictEqual((await c.query('SELECT 1', { guid, zipped: true })).data.rowset, [['1']]);
    assert.strictEqual((await c.query('SELECT 1', { guid })).status, 400);
    await c.rows(`CREATE TABLE ${T}."again" (a INTEGER)`);
    const requestId = crypto.randomUUID();
    const [one, two] = [await c.query(`INSERT INTO ${T}."again" VALUES (1)`, { requestId }), await c.query(`INSERT INTO ${T}."again" VALUES (1)`, { requestId })];
    assert.deepStrictEqual(one.data.rowset, [['1']]);
    assert.strictEqual(one.data.queryId, two.data.queryId);
    assert.deepStrictEqual(await c.rows(`SELECT COUNT(*) FROM ${T}."again"`), [['1']]);
    await c.admin('expire');
    assert.strictEqual((await c.query('SELECT 1')).code, '390112');
    const renewed = await c.post('/session/token-request', { oldSessionToken: c.token, requestType: 'RENEW' }, c.master);
    c.token = renewed.data.sessionToken;
    c.master = renewed.data.masterToken;
    assert.deepStrictEqual(await c.rows('SELECT 1'), [['1']]);
    assert.strictEqual((await c.post('/session/token-request', {}, 'bad')).code, '390114');
    assert.strictEqual((await new Client(c.port).query('SELECT 1')).code, '390104');
  },

  async ddl(c) {
    await c.rows(`CREATE SCHEMA IF NOT EXISTS "DB"."s2" COMMENT='x'`);
    await c.rows(`CREATE TABLE ${T}."t1" ("id" NUMBER(38,0) NOT NULL, "name" VARCHAR(5) DEFAULT 'x' COMMENT 'a name', "v" VARIANT, PRIMARY KEY ("id")) CLUSTER BY ("id") COMMENT = 'one'`);
    await c.fails('002002', `CREATE TABLE ${T}."t1" (a INTEGER)`);
    const [row] = await c.rows(`SHOW TABLES LIKE 't1' IN SCHEMA ${T}`);
    assert.deepStrictEqual([row[1], row[4], row[5], row[6], row[12]], ['t1', 'TABLE', 'one', 'LINEAR("id")', 'OFF']);
    assert.deepStrictEqual(await c.rows(`DESCRIBE TABLE ${T}."t1"`), [
      ['id', 'NUMBER(38,0)', 'COLUMN', 'N', null, 'Y', 'N', null, null, null, null],
      ['name', 'VARCHAR(5)', 'COLUMN', 'Y', "'x'", 'N', 'N', null, null, 'a name', null],
      ['v', 'VARIANT', 'COLUMN', 'Y', null, 'N', 'N', null, null, null, null]]);
    await c.rows(`GRANT SELECT ON TABLE ${T}."t1" TO ROLE READER`);
    await c.rows(`CREATE TRANSIENT TABLE ${T}."t2" LIKE ${T}."t1" COPY GRANTS`);
    assert.deepStrictEqual((await c.rows(`SHOW GRANTS ON TABLE ${T}."t2"`)).map((r) => r[1]), ['OWNERSHIP', 'SELECT']);
    await c.rows(`INSERT INTO ${T}."t2" ("id") VALUES (1), (2)`);
    await c.rows(`ALTER TABLE ${T}."t2" SWAP WITH ${T}."t1"`);
    assert.deepStrictEqual(await c.rows(`SELECT "id"::VARCHAR, "name" FROM ${T}."t1" ORDER BY 1`), [['1', 'x'], ['2', 'x']]);
    assert.deepStrictEqual((await c.rows(`SHOW TABLES LIKE 't1' IN SCHEMA ${T}`))[0][4], 'TRANSIENT');
    await c.fails('000904', `SELECT ID FROM ${T}."t1"`);
    await c.fails('002003', `SELECT 1 FROM ${T}."T1"`);
    await c.fails('002003', 'SELECT 1 FROM t1');
    await c.fails('002043', `DESCRIBE TABLE ${T}."none"`);
    await c.fails('002043', 'SHOW TABLES IN SCHEMA "DB"."none"');
    await c.rows(`ALTER TABLE ${T}."t1" ADD COLUMN IF NOT EXISTS "n" FLOAT`);
    await c.fails('002264', `ALTER TABLE ${T}."t1" DROP COLUMN "id"`);
    await c.rows(`ALTER TABLE ${T}."t1" DROP CLUSTERING KEY`);
    await c.rows(`ALTER TABLE ${T}."t1" DROP PRIMARY KEY`);
    await c.rows(`ALTER TABLE ${T}."t1" ALTER COLUMN "id" DROP NOT NULL`);
    await c.rows(`ALTER TABLE ${T}."t1" DROP COLUMN "id"`);
    await c.rows(`ALTER TABLE ${T}."t1" RENAME TO "DB"."s2"."t3"`);
    await c.rows(`COMMENT ON TABLE "DB"."s2"."t3" IS 'it''s'`);
    assert.strictEqual((await c.rows(`SHOW OBJECTS LIKE 't3' IN SCHEMA "DB"."s2"`))[0][5], "it's");
    await c.rows(`CREATE VIEW ${T}."vw" AS SELECT "n", COUNT(*) AS "c" FROM "DB"."s2"."t3" GROUP BY "n"`);
    assert.deepStrictEqual(await c.rows(`SELECT "c" FROM ${T}."vw"`), [['2']]);
    await c.rows(`DROP VIEW ${T}."vw"`);
    await c.rows('DROP TABLE IF EXISTS "DB"."s2"."t3"');
    await c.rows('DROP TABLE IF EXISTS "DB"."s2"."t3"');
    await c.fails('002043', 'DROP TABLE "DB"."s2"."t3"');
    for (const bad of ['CREATE TABLE t (a INTEGER) FOO = 1', 'SELECT 1 FROM', 'ALTER TABLE x FROB', 'BEGIN TRANSACTION', 'VACUUM', "SHOW TABLES LIKE 'x' FOO"])
      assert.ok(['001003', '002003', '002043'].includes((await c.query(bad)).code), bad);
    await c.admin('set', { owner_of: { 'DB.PUBLIC.t2': 'OTHER' } });
    await c.fails('003001', `DROP TABLE ${T}."t2"`);
    await c.admin('set', { owner_of: { 'DB.PUBLIC.t2': 'LOADER' }, can_create_table: false });
    await c.fails('003001', `CREATE TABLE ${T}."no" (a INTEGER)`);
    await c.admin('set', { can_create_table: true });
  },

  async copy(c) {
    await c.rows(`CREATE OR REPLACE TABLE ${T}."c" ("a" NUMBER(38,0), "s" VARCHAR, "n" NUMBER(10,2), "f" FLOAT, "b" BOOLEAN, "d" DATE, "t" TIME,
      "ts" TIMESTAMP_NTZ, "tz" TIMESTAMP_TZ, "bin" BINARY, "v" VARIANT, "g" GEOGRAPHY, "x" VARCHAR)`);
    const info = await stageFiles(c, {
      'one.csv.gz': '1,"say ""hi"", you\nthere",1.005,NaN,t,2024-02-29,23:59:59.5,2024-01-02 03:04:05.123456,2024-01-02 03:04:05.5+02,00fF,' +
        '"{""b"":1.10,""a"":[1,""é""],""c"":12345678901234567890.123456789}",POINT(1 2)\n2,"",,,,,,,,,,\n',
      'bad.csv.gz': '3,x,1,1,t,,,,,,,\n4,x,abc,1,t,,,,,,,\n',
    });
    assert.strictEqual(info.isClientSideEncrypted, false);
    const copy = (files, more = '') => `COPY INTO ${T}."c" ("a","s","n","f","b","d","t","ts","tz","bin","v","g","x") FROM (SELECT $1, $2, $3, $4, $5, TO_DATE($6, 'YYYY-MM-DD'),
      TO_TIME($7), TO_TIMESTAMP_NTZ($8), TO_TIMESTAMP_TZ($9), TO_BINARY($10, 'HEX'), PARSE_JSON($11), TO_GEOGRAPHY($12), 'lit' FROM @${T}."st"/p) FILES = (${files}) ${FORMAT} ${more}`;
    const bad = await c.fails('100038', copy("'one.csv.gz', 'bad.csv.gz'"));
    assert.match(bad.message, /Numeric value 'abc' is not recognized\n {2}File 'p\/bad.csv.gz', line 2, character 5\n {2}Row 2, column "c"\["n":3\]/);
    assert.deepStrictEqual(await c.rows(`SELECT COUNT(*) FROM ${T}."c"`), [['0']]);
    assert.deepStrictEqual(await c.rows(copy("'one.csv.gz'")), [['p/one.csv.gz', 'LOADED', '2', '2', '1', '0', null, null, null, null]]);
    assert.strictEqual((await c.rows(copy("'one.csv.gz'")))[0][1], 'LOAD_SKIPPED');
    assert.deepStrictEqual(await c.rows(`SELECT "s", "n"::VARCHAR, "f"::VARCHAR, "b"::VARCHAR, "d"::VARCHAR, TO_VARCHAR("t", 'HH24:MI:SS.FF6'), TO_VARCHAR("ts", 'YYYY-MM-DD HH24:MI:SS.FF6'),
      "tz"::VARCHAR, "bin"::VARCHAR, "v"::VARCHAR, ST_ASWKT("g"), "x" FROM ${T}."c" ORDER BY "a"`), [
      ['say "hi", you\nthere', '1.01', 'NaN', 'true', '2024-02-29', '23:59:59.500000', '2024-01-02 03:04:05.123456', '2024-01-02 01:04:05.500 +0000', '00FF',
        '{"a":[1,"é"],"b":1.1,"c":12345678901234567890.123456789}', 'POINT(1 2)', 'lit'],
      ['', ...Array(10).fill(null), 'lit']]);
    await c.fails('091016', copy("'none.csv.gz'"));
    await c.fails('001003', copy("'one.csv.gz'", 'SPEED = 3'));
    await c.rows(copy("'one.csv.gz'", 'FORCE = TRUE'));
    assert.deepStrictEqual(await c.rows(`SELECT COUNT(*) FROM ${T}."c"`), [['4']]);
  },

  async uploads(c) {
    const info = await stageFiles(c, {});
    const body = zlib.gzipSync('1\n');
    const code = async (options, status) => {
      const answer = await upload(info, 'x', body, options);
      assert.strictEqual(answer.status, status, answer.text);
      return /<Code>(\w+)<\/Code>/.exec(answer.text)?.[1];
    };
    assert.strictEqual(await code({ secret: 'wrong' }, 403), 'SignatureDoesNotMatch');
    assert.strictEqual(await code({ headers: { 'x-amz-security-token': 'x' } }, 400), 'InvalidToken');
    assert.strictEqual(await code({ headers: { 'x-amz-meta-sfc-digest': 'x' } }, 400), 'BadDigest');
    assert.strictEqual(await code({}, 200), undefined);
    await c.admin('fault', { action: 'fail', match: '^PUT /sfc.*x$', status: 503 });
    assert.strictEqual(await code({}, 503), 'SlowDown');
    await c.admin('fault', { action: 'cut', match: '^PUT ' });
    await assert.rejects(upload(info, 'x', body));
    await c.admin('expire_creds');
    assert.strictEqual(await code({}, 400), 'ExpiredToken');
    const other = new Client(c.port);
    await other.login();
    await other.fails('002003', `LIST @${T}."st"`);
    assert.strictEqual((await c.rows(`LIST @${T}."st"/p`)).length >= 1, true);
  },

  async dml(c) {
    await c.rows(`CREATE OR REPLACE TABLE ${T}."m" ("k" INTEGER, "v" VARCHAR, "j" VARIANT)`);
    assert.deepStrictEqual(await c.rows(`INSERT INTO ${T}."m" ("k", "v") VALUES (1, 'a'), (2, 'b'), (3, NULL)`), [['3']]);
    const merge = (source) => `MERGE INTO ${T}."m" AS t USING (SELECT * FROM (${source}) QUALIFY ROW_NUMBER() OVER (PARTITION BY "k", "n" ORDER BY "n" DESC) = 1) s ON t."k" = s."k"
      WHEN MATCHED AND s."op" = 'd' THEN DELETE WHEN MATCHED THEN UPDATE SET t."v" = s."v", "j" = PARSE_JSON('{"a": 1}')
      WHEN NOT MATCHED AND s."op" <> 'd' THEN INSERT ("k", "v") VALUES (s."k", s."v")`;
    const source = (...rows) => rows.map(([k, v, op, n = 1]) => `SELECT ${k} AS "k", '${v}' AS "v", '${op}' AS "op", ${n} AS "n"`).join(' UNION ALL ');
    await c.fails('100090', merge(source([1, 'x', 'u', 1], [1, 'y', 'u', 2])));
    assert.deepStrictEqual(await c.rows(merge(source([1, 'x', 'u'], [2, '', 'd'], [9, 'new', 'i']))), [['1', '1', '1']]);
    assert.deepStrictEqual(await c.rows(`SELECT "k", "v", TO_JSON("j") FROM ${T}."m" ORDER BY "k"`), [['1', 'x', '{"a":1}'], ['3', null, null], ['9', 'new', null]]);
    assert.deepStrictEqual(await c.rows(`UPDATE ${T}."m" t SET "v" = s."v" FROM (SELECT 3 AS "k", 'three' AS "v") s WHERE t."k" = s."k"`), [['1', '0']]);
    assert.deepStrictEqual(await c.rows(`DELETE FROM ${T}."m" USING (SELECT 3 AS "k") s WHERE "m"."k" = s."k"`), [['1']]);
    await c.fails('002014', `INSERT INTO ${T}."m" ("j") VALUES (PARSE_JSON('1'))`);
    await c.fails('002023', `INSERT INTO ${T}."m" ("j") SELECT 'abc'`);
    await c.fails('100038', `INSERT INTO ${T}."m" ("k") SELECT 'abc'`);
    await c.fails('002140', 'SELECT FROBNICATE(1)');
    assert.deepStrictEqual(await c.rows(`SELECT TRY_CAST('x' AS NUMBER(38,0)), EQUAL_NULL(NULL, NULL), IFF(1 = 1, 'y', 'n'), 1.50::VARCHAR, PARSE_JSON('"a"')::VARCHAR, 'a' || NULL,
      NULL IS NOT DISTINCT FROM NULL, 'NaN'::FLOAT = 'NaN'::FLOAT, SUBSTR('abc', 2), CASE WHEN TRUE THEN 1 END`),
    [[null, '1', 'y', '1.50', 'a', null, '1', '1', 'bc', '1']]);
    assert.deepStrictEqual(await c.rows(`SELECT TABLE_TYPE, IS_TRANSIENT, ROW_COUNT FROM "DB".INFORMATION_SCHEMA.TABLES WHERE TABLE_NAME = 'm'`), [['BASE TABLE', 'NO', '2']]);
    assert.deepStrictEqual(await c.rows(`SELECT COLUMN_NAME, DATA_TYPE FROM "DB"."INFORMATION_SCHEMA"."COLUMNS" WHERE TABLE_NAME = 'm' ORDER BY ORDINAL_POSITION`),
      [['k', 'NUMBER'], ['v', 'TEXT'], ['j', 'VARIANT']]);
  },

  async blocks(c) {
    await c.rows(`CREATE OR REPLACE TABLE ${T}."b" ("k" INTEGER)`);
    const block = (text) => `EXECUTE IMMEDIATE $$${text}$$`;
    const value = (text) => c.rows(block(text)).then((rows) => rows[0][0]);
    assert.strictEqual(await value(`DECLARE n INTEGER DEFAULT 0; BEGIN BEGIN TRANSACTION; INSERT INTO ${T}."b" VALUES (1), (2); n := SQLROWCOUNT;
      LET m := n + 1; COMMIT; IF (n = 2 AND m > n) THEN RETURN 'two ' || m; ELSE RETURN 'other'; END IF; END;`), 'two 3');
    assert.strictEqual(await value(`DECLARE n INTEGER; BEGIN SELECT COUNT(*) INTO :n FROM ${T}."b"; RETURN n; END`), '2');
    // an error in a transaction that is handled: the other statements stay
    assert.match(await value(`BEGIN BEGIN TRANSACTION; INSERT INTO ${T}."b" VALUES (3); INSERT INTO ${T}."b" SELECT 'x'; COMMIT; RETURN 'no';
      EXCEPTION WHEN OTHER THEN COMMIT; RETURN SQLCODE || ' ' || SQLERRM; END`), /^100038 Numeric value 'x'/);
    assert.deepStrictEqual(await c.rows(`SELECT COUNT(*) FROM ${T}."b"`), [['3']]);
    const raised = await c.fails('100038', block(`BEGIN BEGIN TRANSACTION; INSERT INTO ${T}."b" VALUES (4);\n  INSERT INTO ${T}."b" SELECT 'x'; COMMIT;\nEXCEPTION WHEN OTHER THEN ROLLBACK; RAISE; END`));
    assert.match(raised.message, /^Uncaught exception of type 'STATEMENT_ERROR' on line 2 at position 2 : Numeric value 'x'/);
    assert.deepStrictEqual(await c.rows(`SELECT COUNT(*) FROM ${T}."b"`), [['3']]);
    await c.fails('090232', block(`BEGIN BEGIN TRANSACTION; INSERT INTO ${T}."b" VALUES (5); END`));
    await c.fails('001003', block('BEGIN FOR i IN 1 TO 3 DO NULL; END FOR; END'));
    await c.fails('-20001', block("DECLARE e EXCEPTION (-20001, 'mine'); BEGIN IF (1 = 1) THEN RAISE e; END IF; END"));
    await stageFiles(c, { 'b1.csv.gz': '7\n8\n' });
    assert.strictEqual(await value(`DECLARE n INTEGER; BEGIN BEGIN TRANSACTION; COPY INTO ${T}."b" FROM (SELECT $1 FROM @${T}."st"/p) FILES = ('b1.csv.gz') ${FORMAT};
      SELECT SUM("rows_loaded") INTO :n FROM TABLE(RESULT_SCAN(LAST_QUERY_ID())); IF (n <> 2) THEN ROLLBACK; RETURN 'bad'; END IF; COMMIT; RETURN n; END`), '2');
    await c.admin('fault', { match: 'EXECUTE', fail_at: { match: '^DELETE', code: '000625', message: 'lock timeout' } });
    await c.fails('000625', block(`BEGIN BEGIN TRANSACTION; INSERT INTO ${T}."b" VALUES (6); DELETE FROM ${T}."b"; COMMIT; END`));
    assert.deepStrictEqual(await c.rows(`SELECT COUNT(*) FROM ${T}."b"`), [['5']]);
    await c.rows(`CREATE TABLE ${T}."b_new" LIKE ${T}."b"`);
    assert.strictEqual(await value(`BEGIN ALTER TABLE ${T}."b_new" SWAP WITH ${T}."b"; DROP TABLE ${T}."b_new"; RETURN 'done'; END`), 'done');
    assert.deepStrictEqual(await c.rows(`SELECT COUNT(*) FROM ${T}."b"`), [['0']]);
  },

  async faults(c) {
    const table = `${T}."fa"`;
    const count = () => c.rows(`SELECT COUNT(*) FROM ${table}`).then((rows) => rows[0][0]);
    await c.rows(`CREATE TABLE ${table} (a INTEGER)`);
    const fault = (action, more = {}) => c.admin('fault', { action, match: 'INSERT', ...more });
    const insert = (options) => c.query(`INSERT INTO ${table} VALUES (1)`, options);
    await fault('fail', { status: 503 });
    assert.strictEqual((await insert()).status, 503);
    await fault('fail', { code: '390114' });
    assert.strictEqual((await insert()).code, '390114');
    await fault('sql_error', { code: '000625', message: 'locked', sqlState: '55P03' });
    assert.strictEqual((await insert()).data.sqlState, '55P03');
    await fault('drop_before');
    await assert.rejects(insert());
    assert.strictEqual(await count(), '0');
    const requestId = crypto.randomUUID();
    const id = await fault('drop');
    await assert.rejects(insert({ requestId }));
    assert.strictEqual(await c.admin(`hits?id=${id}`), '1');
    assert.deepStrictEqual((await insert({ requestId })).data.rowset, [['1']]);
    assert.strictEqual(await count(), '1');
    await fault('garbage');
    assert.strictEqual((await insert()).text, '<html>a page of a proxy</html>');
    await fault('hold');
    const held = insert();
    while ((await c.admin('held')) === '0');
    assert.strictEqual(await c.admin('running'), '1');
    await c.admin('release');
    assert.strictEqual((await held).success, true);
    await fault('hold');
    const cancelledId = crypto.randomUUID();
    const cancelled = insert({ requestId: cancelledId });
    while ((await c.admin('held')) === '0');
    await c.post('/queries/v1/abort-request', { sqlText: '', requestId: cancelledId }, c.token);
    assert.strictEqual((await cancelled).code, '000604');
    assert.strictEqual(await count(), '3');
    await c.admin('down');
    await assert.rejects(insert());
    await c.admin('up');
    await c.admin('set', { resume_privilege: false });
    await c.fails('003001', `SELECT COUNT(*) FROM ${table}`);
    await c.admin('set', { resume_privilege: true });
    const { columns, rows } = await c.admin('sql', { sql: `SELECT a, TRUE AS "yes", DATE '2024-01-02' AS d FROM ${table} LIMIT 1` });
    assert.deepStrictEqual([columns, rows], [['A', 'yes', 'D'], [['1', 'true', '2024-01-02']]]);
    assert.strictEqual((await c.admin('sql', { sql: 'SELECT nope' })).code, '000904');
  },

  async more_blocks(c) {
    const table = `${T}."mb"`;
    const count = () => c.rows(`SELECT COUNT(*) FROM ${table}`).then((rows) => rows[0][0]);
    const block = (text) => `EXECUTE IMMEDIATE '${text.replace(/\\/g, '\\\\').replace(/'/g, "''")}'`;
    await c.rows(`CREATE TABLE ${table} ("k" INTEGER)`);
    await stageFiles(c, { 'mb.csv.gz': '7\n8\n' });
    const copy = `COPY INTO ${table} FROM (SELECT $1 FROM @${T}."st"/p) FILES = ('mb.csv.gz') ${FORMAT}`;
    // a statement that fails leaves what was loaded before it in the transaction
    await c.rows(block(`BEGIN BEGIN TRANSACTION; ${copy}; INSERT INTO ${table} SELECT 'x'; EXCEPTION WHEN OTHER THEN COMMIT; END`));
    assert.strictEqual(await count(), '2');
    assert.strictEqual((await c.rows(copy))[0][1], 'LOAD_SKIPPED');
    await c.rows(`DELETE FROM ${table}`);
    await c.rows(`TRUNCATE TABLE ${table}`);
    // rolled back: the file may be loaded again
    await c.rows(block(`BEGIN BEGIN TRANSACTION; ${copy}; ROLLBACK; END`));
    assert.strictEqual((await c.rows(copy))[0][1], 'LOADED');
    // DDL commits
    await c.rows(block(`BEGIN BEGIN TRANSACTION; INSERT INTO ${table} VALUES (9); CREATE TABLE ${T}."mb2" (a INTEGER); ROLLBACK; END`));
    assert.strictEqual(await count(), '3');
    // held before a statement of a block, and cancelled there
    await c.admin('fault', { action: 'hold_at', match: 'EXECUTE', at: '^COMMIT' });
    const requestId = crypto.randomUUID();
    const answer = c.query(block(`BEGIN BEGIN TRANSACTION; INSERT INTO ${table} VALUES (10); COMMIT; EXCEPTION WHEN OTHER THEN COMMIT; END`), { requestId });
    while ((await c.admin('held')) === '0');
    await c.post('/queries/v1/abort-request', { requestId }, c.token);
    assert.strictEqual((await answer).code, '000604');
    assert.strictEqual(await count(), '3');
    // done, and then it fails
    await c.admin('fault', { match: 'EXECUTE', fail_at: { match: '^COMMIT', code: '000625', message: 'late', after: true } });
    await c.fails('000625', block(`BEGIN BEGIN TRANSACTION; INSERT INTO ${table} VALUES (11); COMMIT; END`));
    assert.strictEqual(await count(), '4');
  },

  async external_stage(c) {
    await request(c.port, 'POST', '/admin/put?path=bucket-x/dir/e.csv', { body: '1;a\n2;\n' });
    await c.rows(`CREATE STAGE ${T}."ext" URL = 's3://bucket-x/dir/'`);
    await c.rows(`CREATE TABLE ${T}."e" ("a" INTEGER, "b" VARCHAR)`);
    assert.deepStrictEqual((await c.rows(`COPY INTO ${T}."e" FROM @${T}."ext" FILE_FORMAT = (TYPE = CSV FIELD_DELIMITER = ';')`))[0].slice(0, 4), ['e.csv', 'LOADED', '2', '2']);
    assert.deepStrictEqual(await c.rows(`SELECT * FROM ${T}."e" ORDER BY "a"`), [['1', 'a'], ['2', null]]);
    await c.fails('001003', `PUT file:///x @${T}."ext"`);
  },

  async session_ends(c) {
    await c.rows(`CREATE OR REPLACE TEMPORARY STAGE ${T}."gone" ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')`);
    assert.strictEqual((await c.post('/session?delete=true', {}, c.token)).success, true);
    await c.fails('390104', 'SELECT 1');
    await c.login();
    await c.fails('002003', `LIST @${T}."gone"`);
    await c.admin('expire_master');
    assert.strictEqual((await c.post('/session/token-request', { oldSessionToken: c.token, requestType: 'RENEW' }, c.master)).code, '390114');
  },
};

async function pingPong() {
  const { child, port } = await startService('--ping-pong', '30', '--page', '2');
  try {
    const c = new Client(port);
    await c.login();
    await c.admin('fault', { action: 'delay', match: 'SELECT 1', ms: 150 });
    let answer = await c.query('SELECT 1');
    assert.strictEqual(answer.code, '333333');
    for (let n = 0; /^33333/.test(answer.code) && n < 50; n++) {
      const got = await request(port, 'GET', answer.data.getResultUrl, { headers: { authorization: `Snowflake Token="${c.token}"` } });
      answer = JSON.parse(got.text);
    }
    assert.deepStrictEqual(answer.data.rowset, [['1']]);
    const paged = await c.query('SELECT * FROM (VALUES (1), (2), (3)) v(a) ORDER BY 1');
    assert.deepStrictEqual([paged.data.rowset.length, paged.data.total, paged.data.chunks.length], [2, 3, 1]);
  } finally {
    child.removeAllListeners('exit');
    child.kill();
  }
}

// ---------------------------------------------------------------- stages at other stores

// An upload by the documents of Azure ("Put Blob" with a SAS) and of Google ("PUT
// Object" of the XML API); changes spoil it, undefined leaves a header out.
function put(info, name, body, { url, headers: more = {} } = {}) {
  const { creds, presignedUrl, endPoint, location } = info;
  const whole = new URL(presignedUrl ?? `${endPoint}/${location}${name}`);
  const digest = sha256(body, 'base64');
  let headers = { 'x-goog-meta-sfc-digest': digest, authorization: `Bearer ${creds.GCS_ACCESS_TOKEN}` };
  if (presignedUrl) headers = {};
  if (creds.AZURE_SAS_TOKEN) {
    headers = { 'x-ms-blob-type': 'BlockBlob', 'x-ms-meta-sfcdigest': digest };
    whole.search = creds.AZURE_SAS_TOKEN;
  }
  const all = Object.entries({ 'content-length': body.length, ...headers, ...more }).filter(([, value]) => value !== undefined);
  return request(Number(whole.port), 'PUT', url ? url(whole.pathname, whole.search) : whole.pathname + whole.search, { body, headers: Object.fromEntries(all) });
}

// [what, changes, status, code, words]: what each has to refuse (words: by azurite).
const refusals = {
  AZURE: (info) => [
    ['no SAS', { url: (path) => path }, 403, 'AuthenticationFailed'],
    ...['sig', 'se', 'sp', 'sr', 'sv'].map((name) => [`no ${name}`, { url: (path, query) => path + query.replace(new RegExp(`([?&])${name}=[^&]*`), '$1x=y') }, 403, 'AuthenticationFailed']),
    ['another time', { url: (path, query) => path + query.replace(/se=\d+/, 'se=2099') }, 403, 'AuthenticationFailed', /azurite: /],
    ['another signature', { url: (path, query) => path + query.replace(/sig=.../, 'sig=AAA') }, 403, 'AuthenticationFailed', /azurite: /],
    ['a signature that is not escaped', { url: (path, query) => path + query.replace(/sig=[^&]*/, (text) => decodeURIComponent(text).replace(/=$/, '+')) }, 403, 'AuthenticationFailed', /azurite: /],
    ['a SAS and a token', { headers: { authorization: 'Bearer x' } }, 400, 'InvalidAuthenticationInfo'],
    ['no type', { headers: { 'x-ms-blob-type': undefined } }, 400, 'MissingRequiredHeader'],
    ['another type', { headers: { 'x-ms-blob-type': 'PageBlob' } }, 400, 'MissingRequiredHeader'],
    ['no digest', { headers: { 'x-ms-meta-sfcdigest': undefined } }, 400, 'InvalidRequest'],
    ['another digest', { headers: { 'x-ms-meta-sfcdigest': 'x' } }, 400, 'BadDigest'],
    ['another place', { url: (path, query) => path.replace(/stages/, 'other') + query }, 403, 'AccessDenied'],
    ['another container', { url: (path, query) => path.replace(/sfc-fake/, 'sfc-other') + query }, 403, 'AuthenticationFailed', /azurite: /]],
  GCS: (info) => [
    ['no token', { headers: { authorization: undefined } }, 401, 'AuthenticationRequired'],
    ['another token', { headers: { authorization: 'Bearer ya29.x' } }, 401, 'AuthenticationRequired'],
    ['another scheme', { headers: { authorization: `Basic ${info.creds.GCS_ACCESS_TOKEN}` } }, 401, 'AuthenticationRequired'],
    ['a query', { url: (path) => `${path}?a=b` }, 400, 'InvalidArgument'],
    ['no digest', { headers: { 'x-goog-meta-sfc-digest': undefined } }, 400, 'InvalidRequest'],
    ['another digest', { headers: { 'x-goog-meta-sfc-digest': 'x' } }, 400, 'BadDigest'],
    ['another place', { url: (path) => path.replace(/stages/, 'other') }, 403, 'AccessDenied']],
  PRESIGNED: (info) => [
    ['another file', { url: (path, query) => `${path}2${query}` }, 403, 'SignatureDoesNotMatch'],
    ['no signature', { url: (path) => path }, 403, 'SignatureDoesNotMatch'],
    ['escaped otherwise', { url: (path, query) => path + query.replace('%40', '@') }, 403, 'SignatureDoesNotMatch'],
    ['a token, too', { headers: { authorization: 'Bearer x' } }, 400, 'InvalidArgument'],
    ['a type', { headers: { 'content-type': 'text/csv' } }, 403, 'SignatureDoesNotMatch'],
    ['another digest', { headers: { 'x-goog-meta-sfc-digest': 'x' } }, 400, 'BadDigest']],
};
const expired = { AZURE: [403, 'AuthenticationFailed'], GCS: [401, 'AuthenticationRequired'], PRESIGNED: [400, 'ExpiredToken'] };

async function otherStore(kind) {
  const { child, port } = await startService('--store', kind, '--cred-life', '60');
  try {
    const c = new Client(port);
    await c.login();
    await c.rows(`CREATE TEMPORARY STAGE ${T}."st" ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')`);
    await c.rows(`CREATE TABLE ${T}."u" ("a" INTEGER)`);
    const ask = (name, folder = '/p') => c.put(`${T}."st"${folder}`, name);
    const body = zlib.gzipSync('1\n');
    const good = kind === 'AZURE' ? 201 : 200;
    const answers = async (info, name, changes, status, code, what, words = /^/) => {
      const { status: got, text } = await put(info, name, body, changes);
      assert.deepStrictEqual([got, /<Code>(\w+)<\/Code>/.exec(text)?.[1]], [status, code], `${what}: ${text}`);
      assert.match(text, words, what);
    };
    const info = await ask('x.gz');
    assert.strictEqual(info.locationType, kind === 'AZURE' ? 'AZURE' : 'GCS');
    assert.match(info.location, /^[\w-]+\/stages\/[\w-]+\/p\/$/);
    for (const [what, changes, status, code, words] of refusals[kind](info)) await answers(info, 'x.gz', changes, status, code, what, words);
    assert.deepStrictEqual(await c.rows(`LIST @${T}."st"`), [], 'nothing of that is there');
    await answers(info, 'x.gz', {}, good, undefined, 'what is right');
    await answers(info, 'x.gz', {}, good, undefined, 'the same again');
    if (kind === 'PRESIGNED') {
      assert.strictEqual(info.presignedUrl.split('?')[0], `${info.endPoint}/${info.location}x.gz`);
      await answers(info, 'x.gz', { headers: { 'x-goog-meta-sfc-digest': sha256(body, 'base64') } }, good, undefined, 'with the digest');
      // folders of the local file are none there
      assert.match((await ask('deep/er/y.gz')).presignedUrl, /\/p\/y\.gz\?/);
      await answers(await ask('y.gz', ''), 'y.gz', {}, good, undefined, 'another file');
    } else await answers(info, 'deep/y.gz', {}, good, undefined, 'another file, in a folder');
    if (kind === 'AZURE') {
      const again = await ask('x.gz');
      assert.notStrictEqual(again.creds.AZURE_SAS_TOKEN[0] === '?', info.creds.AZURE_SAS_TOKEN[0] === '?');
      await answers(again, 'x.gz', {}, good, undefined, 'with and without a question mark');
    }
    assert.deepStrictEqual((await c.rows(`LIST @${T}."st"`)).map((row) => row[0]), kind === 'PRESIGNED' ? ['st/p/x.gz', 'st/y.gz'] : ['st/p/deep/y.gz', 'st/p/x.gz']);
    assert.strictEqual((await c.rows(`COPY INTO ${T}."u" FROM (SELECT $1 FROM @${T}."st"/p) FILES = ('x.gz') ${FORMAT}`))[0][1], 'LOADED');
    assert.deepStrictEqual(await c.rows(`SELECT * FROM ${T}."u"`), [['1']]);
    await c.admin('fault', { action: 'fail', match: '^PUT /sfc.*x.gz$', status: 503 });
    await answers(info, 'x.gz', {}, 503, kind === 'AZURE' ? 'ServerBusy' : 'SlowDown', 'busy');
    await c.admin('fault', { action: 'cut', match: '^PUT ' });
    await assert.rejects(put(info, 'x.gz', body));
    await c.admin('expire_creds');
    await answers(info, 'x.gz', {}, ...expired[kind], 'when it has ended');
    await answers(await ask('x.gz'), 'x.gz', {}, good, undefined, 'a new right');
    await c.admin('set', { give_creds: false });
    assert.deepStrictEqual([(await ask('x.gz')).creds, (await ask('x.gz')).presignedUrl], [{}, null]);
  } finally {
    child.removeAllListeners('exit');
    child.kill();
  }
}

// By the time itself, which azurite looks at, too.
async function shortLife() {
  const { child, port } = await startService('--store', 'AZURE', '--cred-life', '1');
  try {
    const c = new Client(port);
    await c.login();
    await c.rows(`CREATE TEMPORARY STAGE ${T}."st" ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')`);
    const info = await c.put(`${T}."st"`);
    await new Promise((resolve) => setTimeout(resolve, 1100));
    assert.strictEqual((await put(info, 'x', Buffer.from('x'))).status, 403);
  } finally {
    child.removeAllListeners('exit');
    child.kill();
  }
}

async function main() {
  makeKey();
  const { child, port } = await startService();
  const client = new Client(port);
  let failed = 0;
  const all = [...Object.entries(tests), ['ping_pong', pingPong],
    ...['AZURE', 'GCS', 'PRESIGNED'].map((kind) => [`store_${kind.toLowerCase()}`, () => otherStore(kind)]), ['store_azure_time', shortLife]];
  for (const [n, [name, test]] of all.entries()) {
    try {
      await test(client);
      console.log(`ok ${n + 1} - ${name}`);
    } catch (error) {
      failed++;
      console.log(`not ok ${n + 1} - ${name}\n# ${String(error.stack).replace(/\n/g, '\n# ')}`);
    }
  }
  console.log(`1..${all.length}`);
  child.removeAllListeners('exit');
  child.kill();
  if (failed) console.log(fs.readFileSync(file('log'), 'utf8').split('\n').filter((line) => line.includes('trouble')).map((line) => '# ' + line.slice(0, 1500)).join('\n'));
  fs.rmSync(directory, { recursive: true, force: true });
  process.exitCode = failed ? 1 : 0;
}

main();
