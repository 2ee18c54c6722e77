"""Ranks that MPICH's `mpirun` starts, and the process manager's own variables are all that they have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conformance import LaunchedPrograms

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.launchers


class TestMPICH(LaunchedPrograms):
    """MPICH on one host."""

    launcher = "pmi"

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return mpirun."""
        return ["mpirun.mpich", "-n", str(cls.ranks), *rank]
