"""The Protocols that stormphase accepts: what a clock, a sink and a record store must offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stormphase._phase_boundary import PhaseBoundary
    from stormphase._record import PhaseRecord
    from stormphase.stores import RecordQuery


@runtime_checkable
class Clock(Protocol):
    """Where all times come from; both methods may be called from any thread.

    `monotonic_ns` must never go backwards. The two need not share an epoch: one anchor per process relates them.
    """

    def monotonic_ns(self) -> int:
        """Return integer nanoseconds that never go backwards."""
        ...

    def wall_ns(self) -> int:
        """Return integer nanoseconds since the Unix epoch, UTC."""
        ...


@runtime_checkable
class Sink(Protocol):
    """Takes boundaries off the training thread, one at a time and always on the same worker thread.

    It may raise, hang or be slow: that costs training and the other sinks nothing, and is counted.
    """

    def __call__(self, boundary: PhaseBoundary, /) -> object:
        """Take one boundary; what it returns is ignored."""
        ...


@runtime_checkable
class RecordStore(Protocol):
    """Keeps records; `stormphase.testing.RecordStoreConformance` checks one against all that stands here.

    A tracker calls `begin` and `end` on one worker thread, never on the training thread, and hands over several records
    at a time. Each call is kept as a whole or not at all: a call that raises has kept nothing, and is made again with
    the same records, so doing a thing twice must be the same as doing it once. It may hang or be slow: the tracker's
    bounded queue waits, and what that cannot hold is dropped and counted.
    """

    def begin(self, records: Sequence[PhaseRecord], /) -> object:
        """Keep open records, so that a process that dies leaves them visibly unfinished.

        A record that is kept already, open or ended, stays as it is: two records are one if their `key` is the same.
        """
        ...

    def end(self, records: Sequence[PhaseRecord], /) -> object:
        """Keep ended records with their output, each in place of the open one, if that was ever begun.

        The first end of a record counts; a later one changes nothing.
        """
        ...

    def query(self, wanted: RecordQuery | None = None, /) -> Iterator[PhaseRecord]:
        """Return the records that `wanted.matches`, all if it is None, in the order in which they were entered.

        May be called from any thread, also while records are written and after `close`.
        """
        ...

    def close(self) -> object:
        """Release files, connections and threads: no records come for now. A later call may open them again."""
        ...
