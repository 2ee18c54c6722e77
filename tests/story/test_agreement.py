"""Whoever tells of a run tells the same story: random real programs, killed and not.

`python tests/story/run.py --programs 500` runs more of them; its figures stand in RESULTS.md beside this file.
"""

from __future__ import annotations

import copy

import pytest
import story_agreement as agreement
import story_options as options
import story_programs as programs
from story_runner import shrunk
from story_stories import Disagreement

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


@pytest.fixture(scope="module")
def told(runner):
    """Return a run of a killed program with everything in it, on which all agree."""
    row = {name: factor.choices[0] for name, factor in options.FACTORS.items()}
    found, run = runner.run(options.program_of({**row, "events": "all"}, 0))
    assert [] == found
    return run


def test_a_fact_that_one_teller_changes_is_seen(told):
    """Each fact of each teller is compared with somebody's: a comparison that sees nothing would agree with all."""
    facts = {(name, field) for name, story in told.stories.items() for said in story.phases.values() for field in said}
    phases = {name: story.phases for name, story in told.stories.items()}
    unseen = [each for each in facts if not any(_is_seen(told, *each, scope) for scope in phases[each[0]])]
    assert [("recovered_spans", "links")] == sorted(unseen), "no phase that retried another one was lost"


def _is_seen(told, name, field, scope):
    run = copy.copy(told)
    run.found, run.stories = [], dict(told.stories)
    changed = run.stories[name] = copy.copy(told.stories[name])
    if field not in changed.phases[scope]:
        return False
    value = changed.phases[scope][field]
    other = value + 1 if type(value) in (int, float) else ("something", "else")
    other = {"status": "cancelled", "attributes": {"other": 1}}.get(field, other)
    changed.phases = {**changed.phases, scope: {**changed.phases[scope], field: other}}
    agreement.tell_the_same(run)
    return bool(run.found)


def test_a_phase_that_one_teller_lacks_is_seen(told):
    """The program knows what it entered, and recovery sends what the process did not."""
    missing = []
    for name, check in (
        ("journal", agreement.journal_knows_all),
        ("store", agreement.journal_knows_all),
        ("sink", agreement.all_know_what_was_flushed),
        ("enter_event", agreement.events_are_out_when_flushed),
        ("postmortem_open", agreement.open_ones_are_the_same),
        ("recover", agreement.open_ones_are_the_same),
        ("spans", agreement.spans_arrive),
    ):
        run = copy.copy(told)
        run.found, run.stories = [], dict(told.stories)
        changed = run.stories[name] = copy.copy(told.stories[name])
        changed.phases = {}
        for part in ("journal", "store", "spans"):
            setattr(run, part, run.stories[part])
        check(run)
        missing += [name] * (not run.found)
    assert [] == missing


def test_a_rank_without_a_span_is_seen(told):
    """Its process sent it, or recovery did."""
    run = copy.copy(told)
    run.found, run.spans, run.resent = [], copy.copy(told.spans), copy.copy(told.resent)
    agreement.spans_arrive(run)
    assert [] == run.found
    run.spans.owners = run.resent.owners = {}
    agreement.spans_arrive(run)
    assert ["rank", "session"] == sorted(each.scope.split()[0] for each in run.found)


def test_a_program_that_disagrees_is_made_small():
    """What is left is what is needed to disagree in the same way."""

    class Runner:
        def run(self, program):
            kinds = [op["op"] for op in programs.operations(program["body"])]
            is_wrong = "generator" in kinds and "thread" in kinds
            return [agreement_of("status")] * is_wrong, None

    def agreement_of(field):
        return Disagreement("tellers differ", "train", "0f", field, {})

    seed = next(seed for seed in range(100) if Runner().run(programs.generate(seed))[0])
    small = shrunk(Runner(), programs.generate(seed), ("tellers differ", "status"), tries=2_000)
    kinds = [op["op"] for op in programs.operations(small["body"])]
    assert {"generator", "thread"} <= set(kinds)
    assert len(kinds) <= 8
