"""What random programs have found, each as small as it can be: two tellers that disagreed of one phase."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from opentelemetry.sdk.trace import TracerProvider

from stormphase import PhaseTracker
from stormphase.otel import OTelBridge
from stormphase.records import read_records


class HeldSink:
    """A sink that takes nothing until it is let go."""

    def __init__(self):
        self.boundaries = []
        self._may_go = threading.Event()

    def __call__(self, boundary):
        """Wait, and keep the boundary."""
        self._may_go.wait(10)
        self.boundaries.append(boundary)

    def let_go(self):
        """Let all come."""
        self._may_go.set()

    def enters(self, name):
        """Return what the enters of a name said."""
        scopes = [each.metadata["phase_scope"] for each in self.boundaries]
        return [scope for scope in scopes if (scope["action"], scope["name"]) == ("enter", name)]


@pytest.fixture
def phases_of(tmp_path):
    """Run a program in a forked child that is a process of its own, and return the phases in its journal, by name."""

    def run(program):
        pid = os.fork()
        if not pid:
            try:
                program(tmp_path / "runs")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        return {record.name: record for record in read_records(tmp_path / "runs") if record.kind.value == "phase"}

    return run


def test_an_enter_that_a_sink_takes_late_says_what_it_was_though_the_phase_was_acquired_since():
    """The handle that was released is nobody's any more, and still tells its parent, its attempt and its kind."""
    sink = HeldSink()
    with PhaseTracker(bridge=None, sinks=[sink]) as tracker, tracker.enter_phase("train") as train:
        with tracker.enter_phase("load") as load:
            pass
        again = tracker.retry(load)
        sync = tracker.enter_phase("all_reduce", sync=True)
        with tracker.acquire(sync.release()):
            pass
        with tracker.acquire(again.release()):
            pass
        sink.let_go()
    (_, enter), (wait,) = sink.enters("load"), sink.enters("all_reduce")
    assert (train.scope_id, 1, load.scope_id) == tuple(
        enter[name] for name in ("parent_scope_id", "attempt", "retry_of_scope_id")
    )
    assert (again.scope_id, True) == (wait["parent_scope_id"], wait["is_sync"])


def test_a_journal_knows_phases_that_begin_a_trace_by_the_id_that_all_others_know(tmp_path):
    """With `trace_per` the root of a trace has an id that all ranks derive; its record and its children's say so."""
    bridge = OTelBridge(TracerProvider(), trace_per="step", recover=False)
    tracker = PhaseTracker(bridge=bridge, journal=tmp_path)
    with tracker, tracker.enter_phase("step") as step, tracker.enter_phase("forward") as forward:
        scopes = {"step": step.scope_id, "forward": forward.scope_id}
    records = {record.name: record for record in read_records(tmp_path) if record.kind.value == "phase"}
    assert scopes == {name: records[name].scope_id for name in scopes}
    assert scopes["step"] == records["forward"].parent_scope_id


def test_a_session_that_sigterm_stops_leaves_a_journal_with_all_details(phases_of):
    """It is stopped from a thread that has entered nothing; why a phase ended and what was set late is there."""

    def program(directory):
        tracker = PhaseTracker(bridge=None, journal=directory, stop_on_sigterm=True)
        with tracker, tracker.enter_phase("train", {"epochs": 3}) as phase:
            phase.set_attribute("loss", 0.5)
            os.kill(os.getpid(), signal.SIGTERM)

    train = phases_of(program)["train"]
    assert ("abandoned", "the session stopped") == (train.status.value, train.reason)
    assert {"epochs": 3, "loss": 0.5} == train.attributes


def test_a_journal_names_the_task_of_phases_inside_the_outermost_one(phases_of):
    """As stores and sinks do, and not of the outermost phase alone."""

    def program(directory):
        import asyncio

        async def work():
            with tracker.enter_phase("fetch"), tracker.enter_phase("read"):
                pass

        async def main():
            await asyncio.create_task(work(), name="fetcher")

        with PhaseTracker(bridge=None, journal=directory) as tracker:
            asyncio.run(main())

    phases = phases_of(program)
    assert ("fetcher", "fetcher") == (phases["fetch"].task_name, phases["read"].task_name)
