"""How many of the users' attributes were cut, left out or could not be read."""

from __future__ import annotations

import itertools
from collections import deque


class AttributeCounts:
    """How many attributes were cut, left out or could not be read; exact over all threads, readable at any time.

    Counting is one C call on an `itertools.count`: no lock that a signal handler or a forked child could find held.
    """

    __slots__ = ("_dropped", "_failed", "_truncated")

    def __init__(self) -> None:
        """Start at zero."""
        self._truncated = itertools.count()
        self._dropped = itertools.count()
        self._failed = itertools.count()

    @property
    def truncated(self) -> int:
        """How many strings, keys or containers were cut."""
        return _reading(self._truncated)

    @property
    def dropped(self) -> int:
        """How many attributes were left out: over the limit, or with a key that was already taken."""
        return _reading(self._dropped)

    @property
    def failed(self) -> int:
        """How many values raised when they were read."""
        return _reading(self._failed)

    def count_truncated(self) -> None:
        """Count one value as cut."""
        next(self._truncated)

    def count_dropped(self, attributes: int = 1) -> None:
        """Count attributes as left out."""
        deque(itertools.islice(self._dropped, attributes), maxlen=0)

    def count_failed(self) -> None:
        """Count one value as unreadable."""
        next(self._failed)

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return {"truncated": self.truncated, "dropped": self.dropped, "failed": self.failed}


def _reading(counter: itertools.count[int]) -> int:
    # "count(5)": the only way to read a counter without moving it.
    return int(repr(counter)[6:-1])
