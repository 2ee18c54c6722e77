"""A spawned worker whose phases go nowhere says so once, and how to mend it; other programs hear nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import contextlib, multiprocessing, sys
import stormphase

tracker = stormphase.PhaseTracker("job", bridge=None, session_id="s")

@stormphase.phase("ambient")
def ambient(number):
    return number

@tracker.phase("decorated")
def decorated(number):
    return number

def block(number):
    with stormphase.phase("block", {"number": number}):
        return number

def entered(number):
    with tracker.enter_phase("entered"):
        return number

def token(number):
    tracker.exit(tracker.enter("token"))
    return number

def worked(carrier):
    found = []
    with stormphase.worker(carrier, sinks=[found.append]) as worker:
        for function in (ambient, decorated, block, entered, token):
            function(0)
        worker.flush()
    return [boundary.path for boundary in found if boundary.event_type == "phase_exit"]

if __name__ == "__main__":
    method, way, *names = sys.argv[1:]
    context = multiprocessing.get_context(method)
    with contextlib.ExitStack() as stack:
        if way == "stopped":
            with tracker:
                pass
        elif way == "tracked":
            stack.enter_context(tracker)
        pool = stack.enter_context(context.Pool(1))
        for name in names:
            if name == "worked":
                print(pool.apply(worked, (tracker.carrier(),)))
            else:
                print(pool.map(globals()[name], [1, 2, 3]))
        pool.close()
        pool.join()
"""
FUNCTIONS = ("ambient", "decorated", "block", "entered", "token")
TOLD = "the phases of this worker process go nowhere"


@pytest.fixture
def run(tmp_path: Path):
    """Run the program as a file, as spawned processes need it; returns what it printed, and what was logged."""
    (tmp_path / "job.py").write_text(PROGRAM)

    def run(*arguments: str) -> tuple[list[str], list[str]]:
        child = subprocess.run(
            [sys.executable, "job.py", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert 0 == child.returncode, child.stderr
        return child.stdout.splitlines(), child.stderr.splitlines()

    return run


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_each_way_to_a_phase_works_and_is_told_once(run, method):
    """One warning a process, however many ways it uses, and the fix is in it."""
    shown, (told,) = run(method, "tracked", *FUNCTIONS)
    assert ["[1, 2, 3]"] * len(FUNCTIONS) == shown
    assert TOLD in told
    assert "with stormphase.worker(carrier):" in told


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_way_tells_it(run, name):
    """Also the one that is the first of its process."""
    assert TOLD in "".join(run("spawn", "tracked", name)[1])


@pytest.mark.parametrize("way", ["untracked", "stopped"])
def test_where_no_tracker_runs_nothing_is_told(run, way):
    """A library's phases cost nothing, and say nothing, in workers as elsewhere."""
    assert (["[1, 2, 3]"] * 2, []) == run("spawn", way, "ambient", "block")


def test_a_worker_s_phases_go_to_its_session(run):
    """Those of a module's own tracker, which is made anew there, too; and nothing is told."""
    (shown,), told = run("spawn", "tracked", "worked")
    assert str([("ambient",), ("decorated",), ("block",), ("entered",), ("token",)]) == shown
    assert [] == told


def test_a_forked_worker_has_the_tracker(run):
    """So there is nothing to tell."""
    assert [] == run("fork", "tracked", *FUNCTIONS)[1]


def test_what_multiprocessing_hands_down_is_there():
    """The one private name of another library's that this needs: without it nothing is told, and this test fails."""
    import multiprocessing.process

    child = multiprocessing.process.BaseProcess.__init__
    assert "_config" in vars(multiprocessing.current_process())
    assert "_config" in child.__code__.co_names


def test_a_tracker_leaves_no_mark(make_tracker):
    """Once it has stopped, processes that are spawned are told of none."""
    import multiprocessing

    before = dict(multiprocessing.current_process()._config)
    with make_tracker():
        assert before != multiprocessing.current_process()._config
    assert before == multiprocessing.current_process()._config
