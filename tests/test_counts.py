"""Counts by name, exact in any thread, without a lock."""

from __future__ import annotations

import itertools
import threading

from stormphase._counts import Counts, reading


def test_what_was_never_counted_is_zero():
    """Asking does not make a count."""
    counts = Counts()
    assert 0 == counts["dropped"]
    assert {} == counts.to_dict()


def test_counts_are_kept_by_name():
    """Each name has its own count; the dict has them all, sorted."""
    counts = Counts()
    for name in ("b", "a", "b"):
        counts.add(name)
    assert (1, 2) == (counts["a"], counts["b"])
    assert [("a", 1), ("b", 2)] == list(counts.to_dict().items())


def test_reading_does_not_move_a_count():
    """A counter read twice shows the same."""
    counter = itertools.count(12)
    assert (12, 12, 12) == (reading(counter), reading(counter), next(counter))


def test_no_count_is_lost_between_threads():
    """Threads that all see a name for the first time at once, and go on counting, lose nothing."""
    counts = Counts()
    barrier = threading.Barrier(8)

    def count() -> None:
        for number in range(200):
            if number % 50 == 0:
                barrier.wait()
            counts.add(f"name {number // 50}")

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"name {number}": 400 for number in range(4)} == counts.to_dict()


def test_a_name_first_counted_by_another_thread_in_between_is_the_same_count():
    """Of two counters made for one name at the same moment, one is kept and both counts go to it."""

    class Racing(dict):
        def get(self, name, default=None):
            if name not in self:
                self[name] = itertools.count(1)  # what another thread does right after this look-up
                return default
            return super().get(name, default)

    counts = Counts()
    counts._counters = Racing()
    counts.add("x")
    assert 2 == counts["x"]
