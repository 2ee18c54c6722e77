"""What phases say as log records: in their span, at their own time, with the right severity, and to every sink."""

# ruff: noqa: T201 - prints are what it is about

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry._logs import NoOpLoggerProvider, SeverityNumber
from opentelemetry.sdk.trace import TracerProvider

from stormphase.capture import CapturedLine
from stormphase.otel import OTelBridge
from stormphase.otel._said import severity_of
from stormphase.stores import MemoryStore

from .conftest import logs_to_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import RunPython

    from stormphase import PhaseTracker

    MakeTracker = Callable[..., PhaseTracker]


def lines_of(exporter: Any) -> list[Any]:
    """Return the log records that are no events."""
    records = [item.log_record for item in exporter.get_finished_logs()]
    return [record for record in records if not record.event_name]


def test_lines_stand_in_the_span_of_their_phase(make_tracker: MakeTracker) -> None:
    """Each with its time, text, stream and severity, and the ids of the phase's span; the same as in the store."""
    provider, exporter = logs_to_memory()
    store = MemoryStore()
    bridge = OTelBridge(TracerProvider(), provider)
    with make_tracker(bridge=bridge, capture=True, store=store) as tracker, tracker.enter_phase("train"):
        tracker.set_step(7)
        with contextlib.suppress(ValueError), tracker.enter_phase("step") as step:
            print("on stdout")
            print("on stderr", file=sys.stderr)
            logging.getLogger("data").error("a log record")
            with pytest.warns(UserWarning, match="a warning"):
                warnings.warn("a warning", stacklevel=1)
            raise ValueError("password=hunter2")
        print("outside")
    said = lines_of(exporter)
    inside, outside = said[:4], said[-1]
    assert ["on stdout", "on stderr", "ERROR data: a log record"] == [record.body for record in inside[:3]]
    assert "a warning" in inside[3].body
    assert [SeverityNumber.INFO, SeverityNumber.INFO, SeverityNumber.ERROR, SeverityNumber.WARN] == [
        record.severity_number for record in inside
    ]
    assert [("stdout", "stdout"), ("stderr", "stderr"), ("log", None), ("warning", None)] == [
        tuple(record.attributes.get(name) for name in ("stormphase.output.stream", "log.iostream")) for record in inside
    ]
    assert {("train / step", 0, 7)} == {
        tuple(record.attributes[f"stormphase.{name}"] for name in ("phase.path", "rank", "step")) for record in inside
    }
    assert {step.scope_id} == {f"{record.span_id:016x}" for record in inside}
    assert ("outside", "train") == (outside.body, outside.attributes["stormphase.phase.path"])
    stored = {record.name: record.output for record in store.query(kind="phase")}
    assert [line.time_ns for line in stored["step"][:4]] == [record.timestamp for record in inside]
    assert ["outside"] == [line.text for line in stored["train"]]


@pytest.mark.parametrize(
    ("level", "severity"),
    [
        (50, SeverityNumber.FATAL),
        (45, SeverityNumber.ERROR),
        (30, SeverityNumber.WARN),
        (20, SeverityNumber.INFO),
        (10, SeverityNumber.DEBUG),
        (5, SeverityNumber.TRACE),
    ],
)
def test_a_log_record_has_its_own_severity(level: int, severity: SeverityNumber) -> None:
    """A level between two counts as the lower one."""
    assert severity is severity_of(CapturedLine(0, "log", "x", level))


def test_what_is_cut_is_a_warning() -> None:
    """The line that says so stands out."""
    assert SeverityNumber.WARN is severity_of(CapturedLine(0, "cut", "3 lines left out"))


def test_log_records_are_left_to_opentelemetrys_own_handler(
    make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sends already is not sent twice."""
    provider, exporter = logs_to_memory()
    handler = type("LoggingHandler", (logging.Handler,), {"__module__": "opentelemetry.sdk._logs", "emit": id})()
    monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers, handler])
    tracker = make_tracker(bridge=OTelBridge(logger_provider=provider), capture=True)
    with tracker, tracker.enter_phase("step"):
        print("printed")
        logging.getLogger("data").info("logged")
    assert ["printed"] == [record.body for record in lines_of(exporter)]


def test_a_bridge_without_logger_takes_nothing(make_tracker: MakeTracker) -> None:
    """What is said is kept for whoever asks, and not thrown away by a bridge that cannot send it."""
    bridge = OTelBridge(logger_provider=NoOpLoggerProvider())
    with make_tracker(bridge=bridge, capture=True) as tracker:
        with tracker.enter_phase("step") as step:
            print("kept")
        assert tracker.flush(30)
        assert tracker.capture is not None
        assert "kept\n" == tracker.capture.output_of(step.scope_id).text
        assert not bridge.takes_output


def test_a_sink_that_is_far_behind_gets_all_of_it(make_tracker: MakeTracker) -> None:
    """Store and bridge take at their own pace: what one has had is kept until the other comes for it."""
    provider, exporter = logs_to_memory()
    go_on = threading.Event()

    class Slow(MemoryStore):
        def begin(self, records: Any, /) -> None:
            """Wait until the bridge has had everything."""
            assert go_on.wait(30)
            super().begin(records)

    store = Slow()
    with make_tracker(bridge=OTelBridge(logger_provider=provider), capture=True, store=store) as tracker:
        tracker.enter_phase("first").close()
        assert not tracker.flush(0.5)
        for number in range(600):
            with tracker.enter_phase("step"):
                print("step", number)
        while len(lines_of(exporter)) < 600:
            tracker.flush(0.01)
        go_on.set()
        assert tracker.flush(30)
        assert 0 == tracker.stats()["capture"]["untaken_outputs"]
    expected = [f"step {number}" for number in range(600)]
    assert expected == [line.text for record in store.query(path="step") for line in record.output]
    assert expected == [record.body for record in lines_of(exporter)]


def test_no_worker_imports_what_sends_lines(run_python: RunPython) -> None:
    """It is loaded where capturing begins: a fork beside an import would leave the child a lock that nobody opens."""
    child = run_python("""
import sys, stormphase
from stormphase.otel import OTelBridge

with stormphase.PhaseTracker(bridge=OTelBridge(), session_id="s", capture=True):
    print("stormphase.otel._said" in sys.modules)
with stormphase.PhaseTracker(bridge=OTelBridge(), session_id="t"):
    pass
""")
    assert "True\n" == child.stdout
