"""An OTLP endpoint that misbehaves on command and counts exactly what it accepted.

It speaks OTLP over HTTP with protobuf, plain or gzipped, on a free port of 127.0.0.1, with the standard library's
server in threads. Sources of the behaviour it imitates: the OTLP specification 1.x, sections "OTLP/HTTP Response",
"Partial Success" and "OTLP/HTTP Throttling".
"""

from __future__ import annotations

import gzip
import socket
import threading
import zlib
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from attrs import field, frozen
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from .received import logs_of, spans_of

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .received import ReceivedLog, ReceivedSpan

_PROTOBUF = "application/x-protobuf"


@frozen(kw_only=True)
class Behaviour:
    """How a request is treated. The plain one accepts everything at once; the class methods name the faults."""

    status: int = HTTPStatus.OK
    retry_after_s: int | None = None
    delay_s: float = 0.0
    hangs: bool = False
    rejected: int = 0
    reason: str = ""
    keeps_answer: bool = False

    @classmethod
    def slow(cls, delay_s: float) -> Behaviour:
        """Accept, and say so `delay_s` seconds later (or when the endpoint stops)."""
        return cls(delay_s=delay_s)

    @classmethod
    def hanging(cls) -> Behaviour:
        """Read the request, accept nothing, and never answer until `FaultyEndpoint.behave` is called or it stops."""
        return cls(hangs=True)

    @classmethod
    def failing(cls, status: int = HTTPStatus.INTERNAL_SERVER_ERROR, *, retry_after_s: int | None = None) -> Behaviour:
        """Accept nothing and answer `status`, with a ``Retry-After`` header if `retry_after_s` is given."""
        return cls(status=status, retry_after_s=retry_after_s)

    @classmethod
    def partial(cls, rejected: int, reason: str = "rejected on command") -> Behaviour:
        """Accept all but the last `rejected` items of each request, and say so in a partial success."""
        return cls(rejected=rejected, reason=reason)

    @classmethod
    def losing_answer(cls) -> Behaviour:
        """Accept everything, then close the connection without a word: the sender cannot know that it arrived."""
        return cls(keeps_answer=True)


@frozen(kw_only=True)
class Totals:
    """What came in so far. Items are spans and log records; metrics are answered but not counted as items."""

    requests: int = 0
    accepted_spans: int = 0
    refused_spans: int = 0
    accepted_logs: int = 0
    refused_logs: int = 0


class FaultyEndpoint:
    """The endpoint. Use it as a context manager; every method may be called from any thread, at any time."""

    def __init__(self) -> None:
        """Take nothing yet: port and threads come with `start`."""
        self._changed = threading.Condition()
        self._behaviour = Behaviour()
        self._requests_left: int | None = None
        self._release = threading.Event()
        self._totals = Totals()
        self._spans: list[ReceivedSpan] = []
        self._logs: list[ReceivedLog] = []
        self._bodies: list[bytes] = []
        self._port = 0
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    @property
    def http_endpoint(self) -> str:
        """The base address, as ``OTEL_EXPORTER_OTLP_ENDPOINT`` takes it (without ``/v1/traces``)."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def totals(self) -> Totals:
        """The counts so far, taken at one instant."""
        with self._changed:
            return self._totals

    @property
    def spans(self) -> list[ReceivedSpan]:
        """The accepted spans, in the order of their acceptance; one that was accepted twice is there twice."""
        with self._changed:
            return list(self._spans)

    @property
    def logs(self) -> list[ReceivedLog]:
        """The accepted log records, in the order of their acceptance."""
        with self._changed:
            return list(self._logs)

    @property
    def bodies(self) -> list[bytes]:
        """The requests for spans as they came, decompressed, in their order, whatever became of them."""
        with self._changed:
            return list(self._bodies)

    def start(self) -> None:
        """Begin to accept connections: on a free port the first time, on the same one after a `stop`."""
        if self._server is not None:
            raise RuntimeError("The endpoint is running already. Stop it first.")
        self._release = threading.Event()
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="faulty-endpoint")
        self._thread.start()

    def stop(self) -> None:
        """Be down: connections are refused from now on, open ones closed. Returns when all its threads have ended."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        self._release.set()
        server.shutdown()
        self._thread.join()
        server.close_connections()
        server.server_close()

    def behave(self, behaviour: Behaviour | None = None, *, requests: int | None = None) -> None:
        """Treat the next `requests` requests (all, if None) as `behaviour` says, then accept everything again.

        Without arguments it is well at once. Requests that hang or are delayed are let go: a hanging one is cut off,
        a delayed one answered.
        """
        with self._changed:
            self._behaviour = behaviour or Behaviour()
            self._requests_left = requests
            self._release.set()
            self._release = threading.Event()

    def wait_for_requests(self, count: int, timeout_s: float = 30.0) -> Totals:
        """Wait until `count` requests have been read since the start, whatever became of them.

        Raises:
            TimeoutError: there are fewer after `timeout_s` seconds.
        """
        return self._wait_for("requests", count, timeout_s)

    def wait_for_spans(self, count: int, timeout_s: float = 30.0) -> Totals:
        """Wait until `count` spans have been accepted; else like `wait_for_requests`."""
        return self._wait_for("accepted_spans", count, timeout_s)

    def wait_for_logs(self, count: int, timeout_s: float = 30.0) -> Totals:
        """Wait until `count` log records have been accepted; else like `wait_for_requests`."""
        return self._wait_for("accepted_logs", count, timeout_s)

    def _wait_for(self, what: str, count: int, timeout_s: float) -> Totals:
        with self._changed:
            came = self._changed.wait_for(lambda: getattr(self._totals, what) >= count, timeout_s)
            if not came:
                raise TimeoutError(f"Waited {timeout_s} s for {count} {what}; there are {self._totals}.")
            return self._totals

    def _take(self, path: str, body: bytes) -> _Verdict:
        """Count a request and decide what becomes of it. Called by the connections' threads."""
        spans = spans_of(ExportTraceServiceRequest.FromString(body)) if path == "/v1/traces" else []
        logs = logs_of(ExportLogsServiceRequest.FromString(body)) if path == "/v1/logs" else []
        with self._changed:
            if path == "/v1/traces":
                self._bodies.append(body)
            behaviour, release = self._next_behaviour(), self._release
            takes_some = behaviour.status == HTTPStatus.OK and not behaviour.hangs
            kept_spans = spans[: max(0, len(spans) - behaviour.rejected)] if takes_some else []
            kept_logs = logs[: max(0, len(logs) - behaviour.rejected)] if takes_some else []
            self._spans += kept_spans
            self._logs += kept_logs
            old = self._totals
            self._totals = Totals(
                requests=old.requests + 1,
                accepted_spans=old.accepted_spans + len(kept_spans),
                refused_spans=old.refused_spans + len(spans) - len(kept_spans),
                accepted_logs=old.accepted_logs + len(kept_logs),
                refused_logs=old.refused_logs + len(logs) - len(kept_logs),
            )
            self._changed.notify_all()
        rejected = len(spans) - len(kept_spans) + len(logs) - len(kept_logs)
        answer = _answer(path, rejected if takes_some else 0, behaviour.reason)
        return _Verdict(behaviour=behaviour, answer=answer, release=release)

    def _next_behaviour(self) -> Behaviour:
        if self._requests_left is None:
            return self._behaviour
        if self._requests_left == 0:
            return Behaviour()
        self._requests_left -= 1
        return self._behaviour


@frozen(kw_only=True)
class _Verdict:
    behaviour: Behaviour
    answer: bytes = field(repr=False)
    release: threading.Event


def _answer(path: str, rejected: int, reason: str) -> bytes:
    if path == "/v1/logs":
        of_logs = ExportLogsServiceResponse()
        if rejected:
            of_logs.partial_success.rejected_log_records = rejected
            of_logs.partial_success.error_message = reason
        return of_logs.SerializeToString()
    if path == "/v1/traces":
        of_spans = ExportTraceServiceResponse()
        if rejected:
            of_spans.partial_success.rejected_spans = rejected
            of_spans.partial_success.error_message = reason
        return of_spans.SerializeToString()
    return ExportMetricsServiceResponse().SerializeToString()


class _Server(ThreadingHTTPServer):
    """Knows its open connections, so that stopping need not wait for senders that keep theirs alive."""

    daemon_threads = False  # server_close() joins them: a test that checks for leaked threads must find none

    def __init__(self, address: tuple[str, int], endpoint: FaultyEndpoint) -> None:
        self.endpoint = endpoint
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(address, _Connection)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if isinstance(request, socket.socket):
            with self._connections_lock:
                self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        if isinstance(request, socket.socket):
            with self._connections_lock:
                self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        with self._connections_lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the sender was faster

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: senders that give up on a slow answer are what this endpoint is for."""


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.path not in {"/v1/traces", "/v1/logs", "/v1/metrics"}:
            self._reply(HTTPStatus.NOT_FOUND)
            return
        try:
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            verdict = self.server.endpoint._take(self.path, body)
        except (DecodeError, OSError, EOFError, zlib.error):
            self._reply(HTTPStatus.BAD_REQUEST)
            return
        behaviour = verdict.behaviour
        if behaviour.hangs:
            verdict.release.wait()
        elif behaviour.delay_s:
            verdict.release.wait(behaviour.delay_s)
        if behaviour.hangs or behaviour.keeps_answer:
            self.close_connection = True
            return
        self._reply(behaviour.status, verdict.answer, behaviour.retry_after_s)

    def _reply(self, status: int, answer: bytes = b"", retry_after_s: int | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", _PROTOBUF)
        self.send_header("content-length", str(len(answer)))
        if retry_after_s is not None:
            self.send_header("retry-after", str(retry_after_s))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        """Write nothing to the terminal."""
