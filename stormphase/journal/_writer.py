"""What one thread writes: a slot when it enters a phase, in segments of its own, so that no two threads share anything.

The plain case is written by `_enter` and by `PhaseHandle.__exit__` themselves; here is all that has more to say.
"""

from __future__ import annotations

from marshal import dumps
from typing import TYPE_CHECKING, Final

from stormphase.journal import _format
from stormphase.journal._phase_facts import all_facts, entered_facts, parent_sequence, step_word

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormphase._phase import PhaseHandle
    from stormphase.journal._journal import OpenJournal

# Here, since a module's own names are faster to come by.
_MARSHAL_VERSION: Final = 2
_SLOT: Final = _format.SLOT
_NO_STEP: Final = _format.NO_STEP
_MAX_BLOB: Final = _format.MAX_BLOB
_BLOBS_FROM: Final = _format.BLOBS_FROM
_OFFSET_MASK: Final = _format.SEGMENT - 1
_SEGMENT_MASK: Final = ~_OFFSET_MASK
# Where phases are written for which there is no room: stored into, and never read.
SCRATCH_SLOT: Final = _format.SCRATCH_AT + _format.FIRST_SLOT


class SegmentWriter:
    """Where a thread writes its next slot. Used by its own thread and by signal handlers on it.

    Attributes:
        slot: offset of the next slot in the file.
        last_slot: the last offset at which a slot still fits; lower than `slot` if there is no segment.
        segment: offset of the segment, or None.
        traces_phases: whether phases may begin traces of their own, so that each has to be asked for its facts.
        write_enter: `ENTER.pack_into` on the mapped file.
    """

    __slots__ = (
        "_blobs_from",
        "_buffer",
        "_journal",
        "_thread",
        "_words",
        "last_slot",
        "segment",
        "slot",
        "traces_phases",
        "write_enter",
    )

    def __init__(self, journal: OpenJournal, thread: tuple[int, int, int]) -> None:
        """Begin without a segment: the first phase takes one.

        Args:
            journal: whose file it is.
            thread: the thread's ident, the number of its name, and flags.
        """
        self._journal = journal
        self._thread = thread
        self.traces_phases = journal.phase_trace is not None
        self._words = journal.file.words
        self._buffer = journal.file.buffer
        self.write_enter: Callable[..., None] = journal.file.put_enter
        self.segment: int | None = None
        self.leave_segment()

    def leave_segment(self) -> None:
        """Have no segment any more: the next phase takes one."""
        self.segment = None
        self.slot = 1
        self.last_slot = 0
        self._blobs_from = 0

    def enter(self, phase: PhaseHandle) -> None:
        """Write a phase that has just been entered, whatever there is to say of it."""
        parent = phase._below._sequence
        path = phase._path.number
        lane = phase._lane
        if phase._extra is not None or not path or self.traces_phases or not (parent or lane.task_name is None):
            self._enter_with_facts(phase)
            return
        # Most have attributes and no more; written here in one piece, since this is on the way of training.
        attributes = phase._attributes
        blob = dumps(attributes, _MARSHAL_VERSION) if attributes else b""
        length = len(blob)
        # As in `_take`.
        slot = self.slot
        last_slot = self.last_slot - length
        blobs_from = self._blobs_from
        start = blobs_from - length
        self.slot = slot + _SLOT
        self.last_slot = last_slot
        self._blobs_from = start
        if slot > last_slot or length > _MAX_BLOB:
            self._enter_with_facts(phase)
            return
        phase._slot = slot
        offset = start & _OFFSET_MASK
        # First where blobs begin, so that no reader takes one for a slot.
        self._words[(slot & _SEGMENT_MASK | _BLOBS_FROM) >> 3] = offset
        self._buffer[start:blobs_from] = blob
        step = phase._step
        self.write_enter(
            slot,
            phase._entered_ns,
            parent,
            _NO_STEP if step is None else step,
            path,
            lane.number,
            offset | length << 16,
            0,
            phase._sequence,
        )

    def _enter_with_facts(self, phase: PhaseHandle) -> None:
        flags, blob = entered_facts(phase, self._journal.phase_trace)
        phase._slot = slot = self._write(phase, flags, blob, is_ended=False)
        if slot == SCRATCH_SLOT:
            self._journal.note_unwritten()

    def rewrite(self, phase: PhaseHandle, *, word: int = 0) -> None:
        """Write a phase anew with all there is to say of it now, and take its old slot out of the story.

        Args:
            phase: the phase, open or ended.
            word: for an ended one, the last word of its slot.
        """
        flags, blob = all_facts(phase, self._journal.phase_trace)
        slot = self._write(phase, flags, blob, is_ended=bool(word), word=word)
        if slot == SCRATCH_SLOT:
            if word:
                self._journal.file.put_exit(phase._slot, phase._ended_ns, phase._children_ns, word)
            return
        # No call between the two: the folder moves slots of open phases, and looks where they are before it does.
        old_slot = phase._slot
        phase._slot = slot
        if old_slot != SCRATCH_SLOT:
            superseded = phase._sequence | _format.SUPERSEDED << _format.STATUS_SHIFT
            self._journal.file.put_word(old_slot + _format.WORD_AT, superseded)

    def copy(self, fields: tuple[int, int, int, int, int, int, int], blob: bytes) -> int:
        """Write an open phase that stood elsewhere.

        Args:
            fields: entered, parent, step, path, lane, flags and sequence.
            blob: its new blob.

        Returns:
            The new slot, or `SCRATCH_SLOT` where there is no room.
        """
        entered_ns, parent, step, path, lane, flags, sequence = fields
        slot, start = self._take(len(blob))
        if slot != SCRATCH_SLOT:
            blob_word = self._put_blob(start, blob)
            self.write_enter(slot, entered_ns, parent, step, path, lane, blob_word, flags, sequence)
        return slot

    def _write(self, phase: PhaseHandle, flags: int, blob: bytes, *, is_ended: bool, word: int = 0) -> int:
        slot, start = self._take(len(blob))
        if slot == SCRATCH_SLOT:
            return slot
        blob_word = self._put_blob(start, blob) if blob else 0
        if is_ended:  # First, since the slot counts from the moment when the enter's last word stands.
            self._journal.file.put_exit(slot, phase._ended_ns, phase._children_ns, word)
        self.write_enter(
            slot,
            phase._entered_ns,
            parent_sequence(phase),
            step_word(phase._step),
            phase._path.number,
            phase._lane.number,
            blob_word,
            flags,
            phase._sequence,
        )
        return slot

    def _put_blob(self, start: int, blob: bytes) -> int:
        """Store a blob, and return the word of the slot that says where."""
        file = self._journal.file
        offset = start % _format.SEGMENT
        # First where blobs begin, so that no reader takes one for a slot.
        file.put_word(start - offset + _format.BLOBS_FROM, offset)
        file.put_bytes(start, blob)
        return offset | len(blob) << 16

    def _take(self, length: int) -> tuple[int, int]:
        """Return the offsets of a slot and of so many bytes for its blob; `SCRATCH_SLOT` where there is no room."""
        while True:
            # No call or jump from here to the last store, so that a signal handler's phases get others.
            slot = self.slot
            last_slot = self.last_slot - length
            start = self._blobs_from - length
            self.slot = slot + _format.SLOT
            self.last_slot = last_slot
            self._blobs_from = start
            if slot <= last_slot:
                return slot, start
            if not self._use_next_segment():
                return SCRATCH_SLOT, 0

    def _use_next_segment(self) -> bool:
        segment = self._journal.next_segment(self, self._thread)
        if segment is None:
            return False
        full = self.segment
        self.segment = segment
        self.slot = segment + _format.FIRST_SLOT
        self._blobs_from = blobs_from = segment + _format.SEGMENT
        self.last_slot = blobs_from - _format.SLOT
        if full is not None:
            self._journal.note_full(full)
        return True
