"""What users' tests can rely on: that a secret is redacted can be asserted."""

from __future__ import annotations

import pytest

from stormphase.testing import assert_redacts


def test_a_secret_that_goes_passes() -> None:
    """The assertion returns what would be stored."""
    assert "password=[redacted] x" == assert_redacts("hunter2", "password=hunter2 x")
    assert "id [redacted]" == assert_redacts("customer-17", "id customer-17", redact=[r"customer-\d+"])
    assert "say [redacted]" == assert_redacts("abcdefgh", "say abcdefgh", environ={"MY_TOKEN": "abcdefgh"})


def test_a_secret_that_stays_fails_and_says_what_to_do() -> None:
    """A secret that looks like any other word is not found without a pattern."""
    with pytest.raises(AssertionError, match="redact="):
        assert_redacts("hunter2", "my word is hunter2")


def test_a_text_without_the_secret_tests_nothing() -> None:
    """A test that would pass whatever happens fails."""
    with pytest.raises(AssertionError, match="nothing is tested"):
        assert_redacts("hunter2", "password=x")
