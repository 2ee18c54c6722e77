"""Who may be the reason, and with what evidence: one story of a job each."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from stormphase._liveness import Liveness, Verdict
from stormphase.analysis._ranks import report_process

jobs = sys.modules["jobs"]
USUAL = {
    "train / step": [0.35] * 119,
    "train / step / all_reduce": [0.012] * 119,
    "train / step / data_loading": [0.01] * 120,
}


def waiting(job: Any, *ranks: int, seconds: float = 312, **options: Any) -> None:
    """Add ranks that wait in all_reduce of step 120."""
    for rank in ranks:
        job.rank(
            rank,
            "train,4000",
            f"train / step,{seconds + 1}",
            f"train / step / all_reduce,{seconds},sync",
            **{"usual": USUAL, **options},
        )


def found(job: Any, **options: Any) -> list[tuple[int, str]]:
    """Return rank and kind of all suspects."""
    return [(suspect.rank, suspect.kind) for suspect in job.diagnose(**options).suspects]


def test_the_one_that_never_came_is_what_the_others_wait_for(job: Any) -> None:
    """The story of the hanging data loader, word by word."""
    waiting(job, 0, 1, 3)
    job.rank(2, "train,4000", "train / step,316", "train / step / data_loading,315", usual=USUAL)
    postmortem = job.diagnose()
    (suspect,) = postmortem.suspects
    expected = (
        "in train / step / data_loading (step 120) for 315 s "
        "(usually 10.0 ms, p99 10.0 ms, longest 10.0 ms, 120 times): "
        "it never entered that step's all_reduce, and is what the others wait for (312 s so far)"
    )
    assert (2, "awaited", expected) == (suspect.rank, suspect.kind, suspect.reason)
    assert (True, False) == (postmortem.is_hung, postmortem.is_well)


def test_who_is_dead_waits_no_more(job: Any) -> None:
    """Once all were ended it is told in the past, for whom they had waited until then."""
    waiting(job, 0, 1, 3, verdict="dead")
    job.rank(2, "train,4000", "train / step,316", "train / step / data_loading,315", usual=USUAL, verdict="dead")
    (suspect,) = [suspect for suspect in job.diagnose().suspects if suspect.rank == 2]
    assert suspect.reason.endswith(
        "it never entered that step's all_reduce, and is what the others waited for (312 s, until they died)"
    )


def test_a_rank_that_is_a_step_behind_is_told_so(job: Any) -> None:
    """It need not be in the same step."""
    waiting(job, 0, 1, 3)
    job.rank(2, "train,4000", step=118, usual={**USUAL, "train / step / all_reduce": [0.012] * 117})
    (suspect,) = job.diagnose().suspects
    assert suspect.reason.startswith(
        "in train (step 118) for 4000 s: it is at step 118 and never entered the all_reduce"
    )
    assert suspect.reason.endswith("of step 120, and is what the others wait for (312 s so far)")


def test_without_steps_the_number_of_entries_tells(job: Any) -> None:
    """A loop that never calls set_step has counts all the same."""
    waiting(job, 0, 1, 3, step=None)
    job.rank(2, "train,4000", "train / step,316", usual=USUAL, step=None)
    (suspect,) = job.diagnose().suspects
    assert "it entered train / step / all_reduce 119 times, they 120 times, and is what the others" in suspect.reason


def test_ranks_that_meet_as_usual_are_no_suspects(job: Any) -> None:
    """A healthy job at a random moment: three wait for 10 ms, one comes in a moment."""
    waiting(job, 0, 1, 3, seconds=0.01)
    job.rank(2, "train,4000", "train / step,0.3", "train / step / data_loading,0.02", usual=USUAL)
    postmortem = job.diagnose()
    assert ((), False, True) == (postmortem.suspects, postmortem.is_hung, postmortem.is_well)


def test_a_dead_rank_that_others_wait_for_comes_first(job: Any) -> None:
    """However short they wait: it will never come."""
    waiting(job, 0, 1, seconds=0.5)
    job.rank(2, "train,4000", "train / step,3", usual=USUAL, verdict="dead", heartbeat_s=2)
    job.rank(3, note=jobs.said("exception", error_type="ValueError", error_message="x"), verdict="dead", usual=USUAL)
    postmortem = job.diagnose()
    assert [(2, "dead_and_awaited"), (3, "dead_and_awaited")] == found(job)
    first = postmortem.suspects[0].reason
    assert first.startswith("killed, process 100 is gone from node0; last sign of life at 2027")
    assert ", in train / step (step 120) for 1.00 s" in first
    assert first.endswith("it never entered that step's all_reduce, and is what 2 ranks wait for (500 ms so far)")
    assert postmortem.is_hung


def test_a_rank_that_ended_too_early_is_waited_for(job: Any) -> None:
    """Uneven data: one rank has had one batch less, and left in order."""
    waiting(job, 0, 1, 2)
    job.rank(3, note=jobs.said("clean", 300), usual=USUAL, step=119)
    (suspect,) = job.diagnose().suspects
    assert (3, "awaited") == (suspect.rank, suspect.kind)
    assert suspect.reason.startswith("clean, ended in order at 2027")


def test_who_waits_elsewhere_itself_comes_last(job: Any) -> None:
    """Two of three are in the wrong collective: the one that is in none is the likelier reason."""
    waiting(job, 0, 1)
    barrier = {**USUAL, "train / barrier": [0.01] * 9}
    job.rank(2, "train,4000", "train / barrier,310,sync", usual=barrier)
    job.rank(3, "train,4000", "train / step,316", usual=USUAL)
    postmortem = job.diagnose()
    kinds = [(3, "awaited"), (2, "waits_itself"), (0, "waits_itself"), (1, "waits_itself")]
    assert kinds == found(job)
    assert "it never entered that step's all_reduce, where 2 ranks wait for 312 s; it waits itself" in (
        postmortem.suspects[1].reason
    )


def test_of_two_collectives_the_odd_one_out_comes_first(job: Any) -> None:
    """One rank took another turn: who most wait for stands before those that only it waits for."""
    waiting(job, 0, 1, 2)
    barrier = {**USUAL, "train / barrier": [0.01] * 9}
    job.rank(3, "train,4000", "train / barrier,312,sync", usual=barrier)
    assert [3, 0, 1, 2] == [rank for rank, _ in found(job)]


@pytest.mark.parametrize("verdict", ["alive", "dead"])
def test_who_is_at_work_within_a_point_that_the_others_are_past_does_not_wait(job: Any, verdict: str) -> None:
    """A point within a point: all have entered the outer one, and one of them never comes to the inner one."""
    usual = {"step / sync": [0.1] * 9, "step / sync / prepare": [0.01] * 10, "step / sync / all_reduce": [0.02] * 9}
    inner = ("step,310", "step / sync,309,sync", "step / sync / all_reduce,308,sync")
    for rank in (0, 2, 3):
        job.rank(rank, *inner, usual={**usual, "step / sync / prepare": [0.01] * 10}, verdict=verdict)
    outer = {**usual, "step / sync / prepare": [0.01] * 9}
    job.rank(1, "step,310", "step / sync,309,sync", "step / sync / prepare,308", usual=outer, verdict=verdict)
    (suspect,) = job.diagnose().suspects
    assert (1, "awaited" if verdict == "alive" else "dead_and_awaited") == (suspect.rank, suspect.kind)
    assert "it never entered that step's all_reduce, and is what the others wait" in suspect.reason
    assert not any("no journal shows one that is missing" in note for note in job.diagnose().notes)


def test_a_rank_in_an_earlier_round_of_the_same_point_is_missing(job: Any) -> None:
    """Several all_reduce in one step: the counts tell which one each is in."""
    waiting(job, 0, 1, 2)
    waiting(job, 3, usual={**USUAL, "train / step / all_reduce": [0.012] * 118}, seconds=313)
    (suspect,) = job.diagnose().suspects
    assert (3, "waits_itself") == (suspect.rank, suspect.kind)
    assert "it is in its 119. all_reduce, they are in the 120., where 3 ranks wait" in suspect.reason


def test_nobody_is_accused_where_counts_are_not_exact(job: Any) -> None:
    """A journal that lost something cannot prove that its rank did not enter; an earlier step still does."""
    waiting(job, 0, 1)
    job.rank(2, "train,4000", "train / load,316", usual=USUAL, unfolded=3)
    job.rank(3, "train,4000", "train / load,316", usual=USUAL, unfolded=3, step=119)
    (suspect,) = job.diagnose().suspects
    assert (3, "awaited") == (suspect.rank, suspect.kind)


def test_a_rank_of_another_group_is_not_waited_for(job: Any) -> None:
    """Tensor-parallel ranks meet without the others, which have been round the loop as often and never come there."""
    group = {"train / step": [0.35] * 119, "train / step / tp_reduce": [0.01] * 119}
    for rank in (0, 1):
        job.rank(rank, "train,4000", "train / step,0.1", "train / step / tp_reduce,0.005,sync", usual=group)
    others = {"train / step": [0.35] * 119, "train / step / forward": [0.1] * 119}
    job.rank(2, "train,4000", "train / step,0.1", "train / step / forward,0.05", usual=others)
    job.rank(3, "train,4000", "train / step,0.1", "train / step / forward,0.05", usual=others, verdict="dead")
    assert [(3, "died_first")] == found(job)
    assert not job.diagnose().is_hung


def test_a_rank_that_never_came_even_once_is_missing(job: Any) -> None:
    """In the first step nobody has been there before, however many points it has."""
    for rank in (0, 1, 2):
        job.rank(
            rank,
            "train,400",
            "train / step,390",
            "train / step / reduce,300,sync",
            usual={"train / step / reduce": [0.01] * 9},
            step=0,
        )
    job.rank(3, "train,400", "train / step,390", "train / step / load,389", step=0)
    assert [(3, "awaited")] == found(job)


@pytest.mark.parametrize("point", ["all_reduce", "train / all_reduce"])
def test_who_takes_no_part_is_not_waited_for_where_there_are_no_rounds(job: Any, point: str) -> None:
    """A loop without a phase around each step: one that serves data has never been there, and need not come."""
    for rank in (0, 1, 2):
        job.rank(rank, "train,4000", f"{point},312,sync", usual={point: [0.01] * 1_000})
    job.rank(3, "train,4000", "train / serve,0.1", usual={"train / serve": [0.1] * 9_000})
    assert ((), True) == (job.diagnose().suspects, job.diagnose().is_hung)


@pytest.mark.parametrize("verdict", ["alive", "dead"])
def test_who_waits_for_a_thread_that_waits_for_others_is_not_to_blame(job: Any, verdict: str) -> None:
    """Gradients are shared by a thread of their own: what the main thread is in meanwhile lasts too long as well."""
    usual = {"step / wait": [0.01] * 9, "share": [0.01] * 9, "step / load": [0.01] * 9}
    for rank in (0, 1, 3):
        job.rank(rank, "step,313", "step / wait,312", "share,311,sync,lane 2,thread 9", usual=usual, verdict=verdict)
    job.rank(2, "step,313", "step / load,312", usual=usual, verdict=verdict)
    (suspect,) = job.diagnose().suspects
    assert (2, "awaited" if verdict == "alive" else "dead_and_awaited") == (suspect.rank, suspect.kind)
    assert "it never entered that step's share, and is what the others wait" in suspect.reason


def test_if_everyone_is_in_it_nobody_is_accused(job: Any) -> None:
    """Then the point itself hangs, or what is beneath it."""
    waiting(job, 0, 1, 2, 3)
    postmortem = job.diagnose()
    assert ((), True) == (postmortem.suspects, postmortem.is_hung)
    expected = (
        "all 4 ranks have entered train / step / all_reduce and are in it for 312 s: "
        "no journal shows one that is missing there"
    )
    assert (expected,) == postmortem.notes


def test_a_point_without_history_hangs_after_the_limit(job: Any) -> None:
    """The first step may take long, as it compiles: ten times the caller's limit names who is missing."""
    waiting(job, 0, 1, seconds=30, usual={})
    job.rank(2, "train,4000", "train / step,31")
    assert [] == found(job)
    postmortem = job.diagnose(hang_ns=20 * jobs.SECOND)
    assert ((), True, "cannot be told") == (postmortem.suspects, postmortem.is_hung, postmortem.verdict.answer)
    assert [(2, "awaited")] == found(job, hang_ns=2 * jobs.SECOND)


def test_a_rank_that_alone_takes_too_long_is_overdue(job: Any) -> None:
    """Nobody waits, so nobody says that it is waited for."""
    job.rank(0, "train,4000", "train / step,0.1", usual=USUAL)
    job.rank(1, "train,4000", "train / step,60", usual=USUAL)
    postmortem = job.diagnose()
    assert [(1, "overdue")] == found(job)
    assert "in train / step (step 120) for 60.0 s (usually 3" in postmortem.suspects[0].reason
    assert postmortem.is_hung


def test_a_rank_behind_is_told_only_when_something_hangs(job: Any) -> None:
    """Ranks need not walk in step; in a hang a laggard that cannot be proved to be missing is worth a look."""
    waiting(job, 0, 1)
    job.rank(2, "train,4000", usual={**USUAL, "train / step / all_reduce": [0.1] * 120}, step=115)
    (suspect,) = job.diagnose().suspects
    assert (2, "behind") == (suspect.rank, suspect.kind)
    assert suspect.reason.endswith("it is at step 115, most are at 120")
    job = jobs.Job()
    job.rank(0, "train,4000", step=5)
    job.rank(1, "train,4000", step=4)
    assert [] == found(job)


def test_who_died_first_comes_before_who_died_later(job: Any) -> None:
    """The others failed because of it, minutes later."""
    for rank in (0, 1):
        note = jobs.said("exception", 5, error_type="ncclError", error_message="timeout")
        job.rank(rank, note=note, verdict="dead", heartbeat_s=5)
    job.rank(2, "train,4000", verdict="dead", heartbeat_s=600)
    job.rank(3, "train,4000", note=jobs.said("signal", 4, signal=15), verdict="dead", heartbeat_s=4)
    assert [(2, "died_first"), (0, "died"), (1, "died"), (3, "died")] == found(job)


def test_of_those_that_died_at_one_time_the_odd_one_comes_first(job: Any) -> None:
    """One exception, and a launcher that kills the rest within a second."""
    for rank in (0, 1, 2):
        job.rank(rank, "train,4000", verdict="dead", heartbeat_s=5 - rank / 10)
    note = jobs.said("exception", 4, error_type="ValueError", error_message="bad batch")
    job.rank(3, note=note, verdict="dead", heartbeat_s=4)
    assert (3, "died_first") == found(job)[0]
    assert "rank 3 failed by its own word (ValueError: bad batch)" in job.diagnose().verdict.why


def test_if_all_were_killed_at_once_none_was_first(job: Any) -> None:
    """The scheduler ended the job: all are dead, and none is accused of having begun."""
    waiting(job, 0, 1, 3, seconds=0.6, verdict="dead")
    job.rank(2, "train,4000", "train / step,0.7", usual=USUAL, verdict="dead")
    postmortem = job.diagnose()
    assert ((), "cannot be told") == (postmortem.suspects, postmortem.verdict.answer)
    assert "4 ranks ended from outside at one time" in postmortem.verdict.why


def test_a_hang_that_was_killed_later_is_still_seen(job: Any) -> None:
    """After the watchdog has killed all of them, the journals still tell who was missing; who waited is no suspect."""
    waiting(job, 0, 1, 3, verdict="dead")
    job.rank(2, "train,4000", "train / step,316", usual=USUAL, verdict="dead")
    assert [(2, "dead_and_awaited")] == found(job)


def test_silence_is_no_death(job: Any) -> None:
    """A rank of another machine that is silent is named, last, and not said to be dead."""
    job.rank(0, "train,4000")
    job.rank(1, "train,4000", verdict="unknown", heartbeat_s=400)
    postmortem = job.diagnose()
    assert [(1, "silent")] == found(job)
    assert postmortem.suspects[0].reason.startswith("silent since 2027-01-15 08:00:00 UTC on node0, in train")
    assert (False, False) == (postmortem.is_hung, postmortem.is_well)


def test_a_forked_child_that_died_is_told(job: Any) -> None:
    """Its parent goes on, and perhaps waits for it."""
    job.rank(0, "train,4000", pid=10)
    job.rank(0, "load,9", pid=11, verdict="dead", facts={"forked_from": 10})
    (suspect,) = job.diagnose().suspects
    assert "child_died" == suspect.kind
    assert suspect.reason.startswith(
        "in train (step 120) for 4000 s: its worker process 11: killed, process 100 is gone"
    )
    assert not job.diagnose().is_well


def test_who_was_stopped_says_so_first(job: Any) -> None:
    """SIGSTOP, a debugger, a disk that does not answer: no phase tells that."""
    waiting(job, 0, 1, 3)
    image = job.image(2, "train,4000", "train / step,316", "train / step / data_loading,315", usual=USUAL)
    verdict = Verdict(
        Liveness.ALIVE, "process 102 is there on node0, stopped by a signal", kept_by="stopped by a signal"
    )
    job.processes.append(report_process(image, verdict, now_ns=jobs.NOW_NS))
    (suspect,) = job.diagnose().suspects
    assert suspect.reason.startswith("stopped by a signal, in train / step / data_loading (step 120) for 315 s")


def test_who_was_stopped_in_an_earlier_round_does_not_wait_itself(job: Any) -> None:
    """It would have gone on long ago."""
    waiting(job, 0, 1, 3)
    usual = {**USUAL, "train / step / all_reduce": [0.012] * 118}
    image = job.image(2, "train,4000", "train / step,313", "train / step / all_reduce,312,sync", usual=usual, step=119)
    verdict = Verdict(Liveness.ALIVE, "process 102 is there on node0", kept_by="stopped by a signal")
    job.processes.append(report_process(image, verdict, now_ns=jobs.NOW_NS))
    (suspect,) = job.diagnose().suspects
    assert (2, "awaited") == (suspect.rank, suspect.kind)
    assert suspect.reason.endswith(
        "it is in its 119. all_reduce, they are in the 120., and is what the others wait for (312 s so far)"
    )


def test_who_died_with_nothing_open_says_so(job: Any) -> None:
    """Between two phases, after its last step."""
    job.rank(0, verdict="dead")
    (suspect,) = job.diagnose().suspects
    assert suspect.reason.endswith(", with no phase open, after step 120")


def test_twice_is_not_usual(job: Any) -> None:
    """With one or two measurements nobody speaks of a p99."""
    job.rank(0, "train,4000", "load,5", usual={"load": [0.5, 0.7]}, verdict="dead")
    assert "(before: 2 times, at most 700 ms)" in job.diagnose().suspects[0].reason


def test_who_died_long_before_comes_before_who_was_missing_too(job: Any) -> None:
    """Two did not come: one was killed, the other hung until all were ended."""
    waiting(job, 0, 1, verdict="dead")
    job.rank(2, "train,4000", "train / step,316", usual=USUAL, verdict="dead")
    job.rank(3, "train,4000", "train / step,316", usual=USUAL, verdict="dead", heartbeat_s=318)
    assert [(3, "dead_and_awaited"), (2, "dead_and_awaited")] == found(job)
    assert (3,) == job.diagnose().verdict.ranks


LEFT = ("train,4000", "train / step,3", "train / step / all_reduce,2.5,sync")


def failed(job: Any, *ranks: int, ago_s: float = 5, left: tuple[str, ...] = LEFT, **options: Any) -> None:
    """Add ranks that an exception ended, in all_reduce of step 120 unless `left` says otherwise."""
    usual = {**USUAL, "train / step / all_reduce": [0.012] * 119 + [2.5]}
    for rank in ranks:
        note = jobs.said("exception", ago_s + rank / 100, error_type="ncclError", error_message="timeout")
        job.rank(
            rank, note=note, left=left, heartbeat_s=ago_s, **{"usual": usual, "verdict": "dead", "step": 120, **options}
        )


def test_ranks_that_gave_up_waiting_are_not_to_blame_for_the_one_that_hangs(job: Any) -> None:
    """The collective's own timeout raises on every healthy rank, and the one that hangs is all that lives."""
    failed(job, 0, 1, 3)
    job.rank(2, "train,4000", "train / step,10", "train / step / data_loading,9", usual=USUAL)
    postmortem = job.diagnose()
    (suspect,) = postmortem.suspects
    assert (2, "awaited") == (suspect.rank, suspect.kind)
    assert suspect.reason.endswith(
        "it never entered that step's all_reduce, and is what the others waited for (2.50 s, until they died)"
    )
    assert postmortem.is_hung


def test_ranks_that_failed_as_another_was_gone_are_not_to_blame(job: Any) -> None:
    """A rank is killed, and the others' connections break at once: nobody has waited for long."""
    left = ("train,4000", "train / step,0.3", "train / step / all_reduce,0.1,sync")
    failed(job, 0, 1, 3, left=left)
    job.rank(2, "train,4000", "train / step,5.2", usual=USUAL, verdict="dead", heartbeat_s=5.2)
    assert [(2, "dead_and_awaited")] == found(job)


def test_ranks_that_were_killed_after_one_had_failed_are_not_what_it_waited_for(job: Any) -> None:
    """One runs out of memory in all_reduce before the others get there, and the launcher kills them."""
    left = ("train,4000", "train / step,0.3", "train / step / all_reduce,0.001,sync")
    failed(job, 0, left=left)
    for rank in (1, 2, 3):
        job.rank(rank, "train,4000", "train / step,5.2", usual=USUAL, verdict="dead", heartbeat_s=4.9)
    assert [(0, "died_first"), (1, "died"), (2, "died"), (3, "died")] == found(job)
    assert "in train / step / all_reduce (step 120) for 1.00 ms" in job.diagnose().suspects[0].reason


def test_of_two_that_died_together_the_one_that_waited_comes_last(job: Any) -> None:
    """With two ranks there is no odd one out; but a collective fails because of the other one."""
    left = ("train,4000", "train / step,0.3", "train / step / all_reduce,0.1,sync")
    failed(job, 0, left=left)
    job.rank(1, "train,4000", "train / step,5.2", usual=USUAL, verdict="dead", heartbeat_s=5.2)
    assert [(1, "died_first"), (0, "died")] == found(job)


def test_exceptions_of_another_type_make_the_odd_one_out(job: Any) -> None:
    """One has run out of memory, and three lost their connection to it."""
    failed(job, 0, 1, 3, left=(), usual=USUAL)
    note = jobs.said("exception", 5, error_type="MemoryError", error_message="x")
    job.rank(2, note=note, verdict="dead", usual=USUAL, heartbeat_s=5)
    assert (2, "died_first") == found(job)[0]


def test_who_was_killed_first_of_those_that_waited_is_not_to_blame(job: Any) -> None:
    """Somebody ends a hung job rank by rank, and the one that all waited for cannot be killed."""
    waiting(job, 0, verdict="dead", heartbeat_s=60)
    waiting(job, 1, 3, verdict="dead", heartbeat_s=1)
    job.rank(2, "train,4000", "train / step,316", "train / step / data_loading,315", usual=USUAL)
    assert [(2, "awaited")] == found(job)


def test_groups_that_failed_waiting_for_each_other_accuse_nobody_as_dead(job: Any) -> None:
    """Each waited at a point of its own: who came to none of them would be first, and there is none."""
    failed(job, 0, 1)
    left = ("train,4000", "train / step,3", "train / step / barrier,2.4,sync")
    failed(job, 2, 3, left=left, usual={**USUAL, "train / step / barrier": [0.01] * 119 + [2.4]})
    postmortem = job.diagnose()
    assert ((), "cannot be told") == (postmortem.suspects, postmortem.verdict.answer)


def test_who_waits_for_a_known_one_is_not_behind_the_others(job: Any) -> None:
    """Ranks that meet in groups: the other group is far ahead, and only one of this group is the reason."""
    waiting(job, 0, 1)
    job.rank(2, "train,4000", "train / step,316", "train / step / data_loading,315", usual=USUAL)
    for rank in range(3, 10):
        job.rank(rank, "train,4000", step=900, usual={**USUAL, "train / step / all_reduce": [0.012] * 900})
    assert [(2, "awaited")] == found(job)
