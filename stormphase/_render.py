"""Draws a summary as lines of plain text: a tree of paths, 80 columns wide unless the terminal is wider."""

from __future__ import annotations

import textwrap
import unicodedata
from typing import TYPE_CHECKING, Final

from stormphase._table import COUNT, FAIL, MAX, P50, P95, PAUSED, SHARE, Line, Table, table_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stormphase._summary import SummaryReport

MIN_WIDTH: Final = 40
INDENT: Final = "  "
BESIDE: Final = "beside, on other threads and tasks:"
_LEAST_FOR_NAMES: Final = 20
_DROPPED_WHEN_NARROW: Final = (P50, MAX, P95, PAUSED, SHARE, COUNT)
_BOLD, _DIM, _RED, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[0m"
_JAMO_VOWELS: Final = range(0x1160, 0x1200)  # drawn into the syllable before


def render(report: SummaryReport, *, width: int, has_colour: bool) -> list[str]:
    """Return the lines of the tree, each at most `width` columns wide (at least 40), without line ends."""
    width = max(width, MIN_WIDTH)
    table = table_of(report)
    layout = Layout.of(table, width, INDENT)
    paint = _paint if has_colour else _plain
    lines = [paint(cut(table.title, width), _BOLD)]
    heads = layout.cells({column: column for column in table.columns})
    lines.append(paint(padded("phase", layout.name_width) + heads, _DIM))
    lines += [_drawn(line, layout, paint) for line in table.main]
    if table.beside:
        lines.append(paint(cut(BESIDE, width), _DIM))
        lines += [_drawn(line, layout, paint) for line in table.beside]
    lines += [paint(line, _DIM) for note in table.notes for line in textwrap.wrap(note, width)]
    return lines


class Layout:
    """How wide each column is, so that all numbers stand in line: as wide as what it holds; names have the rest.

    Attributes:
        name_width: columns for indented names.
        widths: columns of the terminal by column of the table; the least useful are gone where it is narrow.
    """

    def __init__(self, widths: dict[str, int], name_width: int) -> None:
        """Keep the widths."""
        self.widths = widths
        self.name_width = name_width

    @classmethod
    def of(cls, table: Table, width: int, indent: str) -> Layout:
        """Fit `table` into `width` columns."""
        lines = (*table.main, *table.beside)
        widths = {
            column: max(len(column), *(len(line.cells.get(column, "")) for line in lines)) for column in table.columns
        }
        longest = max(columns(indent) * line.level + columns(line.label) for line in lines)
        for column in _DROPPED_WHEN_NARROW:
            if width - _needed(widths) >= min(longest, _LEAST_FOR_NAMES):
                break
            widths.pop(column, None)
        return cls(widths, min(longest, width - _needed(widths)))

    def cells(self, cells: Mapping[str, str]) -> str:
        """Return the cells, right-aligned, each after a blank."""
        return "".join(f" {cells.get(column, ''):>{width}}" for column, width in self.widths.items())


def _needed(widths: dict[str, int]) -> int:
    return sum(width + 1 for width in widths.values())


def _drawn(line: Line, layout: Layout, paint: Callable[[str, str], str]) -> str:
    name = padded(indented(line, layout.name_width, INDENT * line.level), layout.name_width)
    text = (name + layout.cells(line.cells)).rstrip()
    failed = line.cells.get(FAIL)
    if failed is None:
        return text
    return text[: -len(failed)] + paint(failed, _RED)


def indented(line: Line, name_width: int, indent: str) -> str:
    """Return the label behind its indent; where that takes half the room, its level stands for it."""
    if columns(indent) > name_width // 2:
        return cut(f"({line.level + 1}) {line.label}", name_width)
    return cut(indent + line.label, name_width)


def padded(text: str, width: int) -> str:
    """Return `text` in exactly `width` columns."""
    text = cut(text, width)
    return text + " " * (width - columns(text))


def cut(text: str, width: int) -> str:
    """Return as much of `text` as fits into `width` columns, with an ellipsis if that is not all."""
    taken = 0
    last = ""
    for index, char in enumerate(text):
        taken += columns(char)
        if taken > width:
            return last + "\N{HORIZONTAL ELLIPSIS}"
        if taken < width:
            last = text[: index + 1]
    return text


def columns(text: str) -> int:
    """Return how many terminal columns a printable text takes: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(map(_columns_of, text))


def _columns_of(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me") or ord(char) in _JAMO_VOWELS:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _paint(text: str, code: str) -> str:
    return f"{code}{text}{_RESET}"


def _plain(text: str, code: str) -> str:
    del code
    return text
