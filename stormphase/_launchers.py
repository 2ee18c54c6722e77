"""What launchers say of a process, by the variables that they set: its rank, its place on its host, and its job.

Which variables those are, `_launch_names` says. What they are worth as the id of a job:

* torchrun: the run id is a UUID of torchrun's own on a single host, "none" where older ones were given none, and else
  the user's, who may reuse it: so on one host the agent's log directory is added, which torchrun makes anew for each
  launch and keeps over restarts. Where srun started it on several hosts without a run id, srun's step is the job; which
  agent became which group, torchrun decides anew, so only their number is compared.
* Open MPI: `PMIX_NAMESPACE` has mpirun's host and pid, which come again: so on one host its server's port is added.
* Hydra, DeepSpeed, Horovod, Lightning and MVAPICH give no id of the job.
* SLURM sets `SLURM_PROCID=0` and `SLURM_NTASKS` in batch scripts and allocations too, where srun has started nothing:
  only a step's id tells (`SLURM_STEP_ID`, up to `SLURM_MAX_NORMAL_STEP_ID`). `SLURM_PTY_PORT` is set by `srun --pty`,
  and handed on by each srun that is called in the shell there: it says nothing of a step of several tasks.
* Ray: `RAY_JOB_ID` is all f in the workers, and counts from 1 in every cluster; Ray's own session name is unique. A
  worker inherits the environment of its raylet, so what srun or mpirun told that one is no word on the worker.
* Where torch's process group is up and has more ranks than the environment knows, as in children of
  `torch.multiprocessing.spawn`, the group says who this is.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

import attrs

from stormphase import _launch_names as names
from stormphase._environ import first, first_name, integer, value
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._process_facts import PeerFacts, ProcessFacts

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Above this, SLURM numbers what is no step of srun's: batch scripts, interactive steps, ssh sessions.
_SLURM_MAX_NORMAL_STEP_ID: Final = 0xFFFFFFF0
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


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
        title: what the launcher is called in messages, or None for its name.
        counts_alone: whether other hosts' ranks may count other restarts.
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
    title: str | None = None
    counts_alone: bool = False

    @property
    def is_on_one_host(self) -> bool:
        """Whether all ranks are known to be on this host."""
        return self.local_world_size == self.world_size


SINGLE: Final = Launch("single", rank=0, world_size=1, local_world_size=1)


def launched(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    """Return what the innermost launcher says, or None if there is none and nothing speaks of several ranks.

    Raises:
        ConfigurationError: if something does, and nothing says which of them this is.
    """
    launch = named_launch(environ, process)
    if launch is None and not _is_ray_worker(environ):
        _refuse_lone(environ)
    return launch


def named_launch(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    """Return what the innermost launcher says, or None if nothing names a rank.

    Raises:
        ConfigurationError: if what it says makes no sense.
    """
    if _is_ray_worker(environ):
        return _ray(environ, process)
    group = process.torch
    launch: Launch | None = None
    with contextlib.nullcontext() if group is None else contextlib.suppress(ConfigurationError):
        launch = _larger(_by_variables(environ, process), _lightning(environ, process))
    if group is not None:
        spawned = process.spawned
        is_placed = spawned is not None and (spawned.is_by_torch or spawned.place == group.rank)
        local_rank = _local_rank(environ) or (spawned.place if spawned is not None and is_placed else 0)
        launch = _larger(launch, Launch("torch", group.rank, group.world_size, local_rank, title="torch.distributed"))
    return launch or _known(process.mpi, "mpi4py")


def _larger(launch: Launch | None, other: Launch | None) -> Launch | None:
    """Return the one that knows more ranks: who started a rank may not know that it has divided itself."""
    if launch is None or (other is not None and other.world_size > launch.world_size):
        return other
    return launch


def _by_variables(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    launch: Launch | None = None
    for reader in (_by_rank, _horovod, _jsrun, _open_mpi, _mvapich, _pmi, _flux, _slurm, _jax):
        if launch is None:
            launch = reader(environ, process)
        elif launch.job_id is None and launch.host_token is None:
            # Scripts copy the ranks of srun or mpirun into other variables: who says the same may know the job's id.
            with contextlib.suppress(ConfigurationError):
                launch = _with_job_of(launch, reader(environ, process))
    return launch


def _refuse_lone(environ: Mapping[str, str]) -> None:
    """Refuse an environment that speaks of several ranks and does not say which of them this process is."""
    for name in names.LONE_SIZES:
        size = integer(environ, name) or 1
        if size > 1:
            rank = next(each.rank for each in (names.VARIABLES, *names.ALL) if name in each.world_size)
            raise ConfigurationError(
                f"{name} is {size}, and nothing says which of these ranks this process is: {rank} is not set.",
                setting=rank,
                fix=f"Set {rank}, or give rank and world_size to the tracker; unset {name} if this process is alone.",
            )
    for name in names.LONE_RANKS:
        rank_given = integer(environ, name)
        is_of_pmix = name == "PMIX_RANK" and rank_given is not None and value(environ, "SLURM_STEP_ID") is None
        if is_of_pmix or (rank_given or 0) > 0:
            who = (
                "prterun sets" if value(environ, "PRTE_LAUNCHED") is not None and is_of_pmix else "The environment has"
            )
            raise ConfigurationError(
                f"{who} {name}, and nothing that says how many ranks there are.",
                setting=name,
                fix=f"Give rank and world_size to the tracker, or unset {name} if this process is alone.",
            )


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
    return attrs.evolve(other, launcher=launch.launcher, title=launch.title)


def _by_rank(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    """Return what `RANK` and its like say, whoever has set them."""
    if value(environ, "TORCHELASTIC_RUN_ID") is not None:
        return _torchrun(environ, process)
    is_deepspeed = value(environ, "CROSS_RANK") is not None and value(environ, "LOCAL_SIZE") is not None
    return _read(environ, names.DEEPSPEED if is_deepspeed else names.VARIABLES)


def _torchrun(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    launch = _read(environ, names.TORCHRUN)
    if launch is None:
        return None
    run_id = value(environ, "TORCHELASTIC_RUN_ID")
    # .../<run id>_<random>/attempt_<n>/<local rank>/error.json
    agent_directory = (value(environ, "TORCHELASTIC_ERROR_FILE") or "").rpartition("attempt_")[0]
    return attrs.evolve(
        launch,
        job_id=_step_of_agents(environ, process) if run_id == "none" else run_id,
        is_job_id_unique=run_id is not None and _UUID.fullmatch(run_id) is not None,
        host_token=agent_directory or None,
        attempt=integer(environ, "TORCHELASTIC_RESTART_COUNT") or 0,
        counts_alone=_has_several_agents(environ) and value(environ, "TORCHELASTIC_MAX_RESTARTS") not in (None, "0"),
    )


def _has_several_agents(environ: Mapping[str, str]) -> bool:
    with contextlib.suppress(ConfigurationError):
        return (integer(environ, "GROUP_WORLD_SIZE") or 1) > 1
    return False


def _step_of_agents(environ: Mapping[str, str], process: ProcessFacts) -> str | None:
    """Return the id of the step in which srun started torchrun's agents, one on each of several hosts, or None."""
    with contextlib.suppress(ConfigurationError):
        hosts, tasks = integer(environ, "GROUP_WORLD_SIZE"), integer(environ, *names.SLURM.world_size)
        # An elastic launch may go on with fewer hosts than it had.
        if hosts is not None and tasks is not None and 1 < hosts <= tasks:
            return _slurm_job_step(environ) if _is_in_step(environ, process) else None
    return None


def _lightning(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    """Return what Lightning's and Fabric's own launcher says: the rank on its node, and not the one among all.

    On one node that is the same. It is one node where its address is this machine's own, as Lightning sets it where
    nobody gave one, or where the last of the ranks is here.
    """
    if value(environ, "RANK") is not None or any(value(environ, each) is None for each in ("LOCAL_RANK", "NODE_RANK")):
        return None
    world_size = integer(environ, "WORLD_SIZE")
    local_rank, node_rank = integer(environ, "LOCAL_RANK") or 0, integer(environ, "NODE_RANK") or 0
    if world_size is None or world_size == 1:
        return None
    if node_rank > 0:
        if process.torch is not None and process.torch.world_size == world_size:
            return None  # The group knows.
        raise ConfigurationError(
            f"Lightning started local rank {local_rank} of node {node_rank}, one of {world_size} ranks, and does not "
            "say how many of them each node has: RANK is not set.",
            setting="RANK",
            fix="Start the tracker once the process group is up, or give rank and world_size to it, or set RANK.",
        )
    if local_rank >= world_size:
        raise out_of_range("LOCAL_RANK", local_rank, "WORLD_SIZE", world_size)
    is_one_node = value(environ, "MASTER_ADDR") in _LOOPBACK or local_rank == world_size - 1
    return Launch(
        names.LIGHTNING.launcher,
        rank=local_rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=world_size if is_one_node else None,
        node_rank=node_rank,
        rank_variable=names.LIGHTNING.rank,
        title=names.LIGHTNING.title,
    )


def _local_rank(environ: Mapping[str, str]) -> int | None:
    with contextlib.suppress(ConfigurationError):
        return integer(environ, "LOCAL_RANK")
    return None


def _horovod(environ: Mapping[str, str], _: ProcessFacts) -> Launch | None:
    return _read(environ, names.HOROVOD)


def _mvapich(environ: Mapping[str, str], _: ProcessFacts) -> Launch | None:
    return _read(environ, names.MVAPICH)


def _jsrun(environ: Mapping[str, str], _: ProcessFacts) -> Launch | None:
    launch = _read(environ, names.JSRUN)
    job, step = value(environ, "LSB_JOBID"), value(environ, "PMIX_NAMESPACE")
    if launch is None or job is None or step is None:
        return launch
    return attrs.evolve(launch, job_id=f"lsf-{job}.{step}")


def _open_mpi(environ: Mapping[str, str], _: ProcessFacts) -> Launch | None:
    launch = _read(environ, names.OPEN_MPI)
    if launch is None:
        return None
    server = ("PMIX_SERVER_URI41", "PMIX_SERVER_URI4", "PMIX_SERVER_URI3", "PMIX_SERVER_URI2", "PMIX_SERVER_URI21")
    return attrs.evolve(
        launch,
        job_id=first(environ, ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid")),
        is_job_id_unique=False,
        host_token=first(environ, ("OMPI_MCA_orte_hnp_uri", *server)),
    )


def _pmi(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    launch = _read(environ, names.PMI) or _read(environ, names.PALS)
    if launch is None:
        return None
    launch = attrs.evolve(launch, title=_title_of_pmi(environ))
    if _is_in_step(environ, process):
        launch = _with_place_on_node(launch, environ, process)
        return attrs.evolve(launch, job_id=_slurm_job_step(environ), attempt=_slurm_restarts(environ))
    return attrs.evolve(launch, job_id=value(environ, "PALS_APID") or _flux_job(environ))


def _with_place_on_node(launch: Launch, environ: Mapping[str, str], process: ProcessFacts) -> Launch:
    """Return a rank with what srun says of its node, if srun itself speaks PMI: that names no place on the node."""
    if first(environ, names.PMI.local_rank) is not None:
        return launch
    task = _slurm(environ, process)
    if task is None or (task.rank, task.world_size) != (launch.rank, launch.world_size):
        return launch  # Hydra's, which srun has started once a node.
    return attrs.evolve(
        launch, local_rank=task.local_rank, local_world_size=task.local_world_size, node_rank=task.node_rank
    )


def _title_of_pmi(environ: Mapping[str, str]) -> str:
    if first(environ, ("PALS_APID", "PALS_RANKID")) is not None:
        return names.PALS.title
    return "Intel MPI" if any(name.startswith("I_MPI_") for name in environ) else names.PMI.title


def _flux(environ: Mapping[str, str], _: ProcessFacts) -> Launch | None:
    launch = _read(environ, names.FLUX)
    return None if launch is None else attrs.evolve(launch, job_id=_flux_job(environ))


def _flux_job(environ: Mapping[str, str]) -> str | None:
    # The path has the jobs around it, too, whose own ids count anew in each of them.
    job = first(environ, ("FLUX_JOB_ID_PATH", "FLUX_JOB_ID"))
    return None if job is None else f"flux-{job}"


def _slurm(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    launch = _read(environ, names.SLURM) if _is_in_step(environ, process) else None
    if launch is None:
        return None
    tasks_per_node = first(environ, ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    return attrs.evolve(
        launch,
        local_world_size=_tasks_on_node(tasks_per_node, launch),
        job_id=_slurm_job_step(environ),
        attempt=_slurm_restarts(environ),
    )


def _slurm_restarts(environ: Mapping[str, str]) -> int:
    return integer(environ, "SLURM_RESTART_COUNT") or 0


def _is_in_step(environ: Mapping[str, str], process: ProcessFacts) -> bool:
    """Return whether srun started this process as a task, and not a shell for somebody to type in.

    In such a shell the only task is the shell, or it is among the ancestors; what srun starts from there is a step.
    """
    step = integer(environ, "SLURM_STEP_ID", "SLURM_STEPID")
    if step is None or step >= _SLURM_MAX_NORMAL_STEP_ID:
        return False
    if value(environ, "SLURM_PTY_PORT") is None:
        return True
    is_below_shell = any(
        each.holds_terminal and each.environment is not None and "SLURM_STEP_ID" in each.environment
        for each in process.ancestors
    )
    return (integer(environ, *names.SLURM.world_size) or 1) > 1 and not is_below_shell


def _slurm_job_step(environ: Mapping[str, str]) -> str | None:
    """Return the id of the job and its step, or None if SLURM names no job."""
    job = integer(environ, "SLURM_JOB_ID", "SLURM_JOBID")
    if job is None:
        return None
    step = integer(environ, "SLURM_STEP_ID", "SLURM_STEPID")
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
    launch = _read(environ, names.RAY) or _known(process.ray, "ray")
    if launch is None:
        return None
    # One raylet outlives many launches, so it is no launcher to derive an id from.
    return attrs.evolve(launch, job_id=process.ray.job_id if process.ray else None, rank_variable=None)


def _jax(environ: Mapping[str, str], process: ProcessFacts) -> Launch | None:
    return _read(environ, names.JAX) or _known(process.jax, "jax")


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


def _read(environ: Mapping[str, str], says: names.Names) -> Launch | None:
    """Return what a launcher's variables say, or None if they say no rank."""
    rank = integer(environ, says.rank)
    if rank is None:
        return None
    world_size = integer(environ, *says.world_size)
    if world_size is None:
        raise ConfigurationError(
            f"{says.rank} is {rank}, and {' or '.join(says.world_size)} is not set.",
            setting=says.world_size[0],
            fix="Set both, or neither, or give rank and world_size to the tracker"
            + ("." if says is names.VARIABLES else f" ({says.title} sets both)."),
        )
    local_rank = integer(environ, *says.local_rank) or 0
    local_world_size = integer(environ, *says.local_world_size)
    if rank >= world_size:
        raise out_of_range(says.rank, rank, first_name(environ, says.world_size), world_size)
    if local_world_size is not None and local_rank >= local_world_size:
        local_size_name = first_name(environ, says.local_world_size)
        raise out_of_range(first_name(environ, says.local_rank), local_rank, local_size_name, local_world_size)
    return Launch(
        says.launcher,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        node_rank=integer(environ, *says.node_rank),
        rank_variable=says.rank,
        title=says.title,
    )


def out_of_range(name: str, value: int, size_name: str, size: int) -> ConfigurationError:
    """Return the error for a rank that is not below its size."""
    return ConfigurationError(
        f"{name} is {value}, and {size_name} is {size}.",
        setting=name,
        fix=f"Ranks count from 0: {name} must be less than {size_name}.",
    )
