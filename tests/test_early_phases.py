"""What a hook enters while a session still starts is told by all, as if it had waited: the lane is repaired."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stormphase import PhaseStatus, _exits, _journaling, _session
from stormphase._capturing import SessionCapture
from stormphase._early import EARLY_LANE
from stormphase.otel import OTelBridge
from stormphase.records import read_records
from stormphase.stores import SqliteStore


class HookedBridge(OTelBridge):
    """A bridge that lets a hook enter phases as soon as it knows lanes."""

    hook = None

    def bind(self, lanes):
        """Bind, and call the hook."""
        super().bind(lanes)
        if self.hook is not None:
            self.hook(lanes)


def enter_early(lanes):
    """Enter phases of all kinds; returns the one that is left open."""
    with lanes.enter_phase("plain"), lanes.enter_phase("inner", {"of": "enter"}) as inner:
        inner.set_attribute("late", 1)
    with contextlib.suppress(ValueError), lanes.enter_phase("failed"):
        raise ValueError("early")
    moved = lanes.enter_phase("moved")
    lanes.acquire(moved.release()).close()
    paused = lanes.enter_phase("paused")
    paused.pause()
    paused.resume()
    paused.close()

    async def task():
        with lanes.enter_phase("task"):
            pass

    asyncio.run(task())
    return lanes.enter_phase("left open", {"since": "the start"})


EXPECTED = [
    ("failed", PhaseStatus.FAILED, {}),
    ("left open", PhaseStatus.SUCCEEDED, {"since": "the start"}),
    ("left open / train", PhaseStatus.SUCCEEDED, {}),
    ("moved", PhaseStatus.SUCCEEDED, {}),
    ("paused", PhaseStatus.SUCCEEDED, {}),
    ("plain", PhaseStatus.SUCCEEDED, {}),
    ("plain / inner", PhaseStatus.SUCCEEDED, {"late": 1, "of": "enter"}),
    ("task", PhaseStatus.SUCCEEDED, {}),
]


def before(owner, name, hooked):
    """Return what stands for a method of the library's and calls the hook first; `hooked` finds the lanes."""
    original = getattr(owner, name)

    def method(self, *arguments, **options):
        hooked(self, *arguments)
        return original(self, *arguments, **options)

    return method


# Where in the start the phases are entered: in a hook of the user's, and where a mistake of ours could.
MOMENTS = {
    "bind": None,
    "journal": (_journaling.SessionJournal, "open", lambda self, lanes, *_: lanes),
    "store": (_session.StoreFeed, "begin", lambda self: self._lanes),
    "capture": (SessionCapture, "start", lambda self, lanes: lanes),
    "sinks": (_session.SinkSet, "connect", lambda self, early: self._lanes),
}


@pytest.fixture
def no_checks(monkeypatch):
    """Do as in production."""
    monkeypatch.delenv("STORMPHASE_CHECKS")


@pytest.fixture
def begin_early(monkeypatch):
    """Return what has phases entered at a moment of the start; it returns where the one that is open will be."""

    def begin(moment, bridge):
        left = []
        if MOMENTS[moment] is None:
            bridge.hook = lambda lanes: left.append(enter_early(lanes))
        else:
            owner, name, lanes_of = MOMENTS[moment]
            hooked = before(owner, name, lambda *given: left.append(enter_early(lanes_of(*given))))
            monkeypatch.setattr(owner, name, hooked)
        return left

    return begin


def seen(phases):
    """Return path, status and attributes, sorted."""
    return sorted(phases, key=lambda phase: phase[0])


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.usefixtures("no_checks")
def test_phases_of_the_start_are_told_by_all(make_tracker, tmp_path, begin_early, moment):
    """Journal, store, sink, spans and summary have each of them once, with all that happened to it."""
    told, exporter, provider = [], InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    bridge = HookedBridge(provider)
    left = begin_early(moment, bridge)
    store = SqliteStore(tmp_path / "runs.db")
    options = {"journal": tmp_path / "j", "summary": True, "capture": True, "store": store, "sinks": [told.append]}
    with make_tracker(bridge=bridge, hang_factor=10.0, **options) as tracker:
        with tracker.enter_phase("train"):
            pass
        left[0].close()
        assert tracker.flush()
        stats = tracker.stats()
        report = tracker._session._summary.report()
    assert 2 == stats["misuse"][EARLY_LANE]  # The thread's own, and its task's.
    for source in (tmp_path / "j", tmp_path / "runs.db"):
        records = read_records(source, kind="phase")
        assert EXPECTED == seen((each.path_text, each.status, dict(each.attributes)) for each in records), source
    exits = [each.metadata["phase_scope"] for each in told if each.event_type == "phase_exit"]
    enters = [each.metadata["phase_scope"] for each in told if each.event_type == "phase_enter"]
    assert EXPECTED == seen((" / ".join(each["path"]), each["status"], each.get("attributes", {})) for each in exits)
    assert [each[0] for each in EXPECTED] == sorted(" / ".join(each["path"]) for each in enters)
    spans = [span for span in exporter.get_finished_spans() if "stormphase.phase.path" in span.attributes]
    assert [each[0] for each in EXPECTED] == sorted(span.attributes["stormphase.phase.path"] for span in spans)
    assert len(EXPECTED) == sum(row.figures.count for row in (*report.main.rows, *report.beside.rows) if row.figures)
    assert 0 <= report.untracked_ns
    assert {0} == {each["dropped"] for each in stats["sinks"].values()}


KILLED = """
import os, sys
import stormphase
from stormphase.otel import OTelBridge

class Hooked(OTelBridge):
    def bind(self, lanes):
        super().bind(lanes)
        self.phase = lanes.enter_phase("left open", {"since": "the start"})

stormphase.PhaseTracker("x", journal=sys.argv[1], bridge=Hooked(), summary=True).start()
os.kill(os.getpid(), 9)
"""


def test_a_phase_that_was_open_since_the_start_is_lost_with_its_process(run_python, tmp_path):
    """The journal has it from the end of the start on, with the attributes of enter."""
    run_python(KILLED, str(tmp_path), env={"STORMPHASE_CHECKS": ""}, check=False)
    (record,) = read_records(tmp_path, kind="phase")
    found = record.path_text, record.status, dict(record.attributes)
    assert ("left open", PhaseStatus.LOST, {"since": "the start"}) == found


def test_another_thread_waits_until_the_session_is_up(make_tracker, tmp_path, no_checks):
    """Its first phase then is like any other: nothing has to be repaired, and nothing is counted."""
    bridge, entered = HookedBridge(), threading.Event()

    def work(lanes):
        with lanes.enter_phase("beside"):
            entered.set()

    beside = []

    def hook(lanes):
        beside.append(threading.Thread(target=work, args=(lanes,)))
        beside[0].start()

    bridge.hook = hook
    with make_tracker(bridge=bridge, journal=tmp_path) as tracker:
        assert entered.wait(10)
        beside[0].join()
        assert {} == tracker.stats()["misuse"]
    assert ["beside"] == [record.path_text for record in read_records(tmp_path, kind="phase")]


def test_a_thread_that_the_start_itself_waits_for_gets_no_phase(make_tracker, monkeypatch, no_checks):
    """It would wait for ever: after a while it goes on without, which is counted."""
    monkeypatch.setattr(_session, "START_WAIT_S", 0.01)
    bridge, found = HookedBridge(), []

    def hook(lanes):
        beside = threading.Thread(target=lambda: found.append(lanes.enter_phase("beside")))
        beside.start()
        beside.join()

    bridge.hook = hook
    with make_tracker(bridge=bridge) as tracker:
        assert ([tracker.lane_set.noop], {EARLY_LANE: 1}) == (found, tracker.stats()["misuse"])


def test_a_start_that_fails_leaves_no_early_phase_in_the_callers_context(make_tracker, monkeypatch, no_checks):
    """What was entered until then ends, and the context is as it was."""
    bridge, left = HookedBridge(), []
    bridge.hook = lambda lanes: left.append(lanes.enter_phase("early"))

    def fail(self, *_, **__):
        raise OSError("no")

    monkeypatch.setattr(_journaling.SessionJournal, "open", fail)
    tracker = make_tracker(bridge=bridge)
    with pytest.raises(OSError, match="no"):
        tracker.start()
    phase = left[0]
    assert (PhaseStatus.ABANDONED, None) == (phase.status, phase._lane.lanes.carrier.current_phase())


def test_a_lane_that_was_made_without_asking_fails_the_checked_start(make_tracker):
    """The checks look at the lanes that are there, and not only at who asked."""
    bridge = HookedBridge()

    def hook(lanes):
        lanes.on_first_sight = None
        lanes.enter_phase("early").close()

    bridge.hook = hook
    with pytest.raises(AssertionError, match="before the session was up"):
        make_tracker(bridge=bridge).start()


def test_an_enter_that_was_taken_back_is_in_no_journal(make_tracker, tmp_path, no_checks):
    """A signal handler may raise into one before the session is up, too."""
    bridge = HookedBridge()

    def hook(lanes):
        phase = lanes.enter_phase("interrupted")
        _exits.take_back(lanes, phase._lane, phase)
        lanes.enter_phase("early").close()

    bridge.hook = hook
    with make_tracker(bridge=bridge, journal=tmp_path):
        pass
    assert ["early"] == [record.path_text for record in read_records(tmp_path, kind="phase")]


def test_without_a_journal_the_sinks_are_told(make_tracker, no_checks):
    """In the order in which it happened."""
    bridge, told = HookedBridge(), []
    bridge.hook = enter_early
    with make_tracker(bridge=bridge, sinks=[told.append]) as tracker:
        assert tracker.flush()
        events = [(each.event_type, each.path[-1]) for each in told]
    first = [("phase_enter", "plain"), ("phase_enter", "inner"), ("phase_exit", "inner"), ("phase_exit", "plain")]
    assert (first, ("phase_enter", "left open")) == (events[:4], events[-1])


RAISING = """
import os, signal, sys
import stormphase
from stormphase import _journaling
from stormphase.records import read_records

opened = _journaling.open_journal

def interrupted(*args, **options):
    signal.raise_signal(signal.SIGUSR1)
    return opened(*args, **options)

def handle(number, frame):
    tracker.enter_phase("handler").close()
    raise ValueError("no")

with stormphase.PhaseTracker("x", journal=sys.argv[1], bridge=None) as tracker:
    signal.signal(signal.SIGUSR1, handle)
    _journaling.open_journal = interrupted
    if (pid := os.fork()) == 0:
        try:
            tracker.enter_phase("child")
        except ValueError as error:
            print(error)
        with tracker.enter_phase("later"):
            pass
        tracker.stop()
        print(tracker.stats()["misuse"])
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_handler_that_raises_as_a_child_opens_its_journal_leaves_lanes_that_work(run_python, tmp_path):
    """The child goes on without a journal, as where none can be made; nothing waits for ever to be told."""
    said = run_python(RAISING, str(tmp_path / "j")).stdout
    assert ["no", "{'early_lane': 1}"] == said.splitlines()
