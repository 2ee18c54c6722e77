"""One session's journal: found a place at start, opened again in a forked child, and ended with a word on how."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase import _bridge, _errors
from stormphase._attempts import UNKNOWN_LAUNCH, Launched
from stormphase._ids import scope_id_number, to_hex
from stormphase._owner_records import rank_scope_id
from stormphase.exceptions import ConfigurationError
from stormphase.journal._directory import attempt_of, make_directory, remove_journal
from stormphase.journal._journal import end_note_of
from stormphase.journal._options import JournalOptions, open_journal, options_of
from stormphase.journal._said import said_path
from stormphase.journal._start_lock import StartLock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from stormphase._bridge import Bridge
    from stormphase._lanes import LaneSet
    from stormphase._model import PhaseError, RankIdentity
    from stormphase._owner_records import SessionFacts
    from stormphase.journal._journal import OpenJournal

SPARE_BYTES: Final = 4 * 1024 * 1024

_log = logging.getLogger("stormphase")


class SessionJournal:
    """The journal of a session on this rank, or none. Thread-, signal- and fork-safe.

    Args:
        journal: what the tracker was given.
        environ: the environment.
        spare: where a process that works for another one keeps one until the store has all, if there is no journal:
            pools kill their workers while the store's queue holds their last phases.
        works_for: the process that this one works for, as a forked child does for its parent; None for a rank's own.

    Raises:
        ConfigurationError: if that is no directory.
    """

    def __init__(
        self, journal: Any, environ: Mapping[str, str], *, spare: Path | None = None, works_for: int | None = None
    ) -> None:
        """Look at the settings; nothing is opened yet."""
        self._options = options_of(journal, environ)
        self._spare = None if spare is None else JournalOptions(spare, max_bytes=SPARE_BYTES)
        self._directory: Path | None = None
        self._identity: RankIdentity | None = None
        self._lanes: LaneSet | None = None
        self._facts: SessionFacts | None = None
        self._parent_scope_id: str | None = None
        self._bridge: Bridge | None = None
        self._open: OpenJournal | None = None
        self._spare_path: Path | None = None
        self._forked_from = works_for
        self._must_open = False
        self._is_opening = False
        self._opening = threading.RLock()  # A signal handler may enter a phase, too.
        self._watches: list[Callable[[], object]] = []
        self._start_lock: StartLock | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether there is to be a journal at all; then it counts the session's attempts."""
        return self._options is not None

    def place(self, identity: RankIdentity, launched: Launched = UNKNOWN_LAUNCH) -> RankIdentity:
        """Return who this rank is, its attempt counted after those whose journals are there; makes the directory.

        Raises:
            ConfigurationError: if the directory cannot be used, a process of the same session and rank lives, or the
                attempt was given and is taken.
        """
        if self._options is not None:
            self._directory = make_directory(self._options.directory, identity.session_id)
        if self._directory is not None and self._forked_from is None:
            self._start_lock = StartLock(self._directory, identity)
            try:
                identity = attrs.evolve(identity, attempt=attempt_of(self._directory, identity, launched))
            except BaseException:
                self._end_start()
                raise
        self._identity = identity
        return identity

    def open(self, lanes: LaneSet, facts: SessionFacts, *, bridge: Bridge | None, works_under: str | None) -> None:
        """Make the file, and give it to the lanes.

        Args:
            lanes: whose phases are written.
            facts: what is known of the session.
            bridge: says what a recovery must know of spans, or None.
            works_under: the phase for which this process works, if it works for another one's.

        Raises:
            ConfigurationError: if that is not allowed.
        """
        self._lanes = lanes
        self._facts = facts
        self._bridge = bridge
        self._parent_scope_id = facts.caller_scope_id if self._forked_from is None else works_under
        try:
            self._make()
        finally:
            self._end_start()
        if self._open is not None:
            self._open.start()
        if self._options is not None and self._forked_from is None:
            _bridge.recover_with(bridge, self._options.directory)

    def _end_start(self) -> None:
        """Let others look: our own journal is there, or never will be."""
        lock, self._start_lock = self._start_lock, None
        if lock is not None:
            lock.release()

    def _make(self) -> None:
        if self._options is not None:
            self._make_at(self._options, self._directory)
        elif self._spare is not None and self._forked_from is not None and self._identity is not None:
            with contextlib.suppress(ConfigurationError):  # Nobody has asked for one.
                self._make_at(self._spare, make_directory(self._spare.directory, self._identity.session_id))

    def _make_at(self, options: JournalOptions, directory: Path | None) -> None:
        identity, lanes, facts = self._identity, self._lanes, self._facts
        if directory is None or identity is None or lanes is None or facts is None:
            return
        journal = self._open = open_journal(
            options,
            directory,
            identity,
            lanes,
            facts,
            parent_scope_id=self._parent_scope_id,
            main_thread_id=threading.main_thread().ident or 0,
            forked_from=self._forked_from,
            otel=_bridge.journal_facts_of(self._bridge),
            phase_trace=_bridge.phase_trace_of(self._bridge),
        )
        lanes.journal = journal
        self._spare_path = journal.path if journal is not None and options is self._spare else None
        if journal is None:
            return
        self._spare_path = journal.path if options is self._spare else None
        for look in self._watches:
            journal.watch(look)
        if self._bridge is not None:
            _bridge.listen(self._bridge, on_handed_over=journal.note_handed_over, on_finished=journal.note_owners_sent)

    def open_in_child(self) -> bool:
        """Make a forked child's own file, with its first phase; one that has none leaves no file.

        Returns False in a signal handler that came in while the thread it interrupted is about that.
        """
        if self._must_open:
            with self._opening:  # Of two threads the second one waits, or its phases would not be written.
                if self._is_opening:
                    return False
                self._open_once()
        return True

    def _open_once(self) -> None:
        if not self._must_open:
            return
        self._is_opening = True
        try:
            self._make()
        except ConfigurationError:
            _log.warning("stormphase: a forked child goes on without a journal, as none could be made", exc_info=True)
        finally:
            self._must_open = self._is_opening = False
        if self._open is not None:
            self._open.start()

    def after_fork_in_child(self, parent_scope_id: str | None, forked_ns: int) -> None:
        """Leave the file to the parent.

        Args:
            parent_scope_id: the phase that was open at the fork, or None.
            forked_ns: when that was, on the monotonic clock.
        """
        self._parent_scope_id = parent_scope_id
        if self._facts is not None:
            self._facts = attrs.evolve(self._facts, started_ns=forked_ns)
        journal, self._open = self._open, None
        self._spare_path = None
        self._end_start()
        if journal is not None:
            journal.forget()
        self._forked_from = os.getppid()
        self._opening = threading.RLock()
        self._is_opening = False
        self._must_open = self._options is not None or self._spare is not None

    def give_up(self) -> None:
        """Make no file in a forked child, whose session has ended with the parent's."""
        self._must_open = False

    def place_to_carry(self) -> dict[str, Any] | None:
        """Return how a process that works for this one finds the directory; None if there is none."""
        if self._options is None or self._directory is None:
            return None
        return {"directory": str(self._directory.parent), "max_bytes": self._options.max_bytes}

    def put_stacks(self, stacks: Mapping[str, Any]) -> bool:
        """Store every thread's stack; False if there is no journal, or no room in it."""
        return self._open is not None and self._open.put_stacks(stacks)

    def said_path(self) -> Path | None:
        """Return where what this process says last is to stand, or None while there is no journal."""
        return None if self._open is None else said_path(self._open.file.path)

    def watch(self, look: Callable[[], object]) -> None:
        """Have `look` called about every 0.2 s while there is a journal, on its worker; in forked children, too."""
        self._watches.append(look)
        if self._open is not None:
            self._open.watch(look)

    def note_step(self, step: int | None) -> None:
        """Write the step that was set."""
        if self._open is not None:
            self._open.note_step(step)

    def note_stop_signal(self, number: int) -> None:
        """Write that a signal asks the process to stop."""
        if self._open is not None:
            self._open.note_stop_signal(number)

    def note_end(self, outcome: BaseException | None, ended_ns: int, *, is_known: bool = True) -> None:
        """Write how the session ended, before anybody else is told: a store looks here if the process is killed.

        The bridge of a rank has yet to send its span then, and says when it has.
        """
        if self._open is None:
            return
        note = end_note_of(outcome, ended_ns, self._described, is_known=is_known)
        is_rank = self._forked_from is None
        self._open.put_end_note(note, owners_are_unsent=is_rank and _bridge.tells_of_its_end(self._bridge))

    def _described(self, error: BaseException) -> PhaseError:
        assert self._lanes is not None  # noqa: S101 - `open` has put them there
        own_id = to_hex(scope_id_number(self._lanes.id_base, 0))
        if self._forked_from is None and self._identity is not None:
            own_id = rank_scope_id(self._identity)
        return _errors.describe_for_session(error, self._lanes, own_id, _errors.REFERENCE)

    def finish(self, timeout_s: float, *, lets_go: bool = True) -> None:
        """Close the file.

        Its mapping goes as well, unless `lets_go` says that the bridge may still have to note what was exported.
        """
        self._end_start()
        journal, self._open = self._open, None
        if journal is not None:
            journal.finish(timeout_s, lets_go=lets_go)

    def discard_spare(self) -> None:
        """Delete the file that stood in for a journal: all of it is in the store."""
        path, self._spare_path = self._spare_path, None
        if path is not None:
            remove_journal(path)

    def stats(self) -> dict[str, int]:
        """Return the journal's counts; empty if there is none."""
        return {} if self._open is None else self._open.stats()
