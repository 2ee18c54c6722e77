"""stdout and stderr, seen by an attribute on the stream object itself.

The object stays where it is and what it is, so every reference to it sees the same, whenever it was taken. What a
program or a test framework puts in its place later is seen when it is put there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from stormphase.capture import _writes
from stormphase.capture._lines import STDERR, STDOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormphase.capture._board import Board
    from stormphase.capture._descriptors import Descriptors

# Of these no write calls another stream's: nothing can be seen twice.
_PLAIN_TYPES: Final = (io.TextIOWrapper, io.StringIO)
_NAMES: Final = (STDOUT, STDERR)


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

    def hook_anew(self) -> None:
        """Hook into the same streams once more: what the descriptors need of them has changed."""
        if not self._is_installed:
            return
        for stream in tuple(self._hooked.values()):
            stream.remove()
            stream.install()

    def hook_again(self) -> None:
        """Hook anew into what somebody has put another `write` on, who knew nothing of ours."""
        for stream in tuple(self._hooked.values()):
            if not stream.is_in_place:
                stream.remove()
                stream.install()

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
        self.forget: Callable[[], None] = _writes.nothing
        self._retire: Callable[[], None] = _writes.nothing

    def install(self) -> bool:
        """Hook into the stream; False if it takes no attributes."""
        stream = self._stream
        # With a `write` of its own, which another library may have put there, it is like any other.
        is_plain = type(stream) in _PLAIN_TYPES and "write" not in stream.__dict__
        buffer = _buffer_of(stream)
        flush = getattr(stream, "flush", None)
        original = stream.write
        descriptors = self._board.descriptors
        codes = set()
        number = None
        if descriptors is not None and buffer is not None and callable(flush):
            number = _descriptor_of(buffer, descriptors)
            if number is not None:
                raw = getattr(buffer, "raw", buffer)
                leads_to = functools.partial(descriptors.stream_of, buffer.fileno())
                self._put(raw, "write", _writes.framed_write(descriptors, leads_to, raw.write))
                self._put(stream, "isatty", _writes.answer(stream.isatty, descriptors.is_terminal[number - 1]))
                original = _writes.at_once(descriptors, original, flush)
                codes.add(original.__code__)
        write, self.forget, self._retire = (_writes.plain_write if is_plain else _writes.guarded_write)(
            self._board, self._name, original
        )
        write.__wrapped__ = stream.write
        codes.add(write.__code__)
        if not self._put(stream, "write", write):
            return False
        if callable(flush):
            ours = _writes.plain_flush(flush) if is_plain else _writes.guarded_flush(flush)
            self._put(stream, "flush", ours)
            codes.add(ours.__code__)
        if buffer is not None:
            write_bytes = buffer.write
            if descriptors is not None and number is not None:
                write_bytes = _writes.bytes_at_once(descriptors, write_bytes, buffer.flush)
            ours = _writes.buffer_write(self._board, self._name, write_bytes, frozenset(codes))
            ours.__wrapped__ = buffer.write
            self._put(buffer, "write", ours)
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

    @property
    def is_in_place(self) -> bool:
        """Whether the stream's `write` is ours."""
        return any(
            name == "write" and owner is self._stream and owner.__dict__.get(name) is ours
            for owner, name, ours, _ in self._undo
        )

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


def _buffer_of(stream: Any) -> Any:
    try:
        buffer = getattr(stream, "buffer", None)
    except Exception:  # noqa: BLE001 - a property of the user's own class
        return None
    return buffer if isinstance(buffer, (io.BufferedIOBase, io.RawIOBase)) else None


def _descriptor_of(buffer: Any, descriptors: Descriptors) -> int | None:
    """Return 1 or 2 if the stream leads there, also by a copy of such a descriptor, else None."""
    try:
        number = buffer.fileno()
    except Exception:  # noqa: BLE001 - most streams that tests put there have none
        return None
    if not hasattr(getattr(buffer, "raw", buffer), "write"):
        return None
    if number in (1, 2):
        return int(number)
    stream = descriptors.stream_of(number)
    return None if stream is None else stream + 1


class StreamProxy:
    """Stands for a stream that takes no attributes, and hands everything on to it."""

    def __init__(self, board: Board, name: str, stream: Any) -> None:
        """Hand on to `stream`."""
        self.stream = stream
        self.is_on = True
        self._write, _, _ = _writes.guarded_write(board, name, stream.write)

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
