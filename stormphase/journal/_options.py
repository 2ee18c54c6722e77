"""What a tracker is told about its journal, and the making of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._liveness import own_process
from stormphase._version import __version__
from stormphase.exceptions import ConfigurationError
from stormphase.journal._directory import NO_ROOM, file_name, warn_of_no_room
from stormphase.journal._file import MIN_BYTES
from stormphase.journal._journal import OpenJournal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._lanes import LaneSet
    from stormphase._model import RankIdentity
    from stormphase._owner_records import SessionFacts
    from stormphase.journal._phase_facts import PhaseTrace

DIRECTORY_VARIABLE: Final = "STORMPHASE_DIR"
MAX_BYTES: Final = 64 * 1024 * 1024
_MAX_LENGTH: Final = 1 << 32


def _checked_directory(directory: Any) -> Path:
    try:
        text = os.fspath(directory)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigurationError(
            f"journal must be a directory, not {directory!r:.60}.", setting="journal", fix='Write journal="runs/".'
        )
    return Path(text)


def _checked_bytes(max_bytes: object) -> int:
    if type(max_bytes) is int and MIN_BYTES <= max_bytes <= _MAX_LENGTH:
        return max_bytes
    raise ConfigurationError(
        f"max_bytes must be a whole number from {MIN_BYTES} to {_MAX_LENGTH}, not {max_bytes!r:.40}.",
        setting="max_bytes",
        fix=f"Leave it out for {MAX_BYTES}.",
    )


@attrs.frozen
class JournalOptions:
    """Where and how a tracker keeps its journal: `PhaseTracker(journal=JournalOptions("runs/", max_bytes=...))`.

    Attributes:
        directory: where the sessions' directories lie; made if need be.
        max_bytes: how long the file of one process may become, 1 MiB to 4 GiB. What is open, and the totals, always
            have their place; the rest is for records of what has ended, of which the oldest make room.
    """

    directory: Path = attrs.field(converter=_checked_directory)
    max_bytes: int = attrs.field(default=MAX_BYTES, converter=_checked_bytes, kw_only=True)


def options_of(journal: Any, environ: Mapping[str, str]) -> JournalOptions | None:
    """Return what the argument says, or else the environment; None for no journal.

    Raises:
        ConfigurationError: if it is neither a directory nor options.
    """
    if journal is None:
        directory = environ.get(DIRECTORY_VARIABLE, "").strip()
        return JournalOptions(directory) if directory else None
    return journal if isinstance(journal, JournalOptions) else JournalOptions(journal)


def open_journal(
    options: JournalOptions,
    directory: Path,
    identity: RankIdentity,
    lanes: LaneSet,
    session: SessionFacts,
    *,
    parent_scope_id: str | None,
    main_thread_id: int,
    forked_from: int | None,
    otel: Mapping[str, Any] | None,
    phase_trace: PhaseTrace | None,
) -> OpenJournal | None:
    """Return the journal of this process; None, after a warning, if there is no room for it on the disk.

    Raises:
        ConfigurationError: if the directory cannot be written.
    """
    facts = {
        "session_id": identity.session_id,
        "attempt": identity.attempt,
        "rank": identity.rank,
        "local_rank": identity.local_rank,
        "world_size": identity.world_size,
        "local_world_size": identity.local_world_size,
        "node_rank": identity.node_rank,
        "host": identity.host,
        "launcher": identity.launcher,
        "launch": session.launch,
        "started_by": session.started_by,
        "name": session.name,
        "correlation_id": session.correlation_id,
        "parent_scope_id": parent_scope_id,
        "started_ns": session.started_ns,
        "main_thread_id": main_thread_id,
        "forked_from": forked_from,
        "stormphase": __version__,
        "otel": otel,
    }
    process = own_process()
    number = 0
    while True:
        try:
            return OpenJournal(
                directory / file_name(identity, process.pid, number),
                options.max_bytes,
                lanes,
                process,
                facts,
                phase_trace=phase_trace,
                counts_unsent=otel is not None,
            )
        except FileExistsError:
            number += 1
        except OSError as error:
            if error.errno in NO_ROOM:
                warn_of_no_room(directory, error)
                return None
            raise ConfigurationError(
                f"No journal can be made in {str(directory)!r}: {error.strerror or error}.",
                setting="journal",
                fix="Give a directory in which this process may make files, or journal=None for no journal.",
            ) from error
