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
import weakref
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
_EVERY_NAME: Final = (*_NAMES, *(f"__{name}__" for name in _NAMES))


class StreamHooks:
    """Sees every stream that is `sys.stdout` or `sys.stderr`, from `install` to `remove`."""

    def __init__(self, board: Board) -> None:
        """See nothing yet."""
        self._board = board
        self._hooked: dict[int, HookedStream] = {}
        self._buffers: dict[int, HookedBuffer] = {}
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
            proxy.leave()
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

    def _on_replaced(self, name: str, before: object, after: object) -> Callable[[], None] | None:
        """Hook into what was put there, and let go of what stood there; returns what is to be done without it."""
        if not self._is_installed or before is after:
            return None
        self._hook(name, after)
        # It is no stdout any more, and must be free to be closed when its owner lets go of it.
        if any(getattr(sys, other, None) is before for other in _EVERY_NAME):
            return None
        gone = self._hooked.pop(id(before), None)
        if gone is None:
            return None
        gone.remove()
        if id(before) not in self._first:
            return None
        # One that was there from the begin is with handlers, perhaps: if somebody has it, it is seen there as well.
        self._first -= {id(before)}
        try:
            left = weakref.ref(before)
        except TypeError:
            return None
        return functools.partial(self._hook_what_is_left, name, left)

    def _hook_what_is_left(self, name: str, left: weakref.ref[Any]) -> None:
        stream = left()
        if stream is not None:
            self._hook(name, stream, may_replace=False)
            self._first |= {id(stream)}

    def _is_hooked(self, stream: Any) -> bool:
        return id(stream) in self._hooked or id(stream) in self._buffers or isinstance(stream, StreamProxy)

    def _hook(self, name: str, stream: Any, *, may_replace: bool = True) -> None:
        if stream is None or id(stream) in self._hooked or isinstance(stream, StreamProxy):
            return
        if not callable(getattr(stream, "write", None)):
            return
        hooked = HookedStream(self._board, name, stream, self._buffers, self._is_hooked)
        if hooked.install():
            self._hooked[id(stream)] = hooked
        elif may_replace:
            # An object without a dictionary of its own: only who looks `sys.stdout` up is seen.
            may_hand_on = _has(self._is_hooked, stream)
            proxy = self._proxies[name] = StreamProxy(self._board, name, stream, may_hand_on=may_hand_on)
            ModuleType.__setattr__(sys, name, proxy)


class HookedStream:
    """One stream whose `write`, and that of its `buffer`, is seen."""

    def __init__(
        self,
        board: Board,
        name: str,
        stream: Any,
        buffers: dict[int, HookedBuffer],
        is_hooked: Callable[[Any], bool],
    ) -> None:
        """Change nothing yet."""
        self._has_a_hooked = functools.partial(_has, is_hooked)
        self._board = board
        self._name = name
        self._stream = stream
        self._buffers = buffers
        self._buffer: HookedBuffer | None = None
        self._places = Places()
        self._write: Any = None
        self._foreign: _writes.ForeignNotes | None = None

    def install(self) -> bool:
        """Hook into the stream; False if it takes no attributes."""
        stream = self._stream
        # With a `write` of its own, which another library may have put there, it is like any other.
        is_plain = type(stream) in _PLAIN_TYPES and "write" not in stream.__dict__
        kind = _writes.PLAIN if is_plain else _writes.FOREIGN
        notes = _writes.Notes(self._board, self._name)
        self._foreign = _writes.ForeignNotes(self._board, self._name, may_hand_on=self._has_a_hooked(stream))
        buffer = _buffer_of(stream)
        group = id(stream if buffer is None else buffer)
        descriptors = self._board.descriptors
        number = None if descriptors is None or buffer is None else _descriptor_of(buffer, descriptors)
        before, probe = (None, _writes.NO_PROBE)
        if descriptors is not None and number is not None:
            before, probe = descriptors.begin_text, descriptors.probe()
        note = notes.text if is_plain else self._foreign
        self._write = _writes.stream_hook(stream.write, kind, group, before=before, note=note, probe=probe)
        if not self._places.put(stream, "write", self._write):
            return False
        for name, hook_kind, after in (("flush", kind, None), ("detach", _writes.OTHER, self._leave_buffer)):
            original = getattr(stream, name, None)
            if callable(original) and (name == "flush" or buffer is not None):
                self._places.put(stream, name, _writes.stream_hook(original, hook_kind, group, after=after))
        if descriptors is not None and number is not None:
            isatty = _writes.answer(stream.isatty, descriptors.is_terminal[number - 1])
            self._places.put(stream, "isatty", isatty)
        if buffer is not None:
            # Two text streams may have one buffer: it is hooked once, and for as long as one of them is.
            hooked = self._buffers.get(group)
            if hooked is None:
                hooked = self._buffers[group] = HookedBuffer(buffer, notes, descriptors, number)
            hooked.users += 1
            self._buffer = hooked
        return True

    def remove(self) -> None:
        """Take our attributes off, unless somebody has wrapped them since: then they only hand on from now on."""
        self._places.leave()
        self._leave_buffer()
        if self._foreign is not None:
            self._foreign.leave()

    def forget(self) -> None:
        """Have every thread ask anew at its next write."""
        if self._write is not None:
            self._write.forget()
        if self._buffer is not None:
            self._buffer.forget()

    def _leave_buffer(self) -> None:
        """Let go of the buffer: at the end, and when the program takes it away, whose own it is then."""
        buffer, self._buffer = self._buffer, None
        if buffer is None:
            return
        buffer.users -= 1
        if not buffer.users:
            self._buffers.pop(buffer.key, None)
            buffer.remove()

    @property
    def is_in_place(self) -> bool:
        """Whether the stream's `write` is ours."""
        return getattr(self._stream, "__dict__", {}).get("write") is self._write


class HookedBuffer:
    """The buffer beneath one text stream or several: what is written past these is seen.

    Attributes:
        key: what it is found by.
        users: how many hooked text streams are above it.
    """

    def __init__(self, buffer: Any, notes: _writes.Notes, descriptors: Descriptors | None, number: int | None) -> None:
        """Hook into the buffer, and where it leads to a captured descriptor also into its raw file."""
        self.key = id(buffer)
        self.users = 0
        self._places = Places()
        before, probe = None, _writes.NO_PROBE
        if descriptors is not None and number is not None:
            raw = getattr(buffer, "raw", buffer)
            leads_to = functools.partial(descriptors.stream_of, buffer.fileno())
            framed = _writes.framed(descriptors, leads_to)
            self._places.put(raw, "write", _writes.stream_hook(raw.write, _writes.OTHER, self.key, before=framed))
            before, probe = descriptors.begin_text, descriptors.probe()
        write = _writes.stream_hook(
            buffer.write, _writes.BUFFER, self.key, before=before, note=notes.binary, probe=probe
        )
        self._places.put(buffer, "write", write)
        self.forget = write.forget

    def remove(self) -> None:
        """Take our attributes off."""
        self._places.leave()


class Places:
    """Attributes of ours on objects of others, and what stood there before."""

    def __init__(self) -> None:
        """Start with none."""
        self._undo: list[tuple[Any, str, Any, bool]] = []

    def put(self, owner: Any, name: str, ours: Any) -> bool:
        """Put an attribute on an object; False if that takes none."""
        try:
            # Its own dictionary, whatever its `__setattr__` does: that of a wrapper sets what the wrapped stream has.
            values = owner.__dict__
            had_one = name in values
            before = values.get(name)
            values[name] = ours
            if getattr(owner, name) is not ours:
                if had_one:
                    values[name] = before
                else:
                    del values[name]
                return False
        except Exception:  # noqa: BLE001 - slots, or whatever the user's own class does
            return False
        self._undo.append((owner, name, ours, had_one))
        return True

    def leave(self) -> None:
        """Take them off again, where they still are; wherever else somebody keeps one, it only hands on."""
        while self._undo:
            owner, name, ours, had_one = self._undo.pop()
            retire = getattr(ours, "retire", None)
            if retire is not None:
                retire()
            values = owner.__dict__
            if values.get(name) is not ours:
                continue
            if had_one:
                values[name] = ours.__wrapped__
            else:
                del values[name]


def _has(is_hooked: Callable[[Any], bool], stream: Any) -> bool:
    """Whether a stream has, among its attributes, one that is hooked, or a list of some."""
    try:
        names = [name for owner in type(stream).__mro__ for name in owner.__dict__.get("__slots__", ())]
        values = [*getattr(stream, "__dict__", {}).values(), *(getattr(stream, name, None) for name in names)]
        return any(
            any(map(is_hooked, value)) if isinstance(value, (list, tuple)) else is_hooked(value) for value in values
        )
    except Exception:  # noqa: BLE001 - whatever the user's own class does
        return False


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

    def __init__(self, board: Board, name: str, stream: Any, *, may_hand_on: bool) -> None:
        """Hand on to `stream`."""
        self.stream = stream
        self.is_on = True
        note = _writes.ForeignNotes(board, name, may_hand_on=may_hand_on)
        self.leave = note.leave
        self._write = _writes.stream_hook(stream.write, _writes.FOREIGN, id(stream), note=note)

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
        _tell(name, before, value)
        del before  # Whoever let go of it here finds it gone, as without us; only then it is looked whether it is.
        _look_again()

    def __delattr__(self, name: str) -> None:
        """Delete, and tell."""
        before = self.__dict__.get(name) if name in _NAMES else None
        ModuleType.__delattr__(self, name)
        if name in _NAMES:
            _tell(name, before, None)
            del before
            _look_again()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name, as picklers of modules do for their own class only."""
        return importlib.import_module, ("sys",)


_listeners: Final[list[Callable[[str, object, object], Callable[[], None] | None]]] = []
_to_do: Final[list[Callable[[], None]]] = []


def _tell(name: str, before: object, after: object) -> None:
    for listener in tuple(_listeners):
        # A stream of any kind at all: to put it there must succeed as it did before.
        with contextlib.suppress(Exception):
            then = listener(name, before, after)
            if then is not None:
                _to_do.append(then)


def _look_again() -> None:
    while _to_do:
        with contextlib.suppress(Exception):
            _to_do.pop()()


def _watch_sys(listener: Callable[[str, object, object], Callable[[], None] | None]) -> None:
    _listeners[:] = [listener]
    if type(sys) is ModuleType:
        sys.__class__ = WatchedSys


def _unwatch_sys() -> None:
    _listeners.clear()
    if type(sys) is WatchedSys:
        sys.__class__ = ModuleType  # type: ignore[assignment]  # as it was
