"""Records straight from phases: what `record_of` makes of their boundaries, at a third of the price.

A store's worker makes tens of thousands a second, and holds the GIL while it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stormphase._boundary import all_attributes
from stormphase._model import PhaseStatus
from stormphase._record import PhaseRecord

if TYPE_CHECKING:
    from stormphase._model import ProcessIdentity
    from stormphase._phase import PhaseHandle
    from stormphase._record import OutputLine


def ended_record(
    phase: PhaseHandle,
    *,
    process: ProcessIdentity | None,
    correlation_id: str | None,
    output: tuple[OutputLine, ...],
) -> PhaseRecord:
    """Return the record of an ended phase: the same as `record_of(exit=exit_boundary(phase))`."""
    lane = phase._lane
    lanes = lane.lanes
    anchor = lanes.anchor
    to_wall_ns = anchor.wall_ns - anchor.monotonic_ns
    entered_ns = phase._entered_ns
    ended_ns = phase._ended_ns
    parent = phase.parent
    extra = phase._extra
    if extra is None:
        return PhaseRecord(
            session_id=lanes.session_id,
            session_attempt=lanes.attempt,
            correlation_id=correlation_id,
            rank=lanes.rank,
            scope_id=phase.scope_id,
            parent_scope_id=None if parent is None else parent.scope_id,
            path=phase._path.names,
            sequence=phase._sequence,
            step=phase._step,
            status=phase._status,
            entered_ns=entered_ns + to_wall_ns,
            ended_ns=ended_ns + to_wall_ns,
            entered_monotonic_ns=entered_ns,
            ended_monotonic_ns=ended_ns,
            self_ns=ended_ns - entered_ns - phase._children_ns,
            paused_ns=0,
            thread_id=lane.thread_id,
            thread_name=lane.thread_name,
            task_name=lane.task_name,
            attributes=phase._attributes or {},
            process=process,
            output=output,
        )
    paused_ns = extra.paused_ns
    error = extra.error
    return PhaseRecord(
        session_id=lanes.session_id,
        session_attempt=lanes.attempt,
        correlation_id=correlation_id,
        rank=lanes.rank,
        scope_id=phase.scope_id,
        parent_scope_id=None if parent is None else parent.scope_id,
        path=phase._path.names,
        sequence=phase._sequence,
        attempt=extra.attempt,
        retry_of_scope_id=None if extra.retry_of is None else extra.retry_of.scope_id,
        step=phase._step,
        status=phase._status,
        reason=extra.status_text,
        entered_ns=entered_ns + to_wall_ns,
        ended_ns=ended_ns + to_wall_ns,
        entered_monotonic_ns=entered_ns,
        ended_monotonic_ns=ended_ns,
        self_ns=ended_ns - entered_ns - paused_ns - phase._children_ns,
        paused_ns=paused_ns,
        thread_id=lane.thread_id,
        thread_name=lane.thread_name,
        task_name=lane.task_name,
        is_sync=extra.is_sync,
        attributes=all_attributes(phase) or {},
        error_type=None if error is None else error.type,
        error_message=None if error is None else error.message,
        traceback=None if error is None else error.traceback,
        root_cause_scope_id=None if error is None else error.root_cause_scope_id,
        root_cause_path=None if error is None else error.root_cause_path,
        process=process,
        output=output,
    )


def open_record(phase: PhaseHandle, *, process: ProcessIdentity | None, correlation_id: str | None) -> PhaseRecord:
    """Return the record of a phase as it was when it was entered: the same as `record_of(enter_boundary(phase))`."""
    lane = phase._lane
    lanes = lane.lanes
    parent = phase.parent
    extra = phase._extra
    retry_of = None if extra is None else extra.retry_of
    return PhaseRecord(
        session_id=lanes.session_id,
        session_attempt=lanes.attempt,
        correlation_id=correlation_id,
        rank=lanes.rank,
        scope_id=phase.scope_id,
        parent_scope_id=None if parent is None else parent.scope_id,
        path=phase._path.names,
        sequence=phase._sequence,
        attempt=0 if extra is None else extra.attempt,
        retry_of_scope_id=None if retry_of is None else retry_of.scope_id,
        step=phase._step,
        status=PhaseStatus.ACTIVE,
        entered_ns=lanes.anchor.to_wall_ns(phase._entered_ns),
        entered_monotonic_ns=phase._entered_ns,
        thread_id=lane.thread_id,
        thread_name=lane.thread_name,
        task_name=lane.task_name,
        is_sync=extra is not None and extra.is_sync,
        attributes=phase._attributes or {},
        process=process,
        output=None,  # It is stored with the end; until then a store knows nothing of it.
    )
