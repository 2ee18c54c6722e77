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
from collections import Counter
from pathlib import Path

import loading  # noqa: F401 - makes the modules beside this one importable
from truth_judge import run_case
from truth_kinds import KINDS
from truth_outcomes import OUTCOMES, RIGHT

PAGE = Path(__file__).resolve().parents[2] / "docs" / "accuracy.md"


def run_one(which):
    """Run one job in a worker; returns kind, seed, outcome, what was wrong, and who was named."""
    kind, seed = which
    try:
        case = run_case(kind, seed)
    except BaseException:
        return kind, seed, "not run", (traceback.format_exc(),), None, None
    said = case.judgement.said
    return kind, seed, case.judgement.outcome, case.judgement.complaints, (said.kind, sorted(said.head)), case.truth


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="one kind only: with --jobs left out, one job, with its text")
    parser.add_argument("--keep", help="a directory for the journals of one job")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--no-page", action="store_true", help="leave docs/accuracy.md as it is")
    arguments = parser.parse_args()
    if arguments.kind is not None and "--jobs" not in sys.argv:
        return show(run_case(arguments.kind, arguments.seed, arguments.keep))
    kinds = [arguments.kind] if arguments.kind else list(KINDS)
    which = [(kinds[number % len(kinds)], arguments.seed + number // len(kinds)) for number in range(arguments.jobs)]
    began = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(arguments.workers, mp_context=spawn) as pool:
        found = list(pool.map(run_one, which, chunksize=4))
    seconds = time.monotonic() - began
    print_table(found, seconds)
    bad = [each for each in found if each[2] in {"innocent first", "culprit not named", "not run"}]
    return 1 if bad else 0


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
    """Print the outcomes per kind, and each job that was not right."""
    for kind, seed, outcome, complaints, said, truth in found:
        if outcome != RIGHT or complaints:
            wanted = truth and (truth.shown, sorted(truth.culprits)[:8])
            print(f"{kind} --seed {seed}: {outcome}; said {said}; truth {wanted}")
            for each in complaints:
                print(f"    {each}")
    width = max(map(len, KINDS))
    print(f"\n{'kind':{width}} jobs " + " ".join(f"{each:>17}" for each in OUTCOMES) + "   tellers differ")
    total = Counter()
    for kind in dict.fromkeys(each[0] for each in found):
        mine = [each for each in found if each[0] == kind]
        counts = Counter(each[2] for each in mine)
        counts["differ"] = sum(bool(each[3]) for each in mine)
        counts["jobs"] = len(mine)
        total += counts
        print(_row(kind, counts, width))
    print(_row("all", total, width))
    print(f"{seconds:.0f} s; not run: {total['not run']}")


def _row(kind, counts, width):
    return (
        f"{kind:{width}} {counts['jobs']:4} "
        + " ".join(f"{counts[each]:17}" for each in OUTCOMES)
        + f" {counts['differ']:16}"
    )


if __name__ == "__main__":
    sys.exit(main())
