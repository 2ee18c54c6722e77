"""The Protocols that a program may ask about while it runs."""

from __future__ import annotations

import pytest

from stormphase import LoggingSink
from stormphase.stores import MemoryStore, SqliteStore
from stormphase.typing import RecordStore, Sink


@pytest.mark.parametrize("sink", [LoggingSink(), print, lambda boundary: None], ids=["LoggingSink", "print", "lambda"])
def test_what_can_be_called_is_a_sink(sink):
    """`isinstance` says so."""
    assert isinstance(sink, Sink)


@pytest.mark.parametrize("other", [None, "runs.db", 5], ids=repr)
def test_what_cannot_be_called_is_no_sink(other):
    """Nor is it a store."""
    assert (False, False) == (isinstance(other, Sink), isinstance(other, RecordStore))


def test_every_store_is_a_record_store(tmp_path):
    """Ours, and whatever has the four methods."""

    class Mine:
        begin = end = query = close = print

    stores = [MemoryStore(), SqliteStore(tmp_path / "runs.db"), Mine()]
    assert [True] * 3 == [isinstance(store, RecordStore) for store in stores]
    assert not isinstance(print, RecordStore)
