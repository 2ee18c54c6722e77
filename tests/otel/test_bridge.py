"""The bridge as a tracker uses it: its arguments, its life, and a whole session through a real tracker."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stormphase._tracker import PhaseTracker
from stormphase.exceptions import ConfigurationError
from stormphase.otel import OTelBridge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Bridged, RunPython


@pytest.fixture
def exported() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """An SDK provider with a batch processor, and what it exports."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


@pytest.mark.parametrize(
    ("arguments", "setting", "fix"),
    [
        ({"tracer_provider": object()}, "tracer_provider", r"Give an object with get_tracer\(\)"),
        ({"logger_provider": "stdout"}, "logger_provider", r"Give an object with get_logger\(\)"),
        ({"meter_provider": 7}, "meter_provider", r"Give an object with get_meter\(\)"),
        ({"events": "some"}, "events", 'Write events="long"'),
        ({"events_to": "file"}, "events_to", 'Write events_to="logs"'),
        ({"trace_per": " "}, "trace_per", 'Write trace_per="step"'),
        ({"trace_per": 3}, "trace_per", 'Write trace_per="step"'),
        ({"span_budget": 0}, "span_budget", "Write span_budget=5000"),
        ({"span_budget": True}, "span_budget", "span_budget=None"),
        ({"span_budget": 1.5}, "span_budget", "span_budget=None"),
    ],
    ids=str,
)
def test_wrong_arguments_fail_at_construction_with_the_fix(arguments: dict[str, Any], setting: str, fix: str) -> None:
    """Nothing waits for the training loop."""
    with pytest.raises(ConfigurationError, match=fix) as caught:
        OTelBridge(**arguments)
    assert setting == caught.value.setting


def test_a_bridge_serves_one_tracker(bridged: Callable[..., Bridged]) -> None:
    """A second tracker needs a second bridge."""
    rig = bridged()
    with pytest.raises(ConfigurationError, match="Make a new OTelBridge for each PhaseTracker"):
        rig.bridge.attach(rig.bridge._session)


def test_a_provider_that_gives_no_tracer_is_told_at_start(bridged: Callable[..., Bridged]) -> None:
    """Not in the training loop, and with the fix."""

    class Broken:
        def get_tracer(self, *args: Any) -> trace.Tracer:
            raise RuntimeError

    with pytest.raises(
        ConfigurationError, match=r"Give OTelBridge an SDK TracerProvider, or PhaseTracker\(bridge=None\)"
    ):
        bridged(provider=Broken())


def test_an_unattached_bridge_does_nothing() -> None:
    """A disabled tracker never attaches it."""
    bridge = OTelBridge()
    bridge.tick()
    bridge.finish(None, 0)
    bridge.after_fork_in_child()
    assert bridge.flush(0.1)
    assert ({}, 0) == (bridge.environment(), bridge.stats()["offered"])


def test_a_session_from_start_to_stop(exported: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    """Through a tracker and its worker: all spans arrive, once, and the context is clean afterwards."""
    provider, exporter = exported
    before = context.get_current()
    bridge = OTelBridge(provider)
    with PhaseTracker("job", session_id="whole", rank=0, world_size=1, bridge=bridge) as tracker:
        train = tracker.enter_phase("train")
        for step in range(10):
            tracker.set_step(step)
            with tracker.enter_phase("step"):
                assert "step" == trace.get_current_span().name
        assert tracker.flush(10)
        assert 10 == len(exporter.get_finished_spans())
        assert train.scope_id in tracker.environment()["TRACEPARENT"]
        train.close()
    assert before == context.get_current()
    spans = exporter.get_finished_spans()
    assert 13 == len(spans)
    assert 13 == len({span.context.span_id for span in spans})
    assert list(range(10)) == [span.attributes["stormphase.step"] for span in spans[:10]]
    assert (13, 13, 0) == tuple(bridge.stats()[name] for name in ("offered", "handed_over", "dropped"))


def test_the_outcome_of_the_session_is_on_its_spans(exported: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    """What leaves the tracker's block is told to the backend, and passes."""
    provider, exporter = exported
    with (
        pytest.raises(ValueError, match="boom"),
        PhaseTracker(session_id="outcome", rank=0, world_size=1, bridge=OTelBridge(provider)),
    ):
        raise ValueError("boom")
    assert ["ValueError: boom"] * 2 == [span.status.description for span in exporter.get_finished_spans()]


def test_threads_of_a_session(exported: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    """Many threads at once: every phase is sent once, with its own lane's parent."""
    provider, exporter = exported
    bridge = OTelBridge(provider)

    def work(tracker: PhaseTracker, name: str) -> None:
        for _ in range(50):
            with tracker.enter_phase(name), tracker.enter_phase("inner"):
                pass

    with PhaseTracker(session_id="threads", rank=0, world_size=1, bridge=bridge) as tracker:
        threads = [threading.Thread(target=work, args=(tracker, f"thread {number}")) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
    assert 802 == len(spans) == len(exporter.get_finished_spans())
    for span in spans.values():
        if span.name == "inner":
            assert spans[span.parent.span_id].attributes["thread.id"] == span.attributes["thread.id"]


def test_a_processor_that_hangs_costs_training_nothing(bridged: Callable[..., Bridged]) -> None:
    """Flush keeps its timeout and stop ends, while the user's exporter hangs on the bridge's worker."""
    release = threading.Event()

    class Hanging(SpanProcessor):
        def on_end(self, span: Any) -> None:
            release.wait(30)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Hanging())
    tracker = PhaseTracker(session_id="hanging", rank=0, world_size=1, bridge=OTelBridge(provider)).start()
    for _ in range(3):
        with tracker.enter_phase("step"):
            pass
    assert not tracker.flush(0.05)
    release.set()
    tracker.stop()


def test_sessions_never_set_a_global_provider(run_python: RunPython) -> None:
    """Guest manners."""
    source = """
from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk.trace import TracerProvider
from stormphase._tracker import PhaseTracker
from stormphase.otel import OTelBridge
with PhaseTracker(session_id="s", rank=0, world_size=1, bridge=OTelBridge(TracerProvider(), metrics=True)) as tracker:
    with tracker.enter_phase("step"): pass
print(type(trace.get_tracer_provider()).__name__, type(_logs.get_logger_provider()).__name__,
      "Proxy" in type(metrics.get_meter_provider()).__name__)
"""
    assert "ProxyTracerProvider ProxyLoggerProvider True\n" == run_python(source).stdout


def test_global_providers_are_used_by_default(run_python: RunPython) -> None:
    """As any instrumentation library does."""
    source = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from stormphase._tracker import PhaseTracker
from stormphase.otel import OTelBridge
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with PhaseTracker(session_id="s", rank=0, world_size=1, bridge=OTelBridge()) as tracker:
    with tracker.enter_phase("step"): pass
print([span.name for span in exporter.get_finished_spans()])
"""
    assert "['step', 'rank 0', 'session']\n" == run_python(source).stdout


def test_a_forked_child_sends_its_own_phases(run_python: RunPython) -> None:
    """In a real fork: no id twice, the child's phases under its parent's open one, one rank span."""
    source = """
import json, os
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from stormphase._tracker import PhaseTracker
from stormphase.otel import OTelBridge
class Lines(SpanExporter):
    def export(self, spans):
        for span in spans:
            parent = span.parent and span.parent.span_id
            line = json.dumps([os.getpid(), span.name, span.context.span_id, parent])
            os.write(1, line.encode() + b"\\n")
        return SpanExportResult.SUCCESS
    def shutdown(self): pass
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(Lines()))
tracker = PhaseTracker(session_id="s", rank=0, world_size=1, bridge=OTelBridge(provider)).start()
with tracker.enter_phase("outer"):
    with tracker.enter_phase("before"): pass
    tracker.flush(10)
    pid = os.fork()
    if pid == 0:
        with tracker.enter_phase("in child"): pass
        tracker.stop()
        os._exit(0)
    os.waitpid(pid, 0)
tracker.stop()
"""
    import json

    lines = [json.loads(line) for line in run_python(source).stdout.splitlines()]
    spans = {name: (pid, span_id, parent) for pid, name, span_id, parent in lines}
    assert ["before", "in child", "outer", "rank 0", "session"] == [line[1] for line in lines]
    assert 5 == len({span_id for _, span_id, _ in spans.values()})
    assert spans["outer"][1] == spans["in child"][2]
    assert spans["in child"][0] != spans["outer"][0] == spans["rank 0"][0]


def test_simple_processors_do_not_trace_their_own_export(bridged: Callable[..., Bridged]) -> None:
    """On the bridge's thread an exporter runs suppressed, as on any other."""
    from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, get_value

    seen = []

    class Looking(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            seen.append(get_value(_SUPPRESS_INSTRUMENTATION_KEY))
            return super().export(spans)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Looking()))
    rig = bridged(provider=provider)
    with rig.enter("step"):
        pass
    rig.deliver()
    assert [True] == seen


@pytest.mark.parametrize("sink_s", [0.0, 0.05], ids=["quick sink", "slow sink"])
def test_summary_rank_and_session_agree_on_the_wall_time(sink_s: float) -> None:
    """All three last until the session stopped, to the nanosecond, however long delivery takes after that."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    delayed = threading.Event()

    def sink(boundary: object) -> None:
        delayed.wait(sink_s)

    bridge = OTelBridge(provider)
    tracker = PhaseTracker(
        session_id=f"wall-{sink_s}", rank=0, world_size=1, bridge=bridge, sinks=[sink], summary=True
    ).start()
    with tracker.enter_phase("step") as step:
        pass
    summary = tracker._session._summary
    tracker.stop()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    durations = [spans[name].end_time - spans[name].start_time for name in ("session", "rank 0")]
    assert [summary.report().wall_ns] * 2 == durations
    assert step._ended_ns - step._entered_ns <= durations[0]


def test_a_forked_child_never_sends_the_ids_of_a_step_again(run_python: RunPython) -> None:
    """With `trace_per` the parent and two forked children each have traces of their own, whatever they enter."""
    source = """
import os
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from stormphase._tracker import PhaseTracker
from stormphase.otel import OTelBridge
class Lines(SpanExporter):
    def export(self, spans):
        for span in spans:
            if span.name == "step":
                os.write(1, f"{span.context.trace_id:x} {span.context.span_id:x} {span.parent}\\n".encode())
        return SpanExportResult.SUCCESS
    def shutdown(self): pass
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(Lines()))
tracker = PhaseTracker(session_id="s", rank=0, world_size=1, bridge=OTelBridge(provider, trace_per="step")).start()
tracker.set_step(1)
with tracker.enter_phase("train"):
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            with tracker.enter_phase("step"): pass
            tracker.stop()
            os._exit(0)
        os.waitpid(pid, 0)
    with tracker.enter_phase("step"): pass
tracker.stop()
"""
    lines = [line.split() for line in run_python(source).stdout.splitlines()]
    assert [3, 3] == [len({line[column] for line in lines}) for column in (0, 1)]
    assert ["None"] * 3 == [line[2] for line in lines]
