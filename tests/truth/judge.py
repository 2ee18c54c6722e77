"""Runs planted jobs and judges what `stormphase postmortem` says of each."""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs
from truth_kinds import plan
from truth_outcomes import judge
from truth_training import program


@attrs.frozen
class Case:
    """A planted job that was judged."""

    kind: str
    seed: int
    job: object
    truth: object
    answer: object
    judgement: object


def run_case(kind, seed, directory=None):
    """Plan a job, have real processes live it, ask, and judge; its journals stay if a directory is given."""
    job, truth = plan(kind, seed)
    with tempfile.TemporaryDirectory(prefix="stormphase-truth-") as scratch:
        answer = job.live(Path(directory or scratch), program)
    absent = frozenset(job.ranks) - frozenset(rank for rank, life in job.lives.items() if life.schedule)
    return Case(kind, seed, job, truth, answer, judge(answer, truth, job.ranks, absent))
