"""Table of launchers: the variables in which each one says which rank a process is, and what that launcher is called.

Where these variables come from, and what is wrong with some of them:

* torchrun: `torch.distributed.run`. `GROUP_RANK` counts agents, one of them on each host.
* DeepSpeed: its `launcher/launch.py`, also with pdsh. With its other runners the ranks are MPI's or SLURM's.
* Lightning and Fabric: `strategies/launchers/subprocess_script.py` sets no `RANK`; see `_lightning`.
* Horovod: `horovod/runner/gloo_run.py`; with `--mpi` the ranks are MPI's.
* Open MPI: `OMPI_COMM_WORLD_NODE_RANK` is the process's rank on its node over all jobs, and not the node's. IBM's
  Spectrum MPI and jsrun (LSF) set these, too.
* PMI: Hydra, which is MPICH's and Intel's, Cray's PALS, and others. PALS gives no number of ranks but by PMI's name.
* Flux: flux-core's `shell/task.c`; it takes them from what it starts as an instance of its own.
* SLURM: `SLURM_NTASKS` may be the allocation's, `SLURM_STEP_NUM_TASKS` is the step's.
* `RANK` and `WORLD_SIZE` without anything of torchrun's are set by many: Kubeflow, Composer, scripts.
"""

from __future__ import annotations

from typing import Final

import attrs


@attrs.frozen
class Names:
    """Where a launcher says what; of several names the first that is set counts.

    Attributes:
        launcher: its name in `RankIdentity.launcher`.
        title: its name in messages.
        rank: this process among all.
        world_size: how many there are.
        local_rank: this process among those of its host.
        local_world_size: how many of them are on this host.
        node_rank: this host among the hosts.
    """

    launcher: str
    title: str
    rank: str
    world_size: tuple[str, ...]
    local_rank: tuple[str, ...] = ()
    local_world_size: tuple[str, ...] = ()
    node_rank: tuple[str, ...] = ()


TORCHRUN: Final = Names(
    "torchrun", "torchrun", "RANK", ("WORLD_SIZE",), ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",), ("GROUP_RANK", "NODE_RANK")
)
RAY: Final = attrs.evolve(TORCHRUN, launcher="ray", title="Ray")
DEEPSPEED: Final = Names(
    "deepspeed", "DeepSpeed", "RANK", ("WORLD_SIZE",), ("LOCAL_RANK",), ("LOCAL_SIZE",), ("CROSS_RANK",)
)
VARIABLES: Final = Names(
    "environment",
    "Whoever set RANK and WORLD_SIZE",
    "RANK",
    ("WORLD_SIZE",),
    ("LOCAL_RANK",),
    ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    ("GROUP_RANK", "NODE_RANK", "CROSS_RANK"),
)
LIGHTNING: Final = Names("lightning", "Lightning", "LOCAL_RANK", ("WORLD_SIZE",), ("LOCAL_RANK",), (), ("NODE_RANK",))
HOROVOD: Final = Names(
    "horovod",
    "Horovod",
    "HOROVOD_RANK",
    ("HOROVOD_SIZE",),
    ("HOROVOD_LOCAL_RANK",),
    ("HOROVOD_LOCAL_SIZE",),
    ("HOROVOD_CROSS_RANK",),
)
JSRUN: Final = Names(
    "jsrun",
    "jsrun",
    "JSM_NAMESPACE_RANK",
    ("JSM_NAMESPACE_SIZE",),
    ("JSM_NAMESPACE_LOCAL_RANK",),
    ("JSM_NAMESPACE_LOCAL_SIZE",),
)
OPEN_MPI: Final = Names(
    "open_mpi",
    "Open MPI",
    "OMPI_COMM_WORLD_RANK",
    ("OMPI_COMM_WORLD_SIZE",),
    ("OMPI_COMM_WORLD_LOCAL_RANK",),
    ("OMPI_COMM_WORLD_LOCAL_SIZE",),
)
MVAPICH: Final = Names(
    "mvapich",
    "MVAPICH",
    "MV2_COMM_WORLD_RANK",
    ("MV2_COMM_WORLD_SIZE",),
    ("MV2_COMM_WORLD_LOCAL_RANK",),
    ("MV2_COMM_WORLD_LOCAL_SIZE",),
)
PMI: Final = Names(
    "pmi",
    "mpiexec",
    "PMI_RANK",
    ("PMI_SIZE",),
    ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID"),
    ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE"),
    ("PALS_NODEID",),
)
PALS: Final = attrs.evolve(
    PMI,
    title="Cray PALS",
    rank="PALS_RANKID",
    local_rank=("PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"),
    local_world_size=("PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"),
)
FLUX: Final = Names("flux", "Flux", "FLUX_TASK_RANK", ("FLUX_JOB_SIZE",), ("FLUX_TASK_LOCAL_ID",))
SLURM: Final = Names(
    "slurm",
    "srun",
    "SLURM_PROCID",
    ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"),
    ("SLURM_LOCALID",),
    (),
    ("SLURM_NODEID",),
)
JAX: Final = Names("jax", "JAX", "JAX_PROCESS_ID", ("JAX_NUM_PROCESSES",))

ALL: Final = (TORCHRUN, DEEPSPEED, VARIABLES, LIGHTNING, HOROVOD, JSRUN, OPEN_MPI, MVAPICH, PMI, PALS, FLUX, SLURM, JAX)

# Set where there are several ranks, by names that do not say which one this is.
LONE_SIZES: Final = (
    "WORLD_SIZE",
    "HOROVOD_SIZE",
    "JSM_NAMESPACE_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "JAX_NUM_PROCESSES",
)
# Set for ranks, by names that come with no number of them.
LONE_RANKS: Final = ("LOCAL_RANK", "PMIX_RANK", "ALPS_APP_PE", "RANK")

# Whatever tells one launch from another: a program that finds all of them as a rank did was started by that rank.
_OTHERS: Final = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_ERROR_FILE",
    "PMIX_NAMESPACE",
    "PMIX_RANK",
    "PALS_APID",
    "FLUX_JOB_ID",
    "LSB_JOBID",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
)
OF_A_LAUNCH: Final = tuple(
    sorted(
        {
            name
            for names in ALL
            for name in (
                names.rank,
                *names.world_size,
                *names.local_rank,
                *names.local_world_size,
                *names.node_rank,
            )
        }
        | {*_OTHERS}
    )
)
