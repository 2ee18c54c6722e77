"""Reading records, from wherever they are kept: a store, a database file, a directory of journals, or at hand."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from stormphase._attribution import corrections, is_of_the_gone
from stormphase._clock import SystemClock
from stormphase._liveness import judge, own_process
from stormphase._model import PhaseStatus
from stormphase._record import RecordKind, entering_order
from stormphase._status import FAILURES
from stormphase.exceptions import JournalError, StoreError, UnknownNameError
from stormphase.journal import UnreadableJournal, read_journal
from stormphase.journal._read import find_journals, read_header
from stormphase.journal._records import records_of_image
from stormphase.stores import MAX_ATTRIBUTE_COLUMNS, RecordQuery, SqliteStore, near_names

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from stormphase._attribution import Cause
    from stormphase._record import PhaseRecord
    from stormphase.stores import UnreadableRows
    from stormphase.typing import RecordStore

    Source: TypeAlias = "str | os.PathLike[str] | RecordStore | Iterable[PhaseRecord]"

_MAX_NAMES = 65_536
_BUSY_TIMEOUT_S: Final = 1.0
_FIX = "Give the file of a SqliteStore, or the directory that was given as `journal`, or as STORMPHASE_DIR."


def read_records(
    source: Source,
    wanted: RecordQuery | None = None,
    /,
    *,
    on_unreadable: Callable[[UnreadableJournal | UnreadableRows], object] | None = None,
    as_is: bool = False,
    **filters: Any,
) -> Iterator[PhaseRecord]:
    """Return the records that are wanted, one at a time, in the order in which they were entered.

    From a store memory stays flat. Of journals those of one launch, and of launches that ran at the same time, are held
    together, but only what is wanted of them.

    Args:
        source: the file of a `SqliteStore`, a directory of journals, a store, or records.
        wanted: which; by default all.
        on_unreadable: told of each journal that cannot be read, and at the end of rows of a database that are no
            records; by default they are passed over.
        as_is: leave a database's file as it is; by default what dead processes left open in it is first given its end
            there, as by `SqliteStore.close_lost`, if the file can be written.
        filters: the attributes of a `RecordQuery`, instead of one: `path="train/*"`, `status="failed"`, `rank=3`,
            `where={"epoch": 1}`, ...

    Raises:
        StoreError: if there is nothing at that path, no journal in that directory, or the database cannot be read.
        JournalError: if the directory cannot be read.
        UnknownNameError: if no record has such a path or attribute; of a database at once, else when all was read.
    """
    if wanted is None:
        wanted = RecordQuery(**filters)
    elif filters:
        message = "Ask by a RecordQuery or by keywords, not by both."
        raise TypeError(message)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return _of_directory(path, wanted, on_unreadable)
        source = _opened(path, as_is=as_is)
    if isinstance(source, SqliteStore):
        _check_names(source, wanted)
        return source.query(wanted, on_unreadable=on_unreadable)
    return _filtered(source, wanted)


def latest_records(records: Iterable[PhaseRecord], tags: Sequence[str] = ()) -> list[PhaseRecord]:
    """Return the newest record of each path, kind, and values of the attributes `tags`; the oldest first.

    Newest is what was entered last. An attribute that a record has not is a value like any other.

    Args:
        records: the history, in any order.
        tags: attributes that tell apart runs of one path, such as `dataset`.
    """
    found: dict[Hashable, PhaseRecord] = {}
    for record in records:
        values = tuple((repr(record.attributes[tag]) if tag in record.attributes else None) for tag in tags)
        key = (record.kind, record.path, values)
        known = found.get(key)
        if known is None or _age(record) >= _age(known):
            found[key] = record
    return sorted(found.values(), key=_age)


def _age(record: PhaseRecord) -> tuple[int, int, int]:
    return (record.entered_ns, record.session_attempt, record.sequence)


def _opened(path: Path, *, as_is: bool) -> SqliteStore:
    if not path.exists():
        raise StoreError(f"There is nothing at {str(path)!a}.", path=str(path), fix=_FIX)
    if path.is_file() and path.stat().st_size == 0:
        raise StoreError(f"{str(path)!a} is an empty file.", path=str(path), fix=_FIX)
    if not as_is:
        # The file may be somebody else's to write, or busy: what is said of it then is what stands in it.
        store = SqliteStore(path, busy_timeout_s=_BUSY_TIMEOUT_S)
        with contextlib.suppress(StoreError):
            store.close_lost()
        store.close()
    return SqliteStore(path)


def _of_directory(
    path: Path, wanted: RecordQuery, on_unreadable: Callable[[UnreadableJournal], object] | None
) -> Iterator[PhaseRecord]:
    """Return the wanted records of all journals in a directory; of those that cannot be read somebody may be told."""
    found = find_journals(path)
    if not found:
        raise StoreError(f"No journal in {str(path)!a}.", path=str(path), fix=_FIX)
    return _Journals(found, wanted, on_unreadable).records()


@attrs.define
class _Launch:
    """The journals of one attempt of a session, and when the first of their processes started."""

    started_ns: int
    files: list[Path] = attrs.field(factory=list)


class _Journals:
    """Reads journals in the order of their launches' starts, each when the first of its records is next."""

    def __init__(
        self,
        found: Iterable[Path | UnreadableJournal],
        wanted: RecordQuery,
        on_unreadable: Callable[[UnreadableJournal], object] | None,
    ) -> None:
        self._found = found
        self._filter = _Filter(wanted)
        self._on_unreadable = on_unreadable
        self._this = own_process()
        self._now_wall_ns = SystemClock.wall_ns()

    def records(self) -> Iterator[PhaseRecord]:
        waiting = sorted(self._launches(), key=lambda launch: -launch.started_ns)
        heap: list[tuple[tuple[int, ...], int, PhaseRecord, Iterator[PhaseRecord]]] = []
        numbers = itertools.count()
        while heap or waiting:
            while waiting and (not heap or waiting[-1].started_ns <= heap[0][0][0]):
                _push(heap, next(numbers), iter(self._records_of(waiting.pop())))
            if heap:
                _, number, record, rest = heapq.heappop(heap)
                yield record
                _push(heap, number, rest)
        self._filter.check_names()

    def _launches(self) -> Iterable[_Launch]:
        found: dict[tuple[str, int], _Launch] = {}
        for file in self._found:
            try:
                if isinstance(file, UnreadableJournal):
                    raise file.error
                header = read_header(file)
            except JournalError as error:
                path = file.file if isinstance(file, UnreadableJournal) else file
                self._tell(UnreadableJournal(file=path, error=error))
                continue
            started_ns = header.anchor.to_wall_ns(header.started_ns)
            key = (header.identity.session_id, header.identity.attempt)
            launch = found.setdefault(key, _Launch(started_ns))
            launch.started_ns = min(launch.started_ns, started_ns)
            launch.files.append(file)
        return found.values()

    def _records_of(self, launch: _Launch) -> list[PhaseRecord]:
        """Return what is wanted of one launch, in order; what failed by another process says by what of that."""
        wanted: list[PhaseRecord] = []
        context: list[PhaseRecord] = []
        paths: dict[str, tuple[str, ...]] = {}
        for file in launch.files:
            records = self._read(file)
            wanted += filter(self._filter.wants, records)
            context += _context_of(records)
            paths.update((each.scope_id, each.path) for each in records if each.root_cause_scope_id == each.scope_id)
        wanted = [_with_cause_path(record, paths) for record in wanted]
        if any(record.status is PhaseStatus.FAILED and is_of_the_gone(record) for record in context):
            found = corrections(context)
            wanted = [_corrected(record, found.get(record.key)) for record in wanted]
        return sorted(wanted, key=entering_order)

    def _read(self, file: Path) -> list[PhaseRecord]:
        try:
            image = read_journal(file)
        except JournalError as error:
            self._tell(UnreadableJournal(file=file, error=error))
            return []
        verdict = judge(
            image.process,
            heartbeat_wall_ns=image.heartbeat_wall_ns,
            now_wall_ns=self._now_wall_ns,
            this=self._this,
        )
        return records_of_image(image, verdict)

    def _tell(self, unreadable: UnreadableJournal) -> None:
        if self._on_unreadable is not None:
            self._on_unreadable(unreadable)


def _context_of(records: Sequence[PhaseRecord]) -> Iterable[PhaseRecord]:
    """Return what attribution needs of one journal's records: what went wrong and what that hangs under."""
    known = {record.scope_id: record for record in records}
    needed: dict[str, PhaseRecord] = {}
    for record in records:
        above: PhaseRecord | None = record
        if record.status in FAILURES or record.kind is not RecordKind.PHASE:
            while above is not None and above.scope_id not in needed:
                needed[above.scope_id] = above
                above = known.get(above.parent_scope_id or "")
    needed.update((record.scope_id, record) for record in records[-1:])  # What was entered last.
    return needed.values()


def _with_cause_path(record: PhaseRecord, paths: Mapping[str, tuple[str, ...]]) -> PhaseRecord:
    """Return a record with the path of its root cause, which its own journal does not know of another process's."""
    path = paths.get(record.root_cause_scope_id or "")
    return record if not path or record.root_cause_path else attrs.evolve(record, root_cause_path=path)


def _corrected(record: PhaseRecord, cause: Cause | None) -> PhaseRecord:
    if cause is None:
        return record
    return attrs.evolve(record, root_cause_scope_id=cause.scope_id, root_cause_path=cause.path)


def _push(
    heap: list[tuple[tuple[int, ...], int, PhaseRecord, Iterator[PhaseRecord]]],
    number: int,
    records: Iterator[PhaseRecord],
) -> None:
    record = next(records, None)
    if record is not None:
        heapq.heappush(heap, (entering_order(record), number, record, records))


def _check_names(store: SqliteStore, wanted: RecordQuery) -> None:
    if wanted.path is not None:
        paths = store.paths()
        if not any(wanted.matches_path(path) for path in paths):
            raise _unknown_path(wanted, paths)
    if wanted.where:
        keys = store.attribute_keys()
        for key, _ in wanted.where:
            if key not in keys and not key.startswith("stormphase.") and len(keys) < MAX_ATTRIBUTE_COLUMNS:
                raise _unknown_attribute(key, keys)


def _filtered(source: RecordStore | Iterable[PhaseRecord], wanted: RecordQuery) -> Iterator[PhaseRecord]:
    """Yield the wanted records; at the end say which path or attribute none of them all had."""
    query = getattr(source, "query", None)
    found = _Filter(wanted)
    if query is not None:
        yield from filter(found.wants, query())
    else:
        yield from sorted(filter(found.wants, source), key=entering_order)  # type: ignore[arg-type]  # no store: records
    found.check_names()


class _Filter:
    """Says which records are wanted, and takes note of the names that there are."""

    def __init__(self, wanted: RecordQuery) -> None:
        self._wanted = wanted
        self._paths: set[tuple[str, ...]] = set()
        self._keys: set[str] = set()
        self._has_path = wanted.path is None
        self._missing = {key for key, _ in wanted.where}

    def wants(self, record: PhaseRecord) -> bool:
        wanted = self._wanted
        if not self._has_path:
            self._has_path = wanted.matches_path(record.path)
            if len(self._paths) < _MAX_NAMES:
                self._paths.add(record.path)
        if self._missing:
            self._missing.difference_update(record.attributes)
            if len(self._keys) < _MAX_NAMES:
                self._keys.update(record.attributes)
        return wanted.matches(record)

    def check_names(self) -> None:
        """Say which path or attribute no record had.

        Raises:
            UnknownNameError: if there is one.
        """
        if not self._has_path:
            raise _unknown_path(self._wanted, self._paths)
        for key in sorted(self._missing):
            raise _unknown_attribute(key, self._keys)


def _unknown_path(wanted: RecordQuery, paths: Iterable[tuple[str, ...]]) -> UnknownNameError:
    asked = wanted.path if isinstance(wanted.path, str) else " / ".join(wanted.path or ())
    texts = {" / ".join(path): path for path in paths if path}
    near = near_names(asked, texts)
    near += [text for text, path in texts.items() if near_names(asked, [path[-1]]) and text not in near]
    return _unknown("path", asked, near, texts)


def _unknown_attribute(key: str, keys: Iterable[str]) -> UnknownNameError:
    known = list(keys)
    return _unknown("attribute", key, near_names(key, known), known)


def _unknown(what: str, name: str, near: list[str], known: Mapping[str, object] | Sequence[str]) -> UnknownNameError:
    near = near[:5]
    if near:
        hint = f"Near it are {', '.join(f'{each!a}' for each in near)}."
    elif known:
        hint = f"There are {', '.join(f'{each!a}' for each in sorted(known)[:5])}{' and others' * (len(known) > 5)}."  # noqa: PLR2004 - as many as are shown
    else:
        hint = "There are none at all."
    return UnknownNameError(f"No record has the {what} {name!a}. {hint}", what=what, name=name, near=near)
