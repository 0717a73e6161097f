// Logging in: the token of a key pair is verified, sessions and their tokens.
'use strict';

const crypto = require('crypto');
const { literal } = require('./sql');
const { strftime } = require('./values');

const unbase64 = (text) => Buffer.from(text, 'base64url');

class Refused extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

const FORMATS = { date: ['DATE_OUTPUT_FORMAT', 'YYYY-MM-DD'], time: ['TIME_OUTPUT_FORMAT', 'HH24:MI:SS'],
  ntz: ['TIMESTAMP_NTZ_OUTPUT_FORMAT', 'YYYY-MM-DD HH24:MI:SS.FF3'], tz: ['TIMESTAMP_TZ_OUTPUT_FORMAT', null] };

class Session {
  constructor(values) {
    Object.assign(this, { stages: new Map(), requests: new Map(), results: new Map(), lastResult: null, parameters: new Map(), admin: false, ...values });
    this.setFormats();
  }

  setParameter(name, value) {
    this.parameters.set(name.toUpperCase(), value);
    this.setFormats();
  }

  get timezone() {
    return String(this.parameters.get('TIMEZONE') ?? 'America/Los_Angeles');
  }

  // How ::VARCHAR prints dates and times, as DuckDB's strftime in SQL.
  setFormats() {
    const given = (name) => {
      const value = this.parameters.get(name);
      return value === undefined || value === '' || /^auto$/i.test(value) ? undefined : String(value);
    };
    const stamp = given('TIMESTAMP_OUTPUT_FORMAT') ?? 'YYYY-MM-DD HH24:MI:SS.FF3 TZHTZM';
    this.outputFormats = {};
    for (const [kind, [name, standard]] of Object.entries(FORMATS)) this.outputFormats[kind] = literal(strftime(given(name) ?? standard ?? stamp));
  }
}

class Sessions {
  constructor(service) {
    this.service = service;
    this.tokens = new Map();
    this.masters = new Map();
    this.all = new Set();
    const der = service.key.export({ type: 'spki', format: 'der' });
    this.fingerprint = 'SHA256:' + crypto.createHash('sha256').update(der).digest('base64');
  }

  get acct() {
    return this.service.options.account.toUpperCase().split('.')[0];
  }

  // Throws Refused unless the token is what the user's key signs.
  verify(token) {
    const no = (why) => {
      this.service.log({ jwt: why });
      throw new Refused('390144', `JWT token is invalid. [${crypto.randomUUID()}]`);
    };
    const parts = String(token).split('.');
    if (parts.length !== 3) no('not three parts');
    let header, claims;
    try {
      [header, claims] = parts.slice(0, 2).map((part) => JSON.parse(unbase64(part).toString()));
    } catch {
      no('not JSON');
    }
    if (/[+/=]/.test(token)) no('not base64url without padding');
    if (header.alg !== 'RS256') no('alg');
    if (!crypto.verify('RSA-SHA256', Buffer.from(parts.slice(0, 2).join('.')), this.service.key, unbase64(parts[2]))) no('signature');
    const user = `${this.acct}.${this.service.options.user.toUpperCase()}`;
    if (claims.iss !== `${user}.${this.fingerprint}`) no(`iss is ${claims.iss}`);
    if (claims.sub !== user) no(`sub is ${claims.sub}`);
    const now = Date.now() / 1000;
    if (!Number.isInteger(claims.iat) || !Number.isInteger(claims.exp)) no('iat and exp are whole numbers');
    if (claims.exp <= now || claims.iat > now + 60 || claims.exp - claims.iat > 3600) no('times');
  }

  login(data, query) {
    const { options } = this.service;
    if (data.AUTHENTICATOR !== 'SNOWFLAKE_JWT') throw new Refused('390101', 'Authentication attempt rejected: authenticator is not SNOWFLAKE_JWT');
    if (String(data.LOGIN_NAME).toUpperCase() !== options.user.toUpperCase())
      throw new Refused('390100', 'Incorrect username or password was specified.');
    this.verify(data.TOKEN);
    const role = this.role(query.get('roleName'));
    const session = new Session({ id: String(10000 + this.service.next()), user: options.user, account: options.account, role, ...this.defaults(query) });
    for (const [name, value] of Object.entries(data.SESSION_PARAMETERS ?? {})) session.setParameter(name, value);
    this.all.add(session);
    return { ...this.newTokens(session), session };
  }

  role(given) {
    if (!given) return this.service.options.role;
    const role = identifier(given, (name) => this.service.roles.has(name));
    if (role === null)
      throw new Refused('390189', `Role '${given}' specified in the connect string does not exist or not authorized. Contact your local system administrator, or attempt to login with another role, e.g. PUBLIC.`);
    return role;
  }

  // What the login names and does not exist is null, and no error.
  defaults(query) {
    const { service } = this;
    const database = identifier(query.get('databaseName'), (name) => service.catalog.databases.has(name));
    const schema = database === null ? null : identifier(query.get('schemaName') || 'PUBLIC', (name) => service.catalog.hasSchema(database, name));
    return { database, schema, warehouse: identifier(query.get('warehouse'), (name) => service.warehouseExists(name)) };
  }

  newTokens(session) {
    const { tokenLife } = this.service.options;
    const [token, masterToken] = [1, 2].map(() => 'ver:3-hint:' + crypto.randomBytes(60).toString('base64'));
    this.tokens.set(token, { session, ends: Date.now() + tokenLife * 1000 });
    this.masters.set(masterToken, { session, ends: Date.now() + 14400000 });
    return { token, masterToken };
  }

  // The session of a request, or Refused with the code a driver acts on.
  authorize(header) {
    const token = /^Snowflake Token="([^"]+)"$/.exec(header ?? '')?.[1];
    const known = token && this.tokens.get(token);
    if (!known) throw new Refused('390104', 'ID Token is invalid. Authentication token is not valid.');
    if (known.ends <= Date.now()) throw new Refused('390112', 'Your session has expired. Please login again.');
    return known.session;
  }

  renew(header, body) {
    const master = /^Snowflake Token="([^"]+)"$/.exec(header ?? '')?.[1];
    const known = master && this.masters.get(master);
    if (!known || known.ends <= Date.now()) throw new Refused('390114', 'Authentication token has expired.  The user must authenticate again.');
    const old = this.tokens.get(body.oldSessionToken);
    if (!old || old.session !== known.session || body.requestType !== 'RENEW') throw new Refused('390104', 'oldSessionToken or requestType');
    old.ends = 0;
    this.masters.delete(master);
    return this.newTokens(known.session);
  }

  expire(map) {
    for (const entry of map.values()) entry.ends = 0;
    return map.size;
  }

  end(session) {
    for (const map of [this.tokens, this.masters]) for (const [token, entry] of map) if (entry.session === session) map.delete(token);
    this.all.delete(session);
    this.service.stages.endSession(session);
  }
}

// A name of the connection: as it stands, in upper case, or in quotes.
function identifier(text, exists) {
  if (!text) return null;
  const quoted = /^"(.*)"$/.exec(text);
  const names = quoted ? [quoted[1].replace(/""/g, '"')] : [text, text.toUpperCase()];
  return names.find(exists) ?? null;
}

module.exports = { Sessions, Session, Refused };
