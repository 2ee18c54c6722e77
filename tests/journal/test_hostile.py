"""However a stranger made a journal, the work of reading it grows with its size and no faster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from journal_hostile import KINDS, hostile

from stormphase._attribution import corrections
from stormphase._liveness import Liveness, Verdict
from stormphase._model import PhaseStatus
from stormphase.journal._records import records_of_image
from stormphase.journal._source import BytesSource
from stormphase.journal._story import read_source
from stormphase.otel._recovered import rebuild

SEGMENTS = (12, 48)


def work(data, use=lambda image: None):
    """Return how many calls it takes to read a journal, and use it, and how many names are in its paths."""
    calls = 0

    def count(_frame, event, _argument):
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        image = read_source(BytesSource(data), Path("x"))
        use(image)
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


@pytest.mark.parametrize(
    "kind",
    [
        "all_open_at_the_deepest_path",
        "failures_by_one_another",
        "open_on_many_lanes_under_a_deep_one",
        "parents_in_envelopes",
    ],
)
def test_telling_of_a_dead_process_is_twice_the_work_as_well(kind):
    """Its records, where they failed, and the spans that are made of them."""
    dead = Verdict(Liveness.DEAD, "it is known")

    def tell(image):
        records = records_of_image(image, dead)
        corrections(records)
        rebuild(image, [record for record in records if record.status is PhaseStatus.LOST])

    (calls, _), (more_calls, _) = (work(hostile(kind, segments), tell) for segments in (4, 16))
    assert more_calls <= 1.25 * 4 * calls
