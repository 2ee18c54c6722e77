"""A real MLflow server for tests, in a virtual environment of its own, and what it shows of a trace."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from .received import Attributes, ReceivedEvent, ReceivedLink, ReceivedSpan, Value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Self

CACHE_VARIABLE = "STORMPHASE_TEST_CACHE"
EXPERIMENT_ID = "0"  # the one that every new store has
SHOW_TIMELINE = '[data-testid="show-timeline-info-button"]'  # on the tree's page: a bar for each span beside the tree

MLFLOW_VERSION = "3.17.2"
# MLflow's server and its web page come with the package `mlflow` only, whose dependencies weigh 850 MB. The server
# starts and serves traces with these, in 400 MB: without SciPy, scikit-learn, Matplotlib, PyArrow and Docker.
_WITHOUT_DEPENDENCIES = (f"mlflow=={MLFLOW_VERSION}",)
_WITH_DEPENDENCIES = (
    f"mlflow-skinny=={MLFLOW_VERSION}",
    f"mlflow-tracing=={MLFLOW_VERSION}",
    "aiohttp<4",
    "alembic<2",
    "cryptography>=43,<51",
    "Flask<4",
    "Flask-CORS<7",
    "graphene<4",
    "huey>=2.5.4,<4",
    "pandas<4",
    "sqlalchemy>=1.4,<3",
)
_INSTALL_LIMIT_S = 600.0
_START_LIMIT_S = 120.0
_LOOK_EVERY_S = 0.1

# The server starts a dozen processes, and they are to end even if this one is killed. So they live in a session of
# their own, led by this program: when its standard input ends, which the death of this process sees to, so do they all.
_GUARD = """
import os, signal, subprocess, sys, threading
signal.signal(signal.SIGTERM, lambda *_: None)  # a function, not SIG_IGN, which the server would inherit
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
stopping = threading.Event()

def follow():
    status = server.wait()
    if not stopping.is_set():
        os._exit(status & 255)

threading.Thread(target=follow, daemon=True).start()
sys.stdin.buffer.read()
stopping.set()
os.killpg(0, signal.SIGTERM)
try:
    server.wait(15)
finally:
    os.killpg(0, signal.SIGKILL)
"""


class MlflowError(RuntimeError):
    """MLflow could not be installed or started, or refused a request; has its last words."""


@frozen(kw_only=True)
class MlflowTrace:
    """A trace as MLflow gives it out.

    `state` is IN_PROGRESS until a root has arrived, then OK, or ERROR if the root's status is. MLflow keeps neither
    kind nor scope of a span, and a resource only as `tags` of the trace, of which the last request's wins; so the
    spans here have kind UNSPECIFIED and an empty scope and resource.
    """

    state: str
    tags: dict[str, str]
    spans: list[ReceivedSpan] = field(factory=list)


class MlflowServer:
    """An MLflow server with a store of its own. Use it as a context manager; methods may be called from any thread."""

    def __init__(self, directory: Path, cache: Path | None = None) -> None:
        """Keep store, artifacts and log in `directory`, and the installed MLflow in `cache` (see `cache_dir`)."""
        self._directory = directory
        self._cache = cache or cache_dir(os.environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

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
    def url(self) -> str:
        """The address of its web page and API."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def traces_endpoint(self) -> str:
        """Where spans go, as ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` takes it. It takes no logs and no metrics."""
        return f"{self.url}/v1/traces"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that MLflow wants with every request for spans."""
        return {"x-mlflow-experiment-id": EXPERIMENT_ID}

    def trace_url(self, trace_id: str) -> str:
        """Give the address of MLflow's own page, with the trace of the hex id `trace_id` opened."""
        return f"{self.url}/#/experiments/{EXPERIMENT_ID}/traces?selectedEvaluationId=tr-{trace_id}"

    def tree_url(self, trace_id: str) -> str:
        """Give the address of the page with nothing but the tree of a trace, which MLflow made for notebooks."""
        where = f"trace_id=tr-{trace_id}&experiment_id={EXPERIMENT_ID}&version={MLFLOW_VERSION}"
        return f"{self.url}/static-files/lib/notebook-trace-renderer/index.html?{where}"

    @staticmethod
    def tree_node(span_id: str) -> str:
        """Give the CSS selector of a span's line in the tree, on both pages."""
        return f'[data-testid="timeline-tree-node-{span_id}"]'

    def start(self) -> None:
        """Start the server; returns when its health endpoint says OK.

        Raises:
            MlflowError: it could not be installed, or ended or was not healthy within two minutes.
        """
        if self._process is not None:
            raise MlflowError("The server is running already. Stop it first.")
        python = install(self._cache)
        self._port = _free_port()
        command = [
            sys.executable, "-c", _GUARD,
            str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self._directory.resolve()}/mlf.db",
            "--default-artifact-root", f"{self._directory.resolve()}/art",
        ]  # fmt: skip
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "OTEL_"))}
        environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environ, cwd=self._directory,
                start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_until_healthy(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and every process that it started; returns when none is left.

        Raises:
            MlflowError: a process of its survived even SIGKILL.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        if _wait_until_gone(process, limit_s=30.0):
            return
        _signal_group(process.pid, signal.SIGKILL)
        if _wait_until_gone(process, limit_s=10.0):
            return
        raise MlflowError(f"Processes {_living_in_group(process.pid)} of MLflow did not end.")

    def trace(self, trace_id: str) -> MlflowTrace:
        """Fetch the trace with the hex id `trace_id`, which is there as soon as its spans were answered with 200.

        Raises:
            LookupError: MLflow knows no such trace.
            MlflowError: it answered something else.
        """
        address = f"{self.url}/ajax-api/3.0/mlflow/traces/get?trace_id=tr-{trace_id}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 (our own server)
                found = json.load(answer)["trace"]
        except urllib.error.HTTPError as error:
            if error.code == http.client.NOT_FOUND:
                raise LookupError(f"MLflow has no trace {trace_id}.") from error
            raise MlflowError(f"MLflow answered {error.code}: {error.read()[:500]!r}") from error
        info = found["trace_info"]
        return MlflowTrace(
            state=info["state"], tags=info.get("tags", {}), spans=[_span_of(span) for span in found.get("spans", [])]
        )

    @property
    def _log_path(self) -> Path:
        return self._directory / "mlflow.log"

    def _wait_until_healthy(self, process: subprocess.Popen[bytes]) -> None:
        for _ in range(int(_START_LIMIT_S / _LOOK_EVERY_S)):
            if _is_healthy(self._port):
                return
            try:
                process.wait(_LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                continue
            raise MlflowError(f"MLflow ended: {self._last_words()}")
        raise MlflowError(f"MLflow was not healthy after {_START_LIMIT_S} s: {self._last_words()}")

    def _last_words(self) -> str:
        return self._log_path.read_bytes()[-3000:].decode(errors="replace")


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Give the folder for what tests install once: ``STORMPHASE_TEST_CACHE``, else one in the user's cache."""
    named = environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    users = environ.get("XDG_CACHE_HOME")
    return (Path(users) if users else Path.home() / ".cache") / "stormphase-tests"


def install(cache: Path) -> Path:
    """Make sure that MLflow is installed under `cache`, and give the path of its Python.

    The folder's name holds the Python version and what is installed, so another version never reuses it. A process
    that is killed midway leaves no half environment in use: what counts is a mark written last. Safe against other
    processes that do the same.

    Raises:
        MlflowError: pip failed, or took more than ten minutes.
    """
    wanted = "\n".join((sys.version, *_WITHOUT_DEPENDENCIES, *_WITH_DEPENDENCIES))
    environment = cache / f"mlflow-{MLFLOW_VERSION}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    python, mark = environment / "bin" / "python", environment / "installed"
    cache.mkdir(parents=True, exist_ok=True)
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if mark.exists():
            return python
        shutil.rmtree(environment, ignore_errors=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([sys.executable, "-m", "venv", str(environment)])
        _run([*pip, "--no-deps", *_WITHOUT_DEPENDENCIES])
        _run([*pip, *_WITH_DEPENDENCIES])
        mark.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=_INSTALL_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise MlflowError(f"{command} took more than {_INSTALL_LIMIT_S} s.") from error
    if done.returncode != 0:
        words = (done.stdout + done.stderr)[-3000:].decode(errors="replace")
        raise MlflowError(f"{command} failed with {done.returncode}: {words}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            return bool(answer.status == http.client.OK)
    except OSError:  # refused, reset, or an HTTP error: not yet
        return False


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _wait_until_gone(process: subprocess.Popen[bytes], *, limit_s: float) -> bool:
    """Wait up to `limit_s` seconds for a group leader and its whole group to end."""
    pause = threading.Event()  # never set: orphans of another parent cannot be waited for, only looked at
    for _ in range(int(limit_s / _LOOK_EVERY_S)):
        if process.poll() is not None and not _living_in_group(process.pid):
            return True
        pause.wait(_LOOK_EVERY_S)
    return False


def _living_in_group(group: int) -> list[int]:
    return [pid for pid, of_group, state in _processes() if of_group == group and state not in "ZX"]


def _processes() -> Iterator[tuple[int, int, str]]:
    # proc(5): "pid (comm) state ppid pgrp ..."; comm may hold blanks and brackets, so the last bracket ends it.
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal():
            continue
        try:
            fields = (path / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        yield int(path.name), int(fields[2]), fields[0]


def _span_of(span: dict[str, Any]) -> ReceivedSpan:
    status = span.get("status", {})
    return ReceivedSpan(
        trace_id=_hex_of(span["trace_id"]),
        span_id=_hex_of(span["span_id"]),
        parent_span_id=_hex_of(span.get("parent_span_id", "")) or None,
        name=span["name"],
        kind="UNSPECIFIED",
        started_ns=int(span["start_time_unix_nano"]),
        ended_ns=int(span["end_time_unix_nano"]),
        status=status.get("code", "STATUS_CODE_UNSET").removeprefix("STATUS_CODE_"),
        status_message=status.get("message", ""),
        attributes=_attributes_of(span),
        events=tuple(
            ReceivedEvent(name=event["name"], time_ns=int(event["time_unix_nano"]), attributes=_attributes_of(event))
            for event in span.get("events", [])
        ),
        links=tuple(
            ReceivedLink(
                trace_id=_hex_of(link["trace_id"]), span_id=_hex_of(link["span_id"]), attributes=_attributes_of(link)
            )
            for link in span.get("links", [])
        ),
    )


def _hex_of(encoded: str) -> str:
    return base64.b64decode(encoded).hex()


def _attributes_of(owner: dict[str, Any]) -> Attributes:
    # MLflow adds attributes of its own, which nobody sent.
    return {
        pair["key"]: _value_of(pair.get("value", {}))
        for pair in owner.get("attributes", [])
        if not pair["key"].startswith("mlflow.")
    }


def _value_of(value: dict[str, Any]) -> Value:
    for kind, inside in value.items():
        if kind == "array_value":
            return [_value_of(item) for item in inside.get("values", [])]
        if kind == "kvlist_value":
            return {pair["key"]: _value_of(pair.get("value", {})) for pair in inside.get("values", [])}
        if kind == "double_value":
            return float(inside)  # NaN and infinities come as strings
        plain: str | bool | int = inside
        return plain
    return None
