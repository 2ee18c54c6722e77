"""What a rank is doing, and who is doing the same."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from stormphase.analysis._places import groups_of, is_overdue, place_of
from stormphase.analysis._ranks import ranks_of

jobs = sys.modules["jobs"]
SECOND = jobs.SECOND
MINUTE = 60 * SECOND


def place(*doing: str, **options: Any) -> Any:
    """Return the place of one rank."""
    job = jobs.Job()
    job.rank(0, *doing, **options)
    return place_of(ranks_of(job.processes)[0])


def test_a_rank_is_where_its_main_lane_is_innermost() -> None:
    """Other threads' lanes say less."""
    found = place("train,9", "train / step,5", "load,1,lane 2,thread 8", step=7)
    assert (("train", "step"), None, 7) == (found.phase.path, found.sync, found.step)


def test_without_a_main_lane_the_first_counts() -> None:
    """A notebook or an actor trains in another thread."""
    assert ("load",) == place("load,1,lane 2,thread 8", "save,1,lane 3,thread 9").phase.path


def test_a_task_tells_more_than_the_phase_it_runs_under() -> None:
    """Of several tasks of that thread the one that is in its phase for the longest; other threads' do not count."""
    found = place(
        "train,9",
        "train / eval,3,lane 2",
        "train / save,4,lane 3",
        "train / save / sync,2,lane 3,sync",
        "train / load,8,lane 4,thread 8",
        "other,8,lane 5",
    )
    assert ("train", "eval") == found.phase.path
    found = place("train,9", "train / save,4,lane 3,sync", "train / save / a,3,lane 3", "train / save / a / b,2,lane 4")
    assert (("train", "save", "a", "b"), ("train", "save")) == (found.phase.path, found.sync.path)


def test_a_point_of_another_lane_tells_where_it_lasts_longer_than_ever() -> None:
    """Of a point that was never measured, or is open for no longer than before, nothing follows; nor within another."""
    usual = {"share": [0.1] * 9, "late": [0.1] * 9, "long": [40.0] * 9, "step / sync": [1.0] * 9}
    others = ("share,7,lane 2,thread 8,sync", "late,8,lane 3,thread 9,sync", "long,30,lane 4,thread 10,sync")
    others += ("new,90,lane 5,thread 11,sync", "load,90,lane 6,thread 12")
    found = place("step,9", *others, usual=usual)
    assert (("step",), None, ("late",)) == (found.phase.path, found.sync, found.point.path)
    found = place("step,9", "step / sync,8,sync", *others, usual=usual)
    assert (("step", "sync"), None) == (found.point.path, found.beside)


def test_with_nothing_open_a_rank_is_nowhere() -> None:
    """The step it set last is known all the same."""
    found = place(step=3)
    assert (None, None, 3) == (found.phase, found.sync, found.step)


@pytest.mark.parametrize(
    ("doing", "usual", "expected"),
    [
        ("step,312", [0.1] * 10, True),
        ("step,312", [0.1] * 10 + [120], False),  # at most thrice the longest
        ("step,400", [0.1] * 10 + [120], True),
        ("step,121", [0.1] * 200 + [120], True),  # ten times the 99th percentile, and the longest
        ("step,119", [0.1] * 200 + [120], False),  # as long it took before, while a checkpoint was written
        ("step,1.9", [0.1] * 10, False),  # a hiccup
        ("step,2.1", [0.1] * 10, True),
        ("step,312", [0.1] * 2, False),  # twice is no habit
        ("step,312", [], False),
        ("step,312,sync", [], True),
        ("step,59,sync", [], False),
        ("step,312,sync", [0.1], True),
        ("step,312,sync", [120.0], False),
    ],
)
def test_overdue_is_what_lasts_far_longer_than_before(doing: str, usual: list[float], expected: bool) -> None:
    """Nothing is claimed of a phase that has no history, unless ranks wait for each other in it."""
    assert expected == is_overdue(place(doing, usual={"step": usual} if usual else {}).phase, MINUTE)


def groups(job: Any) -> list[tuple[tuple[int, ...], str, str, int | None, int | None]]:
    """Return the groups of a job in short."""
    found = groups_of(place_of(each) for each in ranks_of(job.processes))
    return [(g.ranks, str(g.state), "/".join(g.path), g.least_step, g.greatest_step) for g in found]


def test_ranks_that_do_the_same_are_one_group(job: Any) -> None:
    """By state, path and step; the largest first."""
    job.rank(0, "train,9", verdict="dead")
    for rank in (1, 2, 3, 4):
        job.rank(rank, "train,9", "train / step,5", step=7 if rank < 4 else 8)
    job.rank(5, note=jobs.said("clean"), step=9)
    job.rank(6, note=jobs.said("clean"), step=10)
    assert [
        ((1, 2, 3), "running", "train/step", 7, 7),
        ((5, 6), "clean", "", 9, 10),
        ((0,), "killed", "train", 120, 120),
        ((4,), "running", "train/step", 8, 8),
    ] == groups(job)


def test_many_steps_are_one_range(job: Any) -> None:
    """Ranks that do not walk in step would each be a group of one."""
    for rank in range(10):
        job.rank(rank, "train,9", step=rank)
    assert [(tuple(range(10)), "running", "train", 0, 9)] == groups(job)


def test_a_group_knows_its_first_and_its_last(job: Any) -> None:
    """Shortest, median and longest time, and what is usual for the one that is there longest."""
    for rank, seconds in enumerate((5, 7, 9)):
        job.rank(rank, f"step,{seconds}", usual={"step": [rank]})
    (group,) = groups_of(place_of(each) for each in ranks_of(job.processes))
    assert (5, 7, 9) == (group.least_ns // SECOND, group.median_ns // SECOND, group.greatest_ns // SECOND)
    assert 2 * SECOND == group.usual.max_ns
