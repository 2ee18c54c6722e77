"""What an owner may do with an open phase besides ending it: pause, resume, release, acquire, note an event.

A paused phase is on no lane: nothing nests in it, and its clock stands. Whoever resumes it becomes its owner.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stormphase import _exits, _misuse
from stormphase._model import PhaseStatus
from stormphase._phase import FINAL, PhaseExtra, PhaseHandle, PhaseToken
from stormphase._plain_values import normalise
from stormphase._record import PhaseRecord, RecordKind
from stormphase._sites import frame_above
from stormphase._status import TABLE
from stormphase.exceptions import Misuse, PhaseProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._lane import Lane
    from stormphase._lanes import LaneSet

MAX_EVENTS = 64
_MAX_LANES = 64

# What an enter says that is kept apart from the handle.
_OF_ENTER = ("above_ids", "attempt", "is_quiet", "is_rooted", "is_sync", "origin", "retry_of")

_ON_PAUSE = TABLE.checked(PhaseStatus.ACTIVE, PhaseStatus.PAUSED)
_ON_RESUME = TABLE.checked(PhaseStatus.PAUSED, PhaseStatus.ACTIVE)


def add_event(
    lanes: LaneSet, phase: PhaseHandle, name: str, attributes: Mapping[str, Any] | None, timestamp: int | None
) -> None:
    """Note an event on an open phase; at most `MAX_EVENTS`, more and later ones are counted.

    The name is made text as attributes are: bounded, and such that it can be encoded, or it would cost the whole batch.

    Raises:
        TypeError: if `attributes` is no mapping, and the set was made to raise; else the event is without them.
    """
    extra = phase._extra_or_new()
    events = extra.events
    if events is None:
        events = extra.events = []
    if phase.closed or len(events) >= MAX_EVENTS:
        lanes.counts.add("events_dropped")
        return
    when_ns = lanes.anchor.to_wall_ns(lanes.now()) if timestamp is None else timestamp
    taken = None if attributes is None else lanes.taken(attributes, lanes.attribute_counts, lanes.redactor)
    events.append((str(normalise(name, lanes.attribute_counts, lanes.redactor)), when_ns, taken or {}))


def pause(lanes: LaneSet, phase: PhaseHandle, *, must_own: bool, action: str = "pause") -> bool:
    """Take the phase off its lane; False if that was refused and the tracker only records."""
    problem = _why_not_movable(lanes, phase, action)
    lane = phase._lane
    if problem is None and must_own and not lane.is_owned_by(caller := lanes.lane_of_caller()):
        problem = _foreign(phase, caller, action)
    if problem is None and lane.top is not phase:
        problem = _misuse.still_open_inside(phase, _exits.inside_of(lane, phase) or [], action)
    if problem is not None:
        lanes.misuse(problem)
        return False
    extra = phase._extra_or_new()
    origin = phase.parent
    started_ns = _exits.segment_start_ns(phase)
    if lanes.journal is None:
        phase._slot = 0  # So that whoever takes it over finds something to take.
    lanes.parked.add(phase)  # First, so that nothing that is paused can be missing in it: see `_exits.is_parked`.
    _exits.restore_context(lanes, phase)
    while lane.top is phase:
        spent_ns = phase._children_ns
        paused_ns = lanes.now()
        if lane.top is phase and phase._children_ns is spent_ns:  # No call from here to the last store: see `_phase`.
            below = phase._below
            lane.top = below
            below._children_ns += paused_ns - started_ns
            extra.origin = origin
            extra.is_rooted = True
            extra.paused_since_ns = paused_ns
            phase._status = _ON_PAUSE
            if lanes.journal is not None:
                lanes.journal.renew(phase)
            return True
    lanes.parked.discard(phase)
    return False


def resume_on(lanes: LaneSet, lane: Lane, phase: PhaseHandle) -> bool:
    """Put a paused phase on `lane`, the caller's, whoever owned it; False where it is not there to be had."""
    extra = phase._extra
    if extra is None or extra.released or phase._lane.is_inherited:
        return False
    return _put_on(lanes, lane, phase=phase, extra=extra, successor=phase, fence=None)


def resume(lanes: LaneSet, phase: PhaseHandle, *, must_own: bool) -> bool:
    """Put a paused phase on the caller's lane; False if that was refused and the tracker only records."""
    extra = phase._extra_or_new()
    lane = lanes.lane_of_caller()
    if phase._lane.is_inherited:
        problem = _misuse.foreign_process(phase, os.getpid(), "resume")
    elif extra.released:
        problem = _misuse.released(phase, "resume")
    elif phase._status is not _ON_PAUSE:
        problem = _misuse.not_paused(phase)
    elif lane is None or (must_own and not phase._lane.is_owned_by(lane)):
        problem = _foreign(phase, lane, "resume")
    else:
        return _put_on(lanes, lane, phase=phase, extra=extra, successor=phase, fence=None)
    lanes.misuse(problem)
    return False


def _put_on(
    lanes: LaneSet,
    lane: Lane,
    *,
    phase: PhaseHandle,
    extra: PhaseExtra,
    successor: PhaseHandle,
    fence: PhaseExtra | None,
) -> bool:
    """Put a paused phase on a lane; False if another one resumed, acquired or ended it first.

    `extra` is what the caller looked at, so that it is that which is acted on. `successor` is `phase` itself, or the
    handle that takes its place; `fence` is then what the old one is left with.
    """
    current = lanes.carrier.variable.get()
    kept = extra if fence is None else fence
    stints = extra.stints if phase._lane is lane else _stints_so_far(phase, extra)
    token = extra.token if fence is None else None
    while phase._status is _ON_PAUSE and phase._extra is extra:
        below = lane.top
        spent_ns = below._children_ns
        resumed_ns = lanes.now()
        since_ns = extra.paused_since_ns
        paused_ns = extra.paused_ns + resumed_ns - (resumed_ns if since_ns is None else since_ns)
        if (  # No call from here to the last store: see `_phase`.
            phase._status is _ON_PAUSE
            and phase._extra is extra
            and lane.top is below
            and below._children_ns is spent_ns
        ):
            phase._extra = kept
            extra.released = False
            extra.token = token
            extra.paused_ns = paused_ns
            extra.paused_since_ns = None
            extra.resumed_ns = resumed_ns
            extra.stints = stints
            successor._slot = phase._slot  # The journal may have moved it since the successor was made.
            successor._lane = lane
            successor._below = below
            successor._status = _ON_RESUME
            lane.top = successor
            try:
                lanes.parked.discard(phase)
                lanes.put_in_context(successor)
            except BaseException:
                _park_again(lanes, successor, lane, resumed_ns, current)
                raise
            if lanes.journal is not None:
                lanes.journal.renew(successor)
            return True
    return False


def _stints_so_far(phase: PhaseHandle, extra: PhaseExtra) -> dict[Lane | None, tuple[int, int]]:
    """Return how long a paused phase was on each lane so far, and how long its children were on top of it there.

    Beyond `_MAX_LANES` of them, None stands for all others.
    """
    stints: dict[Lane | None, tuple[int, int]] = dict(extra.stints or {})
    since_ns = extra.paused_since_ns
    active_ns = 0 if since_ns is None else since_ns - phase._entered_ns - extra.paused_ns
    children_ns = phase._children_ns
    for active, children in stints.values():
        active_ns -= active
        children_ns -= children
    lane = phase._lane if len(stints) < _MAX_LANES or phase._lane in stints else None
    active, children = stints.get(lane, (0, 0))
    stints[lane] = (active + active_ns, children + children_ns)
    return stints


def _park_again(lanes: LaneSet, phase: PhaseHandle, lane: Lane, resumed_ns: int, context_value: object) -> None:
    """Undo a resume into which a signal handler raised: the phase stays paused, and the context is as it was."""
    extra = phase._extra_or_new()
    lanes.parked.add(phase)
    lanes.carrier.variable.set(context_value)
    phase._context_token = None
    if lane.top is phase:  # No call from here to the last store: see `_phase`.
        lane.top = phase._below
        extra.paused_since_ns = resumed_ns
        phase._status = _ON_PAUSE


def release(lanes: LaneSet, phase: PhaseHandle) -> PhaseToken:
    """Pause the phase, fence its handle and tokens off, and return the token that acquires it."""
    if phase._status is _ON_PAUSE and not (phase._extra is not None and phase._extra.released):
        caller = lanes.lane_of_caller()
        if phase._lane.is_inherited:
            lanes.misuse(_misuse.foreign_process(phase, os.getpid(), "release"))
            return PhaseToken.of_nothing(phase)
        if not phase._lane.is_owned_by(caller):
            lanes.misuse(_foreign(phase, caller, "release"))
            return PhaseToken.of_nothing(phase)
    elif not pause(lanes, phase, must_own=True, action="release"):
        return PhaseToken.of_nothing(phase)
    token = PhaseToken.of(phase)
    phase._extra_or_new().released = True
    return token


def acquire(lanes: LaneSet, token: PhaseToken) -> PhaseHandle:
    """Take a released phase over: a new handle on the caller's lane; the token is used up."""
    phase = resolve(lanes, token, "acquire")
    lane = lanes.lane_of_caller()
    if phase is None or lane is None:
        return lanes.noop
    extra = phase._extra_or_new()
    if phase._lane.is_inherited:
        lanes.misuse(_misuse.foreign_process(phase, os.getpid(), "acquire"))
        return lanes.noop
    if phase._status in FINAL:
        lanes.misuse(_misuse.already_ended(phase, "acquire"))
        return lanes.noop
    if not extra.released:
        lanes.misuse(_misuse.not_paused(phase))
        return lanes.noop
    # Compared once more: another thread may have acquired the phase since, and left a fence there.
    successor = phase.clone()
    fence = _fence_of(extra)
    if extra.token is token and _put_on(lanes, lane, phase=phase, extra=extra, successor=successor, fence=fence):
        return successor
    lanes.misuse(_misuse.bad_token(token, "acquire", Misuse.STALE_TOKEN))
    return lanes.noop


def _fence_of(extra: PhaseExtra) -> PhaseExtra:
    """Return what the old handle of an acquired phase is left with: its enter, which a sink may ask for only now."""
    fence = PhaseExtra()
    fence.released = True
    for name in _OF_ENTER:
        setattr(fence, name, getattr(extra, name))
    return fence


def retry(lanes: LaneSet, previous: Any, attributes: Mapping[str, Any] | None) -> PhaseHandle:
    """Enter a phase of the same name again, one attempt higher; NOOP after what is no phase, if that is only counted.

    Raises:
        TypeError: if `previous` is neither a phase nor the record of one, and the set was made to raise.
    """
    if isinstance(previous, PhaseHandle):
        attempt = 0 if previous._extra is None else previous._extra.attempt
    elif isinstance(previous, PhaseRecord) and previous.kind is RecordKind.PHASE:
        attempt = previous.attempt
    elif lanes.on_misuse == "raise":
        kind = type(previous).__name__
        message = (
            f"Only a phase can be retried, and this {kind} is none. Give the handle of the try before, or its record."
        )
        raise TypeError(message)
    else:
        lanes.counts.add("bad_retry")
        return lanes.noop
    phase = lanes.enter_phase(previous.name, attributes)
    if phase is lanes.noop:
        return phase
    frame = frame_above(2)
    phase._code = frame.f_code
    phase._instruction = frame.f_lasti
    extra = phase._extra_or_new()
    extra.attempt = attempt + 1
    extra.retry_of = previous
    if lanes.journal is not None:
        lanes.journal.renew(phase)
    return phase


def resolve(lanes: LaneSet, token: object, action: str) -> PhaseHandle | None:
    """Return the phase that `token` proves, or None after the misuse was told."""
    handle = token._handle if type(token) is PhaseToken else None
    if handle is None:
        lanes.misuse(_misuse.bad_token(token, action, Misuse.FORGED_TOKEN))
        return None
    if handle._lane.lanes is not lanes:
        lanes.misuse(_misuse.bad_token(token, action, Misuse.FOREIGN_TRACKER))
        return None
    extra = handle._extra
    if extra is None or extra.token is not token:
        lanes.misuse(_misuse.bad_token(token, action, Misuse.STALE_TOKEN))
        return None
    return handle


def _why_not_movable(lanes: LaneSet, phase: PhaseHandle, action: str) -> PhaseProtocolError | None:
    del lanes
    if phase._status in FINAL:
        return _misuse.already_ended(phase, action)
    if phase._lane.is_inherited:
        return _misuse.foreign_process(phase, os.getpid(), action)
    if phase._extra is not None and phase._extra.released:
        return _misuse.released(phase, action)
    if phase._status is _ON_PAUSE:
        return _misuse.not_active(phase, action)
    return None


def _foreign(phase: PhaseHandle, caller: Lane | None, action: str) -> PhaseProtocolError:
    label = "a sink's worker thread" if caller is None else caller.label
    is_same_thread = caller is not None and caller.thread_id == phase._lane.thread_id
    reason = Misuse.FOREIGN_TASK if is_same_thread else Misuse.FOREIGN_THREAD
    return _misuse.foreign_owner(phase, label, action, reason)
