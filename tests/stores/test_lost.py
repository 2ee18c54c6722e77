"""What becomes LOST in a store: by the evidence that `recover` goes by, and by nothing else."""

from __future__ import annotations

import attrs
import pytest

from stormphase._liveness import MACHINE_PID_NAMESPACE, Liveness, judge, own_process
from stormphase._model import PhaseStatus
from stormphase._record import OutputLine, RecordKind
from stormphase._store_conformance import as_ended, example_record
from stormphase.stores import MemoryStore, SqliteStore, _launches, as_lost, close_lost

THIS = attrs.evolve(own_process(), host="node-7", boot_id="boot", pid_namespace=MACHINE_PID_NAMESPACE)
PROCESSES = {
    "this one": (THIS, False),
    "a pid that was given to another": (attrs.evolve(THIS, started=1), True),
    "a pid that is gone": (attrs.evolve(THIS, pid=1 << 30), True),
    "a start that nobody knows": (attrs.evolve(THIS, started=None), False),
    "this machine before it booted": (attrs.evolve(THIS, boot_id="before"), True),
    "another machine": (attrs.evolve(THIS, host="node-8", boot_id="other"), False),
    "another machine of this boot id": (attrs.evolve(THIS, host="node-8", pid_namespace=5), False),
    "a container of before": (attrs.evolve(THIS, boot_id="before", pid_namespace=5), False),
    "another container": (attrs.evolve(THIS, pid_namespace=5), False),
    "a machine without a name": (attrs.evolve(THIS, host="localhost", boot_id="before"), False),
    "a system that tells nothing": (attrs.evolve(THIS, boot_id=None, started=None, pid_namespace=None), False),
}


@pytest.mark.parametrize(("process", "is_dead"), PROCESSES.values(), ids=PROCESSES)
def test_what_is_lost_is_what_is_proven_dead(tmp_path, clock, monkeypatch, process, is_dead):
    """A store says it of whom `recover` says it, in the same words, and leaves all others unfinished."""
    monkeypatch.setattr(_launches, "own_process", lambda: THIS)
    store = SqliteStore(tmp_path / "runs.db", clock=clock)
    record = example_record(process=process, entered_ns=clock.wall_ns())
    store.begin([record])
    seen_ns = clock.wall_ns()
    clock.advance(3_600 * 10**9)
    verdict = judge(process, heartbeat_wall_ns=seen_ns, now_wall_ns=clock.wall_ns(), this=THIS)
    assert is_dead == (verdict.state is Liveness.DEAD)
    lost = store.close_lost()
    store.close()
    assert [(PhaseStatus.LOST, verdict.evidence, seen_ns)] * is_dead == [
        (each.status, each.evidence, each.ended_ns) for each in lost
    ]
    assert [PhaseStatus.LOST if is_dead else PhaseStatus.ACTIVE] == [each.status for each in store.query()]


def test_what_has_ended_is_left_alone(clock):
    """A dead process's ended phases are as they were, and a second look finds nothing more."""
    store, dead = MemoryStore(), attrs.evolve(own_process(), started=1)
    ended = as_ended(example_record(process=dead))
    store.end([ended])
    store.begin([example_record(process=dead), example_record(process=None)])
    assert 1 == len(close_lost(store, now_wall_ns=clock.wall_ns()))
    assert [] == close_lost(store, now_wall_ns=clock.wall_ns())
    assert [ended] == list(store.query(status="succeeded"))
    assert 1 == len(list(store.query(status="active")))


def test_what_a_lost_phase_said_is_known_or_not():
    """Without a line nobody knows what a phase said; of a rank, which says nothing itself, nothing is unknown."""
    lines = (OutputLine(1, "stdout", "hello"),)
    talking, quiet = example_record(output=lines), example_record()
    rank = example_record(kind=RecordKind.RANK, path=(), sequence=0)
    lost = as_lost([rank, talking, quiet], evidence="gone", ended_ns=0)
    assert [(), lines, None] == [record.output for record in lost]


def test_nobody_ends_before_it_began():
    """A last sign of life from before, as of a clock that was set back, is no end."""
    (lost,) = as_lost([example_record(entered_ns=50)], evidence="gone", ended_ns=20)
    assert (50, 0) == (lost.ended_ns, lost.duration_ns)
