"""The open phase as an object: node of its lane's stack, context manager and, with a bridge, OTel span, all in one.

`PhaseHandle.__exit__` and `_enter` are the hot path. Both rest on one property of CPython's GIL: between
a test and a store with no call between them, neither another thread nor a signal handler runs. So whoever finds a
phase on top of its lane and takes it off in the next statement is the only one who ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from stormphase._attributes import put
from stormphase._copying import CopiesToItself
from stormphase._ids import scope_id, scope_id_number
from stormphase._model import PhaseStatus
from stormphase._sites import file_named, is_told
from stormphase._status import TABLE

if TYPE_CHECKING:
    from contextvars import Token
    from types import CodeType, TracebackType

    from stormphase._lane import Lane
    from stormphase._model import PhaseError
    from stormphase._paths import PathNode
    from stormphase._record import PhaseRecord
    from stormphase._sites import Instruction

FINAL: Final = frozenset(status for status, rule in TABLE.rules.items() if rule.is_final)
ON_SUCCESS: Final = TABLE.checked(PhaseStatus.ACTIVE, PhaseStatus.SUCCEEDED)


class PhaseExtra:
    """What few phases have; made at first need, so that the others do not pay for it."""

    __slots__ = (
        "above_ids",
        "attempt",
        "capture",
        "error",
        "error_policy",
        "events",
        "is_quiet",
        "is_rooted",
        "is_sync",
        "late",
        "links",
        "origin",
        "paused_ns",
        "paused_since_ns",
        "released",
        "resumed_ns",
        "retry_of",
        "status_text",
        "stints",
        "timeout_ns",
        "token",
    )

    def __init__(self) -> None:
        """Start with nothing out of the ordinary."""
        self.above_ids: tuple[str, ...] = ()  # Beyond the parent, where that stands for one of another process.
        self.attempt = 0
        self.capture: bool | str | None = None  # Whether its output is captured; None for what holds around it.
        self.error: PhaseError | None = None
        self.error_policy: Any = None
        self.events: list[tuple[str, int, dict[str, Any]]] | None = None
        self.is_quiet = False
        self.is_rooted = False  # Whether `origin` is the parent even if it is None.
        self.is_sync = False
        self.late: dict[str, Any] | None = None
        self.links: list[Any] | None = None
        self.origin: PhaseHandle | None = None
        self.paused_ns = 0
        self.paused_since_ns: int | None = None
        self.released = False
        self.resumed_ns: int | None = None
        self.retry_of: PhaseHandle | PhaseRecord | None = None
        self.status_text: str | None = None
        # Its time, and that of its children, on each lane that it left; None stands for several.
        self.stints: dict[Lane | None, tuple[int, int]] | None = None
        self.timeout_ns: int | None = None
        self.token: PhaseToken | None = None


class PhaseHandle(CopiesToItself):
    """An open phase. Made by `enter_phase` and entered from then on; a `with` block only closes it.

    Only the thread and task that entered it (or acquired it) may end, pause or release it; attributes may be set from
    anywhere while it is open. A copy of it, also a deep one of a model that holds it, is itself. Not picklable: a phase
    belongs to its process.
    """

    __slots__ = (
        "_attributes",
        "_below",
        "_children_ns",
        "_code",
        "_context_token",
        "_ended_ns",
        "_entered_ns",
        "_extra",
        "_instruction",
        "_lane",
        "_path",
        "_sequence",
        "_slot",
        "_status",
        "_step",
    )

    _attributes: dict[str, Any] | None
    _below: PhaseHandle | Lane
    _children_ns: int
    _code: CodeType
    _context_token: Token[Any] | None
    _ended_ns: int
    _entered_ns: int
    _extra: PhaseExtra | None
    _instruction: Instruction
    _lane: Lane
    _path: PathNode
    _sequence: int
    _slot: int  # Where it stands in the journal; not set if there is none.
    _status: PhaseStatus
    _step: int | None

    def __enter__(self) -> Self:
        """Return the handle: the phase is already entered."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the phase; never swallows the block's exception, nor replaces it."""
        lane = self._lane
        try:
            # The thread is asked for as well: one context may be run in by several threads, one after the other.
            is_plain = exc is None and lane.top is self and self._extra is None and lane.local.lane is lane
        except AttributeError:  # This thread has no lane.
            is_plain = False
        if is_plain:
            now = lane.now  # Into a local first: CPython 3.11 is slow to call what a slot holds.
            spent_ns = self._children_ns
            ended_ns = now()
            reset = lane.reset
            try:
                reset(self._context_token)
            # Another context; or reset before by an exit that was interrupted, which may have let go of the token, too.
            except (ValueError, RuntimeError, TypeError):
                spent_ns = -1
            # A signal handler's phases may have come and gone since the clock was read: then it is read again.
            if lane.top is self and self._children_ns is spent_ns:  # No call from here to the last store: see above.
                below = self._below
                lane.top = below
                below._children_ns = below._children_ns + (ended_ns - self._entered_ns)
                self._ended_ns = ended_ns
                self._status = ON_SUCCESS
                self._context_token = None
                told = 0
                try:
                    write_exit = lane.write_exit
                    if write_exit is not None:
                        write_exit(self._slot, ended_ns, spent_ns, self._sequence)
                    queues = lane.lanes.exit_queues
                    if queues:
                        lane.ended_count += 1
                        for append in queues:
                            told += 1
                            append(self)
                except BaseException:
                    lane.lanes.tell_rest(self, told)
                    raise
                return
        lane.lanes.leave(self, exc, is_unwinding=True)

    def close(self, *, error: BaseException | None = None) -> None:
        """End the phase, as FAILED or CANCELLED if `error` is given.

        Raises:
            PhaseProtocolError: if the phase has ended, has phases open inside it, or belongs to another thread or task.
        """
        lane = self._lane
        lane.lanes.leave(self, error, is_unwinding=False)

    def set_attribute(self, key: str, value: Any) -> None:
        """Set one attribute; bounded and copied now, so later changes of `value` do not show. Ignored once ended."""
        if self.closed:
            self._lane.lanes.counts.add("attributes_after_end")
            return
        extra = self._extra
        if extra is None:
            extra = self._extra_or_new()
        late = extra.late
        if late is None:
            late = extra.late = {}
        lanes = self._lane.lanes
        put(late, key, value, lanes.attribute_counts, lanes.redactor)

    def set_attributes(self, attributes: Any) -> None:
        """Set several attributes, as `set_attribute` does.

        Raises:
            TypeError: if they are no mapping; not with `on_misuse="record"`, which counts them as unreadable.
        """
        lanes = self._lane.lanes
        taken = lanes.taken(attributes, lanes.attribute_counts, lanes.redactor)
        for key, value in (taken or {}).items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Note something that happened within the phase; `timestamp` in nanoseconds since the Unix epoch, else now.

        Raises:
            TypeError: if `attributes` are no mapping; not with `on_misuse="record"`, which counts them as unreadable.
        """
        self._lane.lanes.add_event(self, name, attributes, timestamp)

    def pause(self) -> None:
        """Stop the phase's clock and take it off its lane; by its owner, and only while nothing is open inside it.

        Raises:
            PhaseProtocolError: if it is not the owner's innermost open phase.
        """
        self._lane.lanes.pause(self, must_own=True)

    def resume(self) -> None:
        """Put a paused phase back on the lane of the thread and task that paused it.

        Raises:
            PhaseProtocolError: if it is not paused, or was paused by another thread or task: see `release`.
        """
        self._lane.lanes.resume(self, must_own=True)

    def release(self) -> PhaseToken:
        """Pause the phase and give up ownership; `acquire(token)` takes it over, in any thread or task.

        This handle and every token made before are fenced off from now on.
        """
        return self._lane.lanes.release(self)

    @property
    def scope_id(self) -> str:
        """The phase's identity, 16 hex digits; also its OTel span id."""
        return scope_id(self._lane.id_base, self._sequence)

    @property
    def scope_id_number(self) -> int:
        """The scope id as a 64-bit integer, never zero."""
        return scope_id_number(self._lane.id_base, self._sequence)

    @property
    def name(self) -> str:
        """The phase's own name, normalised."""
        return self._path.name

    @property
    def path(self) -> tuple[str, ...]:
        """The names from the outermost phase to this one."""
        return self._path.names

    @property
    def phase_path(self) -> str:
        """The path as people read it: `train / step / forward`."""
        return self._path.text

    @property
    def status(self) -> PhaseStatus:
        """How the phase stands."""
        return self._status

    @property
    def closed(self) -> bool:
        """Whether the phase has ended, or was released and so is no longer this handle's to end."""
        extra = self._extra
        return self._status in FINAL or (extra is not None and extra.released)

    @property
    def parent(self) -> PhaseHandle | None:
        """The phase this one hangs under, on this lane or on the one where its task was created; None at the root."""
        extra = self._extra
        if extra is not None and (extra.origin is not None or extra.is_rooted):
            return extra.origin
        below = self._below
        return below if isinstance(below, PhaseHandle) else None

    @property
    def location(self) -> str:
        """Where the phase was entered, as `file.py:line`; in a small helper, `file.py:line, called at file.py:line`."""
        instruction = self._instruction
        if isinstance(instruction, tuple):
            instruction, code, at = instruction
            if is_told(self._code, code):
                return f"{place_of(self._code, instruction)}, called at {place_of(code, at)}"
        return place_of(self._code, instruction)

    @property
    def label(self) -> str:
        """The phase as messages name it: `'forward' (train.py:41)`."""
        return f"{self.name!r} ({self.location})"

    def is_within(self, ancestor: PhaseHandle) -> bool:
        """Whether `ancestor` is this phase or one it hangs under."""
        depth = ancestor._path.depth
        phase: PhaseHandle | None = self
        while phase is not None and phase._path.depth >= depth:
            # By number and not by handle: that changes when another thread or task acquires the phase.
            if phase._sequence == ancestor._sequence and phase._lane.lanes is ancestor._lane.lanes:
                return True
            phase = phase.parent
        return False

    def clone(self) -> PhaseHandle:
        """Return a handle of the same phase, for its next owner."""
        twin = type(self)()
        for kind in type(self).__mro__:
            for slot in kind.__dict__.get("__slots__", ()):
                if hasattr(self, slot):
                    setattr(twin, slot, getattr(self, slot))
        return twin

    def _extra_or_new(self) -> PhaseExtra:
        if self._extra is None:
            self._extra = PhaseExtra()
        return self._extra

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: send the scope id, or hand over the token within this process."""
        message = "A phase belongs to its process and cannot be pickled. Send its scope_id instead."
        raise TypeError(message)

    def __repr__(self) -> str:
        """Show path, status and where it was entered."""
        return f"<{type(self).__name__} {self.phase_path} {self._status} {self.location}>"


class _TokenFields:
    """What a token holds, before it can no longer be changed."""

    __slots__ = ("_handle", "name", "rank", "scope_id", "session_id", "thread_id")

    scope_id: str
    session_id: str
    rank: int
    thread_id: int
    name: str
    _handle: PhaseHandle | None


class PhaseToken(_TokenFields):
    """Opaque proof of an open phase, for enter and exit in different places of one process.

    A token is its own object: a copy, a pickled twin or one built by hand has the same fields and proves nothing.
    """

    __slots__ = ()

    def __init__(self, *, scope_id: str, session_id: str, rank: int, thread_id: int, name: str) -> None:
        """Make a token that proves nothing; real ones come from `enter` and `release`."""
        write = object.__setattr__
        write(self, "scope_id", scope_id)
        write(self, "session_id", session_id)
        write(self, "rank", rank)
        write(self, "thread_id", thread_id)
        write(self, "name", name)
        write(self, "_handle", None)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        """Refuse: a token never changes."""
        message = f"A PhaseToken cannot be changed: {name!r} stays what enter or release made it."
        raise AttributeError(message)

    @classmethod
    def of(cls, handle: PhaseHandle) -> PhaseToken:
        """Make the one token that proves `handle`; any earlier token of it is fenced off."""
        lane = handle._lane
        lanes = lane.lanes
        # Filled first and sealed after: six calls that go round `__setattr__` would cost more than all the rest.
        token: Any = _TokenFields()
        token.scope_id = handle.scope_id
        token.session_id = lanes.session_id
        token.rank = lanes.rank
        token.thread_id = lane.thread_id
        token.name = handle._path.name
        token._handle = handle
        token.__class__ = cls
        sealed: PhaseToken = token
        handle._extra_or_new().token = sealed
        return sealed

    @classmethod
    def of_nothing(cls, handle: PhaseHandle) -> PhaseToken:
        """Make a token that looks like `handle`'s and proves nothing."""
        lane = handle._lane
        return _twin(handle.scope_id, lane.lanes.session_id, lane.lanes.rank, lane.thread_id, handle.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the fields only, never the proof."""
        return _twin, (self.scope_id, self.session_id, self.rank, self.thread_id, self.name)

    def __repr__(self) -> str:
        """Show what it claims to be."""
        return f"<PhaseToken {self.name!r} {self.scope_id} session={self.session_id!r} rank={self.rank}>"


def _twin(scope_id: str, session_id: str, rank: int, thread_id: int, name: str) -> PhaseToken:
    return PhaseToken(scope_id=scope_id, session_id=session_id, rank=rank, thread_id=thread_id, name=name)


def place_of(code: CodeType, instruction: int) -> str:
    """Return the file, without its folder, and the line of an instruction: `file.py:41`, or in a cell `In[3]:1`."""
    return f"{file_named(code.co_filename)}:{line_of(code, instruction)}"


def line_of(code: CodeType, instruction: int) -> int:
    """Return the source line of the instruction at a byte offset, as `frame.f_lasti` counts it."""
    line = code.co_firstlineno
    for start, end, candidate in code.co_lines():
        if start <= instruction < end and candidate is not None:
            line = candidate
    return line
