"""Room in a journal: full segments are folded or discarded, what is open moves on, and the file stays bounded."""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import random
import threading

import pytest
from journal_writing import SLOTS, TickingClock, Writing, count_of

from stormphase._histogram import quantile
from stormphase._model import PhaseStatus
from stormphase.journal import _file, _fold, _format, _journal
from stormphase.journal._file import CHUNK_SEGMENTS, MIN_BYTES
from stormphase.journal._fold import ORPHAN_TICKS

LARGE = {f"k{number}": "x" * 900 for number in range(5)}  # three such phases fill a segment


@pytest.fixture
def write(tmp_path):
    """Make lanes that are written to journals by hand."""
    made = []
    number = itertools.count()

    def make(max_bytes=MIN_BYTES, **options):
        made.append(Writing(tmp_path / f"rank-{next(number)}.journal", max_bytes, **options))
        return made[-1]

    yield make
    for writing in made:
        writing.close()


def states(writing):
    """Return the kind and state of each segment that was ever used."""
    found = {}
    for segment in range(_format.FIRST_SEGMENT, writing.file.segments):
        offset = segment * _format.SEGMENT
        if writing.file.word(offset + _format.SERIAL):
            word = writing.file.word(offset + _format.KIND_AND_STATE)
            found[offset] = (word & 0xFF, word >> 8)
    return found


def test_totals_outlive_the_records(write):
    """Counts, sums, failures, extremes and quantiles are those of every phase that ever ended."""
    writing = write()
    chooser = random.Random(5)
    durations, own = [], 0
    for number in range(3_000):
        with writing.lanes.enter_phase("step") as phase:
            writing.lanes.now.__self__.now_ns += chooser.randrange(1, 1_000_000)
            with writing.lanes.enter_phase("inner") as inner:
                pass
            if number % 100 == 7:
                phase.pause()
                phase.resume()
            if number % 50 == 3:
                phase.close(error=ValueError("bad"))
        durations.append(phase._ended_ns - phase._entered_ns)
        own += durations[-1] - phase._children_ns - (phase._extra.paused_ns if phase._extra else 0)
        writing.fold()
    totals = writing.read().totals["step",]
    assert (3_000, 60, sum(durations), own) == (totals.count, totals.failed, totals.total_ns, totals.self_ns)
    assert (min(durations), max(durations)) == (totals.min_ns, totals.max_ns)
    durations.sort()
    for q, index in ((0.5, 1_499), (0.99, 2_969), (1.0, 2_999)):
        assert durations[index] == pytest.approx(quantile(totals.buckets, q), rel=0.02)
    assert (0, 0) == (totals.unbucketed, writing.read().unwritten)
    assert inner.path in writing.read().totals


def test_an_open_phase_moves_out_of_a_segment_that_is_folded(write):
    """It keeps all it had, says its thread, and ends in its new place."""
    writing = write()
    writing.lanes.step = 3
    phase = writing.lanes.enter_phase("train", {"k": [1, 2]})
    writing.fill(count=2 * SLOTS)
    before = phase._slot
    writing.fold()
    assert before != phase._slot
    (found,) = writing.read().open
    assert ({"k": [1, 2]}, 3, "MainThread", True) == (
        found.attributes,
        found.step,
        found.thread_name,
        found.is_main_thread,
    )
    phase.close()
    image = writing.read()
    assert ((), 1 + 2 * SLOTS) == (image.open, count_of(image))
    assert 1 == image.totals["train",].count


def test_a_phase_that_ends_while_it_is_being_moved_ends_where_it_was(write, monkeypatch):
    """The copy stays empty, and nothing is counted twice."""
    writing = write()
    phase = writing.lanes.enter_phase("train", {"k": 1})
    writing.fill(count=SLOTS)
    original = writing.folder._mover.reserve

    def reserve_and_end(blob):
        if phase._status is PhaseStatus.ACTIVE:
            phase.close()
        return original(blob)

    monkeypatch.setattr(type(writing.folder._mover), "reserve", lambda _, blob: reserve_and_end(blob))
    writing.fold()
    writing.tick()
    image = writing.read()
    assert ((), SLOTS + 1, ()) == (image.open, count_of(image), image.damage)


def test_the_end_of_a_phase_that_is_not_written_yet_is_waited_for(write, monkeypatch):
    """Between a phase's end and the word that says so the folder leaves its segment alone."""
    writing = write()
    phase = writing.lanes.enter_phase("train")
    writing.fill(count=SLOTS)
    original = writing.journal.end

    def fold_first(ending):
        writing.fold()
        writing.tick(5)
        writing.journal._folder.make_room(lambda: None)
        original(ending)

    writing.lanes.journal = type("Late", (), {"end": staticmethod(fold_first)})
    phase.close(error=ValueError("bad batch"))
    writing.lanes.journal = writing.journal
    assert (SLOTS + 1, 1) == (count_of(writing.read()), writing.read().totals["train",].failed)
    writing.tick(70)
    assert (SLOTS + 1, 1) == (count_of(writing.read()), writing.read().totals["train",].failed)


def test_deep_nesting_is_not_moved_round_and_round(write):
    """Where most of a segment is open it stays; when that has ended it is folded after all."""
    writing = write(4 * MIN_BYTES)
    handles = [writing.lanes.enter_phase("deeper") for _ in range(1_000)]
    writing.tick(200)
    serials = max(writing.file.word(offset) for offset in states(writing))
    writing.tick(200)
    assert serials == max(writing.file.word(offset) for offset in states(writing))
    assert 1_000 == len(writing.read().open)
    for handle in reversed(handles):
        handle.close()
    writing.fill(count=SLOTS)
    writing.tick(200)
    assert {segment for segment in writing.segments.in_use if writing.segments.is_left(segment)} == set()
    assert (1_000 + SLOTS, 0) == (count_of(writing.read()), writing.read().unfolded)


def test_a_thread_that_finds_no_room_clears_what_is_folded_then_what_is_not(write):
    """Nobody folds: ended phases are discarded and counted, what is open stays, and all is written."""
    writing = write()
    phase = writing.lanes.enter_phase("train", {"k": 1})
    writing.fill(count=100 * SLOTS)
    image = writing.read()
    assert ((1, {"k": 1}), 0) == ((len(image.open), image.open[0].attributes), image.unwritten)
    assert 100 * SLOTS == count_of(image)
    assert 0 < image.unfolded < 100 * SLOTS
    phase.close()


def test_what_ended_while_room_was_made_is_counted(write, monkeypatch, step_thread):
    """A phase that was open when a segment was looked at, and ended before it was cleared, is not forgotten."""
    writing = write()
    other = step_thread()
    phase = other.do(writing.lanes.enter_phase, "train")
    other.do(writing.fill, "filler", SLOTS)
    original = writing.folder._move

    def end_first(slot, now_open):
        if slot == phase._slot and not phase.closed:
            other.do(phase.close)
        return original(slot, now_open)

    monkeypatch.setattr(writing.folder, "_move", end_first)
    writing.fill(count=100 * SLOTS)
    assert phase.closed
    assert 101 * SLOTS + 1 == count_of(writing.read())


def test_what_was_discarded_stays_counted_when_its_segment_becomes_another_one(write):
    """Strings and totals may take a segment that was cleared; the count does not stand there."""
    writing = write()
    writing.fill(count=100 * SLOTS)
    expected = writing.read().unfolded
    for number in range(1_500):
        writing.lanes.enter_phase(f"{number:0250d}").close()
    writing.fold()
    assert 2 <= sum(kind == _format.STRINGS for kind, _ in states(writing).values())
    image = writing.read()
    assert 100 * SLOTS + 1_500 == count_of(image)
    assert expected <= image.unfolded


def test_strings_totals_and_stacks_leave_half_of_the_file_to_phases(write):
    """However many names and dumps there are, what is open has room, and what ended is counted."""
    writing = write()
    outer = writing.lanes.enter_phase("train", {"k": 1})
    for number in range(6_000):
        writing.lanes.enter_phase(f"{number:0250d}").close()
        writing.fold()
    while writing.journal.put_stacks({"at_ns": 1, "sequence": 1, "limit_ns": 1, "threads": []}):
        pass
    kinds = [kind for kind, state in states(writing).values() if state == _format.IN_USE]
    assert CHUNK_SEGMENTS // 2 >= sum(kind != _format.PHASES for kind in kinds)
    image = writing.read()
    assert (1, 0, 6_000) == (len(image.open), image.unwritten, count_of(image) - image.unfolded)
    assert image.totals["(other)",].count > 0
    outer.close()


def test_where_no_room_can_be_made_phases_are_counted_and_nothing_else_suffers(write, step_thread):
    """More threads than segments: what is not written is counted, and the threads' phases end as usual."""
    writing = write()
    threads = [step_thread() for _ in range(CHUNK_SEGMENTS)]
    handles = [thread.do(writing.lanes.enter_phase, "load") for thread in threads]
    image = writing.read()
    assert len(threads) == len(image.open) + image.unwritten
    assert 0 < image.unwritten < 12
    assert writing.journal.stats()["unwritten"] == image.unwritten
    for thread, handle in zip(threads, handles, strict=True):
        thread.do(handle.close)
    image = writing.read()
    assert ((), len(threads)) == (image.open, count_of(image) + image.unwritten)


def test_an_orphan_is_told_from_a_phase_that_is_just_nowhere(write):
    """A slot whose phase nobody has open is believed to be over after ten seconds, and counted then."""
    writing = write()
    lost = writing.lanes.enter_phase("lost")
    writing.fill(count=SLOTS)
    lane = lost._lane
    lane.top = lane
    writing.tick(ORPHAN_TICKS - 1)
    assert 1 == len(writing.read().open)
    writing.tick(2)
    assert ((), 1) == (writing.read().open, writing.read().unfolded)
    assert SLOTS + 1 == count_of(writing.read())
    lane.top = lost
    lost.close()


def test_the_last_ended_phases_are_kept_also_in_a_small_file(write):
    """However much has been folded, the records of what ended last can be read."""
    writing = write()
    for _ in range(200):
        writing.fill(count=SLOTS)
        writing.fold()
    assert 16 * SLOTS <= len(writing.read().ended)


@pytest.mark.parametrize("max_bytes", [3 * MIN_BYTES + 5 * _format.SEGMENT + 77, 2 * MIN_BYTES])
def test_the_file_grows_by_need_and_to_its_limit(write, max_bytes):
    """Not longer than max_bytes, in whole segments, also where that is no whole number of chunks."""
    writing = write(max_bytes)
    assert CHUNK_SEGMENTS == writing.file.segments
    for _ in range(8):
        writing.fill(count=30 * SLOTS)
        writing.journal._make_room()
    assert max_bytes // _format.SEGMENT == writing.file.segments
    assert max_bytes // _format.SEGMENT * _format.SEGMENT == writing.path.stat().st_size
    writing.fold()
    writing.fill(count=500 * SLOTS)
    writing.fold()
    image = writing.read()
    assert (0, 740 * SLOTS) == (image.unwritten, count_of(image))
    assert writing.journal.stats()["bytes"] == writing.path.stat().st_size


def test_closing_gives_back_what_was_never_used(write):
    """A file of 64 MiB at most is as long as what it holds."""
    writing = write(64 * MIN_BYTES)
    writing.fill()
    writing.close()
    assert MIN_BYTES == writing.path.stat().st_size
    assert SLOTS == count_of(writing.read())


GROWTHS = [(growth, code) for growth in (1, 2, 3) for code in (errno.ENOSPC, errno.EDQUOT)]


@pytest.mark.parametrize(("growth", "code"), [*GROWTHS, (1, errno.EFBIG), (2, errno.EIO)])
def test_a_disk_that_is_full_at_any_growth_costs_a_warning_and_no_phase(write, monkeypatch, caplog, growth, code):
    """Training goes on, one line is logged, counts are right; once there is room the file grows again."""
    writing = write(4 * MIN_BYTES)
    real = os.posix_fallocate
    left = [growth - 1]

    def allocate(fd, offset, length):
        if left[0] <= 0:
            raise OSError(code, os.strerror(code))
        left[0] -= 1
        real(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    phase = writing.lanes.enter_phase("train")
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            writing.fill(count=30 * SLOTS)
            writing.journal._make_room()
    (record,) = caplog.records
    assert os.strerror(code) in record.getMessage()
    assert growth * CHUNK_SEGMENTS == writing.file.segments
    writing.fold()
    image = writing.read()
    assert ([("train",)], 300 * SLOTS, 0) == ([each.path for each in image.open], count_of(image), image.unwritten)
    left[0] = 100
    writing.lanes.now.__self__.now_ns += 10_000_000_000
    writing.fill(count=growth * 50 * SLOTS)
    writing.journal._make_room()
    assert growth * CHUNK_SEGMENTS < writing.file.segments
    assert 1 == len(caplog.records)
    phase.close()


def test_a_file_system_that_cannot_reserve_is_written_with_zeros(write, monkeypatch):
    """Where there is no fallocate the room is written, so that no store can find the disk full."""

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    writing = write(2 * MIN_BYTES + 3 * _format.SEGMENT)
    assert MIN_BYTES <= writing.path.stat().st_blocks * 512
    for _ in range(4):
        writing.fill(count=50 * SLOTS)
        writing.journal._make_room()
    assert 2 * CHUNK_SEGMENTS + 3 == writing.file.segments
    assert writing.path.stat().st_size <= writing.path.stat().st_blocks * 512
    written = []
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: written.append(offset) or 17)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        _file._allocate(0, 0, MIN_BYTES)
    assert [0] == written


def test_a_journal_that_is_deleted_is_warned_of_once(write, caplog):
    """Training goes on, and whoever looks for it finds out why it is not there."""
    writing = write()
    with writing.lanes.enter_phase("train"):
        writing.path.unlink()
        with caplog.at_level(logging.WARNING):
            writing.tick(3)
            writing.fill(count=200 * SLOTS)
            writing.tick(3)
    assert 1 == len(caplog.records)
    assert "has been deleted" in caplog.text


def test_a_fold_of_many_paths_fits_into_the_redo_log(write, monkeypatch):
    """A full segment in which each phase has a path of its own, and none succeeded: the most a fold can change."""
    writing = write(4 * MIN_BYTES)
    most = []
    original = writing.file.put_together

    def count_stores(stores):
        most.append(len(stores))
        original(stores)

    writing.file.put_together = count_stores
    # As where there is no memory for details, which would take a second slot.
    monkeypatch.setattr("stormphase.journal._journal.has_more_to_say", lambda _: False)
    for number in range(2 * SLOTS):
        writing.lanes.enter_phase(f"path {number}")
        writing.lanes.now.__self__.now_ns += 10 ** (number % 12)
        writing.lanes.close("over")
    writing.fold()
    assert _format.MAX_REDO_PAIRS >= max(most) > 9 * SLOTS - 10
    totals = writing.read().totals
    assert 2 * SLOTS == sum(each.abandoned for each in totals.values()) == len(totals)
    assert 2 * SLOTS == sum(sum(each.buckets.values()) for each in totals.values())


def test_a_fold_that_fails_changes_nothing_and_is_done_again(write, monkeypatch):
    """No memory in the middle of it: the next tick adds up the same phases, once."""
    writing = write()
    writing.fill(count=3 * SLOTS)
    for name in ("add_all", "changes"):
        original = getattr(writing.folder._totals, name)

        def fail(*arguments, original=original):
            original(*arguments)
            raise MemoryError

        monkeypatch.setattr(writing.folder._totals, name, fail)
        full = writing.journal._worker.take_back()
        with pytest.raises(MemoryError):
            writing.folder.fold(full)
        monkeypatch.setattr(writing.folder._totals, name, original)
        assert 3 * SLOTS == count_of(writing.read())
    writing.tick(3)
    image = writing.read()
    assert (3 * SLOTS, 0, ()) == (count_of(image), image.unfolded, image.damage)


@pytest.mark.parametrize("stores_before", range(12))
def test_stores_that_were_to_stand_together_do_so_after_an_interrupt(write, stores_before):
    """Broken off at any store of a fold: the next one to have the lock puts in order what it left."""
    writing = write()
    writing.fill(count=3 * SLOTS)
    original = writing.file.put_word
    left = [stores_before]

    def put_word(offset, value):
        if left[0] == 0:
            left[0] = -1
            raise KeyboardInterrupt
        left[0] -= 1
        original(offset, value)

    writing.file.put_word = put_word
    with pytest.raises(KeyboardInterrupt):
        writing.folder.fold(writing.journal._worker.take_back())
    writing.file.put_word = original
    assert 3 * SLOTS == count_of(writing.read())
    writing.tick(3)
    image = writing.read()
    assert (3 * SLOTS, 0, ()) == (count_of(image), image.unfolded, image.damage)
    assert 0 == writing.file.word(_format.FOLDS) % 2


@pytest.mark.parametrize("stores_before", range(8))
def test_room_that_was_being_made_when_an_interrupt_came_is_not_lost(write, stores_before):
    """Ctrl-C in the middle of clearing, on a training thread: nothing is counted twice, no segment is lost."""
    writing = write()
    writing.fill(count=57 * SLOTS)
    free = len(writing.segments)
    original = writing.file.put_word
    left = [stores_before]

    def put_word(offset, value):
        if left[0] == 0:
            left[0] = -1
            raise KeyboardInterrupt
        left[0] -= 1
        original(offset, value)

    writing.file.put_word = put_word
    try:
        writing.folder.make_room(writing.journal._worker.take_back)
    except KeyboardInterrupt:
        pass
    else:
        assert left[0] >= 0
    writing.file.put_word = original
    writing.tick(3)
    image = writing.read()
    assert (57 * SLOTS, ()) == (count_of(image), image.damage)
    in_use = sum(state != _format.UNUSED for _, state in states(writing).values())
    known = in_use + len(writing.segments) + 1  # and the one where discarded phases are counted
    assert CHUNK_SEGMENTS - _format.FIRST_SEGMENT == known
    assert free <= len(writing.segments)


def test_a_handler_that_finds_the_lock_taken_by_what_it_interrupted_waits_for_nothing(write):
    """It would wait for itself: its phase is counted as unwritten instead, and training goes on."""
    writing = write()
    seen = []

    def interrupt():
        seen.append(writing.folder.make_room(lambda: None))

    writing.folder._locked(interrupt)
    assert [False] == seen


def test_a_thread_without_room_waits_for_who_makes_some(write):
    """The lock is held for microseconds by whoever folds; a thread that did not wait would lose an open phase."""
    writing = write()
    writing.fill(count=57 * SLOTS)
    is_held, done = threading.Event(), threading.Event()
    made = []

    def hold():
        is_held.set()
        done.wait(10)

    holder = threading.Thread(target=writing.folder._locked, args=(hold,))
    holder.start()
    is_held.wait(10)
    waiter = threading.Thread(target=lambda: made.append(writing.folder.make_room(lambda: None)))
    waiter.start()
    done.set()
    holder.join()
    waiter.join()
    assert [True] == made


def test_a_segment_that_a_thread_is_about_to_use_is_not_folded_under_it(write, monkeypatch):
    """Between taking a segment and using it its writer still names the one before; the worker leaves both alone."""
    writing = write(clock=TickingClock())
    writing.fill(count=SLOTS)
    original = writing.journal.next_segment

    def take_and_tick(writer, thread):
        segment = original(writer, thread)
        writing.tick(2)
        return segment

    monkeypatch.setattr(writing.journal, "next_segment", take_and_tick)
    phase = writing.lanes.enter_phase("train")
    monkeypatch.undo()
    assert [("train",)] == [each.path for each in writing.read().open]
    phase.close()
    assert SLOTS + 1 == count_of(writing.read())


def test_a_segment_with_a_place_that_is_about_to_be_written_is_not_folded(write, monkeypatch):
    """A signal handler that fills the rest, and a worker that folds at once, cost the phase interrupted nothing."""
    writing = write()
    writing.fill(count=10)
    writer = writing.lanes.lane_of_caller().writer
    room_for = type(writer)._room_for
    struck = []

    def strike(self, blob):
        place = room_for(self, blob)
        if not struck:
            struck.append(True)
            writing.fill("handler", 2 * SLOTS)
            writing.tick(2)
        return place

    monkeypatch.setattr(type(writer), "_room_for", strike)
    phase = writing.lanes.enter_phase("train", LARGE, sync=True)
    assert [("train",)] == [each.path for each in writing.read().open]
    phase.close()
    writing.tick(2)
    assert 2 * SLOTS + 11 == count_of(writing.read())


def test_what_the_bridge_was_not_given_is_counted_when_its_record_goes(write):
    """Handed over before or after the record was cleared: only those that never were are counted."""
    writing = write(counts_unsent=True)
    handles = []
    for _ in range(100 * SLOTS):
        with writing.lanes.enter_phase("step") as phase:
            pass
        handles.append(phase)
        if len(handles) % 1_000 == 0:
            writing.fold()
    writing.journal.note_handed_over(handles[:7])
    writing.journal.note_handed_over(handles[7 : 30 * SLOTS])
    image = writing.read()
    unsent = image.cleared_unsent + sum(not phase.is_handed_over for phase in image.ended)
    assert 70 * SLOTS == unsent


def test_a_thread_that_ends_leaves_its_segment_to_the_worker(write, step_thread):
    """Its phases are added up, and the segment is free again some time."""
    writing = write()
    for _ in range(100):
        thread = step_thread("short")
        thread.do(lambda: writing.lanes.enter_phase("load").close())
        thread.end()
        writing.tick()
    image = writing.read()
    assert (100, 0, 0) == (count_of(image), image.unwritten, image.unfolded)


def test_room_is_made_a_little_at_a_time_where_there_is_enough(write):
    """To clear a segment holds the GIL; where room is short it is made at one go all the same."""
    writing = write()
    writing.fill(count=6 * SLOTS + 1)
    writing.fold()
    writing.journal._history = 0
    folded, free = writing.segments.folded_count, len(writing.segments)
    assert (6, True) == (folded, free >= _journal._LOW)
    writing.journal._make_room()
    assert folded - _journal._CLEARED_AT_ONCE == writing.segments.folded_count
    short = _journal._LOW - _journal._CLEARED_AT_ONCE - 1
    writing.fill(count=(len(writing.segments) - short) * SLOTS)
    assert short == len(writing.segments)
    writing.journal._make_room()
    assert _journal._LOW == len(writing.segments)


def test_a_fold_pauses_between_its_parts(write, monkeypatch):
    """Before it looks, after each of some slots, and before it stores; nobody may wait for the GIL for long."""
    pauses = []
    writing = write()
    monkeypatch.setattr("stormphase.journal._fold.time.sleep", pauses.append)
    writing.fill(count=SLOTS + 1)
    full = writing.journal._worker.take_back()
    assert writing.folder.fold(full, is_urgent=True)
    assert [] == pauses
    writing.fill(count=SLOTS)
    full = writing.journal._worker.take_back()
    assert writing.folder.fold(full)
    slots_at_once = _fold._BYTES_AT_ONCE // _format.SLOT
    assert 2 + math.ceil(SLOTS / slots_at_once) == len(pauses)
