"""What of a `SummaryReport` is shown, and what stands in each cell; `_render` and `_rich_view` only draw it.

At most so many paths of a tree are shown, the costliest; the rest are summed up where they hang, so that the column of
own times still adds up to the wall time.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._model import PhaseStatus
from stormphase._paths import escaped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stormphase._summary import SummaryReport, SummaryRow, SummaryTree

MAIN_ROWS: Final = 40
BESIDE_ROWS: Final = 20
SEPARATOR: Final = " / "
MAX_MARKS: Final = 2

COUNT, TOTAL, OWN, SHARE, P50, P95, MAX, PAUSED, FAIL = (
    "count",
    "total",
    "own",
    "share",
    "p50",
    "p95",
    "max",
    "paused",
    "fail",
)
LETTERS: Final = {
    PhaseStatus.FAILED.value: "F",
    PhaseStatus.CANCELLED.value: "C",
    PhaseStatus.ABANDONED.value: "A",
    PhaseStatus.LOST.value: "L",
}
_UNTRACKED, _UNTRACKED_HERE, _ONLY_BESIDE = "(untracked)", "(untracked here)", "(only beside)"
_EXPLAINED: Final = {
    _UNTRACKED_HERE: "(untracked here): phases on other threads and tasks may have run then",
    _ONLY_BESIDE: "phases ran side by side on other threads and tasks only: their times are no sum",
}
_PAUSED_EXPLAINED: Final = "paused: counted in p50, p95 and max (from enter to exit), and nowhere else"
_UNITS: Final = ((1_000, "ns", 1), (1_000_000, "us", 1_000), (1_000_000_000, "ms", 1_000_000), (60e9, "s", 1e9))


@attrs.frozen
class Line:
    """One line of the table.

    Attributes:
        label: what it is about.
        level: how far it is indented, from 0.
        cells: text by column; a column that is missing is blank.
        total_share: its part of the wall time, with all beneath; None if that makes no sense for it.
        own_share: the part of it with nothing on top.
        is_phase: whether it is a path, and not a remainder or a sum.
    """

    label: str
    level: int
    cells: Mapping[str, str]
    total_share: float | None = None
    own_share: float | None = None
    is_phase: bool = False


@attrs.frozen
class Table:
    """All that is drawn.

    Attributes:
        title: job, rank, wall time and session.
        columns: the columns that have something to say.
        main: the lines whose own times add up to the last one's, the wall time.
        beside: the lines of other threads and tasks.
        notes: what a reader has to know; often nothing.
    """

    title: str
    columns: tuple[str, ...]
    main: tuple[Line, ...]
    beside: tuple[Line, ...]
    notes: tuple[str, ...]


def table_of(report: SummaryReport) -> Table:
    """Return what to draw of `report`."""
    wall_ns = report.wall_ns
    main = _lines(report.main, wall_ns, MAIN_ROWS)
    notes = []
    untracked = _untracked(report)
    main.append(_sum(untracked, report.untracked_ns, wall_ns))
    if untracked in _EXPLAINED:
        notes.append(_EXPLAINED[untracked])
    if report.starting_ns:
        main.append(_sum("(starting)", report.starting_ns, wall_ns))
    if report.unfolded_ns or report.dropped:
        line = _sum("(not in a row)", report.unfolded_ns, wall_ns)
        count = {COUNT: amount(report.dropped)} if report.dropped else {}
        main.append(attrs.evolve(line, cells={**count, **line.cells}))
    main.append(_sum("wall time", wall_ns, wall_ns))
    if report.dropped:
        notes.append(f"{report.dropped} ended phases were dropped from a full queue: raise queue_bound")
    rows = (*report.main.rows, *report.beside.rows)
    if any(row.figures is not None and not row.figures.count for row in rows):
        notes.append("without a count: spent there by phases that moved on, and are counted where they ended")
    beside = _lines(report.beside, wall_ns, BESIDE_ROWS)
    has = {column for line in (*main, *beside) for column in line.cells}
    columns = tuple(c for c in (COUNT, TOTAL, OWN, SHARE, P50, P95, MAX, PAUSED, FAIL) if c in has)
    if PAUSED in has:
        notes.append(_PAUSED_EXPLAINED)
    unwell = {letter for line in (*main, *beside) for letter in line.cells.get(FAIL, "") if letter.isalpha()}
    meanings = [f"{letter} {status}" for status, letter in LETTERS.items() if letter in unwell]
    if meanings:
        notes.append(f"{FAIL}: {', '.join(meanings)}")
    return Table(title=_title(report), columns=columns, main=tuple(main), beside=tuple(beside), notes=tuple(notes))


def _untracked(report: SummaryReport) -> str:
    """Return what to call the time that no phase of the main lane covered: others may have used it."""
    if not report.beside.rows:
        return _UNTRACKED
    if not report.tracked_ns:
        return _ONLY_BESIDE
    # What hangs under a phase of the main lane ran while that was open, as a rule; what does not may have run any time.
    is_shared = any(row.depth == 1 and row.figures is not None for row in report.beside.rows)
    return _UNTRACKED_HERE if is_shared else _UNTRACKED


def _title(report: SummaryReport) -> str:
    identity = report.identity
    parts = [
        f"stormphase: {printable(report.name or 'session')}",
        f"rank {identity.rank} of {identity.world_size}",
        f"wall {duration(report.wall_ns)}",
        identity.session_id + (f" attempt {identity.attempt}" if identity.attempt else ""),
    ]
    return ", ".join(parts)


def _sum(label: str, own_ns: int, wall_ns: int, level: int = 0) -> Line:
    share = _part(own_ns, wall_ns)
    return Line(label, level, {OWN: duration(own_ns), SHARE: percent(share)}, own_share=share)


@attrs.define
class _Open:
    """A path above the one that is looked at, and what of its paths is not shown."""

    depth: int
    level: int
    prefix: str = ""
    hidden: int = 0
    total_ns: int = 0
    own_ns: int = 0
    unwell: Counter[str] = attrs.field(factory=Counter)


def _lines(tree: SummaryTree, wall_ns: int, most: int) -> list[Line]:
    """Return the costliest paths with their ancestors, and a line for those not shown of each."""
    rows = tree.rows
    parents = _parents(rows)
    shown = _shown(rows, parents, most)
    children = Counter(parents)
    lines: list[Line] = []
    above = [_Open(depth=0, level=0)]
    for index, row in enumerate(rows):
        while above[-1].depth >= row.depth:
            _close(above, lines, wall_ns)
        over = above[-1]
        if index not in shown:
            _hide(over, row, is_top=row.depth == over.depth + 1)
        elif row.figures is None and children[index] == 1:
            # No phase of this path ended here: its only child says where it hangs.
            above.append(_Open(row.depth, over.level, prefix=over.prefix + printable(row.name) + SEPARATOR))
        else:
            lines.append(_phase(row, over, wall_ns))
            above.append(_Open(row.depth, over.level + 1))
    while above:
        _close(above, lines, wall_ns)
    if tree.other is not None:
        share = _part(tree.other.own_ns, wall_ns)
        cells = {COUNT: amount(tree.other.count), OWN: duration(tree.other.own_ns), SHARE: percent(share)}
        lines.append(Line("(other paths)", 0, cells | _fail_cell(tree.other.unwell), own_share=share))
    return lines


def _parents(rows: Sequence[SummaryRow]) -> list[int]:
    """Return the index of each row's parent, -1 for the outermost."""
    parents = []
    above: list[int] = []
    for index, row in enumerate(rows):
        del above[row.depth - 1 :]
        parents.append(above[-1] if above else -1)
        above.append(index)
    return parents


def _shown(rows: Sequence[SummaryRow], parents: Sequence[int], most: int) -> set[int]:
    costs = [(-row.figures.total_ns, index) for index, row in enumerate(rows) if row.figures is not None]
    shown: set[int] = set()
    for _, index in sorted(costs)[:most]:
        above = index
        while above >= 0 and above not in shown:
            shown.add(above)
            above = parents[above]
    # To say "(1 more)" takes as much room as to show it.
    hidden: dict[int, list[int]] = {}
    nearest: list[int] = []
    for index, parent in enumerate(parents):
        nearest.append(parent if parent < 0 or parent in shown else nearest[parent])
        if index not in shown:
            hidden.setdefault(nearest[index], []).append(index)
    return shown.union(*(alone for alone in hidden.values() if len(alone) == 1))


def _hide(over: _Open, row: SummaryRow, *, is_top: bool) -> None:
    if row.figures is None:
        return
    over.hidden += 1
    over.own_ns += row.figures.own_ns
    over.unwell.update(row.figures.unwell)
    if is_top:  # What is beneath is in it already.
        over.total_ns += row.figures.total_ns


def _close(above: list[_Open], lines: list[Line], wall_ns: int) -> None:
    over = above.pop()
    if over.hidden:
        line = _sum(f"({over.hidden} more)", over.own_ns, wall_ns, over.level)
        lines.append(attrs.evolve(line, cells={**line.cells, **_fail_cell(over.unwell)}))


def _phase(row: SummaryRow, over: _Open, wall_ns: int) -> Line:
    label = over.prefix + printable(row.name)
    figures = row.figures
    if figures is None:
        return Line(label, over.level, {}, is_phase=True)
    total_share = _part(figures.total_ns, wall_ns)
    cells = {TOTAL: duration(figures.total_ns), OWN: duration(figures.own_ns), SHARE: percent(total_share)}
    if figures.count:
        cells[COUNT] = amount(figures.count)
        cells |= {P50: duration(figures.p50_ns), P95: duration(figures.p95_ns), MAX: duration(figures.max_ns)}
    if figures.paused_ns:
        cells[PAUSED] = duration(figures.paused_ns)
    return Line(
        label,
        over.level,
        cells | _fail_cell(figures.unwell),
        total_share=total_share,
        own_share=_part(figures.own_ns, wall_ns),
        is_phase=True,
    )


def _fail_cell(unwell: Mapping[str, int]) -> dict[str, str]:
    text = " ".join(f"{amount(unwell[status])}{letter}" for status, letter in LETTERS.items() if unwell.get(status))
    return {FAIL: text} if text else {}


def _part(part_ns: int, wall_ns: int) -> float | None:
    return part_ns / wall_ns if wall_ns > 0 else None


def percent(share: float | None) -> str:
    """Return a share with one digit: `12.3%`; blank if there is none."""
    return "" if share is None else f"{100 * share:.1f}%"


def duration(ns: float) -> str:
    """Return nanoseconds in three digits, at most 6 characters: `1.23s`, `45.6ms`, `2m03s`, `1h02m`, `3d04h`."""
    if ns < 0:
        return "-" + duration(-ns)
    for limit, unit, size in _UNITS:
        if ns < limit * 0.9995:
            value = ns / size
            digits = 0 if unit == "ns" or value >= 99.95 else 1 if value >= 9.995 else 2  # noqa: PLR2004 - three digits
            return f"{value:.{digits}f}{unit}"
    # Each rounded to its own smaller unit, and never to sixty of it.
    seconds, minutes, hours, days = (round(ns / unit_ns) for unit_ns in (1e9, 60e9, 3_600e9, 86_400e9))
    if seconds < 3_600:  # noqa: PLR2004 - an hour
        return f"{seconds // 60}m{seconds % 60:02}s"
    if minutes < 1_440:  # noqa: PLR2004 - a day
        return f"{minutes // 60}h{minutes % 60:02}m"
    if hours < 2_400:  # noqa: PLR2004 - a hundred days: two digits and hours fit
        return f"{hours // 24}d{hours % 24:02}h"
    return f"{days}d"


def amount(count: int) -> str:
    """Return a count in at most 5 characters: `12345`, `123k`, `12.3M`."""
    if count < 100_000:  # noqa: PLR2004 - five digits fit as they are
        return str(count)
    for size, unit in ((1_000, "k"), (1_000_000, "M"), (1_000_000_000, "G")):
        value = count / size
        if value < 999.5:  # noqa: PLR2004 - three digits and a unit
            digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2  # noqa: PLR2004 - three digits
            return f"{value:.{digits}f}{unit}"
    return f"{count:.0e}"


def printable(text: str) -> str:
    """Return text with whatever a terminal could take for a command, or for nothing, as its escape.

    Of marks that combine with the character before, so many are kept that they stay on their own line.
    """
    if text.isascii() and text.isprintable():
        return text
    shown = []
    marks = 0
    for char in text:
        marks = marks + 1 if unicodedata.combining(char) else 0
        if marks <= MAX_MARKS:
            shown.append(char if char.isprintable() else escaped(char))
    return "".join(shown)
