"""stormphase: which phase every rank is in, truthfully and at any moment, for a tenth of the price of a span.

Importing this starts no thread, opens no file, and reads neither the environment nor a clock. Each public name is
loaded when it is first used, so that a library that only might use phases pays next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stormphase._version import __version__

if TYPE_CHECKING:
    from stormphase._bridge import Bridge
    from stormphase._decorator import ambient_phase as phase
    from stormphase._logging_sink import LoggingSink
    from stormphase._model import (
        PHASE_ENTER,
        PHASE_EXIT,
        PHASE_MISUSE,
        PHASE_OVERDUE,
        PhaseError,
        PhaseStatus,
        RankIdentity,
    )
    from stormphase._phase import PhaseHandle, PhaseToken
    from stormphase._phase_boundary import PhaseBoundary
    from stormphase._record import OutputLine, PhaseRecord, RecordKind
    from stormphase._recorder import PhaseRecorder
    from stormphase._recording import record_of
    from stormphase._tracker import PhaseTracker
    from stormphase._workers import worker
    from stormphase.exceptions import (
        ConfigurationError,
        Misuse,
        OwnershipError,
        PhaseNameError,
        PhaseProtocolError,
        StatusError,
        StormphaseError,
    )

__all__ = [
    "PHASE_ENTER",
    "PHASE_EXIT",
    "PHASE_MISUSE",
    "PHASE_OVERDUE",
    "ConfigurationError",
    "LoggingSink",
    "Misuse",
    "OutputLine",
    "OwnershipError",
    "PhaseBoundary",
    "PhaseError",
    "PhaseHandle",
    "PhaseNameError",
    "PhaseProtocolError",
    "PhaseRecord",
    "PhaseRecorder",
    "PhaseStatus",
    "PhaseToken",
    "PhaseTracker",
    "RankIdentity",
    "RecordKind",
    "StatusError",
    "StormphaseError",
    "__version__",
    "phase",
    "record_of",
    "worker",
]

_HOMES = {
    "stormphase._decorator": ("phase",),
    "stormphase._logging_sink": ("LoggingSink",),
    "stormphase._model": (
        "PHASE_ENTER",
        "PHASE_EXIT",
        "PHASE_MISUSE",
        "PHASE_OVERDUE",
        "PhaseError",
        "PhaseStatus",
        "RankIdentity",
    ),
    "stormphase._phase": ("PhaseHandle", "PhaseToken"),
    "stormphase._phase_boundary": ("PhaseBoundary",),
    "stormphase._record": ("OutputLine", "PhaseRecord", "RecordKind"),
    "stormphase._recorder": ("PhaseRecorder",),
    "stormphase._recording": ("record_of",),
    "stormphase._tracker": ("PhaseTracker",),
    "stormphase._workers": ("worker",),
    "stormphase.exceptions": (
        "ConfigurationError",
        "Misuse",
        "OwnershipError",
        "PhaseNameError",
        "PhaseProtocolError",
        "StatusError",
        "StormphaseError",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load the module that a public name lives in, the first time it is asked for."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(home)
    if name in ("PhaseTracker", "worker"):
        module.DEFAULT_BRIDGE.make = staticmethod(_otel_bridge)
    value = getattr(module, "ambient_phase" if name == "phase" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Show the public names, loaded or not."""
    return sorted({*globals(), *__all__})


def _otel_bridge() -> Bridge:
    # Only a tracker without a `bridge` of its own loads OpenTelemetry's API, which takes some 20 ms.
    from stormphase.otel import OTelBridge  # noqa: PLC0415

    return OTelBridge()
