"""A journal and its process: beginning, fork and end, and what it costs in memory."""

from __future__ import annotations

import json
import threading

import pytest
from journal_writing import SLOTS, Writing, count_of

from stormphase._model import PhaseError
from stormphase.journal import read_directory, read_journal
from stormphase.journal._journal import encoded_facts, encoded_note, end_note_of


@pytest.fixture
def writing(tmp_path):
    """Return lanes that are written to a journal by hand."""
    made = Writing(tmp_path / "rank-0.journal")
    yield made
    made.close()


def test_a_file_that_was_left_to_the_parent_is_never_written_again(writing):
    """New names, and all that the child may do, leave the parent's bytes as they were."""
    writing.lanes.enter_phase("train").close()
    writing.journal.forget()
    before = writing.path.read_bytes()
    writing.lanes.journal = None
    writing.lanes.after_fork_in_child()
    with writing.lanes.enter_phase("a new name", {"k": 1}) as phase:
        phase.pause()
        phase.resume()
    assert before == writing.path.read_bytes()


def test_an_impatient_interrupt_of_the_stop_still_closes_the_file(writing, monkeypatch):
    """Ctrl-C while the worker is waited for: it beats once more, and gives back what was never used."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.journal._worker, "wait", interrupt)
    before = writing.read().heartbeat_wall_ns
    with pytest.raises(KeyboardInterrupt):
        writing.journal.finish(1.0)
    assert before < writing.read().heartbeat_wall_ns
    assert not writing.file.may_grow


def test_who_ends_a_journal_does_not_wait_for_pauses(writing, monkeypatch):
    """While training goes on the worker pauses within a segment; what is left at the end it folds at one go."""
    pauses = []
    monkeypatch.setattr("stormphase.journal._fold.time.sleep", pauses.append)
    writing.fill(count=2 * SLOTS)
    writing.fold()
    before = len(pauses)
    assert before > 0
    writing.fill(count=2 * SLOTS)
    monkeypatch.setattr(writing.journal._worker, "wait", lambda *_: writing.fold())
    writing.journal.finish(1.0)
    assert (before, 4 * SLOTS) == (len(pauses), count_of(writing.read()))


def test_what_ends_after_the_journal_was_closed_is_still_stored(writing):
    """The file stays mapped, so a late exit is neither an error nor lost."""
    phase = writing.lanes.enter_phase("late")
    writing.journal.finish(0.0)
    phase.close()
    assert ((), 1, None) == (writing.read().open, count_of(writing.read()), writing.read().end_note)
    assert not writing.journal._grow()


CANCELLED = {"kind": "exception", "status": "cancelled", "type": "GeneratorExit"}


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (None, {"kind": "clean", "status": "succeeded"}),
        (
            KeyboardInterrupt(),
            {
                "kind": "signal",
                "signal": 2,
                "status": "cancelled",
                "type": "KeyboardInterrupt",
                "message": "",
                "root": "0f",
            },
        ),
        (
            SystemExit("SIGTERM"),
            {
                "kind": "signal",
                "signal": 15,
                "status": "cancelled",
                "type": "SystemExit",
                "message": "SIGTERM",
                "root": "0f",
            },
        ),
        (SystemExit(0), {"kind": "clean", "status": "succeeded"}),
        (SystemExit(), {"kind": "clean", "status": "succeeded"}),
        (SystemExit(3), {"kind": "exit", "status": "cancelled", "type": "SystemExit", "message": "3", "root": "0f"}),
        (
            ValueError("a"),
            {"kind": "exception", "status": "failed", "type": "ValueError", "message": "a", "root": "0f"},
        ),
        (
            GeneratorExit(),
            {"kind": "exception", "status": "cancelled", "type": "GeneratorExit", "message": "", "root": "0f"},
        ),
    ],
)
def test_an_outcome_becomes_an_end_note(outcome, expected):
    """By what it was that ended the session, if that is known."""
    assert {"ended_ns": 7, **expected} == end_note_of(
        outcome, 7, lambda error: PhaseError(type(error).__name__, str(error), None, "0f")
    )


def test_an_end_that_nobody_knows_is_told_as_such():
    """An interpreter that ends may have any status."""
    assert "ended" == end_note_of(None, 7, repr, is_known=False)["kind"]


def test_facts_and_notes_fit_whatever_they_hold():
    """What a bridge added goes first; texts are cut."""
    resource = {f"k{number}": "v" * 100 for number in range(200)}
    facts = {"session_id": "s", "otel": {"trace_id": "t", "resource": resource}}
    assert {"session_id": "s", "otel": {"trace_id": "t", "resource": {}}} == json.loads(encoded_facts(facts))
    facts["otel"]["trace_id"] = "t" * 20_000
    assert {"session_id": "s", "otel": None} == json.loads(encoded_facts(facts))
    note = {"kind": "exception", "message": "\u20ac" * 5_000, "type": "x" * 3_000, "ended_ns": 5}
    found = json.loads(encoded_note(note))
    assert ("exception", 5) == (found["kind"], found["ended_ns"])
    assert len(encoded_note(note)) <= 4_096


def test_all_threads_of_a_forked_child_write_its_journal(run_python, tmp_path):
    """Also those that enter their first phase while another one is just making the file."""
    source = """
import os, sys, threading
import stormphase._journaling as journaling
from stormphase import PhaseTracker

tracker = PhaseTracker(session_id="s", rank=0, world_size=1, bridge=None, summary=False, journal=sys.argv[1]).start()
if not os.fork():
    making, seen = threading.Event(), threading.Event()
    open_journal = journaling.open_journal

    def open_slowly(*arguments, **named):
        making.set()
        seen.wait(0.3)
        return open_journal(*arguments, **named)

    journaling.open_journal = open_slowly
    first = threading.Thread(target=lambda: tracker.enter_phase("first").close())
    first.start()
    making.wait(10)
    tracker.enter_phase("second").close()
    first.join()
    os._exit(0)
os.wait()
"""
    run_python(source, str(tmp_path))
    (child,) = [image for image in read_directory(tmp_path) if image.facts["forked_from"]]
    assert {("first",), ("second",)} == {phase.path for phase in child.ended}


def test_memory_and_the_file_stay_as_they_are_however_many_phases_there_are(run_python, tmp_path):
    """A real worker, with attributes, pauses, moves and threads that come and go; a long run is in the benchmarks."""
    source = """
import gc, os, sys, threading, tracemalloc
from stormphase import PhaseTracker
from stormphase.journal._options import JournalOptions

options = JournalOptions(sys.argv[1], max_bytes=1 << 20)
tracker = PhaseTracker(session_id="s", rank=0, world_size=1, bridge=None, summary=False, journal=options).start()

def work(count):
    with tracker.enter_phase("outer", {"k": 1}):
        for number in range(count):
            with tracker.enter_phase("step", {"n": number} if number % 4 else None):
                if number % 50 == 0:
                    with tracker.enter_phase("paused") as phase:
                        phase.pause()
                        phase.resume()

def round():
    for _ in range(3):
        thread = threading.Thread(target=work, args=(2_500,))
        thread.start()
        work(2_500)
        thread.join()

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

tracker.enter_phase("train")
round()
tracemalloc.start()
round()
before, heap_before = resident(), tracemalloc.get_traced_memory()[0]
for _ in range(4):
    round()
after, heap_after = resident(), tracemalloc.get_traced_memory()[0]
print(after - before, heap_after - heap_before, flush=True)
os._exit(0)
"""
    resident, heap = map(int, run_python(source, str(tmp_path)).stdout.split())
    (file,) = tmp_path.rglob("*.journal")
    image = read_journal(file)
    assert 1 << 20 == file.stat().st_size
    steps = 6 * 6 * 2_500
    assert (steps + steps // 50 + 6 * 6, 0) == (count_of(image), image.unwritten)
    assert [("train",)] == [phase.path for phase in image.open]
    assert heap < 200_000
    assert resident < 4_000_000


def test_a_worker_that_folds_while_threads_write_loses_nothing(make_tracker, tmp_path):
    """The real worker, threads that end, and one that holds a phase open all the time."""
    from stormphase.journal._options import JournalOptions

    tracker = make_tracker(
        session_id="s", rank=0, world_size=1, summary=False, journal=JournalOptions(tmp_path, max_bytes=2 << 20)
    ).start()

    def work():
        with tracker.enter_phase("worker"):
            for number in range(20 * SLOTS):
                with tracker.enter_phase("step", {"n": number}):
                    pass

    with tracker.enter_phase("train", {"k": 1}):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
        (image,) = read_directory(tmp_path)
        assert [("train",)] == [phase.path for phase in image.open]
    tracker.stop()
    (image,) = read_directory(tmp_path)
    assert (4 * (20 * SLOTS + 1) + 1, 0, ()) == (count_of(image), image.unwritten, image.damage)


def test_the_file_is_no_longer_than_its_bound_whatever_threads_and_names_there_are(make_tracker, tmp_path):
    """Three dozen threads, two thousand long names, attributes of kilobytes and deep nesting, in a file of 1 MiB."""
    from stormphase.journal._options import JournalOptions

    bound = 1 << 20
    tracker = make_tracker(
        session_id="s", rank=0, world_size=1, summary=False, journal=JournalOptions(tmp_path, max_bytes=bound)
    ).start()
    (file,) = tmp_path.rglob("*.journal")
    rooms = []

    def work(thread):
        for number in range(60):
            name = f"{thread} {number} " + "n" * 4_000
            with tracker.enter_phase(name, {f"k{key}": "v" * 900 for key in range(5)}), tracker.enter_phase("inner"):
                pass
        status = file.stat()
        rooms.append((status.st_size, status.st_blocks * 512))

    with tracker.enter_phase("train", {"k": 1}):
        threads = [threading.Thread(target=work, args=(number,), name="t" * 500) for number in range(36)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        opened = read_journal(file, ended_limit=0).open
    tracker.stop()
    assert [("train",)] == [phase.path for phase in opened]
    assert {bound} == {length for length, _ in rooms}
    assert max(on_disk for _, on_disk in rooms) <= bound
    assert file.stat().st_size <= bound
    image = read_journal(file)
    assert 36 * 60 * 2 + 1 == count_of(image) + image.unwritten
    assert () == image.damage
