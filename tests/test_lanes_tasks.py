"""Lanes of tasks: asyncio, anyio on both its backends, and trio; concurrent tasks nest each for themselves."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import threading
import types

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import trio

from stormphase import Misuse, PhaseProtocolError, _tasks
from stormphase._boundary import self_ns
from stormphase._model import PhaseStatus

BACKENDS = ["asyncio", "trio"]


def names(phases):
    """Return the paths of phases as people read them."""
    return [phase.phase_path for phase in phases]


# --- any library ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_concurrent_tasks_nest_each_in_their_own_lane(lanes, ended, backend):
    """Two tasks interleave enters and exits on one thread; neither is in the other's way, both hang under the group."""
    turns = []

    async def work(name: str, mine: anyio.Event, other: anyio.Event) -> None:
        with lanes.enter_phase(name):
            turns.append(name)
            mine.set()
            await other.wait()
            with lanes.enter_phase("inner"):
                await anyio.lowlevel.checkpoint()
                turns.append(name)

    async def main() -> None:
        first, second = anyio.Event(), anyio.Event()
        with lanes.enter_phase("group"):
            async with anyio.create_task_group() as group:
                group.start_soon(work, "first", first, second)
                group.start_soon(work, "second", second, first)

    anyio.run(main, backend=backend)
    assert {"first", "second"} == set(turns[:2])
    assert sorted(["group", "group / first", "group / first / inner", "group / second", "group / second / inner"]) == (
        sorted(names(ended))
    )
    assert {PhaseStatus.SUCCEEDED} == {phase.status for phase in ended}
    group = ended[-1]
    assert [group] * 2 == [phase.parent for phase in ended if phase.name in ("first", "second")]
    assert 3 == len({phase._lane for phase in ended})
    assert {} == lanes.counts.to_dict()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_childs_time_runs_beside_its_parents(lanes, ended, clock, backend):
    """A phase of another task is not subtracted from the one it hangs under; each lane sums up for itself."""

    async def child() -> None:
        with lanes.enter_phase("child"):
            clock.advance(30)

    async def main() -> None:
        with lanes.enter_phase("main"):
            clock.advance(1)
            async with anyio.create_task_group() as group:
                group.start_soon(child)
            clock.advance(200)

    anyio.run(main, backend=backend)
    assert [("child", 30), ("main", 231)] == [(phase.name, self_ns(phase)) for phase in ended]
    assert [30, 231] == [phase._lane._children_ns for phase in ended]


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_task_cannot_end_a_phase(lanes, backend):
    """The message names both tasks and the thread; nothing has changed."""
    found = []

    async def steal(phase) -> None:
        try:
            phase.close()
        except PhaseProtocolError as error:
            found.append(error)

    async def main() -> None:
        with lanes.enter_phase("train") as phase:
            async with anyio.create_task_group() as group:
                group.start_soon(steal, phase, name="thief")
            assert PhaseStatus.ACTIVE is phase.status

    anyio.run(main, backend=backend)
    assert [Misuse.FOREIGN_TASK] == [error.reason for error in found]
    assert "from task 'thief' in thread 'MainThread'" in str(found[0])
    assert "it belongs to task '" in str(found[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_phase_moves_to_another_task(lanes, ended, clock, backend):
    """Released in one, acquired in the other, which then owns it."""

    async def go_on(token) -> None:
        with lanes.acquire(token) as phase:
            assert phase is lanes.carrier.current_phase()
            clock.advance(300)

    async def main() -> None:
        with lanes.enter_phase("main"):
            token = lanes.enter_phase("work").release()
            clock.advance(20)
            async with anyio.create_task_group() as group:
                group.start_soon(go_on, token)

    anyio.run(main, backend=backend)
    assert [("main / work", 300), ("main", 320)] == [(phase.phase_path, self_ns(phase)) for phase in ended]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cancelled_task_ends_its_phases_as_cancelled(lanes, ended, backend):
    """And the group that cancelled it succeeds."""

    async def wait() -> None:
        with lanes.enter_phase("outer"), lanes.enter_phase("waiting"):
            await anyio.sleep_forever()

    async def main() -> None:
        with lanes.enter_phase("group"):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    cancelled = PhaseStatus.CANCELLED
    assert [("waiting", cancelled), ("outer", cancelled), ("group", PhaseStatus.SUCCEEDED)] == [
        (phase.name, phase.status) for phase in ended
    ]


@pytest.mark.parametrize(("backend", "back_path"), [("asyncio", "main / work / back"), ("trio", "main / back")])
def test_worker_threads_hang_under_the_task_that_called_them(lanes, ended, backend, back_path):
    """`anyio.to_thread` copies the context; a call back into the loop takes it along on asyncio, not on trio."""

    def back() -> str:
        with lanes.enter_phase("back") as phase:
            return phase.phase_path

    def work() -> str:
        with lanes.enter_phase("work"):
            return anyio.from_thread.run_sync(back)

    async def main() -> str:
        with lanes.enter_phase("main"):
            return await anyio.to_thread.run_sync(work)

    assert back_path == anyio.run(main, backend=backend)
    assert [back_path, "main / work", "main"] == names(ended)
    assert {PhaseStatus.SUCCEEDED} == {phase.status for phase in ended}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_async_generator_finalised_by_another_task_ends_its_phase(lanes, ended, backend):
    """Whoever closes it: the phase ends once, no context is touched, and it is counted."""

    async def generate():
        with lanes.enter_phase("items"):
            yield 1
            yield 2

    async def begin(generator) -> None:
        await generator.__anext__()

    async def main() -> None:
        generator = generate()
        with lanes.enter_phase("main") as phase:
            async with anyio.create_task_group() as group:
                group.start_soon(begin, generator)
            await generator.aclose()
            assert phase is lanes.carrier.current_phase()

    anyio.run(main, backend=backend)
    assert [("items", PhaseStatus.CANCELLED), ("main", PhaseStatus.SUCCEEDED)] == [(p.name, p.status) for p in ended]
    assert {Misuse.FOREIGN_CONTEXT: 1} == lanes.counts.to_dict()


@pytest.mark.parametrize("backend", BACKENDS)
def test_lanes_of_ended_tasks_are_forgotten(lanes, ended, backend):
    """A hundred tasks leave no lane behind, and their counts are kept."""

    async def work() -> None:
        with lanes.enter_phase("work"):
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(work)

    anyio.run(main, backend=backend)
    gc.collect()
    assert ([True], (0, 100)) == ([lane.task_name is None for lane in lanes.lanes()], lanes.boundary_counts())


# --- asyncio ----------------------------------------------------------------------------------------------------------


def test_callbacks_of_the_loop_are_the_threads(lanes, ended):
    """`call_soon` copies the caller's context, and runs in no task: the thread's lane, under the caller's phase."""

    async def main() -> None:
        done = asyncio.Event()

        def call_back() -> None:
            with lanes.enter_phase("callback"):
                done.set()

        with lanes.enter_phase("main"):
            asyncio.get_running_loop().call_soon(call_back)
            await done.wait()

    asyncio.run(main())
    assert ["main / callback", "main"] == names(ended)
    assert [True, False] == [phase._lane.task_name is None for phase in ended]


def test_executors_start_at_the_root_and_to_thread_does_not(lanes, ended):
    """`run_in_executor` copies no context, `asyncio.to_thread` does."""

    def work() -> None:
        with lanes.enter_phase("work"):
            pass

    async def main() -> None:
        with lanes.enter_phase("main"):
            await asyncio.get_running_loop().run_in_executor(None, work)
            await asyncio.to_thread(work)

    asyncio.run(main())
    assert ["work", "main / work", "main"] == names(ended)


def test_gathered_failures_are_each_their_own(lanes, ended):
    """Each task's failure is its own; the one that `gather` raised is the parent's root cause."""

    async def fail(text: str) -> None:
        with lanes.enter_phase(text):
            await asyncio.sleep(0)
            raise ValueError(text)

    async def main() -> None:
        with lanes.enter_phase("main"):
            await asyncio.gather(fail("first"), fail("second"))

    with pytest.raises(ValueError, match="first"):
        asyncio.run(main())
    by_name = {phase.name: phase for phase in ended}
    assert by_name["first"].scope_id == by_name["main"]._extra.error.root_cause_scope_id
    assert by_name["second"].scope_id == by_name["second"]._extra.error.root_cause_scope_id


def test_nested_loops_in_threads(lanes, ended):
    """A loop in a thread started with the task's context: its tasks hang under that task's phase."""

    async def inner() -> None:
        with lanes.enter_phase("inner"):
            await asyncio.sleep(0)

    async def main() -> None:
        with lanes.enter_phase("main"):
            context = contextvars.copy_context()
            thread = threading.Thread(target=context.run, args=(asyncio.run, inner()))
            thread.start()
            thread.join()

    asyncio.run(main())
    assert ["main / inner", "main"] == names(ended)


def test_synchronous_code_around_a_loop_is_the_threads(lanes, ended):
    """Phases of the thread stay on its lane while tasks run on theirs, under what the thread had open."""

    async def main() -> None:
        with lanes.enter_phase("in task"):
            await asyncio.sleep(0)

    with lanes.enter_phase("outer"):
        asyncio.run(main())
        with lanes.enter_phase("after"):
            pass
    assert ["outer / in task", "outer / after", "outer"] == names(ended)


@pytest.mark.parametrize("has_debug", [False, True])
def test_a_phase_left_open_in_a_task_is_abandoned_at_the_end(lanes, ended, has_debug):
    """Nobody else can end it: the session does."""

    async def main() -> None:
        lanes.enter_phase("left open")

    asyncio.run(main(), debug=has_debug)
    gc.collect()
    assert [] == ended
    lanes.close("the session stopped")
    assert [PhaseStatus.ABANDONED] == [phase.status for phase in ended]
    assert [] == [lane for lane in lanes.lanes() if lane.task_name is not None]


def test_an_interrupt_of_the_loop_ends_what_is_open(lanes, ended):
    """A KeyboardInterrupt out of a task leaves no lane wrong."""

    async def main() -> None:
        with lanes.enter_phase("main"), lanes.enter_phase("inner"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert [PhaseStatus.CANCELLED] * 2 == [phase.status for phase in ended]
    with lanes.enter_phase("next") as phase:
        assert None is phase.parent


def test_tasks_that_share_a_context_do_not_share_a_lane(lanes, ended):
    """Two tasks given one Context (3.11+; before, one task after the other in it) own their phases each for itself."""
    refused = []

    async def main() -> None:
        context = contextvars.copy_context()
        entered, tried = asyncio.Event(), asyncio.Event()
        held = []

        async def hold() -> None:
            with lanes.enter_phase("held") as phase:
                held.append(phase)
                entered.set()
                await tried.wait()

        async def steal() -> None:
            await entered.wait()
            try:
                held[0].close()
            except PhaseProtocolError as error:
                refused.append(error.reason)
            with lanes.enter_phase("own") as phase:
                assert held[0] is phase.parent
            tried.set()

        tasks = [asyncio.create_task(call(), context=context) for call in (hold, steal)]
        await asyncio.gather(*tasks)

    async def steal_in_copy(steal) -> None:
        await asyncio.sleep(0)
        lanes.carrier.put(next(iter(lanes.open_phases())))
        await steal()

    asyncio.run(main())
    assert [Misuse.FOREIGN_TASK] == refused
    assert [("own", PhaseStatus.SUCCEEDED), ("held", PhaseStatus.SUCCEEDED)] == [(p.name, p.status) for p in ended]


EAGER = """
import asyncio, sys
from stormphase._recorder import PhaseRecorder

lanes = PhaseRecorder().lane_set("s", 0)
ended = []
lanes.exit_queues = (ended.append,)

async def quick():
    with lanes.enter_phase("quick"):
        pass

async def slow():
    with lanes.enter_phase("slow"):
        await asyncio.sleep(0)
        with lanes.enter_phase("inner"):
            pass

async def main():
    if sys.version_info >= (3, 12):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    with lanes.enter_phase("main"):
        tasks = [asyncio.create_task(quick()), asyncio.create_task(slow())]
        with lanes.enter_phase("beside"):
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

asyncio.run(main())
print(*sorted(phase.phase_path for phase in ended), sep="; ")
assert {"succeeded"} == {phase.status.value for phase in ended}
assert not lanes.counts.to_dict(), lanes.counts.to_dict()
"""


def test_eager_tasks_have_lanes_of_their_own(run_python):
    """A task that begins inside `create_task` (3.12+) nests for itself, under the phase that was open there."""
    expected = "main; main / beside; main / quick; main / slow; main / slow / inner"
    assert expected == run_python(EAGER).stdout.strip()


@pytest.mark.parametrize("runs", [1, 3])
def test_one_runner_after_another(lanes, ended, runs):
    """Loops come and go in one thread; with `asyncio.Runner` (3.11+) several calls share a context."""

    async def work() -> None:
        with lanes.enter_phase("work"):
            await asyncio.sleep(0)

    with contextlib.ExitStack() as stack:
        run = stack.enter_context(asyncio.Runner()).run
        for _ in range(runs):
            run(work())
    assert ["work"] * runs == names(ended)


# --- which task -------------------------------------------------------------------------------------------------------


class Oddity:
    """A task whose name cannot be had."""

    @property
    def name(self):
        """Raise."""
        raise OSError("no name")


def test_tasks_are_named_as_their_library_names_them():
    """Those of asyncio by a method, of trio by an attribute; whatever raises is named by its class."""

    async def asyncios() -> str:
        return _tasks.name_of(asyncio.current_task())

    async def trios() -> str:
        return _tasks.name_of(trio.lowlevel.current_task())

    assert "Task-" == asyncio.run(asyncios())[:5]
    assert trio.run(trios).endswith("trios")
    assert "Oddity" == _tasks.name_of(Oddity())


def test_outside_of_all_tasks_there_is_none():
    """Neither asyncio nor trio has one here."""
    assert (None, None) == (_tasks.current_task(), _tasks.running_loop_probe()())


def test_outside_of_all_tasks_an_older_trio_says_so_by_an_error(monkeypatch):
    """Those that cannot be asked whether a task runs raise RuntimeError where none does."""
    monkeypatch.delattr(trio.lowlevel, "in_trio_task", raising=False)

    async def in_a_task() -> object:
        return _tasks.current_task() is trio.lowlevel.current_task()

    assert (None, True) == (_tasks.current_task(), trio.run(in_a_task))


def test_a_half_imported_trio_is_none(monkeypatch):
    """While another thread imports it, nothing runs in it yet."""
    monkeypatch.setitem(sys.modules, "trio", object())
    assert None is _tasks.current_task()


def test_without_asyncio_and_trio_there_are_no_tasks(monkeypatch):
    """Neither is imported for the question."""
    monkeypatch.delitem(sys.modules, "asyncio")
    monkeypatch.delitem(sys.modules, "trio")
    assert None is _tasks.current_task()
    assert "trio" not in sys.modules


def test_a_loop_that_is_closed_in_between_has_no_task(monkeypatch):
    """Python says so by a RuntimeError."""

    def closed() -> None:
        raise RuntimeError("no running event loop")

    async def main() -> object:
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "current_task", closed)
            return _tasks.current_task()

    assert None is asyncio.run(main())


def test_a_running_task_shows_in_what_is_looked_at_before_the_loop_is_asked_for():
    """Empty while no task runs in any thread; if CPython stops keeping it so, phases in tasks are misplaced."""
    seen = []

    async def look():
        seen.append(bool(_tasks.running_tasks()))

    asyncio.run(look())
    assert [True, sys.version_info >= (3, 14)] == [*seen, bool(_tasks.running_tasks())]


@pytest.mark.parametrize("accelerator", [None, types.SimpleNamespace(), types.SimpleNamespace(_current_tasks=5)])
def test_where_running_tasks_are_not_shown_the_loop_is_always_asked_for(monkeypatch, accelerator):
    """A later CPython, or another Python, may keep them elsewhere: then every phase asks for the loop."""
    monkeypatch.setitem(sys.modules, "_asyncio", accelerator)
    assert _tasks.running_tasks()
