"""SIGTERM, only if asked: stop the session in order, then let the signal do what it did before."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Final

from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

STOP_WAIT_S: Final = 15.0


class SigtermHook:
    """Stands before the program's own SIGTERM handler, from construction (on the main thread) to `remove`.

    With a handler of the program's own, that is simply called: it decides, and what it raises unwinds the phases
    truthfully. Where SIGTERM would end the process, the session is stopped first.

    Raises:
        ConfigurationError: if made on another thread than the main one, where Python allows no handlers.
    """

    def __init__(self, stop: Callable[[], object]) -> None:
        """Install the handler and keep the one before."""
        if threading.current_thread() is not threading.main_thread():
            raise ConfigurationError(
                "stop_on_sigterm needs the main thread, where Python runs signal handlers.",
                setting="stop_on_sigterm",
                fix="Start the tracker in the main thread, or leave stop_on_sigterm out.",
            )
        self._stop = stop
        self._pid = os.getpid()
        self._before: Any = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, self._on_signal)

    def remove(self) -> None:
        """Put the program's handler back, unless the program has put another one in place since."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def _on_signal(self, number: int, frame: Any) -> None:
        if callable(self._before):
            self._before(number, frame)
        elif self._before != signal.SIG_IGN:
            # On a thread of its own: the interrupted main thread may hold a lock that stopping needs.
            stopper = threading.Thread(target=self._stop, name="stormphase-sigterm", daemon=True)
            stopper.start()
            stopper.join(STOP_WAIT_S)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), number)
