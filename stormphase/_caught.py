"""Whether an exception had been caught before a phase was entered, by what its traceback and the stack show.

A traceback begins in the frame that caught the exception, at the instruction which it came out of. If that frame still
runs, it is the one that entered the phase, and then the instructions tell which came first, or it has called that one.
"""

from __future__ import annotations

import inspect
import sys
from types import CodeType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

    from stormphase._phase import PhaseHandle

# Past the class: a hostile one may raise from any attribute.
traceback_of: Final = BaseException.__dict__["__traceback__"].__get__
# Whoever resumes one of these may have caught something while it was suspended, inside its phases.
_SUSPENDABLE: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def was_caught_before(exception: BaseException, phase: PhaseHandle) -> bool:
    """Whether `exception` had been caught by the time `phase`, which is being left, was entered; False if unknown."""
    entry = traceback_of(exception)
    if entry is None or not is_running(entry.tb_frame):
        return False
    site: object = phase._code
    if not isinstance(site, CodeType):  # A decorated function: what runs now has called it.
        return phase._extra is None or phase._extra.resumed_ns is None
    sites = _sites(phase)
    for code, instruction in sites:
        if entry.tb_frame.f_code is code:
            return bool(entry.tb_lasti < instruction)
    return _has_called(entry.tb_frame, {id(code) for code, _ in sites if not code.co_flags & _SUSPENDABLE})


def is_running(frame: FrameType) -> bool:
    """Return whether a frame is one of the caller's."""
    running: FrameType | None = sys._getframe()
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None


def _sites(phase: PhaseHandle) -> list[tuple[CodeType, int]]:
    """Return where a phase was entered and, if that is in a small helper, from where that was called."""
    instruction = phase._instruction
    if isinstance(instruction, int):
        return [(phase._code, instruction)]
    own, caller, at = instruction
    return [(caller, at), (phase._code, own)]


def _has_called(frame: FrameType, code_ids: set[int]) -> bool:
    """Return whether, of the frames that run, code of these ids has been called from `frame`."""
    running: FrameType | None = sys._getframe()
    while running is not None and running is not frame:
        if id(running.f_code) in code_ids:
            return True
        running = running.f_back
    return False
