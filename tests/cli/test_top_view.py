"""The screen of `top`, line by line, from hand-made jobs."""

from __future__ import annotations

import sys
from typing import Any

import attrs
import pytest

from stormphase.analysis._ranks import report_process
from stormphase.cli._top_view import Choices, Order, screen_of, would_group
from stormphase.cli._top_watch import Snapshot

jobs = sys.modules["jobs"]
SECOND = jobs.SECOND
USUAL = {"train / step / all_reduce": [0.012] * 119, "train / step / data_loading": [0.01] * 120}


def snapshot(job: Any, **more: Any) -> Snapshot:
    """Return what would be shown of a job; every rank walks 2.5 steps a second."""
    postmortem = job.diagnose()
    options = {
        "postmortem": postmortem,
        "paces": {rank.rank: 2.5 for rank in postmortem.ranks},
        "unreadable": 0,
        "at_ns": jobs.NOW_WALL_NS,
        "reading_ns": 38_000_000,
        "oldest_ns": SECOND,
    }
    return Snapshot(**{**options, **more})


def lines(
    job: Any, *, width: int = 80, height: int | None = 24, choices: Choices | None = None, **more: Any
) -> list[str]:
    """Return the screen without styles or blanks at the ends of lines."""
    shown = screen_of(snapshot(job, **more), choices or Choices(), width=width, height=height, hang_ns=60 * SECOND)
    return ["".join(piece.text for piece in line).rstrip() for line in shown]


def styles(job: Any, **options: Any) -> dict[str, str]:
    """Return the style of each row by its first word."""
    shown = screen_of(snapshot(job), Choices(**options), width=80, height=24, hang_ns=60 * SECOND)
    return {line[0].text.split()[0]: line[0].style for line in shown if len(line) == 1 and line[0].text.strip()}


def hang(world_size: int) -> Any:
    """Return a job in which rank 17 hangs and all others wait for it."""
    job = jobs.Job(world_size)
    job.rank(17, "train,4000", "train / step,316", "train / step / data_loading,315", usual=USUAL)
    job.rank(0, "train,4000", "train / step,313", "train / step / all_reduce,312,sync", usual=USUAL)
    waits = job.processes[-1]
    for rank in range(1, world_size):
        if rank != 17:
            job.processes.append(attrs.evolve(waits, identity=attrs.evolve(waits.identity, rank=rank)))
    return job


@pytest.mark.parametrize("world_size", [64, 4_096])
def test_a_job_of_any_size_fits_on_one_screen(world_size: int) -> None:
    """The suspect stands alone and first, all others in one row; below it is said why."""
    found = lines(hang(world_size))
    assert 24 == len(found)
    assert max(map(len, found)) <= 80
    rest = f"{world_size - 1:,}x 0-16, 18-62"
    assert [
        f"stormphase top: session job-1, attempt 0, {world_size:,} of {world_size:,} ranks",
        f"{world_size:,} running  something hangs  2.50 steps/s  11:46:40 UTC, read in 38.0 ms",
        "rank         state        step steps/s in phase  median path",
        "17           running       120    2.50    315 s 10.0 ms … step / data_loading",
        f"{rest[:11]}… running       120    2.50    312 s 12.0 ms … step / all_reduce",
        "",
    ] == found[:6]
    assert [
        "rank 17: in train / step / data_loading (step 120) for 315 s (usually 10.0 ms,",
        "  p99 10.0 ms, longest 10.0 ms, 120 times): it never entered that step's",
        "  all_reduce, and is what the others wait for (312 s so far)",
        "q quit  sort: hot rank step time  groups  j k scroll",
    ] == found[-4:]


def test_a_small_job_has_a_row_for_each_rank(job: Any) -> None:
    """Where they fit, nothing is grouped."""
    for rank in range(4):
        job.rank(rank, "train,9", step=rank)
    assert ["0", "1", "2", "3"] == [line.split()[0] for line in lines(job)[3:7]]
    assert [False, True, False] == [would_group(16, 24), would_group(17, 24), would_group(4_096, None)]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("hot", [3, 1, 0, 2]), ("rank", [0, 1, 2, 3]), ("step", [2, 0, 1, 3]), ("time", [1, 0, 2, 3])],
)
def test_ranks_are_sorted_as_asked(job: Any, order: str, expected: list[int]) -> None:
    """Hot: suspects, then those that are longest in their phase against what is usual for it."""
    job.rank(0, "a,8", step=6, usual={"a": [4] * 5})
    job.rank(1, "a,9", step=7, usual={"a": [3] * 5})
    job.rank(2, "a,7", step=5, usual={"a": [4] * 5})
    job.rank(3, "a,1", step=8, verdict="dead")
    found = lines(job, choices=Choices(order=Order(order)))[3:7]
    assert expected == [int(line.split()[0]) for line in found]


def test_dead_suspect_and_slow_ranks_are_coloured(job: Any) -> None:
    """Red for dead and suspect ones, yellow for silent and overdue ones, dim for those that ended in order."""
    job = jobs.Job(6)
    has_entered = {"train / step / all_reduce": [1] * 10}
    job.rank(0, "train,9", verdict="dead", usual=has_entered)
    job.rank(1, "train,9", verdict="unknown", usual=has_entered)
    job.rank(2, note=jobs.said("clean"), usual=has_entered)
    job.rank(3, "train,9", usual=has_entered)
    for rank in (4, 5):
        job.rank(rank, "train / step / all_reduce,99,sync", usual={"train / step / all_reduce": [1] * 9})
    found = styles(job)
    assert ("red", "red", "dim", "", "yellow", "yellow") == tuple(found[str(rank)] for rank in range(6))


def test_groups_have_their_own_colour(job: Any) -> None:
    """A group in which most are overdue is yellow."""
    assert {"17": "red", "63x": "yellow"}.items() <= styles(hang(64)).items()


def test_many_rows_can_be_scrolled() -> None:
    """What is above and below is counted."""
    job = jobs.Job(64)
    for rank in range(64):
        job.rank(rank, "train,9")
    chosen = Choices(order=Order.RANK, is_grouped=False)
    found = lines(job, choices=chosen)
    assert (["0", "18"], "45 rows of 45 ranks not shown") == ([found[3].split()[0], found[21].split()[0]], found[22])
    found = lines(job, choices=attrs.evolve(chosen, scrolled=10))
    assert ("10", "45 rows of 45 ranks not shown, 10 of them above") == (found[3].split()[0], found[22])
    assert "63" == lines(job, choices=attrs.evolve(chosen, scrolled=1_000))[21].split()[0]


def test_groups_may_be_wanted_for_few_ranks(job: Any) -> None:
    """With their steps and the median of their times."""
    for rank in range(5):
        job.rank(rank, f"train,{rank + 1}", step=rank, usual={"train": [rank + 1] * 5})
    job.rank(5, step=2)
    found = lines(job, choices=Choices(is_grouped=True))
    assert "5x 0-4       running       0-4    2.50   3.00 s  3.00 s train" in found
    assert "5            running         2    2.50" in found


def test_the_head_says_what_has_to_be_known(job: Any) -> None:
    """Journals that cannot be read, and what was not looked at for a while."""
    job.rank(0, "train,9")
    head = lines(job, width=120, unreadable=2, oldest_ns=5 * SECOND)[1]
    assert "1 running  2 unreadable  2.50 steps/s  11:46:40 UTC, read in 38.0 ms, oldest 5.00 s" == head


def test_free_lines_are_for_suspects(job: Any) -> None:
    """Where the ranks leave room, everything is said of more than one suspect; where not, how many are left out."""
    for rank in (1, 2):
        job.rank(rank, "train,100", "train / step,95", "train / step / data_loading,95", usual=USUAL)
    for rank in (0, 3):
        job.rank(rank, "train,100", "train / step,95", "train / step / all_reduce,94,sync", usual=USUAL)
    for height, told in ((24, ["rank 1:", "rank 2:"]), (13, ["rank 1:", "and 1 suspect more:"])):
        found = lines(job, height=height)
        assert height == len(found)
        assert told == [
            next(each for each in told if line.startswith(each)) for line in found if line.startswith(tuple(told))
        ]


def test_a_hang_of_all_is_explained(job: Any) -> None:
    """If nobody is suspect, the note says so."""
    for rank in range(4):
        job.rank(rank, "train / step / all_reduce,312,sync", usual=USUAL)
    assert lines(job, width=120)[-2].startswith("all 4 ranks have entered train / step / all_reduce and are in it")


@pytest.mark.parametrize(("width", "height"), [(40, 10), (60, 24), (80, 8), (200, 50), (10, 3)])
def test_it_fits_any_terminal(width: int, height: int) -> None:
    """Columns go where it is narrow, rows where it is low; the keys stay."""
    found = lines(hang(64), width=width, height=height)
    assert height == len(found)
    assert max(map(len, found)) <= max(40, width)
    assert "q quit" in found[-1]


def test_printed_once_it_has_all_rows(job: Any) -> None:
    """No keys and no end of the screen."""
    job = jobs.Job(64)
    for rank in range(64):
        job.rank(rank, "train,9")
    found = lines(job, height=None, choices=Choices(is_grouped=False))
    assert (67, "63") == (len(found), found[-1].split()[0])


def test_hostile_names_are_harmless(job: Any) -> None:
    """Nothing that a terminal would obey reaches the screen."""
    evil = "\x1b[31m\r\n\u202e[red]" + "e" + "\u0301" * 10_000
    image = job.image(0, "train,9")
    (phase,) = image.open
    image = attrs.evolve(
        image,
        identity=attrs.evolve(image.identity, session_id=evil),
        open=(attrs.evolve(phase, path=(evil, evil), thread_name=evil),),
        end_note=jobs.said("exception", error_type=evil, error_message=evil),
    )
    job.processes.append(report_process(image, jobs.VERDICTS["dead"]))
    for is_grouped in (False, True):
        for line in screen_of(snapshot(job), Choices(is_grouped=is_grouped), width=80, height=24, hang_ns=60 * SECOND):
            text = "".join(piece.text for piece in line)
            assert text.isprintable()
            assert text.count("\u0301") < 20
