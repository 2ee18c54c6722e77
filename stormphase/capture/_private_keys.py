"""Private keys among captured lines: none of theirs shows by itself that it is secret."""

from __future__ import annotations

from typing import Final

from stormphase._redaction import REDACTED
from stormphase._secret_spans import KEY_EDGES

_MOST_KEY_LINES: Final = 128


class PrivateKeys:
    """Takes out private keys, which no single line shows to be secret. Each source is for one thread at a time."""

    __slots__ = ("_lines_left",)

    def __init__(self) -> None:
        """Be inside of none."""
        self._lines_left: dict[object, int] = {}

    def redacted(self, source: object, text: str) -> str:
        """Return a line that comes from `source`, or what stands for one of a key."""
        if any(edge in text for edge in KEY_EDGES):
            if text.rfind("BEGIN") > text.rfind("END"):
                self._lines_left[source] = _MOST_KEY_LINES  # of a key whose end never comes
            else:
                self._lines_left.pop(source, None)
            return text
        if not self._lines_left:
            return text
        left = self._lines_left.pop(source, 0)
        if left > 1:
            self._lines_left[source] = left - 1
        return REDACTED if left else text
