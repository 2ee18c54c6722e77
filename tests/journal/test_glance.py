"""Cheap looks at a live journal say the same of what is open as a whole reading does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stormphase.exceptions import JournalError
from stormphase.journal._glance import Glance
from stormphase.journal._read import read_journal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stormphase._tracker import PhaseTracker

Start = "Callable[..., tuple[PhaseTracker, Path]]"


@pytest.fixture
def start(make_tracker: Callable[..., PhaseTracker], tmp_path: Path) -> Start:
    """Start a tracker with a journal; return it with its file."""

    def start_one() -> tuple[PhaseTracker, Path]:
        tracker = make_tracker(session_id="job-1", rank=0, world_size=1, journal=tmp_path)
        tracker.start()
        (file,) = tmp_path.rglob("*.journal")
        return tracker, file

    return start_one


def check(glance: Glance, file: Path) -> None:
    """Compare a look with a whole reading."""
    seen, read = glance.look(), read_journal(file)
    assert read.open == seen.open
    assert (read.identity, read.process, read.facts) == (seen.identity, seen.process, seen.facts)
    assert (read.step, read.end_note, read.started_ns) == (seen.step, seen.end_note, seen.started_ns)
    assert (((), {}, ())) == (seen.ended, seen.totals, seen.stacks)


def test_every_look_sees_what_is_open_by_then(start: Start) -> None:
    """As phases come and go, with names never seen before, attributes, steps and pauses."""
    tracker, file = start()
    glance = Glance(file)
    check(glance, file)
    with tracker.enter_phase("train", attributes={"epochs": 3}):
        check(glance, file)
        for step in range(3):
            tracker.set_step(step)
            with tracker.enter_phase(f"new {step}", attributes={"step": step}) as phase:
                check(glance, file)
                phase.pause()
                check(glance, file)
                phase.resume()
        check(glance, file)
    tracker.stop()
    check(glance, file)


def test_what_is_open_survives_folding(start: Start) -> None:
    """Thousands of phases later the outermost one stands in another segment, or still in its own."""
    tracker, file = start()
    glance = Glance(file)
    with tracker.enter_phase("train"), tracker.enter_phase("epoch"):
        for _ in range(3):
            for _ in range(1_000):
                with tracker.enter_phase("step"):
                    pass
            tracker.flush(10)
            assert [("train",), ("train", "epoch")] == [phase.path for phase in glance.look().open]


def test_other_threads_are_seen(start: Start, step_thread: Callable[..., object]) -> None:
    """Each with its own lane, named."""
    tracker, file = start()
    thread = step_thread("loader")
    phase = thread.do(tracker.enter_phase, "load")  # type: ignore[attr-defined]
    with tracker.enter_phase("train"):
        check(Glance(file), file)
        assert ["MainThread", "loader"] == [each.thread_name for each in Glance(file).look().open]
    thread.do(phase.close)  # type: ignore[attr-defined]


def test_what_is_no_journal_is_an_error(tmp_path: Path) -> None:
    """As for a whole reading, also when the file has gone between two looks."""
    file = tmp_path / "rank-0.journal"
    with pytest.raises(JournalError, match="No such file"):
        Glance(file).look()
    file.write_bytes(b"\x89SPJ\r\n\x1a\n broken")
    with pytest.raises(JournalError, match="bytes are left of it"):
        Glance(file).look()


def test_a_file_cut_within_what_it_says_is_allocated(start: Start, tmp_path: Path) -> None:
    """The looks end where the file does."""
    tracker, file = start()
    with tracker.enter_phase("train"):
        data = file.read_bytes()
    for size in (16_384, 4 * 16_384 + 8, 5 * 16_384 + 100):
        cut = tmp_path / "rank-cut.journal"
        cut.write_bytes(data[:size])
        assert len(Glance(cut).look().open) <= 1
