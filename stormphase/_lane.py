"""One lane: the stack of phases of one thread or one task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from stormphase import _tasks
from stormphase._phase import PhaseHandle

if TYPE_CHECKING:
    import weakref
    from collections import deque
    from collections.abc import Callable

    from stormphase._lanes import LaneSet
    from stormphase._paths import PathNode


class PhaseWriter(Protocol):
    """What one thread writes into the journal with; used by that thread only.

    Attributes:
        slot: where it writes next.
        last_slot: where it may write at most; if it is less, `enter` has to be called.
        traces_phases: whether some phases begin a trace of their own, so that `enter` has to be called for all.
        write_enter: takes the slot and the eight numbers of a plain enter.
    """

    slot: int
    last_slot: int
    traces_phases: bool
    write_enter: Callable[..., None]

    def enter(self, phase: PhaseHandle) -> None:
        """Write a phase that has just been entered, whatever there is to say of it."""
        ...


class Lane:
    """One stack. Its bottom is the lane itself, which thereby adds up the time of its outermost phases.

    Attributes:
        top: the innermost open phase, or the lane itself when none is open.
        is_plain: whether being in the same context is proof enough of being its owner: a living thread's own lane.
        is_greenlet: whether it is a greenlet's: see `is_owned_by`.
        is_inherited: whether this lane belongs to the process that this one was forked from.
        local: what each thread knows: see `LaneSet`.
        number: tells this lane from all others of the process.
        writer: writes what this lane's thread enters into the journal, if there is one.
        runs_cells: whether a notebook's cells run on it, which may end each other's phases in contexts of their own.
        write_exit: writes the plain end of a phase there: its slot's second half, and the three numbers that go in.
    """

    __slots__ = (
        "__weakref__",
        "_children_ns",
        "_path",
        "_sequence",
        "ended_count",
        "entered_count",
        "first_seen_ns",
        "id_base",
        "is_greenlet",
        "is_inherited",
        "is_plain",
        "lanes",
        "local",
        "now",
        "number",
        "reset",
        "runs_cells",
        "task_name",
        "task_ref",
        "thread_id",
        "thread_name",
        "top",
        "write_exit",
        "writer",
    )

    def __init__(self, lanes: LaneSet, thread_id: int, thread_name: str, task: Any) -> None:
        """Make an empty lane of the calling thread, or of a task that runs in it."""
        self._children_ns = 0
        self._path: PathNode = lanes.paths.root
        self._sequence = 0
        self.ended_count = 0
        self.entered_count = 0
        self.id_base = lanes.id_base
        self.is_greenlet = task is not None and _tasks.is_greenlet(task)
        self.is_inherited = False
        self.is_plain = task is None
        self.lanes = lanes
        self.local = lanes.local
        self.now: Callable[[], int] = lanes.now
        self.number = next(lanes.lane_numbers) & 0xFFFFFFFF
        self.reset: Callable[[Any], None] = lanes.carrier.variable.reset
        self.runs_cells = False
        self.task_name: str | None = None if task is None else _told(_tasks.name_of(task), lanes)
        self.task_ref: weakref.ref[Any] | None = None
        self.thread_id = thread_id
        # A task's lane is given that of its thread's.
        self.thread_name = _told(thread_name, lanes) if task is None else thread_name
        self.top: PhaseHandle | Lane = self
        self.write_exit: Callable[..., None] | None = None
        self.writer: PhaseWriter | None = None
        self.first_seen_ns: int = lanes.now()

    @property
    def label(self) -> str:
        """The lane as messages name it."""
        thread = f"thread {self.thread_name!r} ({self.thread_id})"
        return thread if self.task_name is None else f"task {self.task_name!r} in {thread}"

    @property
    def is_gone(self) -> bool:
        """Whether the thread or task has ended."""
        return not self.is_plain if self.task_ref is None else self.task_ref() is None

    def is_owned_by(self, caller: Lane | None) -> bool:
        """Whether who has the lane `caller` may end and move what is open on this one: it is the same.

        Or both are greenlets' of one thread, or that thread's own: programs with greenlets begin something in one and
        end it in another, and no two of them run at once.
        """
        if caller is self or caller is None:
            return caller is self
        are_greenlets = (self.is_plain or self.is_greenlet) and (caller.is_plain or caller.is_greenlet)
        return are_greenlets and self.thread_id == caller.thread_id and not self.is_inherited

    def phases(self) -> list[PhaseHandle]:
        """Return the open phases, outermost first; a snapshot, from any thread."""
        found = []
        node = self.top
        while isinstance(node, PhaseHandle):
            found.append(node)
            node = node._below
        found.reverse()
        return found


def _told(name: str, lanes: LaneSet) -> str:
    """Return a thread's or task's name without secrets, as it is told everywhere."""
    redactor = lanes.redactor
    return name if redactor is None or name in redactor.innocent else redactor.text(name)


class ThreadGuard:
    """Dies with its thread, before the system can give the thread's ident to another one, and retires the lane."""

    __slots__ = ("_gone", "_lane")

    def __init__(self, lane: Lane, gone: deque[Lane]) -> None:
        self._lane = lane
        self._gone = gone

    def __del__(self) -> None:
        if hasattr(self, "_lane"):  # Not if a signal handler raised into `__init__`.
            self._lane.is_plain = False
            self._gone.append(self._lane)
