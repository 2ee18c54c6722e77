"""Which slots of a journal are phases: looked at a column at a time, since a journal has many and few are asked for."""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Sequence
from operator import le
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase.journal import _format
from stormphase.journal._copy import Segment
from stormphase.journal._damage import Damage
from stormphase.journal._plain import PlainError, parse

if TYPE_CHECKING:
    from collections.abc import Collection

SLOTS: Final = (_format.SEGMENT - _format.FIRST_SLOT) // _format.SLOT
ENTERED_AT, PARENT_AT, PATH_AT, LANE_AT, BLOB_AT, ENDED_AT, ON_TOP_AT = 0, 8, 24, 28, 32, 48, 56
_SLOTS_AT_ONCE: Final = 32
_COMMITS: Final = struct.Struct("<" + "40xQ16xQ" * SLOTS)
_LAST_STATUS: Final = max(_format.STATUSES)
_LATEST: Final = 2**62  # 146 years after the machine booted
# A blob is read at most this often: for itself, for the names of what is under it, for its pauses and its task.
_BLOB_BYTES: Final = 5 * _format.SEGMENT
_ENVELOPE_BIT: Final = _format.IS_ENVELOPE << 32  # of the word in which offset, length and flags stand
_PAUSED_NS: Final = b"paused_ns"
_TASK: Final = b"task"


@functools.cache
def _column(offset: int, code: str, slots: int) -> struct.Struct:
    after = _format.SLOT - offset - struct.calcsize(f"<{code}")
    return struct.Struct("<" + f"{offset}x{code}{after}x" * slots)


@attrs.define(eq=False)
class Slots:
    """The slots of one segment of phases.

    Attributes:
        segment: where they are.
        damage: takes notes of what cannot be read.
        used: how many slots, from the first, may hold a phase.
        sequences: the phases' numbers, by row.
        ended: the rows of ended phases, ascending.
        others: how those of them ended that did not succeed, by row.
        open: the rows of open phases; none in a folded segment.
        moved: the rows of those that have gone elsewhere since they were copied.
        superseded: the numbers of phases that stand in another slot.
        last_end_ns: none of them ended later; 0 if none has ended.
    """

    segment: Segment
    damage: Damage
    used: int = 0
    sequences: Sequence[int] = ()
    ended: Sequence[int] = ()
    others: dict[int, int] = attrs.field(factory=dict)
    open: list[int] = attrs.field(factory=list)
    moved: set[int] = attrs.field(factory=set)
    superseded: list[int] = attrs.field(factory=list)
    last_end_ns: int = 0
    _blob_bytes_left: int = _BLOB_BYTES

    @property
    def is_folded(self) -> bool:
        """Whether the ended phases are part of the totals."""
        return self.segment.is_folded

    def column(self, offset: int, code: str = "q") -> Sequence[int]:
        """Return one field of all used slots, by its offset in the slot and its code in `struct`."""
        slots = min(SLOTS, self.used + -self.used % _SLOTS_AT_ONCE)
        return _column(offset, code, slots).unpack_from(self.segment.data, _format.FIRST_SLOT)[: self.used]

    def of_ended(self, offset: int, code: str = "q") -> Sequence[int]:
        """Return one field of the ended phases, in their order."""
        column = self.column(offset, code)
        return column if len(self.ended) == self.used else [column[row] for row in self.ended]

    def fields(self, row: int) -> tuple[int, ...]:
        """Return all fields of one slot, in the order of `WHOLE_SLOT`."""
        return _format.WHOLE_SLOT.unpack_from(self.segment.data, _format.FIRST_SLOT + row * _format.SLOT)

    def offset_in_file(self, row: int) -> int:
        """Return where a slot begins in the file."""
        return self.segment.offset + _format.FIRST_SLOT + row * _format.SLOT

    def numbers(self) -> Collection[int]:
        """Return the numbers of the phases that count here, ended and open."""
        rows = len(self.ended) + len(self.open)
        if rows == self.used:
            return self.sequences
        sequences = self.sequences
        return [sequences[row] for rows in (self.ended, self.open) for row in rows]

    def blob(self, offset: int, length: int) -> dict[str, Any]:
        """Return the object that a blob encodes; empty if it is damaged, which is noted."""
        if not length:
            return {}
        value = None
        # Blobs do not overlap, unless somebody wants to keep a reader busy.
        self._blob_bytes_left -= length
        if offset >= _format.FIRST_SLOT and offset + length <= _format.SEGMENT and self._blob_bytes_left >= 0:
            try:
                value = parse(self.segment.data[offset : offset + length])
            except PlainError:
                value = None
        if type(value) is not dict:
            self.damage.note("what belongs to a phase beside its numbers is damaged")
            return {}
        return value

    def envelope(self, row: int) -> dict[str, Any]:
        """Return what stands beside the numbers of a phase: its attributes are one of its keys."""
        fields = self.fields(row)
        blob = self.blob(fields[5], fields[6])
        return blob if fields[7] & _format.IS_ENVELOPE or not blob else {"attributes": blob}

    def pauses(self) -> dict[int, int]:
        """Return how long the ended phases were paused, by row, of those that were."""
        data = self.segment.data
        if _PAUSED_NS not in data:
            return {}
        found = {}
        for row, word in zip(self.ended, self.of_ended(BLOB_AT, "Q"), strict=True):
            if not word & _ENVELOPE_BIT:
                continue
            at, length = word & 0xFFFF, word >> 16 & 0xFFFF
            if _PAUSED_NS in data[at : at + length]:
                paused_ns = self.blob(at, length).get("paused_ns", 0)
                if type(paused_ns) is int:
                    found[row] = paused_ns
        return found

    def tasks(self) -> dict[int, str]:
        """Return the names of tasks that stand here, by the number of their lane."""
        data = self.segment.data
        if _TASK not in data:
            return {}
        found = {}
        for row in (*self.ended, *self.open):
            _, _, _, _, lane, at, length, flags, *_ = self.fields(row)
            if flags & _format.IS_ENVELOPE and _TASK in data[at : at + length]:
                name = self.blob(at, length).get("task")
                if type(name) is str:
                    found[lane] = name
        return found

    def drop(self, rows: Collection[int]) -> None:
        """Take phases out of the story."""
        self.ended = [row for row in self.ended if row not in rows]
        self.open = [row for row in self.open if row not in rows]
        self.others = {row: status for row, status in self.others.items() if row not in rows}

    def end(self, row: int, slot: bytes, blob: bytes) -> None:
        """Say that an open phase has ended since it was copied: `slot` and `blob` are what stands there now."""
        fields = _format.WHOLE_SLOT.unpack(slot)
        data = bytearray(self.segment.data)
        at = _format.FIRST_SLOT + row * _format.SLOT
        data[at : at + _format.SLOT] = slot
        # Where blobs are, no slot of the copy is.
        if _format.FIRST_SLOT + self.used * _format.SLOT <= fields[5] <= _format.SEGMENT - len(blob):
            data[fields[5] : fields[5] + len(blob)] = blob
        self.segment = attrs.evolve(self.segment, data=bytes(data))
        self.open.remove(row)
        self.ended = sorted((*self.ended, row))
        self.last_end_ns = max(self.last_end_ns, fields[9])
        status = fields[11] >> _format.STATUS_SHIFT
        if status:
            self.others[row] = status


def look(segment: Segment, damage: Damage) -> Slots:
    """Return which slots of a segment are phases, open and ended."""
    slots = Slots(segment, damage)
    commits = _COMMITS.unpack_from(segment.data, _format.FIRST_SLOT)
    sequences, words = commits[0::2], commits[1::2]
    used = _used(segment, sequences, damage)
    slots.used = used
    slots.sequences = sequences = sequences[:used]
    words = words[:used]
    if sequences == words and 0 not in sequences and max(words, default=0) <= _format.SEQUENCE_MASK:
        # All of them succeeded, as most do.
        slots.ended = range(used)
    else:
        _sort_out(slots, words)
    _check_times(slots)
    return slots


def _used(segment: Segment, sequences: Sequence[int], damage: Damage) -> int:
    """Return how many slots, from the first, are used: the rest is empty, or blobs."""
    blobs_from = _format.SEGMENT_HEADER.unpack_from(segment.data)[7]
    limit: int = (blobs_from - _format.FIRST_SLOT) // _format.SLOT
    if not _format.FIRST_SLOT <= blobs_from <= _format.SEGMENT:
        damage.note("a segment does not say where its slots end")
        limit = (*sequences, 0).index(0)
    if 0 in sequences[:limit]:
        first_empty = sequences.index(0)
        # An interrupted enter may have left a slot out.
        if not any(sequences[first_empty:limit]):
            return first_empty
    return limit


def _sort_out(slots: Slots, words: Sequence[int]) -> None:
    ended = []
    for row, (sequence, word) in enumerate(zip(slots.sequences, words, strict=True)):
        status = word >> _format.STATUS_SHIFT
        if not sequence:
            continue  # Empty, or not written to its end.
        if sequence == word and not status:
            ended.append(row)
        elif not word and sequence <= _format.SEQUENCE_MASK:
            if not slots.is_folded:
                slots.open.append(row)
        elif word & _format.SEQUENCE_MASK != sequence:
            slots.damage.note("the commit word of a phase is damaged")
        elif status <= _LAST_STATUS:
            ended.append(row)
            slots.others[row] = status
        elif status == _format.SUPERSEDED:
            slots.superseded.append(sequence)
        elif status != _format.VOID:
            slots.damage.note("the commit word of a phase is damaged")
    slots.ended = ended


def _check_times(slots: Slots) -> None:
    """Take out phases that end before they begin, or that no machine has lived to see; note the last end."""
    ended = slots.of_ended(ENDED_AT)
    bad = {row for row in slots.open if not -_LATEST < slots.fields(row)[0] < _LATEST}
    last_end_ns = max(ended, default=0)
    is_sound = last_end_ns < _LATEST
    entered: Sequence[int] = ()
    if not slots.is_folded:
        entered = slots.of_ended(ENTERED_AT)
        is_sound = is_sound and all(map(le, entered, ended)) and min(entered, default=0) > -_LATEST
    if not is_sound:
        sound = [-_LATEST < began <= over < _LATEST for began, over in zip(entered or ended, ended, strict=True)]
        bad.update(row for row, is_sound in zip(slots.ended, sound, strict=True) if not is_sound)
        last_end_ns = max(itertools.compress(ended, sound), default=0)
    slots.last_end_ns = last_end_ns
    if bad:
        slots.damage.note("the times of a phase are damaged", len(bad))
        slots.drop(bad)
