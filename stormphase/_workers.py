"""Worker processes: a phase's context is given to one, and its phases then belong to the session that gave it.

A worker is to its session what a forked child is: another process of the same rank, with ids, a journal's file and
rows in the store of its own. Which phase its own hang under is said anew by each piece of work, so that the processes
of a pool may work for one phase after another, and for several sessions.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from stormphase import _ambient, _exits
from stormphase._bridge import DEFAULT_BRIDGE
from stormphase._carried import CARRIER_VARIABLE, Carried, carrier_in
from stormphase._configuration import is_disabled
from stormphase._copying import CopiesToItself
from stormphase._lane import Lane
from stormphase._liveness import own_process
from stormphase._model import PhaseStatus
from stormphase._phase import PhaseExtra
from stormphase._tracker import PhaseTracker, disabled_tracker
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from stormphase._bridge import Bridge, DefaultBridge
    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase.capture import CaptureOptions
    from stormphase.journal._options import JournalOptions
    from stormphase.typing import RecordStore, Sink

FLUSH_S: Final = 5.0
AS_GIVEN: Final = "as given"  # What the carrier says.


class worker(CopiesToItself):  # noqa: N801 - called like a function, and used as a block
    """Works for the phase of another process that a carrier names: phases inside the block hang under that one.

    The first block of a process starts a tracker for the carrier's session, which later blocks use again, whatever
    phase they work for, and which stops when the process exits. A forked child goes on with the tracker that it has.
    Meanwhile it is the ambient one, so `stormphase.phase` works as well. Where the carrier is empty, since the tracker
    that gave it did not run, nothing is recorded.

    When the block is left, all that was recorded so far is handed to store, bridge and sinks: pools and Ray may end a
    worker at any time after its answer. As an `async with` block it does not keep the loop waiting for that.

    Thread-, task- and fork-safe.

    Args:
        carrier: what `tracker.carrier()` returned; by default what `tracker.environment()` put into the environment.
        store: where records go; by default the same `SqliteStore` file, if this is the same host.
        journal: where the journal goes; by default the same directory, if it is there.
        capture: what is captured; by default the same.
        bridge: as for `PhaseTracker`; by default an `OTelBridge` on this process's global providers.
        sinks: as for `PhaseTracker`.
        flush_s: how many seconds the end of the block may wait for stores, bridge and sinks; 0 for not at all.

    Raises:
        ConfigurationError: if there is no carrier or it is none of ours, or store or journal cannot be used; when the
            block is entered.
    """

    def __init__(
        self,
        carrier: Mapping[str, str] | None = None,
        *,
        store: RecordStore | Literal["as given"] | None = AS_GIVEN,
        journal: JournalOptions | str | os.PathLike[str] | None = AS_GIVEN,
        capture: CaptureOptions | bool | Literal["fd", "as given"] = AS_GIVEN,
        bridge: Bridge | DefaultBridge | None = DEFAULT_BRIDGE,
        sinks: Sequence[Sink] = (),
        flush_s: float = FLUSH_S,
    ) -> None:
        """Keep what is given; nothing starts yet."""
        self._carrier = carrier
        self._given: dict[str, Any] = {"store": store, "journal": journal, "capture": capture}
        self._options: dict[str, Any] = {"bridge": bridge, "sinks": sinks}
        self._flush_s = flush_s
        self._tracker: PhaseTracker | None = None
        self._outer: PhaseHandle | None = None
        self._undo: Any = None

    def __enter__(self) -> PhaseTracker:
        """Start the session's tracker here, if it does not run, and return it."""
        carried = _carried(self._carrier)
        if carried is None:
            return disabled_tracker()
        with _crew.lock:
            tracker = _running(carried) or self._started(carried)
            _crew.blocks[tracker] = _crew.blocks.get(tracker, 0) + 1
        lanes = tracker.lane_set
        if lanes is None:
            return tracker
        self._tracker = tracker
        if tracker in _crew.started:
            tracker.set_step(carried.step)
        stand_in = _stand_in(lanes, carried) if carried.scope_ids else None
        self._outer = lanes.carrier.current_phase()
        self._undo = (lanes.carrier.variable, lanes.carrier.adopt(stand_in, carried.trace))
        return tracker

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Work for that phase no longer; what was recorded is handed over, and the block's exception passes.

        What that leaves open inside ends by it.
        """
        tracker = self._leave(exc)
        if tracker is not None:
            tracker.flush(self._flush_s)

    async def __aenter__(self) -> PhaseTracker:
        """Do as `with` does."""
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do as `with` does, and wait in a thread."""
        tracker = self._leave(exc)
        if tracker is not None:
            import asyncio  # noqa: PLC0415 - only for those who use it

            await asyncio.to_thread(tracker.flush, self._flush_s)

    def _leave(self, exc: BaseException | None) -> PhaseTracker | None:
        """Return the tracker if it is to be flushed."""
        tracker, self._tracker = self._tracker, None
        if tracker is None:
            return None
        lanes = tracker.lane_set
        if exc is not None and lanes is not None:
            _exits.unwind_above(lanes, self._outer, exc)
        variable, token = self._undo
        # Not in the context of the enter, as when a generator is closed by another task: that one is gone.
        with contextlib.suppress(ValueError):
            variable.reset(token)
        with _crew.lock:
            _crew.blocks[tracker] = max(_crew.blocks.get(tracker, 1) - 1, 0)
        session = tracker._session
        is_elsewhere = session is not None and session.is_child
        return tracker if is_elsewhere and self._flush_s > 0 else None

    def _started(self, carried: Carried) -> PhaseTracker:
        """Start a tracker for the carrier's session; those of others that have nothing to do stop."""
        for other in [each for each in _crew.started if not _crew.blocks.get(each)]:
            _crew.stop(other)
        given = {name: value for name, value in self._given.items() if value is not AS_GIVEN}
        tracker = PhaseTracker(
            carried.name,
            correlation_id=carried.correlation_id,
            level=carried.level,
            on_misuse=carried.on_misuse,
            summary=False,
            **{**_places_of(carried), **given},
            **self._options,
        )
        first = _crew.next_sequences.get(carried.launch, 1)
        tracker._settings = attrs.evolve(tracker._settings, carried=carried, first_sequence=first)
        tracker.start()
        _crew.started.append(tracker)
        return tracker


class _Crew:
    """The trackers that were started here for other processes, and how many blocks are open on each."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.started: list[PhaseTracker] = []
        self.blocks: dict[PhaseTracker, int] = {}
        # What a session has had here, when it comes again: in a store a phase is known by process and number.
        self.next_sequences: dict[tuple[str, int, int], int] = {}

    def stop(self, tracker: PhaseTracker) -> None:
        self.started.remove(tracker)
        self.blocks.pop(tracker, None)
        lanes = tracker.lane_set
        tracker.stop()
        if lanes is not None:
            self.next_sequences[lanes.session_id, lanes.attempt, lanes.rank] = next(lanes.sequence)

    def after_fork_in_child(self) -> None:
        """Replace the lock; what other threads had open is not open here."""
        self.lock = threading.RLock()


_crew: Final = _Crew()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_crew.after_fork_in_child)


def _carried(carrier: Mapping[str, str] | None) -> Carried | None:
    if is_disabled(os.environ):
        return None
    if carrier is not None:
        return Carried.of(carrier)
    found = carrier_in(os.environ)
    if not found:
        raise ConfigurationError(
            f"There is no {CARRIER_VARIABLE} in the environment.",
            setting="carrier",
            fix="Start the process with env=tracker.environment(), or give it what tracker.carrier() returned.",
        )
    return Carried.of(found)


def _running(carried: Carried) -> PhaseTracker | None:
    """Return the tracker of the carrier's session, attempt and rank that runs in this process, or None."""
    for source in reversed(_ambient.AMBIENT._started):
        lanes = source.lane_set
        if (
            isinstance(source, PhaseTracker)
            and source.is_running
            and lanes is not None
            and (lanes.session_id, lanes.attempt, lanes.rank) == carried.launch
        ):
            return source
    return None


def _places_of(carried: Carried) -> dict[str, Any]:
    """Return where records, journal and output go by the carrier's word, as far as that holds here.

    A path says something on its own host. Elsewhere a directory is taken for the same one if the session's is in it;
    SQLite's WAL works on no network file system, so its file is never the same one.
    """
    found: dict[str, Any] = {}
    is_same_host = carried.identity.host == own_process().host
    if carried.store is not None and is_same_host:
        from stormphase.stores import SqliteStore  # noqa: PLC0415 - only where there is one

        found["store"] = SqliteStore(**carried.store)
    if carried.journal is not None:
        from stormphase.journal._options import JournalOptions  # noqa: PLC0415 - as above

        options = JournalOptions(**carried.journal)
        if is_same_host or (options.directory / carried.identity.session_id).is_dir():
            found["journal"] = options
    if carried.redact:
        found["redact"] = _patterns(carried.redact)
    if carried.capture is not None:
        from stormphase.capture import CaptureOptions  # noqa: PLC0415 - as above

        patterns = _patterns(carried.capture.get("redact", ()))
        found["capture"] = CaptureOptions(**{**carried.capture, "redact": patterns})
    return found


def _patterns(given: Iterable[Any]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, flags) for pattern, flags in given)


def _stand_in(lanes: LaneSet, carried: Carried) -> PhaseHandle:
    """Return what stands here for the phase of the other process: nobody can end it, and others hang under it."""
    lane = Lane(lanes, threading.get_ident(), threading.current_thread().name, None)
    lane.is_inherited = True
    lane.is_plain = False
    lane.id_base = int(carried.scope_ids[-1], 16)
    path = lanes.paths.root
    for name in carried.path:
        path = path.find(name) or lanes.paths.child(path, name)
    frame = sys._getframe(2)
    phase = lanes.handle_type()
    phase._lane = lane
    phase._below = lane
    phase._path = path
    phase._attributes = None
    phase._step = carried.step
    phase._code = frame.f_code
    phase._instruction = frame.f_lasti
    phase._sequence = 0  # Phases of this process begin at 1; and so its id is the lane's base.
    phase._children_ns = 0
    phase._status = PhaseStatus.ACTIVE
    phase._context_token = None
    phase._entered_ns = lanes.now()
    phase._extra = PhaseExtra()
    phase._extra.above_ids = carried.scope_ids[:-1]
    return phase
