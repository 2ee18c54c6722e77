"""Copies what a journal holds while its process may be writing it: so that segments and totals belong together.

The protocol is that of docs/journal-format.md, "Reading a file that is being written". A copy that has to be taken
again costs little: all is kept but what tells how segments and totals belong together.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._clock import SystemClock
from stormphase._liveness import Liveness, judge
from stormphase.exceptions import JournalError
from stormphase.journal import _format, _header
from stormphase.journal._damage import Damage

if TYPE_CHECKING:
    from stormphase.journal._source import Source

MAX_SEGMENTS: Final = 262_144  # 4 GiB: as long as a writer lets a journal become
MAX_TRIES: Final = 24
_AT_ONCE: Final = 64  # segments
_U64: Final = struct.Struct("<Q")
_PAIR: Final = struct.Struct("<QQ")
_NEVER_USED: Final = bytes(16)
_PHASES_IN_USE: Final = _format.PHASES | _format.IN_USE << 8
_STATES_READ: Final = (_format.IN_USE, _format.FOLDED)
_STATES_PASSED_OVER: Final = (_format.UNUSED, _format.CLEARING)
_KINDS: Final = (_format.PHASES, _format.STRINGS, _format.TOTALS, _format.STACKS)


@attrs.define
class Segment:
    """A copy of one segment that says something.

    Attributes:
        offset: where it stands in the file.
        serial: which use of it this is.
        kind: what it holds.
        is_folded: whether its ended phases are part of the totals.
        data: all of its bytes.
    """

    offset: int
    serial: int
    kind: int
    is_folded: bool
    data: bytes


@attrs.define
class Copy:
    """What was copied at one moment.

    Attributes:
        header: the first segment, as much of it as there is.
        segments: those that say something, by serial.
        discarded: the sum of the segments' DISCARDED words.
    """

    header: bytes
    segments: list[Segment]
    discarded: int


def take_copy(source: Source, file: str, damage: Damage) -> Copy:
    """Return a copy whose totals and segments belong together.

    Raises:
        JournalError: if this is no journal that can be read.
    """
    kept: dict[int, bytes] = {}
    is_dead = False
    for tries in range(MAX_TRIES):
        header = source.read(0, _format.SEGMENT)
        _header.check(header, file)
        (folds,) = _U64.unpack_from(header, _format.FOLDS)
        redo = _redo_pairs(source)
        allocated = _allocated(header, source)
        if tries:
            _copy_again(source, allocated, kept)
        else:
            kept = _copy_all(source, allocated)
        is_storing = folds % 2 == 1
        if source.read(_format.FOLDS, 8) == _U64.pack(folds) and (redo or not is_storing or is_dead):
            break
        # Of a process that died between two words, the count stays odd: then there is nothing to wait for.
        is_dead = is_storing and _is_dead(header, file)
        if not is_dead:
            source.wait()
    else:
        if not is_storing:
            damage.note("it changed faster than it could be read: totals may be a little off")
    _make_whole(source, kept)
    if redo is None:
        damage.note("the redo log is damaged: totals may be a little off")
    _note_what_is_missing(header, source, damage)
    return _copy_of(_mended(header, kept, redo or [], damage), kept, damage)


def _is_dead(header: bytes, file: str) -> bool:
    """Whether the writer is proved dead, so that what is copied from now on is as it left it."""
    try:
        known = _header.parse_header(header, file, Damage())
    except JournalError:  # Whose it is, nobody knows; that is for others to say.
        return False
    now_ns = SystemClock().wall_ns()
    verdict = judge(known.process, heartbeat_wall_ns=known.heartbeat_wall_ns, now_wall_ns=now_ns)
    return verdict.state is Liveness.DEAD


def whole_slots(source: Source, offset: int, first: bytes) -> bytes:
    """Return a copy of a segment of phases in which every slot that counts is whole.

    A slot counts once its last words stand, and a copy is made from the front: it may have the last words of a slot
    whose other words it took a moment too early. So those are taken from a second copy.

    Args:
        source: the journal.
        offset: where the segment stands.
        first: a copy of it, which says which slots count.
    """
    second = _padded(source.read(offset, _format.SEGMENT))
    if second == first:
        return first
    if second[: _PAIR.size] != first[: _PAIR.size]:
        return first  # Folded or cleared meanwhile: then nobody was writing its slots any more.
    data = bytearray(second)
    blobs_from = _format.SEGMENT_HEADER.unpack_from(second)[7]
    for slot in range(_format.FIRST_SLOT, min(blobs_from, _format.SEGMENT) - _format.SLOT + 1, _format.SLOT):
        before = first[slot : slot + _format.SLOT]
        if before != second[slot : slot + _format.SLOT]:
            for at in (_format.SEQUENCE_AT, _format.WORD_AT):
                data[slot + at : slot + at + 8] = before[at : at + 8]
    return bytes(data)


def _make_whole(source: Source, kept: dict[int, bytes]) -> None:
    for offset, data in kept.items():
        if _PAIR.unpack_from(data)[1] == _PHASES_IN_USE:
            kept[offset] = whole_slots(source, offset, data)


def _allocated(header: bytes, source: Source) -> int:
    """Return how many segments may be read: what the header says, as far as the file goes."""
    (allocated,) = _U64.unpack_from(header, _format.ALLOCATED)
    in_file = -(-source.size() // _format.SEGMENT)
    return min(int(allocated), in_file, MAX_SEGMENTS)


def _note_what_is_missing(header: bytes, source: Source, damage: Damage) -> None:
    (allocated,) = _U64.unpack_from(header, _format.ALLOCATED)
    if source.size() < allocated * _format.SEGMENT:
        damage.note("the file is shorter than its header says: its end is missing")
    elif allocated > MAX_SEGMENTS:
        damage.note("the file is longer than 4 GiB: the rest was not read")


def _redo_pairs(source: Source) -> list[tuple[int, int]] | None:
    """Return the pairs that are being stored, or None if they cannot be what was written."""
    start = source.read(_format.REDO_AT, 8)
    if len(start) < 8 or start == bytes(8):  # noqa: PLR2004 - a word
        return []
    (count,) = _U64.unpack(start)
    if count > _format.MAX_REDO_PAIRS:
        return None
    pairs = source.read(_format.REDO_PAIRS_AT, 16 * count)
    return list(_PAIR.iter_unpack(pairs)) if len(pairs) == 16 * count else None


def _copy_all(source: Source, allocated: int) -> dict[int, bytes]:
    kept = {}
    for first in range(_format.FIRST_SEGMENT, allocated, _AT_ONCE):
        start = first * _format.SEGMENT
        count = min(_AT_ONCE, allocated - first)
        data = source.read(start, count * _format.SEGMENT)
        for offset in range(0, len(data), _format.SEGMENT):
            # One that was never used has neither serial nor kind, and the rest of it is zeros.
            if data[offset : offset + 16] != _NEVER_USED:
                kept[start + offset] = _padded(data[offset : offset + _format.SEGMENT])
    return kept


def _copy_again(source: Source, allocated: int, kept: dict[int, bytes]) -> None:
    """Copy what has changed and must be of one moment: the totals, which segments are in them, and what was moved.

    The others' phases may be of the moment before: none of them is in the totals.
    """
    for number in range(_format.FIRST_SEGMENT, allocated):
        offset = number * _format.SEGMENT
        start = source.read(offset, _format.FIRST_SLOT)
        if start[: len(_NEVER_USED)] == _NEVER_USED[: len(start)]:
            kept.pop(offset, None)
            continue
        old = kept.get(offset)
        if old is None or not _is_still(start.ljust(_format.FIRST_SLOT, b"\0"), old):
            kept[offset] = _padded(source.read(offset, _format.SEGMENT))


def _is_still(start: bytes, old: bytes) -> bool:
    """Whether an old copy of a segment that begins with `start` will do."""
    _, kind_and_state, _, _, flags, *_ = _format.SEGMENT_HEADER.unpack(start)
    kind = kind_and_state & 0xFF
    if kind == _format.PHASES:
        return not flags & _format.MOVED and old.startswith(start[: _format.BLOBS_FROM])
    return kind != _format.TOTALS and old.startswith(start)


def _padded(data: bytes) -> bytes:
    """Return a whole segment, whatever has been cut off."""
    return data if len(data) == _format.SEGMENT else data.ljust(_format.SEGMENT, b"\0")


def _mended(header: bytes, kept: dict[int, bytes], redo: list[tuple[int, int]], damage: Damage) -> bytes:
    """Store what the redo log says into the copies; return the header's."""
    mended: dict[int, bytearray] = {}
    for target, value in redo:
        place = target % _format.SEGMENT
        offset = target - place
        data = header if offset == 0 else kept.get(offset)
        if data is None or place % 8 or place + 8 > len(data):
            damage.note("the redo log points to nowhere")
            continue
        if offset not in mended:
            mended[offset] = bytearray(data)
        _U64.pack_into(mended[offset], place, value)
    whole = bytes(mended.pop(0, header))
    kept.update((offset, bytes(data)) for offset, data in mended.items())
    return whole


def _copy_of(header: bytes, kept: dict[int, bytes], damage: Damage) -> Copy:
    segments = []
    discarded = 0
    for offset, data in kept.items():
        serial, kind_and_state, _, _, _, lost, _, _, _ = _format.SEGMENT_HEADER.unpack_from(data)
        kind = kind_and_state & 0xFF
        state = kind_and_state >> 8
        if kind == _format.PHASES:
            discarded += lost
        if state in _STATES_READ and kind in _KINDS and serial:
            segments.append(Segment(offset, serial, kind, state == _format.FOLDED, data))
        elif state not in _STATES_PASSED_OVER:
            damage.note("a segment does not say what it is")
    segments.sort(key=lambda segment: segment.serial)
    return Copy(header, segments, discarded)
