"""While a generator is suspended its phase is on no lane: no phase of the caller nests in it, and its clock stands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from stormphase import _moves
from stormphase._exits import inside_of
from stormphase._model import PhaseStatus
from stormphase._noop import NOOP
from stormphase.exceptions import PhaseProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from stormphase._phase import PhaseHandle

_ACTIVE: Final = PhaseStatus.ACTIVE
_PAUSED: Final = PhaseStatus.PAUSED

Suspended = tuple["PhaseHandle", ...]


def suspend(phase: PhaseHandle) -> Suspended:
    """Pause the phase and what the generator's body has open inside it; returns them, outermost first. Never raises."""
    if phase is NOOP or phase._status is not _ACTIVE or phase._lane.is_inherited:
        return ()
    lane = phase._lane
    inside = inside_of(lane, phase)
    if inside is None:
        return ()
    open_phases = (phase, *inside)
    try:
        for each in reversed(open_phases):
            _moves.pause(lane.lanes, each, must_own=False)
    except PhaseProtocolError:
        pass  # Counted; what could not be paused is not resumed either.
    return open_phases


def carry_on(suspended: Suspended, *, is_closing: bool = False) -> None:
    """Put what `suspend` paused on the caller's lane, whichever that is by now. Never raises.

    A generator that is closed from elsewhere, as one is that was dropped, cleans up without its phases: whoever closes
    it may be about something quite different, and neither its lane nor its context is touched.
    """
    if not suspended:
        return
    phase = suspended[0]
    lanes = phase._lane.lanes
    caller = lanes.lane_of_caller()
    if caller is None or (is_closing and caller is not phase._lane):
        return
    for each in suspended:
        _moves.resume_on(lanes, caller, each)


def come_back(phase: PhaseHandle, error: BaseException | None) -> None:
    """Let a generator that is over end its phase here, if it was closed from elsewhere and did not simply give in."""
    if phase is not NOOP and phase._status is _PAUSED and not isinstance(error, GeneratorExit):
        carry_on((phase,))


def as_thrown(error: BaseException) -> BaseException:
    """Return an exception that was thrown into the frame of a wrapper, as it was before that frame caught it."""
    traceback = error.__traceback__
    return BaseException.with_traceback(error, None if traceback is None else traceback.tb_next)


def begin(generator: AsyncGenerator[Any, Any], value: None) -> Awaitable[Any]:
    """Return the first step of an async generator, and keep it from the event loop.

    The wrapper around it is what the loop knows and closes; if it knew both, it would close them at the same time.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return generator.asend(value)
    finally:
        sys.set_asyncgen_hooks(*hooks)
