"""What a journal holds of the system goes when its session stops, whoever still holds phases or is about to store."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
from pathlib import Path

import pytest
from journal_writing import SLOTS, Writing

import stormphase
from stormphase import Misuse, PhaseStatus
from stormphase.journal import _file, read_journal
from stormphase.journal._format import SEGMENT
from stormphase.records import read_records

MAX_BYTES = 256 * SEGMENT
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")


@pytest.fixture
def without_gc():
    """Let no garbage be collected, as training loops do: what has to go must go by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def writing(tmp_path):
    """Return lanes that are written to a journal by hand."""
    made = Writing(tmp_path / "rank-0.journal", MAX_BYTES)
    yield made
    made.close()


def held(directory):
    """Return how many descriptors and how many mappings this process has of files in a directory."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # That of the listing itself is gone.
            links.append(str(entry.readlink()))
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(directory) in line]
    return sum(str(directory) in link for link in links), len(mapped)


@LINUX
@pytest.mark.parametrize(
    "options", [{}, {"summary": True}, {"capture": True}, {"capture": "fd"}, {"hang_factor": 10.0}], ids=str
)
def test_a_stop_leaves_no_descriptor_and_no_mapping(make_tracker, tmp_path, without_gc, options):
    """Of ten sessions none leaves anything, though handles of phases are kept, of threads and tasks that ended."""
    kept = []

    def work(tracker):
        with tracker.enter_phase("p", {"key": "value"}) as phase:
            kept.append(phase)
            print("said")  # noqa: T201 - for where that is captured

    async def work_in_task(tracker):
        await asyncio.create_task(asyncio.to_thread(work, tracker))
        work(tracker)

    for _ in range(10):
        with make_tracker(journal=tmp_path, **options) as tracker:
            work(tracker)
            thread = threading.Thread(target=work, args=(tracker,))
            thread.start()
            thread.join()
            asyncio.run(work_in_task(tracker))
            kept.append(tracker.enter_phase("left open"))
            assert held(tmp_path)[1]
    assert (50, (0, 0)) == (len(kept), held(tmp_path))


@LINUX
def test_a_start_that_fails_leaves_none(make_tracker, tmp_path, without_gc, monkeypatch):
    """What had been opened by then is closed."""
    tracker = make_tracker(journal=tmp_path)
    monkeypatch.setattr("stormphase._session.SessionCapture.start", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tracker.start()
    assert (0, 0) == held(tmp_path)


@LINUX
def test_what_a_forked_child_opens_goes_with_its_stop(make_tracker, tmp_path, without_gc):
    """Its own journal; of its parent's it keeps at most what the parent's worker had in hand at the fork."""
    with make_tracker(journal=tmp_path) as tracker, tracker.enter_phase("train"):
        pid = os.fork()
        if pid == 0:
            before = held(tmp_path)
            tracker.enter_phase("child").close()
            within = held(tmp_path)
            tracker.stop()
            is_right = before == held(tmp_path) and within != before
            os._exit(0 if is_right else 1)
        assert (pid, 0) == os.waitpid(pid, 0)


@LINUX
@pytest.mark.parametrize("delivers", [True, False])
def test_a_bridge_that_did_not_deliver_in_time_may_still_note_what_was_exported(
    make_tracker, tmp_path, without_gc, delivers
):
    """Else recovery would send that once more; where all was delivered nothing is left to be noted."""
    from stormphase._lanes import ContextCarrier

    class Bridge:
        exit_hook = on_handed_over = None

        def __init__(self):
            self.taken = []
            self.take = self.taken.append

        def attach(self, session):
            return ContextCarrier()

        def flush(self, timeout_s):
            return delivers

        bind = tick = finish = after_fork_in_child = lambda *_: None
        stats = environment = lambda _: {}

    bridge = Bridge()
    with make_tracker(journal=tmp_path, bridge=bridge) as tracker:
        for _ in range(3):
            tracker.enter_phase("p").close()
    assert delivers is (held(tmp_path) == (0, 0))
    bridge.on_handed_over(bridge.taken)
    (file,) = tmp_path.glob("*/*.journal")
    unsent = read_journal(file, unsent_only=True).ended
    assert (3 if delivers else 0) == len(unsent)


def use_in_every_way(lanes):
    """Enter, end, fail, pause, resume, move and retry phases."""
    with lanes.enter_phase("plain"), lanes.enter_phase("attributes", {"k": "v" * 50}):
        pass
    with lanes.enter_phase("a name that is new"), lanes.enter_phase("sync", sync=True):
        pass
    failing = lanes.enter_phase("failing")
    failing.close(error=ValueError("no"))
    lanes.retry(failing, None).close()
    moved = lanes.enter_phase("moved")
    moved.pause()
    moved.resume()
    lanes.acquire(moved.release()).close()
    lanes.exit(lanes.enter("token"))


def test_what_is_stored_after_the_end_goes_nowhere(writing, step_thread):
    """New phases, in old and new threads, end in peace; the file stays as it was."""
    threads = [step_thread(name) for name in ("one", "two", "three")]
    ended = []
    writing.lanes.exit_queues = (ended.append,)
    for thread in threads[:2]:
        thread.do(use_in_every_way, writing.lanes)
    writing.fill(count=2 * SLOTS)
    writing.journal.finish(1.0)
    before = writing.path.read_bytes()
    count = len(ended)
    for thread in threads:
        thread.do(use_in_every_way, writing.lanes)
    use_in_every_way(writing.lanes)
    for thread in threads:
        thread.end()
    writing.journal.note_step(7)
    writing.journal.note_handed_over(ended)
    writing.journal.put_end_note({"kind": "clean"})
    writing.lanes.lanes()
    assert before == writing.path.read_bytes()
    assert {} == writing.lanes.counts.to_dict()
    assert len(ended) > count
    assert [] == list(writing.lanes.open_phases())


@pytest.mark.parametrize("error", [None, ValueError("no")])
def test_what_is_open_at_the_end_can_still_end(writing, step_thread, error):
    """A thread that was just entering it when the session stopped: its end is in the file, and new phases are not."""
    thread = step_thread("late")
    late = thread.do(writing.lanes.enter_phase, "late", {"k": 1})
    writing.journal.finish(1.0)
    thread.do(use_in_every_way, writing.lanes)
    thread.do(late.__exit__, error and ValueError, error, None)
    image = writing.read()
    assert ((), ["late"]) == (image.open, [phase.path[-1] for phase in image.ended])
    assert (PhaseStatus.FAILED if error else PhaseStatus.SUCCEEDED) is image.ended[0].status


def test_threads_that_work_on_while_sessions_stop_are_never_harmed(make_tracker, tmp_path):
    """Whatever they are about when the mapping goes: no exception but that the tracker does not run, and no crash."""
    surprises = []
    is_over = threading.Event()
    has_stepped = threading.Event()

    def step():
        with stormphase.phase("outer"), stormphase.phase("inner", attributes={"k": "v"}):
            pass

    def work():
        while not is_over.is_set():
            try:
                step()
                has_stepped.set()
            except BaseException as error:
                if getattr(error, "reason", None) is not Misuse.STOPPED:
                    surprises.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for _ in range(15):
            with make_tracker(journal=tmp_path) as tracker:
                has_stepped.clear()
                assert has_stepped.wait(20)
                for _ in range(200):
                    tracker.enter_phase("main").close()
    finally:
        is_over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert [] == surprises
    assert any(record.path_text == "outer / inner" for record in read_records(tmp_path, kind="phase"))


@pytest.fixture
def growing(writing, step_thread, monkeypatch):
    """Halt another thread in the middle of growing the file; return what comes of that, and what lets it go on."""
    has_begun, may_go_on = threading.Event(), threading.Event()
    allocate = _file._allocate

    def halt(*arguments):
        allocate(*arguments)
        has_begun.set()
        may_go_on.wait(10)

    monkeypatch.setattr(_file, "_allocate", halt)
    growth = step_thread("grows").begin(writing.file.grow)
    has_begun.wait(10)
    yield growth, may_go_on.set
    may_go_on.set()


def test_who_closes_a_file_that_grows_waits_for_that(writing, growing, step_thread):
    """To cut off what another thread is about to touch would kill the program by SIGBUS."""
    growth, go_on = growing
    closing = step_thread("closes").begin(writing.file.close)
    go_on()
    closing.result(10)
    assert (range(64, 128), 128 * SEGMENT) == (growth.result(10), writing.path.stat().st_size)
    assert range(0) == writing.file.grow()


def test_a_file_whose_growth_hangs_is_closed_by_whoever_grows_it(writing, growing, monkeypatch):
    """The stop goes on meanwhile."""
    monkeypatch.setattr(_file, "_RESIZE_WAIT_S", 0.0)
    growth, go_on = growing
    writing.file.close()
    assert writing.path.stat().st_size == MAX_BYTES
    monkeypatch.undo()
    go_on()
    assert (range(64, 128), 128 * SEGMENT) == (growth.result(10), writing.path.stat().st_size)


def test_nobody_waits_for_a_file_whose_growth_hangs_to_look_at_it(writing, growing, step_thread):
    """A stop looks, and it would wait for a disk that hangs."""
    assert step_thread("looks").begin(writing.file.has_been_cut).result(5) is False


def test_nobody_waits_to_write_what_is_left_of_a_lost_file(writing, growing, step_thread):
    """A signal handler may, on the very thread that is about to close the file."""
    writing.file.is_lost = True
    step_thread("writes").begin(writing.file.beat, 1, 2).result(5)
    writing.file.is_lost = False
