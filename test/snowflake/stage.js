// Stages: files in an S3 of our own (npm s3rver), and a proxy before it that
// checks what S3 checks: signature, token, digest.
'use strict';

const crypto = require('crypto');
const http = require('http');

const BUCKET = 'sfc-fake-customer-stage';
const REGION = 'us-east-1';

const sha256 = (data, encoding = 'hex') => crypto.createHash('sha256').update(data).digest(encoding);
const hmac = (key, data) => crypto.createHmac('sha256', key).update(data).digest();
const random = (bytes) => crypto.randomBytes(bytes);

// ---------------------------------------------------------------- s3rver's side

class Store {
  async start(directory) {
    const S3rver = require('s3rver');
    this.server = new S3rver({ address: '127.0.0.1', port: 0, silent: true, directory, vhostBuckets: false, configureBuckets: [{ name: BUCKET }] });
    const { port } = await this.server.run();
    this.port = port;
    this.buckets = new Set([BUCKET]);
    this.agent = new http.Agent({ keepAlive: true });
  }

  // s3rver wants an Authorization header of its only account; it does not compute V4.
  headers(extra) {
    const day = new Date().toISOString().replace(/[-:]|\.\d+/g, '');
    return { ...extra, 'x-amz-date': day, 'x-amz-content-sha256': 'UNSIGNED-PAYLOAD',
      authorization: `AWS4-HMAC-SHA256 Credential=S3RVER/${day.slice(0, 8)}/${REGION}/s3/aws4_request,SignedHeaders=host,Signature=0` };
  }

  request(method, path, body = null, extra = {}) {
    return new Promise((resolve, reject) => {
      const options = { host: '127.0.0.1', port: this.port, method, path, agent: this.agent, headers: this.headers(extra) };
      if (body) options.headers['content-length'] = body.length;
      const request = http.request(options, (response) => {
        const parts = [];
        response.on('data', (part) => parts.push(part));
        response.on('end', () => resolve({ status: response.statusCode, headers: response.headers, body: Buffer.concat(parts) }));
        response.on('error', reject);
      });
      request.on('error', reject);
      request.end(body);
    });
  }

  static path(bucket, key) {
    return `/${bucket}/${key.split('/').map(encodeURIComponent).join('/')}`;
  }

  async put(bucket, key, body, extra = {}) {
    if (!this.buckets.has(bucket)) {
      await this.request('PUT', `/${bucket}`);
      this.buckets.add(bucket);
    }
    return this.request('PUT', Store.path(bucket, key), body, { 'content-type': 'application/octet-stream', ...extra });
  }

  // { data, etag }, or null if there is no such file.
  async get(bucket, key) {
    const answer = await this.request('GET', Store.path(bucket, key));
    return answer.status === 200 ? { data: answer.body, etag: answer.headers.etag, modified: answer.headers['last-modified'] } : null;
  }

  remove(bucket, key) {
    return this.request('DELETE', Store.path(bucket, key));
  }

  // [{ key, size, etag, modified }] below a prefix, by name.
  async list(bucket, prefix) {
    const found = [];
    for (let marker = ''; ; ) {
      const answer = await this.request('GET', `/${bucket}?prefix=${encodeURIComponent(prefix)}&max-keys=1000&marker=${encodeURIComponent(marker)}`);
      if (answer.status !== 200) return found;
      const xml = answer.body.toString();
      for (const [, one] of xml.matchAll(/<Contents>([\s\S]*?)<\/Contents>/g)) {
        const field = (name) => unescapeXml(new RegExp(`<${name}>([\\s\\S]*?)</${name}>`).exec(one)?.[1] ?? '');
        found.push({ key: field('Key'), size: Number(field('Size')), etag: field('ETag'), modified: field('LastModified') });
      }
      if (!/<IsTruncated>true</.test(xml)) return found;
      marker = found[found.length - 1].key;
    }
  }
}

const unescapeXml = (text) => text.replace(/&(quot|amp|lt|gt|apos|#x27|#39);/g, (_, n) =>
  ({ quot: '"', amp: '&', lt: '<', gt: '>', apos: "'", '#x27': "'", '#39': "'" })[n]);

// ---------------------------------------------------------------- the proxy

class S3Error extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

const errorXml = (code, message) => `<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>${code}</Code><Message>${message}</Message></Error>`;

const encodeKey = (text) => encodeURIComponent(text).replace(/[!'()*]/g, (c) => '%' + c.charCodeAt(0).toString(16).toUpperCase());

// The V4 signature of a request by the document "Signature Version 4".
function signature(request, credential, signed, secret) {
  const [path, query = ''] = request.url.split('?');
  const parameters = [...new URLSearchParams(query)].map(([k, v]) => `${encodeKey(k)}=${encodeKey(v)}`).sort().join('&');
  const headers = signed.map((name) => `${name}:${String(request.headers[name] ?? '').trim().replace(/ +/g, ' ')}\n`).join('');
  const canonicalPath = path.split('/').map((part) => encodeKey(decodeURIComponent(part))).join('/');
  const canonical = [request.method, canonicalPath, parameters, headers, signed.join(';'), request.headers['x-amz-content-sha256']].join('\n');
  const [, day, region, service, end] = credential;
  const toSign = ['AWS4-HMAC-SHA256', request.headers['x-amz-date'], `${day}/${region}/${service}/${end}`, sha256(canonical)].join('\n');
  const key = [day, region, service, end].reduce(hmac, 'AWS4' + secret);
  return { value: hmac(key, toSign).toString('hex'), canonical };
}

class Proxy {
  // service: faults, log, whether it is down
  constructor(service, store) {
    Object.assign(this, { service, store });
    this.grants = new Map();
  }

  start() {
    this.server = http.createServer((request, response) => this.handle(request, response));
    return new Promise((resolve) => this.server.listen(0, '127.0.0.1', () => {
      this.port = this.server.address().port;
      resolve();
    }));
  }

  // Credentials for everything below a location, for a time.
  grant(location, seconds) {
    const grant = {
      location, ends: Date.now() + seconds * 1000, secret: random(30).toString('base64'),
      id: 'ASIA' + random(20).toString('hex').toUpperCase().slice(0, 16), token: 'IQoJ' + random(300).toString('base64'),
    };
    this.grants.set(grant.id, grant);
    return { AWS_KEY_ID: grant.id, AWS_SECRET_KEY: grant.secret, AWS_TOKEN: grant.token, AWS_ID: grant.id, AWS_KEY: grant.secret };
  }

  expireAll() {
    for (const grant of this.grants.values()) grant.ends = 0;
    return this.grants.size;
  }

  check(request, body) {
    const grant = this.checkToken(request);
    const [, credential, signed, given] =
      /^AWS4-HMAC-SHA256 +Credential=([^, ]+), *SignedHeaders=([^, ]+), *Signature=([0-9a-f]{64})$/.exec(request.headers.authorization);
    const names = signed.split(';');
    for (const name of ['host', 'x-amz-date', 'x-amz-content-sha256', 'x-amz-security-token'])
      if (!names.includes(name)) throw new S3Error(403, 'AccessDenied', `There were headers present in the request which were not signed: ${name}`);
    const unsigned = Object.keys(request.headers).find((name) => name.startsWith('x-amz-') && !names.includes(name));
    if (unsigned) throw new S3Error(403, 'AccessDenied', `There were headers present in the request which were not signed: ${unsigned}`);
    if (names.join() !== [...names].sort().join()) throw new S3Error(403, 'SignatureDoesNotMatch', 'SignedHeaders are not in order');
    const scope = credential.split('/');
    if (scope.length !== 5 || scope[2] !== REGION || scope[3] !== 's3' || scope[4] !== 'aws4_request')
      throw new S3Error(400, 'AuthorizationHeaderMalformed', `The authorization header is malformed; '${credential}'`);
    this.checkTime(request.headers['x-amz-date'], scope[1]);
    const { value, canonical } = signature(request, scope, names, grant.secret);
    if (value !== given) throw new S3Error(403, 'SignatureDoesNotMatch', `The signature does not match. Canonical request: ${canonical}`);
    this.checkPayload(request, body);
    return grant;
  }

  checkToken(request) {
    const { headers } = request;
    const id = /^AWS4-HMAC-SHA256 +Credential=([^/]+)\//.exec(headers.authorization ?? '')?.[1];
    if (!id) throw new S3Error(403, 'AccessDenied', 'Access Denied');
    const grant = this.grants.get(id);
    if (!grant) throw new S3Error(403, 'InvalidAccessKeyId', 'The AWS Access Key Id you provided does not exist in our records.');
    if (headers['x-amz-security-token'] !== grant.token)
      throw new S3Error(400, 'InvalidToken', 'The provided token is malformed or otherwise invalid.');
    if (grant.ends < Date.now()) throw new S3Error(400, 'ExpiredToken', 'The provided token has expired.');
    if (!headers['x-amz-content-sha256'])
      throw new S3Error(400, 'InvalidRequest', 'Missing required header for this request: x-amz-content-sha256');
    if (!/Signature=/.test(headers.authorization) || !/SignedHeaders=/.test(headers.authorization))
      throw new S3Error(400, 'AuthorizationHeaderMalformed', 'The authorization header is malformed.');
    return grant;
  }

  checkTime(stamp, day) {
    const m = /^(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})Z$/.exec(stamp ?? '');
    if (!m || stamp.slice(0, 8) !== day) throw new S3Error(403, 'AccessDenied', 'x-amz-date is not that of the credential');
    const time = Date.UTC(m[1], m[2] - 1, m[3], m[4], m[5], m[6]);
    if (Math.abs(Date.now() - time) > 900000) throw new S3Error(403, 'RequestTimeTooSkewed', 'The difference between the request time and the current time is too large.');
  }

  checkPayload(request, body) {
    const hash = request.headers['x-amz-content-sha256'];
    if (hash !== 'UNSIGNED-PAYLOAD' && hash !== sha256(body))
      throw new S3Error(400, 'XAmzContentSHA256Mismatch', "The provided 'x-amz-content-sha256' header does not match what was computed.");
    if (request.method !== 'PUT') return;
    const digest = request.headers['x-amz-meta-sfc-digest'];
    if (!digest) throw new S3Error(400, 'InvalidRequest', 'the fake wants x-amz-meta-sfc-digest');
    if (digest !== sha256(body, 'base64')) throw new S3Error(400, 'BadDigest', 'x-amz-meta-sfc-digest is not the base64 SHA-256 of the body');
  }

  // ------------------------------------------------------------ requests

  async handle(request, response) {
    const { service } = this;
    const path = request.url.split('?')[0];
    const what = `${request.method} ${decodeURIComponent(path)}`;
    const entry = { what, s3: true, port: request.socket.remotePort };
    try {
      if (service.down) return drop(request, response);
      if (service.fault(what, 'cut')) return this.cut(request, response, entry);
      const body = await readAll(request);
      entry.bytes = body.length;
      if (service.fault(what, 'drop_before')) return drop(request, response);
      const fail = service.fault(what, 'fail');
      if (fail) return this.answer(response, Number(fail.status ?? 503), fail.body ?? errorXml(fail.code ?? 'SlowDown', fail.message ?? 'injected'), entry);
      await service.pauseBefore(what);
      const answer = await this.forward(request, body, path);
      await service.pauseAfter(what);
      if (service.down || service.fault(what, 'drop')) return drop(request, response);
      return this.answer(response, answer.status, answer.body, entry, { etag: answer.headers.etag });
    } catch (error) {
      if (!(error instanceof S3Error)) entry.error = String(error.stack);
      const known = error instanceof S3Error ? error : new S3Error(500, 'InternalError', String(error));
      return this.answer(response, known.status, errorXml(known.code, known.message.replace(/[<>&]/g, ' ')), { ...entry, refused: known.message });
    }
  }

  // The connection breaks in the middle of the body.
  cut(request, response, entry) {
    this.service.log({ ...entry, cut: true });
    request.once('data', () => drop(request, response));
    request.once('end', () => drop(request, response));
  }

  async forward(request, body, path) {
    const grant = this.check(request, body);
    const [, bucket, ...rest] = decodeURIComponent(path).split('/');
    const key = rest.join('/');
    if (!`${bucket}/${key}`.startsWith(grant.location)) throw new S3Error(403, 'AccessDenied', 'Access Denied');
    const extra = Object.fromEntries(Object.entries(request.headers).filter(([name]) => name.startsWith('x-amz-meta-')));
    if (request.method === 'PUT') return this.store.put(bucket, key, body, extra);
    if (request.method === 'GET' || request.method === 'HEAD') return this.store.request(request.method, Store.path(bucket, key));
    throw new S3Error(405, 'MethodNotAllowed', 'The specified method is not allowed against this resource.');
  }

  answer(response, status, body, entry, headers = {}) {
    this.service.log({ ...entry, status });
    response.writeHead(status, { ...(status >= 300 ? { 'content-type': 'application/xml' } : {}), ...headers });
    response.end(body);
  }
}

function drop(request, response) {
  request.socket.destroy();
  response.destroy();
}

function readAll(stream) {
  return new Promise((resolve, reject) => {
    const parts = [];
    stream.on('data', (part) => parts.push(part));
    stream.on('end', () => resolve(Buffer.concat(parts)));
    stream.on('error', reject);
    stream.on('close', () => stream.readableEnded || reject(new Error('the client closed the connection')));
  });
}

module.exports = { Store, Proxy, BUCKET, REGION, readAll, drop, sha256, hmac };
