"""What a phase says of the exception that ended it: in full where it arose, by reference in every phase it passes.

An exception is never held, since it would hold its frames and with them whatever they hold (GPU tensors, say). It is
marked instead: the mark names the scope in which it arose and the phase it left last. A mark is trusted only by an
ancestor of that phase, so an exception object that is raised again elsewhere counts as a new failure there.
"""

from __future__ import annotations

import contextlib
import itertools
import traceback
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stormphase._model import PhaseError
from stormphase._redaction import REACH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase._redaction import Redactor

FULL: Final = "full"
REFERENCE: Final = "reference"
NOT_A_FAILURE: Final = "not_a_failure"

MAX_MESSAGE_CHARS: Final = 4_096
MAX_TRACEBACK_CHARS: Final = 16_384
MAX_TRACEBACK_FRAMES: Final = 64
_MAX_CAUSES: Final = 32
_MARK: Final = "__stormphase_mark__"
_HANDLED: Final = "__stormphase_handled__"
_order: Final = itertools.count(1)  # Which failure came first; one C call, so no lock.
# Past the class, as in `_attributes_of`: a hostile one may raise from any attribute.
_traceback_of: Final = BaseException.__dict__["__traceback__"].__get__
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


class Mark:
    """What an exception remembers: the scope it arose in, when that was among others, and the last phase that it left.

    A phase belongs to its process, so in another one the ids of all that it hung under stand for it: whose id is among
    them is an ancestor. Within its own process a copy proves nothing, since the exception itself is at hand.
    """

    __slots__ = ("elsewhere", "last", "order", "origin_path", "origin_scope_id")

    def __init__(
        self,
        origin_scope_id: str,
        last: PhaseHandle | None,
        origin_path: tuple[str, ...] = (),
        order: int = 0,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """Start at the origin, which is also the last phase left."""
        self.origin_scope_id = origin_scope_id
        self.origin_path = origin_path
        self.order = order
        self.last = last
        self.elsewhere = elsewhere

    def __reduce__(self) -> tuple[type[Mark], tuple[Any, ...]]:
        """Leave the phase behind, and take along by what it is known elsewhere."""
        elsewhere = self.elsewhere
        if self.last is not None:
            lanes = self.last._lane.lanes
            session = (lanes.session_id, lanes.attempt, lanes.rank)
            elsewhere = Elsewhere(ids_up_from(self.last), session, lanes.id_base)
        return Mark, (self.origin_scope_id, None, self.origin_path, 0, elsewhere)

    def is_within(self, phase: PhaseHandle) -> bool:
        """Whether the last phase that the exception left is `phase` or hangs under it."""
        if self.last is not None:
            return self.last.is_within(phase)
        elsewhere = self.elsewhere
        return (
            elsewhere is not None
            and elsewhere.process != phase._lane.lanes.id_base
            and phase.scope_id in elsewhere.above_ids
        )

    def is_of(self, lanes: LaneSet) -> bool:
        """Whether the last phase that the exception left is one of these lanes, or of a process that works for them."""
        if self.last is not None:
            return self.last._lane.lanes is lanes
        elsewhere = self.elsewhere
        session = (lanes.session_id, lanes.attempt, lanes.rank)
        return elsewhere is not None and elsewhere.process != lanes.id_base and elsewhere.session == session


def describe(exception: BaseException, phase: PhaseHandle, policy: str) -> PhaseError:
    """Return what `phase` says of `exception`, and move the exception's mark up to `phase`.

    Args:
        exception: what is leaving the phase; neither held nor changed but for its mark.
        phase: the phase that it leaves.
        policy: `FULL`, or `REFERENCE` for no traceback even at the origin.
    """
    origin = _origin_mark(exception, lambda mark: mark.is_within(phase))
    is_origin = origin is None
    if origin is None:
        origin = Mark(phase.scope_id, phase, phase.path, next(_order))
    _attributes_of(exception)[_MARK] = Mark(origin.origin_scope_id, phase, origin.origin_path, origin.order)
    redactor = phase._lane.lanes.redactor
    return _error(exception, origin, redactor, with_traceback=is_origin and policy == FULL)


def describe_for_session(exception: BaseException, lanes: LaneSet, scope_id: str, policy: str) -> PhaseError:
    """Return what a session or a rank says of the exception that ended it; the exception's mark stays as it is.

    Args:
        exception: what ended it; not held.
        lanes: the lanes of the rank: what arose in a phase of theirs has its root cause there.
        scope_id: the session's or rank's own id, which is the root cause of what arose in no phase.
        policy: `FULL`, or `REFERENCE` for no traceback even at the origin.
    """
    origin = _origin_mark(exception, lambda mark: mark.is_of(lanes))
    is_origin = origin is None
    if origin is None:
        origin = Mark(scope_id, None)
    return _error(exception, origin, lanes.redactor, with_traceback=is_origin and policy == FULL)


def _error(exception: BaseException, origin: Mark, redactor: Redactor | None, *, with_traceback: bool) -> PhaseError:
    return PhaseError(
        type=type_name(exception),
        message=text_of(exception, redactor),
        traceback=format_traceback(exception, redactor) if with_traceback else None,
        root_cause_scope_id=origin.origin_scope_id,
        root_cause_path=origin.origin_path,
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
    return _bounded(text, MAX_MESSAGE_CHARS)


def format_traceback(exception: BaseException, redactor: Redactor | None = None) -> str:
    """Return the formatted traceback, its innermost frames kept, redacted; never raises."""
    frames = _traceback_of(exception)
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


def add_note(exception: BaseException, text: str) -> None:
    """Attach `text` to an exception in flight, as PEP 678 does; on CPython 3.10 by hand. Never raises."""
    try:
        if hasattr(exception, "add_note"):
            exception.add_note(text)
            return
        notes: list[str] = [*getattr(exception, "__notes__", ()), text]
        BaseException.__setattr__(exception, "__notes__", notes)
    except Exception:  # noqa: BLE001 - a hostile exception class; the misuse is counted all the same
        return


def _trusted_origin(exception: BaseException, phase: PhaseHandle) -> str | None:
    """Return the scope in which the exception, or what it was raised from, arose beneath `phase`; else None."""
    origin = _origin_mark(exception, lambda mark: mark.is_within(phase))
    return None if origin is None else origin.origin_scope_id


def _origin_mark(exception: BaseException, trusts: Callable[[Mark], bool]) -> Mark | None:
    """Return the mark that says where the exception, or the nearest of what it was raised from, arose; else None.

    Of several that are equally near, as in a group, the one that arose first: whichever ended last has no say.
    """
    for generation in _generations(exception):
        marks = [mark for mark in map(_mark_of, generation) if mark is not None]
        trusted = [mark for mark in marks if trusts(mark)]
        if trusted:
            return min(trusted, key=lambda mark: mark.order)
    return None


def _generations(exception: BaseException) -> Iterator[list[BaseException]]:
    """Yield the exception, then its explicit causes and group members, then theirs; each once and not too many."""
    generation: list[BaseException] = [exception]
    seen: set[int] = set()
    while generation:
        fresh: list[BaseException] = []
        for each in generation:
            if id(each) not in seen and len(seen) < _MAX_CAUSES:
                seen.add(id(each))
                fresh.append(each)
        yield fresh
        generation = [cause for each in fresh for cause in _next_causes(each)]


def _next_causes(exception: BaseException) -> list[BaseException]:
    try:
        members: Any = getattr(exception, "exceptions", ())
    except Exception:  # noqa: BLE001 - a hostile exception class may raise from any attribute
        members = ()
    # Ray keeps what a task has raised as an attribute of what it raises itself.
    related = [
        _cause_of(exception),
        _attributes_of(exception).get("cause"),
        *(members if type(members) is tuple else ()),
    ]
    # Never isinstance(): that asks `__class__`, which may raise.
    return [cause for cause in related if issubclass(type(cause), BaseException)]


def note_handled(exception: BaseException, start: int) -> None:
    """Note that `exception` was being handled when the session of that number began.

    On the exception, since to hold it would hold its frames, and its address is another one's when it is gone.
    """
    attributes = _attributes_of(exception)
    attributes[_HANDLED] = (*_handled(attributes), start)


def was_handled(exception: BaseException, start: int) -> bool:
    """Return whether `exception` was being handled when the session of that number began."""
    return start in _handled(_attributes_of(exception))


def _handled(attributes: dict[str, Any]) -> tuple[Any, ...]:
    starts = attributes.get(_HANDLED)
    return starts if type(starts) is tuple else ()


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


def _mark_of(exception: BaseException) -> Mark | None:
    mark = _attributes_of(exception).get(_MARK)
    return mark if type(mark) is Mark else None


def _attributes_of(exception: BaseException) -> dict[str, Any]:
    # Past the class: a frozen exception refuses setattr, and a hostile one could run code in it.
    attributes: dict[str, Any] = object.__getattribute__(exception, "__dict__")
    return attributes


def _bounded(text: str, limit: int) -> str:
    if len(text) > limit:
        text = text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
