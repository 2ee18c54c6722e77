"""stormphase with captured output: a phase that says nothing, and prints to a file, plain and captured."""

from __future__ import annotations

import sys
import tempfile
from typing import TYPE_CHECKING

from measure import Subject
from ours import Root
from workload import OUTER

from stormphase import PhaseTracker

if TYPE_CHECKING:
    from stormphase.capture import CaptureSession


def capture_of(tracker: PhaseTracker) -> CaptureSession:
    """Return what captures the tracker's output."""
    capture = tracker.capture
    assert capture is not None
    return capture


class Silent(Root):
    """Phases at the root with capture on, in which nothing is printed."""

    name = "stormphase, at the root, capture on"

    def open(self) -> None:
        """Start a tracker that captures, and rest until a batch."""
        self._tracker = PhaseTracker("benchmark", bridge=None, capture=True)
        self._tracker.start()
        capture_of(self._tracker).remove()

    def prepare(self) -> None:
        """Capture."""
        capture_of(self._tracker).install()

    def settle(self) -> None:
        """Leave the streams to the others."""
        capture_of(self._tracker).remove()


class PlainPrint(Subject):
    """Prints of one short line to a file, with no capture."""

    name = "print to a file"

    def open(self) -> None:
        """Make the file."""
        self._file = tempfile.TemporaryFile("w", encoding="utf-8")  # noqa: SIM115 - closed in `close`

    def prepare(self) -> None:
        """Print there."""
        self._stdout, sys.stdout = sys.stdout, self._file

    def batch(self, count: int) -> None:
        """Print `count` lines."""
        for _ in range(count):
            print("step 100 loss 0.125")

    def settle(self) -> None:
        """Print elsewhere, and empty the file."""
        sys.stdout = self._stdout
        self._file.seek(0)
        self._file.truncate()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CapturedPrint(PlainPrint):
    """The same in one long phase that is captured, and far over its bounds: what a print adds includes making room."""

    name = "print to a file, captured"

    def open(self) -> None:
        """Start a tracker that captures, and enter the phase."""
        super().open()
        self._tracker = PhaseTracker("benchmark", bridge=None, capture=True).start()
        self._phase = self._tracker.enter_phase(OUTER)
        capture_of(self._tracker).remove()

    def prepare(self) -> None:
        """Print to the file, and capture."""
        super().prepare()
        capture_of(self._tracker).install()

    def settle(self) -> None:
        """Capture no more."""
        capture_of(self._tracker).remove()
        super().settle()

    def close(self) -> None:
        """Stop the tracker."""
        self._phase.close()
        self._tracker.stop()
        super().close()
