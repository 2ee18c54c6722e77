"""What a tracker is told, checked: arguments at construction, flags in the environment at start."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, Final, cast

import attrs

from stormphase._bridge import DEFAULT_BRIDGE, Bridge, DefaultBridge
from stormphase._filters import level_number
from stormphase._redaction import Redactor
from stormphase.exceptions import ConfigurationError
from stormphase.typing import Clock, RecordStore, Sink

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase.capture import CaptureOptions

DISABLED_VARIABLE: Final = "STORMPHASE_DISABLED"
SUMMARY_VARIABLE: Final = "STORMPHASE_SUMMARY"
CHECKS_VARIABLE: Final = "STORMPHASE_CHECKS"
ALL_RANKS: Final = "all"
QUEUE_BOUND: Final = 131_072
MAX_CORRELATION_CHARS: Final = 256
MAX_ATTEMPTS: Final = 1 << 31

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Return whether the environment turns everything off.

    Raises:
        ConfigurationError: if the variable is neither a yes nor a no.
    """
    return _flag(environ, DISABLED_VARIABLE, "1 or 0")


def require_gil() -> None:
    """Refuse a Python that runs without the global interpreter lock: lanes, counts and the journal rest on it.

    Raises:
        ConfigurationError: on a free-threaded build that runs without it.
    """
    if not getattr(sys, "_is_gil_enabled", _yes)():
        raise ConfigurationError(
            "stormphase cannot track on a Python that runs without the global interpreter lock.",
            setting="start",
            fix="Set PYTHON_GIL=1, use the default build of Python, or set STORMPHASE_DISABLED=1 to go without phases.",
        )


def _yes() -> bool:
    return True


def wants_summary(argument: bool | str | None, environ: Mapping[str, str], rank: int) -> bool:  # noqa: FBT001 - checked
    """Return whether this rank prints the tree of phases: by the argument if there is one, else by the environment.

    Raises:
        ConfigurationError: if the variable is neither a yes, a no nor "all".
    """
    wish: bool | str
    if argument is not None:
        wish = argument
    elif environ.get(SUMMARY_VARIABLE, "").strip().lower() == ALL_RANKS:
        wish = ALL_RANKS
    else:
        wish = _flag(environ, SUMMARY_VARIABLE, "1, 0 or all")
    return wish == ALL_RANKS or (bool(wish) and rank == 0)


def wants_checks(environ: Mapping[str, str]) -> bool:
    """Return whether what is out of order within stormphase itself is an error, as in its own tests, and not a count.

    Raises:
        ConfigurationError: if the variable is neither a yes nor a no.
    """
    return _flag(environ, CHECKS_VARIABLE, "1 or 0")


def _checked_name(name: object) -> str | None:
    """Return the job's name.

    Raises:
        ConfigurationError: if it is neither a string nor None.
    """
    if name is None or isinstance(name, str):
        return name
    raise ConfigurationError(
        f"The job's name must be a string, not {type(name).__name__}.",
        setting="name",
        fix='Write PhaseTracker("resnet"), and give options by keyword.',
    )


def _checked_sinks(sinks: Any) -> tuple[Sink, ...]:
    """Return the sinks.

    Raises:
        ConfigurationError: if they are no sequence, or one of them is not callable.
    """
    if callable(sinks) or not hasattr(sinks, "__iter__"):
        raise ConfigurationError("sinks must be a sequence of callables.", setting="sinks", fix="Write sinks=[sink].")
    found = tuple(sinks)
    for sink in found:
        if not callable(sink):
            raise ConfigurationError(
                f"A sink must be callable, and {sink!r:.80} is not.",
                setting="sinks",
                fix="Give a function that takes one PhaseBoundary.",
            )
    return found


def _checked_summary(summary: object) -> bool | str | None:
    """Return the wish for a summary.

    Raises:
        ConfigurationError: if it is none of True, False, "all" and None.
    """
    if summary is None or isinstance(summary, bool) or summary == ALL_RANKS:
        return summary
    raise ConfigurationError(
        f"summary must be True, False or 'all', not {summary!r:.40}.",
        setting="summary",
        fix='Write summary=True for rank 0 only, or summary="all" for every rank.',
    )


def _checked_bound(queue_bound: object) -> int:
    """Return how many entries a queue holds.

    Raises:
        ConfigurationError: if it is not a whole number above 0.
    """
    if isinstance(queue_bound, int) and not isinstance(queue_bound, bool) and queue_bound > 0:
        return queue_bound
    raise ConfigurationError(
        f"queue_bound must be a whole number above 0, not {queue_bound!r:.40}.",
        setting="queue_bound",
        fix=f"Leave it out for {QUEUE_BOUND}.",
    )


def _checked_factor(factor: Any) -> float | None:
    """Return how many times longer than usual a phase may be open.

    Raises:
        ConfigurationError: if it is not a number above 1.
    """
    if factor is None or (isinstance(factor, (int, float)) and not isinstance(factor, bool) and factor > 1):
        return factor
    raise ConfigurationError(
        f"hang_factor must be a number above 1, not {factor!r:.40}.",
        setting="hang_factor",
        fix="Write hang_factor=10, or leave it out.",
    )


def _checked_bridge(bridge: Any) -> Any:
    """Return the bridge.

    Raises:
        ConfigurationError: if it is not None and lacks what a bridge must have: it is a class, or a provider.
    """
    is_object = not isinstance(bridge, type)
    if (
        bridge is None
        or bridge is DEFAULT_BRIDGE
        or (is_object and hasattr(bridge, "attach") and hasattr(bridge, "take"))
    ):
        return bridge
    raise ConfigurationError(
        f"bridge must be an OTelBridge or None, not {bridge!r:.60}.",
        setting="bridge",
        fix="Write bridge=OTelBridge(...), leave it out for the globally set providers, or None for no bridge.",
    )


def _checked_store(store: Any) -> RecordStore | None:
    """Return the store.

    Raises:
        ConfigurationError: if it is not None and lacks what a store must have: it is a path, or a class.
    """
    wanted = ("begin", "end", "query", "close")
    if store is None or (not isinstance(store, type) and all(callable(getattr(store, name, None)) for name in wanted)):
        return cast("RecordStore | None", store)
    raise ConfigurationError(
        f"store must be a RecordStore, not {store!r:.60}.",
        setting="store",
        fix='Write store=SqliteStore("runs.db"), with "from stormphase.stores import SqliteStore".',
    )


def _checked_correlation_id(correlation_id: Any) -> str | None:
    """Return what else the run is known by.

    Raises:
        ConfigurationError: if it is neither None nor a string that is not blank and not too long.
    """
    if correlation_id is None:
        return None
    if isinstance(correlation_id, str) and correlation_id.strip() and len(correlation_id) <= MAX_CORRELATION_CHARS:
        return correlation_id
    raise ConfigurationError(
        f"correlation_id must be a string of at most {MAX_CORRELATION_CHARS} characters, not {correlation_id!r:.60}.",
        setting="correlation_id",
        fix="Write the id by which others know this run, or leave it out.",
    )


def _checked_capture(capture: object) -> CaptureOptions | None:
    """Return how output is captured; None if only where a phase asks for it.

    Raises:
        ConfigurationError: if it is none of True, False, None, "context", "fd" and `CaptureOptions`.
    """
    if capture is None or capture is False:
        return None
    from stormphase.capture._options import checked_capture  # noqa: PLC0415 - only programs that capture load it

    return checked_capture(capture)


def _checked_patterns(patterns: Any) -> tuple[str | re.Pattern[str], ...]:
    """Return what else must not be stored.

    Raises:
        ConfigurationError: if one of them is no regular expression, or matches the empty text.
    """
    try:
        found = (patterns,) if isinstance(patterns, (str, re.Pattern)) else tuple(patterns)
    except TypeError:
        found = (patterns,)
    Redactor(patterns=found)
    return found


def _checked_attempt(attempt: Any) -> int | None:
    """Return which attempt of its session a tracker is to be.

    Raises:
        ConfigurationError: if it is neither None nor a whole number from 0 that every place has room for.
    """
    if attempt is None or (type(attempt) is int and 0 <= attempt < MAX_ATTEMPTS):
        return attempt
    raise ConfigurationError(
        f"attempt must be a whole number from 0, not {attempt!r:.40}.",
        setting="attempt",
        fix="Write attempt=0 for the first start of a session, 1 for its first restart, or leave it out.",
    )


def _checked_level(level: int | str | None) -> int | None:
    return None if level is None else level_number(level)


@attrs.frozen(kw_only=True)
class Settings:
    """What `PhaseTracker` was given, which says what each means; checked here, and then it stays as it is."""

    name: str | None = attrs.field(default=None, converter=_checked_name)
    session_id: str | None = None
    attempt: int | None = attrs.field(default=None, converter=_checked_attempt)
    rank: int | None = None
    world_size: int | None = None
    bridge: Bridge | DefaultBridge | None = attrs.field(default=DEFAULT_BRIDGE, converter=_checked_bridge)
    sinks: tuple[Sink, ...] = attrs.field(default=(), converter=_checked_sinks)
    store: RecordStore | None = attrs.field(default=None, converter=_checked_store)
    correlation_id: str | None = attrs.field(default=None, converter=_checked_correlation_id)
    on_misuse: str = "raise"
    level: int | None = attrs.field(default=None, converter=_checked_level)
    summary: bool | str | None = attrs.field(default=None, converter=_checked_summary)
    # CaptureOptions or None; that class is imported only where something is captured.
    capture: Any = attrs.field(default=None, converter=_checked_capture)
    stop_on_sigterm: bool = False
    hang_factor: float | None = attrs.field(default=None, converter=_checked_factor)
    queue_bound: int = attrs.field(default=QUEUE_BOUND, converter=_checked_bound)
    journal: Any = None
    redact: tuple[str | re.Pattern[str], ...] = attrs.field(default=(), converter=_checked_patterns)
    carried: Any = None  # The `Carried` by which this process works for another one ...
    first_sequence: int = 1  # ... and the number of its first phase, where it has done so before.
    clock: Clock


def _flag(environ: Mapping[str, str], variable: str, choices: str) -> bool:
    value = environ.get(variable, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise ConfigurationError(
        f"{variable} must be {choices}, not {value!r:.40}.", setting=variable, fix=f"Set {variable}=1, or unset it."
    )
