"""Entering a phase: the first half of the hot path; the second is `PhaseHandle.__exit__`.

A closure and not a method, since what it needs is then one bytecode away. It takes no lock but at the first sight of a
name or a thread, and wherever a signal handler raises in it, lane and context are as they were.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from stormphase import _exits
from stormphase._attributes import take
from stormphase._model import PhaseStatus
from stormphase._noop import NOOP

if TYPE_CHECKING:
    from stormphase._attribute_counts import AttributeCounts
    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle

SLOT_BYTES: Final = 72  # See docs/journal-format.md.
NO_STEP: Final = -(2**63)

_getframe = sys._getframe
_modules = sys.modules


class QuietName(str):
    """The name of a phase of whose enter the sinks are not told, since a filter keeps its success from them.

    It rides on the name, so that no other phase pays for one more argument.
    """

    __slots__ = ()


class EnterPhase(Protocol):
    """How `enter_phase` is called."""

    def __call__(
        self, name: str, attributes: Any = None, sync: bool = False, timeout_s: float | None = None
    ) -> PhaseHandle:
        """Enter a phase on the caller's lane and return its handle; see `PhaseTracker.enter_phase`."""
        ...


def _take_or_count(attributes: Any, counts: AttributeCounts) -> dict[str, Any] | None:
    """Return what `take` does; attributes that are no mapping are left out, and counted as one unreadable."""
    try:
        return take(attributes, counts)
    except TypeError:
        counts.count_failed()
        return None


def make_enter_phase(lanes: LaneSet) -> EnterPhase:  # noqa: C901, PLR0915 - one function: each call more costs a tenth
    """Return the function that enters phases on `lanes`."""
    local = lanes.local
    running_loop = lanes.running_loop
    carrier = lanes.carrier
    handle_type = carrier.handle_type
    current_phase = carrier.current_phase
    put = carrier.put
    now = lanes.now
    sequence = lanes.sequence
    taken = take if lanes.on_misuse == "raise" else _take_or_count
    active = PhaseStatus.ACTIVE

    # `sync` may be given by position, since CPython has a faster way to call functions without keyword-only parameters.
    def enter_phase(  # noqa: C901, PLR0912, PLR0915
        name: str,
        attributes: Any = None,
        sync: bool = False,
        timeout_s: float | None = None,
    ) -> PhaseHandle:
        lane = local.lane
        has_more = False
        if lane is None or running_loop() is not None or "trio" in _modules:
            lane = lanes.lane_of_caller()
            if lane is None:
                return NOOP
            # The journal says of a task's outermost phase which task that is.
            has_more = lane.top is lane and lane.task_name is not None
        below = lane.top
        path = below._path
        is_special = sync
        timeout_ns = None
        if timeout_s is not None:
            timeout_ns = lanes.timeout_ns_of(timeout_s)
            is_special = True
        if below is lane and (origin := current_phase()) is not None:
            if origin._lane is lane:
                # Ended by a reset, and nobody was here to take it out of this context.
                _exits.forget_ended(lanes, lane)
                origin = current_phase()
            if origin is not None:
                # The lane's outermost phase, in a context that another lane's phase was carried into.
                path = origin._path
                is_special = True
        try:
            path = path.children[name]
        except (KeyError, TypeError):
            path = lanes.path_at_first_sight(path, name)
        if attributes is not None:
            attributes = taken(attributes, lanes.attribute_counts)
            has_more = True
        frame = _getframe(1)
        handle = handle_type()
        handle._lane = lane
        handle._below = below
        handle._path = path
        handle._attributes = attributes
        handle._step = step = lanes.step
        handle._code = frame.f_code
        handle._instruction = frame.f_lasti
        handle._sequence = number = next(sequence)
        handle._children_ns = 0
        handle._extra = None
        handle._status = active
        if is_special:
            extra = handle._extra_or_new()
            extra.is_sync = sync
            extra.timeout_ns = timeout_ns
            extra.origin = None if below is not lane else current_phase()
        spent_ns = below._children_ns
        handle._entered_ns = entered_ns = now()
        # No jump between this test and the store, since CPython 3.10 runs signal handlers there; and none of these, nor
        # a reset, may have used the lane since the clock was read.
        if lane.top is below and below._children_ns is spent_ns:
            lane.top = handle
        else:
            return lanes.enter_again(handle, name, attributes, sync=sync, timeout_s=timeout_s)
        try:
            handle._context_token = put(handle)
            if (writer := lane.writer) is not None:
                if not (has_more or is_special or writer.traces_phases) and path.number:
                    step_word = NO_STEP if step is None else step
                    # No call, and no jump that is taken, before the store, so that a signal handler's phases get other
                    # slots, and this one's segment is not folded meanwhile.
                    slot = writer.slot
                    last_slot = writer.last_slot
                    writer.slot = slot + SLOT_BYTES
                    if slot <= last_slot:
                        handle._slot = slot
                        writer.write_enter(
                            slot, entered_ns, below._sequence, step_word, path.number, lane.number, 0, 0, number
                        )
                    else:
                        writer.enter(handle)
                else:
                    writer.enter(handle)
        except BaseException:
            _exits.take_back(lanes, lane, handle)
            raise
        if lanes.enter_queues and type(name) is not QuietName:
            lane.entered_count += 1
            for append in lanes.enter_queues:
                append((handle,))
        return handle

    return enter_phase
