"""Phases that stay open too long: one notice each, with everybody's stack, while training goes on."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from stormphase import PhaseTracker
from stormphase._overdue import LearntLimits, OverdueWatch, stacks_of_all_threads
from stormphase.exceptions import ConfigurationError
from stormphase.journal import read_journal
from stormphase.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stormphase import PhaseBoundary
    from stormphase._overdue import OverdueNotice

SECOND = 1_000_000_000


class Seen:
    """A watch over a tracker's lanes, driven by hand, and what it said."""

    def __init__(self, tracker: PhaseTracker, learnt: LearntLimits | None = None) -> None:
        lanes = tracker.lane_set
        assert lanes is not None
        lanes.on_timed = None  # Only this watch looks.
        self.notices: list[OverdueNotice] = []
        self.stacks: list[Mapping[str, Any]] = []
        self.watch = OverdueWatch(lanes, self.notices.append, self._keep, learnt)

    def _keep(self, stacks: Mapping[str, Any]) -> bool:
        self.stacks.append(stacks)
        return True


def tracker_with(clock: ManualClock, **options: Any) -> PhaseTracker:
    """Return a tracker without a bridge, on the given clock."""
    return PhaseTracker(rank=0, world_size=1, bridge=None, clock=clock, **options)


def test_a_phase_is_noticed_once_when_its_timeout_has_passed(caplog: pytest.LogCaptureFixture) -> None:
    """Before the limit nothing is said, at the limit one notice with the stacks and one line, and no more later."""
    clock = ManualClock()
    with tracker_with(clock) as tracker, caplog.at_level(logging.WARNING, "stormphase"):
        seen = Seen(tracker)
        with tracker.enter_phase("load", timeout_s=2.0):
            clock.advance(2 * SECOND - 1)
            seen.watch.look()
            before = len(seen.notices)
            clock.advance(1)
            seen.watch.look()
            seen.watch.look()

    assert 0 == before
    assert [("load", 2 * SECOND)] == [(notice.phase.phase_path, notice.limit_ns) for notice in seen.notices]
    assert [threading.get_ident()] == [stacks["threads"][0]["thread_id"] for stacks in seen.stacks]
    assert 1 == len(caplog.records)
    assert "rank 0 has been in load for 2.0 s, longer than its limit of 2.0 s" in caplog.text
    assert f"{threading.current_thread().name!r} ({threading.get_ident()}) is at " in caplog.text


def test_a_phase_without_a_limit_is_never_noticed() -> None:
    """Where nobody asked, however long a phase lasts is its own affair."""
    clock = ManualClock()
    with tracker_with(clock) as tracker:
        seen = Seen(tracker)
        with tracker.enter_phase("train"):
            clock.advance(1_000_000 * SECOND)
            seen.watch.look()

    assert [] == seen.notices


def test_a_path_s_limit_is_learnt_from_what_has_ended() -> None:
    """After twenty of them a phase may be open ten times as long as usual, and for ten seconds at least."""
    clock = ManualClock()
    learnt = LearntLimits(10)
    with tracker_with(clock) as tracker:
        seen = Seen(tracker, learnt)
        for number in range(20):
            with tracker.enter_phase("step") as phase:
                clock.advance(3 * SECOND)
            learnt.learn(phase)
            assert (None if number < 19 else pytest.approx(30 * SECOND, rel=0.02)) == learnt.limit_ns(phase._path)
        with tracker.enter_phase("step"):
            clock.advance(29 * SECOND)
            seen.watch.look()
            before = len(seen.notices)
            clock.advance(2 * SECOND)
            seen.watch.look()

    assert (0, 1) == (before, len(seen.notices))


def test_short_paths_are_given_ten_seconds() -> None:
    """A path of a millisecond is not overdue after ten of them."""
    clock = ManualClock()
    learnt = LearntLimits(10)
    with tracker_with(clock) as tracker:
        for _ in range(20):
            with tracker.enter_phase("step") as phase:
                clock.advance(1_000_000)
            learnt.learn(phase)

    assert 10 * SECOND == learnt.limit_ns(phase._path)


def test_sinks_are_told_and_the_counts_stay_exact() -> None:
    """A sink gets one boundary of its own kind, and offered = handed over + dropped as ever."""
    told: list[PhaseBoundary] = []
    overdue = threading.Event()

    def sink(boundary: PhaseBoundary) -> None:
        told.append(boundary)
        if boundary.event_type == "phase_overdue":
            overdue.set()

    with PhaseTracker(rank=0, world_size=1, bridge=None, sinks=[sink]) as tracker:
        with tracker.enter_phase("load", {"shard": 7}, timeout_s=0.001):
            assert overdue.wait(30)
        assert tracker.flush(30)
        counts = tracker.stats()["sinks"]["0:sink"]

    scope = told[1].metadata["phase_scope"]
    assert ["phase_enter", "phase_overdue", "phase_exit"] == [boundary.event_type for boundary in told]
    assert (1_000_000, {"shard": 7}, "active") == (scope["limit_ns"], scope["attributes"], scope["status"])
    assert scope["open_ns"] >= scope["limit_ns"]
    assert (3, 3, 0) == (counts["offered"], counts["handed_over"], counts["dropped"])


def test_the_journal_keeps_every_thread_s_stack(tmp_path: Path) -> None:
    """What each thread was doing stands in the file, the overdue phase's own thread first."""
    overdue = threading.Event()

    def sink(boundary: PhaseBoundary) -> None:
        if boundary.event_type == "phase_overdue":
            overdue.set()

    with (
        PhaseTracker(session_id="stacks", rank=0, world_size=1, bridge=None, sinks=[sink], journal=tmp_path) as tracker,
        tracker.enter_phase("load", timeout_s=0.001) as phase,
    ):
        assert overdue.wait(30)
    (dump,) = read_journal(next(tmp_path.glob("*/*.journal"))).stacks

    assert (phase._sequence, 1_000_000) == (dump.sequence, dump.limit_ns)
    assert threading.get_ident() == dump.threads[0]["thread_id"]
    assert any("in test_the_journal_keeps_every_thread_s_stack" in frame for frame in dump.threads[0]["frames"])


def test_a_phase_that_ends_in_time_is_forgotten() -> None:
    """What has ended before the look is not noticed."""
    clock = ManualClock()
    with tracker_with(clock) as tracker:
        seen = Seen(tracker)
        with tracker.enter_phase("load", timeout_s=1.0):
            pass
        clock.advance(2 * SECOND)
        seen.watch.look()

    assert [] == seen.notices


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), "5", True])
def test_a_timeout_that_is_none_is_refused_before_anything_is_entered(timeout_s: Any) -> None:
    """The error names what was given, and no phase is open by it."""
    with PhaseTracker(rank=0, world_size=1, bridge=None) as tracker:
        with pytest.raises(ValueError, match="timeout_s must be a number of seconds above 0, not"):
            tracker.enter_phase("load", timeout_s=timeout_s)
        assert tracker.lane_set is not None
        assert [] == list(tracker.lane_set.open_phases())


def test_with_misuse_only_recorded_a_bad_timeout_is_counted() -> None:
    """The phase is entered all the same, without a limit."""
    with PhaseTracker(rank=0, world_size=1, bridge=None, on_misuse="record") as tracker:
        with tracker.enter_phase("load", timeout_s=-1) as phase:
            pass
        misuse = tracker.stats()["misuse"]

    assert ("succeeded", {"bad_timeout": 1}) == (phase.status.value, misuse)


@pytest.mark.parametrize("factor", [1, 0, -3, "ten", True])
def test_a_factor_that_is_none_is_refused(factor: Any) -> None:
    """The error says what to write."""
    with pytest.raises(ConfigurationError, match="hang_factor=10"):
        PhaseTracker(hang_factor=factor)


def test_stacks_are_bounded_and_plain() -> None:
    """A thread deep in a recursion gives its innermost frames, and no more characters than there is room for."""

    def deep(levels: int) -> list[dict[str, Any]]:
        return stacks_of_all_threads(threading.get_ident()) if levels == 0 else deep(levels - 1)

    stacks = deep(500)

    assert 64 == len(stacks[0]["frames"])
    assert stacks[0]["frames"][-2].endswith(" in deep")
    assert sum(len(frame) for stack in stacks for frame in stack["frames"]) <= 12_000
