"""Who is to blame where an exception comes out again elsewhere: the phase in which it first arose."""

# ruff: noqa: D103 - ways are told by their names

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

import stormphase
from stormphase.records import attribute
from stormphase.stores import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Tracker = stormphase.PhaseTracker


class BadCastError(Exception):
    """The user's own kind, which can be weakly referenced."""


def fails(tracker: stormphase.PhaseTracker, name: str = "step", kind: type[Exception] = ValueError) -> None:
    """Fail in a phase."""
    with tracker.enter_phase(name):
        raise kind(name)


def by_result(tracker: Tracker, step: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(step).result()


def by_copied_context(tracker: Tracker, step: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(contextvars.copy_context().run, step).result()


def by_map(tracker: Tracker, step: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        list(pool.map(lambda _: step(), range(1)))


def by_exception(tracker: Tracker, step: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(step).exception()
    assert error is not None
    raise error


def by_as_completed(tracker: Tracker, step: Callable[[], None]) -> None:
    with ThreadPoolExecutor(2) as pool:
        for future in as_completed([pool.submit(step), pool.submit(int)]):
            future.result()


def by_thread_pool(tracker: Tracker, step: Callable[[], None]) -> None:
    with ThreadPool(1) as pool:
        pool.apply(step)


def by_plain_thread(tracker: Tracker, step: Callable[[], None]) -> None:
    raise caught_in_thread(step)


def by_plain_thread_anew(tracker: Tracker, step: Callable[[], None]) -> None:
    raise caught_in_thread(step).with_traceback(None)


def by_queue(tracker: Tracker, step: Callable[[], None]) -> None:
    errors: queue.Queue[BaseException] = queue.Queue()
    thread = threading.Thread(target=lambda: errors.put(caught(step)))
    thread.start()
    thread.join()
    raise errors.get()


def by_from(tracker: Tracker, step: Callable[[], None]) -> None:
    raise RuntimeError("a step failed") from caught_in_thread(step)


def by_group(tracker: Tracker, step: Callable[[], None]) -> None:
    raise ExceptionGroup("steps failed", [caught_in_thread(step)])


def by_executor(tracker: Tracker, step: Callable[[], None]) -> None:
    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(None, step)

    asyncio.run(main())


def by_to_thread(tracker: Tracker, step: Callable[[], None]) -> None:
    asyncio.run(asyncio.to_thread(step))


def by_gather(tracker: Tracker, step: Callable[[], None]) -> None:
    async def child() -> None:
        step()

    async def main() -> None:
        await asyncio.gather(child(), asyncio.sleep(0))

    asyncio.run(main())


def by_task(tracker: Tracker, step: Callable[[], None]) -> None:
    async def child() -> None:
        step()

    async def main() -> None:
        with tracker.enter_phase("waits"):
            task = contextvars.Context().run(asyncio.ensure_future, child())
            await task

    asyncio.run(main())


def by_another_loop(tracker: Tracker, step: Callable[[], None]) -> None:
    async def child() -> None:
        step()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(child(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def by_generator_throw(tracker: Tracker, step: Callable[[], None]) -> None:
    def waits() -> Any:
        with tracker.enter_phase("waits"):
            yield

    generator = waits()
    next(generator)
    generator.throw(caught_in_thread(step))


def by_anyio(tracker: Tracker, step: Callable[[], None]) -> None:
    import anyio
    import anyio.to_thread

    anyio.run(anyio.to_thread.run_sync, step)


def by_trio(tracker: Tracker, step: Callable[[], None]) -> None:
    import trio

    async def child() -> None:
        step()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    trio.run(main)


def caught(step: Callable[[], None]) -> BaseException:
    """Return what a step raises."""
    try:
        step()
    except BaseException as error:
        return error
    raise AssertionError


def caught_in_thread(step: Callable[[], None]) -> BaseException:
    """Return what a step raises in a thread of its own."""
    errors: list[BaseException] = []
    thread = threading.Thread(target=lambda: errors.append(caught(step)))
    thread.start()
    thread.join()
    return errors[0]


WAYS: Mapping[str, Callable[[Tracker, Callable[[], None]], None]] = {
    name: value for name, value in globals().items() if name.startswith("by_")
}


@pytest.mark.parametrize("kind", [ValueError, BadCastError])
@pytest.mark.parametrize("way", WAYS)
def test_the_cause_of_who_waits_is_the_phase_that_it_waits_for(run, way, kind):
    """Whatever brings the exception back; the traceback stands once, and every teller says so."""
    if way in ("by_trio", "by_anyio"):
        pytest.importorskip(way.removeprefix("by_"))

    def body(tracker: Tracker) -> None:
        with tracker.enter_phase("process"):
            WAYS[way](tracker, lambda: fails(tracker, kind=kind))

    found = run(body)
    (step,) = [path for path in found.told if path.rpartition(" / ")[2] == "step"]
    assert {("failed", step)} == {(status, cause) for status, cause, _ in found.told.values()}
    assert [step] == [path for path, (_, _, has_traceback) in found.told.items() if has_traceback]
    assert step == found.session_cause
    (failure,) = attribute(found.records).failures
    assert (step, {"process"}) == (
        failure.record.path_text,
        {r.name for r in failure.reached if r.kind == "phase"} - {"waits"},
    )


def test_several_that_wait_for_one_future_have_one_cause(run):
    """On as many lanes as there are, and one after another on one lane, too."""

    def body(tracker: Tracker) -> None:
        with ThreadPoolExecutor(3) as pool:
            future: Future[None] = pool.submit(fails, tracker)

            def wait(name: str) -> None:
                with contextlib.suppress(ValueError), tracker.enter_phase(name):
                    future.result()

            for waiter in [pool.submit(wait, f"wait{number}") for number in range(2)]:
                waiter.result()
            for number in range(2, 4):
                wait(f"wait{number}")

    found = run(body)
    causes = {path: (cause, has_traceback) for path, (_, cause, has_traceback) in found.told.items()}
    assert {"step": ("step", True), **{f"wait{number}": ("step", False) for number in range(4)}} == causes


def raised_by_a_helper(tracker: Tracker, shared: BaseException, names: tuple[str, ...]) -> None:
    def fail() -> None:
        raise shared

    for name in names:
        with contextlib.suppress(ValueError), tracker.enter_phase(name):
            fail()


def raised_in_a_loop(tracker: Tracker, shared: BaseException, names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(ValueError), tracker.enter_phase(name):
            raise shared


def raised_by_two_statements(tracker: Tracker, shared: BaseException, names: tuple[str, ...]) -> None:
    with contextlib.suppress(ValueError), tracker.enter_phase(names[0]):
        raise shared
    with contextlib.suppress(ValueError), tracker.enter_phase(names[1]):
        raise shared


def raised_by_a_mock(tracker: Tracker, shared: BaseException, names: tuple[str, ...]) -> None:
    mocked = mock.Mock(side_effect=shared)
    for name in names:
        with contextlib.suppress(ValueError), tracker.enter_phase(name):
            mocked()


def raised_in_tasks(tracker: Tracker, shared: BaseException, names: tuple[str, ...]) -> None:
    async def request(name: str) -> None:
        with contextlib.suppress(ValueError), tracker.enter_phase(name):
            fails_with(shared)

    async def main() -> None:
        for name in names:
            await asyncio.create_task(request(name))

    asyncio.run(main())


def fails_with(error: BaseException) -> None:
    """Raise."""
    raise error


@pytest.mark.parametrize("kind", [ValueError, type("Shared", (ValueError,), {})])
@pytest.mark.parametrize("way", [name for name in globals() if name.startswith("raised_")])
def test_a_shared_object_is_a_failure_of_each_that_raises_it(run, way, kind):
    """It was raised in one phase and handled, and is raised anew in another one, which no other is to blame for."""
    names = ("first", "second")
    found = run(lambda tracker: globals()[way](tracker, kind("shared"), names))
    assert {name: ("failed", name, True) for name in names} == found.told


@pytest.mark.parametrize("way", ["inline", "same function"])
def test_an_object_that_is_kept_and_raised_later_has_its_first_cause(run, way):
    """On one thread, too, as with an executor that works at once: what arose in `step` comes out in `collect`."""

    class Inline:
        def submit(self, step: Callable[[], None]) -> Future[None]:
            future: Future[None] = Future()
            try:
                future.set_result(step())
            except BaseException as error:
                future.set_exception(error)
            return future

    def body(tracker: Tracker) -> None:
        if way == "inline":
            future = Inline().submit(lambda: fails(tracker))
            with tracker.enter_phase("collect"):
                future.result()
        else:
            try:
                fails(tracker)
            except ValueError as error:
                kept = error
            with tracker.enter_phase("collect"):
                raise kept

    assert {"step": ("failed", "step", True), "collect": ("failed", "step", False)} == run(body).told


def test_what_a_thread_raises_again_itself_has_its_first_cause(run):
    """`raise error` in an `except` block, after a phase that failed in the same function."""

    def step(tracker: Tracker) -> None:
        try:
            with tracker.enter_phase("step"):
                raise ValueError("x")
        except ValueError as error:
            raise error

    def body(tracker: Tracker) -> None:
        with ThreadPoolExecutor(1) as pool, tracker.enter_phase("process"):
            pool.submit(step, tracker).result()

    assert {"step": ("failed", "step", True), "process": ("failed", "step", False)} == run(body).told


def test_another_sessions_phases_are_no_cause(run):
    """An object that outlives its session arises anew in the next one."""
    shared = BadCastError("shared")

    def body(tracker: Tracker) -> None:
        with tracker.enter_phase("step"):
            raise shared

    first, second = run(body), run(body)
    assert first.told == second.told == {"step": ("failed", "step", True)}
    scopes = [[r.root_cause_scope_id for r in found.records if r.kind == "phase"] for found in (first, second)]
    assert scopes[0] != scopes[1]


def test_each_tracker_has_its_own_cause(run):
    """Phases of two that nest in each other, in any order."""
    store = MemoryStore()
    other = stormphase.PhaseTracker(store=store, bridge=None, rank=0, world_size=1)

    def body(tracker: Tracker) -> None:
        with other, tracker.enter_phase("a"), other.enter_phase("b"), tracker.enter_phase("c"), other.enter_phase("d"):
            raise ValueError("x")

    assert {"a": ("failed", "a / c", False), "a / c": ("failed", "a / c", True)} == run(body).told
    causes = {record.path_text: record.root_cause_path for record in store.query(kind="phase")}
    assert {"b": ("b", "d"), "b / d": ("b", "d")} == causes
