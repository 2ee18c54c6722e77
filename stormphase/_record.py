"""Records: the frozen story of a phase, a rank or a session, the same wherever it was kept.

A record of an open phase has no end. Nothing here points at a recorder, a thread or an exception, so every record may
be kept, sent and pickled. Written as JSON it is one object whose keys are `FIELDS`; what a newer schema added is left
out by an older reader only if the version is the same, else the reader says that it is too old.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import attrs

from stormphase._model import PhaseStatus, ProcessIdentity
from stormphase._record_fields import CHECKS, MAX_SEQUENCE, OutputLine, RecordKind, wrong

__all__ = [
    "FIELDS",
    "MAX_SEQUENCE",
    "SCHEMA_VERSION",
    "OutputLine",
    "PhaseRecord",
    "RecordKey",
    "RecordKind",
    "dumps",
    "entering_order",
    "finite",
]

SCHEMA_VERSION: Final = 1

_NO_ATTRIBUTES: Final[Mapping[str, Any]] = MappingProxyType({})

RecordKey: TypeAlias = "tuple[str, int, str]"


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
        output: what was captured while it was open, in order; None where nobody knows, as of a LOST phase whose process
            left no last words.
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
    output: tuple[OutputLine, ...] | None = ()

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
        found: dict[str, Any] = dict(zip(FIELDS, (SCHEMA_VERSION, *_values_of(self)), strict=True))
        found["kind"] = self.kind._value_  # As `value`, which is a Python function.
        found["status"] = self.status._value_
        found["path"] = list(self.path)
        found["attributes"] = dict(self.attributes)
        found["root_cause_path"] = None if self.root_cause_path is None else list(self.root_cause_path)
        found["process"] = None if self.process is None else attrs.asdict(self.process)
        output = self.output
        if output is not None:
            found["output"] = [{"time_ns": line.time_ns, "stream": line.stream, "text": line.text} for line in output]
        return found

    def to_json(self) -> str:
        """Return the record as one JSON object on one line; numbers that JSON does not know become strings.

        It can always be written as UTF-8: lone surrogates, as names of threads may have, are escaped and read back.
        """
        return dumps(self.to_dict()).encode("utf-8", "backslashreplace").decode("utf-8")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PhaseRecord:
        """Read what `to_dict` gave, or JSON made of it; unknown fields are left to other releases of this schema.

        Raises:
            ValueError: if a field is missing or wrong, or the schema is newer; the message names it.
        """
        version = fields.get("schema_version")
        if type(version) is not int or version < 1:
            raise wrong("schema_version", "must be a whole number from 1 on", version)
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"This record has schema version {version}, and this stormphase reads up to {SCHEMA_VERSION}. "
                "Install a newer stormphase to read it."
            )
        given: dict[str, Any] = {}
        for name, check in CHECKS.items():
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


_KIND_ORDER: Final = {kind: number for number, kind in enumerate(RecordKind)}


def entering_order(record: PhaseRecord) -> tuple[int, int, int, int]:
    """Return what sorts records by when they were entered; of those entered at once, what is around comes first."""
    rank = -1 if record.rank is None else record.rank
    return (record.entered_ns, _KIND_ORDER[record.kind], rank, record.sequence)


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

_values_of: Final = operator.attrgetter(*FIELDS[1:])

# Made once: `json.dumps` with options makes one for each call, which costs as much again.
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_encode_ascii: Final = json.JSONEncoder(allow_nan=False).encode
_encode_sorted: Final = json.JSONEncoder(allow_nan=False, sort_keys=True).encode


def dumps(value: Any) -> str:
    """Return plain values as compact JSON; numbers that JSON does not know become "NaN", "Infinity", "-Infinity"."""
    try:
        return _encode(value)
    except ValueError:
        return _encode(finite(value))


def dumps_ascii(value: Any, *, sort_keys: bool = False) -> str:
    """Return plain values as JSON with spaces in which no terminal finds a command; numbers as `dumps` has them."""
    encode = _encode_sorted if sort_keys else _encode_ascii
    try:
        return encode(value)
    except ValueError:
        return encode(finite(value))


def finite(value: Any) -> Any:
    """Return plain values with "NaN", "Infinity" and "-Infinity" for the numbers that JSON does not know."""
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
