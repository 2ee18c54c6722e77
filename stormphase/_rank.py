"""Which process of which session this is: pure, from the environment and the process facts it is given."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._environ import MAX_SHOWN_CHARS, integer
from stormphase._launchers import SINGLE, Launch, launched, out_of_range, restarts
from stormphase._model import RankIdentity
from stormphase._process_facts import ProcessFacts
from stormphase._session_id import MAX_SESSION_ID_CHARS, find_session_id
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_SESSION_ID_CHARS", "ProcessFacts", "detect_rank"]

ATTEMPT_VARIABLE: Final = "STORMPHASE_ATTEMPT"


def detect_rank(
    environ: Mapping[str, str],
    *,
    session_id: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    process: ProcessFacts,
) -> RankIdentity:
    """Return which process of which session this is.

    `rank` and `world_size` win over every launcher. Where nothing tells the local rank, it is the rank for a caller's
    own numbers, and 0 for a launcher's. An empty variable counts as none.

    Args:
        environ: the process's environment.
        session_id: the launch, if the caller knows it.
        rank: this process among all, from 0, if the caller knows it.
        world_size: how many there are, if the caller knows it.
        process: the facts of the process, `ProcessFacts.of_this_process()`.

    Raises:
        ConfigurationError: if what is given is wrong or contradictory, or if the ranks cannot agree on a session id.
    """
    launch = _placed(environ, process, rank, world_size)
    session, may_come_again = find_session_id(environ, process, launch, session_id)
    attempt = integer(environ, ATTEMPT_VARIABLE)
    if attempt is None:
        attempt = restarts(environ) if may_come_again else launch.attempt
    return RankIdentity(
        session_id=session,
        attempt=attempt,
        rank=launch.rank,
        local_rank=launch.local_rank,
        world_size=launch.world_size,
        local_world_size=launch.local_world_size,
        node_rank=launch.node_rank,
        host=process.host,
        launcher=launch.launcher,
    )


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
        says = f"{launch.launcher} says that this is rank {launch.rank} of {launch.world_size}"
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
