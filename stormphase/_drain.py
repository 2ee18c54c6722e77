"""Bounded queues and worker threads: how what happened on the training thread reaches the sinks without hurting it.

Each sink has its own queue, filled by one C call, and its own daemon thread, so one that raises, hangs or is slow costs
the others nothing. A worker runs in short slices with a sleep between, since while it runs it holds the GIL that
training wants. When a queue is full the oldest entry makes room; what was offered is counted on the training side and
what was handed over on the worker's, so their difference is the exact number of drops, whoever lost them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from stormphase._bell import Bell
from stormphase._clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SLICE_NS: Final = 50_000
GAP_S: Final = 0.001
# What is queued makes a slice longer: a little more of the GIL, rather than drops.
MORE_NS_PER_ENTRY: Final = 50
LONGEST_SLICE_NS: Final = 1_000_000
BUSY_GAP_S: Final = 0.0002
IDLE_S: Final = 0.05
TICK_NS: Final = 200_000_000
LONGEST_WAIT_S: Final = 1e9  # some 30 years: what clocks and locks can still add up
REVIVE_S: Final = 0.25
FOR_EVER: Final = float("inf")

_log = logging.getLogger("stormphase")


class _Request:
    """A wish that a worker fulfils after all that was queued before it: to flush, and perhaps to end."""

    __slots__ = ("deadline_ns", "is_last", "is_met", "met", "was_good")

    def __init__(self, deadline_ns: int, *, is_last: bool) -> None:
        self.deadline_ns = deadline_ns
        self.is_last = is_last
        self.is_met = False
        self.met = Bell()
        self.was_good = False

    def answer(self, *, was_good: bool) -> None:
        self.was_good = was_good
        self.is_met = True
        self.met.ring()


class SinkWorker:
    """One sink behind its queue and its thread.

    `publish` may be called from any thread and never blocks; no method takes a lock that another thread or an
    interrupted signal handler may hold. After a fork the child has an empty queue and no thread until `start`.

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
        bound: int,
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
        self._is_in_child = False
        self._queue: deque[Any] = deque(maxlen=bound)
        self.publish: Callable[[Any], None] = self._queue.append
        self._reset()

    def _reset(self) -> None:
        self._queue.clear()
        self._requests: deque[_Request] = deque()
        self._bell = Bell()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._has_warned_of_start = False
        self._is_finished = False
        self._is_over = False
        self._was_last_good = False
        self._handed_over = 0
        self._failed = 0
        self._next_tick_ns = 0

    def start(self) -> bool:
        """Return whether the thread runs, started now if need be: at first, after a fork, or when it died.

        Never raises, and never waits for another caller: where the system has no thread to give, that is logged once,
        and the queue waits, and drops, until a later call succeeds.
        """
        if self._is_over:
            return False
        if not self._start_lock.acquire(blocking=False):
            return True  # Another thread is at it, or this is a signal handler that interrupted it.
        try:
            if self._thread is not None:
                if self._thread.is_alive():
                    return True
                self._warn("stormphase: the worker of sink %r had died and was started anew", self.name)
            thread = threading.Thread(target=self._run, name=f"stormphase-{self.name}", daemon=True)
            self._thread = thread
            thread.start()
        except Exception:  # noqa: BLE001 - RuntimeError at the system's limit or at interpreter exit, or no memory
            self._thread = None
            if not self._has_warned_of_start:
                self._has_warned_of_start = True
                self._warn(
                    "stormphase: no thread could be started for sink %r, so its queue waits; raise the limit "
                    "of threads (ulimit -u, or the container's pids limit)",
                    self.name,
                    has_error=True,
                )
            return False
        finally:
            self._start_lock.release()
        return True

    def after_fork_in_child(self) -> None:
        """Forget the parent's queue, thread and counts: they are the parent's to deliver."""
        self._is_in_child = True
        self._reset()

    def take_back(self) -> Any:
        """Take the oldest entry out of the queue, from any thread, as if it had never been offered; None if empty."""
        try:
            return self._queue.popleft()
        except IndexError:
            return None

    def wake(self) -> None:
        """Have the worker look at its queue now; from any thread, and in signal handlers."""
        self._bell.ring()

    def is_own_thread(self) -> bool:
        """Whether the caller is the sink itself, called by its worker."""
        thread = self._thread
        return thread is not None and thread.ident == threading.get_ident()

    def ask(self, timeout_s: float, *, is_last: bool) -> _Request:
        """Ask the worker to hand over all that is queued, flush, and if `is_last` end; returns at once."""
        request = _Request(self._clock.monotonic_ns() + int(bounded_s(timeout_s) * 1e9), is_last=is_last)
        if is_last and self._is_unused():
            self._is_over = True
        if self._is_over:
            request.answer(was_good=self._was_last_good)
            return request
        self._requests.append(request)
        self.start()
        self._bell.ring()
        if self._has_ended():  # In between, and it may not have seen this one.
            request.answer(was_good=self._was_last_good)
        return request

    @property
    def is_awaited(self) -> bool:
        """Whether somebody has asked it to hand over all there is, and it is at that."""
        return bool(self._requests)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or was told to: nothing more is handed over."""
        return self._is_over

    def _has_ended(self) -> bool:
        return self._is_over

    def _is_unused(self) -> bool:
        """Whether there is nothing to deliver and nobody to tell: a forked child without phases needs no thread."""
        has_to_finish = self._finish_sink is not None and not self._is_in_child
        if self._thread is None and not self._queue and not has_to_finish and self._offered() == 0:
            self._was_last_good = True
            return True
        return False

    def wait(self, request: _Request, timeout_s: float) -> bool:
        """Wait for a request; True if it was met and the sink delivered."""
        now = self._clock.monotonic_ns
        until_ns = now() + int(bounded_s(timeout_s) * 1e9)
        while not request.is_met:
            left_s = (until_ns - now()) / 1e9
            if request.met.wait(min(REVIVE_S, max(0.0, left_s))) or left_s <= 0 or self._is_over:
                break
            self.start()  # It may have died since.
        return request.is_met and request.was_good

    def give_up(self) -> None:
        """End now: what is still queued is dropped, and counted."""
        self._is_over = True
        self._queue.clear()
        self._bell.ring()

    def stats(self) -> dict[str, int]:
        """Return offered, handed_over, failed, queued and dropped; exact while no phase begins or ends.

        offered = handed_over + queued + dropped, and nothing is queued any more once the worker has ended. `failed` are
        those handed over whose sink raised.
        """
        offered = self._offered()
        queued = 0 if self._is_over else len(self._queue)
        handed_over = self._handed_over
        return {
            "offered": offered,
            "handed_over": handed_over,
            "failed": self._failed,
            "queued": queued,
            "dropped": max(0, offered - handed_over - queued),
        }

    def _run(self) -> None:
        # Also whoever was wrongly taken for dead, and has a successor, goes.
        while self.is_own_thread() and not self._is_over:
            try:
                if self._prepare is not None:
                    self._prepare()
                self._serve()
            except BaseException:  # noqa: BLE001 - whatever was raised into this thread, the sink's queue must be served
                self._warn("stormphase: the worker of sink %r was interrupted and goes on", self.name, has_error=True)

    def _serve(self) -> None:
        queue = self._queue
        while self.is_own_thread() and not self._is_over:
            if self._requests:
                # Taken off only once it is met: what interrupts this thread must not lose it.
                self._meet(self._requests[0])
                self._requests.popleft()
                continue
            self._work(min(LONGEST_SLICE_NS, SLICE_NS + MORE_NS_PER_ENTRY * len(queue)))
            self._tick()
            gap_s = BUSY_GAP_S if len(queue) > self._bound // 4 else GAP_S
            self._bell.wait(gap_s if queue else IDLE_S)

    def _work(self, slice_ns: int) -> None:
        self._hand_over(self._bound, self._clock.monotonic_ns() + slice_ns)

    def _hand_over(self, most: int, until_ns: float) -> None:
        """Hand over at most so many, and no more once it is so late; a loop without calls of its own, for its price."""
        now, pop, take = self._clock.monotonic_ns, self._queue.popleft, self._take
        for _ in range(most):
            if self._is_over:
                return
            try:
                entry = pop()
            except IndexError:  # All are handed over, or `give_up` emptied it in between.
                return
            self._handed_over += 1
            try:
                take(entry)
            except BaseException:  # noqa: BLE001 - a sink may raise anything, also SystemExit; it is counted
                self._count_failure()
            if now() >= until_ns:
                return

    def _count_failure(self) -> None:
        self._failed += 1
        if self._failed == 1:
            self._warn("stormphase: sink %r raised; further failures are only counted", self.name, has_error=True)

    def _meet(self, request: _Request) -> None:
        self._hand_over(len(self._queue), FOR_EVER)
        if self._is_over:
            return
        if request.is_last and self._finish_sink is not None and not self._is_finished:
            self._is_finished = True
            self._guarded(self._finish_sink)
        was_good = self._flush(request)
        if request.is_last:
            self._was_last_good = was_good
        request.answer(was_good=was_good)  # First, since who waits goes when the worker is over.
        if request.is_last:
            self._is_over = True

    def _flush(self, request: _Request) -> bool:
        if self._flush_sink is None:
            return True
        left_s = max(0.0, (request.deadline_ns - self._clock.monotonic_ns()) / 1e9)
        try:
            return self._flush_sink(left_s)
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

    def _warn(self, message: str, *arguments: object, has_error: bool = False) -> None:
        # A handler of the program's own may raise anything, and must not end the worker or the caller.
        with contextlib.suppress(Exception):
            _log.warning(message, *arguments, exc_info=has_error)


def bounded_s(timeout_s: float) -> float:
    """Return a timeout that every clock and lock can count: from 0 to `LONGEST_WAIT_S`; 0 for what is no number."""
    return min(LONGEST_WAIT_S, max(0.0, timeout_s))


def flush_all(workers: Sequence[SinkWorker], timeout_s: float, *, is_last: bool) -> bool:
    """Ask all workers at once and wait for all, `timeout_s` seconds in total; True if each delivered.

    On the thread of one of them nothing is waited for, since two sinks that wait for each other would wait in vain.
    """
    now = SystemClock.monotonic_ns
    until_ns = now() + int(bounded_s(timeout_s) * 1e9)
    requests = [(worker, worker.ask(timeout_s, is_last=is_last)) for worker in workers]
    if any(worker.is_own_thread() for worker in workers):
        return False
    # Each is waited for, also after one that failed.
    delivered = [worker.wait(request, (until_ns - now()) / 1e9) for worker, request in requests]
    return all(delivered)
