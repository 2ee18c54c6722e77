"""Signal handlers that raise, or that use phases themselves, wherever in our code they may run.

CPython runs signal handlers only at some instructions: where a function begins, after a call, and where a loop goes
back. `Strike` finds these in our code as it runs and strikes at one after the other, so every one of them is tried.
"""

# ruff: noqa: SIM117 - phases nest

from __future__ import annotations

import contextlib
import dis
import gc
import sys
import threading
import types
from pathlib import Path

import pytest

import stormphase
from stormphase import _attribute_counts, _attributes, _enter, _native, _plain_values
from stormphase._boundary import self_ns
from stormphase._phase import FINAL
from stormphase._recorder import PhaseRecorder

PACKAGE = str(Path(stormphase.__file__).parent)
# They touch neither lane nor context, and are long.
NOT_STRUCK = (_attributes.__file__, _plain_values.__file__, _attribute_counts.__file__)
TOOL_ID = 4
LEAST_POINTS = 20 if _native.speedups is None else 10  # In the compiled half no handler runs.
OTHERS_STEP = 11  # what raises is tried at every place, what does not at every eleventh


class TickingClock:
    """Moves on by one nanosecond with every reading, so that no two times are the same."""

    def __init__(self):
        self.now_ns = 0

    def monotonic_ns(self):
        """Return one more than the last time."""
        self.now_ns += 1
        return self.now_ns

    wall_ns = monotonic_ns


class Strike:
    """Traces our code and calls `what` once, at the `number`-th place where a signal handler might run."""

    def __init__(self, number, what):
        self.number = number
        self.what = what
        self.seen = 0
        self.place = None
        self._instructions = {}
        self._thread_id = threading.get_ident()
        self._previous = {}  # by frame: the instruction that ran last

    def __enter__(self):
        if sys.version_info < (3, 12):
            self._before = sys.gettrace()
            sys.settrace(self._trace)
        else:
            events = sys.monitoring.events
            sys.monitoring.register_callback(TOOL_ID, events.PY_START, self._at_start)
            sys.monitoring.register_callback(TOOL_ID, events.INSTRUCTION, self._at_instruction)
        return self

    def __exit__(self, *exc):
        if sys.version_info < (3, 12):
            sys.settrace(self._before)
        else:
            self._stop()

    def _stop(self):
        if sys.version_info < (3, 12):
            sys.settrace(None)
        else:
            sys.monitoring.register_callback(TOOL_ID, sys.monitoring.events.PY_START, None)
            sys.monitoring.register_callback(TOOL_ID, sys.monitoring.events.INSTRUCTION, None)

    @property
    def has_struck(self):
        """Whether there were so many places."""
        return self.seen > self.number

    def _is_ours(self, code):
        # What is raised into a __del__, CPython itself swallows.
        is_struck = code.co_filename.startswith(PACKAGE) and code.co_filename not in NOT_STRUCK
        return is_struck and code.co_name != "__del__" and threading.get_ident() == self._thread_id

    def _trace(self, frame, event, arg):
        if not self._is_ours(frame.f_code):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._at_start(frame.f_code, frame.f_lasti, frame)

        def trace_opcode(frame, event, arg):
            if event == "opcode":
                self._at_instruction(frame.f_code, frame.f_lasti, frame)
            return trace_opcode

        return trace_opcode

    def _at_start(self, code, offset, frame=None):
        if self._is_ours(code):
            self._previous.pop(id(frame or sys._getframe(1)), None)
            self._at_place(code, offset)

    def _at_instruction(self, code, offset, frame=None):
        if not self._is_ours(code):
            return
        key = id(frame or sys._getframe(1))
        previous = self._previous.get(key)
        self._previous[key] = offset
        if previous is not None and self._is_checked_after(code, previous, offset):
            self._at_place(code, offset)

    def _is_checked_after(self, code, offset, following):
        """Whether CPython looks for signals between the instruction at `offset` and the one run next."""
        names = self._instructions.get(code)
        if names is None:
            names = self._instructions[code] = {each.offset: each.opname for each in dis.get_instructions(code)}
        name = names[offset]
        if name.startswith("CALL") and names[following] == "PUSH_EXC_INFO":
            return False
        return name.startswith("CALL") or following < offset

    def _at_place(self, code, offset):
        self.seen += 1
        if self.seen == self.number + 1:
            self.place = f"{code.co_name}, instruction {offset}"
            self._stop()
            self.what()


@pytest.fixture(scope="module", autouse=True)
def watched_code():
    """Have CPython tell of every instruction of ours; from 3.12 on, sys.settrace leaves some out."""
    if sys.version_info < (3, 12):
        yield
        return
    monitoring = sys.monitoring
    # By type(): isinstance() asks an object for its class, which hostile ones that other tests left behind make raise.
    functions = [each for each in gc.get_objects() if type(each) is types.FunctionType]
    codes = {function.__code__ for function in functions if function.__code__.co_filename.startswith(PACKAGE)}
    pending = list(codes)
    while pending:
        inner = {const for const in pending.pop().co_consts if isinstance(const, types.CodeType)} - codes
        codes |= inner
        pending += inner
    monitoring.use_tool_id(TOOL_ID, "strike")
    for code in codes:
        monitoring.set_local_events(TOOL_ID, code, monitoring.events.PY_START | monitoring.events.INSTRUCTION)
    yield
    for code in codes:
        monitoring.set_local_events(TOOL_ID, code, 0)
    monitoring.free_tool_id(TOOL_ID)


# --- what is interrupted ----------------------------------------------------------------------------------------------


def nest(lanes):
    """Nest three blocks; one has an attribute."""
    with lanes.enter_phase("a"):
        with lanes.enter_phase("b", {"k": 1}):
            with lanes.enter_phase("c"):
                pass
        with lanes.enter_phase("d"):
            pass


def nest_in_rooms_known_before(lanes):
    """Enter phases whose names and thread were seen before: the hot path."""
    with lanes.enter_phase("warm"):
        with lanes.enter_phase("warm"):
            pass


def nest_with_a_journal(lanes):
    """The same while all is written down."""
    nest_in_rooms_known_before(lanes)


def set_attributes(lanes):
    """Leave a block whose phase is out of the ordinary, so that it ends the slow way."""
    with lanes.enter_phase("a"):
        with lanes.enter_phase("b") as phase:
            phase.set_attribute("k", [1, "two"])
            phase.add_event("seen", {"n": 1})


def fail(lanes):
    """Fail in a block and handle it in the next."""
    with lanes.enter_phase("a"):
        with contextlib.suppress(ValueError):
            with lanes.enter_phase("b"):
                raise ValueError("bad batch")


def use_tokens(lanes):
    """Enter and exit by token."""
    with lanes.enter_phase("a"):
        token = lanes.enter("b")
        lanes.exit(token)


def close_by_hand(lanes):
    """Enter and close a handle, also with an error."""
    with lanes.enter_phase("a"):
        lanes.enter_phase("b").close()
        lanes.enter_phase("c").close(error=ValueError("x"))


def pause(lanes):
    """Pause and resume, with a phase of the caller between."""
    with lanes.enter_phase("a"):
        with lanes.enter_phase("b") as phase:
            phase.pause()
            with lanes.enter_phase("c"):
                pass
            phase.resume()


def leave_paused(lanes):
    """Leave a block while its phase is paused."""
    with lanes.enter_phase("a"):
        with lanes.enter_phase("b") as phase:
            phase.pause()


def hand_over(lanes):
    """Release a phase and acquire it again."""
    with lanes.enter_phase("a"):
        token = lanes.enter_phase("b").release()
        with lanes.acquire(token):
            pass


def retry(lanes):
    """Enter a second attempt."""
    with lanes.enter_phase("a"):
        with lanes.enter_phase("b") as first:
            pass
        with lanes.retry(first, {"k": 1}):
            pass


def reset(lanes):
    """Reset while phases are open and paused."""
    with lanes.enter_phase("a"):
        paused = lanes.enter_phase("b")
        paused.pause()
        with lanes.enter_phase("c"):
            lanes.close("the recorder was reset")


def finalise_elsewhere(lanes):
    """Close a generator that another thread had left in a block, from beneath what is open above it there."""

    def generate():
        with lanes.enter_phase("b"):
            yield

    def begin():
        lanes.enter("a")
        next(generator)
        lanes.enter("c")

    generator = generate()
    other = threading.Thread(target=begin)
    other.start()
    other.join()
    with contextlib.closing(generator), lanes.enter_phase("d"):
        pass


SCENARIOS = [
    nest,
    nest_in_rooms_known_before,
    nest_with_a_journal,
    set_attributes,
    fail,
    use_tokens,
    close_by_hand,
    pause,
    leave_paused,
    hand_over,
    retry,
    reset,
    finalise_elsewhere,
]


@pytest.fixture(autouse=True)
def no_trio(monkeypatch):
    """Let the hot path be hot, also where another test has imported trio."""
    monkeypatch.setattr(_enter, "_modules", {})


class Journal:
    """Keeps the numbers of the phases whose end was written, and is its own writer."""

    traces_phases = False
    slot = 0
    last_slot = 1_000_000

    def __init__(self):
        self.ended = []

    def new_writer(self, lane):
        """Write for every thread."""
        del lane
        return self

    def write_enter(self, *numbers):
        """Keep nothing."""

    def enter(self, phase):
        """Give it a place."""
        phase._slot = 0

    def write_exit(self, slot, ended_ns, spent_ns, word):
        """Keep the number of what ends the plain way."""
        del slot, ended_ns, spent_ns
        self.ended.append(word)

    def end(self, phase):
        """Keep the number of what ends in another way."""
        self.ended.append(phase._sequence)

    def take_back(self, phase):
        """Keep nothing."""


class TwoQueues(list):
    """What the first of two exit queues was given, beside what the second was."""

    def __init__(self):
        super().__init__()
        self.second = []


def new_lanes(scenario):
    """Return lanes on a clock that ticks, with the lists of what was entered and of what has ended."""
    recorder = PhaseRecorder(clock=TickingClock())
    lanes = recorder.lane_set("s", 0)
    if scenario is nest_with_a_journal:
        lanes.journal = Journal()
    is_known = scenario in (nest_in_rooms_known_before, nest_with_a_journal)
    if is_known:
        scenario(lanes)
    if lanes.journal is not None:
        for path in (lanes.paths.root.children["warm"], lanes.paths.root.children["warm"].children["warm"]):
            path.number = 1
        lanes.journal.ended.clear()
    entered, ended = [], TwoQueues()
    lanes.enter_queues = (entered.append,)
    lanes.exit_queues = (ended.append, ended.second.append)
    lane = lanes.lane_of_caller() if is_known else None
    return lanes, entered, ended, 0 if lane is None else lane._children_ns


def check_all_is_right(lanes, entered, ended, before_ns, place):
    """Stop, and check lane, context, endings and sums."""
    lanes.close("the session stopped")
    with lanes.enter_phase("next") as phase:
        assert (None, ("next",)) == (phase.parent, phase.path), place
    assert None is lanes.carrier.current_phase(), place
    assert [] == list(lanes.open_phases()), place
    assert {1} == {ended.count(phase) for phase in ended}, f"{place}: ended twice"
    assert {*map(id, ended)} == {*map(id, ended.second)}, f"{place}: one queue was told, and the other not"
    assert len(ended) == len(ended.second), f"{place}: one queue was told twice"
    numbers = [phase._sequence for phase in ended]
    assert sorted(set(numbers)) == sorted(numbers), f"{place}: ended twice, by two handles"
    if lanes.journal is not None:
        assert sorted(numbers) == sorted(lanes.journal.ended), f"{place}: not as the journal has it"
    assert set() == {phase[0]._sequence for phase in entered} - set(numbers), f"{place}: never ended"
    assert {True} == {phase.status in FINAL for phase in ended}, place
    assert {True} == {self_ns(phase) >= 0 for phase in ended}, place
    wall_ns = sum(lane._children_ns for lane in {phase._lane for phase in ended})
    assert wall_ns - before_ns == sum(self_ns(phase) for phase in ended), f"{place}: the sum is not the wall"
    assert (len(entered), len(ended)) == lanes.boundary_counts(), place


@pytest.mark.parametrize(
    ("scenario", "is_caught_at_root"),
    [(scenario, True) for scenario in SCENARIOS] + [(scenario, False) for scenario in (nest, reset)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_an_interrupt_at_any_place_surfaces_and_leaves_all_right(scenario, is_caught_at_root):
    """What comes out is that very KeyboardInterrupt; lane, context, endings and sums are right, whatever it hit."""
    number = 0
    while True:
        lanes, entered, ended, before_ns = new_lanes(scenario)
        interrupt = KeyboardInterrupt()

        def interrupt_now(interrupt=interrupt):
            raise interrupt

        strike = Strike(number, interrupt_now)
        caught = None
        try:
            if is_caught_at_root:
                with strike:
                    scenario(lanes)
            else:
                with lanes.enter_phase("root"), strike:
                    scenario(lanes)
        except BaseException as error:
            caught = error
        if not strike.has_struck:
            break
        place = f"place {number}: {strike.place}"
        assert caught is interrupt, f"{place}: {caught!r}"
        if not is_caught_at_root:
            assert [] == lanes.lane_of_caller().phases(), f"{place}: still on the lane"
            assert None is lanes.carrier.current_phase(), f"{place}: left in the context"
        check_all_is_right(lanes, entered, ended, before_ns, place)
        number += 1
    assert caught is None
    assert number > LEAST_POINTS, "the tracer finds places"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_signal_handler_may_use_phases_at_any_place(scenario):
    """A handler that enters, nests and ends phases of its own, of new names, disturbs nothing and never waits."""
    number = 0
    while True:
        lanes, entered, ended, before_ns = new_lanes(scenario)

        def handle(lanes=lanes, number=number):
            with lanes.enter_phase(f"handler {number}"):
                with lanes.enter_phase("inner"):
                    lanes.lanes()

        strike = Strike(number, handle)
        with strike:
            scenario(lanes)
        if not strike.has_struck:
            break
        place = f"place {number}: {strike.place}"
        check_all_is_right(lanes, entered, ended, before_ns, place)
        assert 2 == sum(name in phase.path for phase in ended for name in (f"handler {number}",)), place
        number += OTHERS_STEP
    assert number > LEAST_POINTS


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_reset_at_any_place_ends_everything_once(scenario):
    """A handler, or another thread, that resets in the middle of anything: all has ended, and once."""
    number = 0
    while True:
        lanes, entered, ended, before_ns = new_lanes(scenario)
        strike = Strike(number, lambda lanes=lanes: lanes.close("the recorder was reset"))
        with contextlib.suppress(stormphase.PhaseProtocolError), strike:
            scenario(lanes)
        if not strike.has_struck:
            break
        check_all_is_right(lanes, entered, ended, before_ns, f"place {number}: {strike.place}")
        number += OTHERS_STEP
    assert number > LEAST_POINTS


def test_between_taking_a_phase_off_its_lane_and_its_end_no_signal_can_come():
    """From the store that takes a phase off its lane to that of its status there is no such instruction."""
    code = _native.python_exit.__code__
    instructions = list(dis.get_instructions(code))
    stores = [n for n, each in enumerate(instructions) if each.opname == "STORE_ATTR" and each.argval == "top"]
    for start in stores:
        end = next(
            n
            for n, each in enumerate(instructions)
            if n > start and each.opname == "STORE_ATTR" and each.argval == "_status"
        )
        names = {each.opname for each in instructions[start:end]}
        assert set() == {name for name in names if name.startswith(("CALL", "JUMP", "POP_JUMP", "RESUME"))}
    assert 1 == len(stores)


RANDOM_INTERRUPTS = """
import random, signal, sys
from stormphase._recorder import PhaseRecorder

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
ended = []
lanes = PhaseRecorder().lane_set("s", 0)
lanes.exit_queues = (ended.append,)
random.seed(int(sys.argv[1]))

def run():
    with lanes.enter_phase("inner"):
        with lanes.enter_phase("innermost", {"k": 1}) as phase:
            phase.set_attribute("late", 1)
    lanes.exit(lanes.enter("by token"))
    moved = lanes.enter_phase("moved")
    token = moved.release()
    lanes.acquire(token).close()

with lanes.enter_phase("outer"):
    run()  # What is made at first sight, an interrupt would keep from being made, again and again.
hits, inside, tries, wanted = 0, 0, 0, int(sys.argv[2])
while hits < wanted and tries < 20 * wanted:
    tries += 1
    is_over = False
    try:
        try:
            with lanes.enter_phase("outer"):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 4e-5))
                for _ in range(50):
                    run()
                is_over = True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt as error:
        hits += 1
        assert not lanes.lane_of_caller().phases() or is_over, lanes.lane_of_caller().phases()
        assert lanes.carrier.current_phase() is None or is_over, lanes.carrier.current_phase()
    for phase in list(lanes.open_phases()):
        inside += 1
        lanes.close("the session stopped")
    assert not list(lanes.open_phases())
numbers = [phase._sequence for phase in ended]
assert len(numbers) == len(set(numbers)), "a phase ended twice"
assert {phase._lane.thread_id for phase in ended} and lanes.boundary_counts() == (0, len(ended))
with lanes.enter_phase("next") as phase:
    assert phase.parent is None
assert lanes.carrier.current_phase() is None
print(hits, sum(phase.status == "abandoned" for phase in ended))
"""


def test_thousands_of_interrupts_at_random_moments_are_never_masked(run_python):
    """A timer's KeyboardInterrupt is what surfaces, every time; what it left open ends ABANDONED; nothing is lost."""
    hits, abandoned = map(int, run_python(RANDOM_INTERRUPTS, "7", "1000").stdout.split())
    assert 1_000 == hits
    assert 0 < abandoned < hits
