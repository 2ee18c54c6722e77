"""The long run of random real programs, whose figures stand in RESULTS.md beside this file, which it writes.

    python tests/story/run.py --programs 500 --seed 0
    python tests/story/run.py --programs 1 --seed 17 --shrink --no-page    # one of them again, made small

Ends with 1 if two tellers disagreed about one phase, or the program knew better.
"""

# ruff: noqa: T201, TID251 - prints figures, and measures

from __future__ import annotations

import argparse
import concurrent.futures
import datetime as dt
import functools
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import loading  # noqa: F401 - makes the modules beside this one importable
import story_options as options
import story_programs as programs
import story_runner as runners

PAGE = Path(__file__).with_name("RESULTS.md")


def run_parts(seeds, jobs, **options):
    """Run the programs of these seeds in so many processes; returns figures and what disagrees."""
    parts = [seeds[number::jobs] for number in range(jobs)]
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        told = list(pool.map(functools.partial(run_random, **options), parts))
    sums = Counter()
    for part, _ in told:
        sums.update(part)
    return sums, [each for _, wrong in told for each in wrong]


def run_random(seeds, *, shrinks, kept):
    """Run the programs of these seeds; returns figures and what disagrees."""
    with tempfile.TemporaryDirectory() as directory, runners.Runner(kept or directory, keeps=bool(kept)) as runner:
        return _run_random(runner, seeds, shrinks=shrinks)


def _run_random(runner, seeds, *, shrinks):
    sums, wrong = Counter(), []
    for seed in seeds:
        program = programs.generate(seed)
        found, run = runner.run(program)
        _count(sums, program, run, found)
        wrong += [(seed, each) for each in found]
        for each in found:
            print(f"seed {seed}: {each}", flush=True)
        if found and shrinks:
            small = runners.shrunk(runner, program, next(iter(sorted(runners.signatures(found)))))
            print("\n".join(["made small:", *runners.drawn(small["body"])]), flush=True)
    return sums, wrong


def _count(sums, program, run, found):
    sums["programs"] += 1
    sums[f"ended: {program['end']['how']}"] += 1
    sums["phases entered for certain"] += len(run.oracle.entered)
    sums["phases ended for certain"] += len(run.oracle.ended)
    sums["processes"] += len({line["pid"] for line in run.oracle.lines})
    for name, story in run.stories.items():
        sums[f"told by {name}"] += len(story.phases)
    sums["programs with a disagreement"] += bool(found)


def run_array():
    """Run the rows of the covering array; returns figures and what disagrees."""
    with tempfile.TemporaryDirectory() as directory, runners.Runner(directory) as runner:
        return _run_array(runner)


def _run_array(runner):
    sums, wrong = Counter(), []
    rows = options.rows()
    for number, row in enumerate(rows):
        found, run = runner.run(options.program_of(row, number))
        sums["rows"] += 1
        sums["phases entered for certain"] += len(run.oracle.entered)
        wrong += [(number, each) for each in found]
        for each in found:
            print(f"row {number}: {each}", flush=True)
    sums["pairs"] = options.pairs_in(rows)
    return sums, wrong


def _machine():
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else ()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{next(iter(models), platform.machine())}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def _table(sums, wrong):
    rows = [*sums.items(), ("**disagreements**", f"**{len(wrong)}**")]
    text = "\n".join(f"| {name} | {value if isinstance(value, str) else format(value, ',')} |" for name, value in rows)
    return f"| what | figure |\n| --- | --- |\n{text}\n" + "".join(f"\n- {seed}: {each}" for seed, each in wrong[:50])


def _page(command, seconds, told, array):
    today = dt.datetime.now(dt.UTC).date()
    return f"""# One story, whoever tells it

Written by `{command}` on {today}, in {seconds:.0f} s. Machine: {_machine()}; CPython {platform.python_version()}.

A random program is a real process: phases as blocks, tokens, decorators and generators, in threads, pools, tasks,
forked children and workers, which fail, are handled, retried, paused and moved, and an end that is clean or not. What
the live sink, the store, the journal, `records`, `postmortem`, `recover`, spans, events and the summary say of each
phase is compared fact by fact, and with what the program itself wrote down before and after each operation.

## Random programs

{_table(*told)}

## All pairs of options

{_table(*array)}
"""


def main():
    """Run what the command line asks for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=500, help="random programs to run (default 500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="in so many processes (default 2)")
    parser.add_argument("--shrink", action="store_true", help="make programs small that disagree")
    parser.add_argument("--no-array", action="store_true", help="leave out the covering array")
    parser.add_argument("--no-page", action="store_true", help="leave RESULTS.md as it is")
    parser.add_argument("--keep", metavar="DIR", help="leave what the runs wrote in DIR")
    asked = parser.parse_args()
    began = time.monotonic()
    seeds = range(asked.seed, asked.seed + asked.programs)
    jobs = 1 if asked.keep else min(asked.jobs, len(seeds))
    told = run_parts(seeds, jobs, shrinks=asked.shrink, kept=asked.keep)
    array = (Counter(), []) if asked.no_array or asked.no_page else run_array()
    command = " ".join(["python tests/story/run.py", *sys.argv[1:]])
    page = _page(command, time.monotonic() - began, told, array)
    print(page)
    if not asked.no_page:
        PAGE.write_text(page, encoding="utf-8")
    return 1 if told[1] or array[1] else 0


if __name__ == "__main__":
    sys.exit(main())
