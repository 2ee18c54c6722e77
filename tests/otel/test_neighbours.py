"""Together with what people run: instrumentations of threads, asyncio, logging and requests; logfire; Sentry.

Each in a process of its own, since they patch modules and set global providers. The environments that test older
releases of the SDK do not have them: each of these is made for one release.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import RunPython

SETUP = """
import json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from stormphase._tracker import PhaseTracker
from stormphase.otel import OTelBridge

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(exporter))
trace.set_tracer_provider(provider)
bridge = OTelBridge()
tracker = PhaseTracker(session_id="s", rank=0, world_size=1, bridge=bridge)

def show(**more):
    provider.force_flush()
    spans = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans}
    tree = sorted((span.name, names.get(span.parent.span_id, "?") if span.parent else None) for span in spans)
    traces = len({span.context.trace_id for span in spans})
    print(json.dumps({"tree": tree, "traces": traces, "stats": bridge.stats(), **more}))
"""


def run(run_python: RunPython, source: str, *, setup: str = SETUP) -> dict[str, Any]:
    """Run a program and return what it showed last."""
    shown: dict[str, Any] = json.loads(run_python(setup + source).stdout.splitlines()[-1])
    return shown


def test_instrumented_threads_carry_the_phase(run_python: RunPython) -> None:
    """Threads, timers and pools started in a phase have their phases and spans under it."""
    pytest.importorskip("opentelemetry.instrumentation.threading")
    source = """
import threading
from concurrent.futures import ThreadPoolExecutor
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
ThreadingInstrumentor().instrument()
users = trace.get_tracer("users")
def work(name):
    with tracker.enter_phase(name):
        with users.start_as_current_span("own " + name): pass
with tracker:
    with tracker.enter_phase("main"):
        thread = threading.Thread(target=work, args=("thread",)); thread.start(); thread.join()
        timer = threading.Timer(0, work, args=("timer",)); timer.start(); timer.join()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work, "pool").result()
        with tracker.enter_phase("after"): pass
show(misuse=tracker.stats()["misuse"])
"""
    shown = run(run_python, source)
    assert [
        ["after", "main"],
        ["main", "rank 0"],
        ["own pool", "pool"],
        ["own thread", "thread"],
        ["own timer", "timer"],
        ["pool", "main"],
        ["rank 0", "session"],
        ["session", None],
        ["thread", "main"],
        ["timer", "main"],
    ] == shown["tree"]
    assert (1, {}) == (shown["traces"], shown["misuse"])


def test_instrumented_asyncio_nests(run_python: RunPython) -> None:
    """The spans of traced coroutines, which are never current, and the phases in them hang under the phase around."""
    pytest.importorskip("opentelemetry.instrumentation.asyncio")
    source = """
import asyncio, os
os.environ["OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE"] = "load"
from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor
AsyncioInstrumentor().instrument()
async def load(name):
    with tracker.enter_phase(name):
        await asyncio.sleep(0)
async def main():
    with tracker.enter_phase("main"):
        await asyncio.gather(load("a"), load("b"))
with tracker:
    asyncio.run(main())
show(misuse=tracker.stats()["misuse"])
"""
    shown = run(run_python, source)
    assert [
        ["a", "main"],
        ["asyncio coro-load", "main"],
        ["asyncio coro-load", "main"],
        ["b", "main"],
        ["main", "rank 0"],
        ["rank 0", "session"],
        ["session", None],
    ] == shown["tree"]
    assert (1, {}) == (shown["traces"], shown["misuse"])


def test_instrumented_logging_names_the_phase(run_python: RunPython) -> None:
    """A log line written in a phase has the phase's ids, with its sampled flag."""
    pytest.importorskip("opentelemetry.instrumentation.logging")
    source = """
import logging
from opentelemetry.instrumentation.logging import LoggingInstrumentor
LoggingInstrumentor().instrument(inject_trace_context=True, set_logging_format=True)  # the latter up to 0.63b1
records = []
class Keep(logging.Handler):
    def emit(self, record): records.append([record.otelSpanID, record.otelTraceID, record.otelTraceSampled])
log = logging.getLogger("train")
log.addHandler(Keep())
with tracker:
    with tracker.enter_phase("main") as phase:
        log.warning("in a phase")
        expected = [phase.scope_id, f"{phase.get_span_context().trace_id:032x}", True]
show(records=records, expected=expected)
"""
    shown = run(run_python, source)
    assert [shown["expected"]] == shown["records"]


def test_instrumented_requests_are_children_and_propagate(run_python: RunPython) -> None:
    """A request made in a phase is its child, and sends a traceparent in the phase's trace."""
    pytest.importorskip("opentelemetry.instrumentation.requests")
    source = """
import http.server, threading
import requests
from opentelemetry.instrumentation.requests import RequestsInstrumentor
RequestsInstrumentor().instrument()
headers = []
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        headers.append(self.headers["traceparent"]); self.send_response(204); self.end_headers()
    def log_message(self, *args): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Page)
thread = threading.Thread(target=server.serve_forever); thread.start()
with tracker:
    with tracker.enter_phase("fetch") as phase:
        requests.get(f"http://127.0.0.1:{server.server_port}/", timeout=10, proxies={"http": None})
        trace_id = f"{phase.get_span_context().trace_id:032x}"
server.shutdown(); thread.join(); server.server_close()
show(header=headers[0], trace_id=trace_id)
"""
    shown = run(run_python, source)
    assert ["GET", "fetch"] in shown["tree"]
    assert shown["trace_id"] == shown["header"].split("-")[1]
    # Sampled; that the id is random is sent by newer propagators only.
    assert shown["header"].split("-")[3] in {"01", "03"}


def test_logfire_gets_real_spans_among_its_own(run_python: RunPython) -> None:
    """Under logfire phases and logfire's spans nest in each other in both directions, and its exceptions count once."""
    pytest.importorskip("logfire")
    source = """
import json
import logfire
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from stormphase._tracker import PhaseTracker
from stormphase.otel import OTelBridge
exporter = InMemorySpanExporter()
logfire.configure(send_to_logfire=False, console=False, inspect_arguments=False, metrics=False,
                  additional_span_processors=[SimpleSpanProcessor(exporter)])
bridge = OTelBridge()
with PhaseTracker(session_id="s", rank=0, world_size=1, bridge=bridge) as tracker:
    with tracker.enter_phase("train"):
        with logfire.span("fire"):
            with tracker.enter_phase("inner", {"a": 1}): pass
        try:
            with tracker.enter_phase("bad"): raise ValueError("boom")
        except ValueError: pass
spans = [span for span in exporter.get_finished_spans() if span.attributes.get("logfire.span_type") != "pending_span"]
names = {span.context.span_id: span.name for span in spans}
tree = sorted((span.name, names.get(span.parent.span_id, "?") if span.parent else None) for span in spans)
(bad,) = (span for span in spans if span.name == "bad")
print(json.dumps({"tree": tree, "traces": len({span.context.trace_id for span in spans}), "stats": bridge.stats(),
                  "events": [event.name for event in bad.events], "status": bad.status.status_code.name,
                  "type": bad.attributes["logfire.span_type"], "way": bridge._way.value}))
"""
    shown = run(run_python, source, setup="")
    assert [
        ["bad", "train"],
        ["fire", "train"],
        ["inner", "fire"],
        ["rank 0", "session"],
        ["session", None],
        ["train", "rank 0"],
    ] == shown["tree"]
    assert ("real", 1, 5, "ERROR", ["exception"], "span") == (
        shown["way"],
        shown["traces"],
        shown["stats"]["handed_over"],
        shown["status"],
        shown["events"],
        shown["type"],
    )


def test_sentry_sees_one_transaction_with_the_tree_in_it(run_python: RunPython) -> None:
    """Sentry's processor needs to see spans start, parents first: then the session is one transaction."""
    pytest.importorskip("sentry_sdk")
    source = """
import sentry_sdk
from sentry_sdk.integrations.opentelemetry import SentrySpanProcessor
envelopes = []
class Keep(sentry_sdk.transport.Transport):
    def capture_envelope(self, envelope): envelopes.append(envelope)
sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", traces_sample_rate=1.0, instrumenter="otel", transport=Keep,
                default_integrations=False, auto_enabling_integrations=False)
provider.add_span_processor(SentrySpanProcessor())
users = trace.get_tracer("users")
with tracker:
    with tracker.enter_phase("train"):
        for _ in range(2):
            with tracker.enter_phase("step"):
                pass
sentry_sdk.flush()
events = [item.payload.json for envelope in envelopes for item in envelope.items if item.type == "transaction"]
show(way=bridge._outlet._takes_readable,
     transactions=[[event["transaction"], sorted(span["op"] for span in event["spans"])] for event in events])
"""
    shown = run(run_python, source)
    assert (False, [["session", ["rank 0", "step", "step", "train"]]]) == (shown["way"], shown["transactions"])
    assert [["rank 0", "session"], ["session", None], ["step", "train"], ["step", "train"], ["train", "rank 0"]] == (
        shown["tree"]
    )
