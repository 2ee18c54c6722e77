"""Which lanes are the program's own course, and where the time of phases that moved stands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase._boundary import self_ns

from .test_summary import IDENTITY, Run, check, rows

if TYPE_CHECKING:
    from conftest import RunPython


@pytest.fixture
def run(clock):
    """Return a session."""
    return Run(clock)


def work(run, name, ns=1):
    """Be in a phase for so long."""
    with run.lanes.enter_phase(name):
        run.clock.advance(ns)


async def task(run, *names):
    """Be in one phase after another, in a task."""
    for name in names:
        work(run, name)
        await asyncio.sleep(0)


def test_one_event_loop_after_another_is_the_program(run):
    """Their times, and those of the thread between them, are parts of the wall time."""
    work(run, "load", 5)
    asyncio.run(task(run, "train"))
    run.clock.advance(2)
    asyncio.run(task(run, "evaluate"))
    work(run, "save", 3)
    report = run.report()
    check(report)
    assert {"load": (1, 5, 5), "train": (1, 1, 1), "evaluate": (1, 1, 1), "save": (1, 3, 3)} == rows(report.main)
    assert ((), 2) == (report.beside.rows, report.untracked_ns)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_tasks_side_by_side_are_beside_all_of_them(run, count):
    """None is the program by chance, since it was the last to end."""

    async def long(name):
        with run.lanes.enter_phase(name):
            run.clock.advance(1)
            await asyncio.sleep(0)
            run.clock.advance(1)

    async def main():
        await asyncio.gather(*(long("worker") for _ in range(count)))

    asyncio.run(main())
    report = run.report()
    check(report)
    assert ({}, ["worker"]) == (rows(report.main), list(rows(report.beside)))
    assert count == rows(report.beside)["worker"][0]


def test_a_task_that_overlaps_the_starting_one_is_beside(clock):
    """It began before the other's outermost phase did, and went on in it."""
    found = []

    async def background(run):
        with run.lanes.enter_phase("background"):
            await asyncio.sleep(0)
            clock.advance(1)

    async def main():
        run = Run(clock)
        found.append(run)
        other = asyncio.create_task(background(run))
        with run.lanes.enter_phase("serve"):
            await other
            clock.advance(1)

    asyncio.run(main())
    report = found[0].report()
    check(report)
    assert ({"serve": (1, 2, 2)}, {"background": (1, 1, 1)}) == (rows(report.main), rows(report.beside))


def test_a_task_that_hangs_under_a_phase_is_beside(clock):
    """What was created in a phase runs beside it, however long it takes."""
    run = Run(clock)

    async def main():
        with run.lanes.enter_phase("train"):
            await asyncio.create_task(task(run, "load"))

    asyncio.run(main())
    report = run.report()
    check(report)
    assert (["train"], ["train/load"]) == (list(rows(report.main)), list(rows(report.beside)))


def test_of_thousands_of_tasks_only_some_are_kept_apart(run):
    """Memory stays flat, and the sum exact: those beyond stand beside."""
    for _ in range(50):
        asyncio.run(task(run, "train"))
    report = run.report()
    check(report)
    assert 50 == rows(report.main)["train"][0] + rows(report.beside)["train"][0]
    assert 31 == rows(report.main)["train"][0]


def test_the_time_of_the_start_is_told(clock):
    """What happens before `begin` is neither tracked nor untracked."""
    run = Run(clock)
    run.summary.__init__("job", IDENTITY, run.lanes, started_ns=clock.monotonic_ns())
    clock.advance(7)
    run.summary.begin()
    work(run, "train", 2)
    clock.advance(1)
    report = run.report()
    check(report)
    assert (10, 7, 2, 1) == (report.wall_ns, report.starting_ns, report.main.own_ns, report.untracked_ns)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["enter", "exit", "release", "acquire", "advance"]), st.integers(0, 2), st.integers(1, 10**6)
    ),
    max_size=40,
)


class Mover:
    """Tasks that enter, exit, release and acquire the phases of a run as they are told."""

    def __init__(self, run, moves):
        self.run = run
        self.moves = moves
        self.waiting = []

    async def do_all(self):
        """Run three lanes side by side."""
        await asyncio.gather(*(asyncio.create_task(self.lane(number)) for number in range(3)))

    async def lane(self, number):
        """Do what this lane is to do, each move in its turn."""
        opened = []
        for action, who, amount in self.moves:
            if who == number:
                self.do(action, amount, opened)
            await asyncio.sleep(0)
        while opened:
            opened.pop().close()

    def do(self, action, amount, opened):
        """Make one move, if it is possible."""
        if action == "enter":
            opened.append(self.run.lanes.enter_phase(f"p{amount % 3}"))
        elif action == "advance":
            self.run.clock.advance(amount)
        elif action == "acquire" and self.waiting:
            opened.append(self.run.lanes.acquire(self.waiting.pop()))
        elif opened and action == "exit":
            opened.pop().close()
        elif opened and action == "release":
            self.waiting.append(opened.pop().release())


@given(moves=MOVES)
def test_whoever_a_phase_is_moved_to_no_row_is_negative_and_all_adds_up(moves):
    """Three lanes enter, exit, release and acquire as they like: each total is time of that tree, to the nanosecond."""
    run = Run()
    asyncio.run(Mover(run, moves).do_all())
    report = run.report()
    check(report)
    assert 0 == report.unfolded_ns
    assert 0 <= report.untracked_ns
    found = [row.figures for tree in (report.main, report.beside) for row in tree.rows if row.figures is not None]
    assert all(0 <= figures.own_ns <= figures.total_ns for figures in found)
    assert len(run.ended) == sum(figures.count for figures in found)
    assert sum(map(self_ns, run.ended)) == report.main.own_ns + report.beside.own_ns


CELLS = """
import asyncio, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
cells = (
    "import stormphase, time\\n"
    "tracker = stormphase.PhaseTracker('nb', session_id='s', bridge=None, summary=True).start()",
    "with tracker.enter_phase('load'): time.sleep(0.01)",
    "with tracker.enter_phase('fetch'): await asyncio.sleep(0.01)",
    "train = tracker.enter('train')",
    "with tracker.enter_phase('step'): await asyncio.sleep(0.01)",
    "token = tracker.enter('epoch'); await asyncio.sleep(0)",
    "tracker.exit(token)",
    "tracker.exit(train); await asyncio.sleep(0)",
    "after = tracker.enter_phase('after'); after.close()",
    "found = ((after.path, tracker.stats()['misuse']))",
    "tracker.stop()",
)
shell.user_ns["asyncio"] = asyncio


__name__ = "ipykernel.kernelbase"  # whose coroutine it is for those who look


async def kernel():
    # As ipykernel 6 and 7 run cells: those that await in a task each, the others in the kernel's own.
    for cell in cells:
        if shell.should_run_async(cell, transformed_cell=cell):
            result = await asyncio.ensure_future(shell.run_cell_async(cell, transformed_cell=cell, store_history=True))
        else:
            result = shell.run_cell(cell, store_history=True)
        assert result.success, cell


if sys.argv[1] == "kernel":
    asyncio.run(kernel())
else:
    for cell in cells:
        assert shell.run_cell(cell, store_history=True).success, cell
assert (("after",), {}) == shell.user_ns["found"], shell.user_ns["found"]
"""


@pytest.mark.parametrize("way", ["terminal", "kernel"])
def test_cells_of_a_notebook_are_one_program(run_python: RunPython, way: str) -> None:
    """Whatever task each runs in: what one leaves open another ends, and none stands beside an untracked program."""
    shown = run_python(CELLS, way).stdout
    labels = [line.split("  ")[0] for line in shown.splitlines()]
    assert {"load", "fetch", "train", "after", "(untracked)", "(starting)", "wall time"} <= set(labels)
    assert "beside, on other threads and tasks:" not in labels
    assert {"step", "epoch"} == {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
    assert "100.0%" not in next(line for line in shown.splitlines() if line.startswith("(untracked)"))
