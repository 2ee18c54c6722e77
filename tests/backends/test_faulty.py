"""The faulty endpoint does what it is told and counts exactly."""

from __future__ import annotations

import gzip
import http.client
import threading
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from .faulty import Behaviour, FaultyEndpoint, Totals

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S = 10.0


def spans(*names: str) -> bytes:
    """An OTLP request with one span for each name."""
    request = ExportTraceServiceRequest()
    of_scope = request.resource_spans.add().scope_spans.add()
    for name in names:
        of_scope.spans.add(name=name, trace_id=b"t" * 16, span_id=b"s" * 8)
    return request.SerializeToString()


def logs(*names: str) -> bytes:
    """An OTLP request with one log record for each event name."""
    request = ExportLogsServiceRequest()
    of_scope = request.resource_logs.add().scope_logs.add()
    for name in names:
        of_scope.log_records.add(event_name=name)
    return request.SerializeToString()


def post(
    endpoint: FaultyEndpoint,
    body: bytes,
    path: str = "/v1/traces",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> tuple[int, bytes, str | None]:
    """Send one request; gives status, body and the Retry-After header."""
    port = int(endpoint.http_endpoint.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("retry-after")
    finally:
        connection.close()


def test_everything_is_accepted_and_counted(faulty: FaultyEndpoint) -> None:
    """Without a fault spans and log records are accepted, kept in order and counted."""
    assert (200, b"", None) == post(faulty, spans("a", "b"))
    assert (200, b"", None) == post(faulty, logs("c"), "/v1/logs")
    assert 200 == post(faulty, gzip.compress(spans("d")), headers={"content-encoding": "gzip"})[0]

    assert ["a", "b", "d"] == [span.name for span in faulty.spans]
    assert ["c"] == [log.event_name for log in faulty.logs]
    assert Totals(requests=3, accepted_spans=3, accepted_logs=1) == faulty.totals


def test_metrics_are_answered(faulty: FaultyEndpoint) -> None:
    """Metrics count as a request and as nothing else."""
    assert 200 == post(faulty, b"", "/v1/metrics")[0]
    assert Totals(requests=1) == faulty.totals


@pytest.mark.parametrize(
    ("expected", "body", "path", "headers"),
    [
        (404, b"", "/elsewhere", {}),
        (400, b"\xff\xff", "/v1/traces", {}),
        (400, b"not gzip", "/v1/traces", {"content-encoding": "gzip"}),
    ],
)
def test_what_is_no_otlp_is_refused(
    faulty: FaultyEndpoint, expected: int, body: bytes, path: str, headers: dict[str, str]
) -> None:
    """An unknown path or an unreadable body is refused and counts as no request."""
    assert expected == post(faulty, body, path, headers)[0]
    assert Totals() == faulty.totals


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_failing_accepts_nothing(faulty: FaultyEndpoint, status: int) -> None:
    """While it fails nothing is accepted, and Retry-After is there if wanted."""
    faulty.behave(Behaviour.failing(status, retry_after_s=7))

    assert (status, "7") == post(faulty, spans("a"))[::2]
    assert Totals(requests=1, refused_spans=1) == faulty.totals
    assert [] == faulty.spans


def test_a_fault_lasts_as_many_requests_as_told(faulty: FaultyEndpoint) -> None:
    """After the given number of requests it accepts again by itself."""
    faulty.behave(Behaviour.failing(503), requests=2)

    assert [503, 503, 200] == [post(faulty, spans("a"))[0] for _ in range(3)]
    assert Totals(requests=3, accepted_spans=1, refused_spans=2) == faulty.totals


def test_partial_success_says_how_many_were_rejected(faulty: FaultyEndpoint) -> None:
    """A partial success keeps the first items, rejects the last ones and says so."""
    faulty.behave(Behaviour.partial(2, "too many"))

    of_spans = ExportTraceServiceResponse.FromString(post(faulty, spans("a", "b", "c"))[1])
    of_logs = ExportLogsServiceResponse.FromString(post(faulty, logs("d"), "/v1/logs")[1])

    assert (2, "too many") == (of_spans.partial_success.rejected_spans, of_spans.partial_success.error_message)
    assert 1 == of_logs.partial_success.rejected_log_records
    assert ["a"] == [span.name for span in faulty.spans]
    assert Totals(requests=2, accepted_spans=1, refused_spans=2, refused_logs=1) == faulty.totals


def test_a_lost_answer_hides_that_everything_arrived(faulty: FaultyEndpoint) -> None:
    """The sender sees a broken connection although its spans were accepted."""
    faulty.behave(Behaviour.losing_answer(), requests=1)

    with pytest.raises(http.client.RemoteDisconnected):
        post(faulty, spans("a"))
    assert Totals(requests=1, accepted_spans=1) == faulty.totals


def test_a_slow_answer_comes_after_the_spans_are_accepted(faulty: FaultyEndpoint) -> None:
    """A sender that gives up on a slow answer has delivered all the same."""
    faulty.behave(Behaviour.slow(60))

    with pytest.raises(TimeoutError):
        post(faulty, spans("a"), timeout_s=0.1)
    assert Totals(requests=1, accepted_spans=1) == faulty.totals


def test_slow_ones_are_answered_when_it_is_well_again(faulty: FaultyEndpoint) -> None:
    """Ending the fault lets a delayed answer go at once."""
    faulty.behave(Behaviour.slow(60))
    statuses: list[int] = []
    sender = threading.Thread(target=lambda: statuses.append(post(faulty, spans("a"))[0]))
    sender.start()
    faulty.wait_for_spans(1)
    faulty.behave()
    sender.join()

    assert [200] == statuses


def test_a_hanging_one_accepts_nothing_and_is_cut_off(faulty: FaultyEndpoint) -> None:
    """A hanging request is never answered, and ends when the endpoint is well again."""
    faulty.behave(Behaviour.hanging())
    errors: list[BaseException] = []

    def send() -> None:
        with pytest.raises(http.client.RemoteDisconnected) as caught:
            post(faulty, spans("a"))
        errors.append(caught.value)

    sender = threading.Thread(target=send)
    sender.start()
    faulty.wait_for_requests(1)
    faulty.behave()
    sender.join()

    assert 1 == len(errors)
    assert Totals(requests=1, refused_spans=1) == faulty.totals


def test_it_goes_down_and_comes_back_on_the_same_port(faulty: FaultyEndpoint) -> None:
    """Stopped it refuses connections; started again it accepts on the same address and goes on counting."""
    before = faulty.http_endpoint
    post(faulty, spans("a"))
    faulty.stop()
    with pytest.raises(ConnectionRefusedError):
        post(faulty, spans("b"))
    faulty.start()
    post(faulty, spans("c"))

    assert before == faulty.http_endpoint
    assert ["a", "c"] == [span.name for span in faulty.spans]


def test_stopping_does_not_wait_for_senders(faulty: FaultyEndpoint) -> None:
    """Neither an idle connection that is kept alive nor a hanging request keeps it from stopping."""
    port = int(faulty.http_endpoint.rpartition(":")[2])
    idle = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    idle.request("POST", "/v1/traces", spans("a"))
    idle.getresponse().read()
    hanging = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    faulty.behave(Behaviour.hanging())
    hanging.request("POST", "/v1/traces", spans("b"))
    faulty.wait_for_requests(2)

    faulty.stop()  # a thread of it that stayed would fail this test at its end

    for connection in (idle, hanging):
        connection.close()
    assert Totals(requests=2, accepted_spans=1, refused_spans=1) == faulty.totals


def test_waiting_in_vain_says_what_came(faulty: FaultyEndpoint) -> None:
    """Waiting for more than comes ends at its limit and shows the counts."""
    with pytest.raises(TimeoutError, match=r"for 1 accepted_logs; there are Totals\(requests=0"):
        faulty.wait_for_logs(1, timeout_s=0.05)


def test_starting_twice_is_an_error(faulty: FaultyEndpoint) -> None:
    """A second start would lose the first server, so it is refused."""
    with pytest.raises(RuntimeError, match="Stop it first"):
        faulty.start()
