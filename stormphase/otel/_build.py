"""From what a span is to say, to the span that the user's processors get: built directly, or started and ended late.

For the bridge's worker thread only.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    set_span_in_context,
)

from stormphase._attributes import MAX_ATTRIBUTES
from stormphase._model import PhaseStatus
from stormphase.otel._provider import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.trace import Link

    from stormphase.otel._provider import SdkTracer
    from stormphase.otel._traces import Trace

    SpanEvent = tuple[str, int, dict[str, Any]]

UNSET: Final = Status(StatusCode.UNSET)
ENTER: Final = "stormphase.phase.enter"
EXIT: Final = "stormphase.phase.exit"
PLAIN_EVENTS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    (ENTER, {}),
    (EXIT, {"stormphase.phase.status": PhaseStatus.SUCCEEDED.value}),
)
# What a phase has of its own, and the most that a user can give it.
MAX_PLAIN_ATTRIBUTES: Final = 16 + MAX_ATTRIBUTES


class SpanFacts:
    """What one span is to say. Times in nanoseconds since the Unix epoch, attributes as OTel takes them."""

    __slots__ = (
        "attributes",
        "context",
        "end_ns",
        "events",
        "links",
        "name",
        "outer",
        "parent",
        "start_ns",
        "status",
        "trace",
    )

    def __init__(  # noqa: PLR0917 - made in few places, where keywords would cost time
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        trace: Trace,
        start_ns: int,
        end_ns: int,
        attributes: dict[str, Any],
        events: Sequence[SpanEvent] = (),
        links: Sequence[Link] = (),
        status: Status = UNSET,
        outer: Context | None = None,
    ) -> None:
        """Keep the facts; `outer` is the context in which a phase was entered."""
        self.name = name
        self.context = context
        self.parent = parent
        self.trace = trace
        self.start_ns = start_ns
        self.end_ns = end_ns
        self.attributes = attributes
        self.events = events
        self.links = links
        self.status = status
        self.outer = outer


class DirectSender:
    """Builds `ReadableSpan`s and hands them to the processors, applying the provider's limits and scope itself.

    Args:
        sdk: the provider and its tracer: it has shown that the SDK is in use, so its classes may be taken.
        keep: called with each span once the processors have it.
    """

    def __init__(self, sdk: SdkTracer, keep: Callable[[Any], object]) -> None:
        """Take the SDK's classes."""
        from opentelemetry.sdk.trace import Event, ReadableSpan  # noqa: PLC0415 - never before an SDK provider is seen
        from opentelemetry.sdk.util import BoundedList  # noqa: PLC0415 - likewise
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415 - likewise

        self._event = Event
        self._span = ReadableSpan
        self._bounded_list = BoundedList
        self._scope = InstrumentationScope(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
        self._sdk = sdk
        self._keep = keep
        limits = sdk.limits
        self._limits = limits
        self._max_attributes = _or_unlimited(limits.max_span_attributes)
        self._max_events = _or_unlimited(limits.max_events)
        self._max_links = _or_unlimited(limits.max_links)
        self._max_event_attributes = _or_unlimited(limits.max_event_attributes)
        self._max_link_attributes = _or_unlimited(limits.max_link_attributes)

    def send(self, facts: SpanFacts) -> None:
        """Hand over one span."""
        attributes: Any = facts.attributes
        limits = self._limits
        if len(attributes) > self._max_attributes or limits.max_span_attribute_length is not None:
            attributes = BoundedAttributes(
                limits.max_span_attributes, attributes, max_value_len=limits.max_span_attribute_length
            )
        tracer = self._sdk.tracer
        # Positional: twice as fast, and in this order in every release since 1.11.
        span = self._span(
            facts.name,
            facts.context,
            facts.parent,
            tracer.resource,
            attributes,
            self._events(facts.events) if facts.events else (),
            self._links(facts.links) if facts.links else (),
            SpanKind.INTERNAL,
            tracer.instrumentation_info,
            facts.status,
            facts.start_ns,
            facts.end_ns,
            self._scope,
        )
        tracer.span_processor.on_end(span)
        self._keep(span)

    @property
    def is_unlimited(self) -> bool:
        """Whether `send_plain` may be used: no limit of the provider is so low that it touches a plain phase."""
        limits = self._limits
        return (
            limits.max_span_attribute_length is None
            and limits.max_attribute_length is None
            and self._max_attributes >= MAX_PLAIN_ATTRIBUTES
            and self._max_events >= len(PLAIN_EVENTS)
            and self._max_event_attributes >= 1
        )

    def send_plain(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext,
        attributes: dict[str, Any],
        times: tuple[int, int],
        *,
        with_boundaries: bool,
    ) -> None:
        """Hand over a span that has nothing but attributes and, perhaps, its boundaries as events."""
        start_ns, end_ns = times
        tracer = self._sdk.tracer
        events: Any = ()
        if with_boundaries:
            (enter, enter_attributes), (exit_, exit_attributes) = PLAIN_EVENTS
            make = self._event
            events = (make(enter, enter_attributes, start_ns), make(exit_, exit_attributes, end_ns))
        span = self._span(
            name,
            context,
            parent,
            tracer.resource,
            attributes,
            events,
            (),
            SpanKind.INTERNAL,
            tracer.instrumentation_info,
            UNSET,
            start_ns,
            end_ns,
            self._scope,
        )
        tracer.span_processor.on_end(span)
        self._keep(span)

    def _events(self, events: Sequence[SpanEvent]) -> Any:
        limits = self._limits
        make = self._event
        made = []
        for name, when_ns, attributes in events:
            bounded: Any = attributes
            if len(attributes) > self._max_event_attributes or limits.max_attribute_length is not None:
                bounded = BoundedAttributes(
                    limits.max_event_attributes, attributes, max_value_len=limits.max_attribute_length
                )
            made.append(make(name, bounded, when_ns))
        return self._bounded_list.from_seq(limits.max_events, made) if len(made) > self._max_events else tuple(made)

    def _links(self, links: Sequence[Link]) -> Any:
        limits = self._limits
        bounded = [
            type(link)(
                link.context,
                BoundedAttributes(
                    limits.max_link_attributes, link.attributes, max_value_len=limits.max_attribute_length
                ),
            )
            if len(link.attributes or ()) > self._max_link_attributes or limits.max_attribute_length is not None
            else link
            for link in links
        ]
        return (
            self._bounded_list.from_seq(limits.max_links, bounded) if len(bounded) > self._max_links else tuple(bounded)
        )


class _Replay:
    """Stands as id generator and sampler in the tracer of our scope, and repeats what was decided at enter.

    Whoever else asks the provider for a tracer of this very scope shares it: on other threads, and between our spans,
    the provider's own generator and sampler answer.
    """

    def __init__(self, sdk: SdkTracer) -> None:
        self._provider = sdk.provider
        self._local = threading.local()

    def prepare(self, facts: SpanFacts | None) -> None:
        self._local.facts = facts

    def _facts(self) -> SpanFacts | None:
        return getattr(self._local, "facts", None)

    def generate_span_id(self) -> int:
        facts = self._facts()
        return int(self._provider.id_generator.generate_span_id()) if facts is None else facts.context.span_id

    def generate_trace_id(self) -> int:
        facts = self._facts()
        return int(self._provider.id_generator.generate_trace_id()) if facts is None else facts.context.trace_id

    def is_trace_id_random(self) -> bool:
        if self._facts() is not None:
            return True
        ask = getattr(self._provider.id_generator, "is_trace_id_random", None)
        return ask is not None and bool(ask())

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *rest: Any, **more: Any) -> Any:
        facts = self._facts()
        if facts is None:
            return self._provider.sampler.should_sample(parent_context, trace_id, name, *rest, **more)
        from opentelemetry.sdk.trace.sampling import Decision, SamplingResult  # noqa: PLC0415 - the SDK's, in use here

        is_sampled = facts.context.trace_flags.sampled
        decision = Decision.RECORD_AND_SAMPLE if is_sampled else Decision.RECORD_ONLY
        return SamplingResult(decision, facts.attributes, facts.context.trace_state)

    def get_description(self) -> str:
        return str(self._provider.sampler.get_description())


class StartedSender:
    """Starts and ends spans with the tracer's public methods, for processors that want to see a span start."""

    def __init__(self, sdk: SdkTracer) -> None:
        """Take the place of id generator and sampler in our scope's tracer; the provider's own stay as they are."""
        self._tracer = sdk.tracer
        # The SDK gives every tracker on one provider the same tracer (from 1.42 on): they share what stands in it.
        standing: object = sdk.tracer.id_generator
        self._replay = standing if isinstance(standing, _Replay) else _Replay(sdk)
        self._tracer.id_generator = self._replay
        self._tracer.sampler = self._replay

    def start(self, facts: SpanFacts) -> Span:
        """Start a span as of its enter."""
        # An explicit context, even if it holds no span, keeps out the worker's own.
        around = set_span_in_context(
            INVALID_SPAN if facts.parent is None else NonRecordingSpan(facts.parent),
            Context() if facts.outer is None else facts.outer,
        )
        self._replay.prepare(facts)
        try:
            span: Span = self._tracer.start_span(
                facts.name,
                around,
                SpanKind.INTERNAL,
                facts.attributes,
                list(facts.links),
                facts.start_ns,
            )
        finally:
            self._replay.prepare(None)
        return span

    def end(self, span: Span, facts: SpanFacts, *, started_link_count: int) -> None:
        """End a span that `start` returned, with what is known by now; `started_link_count` links it has already."""
        span.set_attributes(facts.attributes)
        for link in facts.links[started_link_count:]:
            span.add_link(link.context, link.attributes)
        for name, when_ns, attributes in facts.events:
            span.add_event(name, attributes, when_ns)
        if facts.name != getattr(span, "name", facts.name):
            span.update_name(facts.name)
        if facts.status.status_code is not StatusCode.UNSET:
            span.set_status(facts.status)
        span.end(facts.end_ns)


def _or_unlimited(limit: int | None) -> float:
    return float("inf") if limit is None else limit
