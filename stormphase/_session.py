"""One running session: made of the settings and the environment when a tracker starts, and ended once, whoever asks."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase import _bridge, _claims, _configuration, _drain, _exits, _signals, _starters, _terminal
from stormphase._bell import Latch
from stormphase._bridge import BridgeSession, DefaultBridge
from stormphase._capturing import SessionCapture
from stormphase._claim_place import claim_place
from stormphase._early import EARLY_LANE, EARLY_LANE_MESSAGE, START_WAIT_S, EarlyPhases
from stormphase._journaling import SessionJournal
from stormphase._liveness import own_process
from stormphase._overdue import LearntLimits, OverdueWatch
from stormphase._owner_records import SessionFacts
from stormphase._process import ProcessWatch
from stormphase._rank import Place, ProcessFacts, find_place
from stormphase._redaction import Redactor
from stormphase._signals import SigtermHook
from stormphase._sinks import SUMMARY, SinkSet
from stormphase._summary import SessionSummary
from stormphase.stores._feed import StoreFeed, open_store
from stormphase.stores._redact import RecordRedactor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from stormphase._bridge import Bridge
    from stormphase._configuration import Settings
    from stormphase._last_words import LastWords
    from stormphase._model import RankIdentity
    from stormphase._recorder import PhaseRecorder
    from stormphase.capture import CaptureSession
    from stormphase.typing import RecordStore

STOP_TIMEOUT_S: Final = 10.0
_LOCK_WAIT_S: Final = 0.02
_JOURNAL_TIMEOUT_S: Final = 2.0

_log = logging.getLogger("stormphase")


class Session:
    """A session on this rank, running from construction to `stop`. Thread-, signal- and fork-safe.

    Args:
        settings: what the tracker was given.
        environ: the environment.
        recorder: where the lanes are made.
        on_stop: called once, when no more phases are to come.

    Raises:
        ConfigurationError: if identity or environment are wrong, or there is no GIL; nothing has been started then.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        recorder: PhaseRecorder,
        on_stop: Callable[[], object],
    ) -> None:
        """Find out who this is, make bridge, lanes and sinks, and start their threads."""
        # First what is only looked at, so that what is wrong fails while there is nothing to take back.
        _configuration.require_gil()
        self._sigterm = SigtermHook(self._stop_for_sigterm, self._can_stop) if settings.stop_on_sigterm else None
        self._must_check = _configuration.wants_checks(environ)
        self._is_built = False
        self._stays_stopped = False  # True in a child that was forked while the session stopped.
        self._has_started = Latch()  # Or failed to.
        self._starting_thread = threading.get_ident()
        self._early: EarlyPhases | None = None
        self.has_closed_lanes = False  # From then on nothing is open that an error of ours could end.
        self.is_child = settings.carried is not None  # Else from the first fork on.
        self._claimed: RankIdentity | None = None
        self._place: Place | None = None  # None where this process works for another one.
        wants_summary = False
        if settings.carried is None:
            wants_summary = self._find_identity(settings, environ)
        else:
            environ = self._take_identity(settings, environ)
        self._on_stop = on_stop
        # Taken by one C call, `pop`: of two threads, or of a signal handler and what it interrupted, one gets it.
        self._may_stop = [True]
        self._stopped = Latch()
        self._stopping_thread: int | None = None
        self.capture = SessionCapture(settings.capture, environ)
        self._last_words: LastWords | None = None
        self._process = ProcessWatch(self._stop_at_exit, self._after_fork_in_child)
        self._sinks: SinkSet | None = None
        try:
            self._build(settings, environ, recorder, wants_summary=wants_summary)
        except BaseException:
            self._take_back()
            raise
        finally:
            self._has_started.open()

    def _find_identity(self, settings: Settings, environ: Mapping[str, str]) -> bool:
        """Find out who this is; returns whether this rank is to print a summary."""
        place = find_place(
            environ,
            session_id=settings.session_id,
            rank=settings.rank,
            world_size=settings.world_size,
            attempt=settings.attempt,
            process=ProcessFacts.of_this_process(),
        )
        wants_summary = _configuration.wants_summary(settings.summary, environ, place.identity.rank)
        self.journal = SessionJournal(settings.journal, environ, spare=_spare_of(settings))
        self._place = claim_place(place, settings, self.journal)
        self.identity: RankIdentity = self._place.identity
        self._claimed = self.identity
        return wants_summary

    def _take_identity(self, settings: Settings, environ: Mapping[str, str]) -> Mapping[str, str]:
        """Be who the process is that this one works for; returns the environment with its trace."""
        carried = settings.carried
        environ = carried.environ_over(environ)
        self.journal = SessionJournal(settings.journal, environ, spare=_spare_of(settings), works_for=carried.pid)
        self.identity = self.journal.place(attrs.evolve(carried.identity, host=own_process().host))
        return environ

    def _build(
        self, settings: Settings, environ: Mapping[str, str], recorder: PhaseRecorder, *, wants_summary: bool
    ) -> None:
        identity = self.identity
        started_ns = settings.clock.monotonic_ns()
        patterns = () if settings.capture is None else settings.capture.redact
        redactor = Redactor(environ=environ, patterns=(*settings.redact, *patterns))
        self.name = None if settings.name is None else redactor.text(settings.name)
        bridge = settings.bridge
        if isinstance(bridge, DefaultBridge):
            bridge = None if bridge.make is None else bridge.make()
        self.bridge: Bridge | None = bridge
        carrier = None
        if bridge is not None:
            carrier = bridge.attach(
                BridgeSession(
                    name=self.name,
                    identity=identity,
                    pid=os.getpid(),
                    clock=settings.clock,
                    anchor=recorder.anchor,
                    started_ns=started_ns,
                    environ=environ,
                    is_worker=self.is_child,
                )
            )
        lanes = self.lanes = recorder.lane_set(
            identity.session_id,
            identity.rank,
            attempt=identity.attempt,
            carrier=carrier,
            on_first_sight=self._at_first_sight,
        )
        lanes.redactor = redactor  # Before there is a lane: the names of threads and tasks have secrets, too.
        lanes.sequence = itertools.count(settings.first_sequence)
        lanes.works_for_another = self.is_child
        self._early = EarlyPhases(lanes)
        self._early.stand_for_sinks()
        if bridge is not None:
            bridge.bind(lanes)
            if self.is_child:
                bridge.after_fork_in_child()  # Session and rank are another process's to tell of.
        self._has_learnt_limits = settings.hang_factor is not None
        self._summary = SessionSummary(self.name, identity, lanes, started_ns=started_ns) if wants_summary else None
        facts = self._facts = SessionFacts.of(
            identity,
            name=self.name,
            started_ns=started_ns,
            environ=environ,
            wish=settings.correlation_id,
            launch=None if self._place is None else self._place.launched.launch,
            started_by=None if self._place is None else self._place.started_by,
        )
        self._feed = self._store_feed(settings.store, facts)
        learnt = None if settings.hang_factor is None else LearntLimits(settings.hang_factor)
        self._sinks = SinkSet(
            lanes,
            bridge=bridge,
            sinks=settings.sinks,
            store=self._feed,
            summary=self._summary,
            learnt=learnt,
            queue_bound=settings.queue_bound,
        )
        self._watch = OverdueWatch(lanes, self._sinks.publish_notice, self.journal.put_stacks, learnt)
        self.journal.open(lanes, facts, bridge=bridge, works_under=self._inherited())
        if self._feed is not None:
            self._feed.begin()
        self._process.install()
        _signals.hold_while_forking()
        self.capture.start(lanes, on_begin=self._on_capture_begin)
        lanes.on_timed = self._watch.start
        if self._sigterm is not None:
            self._sigterm.install()
        self._let_phases_in(self._early, self._sinks)

    def _let_phases_in(self, early: EarlyPhases, sinks: SinkSet) -> None:
        """Have lanes made from now on: all that one is given at its making is there. Stands last in `_build`.

        What a hook has entered all the same is told now, as if it had waited.
        """
        # Once more, where a hook's own caller kept the first from us, or a lane was made without asking.
        if self._must_check and (self.lanes.counts[EARLY_LANE] or self.lanes.lanes()):
            raise AssertionError(EARLY_LANE_MESSAGE)
        sinks.connect(early)
        self._is_built = True
        if self._place is not None:
            _starters.enter(self._place.starter)
        if self._summary is not None:
            self._summary.begin(early.first_entered_ns)
        self._tell_early()

    def _tell_early(self) -> None:
        early, self._early = self._early, None
        if early is not None and early.tell():
            self._watch.start()  # What was entered may have a limit of its own.

    def _at_first_sight(self) -> bool:
        """Return whether a thread that enters its first phase may have a lane; it had better not before all is there.

        In a forked child there are no workers and no journal yet.
        """
        if not self._is_built:
            return self._may_be_early()
        try:
            if not self.journal.open_in_child():  # A signal handler, while what it interrupted is about that.
                self._early = self._early or EarlyPhases(self.lanes)
                return True
        except BaseException:  # A signal handler raised, and may have a lane.
            self._begin_work()
            raise
        self._begin_work()
        return True

    def _begin_work(self) -> None:
        """Have all there that the first lane of a process needs."""
        self._tell_early()
        self.sinks.start_threads()
        if self._has_learnt_limits:
            self._watch.start()

    def _may_be_early(self) -> bool:
        """Return whether a thread may have a lane while the session starts: who starts it at once, others thereafter.

        One that waited in vain gets none, and is counted: the start takes too long, or waits for that thread itself.
        """
        if self._must_check:
            self.lanes.counts.add(EARLY_LANE)
            raise AssertionError(EARLY_LANE_MESSAGE)
        if threading.get_ident() == self._starting_thread:
            return True
        self._has_started.wait(START_WAIT_S)
        if not self._is_built:
            self.lanes.counts.add(EARLY_LANE)
        return self._is_built

    def _on_capture_begin(self, capture: CaptureSession) -> None:
        """Have what is captured sent by the bridge, and its last lines kept beside the journal."""
        _bridge.give_output(self.bridge, self.capture.taker)
        if self.journal.said_path() is not None:
            from stormphase._last_words import LastWords  # noqa: PLC0415 - only programs that capture load capture

            self._last_words = LastWords(self.journal.said_path, self.lanes.anchor.to_wall_ns)
            self._last_words.listen(capture)
            self.journal.watch(self._last_words.look)

    def _store_feed(self, store: RecordStore | None, facts: SessionFacts) -> StoreFeed | None:
        """Return what feeds the store, which can be used by then.

        Raises:
            ConfigurationError: if it cannot, and waiting would not help.
        """
        if store is None:
            return None
        open_store(store)
        assert self.lanes.redactor is not None  # noqa: S101 - `_build` has put it there
        feed = StoreFeed(
            store,
            self.lanes,
            facts,
            output_of=self.capture.taker(),
            redact=RecordRedactor(self.lanes.redactor),
        )
        if self.is_child:
            feed.after_fork_in_child(self._inherited(), facts.started_ns)
        return feed

    def _inherited(self) -> str | None:
        """Return the scope id of the phase of another process under which this one's stand, or None."""
        phase = self.lanes.carrier.current_phase()
        return None if phase is None else phase.scope_id

    def _take_back(self) -> None:
        """Take back what a start that failed had begun."""
        self._may_stop.clear()
        if self._early is not None:
            self._close_lanes(None)
        if self._sinks is not None:
            self._sinks.give_up()
        self._end_capture()
        self.journal.finish(0.0)
        self._leave_process()
        self._process.remove()
        if self._claimed is not None:
            _claims.unclaim(self._claimed)

    @property
    def sinks(self) -> SinkSet:
        """The sinks and their workers."""
        assert self._sinks is not None  # noqa: S101 - construction has succeeded
        return self._sinks

    @property
    def is_running(self) -> bool:
        """Whether it has not been stopped."""
        return bool(self._may_stop)

    def stop(
        self, outcome: BaseException | None, timeout_s: float, *, is_known: bool = True, is_passing: bool = True
    ) -> None:
        """End it, or wait for the one who does; on a sink's own thread return at once, and end it on another one.

        Args:
            outcome: the exception that ended the program, or None.
            timeout_s: how long to wait for sinks, in all; what they did not take by then is dropped and counted.
            is_known: whether no outcome means that all went well; else nobody can tell how the program ended.
            is_passing: whether the outcome leaves a block of the caller's, and with it what is open there.
        """
        if self.sinks.is_own_thread():
            if self.is_running:
                # Here it would wait for itself.
                named = {"is_known": is_known, "is_passing": False}
                threading.Thread(
                    target=self.stop, args=(outcome, timeout_s), kwargs=named, name="stormphase-stop"
                ).start()
            return
        try:
            self._may_stop.pop()
        except IndexError:
            if self._stopping_thread != threading.get_ident():  # Else a signal handler interrupted the stop.
                self._stopped.wait(_drain.bounded_s(timeout_s))
            return
        self._stopping_thread = threading.get_ident()
        try:
            self._end(outcome, timeout_s, is_known=is_known, is_passing=is_passing)
        except Exception:  # noqa: BLE001 - see below
            # The exception of the user's `with` block must pass, and no other one replace it.
            _log.warning("stormphase: the session could not be stopped in order", exc_info=True)
        finally:
            self._stopping_thread = None
            self._stopped.open()
            self._process.remove()  # Last: a child that is forked until then has to know that all is over.

    def _end(self, outcome: BaseException | None, timeout_s: float, *, is_known: bool, is_passing: bool) -> None:
        is_delivered = False
        try:
            self._on_stop()
            self._watch.stop()
            self._close_lanes(outcome if is_passing else None)
            self.has_closed_lanes = True
            self.capture.stop()
            # One time for all, so that the summary and the session's span say the same.
            ended_ns = self.lanes.now()
            if self._summary is not None:
                self._summary.note_end(ended_ns)
            self.journal.note_end(outcome, ended_ns, is_known=is_known)
            is_delivered = self.sinks.finish(timeout_s, outcome, ended_ns)
        finally:
            self.has_closed_lanes = True
            # Also when an impatient KeyboardInterrupt ends the wait.
            self._end_capture()
            self.sinks.give_up()
            self.journal.finish(_JOURNAL_TIMEOUT_S, lets_go=is_delivered or self.bridge is None)
            if is_delivered:
                self.journal.discard_spare()
            self._leave_process()
        if self._stays_stopped:  # Forked on this thread since: it is the parent's to say what came of it.
            return
        stats = self.sinks.stats()
        if self._summary is not None:
            _terminal.show(self._summary.report(dropped=stats[SUMMARY]["dropped"]), sys.stdout, os.environ)
        lost = ", ".join(f"{name}: {counts['dropped']}" for name, counts in stats.items() if counts["dropped"])
        if lost:
            _log.warning(
                "stormphase: boundaries dropped (%s): these sinks did not take them in time. If a backend was down or "
                "slow, mend that; if they came in a burst, raise queue_bound.",
                lost,
            )
        elif not is_delivered:
            _log.warning("stormphase: a sink did not confirm that it delivered all; see tracker.stats()")

    def _end_capture(self) -> None:
        self.capture.stop()
        if self._last_words is not None:
            self._last_words.end()

    def _close_lanes(self, passing: BaseException | None) -> None:
        """End what is open, and take it out of the caller's context: what comes later must not hang there.

        What an exception leaves open here that passes ends by it, as in any block.
        """
        # A thread without a lane has nothing open, and to make it one would take a lock of threading's.
        lane = None if self.lanes.lane_of_thread() is None else self.lanes.lane_of_caller()
        opened_here = [] if lane is None else lane.phases()
        if passing is not None:
            _exits.unwind_above(self.lanes, None, passing)
        self.lanes.close("the session stopped")
        carrier = self.lanes.carrier
        if opened_here and carrier.current_phase() in opened_here:
            # Set, and not reset by its token, which an exit that this interrupted as a signal handler may be using.
            carrier.variable.set(carrier.value_before(opened_here[0]))

    def _leave_process(self) -> None:
        if self._place is not None:
            _starters.leave(self._place.starter)
        if self._claimed is not None:
            _claims.release(self._claimed)
        if self._sigterm is not None:
            self._sigterm.remove()

    def _stop_at_exit(self, outcome: BaseException | None, is_known: bool) -> None:  # noqa: FBT001 - a callback
        self.stop(outcome, STOP_TIMEOUT_S, is_known=is_known, is_passing=False)

    def _stop_for_sigterm(self) -> None:
        self.journal.note_stop_signal(signal.SIGTERM)
        self.stop(SystemExit("SIGTERM"), STOP_TIMEOUT_S, is_passing=False)

    def _can_stop(self) -> bool:
        """Whether it can be stopped from another thread: not while the main one is halted in the middle of that."""
        if self._stopping_thread == threading.main_thread().ident:
            return False
        lock = self.lanes._lock
        if not lock.acquire(timeout=_LOCK_WAIT_S):
            return False
        lock.release()
        return True

    def _after_fork_in_child(self) -> None:
        is_stopping = not self.is_running
        self.is_child = True
        if self._sigterm is not None:
            self._sigterm.after_fork_in_child()
        if self.bridge is not None:
            self.bridge.after_fork_in_child()
        born = self._inherited(), self.lanes.now()
        self.sinks.after_fork_in_child(*born)
        self.capture.after_fork_in_child()
        if self._last_words is not None:
            self._last_words.after_fork_in_child()
        self.journal.after_fork_in_child(*born)
        self._watch.after_fork_in_child()
        self._summary = None  # The parent prints it.
        if is_stopping:
            self._stay_stopped()

    def _stay_stopped(self) -> None:
        """Be over in a child that was forked while a thread stopped the session: as a rule that thread is not here."""
        self._stays_stopped = True
        self._on_stop()
        self._watch.stop()
        self._end_capture()
        self.sinks.give_up()
        self.journal.give_up()
        self._leave_process()
        self._process.remove()
        self._stopping_thread = None
        self._stopped.open()

    @property
    def correlation_id(self) -> str | None:
        """What else the run is known by: the caller's word, else the trace id."""
        return self._facts.correlation_id

    def note_step(self, step: int | None) -> None:
        """Stamp `step` on every phase from now on."""
        self.lanes.step = step
        self.journal.note_step(step)

    def stats(self) -> dict[str, Any]:
        """Return exact counts, as `PhaseTracker.stats` describes them."""
        redaction = {} if self.lanes.redactor is None else self.lanes.redactor.stats()
        return {
            **({"redaction": redaction} if redaction else {}),
            **({} if self._feed is None else {"store": self._feed.stats()}),
            "sinks": self.sinks.stats(),
            "bridge": {} if self.bridge is None else self.bridge.stats(),
            "journal": self.journal.stats(),
            "misuse": self.lanes.counts.to_dict(),
            "attributes": self.lanes.attribute_counts.to_dict(),
            **self.capture.stats(),
        }


def _spare_of(settings: Settings) -> Path | None:
    """Return where workers' journals stand that last until the store has all, if the store has a place for them."""
    return getattr(settings.store, "journals", None)
