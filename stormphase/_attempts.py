"""Which attempt of its session a rank begins, where no launcher counts restarts: one rule for journals and stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stormphase._model import RankIdentity


@attrs.frozen(kw_only=True)
class Launched:
    """By what a rank knows those that were launched with it, and whether its attempt was given.

    Attributes:
        launch: what they share, and after a "#" the launcher's count of restarts; None if nothing.
        has_attempt: whether the caller gave the attempt, which then is no other one.
    """

    launch: str | None = None
    has_attempt: bool = False

    def is_launch_of(self, other: str | None) -> bool:
        """Whether a process with that `launch` was launched with this one."""
        return self.launch is not None and self.launch == other

    def is_launcher_of(self, other: str | None) -> bool:
        """Whether it was launched by the same launcher, perhaps before a restart."""
        return (
            self.launch is not None and other is not None and self.launch.rpartition("#")[0] == other.rpartition("#")[0]
        )


UNKNOWN_LAUNCH: Final = Launched()


@attrs.frozen(kw_only=True)
class Begun:
    """One process that has begun an attempt of a session.

    Attributes:
        attempt: which attempt.
        rank: as which rank; None for what is the session's own.
        is_alive: whether it is known to live, and its session has not ended.
        is_done: whether it was the rank itself, in a job of the same size, and has ended well.
        is_child: whether it was forked from the rank or worked for it.
        launch: as `Launched` has it.
    """

    attempt: int
    rank: int | None
    is_alive: bool
    is_done: bool = False
    is_child: bool = False
    launch: str | None = None


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


def next_attempt(identity: RankIdentity, begun: Iterable[Begun], launched: Launched = UNKNOWN_LAUNCH) -> int:
    """Return which attempt of its session a rank begins; `identity` says the lowest.

    One launch is one attempt: that of the ranks that were launched with this one, however they fared, unless this rank
    has begun it already. Then, and where nobody else of its launch is there, it is the one after the last, if this rank
    has begun that already, or if all its processes are dead; else the last, which its other ranks have begun a moment
    ago. That is so as well if all of them have ended well by now: in a short job the first rank may be done before the
    last one has imported what it needs. Ranks that start at one time need nobody to agree with.

    Raises:
        ConfigurationError: if the caller gave the attempt, and this rank has begun it already.
    """
    known = list(begun)
    mine = max((each.attempt for each in known if each.rank == identity.rank), default=-1)
    if launched.has_attempt:
        return _given(identity, known)
    together = [each.attempt for each in known if each.attempt > mine and launched.is_launch_of(each.launch)]
    if together:
        return max(identity.attempt, min(together))
    last = max((each.attempt for each in known), default=-1)
    if last > mine and not _are_there(each for each in known if each.attempt == last):
        # torchrun's agents restart all ranks, and count the failures of their own alone: the launcher is the same.
        was_restarted = any(
            each.rank == identity.rank and each.attempt == mine and launched.is_launcher_of(each.launch)
            for each in known
        )
        last = mine + 1 if was_restarted else last + 1
    elif last == mine:
        last += 1
    return max(identity.attempt, last)


def _are_there(begun: Iterable[Begun]) -> bool:
    """Whether the processes of an attempt wait for others of its ranks: some live, or all ranks have ended well."""
    of_last = list(begun)
    ranks = [each for each in of_last if each.rank is not None and not each.is_child]
    return any(each.is_alive for each in of_last) or (bool(ranks) and all(each.is_done for each in ranks))


def _given(identity: RankIdentity, known: Iterable[Begun]) -> int:
    if any((each.attempt, each.rank) == (identity.attempt, identity.rank) for each in known):
        raise begun_already(identity)
    return identity.attempt


def begun_already(identity: RankIdentity) -> ConfigurationError:
    """Return the error of a start as an attempt that was given, and that this rank has begun already."""
    return ConfigurationError(
        f"Attempt {identity.attempt} of session {identity.session_id!r}, rank {identity.rank}, was begun already.",
        setting="attempt",
        fix="Give a higher attempt, or leave it out to have it counted.",
    )
