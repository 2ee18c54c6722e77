"""What a process does to its sessions: it forks, it exits, and a child of multiprocessing exits in its own way."""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_watches: Final[set[ProcessWatch]] = set()
_fork_guard: Final[list[bool]] = []


class ProcessWatch:
    """Tells one session of this process's forks and of its exit, from `install` to `remove`.

    Args:
        stop: stops the session in order; called at the process's exit with the exception that ended the program, if
            any, and whether that is known: what `sys.exit` was given is nowhere to be found at interpreter exit.
        after_fork_in_child: called first in every forked child.
    """

    def __init__(
        self, stop: Callable[[BaseException | None, bool], object], after_fork_in_child: Callable[[], object]
    ) -> None:
        """Watch nothing yet."""
        self._stop = stop
        self._tell_of_fork = after_fork_in_child
        self._finalizer: Any = None

    def install(self) -> None:
        """Watch from now on."""
        _watches.add(self)
        if not _fork_guard and hasattr(os, "register_at_fork"):
            _fork_guard.append(True)
            os.register_at_fork(after_in_child=_after_fork_in_child)
        atexit.register(self._at_exit)
        process = sys.modules.get("multiprocessing.process")
        if process is not None and process.parent_process() is not None:
            self._finalize_with_multiprocessing()

    def remove(self) -> None:
        """Watch no longer."""
        _watches.discard(self)
        atexit.unregister(self._at_exit)
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.cancel()

    def after_fork_in_child(self) -> None:
        """Tell the session, and see to it that a child of multiprocessing stops it."""
        self._finalizer = None  # The parent's.
        self._tell_of_fork()
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            # multiprocessing forgets all finalizers in its child, and then runs what is registered for after a fork.
            util.register_after_fork(self, ProcessWatch._finalize_with_multiprocessing)

    def _finalize_with_multiprocessing(self) -> None:
        """Have the session stopped by multiprocessing, whose children leave by `os._exit` and run no `atexit`."""
        util = sys.modules["multiprocessing.util"]
        self._finalizer = util.Finalize(None, self._at_child_exit, exitpriority=0)

    def _at_exit(self) -> None:
        error = exception_at_exit()
        self._stop(error, error is not None)

    def _at_child_exit(self) -> None:
        # What the child's function raised, `SystemExit` as well, is just passing through multiprocessing; from
        # CPython 3.13 on that has passed, and is as unknown as at interpreter exit.
        error = sys.exc_info()[1]
        self._stop(error, error is not None or _is_in_bootstrap())


def _is_in_bootstrap() -> bool:
    """Whether multiprocessing is still in the frame in which it calls the child's function."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "_bootstrap" and frame.f_globals.get("__name__") == "multiprocessing.process":
            return True
    return False


def exception_at_exit() -> BaseException | None:
    """Return the uncaught exception that ends the program, if that is what the interpreter has shown last.

    Also shown are those of an interactive session, of a test runner, or of a callback from C: the program goes on after
    them. One that ends it has come out of the main module, or out of `runpy`, which runs it for `python -m`.
    """
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if hasattr(sys, "ps1") or not isinstance(error, BaseException) or error.__traceback__ is None:
        return None
    outermost = error.__traceback__.tb_frame
    module = outermost.f_globals.get("__name__")
    is_main = module == "__main__" and outermost.f_code.co_name == "<module>"
    return error if is_main or module == "runpy" else None


def _after_fork_in_child() -> None:
    for watch in tuple(_watches):
        try:
            watch.after_fork_in_child()
        except KeyboardInterrupt:  # In the midst of it, and Python lets none out of here: all is done once more.
            watch.after_fork_in_child()
            raise
