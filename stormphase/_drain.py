"""Bounded queues and worker threads: how what happened on the training thread reaches the sinks without hurting it.

Each sink has its own queue, filled by one C call, and its own daemon thread, so one that raises, hangs or is slow costs
the others nothing. A worker runs in short slices with a sleep between, since while it runs it holds the GIL that
training wants. When a queue is full the oldest entry makes room; what was offered is counted on the training side and
what was handed over on the worker's, so their difference is the exact number of drops, whoever lost them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from stormphase._clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUEUE_BOUND: Final = 131_072
SLICE_NS: Final = 100_000
GAP_S: Final = 0.001
# A queue that fills up: a little more of the GIL, rather than drops.
BUSY_SLICE_NS: Final = 1_000_000
BUSY_GAP_S: Final = 0.0002
IDLE_S: Final = 0.05
TICK_NS: Final = 200_000_000

_log = logging.getLogger("stormphase")


class _Request:
    """A wish that a worker fulfils after all that was queued before it: to flush, and perhaps to end."""

    __slots__ = ("deadline_ns", "is_last", "is_met", "was_good")

    def __init__(self, deadline_ns: int, *, is_last: bool) -> None:
        self.deadline_ns = deadline_ns
        self.is_last = is_last
        self.is_met = threading.Event()
        self.was_good = False


class SinkWorker:
    """One sink behind its queue and its thread.

    `publish` may be called from any thread and never blocks; `flush` and `stop` block for at most their timeout, even
    while the sink hangs. After a fork the child has an empty queue and no thread until `start`.

    Args:
        name: what counts and warnings call the sink.
        take: called with each entry of the queue, on the worker's thread only.
        offered: returns how many entries were offered to the queue so far.
        flush: called when all was handed over, with the seconds left; returns whether it delivered all.
        tick: called about every 0.2 s.
        finish: called once, after the last entry.
        prepare: called first on each new worker thread.
        bound: how many entries the queue holds.
    """

    def __init__(
        self,
        name: str,
        take: Callable[[Any], object],
        *,
        offered: Callable[[], int],
        flush: Callable[[float], bool] | None = None,
        tick: Callable[[], object] | None = None,
        finish: Callable[[], object] | None = None,
        prepare: Callable[[], object] | None = None,
        bound: int = QUEUE_BOUND,
    ) -> None:
        """Make the queue; `start` makes the thread."""
        self.name = name
        self._take = take
        self._offered = offered
        self._flush_sink = flush
        self._tick_sink = tick
        self._finish_sink = finish
        self._prepare = prepare
        self._bound = bound
        self._clock = SystemClock()
        self._queue: deque[Any] = deque(maxlen=bound)
        self.publish: Callable[[Any], None] = self._queue.append
        self._reset()

    def _reset(self) -> None:
        self._queue.clear()
        self._requests: deque[_Request] = deque()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._has_ended = False
        self._is_given_up = False
        self._handed_over = 0
        self._failed = 0
        self._next_tick_ns = 0

    def start(self) -> None:
        """Start the thread if it does not run: the first time, in a forked child, or after it died."""
        with self._start_lock:
            if self._has_ended or self._is_given_up or (self._thread is not None and self._thread.is_alive()):
                return
            if self._thread is not None:
                _log.warning("stormphase: the worker of sink %r had died and was started anew", self.name)
            self._thread = threading.Thread(target=self._run, name=f"stormphase-{self.name}", daemon=True)
            self._thread.start()

    def after_fork_in_child(self) -> None:
        """Forget the parent's queue, thread and counts: they are the parent's to deliver."""
        self._reset()

    def flush(self, timeout_s: float) -> bool:
        """Return whether within `timeout_s` seconds the sink had all that was queued before, and delivered it."""
        return self.wait(self.ask(timeout_s, is_last=False), timeout_s)

    def ask(self, timeout_s: float, *, is_last: bool) -> _Request:
        """Ask the worker to hand over all that is queued, flush, and if `is_last` end; returns at once."""
        request = _Request(self._clock.monotonic_ns() + int(timeout_s * 1e9), is_last=is_last)
        self._requests.append(request)
        self.start()
        self._wake.set()
        if self._has_ended:
            request.is_met.set()
        return request

    def wait(self, request: _Request, timeout_s: float) -> bool:
        """Wait for a request; True if it was met and the sink delivered. Never waits for the caller's own thread."""
        if self._thread is threading.current_thread():
            return False
        return request.is_met.wait(max(0.0, timeout_s)) and request.was_good

    def give_up(self) -> None:
        """Drop what is still queued, and count it: the worker did not end in time."""
        self._is_given_up = True
        self._queue.clear()
        self._wake.set()

    def stats(self) -> dict[str, int]:
        """Return offered, handed_over, failed, queued and dropped; exact while no phase begins or ends.

        offered = handed_over + queued + dropped. `failed` are those handed over whose sink raised.
        """
        offered = self._offered()
        queued = len(self._queue)
        handed_over = self._handed_over
        return {
            "offered": offered,
            "handed_over": handed_over,
            "failed": self._failed,
            "queued": queued,
            "dropped": max(0, offered - handed_over - queued),
        }

    def _run(self) -> None:
        while not (self._has_ended or self._is_given_up):
            try:
                if self._prepare is not None:
                    self._prepare()
                self._loop()
            except BaseException:  # noqa: BLE001 - whatever was raised into this thread, the sink's queue must be served
                _log.warning("stormphase: the worker of sink %r was interrupted and goes on", self.name, exc_info=True)

    def _loop(self) -> None:
        queue = self._queue
        while not (self._has_ended or self._is_given_up):
            if self._requests:
                self._meet(self._requests.popleft())
                continue
            is_busy = len(queue) > self._bound // 4
            self._work(BUSY_SLICE_NS if is_busy else SLICE_NS)
            self._tick()
            gap_s = BUSY_GAP_S if is_busy else GAP_S
            if self._wake.wait(gap_s if queue else IDLE_S):
                self._wake.clear()

    def _work(self, slice_ns: int) -> None:
        now = self._clock.monotonic_ns
        until_ns = now() + slice_ns
        while self._queue and now() < until_ns and not self._is_given_up:
            self._hand_over()

    def _hand_over(self) -> None:
        try:
            entry = self._queue.popleft()
        except IndexError:  # `give_up` emptied it in between.
            return
        self._handed_over += 1
        try:
            self._take(entry)
        except BaseException:  # noqa: BLE001 - a sink may raise anything, also SystemExit; it is counted
            self._count_failure()

    def _count_failure(self) -> None:
        self._failed += 1
        if self._failed == 1:
            _log.warning("stormphase: sink %r raised; further failures are only counted", self.name, exc_info=True)

    def _meet(self, request: _Request) -> None:
        try:
            for _ in range(len(self._queue)):
                if self._is_given_up:
                    return
                self._hand_over()
            if request.is_last and self._finish_sink is not None:
                self._guarded(self._finish_sink)
            request.was_good = self._flush_sink is None or self._flush(request)
        finally:
            if request.is_last:
                self._has_ended = True
            request.is_met.set()

    def _flush(self, request: _Request) -> bool:
        left_s = max(0.0, (request.deadline_ns - self._clock.monotonic_ns()) / 1e9)
        try:
            return self._flush_sink is None or self._flush_sink(left_s)
        except BaseException:  # noqa: BLE001 - as in `_hand_over`
            self._count_failure()
            return False

    def _tick(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if self._tick_sink is not None and now_ns >= self._next_tick_ns:
            self._next_tick_ns = now_ns + TICK_NS
            self._guarded(self._tick_sink)

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException:  # noqa: BLE001 - as in `_hand_over`
            self._count_failure()


def flush_all(workers: Sequence[SinkWorker], timeout_s: float, *, is_last: bool) -> bool:
    """Ask all workers at once and wait for all, `timeout_s` seconds in total; True if each delivered."""
    now = SystemClock.monotonic_ns
    until_ns = now() + int(timeout_s * 1e9)
    requests = [(worker, worker.ask(timeout_s, is_last=is_last)) for worker in workers]
    # Each is waited for, also after one that failed.
    delivered = [worker.wait(request, (until_ns - now()) / 1e9) for worker, request in requests]
    return all(delivered)
