"""Whoever tells of a run tells the same story: random real programs, killed and not.

`python tests/story/run.py --programs 500` runs more of them; its figures stand in RESULTS.md beside this file.
"""

from __future__ import annotations

import story_programs as programs

PROGRAMS = 30
SEED = 10_000  # Others than those of the long run.


def test_all_tellers_of_random_programs_tell_the_same(runner):
    """Sink, stores, journal, records, postmortem, recover, spans, events, summary, and the program's own log agree."""
    wrong = []
    for seed in range(SEED, SEED + PROGRAMS):
        found, _ = runner.run(programs.generate(seed))
        wrong += [f"seed {seed}: {each}" for each in found]
    assert [] == wrong


def test_a_program_is_the_same_for_the_same_seed():
    """A seed is all that is needed to look at a program again."""
    assert programs.generate(7) == programs.generate(7)
    assert programs.generate(7) != programs.generate(8)
