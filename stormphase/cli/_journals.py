"""Which journals a command is about: those of the newest attempt of the newest session, unless it is told."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._clock import SystemClock
from stormphase._liveness import Liveness, judge, own_process
from stormphase._model import ProcessIdentity
from stormphase.analysis._ranks import LAST_ENDED, Past, ProcessReport, report_process
from stormphase.analysis._words import MAX_MESSAGE, shown
from stormphase.cli._shares import processes_for, shared_out
from stormphase.exceptions import JournalError, JournalIncompleteError, StormphaseError
from stormphase.journal._header import text_or_none
from stormphase.journal._read import UnreadableJournal, find_journals, may_be_of, read_header, read_journal
from stormphase.journal._said import read_said

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stormphase.journal._image import JournalImage
    from stormphase.typing import Clock

MAX_SAID: Final = 8  # lines of each process
_MAX_NAMED: Final = 5
_AHEAD: Final = 16  # files
_AHEAD_BYTES: Final = 2 * 1024 * 1024  # of each: what comes after is mostly not in use


class NoJournalsError(StormphaseError):
    """A directory has no journal that can be read, or not of what was asked for."""


@attrs.frozen(kw_only=True)
class Selection:
    """The journals of one attempt.

    Attributes:
        session_id: the session.
        attempt: its attempt.
        files: the journals of that attempt.
        stray_files: journals of ranks that this attempt lacks, in the attempt before: they belong to this one.
        stray_ranks: which ranks those are.
        other_attempts: others that have journals.
        other_sessions: others that have journals, newest first.
        unreadable: journals that cannot be read, or directories of sessions, of this session or unknown whose.
        unreadable_others: likewise, of other sessions, as their directories say.
    """

    session_id: str
    attempt: int
    files: tuple[Path, ...]
    stray_files: tuple[Path, ...]
    stray_ranks: tuple[int, ...]
    other_attempts: tuple[int, ...]
    other_sessions: tuple[str, ...]
    unreadable: tuple[UnreadableJournal, ...]
    unreadable_others: tuple[UnreadableJournal, ...]


@attrs.frozen
class _Peek:
    """What a journal's header says of whose it is."""

    file: Path
    session_id: str
    attempt: int
    started_wall_ns: int
    alive_wall_ns: int
    rank: int
    world_size: int
    started_by: str | None
    process: ProcessIdentity | None

    def was_there(self, at_wall_ns: int) -> bool:
        """Whether its process lived at a time: it gave a sign of life since then, or lives now."""
        if self.alive_wall_ns >= at_wall_ns or self.process is None:
            return self.alive_wall_ns >= at_wall_ns
        verdict = judge(self.process, heartbeat_wall_ns=self.alive_wall_ns, now_wall_ns=SystemClock().wall_ns())
        return verdict.state is Liveness.ALIVE


def select(directory: Path, *, session_id: str | None = None, attempt: int | None = None) -> Selection:
    """Return the journals of the newest attempt of the session that began last, or of those that are named.

    Raises:
        JournalError: if the directory cannot be read, or none of its journals.
        NoJournalsError: if it has none, or none of what is named.
    """
    peeks: list[_Peek] = []
    unreadable: list[UnreadableJournal] = []
    for file in find_journals(directory):
        found = file if isinstance(file, UnreadableJournal) else _peek(file)
        if isinstance(found, _Peek):
            peeks.append(found)
        elif found is not None:
            unreadable.append(found)
    if not peeks and unreadable:
        raise unreadable[0].error
    began: dict[str, int] = {}
    for peek in peeks:
        began[peek.session_id] = max(peek.started_wall_ns, began.get(peek.session_id, peek.started_wall_ns))
    # A program that a rank has started is newer than its session, and not what is asked about.
    programs = {peek.session_id for peek in peeks if peek.started_by in began}
    sessions = sorted(began, key=lambda each: (each in programs, -began[each], each))
    chosen = _chosen(directory, sessions, session_id)
    attempts = sorted({peek.attempt for peek in peeks if peek.session_id == chosen})
    newest = attempts[-1] if attempt is None else attempt
    if newest not in attempts:
        known = ", ".join(map(str, attempts[-_MAX_NAMED:]))
        raise NoJournalsError(
            f"No journal of attempt {newest} of session {chosen!a} in {str(directory)!a}: give {known}."
        )
    own = [peek for peek in peeks if (peek.session_id, peek.attempt) == (chosen, newest)]
    before = max((each for each in attempts if each < newest), default=None)
    strays = _strays(own, [peek for peek in peeks if (peek.session_id, peek.attempt) == (chosen, before)])
    return Selection(
        session_id=chosen,
        attempt=newest,
        files=tuple(peek.file for peek in own),
        stray_files=tuple(peek.file for peek in strays),
        stray_ranks=tuple(sorted({peek.rank for peek in strays})),
        other_attempts=tuple(each for each in attempts if each != newest),
        other_sessions=tuple(each for each in sessions if each != chosen),
        unreadable=tuple(each for each in unreadable if may_be_of(each.file, directory, chosen)),
        unreadable_others=tuple(each for each in unreadable if not may_be_of(each.file, directory, chosen)),
    )


def _strays(own: list[_Peek], before: list[_Peek]) -> list[_Peek]:
    """Return those of the attempt before that belong to this one, which lacks their ranks.

    They lived when this one began, or no rank has begun both: then a launch was taken for two, as where its ranks are
    on hosts that have no place in common, and one died before the others began.
    """
    ranks, ranks_before = {peek.rank for peek in own}, {peek.rank for peek in before}
    sizes = {peek.world_size for peek in own}
    began_ns = min(peek.started_wall_ns for peek in own)
    living = {peek.rank for peek in before if peek.was_there(began_ns)}
    found = (ranks_before if ranks.isdisjoint(ranks_before) else living) - ranks
    return [peek for peek in before if peek.rank in found and peek.world_size in sizes]


def _chosen(directory: Path, sessions: list[str], wanted: str | None) -> str:
    if not sessions:
        raise NoJournalsError(
            f"No journal in {str(directory)!a}. Give the directory that was given as `journal`, or as STORMPHASE_DIR."
        )
    if wanted is None:
        return sessions[0]
    if wanted not in sessions:
        known = ", ".join(f"{each!a}" for each in sessions[:_MAX_NAMED])
        raise NoJournalsError(f"No journal of session {wanted!a} in {str(directory)!a}: the newest are {known}.")
    return wanted


def _peek(file: Path) -> _Peek | UnreadableJournal | None:
    """Return whose a journal is; None for one that its process has not finished creating: it has nothing to say."""
    try:
        header = read_header(file)
    except JournalIncompleteError:
        return None
    except JournalError as error:
        return UnreadableJournal(file=file, error=error)
    identity = header.identity
    note = header.end_note
    return _Peek(
        file,
        identity.session_id,
        identity.attempt,
        started_wall_ns=header.anchor.to_wall_ns(header.started_ns),
        alive_wall_ns=header.heartbeat_wall_ns if note is None else header.anchor.to_wall_ns(note.ended_ns),
        rank=identity.rank,
        world_size=identity.world_size,
        started_by=text_or_none(header.facts.get("started_by")),
        process=header.process if note is None else None,
    )


def read_reports(
    files: Sequence[Path], clock: Clock | None = None, *, last: int = LAST_ENDED, processes: int | None = None
) -> Iterator[ProcessReport | UnreadableJournal]:
    """Yield what each journal says of its process and whether it lives, one at a time: a whole image is large.

    Thousands are read by several processes, unless `processes` says by how many.
    """
    reader = _Reader(SystemClock() if clock is None else clock, last)
    processes = processes_for(len(files)) if processes is None else processes
    found = shared_out(files, reader.reports, processes)
    for file, report in zip(files, found, strict=True):
        yield report if report is not None else reader.read(file)


class _Reader:
    """Reads journals one after the other; each path that they have is kept once."""

    def __init__(self, clock: Clock, last: int) -> None:
        """Nothing read yet."""
        self._clock = clock
        self._last = last
        self._this = own_process()
        self._paths: dict[tuple[str, ...], tuple[str, ...]] = {}

    def reports(self, files: Sequence[Path]) -> Iterator[ProcessReport | None]:
        """Yield a report of each, None if it cannot be read: why is for `read` to say, since no error can be sent."""
        for index, file in enumerate(files):
            for next_file in files[index + _AHEAD : index + _AHEAD + 1] if index else files[1 : _AHEAD + 1]:
                _read_ahead(next_file)
            found = self.read(file)
            yield found if isinstance(found, ProcessReport) else None

    def read(self, file: Path) -> ProcessReport | UnreadableJournal:
        """Return what a journal says, or why it cannot be read."""
        try:
            return read_report(file, self._clock, self._this, last=self._last, paths=self._paths)
        except JournalError as error:
            return UnreadableJournal(file=file, error=error)


def _read_ahead(file: Path) -> None:
    """Have the system read a journal from the disk while another is looked at: from a cold disk a third faster."""
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)


def read_report(
    file: Path,
    clock: Clock,
    this: ProcessIdentity,
    *,
    last: int = LAST_ENDED,
    paths: dict[tuple[str, ...], tuple[str, ...]] | None = None,
) -> ProcessReport:
    """Return what a journal says of its process, judged at this moment.

    Raises:
        JournalError: as `read_journal`.
    """
    report = report_of(read_journal(file, ended_limit=last), clock, this, last=last, paths=paths)
    said = [shown(line.text, MAX_MESSAGE) for line in read_said(file)[-MAX_SAID:]]
    return attrs.evolve(report, said=tuple(said))


def report_of(
    image: JournalImage,
    clock: Clock,
    this: ProcessIdentity,
    *,
    last: int = LAST_ENDED,
    paths: dict[tuple[str, ...], tuple[str, ...]] | None = None,
    past: Past | None = None,
) -> ProcessReport:
    """Return what an image that was read just now says of its process, judged at this moment."""
    verdict = judge(image.process, heartbeat_wall_ns=image.heartbeat_wall_ns, now_wall_ns=clock.wall_ns(), this=this)
    # The monotonic clock is the machine's, not the process's, from one boot to the next (clock_gettime(2)).
    is_here = image.process.boot_id is not None and image.process.boot_id == this.boot_id
    now_ns = clock.monotonic_ns() if is_here else None
    return report_process(image, verdict, now_ns=now_ns, last=last, paths=paths, past=past)
