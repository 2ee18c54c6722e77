"""What the bridge's arguments may be; each error says what to write instead."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger("stormphase")

EVENTS: Final = ("long", "all", "off")
EVENTS_TO: Final = ("logs", "span")
SPAN_BUDGET: Final = 5_000
EXCEPTION_OPT_IN: Final = "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN"


def check_provider(setting: str, provider: Any, method: str) -> None:
    """Refuse what is no provider; None stands for the global one."""
    if provider is not None and not callable(getattr(provider, method, None)):
        kind = setting.replace("_", " ")
        raise ConfigurationError(
            f"{setting} must be an OpenTelemetry {kind}, not {type(provider).__name__}.",
            setting=setting,
            fix=f"Give an object with {method}(), or nothing for the global one.",
        )


def check_choice(setting: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is not among the choices."""
    if value not in choices:
        raise ConfigurationError(
            f"{setting} must be one of {', '.join(choices)}, not {value!r:.60}.",
            setting=setting,
            fix=f'Write {setting}="{choices[0]}", or leave it out.',
        )


def check_budget(value: object) -> None:
    """Refuse what is no number of spans; None stands for no limit."""
    if value is not None and (type(value) is not int or value < 1):
        raise ConfigurationError(
            f"span_budget must be a whole number of at least 1, or None, not {value!r:.60}.",
            setting="span_budget",
            fix=f"Write span_budget={SPAN_BUDGET}, or span_budget=None for no limit.",
        )


def checked_name(value: object) -> str | None:
    """Return the name of a phase as phases have it, None for none; refuse anything else."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(
            f"trace_per must be the name of a phase, not {value!r:.60}.",
            setting="trace_per",
            fix='Write trace_per="step" for a trace per step.',
        )
    return value.strip()


def exception_signals(environ: Mapping[str, str]) -> frozenset[str]:
    """Return where exceptions go, as OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN says: spans, logs or both."""
    wishes = {wish.strip() for wish in environ.get(EXCEPTION_OPT_IN, "").split(",")}
    if "logs/dup" in wishes:
        return frozenset({"spans", "logs"})
    return frozenset({"logs"}) if "logs" in wishes else frozenset({"spans"})


def checked_recover(recover: object) -> bool | str:
    """Return whether to recover, or where to; the address itself is looked at when there is something to send.

    Raises:
        ConfigurationError: if it is neither a bool nor a string.
    """
    if isinstance(recover, (bool, str)):
        return recover
    raise ConfigurationError(
        f"recover must be True, False or an address, not {recover!r:.60}.",
        setting="recover",
        fix='Write recover="http://collector:4318", or recover=False for none.',
    )


def warn_of_trace_per(trace_per: str | None) -> None:
    """Say that it has no effect with a tracer whose ids we cannot choose; nothing if it is None."""
    if trace_per is not None:
        _log.warning(
            "stormphase: trace_per=%r has no effect: this tracer provider is not the OpenTelemetry SDK's own, so "
            "the ids of a shared trace cannot be chosen. Give OTelBridge an SDK TracerProvider.",
            trace_per,
        )


def warn_of_context() -> None:
    """Say that the bridge is off, as OpenTelemetry's context is not in a context variable."""
    _log.warning(
        "stormphase: OTEL_PYTHON_CONTEXT selects a context runtime other than contextvars_context, in which "
        "phases could not be kept current; the bridge is off. Unset OTEL_PYTHON_CONTEXT to turn it on."
    )
