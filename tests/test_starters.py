"""A program that a rank starts is no rank, and a process that replaces itself goes on as the next attempt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import attrs
import pytest

from stormphase import _starters
from stormphase._process_facts import AncestorProcess, ProcessFacts
from stormphase._rank import detect_rank
from stormphase._starters import Starter

if TYPE_CHECKING:
    from collections.abc import Mapping

LAUNCHERS = {
    "none": {},
    "STORMPHASE_SESSION_ID": {"STORMPHASE_SESSION_ID": "launch-9"},
    "torchrun": {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "j",
    },
    "slurm": {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
    "open_mpi": {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "n1"},
    "hydra": {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
    "lightning": {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
    "horovod": {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"},
}
TELL = (
    "import json; i = tracker.identity; print(json.dumps([i.session_id, i.attempt, i.rank, i.world_size]), flush=True)"
)
CHILD = f"""
import stormphase
with stormphase.PhaseTracker("eval", bridge=None) as tracker:
    {TELL}
"""


@pytest.fixture
def play(tmp_path):
    """Run a program's source with a launcher's variables and return what its trackers said of themselves, in order."""
    (tmp_path / "child.py").write_text(CHILD)

    def play(source: str, environ: Mapping[str, str] = {}, *, journal: bool = False) -> list[list]:
        (tmp_path / "main.py").write_text(source)
        inherited = {name: value for name, value in os.environ.items() if name != _starters.VARIABLE}
        place = {"STORMPHASE_DIR": str(tmp_path / "runs")} if journal else {}
        child = subprocess.run(
            [sys.executable, "main.py"],
            cwd=tmp_path,
            env={**inherited, **environ, **place},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert (0, "") == (child.returncode, child.stderr)
        return [json.loads(line) for line in child.stdout.splitlines()]

    return play


@pytest.mark.parametrize("journal", [False, True], ids=["no-journal", "journal"])
@pytest.mark.parametrize("environ", ["", "env=tracker.environment()", "env=dict(os.environ)"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_program_that_a_rank_starts_is_a_session_of_its_own(play, launcher, environ, journal):
    """Rank 0 of 1 beside the rank that started it, whatever variables it has inherited."""
    rank, child = play(
        "import os, subprocess, sys, stormphase\n"
        "with stormphase.PhaseTracker('train', bridge=None) as tracker:\n"
        f"    {TELL}\n"
        f"    subprocess.run([sys.executable, 'child.py'], check=True, {environ})\n",
        LAUNCHERS[launcher],
        journal=journal,
    )
    assert [0, 0, 1] == child[1:]
    assert rank[0] != child[0]
    assert child[0].startswith(rank[0] + ".")


@pytest.mark.parametrize("launcher", ["none", "torchrun", "hydra"])
def test_a_program_of_a_program_is_no_rank_either(play, launcher):
    """However far below a rank; nor is the second tracker of such a program, nor what it replaces itself by."""
    start = "with stormphase.PhaseTracker('x', bridge=None) as tracker:\n"
    rank, first, second, replaced, below = play(
        "import os, subprocess, sys, stormphase\n"
        "generation = int(os.environ.get('GENERATION', '0'))\n"
        f"{start}"
        f"    {TELL}\n"
        "    if generation == 0:\n"
        "        subprocess.run([sys.executable, *sys.argv], check=True, env={**os.environ, 'GENERATION': '1'})\n"
        "    if generation == 1:\n"
        f"        {start}"
        f"            {TELL}\n"
        "        os.environ['GENERATION'] = '2'\n"
        "        os.execv(sys.executable, [sys.executable, *sys.argv])\n"
        "    if generation == 2:\n"
        "        subprocess.run([sys.executable, 'child.py'], check=True)\n",
        LAUNCHERS[launcher],
        journal=True,
    )
    assert [[0, 1]] * 4 == [each[2:] for each in (first, second, replaced, below)]
    assert first[0].startswith(rank[0] + ".")
    assert [f"{first[0]}.2", 0] == second[:2]
    assert [first[0], 1] == replaced[:2]
    assert below[0].startswith(first[0] + ".")


@pytest.mark.parametrize("launcher", ["torchrun", "slurm", "hydra"])
def test_a_program_that_is_started_after_the_tracker_has_stopped_is_no_rank_either(play, launcher):
    """What evaluates once training is over."""
    rank, child = play(
        "import subprocess, sys, stormphase\n"
        "with stormphase.PhaseTracker('train', bridge=None) as tracker:\n"
        f"    {TELL}\n"
        "subprocess.run([sys.executable, 'child.py'], check=True)\n",
        LAUNCHERS[launcher],
        journal=True,
    )
    assert [1, 2] == rank[2:]
    assert [0, 0, 1] == child[1:]
    assert child[0].startswith(rank[0] + ".")


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
@pytest.mark.parametrize("options", ["", ", session_id='mine'"], ids=["found", "given"])
@pytest.mark.parametrize("launcher", ["none", "torchrun"])
def test_a_tracker_of_a_workers_own_is_a_session_of_its_own(play, launcher, options, method):
    """A module that starts one is imported by the worker, or the forked worker starts one itself."""
    start = f"tracker = stormphase.PhaseTracker('x', bridge=None{options}).start()\n"
    rank, child = play(
        "import multiprocessing, stormphase\n"
        "def work():\n"
        "    global tracker\n"
        + (f"    {start}" if method == "fork" else "")
        + f"    {TELL}\n"
        + start
        + "if __name__ == '__main__':\n"
        f"    {TELL}\n"
        f"    worker = multiprocessing.get_context('{method}').Process(target=work)\n"
        "    worker.start(); worker.join(); tracker.stop()\n"
        "    assert worker.exitcode == 0\n",
        LAUNCHERS[launcher],
        journal=True,
    )
    assert [0, 0, 1] == child[1:]
    assert child[0].startswith(rank[0] + ".")


def test_ranks_that_a_tracked_driver_launches_are_ranks(play):
    """Between the driver and them there was a launcher: they have another rank, or another job."""
    said = play(
        "import os, subprocess, sys, stormphase\n"
        "with stormphase.PhaseTracker('driver', bridge=None) as tracker:\n"
        f"    {TELL}\n"
        "    for rank in '01':\n"
        "        own = {'PMI_RANK': rank, 'PMI_SIZE': '2', 'MPI_LOCALRANKID': rank, 'MPI_LOCALNRANKS': '2'}\n"
        "        subprocess.run([sys.executable, 'child.py'], check=True, env={**os.environ, **own})\n"
    )
    assert [[0, 0, 1], [0, 0, 2], [0, 1, 2]] == [each[1:] for each in said]
    assert said[1][0] == said[2][0] != said[0][0]


def test_a_program_of_a_rank_that_was_given_its_place_needs_to_be_given_none(play):
    """The environment speaks of eight ranks and names none: the rank knew, and what it starts is none."""
    said = play(
        "import subprocess, sys, stormphase\n"
        "with stormphase.PhaseTracker('train', session_id='s', rank=3, world_size=8, bridge=None) as tracker:\n"
        f"    {TELL}\n"
        "    subprocess.run([sys.executable, 'child.py'], check=True)\n",
        {"WORLD_SIZE": "8"},
    )
    assert [[0, 3, 8], [0, 0, 1]] == [each[1:] for each in said]


def test_a_program_may_name_its_own_session(play):
    """By argument or by a variable of its own: only what it has inherited says nothing."""
    said = play(
        "import os, subprocess, sys, stormphase\n"
        "with stormphase.PhaseTracker('train', bridge=None) as tracker:\n"
        "    for session in ('eval-1', 'launch-9'):\n"
        "        own = {'STORMPHASE_SESSION_ID': session}\n"
        "        subprocess.run([sys.executable, 'child.py'], check=True, env={**os.environ, **own})\n",
        {**LAUNCHERS["torchrun"], "STORMPHASE_SESSION_ID": "launch-9"},
    )
    assert ["eval-1", 0, 0, 1] == said[0]
    assert said[1][0].startswith("launch-9.")


@pytest.mark.parametrize("journal", [False, True], ids=["no-journal", "journal"])
@pytest.mark.parametrize("launcher", ["none", "STORMPHASE_SESSION_ID", "torchrun", "slurm", "hydra"])
def test_a_process_that_replaces_itself_is_the_next_attempt(play, launcher, journal):
    """As a restart after any death; it is no rival of itself."""
    said = play(
        "import os, sys, stormphase\n"
        "tracker = stormphase.PhaseTracker('x', bridge=None).start()\n"
        "tracker.enter_phase('train')\n"
        f"{TELL}\n"
        "generation = int(os.environ.get('GENERATION', '0'))\n"
        "if generation < 2:\n"
        "    os.environ['GENERATION'] = str(generation + 1)\n"
        "    os.execv(sys.executable, [sys.executable, *sys.argv])\n",
        LAUNCHERS[launcher],
        journal=journal,
    )
    assert [0, 1, 2] == [attempt for _, attempt, _, _ in said]
    assert 1 == len({session for session, _, _, _ in said})


@pytest.mark.parametrize("journal", [False, True], ids=["no-journal", "journal"])
def test_a_session_that_is_started_again_in_its_process_is_its_next_attempt(play, journal):
    """Under the id that the caller gives; one at a time."""
    said = play(
        "import stormphase\n"
        "for _ in range(3):\n"
        "    with stormphase.PhaseTracker(session_id='run-1', bridge=None) as tracker:\n"
        f"        {TELL}\n",
        journal=journal,
    )
    assert [["run-1", attempt, 0, 1] for attempt in range(3)] == said


def test_nothing_stays_in_the_environment_of_a_program(make_tracker):
    """The mark is there while a tracker runs, and what was there before is put back."""
    assert _starters.VARIABLE not in os.environ
    with make_tracker(session_id="one") as one, make_tracker(session_id="two") as two:
        assert "one" == Starter.of(os.environ).session_id
        one.stop()
        assert "one" == Starter.of(os.environ).session_id
        assert two.environment()[_starters.VARIABLE] == os.environ[_starters.VARIABLE]
    assert _starters.VARIABLE not in os.environ


def test_the_mark_is_that_of_the_session_that_runs(make_tracker):
    """And not of one that the process had before, of which what it starts now is no program."""
    for name in ("one", "two"):
        with make_tracker(session_id=name):
            assert name == Starter.of(os.environ).session_id


@pytest.mark.parametrize(
    "text", ["", "a:b", "x:1:0:1:-:0:s:-:1", "1:1:0:1:-:0:-:-:1", "1:1:0:1:-:" + "9" * 30 + ":s:-:1"]
)
def test_a_mark_that_cannot_be_read_is_none(text):
    """Another release's, or a user's own."""
    assert None is Starter.of({_starters.VARIABLE: text})


def test_a_mark_is_read_as_it_was_written():
    """With whatever was unknown."""
    for job, started in ((None, None), ("ab12", "77")):
        starter = Starter(7, started, 3, 8, job, 2, "s-1", None)
        assert starter == Starter.of({_starters.VARIABLE: starter.to_text()})


def test_a_rank_that_lightning_starts_is_of_the_session_that_its_first_rank_has_begun():
    """Its first rank begins one before it knows of others."""
    first = AncestorProcess(4_000, "1", frozenset({"PATH"}))
    mark = Starter(4_000, "1", 0, 1, None, 0, "begun-before", None)
    process = ProcessFacts(host="h", pid=4_001, ancestors=(first,), boot_id="b")
    environ = {**LAUNCHERS["lightning"], _starters.VARIABLE: mark.to_text()}
    found = detect_rank(environ, process=process)
    assert ("begun-before", 0, 1, 2) == (found.session_id, found.attempt, found.rank, found.world_size)
    program = detect_rank({**environ, "LOCAL_RANK": "0"}, process=attrs.evolve(process, this=None))
    assert (0, 1) == (program.rank, program.world_size)
