"""Turns a `SummaryReport` into lines of text: a tree of paths, 80 columns wide unless the terminal is wider."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stormphase._summary import SummaryReport
    from stormphase._totals import PathTotals

Path = tuple[str, ...]

MIN_WIDTH: Final = 72
MAX_WIDTH: Final = 160
_COLUMNS: Final = (
    ("count", 6),
    ("total", 6),
    ("own", 6),
    ("share", 6),
    ("p50", 6),
    ("p95", 6),
    ("max", 6),
    ("fail", 4),
)
_NUMBERS_WIDTH: Final = sum(width + 1 for _, width in _COLUMNS)
_BOLD, _DIM, _RED, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[0m"
_UNITS: Final = ((1_000, "ns", 1), (1_000_000, "us", 1_000), (1_000_000_000, "ms", 1_000_000), (60e9, "s", 1e9))


def render(report: SummaryReport, *, width: int, has_colour: bool) -> list[str]:
    """Return the lines of the tree, each at most `width` columns wide (72 to 160), without line ends."""
    name_width = min(max(width, MIN_WIDTH), MAX_WIDTH) - _NUMBERS_WIDTH
    paint = _paint if has_colour else _plain
    head = _cut(f"stormphase: {report.title}", name_width + _NUMBERS_WIDTH - 14)
    lines = [paint(f"{head}  wall {duration(report.wall_ns)}", _BOLD)]
    titles = "".join(f" {title:>{column}}" for title, column in _COLUMNS)
    lines.append(paint(_padded("phase", name_width) + titles, _DIM))
    lines += _tree(report.main, report.wall_ns, name_width, paint)
    lines.append(_line("(untracked)", name_width, own_ns=report.untracked_ns, wall_ns=report.wall_ns))
    if report.unfolded_ns:
        lines.append(_line("(not in a row)", name_width, own_ns=report.unfolded_ns, wall_ns=report.wall_ns))
    if report.beside:
        lines.append(paint("beside, on other threads and tasks:", _DIM))
        lines += _tree(report.beside, report.wall_ns, name_width, paint)
    return lines


def duration(ns: float) -> str:
    """Return nanoseconds in at most 6 characters: `1.23s`, `45.6ms`, `2m03s`, `1h02m`, `3d04h`."""
    if ns < 0:
        return "-" + duration(-ns)[:5]
    for limit, unit, size in _UNITS:
        if ns < limit * 0.9995:
            value = ns / size
            digits = 0 if unit == "ns" or value >= 99.95 else 1 if value >= 9.995 else 2  # noqa: PLR2004 - three digits
            return f"{value:.{digits}f}{unit}"
    seconds = round(ns / 1e9)
    minutes, hours = seconds // 60, seconds // 3_600
    if minutes < 60:  # noqa: PLR2004 - minutes in an hour
        return f"{minutes}m{seconds % 60:02}s"
    if hours < 24:  # noqa: PLR2004 - hours in a day
        return f"{hours}h{minutes % 60:02}m"
    return f"{hours // 24}d{hours % 24:02}h"


def amount(count: int) -> str:
    """Return a count in at most 6 characters: `12345`, `123k`, `12.3M`."""
    if count < 100_000:  # noqa: PLR2004 - five digits fit as they are
        return str(count)
    for size, unit in ((1_000, "k"), (1_000_000, "M"), (1_000_000_000, "G")):
        value = count / size
        if value < 999.5:  # noqa: PLR2004 - three digits and a unit
            return f"{value:.0f}{unit}" if value >= 99.95 else f"{value:.1f}{unit}"  # noqa: PLR2004 - three digits
    return f"{count:.0e}"


def _tree(rows: Mapping[Path, PathTotals], wall_ns: int, name_width: int, paint: object) -> Iterator[str]:
    """Yield the rows parents first, each level's costliest first; a parent without a row of its own is only named."""
    children: dict[Path, set[Path]] = {}
    for path in rows:
        for depth in range(len(path)):
            children.setdefault(path[:depth], set()).add(path[: depth + 1])

    # A stack and no recursion: paths may be thousands deep.
    waiting = _sorted(children.get((), set()), rows, children)
    while waiting:
        path = waiting.pop()
        totals = rows.get(path)
        label = "  " * (len(path) - 1) + path[-1]
        if len(label) > 2 * name_width:
            label = f"({len(path)}) {path[-1]}"
        line = _padded(label, name_width) if totals is None else _row(label, name_width, totals, wall_ns)
        has_failed = totals is not None and bool(totals.failures)
        yield paint(line, _RED) if has_failed and callable(paint) else line
        waiting += _sorted(children.get(path, set()), rows, children)


def _sorted(paths: set[Path], rows: Mapping[Path, PathTotals], children: Mapping[Path, set[Path]]) -> list[Path]:
    del children
    # Popped from the end, so the costliest last; by name among equals, so that the view is the same every time.
    return sorted(
        paths, key=lambda path: (rows[path].total_ns if path in rows else 0, [-ord(char) for char in path[-1]])
    )


def _row(label: str, name_width: int, totals: PathTotals, wall_ns: int) -> str:
    cells = (
        amount(totals.count),
        duration(totals.total_ns),
        duration(totals.own_ns),
        _share(totals.total_ns, wall_ns),
        duration(totals.quantile_ns(0.5)),
        duration(totals.quantile_ns(0.95)),
        duration(totals.max_ns),
        amount(sum(totals.failures.values())) if totals.failures else "",
    )
    return _padded(label, name_width) + _cells(cells)


def _line(label: str, name_width: int, *, own_ns: int, wall_ns: int) -> str:
    return _padded(label, name_width) + _cells(("", "", duration(own_ns), _share(own_ns, wall_ns))).rstrip()


def _cells(cells: tuple[str, ...]) -> str:
    return "".join(f" {cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=False)).rstrip()


def _share(part_ns: int, wall_ns: int) -> str:
    return f"{100 * part_ns / wall_ns:.1f}%" if wall_ns > 0 else ""


def _padded(text: str, width: int) -> str:
    text = _cut(text, width)
    return text + " " * (width - columns(text))


def _cut(text: str, width: int) -> str:
    if columns(text) <= width:
        return text
    while columns(text) > width - 1:
        text = text[:-1]
    return text + "\N{HORIZONTAL ELLIPSIS}"


def columns(text: str) -> int:
    """Return how many terminal columns a printable text takes: two for wide characters, none for combining ones."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _paint(text: str, code: str) -> str:
    return f"{code}{text}{_RESET}"


def _plain(text: str, code: str) -> str:
    del code
    return text
