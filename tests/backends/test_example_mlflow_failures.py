"""The example in which much fails, in a real MLflow server, and the picture of it in docs/records.md.

The picture is made anew with `STORMPHASE_PICTURE=docs/failures-mlflow.png python -m pytest -m backend -k what_failed`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .browser import open_page
from .example import run_anywhere
from .test_example_mlflow_lost import IS_RED, trace_id_of

if TYPE_CHECKING:
    from .mlflow_server import MlflowServer

pytestmark = pytest.mark.backend

# Every phase, in the order in which it was entered, and whether it is red.
STORY = {
    ("load", False),
    ("fetch", True),
    ("fetch", False),
    ("clean", False),
    ("check", True),
    ("train", False),
    ("search", True),
    ("try_rate", False),
    ("try_rate", True),
    ("fit", False),
    ("evaluate", True),
    ("plain", False),
    ("noisy", True),
    ("shifted", True),
}


def test_what_failed_is_red_and_says_why(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    """The tree is that of the report: each root cause is red and says why, and what handled one is not."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": mlflow_server.url,
        "OTEL_EXPORTER_OTLP_HEADERS": ",".join(f"{name}={value}" for name, value in mlflow_server.headers.items()),
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
    }
    run_anywhere("failures.py", str(tmp_path / "runs"), environ=environ)
    trace_id = trace_id_of(tmp_path / "runs" / "journals")

    trace = mlflow_server.trace(trace_id)
    phases = [span for span in trace.spans if "stormphase.phase.path" in span.attributes]
    assert STORY == {(span.name, span.status == "ERROR") for span in phases}
    assert 15 == len(phases)
    (noisy,) = [span for span in phases if span.name == "noisy"]

    with open_page(mlflow_server.tree_url(trace_id), width=1280, height=880) as page:
        page.wait_for_text("session", "rank 0", "load", "fetch", "try_rate", "noisy")
        page.click(mlflow_server.tree_node(noisy.span_id))
        page.wait_for_text("ValueError", "were promised")
        are_red = {
            (span.name, span.span_id): page.evaluate(IS_RED.format(selector=mlflow_server.tree_node(span.span_id)))
            for span in phases
        }
        picture = page.picture()
    path = Path(os.environ.get("STORMPHASE_PICTURE") or tmp_path / "failures-mlflow.png")
    path.write_bytes(picture)
    # By its exception, which is told once, where it arose: `evaluate` failed by that of `noisy`.
    causes = {(span.name, span.span_id): span.status == "ERROR" and span.name != "evaluate" for span in phases}
    assert causes == are_red
