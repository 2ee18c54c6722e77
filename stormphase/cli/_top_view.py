"""What stands on the screen of `top`: pure, from a snapshot and the size of the terminal to lines of styled cells."""

from __future__ import annotations

import enum
import textwrap
from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._liveness import utc
from stormphase._render import columns, cut, padded
from stormphase._table import printable
from stormphase.analysis._places import Group, Place, is_overdue
from stormphase.analysis._postmortem import title_text
from stormphase.analysis._ranks import DEAD, IN_ORDER, OpenPhase, RankState, Usual
from stormphase.analysis._words import counted, path_text, ranks_text, span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stormphase.analysis._postmortem import Postmortem
    from stormphase.cli._top_watch import Snapshot

MIN_WIDTH: Final = 40
LEAST_ROWS: Final = 4
_TALL: Final = 36
_LEAST_ON_SUSPECTS: Final = 5
_MOST_ON_SUSPECTS: Final = 12
MAX_ALONE: Final = 5
PLAIN, BOLD, DIM, RED, YELLOW, GREEN, CYAN = "", "bold", "dim", "red", "yellow", "green", "cyan"
_WIDTHS: Final = {"rank": 12, "state": 9, "step": 7, "steps/s": 7, "in phase": 8, "median": 7}
_WIDER: Final = {"rank": 28, "step": 13}  # where there is room
_WIDE: Final = 120
_AROUND_ROWS: Final = 8  # lines of the screen that are no rows, about
_DROPPED_WHEN_NARROW: Final = ("steps/s", "state", "median")
_LEAST_FOR_PATH: Final = 20


class Order(str, enum.Enum):
    """What comes first; the value's first letter is its key."""

    HOT = "hot"
    RANK = "rank"
    STEP = "step"
    TIME = "time"


@attrs.frozen(kw_only=True)
class Choices:
    """What the person at the screen chose.

    Attributes:
        order: what comes first.
        is_grouped: whether ranks that do the same are one row; None to do so where not all fit.
        scrolled: how many rows are above the screen.
    """

    order: Order = Order.HOT
    is_grouped: bool | None = None
    scrolled: int = 0


@attrs.frozen
class Piece:
    """Text of one style; without a line end."""

    text: str
    style: str = PLAIN


@attrs.frozen(kw_only=True)
class _Row:
    """One row: one rank, or ranks that do the same.

    Attributes:
        ranks: which.
        state: how they stand.
        cells: text by column, without the path.
        path: where they are.
        style: how it is drawn.
        heat: what is higher the worse it stands, for `Order.HOT`.
        steps: the lowest step.
        for_ns: how long they are there.
    """

    ranks: tuple[int, ...]
    state: RankState
    cells: Mapping[str, str]
    path: str
    style: str
    heat: tuple[int, float, int]
    steps: int
    for_ns: int


def would_group(ranks: int, height: int | None) -> bool:
    """Whether so many ranks do not fit, each in a row of its own."""
    return height is not None and ranks > height - _AROUND_ROWS


def screen_of(
    snapshot: Snapshot, choices: Choices, *, width: int, height: int | None, hang_ns: int
) -> list[list[Piece]]:
    """Return the lines of the screen, at most `height` of them, each at most `width` columns.

    Args:
        snapshot: what is shown.
        choices: how.
        width: columns, at least 40.
        height: rows; None for as many as there are ranks.
        hang_ns: as given to `diagnose`.
    """
    width = max(MIN_WIDTH, width)
    postmortem = snapshot.postmortem
    head = _head(snapshot, width)
    foot = [] if height is None else [_keys(choices, width)]
    is_grouped = choices.is_grouped
    if is_grouped is None:
        is_grouped = would_group(len(postmortem.ranks), height)
    rows = _ordered(_rows(snapshot, is_grouped=is_grouped, hang_ns=hang_ns), choices.order)
    left = _MOST_ON_SUSPECTS if height is None else height - len(head) - 1 - len(rows) - len(foot)
    least = _LEAST_ON_SUSPECTS if height is not None and height < _TALL else _MOST_ON_SUSPECTS
    suspects = _suspects(postmortem, width, min(max(left, least), _MOST_ON_SUSPECTS))
    room = None if height is None else max(LEAST_ROWS, height - len(head) - 1 - len(suspects) - len(foot))
    shown, more = _scrolled(rows, choices.scrolled, room)
    widths = _widths(width)
    lines = [*head, [Piece(cut(_columns({name: name for name in widths}, widths) + "path", width), BOLD)]]
    lines += [_drawn(row, widths, width) for row in shown]
    if more:
        lines.append([Piece(cut(more, width), DIM)])
    if height is not None:
        lines += [[] for _ in range(height - len(lines) - len(suspects) - len(foot))]
    lines += suspects
    lines += foot
    return lines if height is None else lines[: max(0, height - len(foot))] + foot if len(lines) > height else lines


def _head(snapshot: Snapshot, width: int) -> list[list[Piece]]:
    postmortem = snapshot.postmortem
    states = Counter(rank.own.state for rank in postmortem.ranks)
    pieces: list[Piece] = []
    for state, count in sorted(states.items(), key=lambda each: (-each[1], each[0])):
        pieces.append(Piece(f"{count:,} {state}  ", _state_style(state)))
    if postmortem.is_hung:
        pieces.append(Piece("something hangs  ", RED))
    if snapshot.unreadable:
        pieces.append(Piece(f"{snapshot.unreadable:,} unreadable  ", YELLOW))
    running = (rank.rank for rank in postmortem.ranks if rank.own.state is RankState.RUNNING)
    paces = [pace for rank in running if (pace := snapshot.paces.get(rank)) is not None]
    if paces:
        pieces.append(Piece(f"{_pace_text(median(paces))} steps/s  "))
    looked = f"{utc(snapshot.at_ns)[11:]}, read in {span(snapshot.reading_ns)}"
    if snapshot.oldest_ns > 2_000_000_000:  # noqa: PLR2004 - two seconds: not all was read the last time
        looked += f", oldest {span(snapshot.oldest_ns)}"
    pieces.append(Piece(looked, DIM))
    return [[Piece(cut(f"stormphase top: {title_text(postmortem)}", width), BOLD)], _fitted(pieces, width)]


def _fitted(pieces: Iterable[Piece], width: int) -> list[Piece]:
    """Return as many pieces as fit."""
    fitted = []
    for piece in pieces:
        if columns(piece.text.rstrip()) > width:
            break
        fitted.append(piece)
        width -= columns(piece.text)
    return fitted


def _suspects(postmortem: Postmortem, width: int, most: int) -> list[list[Piece]]:
    """Return at most `most` lines on the suspects, of the first ones all that there is to say."""
    lines: list[str] = []
    told = 0
    for suspect in postmortem.suspects:
        text = printable(f"rank {suspect.rank}: {suspect.reason}")
        wrapped = textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)
        if len(lines) + len(wrapped) >= most and lines:
            break
        lines += wrapped
        told += 1
    found = [[Piece(cut(line, width), RED)] for line in lines[:most]]
    hidden = len(postmortem.suspects) - told
    if hidden > 0:
        found.append([Piece(cut(f"and {counted(hidden, 'suspect')} more: see stormphase postmortem", width), DIM)])
    if not found and postmortem.is_hung:
        found += [[Piece(cut(note, width), RED)] for note in postmortem.notes[:1]]
    return found


def _keys(choices: Choices, width: int) -> list[Piece]:
    pieces = [Piece("q", BOLD), Piece(" quit  sort:")]
    for order in Order:
        style = CYAN if order is choices.order else PLAIN
        pieces += [Piece(" "), Piece(order.value[0], BOLD), Piece(order.value[1:], style)]
    pieces += [Piece("  "), Piece("g", BOLD), Piece("roups  "), Piece("j k", BOLD), Piece(" scroll")]
    return _fitted(pieces, width)


def _rows(snapshot: Snapshot, *, is_grouped: bool, hang_ns: int) -> list[_Row]:
    postmortem = snapshot.postmortem
    order = {suspect.rank: index for index, suspect in enumerate(postmortem.suspects)}
    if not is_grouped:
        return [_rank_row(place, snapshot, order, hang_ns) for place in postmortem.places.values()]
    alone = {suspect.rank for suspect in postmortem.suspects[:MAX_ALONE]}
    rows = [_rank_row(postmortem.places[rank], snapshot, order, hang_ns) for rank in alone]
    for group in postmortem.groups:
        ranks = tuple(rank for rank in group.ranks if rank not in alone)
        if len(ranks) == 1:
            rows.append(_rank_row(postmortem.places[ranks[0]], snapshot, order, hang_ns))
        elif ranks:
            rows.append(_group_row(attrs.evolve(group, ranks=ranks), snapshot, hang_ns))
    return rows


def _rank_row(place: Place, snapshot: Snapshot, order: Mapping[int, int], hang_ns: int) -> _Row:
    phase = place.phase
    pace = snapshot.paces.get(place.rank)
    for_ns = 0 if phase is None else phase.for_ns
    cells = {
        "rank": str(place.rank),
        "state": str(place.state),
        "step": "" if place.step is None else str(place.step),
        "steps/s": "" if pace is None or place.state is not RankState.RUNNING else _pace_text(pace),
        "in phase": "" if phase is None else span(for_ns),
        "median": _median_text(None if phase is None else phase.usual),
    }
    suspicion = len(order) - order[place.rank] if place.rank in order else 0
    return _Row(
        ranks=(place.rank,),
        state=place.state,
        cells=cells,
        path="" if phase is None else path_text(phase.path),
        style=_style(place.state, [] if phase is None else [phase], hang_ns, is_suspect=bool(suspicion)),
        heat=(suspicion, _times_usual(phase), 1),
        steps=-1 if place.step is None else place.step,
        for_ns=for_ns,
    )


def _group_row(group: Group, snapshot: Snapshot, hang_ns: int) -> _Row:
    places = [snapshot.postmortem.places[rank] for rank in group.ranks]
    phases = [place.phase for place in places if place.phase is not None]
    paces = [pace for rank in group.ranks if (pace := snapshot.paces.get(rank)) is not None]
    medians = [
        phase.usual.median_ns for phase in phases if phase.usual is not None and phase.usual.median_ns is not None
    ]
    steps = "" if group.least_step is None else str(group.least_step)
    if group.greatest_step != group.least_step:
        steps = f"{steps}-{group.greatest_step}"
    cells = {
        "rank": f"{len(group.ranks):,}x {ranks_text(group.ranks)}",
        "state": str(group.state),
        "step": steps,
        "steps/s": _pace_text(median(paces)) if paces and group.state is RankState.RUNNING else "",
        "in phase": span(group.median_ns) if phases else "",
        "median": span(median(medians)) if medians else "",
    }
    return _Row(
        ranks=group.ranks,
        state=group.state,
        cells=cells,
        path=path_text(group.path),
        style=_style(group.state, phases, hang_ns, is_suspect=False),
        heat=(0, median(map(_times_usual, phases)) if phases else 0.0, len(group.ranks)),
        steps=-1 if group.least_step is None else group.least_step,
        for_ns=group.median_ns,
    )


def _times_usual(phase: OpenPhase | None) -> float:
    """Return how many times its median a phase is open; 0 where that is not known."""
    if phase is None or phase.usual is None or not phase.usual.median_ns:
        return 0.0
    return phase.for_ns / phase.usual.median_ns


def _median_text(usual: Usual | None) -> str:
    return "" if usual is None or usual.median_ns is None else span(usual.median_ns)


def _style(state: RankState, phases: Sequence[OpenPhase], hang_ns: int, *, is_suspect: bool) -> str:
    if state in DEAD or is_suspect:
        return RED
    if state in IN_ORDER:
        return DIM
    # Of most of a group: one slow rank among many is seen in its own row once it is a suspect.
    if state is RankState.SILENT or 2 * sum(is_overdue(phase, hang_ns) for phase in phases) > len(phases):
        return YELLOW
    return PLAIN


def _ordered(rows: list[_Row], order: Order) -> list[_Row]:
    keys = {
        Order.HOT: lambda row: (-row.heat[0], -row.heat[1], -row.heat[2], row.ranks),
        Order.RANK: lambda row: row.ranks,
        Order.STEP: lambda row: (row.steps, row.ranks),
        Order.TIME: lambda row: (-row.for_ns, row.ranks),
    }
    return sorted(rows, key=keys[order])


def _scrolled(rows: list[_Row], scrolled: int, room: int | None) -> tuple[list[_Row], str]:
    """Return the rows on the screen, and a line on those that are not."""
    if room is None or len(rows) <= room:
        return rows, ""
    room -= 1
    first = max(0, min(scrolled, len(rows) - room))
    hidden = len(rows) - room
    above = f", {first:,} of them above" if first else ""
    ranks = sum(len(row.ranks) for row in rows) - sum(len(row.ranks) for row in rows[first : first + room])
    return rows[first : first + room], f"{counted(hidden, 'row')} of {counted(ranks, 'rank')} not shown{above}"


def _widths(width: int) -> dict[str, int]:
    widths = {**_WIDTHS, **(_WIDER if width >= _WIDE else {})}
    for name in _DROPPED_WHEN_NARROW:
        if width - sum(widths.values()) - len(widths) >= _LEAST_FOR_PATH:
            break
        del widths[name]
    return widths


def _columns(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    parts = []
    for name, width in widths.items():
        text = cut(cells.get(name, ""), width)
        parts.append(padded(text, width) if name in ("rank", "state") else " " * (width - columns(text)) + text)
    return " ".join(parts) + " "


def _drawn(row: _Row, widths: Mapping[str, int], width: int) -> list[Piece]:
    figures = _columns(row.cells, widths)
    room = max(1, width - columns(figures))
    path = row.path
    # Of a long path the end says most.
    while columns(path) > room and " / " in path:
        path = path.split(" / ", 1)[1]
    if path != row.path and columns(path) + 2 <= room:
        path = f"\N{HORIZONTAL ELLIPSIS} {path}"
    return [Piece(cut(figures + cut(path, room), width), row.style)]


def _state_style(state: RankState) -> str:
    return RED if state in DEAD else YELLOW if state is RankState.SILENT else GREEN


def _pace_text(pace: float) -> str:
    digits = 0 if pace >= 99.95 else 1 if pace >= 9.995 else 2  # noqa: PLR2004 - three digits
    return f"{pace:,.{digits}f}"
