"""Where the compiled half is given what nobody should give it: it says so, or does what the Python does, and stands."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from contextvars import ContextVar

import pytest
from opentelemetry.context import Context

from stormphase import PhaseHandle, PhaseStatus, _enter, _native
from stormphase._lane import Lane
from stormphase._lanes import LaneSet
from stormphase._recorder import PhaseRecorder
from stormphase.otel._span import PhaseSpan

compiled = pytest.mark.skipif(_native.speedups is None, reason="not built here, or STORMPHASE_PURE is set")


@pytest.fixture(
    params=[
        pytest.param((LaneSet.enter_phase, PhaseHandle.__exit__), id="installed"),
        pytest.param((_enter.enter_phase, _native.python_exit), id="python"),
    ]
)
def enter_and_leave(request):
    """Return what is installed, and what defines it."""
    return request.param


@pytest.fixture
def lanes(enter_and_leave):
    """Return lanes on which the phase `a` was seen before, by a clock that ticks."""
    ticks = iter(range(1_000, 100_000))

    class Clock:
        monotonic_ns = wall_ns = staticmethod(ticks.__next__)

    lanes = PhaseRecorder(clock=Clock()).lane_set("s", 0)
    enter_phase, leave = enter_and_leave
    leave(enter_phase(lanes, "a"), None, None, None)
    return lanes


SHARED = (
    "attribute_counts",
    "current_phase",
    "enter_queues",
    "handle_type",
    "local",
    "put",
    "redactor",
    "running_loop",
    "running_tasks",
    "sequence",
    "step",
    "taken",
)


@pytest.mark.parametrize("name", SHARED)
def test_an_attribute_that_a_patch_deletes_for_a_moment_is_an_error_and_no_crash(lanes, enter_and_leave, name):
    """`mock.patch.object` deletes a slot before it sets it back, and other threads may enter phases meanwhile."""
    enter_phase, leave = enter_and_leave
    lanes.running_tasks = (None,)  # So that the loop is asked for.
    before = getattr(lanes, name)
    delattr(lanes, name)
    with contextlib.suppress(AttributeError):
        leave(enter_phase(lanes, "a", {}), None, None, None)
    setattr(lanes, name, before)
    lanes.close("the test is over")
    phase = enter_phase(lanes, "a", {})
    leave(phase, None, None, None)
    assert (None, PhaseStatus.SUCCEEDED) == (phase.parent, phase.status)


@pytest.mark.parametrize("name", ["now", "reset", "top", "write_exit", "writer", "lanes"])
def test_a_lane_without_one_of_its_attributes_is_an_error_and_no_crash(lanes, enter_and_leave, name):
    """Likewise where a lane's are patched."""
    enter_phase, leave = enter_and_leave
    phase = enter_phase(lanes, "a")
    lane = phase._lane
    delattr(lane, name)

    def go_on():
        leave(phase, None, None, None)
        leave(enter_phase(lanes, "a"), None, None, None)

    with pytest.raises(AttributeError):
        go_on()


@pytest.mark.parametrize("name", ["_below", "_children_ns", "_context_token", "_entered_ns", "_lane", "_sequence"])
def test_a_handle_without_one_of_its_attributes_is_an_error_and_no_crash(lanes, enter_and_leave, name):
    """Likewise for a phase's own."""
    enter_phase, leave = enter_and_leave
    phase = enter_phase(lanes, "a")
    phase._lane.write_exit = lambda *words: None
    phase._slot = 0
    delattr(phase, name)
    with pytest.raises(AttributeError):
        leave(phase, None, None, None)


@pytest.mark.parametrize("kind", [list, tuple, dict.fromkeys])
def test_queues_may_be_of_any_kind(lanes, enter_and_leave, kind):
    """Whoever is to be told is told, whatever holds them; None is nobody."""
    enter_phase, leave = enter_and_leave
    entered, ended = [], []
    lanes.enter_queues, lanes.exit_queues = kind([entered.append]), kind([ended.append])
    phase = enter_phase(lanes, "a")
    leave(phase, None, None, None)
    lanes.enter_queues = lanes.exit_queues = None
    leave(enter_phase(lanes, "a"), None, None, None)
    assert ([(phase,)], [phase], (1, 1)) == (entered, ended, lanes.boundary_counts())


def test_what_is_called_may_be_replaced_while_it_runs(lanes, enter_and_leave):
    """A cached function looks at itself once more after it has called, so it must live so long."""
    enter_phase, leave = enter_and_leave
    phase = enter_phase(lanes, "a")
    lane, clock, put = phase._lane, phase._lane.now, lanes.put
    leave(phase, None, None, None)

    def cached(owner, name, function):
        def call(*args):
            setattr(owner, name, function)
            return function(*args)

        setattr(owner, name, functools.lru_cache(maxsize=None)(call))

    for _ in range(3):
        cached(lane, "now", clock)
        cached(lanes, "put", put)
        cached(lanes, "current_phase", lanes.carrier.current_phase)
        phase = enter_phase(lanes, "a")
        cached(lane, "now", clock)
        leave(phase, None, None, None)
        assert PhaseStatus.SUCCEEDED is phase.status


@pytest.mark.parametrize(
    ("times", "spent"),
    [
        ((1.0, 3.5), 2.5),
        ((-(2**62), 2**63 - 1), 2**63 - 1 + 2**62),
        ((0, 2**70), 2**70),
        ((True, 5), 4),
    ],
)
def test_a_clock_may_give_numbers_of_any_kind_and_size(lanes, enter_and_leave, times, spent):
    """What does not fit into 64 bits, or is a float, is added up as Python does it."""
    enter_phase, leave = enter_and_leave
    lane = lanes.lane_of_caller()
    lane.now = iter(times).__next__
    lane._children_ns = 0
    phase = enter_phase(lanes, "a")
    leave(phase, None, None, None)
    assert (PhaseStatus.SUCCEEDED, spent, lane) == (phase.status, lane._children_ns, lane.top)


def test_a_call_of_exit_that_is_not_a_blocks_is_the_pythons(lanes, enter_and_leave):
    """By keyword it works; with too few or too many arguments, or for nobody's handle, it says what the Python says."""
    enter_phase, leave = enter_and_leave
    phase = enter_phase(lanes, "a")
    leave(phase, exc_type=None, exc=None, traceback=None)
    assert PhaseStatus.SUCCEEDED is phase.status
    for handle, args in ((phase, ()), (phase, (None,) * 4), (PhaseHandle(), (None,) * 3)):
        said = []
        for each in (leave, _native.python_exit):
            with pytest.raises((TypeError, AttributeError)) as caught:
                each(handle, *args)
            said.append((caught.type, str(caught.value)))
        assert said[1] == said[0]


def test_a_lane_of_a_derived_class_is_the_pythons(lanes, enter_and_leave):
    """Its slots may stand elsewhere, so the Python takes it."""
    enter_phase, leave = enter_and_leave

    class Derived(Lane):
        __slots__ = ()

    lanes.local.lane = Derived(lanes, threading.get_ident(), "t", None)
    phase = enter_phase(lanes, "a")
    leave(phase, None, None, None)
    assert (PhaseStatus.SUCCEEDED, Derived) == (phase.status, type(phase._lane))


def test_numbers_that_run_out_or_are_none_are_an_error(lanes, enter_and_leave):
    """Like `next`, of which it is the compiled form."""
    enter_phase, _ = enter_and_leave
    for sequence, error in ((iter([]), StopIteration), ([1], TypeError)):
        lanes.sequence = sequence
        with pytest.raises(error):
            enter_phase(lanes, "a")
    assert [] == lanes.lane_of_caller().phases()


def test_a_name_that_cannot_be_looked_up_is_seen_for_the_first_time(lanes, enter_and_leave):
    """Whether a name's hash raises KeyError or TypeError, the name is then asked for its text."""
    enter_phase, leave = enter_and_leave

    class Name(str):
        __slots__ = ()

        def __hash__(self):
            raise self.error

    for Name.error in (KeyError("hash"), TypeError("hash")):
        phase = enter_phase(lanes, Name("a"))
        leave(phase, None, None, None)
        assert ("a",) == phase.path


def test_what_a_second_queue_raises_has_the_first_ones_exception_as_its_context(lanes, enter_and_leave):
    """A KeyboardInterrupt is never lost without a trace, also where telling the rest fails."""
    enter_phase, leave = enter_and_leave
    handled = []

    def refuse(phase):
        handled.append(sys.exc_info()[1])
        raise MemoryError

    interrupt = KeyboardInterrupt()

    def interrupt_now(phase):
        raise interrupt

    lanes.exit_queues = (interrupt_now, refuse)
    with pytest.raises(MemoryError) as caught:
        leave(enter_phase(lanes, "a"), None, None, None)
    assert interrupt is caught.value.__context__
    assert [interrupt] == handled
    assert (None, None, None) == sys.exc_info()


def test_what_undoes_an_enter_fails_in_the_context_of_why(lanes, enter_and_leave):
    """Likewise for an enter that has to be taken back."""
    enter_phase, _ = enter_and_leave
    why = KeyboardInterrupt()

    def put(phase):
        lanes.carrier.current_phase = None
        raise why

    lanes.put = put
    with pytest.raises(TypeError) as caught:
        enter_phase(lanes, "a")
    assert why is caught.value.__context__


@pytest.mark.parametrize("is_pure", ["0", "1"])
def test_a_phase_entered_where_no_python_runs_is_ours(run_python, is_pure):
    """CPython itself calls what is registered at exit: there is no place in a program to note, and so it is our own."""
    code = """
import atexit
from stormphase._recorder import PhaseRecorder
lanes = PhaseRecorder().lane_set("s", 0)
with lanes.enter_phase("a"):
    pass
atexit.register(lambda: print([phase.label.rpartition(":")[0] for phase in lanes.open_phases()]))
atexit.register(lanes.enter_phase, "a")
"""
    said = run_python(code, env={"STORMPHASE_PURE": is_pure})
    assert ("[\"'a' (_enter.py\"]\n", "") == (said.stdout, said.stderr)


@pytest.mark.parametrize("is_pure", ["0", "1"])
def test_without_docstrings_there_is_none(run_python, is_pure):
    """Under -OO it says nothing, and not the word None."""
    code = """
import subprocess, sys
code = "from stormphase import PhaseTracker; print(PhaseTracker.enter_phase.__doc__ or 'nothing')"
print(subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True).stdout.strip())
"""
    assert "nothing\n" == run_python(code, env={"STORMPHASE_PURE": is_pure}).stdout


def test_help_says_the_same_of_a_block():
    """What opens and closes a `with` has the Python's docstrings."""
    assert _native.python_exit.__doc__ == PhaseHandle.__exit__.__doc__
    assert PhaseHandle.__enter__.__doc__ == "Return the handle: the phase is already entered."


@compiled
def test_a_half_built_from_another_source_is_left_alone(monkeypatch):
    """A checkout that moved on without being installed again is pure Python until it is, and can be imported."""
    monkeypatch.setattr(_native.speedups, "ABI", _native.ABI - 1)
    assert None is _native._load()
    monkeypatch.delattr(_native.speedups, "ABI")
    assert None is _native._load()


@compiled
def test_only_spans_are_put_into_opentelemetrys_context():
    """A plain phase has no place for what is noted on a span, and one that was never entered is refused."""
    variable = ContextVar("otel")
    variable.set(Context())
    put = _native.speedups.span_put(variable, "span", "phase", Context, PhaseSpan)
    plain = PhaseHandle()
    plain._extra = None
    with pytest.raises(TypeError, match="one phase"):
        put(plain)
    with pytest.raises(AttributeError):
        put(PhaseSpan())
    assert {} == variable.get()


@compiled
@pytest.mark.parametrize("slot", [2**63 - 8, 2**63 - 56, 2**63 - 80, 8, 4096])
def test_no_offset_leads_beyond_the_file(slot):
    """Also where a sum would go round."""
    file = bytearray(48 + 7)
    put_enter, put_exit = _native.speedups.slot_stores(file)
    with pytest.raises(IndexError):
        put_enter(slot, 1, 1, 1, 1, 1, 1, 1, 1)
    for each in (slot, 0):
        with pytest.raises(IndexError):
            put_exit(each, 1, 1, 1)
    assert bytes(len(file)) == file
