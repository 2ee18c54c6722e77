"""stormphase in each configuration of the design's budget table."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from measure import Subject
from workload import OUTER, PHASE, PIECES_PER_STEP, THREE_ATTRIBUTES, work_without_gil

from stormphase import PhaseRecorder, PhaseTracker

if TYPE_CHECKING:
    from stormphase import PhaseHandle

DEEP = 1_000
THREADS = 16


class Root(Subject):
    """A tracker with no bridge and no sink, phases at the root."""

    name = "stormphase, at the root"

    def open(self) -> None:
        """Start the tracker."""
        self._tracker = PhaseTracker("benchmark", bridge=None)
        self._tracker.start()

    def batch(self, count: int) -> None:
        """Enter and leave `count` phases."""
        for _ in range(count):
            with self._tracker.enter_phase(PHASE):
                pass

    def close(self) -> None:
        """Stop the tracker."""
        self._tracker.stop()


class Nested(Root):
    """The same inside another phase."""

    name = "stormphase, nested"

    def prepare(self) -> None:
        """Enter the phase around the batch."""
        self._outer = self._tracker.enter_phase(OUTER)

    def settle(self) -> None:
        """Leave it."""
        self._outer.close()


class NestedWithAttributes(Nested):
    """The same with three attributes."""

    name = "stormphase, nested, with 3 attributes"

    def batch(self, count: int) -> None:
        """Enter and leave `count` phases."""
        for _ in range(count):
            with self._tracker.enter_phase(PHASE, attributes=THREE_ATTRIBUTES):
                pass


class Disabled(Root):
    """The same code where STORMPHASE_DISABLED=1 is set: the panel sets it for the whole process."""

    name = "stormphase, disabled"


class RecorderByToken(Subject):
    """The recorder by token, which builds both boundaries at once: what stormlog's recorder does."""

    name = "stormphase PhaseRecorder.enter + exit"

    def open(self) -> None:
        """Make a recorder."""
        self._recorder = PhaseRecorder()

    def batch(self, count: int) -> None:
        """Enter and exit `count` phases."""
        for _ in range(count):
            token, _boundary = self._recorder.enter(session_id="benchmark", rank=0, name=PHASE)
            self._recorder.exit(token)


class Shallow(Root):
    """Phases at depth 1."""

    name = "stormphase, depth 1"


class Deep(Root):
    """Phases at depth 1,000."""

    name = "stormphase, depth 1,000"

    def prepare(self) -> None:
        """Enter the phases above."""
        self._above: list[PhaseHandle] = [self._tracker.enter_phase(OUTER) for _ in range(DEEP - 1)]

    def settle(self) -> None:
        """Leave them, innermost first."""
        while self._above:
            self._above.pop().close()


class OneThread(Root):
    """Phases in a thread, which is told how many by a queue."""

    name = "stormphase, 1 thread"
    largest_batch = 1_000_000
    thread_count = 1

    def open(self) -> None:
        """Start the tracker and the threads."""
        super().open()
        self._orders: list[queue.SimpleQueue[int | None]] = [queue.SimpleQueue() for _ in range(self.thread_count)]
        self._finished: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, args=(orders,)) for orders in self._orders]
        for thread in self._threads:
            thread.start()

    def batch(self, count: int) -> None:
        """Share `count` phases among the threads and wait for all of them."""
        share, rest = divmod(count, self.thread_count)
        for number, orders in enumerate(self._orders):
            orders.put(share + (number < rest))
        for _ in self._orders:
            self._finished.get()

    def close(self) -> None:
        """End the threads and the tracker."""
        for orders in self._orders:
            orders.put(None)
        for thread in self._threads:
            thread.join()
        super().close()

    def _work(self, orders: queue.SimpleQueue[int | None]) -> None:
        while (count := orders.get()) is not None:
            super().batch(count)
            self._finished.put(None)


class SixteenThreads(OneThread):
    """The same number of phases, shared by sixteen threads."""

    name = "stormphase, 16 threads"
    thread_count = THREADS


class PlainStep(Subject):
    """A short step that lets go of the GIL, with no phases: what a tail is compared with."""

    name = "step of 8 pieces, no phases"

    def batch(self, count: int) -> None:
        """Do `count` steps."""
        for _ in range(count):
            for _ in range(PIECES_PER_STEP):
                work_without_gil()
