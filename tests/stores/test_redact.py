"""No store sees a secret."""

# ruff: noqa: PT012, SIM117 - phases nest in blocks that fail

from __future__ import annotations

import pytest

from stormphase._redaction import Redactor
from stormphase._store_conformance import as_ended, example_record
from stormphase.stores import MemoryStore
from stormphase.stores._redact import RecordRedactor

SECRET = "hunter2-hunter2"  # noqa: S105 - the example of one


@pytest.fixture
def redact():
    """Return what takes out the value of one variable."""
    return RecordRedactor(Redactor(environ={"DB_PASSWORD": SECRET}))


def test_secrets_are_taken_out_of_every_text(redact):
    """Attributes, also nested ones, messages, tracebacks and reasons."""
    record = as_ended(
        example_record(attributes={"url": f"db://{SECRET}", "nested": {"a": [SECRET]}, "n": 1}),
        error_type="ValueError",
        error_message=f"cannot use {SECRET}",
        traceback=f"ValueError: {SECRET}",
        reason=f"closed over {SECRET}",
    )
    clean = redact(record)
    assert SECRET not in clean.to_json()
    assert (1, record.scope_id, "ValueError") == (clean.attributes["n"], clean.scope_id, clean.error_type)


@pytest.mark.parametrize("attributes", [{}, {"n": 1, "f": 0.5, "b": True, "none": None}, {"name": "plain"}])
def test_a_record_without_secrets_stays_what_it_is(redact, attributes):
    """The very same object: nothing is copied for nothing."""
    record = as_ended(example_record(attributes=attributes), error_type="ValueError", error_message="bad")
    assert record is redact(record)


def test_numbers_at_a_credentials_key_are_taken_out(redact):
    """A PIN is a number, and a record of nothing else is looked at, too."""
    record = as_ended(example_record(attributes={"password": 4711, "n": 1}))
    assert {"password": "[redacted]", "n": 1} == redact(record).attributes


def test_a_tracker_lets_no_secret_into_its_store(make_tracker, monkeypatch):
    """Neither while a phase is open nor when it fails, nor when the session does."""
    monkeypatch.setenv("DB_PASSWORD", SECRET)
    store = MemoryStore()
    with pytest.raises(ValueError, match=SECRET), make_tracker(store=store) as tracker:
        with tracker.enter_phase("train", {"dsn": SECRET}):
            assert tracker.flush(30)
            assert SECRET not in "".join(record.to_json() for record in store.query())
            raise ValueError(SECRET)
    texts = [record.to_json() for record in store.query()]
    assert 3 == len(texts)
    assert SECRET not in "".join(texts)
