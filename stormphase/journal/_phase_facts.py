"""What a journal keeps of a phase beyond numbers: its attributes alone, or an envelope of all there is to say."""

from __future__ import annotations

import marshal
import threading
from typing import TYPE_CHECKING, Any, Final

from stormphase._ids import scope_id_number
from stormphase._model import PhaseStatus
from stormphase._phase import PhaseHandle
from stormphase.journal import _format

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stormphase._lane import Lane

    PhaseTrace = Callable[[PhaseHandle], Mapping[str, Any] | None]

_MARSHAL_VERSION: Final = 2
_MAX_PATH_DEPTH: Final = 16
_MAX_TYPE_CHARS: Final = 1_024
_MAX_ERROR_CHARS: Final = 4_096
_CUT_NOTE_BYTES: Final = 64
_SHORT_MESSAGE_CHARS: Final = 1_024
_LEAST_TRACEBACK_BYTES: Final = 512
_MAX_LABEL_CHARS: Final = 256
# Where there is no room for all, this is shortened or left out first.
_LEAST_NEEDED: Final = ("late", "attributes", "error", "path", "status_text", "task", "thread_name", "trace")


def entered_facts(phase: PhaseHandle, phase_trace: PhaseTrace | None) -> tuple[int, bytes]:
    """Return the flags and the blob of a phase that is open; no blob where numbers say it all."""
    attributes = phase._attributes
    flags, envelope = _envelope_of(phase, phase_trace)
    if envelope:
        if attributes:
            envelope["attributes"] = attributes
        return flags | _format.IS_ENVELOPE, encoded(envelope, _format.MAX_BLOB)
    if not attributes:
        return flags, b""
    blob = marshal.dumps(attributes, _MARSHAL_VERSION)
    if len(blob) > _format.MAX_BLOB:
        return flags | _format.IS_ENVELOPE, encoded({"attributes": attributes}, _format.MAX_BLOB)
    return flags, blob


def all_facts(phase: PhaseHandle, phase_trace: PhaseTrace | None, *, thread_id: int) -> tuple[int, bytes]:
    """Return the flags and the blob of a phase with what has come since its enter: pauses, attributes, its error.

    Args:
        phase: the phase, open or ended.
        phase_trace: says which phases have a trace of their own.
        thread_id: the thread whose segment it will stand in; if it is another's phase, it says so.
    """
    flags, envelope = _envelope_of(phase, phase_trace)
    if phase._lane.thread_id != thread_id:
        envelope.update(thread_facts(phase._lane))
    if phase._attributes:
        envelope["attributes"] = phase._attributes
    flags |= _format.IS_HANDED_OVER * _is_kept_back(phase)
    extra = phase._extra
    if extra is not None:
        if extra.late:
            envelope["late"] = extra.late.copy()  # Another thread may set one meanwhile.
        if extra.paused_ns:
            envelope["paused_ns"] = extra.paused_ns
        if extra.paused_since_ns is not None:
            envelope["paused_since_ns"] = extra.paused_since_ns
            flags |= _format.IS_PAUSED
        if extra.status_text is not None:
            envelope["status_text"] = extra.status_text[:_MAX_ERROR_CHARS]
        error = extra.error
        if error is not None:
            envelope["error"] = {
                "type": error.type[:_MAX_TYPE_CHARS],
                "message": error.message[:_MAX_ERROR_CHARS],
                "traceback": error.traceback,
                "root": error.root_cause_scope_id,
            }
    if not envelope:
        return flags, b""
    return flags | _format.IS_ENVELOPE, encoded(envelope)


def has_more_to_say(phase: PhaseHandle) -> bool:
    """Whether an ended phase has something to say that its enter did not know, and that numbers cannot tell."""
    extra = phase._extra
    if extra is None:
        return False
    has_ended_otherwise = extra.error is not None or extra.status_text is not None or _is_kept_back(phase)
    return has_ended_otherwise or bool(extra.late or extra.paused_ns)


def _is_kept_back(phase: PhaseHandle) -> bool:
    """Whether a filter keeps the success of a phase from the bridge, so that nobody will ever hand it over."""
    return phase._extra is not None and phase._extra.is_quiet and phase._status is PhaseStatus.SUCCEEDED


def thread_facts(lane: Lane) -> dict[str, Any]:
    """Return what an envelope says of its phase's thread, where its segment does not."""
    return {
        "thread_id": lane.thread_id,
        "thread_name": lane.thread_name[:_MAX_LABEL_CHARS],
        "is_main": lane.thread_id == threading.main_thread().ident,
    }


def encoded(envelope: dict[str, Any], max_bytes: int = _format.MAX_ENVELOPE) -> bytes:
    """Return an envelope as a blob of at most `max_bytes` bytes; what does not fit is left out, and it says so."""
    blob = marshal.dumps(envelope, _MARSHAL_VERSION)
    if len(blob) <= max_bytes:
        return blob
    envelope = {**envelope, "cut": True}
    if envelope.get("error"):
        envelope["error"] = _short_error(envelope, max_bytes)
    for key in _LEAST_NEEDED:
        value = envelope.get(key)
        if isinstance(value, dict) and key in ("attributes", "late"):
            envelope[key] = _first_of(value, max_bytes // 3)
        blob = marshal.dumps(envelope, _MARSHAL_VERSION)
        if len(blob) <= max_bytes:
            return blob
        if key not in ("attributes", "late"):
            envelope.pop(key, None)
    return marshal.dumps({"cut": True}, _MARSHAL_VERSION)


def _short_error(envelope: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """Return the error of an envelope that is too large with as much of the traceback's end as there is room for."""
    traceback = envelope["error"]["traceback"]
    error = {**envelope["error"], "traceback": None}
    room = max_bytes - len(marshal.dumps({**envelope, "error": error}, _MARSHAL_VERSION)) - _CUT_NOTE_BYTES
    if room < 0 and len(error["message"]) > _SHORT_MESSAGE_CHARS:
        error["message"] = error["message"][: _SHORT_MESSAGE_CHARS - 1] + "\N{HORIZONTAL ELLIPSIS}"
        room = max_bytes - len(marshal.dumps({**envelope, "error": error}, _MARSHAL_VERSION)) - _CUT_NOTE_BYTES
    if traceback is not None and room >= _LEAST_TRACEBACK_BYTES:
        end = traceback.encode("utf-8", "surrogatepass")[-room:].decode("utf-8", "ignore")
        error["traceback"] = f"... {len(traceback) - len(end)} characters cut ...\n{end}"
    return error


def parent_sequence(phase: PhaseHandle) -> int:
    """Return the number of the phase that this one hangs under, on whatever lane of this process; 0 for none."""
    parent = phase.parent
    return parent._sequence if parent is not None and parent._lane.id_base == phase._lane.id_base else 0


def step_word(step: int | None) -> int:
    """Return a step as its word."""
    return _format.NO_STEP if step is None else step


def _envelope_of(phase: PhaseHandle, phase_trace: PhaseTrace | None) -> tuple[int, dict[str, Any]]:
    path = phase._path
    extra = phase._extra
    flags, envelope = _kinship_of(phase)
    if extra is not None:
        if extra.is_sync:
            flags |= _format.IS_SYNC
        if extra.attempt:
            envelope["attempt"] = extra.attempt
        if extra.retry_of is not None:
            envelope["retry_of"] = extra.retry_of.scope_id
    if not path.number:
        envelope["name"] = path.name
        if path.depth <= _MAX_PATH_DEPTH:
            envelope["path"] = list(path.names)
    trace = None if phase_trace is None else phase_trace(phase)
    if trace is not None:
        envelope["trace"] = dict(trace)
    elif _has_other_id(phase):
        envelope["trace"] = {"root_id": phase.scope_id}
    return flags, envelope


def _kinship_of(phase: PhaseHandle) -> tuple[int, dict[str, Any]]:
    """Return flags and envelope of what numbers alone do not tell: a parent elsewhere, or with another id, a task."""
    flags = 0
    envelope: dict[str, Any] = {}
    lane = phase._lane
    parent = phase.parent
    if not isinstance(phase._below, PhaseHandle):
        if lane.task_name is not None:
            envelope["task"] = lane.task_name[:_MAX_LABEL_CHARS]
        if parent is not None:
            flags |= _format.IS_ROOT
    if parent is not None and (parent._lane.id_base != lane.id_base or _has_other_id(parent)):
        envelope["parent"] = parent.scope_id
    return flags, envelope


def _has_other_id(phase: PhaseHandle) -> bool:
    """Whether the phase's id is not what its number gives: it is a trace's root, or another maker's tracer chose it."""
    return phase.scope_id_number != scope_id_number(phase._lane.id_base, phase._sequence)


def _first_of(values: Mapping[str, Any], max_bytes: int) -> dict[str, Any]:
    """Return the first values that fit into so many bytes, passing over those that do not."""
    kept: dict[str, Any] = {}
    left = max_bytes
    for key, value in values.items():
        size = len(marshal.dumps({key: value}, _MARSHAL_VERSION))
        if size <= left:
            kept[key] = value
            left -= size
    return kept
