"""The journal's reader: on files built byte by byte by the format's page, sound, cut, damaged, growing and hostile."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path

import journal_independent_reader as independent_reader
import journal_sample as sample
import pytest
from journal_sample import (
    FOLDED,
    IN_USE,
    SEGMENT,
    SUPERSEDED,
    VOID,
    Phases,
    bucket_row,
    journal,
    path_row,
    scope_id,
    strings,
    texts,
    totals,
)

from stormphase._liveness import own_process
from stormphase._model import PhaseStatus
from stormphase.exceptions import (
    JournalDamagedError,
    JournalError,
    JournalIncompleteError,
    JournalVersionError,
)
from stormphase.journal import UnreadableJournal, read_directory, read_journal
from stormphase.journal._copy import MAX_TRIES
from stormphase.journal._read import may_be_of
from stormphase.journal._source import BytesSource
from stormphase.journal._story import read_source

NAMES = strings(1, (0, "train"), (1, "step"), (2, "forward"))


def image_of(data, **options):
    """Return what the reader says of a journal in memory."""
    return read_source(BytesSource(bytes(data)), Path("x.journal"), **options)


def numbers(phases):
    """Return the phases' numbers."""
    return [phase.sequence for phase in phases]


# --- what a sound file says ---------------------------------------------------------------------------------------


def test_the_header_says_whose_journal_it_is():
    """Session, rank, process, clocks, heartbeat, step and counts come from the first segment."""
    image = image_of(
        journal(
            step=7,
            unwritten=3,
            signal=(15, 9_000),
            cleared_unsent=2,
            owners_unsent=1,
            beats=((8_000, 1_008_000, 6), (7_000, 1_007_000, 5)),
            end_note={"kind": "exception", "ended_ns": 9_500, "type": "ValueError", "message": "no"},
        )
    )
    assert sample.FACTS == image.facts
    assert ("a-session", 1, 3, 1, 8, 2, 1, "node-1", "torchrun") == (
        image.identity.session_id,
        image.identity.attempt,
        image.identity.rank,
        image.identity.local_rank,
        image.identity.world_size,
        image.identity.local_world_size,
        image.identity.node_rank,
        image.identity.host,
        image.identity.launcher,
    )
    assert ("node-1", "00010203-0405-0607-0809-0a0b0c0d0e0f", 4_242, 99, 4_026_531_836) == (
        image.process.host,
        image.process.boot_id,
        image.process.pid,
        image.process.started,
        image.process.pid_namespace,
    )
    assert (1_000, 8_000, 1_008_000) == (image.started_ns, image.heartbeat_ns, image.heartbeat_wall_ns)
    assert 1_000_000 + 500 == image.anchor.to_wall_ns(500)
    assert (7, 3, 15, 9_000, 2, True) == (
        image.step,
        image.unwritten,
        image.stop_signal,
        image.stop_asked_ns,
        image.cleared_unsent,
        image.owners_are_unsent,
    )
    assert ("exception", 9_500, "ValueError", "no", None) == (
        image.end_note.kind,
        image.end_note.ended_ns,
        image.end_note.error_type,
        image.end_note.error_message,
        image.end_note.signal,
    )
    assert () == image.damage


def test_what_is_unknown_is_none():
    """A process that ended without a word, a step, a signal, a boot id, a heartbeat: None, or the start."""
    data = journal(beats=((9_999, 1, 0), (9_999, 1, 0)))
    data[56:88] = bytes(32)
    image = image_of(data)
    assert (None, None, None, None) == (image.end_note, image.step, image.stop_signal, image.stop_asked_ns)
    assert (None, None, None) == (image.process.boot_id, image.process.started, image.process.pid_namespace)
    assert (sample.STARTED_NS, 1_000_000 + 900 + 100) == (image.heartbeat_ns, image.heartbeat_wall_ns)


def test_the_heartbeat_is_never_before_any_time_in_the_phases():
    """A phase that was entered or ended after the last heartbeat proves that the process lived then."""
    ended = Phases(2)
    ended.add(1, path=1, entered=2_000, ended=7_000)
    opened = Phases(3)
    opened.add(2, path=1, entered=8_000)
    assert 7_000 == image_of(journal(NAMES, ended)).heartbeat_ns
    assert 8_000 == image_of(journal(NAMES, ended, opened)).heartbeat_ns


def test_open_phases_come_with_all_that_was_known_at_enter():
    """Path, parent, step, thread, attributes, lane and flags of an open phase stand in the image."""
    phases = Phases(2, thread_id=77, name=4)
    phases.add(1, path=1, entered=2_000, attributes={"epochs": 3})
    phases.add(5, path=2, parent=1, entered=2_500, step=9, flags=1)
    image = image_of(journal(strings(1, (0, "train"), (1, "step"), (2, "forward"), (-1, "Main \u2713")), phases))
    outer, inner = image.open
    assert (("train",), {"epochs": 3}, None, True, None) == (
        outer.path,
        outer.attributes,
        outer.parent_scope_id,
        outer.is_lane_root,
        outer.step,
    )
    assert (("train", "step"), scope_id(5), scope_id(1), 9, True, False) == (
        inner.path,
        inner.scope_id,
        inner.parent_scope_id,
        inner.step,
        inner.is_sync,
        inner.is_lane_root,
    )
    assert {(77, "Main \u2713", True)} == {
        (phase.thread_id, phase.thread_name, phase.is_main_thread) for phase in image.open
    }
    assert {PhaseStatus.ACTIVE} == {phase.status for phase in image.open}


def test_an_envelope_says_more():
    """Late attributes win, and retries, pauses, tasks, threads, errors, foreign parents and traces are told."""
    phases = Phases(2)
    phases.add(
        1,
        path=1,
        flags=4 | 2**24,
        envelope={
            "attributes": {"a": 1, "b": 2},
            "late": {"b": 3},
            "task": "task-1",
            "thread_id": 5,
            "thread_name": "t",
            "is_main": True,
            "parent": "00000000000000ff",
            "attempt": 2,
            "retry_of": scope_id(9),
            "paused_ns": 30,
            "paused_since_ns": 2_100,
            "trace": {"trace_id": "0" * 32, "sampled": True},
            "cut": True,
        },
    )
    phases.add(
        2,
        path=1,
        ended=2_500,
        status=1,
        envelope={
            "error": {"type": "E", "message": "m", "traceback": "t", "root": scope_id(7)},
            "status_text": "why",
        },
    )
    image = image_of(journal(NAMES, phases))
    (paused,) = image.open
    (failed,) = image.ended
    assert (PhaseStatus.PAUSED, 30, 2_100, {"a": 1, "b": 3}, "task-1", 5, "t", True) == (
        paused.status,
        paused.paused_ns,
        paused.paused_since_ns,
        paused.attributes,
        paused.task_name,
        paused.thread_id,
        paused.thread_name,
        paused.is_main_thread,
    )
    assert ("00000000000000ff", 2, scope_id(9), {"trace_id": "0" * 32, "sampled": True}, True, True) == (
        paused.parent_scope_id,
        paused.attempt,
        paused.retry_of,
        paused.trace,
        paused.is_cut,
        paused.is_handed_over,
    )
    assert (PhaseStatus.FAILED, "E", "m", "t", scope_id(7), "why") == (
        failed.status,
        failed.error.type,
        failed.error.message,
        failed.error.traceback,
        failed.error.root_cause_scope_id,
        failed.status_text,
    )


def test_open_phases_stand_outermost_first_and_the_main_threads_lane_first():
    """Lanes are told one after the other: the main thread's own, then by number, whatever segment they stand in."""
    worker = Phases(2, thread_id=8, flags=0)
    worker.add(3, path=1, lane=1)
    worker.add(6, path=2, parent=3, lane=1)
    main = Phases(3)
    main.add(7, path=1, lane=2, envelope={"task": "on the main thread"})
    main.add(2, path=2, parent=1, lane=3)
    main.add(1, path=1, lane=3)
    assert [1, 2, 3, 6, 7] == numbers(image_of(journal(NAMES, worker, main)).open)


def test_ended_phases_come_by_their_end_and_may_be_limited_to_the_last():
    """`ended_limit` says how many of the last; totals count all of them."""
    segments = []
    for serial in range(3):
        phases = Phases(2 + serial)
        for index in range(20):
            number = 1 + 20 * serial + index
            phases.add(number, path=1 + index % 3, entered=2_000, ended=10_000 - 7 * number % 113)
        segments.append(phases)
    data = journal(NAMES, *segments)
    whole = image_of(data)
    assert 60 == len(whole.ended)
    assert sorted(whole.ended, key=lambda phase: (phase.ended_ns, phase.sequence)) == list(whole.ended)
    for limit in (0, 1, 16, 59, 60, 100):
        image = image_of(data, ended_limit=limit)
        assert [phase.ended_ns for phase in whole.ended[60 - min(limit, 60) :]] == [p.ended_ns for p in image.ended]
        assert whole.totals == image.totals


def test_only_what_the_bridge_was_not_given_can_be_asked_for():
    """`unsent_only` leaves out ended phases that were handed over, also from folded segments."""
    phases = Phases(2)
    phases.add(1, path=1, ended=2_100, flags=2**24)
    phases.add(2, path=1, ended=2_200)
    folded = Phases(3, state=FOLDED)
    folded.add(3, path=1, ended=2_300)
    folded.add(4, path=1, ended=2_400, flags=2**24)
    data = journal(NAMES, phases, folded)
    assert [2, 3] == numbers(image_of(data, unsent_only=True).ended)
    assert [3] == numbers(image_of(data, unsent_only=True, ended_limit=1).ended)


def test_totals_are_the_rows_and_the_records_not_in_them():
    """Counts, durations, own time, pauses, statuses, extremes and buckets of rows and records are added up."""
    phases = Phases(2)
    phases.add(1, path=1, entered=2_000, ended=2_100, on_top=40)
    phases.add(2, path=1, entered=2_000, ended=2_300, status=1, on_top=100, envelope={"paused_ns": 50})
    phases.add(3, path=1, entered=2_000, ended=2_000, status=2)
    phases.add(4, path=1, entered=2_000, ended=2_007, status=3)
    phases.add(5, path=2, entered=2_000, lane=2)
    phases.add(6, path=3, entered=2_000, ended=2_500, envelope={"late": {"text": "paused_ns"}})
    folded = Phases(3, state=FOLDED)
    folded.add(7, path=1, entered=2_000, ended=3_000)
    rows = totals(
        4,
        path_row(1, 10, 1_000, -5, 1, 50, 200, 7, 2, 3, 4),
        bucket_row(1, 90, 1, 0, 5),
        path_row(0, 2, 20, 10, 0, 10, 10, 0, 0, 0, 2),
    )
    image = image_of(journal(NAMES, phases, folded, rows))
    train = image.totals["train",]
    assert (14, 1_407, -5 + 60 + 150 + 0 + 7, 57) == (train.count, train.total_ns, train.self_ns, train.paused_ns)
    assert (2, 3, 4, 0, 300, 4) == (
        train.failed,
        train.cancelled,
        train.abandoned,
        train.min_ns,
        train.max_ns,
        train.unbucketed,
    )
    assert {90: 1, 92: 5, 118: 1, 146: 1, 0: 1, 50: 1} == train.buckets
    assert (2, 10) == (image.totals["(other)",].count, image.totals["(other)",].min_ns)
    assert {("train",), ("(other)",), ("train", "step", "forward")} == set(image.totals)
    assert () == image.damage


def test_folded_segments_tell_what_ended_last_and_nothing_else():
    """Their ended phases are in the totals already, and their open ones stand elsewhere."""
    folded = Phases(2, state=FOLDED)
    folded.add(1, path=1, ended=2_100)
    folded.add(2, path=1)
    image = image_of(journal(NAMES, folded))
    assert ([1], [], {}) == (numbers(image.ended), numbers(image.open), dict(image.totals))


def test_what_was_cleared_and_never_folded_is_counted_in_every_state():
    """The number outlives the segment's uses."""
    segments = [Phases(2 + state, state=state, discarded=10**state) for state in range(4)]
    for segment in segments:
        segment.add(9 + len(segment.data), path=1, ended=2_001)
    image = image_of(journal(NAMES, *segments))
    assert 1_111 == image.unfolded
    assert 1 == len(image.ended)


def test_a_phase_that_stands_in_several_slots_is_told_once():
    """Superseded and void slots do not count; an ended one wins over an open one, then the one that is newer."""
    first = Phases(5)
    first.add(1, path=1)
    first.add(2, path=1, lane=2)
    first.add(3, path=1, lane=3, status=SUPERSEDED)
    first.add(4, path=1, lane=4, status=VOID)
    first.add(5, path=1, lane=5)
    first.add(5, path=1, lane=5, attributes={"rewritten": True})
    first.add(6, path=1, lane=6, ended=2_600)
    second = Phases(6)
    second.add(1, path=1, ended=2_500)
    second.add(2, path=1, lane=2, attributes={"newer": True})
    second.add(3, path=1, lane=3)
    second.add(6, path=1, lane=6)
    image = image_of(journal(NAMES, second, first))
    assert [2, 3, 5] == numbers(image.open)
    assert [{"newer": True}, {}, {"rewritten": True}] == [phase.attributes for phase in image.open]
    assert [1, 6] == numbers(image.ended)
    assert 2 == image.totals["train",].count
    assert () == image.damage


def test_a_phase_that_is_in_the_totals_is_not_added_to_them_again():
    """Another slot of a phase that was folded does not count, wherever it ended."""
    folded = Phases(2, state=FOLDED)
    folded.add(1, path=1, ended=2_100)
    again = Phases(3)
    again.add(1, path=1, ended=2_100, status=1, envelope={"paused_ns": 5})
    again.add(2, path=1, ended=2_100)
    image = image_of(journal(NAMES, folded, again, totals(4, path_row(1, 1, 100, 100, 0, 100, 100, 0, 0, 0, 1))))
    assert [1, 2] == numbers(image.ended)
    assert (2, 0, 0) == (image.totals["train",].count, image.totals["train",].failed, image.totals["train",].paused_ns)


def test_a_path_without_a_number_is_its_parents_and_its_own_name():
    """Names in envelopes go after the nearest path that is known; a whole path in an envelope needs no parent."""
    phases = Phases(2)
    phases.add(1, path=1)
    phases.add(2, parent=1, envelope={"name": "a"})
    phases.add(3, parent=2, envelope={"name": "b"})
    phases.add(4, parent=90, lane=2, envelope={"name": "d", "path": ["x", "c", "d"]})
    phases.add(5, parent=4, lane=2, envelope={"name": "e"})
    phases.add(6, lane=3, envelope={"name": "root"})
    image = image_of(journal(NAMES, phases))
    expected = [("train",), ("train", "a"), ("train", "a", "b"), ("x", "c", "d"), ("x", "c", "d", "e"), ("root",)]
    assert expected == [phase.path for phase in sorted(image.open, key=lambda phase: phase.sequence)]
    assert () == image.damage


def test_stacks_are_told_oldest_first():
    """Each dump says when, of which phase, and what every thread was at; one that is being written is not there yet."""
    dump = {"at_ns": 9, "sequence": 1, "limit_ns": 5, "threads": [{"thread_id": 1, "name": "M", "frames": ["a", "b"]}]}
    image = image_of(
        journal(texts(3, json.dumps(dump).encode()), texts(2, json.dumps(dump | {"at_ns": 4}).encode()), texts(4, b""))
    )
    assert [4, 9] == [each.at_ns for each in image.stacks]
    assert (1, 5, ({"thread_id": 1, "name": "M", "frames": ["a", "b"]},)) == (
        image.stacks[0].sequence,
        image.stacks[0].limit_ns,
        image.stacks[0].threads,
    )
    assert () == image.damage


def test_a_second_reader_that_knows_only_the_page_says_the_same():
    """The format's page alone is enough to read a journal: an independent reader agrees on everything it tells."""
    data = sample.small()
    facts, phases, counts = independent_reader.read(data)
    image = image_of(data)
    assert facts == image.facts
    assert phases == {
        phase.sequence: {
            "path": phase.path,
            "entered": phase.entered_ns,
            "ended": phase.ended_ns,
            "lane": phase.lane,
            "status": phase.status.value,
            "step": phase.step,
            "attributes": phase.attributes,
        }
        for phase in (*image.open, *image.ended)
    }
    assert counts == {path: each.count for path, each in image.totals.items()}
    assert () == image.damage
    source = Path(independent_reader.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 60
    assert "import stormphase" not in source
    assert "from stormphase" not in source


# --- phases that must have ended --------------------------------------------------------------------------------


def unseen(*calls, lane=1):
    """Return numbers of open and of abandoned phases where slots are given as (number, parent, entered, options)."""
    phases = Phases(2)
    for number, parent, entered, options in calls:
        phases.add(number, path=1, parent=parent, entered=entered, **{"lane": lane, **options})
    image = image_of(journal(NAMES, phases))
    ended = [phase for phase in image.ended if phase.status is PhaseStatus.ABANDONED]
    return numbers(image.open), {phase.sequence: phase.ended_ns for phase in ended}


def test_a_phase_beside_which_a_later_one_was_entered_must_have_ended():
    """Open or ended, a later phase of the lane that is not inside it proves it over; the first one says by when."""
    end = {"ended": 9_000}
    calls = [(1, 0, 1_000, {}), (2, 1, 2_000, {}), (3, 2, 2_100, {}), (4, 1, 3_000, end), (5, 1, 4_000, {})]
    assert ([1, 5], {2: 3_000, 3: 3_000}) == unseen(*calls)
    assert ([1, 2, 3], {}) == unseen(*calls[:3])
    assert ([1, 2, 3], {}) == unseen(*calls[:3], (4, 3, 3_000, end))


def test_a_new_outermost_phase_proves_the_old_ones_over():
    """A lane begins anew only when it was empty."""
    assert ([3], {1: 3_000, 2: 3_000}) == unseen((1, 0, 1_000, {}), (2, 1, 2_000, {}), (3, 0, 3_000, {}))


def test_what_must_have_ended_is_told_as_abandoned_and_counted():
    """It has an end, a reason, and its place in the totals."""
    phases = Phases(2)
    phases.add(1, path=1, entered=1_000)
    phases.add(2, path=2, parent=1, entered=1_500)
    phases.add(3, path=3, parent=1, entered=3_000, ended=3_500)
    image = image_of(journal(NAMES, phases))
    told = {phase.sequence: phase for phase in image.ended}[2]
    assert (PhaseStatus.ABANDONED, 1_500, 3_000) == (told.status, told.entered_ns, told.ended_ns)
    assert "interrupt" in told.status_text
    assert (1, 1, 1_500) == (
        image.totals["train", "step"].count,
        image.totals["train", "step"].abandoned,
        image.totals["train", "step"].total_ns,
    )


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([(1, 0, 1_000, {}), (2, 0, 2_000, {"lane": 2})], id="another lane"),
        pytest.param([(1, 0, 1_000, {"flags": 4, "envelope": {"paused_since_ns": 1}}), (2, 0, 2_000, {})], id="paused"),
        pytest.param([(1, 0, 1_000, {"envelope": {"paused_ns": 1}}), (2, 0, 2_000, {})], id="was paused"),
        pytest.param([(1, 0, 1_000, {}), (2, 0, 2_000, {"envelope": {"paused_ns": 1}})], id="the later was paused"),
        pytest.param([(1, 0, 1_000, {"envelope": {"cut": True}}), (2, 0, 2_000, {})], id="may have been paused"),
        pytest.param([(1, 0, 2_000, {}), (2, 0, 1_000, {})], id="entered before it"),
        pytest.param([(2, 0, 1_000, {}), (3, 1, 2_000, {})], id="under a parent nobody knows"),
        pytest.param(
            [(1, 0, 500, {"envelope": {"paused_ns": 9}}), (2, 0, 1_000, {}), (3, 1, 2_000, {})],
            id="under a parent that was resumed on top of it",
        ),
        pytest.param(
            [(1, 0, 500, {"ended": 600, "envelope": {"paused_ns": 9}}), (2, 0, 1_000, {}), (3, 1, 2_000, {})],
            id="under an ended parent that was resumed on top of it",
        ),
    ],
)
def test_nothing_is_called_over_without_proof(calls):
    """Other lanes, and whatever was ever taken off its lane, prove nothing."""
    opened, abandoned = unseen(*calls)
    assert {} == abandoned
    assert {call[0] for call in calls if "ended" not in call[3]} == set(opened)


def test_a_folded_phase_proves_as_well():
    """A record in a folded segment is as good as another, also under a parent on another lane."""
    folded = Phases(2, state=FOLDED)
    folded.add(6, path=1, parent=1, entered=3_000, ended=3_100, lane=2, flags=2)
    phases = Phases(3)
    phases.add(1, path=1, entered=1_000, lane=1)
    phases.add(5, path=1, parent=0, entered=2_000, lane=2)
    image = image_of(journal(NAMES, folded, phases))
    assert [1] == numbers(image.open)
    assert [(5, 3_000), (6, 3_100)] == [(phase.sequence, phase.ended_ns) for phase in image.ended]


# --- files that nobody can read -----------------------------------------------------------------------------------


def test_a_newer_version_is_refused_by_name():
    """The error has both versions, and says to read it with a newer release."""
    with pytest.raises(JournalVersionError, match="pip install --upgrade stormphase") as raised:
        image_of(journal(version=2))
    assert (2, 1, "x.journal") == (raised.value.version, raised.value.supported, raised.value.file)


@pytest.mark.parametrize("data", [b"", bytes(100), bytes(5 * SEGMENT), bytes(journal(complete=0))])
def test_a_file_that_is_being_created_says_nothing_yet(data):
    """Until the header is complete there is no journal, and the error says to try again."""
    with pytest.raises(JournalIncompleteError, match="Try again in a second"):
        image_of(data)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"LPKSHHRH" + bytes(300), "does not begin as a journal"),
        (bytes(journal())[:230], "only 230 bytes are left"),
        (bytes(journal())[:1_100], "the facts that say whose it is are damaged"),
        (bytes(journal(facts=b"[]")), "the facts"),
        (bytes(journal(facts=b"{" * 9_000)), "the facts"),
        (bytes(journal(facts=b"[" * 11_000)), "the facts"),
        (bytes(journal(facts=b"{}" + b" " * 11_263)), "the facts"),
        (bytes(journal(facts=sample.FACTS | {"rank": "3"})), "the facts"),
        (bytes(journal(facts=sample.FACTS | {"rank": 10**4_000})), "the facts"),
        (bytes(journal(facts=sample.FACTS | {"node_rank": 1.5})), "the facts"),
        (bytes(journal(facts=sample.FACTS | {"host": None})), "the facts"),
        (bytes(journal(facts=b"\xff{}")), "the facts"),
        (bytes(journal(version=0)), "its first words are damaged"),
        (bytes(journal(complete=2)), "its first words are damaged"),
    ],
)
def test_a_file_of_which_nobody_knows_whose_it_is_is_refused(data, match):
    """Foreign files, and journals whose first words or facts are damaged, are errors that say so."""
    with pytest.raises(JournalDamagedError, match=match):
        image_of(data)


def test_the_system_refuses_with_path_and_fix(tmp_path):
    """Missing files, directories, pipes and impossible paths are errors of the library's own, and nothing hangs."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, match in (
        ("missing", r"missing': No such file.*Check the path"),
        ("pipe", "no regular file"),
        (".", "no regular file"),
        ("/dev/null", "no regular file"),
        ("loop", "Too many levels"),
        ("nul\0", "null"),
    ):
        with pytest.raises(JournalError, match=match) as raised:
            read_journal(tmp_path / name)
        assert str(tmp_path / name) == raised.value.file
        assert raised.value.fix


def test_a_refused_permission_says_whom_to_ask(tmp_path, monkeypatch):
    """Journals are their owner's, so the fix is to be that user."""

    def refuse(*_arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(JournalError, match="as the user who ran the job"):
        read_journal(tmp_path / "x.journal")


def test_a_disk_that_fails_is_an_error_of_ours(tmp_path, monkeypatch):
    """An error in the middle of reading names the file, too."""
    file = tmp_path / "rank-0.journal"
    file.write_bytes(sample.small())

    def fail(*_arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(JournalError, match=r"rank-0\.journal': Input/output error\. Check that the disk"):
        read_journal(file)


# --- damage in places ---------------------------------------------------------------------------------------------


def segment_at(number):
    """Return where the nth of the sample's own segments begins."""
    return (4 + number) * SEGMENT


def test_damage_is_named_and_the_rest_is_told():
    """Each kind of damage costs what it hits, and says so in words that hold nothing of the file."""
    strings_at, main, folded, rows, stacks = (segment_at(number) for number in (0, 1, 5, 6, 7))
    ended = main + 64 + 72
    for expected, offset, code, value in (
        ("the commit word of a phase is damaged", ended + 64, "<Q", 12_345),
        ("the commit word of a phase is damaged", ended + 64, "<Q", 3 | 77 << 56),
        ("the times of a phase are damaged", ended + 48, "<q", 1),
        ("the times of a phase are damaged", main + 64, "<q", 2**62),
        ("the times of a phase are damaged", folded + 64 + 48, "<q", 2**62),
        ("what belongs to a phase beside its numbers is damaged", main + 64 + 34, "<H", 5),
        ("what belongs to a phase beside its numbers is damaged", main + 64 + 34, "<H", 60_000),
        ("what belongs to a phase beside its numbers is damaged", main + 64 + 32, "<H", 8),
        ("a segment does not say where its slots end", main + 48, "<Q", 2**40),
        ("a segment does not say what it is", main + 8, "<Q", 1 + 256 * 9),
        ("a segment does not say what it is", main + 8, "<Q", 9 + 256),
        ("a segment does not say what it is", main, "<Q", 0),
        ("a segment of strings is damaged: some names are lost", strings_at + 56, "<Q", 2**40),
        ("a segment of strings is damaged: some names are lost", strings_at + 56, "<Q", 20),
        ("a segment of strings is damaged: some names are lost", strings_at + 68, "<I", 2**31),
        ("a path is lost", ended + 24, "<I", 4_000),
        ("a path is lost", strings_at + 64, "<I", 3),
        ("the name of a thread is lost", main + 24, "<I", 1),
        ("a row of the totals is damaged", rows + 128, "<Q", 2 + 7 * 2**32),
        ("a row of the totals is damaged", rows + 256, "<Q", 2**63 + 2 * 2**32),
        ("the histogram of a path does not add up", rows + 136, "<Q", 99),
        ("a dump of stacks is damaged", stacks + 56, "<Q", 7),
        ("a dump of stacks is damaged", stacks + 56, "<Q", 2**50),
        ("the redo log is damaged: totals may be a little off", SEGMENT, "<Q", 2**40),
        ("the redo log points to nowhere", SEGMENT, "<Q", 1),
        ("the note of how the process ended is damaged", 208, "<Q", 77),
        ("the file is shorter than its header says: its end is missing", 200, "<Q", 900),
    ):
        data = sample.small()
        struct.pack_into("<Q", data, SEGMENT + 16, 2**50)  # a redo log of nothing, so far
        struct.pack_into(code, data, offset, value)
        image = image_of(data)
        assert expected in [note.partition(" (")[0] for note in image.damage]
        assert len(image.damage) < 4
        assert 3 == image.identity.rank


@pytest.mark.parametrize(
    "dump",
    [
        b"no JSON",
        b"[]",
        b'{"at_ns": 1, "sequence": 1, "limit_ns": 1}',
        b'{"at_ns": "1", "sequence": 1, "limit_ns": 1, "threads": []}',
        b'{"at_ns": 1, "sequence": 1, "limit_ns": 1, "threads": [1]}',
        b'{"at_ns": 1, "sequence": 1, "limit_ns": 1, "threads": [{"thread_id": 1, "name": 2, "frames": []}]}',
        b'{"at_ns": 1, "sequence": 1, "limit_ns": 1, "threads": [{"thread_id": 1, "name": "", "frames": {}}]}',
        b'{"at_ns": 1, "sequence": 1, "limit_ns": 1, "threads": [{"thread_id": 1, "name": "", "frames": [2]}]}',
        b'{"at_ns": 1, "sequence": 1, "limit_ns": 1, "threads": [{"name": "", "frames": []}]}',
    ],
)
def test_a_dump_of_stacks_has_the_form_that_it_should_have(dump):
    """Whoever takes one may rely on the types in it."""
    image = image_of(journal(texts(2, dump)))
    assert ((), ("a dump of stacks is damaged",)) == (image.stacks, image.damage)


@pytest.mark.parametrize(
    ("envelope", "damage"),
    [
        ({"attributes": 3, "late": "x", "task": 1, "thread_id": 2**64 - 1, "attempt": "a", "paused_ns": 1.5}, ()),
        ({"parent": "../../etc", "retry_of": "x" * 16, "status_text": [], "trace": [1], "cut": 1}, ()),
        ({"error": "E"}, ("the error of a phase is damaged",)),
        ({"error": {"type": 1, "message": None, "traceback": 2, "root": 3}}, ()),
    ],
)
def test_what_an_envelope_holds_has_the_type_that_it_should_have(envelope, damage):
    """Whoever takes a phase may rely on its types, whatever a stranger wrote."""
    phases = Phases(2)
    phases.add(1, path=1, ended=2_500, envelope=envelope)
    image = image_of(journal(NAMES, phases))
    (phase,) = image.ended
    assert damage == image.damage
    assert ({}, None, 0, 0, None, None, None, None, False) == (
        phase.attributes,
        phase.task_name,
        phase.attempt,
        phase.paused_ns,
        phase.parent_scope_id,
        phase.retry_of,
        phase.status_text,
        phase.trace,
        phase.is_cut,
    )


def test_an_interrupted_enter_leaves_a_slot_out():
    """An empty slot between others hides none of them."""
    phases = Phases(2)
    phases.add(1, path=1, ended=2_100)
    phases.skip()
    phases.add(2, path=1, ended=2_200)
    image = image_of(journal(NAMES, phases))
    assert ([1, 2], 2, ()) == (numbers(image.ended), image.totals["train",].count, image.damage)


def test_blobs_are_never_taken_for_slots():
    """Slots end where blobs begin, so attributes that look like a phase are none."""
    phases = Phases(2)
    forged = struct.pack("<qQqIIHHIQqqQ", 2_000, 0, 0, 1, 1, 0, 0, 0, 99, 0, 0, 0)
    for number in range(1, 60):
        phases.add(number, path=1, ended=2_100, attributes={"x": (forged * 2).decode("latin-1")})
    image = image_of(journal(NAMES, phases))
    assert ([], 59, ()) == (numbers(image.open), len(image.ended), image.damage)


# --- hostile content ----------------------------------------------------------------------------------------------


def test_a_chain_of_names_does_not_grow_with_its_square():
    """8,192 paths, each one longer than the one before, are told as far as a million names go."""
    segments = []
    for first in range(0, 8_192, 1_000):
        chunk = [(number, "n") for number in range(first, min(first + 1_000, 8_192))]
        segments.append(strings(1 + len(segments), *chunk))
    rows = [
        [path_row(number, 1, 1, 1, 0, 1, 1, 0, 0, 0, 1) for number in range(first, first + 127)]
        for first in range(1, 8_000, 127)
    ]
    data = bytes(journal(*segments, *(totals(50 + index, *chunk) for index, chunk in enumerate(rows))))
    image = image_of(data)
    assert sum(map(len, image.totals)) < 1_010_000
    assert ["a path is lost"] == [note.partition(" (")[0] for note in image.damage]


def test_a_parent_that_comes_later_makes_no_circle():
    """A string that hangs under itself or a later one, and a phase likewise, end somewhere."""
    phases = Phases(2)
    phases.add(1, path=1, parent=2)
    phases.add(2, parent=1, envelope={"name": "a"})
    phases.add(3, parent=3, envelope={"name": "b"})
    phases.add(4, parent=5, envelope={"name": "c"})
    phases.add(5, parent=4, envelope={"name": "d"})
    image = image_of(journal(strings(1, (1, "x"), (3, "y"), (2, "z")), phases))
    paths = {phase.sequence: phase.path for phase in (*image.open, *image.ended)}
    lost = "(unreadable)"
    assert {1: (lost, "x"), 2: (lost, "x", "a"), 3: (lost, "b"), 4: (lost, "c"), 5: (lost, "c", "d")} == paths


def test_blobs_that_overlap_do_not_keep_a_reader_busy():
    """However many slots point to one big blob, a segment's blobs are read a few times over and no more."""
    phases = Phases(2)
    phases.add(1, path=1, ended=2_500, attributes={"list": [1.5] * 800})
    offset, length = struct.unpack_from("<HH", phases.data, 64 + 32)
    for number in range(2, 120):
        slot = phases.add(number, path=1, ended=2_500)
        struct.pack_into("<HH", phases.data, slot + 32, offset, length)
    image = image_of(journal(NAMES, phases))
    assert 119 == len(image.ended)
    assert len([phase for phase in image.ended if phase.attributes]) < 12
    assert ["what belongs to a phase beside its numbers is damaged"] == [n.partition(" (")[0] for n in image.damage]


def test_names_are_told_as_they_are():
    """What is in a name is for whoever prints it to escape; lone surrogates and cut characters are no errors."""
    data = strings(1, (0, "\x1b[31mred"), (0, "a\nb"), (0, "\u202ertl"), (0, "o" + "\u0301" * 5_000), (0, "\ud800"))
    more = texts(2, struct.pack("<II", 0, 2) + b"a\xc3" + bytes(6), kind=2)
    phases = Phases(3)
    for number in range(1, 7):
        phases.add(number, path=number, lane=number)
    names = [phase.path[0] for phase in image_of(journal(data, more, phases)).open]
    assert ["\x1b[31mred", "a\nb", "\u202ertl", "o" + "\u0301" * 5_000, "\ud800", "a\ufffd"] == names


def test_allocated_is_believed_only_as_far_as_the_file_goes(tmp_path):
    """A sparse file of 64 MiB of which little is allocated costs what is allocated, and no length is believed."""
    file = tmp_path / "rank-0.journal"
    small = sample.small()
    file.write_bytes(small)
    os.truncate(file, 64 * 2**20)
    tracemalloc.start()
    try:
        expected = image_of(small)
        image = read_journal(file)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
        with file.open("r+b") as opened:
            opened.seek(200)
            opened.write(struct.pack("<Q", 2**63))
        assert ("the file is shorter than its header says: its end is missing",) == read_journal(file).damage
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert (expected.open, expected.ended, expected.totals) == (image.open, image.ended, image.totals)
    assert () == image.damage


def test_a_file_that_never_ends_is_read_to_a_limit():
    """No journal is longer than 4 GiB, so a file that claims to be costs a reader no more than that."""

    class Endless(BytesSource):
        def size(self):
            return 2**62

    image = read_source(Endless(bytes(journal(allocated=2**40))), Path("x"))
    assert ("the file is longer than 4 GiB: the rest was not read",) == image.damage


# --- a writer in full flight ----------------------------------------------------------------------------------------


class Moving(BytesSource):
    """A journal that changes at certain reads: `changes` has functions by how many reads came before."""

    def __init__(self, data, changes):
        super().__init__(bytes(data))
        self._changes = changes
        self.reads = 0
        self.waits = 0

    def read(self, offset, length):
        """Change, if it is time, and then read."""
        change = self._changes.get(self.reads)
        if change is not None:
            data = bytearray(self._data)
            change(data)
            self._data = bytes(data)
        self.reads += 1
        return super().read(offset, length)

    def wait(self):
        """Count."""
        self.waits += 1


def folding(state, folds):
    """Return a journal with one segment of one ended phase, folded or not, as a fold leaves it."""
    phases = Phases(2, state=state)
    phases.add(1, path=1, entered=2_000, ended=2_100)
    count = 1 if state == FOLDED else 0
    row = path_row(1, count, 100 * count, 100 * count, 0, 100 * count, 100 * count, 0, 0, 0, count)
    return journal(NAMES, phases, totals(3, row), folds=folds)


def test_a_fold_between_two_reads_is_read_again():
    """Whenever a fold happens while the journal is read, the phase is counted once."""
    after = folding(FOLDED, 2)
    reads = Moving(folding(IN_USE, 0), {})
    read_source(reads, Path("x"))
    assert 0 == reads.waits
    for moment in range(reads.reads + 1):
        source = Moving(folding(IN_USE, 0), {moment: lambda data: data.__setitem__(slice(None), after)})
        image = read_source(source, Path("x"))
        assert 1 == image.totals["train",].count, moment
        assert [1] == numbers(image.ended)
        assert () == image.damage


def test_a_writer_that_died_in_a_fold_has_folded():
    """From the moment when the redo log has a number, the fold counts, however much of it has been stored."""
    before, after = folding(IN_USE, 1), folding(FOLDED, 1)
    pairs = [
        (offset, struct.unpack_from("<Q", after, offset)[0])
        for offset in range(4 * SEGMENT, len(after), 8)
        if before[offset : offset + 8] != after[offset : offset + 8]
    ]
    assert len(pairs) > 3
    for stored in range(len(pairs) + 1):
        data = bytearray(before)
        for index, (offset, value) in enumerate(pairs):
            struct.pack_into("<QQ", data, SEGMENT + 16 + 16 * index, offset, value)
            if index < stored:
                struct.pack_into("<Q", data, offset, value)
        if stored == 0:
            assert 1 == image_of(data).totals["train",].count  # The number is not there yet: nothing is stored.
        struct.pack_into("<Q", data, SEGMENT, len(pairs))
        source = Moving(data, {})
        image = read_source(source, Path("x"))
        assert (1, 0) == (image.totals["train",].count, source.waits)
        assert () == image.damage


def test_a_count_of_folds_that_stays_odd_is_waited_for_only_so_long():
    """A process that died between two words never makes it even; what it left is whole."""
    source = Moving(folding(FOLDED, 3), {})
    image = read_source(source, Path("x"))
    assert MAX_TRIES == source.waits
    assert (1, ()) == (image.totals["train",].count, image.damage)


def test_a_writer_that_is_dead_is_not_waited_for():
    """Where the kernel has proof of its death, what stands there is copied once more, and that is all."""
    data, this = folding(FOLDED, 3), own_process()
    boot_id = bytes.fromhex(this.boot_id.replace("-", ""))
    struct.pack_into("<QQQ16s", data, 48, this.pid, 1, this.pid_namespace, boot_id)  # It began at another time.
    source = Moving(data, {})
    image = read_source(source, Path("x"))
    assert 0 == source.waits
    assert (1, ()) == (image.totals["train",].count, image.damage)


def test_a_journal_that_never_rests_is_told_as_well_as_can_be():
    """After so many tries the totals may be a little off, and that is said."""

    class Restless(BytesSource):
        folds = 0

        def read(self, offset, length):
            if (offset, length) == (200 - 8, 8):
                self.folds += 2
                return struct.pack("<Q", self.folds)
            return super().read(offset, length)

    image = read_source(Restless(bytes(sample.small())), Path("x"))
    assert ("it changed faster than it could be read: totals may be a little off",) == image.damage
    assert 7 == len(image.open)


def moving(slot_of_old, new_word):
    """Return a journal in which phase 1 is open in one segment, and one in which it has moved to the other."""
    old, new = Phases(2), Phases(3, flags=2)
    slot = old.add(1, path=1, attributes={"a": 1})
    before = journal(NAMES, new, old)
    struct.pack_into("<Q", old.data, slot + 64, new_word)
    new.add(1, path=1, envelope={"attributes": {"a": 1}, "thread_id": 77})
    return before, journal(NAMES, new, old)


def test_a_phase_that_moves_while_the_journal_is_read_is_told_once():
    """Whenever its slot is superseded by one in another segment, the phase is found, and found once."""
    before, after = moving(0, 1 | SUPERSEDED << 56)
    reads = Moving(before, {})
    read_source(reads, Path("x"))
    for moment in range(reads.reads + 1):
        image = read_source(Moving(before, {moment: lambda data: data.__setitem__(slice(None), after)}), Path("x"))
        assert [1] == numbers(image.open), moment
        assert {"a": 1} == image.open[0].attributes


def test_a_phase_that_moves_between_the_reads_of_two_segments_is_told():
    """The copy of its new segment is from before the move, that of the old one from after: so it is read again."""
    before, after = moving(0, 1 | SUPERSEDED << 56)

    class Torn(BytesSource):
        reads_of_segments = 0

        def read(self, offset, length):
            if offset == 4 * SEGMENT:
                self.reads_of_segments += 1
                if self.reads_of_segments == 1:
                    return bytes(before[offset : 6 * SEGMENT] + after[6 * SEGMENT :])
            return super().read(offset, length)

    source = Torn(bytes(after))
    assert [1] == numbers(read_source(source, Path("x")).open)
    assert 2 == source.reads_of_segments


def test_a_phase_that_is_ended_while_the_journal_is_read_has_ended():
    """An open slot is read once more, and what it says by then counts; so no later phase proves anything wrong."""
    phases = Phases(2)
    slot = phases.add(1, path=1, entered=2_000)
    other = Phases(3)
    other.add(2, path=1, entered=4_000)
    data = journal(NAMES, phases, other)
    offset = 5 * SEGMENT + slot
    ended = struct.pack("<qqQ", 3_000, 100, 1 | 1 << 56)
    last_read = Moving(data, {})
    read_source(last_read, Path("x"))
    change = {last_read.reads - 4: lambda data: data.__setitem__(slice(offset + 48, offset + 72), ended)}
    image = read_source(Moving(data, change), Path("x"))
    assert [2] == numbers(image.open)
    assert [(1, PhaseStatus.FAILED, 3_000, 100)] == [
        (p.sequence, p.status, p.ended_ns, p.children_ns) for p in image.ended
    ]
    assert (1, 1) == (image.totals["train",].count, image.totals["train",].failed)


def test_a_slot_whose_last_word_was_copied_too_late_for_the_others_is_read_again():
    """A copy may say that a phase has ended, and not yet when: that comes from a second copy."""
    empty, entered, over = Phases(2), Phases(2), Phases(2)
    empty.add(1, path=1, ended=2_100)
    entered.add(1, path=1, ended=2_100)
    slot = entered.add(2, path=2, parent=1, entered=2_500, attributes={"a": 1})
    over.add(1, path=1, ended=2_100)
    over.add(2, path=2, parent=1, entered=2_500, ended=2_900, attributes={"a": 1})
    states = [bytes(journal(NAMES, each)) for each in (empty, entered, over)]

    class Torn(BytesSource):
        """Its segments are first copied as they are in `first`."""

        first = None

        def read(self, offset, length):
            if offset == 4 * SEGMENT and self.first is not None:
                data, self.first = self.first, None
                return data[offset : offset + length]
            return super().read(offset, length)

    def read(before, after, *words):
        """Read a journal that goes from one state to the next; the first copy has some words of the next already."""
        first = bytearray(states[before])
        for word in words:
            at = 5 * SEGMENT + slot + word
            first[at : at + 8] = states[after][at : at + 8]
        source = Torn(states[after])
        source.first = bytes(first)
        image = read_source(source, Path("x"))
        assert () == image.damage
        return image

    (opened,) = read(0, 1, 40).open
    assert (2, ("train", "step"), 2_500, {"a": 1}) == (
        opened.sequence,
        opened.path,
        opened.entered_ns,
        opened.attributes,
    )
    assert 2_900 == read(1, 2, 64).ended[-1].ended_ns
    assert [1] == numbers(read(0, 2, 64).ended)
    assert [1] == numbers(read(0, 2).ended)


def test_a_segment_that_is_cleared_while_the_journal_is_read_is_read_again():
    """A slot that holds another phase by then, or none, says that its segment was taken into use anew."""
    phases = Phases(2)
    phases.add(1, path=1)
    anew = Phases(9)
    anew.add(5, path=2, entered=2_500)
    before, after = journal(NAMES, phases), journal(NAMES, anew, folds=2)
    reads = Moving(before, {})
    read_source(reads, Path("x"))
    for moment in range(reads.reads):
        image = read_source(Moving(before, {moment: lambda data: data.__setitem__(slice(None), after)}), Path("x"))
        assert [5] == numbers(image.open), moment


def test_what_moves_away_at_each_try_was_open_and_is_not_judged():
    """A writer too busy to be caught: what was open in the copy is told, and a later phase does not prove it over."""
    phases = Phases(2)
    phases.add(1, path=1)
    phases.add(2, path=1, ended=2_500)

    class Restless(BytesSource):
        def read(self, offset, length):
            return struct.pack("<5Q", 9, 9, 9, 9, 9) + bytes(32) if length == 72 else super().read(offset, length)

    class Cut(BytesSource):
        def read(self, offset, length):
            return b"" if length == 72 else super().read(offset, length)

    data = bytes(journal(NAMES, phases))
    assert ([], [1, 2]) == (numbers(image_of(data).open), sorted(numbers(image_of(data).ended)))
    assert [1] == numbers(read_source(Restless(data), Path("x")).open)
    assert [] == numbers(read_source(Cut(data), Path("x")).open)


# --- directories ------------------------------------------------------------------------------------------------


def test_a_directory_of_sessions_is_read_rank_by_rank(tmp_path):
    """Sessions by name, ranks by number; foreign files are passed over, unreadable journals named with their error."""
    for session in ("b", "a"):
        (tmp_path / session / "sub.journal").mkdir(parents=True)
        for rank in (2, 0):
            data = sample.small()
            (tmp_path / session / f"rank-{rank:05}.attempt-0.pid-1.0.journal").write_bytes(data)
        (tmp_path / session / "notes.txt").write_text("not a journal")
        (tmp_path / session / "system.journal").write_bytes(b"LPKSHHRH")
        (tmp_path / session / "renamed.journal").write_bytes(sample.small())
    (tmp_path / "a" / "rank-00001.attempt-0.pid-1.0.journal").write_bytes(b"")
    os.mkfifo(tmp_path / "a" / "pipe.journal")
    (tmp_path / "a" / "loop.journal").symlink_to(tmp_path / "a" / "loop.journal")
    (tmp_path / "rank-00009.attempt-0.pid-1.0.journal").write_bytes(sample.small())
    found = list(read_directory(tmp_path, ended_limit=1))
    assert [
        "rank-00009.attempt-0.pid-1.0.journal",
        "a/rank-00000.attempt-0.pid-1.0.journal",
        "a/rank-00001.attempt-0.pid-1.0.journal",
        "a/rank-00002.attempt-0.pid-1.0.journal",
        "a/renamed.journal",
        "b/rank-00000.attempt-0.pid-1.0.journal",
        "b/rank-00002.attempt-0.pid-1.0.journal",
        "b/renamed.journal",
    ] == [each.file.relative_to(tmp_path).as_posix() for each in found]
    unreadable = [each for each in found if isinstance(each, UnreadableJournal)]
    assert [JournalIncompleteError] == [type(each.error) for each in unreadable]
    assert {1} == {len(each.ended) for each in found if each not in unreadable}
    again = list(read_directory(tmp_path / "a", ended_limit=1))
    assert found[1:2] + found[3:5] == again[:1] + again[2:]


@pytest.mark.parametrize(
    ("place", "expected"),
    [("runs/s", True), ("runs/s/rank-1.journal", True), ("runs/rank-1.journal", True), ("runs/t", False)],
)
def test_whose_a_journal_may_be_stands_in_the_directories_names(place, expected):
    """Also where the directory that was given is the session's own."""
    assert expected == may_be_of(Path(place), Path("runs"), "s")


def test_a_directory_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    """The given one raises; a session's below it is named among the others."""
    with pytest.raises(JournalError, match="missing': No such file or directory"):
        list(read_directory(tmp_path / "missing"))
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (closed,) = read_directory(tmp_path)
    assert (tmp_path / "closed", "Permission denied.") == (closed.file, closed.error.problem)


def test_a_file_in_a_directory_s_place_is_answered_with_what_belongs_there(tmp_path):
    """As the database is, which lies beside the journals."""
    (tmp_path / "runs.db").touch()
    with pytest.raises(JournalError, match=r"Not a directory. Check the path: it is the directory"):
        list(read_directory(tmp_path / "runs.db"))
