"""OpenTelemetry: phases as spans, events and metrics in the backend that its owner already has.

Importing this loads neither OpenTelemetry's SDK nor anything else until one of its names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stormphase.otel._configure import Telemetry, configure
    from stormphase.otel.bridge import OTelBridge
    from stormphase.otel.id_generator import SeedProofIdGenerator
    from stormphase.otel.json_lines import JsonLinesCounts, JsonLinesLogExporter, JsonLinesSpanExporter

__all__ = [
    "JsonLinesCounts",
    "JsonLinesLogExporter",
    "JsonLinesSpanExporter",
    "OTelBridge",
    "SeedProofIdGenerator",
    "Telemetry",
    "configure",
]

_HOMES = {
    "JsonLinesCounts": "stormphase.otel.json_lines",
    "JsonLinesLogExporter": "stormphase.otel.json_lines",
    "JsonLinesSpanExporter": "stormphase.otel.json_lines",
    "OTelBridge": "stormphase.otel.bridge",
    "SeedProofIdGenerator": "stormphase.otel.id_generator",
    "Telemetry": "stormphase.otel._configure",
    "configure": "stormphase.otel._configure",
}


def __getattr__(name: str) -> Any:
    """Load the module that a public name lives in, the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Show the public names, loaded or not."""
    return sorted({*globals(), *__all__})
