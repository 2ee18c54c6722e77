"""Metrics of phases, if asked for: how long they took, how many are open, what was dropped."""

# ruff: noqa: SLF001 - a span is a phase: the bridge shares the slots of the core's handles and lanes

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import Observation

from stormphase import _boundary
from stormphase.otel._carrier import SPAN_KEY
from stormphase.otel._provider import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.metrics import CallbackOptions

    from stormphase._counts import Counts
    from stormphase._lanes import LaneSet
    from stormphase._paths import PathNode
    from stormphase.otel._facts import PhaseFacts
    from stormphase.otel._span import PhaseSpan

_log = logging.getLogger("stormphase")

MAX_PATHS: Final = 1_000
OTHER: Final = "_other"
PATH: Final = "stormphase.phase.path"
STATUS: Final = "stormphase.phase.status"
# From a kernel launch to a night's epoch: three steps a decade, in seconds.
BUCKETS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0, 36_000.0),
)


class PhaseMetrics:
    """Three instruments on the user's meter provider, with path and status as their only labels.

    Args:
        provider: the user's, or None for the global one, which may be set later.
        facts: gives paths as text.
        lanes: whose open phases are counted, on the reader's thread.
        dropped: returns how many spans were dropped so far, by reason.
    """

    def __init__(
        self,
        provider: Any,
        facts: PhaseFacts,
        lanes: LaneSet,
        dropped: Callable[[], Mapping[str, int]],
    ) -> None:
        """Make the instruments."""
        self._facts = facts
        self._lanes = lanes
        self._dropped = dropped
        self._labels: dict[PathNode, str] = {}
        self._seen_active: dict[tuple[str, str], int] = {}
        meter = metrics.get_meter(SCOPE_NAME, SCOPE_VERSION, provider, SCHEMA_URL)
        self._duration = meter.create_histogram(
            "stormphase.phase.duration",
            unit="s",
            description="How long phases took, from enter to exit.",
            explicit_bucket_boundaries_advisory=BUCKETS_S,
        )
        meter.create_observable_up_down_counter(
            "stormphase.phase.active",
            callbacks=[self._observe_active],
            unit="{phase}",
            description="How many phases are open now.",
        )
        meter.create_observable_counter(
            "stormphase.dropped",
            callbacks=[self._observe_dropped],
            unit="{span}",
            description="How many spans were not handed over, by reason.",
        )

    def record_guarded(self, phase: PhaseSpan, counts: Counts) -> None:
        """Record an ended phase; what the user's meter raises is told once, counted, and costs nothing else."""
        try:
            self.record(phase)
        except BaseException:  # noqa: BLE001 - a user's meter may raise anything, and must not cost the span
            if not counts["metrics_failed"]:
                _log.warning("stormphase: recording a duration failed; more are only counted", exc_info=True)
            counts.add("metrics_failed")

    def record(self, phase: PhaseSpan) -> None:
        """Record an ended phase, with its span as exemplar."""
        self._duration.record(
            _boundary.duration_ns(phase) / 1e9,
            {PATH: self._label(phase._path), STATUS: phase._status.value},
            Context({SPAN_KEY: phase}),
        )

    def _label(self, path: PathNode) -> str:
        label = self._labels.get(path)
        if label is None:
            if len(self._labels) >= MAX_PATHS:
                return OTHER
            label = self._labels[path] = self._facts.path_text(path)
        return label

    def _observe_active(self, options: CallbackOptions) -> Iterable[Observation]:
        del options
        # A label seen once is reported as 0 from then on: a backend would go on showing its last value.
        counts = dict.fromkeys(self._seen_active, 0)
        for phase in self._lanes.open_phases():
            key = (self._label(phase._path), phase._status.value)
            counts[key] = counts.get(key, 0) + 1
        self._seen_active = counts
        return [Observation(count, {PATH: path, STATUS: status}) for (path, status), count in counts.items()]

    def _observe_dropped(self, options: CallbackOptions) -> Iterable[Observation]:
        del options
        return [Observation(count, {"stormphase.reason": reason}) for reason, count in self._dropped().items()]
