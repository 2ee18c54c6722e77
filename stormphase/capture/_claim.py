"""Which session of this process has the descriptors 1 and 2: one at a time."""

from __future__ import annotations

import os
import select
import sys
from typing import Final

from stormphase.exceptions import ConfigurationError

_claimed: Final[dict[int, str]] = {}


def claim(label: str) -> None:
    """Take the descriptors of this process for one session.

    Raises:
        ConfigurationError: if another one has them, or this system has no such descriptors.
    """
    if not hasattr(select, "poll") or not sys.executable:
        raise ConfigurationError(
            'capture="fd" needs a POSIX system and a Python executable.',
            setting="capture",
            fix="Write capture=True, which captures what goes through Python.",
        )
    # One C call: of two threads one wins.
    owner = _claimed.setdefault(os.getpid(), label)
    if owner is not label:
        raise ConfigurationError(
            f'capture="fd" is already on in this process, for {owner}, and lines must not cross.',
            setting="capture",
            fix="Stop that session first, or write capture=True for this one.",
        )


def unclaim() -> None:
    """Give the descriptors back."""
    _claimed.pop(os.getpid(), None)
