"""Claims a tracker's place: in this process, and in the journal or the store that counts attempts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from stormphase import _claims
from stormphase.stores._attempts import number_attempt

if TYPE_CHECKING:
    from stormphase._configuration import Settings
    from stormphase._journaling import SessionJournal
    from stormphase._rank import Place

_COUNTS_ALONE: Final = (
    "stormphase: each of torchrun's agents counts only the failures of its own ranks, so that after a restart they may "
    "not agree on the attempt. Give a journal directory (STORMPHASE_DIR) that counts them, start the tracker once the "
    "process group is up, or set STORMPHASE_ATTEMPT."
)

_log = logging.getLogger("stormphase")


def claim_place(place: Place, settings: Settings, journal: SessionJournal) -> Place:
    """Return the place with the attempt that it has by now; the journal is placed under it.

    Raises:
        ConfigurationError: if a tracker of this process or another process has it; nothing is claimed then.
    """
    launched = place.launched
    claimed = _claims.claim(
        place.identity, is_explicit=settings.session_id is not None, has_attempt=launched.has_attempt
    )
    try:
        counted = claimed if journal.is_wanted else number_attempt(settings.store, claimed, launched)
        identity = journal.place(counted, launched)
    except BaseException:
        _claims.unclaim(claimed)
        raise
    _claims.count_on(claimed, identity)
    if place.counts_alone and not journal.is_wanted:
        _log.warning(_COUNTS_ALONE)
    return place.with_identity(identity)
