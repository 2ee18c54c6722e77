"""What all sessions of a process share: the hooks, put in place by the first that captures and removed by the last."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from stormphase.capture import _logs, _notebooks, _streams, _threads
from stormphase.capture._cells import NO_CELL, Cell
from stormphase.capture._state import STATE

if TYPE_CHECKING:
    from stormphase._phase import PhaseHandle
    from stormphase.capture._descriptors import Descriptors
    from stormphase.capture._session import CaptureSession


class Board:
    """Hands what is said to every session that captures. Thread-, signal- and fork-safe."""

    def __init__(self) -> None:
        """Hook into nothing."""
        self.sessions: tuple[CaptureSession, ...] = ()
        self.descriptors: Descriptors | None = None
        self._lock = threading.RLock()
        self._streams = _streams.StreamHooks(self)
        self._logs = _logs.LogHooks(self)
        self._threads = _threads.ThreadHooks(self)
        self._notebooks = _notebooks.NotebookHooks(self._streams.hook_again)

    def install(self, session: CaptureSession) -> None:
        """Add a session; the first one puts the hooks in place."""
        with self._lock:
            if session in self.sessions:
                return
            if not self.sessions:
                self._streams.install()
                self._logs.install()
                self._threads.install()
                self._notebooks.install()
            self.sessions = (*self.sessions, session)
            self.forget()

    def remove(self, session: CaptureSession) -> None:
        """Take a session away; the last one takes the hooks with it."""
        with self._lock:
            if session not in self.sessions:
                return
            self.sessions = tuple(other for other in self.sessions if other is not session)
            self.forget()
            if not self.sessions:
                self._notebooks.remove()
                self._threads.remove()
                self._logs.remove()
                self._streams.remove()

    def use_descriptors(self, descriptors: Descriptors | None) -> None:
        """Have Python's streams work together with captured descriptors, or no longer."""
        with self._lock:
            self.descriptors = descriptors
            self._streams.hook_anew()

    def forget(self) -> None:
        """Have every thread ask anew to which phase its next text belongs."""
        self._streams.forget()

    def after_fork_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.RLock()

    def note_text(self, stream: str, text: Any, *, is_binary: bool = False) -> Cell:
        """Hand on what the calling thread has written; returns how it may do so by itself, or `NO_CELL`."""
        if STATE.silent:
            return NO_CELL
        sessions = self.sessions
        if len(sessions) == 1:
            return sessions[0].note_text(stream, text, is_binary=is_binary)
        for session in sessions:
            session.note_text(stream, text, is_binary=is_binary)
        return NO_CELL

    def note_lines(self, stream: str, level: int, text: str) -> None:
        """Hand on whole lines that the calling thread has said."""
        if STATE.silent:
            return
        for session in self.sessions:
            if not level or level >= session.log_level:
                session.note_lines(stream, level, text)

    def wants_log(self, level: int) -> bool:
        """Whether a log record of this level would be kept, were it said by the caller now."""
        if STATE.silent:
            return False
        return any(level >= session.log_level and session.wants_here() for session in self.sessions)

    def origins(self) -> dict[int, PhaseHandle]:
        """Return the caller's phase in each session, for work that it gives to another thread."""
        found = {}
        for session in self.sessions:
            phase = session.phase_here()
            if phase is not None:
                found[id(session)] = phase
        return found


BOARD: Final = Board()
