"""Never silently rank 0 of 1: each launcher's variables name the rank, or the start fails and says what to set."""

from __future__ import annotations

import attrs
import pytest

from stormphase._process_facts import AncestorProcess, PeerFacts, ProcessFacts, Spawned
from stormphase._rank import detect_rank
from stormphase._torch_group import TorchGroup
from stormphase.exceptions import ConfigurationError

SESSION = {"STORMPHASE_SESSION_ID": "s"}
LAUNCHER = AncestorProcess(4_000, "123456", frozenset({"PATH"}), name="python3.11")
PROCESS = ProcessFacts(
    host="node7",
    pid=4_001,
    ancestors=(LAUNCHER,),
    boot_id="11111111-2222-3333-4444-555555555555",
    random_bytes=lambda size: bytes(range(size)),
    this=AncestorProcess(4_001, "123460", frozenset({"PATH"}), name="python3.11"),
)

# As the interactive shell of an allocation hands them on to `srun -n 2`, with what that adds.
SRUN_IN_SHELL = {
    "SLURM_CLUSTER_NAME": "c",
    "SLURM_JOB_ID": "2",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_PTY_PORT": "41079",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}
# As Lightning 2.6's own launcher sets them in the second process of `devices=2`.
LIGHTNING = {
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "12910",
    "NODE_RANK": "0",
    "WORLD_SIZE": "2",
}
# As `horovodrun` sets them by way of Gloo.
HOROVOD = {
    "HOROVOD_CROSS_RANK": "1",
    "HOROVOD_CROSS_SIZE": "2",
    "HOROVOD_LOCAL_RANK": "1",
    "HOROVOD_LOCAL_SIZE": "2",
    "HOROVOD_RANK": "3",
    "HOROVOD_SIZE": "4",
}
# As DeepSpeed's launcher sets them on the second of two hosts.
DEEPSPEED = {
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "RANK": "3",
    "WORLD_SIZE": "4",
}
MVAPICH = {
    "MV2_COMM_WORLD_LOCAL_RANK": "1",
    "MV2_COMM_WORLD_LOCAL_SIZE": "2",
    "MV2_COMM_WORLD_RANK": "3",
    "MV2_COMM_WORLD_SIZE": "4",
}
# As jsrun documents them; it sets Open MPI's, too.
JSRUN = {
    "JSM_NAMESPACE_LOCAL_RANK": "1",
    "JSM_NAMESPACE_LOCAL_SIZE": "2",
    "JSM_NAMESPACE_RANK": "3",
    "JSM_NAMESPACE_SIZE": "4",
    "LSB_JOBID": "88",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "PMIX_NAMESPACE": "9",
    "PMIX_RANK": "3",
}
FLUX = {"FLUX_JOB_ID": "f2Ab", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "1", "FLUX_TASK_RANK": "3"}
PALS = {"PALS_APID": "a-7", "PALS_LOCAL_RANKID": "1", "PALS_LOCAL_SIZE": "2", "PALS_RANKID": "3", "PMI_SIZE": "4"}
INTEL = {"I_MPI_HYDRA_UUID": "1", "PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def group(rank: int, world_size: int, find_store: object = None) -> ProcessFacts:
    """Return a process that has torch's process group up."""
    return attrs.evolve(PROCESS, torch=TorchGroup(rank, world_size, find_store))


def found(environ: dict[str, str], process: ProcessFacts = PROCESS) -> tuple[object, ...]:
    """Return the launcher and its numbers: rank, world size, local rank, local world size, node rank."""
    who = detect_rank({**SESSION, **environ}, process=process)
    return who.launcher, who.rank, who.world_size, who.local_rank, who.local_world_size, who.node_rank


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    """Return it without some of its variables."""
    return {name: value for name, value in environ.items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "process", "expected"),
    [
        (SRUN_IN_SHELL, PROCESS, ("slurm", 1, 2, 1, 2, 0)),
        ({**SRUN_IN_SHELL, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, PROCESS, ("slurm", 0, 2, 0, 2, 0)),
        ({**SRUN_IN_SHELL, "SLURM_NTASKS": "8"}, PROCESS, ("slurm", 1, 2, 1, 2, 0)),
        (LIGHTNING, PROCESS, ("lightning", 1, 2, 1, 2, 0)),
        ({**LIGHTNING, "LOCAL_RANK": "0"}, PROCESS, ("lightning", 0, 2, 0, 2, 0)),
        ({**LIGHTNING, "MASTER_ADDR": "10.0.0.1", "WORLD_SIZE": "4"}, PROCESS, ("lightning", 1, 4, 1, None, 0)),
        ({**SRUN_IN_SHELL, "SLURM_STEP_NUM_TASKS": "1", **LIGHTNING}, PROCESS, ("lightning", 1, 2, 1, 2, 0)),
        ({**SRUN_IN_SHELL, **LIGHTNING}, PROCESS, ("slurm", 1, 2, 1, 2, 0)),
        (HOROVOD, PROCESS, ("horovod", 3, 4, 1, 2, 1)),
        (DEEPSPEED, PROCESS, ("deepspeed", 3, 4, 1, 2, 1)),
        (without(DEEPSPEED, "CROSS_RANK"), PROCESS, ("environment", 3, 4, 1, 2, None)),
        (MVAPICH, PROCESS, ("mvapich", 3, 4, 1, 2, None)),
        (JSRUN, PROCESS, ("jsrun", 3, 4, 1, 2, None)),
        (FLUX, PROCESS, ("flux", 3, 4, 1, None, None)),
        (PALS, PROCESS, ("pmi", 3, 4, 1, 2, None)),
        (INTEL, PROCESS, ("pmi", 3, 4, 1, 2, None)),
        ({}, group(3, 4), ("torch", 3, 4, 0, None, None)),
        ({"LOCAL_RANK": "1"}, group(3, 4), ("torch", 3, 4, 1, None, None)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, group(3, 4), ("torch", 3, 4, 0, None, None)),
        ({"RANK": "nonsense"}, group(3, 4), ("torch", 3, 4, 0, None, None)),
        ({**LIGHTNING, "NODE_RANK": "1", "WORLD_SIZE": "4"}, group(3, 4), ("torch", 3, 4, 1, None, None)),
        (HOROVOD, group(3, 4), ("horovod", 3, 4, 1, 2, 1)),
        (HOROVOD, group(1, 2), ("horovod", 3, 4, 1, 2, 1)),
        ({}, attrs.evolve(PROCESS, mpi=PeerFacts(rank=3, world_size=4)), ("mpi4py", 3, 4, 0, None, None)),
    ],
)
def test_each_launcher_names_the_rank(environ, process, expected):
    """By its variables, or by the process group where that knows more ranks than they do."""
    assert expected == found(environ, process)


@pytest.mark.parametrize(
    ("environ", "setting", "problem"),
    [
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, "RANK", "WORLD_SIZE is 8, and nothing says which of these"),
        ({"RANK": " ", "WORLD_SIZE": "2"}, "RANK", "WORLD_SIZE is 2"),
        ({"HOROVOD_SIZE": "2"}, "HOROVOD_RANK", "HOROVOD_SIZE is 2"),
        ({"PMI_SIZE": "2"}, "PMI_RANK", "PMI_SIZE is 2"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE is 2"),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID", "JAX_NUM_PROCESSES is 2"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK", "The environment has LOCAL_RANK, and nothing that says how many"),
        ({"PMIX_RANK": "0"}, "PMIX_RANK", "The environment has PMIX_RANK"),
        ({"ALPS_APP_PE": "3"}, "ALPS_APP_PE", "The environment has ALPS_APP_PE"),
        ({"PALS_RANKID": "3"}, "PMI_SIZE", "PALS_RANKID is 3, and PMI_SIZE is not set."),
        ({"FLUX_TASK_RANK": "3"}, "FLUX_JOB_SIZE", "FLUX_TASK_RANK is 3, and FLUX_JOB_SIZE is not set."),
        ({**LIGHTNING, "NODE_RANK": "1", "WORLD_SIZE": "4"}, "RANK", "Lightning started local rank 1 of node 1"),
        ({**LIGHTNING, "LOCAL_RANK": "2"}, "LOCAL_RANK", "LOCAL_RANK is 2, and WORLD_SIZE is 2."),
    ],
)
def test_an_environment_that_speaks_of_ranks_and_names_none_is_refused(environ, setting, problem):
    """The error says which variable there is, and what to set."""
    with pytest.raises(ConfigurationError) as caught:
        detect_rank(environ, process=PROCESS)
    assert setting == caught.value.setting
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("environ", "title"),
    [
        (HOROVOD, "Horovod"),
        (DEEPSPEED, "DeepSpeed"),
        (MVAPICH, "MVAPICH"),
        (INTEL, "Intel MPI"),
        (without(PALS, "PALS_APID"), "Cray PALS"),
        ({**LIGHTNING, "MASTER_ADDR": "10.0.0.1", "WORLD_SIZE": "4"}, "Lightning"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "Whoever set RANK and WORLD_SIZE"),
        (without(JSRUN, "LSB_JOBID", "PMIX_NAMESPACE"), "jsrun"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "mpiexec"),
    ],
)
def test_an_error_names_the_launcher_that_was_there(environ, title):
    """And no other one, whose documentation would not help."""
    with pytest.raises(ConfigurationError) as caught:
        detect_rank(environ, process=PROCESS)
    assert str(caught.value).startswith(f"{title} started ")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (JSRUN, "lsf-88.9"),
        (FLUX, "flux-f2Ab"),
        ({**FLUX, "FLUX_JOB_ID_PATH": "f1/f2Ab"}, "flux-f1_f2Ab"),
        ({**FLUX, "PMI_RANK": "3", "PMI_SIZE": "4"}, "flux-f2Ab"),
        (SRUN_IN_SHELL, "slurm-c-2.1"),
    ],
)
def test_a_launchers_job_is_the_session(environ, expected):
    """Where it names one."""
    session_id = detect_rank(environ, process=PROCESS).session_id
    assert expected == (session_id if "_" not in expected else session_id[: len(expected)])


def test_somebody_who_types_in_the_shell_of_a_step_is_no_task_of_it():
    """`srun -n 2 --pty bash`: the shell at the terminal is the task, and the other one is not there."""
    shell = AncestorProcess(3_999, "1", frozenset({"SLURM_STEP_ID"}), holds_terminal=True, name="bash")
    typed = attrs.evolve(PROCESS, ancestors=(shell, LAUNCHER))
    assert ("single", 0, 1, 0, 1, None) == found(SRUN_IN_SHELL, typed)


def test_lightnings_ranks_are_one_session_before_and_after_the_first_knows_of_the_others():
    """Its first process is their launcher; that it is rank 0 it learns only when it starts them."""
    first = attrs.evolve(PROCESS, pid=4_000, this=LAUNCHER, ancestors=())
    second = attrs.evolve(PROCESS, ancestors=(LAUNCHER,))
    sessions = {
        detect_rank({**LIGHTNING, "LOCAL_RANK": str(rank)}, process=process).session_id
        for rank, process in enumerate((first, second))
    }
    assert 1 == len(sessions)


# --- agreeing through the process group ------------------------------------------------------------------------------


class Store:
    """Does what torch's stores do, as far as it is used."""

    def __init__(self):
        self.kept = {}

    def set(self, key, value):
        """Keep a text."""
        self.kept[key] = value.encode()

    def check(self, keys):
        """Whether all keys are there."""
        return all(key in self.kept for key in keys)

    def wait(self, keys, timeout):
        """Fail at once where torch's waits."""
        if not self.check(keys):
            raise RuntimeError(f"wait timeout after {timeout}")

    def get(self, key):
        """Return what is kept."""
        return self.kept[key]

    def add(self, key, number):
        """Count."""
        self.kept[key] = self.kept.get(key, 0) + number
        return self.kept[key]


@pytest.fixture
def asked(monkeypatch):
    """Let each rank ask for the first time: in a real job each is a process of its own."""
    from stormphase import _torch_group

    monkeypatch.setattr(_torch_group, "_agreed", [0])
    monkeypatch.setattr(_torch_group, "_started", [0])

    def ask(store: Store, rank: int, environ: dict[str, str] | None = None):
        _torch_group._agreed[0] = _torch_group._started[0] = 0
        return detect_rank(environ or {}, process=group(rank, 2, lambda: store))

    return ask


def test_ranks_without_a_common_id_agree_through_their_group(asked):
    """Rank 0 names the session, by one key, and the others wait for it."""
    store = Store()
    first, second = asked(store, 0), asked(store, 1)
    assert [first.session_id] == [second.session_id]
    assert bytes(range(16)).hex() == first.session_id
    assert ["stormphase/session/1"] == [key for key in store.kept if "session" in key]


def test_ranks_that_are_restarted_in_one_store_go_on_with_the_session(asked):
    """As torchrun's agents keep theirs: the next attempt, the same on all."""
    store = Store()
    before = [asked(store, rank) for rank in range(2)]
    after = [asked(store, rank) for rank in (1, 0)]
    assert {before[0].session_id} == {each.session_id for each in (*before, *after)}
    assert [0, 0, 1, 1] == [each.attempt for each in (*before, *after)]


def test_a_rank_that_waits_in_vain_fails_and_says_what_to_set(asked):
    """Rank 0 starts no tracker, or there is no store."""
    for store in (Store(), None):
        with pytest.raises(ConfigurationError, match="or set STORMPHASE_SESSION_ID to one value") as caught:
            asked(store, 1)
        assert "rank 0 named no session to them within 10 s" in str(caught.value)


def test_ranks_that_one_process_spawned_need_not_ask(asked):
    """Rank 0 of a short job is gone before the last one has imported what it needs; on other hosts they do ask."""
    store = Store()
    here = [attrs.evolve(group(rank, 3, lambda: store), spawned=Spawned(LAUNCHER, rank)) for rank in range(3)]
    late = detect_rank({}, process=attrs.evolve(here[1], torch=TorchGroup(1, 3, None)))
    first = detect_rank({}, process=here[0])
    assert (first.session_id, 0) == (late.session_id, late.attempt)
    elsewhere = attrs.evolve(here[2], spawned=Spawned(LAUNCHER, 0), host="node8")
    asked(store, 0)
    from stormphase import _torch_group

    _torch_group._agreed[0] = 0
    assert first.session_id == detect_rank({}, process=elsewhere).session_id


def test_each_group_that_one_process_spawns_with_torch_is_a_session(asked):
    """The place in the group is the local rank, on each host; the second group of a process is another session."""
    calls = [Spawned(LAUNCHER, 1, before, is_by_torch=True) for before in (0, 2)]
    found = [detect_rank({}, process=attrs.evolve(group(1, 4, Store), spawned=call)) for call in calls]
    assert [1, 1] == [each.local_rank for each in found]
    assert 2 == len({each.session_id for each in found})
    store = Store()
    asked(store, 0)
    from stormphase import _torch_group

    _torch_group._agreed[0] = 0
    elsewhere = attrs.evolve(group(3, 4, lambda: store), spawned=calls[0], host="node8")
    assert 1 == detect_rank({}, process=elsewhere).local_rank


def test_ranks_of_srun_that_speaks_pmi_know_their_place_on_the_node():
    """PMI's variables do not say it, Slurm's beside them do; those of a Hydra below srun are about the host's proxy."""
    environ = {
        "PMI_RANK": "1",
        "PMI_SIZE": "3",
        "SLURM_JOB_ID": "2",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": "3",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_TASKS_PER_NODE": "3",
    }
    found = detect_rank(environ, process=PROCESS)
    assert ("pmi", 1, 3, 0) == (found.launcher, found.local_rank, found.local_world_size, found.node_rank)
    below = detect_rank({**environ, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, process=PROCESS)
    assert (0, None) == (below.local_rank, below.node_rank)


def test_ranks_that_were_spawned_below_an_agent_ask(asked):
    """The store is the agents', and lasts longer than the process that spawned them: they go on with its session."""
    store = Store()
    session_id = asked(store, 0).session_id
    from stormphase import _torch_group

    _torch_group._agreed[0] = 0
    process = attrs.evolve(group(1, 2, lambda: store), spawned=Spawned(LAUNCHER, 1))
    assert session_id == detect_rank({"TORCHELASTIC_USE_AGENT_STORE": "True"}, process=process).session_id


AGENTS = {
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RUN_ID": "job7",
    "WORLD_SIZE": "2",
}


def test_agents_of_torchrun_that_count_alone_are_not_believed(asked):
    """The one whose ranks failed says 1, the other one 0: all of them were started twice."""
    store = Store()
    runs = [[(0, "0"), (1, "0")], [(0, "1"), (1, "0")]]
    attempts = [
        [
            asked(store, rank, {**AGENTS, "RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": count}).attempt
            for rank, count in run
        ]
        for run in runs
    ]
    assert [[0, 0], [1, 1]] == attempts


def test_without_a_group_starts_are_counted_on_each_host(tmp_path, monkeypatch):
    """By launcher process and place: the second start is the next attempt, whatever the agent says."""
    from stormphase import _start_counts

    monkeypatch.setattr(_start_counts.tempfile, "gettempdir", lambda: str(tmp_path))
    attempts = []
    for _ in range(2):
        monkeypatch.setattr(_start_counts, "_counted", {})
        process = attrs.evolve(PROCESS, count_start=_start_counts.count_start)
        environ = {**AGENTS, "RANK": "1", "TORCHELASTIC_RESTART_COUNT": "0"}
        attempts += [detect_rank(environ, process=process).attempt for _ in range(2)]
    assert [0, 0, 1, 1] == attempts


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_a_directory_that_is_not_ones_own_counts_nothing(tmp_path, monkeypatch, kind):
    """Temporary directories are everybody's."""
    import os

    from stormphase import _start_counts

    monkeypatch.setattr(_start_counts.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(_start_counts, "_counted", {})
    place = tmp_path / f"stormphase-{os.getuid()}"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "open":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.write_text("")
    assert None is _start_counts.count_start("key")


# --- several programs of one launch -----------------------------------------------------------------------------------

BASH = AncestorProcess(3_000, "9", frozenset({"SLURM_PROCID", "SLURM_STEP_ID"}), name="bash")
STEPD = AncestorProcess(2_000, "5", None, name="slurmstepd")


@pytest.mark.parametrize(
    ("ancestors", "program", "expected"),
    [
        ((STEPD,), "train.py-1a2b3c", "slurm-c-2.1"),
        ((BASH, STEPD), "prepare.py-1a2b3c", "slurm-c-2.1.prepare.py-1a2b3c"),
        ((BASH, STEPD), "train.py-4d5e6f", "slurm-c-2.1.train.py-4d5e6f"),
        ((attrs.evolve(BASH, name="python3"), STEPD), "train.py-4d5e6f", "slurm-c-2.1.train.py-4d5e6f"),
        ((attrs.evolve(BASH, name="nsys"), STEPD), "train.py-4d5e6f", "slurm-c-2.1"),
        ((BASH, STEPD), None, "slurm-c-2.1"),
        ((BASH,), "train.py-4d5e6f", "slurm-c-2.1"),
    ],
)
def test_programs_that_a_driver_runs_one_after_the_other_are_sessions_each(ancestors, program, expected):
    """A shell on each rank may run several; who was started by the launcher itself is the only one."""
    process = attrs.evolve(PROCESS, ancestors=ancestors, program=program)
    assert expected == detect_rank(SRUN_IN_SHELL, process=process).session_id


def test_programs_that_one_launch_starts_at_once_are_one_session():
    """`mpirun -n 1 actor.sh : -n 1 learner.sh`: they work together."""
    process = attrs.evolve(PROCESS, ancestors=(attrs.evolve(BASH, environment={"PMI_RANK"}), STEPD), program="a-1")
    environ = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    together, alone = (
        detect_rank({**environ, "OMPI_NUM_APP_CTX": count}, process=process).session_id for count in ("2", "1")
    )
    assert f"{together}.a-1" == alone


def test_a_session_that_was_given_is_not_told_apart_by_program():
    """Who names it knows."""
    process = attrs.evolve(PROCESS, ancestors=(BASH, STEPD), program="train.py-1a2b3c")
    assert "s" == detect_rank({**SRUN_IN_SHELL, **SESSION}, process=process).session_id
