"""The handle of an open phase: with, close, attributes, events, pause, resume, release, and misuse of each."""

# ruff: noqa: PT012, PT017 - phases nest in blocks that fail, and exceptions are looked at while they are handled

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from stormphase import Misuse, PhaseProtocolError
from stormphase._boundary import duration_ns, exit_boundary, paused_ns, self_ns
from stormphase._model import PhaseStatus
from stormphase._moves import MAX_EVENTS
from stormphase._phase import FINAL, line_of
from stormphase._recording import record_of
from stormphase.testing import START_WALL_NS

HERE = Path(__file__).name
SUCCEEDED, FAILED, ABANDONED, PAUSED, ACTIVE = (
    PhaseStatus.SUCCEEDED,
    PhaseStatus.FAILED,
    PhaseStatus.ABANDONED,
    PhaseStatus.PAUSED,
    PhaseStatus.ACTIVE,
)


def reason_of(call, *arguments):
    """Return the reason for which a call is refused, after checking that the message names the fix."""
    with pytest.raises(PhaseProtocolError) as raised:
        call(*arguments)
    assert str(raised.value).endswith(raised.value.fix)
    return raised.value.reason


# --- with and close ---------------------------------------------------------------------------------------------------


def test_a_phase_is_entered_at_the_call(lanes, ended):
    """The with block only closes it, and gives the handle."""
    handle = lanes.enter_phase("train")
    assert ([handle], ACTIVE, False) == (list(lanes.open_phases()), handle.status, handle.closed)
    with handle as same:
        assert handle is same
        assert handle is lanes.carrier.current_phase()
    assert ([handle], SUCCEEDED, True) == (ended, handle.status, handle.closed)
    assert None is lanes.carrier.current_phase()


def test_a_handle_says_what_it_is(lanes):
    """Name, path, parent, place and id, and a repr with all of them."""
    line = sys._getframe().f_lineno + 1
    with lanes.enter_phase("train") as train, lanes.enter_phase("step") as step:
        assert ("step", ("train", "step"), "train / step") == (step.name, step.path, step.phase_path)
        assert (None, train) == (train.parent, step.parent)
        assert (16, int(step.scope_id, 16)) == (len(step.scope_id), step.scope_id_number)
        assert f"'step' ({HERE}:{line})" == step.label
        assert f"<PhaseHandle train / step active {HERE}:{line}>" == repr(step)
        assert [True, True, False] == [step.is_within(train), step.is_within(step), train.is_within(step)]


def test_a_line_is_that_of_the_instruction():
    """Offsets outside of every line are told to be on the first."""
    code = test_a_line_is_that_of_the_instruction.__code__
    start, _, line = list(code.co_lines())[-1]
    assert (line, code.co_firstlineno) == (line_of(code, start), line_of(code, 10**6))


def test_a_with_block_entered_by_a_closed_phase_ends_in_peace(lanes, ended):
    """A phase that was closed by hand inside its block has nothing left to end."""
    with lanes.enter_phase("train") as phase:
        phase.close()
    assert [phase] == ended
    assert {} == lanes.counts.to_dict()


def test_closing_twice_is_refused(lanes):
    """The message says how it ended."""
    phase = lanes.enter_phase("train")
    phase.close(error=KeyboardInterrupt())
    with pytest.raises(PhaseProtocolError, match="already ended as cancelled") as raised:
        phase.close()
    assert Misuse.ALREADY_ENDED == raised.value.reason


def test_closing_over_open_phases_is_refused_and_changes_nothing(lanes, ended):
    """The message says what is open, where each was entered, the likely causes and the fix; a correct close works."""
    outer = lanes.enter_phase("outer")
    inner = [lanes.enter_phase(name) for name in ("one", "two")]
    with pytest.raises(PhaseProtocolError) as raised:
        outer.close()
    error = raised.value
    assert (
        f"Cannot exit phase {outer.label}: {inner[0].label}, {inner[1].label} are still open inside it. Likely causes: "
        "an exit that an early return skipped, a generator that yields inside a phase, or a callback that ends what "
        'another one began. Exit them first, from the innermost outwards, or use "with tracker.enter_phase(...)".'
    ) == str(error)
    assert (Misuse.STILL_OPEN_INSIDE, outer.label) == (error.reason, error.phase)
    assert tuple(phase.label for phase in inner) == error.open_inside
    assert ([outer, *inner], []) == (list(lanes.open_phases()), ended)
    for phase in (*reversed(inner), outer):
        phase.close()
    assert [SUCCEEDED] * 3 == [phase.status for phase in ended]


def test_a_long_list_of_open_phases_is_cut(lanes):
    """Eight are named, the others counted; the attribute has all."""
    outer = lanes.enter_phase("outer")
    with contextlib.ExitStack() as stack:
        stack.callback(outer.close)
        for number in range(11):
            stack.enter_context(lanes.enter_phase(f"p{number}"))
        with pytest.raises(PhaseProtocolError, match=r"'p7' \(test_phase.py:\d+\) and 3 more are still open") as raised:
            outer.close()
    assert 11 == len(raised.value.open_inside)


def test_a_lenient_close_abandons_what_is_open_inside(lenient, ended):
    """Counted once; the inner phases say what was closed over them, and their own blocks then end in peace."""
    with lenient.enter_phase("outer") as outer, lenient.enter_phase("one"), lenient.enter_phase("two"):
        outer.close()
        assert None is lenient.carrier.current_phase()
    assert [("two", ABANDONED), ("one", ABANDONED), ("outer", SUCCEEDED)] == [(p.name, p.status) for p in ended]
    assert {f"{outer.label} was closed over it"} == {phase._extra.status_text for phase in ended[:2]}
    assert {Misuse.STILL_OPEN_INSIDE: 1} == lenient.counts.to_dict()
    assert None is lenient.carrier.current_phase()


def test_what_an_exception_leaves_open_ends_by_it(lanes, ended):
    """Callbacks have no block of their own: the innermost phase that they have open fails, those around refer to it."""
    error = ValueError("the user's")
    with pytest.raises(ValueError, match="the user's") as raised, lanes.enter_phase("fit"):
        lanes.enter("epoch")
        lanes.enter_phase("step")
        raise error
    assert error is raised.value
    assert [("step", FAILED, True), ("epoch", FAILED, False), ("fit", FAILED, False)] == [
        (phase.name, phase.status, phase._extra.error.traceback is not None) for phase in ended
    ]
    assert {ended[0].scope_id} == {phase._extra.error.root_cause_scope_id for phase in ended}
    assert {} == lanes.counts.to_dict()
    assert None is lanes.carrier.current_phase()


def test_misuse_while_an_exception_is_handled_is_logged_and_leaves_that_alone(lanes, caplog):
    """A clean-up that makes a mistake does not hide why there was something to clean up; it is said once."""
    phase = lanes.enter_phase("train")
    phase.close()
    try:
        raise ValueError("first")
    except ValueError as error:
        phase.close()
        phase.close()
        assert (("first",), {}, False) == (error.args, error.__dict__, hasattr(error, "__notes__"))
    assert 2 == lanes.counts[Misuse.ALREADY_ENDED]
    (logged,) = caplog.records
    assert ("stormphase", "WARNING", None) == (logged.name, logged.levelname, logged.exc_info)
    assert f"Cannot exit phase {phase.label}: it has already ended" in logged.message


def test_a_log_handler_that_raises_does_not_hide_the_users_exception(lanes, monkeypatch):
    """It is called in the middle of that one."""

    class Broken(logging.Handler):
        def handle(self, record):
            raise OSError("no room")

    logger = logging.getLogger("stormphase")
    monkeypatch.setattr(logger, "handlers", [Broken()])
    with pytest.raises(ValueError, match="first"):
        try:
            raise ValueError("first")
        finally:
            lanes.exit("no token")
    assert 1 == lanes.counts[Misuse.FORGED_TOKEN]


@pytest.mark.parametrize("error", [GeneratorExit, SystemExit, KeyboardInterrupt])
def test_what_ends_programs_ends_phases(lanes, ended, error):
    """Truthfully, as cancelled, on its way out."""
    with pytest.raises(error), lanes.enter_phase("outer"), lanes.enter_phase("inner"):
        raise error
    assert [PhaseStatus.CANCELLED] * 2 == [phase.status for phase in ended]
    assert {} == lanes.counts.to_dict()


def test_a_handle_is_not_pickled(lanes):
    """It belongs to its process; the message says what to send."""
    with lanes.enter_phase("train") as phase, pytest.raises(TypeError, match="Send its scope_id instead"):
        pickle.dumps(phase)


def test_ten_thousand_phases_deep(lanes, ended, clock):
    """As deep as one likes, and every sum holds."""
    depth = 10_000
    handles = []
    for _ in range(depth):
        handles.append(lanes.enter_phase("deep"))
        clock.advance(1)
    assert depth == len(handles[-1].path)
    for handle in reversed(handles):
        handle.__exit__(None, None, None)
    assert depth == len(ended)
    assert [1] * depth == [self_ns(phase) for phase in ended]
    assert depth == duration_ns(handles[0])


def test_ten_thousand_phases_deep_are_reset(lanes, ended):
    """Also abandoned all at once, innermost first."""
    for _ in range(10_000):
        lanes.enter_phase("deep")
    lanes.close("the recorder was reset")
    assert (10_000, 1) == (len(ended), ended[-1]._path.depth)
    with lanes.enter_phase("next") as phase:
        assert ("next",) == phase.path


# --- attributes and events --------------------------------------------------------------------------------------------


def test_attributes_after_the_end_are_counted(lanes):
    """They change nothing."""
    with lanes.enter_phase("train") as phase:
        pass
    phase.set_attribute("late", 1)
    phase.set_attributes({"later": 2, "latest": 3})
    assert 3 == lanes.counts["attributes_after_end"]
    assert "attributes" not in exit_boundary(phase).metadata["phase_scope"]


def test_attributes_set_late_are_bounded_and_counted(lanes):
    """Beyond the limit they are dropped and counted; a key that is there can still change."""
    with lanes.enter_phase("train") as phase:
        for number in range(70):
            phase.set_attribute(f"k{number}", number)
        phase.set_attribute("k0", "changed")
    attributes = exit_boundary(phase).metadata["phase_scope"]["attributes"]
    assert (64, "changed", 63) == (len(attributes), attributes["k0"], attributes["k63"])
    assert 6 == lanes.attribute_counts.dropped


def test_events_keep_time_and_attributes(lanes, clock):
    """Now by default, else when the caller says; without attributes, none."""
    with lanes.enter_phase("train") as phase:
        clock.advance(3)
        phase.add_event("checkpoint", {"bytes": 10})
        phase.add_event("earlier", timestamp=5)
    assert [("checkpoint", START_WALL_NS + 3, {"bytes": 10}), ("earlier", 5, {})] == phase._extra.events


def test_attributes_that_are_no_mapping_are_counted_where_misuse_is_only_recorded(lenient):
    """At enter, later and of an event: the phase and the event are there, without them, and nothing is raised."""
    phase = lenient.enter_phase("train", ["loss", 1])
    phase.set_attributes(7)
    phase.set_attributes(["loss", 1])
    phase.add_event("seen", ["loss", 1])
    phase.close()
    assert "attributes" not in exit_boundary(phase).metadata["phase_scope"]
    assert [("seen", {})] == [(name, attributes) for name, _, attributes in phase._extra.events]
    assert 4 == lenient.attribute_counts.failed


def test_attributes_that_are_no_mapping_are_refused(lanes):
    """At once, to whoever gives them; the phase goes on."""
    with lanes.enter_phase("train") as phase:
        for give in (phase.set_attributes, functools.partial(phase.add_event, "seen")):
            with pytest.raises(TypeError):
                give(7)
    assert (SUCCEEDED, []) == (phase.status, phase._extra.events)


class Broken(Mapping):
    """A mapping that breaks after its first item."""

    def __getitem__(self, key):
        """Give the first value only."""
        if key == "loss":
            return 1
        raise RuntimeError

    def __iter__(self):
        """Name two keys."""
        return iter(("loss", "lost"))

    def __len__(self):
        """Count them."""
        return 2


class Unprintable:
    """An object whose text cannot be had."""

    def __str__(self):
        """Raise."""
        raise RuntimeError

    __repr__ = __str__


def test_attributes_in_a_mapping_that_breaks_are_counted_wherever_they_are_given(lanes):
    """Strictly, too, since that is no misuse: what was read before it broke is kept, and nothing is raised."""
    with lanes.enter_phase("enter", Broken()) as entered, lanes.enter_phase("later") as later:
        later.set_attributes(Broken())
        later.add_event("seen", Broken())
    kept = [exit_boundary(phase).metadata["phase_scope"]["attributes"] for phase in (entered, later)]
    assert [{"loss": 1}] * 3 == [*kept, later._extra.events[0][2]]
    assert 3 == lanes.attribute_counts.failed


def test_what_is_no_mapping_is_refused_with_the_fix(lanes):
    """Set later, the error is that of attributes at enter."""
    with lanes.enter_phase("train") as phase, pytest.raises(TypeError, match="must be a mapping, not int"):
        phase.set_attributes(7)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("caf\udce9.txt", "caf\\udce9.txt"),
        (None, "None"),
        (7, "7"),
        (Unprintable(), "<unprintable Unprintable>"),
    ],
)
def test_the_name_of_an_event_is_text_that_can_be_sent(lanes, name, kept):
    """A name that cannot be encoded, as of a file, would cost the whole batch; one that raises, the training."""
    with lanes.enter_phase("train") as phase:
        phase.add_event(name)
    assert kept == phase._extra.events[0][0]


def test_the_name_of_an_event_is_bounded(lanes):
    """As a string attribute is."""
    with lanes.enter_phase("train") as phase:
        phase.add_event("n" * 10_000)
    assert (4_096, 1) == (len(phase._extra.events[0][0]), lanes.attribute_counts.truncated)


def test_events_are_bounded_and_counted(lanes):
    """So many a phase; more, and later ones, are counted."""
    with lanes.enter_phase("train") as phase:
        for number in range(MAX_EVENTS + 2):
            phase.add_event(str(number))
    phase.add_event("late")
    assert (MAX_EVENTS, 3) == (len(phase._extra.events), lanes.counts["events_dropped"])


# --- pause and resume -------------------------------------------------------------------------------------------------


def test_a_paused_phase_is_out_of_the_way(lanes, ended, clock):
    """What its owner enters meanwhile hangs under its parent; the pause is a figure of its own."""
    with lanes.enter_phase("train") as train, lanes.enter_phase("step") as step:
        clock.advance(10)
        step.pause()
        assert (PAUSED, False, train) == (step.status, step.closed, lanes.carrier.current_phase())
        with lanes.enter_phase("between") as between:
            clock.advance(200)
        assert train is between.parent
        clock.advance(3_000)
        step.resume()
        assert (ACTIVE, step) == (step.status, lanes.carrier.current_phase())
        clock.advance(40_000)
    assert [between, step, train] == ended
    assert (43_210, 3_200, 40_010) == (duration_ns(step), paused_ns(step), self_ns(step))
    assert (43_210, 0, 3_000) == (duration_ns(train), paused_ns(train), self_ns(train))
    assert train is step.parent


def test_pauses_add_up(lanes, clock):
    """Several pauses, each for itself."""
    with lanes.enter_phase("train") as train:
        for pause in (1, 20, 300):
            train.pause()
            clock.advance(pause)
            train.resume()
            clock.advance(5_000)
    assert (15_321, 321, 15_000) == (duration_ns(train), paused_ns(train), self_ns(train))


@pytest.mark.parametrize("error", [None, ValueError("x")])
def test_a_phase_may_end_while_it_is_paused(lanes, ended, clock, error):
    """Its last owner leaves the block, also by an exception: the pause lasts until then, and the context is right."""
    with contextlib.suppress(ValueError), lanes.enter_phase("outer"), lanes.enter_phase("train") as train:
        clock.advance(1)
        train.pause()
        clock.advance(20)
        if error is not None:
            raise error
    assert (21, 20, 1) == (duration_ns(train), paused_ns(train), self_ns(train))
    assert (SUCCEEDED if error is None else PhaseStatus.FAILED) is train.status
    assert ["train", "outer"] == [phase.name for phase in ended]
    assert None is lanes.carrier.current_phase()
    assert set() == lanes.parked


def test_a_resumed_phase_stands_where_it_is_resumed(lanes, clock):
    """It keeps its path and parent, and its time is counted with whom it runs on."""
    train = lanes.enter_phase("train")
    clock.advance(1)
    train.pause()
    with lanes.enter_phase("other") as other:
        train.resume()
        clock.advance(20)
        with lanes.enter_phase("inner") as inner:
            clock.advance(300)
        train.close()
        clock.advance(4_000)
    assert (("train", "inner"), train, None) == (inner.path, inner.parent, train.parent)
    assert (321, 21, 4_000, 4_320) == (duration_ns(train), self_ns(train), self_ns(other), duration_ns(other))


@pytest.mark.parametrize("action", ["pause", "release"])
def test_only_the_innermost_phase_can_be_paused(lanes, action):
    """The message names what is open inside it."""
    with lanes.enter_phase("outer") as outer, lanes.enter_phase("inner"):
        with pytest.raises(
            PhaseProtocolError, match=rf"Cannot {action} phase 'outer'.*'inner'.*is still open"
        ) as raised:
            getattr(outer, action)()
        assert (Misuse.STILL_OPEN_INSIDE, action) == (raised.value.reason, raised.value.action)
        assert ACTIVE is outer.status


def test_a_phase_is_paused_once(lanes):
    """The second pause is refused, also a resume of what runs."""
    with lanes.enter_phase("train") as train:
        assert Misuse.NOT_PAUSED == reason_of(train.resume)
        train.pause()
        assert Misuse.NOT_ACTIVE == reason_of(train.pause)
    assert Misuse.ALREADY_ENDED == reason_of(train.pause)
    assert Misuse.ALREADY_ENDED == reason_of(train.release)
    assert Misuse.NOT_PAUSED == reason_of(train.resume)


def test_lenient_moves_that_are_refused_change_nothing(lenient, step_thread):
    """Counted, and that is all."""
    with lenient.enter_phase("outer") as outer:
        with lenient.enter_phase("inner"):
            outer.pause()
            outer.release()
        outer.resume()
        other = step_thread()
        other.do(outer.pause)
        outer.pause()
        other.do(outer.resume)
        other.do(outer.release)
        assert PAUSED is outer.status
        outer.resume()
    assert {
        Misuse.STILL_OPEN_INSIDE: 2,
        Misuse.NOT_PAUSED: 1,
        Misuse.FOREIGN_THREAD: 3,
    } == lenient.counts.to_dict()


# --- release and acquire ----------------------------------------------------------------------------------------------


def test_a_phase_moves_to_another_thread(lanes, ended, clock, step_thread):
    """Released here, acquired and ended there: one record, the time between is paused, the old handle is fenced off."""
    with lanes.enter_phase("outer") as outer:
        phase = lanes.enter_phase("work")
        clock.advance(1)
        token = phase.release()
        assert (True, PAUSED, outer) == (phase.closed, phase.status, lanes.carrier.current_phase())
        clock.advance(20)
        other = step_thread("other")
        successor = other.do(lanes.acquire, token)
        assert (phase.scope_id, phase.path, False) == (successor.scope_id, successor.path, successor.closed)
        clock.advance(300)
        assert [Misuse.STALE_TOKEN] * 4 == [
            reason_of(call) for call in (phase.close, phase.pause, phase.resume, phase.release)
        ]
        assert Misuse.FOREIGN_THREAD == reason_of(successor.close)
        other.do(successor.close)
        clock.advance(4_000)
    assert [successor, outer] == ended
    assert (321, 20, 301) == (duration_ns(successor), paused_ns(successor), self_ns(successor))
    assert (4_321, 4_320) == (duration_ns(outer), self_ns(outer))
    assert outer is successor.parent
    scope = exit_boundary(successor).metadata["phase_scope"]
    assert ("other", outer.scope_id) == (scope["thread_name"], scope["parent_scope_id"])


def test_a_with_block_whose_phase_was_released_inside_ends_in_peace(lanes, ended):
    """It has nothing left to end, by an exception neither."""
    tokens = []
    with contextlib.suppress(ValueError), lanes.enter_phase("work") as phase:
        tokens.append(phase.release())
        raise ValueError("x")
    assert ([], {}) == (ended, lanes.counts.to_dict())
    lanes.acquire(tokens[0]).close()
    assert [SUCCEEDED] == [phase.status for phase in ended]


def test_a_paused_phase_can_be_released_by_its_owner(lanes, clock, step_thread):
    """The pause goes on until somebody acquires it."""
    phase = lanes.enter_phase("work")
    phase.pause()
    clock.advance(1)
    other = step_thread()
    assert Misuse.FOREIGN_THREAD == reason_of(other.do, phase.release)
    token = phase.release()
    assert Misuse.STALE_TOKEN == reason_of(phase.release)
    clock.advance(20)
    successor = other.do(lanes.acquire, token)
    other.do(successor.close)
    assert (21, 21) == (duration_ns(successor), paused_ns(successor))


def test_a_phase_can_be_handed_on_and_on(lanes, ended, clock, step_thread):
    """Each owner in turn; children nest in it with whoever has it."""
    threads = [step_thread() for _ in range(3)]
    token = lanes.enter_phase("work").release()
    scope_id = token.scope_id
    for thread in threads:
        phase = thread.do(lanes.acquire, token)
        child = thread.do(lanes.enter_phase, "child")
        assert (phase, ("work", "child")) == (child.parent, child.path)
        clock.advance(7)
        thread.do(child.close)
        token = thread.do(phase.release)
        clock.advance(1)
    last = lanes.acquire(token)
    last.close()
    assert scope_id == last.scope_id
    assert (24, 3, 0) == (duration_ns(last), paused_ns(last), self_ns(last))
    assert ["child"] * 3 + ["work"] == [phase.name for phase in ended]


def test_an_error_from_a_child_of_the_old_handle_is_known_to_the_new_one(lanes, ended, step_thread):
    """A phase that was entered under a handle before its release still counts as beneath its successor."""
    phase = lanes.enter_phase("work")
    other = step_thread()
    context = contextvars.copy_context()
    inner = other.do(context.run, lanes.enter_phase, "inner")
    successor = lanes.acquire(phase.release())
    assert inner.is_within(successor)
    error = ValueError("x")
    other.do(context.run, lambda: inner.close(error=error))
    successor.close(error=error)
    assert {inner.scope_id} == {each._extra.error.root_cause_scope_id for each in ended}


# --- retry ------------------------------------------------------------------------------------------------------------


def test_a_retry_is_a_new_phase_one_attempt_higher(lanes, clock):
    """It has its own id and remembers the one before."""
    with contextlib.suppress(ValueError), lanes.enter_phase("load") as first:
        raise ValueError("x")
    with lanes.retry(first, {"why": "x"}) as second:
        pass
    with lanes.retry(second, None) as third:
        pass
    assert [("load", 1, first), ("load", 2, second)] == [
        (phase.name, phase._extra.attempt, phase._extra.retry_of) for phase in (second, third)
    ]
    assert 3 == len({phase.scope_id for phase in (first, second, third)})
    assert FINAL >= {first.status, second.status, third.status}


def test_the_retry_of_a_record_is_one_attempt_higher(lanes):
    """Where the handle is gone, as in a restarted session, the record of the try before says the same."""
    with lanes.enter_phase("load") as first:
        pass
    record = record_of(exit=exit_boundary(first))
    with lanes.retry(record, None) as second:
        pass
    third = lanes.retry(record_of(exit=exit_boundary(second)), None)
    third.close()
    told = [exit_boundary(phase).metadata["phase_scope"] for phase in (second, third)]
    assert [(1, first.scope_id), (2, second.scope_id)] == [(s["attempt"], s["retry_of_scope_id"]) for s in told]


@pytest.mark.parametrize("previous", [5, None, "load", object()])
def test_only_a_phase_can_be_retried(lanes, lenient, previous):
    """Strictly an error that says what to give; else counted, and nothing is entered."""
    with pytest.raises(TypeError, match="Give the handle of the try before, or its record"):
        lanes.retry(previous, None)
    lenient.retry(previous, None).close()
    assert {"bad_retry": 1} == lenient.counts.to_dict()
    assert [] == [*lanes.open_phases(), *lenient.open_phases()]
