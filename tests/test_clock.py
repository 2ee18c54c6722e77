"""The one reader of clocks, the anchor between its two times, and the clock for tests."""

from __future__ import annotations

import itertools
import threading

import pytest

from stormphase._clock import ANCHOR_TRIES, ClockAnchor, SystemClock
from stormphase._recorder import PhaseRecorder
from stormphase.testing import START_MONOTONIC_NS, START_WALL_NS, ManualClock
from stormphase.typing import Clock


class ScriptedClock:
    """Shows the given readings, one after the other."""

    def __init__(self, monotonic: list[int], wall: list[int]) -> None:
        self.monotonic = iter(monotonic)
        self.wall = iter(wall)

    def monotonic_ns(self) -> int:
        """Return the next monotonic reading."""
        return next(self.monotonic)

    def wall_ns(self) -> int:
        """Return the next wall reading."""
        return next(self.wall)


def test_the_system_clock_is_a_clock_of_integers_that_never_goes_back():
    """Both readings are integers, and the monotonic one never falls."""
    clock = SystemClock()
    readings = [clock.monotonic_ns() for _ in range(1_000)]
    assert isinstance(clock, Clock)
    assert (int, int) == (type(clock.wall_ns()), type(readings[0]))
    assert readings == sorted(readings)


def test_an_anchor_takes_the_tightest_of_its_readings():
    """Of several tries, the one whose readings lie closest together counts, halfway between them."""
    clock = ScriptedClock([0, 100, 200, 210, 300, 350], [7_000, 7_500, 7_900])
    assert ClockAnchor(monotonic_ns=205, wall_ns=7_500, uncertainty_ns=10) == ClockAnchor.take(clock)


def test_an_anchor_reads_the_clocks_only_a_few_times():
    """Starting costs three readings of each pair, however noisy the machine is."""
    counts = itertools.count()

    class Noisy(ManualClock):
        def wall_ns(self) -> int:
            next(counts)
            return super().wall_ns()

    ClockAnchor.take(Noisy())
    assert ANCHOR_TRIES == next(counts)


def test_wall_times_are_the_anchor_plus_a_monotonic_difference():
    """A monotonic time becomes a wall time by its distance from the anchor, on both sides of it."""
    anchor = ClockAnchor(monotonic_ns=1_000, wall_ns=50_000, uncertainty_ns=0)
    assert [49_990, 50_000, 50_007] == [anchor.to_wall_ns(when_ns) for when_ns in (990, 1_000, 1_007)]


@pytest.mark.parametrize("jump_ns", [-(10**18), -1, 10**18])
def test_no_step_of_the_wall_clock_moves_an_end_before_its_start(jump_ns):
    """A wall clock that NTP sets back an age between enter and exit changes neither times nor duration."""
    clock = ManualClock()
    recorder = PhaseRecorder(clock=clock)
    token, entered = recorder.enter(session_id="s", rank=0, name="train")
    clock.shift_wall(jump_ns)
    clock.advance(5)
    exited = recorder.exit(token)
    start_ns = entered.metadata["phase_scope"]["timestamp_ns"]
    scope = exited.metadata["phase_scope"]
    assert (START_WALL_NS, START_WALL_NS + 5, 5) == (start_ns, scope["timestamp_ns"], scope["duration_ns"])


def test_a_manual_clock_moves_only_when_told():
    """It stands between readings, and `advance` moves both its times."""
    clock = ManualClock()
    assert isinstance(clock, Clock)
    assert (START_MONOTONIC_NS, START_WALL_NS) == (clock.monotonic_ns(), clock.wall_ns())
    clock.advance(0)
    clock.advance(41)
    assert (START_MONOTONIC_NS + 41, START_WALL_NS + 41) == (clock.monotonic_ns(), clock.wall_ns())


def test_a_manual_clock_starts_where_it_is_told():
    """Both times can be given."""
    clock = ManualClock(monotonic_ns=3, wall_ns=4)
    assert (3, 4) == (clock.monotonic_ns(), clock.wall_ns())


def test_a_manual_clock_never_goes_back():
    """A negative step is refused, and the message names what does that."""
    clock = ManualClock()
    with pytest.raises(ValueError, match=r"-1 is negative\. Use shift_wall"):
        clock.advance(-1)
    assert START_MONOTONIC_NS == clock.monotonic_ns()


def test_a_manual_clock_shifts_its_wall_time_alone():
    """`shift_wall` is NTP: the monotonic time stands."""
    clock = ManualClock()
    clock.shift_wall(-7)
    assert (START_MONOTONIC_NS, START_WALL_NS - 7) == (clock.monotonic_ns(), clock.wall_ns())


def test_a_manual_clock_loses_no_step_of_any_thread():
    """Steps from many threads add up."""
    clock = ManualClock()

    def advance() -> None:
        for _ in range(2_000):
            clock.advance(1)

    threads = [threading.Thread(target=advance) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert START_MONOTONIC_NS + 8_000 == clock.monotonic_ns()
