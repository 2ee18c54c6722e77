"""A postmortem as people read it: bounded, 80 columns wide, and harmless whatever names hold."""

from __future__ import annotations

import io
import sys
from typing import Any

import attrs
import pytest

from stormphase._liveness import Liveness, Verdict
from stormphase.analysis._ranks import report_process
from stormphase.cli._output import Page
from stormphase.cli._postmortem_text import write_postmortem

jobs = sys.modules["jobs"]
EVIL = "\x1b[31m\x07\r\n\u202e[red]" + "e" + "\u0301" * 10_000


class Pipe(io.StringIO):
    """A stream that takes UTF-8."""

    encoding = "utf-8"  # type: ignore[assignment]


class Terminal(Pipe):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def text_of(job: Any, wanted: list[int] | None = None, stream: io.StringIO | None = None, **environ: str) -> str:
    """Return what is written."""
    stream = Pipe() if stream is None else stream
    page = Page(stream, environ)
    write_postmortem(page, job.diagnose(), jobs.NOW_WALL_NS, wanted)
    page.show()
    return stream.getvalue()


def test_hostile_names_are_harmless_everywhere(job: Any) -> None:
    """Session, host, path, thread, attributes, errors, frames and damage: nothing a terminal would obey is left."""
    image = job.image(0, "train,9", note=jobs.said("exception", error_type=EVIL, error_message=EVIL))
    (phase,) = image.open
    image = attrs.evolve(
        image,
        identity=attrs.evolve(image.identity, session_id=EVIL, host=EVIL),
        process=attrs.evolve(image.process, host=EVIL),
        open=(attrs.evolve(phase, path=(EVIL, EVIL), thread_name=EVIL, task_name=EVIL, attributes={EVIL: EVIL}),),
        ended=(attrs.evolve(phase, path=(EVIL,), ended_ns=jobs.NOW_NS),),
        stacks=(jobs.stack(EVIL),),
        damage=(EVIL,),
    )
    other = attrs.evolve(image, identity=attrs.evolve(image.identity, rank=1), end_note=None)
    verdict = Verdict(Liveness.UNKNOWN, f"silent on {EVIL}")
    job.processes += [report_process(image, verdict), report_process(other, verdict)]
    out = text_of(job, [0, 1])
    assert [] == [char for char in out if not char.isprintable() and char != "\n"]
    assert 3 * 2 * 100 > out.count("\u0301")
    assert "[red]" in out
    assert len(out) < 10_000


def test_a_large_job_is_a_short_text(job: Any) -> None:
    """However many groups and suspects there are."""
    job = jobs.Job(4_096)
    for rank in range(4_096):
        job.rank(rank, f"train / p{rank % 50},9", verdict="dead" if rank % 2 else "alive")
    out = text_of(job)
    assert "\n  and 3,112 ranks in 38 groups more: see --json\n" in out
    assert "\n     and 2,045 more, died first: 7, 9, 11, 13, 15, 17, 19, 21, …\n" in out
    assert len(out.splitlines()) < 120


def test_of_those_that_merely_died_two_stand_for_all(job: Any) -> None:
    """If one has failed and the job was ended, the first two of the others say as much as all."""
    job = jobs.Job(64)
    job.rank(0, note=jobs.said("exception", 9, error_type="ValueError", error_message="x"), verdict="dead")
    for rank in range(1, 64):
        job.rank(rank, "train,9", verdict="dead")
    out = text_of(job)
    assert "\n     and 61 more, died: 3-63\n" in out
    assert 1 == out.count("ended last") + out.count("nothing open")


def test_who_died_alike_is_no_suspect(job: Any) -> None:
    """A job that its scheduler ended has no culprit, and the text says so and speaks of none."""
    for rank in range(4):
        job.rank(rank, "train,4", verdict="dead")
    text = text_of(job)
    assert "\ncannot be told: 4 ranks ended from outside at one time, 2027-01-16" in text
    assert "suspects" not in text


def test_of_those_that_tie_three_are_told(job: Any) -> None:
    """They share the first place, and the rest are named."""
    for rank in range(9):
        job.rank(rank, "train,4", verdict="dead" if rank < 7 else "alive")
    text = text_of(job)
    assert "\ntie, ranks 0-6: ranks 0-6 were the first to end" in text
    assert ["  1. tied, rank 0", "  1. tied, rank 1", "  1. tied, rank 2"] == [
        line[:17] for line in text.splitlines() if "tied" in line
    ]
    assert "and 4 more, died first: 3-6" in text


def test_a_deep_lane_is_shown_by_its_ends(job: Any) -> None:
    """Outermost and innermost phases; JSON has all."""
    names = [f"p{level}" for level in range(100)]
    doing = [f"{' / '.join(names[: level + 1])},{200 - level}" for level in range(100)]
    job.rank(0, *doing)
    out = text_of(job, [0])
    assert "and 76 more in between: see --json" in out
    assert " p11 (step 120)" in out
    assert " p12 (step 120)" not in out
    assert " p88 (step 120)" in out


def test_every_lane_is_named(job: Any) -> None:
    """By thread, whether it is the main one, and task; paused and synchronising phases say so."""
    image = job.image(0, "train,9,sync", "load,8,lane 2,thread 9,paused")
    main, load = image.open
    image = attrs.evolve(
        image,
        open=(attrs.evolve(main, thread_name="trainer"), attrs.evolve(load, task_name="prefetch", thread_name=None)),
    )
    job.processes.append(report_process(image, jobs.VERDICTS["alive"], now_ns=jobs.NOW_NS))
    out = text_of(job, [0])
    assert "    thread trainer (main):\n      train (step 120) for 9.00 s, sync\n" in out
    assert "    thread 9, task prefetch:\n      load (step 120) for 8.00 s, paused\n" in out


def test_the_stack_of_a_hang_is_shown(job: Any) -> None:
    """Where Python stood when the phase had been open too long, and how long before."""
    job.rank(0, "train,9", stacks=(jobs.stack("train.py:41 in fetch", "socket.py:7 in recv", ago_s=3),))
    out = text_of(job, [0])
    assert "when a phase was open too long, 3.00 s before:\n    train.py:41 in fetch\n    socket.py:7 in recv\n" in out


def test_a_forked_child_has_its_own_part(job: Any) -> None:
    """With its own evidence and stack of phases."""
    job.rank(0, "train,9", pid=10)
    job.rank(0, "load,8", pid=11, verdict="dead", facts={"forked_from": 10}, damage=("a slot is damaged",))
    out = text_of(job)
    assert "\nrank 0, worker process 11: killed, process 100 is gone from node0; last sign" in out
    assert "\n  damage: a slot is damaged\n" in out


def test_only_a_fork_is_called_one(job: Any) -> None:
    """Two processes of a rank may also come of a launch in two places at once, or of a copied file."""
    job.rank(0, "train,9", pid=10)
    job.rank(0, "train,8", pid=11, verdict="dead")
    out = text_of(job)
    assert "rank 0, another process 11: killed, " in out
    assert "another process 11: killed, " in out.split("suspects", 1)[1]
    assert "forked" not in out


def test_a_rank_that_is_asked_for_and_not_there_is_told(job: Any) -> None:
    """Silence would read as a rank with nothing to tell."""
    job.rank(0, "train,9")
    assert "\nno journal of rank 7 in attempt 0\n" in text_of(job, [0, 7])


def test_a_silent_rank_is_said_to_be_silent_once(job: Any) -> None:
    """Its evidence begins with the word."""
    job.rank(0, "train,9", verdict="unknown")
    out = text_of(job)
    assert "\nrank 0: silent since 2027" in out
    assert "silent, silent" not in out


def test_colours_are_for_terminals_that_want_them(job: Any) -> None:
    """Dead is red on a terminal; with NO_COLOR, and in a pipe, nothing is coloured."""
    job.rank(0, "train,9", verdict="dead")
    assert "\x1b[31m  rank 0 killed in train" in text_of(job, stream=Terminal())
    assert "\x1b" not in text_of(job, stream=Terminal(), NO_COLOR="1")
    assert "\x1b" not in text_of(job)


def test_what_a_stream_cannot_encode_is_a_question_mark(job: Any) -> None:
    """An ASCII terminal still shows the rest."""
    job.rank(0, "größe,9")
    raw = io.BytesIO()
    page = Page(io.TextIOWrapper(raw, encoding="ascii"), {})
    write_postmortem(page, job.diagnose(), jobs.NOW_WALL_NS, None)
    page.show()
    assert b"gr??e (step 120) for 9.00 s" in raw.getvalue()


@pytest.mark.parametrize("columns", ["40", "80", "160"])
def test_lines_fit_into_the_terminal(job: Any, columns: str) -> None:
    """Whatever its width."""
    job.rank(0, "train,9", " train / " + "x" * 300 + ",8", usual={"train": [1] * 9}, verdict="dead")
    out = text_of(job, stream=Terminal(), COLUMNS=columns, NO_COLOR="1")
    assert int(columns) >= max(len(line) for line in out.splitlines())


def test_how_many_ranks_there_are_is_never_cut_off(job: Any) -> None:
    """A session id that was derived has 32 digits, which leave no room for the rest beside it."""
    image = job.image(0, "train,9")
    image = attrs.evolve(image, identity=attrs.evolve(image.identity, session_id="5fde07d02a8e3a03" * 2))
    job.processes.append(report_process(image, Verdict(Liveness.UNKNOWN, "silent")))
    expected = ["stormphase postmortem: session 5fde07d02a8e3a035fde07d02a8e3a03, attempt 0, 1 of", "  4 ranks"]
    assert expected == text_of(job).splitlines()[:2]
