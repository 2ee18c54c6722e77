"""Boundaries as JSON, and what `record_of` refuses since it does not fit together."""

from __future__ import annotations

import json
import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase import PhaseBoundary, PhaseRecorder, record_of
from stormphase.testing import ManualClock

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def a_pair(**options):
    """Return the enter and the exit of one phase, 10 ns apart."""
    clock = ManualClock()
    recorder = PhaseRecorder(clock=clock)
    enter = recorder.enter_phase(session_id="s", rank=0, name="train", **options)
    clock.advance(10)
    scope = enter.metadata["phase_scope"]
    return enter, recorder.exit_phase(session_id="s", rank=0, scope_id=enter.scope_id, thread_id=scope["thread_id"])


ENTER, EXIT = a_pair()


def with_scope(boundary, **changes):
    """Return a boundary whose scope says something else."""
    scope = {**boundary.metadata["phase_scope"], **changes}
    return attrs.evolve(boundary, metadata={**boundary.metadata, "phase_scope": scope})


def changed(boundary, **fields):
    """Return its JSON with other fields; None takes one out."""
    found = {**json.loads(boundary.to_json()), **fields}
    return json.dumps({name: value for name, value in found.items() if value is not None})


@given(st.dictionaries(st.text(min_size=1), VALUES, max_size=4))
def test_a_boundary_read_back_is_equal(metadata):
    """Enter and exit, whatever plain values the caller gave."""
    metadata.pop("phase_scope", None)
    for boundary in a_pair(metadata=metadata):
        text = boundary.to_json()
        assert boundary == PhaseBoundary.from_json(text)
        assert text.isascii()
        assert "\n" not in text


def test_numbers_that_json_does_not_know_come_back():
    """Infinities and NaN, at any depth, in JSON that any reader takes."""
    enter, _ = a_pair()
    boundary = attrs.evolve(enter, metadata={**enter.metadata, "of mine": [math.inf, {"x": -math.inf, "y": math.nan}]})
    text = boundary.to_json()
    json.loads(text, parse_constant=pytest.fail)
    first, second = PhaseBoundary.from_json(text).metadata["of mine"]
    assert (math.inf, -math.inf) == (first, second["x"])
    assert math.isnan(second["y"])


def test_boundaries_of_failures_and_of_overdue_phases_are_read_back(make_tracker):
    """A sink's boundaries: with an error, its root cause, and one for a phase that is open too long."""
    found = []
    tracker = make_tracker(sinks=[found.append])
    with tracker, pytest.raises(ValueError, match="bad"), tracker.enter_phase("train"), tracker.enter_phase("step"):
        raise ValueError("bad")
    assert 4 == len(found)
    assert found == [PhaseBoundary.from_json(each.to_json()) for each in found]


def test_a_caller_s_object_cannot_be_written():
    """It is named, with what can be written instead."""
    enter, _ = a_pair()
    with pytest.raises(ValueError, match=r"'metadata.mine' of a boundary must be made of None, bool, int"):
        attrs.evolve(enter, metadata={**enter.metadata, "mine": object()}).to_json()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "must be a JSON object"),
        ("[]", "must be a JSON object, not list"),
        ("[" * 100_000, "must be a JSON object"),
        ('{"a": NaN}', "is not JSON"),
        ('{"a": 1, "a": 2}', "twice"),
        (changed(EXIT, schema_version=99), "Install a newer stormphase"),
        (changed(EXIT, schema_version="1"), "'schema_version' of a boundary must be a whole number"),
        (changed(EXIT, path=None), "'path' of a boundary is missing"),
        (changed(EXIT, path="train"), "'path' of a boundary must be a list"),
        (changed(EXIT, path=["evaluate"]), "'phase_scope.path' of a boundary must be"),
        (changed(EXIT, event_type="phase_end"), "'event_type' of a boundary must be one of phase_enter, phase_exit"),
        (changed(EXIT, event_type="phase_enter"), "'phase_scope.action' of a boundary must be 'enter'"),
        (changed(EXIT, scope_id="0"), "'scope_id' of a boundary must be 16 lower-case hex digits"),
        (changed(EXIT, metadata={}), "'metadata.phase_scope' of a boundary must be an object"),
        (changed(EXIT, more=1), "'more' is no field of a boundary"),
        (changed(EXIT, not_finite=[[["phase_scope", "rank"], "NaN"]]), "'not_finite' of a boundary must have pairs"),
        (changed(EXIT, not_finite={}), "'not_finite' of a boundary must be a list"),
    ],
    ids=range(17),
)
def test_what_is_no_boundary_is_refused(text, told):
    """Hostile, damaged or of another make: the error names the field and what it must be."""
    with pytest.raises(ValueError, match="boundary") as raised:
        PhaseBoundary.from_json(text)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("session_id", None),
        ("session_id", 5),
        ("rank", "zero"),
        ("rank", -1),
        ("rank", True),
        ("parent_scope_id", []),
        ("sequence", "7"),
        ("timestamp_ns", "100"),
        ("timestamp_ns", 1.5),
        ("status", "active"),
        ("status", "done"),
        ("status", []),
        ("step", "3"),
        ("thread_id", "x"),
        ("thread_name", 3),
        ("depth", 9),
        ("name", ""),
        ("path", ["a", "b"]),
        ("scope_id", 5),
        ("duration_ns", -1),
        ("duration_ns", 11),
        ("attributes", []),
        ("error", "bad"),
        ("error", {"type": "ValueError"}),
        ("root_cause_path", "train"),
        ("is_sync", 1),
        ("attempt", -1),
    ],
)
def test_a_scope_with_a_wrong_field_is_refused(field, value):
    """No record is made of nonsense, alone or as a pair, and the error names what is wrong."""
    with pytest.raises(ValueError, match=field):
        record_of(ENTER, with_scope(EXIT, **{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("session_id", "t"),
        ("rank", 1),
        ("parent_scope_id", "00000000000000aa"),
        ("sequence", 9),
        ("step", 9),
        ("session_attempt", 9),
        ("attempt", 9),
    ],
)
def test_boundaries_that_differ_in_what_a_phase_has_once_are_two_phases(field, value):
    """An enter and an exit tell of one phase only if they agree."""
    with pytest.raises(ValueError, match=f"of two phases: their {field}"):
        record_of(ENTER, with_scope(EXIT, **{field: value}))


def test_an_end_before_its_begin_is_refused():
    """The order of a pair is that of time, too."""
    late = with_scope(ENTER, timestamp_ns=EXIT.metadata["phase_scope"]["timestamp_ns"] + 5)
    with pytest.raises(ValueError, match="must not be before its enter's, and is 5 ns before it"):
        record_of(late, EXIT)


def test_an_ended_phase_is_not_one_that_was_entered():
    """An enter says `active`, and nothing else."""
    with pytest.raises(ValueError, match="must be 'active' while the phase is open"):
        record_of(with_scope(ENTER, status="failed"))


def test_of_a_moved_phase_the_last_owner_counts(make_tracker, step_thread):
    """Another thread's exit is no contradiction to the enter."""
    found = []
    tracker = make_tracker(sinks=[found.append])
    with tracker:
        token = tracker.enter_phase("moved").release()
        other = step_thread("other")
        other.do(lambda: tracker.acquire(token).close())
        tracker.flush()
    enter, exit_ = found
    assert "other" == record_of(enter, exit_).thread_name
