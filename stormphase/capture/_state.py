"""What capture knows of each thread: whether it is to look away, and under which phases its work was given to it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stormphase._phase import PhaseHandle


class ThreadState(threading.local):
    """What capture knows of the calling thread.

    Attributes:
        silent: how many of our own calls it is in, whose writes are seen already or are nobody's.
        origins: the phase of each session (by its id) that was open where the thread was started, or where the work was
            submitted that it does now; None if that was not looked up yet.
        noted: how many writes it has made to hooked streams, for whoever asks whether one led to others.
        active: the groups of the streams that it is writing to now; see `_writes`.
    """

    silent: int = 0
    noted: int = 0
    origins: dict[int, PhaseHandle] | None = None

    def __init__(self) -> None:
        """Be called by each thread at its first look."""
        self.active: list[int] = []


STATE = ThreadState()
ORIGINS_ATTRIBUTE = "_stormphase_origins"


def origins_here() -> dict[int, PhaseHandle]:
    """Return the phases under which the calling thread works, by session."""
    origins = STATE.origins
    if origins is None:
        found: Any = getattr(threading.current_thread(), ORIGINS_ATTRIBUTE, None)
        origins = STATE.origins = found if isinstance(found, dict) else {}
    return origins
