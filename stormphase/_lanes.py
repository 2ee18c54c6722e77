"""Lanes: one stack of phases per thread and per task, for one rank of one session in this process.

`LaneSet.enter_phase` is the first half of the hot path (the second is `PhaseHandle.__exit__`). It takes no lock but at
the first sight of a name or a thread, and leaves every lane right wherever a signal handler raises in it.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections import deque
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from stormphase import _exits, _moves, _tasks
from stormphase._attributes import AttributeCounts, take
from stormphase._counts import Counts
from stormphase._errors import add_note
from stormphase._ids import new_base
from stormphase._model import PhaseStatus
from stormphase._noop import NOOP, NOOP_TOKEN
from stormphase._paths import UNNAMED
from stormphase._phase import PhaseHandle, PhaseToken
from stormphase.exceptions import Misuse, PhaseNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Token

    from stormphase._clock import ClockAnchor
    from stormphase._paths import PathNode, PathTable
    from stormphase.exceptions import PhaseProtocolError
    from stormphase.typing import Clock

    Publish = Callable[[Any], object]

NO_OWNER: Final = -1
_ACTIVE = PhaseStatus.ACTIVE
_getframe = sys._getframe
_modules = sys.modules


class ContextCarrier:
    """Carries the current phase through a context variable, so that tasks and copied contexts know where they began.

    The OTel bridge has another one, which puts phases into OTel's own context.
    """

    handle_type: type[PhaseHandle] = PhaseHandle
    wrap: Callable[[PhaseHandle], Any] | None = None

    def __init__(self) -> None:
        """Make a variable of our own: no other tracker's phases appear in it."""
        self.variable: ContextVar[Any] = ContextVar("stormphase_phase", default=None)

    def current_phase(self) -> PhaseHandle | None:
        """Return the phase that the caller's context carries, whichever lane it is on."""
        phase: PhaseHandle | None = self.variable.get()
        return phase

    def value_before(self, phase: PhaseHandle) -> Any:
        """Return what the variable held before `phase` was put into it."""
        return phase.parent


class Lane:
    """One stack. Its bottom is the lane itself, which thereby adds up the time of its outermost phases.

    Attributes:
        top: the innermost open phase, or the lane itself when none is open.
        owner_ident: the thread's ident where comparing it proves ownership; NO_OWNER for tasks and for closed lanes.
        is_inherited: whether this lane belongs to the process that this one was forked from.
    """

    __slots__ = (
        "__weakref__",
        "_children_ns",
        "_path",
        "ended_count",
        "entered_count",
        "first_seen_ns",
        "id_base",
        "is_closed",
        "is_inherited",
        "lanes",
        "now",
        "owner_ident",
        "reset",
        "task_name",
        "task_ref",
        "thread_id",
        "thread_name",
        "top",
    )

    def __init__(self, lanes: LaneSet, thread_id: int, thread_name: str, task: Any) -> None:
        """Make an empty lane of the calling thread, or of a task that runs in it."""
        self._children_ns = 0
        self._path: PathNode = lanes.paths.root
        self.ended_count = 0
        self.entered_count = 0
        self.id_base = lanes.id_base
        self.is_closed = False
        self.is_inherited = False
        self.lanes = lanes
        self.now: Callable[[], int] = lanes.now
        self.owner_ident = thread_id if task is None else NO_OWNER
        self.reset: Callable[[Any], None] = lanes.carrier.variable.reset
        self.task_name: str | None = None if task is None else _tasks.name_of(task)
        self.task_ref: weakref.ref[Any] | None = None
        self.thread_id = thread_id
        self.thread_name = thread_name
        self.top: PhaseHandle | Lane = self
        self.first_seen_ns: int = lanes.now()

    @property
    def label(self) -> str:
        """The lane as messages name it."""
        thread = f"thread {self.thread_name!r} ({self.thread_id})"
        return thread if self.task_name is None else f"task {self.task_name!r} in {thread}"

    def phases(self) -> list[PhaseHandle]:
        """Return the open phases, outermost first; a snapshot, from any thread."""
        found = []
        node = self.top
        while isinstance(node, PhaseHandle):
            found.append(node)
            node = node._below
        found.reverse()
        return found


class _ThreadLocal(threading.local):
    """What one thread knows of one lane set: its own lane, its tasks' lanes, and a guard that dies with it."""

    lane: Lane | None = None
    tasks: weakref.WeakKeyDictionary[Any, Lane] | None = None
    guard: _ThreadGuard | None = None


class _ThreadGuard:
    """Dies with its thread, before the system can give the thread's ident to another one, and retires the lane."""

    __slots__ = ("_gone", "_lane")

    def __init__(self, lane: Lane, gone: deque[Lane]) -> None:
        self._lane = lane
        self._gone = gone

    def __del__(self) -> None:
        self._lane.owner_ident = NO_OWNER
        self._gone.append(self._lane)


class LaneSet:
    """All lanes of one (session, rank) in this process, and all that their phases share.

    Thread-, task- and fork-safe. `exit_queues` are called with each phase that ends, `enter_queues` with a 1-tuple of
    each that is entered, `quiet_queues` with those that a filter keeps from the sinks.
    """

    __slots__ = (
        "__weakref__",
        "_current_phase",
        "_gone",
        "_handle_type",
        "_local",
        "_lock",
        "_muted",
        "_next_sequence",
        "_retired_counts",
        "_running_loop",
        "_set",
        "_wrap",
        "anchor",
        "attempt",
        "attribute_counts",
        "carrier",
        "clock",
        "counts",
        "enter_queues",
        "exit_queues",
        "id_base",
        "noop",
        "now",
        "on_first_sight",
        "on_misuse",
        "open_lanes",
        "parked",
        "paths",
        "quiet_queues",
        "rank",
        "session_id",
        "step",
    )

    def __init__(
        self,
        session_id: str,
        rank: int,
        *,
        clock: Clock,
        anchor: ClockAnchor,
        paths: PathTable,
        on_misuse: str = "raise",
        attempt: int = 0,
        carrier: ContextCarrier | None = None,
    ) -> None:
        """Start with no lane; the first phase of a thread makes one."""
        self.session_id = session_id
        self.rank = rank
        self.attempt = attempt
        self.clock = clock
        self.anchor = anchor
        self.paths = paths
        self.on_misuse = on_misuse
        self.carrier = ContextCarrier() if carrier is None else carrier
        self.counts = Counts()
        self.attribute_counts = AttributeCounts()
        self.id_base = new_base()
        self.step: int | None = None
        self.now = clock.monotonic_ns
        self.enter_queues: tuple[Publish, ...] = ()
        self.exit_queues: tuple[Publish, ...] = ()
        self.quiet_queues: tuple[Publish, ...] = ()
        self.on_first_sight: Callable[[], None] | None = None
        self.parked: set[PhaseHandle] = set()
        self.open_lanes: dict[int, Lane] = {}
        self._gone: deque[Lane] = deque()
        self._retired_counts = [0, 0]
        self._lock = threading.Lock()
        self._muted = threading.local()
        self._local = _ThreadLocal()
        self._running_loop = _tasks.running_loop_probe()
        self._next_sequence = itertools.count(1).__next__
        self.noop = NOOP
        self._bind_carrier()

    def _bind_carrier(self) -> None:
        self._handle_type = self.carrier.handle_type
        self._wrap = self.carrier.wrap
        self._set: Callable[[Any], Token[Any]] = self.carrier.variable.set
        self._current_phase = self.carrier.current_phase

    def enter_phase(  # noqa: C901, PLR0912 - the hot path is one function: each call more costs a tenth of it
        self, name: str, attributes: Any = None, *, sync: bool = False
    ) -> PhaseHandle:
        """Enter a phase on the caller's lane and return its handle; see `PhaseTracker.enter_phase`."""
        lane = self._local.lane
        if lane is None or self._running_loop() is not None or "trio" in _modules:
            lane = self.lane_of_caller()
            if lane is None:
                return NOOP
        below = lane.top
        parent_path = below._path
        origin = None
        if below is lane:
            origin = self._current_phase()
            if origin is not None:
                origin = self._origin(lane, origin)
                if origin is not None:
                    parent_path = origin._path
        try:
            path = parent_path.children.get(name)
        except TypeError:  # An unhashable name is told so by the slow way.
            path = None
        if path is None:
            path = self._path_at_first_sight(parent_path, name)
        if attributes is not None:
            attributes = take(attributes, self.attribute_counts)
        frame = _getframe(1)
        handle = self._handle_type()
        handle._lane = lane
        handle._below = below
        handle._path = path
        handle._attributes = attributes
        handle._step = self.step
        handle._code = frame.f_code
        handle._instruction = frame.f_lasti
        handle._sequence = self._next_sequence()
        handle._children_ns = 0
        handle._extra = None
        handle._status = _ACTIVE
        if sync or origin is not None:
            extra = handle._extra_or_new()
            extra.is_sync = sync
            extra.origin = origin
        handle._entered_ns = lane.now()
        if lane.top is not below:  # A reset or stop closed the lane since; the next try finds a new one.
            return self._enter_again(handle, name, attributes, sync=sync)
        lane.top = handle
        try:
            handle._context_token = self._set(handle if self._wrap is None else self._wrap(handle))
        except BaseException:
            _exits.take_back(self, lane, handle)
            raise
        if self.enter_queues:
            lane.entered_count += 1
            for append in self.enter_queues:
                append((handle,))
        return handle

    def _enter_again(self, stale: PhaseHandle, name: str, attributes: Any, *, sync: bool) -> PhaseHandle:
        handle = self.enter_phase(name, attributes, sync=sync)
        if handle is not NOOP:
            handle._code = stale._code
            handle._instruction = stale._instruction
        return handle

    def enter(self, name: str, attributes: Any = None, *, sync: bool = False) -> PhaseToken:
        """Enter a phase and return its token; see `PhaseTracker.enter`."""
        handle = self.enter_phase(name, attributes, sync=sync)
        if handle is NOOP:
            return NOOP_TOKEN
        frame = _getframe(1)
        handle._code = frame.f_code
        handle._instruction = frame.f_lasti
        return PhaseToken.of(handle)

    def exit(self, token: PhaseToken, *, error: BaseException | None = None) -> PhaseHandle | None:
        """End the phase that `token` proves and return its handle, or None; see `PhaseTracker.exit`."""
        if token is NOOP_TOKEN:
            return None
        handle = _moves.resolve(self, token, "exit")
        if handle is not None:
            self.leave(handle, error, is_unwinding=False)
        return handle

    def lane_of_caller(self) -> Lane | None:
        """Return the lane of the calling thread or task, making it at first sight; None on a sink's worker thread."""
        if getattr(self._muted, "is_muted", False):
            return None
        local = self._local
        lane = local.lane
        if lane is None:
            lane = self._lane_of_new_thread(local)
        task = _tasks.current_task()
        if task is None:
            return lane
        tasks = local.tasks
        if tasks is None:
            tasks = local.tasks = weakref.WeakKeyDictionary()
        task_lane = tasks.get(task)
        if task_lane is None:
            task_lane = tasks[task] = self._lane_of_new_task(lane, task)
        return task_lane

    def _lane_of_new_thread(self, local: _ThreadLocal) -> Lane:
        if self.on_first_sight is not None:
            self.on_first_sight()
        lane = Lane(self, get_ident(), threading.current_thread().name, None)
        local.guard = _ThreadGuard(lane, self._gone)
        local.lane = lane
        self._keep(lane)
        return lane

    def _lane_of_new_task(self, thread_lane: Lane, task: Any) -> Lane:
        lane = Lane(self, thread_lane.thread_id, thread_lane.thread_name, task)
        gone = self._gone
        lane.task_ref = weakref.ref(task, lambda _: gone.append(lane))
        self._keep(lane)
        return lane

    def _keep(self, lane: Lane) -> None:
        with self._lock:
            self.open_lanes[id(lane)] = lane
            self._retire_gone()

    def _retire_gone(self) -> None:
        """Forget the lanes of ended threads and tasks, but for those that still hold open phases; under the lock."""
        for _ in range(len(self._gone)):
            lane = self._gone.popleft()
            if lane.top is not lane:
                # Nobody can end these any more but stop or reset, which look here.
                continue
            if self.open_lanes.pop(id(lane), None) is not None:
                self._retired_counts[0] += lane.entered_count
                self._retired_counts[1] += lane.ended_count

    def boundary_counts(self) -> tuple[int, int]:
        """Return how many enters and exits were offered to the queues so far; exact once the lanes are quiet."""
        with self._lock:
            lanes = list(self.open_lanes.values())
            entered, ended = self._retired_counts
        return entered + sum(lane.entered_count for lane in lanes), ended + sum(lane.ended_count for lane in lanes)

    def lanes(self) -> list[Lane]:
        """Return the lanes that are known; a snapshot."""
        with self._lock:
            self._retire_gone()
            return list(self.open_lanes.values())

    def open_phases(self) -> Iterator[PhaseHandle]:
        """Yield a snapshot of all open phases, outermost first within each lane, paused ones last."""
        for lane in self.lanes():
            yield from lane.phases()
        yield from tuple(self.parked)

    def mute_this_thread(self) -> None:
        """Make every later phase of the calling thread a no-op: a sink that enters phases must not feed itself."""
        self._muted.is_muted = True

    def put_in_context(self, phase: PhaseHandle) -> None:
        """Make `phase` the current one of the caller's context."""
        phase._context_token = self._set(phase if self._wrap is None else self._wrap(phase))

    def misuse(self, error: PhaseProtocolError, pending: BaseException | None = None) -> None:
        """Count a misuse, and raise it unless the user's exception is in flight or the tracker only records.

        Raises:
            PhaseProtocolError: `error`, if nothing is in flight and the set was made with `on_misuse="raise"`.
        """
        self.counts.add(error.reason)
        if pending is None:
            pending = sys.exc_info()[1]
        if pending is not None:
            add_note(pending, f"stormphase: {error}")
        elif self.on_misuse == "raise":
            raise error

    def close(self, why: str) -> None:
        """End every open phase as ABANDONED, from any thread, and start anew with empty lanes."""
        with self._lock:
            self._local = _ThreadLocal()
            lanes = list(self.open_lanes.values())
            self.open_lanes.clear()
            self._gone.clear()
        for lane in lanes:
            lane.is_closed = True
            lane.owner_ident = NO_OWNER
            _exits.abandon_lane(self, lane, why)
        for phase in tuple(self.parked):
            _exits.abandon_parked(self, phase, why)
        with self._lock:
            for lane in lanes:
                self._retired_counts[0] += lane.entered_count
                self._retired_counts[1] += lane.ended_count

    def after_fork_in_child(self) -> None:
        """Start anew in a forked child: new ids, empty lanes, and the parent's phases fenced off."""
        self._lock = threading.Lock()
        self.paths.renew_lock()
        self.id_base = new_base()
        self._next_sequence = itertools.count(1).__next__
        self._local = _ThreadLocal()
        self._muted = threading.local()
        for lane in list(self.open_lanes.values()):
            lane.is_inherited = True
            lane.owner_ident = NO_OWNER
        self.open_lanes = {}
        self._gone = deque()
        self._retired_counts = [0, 0]
        for phase in self.parked:
            phase._lane.is_inherited = True
        self.parked = set()
        self.counts = Counts()
        self.attribute_counts = AttributeCounts()

    def _origin(self, lane: Lane, phase: PhaseHandle) -> PhaseHandle | None:
        """Return the phase that the lane's next outermost phase hangs under: one that another lane had open."""
        if phase._lane is lane:
            # Left behind in this context by an interrupted exit, or ended elsewhere: it is not open around us.
            return None
        return phase

    def _path_at_first_sight(self, parent: PathNode, name: Any) -> PathNode:
        try:
            return self.paths.child(parent, name)
        except PhaseNameError:
            if self.on_misuse == "raise":
                raise
            self.counts.add(Misuse.BAD_NAME)
            return self.paths.child(parent, UNNAMED)

    leave = _exits.leave
    add_event = _moves.add_event
    pause = _moves.pause
    resume = _moves.resume
    release = _moves.release
    acquire = _moves.acquire
