"""For tests of programs that use stormphase, and of stormphase itself.

A clock that moves only when it is told to, whether a secret is redacted, and what every record store must do, as tests
that any store can run.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from stormphase._redaction import Redactor
from stormphase._store_conformance import RecordStoreConformance

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Mapping

__all__ = ["START_MONOTONIC_NS", "START_WALL_NS", "ManualClock", "RecordStoreConformance"]

# An arbitrary Thursday, so that no test passes only because a time is 0.
START_WALL_NS = 1_700_000_000_000_000_000
START_MONOTONIC_NS = 1_000_000_000


class ManualClock:
    """A clock that stands still until `advance` moves it, so that a test knows every duration to the nanosecond.

    Give it to `PhaseTracker(clock=...)` or `PhaseRecorder(clock=...)`. Thread- and async-safe. A forked child goes on
    with a copy of its own.

    Args:
        monotonic_ns: what the monotonic clock shows at first.
        wall_ns: what the wall clock shows at first, in nanoseconds since the Unix epoch.
    """

    def __init__(self, *, monotonic_ns: int = START_MONOTONIC_NS, wall_ns: int = START_WALL_NS) -> None:
        """Stand at the given times."""
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._lock = threading.Lock()

    def monotonic_ns(self) -> int:
        """Return the monotonic time in nanoseconds."""
        return self._monotonic_ns

    def wall_ns(self) -> int:
        """Return the wall time in nanoseconds since the Unix epoch."""
        return self._wall_ns

    def advance(self, ns: int) -> None:
        """Move both clocks on by `ns` nanoseconds.

        Raises:
            ValueError: if `ns` is negative: a monotonic clock never goes back.
        """
        if ns < 0:
            raise ValueError(f"A monotonic clock never goes back, and {ns} is negative. Use shift_wall for that.")
        with self._lock:
            self._monotonic_ns += ns
            self._wall_ns += ns

    def shift_wall(self, ns: int) -> None:
        """Set the wall clock forward, or back if `ns` is negative, as NTP does; the monotonic clock stands."""
        with self._lock:
            self._wall_ns += ns


def assert_redacts(
    secret: str, text: str, *, redact: Iterable[str | re.Pattern[str]] = (), environ: Mapping[str, str] | None = None
) -> str:
    """Assert that a secret is gone from a text that says it, and return what would be stored.

    Args:
        secret: what must not be stored.
        text: what a program prints, logs, raises or sets as an attribute, the secret in it.
        redact: the patterns that are given to `CaptureOptions(redact=...)`.
        environ: the environment whose credentials must not be stored; by default none.

    Raises:
        AssertionError: if the secret is still there, or was not there at all.
    """
    if secret not in text:
        raise AssertionError(f"The text does not say {secret!r}, so nothing is tested. Put the secret into the text.")
    redacted = Redactor(environ=environ, patterns=redact).text(text)
    if secret in redacted:
        raise AssertionError(
            f"{secret!r} would be stored: {redacted!r}. Give a pattern for it, redact=(...), or a key that says so."
        )
    return redacted
