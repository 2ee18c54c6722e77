"""Several trackers run at once: what a library enters by `stormphase.phase` lands in the run that it works for."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import stormphase
from stormphase.otel import OTelBridge
from stormphase.stores import MemoryStore

BRIDGES = pytest.mark.parametrize("make_bridge", [lambda: None, OTelBridge], ids=["no bridge", "OTel's context"])


@stormphase.phase("library")
def library():
    """Do what a library does."""


@stormphase.phase("rows", attributes={"kind": "csv"})
def rows():
    """Yield, as a library does."""
    for number in range(2):
        with stormphase.phase("row", level="INFO"):
            pass
        yield number


@pytest.fixture
def start(make_tracker):
    """Start two runs on a bridge; the second one is the last started."""

    def make(make_bridge=lambda: None, **options):
        return [
            make_tracker(f"run{number}", store=MemoryStore(), bridge=make_bridge(), **options).start()
            for number in range(2)
        ]

    return make


def paths(tracker):
    """Return the paths of a run's phases, sorted."""
    assert tracker.flush()
    return sorted(record.path_text for record in tracker._settings.store.query(kind="phase"))


@BRIDGES
def test_two_runs_in_two_threads_stay_apart(make_tracker, make_bridge, step_thread):
    """A hyper-parameter search: each thread starts its own run, and a library's phases are in their own thread's."""
    threads = [step_thread(f"trial {number}") for number in range(2)]
    trackers = [make_tracker(store=MemoryStore(), bridge=make_bridge()) for _ in threads]
    for thread, tracker in zip(threads, trackers, strict=True):
        thread.do(tracker.start)
    phases = [
        thread.do(tracker.enter_phase, f"trial{number}")
        for number, (thread, tracker) in enumerate(zip(threads, trackers, strict=True))
    ]
    for thread in threads:
        thread.do(library)
        assert [0, 1] == thread.do(lambda: list(rows()))
    for thread, phase in zip(threads, phases, strict=True):
        thread.do(phase.close)
    for number, tracker in enumerate(trackers):
        mine = f"trial{number}"
        within = [f"{mine} / {name}" for name in ("library", "rows", "rows / row", "rows / row")]
        assert [mine, *within] == paths(tracker)


@BRIDGES
def test_without_an_open_phase_it_is_the_last_one_started(start, make_bridge):
    """Also after a phase of the other one, which has ended by then; and when that stops, the one that is left."""
    first, second = start(make_bridge)
    with first.enter_phase("train"):
        pass
    library()
    assert ["library"] == paths(second)
    second.stop()
    library()
    assert ["library", "train"] == paths(first)


@BRIDGES
@pytest.mark.parametrize("is_first_inner", [True, False])
def test_of_two_that_have_a_phase_open_it_is_the_innermost(start, make_bridge, is_first_inner):
    """Whichever of them was started last."""
    first, second = start(make_bridge)
    outer, inner = (second, first) if is_first_inner else (first, second)
    with outer.enter_phase("outer"):
        with inner.enter_phase("inner"):
            library()
        library()
    assert (["inner", "inner / library"], ["outer", "outer / library"]) == (paths(inner), paths(outer))


def test_of_two_with_clocks_of_their_own_it_is_the_last_started(make_tracker):
    """Their times cannot be compared, and either would do."""
    from stormphase.testing import ManualClock

    first, second = (make_tracker(store=MemoryStore(), clock=ManualClock()).start() for _ in range(2))
    with second.enter_phase("outer"), first.enter_phase("inner"):
        library()
    assert ["outer", "outer / library"] == paths(second)


@BRIDGES
def test_tasks_belong_to_the_run_that_created_them(start, make_bridge):
    """Two runs in one loop, their tasks interleaved."""
    first, second = start(make_bridge)

    async def work(turns, mine, others):
        for _ in range(turns):
            await mine.acquire()
            library()
            others.release()

    async def trial(tracker, mine, others):
        with tracker.enter_phase("trial"):
            await asyncio.create_task(work(3, mine, others))

    async def main():
        one, two = asyncio.Semaphore(1), asyncio.Semaphore(0)
        await asyncio.gather(trial(first, one, two), trial(second, two, one))

    asyncio.run(main())
    expected = ["trial", *["trial / library"] * 3]
    assert (expected, expected) == (paths(first), paths(second))


@BRIDGES
def test_a_thread_with_a_copied_context_belongs_to_the_run_it_was_copied_in(start, make_bridge):
    """As `asyncio.to_thread` and this library's own advice do; a pool's thread serves one run after the other."""
    first, second = start(make_bridge)
    with ThreadPoolExecutor(1) as pool:
        for tracker in (first, second, first):
            with tracker.enter_phase("train"):
                pool.submit(contextvars.copy_context().run, library).result()
        pool.submit(library).result()  # Of no run's phase.
    assert ["train", "train", "train / library", "train / library"] == paths(first)
    assert ["library", "train", "train / library"] == paths(second)


def test_a_thread_that_outlives_its_phase_stays_with_its_run(start):
    """Its context still says where it came from, and the run goes on."""
    first, second = start()
    with first.enter_phase("train"):
        context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(library,))
    thread.start()
    thread.join()
    assert (["train", "train / library"], []) == (paths(first), paths(second))


def test_an_open_phase_counts_more_than_one_that_has_ended(start):
    """A task began in one run's phase, which has ended, and has entered one of the other run since."""
    first, second = start()
    with second.enter_phase("over"):
        context = contextvars.copy_context()

    def later():
        with first.enter_phase("now"):
            library()

    context.run(later)
    assert (["now", "now / library"], ["over"]) == (paths(first), paths(second))


def test_a_forked_child_goes_on_in_the_run_that_had_a_phase_open(start):
    """The context of the fork decides, as everywhere."""
    first, second = start()
    with first.enter_phase("train"):
        pid = os.fork()
        if pid == 0:
            with stormphase.phase("child") as phase:
                os._exit(0 if phase.path == ("train", "child") and phase._lane.lanes is first.lane_set else 1)
        assert (pid, 0) == os.waitpid(pid, 0)
    assert second.is_running


def test_the_level_that_filters_is_that_of_the_run_that_is_meant(make_tracker):
    """What one run does not show another one may."""
    first = make_tracker(store=MemoryStore(), level="WARNING").start()
    second = make_tracker(store=MemoryStore()).start()
    for tracker in (first, second):
        with tracker.enter_phase("train"), stormphase.phase("detail", level="INFO"):
            pass
    assert (["train"], ["train", "train / detail"]) == (paths(first), paths(second))
