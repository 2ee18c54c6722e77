"""The Protocols that stormphase accepts: what a clock and a sink must offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from stormphase._model import PhaseBoundary


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


class Sink(Protocol):
    """Takes boundaries off the training thread, one at a time and always on the same worker thread.

    It may raise, hang or be slow: that costs training and the other sinks nothing, and is counted.
    """

    def __call__(self, boundary: PhaseBoundary, /) -> object:
        """Take one boundary; what it returns is ignored."""
        ...
