"""Ranks that Lightning starts itself, from a script that was started as `python x.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conformance import Launched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .job import Job

pytestmark = pytest.mark.launchers


class TestTrainer(Launched):
    """`Trainer(devices=2, strategy="ddp")`."""

    launcher = "lightning"
    ranks = 2
    program = "trained"

    @classmethod
    def command(cls, rank: Sequence[str]) -> list[str]:
        """Return the script, which starts the other ranks."""
        return list(rank)


class TestFabric(TestTrainer):
    """`Fabric(devices=2, strategy="ddp").launch()`."""

    program = "launched_by_fabric"


def test_a_rank_that_is_started_by_a_session_is_never_alone(job: Job) -> None:
    """A script that begins its session before it has others started cannot know of them; they know who they are."""
    job.launch(job.rank("a", 2, "work", program="launched_late"))
    first, second = job.said("a")
    assert (1, 2, "lightning") == (second["rank"], second["world_size"], second["launcher"])
    assert first["session_id"] == second["session_id"]
