"""Spans that were handed over, freed one by one: whoever lets go of an object last has to take it apart.

The SDK's thread lets go of 512 spans at once at the end of each export, and holds the GIL until they are taken apart:
more than half of the longest time for which a training step waits. So the bridge's worker keeps the newest ones a
little longer, and each that comes frees an old one, in a slice of the worker's. With one coming and one going Python's
garbage collector sees nothing grow, too, and hardly ever looks.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT_SPANS: Final = 1_024  # A batch that is being exported, and what comes meanwhile.
FEW: Final = 64  # spans from one tick to the next: where so few come, none has to make room for another
LET_GO_A_TICK: Final = 128


class LettingGo:
    """The spans that were handed over last. For one thread, the bridge's worker.

    Attributes:
        keep: takes a span, and lets go of the oldest where there are `KEPT_SPANS`; one C call.

    Args:
        waiting: returns how many of them may not have been exported yet; None if nobody knows.
    """

    def __init__(self, waiting: Callable[[], int | None]) -> None:
        """Start with none."""
        self._waiting = waiting
        self._spans: deque[Any] = deque(maxlen=KEPT_SPANS)
        self.keep: Callable[[Any], None] = self._spans.append
        self._seen_count = 0

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._spans)

    def let_go_of_old(self, handed_over_count: int) -> None:
        """Let go of some that have been exported, where hardly any have come since the last call; called at ticks.

        Args:
            handed_over_count: how many there were in all.
        """
        come_count = handed_over_count - self._seen_count
        self._seen_count = handed_over_count
        spans = self._spans
        if spans and come_count <= FEW:
            for _ in range(min(LET_GO_A_TICK, len(spans) - (self._waiting() or 0))):
                spans.popleft()

    def let_go(self) -> None:
        """Let go of all."""
        self._spans.clear()
        self._seen_count = 0
