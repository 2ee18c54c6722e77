"""A journal that is written by hand: no worker runs, so that a test decides when it folds, and on which thread."""

from __future__ import annotations

import threading
import weakref

from journal_sample import FACTS

from stormphase._liveness import own_process
from stormphase._recorder import PhaseRecorder
from stormphase.journal import read_journal
from stormphase.journal._file import MIN_BYTES
from stormphase.journal._journal import OpenJournal

SLOTS = 226  # of a segment without blobs


class TickingClock:
    """Moves on by one nanosecond with every reading, so that no two times are the same."""

    def __init__(self):
        self.now_ns = 1_000

    def monotonic_ns(self):
        """Return one more than the last time."""
        self.now_ns += 1
        return self.now_ns

    def wall_ns(self):
        """Return a wall time that belongs to it."""
        return 1_700_000_000_000_000_000 + self.monotonic_ns()


class Writing:
    """Lanes whose phases are written to a journal of their own."""

    def __init__(self, path, max_bytes=MIN_BYTES, *, clock=None, on_misuse="raise", **options):
        self.path = path
        self.lanes = PhaseRecorder(clock=clock or TickingClock(), on_misuse=on_misuse).lane_set("s", 0)
        facts = {**FACTS, "main_thread_id": threading.main_thread().ident}
        self.journal = OpenJournal(path, max_bytes, self.lanes, own_process(), facts, **options)
        self.journal._worker.start = lambda: False
        self.lanes.journal = self.journal
        self.file = self.journal.file
        self.segments = self.journal._segments
        self.folder = self.journal._folder
        self._closer = weakref.finalize(self, self.file.close)

    def close(self):
        """Close the file, as it is."""
        self._closer()

    def fold(self):
        """Do what the worker does with full segments."""
        while (segment := self.journal._worker.take_back()) is not None:
            self.journal._take(segment)

    def tick(self, times=1):
        """Let so many fifths of a second pass, and do what the worker does with each."""
        for _ in range(times):
            self.fold()
            self.journal._tick()

    def fill(self, name="filler", count=SLOTS):
        """Enter and exit so many plain phases: a segment full, or the rest of one and the beginning of the next."""
        enter_phase = self.lanes.enter_phase
        for _ in range(count):
            with enter_phase(name):
                pass

    def read(self, ended_limit=None):
        """Return what the journal says."""
        return read_journal(self.path, ended_limit=ended_limit)


def count_of(image):
    """Return how many phases an image knows to have ended, added up or not."""
    return sum(totals.count for totals in image.totals.values()) + image.unfolded
