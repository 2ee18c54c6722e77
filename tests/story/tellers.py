"""Reads what each teller says of a run: for each phase, by its scope id, a dict of facts; what it lacks is absent.

`TELLS` is the table of which teller can have which fact, and of which phases. Times are nanoseconds since the epoch.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import stormphase.cli
from stormphase.records import read_records

RECORD = frozenset(
    {
        "path", "parent", "status", "entered_ns", "ended_ns", "entered_monotonic_ns", "ended_monotonic_ns", "self_ns",
        "paused_ns", "attempt", "retry_of", "step", "is_sync", "sequence", "thread_id", "thread_name", "task_name",
        "session_id", "session_attempt", "rank", "attributes", "error_type", "error_message", "traceback", "cause",
        "cause_path", "reason", "pid",
    }
)  # fmt: skip
_BOUNDARY = RECORD - {"pid"}
# A span has the error where the phase FAILED or was LOST, with message and traceback where that arose; own time in
# seconds; no monotonic times, no pauses.
_SPAN = RECORD - {
    "entered_monotonic_ns",
    "ended_monotonic_ns",
    "paused_ns",
    "task_name",
    "is_sync",
    "pid",
    "cause_path",
}
TELLS = {
    "sink": _BOUNDARY,
    "memory": RECORD | {"evidence", "correlation_id"},
    "store": RECORD | {"evidence", "correlation_id"},
    "store_cli": RECORD | {"evidence", "correlation_id"},
    "journal": RECORD | {"evidence", "correlation_id"},
    "journal_cli": RECORD | {"evidence", "correlation_id"},
    "recover": RECORD | {"evidence", "correlation_id"},
    "postmortem_open": frozenset(
        {"path", "entered_ns", "thread_name", "attributes", "step", "is_sync", "task_name", "pid"}
    ),
    "postmortem_ended": frozenset({"path", "status", "entered_ns", "ended_ns", "step", "pid"}),
    "spans": _SPAN,
    "recovered_spans": _SPAN,
    "enter_event": frozenset({"path", "entered_ns", "attributes", "step", "session_id", "rank"}),
    "exit_event": frozenset(
        {"path", "status", "ended_ns", "duration_s", "attributes", "step", "session_id", "rank", "error_type", "cause"}
    ),
}  # fmt: skip
LAUNCH = ("rank", "local_rank", "world_size")
FINAL = frozenset({"succeeded", "failed", "cancelled", "abandoned", "lost"})
OURS = ("stormphase.", "thread.", "code.", "error.", "exception.")


def lines_of(path):
    """Return the JSON of each whole line of a file; none if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        lines = path.read_bytes().split(b"\n")[:-1]
        return [found for line in lines for found in _whole(line)]
    return []


def _whole(line):
    """Return the JSON of a line; of one that a killed process has left torn, what another one wrote behind it."""
    begins = {0, *(line.rfind(start) for start in (b'{"event"', b'{"did"'))} - {-1}
    for begin in sorted(begins):
        with contextlib.suppress(ValueError):
            return [json.loads(line[begin:])]
    return []


class Story:
    """What one teller says: facts by scope id, and what it tells twice."""

    def __init__(self, teller):
        self.teller = teller
        self.phases = {}
        self.owners = {}
        self.twice = []

    def add(self, scope, facts):
        """Take what is said of a phase."""
        if scope in self.phases:
            self.twice.append(scope)
        self.phases[scope] = {name: value for name, value in facts.items() if name in TELLS[self.teller]}


def plain(value):
    """Return a value as JSON has it, NaN by name, as records do."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value


# --- the live sink ----------------------------------------------------------------------------------------------------


def _of_boundary(line):
    scope = line["metadata"]["phase_scope"]
    is_exit = line["event"] == "phase_exit"
    error = scope.get("error") or {}
    facts = {
        "path": tuple(line["path"]),
        "parent": scope["parent_scope_id"],
        "attempt": scope["attempt"],
        "retry_of": scope.get("retry_of_scope_id"),
        "is_sync": scope.get("is_sync", False),
        "task_name": scope.get("task_name"),
        "attributes": plain(scope.get("attributes", {})),
        **{name: scope[name] for name in ("sequence", "thread_id", "thread_name", "step", "session_id", "rank")},
        "session_attempt": scope["session_attempt"],
    }
    if not is_exit:
        return {**facts, "entered_ns": scope["timestamp_ns"], "entered_monotonic_ns": scope["monotonic_ns"]}
    return {
        **facts,
        "status": scope["status"],
        "entered_ns": scope["timestamp_ns"] - scope["duration_ns"],
        "entered_monotonic_ns": scope["monotonic_ns"] - scope["duration_ns"],
        "ended_ns": scope["timestamp_ns"],
        "ended_monotonic_ns": scope["monotonic_ns"],
        "self_ns": scope["self_ns"],
        "paused_ns": scope["paused_ns"],
        "reason": scope.get("reason"),
        "error_type": error.get("type"),
        "error_message": error.get("message"),
        "traceback": error.get("traceback"),
        "cause": error.get("root_cause_scope_id"),
        "cause_path": tuple(scope["root_cause_path"]) if scope.get("root_cause_path") is not None else None,
    }


def sink_story(path):
    """Return what the live sink was told: of a phase whose exit came, that, else its enter."""
    enters, exits = Story("sink"), Story("sink")
    for line in lines_of(path):
        if line["event"] in ("phase_enter", "phase_exit"):
            story = enters if line["event"] == "phase_enter" else exits
            story.add(line["scope"], _of_boundary(line))
    story = Story("sink")
    story.phases = {**enters.phases, **exits.phases}
    story.twice = enters.twice + exits.twice
    story.enters, story.exits = enters.phases, exits.phases
    return story


# --- records ----------------------------------------------------------------------------------------------------------


def of_record(fields):
    """Return the facts of a record in its JSON form; those of an open one are what its enter said."""
    facts = {
        "path": tuple(fields["path"]),
        "parent": fields["parent_scope_id"],
        "retry_of": fields["retry_of_scope_id"],
        "cause": fields["root_cause_scope_id"],
        "cause_path": None if fields["root_cause_path"] is None else tuple(fields["root_cause_path"]),
        "pid": None if fields["process"] is None else fields["process"]["pid"],
        **{name: fields[name] for name in fields if name in RECORD | {"evidence", "correlation_id"}},
    }
    facts["path"] = tuple(fields["path"])
    facts["attributes"] = plain(fields["attributes"])
    if facts["status"] == "lost" and facts["self_ns"] is None:
        del facts["self_ns"]  # A dead process cannot say what ran on top.
    if facts["status"] == "lost" and facts["paused_ns"] is None:
        del facts["paused_ns"]
    return facts


def record_story(teller, records):
    """Return what records tell, given in their JSON form; sessions, ranks and processes apart."""
    story = Story(teller)
    story.output = {}
    for fields in records:
        if fields["kind"] == "phase":
            story.output[fields["scope_id"]] = [line["text"] for line in fields["output"] or ()]
            story.add(fields["scope_id"], of_record(fields))
        else:
            story.owners[(fields["kind"], fields["scope_id"])] = fields
    return story


def read_story(teller, source):
    """Return what `read_records` tells."""
    return record_story(teller, [json.loads(record.to_json()) for record in read_records(source)])


def command(*arguments):
    """Run the command `stormphase` in this process; returns its exit code and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = stormphase.cli.main([str(each) for each in arguments])
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue()


def command_story(teller, source):
    """Return what `stormphase records --format json` tells."""
    _, text = command("records", source, "--format", "json")
    try:
        records = json.loads(text)
    except ValueError:
        records = [json.loads(line) for line in text.splitlines()]
    return record_story(teller, records)


# --- postmortem and recover -------------------------------------------------------------------------------------------


def postmortem_stories(directory):
    """Return what `stormphase postmortem --json` tells of open and of ended phases, and the report itself."""
    _, text = command("postmortem", directory, "--json")
    report = json.loads(text)
    is_open, ended = Story("postmortem_open"), Story("postmortem_ended")
    for rank in report["ranks"]:
        for phase in rank["open"]:
            is_open.add(phase["scope_id"], {**phase, "path": tuple(phase["path"])})
        for phase in rank["last_ended"]:
            ended.add(phase["scope_id"], {**phase, "path": tuple(phase["path"])})
    return is_open, ended, report


def recover_story(directory):
    """Return what `stormphase recover --json` tells, without an endpoint."""
    _, text = command("recover", directory, "--json")
    report = json.loads(text)
    return record_story("recover", [record for journal in report["journals"] for record in journal["lost"]]), report


# --- spans and events -------------------------------------------------------------------------------------------------


def _otlp_value(value):
    (kind, content), *_ = value.items() or [("none", None)]
    if kind == "intValue":
        return int(content)
    if kind == "arrayValue":
        return [_otlp_value(each) for each in content.get("values", ())]
    if kind == "kvlistValue":
        return {each["key"]: _otlp_value(each["value"]) for each in content.get("values", ())}
    return content


def otlp_attributes(item):
    """Return the attributes of a span, an event or a log record in OTLP's JSON."""
    return {each["key"]: _otlp_value(each["value"]) for each in item.get("attributes", ())}


def _users(attributes):
    return {key: value for key, value in attributes.items() if not key.startswith(OURS)}


def _of_span(span, owners):
    attributes = otlp_attributes(span)
    events = {event["name"]: otlp_attributes(event) for event in span.get("events", ())}
    exception = events.get("exception", {})
    status = attributes.get("stormphase.phase.status")
    links = [link["spanId"] for link in span.get("links", ())]
    error_type = attributes.get("error.type")
    facts = {
        "path": tuple(attributes.get("stormphase.phase.path", "").split(" / ")),
        "parent": span.get("parentSpanId") if span.get("parentSpanId") not in owners else None,
        "status": status,
        "entered_ns": int(span["startTimeUnixNano"]),
        "ended_ns": int(span["endTimeUnixNano"]),
        "attempt": attributes.get("stormphase.phase.attempt"),
        "links": links,
        "step": attributes.get("stormphase.step"),
        "sequence": attributes.get("stormphase.phase.sequence"),
        "thread_id": attributes.get("thread.id"),
        "thread_name": attributes.get("thread.name"),
        "session_id": attributes.get("stormphase.session.id"),
        "session_attempt": attributes.get("stormphase.session.attempt"),
        "rank": attributes.get("stormphase.rank"),
        "attributes": _users(attributes),
        "reason": attributes.get("stormphase.phase.reason"),
        "is_error": span.get("status", {}).get("code") == 2,
        "name": span["name"],
        "checked": [otlp_attributes(event) for event in span.get("events", ()) if event["name"] == "checked"],
    }
    if "stormphase.phase.self_time" in attributes:
        facts["self_ns"] = round(attributes["stormphase.phase.self_time"] * 1e9)
    if status in ("failed", "lost"):
        facts["error_type"] = error_type
        facts["cause"] = attributes.get("stormphase.phase.root_cause_scope_id", span["spanId"])
        if "exception.message" in exception:
            facts["error_message"] = exception["exception.message"]
        if "exception.stacktrace" in exception and status == "failed":
            facts["traceback"] = exception["exception.stacktrace"]
    return facts


def spans_of(documents):
    """Yield the spans of OTLP's JSON documents."""
    for document in documents:
        for resource in document.get("resourceSpans", ()):
            for scope in resource["scopeSpans"]:
                if scope["scope"].get("name") == "stormphase":
                    yield from scope["spans"]


def _launch(attributes):
    """Return what a span says of the rank and of how many there are."""
    return {name: attributes[f"stormphase.{name}"] for name in LAUNCH if f"stormphase.{name}" in attributes}


def span_story(teller, spans):
    """Return what spans tell; `owners` are those of sessions, ranks and processes."""
    story = Story(teller)
    story.looks = {}
    spans = list(spans)
    told = [span for span in spans if "stormphase.phase.path" in otlp_attributes(span)]
    story.pending = [span for span in told if otlp_attributes(span).get("stormphase.phase.pending")]
    phases = [span for span in told if span not in story.pending]
    owners = {span["spanId"]: span for span in spans if "stormphase.phase.path" not in otlp_attributes(span)}
    story.owners = {("span", scope): span for scope, span in owners.items()}
    story.launches = {span["spanId"]: _launch(otlp_attributes(span)) for span in spans}
    ids = {span["spanId"] for span in phases}
    for span in phases:
        facts = _of_span(span, owners)
        is_known = span.get("parentSpanId") in ids
        story.add(span["spanId"], facts)
        story.phases[span["spanId"]]["links"] = facts["links"]
        story.looks[span["spanId"]] = {name: facts[name] for name in ("name", "is_error", "checked")}
        if not is_known and facts["parent"] is not None:
            story.phases[span["spanId"]]["parent_or_owner"] = story.phases[span["spanId"]].pop("parent")
    return story


def event_stories(documents):
    """Return what log-based events tell of enters and of exits."""
    enters, exits = Story("enter_event"), Story("exit_event")
    for document in documents:
        for resource in document.get("resourceLogs", ()):
            for scope in resource["scopeLogs"]:
                for record in scope["logRecords"]:
                    _add_event(record, enters, exits)
    return enters, exits


def _add_event(record, enters, exits):
    attributes = otlp_attributes(record)
    facts = {
        "path": tuple(attributes.get("stormphase.phase.path", "").split(" / ")),
        "status": attributes.get("stormphase.phase.status"),
        "entered_ns": int(record["timeUnixNano"]),
        "ended_ns": int(record["timeUnixNano"]),
        "duration_s": attributes.get("stormphase.phase.duration"),
        "step": attributes.get("stormphase.step"),
        "session_id": attributes.get("stormphase.session.id"),
        "rank": attributes.get("stormphase.rank"),
        "attributes": _users(attributes),
    }
    if facts["status"] in ("failed", "lost"):
        facts["error_type"] = attributes.get("error.type")
        facts["cause"] = attributes.get("stormphase.phase.root_cause_scope_id")
    name = record.get("eventName")
    if name == "stormphase.phase.enter":
        enters.add(record["spanId"], facts)
    elif name == "stormphase.phase.exit":
        exits.add(record["spanId"], facts)


class Endpoint:
    """An OTLP endpoint in this process, which keeps the spans that it is sent."""

    def __init__(self):
        self.spans = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                endpoint.take(body, self.headers.get("Content-Encoding"))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                """Say nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="endpoint")
        self._thread.start()

    def take(self, body, encoding):
        """Keep the spans of a request."""
        import gzip

        from google.protobuf.json_format import MessageToDict
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        request = ExportTraceServiceRequest.FromString(gzip.decompress(body) if encoding == "gzip" else body)
        self.spans += map(_with_hex_ids, spans_of([MessageToDict(request)]))

    def taken(self):
        """Return the spans since the last call."""
        spans, self.spans = self.spans, []
        return spans

    def close(self):
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _with_hex_ids(span):
    import base64

    for item in (span, *span.get("links", ())):
        for name in ("traceId", "spanId", "parentSpanId"):
            if name in item:
                item[name] = base64.b64decode(item[name]).hex()
    status = span.get("status", {})
    if "code" in status:
        status["code"] = {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}.get(
            status["code"], status["code"]
        )
    return span
