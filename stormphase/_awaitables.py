"""Functions that return an awaitable: the phase ends when that does, and until then is on no lane.

A future or task stays the very object that it is, and tells us when it is done. A coroutine or another awaitable is
handed out in a wrapper that looks and behaves like it; the one who awaits it owns the phase from then on. What is
never awaited ends its phase as ABANDONED when it is dropped, and Python warns of it as ever.

An awaitable written in C that is neither, such as a reference of Ray's, is returned as it is, and the phase ends with
the call: C code reads such objects by their layout in memory, and a wrapper in its place would crash the process.
"""

from __future__ import annotations

import sys
import types
import weakref
from inspect import CO_ITERABLE_COROUTINE
from typing import TYPE_CHECKING, Any, Final

from stormphase import _exits
from stormphase._model import PhaseStatus
from stormphase._noop import NOOP

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from typing import TypeAlias

    from stormphase._phase import PhaseHandle
    from stormphase._recipe import Recipe

    Steps: TypeAlias = Generator[Any, Any, Any]

_PAUSED: Final = PhaseStatus.PAUSED
_MISSING: Final = object()
_TYPE_IS_MADE_BY_PYTHON: Final = 1 << 9  # CPython's Py_TPFLAGS_HEAPTYPE; some types made in C have it as well
_OWN_SLOTS: Final = ("_phased_awaitable", "_phased_call", "_phased_is_awaited")
_NEVER_AWAITED: Final = "its awaitable was dropped and never awaited"
_NEVER_DONE: Final = "its future was dropped before it was done"

# What a class may define and Python looks up there only: a wrapper of its instances defines the same.
_PASSED_ON: Final = (
    "__aexit__",
    "__aiter__",
    "__anext__",
    "__bool__",
    "__call__",
    "__contains__",
    "__enter__",
    "__exit__",
    "__getitem__",
    "__iter__",
    "__len__",
    "__next__",
    "__setitem__",
)


class Call:
    """One call of a decorated function whose phase outlives it: the phase, and what is needed to end it well."""

    __slots__ = ("_args", "_kwargs", "_recipe", "phase")

    def __init__(self, recipe: Recipe, phase: PhaseHandle, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Keep the arguments only if something will ask for them."""
        self.phase = phase
        self._recipe = recipe
        self._args = args if recipe.keeps_arguments else ()
        self._kwargs = kwargs if recipe.keeps_arguments else {}

    def take_over(self) -> bool:
        """Put the phase on the caller's lane; False if there it cannot be, since it has ended or we are a fork."""
        phase = self.phase
        lanes = phase._lane.lanes
        if phase._status is not _PAUSED or phase._lane.is_inherited or lanes.lane_of_caller() is None:
            return False
        phase._extra_or_new().released = False
        return lanes.resume(phase, must_own=False)

    def end(self, result: Any, error: BaseException | None) -> None:
        """End the phase with what came of the call, as whoever took it over; one that nobody could is left alone."""
        if error is None:
            self._recipe.note_result(self.phase, self._args, self._kwargs, result)
        else:
            self._recipe.note_error(self.phase, self._args, self._kwargs, error)
        self.phase._lane.lanes.leave(self.phase, error, is_unwinding=True)

    def abandon(self, why: str) -> None:
        """End the phase as ABANDONED, if it has not ended; from any thread."""
        phase = self.phase
        if phase._status is _PAUSED and not phase._lane.is_inherited:
            _exits.abandon_parked(phase._lane.lanes, phase, why)


def is_awaitable(value: object) -> bool:
    """Whether `await value` is allowed."""
    kind = type(value)
    if hasattr(kind, "__await__"):
        return True
    return kind is types.GeneratorType and bool(value.gi_code.co_flags & CO_ITERABLE_COROUTINE)  # type: ignore[attr-defined]  # just found to be a generator


def hand_over(
    recipe: Recipe, phase: PhaseHandle, awaitable: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Let the phase end when `awaitable` does; returns what the caller gets in its place."""
    if phase is NOOP:
        return awaitable
    kind = type(awaitable)
    # Asked of the class first, as asyncio does: an awaitable's own `__getattr__` may do anything.
    is_future = hasattr(kind, "_asyncio_future_blocking") and awaitable._asyncio_future_blocking is not None
    if not is_future and not _can_be_wrapped(kind):
        recipe.note_result(phase, args, kwargs, awaitable)
        return awaitable
    call = Call(recipe, phase, args, kwargs)
    if is_future and awaitable.done():
        call.end(*_outcome_of(awaitable))
        return awaitable
    lanes = phase._lane.lanes
    lanes.release(phase)
    if phase._status is not _PAUSED:
        # Something was left open inside it, and the tracker only records: the block around us ends it.
        return awaitable
    if is_future:
        awaitable.add_done_callback(_Completion(call))
        return awaitable
    return _wrapper_class(kind)(call, awaitable)


def _can_be_wrapped(kind: type) -> bool:
    """Whether all who may be given an instance go by its methods: it is a coroutine, or its class is Python only."""
    if _has_steps(kind):
        return True
    is_python = all(base.__flags__ & _TYPE_IS_MADE_BY_PYTHON for base in kind.__mro__ if base is not object)
    return is_python and isinstance(getattr(kind, "__await__", None), types.FunctionType)


def _has_steps(kind: type) -> bool:
    return all(hasattr(kind, name) for name in ("send", "throw", "close"))


def _outcome_of(future: Any) -> tuple[Any, BaseException | None]:
    """Return a done future's result and exception, and leave it as unread as it was: asyncio warns of unread ones."""
    if future.cancelled():
        return None, sys.modules["asyncio"].CancelledError()
    error: Any = getattr(future, "_exception", _MISSING)
    if error is _MISSING:
        error = future.exception()
    return (future.result(), None) if error is None else (None, error)


class _Completion:
    """Ends the phase when its future is done; dropped together with a future that never will be."""

    __slots__ = ("__weakref__", "_call")

    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self, future: Any) -> None:
        if self._call.take_over():
            self._call.end(*_outcome_of(future))

    def __del__(self) -> None:
        self._call.abandon(_NEVER_DONE)


class _PhasedAwaitable:
    """Looks like the awaitable it stands for, and has the phase on the awaiting lane while it is awaited."""

    __slots__ = ("__weakref__", *_OWN_SLOTS)

    _phased_awaitable: Any
    _phased_call: Call
    _phased_is_awaited: bool

    def __init__(self, call: Call, awaitable: Any) -> None:
        write = object.__setattr__
        write(self, "_phased_is_awaited", False)  # noqa: FBT003 - how object sets an attribute
        write(self, "_phased_awaitable", awaitable)
        write(self, "_phased_call", call)  # Last: `__del__` goes by it, also if a signal handler raises in here.

    def __await__(self) -> Steps:
        return self._phased_within(_steps_of)

    def _phased_within(self, begin: Callable[[Any], Steps]) -> Steps:
        """Return the steps that `begin` gives, within the phase if this is the first time."""
        if self._phased_is_awaited:
            return begin(self._phased_awaitable)
        object.__setattr__(self, "_phased_is_awaited", True)
        return _within_phase(self._phased_call, begin, self._phased_awaitable)

    def __del__(self) -> None:
        call = getattr(self, "_phased_call", None)
        if call is not None and not self._phased_is_awaited:
            call.abandon(_NEVER_AWAITED)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._phased_awaitable)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN_SLOTS:  # Not set yet, for the same reason.
            raise AttributeError(name)
        return getattr(self._phased_awaitable, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._phased_awaitable, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._phased_awaitable, name)

    def __dir__(self) -> list[str]:
        return dir(self._phased_awaitable)

    def __repr__(self) -> str:
        return repr(self._phased_awaitable)


class _PhasedCoroutine(_PhasedAwaitable):
    """The same for what has `send`, `throw` and `close`, so that a task can be made of it."""

    __slots__ = ("_phased_steps",)

    _phased_steps: Any

    def __init__(self, call: Call, awaitable: Any) -> None:
        super().__init__(call, awaitable)
        object.__setattr__(self, "_phased_steps", None)

    def send(self, value: Any) -> Any:
        if self._phased_steps is None:
            object.__setattr__(self, "_phased_steps", self.__await__())
        return self._phased_steps.send(value)

    def throw(self, *details: Any) -> Any:
        if self._phased_steps is not None:
            return self._phased_steps.throw(*details)
        is_first = not self._phased_is_awaited
        object.__setattr__(self, "_phased_is_awaited", True)
        try:
            return self._phased_awaitable.throw(*details)
        except BaseException as error:
            if is_first and self._phased_call.take_over():
                self._phased_call.end(None, error)
            raise

    def close(self) -> Any:
        if self._phased_steps is not None:
            return self._phased_steps.close()
        return self._phased_awaitable.close()


def _within_phase(call: Call, begin: Callable[[Any], Steps], awaitable: Any) -> Steps:
    """Go through the awaitable's steps with the phase on the lane of whoever awaits it."""
    if not call.take_over():
        result: Any = yield from begin(awaitable)
        return result
    try:
        result = yield from begin(awaitable)
    except BaseException as error:
        call.end(None, error)
        raise
    call.end(result, None)
    return result


def _steps_of(awaitable: Any) -> Steps:
    """Return what `await awaitable` goes through; a generator that is a coroutine goes through itself."""
    kind = type(awaitable)
    steps: Steps = awaitable if kind is types.GeneratorType else kind.__await__(awaitable)
    return steps


class _Entering:
    """Awaits the `__aenter__` of what is awaitable and a context manager in one, as many network clients return."""

    __slots__ = ("_wrapper",)

    def __init__(self, wrapper: _PhasedAwaitable) -> None:
        self._wrapper = wrapper

    def __await__(self) -> Steps:
        return self._wrapper._phased_within(lambda awaitable: _steps_of(type(awaitable).__aenter__(awaitable)))


def _enter_within_phase(wrapper: _PhasedAwaitable) -> _Entering:
    return _Entering(wrapper)


_wrapper_classes: weakref.WeakKeyDictionary[type, type[_PhasedAwaitable]] = weakref.WeakKeyDictionary()


def _wrapper_class(kind: type) -> type[_PhasedAwaitable]:
    """Return the class of wrappers for instances of `kind`, which passes on what Python looks up in classes."""
    found = _wrapper_classes.get(kind)
    if found is None:
        base = _PhasedCoroutine if _has_steps(kind) else _PhasedAwaitable
        passed_on: dict[str, Any] = {name: _passing_on(name) for name in _PASSED_ON if hasattr(kind, name)}
        if hasattr(kind, "__aenter__"):
            passed_on["__aenter__"] = _enter_within_phase
        found = type(kind.__name__, (base,), {**passed_on, "__slots__": ()})
        _wrapper_classes[kind] = found
    return found


def _passing_on(name: str) -> Callable[..., Any]:
    def pass_on(self: _PhasedAwaitable, *args: Any) -> Any:
        awaitable = self._phased_awaitable
        return getattr(type(awaitable), name)(awaitable, *args)

    return pass_on
