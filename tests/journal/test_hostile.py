"""However a stranger made a journal, the work of reading it grows with its size and no faster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from journal_hostile import KINDS, hostile

from stormphase.journal._source import BytesSource
from stormphase.journal._story import read_source

SEGMENTS = (12, 48)


def work(data):
    """Return how many calls it takes to read a journal, and how many names are in the paths that come of it."""
    calls = 0

    def count(_frame, event, _argument):
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        image = read_source(BytesSource(data), Path("x"))
    finally:
        sys.setprofile(before)
    return calls, sum(len(path) for path in {phase.path for phase in (*image.open, *image.ended)})


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_journal_is_twice_the_work(kind):
    """For each kind of what a reader could be kept busy with."""
    (calls, names), (more_calls, more_names) = (work(hostile(kind, segments)) for segments in SEGMENTS)
    growth = SEGMENTS[-1] / SEGMENTS[0]
    assert more_calls <= 1.25 * growth * calls
    assert more_names <= max(1.25 * growth * names, 1_100_000)
