"""Ranks that ended: whose end was the first, whose is an echo, who left too early, and where nothing tells."""

from __future__ import annotations

import sys
from typing import Any

import attrs
import pytest

from stormphase._model import PhaseError, PhaseStatus
from stormphase.analysis._endings import is_echo
from stormphase.analysis._ranks import report_process

jobs = sys.modules["jobs"]
USUAL = {"train / step": [0.35] * 119, "train / step / all_reduce": [0.012] * 119}
STEP = ("train,4000", "train / step,0.2")


def answer(job: Any) -> tuple[str, tuple[int, ...], str]:
    """Return the verdict in short; whom it names stands at the head of the suspects, and nobody else."""
    postmortem = job.diagnose()
    verdict = postmortem.verdict
    assert set(verdict.ranks) == {each.rank for each in postmortem.suspects if each.place == 1}
    assert bool(verdict.ranks) == bool(postmortem.suspects)
    return str(verdict.answer), verdict.ranks, verdict.rule


def add(
    job: Any, rank: int, *doing: str, boot: str = "boot", node: int | None = None, ahead_s: float = 0, **options: Any
) -> None:
    """Add a dead rank of some boot, whose wall clock is so far ahead."""
    verdict = jobs.VERDICTS[options.pop("verdict", "dead")]
    image = job.image(rank, *doing, **{"usual": USUAL, **options})
    image = attrs.evolve(
        image,
        process=attrs.evolve(image.process, boot_id=boot, host=f"node{node or 0}"),
        identity=attrs.evolve(image.identity, node_rank=node),
        anchor=attrs.evolve(image.anchor, wall_ns=image.anchor.wall_ns + int(ahead_s * jobs.SECOND)),
    )
    job.processes.append(report_process(image, verdict))


def raised(kind: str, text: str, ago_s: float) -> Any:
    """Return the note of an exception."""
    return jobs.said("exception", ago_s, error_type=kind, error_message=text)


def left(job: Any, rank: int, ago_s: float, kind: str = "ValueError", text: str = "bad batch", **options: Any) -> None:
    """Add a rank that caught an exception, and left in order half a second later."""
    ended_ns = jobs.NOW_NS - int((ago_s + 0.5) * jobs.SECOND)
    image = job.image(
        rank, left=("train,9",), note=jobs.said(options.pop("how", "clean"), ago_s), usual=USUAL, **options
    )
    (phase,) = [each for each in image.ended if each.status is PhaseStatus.FAILED]
    error = PhaseError(type=kind, message=text, traceback=None, root_cause_scope_id=phase.scope_id)
    phase = attrs.evolve(phase, parent_scope_id=None, ended_ns=ended_ns, error=error)
    job.processes.append(report_process(attrs.evolve(image, ended=(phase,)), jobs.VERDICTS["dead"]))


ECHOES = [
    ("ConnectionResetError", "[Errno 104] Connection reset by peer"),
    ("BrokenPipeError", "[Errno 32] Broken pipe"),
    ("ConnectionError", "peer is gone"),
    ("RuntimeError", "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:40000"),
    ("torch.distributed.DistBackendError", "NCCL error: remote process exited or there was a network error"),
    ("RuntimeError", "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"),
    ("RuntimeError", "Timed out waiting 1800000ms for recv operation to complete"),
    ("EOFError", ""),
]
CAUSES = [
    ("ValueError", "bad batch"),
    ("torch.OutOfMemoryError", "CUDA out of memory"),
    ("requests.exceptions.ConnectionError", "Connection reset by peer"),
    ("botocore.exceptions.ConnectionClosedError", "Connection was closed before we received a valid response"),
    ("EOFError", "Compressed file ended before the end-of-stream marker was reached"),
    ("TimeoutError", "the loader's worker did not answer"),
]


@pytest.mark.parametrize(("kind", "text"), ECHOES)
def test_what_a_rank_sees_of_another_ones_end_is_an_echo(kind: str, text: str) -> None:
    """As the libraries say it that ranks talk through."""
    assert is_echo(f"{kind}: {text}" if text else kind)


@pytest.mark.parametrize(("kind", "text"), CAUSES)
def test_what_a_rank_fails_of_by_itself_is_no_echo(kind: str, text: str) -> None:
    """A connection to a store or a hub is none to another rank."""
    assert not is_echo(f"{kind}: {text}")


@pytest.mark.parametrize("gap_s", [0.000_01, 0.1, 5])
@pytest.mark.parametrize("culprit", [0, 3])
def test_of_failures_on_one_boot_the_first_is_named(job: Any, gap_s: float, culprit: int) -> None:
    """By the nanosecond, whatever the wall clocks say: they may have been set between two starts."""
    for rank in range(4):
        at_s = 5 if rank == culprit else 5 - gap_s * (1 + rank)
        add(job, rank, note=raised("ValueError" if rank == culprit else "RuntimeError", "x", at_s), ahead_s=40 * rank)
    assert ("named", (culprit,), "first_to_end") == answer(job)


@pytest.mark.parametrize(("kind", "text"), ECHOES)
@pytest.mark.parametrize("ahead_s", [0.3, -0.3])
def test_an_echo_between_two_failures_is_not_the_cause(job: Any, kind: str, text: str, ahead_s: float) -> None:
    """It may be noted before what it is the echo of: who failed cleans up first."""
    add(job, 0, note=raised(kind, text, 5 + ahead_s))
    add(job, 1, note=raised(kind, text, 5 + ahead_s / 2))
    add(job, 2, note=raised("ValueError", "x", 5))
    add(job, 3, *STEP, heartbeat_s=3)
    assert ("named", (2,), "first_to_end") == answer(job)


@pytest.mark.parametrize(("kind", "text"), ECHOES)
def test_echoes_name_the_one_that_was_killed(job: Any, kind: str, text: str) -> None:
    """Its last sign of life may be just before, or just as, they lost it."""
    for rank in (0, 2, 3):
        add(job, rank, note=raised(kind, text, 5 - rank / 100))
    add(job, 1, *STEP, heartbeat_s=5.1)
    assert ("named", (1,), "first_to_end") == answer(job)


def test_echoes_alone_accuse_nobody(job: Any) -> None:
    """All lost their connections at one time: the network, or what keeps the rendezvous."""
    for rank in range(4):
        add(job, rank, note=raised(*ECHOES[0], 5), boot=f"boot{rank}")
    assert ("cannot be told", (), "") == answer(job)


def test_one_error_that_all_share_accuses_nobody(job: Any) -> None:
    """The loss was NaN on all of them, or a file was missing: the first of them is no more to blame than the last."""
    for rank in range(4):
        add(job, rank, note=raised("FloatingPointError", "loss is NaN", 5 - rank / 1000))
    assert ("cannot be told", (), "one_cause_for_all") == answer(job)


def test_one_exit_of_all_accuses_nobody(job: Any) -> None:
    """A handler of the program's own exits wherever SIGTERM finds each rank."""
    for rank in range(4):
        note = jobs.said("exit", 5 - rank / 1000, error_type="SystemExit", error_message="143")
        add(job, rank, note=note, left=("train,9", f"train / phase {rank},1"))
    assert ("cannot be told", (), "one_cause_for_all") == answer(job)


def test_who_was_killed_first_is_named_by_the_others_later_signs_of_life(job: Any) -> None:
    """On one boot they are in order, as they are a fifth of a second apart."""
    add(job, 2, *STEP, heartbeat_s=9)
    for rank in (0, 1, 3):
        add(job, rank, *STEP, heartbeat_s=6)
    assert ("named", (2,), "first_to_end") == answer(job)


def test_who_was_killed_at_one_time_while_others_live_ties(job: Any) -> None:
    """A node of two ranks is gone: neither is said to be the first."""
    for rank in (0, 1):
        add(job, rank, *STEP, heartbeat_s=5 + rank / 10)
    for rank in (2, 3):
        job.rank(rank, *STEP, usual=USUAL)
    assert ("tie", (0, 1), "first_to_end") == answer(job)


def test_a_failure_and_a_kill_that_overlap_tie(job: Any) -> None:
    """One failed by its own word, another was last seen a moment before, and the others were ended for that."""
    add(job, 0, note=raised("ValueError", "x", 5))
    add(job, 1, *STEP, heartbeat_s=5.1)
    for rank in (2, 3):
        add(job, rank, *STEP, heartbeat_s=4)
    assert ("tie", (0, 1), "first_to_end") == answer(job)
    assert "clocks do not tell which before which" in job.diagnose().verdict.why


@pytest.mark.parametrize("same_boot", [True, False])
@pytest.mark.parametrize("apart_s", [1.5, 4, 9])
def test_a_job_that_was_killed_node_by_node_accuses_nobody(job: Any, apart_s: float, same_boot: bool) -> None:
    """A scheduler ends a job so, and a job that lost its first node looks the same."""
    for rank in range(4):
        node = rank // 2
        doing = STEP if node == 0 else ("train,4000", "train / step,9", f"train / step / all_reduce,{apart_s},sync")
        boot = "boot" if same_boot else f"boot{node}"
        add(job, rank, *doing, heartbeat_s=20 - apart_s * node, boot=boot, node=node)
    assert ("cannot be told", ()) == answer(job)[:2]


@pytest.mark.parametrize("ahead_s", [-120, 120])
def test_a_clock_that_is_wrong_makes_no_order(job: Any, ahead_s: float) -> None:
    """Ranks of another machine that went on until the end were not held up by one that seems to have died before."""
    for rank in range(4):
        boot, ahead = (f"boot{rank // 2}", ahead_s * (rank // 2))
        add(job, rank, *STEP, heartbeat_s=5, boot=boot, node=rank // 2, ahead_s=ahead)
    assert ("cannot be told", ()) == answer(job)[:2]


@pytest.mark.parametrize("how", ["clean", "ended"])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_who_caught_what_failed_and_left_in_order_is_named(world_size: int, how: str) -> None:
    """It logged that, stopped and exited with 1; the launcher then ended the others."""
    job = jobs.Job(world_size)
    left(job, 1, 8, how=how)
    for rank in range(world_size):
        if rank != 1:
            add(job, rank, *STEP, heartbeat_s=5 - rank / 100)
    postmortem = job.diagnose()
    assert ("named", (1,), "first_to_end") == answer(job)
    assert "ValueError: bad batch" in postmortem.verdict.why
    assert ("left_early", 1) == (postmortem.suspects[0].kind, postmortem.suspects[0].place)
    assert "after ValueError: bad batch had failed train" in postmortem.suspects[0].reason


def test_who_caught_an_echo_and_left_is_none(job: Any) -> None:
    """It lost its connection to one that was killed."""
    for rank in (0, 1, 3):
        left(job, rank, 5, *ECHOES[0])
    add(job, 2, *STEP, heartbeat_s=5.6)
    assert ("named", (2,), "first_to_end") == answer(job)


def test_who_left_after_another_had_failed_is_none(job: Any) -> None:
    """Both caught what failed; the first is the reason."""
    left(job, 0, 4, "RuntimeError", "x")
    left(job, 1, 8)
    for rank in (2, 3):
        add(job, rank, *STEP, heartbeat_s=3)
    assert ("named", (1,), "first_to_end") == answer(job)


@pytest.mark.parametrize("how", ["clean", "ended"])
@pytest.mark.parametrize("where", [STEP, (*STEP, "train / step / all_reduce,0.1,sync")])
@pytest.mark.parametrize("world_size", [2, 4])
def test_who_left_before_all_others_were_ended_is_named(world_size: int, where: tuple[str, ...], how: str) -> None:
    """`sys.exit(3)` without `with`: what it exited with nobody knows, and that it was the first everybody does."""
    job = jobs.Job(world_size)
    add(job, 0, note=jobs.said(how, 8))
    for rank in range(1, world_size):
        add(job, rank, *where, heartbeat_s=5 - rank / 100)
    assert ("named", (0,), "left_before_the_others") == answer(job)
    assert "left_early" == job.diagnose().suspects[0].kind


def test_who_is_done_is_none_where_the_last_one_is_killed(job: Any) -> None:
    """Most have left in order: then it is the one that has not."""
    for rank in range(3):
        add(job, rank, note=jobs.said("clean", 8))
    add(job, 3, "train,4000", heartbeat_s=5)
    assert ("named", (3,), "first_to_end") == answer(job)


def test_who_left_long_before_the_job_was_ended_is_none(job: Any) -> None:
    """The others went on for an hour without it."""
    add(job, 0, note=jobs.said("clean", 3600))
    for rank in (1, 2, 3):
        add(job, rank, *STEP, heartbeat_s=5)
    assert ("cannot be told", (), "") == answer(job)


def test_all_that_were_asked_to_stop_together_accuse_nobody(job: Any) -> None:
    """Ctrl-C, or SIGTERM from a scheduler, however they take that."""
    for rank in range(4):
        note = jobs.said("signal", 5 - rank / 100, signal=15) if rank % 2 else raised("RuntimeError", "x", 4.9)
        asked_ns = jobs.NOW_NS - int(5.2 * jobs.SECOND)
        add(job, rank, note=note, stop_signal=15, stop_asked_ns=asked_ns)
    assert ("cannot be told", ()) == answer(job)[:2]


@pytest.mark.parametrize("number", [2, 15])
def test_a_job_whose_collectives_do_not_heed_a_signal_accuses_nobody(job: Any, number: int) -> None:
    """One that runs Python ends at once; those within a collective wait for it, and are killed half a minute later."""
    add(job, 0, note=jobs.said("signal", 35, signal=number), heartbeat_s=35)
    for rank in (1, 2, 3):
        add(job, rank, "train,4000", "train / step,30", "train / step / all_reduce,29,sync", heartbeat_s=5)
    assert ("cannot be told", (), "ended_by_one_hand") == answer(job)


def test_a_network_that_resets_all_connections_accuses_nobody(job: Any) -> None:
    """All of one machine lost them, and which noted that first says nothing."""
    for rank in range(4):
        add(job, rank, note=raised(*ECHOES[rank % 3], 5 - rank / 50))
    assert ("cannot be told", ()) == answer(job)[:2]


def test_who_failed_before_it_was_asked_is_named(job: Any) -> None:
    """The others were asked to stop because of it."""
    add(job, 1, note=raised("ValueError", "x", 5))
    for rank in (0, 2, 3):
        note = jobs.said("signal", 4.5, signal=15)
        add(job, rank, note=note, stop_signal=15, stop_asked_ns=jobs.NOW_NS - int(4.9 * jobs.SECOND))
    assert ("named", (1,), "first_to_end") == answer(job)


def test_ranks_that_are_silent_alike_accuse_nobody(job: Any) -> None:
    """Seen from another machine a dead job is silent, all of it."""
    for rank in range(4):
        add(job, rank, *STEP, heartbeat_s=400, verdict="unknown", boot="another")
    assert ("cannot be told", ()) == answer(job)[:2]


def test_who_alone_lost_a_connection_at_work_is_named(job: Any) -> None:
    """To a server of data, say; the others lost theirs to it, where they wait for each other."""
    for rank in range(4):
        where = "load" if rank == 2 else "all_reduce"
        note = raised(*ECHOES[0], 5 if rank == 2 else 4.9)
        add(job, rank, note=note, left=("train,9", f"train / {where},0.1"))
    assert ("named", (2,), "first_to_end") == answer(job)


def test_who_is_alone_is_named_whatever_it_failed_of() -> None:
    """There is nobody else."""
    job = jobs.Job(1)
    add(job, 0, note=raised(*ECHOES[0], 5))
    assert ("named", (0,), "first_to_end") == answer(job)
