"""What the user's providers are, and what may be done with them. Every private name of the SDK stands in this module.

Each private name has a fallback on public API, and `tests/otel/test_provider.py` fails when the SDK moves one. The SDK
is never imported here before the user's own provider has shown that it is in use.
"""

from __future__ import annotations

import enum
import inspect
import logging
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracer, NoOpTracerProvider, ProxyTracerProvider, SpanContext

from stormphase._attributes import MAX_ATTRIBUTES
from stormphase._version import __version__
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.trace import TraceFlags, Tracer, TraceState

_log = logging.getLogger("stormphase")

SCOPE_NAME: Final = "stormphase"
SCOPE_VERSION: Final = __version__
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.37.0"
"""Names and units of our attributes are those of this release of the semantic conventions."""

DEFAULT_QUEUE_SIZE: Final = 2_048
_UNKNOWN_QUEUE_SIZE: Final = 512  # a batch: the smallest queue that works as its owner meant it
MAX_EVENT_ATTRIBUTES: Final = 16 + MAX_ATTRIBUTES  # what a boundary has of its own, and the most of a user's
_HOOKS: Final = ("on_start", "_on_ending")


class Way(enum.Enum):
    """How spans are made.

    DIRECT: as `ReadableSpan`, handed to the processors. STARTED: with the SDK tracer's `start_span` and `end`, with ids
    and sampling decision of our own. REAL: a real span of an unknown tracer, started at enter. LATE: none yet, since
    nobody has set a global provider; it may still come. NONE: there will be none.
    """

    DIRECT = "direct"
    STARTED = "started"
    REAL = "real"
    LATE = "late"
    NONE = "none"


class SdkTracer:
    """The SDK's tracer of our scope, and what its provider does with spans.

    Args:
        provider: an SDK `TracerProvider`.
        tracer: its tracer of our scope, exactly of the SDK's class.
    """

    def __init__(self, provider: Any, tracer: Any) -> None:
        """Look at the provider; its processors may change later."""
        self.provider = provider
        self.tracer = tracer
        self._seen_processors: object = self
        self._takes_readable = False

    @property
    def sampler(self) -> Any:
        """The provider's sampler, also while ours stands in the tracer."""
        return self.provider.sampler

    @property
    def resource(self) -> Any:
        """The resource as it is now: the SDK changes it in a forked child."""
        return self.tracer.resource

    @property
    def limits(self) -> Any:
        """The span limits in force; those of the environment if the tracer does not show them."""
        limits = getattr(self.tracer, "_span_limits", None)
        return sys.modules["opentelemetry.sdk.trace"].SpanLimits() if limits is None else limits

    def is_enabled(self) -> bool:
        """Whether our scope is enabled; it may be switched at any time."""
        ask = getattr(self.tracer, "_is_enabled", None)
        return True if ask is None else bool(ask())

    def takes_readable(self) -> bool:
        """Whether every processor can be given a span that was never started; cheap while none was added."""
        # The SDK replaces the tuple when one is added.
        processors = getattr(self.tracer.span_processor, "_span_processors", None)
        if processors is not self._seen_processors:
            self._takes_readable = _needs_no_start(self.tracer.span_processor)
            self._seen_processors = processors
        return self._takes_readable

    def queue_size(self) -> int:
        """Return the size of the smallest queue among the processors."""
        sizes = [_queue_size(processor, "OTEL_BSP_MAX_QUEUE_SIZE") for processor in self._processors()]
        return min(sizes, default=DEFAULT_QUEUE_SIZE)

    def room(self) -> int | None:
        """Return how many more spans the fullest queue takes until half full; None if any does not show."""
        return _least_room(self._processors(), "OTEL_BSP_MAX_QUEUE_SIZE")

    def waiting(self) -> int | None:
        """Return how many of the spans that were handed over last may not be exported yet; None if that does not show.

        A span counts as exported once its exporter has returned, whatever that said: the SDK tells nobody. What a
        processor that is not the SDK's does with its spans is its own affair, unless it calls itself a batching one.
        """
        found = [_waiting(processor) for processor in self._processors()]
        known = [count for count in found if count is not None]
        return max(known, default=0) if len(known) == len(found) else None

    def force_flush(self, timeout_ms: int) -> bool:
        """Flush each processor by itself: up to SDK 1.41 the provider stops at the first that returns None."""
        # A list: each is flushed, also after one has failed.
        return all([_flushed(processor, timeout_ms) for processor in self._processors()])  # noqa: C419

    def _processors(self) -> list[Any]:
        return list(_flat(self.tracer.span_processor))


def local_contexts(trace_id: int, flags: TraceFlags, state: TraceState) -> Callable[[int], SpanContext]:
    """Return what makes the contexts of this process's spans in one trace, from their ids, which must be valid.

    A `SpanContext` is a tuple. Where it is one of the fields known here, it is made without the checks of its own that
    take half of the time.
    """
    fields = (trace_id, 1, False, flags, state)
    if tuple(SpanContext(*fields)) != (*fields, True):

        def checked(span_id: int) -> SpanContext:
            return SpanContext(trace_id, span_id, False, flags, state)  # noqa: FBT003 - positional is twice as fast

        return checked
    make, kind = tuple.__new__, SpanContext

    def known(span_id: int) -> SpanContext:
        return make(kind, (trace_id, span_id, False, flags, state, True))

    return known


def resolve_tracer(provider: Any) -> tuple[Way, Tracer | None, SdkTracer | None]:
    """Return how spans are to be made with a tracer provider, the tracer of our scope, and what the SDK's offers."""
    if type(provider) is ProxyTracerProvider:
        return Way.LATE, None, None
    tracer = provider.get_tracer(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
    if isinstance(provider, NoOpTracerProvider) or isinstance(tracer, NoOpTracer):
        return Way.NONE, None, None
    sdk_trace = sys.modules.get("opentelemetry.sdk.trace")
    if sdk_trace is None or type(tracer) is not sdk_trace.Tracer or not isinstance(provider, sdk_trace.TracerProvider):
        return Way.REAL, tracer, None
    sdk = SdkTracer(provider, tracer)
    return (Way.DIRECT if sdk.takes_readable() else Way.STARTED), tracer, sdk


def checked_tracer(provider: Any) -> tuple[Way, Tracer | None, SdkTracer | None]:
    """Return what `resolve_tracer` does.

    Raises:
        ConfigurationError: if the provider gives no tracer.
    """
    try:
        return resolve_tracer(provider)
    except Exception as error:
        raise ConfigurationError(
            f"The tracer provider {type(provider).__name__} gave no tracer: {type(error).__name__}.",
            setting="tracer_provider",
            fix="Give OTelBridge an SDK TracerProvider, or PhaseTracker(bridge=None) for no spans.",
        ) from error


def _needs_no_start(processor: Any) -> bool:
    """Return whether a processor does nothing when a span starts or is ending, so that it can do without."""
    if vars(processor).keys() & {*_HOOKS, "on_end"} if hasattr(processor, "__dict__") else False:
        return False  # Patched: some instrumentations set a hook on the SDK's own processor object.
    nested = _nested(processor)
    if nested is not None:
        return all(_needs_no_start(inner) for inner in nested)
    idle = _idle_hooks()
    return all(getattr(type(processor), hook, None) in idle[hook] for hook in _HOOKS)


def _idle_hooks() -> dict[str, list[Any]]:
    trace = sys.modules["opentelemetry.sdk.trace"]
    kinds = [trace.SpanProcessor]
    export = sys.modules.get("opentelemetry.sdk.trace.export")
    if export is not None:
        kinds += [export.SimpleSpanProcessor, export.BatchSpanProcessor]
    # Up to SDK 1.39 there is no second hook: there None is what every processor has.
    return {hook: [getattr(kind, hook, None) for kind in kinds] for hook in _HOOKS}


def _nested(processor: Any) -> tuple[Any, ...] | None:
    """Return the processors inside one of the SDK's multi processors; None for any other, or if they do not show."""
    kind = type(processor)
    if not kind.__module__.startswith("opentelemetry.sdk.") or "Multi" not in kind.__name__:
        return None
    for name in ("_span_processors", "_log_record_processors"):
        inner = getattr(processor, name, None)
        if inner is not None:
            return tuple(inner)
    return None


def _flat(processor: Any) -> Iterator[Any]:
    nested = _nested(processor)
    if nested is None:
        yield processor
        return
    for inner in nested:
        yield from _flat(inner)


def _is_batching(processor: Any) -> bool:
    """Whether a processor keeps spans in a queue: it, or what it is built on, calls itself a batching one."""
    return any("Batch" in kind.__name__ for kind in type(processor).__mro__)


def _queue_size(processor: Any, variable: str) -> int:
    """Return how many items a batch processor's queue holds; the default's size for processors without one."""
    if not _is_batching(processor):
        return DEFAULT_QUEUE_SIZE
    size = getattr(getattr(processor, "_batch_processor", None), "_max_queue_size", None)
    if isinstance(size, int) and size > 0:
        return size
    try:
        return min(_UNKNOWN_QUEUE_SIZE, int(os.environ.get(variable, _UNKNOWN_QUEUE_SIZE)))
    except ValueError:
        return _UNKNOWN_QUEUE_SIZE


def _least_room(processors: list[Any], variable: str) -> int | None:
    """Return how many items the fullest queue takes until half full; None if any processor does not show its queue."""
    rooms = []
    for processor in processors:
        queue = getattr(getattr(processor, "_batch_processor", None), "_queue", None)
        if not isinstance(queue, deque):
            return None
        rooms.append(_queue_size(processor, variable) // 2 - len(queue))
    return min(rooms, default=None)


def _waiting(processor: Any) -> int | None:
    if not _is_batching(processor):
        return 0
    batch = getattr(processor, "_batch_processor", None)
    queue, lock = getattr(batch, "_queue", None), getattr(batch, "_export_lock", None)
    batch_size = getattr(batch, "_max_export_batch_size", None)
    if not isinstance(queue, deque) or not isinstance(batch_size, int) or not hasattr(lock, "locked"):
        return None
    if _is_shut_down(processor):
        return None  # It takes nothing any more, and says so to nobody; the queue that is empty proves nothing then.
    # In this order: what had left the queue by then is exported if nobody exports now. Of what is being exported, and
    # the SDK does that under its lock, one batch at a time, nobody can tell.
    count = len(queue)
    return count + batch_size if lock is not None and lock.locked() else count


def _is_shut_down(processor: Any) -> bool:
    return getattr(getattr(processor, "_batch_processor", None), "_shutdown", False) is True


def _flushed(processor: Any, timeout_ms: int) -> bool:
    """Flush one processor; False if it says so or raises. None, as the SDK once returned, is no failure."""
    try:
        return processor.force_flush(timeout_ms) is not False and not _is_shut_down(processor)
    except Exception:  # noqa: BLE001 - a user's processor may raise anything
        _log.warning("stormphase: flushing %r failed", processor, exc_info=True)
        return False


class LogSink:
    """The logger of our scope, by whatever `emit` its release of OpenTelemetry has.

    Args:
        provider: any logger provider.
    """

    def __init__(self, provider: Any) -> None:
        """Get the logger."""
        self._provider = provider
        self.logger = provider.get_logger(SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL)
        self.emit = _emitter(self.logger)
        self._enabled: Callable[..., bool] | None = getattr(self.logger, "enabled", None)

    def is_enabled(self, context: Any, severity: Any, event_name: str | None) -> bool:
        """Whether a record would go anywhere, as far as this release can tell."""
        ask = self._enabled
        return ask is None or ask(context=context, severity_number=severity, event_name=event_name)

    def queue_size(self) -> int:
        """Return the size of the smallest queue among the log processors."""
        sizes = [_queue_size(processor, "OTEL_BLRP_MAX_QUEUE_SIZE") for processor in self._processors()]
        return min(sizes, default=DEFAULT_QUEUE_SIZE)

    def room(self) -> int | None:
        """Return how many more records the fullest queue takes until half full; None if any does not show."""
        return _least_room(self._processors(), "OTEL_BLRP_MAX_QUEUE_SIZE")

    def force_flush(self, timeout_ms: int) -> bool:
        """Flush each processor, or the provider where it does not show them."""
        processors = self._processors()
        if processors:
            return all([_flushed(processor, timeout_ms) for processor in processors])  # noqa: C419 - as above
        return not hasattr(self._provider, "force_flush") or _flushed(self._provider, timeout_ms)

    def _processors(self) -> list[Any]:
        multi = getattr(self._provider, "_multi_log_record_processor", None)
        return [] if multi is None else list(_flat(multi))


def resolve_logger(provider: Any) -> LogSink | None:
    """Return what takes our log events; None while there is no provider, or for one that takes nothing."""
    from opentelemetry import _logs  # noqa: PLC0415 - the API's logs; 10 ms that only a bridge should pay

    kind = type(provider)
    if kind.__module__.startswith("opentelemetry._logs") and kind.__name__ in (
        "ProxyLoggerProvider",
        "NoOpLoggerProvider",
    ):
        return None
    sink = LogSink(provider)
    return None if isinstance(sink.logger, _logs.NoOpLogger) else sink


def _emitter(logger: Any) -> Callable[..., None]:
    """Return a function that emits a record given by keywords, whatever the release.

    For the SDK's own logger (1.39 on) the record is made here, with limits read once and attributes that are clean
    already: its keyword `emit` takes half as long again. For any other logger `emit` itself takes keywords (API 1.38
    on); before that, a record is made and given.
    """
    made = _sdk_record_emitter(logger)
    if made is not None:
        return made
    parameters = inspect.signature(logger.emit).parameters
    if "event_name" in parameters or any(kind.kind is kind.VAR_KEYWORD for kind in parameters.values()):
        emit: Callable[..., None] = logger.emit
        return emit
    sdk_logs = sys.modules.get("opentelemetry.sdk._logs")
    if sdk_logs is not None and type(logger).__module__.startswith("opentelemetry.sdk."):
        record_type, resource = sdk_logs.LogRecord, {"resource": logger.resource}
    else:
        from opentelemetry._logs import LogRecord  # noqa: PLC0415 - for loggers of nobody we know

        record_type, resource = LogRecord, {}

    def emit_record(**fields: Any) -> None:
        logger.emit(record_type(**fields, **resource))

    return emit_record


def _sdk_record_emitter(logger: Any) -> Callable[..., None] | None:
    """Return what emits the SDK's own read-write record; None for other loggers, releases and narrower limits."""
    sdk_logs = sys.modules.get("opentelemetry.sdk._logs")
    limits_type = getattr(sdk_logs, "LogRecordLimits", None)
    record_type = getattr(sdk_logs, "ReadWriteLogRecord", None)
    if limits_type is None or record_type is None or type(logger) is not getattr(sdk_logs, "Logger", None):
        return None
    from opentelemetry._logs import LogRecord  # noqa: PLC0415 - the API's, which the SDK has loaded

    limits = getattr(logger, "_log_record_limits", None) or limits_type()
    # Renamed in SDK 1.45; a class that has neither name is taken as one that limits.
    most = getattr(limits, "max_log_record_attributes", getattr(limits, "max_attributes", 0))
    length = getattr(limits, "max_log_record_attribute_length", getattr(limits, "max_attribute_length", 0))
    if length is not None or (most is not None and most < MAX_EVENT_ATTRIBUTES):
        return None
    scope = logger.instrumentation_scope
    batches = _LogBatches(logger)
    nowhere = Context()

    def emit(*, attributes: Any, **fields: Any) -> None:
        if not batches.are_all():
            record = record_type(LogRecord(**fields), logger.resource, scope, limits)
            record.log_record.attributes = attributes
            logger.emit(record)
            return
        api_record = LogRecord(attributes=attributes, **fields)
        api_record.context = nowhere  # As the SDK does, so that a queue keeps no context alive.
        batches.emit(api_record, logger.resource, scope, limits)

    return emit


class _LogBatches:
    """The SDK's batch processors, given records as they keep them, if a logger's provider has nothing else.

    That leaves out two copies of each record: half of what a log event costs.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._readable_type = getattr(sys.modules["opentelemetry.sdk._logs"], "ReadableLogRecord", None)
        self._seen_processors: object = self
        self._emits: tuple[Callable[[Any], object], ...] | None = None

    def are_all(self) -> bool:
        """Whether there is nothing but batch processors, and the scope is enabled; cheap while none was added."""
        multi = getattr(self._logger, "_multi_log_record_processor", None)
        processors = getattr(multi, "_log_record_processors", None)
        if processors is not self._seen_processors:
            self._emits = None if self._readable_type is None or multi is None else _batch_emits(multi)
            self._seen_processors = processors
        is_enabled = getattr(self._logger, "_is_enabled", None)
        return self._emits is not None and (is_enabled is None or bool(is_enabled()))

    def emit(self, *record: Any) -> None:
        """Give a record, its resource, scope and limits to each."""
        if self._readable_type is None or self._emits is None:
            return
        readable = self._readable_type(*record)
        for emit in self._emits:
            emit(readable)


def _batch_emits(multi: Any) -> tuple[Callable[[Any], object], ...] | None:
    """Return what puts a record into each batch processor's queue; None if any is not the SDK's own, or was patched."""
    batch_type = getattr(sys.modules.get("opentelemetry.sdk._logs.export"), "BatchLogRecordProcessor", None)
    found = []
    for processor in _flat(multi):
        emit = getattr(getattr(processor, "_batch_processor", None), "emit", None)
        if type(processor) is not batch_type or emit is None or "on_emit" in vars(processor):
            return None
        found.append(emit)
    return tuple(found) if found else None
