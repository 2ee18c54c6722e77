"""Records of what a journal says: its phases, open and ended, its rank or process and, from rank 0, the session.

What `records DIR`, recovery and stores tell of a process comes from here, so it is the same everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from stormphase._derived_ids import session_trace_id
from stormphase._liveness import Liveness
from stormphase._lost import as_lost, lost_reason
from stormphase._model import EndKind, PhaseError, PhaseStatus
from stormphase._owner_records import OwnerFacts, as_ended, child_record, rank_records
from stormphase._record import OutputLine, PhaseRecord, entering_order
from stormphase._status import TABLE
from stormphase.journal._header import id_or_none, text_or_none
from stormphase.journal._said import read_said

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stormphase._liveness import Verdict
    from stormphase.journal._image import EndNote, JournalImage, JournalPhase

# How a session ended for its rank, where the note of an older release does not say.
_STATUSES: Final = {
    EndKind.CLEAN: PhaseStatus.SUCCEEDED,
    EndKind.ENDED: PhaseStatus.SUCCEEDED,  # as far as is known, and as a store has it
    EndKind.EXCEPTION: PhaseStatus.FAILED,
    EndKind.SIGNAL: PhaseStatus.CANCELLED,
    EndKind.EXIT: PhaseStatus.CANCELLED,
}


def records_of_image(image: JournalImage, verdict: Verdict, *, ended_since_ns: int | None = None) -> list[PhaseRecord]:
    """Return the records of one journal in the order in which they were entered.

    What a dead process left open is LOST, with the evidence of that. What a journal does not keep is absent: output
    but for the last lines of what is open, and self and paused time while it is.

    Args:
        image: what the journal says.
        verdict: whether its process lives.
        ended_since_ns: phases that ended before are left out; nanoseconds since the Unix epoch.
    """
    all_ended = image.ended
    if ended_since_ns is not None:
        all_ended = tuple(each for each in all_ended if image.anchor.to_wall_ns(each.ended_ns or 0) >= ended_since_ns)
    paths = {phase.scope_id: phase.path for phase in image.ended}
    ended = [_record(image, phase, paths) for phase in all_ended]
    owners = _owners(image, paths)
    unfinished = [*(owner for owner in owners if not owner.is_ended), *_open_records(image)]
    if verdict.state is Liveness.DEAD:
        unfinished = _lost(image, unfinished, verdict.evidence)
    found = [*(owner for owner in owners if owner.is_ended), *unfinished, *ended]
    return sorted(found, key=entering_order)


def lost_records(image: JournalImage, evidence: str) -> tuple[PhaseRecord, ...]:
    """Return one LOST record for each phase that was open when the process died, as `records_of_image` has them.

    Args:
        image: the journal of a process that is dead.
        evidence: how that is known; the table of statuses lets nothing become LOST without it.
    """
    return tuple(_lost(image, _open_records(image), evidence))


def _lost(image: JournalImage, unfinished: Iterable[PhaseRecord], evidence: str) -> list[PhaseRecord]:
    alive_ns = image.anchor.to_wall_ns(image.heartbeat_ns)
    return as_lost(unfinished, evidence=evidence, ended_ns=alive_ns, reason=lost_reason(image.stop_signal))


def _open_records(image: JournalImage) -> list[PhaseRecord]:
    """Return the records of open phases, each with the last lines captured in it; None where there are none."""
    said: dict[int, list[OutputLine]] = {}
    for line in read_said(image.file) if image.open else ():
        said.setdefault(line.sequence, []).append(OutputLine(line.time_ns, line.stream, line.text))
    records = [_record(image, phase, {}) for phase in image.open]
    for index, record in enumerate(records if said else ()):
        if record.sequence in said:
            records[index] = attrs.evolve(record, output=tuple(said[record.sequence]))
    return records


def _owners(image: JournalImage, paths: Mapping[str, tuple[str, ...]]) -> tuple[PhaseRecord, ...]:
    """Return the records of the session, if this is rank 0's journal, and of the rank; or of a forked process."""
    parent_scope_id = id_or_none(image.facts.get("parent_scope_id"))
    facts = OwnerFacts(
        identity=image.identity,
        process=image.process,
        name=text_or_none(image.facts.get("name")),
        correlation_id=_correlation_id(image),
        caller_scope_id=parent_scope_id,
        entered_ns=image.anchor.to_wall_ns(image.started_ns),
        entered_monotonic_ns=image.started_ns,
        journal=str(image.file.absolute()),
        launch=text_or_none(image.facts.get("launch")),
    )
    if image.facts.get("forked_from") is not None:
        open_records: tuple[PhaseRecord, ...] = (
            child_record(facts, id_base=image.id_base, parent_scope_id=parent_scope_id),
        )
    else:
        open_records = rank_records(facts)
    note = image.end_note
    if note is None:
        return open_records
    error = _error_of(image, note, open_records[-1].scope_id, paths)
    status = end_status(note)
    ended_ns = image.anchor.to_wall_ns(note.ended_ns)
    return tuple(
        as_ended(record, status, error, ended_ns=ended_ns, ended_monotonic_ns=note.ended_ns) for record in open_records
    )


def end_status(note: EndNote) -> PhaseStatus:
    """Return how session and rank ended by the note of rank 0, or the rank or process by its own."""
    return note.status or _STATUSES[note.kind]


def _error_of(
    image: JournalImage, note: EndNote, own_id: str, paths: Mapping[str, tuple[str, ...]]
) -> PhaseError | None:
    """Return what the note says of the exception that ended the process, with the phase in which that arose."""
    if note.error_type is None:
        return None
    cause = note.root_cause_scope_id or _origin_of(image, note) or own_id
    message = note.error_message or ""
    return PhaseError(note.error_type, message, None, cause, paths.get(cause, ()))


def _origin_of(image: JournalImage, note: EndNote) -> str | None:
    """Return where the exception arose, by the phase that failed by it last: older releases' notes do not say."""
    for phase in reversed(image.ended):
        error = phase.error
        if error is not None and phase.parent_scope_id is None:
            is_same = (error.type, error.message) == (note.error_type, note.error_message)
            return error.root_cause_scope_id if is_same else None
    return None


def _record(image: JournalImage, phase: JournalPhase, paths: Mapping[str, tuple[str, ...]]) -> PhaseRecord:
    identity = image.identity
    is_final = TABLE.rules[phase.status].is_final
    ended_ns = phase.ended_ns if is_final else None
    error = phase.error
    return PhaseRecord(
        session_id=identity.session_id,
        session_attempt=identity.attempt,
        correlation_id=_correlation_id(image),
        rank=identity.rank,
        scope_id=phase.scope_id,
        parent_scope_id=phase.parent_scope_id,
        path=phase.path,
        sequence=phase.sequence,
        attempt=phase.attempt,
        retry_of_scope_id=phase.retry_of,
        step=phase.step,
        status=phase.status,
        reason=phase.status_text,
        entered_ns=image.anchor.to_wall_ns(phase.entered_ns),
        ended_ns=None if ended_ns is None else image.anchor.to_wall_ns(ended_ns),
        entered_monotonic_ns=phase.entered_ns,
        ended_monotonic_ns=ended_ns,
        self_ns=None if ended_ns is None else ended_ns - phase.entered_ns - phase.paused_ns - phase.children_ns,
        paused_ns=None if ended_ns is None else phase.paused_ns,
        thread_id=phase.thread_id,
        thread_name=phase.thread_name,
        task_name=phase.task_name,
        is_sync=phase.is_sync,
        attributes=phase.attributes,
        error_type=None if error is None else error.type,
        error_message=None if error is None else error.message,
        traceback=None if error is None else error.traceback,
        root_cause_scope_id=None if error is None else error.root_cause_scope_id,
        root_cause_path=None if error is None else error.root_cause_path or paths.get(error.root_cause_scope_id),
        process=image.process,
        output=None,
    )


def _correlation_id(image: JournalImage) -> str:
    """Return what else the run is known by; older releases' journals know the trace id at most."""
    otel = image.facts.get("otel")
    trace_id = otel.get("trace_id") if isinstance(otel, dict) else None
    for known in (image.facts.get("correlation_id"), trace_id):
        if isinstance(known, str) and known:
            return known
    return f"{session_trace_id(image.identity.session_id, image.identity.attempt):032x}"
