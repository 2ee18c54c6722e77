"""Where phases go: a tracker, or for libraries the ambient one.

That is the tracker whose phase is open in the caller's context, so that runs in several threads or tasks stay apart;
else the one that was started last and has not stopped. A tracker pushes itself here when it has started and pops itself
when it stops. `stormphase.phase` looks here each time a phase is entered, so a library that was imported before the
tracker started is seen all the same, and one that never meets a tracker pays for one look.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

from stormphase._exits import segment_start_ns
from stormphase._noop import NOOP
from stormphase._phase import FINAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle


_MARK: Final = "stormphase"
_UNHEARD: Final = (
    "stormphase: the phases of this worker process go nowhere: a tracker runs in the process that started it, and none "
    "here. Send tracker.carrier() with the work, and write `with stormphase.worker(carrier):` around it; see "
    "docs/workers.md."
)

_log = logging.getLogger("stormphase")


class PhaseSource(Protocol):
    """What phases are entered on: a tracker.

    A source may also have a `level`: a number, or a name as `logging` has it, that the levels of phases are compared
    with; without one every level passes.
    """

    @property
    def lane_set(self) -> LaneSet | None:
        """The lanes, or None if nothing is recorded."""
        ...

    def enter_phase(
        self,
        name: str,
        attributes: Any = None,
        sync: bool = False,
        timeout_s: float | None = None,
    ) -> PhaseHandle:
        """Enter a phase on the caller's lane, or say why not."""
        ...


class Nowhere:
    """The source that records nothing: what is ambient while no tracker runs."""

    __slots__ = ()

    @property
    def lane_set(self) -> LaneSet | None:
        """None: nothing is recorded."""
        return None

    def enter_phase(
        self,
        name: str,
        attributes: Any = None,
        sync: bool = False,
        timeout_s: float | None = None,
    ) -> PhaseHandle:
        """Return the shared no-op."""
        del name, attributes, sync, timeout_s
        return NOOP

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle as the one `NOWHERE`, which is told from others by identity."""
        return "NOWHERE"


class Unheard(Nowhere):
    """The source of a worker process until its first phase: says once that a tracker runs in its parent, and none here.

    `multiprocessing` hands the parent's `_config` down to each process that it spawns, so a mark there reaches those
    alone, and neither other programs nor the environment. Pickled it is `NOWHERE`: what another process is, that
    finds out by itself.
    """

    __slots__ = ()

    def enter_phase(self, *args: Any, **kwargs: Any) -> PhaseHandle:
        """Say it, if it is so, and return the shared no-op."""
        AMBIENT.give_up()
        return super().enter_phase(*args, **kwargs)


class ByContext:
    """The source while several trackers run: each time it is used, the caller's context says which of them is meant."""

    __slots__ = ("_sources",)

    def __init__(self, sources: Sequence[PhaseSource]) -> None:
        """Choose among `sources`, given in the order of their starts."""
        self._sources = tuple(sources)

    def choose(self) -> PhaseSource:
        """Return the source whose phase is the innermost open one of the caller's context, else the last started.

        A phase that has ended counts where no open one is there, as in a task that outlives the phase it came from.
        """
        found = [(source, phase) for source in self._sources if (phase := _phase_in_context(source)) is not None]
        chosen = [(source, phase) for source, phase in found if phase._status not in FINAL] or found
        if len(chosen) > 1 and len({source.lane_set.now for source, _ in chosen}) == 1:  # type: ignore[union-attr]  # has a phase
            chosen.sort(key=lambda each: segment_start_ns(each[1]))
        return chosen[-1][0] if chosen else self._sources[-1]

    @property
    def lane_set(self) -> LaneSet | None:
        """The lanes of the one that is meant."""
        return self.choose().lane_set

    @property
    def level(self) -> Any:
        """The level of the one that is meant."""
        return getattr(self.choose(), "level", None)

    def enter_phase(
        self,
        name: str,
        attributes: Any = None,
        sync: bool = False,
        timeout_s: float | None = None,
    ) -> PhaseHandle:
        """Enter a phase on the one that is meant."""
        return self.choose().enter_phase(name, attributes, sync, timeout_s)


def _phase_in_context(source: PhaseSource) -> PhaseHandle | None:
    lanes = source.lane_set
    return None if lanes is None else lanes.current_phase()


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


def _current_process() -> Any:
    """Return what `multiprocessing` knows of this process; None if the program has not loaded it."""
    return getattr(sys.modules.get("multiprocessing.process"), "_current_process", None)


def _is_spawned() -> bool:
    """Return whether this is a process of multiprocessing's, or is about to become one: modules are imported first."""
    parent = getattr(sys.modules.get("multiprocessing.process"), "_parent_process", None)
    return parent is not None or getattr(_current_process(), "_inheriting", False)


def _parent_tracks() -> bool:
    config = getattr(_current_process(), "_config", None)
    return isinstance(config, dict) and _MARK in config


def _tell_children(*, runs: bool) -> None:
    """Mark what multiprocessing hands to each process that it spawns from now on; without it, do nothing."""
    config = getattr(_current_process(), "_config", None)
    if isinstance(config, dict):
        if runs:
            config[_MARK] = True
        else:
            config.pop(_MARK, None)


class Ambient:
    """Holds the tracker that runs, `ByContext` where several do, else `NOWHERE`.

    Thread-safe: `source` is read with one look and no lock. Fork-safe: a forked child keeps what was ambient.
    """

    __slots__ = ("_lock", "_nothing", "_started", "source")

    def __init__(self) -> None:
        """Start with nothing."""
        self._lock = threading.Lock()
        self._started: list[PhaseSource] = []
        self._nothing: Nowhere = Unheard() if _is_spawned() else NOWHERE
        self.source: PhaseSource = self._nothing

    def push(self, source: PhaseSource) -> None:
        """Make a source that has just started the ambient one."""
        with self._lock:
            self._started.append(source)
            self._nothing = NOWHERE  # Whoever starts one here knows how.
            self._settle()
            _tell_children(runs=True)

    def pop(self, source: PhaseSource) -> None:
        """Forget a source that stops; one that was never pushed is ignored, so that a second stop does no harm."""
        with self._lock:
            self._started = [other for other in self._started if other is not source]
            self._settle()
            _tell_children(runs=bool(self._started))

    def here_in_worker(self) -> PhaseSource | None:
        """Return where the phases of a tracker go that was made anew in a spawned worker, and is started in its parent.

        That is what `stormphase.worker` started here, else nowhere; None if this is no such worker.
        """
        if not (_is_spawned() and _parent_tracks()):
            return None
        source = self.here()
        if source.lane_set is None:
            self.give_up()
        return source

    def after_fork_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held, and finish what it was about."""
        self._lock = threading.Lock()
        self._settle()

    def _settle(self) -> None:
        started = self._started
        if len(started) > 1:
            self.source = ByContext(started)
        else:
            self.source = started[0] if started else self._nothing

    def give_up(self) -> None:
        """Let phases go nowhere from now on; in a worker process whose parent tracks, the log says so, once."""
        with self._lock:
            is_first = self._nothing is not NOWHERE
            self._nothing = NOWHERE
            self._settle()
        if is_first and _is_spawned() and _parent_tracks():
            _log.warning(_UNHEARD)

    def here(self) -> PhaseSource:
        """Return the source that phases of the caller's context belong to, itself and not what chooses it."""
        source = self.source
        return source.choose() if isinstance(source, ByContext) else source

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
