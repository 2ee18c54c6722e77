"""What stands at a captured stream's `write`, `flush` and the like: hands on first, and keeps what was handed on.

Nothing of ours may stand between the program and its stream: what the original returns or raises is what the program
gets, and what goes wrong here goes no further. `stream_hook` makes a compiled one where it can, which has no frame in
the tracebacks of the program's errors; the Python in here is its definition.
"""

from __future__ import annotations

import contextlib
import sys
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from stormphase import _native
from stormphase._model import PhaseStatus
from stormphase.capture._cells import NO_CELL, NO_LINE, Cell, Line
from stormphase.capture._feeds import ROOM
from stormphase.capture._state import STATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    from stormphase.capture._board import Board
    from stormphase.capture._descriptors import Descriptors

PLAIN: Final = 0
"""A `write` or `flush` of the standard library's own, which writes to nothing but the stream's buffer."""
FOREIGN: Final = 1
"""A `write` or `flush` of anybody's, which may hand on to other streams that are hooked."""
BUFFER: Final = 2
"""The `write` of a text stream's buffer: what the text stream itself puts there was seen, the rest was not."""
OTHER: Final = 3
"""Anything else."""

NO_PROBE: Final = (-1, None)

_getframe = sys._getframe
_text_layer: Final[set[CodeType]] = set()


def stream_hook(
    original: Any,
    kind: int,
    group: int,
    *,
    wrapped: Any = None,
    before: Callable[[Any], Any] | None = None,
    note: Callable[..., Cell] | None = None,
    after: Callable[[], object] | None = None,
    probe: tuple[int, Any] = NO_PROBE,
) -> Any:
    """Return what stands in the place of `original`. It has `forget()` and `retire()`; and `__wrapped__`.

    Args:
        original: what it hands on to.
        kind: one of the above.
        group: what a stream and its buffer have in common.
        wrapped: what stood there before, if that is not the original.
        before: called first with what is to be written; if it returns anything but None, that is the answer, or by what
            the compiled one finds it: see `Descriptors.write_text`.
        note: called with what was written and what the original returned, and if that is foreign, whether it wrote to
            streams that are hooked; returns how the calling thread may keep its next text by itself.
        after: called without arguments after the original.
        probe: by what the compiled one sees that `before` has nothing to do; see `Descriptors.probe`.
    """
    wrapped = original if wrapped is None else wrapped
    if _native.speedups is not None:
        return _native.speedups.stream_hook(original, kind, group, wrapped, before, note, after, ROOM, *probe)
    if kind == PLAIN and note is not None:
        hook: Any = _plain_write(original, before, note)
    elif kind in (PLAIN, FOREIGN):
        hook = _foreign_write(original, group, before, note)
    elif kind == BUFFER:
        hook = _buffer_write(original, group, before, note)
    else:
        hook = _other_call(original, before, after)
    for name in ("__name__", "__qualname__", "__doc__", "__self__"):
        with contextlib.suppress(Exception):
            setattr(hook, name, getattr(original, name))
    hook.__wrapped__ = wrapped
    return hook


class Notes:
    """What hooks of one stream call with what was written.

    Args:
        board: who is told.
        name: "stdout" or "stderr".
    """

    def __init__(self, board: Board, name: str) -> None:
        """Tell of nothing yet."""
        self._board = board
        self._name = name

    def text(self, text: Any, _result: Any) -> Cell:
        """Tell of text."""
        return self._board.note_text(self._name, text)

    def binary(self, data: Any, count: Any) -> Cell:
        """Tell of as many bytes as were taken."""
        if isinstance(count, int) and count < len(data):
            data = memoryview(data)[:count]
        return self._board.note_text(self._name, data, is_binary=True)


class ForeignNotes:
    """What hooks of a stream of anybody's call: it may hand on, sooner or later, to streams that are hooked as well.

    Then what these show is kept, in the order in which they do, and not what came in here. Until it is known whether it
    does, what came in waits: of what is told to nobody nothing has to be taken back.

    Args:
        board: who is told.
        name: "stdout" or "stderr".
        may_hand_on: whether it has a stream that is hooked, and so may write to it.
    """

    def __init__(self, board: Board, name: str, *, may_hand_on: bool) -> None:
        """Tell of nothing yet."""
        self._board = board
        self._name = name
        self._hands_on = None if may_hand_on else False
        self._waiting: list[Any] = []

    def __call__(self, text: Any, _result: Any, is_passed_on: bool) -> Cell:  # noqa: FBT001 - called from C
        """Tell of what may be text or bytes; of none that has been passed on."""
        if is_passed_on:
            self._hands_on = True
            self._waiting.clear()
        elif self._hands_on is None:
            self._waiting.append(text)
            if isinstance(text, str) and "\n" in text and any(piece.strip() for piece in self._waiting):
                self._hands_on = False
                self.leave()
        elif not self._hands_on:
            self._tell(text)
        return NO_CELL

    def leave(self) -> None:
        """Tell of what waits."""
        waiting, self._waiting = self._waiting, []
        for text in waiting:
            self._tell(text)

    def _tell(self, text: Any) -> None:
        if isinstance(text, str):
            self._board.note_text(self._name, text)
        elif isinstance(text, (bytes, bytearray, memoryview)):
            self._board.note_text(self._name, text, is_binary=True)


def nothing(*_args: Any) -> None:
    """Do nothing."""


def _plain_write(original: Any, before: Any, note: Any) -> Any:
    """Return the `write` of a text stream of the standard library.

    The fast way is to append to two lists: allowed as long as this thread is in the same context as at its last write,
    and that phase is open. Everything else is asked of `note`.
    """
    cell: Cell = NO_CELL
    line: Line = NO_LINE
    room = ROOM
    is_retired = False
    active = PhaseStatus.ACTIVE
    thread_of_caller = get_ident
    prepare = before or nothing

    def write(text: str, /) -> Any:
        nonlocal cell, line, room
        if not is_retired:
            prepare(text)
        # First the terminal, so that nothing of ours stands between the program and what it is told.
        count = original(text)
        # Each is one load: of two threads that write at once, each sees all of its own or all of the other's.
        if text != "\n":
            current, value, phase, thread_id, add, stamp, now, make_room, own_line = cell
            if current() is value and phase._status is active and thread_id == thread_of_caller():
                stamp(now())
                add(text)
                STATE.noted += 1
                line = own_line
                room -= count + 1  # The length of the text, and one so that empty ones do not grow for ever.
                if room < 0:
                    room = ROOM
                    make_room()
                return count
        else:
            # What `print` writes last: it ends the line that this thread has begun, whatever happened since.
            thread_id, add = line
            if thread_id == thread_of_caller():
                line = NO_LINE
                add(text)
                STATE.noted += 1
                return count
        if not is_retired:
            STATE.noted += 1
            with contextlib.suppress(Exception):  # At the very end of the interpreter half of this module is gone.
                cell = note(text, count)
                line = cell[-1]
        return count

    def forget() -> None:
        nonlocal cell, line
        cell = NO_CELL
        line = NO_LINE

    def retire() -> None:
        nonlocal is_retired
        is_retired = True
        forget()

    _text_layer.add(write.__code__)
    return _with(write, forget, retire)


def _foreign_write(original: Any, group: int, before: Any, note: Any) -> Any:
    """Return the `write` or `flush` of any other stream, which may write to streams that are hooked as well."""
    is_retired = False

    def write(*args: Any, **kwargs: Any) -> Any:
        if is_retired:
            return original(*args, **kwargs)
        if before is not None:
            before(*args[:1])
        noted = STATE.noted
        active = STATE.active
        active.append(group)
        try:
            result = original(*args, **kwargs)
        finally:
            active.remove(group)
        if note is None or not args or is_retired:
            return result
        is_passed_on = STATE.noted != noted
        STATE.noted += 1
        with contextlib.suppress(Exception):  # as above
            note(args[0], result, is_passed_on)
        return result

    def retire() -> None:
        nonlocal is_retired
        is_retired = True

    return _with(write, nothing, retire)


def _buffer_write(original: Any, group: int, before: Any, note: Any) -> Any:
    is_retired = False

    def write(data: Any, /) -> Any:
        if is_retired or group in STATE.active or _is_called_by_text_layer():
            return original(data)
        if before is not None:
            before(data)
        count = original(data)
        STATE.noted += 1
        with contextlib.suppress(Exception):  # as above
            note(data, count)
        return count

    def retire() -> None:
        nonlocal is_retired
        is_retired = True

    return _with(write, nothing, retire)


def _is_called_by_text_layer() -> bool:
    """Whether the buffer was written to by its text stream, which is C and has no frame: one of ours called that."""
    try:
        return _getframe(2).f_code in _text_layer
    except ValueError:  # Nobody's: the interpreter ends, and flushes what was seen when it was written.
        return True


def _other_call(original: Any, before: Any, after: Any) -> Any:
    is_retired = False

    def call(*args: Any, **kwargs: Any) -> Any:
        if is_retired:
            return original(*args, **kwargs)
        result = None if before is None else before(*args[:1])
        if result is None:
            result = original(*args, **kwargs)
        if after is not None:
            after()
        return result

    def retire() -> None:
        nonlocal is_retired
        is_retired = True

    return _with(call, nothing, retire)


def _with(hook: Any, forget: Callable[..., None], retire: Callable[[], None]) -> Any:
    hook.forget = forget
    hook.retire = retire
    return hook


def framed(descriptors: Descriptors, leads_to: Callable[[], int | None]) -> Callable[[Any], Any]:
    """Return what a raw file's `write` does first: tell the tee that this text is known, as long as it leads there."""

    def write(data: Any, /) -> Any:
        stream = leads_to()  # Now: the program may have led its descriptor elsewhere for a while.
        return None if stream is None else descriptors.write_text(stream, data)

    return write


def answer(original: Any, answer: bool) -> Any:  # noqa: FBT001 - the answer itself
    """Return an `isatty` that says what it said before: progress bars look the same."""

    def isatty() -> bool:
        return answer

    isatty.__wrapped__ = original  # type: ignore[attr-defined]  # what `remove` puts back
    return isatty
