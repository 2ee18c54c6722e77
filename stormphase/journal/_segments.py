"""Who has which segment of a journal: free ones, those in use, and folded ones that still tell what ended last."""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from stormphase.journal import _format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stormphase.journal._file import JournalFile

# So many are left to names and totals, and the last two to phases that have to move: without them nothing could be
# folded any more, and what has no name now would have none for good.
_SPARE: Final = {_format.PHASES: 4, _format.STRINGS: 2, _format.TOTALS: 2, _format.STACKS: 8}
_CLEAN: Final = bytes(_format.SEGMENT - _format.FIRST_SLOT)
_IN_USE: Final = _format.PHASES | _format.IN_USE << 8
_FOLDED: Final = _format.PHASES | _format.FOLDED << 8
_CLEARING: Final = _format.PHASES | _format.CLEARING << 8
_UNUSED: Final = _format.PHASES | _format.UNUSED << 8


class Segments:
    """Hands segments out by offset. `take` may be called from any thread and in signal handlers, and never waits.

    One segment is kept back from the start: there it is counted what was cleared and never folded, since a segment
    itself may be taken for something else after that.

    Attributes:
        in_use: by offset, the writer of each segment of phases that is neither folded nor clean.
    """

    def __init__(self, file: JournalFile) -> None:
        """All but the fixed ones are free."""
        self._file = file
        self._free: deque[int] = deque(_offsets(range(_format.FIRST_SEGMENT, file.segments)))
        self._folded: deque[int] = deque()
        self._serials: Iterator[int] = itertools.count(1)
        self._other_count = 0  # of strings, totals and stacks
        self.in_use: dict[int, Any] = {}
        self._tally = self._free.popleft()
        file.put_word(self._tally + _format.SERIAL, next(self._serials))
        file.put_word(self._tally + _format.KIND_AND_STATE, _UNUSED)

    def __len__(self) -> int:
        """Return how many are free."""
        return len(self._free)

    @property
    def folded_count(self) -> int:
        """How many folded ones are kept for what they tell."""
        return len(self._folded)

    def add(self, numbers: range) -> None:
        """Take new, clean segments in."""
        self._free.extend(_offsets(numbers))

    def take(
        self, kind: int, owner: Any = None, *, thread: tuple[int, int, int] = (0, 0, 0), is_for_moving: bool = False
    ) -> int | None:
        """Return the offset of a clean segment, now in use, or None if none is free.

        Segments of other kinds are never cleared again, so together they get at most half of the file.

        Args:
            kind: one of `_format`'s kinds.
            owner: for phases, the writer that uses it; the segment is among its `pins` then.
            thread: for phases, the thread's ident, the number of its name, and flags.
            is_for_moving: whether it may be one of the last.
        """
        if len(self._free) <= _SPARE[kind] and not is_for_moving:
            return None
        if kind != _format.PHASES and self._other_count >= self._file.segments // 2:
            return None
        try:
            segment = self._free.popleft()
        except IndexError:
            return None
        try:
            put_word = self._file.put_word
            thread_id, name_number, flags = thread
            put_word(segment + _format.SERIAL, next(self._serials))
            put_word(segment + 16, thread_id)
            put_word(segment + 24, name_number | flags << 32)
            put_word(segment + _format.BLOBS_FROM, _format.SEGMENT)
            put_word(segment + _format.TEXT_LENGTH, 0)
            put_word(segment + _format.KIND_AND_STATE, kind | _format.IN_USE << 8)
        except BaseException:  # A signal handler raised.
            self._free.appendleft(segment)
            raise
        if kind != _format.PHASES:
            self._other_count += 1
        else:
            owner.pins = (*owner.pins, segment)  # Until it says itself that this is its segment.
            self.in_use[segment] = owner
        return segment

    def give_back(self, segment: int) -> None:
        """Take a segment of another kind than phases back, into which nothing was written."""
        self._file.put_word(segment + _format.KIND_AND_STATE, _UNUSED)
        self._other_count -= 1
        self._free.appendleft(segment)

    def is_in_use(self, segment: int) -> bool:
        """Whether a segment of phases is neither folded nor being cleared."""
        return self._file.word(segment + _format.KIND_AND_STATE) == _IN_USE

    def is_left(self, segment: int) -> bool:
        """Whether its writer has gone on to another segment, and it is not folded yet."""
        writer = self.in_use.get(segment)
        return writer is not None and writer.segment != segment

    @staticmethod
    def fold_store(segment: int) -> tuple[int, int]:
        """Return the offset and the value of the word that says that a segment is folded."""
        return segment + _format.KIND_AND_STATE, _FOLDED

    def note_folded(self, segment: int) -> None:
        """Keep a segment, whose state says folded, for what it tells, until its room is needed."""
        self.in_use.pop(segment, None)
        self._folded.append(segment)

    def oldest_folded(self) -> int | None:
        """Return the segment that was folded first, and forget it; None if there is none."""
        try:
            return self._folded.popleft()
        except IndexError:
            return None

    def clear(self, segment: int, *, discarded: int = 0, unsent: int = 0) -> None:
        """Make a segment clean and free again. By one caller at a time.

        Args:
            segment: one of phases, in use or folded.
            discarded: how many ended phases in it were never folded.
            unsent: how many ended phases in it were not handed over to the bridge.
        """
        stores = [(segment + _format.KIND_AND_STATE, _CLEARING)]
        if discarded:
            stores.append(self.discarded_store(discarded))
        if unsent:
            stores.append((_format.CLEARED_UNSENT, self._file.word(_format.CLEARED_UNSENT) + unsent))
        self._file.put_together(stores)
        self._scrub(segment)

    def discarded_store(self, count: int) -> tuple[int, int]:
        """Return the offset of the count of ended phases that were never folded, and its value with `count` more."""
        offset = self._tally + _format.DISCARDED
        return offset, self._file.word(offset) + count

    def settle(self) -> None:
        """Put in order what an interrupted call left: the file says what became of each segment."""
        self._file.end_interrupted_stores()
        for segment in _offsets(range(_format.FIRST_SEGMENT, self._file.segments)):
            word = self._file.word(segment + _format.KIND_AND_STATE)
            if word == _CLEARING:
                self._scrub(segment)
            elif word == _FOLDED and segment not in self._folded:
                self.note_folded(segment)

    def _scrub(self, segment: int) -> None:
        self.in_use.pop(segment, None)
        self._file.put_bytes(segment + _format.FIRST_SLOT, _CLEAN)
        # No call between the two, so that a signal handler that raises cannot part them.
        self._file.words[(segment + _format.KIND_AND_STATE) >> 3] = _UNUSED
        self._free.append(segment)


def _offsets(numbers: range) -> Iterator[int]:
    return (number * _format.SEGMENT for number in numbers)
