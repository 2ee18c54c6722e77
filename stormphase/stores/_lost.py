"""What became of phases whose process died, by the evidence that `recover` and `postmortem` go by.

A process that has a journal has written down there how its phases stand, up to the instruction at which it died; what
it told a store is up to half a second older. So the journal is asked first, and only what nobody knows becomes LOST.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._liveness import Liveness, judge, own_process
from stormphase._lost import DIED, as_lost
from stormphase._model import PhaseStatus
from stormphase._owner_records import JOURNAL
from stormphase._record import MAX_SEQUENCE, OutputLine, PhaseRecord, RecordKind
from stormphase._said_lines import read_said
from stormphase._status import TABLE
from stormphase.exceptions import JournalError
from stormphase.journal import read_journal
from stormphase.journal._directory import name_prefix, remove_journal
from stormphase.journal._read import find_journals, read_header
from stormphase.journal._records import records_of_image
from stormphase.stores._query import RecordQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from stormphase._liveness import Verdict
    from stormphase._model import ProcessIdentity
    from stormphase.journal._header import Header
    from stormphase.typing import RecordStore

    LastSeen = Callable[[ProcessIdentity], int | None]

OWNERS: Final = frozenset({RecordKind.RANK, RecordKind.PROCESS})
UNFINISHED: Final = RecordQuery(status=frozenset(status for status, rule in TABLE.rules.items() if not rule.is_final))
# How they stood when the process last wrote to the store is all that is known of these.
UNKNOWN: Final = f"{DIED}; what it did after its last write here is not known"
# What a process had ended so long before its last write to the store has been in it: its queue holds no more.
_QUEUED_NS: Final = 60_000_000_000
_LIMIT: Final = 1 << 63


def close_lost(
    store: RecordStore,
    *,
    now_wall_ns: int,
    last_seen_ns: LastSeen | None = None,
) -> list[PhaseRecord]:
    """Give every unfinished record of a process that is proven dead its end; return those that are LOST.

    How a phase ended says the journal of its process, if it had one that can be read here; what that has and the store
    has not is added. Records of a process that is not known to be dead, or that say nothing of their process, stay as
    they are.

    Args:
        store: whose records.
        now_wall_ns: now, nanoseconds since the Unix epoch.
        last_seen_ns: says when a process was last known alive, if the store knows more than its records do.
    """
    ended = end_the_dead(store, now_wall_ns=now_wall_ns, last_seen_ns=last_seen_ns)
    return [record for record in ended if record.status is PhaseStatus.LOST]


def end_the_dead(
    store: RecordStore,
    *,
    now_wall_ns: int,
    last_seen_ns: LastSeen | None = None,
    also: Iterable[Launch] = (),
) -> list[PhaseRecord]:
    """Do as `close_lost` does, and return all records that were given to the store.

    Args:
        store: whose records.
        now_wall_ns: now, nanoseconds since the Unix epoch.
        last_seen_ns: says when a process was last known alive, if the store knows more than its records do.
        also: launches of whose processes the store may know nothing at all.
    """
    court = _Court(now_wall_ns, last_seen_ns)
    spare = getattr(store, "journals", None)
    unfinished: dict[ProcessIdentity, list[PhaseRecord]] = {}
    for record in store.query(UNFINISHED):
        if record.process is not None:
            unfinished.setdefault(record.process, []).append(record)
    dead = {process: verdict for process, records in unfinished.items() if (verdict := court.proof(process, records))}
    launches = {*also, *(launch for process in dead for launch in launches_of(unfinished[process]))}
    journals = {header.process: (file, header) for launch in launches for file, header in launch.journals()}
    ended: list[PhaseRecord] = []
    for process, verdict in dead.items():
        file, _ = journals.pop(process, (None, None))
        told = [] if file is None else _told_by(file, process, verdict, court.since_ns(process), spare)
        known = {record.key for record in told}
        rest = [record for record in unfinished[process] if record.key not in known]
        alive_ns = court.alive_ns(process, unfinished[process])
        said = _with_last_words(rest, file or _journal_of(unfinished[process]))
        ended += [*told, *as_lost(said, evidence=verdict.evidence, ended_ns=alive_ns, reason=UNKNOWN)]
    for process in unfinished:
        journals.pop(process, None)
    ended += _told_of_unknown(store, journals, court)
    if ended:
        store.end(ended)
    return ended


@attrs.frozen
class Launch:
    """One rank of one attempt of a session, and the directory in which its journals lie."""

    directory: Path
    session_id: str
    attempt: int
    rank: int

    def journals(self) -> Iterator[tuple[Path, Header]]:
        """Yield the journals of the rank and its workers that can be read, with what they say first."""
        prefix = name_prefix(self.rank, self.attempt)
        try:
            found = find_journals(self.directory)
        except JournalError:
            return
        for file in found:
            if not isinstance(file, Path) or not file.name.startswith(prefix):
                continue
            try:
                header = read_header(file)
            except JournalError:
                continue
            identity = header.identity
            if (identity.session_id, identity.attempt) == (self.session_id, self.attempt):
                yield file, header


def launches_of(records: Iterable[PhaseRecord]) -> set[Launch]:
    """Return the launches of processes whose own records are among these and say where their journals are."""
    found = set()
    for record in records:
        journal = record.attributes.get(JOURNAL) if record.kind in OWNERS else None
        if isinstance(journal, str) and record.rank is not None:
            found.add(Launch(Path(journal).parent, record.session_id, record.session_attempt, record.rank))
    return found


def spare_launches(directory: Path) -> set[Launch]:
    """Return the launches whose workers have left journals in a store's own directory."""
    found = set()
    for file in _journals_in(directory):
        with contextlib.suppress(JournalError):
            identity = read_header(file).identity
            found.add(Launch(file.parent, identity.session_id, identity.attempt, identity.rank))
    return found


def remove_spares(launches: Iterable[Launch], store: RecordStore, *, now_wall_ns: int) -> None:
    """Delete the journals in a store's own directory whose processes are dead and have ended in the store."""
    court = _Court(now_wall_ns, None)
    for launch in launches:
        known = _ended_processes(store, launch)
        for file, header in launch.journals():
            if header.process in known and court.is_dead(header):
                remove_journal(file)


def _journals_in(directory: Path) -> list[Path]:
    try:
        return [file for file in find_journals(directory) if isinstance(file, Path)]
    except JournalError:
        return []


class _Court:
    """Judges processes, all at one moment."""

    def __init__(self, now_wall_ns: int, last_seen_ns: LastSeen | None) -> None:
        self._now_wall_ns = now_wall_ns
        self._last_seen_ns = last_seen_ns
        self._this = own_process()

    def proof(self, process: ProcessIdentity, records: Iterable[PhaseRecord]) -> Verdict | None:
        """Return the verdict on a process that is proven dead; None on any other."""
        verdict = self._judge(process, self.alive_ns(process, records))
        return verdict if verdict.state is Liveness.DEAD else None

    def proof_by(self, header: Header) -> Verdict | None:
        """Return the verdict on the process of a journal, if it is proven dead."""
        verdict = self._judge(header.process, header.heartbeat_wall_ns)
        return verdict if verdict.state is Liveness.DEAD else None

    def is_dead(self, header: Header) -> bool:
        """Return whether the process of a journal is proven dead."""
        return self.proof_by(header) is not None

    def alive_ns(self, process: ProcessIdentity, records: Iterable[PhaseRecord]) -> int:
        """Return when a process was last known alive by its records and the store."""
        alive_ns = max(record.entered_ns for record in records)
        seen_ns = None if self._last_seen_ns is None else self._last_seen_ns(process)
        return alive_ns if seen_ns is None else max(alive_ns, seen_ns)

    def since_ns(self, process: ProcessIdentity) -> int:
        """Return from when on ends of a process may be missing in the store; 0 for ever."""
        seen_ns = None if self._last_seen_ns is None else self._last_seen_ns(process)
        return 0 if seen_ns is None else seen_ns - _QUEUED_NS

    def _judge(self, process: ProcessIdentity, alive_ns: int) -> Verdict:
        return judge(process, heartbeat_wall_ns=alive_ns, now_wall_ns=self._now_wall_ns, this=self._this)


def _journal_of(records: Iterable[PhaseRecord]) -> Path | None:
    """Return the journal of one process, if its own record says where it is."""
    for owner in records:
        journal = owner.attributes.get(JOURNAL)
        if owner.kind in OWNERS and isinstance(journal, str):
            return Path(journal)
    return None


def _told_by(
    journal: Path, process: ProcessIdentity, verdict: Verdict, since_ns: int, spare: Path | None
) -> list[PhaseRecord]:
    """Return what a dead process's journal says of it, but for what it ended long ago; nothing if that is not there."""
    try:
        image = read_journal(journal)
    except (JournalError, ValueError):
        return []
    if image.process != process:  # Another one's, in a file of the same name.
        return []
    records = [record for record in records_of_image(image, verdict) if _is_news(record, since_ns)]
    return [_without_place(record) for record in records] if journal.parent.parent == spare else records


def _without_place(record: PhaseRecord) -> PhaseRecord:
    """Return a record that does not say where the journal is: it goes when all of it is stored."""
    attributes = {key: value for key, value in record.attributes.items() if key != JOURNAL}
    return attrs.evolve(record, attributes=attributes) if record.kind in OWNERS else record


def _is_news(record: PhaseRecord, since_ns: int) -> bool:
    """Whether a record has ended since then; not if it is a damaged file's, with numbers that no store can hold."""
    if record.ended_ns is None or record.ended_ns < since_ns or record.sequence > MAX_SEQUENCE:
        return False
    numbers = (record.entered_ns, record.ended_ns, record.ended_monotonic_ns, record.entered_monotonic_ns)
    more = (record.self_ns, record.paused_ns, record.thread_id, record.attempt)
    return all(number is None or -_LIMIT <= number < _LIMIT for number in (*numbers, *more))


def _told_of_unknown(
    store: RecordStore, journals: Mapping[ProcessIdentity, tuple[Path, Header]], court: _Court
) -> Iterator[PhaseRecord]:
    """Yield what journals say of processes that have died before they wrote anything into the store."""
    known: dict[Launch, set[ProcessIdentity | None]] = {}
    for process, (file, header) in journals.items():
        verdict = court.proof_by(header)
        if verdict is None:
            continue
        identity = header.identity
        launch = Launch(file.parent, identity.session_id, identity.attempt, identity.rank)
        if launch not in known:
            known[launch] = _ended_processes(store, launch)
        if process not in known[launch]:
            yield from _told_by(file, process, verdict, 0, getattr(store, "journals", None))


def _ended_processes(store: RecordStore, launch: Launch) -> set[ProcessIdentity | None]:
    """Return the processes of a launch that have ended in the store."""
    asked = RecordQuery(session_id=launch.session_id, session_attempt=launch.attempt, rank=launch.rank, kind=OWNERS)
    return {record.process for record in store.query(asked) if record.is_ended}


def _with_last_words(records: list[PhaseRecord], journal: Path | None) -> list[PhaseRecord]:
    """Return the records of one process with what it said last in each phase, if it had a journal and that says so."""
    if journal is None:
        return records
    said: dict[int, list[OutputLine]] = {}
    for line in read_said(journal):
        said.setdefault(line.sequence, []).append(OutputLine(line.time_ns, line.stream, line.text))
    return [_saying(record, said) for record in records]


def _saying(record: PhaseRecord, said: dict[int, list[OutputLine]]) -> PhaseRecord:
    if record.kind is not RecordKind.PHASE or record.sequence not in said:
        return record
    # A line from before its phase would be another process's, whose journal had this one's name.
    lines = tuple(line for line in said[record.sequence] if line.time_ns >= record.entered_ns)
    return attrs.evolve(record, output=lines)
