"""Which journals a postmortem is about: ranks of the attempt before that belong to this one, and no rank's programs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import RunPython

RANK = """
import os, sys, stormphase
rank, attempt = int(sys.argv[2]), int(sys.argv[3])
size = int(sys.argv[4])
try:
    with stormphase.PhaseTracker(session_id="job-1", attempt=attempt, rank=rank, world_size=size, journal=sys.argv[1]):
        if rank == 0:
            raise ValueError("bad config")
except ValueError:
    pass
"""


@pytest.fixture
def begin(run_python: RunPython, runs: Path) -> Callable[..., None]:
    """Let a rank begin an attempt and end; rank 0 fails."""

    def begin(rank: int, attempt: int, world_size: int = 2) -> None:
        run_python(RANK, str(runs), str(rank), str(attempt), str(world_size))

    return begin


def test_a_rank_that_died_before_the_others_began_is_shown_with_them(begin: Any, command_json: Any) -> None:
    """No rank has begun both attempts: it was one launch, of which the first half died."""
    begin(0, 0)
    begin(1, 1)
    _, found = command_json()
    assert (1, [], [0]) == (found["attempt"], found["absent_ranks"], found["ranks_of_attempt_before"])
    assert [(0, "exception"), (1, "clean")] == [(each["rank"], each["state"]) for each in found["ranks"]]
    assert 0 == found["suspects"][0]["rank"]


def test_a_rank_that_has_not_come_back_is_absent(begin: Any, command_json: Any) -> None:
    """After a restart: what it was before has ended with the attempt before."""
    for rank, attempt in ((0, 0), (1, 0), (1, 1)):
        begin(rank, attempt)
    _, found = command_json()
    assert ([0], []) == (found["absent_ranks"], found["ranks_of_attempt_before"])


def test_a_rank_that_lives_on_is_shown_with_the_others(
    begin: Any, command_json: Any, make_tracker: Any, runs: Path
) -> None:
    """It was not restarted with them, and is there."""
    begin(0, 0)
    make_tracker(session_id="job-1", attempt=0, rank=1, world_size=2, journal=runs).start()
    begin(0, 1)
    _, found = command_json()
    assert ([], [1]) == (found["absent_ranks"], found["ranks_of_attempt_before"])
    assert "running" == found["ranks"][1]["state"]


def test_people_learn_of_which_attempt_a_rank_is(begin: Any, command: Any) -> None:
    """One line under the rest."""
    begin(0, 0)
    begin(1, 1)
    assert "of the attempt before: 0" in command("postmortem")[1]


def test_a_job_of_another_size_lends_no_rank(begin: Any, command_json: Any) -> None:
    """It is another job."""
    begin(0, 0, 3)
    begin(1, 1)
    assert [] == command_json()[1]["ranks_of_attempt_before"]


def test_a_program_that_a_rank_has_started_is_not_the_newest_session(
    make_tracker: Any, run_python: RunPython, runs: Path, command_json: Any
) -> None:
    """It is asked for by name."""
    source = "import stormphase, sys\nwith stormphase.PhaseTracker('eval', journal=sys.argv[1]): pass"
    with make_tracker(session_id="job-1", journal=runs):
        run_python(source, str(runs), env=dict(os.environ))
    _, found = command_json()
    (program,) = found["other_sessions"]
    assert ("job-1", True) == (found["session_id"], program.startswith("job-1."))
