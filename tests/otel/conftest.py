"""What the tests of the OpenTelemetry room share: a clean environment, and packages that offer entry points."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "TORCHELASTIC_", "OMPI_", "PMI", "SLURM_", "RAY_", "JAX_")


class OfferPackage(Protocol):
    """Makes a package that offers components to OpenTelemetry by name."""

    def __call__(self, source: str, entry_points: Mapping[str, str]) -> None:
        """Install a module `offered` with this source; `entry_points` maps `group/name` to what is in it."""


@pytest.fixture
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away every variable that would configure OpenTelemetry or tell a rank."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "STORMPHASE_", "TRACEPARENT", *LAUNCHERS)):
            monkeypatch.delenv(name)


@pytest.fixture
def offer_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OfferPackage]:
    """Install a package for one test, so that its entry points are found as those of any other."""
    site = tmp_path / "site"

    def offer(source: str, entry_points: Mapping[str, str]) -> None:
        facts = site / "offered-1.0.dist-info"
        facts.mkdir(parents=True)
        (site / "offered.py").write_text(source, encoding="utf-8")
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n", encoding="utf-8")
        lines = []
        for place, what in entry_points.items():
            group, name = place.split("/")
            lines.append(f"[{group}]\n{name} = offered:{what}\n")
        (facts / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        monkeypatch.syspath_prepend(site)
        importlib.invalidate_caches()

    yield offer
    sys.modules.pop("offered", None)
