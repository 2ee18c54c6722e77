"""Cells share the lane of their thread, whatever task each runs in; see also `test_summary_program` for real ones."""

from __future__ import annotations

import asyncio
import contextvars
import types

import pytest

from stormphase._tasks import runs_cells

KERNEL = "async def run(cell):\n    return cell()\n"


def kernel(module="ipykernel.kernelbase"):
    """Return a coroutine function of a module of that name, which runs a cell."""
    names = {"__name__": module}
    exec(KERNEL, names)  # noqa: S102 - our own text
    return names["run"]


def run_cells(*cells, module="ipykernel.kernelbase", contexts=None):
    """Run each in a task of its own, in a copy of one context, or in contexts that are given."""
    run = kernel(module)

    async def main():
        for number, cell in enumerate(cells):
            if contexts is None:
                await asyncio.create_task(run(cell))
            else:
                await contexts[number].run(asyncio.create_task, run(cell))

    asyncio.run(main())


def test_what_one_cell_leaves_open_another_ends(lanes, ended):
    """Nested as on one lane, in any context, and no misuse."""
    tokens = []
    contexts = [contextvars.copy_context() for _ in range(4)]
    run_cells(
        lambda: tokens.append(lanes.enter("train")),
        lambda: lanes.enter_phase("step").close(),
        lambda: lanes.exit(tokens.pop()),
        lambda: lanes.enter_phase("after").close(),
        contexts=contexts,
    )
    assert [("train", "step"), ("train",), ("after",)] == [phase.path for phase in ended]
    assert {} == lanes.counts.to_dict()


def test_a_context_copied_from_the_first_cell_s_is_left_without_its_phase(lanes):
    """What the cell that ends it runs later does not hang under it; so it is with what was open before."""
    found = []
    outer = lanes.enter_phase("outer")

    def begin():
        found.append(lanes.enter_phase("train"))
        found.append(contextvars.copy_context())

    def end():
        found[0].close()
        found.append(lanes.carrier.current_phase())

    run_cells(begin)
    run = kernel()

    async def main():
        await found[1].run(asyncio.create_task, run(end))

    asyncio.run(main())
    assert outer is found[2]
    outer.close()


def test_tasks_of_other_modules_have_lanes_of_their_own(lanes):
    """Only a kernel's are the program's."""
    found = []
    run_cells(lambda: found.append(lanes.enter_phase("a")), module="ipykernel_of_mine")
    assert found[0]._lane is not lanes.lane_of_caller()
    lanes.close("the test is over")


@pytest.mark.parametrize(
    ("module", "expected"),
    [("IPython.core.interactiveshell", True), ("ipykernel.kernelbase", True), ("__main__", False)],
)
@pytest.mark.parametrize("kind", ["asyncio", "trio"])
def test_a_kernel_s_task_is_known_by_its_coroutine(module, expected, kind):
    """Both of a library that gives it by a method and of one that has it as an attribute."""
    coroutine = kernel(module)(None)
    task = (
        types.SimpleNamespace(get_coro=lambda: coroutine)
        if kind == "asyncio"
        else types.SimpleNamespace(coro=coroutine)
    )
    assert expected == runs_cells(task)
    coroutine.close()


@pytest.mark.parametrize("task", [object(), types.SimpleNamespace(coro=None)], ids=["no coroutine", "none at all"])
def test_a_task_of_another_kind_runs_no_cells(task):
    """And nothing is raised."""
    assert not runs_cells(task)
