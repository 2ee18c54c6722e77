"""Which sessions this process has started: one id, attempt and rank stand for one tracker only, as traces do.

A tracker that is started again under an id that was given to it is the next attempt, once the one before has stopped. A
second tracker of a session that was found, and not given, is a session of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from stormphase._attempts import begun_already
from stormphase._rank import MAX_SESSION_ID_CHARS
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from stormphase._model import RankIdentity

# A forked child keeps what its parent has started: the ids are taken there, too. [True] while the tracker runs.
_claimed: Final[dict[tuple[str, int, int], list[bool]]] = {}


def claim(found: RankIdentity, *, is_explicit: bool, has_attempt: bool = False) -> RankIdentity:
    """Return an identity that no tracker of this process has had.

    Where the caller gave the session's id, that is its next attempt, and else a session "ID.2". Every rank counts its
    trackers in the same order, so they agree. Thread-safe.

    Args:
        found: who this is, its attempt the lowest.
        is_explicit: whether the caller gave the session's id.
        has_attempt: whether the caller gave the attempt, too.

    Raises:
        ConfigurationError: if a tracker of that session is running in this process, or has had the attempt that the
            caller gave: two traces would be one.
    """
    if not is_explicit:
        claimed, uses = found, 1
        while not _take(claimed):
            uses += 1
            claimed = attrs.evolve(found, session_id=_numbered(found.session_id, uses))
        return claimed
    had = _attempts_from(found)
    if has_attempt:
        if not _take(found):
            raise _running_here(found) if had[found.attempt] else begun_already(found)
        return found
    claimed = attrs.evolve(found, attempt=max((each + 1 for each in had), default=found.attempt))
    if any(had.values()) or not _take(claimed):
        raise _running_here(found)
    return claimed


def count_on(claimed: RankIdentity, counted: RankIdentity) -> None:
    """Claim what a tracker is after a journal or a store has counted its attempt, in place of what it was before."""
    if counted != claimed:
        _take(counted)
        unclaim(claimed)


def release(identity: RankIdentity) -> None:
    """Take note that the tracker has stopped: its session may be started again, as the next attempt."""
    runs = _claimed.get(_key(identity))
    if runs is not None:
        runs[:] = [False]


def unclaim(identity: RankIdentity) -> None:
    """Give an identity back that was claimed for a start that failed."""
    _claimed.pop(_key(identity), None)


def _running_here(identity: RankIdentity) -> ConfigurationError:
    return ConfigurationError(
        f"Session {identity.session_id!r}, rank {identity.rank}, is running already, in this process.",
        setting="session_id",
        fix="Give each PhaseTracker of a process its own session_id, or stop the one before.",
    )


def _attempts_from(found: RankIdentity) -> dict[int, bool]:
    """Return the attempts of a session and rank that this process has had, from the one found on, and which run."""
    return {
        attempt: runs[0]
        for (session_id, attempt, rank), runs in list(_claimed.items())
        if (session_id, rank) == (found.session_id, found.rank) and attempt >= found.attempt
    }


def _take(identity: RankIdentity) -> bool:
    mine = [True]
    return _claimed.setdefault(_key(identity), mine) is mine  # One C call: of two threads one wins.


def _key(identity: RankIdentity) -> tuple[str, int, int]:
    return (identity.session_id, identity.attempt, identity.rank)


def _numbered(session_id: str, uses: int) -> str:
    suffix = f".{uses}"
    return session_id[: MAX_SESSION_ID_CHARS - len(suffix)] + suffix
