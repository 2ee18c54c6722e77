"""Session ids: what may be one, where one comes from, and how ranks derive one that they share.

A session id must be the same on all ranks of one launch and different for every launch, as trace ids are derived from
it. In this order: the caller's, `STORMPHASE_SESSION_ID`, the launcher's id of the job, one derived from what all ranks
of one host share, for a process that is alone a random one, and one that rank 0 tells the others of through torch's
process group. Ranks that cannot agree fail at start.

A launcher that started a shell, or another driver, on each rank may see several programs there, one after the other:
then the program's name is added to the launcher's id, so that each is a session.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._environ import MAX_SHOWN_CHARS, value
from stormphase._launch_names import LIGHTNING
from stormphase._torch_group import AGREE_TIMEOUT_S
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._launchers import Launch
    from stormphase._process_facts import AncestorProcess, ProcessFacts
    from stormphase._torch_group import TorchGroup

SESSION_VARIABLE: Final = "STORMPHASE_SESSION_ID"
MAX_SESSION_ID_CHARS: Final = 128

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9._+=@-]{1,128}")
_NOT_IN_SESSION_ID: Final = re.compile(r"[^A-Za-z0-9._+=@-]+")


@attrs.frozen
class FoundSession:
    """A session's id, and what is known with it.

    Attributes:
        session_id: the id.
        may_come_again: whether a job that is started anew may have it again.
        attempt: which attempt of it this is at least.
        is_agreed: whether the ranks have agreed on it through their process group.
    """

    session_id: str
    may_come_again: bool = False
    attempt: int = 0
    is_agreed: bool = False


def given_session_id(environ: Mapping[str, str], session_id: str | None) -> str | None:
    """Return the caller's id, else the environment's, else None.

    Raises:
        ConfigurationError: if it is no session id.
    """
    if session_id is not None:
        return _checked_session_id(session_id, "session_id")
    from_environment = value(environ, SESSION_VARIABLE)
    return None if from_environment is None else _checked_session_id(from_environment, SESSION_VARIABLE)


def find_session_id(
    environ: Mapping[str, str],
    process: ProcessFacts,
    launch: Launch,
    session_id: str | None,
    *,
    before: FoundSession | None = None,
    of_launcher: FoundSession | None = None,
) -> FoundSession:
    """Return the session's id, and whether a job that is started anew may have it again.

    Args:
        environ: the environment.
        process: the facts of the process.
        launch: what the launcher says of it.
        session_id: what the caller gave, or None.
        before: the session that this process goes on with, as it has replaced itself, where nothing names one.
        of_launcher: the session that the launcher has itself begun, as one of the ranks.

    Raises:
        ConfigurationError: if what was given is no session id, or if the ranks cannot agree on one.
    """
    given = given_session_id(environ, session_id)
    if given is not None:
        return FoundSession(given, may_come_again=True)
    if of_launcher is not None:
        return of_launcher
    job = _job_of(process, launch)
    if job is not None:
        program = _program_of(environ, process, launch)
        named = job.session_id if program is None else f"{job.session_id}.{program}"
        return attrs.evolve(job, session_id=_as_session_id(named))
    new = before or FoundSession(process.random_bytes(16).hex())
    if launch.world_size == 1:
        return new
    group = process.torch
    if group is not None and (group.rank, group.world_size) == (launch.rank, launch.world_size):
        siblings = _of_siblings(environ, process, launch)
        if siblings is not None and launch.rank > 0:
            return siblings
        return _agreed(group, siblings or new)
    raise _cannot_agree(launch)


def _job_of(process: ProcessFacts, launch: Launch) -> FoundSession | None:
    """Return what tells the job from others on all its ranks, or None if nothing does."""
    shared = launch.host_token if launch.is_on_one_host else None
    if launch.job_id is not None:
        job_id = launch.job_id
        if shared is not None and not launch.is_job_id_unique:
            job_id = f"{job_id}-{_derived(process, shared)[:12]}"
        return FoundSession(job_id, may_come_again=shared is None and not launch.is_job_id_unique)
    if shared is not None:
        return FoundSession(_derived(process, shared))
    if launch.world_size == 1:
        return None
    launcher = launcher_process(launch, process) if launch.is_on_one_host else None
    return None if launcher is None else FoundSession(_derived(process, f"{launcher.pid} {launcher.started}"))


def _program_of(environ: Mapping[str, str], process: ProcessFacts, launch: Launch) -> str | None:
    """Return the program's name where the launcher started something on this rank that may run several, else None.

    Where it was told to start several programs at once, they are one session.
    """
    if launch.rank_variable is None or process.program is None or value(environ, "OMPI_NUM_APP_CTX") not in (None, "1"):
        return None
    between = itertools.takewhile(lambda each: not _is_launcher(each, launch), process.ancestors)
    has_launcher = any(_is_launcher(each, launch) for each in process.ancestors)
    return process.program if has_launcher and any(each.may_run_several for each in between) else None


def _of_siblings(environ: Mapping[str, str], process: ProcessFacts, launch: Launch) -> FoundSession | None:
    """Return the session of ranks that one process has spawned, rank 0 first; None where that is not known.

    They need not ask rank 0, which may be done and gone when they begin. Later ones of that process, and those of other
    hosts, have another rank than place among its children.
    """
    spawned = process.spawned
    if spawned is None or spawned.parent.started is None or spawned.place != launch.rank or process.boot_id is None:
        return None
    if value(environ, "TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None  # That store lasts longer than the one who spawned them.
    parent = spawned.parent
    return FoundSession(_derived(process, f"spawned by {parent.pid} {parent.started} after {spawned.before}"))


def _agreed(group: TorchGroup, new: FoundSession) -> FoundSession:
    """Return the session that rank 0 names to all ranks of the group.

    Raises:
        ConfigurationError: if it does not do so in time.
    """
    session_id = group.session_of_rank_0(new.session_id)
    if session_id is None or not _is_session_id(session_id):
        raise ConfigurationError(
            f"torch.distributed has {group.world_size} ranks, and rank 0 named no session to them within "
            f"{AGREE_TIMEOUT_S:.0f} s.",
            setting=SESSION_VARIABLE,
            fix="Start the tracker on every rank, once the process group is up; or set "
            f"{SESSION_VARIABLE} to one value on all ranks, a new one for each launch.",
        )
    return attrs.evolve(new, session_id=session_id, is_agreed=True)


def _cannot_agree(launch: Launch) -> ConfigurationError:
    if launch.launcher == "explicit":
        message = f"rank {launch.rank} of {launch.world_size} was given, and no session id that all ranks agree on."
    else:
        title = launch.title or launch.launcher
        message = f"{title} started {launch.world_size} ranks, and gave them no job id that all agree on."
    return ConfigurationError(
        message,
        setting=SESSION_VARIABLE,
        fix=f"Set {SESSION_VARIABLE} to one value on all ranks, a new one for each launch.",
    )


def session_beneath(parent_id: str, process: ProcessFacts) -> str:
    """Return a new id for a program that a rank of the session `parent_id` has started."""
    suffix = f".{process.random_bytes(4).hex()}"
    return parent_id[: MAX_SESSION_ID_CHARS - len(suffix)] + suffix


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


def launcher_process(launch: Launch, process: ProcessFacts) -> AncestorProcess | None:
    """Return the process that launched all ranks of this host, if it can be told from others, earlier and later.

    It is the first that was not itself given a rank: between it and this process there may be a rank's own shell. A
    shell at a terminal is none, as the same one launches again and again. Lightning's is rank 0, which learns only then
    that it is one.
    """
    if launch.rank_variable is None or process.boot_id is None:
        return None
    this = process.this
    if launch.launcher == LIGHTNING.launcher and launch.local_rank == 0 and this is not None:
        return this if _is_launcher(this, launch) else None
    found = next((each for each in process.ancestors if _is_launcher(each, launch)), None)
    return None if found is None or found.started is None or found.holds_terminal else found


def _is_launcher(process: AncestorProcess, launch: Launch) -> bool:
    return process.environment is None or launch.rank_variable not in process.environment


def launch_token(environ: Mapping[str, str], process: ProcessFacts, launch: Launch) -> str | None:
    """Return what all ranks of one launch share, as many as can tell, and ranks of no other launch; None if nothing.

    It says only who was launched together, and may differ between hosts: a session's id it is not.
    """
    if launch.world_size == 1:
        return None
    if launch.counts_alone:
        # torchrun's agents have the store that their ranks meet in for as long as they live.
        return " ".join((str(launch.job_id), *(value(environ, each) or "" for each in ("MASTER_ADDR", "MASTER_PORT"))))
    token = launch.host_token if launch.host_token is not None and launch.is_on_one_host else launch.job_id
    if token is not None:
        return token
    launcher = launcher_process(launch, process)
    if launcher is None and launch.rank_variable is None:
        launcher = next(iter(process.ancestors), None)
    if launcher is None or launcher.started is None or launcher.holds_terminal or process.boot_id is None:
        return None
    return f"{process.boot_id} {launcher.pid} {launcher.started}"
