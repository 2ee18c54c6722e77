"""Puts the compiled half of the hot path in the place of the Python, where `_speedups` was built.

The Python is the definition and does all that is not plain; the C does the rest three times as fast. STORMPHASE_PURE=1
keeps the Python for all.
"""

from __future__ import annotations

import os
import sys
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeVar

from stormphase import _exits, _secret_spans
from stormphase._clock import SystemClock
from stormphase._enter import NO_STEP, SLOT_BYTES, QuietName, enter_phase
from stormphase._lane import Lane
from stormphase._model import PhaseStatus
from stormphase._paths import PathNode
from stormphase._phase import ON_SUCCESS, PhaseHandle

if TYPE_CHECKING:
    from types import ModuleType

    from stormphase._lanes import LaneSet

_Owner = TypeVar("_Owner")

ABI: Final = 3
"""What `_speedups.c` must say as well: raised with every change of what the two expect of each other."""


def _load() -> ModuleType | None:
    # Slots are stored as the machine has its words, and a journal's are little-endian.
    if os.environ.get("STORMPHASE_PURE", "0") not in {"", "0"} or sys.byteorder != "little":
        return None
    try:
        module = import_module("stormphase._speedups")
    except ImportError:  # Not built here.
        return None
    # A checkout may have one that was built from another source: then it is Python until it is installed again.
    return module if getattr(module, "ABI", None) == ABI else None


speedups = _load()
"""The compiled module, or None."""

if speedups is not None:
    _secret_spans.replace_secrets = speedups.without_secrets

python_exit = PhaseHandle.__exit__
"""The Python that the compiled `__exit__` stands for."""


def quicken(lanes: type[LaneSet]) -> None:
    """Put what is compiled in the place of `enter_phase` and of the handle's `__enter__` and `__exit__`, once."""
    global speedups  # noqa: PLW0603 - it holds for this interpreter
    if speedups is None:
        return
    try:
        methods = speedups.bind(
            handle=PhaseHandle,
            lane=Lane,
            lanes=lanes,
            path=PathNode,
            quiet_name=QuietName,
            variable=ContextVar("stormphase_probe"),
            clock=SystemClock.monotonic_ns,
            enter_phase=enter_phase,
            exit_phase=python_exit,
            take_back=_exits.take_back,
            active=PhaseStatus.ACTIVE,
            succeeded=ON_SUCCESS,
            slot_bytes=SLOT_BYTES,
            no_step=NO_STEP,
        )
    except ImportError:  # Another interpreter of this process has it.
        speedups = None
        return
    lanes.enter_phase, PhaseHandle.__enter__, PhaseHandle.__exit__ = methods  # type: ignore[method-assign]


def enters_quickly(owner: type[_Owner]) -> type[_Owner]:
    """Decorate a class whose `enter_phase` is `_enter`'s: it gets what is compiled, if lanes have it."""
    if speedups is not None:
        owner.enter_phase = speedups.enter_phase_of(owner)  # type: ignore[attr-defined]
    return owner
