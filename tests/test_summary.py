"""The accounting: own times, the untracked rest and what is in no row are the wall time, to the nanosecond."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase import PhaseRecorder, RankIdentity
from stormphase._paths import PathTable
from stormphase._summary import MAX_ROWS, SessionSummary, SummaryRow
from stormphase.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase._summary import SummaryReport

IDENTITY = RankIdentity("s", 0, 0, 0, 1, 1, None, "host", "single")


class Run:
    """A session on a clock that moves when it is told to, with its summary."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = ManualClock() if clock is None else clock
        self.lanes: LaneSet = PhaseRecorder(clock=self.clock).lane_set("s", 0)
        self.ended: list[PhaseHandle] = []
        self.lanes.exit_queues = (self.ended.append,)
        self.summary = SessionSummary("job", IDENTITY, self.lanes, started_ns=self.clock.monotonic_ns())
        self.summary.begin()

    def report(self, keep: Sequence[bool] = ()) -> SummaryReport:
        """End the session and return what a summary says that was given only some of its phases."""
        self.lanes.close("the session stopped")
        self.summary.note_end(self.clock.monotonic_ns())
        for index, phase in enumerate(self.ended):
            if index >= len(keep) or keep[index]:
                self.summary.fold(phase)
        return self.summary.report(dropped=sum(not kept for kept in keep[: len(self.ended)]))


@pytest.fixture
def run(clock: ManualClock) -> Run:
    """Return a session."""
    return Run(clock)


def rows(tree: Any) -> dict[str, tuple[int, int, int]]:
    """Return count, total and own time by path."""
    found = {}
    path: list[str] = []
    for row in tree.rows:
        path[row.depth - 1 :] = [row.name]
        if row.figures is not None:
            found["/".join(path)] = (row.figures.count, row.figures.total_ns, row.figures.own_ns)
    return found


def check(report: SummaryReport) -> None:
    """Check that everything adds up."""
    assert report.wall_ns == report.main.own_ns + report.untracked_ns + report.unfolded_ns + report.starting_ns


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.sampled_from(["train", "step", "load"])),
        st.tuples(st.just("exit"), st.sampled_from([None, ValueError("x"), KeyboardInterrupt()])),
        st.tuples(st.just("advance"), st.integers(0, 10**12)),
        st.tuples(st.just("pause"), st.integers(0, 10**9)),
    ),
    max_size=60,
)


def perform(run: Run, operations: list[tuple[str, Any]]) -> None:
    """Do what hypothesis found."""
    opened: list[PhaseHandle] = []
    for action, argument in operations:
        if action == "enter":
            opened.append(run.lanes.enter_phase(argument))
        elif action == "advance":
            run.clock.advance(argument)
        elif opened and action == "exit":
            opened.pop().close(error=argument)
        elif opened:
            opened[-1].pause()
            run.clock.advance(argument)
            opened[-1].resume()


@given(OPERATIONS)
def test_own_times_and_the_untracked_rest_are_the_wall_time(operations):
    """Whatever nests, fails, pauses and is left open; and each total is its own time and its children's totals."""
    run = Run()
    perform(run, operations)
    report = run.report()
    check(report)
    assert (0, 0) == (report.unfolded_ns, len(report.beside.rows))
    totals = rows(report.main)
    for path, (_, total_ns, own_ns) in totals.items():
        beneath = [each for other, (_, each, _) in totals.items() if other.rpartition("/")[0] == path]
        assert total_ns == own_ns + sum(beneath)
        assert own_ns >= 0


@given(OPERATIONS, st.lists(st.booleans(), max_size=60))
def test_what_is_dropped_is_neither_lost_nor_made_up(operations, keep):
    """The own time of phases that a full queue dropped is in no row, to the nanosecond, and nowhere else."""
    run = Run()
    perform(run, operations)
    report = run.report(keep)
    check(report)
    lost = [phase for phase, kept in zip(run.ended, keep, strict=False) if not kept]
    expected = sum(
        phase._ended_ns - phase._entered_ns - (phase._extra.paused_ns if phase._extra else 0) - phase._children_ns
        for phase in lost
    )
    assert (expected, len(lost)) == (report.unfolded_ns, report.dropped)


def test_a_session_without_phases_is_untracked(run):
    """All of its wall time."""
    run.clock.advance(5)
    report = run.report()
    assert (5, 5, 0) == (report.wall_ns, report.untracked_ns, report.unfolded_ns)


def test_the_report_may_be_asked_for_while_the_session_runs(run):
    """It is then of what has ended so far, and the rest of the time is in no row or untracked."""
    phase = run.lanes.enter_phase("train")
    run.clock.advance(3)
    phase.close()
    run.summary.fold(run.ended[0])
    run.clock.advance(4)
    report = run.summary.report()
    assert ({"train": (1, 3, 3)}, 7, 4) == (rows(report.main), report.wall_ns, report.untracked_ns)


def test_what_follows_the_end_is_not_wall_time(run):
    """Delivery may take seconds that are not the session's."""
    run.clock.advance(3)
    run.summary.note_end(run.clock.monotonic_ns())
    run.clock.advance(1_000)
    assert 3 == run.summary.report().wall_ns


def test_phases_of_threads_stand_beside(run, step_thread):
    """They run at the same time, so they are shown, and not subtracted."""
    other = step_thread()
    with run.lanes.enter_phase("train"):
        phase = other.do(run.lanes.enter_phase, "load")
        run.clock.advance(10)
        other.do(phase.close)
    report = run.report()
    check(report)
    assert ({"train": (1, 10, 10)}, {"load": (1, 10, 10)}) == (rows(report.main), rows(report.beside))


def test_phases_of_tasks_hang_beside_where_their_task_began(run):
    """Their path leads through a phase of the main lane, which has no figures in their tree."""

    async def load() -> None:
        with run.lanes.enter_phase("load"):
            run.clock.advance(2)

    async def main() -> None:
        await asyncio.create_task(load())

    with run.lanes.enter_phase("train"):
        asyncio.run(main())
    report = run.report()
    check(report)
    assert {"train/load": (1, 2, 2)} == rows(report.beside)
    assert [("train", 1, False), ("load", 2, True)] == [
        (row.name, row.depth, row.figures is not None) for row in report.beside.rows
    ]


def test_a_session_started_in_a_task_has_that_lane_as_its_main_one(clock):
    """An asyncio program tracks from within."""
    runs: list[Run] = []

    async def main() -> None:
        runs.append(Run(clock))
        with runs[0].lanes.enter_phase("serve"):
            clock.advance(4)

    asyncio.run(main())
    report = runs[0].report()
    assert ({"serve": (1, 4, 4)}, 0) == (rows(report.main), report.untracked_ns)


def test_a_phase_acquired_by_another_lane_is_counted_there(run, step_thread):
    """What it spent on the main lane stands there, without a count."""
    phase = run.lanes.enter_phase("batch")
    run.clock.advance(5)
    token = phase.release()
    other = step_thread()
    acquired = other.do(run.lanes.acquire, token)
    run.clock.advance(7)
    other.do(acquired.close)
    report = run.report()
    check(report)
    assert (0, 7) == (report.unfolded_ns, report.untracked_ns)
    assert ({"batch": (0, 5, 5)}, {"batch": (1, 7, 7)}) == (rows(report.main), rows(report.beside))


def test_siblings_stand_costliest_first(run):
    """A reader looks at the top; among equals the order is the alphabet's, so that it is the same every time."""
    for name, ns in (("b", 1), ("d", 3), ("a", 1), ("c", 9)):
        with run.lanes.enter_phase(name):
            run.clock.advance(ns)
    assert ["c", "d", "a", "b"] == list(rows(run.report().main))


def test_a_path_without_figures_costs_what_is_beneath(run):
    """It stands where its children belong."""
    with run.lanes.enter_phase("small"):
        run.clock.advance(1)
    with run.lanes.enter_phase("dropped"), run.lanes.enter_phase("big"):
        run.clock.advance(9)
    report = run.report(keep=[True, True, False])
    assert ["dropped/big", "small"] == list(rows(report.main))
    assert SummaryRow("dropped", 1, None) == report.main.rows[0]


def test_ten_thousand_deep(run):
    """Neither recursion nor names by the million: what does not fit into a row is in the row of the others."""
    opened = [run.lanes.enter_phase("deep") for _ in range(10_000)]
    for phase in reversed(opened):
        run.clock.advance(1)
        phase.close()
    report = run.report()
    check(report)
    assert (10_000, 0) == (len(report.main.rows), report.unfolded_ns)
    assert MAX_ROWS == sum(row.figures is not None for row in report.main.rows)
    assert 10_000 - MAX_ROWS == report.main.other.count


def test_paths_beyond_the_bound_are_one_row(run):
    """A program that puts the step into the name is shown its first paths, and the rest in one."""
    for step in range(MAX_ROWS + 50):
        with run.lanes.enter_phase(f"step {step}"):
            run.clock.advance(1)
    report = run.report()
    check(report)
    assert (MAX_ROWS, 50, 50) == (len(report.main.rows), report.main.other.count, report.main.other.own_ns)


def test_paths_that_the_table_does_not_keep_are_one_row(clock):
    """Each such phase has a node of its own, and is not a path of its own."""
    run = Run(clock)
    run.lanes.paths = PathTable(max_paths=1)
    for _ in range(3):
        for name in ("kept", "not kept"):
            with run.lanes.enter_phase(name):
                clock.advance(1)
    report = run.report()
    check(report)
    assert 6 == sum(count for count, _, _ in rows(report.main).values()) + report.main.other.count


def test_a_phase_acquired_from_another_lane_leaves_its_time_there(run, step_thread):
    """Its row on the main lane has what it spent on that, and no remainder is less than nothing."""
    other = step_thread()
    phase = other.do(run.lanes.enter_phase, "batch")
    run.clock.advance(5)
    acquired = run.lanes.acquire(other.do(phase.release))
    run.clock.advance(7)
    acquired.close()
    report = run.report()
    check(report)
    assert (0, 5) == (report.unfolded_ns, report.untracked_ns)
    assert ({"batch": (1, 7, 7)}, {"batch": (0, 5, 5)}) == (rows(report.main), rows(report.beside))
