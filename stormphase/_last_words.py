"""Writes what a process says beside its journal as it says it, so that a killed one's last words are known."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from stormphase.capture._private_keys import PrivateKeys
from stormphase.capture._text import safe
from stormphase.journal._said import LastLines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stormphase._phase import PhaseHandle
    from stormphase.capture import CaptureSession

_MAX_UNFINISHED: Final = 8_192
_PIECES: Final = ("stdout", "stderr")

_log = logging.getLogger("stormphase")


class LastWords:
    """Hears what a session captures, from `listen` on. Thread-, signal- and fork-safe; never raises into a print.

    Args:
        path: returns where to write, or None while there is no journal; asked when something is said.
        to_wall_ns: turns monotonic times into nanoseconds since the Unix epoch.
    """

    def __init__(self, path: Callable[[], Path | None], to_wall_ns: Callable[[int], int]) -> None:
        """Make no file yet."""
        self._path = path
        self._to_wall_ns = to_wall_ns
        self._redacted: Callable[[str], str] = str
        self.after_fork_in_child()

    def listen(self, capture: CaptureSession) -> None:
        """Hear all that `capture` hears, redacted as it does that."""
        self._redacted = capture.redactor.text
        capture.tap(self._hear)

    def end(self) -> None:
        """Let go of the file; what is heard later is not kept."""
        self._is_given_up = True
        self._lines: LastLines | None = None

    def after_fork_in_child(self) -> None:
        """Leave the file to the parent; the child has one with its own journal."""
        self._lines = None
        self._is_given_up = False
        self._unfinished: dict[tuple[int, str], str] = {}
        self._keys = PrivateKeys()

    def look(self) -> None:
        """Stop where somebody has cut the file short; from time to time, on a thread that is not training's."""
        lines = self._lines
        if lines is not None and lines.has_been_cut():
            self._is_given_up = True
            self._lines = None
            _log.warning(
                "stormphase: somebody has cut %s short, so what is said last is not kept there any more; the program "
                "goes on",
                self._path(),
            )

    def _hear(self, phase: PhaseHandle | None, when_ns: int, stream: str, text: str) -> None:
        lines = self._lines or self._made()
        if lines is None:
            return
        sequence = 0 if phase is None else phase._sequence
        *whole, rest = text.split("\n")
        key = (threading.get_ident(), stream)
        if stream in _PIECES:
            before = self._unfinished.pop(key, "")
            if not whole:
                self._unfinished[key] = _bounded(before + rest, self._redacted)
                return
            whole[0] = before + whole[0]
            if rest:
                self._unfinished[key] = _bounded(rest, self._redacted)
        else:
            whole.append(rest)
        for line in whole:
            said = self._redacted(self._keys.redacted(key, safe(line, self._redacted)))
            lines.put(self._to_wall_ns(when_ns), sequence, stream, said)

    def _made(self) -> LastLines | None:
        path: Any = None if self._is_given_up else self._path()
        if path is None:
            return None
        try:
            self._lines = LastLines(path)
        except FileExistsError:
            return self._lines  # Another thread was first; if it has not got it yet, this line is in the store alone.
        except OSError as error:
            self._is_given_up = True
            _log.warning("stormphase: what is said last is not kept in %s (%s)", path, error.strerror)
        return self._lines


def _bounded(unfinished: str, redact: Callable[[str], str]) -> str:
    """Return a line that has no end yet, not too much of it: its begin, which is what is kept of it in the end."""
    if len(unfinished) <= _MAX_UNFINISHED:
        return unfinished
    if "\r" in unfinished:  # A progress bar: what comes next is drawn over what it shows now.
        unfinished = safe(unfinished, redact) + "\r"
    return unfinished[:_MAX_UNFINISHED]
