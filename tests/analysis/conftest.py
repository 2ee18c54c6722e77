"""Hand-made jobs for the tests of analysis."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest


def _load_jobs() -> Any:
    """Return tests/analysis/jobs.py as the module `jobs`: folders of tests are no packages."""
    if "jobs" not in sys.modules:
        spec = importlib.util.spec_from_file_location("jobs", Path(__file__).parent / "jobs.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["jobs"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["jobs"]


_load_jobs()


@pytest.fixture
def job() -> Any:
    """Return a job of four ranks without journals."""
    return _load_jobs().Job()
