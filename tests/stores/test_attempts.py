"""Restarts of a session, counted by its store."""

from __future__ import annotations

import os

import pytest

from stormphase._model import RankIdentity
from stormphase.stores import MemoryStore, SqliteStore
from stormphase.stores._attempts import number_attempt

IDENTITY = RankIdentity(
    session_id="s",
    attempt=0,
    rank=1,
    local_rank=1,
    world_size=2,
    local_world_size=2,
    node_rank=None,
    host="node",
    launcher="explicit",
)
EARLIER = """
import contextlib, os, sys
from stormphase import PhaseTracker
from stormphase.stores import SqliteStore

with contextlib.suppress(SystemExit):
    with PhaseTracker(
        session_id="s", rank={rank}, world_size={world_size}, bridge=None, store=SqliteStore(sys.argv[1])
    ) as tracker:
        with tracker.enter_phase("work"):
            pass
        tracker.flush(10)
        {ending}
"""


@pytest.fixture
def begun(tmp_path):
    """Return what puts a process with a store of this file into it, in an earlier process that has ended as it says."""
    store = SqliteStore(tmp_path / "runs.db")

    def begin(run_python, *, rank: int, ending: str = "", world_size: int = 2) -> SqliteStore:
        run_python(EARLIER.format(rank=rank, world_size=world_size, ending=ending), str(store.path))
        return store

    return begin


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        ({"rank": 0}, 0),
        ({"rank": 1}, 1),
        ({"rank": 0, "world_size": 3}, 1),
        ({"rank": 0, "ending": "os._exit(0)"}, 1),
        ({"rank": 0, "ending": "raise SystemExit(3)"}, 1),
    ],
)
def test_a_rank_joins_others_that_are_done_and_not_those_that_died(run_python, begun, earlier, expected):
    """A short job's first rank may have ended well before the last one comes; else it is the next attempt."""
    assert expected == begun(run_python, **earlier).next_attempt(IDENTITY)


def test_a_store_that_cannot_count_counts_nothing(tmp_path):
    """Another kind of store, none at all, and one that cannot be read."""
    (tmp_path / "bad.db").write_bytes(b"no database" * 1_000)
    for store in (None, MemoryStore(), SqliteStore(tmp_path / "bad.db"), SqliteStore(tmp_path / "new.db")):
        assert IDENTITY == number_attempt(store, IDENTITY)


def test_a_session_that_is_started_again_is_its_next_attempt(run_python, tmp_path, make_tracker):
    """With its own records, under the same session id; a journal that counts is not contradicted."""
    store = SqliteStore(tmp_path / "runs.db")
    source = """
import sys
from stormphase import PhaseTracker
from stormphase.stores import SqliteStore

with PhaseTracker(session_id="job", bridge=None, store=SqliteStore(sys.argv[1])) as tracker:
    with tracker.enter_phase("train"):
        print(tracker.identity.attempt)
"""
    assert ["0\n", "1\n"] == [run_python(source, str(store.path)).stdout for _ in range(2)]
    with make_tracker(session_id="job", store=store) as tracker:
        assert 2 == tracker.identity.attempt
        tracker.enter_phase("train").close()
    assert [0, 1, 2] == [record.session_attempt for record in store.query(path="train")]
    assert 3 == len({record.scope_id for record in store.query(kind="rank")})
    with make_tracker(session_id="other", store=store) as other:
        assert (0, os.getpid()) == (
            other.identity.attempt,
            next(store.query(path="train", session_attempt=2)).process.pid,
        )
