"""How output is captured: what `capture=` was told, checked."""

from __future__ import annotations

import logging
import re
from typing import Any, Final

import attrs

from stormphase._filters import level_number
from stormphase._redaction import Redactor
from stormphase.exceptions import ConfigurationError

CONTEXT: Final = "context"
DESCRIPTORS: Final = "fd"

MAX_BYTES: Final = 32_768
MAX_BYTES_PER_S: Final = 1_048_576
LEAST_BYTES: Final = 256


def _checked_mode(mode: object) -> str:
    if mode in (CONTEXT, DESCRIPTORS):
        return str(mode)
    raise ConfigurationError(
        f"The capture mode must be 'context' or 'fd', not {mode!r:.40}.",
        setting="capture",
        fix='Write capture=True, or capture="fd" for what C libraries and subprocesses write as well.',
    )


def _checked_bytes(instance: Any, attribute: Any, value: object) -> None:
    del instance
    if isinstance(value, bool) or not isinstance(value, int) or value < LEAST_BYTES:
        raise ConfigurationError(
            f"{attribute.name} must be a whole number of at least {LEAST_BYTES}, not {value!r:.40}.",
            setting="capture",
            fix=f"Leave it out, or write CaptureOptions({attribute.name}={MAX_BYTES}).",
        )


def _level(level: int | str) -> int:
    return level_number(level)


def _patterns(patterns: Any) -> tuple[str | re.Pattern[str], ...]:
    try:
        return (patterns,) if isinstance(patterns, (str, re.Pattern)) else tuple(patterns)
    except TypeError:
        return (patterns,)  # For the validator to refuse.


@attrs.frozen(kw_only=True)
class CaptureOptions:
    """How output is captured: `PhaseTracker(capture=CaptureOptions(...))`.

    Attributes:
        mode: "context" for what goes through Python, or "fd" for the descriptors 1 and 2 as well.
        inclusive: whether a line stands at every captured phase that was open around it, and not only at the innermost.
        max_bytes: how much of one phase's output is kept: half of it from the begin, half from the end.
        max_bytes_per_s: how much of all phases' output is kept per second of their time; of each phase beyond it, the
            last line stays.
        log_level: the least level of log records that are captured, a number or a name as in `logging`; by default
            all, also those that no handler shows.
        redact: regular expressions of what must not be stored, beside what looks like a secret anyway.

    Raises:
        ConfigurationError: if one of them cannot work.
    """

    mode: str = attrs.field(default=CONTEXT, converter=_checked_mode)
    inclusive: bool = False
    max_bytes: int = attrs.field(default=MAX_BYTES, validator=_checked_bytes)
    max_bytes_per_s: int = attrs.field(default=MAX_BYTES_PER_S, validator=_checked_bytes)
    log_level: int = attrs.field(default=logging.NOTSET, converter=_level)
    redact: tuple[str | re.Pattern[str], ...] = attrs.field(default=(), converter=_patterns)

    @redact.validator
    def _check_patterns(self, attribute: Any, value: Any) -> None:
        del attribute
        Redactor(patterns=value)


def checked_capture(capture: object) -> CaptureOptions | None:
    """Return the options that a `capture=` argument stands for; None for no capture.

    Raises:
        ConfigurationError: if it is none of True, False, None, "context", "fd" and `CaptureOptions`.
    """
    if capture is None or capture is False:
        return None
    if capture is True:
        return CaptureOptions()
    if isinstance(capture, CaptureOptions):
        return capture
    return CaptureOptions(mode=capture)
