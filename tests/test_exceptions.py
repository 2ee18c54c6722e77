"""Errors travel between processes: a pool that cannot read one of its worker's waits for ever."""

import copy
import pickle

import pytest

from stormphase import exceptions as errors

EACH = [
    errors.ConfigurationError("rank is 3.", setting="rank", fix="Give less."),
    errors.PhaseNameError("blank", name=""),
    errors.PhaseProtocolError("cannot", action="exit", reason="stopped", fix="Do not.", open_inside=["a (b.py:1)"]),
    errors.StatusError("no", current="succeeded", wanted="active", allowed=[]),
    errors.OwnershipError("no", current="paused", wanted="active", allowed=[], owner=None, actor="MainThread"),
    errors.JournalError("is short.", file="x", fix="Look."),
    errors.JournalVersionError("is new.", file="x", fix="Upgrade.", version=9, supported=1),
    errors.StoreError("is full.", path="x", fix="Make room.", may_pass=True),
    errors.UnknownNameError("no such", what="field", name="x", near=["y"]),
]


@pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("twin_of", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])  # noqa: S301 - our own bytes
def test_a_pickled_error_says_the_same(error, twin_of):
    """Its type, message and every fact, and whatever else was noted on it."""
    error.noted = "in worker 3"
    twin = twin_of(error)
    assert (type(error), str(error), vars(error)) == (type(twin), str(twin), vars(twin))
