"""What happens to a store's file while a job runs, for real: killed writers, another's lock, deletion and damage."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import sys
import threading
from pathlib import Path

import pytest

from stormphase import ConfigurationError
from stormphase.exceptions import StoreError
from stormphase.stores import SqliteStore

LONG_S = 60
PHASES = 200

# The suite leaves sys.path alone.
_spec = importlib.util.spec_from_file_location("store_ordeals", Path(__file__).with_name("ordeals.py"))
ordeals = sys.modules.setdefault("store_ordeals", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(ordeals)


@pytest.fixture
def path(tmp_path):
    """Return where the database is to be, in a folder of its own."""
    (tmp_path / "store").mkdir()
    return tmp_path / "store" / "runs.db"


class Watched(SqliteStore):
    """A store that takes note of the threads on which it is given phases; session and rank begin at the start."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.threads = set()

    def begin(self, records, /):
        """Keep them."""
        self.note(records)
        super().begin(records)

    def end(self, records, /):
        """Keep them."""
        self.note(records)
        super().end(records)

    def note(self, records):
        """Take note of the thread, if there is a phase among them."""
        if any(record.path for record in records):
            self.threads.add(threading.current_thread())


def told(store, name):
    """Return how many phases of that name the store has as ended."""
    return sum(1 for _ in store.query(path=name, status="succeeded"))


def told_or_error(path):
    """Return how many of the phases after a damage are there, or that all are accounted for, since it is told."""
    try:
        return told(SqliteStore(path), "after")
    except StoreError:
        return PHASES


# --- kills ------------------------------------------------------------------------------------------------------------


def test_what_was_confirmed_survives_a_kill_at_any_instant(tmp_path):
    """SIGKILL at random instants, also inside SQLite: whole rows with their output, and none lost that was confirmed.

    `python tests/stores/ordeals.py kills 500` does it more often.
    """
    sums = ordeals.run(tmp_path, range(6))
    assert (6, True) == (sums["kills"], sums["rows"] >= sums["confirmed"] > 0)


# --- a lock -----------------------------------------------------------------------------------------------------------


def test_a_lock_that_the_queue_outlasts_loses_nothing(make_tracker, path):
    """Another process holds the file: the training thread never waits for it, and all is written once it is free.

    `python tests/stores/ordeals.py lock 60000 30` does it for half a minute.
    """
    store = Watched(path, busy_timeout_s=0.01)
    with make_tracker(store=store) as tracker:
        tracker.enter_phase("before").close()
        assert tracker.flush(LONG_S)
        with ordeals.held(path) as let_go:
            for _ in range(PHASES):
                tracker.enter_phase("step").close()
            assert not tracker.flush(0.2)
            let_go()
        assert tracker.flush(LONG_S)
    assert (PHASES, 0) == (told(store, "step"), tracker.stats()["sinks"]["store"]["dropped"])
    assert {"stormphase-store"} == {thread.name for thread in store.threads}
    ordeals.exact(tracker.stats(), PHASES + 1)


def test_a_lock_that_outlasts_the_queue_costs_what_it_cannot_hold_and_no_more(make_tracker, path, monkeypatch):
    """Beyond its bound entries are dropped and counted, to the entry; what it holds is written later."""
    monkeypatch.setattr("stormphase.stores._feed.BATCH", 50)
    monkeypatch.setattr("stormphase.stores._feed.MAX_WAITING", 100)
    store = Watched(path, busy_timeout_s=0.01)
    with make_tracker(store=store, queue_bound=200) as tracker:
        tracker.enter_phase("before").close()
        assert tracker.flush(LONG_S)
        with ordeals.held(path) as let_go:
            for _ in range(10 * PHASES):
                tracker.enter_phase("step").close()
            assert not tracker.flush(0.2)
            let_go()
        assert tracker.flush(LONG_S)
    counts = tracker.stats()["sinks"]["store"]
    assert 2 * (10 * PHASES + 1) == counts["offered"]
    assert 200 <= counts["handed_over"]
    assert 0 < counts["dropped"]
    assert {"stormphase-store"} == {thread.name for thread in store.threads}
    ordeals.exact(tracker.stats(), sum(1 for _ in store.query(kind="phase", status="succeeded")))


# --- deletion and damage ----------------------------------------------------------------------------------------------


def overwrite(file, start, end):
    """Write garbage over a part of a file, from one share of its length to another."""
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(int(size * start))
        stream.write(os.urandom(int(size * (end - start))))


def replace_by_another(path):
    """Put another program's database in its place."""
    other = path.with_name("other.db")
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE theirs (a)")
    connection.commit()
    connection.close()
    other.replace(path)


def replace_by_directory(path):
    """Put a directory in its place."""
    path.unlink()
    path.mkdir()


def remove_all(path):
    """Remove the file and what SQLite has put beside it."""
    for file in path.parent.iterdir():
        file.unlink()


DAMAGES = {
    "garbage in the middle": lambda path: overwrite(path, 0.25, 0.75),
    "garbage at the beginning": lambda path: overwrite(path, 0, 0.01),
    "garbage everywhere": lambda path: overwrite(path, 0, 1),
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
    "all deleted": remove_all,
    "a directory": replace_by_directory,
    "another program's": replace_by_another,
    "garbage in the log": lambda path: overwrite(path.with_name("runs.db-wal"), 0.25, 0.75),
    "an emptied log": lambda path: os.truncate(path.with_name("runs.db-wal"), 0),
    "a deleted log": lambda path: path.with_name("runs.db-wal").unlink(),
}


@pytest.mark.parametrize("has_checkpoint", [False, True], ids=["in the log", "in the file"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_whatever_happens_to_the_file_training_goes_on_and_no_loss_is_silent(
    make_tracker, path, damage, has_checkpoint
):
    """Afterwards all is there, or the loss is counted to the entry, or whoever reads is told of the damage."""
    store = Watched(path, busy_timeout_s=0.1)
    tracker = make_tracker(store=store).start()
    with tracker.enter_phase("train"):
        for number in range(PHASES):
            tracker.enter_phase("before", {"n": number, "text": "x" * 200}).close()
        assert tracker.flush(LONG_S)
        if has_checkpoint:
            other = sqlite3.connect(path)
            other.execute("PRAGMA wal_checkpoint(FULL)")
            other.close()
            tracker.enter_phase("before").close()
            assert tracker.flush(LONG_S)
        damage(path)
        for number in range(PHASES):
            tracker.enter_phase("after", {"n": number, "text": "x" * 200}).close()
        tracker.flush(0.1)
    tracker.stop(0.1)
    for thread in store.threads:
        thread.join(LONG_S)  # It may be in the middle of one more try.
    counts = tracker.stats()["sinks"]["store"]
    assert (counts["offered"], 0) == (counts["handed_over"] + counts["dropped"], counts["queued"])
    assert {"stormphase-store"} == {thread.name for thread in store.threads}
    assert PHASES == told_or_error(path) or 0 < counts["dropped"]


@pytest.mark.parametrize("damage", [name for name in DAMAGES if "log" not in name])
def test_a_file_that_was_damaged_before_fails_at_the_start_or_loses_nothing_silently(make_tracker, path, damage):
    """An error before training says what is the matter; where the damage shows later, it is as if it came later."""
    store = SqliteStore(path)
    with make_tracker(store=store) as tracker:
        for number in range(PHASES):
            tracker.enter_phase("before", {"n": number, "text": "x" * 200}).close()
    assert ["runs.db"] == [file.name for file in path.parent.iterdir()]
    DAMAGES[damage](path)
    store = Watched(path, busy_timeout_s=0.1)
    tracker = make_tracker(store=store)
    try:
        tracker.start()
    except ConfigurationError:
        assert damage not in ("emptied", "deleted", "all deleted")
        return
    for _ in range(PHASES):
        tracker.enter_phase("after").close()
    tracker.flush(0.1)
    tracker.stop(0.1)
    for thread in store.threads:
        thread.join(LONG_S)
    counts = tracker.stats()["sinks"]["store"]
    assert (counts["offered"], 0) == (counts["handed_over"] + counts["dropped"], counts["queued"])
    assert PHASES == told_or_error(path) or 0 < counts["dropped"]
