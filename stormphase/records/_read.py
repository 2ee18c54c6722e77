"""Reading records, from wherever they are kept: a store, a database file, a directory of journals, or at hand."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stormphase._clock import SystemClock
from stormphase._liveness import judge, own_process
from stormphase.exceptions import StoreError, UnknownNameError
from stormphase.journal import UnreadableJournal, read_directory
from stormphase.journal._records import records_of_image
from stormphase.stores import MAX_ATTRIBUTE_COLUMNS, RecordQuery, SqliteStore, near_names

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from stormphase._record import PhaseRecord
    from stormphase.journal import JournalImage
    from stormphase.typing import RecordStore

    Source: TypeAlias = "str | os.PathLike[str] | RecordStore | Iterable[PhaseRecord]"

_MAX_NAMES = 65_536
_FIX = "Give the file of a SqliteStore, or the directory that was given as `journal`, or as STORMPHASE_DIR."


def read_records(
    source: Source,
    wanted: RecordQuery | None = None,
    /,
    *,
    on_unreadable: Callable[[UnreadableJournal], object] | None = None,
    **filters: Any,
) -> Iterator[PhaseRecord]:
    """Return the records that are wanted, one at a time; memory stays flat.

    From a store they come in the order in which they were entered, from journals file by file.

    Args:
        source: the file of a `SqliteStore`, a directory of journals, a store, or records.
        wanted: which; by default all.
        on_unreadable: told of each journal that cannot be read; by default they are passed over.
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
        source = _opened(Path(source), on_unreadable)
    if isinstance(source, SqliteStore):
        _check_names(source, wanted)
        return source.query(wanted)
    query = getattr(source, "query", None)
    records: Iterable[PhaseRecord] = source if query is None else query()  # type: ignore[assignment]  # a store has one
    return _filtered(records, wanted)


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


def _opened(
    path: Path, on_unreadable: Callable[[UnreadableJournal], object] | None
) -> SqliteStore | Iterator[PhaseRecord]:
    if path.is_dir():
        images = read_directory(path)
        first = next(images, None)
        if first is None:
            raise StoreError(f"No journal in {str(path)!a}.", path=str(path), fix=_FIX)
        return _of_journals(itertools.chain((first,), images), on_unreadable)
    if not path.exists():
        raise StoreError(f"There is nothing at {str(path)!a}.", path=str(path), fix=_FIX)
    if path.is_file() and path.stat().st_size == 0:
        raise StoreError(f"{str(path)!a} is an empty file.", path=str(path), fix=_FIX)
    return SqliteStore(path)


def _of_journals(
    images: Iterable[JournalImage | UnreadableJournal], on_unreadable: Callable[[UnreadableJournal], object] | None
) -> Iterator[PhaseRecord]:
    this = own_process()
    now_wall_ns = SystemClock.wall_ns()
    for image in images:
        if isinstance(image, UnreadableJournal):
            if on_unreadable is not None:
                on_unreadable(image)
            continue
        verdict = judge(image.process, heartbeat_wall_ns=image.heartbeat_wall_ns, now_wall_ns=now_wall_ns, this=this)
        yield from records_of_image(image, verdict)


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


def _filtered(records: Iterable[PhaseRecord], wanted: RecordQuery) -> Iterator[PhaseRecord]:
    """Yield the wanted records; at the end say which path or attribute none of them all had."""
    paths: set[tuple[str, ...]] = set()
    keys: set[str] = set()
    has_path = wanted.path is None
    missing = {key for key, _ in wanted.where}
    for record in records:
        if not has_path:
            has_path = wanted.matches_path(record.path)
            if len(paths) < _MAX_NAMES:
                paths.add(record.path)
        if missing:
            missing.difference_update(record.attributes)
            if len(keys) < _MAX_NAMES:
                keys.update(record.attributes)
        if wanted.matches(record):
            yield record
    if not has_path:
        raise _unknown_path(wanted, paths)
    for key in sorted(missing):
        raise _unknown_attribute(key, keys)


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
