"""`PhaseBoundary`: what one enter or one exit says to the outside, its JSON, and the check that it fits together.

JSON may be hostile: its size is bounded, every field is checked, and nothing unknown is taken over in silence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs

from stormphase._model import PHASE_ENTER, PHASE_EXIT, PHASE_MISUSE, PHASE_OVERDUE, PhaseStatus
from stormphase._record_fields import MAX_SEQUENCE
from stormphase._status import TABLE

MAX_JSON_CHARS: Final = 8 * 1024 * 1024
PHASE_SCOPE: Final = "phase_scope"
SCHEMA_VERSION: Final = 1

_ACTIONS: Final = {PHASE_ENTER: "enter", PHASE_EXIT: "exit", PHASE_OVERDUE: "overdue"}
_EVENT_TYPES: Final = (*_ACTIONS, PHASE_MISUSE)
_FIELDS: Final = ("schema_version", "event_type", "context", "metadata", "scope_id", "path")
_NOT_FINITE: Final = "not_finite"
_NUMBERS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MAX_DEPTH: Final = 64
_MAX_INT: Final = 2**63 - 1
_SHOWN_CHARS: Final = 60
_HEX: Final = frozenset("0123456789abcdef")

_Test: TypeAlias = "Callable[[Any], bool]"


@attrs.frozen
class PhaseBoundary:
    """What one enter or one exit says to the outside.

    Attributes:
        event_type: "phase_enter" or "phase_exit"; "phase_misuse" for an exit that was refused where misuse is only
            recorded; "phase_overdue" for a phase that has been open for longer than its limit.
        context: the path as people read it, `train / step / forward`.
        metadata: `{"phase_scope": {...}}` and, where the caller gave some, its own metadata beside it. `phase_scope`
            has action, name, path (list), depth, scope_id, parent_scope_id, thread_id, thread_name, sequence,
            attributes (if any), timestamp_ns (wall clock, ns since the Unix epoch), monotonic_ns, status, step,
            session_id, session_attempt, rank, attempt (how often it was retried); where there is one, task_name,
            is_sync and retry_of_scope_id; on exit also duration_ns, self_ns, paused_ns and, if there was one, error,
            root_cause_path (list) and reason.
        scope_id: the phase's identity, 16 hex digits; also its OTel span id.
        path: the names from the outermost phase to this one.
    """

    event_type: str
    context: str
    metadata: dict[str, Any]
    scope_id: str
    path: tuple[str, ...]

    def to_json(self) -> str:
        """Return the boundary as one JSON object on one line, ASCII only; `from_json` reads an equal one.

        Numbers that JSON does not know (NaN, infinities) are null there, and told in `not_finite`.

        Raises:
            ValueError: if a field is wrong, or metadata of the caller's own is not made of None, bool, int, float, str,
                list and dict with string keys; the message names it.
        """
        check_boundary(self)
        places: list[list[Any]] = []
        metadata = _plain("metadata", self.metadata, [], places)
        fields = {
            "schema_version": SCHEMA_VERSION,
            "event_type": self.event_type,
            "context": self.context,
            "metadata": metadata,
            "scope_id": self.scope_id,
            "path": list(self.path),
        }
        if places:
            fields[_NOT_FINITE] = places
        return json.dumps(fields, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> PhaseBoundary:
        """Read what `to_json` wrote.

        Raises:
            ValueError: if it is no such JSON object, a field is missing, unknown or wrong, two of them contradict each
                other, or the schema is newer; the message names the field and what it must be.
        """
        fields = _object(text)
        _check_version(fields.get("schema_version"))
        for name in _FIELDS:
            if name not in fields:
                raise ValueError(f"{name!r} of a boundary is missing: write what PhaseBoundary.to_json() returns.")
        for name in fields:
            if name not in _FIELDS and name != _NOT_FINITE:
                raise ValueError(f"{name[:_SHOWN_CHARS]!a} is no field of a boundary: leave it out.")
        path = fields["path"]
        if type(path) is not list:
            raise _wrong("path", "must be a list of strings", path)
        boundary = cls(
            event_type=fields["event_type"],
            context=fields["context"],
            metadata=fields["metadata"],
            scope_id=fields["scope_id"],
            path=tuple(path),
        )
        check_boundary(boundary)
        _plain("metadata", boundary.metadata, [], [])
        _restore(boundary.metadata, fields.get(_NOT_FINITE, []))
        return boundary


def check_boundary(boundary: PhaseBoundary) -> None:
    """Check every field of a boundary by itself, and that they say the same of one phase.

    Raises:
        ValueError: if not; the message names the field and what it must be.
    """
    if boundary.event_type not in _EVENT_TYPES:
        raise _wrong("event_type", f"must be one of {', '.join(_EVENT_TYPES)}", boundary.event_type)
    _check("context", _TEXT, boundary.context)
    metadata = boundary.metadata
    if type(metadata) is not dict:
        raise _wrong("metadata", "must be an object", metadata)
    _check("path", _NAMES, list(boundary.path) if type(boundary.path) is tuple else boundary.path)
    if boundary.event_type == PHASE_MISUSE:
        _check("scope_id", _TEXT, boundary.scope_id)
        return
    _check("scope_id", _ID, boundary.scope_id)
    scope = metadata.get(PHASE_SCOPE)
    if not isinstance(scope, Mapping):
        raise _wrong(f"metadata.{PHASE_SCOPE}", "must be an object", scope)
    _check_scope(scope, boundary)


def _check_scope(scope: Mapping[str, Any], boundary: PhaseBoundary) -> None:
    for name, kind in _REQUIRED.items():
        if name not in scope:
            raise ValueError(f"{PHASE_SCOPE}.{name} of a boundary is missing: it {kind[1]}.")
        _check(f"{PHASE_SCOPE}.{name}", kind, scope[name])
    for name, kind in _OPTIONAL.items():
        if name in scope:
            _check(f"{PHASE_SCOPE}.{name}", kind, scope[name])
    path = list(boundary.path)
    for name, expected in (
        ("action", _ACTIONS[boundary.event_type]),
        ("scope_id", boundary.scope_id),
        ("path", path),
        ("name", path[-1] if path else None),
        ("depth", len(path)),
    ):
        if name in scope and scope[name] != expected:
            raise _wrong(f"{PHASE_SCOPE}.{name}", f"must be {expected!r:.200}, as the boundary says", scope[name])
    _check_status(boundary.event_type, PhaseStatus(scope["status"]))
    if scope.get("error") is not None:
        _check_error(scope["error"])


def _check_status(event_type: str, status: PhaseStatus) -> None:
    if event_type == PHASE_EXIT:
        if not TABLE.rules[status].is_final:
            raise _wrong(f"{PHASE_SCOPE}.status", "must be one that a phase ends with", status.value)
    elif status is not PhaseStatus.ACTIVE:
        raise _wrong(f"{PHASE_SCOPE}.status", "must be 'active' while the phase is open", status.value)


def _check_error(error: Mapping[str, Any]) -> None:
    for name, kind in _ERROR.items():
        if name not in error:
            raise ValueError(f"{PHASE_SCOPE}.error.{name} of a boundary is missing: it {kind[1]}.")
        _check(f"{PHASE_SCOPE}.error.{name}", kind, error[name])


def _check(name: str, kind: tuple[_Test, str], value: Any) -> None:
    test, problem = kind
    if not test(value):
        raise _wrong(name, problem, value)


def _wrong(name: str, problem: str, value: object) -> ValueError:
    return ValueError(f"{name!r} of a boundary {problem}, and is {ascii(value)[:_SHOWN_CHARS]}.")


def _or_none(kind: tuple[_Test, str]) -> tuple[_Test, str]:
    test, problem = kind
    return (lambda value: value is None or test(value)), f"{problem}, or null"


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 16 and set(value) <= _HEX  # noqa: PLR2004 - as the problem says


def _is_integer(value: Any) -> bool:
    return type(value) is int and -_MAX_INT - 1 <= value <= _MAX_INT


def _is_natural(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name.strip() for name in value)


_TEXT: Final = (lambda value: isinstance(value, str)), "must be a string"
_FLAG: Final = (lambda value: type(value) is bool), "must be true or false"
_OBJECT: Final = (lambda value: isinstance(value, Mapping)), "must be an object"
_ID: Final = _is_id, "must be 16 lower-case hex digits"
_INTEGER: Final = _is_integer, "must be a whole number of 64 bits"
_NATURAL: Final = _is_natural, "must be a whole number of 64 bits, from 0 on"
_NAMES: Final = _is_names, "must be a list of names, none of them blank"
_SEQUENCE: Final = (lambda value: _is_natural(value) and value <= MAX_SEQUENCE), f"must be from 0 to {MAX_SEQUENCE}"
_STATUS: Final = (
    lambda value: isinstance(value, str) and value in {status.value for status in PhaseStatus},
    f"must be one of {', '.join(PhaseStatus)}",
)

_REQUIRED: Final[Mapping[str, tuple[_Test, str]]] = {
    "session_id": _TEXT,
    "rank": _NATURAL,
    "parent_scope_id": _or_none(_ID),
    "sequence": _SEQUENCE,
    "timestamp_ns": _INTEGER,
    "status": _STATUS,
    "step": _or_none(_INTEGER),
    "thread_id": _or_none(_INTEGER),
    "thread_name": _or_none(_TEXT),
}
# A recorder of another make may leave these out.
_OPTIONAL: Final[Mapping[str, tuple[_Test, str]]] = {
    "action": _TEXT,
    "name": _TEXT,
    "path": _NAMES,
    "depth": _NATURAL,
    "scope_id": _ID,
    "monotonic_ns": _or_none(_INTEGER),
    "session_attempt": _NATURAL,
    "attempt": _NATURAL,
    "task_name": _or_none(_TEXT),
    "is_sync": _FLAG,
    "retry_of_scope_id": _or_none(_ID),
    "attributes": _OBJECT,
    "duration_ns": _NATURAL,
    "self_ns": _or_none(_INTEGER),
    "paused_ns": _or_none(_NATURAL),
    "open_ns": _NATURAL,
    "limit_ns": _NATURAL,
    "reason": _or_none(_TEXT),
    "error": _or_none(_OBJECT),
    "root_cause_path": _or_none(_NAMES),
}
_ERROR: Final[Mapping[str, tuple[_Test, str]]] = {
    "type": _TEXT,
    "message": _TEXT,
    "traceback": _or_none(_TEXT),
    "root_cause_scope_id": _ID,
}


def _object(text: object) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > MAX_JSON_CHARS:
        raise ValueError(f"A boundary must be a string of at most {MAX_JSON_CHARS} characters of JSON.")
    try:
        fields = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"A boundary must be a JSON object: {error}") from None
    if type(fields) is not dict:
        raise ValueError(f"A boundary must be a JSON object, not {type(fields).__name__}.")
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice: write each once")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON: write null, and where it stood in {_NOT_FINITE!r}")


def _check_version(version: Any) -> None:
    if type(version) is not int or version < 1:
        raise _wrong("schema_version", "must be a whole number from 1 on", version)
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"This boundary has schema version {version}, and this stormphase reads up to {SCHEMA_VERSION}. "
            "Install a newer stormphase to read it."
        )


def _plain(name: str, value: Any, at: list[str | int], places: list[list[Any]]) -> Any:
    """Return a copy that JSON takes, and note where numbers stand that JSON does not know."""
    kind = type(value)
    if len(at) > _MAX_DEPTH:
        raise _wrong(name, f"must be at most {_MAX_DEPTH} deep", value)
    if kind is dict:
        for key in value:
            if not isinstance(key, str):
                raise _wrong(name, "must have strings as keys", key)
        return {key: _plain(f"{name}.{key}"[:200], item, [*at, key], places) for key, item in value.items()}
    if kind is list:
        return [_plain(f"{name}[{index}]", item, [*at, index], places) for index, item in enumerate(value)]
    if kind is float and not math.isfinite(value):
        places.append([at, "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"])
        return None
    if value is None or kind in (bool, int, float) or isinstance(value, str):
        return value
    raise _wrong(name, "must be made of None, bool, int, float, str, list and dict", value)


def _restore(metadata: dict[str, Any], places: Any) -> None:
    """Put back the numbers that JSON does not know."""
    if not isinstance(places, list):
        raise _wrong(_NOT_FINITE, "must be a list", places)
    for place in places:
        try:
            at, number = place
            holder: Any = metadata
            for step in at[:-1]:
                holder = holder[step]
            if type(holder) not in (dict, list) or holder[at[-1]] is not None:
                raise KeyError(at)
            holder[at[-1]] = _NUMBERS[number]
        except (TypeError, ValueError, LookupError):
            raise _wrong(_NOT_FINITE, "must have pairs of a place that is null and a number", place) from None
