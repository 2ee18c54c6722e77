"""The end of an iterator leaves a phase, and is no failure."""

# ruff: noqa: D103 - ways are told by their names

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

import stormphase

Tracker = stormphase.PhaseTracker


def end_of_next(tracker: Tracker) -> None:
    with contextlib.suppress(StopIteration), tracker.enter_phase("outer"), tracker.enter_phase("inner"):
        next(iter(()))


def end_of_a_method(tracker: Tracker) -> None:
    class Loader:
        def __iter__(self) -> Loader:
            return self

        @tracker.phase("outer")
        def __next__(self) -> int:
            with tracker.enter_phase("inner"):
                raise StopIteration

    assert [] == list(Loader())


def end_of_a_late_block(tracker: Tracker) -> None:
    with contextlib.suppress(StopIteration), tracker.phase("outer"), tracker.phase("inner"):
        next(iter(()))


def end_of_tokens(tracker: Tracker) -> None:
    outer = tracker.enter("outer")
    tracker.exit(tracker.enter("inner"), error=StopIteration())
    tracker.exit(outer, error=StopAsyncIteration())


def end_of_an_async_method(tracker: Tracker) -> None:
    class Loader:
        def __aiter__(self) -> Loader:
            return self

        @tracker.phase("outer")
        async def __anext__(self) -> int:
            with tracker.enter_phase("inner"):
                raise StopAsyncIteration

    async def main() -> list[int]:
        return [item async for item in Loader()]

    assert [] == asyncio.run(main())


def end_of_a_subclass(tracker: Tracker) -> None:
    class EndOfEpoch(StopIteration):
        pass

    with contextlib.suppress(EndOfEpoch), tracker.enter_phase("outer"), tracker.enter_phase("inner"):
        raise EndOfEpoch


ENDS = {name: value for name, value in globals().items() if name.startswith("end_of_")}


@pytest.mark.parametrize("way", ENDS)
def test_the_end_of_an_iterator_is_no_failure(run, way):
    """A phase around it has succeeded, and has no error; so say all."""
    found = run(ENDS[way])
    assert {
        "outer": ("succeeded", None, False),
        "outer / inner": ("succeeded", None, False),
    } == found.told
    assert [None] * 2 == [record.error_type for record in found.records if record.kind == "phase"]
    assert {"UNSET"} == {span.status.status_code.name for span in found.spans.values()}


def test_what_python_makes_of_one_that_leaves_a_generator_is_a_failure(run):
    """It is a RuntimeError, by PEP 479: somebody called `next` and did not look."""

    def numbers(tracker: Tracker) -> Any:
        with tracker.enter_phase("inner"):
            yield next(iter(()))

    def body(tracker: Tracker) -> None:
        with tracker.enter_phase("outer"):
            list(numbers(tracker))

    found = run(body)
    assert {"outer": ("failed", "outer", True), "outer / inner": ("succeeded", None, False)} == found.told
