"""What a type checker must say of the tracker: read by mypy in .ci/run, never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import assert_type

import stormphase
from stormphase import PhaseBoundary, PhaseHandle, PhaseStatus, PhaseToken, PhaseTracker


def with_blocks(tracker: PhaseTracker) -> None:
    """A with block gives the tracker or the phase itself, so that its methods are known."""
    with tracker as started:
        assert_type(started, PhaseTracker)
        with started.enter_phase("train", attributes={"epochs": 3}) as train:
            assert_type(train, PhaseHandle)
            train.set_attribute("loss", 0.5)
            assert_type((train.scope_id, train.name, train.phase_path), tuple[str, str, str])
            assert_type(train.path, tuple[str, ...])
            assert_type(train.closed, bool)
            assert_type(train.status, PhaseStatus)


def after_a_with_block(tracker: PhaseTracker) -> int:
    """A with block never swallows an exception, so what follows a return in it is known not to run."""
    with tracker.enter_phase("train"):
        return 1


def tokens(tracker: PhaseTracker, problem: ValueError) -> None:
    """A token comes out of an enter and of a release, a phase out of an acquire."""
    token = tracker.enter("all_reduce", sync=True)
    assert_type(token, PhaseToken)
    tracker.exit(token)
    tracker.exit(token, error=problem)
    phase = tracker.enter_phase("train")
    assert_type(phase.release(), PhaseToken)
    assert_type(tracker.acquire(token), PhaseHandle)


def sinks(lines: list[str]) -> PhaseTracker:
    """Any callable that takes a boundary is a sink."""

    def note(boundary: PhaseBoundary) -> None:
        lines.append(boundary.context)

    return PhaseTracker("resnet", session_id="s", attempt=2, rank=0, world_size=1, bridge=None, sinks=[note])


def decorated(tracker: PhaseTracker) -> None:
    """A decorated function keeps its signature, whatever kind it is of."""

    @tracker.phase("load")
    def load(path: str, *, limit: int = 0) -> list[str]:
        return [path] * limit

    @tracker.phase("evaluate")
    async def evaluate(batch: int) -> float:
        return float(batch)

    @tracker.phase("batches")
    def batches(count: int) -> Iterator[int]:
        yield from range(count)

    @tracker.phase("stream")
    async def stream(count: int) -> AsyncIterator[int]:
        yield count

    @stormphase.phase("tokenize")
    def tokenize(text: str) -> list[str]:
        return text.split()

    @tracker.phase("send")
    def send(text: str) -> Awaitable[int]:
        return asyncio.ensure_future(reply(text))

    assert_type(load("digits", limit=1), list[str])
    assert_type(asyncio.run(evaluate(1)), float)
    assert_type(batches(3), Iterator[int])
    assert_type(stream(3), AsyncIterator[int])
    assert_type(tokenize("a b"), list[str])
    send_kept: Callable[[str], Awaitable[int]] = send
    send_kept("a")
    load(1)  # type: ignore[arg-type]
    load("digits", limits=1)  # type: ignore[call-arg]
    tokenize()  # type: ignore[call-arg]


async def reply(text: str) -> int:
    """Return how long a text is."""
    return len(text)


def blocks_of_phase(tracker: PhaseTracker) -> None:
    """What decorates also opens a with block."""
    with tracker.phase("evaluate"), stormphase.phase("tokenize"):
        tracker.set_step(1)
    tracker.flush(timeout_s=1.0)


def wrong_calls(tracker: PhaseTracker) -> None:
    """What cannot work is refused before it runs; an ignore that is not needed fails mypy."""
    PhaseTracker("resnet", rank="0")  # type: ignore[arg-type]
    PhaseTracker("resnet", sinks=[1])  # type: ignore[list-item]
    tracker.exit("train")  # type: ignore[arg-type]
