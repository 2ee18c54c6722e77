"""Draws a summary with rich, if that is installed: guides, bars of shares, failures in colour. For terminals only."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Final

from stormphase._render import BESIDE, Layout, columns, cut, indented, padded
from stormphase._table import FAIL, Line, Table, table_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from stormphase._summary import SummaryReport

_LAST, _NEXT, _PAST, _GAP = "└ ", "├ ", "│ ", "  "
_BARS: Final = (20, 16, 13)
_BAR_HEAD: Final = "█ own ░ inner"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_REST: Final = "░"
_LEAST_FOR_NAMES: Final = 24


def can_draw(encoding: str) -> bool:
    """Whether a terminal of this encoding can show all that is drawn here."""
    try:
        (_LAST + _NEXT + _PAST + _EIGHTHS + _REST + "\N{HORIZONTAL ELLIPSIS}").encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def draw(report: SummaryReport, *, width: int, has_colour: bool) -> str:
    """Return the text to write to a terminal of `width` columns.

    Raises:
        ImportError: if rich is not installed.
    """
    # Only here, since it takes some 50 ms: whoever prints no summary to a terminal never loads it.
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = table_of(report)
    layout, bar_width = _layout_with_bar(table, width)
    # Not to the terminal itself: rich ends the program where a pipe breaks.
    drawn = io.StringIO()
    console = Console(
        file=drawn,
        width=width,
        force_terminal=True,
        color_system="standard",
        no_color=not has_colour,
        highlight=False,
        legacy_windows=False,
    )
    # Text and no markup, so that nothing in a name is taken for a style, a link or an emoji.
    lines = [Text(cut(table.title, width), style="bold")]
    heads = layout.cells({column: column for column in table.columns})
    bar_head = f" {_BAR_HEAD}" if bar_width else ""
    lines.append(Text(padded("phase", layout.name_width) + heads + bar_head, style="dim"))
    lines += [_drawn(Text(), line, guide, layout, bar_width) for line, guide in _guided(table.main)]
    if table.beside:
        lines.append(Text(cut(BESIDE, width), style="dim"))
        lines += [_drawn(Text(), line, guide, layout, bar_width) for line, guide in _guided(table.beside)]
    lines += [Text(line, style="dim") for note in table.notes for line in textwrap.wrap(note, width)]
    for line in lines:
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    return drawn.getvalue()


def _layout_with_bar(table: Table, width: int) -> tuple[Layout, int]:
    """Return the layout with the widest bar that costs no column of numbers, and names no more than they can spare."""
    plain = Layout.of(table, width, _GAP)
    for bar_width in _BARS:
        layout = Layout.of(table, width - bar_width - 1, _GAP)
        if layout.widths == plain.widths and layout.name_width >= min(plain.name_width, _LEAST_FOR_NAMES):
            return layout, bar_width
    return plain, 0


def _guided(lines: Sequence[Line]) -> list[tuple[Line, str]]:
    """Return each line with the guides that lead to it; looked at from the end, where it is known what comes below."""
    found = []
    goes_on: list[bool] = []  # by level: whether a line below, under the same parent, stands on it
    for line in reversed(lines):
        del goes_on[line.level + 1 :]
        goes_on += [False] * (line.level + 1 - len(goes_on))
        guide = "".join(_PAST if below else _GAP for below in goes_on[1 : line.level])
        if line.level:
            guide += _NEXT if goes_on[line.level] else _LAST
        goes_on[line.level] = True
        found.append((line, guide))
    found.reverse()
    return found


def _drawn(text: Text, line: Line, guide: str, layout: Layout, bar_width: int) -> Text:
    name = padded(indented(line, layout.name_width, guide), layout.name_width)
    guide_chars = len(guide) if name.startswith(guide) and columns(guide) else 0
    text.append(name[:guide_chars], style="dim")
    text.append(name[guide_chars:], style="" if line.is_phase else "italic")
    for column, width in layout.widths.items():
        cell = line.cells.get(column, "")
        text.append(" " * (1 + width - len(cell)))
        text.append(cell, style="bold red" if column == FAIL else "")
    if bar_width and line.own_share is not None:
        text.append(" ")
        text.append(*_bar(line.own_share, bar_width))
        own = len(_bar(line.own_share, bar_width)[0])
        if line.total_share is not None:
            rest = round(min(1.0, line.total_share) * bar_width) - own
            text.append(_REST * max(0, rest), style="cyan dim")
    return text


def _bar(share: float, width: int) -> tuple[str, str]:
    """Return a bar of eighths of a column, and its style."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else ""), "cyan"
