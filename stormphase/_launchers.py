"""What launchers say of a process, by the variables that they set: its rank, its place on its host, and its job.

Where these variables come from, and what is wrong with some of them:

* torchrun: `torch.distributed.run`. The run id is a UUID of torchrun's own on a single host, "none" where older ones
  were given none, and else the user's, who may reuse it: so on one host the agent's log directory is added, which
  torchrun makes anew for each launch and keeps over restarts. Where srun started it on several hosts without a run id,
  srun's step is the job; which agent became which group, torchrun decides anew, so only their number is compared.
* Open MPI: `PMIX_NAMESPACE` has mpirun's host and pid, which come again: so on one host its server's port is added.
  `OMPI_COMM_WORLD_NODE_RANK` is the process's rank on its node over all jobs, and not the node's.
* PMI: MPICH's and Intel's Hydra, Cray's PALS. Hydra gives no id of the job.
* SLURM sets `SLURM_PROCID=0` and `SLURM_NTASKS` in batch scripts and allocations too, where srun has started nothing:
  only a step's id tells (`SLURM_STEP_ID`, up to `SLURM_MAX_NORMAL_STEP_ID`), and an interactive step (`srun --pty`)
  may see many launches.
* Ray: `RAY_JOB_ID` is all f in the workers, and counts from 1 in every cluster; Ray's own session name is unique. A
  worker inherits the environment of its raylet, so what srun or mpirun told that one is no word on the worker.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._environ import first, first_name, integer, value
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._process_facts import PeerFacts, ProcessFacts

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Above this, SLURM numbers what is no step of srun's: batch scripts, interactive steps, ssh sessions.
_SLURM_MAX_NORMAL_STEP_ID: Final = 0xFFFFFFF0


@attrs.frozen
class _Names:
    """Where a launcher says what; of several names the first that is set counts."""

    launcher: str
    rank: str
    world_size: tuple[str, ...]
    local_rank: tuple[str, ...] = ()
    local_world_size: tuple[str, ...] = ()
    node_rank: tuple[str, ...] = ()


@attrs.frozen
class Launch:
    """What one launcher says of this process.

    Attributes:
        launcher: its name.
        rank: this process among all.
        world_size: how many there are.
        local_rank: this process among those of its host.
        local_world_size: how many of them are on this host, or None.
        node_rank: this host among the hosts, or None.
        job_id: what is the same on all hosts, or None.
        is_job_id_unique: whether no other launch can have that.
        host_token: what is the same on all ranks of this host, and on no other launch's, or None.
        rank_variable: what is set for ranks and not for the process that launched this host's, or None.
        attempt: how often the launch was restarted with the same job id.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int = 0
    local_world_size: int | None = None
    node_rank: int | None = None
    job_id: str | None = None
    is_job_id_unique: bool = True
    host_token: str | None = None
    rank_variable: str | None = None
    attempt: int = 0

    @property
    def is_on_one_host(self) -> bool:
        """Whether all ranks are known to be on this host."""
        return self.local_world_size == self.world_size


SINGLE: Final = Launch("single", rank=0, world_size=1, local_world_size=1)

_TORCHRUN: Final = _Names(
    "torchrun", "RANK", ("WORLD_SIZE",), ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",), ("GROUP_RANK", "NODE_RANK")
)
_RAY: Final = attrs.evolve(_TORCHRUN, launcher="ray")
_OPEN_MPI: Final = _Names(
    "open_mpi",
    "OMPI_COMM_WORLD_RANK",
    ("OMPI_COMM_WORLD_SIZE",),
    ("OMPI_COMM_WORLD_LOCAL_RANK",),
    ("OMPI_COMM_WORLD_LOCAL_SIZE",),
)
_PMI: Final = _Names(
    "pmi",
    "PMI_RANK",
    ("PMI_SIZE",),
    ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID"),
    ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    ("PALS_NODEID",),
)
_SLURM: Final = _Names(
    "slurm",
    "SLURM_PROCID",
    ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"),
    ("SLURM_LOCALID",),
    (),
    ("SLURM_NODEID",),
)
_JAX: Final = _Names("jax", "JAX_PROCESS_ID", ("JAX_NUM_PROCESSES",))


def launched(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    """Return what the innermost launcher says, or None if there is none."""
    if _is_ray_worker(environ):
        return _ray(environ, process)
    readers = (_torchrun, _open_mpi, _pmi, _slurm, _jax)
    launch: Launch | None = None
    for reader in readers:
        if launch is None:
            launch = reader(environ, process)
        elif launch.job_id is None and launch.host_token is None:
            # Scripts copy the ranks of srun or mpirun into other variables: who says the same may know the job's id.
            with contextlib.suppress(ConfigurationError):
                launch = _with_job_of(launch, reader(environ, process))
    if launch is None and value(environ, "PRTE_LAUNCHED") is not None:
        raise ConfigurationError(
            "prterun sets PMIX_RANK, and nothing that says how many ranks there are.",
            setting="PMIX_RANK",
            fix="Give rank and world_size to the tracker.",
        )
    return launch


def restarts(environ: Mapping[str, str]) -> int:
    """Return a number that grows with each restart of a job, by torchrun or by SLURM, and never comes again.

    torchrun counts from 0 again when SLURM requeues it, at most to `TORCHELASTIC_MAX_RESTARTS`: numbers of restarts
    that were not needed are left out.
    """
    requeued, restarted = (
        integer(environ, "SLURM_RESTART_COUNT") or 0,
        integer(environ, "TORCHELASTIC_RESTART_COUNT") or 0,
    )
    return requeued * ((integer(environ, "TORCHELASTIC_MAX_RESTARTS") or 0) + 1) + restarted


def _with_job_of(launch: Launch, other: Launch | None) -> Launch:
    if other is None or (other.rank, other.world_size) != (launch.rank, launch.world_size):
        return launch
    return attrs.evolve(other, launcher=launch.launcher)


def _torchrun(environ: Mapping[str, str], _: ProcessFacts) -> Launch | None:
    launch = _read(environ, _TORCHRUN)
    if launch is None:
        return None
    run_id = value(environ, "TORCHELASTIC_RUN_ID")
    # .../<run id>_<random>/attempt_<n>/<local rank>/error.json
    agent_directory = (value(environ, "TORCHELASTIC_ERROR_FILE") or "").rpartition("attempt_")[0]
    return attrs.evolve(
        launch,
        job_id=_step_of_agents(environ) if run_id == "none" else run_id,
        is_job_id_unique=run_id is not None and _UUID.fullmatch(run_id) is not None,
        host_token=agent_directory or None,
        attempt=integer(environ, "TORCHELASTIC_RESTART_COUNT") or 0,
    )


def _step_of_agents(environ: Mapping[str, str]) -> str | None:
    """Return the id of the step in which srun started torchrun's agents, one on each of several hosts, or None."""
    with contextlib.suppress(ConfigurationError):
        hosts, tasks = integer(environ, "GROUP_WORLD_SIZE"), integer(environ, *_SLURM.world_size)
        # An elastic launch may go on with fewer hosts than it had.
        if hosts is not None and tasks is not None and 1 < hosts <= tasks:
            return _slurm_step(environ)
    return None


def _open_mpi(environ: Mapping[str, str], _: ProcessFacts) -> Launch | None:
    launch = _read(environ, _OPEN_MPI)
    if launch is None:
        return None
    server = ("PMIX_SERVER_URI41", "PMIX_SERVER_URI4", "PMIX_SERVER_URI3", "PMIX_SERVER_URI2", "PMIX_SERVER_URI21")
    return attrs.evolve(
        launch,
        job_id=first(environ, ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid")),
        is_job_id_unique=False,
        host_token=first(environ, ("OMPI_MCA_orte_hnp_uri", *server)),
    )


def _pmi(environ: Mapping[str, str], _: ProcessFacts) -> Launch | None:
    launch = _read(environ, _PMI)
    if launch is None:
        return None
    step = _slurm_step(environ)
    if step is not None:
        return attrs.evolve(launch, job_id=step, attempt=_slurm_restarts(environ))
    return attrs.evolve(launch, job_id=value(environ, "PALS_APID"))


def _slurm(environ: Mapping[str, str], _: ProcessFacts) -> Launch | None:
    step = _slurm_step(environ)
    launch = None if step is None else _read(environ, _SLURM)
    if launch is None:
        return None
    tasks_per_node = first(environ, ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    return attrs.evolve(
        launch,
        local_world_size=_tasks_on_node(tasks_per_node, launch),
        job_id=step,
        attempt=_slurm_restarts(environ),
    )


def _slurm_restarts(environ: Mapping[str, str]) -> int:
    return integer(environ, "SLURM_RESTART_COUNT") or 0


def _slurm_step(environ: Mapping[str, str]) -> str | None:
    """Return the id of the step in which srun started this process, or None if it did not or is interactive."""
    job = integer(environ, "SLURM_JOB_ID", "SLURM_JOBID")
    step = integer(environ, "SLURM_STEP_ID", "SLURM_STEPID")
    if job is None or step is None or step >= _SLURM_MAX_NORMAL_STEP_ID or value(environ, "SLURM_PTY_PORT"):
        return None
    # Clusters count their jobs each from 1, and may share a backend.
    return "-".join(filter(None, ("slurm", value(environ, "SLURM_CLUSTER_NAME"), f"{job}.{step}")))


def _tasks_on_node(tasks_per_node: str | None, launch: Launch) -> int | None:
    """Return how many tasks SLURM has on this node, by its own notation: `2(x3),1`."""
    nodes_before = launch.node_rank
    for tasks, _, times in re.findall(r"(\d{1,9})(\(x(\d{1,9})\))?(?:,|$)", tasks_per_node or ""):
        nodes_before = None if nodes_before is None else nodes_before - int(times or 1)
        if nodes_before is not None and nodes_before < 0:
            # An allocation's figures can be others than its step's.
            return int(tasks) if launch.local_rank < int(tasks) <= launch.world_size else None
    return None


def _is_ray_worker(environ: Mapping[str, str]) -> bool:
    # torchrun may run inside of a Ray task, and then knows better.
    is_worker = first(environ, ("RAY_RAYLET_PID", "RAY_JOB_ID")) is not None
    return is_worker and value(environ, "TORCHELASTIC_RUN_ID") is None


def _ray(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    launch = _read(environ, _RAY) or _known(process.ray, "ray")
    if launch is None:
        return None
    # One raylet outlives many launches, so it is no launcher to derive an id from.
    return attrs.evolve(launch, job_id=process.ray.job_id if process.ray else None, rank_variable=None)


def _jax(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    return _read(environ, _JAX) or _known(process.jax, "jax")


def _known(facts: PeerFacts | None, launcher: str) -> Launch | None:
    """Return what a library knows as a launcher's word."""
    if facts is None or facts.rank is None or facts.world_size is None:
        return None
    return Launch(
        launcher,
        rank=facts.rank,
        world_size=facts.world_size,
        local_rank=facts.local_rank or 0,
        local_world_size=facts.local_world_size,
        node_rank=facts.node_rank,
    )


def _read(environ: Mapping[str, str], names: _Names) -> Launch | None:
    """Return what a launcher's variables say, or None if they say no rank."""
    rank = integer(environ, names.rank)
    if rank is None:
        return None
    world_size = integer(environ, *names.world_size)
    if world_size is None:
        raise ConfigurationError(
            f"{names.rank} is {rank}, and {' or '.join(names.world_size)} is not set.",
            setting=names.world_size[0],
            fix=f"Set both, or neither, or give rank and world_size to the tracker ({names.launcher} sets both).",
        )
    local_rank = integer(environ, *names.local_rank) or 0
    local_world_size = integer(environ, *names.local_world_size)
    if rank >= world_size:
        raise out_of_range(names.rank, rank, first_name(environ, names.world_size), world_size)
    if local_world_size is not None and local_rank >= local_world_size:
        local_size_name = first_name(environ, names.local_world_size)
        raise out_of_range(first_name(environ, names.local_rank), local_rank, local_size_name, local_world_size)
    return Launch(
        names.launcher,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        node_rank=integer(environ, *names.node_rank),
        rank_variable=names.rank,
    )


def out_of_range(name: str, value: int, size_name: str, size: int) -> ConfigurationError:
    """Return the error for a rank that is not below its size."""
    return ConfigurationError(
        f"{name} is {value}, and {size_name} is {size}.",
        setting=name,
        fix=f"Ranks count from 0: {name} must be less than {size_name}.",
    )
