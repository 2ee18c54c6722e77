"""The open records of what phases belong to, as a store is given them: the session, its rank, a forked process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from stormphase import _errors
from stormphase._model import PhaseStatus, ProcessIdentity
from stormphase._owner_records import OwnerFacts, as_ended, child_record, rank_records, with_journal
from stormphase._record import PhaseRecord
from stormphase._status import session_status_of

if TYPE_CHECKING:
    from stormphase._lanes import LaneSet
    from stormphase._model import PhaseError
    from stormphase._owner_records import SessionFacts


@attrs.frozen
class Owners:
    """The open records of one process, the outermost first, and which process that is."""

    process: ProcessIdentity
    records: tuple[PhaseRecord, ...]

    @classmethod
    def of_rank(cls, lanes: LaneSet, facts: SessionFacts, process: ProcessIdentity) -> Owners:
        """Return the rank's record and, on rank 0, which writes it, the session's."""
        return cls(process, rank_records(_facts(lanes, facts, process, facts.started_ns)))

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
        own = _facts(lanes, facts, process, forked_ns)
        return cls(process, (child_record(own, id_base=lanes.id_base, parent_scope_id=parent_scope_id),))

    def with_journal(self, path: str) -> Owners:
        """Return the same owners, of which that of the process says where its journal is, and so its last words."""
        *above, own = self.records
        return attrs.evolve(self, records=(*above, with_journal(own, path)))

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
        status = session_status_of(outcome)
        error: PhaseError | None = None
        if outcome is not None and status is not PhaseStatus.SUCCEEDED:
            policy = _errors.FULL if status is PhaseStatus.FAILED else _errors.REFERENCE
            error = _errors.describe_for_session(outcome, lanes, self.records[-1].scope_id, policy)
        wall_ns = lanes.anchor.to_wall_ns(ended_ns)
        return [
            as_ended(record, status, error, ended_ns=wall_ns, ended_monotonic_ns=ended_ns) for record in self.records
        ]


def _facts(lanes: LaneSet, facts: SessionFacts, process: ProcessIdentity, started_ns: int) -> OwnerFacts:
    return OwnerFacts(
        identity=facts.identity,
        process=process,
        name=facts.name,
        correlation_id=facts.correlation_id,
        caller_scope_id=facts.caller_scope_id,
        entered_ns=lanes.anchor.to_wall_ns(started_ns),
        entered_monotonic_ns=started_ns,
        launch=facts.launch,
    )
