"""What a session does about captured output: begins when the tracker or the first phase asks for it, ends with both."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase.capture import CapturedLine, CaptureOptions, CaptureSession


class SessionCapture:
    """The capture of one session, from `start` to `stop`. Thread- and fork-safe.

    What captures is imported only where something asks for it.

    Args:
        options: what the tracker was told; None if only the phases that ask for it are captured.
        environ: whose credentials must not be stored.
    """

    def __init__(self, options: CaptureOptions | None, environ: Mapping[str, str]) -> None:
        """Capture nothing yet."""
        self._options = options
        self._environ = environ
        self._lanes: LaneSet | None = None
        self._lock = threading.Lock()
        self._is_over = False
        self.session: CaptureSession | None = None

    def start(self, lanes: LaneSet) -> None:
        """Begin, if the tracker asks for it, and listen to phases that do.

        Raises:
            ConfigurationError: if descriptors are to be captured, and another session of this process does that.
        """
        self._lanes = lanes
        lanes.on_capture = self._on_capture
        if self._options is not None:
            self._begin(self._options, captures_all=True)

    def _begin(self, options: CaptureOptions, *, captures_all: bool) -> None:
        from stormphase.capture import CaptureSession  # noqa: PLC0415 - only programs that capture load it

        assert self._lanes is not None  # noqa: S101 - called after `start`
        session = CaptureSession(self._lanes, options, captures_all=captures_all, environ=self._environ)
        session.install()
        self.session = session

    def _on_capture(self, wish: bool | str) -> None:  # noqa: FBT001 - what the phase was told
        """Begin for the first phase that asks for it, where the tracker did not.

        Raises:
            ConfigurationError: as `start` does.
        """
        from stormphase.capture import CaptureOptions  # noqa: PLC0415 - as above

        with self._lock:
            if self._is_over or wish is False:
                return
            if self.session is None:
                self._begin(CaptureOptions(mode="context" if wish is True else wish), captures_all=False)
            elif wish is not True:
                self.session.use_mode(wish)

    def stop(self) -> None:
        """End; what is kept can still be taken. A second call does nothing."""
        self._is_over = True
        if self._lanes is not None:
            self._lanes.on_capture = None
        if self.session is not None:
            self.session.remove()

    def lines_of(self, phase: PhaseHandle) -> Sequence[CapturedLine]:
        """Return what an ended phase said, and let go of it."""
        return () if self.session is None else self.session.take(phase).lines

    def after_fork_in_child(self) -> None:
        """Go on in a forked child, with what it says itself."""
        self._lock = threading.Lock()
        if self.session is not None:
            self.session.after_fork_in_child()

    def stats(self) -> dict[str, Any]:
        """Return the counts, or nothing if nothing was ever captured."""
        return {} if self.session is None else {"capture": self.session.stats()}
