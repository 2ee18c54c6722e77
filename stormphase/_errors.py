"""What a phase says of the exception that ended it: in full where it arose, by reference in every phase it passes.

An exception is never held, since it would hold its frames and with them whatever they hold (GPU tensors, say). It is
marked instead (`_marks`): the mark names the scope in which it arose and the phase it left last. A mark is trusted by
an ancestor of that phase, and also where the very object comes out again in another phase of the session, as it does of
a future. An object that is shared is a new failure each time that what raised it first (`Statement`) raises it again.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs

from stormphase._caught import is_running, traceback_of, was_caught_before
from stormphase._marks import attributes_of, carried_by, marks_for, marks_of, send_along, take_off
from stormphase._model import PhaseError
from stormphase._redaction import REACH

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase._redaction import Redactor

FULL: Final = "full"
REFERENCE: Final = "reference"
NOT_A_FAILURE: Final = "not_a_failure"

MAX_MESSAGE_CHARS: Final = 4_096
MAX_MESSAGE_BYTES: Final = 8_192  # in UTF-8; a journal has room for so much of a phase's ...
MAX_SESSION_MESSAGE_BYTES: Final = 3_000  # ... and for so much of what ended the session.
MAX_TRACEBACK_CHARS: Final = 16_384
MAX_TRACEBACK_FRAMES: Final = 64
_MAX_CAUSES: Final = 1_024
_MAX_TRACKERS: Final = 4  # beside the one whose phase is being left
_order: Final = itertools.count(1)  # Which failure came first; one C call, so no lock.
# Past the class, as in `_marks`: a hostile one may raise from any attribute.
_cause_of: Final = BaseException.__dict__["__cause__"].__get__


class Elsewhere(NamedTuple):
    """Where a mark comes from that was pickled.

    Attributes:
        above_ids: the last phase that the exception left, and all that it hung under, in whatever process.
        session: whose phases they are: session id, attempt and rank.
        process: what the ids of that process count from.
    """

    above_ids: tuple[str, ...]
    session: tuple[str, int, int]
    process: int


class Statement(NamedTuple):
    """What raised an exception first: a place in code, and the call of it that did.

    Attributes:
        frame_id: the address of the call's frame; as long as the traceback has that frame, nothing else is there.
        code: the code.
        instruction: where in it.
    """

    frame_id: int
    code: CodeType
    instruction: int

    @classmethod
    def that_raised(cls, exception: BaseException) -> Statement | None:
        """Return the statement at the inner end of the traceback; None without one."""
        entry = traceback_of(exception)
        while entry is not None and entry.tb_next is not None:
            entry = entry.tb_next
        return None if entry is None else cls(id(entry.tb_frame), entry.tb_frame.f_code, entry.tb_lasti)

    def raises_again(self, exception: BaseException) -> bool:
        """Whether the traceback shows that this statement, or its call, which still runs, has raised it once more."""
        entry = traceback_of(exception)
        while entry is not None:
            frame = entry.tb_frame
            is_same_call = id(frame) == self.frame_id
            is_same_place = frame.f_code is self.code and entry.tb_lasti == self.instruction
            is_first = is_same_call and entry.tb_next is None
            if not is_first and (is_same_place or (is_same_call and is_running(frame))):
                return True
            entry = entry.tb_next
        return False


class Mark:
    """Where an exception arose, when that was among other failures, and the last phase that it left.

    A phase belongs to its process, so in another one the ids of all that it hung under stand for it: whose id is among
    them is an ancestor. Within its own process a copy proves nothing, since the exception itself is at hand.

    Attributes:
        scope_id: where the exception arose.
        path: the path of that; empty where it is no phase.
        order: when it did: nanoseconds since the Unix epoch, and a count that parts what this process has at one time.
        raised_at: by what statement it was raised; None if that is not known.
        origin: the phase in which it arose; None for one of another process.
        last: the phase that it left last; None for one of another process.
        elsewhere: what is known of another process's, or None.
    """

    __slots__ = ("elsewhere", "last", "order", "origin", "path", "raised_at", "scope_id")

    def __init__(
        self,
        scope_id: str,
        *,
        path: tuple[str, ...] = (),
        order: tuple[int, int] = (0, 0),
        raised_at: Statement | None = None,
        origin: PhaseHandle | None = None,
        last: PhaseHandle | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.scope_id = scope_id
        self.path = path
        self.order = order
        self.raised_at = raised_at
        self.origin = origin
        self.last = last
        self.elsewhere = elsewhere

    @classmethod
    def arising_in(cls, phase: PhaseHandle, exception: BaseException) -> Mark:
        """Return the mark of an exception that arises in `phase`, now."""
        lanes = phase._lane.lanes
        return cls(
            phase.scope_id,
            path=phase.path,
            order=(lanes.anchor.to_wall_ns(lanes.now()), next(_order)),
            raised_at=Statement.that_raised(exception),
            origin=phase,
            last=phase,
        )

    @classmethod
    def from_tuple(cls, found: object) -> Mark | None:
        """Return what `to_tuple` has made in another process; None of anything else."""
        match found:
            case (
                str(scope_id),
                tuple(path),
                tuple(above_ids),
                (str(session_id), int(attempt), int(rank)),
                int(process),
                int(when_ns),
            ) if type(found) is tuple and all(type(each) is str for each in (*path, *above_ids)):
                elsewhere = Elsewhere(above_ids, (session_id, attempt, rank), process)
                return cls(scope_id, path=path, order=(when_ns, 0), elsewhere=elsewhere)
        return None

    def to_tuple(self) -> tuple[Any, ...]:
        """Return what another process needs of it, in builtin types; phases stay behind, and their ids go."""
        last = self.last
        assert last is not None  # noqa: S101 - what stands on an exception has left a phase here
        lanes = last._lane.lanes
        session = (lanes.session_id, lanes.attempt, lanes.rank)
        return self.scope_id, self.path, ids_up_from(last), session, lanes.id_base, self.order[0]

    def after(self, phase: PhaseHandle) -> Mark:
        """Return the mark of the same origin once the exception has left `phase`."""
        return Mark(
            self.scope_id,
            path=self.path,
            order=self.order,
            raised_at=self.raised_at,
            origin=self.origin,
            last=phase,
            elsewhere=self.elsewhere,
        )

    def is_trusted_by(self, phase: PhaseHandle, exception: BaseException, *, is_itself: bool) -> bool:
        """Whether what leaves `phase` arose where this mark of `exception` says.

        Args:
            phase: the phase that is being left.
            exception: whose mark it is.
            is_itself: whether that is what leaves the phase, and not its cause or a member of it. A cause that did not
                arise beneath the phase has come there from another lane, or is one that had been handled before.
        """
        last, origin, elsewhere = self.last, self.origin, self.elsewhere
        if last is not None and last.is_within(phase):  # First, as it is the next one up, whatever the depth.
            return True
        lanes = phase._lane.lanes
        if last is not None and last._lane.lanes is lanes:
            if origin is not None and origin.is_within(phase):
                return True
            if is_itself:
                return self.raised_at is None or not self.raised_at.raises_again(exception)
            return origin is not None and origin._lane is not phase._lane and not was_caught_before(exception, phase)
        return elsewhere is not None and elsewhere.process != lanes.id_base and phase.scope_id in elsewhere.above_ids

    def is_of(self, lanes: LaneSet, exception: BaseException) -> bool:
        """Whether the last phase that the exception left is one of these lanes, or of a process that works for them."""
        if self.last is not None:
            is_same = self.raised_at is None or not self.raised_at.raises_again(exception)
            return is_same and self.last._lane.lanes is lanes
        elsewhere = self.elsewhere
        session = (lanes.session_id, lanes.attempt, lanes.rank)
        return elsewhere is not None and elsewhere.process != lanes.id_base and elsewhere.session == session


def describe(exception: BaseException, phase: PhaseHandle, policy: str) -> PhaseError:
    """Return what `phase` says of `exception`, and move the exception's mark up to `phase`.

    Args:
        exception: what is leaving the phase; not held.
        phase: the phase that it leaves.
        policy: `FULL`, or `REFERENCE` for no traceback even at the origin.
    """
    origin = _origin_mark(exception, functools.partial(_is_trusted, phase, exception))
    is_origin = origin is None
    if origin is None:
        origin = Mark.arising_in(phase, exception)
    lanes = phase._lane.lanes
    marks = marks_for(exception)
    others = [mark for mark in marks.origins if mark.last._lane.lanes is not lanes]
    marks.origins = (origin.after(phase), *others[:_MAX_TRACKERS])
    if lanes.works_for_another and ((parent := phase.parent) is None or parent._lane.is_inherited):
        send_along(exception)  # It leaves the last phase of this process, and maybe the process as well.
    elif origin.elsewhere is not None:
        take_off(exception)
    return _error(exception, origin, lanes.redactor, with_traceback=is_origin and policy == FULL)


def describe_for_session(exception: BaseException, lanes: LaneSet, scope_id: str, policy: str) -> PhaseError:
    """Return what a session or a rank says of the exception that ended it; the exception's mark stays as it is.

    Args:
        exception: what ended it; not held.
        lanes: the lanes of the rank: what arose in a phase of theirs has its root cause there.
        scope_id: the session's or rank's own id, which is the root cause of what arose in no phase.
        policy: `FULL`, or `REFERENCE` for no traceback even at the origin.
    """
    origin = _origin_mark(exception, lambda mark, one: mark.is_of(lanes, one))
    is_origin = origin is None
    if origin is None:
        origin = Mark(scope_id)
    error = _error(exception, origin, lanes.redactor, with_traceback=is_origin and policy == FULL)
    return attrs.evolve(error, message=_bounded(error.message, max_bytes=MAX_SESSION_MESSAGE_BYTES))


def _error(exception: BaseException, origin: Mark, redactor: Redactor | None, *, with_traceback: bool) -> PhaseError:
    return PhaseError(
        type=type_name(exception),
        message=text_of(exception, redactor),
        traceback=format_traceback(exception, redactor) if with_traceback else None,
        root_cause_scope_id=origin.scope_id,
        root_cause_path=origin.path,
    )


def type_name(exception: BaseException) -> str:
    """Return the qualified name of the exception's class, without `builtins.`, as OTel's `error.type` has it."""
    kind = type(exception)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def text_of(exception: BaseException, redactor: Redactor | None = None) -> str:
    """Return the exception's text, bounded and redacted; never raises, whatever its `__str__` does."""
    try:
        text = str(exception)
        if redactor is not None:
            text = redactor.begin(text, MAX_MESSAGE_CHARS)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a user's __str__ may raise anything, and the user's exception must win
        return f"<unprintable {type(exception).__name__}>"
    return _bounded(text)


def format_traceback(exception: BaseException, redactor: Redactor | None = None) -> str:
    """Return the formatted traceback, its innermost frames kept, redacted; never raises."""
    frames = traceback_of(exception)
    try:
        # Not by `traceback.format_exception`, which logfire replaces for the whole process.
        story = traceback.TracebackException(type(exception), exception, frames, limit=-MAX_TRACEBACK_FRAMES)
        text = "".join(story.format())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - formatting calls the user's __str__ and reads source files
        text = f"{type_name(exception)}: {text_of(exception)}\n"
        with contextlib.suppress(Exception):  # There may be no memory for that, either.
            text = "".join(traceback.format_tb(frames, limit=-MAX_TRACEBACK_FRAMES)) + text
    redacted = str if redactor is None else redactor.text
    if len(text) > MAX_TRACEBACK_CHARS:
        half = MAX_TRACEBACK_CHARS // 2
        begin, end = redacted(text[: half + REACH])[:half], redacted(text[-half - REACH :])[-half:]
        text = f"{begin}\n... {len(text) - 2 * half} characters cut ...\n{end}"
    else:
        text = redacted(text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def trusted_origin(exception: BaseException, phase: PhaseHandle) -> str | None:
    """Return the scope in which the exception, or what it was raised from, arose, if `phase` trusts it; else None."""
    origin = _origin_mark(exception, functools.partial(_is_trusted, phase, exception))
    return None if origin is None else origin.scope_id


def _is_trusted(phase: PhaseHandle, leaving: BaseException, mark: Mark, one: BaseException) -> bool:
    return mark.is_trusted_by(phase, one, is_itself=one is leaving)


def _origin_mark(exception: BaseException, trusts: Callable[[Mark, BaseException], bool]) -> Mark | None:
    """Return the mark that says where the exception, or what it was raised from, arose; else None.

    What has no such mark itself has that of its cause or, as a group, of that member which failed first, in groups
    within groups too: whichever ended last has no say.
    """
    first: Mark | None = None
    pending = deque([exception])
    seen: set[int] = set()
    while pending and len(seen) < _MAX_CAUSES:
        one = pending.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        mark = next((mark for mark in _marks_of(one) if trusts(mark, one)), None)
        if mark is None:
            pending.extend(_next_causes(one))
        elif first is None or mark.order < first.order:
            first = mark
    return first


def _next_causes(exception: BaseException) -> list[BaseException]:
    try:
        members: Any = getattr(exception, "exceptions", ())
    except Exception:  # noqa: BLE001 - a hostile exception class may raise from any attribute
        members = ()
    # Ray keeps what a task has raised as an attribute of what it raises itself.
    related = [
        _cause_of(exception),
        attributes_of(exception).get("cause"),
        *(members if type(members) is tuple else ()),
    ]
    # Never isinstance(): that asks `__class__`, which may raise.
    return [cause for cause in related if issubclass(type(cause), BaseException)]


def note_handled(exception: BaseException, start: int) -> None:
    """Note that `exception` was being handled when the session of that number began.

    On the exception, since to hold it would hold its frames, and its address is another one's when it is gone.
    """
    marks = marks_for(exception)
    marks.handled = (*marks.handled, start)


def was_handled(exception: BaseException, start: int) -> bool:
    """Return whether `exception` was being handled when the session of that number began."""
    marks = marks_of(exception)
    return marks is not None and start in marks.handled


def note_recorded(exception: BaseException, scope_id: str) -> None:
    """Note that the user has recorded `exception` on the span of that phase."""
    marks_for(exception).recorded = scope_id


def was_recorded(exception: BaseException, scope_id: str) -> bool:
    """Return whether the phase of that id is the last one on whose span the user has recorded `exception`."""
    marks = marks_of(exception)
    return marks is not None and marks.recorded == scope_id


def ids_up_from(phase: PhaseHandle) -> tuple[str, ...]:
    """Return the id of a phase and of all that it hangs under, in other processes too."""
    found: list[str] = []
    above: PhaseHandle | None = phase
    while above is not None:
        found.append(above.scope_id)
        if above._extra is not None:
            found.extend(reversed(above._extra.above_ids))
        above = above.parent
    return tuple(found)


def _marks_of(exception: BaseException) -> tuple[Mark, ...]:
    marks = marks_of(exception)
    if marks is not None and marks.origins:
        return marks.origins
    carried = Mark.from_tuple(carried_by(exception))
    return () if carried is None else (carried,)


def _bounded(text: str, max_bytes: int = MAX_MESSAGE_BYTES) -> str:
    # Escaped before it is cut: a journal has room for so much, and no more.
    found = text[: MAX_MESSAGE_CHARS + 1].encode("utf-8", "backslashreplace")
    escaped = found.decode()
    if len(escaped) <= MAX_MESSAGE_CHARS and len(found) <= max_bytes:
        return escaped
    room = max_bytes - len("\N{HORIZONTAL ELLIPSIS}".encode())
    begin = escaped[: MAX_MESSAGE_CHARS - 1].encode()[:room].decode("utf-8", "ignore")
    return begin + "\N{HORIZONTAL ELLIPSIS}"
