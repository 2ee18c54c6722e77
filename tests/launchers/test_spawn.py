"""Ranks that `torch.multiprocessing.spawn` starts, with a process group that is up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conformance import Launched, check_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .job import Job

pytestmark = pytest.mark.launchers


class TestSpawn(Launched):
    """The process group alone says who they are."""

    launcher = "torch"
    ranks = 2
    program = "spawned"

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return the script that spawns."""
        return list(rank)


def test_two_groups_that_one_program_spawns_are_two_sessions(job: Job) -> None:
    """A program may spawn its ranks again and again: each time it is a launch."""
    job.launch(job.rank("first,second", 2, "work", program="spawned"))
    sessions = {check_ranks(job.said(label), "torch", 2) for label in ("first", "second")}
    assert 2 == len(sessions)
