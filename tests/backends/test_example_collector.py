"""The examples, as a real collector received them: the tree that the terminal showed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .example import (
    check_digits,
    check_one_trace,
    phases_by_path,
    printed_span_count,
    printed_trace_id,
    run_example,
    run_ranks,
)

if TYPE_CHECKING:
    from pathlib import Path

    from .collector import Collector


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_collector_has_the_tree_that_the_terminal_showed(
    collector: Collector, tmp_path: Path, protocol: str
) -> None:
    """Names, ids, parents, statuses, times, attributes and counts, as the collector received them, over both protocols.

    The failed try's exit event arrives too, at ERROR, and belongs to its span.
    """
    endpoint = collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_METRICS_EXPORTER": "none",
    }
    output = run_example("train_digits.py", "--epochs=6", cwd=tmp_path, environ=environ)

    assert f"they were handed to the OTLP exporter for {endpoint}, " in output
    assert [] == list(tmp_path.iterdir())
    spans = collector.wait_for_spans(printed_span_count(output))
    check_digits(spans, output, epochs=6, steps_per_epoch=43)
    resource = {
        tuple(span.resource[name] for name in ("service.name", "stormphase.rank", "stormphase.world_size"))
        for span in spans
    }
    assert {("train-digits", 0, 1)} == resource
    assert {"stormphase"} == {span.scope.name for span in spans}
    (failed,) = [span for span in spans if span.status == "ERROR"]
    (event,) = [log for log in collector.logs() if log.severity == "ERROR"]
    assert ("stormphase.phase.exit", failed.ended_ns) == (event.event_name, event.time_ns)
    assert (failed.trace_id, failed.span_id) == (event.trace_id, event.span_id)


def test_four_processes_with_one_seed_are_one_trace_at_the_collector(collector: Collector, tmp_path: Path) -> None:
    """Four processes that all call random.seed(42) and never talk to each other land in one trace, each span once."""
    outputs = run_ranks(
        tmp_path,
        count=4,
        environ={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint, "OTEL_METRICS_EXPORTER": "none"},
    )

    spans = collector.wait_for_spans(1 + 4 * (1 + 3 * 2))
    check_one_trace(spans, printed_trace_id("".join(outputs)), ranks=4)
    assert 4 == len({span.resource["process.pid"] for span in spans})
    assert {("step",): 12, ("step", "compute"): 12} == {
        path: len(found) for path, found in phases_by_path(spans).items()
    }
    by_id = {span.span_id: span for span in spans}
    for steps in phases_by_path(spans).values():
        for span in steps:
            parent = by_id[str(span.parent_span_id)]
            assert span.resource["stormphase.rank"] == parent.resource["stormphase.rank"]
            assert parent.started_ns <= span.started_ns <= span.ended_ns <= parent.ended_ns
    for rank in range(4):
        steps = [span for span in spans if (span.name, span.resource["stormphase.rank"]) == ("step", rank)]
        assert [0, 1, 2] == sorted(span.attributes["stormphase.step"] for span in steps)
