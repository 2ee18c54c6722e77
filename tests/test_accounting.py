"""Over any lane, own time and children add up to the wall, to the nanosecond; what is not tracked is the remainder."""

from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import given, settings

from stormphase._boundary import duration_ns, exit_boundary, paused_ns, self_ns
from stormphase._recorder import PhaseRecorder
from stormphase.testing import ManualClock


def test_own_time_is_what_no_child_has(lanes, clock):
    """A parent's duration is its own time plus its children's; its boundary says both."""
    with lanes.enter_phase("train") as train:
        clock.advance(1)
        with lanes.enter_phase("load") as load:
            clock.advance(20)
        clock.advance(300)
        with lanes.enter_phase("step") as step:
            clock.advance(4_000)
            with lanes.enter_phase("forward") as forward:
                clock.advance(50_000)
    assert (54_321, 301) == (duration_ns(train), self_ns(train))
    assert (20, 4_000, 50_000) == (self_ns(load), self_ns(step), self_ns(forward))
    scope = exit_boundary(train).metadata["phase_scope"]
    assert (54_321, 301, 0) == (scope["duration_ns"], scope["self_ns"], scope["paused_ns"])


def test_what_is_not_tracked_is_the_lanes_remainder(lanes, clock):
    """The lane's wall is its phases' own time plus what ran outside of all of them."""
    lane = lanes.lane_of_caller()
    began_ns = clock.monotonic_ns()
    clock.advance(7)
    ended = []
    lanes.exit_queues = (ended.append,)
    for _ in range(3):
        with lanes.enter_phase("step"), lanes.enter_phase("inner"):
            clock.advance(100)
        clock.advance(11)
    wall_ns = clock.monotonic_ns() - began_ns
    untracked_ns = wall_ns - lane._children_ns
    assert (340, 40, 300) == (wall_ns, untracked_ns, sum(self_ns(phase) for phase in ended))
    assert began_ns == lane.first_seen_ns


def test_a_huge_session_is_exact(lanes, clock):
    """A year of nanoseconds loses none to floating point."""
    year_ns = 365 * 86_400 * 10**9
    with lanes.enter_phase("train") as train:
        clock.advance(year_ns)
        with lanes.enter_phase("step"):
            clock.advance(1)
    assert (year_ns, year_ns + 1) == (self_ns(train), duration_ns(train))


# A program is a list of what one thread does, each with how long it takes before.
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "exit", "fail", "pause", "resume", "release", "acquire", "reset", "close over"]),
        st.integers(0, 1_000),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(ACTIONS)
def test_any_program_adds_up(actions):  # noqa: C901 - one branch for each action
    """Whatever one thread does: the lane's wall is the phases' own times, and no time is negative."""
    clock = ManualClock()
    lanes = PhaseRecorder(clock=clock, on_misuse="record").lane_set("s", 0)
    ended = []
    lanes.exit_queues = (ended.append,)
    lane = lanes.lane_of_caller()
    paused, released = [], []
    for action, ns in actions:
        clock.advance(ns)
        if action == "enter":
            lanes.enter_phase(f"p{ns % 5}")
        elif action == "acquire" and released:
            lanes.acquire(released.pop())
        elif action == "resume" and paused:
            paused.pop().resume()
        elif action == "reset":
            lanes.close("the recorder was reset")
        elif open_phases := lane.phases():
            if action == "pause":
                open_phases[-1].pause()
                paused.append(open_phases[-1])
            elif action == "release":
                released.append(open_phases[-1].release())
            elif action == "close over":
                open_phases[0].close()
            elif action in ("exit", "fail"):
                open_phases[-1].close(error=ValueError("x") if action == "fail" else None)
    clock.advance(5)
    lanes.close("the session stopped")
    assert lane._children_ns == sum(self_ns(phase) for phase in ended)
    assert [] == [phase for phase in ended if min(self_ns(phase), paused_ns(phase), duration_ns(phase)) < 0]
    assert len(ended) == len({phase._sequence for phase in ended})
    assert (0, len(ended)) == lanes.boundary_counts()
    with lanes.enter_phase("next"):
        pass
    assert None is lanes.carrier.current_phase()


def test_a_random_forest_adds_up(lanes, clock, ended):
    """Ten thousand phases, at any depth."""
    dice = random.Random(1)
    lane = lanes.lane_of_caller()
    for _ in range(10_000):
        clock.advance(dice.randrange(100))
        if dice.random() < 0.55:
            lanes.enter_phase(f"p{dice.randrange(9)}")
        elif lane.top is not lane:
            lane.top.__exit__(None, None, None)
    while lane.top is not lane:
        lane.top.__exit__(None, None, None)
    assert lane._children_ns == sum(self_ns(phase) for phase in ended)
    roots = [phase for phase in ended if phase.parent is None]
    assert lane._children_ns == sum(duration_ns(phase) for phase in roots)
