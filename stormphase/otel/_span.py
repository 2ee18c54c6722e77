"""The open phase as OpenTelemetry's API `Span`: what the user's own spans, logs and instrumentations see as current.

It keeps what is said to it and sends nothing: the span that a backend gets is built from it after the phase has ended.
"""

# ruff: noqa: SLF001 - a span is a phase: the bridge shares the slots of the core's handles and lanes

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import INVALID_SPAN_CONTEXT, Link, Span, SpanContext, Status, StatusCode

from stormphase import _errors
from stormphase._attributes import to_otel
from stormphase._ids import to_hex
from stormphase._phase import PhaseHandle
from stormphase._plain_values import normalise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context

    from stormphase.otel._carrier import SpanCarrier
    from stormphase.otel._traces import Trace

MAX_LINKS: Final = 64
MAX_EXCEPTIONS: Final = 16
MAX_NAME_CHARS: Final = 256
MAX_DESCRIPTION_CHARS: Final = 4_096


class RecordedException:
    """An exception that the user recorded: its text, never the object, which would hold its frames."""

    __slots__ = ("attributes", "message", "stacktrace", "type", "when_ns")

    def __init__(self, kind: str, message: str, stacktrace: str, attributes: Mapping[str, Any], when_ns: int) -> None:
        """Keep what an `exception` event says; `when_ns` since the Unix epoch."""
        self.type = kind
        self.message = message
        self.stacktrace = stacktrace
        self.attributes = attributes
        self.when_ns = when_ns


class SpanNotes:
    """What was said to the current span through OTel's API and has no place in a phase; made at first need."""

    __slots__ = ("description", "exceptions", "name", "status_code")

    def __init__(self) -> None:
        """Start with nothing said."""
        self.name: str | None = None
        self.status_code = StatusCode.UNSET
        self.description: str | None = None
        self.exceptions: list[RecordedException] = []


class PhaseSpan(PhaseHandle, Span):
    """A phase handle that is the whole API `Span`.

    Thread-safe as `PhaseHandle` is. Ended by its phase only: `end()` is ignored and counted.
    """

    __slots__ = ("_fate", "_notes", "_outer", "_span_context")

    _fate: int
    _notes: SpanNotes
    _outer: Context
    _span_context: SpanContext

    @property
    def carrier(self) -> SpanCarrier:
        """What carries this session's phases in OTel's context."""
        return self._lane.lanes.carrier  # type: ignore[return-value]

    @property
    def trace(self) -> Trace:
        """The trace that the phase belongs to."""
        return self.carrier.traces.session

    @property
    def notes(self) -> SpanNotes | None:
        """What was said through OTel's API, if anything was."""
        return getattr(self, "_notes", None)

    def get_span_context(self) -> SpanContext:
        """Return the phase's ids and flags; made at the first call.

        A phase that a filter may keep from the backend answers with the nearest one that will arrive there, so that
        nothing hangs under a span that never comes.
        """
        known: SpanContext | None = getattr(self, "_span_context", None)
        if known is not None:
            return known
        if is_quiet(self):
            return self.carrier.visible_parent_context(self)
        trace = self.trace
        context = SpanContext(trace.trace_id, self.scope_id_number, False, trace.flags, trace.state)  # noqa: FBT003 - positional is twice as fast
        self._span_context = context
        return context

    def is_recording(self) -> bool:
        """Whether attributes and events will still be kept: open, of this process, and not sampled out."""
        is_kept = self.trace.is_recording or self.carrier.keeps_unsampled
        return is_kept and not self.closed and not self._lane.is_inherited

    def end(self, end_time: int | None = None) -> None:
        """Do nothing but count: the phase ends where it was entered."""
        del end_time
        self._lane.lanes.counts.add("span_end_ignored")

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        """Link to another span; at most `MAX_LINKS`, invalid ones and those after the end are counted and dropped."""
        lanes = self._lane.lanes
        extra = self._extra_or_new()
        links = extra.links
        if links is None:
            links = extra.links = []
        if self.closed or len(links) >= MAX_LINKS or not context.is_valid:
            lanes.counts.add("links_dropped")
            return
        counts = lanes.attribute_counts
        taken = to_otel(lanes.taken(attributes or {}, counts, lanes.redactor) or {}, counts)
        links.append(Link(context, taken))

    def update_name(self, name: str) -> None:
        """Give the span another name than the phase's; the phase keeps its own."""
        notes = self._notes_while_open()
        if notes is not None:
            notes.name = self._told(name, MAX_NAME_CHARS)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the span's status; UNSET is ignored and OK is final, as in the SDK. The phase's failure outranks it."""
        code: object = status.status_code if isinstance(status, Status) else status
        text = status.description if isinstance(status, Status) else description
        notes = self._notes_while_open()
        if notes is None or code is StatusCode.UNSET or notes.status_code is StatusCode.OK:
            return
        if not isinstance(code, StatusCode):  # As the SDK does: to send it would cost the whole batch.
            return
        notes.status_code = code
        notes.description = None
        if code is StatusCode.ERROR and text is not None:
            notes.description = self._told(text, MAX_DESCRIPTION_CHARS)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT001, FBT002 - OTel's signature
    ) -> None:
        """Note an exception; one recorded before, here or in a phase inside, or that ends this one, counts once."""
        del escaped
        lanes = self._lane.lanes
        notes = self._notes_while_open()
        if notes is None:
            return
        if _errors.was_recorded(exception, self.scope_id) or _errors.trusted_origin(exception, self) is not None:
            return
        if len(notes.exceptions) >= MAX_EXCEPTIONS:
            lanes.counts.add("events_dropped")
            return
        _errors.note_recorded(exception, self.scope_id)
        when_ns = lanes.anchor.to_wall_ns(lanes.now()) if timestamp is None else timestamp
        notes.exceptions.append(
            RecordedException(
                _errors.type_name(exception),
                _errors.text_of(exception, lanes.redactor),
                _errors.format_traceback(exception, lanes.redactor),
                lanes.taken(attributes or {}, lanes.attribute_counts, lanes.redactor) or {},
                when_ns,
            )
        )

    def _told(self, text: object, limit: int) -> str:
        lanes = self._lane.lanes
        plain = text if isinstance(text, str) else str(normalise(text, lanes.attribute_counts))
        redactor = lanes.redactor
        return _errors._bounded(plain if redactor is None else redactor.begin(plain, limit), limit)

    def _notes_while_open(self) -> SpanNotes | None:
        if self.closed:
            self._lane.lanes.counts.add("span_calls_after_end")
            return None
        notes = self.notes
        if notes is None:
            notes = self._notes = SpanNotes()
        return notes


class _NamedSpan(PhaseSpan):
    """A phase whose id may be another one than its number gives."""

    __slots__ = ()

    @property
    def scope_id(self) -> str:
        """The phase's identity, 16 hex digits; also its span id."""
        return to_hex(self.scope_id_number)


class TracedPhaseSpan(_NamedSpan):
    """A phase whose trace was found at enter: with `trace_per`, or with a sampler to be asked for every phase."""

    __slots__ = ("_trace",)

    _trace: Trace

    @property
    def trace(self) -> Trace:
        """The trace that the phase belongs to, with the sampler's word on the phase."""
        return self._trace

    @property
    def scope_id_number(self) -> int:
        """The scope id; at the root of a trace that all ranks share it is derived, and the same for all of them."""
        trace: Trace | None = getattr(self, "_trace", None)
        if trace is not None and trace.root_sequence == self._sequence and trace.is_root_here:
            return trace.root_id
        return super().scope_id_number


class RealPhaseSpan(_NamedSpan):
    """A phase with a real span of an unknown tracer beside it, started at enter; None while there is no tracer."""

    __slots__ = ("_real",)

    _real: Span | None

    def get_span_context(self) -> SpanContext:
        """Return the real span's context."""
        real: Span | None = getattr(self, "_real", None)
        if real is None or is_quiet(self):
            return self.carrier.visible_parent_context(self)
        return real.get_span_context()

    def is_recording(self) -> bool:
        """Whether the real span records and the phase is open."""
        real = self._real
        return real is not None and not self.closed and not self._lane.is_inherited and real.is_recording()

    @property
    def scope_id_number(self) -> int:
        """The real span's id, so that scope id and span id are one; the phase's own if there is no real span."""
        real = getattr(self, "_real", None)
        context = INVALID_SPAN_CONTEXT if real is None else real.get_span_context()
        return context.span_id or super().scope_id_number


def is_quiet(phase: PhaseHandle) -> bool:
    """Return whether a filter keeps the phase from the backend unless it fails."""
    extra = phase._extra
    return extra is not None and extra.is_quiet
