"""The wrappers that a decorator puts around functions, one for each kind; each is of the kind that it wraps.

A wrapper adds one frame to a traceback and holds nothing that the function would not: no item that was yielded, no
value that was sent, and no exception once it has passed.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, Final

from stormphase._ambient import NOWHERE
from stormphase._awaitables import hand_over, is_awaitable
from stormphase._noop import NOOP
from stormphase._recipe import FunctionSite
from stormphase._suspension import as_thrown, begin, carry_on, come_back, suspend
from stormphase.exceptions import PhaseProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from stormphase._recipe import Recipe

_NO_ARGS: Final[tuple[Any, ...]] = ()
# Most results are one of these, and to find no `__await__` in a class costs as much as the clock.
_NO_AWAITABLES: Final = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset})
_OF_CACHES: Final = ("cache_clear", "cache_info")  # What `functools.lru_cache` offers beside its attributes.


def base_of(function: Any) -> Any:
    """Return the function beneath partials and bound methods; for a callable object its class's `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__code__"):
        call = getattr(type(function), "__call__", None)  # noqa: B004 - not whether it can be called, but what is
        if hasattr(call, "__code__"):
            return call
    return function


def qualname_of(function: Any) -> str:
    """Return the name by which people know a function; of a callable object, its class's."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else type(function).__qualname__


def site_of(function: Callable[..., Any], base: Any, decorated_in: FrameType) -> FunctionSite:
    """Return where a function is defined, under its full name; of one without code, where it is decorated."""
    code = getattr(base, "__code__", decorated_in.f_code)
    is_of_its_own = code is not decorated_in.f_code
    module = getattr(base, "__module__", None)
    name = qualname_of(function)
    return FunctionSite(
        code.co_filename,
        code.co_firstlineno if is_of_its_own else decorated_in.f_lineno,
        f"{module}.{name}" if isinstance(module, str) else name,
    )


def dressed(wrapper: Callable[..., Any], function: Callable[..., Any], base: Any) -> Callable[..., Any]:
    """Give a wrapper the name, documentation, annotations and attributes of what it wraps."""
    for method in _OF_CACHES:
        if hasattr(function, method):
            setattr(wrapper, method, getattr(function, method))
    if function is base or inspect.ismethod(function):
        return functools.update_wrapper(wrapper, function)
    # A partial or another callable object has attributes of its class and a state of its own: neither is a function's.
    functools.update_wrapper(wrapper, base, updated=())
    wrapper.__qualname__ = qualname_of(function)
    wrapper.__name__ = wrapper.__qualname__.rpartition(".")[2]
    wrapper.__wrapped__ = function  # type: ignore[attr-defined]  # as functools does
    return wrapper


def wrapped(recipe: Recipe, function: Callable[..., Any], base: Any) -> Callable[..., Any]:
    """Return a function of the same kind as `function` whose calls are phases.

    Args:
        recipe: how the phases are entered and described.
        function: what is called.
        base: the function beneath it, which tells the kind: that of a partial, or the class's `__call__`.
    """
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(base):
        return _coroutine_function(recipe, function)
    if inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(base):
        return _async_generator_function(recipe, function)
    if inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(base):
        if base.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE:
            return _generator_based_coroutine_function(recipe, function)
        return _generator_function(recipe, function)
    plainly = recipe.plainly
    return _function(recipe, function) if plainly is None else _plain_function(recipe, plainly, function)


def _plain_function(recipe: Recipe, plainly: tuple[Any, ...], function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function whose phase has no more to it than name and fixed attributes: all on one page, for speed."""
    holder = recipe.holder
    name, attributes, sync, code = plainly

    def call(*args: Any, **kwargs: Any) -> Any:
        source = holder.source
        if source is NOWHERE:
            return function(*args, **kwargs)
        try:
            phase = source.enter_phase(name, attributes, sync)
        except PhaseProtocolError as problem:
            phase = recipe.no_phase(problem)
        if phase is not NOOP:
            phase._code = code
            phase._instruction = 0
        # What `with phase:` does, without a call of its `__enter__`: that is a tenth of the price.
        try:
            result = function(*args, **kwargs)
            if type(result) not in _NO_AWAITABLES and is_awaitable(result):
                result = hand_over(recipe, phase, result, args, kwargs)
        except BaseException as error:
            phase.__exit__(type(error), error, error.__traceback__)
            raise
        phase.__exit__(None, None, None)
        return result

    return call


def _function(recipe: Recipe, function: Callable[..., Any]) -> Callable[..., Any]:
    holder = recipe.holder

    def call(*args: Any, **kwargs: Any) -> Any:
        source = holder.source
        if source is NOWHERE:
            return function(*args, **kwargs)
        with recipe.enter(source, args, kwargs) as phase:
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                recipe.note_error(phase, args, kwargs, error)
                raise
            if type(result) not in _NO_AWAITABLES and is_awaitable(result):
                return hand_over(recipe, phase, result, args, kwargs)
            recipe.note_result(phase, args, kwargs, result)
            return result

    return call


def _coroutine_function(recipe: Recipe, function: Callable[..., Any]) -> Callable[..., Any]:
    holder = recipe.holder
    keeps_arguments = recipe.keeps_arguments

    async def call(*args: Any, **kwargs: Any) -> Any:
        source = holder.source
        if source is NOWHERE:
            return await function(*args, **kwargs)
        with recipe.enter(source, args, kwargs) as phase:
            try:
                coroutine = function(*args, **kwargs)
                if not keeps_arguments:
                    args, kwargs = _NO_ARGS, {}
                result = await coroutine
            except BaseException as error:
                recipe.note_error(phase, args, kwargs, error)
                raise
            recipe.note_result(phase, args, kwargs, result)
            return result

    return call


def _generator_based_coroutine_function(recipe: Recipe, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what `types.coroutine` made: it suspends as coroutines do, with its phase open on the task's lane."""
    holder = recipe.holder

    def call(*args: Any, **kwargs: Any) -> Any:
        source = holder.source
        if source is NOWHERE:
            return (yield from function(*args, **kwargs))
        with recipe.enter(source, args, kwargs) as phase:
            try:
                result = yield from function(*args, **kwargs)
            except BaseException as error:
                recipe.note_error(phase, args, kwargs, error)
                raise
            recipe.note_result(phase, args, kwargs, result)
            return result

    return types.coroutine(call)


def _generator_function(recipe: Recipe, function: Callable[..., Any]) -> Callable[..., Any]:
    holder = recipe.holder
    keeps_arguments = recipe.keeps_arguments

    def call(*args: Any, **kwargs: Any) -> Any:
        source = holder.source
        if source is NOWHERE:
            return (yield from function(*args, **kwargs))
        with recipe.enter(source, args, kwargs) as phase:
            try:
                generator = function(*args, **kwargs)
                if not keeps_arguments:
                    args, kwargs = _NO_ARGS, {}
                step = generator.send
                passing: list[Any] = [None]  # Popped as it is passed on, so that this frame holds nothing of it.
                while True:
                    passing.append(step(passing.pop()))
                    suspended = suspend(phase)
                    is_closing = False
                    try:
                        passing.append((yield passing.pop()))
                        step = generator.send
                    except BaseException as thrown:  # noqa: BLE001 - passed on
                        passing.append(as_thrown(thrown))
                        is_closing = isinstance(thrown, GeneratorExit)
                        step = generator.throw
                    carry_on(suspended, is_closing=is_closing)
            except StopIteration as stop:
                result = stop.value
            except BaseException as error:
                recipe.note_error(phase, args, kwargs, error)
                come_back(phase, error)
                raise
            recipe.note_result(phase, args, kwargs, result)
            come_back(phase, None)
            return result

    return call


def _async_generator_function(recipe: Recipe, function: Callable[..., Any]) -> Callable[..., Any]:
    holder = recipe.holder
    keeps_arguments = recipe.keeps_arguments

    async def call(*args: Any, **kwargs: Any) -> Any:
        source = holder.source
        with NOOP if source is NOWHERE else recipe.enter(source, args, kwargs) as phase:
            try:
                generator = function(*args, **kwargs)
                if not keeps_arguments:
                    args, kwargs = _NO_ARGS, {}
                step = functools.partial(begin, generator)
                passing: list[Any] = [None]  # As in `_generator_function`.
                while True:
                    passing.append(await step(passing.pop()))
                    suspended = suspend(phase)
                    is_closing = False
                    try:
                        passing.append((yield passing.pop()))
                        step = generator.asend
                    except BaseException as thrown:  # noqa: BLE001 - passed on
                        passing.append(as_thrown(thrown))
                        is_closing = isinstance(thrown, GeneratorExit)
                        step = generator.athrow
                    carry_on(suspended, is_closing=is_closing)
            except StopAsyncIteration:
                pass
            except BaseException as error:
                recipe.note_error(phase, args, kwargs, error)
                come_back(phase, error)
                raise
            recipe.note_result(phase, args, kwargs, None)
            come_back(phase, None)

    return call
