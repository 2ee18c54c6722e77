"""Whose is what comes through the descriptors from elsewhere than Python: one lane's, which holds them.

A descriptor belongs to the process and says nothing of threads. So that two lanes never cross, one of them holds both
descriptors: the first that enters a phase while none does, until its outermost phase has ended. What a C library or a
subprocess writes is at the innermost open phase of that lane.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from stormphase._clock import SystemClock
from stormphase._phase import PhaseHandle
from stormphase.capture._board import BOARD
from stormphase.capture._claim import claim, unclaim
from stormphase.capture._descriptors import Descriptors
from stormphase.capture._execs import ExecHooks
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormphase._lane import Lane
    from stormphase._lanes import LaneSet


class RawCapture:
    """The descriptors in the service of one session, from `start` to `stop`.

    Args:
        lanes: the session's lanes.
        receive: called with phase (or None), monotonic ns, stream (0 or 1) and bytes, by a thread of ours.
        on_lost: called when the descriptors had to be given up.
    """

    def __init__(
        self,
        lanes: LaneSet,
        receive: Callable[[PhaseHandle | None, int, int, bytes], object],
        on_lost: Callable[[], object],
    ) -> None:
        """Capture nothing yet."""
        self._lanes = lanes
        self._descriptors = Descriptors(receive, SystemClock.monotonic_ns, on_lost)
        self._execs = ExecHooks(self._descriptors.stop, self._start_again)
        self._lock = threading.RLock()
        self._holder: Lane | None = None
        self._tops: dict[Lane, PhaseHandle] = {}
        # Made once, since a method is another object whenever it is looked up.
        self._enter_hook: Any = self._on_enter
        self._exit_hook: Any = self._on_exit
        self._is_started = False

    def start(self) -> None:
        """Take the descriptors; a second call does nothing.

        Raises:
            ConfigurationError: if another session of this process has them, or they cannot be had.
        """
        if self._is_started:
            return
        claim(f"session {self._lanes.session_id!r}")
        try:
            self._descriptors.start()
        except OSError as error:
            unclaim()
            raise ConfigurationError(
                f'capture="fd" cannot have the descriptors 1 and 2: {error}.',
                setting="capture",
                fix="Write capture=True, or see to it that stdout and stderr are open and processes can be started.",
            ) from error
        except BaseException:
            unclaim()
            raise
        self._is_started = True
        BOARD.use_descriptors(self._descriptors)
        lanes = self._lanes
        mine = lanes.lane_of_thread()
        for lane in lanes.lanes():
            if isinstance(top := lane.top, PhaseHandle):
                self._tops[lane] = top
                if self._holder is None or lane is mine:
                    self._holder = lane
        lanes.enter_queues = (self._enter_hook, *lanes.enter_queues)
        lanes.exit_queues = (self._exit_hook, *lanes.exit_queues)
        self._execs.install()
        self._mark()

    def stop(self) -> None:
        """Give the descriptors back as they were; what was written before is shown and kept. Never raises."""
        if not self._is_started:
            return
        self._is_started = False
        self._leave_lanes()
        self._execs.remove()
        # Not Python's streams: what waits there was seen, and is written when the program would have it written.
        self._descriptors.stop()
        BOARD.use_descriptors(None)
        unclaim()

    def settle(self, timeout_s: float) -> None:
        """Wait until all that was written so far is kept."""
        self._descriptors.settle(timeout_s)

    @property
    def lost_bytes(self) -> int:
        """How many bytes were shown and could not be kept, since they came faster than they were taken."""
        return self._descriptors.lost_bytes

    def after_fork_in_child(self) -> None:
        """Lead the child's descriptors where the parent's led before."""
        if not self._is_started:
            return
        self._is_started = False
        self._lock = threading.RLock()
        self._descriptors.after_fork_in_child()
        self._leave_lanes()
        self._execs.remove()
        BOARD.use_descriptors(None)

    def _leave_lanes(self) -> None:
        lanes = self._lanes
        lanes.enter_queues = tuple(queue for queue in lanes.enter_queues if queue is not self._enter_hook)
        lanes.exit_queues = tuple(queue for queue in lanes.exit_queues if queue is not self._exit_hook)
        self._tops.clear()
        self._holder = None

    def _start_again(self) -> None:
        """Go on after an `exec` that failed."""
        self._descriptors.start()
        BOARD.use_descriptors(self._descriptors)
        self._mark()

    # Called inline at every enter and exit

    def _on_enter(self, entry: tuple[PhaseHandle]) -> None:
        phase = entry[0]
        lane = phase._lane
        try:
            self._tops[lane] = phase
            if self._holder is None:
                self._holder = lane
            if lane is self._holder:
                self._descriptors.set_owner(phase)
        except Exception:  # noqa: BLE001 - nothing of this may reach the program
            self._give_up()

    def _on_exit(self, phase: PhaseHandle) -> None:
        lane = phase._lane
        try:
            top = lane.top
            if isinstance(top, PhaseHandle):
                self._tops[lane] = top
            else:
                self._tops.pop(lane, None)
            if lane is self._holder:
                if not isinstance(top, PhaseHandle):
                    self._holder = next(reversed(tuple(self._tops)), None)
                self._mark()
        except Exception:  # noqa: BLE001 - as above
            self._give_up()

    def _mark(self) -> None:
        holder = self._holder
        self._descriptors.set_owner(None if holder is None else self._tops.get(holder))

    def _give_up(self) -> None:
        self.stop()
