"""Open phases that must have ended unseen: an interrupt at the wrong instant kept their end from being written down.

A lane is a stack. So when a phase X is entered on a lane, an older phase P of that lane that was never taken off it is
either among the phases under which X stands, or it is over. It is over for certain if X's parent is older than P, and
that parent was not put on top of P by a pause and a resume. Whatever was paused once is therefore never believed to
tell anything, nor is it judged itself.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

from stormphase.journal import _format
from stormphase.journal._slots import LANE_AT, PARENT_AT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stormphase.journal._slots import Slots

    # The number of a phase, its parent's, and when it was entered.
    _Judged = tuple[int, int, int]
    Find = Callable[[int], "tuple[Slots, int] | None"]

_LOOKS_A_SLOT: Final = 8
_PAUSE_KEYS: Final = frozenset({"paused_ns", "paused_since_ns", "cut"})  # what was cut may have been a pause


def unseen_ends(all_slots: Sequence[Slots], find: Find) -> dict[int, int]:
    """Return, by number, the latest time at which open phases can have ended, of those that must have ended.

    Args:
        all_slots: the segments of phases.
        find: returns where the phase of a number stands, or None.
    """
    judged = _judged(all_slots)
    everywhere = sorted(sequence for lane in judged.values() for sequence, _, _ in lane)
    latest: dict[int, int] = {}
    looks_left = _LOOKS_A_SLOT * sum(slots.used for slots in all_slots)
    for slots in all_slots:
        if not _may_prove(slots, everywhere):
            continue
        for row, (older, others_parent, since_ns) in _pairs(slots, judged):
            looks_left -= 1
            if looks_left < 0:
                return latest
            entered_ns = slots.fields(row)[0]
            if since_ns <= entered_ns < latest.get(older, 2**63) and _proves(slots, row, others_parent, find):
                latest[older] = entered_ns
    return latest


def _judged(all_slots: Sequence[Slots]) -> dict[int, list[_Judged]]:
    """Return the open phases that were never taken off their lane, by lane, oldest first."""
    judged: dict[int, list[_Judged]] = {}
    for slots in all_slots:
        for row in slots.open:
            entered_ns, parent, _, _, lane, _, _, _, sequence, *_ = slots.fields(row)
            if row not in slots.moved and not _was_ever_paused(slots, row):
                judged.setdefault(lane, []).append((sequence, parent, entered_ns))
    for lane_phases in judged.values():
        lane_phases.sort()
    return judged


def _may_prove(slots: Slots, everywhere: list[int]) -> bool:
    """Whether a segment may hold a phase that is younger than an open one, and has an older parent: few do."""
    if not slots.used or not everywhere:
        return False
    first = bisect_right(everywhere, min(slots.column(PARENT_AT, "Q")))
    return first < len(everywhere) and everywhere[first] < max(slots.sequences)


def _pairs(slots: Slots, judged: dict[int, list[_Judged]]) -> Iterator[tuple[int, _Judged]]:
    """Yield rows, each with an open phase of its lane that is older than it, but younger than its parent."""
    parents = slots.column(PARENT_AT, "Q")
    lanes = slots.column(LANE_AT, "I")
    nobody: list[_Judged] = []
    for row in (*slots.ended, *slots.open):
        lane = judged.get(lanes[row], nobody)
        if lane:
            first = bisect_left(lane, (parents[row] + 1, 0, 0))
            for each in lane[first : bisect_left(lane, (slots.sequences[row], 0, 0))]:
                yield row, each


def _proves(slots: Slots, row: int, others_parent: int, find: Find) -> bool:
    """Whether a younger phase, whose parent is older than an open one of the same lane, proves that one over."""
    if _was_ever_paused(slots, row):
        return False
    _, parent, _, _, lane, *_ = slots.fields(row)
    if parent in (0, others_parent):
        return True
    place = find(parent)
    if place is None:
        return False
    return place[0].fields(place[1])[4] != lane or not _was_ever_paused(*place)


def _was_ever_paused(slots: Slots, row: int) -> bool:
    flags = slots.fields(row)[7]
    return bool(
        flags & _format.IS_PAUSED or (flags & _format.IS_ENVELOPE and not _PAUSE_KEYS.isdisjoint(slots.blob(row)))
    )
