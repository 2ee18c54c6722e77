"""What stands at a captured stream's `write`, `flush` and `isatty`: hands on first, and keeps what was handed on."""

from __future__ import annotations

import sys
from threading import get_ident
from typing import TYPE_CHECKING, Any

from stormphase._model import PhaseStatus
from stormphase.capture._cells import NO_CELL, NO_LINE, Cell, Line
from stormphase.capture._output import ROOM
from stormphase.capture._state import STATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormphase.capture._board import Board
    from stormphase.capture._descriptors import Descriptors

_getframe = sys._getframe


def nothing() -> None:
    """Do nothing."""


def plain_write(board: Board, name: str, original: Any) -> tuple[Any, Callable[[], None], Callable[[], None]]:
    """Return the `write` of a stream of the standard library, and how to make it forget and retire.

    The fast way is to append to two lists: allowed as long as this thread is in the same context as at its last write,
    and that phase is open. Everything else is asked of the board.
    """
    cell: Cell = NO_CELL
    line: Line = NO_LINE
    room = ROOM
    is_retired = False
    active = PhaseStatus.ACTIVE
    thread_of_caller = get_ident

    def write(text: str, /) -> Any:
        nonlocal cell, line, room
        # First the terminal, so that nothing of ours stands between the program and what it is told.
        count = original(text)
        # Each is one load: of two threads that write at once, each sees all of its own or all of the other's.
        if text != "\n":
            current, value, phase, thread_id, add, stamp, now, make_room, own_line = cell
            if current() is value and phase._status is active and thread_id == thread_of_caller():
                stamp(now())
                add(text)
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
                return count
        if not is_retired:
            cell = board.note_text(name, text)
            line = cell[-1]
        return count

    def forget() -> None:
        nonlocal cell, line
        cell = NO_CELL
        line = NO_LINE

    def retire() -> None:
        nonlocal cell, line, is_retired
        is_retired = True
        cell = NO_CELL
        line = NO_LINE

    return write, forget, retire


def guarded_write(board: Board, name: str, original: Any) -> tuple[Any, Callable[[], None], Callable[[], None]]:
    """Return the `write` of any other stream, which may write to further ones: those look away meanwhile."""
    is_retired = False

    def write(*args: Any, **kwargs: Any) -> Any:
        if is_retired or STATE.silent or not args:
            return original(*args, **kwargs)
        board.forget()
        STATE.silent += 1
        try:
            count = original(*args, **kwargs)
        finally:
            STATE.silent -= 1
        text = args[0]
        if isinstance(text, str):
            board.note_text(name, text)
        elif isinstance(text, (bytes, bytearray, memoryview)):
            board.note_text(name, text, is_binary=True)
        return count

    def retire() -> None:
        nonlocal is_retired
        is_retired = True

    return write, nothing, retire


def plain_flush(original: Any) -> Any:
    """Return a `flush` by whose frame the buffer's `write` knows that the text was seen before."""

    def flush(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    flush.__wrapped__ = original  # type: ignore[attr-defined]  # what `remove` puts back
    return flush


def guarded_flush(original: Any) -> Any:
    def flush(*args: Any, **kwargs: Any) -> Any:
        STATE.silent += 1
        try:
            return original(*args, **kwargs)
        finally:
            STATE.silent -= 1

    flush.__wrapped__ = original  # type: ignore[attr-defined]  # what `remove` puts back
    return flush


def buffer_write(board: Board, name: str, original: Any, text_layer: frozenset[Any]) -> Any:
    """Return the `write` of a text stream's buffer: what the text layer puts there was seen, the rest was not."""

    def write(data: Any, /) -> Any:
        # The text layer is C and has no frame: who called it shows, and that is one of ours.
        if STATE.silent or _getframe(1).f_code in text_layer:
            return original(data)
        count = original(data)
        board.note_text(name, data[:count] if isinstance(count, int) else data, is_binary=True)
        return count

    return write


def at_once(descriptors: Descriptors, original: Any, flush: Any) -> Any:
    """Return a `write` that keeps the order with C's text: that goes first, and this at the end of its line."""

    def write(text: str, /) -> Any:
        if text != "\n":  # The end of a `print` goes with what it has begun.
            descriptors.begin_text()
        count = original(text)
        # Until then it waits in the stream, as it does in a terminal: one write for all that one `print` says.
        if "\n" in text:
            flush()
        return count

    return write


def bytes_at_once(descriptors: Descriptors, original: Any, flush: Any) -> Any:
    """Return a buffer's `write` that keeps the order with C's text."""

    def write(data: Any, /) -> Any:
        descriptors.begin_text()
        count = original(data)
        flush()
        return count

    return write


def framed_write(descriptors: Descriptors, leads_to: Callable[[], int | None], original: Any) -> Any:
    """Return the raw file's `write`, which tells the tee that this text is known, as long as it leads there."""

    def write(data: Any, /) -> Any:
        stream = leads_to()  # Now: the program may have led its descriptor elsewhere for a while.
        count = None if stream is None else descriptors.write_text(stream, data)
        return original(data) if count is None else count

    write.__wrapped__ = original  # type: ignore[attr-defined]  # what `remove` puts back
    return write


def answer(original: Any, answer: bool) -> Any:  # noqa: FBT001 - the answer itself
    """Return an `isatty` that says what it said before: progress bars look the same."""

    def isatty() -> bool:
        return answer

    isatty.__wrapped__ = original  # type: ignore[attr-defined]  # what `remove` puts back
    return isatty
