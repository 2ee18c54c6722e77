"""Counts of attributes that were cut, left out or unreadable."""

from __future__ import annotations

import threading

from stormphase._attribute_counts import AttributeCounts


def test_counts_are_exact_over_threads():
    """Eight threads that count at once lose nothing, and reading counts nothing."""
    counts = AttributeCounts()

    def count():
        for _ in range(1_000):
            counts.count_truncated()
            counts.count_dropped(3)
            counts.count_failed()
            counts.to_dict()

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {"truncated": 8_000, "dropped": 24_000, "failed": 8_000} == counts.to_dict()
