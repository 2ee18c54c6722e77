"""One death has one reason, whoever asks the kernel about it, and whenever."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import stormphase
from stormphase.records import read_records
from stormphase.stores import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path


def _evidence(place: Path) -> set[str | None]:
    return {record.evidence for record in read_records(place) if record.status == "lost"}


def test_a_store_that_saw_a_worker_unreaped_says_what_its_journal_says_later(tmp_path: Path) -> None:
    """A pool may or may not have taken note of its dead worker when its store, or a reader, looks."""
    tracker = stormphase.PhaseTracker(
        session_id="s", rank=0, world_size=1, bridge=None, journal=tmp_path / "runs", store=SqliteStore(tmp_path / "db")
    )
    with tracker:
        child = os.fork()
        if not child:
            with stormphase.phase("item"):
                tracker.flush(60)
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        tracker.flush(60)
        stored, unreaped = _evidence(tmp_path / "db"), _evidence(tmp_path / "runs")
        os.waitpid(child, 0)
    said = {f"process {child} is gone from {os.uname().nodename}"}
    assert [said, said, said] == [stored, unreaped, _evidence(tmp_path / "runs")]
