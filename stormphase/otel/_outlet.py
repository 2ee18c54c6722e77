"""Decides of each ended phase whether its span is sent, sends it, and counts. For the bridge's worker thread."""

# ruff: noqa: SLF001 - a span is a phase: the bridge shares the slots of the core's handles and lanes

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import Span, SpanContext, Status, StatusCode, TraceFlags

from stormphase import _errors
from stormphase._ids import scope_id_number
from stormphase._status import FAILURES, session_status_of
from stormphase.otel._budget import SpanBudget, promote
from stormphase.otel._build import UNSET, DirectSender, SpanFacts, StartedSender
from stormphase.otel._carrier import DROPPED, PROMOTED, SENT, SPAN_KEY
from stormphase.otel._facts import session_attributes
from stormphase.otel._letting_go import LettingGo
from stormphase.otel._pacing import Pacer
from stormphase.otel._provider import local_contexts
from stormphase.otel._span import PhaseSpan, is_quiet

if TYPE_CHECKING:
    from stormphase._counts import Counts
    from stormphase._phase import PhaseHandle
    from stormphase._redaction import Redactor
    from stormphase.otel._facts import PhaseFacts
    from stormphase.otel._provider import SdkTracer
    from stormphase.otel._traces import SessionTraces, Trace

_log = logging.getLogger("stormphase")

PROMOTED_ATTRIBUTE: Final = "stormphase.phase.promoted"
PENDING_ATTRIBUTE: Final = "stormphase.phase.pending"

REFRESH_AFTER: Final = 64  # spans; and at every tick, for loops that are slow
_RANK_KEY: Final = -1
_ROOT_KEY: Final = -2


class SpanOutlet:
    """The way of one session's spans to an SDK provider's processors.

    Args:
        sdk: the provider and its tracer of our scope.
        traces: the session's.
        facts: describes phases.
        session_span: describes the session's and the rank's spans.
        span_budget: for the session's trace, over all ranks; None for no limit.
        keep_failures: whether failures are sent although their trace is not sampled.
        counts: `dropped_...`.

    Attributes:
        offered_count: how many spans there were to send.
        handed_over_count: how many the processors were given.
    """

    def __init__(
        self,
        sdk: SdkTracer,
        traces: SessionTraces,
        facts: PhaseFacts,
        *,
        session_span: SessionSpan,
        span_budget: int | None,
        keep_failures: bool,
        counts: Counts,
    ) -> None:
        """Start with nothing sent."""
        self._sdk = sdk
        self._traces = traces
        self._facts = facts
        self._session_span = session_span
        self._budget = SpanBudget(span_budget, traces.identity.world_size)
        self._span_budget = span_budget
        self._keep_failures = keep_failures
        self._counts = counts
        self._is_rank_promoted = False
        self._has_warned = False
        self._letting_go = LettingGo(sdk.waiting)
        session = traces.session
        self._context_of = local_contexts(session.trace_id, session.flags, session.state)
        self._direct = DirectSender(sdk, self._letting_go.keep)
        self._started: StartedSender | None = None
        self._open_spans: dict[int, tuple[Span, int]] = {}
        self.pacer = Pacer(sdk.queue_size, sdk.room, sdk.force_flush)
        self._is_child = False
        self.offered_count = 0
        self.handed_over_count = 0
        self.refresh()

    def refresh(self) -> None:
        """Look at the provider again: processors may be added and our scope switched off at any time."""
        self._takes_readable = self._sdk.takes_readable()
        self._is_enabled = self._sdk.is_enabled()
        session = self._traces.session
        self._is_plain_possible = (
            self._takes_readable and self._is_enabled and session.is_sampled and self._direct.is_unlimited
        )
        self._until_refresh = REFRESH_AFTER

    def tick(self) -> None:
        """Do what is due now and then, also where no span comes."""
        self.refresh()
        self._letting_go.let_go_of_old(self.handed_over_count)

    def flush(self, timeout_ms: int) -> bool:
        """Flush the processors, and let go of all spans; False if they are known not to be delivered."""
        try:
            return self.pacer.flush(timeout_ms)
        finally:
            self._letting_go.let_go()

    @property
    def kept_count(self) -> int:
        """How many spans that were handed over are still referred to from here."""
        return len(self._letting_go)

    def waiting(self) -> int:
        """Return how many of the spans handed over last may not have been exported yet."""
        waiting = self._sdk.waiting()
        return self.pacer.unflushed_count if waiting is None else waiting

    def has_queued(self, phase: PhaseHandle) -> bool:
        """Whether the span of an ended phase was handed over, and may wait in a queue: that takes sampled ones only."""
        if not isinstance(phase, PhaseSpan) or getattr(phase, "_fate", None) != SENT:
            return False
        # What was sent although its trace is not even recorded is a failure that was promoted.
        return phase.trace.is_sampled or not phase.trace.is_recording

    def take_plain(self, phase: PhaseSpan, *, with_boundaries: bool) -> bool:
        """Send the span of a `PhaseSpan` that ended well, has no `PhaseExtra` and lies right under another; else False.

        That is nearly every phase of a training loop; this does for it what `take` does, at a third of its price.
        """
        self._until_refresh -= 1
        if self._until_refresh < 0:
            self.refresh()
        below = phase._below
        if (
            not self._is_plain_possible
            or type(below) is not PhaseSpan
            or phase._outer.get(SPAN_KEY) is not below
            or below._extra is not None
            or getattr(phase, "_notes", None) is not None
        ):
            return False
        budget = self._budget
        if budget.left is not None and getattr(phase, "_fate", None) is None:
            if budget.left < 1 or getattr(below, "_fate", None) is None:
                return False
            budget.left -= 1
        facts = self._facts
        context: SpanContext | None = getattr(phase, "_span_context", None)
        if context is None:
            context = self._context_of(scope_id_number(phase._lane.id_base, phase._sequence))
        offset_ns = facts.wall_offset_ns
        self.offered_count += 1
        phase._fate = SENT
        try:
            self._direct.send_plain(
                phase._path.name,
                context,
                getattr(below, "_span_context", None) or below.get_span_context(),
                facts.plain_attributes(phase),
                (phase._entered_ns + offset_ns, phase._ended_ns + offset_ns),
                with_boundaries=with_boundaries,
            )
        except BaseException:  # noqa: BLE001 - a user's processor may raise anything, also SystemExit
            self._count_error()
            return True
        self.handed_over_count += 1
        self.pacer.handed_over()
        return True

    def take(self, phase: PhaseSpan, boundaries: tuple[bool, bool]) -> bool:
        """Send the span of an ended phase, or count why not; returns whether it was sent."""
        self.refresh()
        self.offered_count += 1
        try:
            return self._take(phase, boundaries)
        except BaseException:  # noqa: BLE001 - counts stay exact, whatever goes wrong
            phase._fate = DROPPED
            self._count_error()
            return False

    def _take(self, phase: PhaseSpan, boundaries: tuple[bool, bool]) -> bool:
        trace = phase.trace
        reason, is_promoted = self._verdict(phase, trace)
        if reason is not None:
            phase._fate = DROPPED
            self._open_spans.pop(phase._sequence, None)
            self._counts.add(reason)
            return False
        context = own_context(phase, trace)
        if is_promoted:
            context = _sampled(context)
        facts = self._facts.span(phase, trace, context, boundaries=boundaries)
        if is_promoted:
            facts.attributes[PROMOTED_ATTRIBUTE] = True
        phase._fate = SENT
        if not self._takes_readable:
            self._start_ancestors(phase)
        return self._hand_over(facts, phase._sequence)

    def _verdict(self, phase: PhaseSpan, trace: Trace) -> tuple[str | None, bool]:
        """Return why the span is dropped, or None; and whether it is sent against the sampler's word."""
        if not self._is_enabled:
            return "dropped_disabled", False
        is_failure = phase._status in FAILURES
        if trace.is_sampled:
            if trace.root_sequence is None and not self._budget.admits(phase, is_failure=is_failure):
                self._warn_of_budget()
                return "dropped_over_budget", False
            return None, False
        if self._keep_failures and (is_failure or getattr(phase, "_fate", None) == PROMOTED):
            promote(phase)
            self._is_rank_promoted = True
            return None, True
        return (None if trace.is_recording else "dropped_unsampled"), False

    def send_pending(self, phase: PhaseSpan, now_ns: int) -> None:
        """Send a span that says that `phase` is still open: of a new id, beneath the phase's own, which comes later."""
        trace = phase.trace
        self.refresh()
        if not trace.is_sampled or not self._is_enabled:
            return
        self.offered_count += 1
        if trace.root_sequence is None and not self._budget.admits_pending(phase):
            self._counts.add("dropped_over_budget")
            return
        try:
            facts = self._pending_facts(phase, trace, now_ns)
        except BaseException:  # noqa: BLE001 - counts stay exact, whatever goes wrong
            self._count_error()
            return
        self._hand_over(facts)

    def _pending_facts(self, phase: PhaseSpan, trace: Trace, now_ns: int) -> SpanFacts:
        own = own_context(phase, trace)
        facts = self._facts.started_span(phase, trace, own)
        pending_id = int.from_bytes(os.urandom(8), "big") or 1
        facts.context = SpanContext(own.trace_id, pending_id, False, own.trace_flags, own.trace_state)  # noqa: FBT003
        facts.parent = own
        facts.links = ()
        facts.end_ns = now_ns
        facts.attributes[PENDING_ATTRIBUTE] = True
        return facts

    def finish(self, outcome: BaseException | None, end_ns: int) -> None:
        """Send the rank's span and, on rank 0, the session's root span."""
        traces = self._traces
        ranks = self._session_span
        self._send_session_span(_RANK_KEY, ranks.rank_facts(traces, outcome, end_ns))
        if traces.identity.rank == 0:
            self._send_session_span(_ROOT_KEY, ranks.root_facts(traces, outcome, end_ns))

    def _send_session_span(self, key: int, facts: SpanFacts) -> None:
        self.refresh()
        self.offered_count += 1
        if not self._is_enabled:
            self._counts.add("dropped_disabled")
            return
        if not facts.trace.is_sampled:
            if not self._is_rank_promoted:
                if not facts.trace.is_recording:
                    self._counts.add("dropped_unsampled")
                    return
            else:
                facts.context = _sampled(facts.context)
                facts.attributes[PROMOTED_ATTRIBUTE] = True
        self._hand_over(facts, key)

    def _hand_over(self, facts: SpanFacts, key: int | None = None) -> bool:
        try:
            if self._takes_readable:
                self._direct.send(facts)
            else:
                self._start_and_end(facts, key)
        except BaseException:  # noqa: BLE001 - a user's processor may raise anything, also SystemExit
            self._count_error()
            return False
        self.handed_over_count += 1
        self.pacer.handed_over()
        return True

    def _count_error(self) -> None:
        if not self._counts["dropped_error"]:
            _log.warning("stormphase: a span could not be handed over; more are only counted", exc_info=True)
        self._counts.add("dropped_error")
        self.pacer.unflushed_count += 1  # It may have got it all the same.

    def _start_and_end(self, facts: SpanFacts, key: int | None) -> None:
        sender = self._starter()
        started = None if key is None else self._open_spans.pop(key, None)
        span, link_count = (sender.start(facts), len(facts.links)) if started is None else started
        sender.end(span, facts, started_link_count=link_count)

    def _starter(self) -> StartedSender:
        if self._started is None:
            self._started = StartedSender(self._sdk)
        return self._started

    def _start_ancestors(self, phase: PhaseSpan) -> None:
        """Start what the phase hangs under: some processors understand a parent only if it starts before its child."""
        sender = self._starter()
        if _RANK_KEY not in self._open_spans and not self._is_child:
            ranks = self._session_span
            if self._traces.identity.rank == 0:
                self._open(sender, _ROOT_KEY, ranks.root_facts(self._traces, None, ranks.start_ns))
            self._open(sender, _RANK_KEY, ranks.rank_facts(self._traces, None, ranks.start_ns))
        waiting = []
        parent = phase.carrier.visible_parent(phase)
        while (
            parent is not None
            and parent._sequence not in self._open_spans
            and getattr(parent, "_fate", None) not in (SENT, DROPPED)
        ):
            if not parent._lane.is_inherited:  # What a parent process has open is its own to start.
                waiting.append(parent)
            parent = parent.carrier.visible_parent(parent)
        for ancestor in reversed(waiting):
            trace = ancestor.trace
            if trace.is_recording or getattr(ancestor, "_fate", None) == PROMOTED:
                context = own_context(ancestor, trace)
                context = context if trace.is_recording else _sampled(context)
                self._open(sender, ancestor._sequence, self._facts.started_span(ancestor, trace, context))

    def _open(self, sender: StartedSender, key: int, facts: SpanFacts) -> None:
        try:
            self._open_spans[key] = (sender.start(facts), len(facts.links))
        except BaseException:  # noqa: BLE001 - a user's processor may raise anything; the end will tell
            _log.debug("stormphase: starting a span failed", exc_info=True)

    def _warn_of_budget(self) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        _log.warning(
            "stormphase: the session's trace has reached its budget of %s spans over all ranks; further spans are "
            "dropped and counted, failures are not. Give each step a trace of its own with "
            'OTelBridge(trace_per="step"), or raise span_budget if the backend takes larger traces.',
            self._span_budget,
        )

    def after_fork_in_child(self, counts: Counts) -> None:
        """Forget the spans that the parent has open, and count anew."""
        self._counts = counts
        self._open_spans = {}
        self._letting_go.let_go()
        self._is_child = True
        self.offered_count = self.handed_over_count = 0


class SessionSpan:
    """What the session's root span and a rank's span say."""

    def __init__(self, name: str | None, pid: int, start_ns: int, redactor: Redactor | None = None) -> None:
        """Keep the session's name, its process, its start in ns since the Unix epoch, and what redacts its error."""
        self._name = name
        self._pid = pid
        self.start_ns = start_ns
        self._redactor = redactor

    def root_facts(self, traces: SessionTraces, outcome: BaseException | None, end_ns: int) -> SpanFacts:
        """Return the root span `session`: a root, or a child of the span that `TRACEPARENT` named."""
        attributes = {**traces.session.attributes, **self.root_attributes(traces), **_error_type(outcome)}
        return SpanFacts(
            "session",
            traces.root,
            traces.caller,
            traces.session,
            self.start_ns,
            end_ns,
            attributes,
            links=traces.root_links,
            status=_status(outcome, self._redactor),
        )

    def root_attributes(self, traces: SessionTraces) -> dict[str, Any]:
        """Return what the root span says; the same on every rank, since every rank shows it to the sampler."""
        identity = traces.identity
        return root_attributes(self._name, identity.session_id, identity.attempt, identity.world_size)

    def rank_facts(self, traces: SessionTraces, outcome: BaseException | None, end_ns: int) -> SpanFacts:
        """Return the rank's span, beneath the root span."""
        identity = traces.identity
        attributes = {
            **session_attributes(identity),
            "host.name": identity.host,
            "process.pid": self._pid,
            **_error_type(outcome),
        }
        return SpanFacts(
            f"rank {identity.rank}",
            traces.rank,
            traces.root,
            traces.session,
            self.start_ns,
            end_ns,
            attributes,
            status=_status(outcome, self._redactor),
        )


def root_attributes(name: str | None, session_id: str, attempt: int, world_size: int) -> dict[str, Any]:
    """Return the attributes of the session's root span."""
    attributes: dict[str, Any] = {
        "stormphase.session.id": session_id,
        "stormphase.session.attempt": attempt,
        "stormphase.world_size": world_size,
    }
    if name is not None:
        attributes["stormphase.session.name"] = name
    return attributes


def own_context(phase: PhaseSpan, trace: Trace) -> SpanContext:
    """Return the phase's own SpanContext, also where a filter makes it answer with its parent's."""
    if not is_quiet(phase):
        return phase.get_span_context()
    return SpanContext(trace.trace_id, phase.scope_id_number, False, trace.flags, trace.state)  # noqa: FBT003


def _sampled(context: SpanContext) -> SpanContext:
    flags = TraceFlags(context.trace_flags | TraceFlags.SAMPLED)
    return SpanContext(context.trace_id, context.span_id, context.is_remote, flags, context.trace_state)


def _error_type(outcome: BaseException | None) -> dict[str, str]:
    if outcome is None or session_status_of(outcome) not in FAILURES:
        return {}
    return {"error.type": _errors.type_name(outcome)}


def _status(outcome: BaseException | None, redactor: Redactor | None) -> Status:
    if outcome is None or session_status_of(outcome) not in FAILURES:
        return UNSET
    return Status(StatusCode.ERROR, f"{_errors.type_name(outcome)}: {_errors.text_of(outcome, redactor)}")
