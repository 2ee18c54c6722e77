"""Four real processes of one session, with tokens entered in one function and exited in another: one trace for all.

Run it:      python examples/ranks.py
With OTLP:   OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 python examples/ranks.py

The ranks never talk to each other, and all use the same random seed. Without an endpoint each writes its spans to a
file of its own; the parent process then reads the files and shows the one tree that they are.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import stormphase
from stormphase.otel import OTelBridge, configure

RANKS = 4
STEPS = 3
SWITCHED_OFF = "the environment switches stormphase, or OpenTelemetry, off"


class PhaseCallback:
    """Hooks as many training frameworks have them: a step begins in one call and ends in another."""

    def __init__(self, tracker: stormphase.PhaseTracker) -> None:
        self.tracker = tracker
        self.step: stormphase.PhaseToken | None = None

    def on_step_begin(self, step: int) -> None:
        """Enter the step, and keep the token: it is the proof that ends it."""
        self.tracker.set_step(step)
        self.step = self.tracker.enter("step", {"samples": 64})

    def on_step_end(self) -> None:
        """Exit what `on_step_begin` entered."""
        if self.step is not None:
            self.tracker.exit(self.step)


def train(tracker: stormphase.PhaseTracker) -> None:
    """Work through the steps; the phase `compute` nests in the step that is open, though it knows no token."""
    callback = PhaseCallback(tracker)
    matrix = np.random.default_rng(42).normal(size=(200, 200))
    for step in range(STEPS):
        callback.on_step_begin(step)
        with tracker.enter_phase("compute"):
            matrix = np.tanh(matrix @ matrix)
        callback.on_step_end()


def run_rank(folder: str) -> None:
    """Be one rank: the launcher's variables say which, and the session's id is derived from the launcher."""
    random.seed(42)  # on every rank: no id depends on it
    has_endpoint = bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    with (
        configure(service_name="ranks", jsonl_dir=None if has_endpoint else folder) as telemetry,
        stormphase.PhaseTracker("ranks", bridge=OTelBridge(telemetry.tracer_provider)) as tracker,
    ):
        identity = tracker.identity
        traceparent = tracker.environment().get("TRACEPARENT")
        trace = f"trace {traceparent.split('-')[1]}" if traceparent else f"no trace: {SWITCHED_OFF}"
        # The line and its end in one piece: four processes write to one stream.
        print(f"rank {identity.rank} of {identity.world_size}, process {os.getpid()}: {trace}\n", end="", flush=True)
        train(tracker)


def launch(folder: str) -> None:
    """Start all ranks, with the variables that torchrun would set, and wait for them."""
    common = {**os.environ, "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    processes = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, __file__, folder], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(RANKS)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"the ranks ended with {codes}")


def read_spans(folder: str) -> list[dict[str, Any]]:
    """Return the spans of all files, each with the process that it came from."""
    return [
        {**span, "pid": attribute["value"]["intValue"]}
        for path in Path(folder).glob("traces-*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for attribute in resource["resource"]["attributes"]
        if attribute["key"] == "process.pid"
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def show(spans: list[dict[str, Any]], parent_id: str = "", depth: int = 0) -> None:
    """Print the spans beneath a parent as a tree."""
    children = [span for span in spans if span.get("parentSpanId", "") == parent_id]
    for span in sorted(children, key=lambda span: (int(span["pid"]), int(span["startTimeUnixNano"]))):
        duration_ns = int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])
        print(f"{'  ' * depth + span['name']:<16} process {span['pid']:<8} {duration_ns / 1e6:9.3f} ms")
        show(spans, span["spanId"], depth + 1)


def main() -> None:
    """Launch the ranks, and show what they sent."""
    with tempfile.TemporaryDirectory() as folder:
        launch(folder)
        spans = read_spans(folder)
    show(spans)
    for trace_id in sorted({span["traceId"] for span in spans}):
        print(f"{len(spans)} spans of {len({span['pid'] for span in spans})} processes, all in trace {trace_id}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_rank(sys.argv[1])
    else:
        main()
