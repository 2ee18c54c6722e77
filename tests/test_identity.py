"""Who a tracker says it is, in the environments that real launchers make."""

from __future__ import annotations

import os

import pytest

from stormphase import ConfigurationError, RankIdentity

TORCHRUN_RUN_ID = "0f0e0d0c-0b0a-0908-0706-050403020100"
LAUNCHERS = {
    "torchrun": {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "TORCHELASTIC_RUN_ID": TORCHRUN_RUN_ID,
        "TORCHELASTIC_RESTART_COUNT": "2",
    },
    "open_mpi": {
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_SIZE": "8",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "PMIX_NAMESPACE": "prterun-host-1234@1",
    },
    "pmi": {"PMI_RANK": "3", "PMI_SIZE": "8", "PALS_APID": "job-77", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
    "slurm": {
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_RESTART_COUNT": "2",
        "SLURM_TASKS_PER_NODE": "2(x4)",
    },
    "jax": {"JAX_PROCESS_ID": "3", "JAX_NUM_PROCESSES": "8", "STORMPHASE_SESSION_ID": "jax-run"},
}


@pytest.fixture(autouse=True)
def launched_by_nobody(monkeypatch):
    """Take out of the environment what a launcher of the tests themselves has put there."""
    prefixes = ("STORMPHASE_", "TORCHELASTIC_", "OMPI_", "PMIX_", "PMI_", "PALS_", "SLURM_", "JAX_", "RAY_", "MPI_")
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")
    for name in tuple(os.environ):
        if name.startswith(prefixes) or name in names:
            monkeypatch.delenv(name)


@pytest.fixture
def launch(monkeypatch):
    """Set a launcher's variables."""

    def launch(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_tracker_is_the_rank_that_its_launcher_says(make_tracker, launch, launcher):
    """Rank and world size come from the launcher, and reach every boundary."""
    launch(**LAUNCHERS[launcher])
    seen = []
    with make_tracker(sinks=[seen.append]) as tracker, tracker.enter_phase("step"):
        identity = tracker.identity
    assert (launcher, 3, 8) == (identity.launcher, identity.rank, identity.world_size)
    scope = seen[0].metadata["phase_scope"]
    assert (3, identity.session_id) == (scope["rank"], scope["session_id"])


def test_torchrun_in_full(make_tracker, launch):
    """Its run id is the session, its restarts are the attempts, its groups are the nodes."""
    launch(**LAUNCHERS["torchrun"])
    with make_tracker() as tracker:
        assert (
            RankIdentity(
                session_id=TORCHRUN_RUN_ID,
                attempt=2,
                rank=3,
                local_rank=1,
                world_size=8,
                local_world_size=2,
                node_rank=1,
                host=tracker.identity.host,
                launcher="torchrun",
            )
            == tracker.identity
        )


def test_slurm_in_full(make_tracker, launch):
    """Job and step are the session, its restarts are the attempts."""
    launch(**LAUNCHERS["slurm"])
    with make_tracker() as tracker:
        identity = tracker.identity
    assert ("slurm-4711.0", 2, 1, 2, 1) == (
        identity.session_id,
        identity.attempt,
        identity.local_rank,
        identity.local_world_size,
        identity.node_rank,
    )


def test_torchruns_word_none_is_no_session(make_tracker, launch):
    """Ranks of several hosts that cannot agree fail at start, and learn which variable to set."""
    launch(**LAUNCHERS["torchrun"] | {"TORCHELASTIC_RUN_ID": "none"})
    with pytest.raises(ConfigurationError, match="Set STORMPHASE_SESSION_ID to one value on all ranks") as raised:
        make_tracker().start()
    assert "STORMPHASE_SESSION_ID" == raised.value.setting


def test_a_single_process_has_a_new_session_each_time(make_tracker):
    """Nobody has to name anything to begin."""
    with make_tracker() as one, make_tracker() as other:
        assert 1 == one.identity.world_size
        assert one.session_id != other.session_id


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({"STORMPHASE_SESSION_ID": "from-environment"}, {}, "from-environment"),
        ({"STORMPHASE_SESSION_ID": "from-environment"}, {"session_id": "explicit"}, "explicit"),
        ({**LAUNCHERS["torchrun"], "STORMPHASE_SESSION_ID": "beats-launcher"}, {}, "beats-launcher"),
    ],
)
def test_the_session_of_who_knows_best(make_tracker, launch, variables, options, expected):
    """The caller's word before the environment's, and that before the launcher's."""
    launch(**variables)
    with make_tracker(**options) as tracker:
        assert expected == tracker.session_id


def test_explicit_rank_and_size_beat_the_launcher(make_tracker, launch):
    """A program that splits its ranks itself knows better."""
    launch(**LAUNCHERS["torchrun"])
    with make_tracker(rank=0, world_size=2, session_id="split") as tracker:
        assert ("explicit", 0, 2) == (tracker.identity.launcher, tracker.identity.rank, tracker.identity.world_size)


@pytest.mark.parametrize(
    ("variables", "fix"),
    [
        ({"RANK": "8", "WORLD_SIZE": "8"}, "RANK must be less than WORLD_SIZE"),
        ({"RANK": "one", "WORLD_SIZE": "8"}, "Set it to an integer from 0, or unset it"),
        ({"RANK": "1"}, "Set both, or neither"),
        ({"STORMPHASE_SESSION_ID": "../../etc"}, "Use 1 to 128 of the characters"),
    ],
)
def test_an_environment_that_makes_no_sense_fails_at_start(make_tracker, launch, variables, fix):
    """Rather than after hours, in a backend that shows one rank twice; also with `on_misuse="record"`."""
    launch(**variables)
    for on_misuse in ("raise", "record"):
        with pytest.raises(ConfigurationError, match=fix):
            make_tracker(on_misuse=on_misuse).start()
