"""A fork at each step of the end of a session: every teller has each phase once, and the child's end is its own."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from stormphase.records import read_records

PROGRAM = """
import json, os, sys, threading
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from stormphase import PhaseTracker, _session
from stormphase.otel import OTelBridge
from stormphase.stores import SqliteStore

moment, mode, directory, processor = sys.argv[1:]
parent = os.getpid()
held, may_go, codes = threading.Event(), threading.Event(), []

def tell(teller, what):
    with open(f"{directory}/told", "a") as file:
        file.write(json.dumps([teller, what]) + "\\n")

def use(tracker):
    try:
        with tracker.enter_phase("own"):
            pass
    except Exception:
        pass  # It may say that the session is over, as in the parent.
    tracker.flush(5)
    tracker.stop(5)

def fork():
    pid = os.fork()
    if pid == 0:
        use(tracker)
        if mode != "goes on":
            os._exit(0)
        return  # To what was under way.
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

def here():
    if codes or held.is_set() or os.getpid() != parent:
        return
    if mode == "beside":
        held.set()
        may_go.wait(20)
    else:
        fork()

def before(owner, name):
    call = getattr(owner, name)
    setattr(owner, name, lambda *given, **named: (here(), call(*given, **named))[1])

def after(owner, name):
    call = getattr(owner, name)
    setattr(owner, name, lambda *given, **named: (call(*given, **named), here())[0])

def sink(boundary):
    scope = boundary.metadata["phase_scope"]
    tell("sink", [scope["action"], scope["name"]])
    if moment == "sink told" and is_stopping:
        here()

class Exporter(SpanExporter):
    def export(self, spans):
        for span in spans:
            tell("spans", span.name)
            if moment == "span sent" and is_stopping:
                here()
        return SpanExportResult.SUCCESS

is_stopping = False
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor({"batch": BatchSpanProcessor, "simple": SimpleSpanProcessor}[processor](Exporter()))
store = SqliteStore(f"{directory}/runs.db")
options = {"store": store, "journal": f"{directory}/j", "summary": True}
tracker = PhaseTracker(bridge=OTelBridge(provider), sinks=[sink], **options).start()
session = tracker._session
outer = tracker.enter_phase("outer")
with tracker.enter_phase("ended"):
    pass
{
    "asked": lambda: before(session, "_end"),
    "begun": lambda: before(session, "_on_stop"),
    "lanes closed": lambda: before(session.capture, "stop"),
    "end noted": lambda: after(session.journal, "note_end"),
    "sink told": lambda: None,
    "span sent": lambda: None,
    "stored": lambda: before(store, "end"),
    "store closed": lambda: after(store, "close"),
    "sinks gone": lambda: before(session.journal, "finish"),
    "journal gone": lambda: after(session.journal, "finish"),
    "signals left": lambda: after(session, "_leave_process"),
    "summary shown": lambda: after(_session._terminal, "show"),
    "process left": lambda: after(session._process, "remove"),
}[moment]()
is_stopping = True
if mode == "beside":
    stop = threading.Thread(target=tracker.stop)
    stop.start()
    assert held.wait(20), "never came there"
    fork()
    may_go.set()
    stop.join()
else:
    tracker.stop()
provider.force_flush()
if os.getpid() == parent:
    tell("codes", codes)
"""

MOMENTS = (
    "asked",
    "begun",
    "lanes closed",
    "end noted",
    "sink told",
    "span sent",
    "stored",
    "store closed",
    "sinks gone",
    "journal gone",
    "signals left",
    "summary shown",
    "process left",
)
ON_WORKERS = ("sink told", "span sent", "stored", "store closed")  # Their thread is not to end in a child.
PHASES = {"outer": "abandoned", "outer / ended": "succeeded"}


def assert_one_story(run_python, tmp_path, moment, mode, processor="simple"):
    """Run the program with a fork at a moment, and look at what everybody has told."""
    said = run_python(PROGRAM, moment, mode, str(tmp_path), processor)
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    of = {teller: Counter(json.dumps(what) for each, what in told if each == teller) for teller, _ in told}
    assert {"[0]": 1} == of["codes"]
    expected = [["enter", "outer"], ["enter", "ended"], ["exit", "ended"], ["exit", "outer"]]
    assert dict.fromkeys(map(json.dumps, expected), 1) == of["sink"]
    assert dict.fromkeys(map(json.dumps, ("ended", "outer", "session", "rank 0")), 1) == of["spans"]
    for source in ("runs.db", "j"):
        phases = [(each.path_text, each.status.value) for each in read_records(tmp_path / source, kind="phase")]
        assert sorted(PHASES.items()) == sorted(phases), source
    assert (1, 1) == (said.stdout.count("outer"), said.stdout.count("wall time"))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_fork_beside_each_step_of_a_stop(run_python, tmp_path, moment):
    """Another thread stops the session: sink, spans, store, journal and summary have each phase once, from there."""
    assert_one_story(run_python, tmp_path, moment, "beside")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_fork_within_each_step_of_a_stop(run_python, tmp_path, moment):
    """The thread that is about it forks, as a signal handler or a sink may, and the child leaves."""
    assert_one_story(run_python, tmp_path, moment, "leaves")


@pytest.mark.parametrize("moment", [each for each in MOMENTS if each not in ON_WORKERS])
def test_a_child_that_goes_on_with_its_parents_stop(run_python, tmp_path, moment):
    """It returns into what its parent was about, tells nothing of that, and ends by itself."""
    assert_one_story(run_python, tmp_path, moment, "goes on")


@pytest.mark.parametrize("moment", ["begun", "span sent", "sinks gone"])
def test_a_fork_beside_a_stop_with_a_batch_of_spans_under_way(run_python, tmp_path, moment):
    """What the SDK holds is the parent's to send."""
    assert_one_story(run_python, tmp_path, moment, "beside", "batch")
