"""Feeds a record store from a session's phases: in batches, again when it fails, and with every loss counted.

Runs on the worker thread of its sink. A phase that ends before its batch is written is written once, as ended; one that
is still open is written as open, so that a process that dies leaves it visibly unfinished.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase import _errors
from stormphase._bell import Bell
from stormphase._clock import SystemClock
from stormphase._liveness import SEEN_EVERY_NS, own_process
from stormphase._phase import FINAL
from stormphase._record import OutputLine, PhaseRecord
from stormphase.exceptions import ConfigurationError, StoreError
from stormphase.stores._owners import Owners
from stormphase.stores._phase_records import ended_record, open_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stormphase._lanes import LaneSet
    from stormphase._owner_records import SessionFacts
    from stormphase._phase import PhaseHandle
    from stormphase.typing import RecordStore

BATCH: Final = 4_096  # entries that are written at once, at the latest ...
MAX_WAITING: Final = 2 * BATCH  # ... and those that wait here, beside the queue, for a store that fails
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
TRIES_TOGETHER: Final = 3
TRIES_ALONE: Final = 3
_SWEEP_ABOVE: Final = 16_384

_log = logging.getLogger("stormphase")


@attrs.frozen
class _Waiting:
    """One record that waits: as begun or as ended, for how many entries, and whose enter it is, if it is one."""

    begun: list[PhaseRecord]
    ended: list[PhaseRecord]
    entries: int
    sequence: int | None


def open_store(store: RecordStore) -> None:
    """Open a store that can be opened, so that one that can never be used fails at the start.

    Raises:
        ConfigurationError: if it cannot be used, and waiting would not help.
    """
    open_file = getattr(store, "open", None)
    if open_file is None:
        return
    try:
        open_file()
    except StoreError as error:
        if not error.may_pass:
            problem = str(error).removesuffix(error.fix).rstrip()
            raise ConfigurationError(problem, setting="store", fix=error.fix) from error


class StoreFeed:
    """One session's way into a store.

    All but `begin`, `stats` and `unwritten` are called on the worker's thread, or while there is none.

    Args:
        store: where records go.
        lanes: the lanes whose phases come.
        facts: what is known of the session.
        output_of: returns the captured lines of an ended phase, each with `time_ns`, `stream` and `text`.
        redact: returns a record without what must not be stored.
    """

    def __init__(
        self,
        store: RecordStore,
        lanes: LaneSet,
        facts: SessionFacts,
        *,
        output_of: Callable[[PhaseHandle], Sequence[Any]] | None = None,
        redact: Callable[[PhaseRecord], PhaseRecord] | None = None,
    ) -> None:
        """Make the first records; the store is not touched yet."""
        self.is_over: Callable[[], bool] = lambda: False
        self._store = store
        self._lanes = lanes
        self._facts = facts
        self._output_of = output_of
        self._redact = redact
        self._now = SystemClock.monotonic_ns
        self._owners: Owners | None = Owners.of_rank(lanes, facts, own_process())
        self._parent_of_child: str | None = None
        self._forked_ns = 0
        self._reset()

    def _reset(self) -> None:
        self._bell = Bell()
        self._fresh: dict[int, PhaseHandle] = {}  # entered, and not written
        self._begun: dict[int, PhaseHandle] = {}  # written as open
        self._ended: list[tuple[PhaseRecord, int]] = []  # and how many entries each stands for
        self._has_begun_owners = False
        self._is_finished = False
        self._has_looked_for_lost = False
        self._unwritten = 0
        self._failures = 0  # in a row
        self._retry_at_ns = 0
        self._beat_at_ns = 0
        self._counts = dict.fromkeys(("retries", "refused", "unknown_begins", "unknown_ends", "recovered_ends"), 0)
        self._has_warned = False

    def after_fork_in_child(self, parent_scope_id: str | None, forked_ns: int) -> None:
        """Forget what is the parent's to write; the child gets a record of its own with its first phase.

        Args:
            parent_scope_id: the phase that was open at the fork, or None.
            forked_ns: when that was, on the monotonic clock.
        """
        self._parent_of_child = parent_scope_id
        self._forked_ns = forked_ns
        self._owners = None
        self._reset()

    def begin(self) -> None:
        """Write the records of session and rank, before there is a worker, into a store that was opened at the start.

        So one that dies a moment later has been there, and its record says where its journal is. What cannot be written
        now is the worker's to write.
        """
        if hasattr(self._store, "open") and self._owners is not None:
            with contextlib.suppress(Exception):
                self._store.begin(list(self._owners_begun()))
                self._has_begun_owners = True

    # What the worker calls

    def take(self, entry: PhaseHandle | tuple[PhaseHandle]) -> None:
        """Take one entry of the queue: a 1-tuple of a phase was its enter, a phase its exit."""
        self._unwritten += 1
        if isinstance(entry, tuple):
            phase = entry[0]
            self._fresh[phase._sequence] = phase
        else:
            self._take_end(entry)
        # A worker's or child's first at once: if it is killed a moment later, it has been there, and may be to blame.
        is_due = self._unwritten >= BATCH or self._owners is None
        if is_due and (self._try() or self._unwritten < MAX_WAITING):
            return
        while self._unwritten >= MAX_WAITING and not self.is_over():
            # Nothing more is taken from the queue, which is bounded and counts what it drops.
            self._bell.wait(self._pause_s())
            self._try()

    def _take_end(self, phase: PhaseHandle) -> None:
        sequence = phase._sequence
        weight = 1
        if self._fresh.pop(sequence, None) is not None:
            weight = 2
        elif self._begun.pop(sequence, None) is None and not (phase._extra is not None and phase._extra.is_quiet):
            self._counts["unknown_begins"] += 1  # The queue dropped its enter; the exit tells the whole story.
        self._ended.append((self._ended_record(phase), weight))

    def tick(self) -> None:
        """Write what has come, and say now and then that the process is alive."""
        if not self._has_looked_for_lost:
            self._has_looked_for_lost = True
            self._close_lost()
        if len(self._begun) > _SWEEP_ABOVE:
            self._recover_ends(self._begun)
        if self._has_something():
            self._try()
        elif self._owners is not None and self._now() >= self._beat_at_ns:
            self._beat()

    def flush(self, timeout_s: float) -> bool:
        """Return whether within so many seconds all that was taken is stored; at the end, let go of the store."""
        until_ns = self._now() + int(timeout_s * 1e9)
        while not self._try(at_once=True):
            left_s = (until_ns - self._now()) / 1e9
            if left_s <= 0 or self.is_over():
                return False
            self._bell.wait(min(left_s, self._pause_s()))
        if self._is_finished:
            self._close_lost()  # Workers of this process that were killed are known to be dead by now.
            self._store.close()
        return True

    def finish(self, outcome: BaseException | None, ended_ns: int) -> None:
        """Take note that the session has ended: what is known of open phases, and the ends of rank and session.

        Args:
            outcome: the exception that ended it, or None.
            ended_ns: when, on the monotonic clock.
        """
        self._is_finished = True
        for phases in (self._fresh, self._begun):
            self._recover_ends(phases)
            # Neither the queue nor the handle says how these ended: they stay unfinished.
            self._counts["unknown_ends"] += len(phases)
        if self._owners is not None:
            ended = self._owners.ended(self._lanes, outcome, ended_ns)
            self._ended += [(record if self._redact is None else self._redact(record), 0) for record in ended]

    @property
    def unwritten(self) -> int:
        """How many entries were taken and are not stored."""
        return self._unwritten

    @property
    def refused(self) -> int:
        """How many entries the store refused for good, while it took others."""
        return self._counts["refused"]

    def stats(self) -> dict[str, int]:
        """Return exact counts.

        retries: failed calls of the store; refused: entries that it never took, while it took others; unknown_begins:
        exits whose enter was dropped, stored all the same; unknown_ends: phases that are left unfinished, as nothing
        says how they ended; recovered_ends: ends that the queue dropped and the phase itself could still tell.
        """
        return dict(self._counts)

    # Records

    def _ended_record(self, phase: PhaseHandle) -> PhaseRecord:
        output: tuple[OutputLine, ...] = ()
        if self._output_of is not None:
            output = tuple(
                line if isinstance(line, OutputLine) else OutputLine(line.time_ns, line.stream, line.text)
                for line in self._output_of(phase)
            )
        process = self._owners_now().process
        record = ended_record(phase, process=process, correlation_id=self._facts.correlation_id, output=output)
        return record if self._redact is None else self._redact(record)

    def _open_record(self, phase: PhaseHandle) -> PhaseRecord:
        process = self._owners_now().process
        record = open_record(phase, process=process, correlation_id=self._facts.correlation_id)
        return record if self._redact is None else self._redact(record)

    def _owners_now(self) -> Owners:
        if self._owners is None:
            self._owners = Owners.of_child(
                self._lanes, self._facts, own_process(), self._parent_of_child, forked_ns=self._forked_ns
            )
        return self._owners

    def _owners_begun(self) -> Sequence[PhaseRecord]:
        """Return the owners' records, which say where the journal is, as long as they have not been written."""
        if self._has_begun_owners:
            return ()
        owners, journal = self._owners_now(), self._lanes.journal
        if journal is not None and journal.path.parent.parent != getattr(self._store, "journals", None):
            owners = self._owners = owners.with_journal(str(journal.path.absolute()))
        return owners.begun()

    def _recover_ends(self, phases: dict[int, PhaseHandle]) -> None:
        """Take the ends of phases that have ended and whose exits the queue has dropped."""
        for sequence in [sequence for sequence, phase in phases.items() if phase._status in FINAL]:
            weight = 1 if phases is self._fresh else 0
            self._ended.append((self._ended_record(phases.pop(sequence)), weight))
            self._counts["recovered_ends"] += 1

    # Writing

    def _has_something(self) -> bool:
        return bool(self._fresh or self._ended) or (self._owners is not None and not self._has_begun_owners)

    def _try(self, *, at_once: bool = False) -> bool:
        """Return whether all is stored; does nothing while the store is given a rest, unless `at_once`."""
        if not self._has_something():
            return True
        if self._failures and not at_once and self._now() < self._retry_at_ns:
            return False
        begun = list(self._owners_begun())
        begun += [self._open_record(phase) for phase in self._fresh.values()]
        try:
            self._hand_over(begun, [record for record, _ in self._ended])
        except BaseException as error:  # noqa: BLE001 - the store may raise anything; it is counted and told
            self._note_failure(error)
            if self._failures <= TRIES_TOGETHER or not self._hand_over_alone():
                return False
        if self._failures:
            self._failures = 0
            _tell(logging.INFO, "stormphase: store %r takes records again", type(self._store).__name__)
        self._has_begun_owners = True
        self._begun.update(self._fresh)
        self._fresh.clear()
        self._ended.clear()
        self._unwritten = 0
        self._beat_at_ns = self._now() + SEEN_EVERY_NS
        return True

    def _hand_over(self, begun: Sequence[PhaseRecord], ended: Sequence[PhaseRecord]) -> None:
        if begun:
            self._store.begin(begun)
        if ended:
            self._store.end(ended)

    def _hand_over_alone(self) -> bool:
        """Hand over one record at a time; those that the store refuses while it takes others are given up.

        Returns:
            Whether nothing is left: False if the store takes none at all, or says that it may work later.
        """
        taken: list[_Waiting] = []
        refused: list[_Waiting] = []
        is_done = False
        for tried, waiting in enumerate(self._one_by_one(), 1):
            if self.is_over():
                break
            try:
                self._hand_over(waiting.begun, waiting.ended)
            except BaseException as error:  # noqa: BLE001 - as in `_try`
                self._note_failure(error)
                refused.append(waiting)
                if getattr(error, "may_pass", False) or (not taken and tried >= TRIES_ALONE):
                    break
            else:
                taken.append(waiting)
        else:
            is_done = bool(taken)
        if is_done:
            self._counts["refused"] += sum(waiting.entries for waiting in refused)
            return True
        # What was taken does not wait any more; the rest is tried again.
        for waiting in taken:
            self._unwritten -= waiting.entries
            if waiting.sequence is not None:
                self._begun[waiting.sequence] = self._fresh.pop(waiting.sequence)
        stored = {id(record) for waiting in taken for record in waiting.ended}
        self._ended = [each for each in self._ended if id(each[0]) not in stored]
        return False

    def _one_by_one(self) -> list[_Waiting]:
        return [
            *(_Waiting([record], [], 0, None) for record in self._owners_begun()),
            *(_Waiting([self._open_record(phase)], [], 1, sequence) for sequence, phase in self._fresh.items()),
            *(_Waiting([], [record], entries, None) for record, entries in self._ended),
        ]

    def _note_failure(self, error: BaseException) -> None:
        self._failures += 1
        self._counts["retries"] += 1
        self._retry_at_ns = self._now() + int(self._pause_s() * 1e9)
        if not self._has_warned:
            self._has_warned = True
            _tell(
                logging.WARNING,
                "stormphase: store %r failed (%s: %s); it is tried again, and what its queue cannot hold meanwhile is "
                "dropped and counted",
                type(self._store).__name__,
                type(error).__name__,
                _errors.text_of(error, self._lanes.redactor),
            )

    def _pause_s(self) -> float:
        return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failures, 8)))

    def _beat(self) -> None:
        self._beat_at_ns = self._now() + SEEN_EVERY_NS
        note_alive = getattr(self._store, "note_alive", None)
        if note_alive is not None:
            with contextlib.suppress(Exception):  # The next one, or the next record, says the same.
                note_alive(self._owners_now().process)

    def _close_lost(self) -> None:
        """Say of what dead processes have left open in this store that it is LOST, if the store can do that."""
        close_lost = getattr(self._store, "close_lost", None)
        if close_lost is not None:
            try:
                close_lost()
            except Exception as error:  # noqa: BLE001 - the next session, and whoever reads, tries again
                self._note_failure(error)


def _tell(level: int, message: str, *arguments: object) -> None:
    # A handler of the program's own may raise anything, and must not end the worker.
    with contextlib.suppress(Exception):
        _log.log(level, message, *arguments)
