"""A process that is killed between two tellers of its end has ended for both."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from stormphase.records import read_records

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import os, signal, sys, threading
import stormphase
from stormphase.otel import OTelBridge
from stormphase.stores import SqliteStore

whose, when, bridge = sys.argv[1:]

class KillsAtTheEnd(SqliteStore):
    def end(self, records):
        is_last = any(record.kind == whose for record in records)
        if is_last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().end(records)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)

class NeverTellsOfTheEnd(OTelBridge):
    def finish(self, outcome, ended_ns):
        threading.Event().wait()

tracker = stormphase.PhaseTracker(
    session_id="s", rank=0, world_size=1, journal="runs", store=KillsAtTheEnd("runs.db"),
    bridge=NeverTellsOfTheEnd() if bridge == "slow bridge" else None,
)
with tracker, tracker.enter_phase("pool"):
    if whose == "process":
        child = os.fork()
        if not child:
            with stormphase.phase("item"):
                pass
            tracker.stop()
            os._exit(0)
        os.waitpid(child, 0)
"""


@pytest.mark.parametrize("bridge", ["none", "slow bridge"])
@pytest.mark.parametrize("whose", ["process", "rank"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_that_is_killed_while_it_ends_has_ended_for_both(
    tmp_path: Path, whose: str, when: str, bridge: str
) -> None:
    """SIGKILL right before, or right after, its store has the end; its bridge has not been told of it yet, if slow.

    A child that is killed before has its parent tell the store, which kills that one, too.
    """
    subprocess.run([sys.executable, "-c", PROGRAM, whose, when, bridge], cwd=tmp_path, check=False, timeout=60)
    said = {
        name: {record.scope_id: (record.kind.value, record.status.value) for record in read_records(tmp_path / name)}
        for name in ("runs", "runs.db")
    }
    assert said["runs.db"] == said["runs"]
    assert {"succeeded"} == {status for _, status in said["runs"].values()}
    assert whose in {kind for kind, _ in said["runs"].values()}
