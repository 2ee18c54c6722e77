"""Boundaries as log-based events, `stormphase.phase.enter` and `.exit`. For the bridge's worker thread only."""

# ruff: noqa: SLF001 - a span is a phase: the bridge shares the slots of the core's handles and lanes

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context

from stormphase._model import PhaseStatus
from stormphase.otel import _provider
from stormphase.otel._build import ENTER, EXIT
from stormphase.otel._carrier import SPAN_KEY
from stormphase.otel._pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._counts import Counts
    from stormphase.otel._facts import PhaseFacts
    from stormphase.otel._span import PhaseSpan
    from stormphase.typing import Clock

_log = logging.getLogger("stormphase")

OVERDUE: Final = "stormphase.phase.overdue"
LIMIT: Final = "stormphase.phase.limit"  # seconds
ASK_AFTER: Final = 64  # events; and at every tick
_SEVERITIES: Final = {
    PhaseStatus.FAILED: SeverityNumber.ERROR,
    PhaseStatus.LOST: SeverityNumber.ERROR,
    PhaseStatus.CANCELLED: SeverityNumber.WARN,
    PhaseStatus.ABANDONED: SeverityNumber.WARN,
}


class EventLog:
    """Emits boundary events to a logger provider, each with its phase's own time and span.

    Args:
        provider: the user's, or None for the global one, which may be set later.
        facts: describes phases.
        clock: when an event was observed.
        counts: counts what nobody wanted and what failed.

    Attributes:
        emitted_count: how many events the logger was given.
    """

    def __init__(self, provider: Any, facts: PhaseFacts, clock: Clock, counts: Counts) -> None:
        """Look for a logger; `look_again` does so later."""
        self._provider = provider
        self._facts = facts
        self._wall_ns = clock.wall_ns
        self._counts = counts
        self._sink: _provider.LogSink | None = None
        self._pacer: Pacer | None = None
        self._wanted: dict[tuple[str | None, SeverityNumber], int] = {}
        self.emitted_count = 0
        self.look_again()

    @property
    def has_logger(self) -> bool:
        """Whether there is somebody to emit to."""
        return self._sink is not None

    @property
    def flush_count(self) -> int:
        """How often the log processors were flushed."""
        return 0 if self._pacer is None else self._pacer.flush_count

    def look_again(self) -> None:
        """Find the logger, unless that is done: a global provider may be set after the tracker was started."""
        self._wanted.clear()
        if self._sink is not None:
            return
        from opentelemetry import _logs  # noqa: PLC0415 - as in `_provider`

        provider = _logs.get_logger_provider() if self._provider is None else self._provider
        self._sink = sink = _provider.resolve_logger(provider)
        if sink is not None:
            self._pacer = Pacer(sink.queue_size, sink.room, sink.force_flush)

    def enter(self, phase: PhaseSpan, when_ns: int) -> None:
        """Emit that the phase was entered at `when_ns`."""
        self._emit(phase, ENTER, when_ns, SeverityNumber.INFO, with_exception=False)

    def exit(self, phase: PhaseSpan, when_ns: int, *, with_exception: bool) -> None:
        """Emit that the phase has ended at `when_ns`; `with_exception`: and with which exception, at its origin."""
        severity = _SEVERITIES.get(phase._status, SeverityNumber.INFO)
        self._emit(phase, EXIT, when_ns, severity, with_exception=with_exception)

    def overdue(self, phase: PhaseSpan, when_ns: int, limit_ns: int) -> None:
        """Emit that at `when_ns` the phase was still open, and may be so for `limit_ns` only."""
        more = {LIMIT: limit_ns / 1e9}
        self._emit(phase, OVERDUE, when_ns, SeverityNumber.WARN, with_exception=False, more=more)

    def _emit(
        self,
        phase: PhaseSpan,
        event_name: str,
        when_ns: int,
        severity: SeverityNumber,
        *,
        with_exception: bool,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        attributes = self._facts.event_attributes(phase, is_exit=event_name is EXIT, with_exception=with_exception)
        self.send(phase, event_name, when_ns, severity, attributes={**attributes, **(more or {})})

    def send(
        self,
        phase: PhaseSpan,
        event_name: str | None,
        when_ns: int,
        severity: SeverityNumber,
        *,
        attributes: Mapping[str, Any],
        body: str | None = None,
    ) -> None:
        """Emit one record, an event if it has such a name, in the phase's span."""
        sink = self._sink
        if sink is None:
            return
        context = Context({SPAN_KEY: phase})
        try:
            if not self._is_wanted(sink, context, severity, event_name):
                self._counts.add("events_not_enabled")
                return
            sink.emit(
                timestamp=when_ns,
                observed_timestamp=self._wall_ns(),
                context=context,
                severity_number=severity,
                event_name=event_name,
                body=body,
                attributes=attributes,
            )
        except BaseException:  # noqa: BLE001 - a user's processor may raise anything, also SystemExit
            if not self._counts["events_failed"]:
                _log.warning("stormphase: emitting a log event failed; more are only counted", exc_info=True)
            self._counts.add("events_failed")
            return
        self.emitted_count += 1
        if self._pacer is not None:
            self._pacer.handed_over()

    def _is_wanted(
        self, sink: _provider.LogSink, context: Context, severity: SeverityNumber, event_name: str | None
    ) -> bool:
        """Ask the logger, and remember its answer for a few events."""
        key = (event_name, severity)
        left = self._wanted.get(key, 0)
        if left > 0:
            self._wanted[key] = left - 1
            return True
        if sink.is_enabled(context, severity, event_name):
            self._wanted[key] = ASK_AFTER
            return True
        return False

    def flush(self, timeout_ms: int) -> bool:
        """Flush the log processors; True if there are none."""
        return self._pacer is None or self._pacer.flush(timeout_ms)

    def after_fork_in_child(self, counts: Counts) -> None:
        """Count anew."""
        self.emitted_count = 0
        self._counts = counts
