"""A hundred threads and a hundred tasks that print and log at once: none of their lines is lost, torn or astray."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from stormphase.records import read_records

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import RunPython

CROWD = """
import asyncio, json, logging, sys, threading
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs import export
from opentelemetry.sdk.trace import TracerProvider
from stormphase import PhaseTracker
from stormphase.capture import CaptureOptions
from stormphase.otel import OTelBridge
from stormphase.stores import SqliteStore

COUNT, STEPS = 100, 5
sent = getattr(export, "InMemoryLogRecordExporter", None) or export.InMemoryLogExporter  # by SDK
sent = sent()
logger_provider = LoggerProvider()
logger_provider.add_log_record_processor(export.SimpleLogRecordProcessor(sent))
logging.basicConfig(stream=sys.stderr, level="INFO", format="%(message)s")
log = logging.getLogger("crowd")
spans = {}

def say(who, step):
    print(who, "prints", step)
    print(f"{who} tells stderr {step}", file=sys.stderr)
    log.info("%s logs %d", who, step)
    log.debug("%s mumbles %d", who, step)

def of_thread(tracker, number):
    begin.wait(60)
    with tracker.enter_phase("thread", {"number": number}) as phase:
        spans[f"thread {number}"] = phase.scope_id
        for step in range(STEPS):
            say(f"thread {number}", step)

async def of_task(tracker, number):
    with tracker.enter_phase("task", {"number": number}) as phase:
        spans[f"task {number}"] = phase.scope_id
        for step in range(STEPS):
            say(f"task {number}", step)
            await asyncio.sleep(0)

async def tasks(tracker):
    await asyncio.gather(*(of_task(tracker, number) for number in range(COUNT)))

begin = threading.Barrier(COUNT + 1)
tracker = PhaseTracker(
    session_id="s",
    capture=CaptureOptions(mode=sys.argv[1]),
    store=SqliteStore("crowd.db"),
    bridge=OTelBridge(TracerProvider(), logger_provider),
)
with tracker:
    threads = [threading.Thread(target=of_thread, args=(tracker, number)) for number in range(COUNT)]
    for thread in threads:
        thread.start()
    begin.wait(60)
    asyncio.run(tasks(tracker))
    for thread in threads:
        thread.join()

with open("report.json", "w") as file:
    records = [item.log_record for item in sent.get_finished_logs()]
    lines = [(f"{record.span_id:016x}", record.body) for record in records if not record.event_name]
    json.dump({"spans": spans, "sent": lines, "stats": tracker.stats()["capture"]}, file)
"""


def said_by(who: str) -> list[tuple[str, str]]:
    """Return what one of them says, in order."""
    return [
        line
        for step in range(5)
        for line in (
            ("stdout", f"{who} prints {step}"),
            ("stderr", f"{who} tells stderr {step}"),
            ("log", f"INFO crowd: {who} logs {step}"),
            ("log", f"DEBUG crowd: {who} mumbles {step}"),
        )
    ]


@pytest.mark.parametrize("mode", ["context", "fd"])
def test_a_crowd_is_told_apart(run_python: RunPython, tmp_path: Path, mode: str) -> None:
    """In the store and as log records each line is whole, at its own phase and in its order, and so in the terminal."""
    # Buffered, CPython itself loses text of threads that print at once.
    shown = run_python(CROWD, mode, env={"PYTHONUNBUFFERED": "1"})
    everybody = [f"{kind} {number}" for kind in ("thread", "task") for number in range(100)]
    records = [*read_records(tmp_path / "crowd.db", kind="phase")]
    found = {
        f"{record.name} {record.attributes['number']}": [(line.stream, line.text) for line in record.output]
        for record in records
    }
    assert {who: said_by(who) for who in everybody} == found
    report = json.loads((tmp_path / "report.json").read_text())
    expected = {(report["spans"][who], text) for who in everybody for _, text in said_by(who)}
    assert expected == {tuple(line) for line in report["sent"]}
    assert len(expected) == len(report["sent"])
    assert not any(count for name, count in report["stats"].items() if name != "outputs")
    # In a terminal a `print` is several writes, which take turns as they did before: nothing is lost there, either.
    told = [(stream, text) for who in everybody for stream, text in said_by(who) if not text.startswith("DEBUG")]
    for stream, text in (("stdout", shown.stdout), ("stderr", shown.stderr)):
        lines = [line.removeprefix("INFO crowd: ") for each, line in told if (each == "stdout") == (stream == "stdout")]
        assert sorted("".join(lines)) == sorted(text.replace("\n", ""))
