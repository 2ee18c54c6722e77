"""Pacing: never more on its way to a batch processor than half its queue, which drops in silence when it is full.

The other half is the user's own spans'. Flushing exports on the calling thread, which is the bridge's worker: a slow
collector slows the bridge, whose own queue then counts what it drops, and never training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

FLUSH_TIMEOUT_MS: Final = 30_000


class Pacer:
    """Flushes whenever half a queue was handed over since the last time. For one thread.

    Args:
        queue_size: asked before each round, since processors come and go.
        force_flush: called with a timeout in milliseconds.
    """

    def __init__(self, queue_size: Callable[[], int], force_flush: Callable[[int], bool]) -> None:
        """Start a round."""
        self._queue_size = queue_size
        self._force_flush = force_flush
        self.flush_count = 0
        self._left = self._half()

    def handed_over(self) -> None:
        """Count one; flush if it was the last of the round."""
        self._left -= 1
        if self._left <= 0:
            self.flush(FLUSH_TIMEOUT_MS)

    def flush(self, timeout_ms: int) -> bool:
        """Flush now, and begin a new round; False if what was handed over is known not to be delivered."""
        self.flush_count += 1
        try:
            return self._force_flush(timeout_ms)
        finally:
            self._left = self._half()

    def _half(self) -> int:
        return max(1, self._queue_size() // 2)
