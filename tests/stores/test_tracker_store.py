"""A tracker with a store: what ran is there, also when the store is locked, gone, hangs, or the process was killed."""

# ruff: noqa: PT012, SIM117 - phases nest in blocks that fail

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import attrs
import pytest

from stormphase import ConfigurationError
from stormphase._attribution import attribute
from stormphase._liveness import own_process
from stormphase._record import RecordKind
from stormphase.exceptions import StoreError
from stormphase.stores import MemoryStore, SqliteStore

LONG_S = 30


def told(store, **filters):
    """Return the phases of a store, by path and status."""
    return [(record.path_text, record.status.value) for record in store.query(kind="phase", **filters)]


@pytest.fixture
def path(tmp_path):
    """Return where the database is to be."""
    return tmp_path / "runs.db"


def test_what_ran_is_in_the_store(make_tracker, path):
    """Phases, the rank and the session, with attributes, failures and their root cause."""
    store = SqliteStore(path)
    with make_tracker("job", session_id="s", store=store, correlation_id="me") as tracker:
        tracker.set_step(3)
        with tracker.enter_phase("train", {"epoch": 1}):
            with pytest.raises(ValueError, match="bad"), tracker.enter_phase("load") as load:
                load.set_attribute("rows", 10)
                raise ValueError("bad")
            with tracker.retry(load):
                pass
    assert [
        ("train", "succeeded"),
        ("train / load", "failed"),
        ("train / load", "succeeded"),
    ] == told(store)
    session, rank, train, first, second = store.query()
    assert [RecordKind.SESSION, RecordKind.RANK] == [session.kind, rank.kind]
    assert {("s", 0, "me", os.getpid())} == {
        (r.session_id, r.session_attempt, r.correlation_id, r.process.pid) for r in store.query()
    }
    assert ({"rows": 10}, 3, train.scope_id) == (first.attributes, first.step, first.parent_scope_id)
    assert (1, first.scope_id) == (second.attempt, second.retry_of_scope_id)
    assert [first.scope_id] == [failure.record.scope_id for failure in attribute(store.query()).failures]
    stats = tracker.stats()
    assert {"offered": 6, "handed_over": 6, "failed": 0, "queued": 0, "dropped": 0} == stats["sinks"]["store"]
    assert set() == {name for name, count in stats["store"].items() if count}


def test_a_session_that_failed_shows_its_root_cause(make_tracker):
    """The rank's and the session's records name the phase, and what the exception said."""
    store = MemoryStore()
    with pytest.raises(ValueError, match="bad"), make_tracker(store=store) as tracker, tracker.enter_phase("train"):
        with tracker.enter_phase("step"):
            raise ValueError("bad")
    assert {("failed", "bad", ("train", "step"))} == {
        (record.status.value, record.error_message, record.root_cause_path) for record in store.query()
    }


def test_without_a_store_there_is_none(make_tracker):
    """Nothing is counted for what is not there."""
    with make_tracker() as tracker:
        tracker.enter_phase("a").close()
    assert "store" not in tracker.stats()
    assert "store" not in tracker.stats()["sinks"]


@pytest.mark.parametrize("store", ["runs.db", SqliteStore, object(), 5])
def test_what_is_no_store_is_refused(make_tracker, store):
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match=r"SqliteStore\(\"runs.db\"\)"):
        make_tracker(store=store)


@pytest.mark.parametrize("correlation_id", ["", "  ", 5, "x" * 257])
def test_what_is_no_correlation_id_is_refused(make_tracker, correlation_id):
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match="leave it out"):
        make_tracker(correlation_id=correlation_id)


def test_a_store_that_can_never_work_fails_at_the_start(make_tracker, tmp_path):
    """And not after a week of training; the same tracker can start once that is mended."""
    tracker = make_tracker(store=SqliteStore(tmp_path / "nowhere" / "runs.db"))
    with pytest.raises(ConfigurationError, match="directory that exists"):
        tracker.start()
    (tmp_path / "nowhere").mkdir()
    with tracker:
        tracker.enter_phase("a").close()
    assert 1 == tracker.stats()["sinks"]["store"]["offered"] - 1


def test_a_store_that_may_work_later_is_waited_for(make_tracker):
    """What is busy at the start is no reason not to train."""

    class Store(MemoryStore):
        def open(self):
            """Fail, for now."""
            raise StoreError("Busy.", path="here", fix="Wait.", may_pass=True)

    store = Store()
    with make_tracker(store=store) as tracker:
        tracker.enter_phase("a").close()
    assert [("a", "succeeded")] == told(store)


def test_only_rank_0_writes_the_sessions_record(make_tracker):
    """It stands above all ranks, and one of them is there to write it."""
    store = MemoryStore()
    for rank in (1, 0):
        with make_tracker(session_id="s", rank=rank, world_size=2, store=store):
            pass
    assert [("rank", 1), ("session", None), ("rank", 0)] == [(record.name, record.rank) for record in store.query()]
    assert 1 == len({record.parent_scope_id for record in store.query(kind="rank")})


def test_a_locked_database_loses_nothing(make_tracker, path):
    """Another process holds the file at the start and for a while: training goes on, and all of it is there later."""
    SqliteStore(path).open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    store = SqliteStore(path, busy_timeout_s=0.01)
    with make_tracker(store=store) as tracker:
        for _ in range(100):
            tracker.enter_phase("step").close()
        assert not tracker.flush(0.3)
        stats = tracker.stats()
        assert (200, 0, 0) == tuple(stats["sinks"]["store"][name] for name in ("offered", "handed_over", "dropped"))
        assert 1 <= stats["store"]["retries"]
        other.execute("ROLLBACK")
        other.close()
        assert tracker.flush(LONG_S)
    assert [("step", "succeeded")] * 100 == told(store)
    assert {"offered": 200, "handed_over": 200, "failed": 0, "queued": 0, "dropped": 0} == tracker.stats()["sinks"][
        "store"
    ]


def test_what_a_lock_outlasts_is_counted(make_tracker, path, caplog):
    """The queue is bounded: what it cannot hold is dropped, offered = handed over + dropped, and it is said."""
    SqliteStore(path).open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    tracker = make_tracker(store=SqliteStore(path, busy_timeout_s=0.01)).start()
    for _ in range(100):
        tracker.enter_phase("step").close()
    tracker.stop(0.2)
    assert {"offered": 200, "handed_over": 0, "failed": 0, "queued": 0, "dropped": 200} == tracker.stats()["sinks"][
        "store"
    ]
    assert ["it is tried again", "store: 200"] == [
        text for record in caplog.records for text in ("it is tried again", "store: 200") if text in record.getMessage()
    ]
    other.execute("ROLLBACK")
    other.close()


def test_a_store_that_hangs_costs_training_nothing(make_tracker):
    """The session ends in its time, and what hung is counted."""
    go_on, hangs = threading.Event(), threading.Event()

    class Store(MemoryStore):
        def begin(self, records, /):
            """Hang."""
            hangs.set()
            go_on.wait(LONG_S)

    tracker = make_tracker(store=Store()).start()
    tracker.enter_phase("step").close()
    assert hangs.wait(LONG_S)
    tracker.enter_phase("step").close()
    assert not tracker.flush(0.01)
    tracker.stop(0.01)
    counts = tracker.stats()["sinks"]["store"]
    go_on.set()
    assert (4, 4) == (counts["offered"], counts["handed_over"] + counts["dropped"])


def test_a_file_that_was_deleted_is_made_anew(make_tracker, path):
    """The phase that was open then is there once it has ended."""
    store = SqliteStore(path)
    with make_tracker(store=store) as tracker, tracker.enter_phase("train"):
        assert tracker.flush(LONG_S)
        assert [("train", "active")] == told(store)
        for file in path.parent.iterdir():
            file.unlink()
        tracker.enter_phase("step").close()
        assert tracker.flush(LONG_S)
        assert [("train / step", "succeeded")] == told(store)
    assert [("train", "succeeded"), ("train / step", "succeeded")] == told(store)


def test_two_trackers_may_share_a_store(make_tracker, path):
    """One that stops lets go of the file, and the other one goes on."""
    store = SqliteStore(path)
    with make_tracker(session_id="first", store=store) as first:
        first.enter_phase("a").close()
        with make_tracker(session_id="second", store=store) as second:
            second.enter_phase("b").close()
        first.enter_phase("c").close()
    assert [("a", "succeeded"), ("c", "succeeded")] == told(store, session_id="first")
    assert [("b", "succeeded")] == told(store, session_id="second")


def test_a_forked_child_writes_its_own(make_tracker, path):
    """Both processes write into one file, each with its own record."""
    store = SqliteStore(path)
    with make_tracker(store=store) as tracker, tracker.enter_phase("train"):
        child = os.fork()
        if child == 0:
            try:
                tracker.enter_phase("in child").close()
                tracker.stop()
                os._exit(0)
            finally:
                os._exit(1)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert [("train", "succeeded"), ("train / in child", "succeeded")] == told(store)
    assert {os.getpid(), child} == {record.process.pid for record in store.query(kind="phase")}
    assert [child] == [record.process.pid for record in store.query(kind="process")]


KILLED = """
import sys
from stormphase import PhaseTracker
from stormphase.stores import SqliteStore

tracker = PhaseTracker(session_id="killed", bridge=None, store=SqliteStore(sys.argv[1])).start()
with tracker.enter_phase("train", {"epoch": 1}):
    tracker.enter_phase("load").close()
    with tracker.enter_phase("step"):
        assert tracker.flush(30)
        print("ready", flush=True)
        input()
"""


def test_a_killed_process_is_found_lost_by_the_next(make_tracker, path):
    """Its open phases are LOST, with evidence, and the innermost is where it died; what had ended is as it was."""
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert b"ready\n" == killed.stdout.readline()
    store = SqliteStore(path)
    assert [] == store.close_lost()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [("train", "active"), ("train / load", "succeeded"), ("train / step", "active")] == told(store)
    with make_tracker(session_id="next", store=store) as tracker:
        assert tracker.flush(LONG_S)
        looked = threading.Event()
        while not told(store, status="lost") and not looked.wait(0.05):
            pass
    assert [("train", "lost"), ("train / load", "succeeded"), ("train / step", "lost")] == told(
        store, session_id="killed"
    )
    lost = list(store.query(status="lost"))
    assert {("train", "step")} == {record.root_cause_path for record in lost}
    assert {RecordKind.SESSION, RecordKind.RANK, RecordKind.PHASE} == {record.kind for record in lost}
    assert all(f"process {killed.pid}" in record.evidence for record in lost)


TALKING = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # CPython 3.12 and later warn of a fork beside threads.
from stormphase import PhaseTracker
from stormphase.stores import SqliteStore

os.chdir(sys.argv[3])
options = {"journal": "runs"} if sys.argv[2] == "journal" else {}
tracker = PhaseTracker(session_id="killed", bridge=None, store=SqliteStore(sys.argv[1]), capture=True, **options)
tracker.start()
with tracker.enter_phase("train"):
    print("training")
    with tracker.enter_phase("load"):
        print("loading")
    with tracker.enter_phase("quiet"), tracker.enter_phase("step"):
        sys.stderr.write("the last word\\n")
        assert tracker.flush(30)
        child = os.fork()
        if child == 0:
            with tracker.enter_phase("in child"):
                print("of the child")
                assert tracker.flush(30)
                os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", ["journal", "none"])
def test_a_killed_process_is_asked_for_its_last_words(run_python, path, tmp_path, how):
    """LOST rows have what their journal says was said last; where nobody knows it is NULL, and not an empty list."""
    assert -signal.SIGKILL == run_python(TALKING, str(path), how, str(tmp_path), check=False).returncode
    store = SqliteStore(path)
    assert 7 == len(store.close_lost())
    said = {
        ("train", "lost"): ["training"],
        ("load", "succeeded"): ["loading"],
        ("quiet", "lost"): None,
        ("step", "lost"): ["the last word"],
        ("in child", "lost"): ["of the child"],
    }
    if how == "none":
        said = {key: lines if key[1] == "succeeded" else None for key, lines in said.items()}
    found = {(r.name, r.status.value): r.output for r in store.query(kind="phase")}
    assert said == {key: lines if lines is None else [line.text for line in lines] for key, lines in found.items()}
    assert {"()"} == {str(record.output) for record in store.query(kind=["session", "rank", "process"])}
    rows = store._read("SELECT name, output_lines FROM phases")
    assert {name: None if lines is None else len(lines) for (name, _), lines in said.items()} == dict(rows)
    in_json = [json.loads(record.to_json()) for record in store.query(path="quiet")]
    assert [None] == [record["output"] for record in in_json]


def test_a_journal_of_anothers_is_nobodys_last_words(make_tracker, path, tmp_path):
    """A file under the name of a dead process's journal, but from before its phases, is ignored; and so is no name."""
    from stormphase._model import PhaseStatus
    from stormphase._store_conformance import example_record
    from stormphase.journal._said import LastLines, said_path

    journal = tmp_path / "rank-0.journal"
    lines = LastLines(said_path(journal))
    lines.put(5, 3, "stdout", "long ago")
    dead = attrs.evolve(own_process(), started=1)
    store = SqliteStore(path)
    for number, attributes in enumerate(({"stormphase.journal": str(journal)}, {"stormphase.journal": 5}, {})):
        known = {"session_id": f"s{number}", "process": dead}
        rank = {"kind": RecordKind.RANK, "path": (), "sequence": 0, "attributes": attributes}
        store.begin([example_record(**known, **rank), example_record(**known, sequence=3)])
    assert 6 == len(store.close_lost())
    assert {(PhaseStatus.LOST, None)} == {(record.status, record.output) for record in store.query(kind="phase")}


@pytest.mark.parametrize("is_known", [False, True], ids=["found lost later", "found lost before"])
def test_a_killed_worker_is_the_cause_of_what_broke(make_tracker, path, is_known):
    """A forked worker is killed and its parent fails by that: phase, rank and session name it, in SQL as in Python."""
    from concurrent.futures.process import BrokenProcessPool

    store = SqliteStore(path)
    with pytest.raises(BrokenProcessPool), make_tracker(store=store) as tracker, tracker.enter_phase("train"):
        child = os.fork()
        if child == 0:
            tracker.enter("fit")
            tracker.flush(LONG_S)
            os.kill(os.getpid(), signal.SIGKILL)
        assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert not is_known or len(SqliteStore(path).close_lost()) == 2
        raise BrokenProcessPool("a process was terminated abruptly")
    records = {record.name: record for record in store.query()}
    lost = records["fit"]
    assert ("lost", child) == (lost.status.value, lost.process.pid)
    assert {"session": "failed", "rank": "failed", "train": "failed", "fit": "lost", "process": "lost"} == {
        name: record.status.value for name, record in records.items()
    }
    assert {(lost.scope_id, ("train", "fit"))} == {(r.root_cause_scope_id, r.root_cause_path) for r in records.values()}
    assert [lost.scope_id] == [failure.record.scope_id for failure in attribute(store.query()).failures]


FULL = """
import json, resource, sys, threading, time
from pathlib import Path
from stormphase import PhaseTracker
from stormphase.stores import SqliteStore

path = Path(sys.argv[1])
with PhaseTracker(bridge=None, store=SqliteStore(path)) as tracker:
    tracker.enter_phase("before").close()
    assert tracker.flush(30)
    size = sum(file.stat().st_size for file in path.parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    for _ in range(2_000):
        tracker.enter_phase("full", {"text": "x" * 100}).close()
    until = time.monotonic() + 30
    while not tracker.stats()["store"]["retries"]:
        assert not tracker.flush(0.1)
        assert time.monotonic() < until
    if sys.argv[2] == "room":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    tracker.stop(30 if sys.argv[2] == "room" else 0.5)
for thread in threading.enumerate():
    if thread.name == "stormphase-store":  # It may be in the middle of one more try.
        thread.join(30)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # coverage has a file, too
print(json.dumps(tracker.stats()))
"""


@pytest.mark.parametrize("how", ["room", "none"])
def test_a_full_disk_is_waited_for_or_counted(run_python, path, how):
    """Training goes on. Once there is room all of it is written; if there never is, the loss is told to the entry."""
    child = run_python(FULL, str(path), how)
    stats = json.loads(child.stdout)
    counts = stats["sinks"]["store"]
    assert 4_002 == counts["offered"] == counts["dropped"] + counts["handed_over"]
    assert (how == "room") == (counts["dropped"] == 0)
    assert 1 <= stats["store"]["retries"]
    assert "it is tried again" in child.stderr
    store = SqliteStore(path)
    statuses = [record.status.value for record in store.query(kind="phase")]
    assert counts["handed_over"] == 2 * statuses.count("succeeded") + statuses.count("active")
    assert [("ok",)] == store._read("PRAGMA integrity_check")
