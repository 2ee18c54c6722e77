"""LOST records: the one function that ends what a dead process left open, for stores, readers and recovery alike."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._attribution import attribute
from stormphase._model import PhaseStatus
from stormphase._record import RecordKind
from stormphase._status import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stormphase._attribution import Blame
    from stormphase._record import PhaseRecord

LOST_ERROR_TYPE: Final = "stormphase.Lost"
LOST_MESSAGE: Final = "the process died while this was open"
DIED: Final = "its process died"
ACTOR: Final = "recovery"

_LAST_NS: Final = 2**62  # the year 2116: what a damaged file may say is no reason to fail


def as_lost(records: Iterable[PhaseRecord], *, evidence: str, ended_ns: int, reason: str = DIED) -> list[PhaseRecord]:
    """Return the open records of one dead process as LOST, each with the phase in which it died as its root cause.

    That is the innermost phase that was open beneath the record, of several lanes the one entered last; one that was
    paused, as a suspended generator's is, refers to the others, since nothing happened in it. A forked or worker
    process that had nothing open has lost nothing, and no error. Where no line of a phase is known its output is None:
    what it said died with its process.

    Args:
        records: those that were unfinished.
        evidence: how it is known that the process is dead.
        ended_ns: when it was last known alive, nanoseconds since the Unix epoch.
        reason: why they are LOST, as far as that is known; see `lost_reason`.
    """
    given = list(records)
    lost = [_ended(record, evidence, ended_ns, reason) for record in given]
    paused = {record.key for record in given if record.status is PhaseStatus.PAUSED}
    at_work = [record for record in lost if record.key not in paused]
    blames = attribute(at_work)
    phases = [record for record in at_work if record.kind is RecordKind.PHASE]
    if not phases:
        blames, paused = attribute(lost), set()
    last = max(phases, key=lambda record: (record.entered_ns, record.sequence), default=None)
    return [_blamed(record, blames.blame_of(last if record.key in paused and last else record)) for record in lost]


def lost_reason(stop_signal: int | None) -> str:
    """Return why the phases of a dead process are LOST: it died, after a signal had asked it to stop if one had."""
    if stop_signal is None:
        return DIED
    try:
        name = signal.Signals(stop_signal).name
    except ValueError:
        name = f"signal {stop_signal}"
    return f"{DIED} after {name} had asked it to stop"


def _ended(record: PhaseRecord, evidence: str, ended_ns: int, reason: str) -> PhaseRecord:
    change = TABLE.change(
        record.status,
        PhaseStatus.LOST,
        owner=None if record.process is None else f"process {record.process.pid}",
        actor=ACTOR,
        at_ns=max(0, min(ended_ns, _LAST_NS)),
        evidence=evidence,
    )
    open_ns = max(ended_ns, record.entered_ns) - record.entered_ns
    entered_ns = record.entered_monotonic_ns
    return attrs.evolve(
        record,
        status=change.to_status,
        reason=reason,
        evidence=change.evidence,
        ended_ns=record.entered_ns + open_ns,
        ended_monotonic_ns=None if entered_ns is None else entered_ns + open_ns,
        output=record.output or (None if record.kind is RecordKind.PHASE else ()),
    )


def _blamed(record: PhaseRecord, blame: Blame | None) -> PhaseRecord:
    if blame is None:
        return record
    return attrs.evolve(
        record,
        error_type=LOST_ERROR_TYPE,
        error_message=LOST_MESSAGE,
        root_cause_scope_id=blame.scope_id,
        root_cause_path=blame.path,
    )
