"""All kinds of planted jobs, and the making of one: planned, simulated, and with its truth."""

from __future__ import annotations

import random

import truth_kinds_issue
import truth_kinds_more
import truth_kinds_own
from truth_training import program

KINDS = {**truth_kinds_issue.KINDS, **truth_kinds_own.KINDS, **truth_kinds_more.KINDS}


def plan(kind, seed):
    """Return the simulated job of a kind and a seed, and its truth."""
    rng = random.Random(f"{kind} {seed}")
    job, truth = KINDS[kind](kind, seed, rng)
    if job.earlier is not None:
        job.earlier.watch_after_s = 0.0
        job.earlier.simulate(program)
        job.begin_s = job.earlier.watch_s + 1.0
        job.starts = {rank: job.begin_s + start_s for rank, start_s in job.starts.items()}
    job.simulate(program)
    return job, truth(job) if callable(truth) else truth
