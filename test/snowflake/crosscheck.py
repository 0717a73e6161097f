#!/usr/bin/env python3
"""A second opinion on the SQL that our client sends to Snowflake: fakesnow's.

    crosscheck.py LOG PORT FILES

LOG is the log of service.js, PORT where it listens (it has to be at rest), FILES
its directory, in whose stages no file may have been removed.  All that was executed
is executed again in fakesnow, in order; then every table there has to be as it is
at the service: columns, types, rows.  What fakesnow cannot do is done in a simpler
way (RULES), if it fails in the way that is known, and listed.  Prints TAP.

Not looked at: what SHOW answers, comments, grants, sessions, transactions of several
sessions.
"""
import collections
import datetime
import decimal
import glob
import gzip
import json
import logging
import re
import sys
import urllib.request
import warnings

import fakesnow
import snowflake.connector

OWN_TIMES = ('_PEERDB_SYNCED_AT', 'CHANGED_AT')  # which SYSDATE() may have made
BATCH = 100
NAME = r'"(?:[^"]|"")*"'
TABLE = rf'{NAME}\.{NAME}\.{NAME}'
LITERAL = r"'(?:[^'\\]|\\.|'')*'"
END = re.compile(r'(BEGIN|COMMIT|ROLLBACK)\b')


def unquote(literal):
    return re.sub(r"\\n|\\(.)|''", lambda m: '\n' if m[0] == '\\n' else m[1] or "'", literal[1:-1], flags=re.S)


def quote(text):
    return 'NULL' if text is None else "'" + text.replace('\\', '\\\\').replace("'", "''") + "'"


def shape(sql):
    """What statements of one kind have in common."""
    if sql.startswith('EXECUTE IMMEDIATE'):
        return 'EXECUTE IMMEDIATE block'
    text = re.sub(LITERAL, '?', sql)
    text = re.sub(NAME, 'x', text)
    text = re.sub(r'(?:TO_\w+|PARSE_JSON)\(\$\d+[^()]*\)|\$\d+', '$n', text)
    text = re.sub(r'-?\b\d+\b', '?', text)
    text = re.sub(r'\b(?:NUMBER|VARCHAR|TIMESTAMP_\w+|DATE|TIME|VARIANT|BINARY|FLOAT|BOOLEAN)\b(?:\([^()]*\))?', 'type', text)
    text = re.sub(r'_resync_b\d', '_resync_b', text)
    text = re.sub(r'\s+', ' ', text)
    return re.sub(r'(\b[^,()]+|\$n|\?)(?:, \1)+', r'\1, ...', text)


# ---------------------------------------------------------------- the log

class Statement:
    def __init__(self, at, sql):
        self.at = at
        self.sql = sql
        self.shape = shape(sql)
        self.refused = False  # by the service
        self.refused_here = False
        self.rows = None


class Unit:
    """A statement, or a block and the statements that were done in it."""

    def __init__(self, statement):
        self.statements = [statement]
        self.began = statement.at
        self.ended = None  # when the service went on
        self.replayed = None  # from when to when
        self.ours = False

    def answered(self, sql, code):
        """What the client sent (the log cuts long ones off), and the answer."""
        self.ours = True
        self.statements[0].sql = sql
        # 000604: given up by the client; of a statement alone, when it is done
        self.statements[0].refused = code not in (None, '000604')

    def inner(self):
        return self.statements[1:]

    def is_cut(self):
        """Has the service given it up, and rolled back without a statement?"""
        ends = [s.sql.split()[0] for s in self.inner() if END.match(s.sql)]
        return bool(ends) and ends[-1] == 'BEGIN'


def read_log(name):
    """Units in order; of an administrator's those that change something."""
    units = []
    waiting = collections.defaultdict(collections.deque)  # for their answers, by text
    last = None  # the service does one after the other
    with open(name) as file:
        entries = [json.loads(line) for line in file]
    for entry in entries:
        text = entry.get('statement')
        if text is not None and entry['inBlock']:
            last.statements.append(Statement(entry['at'], text))
        elif text is not None:
            if last:
                last.ended = entry['at'] + 1
            last = Unit(Statement(entry['at'], text))
            units.append(last)
            waiting[text[:20000]].append(last)
        elif entry.get('sql'):
            sql = entry['sql']
            if waiting[sql[:20000]]:
                waiting[sql[:20000]].popleft().answered(sql, entry['code'])
            elif sql.startswith('PUT ') and entry['code'] is None:
                units.append(Unit(Statement(entry['at'], sql)))
                units[-1].answered(sql, None)
    last.ended = entries[-1]['at'] + 1
    return [u for u in units if u.ours or not re.match('SELECT|SHOW|DESC', u.statements[0].sql)]


# ---------------------------------------------------------------- what fakesnow cannot do

class Rule:
    """For statements that match, if fakesnow's error matches: what to do instead."""

    def __init__(self, sql, error, reason, instead=None, apart=False):
        self.sql = re.compile(sql, re.S)
        self.error = re.compile(error, re.S)
        self.reason = reason
        self.instead = instead or (lambda replay, sql: [])
        self.apart = apart


def swap(replay, sql):
    a, b = re.findall(TABLE, sql)
    other = a[:-1] + '_SWAP"'
    return [f'ALTER TABLE {x} RENAME TO {y}' for x, y in ((a, other), (b, a), (other, b))]


def copy(replay, sql):
    """The rows of the files, through the same expressions."""
    match = re.match(rf'COPY INTO ({TABLE}) (\(.*?\)) FROM \(SELECT (.*) FROM @{TABLE}\) FILES = \((.*?)\) FILE_FORMAT', sql, re.S)
    target, columns, values, files = match.groups()
    values = re.sub(r'\$(\d+)', r'C\1', values)
    rows = [row for name in re.findall(LITERAL, files) for row in replay.file(unquote(name))]
    replay.loaded = len(rows)
    names = ', '.join(f'C{n + 1}' for n in range(len(rows[0])))
    for first in range(0, len(rows), BATCH):
        some = rows[first:first + BATCH]
        lines = ['(' + ', '.join(f'{quote(v)}::VARCHAR' for v in some[0]) + ')'] + ['(' + ', '.join(map(quote, row)) + ')' for row in some[1:]]
        yield f'INSERT INTO {target} {columns} SELECT {values} FROM (VALUES {", ".join(lines)}) AS F ({names})'


def merge(replay, sql):
    """All columns of the source that are used are named in ON."""
    sql = re.sub(rf'USING ({TABLE}) AS', r'USING (SELECT * FROM \1) AS', sql, count=1)
    used = sorted(set(re.findall(r'_resync_s\.(_resync_(?:op|mask))', sql.partition('\nWHEN')[2])))
    on = ''.join(f' AND (_resync_s.{c} IS NULL OR _resync_s.{c} IS NOT NULL)' for c in used)
    return [sql.replace('\nWHEN', f'{on}\nWHEN', 1)]


SYNTAX = 'syntax error|not implemented|Unsupported|contains unsupported'
RULES = [
    Rule('EXECUTE IMMEDIATE', SYNTAX, 'it has no Snowflake Scripting; the statements that were done in it are done one by one, and what it decides is compared'),
    Rule('COPY INTO', 'FILE_FORMAT option', "it has not all options of CSV, and no empty text other than NULL; the files' rows are inserted through the same expressions", copy),
    Rule(r'SELECT .* INTO :\w+ FROM TABLE\(RESULT_SCAN', 'syntax error',
         'it has no SELECT INTO, and RESULT_SCAN not as a source; the rows of the COPY before it are taken',
         lambda replay, sql: [f'SELECT SUM("rows_loaded") FROM (SELECT {replay.loaded} AS "rows_loaded")']),
    Rule(r'SELECT .* INTO :\w+', 'syntax error', 'it has no SELECT INTO; the same without INTO', lambda replay, sql: [re.sub(r' INTO :\w+', '', sql)]),
    Rule('MERGE', 'a single transaction can only write to a single attached database', 'it cannot MERGE in a transaction; all of the block is done outside of one', apart=True),
    Rule('MERGE', r'Cannot extract field|does not have a column|Referenced (column|table)', 'its MERGE forgets columns of the source that are not values alone; they are named in ON, too', merge),
    Rule(r'ALTER TABLE \S+ SWAP WITH', 'syntax error', 'it has no SWAP WITH; three times RENAME', swap),
    Rule('PUT ', 'No such file', 'it finds the stage, but the client puts the file there itself'),
    Rule(r'SHOW GRANTS ON|GRANT ', SYNTAX, 'it has no grants; nothing is done'),
    Rule(r'ALTER TABLE .* (SET (DATA_RETENTION|CHANGE_TRACKING|TAG)|DROP CLUSTERING KEY|DROP PRIMARY KEY)', SYNTAX, 'it has no such setting; nothing is done'),
]


class Restart(Exception):
    """The transaction is lost; it is begun again, by a rule that is known now."""


class Replay:
    def __init__(self, connection, files):
        self.cursor = connection.cursor()
        self.files = files
        self.ways = {}  # rule by shape
        self.apart = {}  # the same, of those that are done outside of a transaction
        self.loaded = 0
        self.in_transaction = False
        self.results = collections.defaultdict(collections.Counter)  # by shape
        self.errors = {}
        self.decisions = []

    def file(self, name):
        """Rows of a file in a stage; NULL where a field is empty without quotes."""
        found = glob.glob(f'{self.files}/*/stages/*/{name}._S3rver_object')
        if len(found) != 1:
            raise RuntimeError(f'{len(found)} files {name}')
        with gzip.open(found[0], 'rt', newline='') as file:
            text = file.read()
        row = []
        for match in re.finditer(r'(?:"((?:[^"]|"")*)"|([^,"\n]*))(,|\n)', text):
            quoted, plain, end = match.groups()
            row.append(plain or None if quoted is None else quoted.replace('""', '"'))
            if end == '\n':
                yield row
                row = []

    def rule_for(self, statement, error):
        known = (self.ways.get(statement.shape), self.apart.get(statement.shape))
        return next((r for r in RULES if r not in known and r.sql.match(statement.sql) and r.error.search(str(error))), None)

    def execute(self, statement, texts):
        for text in texts:
            self.cursor.execute(text)
            statement.rows = self.cursor.rowcount
        if re.match(r'SELECT .* INTO :', statement.sql):
            statement.rows = self.cursor.fetchone()[0]

    def step(self, statement, apart):
        end = END.match(statement.sql)
        if end and apart:
            return
        while True:
            rule = self.ways.get(statement.shape)
            try:
                self.execute(statement, rule.instead(self, statement.sql) if rule else [statement.sql])
                break
            except Exception as error:  # whatever DuckDB, sqlglot and the connector have
                if statement.refused:
                    statement.refused_here = True
                    return
                rule = self.rule_for(statement, error)
                if rule is None:
                    raise
                (self.apart if rule.apart else self.ways)[statement.shape] = rule
                if self.in_transaction:
                    raise Restart from None
        if end:
            self.in_transaction = end[1] == 'BEGIN'

    def run(self, unit):
        began = now()
        while True:
            apart = any(s.shape in self.apart for s in unit.statements)
            if apart and (unit.is_cut() or unit.statements[-1].sql == 'ROLLBACK'):
                self.count(unit, apart, 'not done, because rolled back')
                return
            try:
                for statement in unit.statements:
                    current = statement
                    self.step(statement, apart)
                break
            except Restart:
                self.roll_back()
            except Exception as error:
                self.roll_back()
                self.errors.setdefault(current.shape, f'{type(error).__name__}: {error}\n{current.sql[:2000]}')
                self.results[current.shape]['failed, with its block' if unit.inner() else 'failed'] += len(unit.statements)
                return
        self.roll_back()
        unit.replayed = (began, now())
        self.count(unit, apart)
        if not unit.is_cut():
            self.decide(unit)

    def roll_back(self):
        if self.in_transaction:
            self.cursor.execute('ROLLBACK')
        self.in_transaction = False

    def count(self, unit, apart, how=None):
        for s in unit.statements:
            way = 'otherwise' if s.shape in self.ways else 'as is, but for the transaction' if apart else 'as is'
            if s.refused_here:
                way = 'refused by both'
            elif s.refused and not unit.inner():
                self.errors.setdefault(s.shape, f'the service refuses it\n{s.sql[:2000]}')
            self.results[s.shape if unit.ours else f'of the test itself: {s.shape}'][how or way] += 1

    def decide(self, unit):
        """Would the block have gone on as it did?"""
        inner = unit.inner()
        block = unquote(unit.statements[0].sql[len('EXECUTE IMMEDIATE '):]) if inner else ''
        total = 0
        for statement, following in zip(inner, inner[1:] + [None]):
            went_on = following is not None and following.sql != 'ROLLBACK'
            rest = block.partition(statement.sql)[2]
            if re.match(r'SELECT SUM\("rows_loaded"\)', statement.sql):
                total += int(statement.rows)
                want = re.search(r'IF \(total <> (\d+)\)', rest)
                if following is None or not following.sql.startswith('COPY'):
                    self.decisions.append((total == int(want[1]), went_on, statement.sql))
            elif re.match(r';\s*IF \((SQLROWCOUNT|got) <> 1\)', rest):
                self.decisions.append((int(statement.rows) == 1, went_on, statement.sql))


def now():
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


# ---------------------------------------------------------------- comparing

def canonical_json(text):
    value = json.loads(text, parse_float=lambda number: f'number {decimal.Decimal(number).normalize()}')
    return json.dumps(value, sort_keys=True)


# By type: what the service is asked for, what fakesnow's value is made, and what both are then.
SAME = str
KINDS = {
    'NUMBER': ('{}', str, lambda text: str(decimal.Decimal(text).normalize() + 0)),
    'FLOAT': ('{}', str, lambda text: repr(float(text))),
    'BOOLEAN': ('{}', str, str.lower),
    'VARCHAR': ('{}', str, SAME),
    'VARIANT': ('TO_JSON({})', str, canonical_json),
    'BINARY': ("TO_VARCHAR({}, 'HEX')", lambda value: value.hex().upper(), SAME),
    'DATE': ("TO_VARCHAR({}, 'YYYY-MM-DD')", str, SAME),
    'TIME': ("TO_VARCHAR({}, 'HH24:MI:SS.FF6')", lambda value: value.isoformat('microseconds'), SAME),
    'TIMESTAMP_NTZ': ("TO_VARCHAR({}, 'YYYY-MM-DD HH24:MI:SS.FF6')", lambda value: value.isoformat(' ', 'microseconds'), SAME),
    'TIMESTAMP_TZ': ("TO_VARCHAR({}, 'YYYY-MM-DD HH24:MI:SS.FF6')",
                     lambda value: value.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(' ', 'microseconds'), SAME),
}


class Comparison:
    def __init__(self, port, cursor, units):
        self.port = port
        self.cursor = cursor
        self.windows = [u for u in units if u.replayed and any('SYSDATE()' in s.sql for s in u.statements)]

    def service(self, sql):
        request = urllib.request.Request(f'http://127.0.0.1:{self.port}/admin/sql', json.dumps({'sql': sql}).encode())
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
        if 'error' in answer:
            raise RuntimeError(f'{sql}: {answer["error"]}')
        return answer['rows']

    def fakesnow(self, sql):
        return self.cursor.execute(sql).fetchall()

    def tables(self, ask):
        return {tuple(row) for row in ask("SELECT TABLE_SCHEMA, TABLE_NAME FROM \"DB\".INFORMATION_SCHEMA.TABLES WHERE TABLE_TYPE = 'BASE TABLE'")}

    def columns(self, ask, name):
        return [(row[0], re.sub(r'(VARCHAR|TIME\w*|BINARY)\(\d+\)', r'\1', row[1])) for row in ask(f'DESCRIBE TABLE {name}')]

    def table(self, name):
        """What is different, or None, and the number of rows."""
        columns = self.columns(self.service, name)
        theirs = self.columns(self.fakesnow, name)
        if columns != theirs:
            return f'columns {columns} at the service, {theirs} at fakesnow', 0
        kinds = [KINDS[re.match(r'\w+', kind)[0]] for _, kind in columns]
        quoted = ['"' + column.replace('"', '""') + '"' for column, _ in columns]
        here = self.service(f'SELECT {", ".join(k[0].format(q) for k, q in zip(kinds, quoted))} FROM {name}')
        there = [[None if v is None else k[1](v) for v, k in zip(row, kinds)] for row in self.fakesnow(f'SELECT {", ".join(quoted)} FROM {name}')]
        times = [n for n, (column, _) in enumerate(columns) if column in OWN_TIMES]
        here, there = (sorted(self.row(row, kinds, times) for row in rows) for rows in (here, there))
        for a, b in zip(here + [None] * len(there), there + [None] * len(here)):
            if a is None and b is None:
                break
            if a is None or b is None or a[0] != b[0] or not all(self.same_time(x, y) for x, y in zip(a[1], b[1])):
                return f'{len(here)} rows at the service, {len(there)} at fakesnow; service: {str(a)[:600]}\nfakesnow: {str(b)[:600]}', 0
        return None, len(here)

    def row(self, values, kinds, times):
        """(the values, times of our own), both in an order."""
        values = ['NULL' if v is None else 'v ' + k[2](v) for v, k in zip(values, kinds)]
        return [v for n, v in enumerate(values) if n not in times], [values[n] for n in times]

    def same_time(self, here, there):
        """The same, or of the same unit on both sides."""
        if here == there or 'NULL' in (here, there):
            return here == there
        here, there = (datetime.datetime.fromisoformat(v[2:]) for v in (here, there))
        ms = (here - datetime.datetime(1970, 1, 1)) / datetime.timedelta(milliseconds=1)
        return any(u.replayed[0] <= there <= u.replayed[1] and u.began <= ms <= u.ended for u in self.windows)


# ---------------------------------------------------------------- report

class Tap:
    def __init__(self):
        self.count = 0

    def ok(self, good, name, why=''):
        self.count += 1
        name = re.sub(r'\s+', ' ', name).replace('#', ' ')
        print(f'{"ok" if good else "not ok"} {self.count} - {name}' + ''.join(f'\n#   {line}' for line in ('' if good else why).splitlines()))


def report_statements(tap, replay, units):
    totals = collections.Counter()
    for what, counts in replay.results.items():
        totals.update(counts)
        details = ', '.join(f'{n} {k}' for k, n in counts.items())
        why = replay.errors.get(what.removeprefix('of the test itself: '), '')
        tap.ok(not why, f'{what[:200]} ({details})', why)
    done = sum(totals.values())
    wanted = sum(len(u.statements) for u in units)
    tap.ok(done == wanted, f'every one of {wanted} statements: ' + ', '.join(f'{n} {k}' for k, n in totals.items()), f'{done}')
    wrong = [d for d in replay.decisions if d[0] != d[1]]
    tap.ok(not wrong and len(replay.decisions) > 0, f'blocks go on and go back as they did ({len(replay.decisions)} decisions)', str(wrong[:3]))
    used = [*replay.ways.items(), *replay.apart.items()]
    for rule in RULES:
        shapes = [what for what, way in used if way is rule]
        if shapes:
            print(f'# not supported by fakesnow: {shapes[0][:100]}{f" and {len(shapes) - 1} like it" if shapes[1:] else ""}: {rule.reason}')


def main():
    log, port, files = sys.argv[1:]
    warnings.simplefilter('ignore')
    logging.getLogger('sqlglot').setLevel(logging.CRITICAL)
    units = read_log(log)
    tap = Tap()
    with fakesnow.patch():
        connection = snowflake.connector.connect(database='DB', schema='PUBLIC')
        replay = Replay(connection, files)
        for unit in units:
            replay.run(unit)
        report_statements(tap, replay, units)
        comparison = Comparison(port, connection.cursor(), units)
        here, there = comparison.tables(comparison.service), comparison.tables(comparison.fakesnow)
        tap.ok(here == there, f'the same tables ({len(here)})', f'service only: {sorted(here - there)}\nfakesnow only: {sorted(there - here)}')
        for schema, name in sorted(here & there):
            difference, rows = comparison.table(f'"DB"."{schema}"."' + name.replace('"', '""') + '"')
            tap.ok(difference is None, f'{schema}.{name}: equal ({rows} rows)', difference or '')
    print(f'1..{tap.count}')


main()
