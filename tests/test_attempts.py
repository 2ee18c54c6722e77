"""Which attempt of its session a rank begins."""

from __future__ import annotations

import attrs
import pytest

from stormphase._attempts import Begun, Launched, next_attempt
from stormphase._model import RankIdentity
from stormphase.exceptions import ConfigurationError

IDENTITY = RankIdentity(
    session_id="s",
    attempt=0,
    rank=1,
    local_rank=1,
    world_size=2,
    local_world_size=2,
    node_rank=None,
    host="node",
    launcher="explicit",
)


def begun(attempt: int, rank: int | None, kinds: str) -> Begun:
    """Return a process that is what `kinds` says, in words with blanks between: alive, done, child."""
    said = kinds.split()
    return Begun(attempt=attempt, rank=rank, is_alive="alive" in said, is_done="done" in said, is_child="child" in said)


@pytest.mark.parametrize(
    ("known", "attempt", "expected"),
    [
        ([], 0, 0),
        ([], 3, 3),
        ([(0, 1, "")], 0, 1),
        ([(0, 1, "alive")], 0, 1),
        ([(0, 1, "done")], 0, 1),
        ([(0, 0, "")], 0, 1),
        ([(0, 0, "alive")], 0, 0),
        ([(0, 0, "done")], 0, 0),
        ([(0, 0, "done"), (0, 2, "")], 0, 1),
        ([(0, 0, "done"), (0, 2, "alive")], 0, 0),
        ([(0, 0, "done"), (0, 0, "child")], 0, 0),
        ([(0, 0, "child")], 0, 1),
        ([(0, 0, "done"), (0, None, "")], 0, 0),
        ([(0, 1, ""), (1, 0, "alive")], 0, 1),
        ([(0, 1, ""), (1, 0, "")], 0, 2),
        ([(0, 1, ""), (1, None, "alive")], 0, 1),
        ([(0, 1, "")], 1, 1),
        ([(2, 1, "")], 1, 3),
        ([(2, 0, "")], 7, 7),
    ],
)
def test_which_attempt_a_rank_begins(known, attempt, expected):
    """The next one if it has begun the last or those of that died, else the last; never below the launcher's."""
    identity = attrs.evolve(IDENTITY, attempt=attempt)
    assert expected == next_attempt(identity, [begun(*each) for each in known])


def launched(attempt: int, rank: int | None, launch: str | None, kinds: str = "") -> Begun:
    """Return a process that was launched with those of `launch`."""
    return attrs.evolve(begun(attempt, rank, kinds), launch=launch)


@pytest.mark.parametrize(
    ("known", "launch", "attempt", "expected"),
    [
        # One launch is one attempt, however its other ranks fared before this one has begun.
        ([(0, 0, "a#0")], "a#0", 0, 0),
        ([(0, 0, "a#0"), (0, 2, "a#0", "alive")], "a#0", 0, 0),
        ([(3, 0, "a#0")], "a#0", 0, 3),
        ([(0, 0, "a#0")], None, 0, 1),
        ([(0, 0, None)], "a#0", 0, 1),
        # A second start, exec or restart: this rank has begun that attempt.
        ([(0, 1, "a#0")], "a#0", 0, 1),
        ([(0, 0, "a#0"), (0, 1, "a#0")], "a#0", 0, 1),
        ([(0, 0, "a#0"), (0, 1, "a#0"), (1, 0, "a#0")], "a#0", 0, 1),
        # A rank that is slow to begin what others have begun twice already.
        ([(0, 0, "a#0"), (1, 0, "a#0", "alive")], "a#0", 0, 0),
        # A restart that the launcher counts, and one by another launcher.
        ([(0, 0, "a#0"), (0, 1, "a#0")], "a#1", 1, 1),
        ([(0, 0, "a#0")], "a#1", 1, 1),
        ([(0, 0, "a#0")], "b#0", 0, 1),
        ([(0, 0, "a#0", "alive")], "b#0", 0, 0),
        # torchrun's agents: this one counts no failure of its own, and the other's ranks died before this one began.
        ([(0, 0, "a#0"), (0, 1, "a#0"), (1, 0, "a#1")], "a#0", 0, 1),
        ([(0, 0, "a#0"), (0, 1, "a#0"), (1, 0, "a#1", "alive")], "a#0", 0, 1),
        ([(0, 0, "a#0"), (0, 1, "b#0"), (1, 0, "a#1")], "c#0", 0, 2),
    ],
)
def test_one_launch_is_one_attempt(known, launch, attempt, expected):
    """What ranks were launched with decides, and not who was there when one of them began."""
    identity = attrs.evolve(IDENTITY, attempt=attempt)
    assert expected == next_attempt(identity, [launched(*each) for each in known], Launched(launch=launch))


def test_an_attempt_that_was_given_is_taken():
    """Also one before the last, or far after it."""
    known = [begun(0, 1, ""), begun(5, 0, "alive")]
    for attempt in (2, 5, 9):
        assert attempt == next_attempt(attrs.evolve(IDENTITY, attempt=attempt), known, Launched(has_attempt=True))


def test_an_attempt_that_was_given_and_begun_is_refused():
    """Two traces would be one."""
    with pytest.raises(ConfigurationError, match="Give a higher attempt, or leave it out") as caught:
        next_attempt(IDENTITY, [begun(0, 1, "")], Launched(has_attempt=True))
    assert "attempt" == caught.value.setting
