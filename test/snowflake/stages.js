// The stages that exist, those of a session and those for all.
'use strict';

const crypto = require('crypto');
const { errors, compilation, printName } = require('./sql');
const { shownAs } = require('./catalog');
const { BUCKET } = require('./stage');

class Stages {
  constructor(service) {
    this.service = service;
    this.permanent = new Map();
  }

  // Three parts of a name, with what the session has for those not given.
  full(session, parts) {
    if (parts[0] === '~') throw compilation('001003', 'the fake has no user stages');
    const whole = [session.database, session.schema].slice(0, 3 - parts.length).concat(parts);
    if (whole.length !== 3 || whole.some((part) => !part))
      throw compilation('090105', `Cannot perform operation. This session does not have a current database. (${shownAs(parts)})`, '22000');
    return whole;
  }

  key(parts) {
    return JSON.stringify(parts);
  }

  find(session, parts) {
    const key = this.key(this.full(session, parts));
    return session.stages.get(key) ?? this.permanent.get(key);
  }

  get(session, parts) {
    const stage = this.find(session, parts);
    if (!stage) throw errors.missing('Stage', shownAs(this.full(session, parts)));
    return stage;
  }

  // False if IF NOT EXISTS had nothing to do.
  create(session, parts, { replace, temporary, quiet, encrypted, url }) {
    const whole = this.full(session, parts);
    const { catalog } = this.service;
    if (!catalog.hasSchema(whole[0], whole[1])) throw errors.missing('Schema', shownAs(whole.slice(0, 2)));
    const where = temporary ? session.stages : this.permanent;
    const key = this.key(whole);
    if (where.has(key) && quiet) return false;
    if (where.has(key) && !replace) throw errors.exists(printName(whole[2]));
    if (where.has(key)) this.clean(where.get(key));
    where.set(key, this.make(whole, { temporary, encrypted, url, owner: session.role }));
    return true;
  }

  make(whole, { temporary, encrypted, url, owner }) {
    const stage = { name: whole[2], place: whole, temporary, encrypted, url, owner, created: Date.now(), bucket: BUCKET, prefix: `stages/${crypto.randomUUID()}/` };
    if (url) {
      const m = /^s3:\/\/([a-z0-9.-]+)\/(.*)$/.exec(url);
      if (!m) throw compilation('001011', `invalid URL prefix found in: '${url}'`, '22023');
      Object.assign(stage, { bucket: m[1], prefix: m[2] && !m[2].endsWith('/') ? m[2] + '/' : m[2], encrypted: false });
    }
    return stage;
  }

  drop(session, parts) {
    const key = this.key(this.full(session, parts));
    for (const where of [session.stages, this.permanent]) {
      const stage = where.get(key);
      if (!stage) continue;
      where.delete(key);
      this.clean(stage);
      return true;
    }
    return false;
  }

  // The files of an internal stage go with it.
  clean(stage) {
    if (stage.url) return;
    const { store } = this.service;
    store.list(stage.bucket, stage.prefix).then(async (files) => {
      for (const file of files) await store.remove(stage.bucket, file.key);
    }).catch((error) => this.service.log({ trouble: String(error) }));
  }

  endSession(session) {
    for (const stage of session.stages.values()) this.clean(stage);
    session.stages.clear();
  }

  visible(session, database, schema) {
    return [...session.stages.values(), ...this.permanent.values()].filter((s) => s.place[0] === database && s.place[1] === schema);
  }
}

module.exports = { Stages };
