"""stormphase with its OTel bridge on a real SDK provider, with a batch processor and an exporter that counts."""

from __future__ import annotations

from measure import Subject
from sdk import DELIVERY_BATCH, QUIET_BATCH, Providers
from workload import OUTER, PHASE, PIECES_PER_STEP, THREE_ATTRIBUTES, work_without_gil

from stormphase import PhaseTracker
from stormphase.otel import OTelBridge

FLUSH_TIMEOUT_S = 30.0


class Bridged(Subject):
    """Phases inside an open phase, each of them a span."""

    name = "stormphase with bridge"
    largest_batch = QUIET_BATCH
    delivered_per_operation = 1

    def open(self) -> None:
        """Make providers, and start a tracker that is bridged to them."""
        self._providers = Providers()
        self._tracker = PhaseTracker("benchmark", bridge=self._make_bridge())
        self._tracker.start()

    def prepare(self) -> None:
        """Enter the phase around the batch."""
        self._outer = self._tracker.enter_phase(OUTER)

    def batch(self, count: int) -> None:
        """Enter and leave `count` phases."""
        for _ in range(count):
            with self._tracker.enter_phase(PHASE):
                pass

    def settle(self) -> None:
        """Leave the phase around the batch, and wait until all has been exported."""
        self._outer.close()
        self._tracker.flush(FLUSH_TIMEOUT_S)
        self._providers.flush()

    def close(self) -> None:
        """Stop the tracker and end the providers' threads."""
        self._tracker.stop()
        self._providers.shutdown()

    def delivered_count(self) -> int:
        """How many spans, span events and log records have arrived."""
        return self._providers.delivered_count()

    def _make_bridge(self) -> OTelBridge:
        return self._bridge_with()

    def _bridge_with(self, events: str = "long", events_to: str = "logs") -> OTelBridge:
        # No budget: a benchmark makes more spans than a backend would take for one trace, and all have to arrive.
        return OTelBridge(
            self._providers.tracer_provider,
            self._providers.logger_provider,
            events=events,
            events_to=events_to,
            span_budget=None,
        )


class BridgedWithAttributes(Bridged):
    """The same with three attributes."""

    name = "stormphase with bridge, with 3 attributes"

    def batch(self, count: int) -> None:
        """Enter and leave `count` phases."""
        for _ in range(count):
            with self._tracker.enter_phase(PHASE, attributes=THREE_ATTRIBUTES):
                pass


class BridgedDelivered(Bridged):
    """The bridge with its default events, in batches as large as the SDK's queue allows."""

    name = "stormphase with bridge, default events, delivered"
    largest_batch = DELIVERY_BATCH


class BridgedWithSpanEvents(BridgedDelivered):
    """Both boundaries of every phase as events on its span."""

    name = "stormphase with bridge, two span events, delivered"
    delivered_per_operation = 3

    def _make_bridge(self) -> OTelBridge:
        return self._bridge_with(events="all", events_to="span")


class BridgedWithLogs(BridgedDelivered):
    """Both boundaries of every phase as log-based events."""

    name = "stormphase with bridge, two log events, delivered"
    delivered_per_operation = 3

    def _make_bridge(self) -> OTelBridge:
        return self._bridge_with(events="all", events_to="logs")


class BridgedStep(Bridged):
    """A short step that lets go of the GIL, with a phase around it and one around each of its pieces."""

    name = "step of 8 pieces, 9 phases with bridge"
    delivered_per_operation = 1 + PIECES_PER_STEP

    def batch(self, count: int) -> None:
        """Do `count` steps."""
        for _ in range(count):
            with self._tracker.enter_phase(PHASE):
                for _ in range(PIECES_PER_STEP):
                    with self._tracker.enter_phase(PHASE):
                        work_without_gil()
