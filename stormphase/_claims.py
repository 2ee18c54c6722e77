"""Which sessions this process has started: one id, attempt and rank stand for one tracker only, as traces do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from stormphase._rank import MAX_SESSION_ID_CHARS
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from stormphase._model import RankIdentity

# A forked child keeps what its parent has started: the ids are taken there, too.
_claimed: Final[dict[tuple[str, int, int], object]] = {}


def claim(found: RankIdentity, *, is_explicit: bool) -> RankIdentity:
    """Return an identity that no tracker of this process has had; the second one of a found session gets "ID.2".

    Every rank counts its trackers in the same order, so they agree. Thread-safe.

    Raises:
        ConfigurationError: if the caller gave the session id and it is taken: two traces would be one.
    """
    if _take(found):
        return found
    if is_explicit:
        raise ConfigurationError(
            f"Session {found.session_id!r}, rank {found.rank}, was already started in this process.",
            setting="session_id",
            fix="Give each PhaseTracker of a process its own session_id.",
        )
    uses = 2
    while not _take(claimed := attrs.evolve(found, session_id=_numbered(found.session_id, uses))):
        uses += 1
    return claimed


def unclaim(identity: RankIdentity) -> None:
    """Give an identity back that was claimed for a start that failed."""
    _claimed.pop(_key(identity), None)


def _take(identity: RankIdentity) -> bool:
    mine = object()
    return _claimed.setdefault(_key(identity), mine) is mine  # One C call: of two threads one wins.


def _key(identity: RankIdentity) -> tuple[str, int, int]:
    return (identity.session_id, identity.attempt, identity.rank)


def _numbered(session_id: str, uses: int) -> str:
    suffix = f".{uses}"
    return session_id[: MAX_SESSION_ID_CHARS - len(suffix)] + suffix
