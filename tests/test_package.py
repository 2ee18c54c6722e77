"""The public names of the package, which are loaded when they are first used."""

from __future__ import annotations

import json
import re
import textwrap
from typing import TYPE_CHECKING

import pytest

import stormphase

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import RunPython


@pytest.mark.parametrize("name", stormphase.__all__)
def test_every_public_name_is_there(name: str):
    """Each name of `__all__` can be had and is listed."""
    assert getattr(stormphase, name) is not None
    assert name in dir(stormphase)


def test_an_unknown_name_is_an_attribute_error():
    """A name that does not exist is told as Python tells it."""
    with pytest.raises(AttributeError, match="has no attribute 'PhaseTraker'"):
        _ = stormphase.PhaseTraker  # type: ignore[attr-defined]


def test_all_names_together_load_nothing_heavy(run_python: RunPython):
    """Using every public name loads neither OpenTelemetry nor asyncio, sqlite3 or rich."""
    code = """
        import json, sys
        before = set(sys.modules)  # coverage brings sqlite3 along
        import stormphase
        for name in stormphase.__all__:
            getattr(stormphase, name)
        heavy = ("opentelemetry", "asyncio", "sqlite3", "rich", "torch")
        print(json.dumps([name for name in heavy if name in sys.modules and name not in before]))
    """
    assert json.loads(run_python(textwrap.dedent(code)).stdout) == []


def test_every_module_of_the_core_whose_coverage_is_checked_is_there(repository: Path):
    """One that is renamed would otherwise drop out of what CI wants covered wholly, and nobody would notice."""
    settings = (repository / "pyproject.toml").read_text(encoding="utf-8")
    modules = re.findall(r'^    "(stormphase/\w+\.py)",$', settings, re.MULTILINE)
    assert "stormphase/_status.py" in modules
    assert [] == [module for module in modules if not (repository / module).is_file()]
