"""stormphase: which phase every rank is in, truthfully and at any moment, for a tenth of the price of a span.

Importing this starts no thread, opens no file, and reads neither the environment nor a clock.
"""

from __future__ import annotations

from stormphase._model import PHASE_ENTER, PHASE_EXIT, PhaseBoundary, PhaseError, PhaseStatus, RankIdentity
from stormphase._phase import PhaseHandle, PhaseToken
from stormphase._recorder import PhaseRecorder
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
    "RankIdentity",
    "StatusError",
    "StormphaseError",
    "__version__",
]
