"""All lanes of one rank of one session in this process, and what their phases share.

How phases are entered: `_enter`. How they end: `PhaseHandle.__exit__` and `_exits`. What else can be done: `_moves`.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections import deque
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

from stormphase import _exits, _misuse, _moves, _native, _tasks
from stormphase._attributes import AttributeCounts, take
from stormphase._copying import CopiesToItself
from stormphase._counts import Counts
from stormphase._enter import enter_phase, is_timeout, no_metadata, take_or_count
from stormphase._ids import new_base
from stormphase._lane import Lane, ThreadGuard
from stormphase._noop import NOOP, NOOP_TOKEN
from stormphase._paths import UNNAMED
from stormphase._phase import PhaseHandle, PhaseToken
from stormphase._sites import is_helper_s, through
from stormphase.exceptions import Misuse, PhaseNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextvars import Token
    from pathlib import Path

    from stormphase._clock import ClockAnchor
    from stormphase._lane import PhaseWriter
    from stormphase._paths import PathNode, PathTable
    from stormphase._redaction import Redactor
    from stormphase.exceptions import PhaseProtocolError
    from stormphase.typing import Clock

    Publish = Callable[[Any], object]


_getframe = sys._getframe


class Journal(Protocol):
    """What the lanes of a process tell its journal, if it has one."""

    write_exit: Callable[..., None]

    @property
    def path(self) -> Path:
        """Where it stands."""
        ...

    def new_writer(self, lane: Lane) -> PhaseWriter:
        """Return what the thread of `lane`, which is new, writes with."""
        ...

    def retire(self, writer: Any) -> None:
        """Take over what the writer of an ended thread leaves."""
        ...

    def end(self, phase: PhaseHandle) -> None:
        """Write that a phase has ended; from any thread."""
        ...

    def renew(self, phase: PhaseHandle) -> None:
        """Write what has changed of an open phase."""
        ...

    def take_back(self, phase: PhaseHandle) -> None:
        """Undo an enter."""
        ...


class ContextCarrier:
    """Carries the current phase through a context variable, so that tasks and copied contexts know where they began.

    The OTel bridge has another one, which puts phases into OTel's own context.
    """

    handle_type: type[PhaseHandle] = PhaseHandle

    def __init__(self) -> None:
        """Make a variable of our own: no other tracker's phases appear in it."""
        self.variable: ContextVar[Any] = ContextVar("stormphase_phase", default=None)
        # Straight to C, with no frame of ours between; a carrier that needs more defines methods of these names.
        self.put: Callable[[PhaseHandle], Token[Any]] = self.variable.set
        self.current_phase: Callable[[], PhaseHandle | None] = self.variable.get

    def adopt(self, phase: PhaseHandle | None, trace: Mapping[str, str]) -> Token[Any]:
        """Make what stands for a phase of another process the current one of the caller's context; None for none.

        Args:
            phase: made of `handle_type`, on a lane that is inherited.
            trace: `traceparent` and `tracestate` of that phase's span, as far as there is one.
        """
        del trace
        return self.variable.set(phase)

    def join(self, phase: PhaseHandle) -> None:
        """Make a phase of another lane the current one of the caller's context, for good."""
        self.variable.set(phase)

    def value_before(self, phase: PhaseHandle) -> Any:
        """Return what the variable held before `phase` was put into it."""
        return phase.parent


class LaneSet(CopiesToItself):
    """All lanes of one (session, rank) in this process, and all that their phases share.

    Thread-, task- and fork-safe. `exit_queues` are called with each phase that ends, `enter_queues` with a 1-tuple of
    each that is entered, `quiet_queues` with those that a filter keeps from the sinks. `local` has what one thread
    knows, each from its first need on: `lane`, its own; `tasks`, its tasks' lanes; `guard`, which dies with the thread.
    """

    __slots__ = (
        "__weakref__",
        "_gone",
        "_lanes",
        "_lock",
        "_muted",
        "anchor",
        "attempt",
        "attribute_counts",
        "carrier",
        "clock",
        "counts",
        "current_phase",
        "early",
        "enter_queues",
        "exit_queues",
        "handle_type",
        "id_base",
        "journal",
        "lane_numbers",
        "local",
        "noop",
        "notice_count",
        "now",
        "on_capture",
        "on_first_sight",
        "on_misuse",
        "on_timed",
        "open_lanes",
        "parked",
        "paths",
        "plain_module_count",
        "put",
        "quiet_queues",
        "rank",
        "redactor",
        "retired_counts",
        "running_loop",
        "running_tasks",
        "sequence",
        "session_id",
        "step",
        "taken",
        "works_for_another",
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
        on_first_sight: Callable[[], bool] | None = None,
    ) -> None:
        """Start with no lane; the first phase of a thread makes one.

        Before that `on_first_sight` is called. Where it returns False, since not all that a lane is given at its making
        was there in time, none is made, and the caller is like a sink's thread: its phases are none.
        """
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
        self.journal: Journal | None = None
        self.early: PhaseWriter | None = None  # In the place of the journal's writers until a session is up.
        self.lane_numbers = itertools.count(1)
        self.step: int | None = None
        self.now = clock.monotonic_ns
        self.enter_queues: tuple[Publish, ...] = ()
        self.exit_queues: tuple[Publish, ...] = ()
        self.quiet_queues: tuple[Publish, ...] = ()
        self.on_capture: Callable[[bool | str], None] | None = None
        self.on_first_sight = on_first_sight
        self.on_timed: Callable[[], None] | None = None
        self.parked: set[PhaseHandle] = set()
        self.open_lanes: dict[int, Lane] = {}
        self._gone: deque[Lane] = deque()
        self.retired_counts = [0, 0]
        self.notice_count = 0
        self._lock = threading.RLock()  # A signal handler may enter phases, too.
        self._muted = threading.local()
        self.local = threading.local()  # Itself, since CPython is slower with classes derived from it.
        self.running_loop = _tasks.running_loop_probe()
        self.running_tasks = _tasks.running_tasks()
        self.plain_module_count = -1
        self.sequence = itertools.count(1)
        self.noop = NOOP
        # For `enter_phase`, which should not have to look farther.
        self._lanes = self
        self.current_phase = self.carrier.current_phase
        self.handle_type = self.carrier.handle_type
        self.put = self.carrier.put
        self.taken = take if on_misuse == "raise" else take_or_count
        self.redactor: Redactor | None = None  # A session's; a recorder by itself stores and sends nothing.
        self.works_for_another = False  # Whether it is of a process that was forked, or that is a worker.

    def enter_again(
        self, stale: PhaseHandle, name: str, attributes: Any, *, sync: bool, timeout_s: float | None
    ) -> PhaseHandle:
        """Enter once more, for the caller that `stale` remembers."""
        handle = self.enter_phase(name, attributes, sync=sync, timeout_s=timeout_s)
        handle._code = stale._code
        handle._instruction = stale._instruction
        return handle

    def enter(
        self,
        name: str,
        attributes: Any = None,
        sync: bool = False,
        timeout_s: float | None = None,
        metadata: None = None,
    ) -> PhaseToken:
        """Enter a phase and return its token; see `PhaseTracker.enter`."""
        if metadata is not None:
            raise no_metadata("enter")
        handle = self.enter_phase(name, attributes, sync, timeout_s)
        if handle is NOOP:
            return NOOP_TOKEN
        try:
            frame = _getframe(1)
        except ValueError:  # As in `enter_phase`.
            frame = _getframe()
        handle._code = frame.f_code
        handle._instruction = frame.f_lasti if type(handle._instruction) is int else through(frame)
        return PhaseToken.of(handle)

    def exit(self, token: PhaseToken, *, error: BaseException | None = None) -> PhaseHandle | None:
        """End the phase that `token` proves and return its handle, or None; see `PhaseTracker.exit`."""
        if token is NOOP_TOKEN:
            return None
        handle = _moves.resolve(self, token, "exit")
        if handle is not None:
            self.leave(handle, error, is_unwinding=False)
        return handle

    def timeout_ns_of(self, timeout_s: Any) -> int | None:
        """Return how long a phase may be open, and have somebody watch it.

        Raises:
            ValueError: if it is no number of seconds above 0; not with `on_misuse="record"`, which counts it.
        """
        if not is_timeout(timeout_s):
            if self.on_misuse == "raise":
                message = f"timeout_s must be a number of seconds above 0, not {timeout_s!r:.40}."
                raise ValueError(message)
            self.counts.add("bad_timeout")
            return None
        if self.on_timed is not None:
            self.on_timed()
        return int(timeout_s * 1e9)

    def lane_of_caller(self) -> Lane | None:
        """Return the lane of the calling thread or task, making it at first sight.

        None on a sink's worker thread, and where the session is not ready for a new thread's first phase.
        """
        if self.mutes_this_thread():
            return None
        local = self.local
        lane = self.lane_of_thread()
        if lane is None:
            if self.on_first_sight is not None and not self.on_first_sight():
                return None
            lane = self._lane_of_new_thread(local)
        task = _tasks.current_task()
        if task is None:
            return lane
        tasks: weakref.WeakKeyDictionary[Any, Lane] | None = getattr(local, "tasks", None)
        if tasks is None:
            tasks = local.tasks = weakref.WeakKeyDictionary()
        task_lane = tasks.get(task)
        if task_lane is None:
            task_lane = tasks[task] = self._lane_of_new_task(lane, task)
        return task_lane

    def may_be_in_trio_or_greenlet(self) -> bool:
        """Return whether the caller may run in a task of trio's or in a greenlet: one of the libraries is loaded.

        Modules come ever more seldom: while there are as many as when it was neither of the two, nobody looks again.
        """
        count = len(sys.modules)
        if _tasks.may_be_in_trio_or_greenlet():
            return True
        self.plain_module_count = count
        return False

    def _lane_of_new_thread(self, local: threading.local) -> Lane:
        lane = Lane(self, get_ident(), threading.current_thread().name, None)
        journal = self.journal
        if self.early is not None:
            lane.writer = self.early
        elif journal is not None:
            lane.writer = journal.new_writer(lane)
            lane.write_exit = journal.write_exit
        guard = ThreadGuard(lane, self._gone)
        self._keep(lane)
        first = self.lane_of_thread()
        if first is None:  # A signal handler may have been here since, and entered a phase.
            local.guard = guard
            local.lane = first = lane
        return first

    def _lane_of_new_task(self, thread_lane: Lane, task: Any) -> Lane:
        if _tasks.runs_cells(task):
            thread_lane.runs_cells = True
            return thread_lane
        lane = Lane(self, thread_lane.thread_id, thread_lane.thread_name, task)
        if lane.is_greenlet and self.current_phase() is None:
            self._join_parent(task.parent, thread_lane)
        lane.writer = thread_lane.writer
        lane.write_exit = thread_lane.write_exit
        gone = self._gone
        lane.task_ref = weakref.ref(task, lambda _: gone.append(lane))
        self._keep(lane)
        return lane

    def _join_parent(self, parent: Any, thread_lane: Lane) -> None:
        """Put a greenlet, whose context is a new one, under what its parent has open: it was made and is run there."""
        lane = thread_lane if parent.parent is None else self.local.tasks.get(parent)
        if lane is not None and isinstance(top := lane.top, PhaseHandle):
            self.carrier.join(top)

    def _keep(self, lane: Lane) -> None:
        with self._lock:
            self.open_lanes[id(lane)] = lane
            self._retire_gone()

    def _retire_gone(self) -> None:
        """Forget the lanes of ended threads and tasks, but for those that still hold open phases; under the lock."""
        gone = self._gone
        while gone:
            lane = gone.popleft()
            # What is open on it, nobody can end any more but stop or reset, which look here.
            if lane.top is lane:
                self._retire(lane)

    def _retire(self, lane: Lane) -> None:
        key = id(lane)
        if key in self.open_lanes:  # No call from here to the last store, so that no signal handler parts them.
            del self.open_lanes[key]
            self.retired_counts[0] += lane.entered_count
            self.retired_counts[1] += lane.ended_count
            if self.journal is not None and lane.writer is not None and lane.task_ref is None:
                self.journal.retire(lane.writer)

    def boundary_counts(self) -> tuple[int, int]:
        """Return how many enters and exits were offered to the queues so far; exact once the lanes are quiet."""
        with self._lock:
            lanes = list(self.open_lanes.values())
            entered, ended = self.retired_counts
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
        yield from filter(_exits.is_parked, tuple(self.parked))

    def mute_this_thread(self) -> None:
        """Make every later phase of the calling thread a no-op: a sink that enters phases must not feed itself."""
        self._muted.is_muted = True

    def mutes_this_thread(self) -> bool:
        """Whether the calling thread is a sink's worker."""
        return getattr(self._muted, "is_muted", False)

    def put_in_context(self, phase: PhaseHandle) -> None:
        """Make `phase` the current one of the caller's context."""
        phase._context_token = self.carrier.put(phase)

    def misuse(self, error: PhaseProtocolError, pending: BaseException | None = None) -> None:
        """Count a misuse, and raise it unless the user's exception is in flight or the tracker only records.

        Raises:
            PhaseProtocolError: `error`, if nothing is in flight and the set was made with `on_misuse="raise"`.
        """
        _misuse.tell(error, self.counts, pending, raises=self.on_misuse == "raise")

    def close(self, why: str) -> None:
        """End every open phase as ABANDONED, from any thread; the lanes stay, empty."""
        for lane in self.lanes():
            _exits.abandon_lane(self, lane, why)
        for phase in tuple(self.parked):
            _exits.abandon_parked(self, phase, why)
        with self._lock:
            self._retire_gone()
            for lane in tuple(self.open_lanes.values()):
                if lane.is_gone and lane.top is lane:
                    self._retire(lane)

    def after_fork_in_child(self) -> None:
        """Start anew in a forked child: new ids, empty lanes, and the parent's phases fenced off."""
        self._lock = threading.RLock()
        self.paths.renew_lock()
        self.journal = None  # The parent's; the session makes another one.
        self.works_for_another = True
        self.id_base = new_base()
        # Only the forking thread lives on here, and it is the one that runs this.
        self.local.lane = self.local.tasks = self.local.guard = None
        self._muted = threading.local()
        for lane in list(self.open_lanes.values()):
            lane.is_inherited = True
            lane.is_plain = False
        self.open_lanes = {}
        self._gone = deque()
        self.retired_counts = [0, 0]
        self.notice_count = 0
        for phase in self.parked:
            phase._lane.is_inherited = True
        self.parked = set()
        self.counts = Counts()
        self.attribute_counts = AttributeCounts()

    def path_at_first_sight(self, parent: PathNode, name: Any) -> PathNode:
        """Return the node of a name not seen before under `parent`."""
        helped = parent.helped
        if helped is not None:
            try:
                return helped[name]
            except (KeyError, TypeError):
                pass
        try:
            return self.paths.child(parent, name, is_helped=is_helper_s(name))
        except PhaseNameError:
            if self.on_misuse == "raise":
                raise
            self.counts.add(Misuse.BAD_NAME)
            return self.paths.child(parent, UNNAMED)

    def _running_lanes(self, action: str) -> LaneSet:
        """Return itself: lanes always run."""
        del action
        return self

    def lane_of_thread(self) -> Lane | None:
        """Return the calling thread's own lane, whatever task runs in it; None if it has entered nothing."""
        lane: Lane | None = getattr(self.local, "lane", None)
        return lane

    enter_phase = enter_phase
    leave = _exits.leave
    tell_rest = _exits.tell_rest
    retry = _moves.retry
    add_event = _moves.add_event
    pause = _moves.pause
    resume = _moves.resume
    release = _moves.release
    acquire = _moves.acquire


_native.quicken(LaneSet)
