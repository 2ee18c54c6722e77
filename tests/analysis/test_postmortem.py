"""What happened to an attempt, whole, and as JSON has it."""

from __future__ import annotations

import json
import sys
from typing import Any

import attrs
import pytest

from stormphase._liveness import Liveness, Verdict
from stormphase.analysis._postmortem import (
    diagnose,
    group_text,
    group_to_dict,
    rank_to_dict,
    suspect_to_dict,
    title_text,
)
from stormphase.analysis._ranks import report_process

jobs = sys.modules["jobs"]


def test_a_sound_job_is_well(job: Any) -> None:
    """Running and ended in order; absent ranks are named."""
    job.rank(0, "train,9")
    job.rank(2, note=jobs.said("clean"))
    postmortem = job.diagnose(other_attempts=[0, 1, 2])
    assert (True, False, ()) == (postmortem.is_well, postmortem.is_hung, postmortem.suspects)
    assert ((1, 3), ("no journal of ranks 1, 3",)) == (postmortem.absent, postmortem.notes)
    assert ((), (2, 1)) == (postmortem.older_attempts, postmortem.newer_attempts)
    assert "session job-1, attempt 0, 2 of 4 ranks" == title_text(postmortem)


def test_a_world_of_any_size_costs_nothing() -> None:
    """A damaged header may claim 2**62 ranks."""
    job = jobs.Job(2**62)
    job.rank(0)
    assert 1_001 == len(job.diagnose().absent)


def test_groups_are_said_in_words(job: Any) -> None:
    """How many, which, how they stand, where, at which step and for how long."""
    job.rank(0, "train,9", step=3)
    job.rank(1, "train,8", step=3)
    job.rank(2, verdict="dead")
    job.rank(3, note=jobs.said("clean"))
    assert [
        "2 ranks (0-1) running in train (step 3) for 8.50 s (8.00 s to 9.00 s)",
        "rank 2 killed, no phase open",
        "rank 3 clean",
    ] == [group_text(group) for group in job.diagnose().groups]
    many = jobs.Job(9)
    for rank in range(9):
        many.rank(rank, "train,9", step=rank)
    assert ["9 ranks (0-8) running in train (steps 0 to 8) for 9.00 s"] == [
        group_text(group) for group in many.diagnose().groups
    ]


def test_several_machines_are_noted(job: Any) -> None:
    """Then the order of events is only as sure as their clocks."""
    job.rank(0, "train,9")
    image = job.image(1, "train,9")
    image = attrs.evolve(image, process=attrs.evolve(image.process, boot_id="other"))
    job.processes.append(report_process(image, Verdict(Liveness.ALIVE, "heartbeat 0.5 s ago from node1")))
    assert any(note.startswith("2 machines") for note in job.diagnose().notes)


def test_damage_is_noted(job: Any) -> None:
    """With what the first journal says of it."""
    job.rank(2, "train,9", damage=("the redo log points to nowhere",))
    expected = "the journals of rank 2 are damaged in part: the redo log points to nowhere"
    assert expected in job.diagnose().notes


def test_a_rank_in_json_has_the_promised_fields(job: Any) -> None:
    """Path, ids, times since the Unix epoch, durations, thread and attributes; the ended with their status."""
    job.rank(1, "train,9", "train / step,5,sync", usual={"train / step": [0.5]}, ended=["train / step"], verdict="dead")
    found = rank_to_dict(job.diagnose().ranks[0])
    assert (1, "killed", 120) == (found["rank"], found["state"], found["step"])
    outer, inner = found["open"]
    assert (["train"], {}, "MainThread", None) == (
        outer["path"],
        outer["attributes"],
        outer["thread_name"],
        outer["usual"],
    )
    assert (["train", "step"], "0000000000000002", True) == (inner["path"], inner["scope_id"], inner["is_sync"])
    assert (jobs.NOW_WALL_NS - 5 * jobs.SECOND, 4_500_000_000) == (inner["entered_ns"], inner["for_ns"])
    assert (1, 500_000_000) == (inner["usual"]["count"], inner["usual"]["max_ns"])
    (ended,) = found["last_ended"]
    assert (["train", "step"], "succeeded", 1_000_000) == (
        ended["path"],
        ended["status"],
        ended["ended_ns"] - ended["entered_ns"],
    )
    assert [101] == [process["pid"] for process in found["processes"]]
    json.dumps(found, allow_nan=False)


def test_groups_and_suspects_in_json(job: Any) -> None:
    """With the sentences that people get, too."""
    job.rank(1, "train,9", verdict="dead")
    postmortem = job.diagnose()
    group = group_to_dict(postmortem.groups[0])
    assert ([1], "killed", ["train"], [120, 120]) == (group["ranks"], group["state"], group["path"], group["step"])
    assert {"min": 8_500_000_000, "median": 8_500_000_000, "max": 8_500_000_000} == group["for_ns"]
    suspect = suspect_to_dict(postmortem.suspects[0])
    assert (1, "died_first") == (suspect["rank"], suspect["kind"])
    json.dumps([group, suspect], allow_nan=False)


def test_the_order_of_journals_does_not_matter(job: Any) -> None:
    """Directories list their files in any order."""
    for rank in range(4):
        job.rank(rank, "train,9", verdict="dead" if rank == 2 else "alive")
    assert job.diagnose() == diagnose(reversed(job.processes))


def test_a_first_time_that_is_slow_may_be_no_hang(job: Any) -> None:
    """While code is compiled in the first step, all of it looks like a hang: so that is said, too."""
    for rank in (0, 1, 2):
        job.rank(rank, "train,90", "train / reduce,80,sync")
    job.rank(3, "train,90", "train / forward,85")
    postmortem = job.diagnose()
    assert ((), "cannot be told") == (postmortem.suspects, postmortem.verdict.answer)
    assert "what rank 3 does meanwhile was never measured: it may be at work" in postmortem.verdict.why
    assert (
        "how long train / reduce usually takes is not known yet, so more than 60.0 s counted as a hang (--hang-s): "
        "a first time that is slow, as while code is compiled, looks the same"
    ) == postmortem.notes[0]


def test_a_rank_without_a_journal_may_be_what_the_others_wait_for(job: Any) -> None:
    """It is named, and not accused: nothing is known of it."""
    for rank in (0, 1, 2):
        job.rank(rank, "rendezvous,80,sync", usual={"rendezvous": [1.0] * 3})
    postmortem = job.diagnose()
    assert ((), True) == (postmortem.suspects, postmortem.is_hung)
    assert (
        "no journal of rank 3: what has not begun, or writes elsewhere, may be what the others wait for"
    ) == postmortem.notes[1]


def test_a_rank_that_failed_in_the_point_where_others_wait_is_told(job: Any) -> None:
    """It had entered as often as they, so it is not missing; and it is not in it any more."""
    usual = {"train / reduce": [0.01] * 9}
    for rank in (0, 1, 2):
        job.rank(rank, "train,90", "train / reduce,80,sync", usual=usual)
    note = jobs.said("exception", 79, error_type="ValueError", error_message="x")
    after = {"train / reduce": [0.01] * 10}
    job.rank(3, note=note, left=("train,90", "train / reduce,0.01,sync"), usual=after, verdict="dead", heartbeat_s=79)
    postmortem = job.diagnose()
    assert [(3, "died_first")] == [(suspect.rank, suspect.kind) for suspect in postmortem.suspects]
    assert (
        "all 4 ranks have entered train / reduce, rank 3 ended in it and others are in it for 80.0 s: "
        "no journal shows one that is missing there"
    ) == postmortem.notes[0]


def test_what_was_never_measured_may_be_slow_and_not_stuck(job: Any) -> None:
    """The first evaluation on one rank, for which the others wait: a person should know that it may be at work."""
    for rank in (0, 1, 2):
        job.rank(rank, "train,90", "train / barrier,30,sync", usual={"train / barrier": [0.01] * 9})
    job.rank(3, "train,90", "train / evaluate,31", usual={"train / barrier": [0.01] * 8})
    words = "how long what rank 3 is in usually takes is not known: it may be slow there, and not stuck"
    assert (words,) == job.diagnose().notes
    job = jobs.Job(2)
    job.rank(0, "train,90", "train / barrier,30,sync", usual={"train / barrier": [0.01] * 9})
    usual = {"train / barrier": [0.01] * 8, "train / load": [0.01] * 9}
    job.rank(1, "train,90", "train / load,31", usual=usual)
    assert () == job.diagnose().notes


def test_notes_tell_one_rank_from_several() -> None:
    """Verbs agree: a note about one rank is not said as if it were about many."""
    point = {"train / barrier": [0.01] * 9}
    job = jobs.Job(3)
    job.rank(0, "train,90", "train / barrier,30,sync", usual=point)
    for rank in (1, 2):
        job.rank(rank, "train,90", "train / evaluate,31", usual={"train / barrier": [0.01] * 8})
    words = "how long what ranks 1-2 are in usually takes is not known: they may be slow there, and not stuck"
    assert (words,) == job.diagnose().notes
    job = jobs.Job(2)
    job.rank(0, "train,90", "train / barrier,30,sync", usual=point)
    job.rank(1, "train,90", usual={"train / barrier": [0.01] * 10})
    words = "rank 0 has entered train / barrier and is in it for 30.0 s: no journal shows one that is missing there"
    assert (words,) == job.diagnose().notes


@pytest.mark.parametrize(("heartbeat_s", "expected"), [(9.0, ()), (20.0, ("without a sign of life for 20.0 s",))])
def test_who_is_there_and_gives_no_sign_of_life_is_told(
    job: Any, heartbeat_s: float, expected: tuple[str, ...]
) -> None:
    """Its worker writes one five times a second, unless the GIL is never free, or `exec` has ended the program."""
    job.rank(0, "train, 100", heartbeat_s=heartbeat_s)
    found = job.diagnose()
    notes = [note for note in found.notes if "sign of life" in note]
    assert len(expected) == len(notes)
    assert all(words in note and "rank 0 " in note and "GIL" in note for words in expected for note in notes)
    assert bool(expected) == ("no sign of life for 20.0 s" in found.ranks[0].own.evidence)
    assert "running" == found.ranks[0].own.state


def test_who_was_stopped_is_not_said_to_hold_the_gil(job: Any) -> None:
    """The kernel says why there is no sign of life."""
    verdict = Verdict(
        Liveness.ALIVE, "process 100 is there on node0, stopped by a signal", kept_by="stopped by a signal"
    )
    report = report_process(job.image(0, "train, 100", heartbeat_s=20), verdict, now_ns=jobs.NOW_NS)
    (note,) = [each for each in diagnose([report]).notes if "sign of life" in each]
    assert "process 100 is there on node0, stopped by a signal; no sign of life for 20.0 s" == report.evidence
    assert "rank 0 is there without a sign of life for 20.0 s: stopped by a signal" == note
