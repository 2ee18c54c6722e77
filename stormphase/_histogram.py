"""The one histogram of durations, in logarithmic buckets: any quantile to within 2 %; two merge by adding.

Summary, journal, `postmortem`, `top` and the watch for phases that are open too long all count in it, so that the same
durations have the same quantiles wherever they are shown. Its bounds are part of the journal's format.

Bucket 0 is a duration of 0; bucket b > 0 holds the durations from GAMMA**(b-1) up to GAMMA**b nanoseconds, and the
value that stands for all of them is at most (GAMMA - 1) / (GAMMA + 1) = 1.97 % from each. The scheme is DDSketch's
(Masson, Rim, Lee, "DDSketch: a fast and fully-mergeable quantile sketch", VLDB 2019), without its collapsing.
"""

from __future__ import annotations

import bisect
import functools
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

GAMMA: Final = 1.04
_SCALE: Final = 1 / math.log(GAMMA)
_log = math.log


def bucket_of(duration_ns: int) -> int:
    """Return the bucket of a duration in nanoseconds; a negative one counts as 0."""
    return int(_log(duration_ns) * _SCALE) + 1 if duration_ns > 0 else 0


def count_buckets(durations_ns: Iterable[int]) -> dict[int, int]:
    """Return how many of the durations, none of them negative, fall into each bucket.

    A reader has a million of them. Those of one path are much alike, so sorting them, and finding where each bucket
    ends, is faster than a logarithm each.
    """
    ordered = sorted(durations_ns)
    counts = {}
    at = 0
    while at < len(ordered):
        bucket = bucket_of(ordered[at])
        end = bisect.bisect_right(ordered, _last_of(bucket), at)
        counts[bucket] = end - at
        at = end
    return counts


@functools.cache
def _last_of(bucket: int) -> int:
    """Return the longest duration in a bucket, by what `bucket_of` says, which has the last word on the bounds."""
    about = int(GAMMA**bucket) if bucket else 0
    first = about - about // 1_000_000 - 1
    bounds = range(first, about + about // 1_000_000 + 2)
    return first + bisect.bisect_right(bounds, bucket, key=bucket_of) - 1


def value_of(bucket: int) -> float:
    """Return the duration in nanoseconds that stands for a bucket."""
    return 2 * GAMMA**bucket / (GAMMA + 1) if bucket > 0 else 0.0


def quantile(buckets: Mapping[int, int], q: float) -> float | None:
    """Return the q-quantile in nanoseconds (q from 0 to 1), or None if nothing was counted.

    Of n durations in order it is the one at index `ceil(q * n) - 1`, to within 2 %.
    """
    total = sum(buckets.values())
    if not total:
        return None
    rank = min(total, max(1, math.ceil(q * total)))
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= rank:
            return value_of(bucket)
    raise AssertionError  # the counts add up to `total`


def quantile_between(buckets: Mapping[int, int], q: float, least_ns: int, greatest_ns: int) -> int | None:
    """Return the q-quantile in whole nanoseconds, kept between the extremes, which are exact; None if there is none."""
    found = quantile(buckets, q)
    return None if found is None else min(greatest_ns, max(least_ns, round(found)))
