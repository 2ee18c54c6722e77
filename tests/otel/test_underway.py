"""Spans on their way: nobody is told of one before it has left the SDK's queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from stormphase.otel import _underway
from stormphase.otel._underway import TELL_EVERY, TELLS_A_LOOK, TOLD_AT_ONCE, Underway

if TYPE_CHECKING:
    from collections.abc import Sequence


class Queue:
    """A processor's queue, as far as it shows."""

    def __init__(self) -> None:
        """Begin empty."""
        self.waiting = 0
        self.told: list[Any] = []
        self.calls = 0
        self.underway = Underway(lambda: self.waiting)

    def put(self, *phases: Any) -> None:
        """Hand spans over that wait from now on."""
        for phase in phases:
            self.waiting += 1
            self.underway.take(phase, self.tell)

    def tell(self, phases: Sequence[Any]) -> None:
        """Note what is told, and in how many calls."""
        self.calls += 1
        self.told += phases


@pytest.fixture
def queue() -> Queue:
    """Return an empty queue."""
    return Queue()


def test_without_a_queue_each_is_told_at_once(queue: Queue) -> None:
    """A processor that exports at once has nothing waiting."""
    queue.underway.take("a", queue.tell)
    assert (["a"], 0) == (queue.told, len(queue.underway))


def test_what_waits_is_not_told(queue: Queue) -> None:
    """Neither when more comes, nor at a tick; the oldest are exported first."""
    queue.put("a", "b", "c")
    queue.underway.settle(queue.tell)
    assert [] == queue.told
    queue.waiting = 1
    queue.underway.settle(queue.tell)
    assert ["a", "b"] == queue.told
    queue.waiting = 0
    queue.underway.settle(queue.tell)
    assert (["a", "b", "c"], 0) == (queue.told, len(queue.underway))


def test_a_pile_is_told_a_little_at_a_time(queue: Queue) -> None:
    """What is told takes the journal's lock and the GIL each time."""
    queue.put(*range(100 * TELL_EVERY))
    queue.waiting = 0
    queue.underway.settle(queue.tell, most=10)
    assert (list(range(10)), 1) == (queue.told, queue.calls)
    queue.put(*["more"] * TELL_EVERY)
    assert (list(range(10 + TOLD_AT_ONCE)), 2) == (queue.told, queue.calls)


def test_it_looks_now_and_then_without_a_tick(queue: Queue) -> None:
    """A worker that is never idle has no time for long pauses."""
    count = TELLS_A_LOOK * TELL_EVERY
    queue.put(*range(count - 1))
    queue.waiting = 9
    queue.put("one more")
    assert list(range(min(TOLD_AT_ONCE, count - 10))) == queue.told


def test_spans_of_others_in_the_queue_make_it_wait_longer(queue: Queue) -> None:
    """Whose a span is nobody sees: so many of ours may be among them."""
    queue.put("a", "b")
    queue.waiting = 1_000
    queue.underway.settle(queue.tell)
    assert [] == queue.told


def test_memory_is_bounded_and_nothing_is_told_in_doubt(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that stopped: the oldest are forgotten, and left to recovery."""
    monkeypatch.setattr(_underway, "MAX_PHASES", 10)
    queue.put(*range(2 * TELL_EVERY))
    assert ([], 10) == (queue.told, len(queue.underway))
    queue.waiting = 0
    queue.underway.settle(queue.tell)
    assert list(range(2 * TELL_EVERY - 10, 2 * TELL_EVERY)) == queue.told


def test_a_child_forgets_what_is_its_parents(queue: Queue) -> None:
    """The parent tells of it."""
    queue.put("a")
    queue.underway.forget()
    queue.waiting = 0
    queue.underway.settle(queue.tell)
    assert ([], 0) == (queue.told, len(queue.underway))
