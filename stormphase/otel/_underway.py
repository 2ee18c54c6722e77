"""Spans on their way: handed over to a processor, and perhaps not exported yet.

Until a span has left the SDK's queue, the journal must not call it sent: a SIGKILL takes the queue along.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stormphase._phase import PhaseHandle

TELL_EVERY: Final = 16  # phases: to tell of one takes the journal's lock, and to tell of many takes it once
TOLD_AT_ONCE: Final = 2 * TELL_EVERY  # so that what piled up is told a little at a time
TELLS_A_LOOK: Final = 4
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
        self._until_tell = TELL_EVERY
        self._until_look = TELLS_A_LOOK

    def __len__(self) -> int:
        """Return how many are not told of yet."""
        return len(self._phases)

    def take(self, phase: PhaseHandle, tell: Callable[[Sequence[PhaseHandle]], object]) -> None:
        """Take a phase whose span was just handed over; now and then, `tell` of some whose spans have been exported."""
        phases = self._phases
        if not phases and not self._waiting():  # There is no queue.
            tell((phase,))
            return
        phases.append(phase)
        self._until_tell -= 1
        if self._until_tell > 0:
            return
        self._until_tell = TELL_EVERY
        self._until_look -= 1
        if self._until_look <= 0:
            self._until_look = TELLS_A_LOOK
            self._look()
        while len(phases) > MAX_PHASES:
            # A processor that has stopped: what it was given long ago is left to recovery, rather than kept in memory.
            phases.popleft()
            self._exported = max(0, self._exported - 1)
        self._tell(TOLD_AT_ONCE, tell)

    def settle(self, tell: Callable[[Sequence[PhaseHandle]], object], *, most: int = MAX_PHASES) -> None:
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

    def _tell(self, most: int, tell: Callable[[Sequence[PhaseHandle]], object]) -> None:
        count = min(most, self._exported)
        if count > 0:
            self._exported -= count
            popleft = self._phases.popleft
            tell([popleft() for _ in range(count)])
