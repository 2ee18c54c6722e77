"""What every test file may use, and what holds after every test: nothing leaked.

The installed package is what is tested. `python -m pytest` puts the working directory first on `sys.path`, and there
stands a folder `stormphase` that need not be what is installed; so that entry goes before anything imports the package.
With an editable install the same folder is found again, through the path that the install added.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if sys.path[0] in ("", os.getcwd()):  # noqa: PTH109  (sys.path has strings)
    del sys.path[0]

import hypothesis
import pytest
from opentelemetry import context as otel_context

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent

# No deadline: a machine that is busy must not turn a right example into a failure.
hypothesis.settings.register_profile("stormphase", deadline=None)
hypothesis.settings.load_profile("stormphase")

# Threads that others keep for reuse after our test is over, by the beginning of their names.
POOLED_THREADS = (
    "Trio thread ",  # trio keeps an idle worker for some seconds
)
THREAD_END_S = 10  # how long a thread that was told to end may need on a loaded machine
SIGNALS = tuple(sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))


class RunPython(Protocol):
    """Runs source text in a new process of this Python."""

    def __call__(
        self, source: str, *arguments: str, env: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Return the finished process with its output; with `check`, a failure shows what it wrote."""


@pytest.fixture
def repository() -> Path:
    """Return the root of the checkout, where pyproject.toml, README.md and examples stand."""
    return ROOT


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run source text in a new process of this Python, from an empty folder, on the installed package.

    `env` is added to this process's environment; a name with value "" is unset.
    """

    def run(
        source: str, *arguments: str, env: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        whole = {**os.environ, **(env or {})}
        child = subprocess.run(
            [sys.executable, "-c", source, *arguments],
            cwd=tmp_path,
            env={name: value for name, value in whole.items() if value and name != "PYTHONPATH"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        if check:
            assert (0, child.stderr) == (child.returncode, child.stderr), f"{child.stdout}\n{child.stderr}"
        return child

    return run


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail the test that leaves a thread, a signal handler, an environment variable or an OTel context behind."""
    threads = set(threading.enumerate())
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    environ = _environ()
    current = otel_context.get_current()
    yield
    assert current == otel_context.get_current(), "the test left an OpenTelemetry context attached"
    assert [] == [thread.name for thread in _threads_left(threads)], "the test left threads running"
    assert handlers == {number: signal.getsignal(number) for number in SIGNALS}, "the test left a signal handler"
    assert environ == _environ(), "the test left the environment changed"


def _environ() -> dict[str, str]:
    """Return the environment without the name under which pytest says what it is doing."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _threads_left(before: set[threading.Thread]) -> list[threading.Thread]:
    new = [
        thread
        for thread in threading.enumerate()
        if thread not in before and not thread.name.startswith(POOLED_THREADS)
    ]
    for thread in new:
        thread.join(THREAD_END_S)
    return [thread for thread in new if thread.is_alive()]
