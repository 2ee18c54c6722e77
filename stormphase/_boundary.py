"""Boundaries of handles: what one enter or one exit says to the outside. Built where they are needed, by workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stormphase._model import PHASE_ENTER, PHASE_EXIT, PHASE_MISUSE, PhaseStatus
from stormphase._phase_boundary import PHASE_SCOPE, PhaseBoundary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._phase import PhaseHandle

_ACTIVE: Final = PhaseStatus.ACTIVE.value


def enter_boundary(phase: PhaseHandle, metadata: Mapping[str, Any] | None = None) -> PhaseBoundary:
    """Return what the phase's enter says: its state as it was then, also if it has ended since."""
    scope = _scope(phase, "enter", phase._entered_ns, phase._attributes)
    scope["status"] = _ACTIVE
    return _boundary(PHASE_ENTER, "Phase entered: ", phase, scope, metadata)


def exit_boundary(phase: PhaseHandle, metadata: Mapping[str, Any] | None = None) -> PhaseBoundary:
    """Return what the exit of an ended phase says."""
    scope = _scope(phase, "exit", phase._ended_ns, all_attributes(phase))
    scope["status"] = phase._status._value_  # `value` is a Python function until 3.12
    scope["duration_ns"] = duration_ns(phase)
    scope["self_ns"] = self_ns(phase)
    scope["paused_ns"] = paused_ns(phase)
    extra = phase._extra
    if extra is not None:
        if extra.status_text is not None:
            scope["reason"] = extra.status_text
        if extra.error is not None:
            scope["error"] = extra.error.to_dict()
            scope["root_cause_path"] = list(extra.error.root_cause_path)
    return _boundary(PHASE_EXIT, "Phase exited: ", phase, scope, metadata)


def open_boundary(phase: PhaseHandle, event_type: str, at_ns: int, limit_ns: int) -> PhaseBoundary:
    """Return what is said of a phase that is still open at `at_ns` and may be so for `limit_ns`, both monotonic."""
    scope = _scope(phase, "overdue", at_ns, all_attributes(phase))
    scope["status"] = _ACTIVE
    scope["open_ns"] = at_ns - phase._entered_ns
    scope["limit_ns"] = limit_ns
    return _boundary(event_type, "Phase overdue: ", phase, scope, None)


def misuse_boundary(problem: str, *, scope_id: str = "", path: tuple[str, ...] = ()) -> PhaseBoundary:
    """Return what stands for an exit that was refused where misuse is only recorded: nothing has ended."""
    return PhaseBoundary(event_type=PHASE_MISUSE, context=problem, metadata={}, scope_id=scope_id, path=path)


def duration_ns(phase: PhaseHandle) -> int:
    """Return the time from enter to exit of an ended phase, pauses included."""
    return phase._ended_ns - phase._entered_ns


def paused_ns(phase: PhaseHandle) -> int:
    """Return how long an ended phase was paused."""
    return 0 if phase._extra is None else phase._extra.paused_ns


def self_ns(phase: PhaseHandle) -> int:
    """Return an ended phase's own time: its duration without its pauses and without what ran on top of it."""
    return phase._ended_ns - phase._entered_ns - paused_ns(phase) - phase._children_ns


def all_attributes(phase: PhaseHandle) -> dict[str, Any] | None:
    """Return the attributes given at enter together with those set later; the later one wins."""
    extra = phase._extra
    if extra is None or not extra.late:
        return phase._attributes
    return {**(phase._attributes or {}), **extra.late}


def _scope(phase: PhaseHandle, action: str, when_ns: int, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    lane = phase._lane
    lanes = lane.lanes
    path = phase._path
    parent = phase.parent
    scope: dict[str, Any] = {
        "action": action,
        "name": path.name,
        "path": list(path.names),
        "depth": path.depth,
        "scope_id": phase.scope_id,
        "parent_scope_id": None if parent is None else parent.scope_id,
        "thread_id": lane.thread_id,
        "thread_name": lane.thread_name,
        "sequence": phase._sequence,
        "timestamp_ns": lanes.anchor.to_wall_ns(when_ns),
        "monotonic_ns": when_ns,
        "step": phase._step,
        "session_id": lanes.session_id,
        "session_attempt": lanes.attempt,
        "rank": lanes.rank,
        "attempt": 0,
    }
    if lane.task_name is not None:
        scope["task_name"] = lane.task_name
    extra = phase._extra
    if extra is not None:
        scope["attempt"] = extra.attempt
        if extra.is_sync:
            scope["is_sync"] = True
        if extra.retry_of is not None:
            scope["retry_of_scope_id"] = extra.retry_of.scope_id
    if attributes:
        scope["attributes"] = dict(attributes)
    return scope


def _boundary(
    event_type: str, verb: str, phase: PhaseHandle, scope: dict[str, Any], metadata: Mapping[str, Any] | None
) -> PhaseBoundary:
    path = phase._path
    return PhaseBoundary(
        event_type=event_type,
        context=verb + path.text,
        metadata={**metadata, PHASE_SCOPE: scope} if metadata else {PHASE_SCOPE: scope},
        scope_id=scope["scope_id"],
        path=path.names,
    )
