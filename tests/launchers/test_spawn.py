"""Ranks that `torch.multiprocessing.spawn` starts, with a process group that is up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conformance import Launched

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.launchers


class TestSpawn(Launched):
    """The process group alone says who they are."""

    launcher = "torch"
    ranks = 2
    local_ranks = (0, 0)  # A process group does not know hosts.
    program = "spawned"

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return the script that spawns."""
        return list(rank)
