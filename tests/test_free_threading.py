"""A free-threaded Python: what works there, and what says that it does not."""

from __future__ import annotations

import sys

import pytest

import stormphase
from stormphase import ConfigurationError, PhaseTracker
from stormphase._noop import NOOP


@pytest.fixture(autouse=True)
def without_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Python say what a free-threaded build says; no package of one can be had."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)


def test_a_tracker_does_not_start() -> None:
    """It says why and what helps, and nothing has started."""
    tracker = PhaseTracker("x", bridge=None)
    with pytest.raises(ConfigurationError, match="global interpreter lock") as caught:
        tracker.start()
    assert "PYTHON_GIL=1" in str(caught.value)
    with stormphase.phase("step") as phase:
        assert NOOP is phase


def test_it_starts_once_there_is_a_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal has used nothing up."""
    tracker = PhaseTracker("x", bridge=None)
    with pytest.raises(ConfigurationError):
        tracker.start()
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    with tracker, tracker.enter_phase("step") as phase:
        assert ("step",) == phase.path


def test_a_phase_without_a_tracker_does_nothing() -> None:
    """Libraries that use stormphase work on."""

    @stormphase.phase("work")
    def work() -> int:
        with stormphase.phase("inner"):
            return 3

    assert 3 == work()


def test_a_disabled_tracker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tracks nothing, so it needs no lock."""
    monkeypatch.setenv("STORMPHASE_DISABLED", "1")
    with PhaseTracker("x", bridge=None) as tracker, tracker.enter_phase("step") as phase:
        assert NOOP is phase
