"""What every test file may use, and what holds after every test: nothing leaked.

The installed package is what is tested. `python -m pytest` puts the working directory first on `sys.path`, and there
stands a folder `stormphase` that need not be what is installed; so that entry goes before anything imports the package.
With an editable install the same folder is found again, through the path that the install added.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if sys.path[0] in ("", os.getcwd()):  # noqa: PTH109  (sys.path has strings)
    del sys.path[0]

import hypothesis
import pytest
from opentelemetry import context as otel_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase._recorder import PhaseRecorder
    from stormphase._tracker import PhaseTracker
    from stormphase.testing import ManualClock

# What is out of order within stormphase itself is an error here, in every test and in the processes that it starts.
os.environ["STORMPHASE_CHECKS"] = "1"

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


class StepThread:
    """A real thread that does one thing at a time, when it is told to: interleavings without sleep or luck."""

    def __init__(self, name: str | None = None, target: Callable[[Callable[[], None]], object] | None = None) -> None:
        """Start; `target`, if given, is called in the thread with the loop that serves the steps."""
        self._steps: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], Future[Any]] | None]
        self._steps = queue.SimpleQueue()
        self.thread = threading.Thread(
            target=self._serve if target is None else target, args=() if target is None else (self._serve,), name=name
        )
        self.thread.start()

    def do(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call in the thread, wait, and return or raise what came of it."""
        return self.begin(call, *arguments).result(THREAD_END_S)

    def begin(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call in the thread and do not wait."""
        outcome: Future[Any] = Future()
        self._steps.put((call, arguments, outcome))
        return outcome

    def end(self) -> None:
        """Let the thread end, and wait until it has."""
        self._steps.put(None)
        self.thread.join(THREAD_END_S)

    def _serve(self) -> None:
        while (step := self._steps.get()) is not None:
            call, arguments, outcome = step
            try:
                outcome.set_result(call(*arguments))
            except BaseException as error:
                outcome.set_exception(error)
            del step, call, arguments, outcome


@pytest.fixture
def step_thread() -> Iterator[Callable[..., StepThread]]:
    """Make threads that work step by step; those still alive end with the test."""
    made: list[StepThread] = []

    def make(name: str | None = None, target: Callable[[Callable[[], None]], object] | None = None) -> StepThread:
        made.append(StepThread(name, target))
        return made[-1]

    yield make
    for thread in made:
        thread.end()


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that moves only when it is told to."""
    from stormphase.testing import ManualClock

    return ManualClock()


@pytest.fixture
def recorder(clock: ManualClock) -> PhaseRecorder:
    """Return a strict recorder on the manual clock."""
    from stormphase._recorder import PhaseRecorder

    return PhaseRecorder(clock=clock)


@pytest.fixture
def lanes(recorder: PhaseRecorder) -> LaneSet:
    """Return the recorder's lanes of session "s", rank 0."""
    return recorder.lane_set("s", 0)


@pytest.fixture
def lenient(clock: ManualClock) -> LaneSet:
    """Return lanes that recover from misuse, count it and never raise."""
    from stormphase._recorder import PhaseRecorder

    return PhaseRecorder(clock=clock, on_misuse="record").lane_set("s", 0)


@pytest.fixture
def ended(lanes: LaneSet, lenient: LaneSet) -> list[PhaseHandle]:
    """Return the list in which every phase of `lanes` and of `lenient` stands once it has ended, in that order."""
    found: list[PhaseHandle] = []
    lanes.exit_queues = lenient.exit_queues = (found.append,)
    return found


@pytest.fixture
def make_tracker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., PhaseTracker]]:
    """Make trackers, without a bridge unless told otherwise; those that still run stop with the test.

    No other test has used up a session id.
    """
    from stormphase import _claims
    from stormphase._tracker import PhaseTracker

    monkeypatch.setattr(_claims, "_claimed", {})
    made: list[PhaseTracker] = []

    def make(name: str | None = None, **options: Any) -> PhaseTracker:
        made.append(PhaseTracker(name, **{"bridge": None, **options}))
        return made[-1]

    yield make
    for tracker in made:
        tracker.stop()


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail the test that leaves a thread, a signal handler, an environment variable, an OTel context or a phase."""
    threads = set(threading.enumerate())
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    environ = _environ()
    current = otel_context.get_current()
    recorders = set(_recorders())
    yield
    assert current == otel_context.get_current(), "the test left an OpenTelemetry context attached"
    assert [] == [thread.name for thread in _threads_left(threads)], "the test left threads running"
    assert handlers == {number: signal.getsignal(number) for number in SIGNALS}, "the test left a signal handler"
    assert environ == _environ(), "the test left the environment changed"
    assert [] == _phases_left(recorders), "the test left phases open, or one in this thread's context"


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


def _recorders() -> tuple[PhaseRecorder, ...]:
    return tuple(getattr(sys.modules.get("stormphase._recorder"), "_recorders", ()))


def _phases_left(before: set[PhaseRecorder]) -> list[str]:
    """Name the phases that new recorders have open, and those that this thread's context still carries."""
    found = []
    for lanes in [lanes for recorder in set(_recorders()) - before for lanes in recorder._lane_sets.values()]:
        found += [phase.label for phase in lanes.open_phases()]
        carried = lanes.carrier.current_phase()
        if carried is not None:
            found.append(f"in context: {carried.label}")
    return found
