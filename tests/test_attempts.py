"""Which attempt of its session a rank begins."""

from __future__ import annotations

import attrs
import pytest

from stormphase._attempts import Begun, next_attempt
from stormphase._model import RankIdentity

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
