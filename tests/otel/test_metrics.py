"""Metrics of phases: durations, open phases and drops, on a bounded number of paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from stormphase.otel import _metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Bridged


class Metered:
    """A meter provider read on demand."""

    def __init__(self) -> None:
        """Make both."""
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def read(self) -> dict[str, Any]:
        """Return the metrics by name, with their scope."""
        found = self.reader.get_metrics_data()
        if found is None:
            return {}
        return {
            metric.name: (metric, scope.scope)
            for resource in found.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> dict[tuple[Any, ...], Any]:
        """Return a metric's points by the values of their labels."""
        metric, _ = self.read()[name]
        return {tuple(sorted(point.attributes.items())): point for point in metric.data.data_points}


@pytest.fixture
def metered() -> Iterator[Metered]:
    """A meter provider read on demand."""
    metered = Metered()
    yield metered
    metered.provider.shutdown()


def labels(path: str, status: str) -> tuple[tuple[str, str], ...]:
    """Return the labels of one point."""
    return (("stormphase.phase.path", path), ("stormphase.phase.status", status))


def test_durations_in_seconds_by_path_and_status(bridged: Callable[..., Bridged], metered: Metered) -> None:
    """Every phase counts, sampled or not, in buckets that we advise."""
    rig = bridged(metrics=True, meter_provider=metered.provider, sampler=ALWAYS_OFF)
    with rig.enter("train"):
        for _ in range(3):
            with rig.enter("step"):
                rig.clock.advance(2_000_000_000)
        with pytest.raises(ValueError, match="boom"), rig.enter("step"):
            raise ValueError("boom")
    rig.deliver()
    points = metered.points("stormphase.phase.duration")
    assert {
        labels("train / step", "succeeded"): (3, 6.0),
        labels("train / step", "failed"): (1, 0.0),
        labels("train", "succeeded"): (1, 6.0),
    } == {key: (point.count, point.sum) for key, point in points.items()}
    metric, scope = metered.read()["stormphase.phase.duration"]
    assert ("s", "stormphase") == (metric.unit, scope.name)
    assert _metrics.BUCKETS_S == tuple(points[labels("train", "succeeded")].explicit_bounds)


def test_a_duration_has_its_span_as_exemplar(bridged: Callable[..., Bridged], metered: Metered) -> None:
    """From a slow bucket one click leads to the trace."""
    rig = bridged(metrics=True, meter_provider=metered.provider)
    with rig.enter("step"):
        rig.clock.advance(5)
    span = rig.spans["step"]
    (point,) = metered.points("stormphase.phase.duration").values()
    assert [(span.context.trace_id, span.context.span_id)] == [
        (exemplar.trace_id, exemplar.span_id) for exemplar in point.exemplars
    ]


def test_open_phases_now(bridged: Callable[..., Bridged], metered: Metered) -> None:
    """What is open is counted when it is read, and is 0 afterwards rather than its last value."""
    rig = bridged(metrics=True, meter_provider=metered.provider)
    with rig.enter("train"):
        paused = rig.enter("step")
        paused.pause()
        active = {key: point.value for key, point in metered.points("stormphase.phase.active").items()}
        assert {labels("train", "active"): 1, labels("train / step", "paused"): 1} == active
        paused.resume()
        paused.close()
    active = {key: point.value for key, point in metered.points("stormphase.phase.active").items()}
    assert {labels("train", "active"): 0, labels("train / step", "paused"): 0} == active


def test_drops_by_reason(bridged: Callable[..., Bridged], metered: Metered) -> None:
    """What was not handed over is a counter."""
    rig = bridged(metrics=True, meter_provider=metered.provider, span_budget=1)
    for _ in range(4):
        with rig.enter("step"):
            pass
    rig.deliver()
    points = metered.points("stormphase.dropped")
    assert {(("stormphase.reason", "over_budget"),): 3} == {key: point.value for key, point in points.items()}


def test_paths_beyond_the_bound_are_other(
    bridged: Callable[..., Bridged], metered: Metered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step number in a name does not make a time series each."""
    assert 1_000 == _metrics.MAX_PATHS
    monkeypatch.setattr(_metrics, "MAX_PATHS", 2)
    rig = bridged(metrics=True, meter_provider=metered.provider)
    for number in range(5):
        with rig.enter(f"step {number}"):
            pass
    rig.deliver()
    counts = {key: point.count for key, point in metered.points("stormphase.phase.duration").items()}
    assert {
        labels("step 0", "succeeded"): 1,
        labels("step 1", "succeeded"): 1,
        labels("_other", "succeeded"): 3,
    } == counts


def test_no_metrics_unless_asked(bridged: Callable[..., Bridged], metered: Metered) -> None:
    """They are opt-in."""
    rig = bridged(meter_provider=metered.provider)
    with rig.enter("step"):
        pass
    rig.deliver()
    assert {} == metered.read()


def test_a_meter_that_raises_costs_no_span(bridged: Callable[..., Bridged], caplog: pytest.LogCaptureFixture) -> None:
    """The duration is lost and counted, told once; the spans are sent."""
    rig = bridged(metrics=True, meter_provider=MeterProvider(shutdown_on_exit=False))

    def fail(*arguments: object) -> None:
        raise ValueError

    rig.bridge._metrics._duration.record = fail
    with rig.enter("outer"), rig.enter("inner"):
        pass
    assert ["inner", "outer"] == list(rig.spans)
    assert 2 == rig.bridge.stats()["metrics_failed"]
    assert 1 == caplog.text.count("recording a duration failed")
