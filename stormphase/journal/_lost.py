"""What a dead process left in its journal: phases that never ended, which are LOST, and ended ones that nobody has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stormphase._copying import changed
from stormphase._model import PhaseStatus

if TYPE_CHECKING:
    from stormphase.journal._image import JournalImage, JournalPhase


def lost_phases(image: JournalImage) -> tuple[JournalPhase, ...]:
    """Return what was open when the process died, as LOST since it was last known alive.

    The caller has proof that it is dead.
    """
    return tuple(
        changed(phase, status=PhaseStatus.LOST, ended_ns=max(image.heartbeat_ns, phase.entered_ns))
        for phase in image.open
    )


def unsent_phases(image: JournalImage) -> tuple[JournalPhase, ...]:
    """Return the ended phases that the process's bridge never got to hand over."""
    return tuple(phase for phase in image.ended if not phase.is_handed_over)
