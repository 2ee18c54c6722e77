"""No secret is stored or sent, whatever it is said in and wherever that goes."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

from stormphase.cli import main

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pytest
    from conftest import RunPython

# A program that says every secret in all the ways there are, while a journal, a store, OTLP exporters, sinks and the
# log listen.
PROGRAM = r'''
import contextlib, io, itertools, json, logging, os, signal, sys, warnings
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from stormphase import LoggingSink, PhaseTracker
from stormphase.capture import CaptureOptions
from stormphase.otel import OTelBridge
from stormphase.stores import SqliteStore

ENV, KEY, BEARER, URL, OWN, PEM = json.loads(sys.argv[1])
PRIVATE = f"-----BEGIN PRIVATE KEY-----\n{PEM}\n{PEM}\n-----END PRIVATE KEY-----"
SENTENCES = [
    f"the value {ENV} alone", f"api_key={KEY}", f"Authorization: Bearer {BEARER}",
    f"postgres://user:{URL}@host/db", f"customer {OWN}", PRIVATE,
]
LONG = ["-" * 7_164 + SENTENCES[0], "-" * 7_164 + " " + SENTENCES[1]]
STORY = "; ".join(SENTENCES)
ATTRIBUTES = {
    "api_key": KEY, "note": ENV, "dsn": SENTENCES[3], "nested": {"passwords": [KEY], "list": SENTENCES},
    "bytes": (SENTENCES[1].encode(), {"deep": {"client_secret": KEY}}), "header": SENTENCES[2], "who": SENTENCES[4],
    "edge": "." * 4_090 + " " + ENV, "error": ValueError(STORY), "pem": PRIVATE,
}
numbers = itertools.count()

class Exporter(SpanExporter):
    """Puts each request into a file of its own, as OTLP has it."""

    def __init__(self, encode):
        self.encode = encode

    def export(self, batch):
        name = f"otlp-{os.getpid()}-{next(numbers)}"
        with open(name, "wb") as file:
            file.write(self.encode(batch).SerializeToString())
        return SpanExportResult.SUCCESS

def say(tracker, name):
    with tracker.enter_phase(name, ATTRIBUTES) as phase:
        phase.set_attribute("late_api_key", KEY)
        phase.set_attributes({"late": STORY, "headers": {"authorization": BEARER}})
        phase.add_event("noted", ATTRIBUTES)
        span = trace.get_current_span()
        span.set_attribute("by_otel", STORY)
        span.add_event("by otel", {"password": KEY, "text": STORY})
        span.add_link(other, {"secret": KEY, "text": STORY})
        span.update_name(STORY)
        span.set_status(trace.StatusCode.ERROR, STORY)
        try:
            raise KeyError(STORY)
        except KeyError as error:
            span.record_exception(error, {"password": KEY})
        with tracker.enter_phase("inner", ATTRIBUTES):
            for sentence in SENTENCES:
                print(sentence)
                print(*sentence.split(" "), file=sys.stderr)
                sys.stdout.buffer.write(sentence.encode() + b"\n")
                logging.getLogger("app").info(sentence)
                logging.getLogger("app").debug("%s", sentence, extra={"password": KEY})
                warnings.warn(sentence, stacklevel=1)
                for at in range(0, len(sentence), 7):
                    sys.stdout.write(sentence[at : at + 7])
                print()
            print(*LONG, sep="\n")
            os.write(1, (STORY + "\n").encode())
        with tracker.enter_phase("paused", {"api_key": KEY}) as paused:
            paused.pause()
            paused.resume()
        raise RuntimeError(f"{STORY}\nand once more: {STORY}") from ValueError(STORY)

providers = TracerProvider(), LoggerProvider()
providers[0].add_span_processor(SimpleSpanProcessor(Exporter(encode_spans)))
providers[1].add_log_record_processor(SimpleLogRecordProcessor(Exporter(encode_logs)))
with TracerProvider().get_tracer("elsewhere").start_as_current_span("other") as found:
    other = found.get_span_context()
told = open(f"told-{os.getpid()}", "w")
logging.basicConfig(level="INFO", stream=io.StringIO())
phases = logging.getLogger("stormphase")
phases.addHandler(logging.StreamHandler(told))
phases.setLevel("DEBUG")
phases.propagate = False

tracker = PhaseTracker(
    session_id=sys.argv[2],
    journal="runs",
    store=SqliteStore("runs.db"),
    capture=CaptureOptions(mode=sys.argv[3], max_bytes=1_000_000, redact=[r"customer (?P<secret>[\w-]+)"]),
    sinks=[lambda boundary: print(repr(boundary), file=told, flush=True), LoggingSink()],
    bridge=OTelBridge(*providers, events="all", pending=True),
)
with contextlib.suppress(RuntimeError), tracker:
    with contextlib.suppress(RuntimeError):
        say(tracker, "handled")
    for _ in range(100):
        with tracker.enter_phase("folded", ATTRIBUTES):
            pass
    if sys.argv[4:] == ["killed"]:
        with tracker.enter_phase("open", ATTRIBUTES) as phase:
            phase.set_attribute("late", STORY)
            with tracker.enter_phase("moved", ATTRIBUTES) as paused:
                paused.pause()
                paused.resume()
                print(STORY)
                print(STORY, end="", flush=True)
                print("what it said last", flush=True)
                tracker.flush()
                os.kill(os.getpid(), signal.SIGKILL)
    say(tracker, "fatal")
'''
SECRETS = {
    "the value of a variable": "correct-horse-battery",
    "a key's": "Zk3vQp9xLw",
    "a bearer token": "mF_9.B5f-4.1JqM",
    "a URL's password": "s3cr3t-of-url",
    "the user's own": "4711-0815-42",
    "a private key": "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC",
}

COMMANDS = (
    ("postmortem", "{}/runs"),
    ("postmortem", "{}/runs", "--json"),
    ("postmortem", "{}/runs", "--session", "ended"),
    ("top", "{}/runs", "--once"),
    ("records", "{}/runs", "--format", "json"),
    ("records", "{}/runs.db", "--format", "json"),
    ("records", "{}/runs.db", "--format", "csv"),
    ("records", "{}/runs.db"),
    ("recover", "{}/runs", "--otlp", "http://127.0.0.1:1", "--dry-run", "--json"),
)


def test_no_secret_is_stored_or_sent(run_python: RunPython, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Journal, store, OTLP, sinks, logs and all commands: none has a secret, in whatever way it was said."""
    arguments = json.dumps(list(SECRETS.values()))
    environ = {"DEPLOY_TOKEN": SECRETS["the value of a variable"]}
    run_python(PROGRAM, arguments, "ended", "context", env=environ)
    killed = run_python(PROGRAM, arguments, "killed", "fd", "killed", env=environ, check=False)
    assert -signal.SIGKILL == killed.returncode, killed.stderr

    files = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {} == with_secrets(files)
    shown = {}
    for command in COMMANDS:
        assert main([word.format(tmp_path) for word in command]) in (0, 1), command
        shown[command] = capsys.readouterr().out.encode()
    assert {} == with_secrets(shown)

    # It was all there to be found: each place tells what stands in a secret's stead.
    kinds = {kind: [data for path, data in files.items() if kind in str(path)] for kind in KINDS}
    assert dict.fromkeys(KINDS, True) == {kind: any(b"[redacted]" in data for data in kinds[kind]) for kind in KINDS}
    assert b"what it said last" in shown[COMMANDS[0]]


KINDS = (".journal", ".said", "runs.db", "otlp-", "told-")


def with_secrets(texts: Mapping[Any, bytes]) -> dict[Any, list[str]]:
    """Return which secrets stand where, also halves of them."""
    found = {where: [name for name, secret in SECRETS.items() if holds(text, secret)] for where, text in texts.items()}
    return {where: names for where, names in found.items() if names}


def holds(text: bytes, secret: str) -> bool:
    """Whether a text has a secret, or the begin or the end of one that was cut in two."""
    half = len(secret) // 2 + 1
    return any(part.encode() in text for part in (secret, secret[:half], secret[-half:]))
