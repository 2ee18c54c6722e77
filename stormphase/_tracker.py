"""`PhaseTracker`: one session on one rank, from start to stop. Wires recorder, sinks, bridge and summary."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from stormphase import _ambient, _decorator, _drain, _misuse
from stormphase._boundary import enter_boundary, exit_boundary
from stormphase._clock import ClockAnchor, SystemClock
from stormphase._model import RankIdentity
from stormphase._noop import NOOP, NOOP_TOKEN
from stormphase._rank import ProcessFacts, detect_rank
from stormphase._recorder import PhaseRecorder
from stormphase._signals import SigtermHook
from stormphase._summary import SessionSummary
from stormphase.exceptions import ConfigurationError
from stormphase.typing import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from stormphase._lanes import ContextCarrier, LaneSet
    from stormphase._phase import PhaseHandle, PhaseToken
    from stormphase.typing import Sink

STOP_TIMEOUT_S: Final = 10.0

_log = logging.getLogger("stormphase")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})


@attrs.frozen
class BridgeSession:
    """What a bridge learns of the session when it is attached.

    Attributes:
        name: the job's name, as given to the tracker.
        identity: session, attempt, rank, world size.
        pid: the process that started the session; a forked child sends no session or rank span.
        clock: where times come from.
        anchor: relates the clock's two times.
        started_ns: when the session started, monotonic.
        environ: the environment, as it was at start.
    """

    name: str | None
    identity: RankIdentity
    pid: int
    clock: Clock
    anchor: ClockAnchor
    started_ns: int
    environ: Mapping[str, str]


class Bridge(Protocol):
    """What turns phases into another system's spans: `stormphase.otel.OTelBridge`, or a user's own.

    `attach`, `bind` and `environment` are called on the caller's thread, `exit_hook` on every exiting one, the others
    on the bridge's own worker.
    """

    exit_hook: Callable[[PhaseHandle], object] | None

    def attach(self, session: BridgeSession) -> ContextCarrier:
        """Get ready, and return what carries the current phase."""
        ...

    def bind(self, lanes: LaneSet) -> None:
        """Learn the lanes, right after `attach`."""
        ...

    def take(self, phase: PhaseHandle) -> object:
        """Take one ended phase."""
        ...

    def tick(self) -> object:
        """Do what is due now and then."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Deliver what was taken; return whether all of it was."""
        ...

    def finish(self, outcome: BaseException | None) -> object:
        """Take note that the session has ended."""
        ...

    def after_fork_in_child(self) -> None:
        """Forget what is the parent's."""
        ...

    def stats(self) -> dict[str, int]:
        """Return exact counts by name."""
        ...

    def environment(self) -> dict[str, str]:
        """Return the variables by which a child process finds its parent span."""
        ...


class _DefaultBridge:
    """Stands for the bridge on the globally set OTel providers; `stormphase/__init__` says how to make one."""

    make: Callable[[], Bridge] | None = None


DEFAULT_BRIDGE: Final = _DefaultBridge()

_running: weakref.WeakSet[PhaseTracker] = weakref.WeakSet()
_used_sessions: dict[tuple[str, int, int], int] = {}
_process_lock = threading.Lock()
_fork_guard: list[bool] = []


class PhaseTracker:
    """Tracks the phases of one session on this rank, from `start` to `stop`, which its `with` block calls.

    Thread-, task- and fork-safe. A forked child goes on with empty lanes, under the phase that was open at the fork.

    Args:
        name: the job, for people; shown on the session's span and in the summary.
        session_id: one launch of the job, the same on all ranks; by default found from the launcher (see
            docs/identity.md), else `STORMPHASE_SESSION_ID`, else new.
        rank: this process among the session's; by default found from the launcher, else 0.
        world_size: how many processes the session has; by default found from the launcher, else 1.
        bridge: an `OTelBridge`; by default one on the globally set OTel providers; None for none.
        sinks: callables that take every `PhaseBoundary`, each on a worker thread of its own.
        on_misuse: "raise" for a `PhaseProtocolError`, or "record" to recover, count and never raise into training.
        summary: True prints the tree of phases at stop, on rank 0; "all" on every rank; by default only if
            `STORMPHASE_SUMMARY` is set.
        stop_on_sigterm: whether SIGTERM stops the session in order and then does what it did before.
        queue_bound: how many boundaries each sink's queue holds; beyond that the oldest are dropped and counted.
        clock: where times come from; tests give their own.

    Raises:
        ConfigurationError: if an argument cannot work, at construction; if identity cannot be found, at `start`.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        session_id: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        bridge: Bridge | _DefaultBridge | None = DEFAULT_BRIDGE,
        sinks: Sequence[Sink] = (),
        on_misuse: str = "raise",
        summary: bool | str | None = None,
        stop_on_sigterm: bool = False,
        queue_bound: int = _drain.QUEUE_BOUND,
        clock: Clock | None = None,
    ) -> None:
        """Check the arguments; nothing starts yet."""
        self.name = name
        self._session_id = session_id
        self._rank = rank
        self._world_size = world_size
        self._bridge_argument = bridge
        self._sinks = _checked_sinks(sinks)
        self._on_misuse = on_misuse
        self._summary_argument = _checked_summary(summary)
        self._stop_on_sigterm = stop_on_sigterm
        self._queue_bound = _checked_bound(queue_bound)
        self._clock: Clock = SystemClock() if clock is None else clock
        self._recorder = PhaseRecorder(clock=self._clock, on_misuse=on_misuse)
        self._lock = threading.Lock()
        self._lanes: LaneSet | None = None
        self._identity: RankIdentity | None = None
        self._bridge: Bridge | None = None
        self._summary: SessionSummary | None = None
        self._workers: list[_drain.SinkWorker] = []
        self._sigterm: SigtermHook | None = None
        self._outcome: BaseException | None = None
        self._has_stopped = False
        self._is_disabled = False

    # Start and stop

    def __enter__(self) -> PhaseTracker:  # noqa: PYI034 - typing.Self needs CPython 3.11
        """Start, and return the tracker."""
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop; the block's exception, if any, is the session's outcome, and passes."""
        self._stop(exc, STOP_TIMEOUT_S)

    def start(self) -> PhaseTracker:
        """Start the session and return the tracker. With `STORMPHASE_DISABLED=1` every call becomes a no-op.

        Raises:
            ConfigurationError: if it was started before, or identity or environment are wrong.
        """
        with self._lock:
            if self._lanes is not None or self._has_stopped or self._is_disabled:
                raise ConfigurationError(
                    "A PhaseTracker can be started once.",
                    setting="start",
                    fix="Make a new PhaseTracker for each session.",
                )
            environ = dict(os.environ)
            if _flag(environ, "STORMPHASE_DISABLED"):
                self._disable()
                return self
            self._start(environ)
        _running.add(self)
        _remember_fork()
        _ambient.push(self)
        atexit.register(self._stop_at_exit)
        return self

    def _start(self, environ: Mapping[str, str]) -> None:
        wants_summary = self._wants_summary(environ)
        found = detect_rank(
            environ,
            session_id=self._session_id,
            rank=self._rank,
            world_size=self._world_size,
            process=ProcessFacts.of_this_process(),
        )
        identity = _unique_in_process(found, is_explicit=self._session_id is not None)
        bridge = self._bridge_argument
        if isinstance(bridge, _DefaultBridge):
            bridge = None if bridge.make is None else bridge.make()
        carrier = None if bridge is None else bridge.attach(self._bridge_session(identity, environ))
        lanes = self._recorder.lane_set(identity.session_id, identity.rank, attempt=identity.attempt, carrier=carrier)
        if bridge is not None:
            bridge.bind(lanes)
        self._identity = identity
        self._bridge = bridge
        self._lanes = lanes
        self._summary = (
            SessionSummary(self.name, identity, lanes, started_ns=self._clock.monotonic_ns())
            if wants_summary == "all" or (wants_summary and identity.rank == 0)
            else None
        )
        self._connect(lanes)
        if self._stop_on_sigterm:
            self._sigterm = SigtermHook(self._stop_for_sigterm)
        self._bind_hot_path(lanes)

    def _bridge_session(self, identity: RankIdentity, environ: Mapping[str, str]) -> BridgeSession:
        return BridgeSession(
            name=self.name,
            identity=identity,
            pid=os.getpid(),
            clock=self._clock,
            anchor=self._recorder.anchor,
            started_ns=self._clock.monotonic_ns(),
            environ=environ,
        )

    def _connect(self, lanes: LaneSet) -> None:
        """Give each sink its worker, and the lanes their queues."""
        on_enter: list[Callable[[Any], object]] = []
        on_exit: list[Callable[[Any], object]] = []
        bridge, summary = self._bridge, self._summary
        if bridge is not None:
            if bridge.exit_hook is not None:
                on_exit.append(bridge.exit_hook)
            worker = self._worker(
                "bridge",
                bridge.take,
                _Offered(lanes, with_enters=False),
                flush=bridge.flush,
                tick=bridge.tick,
                finish=lambda: bridge.finish(self._outcome),
            )
            on_exit.append(worker.publish)
        for index, sink in enumerate(self._sinks):
            worker = self._worker(_sink_name(sink, index), _BoundaryFeed(sink), _Offered(lanes, with_enters=True))
            on_enter.append(worker.publish)
            on_exit.append(worker.publish)
        if summary is not None:
            worker = self._worker("summary", summary.fold, _Offered(lanes, with_enters=False, with_quiet=True))
            on_exit.append(worker.publish)
            lanes.quiet_queues = (worker.publish,)
        lanes.enter_queues = tuple(on_enter)
        lanes.exit_queues = tuple(on_exit)
        lanes.on_first_sight = self._start_workers
        self._start_workers()

    def _worker(
        self,
        name: str,
        take: Callable[[Any], object],
        offered: Callable[[], int],
        *,
        flush: Callable[[float], bool] | None = None,
        tick: Callable[[], object] | None = None,
        finish: Callable[[], object] | None = None,
    ) -> _drain.SinkWorker:
        lanes = self._lane_set()
        worker = _drain.SinkWorker(
            name,
            take,
            offered=offered,
            flush=flush,
            tick=tick,
            finish=finish,
            prepare=lanes.mute_this_thread,
            bound=self._queue_bound,
        )
        self._workers.append(worker)
        return worker

    def _start_workers(self) -> None:
        for worker in self._workers:
            worker.start()

    def _bind_hot_path(self, lanes: LaneSet) -> None:
        # Looked up on the instance, one call saved a phase; a subclass that overrides a method keeps its own.
        for method in ("enter_phase", "enter"):
            if getattr(type(self), method) is getattr(PhaseTracker, method):
                setattr(self, method, getattr(lanes, method))

    def _unbind_hot_path(self) -> None:
        for method in ("enter_phase", "enter"):
            self.__dict__.pop(method, None)

    def _disable(self) -> None:
        self._is_disabled = True
        if type(self).enter_phase is PhaseTracker.enter_phase:
            self.enter_phase = _enter_nothing  # type: ignore[method-assign]

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the session: what is open becomes ABANDONED, the sinks get all, workers end; a second call does nothing.

        Args:
            timeout_s: how long to wait for sinks, in all; what they did not take by then is dropped and counted.
        """
        self._stop(None, timeout_s)

    def _stop(self, outcome: BaseException | None, timeout_s: float) -> None:
        with self._lock:
            if self._has_stopped or self._lanes is None:
                self._has_stopped = self._has_stopped or not self._is_disabled
                return
            self._has_stopped = True
            lanes = self._lanes
        self._outcome = outcome
        self._unbind_hot_path()
        lanes.close("the session stopped")
        if self._summary is not None:
            self._summary.note_end()
        is_delivered = _drain.flush_all(self._workers, timeout_s, is_last=True)
        self._outcome = None
        for worker in self._workers:
            worker.give_up()
        self._disconnect(lanes)
        if self._summary is not None:
            self._summary.print()
        self._warn_of_losses(is_delivered=is_delivered)

    def _disconnect(self, lanes: LaneSet) -> None:
        lanes.enter_queues = lanes.exit_queues = lanes.quiet_queues = ()
        lanes.on_first_sight = None
        _ambient.pop(self)
        _running.discard(self)
        atexit.unregister(self._stop_at_exit)
        if self._sigterm is not None:
            self._sigterm.remove()

    def _stop_at_exit(self) -> None:
        self._stop(None, STOP_TIMEOUT_S)

    def _stop_for_sigterm(self) -> None:
        self._stop(SystemExit("SIGTERM"), STOP_TIMEOUT_S)

    def _warn_of_losses(self, *, is_delivered: bool) -> None:
        lost = {name: sink["dropped"] for name, sink in self.stats()["sinks"].items() if sink["dropped"]}
        if lost:
            shown = ", ".join(f"{name}: {count}" for name, count in lost.items())
            _log.warning("stormphase: boundaries dropped (%s); raise queue_bound or make the sink faster", shown)
        elif not is_delivered:
            _log.warning("stormphase: a sink did not confirm that it delivered all; see tracker.stats()")

    def flush(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Return whether within `timeout_s` seconds all sinks had, and delivered, every boundary so far.

        Keeps its timeout by itself, also while a sink or the OTel SDK hangs. Returns False on a sink's own thread.
        """
        return _drain.flush_all(self._workers, timeout_s, is_last=False)

    # Phases

    def enter_phase(self, name: str, attributes: Mapping[str, Any] | None = None, sync: bool = False) -> PhaseHandle:
        """Enter a phase now and return its handle, which a `with` block closes.

        Args:
            name: one name, not a path; stripped, bounded to 256 characters, unprintable characters escaped.
            attributes: copied and bounded now.
            sync: whether ranks wait for each other in it, as in a collective.

        Raises:
            PhaseProtocolError: if the tracker does not run.
            PhaseNameError: if the name is blank or not a string.
            TypeError: if `attributes` is not a mapping.
        """
        lanes = self._running_lanes("enter")
        return NOOP if lanes is None else lanes.enter_phase(name, attributes, sync)

    def enter(self, name: str, attributes: Mapping[str, Any] | None = None, sync: bool = False) -> PhaseToken:
        """Enter a phase now and return the token that ends it, somewhere else on the same lane; see `enter_phase`."""
        lanes = self._running_lanes("enter")
        return NOOP_TOKEN if lanes is None else lanes.enter(name, attributes, sync=sync)

    def exit(self, token: PhaseToken, *, error: BaseException | None = None) -> None:
        """End the phase that `token` proves, as FAILED or CANCELLED if `error` is given.

        Raises:
            PhaseProtocolError: if the token is forged, copied, stale or another tracker's, or the phase is not the
                innermost one of the caller's lane.
        """
        lanes = self._lanes
        if lanes is None:
            self._running_lanes("exit")
            return
        lanes.exit(token, error=error)

    def acquire(self, token: PhaseToken) -> PhaseHandle:
        """Take over a phase that its owner released, on the caller's lane; returns its new handle.

        Raises:
            PhaseProtocolError: if the token is not the one that `release` returned, or was used before.
        """
        lanes = self._running_lanes("acquire")
        return NOOP if lanes is None or token is NOOP_TOKEN else lanes.acquire(token)

    def retry(self, previous: PhaseHandle, attributes: Mapping[str, Any] | None = None) -> PhaseHandle:
        """Enter a phase of the same name as `previous`, its attempt one higher and its span linked to it."""
        lanes = self._running_lanes("enter")
        if lanes is None or previous is NOOP:
            return NOOP
        return lanes.retry(previous, attributes)

    def phase(self, name: Any = None, **options: Any) -> Any:
        """Return a with-block and decorator that enters a phase late; see `stormphase.phase` for the options."""
        return _decorator.phase(self, name, **options)

    def set_step(self, step: int | None) -> None:
        """Stamp `step` on every phase that is entered from now on, in any thread."""
        if self._lanes is not None:
            self._lanes.step = step

    def _running_lanes(self, action: str) -> LaneSet | None:
        if self._lanes is not None and not self._has_stopped:
            return self._lanes
        if not self._is_disabled:
            problem = _misuse.not_running(action, has_stopped=self._has_stopped)
            if self._lanes is not None:
                self._lanes.misuse(problem)
            elif self._on_misuse == "raise":
                raise problem
        return None

    # What is known

    @property
    def recorder(self) -> PhaseRecorder:
        """The recorder beneath."""
        return self._recorder

    @property
    def lane_set(self) -> LaneSet | None:
        """The lanes of this session and rank; None before start and when disabled."""
        return self._lanes

    @property
    def identity(self) -> RankIdentity:
        """Session, attempt, rank and world size.

        Raises:
            PhaseProtocolError: before `start`, and when disabled.
        """
        if self._identity is None:
            raise _misuse.not_running("identify", has_stopped=self._has_stopped)
        return self._identity

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.identity.session_id

    @property
    def is_running(self) -> bool:
        """Whether phases are recorded now."""
        return self._lanes is not None and not self._has_stopped

    def stats(self) -> dict[str, Any]:
        """Return exact counts: per sink offered, handed_over, failed, queued, dropped; misuse; cut attributes."""
        lanes = self._lanes
        return {
            "sinks": {worker.name: worker.stats() for worker in self._workers},
            "bridge": {} if self._bridge is None else self._bridge.stats(),
            "misuse": {} if lanes is None else lanes.counts.to_dict(),
            "attributes": {} if lanes is None else lanes.attribute_counts.to_dict(),
        }

    def environment(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return a copy of the environment for a worker process, whose session becomes a child of the current phase."""
        copy = dict(os.environ if environ is None else environ)
        if self._bridge is not None:
            copy.update(self._bridge.environment())
        return copy

    def _lane_set(self) -> LaneSet:
        if self._lanes is None:
            raise _misuse.not_running("enter", has_stopped=self._has_stopped)
        return self._lanes

    def _wants_summary(self, environ: Mapping[str, str]) -> bool | str:
        if self._summary_argument is not None:
            return self._summary_argument
        return _flag(environ, "STORMPHASE_SUMMARY")

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        if self._bridge is not None:
            self._bridge.after_fork_in_child()
        for worker in self._workers:
            worker.after_fork_in_child()
        self._summary = None  # The parent prints it.
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            # A child of multiprocessing leaves by os._exit, after the finalizers that it registers from now on.
            util.register_after_fork(self, PhaseTracker._stop_with_multiprocessing)

    def _stop_with_multiprocessing(self) -> None:
        sys.modules["multiprocessing.util"].Finalize(None, self._stop_at_exit, exitpriority=0)


class _Offered:
    """How many boundaries a sink was offered: what the lanes counted, themselves and not the queue."""

    def __init__(self, lanes: LaneSet, *, with_enters: bool, with_quiet: bool = False) -> None:
        self._lanes = lanes
        self._with_enters = with_enters
        self._with_quiet = with_quiet

    def __call__(self) -> int:
        entered, ended = self._lanes.boundary_counts()
        quiet = self._lanes.counts["filtered"] if self._with_quiet else 0
        return ended + quiet + (entered if self._with_enters else 0)


class _BoundaryFeed:
    """Builds the boundaries for a user's sink, on its worker: a 1-tuple of a phase was its enter, a phase its exit."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def __call__(self, entry: PhaseHandle | tuple[PhaseHandle]) -> None:
        self._sink(enter_boundary(entry[0]) if isinstance(entry, tuple) else exit_boundary(entry))


def _enter_nothing(name: str, attributes: Any = None, sync: bool = False) -> PhaseHandle:
    del name, attributes, sync
    return NOOP


def _unique_in_process(found: RankIdentity, *, is_explicit: bool) -> RankIdentity:
    """Give the second and later trackers of a process sessions of their own, the same on every rank."""
    key = (found.session_id, found.attempt, found.rank)
    with _process_lock:
        uses = _used_sessions.get(key, 0) + 1
        _used_sessions[key] = uses
    if uses == 1:
        return found
    if is_explicit:
        raise ConfigurationError(
            f"Session {found.session_id!r}, rank {found.rank}, was already started in this process.",
            setting="session_id",
            fix="Give each PhaseTracker of a process its own session_id.",
        )
    return attrs.evolve(found, session_id=f"{found.session_id}.{uses}")


def _flag(environ: Mapping[str, str], variable: str) -> bool:
    value = environ.get(variable, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise ConfigurationError(
        f"{variable} must be 1 or 0, not {value!r:.40}.", setting=variable, fix=f"Set {variable}=1, or unset it."
    )


def _checked_sinks(sinks: Sequence[Sink]) -> tuple[Sink, ...]:
    if callable(sinks):
        raise ConfigurationError("sinks must be a sequence of callables.", setting="sinks", fix="Write sinks=[sink].")
    for sink in sinks:
        if not callable(sink):
            raise ConfigurationError(
                f"A sink must be callable, and {sink!r:.80} is not.",
                setting="sinks",
                fix="Give a function that takes one PhaseBoundary.",
            )
    return tuple(sinks)


def _checked_summary(summary: bool | str | None) -> bool | str | None:
    if summary is None or summary == "all" or isinstance(summary, bool):
        return summary
    raise ConfigurationError(
        f"summary must be True, False or 'all', not {summary!r:.40}.",
        setting="summary",
        fix='Write summary=True for rank 0 only, or summary="all" for every rank.',
    )


def _checked_bound(queue_bound: int) -> int:
    if isinstance(queue_bound, int) and not isinstance(queue_bound, bool) and queue_bound > 0:
        return queue_bound
    raise ConfigurationError(
        f"queue_bound must be a whole number above 0, not {queue_bound!r:.40}.",
        setting="queue_bound",
        fix=f"Leave it out for {_drain.QUEUE_BOUND}.",
    )


def _sink_name(sink: Sink, index: int) -> str:
    return f"{index}:{getattr(sink, '__name__', type(sink).__name__)}"


def _remember_fork() -> None:
    if not _fork_guard and hasattr(os, "register_at_fork"):
        _fork_guard.append(True)
        os.register_at_fork(after_in_child=_after_fork_in_child)


def _after_fork_in_child() -> None:
    global _process_lock  # noqa: PLW0603 - another thread of the parent may have held it
    _process_lock = threading.Lock()
    for tracker in tuple(_running):
        tracker._after_fork_in_child()
