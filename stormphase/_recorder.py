"""`PhaseRecorder`: nesting stacks for any number of (session, rank) in one process, with boundaries returned at once.

`PhaseTracker` works on one (session, rank) and lets workers build the boundaries; this is the same lanes, by hand.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from stormphase import _misuse
from stormphase._boundary import enter_boundary, exit_boundary, misuse_boundary
from stormphase._clock import ClockAnchor, SystemClock
from stormphase._copying import CopiesToItself
from stormphase._counts import Counts
from stormphase._lanes import ContextCarrier, LaneSet
from stormphase._paths import PathTable
from stormphase._phase import FINAL, PhaseHandle, PhaseToken
from stormphase._sites import frame_above, through
from stormphase.exceptions import ConfigurationError, Misuse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stormphase._lane import Lane
    from stormphase._phase_boundary import PhaseBoundary
    from stormphase.exceptions import PhaseProtocolError
    from stormphase.typing import Clock

ON_MISUSE = ("raise", "record")

_recorders: weakref.WeakSet[PhaseRecorder] = weakref.WeakSet()
# Apart from their recorders, since handles and tokens keep lanes alive and not the recorder.
_all_lanes: weakref.WeakSet[LaneSet] = weakref.WeakSet()
_fork_guard: list[bool] = []


class PhaseRecorder(CopiesToItself):
    """Keeps one stack of open phases per session, rank, thread and task.

    Thread-, task- and fork-safe. In a forked child all lanes are empty and the parent's tokens are refused. A copy is
    itself; pickled and read it is a new one, without phases.

    Args:
        clock: where times come from.
        on_misuse: "raise" for a `PhaseProtocolError` that leaves everything as it was, or "record" to recover (phases
            left open inside a closed one become ABANDONED), count, and never raise.
    """

    def __init__(self, *, clock: Clock | None = None, on_misuse: str = "raise") -> None:
        """Start with no lanes."""
        if on_misuse not in ON_MISUSE:
            raise ConfigurationError(
                f"on_misuse must be one of {', '.join(ON_MISUSE)}, not {on_misuse!r}.",
                setting="on_misuse",
                fix='Write on_misuse="raise" in development and on_misuse="record" in production.',
            )
        self._clock: Clock = SystemClock() if clock is None else clock
        self._anchor = ClockAnchor.take(self._clock)
        self._on_misuse = on_misuse
        self._paths = PathTable()
        self._lane_sets: dict[tuple[str, int], LaneSet] = {}
        self._lock = threading.RLock()  # A signal handler may enter phases, too.
        self.counts = Counts()  # Misuse that belongs to none of the sessions.
        _remember(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle how it was made, and nothing that is open."""
        return functools.partial(type(self), clock=self._clock, on_misuse=self._on_misuse), ()

    def enter(
        self, *, session_id: str, rank: int, name: str, attrs: Mapping[str, Any] | None = None
    ) -> tuple[PhaseToken, PhaseBoundary]:
        """Enter a phase on the caller's lane; returns its token and its enter boundary.

        Raises:
            PhaseNameError: if the name is blank.
            TypeError: if `attrs` is not a mapping.
        """
        handle = self._enter(session_id, rank, name, attrs)
        return PhaseToken.of(handle), enter_boundary(handle)

    def exit(self, token: PhaseToken, *, error: BaseException | None = None) -> PhaseBoundary:
        """End the phase that `token` proves; returns its exit boundary.

        Where misuse is only recorded, a boundary of the type "phase_misuse" says why nothing has ended.

        Raises:
            PhaseProtocolError: if the token is forged, copied, stale or another recorder's, or the phase is not the
                caller's innermost one.
        """
        handle = token._handle if type(token) is PhaseToken else None
        if handle is None:
            return self._refuse(_misuse.bad_token(token, "exit", Misuse.FORGED_TOKEN))
        lanes = self._lane_sets.get((token.session_id, token.rank))
        if lanes is None or handle._lane.lanes is not lanes:
            return self._refuse(_misuse.bad_token(token, "exit", Misuse.FOREIGN_TRACKER), lanes)
        was_open = handle._status not in FINAL
        lanes.exit(token, error=error)
        return self._ended(handle) if was_open else _not_ended(handle)

    def enter_phase(
        self, *, session_id: str, rank: int, name: str, metadata: Mapping[str, Any] | None = None
    ) -> PhaseBoundary:
        """Enter a phase to be exited by its id; `metadata` is returned in the boundary and kept on the phase.

        Raises:
            PhaseNameError: if the name is blank.
            TypeError: if `metadata` is not a mapping.
        """
        handle = self._enter(session_id, rank, name, metadata)
        return enter_boundary(handle)

    def exit_phase(self, *, session_id: str, rank: int, scope_id: str, thread_id: int) -> PhaseBoundary:
        """End a phase by its id, from the lane that entered it; returns as `exit` does.

        Raises:
            PhaseProtocolError: if no such phase is open on the caller's lane, or others are open inside it.
        """
        lanes = self._lane_sets.get((session_id, rank))
        lane = None if lanes is None else lanes.lane_of_caller()
        if lanes is None or lane is None:
            where = f"any lane of session {session_id!r:.60}, rank {rank!r:.20}"
            return self._refuse(_misuse.unknown_scope(scope_id, where), lanes)
        handle = _find(lane, scope_id) or _find_in_greenlets(lanes, lane, scope_id)
        if handle is None:
            for other in lanes.open_phases():
                if other.scope_id == scope_id:
                    reason = _foreign_reason(lane, other._lane)
                    return self._refuse(_misuse.foreign_owner(other, lane.label, "exit", reason), lanes)
            return self._refuse(_misuse.unknown_scope(scope_id, lane.label), lanes)
        if thread_id != lane.thread_id:
            problem = _misuse.foreign_owner(handle, f"thread {thread_id!r:.40}", "exit", Misuse.FOREIGN_THREAD)
            return self._refuse(problem, lanes)
        lanes.leave(handle, None, is_unwinding=False)
        return self._ended(handle)

    def reset(self) -> None:
        """End every open phase of every session as ABANDONED and fence off all tokens; from any thread."""
        for lanes in tuple(self._lane_sets.values()):
            lanes.close("the recorder was reset")

    @property
    def anchor(self) -> ClockAnchor:
        """What relates the recorder's monotonic times to wall times."""
        return self._anchor

    def lane_set(
        self,
        session_id: str,
        rank: int,
        *,
        attempt: int = 0,
        carrier: ContextCarrier | None = None,
        on_first_sight: Callable[[], bool] | None = None,
    ) -> LaneSet:
        """Return the lanes of one (session, rank), made at first sight; what else is given counts only then."""
        key = (session_id, rank)
        with self._lock:
            lanes = self._lane_sets.get(key)
            if lanes is None:
                lanes = LaneSet(
                    session_id,
                    rank,
                    clock=self._clock,
                    anchor=self._anchor,
                    paths=self._paths,
                    on_misuse=self._on_misuse,
                    attempt=attempt,
                    carrier=carrier,
                    on_first_sight=on_first_sight,
                )
                self._lane_sets[key] = lanes
                _all_lanes.add(lanes)
            return lanes

    def _enter(self, session_id: str, rank: int, name: str, attributes: Mapping[str, Any] | None) -> PhaseHandle:
        lanes = self._lane_sets.get((session_id, rank))
        if lanes is None:
            lanes = self.lane_set(session_id, rank)
        handle = lanes.enter_phase(name, attributes)
        frame = frame_above(2)
        handle._code = frame.f_code
        handle._instruction = frame.f_lasti if type(handle._instruction) is int else through(frame)
        return handle

    def _ended(self, handle: PhaseHandle) -> PhaseBoundary:
        return exit_boundary(handle) if handle._status in FINAL else _not_ended(handle)

    def _refuse(self, problem: PhaseProtocolError, lanes: LaneSet | None = None) -> PhaseBoundary:
        counts = self.counts if lanes is None else lanes.counts
        _misuse.tell(problem, counts, None, raises=self._on_misuse == "raise")
        return misuse_boundary(str(problem))

    def after_fork_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held; called in a forked child."""
        self._lock = threading.RLock()


def _find(lane: Lane, scope_id: str) -> PhaseHandle | None:
    node = lane.top
    while isinstance(node, PhaseHandle):
        if node.scope_id == scope_id:
            return node
        node = node._below
    return None


def _find_in_greenlets(lanes: LaneSet, caller: Lane, scope_id: str) -> PhaseHandle | None:
    found = (_find(lane, scope_id) for lane in lanes.lanes() if lane.is_owned_by(caller))
    return next((handle for handle in found if handle is not None), None)


def _not_ended(handle: PhaseHandle) -> PhaseBoundary:
    problem = f"Cannot exit phase {handle.label}: see the misuse counts."
    return misuse_boundary(problem, scope_id=handle.scope_id, path=handle.path)


def _foreign_reason(caller: Lane, owner: Lane) -> str:
    return Misuse.FOREIGN_TASK if caller.thread_id == owner.thread_id else Misuse.FOREIGN_THREAD


def _remember(recorder: PhaseRecorder) -> None:
    _recorders.add(recorder)
    if not _fork_guard and hasattr(os, "register_at_fork"):
        _fork_guard.append(True)
        os.register_at_fork(after_in_child=_after_fork_in_child)


def _after_fork_in_child() -> None:
    for recorder in tuple(_recorders):
        recorder.after_fork_in_child()
    for lanes in tuple(_all_lanes):
        lanes.after_fork_in_child()
