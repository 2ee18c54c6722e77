"""Emptying full segments: what has ended is added to the totals, what is open moves on, and the rest is room again.

All of it happens under one lock, on the journal's worker; a training thread that finds no room anywhere tries the lock
once and never waits for it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from stormphase._phase import FINAL
from stormphase.journal import _format
from stormphase.journal._phase_facts import encoded
from stormphase.journal._plain import parse
from stormphase.journal._writer import SCRATCH_SLOT, SegmentWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stormphase._phase import PhaseHandle
    from stormphase.journal._file import JournalFile
    from stormphase.journal._segments import Segments
    from stormphase.journal._totals import Totals

# A slot whose phase nobody has open was left behind by an interrupt. It is believed only when seen so often, since a
# phase that is just being paused is for a moment nowhere.
_ORPHAN_LOOKS: Final = 3
_SLOTS_AT_ONCE: Final = 64
_NOTHING_OPEN: Final[dict[int, Any]] = {}


class Folder:
    """Folds, moves and clears. Its methods take the lock; none raises.

    Args:
        file: the journal.
        segments: its segments.
        totals: where to add to.
        open_phases: returns what is open now.
        mover: writes the phases that move.
        counts_unsent: whether there is a bridge that ended phases are to be handed over to.
    """

    def __init__(
        self,
        file: JournalFile,
        segments: Segments,
        totals: Totals,
        open_phases: Callable[[], Iterable[PhaseHandle]],
        mover: SegmentWriter,
        *,
        counts_unsent: bool,
    ) -> None:
        """Start with nothing to fold."""
        self._file = file
        self._segments = segments
        self._totals = totals
        self._open_phases = open_phases
        self._mover = mover
        self._counts_unsent = counts_unsent
        self._lock = threading.Lock()
        self._orphan_looks: dict[int, int] = {}
        self.folded_count = 0

    def fold(self, segment: int) -> bool:
        """Fold one full segment; False if it cannot be now, or is in use."""
        with self._lock:
            return self._fold(segment)

    def clear_oldest_folded(self) -> bool:
        """Make the room of the segment that was folded first free; False if there is none."""
        with self._lock:
            return self._clear_oldest_folded()

    def make_room(self, full: Callable[[], int | None]) -> None:
        """Clear one segment, folded or not, for a thread that finds no room; what is not folded by that is counted.

        Args:
            full: returns the next full segment, or None.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._clear_oldest_folded():
                return
            segment = full()
            if segment is None or not self._is_full(segment):
                return
            ended, open_slots = self._look(segment)
            if all(self._move(slot, _OpenPhases(self._open_phases)) for slot in open_slots):
                self._count_unsent(segment, ended)
                self._segments.clear(segment, discarded=ended)
        finally:
            self._lock.release()

    def note_handed_over(self, phase: PhaseHandle) -> None:
        """Note on the record of an ended phase that the bridge has it."""
        slot = phase._slot
        file = self._file
        with self._lock:
            if slot == SCRATCH_SLOT:
                return
            if file.word(slot + _format.SEQUENCE_AT) == phase._sequence:
                file.put_bytes(slot + _format.HANDED_OVER_AT, b"\x01")
            elif (unsent := file.word(_format.CLEARED_UNSENT)) > 0:
                file.put_word(_format.CLEARED_UNSENT, unsent - 1)

    def _is_full(self, segment: int) -> bool:
        """Whether the segment is one of phases that nobody writes any more."""
        writer = self._segments.in_use.get(segment)
        return writer is not None and writer.segment != segment

    def _fold(self, segment: int) -> bool:
        if not self._is_full(segment):
            return False
        _, open_slots = self._look(segment)
        if open_slots:
            now_open = _OpenPhases(self._open_phases)
            if sum(self._move(slot, now_open) for slot in open_slots) < len(open_slots):  # Each is tried.
                return False
        self._add_up(segment)
        stores = self._totals.changes()
        stores.append((segment + _format.KIND_AND_STATE, _format.PHASES | _format.FOLDED << 8))
        self._file.put_together(stores)
        self._segments.note_folded(segment)
        return True

    def _look(self, segment: int) -> tuple[int, list[int]]:
        """Return how many phases in the segment have ended, and the slots of the open ones."""
        ended = 0
        open_slots = []
        for slot, fields in self._slots(segment):
            if not fields[11]:
                open_slots.append(slot)
            elif fields[11] >> _format.STATUS_SHIFT < _format.SUPERSEDED:
                ended += 1
        return ended, open_slots

    def _slots(self, segment: int) -> list[tuple[int, tuple[int, ...]]]:
        """Return offset and fields of each slot that is not empty."""
        blobs_from = self._file.word(segment + _format.BLOBS_FROM)
        count = (blobs_from - _format.FIRST_SLOT) // _format.SLOT
        first = segment + _format.FIRST_SLOT
        data = self._file.bytes_at(first, count * _format.SLOT)
        found = zip(range(first, first + len(data), _format.SLOT), _format.WHOLE_SLOT.iter_unpack(data), strict=True)
        return [(slot, fields) for slot, fields in found if fields[8]]

    def _add_up(self, segment: int) -> None:
        add = self._totals.add
        for index, (_, fields) in enumerate(self._slots(segment)):
            if not index % _SLOTS_AT_ONCE:
                time.sleep(0)  # noqa: TID251 - waits for nothing: training may want the GIL
            entered_ns, _, _, path, _, blob_at, blob_length, flags, _, ended_ns, children_ns, word = fields
            status = word >> _format.STATUS_SHIFT
            if not word or status >= _format.SUPERSEDED:
                continue
            paused_ns = 0
            if flags & _format.IS_ENVELOPE:
                paused_ns = self._blob(segment, blob_at, blob_length, flags).get("paused_ns", 0)
            duration_ns = ended_ns - entered_ns
            own_ns = duration_ns - paused_ns - children_ns
            add(path, duration_ns=duration_ns, own_ns=own_ns, paused_ns=paused_ns, status=status)
            self.folded_count += 1

    def _move(self, slot: int, now_open: _OpenPhases) -> bool:
        """Move one open phase out of a full segment; False if it has to stay for now."""
        file = self._file
        fields = _format.WHOLE_SLOT.unpack(file.bytes_at(slot, _format.SLOT))
        entered_ns, parent, step, path, lane, blob_at, blob_length, flags, sequence, _, _, word = fields
        if word:  # It ended meanwhile.
            return True
        phase = now_open.by_sequence().get(sequence)
        if phase is None:
            return self._is_no_longer_open(slot, sequence)
        its_slot = getattr(phase, "_slot", None)
        if its_slot != slot:  # Written anew a moment ago; or just entered, and not yet told where it stands.
            if its_slot is not None:
                file.put_word(slot + _format.WORD_AT, sequence | _format.SUPERSEDED << _format.STATUS_SHIFT)
            return its_slot is not None
        segment = slot - slot % _format.SEGMENT
        envelope = self._blob(segment, blob_at, blob_length, flags)
        owner = phase._lane
        envelope.update(thread_id=owner.thread_id, thread_name=owner.thread_name)
        if owner.thread_id == threading.main_thread().ident:
            envelope["is_main"] = True
        moved = (entered_ns, parent, step, path, lane, flags | _format.IS_ENVELOPE, sequence)
        new_slot = self._mover.copy(moved, encoded(envelope))
        if new_slot == SCRATCH_SLOT:
            return False
        if phase._status not in FINAL and phase._slot == slot:  # No call between this and the store.
            phase._slot = new_slot
        else:
            file.put_word(new_slot + _format.WORD_AT, sequence | _format.VOID << _format.STATUS_SHIFT)
            return True
        file.put_word(slot + _format.WORD_AT, sequence | _format.SUPERSEDED << _format.STATUS_SHIFT)
        return True

    def _is_no_longer_open(self, slot: int, sequence: int) -> bool:
        """Whether a slot that says open was left so by an interrupt; then it is taken out of the story, and counted."""
        looks = self._orphan_looks.get(slot, 0) + 1
        if looks < _ORPHAN_LOOKS:
            self._orphan_looks[slot] = looks
            return False
        self._orphan_looks.pop(slot, None)
        segment = slot - slot % _format.SEGMENT
        discarded_at = segment + _format.DISCARDED
        void = (slot + _format.WORD_AT, sequence | _format.VOID << _format.STATUS_SHIFT)
        self._file.put_together([void, (discarded_at, self._file.word(discarded_at) + 1)])
        return True

    def _blob(self, segment: int, offset: int, length: int, flags: int) -> dict[str, Any]:
        """Return the blob of a slot as an envelope."""
        if not length:
            return {}
        value = parse(self._file.bytes_at(segment + offset, length))
        return value if flags & _format.IS_ENVELOPE else {"attributes": value}

    def _clear_oldest_folded(self) -> bool:
        segment = self._segments.oldest_folded()
        if segment is None:
            return False
        if self._counts_unsent:
            self._count_unsent(segment, self._look(segment)[0])
        self._segments.clear(segment)
        return True

    def _count_unsent(self, segment: int, ended: int) -> None:
        if not self._counts_unsent:
            return
        handed_over = sum(1 for _, fields in self._slots(segment) if fields[7] & _format.IS_HANDED_OVER)
        if ended > handed_over:
            unsent = self._file.word(_format.CLEARED_UNSENT) + ended - handed_over
            self._file.put_word(_format.CLEARED_UNSENT, unsent)


class _OpenPhases:
    """What is open, by number; looked up once, and only if somebody asks."""

    def __init__(self, open_phases: Callable[[], Iterable[PhaseHandle]]) -> None:
        self._open_phases = open_phases
        self._found = _NOTHING_OPEN

    def by_sequence(self) -> dict[int, PhaseHandle]:
        if self._found is _NOTHING_OPEN:
            self._found = {phase._sequence: phase for phase in self._open_phases()}
        return self._found
