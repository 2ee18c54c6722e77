"""The least that a phase can cost: what a phase in Python alone is measured by. See docs/decisions.md, 22.

It looks a lane up, makes one slotted object, follows a path, takes a number, reads the clock twice, sets and resets one
context variable and compares the thread. It finds no task, keeps no place for messages, minds no signal handler, has no
sinks and no journal, and nothing but a plain success ends it.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Any, Self

from measure import Subject
from workload import PHASE

if TYPE_CHECKING:
    from types import TracebackType

_variable: ContextVar[Any] = ContextVar("skeleton", default=None)
_now = time.monotonic_ns


class _Path:
    __slots__ = ("children",)

    def __init__(self) -> None:
        self.children: dict[str, _Path] = {}


class _Lane:
    __slots__ = ("children_ns", "path", "thread_id", "top")

    def __init__(self) -> None:
        self.children_ns = 0
        self.path = _Path()
        self.path.children[PHASE] = _Path()
        self.thread_id = get_ident()
        self.top: Any = self


class _Phase:
    __slots__ = (
        "attributes",
        "below",
        "children_ns",
        "ended_ns",
        "entered_ns",
        "lane",
        "path",
        "sequence",
        "status",
        "step",
        "token",
    )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lane = self.lane
        if exc is None and lane.top is self and get_ident() == lane.thread_id:
            ended_ns = _now()
            _variable.reset(self.token)
            below = self.below
            lane.top = below
            below.children_ns += ended_ns - self.entered_ns
            self.ended_ns = ended_ns
            self.status = 1


class _Tracker:
    def __init__(self) -> None:
        self.local = threading.local()
        self.local.lane = _Lane()
        self.sequence = itertools.count(1)
        self.step: int | None = None

    def enter_phase(self, name: str, attributes: dict[str, Any] | None = None) -> _Phase:
        lane = self.local.lane
        below = lane.top
        phase = _Phase()
        phase.lane = lane
        phase.below = below
        phase.path = below.path.children[name]
        phase.attributes = attributes
        phase.step = self.step
        phase.sequence = next(self.sequence)
        phase.children_ns = 0
        phase.status = 0
        phase.entered_ns = _now()
        lane.top = phase
        phase.token = _variable.set(phase)
        return phase


class Skeleton(Subject):
    """Bare phases at the root."""

    name = "bare skeleton of a phase"

    def open(self) -> None:
        """Make what keeps them."""
        self._tracker = _Tracker()

    def batch(self, count: int) -> None:
        """Enter and leave `count` of them."""
        for _ in range(count):
            with self._tracker.enter_phase(PHASE):
                pass
