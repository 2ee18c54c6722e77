"""Ranks that Slurm's `srun` starts: by itself, in a batch script, in shells of `salloc`, and after a requeue."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from .conformance import LaunchedPrograms, check_alone, check_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .job import Job
    from .slurm import Slurm

pytestmark = pytest.mark.launchers

RANKS = 3
ON_TWO_NODES = [0, 1, 0]  # the local ranks of three, two of which are on the first node


class TestSrun(LaunchedPrograms):
    """One node, by `srun` alone."""

    launcher = "slurm"

    @pytest.fixture(scope="class")
    @classmethod
    def environment(cls, slurm: Slurm) -> dict[str, str]:
        """Return where the cluster is."""
        return slurm.environment

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return srun, which ends all if one is killed."""
        return ["srun", "--kill-on-bad-exit=1", f"--ntasks={cls.ranks}", *rank]


class TestSrunWithPMI(TestSrun):
    """The same with PMI's variables beside Slurm's, as programs that use MPI are started."""

    launcher = "pmi"

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return srun with Slurm's own process manager."""
        return ["srun", "--mpi=pmi2", "--kill-on-bad-exit=1", f"--ntasks={cls.ranks}", *rank]


def srun(job: Job, label: str, deed: str = "work", *options: str) -> str:
    """Return the line of a script that starts all ranks."""
    return shlex.join(["srun", *options, f"--ntasks={RANKS}", *job.rank(label, RANKS, deed)])


def script_of(job: Job, *lines: str) -> str:
    """Return the path of a shell script with these lines."""
    path = job.folder / "script.sh"
    path.write_text("\n".join(("#!/bin/bash", "set -e", *lines, "")))
    return str(path)


def test_ranks_on_two_nodes_know_their_places(job: Job, slurm: Slurm) -> None:
    """Local ranks count anew on each node, and the nodes are known."""
    job.launch(shlex.split(srun(job, "a", "work", "--nodes=2", "--distribution=block")), environment=slurm.environment)
    check_ranks(job.said("a"), "slurm", RANKS, local_ranks=ON_TWO_NODES)
    assert [0, 0, 1] == [facts["node_rank"] for facts in job.said("a")]


def test_a_killed_rank_that_the_others_outlive_is_named(job: Job, slurm: Slurm) -> None:
    """The journals of all nodes stand in one folder, and postmortem reads them together."""
    command = srun(job, "a", "die_alone", "--nodes=2", "--distribution=block")
    job.launch(shlex.split(command), environment=slurm.environment, check=False)
    check_ranks(job.said("a"), "slurm", RANKS, local_ranks=ON_TWO_NODES)
    found = job.postmortem()
    assert ["clean", "killed", "clean"] == [each["state"] for each in found["ranks"]]
    assert [1] == [suspect["rank"] for suspect in found["suspects"]]


def test_the_steps_of_a_batch_script_are_sessions_and_so_is_its_own_python(job: Job, slurm: Slurm) -> None:
    """Two `srun` are two sessions; a program that the script runs without is alone, before and after."""
    alone = [shlex.join(job.rank(label, 1, "work")) for label in ("before", "after")]
    script = script_of(job, alone[0], srun(job, "first"), srun(job, "second"), alone[1])
    slurm.submit(script, output=job.folder / "batch.log", options=["--wait", f"--ntasks={RANKS}"])
    assert [] == job.refused()
    sessions = {check_ranks(job.said(label), "slurm", RANKS) for label in ("first", "second")}
    assert 2 == len(sessions)
    check_alone([*job.said("before"), *job.said("after")], 2)


def test_two_steps_at_one_time_are_two_sessions(job: Job, slurm: Slurm) -> None:
    """Each of two `srun` that run beside each other in one allocation has its own ranks."""
    lines = [f"{srun(job, label, 'work', '--overlap')} &" for label in ("first", "second")]
    job.launch(["salloc", f"--ntasks={RANKS}", "bash", script_of(job, *lines, "wait")], environment=slurm.environment)
    sessions = {check_ranks(job.said(label), "slurm", RANKS) for label in ("first", "second")}
    assert 2 == len(sessions)


def test_a_requeued_job_is_the_next_attempt(job: Job, slurm: Slurm) -> None:
    """All ranks of the second run are attempt 1 of the session that they were."""
    number = slurm.submit(
        script_of(job, srun(job, "a", "work_when_restarted")),
        output=job.folder / "batch.log",
        options=["--requeue", f"--ntasks={RANKS}"],
    )
    slurm.wait(lambda: len(job.said("a")) == RANKS, "not all ranks began")
    (job.folder / "a" / "failed.by-the-test.json").touch()
    slurm.do("scontrol", "requeue", number)
    # Slurm waits until credentials of the first run are worthless; that it may be at once is said when it is pending.
    slurm.wait(lambda: slurm.do("squeue", "--noheader", "--format=%T").split() == ["PENDING"], "it is not pending")
    slurm.do("scontrol", "update", f"JobId={number}", "StartTime=now")
    slurm.wait(lambda: not slurm.do("squeue", "--noheader"), "the second run did not end")
    assert [] == job.refused()
    session_id = check_ranks(job.said("a"), "slurm", RANKS)
    assert session_id == check_ranks(job.said("a", "again"), "slurm", RANKS, attempt=1)
    found = job.postmortem()
    assert (1, [0]) == (found["attempt"], found["older_attempts"])


@pytest.mark.parametrize(
    "opens",
    [
        pytest.param(["salloc", f"--ntasks={RANKS}"], id="salloc"),
        pytest.param(["srun", f"--ntasks={RANKS}", "--pty", "/bin/sh", "-i"], id="srun --pty"),
    ],
)
def test_an_interactive_shell_starts_ranks_and_programs_that_are_alone(
    opens: list[str], job: Job, slurm: Slurm
) -> None:
    """In a shell on a node `srun` starts ranks as everywhere, each time a session; plain Python is alone."""
    alone = shlex.join(job.rank("alone", 1, "work"))
    seen = slurm.type_in_shell(
        opens, [srun(job, "first", "work", "--overlap"), alone, srun(job, "second", "work", "--overlap"), alone]
    )
    assert [] == job.refused(), seen
    sessions = {check_ranks(job.said(label), "slurm", RANKS) for label in ("first", "second")}
    assert 2 == len(sessions)
    check_alone(job.said("alone"), 2)


def test_a_program_alone_in_a_shell_of_the_submitting_host(job: Job, slurm: Slurm) -> None:
    """`salloc` may run a command where it is: plain Python there is alone, though the job has several tasks."""
    job.launch(["salloc", f"--ntasks={RANKS}", *job.rank("alone", 1, "work")], environment=slurm.environment)
    check_alone(job.said("alone"), 1)
