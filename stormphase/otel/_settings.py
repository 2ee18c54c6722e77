"""The standard OTEL_* variables that no public constructor of the SDK reads, read strictly: a wrong value is named.

OpenTelemetry's specification asks an SDK to warn of a wrong value and go on; a training job that runs for a week and
sends nothing is worse than one that says at its start which variable to correct.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)

from stormphase.exceptions import ConfigurationError
from stormphase.otel._entry_points import EntryPointMissingError, installed_names, load
from stormphase.otel.id_generator import SeedProofIdGenerator

if TYPE_CHECKING:
    from collections.abc import Mapping

TRACES: Final = "traces"
LOGS: Final = "logs"
METRICS: Final = "metrics"

DISABLED_VARIABLE: Final = "OTEL_SDK_DISABLED"
SAMPLER_VARIABLE: Final = "OTEL_TRACES_SAMPLER"
SAMPLER_ARGUMENT_VARIABLE: Final = "OTEL_TRACES_SAMPLER_ARG"
ID_GENERATOR_VARIABLE: Final = "OTEL_PYTHON_ID_GENERATOR"
RESOURCE_VARIABLE: Final = "OTEL_RESOURCE_ATTRIBUTES"

_PROTOCOL_VARIABLE: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
_ENTRY_POINT_OF_PROTOCOL: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_NONE: Final = "none"

# OpenTelemetry's defaults. Given in full to the SDK, which would else read the process's environment again, and which
# refuses a queue smaller than its default batch.
_DEFAULT_QUEUE_SIZE: Final = 2_048
_DEFAULT_BATCH_SIZE: Final = 512
_DEFAULT_DELAY_MILLIS: Final = {"OTEL_BSP": 5_000, "OTEL_BLRP": 1_000}
_DEFAULT_TIMEOUT_MILLIS: Final = 30_000
_DEFAULT_INTERVAL_MILLIS: Final = 60_000

# 31 years in milliseconds: beyond what a thread can wait for, the SDK's worker would die with its first wait.
_MAX_DIGITS: Final = 12
_MAX_SHOWN_CHARS: Final = 60

_FIXED_SAMPLERS: Final = {
    "always_on": ALWAYS_ON,
    "always_off": ALWAYS_OFF,
    "parentbased_always_on": DEFAULT_ON,
    "parentbased_always_off": DEFAULT_OFF,
}
_RATIO_SAMPLERS: Final = {"traceidratio": TraceIdRatioBased, "parentbased_traceidratio": ParentBasedTraceIdRatio}


@attrs.frozen
class ExporterChoice:
    """An exporter to build.

    Attributes:
        name: its entry point.
        variable: the variable that chose it, or would have.
        make: its class; called without arguments, it reads its own settings from the process's environment.
    """

    name: str
    variable: str
    make: Any


@attrs.frozen
class BatchLimits:
    """The limits of a batch processor, as its constructor takes them.

    Attributes:
        max_queue_size: items that wait at most; beyond it, items are dropped.
        max_export_batch_size: items of one export at most.
        schedule_delay_millis: how long a batch waits for more, in milliseconds.
        export_timeout_millis: how long one export may take, in milliseconds.
    """

    max_queue_size: int
    max_export_batch_size: int
    schedule_delay_millis: float
    export_timeout_millis: float


class Settings:
    """Reads one environment. A blank value counts as unset, as OpenTelemetry has it.

    Args:
        environ: variables and their values.
    """

    # What is read here and nowhere else: every other variable is read by the SDK, from the process's environment.
    READ_HERE: Final = frozenset(
        {
            ID_GENERATOR_VARIABLE,
            SAMPLER_VARIABLE,
            SAMPLER_ARGUMENT_VARIABLE,
            _PROTOCOL_VARIABLE,
            *(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL" for signal in (TRACES, LOGS, METRICS)),
            *(f"OTEL_{signal.upper()}_EXPORTER" for signal in (TRACES, LOGS, METRICS)),
            *(
                f"OTEL_{queue}_{limit}"
                for queue in ("BSP", "BLRP")
                for limit in ("MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE", "SCHEDULE_DELAY", "EXPORT_TIMEOUT")
            ),
            "OTEL_METRIC_EXPORT_INTERVAL",
            "OTEL_METRIC_EXPORT_TIMEOUT",
        }
    )

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read nothing yet."""
        self._environ = environ

    def refuse_a_configuration_file(self) -> None:
        """Raise if the environment names a file of declarative configuration, which replaces every other variable.

        Raises:
            ConfigurationError: names the variable.
        """
        for name in ("OTEL_CONFIG_FILE", "OTEL_EXPERIMENTAL_CONFIG_FILE"):
            if self._text(name):
                raise ConfigurationError(
                    f"{name} is set, and configure() reads no such file.",
                    setting=name,
                    fix="Unset it, or build providers with opentelemetry-configuration and give them to OTelBridge.",
                )

    def refuse_what_the_sdk_would_not_see(self, process_environ: Mapping[str, str]) -> None:
        """Raise if a variable that the SDK reads by itself is not what the process's environment has.

        Raises:
            ConfigurationError: names the variable.
        """
        for name in sorted({*self._environ, *process_environ}):
            is_the_sdks = name.startswith("OTEL_") and name not in self.READ_HERE
            if is_the_sdks and self._environ.get(name) != process_environ.get(name):
                raise ConfigurationError(
                    f"{name} differs between the given environment and the process's, where the SDK reads it.",
                    setting=name,
                    fix=f"Set {name} in the process's environment, and pass a copy of that one.",
                )

    def is_disabled(self) -> bool:
        """Whether OTEL_SDK_DISABLED switches all of OpenTelemetry off."""
        text = self._text(DISABLED_VARIABLE)
        if text is None or text.lower() == "false":
            return False
        if text.lower() == "true":
            return True
        raise _wrong(DISABLED_VARIABLE, text, "Set it to true or false.")

    def exporters(self, signal: str, default: str = "otlp") -> list[ExporterChoice]:
        """Return the exporters of a signal that are chosen, loaded but not built; unset is `default`.

        Raises:
            ConfigurationError: one is unknown or not installed.
        """
        variable = f"OTEL_{signal.upper()}_EXPORTER"
        text = self._text(variable) or default
        names = list(dict.fromkeys(name.strip() for name in text.split(",")))
        if names == [_NONE]:
            return []
        if _NONE in names or "" in names:
            raise _wrong(variable, text, f"Name exporters with commas between them, or {_NONE} alone.")
        group = f"opentelemetry_{signal}_exporter"
        return [self._exporter(name, signal, variable, group) for name in names]

    def sampler(self) -> Sampler:
        """Return the sampler; unset is `parentbased_always_on`.

        Raises:
            ConfigurationError: it is unknown, or its argument is none for it.
        """
        name = self._text(SAMPLER_VARIABLE) or "parentbased_always_on"
        if name.lower() in _FIXED_SAMPLERS:
            return _FIXED_SAMPLERS[name.lower()]
        if name.lower() in _RATIO_SAMPLERS:
            return _RATIO_SAMPLERS[name.lower()](self._ratio(SAMPLER_ARGUMENT_VARIABLE))
        group = "opentelemetry_traces_sampler"
        known = sorted({*_FIXED_SAMPLERS, *_RATIO_SAMPLERS, *installed_names(group)})
        factory = _loaded(group, name, SAMPLER_VARIABLE, f"Set it to one of {', '.join(known)}.")
        argument = self._environ.get(SAMPLER_ARGUMENT_VARIABLE)
        try:
            sampler = factory(argument)
        except Exception as error:
            raise ConfigurationError(
                f"The sampler {name!r} refuses {SAMPLER_ARGUMENT_VARIABLE}={argument!r}: {error}.",
                setting=SAMPLER_ARGUMENT_VARIABLE,
                fix="Give it the argument that its documentation asks for.",
            ) from error
        if not isinstance(sampler, Sampler):
            raise _wrong(
                SAMPLER_VARIABLE, name, f"What it names makes no sampler; set it to one of {', '.join(known)}."
            )
        return sampler

    def id_generator(self) -> IdGenerator:
        """Return the id generator; unset is ours, whatever seed the script sets.

        Raises:
            ConfigurationError: it is unknown or no id generator.
        """
        name = self._text(ID_GENERATOR_VARIABLE)
        if name is None:
            return SeedProofIdGenerator()
        group = "opentelemetry_id_generator"
        fix = f"Set it to one of {', '.join(sorted(installed_names(group)))}."
        generator = _loaded(group, name, ID_GENERATOR_VARIABLE, fix)()
        if not isinstance(generator, IdGenerator):
            raise _wrong(ID_GENERATOR_VARIABLE, name, f"What it names makes no ids. {fix}")
        return generator

    def batch_limits(self, prefix: str) -> BatchLimits:
        """Return the limits of the span (`OTEL_BSP`) or the log record (`OTEL_BLRP`) batches.

        Raises:
            ConfigurationError: one is no positive number, or a batch would not fit into the queue.
        """
        queue_size = self._positive_integer(f"{prefix}_MAX_QUEUE_SIZE") or _DEFAULT_QUEUE_SIZE
        variable = f"{prefix}_MAX_EXPORT_BATCH_SIZE"
        batch_size = self._positive_integer(variable) or min(_DEFAULT_BATCH_SIZE, queue_size)
        if batch_size > queue_size:
            raise _wrong(variable, str(batch_size), f"Make it at most {prefix}_MAX_QUEUE_SIZE, which is {queue_size}.")
        return BatchLimits(
            max_queue_size=queue_size,
            max_export_batch_size=batch_size,
            schedule_delay_millis=self._positive_integer(f"{prefix}_SCHEDULE_DELAY") or _DEFAULT_DELAY_MILLIS[prefix],
            export_timeout_millis=self._positive_integer(f"{prefix}_EXPORT_TIMEOUT") or _DEFAULT_TIMEOUT_MILLIS,
        )

    def metric_interval_millis(self) -> float:
        """Return how often metrics are exported, in milliseconds."""
        return self._positive_integer("OTEL_METRIC_EXPORT_INTERVAL") or _DEFAULT_INTERVAL_MILLIS

    def metric_timeout_millis(self) -> float:
        """Return how long one export of metrics may take, in milliseconds."""
        return self._positive_integer("OTEL_METRIC_EXPORT_TIMEOUT") or _DEFAULT_TIMEOUT_MILLIS

    def resource_names(self) -> frozenset[str]:
        """Return which resource attributes the environment names; the SDK reads their values.

        Raises:
            ConfigurationError: OTEL_RESOURCE_ATTRIBUTES is not written as key=value pairs.
        """
        names = {"service.name"} if self._text("OTEL_SERVICE_NAME") else set()
        for pair in (self._text(RESOURCE_VARIABLE) or "").split(","):
            name, equals, _ = pair.partition("=")
            if pair.strip() and not (equals and name.strip()):
                raise _wrong(RESOURCE_VARIABLE, pair, "Write key=value pairs with commas between them.")
            names.add(name.strip())
        return frozenset(names - {""})

    def _exporter(self, name: str, signal: str, variable: str, group: str) -> ExporterChoice:
        if name == "otlp":
            name = self._otlp_entry_point(signal, group)
        fix = f"Install the package that offers it, or set it to one of {_known_exporters(group)}."
        if name in _ENTRY_POINT_OF_PROTOCOL.values():
            fix = "Run: pip install 'stormphase[otlp]'"
        made = _loaded(group, name, variable, fix)
        if signal == TRACES and not (isinstance(made, type) and issubclass(made, SpanExporter)):
            raise _wrong(variable, name, "What it names is no span exporter.")
        return ExporterChoice(name, variable, made)

    def _otlp_entry_point(self, signal: str, group: str) -> str:
        own_variable = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
        variable = own_variable if self._text(own_variable) else _PROTOCOL_VARIABLE
        protocol = self._text(variable)
        if protocol is None:
            # OpenTelemetry's default, but not at the price of an error where only the other one is installed.
            http, grpc = _ENTRY_POINT_OF_PROTOCOL["http/protobuf"], _ENTRY_POINT_OF_PROTOCOL["grpc"]
            return grpc if {http, grpc} & installed_names(group) == {grpc} else http
        if protocol not in _ENTRY_POINT_OF_PROTOCOL:
            raise _wrong(variable, protocol, f"Set it to {' or '.join(_ENTRY_POINT_OF_PROTOCOL)}.")
        return _ENTRY_POINT_OF_PROTOCOL[protocol]

    def _text(self, variable: str) -> str | None:
        return self._environ.get(variable, "").strip() or None

    def _positive_integer(self, variable: str) -> int | None:
        text = self._text(variable)
        if text is None:
            return None
        # Digits only: int() also takes "1_000" and signs, which other languages' SDKs refuse.
        digits = text.lstrip("0") if text.isascii() and text.isdigit() else ""
        if not 1 <= len(digits) <= _MAX_DIGITS:
            raise _wrong(
                variable, text[:_MAX_SHOWN_CHARS], f"Set it to a whole number above 0 of at most {_MAX_DIGITS} digits."
            )
        return int(digits)

    def _ratio(self, variable: str) -> float:
        text = self._text(variable)
        if text is None:
            return 1.0
        try:
            ratio = float(text)
        except ValueError:
            ratio = -1.0
        if not 0.0 <= ratio <= 1.0:
            raise _wrong(variable, text, "Set it to a number from 0 to 1.")
        return ratio


def _loaded(group: str, name: str, variable: str, fix: str) -> Any:
    try:
        return load(group, name)
    except EntryPointMissingError as error:
        raise ConfigurationError(
            f"{variable} asks for {name!r}, and no installed package offers it.", setting=variable, fix=fix
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f"{variable} asks for {name!r}, and importing it failed: {error!r}.", setting=variable, fix=fix
        ) from error


def _known_exporters(group: str) -> str:
    return ", ".join([*sorted({"otlp", *installed_names(group)}), _NONE])


def _wrong(variable: str, value: str, fix: str) -> ConfigurationError:
    return ConfigurationError(f"{variable} is {value!r}.", setting=variable, fix=fix)
