"""Restarts of a session, counted by the store that has the ones before, where no launcher and no journal counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from stormphase._attempts import UNKNOWN_LAUNCH, Launched
from stormphase.exceptions import StoreError

if TYPE_CHECKING:
    from stormphase._model import RankIdentity
    from stormphase.typing import RecordStore


def number_attempt(
    store: RecordStore | None, identity: RankIdentity, launched: Launched = UNKNOWN_LAUNCH
) -> RankIdentity:
    """Return the identity with the attempt that the store counts, if it can; a store that fails counts nothing.

    Raises:
        ConfigurationError: if the store knows that a process of the same session and rank lives, or that it has begun
            the attempt that was given.
    """
    count = getattr(store, "begin_attempt", None)
    if count is None:
        return identity
    try:
        return attrs.evolve(identity, attempt=count(identity, launched))
    except StoreError:
        return identity
