"""A span as OTLP has it, made without OpenTelemetry's SDK: what recovery sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

if TYPE_CHECKING:
    from stormphase.otel._journal_facts import Limits

_Item = TypeVar("_Item")

INTERNAL: Final = 1  # SpanKind
STATUS_UNSET: Final = 0
STATUS_ERROR: Final = 2
# SpanFlags: the W3C trace flags in the low byte, then whether it is known where the parent is, and what it is.
SAMPLED: Final = 1
RANDOM: Final = 2
HAS_IS_REMOTE: Final = 0x100
IS_REMOTE: Final = 0x200


@attrs.frozen(kw_only=True)
class SpanEvent:
    """An event on a span; its time in nanoseconds since the Unix epoch."""

    name: str
    time_ns: int
    attributes: Mapping[str, Any] = attrs.field(factory=dict)
    dropped_attributes: int = 0


@attrs.frozen(kw_only=True)
class SpanLink:
    """A link to another span."""

    trace_id: int
    span_id: int
    flags: int


@attrs.frozen(kw_only=True)
class RecoveredSpan:
    """One span as OTLP has it. Ids are integers, 0 for no parent; times in nanoseconds since the Unix epoch."""

    trace_id: int
    span_id: int
    parent_id: int
    flags: int
    tracestate: str
    name: str
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, Any]
    dropped_attributes: int = 0
    events: tuple[SpanEvent, ...] = ()
    dropped_events: int = 0
    links: tuple[SpanLink, ...] = ()
    dropped_links: int = 0
    status: int = STATUS_UNSET
    status_message: str = ""


def limited(span: RecoveredSpan, limits: Limits) -> RecoveredSpan:
    """Return the span as the user's provider would have kept it: the last of everything, and strings cut."""
    events = tuple(_limited_event(event, limits) for event in _last(span.events, limits.events))
    links = _last(span.links, limits.links)
    if (
        _is_within(span.attributes, limits.attributes, limits.attribute_chars)
        and events == span.events
        and links == span.links
    ):
        return span
    attributes = _last(tuple(span.attributes.items()), limits.attributes)
    return attrs.evolve(
        span,
        attributes={key: _cut(value, limits.attribute_chars) for key, value in attributes},
        dropped_attributes=len(span.attributes) - len(attributes),
        events=events,
        dropped_events=len(span.events) - len(events),
        links=links,
        dropped_links=len(span.links) - len(links),
    )


def _limited_event(event: SpanEvent, limits: Limits) -> SpanEvent:
    if _is_within(event.attributes, limits.event_attributes, limits.event_attribute_chars):
        return event
    kept = _last(tuple(event.attributes.items()), limits.event_attributes)
    return attrs.evolve(
        event,
        attributes={key: _cut(value, limits.event_attribute_chars) for key, value in kept},
        dropped_attributes=len(event.attributes) - len(kept),
    )


def _is_within(attributes: Mapping[str, Any], most: int | None, most_chars: int | None) -> bool:
    """Whether limits leave attributes as they are, as they mostly do."""
    return most_chars is None and (most is None or len(attributes) <= most)


def _last(items: tuple[_Item, ...], most: int | None) -> tuple[_Item, ...]:
    """Return the last ones that a limit leaves, as the SDK does."""
    return items if most is None or len(items) <= most else items[len(items) - most :]


def _cut(value: Any, most: int | None) -> Any:
    """Return an attribute's value with its strings as short as a limit asks."""
    if most is None:
        return value
    if isinstance(value, str):
        return value[:most]
    if isinstance(value, (list, tuple)):
        return tuple(_cut(item, most) for item in value)
    return value
