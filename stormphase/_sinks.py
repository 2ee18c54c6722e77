"""All that takes a session's phases: the bridge, the user's sinks and the summary, each behind a worker of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stormphase import _drain
from stormphase._boundary import enter_boundary, exit_boundary
from stormphase._overdue import OverdueNotice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stormphase._bridge import Bridge
    from stormphase._early import EarlyPhases
    from stormphase._lanes import LaneSet
    from stormphase._overdue import LearntLimits
    from stormphase._phase import PhaseHandle
    from stormphase._summary import SessionSummary
    from stormphase.stores._feed import StoreFeed
    from stormphase.typing import Sink

SUMMARY: str = "summary"
LEARNT: str = "learnt"
STORE: str = "store"


class SinkSet:
    """The sinks of one session and their workers, from `connect` to `finish`.

    Thread- and fork-safe: in a forked child they start anew, without the summary, which is the parent's to print.
    """

    def __init__(
        self,
        lanes: LaneSet,
        *,
        bridge: Bridge | None,
        sinks: Sequence[Sink],
        store: StoreFeed | None = None,
        summary: SessionSummary | None,
        learnt: LearntLimits | None,
        queue_bound: int,
    ) -> None:
        """Make the queues; no thread starts yet."""
        self._lanes = lanes
        self._bound = queue_bound
        self._outcome: BaseException | None = None
        self._ended_ns = 0
        self._hooks: tuple[Callable[[PhaseHandle], object], ...] = ()
        self._bridge: _drain.SinkWorker | None = None
        if bridge is not None:
            self._hooks = () if bridge.exit_hook is None else (bridge.exit_hook,)
            self._bridge = self._worker(
                "bridge",
                bridge.take,
                _Offered(lanes, with_notices=True),
                flush=bridge.flush,
                tick=bridge.tick,
                finish=lambda: bridge.finish(self._outcome, self._ended_ns),
            )
        self._sinks = [
            self._worker(
                _sink_name(sink, index), _BoundaryFeed(sink), _Offered(lanes, with_enters=True, with_notices=True)
            )
            for index, sink in enumerate(sinks)
        ]
        self._feed = store
        self._store: _drain.SinkWorker | None = None
        if store is not None:
            self._store = self._worker(
                STORE,
                store.take,
                _Offered(lanes, with_enters=True),
                flush=store.flush,
                tick=store.tick,
                finish=lambda: store.finish(self._outcome, self._ended_ns),
            )
            store.is_over = self._is_store_over
        self._summary: _drain.SinkWorker | None = None
        if summary is not None:
            self._summary = self._worker(SUMMARY, summary.fold, _Offered(lanes, with_quiet=True))
        self._learnt: _drain.SinkWorker | None = None
        if learnt is not None:
            self._learnt = self._worker(LEARNT, learnt.learn, _Offered(lanes))

    def _worker(
        self,
        name: str,
        take: Callable[[Any], object],
        offered: Callable[[], int],
        *,
        flush: Callable[[float], bool] | None = None,
        tick: Callable[[], object] | None = None,
        finish: Callable[[], object] | None = None,
    ) -> _drain.SinkWorker:
        return _drain.SinkWorker(
            name,
            take,
            offered=offered,
            flush=flush,
            tick=tick,
            finish=finish,
            prepare=self._lanes.mute_this_thread,
            bound=self._bound,
        )

    @property
    def workers(self) -> list[_drain.SinkWorker]:
        """The workers, in the order in which they are told of a phase."""
        found = (self._bridge, *self._sinks, self._store, self._summary, self._learnt)
        return [worker for worker in found if worker is not None]

    def connect(self, early: EarlyPhases) -> None:
        """Start the threads, and give the lanes their queues, in the place of who stands for them."""
        self.start_threads()
        summary = () if self._summary is None else (self._summary.publish,)
        bridge = () if self._bridge is None else (self._bridge.publish,)
        sinks = tuple(sink.publish for sink in (*self._sinks, self._store) if sink is not None)
        learnt = () if self._learnt is None else (self._learnt.publish,)
        ends = (*self._hooks, *bridge, *sinks, *summary, *learnt)
        early.give_way_to({"enter_queues": sinks, "exit_queues": ends, "quiet_queues": summary})

    def publish_notice(self, notice: OverdueNotice) -> None:
        """Tell the bridge and the user's sinks of a phase that is open for too long."""
        self._lanes.notice_count += 1
        for worker in (self._bridge, *self._sinks):
            if worker is not None:
                worker.publish(notice)

    def disconnect(self) -> None:
        """Offer the sinks nothing more."""
        lanes = self._lanes
        lanes.enter_queues = lanes.exit_queues = lanes.quiet_queues = ()
        lanes.on_first_sight = None

    def start_threads(self) -> None:
        """Start the threads that do not run; called at each first sight of a thread, as after a fork there are none."""
        for worker in self.workers:
            worker.start()

    def flush(self, timeout_s: float) -> bool:
        """Return whether within `timeout_s` seconds all had, and delivered, what was offered before."""
        return _drain.flush_all(self.workers, timeout_s, is_last=False)

    def finish(self, timeout_s: float, outcome: BaseException | None, ended_ns: int) -> bool:
        """Deliver the rest, tell the bridge how and when the session ended, and end the threads; whether all delivered.

        What was not handed over by then is dropped, and counted.
        """
        # Not for longer than the call: an exception holds its frames, and with them a model's tensors.
        self._outcome = outcome
        self._ended_ns = ended_ns
        try:
            return _drain.flush_all(self.workers, timeout_s, is_last=True)
        finally:
            self._outcome = None
            self.give_up()

    def give_up(self) -> None:
        """End the threads now; what is queued is dropped, and counted."""
        self.disconnect()
        for worker in self.workers:
            worker.give_up()

    def is_own_thread(self) -> bool:
        """Whether the caller is one of the sinks, on its worker's thread."""
        return any(worker.is_own_thread() for worker in self.workers)

    def after_fork_in_child(self, parent_scope_id: str | None, forked_ns: int) -> None:
        """Start anew in a forked child; the threads come with its first phase.

        Args:
            parent_scope_id: the phase that was open at the fork, or None.
            forked_ns: when that was, on the monotonic clock.
        """
        for worker in self.workers:
            worker.after_fork_in_child()
        if self._feed is not None:
            self._feed.after_fork_in_child(parent_scope_id, forked_ns)
        if self._summary is not None:
            dropped = self._summary.publish
            self._summary = None
            self._lanes.quiet_queues = ()
            self._lanes.exit_queues = tuple(queue for queue in self._lanes.exit_queues if queue != dropped)

    def stats(self) -> dict[str, dict[str, int]]:
        """Return each worker's counts by its name."""
        found = {worker.name: worker.stats() for worker in self.workers}
        if self._feed is not None:
            found[STORE] = self._store_stats(self._feed, found[STORE])
        return found

    def _is_store_over(self) -> bool:
        return self._store is None or self._store.is_over

    def _store_stats(self, feed: StoreFeed, stats: dict[str, int]) -> dict[str, int]:
        """Return the store's counts: what its feed holds is not handed over yet, and never will be at the end."""
        waiting, refused = feed.unwritten, feed.refused
        is_over = self._is_store_over()
        return {
            **stats,
            "handed_over": stats["handed_over"] - waiting - refused,
            "queued": stats["queued"] + (0 if is_over else waiting),
            "dropped": stats["dropped"] + refused + (waiting if is_over else 0),
        }


class _Offered:
    """How many boundaries a sink was offered: what the lanes counted, themselves and not the queue."""

    def __init__(
        self, lanes: LaneSet, *, with_enters: bool = False, with_quiet: bool = False, with_notices: bool = False
    ) -> None:
        self._lanes = lanes
        self._with_notices = with_notices
        self._with_enters = with_enters
        self._with_quiet = with_quiet

    def __call__(self) -> int:
        entered, ended = self._lanes.boundary_counts()
        quiet = self._lanes.counts["filtered"] if self._with_quiet else 0
        notices = self._lanes.notice_count if self._with_notices else 0
        return ended + quiet + notices + (entered if self._with_enters else 0)


class _BoundaryFeed:
    """Builds the boundaries for a user's sink, on its worker.

    A 1-tuple of a phase was its enter, a phase its exit, and a notice is one.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def __call__(self, entry: PhaseHandle | tuple[PhaseHandle] | OverdueNotice) -> None:
        if isinstance(entry, tuple):
            self._sink(enter_boundary(entry[0]))
        else:
            self._sink(entry.boundary() if isinstance(entry, OverdueNotice) else exit_boundary(entry))


def _sink_name(sink: Sink, index: int) -> str:
    return f"{index}:{getattr(sink, '__name__', type(sink).__name__)}"
