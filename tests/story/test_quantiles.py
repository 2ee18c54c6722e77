"""Quantiles are equal wherever two tellers give them: summary and postmortem count durations in one sketch."""

from __future__ import annotations

import json
import math
import re

import pytest

import stormphase.cli
from stormphase import PhaseTracker
from stormphase.records import read_records
from stormphase.testing import ManualClock

_STEPS = 7  # With one more that takes longest the median is the same one.
_UNITS = {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}


@pytest.mark.parametrize("pause_ns", [0, 7_654_321], ids=["never paused", "a generator, paused at each yield"])
def test_summary_and_postmortem_have_the_same_median(tmp_path, capsys, pause_ns):
    """To the digits that a person is shown: of durations, as records and spans have them, pauses included."""
    clock = ManualClock()
    tracker = PhaseTracker(bridge=None, journal=tmp_path, summary=True, clock=clock)

    @tracker.phase("step")
    def step(work_ns):
        clock.advance(work_ns // 2)
        yield
        clock.advance(work_ns - work_ns // 2)

    with tracker:
        for number in range(_STEPS):
            for _ in step(1_234_567 + 98_765 * number**3):
                clock.advance(pause_ns)
        with tracker.enter_phase("step"):
            clock.advance(10**9)
            stormphase.cli.main(["postmortem", str(tmp_path), "--json"])
            (phase,) = json.loads(capsys.readouterr().out)["ranks"][0]["open"]
    records = read_records(tmp_path, kind="phase")
    header, row = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("phase", "step")))
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", row[header.index("p50")]).groups()
    median_ns = phase["usual"]["median_ns"]
    assert _STEPS == phase["usual"]["count"]
    assert f"{median_ns / _UNITS[unit]:.3g}" == f"{float(number):.3g}"
    assert math.isclose(sorted(each.duration_ns for each in records)[_STEPS // 2], median_ns, rel_tol=0.02)
