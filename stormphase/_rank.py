"""Which process of which session this is: pure, from the environment and the process facts it is given."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._attempts import Launched
from stormphase._environ import MAX_SHOWN_CHARS, integer, value
from stormphase._launch_names import LIGHTNING
from stormphase._launchers import SINGLE, Launch, launched, named_launch, out_of_range, restarts
from stormphase._model import RankIdentity
from stormphase._process_facts import ProcessFacts
from stormphase._session_id import (
    MAX_SESSION_ID_CHARS,
    SESSION_VARIABLE,
    FoundSession,
    find_session_id,
    given_session_id,
    launch_token,
    launcher_process,
    session_beneath,
)
from stormphase._starters import Starter
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_SESSION_ID_CHARS", "ProcessFacts", "detect_rank"]

ATTEMPT_VARIABLE: Final = "STORMPHASE_ATTEMPT"


@attrs.frozen(kw_only=True)
class Place:
    """Who a process is, and what the count of its session's attempts goes by.

    Attributes:
        identity: session, attempt and rank.
        launched: with whom it was launched.
        starter: what this process leaves to the programs that it starts.
        started_by: the session of the rank that started this program; None for a rank.
        counts_alone: whether ranks of other hosts may count other restarts, and nobody has told this one.
    """

    identity: RankIdentity
    launched: Launched
    starter: Starter
    started_by: str | None = None
    counts_alone: bool = False

    def with_identity(self, identity: RankIdentity) -> Place:
        """Return it with another session or attempt."""
        starter = attrs.evolve(self.starter, session_id=identity.session_id, attempt=identity.attempt)
        return attrs.evolve(self, identity=identity, starter=starter)


def detect_rank(
    environ: Mapping[str, str],
    *,
    session_id: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    attempt: int | None = None,
    process: ProcessFacts,
) -> RankIdentity:
    """Return which process of which session this is, as `find_place` does."""
    return find_place(
        environ, session_id=session_id, rank=rank, world_size=world_size, attempt=attempt, process=process
    ).identity


def find_place(
    environ: Mapping[str, str],
    *,
    session_id: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    attempt: int | None = None,
    process: ProcessFacts,
) -> Place:
    """Return which process of which session this is.

    `rank` and `world_size` win over every launcher. Where nothing tells the local rank, it is the rank for a caller's
    own numbers, and 0 for a launcher's. An empty variable counts as none. A program that a rank has started is none: it
    is alone, in a session of its own.

    Args:
        environ: the process's environment.
        session_id: the launch, if the caller knows it.
        rank: this process among all, from 0, if the caller knows it.
        world_size: how many there are, if the caller knows it.
        attempt: how often the session was restarted, if the caller knows it.
        process: the facts of the process, `ProcessFacts.of_this_process()`.

    Raises:
        ConfigurationError: if what is given is wrong or contradictory, or if the ranks cannot agree on a session id.
    """
    _check_argument("attempt", attempt, 0)
    mark = _mark_of(environ, process)
    is_own = mark is not None and mark.is_process(process.pid, process.started)
    if mark is not None and rank is None and world_size is None:
        program = _as_program(environ, process, mark, session_id, attempt)
        if program is not None:
            return program
    launch = _placed(environ, process, rank, world_size)
    before = mark if is_own and process.starter is None else None  # It has replaced itself by exec.
    found = find_session_id(
        environ,
        process,
        launch,
        session_id,
        before=_session_before(before, launch),
        of_launcher=None if mark is None or is_own else _session_of_launcher(mark, process, launch),
    )
    counted = integer(environ, ATTEMPT_VARIABLE) if attempt is None else attempt
    counts_alone = False
    if counted is None:
        counted = max(restarts(environ) if found.may_come_again else launch.attempt, found.attempt)
        is_counted = before is None and (launch.counts_alone or found.is_agreed)
        starts = _starts(process, launch) if is_counted else None
        counted = max(counted, (starts or 1) - 1)
        counts_alone = launch.counts_alone and starts is None
    if attempt is None and before is not None and found.session_id == before.session_id:
        counted = max(counted, before.attempt + 1)
    return _place(
        environ,
        process,
        launch,
        found.session_id,
        counted,
        has_attempt=attempt is not None,
        counts_alone=counts_alone,
    )


def _starts(process: ProcessFacts, launch: Launch) -> int | None:
    """Return how often this rank was started by its launcher; None where that is not known.

    The process group's store tells, where it lasts, and else a count that is kept on this host.
    """
    group = process.torch
    if group is not None and (group.rank, group.world_size) == (launch.rank, launch.world_size):
        starts = group.starts()
        if starts is not None:
            return starts
    launcher = launcher_process(launch, process)
    if launcher is None or not launch.counts_alone:
        return None
    return process.count_start(
        f"{process.boot_id} {launcher.pid} {launcher.started} {launch.job_id} {launch.node_rank} {launch.local_rank}"
    )


def _place(
    environ: Mapping[str, str],
    process: ProcessFacts,
    launch: Launch,
    session_id: str,
    attempt: int,
    *,
    has_attempt: bool,
    counts_alone: bool = False,
) -> Place:
    token = launch_token(environ, process, launch)
    identity = RankIdentity(
        session_id=session_id,
        attempt=attempt,
        rank=launch.rank,
        local_rank=launch.local_rank,
        world_size=launch.world_size,
        local_world_size=launch.local_world_size,
        node_rank=launch.node_rank,
        host=process.host,
        launcher=launch.launcher,
    )
    starter = Starter(
        pid=process.pid,
        started=process.started,
        rank=launch.rank,
        world_size=launch.world_size,
        job=_job_digest(launch),
        attempt=attempt,
        session_id=session_id,
        session_variable=value(environ, SESSION_VARIABLE),
    )
    return Place(
        identity=identity,
        launched=Launched(
            launch=None if token is None else f"{_digest(token)}#{restarts(environ)}", has_attempt=has_attempt
        ),
        starter=starter,
        counts_alone=counts_alone,
    )


def _job_digest(launch: Launch | None) -> str | None:
    job = None if launch is None else launch.job_id or launch.host_token
    return None if job is None else _digest(job)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _mark_of(environ: Mapping[str, str], process: ProcessFacts) -> Starter | None:
    """Return the mark that counts: this process's own, else what it has inherited by the environment, or by a fork."""
    here = process.starter
    if here is not None and here.is_process(process.pid, process.started):
        return here
    return Starter.of(environ) or here


def _as_program(
    environ: Mapping[str, str], process: ProcessFacts, mark: Starter, session_id: str | None, attempt: int | None
) -> Place | None:
    """Return the place of a program that a rank has started; None if this is none, but what its launcher says."""
    if process.torch is not None:
        return None
    launch = named_launch(environ, process)
    is_lightnings_first = launch is not None and launch.launcher == LIGHTNING.launcher and launch.local_rank == 0
    is_own = mark.is_process(process.pid, process.started)
    if is_own and mark.started_by is None:
        return None
    if not mark.has_launch(launch, _job_digest(launch)) and not (is_lightnings_first and not is_own):
        return None
    given = given_session_id(environ, session_id)
    counted = 0
    if is_own:
        # One that was given its parent's id has made that its own; and exec makes it the next attempt.
        is_ours = given is None or session_id is None or mark.session_id.startswith(f"{given}.")
        found = mark.session_id if is_ours else str(given)
        counted = mark.attempt + 1 if process.starter is None and is_ours else 0
        started_by = mark.started_by
    else:
        if not mark.runs and (launch is None or given is not None):
            return None  # What the starter was is over, and its launcher's word alone is still around.
        is_inherited = session_id is None and given == mark.session_variable
        is_its_own = given is not None and given != mark.session_id and not is_inherited
        found = str(given) if is_its_own else session_beneath(mark.session_id, process)
        started_by = mark.session_id
    place = _place(
        environ, process, SINGLE, found, counted if attempt is None else attempt, has_attempt=attempt is not None
    )
    of_rank = attrs.evolve(
        place.starter, rank=mark.rank, world_size=mark.world_size, job=mark.job, started_by=started_by
    )
    return attrs.evolve(place, starter=of_rank, started_by=started_by)


def _session_before(before: Starter | None, launch: Launch) -> FoundSession | None:
    """Return the session that a process goes on with that has replaced itself, where nothing names one."""
    if before is None or not before.has_launch(launch, _job_digest(launch)):
        return None
    return FoundSession(before.session_id, attempt=before.attempt + 1)


def _session_of_launcher(mark: Starter, process: ProcessFacts, launch: Launch) -> FoundSession | None:
    """Return the session of Lightning's first rank, which starts the others and may have begun it before."""
    launcher = launcher_process(launch, process) if launch.is_on_one_host else None
    is_lightning = launch.launcher == LIGHTNING.launcher
    if launcher is None or not is_lightning or not mark.runs or not mark.is_process(launcher.pid, launcher.started):
        return None
    return FoundSession(mark.session_id, attempt=mark.attempt)


def _placed(environ: Mapping[str, str], process: ProcessFacts, rank: int | None, world_size: int | None) -> Launch:
    """Return where this process stands, by the caller's word and the launcher's."""
    if rank is None and world_size is None:
        return launched(environ, process) or SINGLE
    _check_argument("rank", rank, 0)
    _check_argument("world_size", world_size, 1)
    if rank is not None and world_size is not None:
        if rank >= world_size:
            raise out_of_range("rank", rank, "world_size", world_size)
        launch = None
        # Where the caller says it all, an environment that makes no sense does not matter.
        with contextlib.suppress(ConfigurationError):
            launch = launched(environ, process)
        if launch is None or (launch.rank, launch.world_size) != (rank, world_size):
            local_world_size = 1 if world_size == 1 else None
            return Launch(
                "explicit", rank=rank, world_size=world_size, local_rank=rank, local_world_size=local_world_size
            )
        return attrs.evolve(launch, launcher="explicit")
    launch = launched(environ, process)
    given, value, missing = ("rank", rank, "world_size") if world_size is None else ("world_size", world_size, "rank")
    if launch is None:
        launch = SINGLE
        says = "no launcher says the other"
    else:
        says = f"{launch.title or launch.launcher} says that this is rank {launch.rank} of {launch.world_size}"
    if value != getattr(launch, given):
        raise ConfigurationError(
            f"{given}={value} was given without {missing}, and {says}.",
            setting=missing,
            fix=f"Give {missing} as well, or neither.",
        )
    return attrs.evolve(launch, launcher="explicit")


def _check_argument(name: str, value: int | None, minimum: int) -> None:
    if value is not None and (type(value) is not int or value < minimum):
        raise ConfigurationError(
            f"{name} is {ascii(value)[:MAX_SHOWN_CHARS]}.",
            setting=name,
            fix=f"Give an integer that is at least {minimum}.",
        )
