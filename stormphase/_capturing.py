"""What a session does about captured output: begins when the tracker or the first phase asks for it, ends with both."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase.capture import CapturedLine, CaptureOptions, CaptureSession


MAX_WAITING: Final = 4_096


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
        self._takers: list[OutputTaker] = []
        self._on_begin: Callable[[CaptureSession], object] | None = None
        self.session: CaptureSession | None = None

    def start(self, lanes: LaneSet, *, on_begin: Callable[[CaptureSession], object] | None = None) -> None:
        """Begin, if the tracker asks for it, and listen to phases that do.

        Args:
            lanes: the session's.
            on_begin: called once with what captures, before the first text is captured.

        Raises:
            ConfigurationError: if descriptors are to be captured, and another session of this process does that.
        """
        self._lanes = lanes
        self._on_begin = on_begin
        lanes.on_capture = self._on_capture
        if self._options is not None:
            self._begin(self._options, captures_all=True)

    def _begin(self, options: CaptureOptions, *, captures_all: bool) -> None:
        from stormphase.capture import CaptureSession  # noqa: PLC0415 - only programs that capture load it

        assert self._lanes is not None  # noqa: S101 - called after `start`
        session = CaptureSession(self._lanes, options, captures_all=captures_all, environ=self._environ)
        if self._on_begin is not None:
            self._on_begin(session)
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

    def taker(self, *, wants: Callable[[], bool] = lambda: True) -> OutputTaker:
        """Return what takes ended phases' output for one sink; of several each gets all of it, at its own pace.

        Args:
            wants: whether the sink takes output at all now; nothing is kept for one that does not.
        """
        taker = OutputTaker(self, wants)
        self._takers.append(taker)
        return taker

    def lines_for(self, taker: OutputTaker, phase: PhaseHandle) -> Sequence[CapturedLine]:
        """Return what an ended phase said, and keep it only for takers that have not had it."""
        session = self.session
        if session is None:
            return ()
        with self._lock:
            kept = taker.waiting.pop(phase._sequence, None)
            if kept is not None:
                return kept
            lines = session.take(phase).lines
            if lines:
                for other in self._takers:
                    if other is not taker and other.wants():
                        other.keep(phase._sequence, lines)
            return lines

    def after_fork_in_child(self) -> None:
        """Go on in a forked child, with what it says itself."""
        self._lock = threading.Lock()
        for taker in self._takers:
            taker.waiting.clear()
        if self.session is not None:
            self.session.after_fork_in_child()

    def stats(self) -> dict[str, Any]:
        """Return the counts, or nothing if nothing was ever captured."""
        if self.session is None:
            return {}
        untaken = sum(taker.untaken for taker in self._takers)
        return {"capture": {**self.session.stats(), "untaken_outputs": untaken}}


class OutputTaker:
    """Takes the output of ended phases for one sink, on its worker.

    Args:
        capture: the session's.
        wants: whether the sink takes output at all now.

    Attributes:
        waiting: what other sinks have been given and this one has not, by the phase's number.
        untaken: how many outputs were too many to wait.
    """

    def __init__(self, capture: SessionCapture, wants: Callable[[], bool]) -> None:
        """Wait for nothing yet."""
        self._capture = capture
        self.wants = wants
        self.waiting: dict[int, Sequence[CapturedLine]] = {}
        self.untaken = 0

    def __call__(self, phase: PhaseHandle) -> Sequence[CapturedLine]:
        """Return what an ended phase said."""
        return self._capture.lines_for(self, phase)

    def keep(self, sequence: int, lines: Sequence[CapturedLine]) -> None:
        """Keep what another sink was given until it is asked for; of too many the oldest goes, and is counted."""
        if len(self.waiting) >= MAX_WAITING:
            self.waiting.pop(next(iter(self.waiting)))
            self.untaken += 1
        self.waiting[sequence] = lines
