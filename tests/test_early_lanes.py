"""No lane is made before all of its session is up: a journal has the starting thread's phases, whatever else is on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading

import pytest

import stormphase
from stormphase import PhaseStatus
from stormphase._early import EARLY_LANE
from stormphase.records import read_records

COUNT = 14  # phases of `work`

KILLED = """
import os, sys
import stormphase

wants_with, directory = sys.argv[1] == "with", sys.argv[2]
tracker = stormphase.PhaseTracker("x", journal=directory, bridge=None, summary=True)
if wants_with:
    tracker.__enter__()
else:
    tracker.start()
for step in range(3):
    tracker.set_step(step)
    with tracker.enter_phase("step"):
        with tracker.enter_phase("backward"):
            if step == 2:
                os.kill(os.getpid(), 9)
"""


class EnteringBridge:
    """A bridge that enters a phase as soon as it knows lanes, with what little a bridge has to have."""

    exit_hook = None

    def attach(self, session):
        """Return a carrier."""
        from stormphase._lanes import ContextCarrier

        return ContextCarrier()

    def bind(self, lanes):
        """Enter a phase, long before the session is up, and keep it open."""
        with contextlib.suppress(AssertionError):  # As a hook's caller may that lets no exception pass.
            self.phase = lanes.enter_phase("early")

    def take(self, phase):
        """Take it."""

    tick = environment = stats = lambda self: {}
    after_fork_in_child = lambda self: None  # noqa: E731
    finish = lambda self, outcome, ended_ns: None  # noqa: E731
    flush = lambda self, timeout_s: True  # noqa: E731


@contextlib.contextmanager
def started(tracker, way):
    """Start a tracker by its `with` block or by `start()`, and stop it."""
    if way == "with":
        with tracker:
            yield tracker
        return
    tracker.start()
    try:
        yield tracker
    finally:
        tracker.stop()


def work(tracker):
    """Use a thread's own lane in all ways there are: blocks, tokens, generators, moves, tasks."""

    @tracker.phase("batches")
    def batches():
        for number in range(3):
            with tracker.enter_phase("load", {"number": number}):
                pass
            yield number

    async def fetch():
        with tracker.enter_phase("fetch"):
            await asyncio.sleep(0)

    with tracker.enter_phase("train"):
        for _ in batches():
            with tracker.enter_phase("step"):
                pass
        token = tracker.enter("by token")
        tracker.exit(token)
        moving = tracker.enter_phase("moved").release()
        tracker.acquire(moving).close()
        first = tracker.enter_phase("tried")
        first.close(error=ValueError("no"))
        tracker.retry(first).close()
        asyncio.run(fetch())
    elsewhere = threading.Thread(target=lambda: tracker.enter_phase("elsewhere").close())
    elsewhere.start()
    elsewhere.join()


def phases_in(directory):
    """Return path and status of each phase that a journal has, sorted."""
    records = read_records(directory, kind="phase")
    return sorted((record.path_text, record.status) for record in records)


@pytest.mark.parametrize("way", ["with", "start"])
@pytest.mark.parametrize(
    "options",
    [{"summary": True}, {"summary": "all", "capture": True, "hang_factor": 10.0}],
    ids=["summary", "summary and others"],
)
def test_a_journal_has_the_same_with_a_summary_as_alone(make_tracker, tmp_path, way, options):
    """The lane that the summary looks at is the starting thread's, and has its journal like any other."""
    for name, more in (("alone", {}), ("together", options)):
        with started(make_tracker(journal=tmp_path / name, **more), way) as tracker:
            work(tracker)
    alone = phases_in(tmp_path / "alone")
    assert (COUNT, alone) == (len(alone), phases_in(tmp_path / "together"))


@pytest.mark.parametrize("way", ["with", "start"])
def test_what_a_killed_process_had_open_is_known_also_with_a_summary(run_python, tmp_path, way):
    """README's first two options together, and SIGKILL."""
    run_python(KILLED, way, str(tmp_path / "j"), check=False)
    done, lost = PhaseStatus.SUCCEEDED, PhaseStatus.LOST
    expected = [("step", done), ("step", done), ("step", lost)]
    expected += [("step / backward", done), ("step / backward", done), ("step / backward", lost)]
    assert sorted(expected) == phases_in(tmp_path / "j")


def test_the_summary_counts_what_no_phase_covered_on_the_starting_lane(make_tracker, clock):
    """Its main lane is found at the very end of the start, and its wall time begins with the session all the same."""
    with make_tracker(summary=True, clock=clock) as tracker:
        clock.advance(7)
        with tracker.enter_phase("train"):
            clock.advance(5)
        assert tracker.flush()
        report = tracker._session._summary.report()
    assert (12, 5, 7) == (report.wall_ns, report.tracked_ns, report.untracked_ns)


@pytest.mark.parametrize("way", ["with", "start"])
def test_a_hook_that_enters_a_phase_during_the_start_harms_nobody(make_tracker, tmp_path, monkeypatch, way):
    """Its lane is repaired, and counted: its phase and all that comes later are in the journal."""
    monkeypatch.delenv("STORMPHASE_CHECKS")
    bridge = EnteringBridge()
    with started(make_tracker(bridge=bridge, journal=tmp_path, summary=True), way) as tracker:
        bridge.phase.close()
        work(tracker)
        assert 1 == tracker.stats()["misuse"][EARLY_LANE]
    phases = phases_in(tmp_path)
    assert (COUNT + 1, ("early", PhaseStatus.SUCCEEDED)) == (len(phases), phases[0])


def test_the_checks_of_our_own_tests_find_a_lane_that_is_asked_for_too_early(make_tracker):
    """They fail the start, even where the hook's caller lets no exception pass; nothing is left behind."""
    tracker = make_tracker(bridge=EnteringBridge(), summary=True)
    with pytest.raises(AssertionError, match="before the session was up"):
        tracker.start()
    assert (False, 0) == (tracker.is_running, len(tracker.stats()["sinks"]))


def test_a_signal_handler_that_enters_phases_during_the_start_harms_nobody(make_tracker, tmp_path, monkeypatch):
    """For it the tracker does not run yet, and nobody else does: there is no phase, and no lane."""
    monkeypatch.setattr(EnteringBridge, "bind", lambda self, lanes: signal.raise_signal(signal.SIGUSR1))
    tracker = make_tracker(journal=tmp_path, summary=True, on_misuse="record", bridge=EnteringBridge())

    def handle(number, frame):
        with tracker.enter_phase("handler"), stormphase.phase("library"):
            pass

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with tracker:
            work(tracker)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert COUNT == len(phases_in(tmp_path))


def test_a_handler_that_interrupts_a_childs_opening_of_its_journal_costs_it_no_phase(run_python, tmp_path):
    """The handler's own is in the journal, too: the lane that it was given is repaired once that is there."""
    said = run_python(
        """
import os, signal, sys
import stormphase
from stormphase import _journaling
from stormphase.records import read_records

opened = _journaling.open_journal

def interrupted(*args, **options):
    signal.raise_signal(signal.SIGUSR1)
    return opened(*args, **options)

with stormphase.PhaseTracker("x", journal=sys.argv[1], bridge=None) as tracker:
    signal.signal(signal.SIGUSR1, lambda *_: tracker.enter_phase("handler").close())
    _journaling.open_journal = interrupted
    if (pid := os.fork()) == 0:
        with tracker.enter_phase("child"):
            pass
        print(tracker.stats()["misuse"])
        tracker.stop()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
print([record.path_text for record in read_records(sys.argv[1], kind="phase")])
""",
        str(tmp_path / "j"),
    ).stdout
    assert ["{'early_lane': 1}", "['handler', 'child']"] == said.splitlines()
