"""One run and what all of its tellers say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import stormphase
from stormphase.otel import OTelBridge
from stormphase.records import read_records
from stormphase.stores import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Tracker = stormphase.PhaseTracker


class Run:
    """What each teller says of a run, by path: status, where it arose, and whether the traceback stands there."""

    def __init__(self, folder: Path, body: Callable[[Tracker], Any]) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.boundaries: list[Any] = []
        self.store = MemoryStore()
        spans = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(spans))
        self.raised: BaseException | None = None
        try:
            with stormphase.PhaseTracker(
                store=self.store,
                journal=folder,
                sinks=[self.boundaries.append],
                bridge=OTelBridge(provider, events="off"),
                rank=0,
                world_size=1,
            ) as tracker:
                self.session_id = tracker.session_id
                body(tracker)
        except BaseException as error:
            self.raised = error
        self.misuse = tracker.stats()["misuse"]
        self.records = list(self.store.query())
        self.spans = {span.name: span for span in spans.get_finished_spans()}
        provider.shutdown()
        self.journaled = list(read_records(folder))

    @property
    def told(self) -> dict[str, tuple[str, str | None, bool]]:
        """What the store says of each phase, after checking that the other tellers do not say something else."""
        told = {
            record.path_text: (record.status.value, text_of(record.root_cause_path), record.traceback is not None)
            for record in self.records
            if record.kind == "phase"
        }
        live = {}
        for boundary in self.boundaries:
            if boundary.event_type == "phase_exit":
                scope = boundary.metadata["phase_scope"]
                error = scope.get("error") or {}
                cause = scope.get("root_cause_path")
                live[" / ".join(boundary.path)] = (
                    scope["status"],
                    text_of(cause),
                    error.get("traceback") is not None,
                )
        assert told == live
        journaled = {
            record.path_text: (record.status.value, text_of(record.root_cause_path), record.traceback is not None)
            for record in self.journaled
            if record.kind == "phase"
        }
        assert told == journaled
        spans = {
            span.attributes["stormphase.phase.path"]: span.attributes["stormphase.phase.status"]
            for span in self.spans.values()
            if "stormphase.phase.path" in span.attributes
        }
        assert {path: status for path, (status, _, _) in told.items()} == spans
        return told

    @property
    def session_cause(self) -> str | None:
        """Where the session says that its failure arose."""
        (session,) = [record for record in self.records if record.kind == "session"]
        (other,) = [record for record in self.journaled if record.kind == "session"]
        assert session.root_cause_path == other.root_cause_path
        return text_of(session.root_cause_path)


def text_of(path: Any) -> str | None:
    """Return a path as people read it; None without one."""
    return " / ".join(path) if path else None


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tracker], Any]], Run]:
    """Run a body in a tracker with all tellers."""
    from stormphase import _claims

    monkeypatch.setattr(_claims, "_claimed", {})
    return lambda body: Run(tmp_path / "runs", body)
