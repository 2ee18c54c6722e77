"""Totals per path: what remains of ended phases when only sums, extremes and quantiles are wanted. Memory is flat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import attrs

from stormphase._histogram import bucket_of, quantile_between
from stormphase._model import PhaseStatus


@attrs.frozen
class PathFigures:
    """What `PathTotals` had at one moment, in nanoseconds.

    Attributes:
        count: how many phases ended.
        total_ns: their time on a lane: durations without pauses; own time plus what ran on top, to the nanosecond.
        own_ns: their time with nothing on top.
        paused_ns: how long they were paused, all together.
        p50_ns: half of them had at most this duration, from enter to exit, as their records, their spans and
            `postmortem` count it: pauses included. Within 2 % of a true median.
        p95_ns: 95 % of them had at most this duration; likewise.
        max_ns: the longest duration.
        unwell: how many ended otherwise than succeeded, by status.
    """

    count: int
    total_ns: int
    own_ns: int
    paused_ns: int
    p50_ns: int
    p95_ns: int
    max_ns: int
    unwell: Mapping[str, int]


class PathTotals:
    """The sums of all ended phases of one path, in nanoseconds. Memory is flat. Not thread-safe."""

    __slots__ = ("buckets", "by_status", "count", "max_ns", "min_ns", "own_ns", "paused_ns", "total_ns")

    def __init__(self) -> None:
        """Start at zero."""
        self.count = 0
        self.total_ns = 0
        self.own_ns = 0
        self.paused_ns = 0
        self.min_ns = 0
        self.max_ns = 0
        self.by_status: Counter[PhaseStatus] = Counter()
        self.buckets: Counter[int] = Counter()

    def add(self, *, duration_ns: int, active_ns: int, own_ns: int, paused_ns: int, status: PhaseStatus) -> None:
        """Add one ended phase; `active_ns` is how much of its duration it was on a lane, here and not elsewhere."""
        self.min_ns = duration_ns if self.count == 0 else min(self.min_ns, duration_ns)
        self.max_ns = max(self.max_ns, duration_ns)
        self.count += 1
        self.total_ns += active_ns
        self.own_ns += own_ns
        self.paused_ns += paused_ns
        self.by_status[status] += 1
        self.buckets[bucket_of(duration_ns)] += 1

    def add_time(self, *, active_ns: int, own_ns: int) -> None:
        """Add the time that a phase spent here which ended elsewhere, and is counted there."""
        self.total_ns += active_ns
        self.own_ns += own_ns

    def merge(self, other: PathTotals) -> None:
        """Add all that `other` holds."""
        if other.count:
            self.min_ns = other.min_ns if self.count == 0 else min(self.min_ns, other.min_ns)
        self.max_ns = max(self.max_ns, other.max_ns)
        self.count += other.count
        self.total_ns += other.total_ns
        self.own_ns += other.own_ns
        self.paused_ns += other.paused_ns
        self.by_status.update(other.by_status)
        self.buckets.update(other.buckets)

    def quantile_ns(self, fraction: float) -> int:
        """Return a quantile of the durations, kept between the extremes, which are exact."""
        return quantile_between(self.buckets, fraction, self.min_ns, self.max_ns) or 0

    def figures(self) -> PathFigures:
        """Return what was added so far, frozen."""
        return PathFigures(
            count=self.count,
            total_ns=self.total_ns,
            own_ns=self.own_ns,
            paused_ns=self.paused_ns,
            p50_ns=self.quantile_ns(0.5),
            p95_ns=self.quantile_ns(0.95),
            max_ns=self.max_ns,
            unwell={
                status.value: self.by_status[status]
                for status in PhaseStatus
                if status is not PhaseStatus.SUCCEEDED and self.by_status[status]
            },
        )
