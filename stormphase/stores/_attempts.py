"""Restarts of a session, counted by the store that has the ones before, where no launcher and no journal counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from stormphase.exceptions import StoreError

if TYPE_CHECKING:
    from stormphase._model import RankIdentity
    from stormphase.typing import RecordStore


def number_attempt(store: RecordStore | None, identity: RankIdentity) -> RankIdentity:
    """Return the identity with the attempt that the store counts, if it can; a store that fails counts nothing.

    Raises:
        ConfigurationError: if the store knows that a process of the same session and rank lives.
    """
    count = getattr(store, "begin_attempt", None) or getattr(store, "next_attempt", None)
    if count is None:
        return identity
    try:
        return attrs.evolve(identity, attempt=count(identity))
    except StoreError:
        return identity
