"""What a store without a journal beside it knows of a killed process, and of its workers."""

from __future__ import annotations

import pytest

from stormphase.stores import SqliteStore

HEAD = """
import multiprocessing, os, signal, sys, threading, warnings
import stormphase
from stormphase.stores import SqliteStore
warnings.simplefilter("ignore", DeprecationWarning)
who = {"session_id": "s", "rank": 0, "world_size": 1}
tracker = stormphase.PhaseTracker("job", **who, bridge=None, store=SqliteStore("runs.db"))
def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""

POOL = """
def work(number):
    with stormphase.phase("item", attributes={"number": number}):
        if number == 5:
            raise ValueError("five")
with tracker, tracker.enter_phase("pool"):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = [pool.apply_async(work, (number,)) for number in range(8)]
        for result in results:
            result.wait()
"""

CHILD = """
with tracker, tracker.enter_phase("train"):
    child = os.fork()
    if not child:
        with tracker.enter_phase("well", {"n": 1}):
            pass
        tracker.enter_phase("open")
        die()
    os.waitpid(child, 0)
"""

ORDERLY = """
with tracker, tracker.enter_phase("train"):
    child = os.fork()
    if not child:
        tracker.enter_phase("well").close()
        tracker.stop()
        print(os.path.exists("runs.db-journals"))
        os._exit(0)
    os.waitpid(child, 0)
"""

ORPHANED = """
tracker.start()
tracker.enter_phase("train")
if not os.fork():
    tracker.enter_phase("well").close()
    die()
os.wait()
die()
"""


def test_items_of_a_pool_that_killed_its_workers_are_what_they_were(run_python, tmp_path):
    """Those that succeeded have, and the one that failed is there: the pool's SIGTERM came before the store's batch."""
    run_python(HEAD + POOL)
    items = list(SqliteStore(tmp_path / "runs.db").query(path="pool/item"))
    found = sorted((record.attributes["number"], record.status.value) for record in items)
    assert [(number, "failed" if number == 5 else "succeeded") for number in range(8)] == found
    assert ["five"] == [record.error_message for record in items if record.error_message]


@pytest.mark.parametrize("program", [POOL, CHILD, ORDERLY], ids=["pool", "killed child", "child that ended"])
def test_nothing_is_left_beside_the_database(run_python, tmp_path, program):
    """What stood in for journals goes when all of it is stored."""
    run_python(HEAD + program)
    assert ["runs.db"] == sorted(path.name for path in tmp_path.iterdir())


def test_a_killed_child_has_lost_what_it_had_open_and_nothing_else(run_python, tmp_path):
    """Also where it wrote nothing else into the store; it has no journal that anybody could look at."""
    run_python(HEAD + CHILD)
    store = SqliteStore(tmp_path / "runs.db")
    found = [(record.name, record.status.value, dict(record.attributes)) for record in store.query(path="train/*")]
    assert [("well", "succeeded", {"n": 1}), ("open", "lost", {})] == found
    assert [{}] == [dict(record.attributes) for record in store.query(kind="process")]


def test_who_reads_the_database_of_killed_processes_ends_them(run_python, tmp_path):
    """A rank and its child were killed: the child's phases are taken from beside the database, once."""
    run_python(HEAD + ORPHANED, check=False)
    store = SqliteStore(tmp_path / "runs.db")
    assert store.journals.is_dir()
    store.close_lost()
    assert ["succeeded"] == [record.status.value for record in store.query(path="train/well")]
    assert [] == store.close_lost()
    assert not store.journals.exists()


def test_a_store_does_not_claim_what_it_cannot_know(run_python, tmp_path):
    """A rank that had no journal may have ended what was open when it last wrote: the record says so."""
    run_python(HEAD + 'tracker.start(); tracker.enter_phase("train"); tracker.flush(9); die()', check=False)
    (train,) = SqliteStore(tmp_path / "runs.db").close_lost()[-1:]
    assert ("train", "its process died; what it did after its last write here is not known") == (
        train.name,
        train.reason,
    )
    assert "the process died, and nothing says how this ended" == train.error_message
