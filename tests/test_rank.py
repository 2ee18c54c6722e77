"""Which rank of which session a process is, in the environments that real launchers make."""

from __future__ import annotations

import hashlib

import attrs
import pytest

from stormphase._model import RankIdentity
from stormphase._process_facts import AncestorProcess, PeerFacts, ProcessFacts
from stormphase._rank import detect_rank
from stormphase._session_id import SESSION_VARIABLE
from stormphase.exceptions import ConfigurationError

LAUNCHER = AncestorProcess(4_000, "123456", frozenset({"PATH"}))
PROCESS = ProcessFacts(
    host="node7",
    pid=4_001,
    ancestors=(LAUNCHER, AncestorProcess(1, "1", None)),
    boot_id="11111111-2222-3333-4444-555555555555",
    random_bytes=lambda size: bytes(range(size)),
)
RANDOM = bytes(range(16)).hex()

# As `torchrun --nproc-per-node 2` of torch 2.13 sets them, with and without --standalone.
TORCHRUN = {
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "43423",
    "OMP_NUM_THREADS": "1",
    "RANK": "1",
    "ROLE_RANK": "1",
    "ROLE_WORLD_SIZE": "2",
    "TORCHELASTIC_ERROR_FILE": (
        "/tmp/torchelastic_v09o407p/8fe32a24-8832-49fe-b7c1-a2cbc3ef7ce6_98x1_vcq/attempt_0/1/error.json"  # noqa: S108
    ),
    "TORCHELASTIC_MAX_RESTARTS": "0",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_RUN_ID": "8fe32a24-8832-49fe-b7c1-a2cbc3ef7ce6",
    "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "WORLD_SIZE": "2",
}
# As it sets them with `--rdzv-id job7`.
TORCHRUN_NAMED = {
    **TORCHRUN,
    "TORCHELASTIC_RUN_ID": "job7",
    "TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_7kp3oos1/job7_0rz76rua/attempt_0/1/error.json",  # noqa: S108
}
# As older ones set them without --rdzv-id, and today's on several hosts.
TORCHRUN_NONE = {
    **TORCHRUN,
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_3hq1n8ab/none_kq2x/attempt_0/1/error.json",  # noqa: S108
}
TWO_HOSTS = {"WORLD_SIZE": "4", "RANK": "3", "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "ROLE_WORLD_SIZE": "4"}

# As mpirun of Open MPI 5.0 sets them (without its settings).
OPEN_MPI = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_FILE_LOCATION": "/tmp/ompi.12271/1/1",  # noqa: S108
    "OMPI_UNIVERSE_SIZE": "2",
    "OMPI_WORLD_LOCAL_SIZE": "2",
    "OMPI_WORLD_SIZE": "2",
    "PMIX_HOSTNAME": "vm",
    "PMIX_NAMESPACE": "prterun-vm-12271@1",
    "PMIX_RANK": "1",
    "PMIX_SERVER_TMPDIR": "/tmp/ompi.12271",  # noqa: S108
    "PMIX_SERVER_URI2": "prterun-vm-12271@0.0;tcp4://127.0.0.1:55549",
    "PMIX_SERVER_URI41": "prterun-vm-12271@0.0;tcp4://127.0.0.1:55549",
    "PRTE_LAUNCHED": "1",
}
# As prterun sets them by itself.
PRTERUN = {name: value for name, value in OPEN_MPI.items() if not name.startswith("OMPI")}

# As mpiexec of MPICH 5.0 sets them, all of them.
HYDRA = {
    "MPI_LOCALNRANKS": "2",
    "MPI_LOCALRANKID": "1",
    "PMI_FD": "11",
    "PMI_HOSTNAME": "vm",
    "PMI_RANK": "1",
    "PMI_SIZE": "2",
}
# As Cray's PALS documents them.
PALS = {
    "PALS_APID": "a6a3d4b8-9f2e-4d0c-a8d5-1f5cbbf5a6f0",
    "PALS_NODEID": "1",
    "PALS_RANKID": "5",
    "PMI_LOCAL_RANK": "1",
    "PMI_LOCAL_SIZE": "4",
    "PMI_RANK": "5",
    "PMI_SIZE": "8",
}

# As sbatch sets them in the batch script of a job of eight tasks, which is one process.
SLURM_BATCH = {
    "SLURM_CLUSTER_NAME": "alps",
    "SLURM_JOBID": "4711",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NPROCS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_TASK_PID": "1234",
}
# As srun adds to them and changes them in one of its tasks.
SLURM_STEP = {
    **SLURM_BATCH,
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "5",
    "SLURM_STEPID": "2",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}

# As they are in the shell of `srun --pty bash`.
SLURM_SHELL = {
    **SLURM_STEP,
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_PTY_PORT": "40011",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}

# As srun sets them where it starts one torchrun on each of two hosts.
AGENTS_OF_SRUN = {**SLURM_STEP, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}

# As Ray 2 sets them in a worker; the rest is Ray Train's for torch.
RAY_WORKER = {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": "10005", "RAY_CLIENT_MODE": "0"}
RAY_TRAIN = {
    **RAY_WORKER,
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "NODE_RANK": "1",
    "RANK": "3",
    "WORLD_SIZE": "4",
}
RAY_FACTS = PeerFacts(job_id="session_2026-11-22_05-10-54_330_9931-01000000-digits")

JAX = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def detect(environ: dict[str, str], process: ProcessFacts = PROCESS, **arguments: object) -> RankIdentity:
    """Return who a process in `environ` is."""
    return detect_rank(environ, process=process, **arguments)


def as_tuple(found: RankIdentity) -> tuple[object, ...]:
    """Return the launcher and its numbers: rank, world size, local rank, local world size, node rank."""
    return found.launcher, found.rank, found.world_size, found.local_rank, found.local_world_size, found.node_rank


def refusal(environ: dict[str, str], process: ProcessFacts = PROCESS, **arguments: object) -> ConfigurationError:
    """Return the error for a process in `environ`, having checked that it says what to do."""
    with pytest.raises(ConfigurationError) as caught:
        detect(environ, process, **arguments)
    assert str(caught.value).endswith(caught.value.fix)
    assert caught.value.setting in str(caught.value)
    return caught.value


# --- launchers --------------------------------------------------------------------------------------------------------


def test_a_process_alone_is_a_session_of_its_own():
    """Without a launcher a process is rank 0 of 1, with a new session id."""
    expected = RankIdentity(
        session_id=RANDOM,
        attempt=0,
        rank=0,
        local_rank=0,
        world_size=1,
        local_world_size=1,
        node_rank=None,
        host="node7",
        launcher="single",
    )
    assert expected == detect({"PATH": "/bin"})


@pytest.mark.parametrize(
    ("environ", "process", "expected"),
    [
        (TORCHRUN, PROCESS, ("torchrun", 1, 2, 1, 2, 0)),
        ({**TORCHRUN_NAMED, **TWO_HOSTS}, PROCESS, ("torchrun", 3, 4, 1, 2, 1)),
        (OPEN_MPI, PROCESS, ("open_mpi", 1, 2, 1, 2, None)),
        (HYDRA, PROCESS, ("pmi", 1, 2, 1, 2, None)),
        (PALS, PROCESS, ("pmi", 5, 8, 1, 4, 1)),
        (SLURM_STEP, PROCESS, ("slurm", 5, 8, 1, 4, 1)),
        (RAY_TRAIN, attrs.evolve(PROCESS, ray=RAY_FACTS), ("ray", 3, 4, 1, 2, 1)),
        ({**JAX, SESSION_VARIABLE: "s"}, PROCESS, ("jax", 3, 4, 0, None, None)),
        (
            {SESSION_VARIABLE: "s"},
            attrs.evolve(PROCESS, jax=PeerFacts(rank=2, world_size=4)),
            ("jax", 2, 4, 0, None, None),
        ),
        (
            RAY_WORKER,
            attrs.evolve(PROCESS, ray=attrs.evolve(RAY_FACTS, rank=1, world_size=2, local_rank=1, node_rank=0)),
            ("ray", 1, 2, 1, None, 0),
        ),
    ],
    ids=["torchrun", "torchrun-2", "open_mpi", "hydra", "pals", "slurm", "ray", "jax", "jax-facts", "ray-facts"],
)
def test_each_launcher_tells_the_rank(environ, process, expected):
    """The variables that a real launcher sets say which rank this is."""
    assert expected == as_tuple(detect(environ, process))


@pytest.mark.parametrize(
    "environ",
    [
        SLURM_BATCH,
        {**SLURM_BATCH, "SLURM_STEP_ID": "4294967291"},
        {**SLURM_BATCH, "SLURM_STEP_ID": "4294967290"},
        {**SLURM_SHELL, "PMIX_RANK": "0"},
        {"RANK": "", "WORLD_SIZE": " "},
        {"RANK": " ", "WORLD_SIZE": "1"},
        {"LOCAL_RANK": "0"},
        {**RAY_WORKER, **SLURM_STEP},
        {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"},
    ],
    ids=["batch", "batch-step", "interactive-step", "pty", "empty", "blank", "first", "ray-task", "no-rank"],
)
def test_what_names_no_rank_claims_none(environ):
    """A process that no launcher started as a rank is single, even with a launcher's variables around it."""
    found = detect(environ)
    assert ("single", 0, 1, RANDOM) == (found.launcher, found.rank, found.world_size, found.session_id)


@pytest.mark.parametrize(
    ("environ", "launcher", "rank"),
    [
        ({**SLURM_STEP, **OPEN_MPI, **TORCHRUN}, "torchrun", 1),
        ({**SLURM_STEP, **HYDRA, **OPEN_MPI}, "open_mpi", 1),
        ({**JAX, **SLURM_STEP, **HYDRA}, "pmi", 1),
        ({**JAX, **SLURM_STEP}, "slurm", 5),
        ({**RAY_WORKER, **TORCHRUN}, "torchrun", 1),
        ({**SLURM_STEP, **OPEN_MPI, **RAY_TRAIN, SESSION_VARIABLE: "s"}, "ray", 3),
    ],
)
def test_the_inner_launcher_is_believed(environ, launcher, rank):
    """Where launchers start each other, the one that started this process is asked."""
    found = detect(environ)
    assert (launcher, rank) == (found.launcher, found.rank)


@pytest.mark.parametrize(
    ("tasks_per_node", "node", "expected"),
    [
        ("4(x2)", "0", 4),
        ("2(x3),1", "2", 2),
        ("1,2(x3)", "1", 2),
        ("2,4", "1", 4),
        ("2,1", "1", None),
        ("99", "0", None),
        ("4(x2)", "2", None),
        ("4(x2)", None, None),
        ("many", "0", None),
        ("", "0", None),
    ],
)
def test_slurm_tells_the_tasks_on_a_node(tasks_per_node, node, expected):
    """SLURM's notation is read for this node; what makes no sense says nothing."""
    environ = {**SLURM_STEP, "SLURM_STEP_TASKS_PER_NODE": tasks_per_node, "SLURM_NODEID": node or ""}
    environ.pop("SLURM_TASKS_PER_NODE")
    assert expected == detect(environ).local_world_size


# --- explicit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "rank", "world_size", "expected"),
    [
        ({}, 3, 4, ("explicit", 3, 4, 3, None, None)),
        ({}, 0, 1, ("explicit", 0, 1, 0, 1, None)),
        ({}, 0, None, ("explicit", 0, 1, 0, 1, None)),
        ({}, None, 1, ("explicit", 0, 1, 0, 1, None)),
        (TORCHRUN, 1, 2, ("explicit", 1, 2, 1, 2, 0)),
        (TORCHRUN, 1, None, ("explicit", 1, 2, 1, 2, 0)),
        (TORCHRUN, None, 2, ("explicit", 1, 2, 1, 2, 0)),
        (TORCHRUN, 0, 2, ("explicit", 0, 2, 0, None, None)),
        (TORCHRUN, 1, 4, ("explicit", 1, 4, 1, None, None)),
        ({**TORCHRUN, "RANK": "nonsense"}, 1, 2, ("explicit", 1, 2, 1, None, None)),
    ],
)
def test_the_callers_word_wins(environ, rank, world_size, expected):
    """Explicit numbers win; a launcher that agrees adds what it knows besides."""
    assert expected == as_tuple(detect(environ, session_id="s", rank=rank, world_size=world_size))


@pytest.mark.parametrize(
    ("environ", "arguments", "setting", "problem"),
    [
        ({}, {"rank": 3}, "world_size", "rank=3 was given without world_size, and no launcher says the other."),
        ({}, {"world_size": 3}, "rank", "world_size=3 was given without rank, and no launcher says the other."),
        (
            TORCHRUN,
            {"rank": 0},
            "world_size",
            "rank=0 was given without world_size, and torchrun says that this is rank 1 of 2.",
        ),
        (
            TORCHRUN,
            {"world_size": 4},
            "rank",
            "world_size=4 was given without rank, and torchrun says that this is rank 1 of 2.",
        ),
        ({}, {"rank": 4, "world_size": 4}, "rank", "rank is 4, and world_size is 4."),
        ({}, {"rank": -1, "world_size": 4}, "rank", "rank is -1."),
        ({}, {"rank": 0, "world_size": 0}, "world_size", "world_size is 0."),
        ({}, {"rank": True, "world_size": 4}, "rank", "rank is True."),
        ({}, {"rank": "1", "world_size": 4}, "rank", "rank is '1'."),
        ({}, {"world_size": 1.0}, "world_size", "world_size is 1.0."),
    ],
)
def test_arguments_that_cannot_be_are_refused(environ, arguments, setting, problem):
    """The error says which argument is wrong, what it contradicts and what to write."""
    error = refusal(environ, session_id="s", **arguments)
    assert setting == error.setting
    assert str(error).startswith(problem)


@pytest.mark.parametrize(
    ("environ", "setting", "problem"),
    [
        ({**TORCHRUN, "RANK": "one"}, "RANK", "RANK is 'one'."),
        ({**TORCHRUN, "RANK": "-1"}, "RANK", "RANK is '-1'."),
        ({**TORCHRUN, "RANK": "1_0"}, "RANK", "RANK is '1_0'."),
        ({**TORCHRUN, "RANK": "\u0661"}, "RANK", "RANK is '\\u0661'."),
        ({**TORCHRUN, "RANK": "\x1b[31m1"}, "RANK", "RANK is '\\x1b[31m1'."),
        ({**TORCHRUN, "RANK": "9" * 19}, "RANK", f"RANK is '{'9' * 19}'."),
        ({**TORCHRUN, "RANK": "x" * 999}, "RANK", f"RANK is '{'x' * 59}."),
        ({**TORCHRUN, "RANK": "2"}, "RANK", "RANK is 2, and WORLD_SIZE is 2."),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, "RANK", "RANK is 1, and WORLD_SIZE is 0."),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "LOCAL_RANK", "LOCAL_RANK is 2, and LOCAL_WORLD_SIZE is 2."),
        ({"RANK": "1"}, "WORLD_SIZE", "RANK is 1, and WORLD_SIZE is not set."),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK is 1, and OMPI_COMM_WORLD_SIZE"),
        ({**HYDRA, "MPI_LOCALNRANKS": "1"}, "MPI_LOCALRANKID", "MPI_LOCALRANKID is 1, and MPI_LOCALNRANKS is 1."),
        ({**SLURM_STEP, "SLURM_STEP_NUM_TASKS": "1"}, "SLURM_PROCID", "SLURM_PROCID is 5, and SLURM_STEP_NUM_TASKS is"),
        ({**SLURM_STEP, "SLURM_JOB_ID": "x"}, "SLURM_JOB_ID", "SLURM_JOB_ID is 'x'."),
        ({**JAX, "JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID", "JAX_PROCESS_ID is 4, and JAX_NUM_PROCESSES is 4."),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"),
        ({"STORMPHASE_ATTEMPT": "-1"}, "STORMPHASE_ATTEMPT", "STORMPHASE_ATTEMPT is '-1'."),
        (PRTERUN, "PMIX_RANK", "prterun sets PMIX_RANK, and nothing that says how many ranks there are."),
    ],
)
def test_variables_that_cannot_be_are_refused(environ, setting, problem):
    """The error names the variable that is wrong, with what is in it shown harmlessly."""
    error = refusal(environ)
    assert setting == error.setting
    assert str(error).startswith(problem)
    assert str(error).isprintable()


# --- session ids ------------------------------------------------------------------------------------------------------


def derived(shared: str, process: ProcessFacts = PROCESS) -> str:
    """Return the id that all processes with `shared` derive."""
    text = f"stormphase session 1\0{process.boot_id}\0{process.host}\0{shared}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


NAMED_AGENT = derived("/tmp/torchelastic_7kp3oos1/job7_0rz76rua/")[:12]  # noqa: S108
MPI_SERVER = derived("prterun-vm-12271@0.0;tcp4://127.0.0.1:55549")[:12]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, "8fe32a24-8832-49fe-b7c1-a2cbc3ef7ce6"),
        (TORCHRUN_NAMED, f"job7-{NAMED_AGENT}"),
        ({**TORCHRUN_NAMED, "TORCHELASTIC_ERROR_FILE": ""}, "job7"),
        ({**TORCHRUN_NAMED, **TWO_HOSTS}, "job7"),
        (TORCHRUN_NONE, derived("/tmp/torchelastic_3hq1n8ab/none_kq2x/")),  # noqa: S108
        ({**TORCHRUN_NONE, "TORCHELASTIC_ERROR_FILE": ""}, derived("4000 123456")),
        ({**AGENTS_OF_SRUN, **TORCHRUN_NONE, **TWO_HOSTS}, "slurm-alps-4711.2"),
        ({**AGENTS_OF_SRUN, **TORCHRUN_NONE, **TWO_HOSTS, "SLURM_STEP_NUM_TASKS": "3"}, "slurm-alps-4711.2"),
        ({**AGENTS_OF_SRUN, **TORCHRUN_NONE}, derived("/tmp/torchelastic_3hq1n8ab/none_kq2x/")),  # noqa: S108
        (OPEN_MPI, f"prterun-vm-12271@1-{MPI_SERVER}"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "4"}, "prterun-vm-12271@1"),
        (HYDRA, derived("4000 123456")),
        (PALS, "a6a3d4b8-9f2e-4d0c-a8d5-1f5cbbf5a6f0"),
        ({**SLURM_BATCH, "SLURM_STEP_ID": "0", **PALS}, "slurm-alps-4711.0"),
        (SLURM_STEP, "slurm-alps-4711.2"),
        ({**SLURM_STEP, "SLURM_CLUSTER_NAME": ""}, "slurm-4711.2"),
        ({**JAX, **SLURM_STEP, "JAX_PROCESS_ID": "5", "JAX_NUM_PROCESSES": "8"}, "slurm-alps-4711.2"),
        ({**SLURM_STEP, "RANK": "5", "WORLD_SIZE": "8"}, "slurm-alps-4711.2"),
        ({**OPEN_MPI, "RANK": "1", "WORLD_SIZE": "2"}, f"prterun-vm-12271@1-{MPI_SERVER}"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, RANDOM),
        ({"PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}, RANDOM),
    ],
)
def test_the_launcher_gives_the_session_id(environ, expected):
    """A launcher's own id of the job, made unique where it is not, or one derived from what its ranks share."""
    assert expected == detect(environ).session_id


def test_the_numbers_of_a_copy_name_the_launcher_and_the_job():
    """Where a script copied srun's numbers into torch's, everything that SLURM says holds."""
    found = detect({**SLURM_STEP, "RANK": "5", "WORLD_SIZE": "8", "SLURM_RESTART_COUNT": "3"})
    assert ("environment", 5, 8, 1, 4, 1) == as_tuple(found)
    assert 3 == found.attempt


@pytest.mark.parametrize(
    "environ",
    [
        {**JAX, **SLURM_STEP, "RANK": "1", "WORLD_SIZE": "8"},
        {**SLURM_STEP, "SLURM_PROCID": "x", "RANK": "5", "WORLD_SIZE": "8"},
    ],
    ids=["other", "broken"],
)
def test_a_launcher_that_says_something_else_lends_no_id(environ):
    """Only who agrees on rank and size can know the job; nonsense from the others does not matter."""
    assert SESSION_VARIABLE == refusal(environ).setting


def test_ray_tells_the_session():
    """In a Ray worker, Ray's own session, job and experiment make the launch."""
    assert RAY_FACTS.job_id == detect(RAY_TRAIN, attrs.evolve(PROCESS, ray=RAY_FACTS)).session_id


@pytest.mark.parametrize(
    "environ",
    [
        {**TORCHRUN_NONE, **TWO_HOSTS},
        {**AGENTS_OF_SRUN, **TORCHRUN_NONE, **TWO_HOSTS, "SLURM_STEP_NUM_TASKS": "1"},
        {**AGENTS_OF_SRUN, **TORCHRUN_NONE, **TWO_HOSTS, "SLURM_STEP_NUM_TASKS": "x"},
        {**HYDRA, "PMI_SIZE": "4"},
        JAX,
        RAY_TRAIN,
        {**RAY_TRAIN, "WORLD_SIZE": "2", "RANK": "1"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        {name: value for name, value in SLURM_STEP.items() if "JOB" not in name},
    ],
    ids=["torchrun", "srun", "srun-broken", "hydra", "jax", "ray", "ray-one-host", "bare", "no-job"],
)
def test_ranks_that_cannot_agree_fail(environ):
    """Where nothing that all ranks share tells launches apart, the error names the variable to set."""
    error = refusal(environ)
    assert SESSION_VARIABLE == error.setting
    assert "Set STORMPHASE_SESSION_ID to one value on all ranks, a new one for each launch." == error.fix
    assert "s1" == detect({**environ, SESSION_VARIABLE: "s1"}).session_id
    assert "s2" == detect({**environ, SESSION_VARIABLE: "s1"}, session_id="s2").session_id


def test_explicit_ranks_need_an_explicit_session():
    """Numbers that only the caller knows come with no session id that could be agreed on."""
    error = refusal(TORCHRUN, rank=0, world_size=4)
    assert str(error).startswith("rank 0 of 4 was given, and no session id that all ranks agree on.")


@pytest.mark.parametrize(
    ("ancestors", "expected"),
    [
        ((LAUNCHER,), LAUNCHER),
        ((AncestorProcess(4_100, "9", frozenset({"PMI_RANK"})), LAUNCHER), LAUNCHER),
        ((AncestorProcess(4_100, "9", None), LAUNCHER), AncestorProcess(4_100, "9")),
        ((AncestorProcess(4_100, "9", frozenset({"PMI_RANK"})),), None),
        ((attrs.evolve(LAUNCHER, started=None),), None),
        ((attrs.evolve(LAUNCHER, holds_terminal=True),), None),
        ((), None),
    ],
    ids=["parent", "behind-a-shell", "another-users", "none-found", "no-time", "interactive", "none"],
)
def test_the_launcher_is_found_among_the_ancestors(ancestors, expected):
    """A rank's own shell is passed over, and a shell at a terminal is no launcher, as it launches again."""
    process = attrs.evolve(PROCESS, ancestors=ancestors)
    if expected is None:
        assert SESSION_VARIABLE == refusal(HYDRA, process).setting
    else:
        assert derived(f"{expected.pid} {expected.started}") == detect(HYDRA, process).session_id


def test_without_a_boot_id_nothing_is_derived_from_processes():
    """Process ids and start times come again after a boot."""
    assert SESSION_VARIABLE == refusal(HYDRA, attrs.evolve(PROCESS, boot_id=None)).setting
    assert 32 == len(detect(TORCHRUN_NONE, attrs.evolve(PROCESS, boot_id=None)).session_id)


@pytest.mark.parametrize(
    "change",
    [{"boot_id": "other"}, {"host": "node8"}, {"ancestors": (AncestorProcess(4_000, "7"),)}],
    ids=["boot", "host", "time"],
)
def test_derived_ids_differ_between_launches(change):
    """Another boot, host or launcher process is another session."""
    assert detect(HYDRA).session_id != detect(HYDRA, attrs.evolve(PROCESS, **change)).session_id


def test_all_ranks_of_a_launch_derive_the_same_id():
    """Ranks differ in everything but what they share."""
    sessions = {
        detect({**environ, rank: str(number), local: str(number)}, attrs.evolve(PROCESS, pid=number)).session_id
        for environ, rank, local in [(HYDRA, "PMI_RANK", "MPI_LOCALRANKID")]
        for number in range(2)
    }
    assert 1 == len(sessions)
    other = {**TORCHRUN_NONE, "RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RESTART_COUNT": "2"}
    other["TORCHELASTIC_ERROR_FILE"] = "/tmp/torchelastic_3hq1n8ab/none_kq2x/attempt_2/0/error.json"  # noqa: S108
    assert detect(TORCHRUN_NONE).session_id == detect(other).session_id


# --- attempts ---------------------------------------------------------------------------------------------------------


# A job that SLURM has requeued once, and whose torchrun may restart three times in each run.
REQUEUED = {"SLURM_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "3"}


@pytest.mark.parametrize(
    ("environ", "session_id", "expected"),
    [
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}, None, 2),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2", "SLURM_RESTART_COUNT": "5"}, None, 2),
        ({**TORCHRUN, "SLURM_RESTART_COUNT": "5"}, None, 0),
        ({**SLURM_STEP, "SLURM_RESTART_COUNT": "3"}, None, 3),
        ({**SLURM_STEP, **PALS, "SLURM_RESTART_COUNT": "3"}, None, 3),
        ({**SLURM_BATCH, "SLURM_RESTART_COUNT": "3"}, None, 0),
        ({**SLURM_BATCH, "SLURM_RESTART_COUNT": "3"}, "job4711", 3),
        ({**SLURM_BATCH, "SLURM_RESTART_COUNT": "3", SESSION_VARIABLE: "job4711"}, None, 3),
        ({**OPEN_MPI, "SLURM_RESTART_COUNT": "3"}, None, 0),
        ({**TORCHRUN_NAMED, **TWO_HOSTS, "SLURM_RESTART_COUNT": "3"}, None, 3),
        ({**AGENTS_OF_SRUN, **TORCHRUN_NONE, **TWO_HOSTS, "SLURM_RESTART_COUNT": "3"}, None, 3),
        ({**TORCHRUN, "SLURM_RESTART_COUNT": "1"}, "job4711", 1),
        ({**TORCHRUN, **REQUEUED, "TORCHELASTIC_RESTART_COUNT": "2"}, "job4711", 6),
        ({**TORCHRUN, **REQUEUED, SESSION_VARIABLE: "job4711"}, None, 4),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2", "STORMPHASE_ATTEMPT": "7"}, None, 7),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2", "STORMPHASE_ATTEMPT": "0"}, None, 0),
        ({"STORMPHASE_ATTEMPT": "1"}, None, 1),
        ({}, "s", 0),
    ],
)
def test_attempts_count_the_restarts_of_a_session(environ, session_id, expected):
    """Restarts that keep the session id are counted; a new session starts from 0."""
    assert expected == detect(environ, session_id=session_id).attempt


# --- for real --------------------------------------------------------------------------------------------------------


def test_a_real_launch_agrees(run_python):
    """Two processes of one launcher, each behind a shell of its own, are two ranks of one session."""
    child = run_python(
        "import os, subprocess, sys\n"
        "code = 'import os; from stormphase._rank import *; '"
        "       'i = detect_rank(os.environ, process=ProcessFacts.of_this_process()); print(i.session_id, i.rank)'\n"
        "for rank in '01':\n"
        "    environ = {**os.environ, 'PMI_RANK': rank, 'PMI_SIZE': '2', 'MPI_LOCALRANKID': rank,"
        " 'MPI_LOCALNRANKS': '2'}\n"
        "    command = ['sh', '-c', '\"$0\" -c \"$1\"; exit $?', sys.executable, code]\n"
        "    print(subprocess.check_output(command, env=environ, text=True), end='')",
    )
    (first, rank0), (second, rank1) = (line.split() for line in child.stdout.splitlines())
    assert first == second
    assert ("0", "1") == (rank0, rank1)
