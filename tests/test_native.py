"""The compiled half of the hot path: it does what the Python does, and stands in for all of it or for none."""

from __future__ import annotations

import contextlib
import copy
import gc
import hashlib
import inspect
import mmap
import sys
from contextvars import ContextVar, copy_context
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from opentelemetry.context import Context

import stormphase
from stormphase import PhaseHandle, PhaseStatus, PhaseTracker, _enter, _native
from stormphase._lanes import LaneSet
from stormphase._phase import PhaseExtra
from stormphase._recorder import PhaseRecorder
from stormphase.journal import _format
from stormphase.otel._span import PhaseSpan

compiled = pytest.mark.skipif(_native.speedups is None, reason="not built here, or STORMPHASE_PURE is set")


IMPLEMENTATIONS = [
    pytest.param((LaneSet.enter_phase, PhaseHandle.__exit__), id="installed"),
    pytest.param((_enter.enter_phase, _native.python_exit), id="python"),
]


class Clock:
    """Moves on by one with each reading, and does once what it is told to, as a signal handler may."""

    def __init__(self):
        self.now_ns = 1_000
        self.then = None

    def monotonic_ns(self):
        """Return one more than the last time."""
        self.now_ns += 1
        then, self.then = self.then, None
        if then is not None:
            then()
        return self.now_ns

    wall_ns = monotonic_ns


@pytest.fixture
def clock():
    """Return a clock that tests move."""
    return Clock()


@pytest.fixture
def lanes(clock):
    """Return lanes by that clock."""
    return PhaseRecorder(clock=clock).lane_set("s", 0)


def test_stormphase_pure_keeps_the_python(run_python):
    """With STORMPHASE_PURE=1 nothing that is compiled is loaded, and phases work."""
    code = """
import sys
from stormphase import PhaseHandle, PhaseTracker, _native
with PhaseTracker("t", session_id="s", rank=0, world_size=1, bridge=None) as tracker:
    with tracker.enter_phase("a") as phase:
        pass
is_python = PhaseHandle.__exit__ is _native.python_exit
print(_native.speedups, "stormphase._speedups" in sys.modules, phase.status, is_python)
"""
    assert "None False succeeded True\n" == run_python(code, env={"STORMPHASE_PURE": "1"}).stdout


@compiled
def test_what_is_loaded_was_built_from_the_source_beside_it():
    """An installation from a checkout is made anew after a change of the C: `pip install -e .`."""
    source = Path(stormphase.__file__).with_name("_speedups.c")
    if source.exists():
        parts = [source, *sorted(source.parent.glob("_c/*.h"))]
        digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
        assert digest == _native.speedups.SOURCE
    assert type(PhaseHandle.__exit__) is type(str.join)
    assert type(PhaseTracker.enter_phase) is type(str.join)


@compiled
def test_it_shows_the_signature_and_the_docstring_of_the_python():
    """What `help` says does not depend on what was built."""
    python = inspect.signature(_enter.enter_phase)
    parameters = inspect.signature(PhaseTracker.enter_phase).parameters
    assert [each.name for each in python.parameters.values()] == list(parameters)
    assert [each.default for each in python.parameters.values()] == [each.default for each in parameters.values()]
    assert inspect.cleandoc(_enter.enter_phase.__doc__) == inspect.cleandoc(PhaseTracker.enter_phase.__doc__)
    assert "PhaseTracker.enter_phase" == PhaseTracker.enter_phase.__qualname__
    assert PhaseTracker.enter_phase is copy.copy(PhaseTracker.enter_phase)


@compiled
def test_it_binds_once_and_refuses_what_has_no_such_slots():
    """Another interpreter's or a reloaded package's classes are refused, and stay Python's."""
    with pytest.raises(TypeError, match="missing"):
        _native.speedups.bind(handle=PhaseHandle)
    enter_phase = LaneSet.enter_phase
    before = _native.speedups
    try:
        _native.quicken(LaneSet)
        assert None is _native.speedups
    finally:
        _native.speedups = before
    assert enter_phase is LaneSet.enter_phase
    with pytest.raises(TypeError, match="not a span's class"):
        before.span_put(ContextVar("v"), "a", "b", Context, str)


def test_a_call_that_is_not_plain_is_the_pythons_with_its_errors(lanes):
    """Wrong calls say what the Python says, word for word."""
    for args, kwargs in (
        ((), {}),
        (("a", None, False, None, 1), {}),
        (("a",), {"unknown": 1}),
        (("a",), {"attributes": 3}),
        (("a", 3), {}),
        ((3,), {}),
        (("",), {}),
        (([],), {}),
        (("a",), {"timeout_s": -1}),
    ):
        said = []
        for enter_phase in (LaneSet.enter_phase, _enter.enter_phase):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever the Python raises
                enter_phase(lanes, *args, **kwargs)
            said.append((caught.type, str(caught.value)))
        assert said[0] == said[1]
    assert [] == lanes.lane_of_caller().phases()
    with pytest.raises((AttributeError, TypeError)):
        LaneSet.enter_phase(object(), "a")


def facts_of(phase):
    """Return what a handle holds, slot by slot, without what differs from one recorder to the next."""
    held = {name: getattr(phase, name) for name in PhaseHandle.__slots__ if hasattr(phase, name)}
    held["_below"] = phase._below._sequence
    held["_path"] = phase._path.text
    held["_context_token"] = type(held["_context_token"])
    del held["_lane"], held["_instruction"]
    return held | {"line": phase.location}


@pytest.mark.parametrize("attributes", [None, {"a": 1, "b": "two"}])
def test_handles_are_alike_slot_by_slot(attributes):
    """After enter and after exit every slot holds what the Python puts there, the place in the program included."""
    found = []
    for enter_phase, leave in [implementation.values[0] for implementation in IMPLEMENTATIONS]:
        lanes = PhaseRecorder(clock=Clock()).lane_set("s", 0)
        lanes.step = 12
        for _ in range(2):  # A name's first sight is the Python's.
            outer = enter_phase(lanes, "outer")
            inner = enter_phase(lanes, "inner", attributes)
            facts = [facts_of(outer), facts_of(inner)]
            leave(inner, None, None, None)
            leave(outer, None, None, None)
        lane = outer._lane
        found.append([*facts, facts_of(inner), facts_of(outer), lane._children_ns, lane.top is lane])
    assert found[1] == found[0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("moment", ["enter", "exit"])
def test_phases_of_a_signal_handler_while_the_clock_is_read_leave_the_sums_right(lanes, clock, implementation, moment):
    """What the handler spent is its own, and the phase around it has the rest, to the nanosecond."""
    enter_phase, leave = implementation
    ended = []
    lanes.exit_queues = (ended.append,)

    def handle():
        phase = enter_phase(lanes, "handler")
        clock.now_ns += 500
        leave(phase, None, None, None)

    for _ in range(2):
        outer = enter_phase(lanes, "outer")
        clock.then = handle if moment == "enter" else None
        inner = enter_phase(lanes, "inner")
        clock.then = handle if moment == "exit" else None
        leave(inner, None, None, None)
        leave(outer, None, None, None)
        handled, *rest = ended
        assert [inner, outer] == rest
        assert (outer if moment == "enter" else inner) is handled.parent
        took = {phase.name: phase._ended_ns - phase._entered_ns for phase in ended}
        assert took["outer"] == sum(phase._ended_ns - phase._entered_ns - phase._children_ns for phase in ended)
        ended.clear()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_exception_out_of_a_call_leaves_no_phase_half_entered(lanes, clock, implementation):
    """Whatever raises while a phase is entered: its exception comes out, and lane and context are as they were."""
    enter_phase, leave = implementation
    error = KeyboardInterrupt()

    def raise_now(*args):
        raise error

    leave(enter_phase(lanes, "known"), None, None, None)
    lane = lanes.lane_of_caller()
    put = lanes.put
    for prepare in (
        lambda: setattr(clock, "then", raise_now),
        lambda: setattr(lanes, "put", raise_now),
        lambda: setattr(lanes, "put", lambda phase: (put(phase), raise_now())),
        lambda: setattr(lanes, "current_phase", raise_now),
        lambda: setattr(lanes, "taken", raise_now),
    ):
        prepare()
        with pytest.raises(KeyboardInterrupt) as caught:
            enter_phase(lanes, "known", {"a": 1})
        assert error is caught.value
        assert lane is lane.top
        assert None is lanes.carrier.current_phase()
        lanes.put, lanes.current_phase = put, lanes.carrier.current_phase


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_exception_of_one_queue_keeps_no_other_from_being_told(lanes, implementation):
    """Each is told once, the count is right, and what was raised comes out."""
    enter_phase, leave = implementation
    told = []

    def refuse(phase):
        told.append("refused")
        raise MemoryError

    lanes.exit_queues = (told.append, refuse, told.append)
    phase = enter_phase(lanes, "a")
    with pytest.raises(MemoryError):
        leave(phase, None, None, None)
    assert [phase, "refused", phase] == told
    assert 1 == phase._lane.ended_count
    assert PhaseStatus.SUCCEEDED is phase.status


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_phase_left_in_another_context_ends_and_is_counted(lanes, implementation):
    """The block is unwound where its variable cannot be reset: the phase ends all the same."""
    enter_phase, leave = implementation
    phase = enter_phase(lanes, "a")
    copy_context().run(leave, phase, None, None, None)
    assert PhaseStatus.SUCCEEDED is phase.status
    assert {"foreign_context": 1} == lanes.counts.to_dict()


class Interrupting(tuple):
    """Queues whose reading a signal handler interrupts."""

    __slots__ = ()

    def __iter__(self):
        """Be interrupted."""
        raise KeyboardInterrupt


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_block_ends_a_phase_whose_close_was_interrupted(lanes, implementation):
    """An interrupt between the context's reset and the end, caught within the block: its exit ends the phase."""
    enter_phase, leave = implementation
    told = []
    phase = enter_phase(lanes, "a")
    lanes.exit_queues = Interrupting((told.append,))
    with pytest.raises(KeyboardInterrupt):
        phase.close()
    lanes.exit_queues = (told.append,)
    leave(phase, None, None, None)
    assert [phase] == told
    assert PhaseStatus.SUCCEEDED is phase.status
    assert [] == lanes.lane_of_caller().phases()
    assert {} == lanes.counts.to_dict()


def test_what_a_block_needs_of_an_exit_is_said(lanes):
    """An exit called by hand with too little, or of a handle that nobody entered, is an error and no crash."""
    with lanes.enter_phase("a") as phase, pytest.raises(TypeError):
        phase.__exit__(None)
    with pytest.raises(AttributeError):
        PhaseHandle().__exit__(None, None, None)
    with pytest.raises((AttributeError, TypeError)):
        PhaseHandle.__exit__(object(), None, None, None)


FIELDS = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(-(2**63), 2**63 - 1),
    *[st.integers(0, 2**32 - 1)] * 4,
    st.integers(0, 2**64 - 1),
)
ENDS = st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1))


@compiled
@hypothesis.given(FIELDS, ENDS, st.integers(0, 3))
def test_the_bytes_of_a_slot_are_those_of_the_format(fields, ends, number):
    """What is stored is what `ENTER` and `EXIT` pack, at the same place, and nothing beside it."""
    at = number * _format.SLOT
    expected = bytearray(b"\xaa" * 4 * _format.SLOT)
    _format.ENTER.pack_into(expected, at, *fields)
    _format.EXIT.pack_into(expected, at + _format.EXIT_AT, *ends)
    found = bytearray(b"\xaa" * 4 * _format.SLOT)
    put_enter, put_exit = _native.speedups.slot_stores(found)
    put_enter(at, *fields)
    put_exit(at, *ends)
    assert expected == found


@compiled
def test_a_store_that_does_not_fit_is_refused_and_stores_nothing():
    """No number is cut to its field, and no offset leads out of the file."""
    with mmap.mmap(-1, _format.SLOT) as mapped:
        put_enter, put_exit = _native.speedups.slot_stores(mapped)
        for slot, fields in (
            (0, (0, -1, 0, 0, 0, 0, 0, 1)),
            (0, (2**63, 0, 0, 0, 0, 0, 0, 1)),
            (0, (0, 0, 0, 2**32, 0, 0, 0, 1)),
            (0, (0, 0, 0, 0, 0, 0, 0, 2**64)),
            (0, (0, 0, 0, 0, 0, 0, 0, None)),
            (8, (0, 0, 0, 0, 0, 0, 0, 1)),
            (4, (0, 0, 0, 0, 0, 0, 0, 1)),
            (-8, (0, 0, 0, 0, 0, 0, 0, 1)),
            (2**70, (0, 0, 0, 0, 0, 0, 0, 1)),
            (0, (0, 0, 0)),
        ):
            with pytest.raises((OverflowError, IndexError, TypeError)):
                put_enter(slot if slot != 8 else 32, *fields)
        for fields in ((0, 0, -1), (0, 2**63, 0), (0, 0)):
            with pytest.raises((OverflowError, TypeError)):
                put_exit(0, *fields)
        assert bytes(_format.SLOT) == mapped[:]
    with pytest.raises(ValueError, match="closed"):
        put_exit(0, 0, 0, 0)
    with pytest.raises((BufferError, TypeError)):
        _native.speedups.slot_stores(b"read-only" * 9)[1](0, 0, 0, 0)


@compiled
def test_a_phase_in_opentelemetrys_context_stands_as_the_python_puts_it():
    """The new context has what the caller's had, and the phase as current span and under our key."""
    variable = ContextVar("otel")
    variable.set(Context())
    put = _native.speedups.span_put(variable, "span", "phase", Context, PhaseSpan)
    for outer in (Context(), Context({"user": 1}), Context({"span": 1, "phase": 2}), Context({"user": 1, "span": 3})):
        token = variable.set(outer)
        for _ in range(2):
            phase = PhaseSpan()
            phase._extra = None
            inner = put(phase)
            assert type(variable.get()) is Context
            assert {**outer, "span": phase, "phase": phase} == variable.get()
            assert outer is phase._outer
            resumed = PhaseExtra()
            resumed.resumed_ns = 1
            phase._extra, phase._outer = resumed, "first"
            variable.reset(put(phase))
            assert "first" == phase._outer
            variable.reset(inner)
        variable.reset(token)
    with pytest.raises(TypeError, match="one phase"):
        put("no phase")


@compiled
def test_nothing_is_leaked_whichever_way_a_phase_goes(lanes, clock):
    """After many phases of every kind, those that fail to be entered included, as much memory is taken as before."""

    def refuse(*args):
        raise MemoryError

    def run():
        with lanes.enter_phase("outer"):
            with lanes.enter_phase("inner", {"a": 1}):
                pass
            with contextlib.suppress(ValueError), lanes.enter_phase("inner", attributes=None):
                raise ValueError
            clock.then = lambda: lanes.enter_phase("handler").close()
            with lanes.enter_phase("inner"):
                clock.then = lambda: lanes.enter_phase("handler").close()
            for name in ("put", "taken"):
                before = getattr(lanes, name)
                setattr(lanes, name, refuse)
                with contextlib.suppress(MemoryError):
                    lanes.enter_phase("inner", {})
                setattr(lanes, name, before)
            lanes.exit_queues = (refuse,)
            with contextlib.suppress(MemoryError), lanes.enter_phase("inner"):
                pass
            lanes.exit_queues = (lambda phase: None,)
            lanes.enter_queues = (lambda told: None,)
            with lanes.enter_phase("inner"):
                pass
            lanes.exit_queues = lanes.enter_queues = ()
            copy_context().run(lanes.enter_phase("inner").__exit__, None, None, None)
            with contextlib.suppress(TypeError):
                lanes.enter_phase("inner", wrong=1)

    def blocks():
        gc.collect()
        return sys.getallocatedblocks()

    for _ in range(50):
        run()
    before = blocks()
    for _ in range(500):
        run()
    assert blocks() - before < 250
