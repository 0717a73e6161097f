// SHOW and DESCRIBE: the catalog as rows.
'use strict';

const { Reader, errors, printName, lex } = require('./sql');
const { shownAs } = require('./catalog');

const text = (name) => ({ name, type: 'text', nullable: true, length: 16777216 });
const stamp = (name) => ({ name, type: 'timestamp_ltz', scale: 3, nullable: true });
const whole = (name) => ({ name, type: 'fixed', precision: 38, scale: 0, nullable: true });

const at = (ms) => `${Math.floor(ms / 1000)}.${String(ms % 1000).padStart(3, '0')}000000`;
const result = (rowtype, rows) => ({ rowtype, rows, typeId: 20480 });
const columns = (names) => names.split(' ').map((n) => (n === 'created_on' ? stamp(n) : /^(rows|bytes)$/.test(n) ? whole(n) : text(n)));

// LIKE of SHOW: without regard to case, % and _, a backslash before them.
function pattern(like) {
  let source = '';
  for (let i = 0; i < like.length; i++) {
    const c = like[i];
    if (c === '\\' && i + 1 < like.length) source += like[++i].replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
    else if (c === '%') source += '.*';
    else if (c === '_') source += '.';
    else source += c.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  }
  const regex = new RegExp(`^${source}$`, 'isu');
  return (name) => regex.test(name);
}

class Show extends Reader {
  constructor(sql, context) {
    super(lex(sql), sql);
    this.context = context;
    this.catalog = context.catalog;
  }

  like() {
    return this.accept('LIKE') ? pattern(this.take('string').v) : () => true;
  }

  // IN SCHEMA "D"."S", which has to exist
  schema() {
    this.expect('IN', 'SCHEMA');
    const parts = this.names();
    this.end();
    if (parts.length !== 2 || !this.catalog.hasSchema(...parts)) throw errors.notThere(shownAs(parts));
    return parts;
  }

  async show() {
    this.expect('SHOW');
    if (this.accept('TERSE')) this.fail('TERSE');
    const what = this.take('word').u;
    const make = { TABLES: 'tables', VIEWS: 'views', OBJECTS: 'objects', SCHEMAS: 'schemas', DATABASES: 'databases', WAREHOUSES: 'warehouses', GRANTS: 'grants', STAGES: 'stages' }[what];
    if (!make) {
      this.i--;
      this.fail();
    }
    return this[make]();
  }

  async tables() {
    const like = this.like();
    const [database, schema] = this.schema();
    const rows = [];
    for (const o of this.catalog.inSchema(database, schema)) {
      if (o.kind === 'VIEW' || !like(o.name)) continue;
      const count = await this.catalog.rowCount(o);
      rows.push([at(o.created), o.name, database, schema, o.kind, o.comment, o.clusterBy, count, String(count * 64), o.owner, String(o.retention ?? 1),
        o.clusterBy ? 'ON' : 'OFF', o.changeTracking ? 'ON' : 'OFF', 'N', 'N', 'N', 'N']);
    }
    return result(columns('created_on name database_name schema_name kind comment cluster_by rows bytes owner retention_time automatic_clustering ' +
      'change_tracking is_external is_dynamic is_iceberg is_hybrid'), rows);
  }

  async objects() {
    const like = this.like();
    const [database, schema] = this.schema();
    const rows = [];
    for (const o of this.catalog.inSchema(database, schema)) {
      if (!like(o.name)) continue;
      const count = await this.catalog.rowCount(o);
      rows.push([at(o.created), o.name, database, schema, o.kind, o.comment, o.clusterBy, count, count && String(count * 64), o.owner,
        o.kind === 'VIEW' ? '' : String(o.retention ?? 1)]);
    }
    return result(columns('created_on name database_name schema_name kind comment cluster_by rows bytes owner retention_time'), rows);
  }

  async views() {
    const like = this.like();
    const [database, schema] = this.schema();
    const views = this.catalog.inSchema(database, schema).filter((o) => o.kind === 'VIEW' && like(o.name));
    return result(columns('created_on name reserved database_name schema_name owner comment text'),
      views.map((o) => [at(o.created), o.name, '', database, schema, o.owner, o.comment, o.text]));
  }

  async stages() {
    const like = this.like();
    const [database, schema] = this.schema();
    const stages = this.context.service.stages.visible(this.context.session, database, schema).filter((s) => like(s.name));
    return result(columns('created_on name database_name schema_name url owner type'),
      stages.map((s) => [at(s.created), s.name, database, schema, s.url ?? '', s.owner, s.temporary ? 'INTERNAL TEMPORARY' : s.url ? 'EXTERNAL' : 'INTERNAL']));
  }

  async schemas() {
    const like = this.like();
    this.expect('IN', 'DATABASE');
    const database = this.name();
    this.end();
    if (!this.catalog.databases.has(database)) throw errors.notThere(printName(database));
    const rows = [...this.catalog.schemas.values()].filter((s) => s.database === database && like(s.name))
      .map((s) => [at(s.created), s.name, 'N', this.context.session.schema === s.name ? 'Y' : 'N', database, s.owner, s.comment, '', '1']);
    return result(columns('created_on name is_default is_current database_name owner comment options retention_time'), rows);
  }

  async databases() {
    const like = this.like();
    this.end();
    return result(columns('created_on name is_default is_current origin owner comment options retention_time kind'),
      [...this.catalog.databases].filter(like).map((name) => [at(Date.now()), name, 'N', this.context.session.database === name ? 'Y' : 'N', '', 'ACCOUNTADMIN', '', '', '1', 'STANDARD']));
  }

  async warehouses() {
    const like = this.like();
    this.end();
    const { settings, options } = this.context.service;
    const names = settings.warehouse_exists ? [options.warehouse].filter(like) : [];
    return result(columns('name state type size running queued is_default is_current auto_suspend auto_resume owner comment'),
      names.map((name) => [name, 'STARTED', 'STANDARD', 'X-Small', '0', '0', 'N', 'Y', '600', 'true', 'ACCOUNTADMIN', '']));
  }

  async grants() {
    this.expect('ON');
    const kind = this.take('word').u;
    if (!['TABLE', 'VIEW'].includes(kind)) this.fail();
    const parts = this.names();
    this.end();
    const object = this.describable(parts);
    const name = shownAs([object.database, object.schema, object.name]);
    const row = (privilege, role, option, by, created) => [at(created), privilege, object.kind === 'VIEW' ? 'VIEW' : 'TABLE', name, 'ROLE', role, String(option), by];
    return result(columns('created_on privilege granted_on name granted_to grantee_name grant_option granted_by'), [
      row('OWNERSHIP', object.owner, true, object.owner, object.created),
      ...object.grants.map((g) => row(g.privilege, g.grantee, g.option, g.by, g.created)),
    ]);
  }

  describable(parts) {
    const object = this.catalog.find(parts);
    if (!object) throw errors.notThere(shownAs(parts));
    return object;
  }

  async describe() {
    if (!this.accept('DESCRIBE')) this.expect('DESC');
    if (!this.accept('TABLE')) this.expect('VIEW');
    const parts = this.names();
    this.end();
    const object = this.describable(parts);
    const yes = (flag) => (flag ? 'Y' : 'N');
    const rows = object.columns.map((c) => [c.name, c.type.text, 'COLUMN', yes(!c.notnull), c.defaultText ?? null, yes(c.pk), yes(c.unique), null, null,
      c.comment ?? null, c.policy ?? null]);
    return result(['name', 'type', 'kind', 'null?', 'default', 'primary key', 'unique key', 'check', 'expression', 'comment', 'policy name'].map(text), rows);
  }
}

module.exports = { Show };
