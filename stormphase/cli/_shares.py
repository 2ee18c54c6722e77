"""Has several processes do what one would take a minute for: each its share, the outcomes in order."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Item = TypeVar("Item")
    Outcome = TypeVar("Outcome")

BATCH: Final = 32
_MOST: Final = 8
_FEW: Final = 4 * BATCH


def processes_for(count: int) -> int:
    """Return how many processes so many items are worth: one if they are few, or if forking is not safe."""
    if count < _FEW or not sys.platform.startswith("linux") or threading.active_count() > 1:
        return 1
    return min(len(os.sched_getaffinity(0)), _MOST)


def shared_out(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Iterable[Outcome]], processes: int
) -> Iterator[Outcome]:
    """Yield the outcomes of `work`, in the order of the items.

    What a forked process cannot do, or hand over, is done here: so errors are raised here, and a process that the
    system kills costs time and nothing else. Not to be called while other threads run. None is left at the end.

    Args:
        items: what is to be done.
        work: gives the outcomes of some consecutive items; called in forked processes, and here.
        processes: how many to fork; none if it is one.
    """
    if processes <= 1:
        yield from work(items)
        return
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    workers: list[_Worker | None] = []
    try:
        for number in range(processes):
            workers.append(_Worker.forked(batches[number::processes], work, workers))
        for index, batch in enumerate(batches):
            worker = workers[index % processes]
            outcomes = None if worker is None else worker.next()
            yield from work(batch) if outcomes is None else outcomes
    finally:
        for worker in workers:
            if worker is not None:
                worker.end()


class _Worker:
    """A forked process, and what it says."""

    def __init__(self, pid: int, said: IO[bytes]) -> None:
        """Listen to `said`."""
        self._pid = pid
        self.said = said

    @classmethod
    def forked(
        cls, batches: Sequence[Any], work: Callable[[Any], Iterable[Any]], others: Sequence[_Worker | None]
    ) -> _Worker | None:
        """Return one that works; None if there can be no more processes or files."""
        try:
            ours, theirs = os.pipe()
        except OSError:
            return None
        try:
            pid = os.fork()
        except OSError:
            os.close(ours)
            os.close(theirs)
            return None
        if pid == 0:
            # Nothing of the process that was forked may go on here, not even its way of ending.
            with contextlib.suppress(BaseException):
                os.close(ours)
                for other in others:
                    if other is not None:
                        other.said.close()
                _tell(theirs, batches, work)
            os._exit(0)
        os.close(theirs)
        return cls(pid, os.fdopen(ours, "rb"))

    def next(self) -> list[Any] | None:
        """Return the outcomes of the next batch; None from the one on that it could not do, or hand over."""
        if self.said.closed:
            return None
        try:
            outcomes: list[Any] = pickle.load(self.said)  # noqa: S301 - from this program's own fork
        except Exception:  # noqa: BLE001 - whatever it is, it is done here instead
            self.said.close()
            return None
        return outcomes

    def end(self) -> None:
        """See to it that it is gone: it has nothing but its share of the reading."""
        self.said.close()
        with contextlib.suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.waitpid(self._pid, 0)


def _tell(fd: int, batches: Sequence[Any], work: Callable[[Any], Iterable[Any]]) -> None:
    with os.fdopen(fd, "wb") as stream:
        for batch in batches:
            pickle.dump(list(work(batch)), stream, pickle.HIGHEST_PROTOCOL)
            stream.flush()
