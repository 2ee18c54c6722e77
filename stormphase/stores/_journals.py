"""Reads the journals of a store's dead processes: how their phases ended, and of whom the store has not heard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._owner_records import JOURNAL
from stormphase._record import MAX_SEQUENCE, PhaseRecord
from stormphase.exceptions import JournalError
from stormphase.journal import read_journal
from stormphase.journal._directory import name_prefix, remove_journal
from stormphase.journal._read import find_journals, read_header
from stormphase.journal._records import records_of_image
from stormphase.stores._launches import OWNERS, Court, Launch
from stormphase.stores._query import RecordQuery

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from stormphase._liveness import Verdict
    from stormphase._model import ProcessIdentity
    from stormphase.journal._header import Header
    from stormphase.typing import RecordStore

# More ends than a store's queue and what waits beside it can have held.
_LAST_ENDED: Final = 70_000
_LIMIT: Final = 1 << 63


def journals_of(launch: Launch) -> Iterator[tuple[Path, Header]]:
    """Yield the journals of a rank and its workers that can be read, with what they say first."""
    prefix = name_prefix(launch.rank, launch.attempt)
    for file in _found_in(launch.directory):
        header = _header_of(file) if file.name.startswith(prefix) else None
        if header is not None and _launch_of(file, header) == launch:
            yield file, header


def told_by(
    file: Path, process: ProcessIdentity, verdict: Verdict, since_ns: int, spare: Path | None
) -> list[PhaseRecord]:
    """Return what a dead process's journal says of it; nothing if that cannot be read.

    Args:
        file: the journal.
        process: whose it should be.
        verdict: the proof that it is dead.
        since_ns: what ended before is known, in nanoseconds since the Unix epoch.
        spare: the directory of journals that go when all of them is stored.
    """
    try:
        image = read_journal(file, ended_limit=_LAST_ENDED)
    except (JournalError, ValueError):
        return []
    if image.process != process:  # Another one's, in a file of the same name.
        return []
    records = list(filter(_fits, records_of_image(image, verdict, ended_since_ns=since_ns)))
    return [_without_place(record) for record in records] if file.parent.parent == spare else records


def told_of_unknown(
    store: RecordStore, journals: Mapping[ProcessIdentity, tuple[Path, Header]], court: Court
) -> Iterator[PhaseRecord]:
    """Yield what journals say of processes that have died before they wrote anything into the store."""
    known: dict[Launch, set[ProcessIdentity | None]] = {}
    for process, (file, header) in journals.items():
        verdict = court.proof(process, header.heartbeat_wall_ns)
        if verdict is None:
            continue
        launch = _launch_of(file, header)
        if launch not in known:
            known[launch] = _ended_processes(store, launch)
        if process not in known[launch]:
            yield from told_by(file, process, verdict, 0, getattr(store, "journals", None))


def spare_launches(directory: Path) -> set[Launch]:
    """Return the launches whose workers have left journals in a store's own directory."""
    headers = ((file, _header_of(file)) for file in _found_in(directory))
    return {_launch_of(file, header) for file, header in headers if header is not None}


def remove_spares(launches: Iterable[Launch], store: RecordStore, *, now_wall_ns: int) -> None:
    """Delete the journals in a store's own directory whose processes are dead and have ended in the store."""
    court = Court(now_wall_ns)
    for launch in launches:
        known = _ended_processes(store, launch)
        for file, header in journals_of(launch):
            if header.process in known and court.proof(header.process, header.heartbeat_wall_ns):
                remove_journal(file)


def _found_in(directory: Path) -> list[Path]:
    try:
        return [file for file in find_journals(directory) if isinstance(file, Path)]
    except JournalError:
        return []


def _header_of(file: Path) -> Header | None:
    try:
        return read_header(file)
    except JournalError:
        return None


def _launch_of(file: Path, header: Header) -> Launch:
    identity = header.identity
    return Launch(file.parent, identity.session_id, identity.attempt, identity.rank)


def _ended_processes(store: RecordStore, launch: Launch) -> set[ProcessIdentity | None]:
    """Return the processes of a launch that have ended in the store."""
    asked = RecordQuery(session_id=launch.session_id, session_attempt=launch.attempt, rank=launch.rank, kind=OWNERS)
    return {record.process for record in store.query(asked) if record.is_ended}


def _without_place(record: PhaseRecord) -> PhaseRecord:
    """Return a record that does not say where the journal is: it goes when all of it is stored."""
    attributes = {key: value for key, value in record.attributes.items() if key != JOURNAL}
    return attrs.evolve(record, attributes=attributes) if record.kind in OWNERS else record


def _fits(record: PhaseRecord) -> bool:
    """Whether a record has ended; not if it is a damaged file's, with numbers that no store can hold."""
    if record.ended_ns is None or record.sequence > MAX_SEQUENCE:
        return False
    numbers = (record.entered_ns, record.ended_ns, record.ended_monotonic_ns, record.entered_monotonic_ns)
    more = (record.self_ns, record.paused_ns, record.thread_id, record.attempt)
    return all(number is None or -_LIMIT <= number < _LIMIT for number in (*numbers, *more))
