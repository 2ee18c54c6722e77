"""What every subject is given to do: the same names, the same attributes, the same step."""

from __future__ import annotations

import hashlib

OUTER = "train"
PHASE = "step"
THREE_ATTRIBUTES: dict[str, int | float | str] = {"epoch": 3, "learning_rate": 0.001, "split": "train"}
TWO_EVENTS = ("enter", "exit")
STATUS_ATTRIBUTE = {"stormphase.phase.status": "succeeded"}  # what our second event has, and no more
PIECES_PER_STEP = 8

# Large enough that hashlib lets go of the GIL, and about 1/8 ms long: eight of them are a short step.
_BUFFER = bytes(96 * 1024)


def work_without_gil() -> None:
    """Do one piece of a step: some 0.1 ms of hashing with the GIL released."""
    hashlib.blake2b(_BUFFER).digest()
