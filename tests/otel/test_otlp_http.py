"""Where recovery sends to: what was given, else OpenTelemetry's variables; and what it makes of refusals."""

from __future__ import annotations

import ssl
import threading
import urllib.error
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from stormphase._clock import SystemClock
from stormphase.exceptions import ConfigurationError
from stormphase.otel._otlp_http import Endpoint, OtlpSender, UndeliveredError, _refused_by, checked_header
from stormphase.otel._otlp_protobuf import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        (None, {}, None),
        (None, {BASE: " ", TRACES: ""}, None),
        (None, {BASE: "http://c:4318"}, "http://c:4318/v1/traces"),
        (None, {BASE: "https://c/otlp/"}, "https://c/otlp/v1/traces"),
        (None, {BASE: "http://c/v1/traces"}, "http://c/v1/traces/v1/traces"),
        (None, {BASE: "http://c:4318", TRACES: "http://t/as-is"}, "http://t/as-is"),
        ("http://c:4318", {BASE: "http://other"}, "http://c:4318/v1/traces"),
        ("http://c/v1/traces", {}, "http://c/v1/traces"),
        ("http://c/api/v1/traces/", {}, "http://c/api/v1/traces/"),
        ("http://c?key=1", {}, "http://c/v1/traces?key=1"),
    ],
)
def test_where_spans_go(given: str | None, environ: dict[str, str], expected: str | None) -> None:
    """As the OTLP exporters read it: the path is added to a base address, and the traces' own is taken as it is."""
    found = Endpoint.of(given, environ)
    assert expected == (None if found is None else found.url)


@pytest.mark.parametrize(
    ("given", "environ", "setting"),
    [
        ("collector:4318", {}, "--otlp"),
        ("", {}, "--otlp"),
        ("file:///etc/passwd", {}, "--otlp"),
        ("http://", {}, "--otlp"),
        ("http://c:0", {}, "--otlp"),
        ("http://c:99999", {}, "--otlp"),
        ("http://[c", {}, "--otlp"),
        ("http://c/\x1b[2J", {}, "--otlp"),
        ("http://c/a b", {}, "--otlp"),
        (None, {BASE: "c:4318"}, BASE),
        (None, {TRACES: "ftp://c"}, TRACES),
        (None, {BASE: "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, BASE),
        (None, {BASE: "http://c", "OTEL_EXPORTER_OTLP_HEADERS": "a\x01=b"}, "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_an_address_that_cannot_work_is_named(given: str | None, environ: dict[str, str], setting: str) -> None:
    """Before anything is sent, the error says which setting it is and what to write."""
    with pytest.raises(ConfigurationError) as caught:
        Endpoint.of(given, environ)
    assert (setting, True) == (caught.value.setting, caught.value.fix in str(caught.value))


def test_grpc_in_the_environment_does_not_matter_for_a_given_address() -> None:
    """Whoever names an HTTP endpoint gets it."""
    found = Endpoint.of("http://c:4318", {BASE: "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert found is not None


def test_headers_are_merged_and_never_shown() -> None:
    """Those of the traces win over the general ones, and given ones over both; values are percent-decoded."""
    environ = {
        BASE: "http://user:secret@c:4318?token=secret",
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20secret, a=1,=x,b",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=2",
    }
    found = Endpoint.of(None, environ, [checked_header("X-Extra", "3", "--header")])
    assert found is not None
    assert {"authorization": "Bearer secret", "a": "2", "x-extra": "3"} == dict(found.headers)
    assert "http://c:4318/v1/traces" == found.shown
    assert "Bearer" not in repr(found)


@pytest.mark.parametrize(
    ("name", "value"), [("", "x"), ("a b", "x"), ("a\n", "x"), ("ä", "x"), ("a", "x\ny"), ("a", "ä")]
)
def test_a_header_that_cannot_be_sent_is_refused(name: str, value: str) -> None:
    """Nothing can be smuggled into a request."""
    with pytest.raises(ConfigurationError, match="--header"):
        checked_header(name, value, "--header")


def test_certificates_come_from_the_environment(tmp_path: Path) -> None:
    """One that cannot be read fails before anything is sent, and says which variable it is."""
    pem = tmp_path / "no.pem"
    pem.write_text("nothing")
    for name in ("CERTIFICATE", "CLIENT_CERTIFICATE"):
        endpoint = Endpoint.of("https://c", {f"OTEL_EXPORTER_OTLP_{name}": str(pem)})
        assert endpoint is not None
        with pytest.raises(ConfigurationError, match="_CERTIFICATE"):
            OtlpSender(endpoint, clock=SystemClock(), timeout_s=1, stopping=threading.Event())


def sender(url: str, stopping: Any, timeout_s: float = 0.0) -> OtlpSender:
    """Return a sender to an address."""
    return OtlpSender(Endpoint(url), clock=SystemClock(), timeout_s=timeout_s, stopping=stopping)


def test_nobody_there_is_said_in_words() -> None:
    """A port on which nobody listens is a reason for others not to be tried, and names the cause."""
    with pytest.raises(UndeliveredError, match="refused") as caught:
        sender("http://127.0.0.1:1/v1/traces", threading.Event()).send(b"x")
    assert caught.value.is_down


def test_a_stop_ends_the_tries() -> None:
    """Whoever stops a recovery does not wait for its pauses."""
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(UndeliveredError, match="told to stop"):
        sender("http://127.0.0.1:1/v1/traces", stopping, timeout_s=3_600).send(b"x")


class Answers(BaseHTTPRequestHandler):
    """Answers every request with what its server was told."""

    def do_POST(self) -> None:
        """Read, and answer."""
        self.rfile.read(int(self.headers["content-length"]))
        status, headers, body = self.server.answer  # type: ignore[attr-defined]
        self.server.seen.append(self.headers)  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@pytest.fixture
def server() -> Iterator[Any]:
    """A web server that answers as a test tells it."""
    with HTTPServer(("127.0.0.1", 0), Answers) as found:
        found.answer, found.seen = (200, {}, b""), []  # type: ignore[attr-defined]
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, {"content-type": "text/html"}, b"<html>Please log in</html>"), "web page"),
        ((403, {"content-type": "text/plain"}, b"no\x1b[2J\nentry"), "it answered 403 Forbidden: no\\\\x1b\\[2J entry"),
        ((400, {"content-type": "application/json"}, b'{"message":"x"}'), 'it answered 400 Bad Request: {"message"'),
        ((400, {"content-type": "application/x-protobuf"}, b"\x08\x03"), "it answered 400 Bad Request$"),
        ((302, {"location": "http://127.0.0.1:1/"}, b""), "it answered 302"),
        ((400, {"content-length": "1000"}, b"cut"), "it answered 400 Bad Request$"),
        ((200, {"content-length": "1000"}, b"cut"), "no answer"),
        ((200, {"content-length": "20", "content-type": "application/x-protobuf"}, b""), "no answer"),
    ],
)
def test_only_an_otlp_answer_is_one(server: Any, answer: Any, words: str) -> None:
    """A login page, a redirect or half an answer confirms nothing, and what it says is shown harmlessly."""
    server.answer = answer
    with pytest.raises(UndeliveredError, match=words):
        sender(f"http://127.0.0.1:{server.server_port}/v1/traces", threading.Event()).send(b"x")


def test_what_is_sent_says_who_sends(server: Any) -> None:
    """Protobuf, our name and version, and the user's headers."""
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1/traces", (("x-key", "1"),))
    found = OtlpSender(endpoint, clock=SystemClock(), timeout_s=0, stopping=threading.Event()).send(b"x")
    assert Answer() == found
    (headers,) = server.seen
    assert ("application/x-protobuf", "1", True) == (
        headers["content-type"],
        headers["x-key"],
        headers["user-agent"].startswith("stormphase/"),
    )


def test_a_certificate_that_is_not_trusted_is_not_tried_again() -> None:
    """Time does not mend it, and the reason is said."""
    untrusted = ssl.SSLCertVerificationError(1, "certificate verify failed")
    untrusted.verify_message = "self-signed certificate"
    refused = _refused_by(urllib.error.URLError(untrusted))
    assert (False, "its certificate is not trusted: self-signed certificate") == (refused.may_retry, str(refused))
