"""Launchers within Slurm: `mpirun` in an allocation, and one torchrun on each node, started by `srun`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from .conformance import Launched, LaunchedPrograms, check_ranks
from .job import free_ports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .job import Job
    from .slurm import Slurm

pytestmark = pytest.mark.launchers

RANKS = 3
MPIRUN = {
    "open_mpi": ["mpirun.openmpi", "--allow-run-as-root", "-n", str(RANKS)],
    "pmi": ["mpirun.mpich", "-n", str(RANKS)],
}


class WithinSlurm:
    """Ranks under a launcher that Slurm has started."""

    @pytest.fixture(scope="class")
    @classmethod
    def environment(cls, slurm: Slurm) -> dict[str, str]:
        """Return where the cluster is."""
        return slurm.environment


class TestOpenMPI(WithinSlurm, LaunchedPrograms):
    """Open MPI, which asks Slurm where it may run."""

    launcher = "open_mpi"
    ranks = RANKS

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return mpirun in an allocation."""
        return ["salloc", "--quiet", f"--ntasks={cls.ranks}", *MPIRUN["open_mpi"], *rank]


class TestMPICH(WithinSlurm, LaunchedPrograms):
    """MPICH, whose proxies `srun` starts."""

    launcher = "pmi"
    ranks = RANKS

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return mpirun in an allocation."""
        return ["salloc", "--quiet", f"--ntasks={cls.ranks}", *MPIRUN["pmi"], *rank]


class TestTorchrun(WithinSlurm, Launched):
    """An agent on each of two nodes, without a run id."""

    launcher = "torchrun"
    ranks = 2
    local_ranks = (0, 0)

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return srun, which starts the agents."""
        (port,) = free_ports(1)
        agent = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nnodes=2", "--nproc-per-node=1"]
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
        return ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", *agent, *meeting, *rank]


@pytest.mark.parametrize("launcher", MPIRUN)
def test_two_launches_in_one_allocation_are_two_sessions(launcher: str, job: Job, slurm: Slurm) -> None:
    """A script that calls `mpirun` twice has two sessions."""
    launches = [[*MPIRUN[launcher], *job.rank(label, RANKS, "work")] for label in ("first", "second")]
    script = " && ".join(shlex.join(launch) for launch in launches)
    job.launch(["salloc", f"--ntasks={RANKS}", "bash", "-c", script], environment=slurm.environment)
    sessions = {check_ranks(job.said(label), launcher, RANKS) for label in ("first", "second")}
    assert 2 == len(sessions)
