"""Totals per path in the journal: rows of counts and of a histogram's buckets; they outlive what they sum up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stormphase._histogram import bucket_of, count_buckets
from stormphase._model import PhaseStatus
from stormphase.journal import _format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stormphase.journal._file import JournalFile
    from stormphase.journal._segments import Segments

OTHER: Final = 0
_KIND_SHIFT: Final = 32
_FIRST_SHIFT: Final = 40
_ROWS: Final = (_format.SEGMENT - _format.FIRST_ROW) // _format.ROW
_SUCCEEDED: Final = _format.STATUS_CODES[PhaseStatus.SUCCEEDED]
_COUNTED_AS: Final = {
    _format.STATUS_CODES[PhaseStatus.FAILED]: _format.FAILED,
    _format.STATUS_CODES[PhaseStatus.CANCELLED]: _format.CANCELLED,
    _format.STATUS_CODES[PhaseStatus.ABANDONED]: _format.ABANDONED,
}


class _Sum:
    """What one fold adds to one path."""

    __slots__ = ("buckets", "count", "longest_ns", "others", "own_ns", "shortest_ns", "total_ns")

    def __init__(self, first_ns: int) -> None:
        self.count = 0
        self.total_ns = 0
        self.own_ns = 0
        self.shortest_ns = first_ns
        self.longest_ns = 0
        self.buckets: dict[int, int] = {}
        self.others: dict[int, int] = {}  # by word: what few phases have


class Totals:
    """Adds ended phases up, and says which words of the journal change by that. Used by one thread at a time."""

    def __init__(self, file: JournalFile, segments: Segments) -> None:
        """Start with the row of `(other)`, so that whatever ends can always be counted somewhere."""
        self._file = file
        self._segments = segments
        self._next_row = self._last_row = 0
        self._path_rows: dict[int, int] = {}
        self._bucket_rows: dict[tuple[int, int], int] = {}
        self._sums: dict[int, _Sum] = {}
        self._changed: dict[int, int] = {}
        self._row_of(OTHER)

    def add(self, path: int, *, duration_ns: int, own_ns: int, paused_ns: int, status: int) -> None:
        """Count one ended phase."""
        total = self._sums.get(path)
        if total is None:
            total = self._sums[path] = _Sum(duration_ns)
        total.count += 1
        total.total_ns += duration_ns
        total.own_ns += own_ns
        if duration_ns < total.shortest_ns:  # noqa: PLR1730 - a call of min() costs more than all the rest
            total.shortest_ns = duration_ns
        if duration_ns > total.longest_ns:  # noqa: PLR1730 - likewise
            total.longest_ns = duration_ns
        bucket = bucket_of(duration_ns)
        buckets = total.buckets
        buckets[bucket] = buckets.get(bucket, 0) + 1
        if paused_ns:
            total.others[_format.PAUSED_NS] = total.others.get(_format.PAUSED_NS, 0) + paused_ns
        if status != _SUCCEEDED:
            word = _COUNTED_AS[status]
            total.others[word] = total.others.get(word, 0) + 1

    def add_all(self, path: int, durations_ns: Sequence[int], inside_ns: Sequence[int]) -> None:
        """Count phases of one path that have succeeded and were not paused.

        Args:
            path: its number.
            durations_ns: how long each took; at least one.
            inside_ns: how much of that their children had, in all.
        """
        total = self._sums.get(path)
        if total is None:
            total = self._sums[path] = _Sum(durations_ns[0])
        total_ns = sum(durations_ns)
        total.count += len(durations_ns)
        total.total_ns += total_ns
        total.own_ns += total_ns - sum(inside_ns)
        total.shortest_ns = min(total.shortest_ns, *durations_ns)
        total.longest_ns = max(total.longest_ns, *durations_ns)
        buckets = total.buckets
        for bucket, times in count_buckets(durations_ns).items():
            buckets[bucket] = buckets.get(bucket, 0) + times

    def forget(self) -> None:
        """Forget what was added since the last `changes`, and what that would have changed."""
        self._sums = {}
        self._changed = {}

    def changes(self) -> list[tuple[int, int]]:
        """Return offsets and values of the words that change by what was added since the last call."""
        sums, self._sums = self._sums, {}
        for path, total in sums.items():
            row = self._path_rows.get(path)
            if row is None:
                row = self._row_of(path)
            if row is None:
                path, row = OTHER, self._path_rows[OTHER]  # noqa: PLW2901 - there it is counted
            self._apply(path, row, total)
        changed, self._changed = self._changed, {}
        return list(changed.items())

    def _apply(self, path: int, row: int, total: _Sum) -> None:
        self._changed[row] = path | _format.PATH_ROW << _KIND_SHIFT
        count = self._value(row + 8 * _format.COUNT)
        self._changed[row + 8 * _format.COUNT] = count + total.count
        self._increase(row + 8 * _format.TOTAL_NS, total.total_ns)
        self._increase(row + 8 * _format.SELF_NS, total.own_ns)
        least_at = row + 8 * _format.MIN_NS
        if not count or total.shortest_ns < self._value(least_at):
            self._changed[least_at] = total.shortest_ns
        most_at = row + 8 * _format.MAX_NS
        if total.longest_ns > self._value(most_at):
            self._changed[most_at] = total.longest_ns
        for word, by in total.others.items():
            self._increase(row + 8 * word, by)
        for bucket, times in total.buckets.items():
            index = bucket % _format.BUCKETS_A_ROW
            bucket_row = self._bucket_row_of(path, bucket - index)
            if bucket_row is None:
                self._increase(row + 8 * _format.UNBUCKETED, times)
            else:
                self._changed[bucket_row] = path | _format.BUCKET_ROW << _KIND_SHIFT | (bucket - index) << _FIRST_SHIFT
                self._increase(bucket_row + 8 * (index + 1), times)

    def _value(self, offset: int) -> int:
        value = self._changed.get(offset)
        return self._file.word(offset) if value is None else value

    def _increase(self, offset: int, by: int) -> None:
        self._changed[offset] = self._value(offset) + by

    def _row_of(self, path: int) -> int | None:
        row = self._new_row()
        if row is not None:
            self._path_rows[path] = row
        return row

    def _bucket_row_of(self, path: int, first: int) -> int | None:
        row = self._bucket_rows.get((path, first))
        if row is None:
            row = self._new_row()
            if row is not None:
                self._bucket_rows[path, first] = row
        return row

    def _new_row(self) -> int | None:
        if self._next_row == self._last_row:
            segment = self._segments.take(_format.TOTALS)
            if segment is None:
                return None
            self._next_row = segment + _format.FIRST_ROW
            self._last_row = self._next_row + _ROWS * _format.ROW
        row = self._next_row
        self._next_row += _format.ROW
        return row
