"""Records: the frozen story of a phase, a rank or a session, the same wherever it was kept.

A record of an open phase has no end. Nothing here points at a recorder, a thread or an exception, so every record may
be kept, sent and pickled. Written as JSON it is one object whose keys are `FIELDS`; what a newer schema added is left
out by an older reader only if the version is the same, else the reader says that it is too old.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import attrs

from stormphase._model import PhaseStatus, ProcessIdentity

SCHEMA_VERSION: Final = 1
MAX_SEQUENCE: Final = (1 << 40) - 1

_MIN_INT: Final = -(1 << 63)
_MAX_INT: Final = (1 << 63) - 1
_SHOWN_CHARS: Final = 60
_NO_ATTRIBUTES: Final[Mapping[str, Any]] = MappingProxyType({})

RecordKey: TypeAlias = "tuple[str, int, str]"


class RecordKind(str, enum.Enum):
    """What a record tells of; `PROCESS` is one that a rank forked, whose phases are its own."""

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


@attrs.frozen(kw_only=True)
class PhaseRecord:
    """The story of a phase, as far as it is known; or of a session, a rank or a forked process (see `kind`).

    Times ending in `_ns` are integer nanoseconds; `entered_ns` and `ended_ns` since the Unix epoch (UTC), those with
    `monotonic` in their name on the monotonic clock of the process.

    Attributes:
        kind: what it tells of.
        session_id: one launch of the job.
        session_attempt: counts the session's restarts, from 0.
        correlation_id: what else the run is known by: the caller's word, else the trace id; None if unknown.
        rank: the process among the session's; None for the session itself.
        scope_id: the identity, 16 hex digits; also the OTel span id.
        parent_scope_id: the phase it hangs under, for a rank its session; None at the root.
        path: the names from the outermost phase to this one; empty for what is no phase.
        sequence: the phase's number in its process, from 1; 0 for what is no phase.
        attempt: how often the phase was retried, from 0.
        retry_of_scope_id: the phase that it retries, or None.
        step: the step that was set when it was entered, or None.
        status: how it stands.
        reason: why it ended, where nobody ended it (ABANDONED), or None.
        evidence: how it is known that its process is dead (LOST), or None.
        entered_ns: when it was entered.
        ended_ns: when it ended, or None; for LOST when it was last known alive.
        entered_monotonic_ns: when it was entered, on the monotonic clock; None if unknown.
        ended_monotonic_ns: when it ended, on the monotonic clock, or None.
        self_ns: its own time: without pauses and without what ran on top of it; None while unknown.
        paused_ns: how long it was paused; None while unknown.
        thread_id: the ident of the thread that owned it last.
        thread_name: that thread's name.
        task_name: the task that owned it last, or None.
        is_sync: whether ranks wait for each other in it.
        attributes: the user's, as plain values; for a session or rank, ours, with names in `stormphase.`.
        error_type: qualified name of the exception's class, or None.
        error_message: the exception's text, bounded, or None.
        traceback: the formatted traceback, bounded, where the exception arose; else None.
        root_cause_scope_id: where the exception first arose; the own id at the origin; None without an error.
        root_cause_path: the path of that phase; None if unknown, or without an error.
        process: the process that it belongs to, or None if unknown.
        output: what was captured while it was open, in order.
    """

    kind: RecordKind = RecordKind.PHASE
    session_id: str
    session_attempt: int = 0
    correlation_id: str | None = None
    rank: int | None
    scope_id: str
    parent_scope_id: str | None = None
    path: tuple[str, ...]
    sequence: int
    attempt: int = 0
    retry_of_scope_id: str | None = None
    step: int | None = None
    status: PhaseStatus
    reason: str | None = None
    evidence: str | None = None
    entered_ns: int
    ended_ns: int | None = None
    entered_monotonic_ns: int | None = None
    ended_monotonic_ns: int | None = None
    self_ns: int | None = None
    paused_ns: int | None = None
    thread_id: int | None = None
    thread_name: str | None = None
    task_name: str | None = None
    is_sync: bool = False
    attributes: Mapping[str, Any] = _NO_ATTRIBUTES
    error_type: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    root_cause_scope_id: str | None = None
    root_cause_path: tuple[str, ...] | None = None
    process: ProcessIdentity | None = None
    output: tuple[OutputLine, ...] = ()

    @property
    def name(self) -> str:
        """The path's last name; for what is no phase, its kind."""
        return self.path[-1] if self.path else self.kind.value

    @property
    def path_text(self) -> str:
        """The path as people read it, `train / step / forward`."""
        return " / ".join(self.path) if self.path else self.kind.value

    @property
    def depth(self) -> int:
        """How many names the path has."""
        return len(self.path)

    @property
    def duration_ns(self) -> int | None:
        """The time from enter to end, pauses included; None while it is open."""
        return None if self.ended_ns is None else self.ended_ns - self.entered_ns

    @property
    def is_ended(self) -> bool:
        """Whether it has ended."""
        return self.ended_ns is not None

    @property
    def key(self) -> RecordKey:
        """What tells this record from every other: session, its attempt and the scope id."""
        return (self.session_id, self.session_attempt, self.scope_id)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, all `FIELDS` in their order; numbers may still be NaN."""
        found: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        for field in FIELDS[1:]:
            found[field] = getattr(self, field)
        found["kind"] = self.kind.value
        found["status"] = self.status.value
        found["path"] = list(self.path)
        found["attributes"] = dict(self.attributes)
        found["root_cause_path"] = None if self.root_cause_path is None else list(self.root_cause_path)
        found["process"] = None if self.process is None else attrs.asdict(self.process)
        found["output"] = [{"time_ns": line.time_ns, "stream": line.stream, "text": line.text} for line in self.output]
        return found

    def to_json(self) -> str:
        """Return the record as one JSON object on one line; numbers that JSON does not know become strings."""
        return dumps(self.to_dict())

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PhaseRecord:
        """Read what `to_dict` gave, or JSON made of it; unknown fields are left to other releases of this schema.

        Raises:
            ValueError: if a field is missing or wrong, or the schema is newer; the message names it.
        """
        version = fields.get("schema_version")
        if type(version) is not int or version < 1:
            raise _wrong("schema_version", "must be a whole number from 1 on", version)
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"This record has schema version {version}, and this stormphase reads up to {SCHEMA_VERSION}. "
                "Install a newer stormphase to read it."
            )
        given: dict[str, Any] = {}
        for name, check in _CHECKS.items():
            if name not in fields:
                raise ValueError(f"{name!r} of a record is missing.")
            given[name] = check(name, fields[name])
        return cls(**given)

    @classmethod
    def from_json(cls, text: str) -> PhaseRecord:
        """Read what `to_json` wrote.

        Raises:
            ValueError: if it is no JSON object, or a field is missing or wrong, or the schema is newer.
        """
        try:
            fields = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"A record must be a JSON object: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"A record must be a JSON object, not {type(fields).__name__}.")  # noqa: TRY004 - one kind of error for every bad text
        return cls.from_dict(fields)


FIELDS: Final[tuple[str, ...]] = (
    "schema_version",
    "kind",
    "session_id",
    "session_attempt",
    "correlation_id",
    "rank",
    "scope_id",
    "parent_scope_id",
    "path",
    "name",
    "depth",
    "sequence",
    "attempt",
    "retry_of_scope_id",
    "step",
    "status",
    "reason",
    "evidence",
    "entered_ns",
    "ended_ns",
    "duration_ns",
    "self_ns",
    "paused_ns",
    "entered_monotonic_ns",
    "ended_monotonic_ns",
    "thread_id",
    "thread_name",
    "task_name",
    "is_sync",
    "attributes",
    "error_type",
    "error_message",
    "traceback",
    "root_cause_scope_id",
    "root_cause_path",
    "process",
    "output",
)


# Made once: `json.dumps` with options makes one for each call, which costs as much again.
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def dumps(value: Any) -> str:
    """Return plain values as compact JSON; numbers that JSON does not know become "NaN", "Infinity", "-Infinity"."""
    try:
        return _encode(value)
    except ValueError:
        return _encode(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _wrong(name: str, problem: str, value: object) -> ValueError:
    return ValueError(f"{name!r} of a record {problem}, and is {ascii(value)[:_SHOWN_CHARS]}.")


_Check: TypeAlias = "Callable[[str, Any], Any]"


def _text(name: str, value: Any) -> str:
    if type(value) is not str:
        raise _wrong(name, "must be a string", value)
    return value


def _integer(name: str, value: Any) -> int:
    if type(value) is not int or not _MIN_INT <= value <= _MAX_INT:
        raise _wrong(name, "must be a whole number of 64 bits", value)
    return value


def _natural(name: str, value: Any) -> int:
    if _integer(name, value) < 0:
        raise _wrong(name, "must not be negative", value)
    return int(value)


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong(name, "must be true or false", value)
    return value


def _identifier(name: str, value: Any) -> str:
    if len(_text(name, value)) != 16 or not set(value) <= set("0123456789abcdef"):  # noqa: PLR2004 - as the problem says
        raise _wrong(name, "must be 16 lower-case hex digits", value)
    return str(value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(name, "must be a list of strings", value)
    return tuple(_text(name, item) for item in value)


def _sequence(name: str, value: Any) -> int:
    if _natural(name, value) > MAX_SEQUENCE:
        raise _wrong(name, f"must be at most {MAX_SEQUENCE}", value)
    return int(value)


def _attributes(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(name, "must be an object", value)
    return {_text(name, key): item for key, item in value.items()}


def _kind(name: str, value: Any) -> RecordKind:
    try:
        return RecordKind(value)
    except ValueError:
        raise _wrong(name, f"must be one of {', '.join(map(str, RecordKind))}", value) from None


def _status(name: str, value: Any) -> PhaseStatus:
    try:
        return PhaseStatus(value)
    except ValueError:
        raise _wrong(name, f"must be one of {', '.join(map(str, PhaseStatus))}", value) from None


def _process(name: str, value: Any) -> ProcessIdentity:
    if not isinstance(value, Mapping) or {field.name for field in attrs.fields(ProcessIdentity)} - set(value):
        raise _wrong(name, "must be an object with host, boot_id, pid, started and pid_namespace", value)
    return ProcessIdentity(
        host=_text(f"{name}.host", value["host"]),
        boot_id=_or_none(_text)(f"{name}.boot_id", value["boot_id"]),
        pid=_integer(f"{name}.pid", value["pid"]),
        started=_or_none(_integer)(f"{name}.started", value["started"]),
        pid_namespace=_or_none(_integer)(f"{name}.pid_namespace", value["pid_namespace"]),
    )


def _output(name: str, value: Any) -> tuple[OutputLine, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(name, "must be a list", value)
    return tuple(_line(name, line) for line in value)


def _line(name: str, value: Any) -> OutputLine:
    if not isinstance(value, Mapping) or {"time_ns", "stream", "text"} - set(value):
        raise _wrong(name, "must have objects with time_ns, stream and text", value)
    return OutputLine(
        time_ns=_integer(f"{name}.time_ns", value["time_ns"]),
        stream=_text(f"{name}.stream", value["stream"]),
        text=_text(f"{name}.text", value["text"]),
    )


def _or_none(check: _Check) -> _Check:
    return lambda name, value: None if value is None else check(name, value)


_CHECKS: Final[Mapping[str, _Check]] = {
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
    "output": _output,
}
