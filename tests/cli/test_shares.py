"""Work that several processes share: in order, whatever becomes of them, and none is left."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from stormphase.cli._journals import read_reports
from stormphase.cli._shares import BATCH, processes_for, shared_out
from stormphase.journal._read import UnreadableJournal
from stormphase.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from stormphase._tracker import PhaseTracker
    from stormphase.analysis._ranks import ProcessReport

ITEMS = range(5 * BATCH + 3)
HERE = os.getpid()


def doubled(batch: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Say by whom."""
    return ((2 * item, os.getpid()) for item in batch)


def assert_no_child_is_left() -> None:
    """Also none that nobody took note of."""
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(("processes", "others"), [(1, 0), (2, 2), (3, 3)])
def test_outcomes_come_in_order_from_as_many_processes(processes: int, others: int) -> None:
    """Each does every so many-th batch."""
    found = list(shared_out(ITEMS, doubled, processes))
    assert [2 * item for item in ITEMS] == [outcome for outcome, _ in found]
    assert others == len({pid for _, pid in found} - {HERE})
    assert_no_child_is_left()


def test_what_a_process_does_not_hand_over_is_done_here() -> None:
    """It is killed, raises, or has what cannot be sent: the outcomes are the same."""

    def work(batch: Sequence[int]) -> Iterator[Any]:
        if os.getpid() != HERE and batch[0] == 2 * BATCH:
            os._exit(9)
        if os.getpid() != HERE and batch[0] == 3 * BATCH:
            raise MemoryError
        for item in batch:
            yield (lambda: None) if item == 1 and os.getpid() != HERE else item

    assert list(ITEMS) == list(shared_out(ITEMS, work, 3))
    assert_no_child_is_left()


def test_an_error_of_the_work_is_raised_here() -> None:
    """As if it had been done here from the first."""

    def work(batch: Sequence[int]) -> Iterator[int]:
        yield from batch
        if batch[0] == BATCH:
            raise LookupError(batch[0])

    outcomes = shared_out(ITEMS, work, 2)
    with pytest.raises(LookupError, match=str(BATCH)):
        list(outcomes)
    assert_no_child_is_left()


def test_who_has_read_enough_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are ended where they are; and without processes it goes on alone."""
    outcomes = shared_out(ITEMS, doubled, 2)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert_no_child_is_left()

    def refuse() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refuse)
    assert {HERE} == {pid for _, pid in shared_out(ITEMS, doubled, 2)}


def test_few_journals_are_worth_no_process() -> None:
    """Nor is a process forked while it has other threads."""
    assert 1 == processes_for(BATCH)
    assert 1 <= processes_for(4_096) <= 8


def test_journals_read_by_several_processes_say_the_same(
    make_tracker: Callable[..., PhaseTracker], runs: Path, kill_rank: Callable[[int], None]
) -> None:
    """In the same order, those that cannot be read with the reason."""
    tracker = make_tracker("job", session_id="job-1", rank=0, world_size=2, journal=runs).start()
    kill_rank(2)
    tracker.stop()
    whole = sorted((runs / "job-1").glob("*.journal"))
    broken = runs / "job-1" / "rank-00002.attempt-0.pid-1.0.journal"
    broken.write_bytes(b"not one")
    files = [*whole, broken] * BATCH
    alone, together = (list(read_reports(files, ManualClock(), processes=processes)) for processes in (1, 2))
    assert [_said(each) for each in alone] == [_said(each) for each in together]
    assert ["UnreadableJournal", "clean", "killed"] == sorted({_said(each)[0] for each in together})


def _said(found: ProcessReport | UnreadableJournal) -> tuple[str, str, str]:
    if isinstance(found, UnreadableJournal):
        return "UnreadableJournal", found.file.name, str(found.error)
    return str(found.state), found.evidence, ",".join(phase.scope_id for phase in found.open)
