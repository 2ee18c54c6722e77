"""The standard variables, read strictly: each value means what OpenTelemetry says, each wrong one is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    ParentBasedTraceIdRatio,
    TraceIdRatioBased,
)

from stormphase.exceptions import ConfigurationError
from stormphase.otel._entry_points import EntryPointMissingError
from stormphase.otel._settings import LOGS, METRICS, TRACES, BatchLimits, Settings
from stormphase.otel.id_generator import SeedProofIdGenerator

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import OfferPackage

PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


def names(signal: str, environ: dict[str, str], **options: str) -> list[str]:
    """Return the names of the exporters that an environment chooses."""
    return [choice.name for choice in Settings(environ).exporters(signal, **options)]


@pytest.mark.parametrize(
    ("signal", "environ", "expected"),
    [
        (TRACES, {}, ["otlp_proto_http"]),
        (TRACES, {"OTEL_TRACES_EXPORTER": "  "}, ["otlp_proto_http"]),
        (TRACES, {"OTEL_TRACES_EXPORTER": "none"}, []),
        (TRACES, {"OTEL_TRACES_EXPORTER": "console"}, ["console"]),
        (TRACES, {"OTEL_TRACES_EXPORTER": "console, otlp,console"}, ["console", "otlp_proto_http"]),
        (TRACES, {"OTEL_TRACES_EXPORTER": "otlp_proto_grpc"}, ["otlp_proto_grpc"]),
        (TRACES, {PROTOCOL: "grpc"}, ["otlp_proto_grpc"]),
        (TRACES, {PROTOCOL: "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, ["otlp_proto_http"]),
        (LOGS, {PROTOCOL: "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, ["otlp_proto_grpc"]),
        (LOGS, {"OTEL_LOGS_EXPORTER": "console"}, ["console"]),
        (LOGS, {"OTEL_TRACES_EXPORTER": "none"}, ["otlp_proto_http"]),
        (METRICS, {"OTEL_METRICS_EXPORTER": "console"}, ["console"]),
    ],
)
def test_exporters_are_chosen_as_the_variables_say(signal: str, environ: dict[str, str], expected: list[str]) -> None:
    """Names, lists, protocols and their forms for one signal choose the exporters that OpenTelemetry says."""
    assert expected == names(signal, environ)


def test_the_default_is_the_callers() -> None:
    """Where the variable is unset, the caller's default is taken."""
    assert [] == names(METRICS, {}, default="none")
    assert ["console"] == names(METRICS, {"OTEL_METRICS_EXPORTER": "console"}, default="none")


def test_grpc_is_taken_where_it_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a protocol, the one OTLP exporter that is installed is taken."""
    monkeypatch.setattr("stormphase.otel._settings.installed_names", lambda group: {"console", "otlp_proto_grpc"})
    assert ["otlp_proto_grpc"] == names(TRACES, {})


@pytest.mark.parametrize("signal", [TRACES, LOGS, METRICS])
def test_a_missing_otlp_exporter_names_the_extra(monkeypatch: pytest.MonkeyPatch, signal: str) -> None:
    """Without an OTLP exporter the error says what to install, and which variable asked for it."""

    def nobody(group: str, name: str) -> None:
        raise EntryPointMissingError(name)

    monkeypatch.setattr("stormphase.otel._settings.load", nobody)
    with pytest.raises(ConfigurationError, match=r"Run: pip install 'stormphase\[otlp\]'$") as caught:
        names(signal, {})
    assert f"OTEL_{signal.upper()}_EXPORTER" == caught.value.setting


def test_any_installed_exporter_can_be_chosen(offer_package: OfferPackage) -> None:
    """An exporter that another package offers is chosen by its name."""
    source = "from opentelemetry.sdk.trace.export import ConsoleSpanExporter as Exporter"
    offer_package(source, {"opentelemetry_traces_exporter/mine": "Exporter"})
    assert ["mine"] == names(TRACES, {"OTEL_TRACES_EXPORTER": "mine"})


@pytest.mark.parametrize(
    ("environ", "read", "fix"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, lambda s: s.exporters(TRACES), "set it to one of console, otlp, .*none"),
        ({"OTEL_TRACES_EXPORTER": "console,none"}, lambda s: s.exporters(TRACES), "or none alone"),
        ({"OTEL_TRACES_EXPORTER": "console,"}, lambda s: s.exporters(TRACES), "with commas between them"),
        ({PROTOCOL: "http/json"}, lambda s: s.exporters(TRACES), "Set it to http/protobuf or grpc"),
        ({"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "GRPC"}, lambda s: s.exporters(LOGS), "Set it to http/protobuf or grpc"),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, Settings.sampler, "Set it to one of always_off, always_on, "),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "half"},
            Settings.sampler,
            "Set it to a number from 0 to 1",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1.5"},
            Settings.sampler,
            "Set it to a number from 0 to 1",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"},
            Settings.sampler,
            "Set it to a number from 0 to 1",
        ),
        ({"OTEL_PYTHON_ID_GENERATOR": "xray"}, Settings.id_generator, "Set it to one of random, stormphase"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, lambda s: s.batch_limits("OTEL_BSP"), "Set it to a whole number above 0"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "9" * 13}, lambda s: s.batch_limits("OTEL_BSP"), "of at most 12 digits"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "9" * 5_000}, lambda s: s.batch_limits("OTEL_BSP"), "of at most 12 digits"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "-5"}, lambda s: s.batch_limits("OTEL_BSP"), "Set it to a whole number above 0"),
        ({"OTEL_BLRP_SCHEDULE_DELAY": "5s"}, lambda s: s.batch_limits("OTEL_BLRP"), "Set it to a whole number above 0"),
        ({"OTEL_BSP_EXPORT_TIMEOUT": "1_0"}, lambda s: s.batch_limits("OTEL_BSP"), "Set it to a whole number above 0"),
        (
            {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4096"},
            lambda s: s.batch_limits("OTEL_BSP"),
            "at most OTEL_BSP_MAX_QUEUE_SIZE, which is 2048",
        ),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "inf"}, Settings.metric_interval_millis, "Set it to a whole number above 0"),
        ({"OTEL_METRIC_EXPORT_TIMEOUT": "\u0663"}, Settings.metric_timeout_millis, "Set it to a whole number above 0"),
        ({"OTEL_SDK_DISABLED": "yes"}, Settings.is_disabled, "Set it to true or false"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=1,b"}, Settings.resource_names, "Write key=value pairs"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "=1"}, Settings.resource_names, "Write key=value pairs"),
        ({"OTEL_CONFIG_FILE": "otel.yaml"}, Settings.refuse_a_configuration_file, "Unset it, or build providers"),
        ({"OTEL_EXPERIMENTAL_CONFIG_FILE": "a"}, Settings.refuse_a_configuration_file, "Unset it, or build"),
    ],
)
def test_a_wrong_value_is_named_with_its_fix(
    environ: dict[str, str], read: Callable[[Settings], object], fix: str
) -> None:
    """Each wrong value is an error that names the variable, the value, and what to write instead."""
    with pytest.raises(ConfigurationError, match=fix) as caught:
        read(Settings(environ))
    assert caught.value.setting in environ
    assert caught.value.setting in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, DEFAULT_ON),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, ALWAYS_ON),
        ({"OTEL_TRACES_SAMPLER": "ALWAYS_OFF"}, ALWAYS_OFF),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, DEFAULT_ON),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, DEFAULT_OFF),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, TraceIdRatioBased(1.0)),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, TraceIdRatioBased(0.25)),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
            ParentBasedTraceIdRatio(0.0),
        ),
    ],
)
def test_the_sampler_is_what_the_variables_say(environ: dict[str, str], expected: Any) -> None:
    """Each standard name gives its sampler, with its ratio."""
    assert expected.get_description() == Settings(environ).sampler().get_description()


SAMPLERS = """
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
def by_host(argument): return TraceIdRatioBased(float(argument))
def no_sampler(argument): return argument
"""


def test_a_package_may_offer_a_sampler(offer_package: OfferPackage) -> None:
    """An offered sampler is made with the argument as it stands in the environment."""
    offer_package(SAMPLERS, {"opentelemetry_traces_sampler/by_host": "by_host"})
    sampler = Settings({"OTEL_TRACES_SAMPLER": "by_host", "OTEL_TRACES_SAMPLER_ARG": "0.5"}).sampler()
    assert "TraceIdRatioBased{0.5}" == sampler.get_description()


@pytest.mark.parametrize(("made_by", "setting"), [("by_host", "_ARG"), ("no_sampler", "")])
def test_an_offered_sampler_that_cannot_be_made_is_named(
    offer_package: OfferPackage, made_by: str, setting: str
) -> None:
    """A factory that refuses its argument, or that makes no sampler, is an error with the variable to correct."""
    offer_package(SAMPLERS, {"opentelemetry_traces_sampler/mine": made_by})
    with pytest.raises(
        ConfigurationError, match=r"the argument that its documentation asks for|no sampler; set it to one of"
    ) as caught:
        Settings({"OTEL_TRACES_SAMPLER": "mine", "OTEL_TRACES_SAMPLER_ARG": "often"}).sampler()
    assert f"OTEL_TRACES_SAMPLER{setting}" == caught.value.setting


@pytest.mark.parametrize(
    ("variable", "group", "read"),
    [
        ("OTEL_TRACES_EXPORTER", "opentelemetry_traces_exporter", lambda s: s.exporters(TRACES)),
        ("OTEL_PYTHON_ID_GENERATOR", "opentelemetry_id_generator", Settings.id_generator),
    ],
)
def test_an_offer_of_the_wrong_kind_is_named(
    offer_package: OfferPackage, variable: str, group: str, read: Callable[[Settings], object]
) -> None:
    """What a package offers under a name is looked at before it is used."""
    offer_package("class Offered: pass", {f"{group}/mine": "Offered"})
    with pytest.raises(ConfigurationError, match=r"'mine'\. What it names") as caught:
        read(Settings({variable: "mine"}))
    assert variable == caught.value.setting


def test_an_offer_that_cannot_be_imported_is_named(offer_package: OfferPackage) -> None:
    """A component whose import fails gives an error with the variable, the name and the import's own words."""
    offer_package("import no_such_module", {"opentelemetry_traces_exporter/mine": "Exporter"})
    with pytest.raises(ConfigurationError, match=r"OTEL_TRACES_EXPORTER asks for 'mine'.*no_such_module"):
        Settings({"OTEL_TRACES_EXPORTER": "mine"}).exporters(TRACES)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, SeedProofIdGenerator),
        ({"OTEL_PYTHON_ID_GENERATOR": "stormphase"}, SeedProofIdGenerator),
        ({"OTEL_PYTHON_ID_GENERATOR": "random"}, RandomIdGenerator),
    ],
)
def test_the_id_generator_is_ours_unless_another_is_named(environ: dict[str, str], expected: type) -> None:
    """No seed repeats ids, unless the user asks for the SDK's generator."""
    assert expected is type(Settings(environ).id_generator())


@pytest.mark.parametrize(
    ("prefix", "environ", "expected"),
    [
        ("OTEL_BSP", {}, BatchLimits(2_048, 512, 5_000, 30_000)),
        ("OTEL_BLRP", {}, BatchLimits(2_048, 512, 1_000, 30_000)),
        ("OTEL_BSP", {"OTEL_BSP_MAX_QUEUE_SIZE": "100"}, BatchLimits(100, 100, 5_000, 30_000)),
        (
            "OTEL_BSP",
            {
                "OTEL_BSP_MAX_QUEUE_SIZE": " 9 ",
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9",
                "OTEL_BSP_SCHEDULE_DELAY": "7",
                "OTEL_BSP_EXPORT_TIMEOUT": "8",
                "OTEL_BLRP_MAX_QUEUE_SIZE": "1",
            },
            BatchLimits(9, 9, 7, 8),
        ),
    ],
)
def test_batch_limits_are_what_the_variables_say(prefix: str, environ: dict[str, str], expected: BatchLimits) -> None:
    """Each limit is read, and a small queue has small batches."""
    assert expected == Settings(environ).batch_limits(prefix)


def test_metric_times_are_what_the_variables_say() -> None:
    """The interval and the timeout of metrics are read, in milliseconds."""
    settings = Settings({"OTEL_METRIC_EXPORT_INTERVAL": "5", "OTEL_METRIC_EXPORT_TIMEOUT": "6"})
    assert (5, 6) == (settings.metric_interval_millis(), settings.metric_timeout_millis())
    assert (60_000, 30_000) == (Settings({}).metric_interval_millis(), Settings({}).metric_timeout_millis())


@pytest.mark.parametrize(("text", "expected"), [("", False), ("False", False), ("TRUE", True), (" true ", True)])
def test_everything_can_be_disabled(text: str, expected: bool) -> None:
    """OTEL_SDK_DISABLED is a boolean in any case of letters."""
    assert expected is Settings({"OTEL_SDK_DISABLED": text}).is_disabled()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, set()),
        ({"OTEL_RESOURCE_ATTRIBUTES": ""}, set()),
        ({"OTEL_RESOURCE_ATTRIBUTES": "host.name=a, team = b%20c ,"}, {"host.name", "team"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=", "OTEL_SERVICE_NAME": "digits"}, {"a", "service.name"}),
    ],
)
def test_the_environments_resource_attributes_are_known(environ: dict[str, str], expected: set[str]) -> None:
    """Every attribute that the environment names is known, so that nothing of ours hides it."""
    assert expected == Settings(environ).resource_names()


@pytest.mark.parametrize(
    ("given", "process", "named"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, {}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({}, {"OTEL_SERVICE_NAME": "digits"}, "OTEL_SERVICE_NAME"),
        ({"OTEL_SDK_DISABLED": "false"}, {"OTEL_SDK_DISABLED": "true"}, "OTEL_SDK_DISABLED"),
    ],
)
def test_what_the_sdk_would_not_see_is_refused(given: dict[str, str], process: dict[str, str], named: str) -> None:
    """A variable that only the SDK reads, from the process's environment, cannot be replaced in silence."""
    with pytest.raises(ConfigurationError, match=f"Set {named} in the process's environment") as caught:
        Settings(given).refuse_what_the_sdk_would_not_see(process)
    assert named == caught.value.setting


def test_what_is_read_here_may_differ() -> None:
    """Variables that are read here, and those that are not OpenTelemetry's, may be replaced."""
    given = {"OTEL_TRACES_EXPORTER": "none", PROTOCOL: "grpc", "OTEL_BSP_MAX_QUEUE_SIZE": "9", "RANK": "3"}
    Settings(given).refuse_what_the_sdk_would_not_see({"OTEL_TRACES_SAMPLER": "always_off", "HOME": "/"})
