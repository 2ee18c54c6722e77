"""What a phase says of itself in OpenTelemetry's words: attributes, status, events and links."""

# ruff: noqa: SLF001 - a span is a phase: the bridge shares the slots of the core's handles and lanes

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, Final, SupportsIndex

from opentelemetry.trace import Link, SpanContext, Status, StatusCode

from stormphase import _boundary
from stormphase._attributes import to_otel
from stormphase._model import PhaseStatus
from stormphase._recipe import FunctionSite, function_name_of
from stormphase._status import FAILURES
from stormphase.otel._build import ENTER, EXIT, UNSET, SpanFacts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stormphase._clock import ClockAnchor
    from stormphase._lanes import LaneSet
    from stormphase._model import PhaseError, RankIdentity
    from stormphase._paths import PathNode
    from stormphase.otel._build import SpanEvent
    from stormphase.otel._span import PhaseSpan, RecordedException
    from stormphase.otel._traces import Trace

NS: Final = 1e9
MAX_CACHED_PATHS: Final = 65_536
MAX_TIME_NS: Final = (1 << 63) - 1  # the year 2262

# What differs from phase to phase has its place in the template already: a dict that does not grow is filled faster.
_PLACES: Final[Mapping[str, Any]] = dict.fromkeys(
    ("stormphase.phase.sequence", "thread.id", "thread.name", "stormphase.phase.self_time")
)


def session_attributes(identity: RankIdentity) -> dict[str, Any]:
    """Return what every span of this rank says of session and rank."""
    return {
        "stormphase.session.id": identity.session_id,
        "stormphase.session.attempt": identity.attempt,
        "stormphase.rank": identity.rank,
        "stormphase.local_rank": identity.local_rank,
        "stormphase.world_size": identity.world_size,
    }


class PhaseFacts:
    """Describes phases of one lane set; for the bridge's worker thread, `enter_attributes` also for others.

    Args:
        identity: session and rank.
        lanes: the phases' lanes.
        exceptions_on_spans: whether an exception becomes a span event at its origin.
    """

    def __init__(self, identity: RankIdentity, lanes: LaneSet, *, exceptions_on_spans: bool) -> None:
        """Prepare what all phases share."""
        self._common = session_attributes(identity)
        self._event_common = {"stormphase.session.id": identity.session_id, "stormphase.rank": identity.rank}
        self._lanes = lanes
        self._anchor: ClockAnchor = lanes.anchor
        self._exceptions_on_spans = exceptions_on_spans
        self._paths: dict[PathNode, str] = {}
        self._plain: dict[PathNode, dict[str, Any]] = {}
        self.wall_offset_ns = self._anchor.to_wall_ns(0)

    def path_text(self, path: PathNode) -> str:
        """Return a path as people read it; kept, since few paths have many phases."""
        text = self._paths.get(path)
        if text is None:
            if len(self._paths) >= MAX_CACHED_PATHS:
                self._paths.clear()
            text = self._paths[path] = str(path)
        return text

    def enter_attributes(self, phase: PhaseSpan) -> dict[str, Any]:
        """Return what is known of a phase at its enter, the user's attributes first."""
        attributes = self._own(phase, PhaseStatus.ACTIVE)
        return self._with_users(phase._attributes, attributes)

    def exit_attributes(self, phase: PhaseSpan) -> dict[str, Any]:
        """Return what is known of a phase once it has ended, the user's attributes first.

        Those go first when the provider's limit is low, as the SDK drops the oldest.
        """
        attributes = self._own(phase, phase._status)
        attributes["stormphase.phase.self_time"] = _boundary.self_ns(phase) / NS
        extra = phase._extra
        if extra is None:
            return attributes if phase._attributes is None else self._with_users(phase._attributes, attributes)
        if extra.status_text is not None:
            attributes["stormphase.phase.reason"] = extra.status_text
        error = extra.error
        if error is not None and phase._status in FAILURES:
            attributes["error.type"] = error.type
            if not is_origin(phase, error):
                attributes["stormphase.phase.root_cause_scope_id"] = error.root_cause_scope_id
        return self._with_users(_boundary.all_attributes(phase), attributes)

    def plain_attributes(self, phase: PhaseSpan) -> dict[str, Any]:
        """Return what `exit_attributes` does, for a phase that has no `PhaseExtra`; three times as fast."""
        path = phase._path
        template = self._plain.get(path)
        if template is None:
            template = self._plain_template(path)
        attributes = template.copy()
        lane = phase._lane
        attributes["stormphase.phase.sequence"] = phase._sequence
        attributes["thread.id"] = lane.thread_id
        attributes["thread.name"] = lane.thread_name
        attributes["stormphase.phase.self_time"] = (phase._ended_ns - phase._entered_ns - phase._children_ns) / NS
        if phase._step is not None:
            attributes["stormphase.step"] = phase._step
        code: object = phase._code
        if type(code) is FunctionSite:
            attributes["code.function.name"] = code.function_name
        return attributes if phase._attributes is None else self._with_users(phase._attributes, attributes)

    def _plain_template(self, path: PathNode) -> dict[str, Any]:
        if len(self._plain) >= MAX_CACHED_PATHS:
            self._plain.clear()
        template = self._plain[path] = {
            **self._common,
            "stormphase.phase.path": self.path_text(path),
            "stormphase.phase.status": PhaseStatus.SUCCEEDED.value,
            "stormphase.phase.depth": path.depth,
            "stormphase.phase.attempt": 0,
            **_PLACES,
        }
        return template

    def _own(self, phase: PhaseSpan, status: PhaseStatus) -> dict[str, Any]:
        lane = phase._lane
        path = phase._path
        extra = phase._extra
        attributes = {
            **self._common,
            "stormphase.phase.path": self._paths.get(path) or self.path_text(path),
            "stormphase.phase.status": status.value,
            "stormphase.phase.depth": path.depth,
            "stormphase.phase.sequence": phase._sequence,
            "stormphase.phase.attempt": 0 if extra is None else extra.attempt,
            "thread.id": lane.thread_id,
            "thread.name": lane.thread_name,
        }
        if phase._step is not None:
            attributes["stormphase.step"] = phase._step
        function_name = function_name_of(phase)
        if function_name is not None:
            attributes["code.function.name"] = function_name
        return attributes

    def _with_users(self, users: Mapping[str, Any] | None, own: dict[str, Any]) -> dict[str, Any]:
        if not users:
            return own
        converted = to_otel(users, self._lanes.attribute_counts)
        merged = {**converted, **own}
        shadowed = len(converted) + len(own) - len(merged)
        if shadowed:
            self._lanes.attribute_counts.count_dropped(shadowed)
        return merged

    def event_attributes(self, phase: PhaseSpan, *, is_exit: bool, with_exception: bool) -> dict[str, Any]:
        """Return what a boundary's log event says: little, since it names its span, which says more."""
        attributes: dict[str, Any] = {
            **self._event_common,
            "stormphase.phase.path": self._paths.get(phase._path) or self.path_text(phase._path),
        }
        if phase._step is not None:
            attributes["stormphase.step"] = phase._step
        if not is_exit:
            attributes["stormphase.phase.status"] = PhaseStatus.ACTIVE.value
            return self._with_users(phase._attributes, attributes)
        attributes["stormphase.phase.status"] = phase._status.value
        attributes["stormphase.phase.duration"] = _boundary.duration_ns(phase) / NS
        error = None if phase._extra is None else phase._extra.error
        if error is not None and phase._status in FAILURES:
            attributes["error.type"] = error.type
            attributes["stormphase.phase.root_cause_scope_id"] = error.root_cause_scope_id
            if with_exception and is_origin(phase, error):
                attributes.update(exception_attributes(error.type, error.message, error.traceback))
        return self._with_users(_boundary.all_attributes(phase), attributes)

    def line_attributes(self, phase: PhaseSpan) -> dict[str, Any]:
        """Return where something was said, for its log record."""
        path = self._paths.get(phase._path) or self.path_text(phase._path)
        attributes: dict[str, Any] = {**self._event_common, "stormphase.phase.path": path}
        if phase._step is not None:
            attributes["stormphase.step"] = phase._step
        return attributes

    def span(
        self,
        phase: PhaseSpan,
        trace: Trace,
        context: SpanContext,
        *,
        boundaries: tuple[bool, bool] = (False, False),
    ) -> SpanFacts:
        """Return the span of an ended phase; `boundaries` says whether its enter and its exit become span events."""
        parent, links = phase.carrier.above(phase, trace)
        to_wall_ns = self._anchor.to_wall_ns
        start_ns = to_wall_ns(phase._entered_ns)
        end_ns = to_wall_ns(phase._ended_ns)
        attributes = with_samplers(trace, phase, self.exit_attributes(phase))
        notes = phase.notes
        extra = phase._extra
        events: list[SpanEvent] = []
        if boundaries[0]:
            events.append((ENTER, start_ns, {}))
        if extra is not None or notes is not None:
            events += self._said_events(phase, end_ns)
            links += links_of(phase)
        if boundaries[1]:
            events.append((EXIT, end_ns, {"stormphase.phase.status": phase._status.value}))
        return SpanFacts(
            phase._path.name if notes is None or notes.name is None else notes.name,
            context,
            parent,
            trace,
            start_ns,
            end_ns,
            attributes,
            events,
            links,
            UNSET if extra is None and notes is None else status_of(phase),
            phase._outer,
        )

    def started_span(self, phase: PhaseSpan, trace: Trace, context: SpanContext) -> SpanFacts:
        """Return the span of a phase that may still be open, as far as its enter tells."""
        parent, links = phase.carrier.above(phase, trace)
        start_ns = self._anchor.to_wall_ns(phase._entered_ns)
        attributes = with_samplers(trace, phase, self.enter_attributes(phase))
        return SpanFacts(
            phase._path.name,
            context,
            parent,
            trace,
            start_ns,
            start_ns,
            attributes,
            links=[*links, *links_of(phase)],
            outer=phase._outer,
        )

    def _said_events(self, phase: PhaseSpan, end_ns: int) -> list[SpanEvent]:
        """Return the user's events and exceptions in order of time; what ended the phase once, and at its origin."""
        extra = phase._extra
        notes = phase.notes
        events: list[SpanEvent] = []
        if extra is not None and extra.events:
            events += [
                (name, when_ns, dict(to_otel(given, self._lanes.attribute_counts)))
                for name, when_ns, given in extra.events
            ]
        error = None if extra is None or phase._status not in FAILURES else extra.error
        exceptions = [] if notes is None else notes.exceptions
        final = None if error is None else _recording_of(error, exceptions)
        if self._exceptions_on_spans:
            events += [self._exception_event(recorded) for recorded in exceptions if recorded is not final]
        if error is not None and is_origin(phase, error) and self._exceptions_on_spans:
            attributes = {} if final is None else dict(to_otel(final.attributes, self._lanes.attribute_counts))
            attributes.update(exception_attributes(error.type, error.message, error.traceback))
            events.append(("exception", end_ns if final is None else final.when_ns, attributes))
        events = [(name, _time_of(when_ns, end_ns), attributes) for name, when_ns, attributes in events]
        events.sort(key=_when)
        return events

    def _exception_event(self, recorded: RecordedException) -> SpanEvent:
        attributes = exception_attributes(recorded.type, recorded.message, recorded.stacktrace)
        attributes.update(to_otel(recorded.attributes, self._lanes.attribute_counts))
        return ("exception", recorded.when_ns, attributes)


def _recording_of(error: PhaseError, exceptions: Sequence[RecordedException]) -> RecordedException | None:
    """Return the last recorded exception that reads like the one that ended the phase: one before was handled."""
    for recorded in reversed(exceptions):
        if (recorded.type, recorded.message) == (error.type, error.message):
            return recorded
    return None


def with_samplers(trace: Trace, phase: PhaseSpan, attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes with the sampler's, if it was asked about this phase: those beneath inherit none."""
    if trace.attributes and trace.asked_sequence == phase._sequence:
        return {**trace.attributes, **attributes}
    return attributes


def exception_attributes(kind: str, message: str, stacktrace: str | None) -> dict[str, Any]:
    """Return an exception as the semantic conventions have it."""
    attributes = {"exception.type": kind, "exception.message": message}
    if stacktrace is not None:
        attributes["exception.stacktrace"] = stacktrace
    return attributes


def is_origin(phase: PhaseSpan, error: PhaseError) -> bool:
    """Return whether the error arose in this phase, and not in one inside it."""
    return error.root_cause_scope_id == phase.scope_id


def status_of(phase: PhaseSpan) -> Status:
    """Return the span's status: ERROR for a failure, else what the user said, else UNSET."""
    if phase._status in FAILURES:
        error = None if phase._extra is None else phase._extra.error
        return Status(StatusCode.ERROR, None if error is None else f"{error.type}: {error.message}")
    notes = phase.notes
    if notes is None or notes.status_code is StatusCode.UNSET:
        return UNSET
    return Status(notes.status_code, notes.description)


def links_of(phase: PhaseSpan) -> list[Link]:
    """Return the links that the phase was given: to the attempt before it, then the user's."""
    extra = phase._extra
    if extra is None:
        return []
    links = []
    get_context = getattr(extra.retry_of, "get_span_context", None)
    if get_context is not None:
        links.append(Link(get_context()))
    return links + list(extra.links or ())


def _time_of(when_ns: object, otherwise_ns: int) -> int:
    """Return a time that a user gave, or `otherwise_ns` for what OTLP cannot carry, which would cost a batch."""
    if isinstance(when_ns, SupportsIndex):
        whole_ns = index(when_ns)
        if 0 <= whole_ns <= MAX_TIME_NS:
            return whole_ns
    return otherwise_ns


def _when(event: SpanEvent) -> int:
    return event[1]
