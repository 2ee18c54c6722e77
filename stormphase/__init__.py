"""stormphase: which phase every rank is in, truthfully and at any moment, for a tenth of the price of a span.

Importing this starts no thread, opens no file, and reads neither the environment nor a clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stormphase._bridge import DEFAULT_BRIDGE
from stormphase._decorator import ambient_phase as phase
from stormphase._model import PHASE_ENTER, PHASE_EXIT, PhaseBoundary, PhaseError, PhaseStatus, RankIdentity
from stormphase._phase import PhaseHandle, PhaseToken
from stormphase._recorder import PhaseRecorder
from stormphase._tracker import PhaseTracker
from stormphase._version import __version__
from stormphase.exceptions import (
    ConfigurationError,
    Misuse,
    OwnershipError,
    PhaseNameError,
    PhaseProtocolError,
    StatusError,
    StormphaseError,
)

if TYPE_CHECKING:
    from stormphase._bridge import Bridge

__all__ = [
    "PHASE_ENTER",
    "PHASE_EXIT",
    "ConfigurationError",
    "Misuse",
    "OwnershipError",
    "PhaseBoundary",
    "PhaseError",
    "PhaseHandle",
    "PhaseNameError",
    "PhaseProtocolError",
    "PhaseRecorder",
    "PhaseStatus",
    "PhaseToken",
    "PhaseTracker",
    "RankIdentity",
    "StatusError",
    "StormphaseError",
    "__version__",
    "phase",
]


def _otel_bridge() -> Bridge:
    # Here and not at import: the API of OpenTelemetry alone takes some 20 ms, and who gave bridge=None never loads it.
    from stormphase.otel import OTelBridge  # noqa: PLC0415

    return OTelBridge()


DEFAULT_BRIDGE.make = staticmethod(_otel_bridge)
