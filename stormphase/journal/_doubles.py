"""Phases that stand in several slots: which one is the phase, as docs/journal-format.md says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stormphase.journal._slots import Slots


def settle(all_slots: Sequence[Slots]) -> dict[int, set[int]]:
    """Leave each phase in one slot only.

    An ended slot wins over an open one, then the one that was written later.

    Args:
        all_slots: the segments of phases, by serial.

    Returns:
        By index in `all_slots` the rows of ended phases that are part of the totals already, since another slot of
        theirs is in a folded segment.
    """
    seen: set[int] = set()
    total = 0
    for slots in all_slots:
        numbers = slots.numbers()
        total += len(numbers)
        seen.update(numbers)
    return {} if total == len(seen) else _settle(all_slots)


def missing(all_slots: Sequence[Slots]) -> bool:
    """Whether a phase is said to stand elsewhere, and does not: it was just being moved, or ended long ago."""
    superseded = {number for slots in all_slots if not slots.is_folded for number in slots.superseded}
    for slots in all_slots:
        if not superseded:
            return False
        superseded.difference_update(slots.numbers())
    return bool(superseded)


def _settle(all_slots: Sequence[Slots]) -> dict[int, set[int]]:
    places: dict[int, list[tuple[bool, int, int]]] = {}
    for index, slots in enumerate(all_slots):
        for is_ended, rows in ((True, slots.ended), (False, slots.open)):
            for row in rows:
                places.setdefault(slots.sequences[row], []).append((is_ended, index, row))
    losers: dict[int, set[int]] = {}
    uncounted: dict[int, set[int]] = {}
    for found in places.values():
        if len(found) == 1:
            continue
        found.sort()
        winner_is_ended, winner, winner_row = found.pop()
        for _, index, row in found:
            losers.setdefault(index, set()).add(row)
        if winner_is_ended and any(is_ended and all_slots[index].is_folded for is_ended, index, _ in found):
            uncounted.setdefault(winner, set()).add(winner_row)
    for index, lost in losers.items():
        all_slots[index].drop(lost)
    return uncounted
