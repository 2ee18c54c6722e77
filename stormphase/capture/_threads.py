"""Which phase was open where a thread was started or where work was submitted to one: noted when that happens.

Contexts of tasks and of `asyncio.to_thread` carry their phase themselves; plain threads and executors carry nothing.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from stormphase.capture._state import ORIGINS_ATTRIBUTE, STATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormphase._phase import PhaseHandle
    from stormphase.capture._board import Board


class ThreadHooks:
    """Wraps `Thread.start` and `ThreadPoolExecutor.submit`, from `install` to `remove`."""

    def __init__(self, board: Board) -> None:
        """Wrap nothing yet."""
        self._board = board
        self._undo: list[tuple[type, str, Any, Any]] = []

    def install(self) -> None:
        """Wrap both."""
        self._wrap(threading.Thread, "start", self._start_of(threading.Thread.start))
        self._wrap(ThreadPoolExecutor, "submit", self._submit_of(ThreadPoolExecutor.submit))

    def remove(self) -> None:
        """Put the originals back, unless somebody has wrapped ours since: then it does nothing from now on."""
        while self._undo:
            owner, name, original, ours = self._undo.pop()
            if owner.__dict__.get(name) is ours:
                setattr(owner, name, original)

    def _wrap(self, owner: type, name: str, ours: Any) -> None:
        self._undo.append((owner, name, owner.__dict__[name], ours))
        setattr(owner, name, ours)

    def _start_of(self, original: Callable[..., Any]) -> Any:
        board = self._board

        def start(self: threading.Thread) -> None:
            origins = board.origins()
            if origins:
                self.__dict__[ORIGINS_ATTRIBUTE] = origins
            original(self)

        return _dressed(start, original)

    def _submit_of(self, original: Callable[..., Any]) -> Any:
        board = self._board

        def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            if not board.sessions:
                return original(self, fn, *args, **kwargs)
            return original(self, _Work(board, fn, board.origins()), *args, **kwargs)

        return _dressed(submit, original)


class _Work:
    """A submitted callable together with the phases that were open where it was submitted."""

    __slots__ = ("_board", "_call", "_origins")

    def __init__(self, board: Board, call: Callable[..., Any], origins: dict[int, PhaseHandle]) -> None:
        self._board = board
        self._call = call
        self._origins = origins

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = STATE.origins
        STATE.origins = self._origins
        self._board.forget()
        try:
            return self._call(*args, **kwargs)
        finally:
            STATE.origins = before
            self._board.forget()


def _dressed(ours: Any, original: Any) -> Any:
    ours.__name__ = original.__name__
    ours.__qualname__ = original.__qualname__
    ours.__doc__ = original.__doc__
    return ours
