"""Which attempt of its session a rank begins, where no launcher counts restarts: one rule for journals and stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stormphase._model import RankIdentity


@attrs.frozen(kw_only=True)
class Begun:
    """One process that has begun an attempt of a session.

    Attributes:
        attempt: which attempt.
        rank: as which rank; None for what is the session's own.
        is_alive: whether it is known to live.
        is_done: whether it was the rank itself, in a job of the same size, and has ended well.
        is_child: whether it was forked from the rank or worked for it.
    """

    attempt: int
    rank: int | None
    is_alive: bool
    is_done: bool = False
    is_child: bool = False


def running_already(identity: RankIdentity, as_what: str) -> ConfigurationError:
    """Return the error of a start as a rank of a session that another process is already.

    Args:
        identity: the session and the rank.
        as_what: the other process, as a sentence says it.
    """
    return ConfigurationError(
        f"Session {identity.session_id!r}, rank {identity.rank}, is running already, as {as_what}.",
        setting="session_id",
        fix="Give each launch a session id of its own, or end that process.",
    )


def next_attempt(identity: RankIdentity, begun: Iterable[Begun]) -> int:
    """Return which attempt of its session a rank begins; `identity` says the lowest.

    The one after the last, if this rank has begun that already, or if all its processes are dead; else the last, which
    its other ranks have begun a moment ago. That is so as well if all of them have ended well by now: in a short job
    the first rank may be done before the last one has imported what it needs. Ranks that start at one time need nobody
    to agree with.
    """
    known = list(begun)
    last = max((each.attempt for each in known), default=-1)
    of_last = [each for each in known if each.attempt == last]
    has_begun = any(each.rank == identity.rank for each in of_last)
    ranks = [each for each in of_last if each.rank is not None and not each.is_child]
    others_are_there = any(each.is_alive for each in of_last) or (bool(ranks) and all(each.is_done for each in ranks))
    return max(identity.attempt, last if others_are_there and not has_begun else last + 1)
