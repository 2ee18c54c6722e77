"""How commands write: what a stream can show, whatever it cannot encode, and text as wide as it is."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import TYPE_CHECKING, Final

from stormphase._render import cut
from stormphase._table import printable
from stormphase._terminal import StreamFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TextIO

BOLD: Final = "1"
DIM: Final = "2"
RED: Final = "31"
YELLOW: Final = "33"
GREEN: Final = "32"
MAX_SECONDS: Final = 86_400.0
_NO_BREAK: Final = "\N{NO-BREAK SPACE}"
_BEFORE_UNIT: Final = re.compile(r"(?<=\d) (?=(?:s|ms|us)\b)")


class Page:
    """Lines for a stream: wrapped to its width, coloured if it has colours; what does not print becomes its escape."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        """Look at the stream."""
        self._stream = stream
        self.facts = StreamFacts.of(stream, environ)
        self._lines: list[str] = []

    def line(self, text: str = "", *, style: str = "") -> None:
        """Add one line, cut where the stream ends."""
        self._lines.append(self._styled(cut(printable(text), self.facts.width), style))

    def wrapped(self, text: str, *, first: str = "", indent: str = "", style: str = "") -> None:
        """Add a text in as many lines as it needs; `first` stands before its first line, `indent` before others.

        A number and its unit stay on one line.
        """
        width = max(20, self.facts.width)
        lines = textwrap.wrap(
            _BEFORE_UNIT.sub(_NO_BREAK, printable(text)),
            width,
            initial_indent=first,
            subsequent_indent=indent or " " * len(first),
            break_on_hyphens=False,
        )
        self._lines += [self._styled(line.replace(_NO_BREAK, " "), style) for line in lines or [first]]

    def pieces(self, parts: Iterable[tuple[str, str]]) -> None:
        """Add one line of parts, each a text and its style."""
        self._lines.append("".join(self._styled(printable(text), style) for text, style in parts))

    def show(self) -> None:
        """Write all lines; what the stream cannot encode becomes a question mark."""
        write(self._stream, self._lines, self.facts.encoding)
        self._lines.clear()

    def _styled(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if style and text and self.facts.has_colour else text


def write(stream: TextIO, lines: Iterable[str], encoding: str) -> None:
    """Write lines to a stream of that encoding."""
    stream.writelines(f"{line}\n".encode(encoding, "replace").decode(encoding) for line in lines)
    stream.flush()


def seconds(text: str) -> float:
    """Return an option's seconds.

    Raises:
        ArgumentTypeError: if they are not from 0 to those of a day; NaN is not.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"must be from 0 to {MAX_SECONDS:g} seconds, and {text!a:.40} is not")
    return value
