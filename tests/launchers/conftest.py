"""Fixtures of launchers: a job's folder, and a Slurm that only these tests use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite(f"{__package__}.conformance")

from .job import Job  # noqa: E402 - what is to be rewritten must be said first
from .slurm import Slurm  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Return a folder for journals and launches."""
    return Job(tmp_path)


@pytest.fixture(scope="package")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Start a cluster of two nodes of four CPUs each, all on this host."""
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
