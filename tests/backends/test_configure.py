"""What `configure()` sends and what the JSON lines hold, as a real collector receives it."""

from __future__ import annotations

import os
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry._logs import SeverityNumber

from stormphase._model import RankIdentity
from stormphase.otel import configure

from .received import by_name

if TYPE_CHECKING:
    from pathlib import Path

    from stormphase.otel import Telemetry

    from .collector import Collector
    from .received import ReceivedLog, ReceivedSpan

STARTED_NS = 1_700_000_000_000_000_001
RANK_2 = RankIdentity(
    session_id="job-7",
    attempt=0,
    rank=2,
    local_rank=0,
    world_size=4,
    local_world_size=None,
    node_rank=None,
    host="node-b",
    launcher="explicit",
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what would configure OpenTelemetry otherwise."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def send_span_and_log(telemetry: Telemetry) -> None:
    """Make a span with a child, and an event inside the child."""
    tracer = telemetry.tracer_provider.get_tracer("user.code", "1.2")
    attributes = {"lr": 0.1, "layers": (1, 2)}
    fields: dict[str, Any] = {
        "timestamp": STARTED_NS,
        "observed_timestamp": STARTED_NS,
        "severity_number": SeverityNumber.ERROR,
        "event_name": "stormphase.phase.exit",
        "attributes": {"stormphase.phase.status": "failed"},
    }
    logger = telemetry.logger_provider.get_logger("user.code")
    with (
        tracer.start_as_current_span("outer", start_time=STARTED_NS, attributes=attributes),
        tracer.start_as_current_span("inner") as inner,
    ):
        inner.add_event("checkpoint", {"bytes": 2**40})
        try:
            logger.emit(**fields)
        except TypeError:  # before SDK 1.38
            from opentelemetry.sdk._logs import LogRecord

            logger.emit(LogRecord(resource=telemetry.resource, **fields))


def check(spans: list[ReceivedSpan], logs: list[ReceivedLog]) -> None:
    """Compare what the collector received with what `send_span_and_log` made."""
    outer, inner = by_name(spans, "outer"), by_name(spans, "inner")
    assert (None, outer.span_id, outer.trace_id) == (outer.parent_span_id, inner.parent_span_id, inner.trace_id)
    assert (STARTED_NS, {"lr": 0.1, "layers": [1, 2]}) == (outer.started_ns, outer.attributes)
    assert [("checkpoint", {"bytes": 2**40})] == [(event.name, event.attributes) for event in inner.events]
    assert ("user.code", "1.2") == (outer.scope.name, outer.scope.version)
    resource = {name: outer.resource[name] for name in ("service.name", "stormphase.rank", "stormphase.world_size")}
    assert {"service.name": "digits", "stormphase.rank": 2, "stormphase.world_size": 4} == resource
    (log,) = logs
    assert (inner.trace_id, inner.span_id) == (log.trace_id, log.span_id)
    assert ("stormphase.phase.exit", "ERROR", STARTED_NS) == (log.event_name, log.severity, log.time_ns)
    assert ({"stormphase.phase.status": "failed"}, 2) == (log.attributes, log.resource["stormphase.rank"])


@pytest.mark.parametrize("protocol", ["", "http/protobuf", "grpc"])
def test_spans_and_events_arrive(collector: Collector, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    """With an endpoint in the environment and nothing else, or with a protocol, a collector receives both."""
    endpoint = collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    with configure("digits", identity=RANK_2) as telemetry:
        send_span_and_log(telemetry)
        assert telemetry.force_flush(30)
    check(collector.spans(), collector.logs())


def test_a_file_is_imported(collector: Collector, tmp_path: Path) -> None:
    """The lines of the files, posted to a collector as they stand, give it the same spans and events."""
    with configure("digits", jsonl_dir=tmp_path, identity=RANK_2) as telemetry:
        send_span_and_log(telemetry)
    for path, signal in zip(telemetry.jsonl_paths, ("traces", "logs"), strict=True):
        for line in path.read_bytes().splitlines():
            request = urllib.request.Request(  # noqa: S310 - the collector on this machine
                f"{collector.http_endpoint}/v1/{signal}", line, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - as above
                assert 200 == response.status
    check(collector.spans(), collector.logs())
