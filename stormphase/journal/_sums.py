"""What is known of all phases of a path: from the rows of the journal's totals, and the records not in them yet."""

from __future__ import annotations

import struct
from collections import Counter
from operator import sub
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._histogram import bucket_of, count_buckets
from stormphase._model import PhaseStatus
from stormphase.journal import _format
from stormphase.journal._image import PathTotals
from stormphase.journal._slots import ENDED_AT, ENTERED_AT, ON_TOP_AT, PATH_AT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from stormphase.journal._copy import Segment
    from stormphase.journal._damage import Damage
    from stormphase.journal._image import JournalPhase
    from stormphase.journal._names import Names
    from stormphase.journal._slots import Slots

LAST_BUCKET: Final = bucket_of(2**64 - 1)
_AT_ONCE: Final = 65_536  # phases
_ROWS: Final = (_format.SEGMENT - _format.FIRST_ROW) // _format.ROW
_KINDS: Final = struct.Struct("<" + f"Q{_format.ROW - 8}x" * _ROWS)
_PATH_ROW: Final = struct.Struct("<QQqQQQQQQQ")  # words 1 to 10, in the order of the fields of `Sums`
_BUCKETS: Final = struct.Struct(f"<{_format.BUCKETS_A_ROW}Q")


@attrs.define
class Sums:
    """What is added up for one path; see `PathTotals`."""

    count: int = 0
    total_ns: int = 0
    self_ns: int = 0
    failed: int = 0
    min_ns: int = 2**64
    max_ns: int = 0
    paused_ns: int = 0
    cancelled: int = 0
    abandoned: int = 0
    unbucketed: int = 0
    buckets: Counter[int] = attrs.field(factory=Counter)

    def add(self, durations: list[int]) -> None:
        """Add ended phases with their durations, as if nothing had run on top of them."""
        total_ns = sum(durations)
        self.count += len(durations)
        self.total_ns += total_ns
        self.self_ns += total_ns
        shortest_ns, longest_ns = min(durations), max(durations)
        self.min_ns = min(self.min_ns, shortest_ns)
        self.max_ns = max(self.max_ns, longest_ns)
        self.buckets.update(count_buckets(durations))

    def add_pause(self, paused_ns: int) -> None:
        """Say how long a phase that was added had been paused."""
        self.self_ns -= paused_ns
        self.paused_ns += paused_ns

    def count_status(self, code: int) -> None:
        """Say how a phase that was added ended, if not well."""
        status = _format.STATUSES[code]
        self.failed += status is PhaseStatus.FAILED
        self.cancelled += status is PhaseStatus.CANCELLED
        self.abandoned += status is PhaseStatus.ABANDONED

    def add_abandoned(self, phase: JournalPhase) -> None:
        """Add a phase that must have ended unseen."""
        self.add([(phase.ended_ns or 0) - phase.entered_ns])
        self.abandoned += 1

    def merge(self, other: Sums) -> None:
        """Add what was added up for another number."""
        self.count += other.count
        self.total_ns += other.total_ns
        self.self_ns += other.self_ns
        self.failed += other.failed
        self.min_ns = min(self.min_ns, other.min_ns)
        self.max_ns = max(self.max_ns, other.max_ns)
        self.paused_ns += other.paused_ns
        self.cancelled += other.cancelled
        self.abandoned += other.abandoned
        self.unbucketed += other.unbucketed
        self.buckets.update(other.buckets)

    def as_totals(self, path: tuple[str, ...]) -> PathTotals:
        """Return them, frozen."""
        return PathTotals(
            path=path,
            count=self.count,
            failed=self.failed,
            cancelled=self.cancelled,
            abandoned=self.abandoned,
            total_ns=self.total_ns,
            self_ns=self.self_ns,
            paused_ns=self.paused_ns,
            min_ns=self.min_ns if self.count else 0,
            max_ns=self.max_ns,
            buckets=dict(self.buckets),
            unbucketed=self.unbucketed,
        )


def add_records(found: dict[int, Sums], all_slots: Iterable[Slots], uncounted: Mapping[int, Collection[int]]) -> None:
    """Add the ended phases of segments that are not folded, but for the rows in `uncounted`, by index of the segment.

    Goes through the phases once, and then through the durations of each path in C: a journal may hold a million.
    """
    durations: dict[int, list[int]] = {}
    waiting = 0
    for index, slots in enumerate(all_slots):
        if slots.is_folded:
            continue
        without = uncounted.get(index, ())
        _sort_by_path(found, durations, slots, without)
        waiting += len(slots.ended)
        if waiting > _AT_ONCE:
            _add(found, durations)
            waiting = 0
        pauses = slots.pauses()
        if slots.others or pauses:
            path_of = slots.column(PATH_AT, "I")
            for row, paused_ns in pauses.items():
                if row not in without:
                    _sums_of(found, path_of[row]).add_pause(paused_ns)
            for row, status in slots.others.items():
                if row not in without:
                    _sums_of(found, path_of[row]).count_status(status)
    _add(found, durations)


def _sort_by_path(
    found: dict[int, Sums], durations: dict[int, list[int]], slots: Slots, without: Collection[int]
) -> None:
    lasted = map(sub, slots.of_ended(ENDED_AT), slots.of_ended(ENTERED_AT))
    phases: Iterable[tuple[int, int, int]]
    phases = zip(slots.of_ended(PATH_AT, "I"), lasted, slots.of_ended(ON_TOP_AT), strict=True)
    if without:
        phases = [phase for phase, row in zip(phases, slots.ended, strict=True) if row not in without]
    for path, duration_ns, on_top_ns in phases:
        try:
            durations[path].append(duration_ns)
        except KeyError:
            durations[path] = [duration_ns]
        if on_top_ns:
            _sums_of(found, path).self_ns -= on_top_ns


def _add(found: dict[int, Sums], durations: dict[int, list[int]]) -> None:
    for path, of_path in durations.items():
        _sums_of(found, path).add(of_path)
    durations.clear()


def _sums_of(found: dict[int, Sums], path: int) -> Sums:
    sums = found.get(path)
    if sums is None:
        sums = found[path] = Sums()
    return sums


def read_rows(segments: Iterable[Segment], damage: Damage) -> dict[int, Sums]:
    """Return what the rows of the journal's totals say, by number of the path."""
    found: dict[int, Sums] = {}
    for segment in segments:
        for index, word in enumerate(_KINDS.unpack_from(segment.data, _format.FIRST_ROW)):
            if word:
                _read_row(found, word, segment.data, _format.FIRST_ROW + index * _format.ROW, damage)
    for sums in found.values():
        if sums.buckets.total() + sums.unbucketed != sums.count:
            damage.note("the histogram of a path does not add up")
    return found


def _read_row(found: dict[int, Sums], word: int, data: bytes, at: int, damage: Damage) -> None:
    number = word & 0xFFFFFFFF
    kind = word >> 32 & 0xFF
    first = word >> 40
    sums = _sums_of(found, number)
    if kind == _format.PATH_ROW:
        row = Sums(*_PATH_ROW.unpack_from(data, at + 8))
        if row.count:
            sums.merge(row)
    elif kind == _format.BUCKET_ROW and first <= LAST_BUCKET:
        for bucket, times in enumerate(_BUCKETS.unpack_from(data, at + 8), first):
            if times:
                sums.buckets[bucket] += times
    else:
        damage.note("a row of the totals is damaged")


def totals_by_path(sums: dict[int, Sums], names: Names) -> dict[tuple[str, ...], PathTotals]:
    """Return the totals by path. Numbers whose names are lost have one path, so they are added up."""
    merged: dict[tuple[str, ...], Sums] = {}
    for number, each in sums.items():
        if each.count:
            path = names.path(number)
            if path in merged:
                merged[path].merge(each)
            else:
                merged[path] = each
    return {path: each.as_totals(path) for path, each in merged.items()}
