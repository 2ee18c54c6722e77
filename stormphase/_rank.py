"""Which process of which session this is: pure, from the environment and the process facts it is given.

A session id must be the same on all ranks of one launch and different for every launch, as trace ids are derived from
it. In this order: the caller's, `STORMPHASE_SESSION_ID`, the launcher's id of the job, one derived from what all ranks
of one host share, and, for a process that is alone, a random one. Ranks that cannot agree fail at start.

Where launchers' variables come from, and what is wrong with some of them:

* torchrun: `torch.distributed.run`. The run id is a UUID of torchrun's own on a single host, "none" where older ones
  were given none, and else the user's, who may reuse it: so on one host the agent's log directory is added, which
  torchrun makes anew for each launch and keeps over restarts.
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
import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from stormphase._model import RankIdentity
from stormphase.exceptions import ConfigurationError

SESSION_VARIABLE: Final = "STORMPHASE_SESSION_ID"
ATTEMPT_VARIABLE: Final = "STORMPHASE_ATTEMPT"
MAX_SESSION_ID_CHARS: Final = 128

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9._+=@-]{1,128}")
_NOT_IN_SESSION_ID: Final = re.compile(r"[^A-Za-z0-9._+=@-]+")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Above this, SLURM numbers what is no step of srun's: batch scripts, interactive steps, ssh sessions.
_SLURM_MAX_NORMAL_STEP_ID: Final = 0xFFFFFFF0
_MAX_DIGITS: Final = 18
_MAX_SHOWN_CHARS: Final = 60
_MAX_ANCESTORS: Final = 32


@attrs.frozen
class AncestorProcess:
    """A process above this one.

    Attributes:
        pid: its process id.
        started: when it started, in the machine's own count, or None where that cannot be read.
        environment: the names of the variables it was started with, or None where they cannot be read.
        holds_terminal: whether it leads a terminal's session, as an interactive shell does.
    """

    pid: int
    started: str | None = None
    environment: frozenset[str] | None = None
    holds_terminal: bool = False


@attrs.frozen
class PeerFacts:
    """What a library that is already imported knows of this process's place among its peers.

    Attributes:
        rank: this process among all, or None.
        world_size: how many there are, or None.
        local_rank: this process among those of its host, or None.
        local_world_size: how many of them are on this host, or None.
        node_rank: this host among the hosts, or None.
        job_id: what is the same on all of them and differs between launches, or None.
    """

    rank: int | None = None
    world_size: int | None = None
    local_rank: int | None = None
    local_world_size: int | None = None
    node_rank: int | None = None
    job_id: str | None = None


@attrs.frozen
class ProcessFacts:
    """What `detect_rank` has to know beside the environment.

    Attributes:
        host: the host's name.
        pid: this process's id.
        ancestors: the processes above it, its parent first.
        boot_id: what is new each time the machine boots, or None where that cannot be read.
        random_bytes: returns so many bytes from the operating system's random source.
        ray: what Ray knows, if this process has imported and initialised it.
        jax: what JAX knows, if this process has imported it and initialised its distributed runtime.
    """

    host: str
    pid: int
    ancestors: tuple[AncestorProcess, ...] = ()
    boot_id: str | None = None
    random_bytes: Callable[[int], bytes] = os.urandom
    ray: PeerFacts | None = None
    jax: PeerFacts | None = None

    @classmethod
    def of_this_process(cls) -> ProcessFacts:
        """Read the facts of this process; what the platform does not tell is None, and nothing ever fails."""
        return cls(
            host=_host(),
            pid=os.getpid(),
            ancestors=_ancestors(os.getppid()),
            boot_id=_text_of("/proc/sys/kernel/random/boot_id"),
            ray=_ray_facts(sys.modules),
            jax=_jax_facts(sys.modules),
        )


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
class _Launch:
    """What one launcher says of this process."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int = 0
    local_world_size: int | None = None
    node_rank: int | None = None
    job_id: str | None = None  # the same on all hosts
    is_job_id_unique: bool = True  # whether no other launch can have it
    host_token: str | None = None  # the same on all ranks of this host, and on no other launch's
    rank_variable: str | None = None  # set for ranks, and not for the process that launched this host's; None: no such
    attempt: int = 0


_SINGLE: Final = _Launch("single", rank=0, world_size=1, local_world_size=1)

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


def detect_rank(
    environ: Mapping[str, str],
    *,
    session_id: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    process: ProcessFacts,
) -> RankIdentity:
    """Return which process of which session this is.

    `rank` and `world_size` win over every launcher. Where nothing tells the local rank, it is the rank for a caller's
    own numbers, and 0 for a launcher's. An empty variable counts as none.

    Args:
        environ: the process's environment.
        session_id: the launch, if the caller knows it.
        rank: this process among all, from 0, if the caller knows it.
        world_size: how many there are, if the caller knows it.
        process: the facts of the process, `ProcessFacts.of_this_process()`.

    Raises:
        ConfigurationError: if what is given is wrong or contradictory, or if the ranks cannot agree on a session id.
    """
    launch = _placed(environ, process, rank, world_size)
    session, keeps_over_restarts = _session(environ, process, launch, session_id)
    attempt = _integer(environ, (ATTEMPT_VARIABLE,))
    if attempt is None:
        attempt = launch.attempt
        if keeps_over_restarts and not attempt:
            attempt = _integer(environ, ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")) or 0
    return RankIdentity(
        session_id=session,
        attempt=attempt,
        rank=launch.rank,
        local_rank=launch.local_rank,
        world_size=launch.world_size,
        local_world_size=launch.local_world_size,
        node_rank=launch.node_rank,
        host=process.host,
        launcher=launch.launcher,
    )


# --- rank ---


def _placed(environ: Mapping[str, str], process: ProcessFacts, rank: int | None, world_size: int | None) -> _Launch:
    """Return where this process stands, by the caller's word and the launcher's."""
    if rank is None and world_size is None:
        return _launched(environ, process) or _SINGLE
    _check_argument("rank", rank, 0)
    _check_argument("world_size", world_size, 1)
    if rank is not None and world_size is not None:
        if rank >= world_size:
            raise _out_of_range("rank", rank, "world_size", world_size)
        launch = None
        # Where the caller says it all, an environment that makes no sense does not matter.
        with contextlib.suppress(ConfigurationError):
            launch = _launched(environ, process)
        if launch is None or (launch.rank, launch.world_size) != (rank, world_size):
            local_world_size = 1 if world_size == 1 else None
            return _Launch(
                "explicit", rank=rank, world_size=world_size, local_rank=rank, local_world_size=local_world_size
            )
        return attrs.evolve(launch, launcher="explicit")
    launch = _launched(environ, process)
    given, value, missing = ("rank", rank, "world_size") if world_size is None else ("world_size", world_size, "rank")
    if launch is None:
        launch = _SINGLE
        says = "no launcher says the other"
    else:
        says = f"{launch.launcher} says that this is rank {launch.rank} of {launch.world_size}"
    if value != getattr(launch, given):
        raise ConfigurationError(
            f"{given}={value} was given without {missing}, and {says}.",
            setting=missing,
            fix=f"Give {missing} as well, or neither.",
        )
    return attrs.evolve(launch, launcher="explicit")


def _launched(environ: Mapping[str, str], process: ProcessFacts) -> _Launch | None:
    """Return what the innermost launcher says, or None if there is none."""
    if _is_ray_worker(environ):
        return _ray(environ, process)
    readers = (_torchrun, _open_mpi, _pmi, _slurm, _jax)
    launch: _Launch | None = None
    for reader in readers:
        if launch is None:
            launch = reader(environ, process)
        elif launch.job_id is None and launch.host_token is None:
            # Scripts copy the ranks of srun or mpirun into other variables: who says the same may know the job's id.
            with contextlib.suppress(ConfigurationError):
                launch = _with_job_of(launch, reader(environ, process))
    if launch is None and _value(environ, "PRTE_LAUNCHED") is not None:
        raise ConfigurationError(
            "prterun sets PMIX_RANK, and nothing that says how many ranks there are.",
            setting="PMIX_RANK",
            fix="Give rank and world_size to the tracker.",
        )
    return launch


def _with_job_of(launch: _Launch, other: _Launch | None) -> _Launch:
    if other is None or (other.rank, other.world_size) != (launch.rank, launch.world_size):
        return launch
    return attrs.evolve(other, launcher=launch.launcher)


def _torchrun(environ: Mapping[str, str], _: ProcessFacts) -> _Launch | None:
    launch = _read(environ, _TORCHRUN)
    if launch is None:
        return None
    run_id = _value(environ, "TORCHELASTIC_RUN_ID")
    # .../<run id>_<random>/attempt_<n>/<local rank>/error.json
    agent_directory = (_value(environ, "TORCHELASTIC_ERROR_FILE") or "").rpartition("attempt_")[0]
    return attrs.evolve(
        launch,
        job_id=None if run_id == "none" else run_id,
        is_job_id_unique=run_id is not None and _UUID.fullmatch(run_id) is not None,
        host_token=agent_directory or None,
        attempt=_integer(environ, ("TORCHELASTIC_RESTART_COUNT",)) or 0,
    )


def _open_mpi(environ: Mapping[str, str], _: ProcessFacts) -> _Launch | None:
    launch = _read(environ, _OPEN_MPI)
    if launch is None:
        return None
    server = ("PMIX_SERVER_URI41", "PMIX_SERVER_URI4", "PMIX_SERVER_URI3", "PMIX_SERVER_URI2", "PMIX_SERVER_URI21")
    return attrs.evolve(
        launch,
        job_id=_first(environ, ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid")),
        is_job_id_unique=False,
        host_token=_first(environ, ("OMPI_MCA_orte_hnp_uri", *server)),
    )


def _pmi(environ: Mapping[str, str], _: ProcessFacts) -> _Launch | None:
    launch = _read(environ, _PMI)
    if launch is None:
        return None
    step = _slurm_step(environ)
    if step is not None:
        return attrs.evolve(launch, job_id=step, attempt=_slurm_restarts(environ))
    return attrs.evolve(launch, job_id=_value(environ, "PALS_APID"))


def _slurm(environ: Mapping[str, str], _: ProcessFacts) -> _Launch | None:
    step = _slurm_step(environ)
    launch = None if step is None else _read(environ, _SLURM)
    if launch is None:
        return None
    tasks_per_node = _first(environ, ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    return attrs.evolve(
        launch,
        local_world_size=_tasks_on_node(tasks_per_node, launch),
        job_id=step,
        attempt=_slurm_restarts(environ),
    )


def _slurm_restarts(environ: Mapping[str, str]) -> int:
    return _integer(environ, ("SLURM_RESTART_COUNT",)) or 0


def _slurm_step(environ: Mapping[str, str]) -> str | None:
    """Return the id of the step in which srun started this process, or None if it did not or is interactive."""
    job = _integer(environ, ("SLURM_JOB_ID", "SLURM_JOBID"))
    step = _integer(environ, ("SLURM_STEP_ID", "SLURM_STEPID"))
    if job is None or step is None or step >= _SLURM_MAX_NORMAL_STEP_ID or _value(environ, "SLURM_PTY_PORT"):
        return None
    # Clusters count their jobs each from 1, and may share a backend.
    return "-".join(filter(None, ("slurm", _value(environ, "SLURM_CLUSTER_NAME"), f"{job}.{step}")))


def _tasks_on_node(tasks_per_node: str | None, launch: _Launch) -> int | None:
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
    is_worker = _first(environ, ("RAY_RAYLET_PID", "RAY_JOB_ID")) is not None
    return is_worker and _value(environ, "TORCHELASTIC_RUN_ID") is None


def _ray(environ: Mapping[str, str], process: ProcessFacts) -> _Launch | None:
    launch = _read(environ, _RAY) or _known(process.ray, "ray")
    if launch is None:
        return None
    # One raylet outlives many launches, so it is no launcher to derive an id from.
    return attrs.evolve(launch, job_id=process.ray.job_id if process.ray else None, rank_variable=None)


def _jax(environ: Mapping[str, str], process: ProcessFacts) -> _Launch | None:
    return _read(environ, _JAX) or _known(process.jax, "jax")


def _known(facts: PeerFacts | None, launcher: str) -> _Launch | None:
    """Return what a library knows as a launcher's word."""
    if facts is None or facts.rank is None or facts.world_size is None:
        return None
    return _Launch(
        launcher,
        rank=facts.rank,
        world_size=facts.world_size,
        local_rank=facts.local_rank or 0,
        local_world_size=facts.local_world_size,
        node_rank=facts.node_rank,
    )


def _read(environ: Mapping[str, str], names: _Names) -> _Launch | None:
    """Return what a launcher's variables say, or None if they say no rank."""
    rank = _integer(environ, (names.rank,))
    if rank is None:
        return None
    world_size = _integer(environ, names.world_size)
    if world_size is None:
        raise ConfigurationError(
            f"{names.rank} is {rank}, and {' or '.join(names.world_size)} is not set.",
            setting=names.world_size[0],
            fix=f"Set both, or neither, or give rank and world_size to the tracker ({names.launcher} sets both).",
        )
    local_rank = _integer(environ, names.local_rank) or 0
    local_world_size = _integer(environ, names.local_world_size)
    if rank >= world_size:
        raise _out_of_range(names.rank, rank, _set(environ, names.world_size), world_size)
    if local_world_size is not None and local_rank >= local_world_size:
        local_size_name = _set(environ, names.local_world_size)
        raise _out_of_range(_set(environ, names.local_rank), local_rank, local_size_name, local_world_size)
    return _Launch(
        names.launcher,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        node_rank=_integer(environ, names.node_rank),
        rank_variable=names.rank,
    )


def _out_of_range(name: str, value: int, size_name: str, size: int) -> ConfigurationError:
    return ConfigurationError(
        f"{name} is {value}, and {size_name} is {size}.",
        setting=name,
        fix=f"Ranks count from 0: {name} must be less than {size_name}.",
    )


def _check_argument(name: str, value: int | None, minimum: int) -> None:
    if value is not None and (type(value) is not int or value < minimum):
        raise ConfigurationError(
            f"{name} is {ascii(value)[:_MAX_SHOWN_CHARS]}.",
            setting=name,
            fix=f"Give an integer that is at least {minimum}.",
        )


def _value(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(name) or None


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


def _set(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    """Return the first of `names` that is set, or else the first."""
    return next((name for name in names if environ.get(name)), names[0])


def _integer(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    """Return the first of some variables that is set, as a number."""
    for name in names:
        text = environ.get(name, "").strip()
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
            raise ConfigurationError(
                f"{name} is {ascii(text)[:_MAX_SHOWN_CHARS]}.",
                setting=name,
                fix="Set it to an integer from 0, or unset it.",
            )
        return int(text)
    return None


# --- session ---


def _session(
    environ: Mapping[str, str], process: ProcessFacts, launch: _Launch, session_id: str | None
) -> tuple[str, bool]:
    """Return the session's id, and whether it was given, so that a restarted job has it again."""
    if session_id is not None:
        return _checked_session_id(session_id, "session_id"), True
    from_environment = _value(environ, SESSION_VARIABLE)
    if from_environment is not None:
        return _checked_session_id(from_environment, SESSION_VARIABLE), True
    is_one_host = launch.local_world_size == launch.world_size
    shared = launch.host_token if is_one_host else None
    if launch.job_id is not None:
        job_id = launch.job_id
        if shared is not None and not launch.is_job_id_unique:
            job_id = f"{job_id}-{_derived(process, shared)[:12]}"
        return _as_session_id(job_id), False
    if shared is not None:
        return _derived(process, shared), False
    if launch.world_size == 1:
        return process.random_bytes(16).hex(), False
    launcher = _launcher_process(launch, process) if is_one_host else None
    if launcher is not None:
        return _derived(process, f"{launcher.pid} {launcher.started}"), False
    if launch.launcher == "explicit":
        message = f"rank {launch.rank} of {launch.world_size} was given, and no session id that all ranks agree on."
    else:
        message = f"{launch.launcher} started {launch.world_size} ranks, and gave them no job id that all agree on."
    raise ConfigurationError(
        message,
        setting=SESSION_VARIABLE,
        fix=f"Set {SESSION_VARIABLE} to one value on all ranks, a new one for each launch.",
    )


def _checked_session_id(session_id: object, setting: str) -> str:
    if not isinstance(session_id, str):
        problem = f"{setting} is of type {type(session_id).__name__}."
    elif _is_session_id(session_id):
        return session_id
    else:
        shown = ascii(session_id[:_MAX_SHOWN_CHARS]) + ("..." if len(session_id) > _MAX_SHOWN_CHARS else "")
        problem = f"{setting} is {shown} ({len(session_id)} characters), which cannot name a directory everywhere."
    raise ConfigurationError(
        problem,
        setting=setting,
        fix=f"Use 1 to {MAX_SESSION_ID_CHARS} of the characters A-Z a-z 0-9 . _ + = @ -, and not '.' or '..'.",
    )


def _is_session_id(text: str) -> bool:
    return _SESSION_ID.fullmatch(text) is not None and text not in {".", ".."}


def _as_session_id(job_id: str) -> str:
    """Return a launcher's id of a job, which may hold any characters, as a session id that is as unique."""
    if _is_session_id(job_id):
        return job_id
    digest = hashlib.sha256(job_id.encode(errors="surrogateescape")).hexdigest()[:12]
    readable = _NOT_IN_SESSION_ID.sub("_", job_id)[: MAX_SESSION_ID_CHARS - 13]
    return f"{readable}-{digest}"


def _derived(process: ProcessFacts, shared: str) -> str:
    """Return an id that all processes of this host with the same `shared` derive, and no others before or after."""
    seed = "\0".join(("stormphase session 1", process.boot_id or "", process.host, shared))
    return hashlib.sha256(seed.encode(errors="surrogateescape")).hexdigest()[:32]


def _launcher_process(launch: _Launch, process: ProcessFacts) -> AncestorProcess | None:
    """Return the process that launched all ranks of this host, if it can be told from others, earlier and later.

    It is the first that was not itself given a rank: between it and this process there may be a rank's own shell. A
    shell at a terminal is none, as the same one launches again and again.
    """
    if launch.rank_variable is None or process.boot_id is None:
        return None
    for ancestor in process.ancestors:
        if ancestor.environment is None or launch.rank_variable not in ancestor.environment:
            return None if ancestor.started is None or ancestor.holds_terminal else ancestor
    return None


# --- facts ---


def _host() -> str:
    # Windows has no uname.
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return name or "localhost"


def _ancestors(pid: int) -> tuple[AncestorProcess, ...]:
    """Return the processes from `pid` upwards, as far as /proc tells of them."""
    found: list[AncestorProcess] = []
    while pid > 0 and len(found) < _MAX_ANCESTORS:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a plain read
                # proc(5): "pid (name) state ppid pgrp session tty_nr ..."; the name may hold anything.
                fields = file.read().rpartition(")")[2].split()
            parent, session, terminal, started = int(fields[1]), int(fields[3]), int(fields[4]), fields[19]
        except (OSError, ValueError, IndexError):
            found.append(AncestorProcess(pid))
            break
        holds_terminal = session == pid and terminal != 0
        found.append(AncestorProcess(pid, started, _environment_names(pid), holds_terminal))
        pid = parent
    return tuple(found)


def _environment_names(pid: int) -> frozenset[str] | None:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - a plain read
            entries = file.read().split(b"\0")
    except OSError:
        return None
    return frozenset(os.fsdecode(entry.partition(b"=")[0]) for entry in entries if entry)


def _text_of(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - a plain read
            return file.read().strip() or None
    except OSError:
        return None


def _ray_facts(modules: Mapping[str, Any]) -> PeerFacts | None:
    """Return what Ray knows of this process, if it has been imported and initialised."""
    ray = modules.get("ray")
    try:
        if ray is None or not ray.is_initialized():
            return None
        context = ray.get_runtime_context()
        parts = [context.get_session_name(), context.get_job_id()]
    except Exception:  # noqa: BLE001 - another version's API: as if Ray were not there
        return None
    try:
        # Ray Train; it sets RANK and its like only for torch.
        train = modules["ray.train"].get_context()
        return PeerFacts(
            rank=_number(train.get_world_rank()),
            world_size=_number(train.get_world_size()),
            local_rank=_number(train.get_local_rank()),
            local_world_size=_number(train.get_local_world_size()),
            node_rank=_number(train.get_node_rank()),
            job_id="-".join(map(str, [*parts, train.get_experiment_name()])),
        )
    except Exception:  # noqa: BLE001 - this is no worker of Ray Train
        return PeerFacts(job_id="-".join(map(str, parts)))


def _jax_facts(modules: Mapping[str, Any]) -> PeerFacts | None:
    """Return what JAX knows of this process, if its distributed runtime has been initialised.

    `jax.process_index()` would do, but it starts the backends, and takes the accelerator's memory, if nobody has yet.
    """
    try:
        state = modules["jax._src.distributed"].global_state
        if state.client is None:
            return None
        return PeerFacts(rank=_number(state.process_id), world_size=_number(state.num_processes))
    except Exception:  # noqa: BLE001 - not imported, or another version's: as if JAX were not there
        return None


def _number(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
