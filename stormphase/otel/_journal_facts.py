"""What a journal keeps of a session's trace, so that recovery can send what a dead process left behind.

Written as JSON into the journal's header when the session starts, and read back from a file that is hostile until
proven well-formed. Neither direction needs OpenTelemetry's SDK, and reading needs none of OpenTelemetry.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

VERSION: Final = 1
MAX_JSON_BYTES: Final = 7_168

ALL: Final = "all"
LONG: Final = "long"
OFF: Final = "off"
_SPAN_EVENTS: Final = (ALL, LONG, OFF)

_HEX: Final = re.compile(r"[0-9a-f]+")
_TRACE_DIGITS: Final = 32
SPAN_DIGITS: Final = 16
MAX_FLAGS: Final = 0xFF
_MAX_TEXT_CHARS: Final = 4_096
_MAX_TRACESTATE_CHARS: Final = 512  # what W3C asks everybody to carry
_MAX_INT64: Final = 2**63 - 1
_MAX_LIMIT: Final = 1 << 31


class FactsError(ValueError):
    """What a journal says of its trace cannot be true; the message says which field."""


@attrs.frozen(kw_only=True)
class Limits:
    """The span limits of the user's provider; None for none.

    Attributes:
        attributes: on a span.
        attribute_chars: in a span's attribute.
        events: on a span.
        links: on a span.
        event_attributes: on an event.
        link_attributes: on a link.
        event_attribute_chars: in an event's or a link's attribute.
    """

    attributes: int | None = None
    attribute_chars: int | None = None
    events: int | None = None
    links: int | None = None
    event_attributes: int | None = None
    link_attributes: int | None = None
    event_attribute_chars: int | None = None


@attrs.frozen(kw_only=True)
class SessionFacts:
    """How a session's spans look and where they hang. Ids are integers.

    Attributes:
        trace_id: the trace that all ranks share.
        root_id: the session's root span, sent by rank 0.
        rank_id: this rank's span.
        caller_id: the span that `TRACEPARENT` named, or None.
        previous_root: trace and span id of the root of the attempt before, or None.
        flags: the trace's W3C flags, sampled and random.
        tracestate: the trace's, as a header.
        is_sampled: the sampler's word on the session.
        keep_failures: whether failures are sent although they are not sampled.
        trace_per: the name of the phases that begin a trace of their own, or None.
        span_events: which phases have their boundaries as span events: "all", "long" or "off".
        has_exceptions: whether an exception is an event on the span in which it arose.
        limits: the provider's.
        scope_name: of our instrumentation scope.
        scope_version: of the writer.
        schema_url: of the scope.
        resource: the provider's resource attributes.
        resource_dropped: how many of them found no room.
        resource_schema_url: of the resource.
        root_attributes: what the sampler added to the root span.
    """

    trace_id: int
    root_id: int
    rank_id: int
    caller_id: int | None = None
    previous_root: tuple[int, int] | None = None
    flags: int = 0
    tracestate: str = ""
    is_sampled: bool = True
    keep_failures: bool = False
    trace_per: str | None = None
    span_events: str = OFF
    has_exceptions: bool = True
    limits: Limits = attrs.field(factory=Limits)
    scope_name: str = ""
    scope_version: str = ""
    schema_url: str = ""
    resource: Mapping[str, Any] = attrs.field(factory=dict)
    resource_dropped: int = 0
    resource_schema_url: str = ""
    root_attributes: Mapping[str, Any] = attrs.field(factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values, at most `MAX_JSON_BYTES` of them: the largest attributes make room."""
        plain: dict[str, Any] = {
            "version": VERSION,
            "trace_id": f"{self.trace_id:032x}",
            "root_id": f"{self.root_id:016x}",
            "rank_id": f"{self.rank_id:016x}",
            "flags": self.flags,
            "sampled": self.is_sampled,
            "keep_failures": self.keep_failures,
            "span_events": self.span_events,
            "exceptions": self.has_exceptions,
            "limits": attrs.asdict(self.limits),
            "scope": [self.scope_name, self.scope_version, self.schema_url],
            "resource": {},
            "root_attributes": {},
        }
        if self.caller_id is not None:
            plain["caller_id"] = f"{self.caller_id:016x}"
        if self.previous_root is not None:
            trace_id, span_id = self.previous_root
            plain["previous_root"] = [f"{trace_id:032x}", f"{span_id:016x}"]
        if self.trace_per is not None:
            plain["trace_per"] = self.trace_per
        if len(self.tracestate) <= _MAX_TRACESTATE_CHARS:
            plain["tracestate"] = self.tracestate
        if len(self.resource_schema_url) <= _MAX_TRACESTATE_CHARS:
            plain["resource_schema_url"] = self.resource_schema_url
        left = MAX_JSON_BYTES - _size(plain)
        plain["resource"], dropped = _fitting(self.resource, left)
        plain["resource_dropped"] = self.resource_dropped + dropped
        plain["root_attributes"], _ = _fitting(self.root_attributes, left - _size(plain["resource"]))
        return plain

    @classmethod
    def from_json(cls, value: object) -> SessionFacts:
        """Read what `to_json` wrote.

        Raises:
            FactsError: if a field is missing or wrong, or the version is newer than this library.
        """
        read = _Reader(value)
        version = read.number("version", 1, _MAX_INT64)
        if version > VERSION:
            raise FactsError(f"version {version} is newer than this stormphase; upgrade it")
        scope = read.texts("scope", 3)
        previous = read.texts("previous_root", 2) if read.has("previous_root") else None
        limits = _Reader(read.mapping("limits"))
        return cls(
            trace_id=read.identity("trace_id", _TRACE_DIGITS),
            root_id=read.identity("root_id", SPAN_DIGITS),
            rank_id=read.identity("rank_id", SPAN_DIGITS),
            caller_id=read.identity("caller_id", SPAN_DIGITS) if read.has("caller_id") else None,
            previous_root=None
            if previous is None
            else (identity_of(previous[0], _TRACE_DIGITS), identity_of(previous[1], SPAN_DIGITS)),
            flags=read.number("flags", 0, MAX_FLAGS),
            tracestate=read.text("tracestate") if read.has("tracestate") else "",
            is_sampled=read.truth("sampled"),
            keep_failures=read.truth("keep_failures"),
            trace_per=read.text("trace_per") if read.has("trace_per") else None,
            span_events=read.choice("span_events", _SPAN_EVENTS),
            has_exceptions=read.truth("exceptions"),
            limits=Limits(
                **{
                    field.name: limits.number(field.name, 0, _MAX_LIMIT) if limits.has(field.name) else None
                    for field in attrs.fields(Limits)
                }
            ),
            scope_name=scope[0],
            scope_version=scope[1],
            schema_url=scope[2],
            resource=read.attributes("resource"),
            resource_dropped=read.number("resource_dropped", 0, _MAX_LIMIT),
            resource_schema_url=read.text("resource_schema_url") if read.has("resource_schema_url") else "",
            root_attributes=read.attributes("root_attributes"),
        )


@attrs.frozen(kw_only=True)
class PhaseTrace:
    """What `_journaling.phase_trace_facts` said: trace, span id of its root or None, parent or None, sampled."""

    trace_id: int
    root_id: int | None
    parent_id: int | None
    is_sampled: bool

    @classmethod
    def from_json(cls, value: object) -> PhaseTrace:
        """Read what `phase_trace_facts` returned.

        Raises:
            FactsError: if a field is missing or wrong.
        """
        read = _Reader(value)
        found = cls(
            trace_id=read.identity("trace_id", _TRACE_DIGITS),
            root_id=read.identity("root_id", SPAN_DIGITS) if read.has("root_id") else None,
            parent_id=read.identity("parent_id", SPAN_DIGITS) if read.has("parent_id") else None,
            is_sampled=read.truth("sampled"),
        )
        if found.root_id is None and found.parent_id is None:
            raise FactsError("root_id and parent_id are both missing")
        return found


def identity_of(text: object, digits: int) -> int:
    """Return the id that hex digits name.

    Raises:
        FactsError: if they are not exactly so many lower-case hex digits, or zero.
    """
    if not isinstance(text, str) or len(text) != digits or not _HEX.fullmatch(text) or not int(text, 16):
        raise FactsError(f"{ascii(text)[:60]} is no id of {digits} hex digits")
    return int(text, 16)


class _Reader:
    """Takes typed fields out of a JSON object; None counts as missing."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, Mapping):
            raise FactsError(f"they must be an object, not {type(value).__name__}")
        self._fields = value

    def has(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def identity(self, name: str, digits: int) -> int:
        return identity_of(self._fields.get(name), digits)

    def number(self, name: str, least: int, most: int) -> int:
        value = self._fields.get(name)
        if type(value) is not int or not least <= value <= most:
            raise FactsError(f"{name} must be an integer from {least} to {most}")
        return value

    def truth(self, name: str) -> bool:
        value = self._fields.get(name)
        if type(value) is not bool:
            raise FactsError(f"{name} must be true or false")
        return value

    def text(self, name: str) -> str:
        value = self._fields.get(name)
        if not isinstance(value, str) or len(value) > _MAX_TEXT_CHARS:
            raise FactsError(f"{name} must be a string of at most {_MAX_TEXT_CHARS} characters")
        return value

    def texts(self, name: str, count: int) -> list[str]:
        value = self._fields.get(name)
        if not isinstance(value, list) or len(value) != count or not all(isinstance(item, str) for item in value):
            raise FactsError(f"{name} must be a list of {count} strings")
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str:
        value = self.text(name)
        if value not in choices:
            raise FactsError(f"{name} must be one of {', '.join(choices)}")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._fields.get(name)
        if not isinstance(value, Mapping):
            raise FactsError(f"{name} must be an object")
        return value

    def attributes(self, name: str) -> dict[str, Any]:
        return {str(key): plain for key, value in self.mapping(name).items() if (plain := _plain(value)) is not None}


def _fitting(attributes: Mapping[str, Any], size_bytes: int) -> tuple[dict[str, Any], int]:
    """Return the attributes that JSON knows and that fit, the smallest first served, and how many do not."""
    fitting = {str(key): plain for key, value in attributes.items() if (plain := _plain(value)) is not None}
    for key in sorted(fitting, key=lambda key: (-_size({key: fitting[key]}), key)):
        if _size(fitting) <= size_bytes:
            break
        del fitting[key]
    return fitting, len(attributes) - len(fitting)


def _plain(value: object) -> Any:
    """Return an attribute's value as JSON has it; None for what JSON or OTLP has no form for."""
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value) if -_MAX_INT64 <= value <= _MAX_INT64 else None
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        items = [_plain(item) for item in value if not isinstance(item, (list, tuple))]
        return items if len(items) == len(value) and None not in items else None
    return None


def _size(value: object) -> int:
    return len(json.dumps(value, separators=(",", ":")))
