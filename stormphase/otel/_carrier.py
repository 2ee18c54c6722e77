"""Carries phases in OpenTelemetry's own context: the hot path of the bridge.

Each phase makes one `Context`: that of its enter, with itself as the current span and, under a key of ours, as the
current phase, which a user's own span inside it does not hide.
"""

from __future__ import annotations

import contextvars
import logging
import os
from typing import TYPE_CHECKING, Any

import attrs
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    set_span_in_context,
)

from stormphase import _native
from stormphase._attributes import to_otel
from stormphase._lanes import ContextCarrier
from stormphase.otel import ids
from stormphase.otel._span import PhaseSpan, RealPhaseSpan, TracedPhaseSpan, is_quiet
from stormphase.otel._traces import caller_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stormphase._phase import PhaseHandle
    from stormphase.otel._sampling import SamplerQuestions
    from stormphase.otel._traces import SessionTraces, Trace

_log = logging.getLogger("stormphase")

(SPAN_KEY,) = set_span_in_context(INVALID_SPAN, Context())
"""The key of the current span. The API makes it anew in each process and offers no name for it."""

OUR_KEY_COUNT = 2

# What became of a phase's span, as its children need to know.
NEEDED = 1  # a child of it was sent, so it will be sent whatever the budget says
PROMOTED = 2  # likewise, although the trace is not sampled: something beneath it failed
SENT = 3
DROPPED = 4

ELSEWHERE = -1  # Began a trace, in another process.


def otel_variable() -> contextvars.ContextVar[Context] | None:
    """Return the variable that carries OTel's context; None where another context runtime was selected."""
    probe = Context({"stormphase-probe": 1})
    token = otel_context.attach(probe)
    try:
        # What another runtime returns here can be anything.
        variable = getattr(token, "var", None)
        if not isinstance(variable, contextvars.ContextVar) or variable.get(None) is not probe:
            return None
        inner_probe = Context({"stormphase-probe": 2})
        inner = variable.set(inner_probe)
        try:
            return variable if otel_context.get_current() is inner_probe else None
        finally:
            variable.reset(inner)
    finally:
        otel_context.detach(token)


class SpanCarrier(ContextCarrier):
    """Carries phases whose spans are built after they have ended, all in the session's trace."""

    handle_type = PhaseSpan
    # Whether a phase that was not sampled is sent all the same if it fails.
    keeps_unsampled = False

    def __init__(self, variable: contextvars.ContextVar[Context], traces: SessionTraces) -> None:
        """Carry phases in `variable`; a key of its own keeps trackers apart."""
        self.variable: contextvars.ContextVar[Any] = variable
        self.traces = traces
        self.phase_key = otel_context.create_key("stormphase-phase")
        # What the core calls at enter and at resume: see `ContextCarrier.put`.
        self.put = self._make_put()

    def _make_put(self) -> Callable[[Any], contextvars.Token[Any]]:
        # A closure: its variables are found faster than attributes, and no frame stands between it and C.
        if _native.speedups is not None:
            compiled: Callable[[Any], contextvars.Token[Any]]
            compiled = _native.speedups.span_put(self.variable, SPAN_KEY, self.phase_key, Context, PhaseSpan)
            return compiled
        get = self.variable.get
        set_variable = self.variable.set
        span_key = SPAN_KEY
        phase_key = self.phase_key
        context_type = Context
        # The last context seen to hold nothing that a phase does not replace: that of the phase around, for a loop.
        plain_outer: Context | None = None

        def put(phase: PhaseSpan) -> contextvars.Token[Any]:
            """Make `phase` current, and note on it the context in which it was entered."""
            nonlocal plain_outer
            outer = get()
            extra = phase._extra
            if extra is None or extra.resumed_ns is None:
                phase._outer = outer
            if outer is plain_outer:
                return set_variable(context_type({span_key: phase, phase_key: phase}))
            values = outer.copy()
            values[span_key] = values[phase_key] = phase
            if len(values) == OUR_KEY_COUNT:
                plain_outer = outer
            return set_variable(context_type(values))

        return put

    def current_phase(self) -> PhaseHandle | None:
        """Return this session's phase that the caller's context carries, whichever lane it is on."""
        phase: PhaseHandle | None = self.variable.get().get(self.phase_key)
        return phase

    def join(self, phase: PhaseHandle) -> None:
        """Make a phase of another lane the current one, and its span, as where the context is copied under it."""
        values = {**self.variable.get(), self.phase_key: phase}
        if getattr(phase, "_real", phase) is not None:  # Else no tracer made a span of it.
            values[SPAN_KEY] = phase
        self.variable.set(Context(values))

    def value_before(self, phase: PhaseHandle) -> Context:
        """Return the context in which `phase` was entered."""
        return phase._outer if isinstance(phase, PhaseSpan) else Context()

    def adopt(self, phase: PhaseHandle | None, trace: Mapping[str, str]) -> contextvars.Token[Any]:
        """Make a phase of another process the current one: a remote span, in the trace that it is in there."""
        context = caller_of({name.upper(): value for name, value in trace.items()})
        outer = self.variable.get()
        ours = (SPAN_KEY, self.phase_key)
        values = {key: value for key, value in outer.items() if key not in ours}
        if context is not None:
            values[SPAN_KEY] = NonRecordingSpan(context)
        if isinstance(phase, PhaseSpan):
            phase._outer = outer
            if context is not None:
                phase._span_context = context
            self._be_in_trace(phase, context)
            values[self.phase_key] = phase
        return self.variable.set(Context(values))

    def _be_in_trace(self, phase: PhaseSpan, context: SpanContext | None) -> None:
        """Note which trace the phases under a phase of another process are in; here it is the session's."""

    def visible_parent(self, phase: PhaseHandle) -> PhaseSpan | None:
        """Return the nearest ancestor whose span arrives, or may; None if that is the rank's span."""
        parent = phase.parent
        while parent is not None and (is_quiet(parent) or getattr(parent, "_fate", None) == DROPPED):
            parent = parent.parent
        return parent if isinstance(parent, PhaseSpan) else None

    def visible_parent_context(self, phase: PhaseHandle) -> SpanContext:
        """Return the context of the nearest span above that arrives: a phase's, else the rank's."""
        parent = self.visible_parent(phase)
        return self.traces.rank if parent is None else parent.get_span_context()

    def above(self, phase: PhaseSpan, trace: Trace) -> tuple[SpanContext | None, list[Link]]:
        """Return the parent of the phase's span, and the links that say what else it was entered under.

        A user's own span, current at enter, is the parent if it is in the phase's trace; else it is linked to. At the
        root of a trace of its own, what would have been the parent is linked to.
        """
        parent = self.visible_parent_context(phase)
        links = []
        user_context = self._users_span_around(phase)
        if user_context is not None:
            if user_context.trace_id == parent.trace_id:
                parent = user_context
            else:
                links.append(Link(user_context))
        if trace.root_sequence == phase._sequence:
            links.insert(0, Link(parent))
            return (None if trace.is_root_here else trace.root_context), links
        if parent.trace_id != trace.trace_id and trace.root_sequence is not None:
            # Beneath a trace's root that a filter keeps back: the other ranks' spans hang under the same one.
            parent = trace.root_context
        return parent, links

    def _users_span_around(self, phase: PhaseSpan) -> SpanContext | None:
        """Return the user's own span in which the phase was entered, if that was the innermost."""
        outer = getattr(phase, "_outer", None)
        span = None if outer is None else outer.get(SPAN_KEY)
        if not isinstance(span, Span):
            return None
        if isinstance(span, PhaseSpan) and span._lane.lanes is phase._lane.lanes:
            return None
        context = span.get_span_context()
        return context if context.is_valid else None


class TracedCarrier(SpanCarrier):
    """Carries phases whose trace must be found at enter, on the training thread.

    Args:
        variable: OTel's.
        traces: the session's.
        questions: asks the provider's sampler.
        trace_per: the phase name that begins a trace of its own, or None.
        asks_each: whether the sampler must be asked for every phase.
        next_occurrence: numbers those phases.
    """

    handle_type = TracedPhaseSpan

    def __init__(
        self,
        variable: contextvars.ContextVar[Context],
        traces: SessionTraces,
        *,
        questions: SamplerQuestions,
        trace_per: str | None,
        asks_each: bool,
        next_occurrence: Callable[[Any, int | None], int],
    ) -> None:
        """Carry phases in `variable`."""
        self._questions = questions
        self._trace_per = trace_per
        self._asks_each = asks_each
        self._next_occurrence = next_occurrence
        self._launch = traces.identity.session_id
        self._sends_roots = traces.identity.rank == 0
        super().__init__(variable, traces)

    def _make_put(self) -> Callable[[Any], contextvars.Token[Any]]:
        get = self.variable.get
        put_in_context = super()._make_put()

        def put(phase: TracedPhaseSpan) -> contextvars.Token[Any]:
            """Find the phase's trace, and make it current."""
            if not was_put_before(phase):
                phase._outer = get()
                phase._trace = self._trace_at_enter(phase)
            return put_in_context(phase)

        return put

    def _be_in_trace(self, phase: PhaseSpan, context: SpanContext | None) -> None:
        session = self.traces.session
        if not isinstance(phase, TracedPhaseSpan):
            return
        phase._trace = session
        if context is not None and context.trace_id != session.trace_id:
            is_sampled = context.trace_flags.sampled
            phase._trace = attrs.evolve(
                session,
                trace_id=context.trace_id,
                flags=context.trace_flags,
                state=context.trace_state,
                is_recording=is_sampled,
                is_sampled=is_sampled,
                attributes={},
                root_sequence=ELSEWHERE,
            )

    def after_fork_in_child(self) -> None:
        """Derive traces from a launch of the child's own: no rank shares them, and the parent goes on with its own."""
        self._launch = os.urandom(16).hex()
        self._sends_roots = True

    def _trace_at_enter(self, phase: TracedPhaseSpan) -> Trace:
        parent = phase.parent
        outer_trace = parent._trace if isinstance(parent, TracedPhaseSpan) else self.traces.session
        begins = outer_trace.root_sequence is None and phase._path.name == self._trace_per
        if not begins and not self._asks_each:
            return outer_trace
        try:
            return self._begin(phase, outer_trace) if begins else self._continue(phase, outer_trace)
        except Exception:  # noqa: BLE001 - telemetry never hurts training
            _log.warning("stormphase: finding the trace of %s failed", phase.label, exc_info=True)
            return outer_trace

    def _begin(self, phase: TracedPhaseSpan, outer_trace: Trace) -> Trace:
        path = phase._path
        place = (self._launch, self.traces.identity.attempt, path.names, phase._step)
        occurrence = self._next_occurrence(path, phase._step)
        phase._trace = outer_trace
        _, links = self.above(phase, outer_trace)
        trace = self._questions.ask(
            trace_id=ids.phase_trace_id(*place, occurrence),
            context=Context(),
            parent=None,
            name=path.name,
            attributes=self._attributes(phase),
            links=[Link(self.visible_parent_context(phase)), *links],
        )
        return attrs.evolve(
            trace,
            asked_sequence=phase._sequence,
            root_sequence=phase._sequence,
            root_id=ids.phase_root_span_id(*place, occurrence),
            is_root_here=self._sends_roots,
        )

    def _continue(self, phase: TracedPhaseSpan, outer_trace: Trace) -> Trace:
        phase._trace = outer_trace
        parent, links = self.above(phase, outer_trace)
        parent_span: Span | None = self.visible_parent(phase)
        if parent_span is None or parent_span.get_span_context() is not parent:
            parent_span = _span_of(parent)
        asked = self._questions.ask(
            trace_id=outer_trace.trace_id,
            context=set_span_in_context(parent_span, phase._outer),
            parent=parent,
            name=phase._path.name,
            attributes=self._attributes(phase),
            links=links,
        )
        # Its SpanContext, if it was made while the parent was looked for, has the parent's flags.
        if hasattr(phase, "_span_context"):
            del phase._span_context
        return attrs.evolve(
            asked,
            asked_sequence=phase._sequence,
            root_sequence=outer_trace.root_sequence,
            root_id=outer_trace.root_id,
            is_root_here=outer_trace.is_root_here,
        )

    def _attributes(self, phase: TracedPhaseSpan) -> dict[str, Any]:
        attributes = phase._attributes
        return {} if attributes is None else dict(to_otel(attributes, phase._lane.lanes.attribute_counts))


class RealCarrier(SpanCarrier):
    """Carries phases with a real span of an unknown tracer, started at enter by `start`; or none, while it is None."""

    handle_type = RealPhaseSpan

    def __init__(self, variable: contextvars.ContextVar[Context], traces: SessionTraces) -> None:
        """Carry phases in `variable`, without spans until `start` is set."""
        self.start: Callable[[RealPhaseSpan], Span | None] | None = None
        super().__init__(variable, traces)

    def _make_put(self) -> Callable[[Any], contextvars.Token[Any]]:
        get = self.variable.get
        set_variable = self.variable.set
        phase_key = self.phase_key
        context_type = Context
        plain_outer: Context | None = None  # As in SpanCarrier: most programs without a tracer have nothing else in it.

        def put(phase: RealPhaseSpan) -> contextvars.Token[Any]:
            """Start the phase's span, if there is a tracer, and make it current."""
            nonlocal plain_outer
            outer = get()
            start = self.start
            if not was_put_before(phase):
                phase._outer = outer
                phase._real = None if start is None else start(phase)
                writer = phase._lane.writer
                if phase._real is not None and writer is not None:
                    writer.traces_phases = True  # The journal is to say the span's id, which no number gives.
            if phase._real is None and outer is plain_outer:
                return set_variable(context_type({phase_key: phase}))
            values = outer.copy()
            values[phase_key] = phase
            if phase._real is not None:
                values[SPAN_KEY] = phase
            elif len(values) == 1:
                plain_outer = outer
            return set_variable(context_type(values))

        return put

    def _be_in_trace(self, phase: PhaseSpan, context: SpanContext | None) -> None:
        if isinstance(phase, RealPhaseSpan):
            phase._real = None if context is None else NonRecordingSpan(context)

    def visible_parent(self, phase: PhaseHandle) -> PhaseSpan | None:
        """Return the nearest ancestor that has a real span."""
        parent = phase.parent
        while parent is not None and (is_quiet(parent) or getattr(parent, "_real", None) is None):
            parent = parent.parent
        return parent if isinstance(parent, PhaseSpan) else None


def was_put_before(phase: PhaseSpan) -> bool:
    """Return whether a phase is being resumed: what was noted at its enter stays."""
    return phase._extra is not None and phase._extra.resumed_ns is not None


def _span_of(context: SpanContext | None) -> Span:
    return NonRecordingSpan(INVALID_SPAN_CONTEXT if context is None else context)
