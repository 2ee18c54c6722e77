"""The store in memory."""

from __future__ import annotations

import os

import pytest

from stormphase import ConfigurationError
from stormphase._store_conformance import as_ended, example_record
from stormphase.stores import MemoryStore
from stormphase.testing import RecordStoreConformance


class TestMemoryStore(RecordStoreConformance):
    """It does what every store must do."""

    def make_store(self):
        """Return a new one."""
        return MemoryStore()


def test_the_oldest_ends_are_forgotten_and_counted():
    """It never grows beyond its bound; what is open stays."""
    store = MemoryStore(max_records=2)
    still_open, *records = (example_record() for _ in range(4))
    store.begin([still_open])
    store.end([as_ended(record) for record in records])
    assert [still_open, *(as_ended(record) for record in records[1:])] == list(store.query())
    assert 1 == store.forgotten


def test_who_forgets_to_make_a_store_is_told():
    """The suite says what is missing."""
    with pytest.raises(NotImplementedError, match="Override make_store"):
        RecordStoreConformance().make_store()


@pytest.mark.parametrize("bound", [0, -1, 1.5, True, "5"])
def test_a_bound_that_cannot_be_is_refused(bound):
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match="Leave it out"):
        MemoryStore(max_records=bound)


def test_a_forked_child_does_not_wait_for_its_parents_lock():
    """Another thread of the parent may have held it at the fork."""
    store = MemoryStore()
    with store._lock:
        child = os.fork()
        if child == 0:
            store.begin([example_record()])
            os._exit(len(list(store.query())))
    assert 1 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert [] == list(store.query())


def test_a_question_is_asked_one_way():
    """By an object or by keywords, not by both."""
    from stormphase.stores import RecordQuery

    with pytest.raises(TypeError, match="not by both"):
        MemoryStore().query(RecordQuery(), rank=1)
