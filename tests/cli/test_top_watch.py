"""Looks at real journals, again and again: this process trains, and another one is dead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from stormphase._clock import SystemClock
from stormphase.cli._top_watch import Pace, Watch
from stormphase.exceptions import JournalError, StormphaseError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stormphase._tracker import PhaseTracker

SECOND = 1_000_000_000


class LaterClock(SystemClock):
    """The machine's clock, put forward."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def monotonic_ns(self) -> int:  # type: ignore[override]
        """Return a later time."""
        return SystemClock.monotonic_ns() + self.ahead_ns


@pytest.fixture
def tracker(make_tracker: Callable[..., PhaseTracker], runs: Path) -> PhaseTracker:
    """Return rank 0 of session job-1, running in this process."""
    tracker = make_tracker("job", session_id="job-1", rank=0, world_size=2, journal=runs)
    tracker.start()
    return tracker


def walk(tracker: PhaseTracker, first: int, last: int) -> None:
    """Walk some steps."""
    for step in range(first, last):
        tracker.set_step(step)
        with tracker.enter_phase("step"), tracker.enter_phase("all_reduce", sync=True):
            pass


def own(watch: Watch) -> Any:
    """Look, and return what is known of rank 0's own process."""
    watch.look()
    return watch.snapshot().postmortem.ranks[0].own


def test_each_look_sees_what_is_open_now(tracker: PhaseTracker, runs: Path) -> None:
    """And knows what was usual up to the last time that all of it was read."""
    tracker.enter("train")
    walk(tracker, 0, 10)
    watch = Watch(runs, SystemClock())
    assert [("train",)] == [phase.path for phase in own(watch).open]
    tracker.enter("step")
    found = own(watch)
    assert [("train",), ("train", "step")] == [phase.path for phase in found.open]
    assert (10, 9) == (found.open[1].usual.count, found.step)
    assert not found.has_exact_counts


def test_a_rank_that_stands_still_is_read_as_a_whole(tracker: PhaseTracker, runs: Path) -> None:
    """Then its counts are exact, and tell who waits for whom."""
    tracker.enter("train")
    watch = Watch(runs, SystemClock())
    assert own(watch).has_exact_counts
    walk(tracker, 0, 10)
    tracker.enter("step")
    assert not own(watch).has_exact_counts
    found = own(watch)
    assert (True, 10, 10) == (found.has_exact_counts, found.counts["train", "step"], found.open[1].usual.count)
    assert own(watch).has_exact_counts


def test_what_began_and_ended_between_two_looks_is_noticed(tracker: PhaseTracker, runs: Path) -> None:
    """The same is open as before, and yet the counts are not those of the last reading."""
    tracker.enter("train")
    watch = Watch(runs, SystemClock())
    assert [True, True] == [own(watch).has_exact_counts for _ in range(2)]
    with tracker.enter_phase("step"):
        pass
    assert not own(watch).has_exact_counts
    assert own(watch).has_exact_counts


def test_the_medians_of_a_moving_rank_are_renewed(tracker: PhaseTracker, runs: Path) -> None:
    """Now and then, though it never stands still."""
    clock = LaterClock()
    tracker.enter("train")
    watch = Watch(runs, clock)
    own(watch)
    walk(tracker, 0, 10)
    assert {} == own(watch).counts
    walk(tracker, 10, 20)
    clock.ahead_ns = 20 * SECOND
    assert 20 == own(watch).counts["train", "step"]


def test_an_ended_rank_is_not_read_again(tracker: PhaseTracker, runs: Path) -> None:
    """Nothing can change in its journal."""
    watch = Watch(runs, SystemClock())
    own(watch)
    tracker.stop()
    found = own(watch)
    assert "clean" == str(found.state)
    assert found is own(watch)


def test_new_ranks_and_attempts_are_found(tracker: PhaseTracker, killed_rank: None, runs: Path) -> None:
    """A look at the directory finds the journals of those that came later."""
    first = runs / "first"
    (runs / "job-1").rename(first)
    watch = Watch(runs, SystemClock())
    watch.look()
    snapshot = watch.snapshot()
    assert [(0, "running"), (1, "killed")] == [(rank.rank, str(rank.own.state)) for rank in snapshot.postmortem.ranks]
    (gone,) = first.glob("rank-00001.*")
    gone.unlink()
    watch.find()
    watch.look()
    assert [0] == [rank.rank for rank in watch.snapshot().postmortem.ranks]


def test_a_journal_that_breaks_is_counted(tracker: PhaseTracker, killed_rank: None, runs: Path) -> None:
    """The others are shown all the same; with none left it is an error."""
    watch = Watch(runs, SystemClock())
    tracker.stop()
    (live, dead) = sorted((runs / "job-1").iterdir())
    dead.write_bytes(b"\x89SPJ\r\n\x1a\n broken")
    watch.look()
    assert (1, 1) == (len(watch.snapshot().postmortem.ranks), watch.snapshot().unreadable)
    live.write_bytes(b"\x89SPJ\r\n\x1a\n broken")
    with pytest.raises(JournalError, match="bytes are left"):
        Watch(runs, SystemClock())


def test_a_look_keeps_its_budget(tracker: PhaseTracker, killed_rank: None, runs: Path) -> None:
    """Journals that were not reached are first in the next look."""
    watch = Watch(runs, SystemClock())
    watch.look(0)
    assert 1 == len(watch.snapshot().postmortem.ranks)
    watch.look(0)
    assert 2 == len(watch.snapshot().postmortem.ranks)


def test_nothing_to_watch_is_an_error(runs: Path) -> None:
    """At once, and not on an empty screen."""
    runs.mkdir()
    with pytest.raises(StormphaseError, match="No journal in"):
        Watch(runs, SystemClock())


class Report:
    """As much of a report as a pace looks at."""

    def __init__(self, step: int | None, ended: list[tuple[str, int | None, float]] | None = None) -> None:
        self.step = step
        self.measured_ns = 100 * SECOND
        self.last_ended = [
            type("Ended", (), {"path": (path,), "step": each, "ended_ns": int(at_s * SECOND)})()
            for path, each, at_s in ended or []
        ]


def pace_of(*seen: tuple[float, int | None]) -> float | None:
    """Return the pace of a rank that was at some steps at some seconds."""
    pace = Pace()
    for at_s, step in seen:
        pace.note(int(at_s * SECOND), Report(step))  # type: ignore[arg-type]
    return pace.per_second()


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([], None),
        ([(0, None)], None),
        ([(0, 5)], None),
        ([(0, 5), (0.1, 6)], None),
        ([(0, 5), (1, 7)], 2.0),
        ([(0, 5), (2, 5)], None),
        ([(0, 5), (11, 5)], 0.0),
        ([(0, 5), (1, 7), (2, 7)], 2.0),
        ([(0, 5), (1, 7), (4, 7)], 0.0),
        ([(0, 5), (20, 6), (39, 6)], 0.05),
        ([(0, 5), (20, 6), (40, 7), (99, 7)], 0.05),
        ([(0, 5), (20, 6), (40, 7), (101, 7)], 0.0),
        ([(0, 0), (20, 100), (30, 110)], 1.0),
        ([(0, 90), (1, 99), (2, 0), (3, 4)], 4.0),
    ],
)
def test_the_pace_is_that_of_the_last_seconds(seen: list[tuple[float, int | None]], expected: float | None) -> None:
    """Of slow steps that of the last ones; a hang shows within seconds, and a new epoch is no step back."""
    assert expected == pace_of(*seen)


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        ([("load", None, 5), ("load", 10, 90), ("load", 20, 95), ("step", 20, 99.5)], 2.0),
        ([("load", 10, 90), ("load", 20, 95)], 0.0),
        ([("load", 1, 10), ("load", 2, 50), ("load", 3, 90)], 0.025),
        ([("load", 40, 99), ("step", 39, 98)], None),
        ([("load", 30, 98), ("load", 30, 99)], None),
        ([], None),
    ],
    ids=["it goes on", "it stands still", "steps are slow", "one step", "many in one step", "nothing"],
)
def test_the_first_pace_comes_from_the_records(ended: list[Any], expected: float | None) -> None:
    """What ended last tells how fast the rank was, until it was seen twice; and a rank that hangs is not fast."""
    pace = Pace()
    pace.note(0, Report(30, ended))  # type: ignore[arg-type]
    assert expected == pace.per_second()
