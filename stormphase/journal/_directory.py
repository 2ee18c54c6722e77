"""Where journals lie, DIR/SESSION/rank-....journal, and which attempt of its session a new one belongs to."""

from __future__ import annotations

import errno
import json
import logging
import os
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase import _liveness
from stormphase._clock import SystemClock
from stormphase._liveness import Liveness
from stormphase._model import ProcessIdentity
from stormphase.exceptions import ConfigurationError
from stormphase.journal import _format

if TYPE_CHECKING:
    from pathlib import Path

    from stormphase._model import RankIdentity

# What the machine has too little of: nothing is wrong with the directory, and training must not fail for it.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_DIRECTORY_MODE: Final = 0o700

_log = logging.getLogger("stormphase")


@attrs.frozen
class _Found:
    """What a look at a journal's header tells."""

    session_id: str
    rank: int
    attempt: int
    forked_from: int | None
    process: ProcessIdentity
    heartbeat_wall_ns: int


def file_name(identity: RankIdentity, pid: int, number: int) -> str:
    """Return the name of a journal."""
    return f"rank-{identity.rank:05d}.attempt-{identity.attempt}.pid-{pid}.{number}{_format.SUFFIX}"


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


def attempt_of(path: Path, identity: RankIdentity) -> int:
    """Return which attempt of its session a rank begins, after those whose journals lie in `path`.

    The next one, if this rank has begun the last one, or all who did are dead; else the last one, which other ranks
    have begun a moment ago. The launcher's own count wins if it is higher.

    Raises:
        ConfigurationError: if a process of the same session and rank lives.
    """
    found = [journal for journal in _journals(path) if journal.session_id == identity.session_id]
    if not found:
        return identity.attempt
    this = _liveness.own_process()
    alive = [journal for journal in found if _is_alive(journal, this)]
    for journal in alive:
        if journal.rank == identity.rank and journal.forked_from is None:
            raise ConfigurationError(
                f"Session {identity.session_id!r}, rank {identity.rank}, is running already, as process "
                f"{journal.process.pid} on {journal.process.host}.",
                setting="session_id",
                fix="Give each launch a session id of its own, or end that process.",
            )
    last = max(journal.attempt for journal in found)
    has_begun = any(journal.rank == identity.rank and journal.attempt == last for journal in found)
    others_live = any(journal.attempt == last for journal in alive)
    return max(identity.attempt, last if others_live and not has_begun else last + 1)


def _is_alive(journal: _Found, this: ProcessIdentity) -> bool:
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
    """Return what the header of a journal says; None for what is none."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_format.END_NOTE_AT)
        fields = _format.HEADER.unpack_from(data)
        magic, version, pid, started, namespace, boot_id = fields[0], fields[1], *fields[8:12]
        length, checksum = fields[12:14]
        raw = data[_format.FACTS_AT : _format.FACTS_AT + length]
        if magic != _format.MAGIC or version != _format.VERSION or zlib.crc32(raw) != checksum:
            return None
        facts: dict[str, Any] = json.loads(raw)
        beats = [_format.HEARTBEAT.unpack_from(data, place) for place in _format.HEARTBEATS]
        return _Found(
            session_id=str(facts["session_id"]),
            rank=int(facts["rank"]),
            attempt=int(facts["attempt"]),
            forked_from=facts.get("forked_from"),
            process=ProcessIdentity(
                host=str(facts["host"]),
                boot_id=_uuid_text(boot_id),
                pid=pid,
                started=started or None,
                pid_namespace=namespace or None,
            ),
            heartbeat_wall_ns=max(beats, key=lambda beat: beat[2])[1],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, struct.error):
        return None


def _uuid_text(data: bytes) -> str | None:
    if not any(data):
        return None
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
