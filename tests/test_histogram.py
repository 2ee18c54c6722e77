"""The histogram: two per cent on any quantile, buckets that add up, and one definition of their bounds."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase._histogram import GAMMA, bucket_of, count_buckets, quantile, quantile_between, value_of

DURATIONS = st.integers(0, 63).flatmap(lambda bits: st.integers(0, 2**bits))


@given(st.lists(DURATIONS, min_size=1, max_size=200), st.floats(0, 1))
def test_any_quantile_is_right_to_two_per_cent(durations, q):
    """Of n durations in order it is the one at index `ceil(q * n) - 1`, to within 2 %."""
    found = quantile(Counter(map(bucket_of, durations)), q)
    exact = sorted(durations)[max(0, math.ceil(q * len(durations)) - 1)]
    assert found == pytest.approx(exact, rel=0.02)


@given(DURATIONS)
def test_a_bucket_holds_what_the_format_says(duration):
    """`floor(log(d) / log(1.04)) = b - 1`, and 0 has a bucket of its own."""
    expected = math.floor(math.log(duration) * (1 / math.log(1.04))) + 1 if duration else 0
    assert expected == bucket_of(duration)
    assert 1.04 == GAMMA


@given(st.lists(DURATIONS, max_size=300))
def test_counting_many_is_counting_each(durations):
    """The fast way and `bucket_of` agree on every duration, also at the very bounds of a bucket."""
    assert Counter(map(bucket_of, durations)) == count_buckets(durations)


@pytest.mark.parametrize("bucket", [1, 2, 19, 100, 353, 700, 900, 1_000, 1_115])
def test_counting_many_agrees_at_the_bounds(bucket):
    """A nanosecond on either side of a bound falls where `bucket_of` puts it."""
    bound = round(GAMMA**bucket)
    durations = list(range(max(0, bound - 50), bound + 50))
    assert Counter(map(bucket_of, durations)) == count_buckets(durations)


def test_the_bounds_ascend():
    """A longer duration is never in an earlier bucket."""
    durations = sorted({round(1.001**power) for power in range(43_000)})
    buckets = list(map(bucket_of, durations))
    assert sorted(buckets) == buckets
    assert (0, 1) == (bucket_of(0), bucket_of(1))


def test_histograms_are_merged_by_adding():
    """The quantile of two histograms together is that of all their durations."""
    left, right = [10, 200, 3_000], [40_000, 500_000]
    assert quantile(Counter(map(bucket_of, left + right)), 0.5) == quantile(
        Counter(map(bucket_of, left)) + Counter(map(bucket_of, right)), 0.5
    )


def test_a_negative_duration_counts_as_none():
    """A clock that was told to go backwards breaks nothing."""
    assert 0 == bucket_of(-5)


def test_memory_is_flat():
    """Durations over nine decades are a few hundred numbers."""
    assert len(count_buckets([int(1.0001**exponent) for exponent in range(0, 207_000, 7)])) < 560


def test_a_quantile_stays_between_the_extremes():
    """A bucket is 4 % wide, and the only duration in it is known exactly."""
    assert 123_456_789 == quantile_between({bucket_of(123_456_789): 1}, 0.5, 123_456_789, 123_456_789)
    assert quantile_between({}, 0.5, 0, 0) is None


def test_nothing_has_no_quantile():
    """No duration, no answer; and a duration of zero is exactly that."""
    assert quantile({}, 0.5) is None
    assert quantile({3: 0}, 0.5) is None
    assert 0.0 == quantile({0: 5}, 0.99)
    assert 0.0 == value_of(0)
