"""Records from boundaries."""

from __future__ import annotations

import threading

import attrs
import pytest

from stormphase._boundary import enter_boundary, exit_boundary, misuse_boundary
from stormphase._model import PhaseStatus, ProcessIdentity
from stormphase._record import OutputLine
from stormphase._recording import record_of
from stormphase.testing import START_MONOTONIC_NS, START_WALL_NS

PROCESS = ProcessIdentity(host="h", boot_id=None, pid=1, started=None, pid_namespace=None)
LINE = OutputLine(1, "stdout", "hello")


def without(boundary, *names):
    """Return a boundary whose scope lacks some of its facts, as another recorder's may."""
    scope = {key: value for key, value in boundary.metadata["phase_scope"].items() if key not in names}
    return attrs.evolve(boundary, metadata={"phase_scope": scope})


def test_a_pair_tells_the_whole_story(lanes, clock):
    """Times on both clocks, own time, pauses, attributes set late, and where it stands."""
    lanes.step = 3
    outer = lanes.enter_phase("train")
    clock.advance(5)
    phase = lanes.enter_phase("all_reduce", {"a": 1}, sync=True)
    enter = enter_boundary(phase)
    clock.advance(10)
    phase.pause()
    clock.advance(100)
    phase.resume()
    phase.set_attribute("b", 2)
    lanes.enter_phase("inner").close()
    clock.advance(1)
    phase.close()
    outer.close()
    record = record_of(enter, exit_boundary(phase), process=PROCESS, correlation_id="c", output=[LINE])
    assert ("s", 0, 0, "c") == (record.session_id, record.session_attempt, record.rank, record.correlation_id)
    assert (phase.scope_id, outer.scope_id, ("train", "all_reduce")) == (
        record.scope_id,
        record.parent_scope_id,
        record.path,
    )
    assert (START_WALL_NS + 5, START_WALL_NS + 116) == (record.entered_ns, record.ended_ns)
    assert (START_MONOTONIC_NS + 5, START_MONOTONIC_NS + 116) == (
        record.entered_monotonic_ns,
        record.ended_monotonic_ns,
    )
    assert (111, 11, 100) == (record.duration_ns, record.self_ns, record.paused_ns)
    assert (2, 0, 3, True) == (record.sequence, record.attempt, record.step, record.is_sync)
    assert {"a": 1, "b": 2} == record.attributes
    assert (PhaseStatus.SUCCEEDED, None, None) == (record.status, record.error_type, record.root_cause_scope_id)
    assert (threading.get_ident(), "MainThread", None) == (record.thread_id, record.thread_name, record.task_name)
    assert (PROCESS, (LINE,)) == (record.process, record.output)


def test_an_exit_alone_tells_the_same(lanes, clock):
    """The exit says all that the enter said."""
    phase = lanes.enter_phase("train", {"a": 1})
    enter = enter_boundary(phase)
    clock.advance(10)
    phase.close()
    assert record_of(enter, exit_boundary(phase)) == record_of(exit=exit_boundary(phase))


def test_an_enter_alone_is_an_open_phase(lanes):
    """Without an end, and with what was known then, even if the phase has ended meanwhile."""
    phase = lanes.enter_phase("train", {"a": 1}, sync=True)
    phase.set_attribute("b", 2)
    phase.close()
    record = record_of(enter_boundary(phase), process=PROCESS)
    assert (PhaseStatus.ACTIVE, START_WALL_NS, None, None, None) == (
        record.status,
        record.entered_ns,
        record.ended_ns,
        record.ended_monotonic_ns,
        record.self_ns,
    )
    assert ({"a": 1}, True, PROCESS) == (record.attributes, record.is_sync, record.process)


def test_a_failure_and_its_way_up(lanes, ended):
    """Type, message, traceback and root cause at the origin; above, a reference with its path."""
    with pytest.raises(ValueError, match="bad"), lanes.enter_phase("train"), lanes.enter_phase("step"):
        raise ValueError("bad")
    step, train = (record_of(exit=exit_boundary(phase)) for phase in ended)
    assert ("ValueError", "bad") == (step.error_type, step.error_message)
    assert "raise ValueError" in step.traceback
    assert None is train.traceback
    assert {(step.scope_id, ("train", "step"))} == {(r.root_cause_scope_id, r.root_cause_path) for r in (step, train)}
    assert {PhaseStatus.FAILED} == {step.status, train.status}


def test_why_a_phase_was_abandoned_is_told(lenient, ended):
    """ABANDONED has a reason."""
    with lenient.enter_phase("train"):
        step = lenient.enter_phase("step")
    record = record_of(exit=exit_boundary(step))
    assert PhaseStatus.ABANDONED == record.status
    assert "was closed over it" in record.reason


def test_boundaries_of_two_phases_are_no_pair(lanes):
    """A wrong pair is refused rather than made one story of."""
    first, second = lanes.enter_phase("a"), lanes.enter_phase("b")
    second.close()
    first.close()
    with pytest.raises(ValueError, match="two phases"):
        record_of(enter_boundary(first), exit_boundary(second))


def test_what_is_no_boundary_of_a_phase_is_refused(lanes):
    """Nothing at all, swapped boundaries, and the answer to misuse."""
    phase = lanes.enter_phase("a")
    phase.close()
    with pytest.raises(ValueError, match="needs a boundary"):
        record_of()
    with pytest.raises(ValueError, match="swap them"):
        record_of(exit_boundary(phase), enter_boundary(phase))
    with pytest.raises(ValueError, match="phase_misuse"):
        record_of(exit=misuse_boundary("no"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"enter": "x"}, r"'enter' of record_of is 'x'.*PhaseBoundary.from_json"),
        ({"exit": {}}, r"'exit' of record_of is {}.*PhaseBoundary.from_json"),
        ({"process": "x"}, r"'process' of record_of is 'x'.*ProcessIdentity"),
        ({"correlation_id": 5}, r"'correlation_id' of record_of is 5.*string"),
        ({"output": "lines"}, r"'output' of record_of is 'lines'.*OutputLine"),
        ({"output": [1]}, r"'output' of record_of is \[1\].*OutputLine"),
        ({"output": 5}, r"'output' of record_of is 5.*OutputLine"),
    ],
)
def test_an_argument_of_another_kind_is_named_with_what_to_give(lanes, arguments, says):
    """Whichever it is, beside others that are right."""
    phase = lanes.enter_phase("train")
    phase.close()
    with pytest.raises(ValueError, match=says):
        record_of(**{"enter": enter_boundary(phase), "exit": exit_boundary(phase), **arguments})


def test_an_enter_is_never_guessed_at(lanes):
    """An exit that does not say when it began needs its enter."""
    phase = lanes.enter_phase("a")
    phase.close()
    bare = without(exit_boundary(phase), "duration_ns", "monotonic_ns", "session_attempt", "attempt", "self_ns")
    with pytest.raises(ValueError, match="give its enter as well"):
        record_of(exit=bare)
    record = record_of(enter_boundary(phase), bare)
    assert (0, None, None, 0, 0) == (
        record.duration_ns,
        record.self_ns,
        record.entered_monotonic_ns,
        record.attempt,
        record.session_attempt,
    )
