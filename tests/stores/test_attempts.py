"""Restarts of a session, counted by its store."""

from __future__ import annotations

import os

import attrs
import pytest

from stormphase._liveness import own_process
from stormphase._model import RankIdentity
from stormphase.stores import MemoryStore, SqliteStore
from stormphase.stores._attempts import Begun, next_attempt, number_attempt

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
ALIVE = own_process()
DEAD = attrs.evolve(ALIVE, started=1)


@pytest.mark.parametrize(
    ("begun", "attempt", "expected"),
    [
        ([], 0, 0),
        ([], 3, 3),
        ([(0, 1, DEAD)], 0, 1),
        ([(0, 1, ALIVE)], 0, 1),
        ([(0, 0, DEAD)], 0, 1),
        ([(0, 0, ALIVE)], 0, 0),
        ([(0, 0, None)], 0, 1),
        ([(0, 1, DEAD), (1, 0, ALIVE)], 0, 1),
        ([(0, 1, DEAD), (1, 0, DEAD)], 0, 2),
        ([(0, 1, DEAD), (1, None, ALIVE)], 0, 1),
        ([(0, 1, DEAD)], 1, 1),
        ([(2, 1, DEAD)], 1, 3),
    ],
)
def test_which_attempt_a_rank_begins(begun, attempt, expected):
    """The next one if it has begun the last or all of that are dead, else the last; never below the launcher's."""
    identity = attrs.evolve(IDENTITY, attempt=attempt)
    assert expected == next_attempt(identity, [Begun(*each, None) for each in begun], 0)


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
