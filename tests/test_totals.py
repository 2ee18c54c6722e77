"""Totals per path: sums are exact, quantiles within 2 %, and two of them merge as if they had been one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase import PhaseStatus
from stormphase._totals import RELATIVE_ERROR, DurationHistogram, PathTotals

# From nothing to three centuries.
DURATIONS = st.one_of(st.integers(0, 2_000), st.integers(0, 10**13), st.integers(0, 10**19))
FRACTIONS = st.one_of(st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]), st.floats(0, 1))


def exact(durations: list[int], fraction: float) -> int:
    """Return the quantile by nearest rank: the least value that so many do not exceed."""
    return sorted(durations)[max(1, math.ceil(fraction * len(durations))) - 1]


def histogram(durations: list[int]) -> DurationHistogram:
    """Return a histogram of durations."""
    filled = DurationHistogram()
    for duration_ns in durations:
        filled.add(duration_ns)
    return filled


@given(st.lists(DURATIONS, min_size=1, max_size=60), FRACTIONS)
def test_any_quantile_is_within_two_percent_of_the_true_one(durations, fraction):
    """Whatever the durations, and however far apart."""
    expected = exact(durations, fraction)
    assert abs(histogram(durations).quantile_ns(fraction) - expected) <= expected * (RELATIVE_ERROR + 1e-9)


@given(st.lists(DURATIONS), st.lists(DURATIONS), FRACTIONS)
def test_merging_is_adding(one, other, fraction):
    """The histograms of two ranks together say what one of all would have said."""
    merged = histogram(one)
    merged.merge(histogram(other))
    assert histogram(one + other).quantile_ns(fraction) == merged.quantile_ns(fraction)


def test_an_empty_histogram_has_no_duration():
    """Nothing took no time."""
    assert 0.0 == DurationHistogram().quantile_ns(0.5)


def test_a_negative_duration_counts_as_none():
    """A clock that was told to go backwards breaks nothing."""
    assert (0.0, 0.0) == (histogram([-5]).quantile_ns(0.5), histogram([-5, 0, 7]).quantile_ns(0.5))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_quantile_is_between_none_and_all(fraction):
    """Percent given for a fraction is a mistake that is told."""
    with pytest.raises(ValueError, match="A quantile is between 0 and 1"):
        histogram([1]).quantile_ns(fraction)


def test_memory_is_flat():
    """A million durations over nine decades are a few hundred numbers."""
    filled = histogram([int(1.0001**exponent) for exponent in range(0, 207_000, 7)])
    assert len(filled._buckets) < 540


@given(st.lists(st.tuples(DURATIONS, DURATIONS, DURATIONS, st.sampled_from(PhaseStatus)), min_size=1))
def test_sums_and_extremes_are_exact(phases):
    """To the nanosecond; quantiles stay between the extremes."""
    totals = PathTotals()
    for active_ns, own_ns, paused_ns, status in phases:
        totals.add(active_ns=active_ns, own_ns=own_ns, paused_ns=paused_ns, status=status)
    figures = totals.figures()
    active = [phase[0] for phase in phases]
    assert (len(phases), sum(active), max(active)) == (figures.count, figures.total_ns, figures.max_ns)
    assert (sum(phase[1] for phase in phases), sum(phase[2] for phase in phases)) == (figures.own_ns, figures.paused_ns)
    assert min(active) <= figures.p50_ns <= figures.p95_ns <= max(active)
    unwell = [phase[3] for phase in phases if phase[3] is not PhaseStatus.SUCCEEDED]
    assert {status.value: unwell.count(status) for status in unwell} == dict(figures.unwell)


def test_the_only_duration_is_every_quantile():
    """One phase has one duration, exactly."""
    totals = PathTotals()
    totals.add(active_ns=123_456_789, own_ns=0, paused_ns=0, status=PhaseStatus.SUCCEEDED)
    assert (123_456_789, 123_456_789) == (totals.figures().p50_ns, totals.figures().p95_ns)
