"""`tracker.phase(...)` and `stormphase.phase(...)`: a phase to be entered later, as a block or around a function."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from stormphase._ambient import AMBIENT, NOWHERE, Fixed, Holder, Nowhere, PhaseSource
from stormphase._noop import NOOP
from stormphase._options import PLAIN, Options
from stormphase._paths import normalise_name
from stormphase._recipe import Recipe
from stormphase._sites import through
from stormphase._wrappers import base_of, dressed, qualname_of, site_of, wrapped
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from stormphase._filters import AskFilter
    from stormphase._options import AtExit, ErrorPolicy
    from stormphase._phase import PhaseHandle

F = TypeVar("F", bound=Callable[..., Any])

_FORGET_AT: Final = 64

_getframe = sys._getframe


class LatePhase:
    """A phase that is entered by each `with` or `async with` block, and by each call of each function it decorates.

    One object serves any number of blocks and calls, nested, and in any threads and tasks at once.
    """

    __slots__ = ("__weakref__", "_forget_at", "_holder", "_name", "_open", "_options", "_recipe")

    def __init__(self, holder: Holder, name: str | None, options: Options) -> None:
        """Enter nothing yet."""
        self._holder = holder
        self._name = name
        self._options = options
        self._recipe: Recipe | None = None
        self._open: dict[PhaseHandle, int] = {}
        self._forget_at = _FORGET_AT

    def __call__(self, function: F, /) -> F:
        """Return `function` with every call of it a phase, of the same kind and with the same signature.

        A generator's phase is paused while it is suspended at a `yield`; the phase of a function that returns an
        awaitable ends when that does, or at the return if it was written in C. A method, static method or class method
        may be decorated above or below. Where it is pickled by value, as Ray and joblib do, its calls go to the tracker
        that is ambient in the process where they are made, or nowhere. While the tracker does not run a call is no
        phase; that is logged once a function.

        Raises:
            TypeError: if it is a class, a property or nothing that can be called; the message says what to decorate.
            ConfigurationError: if an option does not fit the function.
        """
        method: Any = function
        if isinstance(method, (staticmethod, classmethod)):
            return type(method)(self(method.__func__))  # type: ignore[return-value]  # of the same kind
        _check_callable(function)
        base = base_of(function)
        frame = _getframe(1)
        site = site_of(function, base, frame)
        name = qualname_of(function) if self._name is None else self._name
        recipe = Recipe(self._holder, name, self._options, function, site)
        return dressed(wrapped(recipe, function, base), function, base)  # type: ignore[return-value]  # of the same kind

    def __enter__(self) -> PhaseHandle:
        """Enter a phase on the caller's lane and return its handle.

        Raises:
            PhaseProtocolError: if the tracker does not run.
            PhaseNameError: if the name is blank or not a string.
            ConfigurationError: if there is no name, or an option that only a decorated function can have.
        """
        source = self._holder.source
        if source is NOWHERE:
            return NOOP
        return self._enter(source, _getframe(1))

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the phase that this block entered; never swallows the block's exception, nor replaces it."""
        if self._open:
            self._leave(_getframe(1), exc_type, exc, traceback)

    async def __aenter__(self) -> PhaseHandle:
        """Enter as `__enter__` does, on the lane of the awaiting task."""
        source = self._holder.source
        if source is NOWHERE:
            return NOOP
        return self._enter(source, _getframe(1))

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End as `__exit__` does."""
        if self._open:
            self._leave(_getframe(1), exc_type, exc, traceback)

    def _enter(self, source: PhaseSource, frame: FrameType) -> PhaseHandle:
        name = self._name
        if self._options is PLAIN and name is not None:
            phase = source.enter_phase(name)
        else:
            if self._recipe is None:
                self._recipe = self._block_recipe()
            phase = self._recipe.enter(source, (), {})
        if phase is not NOOP:
            phase._code = frame.f_code
            phase._instruction = frame.f_lasti if type(phase._instruction) is int else through(frame)
            self._open[phase] = id(frame)
            if len(self._open) >= self._forget_at:
                self._forget_ended()
        return phase

    def _forget_ended(self) -> None:
        """Forget blocks that will never be left: a signal handler raised before they had begun, say."""
        for phase in tuple(self._open):
            if phase.closed:
                self._open.pop(phase, None)
        self._forget_at = max(_FORGET_AT, 2 * len(self._open))

    def _block_recipe(self) -> Recipe:
        if self._name is None:
            raise ConfigurationError(
                "A with block's phase needs a name.", setting="name", fix='Write with tracker.phase("load"): ...'
            )
        for setting, value in (("arguments", self._options.arguments), ("result", self._options.result_key)):
            if value:
                raise ConfigurationError(
                    f"{setting} is for decorated functions, and this is a with block.",
                    setting=setting,
                    fix="Set the attribute in the block: phase.set_attribute(key, value).",
                )
        return Recipe(self._holder, self._name, self._options)

    def _leave(
        self,
        frame: FrameType,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        phase = self._entered_by(frame, exc)
        if phase is None:
            return
        recipe = self._recipe
        if recipe is not None and recipe.has_ending:
            if exc is None:
                recipe.note_result(phase, (), {}, None)
            else:
                recipe.note_error(phase, (), {}, exc)
        frame_id = self._open.pop(phase)
        try:
            phase.__exit__(exc_type, exc, traceback)
        except BaseException:
            if not phase.closed:  # Something is open inside it: the block can be left once that is put right.
                self._open[phase] = frame_id
            raise

    def _entered_by(self, frame: FrameType, exc: BaseException | None) -> PhaseHandle | None:
        """Return the phase that the block in `frame` entered: with one object in many places it could be another's.

        A `with` statement is left in the frame that it was entered in, whoever makes it leave. An `ExitStack` is not:
        its last phase on the caller's lane is meant or, if there is none, the only one that is open.
        """
        frame_id = id(frame)
        try:
            for phase in reversed(self._open):
                if self._open[phase] == frame_id and phase._code is frame.f_code:
                    return phase
        except (RuntimeError, KeyError):  # Another thread entered or left in between: look at a copy.
            for phase, entered_id in reversed(tuple(self._open.items())):
                if entered_id == frame_id and phase._code is frame.f_code:
                    return phase
        self._forget_ended()
        left = tuple(self._open)
        theirs = [phase for phase in left if phase._lane.is_owned_by(phase._lane.lanes.lane_of_caller())]
        if theirs:
            # Of greenlets' lanes the caller's own comes first.
            return max(reversed(theirs), key=lambda phase: phase._lane is phase._lane.lanes.lane_of_caller())
        # Of another task, or finalised by another thread; or this block was a no-op when it was entered.
        is_its_to_end = isinstance(exc, GeneratorExit) or (left and left[0]._lane.thread_id == get_ident())
        return left[0] if len(left) == 1 and is_its_to_end else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what was told, and nothing that is open."""
        return type(self), (self._holder, self._name, self._options)

    def __repr__(self) -> str:
        """Show the name."""
        return f"<{type(self).__name__} {self._name!r}>"


@overload
def phase(source: PhaseSource, name: F, /) -> F: ...


@overload
def phase(
    source: PhaseSource,
    name: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    sync: bool = False,
    timeout_s: float | None = None,
    *,
    arguments: Sequence[str] = (),
    at_exit: AtExit | None = None,
    result: bool | str = False,
    filter: str | AskFilter | None = None,
    level: int | str | None = None,
    errors: Mapping[type[BaseException], ErrorPolicy] | None = None,
    capture: bool | Literal["fd"] | None = None,
) -> LatePhase: ...


def phase(
    source: PhaseSource,
    name: str | F | None = None,
    attributes: Any = None,
    sync: bool = False,
    timeout_s: float | None = None,
    **options: Any,
) -> LatePhase | F:
    """Return a phase to be entered later, by a `with` or `async with` block or by every call of a decorated function.

    Args:
        source: where it is entered; for `tracker.phase` the tracker.
        name: one name, not a path; by default the decorated function's qualified name. `@tracker.phase` may also stand
            bare above a function.
        attributes: fixed ones, copied now.
        sync: whether ranks wait for each other in it, as in a collective.
        timeout_s: how many seconds it may be open, as `enter_phase` has it.
        arguments: names of parameters whose values become attributes at enter; `config.depth` for an attribute of one.
        at_exit: called at the end with the bound arguments, the result (None if it raised) and the exception (or None);
            returns more attributes, or None. If it raises, that is counted as `at_exit_errors`.
        result: True, or an attribute's name: the result becomes an attribute, bounded.
        filter: a pattern of names as in `fnmatch`, or a callable given name and attributes; asked once, at enter. Where
            it says no the sinks never hear of a success; they do of a failure.
        level: a number, or a name as in `logging`; below the tracker's level, likewise.
        errors: what is made of an exception, by class, the most specific one first: "full", "reference" (never with a
            traceback) or "not_a_failure".
        capture: True for this phase's output and that of those inside it, "fd" also for what C libraries and
            subprocesses write, False for none; by default what the phase around it has, else the tracker.
        **options: those named above.

    Raises:
        ConfigurationError: if an option cannot work.
        PhaseNameError: if the name is blank; not with `on_misuse="record"`, which counts that at enter.
        TypeError: if `attributes` is not a mapping, `metadata` is given, or the bare decorator stands above what is no
            function.
    """
    holder = AMBIENT if isinstance(source, _ForLibraries) else Fixed(source)
    if attributes is not None:
        options["attributes"] = attributes
    if sync:
        options["sync"] = sync
    if timeout_s is not None:
        options["timeout_s"] = timeout_s
    if name is None or isinstance(name, str):
        if name is not None and (not name or name.isspace()):
            _refuse_blank(name, holder.source)
        return LatePhase(holder, name, Options.of(**options) if options else PLAIN)
    if options:
        raise ConfigurationError(
            f"The name must be a string, not {name!r:.60}.",
            setting="name",
            fix="Write @tracker.phase(attributes=...) above the function, or @tracker.phase and nothing else.",
        )
    return LatePhase(holder, None, PLAIN)(name)


def _refuse_blank(name: str, source: PhaseSource) -> None:
    """Raise what entering it would raise, here where it is written; a tracker that only records counts it at enter."""
    lanes = source.lane_set
    settings = getattr(source, "_settings", None)
    if "record" not in (getattr(lanes, "on_misuse", None), getattr(settings, "on_misuse", None)):
        normalise_name(name)


class _ForLibraries(Nowhere):
    """Stands for whichever tracker is ambient when a phase is entered."""

    __slots__ = ()

    phase = phase  # By its own name, or a pickle would not find it.

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as what it is, and not as `NOWHERE`."""
        return type(self), ()


ambient_phase = _ForLibraries().phase


def _check_callable(function: Any) -> None:
    """Refuse what would be wrapped wrongly.

    Raises:
        TypeError: with what to decorate instead.
    """
    name = qualname_of(function)
    if isinstance(function, type):
        message = (
            f"A phase cannot decorate the class {name}: it would no longer be a class. Decorate its __init__ or "
            f'__call__, or write with tracker.phase("{name}"): around what makes it.'
        )
        raise TypeError(message)
    if isinstance(function, (property, functools.cached_property)):
        message = (
            f"A phase cannot decorate a {name}. Put it beneath: @{name} on top, then @tracker.phase(...), "
            "and then the function."
        )
        raise TypeError(message)
    if not callable(function):
        message = (
            f"A phase decorates functions, methods and other callables, and {function!r:.60} is none. "
            'Write @tracker.phase("load") above a function, or with tracker.phase("load"): around a block.'
        )
        raise TypeError(message)
