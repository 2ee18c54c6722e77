"""What this process knows of itself, its machine and its peers: read once, so that `detect_rank` can be pure."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Final

import attrs

from stormphase._start_counts import count_start
from stormphase._starters import Starter, first_here
from stormphase._torch_group import TorchGroup, torch_group

_MAX_ANCESTORS: Final = 32
# Programs that run several others, one after the other.
_DRIVERS: Final = frozenset({"ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "make", "sh", "tcsh", "zsh"})


@attrs.frozen
class AncestorProcess:
    """A process above this one.

    Attributes:
        pid: its process id.
        started: when it started, in the machine's own count, or None where that cannot be read.
        environment: the names of the variables it was started with, or None where they cannot be read.
        holds_terminal: whether it leads a terminal's session, as an interactive shell does.
        name: the program's, at most 15 characters of it; "" where it cannot be read.
    """

    pid: int
    started: str | None = None
    environment: frozenset[str] | None = None
    holds_terminal: bool = False
    name: str = ""

    @property
    def may_run_several(self) -> bool:
        """Whether it is a shell, or Python, which may run several programs one after the other."""
        return self.name in _DRIVERS or self.name.startswith("python")


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


def _count_nothing(_: str) -> None:
    return None


@attrs.frozen
class Spawned:
    """How multiprocessing made a process.

    Attributes:
        parent: the process that it was made for.
        place: its number, from 0, among those that were made together.
        before: how many the parent had made before these.
        is_by_torch: whether torch's spawn made them, one for each rank of this host.
    """

    parent: AncestorProcess
    place: int
    before: int = 0
    is_by_torch: bool = False


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
        mpi: what mpi4py knows, if this process has imported it and MPI is up.
        torch: torch's process group, if it is up.
        this: the process itself, or None where it cannot be read.
        starter: who has started a tracker here, or in the process that this one was forked from; None if nobody has.
        program: what it runs, as a short name that is the same on all ranks, or None.
        spawned: for whom multiprocessing made this process, and as which one, or None.
        count_start: counts the starts of processes with one key on this host, or returns None.
    """

    host: str
    pid: int
    ancestors: tuple[AncestorProcess, ...] = ()
    boot_id: str | None = None
    random_bytes: Callable[[int], bytes] = os.urandom
    ray: PeerFacts | None = None
    jax: PeerFacts | None = None
    mpi: PeerFacts | None = None
    torch: TorchGroup | None = None
    this: AncestorProcess | None = None
    starter: Starter | None = None
    program: str | None = None
    spawned: Spawned | None = None
    count_start: Callable[[str], int | None] = _count_nothing

    @property
    def started(self) -> str | None:
        """When it started, in the machine's own count, or None."""
        return None if self.this is None else self.this.started

    @classmethod
    def of_this_process(cls) -> ProcessFacts:
        """Read the facts of this process; what the platform does not tell is None, and nothing ever fails."""
        ancestors = _ancestors(os.getppid())
        return cls(
            host=_host(),
            pid=os.getpid(),
            ancestors=ancestors,
            boot_id=_text_of("/proc/sys/kernel/random/boot_id"),
            ray=_ray_facts(sys.modules),
            jax=_jax_facts(sys.modules),
            mpi=_mpi_facts(sys.modules),
            torch=torch_group(sys.modules),
            this=next(iter(_lineage(os.getpid(), 1)), None),
            starter=first_here(),
            program=_program(),
            spawned=_spawned(sys.modules, ancestors),
            count_start=count_start,
        )


def _host() -> str:
    # Windows has no uname.
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return name or "localhost"


def _ancestors(pid: int) -> tuple[AncestorProcess, ...]:
    """Return the processes from `pid` upwards, as far as /proc tells of them."""
    return tuple(_lineage(pid, _MAX_ANCESTORS))


def _lineage(pid: int, limit: int) -> list[AncestorProcess]:
    found: list[AncestorProcess] = []
    while pid > 0 and len(found) < limit:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a plain read
                # proc(5): "pid (name) state ppid pgrp session tty_nr ..."; the name may hold anything.
                head, _, rest = file.read().rpartition(")")
            fields = rest.split()
            parent, session, terminal, started = int(fields[1]), int(fields[3]), int(fields[4]), fields[19]
        except (OSError, ValueError, IndexError):
            found.append(AncestorProcess(pid))
            break
        holds_terminal = session == pid and terminal != 0
        name = head.partition("(")[2]
        found.append(AncestorProcess(pid, started, _environment_names(pid), holds_terminal, name))
        pid = parent
    return found


def _program() -> str | None:
    """Return a short name of the program that Python runs; None in a child of multiprocessing, whose own differs."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return None
    path = next(iter(getattr(sys, "argv", ())), "")
    original = sys.orig_argv
    if path == "-c" and "-c" in original[:-1]:
        path = original[original.index("-c") + 1]
        shown = "c"
    else:
        shown = PurePath(path).name
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{shown}-{digest}" if shown else None


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


def _spawned(modules: Mapping[str, Any], ancestors: tuple[AncestorProcess, ...]) -> Spawned | None:
    """Return for whom multiprocessing made this process, and as which one."""
    try:
        process = modules["multiprocessing.process"]
        parent, current = process.parent_process(), process.current_process()
        (found,) = (each for each in ancestors if parent is not None and each.pid == parent.pid)
        number = current._identity[-1] - 1
        # torch tells its processes their number in the group; by multiprocessing's own a second group counts on.
        if current._target is not getattr(modules.get("torch.multiprocessing.spawn"), "_wrap", None):
            return Spawned(found, number)
        place = current._args[1]
        return Spawned(found, place, number - place, is_by_torch=True)
    except Exception:  # noqa: BLE001 - not imported, no child of it, a parent that is gone, or another version's
        return None


def _mpi_facts(modules: Mapping[str, Any]) -> PeerFacts | None:
    """Return what mpi4py knows of this process, if MPI is up. Neither call talks to other ranks."""
    try:
        mpi = modules["mpi4py.MPI"]
        if not mpi.Is_initialized() or mpi.Is_finalized() or mpi.COMM_WORLD.Get_size() == 1:
            return None
        return PeerFacts(rank=_number(mpi.COMM_WORLD.Get_rank()), world_size=_number(mpi.COMM_WORLD.Get_size()))
    except Exception:  # noqa: BLE001 - not imported, or another version's: as if it were not there
        return None


def _number(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
