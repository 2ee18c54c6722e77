"""Records from boundaries: pure, so that a store, a test and a user's own sink read one story from one pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stormphase._model import PHASE_ENTER, PHASE_EXIT, PhaseStatus, ProcessIdentity
from stormphase._phase_boundary import PHASE_SCOPE, PhaseBoundary, check_boundary
from stormphase._record import OutputLine, PhaseRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NO_ATTRIBUTES: Final[Mapping[str, Any]] = {}
_STATUSES: Final = {status.value: status for status in PhaseStatus}
# What an enter and its exit say alike; the thread and the task are another's where the phase was moved.
_ALIKE: Final = (
    "session_id",
    "session_attempt",
    "rank",
    "parent_scope_id",
    "sequence",
    "attempt",
    "retry_of_scope_id",
    "step",
    "is_sync",
)


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
        ValueError: if there is neither, they are of two phases, of another kind, or do not fit together, an argument or
            a field is wrong (the message names it), or an exit whose enter is missing does not say when that was: an
            end is never guessed at.
    """
    _check_arguments(enter, exit, process, correlation_id, output)
    if exit is None:
        if enter is None:
            raise ValueError("A record needs a boundary: give an enter, an exit or both.")
        return _open(enter, process, correlation_id, output)
    scope = _scope_of(exit, PHASE_EXIT)
    ended_ns = scope["timestamp_ns"]
    if enter is not None:
        entered = _scope_of(enter, PHASE_ENTER)
        _check_pair(enter, entered, exit, scope)
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


def _check_arguments(enter: Any, leave: Any, process: Any, correlation_id: Any, output: Any) -> None:
    """Check that each argument of `record_of` is of its kind.

    Raises:
        ValueError: if not; the message names it, and where to have the right one from.
    """
    for name, given in (("enter", enter), ("exit", leave)):
        if not isinstance(given, (PhaseBoundary, type(None))):
            raise _wrong_argument(
                name,
                given,
                "a PhaseBoundary: what an enter, an exit or a sink was given, or PhaseBoundary.from_json(...)",
            )
    if not isinstance(process, (ProcessIdentity, type(None))):
        raise _wrong_argument("process", process, "a ProcessIdentity, or None")
    if not isinstance(correlation_id, (str, type(None))):
        raise _wrong_argument("correlation_id", correlation_id, "a string, or None")
    is_lines = isinstance(output, (list, tuple)) and all(isinstance(line, OutputLine) for line in output)
    if output is not None and not is_lines:
        raise _wrong_argument("output", output, "a list or tuple of OutputLine(time_ns, stream, text), or None")


def _wrong_argument(name: str, given: object, fix: str) -> ValueError:
    return ValueError(f"{name!r} of record_of is {given!a:.60}: give {fix}.")


def _scope_of(boundary: PhaseBoundary, event_type: str) -> Mapping[str, Any]:
    """Return what a boundary says of its phase.

    Raises:
        ValueError: if it is of another kind, or a field of it is wrong.
    """
    if boundary.event_type != event_type:
        raise ValueError(
            f"This is a {boundary.event_type!r:.60} boundary, and a {event_type} is asked for: "
            "give the enter first and the exit second, or swap them."
        )
    check_boundary(boundary)
    scope: Mapping[str, Any] = boundary.metadata[PHASE_SCOPE]
    return scope


def _check_pair(
    enter: PhaseBoundary, entered: Mapping[str, Any], leave: PhaseBoundary, ended: Mapping[str, Any]
) -> None:
    """Check that an enter and an exit, each right by itself, are of one phase and in order.

    Raises:
        ValueError: if not; the message names what differs.
    """
    if enter.scope_id != leave.scope_id:
        raise ValueError(f"These boundaries are of two phases: {enter.scope_id} and {leave.scope_id}.")
    if enter.path != leave.path:
        raise ValueError(
            f"These boundaries are of two phases: their path is {enter.path!r:.80} and {leave.path!r:.80}."
        )
    for name in _ALIKE:
        if name in entered and name in ended and entered[name] != ended[name]:
            raise ValueError(
                f"These boundaries are of two phases: their {name} is {entered[name]!r:.60} and {ended[name]!r:.60}."
            )
    entered_ns, ended_ns = entered["timestamp_ns"], ended["timestamp_ns"]
    if ended_ns < entered_ns:
        raise ValueError(
            f"'timestamp_ns' of the exit of {leave.scope_id} must not be before its enter's, and is "
            f"{entered_ns - ended_ns} ns before it."
        )
    if "duration_ns" in ended and ended["duration_ns"] != ended_ns - entered_ns:
        raise ValueError(
            f"'duration_ns' of the exit of {leave.scope_id} must be {ended_ns - entered_ns}, the time since its enter, "
            f"and is {ended['duration_ns']}."
        )
