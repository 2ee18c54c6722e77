"""Real spans of a tracer that is not the SDK's own, started at enter and ended at exit, on the training thread.

This is what is left where ids cannot be chosen and spans cannot be built: wrappers such as logfire's, tracers of other
makers, and an SDK that was set as the global one after the session had started. It costs what the tracer costs.
"""

# ruff: noqa: SLF001 - a span is a phase: the bridge shares the slots of the core's handles and lanes

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanKind, StatusCode, get_current_span, set_span_in_context

from stormphase.otel._facts import links_of
from stormphase.otel._span import RealPhaseSpan

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from stormphase._clock import ClockAnchor
    from stormphase._counts import Counts
    from stormphase._phase import PhaseHandle
    from stormphase.otel._build import SpanFacts
    from stormphase.otel._carrier import RealCarrier
    from stormphase.otel._facts import PhaseFacts
    from stormphase.otel._outlet import SessionSpan
    from stormphase.otel._traces import SessionTraces

_log = logging.getLogger("stormphase")


class RealSpans:
    """Starts and ends real spans; without a tracer it does nothing.

    Args:
        carrier: carries the phases; gets `start` from here.
        traces: the session's; its contexts become those of the real spans.
        facts: describes phases.
        session_span: describes the session's and the rank's spans.
        anchor: relates times.
        counts: `offered`, `handed_over` and `dropped_...`.
    """

    def __init__(
        self,
        carrier: RealCarrier,
        traces: SessionTraces,
        facts: PhaseFacts,
        *,
        session_span: SessionSpan,
        anchor: ClockAnchor,
        counts: Counts,
    ) -> None:
        """Start with no tracer."""
        self._carrier = carrier
        self._traces = traces
        self._facts = facts
        self._session_span = session_span
        self._anchor = anchor
        self._counts = counts
        self._tracer: Tracer | None = None
        self._provider: Any = None
        self._session: Span | None = None
        self._rank: Span | None = None
        self._is_child = False

    def use(self, tracer: Tracer, provider: Any) -> None:
        """Start the rank's span, and that of a session which has one rank only; phases follow from now on.

        With several ranks nobody can send the root span, as its id cannot be chosen; the ranks' spans still share its
        trace. A forked child starts neither: they are its parent's to end.
        """
        self._tracer = tracer
        self._provider = provider
        if not self._is_child:
            try:
                self._start_rank()
            except Exception:  # noqa: BLE001 - a user's tracer may raise anything, and training starts all the same
                self._count_failure()
                for span in (self._rank, self._session)[: 2 if self._traces.identity.world_size == 1 else 1]:
                    if span is None:
                        self._count_dropped()
        self._carrier.start = self.start

    def _start_rank(self) -> None:
        traces = self._traces
        around = Context() if traces.caller is None else set_span_in_context(NonRecordingSpan(traces.caller), Context())
        if traces.identity.world_size == 1:
            self._session = self._started(self._session_span.root_facts(traces, None, 0), around)
            around = set_span_in_context(self._session, Context())
            traces.root = self._session.get_span_context()
        else:
            around = set_span_in_context(NonRecordingSpan(traces.root), Context())
        self._rank = self._started(self._session_span.rank_facts(traces, None, 0), around)
        traces.rank = self._rank.get_span_context()

    def _started(self, facts: SpanFacts, around: Context) -> Span:
        assert self._tracer is not None  # noqa: S101 - set by the only caller
        return self._tracer.start_span(
            facts.name, around, SpanKind.INTERNAL, facts.attributes, list(facts.links), facts.start_ns
        )

    def start(self, phase: RealPhaseSpan) -> Span | None:
        """Start the span of a phase that is being entered; None, and counted, if the tracer fails."""
        if self._tracer is None:
            return None
        try:
            parent, links = self._carrier.above(phase, self._traces.session)
            outer = phase._outer
            if parent is not None and get_current_span(outer).get_span_context() != parent:
                outer = set_span_in_context(NonRecordingSpan(parent), outer)
            return self._tracer.start_span(
                phase._path.name,
                outer,
                SpanKind.INTERNAL,
                self._facts.enter_attributes(phase),
                links,
                self._anchor.to_wall_ns(phase._entered_ns),
            )
        except Exception:  # noqa: BLE001 - a user's tracer may raise anything, and we are on the training thread
            self._count_failure()
            self._count_dropped()
            return None

    def exit_hook(self, phase: PhaseHandle) -> None:
        """End the span of a phase that has just ended."""
        real = getattr(phase, "_real", None)
        if not isinstance(phase, RealPhaseSpan) or real is None:
            return
        self._counts.add("offered")
        try:
            trace = self._traces.session
            facts = self._facts.span(phase, trace, real.get_span_context())
            self._end(real, facts, len(facts.links) - len(links_of(phase)))
        except BaseException as error:  # also what a signal handler raised: counts stay exact
            self._counts.add("dropped_error")
            if not isinstance(error, Exception):
                raise
            self._count_failure()
            return
        self._counts.add("handed_over")

    def finish(self, outcome: BaseException | None, end_ns: int) -> None:
        """End the rank's span and the session's."""
        self._carrier.start = None
        started: list[tuple[Span, SpanFacts]] = []
        if self._rank is not None:
            started.append((self._rank, self._session_span.rank_facts(self._traces, outcome, end_ns)))
        if self._session is not None:
            started.append((self._session, self._session_span.root_facts(self._traces, outcome, end_ns)))
        self._rank = self._session = None
        for span, facts in started:
            self._counts.add("offered")
            try:
                self._end(span, facts, len(facts.links))
            except BaseException:  # noqa: BLE001 - on the worker, where a user's processor may raise anything
                self._count_failure()
                self._counts.add("dropped_error")
            else:
                self._counts.add("handed_over")

    def flush(self, timeout_ms: int) -> bool:
        """Flush the provider, if it can be; False if it says that it failed or raises."""
        force_flush = getattr(self._provider, "force_flush", None)
        try:
            return force_flush is None or force_flush(timeout_ms) is not False
        except Exception:  # noqa: BLE001 - a user's provider may raise anything
            self._count_failure()
            return False

    def _end(self, span: Span, facts: SpanFacts, started_link_count: int) -> None:
        span.set_attributes(facts.attributes)
        for link in facts.links[started_link_count:]:
            span.add_link(link.context, link.attributes)
        for name, when_ns, attributes in facts.events:
            span.add_event(name, attributes, when_ns)
        if facts.status.status_code is not StatusCode.UNSET:
            span.set_status(facts.status)
        span.update_name(facts.name)
        span.end(facts.end_ns)

    def _count_dropped(self) -> None:
        self._counts.add("offered")
        self._counts.add("dropped_error")

    def _count_failure(self) -> None:
        if not self._counts["real_span_failures"]:
            _log.warning("stormphase: the tracer raised; further failures are only counted", exc_info=True)
        self._counts.add("real_span_failures")

    def after_fork_in_child(self, counts: Counts) -> None:
        """Leave the session's and the rank's spans to the parent, and count anew."""
        self._counts = counts
        self._is_child = True
        self._rank = self._session = None
