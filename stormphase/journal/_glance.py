"""Looks at one journal again and again, at a small price: what its process has open and how it stands, no totals.

Only the header and the segments in which phases may be open are read, and strings only once.
"""

from __future__ import annotations

import struct
from contextlib import closing
from typing import TYPE_CHECKING, Final

from stormphase.journal import _format
from stormphase.journal._copy import MAX_SEGMENTS, Segment, whole_slots
from stormphase.journal._damage import Damage
from stormphase.journal._doubles import settle
from stormphase.journal._header import check, parse_header
from stormphase.journal._image import JournalImage
from stormphase.journal._names import Names, PathBudget
from stormphase.journal._phases import Phases
from stormphase.journal._slots import look
from stormphase.journal._source import FileSource
from stormphase.journal._story import confirm_open, latest_ns, open_phases
from stormphase.journal._unseen import unseen_ends

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stormphase.journal._slots import Slots
    from stormphase.journal._source import Source

_MAX_READINGS: Final = 3
_WORDS: Final = struct.Struct("<QQ")
_U64: Final = struct.Struct("<Q")
_PHASES_IN_USE: Final = _format.PHASES | _format.IN_USE << 8
_STRINGS_IN_USE: Final = _format.STRINGS | _format.IN_USE << 8


class Glance:
    """One journal, looked at whenever it is asked for. Never changes the file, nor keeps it open. Not thread-safe.

    Args:
        path: the file.

    Attributes:
        latest_ns: the latest enter or end that the last look saw, on the writer's monotonic clock.
    """

    def __init__(self, path: Path) -> None:
        """Look at nothing yet."""
        self._path = path
        self.latest_ns = 0
        self._strings: dict[int, tuple[int, Segment]] = {}
        self._names: Names | None = None
        self._finished: set[tuple[int, int]] = set()

    def look(self) -> JournalImage:
        """Return what the journal says now of the process and of what it has open.

        `ended`, `totals` and `stacks` are empty, and `unfolded` is 0: they are not looked at. A phase that is moved
        within the file at this very moment may be left out, and is there at the next look.

        Raises:
            JournalError: as `read_journal`.
        """
        with closing(FileSource(self._path)) as source:
            return self._look(source)

    def _look(self, source: Source) -> JournalImage:
        for reading in range(1, _MAX_READINGS + 1):
            damage = Damage()
            header_data = source.read(0, _format.SEGMENT)
            check(header_data, str(self._path))
            all_slots = [look(segment, damage) for segment in self._segments(source, header_data)]
            settle(all_slots)
            if confirm_open(source, all_slots, is_last_try=reading == _MAX_READINGS):
                break
        self._note_finished(all_slots)
        self.latest_ns = latest_ns(all_slots)
        size_bytes = source.size()
        header = parse_header(header_data, str(self._path), damage)
        phases = Phases(
            all_slots, self._known_names(damage, size_bytes), header.id_base, damage, PathBudget(size_bytes)
        )
        opened, _ = open_phases(
            all_slots, phases, unseen_ends(all_slots, phases.find), damage, was_lost=header.was_lost
        )
        return JournalImage(
            file=self._path,
            identity=header.identity,
            process=header.process,
            id_base=header.id_base,
            facts=header.facts,
            anchor=header.anchor,
            started_ns=header.started_ns,
            heartbeat_ns=max(header.heartbeat_ns, self.latest_ns),
            heartbeat_wall_ns=header.heartbeat_wall_ns,
            step=header.step,
            end_note=header.end_note,
            stop_signal=header.stop_signal,
            stop_asked_ns=header.stop_asked_ns,
            open=opened,
            ended=(),
            totals={},
            unwritten=header.unwritten,
            unfolded=0,
            cleared_unsent=header.cleared_unsent,
            owners_are_unsent=header.owners_are_unsent,
            stacks=(),
            damage=damage.notes(),
        )

    def _segments(self, source: Source, header: bytes) -> list[Segment]:
        """Return the segments of phases that are in use, by serial; take note of new strings."""
        (allocated,) = _U64.unpack_from(header, _format.ALLOCATED)
        found = []
        still_finished = set()
        for number in range(_format.FIRST_SEGMENT, min(allocated, MAX_SEGMENTS)):
            offset = number * _format.SEGMENT
            start = source.read(offset, _WORDS.size)
            if len(start) < _WORDS.size:
                break
            serial, kind_and_state = _WORDS.unpack(start)
            if kind_and_state == _PHASES_IN_USE and (offset, serial) in self._finished:
                still_finished.add((offset, serial))
            elif kind_and_state == _PHASES_IN_USE:
                data = source.read(offset, _format.SEGMENT).ljust(_format.SEGMENT, b"\0")
                # It may have been folded or cleared between the two reads.
                if data.startswith(start):
                    data = whole_slots(source, offset, data)
                    found.append(Segment(offset, serial, _format.PHASES, is_folded=False, data=data))
            elif kind_and_state == _STRINGS_IN_USE:
                self._note_strings(source, offset, serial)
        self._finished = still_finished
        return sorted(found, key=lambda segment: segment.serial)

    def _note_finished(self, all_slots: Sequence[Slots]) -> None:
        """Remember which segments have nothing open and never will: a thread enters phases into its newest one only."""
        newest: dict[int, int] = {}
        for slots in all_slots:  # by serial
            newest[_thread_id(slots)] = slots.segment.serial
        self._finished.update(
            (slots.segment.offset, slots.segment.serial)
            for slots in all_slots
            if not slots.open and slots.segment.serial != newest[_thread_id(slots)]
        )

    def _note_strings(self, source: Source, offset: int, serial: int) -> None:
        length = source.read(offset + _format.TEXT_LENGTH, _U64.size)
        known = self._strings.get(offset)
        if len(length) == _U64.size and (known is None or known[0] != _U64.unpack(length)[0]):
            data = source.read(offset, _format.SEGMENT).ljust(_format.SEGMENT, b"\0")
            (text_length,) = _U64.unpack_from(data, _format.TEXT_LENGTH)
            self._strings[offset] = text_length, Segment(offset, serial, _format.STRINGS, is_folded=False, data=data)
            self._names = None

    def _known_names(self, damage: Damage, size_bytes: int) -> Names:
        if self._names is None:
            segments = sorted((segment for _, segment in self._strings.values()), key=lambda segment: segment.serial)
            self._names = Names(segments, damage, PathBudget(size_bytes))
        return self._names


def _thread_id(slots: Slots) -> int:
    return int(_format.SEGMENT_HEADER.unpack_from(slots.segment.data)[2])
