"""One session id, attempt and rank stand for one tracker of the process."""

from __future__ import annotations

import pytest

from stormphase import ConfigurationError, RankIdentity, _claims
from stormphase._claims import claim, count_on, release, unclaim


@pytest.fixture(autouse=True)
def nothing_claimed(monkeypatch):
    """Begin with no session started."""
    monkeypatch.setattr(_claims, "_claimed", {})


def identity(session_id: str, *, rank: int = 0, attempt: int = 0) -> RankIdentity:
    """Return an identity."""
    return RankIdentity(
        session_id=session_id,
        attempt=attempt,
        rank=rank,
        local_rank=rank,
        world_size=2,
        local_world_size=2,
        node_rank=None,
        host="host",
        launcher="explicit",
    )


def test_each_rank_and_attempt_is_its_own():
    """Only what would write the very same trace is refused."""
    for each in (identity("own"), identity("own", rank=1), identity("own", attempt=1)):
        assert each == claim(each, is_explicit=True)


def test_a_found_session_is_numbered():
    """The second and third tracker of a process get ids that every rank counts alike."""
    found = [claim(identity("found"), is_explicit=False).session_id for _ in range(3)]
    assert ["found", "found.2", "found.3"] == found


def test_a_number_that_is_taken_is_passed_over():
    """Somebody may have called a session of their own so."""
    claim(identity("taken.2"), is_explicit=True)
    assert ["taken", "taken.3"] == [claim(identity("taken"), is_explicit=False).session_id for _ in range(2)]


def test_a_numbered_id_is_no_longer_than_any_may_be():
    """The longest id gives way to its number."""
    longest = "x" * 128
    assert [longest, "x" * 126 + ".2"] == [claim(identity(longest), is_explicit=False).session_id for _ in range(2)]


def test_an_explicit_session_is_refused_when_taken():
    """The error says to give each its own."""
    claim(identity("explicit"), is_explicit=True)
    with pytest.raises(ConfigurationError, match="Give each PhaseTracker of a process its own session_id"):
        claim(identity("explicit"), is_explicit=True)


def test_what_is_given_back_may_be_claimed_again():
    """A start that failed has used nothing up."""
    unclaim(claim(identity("back"), is_explicit=True))
    assert "back" == claim(identity("back"), is_explicit=True).session_id


def test_a_session_that_was_stopped_may_be_started_again():
    """As its next attempt, whatever a journal has counted of the one before."""
    first = identity("again")
    claim(first, is_explicit=True)
    counted = identity("again", attempt=4)
    count_on(first, counted)
    with pytest.raises(ConfigurationError, match="is running already, in this process"):
        claim(first, is_explicit=True)
    release(counted)
    assert 5 == claim(first, is_explicit=True).attempt


def test_an_attempt_that_was_given_is_no_other_one():
    """It is taken, or refused."""
    for attempt in (3, 1):
        given = identity("given", attempt=attempt)
        assert given == claim(given, is_explicit=True, has_attempt=True)
        with pytest.raises(ConfigurationError, match="is running already, in this process"):
            claim(given, is_explicit=True, has_attempt=True)
        release(given)
        with pytest.raises(ConfigurationError, match="Give a higher attempt"):
            claim(given, is_explicit=True, has_attempt=True)


def test_a_session_that_was_found_is_numbered_also_when_the_first_has_stopped():
    """A program that trains and then evaluates has two sessions."""
    found = identity("found")
    release(claim(found, is_explicit=False))
    assert "found.2" == claim(found, is_explicit=False).session_id
