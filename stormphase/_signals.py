"""SIGTERM, only if asked: stop the session in order, then let the signal do what it did before."""

from __future__ import annotations

import _thread
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Final

from stormphase._bell import Bell
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

STOP_WAIT_S: Final = 15.0
COME_AGAIN_S: Final = 0.005


class SigtermHook:
    """Stands before the program's own SIGTERM handler, from `install` to `remove`, both on the main thread.

    A handler of the program's own is simply called: it decides, and what it raises unwinds the phases truthfully. Where
    SIGTERM was ignored it stays ignored. Where it would end the process, the session is stopped first, on a thread of
    its own, since the interrupted main thread may hold any lock. Of nested trackers that asked, the inner one stops
    first.

    Args:
        stop: stops the session within less than `STOP_WAIT_S` seconds.
        can_stop: returns whether `stop` can get what it needs. If not, the main thread has it: it is let go on, and the
            signal comes again a moment later.

    Raises:
        ConfigurationError: if made on another thread than the main one, or if the handler before is not Python's.
    """

    def __init__(self, stop: Callable[[], object], can_stop: Callable[[], bool]) -> None:
        """Check that the handler can be installed; nothing is changed yet."""
        if not _is_main_thread():
            raise ConfigurationError(
                "stop_on_sigterm needs the main thread, where Python runs signal handlers.",
                setting="stop_on_sigterm",
                fix="Start the tracker in the main thread, or leave stop_on_sigterm out.",
            )
        self._before: Any = signal.getsignal(signal.SIGTERM)
        if self._before is None:
            raise ConfigurationError(
                "stop_on_sigterm cannot call the SIGTERM handler that is installed, since it was not set by Python.",
                setting="stop_on_sigterm",
                fix="Leave stop_on_sigterm out, or set a handler of your own with signal.signal first.",
            )
        self._stop = stop
        self._can_stop = can_stop
        self._is_stopping = False

    def install(self) -> None:
        """Take SIGTERM over."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def remove(self) -> None:
        """Put the program's handler back, unless the program has put another one in place since.

        On another thread than the main one Python does not allow that; the handler that stays then has no session to
        stop, and does what the one before did.
        """
        if not _is_main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, self._before)

    def _on_signal(self, number: int, frame: Any) -> None:
        stands_before_another = isinstance(getattr(self._before, "__self__", None), SigtermHook)
        if callable(self._before) and not stands_before_another:
            self._before(number, frame)
            return
        # Launchers send SIGTERM to the process and to its group: the second one finds the first at work.
        if self._before == signal.SIG_IGN or self._is_stopping:
            return
        self._is_stopping = True
        try:
            has_stopped = self._stop_on_another_thread(number)
        finally:
            self._is_stopping = False
        if not has_stopped:
            return
        if stands_before_another:
            self._before(number, frame)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _stop_on_another_thread(self, number: int) -> bool:
        """Return whether to go on; False if the signal comes again, once the main thread has moved."""
        done = Bell()
        locked: list[bool] = []

        def stop() -> None:
            try:
                if self._can_stop():
                    self._stop()
                    return
                locked.append(True)
            finally:
                done.ring()
            Bell().wait(COME_AGAIN_S)
            os.kill(os.getpid(), number)

        try:
            # Not `threading.Thread`, whose own lock the main thread may hold.
            _thread.start_new_thread(stop, ())
        except RuntimeError:  # The system has no thread to give: the process ends all the same.
            return True
        done.wait(STOP_WAIT_S)
        return not locked


def _is_main_thread() -> bool:
    # Not by `threading.current_thread()`, which takes a lock of threading's on a thread that it does not know.
    return threading.get_ident() == threading.main_thread().ident
