"""Where journals lie, DIR/SESSION/rank-....journal, and which attempt of its session a new one belongs to."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from contextlib import closing
from typing import TYPE_CHECKING, Final

import attrs

from stormphase import _liveness
from stormphase._attempts import UNKNOWN_LAUNCH, Begun, Launched, next_attempt, running_already
from stormphase._clock import SystemClock
from stormphase._liveness import Liveness
from stormphase._model import EndKind, ProcessIdentity
from stormphase._said_lines import said_path
from stormphase.exceptions import ConfigurationError, JournalError
from stormphase.journal import _format
from stormphase.journal._damage import Damage
from stormphase.journal._header import check, int_or_none, parse_header, text_or_none
from stormphase.journal._source import FileSource

if TYPE_CHECKING:
    from pathlib import Path

    from stormphase._model import RankIdentity

# What the machine has too little of: nothing is wrong with the directory, and training must not fail for it.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_DIRECTORY_MODE: Final = 0o700
_MAX_ATTEMPTS: Final = 1 << 31  # a forged journal must not have the next attempt begin where no number goes

_log = logging.getLogger("stormphase")


@attrs.frozen
class _Found:
    """What a look at a journal's header tells."""

    session_id: str
    rank: int
    attempt: int
    world_size: int
    has_ended: bool
    has_ended_well: bool
    launch: str | None
    forked_from: int | None
    process: ProcessIdentity
    heartbeat_wall_ns: int


def file_name(identity: RankIdentity, pid: int, number: int) -> str:
    """Return the name of a journal."""
    return f"{name_prefix(identity.rank, identity.attempt)}pid-{pid}.{number}{_format.SUFFIX}"


def name_prefix(rank: int, attempt: int) -> str:
    """Return how the names of the journals of a rank and its workers begin."""
    return f"rank-{rank:05d}.attempt-{attempt}."


def remove_journal(file: Path) -> None:
    """Delete a journal and what lies beside it, and its directories if they are empty then. Never raises."""
    for each in (file, said_path(file)):
        with contextlib.suppress(OSError):
            each.unlink()
    for directory in file.parents[:2]:
        with contextlib.suppress(OSError):
            directory.rmdir()


def make_directory(directory: Path, session_id: str) -> Path | None:
    """Return the session's directory, made if need be; None, after a warning, if there is no room for it.

    It is absolute, since a program may go elsewhere before it forks.

    Raises:
        ConfigurationError: if it cannot be made, and waiting would not help.
    """
    path = (directory / session_id).absolute()  # It names a directory everywhere: `_session_id` sees to that.
    try:
        path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(path))
    except OSError as error:
        if error.errno in NO_ROOM:
            warn_of_no_room(path, error)
            return None
        raise ConfigurationError(
            f"The journal's directory {str(path)!r} cannot be used: {error.strerror or error}.",
            setting="journal",
            fix="Give a directory in which this process may make files, or journal=None for no journal.",
        ) from error
    return path


def warn_of_no_room(directory: Path, error: OSError) -> None:
    """Say that there is no journal, why not, and what to do."""
    _log.warning(
        "stormphase: no room for a journal in %s (%s); the session goes on without one. Make room there, or set "
        "another directory.",
        directory,
        error.strerror,
    )


def attempt_of(path: Path, identity: RankIdentity, launched: Launched = UNKNOWN_LAUNCH) -> int:
    """Return which attempt of its session a rank begins, after those whose journals lie in `path`; see `next_attempt`.

    Raises:
        ConfigurationError: if a process of the same session and rank lives, or the attempt was given and is taken.
    """
    found = [journal for journal in _journals(path) if journal.session_id == identity.session_id]
    if not found:
        return identity.attempt
    this = _liveness.own_process()
    alive = [journal for journal in found if _is_alive(journal, this)]
    for journal in alive:
        if journal.rank == identity.rank and journal.forked_from is None:
            raise running_already(identity, f"process {journal.process.pid} on {journal.process.host}")
    return next_attempt(
        identity,
        [
            Begun(
                attempt=journal.attempt,
                rank=journal.rank,
                is_alive=journal in alive,
                is_done=journal.has_ended_well and journal.world_size == identity.world_size,
                is_child=journal.forked_from is not None,
                launch=journal.launch,
            )
            for journal in found
        ],
        launched,
    )


def _is_alive(journal: _Found, this: ProcessIdentity) -> bool:
    """Whether the session that a journal is about goes on, as far as its process is known to live.

    A rank's own earlier journal is one that it has stopped, or that it left behind when it replaced itself by `exec`.
    """
    if journal.has_ended or (journal.process == this and journal.forked_from is None):
        return False
    now_ns = SystemClock.wall_ns()
    verdict = _liveness.judge(
        journal.process, heartbeat_wall_ns=journal.heartbeat_wall_ns, now_wall_ns=now_ns, this=this
    )
    return verdict.state is Liveness.ALIVE


def _journals(path: Path) -> list[_Found]:
    try:
        files = sorted(file for file in path.iterdir() if file.suffix == _format.SUFFIX)
    except OSError:
        return []
    return [found for found in map(_look_at, files) if found is not None]


def _look_at(file: Path) -> _Found | None:
    """Return what the header of a journal says; None for what is none, or says what cannot be."""
    try:
        with closing(FileSource(file)) as source:
            data = source.read(0, _format.SEGMENT)
        check(data, str(file))
        header = parse_header(data, str(file), Damage())
    except (JournalError, OSError):
        return None
    identity = header.identity
    if not 0 <= identity.attempt < _MAX_ATTEMPTS:
        return None
    return _Found(
        session_id=identity.session_id,
        rank=identity.rank,
        attempt=identity.attempt,
        world_size=identity.world_size,
        has_ended=header.end_note is not None,
        has_ended_well=header.end_note is not None and header.end_note.kind is EndKind.CLEAN,
        launch=text_or_none(header.facts.get("launch")),
        forked_from=int_or_none(header.facts.get("forked_from")),
        process=header.process,
        heartbeat_wall_ns=header.heartbeat_wall_ns,
    )
