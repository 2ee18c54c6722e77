"""Ranks that Lightning starts itself, from a script that was started as `python x.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conformance import Launched

if TYPE_CHECKING:
    from collections.abc import Sequence

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
