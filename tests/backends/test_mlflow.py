"""The harness reads from a real MLflow server what was sent to it, and takes a picture of what it shows."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, Status, StatusCode, set_span_in_context

from .browser import BrowserError, find_browser, open_page, take_screenshot
from .mlflow_server import SHOW_TIMELINE, MlflowServer, cache_dir
from .received import ReceivedEvent, ReceivedLink, by_name, outline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.trace import Tracer

pytestmark = pytest.mark.backend

# Its body may not be there yet.
LOADED_TEXT = """new Promise(resolve => {
    const tell = () => resolve(document.body.innerText);
    document.readyState === "complete" ? tell() : addEventListener("load", tell);
})"""


@pytest.fixture
def tracer(mlflow_server: MlflowServer) -> Iterator[Tracer]:
    """Exports each span to MLflow as it ends."""
    provider = TracerProvider()
    exporter = OTLPSpanExporter(mlflow_server.traces_endpoint, headers=mlflow_server.headers)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("a scope")
    provider.shutdown()


def send_tree(tracer: Tracer) -> str:
    """Send train / step / forward, backward, of which backward fails; gives the trace's id."""
    train = tracer.start_span("train", start_time=1_700_000_000_000_000_000, attributes={"epochs": 3})
    step = tracer.start_span("step", set_span_in_context(train), start_time=1_700_000_000_001_000_000)
    forward = tracer.start_span("forward", set_span_in_context(step), start_time=1_700_000_000_002_000_000)
    forward.add_event("stormphase.phase.enter", {"path": ["train", "step", "forward"]}, 1_700_000_000_002_000_001)
    forward.end(1_700_000_000_004_000_000)
    links = [Link(forward.get_span_context(), {"why": "retry"})]
    beneath_step = set_span_in_context(step)
    backward = tracer.start_span("backward", beneath_step, links=links, start_time=1_700_000_000_005_000_000)
    backward.set_status(Status(StatusCode.ERROR, "out of memory"))
    backward.end(1_700_000_000_006_000_000)
    step.end(1_700_000_000_007_000_000)
    train.end(1_700_000_000_008_000_000)
    return f"{train.get_span_context().trace_id:032x}"


def test_the_tree_is_read_back(mlflow_server: MlflowServer, tracer: Tracer) -> None:
    """MLflow gives out the tree, times, status, events, links and attributes that were sent, at once."""
    trace = mlflow_server.trace(send_tree(tracer))

    assert ["train", "  step", "    forward", "    backward"] == outline(trace.spans)
    assert "OK" == trace.state
    forward, backward = by_name(trace.spans, "forward"), by_name(trace.spans, "backward")
    assert (1_700_000_000_002_000_000, 2_000_000) == (forward.started_ns, forward.duration_ns)
    assert (
        ReceivedEvent(
            name="stormphase.phase.enter",
            time_ns=1_700_000_000_002_000_001,
            attributes={"path": ["train", "step", "forward"]},
        ),
    ) == forward.events
    assert ("ERROR", "out of memory") == (backward.status, backward.status_message)
    assert (
        ReceivedLink(trace_id=forward.trace_id, span_id=forward.span_id, attributes={"why": "retry"}),
    ) == backward.links
    assert {"epochs": 3} == by_name(trace.spans, "train").attributes


def test_a_trace_without_its_root_is_in_progress(mlflow_server: MlflowServer, tracer: Tracer) -> None:
    """Until the root arrives a trace is shown as running, with the spans that came."""
    root = tracer.start_span("root")
    tracer.start_span("child", set_span_in_context(root)).end()
    trace_id = f"{root.get_span_context().trace_id:032x}"

    assert ("IN_PROGRESS", ["child (parent missing)"]) == _state_and_outline(mlflow_server, trace_id)
    root.end()
    assert ("OK", ["root", "  child"]) == _state_and_outline(mlflow_server, trace_id)


def _state_and_outline(server: MlflowServer, trace_id: str) -> tuple[str, list[str]]:
    trace = server.trace(trace_id)
    return trace.state, outline(trace.spans)


def test_an_unknown_trace_is_a_lookup_error(mlflow_server: MlflowServer) -> None:
    """A trace that MLflow has not got is told apart from other failures."""
    with pytest.raises(LookupError, match="no trace"):
        mlflow_server.trace("0" * 31 + "1")


def test_the_page_shows_the_tree(mlflow_server: MlflowServer, tracer: Tracer, tmp_path: Path) -> None:
    """A browser shows the phases of the trace, and the picture is a PNG of the size that was asked for."""
    url = mlflow_server.tree_url(send_tree(tracer))

    picture = take_screenshot(
        url,
        tmp_path / "trace.png",
        shows=("train", "step", "forward", "backward"),
        clicks=[SHOW_TIMELINE],
        width=1200,
        height=800,
    )

    head = picture.read_bytes()[:24]
    assert b"\x89PNG\r\n\x1a\n" == head[:8]
    assert (1200, 800) == (int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))


@pytest.mark.parametrize("page_of", [MlflowServer.tree_url, MlflowServer.trace_url])
def test_a_click_on_a_span_shows_its_attributes(
    mlflow_server: MlflowServer, tracer: Tracer, page_of: Callable[[MlflowServer, str], str]
) -> None:
    """On both pages that MLflow has for a trace a span can be found by its id and opened."""
    trace_id = send_tree(tracer)
    train = by_name(mlflow_server.trace(trace_id).spans, "train")

    with open_page(page_of(mlflow_server, trace_id)) as page:
        page.click(mlflow_server.tree_node(train.span_id))
        page.wait_for_text("epochs")


def test_what_is_not_on_the_page_cannot_be_clicked(mlflow_server: MlflowServer) -> None:
    """Clicking what never appears is an error that names the selector."""
    with open_page(f"{mlflow_server.url}/version", timeout_s=2) as page, pytest.raises(BrowserError, match="#nowhere"):
        page.click("#nowhere")


def test_a_text_that_never_shows_is_an_error_with_what_is_shown(mlflow_server: MlflowServer) -> None:
    """Waiting for a text in vain says which is missing and what the page shows instead."""
    with open_page(f"{mlflow_server.url}/version", timeout_s=2) as page:
        version = page.evaluate(LOADED_TEXT)
        with pytest.raises(BrowserError, match="never showed \\['nowhere to be seen'\\]. It shows: '" + version):
            page.wait_for_text(version, "nowhere to be seen")


def test_a_page_that_is_not_there_is_an_error() -> None:
    """An address where nothing listens is an error that names it."""
    with pytest.raises(BrowserError, match=r"Cannot open http://127.0.0.1:1/: .*"), open_page("http://127.0.0.1:1/"):
        pass


def test_no_browser_is_an_error_that_says_what_to_install() -> None:
    """Without any browser the message names the package."""
    with pytest.raises(BrowserError, match="apt-get install chromium-headless-shell"):
        find_browser({"PATH": os.devnull})


def test_the_cache_is_where_the_environment_says(tmp_path: Path) -> None:
    """The variable wins over the user's cache folder."""
    assert tmp_path == cache_dir({"STORMPHASE_TEST_CACHE": str(tmp_path), "XDG_CACHE_HOME": "/elsewhere"})
    assert tmp_path / "stormphase-tests" == cache_dir({"XDG_CACHE_HOME": str(tmp_path)})


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """When the starting process is killed, none of the server's processes outlives it for long."""
    source = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from backends.mlflow_server import MlflowServer
with MlflowServer(Path(sys.argv[1])) as server:
    print("started", flush=True)
    sys.stdin.read()
"""
    tests = Path(__file__).resolve().parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", source, str(tmp_path), str(tests)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        assert b"started\n" == starter.stdout.readline()
        assert 2 < len(processes_in(tmp_path))
        starter.kill()

    pause = threading.Event()
    for _ in range(300):
        if not processes_in(tmp_path):
            break
        pause.wait(0.1)
    assert [] == processes_in(tmp_path)


def processes_in(directory: Path) -> list[int]:
    """The living processes that work in `directory`: all that the server starts inherit it from it."""
    found = []
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if cwd.readlink() == directory.resolve():
                found.append(int(cwd.parent.name))
        except OSError:
            continue  # another user's, or it has just ended
    return found
