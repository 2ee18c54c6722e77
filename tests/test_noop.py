"""The phase that is none: it takes everything, records nothing and refuses nothing."""

from __future__ import annotations

import pytest

from stormphase._model import PhaseStatus
from stormphase._noop import NOOP, NOOP_TOKEN


def test_it_takes_whatever_a_phase_takes():
    """Every method works and leaves no trace."""
    with NOOP as phase:
        phase.set_attribute("k", 1)
        phase.set_attributes({"k": 1})
        phase.add_event("e", {"k": 1}, 3)
        phase.pause()
        phase.resume()
        assert NOOP_TOKEN is phase.release()
    assert NOOP is phase
    NOOP.close()
    NOOP.close(error=ValueError("x"))
    assert {} == {name: getattr(NOOP, name) for name in ("_extra", "_attributes") if hasattr(NOOP, name)}


def test_it_says_that_it_is_nothing():
    """Blank, at the root, ended well, nowhere."""
    assert ("", (), "", "0" * 16, 0) == (NOOP.name, NOOP.path, NOOP.phase_path, NOOP.scope_id, NOOP.scope_id_number)
    assert (PhaseStatus.SUCCEEDED, True, None) == (NOOP.status, NOOP.closed, NOOP.parent)
    assert ("nowhere", "<no phase>", NOOP.scope_id) == (NOOP.location, repr(NOOP), NOOP_TOKEN.scope_id)


def test_an_exception_passes_it():
    """As it would pass any phase."""
    error = ValueError("x")
    with pytest.raises(ValueError, match="x") as raised, NOOP:
        raise error
    assert error is raised.value
