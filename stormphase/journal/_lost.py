"""What a dead process left in its journal: phases that never ended, which are LOST, and ended ones that nobody has."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._model import PhaseStatus
from stormphase._record import PhaseRecord
from stormphase._status import TABLE

if TYPE_CHECKING:
    from stormphase._model import RankIdentity
    from stormphase.journal._image import JournalImage, JournalPhase

LOST_ERROR_TYPE: Final = "stormphase.Lost"
LOST_MESSAGE: Final = "the process died while this was open"
RECOVERY: Final = "stormphase recover"

_LAST_NS: Final = 2**62  # the year 2116: what a damaged file may say is no reason to fail


def lost_phases(image: JournalImage) -> tuple[JournalPhase, ...]:
    """Return what was open when the process died, as LOST since it was last known alive.

    The caller has proof that it is dead.
    """
    return tuple(
        attrs.evolve(phase, status=PhaseStatus.LOST, ended_ns=max(image.heartbeat_ns, phase.entered_ns))
        for phase in image.open
    )


def unsent_phases(image: JournalImage) -> tuple[JournalPhase, ...]:
    """Return the ended phases that the process's bridge never got to hand over."""
    return tuple(phase for phase in image.ended if not phase.is_handed_over)


def lost_reason(image: JournalImage) -> str:
    """Return why the phases are LOST, as far as the journal itself tells."""
    if image.stop_signal is None:
        return "its process died"
    try:
        name = signal.Signals(image.stop_signal).name
    except ValueError:
        name = f"signal {image.stop_signal}"
    return f"its process died after {name} had asked it to stop"


def lost_records(image: JournalImage, evidence: str) -> tuple[PhaseRecord, ...]:
    """Return one record for each phase that was open when the process died, in the journal's order.

    Args:
        image: the journal of a process that is dead.
        evidence: how that is known; the table of statuses lets nothing become LOST without it.
    """
    to_wall_ns = image.anchor.to_wall_ns
    reason = lost_reason(image)
    owner = _owner(image.identity, image.process.pid)
    records = []
    for was, phase in zip(image.open, lost_phases(image), strict=True):
        ended_ns = phase.entered_ns if phase.ended_ns is None else phase.ended_ns
        change = TABLE.change(
            was.status,
            PhaseStatus.LOST,
            owner=owner,
            actor=RECOVERY,
            at_ns=max(0, min(to_wall_ns(ended_ns), _LAST_NS)),
            evidence=evidence,
        )
        records.append(
            PhaseRecord(
                session_id=image.identity.session_id,
                session_attempt=image.identity.attempt,
                rank=image.identity.rank,
                scope_id=phase.scope_id,
                parent_scope_id=phase.parent_scope_id,
                path=phase.path,
                sequence=phase.sequence,
                attempt=phase.attempt,
                retry_of_scope_id=phase.retry_of,
                step=phase.step,
                status=change.to_status,
                reason=reason,
                evidence=change.evidence,
                entered_ns=to_wall_ns(phase.entered_ns),
                ended_ns=to_wall_ns(ended_ns),
                entered_monotonic_ns=phase.entered_ns,
                ended_monotonic_ns=ended_ns,
                paused_ns=phase.paused_ns,
                thread_id=phase.thread_id,
                thread_name=phase.thread_name,
                task_name=phase.task_name,
                is_sync=phase.is_sync,
                attributes=phase.attributes,
                error_type=LOST_ERROR_TYPE,
                error_message=LOST_MESSAGE,
                root_cause_scope_id=phase.scope_id,
                root_cause_path=phase.path,
                process=image.process,
            )
        )
    return tuple(records)


def _owner(identity: RankIdentity, pid: int) -> str:
    return f"rank {identity.rank}, process {pid}"
