"""stdout and stderr, seen by an attribute on the stream object itself.

The object stays where it is and what it is, so every reference to it sees the same, whenever it was taken. What a
program or a test framework puts in its place later is seen when it is put there.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from threading import get_ident
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from stormphase._model import PhaseStatus
from stormphase.capture._cells import NO_CELL, NO_LINE, Cell, Line
from stormphase.capture._lines import STDERR, STDOUT
from stormphase.capture._output import PIECE_BYTES, ROOM
from stormphase.capture._state import STATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormphase.capture._board import Board

# Of these no write calls another stream's: nothing can be seen twice.
_PLAIN_TYPES: Final = (io.TextIOWrapper, io.StringIO)
_NAMES: Final = (STDOUT, STDERR)
_getframe = sys._getframe


class StreamHooks:
    """Sees every stream that is `sys.stdout` or `sys.stderr`, from `install` to `remove`."""

    def __init__(self, board: Board) -> None:
        """See nothing yet."""
        self._board = board
        self._hooked: dict[int, HookedStream] = {}
        self._first: frozenset[int] = frozenset()
        self._proxies: dict[str, StreamProxy] = {}
        self._is_installed = False

    def install(self) -> None:
        """Hook into the streams that are there, and see to it that later ones are seen."""
        self._is_installed = True
        for name in _NAMES:
            self._hook(name, getattr(sys, name, None))
            self._hook(name, getattr(sys, f"__{name}__", None), may_replace=False)
        self._first = frozenset(self._hooked)
        _watch_sys(self._on_replaced)

    def remove(self) -> None:
        """Leave every stream as it was."""
        self._is_installed = False
        _unwatch_sys()
        for name, proxy in self._proxies.items():
            if getattr(sys, name, None) is proxy:
                setattr(sys, name, proxy.stream)
            proxy.is_on = False
        self._proxies.clear()
        hooked, self._hooked = self._hooked, {}
        for stream in hooked.values():
            stream.remove()

    def forget(self) -> None:
        """Have every thread ask anew at its next write."""
        for stream in tuple(self._hooked.values()):
            stream.forget()

    def _on_replaced(self, name: str, before: object, after: object) -> None:
        if not self._is_installed or before is after:
            return
        self._hook(name, after)
        # It is no stdout any more, and must be free to be closed when its owner lets go of it.
        is_elsewhere = any(getattr(sys, other, None) is before for other in _NAMES)
        if id(before) not in self._first and not is_elsewhere:
            gone = self._hooked.pop(id(before), None)
            if gone is not None:
                gone.remove()

    def _hook(self, name: str, stream: Any, *, may_replace: bool = True) -> None:
        if stream is None or id(stream) in self._hooked or isinstance(stream, StreamProxy):
            return
        if not callable(getattr(stream, "write", None)):
            return
        hooked = HookedStream(self._board, name, stream)
        if hooked.install():
            self._hooked[id(stream)] = hooked
        elif may_replace:
            # An object without a dictionary of its own: only who looks `sys.stdout` up is seen.
            proxy = self._proxies[name] = StreamProxy(self._board, name, stream)
            ModuleType.__setattr__(sys, name, proxy)


class HookedStream:
    """One stream whose `write`, and that of its `buffer`, is seen."""

    def __init__(self, board: Board, name: str, stream: Any) -> None:
        """Change nothing yet."""
        self._board = board
        self._name = name
        self._stream = stream
        self._undo: list[tuple[Any, str, Any, bool]] = []
        self.forget: Callable[[], None] = _nothing
        self._retire: Callable[[], None] = _nothing

    def install(self) -> bool:
        """Hook into the stream; False if it takes no attributes."""
        stream = self._stream
        is_plain = type(stream) in _PLAIN_TYPES
        write, self.forget, self._retire = (_plain_write if is_plain else _guarded_write)(
            self._board, self._name, stream.write
        )
        if not self._put(stream, "write", write):
            return False
        flush = getattr(stream, "flush", None)
        codes = [write.__code__]
        if callable(flush):
            ours = _plain_flush(flush) if is_plain else _guarded_flush(flush)
            self._put(stream, "flush", ours)
            codes.append(ours.__code__)
        try:
            buffer = getattr(stream, "buffer", None)
        except Exception:  # noqa: BLE001 - a property of the user's own class
            buffer = None
        if isinstance(buffer, (io.BufferedIOBase, io.RawIOBase)):
            self._put(buffer, "write", _buffer_write(self._board, self._name, buffer.write, frozenset(codes)))
        return True

    def remove(self) -> None:
        """Take our attributes off, unless somebody has wrapped them since: then they do nothing from now on."""
        self._retire()
        while self._undo:
            owner, name, ours, had_one = self._undo.pop()
            values = owner.__dict__
            if values.get(name) is not ours:
                continue
            if had_one:
                values[name] = ours.__wrapped__
            else:
                del values[name]

    def _put(self, owner: Any, name: str, ours: Any) -> bool:
        try:
            had_one = name in owner.__dict__
            setattr(owner, name, ours)
            if owner.__dict__.get(name) is not ours:
                raise AttributeError(name)  # noqa: TRY301 - a __setattr__ of the user's own class put it elsewhere
        except Exception:  # noqa: BLE001 - slots, or a __setattr__ that refuses
            return False
        self._undo.append((owner, name, ours, had_one))
        return True


def _plain_write(board: Board, name: str, original: Any) -> tuple[Any, Callable[[], None], Callable[[], None]]:
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
                room -= len(text) + PIECE_BYTES
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

    write.__wrapped__ = original  # type: ignore[attr-defined]  # what `remove` puts back
    return write, forget, retire


def _guarded_write(board: Board, name: str, original: Any) -> tuple[Any, Callable[[], None], Callable[[], None]]:
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

    write.__wrapped__ = original  # type: ignore[attr-defined]  # what `remove` puts back
    return write, _nothing, retire


def _plain_flush(original: Any) -> Any:
    """Return a `flush` by whose frame the buffer's `write` knows that the text was seen before."""

    def flush(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    flush.__wrapped__ = original  # type: ignore[attr-defined]  # what `remove` puts back
    return flush


def _guarded_flush(original: Any) -> Any:
    def flush(*args: Any, **kwargs: Any) -> Any:
        STATE.silent += 1
        try:
            return original(*args, **kwargs)
        finally:
            STATE.silent -= 1

    flush.__wrapped__ = original  # type: ignore[attr-defined]  # what `remove` puts back
    return flush


def _buffer_write(board: Board, name: str, original: Any, text_layer: frozenset[Any]) -> Any:
    """Return the `write` of a text stream's buffer: what the text layer puts there was seen, the rest was not."""

    def write(data: Any, /) -> Any:
        # The text layer is C and has no frame: who called it shows, and that is one of ours.
        if STATE.silent or _getframe(1).f_code in text_layer:
            return original(data)
        count = original(data)
        board.note_text(name, data[:count] if isinstance(count, int) else data, is_binary=True)
        return count

    write.__wrapped__ = original  # type: ignore[attr-defined]  # what `remove` puts back
    return write


class StreamProxy:
    """Stands for a stream that takes no attributes, and hands everything on to it."""

    def __init__(self, board: Board, name: str, stream: Any) -> None:
        """Hand on to `stream`."""
        self.stream = stream
        self.is_on = True
        self._write, _, _ = _guarded_write(board, name, stream.write)

    def write(self, *args: Any, **kwargs: Any) -> Any:
        """Write, and see it."""
        return self._write(*args, **kwargs) if self.is_on else self.stream.write(*args, **kwargs)

    def writelines(self, lines: Any) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Return what the stream has."""
        return getattr(self.stream, name)


class WatchedSys(ModuleType):
    """The class of `sys` while streams are seen: says when one is replaced."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set, and tell."""
        if name not in _NAMES:
            ModuleType.__setattr__(self, name, value)
            return
        before = self.__dict__.get(name)
        ModuleType.__setattr__(self, name, value)
        for listener in tuple(_listeners):
            # A stream of any kind at all: to put it there must succeed as it did before.
            with contextlib.suppress(Exception):
                listener(name, before, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name, as picklers of modules do for their own class only."""
        return importlib.import_module, ("sys",)


_listeners: Final[list[Callable[[str, object, object], None]]] = []


def _watch_sys(listener: Callable[[str, object, object], None]) -> None:
    _listeners[:] = [listener]
    if type(sys) is ModuleType:
        sys.__class__ = WatchedSys


def _unwatch_sys() -> None:
    _listeners.clear()
    if type(sys) is WatchedSys:
        sys.__class__ = ModuleType  # type: ignore[assignment]  # as it was


def _nothing() -> None:
    """Do nothing."""
