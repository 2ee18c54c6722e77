"""Phases in Ray: the caller's phase travels into a task or an actor's method, whose body is a phase beneath it.

Write `@carried` below `@ray.remote`, or on an actor's method, and give each call `**carry()`:

    @ray.remote
    @carried
    def tokenize(shard): ...

    tokenize.remote(shard, **carry())

Ray is imported when a carried function runs. `pip install 'stormphase[ray]'` brings it.
"""

from __future__ import annotations

import functools
import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from stormphase import _ambient
from stormphase._workers import worker
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stormphase._tracker import PhaseTracker

__all__ = ["ARGUMENT", "carried", "carry"]

ARGUMENT: Final = "stormphase_carrier"


def carry(tracker: PhaseTracker | None = None) -> dict[str, dict[str, str]]:
    """Return the keyword argument that takes the caller's current phase into a carried function.

    Thread- and task-safe. Costs what `tracker.carrier()` costs, some tens of microseconds, and some hundred bytes of
    the call.

    Args:
        tracker: whose phase; by default the ambient one's. None that runs gives an empty carrier, and no phase.
    """
    source: Any = _ambient.AMBIENT.here() if tracker is None else tracker
    carrier = getattr(source, "carrier", None)
    return {ARGUMENT: {} if carrier is None else carrier()}


def carried(
    function: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Any
) -> Callable[..., Any]:
    """Make a function's body a phase under the one that a call brings along; without one it is only called.

    The phase has the function's name, and as attributes which Ray task, actor and node it was: `ray.task_id`,
    `ray.actor_id`, `ray.node_id`, as far as there is one. What the body enters, prints and raises is in it. Its records
    are stored when the call returns, so that a worker that Ray ends later has lost none.

    Args:
        function: a task, or a method of an actor, `async` as well; no generator.
        name: of the phase, instead of the function's.
        options: for `stormphase.worker`, where the worker's store, journal, capture, bridge or sinks are not to be
            those of the caller; `bridge` and `store` may be functions without arguments, called in the worker.

    Raises:
        TypeError: if it is a class or a generator: a phase cannot be current on both sides of a `yield`.
        ConfigurationError: in the worker, if Ray is not installed there, or as `stormphase.worker` says.
    """
    if function is None:
        return functools.partial(carried, name=name, **options)
    if inspect.isclass(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        message = f"{function!r:.80} cannot be carried. Write @carried on a function, or on each method of an actor."
        raise TypeError(message)
    label = name or function.__name__
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_later(*args: Any, **kwargs: Any) -> Any:
            carrier = kwargs.pop(ARGUMENT, None)
            if not carrier:
                return await function(*args, **kwargs)
            async with worker(carrier, **_made(options)) as tracker:
                with tracker.enter_phase(label, _ray_facts()):
                    return await function(*args, **kwargs)

        return _with_argument(call_later, function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        carrier = kwargs.pop(ARGUMENT, None)
        if not carrier:
            return function(*args, **kwargs)
        with worker(carrier, **_made(options)) as tracker, tracker.enter_phase(label, _ray_facts()):
            return function(*args, **kwargs)

    return _with_argument(call, function)


def _with_argument(call: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, whose signature says that it takes the carrier: Ray checks the arguments where it is called."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    place = len(parameters)
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        place -= 1
    parameters.insert(place, inspect.Parameter(ARGUMENT, inspect.Parameter.KEYWORD_ONLY, default=None))
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect looks for it
    # Ray looks through it at methods, and would refuse the argument; it also loses the signature where it pickles the
    # function, which then takes any arguments.
    del call.__wrapped__  # type: ignore[attr-defined]  # by functools.wraps
    return call


def _made(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, those made that are to be made in the worker: stores and bridges cannot be sent there."""
    made = dict(options)
    for name in ("store", "bridge"):
        if callable(made.get(name)):
            made[name] = made[name]()
    return made


def _ray_facts() -> dict[str, str]:
    """Return which Ray task, actor and node this is."""
    try:
        ray = import_module("ray")
    except ImportError:
        raise ConfigurationError(
            "Ray is not installed.", setting="ray", fix="Install it with: pip install 'stormphase[ray]'"
        ) from None
    context = ray.get_runtime_context()
    found = {"ray.task_id": context.get_task_id(), "ray.actor_id": context.get_actor_id()}
    found["ray.node_id"] = context.get_node_id()
    return {name: str(value) for name, value in found.items() if value}
