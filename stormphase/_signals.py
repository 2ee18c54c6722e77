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
# What a fault of the running thread raises cannot wait.
_OF_FAULTS: Final = frozenset(
    getattr(signal, name)
    for name in ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")
    if hasattr(signal, name)
)

_masks: Final[dict[int, list[set[Any]]]] = {}  # what each thread had blocked before it began to fork
_fork_guard: Final[list[bool]] = []


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

    def after_fork_in_child(self) -> None:
        """Be ready in a forked child: the thread that was stopping the session is the parent's."""
        self._is_stopping = False

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


# A signal that comes to a child before Python has told it of the fork is lost, since Python forgets what has come until
# then, and one that comes a little later finds the parent's sessions there: a handler that enters a phase, flushes or
# stops would do that to them, and tell of the parent's phases once more. So all wait in the kernel, but for Ctrl-C
# where that is nobody's: what it raises would be lost in here, and `_process` sees to it that it harms nothing.


def hold_while_forking() -> None:
    """Have signals wait while this process forks; to be called when sessions have registered what they do then."""
    if not _fork_guard and hasattr(os, "register_at_fork"):
        _fork_guard.append(True)
        os.register_at_fork(before=_hold, after_in_parent=_let_come, after_in_child=_let_come_in_child)
        os.register_at_fork(after_in_parent=_let_come)  # Once more, where an exception came into the first one.


def _hold() -> None:
    own = _masks.setdefault(threading.get_ident(), [])
    own.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))  # Known before anything is blocked.
    held = signal.valid_signals() - _OF_FAULTS
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        held -= {signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)


def _let_come() -> None:
    own = _masks.get(threading.get_ident())
    if own:
        signal.pthread_sigmask(signal.SIG_SETMASK, own[-1])
        own.pop()
        if not own:
            _masks.pop(threading.get_ident(), None)


def _let_come_in_child() -> None:
    _let_come()
    _masks.clear()  # Other threads that were about to fork are not here.
