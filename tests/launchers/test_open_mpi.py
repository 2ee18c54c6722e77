"""Ranks that Open MPI's `mpirun` starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conformance import LaunchedPrograms

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.launchers


class TestOpenMPI(LaunchedPrograms):
    """Open MPI on one host."""

    launcher = "open_mpi"

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return mpirun with more ranks than cores, also for root."""
        return ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n", str(cls.ranks), *rank]
