"""What became of phases whose process died, by the evidence that `recover` and `postmortem` go by.

A process that has a journal has written down there how its phases stand, up to the instruction at which it died; what
it told a store is up to half a second older. So the journal is asked first, and only what nobody knows becomes LOST.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._liveness import Verdict
from stormphase._lost import DIED, as_lost
from stormphase._model import PhaseStatus, ProcessIdentity
from stormphase._owner_records import JOURNAL
from stormphase._record import OutputLine, PhaseRecord, RecordKind
from stormphase._said_lines import read_said
from stormphase._status import TABLE

# Not when it is needed: that is on a worker, and a fork beside an import leaves the child its lock.
from stormphase.stores import _journals
from stormphase.stores._launches import OWNERS, Court, Launch, launches_of
from stormphase.stores._query import RecordQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from stormphase.typing import RecordStore

    LastSeen = Callable[[ProcessIdentity], int | None]

UNFINISHED: Final = RecordQuery(status=frozenset(status for status, rule in TABLE.rules.items() if not rule.is_final))
# How they stood when the process last wrote to the store is all that is known of these.
UNKNOWN_MESSAGE: Final = "the process died, and nothing says how this ended"
UNKNOWN: Final = f"{DIED}; what it did after its last write here is not known"
# What a process had ended so long before its last write to the store has been in it: its queue holds no more.
_QUEUED_NS: Final = 60_000_000_000


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
    unfinished: dict[ProcessIdentity, list[PhaseRecord]] = {}
    for record in store.query(UNFINISHED):
        if record.process is not None:
            unfinished.setdefault(record.process, []).append(record)
    court = Court(now_wall_ns)
    dead: list[_Dead] = []
    for process, records in unfinished.items():
        seen_ns = None if last_seen_ns is None else last_seen_ns(process)
        alive_ns = max([seen_ns or 0, *(record.entered_ns for record in records)])
        verdict = court.proof(process, alive_ns)
        if verdict is not None:
            dead.append(_Dead(process, records, verdict, alive_ns, 0 if seen_ns is None else seen_ns - _QUEUED_NS))
    launches = {*also, *(launch for each in dead for launch in launches_of(each.records))}
    ended = _by_journals(store, launches, dead, set(unfinished), court) if launches else []
    known = {record.key for record in ended}
    for each in dead:
        rest = [record for record in each.records if record.key not in known]
        said = _with_last_words(rest, _journal_of(each.records))
        lost = as_lost(said, evidence=each.verdict.evidence, ended_ns=each.alive_ns, reason=UNKNOWN)
        ended += (record if record.error_type is None else _unknown(record) for record in lost)
    if ended:
        store.end(ended)
    return ended


@attrs.frozen
class _Dead:
    """A process that is proven dead: its unfinished records, when it was last known alive, and since when ends lack."""

    process: ProcessIdentity
    records: list[PhaseRecord]
    verdict: Verdict
    alive_ns: int
    since_ns: int


def _by_journals(
    store: RecordStore,
    launches: Iterable[Launch],
    dead: Iterable[_Dead],
    unfinished: Collection[ProcessIdentity],
    court: Court,
) -> list[PhaseRecord]:
    """Return what the journals of some launches say of dead processes, also of those that had written nothing yet."""
    files = {header.process: (file, header) for launch in launches for file, header in _journals.journals_of(launch)}
    told: list[PhaseRecord] = []
    for each in dead:
        if each.process in files:
            file, _ = files[each.process]
            spare = getattr(store, "journals", None)
            told += _journals.told_by(file, each.process, each.verdict, each.since_ns, spare)
    unknown = {process: found for process, found in files.items() if process not in unfinished}
    told += _journals.told_of_unknown(store, unknown, court)
    return told


def _unknown(record: PhaseRecord) -> PhaseRecord:
    """Return a LOST record that does not claim that its phase was open to the last."""
    return attrs.evolve(record, error_message=UNKNOWN_MESSAGE)


def _journal_of(records: Iterable[PhaseRecord]) -> Path | None:
    """Return the journal of one process, if its own record says where it is."""
    for owner in records:
        journal = owner.attributes.get(JOURNAL)
        if owner.kind in OWNERS and isinstance(journal, str):
            return Path(journal)
    return None


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
