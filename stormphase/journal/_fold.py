"""Emptying full segments: what has ended is added to the totals, what is open moves on, and the rest is room again.

What changes the file happens under one lock, mostly on the journal's worker, and takes the lock for some microseconds:
a training thread that finds no room anywhere has to have it as well. Whatever is interrupted there, by a signal handler
that raises or for want of memory, the next one to have the lock puts in order.
"""

from __future__ import annotations

import functools
import itertools
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from stormphase._phase import FINAL
from stormphase.journal import _format
from stormphase.journal._phase_facts import encoded, thread_facts
from stormphase.journal._plain import parse
from stormphase.journal._writer import SCRATCH_SLOT, SegmentWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from stormphase._phase import PhaseHandle
    from stormphase.journal._file import JournalFile
    from stormphase.journal._segments import Segments
    from stormphase.journal._totals import Totals

# A slot whose phase nobody has open was left behind by an interrupt. That is believed only after so many ticks, ten
# seconds: a phase that is just being paused or ended is for a moment nowhere, and its thread may have to wait long.
ORPHAN_TICKS: Final = 50
# A segment in which most phases are open is looked at more and more seldom, at last every so many ticks.
_LONGEST_PATIENCE: Final = 64
_MAX_NOTES: Final = 4_096
_TRIES: Final = 8
_BYTES_AT_ONCE: Final = 64 * _format.SLOT
# Some 20 us of work, and then a pause: who sleeps for no time has the GIL back before another thread has woken up.
_PAUSE_S: Final = 0.0005


def _pause() -> None:
    time.sleep(_PAUSE_S)  # noqa: TID251 - waits for nothing: training may want the GIL


def _no_pause() -> None:
    """Go on: somebody waits for it, or room is short."""


@functools.cache
def _commits(slots: int) -> struct.Struct:
    """Return what unpacks the sequence and the last word of so many slots."""
    return struct.Struct("<" + "40xQ16xQ" * slots)


class _Look:
    """What is in a segment: how many slots are used, how many phases have ended, and where the open ones are."""

    __slots__ = ("ended", "open_slots", "used")

    def __init__(self) -> None:
        self.used = 0
        self.ended = 0
        self.open_slots: list[int] = []


class Folder:
    """Folds, moves and clears. Thread-safe; from a signal handler that interrupts it, it does nothing.

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
        self._lock = threading.RLock()  # See `_locked`.
        self._owner = 0
        self._is_settled = True
        self._tick = 0
        self._fruitless_tick = -1
        self._folding: int | None = None
        self._orphans: dict[int, tuple[int, int]] = {}  # by slot: the phase's number, and the tick then
        self._patience: dict[int, tuple[int, int]] = {}  # by segment: when to look again, and how long that is
        self.folded_count = 0

    def note_tick(self) -> None:
        """Say that 0.2 s have passed."""
        self._tick += 1

    def fold(self, segment: int, *, is_urgent: bool = False) -> bool:
        """Fold one full segment; False if it cannot be now, or is in use. On one thread, the journal's worker.

        Args:
            segment: its offset.
            is_urgent: whether to do it at one go, and not let training have the GIL in between.
        """
        pause = _no_pause if is_urgent else _pause
        pause()
        if not self._locked(self._begin_fold, segment, self._open_now(segment)):
            return False
        try:
            added = self._add_up(segment, pause)
            pause()
            self._locked(self._end_fold, segment)
        finally:
            self._folding = None
            self._totals.forget()
        self.folded_count += added
        return True

    def clear_oldest_folded(self) -> bool:
        """Make the room of the segment that was folded first free; False if there is none."""
        return bool(self._locked(self._clear_oldest_folded))

    def make_room(self, full: Callable[[], int | None]) -> bool:
        """Clear one segment, folded or not, for a thread that finds no room; what is not folded by that is counted.

        Args:
            full: returns the next full segment, or None.

        Returns:
            False if there is nothing to clear.
        """
        if self.clear_oldest_folded():
            return True
        segment = full()
        if segment is not None and self._make_room_of(segment):
            return True
        if self._fruitless_tick == self._tick:  # Training must not look for room all the time.
            return False
        others = itertools.islice(filter(self._is_due, tuple(self._segments.in_use)), _TRIES)
        if any(map(self._make_room_of, others)):
            return True
        self._fruitless_tick = self._tick
        return False

    def _make_room_of(self, segment: int) -> bool:
        return bool(self._locked(self._discard, segment, self._open_now(segment)))

    def note_handed_over(self, phases: Iterable[PhaseHandle]) -> None:
        """Note on the records of ended phases that the bridge has them."""
        self._locked(self._note_handed_over, phases)

    def _locked(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Call under the lock; not at all, and None, in a signal handler that interrupted its owner.

        The lock is held for some microseconds, and whoever has it waits for no other. `with` and not `acquire`, since
        CPython up to 3.13 then has no place for a signal handler between getting the lock and what gives it back. From
        3.14 on it has: there the handler gets it once more, and does its work before the other has begun its own.
        """
        this_thread = threading.get_ident()
        if self._owner == this_thread:
            return None
        with self._lock:
            self._owner = this_thread
            try:
                if not self._is_settled:
                    self._segments.settle()
                self._is_settled = False
                result = work(*arguments)
                self._is_settled = True
                return result
            finally:
                self._owner = 0

    def _begin_fold(self, segment: int, now_open: _OpenPhases | None) -> bool:
        if not self._is_ready(segment, now_open):
            return False
        self._folding = segment
        return True

    def _end_fold(self, segment: int) -> None:
        stores = self._totals.changes()
        stores.append(self._segments.fold_store(segment))
        self._file.put_together(stores)
        self._segments.note_folded(segment)

    def _note_handed_over(self, phases: Iterable[PhaseHandle]) -> None:
        file = self._file
        words, buffer = file.words, file.buffer
        cleared = 0
        for phase in phases:
            slot = getattr(phase, "_slot", SCRATCH_SLOT)
            if slot == SCRATCH_SLOT:
                continue
            if words[(slot + _format.SEQUENCE_AT) >> 3] == phase._sequence:
                buffer[slot + _format.HANDED_OVER_AT] = 1
            else:
                cleared += 1
        if cleared and (unsent := file.word(_format.CLEARED_UNSENT)):
            file.put_word(_format.CLEARED_UNSENT, max(0, unsent - cleared))

    def _open_now(self, segment: int) -> _OpenPhases | None:
        """Return what is open, if that may be of use for a segment; without the lock, as it takes another one."""
        if not self._is_due(segment) or not self._look(segment).open_slots:
            return None
        return _OpenPhases(self._open_phases())

    def _is_due(self, segment: int) -> bool:
        """Whether the segment is one of phases that nobody writes any more, and that is to be folded now."""
        writer = self._segments.in_use.get(segment)
        return (
            writer is not None
            and self._segments.is_left(segment)
            and segment not in writer.pins
            and segment != self._folding
            and self._tick >= self._patience.get(segment, (0, 0))[0]
            and self._segments.is_in_use(segment)
        )

    def _is_ready(self, segment: int, now_open: _OpenPhases | None) -> bool:
        """Whether all that is open in a full segment has moved; moves it, unless that is the greater part."""
        if not self._is_due(segment):
            return False
        look = self._look(segment)
        if 2 * len(look.open_slots) > look.used:
            # To move them would win little; and what was moved would soon have to be moved again.
            patience = min(_LONGEST_PATIENCE, 2 * self._patience.get(segment, (0, 0))[1] or 1)
            self._patience[segment] = (self._tick + patience, patience)
            return False
        moved = [now_open is not None and self._move(slot, now_open) for slot in look.open_slots]  # Each is tried.
        if not all(moved):
            self._patience[segment] = (self._tick + 1, 0)
            return False
        self._patience.pop(segment, None)
        return True

    def _discard(self, segment: int, now_open: _OpenPhases | None) -> bool:
        """Clear a full segment that was not folded, and count what has ended in it."""
        if not self._is_ready(segment, now_open):
            return False
        ended = self._look(segment).ended  # Once more: some may have ended instead of being moved.
        self._segments.clear(segment, discarded=ended, unsent=self._unsent(segment, ended))
        return True

    def _look(self, segment: int) -> _Look:
        """Return what is in a segment."""
        first = segment + _format.FIRST_SLOT
        count = self._slots_of(segment)
        commits = _commits(count).unpack(self._file.bytes_at(first, count * _format.SLOT))
        sequences, words = commits[0::2], commits[1::2]
        look = _Look()
        if sequences == words and 0 not in sequences:  # All have succeeded, as most do.
            look.used = look.ended = count
            return look
        for row, (sequence, word) in enumerate(zip(sequences, words, strict=True)):
            if not sequence:
                continue
            look.used += 1
            if not word:
                look.open_slots.append(first + row * _format.SLOT)
            elif word >> _format.STATUS_SHIFT < _format.SUPERSEDED:
                look.ended += 1
        return look

    def _slots_of(self, segment: int) -> int:
        """Return how many slots there are before the blobs begin."""
        return (self._file.word(segment + _format.BLOBS_FROM) - _format.FIRST_SLOT) // _format.SLOT

    def _parts(self, segment: int, pause: Callable[[], object]) -> Iterator[Iterator[tuple[int, ...]]]:
        """Yield the fields of some slots at a time, as they were at the call, with a pause before each."""
        first = segment + _format.FIRST_SLOT
        data = self._file.bytes_at(first, self._slots_of(segment) * _format.SLOT)
        for at in range(0, len(data), _BYTES_AT_ONCE):
            pause()
            yield _format.WHOLE_SLOT.iter_unpack(data[at : at + _BYTES_AT_ONCE])

    def _add_up(self, segment: int, pause: Callable[[], object]) -> int:
        """Add what has ended in the segment to the totals, and return how many that are."""
        add = self._totals.add
        plain: dict[int, tuple[list[int], list[int]]] = {}  # by path: how long they took, and their children
        added = 0
        for fields in itertools.chain.from_iterable(self._parts(segment, pause)):
            entered_ns, _, _, path, _, blob_at, blob_length, flags, sequence, ended_ns, children_ns, word = fields
            if not sequence:
                continue
            if word == sequence and not flags & _format.IS_ENVELOPE:  # It has succeeded, and was never paused.
                durations_ns, inside_ns = plain.get(path) or plain.setdefault(path, ([], []))
                durations_ns.append(ended_ns - entered_ns)
                inside_ns.append(children_ns)
                continue
            status = word >> _format.STATUS_SHIFT
            if not word or status >= _format.SUPERSEDED:
                continue
            paused_ns = 0
            if flags & _format.IS_ENVELOPE:
                paused_ns = self._blob(segment, blob_at, blob_length, flags).get("paused_ns", 0)
            duration_ns = ended_ns - entered_ns
            own_ns = duration_ns - paused_ns - children_ns
            add(path, duration_ns=duration_ns, own_ns=own_ns, paused_ns=paused_ns, status=status)
            added += 1
        for path, (durations_ns, inside_ns) in plain.items():
            self._totals.add_all(path, durations_ns, inside_ns)
            added += len(durations_ns)
        return added

    def _move(self, slot: int, now_open: _OpenPhases) -> bool:  # noqa: PLR0911 - a case each, and most are rare
        """Move one open phase out of a full segment; False if it has to stay for now."""
        file = self._file
        fields = _format.WHOLE_SLOT.unpack(file.bytes_at(slot, _format.SLOT))
        entered_ns, parent, step, path, lane, blob_at, blob_length, flags, sequence, _, _, word = fields
        if word:  # It ended meanwhile.
            return True
        phase = now_open.find(sequence)
        if phase is None:
            return self._is_no_longer_open(slot, sequence)
        self._orphans.pop(slot, None)
        superseded = sequence | _format.SUPERSEDED << _format.STATUS_SHIFT
        its_slot = getattr(phase, "_slot", None)
        if its_slot != slot:  # Written anew a moment ago; or just entered, and not yet told where it stands.
            if its_slot is not None:
                file.put_word(slot + _format.WORD_AT, superseded)
            return its_slot is not None
        extra = phase._extra
        if extra is not None and extra.released and extra.token is None:
            return False  # It has been acquired a moment ago, and has another handle.
        envelope = self._blob(slot - slot % _format.SEGMENT, blob_at, blob_length, flags)
        envelope.update(thread_facts(phase._lane))
        new_slot, blob_word = self._mover.reserve(encoded(envelope))
        if new_slot == SCRATCH_SLOT:
            return False
        flags |= _format.IS_ENVELOPE
        put_enter = file.put_enter
        words = file.words
        # No call from this test to the last store but the one that stores: so the phase has either ended where it was,
        # or ends in its new slot; and no signal handler that raises leaves it in two places.
        if phase._status not in FINAL and phase._slot == slot and phase._extra is extra:
            phase._slot = new_slot
            try:
                put_enter(new_slot, entered_ns, parent, step, path, lane, blob_word, flags, sequence)
            finally:
                words[(slot + _format.WORD_AT) >> 3] = superseded
            return True
        # Its end has been seen, and need not be written yet.
        return file.word(slot + _format.WORD_AT) != 0

    def _is_no_longer_open(self, slot: int, sequence: int) -> bool:
        """Whether a slot that says open was left so by an interrupt; then it is taken out of the story, and counted."""
        known, since = self._orphans.get(slot, (0, 0))
        if known != sequence:
            if len(self._orphans) >= _MAX_NOTES:
                self._orphans.clear()
            self._orphans[slot] = (sequence, self._tick)
            return False
        if self._tick - since < ORPHAN_TICKS:
            return False
        self._orphans.pop(slot, None)
        void = (slot + _format.WORD_AT, sequence | _format.VOID << _format.STATUS_SHIFT)
        self._file.put_together([void, self._segments.discarded_store(1)])
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
        unsent = self._unsent(segment, self._look(segment).ended) if self._counts_unsent else 0
        self._segments.clear(segment, unsent=unsent)
        return True

    def _unsent(self, segment: int, ended: int) -> int:
        """Return how many of the ended phases of a segment were not handed over to the bridge."""
        if not self._counts_unsent:
            return 0
        first = segment + _format.FIRST_SLOT
        marks_from, slots_end = first + _format.HANDED_OVER_AT, first + self._slots_of(segment) * _format.SLOT
        return max(0, ended - self._file.buffer[marks_from : slots_end : _format.SLOT].count(1))


class _OpenPhases:
    """What is open, by number, as it was a moment ago."""

    def __init__(self, open_phases: Iterable[PhaseHandle]) -> None:
        self._found = {phase._sequence: phase for phase in open_phases}

    def find(self, sequence: int) -> PhaseHandle | None:
        return self._found.get(sequence)
