"""The long run of planted jobs, whose figures stand in docs/accuracy.md, which it writes.

    python tests/truth/run.py --jobs 500 --seed 0
    python tests/truth/run.py --kind "unmarked stuck" --seed 17     # one of them again, with its text

Ends with 1 if an innocent rank came first, or a culprit was not named.
"""

# ruff: noqa: T201, TID251 - prints figures, and measures

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import time
import traceback

import attrs
import loading  # noqa: F401 - makes the modules beside this one importable
from truth_judge import run_case
from truth_kinds import KINDS
from truth_outcomes import INNOCENT, NOT_NAMED, OUTCOMES, RIGHT
from truth_page import PAGE, page_of

NOT_RUN = "not run"


@attrs.frozen
class Found:
    """One job's outcome, small enough to be sent to another process."""

    kind: str
    seed: int
    outcome: str
    complaints: tuple
    shown: str = ""
    wanted: tuple = ()
    said: tuple = ()


def run_one(which):
    """Run one job in a worker; one that could not be run is the judge's own fault, and is told."""
    kind, seed = which
    try:
        case = run_case(kind, seed)
    except BaseException:
        return Found(kind, seed, NOT_RUN, (traceback.format_exc(),))
    said, truth = case.judgement.said, case.truth
    return Found(
        kind,
        seed,
        case.judgement.outcome,
        case.judgement.complaints,
        truth.shown,
        tuple(sorted(truth.culprits | truth.tied)),
        (said.kind, sorted(said.head)),
    )


def main():
    """Run what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, help="how many (default: 500, or with --kind one, with its text)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS), metavar="KIND", help="one kind only")
    parser.add_argument("--keep", help="a directory for the journals of one job")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--no-page", action="store_true", help="leave docs/accuracy.md as it is")
    arguments = parser.parse_args()
    if arguments.kind is not None and arguments.jobs is None:
        return show(run_case(arguments.kind, arguments.seed, arguments.keep))
    kinds = [arguments.kind] if arguments.kind else list(KINDS)
    jobs = 500 if arguments.jobs is None else arguments.jobs
    which = [(kinds[number % len(kinds)], arguments.seed + number // len(kinds)) for number in range(jobs)]
    began = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(arguments.workers, mp_context=spawn) as pool:
        found = list(pool.map(run_one, which, chunksize=4))
    seconds = time.monotonic() - began
    print_table(found, seconds)
    if arguments.kind is None and not arguments.no_page:
        command = f"python tests/truth/run.py --jobs {jobs} --seed {arguments.seed}"
        PAGE.write_text(page_of(found, command, seconds), encoding="utf-8")
    return 1 if any(each.outcome in {INNOCENT, NOT_NAMED, NOT_RUN} for each in found) else 0


def show(case):
    """Print one job: what was planted, what is said of it, and what that is worth."""
    print(case.answer.text)
    job, told = case.job, case.answer.json
    facts = ("world_size", "host_count", "shape", "marks", "style", "echoes", "reader_is_elsewhere", "launcher_s")
    print(f"{case.kind}, seed {case.seed}: " + ", ".join(f"{name} {getattr(job, name)}" for name in facts))
    for rank, life in sorted(job.lives.items()):
        went_on = f", went on last at {life.last_s:.4f}" if life.schedule else ""
        print(f"  rank {rank}: {life.end} at {life.end_s:.4f}{went_on}")
    print("suspects", [(each["rank"], each["kind"]) for each in told["suspects"]], told.get("verdict"))
    print(case.truth)
    print(case.judgement)
    return 0 if case.judgement.outcome == RIGHT and not case.judgement.complaints else 1


def print_table(found, seconds):
    """Print each job that was not right, and the outcomes per kind."""
    for each in found:
        if each.outcome != RIGHT or each.complaints:
            print(
                f"--kind {each.kind!r} --seed {each.seed}: {each.outcome}; {each.shown} {each.wanted}; said {each.said}"
            )
            for complaint in each.complaints:
                print(f"    {complaint}")
    width = max(map(len, KINDS))
    print(f"\n{'kind':{width}} jobs " + " ".join(f"{name:>17}" for name in OUTCOMES) + "   tellers differ")
    for kind in dict.fromkeys(each.kind for each in found):
        print(_row(kind, [each for each in found if each.kind == kind], width))
    print(_row("all", found, width))
    print(f"{seconds:.0f} s; not run: {sum(each.outcome == NOT_RUN for each in found)}")


def _row(kind, found, width):
    counts = [sum(each.outcome == name for each in found) for name in OUTCOMES]
    differ = sum(bool(each.complaints) for each in found)
    return f"{kind:{width}} {len(found):4} " + " ".join(f"{count:17}" for count in counts) + f" {differ:16}"


if __name__ == "__main__":
    sys.exit(main())
