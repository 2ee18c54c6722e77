"""What is known of one process and one rank."""

from __future__ import annotations

import sys
from typing import Any

import attrs
import pytest

from stormphase._model import PhaseStatus
from stormphase.analysis import _ranks
from stormphase.analysis._ranks import RankState, ranks_of, report_process, signal_name, state_of

jobs = sys.modules["jobs"]
SECOND = jobs.SECOND


@pytest.mark.parametrize(
    ("note", "verdict", "state", "evidence"),
    [
        (None, "alive", "running", "process 100 is there on node0"),
        (None, "dead", "killed", "process 100 is gone from node0; last sign of life at 2027-01-16 11:46:39 UTC"),
        (None, "host gone", "host gone", "node0 has booted since; last sign of life at 2027-01-16 11:46:39 UTC"),
        (None, "unknown", "silent", "silent since 2027-01-15"),
        (jobs.said("clean"), "dead", "clean", "ended in order at 2027-01-16"),
        (jobs.said("clean"), "alive", "clean", "ended in order"),
        (jobs.said("ended"), "dead", "ended", "with an exit status that is not known"),
        (jobs.said("signal", signal=15), "dead", "signal", "as SIGTERM asked"),
        (jobs.said("exit", error_type="SystemExit", error_message="3"), "dead", "exit", "SystemExit: 3, at"),
        (
            jobs.said("exception", error_type="torch.OutOfMemoryError", error_message="CUDA\x1b[31m"),
            "dead",
            "exception",
            "torch.OutOfMemoryError: CUDA\\x1b[31m, at",
        ),
    ],
)
def test_the_state_is_what_it_said_or_what_is_proved(
    job: Any, note: Any, verdict: str, state: str, evidence: str
) -> None:
    """A process's own word counts first; else death needs proof, and without it there is only silence."""
    found, why = state_of(job.image(0, note=note), jobs.VERDICTS[verdict])
    assert state == str(found)
    assert evidence in why


def test_a_signal_that_asked_it_to_stop_is_told() -> None:
    """Who was killed after SIGTERM was told to go before."""
    image = jobs.Job().image(0, stop_signal=15, stop_asked_ns=5)
    assert state_of(image, jobs.VERDICTS["dead"])[1].endswith("; SIGTERM had asked it to stop")
    assert ["SIGKILL", "signal 4000", "signal None"] == [signal_name(9), signal_name(4_000), signal_name(None)]


def test_open_phases_of_the_living_are_measured_to_now(job: Any) -> None:
    """A live process of this machine shares its monotonic clock."""
    report = report_process(job.image(0, "train,10"), jobs.VERDICTS["alive"], now_ns=jobs.NOW_NS)
    assert ("now", 10 * SECOND) == (report.measured_to, report.open[0].for_ns)
    assert jobs.NOW_WALL_NS - 10 * SECOND == report.open[0].entered_ns


@pytest.mark.parametrize(("verdict", "now_ns"), [("dead", jobs.NOW_NS), ("unknown", jobs.NOW_NS), ("alive", None)])
def test_others_are_measured_to_their_last_sign_of_life(job: Any, verdict: str, now_ns: int | None) -> None:
    """What a dead process did after its last heartbeat is not known, and another machine's clock is not this one's."""
    report = report_process(job.image(0, "train,10", heartbeat_s=2), jobs.VERDICTS[verdict], now_ns=now_ns)
    assert ("last sign of life", 8 * SECOND) == (report.measured_to, report.open[0].for_ns)
    assert jobs.NOW_WALL_NS - 2 * SECOND == report.alive_until_ns == report.end_ns


def test_a_clock_of_another_machine_is_never_taken_for_now(job: Any) -> None:
    """A monotonic time before the last sign of life cannot be now."""
    report = report_process(job.image(0, "train,10"), jobs.VERDICTS["alive"], now_ns=5)
    assert "last sign of life" == report.measured_to


def test_what_is_usual_comes_from_the_totals(job: Any) -> None:
    """An open phase is compared with how long its path took this rank before, with the count."""
    image = job.image(0, "train,10", "train / step,5", usual={"train / step": [0.1] * 98 + [0.2, 0.4]})
    train, step = report_process(image, jobs.VERDICTS["alive"], now_ns=jobs.NOW_NS).open
    assert train.usual is None
    assert step.usual is not None
    assert (100, 400_000_000) == (step.usual.count, step.usual.max_ns)
    assert 100_000_000 == pytest.approx(step.usual.median_ns, rel=0.02)
    assert 200_000_000 == pytest.approx(step.usual.p99_ns, rel=0.02)


def test_the_last_sixteen_that_ended_are_kept(job: Any) -> None:
    """With wall times, by end."""
    image = job.image(0, ended=[f"p{index}" for index in range(20)])
    report = report_process(image, jobs.VERDICTS["dead"])
    assert [(f"p{index}",) for index in range(4, 20)] == [phase.path for phase in report.last_ended]
    status: PhaseStatus = report.last_ended[-1].status
    assert ("succeeded", report.alive_until_ns) == (str(status), report.last_ended[-1].ended_ns)
    assert () == report_process(image, jobs.VERDICTS["dead"], last=0).last_ended


def test_of_very_many_paths_the_frequent_are_counted(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may claim any number of paths; then its counts are known not to be all."""
    monkeypatch.setattr(_ranks, "MAX_COUNTS", 2)
    image = job.image(0, usual={"a": [1], "b": [1] * 3, "c": [1] * 2})
    report = report_process(image, jobs.VERDICTS["dead"])
    assert {("b",): 3, ("c",): 2} == report.counts
    assert not report.has_exact_counts
    assert report_process(job.image(0), jobs.VERDICTS["dead"]).has_exact_counts


@pytest.mark.parametrize("lack", [{"unwritten": 1}, {"unfolded": 1}, {"damage": ("a segment",)}])
def test_counts_are_exact_only_if_nothing_is_missing(job: Any, lack: dict[str, Any]) -> None:
    """What was not written, not folded or not readable may be any path's."""
    assert not report_process(job.image(0, **lack), jobs.VERDICTS["dead"]).has_exact_counts


def test_the_main_threads_stack_is_kept(job: Any) -> None:
    """Of the newest dump the innermost frames, harmless, and how old they are."""
    frames = [f"f{index}" for index in range(20)]
    dumps = (jobs.stack("old"), jobs.stack(*frames, "evil\x1b[0m", ago_s=3))
    report = report_process(job.image(0, stacks=dumps), jobs.VERDICTS["alive"], now_ns=jobs.NOW_NS)
    assert (*frames[9:], "evil\\x1b[0m") == report.stack
    assert 3 * SECOND == report.stack_for_ns


def test_a_rank_is_its_own_process_and_those_it_forked(job: Any) -> None:
    """The rank's own process comes first, wherever its file came."""
    job.rank(1, "train,3", pid=12, facts={"forked_from": 11}, ended=["x"])
    job.rank(1, "train,5", pid=11, ended=["y"], heartbeat_s=1)
    job.rank(0, "train,5", pid=10)
    first, second = ranks_of(job.processes)
    assert (0, 1, [11, 12]) == (first.rank, second.rank, [each.process.pid for each in second.processes])
    assert [11, 12] == [phase.pid for phase in second.open]
    assert [("y",), ("x",)] == [phase.path for phase in second.last_ended]


def test_of_two_own_processes_the_one_that_goes_on_counts(job: Any) -> None:
    """One that has ended in order has handed over to the next."""
    job.rank(0, pid=10, note=jobs.said("clean"))
    job.rank(0, "train,5", pid=11)
    assert [11, 10] == [each.process.pid for each in ranks_of(job.processes)[0].processes]


@pytest.mark.parametrize(
    ("doing", "forked_from", "note", "expected"),
    [
        ([], None, None, True),
        ([], 9, None, False),
        (["load,3"], 9, None, True),
        ([], 9, jobs.said("exception"), True),
        ([], None, jobs.said("clean"), False),
    ],
)
def test_a_forked_child_that_vanished_with_nothing_open_lost_nothing(
    job: Any, doing: list[str], forked_from: int | None, note: Any, expected: bool
) -> None:
    """Pools kill their idle children every day."""
    job.rank(0, *doing, verdict="dead", facts={"forked_from": forked_from}, note=note)
    assert expected == job.processes[0].has_died
    assert RankState.KILLED is job.processes[0].state or note is not None


LEFT = ("train,40", "train / step,3", "train / step / all_reduce,2,sync")
USUAL = {"train / step / all_reduce": [0.01] * 99 + [2.0]}


def unwound(job: Any, *left: str, note: Any = None, **options: Any) -> list[tuple[str, ...]]:
    """Return the paths of what the end of a rank has unwound."""
    note = jobs.said("exception", error_type="E") if note is None else note
    job.rank(0, note=note, left=left, verdict="dead", **{"usual": USUAL, **options})
    return [phase.path for phase in job.processes[-1].unwound]


def test_where_an_exception_ended_a_process_is_known(job: Any) -> None:
    """The phases that it passed through, each with how long it was open, and what was usual before that time."""
    paths = [("train",), ("train", "step"), ("train", "step", "all_reduce")]
    assert paths == unwound(job, *LEFT, ended=["train / step / all_reduce"])
    phase = job.processes[0].unwound[-1]
    assert (2 * SECOND, True, 120) == (phase.for_ns, phase.is_sync, phase.step)
    assert (99, True) == (phase.usual.count, phase.usual.max_ns < 11_000_000)
    assert () == job.processes[0].open


@pytest.mark.parametrize(
    ("left", "note"),
    [
        (LEFT, jobs.said("exception", ago_s=-3, error_type="E")),
        (("train,40,thread 9", "train / step,3,thread 9"), None),
        (LEFT, jobs.said("clean")),
        ((), None),
    ],
    ids=["long before the end", "another thread", "it ended in order", "nothing failed"],
)
def test_what_did_not_end_a_process_is_not_where_it_ended(job: Any, left: tuple[str, ...], note: Any) -> None:
    """Nothing is claimed where nothing shows it."""
    image = job.image(0, left=left, note=jobs.said("exception", error_type="E"), ended=["train / step / load"])
    if note is not None:
        image = attrs.evolve(image, end_note=note)
    assert () == report_process(image, jobs.VERDICTS["dead"]).unwound


def test_a_failure_beneath_a_phase_that_went_well_ended_nothing(job: Any) -> None:
    """It was handled there; the process ended later, in the phase around."""
    image = job.image(0, left=LEFT, note=jobs.said("exception", error_type="E"))
    outer, step, reduce = image.ended
    image = attrs.evolve(image, ended=(reduce, attrs.evolve(step, status=PhaseStatus.SUCCEEDED), outer))
    assert [("train",)] == [phase.path for phase in report_process(image, jobs.VERDICTS["dead"]).unwound]


def test_of_a_first_time_that_failed_nothing_is_usual(job: Any) -> None:
    """Its own duration is no measure for itself."""
    unwound(job, *LEFT, usual={"train / step / all_reduce": [2.0]})
    assert [None] * 3 == [phase.usual for phase in job.processes[0].unwound]
