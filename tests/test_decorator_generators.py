"""Decorated generators: the phase stands still while they are suspended, and nobody can tell them from plain ones."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import os
import sys
import traceback
import types
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from stormphase import _boundary
from stormphase._decorator import phase
from stormphase._model import PhaseStatus
from stormphase._recorder import PhaseRecorder
from stormphase.exceptions import Misuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import StepThread

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase.testing import ManualClock

SUCCEEDED, FAILED, CANCELLED = PhaseStatus.SUCCEEDED, PhaseStatus.FAILED, PhaseStatus.CANCELLED


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


def times(handle: PhaseHandle) -> tuple[int, int, int]:
    """Return duration, own time and paused time."""
    return _boundary.duration_ns(handle), _boundary.self_ns(handle), _boundary.paused_ns(handle)


# What the phase says


def test_a_generator_is_no_success_before_its_end(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """Making it is no phase; it is entered with the first item, and has succeeded with the end."""

    @tracker.phase("g")
    def g() -> Any:
        yield 1

    generator = g()
    assert ([], []) == (list(lanes.open_phases()), ended)
    assert 1 == next(generator)
    assert ["g"] == [each.name for each in lanes.open_phases()]
    assert [] == list(generator)
    assert [("g", SUCCEEDED)] == told(ended)


def test_the_callers_phases_do_not_nest_in_it(
    tracker: Any, lanes: LaneSet, ended: list[PhaseHandle], clock: ManualClock
) -> None:
    """What the caller does with an item is no part of the generator, and its time is its own."""

    @tracker.phase("load")
    def load() -> Any:
        for item in range(2):
            clock.advance(10)
            with lanes.enter_phase("read"):
                clock.advance(1)
            yield item

    with lanes.enter_phase("epoch") as epoch:
        for _ in load():
            with lanes.enter_phase("step"):
                clock.advance(100)
    read, step = ("epoch / load / read", SUCCEEDED), ("epoch / step", SUCCEEDED)
    assert [read, step, read, step, ("epoch / load", SUCCEEDED), ("epoch", SUCCEEDED)] == told(ended)
    assert (222, 20, 200) == times(ended[4])
    assert (222, 0, 0) == times(epoch)


def test_phases_that_its_body_has_open_pause_with_it(
    tracker: Any, lanes: LaneSet, ended: list[PhaseHandle], clock: ManualClock
) -> None:
    """A block around a yield is suspended with the generator, and goes on inside it."""

    @tracker.phase("g")
    def g() -> Any:
        with lanes.enter_phase("outer"):
            token = lanes.enter("inner")
            clock.advance(1)
            yield
            clock.advance(2)
            lanes.exit(token)

    for _ in g():
        clock.advance(10)
        with lanes.enter_phase("step"):
            pass
    assert ["step", "g / outer / inner", "g / outer", "g"] == [each.phase_path for each in ended]
    assert [(13, 3, 10), (13, 0, 10), (13, 0, 10)] == [times(each) for each in ended[1:]]
    assert {} == lanes.counts.to_dict()


def test_generators_interleave(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Two generators that take turns on one lane do not nest in each other."""
    g = tracker.phase("g")(lambda n: (yield from range(n)))
    assert [(0, 0), (1, 1)] == list(zip(g(3), g(2), strict=False))
    assert [("g", CANCELLED), ("g", SUCCEEDED)] == sorted(told(ended))


def test_generators_that_delegate(tracker: Any, ended: list[PhaseHandle]) -> None:
    """`yield from` another decorated generator nests, and hands its result out."""

    @tracker.phase("inner")
    def inner() -> Any:
        received = yield "a"
        return received * 2

    @tracker.phase("outer")
    def outer() -> Any:
        return (yield from inner()) + 1

    generator = outer()
    assert "a" == next(generator)
    with pytest.raises(StopIteration) as caught:
        generator.send(5)
    assert 11 == caught.value.value
    assert [("outer / inner", SUCCEEDED), ("outer", SUCCEEDED)] == told(ended)


def test_one_never_started_leaves_no_phase(tracker: Any, ended: list[PhaseHandle], lanes: LaneSet) -> None:
    """A generator that is closed or dropped before its first item is no phase."""
    g = tracker.phase("g")(lambda: (yield))
    g().close()
    del g
    assert ([], []) == (ended, list(lanes.open_phases()))


def test_one_dropped_midway_is_cancelled(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Whoever breaks out of the loop cancels the generator, which cleans up within its phase."""
    cleaned: list[str] = []

    @tracker.phase("g")
    def g() -> Any:
        try:
            yield from range(3)
        finally:
            with tracker.phase("cleanup") as handle:
                cleaned.append(handle.phase_path)

    for _ in g():
        break
    gc.collect()
    assert ["g / cleanup"] == cleaned
    assert [("g / cleanup", SUCCEEDED), ("g", CANCELLED)] == told(ended)


def test_one_that_fails(tracker: Any, ended: list[PhaseHandle]) -> None:
    """The very exception leaves it, with one frame more, and the phase has failed."""
    error = ValueError("boom")

    @tracker.phase("g")
    def g() -> Any:
        yield 1
        raise error

    with pytest.raises(ValueError, match="boom") as caught:
        list(g())
    assert error is caught.value
    assert ["test_one_that_fails", "call", "g"] == [f.name for f in traceback.extract_tb(error.__traceback__)]
    assert [("g", FAILED)] == told(ended)


def test_its_result_and_late_attributes(tracker: Any, ended: list[PhaseHandle]) -> None:
    """What the generator returns is its result."""

    @tracker.phase("g", result=True, at_exit=lambda arguments, result, error: {"n": arguments["n"] + result})
    def g(n: int) -> Any:
        yield
        return 5

    list(g(1))
    assert {"result": 5, "n": 6} == _boundary.all_attributes(ended[0])


def test_its_error_policy(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A policy by exception holds for generators as well."""

    @tracker.phase("g", errors={LookupError: "not_a_failure"})
    def g() -> Any:
        yield
        raise KeyError

    with pytest.raises(KeyError):
        list(g())
    assert [("g", SUCCEEDED)] == told(ended)


# Where it is resumed


def test_one_resumed_in_another_thread(
    tracker: Any, ended: list[PhaseHandle], lanes: LaneSet, step_thread: Callable[[], StepThread]
) -> None:
    """It goes on on the lane of whoever resumes it, and nests nothing there falsely."""

    @tracker.phase("g")
    def g() -> Any:
        yield 1
        with lanes.enter_phase("inner"):
            yield 2
        yield 3

    generator, other = g(), step_thread()
    with lanes.enter_phase("main"):
        assert 1 == next(generator)
    assert [2, 3] == [other.do(next, generator), next(generator)]
    assert None is other.do(next, generator, None)
    assert ["main", "main / g / inner", "main / g"] == [each.phase_path for each in ended]
    assert {} == lanes.counts.to_dict()


def test_one_closed_by_another_thread(
    tracker: Any, ended: list[PhaseHandle], lanes: LaneSet, step_thread: Callable[[], StepThread]
) -> None:
    """It cleans up without its phase, which ends; the closer's lane and context are as they were."""
    seen: list[Any] = []

    @tracker.phase("g")
    def g() -> Any:
        try:
            with lanes.enter_phase("inner"):
                yield 1
        finally:
            seen.append(lanes.carrier.current_phase())

    generator, other = g(), step_thread()
    next(generator)
    mine = other.do(lanes.enter_phase, "mine")
    other.do(generator.close)
    assert [mine] == seen
    assert mine is other.do(lanes.carrier.current_phase)
    other.do(mine.close)
    assert [("g / inner", CANCELLED), ("g", CANCELLED), ("mine", SUCCEEDED)] == told(ended)
    assert {Misuse.FOREIGN_CONTEXT: 2} == lanes.counts.to_dict()


@pytest.mark.parametrize("is_raising", [False, True])
def test_one_closed_by_another_thread_that_does_not_give_in(
    tracker: Any, ended: list[PhaseHandle], step_thread: Callable[[], StepThread], is_raising: bool
) -> None:
    """Also where its cleanup returns or raises, the phase ends as it did, and the closer hears no other error."""

    @tracker.phase("g")
    def g() -> Any:
        try:
            yield 1
        except GeneratorExit:
            if is_raising:
                raise ValueError("cleanup") from None

    generator, other = g(), step_thread()
    next(generator)
    with pytest.raises(ValueError, match="cleanup") if is_raising else contextlib.nullcontext():
        other.do(generator.close)
    assert [("g", FAILED if is_raising else SUCCEEDED)] == told(ended)


def test_one_finished_in_a_forked_child(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """A child goes on with its copy of the generator, and leaves the parent's phase alone."""

    @tracker.phase("g")
    def g() -> Any:
        yield 1
        yield 2

    generator = g()
    next(generator)
    pid = os.fork()
    if pid == 0:
        problems = []
        try:
            problems += [] if list(generator) == [2] else ["items"]
            problems += [each.phase_path for each in ended]
        except BaseException as error:
            problems.append(repr(error))
        os._exit(len(problems))
    assert (pid, 0) == os.waitpid(pid, 0)
    assert [2] == list(generator)
    assert [("g", SUCCEEDED)] == told(ended)


def test_one_on_a_sinks_worker_goes_on_without_its_phase(
    tracker: Any, lanes: LaneSet, ended: list[PhaseHandle], step_thread: Callable[[], StepThread]
) -> None:
    """A sink's own thread records nothing, and the generator works there all the same."""
    g = tracker.phase("g")(lambda: (yield from range(3)))
    sink, generator = step_thread(), g()
    sink.do(lanes.mute_this_thread)
    assert [0, 1, 2] == [next(generator), sink.do(next, generator), next(generator)]
    assert [] == list(generator)
    assert [("g", SUCCEEDED)] == told(ended)


def test_one_that_outlives_its_session(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """A generator whose phase was ended by a reset or a stop goes on as if nothing were."""
    g = tracker.phase("g")(lambda: (yield from range(3)))
    generator = g()
    next(generator)
    lanes.close("the test says so")
    assert [1, 2] == list(generator)
    assert [("g", PhaseStatus.ABANDONED)] == told(ended)


def test_a_reset_while_its_body_runs(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """A generator whose phase was ended while it ran goes on as if nothing were."""

    @tracker.phase("g")
    def g() -> Any:
        lanes.close("the test says so")
        yield 1

    assert [1] == list(g())
    assert [("g", PhaseStatus.ABANDONED)] == told(ended)


def test_one_that_leaves_a_phase_open(lenient: LaneSet, ended: list[PhaseHandle]) -> None:
    """What the body left open is ABANDONED where the tracker only records."""

    @phase(source_of(lenient), "g")
    def g() -> Any:
        lenient.enter("left")
        yield 1

    assert [1] == list(g())
    assert [("g / left", PhaseStatus.ABANDONED), ("g", SUCCEEDED)] == told(ended)


# What it still is


def test_a_decorated_generator_is_one(tracker: Any) -> None:
    """Inspection sees a generator in each of its states, under its own name."""

    @tracker.phase("g")
    def g() -> Any:
        """Yield."""
        yield 1

    generator = g()
    assert inspect.isgeneratorfunction(g)
    assert inspect.isgenerator(generator)
    assert (g.__qualname__, "GEN_CREATED") == (generator.__qualname__, inspect.getgeneratorstate(generator))
    next(generator)
    assert "GEN_SUSPENDED" == inspect.getgeneratorstate(generator)
    assert (True, False, None) == (generator.gi_frame is not None, generator.gi_running, generator.gi_yieldfrom)
    generator.close()
    assert "GEN_CLOSED" == inspect.getgeneratorstate(generator)


class SentError(Exception):
    """What the drivers below throw in."""


# A conversation with a generator: what is said to it, in order.
_talk = st.lists(st.sampled_from(["next", "send", "throw", "throw stop", "close"]), max_size=8)
_manners = st.tuples(
    st.sampled_from(["pass", "handle", "convert", "return", "raise stop"]),
    st.sampled_from(["pass", "swallow", "return", "raise"]),
)


def _talker(manners: tuple[str, str]) -> Callable[[], Any]:  # noqa: C901 - one branch for each manner
    """Return a generator function that meets what is thrown in, and its closing, with such manners."""
    on_error, on_close = manners

    def talker() -> Any:  # noqa: C901 - likewise
        received: Any = "nothing"
        for turn in range(4):
            try:
                received = yield (turn, received)
            except SentError as error:
                if on_error == "handle":
                    received = "handled"
                elif on_error == "convert":
                    raise KeyError("converted") from error
                elif on_error == "return":
                    return "early"
                elif on_error == "raise stop":
                    raise StopIteration("odd") from error  # noqa: PLR1708 - so that Python converts it
                else:
                    raise
            except GeneratorExit:
                if on_close == "swallow":
                    received = "swallowed"
                elif on_close == "return":
                    return "closed"
                elif on_close == "raise":
                    raise ValueError("on close") from None
                else:
                    raise
        return received

    return talker


def _told_in_outcomes(error: BaseException) -> Any:
    cause, context = error.__cause__, error.__context__
    return type(error).__name__, error.args, type(cause).__name__, type(context).__name__


def _conversation(generator: Any, talk: list[str]) -> list[Any]:
    """Return all that a generator answered."""
    answers: list[Any] = []
    for turn, word in enumerate(talk):
        try:
            if word == "next":
                answers.append(next(generator))
            elif word == "send":
                answers.append(generator.send(turn))
            elif word == "close":
                answers.append(generator.close())
            else:
                answers.append(generator.throw(SentError(turn) if word == "throw" else StopIteration(turn)))
        except BaseException as error:
            answers.append(_told_in_outcomes(error))
    for _ in range(6):
        with contextlib.suppress(BaseException):
            generator.close()
    return answers


@given(_manners, _talk)
def test_no_conversation_tells_a_decorated_generator(manners: tuple[str, str], talk: list[str]) -> None:
    """Whatever is sent, thrown or closed in whatever order, the answers are those of the plain generator."""
    lanes = PhaseRecorder().lane_set("s", 0)
    talker = _talker(manners)
    decorated = phase(source_of(lanes), "g", at_exit=lambda *_: {})(talker)
    assert _conversation(talker(), talk) == _conversation(decorated(), talk)
    assert lanes.carrier.current_phase() is None
    assert {} == lanes.counts.to_dict()
    lanes.close("one that never gives in is still suspended")


@given(_manners.filter(lambda manners: manners[1] != "swallow"), _talk)
def test_no_conversation_tells_a_decorated_async_generator(manners: tuple[str, str], talk: list[str]) -> None:
    """The same of async generators, but for those that do not give in: Python can never close them."""
    lanes = PhaseRecorder().lane_set("s", 0)
    plain = _async_talker(manners)
    decorated = phase(source_of(lanes), "g", at_exit=lambda *_: {})(plain)
    assert _async_conversation(plain(), talk) == _async_conversation(decorated(), talk)
    assert lanes.carrier.current_phase() is None
    assert {} == lanes.counts.to_dict()
    lanes.close("one that never gives in is still suspended")


def _async_talker(manners: tuple[str, str]) -> Callable[[], Any]:  # noqa: C901 - as `_talker`
    on_error, on_close = manners

    async def talker() -> Any:  # noqa: C901 - likewise
        received: Any = "nothing"
        for turn in range(4):
            try:
                received = yield (turn, received)
            except SentError as error:
                if on_error == "handle":
                    received = "handled"
                elif on_error == "convert":
                    raise KeyError("converted") from error
                elif on_error == "return":
                    return
                elif on_error == "raise stop":
                    raise StopAsyncIteration("odd") from error
                else:
                    raise
            except GeneratorExit:
                if on_close == "swallow":
                    received = "swallowed"
                elif on_close == "return":
                    return
                elif on_close == "raise":
                    raise ValueError("on close") from None
                else:
                    raise

    return talker


def _driven(awaitable: Any) -> Any:
    """Return what an awaitable that never waits gives."""
    try:
        awaitable.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def _async_conversation(generator: Any, talk: list[str]) -> list[Any]:
    answers: list[Any] = []
    for turn, word in enumerate(talk):
        try:
            if word == "next":
                answers.append(_driven(generator.__anext__()))
            elif word == "send":
                answers.append(_driven(generator.asend(turn)))
            elif word == "close":
                answers.append(_driven(generator.aclose()))
            else:
                thrown = SentError(turn) if word == "throw" else StopAsyncIteration(turn)
                answers.append(_driven(generator.athrow(thrown)))
        except BaseException as error:
            answers.append(_told_in_outcomes(error))
    with contextlib.suppress(BaseException):
        _driven(generator.aclose())
    return answers


def test_what_is_thrown_in_keeps_its_traceback(tracker: Any) -> None:
    """An exception that is thrown into a generator and passes it shows the wrapper once."""

    @tracker.phase("g")
    def g() -> Any:
        yield 1

    generator = g()
    next(generator)
    with pytest.raises(SentError) as caught:
        generator.throw(SentError())
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert ["test_what_is_thrown_in_keeps_its_traceback", "call", "g"] == names


def test_nothing_is_held(tracker: Any) -> None:
    """Neither an item, nor a value that was sent, nor an exception that was thrown in lives longer than without us."""

    class Batch: ...

    @tracker.phase("g")
    def g() -> Any:
        for _ in range(4):
            with contextlib.suppress(SentError):
                yield Batch()

    generator = g()
    item = weakref.ref(next(generator))
    sent = Batch()
    sent_ref = weakref.ref(sent)
    generator.send(sent)
    del sent
    thrown = SentError()
    thrown_ref = weakref.ref(thrown)
    generator.throw(thrown)
    del thrown
    assert (None, None, None) == (item(), sent_ref(), thrown_ref())
    generator.close()


def test_a_coroutine_made_of_a_generator(tracker: Any, ended: list[PhaseHandle], lanes: LaneSet) -> None:
    """What `types.coroutine` made can still be awaited, and its phase lasts while it waits."""

    @tracker.phase("c")
    @types.coroutine
    def c() -> Any:
        return (yield "waits")

    async def main() -> Any:
        return await c()

    coroutine = main()
    assert "waits" == coroutine.send(None)
    assert ["c"] == [each.name for each in lanes.open_phases()]
    with pytest.raises(StopIteration) as caught:
        coroutine.send(3)
    assert 3 == caught.value.value

    coroutine = main()
    coroutine.send(None)
    with pytest.raises(SentError):
        coroutine.throw(SentError())
    assert [("c", SUCCEEDED), ("c", FAILED)] == told(ended)


# Async generators


def test_an_async_generator(tracker: Any, lanes: LaneSet, ended: list[PhaseHandle], clock: ManualClock) -> None:
    """Its own awaiting is its time, the caller's work between items is not."""

    @tracker.phase("g")
    async def g() -> Any:
        for item in range(2):
            await asyncio.sleep(0)
            clock.advance(1)
            yield item

    async def main() -> list[int]:
        items = []
        async for item in g():
            items.append(item)
            with lanes.enter_phase("step"):
                clock.advance(10)
                await asyncio.sleep(0)
        return items

    assert inspect.isasyncgenfunction(g)
    assert inspect.isasyncgen(g())
    assert [0, 1] == asyncio.run(main())
    assert [("step", SUCCEEDED), ("step", SUCCEEDED), ("g", SUCCEEDED)] == told(ended)
    assert (22, 2, 20) == times(ended[2])


def test_an_async_generator_dropped_midway(tracker: Any, ended: list[PhaseHandle], lanes: LaneSet) -> None:
    """The event loop finalises it in a task of its own: it is CANCELLED, nothing raises, and no context is touched."""
    cleaned: list[Any] = []
    unhandled: list[Any] = []

    @tracker.phase("g")
    async def g() -> Any:
        try:
            with lanes.enter_phase("inner"):
                yield 1
        finally:
            await asyncio.sleep(0)
            cleaned.append(lanes.carrier.current_phase())

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        with lanes.enter_phase("main") as mine:
            async for _ in g():
                break
            gc.collect()
            for _ in range(5):
                await asyncio.sleep(0)
            assert mine is lanes.carrier.current_phase()

    asyncio.run(main())
    assert ([], 1) == (unhandled, len(cleaned))
    assert [("main / g / inner", CANCELLED), ("main / g", CANCELLED), ("main", SUCCEEDED)] == told(ended)


def test_async_generators_at_the_end_of_the_loop(tracker: Any, ended: list[PhaseHandle]) -> None:
    """What is suspended when the loop ends is closed by the loop, once, also if closing takes a while."""
    kept: list[Any] = []
    unhandled: list[Any] = []

    @tracker.phase("g")
    async def g() -> Any:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        for _ in range(3):
            kept.append(g())
            await kept[-1].__anext__()

    asyncio.run(main())
    assert [] == unhandled
    assert [("g", CANCELLED)] * 3 == told(ended)


def test_the_loops_hooks_are_as_before(tracker: Any) -> None:
    """Beginning an async generator leaves the thread's hooks alone, and one that is not begun is not known to them."""
    seen: list[Any] = []
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(seen.append, seen.append)
    try:
        generator = tracker.phase("g")(_async_talker(("pass", "pass")))()
        _driven(generator.__anext__())
        assert (seen.append, seen.append) == tuple(sys.get_asyncgen_hooks())
        _driven(generator.aclose())
    finally:
        sys.set_asyncgen_hooks(*hooks)
    assert [generator] == seen


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_generator_that_is_cancelled(tracker: Any, ended: list[PhaseHandle], backend: str) -> None:
    """Cancellation while it waits passes it, and its phase is CANCELLED, on both backends of anyio."""

    @tracker.phase("g")
    async def g() -> Any:
        yield 1
        await anyio.sleep_forever()

    async def main() -> None:
        with anyio.CancelScope() as scope:
            generator = g()
            async for _ in generator:
                scope.cancel()
            raise AssertionError("cancelled before")

    anyio.run(main, backend=backend)
    assert [("g", CANCELLED)] == told(ended)


def test_an_async_generator_under_trio(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Trio runs it, closes it and says nothing."""

    @tracker.phase("g")
    async def g() -> Any:
        try:
            yield 1
            yield 2
        finally:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def main() -> None:
        async with contextlib.aclosing(g()) as generator:
            async for _ in generator:
                break

    trio.run(main)
    assert [("g", CANCELLED)] == told(ended)


def test_an_async_generator_resumed_by_another_task(tracker: Any, ended: list[PhaseHandle], lanes: LaneSet) -> None:
    """Each item may be asked for by another task."""
    g = tracker.phase("g")(_async_talker(("pass", "pass")))

    async def main() -> list[Any]:
        generator = g()
        items = [await asyncio.create_task(_next(generator)) for _ in range(4)]
        with contextlib.suppress(StopAsyncIteration):
            await _next(generator)
        return items

    async def _next(generator: Any) -> Any:
        return await generator.__anext__()

    assert [(0, "nothing"), (1, None), (2, None), (3, None)] == asyncio.run(main())
    assert [("g", SUCCEEDED)] == told(ended)
    assert {} == lanes.counts.to_dict()


def test_without_a_phase_an_async_generator_is_the_same(ended: list[PhaseHandle]) -> None:
    """Where nothing is recorded the answers are those of the plain generator."""
    from stormphase._noop import NOOP

    disabled: Any = types.SimpleNamespace(lane_set=None, enter_phase=lambda *_: NOOP)
    talk = ["next", "throw", "send", "close"]
    for manners in (("handle", "pass"), ("convert", "raise")):
        plain = _async_talker(manners)
        assert _async_conversation(plain(), talk) == _async_conversation(phase(disabled, "g")(plain)(), talk)
    assert [] == ended
