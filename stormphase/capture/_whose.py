"""To which phase belongs what the calling thread says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stormphase._model import PhaseStatus
from stormphase._phase import PhaseHandle
from stormphase.capture._state import origins_here

if TYPE_CHECKING:
    from stormphase._lane import Lane
    from stormphase._lanes import LaneSet


def phase_here(lanes: LaneSet, session_key: int) -> tuple[PhaseHandle | None, bool]:
    """Return the caller's phase, and whether that holds for as long as its context and that phase stay as they are.

    It is the innermost open phase of the caller's context: its own, or the one that the context was copied under. Else
    the caller's lane knows one that was entered in another context of it. Else it is the one that was open where the
    thread was started or the work was submitted. A phase that has ended stands for the nearest open one above it; one
    that belongs to the process that this one was forked from stands for none.
    """
    phase = lanes.carrier.current_phase()
    if phase is not None and phase._status is not PhaseStatus.ACTIVE:
        phase = open_above(phase)
    if phase is not None:
        return (None, True) if phase._lane.is_inherited else (phase, True)
    lane = _lane_here(lanes)
    if lane is not None and isinstance(top := lane.top, PhaseHandle):
        return top, False
    origin = origins_here().get(session_key)
    if origin is not None and not origin._lane.is_inherited:
        return open_above(origin), True
    return None, True


def open_above(phase: PhaseHandle) -> PhaseHandle | None:
    """Return the phase, or the nearest one above it, that is open."""
    above: PhaseHandle | None = phase
    while above is not None and above._status is not PhaseStatus.ACTIVE:
        above = above.parent
    return above


def is_captured(phase: PhaseHandle, *, by_default: bool) -> bool:
    """Whether the phase, or else the nearest one above that says anything of it, is to be captured."""
    above: PhaseHandle | None = phase
    while above is not None:
        extra = above._extra
        if extra is not None and extra.capture is not None:
            return extra.capture is not False
        above = above.parent
    return by_default


def _lane_here(lanes: LaneSet) -> Lane | None:
    # Never made: a thread that only prints needs none.
    return None if lanes.lane_of_thread() is None else lanes.lane_of_caller()
