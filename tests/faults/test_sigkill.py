"""Real writers killed at random instants, most with SIGKILL; a long run of the same is `python tests/faults/run.py`."""

from __future__ import annotations

import faults_kills as kills

KILLS = 50


def test_whatever_instant_a_process_is_killed_at_its_journal_tells_the_truth(tmp_path):
    """What was confirmed open is open, what was confirmed ended has ended; nothing is told twice, or invented."""
    found = kills.run(tmp_path, range(KILLS))
    assert KILLS == found["kills"]
    assert {f"by {each.name}" for each in kills.SIGNALS} <= found.keys()
    assert found["open"] > KILLS
    assert found["folded"] > KILLS
