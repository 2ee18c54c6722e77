"""The names of trackers, threads and tasks are told without their secrets, wherever they go."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stormphase import LoggingSink, PhaseTracker
from stormphase._overdue import stacks_of_all_threads
from stormphase._redaction import Redactor
from stormphase.cli import main
from stormphase.otel import OTelBridge
from stormphase.stores import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

HIDDEN = "hunter2-17"
NAMED = f"job password={HIDDEN}"


def test_names_lose_their_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Journal, store, spans, sinks, logs, the carrier and the summary have what stands for it, and the name's rest."""
    caplog.set_level("DEBUG", logger="stormphase")
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    store = MemoryStore()
    boundaries: list[object] = []
    tracker = PhaseTracker(
        NAMED,
        session_id="named",
        journal=tmp_path,
        store=store,
        bridge=OTelBridge(provider),
        sinks=[boundaries.append, LoggingSink()],
        summary=True,
    )

    async def work() -> None:
        with tracker.enter_phase("in task"):
            pass

    async def run() -> None:
        await asyncio.create_task(work(), name=NAMED)

    def in_thread() -> None:
        with tracker.enter_phase("in thread"):
            pass
        asyncio.run(run())

    with tracker:
        thread = threading.Thread(target=in_thread, name=NAMED)
        thread.start()
        thread.join()
        carrier = tracker.carrier()
    assert 0 == main(["records", str(tmp_path), "--format", "json"])
    shown = capsys.readouterr()
    journals = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode("latin-1")
    records = [json.dumps(record.to_json()) for record in store.query()]
    places = {
        "journal": journals,
        "store": "".join(records),
        "spans": "".join(span.to_json() for span in exporter.get_finished_spans()),
        "sinks": repr(boundaries),
        "logs": "".join(repr(vars(record)) for record in caplog.records),
        "carrier": repr(carrier),
        "summary and records": shown.out + shown.err,
    }
    assert [] == [place for place, text in places.items() if HIDDEN in text]
    assert [] == [place for place, text in places.items() if "[redacted]" not in text]
    lanes = {record.name: (record.thread_name, record.task_name) for record in store.query(kind="phase")}
    told = "job password=[redacted]"
    assert {"in thread": (told, None), "in task": (told, told)} == lanes
    assert NAMED == tracker.name


def test_stacks_of_a_phase_that_is_overdue_name_no_secret() -> None:
    """The stacks of all threads are told by the same names."""
    names: list[str] = []

    def look() -> None:
        names.extend(stack["name"] for stack in stacks_of_all_threads(threading.get_ident(), Redactor()))

    thread = threading.Thread(target=look, name=NAMED)
    thread.start()
    thread.join()
    assert "job password=[redacted]" == names[0]
