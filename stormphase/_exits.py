"""How phases end when it is not the plain way: failures, misuse, foreign contexts, abandonment.

The plain way is `PhaseHandle.__exit__`. Everything here may be slower, and keeps the same promises: a phase ends once,
its owner ends it, the lane stays a stack, the user's exception wins, and no nanosecond is counted twice or lost.

The blocks that store an end and then tell of it look alike on purpose: a call between the last store and the `try`
would be a place where a signal handler that raises leaves the sinks untold.
"""

from __future__ import annotations

import contextlib
import functools
import os
from threading import get_ident
from typing import TYPE_CHECKING, Any

from stormphase import _errors, _misuse, _tasks
from stormphase._model import PhaseStatus
from stormphase._phase import FINAL, PhaseExtra, PhaseHandle
from stormphase._status import TABLE, is_end_of_iterator, outcome_of
from stormphase.exceptions import Misuse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Token

    from stormphase._lane import Lane
    from stormphase._lanes import LaneSet, Publish
    from stormphase._model import PhaseError

    # How a phase ends, and what it says of the error. It is noted on the phase in one piece with the end: another
    # thread may stop the session meanwhile, and then the phase has ended without.
    Outcome = tuple[PhaseStatus, PhaseError | None]

_ACTIVE = PhaseStatus.ACTIVE
_NOBODY = PhaseExtra()  # Takes what no phase is told.
_PAUSED = PhaseStatus.PAUSED
_ON_ABANDON = TABLE.checked(PhaseStatus.ACTIVE, PhaseStatus.ABANDONED)
_ON_POLICY_SUCCESS = TABLE.checked(PhaseStatus.ACTIVE, PhaseStatus.SUCCEEDED)


def leave(lanes: LaneSet, phase: PhaseHandle, error: BaseException | None, *, is_unwinding: bool) -> None:
    """End `phase` for its owner, or say why not.

    Args:
        lanes: the set the phase belongs to.
        phase: what to end.
        error: the exception that leaves the phase, or None.
        is_unwinding: whether a `with` block calls; it never raises over an exception, and where it cannot end the
            phase from the right context it ends it all the same and counts that.

    Raises:
        PhaseProtocolError: on misuse, if nothing is in flight and the tracker was made to raise.
    """
    if phase._status in FINAL:
        forget_in_context(lanes, phase)
        if not is_unwinding:
            lanes.misuse(_misuse.already_ended(phase, "exit"), error)
        return
    lane = phase._lane
    if lane.is_inherited:
        if is_unwinding:
            # The child leaves a block that its parent entered: the context is the child's own, the phase is not.
            forget_in_context(lanes, phase)
            lanes.counts.add(Misuse.FOREIGN_PROCESS)
        else:
            lanes.misuse(_misuse.foreign_process(phase, os.getpid(), "exit"), error)
        return
    extra = phase._extra
    if extra is not None and extra.released:
        # A with block whose phase was released inside it has nothing left to end.
        if not is_unwinding:
            lanes.misuse(_misuse.released(phase, "exit"), error)
        return
    caller = lanes.lane_of_caller()
    if caller is not lane and not lane.is_owned_by(caller):
        _leave_from_elsewhere(lanes, phase, error, caller, is_unwinding=is_unwinding)
        return
    if phase._status is _PAUSED:
        _end_parked(lanes, phase, error)
    elif lane.top is phase:
        end(lanes, lane, phase, error)
    else:
        _leave_over_others(lanes, lane, phase, error)


def _leave_over_others(lanes: LaneSet, lane: Lane, phase: PhaseHandle, error: BaseException | None) -> None:
    """End a phase inside which others are open.

    Those that an exception leaves open are the way in which callbacks meet it, which have no block of their own: they
    end by it, too. Without one it is strictly an error, else they become ABANDONED.
    """
    inside = inside_of(lane, phase)
    if inside is None:  # A reset or stop took it off its lane a moment ago.
        forget_in_context(lanes, phase)
        return
    if error is not None and not is_end_of_iterator(error):
        unwind(lanes, lane, inside, error)
    else:
        lanes.misuse(_misuse.still_open_inside(phase, inside, "exit"), error)
        for inner in reversed(inside):
            _abandon(lanes, lane, inner, f"{phase.label} was closed over it")
    end(lanes, lane, phase, error)


def unwind(lanes: LaneSet, lane: Lane, phases: list[PhaseHandle], error: BaseException) -> None:
    """End what `error` leaves open, given outermost first: it arose in the innermost one, and passes the others.

    Their context is that of the block around them, which takes all of them out of it at once.
    """
    for phase in reversed(phases):
        spent_ns = phase._children_ns
        ended_ns = lane.now()
        outcome = settle(phase, error)
        phase._context_token = None
        _end_on_top(lanes, lane, phase, spent_ns=spent_ns, ended_ns=ended_ns, outcome=outcome)


def unwind_above(lanes: LaneSet, outer: PhaseHandle | None, error: BaseException) -> None:
    """End what `error` leaves open on the caller's lane, in a block of ours that is no phase; `outer` is around it."""
    lane = None if lanes.lane_of_thread() is None else lanes.lane_of_caller()
    if lane is None or is_end_of_iterator(error):
        return
    phases = lane.phases()
    unwind(lanes, lane, phases[phases.index(outer) + 1 :] if outer in phases else phases, error)


def _leave_from_elsewhere(
    lanes: LaneSet, phase: PhaseHandle, error: BaseException | None, caller: Lane | None, *, is_unwinding: bool
) -> None:
    """Refuse a foreign caller, unless a `with` block is unwound in a foreign context: that ends its phase."""
    lane = phase._lane
    is_same_thread = lane.thread_id == get_ident()
    if is_unwinding and (is_same_thread or isinstance(error, GeneratorExit)):
        lanes.counts.add(Misuse.FOREIGN_CONTEXT)
        _end_out_of_order(lanes, lane, phase, error)
        return
    reason = Misuse.FOREIGN_TASK if is_same_thread else Misuse.FOREIGN_THREAD
    label = "a sink's worker thread" if caller is None else caller.label
    lanes.misuse(_misuse.foreign_owner(phase, label, "exit", reason), error)


def end(lanes: LaneSet, lane: Lane, phase: PhaseHandle, error: BaseException | None) -> None:
    """End the phase on top of its lane, as its owner."""
    spent_ns = phase._children_ns
    ended_ns = lane.now()
    outcome = settle(phase, error)
    restore_context(lanes, phase)
    _end_on_top(lanes, lane, phase, spent_ns=spent_ns, ended_ns=ended_ns, outcome=outcome)


def _end_on_top(
    lanes: LaneSet, lane: Lane, phase: PhaseHandle, *, spent_ns: int, ended_ns: int, outcome: Outcome
) -> None:
    status, error = outcome
    extra = phase._extra
    told_to = _NOBODY if error is None or extra is None else extra  # Now: there may be no jump among the stores.
    started_ns = segment_start_ns(phase)
    queues, offered = _receivers(lanes, phase, status)
    while lane.top is phase:
        if lane.top is phase and phase._children_ns is spent_ns:  # No call from here to the last store: see `_phase`.
            below = phase._below
            lane.top = below
            below._children_ns += ended_ns - started_ns
            phase._ended_ns = ended_ns
            phase._status = status
            told_to.error = error
            lane.ended_count += offered
            try:
                if lanes.journal is not None:
                    lanes.journal.end(phase)
                for append in queues:
                    append(phase)
            except BaseException:  # A signal handler raised: who is left is told all the same.
                for append in queues:
                    append(phase)
                raise
            return
        # A signal handler's phases came and went since the clock was read.
        spent_ns = phase._children_ns
        ended_ns = lane.now()


def settle(phase: PhaseHandle, error: BaseException | None) -> Outcome:
    """Return how the phase ends, and what it says of the error: noted on it by whoever does end it."""
    if error is None:
        return outcome_of(None), None
    extra = phase._extra_or_new()
    policy = _errors.FULL if extra.error_policy is None else extra.error_policy(error)
    if policy == _errors.NOT_A_FAILURE:
        return _ON_POLICY_SUCCESS, None
    status = outcome_of(error)
    if status is PhaseStatus.SUCCEEDED:
        return status, None
    if status is not PhaseStatus.FAILED:
        policy = _errors.REFERENCE
    with contextlib.suppress(Exception):  # No memory: the phase ends without details, and the user's exception wins.
        return status, _errors.describe(error, phase, policy)
    return status, None


def segment_start_ns(phase: PhaseHandle) -> int:
    """Return when the phase was last put on a lane: at enter, or at its last resume."""
    extra = phase._extra
    return phase._entered_ns if extra is None or extra.resumed_ns is None else extra.resumed_ns


def restore_context(lanes: LaneSet, phase: PhaseHandle) -> None:
    """Take the phase out of the caller's context, if that is the one it was put into; else count that it was not."""
    token, phase._context_token = phase._context_token, None
    if token is None:
        return
    try:
        phase._lane.reset(token)
    except ValueError:
        _leave_foreign_context(lanes, phase, token)
    except RuntimeError:
        # An exit that a signal handler interrupted right after it had reset the variable.
        return


def _leave_foreign_context(lanes: LaneSet, phase: PhaseHandle, token: Token[Any]) -> None:
    """Count that a phase leaves in another context than it came in; greenlets and cells have contexts of their own."""
    lane = phase._lane
    if not lane.runs_cells:  # Else another cell entered it, whose context cannot be reached.
        caller = lanes.lane_of_caller()
        if caller is lane or not lane.is_owned_by(caller):
            lanes.counts.add(Misuse.FOREIGN_CONTEXT)
            return
        owner = _tasks.first_greenlet() if lane.task_ref is None else lane.task_ref()
        _tasks.call_in_greenlet(owner, lane.reset, token)
    carrier = lanes.carrier
    if carrier.current_phase() is phase:
        # Known here from the context that was given: cells, and gevent's greenlets, may have copies.
        carrier.variable.set(carrier.value_before(phase))


def forget_in_context(lanes: LaneSet, phase: PhaseHandle) -> None:
    """Take a phase that others ended out of the caller's context, unless that has moved on since."""
    carrier = lanes.carrier
    current = carrier.current_phase()
    if current is phase:
        restore_context(lanes, phase)
        return
    # Its token would bring back what was current at its enter, and that may have ended as well.
    phase._context_token = None
    if current is not None and current._status in FINAL and current.is_within(phase):
        # One inside it that has ended, too, and whose own exit was interrupted.
        carrier.variable.set(carrier.value_before(phase))


def forget_ended(lanes: LaneSet, lane: Lane) -> None:
    """Take phases of `lane`, which is empty, out of the caller's context."""
    carrier = lanes.carrier
    phase = carrier.current_phase()
    while phase is not None and phase._lane is lane:
        carrier.variable.set(carrier.value_before(phase))
        phase = carrier.current_phase()


def _receivers(lanes: LaneSet, phase: PhaseHandle, status: PhaseStatus) -> tuple[Iterator[Publish], int]:
    """Return who is told that the phase has ended, and how many exits the sinks are thereby offered.

    Asked before the phase ends, so that where a signal handler raises after that, it is known who has not been told.
    """
    extra = phase._extra
    if extra is not None and extra.is_quiet and status is PhaseStatus.SUCCEEDED:
        return iter((functools.partial(_publish_quietly, lanes),)), 0
    queues = lanes.exit_queues
    return iter(queues), 1 if queues else 0


def _publish_quietly(lanes: LaneSet, phase: PhaseHandle) -> None:
    """Hand over a success that a filter keeps from the sinks."""
    lanes.counts.add("filtered")
    for append in lanes.quiet_queues:
        append(phase)


def inside_of(lane: Lane, phase: PhaseHandle) -> list[PhaseHandle] | None:
    """Return the phases open inside `phase`, outermost first; None if `phase` is not on the lane."""
    inside = []
    node = lane.top
    while node is not phase:
        if not isinstance(node, PhaseHandle):
            return None
        inside.append(node)
        node = node._below
    inside.reverse()
    return inside


def _abandon(lanes: LaneSet, lane: Lane, phase: PhaseHandle, why: str) -> None:
    """End the phase on top of `lane` as ABANDONED, from any thread, unless another one ended it first."""
    started_ns = segment_start_ns(phase)
    extra = phase._extra_or_new()
    queues, offered = _receivers(lanes, phase, _ON_ABANDON)
    while lane.top is phase:
        spent_ns = phase._children_ns
        ended_ns = lanes.now()
        if lane.top is phase and phase._children_ns is spent_ns:  # No call from here to the last store: see `_phase`.
            below = phase._below
            lane.top = below
            below._children_ns += ended_ns - started_ns
            phase._ended_ns = ended_ns
            phase._status = _ON_ABANDON
            extra.status_text = why
            lane.ended_count += offered
            try:
                if lanes.journal is not None:
                    lanes.journal.end(phase)
                for append in queues:
                    append(phase)
            except BaseException:  # A signal handler raised: who is left is told all the same.
                for append in queues:
                    append(phase)
                raise
            return


def tell_rest(lanes: LaneSet, phase: PhaseHandle, told: int) -> None:
    """Tell of a phase's end the queues that come after the first `told`, since a signal handler raised before them."""
    queues = lanes.exit_queues
    if queues and not told:
        phase._lane.ended_count += 1
    for append in queues[told:]:
        append(phase)


def abandon_lane(lanes: LaneSet, lane: Lane, why: str) -> None:
    """End all that is open on `lane`, innermost first."""
    while isinstance(top := lane.top, PhaseHandle):
        _abandon(lanes, lane, top, why)


def is_parked(phase: PhaseHandle) -> bool:
    """Whether the phase is paused and on no lane; not so the old handle of one that was acquired, which says the same.

    `LaneSet.parked` only helps to find these: a signal handler that raises may leave others in it.
    """
    extra = phase._extra
    return phase._status is _PAUSED and extra is not None and not (extra.released and extra.token is None)


def abandon_parked(lanes: LaneSet, phase: PhaseHandle, why: str) -> None:
    """End a paused or released phase as ABANDONED, unless it was resumed or ended meanwhile."""
    if is_parked(phase):
        _close_parked(lanes, phase, (_ON_ABANDON, None), why)
    lanes.parked.discard(phase)


def _end_parked(lanes: LaneSet, phase: PhaseHandle, error: BaseException | None) -> None:
    _close_parked(lanes, phase, settle(phase, error), None)
    lanes.parked.discard(phase)


def _close_parked(lanes: LaneSet, phase: PhaseHandle, outcome: Outcome, why: str | None) -> None:
    status, error = outcome
    extra = phase._extra_or_new()
    ended_ns = lanes.now()
    since_ns = extra.paused_since_ns
    paused_ns = extra.paused_ns + ended_ns - (ended_ns if since_ns is None else since_ns)
    text = extra.status_text if why is None else why
    queues, offered = _receivers(lanes, phase, status)
    if phase._status is _PAUSED and phase._extra is extra:  # No call from here to the last store: see `_phase`.
        extra.paused_ns = paused_ns
        extra.paused_since_ns = None
        extra.status_text = text
        extra.error = error
        phase._ended_ns = ended_ns
        phase._status = status
        lanes.retired_counts[1] += offered  # Its lane's thread may have ended, and what that had counted been added up.
        try:
            if lanes.journal is not None:
                lanes.journal.end(phase)
            for append in queues:
                append(phase)
        except BaseException:  # A signal handler raised: who is left is told all the same.
            for append in queues:
                append(phase)
            raise


def _end_out_of_order(lanes: LaneSet, lane: Lane, phase: PhaseHandle, error: BaseException | None) -> None:
    """End a phase from a foreign context, wherever it stands on its lane; touches no context.

    What is still open above it moves down one: the time that the nearest one had spent on top of `phase` stays
    `phase`'s, and only the rest will be its new neighbour's, so that the lane's sum stays exact.
    """
    phase._context_token = None
    if phase._status is _PAUSED:
        _end_parked(lanes, phase, error)
        return
    spent_ns = phase._children_ns
    ended_ns = lanes.now()
    outcome = status, told = settle(phase, error)
    inside = inside_of(lane, phase)
    if inside is None:
        return
    if not inside:
        _end_on_top(lanes, lane, phase, spent_ns=spent_ns, ended_ns=ended_ns, outcome=outcome)
        return
    own = phase._extra_or_new()
    above = inside[0]
    extra = above._extra_or_new()
    origin = above.parent  # It keeps its parent, as it keeps its path.
    started_ns = segment_start_ns(phase)
    shared_ns = ended_ns - segment_start_ns(above)
    queues, offered = _receivers(lanes, phase, status)
    # No call from here to the last store: see `_phase`. A reset that takes phases off the lane ends them all.
    if phase._status is _ACTIVE and above._status is _ACTIVE and above._below is phase:
        below = phase._below
        above._below = below
        extra.origin = origin
        extra.is_rooted = True
        phase._children_ns += shared_ns
        # `above` will add its whole segment to `below` when it ends; this part of it is counted with `phase`.
        below._children_ns += ended_ns - started_ns - shared_ns
        phase._ended_ns = ended_ns
        phase._status = status
        own.error = told
        lane.ended_count += offered
        try:
            if lanes.journal is not None:
                lanes.journal.end(phase)
            for append in queues:
                append(phase)
        except BaseException:  # A signal handler raised: who is left is told all the same.
            for append in queues:
                append(phase)
            raise


def take_back(lanes: LaneSet, lane: Lane, phase: PhaseHandle) -> None:
    """Undo an enter into which a signal handler raised: as if it had never been."""
    if lanes.carrier.current_phase() is phase:
        # Set, but the token was lost with the interrupted call: set back what the phase below had put there.
        lanes.carrier.variable.set(lanes.carrier.value_before(phase))
    if lane.top is phase:
        lane.top = phase._below
    if lanes.journal is not None:
        lanes.journal.take_back(phase)
