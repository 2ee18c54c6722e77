"""The only module that reads clocks; everything else is given a `Clock`.

Durations are differences of the monotonic clock, so no step of NTP can make an end precede its start. One anchor per
process turns a monotonic time into a wall time.
"""

from __future__ import annotations

from importlib.machinery import BuiltinImporter
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from stormphase.typing import Clock

ANCHOR_TRIES = 3


def _time_module() -> Any:
    """Return the interpreter's module `time` anew: a test may just have put other functions into the shared one."""
    spec = BuiltinImporter.find_spec("time")
    assert spec is not None  # noqa: S101 - it is built into every CPython
    module = module_from_spec(spec)
    BuiltinImporter.exec_module(module)
    return module


_time = _time_module()


class SystemClock:
    """The machine's clocks. Thread-, fork- and async-safe: it has no state.

    A test that freezes or moves time (freezegun, time-machine) does not reach these: a wait that never ends, or a phase
    that ends before it began, would be the price. But for the wall clock, which time-machine moves where it is in C.
    """

    # The same clock as `monotonic_ns`, under a name that nobody moves: releases 2 of time-machine did that one in C.
    monotonic_ns = staticmethod(_time.perf_counter_ns)
    wall_ns = staticmethod(_time.time_ns)


@attrs.frozen
class ClockAnchor:
    """One instant read on both clocks: what relates monotonic times to wall times.

    Attributes:
        monotonic_ns: the instant on the monotonic clock.
        wall_ns: the same instant in nanoseconds since the Unix epoch.
        uncertainty_ns: how far apart the two readings may lie.
    """

    monotonic_ns: int
    wall_ns: int
    uncertainty_ns: int

    @classmethod
    def take(cls, clock: Clock) -> ClockAnchor:
        """Read both clocks as close together as a few tries allow."""
        return min((cls._read(clock) for _ in range(ANCHOR_TRIES)), key=lambda anchor: anchor.uncertainty_ns)

    @classmethod
    def _read(cls, clock: Clock) -> ClockAnchor:
        before = clock.monotonic_ns()
        wall = clock.wall_ns()
        after = clock.monotonic_ns()
        return cls(monotonic_ns=(before + after) // 2, wall_ns=wall, uncertainty_ns=after - before)

    def to_wall_ns(self, monotonic_ns: int) -> int:
        """Return the wall time, in nanoseconds since the Unix epoch, of a monotonic time of this process."""
        return self.wall_ns + (monotonic_ns - self.monotonic_ns)
