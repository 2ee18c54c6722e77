"""Queues and workers: sinks that raise, hang and die cost nothing; every entry is handed over, or counted as lost."""

from __future__ import annotations

import ctypes
import itertools
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from stormphase import _drain
from stormphase._drain import SinkWorker, bounded_s, flush_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG_S = 30


class Sink:
    """Takes entries, and does with each what the test says."""

    def __init__(self, on_take: Callable[[Any], object] = lambda _: None) -> None:
        self.taken: list[Any] = []
        self.on_take = on_take

    def __call__(self, entry: Any) -> None:
        """Take one."""
        self.taken.append(entry)
        self.on_take(entry)


class Feed:
    """Publishes to a worker, and counts what it offered."""

    def __init__(self, sink: Callable[[Any], object], **options: Any) -> None:
        self.offered = 0
        self.worker = SinkWorker("sink", sink, offered=lambda: self.offered, **{"bound": 1_000, **options})

    def __call__(self, *entries: Any) -> None:
        """Offer some entries."""
        for entry in entries:
            self.offered += 1
            self.worker.publish(entry)


@pytest.fixture
def feed() -> Iterator[Callable[..., Feed]]:
    """Make workers that end with the test."""
    made: list[Feed] = []

    def make(sink: Callable[[Any], object], **options: Any) -> Feed:
        made.append(Feed(sink, **options))
        return made[-1]

    yield make
    for each in made:
        each.worker.give_up()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Return an event on which a sink hangs until the test, or its end, sets it."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def untraced() -> Iterator[None]:
    """Keep coverage and debuggers out: what is raised anywhere would be raised in the middle of their work, too."""
    before, before_in_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    threading.settrace(before_in_threads)
    sys.settrace(before)


def flush(worker: SinkWorker, timeout_s: float = LONG_S) -> bool:
    """Flush one worker."""
    return flush_all([worker], timeout_s, is_last=False)


def finish(worker: SinkWorker, timeout_s: float = LONG_S) -> bool:
    """End one worker in order."""
    return flush_all([worker], timeout_s, is_last=True)


def counts(worker: SinkWorker) -> dict[str, int]:
    """Return the counts, after checking that they add up."""
    stats = worker.stats()
    assert stats["offered"] == stats["handed_over"] + stats["queued"] + stats["dropped"]
    return stats


def raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    """Raise an exception in another thread, at its next bytecode."""
    assert 1 == ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(error))


def test_entries_are_handed_over_in_order(feed):
    """The sink gets every entry, in the order of publishing."""
    sink = Sink()
    each = feed(sink)
    each.worker.start()
    each(*range(500))
    assert True is flush(each.worker)
    assert list(range(500)) == sink.taken
    assert {"offered": 500, "handed_over": 500, "failed": 0, "queued": 0, "dropped": 0} == counts(each.worker)


def test_a_full_queue_drops_the_oldest_and_counts_them(feed, gate):
    """Publishing never blocks; what was longest in the queue makes room."""
    sink = Sink(lambda _: gate.wait(LONG_S))
    each = feed(sink, bound=10)
    each(*range(100))
    gate.set()
    assert True is flush(each.worker)
    assert list(range(90, 100)) == sink.taken
    assert (10, 90) == (counts(each.worker)["handed_over"], counts(each.worker)["dropped"])


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_sink_may_raise_anything(feed, caplog, error):
    """Whatever a sink raises is counted, logged once, and the next entry goes to it all the same."""

    def fail(_: Any) -> None:
        raise error("broken")

    sink = Sink(fail)
    each = feed(sink)
    each(1, 2, 3)
    assert True is flush(each.worker)
    assert [1, 2, 3] == sink.taken
    assert (3, 3, 0) == tuple(counts(each.worker)[name] for name in ("handed_over", "failed", "dropped"))
    assert 1 == sum("sink 'sink' raised" in message for message in caplog.messages)


def test_a_logging_handler_that_raises_does_not_end_the_worker(feed):
    """The warning about a sink is as likely to fail as the sink."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("the handler is broken too")

    def fail(_: Any) -> None:
        raise ValueError("broken")

    handler = Broken()
    logger = logging.getLogger("stormphase")
    logger.addHandler(handler)
    try:
        sink = Sink(fail)
        each = feed(sink)
        each(1, 2)
        assert True is flush(each.worker)
    finally:
        logger.removeHandler(handler)
    assert [1, 2] == sink.taken


def test_flush_keeps_its_timeout_while_the_sink_hangs(feed, gate):
    """A sink that never returns is answered with False, not with a wait."""
    each = feed(lambda _: gate.wait(LONG_S))
    each(1)
    assert False is flush(each.worker, 0.01)


def test_end_keeps_its_timeout_while_the_sink_hangs(feed, gate):
    """What a hanging sink has not taken at the end is dropped and counted."""
    taking = threading.Event()

    def hang(_: Any) -> None:
        taking.set()
        gate.wait(LONG_S)

    each = feed(hang)
    each.worker.start()
    each(1, 2, 3)
    taking.wait(LONG_S)
    assert False is finish(each.worker, 0.01)
    each.worker.give_up()
    assert {"offered": 3, "handed_over": 1, "failed": 0, "queued": 0, "dropped": 2} == counts(each.worker)


def test_a_hanging_sink_does_not_delay_another_one(feed, gate):
    """Each sink has a worker of its own."""
    sink = Sink()
    good, bad = feed(sink), feed(lambda _: gate.wait(LONG_S))
    good(1)
    bad(1)
    assert False is flush_all([bad.worker, good.worker], 0.01, is_last=False)
    assert True is flush(good.worker)
    assert [1] == sink.taken


@pytest.mark.parametrize("timeout_s", [-1.0, float("nan"), float("inf"), 1e300, 0.0])
def test_a_timeout_may_be_any_number(feed, timeout_s):
    """Nothing that is a number makes a flush raise, or wait for ever on a worker that answers."""
    each = feed(Sink())
    each(1)
    assert flush(each.worker, timeout_s) in (True, False)


@pytest.mark.parametrize(("given", "expected"), [(-1, 0.0), (float("nan"), 0.0), (5, 5), (float("inf"), 1e9)])
def test_timeouts_are_bounded(given, expected):
    """A timeout is from nothing to thirty years."""
    assert expected == bounded_s(given)


def test_entries_wait_for_the_flush_of_the_sink(feed):
    """The sink's own flush is asked after the last entry, with the time that is left, and its word counts."""
    seen: list[Any] = []

    def deliver(left_s: float) -> bool:
        seen.append(0 < left_s <= LONG_S)
        return False

    each = feed(seen.append, flush=deliver)
    each("entry")
    assert False is flush(each.worker)
    assert ["entry", True] == seen


def test_a_sink_whose_flush_raises_has_not_delivered(feed):
    """That is counted as a failure."""

    def deliver(left_s: float) -> bool:
        raise SystemExit

    each = feed(Sink(), flush=deliver)
    assert False is flush(each.worker)
    assert 1 == counts(each.worker)["failed"]


def test_finish_is_called_once_after_the_last_entry(feed):
    """The end is told when all is handed over, and not again by a second end."""
    seen: list[Any] = []
    each = feed(seen.append, finish=lambda: seen.append("end"))
    each(1, 2)
    assert (True, True) == (finish(each.worker), finish(each.worker))
    assert [1, 2, "end"] == seen


def test_finish_and_tick_may_raise(feed):
    """They are the sink's, so what they raise is counted."""
    ticked = threading.Event()

    def tick() -> None:
        ticked.set()
        raise ValueError("tick")

    def end() -> None:
        raise ValueError("end")

    each = feed(Sink(), tick=tick, finish=end)
    each.worker.start()
    assert True is ticked.wait(LONG_S)
    assert True is finish(each.worker)
    assert 2 <= counts(each.worker)["failed"]


def test_after_the_end_flush_says_whether_all_was_delivered(feed):
    """A flush after a good end is a good flush, and one after a bad end is not."""
    good, bad = feed(Sink()), feed(Sink(), flush=lambda _: False)
    good(1)
    bad(1)
    finish(good.worker)
    finish(bad.worker)
    assert (True, False) == (flush(good.worker), flush(bad.worker))


def test_what_is_published_after_the_end_is_counted_as_dropped(feed):
    """A thread that was in the middle of an exit publishes late: that is offered, and lost."""
    each = feed(Sink())
    each(1)
    finish(each.worker)
    each(2)
    assert {"offered": 2, "handed_over": 1, "failed": 0, "queued": 0, "dropped": 1} == counts(each.worker)


def test_a_worker_without_work_ends_without_a_thread(feed):
    """A forked child that entered no phase needs no thread to end: at interpreter exit there would be none."""
    each = feed(Sink())
    assert True is finish(each.worker)
    assert None is each.worker._thread


def test_a_forked_child_need_not_tell_the_end(feed):
    """What tells the end of the session is the parent's; the child's worker ends without a thread."""
    told: list[str] = []
    each = feed(Sink(), finish=lambda: told.append("end"))
    each.worker.after_fork_in_child()
    assert True is finish(each.worker)
    assert [] == told


def test_after_a_fork_counts_and_queue_are_the_childs_own(feed):
    """What the parent had queued is the parent's to deliver."""
    sink = Sink()
    each = feed(sink)
    each(1, 2)
    each.offered = 0
    each.worker.after_fork_in_child()
    each(3)
    assert True is flush(each.worker)
    assert [3] == sink.taken
    assert 1 == counts(each.worker)["handed_over"]


def test_flush_on_the_sinks_own_thread_does_not_wait(feed):
    """A sink that flushes its own tracker is answered at once."""
    answers: list[bool] = []
    each = feed(lambda _: answers.append(flush(each.worker)))
    each(1)
    assert True is flush(each.worker)
    assert [False] == answers


def test_two_sinks_that_flush_do_not_wait_for_each_other(feed):
    """On the thread of any of the workers nothing is waited for: in a circle they would wait in vain."""
    answers: list[bool] = []
    workers: list[SinkWorker] = []
    both = threading.Barrier(2)

    def flush_both(_: Any) -> None:
        both.wait(LONG_S)
        answers.append(flush_all(workers, LONG_S, is_last=False))

    one, other = feed(flush_both), feed(flush_both)
    workers += [one.worker, other.worker]
    one(1)
    other(1)
    assert True is flush_all(workers, LONG_S, is_last=False)
    assert [False, False] == answers


def test_what_is_raised_into_the_worker_loses_no_entry_that_was_not_handed_over(feed, gate, untraced):
    """An exception raised into the thread while it serves is logged, and the thread goes on."""
    taking = threading.Event()

    def hang(_: Any) -> None:
        taking.set()
        gate.wait(LONG_S)

    sink = Sink(hang)
    each = feed(sink)
    each(*range(5))
    each.worker.start()
    assert True is taking.wait(LONG_S)
    raise_in(each.worker._thread, SystemExit)
    gate.set()
    assert True is flush(each.worker)
    assert list(range(5)) == sink.taken
    assert (5, 0) == (counts(each.worker)["handed_over"], counts(each.worker)["dropped"])


def test_a_worker_that_is_interrupted_all_the_time_still_counts_exactly(feed, untraced):
    """Wherever exceptions land in the worker, what was offered was handed over or dropped, and the end comes."""
    sink = Sink()
    each = feed(sink, bound=100_000)
    each.worker.start()
    thread = each.worker._thread
    for number in range(300):
        each(*[number] * 20)
        if thread.is_alive():
            raise_in(thread, KeyboardInterrupt)
    finish(each.worker)
    each.worker.give_up()
    stats = counts(each.worker)
    assert 6_000 == stats["offered"]
    assert len(sink.taken) <= stats["handed_over"]
    assert stats["handed_over"] - len(sink.taken) <= stats["failed"]


def test_a_worker_that_died_is_started_anew(feed, caplog):
    """Its queue waits for the next start, flush or end, and is served then."""
    sink = Sink()
    each = feed(sink)
    dead = threading.Thread(target=lambda: None)
    dead.start()
    dead.join()
    each.worker._thread = dead
    each(1)
    assert True is flush(each.worker)
    assert [1] == sink.taken
    assert 1 == sum("had died and was started anew" in message for message in caplog.messages)


def test_a_worker_that_dies_during_a_flush_is_started_anew(feed, monkeypatch):
    """Who waits for a flush looks after the worker, and is answered by its successor."""
    monkeypatch.setattr(_drain, "REVIVE_S", 0.01)
    sink = Sink()
    each = feed(sink)
    runs = itertools.count()
    run = each.worker._run
    monkeypatch.setattr(each.worker, "_run", lambda: run() if next(runs) else None)
    each(1)
    assert True is flush(each.worker)
    assert [1] == sink.taken


def test_a_thread_that_was_taken_for_dead_ends(feed):
    """Of two threads of one worker only the latest serves: a sink is never called by two at once."""
    each = feed(Sink())
    each.worker.start()
    first = each.worker._thread
    each.worker._thread = None
    each.worker.start()
    first.join(LONG_S)
    assert False is first.is_alive()
    assert True is flush(each.worker)


def test_a_thread_that_cannot_start_is_logged_once_and_tried_again(feed, caplog, monkeypatch):
    """At the system's limit of threads nothing is raised into training; entries wait for the next try."""
    sink = Sink()
    each = feed(sink)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert (False, False) == (each.worker.start(), each.worker.start())
        each(1)
        assert False is flush(each.worker, 0.01)
    assert 1 == sum("raise the limit of threads" in message for message in caplog.messages)
    assert {"offered": 1, "handed_over": 0, "failed": 0, "queued": 1, "dropped": 0} == counts(each.worker)
    assert True is flush(each.worker)
    assert [1] == sink.taken


def test_start_does_not_wait_for_another_start(feed):
    """A signal handler that starts the worker while the interrupted thread does so does not wait for itself."""
    each = feed(Sink())
    with each.worker._start_lock:
        assert True is each.worker.start()
    assert None is each.worker._thread


def test_a_worker_that_is_over_does_not_start(feed):
    """After the end no thread comes back."""
    each = feed(Sink())
    each.worker.give_up()
    assert False is each.worker.start()


def test_many_threads_may_publish_to_a_queue_that_overflows(feed, step_thread):
    """Whatever the interleaving, offered is handed over plus dropped."""
    sink = Sink()
    each = feed(sink, bound=50)
    each.worker.start()
    offered = itertools.count()

    def publish_many() -> None:
        for _ in range(3_000):
            next(offered)
            each.worker.publish("entry")

    publishing = [step_thread().begin(publish_many) for _ in range(4)]
    for one in publishing:
        one.result(LONG_S)
    each.offered = next(offered)
    assert True is finish(each.worker)
    assert 12_000 == counts(each.worker)["offered"]
    assert len(sink.taken) == counts(each.worker)["handed_over"]


def test_prepare_runs_first_on_each_new_thread(feed):
    """What the worker's thread needs is set before the sink is called on it."""
    seen: list[Any] = []
    each = feed(seen.append, prepare=lambda: seen.append("ready"))
    each(1)
    flush(each.worker)
    assert ["ready", 1] == seen


def test_a_worker_that_could_not_prepare_tries_again(feed, caplog):
    """What its preparation raises is logged, and no entry is handed over before it has succeeded."""
    seen: list[Any] = []

    def prepare() -> None:
        seen.append("preparing")
        if len(seen) == 1:
            raise ValueError("not yet")

    each = feed(seen.append, prepare=prepare)
    each(1)
    assert True is flush(each.worker)
    assert ["preparing", "preparing", 1] == seen
    assert 1 == sum("was interrupted and goes on" in message for message in caplog.messages)


def test_a_sink_that_gives_up_during_a_flush_gets_no_more(feed):
    """The flush is answered with no, and what was still queued is dropped and counted."""
    sink = Sink(lambda _: each.worker.give_up())
    each = feed(sink)
    each(1, 2, 3)
    assert False is flush(each.worker)
    assert [1] == sink.taken
    assert {"offered": 3, "handed_over": 1, "failed": 0, "queued": 0, "dropped": 2} == counts(each.worker)


def test_an_entry_that_is_taken_back_at_the_last_moment_is_not_handed_over(feed):
    """Between the worker's look at its queue and its hand: nothing is counted, nothing raised."""
    sink = Sink()
    each = feed(sink)

    class Clock:
        readings = 0

        def monotonic_ns(self) -> int:
            self.readings += 1
            if self.readings == 1:  # It says until when to work.
                assert "entry" == each.worker.take_back()
            return 0

    each.worker.publish("entry")
    each.worker._clock = Clock()
    each.worker._work(1)
    assert [] == sink.taken
    assert {"offered": 0, "handed_over": 0, "failed": 0, "queued": 0, "dropped": 0} == counts(each.worker)


def test_a_worker_that_is_woken_looks_at_its_queue_at_once(feed, monkeypatch):
    """However long it would have rested."""
    monkeypatch.setattr(_drain, "IDLE_S", LONG_S)
    monkeypatch.setattr(_drain, "GAP_S", LONG_S)
    looked = threading.Semaphore(0)
    taken = threading.Event()
    each = feed(lambda _: taken.set(), tick=looked.release)
    monkeypatch.setattr(_drain, "TICK_NS", 0)
    each.worker.start()
    assert True is looked.acquire(timeout=LONG_S)
    each(1)
    each.worker.wake()
    assert True is taken.wait(LONG_S / 2)


def test_a_worker_says_that_it_is_over(feed):
    """From the moment at which it is told to end."""
    each = feed(Sink())
    assert False is each.worker.is_over
    each.worker.give_up()
    assert True is each.worker.is_over
