"""Decorated functions that return an awaitable: the phase ends when that does, and the awaitable stays what it is."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import functools
import gc
import inspect
import os
import types
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio

from stormphase import _awaitables, _boundary
from stormphase._decorator import phase
from stormphase._model import PhaseStatus
from stormphase._noop import NOOP
from stormphase.exceptions import PhaseProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import StepThread

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase.testing import ManualClock

SUCCEEDED, FAILED, CANCELLED = PhaseStatus.SUCCEEDED, PhaseStatus.FAILED, PhaseStatus.CANCELLED
ABANDONED = PhaseStatus.ABANDONED


def source_of(lanes: LaneSet) -> Any:
    """Return the least that a phase can be entered on."""
    return types.SimpleNamespace(lane_set=lanes, enter_phase=lanes.enter_phase)


@pytest.fixture
def tracker(lanes: LaneSet, ended: list[PhaseHandle]) -> Any:
    """Return what has a `phase` as a tracker has; ended phases come to stand in `ended`."""
    return types.SimpleNamespace(phase=functools.partial(phase, source_of(lanes)))


def told(ended: list[PhaseHandle]) -> list[tuple[str, PhaseStatus]]:
    """Return path and status of each ended phase."""
    return [(each.phase_path, each.status) for each in ended]


async def answer(value: Any) -> Any:
    """Wait a moment, and return the value, or raise it."""
    await asyncio.sleep(0)
    if isinstance(value, BaseException):
        raise value
    return value


class Answer:
    """An awaitable of one's own, which can be awaited any number of times."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Any:
        """Wait as `answer` does."""
        return answer(self.value).__await__()

    def double(self) -> Any:
        """Return twice the value."""
        return self.value * 2


class Connection(Answer):
    """An awaitable that is an async context manager as well, and much else."""

    async def __aenter__(self) -> Any:
        """Give what awaiting gives."""
        return await self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        self.value = "closed"

    def __len__(self) -> int:
        """Have a length."""
        return 3

    def __getitem__(self, index: int) -> int:
        """Have items."""
        return index


# Coroutines


def test_a_coroutine(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle], clock: ManualClock) -> None:
    """The phase leaves the caller's lane with the call, and goes on on the lane of whoever awaits the coroutine."""

    async def work(value: Any) -> Any:
        with lanes.enter_phase("inner"):
            clock.advance(1)
            return await answer(value)

    @tracker.phase("f", result=True)
    def f(value: Any) -> Any:
        clock.advance(2)
        return work(value)

    async def main() -> Any:
        with lanes.enter_phase("main"):
            coroutine = f(5)
            with lanes.enter_phase("between"):
                clock.advance(10)
            return await coroutine

    assert 5 == asyncio.run(main())
    assert ["main / between", "main / f / inner", "main / f", "main"] == [each.phase_path for each in ended]
    of_f = ended[2]
    assert (13, 2, 10) == (_boundary.duration_ns(of_f), _boundary.self_ns(of_f), _boundary.paused_ns(of_f))
    assert {"result": 5} == _boundary.all_attributes(of_f)
    assert of_f is ended[1].parent
    assert {} == lanes.counts.to_dict()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_coroutine_on_both_backends(tracker: Any, ended: list[PhaseHandle], backend: str) -> None:
    """A task group may start it, on both backends of anyio, and its cancellation is told."""

    async def sleep() -> None:
        await anyio.sleep_forever()

    f = tracker.phase("f")(lambda: sleep())  # noqa: PLW0108 - a plain function

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(f)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    assert [("f", CANCELLED)] == told(ended)


def test_a_coroutine_that_trio_starts_by_itself(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Trio takes it for a coroutine of its own."""

    async def checkpoint() -> int:
        await trio.lowlevel.checkpoint()
        return 3

    assert 3 == trio.run(tracker.phase("f")(lambda: checkpoint()))  # noqa: PLW0108 - a plain function
    assert [("f", SUCCEEDED)] == told(ended)


@pytest.mark.parametrize(("error", "status"), [(ValueError("boom"), FAILED), (SystemExit(), CANCELLED)])
def test_a_coroutine_that_raises(
    tracker: Any, ended: list[PhaseHandle], error: BaseException, status: PhaseStatus
) -> None:
    """The very exception reaches whoever awaits, and ends the phase."""
    f = tracker.phase("f", at_exit=lambda arguments, result, error: {"error": str(error)})(answer_of)

    async def main() -> None:
        with pytest.raises(type(error)) as caught:
            await f(error)
        assert error is caught.value

    asyncio.run(main())
    assert [("f", status)] == told(ended)
    assert {"error": str(error)} == _boundary.all_attributes(ended[0])


def answer_of(value: Any) -> Any:
    """Return a coroutine, as a plain function may."""
    return answer(value)


def test_a_coroutine_becomes_a_task(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Asyncio makes a task of it, and it passes for a coroutine wherever one is asked for."""
    f = tracker.phase("f")(answer_of)

    async def main() -> Any:
        coroutine = f(1)
        assert [True] * 4 == [
            asyncio.iscoroutine(coroutine),
            inspect.iscoroutine(coroutine),
            inspect.isawaitable(coroutine),
            isinstance(coroutine, collections.abc.Coroutine),
        ]
        assert (inspect.CORO_CREATED, "answer") == (inspect.getcoroutinestate(coroutine), coroutine.__name__)
        assert "coroutine object answer" in repr(coroutine)
        assert "cr_frame" in dir(coroutine)
        return await asyncio.gather(coroutine, asyncio.create_task(f(2)), asyncio.wait_for(f(3), 10))

    assert [1, 2, 3] == asyncio.run(main())
    assert [("f", SUCCEEDED)] * 3 == told(ended)


def test_a_coroutine_never_awaited(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """It ends its phase as ABANDONED, and Python warns of it as ever, once."""
    f = tracker.phase("f")(answer_of)
    with pytest.warns(RuntimeWarning, match="coroutine 'answer' was never awaited") as caught:
        f(1)
    gc.collect()
    assert (1, [("f", ABANDONED)]) == (len(caught), told(ended))
    assert "its awaitable was dropped and never awaited" == ended[0]._extra.status_text  # type: ignore[union-attr]
    assert {} == lanes.counts.to_dict()


def test_a_coroutine_closed_before_its_first_step(tracker: Any, ended: list[PhaseHandle]) -> None:
    """It was never awaited either, and there is nothing to warn of."""
    coroutine = tracker.phase("f")(answer_of)(1)
    coroutine.close()
    del coroutine
    assert [("f", ABANDONED)] == told(ended)


def test_a_coroutine_closed_midway(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Closing it while it waits cancels it."""

    @types.coroutine
    def wait() -> Any:
        yield

    async def work() -> None:
        await wait()

    coroutine = tracker.phase("f")(lambda: work())()  # noqa: PLW0108 - a plain function
    coroutine.send(None)
    coroutine.close()
    assert [("f", CANCELLED)] == told(ended)


def test_a_coroutine_driven_by_hand(tracker: Any, ended: list[PhaseHandle]) -> None:
    """`send` and `throw` reach the coroutine, also before its first step."""

    @types.coroutine
    def wait() -> Any:
        return (yield "waits")

    async def work() -> Any:
        with contextlib.suppress(KeyError):
            await wait()
        return await wait()

    f = tracker.phase("f")(lambda: work())  # noqa: PLW0108 - a plain function
    coroutine = f()
    assert ["waits", "waits"] == [coroutine.send(None), coroutine.throw(KeyError())]
    with pytest.raises(StopIteration) as caught:
        coroutine.send(4)
    assert 4 == caught.value.value

    coroutine = f()
    with pytest.raises(KeyError):
        coroutine.throw(KeyError())
    with pytest.raises(RuntimeError, match="cannot reuse"):
        coroutine.throw(KeyError())
    assert [("f", SUCCEEDED), ("f", FAILED)] == told(ended)


def test_a_coroutine_awaited_in_another_thread(
    tracker: Any, lanes: LaneSet, ended: list[PhaseHandle], step_thread: Callable[[], StepThread]
) -> None:
    """The phase goes with the coroutine into the thread that runs it."""
    coroutine = tracker.phase("f")(answer_of)(1)
    assert 1 == step_thread().do(asyncio.run, coroutine)
    assert [("f", SUCCEEDED)] == told(ended)
    assert {} == lanes.counts.to_dict()


def test_a_coroutine_that_outlives_its_session(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """After a stop or a reset it can be awaited as if nothing were."""
    coroutine = tracker.phase("f")(answer_of)(1)
    lanes.close("the test says so")
    assert 1 == asyncio.run(coroutine)
    assert [("f", ABANDONED)] == told(ended)


def test_a_coroutine_in_a_forked_child(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A child awaits its copy, or drops it, and leaves the parent's phase alone."""
    coroutines = [tracker.phase("f")(answer_of_ones_own)(value) for value in (1, 2)]
    pid = os.fork()
    if pid == 0:
        problems: list[Any] = []
        try:
            problems += [] if asyncio.run(awaited(coroutines[0])) == 1 else ["result"]
            coroutines.clear()
            problems += ended
        except BaseException as error:
            problems.append(error)
        os._exit(len(problems))
    assert (pid, 0) == os.waitpid(pid, 0)
    assert [1, 2] == [asyncio.run(awaited(each)) for each in coroutines]
    assert [("f", SUCCEEDED)] * 2 == told(ended)


async def awaited(awaitable: Any) -> Any:
    """Await it."""
    return await awaitable


def test_a_generator_based_coroutine(tracker: Any, ended: list[PhaseHandle]) -> None:
    """What `types.coroutine` made is an awaitable too; a plain generator is none."""

    @types.coroutine
    def old() -> Any:
        yield from asyncio.sleep(0).__await__()
        return 6

    assert 6 == asyncio.run(awaited(tracker.phase("f")(lambda: old())()))  # noqa: PLW0108 - a plain function
    assert [1] == list(tracker.phase("g")(lambda: (each for each in [1]))())
    assert [("f", SUCCEEDED), ("g", SUCCEEDED)] == told(ended)


# Awaitables of one's own


def test_an_awaitable_of_ones_own(tracker: Any, ended: list[PhaseHandle]) -> None:
    """It looks like itself, its attributes are its own, and only the first awaiting is the phase."""
    f = tracker.phase("f")(answer_of_ones_own)

    async def main() -> list[Any]:
        waiting = f(4)
        assert (True, 8) == (isinstance(waiting, Answer), waiting.double())
        waiting.value = 5
        waiting.more = 1
        del waiting.more
        assert not hasattr(waiting, "more")
        return [await waiting, await waiting]

    assert [5, 5] == asyncio.run(main())
    assert [("f", SUCCEEDED)] == told(ended)


def answer_of_ones_own(value: Any) -> Any:
    """Return an awaitable, as a plain function may."""
    return Answer(value)


def test_an_awaitable_of_ones_own_never_awaited(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Its phase is ABANDONED, and as Python says nothing of it, neither do we."""
    tracker.phase("f")(answer_of_ones_own)(4)
    assert [("f", ABANDONED)] == told(ended)


class Reference(bytes):
    """Has a layout in memory that C code reads, as an object reference of Ray's has."""

    def __await__(self) -> Any:
        """Answer with itself."""
        return answer(bytes(self)).__await__()


class AwaitableInC:
    """Is awaited by a function that is not Python's."""

    __await__ = staticmethod(functools.partial(Answer.__await__, Answer(7)))


@pytest.mark.parametrize(
    ("awaitable", "expected"), [(Reference(b"id"), b"id"), (AwaitableInC(), 7)], ids=["layout", "function"]
)
def test_an_awaitable_made_in_c(tracker: Any, ended: list[PhaseHandle], awaitable: Any, expected: Any) -> None:
    """It stays the very object that it is, and its phase ends with the call: a wrapper would crash who reads it."""
    returned = tracker.phase("f", result=True)(lambda: awaitable)()
    assert awaitable is returned
    assert [("f", SUCCEEDED)] == told(ended)
    assert ["result"] == list(_boundary.all_attributes(ended[0]) or ())
    assert expected == asyncio.run(awaited(returned))


def test_an_awaitable_whose_attributes_raise(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Nothing is asked of an awaitable itself that the program would not ask."""

    class Guarded(Answer):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    async def main() -> Any:
        return await tracker.phase("f")(lambda: Guarded(4))()

    assert 4 == asyncio.run(main())
    assert [("f", SUCCEEDED)] == told(ended)


def test_a_wrapper_that_a_signal_handler_left_half_made() -> None:
    """It goes without a word, and its phase ends with the session, as any does that nobody took over."""
    half_made = object.__new__(_awaitables._PhasedAwaitable)
    assert not hasattr(half_made, "_phased_call")
    del half_made


def test_an_awaitable_that_is_a_context_manager(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Entering it with `async with` is awaiting it, and what its class can do it still can."""
    f = tracker.phase("f")(lambda: Connection("open"))

    async def main() -> None:
        connection = f()
        assert (3, 7) == (len(connection), connection[7])
        async with connection as opened:
            assert ("open", [("f", SUCCEEDED)]) == (opened, told(ended))
        assert "closed" == connection.value
        async with f() as opened:
            assert "open" == opened

    asyncio.run(main())
    assert [("f", SUCCEEDED)] * 2 == told(ended)


# Futures and tasks


def test_a_task_stays_that_task(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle], clock: ManualClock) -> None:
    """The caller gets the very task, and the phase ends when the task is done."""
    made: list[Any] = []

    @tracker.phase("f", result=True)
    def f() -> Any:
        made.append(asyncio.ensure_future(work()))
        return made[0]

    async def work() -> int:
        with lanes.enter_phase("work"):
            clock.advance(1)
            await asyncio.sleep(0)
        return 5

    async def main() -> None:
        with lanes.enter_phase("main"):
            task = f()
            assert made[0] is task
            with lanes.enter_phase("between"):
                assert 5 == await task
        await asyncio.sleep(0)

    asyncio.run(main())
    assert {"main / f / work", "main / f", "main / between", "main"} == {each.phase_path for each in ended}
    of_f = next(each for each in ended if each.name == "f")
    assert (SUCCEEDED, {"result": 5}, 1) == (
        of_f.status,
        _boundary.all_attributes(of_f),
        _boundary.duration_ns(of_f),
    )
    assert {} == lanes.counts.to_dict()


@pytest.mark.parametrize("is_done_before", [False, True])
@pytest.mark.parametrize(
    ("outcome", "status"), [(1, SUCCEEDED), (ValueError("boom"), FAILED), ("cancel", CANCELLED)], ids=repr
)
def test_how_a_future_ends(  # noqa: PLR0917 - pytest gives them by name
    tracker: Any, lanes: LaneSet, ended: list[PhaseHandle], outcome: Any, status: PhaseStatus, is_done_before: bool
) -> None:
    """A future's result, exception or cancellation is the phase's, also if it was done before it was returned."""

    def settle(future: Any) -> None:
        if outcome == "cancel":
            future.cancel()
        elif isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    @tracker.phase("f")
    def f() -> Any:
        future = asyncio.get_running_loop().create_future()
        if is_done_before:
            settle(future)
        return future

    async def main() -> None:
        future = f()
        if not is_done_before:
            assert [] == ended
            settle(future)
        with contextlib.suppress(ValueError, asyncio.CancelledError):
            await future
        await asyncio.sleep(0)

    asyncio.run(main())
    assert [("f", status)] == told(ended)
    assert {} == lanes.counts.to_dict()


def test_the_failure_of_a_task_is_told_where_it_arose(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """The phase that returned the task refers to the phase inside the task."""

    async def work() -> None:
        with lanes.enter_phase("work"):
            raise ValueError("boom")

    async def main() -> None:
        with contextlib.suppress(ValueError):
            await tracker.phase("f")(lambda: asyncio.ensure_future(work()))()
        await asyncio.sleep(0)

    asyncio.run(main())
    inner, outer = (each._extra.error for each in ended)  # type: ignore[union-attr]
    assert ["f / work", "f"] == [each.phase_path for each in ended]
    assert (ended[0].scope_id, None) == (outer.root_cause_scope_id, outer.traceback)  # type: ignore[union-attr]
    assert inner.traceback is not None  # type: ignore[union-attr]


def test_a_future_whose_exception_nobody_reads(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Asyncio's complaint of an exception that was never retrieved is kept: we have not read it."""
    complaints: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
        future = tracker.phase("f")(loop.create_future)()
        future.set_exception(ValueError("boom"))
        await asyncio.sleep(0)
        del future
        gc.collect()

    asyncio.run(main())
    assert ["Future exception was never retrieved"] == complaints
    assert [("f", FAILED)] == told(ended)


def test_a_future_that_is_never_done(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A pending future that is dropped ends its phase as ABANDONED."""

    async def main() -> None:
        tracker.phase("f")(asyncio.get_running_loop().create_future)()
        gc.collect()

    asyncio.run(main())
    assert [("f", ABANDONED)] == told(ended)


class ForeignFuture:
    """A future of another library, with nothing of asyncio's but the protocol."""

    _asyncio_future_blocking = False

    def __init__(self) -> None:
        self.callbacks: list[Any] = []

    def __await__(self) -> Any:
        """Never waited for here."""
        yield

    def done(self) -> bool:
        """Whether it is done."""
        return False

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return False

    def exception(self) -> Any:
        """Return the exception."""
        return

    def result(self) -> int:
        """Return the result."""
        return 9

    def add_done_callback(self, callback: Any) -> None:
        """Keep a callback."""
        self.callbacks.append(callback)


def test_a_foreign_future(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A future that is not asyncio's own is asked by the public protocol only."""
    future = ForeignFuture()
    assert future is tracker.phase("f", result=True)(lambda: future)()
    future.callbacks[0](future)
    assert {"result": 9} == _boundary.all_attributes(ended[0])


def test_a_future_done_after_the_session(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """A future that is done after a stop or reset raises nothing."""
    future = ForeignFuture()
    tracker.phase("f")(lambda: future)()
    lanes.close("the test says so")
    future.callbacks[0](future)
    assert [("f", ABANDONED)] == told(ended)


# Misuse


def test_an_awaitable_over_an_open_phase(
    tracker: Any, lanes: LaneSet, lenient: LaneSet, ended: list[PhaseHandle]
) -> None:
    """What was left open inside the call is told, and ends by that; where the tracker only records, the phase ends with
    the call.
    """

    def leave_open(on: LaneSet) -> Any:
        on.enter("left")
        return Answer(1)

    with pytest.raises(PhaseProtocolError, match=r"'left' .* still open inside it"):
        tracker.phase("f")(leave_open)(lanes)
    assert Answer is type(phase(source_of(lenient), "f")(leave_open)(lenient))
    assert [("f / left", FAILED), ("f", FAILED), ("f / left", ABANDONED), ("f", SUCCEEDED)] == told(ended)


def test_without_a_phase_the_awaitable_is_untouched(ended: list[PhaseHandle]) -> None:
    """Where nothing is recorded, the very awaitable is returned."""
    disabled: Any = types.SimpleNamespace(lane_set=None, enter_phase=lambda *_: NOOP)
    waiting = Answer(1)
    assert waiting is phase(disabled, "f")(lambda: waiting)()
    assert [] == ended
