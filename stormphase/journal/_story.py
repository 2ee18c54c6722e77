"""What a journal says, put together of one copy: what is open in it, what ended last, and the totals."""

from __future__ import annotations

import itertools
from heapq import nlargest
from typing import TYPE_CHECKING, Any, Final

from stormphase.journal import _format
from stormphase.journal._copy import take_copy
from stormphase.journal._damage import Damage
from stormphase.journal._doubles import missing, settle
from stormphase.journal._header import int_or_none, json_object, parse_header
from stormphase.journal._image import JournalImage, StackDump
from stormphase.journal._names import Names, PathBudget
from stormphase.journal._phases import Phases
from stormphase.journal._slots import ENDED_AT, look
from stormphase.journal._sums import Sums, add_records, read_rows, totals_by_path
from stormphase.journal._unseen import unseen_ends

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from stormphase.journal._copy import Segment
    from stormphase.journal._image import JournalPhase
    from stormphase.journal._slots import Slots
    from stormphase.journal._source import Source

MAX_OPEN: Final = 65_536
_MAX_READINGS: Final = 3


def read_source(
    source: Source, file: Path, *, ended_limit: int | None = None, unsent_only: bool = False
) -> JournalImage:
    """Return what a journal says, from wherever its bytes come; see `read_journal`."""
    for reading in range(1, _MAX_READINGS + 1):
        damage = Damage()
        copy = take_copy(source, str(file), damage)
        all_slots = [look(segment, damage) for segment in copy.segments if segment.kind == _format.PHASES]
        uncounted = settle(all_slots)
        # A phase that was moved between two reads is found by reading again; one that ended long ago is not.
        is_moving = reading == 1 and missing(all_slots)
        if not is_moving and confirm_open(source, all_slots, is_last_try=reading == _MAX_READINGS):
            break
        source.wait()
    header = parse_header(copy.header, str(file), damage)
    names = Names(_of_kind(copy.segments, _format.STRINGS), damage, PathBudget(source.size()))
    phases = Phases(all_slots, names, header.id_base, damage, PathBudget(source.size()))
    unseen = unseen_ends(all_slots, phases.find)
    sums = read_rows(_of_kind(copy.segments, _format.TOTALS), damage)
    add_records(sums, all_slots, uncounted)
    opened, abandoned = open_phases(all_slots, phases, unseen, damage, was_lost=header.was_lost)
    for phase, number in abandoned:
        sums.setdefault(number, Sums()).add_abandoned(phase)
    ended = [*_last_ended(all_slots, phases, ended_limit, unsent_only=unsent_only), *(each for each, _ in abandoned)]
    ended.sort(key=_end)
    return JournalImage(
        file=file,
        identity=header.identity,
        process=header.process,
        id_base=header.id_base,
        facts=header.facts,
        anchor=header.anchor,
        started_ns=header.started_ns,
        heartbeat_ns=max(header.heartbeat_ns, latest_ns(all_slots)),
        heartbeat_wall_ns=header.heartbeat_wall_ns,
        step=header.step,
        end_note=header.end_note,
        stop_signal=header.stop_signal,
        stop_asked_ns=header.stop_asked_ns,
        open=opened,
        ended=tuple(ended if ended_limit is None else ended[max(0, len(ended) - ended_limit) :]),
        totals=totals_by_path(sums, names),
        unwritten=header.unwritten,
        unfolded=copy.discarded,
        cleared_unsent=header.cleared_unsent,
        owners_are_unsent=header.owners_are_unsent,
        stacks=_stacks(_of_kind(copy.segments, _format.STACKS), damage),
        damage=damage.notes(),
    )


def _of_kind(segments: Iterable[Segment], kind: int) -> Iterator[Segment]:
    return (segment for segment in segments if segment.kind == kind)


def confirm_open(source: Source, all_slots: Sequence[Slots], *, is_last_try: bool) -> bool:
    """See that what is open in the copy still is, parents first; False if some of it has gone elsewhere meanwhile.

    At the last try that is noted in `moved`: it was open when the copy was taken, and nobody knows how it stands now.
    """
    places = sorted((slots.sequences[row], index, row) for index, slots in enumerate(all_slots) for row in slots.open)
    for sequence, index, row in places:
        slots = all_slots[index]
        offset = slots.offset_in_file(row)
        # The word that says whether it has ended, before what it says of the end.
        word = source.read(offset + _format.WORD_AT, 8)
        slot = source.read(offset, _format.SLOT)
        if len(word) + len(slot) < 8 + _format.SLOT:
            continue
        fields = _format.WHOLE_SLOT.unpack(slot[: _format.WORD_AT] + word)
        is_same = fields[8] == sequence
        if is_same and not fields[11]:
            continue
        if is_same and fields[11] >> _format.STATUS_SHIFT in _format.STATUSES:
            blob = source.read(slots.segment.offset + fields[5], fields[6])
            slots.end(row, slot[: _format.WORD_AT] + word, blob)
        elif not is_last_try:
            return False
        else:
            slots.moved.add(row)
    return True


def open_phases(
    all_slots: Sequence[Slots], phases: Phases, unseen: dict[int, int], damage: Damage, *, was_lost: bool
) -> tuple[tuple[JournalPhase, ...], list[tuple[JournalPhase, int]]]:
    """Return the open phases, and those that only seem open, each with the number of its path.

    None are open in a journal that its process gave up, as somebody had cut it: their ends could not be written.
    """
    places = sorted((slots.sequences[row], index, row) for index, slots in enumerate(all_slots) for row in slots.open)
    if len(places) > MAX_OPEN:
        damage.note("so many phases are open that not all are told", len(places) - MAX_OPEN)
        del places[MAX_OPEN:]
    opened: list[JournalPhase] = []
    abandoned: list[tuple[JournalPhase, int]] = []
    for sequence, index, row in places:
        slots = all_slots[index]
        phase = phases.make(slots, row, unseen_end_ns=unseen.get(sequence))
        if phase.ended_ns is None:
            opened.append(phase)
        else:
            abandoned.append((phase, slots.fields(row)[3]))
    if was_lost:
        damage.note("somebody cut it short while it was written: what was open then, and what came after, is not known")
        opened.clear()
    # The main thread's own lane, unlike those of its tasks, begins with a phase that names no task.
    outermost: dict[int, JournalPhase] = {}
    for phase in opened:
        outermost.setdefault(phase.lane, phase)
    is_main = {lane: phase.is_main_thread and phase.task_name is None for lane, phase in outermost.items()}
    opened.sort(key=lambda phase: (not is_main[phase.lane], phase.lane, phase.sequence))
    return tuple(opened), abandoned


def _last_ended(
    all_slots: Sequence[Slots], phases: Phases, limit: int | None, *, unsent_only: bool
) -> Iterator[JournalPhase]:
    """Yield the `limit` phases that ended last, in no order; the newest segments come first, and most do not matter."""
    last: list[tuple[int, int, int]] = []
    earliest_ns = None
    for index in reversed(range(len(all_slots))):
        slots = all_slots[index]
        if not slots.ended or limit == 0:
            continue
        if earliest_ns is not None and slots.last_end_ns <= earliest_ns:
            continue
        ended = slots.of_ended(ENDED_AT)
        found = ((ended_ns, index, row) for ended_ns, row in zip(ended, slots.ended, strict=True))
        if unsent_only:
            found = (place for place in found if not slots.fields(place[2])[7] & _format.IS_HANDED_OVER)
        if limit is None:
            last.extend(found)
            continue
        last = nlargest(limit, [*last, *found])
        if len(last) == limit:
            earliest_ns = last[-1][0]
    return (phases.make(all_slots[index], row) for _, index, row in last)


def latest_ns(all_slots: Sequence[Slots]) -> int:
    """Return the latest time in any phase."""
    ended = (slots.last_end_ns for slots in all_slots)
    entered = (slots.fields(row)[0] for slots in all_slots for row in slots.open)
    return max(itertools.chain(ended, entered), default=0)


def _end(phase: JournalPhase) -> tuple[int, int]:
    return phase.ended_ns or 0, phase.sequence


def _stacks(segments: Iterable[Segment], damage: Damage) -> tuple[StackDump, ...]:
    dumps = []
    for segment in segments:
        length = _format.SEGMENT_HEADER.unpack_from(segment.data)[8]
        text = segment.data[_format.FIRST_SLOT : _format.FIRST_SLOT + length]
        if not length:
            continue  # Just being written.
        dump = _stack_dump(json_object(text)) if len(text) == length else None
        if dump is None:
            damage.note("a dump of stacks is damaged")
        else:
            dumps.append(dump)
    return tuple(sorted(dumps, key=lambda dump: dump.at_ns))


def _stack_dump(value: dict[str, Any] | None) -> StackDump | None:
    if value is None:
        return None
    at_ns, sequence, limit_ns = (int_or_none(value.get(name)) for name in ("at_ns", "sequence", "limit_ns"))
    threads = value.get("threads")
    if at_ns is None or sequence is None or limit_ns is None or type(threads) is not list:
        return None
    for thread in threads:
        if type(thread) is not dict or int_or_none(thread.get("thread_id")) is None:
            return None
        frames = thread.get("frames")
        if type(thread.get("name")) is not str or type(frames) is not list:
            return None
        if not all(type(frame) is str for frame in frames):
            return None
    return StackDump(at_ns=at_ns, sequence=sequence, limit_ns=limit_ns, threads=tuple(threads))
