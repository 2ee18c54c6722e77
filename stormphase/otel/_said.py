"""What a phase said as log records in its span. For the bridge's worker thread, and where something was captured."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from opentelemetry._logs import SeverityNumber

from stormphase.capture._lines import CUT, LOG, STDERR, STDOUT, TRACEBACK, WARNING
from stormphase.otel._span import PhaseSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stormphase._phase import PhaseHandle
    from stormphase.capture import CapturedLine
    from stormphase.otel._events import EventLog
    from stormphase.otel._facts import PhaseFacts

STREAM: Final = "stormphase.output.stream"
IO_STREAM: Final = "log.iostream"  # https://opentelemetry.io/docs/specs/semconv/general/logs/
_BY_LEVEL: Final = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
    (logging.DEBUG, SeverityNumber.DEBUG),
)


class OutputLog:
    """Emits what ended phases said, each line with its own time; not the traceback, which its exception event has.

    Log records are left to OpenTelemetry's own logging handler, where the program has one.

    Args:
        events: emits records.
        facts: describes phases.
        output_of: returns what an ended phase said.
    """

    def __init__(
        self, events: EventLog, facts: PhaseFacts, output_of: Callable[[PhaseHandle], Sequence[CapturedLine]]
    ) -> None:
        """Emit nothing yet."""
        self._events = events
        self._facts = facts
        self._output_of = output_of

    def __call__(self, phase: PhaseHandle) -> None:
        """Emit what `phase` said."""
        lines = self._output_of(phase)
        if not lines or not isinstance(phase, PhaseSpan):
            return
        leaves_logs = any(type(handler).__module__.startswith("opentelemetry.") for handler in logging.root.handlers)
        common = self._facts.line_attributes(phase)
        for line in lines:
            if line.stream == TRACEBACK or (line.stream == LOG and leaves_logs):
                continue
            attributes = {**common, STREAM: line.stream}
            if line.stream in (STDOUT, STDERR):
                attributes[IO_STREAM] = line.stream
            self._events.send(phase, None, line.time_ns, severity_of(line), attributes=attributes, body=line.text)


def severity_of(line: CapturedLine) -> SeverityNumber:
    """Return a line's severity: a log record's own, and INFO for what was printed, to stderr too."""
    if line.stream == LOG:
        return next((severity for level, severity in _BY_LEVEL if line.level >= level), SeverityNumber.TRACE)
    return SeverityNumber.WARN if line.stream in (WARNING, CUT) else SeverityNumber.INFO
