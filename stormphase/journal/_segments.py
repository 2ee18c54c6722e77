"""Who has which segment of a journal: free ones, those in use, and folded ones that still tell what ended last."""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from stormphase.journal import _format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stormphase.journal._file import JournalFile

_CLEAN: Final = bytes(_format.SEGMENT - _format.FIRST_SLOT)


class Segments:
    """Hands segments out by offset. `take` may be called from any thread and in signal handlers, and never waits.

    Attributes:
        in_use: by offset, the writer of each segment of phases that is neither folded nor clean.
    """

    def __init__(self, file: JournalFile) -> None:
        """All but the fixed ones are free."""
        self._file = file
        self._free: deque[int] = deque(_offsets(range(_format.FIRST_SEGMENT, file.segments)))
        self._folded: deque[int] = deque()
        self._serials: Iterator[int] = itertools.count(1)
        self.in_use: dict[int, Any] = {}

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

    def take(self, kind: int, owner: Any = None, *, thread: tuple[int, int, int] = (0, 0, 0)) -> int | None:
        """Return the offset of a clean segment, now in use, or None if none is free.

        Args:
            kind: one of `_format`'s kinds.
            owner: for phases, the writer that uses it.
            thread: for phases, the thread's ident, the number of its name, and flags.
        """
        try:
            segment = self._free.popleft()
        except IndexError:
            return None
        put_word = self._file.put_word
        thread_id, name_number, flags = thread
        put_word(segment + _format.SERIAL, next(self._serials))
        put_word(segment + 16, thread_id)
        put_word(segment + 24, name_number | flags << 32)
        put_word(segment + _format.BLOBS_FROM, _format.SEGMENT)
        put_word(segment + _format.TEXT_LENGTH, 0)
        put_word(segment + _format.KIND_AND_STATE, kind | _format.IN_USE << 8)
        if owner is not None:
            self.in_use[segment] = owner
        return segment

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

    def clear(self, segment: int, *, discarded: int = 0) -> None:
        """Make a segment clean and free again; `discarded` ended phases in it were never folded. By one at a time."""
        file = self._file
        stores = [(segment + _format.KIND_AND_STATE, _format.PHASES | _format.CLEARING << 8)]
        if discarded:
            stores.append((segment + _format.DISCARDED, file.word(segment + _format.DISCARDED) + discarded))
        file.put_together(stores)
        file.put_bytes(segment + _format.FIRST_SLOT, _CLEAN)
        file.put_word(segment + _format.KIND_AND_STATE, _format.PHASES | _format.UNUSED << 8)
        self.in_use.pop(segment, None)
        self._free.append(segment)


def _offsets(numbers: range) -> Iterator[int]:
    return (number * _format.SEGMENT for number in numbers)
