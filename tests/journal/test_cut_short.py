"""A journal or a file of last lines that somebody cuts short costs that file, and no training.

The programs here are cut by this process while they run. In Python alone only a program that touches nothing until the
worker has looked is safe; that part holds in both halves.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
from journal_writing import SLOTS, Writing

from stormphase import _native
from stormphase._model import PhaseStatus
from stormphase.journal import read_journal

compiled = pytest.mark.skipif(_native.speedups is None, reason="not built here, or STORMPHASE_PURE is set")

CUTS = {
    "to nothing": lambda path: os.truncate(path, 0),
    "to one byte": lambda path: os.truncate(path, 1),
    "to its header": lambda path: os.truncate(path, 16_384),
    "within a page": lambda path: os.truncate(path, 40_001),
    "by a byte": lambda path: os.truncate(path, Path(path).stat().st_size - 1),
    "and made long again": lambda path: (
        size := Path(path).stat().st_size,
        os.truncate(path, 0),
        os.truncate(path, size),
    ),
    "by a program that copies over it": lambda path: Path(path).write_bytes(b"another file"),
}
FEW = ("to nothing", "within a page")

PROGRAM = """
import json, logging, os, sys, threading, time, stormphase

runs, options = sys.argv[1], json.loads(sys.argv[2])
logs = []
handler = logging.Handler()
handler.emit = lambda record: logs.append(record.getMessage())
logging.getLogger("stormphase").addHandler(handler)
over = threading.Event()


def train(tracker, name):
    while not over.is_set():
        with tracker.enter_phase(name, {"name": name}):
            with tracker.enter_phase("step"):
                tracker.set_step(1)
            phase = tracker.enter_phase("moved")
            tracker.acquire(phase.release()).close()
        if options["prints"]:
            sys.stdout.write("said\\n")


def is_noticed():
    return tracker.stats()["journal"]["lost"] if options["suffix"] == ".journal" else bool(logs)


with stormphase.PhaseTracker("x", bridge=None, journal=runs, session_id="s", capture=options["prints"]) as tracker:
    threads = [threading.Thread(target=train, args=(tracker, f"thread {n}")) for n in range(3)]
    with tracker.enter_phase("first"):
        print("first line", flush=True)
    outer = tracker.enter_phase("open when it is cut")
    if options["is_busy"]:
        for thread in threads:
            thread.start()
    while not options["is_busy"] and tracker.stats()["journal"]["bytes"] == 1 << 20:
        time.sleep(0.01)  # The worker makes room first.
    os.write(2, b"ready\\n")
    sys.stdin.readline()
    deadline = time.monotonic() + 60
    while not is_noticed() and time.monotonic() < deadline:
        time.sleep(0.01)
    if not options["is_busy"]:
        for thread in threads:
            thread.start()
    outer.close()
    for number in range(2_000):
        with tracker.enter_phase("later"):
            pass
    over.set()
    for thread in threads:
        thread.join()
    child = os.fork() if options["forks"] else None
    if child == 0:
        with tracker.enter_phase("in the child"):
            pass
        tracker.stop()
        os._exit(0)
    if child:
        assert os.waitpid(child, 0)[1] == 0
    lost = tracker.stats()["journal"]["lost"]
print("last line")
os.write(2, json.dumps({"lost": lost, "logs": logs}).encode())
"""


def run_cut(tmp_path, cut, *, is_busy, suffix=".journal", prints=False, forks=False):
    """Run the program, cut its file while it runs, and return its exit code, what it printed and what it told of."""
    options = {"is_busy": is_busy, "suffix": suffix, "prints": prints, "forks": forks}
    program = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM, str(tmp_path), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert program.stderr is not None
    assert "ready\n" == program.stderr.readline()
    (file,) = (tmp_path / "s").glob(f"*{suffix}")
    CUTS[cut](str(file))
    output, told = program.communicate("\n", timeout=90)
    assert 0 == program.returncode, told
    return output, json.loads(told.splitlines()[-1]), file  # CPython from 3.12 on warns of a fork before.


@compiled
@pytest.mark.parametrize("cut", CUTS)
def test_threads_at_work_go_on(tmp_path, cut):
    """Whatever is cut of the journal while threads enter, end and move phases: the program ends as it would have."""
    output, told, _ = run_cut(tmp_path, cut, is_busy=True)
    assert "first line\nlast line\n" == output
    assert [1, 1] == [told["lost"], len(told["logs"])], told
    assert "has cut the journal" in told["logs"][0]


@pytest.mark.parametrize("cut", CUTS)
def test_the_heartbeat_notices_it(tmp_path, cut):
    """Also where nothing was touched in between, which is what Python alone can do."""
    output, told, _ = run_cut(tmp_path, cut, is_busy=False)
    assert "first line\nlast line\n" == output
    assert [1, 1] == [told["lost"], len(told["logs"])], told


@compiled
@pytest.mark.parametrize("cut", FEW)
def test_a_print_into_a_cut_file_of_last_lines_goes_on(tmp_path, cut):
    """Threads that print meanwhile lose none of their output, and the journal is as it was."""
    output, told, file = run_cut(tmp_path, cut, is_busy=True, suffix=".said", prints=True)
    lines = output.splitlines()
    assert ["first line", "last line", {"said"}] == [lines[0], lines[-1], set(lines[1:-1])]
    assert [0, 1] == [told["lost"], len(told["logs"])], told
    assert "short, so what is said last" in told["logs"][0]
    image = read_journal(file.with_suffix(""))
    assert ("clean", ()) == (image.end_note and image.end_note.kind, image.damage)


@pytest.mark.parametrize("cut", FEW)
def test_a_cut_file_of_last_lines_is_noticed(tmp_path, cut):
    """By the worker, before anybody prints again."""
    output, told, _ = run_cut(tmp_path, cut, is_busy=False, suffix=".said", prints=True)
    assert ["first line", "last line"] == [output.splitlines()[0], output.splitlines()[-1]]
    assert [0, 1] == [told["lost"], len(told["logs"])], told


def test_a_forked_child_has_a_journal_of_its_own(tmp_path):
    """What its parent lost is no loss of the child's."""
    _, told, parents = run_cut(tmp_path, "within a page", is_busy=False, forks=True)
    assert 1 == told["lost"]
    (childs,) = set(parents.parent.glob("*.journal")) - {parents}
    image = read_journal(childs)
    assert {("in the child",): 1} == {path: totals.count for path, totals in image.totals.items()}
    assert () == image.damage


@pytest.fixture
def cut(tmp_path):
    """Return lanes whose journal was cut to a quarter after a segment of phases, with one open, and was looked at."""
    writing = Writing(tmp_path / "rank-0.journal")
    writing.fill(count=SLOTS)
    writing.lanes.enter_phase("open", {"x": 1})
    os.truncate(writing.path, writing.path.stat().st_size // 4)
    writing.tick()
    yield writing
    writing.close()


@pytest.fixture
def being_cut(tmp_path, monkeypatch):
    """Return lanes with a full segment of failures, cut behind its first page just after somebody has looked."""
    writing = Writing(tmp_path / "rank-0.journal")
    while not writing.journal._worker.stats()["queued"]:
        with contextlib.suppress(ValueError), writing.lanes.enter_phase("fails"):
            raise ValueError
    segment = writing.journal._worker.take_back()
    assert segment is not None
    os.truncate(writing.path, segment + mmap.PAGESIZE)
    has_been_cut, looks = writing.file.has_been_cut, iter([False])
    monkeypatch.setattr(writing.file, "has_been_cut", lambda: next(looks, None) is None and has_been_cut())
    yield writing, segment
    writing.close()


@compiled
def test_a_cut_while_the_worker_adds_up_is_told_once(being_cut, caplog):
    """It reads zeros where details of failures stood."""
    writing, segment = being_cut
    writing.journal._take(segment)
    assert writing.file.is_lost
    assert ["has cut the journal"] == [text for text in ("has cut the journal", "raised") if text in caplog.text]


@compiled
def test_a_cut_while_training_looks_for_room_costs_it_nothing(being_cut, monkeypatch):
    """It gets none, and the phase is counted as not written."""
    writing, segment = being_cut
    assert not writing.file.has_been_cut()
    monkeypatch.setattr(writing.segments, "take", lambda *_, **__: None)
    monkeypatch.setattr(writing.folder, "make_room", lambda _: writing.folder.fold(segment))
    writing.fill(count=2 * SLOTS)
    assert writing.file.is_lost
    assert writing.journal.stats()["unwritten"] > 0


def test_another_journal_that_is_copied_over_it_is_noticed(tmp_path):
    """Though it is as long, and begins as journals do."""
    writing, other = Writing(tmp_path / "rank-0.journal"), Writing(tmp_path / "rank-1.journal")
    assert not writing.file.has_been_cut()
    writing.path.write_bytes(other.path.read_bytes())
    assert writing.file.has_been_cut()
    other.close()
    writing.close()


def test_what_was_open_is_not_known_any_more(cut):
    """Its end can no longer be written, so a reader does not call it open; what had ended by then has ended."""
    image = cut.read()
    assert ((), 1) == (image.open, len(image.totals))
    assert {PhaseStatus.SUCCEEDED} == {phase.status for phase in image.ended}
    assert any("somebody cut it short" in note for note in image.damage)


def test_the_process_is_still_known_to_live(cut):
    """The heartbeat and how it ended are written where the header is left, and nothing else."""
    before = cut.read()
    content = cut.path.read_bytes()[16_384:]
    cut.journal.note_step(7)
    cut.fill(count=10)
    cut.tick()
    cut.journal.put_end_note({"kind": "clean", "ended_ns": 5})
    after = cut.read()
    assert before.heartbeat_ns < after.heartbeat_ns
    assert ("clean", None) == (after.end_note and after.end_note.kind, after.step)
    assert content == cut.path.read_bytes()[16_384:]


def test_what_is_not_written_is_counted(cut):
    """As any phase that finds no room; and the file counts as lost."""
    cut.fill(count=10)
    counts = cut.journal.stats()
    assert (10, 1) == (counts["unwritten"], counts["lost"])


def test_the_end_does_not_make_it_long_again(cut):
    """Whoever cut it wanted it short."""
    size = cut.path.stat().st_size
    cut.journal.finish(1.0)
    assert size == cut.path.stat().st_size


def test_a_thread_that_comes_later_writes_nothing(cut, step_thread):
    """Its phases are counted as not written, with attributes or a new name, and it can end."""
    content = cut.path.read_bytes()[16_384:]

    def train():
        with cut.lanes.enter_phase("new name", {"x": 1}):
            pass

    thread = step_thread()
    thread.do(train)
    thread.end()
    cut.tick()
    assert 1 == cut.journal.stats()["unwritten"]
    assert content == cut.path.read_bytes()[16_384:]
