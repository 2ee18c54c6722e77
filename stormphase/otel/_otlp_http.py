"""Sends requests to an OTLP endpoint over HTTP, and believes only what was answered.

Source: the OTLP specification 1.x, "OTLP/HTTP": 429, 502, 503 and 504 may be tried again, after `Retry-After` or with
growing pauses; a connection that fails or breaks may be, too; everything else may not. Redirects are not followed.
"""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

import attrs

from stormphase._version import __version__
from stormphase.exceptions import ConfigurationError
from stormphase.otel._otlp_protobuf import Answer, AnswerError, answer_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from stormphase.typing import Clock

ENDPOINT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_PREFIXES: Final = ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_")  # the first one that is set wins
_PATH: Final = "/v1/traces"

ATTEMPT_TIMEOUT_S: Final = 10.0
_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
_MAX_ANSWER_BYTES: Final = 1 << 16
_MAX_SHOWN_CHARS: Final = 200
_MAX_DIGITS: Final = 6


class UndeliveredError(Exception):
    """A request was not confirmed; it may have arrived all the same.

    Attributes:
        is_down: whether nothing could be delivered at all for as long as was allowed, so others need not be tried.
    """

    def __init__(self, problem: str, *, is_down: bool) -> None:
        """Keep whether others may fare better."""
        super().__init__(problem)
        self.is_down = is_down


@attrs.frozen
class Endpoint:
    """Where spans go.

    Attributes:
        url: the whole address.
        headers: sent with each request; may hold secrets, so they are never shown.
        certificate: a file of certificates that the server's must be signed by, or None for the system's.
        client_certificate: files of our own certificate and its key, or None.
    """

    url: str
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    certificate: str | None = None
    client_certificate: tuple[str, str | None] | None = None

    @property
    def shown(self) -> str:
        """The address without what may be a secret: user, password and query."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @classmethod
    def of(
        cls, given: str | None, environ: Mapping[str, str], headers: Sequence[tuple[str, str]] = ()
    ) -> Endpoint | None:
        """Return the endpoint that was given, else that of OpenTelemetry's variables; None if there is none.

        Args:
            given: a base address, to which `/v1/traces` is added, or one that ends in it.
            environ: the environment; its headers and certificates hold for a given endpoint, too.
            headers: more headers; they win.

        Raises:
            ConfigurationError: if an address, a header or the protocol cannot be used; it names the setting.
        """
        traces_url, base = environ.get(TRACES_ENDPOINT_VARIABLE, "").strip(), environ.get(ENDPOINT_VARIABLE, "").strip()
        if given is not None:
            address, setting = given.strip(), "--otlp"
        elif traces_url or base:
            address = traces_url or base
            setting = TRACES_ENDPOINT_VARIABLE if traces_url else ENDPOINT_VARIABLE
            _check_protocol(environ, setting)
        else:
            return None
        _check_url(address, setting)
        is_whole = setting == TRACES_ENDPOINT_VARIABLE or (given is not None and _has_path(address))
        url = address if is_whole else _with_path(address)
        client = _first(environ, "CLIENT_CERTIFICATE")
        return cls(
            url=url,
            headers=tuple(({**_headers_of(environ), **{name.lower(): value for name, value in headers}}).items()),
            certificate=_first(environ, "CERTIFICATE"),
            client_certificate=None if client is None else (client, _first(environ, "CLIENT_KEY")),
        )


class OtlpSender:
    """Posts requests to one endpoint. For one thread; may be stopped from any.

    Args:
        endpoint: where to.
        clock: where times come from.
        timeout_s: for how long one request is tried again, in seconds.
        stopping: set by whoever wants it to give up.

    Raises:
        ConfigurationError: if a certificate cannot be read.
    """

    def __init__(self, endpoint: Endpoint, *, clock: Clock, timeout_s: float, stopping: threading.Event) -> None:
        """Connect to nothing yet."""
        self.endpoint = endpoint
        self._clock = clock
        self._timeout_ns = int(timeout_s * 1e9)
        self._stopping = stopping
        handlers: list[Any] = [_NoRedirects]
        if endpoint.url.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=_tls(endpoint)))
        self._opener = urllib.request.build_opener(*handlers)

    def send(self, body: bytes) -> Answer:
        """Send one request until it is answered, and return what was answered.

        Raises:
            UndeliveredError: if it was refused, or not answered in time. It may have arrived all the same.
        """
        deadline_ns = self._clock.monotonic_ns() + self._timeout_ns
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return self._post(body)
            except _RefusedError as refused:
                problem, may_retry, after_s = str(refused), refused.may_retry, refused.retry_after_s
            if not may_retry:
                raise UndeliveredError(problem, is_down=False)
            wait_s = pause_s if after_s is None else after_s
            if self._clock.monotonic_ns() + int(wait_s * 1e9) > deadline_ns:
                raise UndeliveredError(problem, is_down=True)
            if self._stopping.wait(wait_s):
                raise UndeliveredError("it was told to stop", is_down=True)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    def _post(self, body: bytes) -> Answer:
        headers = dict(self.endpoint.headers)
        headers |= {"content-type": "application/x-protobuf", "user-agent": f"stormphase/{__version__}"}
        request = urllib.request.Request(self.endpoint.url, body, headers, method="POST")  # noqa: S310 - http(s): checked
        try:
            with self._opener.open(request, timeout=ATTEMPT_TIMEOUT_S) as answer:
                data = answer.read(_MAX_ANSWER_BYTES)
                length = answer.headers.get("content-length", "").strip()
                # Else a partial success that was cut off would read like a full one.
                if length.isascii() and length.isdigit() and len(data) < min(int(length[:18]), _MAX_ANSWER_BYTES):
                    raise http.client.IncompleteRead(data)
                return answer_of(data, answer.headers.get("content-type", ""))
        except (AnswerError, OSError, http.client.HTTPException) as error:
            raise _refused_by(error) from None


class _RefusedError(Exception):
    """A request was not confirmed: why, whether it may be sent again, and after how many seconds."""

    def __init__(self, problem: str, *, may_retry: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(problem)
        self.may_retry = may_retry
        self.retry_after_s = retry_after_s


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows none: a POST would arrive elsewhere as a GET, and our headers with it."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Say that there is nothing to follow, which makes it an error."""


def _refused_by(error: Exception) -> _RefusedError:
    if isinstance(error, urllib.error.HTTPError):
        with error:
            return _refused_with_status(error)
    if isinstance(error, AnswerError):
        return _RefusedError(str(error))
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return _RefusedError(f"its certificate is not trusted: {_printable(reason.verify_message)}")
    return _RefusedError(f"no answer: {_printable(str(reason) or type(reason).__name__)}", may_retry=True)


def _refused_with_status(error: urllib.error.HTTPError) -> _RefusedError:
    try:
        text = error.read(_MAX_ANSWER_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    kind = error.headers.get("content-type", "")
    # A protobuf `Status` is no text for people.
    words = _printable(text) if "json" in kind or "text" in kind else ""
    after = error.headers.get("retry-after", "").strip()
    return _RefusedError(
        f"it answered {error.code} {_printable(str(error.reason))}".rstrip() + (f": {words}" if words else ""),
        may_retry=error.code in _RETRYABLE,
        retry_after_s=float(after) if after.isascii() and after.isdigit() and len(after) <= _MAX_DIGITS else None,
    )


def _printable(text: str) -> str:
    words = " ".join(text.split())[:_MAX_SHOWN_CHARS]
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)


def _tls(endpoint: Endpoint) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=endpoint.certificate)
        if endpoint.client_certificate is not None:
            context.load_cert_chain(*endpoint.client_certificate)
    except (OSError, ValueError) as error:
        setting = "OTEL_EXPORTER_OTLP_CERTIFICATE"
        raise ConfigurationError(
            f"A certificate for {endpoint.shown} cannot be used: {error}.",
            setting=setting,
            fix=f"Let {setting}, _CLIENT_CERTIFICATE and _CLIENT_KEY name readable PEM files, or unset them.",
        ) from error
    return context


def _has_path(url: str) -> bool:
    return urlsplit(url).path.rstrip("/").endswith(_PATH)


def _with_path(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + _PATH, parts.query, ""))


def _check_url(url: str, setting: str) -> None:
    problem = ""
    try:
        parts = urlsplit(url)
        port = parts.port
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            problem = "it must begin with http:// or https:// and name a host"
        elif not url.isascii() or not url.isprintable() or " " in url:
            problem = "it has characters that an address cannot have"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ConfigurationError(
            f"{setting} is no address of an OTLP/HTTP endpoint: {problem}.",
            setting=setting,
            fix=f"Write {setting}{' ' if setting.startswith('-') else '='}http://collector:4318.",
        )


def _check_protocol(environ: Mapping[str, str], setting: str) -> None:
    if (_first(environ, "PROTOCOL") or "").lower() == "grpc":
        raise ConfigurationError(
            f"{setting} names a gRPC endpoint, as OTEL_EXPORTER_OTLP_PROTOCOL says, and recovery sends OTLP over HTTP.",
            setting=setting,
            fix="Give the collector's HTTP port: stormphase recover DIR --otlp http://collector:4318.",
        )


def _headers_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of the environment: `name=value` with commas between, the values percent-encoded."""
    headers: dict[str, str] = {}
    for prefix in reversed(_PREFIXES):
        for pair in environ.get(f"{prefix}HEADERS", "").split(","):
            name, found, value = pair.partition("=")
            if found and name.strip():
                headers |= [checked_header(unquote(name.strip()), unquote(value.strip()), f"{prefix}HEADERS")]
    return headers


def checked_header(name: str, value: str, setting: str) -> tuple[str, str]:
    """Return a header as it may be sent.

    Raises:
        ConfigurationError: if it may not be.
    """
    is_name = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    if not is_name or not value.isprintable() or not value.isascii():
        raise ConfigurationError(
            f"{setting} has a header that cannot be sent, {name[:40]!a}.",
            setting=setting,
            fix="Write name=value with plain ASCII; in the variable, other characters as %XX.",
        )
    return name.lower(), value


def _first(environ: Mapping[str, str], name: str) -> str | None:
    for prefix in _PREFIXES:
        value = environ.get(f"{prefix}{name}", "").strip()
        if value:
            return value
    return None
