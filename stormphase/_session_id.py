"""Session ids: what may be one, where one comes from, and how ranks derive one that they share.

A session id must be the same on all ranks of one launch and different for every launch, as trace ids are derived from
it. In this order: the caller's, `STORMPHASE_SESSION_ID`, the launcher's id of the job, one derived from what all ranks
of one host share, and, for a process that is alone, a random one. Ranks that cannot agree fail at start.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from stormphase._environ import MAX_SHOWN_CHARS, value
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._launchers import Launch
    from stormphase._process_facts import AncestorProcess, ProcessFacts

SESSION_VARIABLE: Final = "STORMPHASE_SESSION_ID"
MAX_SESSION_ID_CHARS: Final = 128

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9._+=@-]{1,128}")
_NOT_IN_SESSION_ID: Final = re.compile(r"[^A-Za-z0-9._+=@-]+")


def find_session_id(
    environ: Mapping[str, str], process: ProcessFacts, launch: Launch, session_id: str | None
) -> tuple[str, bool]:
    """Return the session's id, and whether a job that is started anew may have it again.

    Raises:
        ConfigurationError: if what was given is no session id, or if the ranks cannot agree on one.
    """
    if session_id is not None:
        return _checked_session_id(session_id, "session_id"), True
    from_environment = value(environ, SESSION_VARIABLE)
    if from_environment is not None:
        return _checked_session_id(from_environment, SESSION_VARIABLE), True
    shared = launch.host_token if launch.is_on_one_host else None
    if launch.job_id is not None:
        job_id = launch.job_id
        if shared is not None and not launch.is_job_id_unique:
            job_id = f"{job_id}-{_derived(process, shared)[:12]}"
        return _as_session_id(job_id), shared is None and not launch.is_job_id_unique
    if shared is not None:
        return _derived(process, shared), False
    if launch.world_size == 1:
        return process.random_bytes(16).hex(), False
    launcher = _launcher_process(launch, process) if launch.is_on_one_host else None
    if launcher is not None:
        return _derived(process, f"{launcher.pid} {launcher.started}"), False
    if launch.launcher == "explicit":
        message = f"rank {launch.rank} of {launch.world_size} was given, and no session id that all ranks agree on."
    else:
        message = f"{launch.launcher} started {launch.world_size} ranks, and gave them no job id that all agree on."
    raise ConfigurationError(
        message,
        setting=SESSION_VARIABLE,
        fix=f"Set {SESSION_VARIABLE} to one value on all ranks, a new one for each launch.",
    )


def _checked_session_id(session_id: object, setting: str) -> str:
    if not isinstance(session_id, str):
        problem = f"{setting} is of type {type(session_id).__name__}."
    elif _is_session_id(session_id):
        return str.__str__(session_id)  # of an enum's member, too, the text
    else:
        shown = ascii(session_id[:MAX_SHOWN_CHARS]) + ("..." if len(session_id) > MAX_SHOWN_CHARS else "")
        problem = f"{setting} is {shown} ({len(session_id)} characters), which cannot name a directory everywhere."
    raise ConfigurationError(
        problem,
        setting=setting,
        fix=f"Use 1 to {MAX_SESSION_ID_CHARS} of the characters A-Z a-z 0-9 . _ + = @ -, and not '.' or '..'.",
    )


def _is_session_id(text: str) -> bool:
    return _SESSION_ID.fullmatch(text) is not None and text not in {".", ".."}


def _as_session_id(job_id: str) -> str:
    """Return a launcher's id of a job, which may hold any characters, as a session id that is as unique."""
    if _is_session_id(job_id):
        return job_id
    digest = hashlib.sha256(job_id.encode(errors="surrogateescape")).hexdigest()[:12]
    readable = _NOT_IN_SESSION_ID.sub("_", job_id)[: MAX_SESSION_ID_CHARS - 13]
    return f"{readable}-{digest}"


def _derived(process: ProcessFacts, shared: str) -> str:
    """Return an id that all processes of this host with the same `shared` derive, and no others before or after."""
    seed = "\0".join(("stormphase session 1", process.boot_id or "", process.host, shared))
    return hashlib.sha256(seed.encode(errors="surrogateescape")).hexdigest()[:32]


def _launcher_process(launch: Launch, process: ProcessFacts) -> AncestorProcess | None:
    """Return the process that launched all ranks of this host, if it can be told from others, earlier and later.

    It is the first that was not itself given a rank: between it and this process there may be a rank's own shell. A
    shell at a terminal is none, as the same one launches again and again.
    """
    if launch.rank_variable is None or process.boot_id is None:
        return None
    for ancestor in process.ancestors:
        if ancestor.environment is None or launch.rank_variable not in ancestor.environment:
            return None if ancestor.started is None or ancestor.holds_terminal else ancestor
    return None
