"""LOST records: the one function that ends what a dead process left open, for stores, readers and recovery alike."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from stormphase._attribution import causes_of
from stormphase._copying import changed
from stormphase._model import PhaseStatus
from stormphase._record import RecordKind
from stormphase._status import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stormphase._attribution import Cause
    from stormphase._model import ProcessIdentity
    from stormphase._record import PhaseRecord
    from stormphase._status import StatusChange

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
    paused = {record.key for record in given if record.status is PhaseStatus.PAUSED}
    ends = _Ends(evidence, ended_ns, reason)
    lost = [ends.ended(record) for record in given]
    at_work = [record for record in lost if record.key not in paused]
    causes = causes_of(at_work)
    phases = [record for record in at_work if record.kind is RecordKind.PHASE]
    if not phases:
        causes, paused = causes_of(lost), set()
    last = max(phases, key=lambda record: (record.entered_ns, record.sequence), default=None)
    for record in lost:
        _blame(record, causes.get((last if record.key in paused and last else record).key))
    return lost


def lost_reason(stop_signal: int | None) -> str:
    """Return why the phases of a dead process are LOST: it died, after a signal had asked it to stop if one had."""
    if stop_signal is None:
        return DIED
    try:
        name = signal.Signals(stop_signal).name
    except ValueError:
        name = f"signal {stop_signal}"
    return f"{DIED} after {name} had asked it to stop"


class _Ends:
    """Ends the open records of one dead process; what the table of statuses says is asked once, not for each."""

    def __init__(self, evidence: str, ended_ns: int, reason: str) -> None:
        self._evidence = evidence
        self._ended_ns = ended_ns
        self._reason = reason
        self._changes: dict[tuple[PhaseStatus, ProcessIdentity | None], StatusChange] = {}

    def ended(self, record: PhaseRecord) -> PhaseRecord:
        """Return a record as LOST, and nothing said yet of what is to blame."""
        change = self._change_of(record)
        open_ns = max(self._ended_ns, record.entered_ns) - record.entered_ns
        entered_ns = record.entered_monotonic_ns
        return changed(
            record,
            status=change.to_status,
            reason=self._reason,
            evidence=change.evidence,
            ended_ns=record.entered_ns + open_ns,
            ended_monotonic_ns=None if entered_ns is None else entered_ns + open_ns,
            output=record.output or (None if record.kind is RecordKind.PHASE else ()),
        )

    def _change_of(self, record: PhaseRecord) -> StatusChange:
        place = (record.status, record.process)
        if place not in self._changes:
            self._changes[place] = TABLE.change(
                record.status,
                PhaseStatus.LOST,
                owner=None if record.process is None else f"process {record.process.pid}",
                actor=ACTOR,
                at_ns=max(0, min(self._ended_ns, _LAST_NS)),
                evidence=self._evidence,
            )
        return self._changes[place]


def _blame(record: PhaseRecord, cause: Cause | None) -> None:
    """Say in a record that was made here, and that nobody else has yet, what it is LOST by."""
    if cause is None:
        return
    for name, value in (
        ("error_type", LOST_ERROR_TYPE),
        ("error_message", LOST_MESSAGE),
        ("root_cause_scope_id", cause.scope_id),
        ("root_cause_path", cause.path),
    ):
        object.__setattr__(record, name, value)
