/*
 * Every statement that was sent, through Google's own analyzer (ZetaSQL, npm
 * package @fivetrandevelopers/zetasql), against the tables as they were then.
 *
 *	node analyze.js DIRECTORY REQUESTS
 *
 * DIRECTORY has the package; REQUESTS is front.py's log.  Prints "analyzed N" and
 * a line for each statement that it does not accept; its status is 0 either way.
 */
'use strict';
const fs = require('fs');
const net = require('net');
const path = require('path');
const { spawn } = require('child_process');

const [directory, requests] = process.argv.slice(2);
const base = path.join(directory, 'node_modules/@fivetrandevelopers/zetasql/lib');
const { ZetaSQLClient } = require(base);

const TYPES = { INTEGER: 'INT64', FLOAT: 'DOUBLE', FLOAT64: 'DOUBLE', BOOLEAN: 'BOOL' };

/* A type's proto, from its name in the REST API or in DDL. */
function type(name, repeated) {
	const word = name.toUpperCase().replace(/\(.*/, '');
	const proto = { typeKind: 'TYPE_' + (TYPES[word] || word) };
	return repeated ? { typeKind: 'TYPE_ARRAY', arrayType: { elementType: proto } } : proto;
}

function columns(fields) {
	return fields.map((f) => ({ name: f.name, type: type(f.type, f.mode === 'REPEATED') }));
}

const tables = new Map(); // "project.dataset" -> Map of table -> columns

function dataset(reference) {
	const key = reference.projectId + '\0' + reference.datasetId;
	if (!tables.has(key)) tables.set(key, new Map());
	return tables.get(key);
}

/* Nested catalogs: `project`.`dataset`.`table`. */
function catalog(language, temporary) {
	const projects = new Map();
	let id = 1;
	for (const [key, content] of tables) {
		const [project, name] = key.split('\0');
		if (!projects.has(project)) projects.set(project, { name: project, catalog: [] });
		projects.get(project).catalog.push({
			name,
			table: [...content].map(([table, column]) => ({ name: table, serializationId: id++, column })),
		});
	}
	return { name: 'all', table: temporary, catalog: [...projects.values()], builtinFunctionOptions: { languageOptions: language } };
}

function freePort() {
	return new Promise((resolve) => {
		const server = net.createServer().listen(0, '127.0.0.1', () => {
			const { port } = server.address();
			server.close(() => resolve(port));
		});
	});
}

/* The statements of a script, each in turn. */
async function analyze(sql, language) {
	const options = { languageOptions: language, defaultTimezone: 'UTC' };
	const length = Buffer.byteLength(sql);
	const temporary = [];
	let position = 0;
	let n = 0;
	while (position < length && Buffer.from(sql).subarray(position).toString().trim() !== '') {
		const answer = await ZetaSQLClient.getInstance().analyze({
			options,
			simpleCatalog: catalog(language, temporary),
			parseResumeLocation: { input: sql, bytePosition: position, allowResume: true },
		});
		n++;
		const statement = Buffer.from(sql).subarray(position, answer.resumeBytePosition).toString();
		const made = /^\s*CREATE OR REPLACE TEMP TABLE (\w+) AS SELECT \* FROM `([^`]*)`\.`([^`]*)`\.`([^`]*)`/.exec(statement);
		if (made)
			temporary.push({ name: made[1], serializationId: 1000000 + n, column: dataset({ projectId: made[2], datasetId: made[3] }).get(made[4]) });
		if (answer.resumeBytePosition <= position) break;
		position = answer.resumeBytePosition;
	}
	return n;
}

/* What a statement or request does to the tables. */
function follow(entry) {
	const made = /^CREATE TABLE (?:IF NOT EXISTS )?`([^`]*)`\.`([^`]*)`\.`([^`]*)` \((.*)\)$/s.exec(entry.sql || '');
	if (made)
		dataset({ projectId: made[1], datasetId: made[2] }).set(made[3], made[4].split(', ').map((c) => {
			const [name, kind] = c.trim().split(' ');
			return { name, type: type(kind, false) };
		}));
	if (entry.table)
		dataset(entry.table.tableReference).set(entry.table.tableReference.tableId, columns(entry.table.schema.fields));
	if (entry.copy) {
		const source = dataset(entry.copy.sourceTable).get(entry.copy.sourceTable.tableId);
		dataset(entry.copy.destinationTable).set(entry.copy.destinationTable.tableId, source);
	}
}

(async () => {
	const port = await freePort();
	const server = spawn(path.join(base, 'zetasql/remote_server.so'), ['127.0.0.1', String(port)], { stdio: 'ignore' });
	try {
		ZetaSQLClient.HOST = '127.0.0.1';
		ZetaSQLClient.init(port);
		if (!(await ZetaSQLClient.getInstance().testConnection())) throw new Error('the analyzer does not start');
		const language = await ZetaSQLClient.getInstance().getLanguageOptions({ maximumFeatures: true });
		language.productMode = 'PRODUCT_EXTERNAL';
		language.supportedStatementKinds = [];
		language.nameResolutionMode = 'NAME_RESOLUTION_DEFAULT';
		let statements = 0;
		for (const line of fs.readFileSync(requests, 'utf8').split('\n').filter((l) => l !== '')) {
			const entry = JSON.parse(line);
			// the test's own do not name the project
			if (entry.sql !== undefined && /`[^`]*`\.`[^`]*`\.`/.test(entry.sql)) {
				try {
					statements += await analyze(entry.sql, language);
				} catch (error) {
					console.log(`${error.details || error.message}: ${entry.sql.replace(/\s+/g, ' ').slice(0, 1500)}`);
				}
			}
			follow(entry);
		}
		console.log(`analyzed ${statements}`);
	} finally {
		server.kill('SIGKILL');
	}
	process.exit(0);
})().catch((error) => {
	console.error(error);
	process.exit(1);
});
