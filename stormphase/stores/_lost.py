"""What became of phases whose process died: LOST, by the evidence that `recover` and `postmortem` go by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._attribution import attribute
from stormphase._liveness import Liveness, judge, own_process
from stormphase._model import PhaseStatus
from stormphase._record import OutputLine, RecordKind
from stormphase._said_lines import read_said
from stormphase._status import TABLE
from stormphase.stores._owners import JOURNAL
from stormphase.stores._query import RecordQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stormphase._model import ProcessIdentity
    from stormphase._record import PhaseRecord
    from stormphase.typing import RecordStore

UNFINISHED: Final = RecordQuery(status=frozenset(status for status, rule in TABLE.rules.items() if not rule.is_final))
ACTOR: Final = "recovery"


def close_lost(
    store: RecordStore,
    *,
    now_wall_ns: int,
    last_seen_ns: Callable[[ProcessIdentity], int | None] | None = None,
) -> list[PhaseRecord]:
    """Give every unfinished record of a process that is proven dead its end, LOST; return those.

    Records of a process that is not known to be dead, or that say nothing of their process, stay as they are.

    Args:
        store: whose records.
        now_wall_ns: now, nanoseconds since the Unix epoch.
        last_seen_ns: says when a process was last known alive, if the store knows more than its records do.
    """
    unfinished: dict[ProcessIdentity, list[PhaseRecord]] = {}
    for record in store.query(UNFINISHED):
        if record.process is not None:
            unfinished.setdefault(record.process, []).append(record)
    this = own_process()
    lost: list[PhaseRecord] = []
    for process, records in unfinished.items():
        alive_ns = max(record.entered_ns for record in records)
        seen_ns = None if last_seen_ns is None else last_seen_ns(process)
        if seen_ns is not None:
            alive_ns = max(alive_ns, seen_ns)
        verdict = judge(process, heartbeat_wall_ns=alive_ns, now_wall_ns=now_wall_ns, this=this)
        if verdict.state is Liveness.DEAD:
            lost += as_lost(_with_last_words(records), evidence=verdict.evidence, ended_ns=alive_ns)
    if lost:
        store.end(lost)
    return lost


def _with_last_words(records: Iterable[PhaseRecord]) -> list[PhaseRecord]:
    """Return the records of one process with what it said last in each phase, if it had a journal and that says so."""
    found = list(records)
    for owner in found:
        journal = owner.attributes.get(JOURNAL)
        if owner.kind in (RecordKind.RANK, RecordKind.PROCESS) and isinstance(journal, str):
            said: dict[int, list[OutputLine]] = {}
            for line in read_said(Path(journal)):
                said.setdefault(line.sequence, []).append(OutputLine(line.time_ns, line.stream, line.text))
            return [_saying(record, said) for record in found]
    return found


def _saying(record: PhaseRecord, said: dict[int, list[OutputLine]]) -> PhaseRecord:
    if record.kind is not RecordKind.PHASE or record.sequence not in said:
        return record
    # A line from before its phase would be another process's, whose journal had this one's name.
    lines = tuple(line for line in said[record.sequence] if line.time_ns >= record.entered_ns)
    return attrs.evolve(record, output=lines)


def as_lost(records: Iterable[PhaseRecord], *, evidence: str, ended_ns: int) -> list[PhaseRecord]:
    """Return the records of one dead process as LOST, each with the phase in which it died as its root cause.

    Where no line of a phase is known its output is None: what it said died with its process.

    Args:
        records: those that were unfinished.
        evidence: how it is known that the process is dead.
        ended_ns: when it was last known alive, nanoseconds since the Unix epoch.
    """
    lost = []
    for record in records:
        change = TABLE.change(
            record.status,
            PhaseStatus.LOST,
            owner=None if record.process is None else f"process {record.process.pid}",
            actor=ACTOR,
            at_ns=ended_ns,
            evidence=evidence,
        )
        open_ns = max(ended_ns, record.entered_ns) - record.entered_ns
        entered_ns = record.entered_monotonic_ns
        lost.append(
            attrs.evolve(
                record,
                status=change.to_status,
                evidence=change.evidence,
                ended_ns=record.entered_ns + open_ns,
                ended_monotonic_ns=None if entered_ns is None else entered_ns + open_ns,
                output=record.output or (None if record.kind is RecordKind.PHASE else ()),
            )
        )
    blames = attribute(lost)
    told = []
    for record in lost:
        blame = blames.blame_of(record)
        told.append(
            record
            if blame is None
            else attrs.evolve(record, root_cause_scope_id=blame.scope_id, root_cause_path=blame.path)
        )
    return told
