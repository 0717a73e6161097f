// Stages: files in an S3 of our own (npm s3rver), and a proxy before it where
// clients put them, which is strict as the store that it plays (places.js).
'use strict';

const http = require('http');
const { KINDS, StoreError, BUCKET, sha256, hmac } = require('./places');

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
      authorization: `AWS4-HMAC-SHA256 Credential=S3RVER/${day.slice(0, 8)}/us-east-1/s3/aws4_request,SignedHeaders=host,Signature=0` };
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

  async put(bucket, key, body) {
    if (!this.buckets.has(bucket)) {
      await this.request('PUT', `/${bucket}`);
      this.buckets.add(bucket);
    }
    return this.request('PUT', Store.path(bucket, key), body, { 'content-type': 'application/octet-stream' });
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

class Proxy {
  // service: faults, log, whether it is down
  constructor(service, store) {
    Object.assign(this, { service, store });
  }

  async start() {
    this.server = http.createServer((request, response) => this.handle(request, response));
    await new Promise((resolve) => this.server.listen(0, '127.0.0.1', resolve));
    this.place = new KINDS[this.service.options.store](`http://127.0.0.1:${this.server.address().port}`);
    await this.place.start();
  }

  // ------------------------------------------------------------ requests

  async handle(request, response) {
    const { service, place } = this;
    const path = request.url.split('?')[0];
    const what = `${request.method} ${decodeURIComponent(path)}`;
    const entry = { what, upload: true, port: request.socket.remotePort };
    try {
      if (service.down) return drop(request, response);
      if (service.fault(what, 'cut')) return this.cut(request, response, entry);
      const body = await readAll(request);
      entry.bytes = body.length;
      if (service.fault(what, 'drop_before')) return drop(request, response);
      const fail = service.fault(what, 'fail');
      if (fail) return this.answer(response, Number(fail.status ?? 503), fail.body ?? place.errorXml(fail.code ?? place.busy, fail.message ?? 'injected'), entry);
      await service.pauseBefore(what);
      const answer = await this.forward(request, body, path);
      await service.pauseAfter(what);
      if (service.down || service.fault(what, 'drop')) return drop(request, response);
      return this.answer(response, place.stored, answer.body, entry, { etag: answer.headers.etag });
    } catch (error) {
      if (!(error instanceof StoreError)) entry.error = String(error.stack);
      const { status, code, message, detail } = error instanceof StoreError ? error : new StoreError(500, 'InternalError', String(error));
      return this.answer(response, status, place.errorXml(code, message, detail), { ...entry, refused: `${code} ${message}` });
    }
  }

  // The connection breaks in the middle of the body.
  cut(request, response, entry) {
    this.service.log({ ...entry, cut: true });
    request.once('data', () => drop(request, response));
    request.once('end', () => drop(request, response));
  }

  // Checked, and then put where COPY reads it.
  async forward(request, body, path) {
    await this.place.check(request, body);
    const [, bucket, ...rest] = decodeURIComponent(path).split('/');
    const answer = await this.store.put(bucket, rest.join('/'), body);
    if (answer.status !== 200) throw new Error(`s3rver: ${answer.status} ${answer.body}`);
    return answer;
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

module.exports = { Store, Proxy, BUCKET, readAll, drop, sha256, hmac };
