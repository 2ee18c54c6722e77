"""Pacing: never more on its way to a batch processor than half its queue, which drops in silence when it is full.

The other half is the user's own spans'. Flushing exports on the calling thread, which is the bridge's worker: a slow
collector slows the bridge, whose own queue then counts what it drops, and never training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

FLUSH_TIMEOUT_MS: Final = 30_000
LITTLE: Final = 4  # a quarter of the half


class Pacer:
    """Flushes whenever half a queue is full, as far as can be seen, or may be. For one thread.

    Where the processor's own thread keeps up, nothing is flushed: that would export on the bridge's thread what the
    other does anyway, in longer holds of the GIL.

    Attributes:
        flush_count: how often it flushed.
        unflushed_count: how many were counted since the last flush that went well.

    Args:
        queue_size: asked before each round, since processors come and go.
        room: returns how many more the queue takes until half of it is full; None where that does not show.
        force_flush: called with a timeout in milliseconds.
    """

    def __init__(
        self, queue_size: Callable[[], int], room: Callable[[], int | None], force_flush: Callable[[int], bool]
    ) -> None:
        """Start a round."""
        self._queue_size = queue_size
        self._room = room
        self._force_flush = force_flush
        self.flush_count = 0
        self.unflushed_count = 0
        self._left = self._half()

    def handed_over(self) -> None:
        """Count one; if it was the last of the round, begin another one, after a flush if there is little room."""
        self._left -= 1
        self.unflushed_count += 1
        if self._left > 0:
            return
        room = self._room()
        # Little: else a queue that stays nearly half full would be asked for every span.
        if room is None or room <= self._half() // LITTLE:
            self.flush(FLUSH_TIMEOUT_MS)
        else:
            self._left = room

    def flush(self, timeout_ms: int) -> bool:
        """Flush now, and begin a new round; False if what was handed over is known not to be delivered."""
        self.flush_count += 1
        try:
            is_delivered = self._force_flush(timeout_ms)
        finally:
            self._left = self._half()
        if is_delivered:
            self.unflushed_count = 0
        return is_delivered

    def _half(self) -> int:
        return max(1, self._queue_size() // 2)
