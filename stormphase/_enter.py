"""Entering a phase: the first half of the hot path; the second is `PhaseHandle.__exit__`.

It takes no lock but at the first sight of a name or a thread, and wherever a signal handler raises in it, lane and
context are as they were.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from stormphase import _exits
from stormphase._attributes import take
from stormphase._model import PhaseStatus
from stormphase._noop import NOOP
from stormphase._phase import PhaseExtra
from stormphase._sites import frame_of_helper

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._attribute_counts import AttributeCounts
    from stormphase._lane import Lane
    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase._redaction import Redactor

METADATA: Final = "metadata"
MAX_TIMEOUT_S: Final = 1e9
SLOT_BYTES: Final = 72  # See docs/journal-format.md.
NO_STEP: Final = -(2**63)

_ACTIVE: Final = PhaseStatus.ACTIVE
_getframe = sys._getframe
_modules = sys.modules


class QuietName(str):
    """The name of a phase of whose enter the sinks are not told, since a filter keeps its success from them.

    It rides on the name, so that no other phase pays for one more argument.
    """

    __slots__ = ()


class Entrance(Protocol):
    """Whose method `enter_phase` is: a tracker, or lanes themselves."""

    _lanes: LaneSet  # Missing while it does not run.

    def _running_lanes(self, action: str) -> LaneSet | None:
        """Return the lanes; None, or an error, if it does not run."""
        ...


def no_metadata(call: str) -> TypeError:
    """Return the error for `metadata=`, which a `PhaseRecorder` has and nothing else: `attributes` is what is meant."""
    return TypeError(
        f"{call}() takes no metadata: what is known of a phase are its attributes. Write attributes={{...}}."
    )


def is_timeout(timeout_s: Any) -> bool:
    """Return whether `timeout_s` is a number of seconds that a phase may be open: above 0, and not boundless."""
    is_number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
    return is_number and 0 < timeout_s < MAX_TIMEOUT_S


def take_or_count(attributes: Any, counts: AttributeCounts, redactor: Redactor | None = None) -> dict[str, Any] | None:
    """Return what `take` does; attributes that are no mapping are left out, and counted as one unreadable."""
    try:
        return take(attributes, counts, redactor)
    except TypeError:
        counts.count_failed()
        return None


# One function, since each call more costs a tenth. `sync` may be given by position, since CPython has a faster way to
# call functions without keyword-only parameters. What a slot holds is put into a local first where it is called, since
# CPython 3.11 is slow to call a slot.
def enter_phase(  # noqa: C901, D417, PLR0912, PLR0915, PLR0917
    self: Entrance,
    name: str,
    attributes: Mapping[str, Any] | None = None,
    sync: bool = False,
    timeout_s: float | None = None,
    metadata: None = None,
) -> PhaseHandle:
    """Enter a phase now and return its handle, which a `with` block closes.

    Args:
        name: one name, not a path; stripped, bounded to 256 characters, unprintable characters escaped.
        attributes: copied and bounded now.
        sync: whether ranks wait for each other in it, as in a collective.
        timeout_s: how many seconds it may be open; if it is for longer, the sinks and the log are told once, the
            journal gets every thread's stack, and the phase goes on.
        metadata: refused, with an error that says to write `attributes`.

    Raises:
        PhaseProtocolError: if the tracker does not run.
        PhaseNameError: if the name is blank or not a string.
        TypeError: if `attributes` is not a mapping, or `metadata` is given.
        ValueError: if `timeout_s` is not above 0.
    """
    lane: Lane | None
    try:
        lanes = self._lanes
        lane = lanes.local.lane
    except AttributeError:  # The tracker does not run, or it is the thread's first phase.
        lane = None
    if lane is None:
        running = self._running_lanes("enter")
        if running is None:
            return NOOP
        lanes = running
    has_more = False
    if (
        lane is None
        or (lanes.running_tasks and lanes.running_loop() is not None)
        or (len(_modules) != lanes.plain_module_count and lanes.may_be_in_trio_or_greenlet())
    ):
        lane = lanes.lane_of_caller()
        if lane is None:
            return NOOP
        # The journal says of a task's outermost phase which task that is.
        has_more = lane.top is lane and lane.task_name is not None
    extra = None
    if sync or timeout_s is not None or metadata is not None:
        if metadata is not None:
            raise no_metadata("enter_phase")
        extra = PhaseExtra()
        extra.is_sync = sync
        extra.timeout_ns = None if timeout_s is None else lanes.timeout_ns_of(timeout_s)
    below = lane.top
    path = below._path
    if below is lane:
        current_phase = lanes.current_phase
        origin = current_phase()
        if origin is not None:
            if origin._lane is lane:
                # Ended by a reset, and nobody was here to take it out of this context.
                _exits.forget_ended(lanes, lane)
                origin = current_phase()
            if origin is not None:
                # The lane's outermost phase, in a context that another lane's phase was carried into.
                path = origin._path
                if extra is None:
                    extra = PhaseExtra()
                extra.origin = origin
    frame: Any
    try:
        frame = _getframe(1)
    except ValueError:  # Nobody's: it stands at the bottom of a greenlet, or of a thread that was begun in C.
        frame = _getframe()
    try:
        path = path.children[name]
    except (KeyError, TypeError):
        path = lanes.path_at_first_sight(path, name)
        if path.is_helped:
            frame = frame_of_helper(1)
    if attributes is not None:
        attributes = lanes.taken(attributes, lanes.attribute_counts, lanes.redactor)
        has_more = True
    handle_type = lanes.handle_type
    handle = handle_type()
    handle._lane = lane
    handle._below = below
    handle._path = path
    handle._attributes = attributes
    handle._step = lanes.step
    handle._code = frame.f_code
    handle._instruction = frame.f_lasti
    handle._sequence = next(lanes.sequence)
    handle._children_ns = 0
    handle._extra = extra
    handle._status = _ACTIVE
    now = lane.now
    put = lanes.put
    spent_ns = below._children_ns
    handle._entered_ns = now()
    # No jump between this test and the store, since CPython 3.10 runs signal handlers there; and none of these, nor a
    # reset, may have used the lane since the clock was read.
    if lane.top is below and below._children_ns is spent_ns:
        lane.top = handle
    else:
        return lanes.enter_again(handle, name, attributes, sync=sync, timeout_s=timeout_s)
    try:
        handle._context_token = put(handle)
        writer = lane.writer
        if writer is not None:
            if not (has_more or extra is not None or writer.traces_phases) and path.number:
                write_enter = writer.write_enter
                step = handle._step
                step_word = NO_STEP if step is None else step
                entered_ns = handle._entered_ns
                number = handle._sequence
                # No call, and no jump that is taken, before the store, so that a signal handler's phases get other
                # slots, and this one's segment is not folded meanwhile.
                slot = writer.slot
                last_slot = writer.last_slot
                writer.slot = slot + SLOT_BYTES
                if slot <= last_slot:
                    handle._slot = slot
                    write_enter(slot, entered_ns, below._sequence, step_word, path.number, lane.number, 0, 0, number)
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
