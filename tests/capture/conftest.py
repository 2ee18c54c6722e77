"""Captured sessions that are gone after every test, and streams on which the fast way is taken."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from stormphase.capture import CaptureOptions, CaptureSession
from stormphase.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stormphase._lanes import LaneSet


def hooks() -> list[object]:
    """Return all that capture may hook into, as it stands."""
    return [
        type(sys),
        sys.stdout,
        sys.stderr,
        *(dict(getattr(stream, "__dict__", {})) for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)),
        logging.Logger.handle,
        logging.Logger.isEnabledFor,
        logging.getLogger().level,
        list(logging.getLogger().handlers),
        warnings._showwarnmsg,
        threading.Thread.start,
        ThreadPoolExecutor.submit,
    ]


@pytest.fixture(autouse=True)
def hooks_are_gone() -> Iterator[None]:
    """Fail the test after which a hook of ours is left."""
    before = hooks()
    yield
    assert before == hooks()


class TickingClock(ManualClock):
    """A clock on which no two readings are the same: what was said later is later."""

    def monotonic_ns(self) -> int:
        """Return the time, and let one nanosecond pass."""
        self.advance(1)
        return super().monotonic_ns()


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that moves by a nanosecond whenever it is read."""
    return TickingClock()


@pytest.fixture
def terminal() -> io.TextIOWrapper:
    """Return a stream of the standard library's own kind, which `capture_on` puts at `sys.stdout`."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape", newline="\n")


@pytest.fixture
def capture_on(
    lanes: LaneSet, terminal: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., CaptureSession]]:
    """Make sessions on the lanes of session "s" that capture until the test ends.

    They print to `terminal`: put there by the call, since pytest puts its own stream back when a test begins.
    """
    made: list[CaptureSession] = []

    def make(lane_set: LaneSet = lanes, *, captures_all: bool = True, **options: Any) -> CaptureSession:
        if not made:
            monkeypatch.setattr(sys, "stdout", terminal)
        session = CaptureSession(lane_set, CaptureOptions(**options), captures_all=captures_all, environ={})
        made.append(session)
        session.install()
        return session

    yield make
    for session in made:
        session.remove()
