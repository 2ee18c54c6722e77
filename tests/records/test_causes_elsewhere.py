"""Journals know a root cause in another process by its path, as a store does, since that process has a journal."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from stormphase.records import read_records

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import contextlib, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import stormphase
from stormphase.stores import SqliteStore

class MyError(Exception):
    pass

def item(kind):
    with stormphase.phase("item"), stormphase.phase("inner"):
        raise {"ValueError": ValueError, "MyError": MyError, "SystemExit": SystemExit}[kind]("bad")

fork = multiprocessing.get_context("fork")
way, kind = sys.argv[1:]
with contextlib.suppress(BaseException):
    with stormphase.PhaseTracker(
        session_id="s", rank=0, world_size=1, journal="runs", store=SqliteStore("runs.db"), bridge=None
    ) as tracker, tracker.enter_phase("outer"), tracker.enter_phase("pool"):
        if way == "executor":
            with ProcessPoolExecutor(1, mp_context=fork) as pool:
                pool.submit(item, kind).result()
        else:
            with fork.Pool(1) as pool:
                pool.map(item, [kind])
"""


@pytest.mark.parametrize(
    ("way", "kind"),
    [("executor", "ValueError"), ("executor", "MyError"), ("executor", "SystemExit"), ("pool", "ValueError")],
)
def test_a_cause_in_a_worker_has_its_path_in_journals(tmp_path: Path, way: str, kind: str) -> None:
    """What the worker raised in its phase came out of the parent's phases, its rank and its session."""
    subprocess.run([sys.executable, "-c", PROGRAM, way, kind], cwd=tmp_path, check=True, timeout=60)
    said = {
        name: {
            record.scope_id: record.root_cause_path
            for record in read_records(tmp_path / name)
            if record.root_cause_scope_id is not None
        }
        for name in ("runs", "runs.db")
    }
    assert said["runs.db"] == said["runs"]
    assert {("outer", "pool", "item", "inner")} == set(said["runs"].values())
    assert 6 == len(said["runs"])  # session, rank, outer, pool, item and inner
