"""Restarts of a session, counted by the store that has the ones before, where no launcher and no journal counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from stormphase._liveness import Liveness, judge, own_process
from stormphase._model import ProcessIdentity
from stormphase.exceptions import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stormphase._model import RankIdentity
    from stormphase.typing import RecordStore


@attrs.frozen
class Begun:
    """One process that has begun an attempt of a session.

    Attributes:
        attempt: which attempt.
        rank: as which rank; None for what is the session's own.
        process: which process, or None if unknown.
        last_seen_ns: when it was last known alive, nanoseconds since the Unix epoch, or None.
    """

    attempt: int
    rank: int | None
    process: ProcessIdentity | None
    last_seen_ns: int | None


def next_attempt(identity: RankIdentity, begun: Iterable[Begun], now_wall_ns: int) -> int:
    """Return which attempt of its session a rank begins; `identity` says the lowest.

    The one after the last, if this rank has begun that already, or if all its processes are dead; else the last, which
    its other ranks have begun a moment ago. Ranks that start at one time need nobody to agree with.
    """
    known = list(begun)
    last = max((each.attempt for each in known), default=-1)
    if last < identity.attempt:
        return identity.attempt
    of_last = [each for each in known if each.attempt == last]
    if any(each.rank == identity.rank for each in of_last):
        return last + 1
    this = own_process()
    for each in of_last:
        if each.process is not None:
            verdict = judge(each.process, heartbeat_wall_ns=each.last_seen_ns, now_wall_ns=now_wall_ns, this=this)
            if verdict.state is Liveness.ALIVE:
                return last
    return last + 1


def number_attempt(store: RecordStore | None, identity: RankIdentity) -> RankIdentity:
    """Return the identity with the attempt that the store counts, if it can; a store that fails counts nothing."""
    count = getattr(store, "next_attempt", None)
    if count is None:
        return identity
    try:
        return attrs.evolve(identity, attempt=count(identity))
    except StoreError:
        return identity
