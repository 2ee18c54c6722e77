"""Records straight from phases are those that their boundaries tell of."""

from __future__ import annotations

import asyncio
import contextlib

from stormphase._boundary import enter_boundary, exit_boundary
from stormphase._model import PhaseStatus
from stormphase._recording import record_of
from stormphase.stores._phase_records import ended_record, open_record


def test_both_ways_give_the_same_record(lanes, lenient, ended, clock):
    """Of plain phases, failures, retries, pauses, tasks, collectives, late attributes and abandoned ones."""

    async def task():
        with lanes.enter_phase("in task"):
            clock.advance(1)

    lanes.step = 5
    with contextlib.suppress(ValueError), lanes.enter_phase("train", {"epoch": 1}) as train:
        clock.advance(3)
        with lanes.enter_phase("all_reduce", sync=True) as phase:
            phase.set_attribute("late", 1)
            phase.pause()
            clock.advance(4)
            phase.resume()
        asyncio.run(task())
        with lanes.enter_phase("step"):
            clock.advance(5)
            raise ValueError("bad")
    with lanes.retry(train, None):
        pass
    with lenient.enter_phase("outer"):
        lenient.enter_phase("left open")
    assert {PhaseStatus.SUCCEEDED, PhaseStatus.FAILED, PhaseStatus.ABANDONED} == {phase.status for phase in ended}
    for phase in ended:
        assert record_of(exit=exit_boundary(phase), correlation_id="c") == ended_record(
            phase, process=None, correlation_id="c", output=()
        )
        # A store hears what a phase has said when that ends: until then nobody knows.
        assert record_of(enter_boundary(phase), correlation_id="c", output=None) == open_record(
            phase, process=None, correlation_id="c"
        )
