"""How the phases of one with-block object or one decorated function are entered and described."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, cast

from stormphase._enter import QuietName
from stormphase._noop import NOOP
from stormphase._options import ArgumentReader, signature_of
from stormphase.exceptions import ConfigurationError, Misuse, PhaseProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import CodeType

    from stormphase._ambient import Holder, PhaseSource
    from stormphase._options import Options
    from stormphase._phase import PhaseHandle

AT_EXIT_ERRORS: Final = "at_exit_errors"
CAPTURE_REFUSED: Final = "capture_refused"
_NOT_RUNNING: Final = (Misuse.NOT_STARTED, Misuse.STOPPED)
_log: Final = logging.getLogger("stormphase")


class FunctionSite:
    """Stands in a phase's `_code` for a decorated function as a whole: where it is defined, and its full name.

    A slot that is written anyway carries it: the name in the phase's `PhaseExtra` would double the price of a call.
    """

    __slots__ = ("co_filename", "co_firstlineno", "co_name", "function_name")

    def __init__(self, co_filename: str, co_firstlineno: int, function_name: str) -> None:
        """Keep what a code object would know."""
        self.co_filename = co_filename
        self.co_firstlineno = co_firstlineno
        self.co_name = function_name.rpartition(".")[2]
        self.function_name = function_name

    def co_lines(self) -> Iterator[tuple[int, int, int | None]]:
        """Yield nothing: the phase stands on the function's first line."""
        return iter(())


def function_name_of(phase: PhaseHandle) -> str | None:
    """Return the full name of the decorated function whose call the phase is, or None: OTel's `code.function.name`."""
    site: object = phase._code
    return site.function_name if isinstance(site, FunctionSite) else None


class Recipe:
    """All that is known before a phase is entered: its name, its options and, for a decorator, the function.

    Thread- and task-safe: nothing in it changes but whether a word was said.
    """

    __slots__ = (
        "_at_exit",
        "_attributes",
        "_capture",
        "_code",
        "_error_policy",
        "_filter",
        "_has_warned",
        "_name",
        "_quiet_name",
        "_reader",
        "_result_key",
        "_signature",
        "_sync",
        "_timeout_s",
        "holder",
    )

    def __init__(
        self,
        holder: Holder,
        name: str,
        options: Options,
        function: Callable[..., Any] | None = None,
        site: FunctionSite | None = None,
    ) -> None:
        """Find the selected arguments among the function's parameters.

        Raises:
            ConfigurationError: if one of them is no parameter of the function.
        """
        self.holder = holder
        self._name = name
        self._quiet_name = QuietName(name)
        self._attributes = options.attributes
        self._filter = options.filter
        self._error_policy = options.error_policy
        self._at_exit = options.at_exit
        self._result_key = options.result_key
        self._sync = options.sync
        self._timeout_s = options.timeout_s
        self._capture = options.capture
        self._signature = signature_of(function) if function is not None and options.at_exit is not None else None
        self._code = cast("CodeType | None", site)
        self._reader: ArgumentReader | None = None
        self._has_warned = False
        if function is not None and options.arguments:
            label = f"{site.function_name}()" if site is not None else repr(function)
            self._reader = ArgumentReader(options.arguments, function, label)

    @property
    def keeps_arguments(self) -> bool:
        """Whether a call's arguments are needed at its end."""
        return self._at_exit is not None

    @property
    def plainly(self) -> tuple[str, dict[str, Any] | None, bool, CodeType] | None:
        """What a phase is entered with where a call has nothing to it but enter and exit; None where it has."""
        is_plain = self._reader is None and self._filter is None and self._capture is None and not self.has_ending
        if not is_plain or self._code is None or self._timeout_s is not None:
            return None
        return self._name, self._attributes, self._sync, self._code

    @property
    def has_ending(self) -> bool:
        """Whether there is something to do when a call ends."""
        return self._at_exit is not None or self._result_key is not None or self._error_policy is not None

    def enter(self, source: PhaseSource, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PhaseHandle:
        """Enter the phase of one call with these arguments, or of a with block."""
        name, attributes, is_quiet = self._name, self._attributes, False
        lanes = source.lane_set
        if lanes is not None:
            if self._reader is not None:
                attributes = self._reader.read(attributes, args, kwargs, lanes.counts)
            if self._filter is not None:
                threshold = getattr(source, "level", None) or 0
                is_quiet = not self._filter.passes(name, attributes, threshold, lanes.counts)
        try:
            phase = source.enter_phase(self._quiet_name if is_quiet else name, attributes, self._sync, self._timeout_s)
        except PhaseProtocolError as problem:
            phase = self.no_phase(problem)
        if phase is NOOP:
            return phase
        if is_quiet:
            phase._extra_or_new().is_quiet = True
        if self._capture is not None:
            self._switch_capture(phase, self._capture)
        if self._code is not None:
            phase._code = self._code
            phase._instruction = 0
        return phase

    def no_phase(self, problem: PhaseProtocolError) -> PhaseHandle:
        """Return the no-op for a call of a decorated function while its tracker does not run, and log that once.

        A model's methods are called before training and after it, too.

        Raises:
            PhaseProtocolError: `problem`, if it is another one or a with block's.
        """
        if self._code is None or problem.reason not in _NOT_RUNNING:
            raise problem
        if not self._has_warned:
            self._has_warned = True
            _log.warning("stormphase: a call of %s() was no phase. %s", self._code.function_name, problem)  # type: ignore[attr-defined]  # a FunctionSite
        return NOOP

    @staticmethod
    def _switch_capture(phase: PhaseHandle, wish: bool | str) -> None:  # noqa: FBT001 - what the user wrote
        lanes = phase._lane.lanes
        on_capture = lanes.on_capture
        if on_capture is not None:
            try:
                on_capture(wish)
            except ConfigurationError as error:
                if lanes.on_misuse == "raise":
                    phase.close(error=error)
                    raise
                lanes.counts.add(CAPTURE_REFUSED)
                on_capture(True)  # noqa: FBT003 - what can be had all the same
        phase._extra_or_new().capture = wish

    def note_result(self, phase: PhaseHandle, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Put on the phase what is known of a call that returned; never raises."""
        if phase is NOOP:
            return
        if self._result_key is not None:
            phase.set_attribute(self._result_key, result)
        if self._at_exit is not None:
            self._ask_at_exit(phase, args, kwargs, result, None)

    def note_error(
        self, phase: PhaseHandle, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: BaseException
    ) -> None:
        """Put on the phase what is known of a call that raised; never raises."""
        if phase is NOOP:
            return
        if self._error_policy is not None:
            phase._extra_or_new().error_policy = self._error_policy
        if self._at_exit is not None:
            self._ask_at_exit(phase, args, kwargs, None, error)

    def _ask_at_exit(
        self,
        phase: PhaseHandle,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        error: BaseException | None,
    ) -> None:
        try:
            found = self._at_exit(self._bound(args, kwargs), result, error)  # type: ignore[misc]  # asked only where there is one
            if found is not None:
                phase.set_attributes(found)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - it is the user's, and may raise anything
            phase._lane.lanes.counts.add(AT_EXIT_ERRORS)

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._signature is None:  # A with block.
            return {}
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments
