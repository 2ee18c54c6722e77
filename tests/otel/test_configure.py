"""`configure()`: providers from the standard variables, with this rank on their resource, ended in time."""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry._logs import NoOpLoggerProvider, SeverityNumber, get_logger_provider
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracerProvider

from stormphase._model import RankIdentity
from stormphase.exceptions import ConfigurationError
from stormphase.otel import SeedProofIdGenerator, Telemetry, configure

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import OfferPackage, RunPython

NOWHERE = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "LOGS", "METRICS")}
RANK_3 = RankIdentity(
    session_id="job-7",
    attempt=0,
    rank=3,
    local_rank=1,
    world_size=8,
    local_world_size=2,
    node_rank=1,
    host="node-b",
    launcher="explicit",
)

pytestmark = pytest.mark.usefixtures("clean_environ")


def emit(telemetry: Telemetry, name: str) -> None:
    """Emit one log event, in the way of the SDK in use."""
    logger = telemetry.logger_provider.get_logger("t")
    fields: dict[str, Any] = {
        "timestamp": 5,
        "observed_timestamp": 6,
        "severity_number": SeverityNumber.INFO,
        "event_name": name,
    }
    try:
        logger.emit(**fields)
    except TypeError:  # before SDK 1.38
        from opentelemetry.sdk._logs import LogRecord

        logger.emit(LogRecord(resource=telemetry.resource, **fields))


def attributes_of(telemetry: Telemetry) -> dict[str, Any]:
    """Return the resource's attributes."""
    return dict(telemetry.resource.attributes)


def test_the_rank_stands_on_the_resource() -> None:
    """The resource says which rank, which host, which process and which instance this is."""
    with configure("digits", identity=RANK_3, environ=NOWHERE) as telemetry:
        attributes = attributes_of(telemetry)
    expected = {
        "service.name": "digits",
        "stormphase.rank": 3,
        "stormphase.local_rank": 1,
        "stormphase.world_size": 8,
        "host.name": "node-b",
        "process.pid": os.getpid(),
        "telemetry.sdk.language": "python",
    }
    assert expected == {name: attributes[name] for name in expected}
    assert 4 == uuid.UUID(attributes["service.instance.id"]).version


def test_all_providers_have_that_resource() -> None:
    """Spans, events and metrics of a rank come from one resource."""
    with configure(identity=RANK_3, environ=NOWHERE) as telemetry:
        assert isinstance(telemetry.tracer_provider, TracerProvider)
        assert telemetry.resource is telemetry.tracer_provider.resource
        assert telemetry.resource is telemetry.logger_provider.resource


def test_the_rank_is_found_in_the_environment() -> None:
    """Without an identity, the rank is what the launcher says, though it gives no session id to agree on."""
    launched = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "6", "TORCHELASTIC_RUN_ID": "none"}
    with configure(environ={**NOWHERE, **launched}) as telemetry:
        attributes = attributes_of(telemetry)
    found = [attributes[f"stormphase.{name}"] for name in ("rank", "local_rank", "world_size")]
    assert [5, 1, 6] == found


def test_instances_differ() -> None:
    """Two calls are two instances, whatever seed a script has set."""
    with configure(environ=NOWHERE) as one, configure(environ=NOWHERE) as other:
        assert attributes_of(one)["service.instance.id"] != attributes_of(other)["service.instance.id"]


def test_the_environment_wins_over_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's OTEL_RESOURCE_ATTRIBUTES replace what we found; arguments replace both."""
    given = "host.name=by-operator,service.instance.id=mine,service.name=a,team=a%20b,zone=z"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", given)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    with configure(identity=RANK_3, resource_attributes={"zone": "by-argument", "gpus": ("a", "b")}) as telemetry:
        attributes = attributes_of(telemetry)
    expected = {
        "host.name": "by-operator",
        "service.instance.id": "mine",
        "service.name": "a",
        "team": "a b",
        "zone": "by-argument",
        "gpus": ("a", "b"),
        "stormphase.rank": 3,
    }
    assert expected == {name: attributes[name] for name in expected}


@pytest.mark.parametrize(("argument", "expected"), [("by-argument", "by-argument"), (None, "by-operator")])
def test_the_service_is_named(monkeypatch: pytest.MonkeyPatch, argument: str | None, expected: str) -> None:
    """The argument names the service, else the environment."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "by-operator")
    with configure(argument, environ={**os.environ, **NOWHERE}) as telemetry:
        assert expected == attributes_of(telemetry)["service.name"]


def test_globals_are_left_alone() -> None:
    """Nothing becomes global unless it was asked for."""
    before = [type(get()) for get in (trace.get_tracer_provider, get_logger_provider, metrics.get_meter_provider)]
    with configure(environ=NOWHERE):
        after = [type(get()) for get in (trace.get_tracer_provider, get_logger_provider, metrics.get_meter_provider)]
    assert before == after


SET_GLOBALS = """
import os
os.environ.update(OTEL_TRACES_EXPORTER="none", OTEL_LOGS_EXPORTER="none", OTEL_METRICS_EXPORTER="none")
from opentelemetry import metrics, trace
from opentelemetry._logs import get_logger_provider
from stormphase.otel import configure
telemetry = configure(set_globals=True)
print(telemetry.tracer_provider is trace.get_tracer_provider(), telemetry.logger_provider is get_logger_provider(),
      telemetry.meter_provider is metrics.get_meter_provider())
try:
    configure(set_globals=True)
except ValueError as error:
    print(error)
"""


def test_globals_are_set_once(run_python: RunPython) -> None:
    """With set_globals they are the process's; a second time there are some already, and that is said."""
    first, second = run_python(SET_GLOBALS).stdout.splitlines()
    assert "True True True" == first
    assert second.startswith("There is a global tracer provider already, a opentelemetry.sdk.trace.TracerProvider.")
    assert second.endswith("or leave out set_globals.")


def test_disabled_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SDK_DISABLED gives providers that do nothing, and nothing to wait for."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    telemetry = configure(environ={"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "not even read"})
    kinds = [type(telemetry.tracer_provider), type(telemetry.logger_provider), type(telemetry.meter_provider)]
    assert [NoOpTracerProvider, NoOpLoggerProvider, NoOpMeterProvider] == kinds
    assert (True, True, Resource.get_empty()) == (telemetry.force_flush(), telemetry.shutdown(), telemetry.resource)


def test_files_take_spans_and_events(tmp_path: Path) -> None:
    """With jsonl_dir, spans and events are in files of this rank and process, without any other variable."""
    with configure("digits", jsonl_dir=tmp_path / "out", identity=RANK_3) as telemetry:
        with telemetry.tracer_provider.get_tracer("t").start_as_current_span("step"):
            emit(telemetry, "stormphase.phase.exit")
        assert telemetry.force_flush()
        traces, logs = telemetry.jsonl_paths
        (of_spans,) = json.loads(traces.read_text(encoding="utf-8"))["resourceSpans"]
        (of_logs,) = json.loads(logs.read_text(encoding="utf-8"))["resourceLogs"]
    name = f"rank3-pid{os.getpid()}.jsonl"
    assert [f"traces-{name}", f"logs-{name}"] == [path.name for path in telemetry.jsonl_paths]
    span, log = of_spans["scopeSpans"][0]["spans"][0], of_logs["scopeLogs"][0]["logRecords"][0]
    assert ("step", "stormphase.phase.exit") == (span["name"], log["eventName"])
    assert (span["traceId"], span["spanId"]) == (log["traceId"], log["spanId"])


def test_the_end_of_the_block_writes_what_waits(tmp_path: Path) -> None:
    """Nobody has to flush: the end of the with block does."""
    with configure(jsonl_dir=tmp_path) as telemetry:
        telemetry.tracer_provider.get_tracer("t").start_span("last").end()
    assert '"name":"last"' in telemetry.jsonl_paths[0].read_text(encoding="utf-8")


def test_the_process_ends_with_everything_written(run_python: RunPython, tmp_path: Path) -> None:
    """A script that forgets to shut down loses nothing at a normal exit."""
    source = """
import sys
from stormphase.otel import configure
configure(jsonl_dir=sys.argv[1]).tracer_provider.get_tracer("t").start_span("forgotten").end()
"""
    run_python(source, str(tmp_path))
    (path,) = tmp_path.glob("traces-*.jsonl")
    assert '"name":"forgotten"' in path.read_text(encoding="utf-8")


def test_a_forked_child_writes_on(run_python: RunPython, tmp_path: Path) -> None:
    """What a forked child makes is written too, with ids of its own, and the parent's is written once."""
    source = """
import os, sys, warnings
from stormphase.otel import configure
warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside the SDK's threads
telemetry = configure(jsonl_dir=sys.argv[1])
tracer = telemetry.tracer_provider.get_tracer("t")
tracer.start_span("of the parent").end()
child = os.fork()
tracer.start_span("of both").end()
done = telemetry.shutdown()
if not child:
    os._exit(0 if done else 1)
print(os.waitpid(child, 0)[1], done)
"""
    assert "0 True\n" == run_python(source, str(tmp_path)).stdout
    (path,) = tmp_path.glob("traces-*.jsonl")
    groups = [
        group for line in path.read_text(encoding="utf-8").splitlines() for group in json.loads(line)["resourceSpans"]
    ]
    spans = [span for group in groups for of_scope in group["scopeSpans"] for span in of_scope["spans"]]
    assert ["of both", "of both", "of the parent"] == sorted(span["name"] for span in spans)
    assert 3 == len({span["spanId"] for span in spans})


def test_shutdown_works_while_the_interpreter_ends(run_python: RunPython, tmp_path: Path) -> None:
    """Called at exit, where newer Pythons start no threads, it still writes what waits."""
    source = """
import atexit, sys
from stormphase.otel import configure
telemetry = configure(jsonl_dir=sys.argv[1])
telemetry.tracer_provider.get_tracer("t").start_span("late").end()
atexit.register(lambda: print(telemetry.shutdown()))
"""
    assert "True\n" == run_python(source, str(tmp_path)).stdout
    (path,) = tmp_path.glob("traces-*.jsonl")
    assert '"name":"late"' in path.read_text(encoding="utf-8")


def test_ids_are_seed_proof() -> None:
    """The providers' own ids come from our generator."""
    with configure(environ=NOWHERE) as telemetry:
        assert isinstance(telemetry.tracer_provider, TracerProvider)
        assert isinstance(telemetry.tracer_provider.id_generator, SeedProofIdGenerator)


def test_the_sampler_is_in_force() -> None:
    """OTEL_TRACES_SAMPLER decides about the provider's spans."""
    with configure(environ={**NOWHERE, "OTEL_TRACES_SAMPLER": "always_off"}) as telemetry:
        assert not telemetry.tracer_provider.get_tracer("t").start_span("s").is_recording()


def test_batch_limits_are_in_force(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """OTEL_BSP_* and OTEL_BLRP_* reach the processors."""
    given: list[dict[str, Any]] = []

    def processor(exporter: Any, **limits: Any) -> BatchSpanProcessor:
        given.append(limits)
        return BatchSpanProcessor(exporter, **limits)

    monkeypatch.setattr("stormphase.otel._configure.BatchSpanProcessor", processor)
    configure(jsonl_dir=tmp_path, environ={"OTEL_BSP_MAX_QUEUE_SIZE": "64"}).shutdown()
    expected = {
        "max_queue_size": 64,
        "max_export_batch_size": 64,
        "schedule_delay_millis": 5_000,
        "export_timeout_millis": 30_000,
    }
    assert [expected] == given


OFFERED = """
import io
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
made = []
class Exporter(InMemorySpanExporter):
    def __init__(self):
        super().__init__()
        self.shutdowns = 0
        made.append(self)
    def shutdown(self):
        self.shutdowns += 1
class Reader(InMemoryMetricReader):
    def __init__(self):
        super().__init__()
        made.append(self)
class Pushed(ConsoleMetricExporter):
    def __init__(self):
        self.text = io.StringIO()
        super().__init__(out=self.text)
        made.append(self)
class Refusing:
    def __init__(self):
        raise ValueError("no certificate")
"""


def test_any_exporter_is_built_and_used(offer_package: OfferPackage) -> None:
    """Exporters and metric readers that other packages offer get what the providers make."""
    offer_package(
        OFFERED, {"opentelemetry_traces_exporter/mine": "Exporter", "opentelemetry_metrics_exporter/mine": "Reader"}
    )
    chosen = {**NOWHERE, "OTEL_TRACES_EXPORTER": "mine", "OTEL_METRICS_EXPORTER": "mine"}
    with configure(environ=chosen) as telemetry:
        telemetry.tracer_provider.get_tracer("t").start_span("s").end()
        telemetry.meter_provider.get_meter("t").create_counter("c").add(1)
        assert telemetry.force_flush()
        from offered import made

        reader, exporter = sorted(made, key=lambda each: hasattr(each, "shutdowns"))
        assert ["s"] == [span.name for span in exporter.get_finished_spans()]
        assert reader.get_metrics_data() is not None
    assert 1 == exporter.shutdowns


def test_metrics_are_pushed(offer_package: OfferPackage) -> None:
    """A metric exporter gets what was recorded, at the latest at the end."""
    offer_package(OFFERED, {"opentelemetry_metrics_exporter/mine": "Pushed"})
    with configure(environ={**NOWHERE, "OTEL_METRICS_EXPORTER": "mine"}) as telemetry:
        telemetry.meter_provider.get_meter("t").create_counter("steps").add(1)
    from offered import made

    assert '"steps"' in made[0].text.getvalue()


def test_files_leave_metrics_to_their_variable(offer_package: OfferPackage, tmp_path: Path) -> None:
    """With jsonl_dir, metrics go where OTEL_METRICS_EXPORTER says, and spans do not follow their own variable."""
    offer_package(
        OFFERED, {"opentelemetry_metrics_exporter/mine": "Pushed", "opentelemetry_traces_exporter/mine": "Exporter"}
    )
    chosen = {"OTEL_METRICS_EXPORTER": "mine", "OTEL_TRACES_EXPORTER": "mine"}
    with configure(jsonl_dir=tmp_path, environ=chosen) as telemetry:
        telemetry.meter_provider.get_meter("t").create_counter("steps").add(1)
    from offered import made

    assert [True] == ['"steps"' in exporter.text.getvalue() for exporter in made]


def test_an_exporter_that_refuses_ends_the_others(offer_package: OfferPackage) -> None:
    """When one exporter cannot be built, the error says which and why, and those that were built are shut down."""
    offer_package(
        OFFERED, {"opentelemetry_traces_exporter/mine": "Exporter", "opentelemetry_metrics_exporter/bad": "Refusing"}
    )
    chosen = {**NOWHERE, "OTEL_TRACES_EXPORTER": "mine", "OTEL_METRICS_EXPORTER": "bad"}
    with pytest.raises(ConfigurationError, match=r"'bad', which OTEL_METRICS_EXPORTER asks for.*no certificate"):
        configure(environ=chosen)
    from offered import made

    assert [1] == [exporter.shutdowns for exporter in made]


def test_a_folder_that_cannot_be_written_ends_the_others(tmp_path: Path) -> None:
    """A jsonl_dir that is a file fails at the call, and leaves no thread behind."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="Name a file in a folder"):
        configure(jsonl_dir=tmp_path / "file", environ={"OTEL_METRICS_EXPORTER": "console"})


def test_a_limit_that_the_sdk_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong limit on attributes, which the SDK reads, is an error of ours with its words."""
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    with pytest.raises(ConfigurationError, match="OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"):
        configure(environ={**os.environ, **NOWHERE})


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_CONFIG_FILE", "otel.yaml"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere")]
)
def test_what_would_be_ignored_is_refused(name: str, value: str) -> None:
    """A variable that would silently do nothing is an error."""
    with pytest.raises(ConfigurationError) as caught:
        configure(environ={**NOWHERE, name: value})
    assert name == caught.value.setting


class Provider:
    """Stands for a provider: its flush and shutdown do what the test says."""

    def __init__(self, does: Any) -> None:
        self.does = does
        self.called: list[str] = []

    def force_flush(self, timeout_millis: int = 0) -> object:
        """Do it."""
        self.called.append(f"force_flush {timeout_millis}")
        return self.does()

    def shutdown(self) -> object:
        """Do it."""
        self.called.append("shutdown")
        return self.does()


def telemetry_of(*does: Any) -> tuple[Telemetry, list[Any]]:
    """Return a Telemetry over three providers of ours."""
    providers: list[Any] = [Provider(each) for each in does]
    return Telemetry(*providers, Resource.get_empty()), providers


def test_the_timeout_is_kept() -> None:
    """A provider that hangs makes flush and shutdown say False in time, and holds up no other."""
    release = threading.Event()
    telemetry, providers = telemetry_of(release.wait, lambda: True, lambda: None)
    try:
        assert not telemetry.force_flush(0.01)
        assert not telemetry.shutdown(0.01)
    finally:
        release.set()
    assert [["force_flush 10", "shutdown"]] * 3 == [provider.called for provider in providers]


@pytest.mark.parametrize(("answer", "expected"), [(True, True), (None, True), (False, False)])
def test_the_providers_word_is_passed_on(answer: bool | None, expected: bool) -> None:
    """A flush that says False is told; one that says nothing counts as done."""
    telemetry, _ = telemetry_of(lambda: True, lambda: answer, lambda: True)
    assert expected is telemetry.force_flush(60)


def test_a_provider_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A provider's exception ends neither the others nor the program."""

    def fail() -> None:
        raise RuntimeError("broken exporter")

    telemetry, providers = telemetry_of(fail, lambda: True, lambda: True)
    with caplog.at_level(logging.WARNING, "stormphase"):
        assert not telemetry.shutdown(60)
    assert [["shutdown"]] * 3 == [provider.called for provider in providers]
    assert ["An OpenTelemetry provider failed to flush or shut down."] == [
        record.getMessage() for record in caplog.records
    ]


def test_where_no_thread_starts_the_calls_are_made_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter on its way out starts no thread; flush and shutdown then do their work on the caller's."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    telemetry, providers = telemetry_of(lambda: True, lambda: True, lambda: True)
    assert (True, True) == (telemetry.force_flush(60), telemetry.shutdown(60))
    assert [["force_flush 60000", "shutdown"]] * 3 == [provider.called for provider in providers]


def test_shutdown_happens_once() -> None:
    """A second shutdown does nothing and says that all is done."""
    telemetry, providers = telemetry_of(lambda: True, lambda: True, lambda: True)
    assert (True, True) == (telemetry.shutdown(60), telemetry.shutdown(60))
    assert [["shutdown"]] * 3 == [provider.called for provider in providers]
