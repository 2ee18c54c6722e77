"""Spans on their way: handed over to a processor, and perhaps not exported yet.

Until a span has left the SDK's queue, the journal must not call it sent: a SIGKILL takes the queue along.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormphase._phase import PhaseHandle

LOOK_EVERY: Final = 64  # phases
TOLD_EACH: Final = 2  # so that what piled up is told a little at a time: each takes the journal's lock
TOLD_A_TICK: Final = 128
MAX_PHASES: Final = 16_384


class Underway:
    """The phases whose spans were handed over last, oldest first. For one thread, the bridge's worker.

    Args:
        waiting: returns how many of the spans handed over last may not have been exported yet; queues are FIFO.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        """Start with nothing on its way."""
        self._waiting = waiting
        self._phases: deque[PhaseHandle] = deque()
        self._exported = 0  # of those, the first ones

    def __len__(self) -> int:
        """Return how many are not told of yet."""
        return len(self._phases)

    def take(self, phase: PhaseHandle, tell: Callable[[PhaseHandle], object]) -> None:
        """Take a phase whose span was just handed over, and `tell` of a few whose spans have been exported."""
        phases = self._phases
        if not phases and not self._waiting():  # There is no queue.
            tell(phase)
            return
        phases.append(phase)
        if len(phases) % LOOK_EVERY == 0:
            self._look()
        if len(phases) > MAX_PHASES:
            # A processor that has stopped: what it was given long ago is left to recovery, rather than kept in memory.
            phases.popleft()
            self._exported = max(0, self._exported - 1)
        self._tell(TOLD_EACH, tell)

    def settle(self, tell: Callable[[PhaseHandle], object], *, most: int = MAX_PHASES) -> None:
        """Look what has been exported by now, and `tell` of at most so many."""
        if self._phases:
            self._look()
            self._tell(most, tell)

    def forget(self) -> None:
        """Forget all: in a forked child they are the parent's."""
        self._phases.clear()
        self._exported = 0

    def _look(self) -> None:
        self._exported = max(self._exported, len(self._phases) - self._waiting())

    def _tell(self, most: int, tell: Callable[[PhaseHandle], object]) -> None:
        for _ in range(min(most, self._exported)):
            self._exported -= 1
            tell(self._phases.popleft())
