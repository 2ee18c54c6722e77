"""Where a process ended: the phase in which that arose, and not what was merely suspended meanwhile."""

# ruff: noqa: PT012 - phases nest in blocks that fail

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from stormphase.analysis._places import place_of
from stormphase.analysis._ranks import ranks_of, report_process
from stormphase.journal import read_directory
from stormphase.records import read_records

if TYPE_CHECKING:
    from pathlib import Path

import jobs

PROGRAM = """
import os, signal, sys
import stormphase
how, shape = sys.argv[1:]

@stormphase.phase("batches")
def batches():
    for i in range(3):
        with stormphase.phase("load"):
            pass
        yield i

def work(i):
    if i < 2:
        return
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    raise {"exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "raise": RuntimeError("loss is NaN")}[how]

with stormphase.PhaseTracker(session_id="s", journal="runs", bridge=None, stop_on_sigterm=True) as tracker:
    if shape == "outermost":
        for i in batches():
            with tracker.enter_phase("step"), tracker.enter_phase("backward"):
                work(i)
    elif shape == "nothing else open":
        with tracker.enter_phase("train"):
            for i in batches():
                work(i)
    elif shape == "kept by a name":
        with tracker.enter_phase("train"):
            found = batches()
            for i in found:
                with tracker.enter_phase("step"):
                    work(i)
    else:
        with tracker.enter_phase("train"):
            for i in batches():
                with tracker.enter_phase("step"), tracker.enter_phase("backward"):
                    work(i)
"""
ENDS = {"kill": -signal.SIGKILL, "term": -signal.SIGTERM, "exit": 3, "interrupt": -signal.SIGINT, "raise": 1}
SHAPES = {
    "around the step": ("train", "step", "backward"),
    "outermost": ("step", "backward"),
    "nothing else open": ("train",),
    "kept by a name": ("train", "step"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", ENDS)
def test_a_suspended_generator_is_not_where_a_process_ended(tmp_path: Path, how: str, shape: str) -> None:
    """It is closed last of all, or is open innermost; and where it ended is what its records name, too."""
    command = [sys.executable, "-c", PROGRAM, how, shape]
    child = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=100, check=False)
    assert ENDS[how] == child.returncode, child.stderr
    (image,) = read_directory(tmp_path / "runs")
    (rank,) = ranks_of([report_process(image, jobs.VERDICTS["dead"])])
    phase = place_of(rank).phase
    assert phase is not None
    assert SHAPES[shape] == phase.path
    (found,) = [record for record in read_records(tmp_path / "runs") if record.kind == "rank"]
    assert found.root_cause_path in ((SHAPES[shape],) if how in ("kill", "raise", "exit") else (SHAPES[shape], None))


def test_what_another_thread_raised_is_where_the_process_ended(make_tracker: Any, tmp_path: Path) -> None:
    """The main thread's phase only waited for it."""
    from concurrent.futures import ThreadPoolExecutor

    def step() -> None:
        with tracker.enter_phase("step"):
            raise ValueError("x")

    tracker = make_tracker(session_id="s", journal=tmp_path)
    with pytest.raises(ValueError, match="x"), tracker, tracker.enter_phase("process"), ThreadPoolExecutor(1) as pool:
        pool.submit(step).result()
    (image,) = read_directory(tmp_path)
    report = report_process(image, jobs.VERDICTS["dead"])
    assert [("step",)] == [phase.path for phase in report.unwound]


def test_what_arose_outside_of_all_phases_arose_in_none(make_tracker: Any, tmp_path: Path) -> None:
    """Whatever failed, and was handled, a moment before."""
    tracker = make_tracker(session_id="s", journal=tmp_path)
    with pytest.raises(KeyError), tracker:
        try:
            with tracker.enter_phase("step"):
                raise ValueError("x")
        except ValueError:
            raise KeyError("y") from None
    (image,) = read_directory(tmp_path)
    assert () == report_process(image, jobs.VERDICTS["dead"]).unwound
    # A journal of 0.1.0 does not say where it arose.
    old = attrs.evolve(image, end_note=attrs.evolve(image.end_note, root_cause_scope_id=None))
    assert [("step",)] == [phase.path for phase in report_process(old, jobs.VERDICTS["dead"]).unwound]
