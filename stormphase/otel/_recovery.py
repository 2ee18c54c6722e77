"""Recovery: of each dead process's journal the spans that it never sent, delivered once, and marked once confirmed."""

from __future__ import annotations

import enum
import hashlib
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._liveness import Liveness, Verdict, judge, own_process
from stormphase._model import ProcessIdentity, RankIdentity
from stormphase._record import PhaseRecord
from stormphase.exceptions import JournalError, JournalIncompleteError
from stormphase.journal._marks import Mark, RecoveryLockedError, SessionLock, read_mark, write_mark
from stormphase.journal._read import UnreadableJournal, find_journals, may_be_of, read_header, read_journal
from stormphase.journal._records import lost_records
from stormphase.otel._journal_facts import FactsError, SessionFacts
from stormphase.otel._otlp_http import UndeliveredError
from stormphase.otel._otlp_protobuf import requests_of
from stormphase.otel._recovered import rebuild

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from stormphase.journal._header import Header
    from stormphase.journal._image import JournalImage
    from stormphase.otel._otlp_http import OtlpSender
    from stormphase.otel._recovered import Rebuilt
    from stormphase.typing import Clock


class Result(str, enum.Enum):
    """What became of one journal.

    SENT: all of it was confirmed, now. ALREADY_SENT: it was, before. NOTHING: it left nothing behind that is to be
    sent. WAITING: there is something, and sending was not asked for, or no endpoint was given. ALIVE: its process
    lives. UNPROVEN: nothing proves that its process is dead. UNTRACED: its process had no bridge that made spans.
    LOCKED: another recovery is at work on it. FAILED: something could not be sent, read or noted.
    """

    SENT = "sent"
    ALREADY_SENT = "already_sent"
    NOTHING = "nothing"
    WAITING = "waiting"
    ALIVE = "alive"
    UNPROVEN = "unproven"
    UNTRACED = "untraced"
    LOCKED = "locked"
    FAILED = "failed"

    def __str__(self) -> str:
        """Return the lower-case value, also on Pythons whose format() would give the member's name."""
        return self.value


_UNFINISHED: Final = frozenset({Result.WAITING, Result.UNPROVEN, Result.LOCKED, Result.FAILED})


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one journal, or of a session's directory that could not be worked on.

    Attributes:
        file: the journal, or the directory.
        result: in one word.
        identity: whose it is, if it could be read.
        process: the process that wrote it.
        evidence: how it is known whether that lives.
        lost: what was open when it died.
        unsent_phases: how many phases had ended and not been exported.
        spans: how many spans there are to send, or were sent.
        unsampled: how many there would be, had they been sampled.
        unplaced: how many are not sent since it is no longer known which trace they belong to.
        cleared_unsent: how many ended phases had no room to be kept until they were exported.
        damage: what of the journal could not be read.
        problem: what went wrong, if it did.
    """

    file: Path
    result: Result
    identity: RankIdentity | None = None
    process: ProcessIdentity | None = None
    evidence: str | None = None
    lost: tuple[PhaseRecord, ...] = ()
    unsent_phases: int = 0
    spans: int = 0
    unsampled: int = 0
    unplaced: int = 0
    cleared_unsent: int = 0
    damage: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.result not in _UNFINISHED


class Recovery:
    """Recovers journals. For one thread.

    Args:
        sender: sends to an endpoint; None only looks, and changes nothing.
        clock: where times come from.
        assume_dead: names of hosts whose silent processes are taken for dead, on the user's own word.
        again: whether also what was sent before is sent, to another backend, say.
        wants_records: whether outcomes have the lost phases; they hold attributes, and there may be many.
        judge_process: says whether a process lives; tests give their own.
    """

    def __init__(
        self,
        sender: OtlpSender | None,
        *,
        clock: Clock,
        assume_dead: Collection[str] = (),
        again: bool = False,
        wants_records: bool = True,
        judge_process: Callable[..., Verdict] = judge,
    ) -> None:
        """Look at nothing yet."""
        self._sender = sender
        self._clock = clock
        self._assume_dead = frozenset(assume_dead)
        self._again = again
        self._wants_records = wants_records
        self._judge = judge_process
        self._this = own_process()
        self._down: str | None = None

    def run(
        self, directory: Path, *, session_id: str | None = None, before_attempt: int | None = None
    ) -> Iterator[Outcome]:
        """Yield what became of each journal below a directory of sessions, or in one session's.

        While the journals of a session are worked on, nobody else recovers it.

        Args:
            directory: where they lie.
            session_id: only that session's.
            before_attempt: only attempts before this one.

        Raises:
            JournalError: if the directory cannot be read.
        """
        for session, found in groupby(find_journals(directory), key=_session_directory):
            files = [file for file in found if _is_wanted(file, directory, session_id, before_attempt)]
            if files:
                yield from self._session(session, files)

    def _session(self, directory: Path, files: Iterable[Path | UnreadableJournal]) -> Iterator[Outcome]:
        with ExitStack() as held:
            if self._sender is not None:
                try:
                    held.enter_context(SessionLock(directory))
                except RecoveryLockedError as error:
                    yield Outcome(file=directory, result=Result.LOCKED, problem=str(error))
                    return
                except OSError as error:
                    problem = f"nothing can be noted here ({error.strerror or error}), so nothing is sent"
                    yield Outcome(file=directory, result=Result.FAILED, problem=problem)
                    return
            for file in files:
                try:
                    if isinstance(file, UnreadableJournal):
                        raise file.error
                    yield self._journal(file)
                except JournalIncompleteError:
                    continue  # There is nothing in it yet, and if its process has died there never will be.
                except JournalError as error:
                    path = file.file if isinstance(file, UnreadableJournal) else file
                    yield Outcome(file=path, result=Result.FAILED, problem=f"{error.problem} {error.fix}")

    def _journal(self, file: Path) -> Outcome:
        header = read_header(file)
        # Before the rest is read: of a dead one, that is then the last that it has written.
        verdict = self._verdict(header)
        has_bridge = header.facts.get("otel") is not None
        if verdict.state is Liveness.DEAD and has_bridge:
            image = read_journal(file, unsent_only=True)
        else:
            image = read_journal(file, ended_limit=0)
        plain = Outcome(
            file=file,
            result=Result.ALIVE,
            identity=image.identity,
            process=image.process,
            evidence=verdict.evidence,
            cleared_unsent=image.cleared_unsent,
            damage=image.damage,
        )
        if verdict.state is Liveness.ALIVE:
            return plain
        if verdict.state is not Liveness.DEAD:
            owes_spans = has_bridge and image.owners_are_unsent
            may_be_done = image.end_note is not None and not owes_spans and not image.open
            return attrs.evolve(plain, result=Result.NOTHING if may_be_done else Result.UNPROVEN)
        return self._dead(plain, image, verdict, has_bridge=has_bridge)

    def _dead(self, plain: Outcome, image: JournalImage, verdict: Verdict, *, has_bridge: bool) -> Outcome:
        dead = attrs.evolve(
            plain,
            lost=lost_records(image, verdict.evidence) if self._wants_records else (),
            unsent_phases=len(image.ended),
        )
        if not has_bridge:
            return attrs.evolve(dead, result=Result.UNTRACED if image.open else Result.NOTHING)
        mark = read_mark(image)
        if mark is not None and not self._again:
            return attrs.evolve(dead, result=Result.ALREADY_SENT, spans=mark.spans)
        return self._recover(dead, image)

    def _verdict(self, header: Header) -> Verdict:
        process = header.process
        verdict = self._judge(
            process, heartbeat_wall_ns=header.heartbeat_wall_ns, now_wall_ns=self._clock.wall_ns(), this=self._this
        )
        if verdict.state is Liveness.UNKNOWN and process.host in self._assume_dead:
            return Verdict(Liveness.DEAD, f"taken for dead on the user's word; {verdict.evidence}")
        return verdict

    def _recover(self, dead: Outcome, image: JournalImage) -> Outcome:
        try:
            facts = SessionFacts.from_json(image.facts.get("otel"))
            rebuilt = rebuild(image, dead.lost if self._wants_records else None)
        except FactsError as error:
            problem = f"what it says of its trace is wrong: {error}"
            return attrs.evolve(dead, result=Result.FAILED, problem=problem)
        counted = attrs.evolve(dead, spans=len(rebuilt.spans), unsampled=rebuilt.unsampled, unplaced=rebuilt.unplaced)
        if not rebuilt.spans:
            return attrs.evolve(counted, result=Result.NOTHING)
        if self._sender is None:
            return attrs.evolve(counted, result=Result.WAITING)
        return self._send(counted, image, facts, rebuilt, self._sender)

    def _send(
        self, counted: Outcome, image: JournalImage, facts: SessionFacts, rebuilt: Rebuilt, sender: OtlpSender
    ) -> Outcome:
        if self._down is not None:
            return attrs.evolve(counted, result=Result.FAILED, problem=f"not tried, as before {self._down}")
        digest = hashlib.sha256()
        rejected, said = 0, ""
        try:
            for body in requests_of(facts, rebuilt.spans):
                answer = sender.send(body)
                digest.update(body)
                rejected += max(0, answer.rejected)
                said = said or answer.message
        except UndeliveredError as error:
            if error.is_down:
                self._down = str(error)
            return attrs.evolve(counted, result=Result.FAILED, problem=str(error))
        if rejected:
            problem = f"{rejected} of {len(rebuilt.spans)} spans were rejected{f': {said}' if said else ''}"
            return attrs.evolve(counted, result=Result.FAILED, problem=problem)
        mark = Mark(digest=digest.hexdigest(), spans=len(rebuilt.spans), endpoint=sender.endpoint.shown)
        try:
            write_mark(image, mark)
        except OSError as error:
            problem = (
                f"all of it was sent, which could not be noted here ({error.strerror or error}): "
                "the next recovery sends the same again"
            )
            return attrs.evolve(counted, result=Result.FAILED, problem=problem)
        return attrs.evolve(counted, result=Result.SENT, problem=f"it said: {said}" if said else None)


def _session_directory(found: Path | UnreadableJournal) -> Path:
    return (found.file if isinstance(found, UnreadableJournal) else found).parent


def _is_wanted(
    found: Path | UnreadableJournal, directory: Path, session_id: str | None, before_attempt: int | None
) -> bool:
    """Whether a journal is one of those asked for, as its header says, or its directory if it cannot be read."""
    if isinstance(found, UnreadableJournal):
        return session_id is None or may_be_of(found.file, directory, session_id)
    if session_id is None and before_attempt is None:
        return True
    try:
        identity = read_header(found).identity
    except JournalError:
        return session_id is None or may_be_of(found, directory, session_id)
    is_session = session_id is None or identity.session_id == session_id
    return is_session and (before_attempt is None or identity.attempt < before_attempt)
