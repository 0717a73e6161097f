// The object stores that a stage can be at, one class each: what PUT's answer says
// of the place, what the provider checks of an upload, and how it refuses.
// Written by the providers' documents and the drivers' sources, not by our client.
'use strict';

const crypto = require('crypto');
const http = require('http');

const BUCKET = 'sfc-fake-customer-stage';
const REGION = 'us-east-1';
const ACCOUNT = 'sfcfakestage';

const sha256 = (data, encoding = 'hex') => crypto.createHash('sha256').update(data).digest(encoding);
const hmac = (key, data) => crypto.createHmac('sha256', key).update(data).digest();
const random = (bytes) => crypto.randomBytes(bytes);
const encodeKey = (text) => encodeURIComponent(text).replace(/[!'()*]/g, (c) => '%' + c.charCodeAt(0).toString(16).toUpperCase());
const encodePath = (path) => path.split('/').map(encodeKey).join('/');

class StoreError extends Error {
  // detail: more XML
  constructor(status, code, message, detail = '') {
    super(message);
    Object.assign(this, { status, code, detail });
  }
}

// What the places have in common: rights that were given out, by their secret.
class Place {
  constructor(endPoint) {
    Object.assign(this, { endPoint, grants: new Map(), type: this.constructor.name.toUpperCase(), stored: 200, busy: 'SlowDown' });
  }

  async start() {}

  // A right for everything below a location, for a time.
  give(secret, location, seconds, more = {}) {
    this.grants.set(secret, { location, ends: Date.now() + seconds * 1000, ...more });
  }

  expireAll() {
    for (const grant of this.grants.values()) grant.ends = 0;
    return this.grants.size;
  }

  // Of PUT's answer, the part that is about the place; file: its name there.
  info(location, seconds, file) {
    return { locationType: this.type, location, path: location.slice(location.indexOf('/') + 1), region: REGION, storageAccount: null, presignedUrl: null,
      creds: {}, endPoint: this.endPoint, useS3RegionalUrl: false, useRegionalUrl: false, useVirtualUrl: false, ...this.right(location, seconds, file) };
  }

  errorXml(code, message, detail = '') {
    return `<?xml version='1.0' encoding='UTF-8'?><Error><Code>${code}</Code><Message>${message.replace(/[<>&]/g, ' ')}</Message>${detail}</Error>`;
  }

  // A whole file with the drivers' digest, by PUT.
  checkFile(request, body, header, optional = false) {
    const { method, headers } = request;
    if (method !== 'PUT') throw new StoreError(405, 'MethodNotAllowed', 'The specified method is not allowed against this resource.');
    if (Number(headers['content-length']) !== body.length) throw new StoreError(411, 'MissingContentLength', 'You must provide the Content-Length HTTP header.');
    if (headers['content-encoding']) throw new StoreError(400, 'InvalidRequest', 'the fake wants files as they are');
    if (optional && headers[header] === undefined) return;
    if (!headers[header]) throw new StoreError(400, 'InvalidRequest', `the fake wants ${header}`);
    if (headers[header] !== sha256(body, 'base64')) throw new StoreError(400, 'BadDigest', `${header} is not the base64 SHA-256 of the body`);
  }

  checkLocation(request, grant) {
    if (!decodeURIComponent(request.url.split('?')[0]).slice(1).startsWith(grant.location)) throw new StoreError(403, 'AccessDenied', 'Access Denied');
  }
}

// ---------------------------------------------------------------- Amazon

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

class S3 extends Place {
  right(location, seconds) {
    const id = 'ASIA' + random(20).toString('hex').toUpperCase().slice(0, 16);
    const secret = random(30).toString('base64');
    const token = 'IQoJ' + random(300).toString('base64');
    this.give(id, location, seconds, { secret, token });
    return { creds: { AWS_KEY_ID: id, AWS_SECRET_KEY: secret, AWS_TOKEN: token, AWS_ID: id, AWS_KEY: secret } };
  }

  // A user's own key, without a token and without an end.
  ownKey(location) {
    const id = 'AKIA' + random(20).toString('hex').toUpperCase().slice(0, 16);
    const secret = random(30).toString('base64');
    this.give(id, location, 1e9, { secret });
    return { id, secret, endPoint: this.endPoint };
  }

  async check(request, body) {
    const grant = this.checkToken(request);
    const [, credential, signed, given] =
      /^AWS4-HMAC-SHA256 +Credential=([^, ]+), *SignedHeaders=([^, ]+), *Signature=([0-9a-f]{64})$/.exec(request.headers.authorization);
    const names = signed.split(';');
    for (const name of ['host', 'x-amz-date', 'x-amz-content-sha256', ...(grant.token ? ['x-amz-security-token'] : [])])
      if (!names.includes(name)) throw new StoreError(403, 'AccessDenied', `There were headers present in the request which were not signed: ${name}`);
    const unsigned = Object.keys(request.headers).find((name) => name.startsWith('x-amz-') && !names.includes(name));
    if (unsigned) throw new StoreError(403, 'AccessDenied', `There were headers present in the request which were not signed: ${unsigned}`);
    if (names.join() !== [...names].sort().join()) throw new StoreError(403, 'SignatureDoesNotMatch', 'SignedHeaders are not in order');
    const scope = credential.split('/');
    if (scope.length !== 5 || scope[2] !== REGION || scope[3] !== 's3' || scope[4] !== 'aws4_request')
      throw new StoreError(400, 'AuthorizationHeaderMalformed', `The authorization header is malformed; '${credential}'`);
    this.checkTime(request.headers['x-amz-date'], scope[1]);
    const { value, canonical } = signature(request, scope, names, grant.secret);
    if (value !== given) throw new StoreError(403, 'SignatureDoesNotMatch', `The signature does not match. Canonical request: ${canonical}`);
    const hash = request.headers['x-amz-content-sha256'];
    if (hash !== 'UNSIGNED-PAYLOAD' && hash !== sha256(body))
      throw new StoreError(400, 'XAmzContentSHA256Mismatch', "The provided 'x-amz-content-sha256' header does not match what was computed.");
    this.checkFile(request, body, 'x-amz-meta-sfc-digest');
    this.checkLocation(request, grant);
  }

  checkToken(request) {
    const { headers } = request;
    const id = /^AWS4-HMAC-SHA256 +Credential=([^/]+)\//.exec(headers.authorization ?? '')?.[1];
    if (!id) throw new StoreError(403, 'AccessDenied', 'Access Denied');
    const grant = this.grants.get(id);
    if (!grant) throw new StoreError(403, 'InvalidAccessKeyId', 'The AWS Access Key Id you provided does not exist in our records.');
    if (headers['x-amz-security-token'] !== grant.token)
      throw new StoreError(400, 'InvalidToken', 'The provided token is malformed or otherwise invalid.');
    if (grant.ends < Date.now()) throw new StoreError(400, 'ExpiredToken', 'The provided token has expired.');
    if (!headers['x-amz-content-sha256'])
      throw new StoreError(400, 'InvalidRequest', 'Missing required header for this request: x-amz-content-sha256');
    if (!/Signature=/.test(headers.authorization) || !/SignedHeaders=/.test(headers.authorization))
      throw new StoreError(400, 'AuthorizationHeaderMalformed', 'The authorization header is malformed.');
    return grant;
  }

  checkTime(stamp, day) {
    const m = /^(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})Z$/.exec(stamp ?? '');
    if (!m || stamp.slice(0, 8) !== day) throw new StoreError(403, 'AccessDenied', 'x-amz-date is not that of the credential');
    const time = Date.UTC(m[1], m[2] - 1, m[3], m[4], m[5], m[6]);
    if (Math.abs(Date.now() - time) > 900000) throw new StoreError(403, 'RequestTimeTooSkewed', 'The difference between the request time and the current time is too large.');
  }
}

// ---------------------------------------------------------------- Microsoft

// Signed here, and verified by Microsoft's own emulator (npm azurite, in this
// process): the request as it came, at the host that it would be for.
class Azure extends Place {
  constructor(endPoint) {
    super(endPoint);
    Object.assign(this, { stored: 201, busy: 'ServerBusy', key: random(64), given: 0 });
  }

  async start() {
    const Server = require('azurite/dist/src/blob/BlobServer').default;
    const Configuration = require('azurite/dist/src/blob/BlobConfiguration').default;
    process.env.AZURITE_ACCOUNTS = `${ACCOUNT}:${this.key.toString('base64')}`;
    // any port, everything in memory, no log
    this.engine = new Server(new Configuration('127.0.0.1', 0, 60, '', '', [], false, undefined, false, undefined, false, false, '', '', '', undefined, false, true));
    await this.engine.start();
    const right = { sv: '2021-12-02', ss: 'b', srt: 'c', sp: 'c', se: this.date(60) };
    const signed = [ACCOUNT, right.sp, right.ss, right.srt, '', right.se, '', '', right.sv, '', ''];
    const { status, text } = await this.ask('PUT', `/${BUCKET}?restype=container&${this.query(right, signed)}`, { 'content-length': 0 });
    if (status !== 201) throw new Error(`azurite makes no container: ${status} ${text}`);
  }

  date(seconds) {
    return new Date(Date.now() + seconds * 1000).toISOString().replace(/\.\d+/, '');
  }

  query(right, signed) {
    return new URLSearchParams({ ...right, sig: hmac(this.key, signed.join('\n')).toString('base64') }).toString();
  }

  // A service SAS of the container (document "Create a service SAS"); drivers take
  // it with and without "?".
  right(location, seconds) {
    const right = { sv: '2021-12-02', sr: 'c', st: this.date(-300), se: this.date(seconds), sp: 'racwdl' };
    const sas = this.query(right, [right.sp, right.st, right.se, `/blob/${ACCOUNT}/${BUCKET}`, '', '', '', right.sv, right.sr, '', '', '', '', '', '', '']);
    this.give(this.parameters(sas), location, seconds);
    return { storageAccount: ACCOUNT, creds: { AZURE_SAS_TOKEN: (this.given++ % 2 ? '' : '?') + sas } };
  }

  parameters(query) {
    return [...new URLSearchParams(query)].map(([name, value]) => `${name}=${value}`).sort().join('\n');
  }

  errorXml(code, message, detail) {
    return `\ufeff${super.errorXml(code, `${message}\nRequestId:${crypto.randomUUID()}\nTime:${new Date().toISOString()}`, detail)}`;
  }

  async check(request, body) {
    const { headers, url } = request;
    const query = url.split('?')[1] ?? '';
    const grant = this.grants.get(this.parameters(query));
    for (const name of ['sv', 'sr', 'se', 'sp', 'sig'])
      if (!new URLSearchParams(query).get(name)) throw new StoreError(403, 'AuthenticationFailed', `Server failed to authenticate the request: no ${name}`);
    if (headers.authorization) throw new StoreError(400, 'InvalidAuthenticationInfo', 'Authentication information is not given in the correct format.');
    if (headers['x-ms-blob-type'] !== 'BlockBlob') throw new StoreError(400, 'MissingRequiredHeader', 'An HTTP header that is mandatory for this request is not specified.');
    // sooner than "se": as if that time had come
    if (grant && grant.ends < Date.now())
      throw new StoreError(403, 'AuthenticationFailed', 'Server failed to authenticate the request.',
        '<AuthenticationErrorDetail>Signature not valid in the specified time frame</AuthenticationErrorDetail>');
    const answer = await this.ask(request.method, url, headers, body);
    const code = /<Code>(\w+)</.exec(answer.text)?.[1];
    // Azure says "authentication" of what azurite calls "authorization"
    if (answer.status !== 201)
      throw new StoreError(answer.status, code === 'AuthorizationFailure' ? 'AuthenticationFailed' : code, `azurite: ${answer.text}`);
    if (!grant) throw new StoreError(403, 'AuthenticationFailed', 'this SAS was not given out');
    this.checkFile(request, body, 'x-ms-meta-sfcdigest');
    this.checkLocation(request, grant);
  }

  ask(method, path, headers, body) {
    return new Promise((resolve, reject) => {
      const options = { host: '127.0.0.1', port: this.engine.httpServer.address().port, method, path, agent: false,
        headers: { ...headers, host: `${ACCOUNT}.blob.core.windows.net` } };
      const request = http.request(options, (response) => {
        const parts = [];
        response.on('data', (part) => parts.push(part));
        response.on('end', () => resolve({ status: response.statusCode, text: Buffer.concat(parts).toString() }));
        response.on('error', reject);
      });
      request.on('error', reject);
      request.end(body);
    });
  }
}

// ---------------------------------------------------------------- Google

class Gcs extends Place {
  right(location, seconds) {
    const token = `ya29.c.${random(300).toString('base64url')}....`;
    this.give(token, location, seconds);
    return { creds: { GCS_ACCESS_TOKEN: token } };
  }

  async check(request, body) {
    const grant = this.grants.get(/^Bearer ([\w.-]+)$/.exec(request.headers.authorization ?? '')?.[1]);
    if (!grant || grant.ends < Date.now()) throw new StoreError(401, 'AuthenticationRequired', 'Authentication required.');
    if (request.url.includes('?')) throw new StoreError(400, 'InvalidArgument', 'the fake wants no query');
    this.checkFile(request, body, 'x-goog-meta-sfc-digest');
    this.checkLocation(request, grant);
  }
}

// The older way: no token, but an URL of one file.  PUT is asked for each of them
// (as the drivers do).  A file's name there is the last part of the one that is
// sent; folders are those that the statement names after the stage.
class Presigned extends Place {
  right(location, seconds, file) {
    const query = new URLSearchParams({ GoogleAccessId: 'fake@gcp.iam.gserviceaccount.com', Expires: Math.floor(Date.now() / 1000 + seconds), Signature: random(256).toString('base64') });
    const url = `/${encodePath(location + file)}?${query}`;
    this.give(url, location, seconds);
    return { locationType: 'GCS', presignedUrl: `${this.endPoint}${url}` };
  }

  async check(request, body) {
    const { headers, url } = request;
    const grant = this.grants.get(url);
    if (headers.authorization) throw new StoreError(400, 'InvalidArgument', 'Only one of a signature and an Authorization header may be given.');
    // signed with neither
    if (!grant || headers['content-type'] || headers['content-md5'])
      throw new StoreError(403, 'SignatureDoesNotMatch', 'The request signature we calculated does not match the signature you provided.');
    if (grant.ends < Date.now()) throw new StoreError(400, 'ExpiredToken', 'The provided token has expired.');
    this.checkFile(request, body, 'x-goog-meta-sfc-digest', true);
  }
}

const KINDS = { S3, AZURE: Azure, GCS: Gcs, PRESIGNED: Presigned };

module.exports = { KINDS, StoreError, BUCKET, sha256, hmac };
