"""The records of what phases belong to: the session, its rank, and a process that the rank forked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase import _errors
from stormphase._derived_ids import rank_span_id, root_span_id, session_trace_id
from stormphase._ids import scope_id_number, to_hex
from stormphase._model import PhaseStatus, ProcessIdentity, RankIdentity
from stormphase._record import PhaseRecord, RecordKind
from stormphase._status import outcome_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._lanes import LaneSet
    from stormphase._model import PhaseError

CORRELATION_VARIABLE: Final = "STORMPHASE_CORRELATION_ID"
MAX_CORRELATION_CHARS: Final = 256
JOURNAL: Final = "stormphase.journal"
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
    """

    name: str | None
    identity: RankIdentity
    started_ns: int
    correlation_id: str | None
    caller_scope_id: str | None

    @classmethod
    def of(
        cls, identity: RankIdentity, *, name: str | None, started_ns: int, environ: Mapping[str, str], wish: str | None
    ) -> SessionFacts:
        """Return what is known at the start.

        Args:
            identity: session, attempt and rank.
            name: the job's name.
            started_ns: when the session started, on the monotonic clock.
            environ: the environment; `STORMPHASE_CORRELATION_ID` and `TRACEPARENT` count.
            wish: the correlation id that the caller gave, or None.
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
        )


def caller_of(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return the trace id and the span id that `TRACEPARENT` names, or Nones if there is none or it is malformed."""
    found = _TRACEPARENT.fullmatch(environ.get("TRACEPARENT", "").strip())
    if found is None or set(found[1]) == _ZEROS or set(found[2]) == _ZEROS:
        return None, None
    return found[1], found[2]


@attrs.frozen
class Owners:
    """The open records of one process, the outermost first, and which process that is."""

    process: ProcessIdentity
    records: tuple[PhaseRecord, ...]

    @classmethod
    def of_rank(cls, lanes: LaneSet, facts: SessionFacts, process: ProcessIdentity) -> Owners:
        """Return the rank's record and, on rank 0, which writes it, the session's."""
        identity = facts.identity
        session_id = to_hex(root_span_id(identity.session_id, identity.attempt))
        rank = _record(
            lanes,
            facts,
            process,
            kind=RecordKind.RANK,
            rank=identity.rank,
            scope_id=to_hex(rank_span_id(identity.session_id, identity.attempt, identity.rank)),
            parent_scope_id=session_id,
            attributes=_attributes(facts, local_rank=identity.local_rank, launcher=identity.launcher),
        )
        if identity.rank != 0:
            return cls(process, (rank,))
        session = attrs.evolve(
            rank,
            kind=RecordKind.SESSION,
            rank=None,
            scope_id=session_id,
            parent_scope_id=facts.caller_scope_id,
            attributes=_attributes(facts),
        )
        return cls(process, (session, rank))

    @classmethod
    def of_child(
        cls,
        lanes: LaneSet,
        facts: SessionFacts,
        process: ProcessIdentity,
        parent_scope_id: str | None,
        *,
        forked_ns: int,
    ) -> Owners:
        """Return the record of a forked process, under the phase that was open at the fork, else under its rank.

        Args:
            lanes: the rank's lanes, as they are in the child.
            facts: what is known of the session.
            process: the child.
            parent_scope_id: the phase that was open at the fork, or None.
            forked_ns: when that was, on the monotonic clock.
        """
        identity = facts.identity
        if parent_scope_id is None:
            parent_scope_id = to_hex(rank_span_id(identity.session_id, identity.attempt, identity.rank))
        child = _record(
            lanes,
            attrs.evolve(facts, started_ns=forked_ns),
            process,
            kind=RecordKind.PROCESS,
            rank=identity.rank,
            scope_id=to_hex(scope_id_number(lanes.id_base, 0)),  # Phases begin at 1.
            parent_scope_id=parent_scope_id,
            attributes={},
        )
        return cls(process, (child,))

    def with_journal(self, path: str) -> Owners:
        """Return the same owners, of which that of the process says where its journal is, and so its last words."""
        *above, own = self.records
        own = attrs.evolve(own, attributes={**own.attributes, JOURNAL: path})
        return attrs.evolve(self, records=(*above, own))

    def begun(self) -> tuple[PhaseRecord, ...]:
        """Return the records as they are while open."""
        return self.records

    def ended(self, lanes: LaneSet, outcome: BaseException | None, ended_ns: int) -> list[PhaseRecord]:
        """Return the records as they have ended.

        Args:
            lanes: the rank's lanes.
            outcome: the exception that ended the session, or None.
            ended_ns: when, on the monotonic clock.
        """
        status = outcome_of(outcome)
        error: PhaseError | None = None
        if outcome is not None:
            policy = _errors.FULL if status is PhaseStatus.FAILED else _errors.REFERENCE
            error = _errors.describe_for_session(outcome, lanes, self.records[-1].scope_id, policy)
        return [_ended(record, lanes, status, error, ended_ns) for record in self.records]


def _record(lanes: LaneSet, facts: SessionFacts, process: ProcessIdentity, **fields: Any) -> PhaseRecord:
    return PhaseRecord(
        session_id=facts.identity.session_id,
        session_attempt=facts.identity.attempt,
        correlation_id=facts.correlation_id,
        path=(),
        sequence=0,
        status=PhaseStatus.ACTIVE,
        entered_ns=lanes.anchor.to_wall_ns(facts.started_ns),
        entered_monotonic_ns=facts.started_ns,
        process=process,
        **fields,
    )


def _attributes(facts: SessionFacts, **more: Any) -> dict[str, Any]:
    given = {"session.name": facts.name, "world_size": facts.identity.world_size, **more}
    return {f"stormphase.{name}": value for name, value in given.items() if value is not None}


def _ended(
    record: PhaseRecord, lanes: LaneSet, status: PhaseStatus, error: PhaseError | None, ended_ns: int
) -> PhaseRecord:
    record = attrs.evolve(
        record, status=status, ended_ns=lanes.anchor.to_wall_ns(ended_ns), ended_monotonic_ns=ended_ns
    )
    if error is None:
        return record
    return attrs.evolve(
        record,
        error_type=error.type,
        error_message=error.message,
        traceback=error.traceback if record.kind is not RecordKind.SESSION else None,
        root_cause_scope_id=error.root_cause_scope_id,
        root_cause_path=error.root_cause_path or None,
    )
