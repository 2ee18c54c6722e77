"""Ranks that torchrun starts: one agent, two agents, and restarts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from .conformance import LaunchedPrograms, check_ranks
from .job import free_ports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .job import Job

pytestmark = pytest.mark.launchers

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--no-python"]


class TestTorchrun(LaunchedPrograms):
    """One agent, with a restart allowed that nobody needs."""

    launcher = "torchrun"
    ranks = 2

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return torchrun on one host."""
        return [*TORCHRUN, "--standalone", f"--nproc-per-node={cls.ranks}", *rank]


def two_agents(job: Job, rank: Sequence[str], *options: str, run_id: str = "run-7") -> list[list[str]]:
    """Return the commands of two agents that find each other, as two hosts have one each."""
    (port,) = free_ports(1)
    return [
        [
            *TORCHRUN,
            "--nnodes=2",
            f"--node-rank={node}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{port}",
            f"--rdzv-id={run_id}",
            f"--rdzv-conf=is_host={node == 0}",
            *options,
            *rank,
        ]
        for node in (0, 1)
    ]


def test_ranks_of_two_agents_know_who_they_are_and_two_launches_are_two_sessions(job: Job) -> None:
    """Two hosts with a rank each are one session; each launch has a run id, as torchrun's documentation asks for."""
    sessions = set()
    for label in ("first", "second"):
        job.launch_together(two_agents(job, job.rank(label, 2, "work"), run_id=f"run-{label}"))
        sessions.add(check_ranks(job.said(label), "torchrun", 2, local_ranks=[0, 0]))
    assert 2 == len(sessions)


@pytest.mark.parametrize(
    ("agents", "journal"), [(1, True), (2, True), (2, False)], ids=["1 agent", "2 agents", "2 agents, no journal"]
)
def test_a_restart_is_the_next_attempt_of_all_ranks(agents: int, journal: bool, job: Job) -> None:
    """One rank fails, torchrun starts all of them again: attempt 1 on each, though agents count for themselves."""
    rank = job.rank("a", 2, "fail_once")
    if agents == 1:
        commands = [[*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=1", *rank]]
    else:
        commands = two_agents(job, rank, "--max-restarts=1")
    job.launch_together(commands, environment=None if journal else {"PLANTED_WITHOUT_JOURNAL": "1"})
    assert [] == job.refused()
    local_ranks = [0, 1] if agents == 1 else [0, 0]
    session_id = check_ranks(job.said("a"), "torchrun", 2, local_ranks=local_ranks)
    assert session_id == check_ranks(job.said("a", "again"), "torchrun", 2, attempt=1, local_ranks=local_ranks)
