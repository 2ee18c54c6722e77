"""What could not be read in a journal, in words, each with how often it was met."""

from __future__ import annotations

from collections import Counter


class Damage:
    """Collects notes. A note names a kind of damage and never holds what stands in the file, so there are few."""

    def __init__(self) -> None:
        """Start with none."""
        self._counts: Counter[str] = Counter()

    def note(self, what: str, times: int = 1) -> None:
        """Count one more of `what`."""
        self._counts[what] += times

    def notes(self) -> tuple[str, ...]:
        """Return the notes in the order in which they were first made."""
        return tuple(what if times == 1 else f"{what} ({times} times)" for what, times in self._counts.items())
