"""Where phases go: a tracker, or for libraries the ambient one, which is the most recently started and not stopped.

A tracker pushes itself here when it has started and pops itself when it stops. `stormphase.phase` looks here each time
a phase is entered, so a library that was imported before the tracker started is seen all the same, and one that never
meets a tracker pays for one look.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

from stormphase._noop import NOOP

if TYPE_CHECKING:
    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle


class PhaseSource(Protocol):
    """What phases are entered on: a tracker.

    A source may also have a `level`: a number, or a name as `logging` has it, that the levels of phases are compared
    with; without one every level passes.
    """

    @property
    def lane_set(self) -> LaneSet | None:
        """The lanes, or None if nothing is recorded."""
        ...

    def enter_phase(self, name: str, attributes: Any = None, sync: bool = False) -> PhaseHandle:  # noqa: FBT001, FBT002 - `_enter`
        """Enter a phase on the caller's lane, or say why not."""
        ...


class Nowhere:
    """The source that records nothing: what is ambient while no tracker runs."""

    __slots__ = ()

    @property
    def lane_set(self) -> LaneSet | None:
        """None: nothing is recorded."""
        return None

    def enter_phase(self, name: str, attributes: Any = None, sync: bool = False) -> PhaseHandle:  # noqa: FBT001, FBT002 - `_enter`
        """Return the shared no-op."""
        del name, attributes, sync
        return NOOP

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle as the one `NOWHERE`, which is told from others by identity."""
        return "NOWHERE"


class Holder(Protocol):
    """Knows a source, which for the ambient one changes as trackers start and stop."""

    @property
    def source(self) -> PhaseSource:
        """Where a phase entered now goes."""
        ...


class Fixed:
    """Holds one source for good: that of `tracker.phase`.

    Pickled it becomes the ambient one: a tracker belongs to its process.
    """

    __slots__ = ("source",)

    def __init__(self, source: PhaseSource) -> None:
        """Keep the source."""
        self.source = source

    def __reduce__(self) -> tuple[Any, ...]:
        """Find the ambient tracker where the pickle is read."""
        return _ambient_here, ()

    def __deepcopy__(self, memo: object) -> Fixed:
        """Return itself: within the process the tracker is at hand."""
        return self


NOWHERE: Final = Nowhere()


class Ambient:
    """Holds the most recently started tracker that has not stopped, else `NOWHERE`.

    Thread-safe: `source` is read with one look and no lock. Fork-safe: a forked child keeps what was ambient.
    """

    __slots__ = ("_lock", "_started", "source")

    def __init__(self) -> None:
        """Start with nothing."""
        self._lock = threading.Lock()
        self._started: list[PhaseSource] = []
        self.source: PhaseSource = NOWHERE

    def push(self, source: PhaseSource) -> None:
        """Make a source that has just started the ambient one."""
        with self._lock:
            self._started.append(source)
            self.source = source

    def pop(self, source: PhaseSource) -> None:
        """Forget a source that stops; one that was never pushed is ignored, so that a second stop does no harm."""
        with self._lock:
            self._started = [other for other in self._started if other is not source]
            self._settle()

    def after_fork_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held, and finish what it was about."""
        self._lock = threading.Lock()
        self._settle()

    def _settle(self) -> None:
        self.source = self._started[-1] if self._started else NOWHERE

    def __reduce__(self) -> str:
        """Pickle as the one of the process that reads it."""
        return "AMBIENT"


AMBIENT: Final = Ambient()


def _ambient_here() -> Ambient:
    return AMBIENT


push: Final = AMBIENT.push
pop: Final = AMBIENT.pop

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=AMBIENT.after_fork_in_child)
