"""What became of phases whose process died, by the evidence that `recover` and `postmortem` go by.

A process that has a journal has written down there how its phases stand, up to the instruction at which it died; what
it told a store is up to half a second older. So the journal is asked first, and only what nobody knows becomes LOST.
"""

from __future__ import annotations

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
from stormphase.journal._read import find_journals, read_header
from stormphase.journal._records import records_of_image
from stormphase.stores._query import RecordQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from stormphase._liveness import Verdict
    from stormphase._model import ProcessIdentity
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
    unfinished: dict[ProcessIdentity, list[PhaseRecord]] = {}
    for record in store.query(UNFINISHED):
        if record.process is not None:
            unfinished.setdefault(record.process, []).append(record)
    launches = dict.fromkeys(also)
    ended: list[PhaseRecord] = []
    for process, records in unfinished.items():
        verdict, alive_ns = court.judge(process, records)
        if verdict.state is not Liveness.DEAD:
            continue
        journal = _journal_of(records)
        told = [] if journal is None else _told_by(journal, process, verdict, court.since_ns(process))
        if journal is not None:
            launches[Launch(journal.parent, records[0].session_id, records[0].session_attempt)] = None
        known = {record.key for record in told}
        ended += told
        rest = [record for record in records if record.key not in known]
        ended += as_lost(_with_last_words(rest, journal), evidence=verdict.evidence, ended_ns=alive_ns, reason=UNKNOWN)
    seen = set(unfinished)
    for launch in launches:
        ended += _told_of(launch, store, court, seen)
    if ended:
        store.end(ended)
    return ended


@attrs.frozen
class Launch:
    """One attempt of a session, and the directory in which its journals lie."""

    directory: Path
    session_id: str
    attempt: int


def launches_of(records: Iterable[PhaseRecord]) -> set[Launch]:
    """Return the launches of processes whose own records are among these and say where their journals are."""
    found = set()
    for record in records:
        journal = record.attributes.get(JOURNAL) if record.kind in OWNERS else None
        if isinstance(journal, str):
            found.add(Launch(Path(journal).parent, record.session_id, record.session_attempt))
    return found


class _Court:
    """Judges processes, all at one moment."""

    def __init__(self, now_wall_ns: int, last_seen_ns: LastSeen | None) -> None:
        self._now_wall_ns = now_wall_ns
        self._last_seen_ns = last_seen_ns
        self._this = own_process()

    def judge(self, process: ProcessIdentity, records: Iterable[PhaseRecord]) -> tuple[Verdict, int]:
        """Return whether a process lives, and when its records and the store last knew it alive."""
        alive_ns = max(record.entered_ns for record in records)
        seen_ns = None if self._last_seen_ns is None else self._last_seen_ns(process)
        if seen_ns is not None:
            alive_ns = max(alive_ns, seen_ns)
        return self.judge_by(process, alive_ns), alive_ns

    def judge_by(self, process: ProcessIdentity, alive_ns: int) -> Verdict:
        """Return whether a process lives that was alive at that time."""
        return judge(process, heartbeat_wall_ns=alive_ns, now_wall_ns=self._now_wall_ns, this=self._this)

    def since_ns(self, process: ProcessIdentity) -> int:
        """Return from when on ends of a process may be missing in the store; 0 for ever."""
        seen_ns = None if self._last_seen_ns is None else self._last_seen_ns(process)
        return 0 if seen_ns is None else seen_ns - _QUEUED_NS


def _journal_of(records: Iterable[PhaseRecord]) -> Path | None:
    """Return the journal of one process, if its own record says where it is."""
    for owner in records:
        journal = owner.attributes.get(JOURNAL)
        if owner.kind in OWNERS and isinstance(journal, str):
            return Path(journal)
    return None


def _told_by(journal: Path, process: ProcessIdentity, verdict: Verdict, since_ns: int) -> list[PhaseRecord]:
    """Return what a dead process's journal says of it, but for what it ended long ago; nothing if that is not there."""
    try:
        image = read_journal(journal)
    except (JournalError, ValueError):
        return []
    if image.process != process:  # Another one's, in a file of the same name.
        return []
    return [record for record in records_of_image(image, verdict) if _is_news(record, since_ns)]


def _is_news(record: PhaseRecord, since_ns: int) -> bool:
    """Whether a record has ended since then; not if it is a damaged file's, with numbers that no store can hold."""
    if record.ended_ns is None or record.ended_ns < since_ns or record.sequence > MAX_SEQUENCE:
        return False
    numbers = (record.entered_ns, record.ended_ns, record.ended_monotonic_ns, record.entered_monotonic_ns)
    more = (record.self_ns, record.paused_ns, record.thread_id, record.attempt)
    return all(number is None or -_LIMIT <= number < _LIMIT for number in (*numbers, *more))


def _told_of(launch: Launch, store: RecordStore, court: _Court, seen: set[ProcessIdentity]) -> Iterator[PhaseRecord]:
    """Yield what the journals of a launch say of processes that have died before they wrote anything into the store."""
    try:
        found = find_journals(launch.directory)
    except JournalError:
        return
    known: set[ProcessIdentity | None] | None = None
    for file in found:
        if not isinstance(file, Path):
            continue
        try:
            header = read_header(file)
        except JournalError:
            continue
        process, identity = header.process, header.identity
        if process in seen or (identity.session_id, identity.attempt) != (launch.session_id, launch.attempt):
            continue
        verdict = court.judge_by(process, header.heartbeat_wall_ns)
        if verdict.state is not Liveness.DEAD:
            continue
        if known is None:
            asked = RecordQuery(session_id=launch.session_id, session_attempt=launch.attempt, kind=OWNERS)
            known = {record.process for record in store.query(asked)}
        if process not in known:  # Else it has ended in order, and told so.
            yield from _told_by(file, process, verdict, 0)


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
