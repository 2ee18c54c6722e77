"""`configure()`: OpenTelemetry for people who have not set it up, from its standard variables and nothing else."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import attrs
from opentelemetry import metrics, trace
from opentelemetry._logs import (
    LoggerProvider,
    NoOpLoggerProvider,
    get_logger_provider,
    set_logger_provider,
)
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.sdk._logs import LoggerProvider as SdkLoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracerProvider, TracerProvider

from stormphase._clock import SystemClock
from stormphase._rank import ProcessFacts, detect_rank
from stormphase.exceptions import ConfigurationError
from stormphase.otel._settings import LOGS, METRICS, TRACES, ExporterChoice, Settings
from stormphase.otel.json_lines import JsonLinesLogExporter, JsonLinesSpanExporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from opentelemetry.util.types import AttributeValue

    from stormphase._model import RankIdentity

SHUTDOWN_TIMEOUT_S: Final = 10.0

_log = logging.getLogger("stormphase")


@final
@attrs.frozen
class Telemetry:
    """The providers that `configure` built. Give them to `OTelBridge`; shut them down after the tracker has stopped.

    A context manager: the end of its block is `shutdown()`. Stack it outside the tracker's. Thread-safe.

    Attributes:
        tracer_provider: makes tracers; a no-op under OTEL_SDK_DISABLED, as the other two.
        logger_provider: makes loggers, which send the phases' events.
        meter_provider: makes meters.
        resource: what stands for this process in a backend.
        jsonl_paths: the files that spans and log records go to; empty without `jsonl_dir`.
    """

    tracer_provider: TracerProvider
    logger_provider: LoggerProvider
    meter_provider: MeterProvider
    resource: Resource
    jsonl_paths: tuple[Path, ...] = ()
    _is_shut_down: threading.Event = attrs.field(factory=threading.Event, init=False, repr=False, eq=False)

    def __enter__(self) -> Telemetry:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down, whatever happened in the block."""
        self.shutdown()

    def force_flush(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> bool:
        """Export what waits, and return whether all three providers said within `timeout_s` seconds that they had.

        The timeout holds, whatever the SDK and its exporters do with theirs. True means handed to the exporters: what
        one of them could not send it has logged itself.
        """
        return _all_in_time(
            [
                partial(flush, timeout_millis=max(1, int(timeout_s * 1_000)))
                for provider in self._providers()
                if (flush := getattr(provider, "force_flush", None)) is not None
            ],
            timeout_s,
        )

    def shutdown(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> bool:
        """Export what waits and end the providers; return whether that was done within `timeout_s` seconds.

        What is not done by then goes on in the background while the process lives. Later calls do nothing.
        """
        if self._is_shut_down.is_set():
            return True
        self._is_shut_down.set()
        return _all_in_time(
            [
                shutdown
                for provider in self._providers()
                if (shutdown := getattr(provider, "shutdown", None)) is not None
            ],
            timeout_s,
        )

    def _providers(self) -> tuple[object, object, object]:
        return self.tracer_provider, self.logger_provider, self.meter_provider


def configure(
    service_name: str | None = None,
    *,
    resource_attributes: Mapping[str, AttributeValue] | None = None,
    jsonl_dir: str | os.PathLike[str] | None = None,
    set_globals: bool = False,
    identity: RankIdentity | None = None,
    environ: Mapping[str, str] | None = None,
) -> Telemetry:
    """Build OpenTelemetry's three providers from the standard variables, with this rank on their resource.

    Read are OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER, OTEL_LOGS_EXPORTER and OTEL_METRICS_EXPORTER (`otlp`, the default;
    `console`; `none`; or any that an installed package offers; several with commas), OTEL_EXPORTER_OTLP_PROTOCOL and
    its forms for one signal (`http/protobuf`, the default, or `grpc`), OTEL_TRACES_SAMPLER and its _ARG, OTEL_BSP_*,
    OTEL_BLRP_*, OTEL_METRIC_EXPORT_* and OTEL_PYTHON_ID_GENERATOR (by default ours, which no seed repeats). The SDK's
    classes read more by themselves: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, span limits, and each exporter its
    endpoint, headers, timeout and certificates.

    The resource has, beside the SDK's own: `stormphase.rank`, `stormphase.local_rank`, `stormphase.world_size`,
    `service.instance.id` (new for each call), `host.name` and `process.pid`. The environment wins over these, and the
    arguments win over both. A forked child keeps the resource; a worker that matters calls `configure` itself.

    Args:
        service_name: what the service is called; else OTEL_SERVICE_NAME, else `service.name` in
            OTEL_RESOURCE_ATTRIBUTES, else the SDK's `unknown_service`.
        resource_attributes: more attributes for the resource.
        jsonl_dir: a folder. Spans and log records then go to files there, `traces-rank0-pid1234.jsonl` and
            `logs-rank0-pid1234.jsonl`, as OTLP in JSON, and not where OTEL_TRACES_EXPORTER and OTEL_LOGS_EXPORTER say;
            metrics go nowhere unless OTEL_METRICS_EXPORTER says so.
        set_globals: whether to make these the process's global providers as well, as instrumentations expect. Never
            done otherwise.
        identity: which rank this is; found as the tracker finds it if left out.
        environ: the environment, read at this call; the process's if left out. What the SDK's classes read by
            themselves must be the same in both.

    Raises:
        ConfigurationError: a variable's value is wrong, an exporter is not installed (the message names the extra), a
            file cannot be written, or `set_globals` was asked for and there are global providers already. Nothing
            is left running then.
    """
    environ = dict(os.environ if environ is None else environ)
    settings = Settings(environ)
    settings.refuse_a_configuration_file()
    settings.refuse_what_the_sdk_would_not_see(os.environ)
    if set_globals:
        _refuse_taken_globals()
    if settings.is_disabled():
        telemetry = Telemetry(NoOpTracerProvider(), NoOpLoggerProvider(), NoOpMeterProvider(), Resource.get_empty())
    else:
        rank = identity or _rank_of(environ)
        resource = _resource(settings, rank, service_name, resource_attributes or {})
        telemetry = _build(settings, resource, None if jsonl_dir is None else Path(jsonl_dir), rank.rank)
    if set_globals:
        trace.set_tracer_provider(telemetry.tracer_provider)
        set_logger_provider(telemetry.logger_provider)
        metrics.set_meter_provider(telemetry.meter_provider)
    return telemetry


def _rank_of(environ: Mapping[str, str]) -> RankIdentity:
    # The resource says nothing of the session, and ranks that cannot agree on one must not fail here: any id will do.
    return detect_rank(environ, session_id="configure", process=ProcessFacts.of_this_process())


def _resource(
    settings: Settings, rank: RankIdentity, service_name: str | None, given: Mapping[str, AttributeValue]
) -> Resource:
    ours: dict[str, AttributeValue] = {
        "host.name": rank.host,
        "process.pid": os.getpid(),
        "service.instance.id": str(uuid.uuid4()),  # from the system's random source: no seed repeats it
        "stormphase.rank": rank.rank,
        "stormphase.local_rank": rank.local_rank,
        "stormphase.world_size": rank.world_size,
    }
    named = settings.resource_names()
    attributes = {name: value for name, value in ours.items() if name not in named}
    if service_name is not None:
        attributes["service.name"] = service_name
    return Resource.create({**attributes, **given})


def _build(settings: Settings, resource: Resource, jsonl_dir: Path | None, rank: int) -> Telemetry:
    # Everything that can be wrong is found before anything is started.
    has_files = jsonl_dir is not None
    span_choices = [] if has_files else settings.exporters(TRACES)
    log_choices = [] if has_files else settings.exporters(LOGS)
    metric_choices = settings.exporters(METRICS, default="none" if has_files else "otlp")
    span_limits, log_limits = settings.batch_limits("OTEL_BSP"), settings.batch_limits("OTEL_BLRP")
    interval_millis, timeout_millis = settings.metric_interval_millis(), settings.metric_timeout_millis()
    sampler, id_generator = settings.sampler(), settings.id_generator()
    jsonl_paths: tuple[Path, ...] = ()
    with ExitStack() as on_error:
        try:
            tracer_provider = SdkTracerProvider(sampler=sampler, resource=resource, id_generator=id_generator)
            on_error.callback(tracer_provider.shutdown)
            logger_provider = SdkLoggerProvider(resource=resource)
            on_error.callback(logger_provider.shutdown)
        except ValueError as error:  # a limit on attributes, events or links, which the SDK reads
            raise ConfigurationError(
                f"OpenTelemetry's SDK refuses its settings: {error}.",
                setting="OTEL_*_LIMIT",
                fix="Correct the variable that it names.",
            ) from error
        span_exporters = [_started(choice, on_error) for choice in span_choices]
        log_exporters = [_started(choice, on_error) for choice in log_choices]
        metric_exporters = [_started(choice, on_error) for choice in metric_choices]
        if jsonl_dir is not None:
            name = f"rank{rank}-pid{os.getpid()}.jsonl"
            jsonl_paths = jsonl_dir / f"traces-{name}", jsonl_dir / f"logs-{name}"
            span_exporters.append(_closed_on_error(JsonLinesSpanExporter(jsonl_paths[0]), on_error))
            log_exporters.append(_closed_on_error(JsonLinesLogExporter(jsonl_paths[1]), on_error))
        on_error.pop_all()
    for exporter in span_exporters:
        tracer_provider.add_span_processor(BatchSpanProcessor(exporter, **attrs.asdict(span_limits)))
    for exporter in log_exporters:
        logger_provider.add_log_record_processor(BatchLogRecordProcessor(exporter, **attrs.asdict(log_limits)))
    readers = [
        made if isinstance(made, MetricReader) else PeriodicExportingMetricReader(made, interval_millis, timeout_millis)
        for made in metric_exporters
    ]
    meter_provider = SdkMeterProvider(metric_readers=readers, resource=resource)
    return Telemetry(tracer_provider, logger_provider, meter_provider, resource, jsonl_paths)


def _started(choice: ExporterChoice, on_error: ExitStack) -> Any:
    try:
        exporter = choice.make()
    except Exception as error:
        raise ConfigurationError(
            f"The exporter {choice.name!r}, which {choice.variable} asks for, refuses its settings: {error!r}.",
            setting=choice.variable,
            fix="Correct the OTEL_EXPORTER_* variable that it names.",
        ) from error
    return _closed_on_error(exporter, on_error)


def _closed_on_error(exporter: Any, on_error: ExitStack) -> Any:
    on_error.callback(exporter.shutdown)
    return exporter


def _refuse_taken_globals() -> None:
    for kind, provider in _global_providers():
        # Until somebody sets one, OpenTelemetry's API answers with a proxy of its own.
        is_free = type(provider).__module__.startswith("opentelemetry.") and "Proxy" in type(provider).__name__
        if not is_free:
            raise ConfigurationError(
                f"There is a global {kind} provider already, a {type(provider).__module__}.{type(provider).__name__}.",
                setting="set_globals",
                fix="Use that one, which OTelBridge() does by itself, or leave out set_globals.",
            )


def _global_providers() -> Iterator[tuple[str, object]]:
    yield "tracer", trace.get_tracer_provider()
    yield "logger", get_logger_provider()
    yield "meter", metrics.get_meter_provider()


def _all_in_time(calls: Sequence[Callable[[], object]], timeout_s: float) -> bool:
    """Make all calls at once; return whether all came back within the timeout, none raising or returning False."""
    clock = SystemClock()
    deadline_ns = clock.monotonic_ns() + int(timeout_s * 1e9)
    succeeded: list[bool] = []

    def make(call: Callable[[], object]) -> None:
        try:
            succeeded.append(call() is not False)
        except Exception:  # noqa: BLE001 - a provider's word on itself, not a reason to end the program
            _log.warning("An OpenTelemetry provider failed to flush or shut down.", exc_info=True)

    threads: list[threading.Thread] = []
    for call in calls:
        thread = threading.Thread(target=make, args=[call], name="stormphase-flush", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # from CPython 3.12 on, no thread starts once the interpreter is on its way out
            make(call)
        else:
            threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, (deadline_ns - clock.monotonic_ns()) / 1e9))
    return succeeded.count(True) == len(calls)
