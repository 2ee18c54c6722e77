"""`OTelBridge`: a session's phases as spans, events and metrics in the user's own OpenTelemetry providers."""

# ruff: noqa: SLF001 - a span is a phase: the bridge shares the slots of the core's handles and lanes

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace as otel_trace

from stormphase import _boundary
from stormphase._copying import CopiesToItself
from stormphase._counts import Counts
from stormphase._lanes import ContextCarrier
from stormphase._overdue import OverdueNotice
from stormphase._status import FAILURES
from stormphase.exceptions import ConfigurationError
from stormphase.otel import _arguments, _carrier, _journaling, _provider, _traces
from stormphase.otel._events import EventLog
from stormphase.otel._facts import PhaseFacts
from stormphase.otel._long_open import LONG_NS, LongOpen
from stormphase.otel._metrics import PhaseMetrics
from stormphase.otel._outlet import SessionSpan, SpanOutlet
from stormphase.otel._provider import Way
from stormphase.otel._real import RealSpans
from stormphase.otel._sampling import SamplerQuestions, ask_for_session, children_inherit
from stormphase.otel._span import PhaseSpan
from stormphase.otel._underway import TOLD_A_TICK, Underway

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from stormphase._bridge import BridgeSession
    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase.capture import CapturedLine
    from stormphase.otel._background import BackgroundRecovery
    from stormphase.otel._provider import SdkTracer
    from stormphase.otel._said import OutputLog

_NO_BOUNDARIES: Final = (False, False)
_BOTH_BOUNDARIES: Final = (True, True)


class OTelBridge(CopiesToItself):
    """Sends phases to the OpenTelemetry backend that its owner already has. Give it to one `PhaseTracker`.

    Never sets a global provider. What it costs the training thread is one context variable set and reset a phase; spans
    are built on the tracker's worker after their phase has ended, unless the tracer is not the SDK's own.

    Args:
        tracer_provider: takes the spans; by default the global one when the session starts.
        logger_provider: takes the events; by default the global one.
        meter_provider: takes the metrics; by default the global one.
        events: which boundaries become events: "long" (an enter once a phase has been open for a second, the exit of
            those and of every failure), "all" or "off".
        events_to: "logs" for log-based OTel events, or "span" for events on the phase's span, for backends without
            OTLP logs.
        trace_per: the name of a phase that begins a trace of its own, such as "step", the same on all ranks; a link
            leads to the session's trace.
        keep_failures: whether a failed phase and its ancestors are sent although the sampler dropped their trace.
        pending: whether a phase that has been open for a second sends a pending span, so that it shows while it runs.
        metrics: whether durations, open phases and drops are also sent as metrics.
        span_budget: how many spans the session's trace may have, all ranks together; None for no limit. Beyond it
            spans are dropped and counted, failures are not. Traces made by `trace_per` have no budget.
        recover: whether a next attempt sends what dead ones left in their journals, by OTLP over HTTP to the endpoint
            in OpenTelemetry's variables; or the address of another endpoint.

    Attributes:
        phase_trace_facts: for a journal: returns what must be kept of a phase's trace, or None; itself None where no
            phase has anything to say. Set by `attach`.
        on_handed_over: called on the worker with ended phases, each of them once, whose spans were handed over and have
            left the SDK's queue, or were deliberately not sent.
        on_finished: called on the worker once the rank's and the session's spans were handed over and flushed.

    Raises:
        ConfigurationError: if an argument cannot work.
    """

    def __init__(
        self,
        tracer_provider: Any = None,
        logger_provider: Any = None,
        meter_provider: Any = None,
        *,
        events: str = "long",
        events_to: str = "logs",
        trace_per: str | None = None,
        keep_failures: bool = False,
        pending: bool = False,
        metrics: bool = False,
        span_budget: int | None = _arguments.SPAN_BUDGET,
        recover: bool | str = True,
    ) -> None:
        """Check the arguments; nothing starts yet."""
        _arguments.check_provider("tracer_provider", tracer_provider, "get_tracer")
        _arguments.check_provider("logger_provider", logger_provider, "get_logger")
        _arguments.check_provider("meter_provider", meter_provider, "get_meter")
        _arguments.check_choice("events", events, _arguments.EVENTS)
        _arguments.check_choice("events_to", events_to, _arguments.EVENTS_TO)
        _arguments.check_budget(span_budget)
        self._tracer_provider = tracer_provider
        self._logger_provider = logger_provider
        self._meter_provider = meter_provider
        self._events_mode = events
        self._events_on_spans = events_to == "span"
        self._trace_per = _arguments.checked_name(trace_per)
        self._keep_failures = keep_failures
        self._pending = pending
        self._wants_metrics = metrics
        self._span_budget = span_budget
        self._recover = _arguments.checked_recover(recover)
        self._recovery: BackgroundRecovery | None = None
        self.exit_hook: Callable[[PhaseHandle], object] | None = None
        self.phase_trace_facts: Callable[[PhaseHandle], Mapping[str, Any] | None] | None = None
        self.on_handed_over: Callable[[Sequence[PhaseHandle]], object] | None = None
        self.on_finished: Callable[[], object] | None = None
        self._output: OutputLog | None = None
        self._session: BridgeSession | None = None
        self._way = Way.NONE
        self._sdk: SdkTracer | None = None
        self._tracer: otel_trace.Tracer | None = None
        self._traces: _traces.SessionTraces | None = None
        self._carrier: ContextCarrier = ContextCarrier()
        self._lanes: LaneSet | None = None
        self._facts: PhaseFacts | None = None
        self._outlet: SpanOutlet | None = None
        self._real: RealSpans | None = None
        self._events: EventLog | None = None
        self._metrics: PhaseMetrics | None = None
        self._long_open = LongOpen()
        self._flushed_open = LongOpen()
        self._underway = Underway(lambda: 0 if self._outlet is None else self._outlet.waiting())
        self._counts = Counts()
        self._is_forked_child = False
        self._has_finished = False
        self._exception_signals = frozenset({"spans"})
        self._puts_all_on_spans = events == "all" and self._events_on_spans
        self._emits_all = events == "all" and not self._events_on_spans

    # Called by the tracker, on the thread that starts it

    def attach(self, session: BridgeSession) -> ContextCarrier:
        """Look at the providers, choose the way, ask the session's sampler, and return what carries the phases.

        Raises:
            ConfigurationError: if the bridge already serves a tracker, or the provider gives no tracer.
        """
        if self._session is not None:
            raise ConfigurationError(
                "An OTelBridge serves one tracker, and this one already does.",
                setting="bridge",
                fix="Make a new OTelBridge for each PhaseTracker.",
            )
        self._session = session
        self._exception_signals = _arguments.exception_signals(session.environ)
        variable = _carrier.otel_variable()
        if variable is None:
            _arguments.warn_of_context()
            return self._carrier
        provider = otel_trace.get_tracer_provider() if self._tracer_provider is None else self._tracer_provider
        self._way, self._tracer, self._sdk = _provider.checked_tracer(provider)
        sampler = None if self._sdk is None else self._sdk.sampler
        questions = SamplerQuestions(sampler)
        traces = self._traces = ask_for_session(session, questions)
        if self._sdk is None:
            _arguments.warn_of_trace_per(self._trace_per if self._way is Way.REAL else None)
            self._carrier = _carrier.RealCarrier(variable, traces)
            return self._carrier
        asks_each = not children_inherit(sampler)
        if self._trace_per is None and not asks_each and not session.is_worker:
            carrier = _carrier.SpanCarrier(variable, traces)
        else:
            carrier = _carrier.TracedCarrier(
                variable,
                traces,
                questions=questions,
                trace_per=self._trace_per,
                asks_each=asks_each,
                next_occurrence=_traces.Occurrences().next,
            )
            self.phase_trace_facts = _journaling.phase_trace_facts
        carrier.keeps_unsampled = self._keep_failures
        self._carrier = carrier
        return carrier

    def bind(self, lanes: LaneSet) -> None:
        """Learn the lanes made with the carrier that `attach` returned."""
        session, traces = self._session, self._traces
        if session is None or traces is None:
            return
        self._lanes = lanes
        facts = self._facts = PhaseFacts(
            session.identity, lanes, exceptions_on_spans="spans" in self._exception_signals
        )
        started_ns = session.anchor.to_wall_ns(session.started_ns)
        session_span = SessionSpan(session.name, session.pid, started_ns, lanes.redactor)
        if self._sdk is not None:
            self._outlet = SpanOutlet(
                self._sdk,
                traces,
                facts,
                session_span=session_span,
                span_budget=self._span_budget,
                keep_failures=self._keep_failures,
                counts=self._counts,
            )
        elif isinstance(self._carrier, _carrier.RealCarrier) and self._way in (Way.REAL, Way.LATE):
            self._real = RealSpans(
                self._carrier, traces, facts, session_span=session_span, anchor=session.anchor, counts=self._counts
            )
            self.exit_hook = self._real.exit_hook
            if self._tracer is not None:
                self._real.use(self._tracer, self._tracer_provider or otel_trace.get_tracer_provider())
        self._events = EventLog(self._logger_provider, facts, session.clock, self._counts)
        if self._wants_metrics:
            self._metrics = PhaseMetrics(self._meter_provider, facts, lanes, self._dropped)

    def environment(self) -> dict[str, str]:
        """Return `TRACEPARENT` and `TRACESTATE` of the caller's current phase, else of the rank; from any thread."""
        traces, session = self._traces, self._session
        if traces is None or session is None or self._way in (Way.NONE, Way.LATE):
            return {}
        phase = self._carrier.current_phase()
        context = traces.rank
        if isinstance(phase, PhaseSpan) and not phase.closed:
            context = phase.get_span_context()
        return _traces.environment_for(context, session.environ)

    def journal_facts(self) -> dict[str, Any] | None:
        """Return what a journal must keep so that recovery can send what this process may leave behind.

        JSON values, less than 8 KiB of them. None where spans are not made by us: there is nothing to recover then.
        """
        traces = self._traces
        if traces is None or self._sdk is None or not self._sdk.is_enabled():
            return None
        return _journaling.session_facts(
            traces,
            self._sdk,
            trace_per=self._trace_per,
            keep_failures=self._keep_failures,
            span_events=self._events_mode if self._events_on_spans else "off",
            has_exceptions="spans" in self._exception_signals,
        ).to_json()

    def recover(self, directory: Path) -> None:
        """Begin to send what dead attempts of this session left in `directory`, on a thread of its own.

        Each host's first rank does so for its own, if there was an attempt before this one.
        """
        session = self._session
        if session is not None and self._sdk is not None:
            self._recovery = _journaling.start_recovery(directory, session, recover=self._recover)

    # Called by the tracker, on the bridge's worker thread

    def take(self, phase: PhaseHandle | OverdueNotice) -> None:
        """Send what there is to say of one ended or overdue phase; children come before their parents on a lane."""
        outlet = self._outlet
        if (
            type(phase) is PhaseSpan
            and phase._extra is None
            and outlet is not None
            and phase._ended_ns - phase._entered_ns < LONG_NS
            and outlet.take_plain(phase, with_boundaries=self._puts_all_on_spans)
        ):
            # As nearly every phase is, so all that there is to do for one stands here, in few calls.
            try:
                if self._metrics is not None:
                    self._metrics.record_guarded(phase, self._counts)
                if self._emits_all:
                    was_announced = self._has_announced(phase)
                    self._emit(phase, _BOTH_BOUNDARIES, is_failure=False, was_announced=was_announced, is_sent=True)
                if self._output is not None and self.takes_output:
                    self._output(phase)
            finally:
                if self.on_handed_over is not None:
                    self._underway.take(phase, self.on_handed_over)
            return
        if isinstance(phase, OverdueNotice):
            self._announce_overdue(phase)
            return
        try:
            self._take(phase)
            if self._output is not None and self.takes_output:
                self._output(phase)
        finally:
            # Also where a processor raised: it has been given the phase, and nothing is handed over twice.
            if self.on_handed_over is not None:
                self._note_handed_over(phase, self.on_handed_over)

    def _note_handed_over(self, phase: PhaseHandle, tell: Callable[[Sequence[PhaseHandle]], object]) -> None:
        """Tell of a phase whose span the processors have taken for good, or that none of them shall have."""
        if self._outlet is not None and self._outlet.has_queued(phase):
            self._underway.take(phase, tell)
        else:
            tell((phase,))

    @property
    def takes_output(self) -> bool:
        """Whether what phases say can be sent, as log records."""
        return self._events is not None and self._events.has_logger

    def use_output(self, output_of: Callable[[PhaseHandle], Sequence[CapturedLine]]) -> None:
        """Send what ended phases said, as log records; called on the thread that begins to capture."""
        # Loaded only by programs that capture; and here, as a fork beside an import leaves the child its lock.
        from stormphase.otel._said import OutputLog  # noqa: PLC0415

        if self._events is not None and self._facts is not None:
            self._output = OutputLog(self._events, self._facts, output_of)

    def _announce_overdue(self, notice: OverdueNotice) -> None:
        if self._events is not None and self._lanes is not None and isinstance(notice.phase, PhaseSpan):
            self._events.overdue(notice.phase, self._lanes.anchor.to_wall_ns(notice.at_ns), notice.limit_ns)

    def _take(self, phase: PhaseHandle) -> None:
        if not isinstance(phase, PhaseSpan):
            return
        if self._metrics is not None:
            self._metrics.record_guarded(phase, self._counts)
        is_failure = phase._status in FAILURES
        was_announced = self._has_announced(phase)
        wants = self._wanted_boundaries(phase, is_failure=is_failure, was_announced=was_announced)
        is_sent = False
        if self._outlet is not None:
            is_sent = self._outlet.take(phase, wants if self._events_on_spans else _NO_BOUNDARIES)
        elif isinstance(self._carrier, _carrier.RealCarrier):
            is_sent = getattr(phase, "_real", None) is not None
        if wants != _NO_BOUNDARIES or is_failure:
            self._emit(phase, wants, is_failure=is_failure, was_announced=was_announced, is_sent=is_sent)

    def _wanted_boundaries(self, phase: PhaseSpan, *, is_failure: bool, was_announced: bool) -> tuple[bool, bool]:
        """Return whether the enter and the exit of an ended phase are events."""
        if self._events_mode == "off":
            return _NO_BOUNDARIES
        if self._events_mode == "all":
            return _BOTH_BOUNDARIES
        is_long = was_announced or _boundary.duration_ns(phase) >= LONG_NS
        return (is_long, is_long or is_failure)

    def _emit(
        self, phase: PhaseSpan, wants: tuple[bool, bool], *, is_failure: bool, was_announced: bool, is_sent: bool
    ) -> None:
        events = self._events
        if events is None or not events.has_logger:
            return
        wants_enter, wants_exit = wants
        in_logs = "logs" in self._exception_signals
        if self._events_on_spans:
            # On a span that is not sent a failure would be silent.
            wants_enter, wants_exit = False, is_failure and wants_exit and not is_sent
        if is_failure and in_logs:
            wants_exit = True
        to_wall_ns = phase._lane.lanes.anchor.to_wall_ns
        if wants_enter and not was_announced:
            events.enter(phase, to_wall_ns(phase._entered_ns))
        if wants_exit:
            events.exit(phase, to_wall_ns(phase._ended_ns), with_exception=in_logs or not is_sent)

    def tick(self) -> None:
        """Look for providers set meanwhile, and announce the phases that have been open for a second."""
        if self._lanes is None:
            return
        if self._way is Way.LATE:
            self._look_for_tracer()
        if self._events is not None:
            self._events.look_again()
        if self._outlet is not None:
            self._outlet.tick()
        if self.on_handed_over is not None:
            self._underway.settle(self.on_handed_over, most=TOLD_A_TICK)
        announces = self._events_mode != "off" and not self._events_on_spans
        if not announces and not self._pending:
            return
        for phase in self._long_open.newly(self._lanes):
            if announces and self._events is not None and not self._flushed_open.has_found(phase):
                self._events.enter(phase, self._lanes.anchor.to_wall_ns(phase._entered_ns))
            if self._pending and self._outlet is not None:
                self._outlet.send_pending(phase, self._lanes.anchor.to_wall_ns(self._lanes.now()))

    def _has_announced(self, phase: PhaseSpan) -> bool:
        """Return whether the enter of a phase, which has ended, was an event while it was open."""
        was_flushed = self._flushed_open.forget(phase)
        return self._long_open.forget(phase) or was_flushed

    def _emit_open_enters(self, lanes: LaneSet, events: EventLog) -> None:
        """Emit the enters of phases that are open: as a rule they go out with the exit, or when it takes long."""
        for phase in self._flushed_open.newly(lanes, 0):
            if not self._long_open.has_found(phase):
                events.enter(phase, lanes.anchor.to_wall_ns(phase._entered_ns))

    def _look_for_tracer(self) -> None:
        """Use a tracer provider that was set as the global one after the session had started."""
        provider = otel_trace.get_tracer_provider()
        way, tracer, sdk = _provider.resolve_tracer(provider)
        if way is Way.LATE or self._real is None:
            return
        self._way = Way.REAL if way is not Way.NONE else Way.NONE
        tracer = sdk.tracer if sdk is not None else tracer
        if tracer is not None:
            self._real.use(tracer, provider)
            _arguments.warn_of_trace_per(self._trace_per if self._way is Way.REAL else None)

    def flush(self, timeout_s: float) -> bool:
        """Flush the user's processors; False if one says that it failed. The SDK may take longer than asked."""
        timeout_ms = max(1, int(timeout_s * 1_000))
        if self._emits_all and self._lanes is not None and self._events is not None:
            self._emit_open_enters(self._lanes, self._events)
        spans = self._outlet is None or self._outlet.flush(timeout_ms)
        logs = self._events is None or self._events.flush(timeout_ms)
        reals = self._real is None or self._real.flush(timeout_ms)
        if self.on_handed_over is not None:
            self._underway.settle(self.on_handed_over)
        if spans and self._has_finished and self.on_finished is not None:
            self.on_finished()
        return spans and logs and reals

    def finish(self, outcome: BaseException | None, ended_ns: int) -> None:
        """Send the rank's span and, on rank 0, the session's, which ended at `ended_ns` on the monotonic clock.

        A forked child leaves that to its parent.
        """
        session = self._session
        if session is None or self._is_forked_child:
            return
        end_ns = session.anchor.to_wall_ns(ended_ns)
        if self._outlet is not None:
            self._outlet.finish(outcome, end_ns)
        if self._real is not None:
            self._real.finish(outcome, end_ns)
        self._has_finished = True
        if self._recovery is not None:
            self._recovery.stop()

    def after_fork_in_child(self) -> None:
        """Forget what the parent has counted and started; the session's and the rank's spans are its own."""
        self._is_forked_child = True
        self._underway.forget()
        self.on_handed_over = self.on_finished = self._recovery = None  # The parent's.
        self._counts = counts = Counts()
        self._long_open = LongOpen()
        self._flushed_open = LongOpen()
        if isinstance(self._carrier, _carrier.TracedCarrier):
            self._carrier.after_fork_in_child()
        for part in (self._outlet, self._real, self._events):
            if part is not None:
                part.after_fork_in_child(counts)

    def stats(self) -> dict[str, int]:
        """Return exact counts by name: offered = handed_over + dropped, and each reason as `dropped_...`."""
        flush_count = 0 if self._outlet is None else self._outlet.pacer.flush_count
        stats = {"offered": 0, "handed_over": 0, **self._counts.to_dict(), "flushes": flush_count}
        stats["dropped"] = sum(self._dropped().values())
        if self._outlet is not None:
            stats["offered"] += self._outlet.offered_count
            stats["handed_over"] += self._outlet.handed_over_count
        if self._events is not None and self._events.emitted_count:
            stats["events_emitted"] = self._events.emitted_count
        return stats

    def _dropped(self) -> dict[str, int]:
        found = {name.partition("dropped_")[2]: count for name, count in self._counts.to_dict().items()}
        return {reason: count for reason, count in found.items() if reason}
