"""What a program prints, plain and captured: bytes, a progress bar, and everything on its way through descriptor 1."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from typing import TYPE_CHECKING, TextIO

from measure import Subject, UndeliveredError
from ours_captured import capture_of
from workload import OUTER

from stormphase import PhaseTracker

if TYPE_CHECKING:
    from stormphase._phase import PhaseHandle

LINE = "step 100 loss 0.125"
BINARY_LINES = 64
_WAIT_S = 0.000_5
_PATIENCE_S = 10.0


def binary_chunk() -> bytes:
    """Return 64 KiB that are no text, in lines of 1 KiB."""
    noise = random.Random(1)
    return b"".join(noise.randbytes(1_023).replace(b"\n", b"\r") + b"\n" for _ in range(BINARY_LINES))


class Lines(Subject):
    """Prints short lines to a file, with no capture."""

    name = "print to a file of its own"
    largest_batch = 100_000

    def open(self) -> None:
        """Make the file."""
        self._file = tempfile.TemporaryFile("w", encoding="utf-8")  # noqa: SIM115 - closed in `close`
        self._stream: TextIO = self._file

    def batch(self, count: int) -> None:
        """Print `count` lines."""
        stream = self._stream
        for _ in range(count):
            print(LINE, file=stream)

    def settle(self) -> None:
        """Empty the file."""
        self._stream.flush()
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        os.ftruncate(self._file.fileno(), 0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class BytesLines(Lines):
    """Writes short lines of bytes to the buffer beneath."""

    name = "lines of bytes to a file"

    def batch(self, count: int) -> None:
        """Write `count` lines."""
        write = self._stream.buffer.write
        data = f"{LINE}\n".encode()
        for _ in range(count):
            write(data)


class Binary(Lines):
    """Writes 64 KiB of binary data at a time."""

    name = "64 KiB of binary data to a file"
    largest_batch = 200
    _data = binary_chunk()

    def batch(self, count: int) -> None:
        """Write `count` times 64 KiB."""
        write = self._stream.buffer.write
        data = self._data
        for _ in range(count):
            write(data)


class Bar(Lines):
    """Draws a progress bar over and over, and flushes each time."""

    name = "updates of a progress bar in a file"
    _drawn = 0

    def batch(self, count: int) -> None:
        """Draw it `count` times."""
        write, flush = self._stream.write, self._stream.flush
        for number in range(self._drawn, self._drawn + count):
            write(f"\r{number:9} of many |###########         | 1.23s/it loss=0.125")
            flush()
        self._drawn += count


class _Captured(Lines):
    """The same in one long phase that is captured, far over its bounds; the lines it accounts for prove delivery."""

    mode: bool | str = True
    delivered_per_operation = 1
    _phase: PhaseHandle

    def open(self) -> None:
        """Start a tracker that captures this stream and the one that is there, and enter the phase."""
        super().open()
        self._stream = self._captured_stream()
        before, sys.stdout = sys.stdout, self._stream
        self._tracker = PhaseTracker("benchmark", bridge=None, capture=self.mode).start()
        sys.stdout = before  # The stream is held here, and so it is seen as before.
        self._phase = self._tracker.enter_phase(OUTER)

    def _captured_stream(self) -> TextIO:
        return self._stream

    def close(self) -> None:
        """Look at what was kept, and stop the tracker."""
        output = capture_of(self._tracker).output_of(self._phase.scope_id)
        self._kept = [line.text for line in output.lines if line.stream != "cut"]
        self._delivered = len(self._kept) + output.cut_lines
        self._phase.close()
        self._tracker.stop()
        super().close()

    def delivered_count(self) -> int:
        """How many lines were kept, or left out and counted."""
        return self._delivered


class CapturedBytesLines(_Captured, BytesLines):
    """Lines of bytes, captured."""

    name = "lines of bytes to a file, captured"


class CapturedBinary(_Captured, Binary):
    """Binary data, captured."""

    name = "64 KiB of binary data to a file, captured"
    delivered_per_operation = BINARY_LINES


class CapturedBar(_Captured, Bar):
    """A progress bar, captured: of all its states the last one is kept."""

    name = "updates of a progress bar in a file, captured"
    delivered_per_operation = 0

    def delivered_count(self) -> int:
        """How many lines there are beside the last state."""
        if not self._kept[-1].lstrip().startswith(f"{self._drawn - 1} of many"):
            message = f"The bar was kept as {self._kept[-1]!r}, and last looked otherwise."
            raise UndeliveredError(message)
        return self._delivered - 1


class CapturedDescriptor(_Captured):
    """Prints to descriptor 1 while that is captured: settled once the process between has shown all of it."""

    name = "print to a file, descriptor captured"
    mode = "fd"
    _owed_bytes = 0

    def _captured_stream(self) -> TextIO:
        self._saved = os.dup(1)
        os.dup2(self._file.fileno(), 1)
        return open(1, "w", encoding="utf-8", closefd=False)

    def batch(self, count: int) -> None:
        """Print `count` lines."""
        super().batch(count)
        self._owed_bytes += count * (len(LINE) + 1)

    def settle(self) -> None:
        """Wait until all has arrived in the file, and empty that."""
        self._stream.flush()
        deadline = time.monotonic() + _PATIENCE_S
        while os.fstat(self._file.fileno()).st_size < self._owed_bytes:
            if time.monotonic() > deadline:
                message = "What was printed to descriptor 1 did not arrive."
                raise UndeliveredError(message)
            time.sleep(_WAIT_S)
        self._owed_bytes = 0
        super().settle()

    def close(self) -> None:
        """Lead descriptor 1 to where it led before."""
        super().close()
        os.dup2(self._saved, 1)
        os.close(self._saved)


class CapturedDescriptorBytes(CapturedDescriptor, BytesLines):
    """Writes lines of bytes to descriptor 1 while that is captured."""

    name = "lines of bytes to a file, descriptor captured"
