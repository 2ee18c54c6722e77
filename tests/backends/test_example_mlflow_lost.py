"""What the example that crashes left open, recovered into a real MLflow server, and the picture of it in README.

The picture is made anew with `STORMPHASE_PICTURE=docs/mlflow-lost.png python -m pytest -m backend -k lost_spans`, in a
checkout whose path may be seen.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stormphase.cli import main
from stormphase.journal import JournalImage, read_directory

from .browser import open_page
from .example import check_one_trace, run_example

if TYPE_CHECKING:
    from .mlflow_server import MlflowServer
    from .received import ReceivedSpan

pytestmark = pytest.mark.backend

LAST_STEP = 4
SHOWN_RANKS = (3, 5)
TOGGLE = '[data-testid="toggle-span-expanded-{}"]'
# The name of a line, from the element with its span's id; whether that is red as errors are.
IS_RED = """(() => {{
    const name = document.querySelector({selector!r}).querySelector('.du-bois-light-typography');
    const [red, green, blue] = getComputedStyle(name).color.match(/\\d+/g).map(Number);
    return red > 2 * green && red > 2 * blue;
}})()"""


def test_lost_spans_stand_red_beside_the_others(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree in the browser is whole, its lost spans are red and no others, and one that hung has its stack."""
    headers = ",".join(f"{name}={value}" for name, value in mlflow_server.headers.items())
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": mlflow_server.url,
        "OTEL_EXPORTER_OTLP_HEADERS": headers,
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
    }
    run_example("crash.py", "runs", f"--step={LAST_STEP}", cwd=tmp_path, environ=environ)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
    assert 0 == main(["recover", str(tmp_path / "runs"), "--otlp", mlflow_server.url])

    trace_id = trace_id_of(tmp_path / "runs")
    trace = mlflow_server.trace(trace_id)
    assert "ERROR" == trace.state
    check_one_trace(trace.spans, trace_id, ranks=8)
    lost = [span for span in trace.spans if span.status == "ERROR"]
    assert 1 + 8 * 4 == len(lost)
    assert len(lost) < len(trace.spans)
    (hung,) = [span for span in lost if (rank_of(span), span.name) == (5, "data_loading")]

    with open_page(mlflow_server.tree_url(trace_id), width=1280, height=1200) as page:
        page.wait_for_text("session", "rank 0", "train", "step")
        page.click(mlflow_server.tree_node(hung.span_id))
        page.wait_for_text("stormphase.Lost", "the process died while this was open", "Python stack after")
        page.evaluate("[...document.querySelectorAll('button')].find(b => b.innerText.includes('See more')).click()")
        page.wait_for_text("in load")
        for span in to_fold(trace.spans, lost):
            page.click(TOGGLE.format(span.span_id))
        shown = set(
            page.evaluate("""[...document.querySelectorAll('[data-testid^=timeline-tree-node-]')]
            .map(node => node.dataset.testid.replace('timeline-tree-node-', ''))""")
        )
        are_red = {
            span.span_id: page.evaluate(IS_RED.format(selector=mlflow_server.tree_node(span.span_id)))
            for span in trace.spans
            if span.span_id in shown
        }
        picture = page.picture()

    path = Path(os.environ.get("STORMPHASE_PICTURE") or tmp_path / "mlflow-lost.png")
    path.write_bytes(picture)
    assert {span_id: span_id in {span.span_id for span in lost} for span_id in shown} == are_red
    assert {True, False} == set(are_red.values())
    assert hung.span_id in shown
    assert len(shown) < len(trace.spans)


def trace_id_of(runs: Path) -> str:
    """Return the trace id that the journals say."""
    journals: list[Any] = [found for found in read_directory(runs) if isinstance(found, JournalImage)]
    (trace_id,) = {journal.facts["otel"]["trace_id"] for journal in journals}
    return str(trace_id)


def rank_of(span: ReceivedSpan) -> Any:
    """Return the rank that a span is of, or None for the session's."""
    return span.attributes.get("stormphase.rank")


def to_fold(spans: list[ReceivedSpan], lost: list[ReceivedSpan]) -> list[ReceivedSpan]:
    """Return the spans whose children a picture has no room for: of most ranks all, of two ended steps."""
    ranks = [span for span in lost if span.name.startswith("rank ") and rank_of(span) not in SHOWN_RANKS]
    steps = [span for span in spans if span.name == "step" and span not in lost and rank_of(span) in SHOWN_RANKS]
    steps.sort(key=lambda span: (rank_of(span) != SHOWN_RANKS[0], -span.started_ns))
    return [*ranks, *steps[1:]]
