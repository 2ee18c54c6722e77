"""What one thread writes: a slot when it enters a phase, in segments of its own, so that no two threads share anything.

The plain case is written by `_enter` and by `PhaseHandle.__exit__` themselves; here is all that has more to say.
"""

from __future__ import annotations

from marshal import dumps
from typing import TYPE_CHECKING, Final

from stormphase import _native
from stormphase.journal import _format
from stormphase.journal._file import GONE
from stormphase.journal._phase_facts import all_facts, entered_facts, parent_sequence, step_word

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

    from stormphase._phase import PhaseHandle
    from stormphase.journal._file import Gone
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
        pins: segments, besides that one, which calls that are under way have chosen a place in.
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
        "pins",
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
        self._words: memoryview | Gone = journal.file.words
        self._buffer: mmap.mmap | Gone = journal.file.buffer
        self.write_enter: Callable[..., None] = journal.file.put_enter
        self.pins: tuple[int, ...] = ()
        self.segment: int | None = None
        self.leave_segment()

    def leave_segment(self) -> None:
        """Have no segment any more: the next phase takes one."""
        self.segment = None
        self.slot = 1
        self.last_slot = 0
        self._blobs_from = 0

    def let_go(self) -> None:
        """Hold the mapping no longer; what is written from now on goes nowhere."""
        self._words = self._buffer = GONE

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
        if length > _MAX_BLOB:
            self._enter_with_facts(phase)
            return
        step = _NO_STEP if phase._step is None else phase._step
        # As in `_take`; and no jump that is taken, before the store.
        slot = self.slot
        last_slot = self.last_slot - length
        blobs_from = self._blobs_from
        start = blobs_from - length
        self.slot = slot + _SLOT
        self.last_slot = last_slot
        self._blobs_from = start
        if slot <= last_slot:
            phase._slot = slot
            offset = start & _OFFSET_MASK
            # First where blobs begin, so that no reader takes one for a slot.
            self._words[(slot & _SEGMENT_MASK | _BLOBS_FROM) >> 3] = offset
            self._buffer[start:blobs_from] = blob
            self.write_enter(
                slot,
                phase._entered_ns,
                parent,
                step,
                path,
                lane.number,
                offset | length << 16,
                0,
                phase._sequence,
            )
        else:
            self._enter_with_facts(phase)

    def _enter_with_facts(self, phase: PhaseHandle) -> None:
        flags, blob = entered_facts(phase, self._journal.phase_trace)
        parent = parent_sequence(phase)
        step = step_word(phase._step)
        pins = self.pins
        try:
            slot, blob_word = self._room_for(blob)
            # No call between the two, so that whoever undoes this enter finds what is written.
            phase._slot = slot
            self.write_enter(
                slot,
                phase._entered_ns,
                parent,
                step,
                phase._path.number,
                phase._lane.number,
                blob_word,
                flags,
                phase._sequence,
            )
        finally:
            self.pins = pins
        if slot == SCRATCH_SLOT:
            self._journal.note_unwritten()

    def rewrite(self, phase: PhaseHandle, *, word: int = 0) -> None:
        """Write a phase anew with all there is to say of it now, and take its old slot out of the story.

        Where there is no room for that, the end alone is written.

        Args:
            phase: the phase, open or ended.
            word: for an ended one, the last word of its slot.
        """
        flags, blob = all_facts(phase, self._journal.phase_trace, thread_id=self._thread[0])
        parent = parent_sequence(phase)
        step = step_word(phase._step)
        superseded = phase._sequence | _format.SUPERSEDED << _format.STATUS_SHIFT
        words = self._words
        write_exit = self._journal.file.put_exit
        pins = self.pins
        try:
            slot, blob_word = self._room_for(blob)
            if slot == SCRATCH_SLOT:
                if word:
                    write_exit(phase._slot, phase._ended_ns, phase._children_ns, word)
                return
            # No call between these but the stores themselves: the folder moves slots of open phases, and looks where
            # they are before it does; and a signal handler that raises must not leave the phase in two places.
            old_slot = phase._slot
            phase._slot = slot
            try:
                self.write_enter(
                    slot,
                    phase._entered_ns,
                    parent,
                    step,
                    phase._path.number,
                    phase._lane.number,
                    blob_word,
                    flags,
                    phase._sequence,
                )
            finally:
                words[(old_slot + _format.WORD_AT) >> 3] = superseded
                if word:
                    write_exit(slot, phase._ended_ns, phase._children_ns, word)
        finally:
            self.pins = pins

    def reserve(self, blob: bytes) -> tuple[int, int]:
        """Store a blob, and return the slot that is to tell of it, still empty, and the word that says where it is.

        The slot is `SCRATCH_SLOT` where there is no room.
        """
        pins = self.pins
        try:
            return self._room_for(blob)
        finally:
            self.pins = pins

    def _room_for(self, blob: bytes) -> tuple[int, int]:
        slot, start = self._take(len(blob))
        if slot == SCRATCH_SLOT or not blob:
            return slot, 0
        words = self._words
        offset = start & _OFFSET_MASK
        begin = start + len(blob)
        blobs_from = (slot & _SEGMENT_MASK | _BLOBS_FROM) >> 3
        # First where blobs begin, so that no reader takes one for a slot; unless a signal handler's begins lower.
        if words[blobs_from] > offset:  # noqa: PLR1730 - no call between the two
            words[blobs_from] = offset
        self._buffer[start:begin] = blob
        return slot, offset | len(blob) << 16

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
                self.pins = (*self.pins, slot & _SEGMENT_MASK)
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


class LostWriter:
    """What a thread has in the place of its writer once the journal is lost: counts phases, and writes none."""

    __slots__ = ("_note_unwritten", "last_slot", "pins", "segment", "slot", "traces_phases", "write_enter")

    def __init__(self, note_unwritten: Callable[[], None]) -> None:
        """Be full, and ask to be called for each phase."""
        self._note_unwritten = note_unwritten
        self.traces_phases = True
        self.slot = 1
        self.last_slot = 0
        self.pins: tuple[int, ...] = ()
        self.segment: int | None = None
        self.write_enter: Callable[..., None] = write_nothing

    def leave_segment(self) -> None:
        """Have no segment, as before."""

    def enter(self, phase: PhaseHandle) -> None:
        """Count a phase that is not written."""
        phase._slot = SCRATCH_SLOT
        self._note_unwritten()


def write_nothing(*_: object) -> None:
    """Write neither an enter nor an exit: the journal is lost."""


if _native.speedups is not None:
    _native.speedups.bind_writer(
        writer=SegmentWriter,
        segment_bytes=_format.SEGMENT,
        blobs_from_at=_BLOBS_FROM,
        max_blob=_MAX_BLOB,
    )
