"""What a record is made of, and how each of its fields is checked when it is read from JSON, which may be hostile."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs

from stormphase._model import PhaseStatus, ProcessIdentity

MAX_SEQUENCE: Final = (1 << 40) - 1

_MIN_INT: Final = -(1 << 63)
_MAX_INT: Final = (1 << 63) - 1
_SHOWN_CHARS: Final = 60


class RecordKind(str, enum.Enum):
    """What a record tells of; `PROCESS` is one that a rank forked or that works for it."""

    SESSION = "session"
    RANK = "rank"
    PROCESS = "process"
    PHASE = "phase"

    __hash__ = str.__hash__

    def __str__(self) -> str:
        """Return the lower-case value, also on Pythons whose format() would give the member's name."""
        return self.value


@attrs.frozen
class OutputLine:
    """One captured line.

    Attributes:
        time_ns: when it was written, in nanoseconds since the Unix epoch.
        stream: "stdout", "stderr", "log", "warning", "traceback", or "cut" for a line that says what was left out.
        text: the line, without its end.
    """

    time_ns: int
    stream: str
    text: str


def wrong(name: str, problem: str, value: object) -> ValueError:
    """Return the error that says which field is wrong, and how."""
    return ValueError(f"{name!r} of a record {problem}, and is {ascii(value)[:_SHOWN_CHARS]}.")


_Check: TypeAlias = "Callable[[str, Any], Any]"


def _text(name: str, value: Any) -> str:
    if type(value) is not str:
        raise wrong(name, "must be a string", value)
    return value


def _integer(name: str, value: Any) -> int:
    if type(value) is not int or not _MIN_INT <= value <= _MAX_INT:
        raise wrong(name, "must be a whole number of 64 bits", value)
    return value


def _natural(name: str, value: Any) -> int:
    if _integer(name, value) < 0:
        raise wrong(name, "must not be negative", value)
    return int(value)


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise wrong(name, "must be true or false", value)
    return value


def _identifier(name: str, value: Any) -> str:
    if len(_text(name, value)) != 16 or not set(value) <= set("0123456789abcdef"):  # noqa: PLR2004 - as the problem says
        raise wrong(name, "must be 16 lower-case hex digits", value)
    return str(value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise wrong(name, "must be a list of strings", value)
    return tuple(_text(name, item) for item in value)


def _sequence(name: str, value: Any) -> int:
    if _natural(name, value) > MAX_SEQUENCE:
        raise wrong(name, f"must be at most {MAX_SEQUENCE}", value)
    return int(value)


def _attributes(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise wrong(name, "must be an object", value)
    return {_text(name, key): item for key, item in value.items()}


def _kind(name: str, value: Any) -> RecordKind:
    try:
        return RecordKind(value)
    except ValueError:
        raise wrong(name, f"must be one of {', '.join(map(str, RecordKind))}", value) from None


def _status(name: str, value: Any) -> PhaseStatus:
    try:
        return PhaseStatus(value)
    except ValueError:
        raise wrong(name, f"must be one of {', '.join(map(str, PhaseStatus))}", value) from None


def _process(name: str, value: Any) -> ProcessIdentity:
    if not isinstance(value, Mapping) or {field.name for field in attrs.fields(ProcessIdentity)} - set(value):
        raise wrong(name, "must be an object with host, boot_id, pid, started and pid_namespace", value)
    return ProcessIdentity(
        host=_text(f"{name}.host", value["host"]),
        boot_id=_or_none(_text)(f"{name}.boot_id", value["boot_id"]),
        pid=_integer(f"{name}.pid", value["pid"]),
        started=_or_none(_integer)(f"{name}.started", value["started"]),
        pid_namespace=_or_none(_integer)(f"{name}.pid_namespace", value["pid_namespace"]),
    )


def _output(name: str, value: Any) -> tuple[OutputLine, ...]:
    if not isinstance(value, (list, tuple)):
        raise wrong(name, "must be a list", value)
    return tuple(_line(name, line) for line in value)


def _line(name: str, value: Any) -> OutputLine:
    if not isinstance(value, Mapping) or {"time_ns", "stream", "text"} - set(value):
        raise wrong(name, "must have objects with time_ns, stream and text", value)
    return OutputLine(
        time_ns=_integer(f"{name}.time_ns", value["time_ns"]),
        stream=_text(f"{name}.stream", value["stream"]),
        text=_text(f"{name}.text", value["text"]),
    )


def _or_none(check: _Check) -> _Check:
    return lambda name, value: None if value is None else check(name, value)


CHECKS: Final[Mapping[str, _Check]] = {
    "kind": _kind,
    "session_id": _text,
    "session_attempt": _natural,
    "correlation_id": _or_none(_text),
    "rank": _or_none(_natural),
    "scope_id": _identifier,
    "parent_scope_id": _or_none(_identifier),
    "path": _names,
    "sequence": _sequence,
    "attempt": _natural,
    "retry_of_scope_id": _or_none(_identifier),
    "step": _or_none(_integer),
    "status": _status,
    "reason": _or_none(_text),
    "evidence": _or_none(_text),
    "entered_ns": _integer,
    "ended_ns": _or_none(_integer),
    "self_ns": _or_none(_integer),
    "paused_ns": _or_none(_integer),
    "entered_monotonic_ns": _or_none(_integer),
    "ended_monotonic_ns": _or_none(_integer),
    "thread_id": _or_none(_integer),
    "thread_name": _or_none(_text),
    "task_name": _or_none(_text),
    "is_sync": _flag,
    "attributes": _attributes,
    "error_type": _or_none(_text),
    "error_message": _or_none(_text),
    "traceback": _or_none(_text),
    "root_cause_scope_id": _or_none(_identifier),
    "root_cause_path": _or_none(_names),
    "process": _or_none(_process),
    "output": _or_none(_output),
}
