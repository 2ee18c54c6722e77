"""`stormphase.phase` for libraries: it finds the tracker that runs, when a phase is entered, and else does nothing."""

from __future__ import annotations

import asyncio
import os
import threading
import types
from typing import TYPE_CHECKING, Any

import pytest

from stormphase import _ambient
from stormphase._ambient import AMBIENT, NOWHERE
from stormphase._decorator import ambient_phase
from stormphase._noop import NOOP
from stormphase._recipe import function_name_of
from stormphase._recorder import PhaseRecorder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle


def source_of(lanes: LaneSet) -> Any:
    """Return the least that a phase can be entered on."""
    return types.SimpleNamespace(lane_set=lanes, enter_phase=lanes.enter_phase)


@pytest.fixture(autouse=True)
def nothing_stays_ambient() -> Iterator[None]:
    """Fail the test that leaves a source behind."""
    yield
    assert NOWHERE is AMBIENT.source


@pytest.fixture
def started(lanes: LaneSet, ended: list[PhaseHandle]) -> Iterator[Any]:
    """Return a source that is ambient; its phases come to stand in `ended`."""
    source = source_of(lanes)
    _ambient.push(source)
    yield source
    _ambient.pop(source)


@ambient_phase("tokenize", at_exit=lambda *_: {})
def tokenize(text: str) -> list[str]:
    """Split, as a library decorated at import."""
    return text.split()


@ambient_phase
def plain() -> int:
    """Answer."""
    return 1


@ambient_phase("coroutine")
async def coroutine() -> int:
    """Answer."""
    return 1


@ambient_phase("generator")
def generator() -> Any:
    """Yield, and answer."""
    received = yield 1
    return received


@ambient_phase("old")
@types.coroutine
def old() -> Any:
    """Yield, and answer."""
    return (yield 1)


@ambient_phase("async_generator")
async def async_generator() -> Any:
    """Yield."""
    yield 1


async def _use_async() -> list[Any]:
    async with ambient_phase("async block"):
        return [await coroutine(), *[item async for item in async_generator()]]


def _use_all() -> list[Any]:
    results: list[Any] = [tokenize("a b"), plain(), *asyncio.run(_use_async()), *generator()]
    waiting = old()
    results.append(next(waiting))
    with pytest.raises(StopIteration):
        waiting.send(2)
    with ambient_phase("block"):
        return results


RESULTS = [["a", "b"], 1, 1, 1, 1, 1]


def test_without_a_tracker_all_forms_do_nothing() -> None:
    """Libraries work as if they were not decorated, and blocks give the shared no-op."""
    assert RESULTS == _use_all()
    with ambient_phase("block") as handle:
        assert NOOP is handle


def test_with_a_tracker_all_forms_are_phases(started: Any, ended: list[PhaseHandle]) -> None:
    """What was decorated before the tracker started is recorded once it runs."""
    assert RESULTS == _use_all()
    assert [
        "tokenize",
        "plain",
        "async block / coroutine",
        "async block / async_generator",
        "async block",
        "generator",
        "old",
        "block",
    ] == [each.phase_path for each in ended]


def test_a_tracker_that_starts_inside_a_block(lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """A block that was a no-op when it was entered ends nothing, also if the object is open again inside it."""
    late = ambient_phase("a")
    source = source_of(lanes)
    with late:
        _ambient.push(source)
        with late:
            pass
        assert ["a"] == [each.phase_path for each in ended]
    _ambient.pop(source)
    assert 1 == len(ended)


def test_a_tracker_that_stops_inside_a_block(lanes: LaneSet, ended: list[PhaseHandle]) -> None:
    """A block that was entered on a tracker ends there, whichever is ambient by then."""
    source = source_of(lanes)
    _ambient.push(source)
    with ambient_phase("a"):
        _ambient.pop(source)
    assert ["a"] == [each.phase_path for each in ended]


def test_the_most_recently_started_one_is_found() -> None:
    """Of several that run the last one started counts where no phase is open, in whatever order they stop."""
    sources = [source_of(PhaseRecorder().lane_set("s", rank)) for rank in range(3)]
    found = []
    for source in sources:
        _ambient.push(source)
        found.append(AMBIENT.here() is source)
    for source in (sources[1], sources[2], sources[1]):
        _ambient.pop(source)
        found.append(AMBIENT.here() is (sources[2] if source is sources[1] and len(found) < 4 else sources[0]))
    _ambient.pop(sources[0])
    assert [True] * 6 == found


def test_starts_and_stops_in_threads_at_once() -> None:
    """However many threads push and pop, none gets lost and none stays."""
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        for _ in range(200):
            source: Any = object()
            _ambient.push(source)
            _ambient.pop(source)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ([], NOWHERE) == (AMBIENT._started, AMBIENT.source)


def test_a_forked_child_keeps_what_is_ambient(started: Any) -> None:
    """Also if another thread held the lock at the fork, the child finds the source and can push and pop."""
    AMBIENT._lock.acquire()
    try:
        pid = os.fork()
        if pid == 0:
            is_kept = AMBIENT.source is started
            _ambient.pop(started)
            os._exit(0 if is_kept and AMBIENT.source is NOWHERE else 1)
    finally:
        AMBIENT._lock.release()
    assert (pid, 0) == os.waitpid(pid, 0)


def test_nowhere_is_a_source() -> None:
    """What is ambient without a tracker has the shape of one."""
    assert (None, NOOP) == (NOWHERE.lane_set, NOWHERE.enter_phase("a"))


def test_the_place_of_a_library_function(started: Any, ended: list[PhaseHandle]) -> None:
    """The phase of a library's function knows the function."""
    plain()
    assert f"{__name__}.plain" == function_name_of(ended[0])
