#!/usr/bin/env python3
"""A BigQuery service for tests, on 127.0.0.1 only.

bqemulator (from PyPI) runs the statements and keeps the tables.  In front of
it stands what it does not do, or does not check:

  tokens    POST /token verifies the RS256 assertion (issuer, audience, scope,
            times, signature) and gives a token that ends; everything else
            wants one that is good
  jobs      run in the background, one at a time; an id that is known is
            answered with 409, for good; errors of a job come with HTTP 200
  uploads   resumable sessions: 308 and Range, chunks of 256 KiB, an offset
            that is not the next one refused; the job begins with the last byte
  faults    what a service does on a bad day, see FAULTS

Written by the documents of the REST API, not by looking at our client.

    front.py --key public.pem --email a@b --project p --dataset d --log FILE

prints "port N" when it is ready, and ends with its parent.

FAULTS: POST /admin/fault {"action", "match", "skip", "count", ...}; match is a
regular expression on "<METHOD> <path> <statement or job>".
  fail (status, reason, message)   refused, not done
  drop                             done, the connection closed without an answer
  drop_before                      not done, the connection closed
  delay (ms), hold, hold_after     before, until /admin/release, the same after it
  job_error (reason, message)      the job is known, and failed without being done
  partial (bytes)                  of a chunk so much is taken, answered with 308
  cut (bytes)                      of a chunk so much is taken, then the connection breaks
  gone                             the upload's session is not known any more
  garbage                          done, answered with what is no JSON
Also: /admin/hits?id=, /admin/clear, /admin/expire (tokens), /admin/down and up
(every connection is closed), /admin/held.
"""

import argparse
import base64
import ctypes
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import string
import subprocess
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fastavro
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

SCOPES = (
    "https://www.googleapis.com/auth/bigquery",
    "https://www.googleapis.com/auth/cloud-platform",
)
UNIT = 256 * 1024
MAX_BLOCK = 16 * 1024 * 1024
API = "/bigquery/v2/projects/"


TYPES = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL"}


class Drop(Exception):
    """Close the connection without an answer."""


class Refuse(Exception):
    """An error of the service."""

    def __init__(self, status, reason, message):
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


def error_body(status, reason, message):
    return {
        "error": {
            "code": status,
            "message": message,
            "errors": [{"message": message, "domain": "global", "reason": reason}],
            "status": reason,
        }
    }


def unbase64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Service:
    """Everything that is known, whatever the connection."""

    def __init__(self, options):
        self.options = options
        with open(options.key, "rb") as file:
            self.key = serialization.load_pem_public_key(file.read())
        self.lock = threading.RLock()
        self.work = threading.Lock()  # one job at a time
        self.tokens = {}
        self.jobs = {}
        self.sessions = {}
        self.faults = []
        self.held = 0
        self.release = threading.Condition(self.lock)
        self.releases = 0
        self.down = False
        self.count = 0
        self.given = {}
        self.port = None
        self.emulator_port = None

    def log(self, entry):
        with self.lock, open(self.options.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    # ------------------------------------------------------------ what the emulator does not keep

    def give(self, path, patch):
        """Note a table's expiry and its fields' policy tags, of a patch."""
        given = self.given.setdefault(path, {"tags": {}})
        if "expirationTime" in patch:
            given["expirationTime"] = patch["expirationTime"]
        for field in (patch.get("schema") or {}).get("fields", []):
            if "policyTags" in field:
                given["tags"][field["name"].lower()] = field["policyTags"]

    def add_given(self, path, table):
        given = self.given.get(path)
        if given is None or table is None:
            return
        if given.get("expirationTime") is not None:
            table["expirationTime"] = given["expirationTime"]
        for field in table["schema"]["fields"]:
            tags = given["tags"].get(field["name"].lower())
            if tags is not None:
                field["policyTags"] = tags

    # ------------------------------------------------------------ emulator

    def emulator(self, method, path, body=None, headers=None):
        """(status, parsed JSON or None) of bqemulator."""
        connection = http.client.HTTPConnection("127.0.0.1", self.emulator_port, timeout=300)
        headers = dict(headers or {})
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        return response.status, json.loads(data) if data.strip() else None

    # ------------------------------------------------------------ tokens

    def token(self, form):
        """The answer to an assertion: (status, JSON)."""

        def no(error, text):
            return 400, {"error": error, "error_description": text}

        if form.get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer":
            return no("unsupported_grant_type", "grant_type is not that of an assertion")
        try:
            head, claims, signature = form.get("assertion", "").split(".")
            header, payload = json.loads(unbase64(head)), json.loads(unbase64(claims))
            if header.get("alg") != "RS256":
                return no("invalid_grant", "alg is not RS256")
            self.key.verify(
                unbase64(signature),
                (head + "." + claims).encode(),
                padding.PKCS1v15(),
                hashes.SHA256(),
            )
        except InvalidSignature:
            return no("invalid_grant", "Invalid JWT Signature.")
        except ValueError as error:
            return no("invalid_grant", "Invalid JWT: %s" % error)
        now = time.time()
        if payload.get("iss") != self.options.email:
            return no("invalid_grant", "Invalid grant: account not found")
        if payload.get("aud") != "http://127.0.0.1:%d/token" % self.port:
            return no("invalid_grant", "Invalid JWT: Failed audience check.")
        if payload.get("scope") not in SCOPES:
            return no("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        issued, expires = payload.get("iat", 0), payload.get("exp", 0)
        if issued > now + 300 or expires < now or expires - issued > 3600:
            return no("invalid_grant", "Invalid JWT: Token must be a short-lived token.")
        token = "ya29." + "".join(random.choices(string.ascii_letters, k=40))
        with self.lock:
            self.tokens[token] = now + self.options.token_life
        return 200, {"access_token": token, "expires_in": self.options.token_life, "token_type": "Bearer"}

    def authorize(self, header):
        token = (header or "").removeprefix("Bearer ")
        with self.lock:
            good = self.tokens.get(token, 0) > time.time()
        if not good:
            raise Refuse(
                401, "authError", "Request had invalid authentication credentials."
            )

    # ------------------------------------------------------------ faults

    def fault(self, what, *actions):
        """The next fault of these kinds for a request, or None."""
        with self.lock:
            for fault in self.faults:
                if fault["action"] not in actions or not re.search(fault["match"], what, re.S):
                    continue
                if fault["skip"] > 0:
                    fault["skip"] -= 1
                    continue
                if fault["count"] <= 0:
                    continue
                fault["count"] -= 1
                fault["hits"] += 1
                return fault
        return None

    def hold(self):
        with self.release:
            self.held += 1
            wanted = self.releases + 1
            while self.releases < wanted:
                self.release.wait(0.2)
            self.held -= 1

    def before(self, what):
        if self.down:
            raise Drop
        if self.fault(what, "drop_before"):
            raise Drop
        fault = self.fault(what, "fail")
        if fault:
            raise Refuse(
                int(fault.get("status", 503)),
                fault.get("reason", "backendError"),
                fault.get("message", "injected"),
            )
        fault = self.fault(what, "delay")
        if fault:
            time.sleep(int(fault["ms"]) / 1000)
        if self.fault(what, "hold"):
            self.hold()

    def after(self, what):
        if self.fault(what, "hold_after"):
            self.hold()
        if self.down or self.fault(what, "drop"):
            raise Drop

    # ------------------------------------------------------------ jobs

    def require_new(self, job):
        reference = job.get("jobReference") or {}
        name = reference.get("jobId", "")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,1024}", name):
            raise Refuse(400, "invalid", "Invalid job ID")
        if reference.get("location") not in (None, self.options.location):
            raise Refuse(404, "notFound", "Not found: location of job %s" % name)
        with self.lock:
            if name in self.jobs:
                raise Refuse(
                    409,
                    "duplicate",
                    "Already Exists: Job %s:%s.%s" % (self.options.project, self.options.location, name),
                )
        return name

    def start_job(self, job, what, data=None):
        """Known from now on; done in the background."""
        with self.lock:
            name = self.require_new(job)
            resource = {
                "kind": "bigquery#job",
                "jobReference": {
                    "projectId": self.options.project,
                    "jobId": name,
                    "location": self.options.location,
                },
                "configuration": job["configuration"],
                "status": {"state": "RUNNING"},
            }
            self.jobs[name] = resource
        threading.Thread(target=self.do_job, args=(name, what, data), daemon=True).start()
        return resource

    def do_job(self, name, what, data):
        with self.lock:
            resource = self.jobs[name]
        statistics = {}
        fault = self.fault(what, "job_error")
        if fault:
            error = {
                "reason": fault.get("reason", "backendError"),
                "message": fault.get("message", "injected"),
            }
        else:
            with self.work:
                try:
                    error, statistics = self.run_job(resource["configuration"], data)
                except (OSError, http.client.HTTPException, ValueError) as problem:
                    error = {"reason": "backendError", "message": "bqemulator: %r" % problem}
        with self.lock:
            done = dict(resource)
            done["statistics"] = statistics
            done["status"] = {"state": "DONE"}
            if error:
                done["status"]["errorResult"] = error
                done["status"]["errors"] = [error]
            self.jobs[name] = done
        self.log({"job": name, "error": error, "statistics": statistics})

    def run_job(self, configuration, data):
        """(error or None, statistics) of a job that the emulator does."""
        with self.lock:
            self.count += 1
            inner = "front_%d" % self.count
        job = {
            "jobReference": {"projectId": self.options.project, "jobId": inner},
            "configuration": configuration,
        }
        if data is None and "copy" in configuration:
            error = self.make_room(configuration["copy"])
            if error:
                return error, {}
        if data is None:
            status, answer = self.emulator("POST", API + self.options.project + "/jobs", job)
        else:
            try:
                blocks = list(fastavro.block_reader(io.BytesIO(data)))
            except Exception as problem:
                return {"reason": "invalid", "message": "not an Avro file: %s" % problem}, {}
            rows = sum(block.num_records for block in blocks)
            if max((block.size for block in blocks), default=0) > MAX_BLOCK:
                return {"reason": "invalid", "message": "The Apache Avro block is too large"}, {}
            edge = "edge_of_the_parts"
            body = (
                b"--%s\r\nContent-Type: application/json\r\n\r\n%s\r\n--%s\r\n"
                b"Content-Type: application/octet-stream\r\n\r\n%s\r\n--%s--\r\n"
            ) % (
                edge.encode(),
                json.dumps(job).encode(),
                edge.encode(),
                data,
                edge.encode(),
            )
            status, answer = self.emulator(
                "POST",
                "/upload" + API + self.options.project + "/jobs?uploadType=multipart",
                body,
                {"Content-Type": "multipart/related; boundary=" + edge},
            )
        while status < 300 and answer["status"]["state"] != "DONE":
            time.sleep(0.02)
            status, answer = self.emulator(
                "GET",
                "%s%s/jobs/%s" % (API, self.options.project, answer["jobReference"]["jobId"]),
            )
        if status >= 300:
            problem = (answer or {}).get("error", {})
            reasons = problem.get("errors") or [{}]
            return {
                "reason": reasons[0].get("reason", "invalidQuery"),
                "message": problem.get("message", "HTTP status %d" % status),
            }, {}
        statistics = answer.get("statistics", {})
        if data is not None:
            # what the emulator says is how many rows the table has
            statistics["load"] = {"outputRows": str(rows)}
        return answer["status"].get("errorResult"), statistics


    def make_room(self, copy):
        """Before a copy that replaces a table: the emulator would keep the schema of
        the one that is there.  Nobody sees that it is missing: the caller has the
        lock that statements wait for.  Returns an error or None."""
        path = API + "%(projectId)s/datasets/%(datasetId)s/tables/%(tableId)s"
        status, old = self.emulator("GET", path % copy["destinationTable"])
        if status != 200 or copy.get("writeDisposition") != "WRITE_TRUNCATE":
            return None
        status, new = self.emulator("GET", path % copy["sourceTable"])
        if status != 200:
            return {"reason": "notFound", "message": "Not found: Table %(tableId)s" % copy["sourceTable"]}
        for part in ("timePartitioning", "rangePartitioning", "clustering"):
            if old.get(part) != new.get(part):
                return {
                    "reason": "invalid",
                    "message": "Cannot replace a table with a different partitioning spec. Instead, DROP the"
                    " table, and then recreate it.",
                }
        self.emulator("DELETE", path % copy["destinationTable"])
        self.given.pop(path % copy["destinationTable"], None)
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service = None

    def log_message(self, *args):
        pass

    # ------------------------------------------------------------ answers

    def answer(self, status, body=None, headers=None):
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def read_body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self):
        service = self.service
        path, _, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query))
        try:
            if path.startswith("/admin/"):
                self.admin(path.removeprefix("/admin/"))
            elif path == "/token":
                body = self.read_body().decode()
                service.before("POST /token")
                status, answer = service.token(dict(urllib.parse.parse_qsl(body)))
                service.log({"what": "POST /token", "status": status})
                service.after("POST /token")
                self.answer(status, answer)
            elif path.startswith("/upload/session/"):
                self.chunk(path.removeprefix("/upload/session/"))
            else:
                self.api(path)
        except Drop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        except Refuse as error:
            service.log({"refused": self.path, "status": error.status, "message": error.message})
            self.answer(error.status, error_body(error.status, error.reason, error.message))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    # ------------------------------------------------------------ steering

    def admin(self, what):
        service = self.service
        body = self.read_body()
        with service.lock:
            if what == "fault":
                fault = {"match": "", "skip": 0, "count": 1, **json.loads(body)}
                fault["skip"], fault["count"] = int(fault["skip"]), int(fault["count"])
                fault["hits"] = 0
                re.compile(fault["match"])
                service.faults.append(fault)
                result = len(service.faults)
            elif what == "hits":
                result = service.faults[int(self.query["id"]) - 1]["hits"]
            elif what == "clear":
                for fault in service.faults:
                    fault["count"] = 0
                service.releases += 1
                service.release.notify_all()
                result = 0
            elif what == "release":
                service.releases += 1
                service.release.notify_all()
                result = 0
            elif what == "held":
                result = service.held
            elif what == "expire":
                result = len(service.tokens)
                service.tokens.clear()
            elif what in ("down", "up"):
                service.down = what == "down"
                result = 0
            elif what == "running":
                result = sum(j["status"]["state"] != "DONE" for j in service.jobs.values())
            else:
                raise Refuse(404, "notFound", what)
        self.answer(200, result)

    # ------------------------------------------------------------ the API

    def api(self, path):
        service = self.service
        body = self.read_body()
        service_path = path.removeprefix("/upload")
        project = API + service.options.project
        job = json.loads(body) if body and self.command in ("POST", "PUT", "PATCH") else {}
        sql = job.get("query") if service_path == project + "/queries" else None
        if service_path == project + "/jobs" and self.command == "POST":
            sql = (job.get("configuration") or {}).get("query", {}).get("query")
        name = (job.get("jobReference") or {}).get("jobId", "")
        what = "%s %s %s" % (self.command, path, sql or name)
        entry = {"what": "%s %s" % (self.command, self.path)}
        if sql:
            entry["sql"] = sql
        if name:
            entry["job"] = name
        if re.search(r"/tables(/[^/]+)?$", path) and "schema" in job:
            entry["table"] = {"tableReference": job.get("tableReference"), **job}
            if self.command == "PATCH":
                entry["table"]["tableReference"] = {
                    "projectId": service.options.project,
                    "datasetId": service.options.dataset,
                    "tableId": urllib.parse.unquote(path.rsplit("/", 1)[1]),
                }
        if "copy" in (job.get("configuration") or {}):
            entry["copy"] = job["configuration"]["copy"]
        service.log(entry)
        service.before(what)
        service.authorize(self.headers.get("Authorization"))
        if not service_path.startswith(project + "/") and service_path != project:
            raise Refuse(403, "accessDenied", "Access Denied: Project %s" % path)
        if path == "/upload" + project + "/jobs":
            if self.query.get("uploadType") != "resumable":
                raise Refuse(400, "invalid", "uploadType")
            service.require_new(job)
            session = "".join(random.choices(string.ascii_lowercase, k=30))
            with service.lock:
                service.sessions[session] = {"job": job, "data": bytearray(), "what": what, "done": None}
            location = "http://127.0.0.1:%d/upload/session/%s?upload_id=%s" % (service.port, session, session)
            service.after(what)
            self.answer(200, None, {"Location": location})
            return
        if path == project + "/jobs" and self.command == "POST":
            answer = service.start_job(job, what)
            service.after(what)
            self.respond(what, 200, answer)
            return
        match = re.fullmatch(re.escape(project) + r"/jobs/([^/]+)", path)
        if match and self.command == "GET":
            with service.lock:
                found = service.jobs.get(urllib.parse.unquote(match[1]))
            service.after(what)
            if found is None:
                raise Refuse(404, "notFound", "Not found: Job " + match[1])
            self.respond(what, 200, found)
            return
        if self.command == "PATCH":
            body = self.patch(path, job)
        with service.work:
            status, answer = service.emulator(self.command, self.path, body, {"Content-Type": "application/json"} if body else {})
            if status < 300 and self.command == "PATCH":
                service.give(path, job)
            elif self.command == "DELETE":
                service.given.pop(path, None)
            if status < 300 and self.command == "GET":
                service.add_given(path, answer)
        if self.command == "GET" and re.fullmatch(r"/bigquery/v2/projects/[^/]+/datasets/[^/]+/tables", path):
            # the emulator leaves labels out of the list
            for table in (answer or {}).get("tables", []):
                _, whole = service.emulator("GET", path + "/" + urllib.parse.quote(table["tableReference"]["tableId"]))
                if whole and "labels" in whole:
                    table["labels"] = whole["labels"]
        service.after(what)
        problems = (answer or {}).get("errors") if path == project + "/queries" else None
        if status == 200 and problems and not answer["schema"]["fields"]:
            # the emulator has them with HTTP status 200
            reason = problems[0].get("reason", "invalidQuery")
            raise Refuse(404 if reason == "notFound" else 400, reason, problems[0].get("message", ""))
        self.respond(what, status, answer)

    def patch(self, path, patch):
        """What the emulator is to be sent for a patch of a table.  Labels are added
        to those that are there, null takes one away; fields can be added, and the
        emulator's table gets their columns."""
        service = self.service
        status, table = service.emulator("GET", path)
        if status != 200:
            raise Refuse(status, "notFound", "Not found: Table %s" % path)
        if "labels" in patch:
            labels = dict(table.get("labels") or {})
            for name, value in (patch["labels"] or {}).items():
                labels.pop(name, None)
                if value is not None:
                    labels[name] = value
            for name, value in labels.items():
                if not re.fullmatch(r"[a-z_-][a-z0-9_-]{0,62}", name) or len(value) > 63:
                    raise Refuse(400, "invalid", "Invalid label: %s" % name)
            patch = {**patch, "labels": labels}
        if "schema" in patch:
            old = {f["name"].lower(): f for f in table["schema"]["fields"]}
            new = patch["schema"]["fields"]
            gone = old.keys() - {f["name"].lower() for f in new}
            if gone:
                raise Refuse(400, "invalid", "Provided Schema does not match: field %s is missing" % sorted(gone)[0])
            for field in new:
                have = old.get(field["name"].lower())
                mode = field.get("mode", "NULLABLE")
                if have is None:
                    if mode == "REQUIRED":
                        raise Refuse(400, "invalid", "Cannot add required fields to an existing schema. (field: %s)" % field["name"])
                    self.add_column(table["tableReference"], field)
                elif TYPES.get(field["type"], field["type"]) != TYPES.get(have["type"], have["type"]):
                    raise Refuse(400, "invalid", "Provided Schema does not match: field %s has changed type" % field["name"])
        return json.dumps(patch).encode()

    def add_column(self, reference, field):
        kind = TYPES.get(field["type"], field["type"])
        if field.get("mode") == "REPEATED":
            kind = "ARRAY<%s>" % kind
        elif field.get("precision"):
            kind += "(%s, %s)" % (field["precision"], field.get("scale", 0))
        sql = "ALTER TABLE `%s`.`%s`.`%s` ADD COLUMN `%s` %s" % (
            reference["projectId"], reference["datasetId"], reference["tableId"], field["name"], kind)
        error, _ = self.service.run_job({"query": {"query": sql, "useLegacySql": False}}, None)
        if error:
            raise Refuse(400, error["reason"], error["message"])

    def respond(self, what, status, answer):
        if self.service.fault(what, "garbage"):
            self.answer(200, b"<html>a proxy's page</html>")
        else:
            self.answer(status, answer)

    # ------------------------------------------------------------ uploads

    def chunk(self, name):
        service = self.service
        with service.lock:
            session = service.sessions.get(name)
        what = "PUT upload " + (session["job"]["jobReference"]["jobId"] if session else "")
        length = int(self.headers.get("Content-Length") or 0)
        if service.down:
            raise Drop
        cut = service.fault(what, "cut") if length > 0 else None
        if cut:
            part = self.rfile.read(min(length, int(cut.get("bytes", 0))))
            if session and session["done"] is None:
                session["data"] += part
            raise Drop
        body = self.rfile.read(length)
        range_text = self.headers.get("Content-Range", "")
        service.log({"what": what, "range": range_text})
        service.before(what)
        service.authorize(self.headers.get("Authorization"))
        if session is None or service.fault(what, "gone"):
            with service.lock:
                service.sessions.pop(name, None)
            raise Refuse(404, "notFound", "the upload's session is not known")
        match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", range_text)
        if not match:
            raise Refuse(400, "badRequest", "Content-Range: " + range_text)
        total = None if match[3] == "*" else int(match[3])
        if session["done"] is not None:
            with service.lock:
                answer = service.jobs[session["done"]]
            service.after(what)
            self.respond(what, 200, answer)
            return
        data = session["data"]
        if match[1] is not None:
            first, last = int(match[1]), int(match[2])
            if first != len(data) or last - first + 1 != len(body):
                raise Refuse(400, "badRequest", "the upload stands at %d" % len(data))
            final = total is not None and last + 1 == total
            if not final and len(body) % UNIT != 0:
                raise Refuse(400, "badRequest", "a chunk that is no multiple of 256 KiB")
            partial = service.fault(what, "partial")
            if partial:
                body = body[: int(partial.get("bytes", 0)) // UNIT * UNIT]
            data += body
        if total is not None and len(data) == total:
            session["done"] = session["job"]["jobReference"]["jobId"]
            try:
                answer = service.start_job(session["job"], session["what"], bytes(data))
            except Refuse:
                with service.lock:
                    service.sessions.pop(name, None)
                raise
            session["data"] = bytearray()
            service.after(what)
            self.respond(what, 200, answer)
            return
        service.after(what)
        headers = {"Range": "bytes=0-%d" % (len(data) - 1)} if data else {}
        self.answer(308, None, headers)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def start_emulator(service, directory):
    service.emulator_port = free_port()
    with open(os.path.join(directory, "emulator.log"), "ab") as log:
        child = subprocess.Popen(
            [
                sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "emulator.py"), "start",
                "--rest-host", "127.0.0.1", "--rest-port", str(service.emulator_port),
                "--grpc-host", "127.0.0.1", "--grpc-port", str(free_port()),
                "--project", service.options.project, "--log-level", "error",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory,
            env={**os.environ, "HOME": directory, "TMPDIR": directory}, preexec_fn=end_with_parent,
        )
    end = time.time() + 90
    while time.time() < end and child.poll() is None:
        try:
            status, _ = service.emulator(
                "POST",
                API + service.options.project + "/datasets",
                {
                    "datasetReference": {"projectId": service.options.project, "datasetId": service.options.dataset},
                    "location": service.options.location,
                },
            )
            if status < 300:
                return
            raise SystemExit("bqemulator makes no dataset: %d" % status)
        except OSError:
            time.sleep(0.1)
    raise SystemExit("bqemulator does not start, see emulator.log")


def main():
    parser = argparse.ArgumentParser()
    for name in ("key", "email", "project", "dataset", "log"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--location", default="US")
    parser.add_argument("--token-life", type=int, default=3600)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    end_with_parent()
    service = Service(options)
    start_emulator(service, os.path.dirname(os.path.abspath(options.log)))
    Handler.service = service
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.daemon_threads = True
    service.port = server.server_address[1]
    print("port %d" % service.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
