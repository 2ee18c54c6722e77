"""Totals per path: sums and extremes are exact, and quantiles stay between them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stormphase import PhaseStatus
from stormphase._totals import PathTotals

# From nothing to three centuries.
DURATIONS = st.one_of(st.integers(0, 2_000), st.integers(0, 10**13), st.integers(0, 10**19))


@given(st.lists(st.tuples(DURATIONS, DURATIONS, DURATIONS, st.sampled_from(PhaseStatus)), min_size=1))
def test_sums_and_extremes_are_exact(phases):
    """To the nanosecond; quantiles stay between the extremes."""
    totals = PathTotals()
    for active_ns, own_ns, paused_ns, status in phases:
        duration_ns = active_ns + paused_ns
        totals.add(duration_ns=duration_ns, active_ns=active_ns, own_ns=own_ns, paused_ns=paused_ns, status=status)
    figures = totals.figures()
    durations = [phase[0] + phase[2] for phase in phases]
    active = [phase[0] for phase in phases]
    assert (len(phases), sum(active), max(durations)) == (figures.count, figures.total_ns, figures.max_ns)
    assert (sum(phase[1] for phase in phases), sum(phase[2] for phase in phases)) == (figures.own_ns, figures.paused_ns)
    assert min(durations) <= figures.p50_ns <= figures.p95_ns <= max(durations)
    unwell = [phase[3] for phase in phases if phase[3] is not PhaseStatus.SUCCEEDED]
    assert {status.value: unwell.count(status) for status in unwell} == dict(figures.unwell)


def test_the_only_duration_is_every_quantile():
    """One phase has one duration, exactly."""
    totals = PathTotals()
    totals.add(duration_ns=123_456_789, active_ns=1, own_ns=0, paused_ns=0, status=PhaseStatus.SUCCEEDED)
    assert (123_456_789, 123_456_789) == (totals.figures().p50_ns, totals.figures().p95_ns)
