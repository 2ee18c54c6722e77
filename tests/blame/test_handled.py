"""Who is to blame where something is raised `from` what came from another lane: had it been handled before?"""

# ruff: noqa: D103 - ways are told by their names

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import stormphase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Tracker = stormphase.PhaseTracker


def in_a_pool(tracker: Tracker) -> None:
    def step() -> None:
        with tracker.enter_phase("train"):
            raise ValueError("y")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(step).result()


def in_a_task(tracker: Tracker) -> None:
    async def step() -> None:
        with tracker.enter_phase("train"):
            raise ValueError("y")

    asyncio.run(step())


def in_an_async_generator(tracker: Tracker) -> None:
    @tracker.phase("train")
    async def items() -> Any:
        yield 1
        raise ValueError("y")

    async def main() -> None:
        async for _ in items():
            pass

    asyncio.run(main())


WHERE = {name: value for name, value in globals().items() if name.startswith("in_a")}


def entered_in_place(tracker: Tracker, error: BaseException) -> None:
    raise AssertionError


def entered_in_a_function(tracker: Tracker, error: BaseException) -> None:
    with tracker.enter_phase("clean_up"):
        raise KeyError("x") from error


def entered_by_a_decorator(tracker: Tracker, error: BaseException) -> None:
    @tracker.phase("clean_up")
    def clean_up() -> None:
        raise KeyError("x") from error

    clean_up()


def entered_by_a_helper(tracker: Tracker, error: BaseException) -> None:
    def region(name: str) -> Any:
        return tracker.enter_phase(name)

    with region("clean_up"):
        raise KeyError("x") from error


def entered_by_tokens(tracker: Tracker, error: BaseException) -> None:
    token = tracker.enter("clean_up")
    try:
        raise KeyError("x") from error
    except KeyError as failure:
        tracker.exit(token, error=failure)
        raise


def entered_in_a_coroutine(tracker: Tracker, error: BaseException) -> None:
    async def clean_up() -> None:
        with tracker.enter_phase("clean_up"):
            raise KeyError("x") from error

    asyncio.run(clean_up())


def entered_for_a_group(tracker: Tracker, error: BaseException) -> None:
    with tracker.enter_phase("clean_up"):
        raise ExceptionGroup("x", [error])  # type: ignore[list-item]  # it is a ValueError


AFTER = {name: value for name, value in globals().items() if name.startswith("entered_")}


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("where", WHERE)
def test_what_is_raised_from_a_handled_one_is_a_failure_of_its_own(run, where, after):
    """The phase had been entered after the other one was caught, and that is told by `__cause__` alone."""

    def body(tracker: Tracker) -> None:
        with tracker.enter_phase("load"):
            try:
                WHERE[where](tracker)
            except ValueError as error:
                if after == "entered_in_place":
                    with tracker.enter_phase("clean_up"):
                        raise KeyError("x") from error
                AFTER[after](tracker, error)

    found = run(body)
    told = {path.rpartition(" / ")[2]: said for path, said in found.told.items()}
    own = "load / clean_up"
    assert ("failed", own, True) == told["clean_up"]
    assert ("failed", own, False) == told["load"]
    assert ("failed", own) == ("failed", found.session_cause)


def waits_in_place(tracker: Tracker, wait: Callable[[], None]) -> None:
    raise AssertionError


def waits_in_a_function(tracker: Tracker, wait: Callable[[], None]) -> None:
    def waits() -> None:
        try:
            wait()
        except ValueError as error:
            raise KeyError("x") from error

    with tracker.enter_phase("waits"):
        waits()


def waits_by_a_decorator(tracker: Tracker, wait: Callable[[], None]) -> None:
    @tracker.phase("waits")
    def waits() -> None:
        try:
            wait()
        except ValueError as error:
            raise KeyError("x") from error

    waits()


def waits_in_a_context_manager(tracker: Tracker, wait: Callable[[], None]) -> None:
    @contextlib.contextmanager
    def region() -> Iterator[None]:
        with tracker.enter_phase("waits"):
            yield

    with region():
        try:
            wait()
        except ValueError as error:
            raise KeyError("x") from error


def waits_in_a_decorated_context_manager(tracker: Tracker, wait: Callable[[], None]) -> None:
    @contextlib.contextmanager
    @tracker.phase("waits")
    def region() -> Iterator[None]:
        yield

    with region():
        try:
            wait()
        except ValueError as error:
            raise KeyError("x") from error


def waits_in_a_loop(tracker: Tracker, wait: Callable[[], None]) -> None:
    for is_last in (False, True):
        with tracker.enter_phase("waits" if is_last else "before"):
            try:
                if is_last:
                    wait()
            except ValueError as error:
                raise KeyError("x") from error


def waits_between_tokens(tracker: Tracker, wait: Callable[[], None]) -> None:
    class Hooks:
        def begin(self) -> None:
            self.token = tracker.enter("waits")

        def fail(self, error: BaseException) -> None:
            tracker.exit(self.token, error=error)

    hooks = Hooks()
    hooks.begin()
    try:
        try:
            wait()
        except ValueError as error:
            raise KeyError("x") from error
    except KeyError as failure:
        hooks.fail(failure)
        raise


INSIDE = {name: value for name, value in globals().items() if name.startswith("waits_")}


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("where", WHERE)
def test_what_is_raised_from_one_that_was_caught_inside_has_its_cause(run, where, inside):
    """The phase waited for it, so that is why it failed."""

    def body(tracker: Tracker) -> None:
        if inside == "waits_in_place":
            with tracker.enter_phase("waits"):
                try:
                    WHERE[where](tracker)
                except ValueError as error:
                    raise KeyError("x") from error
        INSIDE[inside](tracker, lambda: WHERE[where](tracker))

    found = run(body)
    (cause,) = [path for path in found.told if path.rpartition(" / ")[2] == "train"]
    told = {path.rpartition(" / ")[2]: said for path, said in found.told.items()}
    assert ("failed", cause, False) == told["waits"]
    assert ("failed", cause, True) == told["train"]
