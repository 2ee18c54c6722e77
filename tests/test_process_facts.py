"""What a process knows of itself, read from /proc and from the libraries that are there."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stormphase import _process_facts
from stormphase._process_facts import AncestorProcess, PeerFacts, ProcessFacts

if TYPE_CHECKING:
    from collections.abc import Callable


def read_from(monkeypatch: pytest.MonkeyPatch, place_of: Callable[[str], Path]) -> None:
    """Let the facts be read from other files than those of /proc."""
    real_open = open
    monkeypatch.setattr(_process_facts, "open", lambda path, *a, **o: real_open(place_of(path), *a, **o), raising=False)


def test_the_facts_of_this_process():
    """What /proc says of this process is read, and nothing else is needed."""
    facts = ProcessFacts.of_this_process()
    assert (os.uname().nodename, os.getpid()) == (facts.host, facts.pid)
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() == facts.boot_id
    assert os.getppid() == facts.ancestors[0].pid
    assert facts.ancestors[0].started.isdigit()
    assert len({ancestor.pid for ancestor in facts.ancestors}) == len(facts.ancestors)
    assert 16 == len(facts.random_bytes(16))
    assert facts.random_bytes(16) != facts.random_bytes(16)


def test_a_child_sees_its_parent_as_it_was_started(run_python):
    """Names of variables are read, their values are not kept, and a parent's own are told from a rank's."""
    child = run_python(
        "import subprocess, sys\n"
        "code = 'from stormphase._process_facts import *; parent = ProcessFacts.of_this_process().ancestors[0];'"
        '       \'print("PMI_RANK" in parent.environment, "seven" in str(parent))\'\n'
        "print(subprocess.check_output([sys.executable, '-c', code], text=True), end='')",
        env={"PMI_RANK": "seven"},
    )
    assert "True False\n" == child.stdout


def test_without_proc_the_parent_is_known_by_its_id(monkeypatch):
    """Where nothing can be read, facts are None and nothing fails."""

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(_process_facts, "open", refuse, raising=False)
    monkeypatch.delattr(os, "uname")
    monkeypatch.setenv("COMPUTERNAME", "")
    facts = ProcessFacts.of_this_process()
    assert ((AncestorProcess(os.getppid()),), None) == (facts.ancestors, facts.boot_id)
    assert "localhost" == facts.host


def test_another_users_environment_is_unknown(monkeypatch):
    """A process whose environment may not be read is known by its id and time."""
    real_open = open

    def refuse(path, *arguments, **options):
        if path.endswith("/environ"):
            raise PermissionError
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(_process_facts, "open", refuse, raising=False)
    parent = ProcessFacts.of_this_process().ancestors[0]
    assert (os.getppid(), None) == (parent.pid, parent.environment)
    assert parent.started is not None


@pytest.mark.parametrize(
    ("stat", "expected"),
    [
        (
            f"7 (a) b) S 1 7 7 {'34817'} {'0 ' * 14}555 0",
            AncestorProcess(7, "555", frozenset({"A", "B"}), True, "a) b"),
        ),
        (f"7 (sh) S 0 7 7 0 {'0 ' * 14}555 0", AncestorProcess(7, "555", frozenset({"A", "B"}), False, "sh")),
        ("7 (sh) S", AncestorProcess(7)),
        ("", AncestorProcess(7)),
        ("7 (sh) S x y z", AncestorProcess(7)),
    ],
    ids=["shell", "init", "torn", "empty", "nonsense"],
)
def test_proc_is_read_with_care(monkeypatch, tmp_path, stat, expected):
    """A process's name may hold parentheses, and a file of /proc may end anywhere."""
    (tmp_path / "stat").write_text(stat)
    (tmp_path / "environ").write_bytes(b"A=1\0B=\0")
    real_open = open
    monkeypatch.setattr(
        _process_facts,
        "open",
        lambda path, *a, **o: real_open(tmp_path / path.rpartition("/")[2], *a, **o),
        raising=False,
    )
    assert expected == _process_facts._ancestors(7)[0]


def test_a_circle_of_ancestors_ends(monkeypatch, tmp_path):
    """However the process tree looks, reading it ends."""
    (tmp_path / "stat").write_text(f"7 (sh) S 7 7 7 0 {'0 ' * 14}555 0")
    real_open = open
    monkeypatch.setattr(
        _process_facts, "open", lambda path, *a, **o: real_open(tmp_path / "stat", *a, **o), raising=False
    )
    assert _process_facts._MAX_ANCESTORS == len(_process_facts._ancestors(7))


def fake_ray(**changes: object) -> types.SimpleNamespace:
    """Return what has the functions of `ray`, of its runtime context, of `ray.train` and of its context."""
    answers = {
        "is_initialized": True,
        "get_session_name": "session_x",
        "get_job_id": "01000000",
        "get_experiment_name": "digits",
        "get_world_rank": 3,
        "get_world_size": 4,
        "get_local_rank": 1,
        "get_local_world_size": 2,
        "get_node_rank": True,
        **changes,
    }
    ray = types.SimpleNamespace(**{name: lambda answer=answer: answer for name, answer in answers.items()})
    ray.get_runtime_context = ray.get_context = lambda: ray
    return ray


OLD_RAY = fake_ray()
del OLD_RAY.get_session_name


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ({}, None),
        ({"ray": fake_ray(is_initialized=False)}, None),
        ({"ray": OLD_RAY}, None),
        ({"ray": object()}, None),
        ({"ray": fake_ray()}, PeerFacts(job_id="session_x-01000000")),
        ({"ray": fake_ray(), "ray.train": object()}, PeerFacts(job_id="session_x-01000000")),
        ({"ray": fake_ray(), "ray.train": fake_ray()}, PeerFacts(3, 4, 1, 2, None, "session_x-01000000-digits")),
    ],
    ids=["absent", "stopped", "old", "strange", "core", "strange-train", "train"],
)
def test_ray_is_asked_if_it_is_there(modules, expected):
    """What Ray knows is taken if it has been imported and initialised, and nothing it does can fail."""
    assert expected == _process_facts._ray_facts(modules)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (None, None),
        ({"client": None, "process_id": 0, "num_processes": None}, None),
        ({"client": "c", "process_id": 2, "num_processes": 4}, PeerFacts(rank=2, world_size=4)),
        ({"client": "c"}, None),
    ],
    ids=["absent", "not-initialised", "initialised", "strange"],
)
def test_jax_is_asked_if_it_is_there(state, expected):
    """What JAX's distributed runtime knows is taken once it has been initialised, without starting a backend."""
    module = types.SimpleNamespace(global_state=types.SimpleNamespace(**(state or {})))
    assert expected == _process_facts._jax_facts({} if state is None else {"jax._src.distributed": module})


def test_reading_the_facts_imports_nothing(run_python):
    """Neither Ray nor JAX nor torch is imported to find out that they are not there."""
    child = run_python(
        "import sys; from stormphase._process_facts import ProcessFacts; ProcessFacts.of_this_process();"
        "print({'ray', 'jax', 'torch', 'asyncio'} & set(sys.modules))"
    )
    assert "set()\n" == child.stdout
