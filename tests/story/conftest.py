"""Makes the modules that these tests share importable, and runs programs for them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("story_loading", Path(__file__).with_name("loading.py"))
_spec.loader.exec_module(importlib.util.module_from_spec(_spec))


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """Run programs; what runs them ends with the module."""
    from story_runner import Runner

    with Runner(tmp_path_factory.mktemp("story")) as runner:
        yield runner
