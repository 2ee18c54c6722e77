"""One launch is one attempt on all its ranks, with real processes, in journals and in a database."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

RANK = """
import json, os, sys, stormphase
from stormphase.stores import SqliteStore
where, ending = sys.argv[1:3]
place = {"journal": sys.argv[3]} if where == "journal" else {"store": SqliteStore(sys.argv[3])}
if ending == "late":
    sys.stdin.read()  # It is there, and has not begun.
try:
    with stormphase.PhaseTracker("x", bridge=None, **place) as tracker:
        print(json.dumps([tracker.identity.rank, tracker.identity.attempt]), flush=True)
        with tracker.enter_phase("step"):
            if ending == "kill":
                tracker.flush(10)
                os.kill(os.getpid(), 9)
            if ending == "fail":
                raise ValueError("bad config")
except ValueError:
    pass
"""


@pytest.fixture(params=["journal", "store"])
def launch(tmp_path, request):
    """Start a rank of one launch by this process, and return its process; the attempts are kept here or there."""
    (tmp_path / "rank.py").write_text(RANK)
    place = tmp_path / ("runs" if request.param == "journal" else "runs.db")
    started = []

    def launch(rank: int, ending: str, **environ: str) -> subprocess.Popen[str]:
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "3",
            "LOCAL_WORLD_SIZE": "3",
            "STORMPHASE_SESSION_ID": "one-launch",
            "TMPDIR": str(tmp_path),
            **environ,
        }
        started.append(
            subprocess.Popen(
                [sys.executable, str(tmp_path / "rank.py"), request.param, ending, str(place)],
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield launch
    for process in started:
        process.communicate()


def attempt(process: subprocess.Popen[str]) -> int:
    """Return which attempt a rank has begun, once it has ended."""
    return json.loads(process.communicate()[0])[1]


@pytest.mark.parametrize("ending", ["fail", "kill", "stop"])
def test_ranks_that_begin_after_the_first_has_died_are_of_its_attempt(launch, ending):
    """It fails at once, and they import for longer."""
    first = launch(0, ending)
    late = launch(1, "late")
    assert 0 == attempt(first)
    assert [0, 0] == [attempt(late), attempt(launch(2, "fail"))]


def test_a_restart_by_the_same_launcher_is_the_next_attempt(launch):
    """Each rank that has begun the one before begins the next, and a rank that had not joins them."""
    assert [0, 0] == [attempt(launch(rank, "fail")) for rank in (0, 1)]
    assert [1, 1] == [attempt(launch(rank, "fail")) for rank in (0, 1)]


def test_a_restart_that_the_launcher_counts_is_the_next_attempt(launch):
    """Also for a rank that had not begun the one before."""
    assert 0 == attempt(launch(0, "fail", TORCHELASTIC_RUN_ID="x", TORCHELASTIC_RESTART_COUNT="0"))
    again = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"}
    assert [1, 1, 1] == [attempt(launch(rank, "fail", **again)) for rank in (2, 0, 1)]


def test_agents_that_count_alone_have_one_attempt(launch):
    """Only one of two agents has seen a failure; with a place that counts, both ranks are in its second attempt."""
    agents = {"TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
    runs = [[(0, "0"), (1, "0")], [(0, "1"), (1, "0")], [(1, "0"), (0, "2")]]
    found = [
        [attempt(launch(rank, "fail", TORCHELASTIC_RESTART_COUNT=count, **agents)) for rank, count in run]
        for run in runs
    ]
    assert [[0, 0], [1, 1], [2, 2]] == found
