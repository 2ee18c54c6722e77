"""Exact counts by name, safe in threads, signal handlers and forked children without a lock."""

from __future__ import annotations

import itertools
from typing import Final

_MAX_NEWS: Final = 64


class Counts:
    """How often each named thing happened; `add` may be called from anywhere, and no count is ever lost.

    One `itertools.count` a name: `next` on it is a single C call. `dict.setdefault` makes sure there is only one.
    """

    __slots__ = ("_counters", "_news")

    def __init__(self) -> None:
        """Start with every count at 0."""
        self._counters: dict[str, itertools.count[int]] = {}
        self._news: set[str] = set()

    def add(self, name: str) -> None:
        """Count one more of `name`."""
        counter = self._counters.get(name)
        if counter is None:
            counter = self._counters.setdefault(name, itertools.count())
        next(counter)

    def is_news(self, text: str) -> bool:
        """Return whether `text` has not been asked for before, and is worth a word; of very many nothing is."""
        if text in self._news or len(self._news) >= _MAX_NEWS:
            return False
        self._news.add(text)
        return True

    def __getitem__(self, name: str) -> int:
        """Return how often `name` was counted."""
        counter = self._counters.get(name)
        return 0 if counter is None else reading(counter)

    def to_dict(self) -> dict[str, int]:
        """Return all counts that are not 0, by name."""
        return {name: reading(counter) for name, counter in sorted(self._counters.copy().items())}


def reading(counter: itertools.count[int]) -> int:
    """Return what the next `next(counter)` would give, without moving it: only its repr, "count(5)", tells."""
    return int(repr(counter)[6:-1])
