"""Jobs for the tests of commands: hand-made ones, and real ones whose ranks are this process and a dead child."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stormphase.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import RunPython


def _load_jobs() -> Any:
    """Return tests/analysis/jobs.py as the module `jobs`: folders of tests are no packages."""
    if "jobs" not in sys.modules:
        path = Path(__file__).parent.parent / "analysis" / "jobs.py"
        spec = importlib.util.spec_from_file_location("jobs", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["jobs"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["jobs"]


_load_jobs()


@pytest.fixture
def job() -> Any:
    """Return a job of four ranks without journals."""
    return _load_jobs().Job()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return the directory of the journals."""
    return tmp_path / "runs"


@pytest.fixture
def command(runs: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `stormphase COMMAND RUNS ...` here; return its exit code and what it wrote."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([name, str(runs), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def command_json(command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, Any]]:
    """Run `stormphase postmortem RUNS --json ...`; return its exit code and what its output means."""

    def run(*arguments: str) -> tuple[int, Any]:
        code, out, _ = command("postmortem", "--json", *arguments)
        return code, json.loads(out)

    return run


KILLED = """
import os, sys
from stormphase import PhaseTracker

tracker = PhaseTracker("job", session_id="job-1", rank=1, world_size=int(sys.argv[2]), journal=sys.argv[1], bridge=None)
tracker.start()
tracker.enter("train", attributes={"epochs": 3, "evil\\x1b[31m": "\\x1b[2J"})
for step in range(20):
    tracker.set_step(step)
    with tracker.enter_phase("step"):
        with tracker.enter_phase("all_reduce", sync=True):
            pass
tracker.set_step(20)
tracker.enter("step")
tracker.enter("data_loading")
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def kill_rank(runs: Path, run_python: RunPython) -> Callable[[int], None]:
    """Let a real process be rank 1 of so many, and die in train / step / data_loading of step 20."""

    def kill(world_size: int) -> None:
        assert -9 == run_python(KILLED, str(runs), str(world_size), check=False).returncode

    return kill


@pytest.fixture
def killed_rank(kill_rank: Callable[[int], None]) -> None:
    """Let a real process be rank 1 of 2, and die there."""
    kill_rank(2)
