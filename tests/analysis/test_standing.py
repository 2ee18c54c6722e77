"""Ranks that came to a stand: who is missing, was stopped, was the first or is still there, and who is none of them."""

from __future__ import annotations

import sys
from typing import Any

import attrs
import pytest

from stormphase._liveness import Liveness, Verdict
from stormphase.analysis._ranks import report_process

jobs = sys.modules["jobs"]
USUAL = {
    "train / step": [0.35] * 119,
    "train / step / load": [0.01] * 120,
    "train / step / enqueue": [0.001] * 120,
    "train / step / wait": [0.012] * 119,
    "train / step / forward": [0.1] * 119,
    "train / step / recv": [0.012] * 119,
}
STOPPED = "stopped by a signal"


def stands(job: Any, rank: int, phase: str, seconds: float = 312, **options: Any) -> None:
    """Add a rank that is in a phase of step 120 for so long."""
    job.rank(
        rank,
        "train,4000",
        f"train / step,{seconds + 0.3}",
        f"train / step / {phase},{seconds}",
        **{"usual": USUAL, **options},
    )


def answer(job: Any, **options: Any) -> tuple[str, tuple[int, ...], str]:
    """Return the verdict in short."""
    verdict = job.diagnose(**options).verdict
    return str(verdict.answer), verdict.ranks, verdict.rule


def see(job: Any, rank: int, verdict: Verdict, *doing: str, **options: Any) -> None:
    """Add a rank of which the kernel says something."""
    image = job.image(rank, *doing, **{"usual": USUAL, **options})
    job.processes.append(report_process(image, verdict, now_ns=jobs.NOW_NS))


@pytest.mark.parametrize("verdict", ["alive", "dead", "unknown"])
@pytest.mark.parametrize("culprit", [0, 2])
def test_unmarked_waiters_show_who_is_missing(job: Any, verdict: str, culprit: int) -> None:
    """Also after all were ended, and seen from elsewhere; the waiters are none, and how to mark is said."""
    for rank in range(4):
        if rank != culprit:
            stands(job, rank, "wait", verdict=verdict)
    stands(job, culprit, "load", seconds=313, verdict=verdict)
    postmortem = job.diagnose()
    assert ("named", (culprit,), "missing_where_others_wait") == answer(job)
    assert culprit == postmortem.suspects[0].rank
    assert "3 ranks wait" in postmortem.verdict.why
    assert f"rank {culprit} ha" in postmortem.verdict.why
    assert any('enter_phase("all_reduce", sync=True)' in note for note in postmortem.notes)


@pytest.mark.parametrize("phase", ["checkpoint", "evaluate"])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_odd_one_out_is_named_where_its_phase_was_never_measured(phase: str, world_size: int) -> None:
    """It has no history, and the others' phase has: they wait for it."""
    job = jobs.Job(world_size)
    for rank in range(1, world_size):
        stands(job, rank, "wait")
    stands(job, 0, phase, seconds=312.5)
    assert ("named", (0,), "missing_where_others_wait") == answer(job)


@pytest.mark.parametrize(("seconds", "expected"), [(50, "well"), (300, "cannot be told"), (700, "named")])
def test_where_neither_was_measured_time_tells(job: Any, seconds: float, expected: str) -> None:
    """A last checkpoint for which all others wait may be slow for minutes, and not for longer than they would wait."""
    usual = {"train / step": [0.35] * 119}
    for rank in (1, 2, 3):
        job.rank(rank, "train,4000", f"train / barrier,{seconds}", usual=usual)
    job.rank(0, "train,4000", f"train / checkpoint,{seconds}", usual=usual)
    postmortem = job.diagnose()
    assert expected == str(postmortem.verdict.answer)
    assert [0] * (expected == "named") == [suspect.rank for suspect in postmortem.suspects]
    assert (expected == "well") == postmortem.is_well


def test_ranks_with_duties_of_their_own_wait_for_nobody(job: Any) -> None:
    """A coordinator that does other things than its workers is well, however long all of them are at it."""
    for rank in (1, 2, 3):
        job.rank(rank, "work,4000", usual={"warm up": [0.3] * 9})
    job.rank(0, "serve,4000", usual={"listen": [0.3] * 9})
    assert ("well", (), "") == answer(job)


@pytest.mark.parametrize("point", ["enqueue,0.5,sync", "load,313", "forward,313"])
def test_who_never_enqueued_is_missing_where_others_wait_for_the_result(job: Any, point: str) -> None:
    """Collectives that are only queued: the marked phase is long over, and nobody marked where they wait."""
    for rank in (0, 1, 3):
        stands(job, rank, "wait", usual={**USUAL, "train / step / enqueue": [0.001] * 121})
    phase, seconds, *marks = point.split(",")
    path = ",".join([f"train / step / {phase}", seconds, *marks])
    job.rank(2, "train,4000", "train / step,313.3", path, usual={**USUAL, "train / step / load": [0.01] * 119})
    assert (2,) == job.diagnose().verdict.ranks


@pytest.mark.parametrize("verdict", ["alive", "dead"])
@pytest.mark.parametrize("culprit", [0, 1, 2, 3])
def test_the_first_stage_that_stands_is_named(job: Any, culprit: int, verdict: str) -> None:
    """A pipeline without marks: who waits for the next or the last one came to a stand later."""
    for rank in range(4):
        seconds = 312 - 5 * abs(rank - culprit)
        phase = "forward" if rank == culprit else "recv" if rank > culprit else "send"
        stands(job, rank, phase, seconds, usual={**USUAL, "train / step / send": [0.01] * 119}, verdict=verdict)
    assert culprit == job.diagnose().suspects[0].rank
    assert "named" == str(job.diagnose().verdict.answer)


def test_stages_that_came_to_a_stand_as_one_tie(job: Any) -> None:
    """Which waits for which nothing tells: that is said, and both are at the head."""
    usual = {**USUAL, "train / step / forward": [0.1] * 99 + [0.3], "train / step / recv": [0.01] * 99 + [0.2]}
    stands(job, 0, "forward", 312.05, usual=usual)
    stands(job, 1, "recv", 312.01, usual=usual)
    for rank in (2, 3):
        job.rank(rank, "train,4000", "train / step,0.1", usual=USUAL)
    postmortem = job.diagnose()
    assert ("tie", (0, 1), "first_to_stand") == answer(job)
    assert [(1, True), (1, True)] == [(each.place, each.is_tied) for each in postmortem.suspects]


def test_stages_on_two_machines_are_in_no_order(job: Any) -> None:
    """Their clocks may be seconds apart: then nobody is said to have been the first."""
    stands(job, 0, "forward", 320)
    image = job.image(1, "train,4000", "train / step,312", "train / step / recv,311", usual=USUAL)
    image = attrs.evolve(image, process=attrs.evolve(image.process, boot_id="another"))
    job.processes.append(report_process(image, jobs.VERDICTS["alive"]))
    for rank in (2, 3):
        job.rank(rank, "train,4000", "train / step,0.1", usual=USUAL)
    assert ("tie", (0, 1), "first_to_stand") == answer(job)


def test_all_in_one_unmarked_phase_accuse_nobody(job: Any) -> None:
    """Whoever came there first: they came equally often."""
    for rank in range(4):
        stands(job, rank, "wait", 312 + rank)
    postmortem = job.diagnose()
    assert ("cannot be told", (), "") == answer(job)
    assert ((), True) == (postmortem.suspects, postmortem.is_hung)
    assert "nothing tells who waits for whom" in postmortem.verdict.why


def test_halves_that_wait_for_each_other_accuse_nobody(job: Any) -> None:
    """In two phases, neither of which the other half has entered as often: which took another way nothing tells."""
    for rank in range(4):
        stands(job, rank, "wait" if rank < 2 else "recv")
    assert ("cannot be told", ()) == answer(job)[:2]


@pytest.mark.parametrize("kept_by", [STOPPED, "held by a debugger"])
@pytest.mark.parametrize("sync", [",sync", ""])
@pytest.mark.parametrize("seconds", [0.5, 312])
def test_who_is_stopped_in_a_collective_is_named(job: Any, kept_by: str, sync: str, seconds: float) -> None:
    """All have entered it equally often, and only the kernel tells."""
    doing = ("train,4000", f"train / step,{seconds + 0.3}", f"train / step / wait,{seconds}{sync}")
    for rank in (0, 1, 3):
        job.rank(rank, *doing, usual=USUAL)
    see(job, 2, Verdict(Liveness.ALIVE, f"process 102 is there, {kept_by}", kept_by=kept_by, is_seen=True), *doing)
    postmortem = job.diagnose()
    assert ("named", (2,), "stopped_by_the_kernel") == answer(job)
    assert f"rank 2 is {kept_by}, as the kernel says" == postmortem.verdict.why
    assert [(2, "stopped")] == [(each.rank, each.kind) for each in postmortem.suspects]
    assert (True, False) == (postmortem.is_hung, postmortem.is_well)


def test_a_job_that_is_suspended_accuses_nobody(job: Any) -> None:
    """All of it is stopped, as by a scheduler or Ctrl-Z."""
    for rank in range(4):
        verdict = Verdict(Liveness.ALIVE, "there", kept_by=STOPPED, is_seen=True)
        see(job, rank, verdict, "train,4000", f"train / step / {'wait' if rank else 'load'},99")
    postmortem = job.diagnose()
    assert ("cannot be told", (), "suspended") == answer(job)
    assert ((), False) == (postmortem.suspects, postmortem.is_well)


def test_who_waits_for_a_disk_is_not_stopped(job: Any) -> None:
    """A healthy rank is in the kernel now and then."""
    verdict = Verdict(Liveness.ALIVE, "process 100 is there", kept_by="waiting in the kernel", is_seen=True)
    see(job, 0, verdict, "train,4000", "train / step,0.1")
    assert ("well", (), "") == answer(job)


def test_who_gives_no_sign_of_life_where_all_hang_is_named(job: Any) -> None:
    """Something holds the GIL in one of them, and all have entered the collective equally often."""
    for rank in range(4):
        doing = ("train,4000", "train / step,313", "train / step / wait,312,sync")
        job.rank(rank, *doing, usual=USUAL, heartbeat_s=311 if rank == 1 else 0.5)
    assert ("named", (1,), "no_sign_of_life") == answer(job)
    assert "rank 1 is there without a sign of life for 311 s" in job.diagnose().verdict.why


def test_who_was_killed_where_others_stand_with_longer_histories_is_one_of_them(job: Any) -> None:
    """All waited for one that had left, until something ended them, and only some had never waited for so long."""
    for rank in range(4):
        usual = {**USUAL, "train / step / wait": [0.012] * 119 + [2.5] * (rank == 1)}
        doing = ("train,4000", "train / step,6.9", "train / step / wait,6.5,sync")
        job.rank(rank, *doing, usual=usual, verdict="dead" if rank < 2 else "unknown")
    job.rank(4, note=jobs.said("exit", 6.6, error_type="SystemExit", error_message="3"), usual=USUAL, verdict="dead")
    assert (4,) == job.diagnose().verdict.ranks


GONE = jobs.VERDICTS["dead"]
THERE = Verdict(Liveness.ALIVE, "process 103 is there on node0", is_seen=True)


@pytest.mark.parametrize("kind", ["clean", "ended"])
@pytest.mark.parametrize(
    "doing",
    [("train,4000", "train / destroy,310"), ("teardown,310",), (), ("train,4000", "train / destroy,310,sync")],
    ids=["in destroy", "in teardown", "with nothing open", "in a marked destroy"],
)
def test_who_is_still_there_when_the_others_have_left_is_named(job: Any, doing: tuple[str, ...], kind: str) -> None:
    """And that is no success."""
    for rank in range(3):
        see(job, rank, GONE, note=jobs.said(kind, 309), usual={**USUAL, "train / destroy": [0.1]})
    see(job, 3, THERE, *doing)
    postmortem = job.diagnose()
    assert ("named", (3,)) == answer(job)[:2]
    assert [3] == [suspect.rank for suspect in postmortem.suspects]
    assert (True, False) == (postmortem.is_hung, postmortem.is_well)


@pytest.mark.parametrize("kind", ["clean", "ended"])
def test_who_has_ended_its_session_and_not_its_process_is_named(job: Any, kind: str) -> None:
    """After its `with` it hangs in a destructor, an `atexit` function or a thread that never ends."""
    for rank in range(3):
        see(job, rank, GONE, note=jobs.said(kind, 309))
    see(job, 3, THERE, note=jobs.said(kind, 309.5))
    postmortem = job.diagnose()
    assert ("named", (3,), "still_there") == answer(job)
    assert "rank 3 is still there 309 s after the other 3 ranks have ended in order" == postmortem.verdict.why
    assert "its process 103 was still there 310 s later" in postmortem.suspects[0].reason
    assert ("still_there", False) == (postmortem.suspects[0].kind, postmortem.is_well)


@pytest.mark.parametrize(
    ("ago_s", "verdict"), [(20, THERE), (309, Verdict(Liveness.ALIVE, "heartbeat 0.5 s ago from node1"))]
)
def test_who_is_about_to_end_is_none(job: Any, ago_s: float, verdict: Verdict) -> None:
    """The last ranks end some seconds after the first; and of who ended elsewhere nobody can say that it is there."""
    for rank in range(3):
        see(job, rank, GONE, note=jobs.said("clean", ago_s))
    see(job, 3, verdict, note=jobs.said("clean", ago_s))
    assert ("well", (), "") == answer(job)


@pytest.mark.parametrize(("seconds", "expected"), [(8, "well"), (20, "named")])
def test_what_the_others_have_left_at_once_takes_no_minute(job: Any, seconds: float, expected: str) -> None:
    """It is in `destroy` for the first time, and how long that takes the others have shown."""
    for rank in range(3):
        see(job, rank, GONE, note=jobs.said("clean", seconds), ended=["train / destroy"], heartbeat_s=seconds)
    see(job, 3, THERE, "train,4000", f"train / destroy,{seconds + 1}")
    assert expected == str(job.diagnose().verdict.answer)


def test_who_goes_on_by_itself_is_none(job: Any) -> None:
    """The others are done, and it walks its steps as ever."""
    for rank in range(3):
        see(job, rank, GONE, note=jobs.said("clean", 309))
    see(job, 3, THERE, "train,4000", "train / step,0.1")
    assert ("well", (), "") == answer(job)


@pytest.mark.parametrize(
    ("where", "seconds", "expected"),
    [
        ("train / step / evaluate", 8, "well"),
        ("train / step / evaluate", 30, "named"),
        ("train / step / load", 30, "named"),
    ],
)
def test_a_first_evaluation_is_given_some_time(job: Any, where: str, seconds: float, expected: str) -> None:
    """The others wait for far longer than ever, and the one that they wait for does what it never did before."""
    step = f"train / step,{seconds + 0.2}"
    for rank in (1, 2, 3):
        job.rank(rank, "train,4000", step, f"train / step / wait,{seconds},sync", usual=USUAL)
    job.rank(0, "train,4000", step, f"{where},{seconds}", usual=USUAL)
    assert expected == str(job.diagnose().verdict.answer)
    assert (expected == "well") == job.diagnose().is_well


@pytest.mark.parametrize("verdict", ["alive", "dead"])
@pytest.mark.parametrize("seconds", [80, 400])
def test_a_first_step_that_compiles_unevenly_cannot_be_told(job: Any, seconds: float, verdict: str) -> None:
    """All wait for one that was never measured: it may compile."""
    for rank in (0, 1, 2):
        job.rank(rank, "train,900", "train / step,890", f"train / step / wait,{seconds},sync", step=0, verdict=verdict)
    job.rank(3, "train,900", "train / step,890", "train / step / forward,889", step=0, verdict=verdict)
    postmortem = job.diagnose()
    assert ("cannot be told", (), ()) == (*answer(job)[:2], postmortem.suspects)
    assert "may be at work" in postmortem.verdict.why


def test_who_waits_for_a_rank_without_a_journal_is_none(job: Any) -> None:
    """It may have died before it began, or write elsewhere."""
    job.rank(0, "setup,90", "setup / rendezvous,80,sync")
    postmortem = job.diagnose()
    assert ("cannot be told", (), ()) == (*answer(job)[:2], postmortem.suspects)
    assert "no journal of ranks 1-3" in postmortem.verdict.why
