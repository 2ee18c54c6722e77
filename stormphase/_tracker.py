"""`PhaseTracker`: one session on one rank, from start to stop, and all that a program does with its phases."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from stormphase import _ambient, _carrying, _configuration, _decorator, _errors, _misuse, _native, _process
from stormphase._attribute_counts import AttributeCounts
from stormphase._bridge import DEFAULT_BRIDGE, Bridge, BridgeSession, DefaultBridge
from stormphase._clock import SystemClock
from stormphase._copying import CopiesToItself
from stormphase._counts import Counts
from stormphase._enter import enter_phase, no_metadata
from stormphase._model import RankIdentity
from stormphase._noop import NOOP, NOOP_TOKEN
from stormphase._phase import PhaseToken
from stormphase._recorder import PhaseRecorder
from stormphase._session import STOP_TIMEOUT_S, Session
from stormphase._sites import frame_above, through
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase._record import PhaseRecord
    from stormphase.capture import CaptureOptions, CaptureSession
    from stormphase.journal._options import JournalOptions
    from stormphase.typing import Clock, RecordStore, Sink

_MAX_STEP = 2**63 - 1

__all__ = ["DEFAULT_BRIDGE", "STOP_TIMEOUT_S", "Bridge", "BridgeSession", "PhaseTracker"]

# In flight where nothing has failed: a loop or a generator is over.
_NO_OUTCOMES: Final = (StopIteration, StopAsyncIteration, GeneratorExit)
_numbers: Final = itertools.count(1)  # One C call, so no lock.


@_native.enters_quickly
class PhaseTracker(CopiesToItself):
    """Tracks the phases of one session on this rank, from `start` to `stop`, which its `with` block calls.

    Thread-, task-, signal- and fork-safe. A forked child goes on with empty lanes under the phase open at the fork.

    A copy of it, also a deep one of a model that holds it, is itself. Its pickle refers to the tracker that runs where
    it is read, as `stormphase.phase` finds it: that is what comes out of it, or else an `AmbientTracker`.

    Args:
        name: the job, for people; shown on the session's span and in the summary.
        session_id: one launch of the job, on all ranks; by default `STORMPHASE_SESSION_ID`, the launcher's, or new.
        attempt: how often the session was restarted, from 0; by default `STORMPHASE_ATTEMPT`, else it is counted.
        rank: this process among the session's; by default found from the launcher (docs/identity.md), else 0.
        world_size: how many processes the session has; by default found from the launcher, else 1.
        bridge: an `OTelBridge`; by default one on the globally set OTel providers; None for none.
        store: a `RecordStore` that keeps every phase's record, such as `SqliteStore("runs.db")`; closed at stop.
        correlation_id: what else the run is known by; by default `STORMPHASE_CORRELATION_ID`, else the trace id.
        sinks: callables that take every `PhaseBoundary`, each on a worker thread of its own.
        on_misuse: "raise" for a `PhaseProtocolError`, or "record" to recover, count and never raise into training.
        level: phases given a lower one (a number, or a name as in `logging`) are shown only if they fail.
        summary: True prints the tree of phases at stop, on rank 0; "all" on every rank; by default only if
            `STORMPHASE_SUMMARY` is set, to 1 or to "all".
        stop_on_sigterm: whether a SIGTERM that would end the process stops the session first. A handler of the
            program's own is left to decide: it is called, and nothing else is done.
        journal: a directory, or `JournalOptions`, for a file that tells after any death what this rank was doing (see
            docs/journal.md); by default `STORMPHASE_DIR`, else none.
        hang_factor: report a phase that has been open this many times longer than the 99th percentile of its path, and
            for 10 s at least, once 20 of that path have ended; None reports only those given a `timeout_s`.
        capture: True for what is printed, logged and warned while phases are open, "fd" also for what C libraries and
            subprocesses write, or `CaptureOptions` (see docs/capture.md); `tracker.phase(capture=True)` for one phase.
        redact: regular expressions of what must not be stored or sent, beside what looks like a secret anyway (see
            docs/capture.md); of a match only the group named `secret` goes, if there is one.
        queue_bound: how many boundaries each sink's queue holds; beyond that the oldest are dropped and counted.
        clock: where times come from; tests give their own.

    Raises:
        ConfigurationError: if an argument cannot work, at construction; if identity is not found, or taken, at `start`.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        session_id: str | None = None,
        attempt: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        bridge: Bridge | DefaultBridge | None = DEFAULT_BRIDGE,
        sinks: Sequence[Sink] = (),
        store: RecordStore | None = None,
        correlation_id: str | None = None,
        on_misuse: str = "raise",
        level: int | str | None = None,
        summary: bool | str | None = None,
        stop_on_sigterm: bool = False,
        hang_factor: float | None = None,
        queue_bound: int = _configuration.QUEUE_BOUND,
        capture: CaptureOptions | bool | Literal["fd"] = False,
        journal: JournalOptions | str | os.PathLike[str] | None = None,
        redact: Iterable[str | re.Pattern[str]] = (),
        clock: Clock | None = None,
    ) -> None:
        """Check the arguments; nothing starts yet."""
        self._settings = _configuration.Settings(
            name=name,
            session_id=session_id,
            attempt=attempt,
            rank=rank,
            world_size=world_size,
            bridge=bridge,
            sinks=sinks,
            store=store,
            correlation_id=correlation_id,
            on_misuse=on_misuse,
            level=level,
            summary=summary,
            stop_on_sigterm=stop_on_sigterm,
            hang_factor=hang_factor,
            queue_bound=queue_bound,
            capture=capture,
            journal=journal,
            redact=redact,
            clock=SystemClock() if clock is None else clock,
        )
        self._recorder = PhaseRecorder(clock=self._settings.clock, on_misuse=on_misuse)
        self._may_start = [True]  # Taken by one C call, `pop`: of two threads one gets it.
        self._session: Session | None = None
        self._is_disabled = False
        self._number = 0  # Which start of this process it was.
        self._lanes: LaneSet  # Those of the session, while it runs; see `enter_phase`.
        self._counts = Counts()  # What was misused before the start.
        self._step: int | None = None

    # Start and stop

    def __enter__(self) -> Self:
        """Start, and return the tracker."""
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop; the block's exception, if any, is the session's outcome, and passes."""
        if self._session is not None:
            self._session.stop(exc, STOP_TIMEOUT_S)

    def start(self) -> Self:
        """Start the session and return the tracker. With `STORMPHASE_DISABLED=1` every call becomes a no-op.

        Raises:
            ConfigurationError: if it was started before, if identity or environment are wrong, or if Python runs
                without the GIL; nothing has started then, and once that is put right it may be called again.
        """
        try:
            self._may_start.pop()
        except IndexError:
            raise ConfigurationError(
                "A PhaseTracker can be started once.", setting="start", fix="Make a new PhaseTracker for each session."
            ) from None
        try:
            environ = dict(os.environ)
            if _configuration.is_disabled(environ):
                self._disable()
            else:
                self._start(environ)
        except BaseException:
            self._may_start.append(True)
            raise
        return self

    def _start(self, environ: Mapping[str, str]) -> None:
        self._number = next(_numbers)
        handled = sys.exc_info()[1]
        if handled is not None:
            _errors.note_handled(handled, self._number)
        recorder = PhaseRecorder(clock=self._settings.clock, on_misuse=self._settings.on_misuse)
        session = Session(self._settings, environ, recorder, self._on_stop)
        session.note_step(self._step)
        self._recorder = recorder
        self._session = session
        self._lanes = session.lanes
        if type(self).enter is PhaseTracker.enter:  # A subclass that overrides it keeps its own.
            # Looked up on the instance: one call saved a phase.
            self.enter = session.lanes.enter  # type: ignore[method-assign]
        _ambient.push(self)

    def _on_stop(self) -> None:
        for name in ("_lanes", "enter"):
            self.__dict__.pop(name, None)
        _ambient.pop(self)

    def _disable(self) -> None:
        self._is_disabled = True
        if type(self).enter_phase is PhaseTracker.enter_phase:
            self.enter_phase = _enter_nothing  # type: ignore[method-assign]

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the session: what is open becomes ABANDONED, the sinks get all, workers end.

        Where an exception passes, or is being handled, as in a `finally` or an `except` block, that is the session's
        outcome, as it is for a `with` block; unless it was being handled when the session began. So is the one that
        ends the program, where `atexit` calls this.

        A second call does nothing but wait for the first; before start, it does nothing at all. On a sink's own thread
        it returns at once, and the session stops on another one. Never raises, but lets KeyboardInterrupt pass.

        Args:
            timeout_s: how long to wait for sinks, in all; what they did not take by then is dropped and counted.
        """
        if self._session is not None:
            outcome = sys.exc_info()[1]
            is_passing = outcome is not None
            if outcome is None:
                outcome = _process.exception_at_exit()
            elif isinstance(outcome, _NO_OUTCOMES) or _errors.was_handled(outcome, self._number):
                outcome = None
            self._session.stop(outcome, timeout_s, is_passing=is_passing)

    def flush(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Return whether within `timeout_s` seconds all sinks had, and delivered, every boundary so far.

        Keeps its timeout by itself, also while a sink or the OTel SDK hangs. Once the session has stopped it says
        whether all was delivered then. On a sink's own thread it asks, does not wait, and returns False.
        """
        return True if self._session is None else self._session.sinks.flush(timeout_s)

    # Phases

    enter_phase = enter_phase

    def enter(
        self,
        name: str,
        attributes: Mapping[str, Any] | None = None,
        sync: bool = False,
        timeout_s: float | None = None,
        metadata: None = None,
    ) -> PhaseToken:
        """Enter a phase now and return the token that ends it, somewhere else on the same lane; see `enter_phase`."""
        if metadata is not None:
            raise no_metadata("enter")
        lanes = self._running_lanes("enter")
        if lanes is None:
            return NOOP_TOKEN
        phase = _seen_from(2, lanes.enter_phase(name, attributes, sync, timeout_s))
        return NOOP_TOKEN if phase is NOOP else PhaseToken.of(phase)

    def exit(self, token: PhaseToken, *, error: BaseException | None = None) -> None:
        """End the phase that `token` proves, as FAILED or CANCELLED if `error` is given.

        Raises:
            PhaseProtocolError: if the token is forged, copied, stale or another tracker's, or the phase is not the
                innermost one of the caller's lane.
        """
        if self._session is None:
            lanes = self._running_lanes("exit")
            if lanes is not None:
                lanes.exit(token, error=error)
            return
        self._session.lanes.exit(token, error=error)

    def acquire(self, token: PhaseToken) -> PhaseHandle:
        """Take over a phase that its owner released, on the caller's lane; returns its new handle.

        Raises:
            PhaseProtocolError: if the token is not the one that `release` returned, or was used before.
        """
        lanes = self._running_lanes("acquire")
        return NOOP if lanes is None or token is NOOP_TOKEN else lanes.acquire(token)

    def retry(self, previous: PhaseHandle | PhaseRecord, attributes: Mapping[str, Any] | None = None) -> PhaseHandle:
        """Enter a phase of the same name as `previous`, its attempt one higher and its span linked to it.

        Args:
            previous: the try before: its handle, or its record, also one of an earlier attempt of the session.
            attributes: copied and bounded now.

        Raises:
            PhaseProtocolError: if the tracker does not run.
            TypeError: if `previous` is neither; not with `on_misuse="record"`, which counts it and enters nothing.
        """
        lanes = self._running_lanes("enter")
        if lanes is None or previous is NOOP:
            return NOOP
        return lanes.retry(previous, attributes)

    phase = _decorator.phase

    def set_step(self, step: int | None) -> None:
        """Stamp `step` on every phase that is entered from now on, in any thread; before start, from the start on.

        Raises:
            TypeError: if it is neither an integer (of any kind, also NumPy's) nor None.
            ValueError: if it has more than 64 bits.
        """
        if step is not None and type(step) is not int:
            try:
                step = operator.index(step)
            except TypeError:
                if self._settings.on_misuse == "raise":
                    message = (
                        f"A step must be an integer, not {type(step).__name__}. Write tracker.set_step(int(step))."
                    )
                    raise TypeError(message) from None
                self._current_counts().add("bad_step")
                return
        if step is not None and not -_MAX_STEP <= step <= _MAX_STEP:
            if self._settings.on_misuse == "raise":
                message = f"A step must lie within {_MAX_STEP} of 0: no backend has room for more. Count from 0."
                raise ValueError(message)
            self._current_counts().add("bad_step")
            return
        self._step = step
        if self._session is not None:
            self._session.note_step(step)

    def _running_lanes(self, action: str) -> LaneSet | None:
        session = self._session
        if session is not None and session.is_running:
            return session.lanes
        # In a spawned worker its module made it anew; the one that was started is the parent's.
        is_new = session is None and not self._is_disabled
        if is_new and (elsewhere := _ambient.AMBIENT.here_in_worker()) is not None:
            return elsewhere.lane_set
        # While the session stops its sinks still work, and a phase of theirs is none, then as before; nor is one of a
        # thread whose phases are just being closed: an error would have them end by that.
        is_stopping = session is not None and (not session.has_closed_lanes or session.sinks.is_own_thread())
        if not (self._is_disabled or is_stopping):
            problem = _misuse.not_running(action, has_stopped=session is not None)
            if session is not None:
                session.lanes.misuse(problem)
            elif self._settings.on_misuse == "raise":
                raise problem
            else:
                self._counts.add(problem.reason)
        return None

    def _current_counts(self) -> Counts:
        return self._counts if self._session is None else self._session.lanes.counts

    # What is known

    @property
    def name(self) -> str | None:
        """The job's name."""
        return self._settings.name

    @property
    def level(self) -> int | None:
        """The level below which phases are shown only if they fail; None for none."""
        return self._settings.level

    @property
    def capture(self) -> CaptureSession | None:
        """What captures this session's output, once anything does; see docs/capture.md."""
        return None if self._session is None else self._session.capture.session

    @property
    def recorder(self) -> PhaseRecorder:
        """The recorder beneath."""
        return self._recorder

    @property
    def lane_set(self) -> LaneSet | None:
        """The lanes of this session and rank; None before start and when disabled."""
        return None if self._session is None else self._session.lanes

    @property
    def identity(self) -> RankIdentity:
        """Session, attempt, rank and world size; when disabled, one of a session called "disabled".

        Raises:
            PhaseProtocolError: before `start`.
        """
        if self._session is not None:
            return self._session.identity
        if self._is_disabled:
            return _disabled_identity(self._settings.rank or 0, self._settings.world_size or 1)
        raise _misuse.not_running("identify", has_stopped=False)

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.identity.session_id

    @property
    def is_running(self) -> bool:
        """Whether phases are recorded now."""
        return self._session is not None and self._session.is_running

    def stats(self) -> dict[str, Any]:
        """Return exact counts: per sink offered, handed_over, failed, queued, dropped; misuse; cut attributes.

        And those of `bridge`, `journal`, `store`, `capture` and your own patterns (`redaction`: texts, and their ns).
        """
        if self._session is not None:
            return self._session.stats()
        nothing = AttributeCounts().to_dict()
        return {"sinks": {}, "bridge": {}, "journal": {}, "misuse": self._counts.to_dict(), "attributes": nothing}

    environment = _carrying.environment
    carrier = _carrying.carrier

    def __reduce__(self) -> tuple[Any, ...]:
        """Find the tracker that runs where the pickle is read."""
        return _tracker_here, ()


class AmbientTracker(PhaseTracker):
    """Does what the tracker does that runs in the caller's process and context; while none does, nothing.

    It is what a pickled tracker becomes where none runs yet, as in a model that is loaded from a checkpoint or was sent
    to a worker process. Another tracker is started and stopped by who made it: `start` is refused, `stop` does nothing.
    """

    def __init__(self) -> None:
        """Hold nothing."""

    def __getattr__(self, name: str) -> Any:
        """Return what the tracker that runs has of it: all that the methods of `PhaseTracker` look at."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_running_here() or disabled_tracker(), name)

    def start(self) -> Self:
        """Refuse.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(
            "A PhaseTracker that was unpickled stands for the one that runs here, and cannot be started itself.",
            setting="start",
            fix="Start a PhaseTracker in this process, or work within stormphase.worker(); this one then uses it.",
        )

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Do nothing."""

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do nothing: it was not started."""


def _running_here() -> PhaseTracker | None:
    source = _ambient.AMBIENT.here()
    return source if isinstance(source, PhaseTracker) else None


def _tracker_here() -> PhaseTracker:
    return _running_here() or AmbientTracker()


@functools.cache
def disabled_tracker() -> PhaseTracker:
    """Return a tracker whose every call does nothing."""
    tracker = PhaseTracker(bridge=None)
    tracker._disable()
    return tracker


def _enter_nothing(
    name: str, attributes: Any = None, sync: bool = False, timeout_s: float | None = None, metadata: None = None
) -> PhaseHandle:
    if metadata is not None:
        raise no_metadata("enter_phase")
    del name, attributes, sync, timeout_s
    return NOOP


def _seen_from(level: int, phase: PhaseHandle) -> PhaseHandle:
    """Let the phase say that it was entered by the caller's caller, and not here."""
    if phase is not NOOP:
        frame = frame_above(level)
        phase._code = frame.f_code
        phase._instruction = frame.f_lasti if type(phase._instruction) is int else through(frame)
    return phase


def _disabled_identity(rank: int, world_size: int) -> RankIdentity:
    return RankIdentity(
        session_id="disabled",
        attempt=0,
        rank=rank,
        local_rank=rank,
        world_size=world_size,
        local_world_size=None,
        node_rank=None,
        host="",
        launcher="disabled",
    )
