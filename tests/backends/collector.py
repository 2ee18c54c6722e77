"""A real OpenTelemetry collector for tests: rotel, started on free ports, its debug output read back as objects."""

from __future__ import annotations

import http.client
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sysconfig
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .rotel_text import read_text

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from .received import ReceivedLog, ReceivedSpan

_ID_OF_SPAN = b"    ID             : "  # once in every printed span; a link's is indented further
_ID_OF_LOG = b"    Span ID        : "  # once in every printed log record
_READY = b"Starting Rotel."
_PORT_IS_TAKEN = b"Address already in use"
_MARKER_SCOPE = "stormphase.tests.marker"
_MARKER_PREFIX = b"\x5f\x0a\x5e\x00"  # of a marker's span id, so that a marker is never counted as received
_START_ATTEMPTS = 5


class CollectorError(RuntimeError):
    """The collector did not start, ended early, or did not receive what was waited for; has its last words."""


class Collector:
    """A rotel process that accepts OTLP over HTTP and gRPC and keeps what it received.

    Use it as a context manager, or `start` and `stop` it, again and again: it comes back on the same ports, and what
    it received before stays readable. All methods may be called from any thread. Its output is read all the time by a
    thread of its own, so a burst never blocks the collector on a full pipe.

    What it received is asked for behind a *marker*: `spans` sends the collector a span of its own and reads until that
    one is printed. The collector answers a request after it has queued it, and prints what is queued in order, so
    everything that an exporter was told has arrived is there: no waiting by time, and no count needed beforehand.
    """

    def __init__(self) -> None:
        """Take nothing yet: ports, process and thread come with `start`."""
        self._changed = threading.Condition()
        self._output = bytearray()  # whole lines not parsed yet, and the beginning of one
        self._searched = 0
        self._printed_spans = 0
        self._printed_logs = 0
        self._has_ended = True
        self._is_ready = False
        self._asking = threading.Lock()
        self._spans: list[ReceivedSpan] = []
        self._logs: list[ReceivedLog] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._complaints: io.BufferedRandom | None = None
        self._http_port = 0
        self._grpc_port = 0

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
        """The base address for OTLP over HTTP, as ``OTEL_EXPORTER_OTLP_ENDPOINT`` takes it (without ``/v1/traces``)."""
        return f"http://127.0.0.1:{self._http_port}"

    @property
    def grpc_endpoint(self) -> str:
        """The address for OTLP over gRPC, as ``OTEL_EXPORTER_OTLP_ENDPOINT`` takes it."""
        return f"http://127.0.0.1:{self._grpc_port}"

    @property
    def pid(self) -> int:
        """The process's id.

        Raises:
            CollectorError: it is not running.
        """
        return self._running().pid

    def start(self, timeout_s: float = 30.0) -> None:
        """Start the process; returns once it has really taken in a span and a log record of ours.

        The first start picks free ports, later ones use the same again.

        Raises:
            CollectorError: rotel is not installed, cannot run here, or is not ready within `timeout_s` seconds.
        """
        if self._process is not None:
            raise CollectorError("The collector is running already. Stop it first.")
        wants_same_ports = self._http_port != 0
        for attempts_left in reversed(range(_START_ATTEMPTS)):
            if not wants_same_ports:
                self._http_port, self._grpc_port = _free_ports()
            self._launch()
            with self._changed:
                answered = self._changed.wait_for(lambda: self._is_ready or self._has_ended, timeout_s)
                is_ready = self._is_ready and not self._has_ended
            if is_ready:
                break
            words = self._last_words()
            self.stop()
            # Another process may take a port between our look and rotel's bind; then there are others.
            if answered and _PORT_IS_TAKEN in words and not wants_same_ports and attempts_left:
                continue
            why = "ended" if answered else f"was not ready after {timeout_s} s"
            raise CollectorError(f"rotel {why}. Its last words: {words.decode(errors='replace')}")
        self._receive(timeout_s)

    def stop(self) -> None:
        """End the process and its reading thread; returns when both are gone. What it received stays readable."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._reader is not None:
            self._reader.join()
        if self._complaints is not None:
            self._complaints.close()
        self._take_in(len(self._output))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process in its tracks for the block: connections are accepted by the kernel, nothing answers."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        try:
            # The signal is only on its way when the call returns: a thread on another core may still answer.
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def spans(self, timeout_s: float = 30.0) -> list[ReceivedSpan]:
        """Give every span that the collector has said it received, in the order in which it printed them.

        Works on a stopped collector too, and gives what it had printed by then.

        Raises:
            CollectorError: it ended, or did not answer within `timeout_s` seconds.
        """
        self._receive(timeout_s)
        return list(self._spans)

    def logs(self, timeout_s: float = 30.0) -> list[ReceivedLog]:
        """Give every log record that the collector has said it received; else like `spans`."""
        self._receive(timeout_s)
        return list(self._logs)

    def wait_for_spans(self, count: int, timeout_s: float = 30.0) -> list[ReceivedSpan]:
        """Wait until the collector has printed at least `count` spans since it was last cleared, and give them all.

        For spans sent by other processes; where the sender's flush is awaited, `spans` needs no count.

        Raises:
            CollectorError: there are fewer after `timeout_s` seconds, or it ended; the message names those that came.
        """
        self._await(lambda: self._printed_spans >= count, timeout_s)
        spans = self.spans(timeout_s)
        if len(spans) < count:
            names = [span.name for span in spans]
            raise CollectorError(f"Of {count} spans {len(spans)} came within {timeout_s} s: {names[:50]}")
        return spans

    def wait_for_logs(self, count: int, timeout_s: float = 30.0) -> list[ReceivedLog]:
        """Wait until the collector has printed at least `count` log records; else like `wait_for_spans`."""
        self._await(lambda: self._printed_logs >= count, timeout_s)
        logs = self.logs(timeout_s)
        if len(logs) < count:
            names = [log.event_name for log in logs]
            raise CollectorError(f"Of {count} log records {len(logs)} came within {timeout_s} s: {names[:50]}")
        return logs

    def clear(self) -> None:
        """Forget everything received so far, so that the next test sees only its own."""
        self._receive(30.0)
        with self._asking:
            self._spans.clear()
            self._logs.clear()
        with self._changed:
            self._printed_spans = self._printed_logs = 0

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise CollectorError("The collector is not running. Use it in a with-block, or start() it.")
        return self._process

    def _launch(self) -> None:
        self._is_ready = False
        self._has_ended = False
        self._searched = 0
        # Of its own, so that what it complains about on the way out cannot land amid a printed span.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process; stop() closes it
        self._process = subprocess.Popen(
            [
                str(_agent_path()), "start", "--exporter", "blackhole",
                "--debug-log", "traces", "--debug-log", "logs", "--debug-log-verbosity", "detailed",
                "--log-format", "json",
                "--otlp-http-endpoint", f"127.0.0.1:{self._http_port}",
                "--otlp-grpc-endpoint", f"127.0.0.1:{self._grpc_port}",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._complaints, env=_environment(),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(self._process,), name="collector-output", daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        output = process.stdout
        if output is None:  # never: it was asked for
            return
        with output:
            while chunk := os.read(output.fileno(), 1 << 18):
                with self._changed:
                    self._output += chunk
                    self._count_headings()
                    self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _count_headings(self) -> None:
        end = self._output.rfind(b"\n") + 1
        lines = self._output[self._searched : end].split(b"\n")
        self._searched = max(end, self._searched)
        marker = _MARKER_PREFIX.hex().encode()
        for line in lines:
            if line.startswith(_ID_OF_SPAN):
                self._printed_spans += not line.startswith(_ID_OF_SPAN + marker)
            elif line.startswith(_ID_OF_LOG):
                self._printed_logs += not line.startswith(_ID_OF_LOG + marker)
            elif _READY in line:
                self._is_ready = True

    def _receive(self, timeout_s: float) -> None:
        with self._asking:
            if self._process is None:
                return
            trace_id, span_id = secrets.token_bytes(16), _MARKER_PREFIX + secrets.token_bytes(4)
            self._post("/v1/traces", _marker_span(trace_id, span_id).SerializeToString(), timeout_s)
            self._post("/v1/logs", _marker_log(trace_id, span_id).SerializeToString(), timeout_s)
            # The last line of each block, so that all of it is there when this is.
            last_of_span = f"    Status message : marker-{span_id.hex()}\n".encode()
            last_of_log = f"    Span ID        : {span_id.hex()}\nFlags: 0\n".encode()
            self._await(lambda: last_of_span in self._output and last_of_log in self._output, timeout_s)
            with self._changed:
                end = max(
                    self._output.find(last_of_span) + len(last_of_span),
                    self._output.find(last_of_log) + len(last_of_log),
                )
                has_both = last_of_span in self._output and last_of_log in self._output
            if not has_both:
                words = self._last_words().decode(errors="replace")
                raise CollectorError(f"rotel did not print its marker within {timeout_s} s. Last words: {words}")
            self._take_in(end)

    def _take_in(self, end: int) -> None:
        with self._changed:
            text = bytes(self._output[:end])
            del self._output[:end]
            self._searched = max(0, self._searched - end)
        spans, logs = read_text(text.decode(errors="replace"))
        self._spans += [span for span in spans if span.scope.name != _MARKER_SCOPE]
        self._logs += [log for log in logs if log.scope.name != _MARKER_SCOPE]

    def _await(self, holds: Callable[[], bool], timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: holds() or self._has_ended, timeout_s)

    def _post(self, path: str, body: bytes, timeout_s: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=timeout_s)
        try:
            connection.request("POST", path, body, {"content-type": "application/x-protobuf"})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            words = self._last_words().decode(errors="replace")
            raise CollectorError(f"rotel does not answer on {path}: {error!r}. Its last words: {words}") from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise CollectorError(f"rotel answered {answer.status} on {path}")

    def _last_words(self) -> bytes:
        complaints = b""
        if self._complaints is not None and not self._complaints.closed:
            complaints = os.pread(self._complaints.fileno(), 4000, 0)
        with self._changed:
            return bytes(self._output[-2000:]) + complaints


def _agent_path() -> Path:
    found = importlib.util.find_spec("rotel")
    if found is None or found.origin is None:
        raise CollectorError("No collector: the package 'rotel' is not installed. Run: pip install -e '.[test]'")
    return Path(found.origin).with_name("rotel-agent")


def _environment() -> dict[str, str]:
    # The variables of the session under test must not configure the collector. rotel's wheels are linked against
    # libpython without saying where it is; a Python that has one keeps it in its LIBDIR.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("ROTEL_", "OTEL_"))}
    library_dirs = [str(sysconfig.get_config_var("LIBDIR") or ""), environ.get("LD_LIBRARY_PATH", "")]
    environ["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in library_dirs if path)
    return environ


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _marker_span(trace_id: bytes, span_id: bytes) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    of_scope = request.resource_spans.add().scope_spans.add()
    of_scope.scope.name = _MARKER_SCOPE
    span = of_scope.spans.add()
    span.trace_id, span.span_id, span.name = trace_id, span_id, "marker"
    span.status.message = f"marker-{span_id.hex()}"
    return request


def _marker_log(trace_id: bytes, span_id: bytes) -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    of_scope = request.resource_logs.add().scope_logs.add()
    of_scope.scope.name = _MARKER_SCOPE
    log = of_scope.log_records.add()
    log.trace_id, log.span_id = trace_id, span_id
    return request
