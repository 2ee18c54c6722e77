"""The phase entered late: as a block in any thread and task, and around functions of every plain kind."""

from __future__ import annotations

import abc
import asyncio
import builtins
import contextlib
import copy
import functools
import inspect
import pickle
import re
import traceback
import types
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from stormphase import _ambient
from stormphase._decorator import LatePhase, ambient_phase, phase
from stormphase._model import PhaseStatus
from stormphase._noop import NOOP
from stormphase._recipe import function_name_of
from stormphase._recorder import PhaseRecorder
from stormphase.exceptions import ConfigurationError, Misuse, PhaseNameError, PhaseProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import StepThread

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase.testing import ManualClock

SUCCEEDED, FAILED, CANCELLED = PhaseStatus.SUCCEEDED, PhaseStatus.FAILED, PhaseStatus.CANCELLED


def source_of(lanes: LaneSet) -> Any:
    """Return the least that a phase can be entered on."""
    return types.SimpleNamespace(lane_set=lanes, enter_phase=lanes.enter_phase)


@pytest.fixture
def source(lanes: LaneSet, ended: list[PhaseHandle]) -> Any:
    """Return a source on strict lanes, whose phases come to stand in `ended`."""
    return source_of(lanes)


@pytest.fixture
def tracker(source: Any) -> Any:
    """Return what has a `phase` as a tracker has."""
    return types.SimpleNamespace(phase=functools.partial(phase, source))


def told(ended: list[PhaseHandle]) -> list[tuple[str, PhaseStatus]]:
    """Return path and status of each ended phase."""
    return [(each.phase_path, each.status) for each in ended]


def errors(ended: list[PhaseHandle]) -> list[Any]:
    """Return the error of each ended phase, or None."""
    return [None if each._extra is None else each._extra.error for each in ended]


# Blocks


def test_a_block_enters_late(lanes: LaneSet, tracker: Any, ended: list[PhaseHandle]) -> None:
    """Making the object enters nothing; the block does, and has the handle."""
    late = tracker.phase("load", attributes={"rows": 3})
    assert [] == list(lanes.open_phases())
    with late as handle:
        assert [handle] == list(lanes.open_phases())
        assert ("load", {"rows": 3}) == (handle.name, handle._attributes)
    assert [("load", SUCCEEDED)] == told(ended)


def test_a_block_says_where_it_stands(tracker: Any) -> None:
    """The location of a block's phase is the line of the with statement."""
    with tracker.phase("load") as handle:
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    assert f"test_decorator.py:{line}" == handle.location
    assert function_name_of(handle) is None


def test_one_object_nests_in_itself(tracker: Any, ended: list[PhaseHandle]) -> None:
    """The same object may be open any number of times on one lane, also twice in one frame."""
    late = tracker.phase("a")

    def descend(depth: int) -> None:
        with late, late:
            if depth:
                descend(depth - 1)

    descend(2)
    assert ["a" + " / a" * depth for depth in (5, 4, 3, 2, 1, 0)] == [each.phase_path for each in ended]


def test_one_object_in_threads_at_once(
    tracker: Any, ended: list[PhaseHandle], step_thread: Callable[[], StepThread]
) -> None:
    """Threads that are inside the same object's block at the same time each end their own phase."""
    late = tracker.phase("a")
    threads = [step_thread(), step_thread()]
    stacks = [contextlib.ExitStack(), contextlib.ExitStack()]
    handles = [thread.do(stack.enter_context, late) for thread, stack in zip(threads, stacks, strict=True)]
    for thread, stack, handle in zip(threads, stacks, handles, strict=True):
        thread.do(stack.close)
        assert handle is ended[-1]


def test_one_object_in_tasks_at_once(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Tasks that are inside the same object's block at the same time each end their own phase."""
    late = tracker.phase("a")

    async def work(mine: asyncio.Event, other: asyncio.Event) -> bool:
        async with late as handle:
            mine.set()
            await other.wait()
        return handle.closed

    async def main() -> list[bool]:
        first, second = asyncio.Event(), asyncio.Event()
        with late:
            return await asyncio.gather(work(first, second), work(second, first))

    assert [True, True] == asyncio.run(main())
    assert ["a / a", "a / a", "a"] == [each.phase_path for each in ended]


def test_an_exception_passes_a_block(tracker: Any, ended: list[PhaseHandle]) -> None:
    """The very exception leaves the block, and the phase has failed with it."""
    error = ValueError("boom")
    with pytest.raises(ValueError, match="boom") as caught, tracker.phase("a"):
        raise error
    assert error is caught.value
    assert [("a", FAILED)] == told(ended)


def test_an_exit_stack_ends_its_own(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Blocks that an ExitStack closes from another frame end innermost first."""
    late = tracker.phase("a")
    with contextlib.ExitStack() as stack:
        stack.enter_context(late)
        stack.enter_context(late)
    assert ["a / a", "a"] == [each.phase_path for each in ended]


def test_an_async_exit_stack_closed_by_another_task(lanes: LaneSet, tracker: Any, ended: list[PhaseHandle]) -> None:
    """What a fixture does, enter in one task and exit in another, ends the phase and is counted."""

    async def main() -> None:
        stack = contextlib.AsyncExitStack()
        await asyncio.create_task(stack.enter_async_context(tracker.phase("a")))  # type: ignore[arg-type]
        await asyncio.create_task(stack.aclose())  # type: ignore[arg-type]

    asyncio.run(main())
    assert [("a", SUCCEEDED)] == told(ended)
    assert 1 == lanes.counts[Misuse.FOREIGN_CONTEXT]


def test_another_threads_block_is_left_alone(
    lanes: LaneSet, tracker: Any, ended: list[PhaseHandle], step_thread: Callable[[], StepThread]
) -> None:
    """A block that was a no-op when it was entered ends nothing, even if the object is open in another thread."""
    late = tracker.phase("a")
    sink = step_thread()
    sink.do(lanes.mute_this_thread)
    with late:
        assert NOOP is sink.do(late.__enter__)
        sink.do(late.__exit__, None, None, None)
        assert [] == ended
    assert [("a", SUCCEEDED)] == told(ended)


def test_a_block_whose_generator_is_dropped_inside_another(tracker: Any, ended: list[PhaseHandle]) -> None:
    """With the same object open twice on one lane, the block that is unwound ends its own phase."""
    late = tracker.phase("a")

    def suspended() -> Any:
        with late as handle:
            yield handle

    generator = suspended()
    of_generator = next(generator)
    of_generator.pause()
    with late as mine:
        generator.close()
        assert ([of_generator], False) == (ended, mine.closed)
    assert [of_generator, mine] == ended


def test_a_block_over_an_open_phase(lanes: LaneSet, tracker: Any, ended: list[PhaseHandle]) -> None:
    """What was left open inside is told, and the block can be closed once that is put right."""
    late = tracker.phase("a")
    late.__enter__()
    token = lanes.enter("b")
    with pytest.raises(PhaseProtocolError, match="Exit it first"):
        late.__exit__(None, None, None)
    lanes.exit(token)
    late.__exit__(None, None, None)
    assert ["a / b", "a"] == [each.phase_path for each in ended]
    assert {} == late._open


def test_a_block_that_another_thread_overtakes(tracker: Any, ended: list[PhaseHandle]) -> None:
    """If another thread enters or leaves while a block looks for its phase, it looks again."""

    class Racing(dict[Any, Any]):
        def __reversed__(self) -> Any:
            raise RuntimeError("dictionary changed size during iteration")

    late = tracker.phase("a")
    late._open = Racing()
    with late as outer, late as inner:
        pass
    assert ([inner, outer], {}) == (ended, late._open)
    with contextlib.ExitStack() as stack:
        stack.enter_context(late)
    assert (3, {}) == (len(ended), late._open)


def test_an_exit_too_many(tracker: Any, ended: list[PhaseHandle]) -> None:
    """An exit without an enter ends nothing and raises nothing."""
    late = tracker.phase("a")
    late.__exit__(None, None, None)
    with late as handle:
        handle.close()
    late.__exit__(None, None, None)
    assert [("a", SUCCEEDED)] == told(ended)


def test_a_phase_that_ended_meanwhile_is_forgotten(lanes: LaneSet, tracker: Any) -> None:
    """A phase that a reset ended, and whose block will never ask, is not kept for ever."""
    late = tracker.phase("a")
    contextlib.ExitStack().enter_context(late)
    lanes.close("the test says so")
    lanes.carrier.variable.set(None)
    with contextlib.ExitStack() as stack:
        stack.enter_context(late)
    assert {} == late._open


def test_blocks_that_never_began_do_not_pile_up(lanes: LaneSet, tracker: Any) -> None:
    """However often an interrupt lands between an enter and its block, what is kept stays bounded."""
    late = tracker.phase("a")
    with lanes.enter_phase("outer"):
        for _ in range(1_000):
            late.__enter__().close()
    assert 64 >= len(late._open)
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(late)
        assert 200 <= len(late._open)
    late._forget_ended()
    assert {} == late._open


@pytest.mark.parametrize(("options", "setting"), [({"arguments": ("x",)}, "arguments"), ({"result": True}, "result")])
def test_a_block_has_neither_arguments_nor_result(tracker: Any, options: dict[str, Any], setting: str) -> None:
    """Options that only a function can have are refused at the block, with what to write instead."""
    with pytest.raises(ConfigurationError, match="set_attribute") as caught, tracker.phase("a", **options):
        pass
    assert setting == caught.value.setting


def test_a_block_needs_a_name(tracker: Any) -> None:
    """Only a function lends its name."""
    with pytest.raises(ConfigurationError, match=re.escape('with tracker.phase("load")')), tracker.phase():
        pass


@pytest.mark.parametrize("name", ["", "  "])
def test_a_blank_name(tracker: Any, name: str) -> None:
    """A blank name is refused when the phase is entered."""
    with pytest.raises(PhaseNameError, match="must not be blank"), tracker.phase(name):
        pass


def test_repr_names_the_phase(tracker: Any) -> None:
    """Who prints the object sees which phase it is."""
    assert "<LatePhase 'load'>" == repr(tracker.phase("load"))


# Functions


def test_a_function_is_a_phase(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Arguments and result pass, and each call is a phase."""

    @tracker.phase("load", attributes={"k": 1})
    def load(path: str, *, limit: int = 2) -> list[str]:
        return [path] * limit

    assert (["a", "a"], ["b"]) == (load("a"), load(path="b", limit=1))
    assert [("load", SUCCEEDED)] * 2 == told(ended)
    assert [{"k": 1}] * 2 == [each._attributes for each in ended]


def test_a_bare_decorator(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Without a call, and with a call that gives no name, the phase is called as the function is."""

    @tracker.phase
    def first() -> None: ...

    @tracker.phase(attributes={"k": 1})
    def second() -> None: ...

    first()
    second()
    prefix = "test_a_bare_decorator.<locals>."
    assert [f"{prefix}first", f"{prefix}second"] == [each.name for each in ended]


def test_a_function_lends_its_name_and_place(tracker: Any, ended: list[PhaseHandle]) -> None:
    """The phase knows the function's full name, and stands where that is defined."""

    @tracker.phase("load")
    def load() -> None: ...

    load()
    assert f"{__name__}.test_a_function_lends_its_name_and_place.<locals>.load" == function_name_of(ended[0])
    assert f"test_decorator.py:{load.__wrapped__.__code__.co_firstlineno}" == ended[0].location
    assert ended[0]._extra is None, "what few phases have would double the price of a call"


def test_recursion(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A function that calls itself nests in itself."""

    @tracker.phase("f")
    def factorial(number: int) -> int:
        return number * factorial(number - 1) if number else 1

    assert 6 == factorial(3)
    assert ["f / f / f / f", "f / f / f", "f / f", "f"] == [each.phase_path for each in ended]


def test_a_function_in_threads_at_once(
    tracker: Any, ended: list[PhaseHandle], step_thread: Callable[[], StepThread]
) -> None:
    """Calls in several threads at once are phases of their own."""
    inner = tracker.phase("inner")(lambda: None)
    threads = [step_thread(), step_thread()]
    outer = tracker.phase("outer")(lambda depth: threads[depth].do(outer, depth + 1) if depth < 2 else inner())
    outer(0)
    assert ["outer / inner", "outer", "outer", "outer"] == [each.phase_path for each in ended]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("boom"), FAILED),
        (KeyboardInterrupt(), CANCELLED),
        (SystemExit(3), CANCELLED),
        (GeneratorExit(), CANCELLED),
        (asyncio.CancelledError(), CANCELLED),
        (StopIteration(1), SUCCEEDED),
        (StopAsyncIteration(), SUCCEEDED),
        (BaseException("odd"), FAILED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_calls_end(tracker: Any, ended: list[PhaseHandle], error: BaseException, status: PhaseStatus) -> None:
    """The very exception leaves the call, and every kind of it ends the phase truthfully."""

    @tracker.phase("f")
    def f() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        f()
    assert error is caught.value
    if type(error) is not BaseException:
        assert [("f", status)] == told(ended)


def test_an_exception_keeps_traceback_context_and_cause(tracker: Any) -> None:
    """One frame more, and nothing else, tells that the function is decorated."""
    cause, context = KeyError("cause"), KeyError("context")

    @tracker.phase("f", errors={ValueError: "full"}, at_exit=lambda *_: {})
    def f() -> None:
        try:
            raise context
        except KeyError:
            raise ValueError("boom") from cause

    with pytest.raises(ValueError, match="boom") as caught:
        f()
    error = caught.value
    assert (cause, context) == (error.__cause__, error.__context__)
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert ["test_an_exception_keeps_traceback_context_and_cause", "call", "f"] == frames


def test_an_exception_that_cannot_be_printed(tracker: Any, ended: list[PhaseHandle]) -> None:
    """An exception whose text raises is not replaced by that."""

    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    @tracker.phase("f")
    def f() -> None:
        raise UnprintableError

    with pytest.raises(UnprintableError):
        f()
    assert "<unprintable UnprintableError>" == errors(ended)[0].message


def test_a_shared_exception_counts_in_each_call(tracker: Any, ended: list[PhaseHandle]) -> None:
    """One exception object that unrelated calls raise is told in full by each of them."""
    shared = ValueError("shared")

    @tracker.phase("f")
    def f() -> None:
        raise shared

    for _ in range(2):
        with pytest.raises(ValueError, match="shared"):
            f()
    assert [FAILED, FAILED] == [each.status for each in ended]
    assert [each.scope_id for each in ended] == [error.root_cause_scope_id for error in errors(ended)]
    assert all(error.traceback for error in errors(ended))


def test_an_exception_raised_from_another_is_told_once(tracker: Any, ended: list[PhaseHandle]) -> None:
    """`raise X from Y` in an outer call refers to where Y arose, and repeats no traceback."""

    @tracker.phase("inner")
    def inner() -> None:
        raise KeyError("y")

    @tracker.phase("outer")
    def outer() -> None:
        try:
            inner()
        except KeyError as error:
            raise ValueError("x") from error

    with pytest.raises(ValueError, match="x"):
        outer()
    assert [True, False] == [bool(error.traceback) for error in errors(ended)]
    assert [ended[0].scope_id] * 2 == [error.root_cause_scope_id for error in errors(ended)]


def test_a_wrong_call(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A call with arguments that the function does not take raises what it would, and has failed."""

    @tracker.phase("f", at_exit=lambda *_: {})
    def f(a: int) -> int:
        return a

    with pytest.raises(TypeError, match="unexpected keyword argument 'b'"):
        f(b=1)
    assert [("f", FAILED)] == told(ended)


def test_a_source_that_does_not_run(tracker: Any, source: Any, caplog: Any) -> None:
    """A decorated function works before its tracker starts and after it has stopped; that is logged once."""
    problem = PhaseProtocolError("not started", action="enter", reason=Misuse.NOT_STARTED, fix="start()")

    def refuse(*_: Any) -> None:
        raise problem

    f = tracker.phase("f", filter="*", arguments="a")(lambda a: a)
    lanes, enter = source.lane_set, source.enter_phase
    source.lane_set, source.enter_phase = None, refuse
    assert [1, 2] == [f(1), f(2)]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "test_a_source_that_does_not_run.<locals>.<lambda>() was no phase. not started" in told
    source.lane_set, source.enter_phase = lanes, enter
    assert 1 == f(1)


def test_a_source_that_is_disabled(source: Any, tracker: Any, ended: list[PhaseHandle]) -> None:
    """With a source that gives the shared no-op, everything works and nothing is recorded."""
    source.lane_set, source.enter_phase = None, lambda *_: NOOP
    calls: list[Any] = []

    @tracker.phase("f", at_exit=lambda *a: calls.append(a), result=True, errors={ValueError: "full"})
    def f(a: int) -> float:
        return 1 / a

    @tracker.phase("g")
    async def g() -> int:
        with tracker.phase("b"):
            return 1

    assert (1.0, 1) == (f(1), asyncio.run(g()))
    with pytest.raises(ZeroDivisionError):
        f(0)
    assert ([], []) == (ended, calls)


# What a decorated function still is


def test_signature_and_names_are_kept(tracker: Any) -> None:
    """Whoever inspects the function sees the function."""

    def load(path: str, *, limit: int = 2) -> list[str]:
        """Load it."""
        return [path] * limit

    load.extra = 1  # type: ignore[attr-defined]
    decorated = tracker.phase("x")(load)
    assert inspect.signature(load) == inspect.signature(decorated)
    names = ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__", "extra")
    assert [getattr(load, name) for name in names] == [getattr(decorated, name) for name in names]
    assert load is decorated.__wrapped__
    assert inspect.isfunction(decorated)


async def _coroutine_function() -> None: ...


def _generator_function() -> Any:
    yield


async def _async_generator_function() -> Any:
    yield


@pytest.mark.parametrize("is_partial", [False, True])
@pytest.mark.parametrize("function", [_coroutine_function, _generator_function, _async_generator_function, len])
def test_kind_is_kept(tracker: Any, function: Any, is_partial: bool) -> None:
    """A decorated function is of the kind that it was, also beneath a partial."""
    given_function = functools.partial(function) if is_partial else function
    decorated = tracker.phase("x")(given_function)
    for question in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        assert question(function) == question(decorated)
    assert function.__name__ == decorated.__name__
    assert function.__doc__ == decorated.__doc__


decorated_for_pickle = phase(types.SimpleNamespace(lane_set=None, enter_phase=lambda *_: NOOP), "p")(  # type: ignore[arg-type]
    _coroutine_function
)


def test_a_decorated_function_pickles_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process pool may be given a decorated function: pickle finds it by its name."""
    module = types.ModuleType("of_the_test")
    monkeypatch.setitem(inspect.sys.modules, "of_the_test", module)  # type: ignore[attr-defined]
    decorated_for_pickle.__module__ = "of_the_test"
    module._coroutine_function = decorated_for_pickle  # type: ignore[attr-defined]
    assert decorated_for_pickle is pickle.loads(pickle.dumps(decorated_for_pickle))  # noqa: S301 - our own


def sent(function: types.FunctionType) -> types.FunctionType:
    """Return a function as those make it anew who pickle functions by value, such as Ray and joblib (cloudpickle)."""
    cells = [types.CellType(sent_value(cell.cell_contents)) for cell in function.__closure__ or ()]
    names = function.__globals__.keys() & set(function.__code__.co_names)
    namespace = {name: sent_value(function.__globals__[name]) for name in names}
    return types.FunctionType(function.__code__, namespace, None, function.__defaults__, tuple(cells))


def sent_value(value: Any) -> Any:
    """Return what a function refers to, as the other process sees it."""
    if isinstance(value, types.ModuleType):
        return value
    if isinstance(value, types.FunctionType) and "<locals>" in value.__qualname__:
        return sent(value)
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


@pytest.fixture
def ambient(source: Any) -> Iterator[None]:
    """Let the source be the ambient one, as a started tracker is."""
    _ambient.push(source)
    yield
    _ambient.pop(source)


@pytest.mark.parametrize("options", [{}, {"arguments": ("a", "b"), "filter": "p*", "errors": {OSError: "reference"}}])
def test_a_decorated_function_pickles_by_value(
    tracker: Any, ambient: None, ended: list[PhaseHandle], options: dict[str, Any]
) -> None:
    """Sent to another process without its module, it is a phase of the tracker that is ambient there."""
    del ambient

    def twice(a: int, *b: int) -> int:
        return a * 2 + len(b)

    async def twice_later(a: int, b: int) -> int:
        return a * 2 + b

    for decorate in (tracker.phase("p", **options), ambient_phase("p", **options)):
        assert 8 == sent(decorate(twice))(4)
        with pytest.raises(StopIteration, match=r"^9$"):
            sent(decorate(twice_later))(4, b=1).send(None)
    assert [("p", SUCCEEDED)] * 4 == told(ended)
    assert [{"a": 4, "b": []}] * 2 == [each._attributes for each in ended[::2]] or not options


def test_without_a_tracker_what_was_sent_does_nothing(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Where no tracker runs, a function that was pickled by value is only called."""
    assert (5, []) == (sent(tracker.phase("p")(lambda: 5))(), ended)


def test_a_late_phase_pickles_and_copies(tracker: Any, ambient: None, ended: list[PhaseHandle]) -> None:
    """An object that holds one can be sent, or copied as models are; a copy stays with its tracker."""
    del ambient
    late = tracker.phase("p")
    with pickle.loads(pickle.dumps(late)), copy.deepcopy(late), pickle.loads(pickle.dumps(ambient_phase))("q"):  # noqa: S301 - our own
        assert late._holder is copy.deepcopy(late)._holder
    assert ["p / p / q", "p / p", "p"] == [each.phase_path for each in ended]


def test_what_is_told_by_identity_keeps_it() -> None:
    """The no-op, and what is ambient without a tracker, are the same after a pickle."""
    for shared in (NOOP, _ambient.NOWHERE, _ambient.AMBIENT):
        assert shared is pickle.loads(pickle.dumps(shared))  # noqa: S301 - our own


def test_methods(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Methods of every kind work, decorated above or below."""

    class Loader:
        @tracker.phase("method")
        def method(self) -> Any:
            return type(self)

        @tracker.phase("static above")
        @staticmethod
        def static_above(a: int) -> int:
            return a

        @staticmethod
        @tracker.phase("static below")
        def static_below(a: int) -> int:
            return a

        @tracker.phase("class above")
        @classmethod
        def class_above(cls) -> Any:
            return cls

        @classmethod
        @tracker.phase("class below")
        def class_below(cls) -> Any:
            return cls

        @property
        @tracker.phase("getter")
        def getter(self) -> Any:
            return type(self)

        @tracker.phase
        @staticmethod
        def bare(a: int) -> int:
            return a

    loader = Loader()
    bound = tracker.phase("bound")(loader.method)
    assert [Loader] * 5 == [loader.method(), Loader.class_above(), loader.class_below(), loader.getter, bound()]
    assert [1, 2, 3] == [loader.static_above(1), Loader.static_below(2), loader.bare(3)]
    assert isinstance(Loader.__dict__["class_above"], classmethod)
    assert isinstance(Loader.__dict__["static_above"], staticmethod)
    bare_name = "test_methods.<locals>.Loader.bare"
    assert ["method", "class above", "class below", "getter", "bound / method", "bound"] == [
        each.phase_path for each in ended[:6]
    ]
    assert ["static above", "static below", bare_name] == [each.name for each in ended[6:]]


def test_an_abstract_method_stays_abstract(tracker: Any) -> None:
    """A class with a decorated abstract method cannot be instantiated."""

    class Base(abc.ABC):
        @tracker.phase("x")
        @abc.abstractmethod
        def method(self) -> None: ...

    with pytest.raises(TypeError, match="abstract"):
        Base()


class Callable_:  # noqa: N801 - a class of callable objects
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step: int) -> int:
        """Count."""
        self.calls += step
        return self.calls


class AsyncCallable:
    """Is called like a coroutine function."""

    async def __call__(self) -> int:
        """Answer."""
        return 1


def test_callable_objects(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A callable object keeps its state, and lends the name of its class."""
    counter = Callable_()
    decorated = tracker.phase(counter)
    asynchronous = tracker.phase("a")(AsyncCallable())
    assert (2, 5, 5, 1) == (decorated(2), decorated(step=3), counter.calls, asyncio.run(asynchronous()))
    assert inspect.iscoroutinefunction(asynchronous)
    assert ["Callable_", "Callable_", "a"] == [each.name for each in ended]
    assert f"{__name__}.Callable_" == function_name_of(ended[0])
    assert ("Callable_", "Count.", {"__wrapped__": counter}) == (
        decorated.__name__,
        decorated.__doc__,
        vars(decorated),
    )


def test_partials(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A partial, also one of a partial, is called like itself and named like its function."""

    def add(a: int, b: int, c: int = 0) -> int:
        return a + b + c

    decorated = tracker.phase(functools.partial(functools.partial(add, 1), c=5))
    assert 8 == decorated(2)
    assert ["test_partials.<locals>.add"] == [each.name for each in ended]
    assert ["b", "c"] == list(inspect.signature(decorated).parameters)


def test_a_cached_function(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Every call is a phase, also one that the cache answers, and the cache can still be asked and cleared."""

    @tracker.phase("f")
    @functools.lru_cache(maxsize=5)
    def f(a: int) -> int:
        return a + 1

    assert (2, 2) == (f(1), f(1))
    assert (1, 1, 5) == (f.cache_info().hits, f.cache_info().currsize, f.cache_parameters()["maxsize"])
    f.cache_clear()
    assert 0 == f.cache_info().currsize
    assert [("f", SUCCEEDED)] * 2 == told(ended)


def test_a_builtin(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A function without code stands where it is decorated."""
    decorated = tracker.phase("n")(builtins.sorted)
    line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    assert [1, 2] == decorated([2, 1])
    assert ("builtins.sorted", f"test_decorator.py:{line}") == (function_name_of(ended[0]), ended[0].location)


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        (Callable_, "Decorate its __init__ or __call__"),
        (property(len), "Put it beneath: @property on top"),
        (functools.cached_property(len), "Put it beneath: @cached_property on top"),
        (3, 'Write @tracker.phase("load") above a function'),
        (functools.partialmethod(len), 'Write @tracker.phase("load") above a function'),
    ],
)
def test_what_cannot_be_decorated(tracker: Any, wrong: Any, fix: str) -> None:
    """What would no longer be what it was is refused, with what to decorate instead."""
    with pytest.raises(TypeError, match=re.escape(fix)):
        tracker.phase("x")(wrong)
    with pytest.raises(TypeError, match=re.escape(fix)):
        tracker.phase(wrong)


def test_a_bare_decorator_with_options(tracker: Any) -> None:
    """A function where the name should be is told from a bare decorator."""
    with pytest.raises(ConfigurationError, match=re.escape("Write @tracker.phase(attributes=...)")):
        tracker.phase(len, attributes={})


def test_one_object_decorates_many(tracker: Any, ended: list[PhaseHandle]) -> None:
    """The same object decorates several functions and opens blocks as well."""
    late = tracker.phase("a")
    assert isinstance(late, LatePhase)
    first, second = late(lambda: 1), late(lambda: 2)
    with late:
        assert (1, 2) == (first(), second())
    assert ["a / a", "a / a", "a"] == [each.phase_path for each in ended]


# Coroutine functions


def test_a_coroutine_function(tracker: Any, ended: list[PhaseHandle], clock: ManualClock) -> None:
    """The phase lasts from the first step of the coroutine to its end, on its task's lane."""

    @tracker.phase("f")
    async def f(seconds: int) -> str:
        clock.advance(seconds)
        await asyncio.sleep(0)
        clock.advance(seconds)
        return "done"

    async def main() -> list[str]:
        return await asyncio.gather(f(1), f(10))

    assert ["done", "done"] == asyncio.run(main())
    assert [("f", SUCCEEDED)] * 2 == told(ended)
    assert [12, 21] == [each._ended_ns - each._entered_ns for each in ended]


def test_a_coroutine_never_awaited(lanes: LaneSet, tracker: Any, ended: list[PhaseHandle]) -> None:
    """It leaves no phase, and Python warns of it by its own name, once."""

    @tracker.phase("f")
    async def f() -> None: ...

    with pytest.warns(RuntimeWarning, match="'test_a_coroutine_never_awaited.<locals>.f' was never awaited") as caught:
        f()
    assert (1, [], {}) == (len(caught), ended, lanes.counts.to_dict())


def test_a_coroutine_dropped_midway(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A coroutine that is closed while it waits has been cancelled."""

    @tracker.phase("f")
    async def f() -> None:
        await asyncio.Future(loop=loop)

    loop = asyncio.new_event_loop()
    coroutine = f()
    coroutine.send(None)
    coroutine.close()
    loop.close()
    assert [("f", CANCELLED)] == told(ended)


def test_asyncio_cancellation(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A cancelled task cancels its phases, and is cancelled as ever."""

    @tracker.phase("f")
    async def f() -> None:
        await asyncio.Future()

    async def main() -> bool:
        task = asyncio.create_task(f())
        await asyncio.sleep(0)
        task.cancel("enough")
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return task.cancelled()

    assert asyncio.run(main())
    assert [("f", CANCELLED)] == told(ended)


def test_a_coroutine_that_handles_its_cancellation(tracker: Any, ended: list[PhaseHandle]) -> None:
    """Whoever returns although it was cancelled has succeeded."""

    @tracker.phase("f")
    async def f() -> int:
        try:
            await asyncio.Future()
        except asyncio.CancelledError:
            return 7
        return 0

    async def main() -> int:
        task = asyncio.create_task(f())
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert 7 == asyncio.run(main())
    assert [("f", SUCCEEDED)] == told(ended)


def test_trio_cancellation(tracker: Any, ended: list[PhaseHandle]) -> None:
    """A cancelled scope of trio cancels the phases in it."""

    @tracker.phase("f")
    async def f() -> None:
        await trio.sleep_forever()

    async def main() -> bool:
        with trio.CancelScope() as scope:
            scope.cancel()
            await f()
        return scope.cancelled_caught

    assert trio.run(main)
    assert [("f", CANCELLED)] == told(ended)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio_cancellation(tracker: Any, ended: list[PhaseHandle], backend: str) -> None:
    """A cancelled scope of anyio cancels the phases in it, each on its own task's lane, on both backends."""

    @tracker.phase("f")
    async def f() -> None:
        await anyio.sleep_forever()

    async def main() -> None:
        with tracker.phase("main"):
            async with anyio.create_task_group() as group:
                group.start_soon(f)
                group.start_soon(f)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    assert [("main / f", CANCELLED)] * 2 + [("main", SUCCEEDED)] == told(ended)


def test_arguments_are_not_kept_alive(tracker: Any) -> None:
    """A coroutine or generator that drops its argument drops the last reference to it."""

    class Batch: ...

    @tracker.phase("f")
    async def f(batch: Any) -> Any:
        seen = weakref.ref(batch)
        del batch
        return seen()

    @tracker.phase("g")
    def g(batch: Any) -> Any:
        seen = weakref.ref(batch)
        del batch
        yield seen()
        yield seen()

    seen = [asyncio.run(f(Batch())), *g(Batch())]
    assert [None, None, None] == seen


# All together

_steps = st.recursive(
    st.sampled_from(["return", "raise", "handled"]),
    lambda children: st.tuples(st.sampled_from(["block", "function", "coroutine", "generator"]), st.lists(children)),
    max_leaves=12,
)


@given(_steps)
def test_any_nesting_of_forms(plan: Any) -> None:  # noqa: C901 - one branch for each form
    """Whatever forms nest in whatever order, paths are the nesting, every phase ends once and the lane is empty."""
    lanes = PhaseRecorder().lane_set("s", 0)
    ended: list[PhaseHandle] = []
    lanes.exit_queues = (ended.append,)
    source = source_of(lanes)
    late = {form: phase(source, form) for form in ("block", "function", "coroutine", "generator")}
    expected: list[tuple[str, ...]] = []

    class PlannedError(Exception): ...

    def run(step: Any, path: tuple[str, ...]) -> None:  # noqa: C901 - likewise
        if step == "raise":
            raise PlannedError
        if step == "handled":
            with contextlib.suppress(PlannedError), late["block"]:
                expected.append((*path, "block"))
                raise PlannedError
        if isinstance(step, str):
            return
        form, children = step
        inside = (*path, form)
        expected.append(inside)

        def body() -> None:
            for child in children:
                run(child, inside)

        if form == "block":
            with late["block"]:
                body()
        elif form == "function":
            late["function"](body)()
        elif form == "coroutine":

            async def coroutine() -> None:
                body()

            with contextlib.suppress(StopIteration):
                late["coroutine"](coroutine)().send(None)
        else:

            def generator() -> Any:
                yield
                body()
                yield

            list(late["generator"](generator)())

    with contextlib.suppress(PlannedError):
        run(plan, ())
    assert sorted(expected) == sorted(each.path for each in ended)
    assert [] == list(lanes.open_phases())
    assert {} == lanes.counts.to_dict()
    assert lanes.carrier.current_phase() is None


@pytest.mark.parametrize("kind", ["plain", "result", "generator", "coroutine", "async generator"])
def test_decorated_functions_work_while_their_tracker_does_not_run(make_tracker: Any, kind: str) -> None:
    """A model is called before training and after it: each kind of function returns what it would without us."""
    told: list[Any] = []
    tracker = make_tracker(sinks=[told.append])

    @tracker.phase("step")
    def plain() -> int:
        return 1

    @tracker.phase("step", result=True, at_exit=lambda *_: None)
    def result() -> int:
        return 1

    @tracker.phase("step")
    def generator() -> Any:
        yield 1

    @tracker.phase("step")
    async def coroutine() -> int:
        return 1

    @tracker.phase("step")
    async def async_generator() -> Any:
        yield 1

    async def all_of_it() -> list[int]:
        return [item async for item in async_generator()]

    call: Any = {
        "plain": plain,
        "result": result,
        "generator": lambda: next(generator()),
        "coroutine": lambda: asyncio.run(coroutine()),
        "async generator": lambda: asyncio.run(all_of_it())[0],
    }[kind]
    before = call()
    with tracker:
        within = call()
    assert [1, 1, 1] == [before, within, call()]
    assert ["phase_enter", "phase_exit"] == [boundary.event_type for boundary in told]


def test_a_block_says_that_its_tracker_does_not_run(make_tracker: Any) -> None:
    """Whoever writes `with tracker.phase(...)` around nothing that runs has made a mistake, and is told."""
    tracker = make_tracker()
    for block in (tracker.phase("step"), tracker.phase("step", errors={ValueError: "full"})):
        with pytest.raises(PhaseProtocolError, match="has not started"), block:
            pass
