"""Records from boundaries: pure, so that a store, a test and a user's own sink read one story from one pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stormphase._model import PHASE_ENTER, PHASE_EXIT, PhaseStatus
from stormphase._record import PhaseRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stormphase._model import PhaseBoundary, ProcessIdentity
    from stormphase._record import OutputLine

_PHASE_SCOPE: Final = "phase_scope"
_NO_ATTRIBUTES: Final[Mapping[str, Any]] = {}
_STATUSES: Final = {status.value: status for status in PhaseStatus}


def record_of(
    enter: PhaseBoundary | None = None,
    exit: PhaseBoundary | None = None,  # noqa: A002 - the word for it
    *,
    process: ProcessIdentity | None = None,
    correlation_id: str | None = None,
    output: Sequence[OutputLine] | None = (),
) -> PhaseRecord:
    """Return the record that a pair of boundaries tells of. Pure; thread-, fork- and async-safe.

    An exit says all that its enter said, so it may stand alone. Without one, the phase is open.

    Args:
        enter: the phase's enter boundary, or None.
        exit: its exit boundary, or None while it is open.
        process: the process that it belongs to.
        correlation_id: what else the run is known by: the caller's word, else the trace id.
        output: what was captured while it was open; None where nobody knows.

    Raises:
        ValueError: if there is neither, they are of two phases or of another kind, or an exit whose enter is missing
            does not say when that was: an end is never guessed at.
    """
    if exit is None:
        if enter is None:
            raise ValueError("A record needs a boundary: give an enter, an exit or both.")
        return _open(enter, process, correlation_id, output)
    scope = _scope_of(exit, PHASE_EXIT)
    ended_ns = scope["timestamp_ns"]
    if enter is not None:
        entered = _scope_of(enter, PHASE_ENTER)
        if enter.scope_id != exit.scope_id or entered["session_id"] != scope["session_id"]:
            raise ValueError(f"These boundaries are of two phases: {enter.scope_id} and {exit.scope_id}.")
        entered_ns = entered["timestamp_ns"]
    elif "duration_ns" in scope:
        entered_ns = ended_ns - scope["duration_ns"]
    else:
        raise ValueError(
            f"The exit of {exit.scope_id} does not say when the phase was entered: give its enter as well."
        )
    get = scope.get
    monotonic_ns = get("monotonic_ns")
    error = get("error") or _NO_ATTRIBUTES
    cause_path = get("root_cause_path")
    return PhaseRecord(
        session_id=scope["session_id"],
        session_attempt=get("session_attempt", 0),
        correlation_id=correlation_id,
        rank=scope["rank"],
        scope_id=exit.scope_id,
        parent_scope_id=scope["parent_scope_id"],
        path=exit.path,
        sequence=scope["sequence"],
        attempt=get("attempt", 0),
        retry_of_scope_id=get("retry_of_scope_id"),
        step=scope["step"],
        status=_STATUSES[scope["status"]],
        reason=get("reason"),
        entered_ns=entered_ns,
        ended_ns=ended_ns,
        entered_monotonic_ns=None if monotonic_ns is None else monotonic_ns - (ended_ns - entered_ns),
        ended_monotonic_ns=monotonic_ns,
        self_ns=get("self_ns"),
        paused_ns=get("paused_ns"),
        thread_id=scope["thread_id"],
        thread_name=scope["thread_name"],
        task_name=get("task_name"),
        is_sync=get("is_sync", False),
        attributes=get("attributes", _NO_ATTRIBUTES),
        error_type=error.get("type"),
        error_message=error.get("message"),
        traceback=error.get("traceback"),
        root_cause_scope_id=error.get("root_cause_scope_id"),
        root_cause_path=None if cause_path is None else tuple(cause_path),
        process=process,
        output=None if output is None else tuple(output),
    )


def _open(
    enter: PhaseBoundary,
    process: ProcessIdentity | None,
    correlation_id: str | None,
    output: Sequence[OutputLine] | None,
) -> PhaseRecord:
    scope = _scope_of(enter, PHASE_ENTER)
    get = scope.get
    return PhaseRecord(
        session_id=scope["session_id"],
        session_attempt=get("session_attempt", 0),
        correlation_id=correlation_id,
        rank=scope["rank"],
        scope_id=enter.scope_id,
        parent_scope_id=scope["parent_scope_id"],
        path=enter.path,
        sequence=scope["sequence"],
        attempt=get("attempt", 0),
        retry_of_scope_id=get("retry_of_scope_id"),
        step=scope["step"],
        status=PhaseStatus.ACTIVE,
        entered_ns=scope["timestamp_ns"],
        entered_monotonic_ns=get("monotonic_ns"),
        thread_id=scope["thread_id"],
        thread_name=scope["thread_name"],
        task_name=get("task_name"),
        is_sync=get("is_sync", False),
        attributes=get("attributes", _NO_ATTRIBUTES),
        process=process,
        output=None if output is None else tuple(output),
    )


def _scope_of(boundary: PhaseBoundary, event_type: str) -> Mapping[str, Any]:
    if boundary.event_type != event_type:
        raise ValueError(f"This is a {boundary.event_type} boundary, and a {event_type} is asked for: swap them.")
    scope: Mapping[str, Any] = boundary.metadata[_PHASE_SCOPE]
    return scope
