"""Records of a session, a rank and a forked process: the one home of what they hold, for stores and journals alike."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._derived_ids import rank_span_id, root_span_id, session_trace_id
from stormphase._ids import scope_id_number, to_hex
from stormphase._model import PhaseStatus, ProcessIdentity, RankIdentity
from stormphase._record import PhaseRecord, RecordKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._model import PhaseError

CORRELATION_VARIABLE: Final = "STORMPHASE_CORRELATION_ID"
MAX_CORRELATION_CHARS: Final = 256
JOURNAL: Final = "stormphase.journal"
LAUNCH: Final = "stormphase.launch"
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_ZEROS: Final = frozenset("0")


@attrs.frozen(kw_only=True)
class SessionFacts:
    """What all records of one session and rank share.

    Attributes:
        name: the job's name, or None.
        identity: session, attempt and rank.
        started_ns: when the session started, on the monotonic clock.
        correlation_id: the caller's word, else the trace id.
        caller_scope_id: the span that `TRACEPARENT` names, under which the session stands, or None.
        launch: what the ranks that were launched together share, or None; see `stormphase._attempts`.
        started_by: the session of the rank that started this program, or None.
    """

    name: str | None
    identity: RankIdentity
    started_ns: int
    correlation_id: str | None
    caller_scope_id: str | None
    launch: str | None = None
    started_by: str | None = None

    @classmethod
    def of(
        cls,
        identity: RankIdentity,
        *,
        name: str | None,
        started_ns: int,
        environ: Mapping[str, str],
        wish: str | None,
        launch: str | None = None,
        started_by: str | None = None,
    ) -> SessionFacts:
        """Return what is known at the start.

        Args:
            identity: session, attempt and rank.
            name: the job's name.
            started_ns: when the session started, on the monotonic clock.
            environ: the environment; `STORMPHASE_CORRELATION_ID` and `TRACEPARENT` count.
            wish: the correlation id that the caller gave, or None.
            launch: what the ranks that were launched together share, or None.
            started_by: the session of the rank that started this program, or None.
        """
        trace_id, caller = caller_of(environ)
        if trace_id is None:
            trace_id = f"{session_trace_id(identity.session_id, identity.attempt):032x}"
        said = wish or environ.get(CORRELATION_VARIABLE, "").strip()[:MAX_CORRELATION_CHARS]
        return cls(
            name=name,
            identity=identity,
            started_ns=started_ns,
            correlation_id=said or trace_id,
            caller_scope_id=caller,
            launch=launch,
            started_by=started_by,
        )


def caller_of(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return the trace id and the span id that `TRACEPARENT` names, or Nones if there is none or it is malformed."""
    found = _TRACEPARENT.fullmatch(environ.get("TRACEPARENT", "").strip())
    if found is None or set(found[1]) == _ZEROS or set(found[2]) == _ZEROS:
        return None, None
    return found[1], found[2]


@attrs.frozen(kw_only=True)
class OwnerFacts:
    """What is known of a process when it starts.

    Attributes:
        identity: session, attempt and rank.
        process: which process it is.
        name: the job's name, or None.
        correlation_id: what else the run is known by, or None.
        caller_scope_id: the span under which the session stands (`TRACEPARENT`), or None.
        entered_ns: when it started, in nanoseconds since the Unix epoch.
        entered_monotonic_ns: the same on its monotonic clock.
        journal: the file of its journal, or None.
        launch: what the ranks that were launched together share, or None.
    """

    identity: RankIdentity
    process: ProcessIdentity
    name: str | None
    correlation_id: str | None
    caller_scope_id: str | None
    entered_ns: int
    entered_monotonic_ns: int
    journal: str | None = None
    launch: str | None = None


def rank_records(facts: OwnerFacts) -> tuple[PhaseRecord, ...]:
    """Return the open record of the rank, the last, and on rank 0, which tells of it, the session's before it."""
    identity = facts.identity
    common: dict[str, object] = {"stormphase.session.name": facts.name, "stormphase.world_size": identity.world_size}
    own: dict[str, object] = {"stormphase.local_rank": identity.local_rank, "stormphase.launcher": identity.launcher}
    own[LAUNCH] = facts.launch
    session_id = to_hex(root_span_id(identity.session_id, identity.attempt))
    rank = with_journal(
        _record(facts, RecordKind.RANK, rank_scope_id(identity), session_id, {**common, **own}), facts.journal
    )
    if identity.rank != 0:
        return (rank,)
    session = _record(facts, RecordKind.SESSION, session_id, facts.caller_scope_id, common)
    return (attrs.evolve(session, rank=None), rank)


def child_record(facts: OwnerFacts, *, id_base: int, parent_scope_id: str | None) -> PhaseRecord:
    """Return the open record of a forked or worker process.

    Args:
        facts: what is known of it.
        id_base: what the scope ids of its phases count from.
        parent_scope_id: the phase that was open at the fork, or None for its rank.
    """
    scope_id = to_hex(scope_id_number(id_base, 0))  # Phases begin at 1.
    parent_scope_id = parent_scope_id or rank_scope_id(facts.identity)
    return with_journal(_record(facts, RecordKind.PROCESS, scope_id, parent_scope_id, {}), facts.journal)


def rank_scope_id(identity: RankIdentity) -> str:
    """Return the scope id of a rank's record."""
    return to_hex(rank_span_id(identity.session_id, identity.attempt, identity.rank))


def with_journal(record: PhaseRecord, path: str | None) -> PhaseRecord:
    """Return the record of a process with the place of its journal, and so of its last words."""
    return record if path is None else attrs.evolve(record, attributes={**record.attributes, JOURNAL: path})


def as_ended(
    record: PhaseRecord, status: PhaseStatus, error: PhaseError | None, *, ended_ns: int, ended_monotonic_ns: int
) -> PhaseRecord:
    """Return the record as its process has ended it; the traceback of what arose in no phase is its rank's alone."""
    record = attrs.evolve(record, status=status, ended_ns=ended_ns, ended_monotonic_ns=ended_monotonic_ns)
    if error is None:
        return record
    return attrs.evolve(
        record,
        error_type=error.type,
        error_message=error.message,
        traceback=None if record.kind is RecordKind.SESSION else error.traceback,
        root_cause_scope_id=error.root_cause_scope_id,
        root_cause_path=error.root_cause_path or None,
    )


def _record(
    facts: OwnerFacts, kind: RecordKind, scope_id: str, parent_scope_id: str | None, attributes: dict[str, object]
) -> PhaseRecord:
    return PhaseRecord(
        kind=kind,
        session_id=facts.identity.session_id,
        session_attempt=facts.identity.attempt,
        correlation_id=facts.correlation_id,
        rank=facts.identity.rank,
        scope_id=scope_id,
        parent_scope_id=parent_scope_id,
        path=(),
        sequence=0,
        status=PhaseStatus.ACTIVE,
        entered_ns=facts.entered_ns,
        entered_monotonic_ns=facts.entered_monotonic_ns,
        attributes={key: value for key, value in attributes.items() if value is not None},
        process=facts.process,
    )
