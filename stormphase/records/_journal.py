"""Records of what journals say: a rank's phases, open and ended, the rank itself and, from rank 0, the session."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._derived_ids import rank_span_id, root_span_id, session_trace_id
from stormphase._ids import to_hex
from stormphase._liveness import Liveness
from stormphase._model import PhaseStatus
from stormphase._record import OutputLine, PhaseRecord, RecordKind
from stormphase._status import TABLE
from stormphase.journal._said import read_said
from stormphase.stores import as_lost

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stormphase._liveness import Verdict
    from stormphase.journal import JournalImage, JournalPhase

# How a process said that it ended, and what that is for its rank.
_STATUSES: Final = {
    "clean": PhaseStatus.SUCCEEDED,
    "ended": PhaseStatus.SUCCEEDED,  # as far as is known, and as a store has it
    "exception": PhaseStatus.FAILED,
    "signal": PhaseStatus.CANCELLED,
    "exit": PhaseStatus.CANCELLED,
}


def records_of_image(image: JournalImage, verdict: Verdict) -> Iterator[PhaseRecord]:
    """Yield the records of one journal: what is open, then what has ended and is still there, oldest end first.

    What a dead process left open is LOST, with the evidence of that; the same as a store would say.

    Args:
        image: what the journal says.
        verdict: whether its process lives.
    """
    owners = list(_owners(image))
    said = _said(image) if image.open else {}
    opened = [attrs.evolve(_record(image, phase), output=tuple(said.get(phase.sequence, ()))) for phase in image.open]
    if image.end_note is None and verdict.state is Liveness.DEAD:
        alive_ns = image.anchor.to_wall_ns(image.heartbeat_ns)
        yield from as_lost([*owners, *opened], evidence=verdict.evidence, ended_ns=alive_ns)
    else:
        yield from owners
        yield from opened
    paths = {phase.scope_id: phase.path for phase in image.ended}
    for phase in image.ended:
        yield _record(image, phase, paths)


def _said(image: JournalImage) -> dict[int, list[OutputLine]]:
    """Return the last lines of open phases, by the phase's number."""
    found: dict[int, list[OutputLine]] = {}
    for line in read_said(image.file):
        found.setdefault(line.sequence, []).append(OutputLine(line.time_ns, line.stream, line.text))
    return found


def _owners(image: JournalImage) -> Iterator[PhaseRecord]:
    """Yield the records of the session, if this is rank 0's journal, and of the rank; or of a forked process."""
    identity = image.identity
    session_id = to_hex(root_span_id(identity.session_id, identity.attempt))
    rank_id = _rank_id(image)
    is_forked = image.facts.get("forked_from") is not None
    if is_forked:
        # Its own id is nowhere: so one that is the same each time the journal is read.
        told = repr((identity.session_id, identity.attempt, identity.rank, image.process))
        scope_id = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        yield _owner(image, RecordKind.PROCESS, scope_id, rank_id, identity.rank)
        return
    if identity.rank == 0:
        yield _owner(image, RecordKind.SESSION, session_id, None, None)
    yield _owner(image, RecordKind.RANK, rank_id, session_id, identity.rank)


def _rank_id(image: JournalImage) -> str:
    identity = image.identity
    return to_hex(rank_span_id(identity.session_id, identity.attempt, identity.rank))


def _owner(
    image: JournalImage, kind: RecordKind, scope_id: str, parent_scope_id: str | None, rank: int | None
) -> PhaseRecord:
    note = image.end_note
    cause_path = None
    cause = None
    if note is not None and note.error_type is not None:
        origin = _origin_of(image)
        # What arose outside of all phases is the rank's own, and the session refers to that.
        own_id = _rank_id(image) if kind is RecordKind.SESSION else scope_id
        cause = own_id if origin is None else origin.scope_id
        cause_path = None if origin is None else origin.path
    return PhaseRecord(
        kind=kind,
        session_id=image.identity.session_id,
        session_attempt=image.identity.attempt,
        correlation_id=_correlation_id(image),
        rank=rank,
        scope_id=scope_id,
        parent_scope_id=parent_scope_id,
        path=(),
        sequence=0,
        status=PhaseStatus.ACTIVE if note is None else _STATUSES.get(note.kind, PhaseStatus.FAILED),
        entered_ns=image.anchor.to_wall_ns(image.started_ns),
        ended_ns=None if note is None else image.anchor.to_wall_ns(note.ended_ns),
        entered_monotonic_ns=image.started_ns,
        ended_monotonic_ns=None if note is None else note.ended_ns,
        attributes={"stormphase.world_size": image.identity.world_size, "stormphase.launcher": image.identity.launcher},
        error_type=None if note is None else note.error_type,
        error_message=None if note is None else note.error_message,
        root_cause_scope_id=cause,
        root_cause_path=cause_path,
        process=image.process,
    )


def _origin_of(image: JournalImage) -> JournalPhase | None:
    """Return the phase in which the exception that ended the process arose, if an outermost phase failed by it last."""
    note = image.end_note
    for phase in reversed(image.ended):
        error = phase.error
        if error is not None and note is not None and phase.parent_scope_id is None:
            if (error.type, error.message) != (note.error_type, note.error_message):
                return None
            by_id = {each.scope_id: each for each in image.ended}
            return by_id.get(error.root_cause_scope_id)
    return None


def _record(image: JournalImage, phase: JournalPhase, paths: dict[str, tuple[str, ...]] | None = None) -> PhaseRecord:
    identity = image.identity
    ended_ns = phase.ended_ns
    error = phase.error
    cause_path = None
    if error is not None:
        cause_path = error.root_cause_path or (paths or {}).get(error.root_cause_scope_id)
    is_final = TABLE.rules[phase.status].is_final
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
        ended_ns=None if ended_ns is None or not is_final else image.anchor.to_wall_ns(ended_ns),
        entered_monotonic_ns=phase.entered_ns,
        ended_monotonic_ns=ended_ns if is_final else None,
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
        root_cause_path=cause_path,
        process=image.process,
    )


def _correlation_id(image: JournalImage) -> str:
    otel = image.facts.get("otel")
    trace_id = otel.get("trace_id") if isinstance(otel, dict) else None
    if isinstance(trace_id, str):
        return trace_id
    return f"{session_trace_id(image.identity.session_id, image.identity.attempt):032x}"
