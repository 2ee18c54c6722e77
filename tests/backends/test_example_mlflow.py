"""The example's trace in a real MLflow server, and the picture of it in README.

The picture is made anew with `STORMPHASE_PICTURE=docs/mlflow.png python -m pytest -m backend -k picture`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .browser import open_page
from .example import check_digits, printed_trace_id, run_anywhere, run_example

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .mlflow_server import MlflowServer

pytestmark = pytest.mark.backend

PICTURE_VARIABLE = "STORMPHASE_PICTURE"


@pytest.fixture
def mlflow_environ(mlflow_server: MlflowServer) -> Mapping[str, str]:
    """What README tells users of MLflow to set."""
    headers = ",".join(f"{name}={value}" for name, value in mlflow_server.headers.items())
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": mlflow_server.url,
        "OTEL_EXPORTER_OTLP_HEADERS": headers,
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
    }


def test_mlflow_has_the_tree_that_the_terminal_showed(
    mlflow_server: MlflowServer, mlflow_environ: Mapping[str, str], tmp_path: Path
) -> None:
    """Names, ids, parents, statuses, times, attributes and counts are as MLflow gives them out; the trace is OK."""
    output = run_example("train_digits.py", "--epochs=3", cwd=tmp_path, environ=mlflow_environ)

    trace = mlflow_server.trace(printed_trace_id(output))
    assert "OK" == trace.state
    check_digits(trace.spans, output, epochs=3, steps_per_epoch=43)


def test_the_picture_shows_the_phases(
    mlflow_server: MlflowServer, mlflow_environ: Mapping[str, str], tmp_path: Path
) -> None:
    """MLflow's page has a line for each phase of a short run, the failed one in red with its exception beside it."""
    output = run_anywhere("train_digits.py", "--epochs=1", "--batch-size=674", environ=mlflow_environ)
    trace_id = printed_trace_id(output)
    spans = mlflow_server.trace(trace_id).spans
    (failed,) = [span for span in spans if span.status == "ERROR"]

    with open_page(mlflow_server.tree_url(trace_id), width=1280, height=880) as page:
        page.wait_for_text("session", "rank 0", "load_dataset", "train", "epoch", "load_batch", "step", "shard")
        page.click(mlflow_server.tree_node(failed.span_id))
        page.wait_for_text("OSError", "injected: no space left on device")
        picture = page.picture()
        lines = page.evaluate("document.querySelectorAll('[data-testid^=timeline-tree-node-]').length")

    path = Path(os.environ.get(PICTURE_VARIABLE) or tmp_path / "mlflow.png")
    path.write_bytes(picture)
    assert len(spans) == lines
    assert b"\x89PNG\r\n\x1a\n" == picture[:8]
