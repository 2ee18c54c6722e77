"""The way into a store: batches, tries, losses, and what happened when nobody could say."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from stormphase._model import PhaseStatus, RankIdentity
from stormphase._owner_records import SessionFacts
from stormphase._record import OutputLine, RecordKind
from stormphase.exceptions import StoreError
from stormphase.stores import MemoryStore, SqliteStore, _feed
from stormphase.stores._feed import StoreFeed

IDENTITY = RankIdentity(
    session_id="s",
    attempt=0,
    rank=0,
    local_rank=0,
    world_size=2,
    local_world_size=2,
    node_rank=None,
    host="node",
    launcher="single",
)


class Unreliable(MemoryStore):
    """A store that raises for as long as it is told to, or for the records it is told."""

    def __init__(self, refuses=lambda record: False):
        super().__init__()
        self.is_down = False
        self.refuses = refuses
        self.calls = []
        self.closed = 0

    def begin(self, records, /):
        """Keep them, or raise."""
        self._check("begin", records)
        super().begin(records)

    def end(self, records, /):
        """Keep them, or raise."""
        self._check("end", records)
        super().end(records)

    def close(self):
        """Count it."""
        self.closed += 1

    def _check(self, name, records):
        self.calls.append((name, len(records)))
        if self.is_down or any(map(self.refuses, records)):
            raise StoreError("It is down.", path="here", fix="Wait.")


@pytest.fixture
def facts(lanes):
    """Return what is known of the session."""
    return SessionFacts.of(IDENTITY, name="job", started_ns=lanes.now(), environ={}, wish=None)


@pytest.fixture
def make_feed(lanes, facts):
    """Make a feed that takes all that `lanes` do, at once."""

    def make(store, **options):
        made = StoreFeed(store, lanes, facts, **options)
        lanes.enter_queues = lanes.exit_queues = (made.take,)
        return made

    return make


def phases_of(store, **filters):
    """Return the phases in a store, by name and status."""
    return [(record.name, record.status.value) for record in store.query(kind="phase", **filters)]


# --- what is written --------------------------------------------------------------------------------------------------


def test_nothing_is_written_before_its_batch(make_feed, lanes):
    """The store is not called for each boundary."""
    store = Unreliable()
    feed = make_feed(store)
    with lanes.enter_phase("train"):
        assert [] == store.calls
        feed.tick()
        assert [("begin", 3)] == store.calls
        lanes.enter_phase("step").close()
        lanes.enter_phase("step").close()
        feed.tick()
    feed.tick()
    feed.tick()
    assert [("begin", 3), ("end", 2), ("end", 1)] == store.calls
    assert [("train", "succeeded"), ("step", "succeeded"), ("step", "succeeded")] == phases_of(store)


def test_a_full_batch_does_not_wait_for_the_tick(make_feed, lanes, monkeypatch):
    """A busy program writes as it goes."""
    monkeypatch.setattr(_feed, "BATCH", 10)
    store = Unreliable()
    make_feed(store)
    for _ in range(25):
        lanes.enter_phase("step").close()
    assert [("begin", 2), ("end", 5), ("end", 5), ("end", 5), ("end", 5), ("end", 5)] == store.calls


def test_an_open_phase_is_written_while_it_is_open(make_feed, lanes):
    """So that a process that dies leaves it visibly unfinished, with what was known of it."""
    store = MemoryStore()
    feed = make_feed(store)
    with lanes.enter_phase("train", {"epoch": 1}) as train:
        feed.tick()
        (record,) = store.query(kind="phase")
        assert (PhaseStatus.ACTIVE, None, {"epoch": 1}, train.scope_id) == (
            record.status,
            record.ended_ns,
            record.attributes,
            record.scope_id,
        )
        assert os.getpid() == record.process.pid


def test_a_session_and_its_rank_have_records_of_their_own(make_feed, lanes, clock):
    """The session above its rank, both open from the start to the end, with what is known of the job."""
    store = MemoryStore()
    feed = make_feed(store)
    assert feed.flush(0)
    assert [("session", "active"), ("rank", "active")] == [(r.name, r.status.value) for r in store.query()]
    clock.advance(50)
    feed.finish(None, lanes.now())
    assert feed.flush(0)
    session, rank = store.query()
    assert ([RecordKind.SESSION, RecordKind.RANK], [None, 0]) == ([session.kind, rank.kind], [session.rank, rank.rank])
    assert (None, session.scope_id) == (session.parent_scope_id, rank.parent_scope_id)
    assert {(PhaseStatus.SUCCEEDED, 50, 0, ())} == {
        (r.status, r.duration_ns, r.sequence, r.path) for r in (session, rank)
    }
    assert {"stormphase.session.name": "job", "stormphase.world_size": 2} == session.attributes
    assert {"stormphase.local_rank": 0, "stormphase.launcher": "single"}.items() <= rank.attributes.items()


def test_rank_and_session_show_where_the_exception_arose(make_feed, lanes):
    """What ended the session is its error, with the phase that it came from as its root cause."""
    store = MemoryStore()
    feed = make_feed(store)
    with (
        pytest.raises(ValueError, match="bad") as failure,
        lanes.enter_phase("train"),
        lanes.enter_phase("step") as step,
    ):
        raise ValueError("bad")
    feed.finish(failure.value, lanes.now())
    feed.flush(0)
    assert {("failed", "ValueError", step.scope_id, ("train", "step"))} == {
        (r.status.value, r.error_type, r.root_cause_scope_id, r.root_cause_path) for r in store.query()
    }
    assert [False, False, False, True] == [r.traceback is not None for r in store.query()]


def test_an_exception_outside_of_all_phases_is_the_ranks_own(make_feed, lanes):
    """The rank has it in full, the session refers to the rank."""
    store = MemoryStore()
    feed = make_feed(store)
    feed.finish(ValueError("bad"), lanes.now())
    feed.flush(0)
    session, rank = store.query()
    assert [(rank.scope_id, None)] * 2 == [(r.root_cause_scope_id, r.root_cause_path) for r in (session, rank)]
    assert (None, True) == (session.traceback, rank.traceback is not None)


def test_being_interrupted_is_no_failure(make_feed, lanes):
    """CANCELLED, with what interrupted it."""
    store = MemoryStore()
    feed = make_feed(store)
    feed.finish(KeyboardInterrupt(), lanes.now())
    feed.flush(0)
    assert {("cancelled", "KeyboardInterrupt", None)} == {
        (r.status.value, r.error_type, r.traceback) for r in store.query()
    }


def test_captured_output_stands_beside_its_phase(make_feed, lanes):
    """Whatever has time, stream and text becomes a line of the record."""

    class Line:
        time_ns, stream, text, level = 5, "log", "hello", 20

    store = MemoryStore()
    feed = make_feed(store, output_of=lambda phase: [Line(), OutputLine(6, "stdout", phase.name)])
    with lanes.enter_phase("train"):
        pass
    feed.tick()
    assert [(OutputLine(5, "log", "hello"), OutputLine(6, "stdout", "train"))] == [
        r.output for r in store.query(kind="phase")
    ]


def test_secrets_are_taken_out_before_anything_is_stored(make_feed, lanes):
    """Of open records and of ended ones."""
    import attrs

    store = Unreliable()
    feed = make_feed(store, redact=lambda record: attrs.evolve(record, attributes={}))
    with lanes.enter_phase("train", {"token": "secret"}):
        feed.tick()
        assert [{}] == [record.attributes for record in store.query(kind="phase")]
    feed.tick()
    assert [{}] == [record.attributes for record in store.query(kind="phase")]


@pytest.mark.parametrize(
    ("environ", "wish", "expected"),
    [
        ({}, None, None),
        ({}, "mine", "mine"),
        ({"STORMPHASE_CORRELATION_ID": " env "}, None, "env"),
        ({"STORMPHASE_CORRELATION_ID": "env"}, "mine", "mine"),
        ({"TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01"}, None, "a" * 32),
        ({"TRACEPARENT": f"00-{'0' * 32}-{'b' * 16}-01"}, None, None),
        ({"TRACEPARENT": f"ff-{'a' * 32}-{'b' * 16}-01"}, None, None),
        ({"TRACEPARENT": "nonsense"}, None, None),
    ],
)
def test_a_run_is_known_by_the_callers_word_or_its_trace(lanes, environ, wish, expected):
    """The caller's own, else the variable's, else the caller's trace, else the one that all ranks derive."""
    from stormphase.otel.ids import session_trace_id

    facts = SessionFacts.of(IDENTITY, name=None, started_ns=0, environ=environ, wish=wish)
    assert (expected or f"{session_trace_id('s', 0):032x}") == facts.correlation_id
    assert ("b" * 16 if expected == "a" * 32 else None) == facts.caller_scope_id


# --- a store that fails -----------------------------------------------------------------------------------------------


def test_what_a_store_does_not_take_is_tried_again(make_feed, lanes, caplog):
    """Nothing is lost, one warning is written, and another line when it works again."""
    store = Unreliable()
    feed = make_feed(store)
    store.is_down = True
    with lanes.enter_phase("train"):
        pass
    with caplog.at_level(logging.INFO, "stormphase"):
        assert not feed.flush(0)
        assert not feed.flush(0)
        assert (2, 2) == (feed.unwritten, feed.stats()["retries"])
        store.is_down = False
        assert feed.flush(0)
    assert ([("train", "succeeded")], 0) == (phases_of(store), feed.unwritten)
    assert ["failed (StoreError: It is down. Wait.)", "takes records again"] == [
        part
        for record in caplog.records
        for part in ("failed (StoreError: It is down. Wait.)", "takes records again")
        if part in record.getMessage()
    ]


def test_a_store_that_fails_is_given_a_rest(make_feed, lanes):
    """Ticks do not hammer it."""
    store = Unreliable()
    feed = make_feed(store)
    store.is_down = True
    feed.tick()
    feed.tick()
    assert 1 == len(store.calls)
    feed._retry_at_ns = 0
    feed.tick()
    assert 2 == len(store.calls)


def test_a_flush_waits_for_a_store_to_come_back(make_feed, lanes):
    """Within its timeout it tries again."""
    store = Unreliable(lambda record: len(store.calls) < 3)
    feed = make_feed(store)
    assert feed.flush(30)
    assert 3 <= len(store.calls)


def test_one_bad_record_does_not_keep_the_others(make_feed, lanes):
    """What the store refuses while it takes others is given up, and counted by entries."""
    store = Unreliable(lambda record: record.name == "bad")
    feed = make_feed(store)
    for name in ("good", "bad", "fine"):
        lanes.enter_phase(name).close()
    with lanes.enter_phase("bad"):
        for _ in range(_feed.TRIES_TOGETHER):
            assert not feed.flush(0)
        assert feed.flush(0)
        assert [("good", "succeeded"), ("fine", "succeeded")] == phases_of(store)
        assert (3, 0) == (feed.refused, feed.unwritten)


def test_a_bad_record_alone_waits(make_feed, lanes):
    """Nobody can say whether it is the record or the store; with the next good one it is known."""
    store = Unreliable(lambda record: record.name == "bad")
    feed = make_feed(store)
    assert feed.flush(0)
    lanes.enter_phase("bad").close()
    for _ in range(_feed.TRIES_TOGETHER + 2):
        assert not feed.flush(0)
    assert (0, 2) == (feed.refused, feed.unwritten)
    lanes.enter_phase("good").close()
    assert feed.flush(0)
    assert (2, 0) == (feed.refused, feed.unwritten)


def test_what_was_taken_one_by_one_is_not_counted_as_lost(make_feed, lanes):
    """Until the store says that it may work later, or the session is over: the counts stay exact."""

    class Filling(Unreliable):
        """Takes one record a call, and only so many."""

        room = 2

        def _check(self, name, records):
            super()._check(name, records)
            if len(records) > 1 or self.room == 0:
                raise StoreError("Full.", path="here", fix="Wait.", may_pass=self.room == 0)
            self.room -= 1

    store = Filling()
    feed = make_feed(store)
    for _ in range(_feed.TRIES_TOGETHER):
        assert not feed.flush(0)
    assert feed.flush(0)  # The session and its rank.
    for _ in range(5):
        lanes.enter_phase("step").close()
    store.room = 3
    for _ in range(_feed.TRIES_TOGETHER + 3):
        assert not feed.flush(0)
    assert (3, 4, 0) == (len(phases_of(store)), feed.unwritten, feed.refused)
    store.room = 1
    feed.is_over = lambda: store.room == 0
    assert not feed.flush(0)
    assert (4, 2, 0) == (len(phases_of(store)), feed.unwritten, feed.refused)


def test_an_open_phase_that_was_taken_alone_is_ended_later(make_feed, lanes):
    """It is known to have begun."""
    store = Unreliable(lambda record: record.name == "bad" or len(store.calls[-1:]) == 0)
    feed = make_feed(store)
    assert feed.flush(0)
    outer = lanes.enter_phase("outer")
    with lanes.enter_phase("bad"):
        store.refuses = lambda record: record.name != "outer"
        for _ in range(_feed.TRIES_TOGETHER):
            assert not feed.flush(0)
        feed.is_over = lambda: ("outer", "active") in phases_of(store)
        assert not feed.flush(0)
        feed.is_over = lambda: False
        store.refuses = lambda record: False
    outer.close()
    assert feed.flush(0)
    assert [("outer", "succeeded"), ("bad", "succeeded")] == phases_of(store)
    assert (0, 0, 0) == (feed.unwritten, feed.refused, feed.stats()["unknown_begins"])


def test_a_store_that_takes_nothing_keeps_all_waiting(make_feed, lanes):
    """Then it is the store and not the records: nothing is given up."""
    store = Unreliable()
    feed = make_feed(store)
    store.is_down = True
    for _ in range(10):
        lanes.enter_phase("step").close()
    for _ in range(_feed.TRIES_TOGETHER + 3):
        assert not feed.flush(0)
    assert (0, 20) == (feed.refused, feed.unwritten)
    store.is_down = False
    assert feed.flush(0)
    assert 10 == len(phases_of(store))


def test_beyond_its_bound_the_queue_waits(make_feed, lanes, monkeypatch):
    """Nothing more is taken than can be kept; when the session is over, the wait ends."""
    monkeypatch.setattr(_feed, "BATCH", 4)
    monkeypatch.setattr(_feed, "MAX_WAITING", 8)
    monkeypatch.setattr(_feed, "LONGEST_PAUSE_S", 0.001)
    store = Unreliable()
    feed = make_feed(store)
    store.is_down = True
    feed.is_over = lambda: len(store.calls) > 20
    for _ in range(4):
        lanes.enter_phase("step").close()
    assert 20 < len(store.calls)
    assert 8 == feed.unwritten


# --- ends that nobody told --------------------------------------------------------------------------------------------


def test_an_exit_whose_enter_was_dropped_is_stored_and_counted(make_feed, lanes):
    """The exit says all that the enter said."""
    store = MemoryStore()
    feed = make_feed(store)
    lanes.enter_queues = ()
    lanes.enter_phase("step").close()
    feed.tick()
    assert ([("step", "succeeded")], 1) == (phases_of(store), feed.stats()["unknown_begins"])


def test_an_exit_that_was_dropped_is_asked_of_the_phase(make_feed, lanes):
    """The phase itself still says how it ended; one that was written as open gets its end."""
    store = MemoryStore()
    feed = make_feed(store)
    lanes.exit_queues = ()
    with lanes.enter_phase("train"):
        feed.tick()
        lanes.enter_phase("step").close()
    feed.finish(None, lanes.now())
    assert feed.flush(0)
    assert [("train", "succeeded"), ("step", "succeeded")] == phases_of(store)
    assert (2, 0) == (feed.stats()["recovered_ends"], feed.stats()["unknown_ends"])


def test_an_end_is_never_invented(make_feed, lanes, step_thread):
    """A phase that was moved, and whose exit was dropped: nobody knows, so it stays unfinished and is counted."""
    store = MemoryStore()
    feed = make_feed(store)
    phase = lanes.enter_phase("train")
    feed.tick()
    lanes.exit_queues = ()
    token = phase.release()
    step_thread().do(lambda: lanes.acquire(token).close())
    feed.finish(None, lanes.now())
    assert feed.flush(0)
    assert ([("train", "active")], 1) == (phases_of(store), feed.stats()["unknown_ends"])


def test_memory_stays_flat_when_exits_are_dropped(make_feed, lanes, monkeypatch):
    """What has ended is taken note of now and then, also while the session runs."""
    monkeypatch.setattr(_feed, "_SWEEP_ABOVE", 3)
    store = MemoryStore()
    feed = make_feed(store)
    lanes.exit_queues = ()
    for _ in range(5):
        phase = lanes.enter_phase("step")
        feed.tick()
        phase.close()
    feed.tick()
    feed.tick()
    assert len(feed._begun) <= 1
    assert 4 <= len(phases_of(store, status="succeeded"))


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_forked_child_has_a_record_of_its_own(tmp_path, lanes, facts):
    """Its phases are its own process's; the parent's are the parent's to write, and it writes them once."""
    store = SqliteStore(tmp_path / "runs.db")
    feed = StoreFeed(store, lanes, facts)
    lanes.enter_queues = lanes.exit_queues = (feed.take,)
    with lanes.enter_phase("train") as train:
        child = os.fork()
        if child == 0:
            try:
                feed.after_fork_in_child(train.scope_id, lanes.now())
                lanes.enter_phase("load").close()
                feed.finish(None, lanes.now())
                os._exit(0 if feed.flush(5) else 2)
            finally:
                os._exit(1)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    feed.finish(None, lanes.now())
    assert feed.flush(5)
    records = list(store.query())
    by_kind = {record.kind: record for record in records if record.kind is not RecordKind.PHASE}
    assert {RecordKind.SESSION, RecordKind.RANK, RecordKind.PROCESS} == set(by_kind)
    assert (train.scope_id, child) == (
        by_kind[RecordKind.PROCESS].parent_scope_id,
        by_kind[RecordKind.PROCESS].process.pid,
    )
    assert [("load", child), ("train", os.getpid())] == sorted(
        (record.name, record.process.pid) for record in records if record.kind is RecordKind.PHASE
    )
    assert {"succeeded"} == {record.status.value for record in records}


def test_a_childs_first_phase_does_not_wait_for_its_batch(lanes, facts):
    """A worker that is killed a moment after it began has been there, and is what its parent failed by."""
    store = Unreliable()
    feed = StoreFeed(store, lanes, facts)
    feed.after_fork_in_child(None, lanes.now())
    with lanes.enter_phase("load") as load:
        feed.take((load,))
        assert [("process", "active"), ("load", "active")] == [(each.name, each.status.value) for each in store.query()]
        with lanes.enter_phase("shard") as shard:
            feed.take((shard,))
    assert [("begin", 2)] == store.calls


def test_a_child_without_phases_writes_nothing(lanes, facts):
    """It is nobody's business that it was there; one that was forked outside of all phases hangs under its rank."""
    store = MemoryStore()
    feed = StoreFeed(store, lanes, facts)
    feed.after_fork_in_child(None, lanes.now())
    feed.tick()
    feed.finish(None, lanes.now())
    assert feed.flush(0)
    assert [] == list(store.query())
    feed.after_fork_in_child(None, lanes.now())
    phase = lanes.enter_phase("late")
    feed.take((phase,))
    phase.close()
    feed.tick()
    (process,) = store.query(kind="process")
    assert feed._owners.records[0].parent_scope_id == process.parent_scope_id != None  # noqa: E711


def test_a_process_says_now_and_then_that_it_lives(tmp_path, lanes, facts, clock):
    """Also while it has nothing to write, so that its death is not dated to its last boundary."""
    store = SqliteStore(tmp_path / "runs.db", clock=clock)
    feed = StoreFeed(store, lanes, facts)
    assert feed.flush(0)
    process = feed._owners.process
    before_ns = store.last_seen_ns(process)
    clock.advance(1_000)
    feed.tick()
    assert before_ns == store.last_seen_ns(process)
    feed._beat_at_ns = 0
    feed.tick()
    assert before_ns + 1_000 == store.last_seen_ns(process)
    store.close()


def test_what_others_left_behind_is_looked_at_once(lanes, facts):
    """At the first tick, off the training thread; if that fails, the session's own records come all the same."""

    class Store(Unreliable):
        looked = 0

        def close_lost(self):
            """Fail."""
            self.looked += 1
            raise OSError("no")

    store = Store()
    feed = StoreFeed(store, lanes, facts)
    feed.tick()
    feed._retry_at_ns = 0
    feed.tick()
    assert (1, 2) == (store.looked, len(list(store.query())))


def test_the_store_is_let_go_at_the_end(make_feed, lanes):
    """Closed once all is written, and not while it is not."""
    store = Unreliable()
    feed = make_feed(store)
    assert feed.flush(0)
    assert 0 == store.closed
    feed.finish(None, lanes.now())
    store.is_down = True
    assert not feed.flush(0)
    assert 0 == store.closed
    store.is_down = False
    assert feed.flush(0)
    assert 1 == store.closed


def test_a_log_handler_that_raises_costs_nothing(make_feed, lanes):
    """It is the program's own, and may do anything."""

    class Handler(logging.Handler):
        def emit(self, record):
            """Fail."""
            raise RuntimeError

    handler = Handler()
    logging.getLogger("stormphase").addHandler(handler)
    try:
        store = Unreliable()
        feed = make_feed(store)
        store.is_down = True
        assert not feed.flush(0)
    finally:
        logging.getLogger("stormphase").removeHandler(handler)
    assert threading.main_thread() is threading.current_thread()
