"""Reads journals: one, or all below a directory, whoever wrote them and whoever is still writing them."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from stormphase.exceptions import JournalError
from stormphase.journal import _format
from stormphase.journal._damage import Damage
from stormphase.journal._header import check, parse_header
from stormphase.journal._source import FileSource, unreadable
from stormphase.journal._story import read_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stormphase.journal._header import Header
    from stormphase.journal._image import JournalImage

_OUR_FILE: Final = "rank-"


@attrs.frozen(kw_only=True)
class UnreadableJournal:
    """A journal that is there and cannot be read.

    Attributes:
        file: its path.
        error: why not, and what can be done.
    """

    file: Path
    error: JournalError


def read_journal(
    path: str | os.PathLike[str], *, ended_limit: int | None = None, unsent_only: bool = False
) -> JournalImage:
    """Return what a journal says, also one that is being written, was cut, or is damaged in places.

    Never changes the file, waits for its writer for at most some ten milliseconds, and trusts nothing in it: strings
    may hold anything, so whoever prints them escapes them. Thread-safe.

    Args:
        path: the file.
        ended_limit: how many ended phases to return, those that ended last; None for all. Totals have all.
        unsent_only: return only ended phases that the process's bridge was not given.

    Raises:
        JournalError: if it cannot be opened, is no journal, or says not even whose it is. `JournalIncompleteError` if
            it is just being created, `JournalVersionError` if it is too new, `JournalDamagedError` if it is damaged.
    """
    file = Path(path)
    with closing(FileSource(file)) as source:
        return read_source(source, file, ended_limit=ended_limit, unsent_only=unsent_only)


def read_header(file: Path) -> Header:
    """Return what the first segment of a journal says.

    Raises:
        JournalError: as `read_journal`.
    """
    with closing(FileSource(file)) as source:
        data = source.read(0, _format.SEGMENT)
    check(data, str(file))
    return parse_header(data, str(file), Damage())


def read_directory(
    path: str | os.PathLike[str], *, ended_limit: int | None = None
) -> Iterator[JournalImage | UnreadableJournal]:
    """Yield each journal below a directory of sessions, or in one session's, by session and rank; one at a time.

    Files that are no journals are passed over; a journal that cannot be read is yielded as `UnreadableJournal`.

    Args:
        path: the directory that was given as `journal`, or one of a session in it.
        ended_limit: as for `read_journal`.

    Raises:
        JournalError: if the directory itself cannot be read.
    """
    for file in find_journals(path):
        if isinstance(file, UnreadableJournal):
            yield file
            continue
        try:
            yield read_journal(file, ended_limit=ended_limit)
        except JournalError as error:
            yield UnreadableJournal(file=file, error=error)


def find_journals(path: str | os.PathLike[str]) -> list[Path | UnreadableJournal]:
    """Return the paths of all journals below a directory of sessions, or in one session's, sorted.

    Raises:
        JournalError: if the directory itself cannot be read.
    """
    directory = Path(path)
    found: list[Path | UnreadableJournal] = []
    sessions, files = _listed(directory)
    for session in (None, *sessions):
        if session is not None:
            try:
                _, files = _listed(session)
            except JournalError as error:
                found.append(UnreadableJournal(file=session, error=error))
                continue
        found += [file for file in files if _may_be_ours(file)]
    return found


def may_be_of(found: Path, directory: Path, session_id: str) -> bool:
    """Whether a journal or a directory that cannot be read may be of a session, as the directories' names say.

    Args:
        found: the `file` of an `UnreadableJournal`.
        directory: where it was looked for.
        session_id: the session.
    """
    if found.parent != directory:
        return found.parent.name == session_id
    return found.name.endswith(_format.SUFFIX) or found.name == session_id


def _listed(directory: Path) -> tuple[list[Path], list[Path]]:
    """Return the directories and the files with our suffix in a directory, sorted."""
    directories, files = [], []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if _is_directory(entry):
                    directories.append(Path(entry.path))
                elif entry.name.endswith(_format.SUFFIX):
                    files.append(Path(entry.path))
    except (OSError, ValueError) as error:
        raise unreadable(directory, error) from error
    return sorted(directories), sorted(files)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or to where nobody may look
        return False


def _may_be_ours(file: Path) -> bool:
    """Whether a file should be a journal of ours: others have files of this suffix, too."""
    if file.name.startswith(_OUR_FILE):
        return True
    try:
        with closing(FileSource(file)) as source:
            return source.read(0, len(_format.MAGIC)) == _format.MAGIC
    except JournalError:
        return False
