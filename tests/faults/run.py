"""The long fault runs, whose figures stand in RESULTS.md beside this file, which they write.

    python -m pip install -e '.[test]' atheris
    python tests/faults/run.py --mutations 1000000 --atheris-s 300

Ends with 1 if one journal did not tell the truth: its seed and what was wrong stand in the page, and
`--kills 1 --first SEED --no-page` runs it again. Without `--atheris-s` atheris need not be installed.
"""

# ruff: noqa: T201, TID251 - prints figures, and measures

from __future__ import annotations

import argparse
import datetime as dt
import importlib.util
import itertools
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_HERE = Path(__file__).parent
_FUZZ = _HERE.parent / "journal" / "test_fuzz.py"


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_load("faults_conftest", _HERE / "conftest.py")

import faults_kills as kills  # noqa: E402 - made importable above
import faults_scripts as scripts  # noqa: E402 - likewise
from faults_stores import DOORS  # noqa: E402 - likewise

KILLS = 1_600  # 1,000 of them with SIGKILL
EVERY = 100
PAGE = _HERE / "RESULTS.md"
FUZZ_SEED = 7
_ATHERIS = re.compile(r"Done (\d+) runs in (\d+) second")


def random_kills(count, first):
    """Kill so many writers at random instants; return figures, and what was wrong."""
    wrong = []

    def say(seed, sums):
        if (seed + 1) % EVERY == 0:
            print(f"{seed + 1}: {sums}", flush=True)

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        sums = kills.run(Path(directory), range(first, first + count), say, wrong.append)
    return {**sums, "seconds": time.monotonic() - began}, wrong


def single_stores():
    """Look at the journal after every single store of every script; return how often that was, and what was wrong."""
    looks, wrong = {}, []
    for script, doors in itertools.product(scripts.SCRIPTS, DOORS):
        key = f"{script.__name__}, {doors}"
        looks[key] = 0

        def look(play, store, key=key):
            looks[key] += 1
            try:
                play.truth.check(scripts.image_of(play.file.content()), f"{key}, store {store}, {play.act}")
            except Exception as error:  # The reader must not raise either.
                wrong.append(f"{key}, store {store}: {error!r}")

        with tempfile.TemporaryDirectory() as directory:
            scripts.perform(script, Path(directory) / "rank-0.journal", look, doors)
    return looks, wrong


def mutations(count):
    """Read so many mutations of a journal; return how many could be read, and what was wrong."""
    try:
        return _load("faults_fuzz", _FUZZ).fuzz(count, FUZZ_SEED), []
    except Exception as error:
        return 0, [f"fuzz, seed {FUZZ_SEED}: {error!r}"]


def atheris_for(seconds):
    """Let atheris mutate for so long; return how many inputs it tried, and what was wrong."""
    with tempfile.TemporaryDirectory() as directory:
        limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=1024", f"-seed={FUZZ_SEED}"]
        command = [sys.executable, _FUZZ, "atheris", *limits]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    found = _ATHERIS.search(done.stderr)
    if done.returncode or found is None:
        return 0, [f"atheris ended with {done.returncode}: {done.stderr[-2_000:]}"]
    return int(found[1]), []


def _machine():
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else ()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{next(iter(models), platform.machine())}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def _rows(rows):
    return "\n".join(f"| {name} | {value if isinstance(value, str) else format(value, ',')} |" for name, value in rows)


def _page(command, killed, looks, mutated, *, fuzzed, wrong):
    """Return RESULTS.md."""
    today = dt.datetime.now(dt.UTC).date()
    signals = [(f"killed by {name.removeprefix('by ')}", n) for name, n in killed.items() if name.startswith("by ")]
    rows = [
        ("processes killed at a random instant", killed.get("kills", 0)),
        *sorted(signals),
        ("of these before their journal was complete", killed.get("before the first phase", 0)),
        ("of these with an exit, pause or hand-over under way", killed.get("amid an exit", 0)),
        (
            "confirmed open phases, each found open, with its path, times, step, parent, thread and attributes",
            killed.get("open", 0),
        ),
        ("confirmed ended phases, none found open, each found ended or counted", killed.get("ended", 0)),
        ("of all ended phases: found whole in records", killed.get("in records", 0)),
        ("in totals only", killed.get("folded", 0)),
        ("only counted, for want of room or time", killed.get("unfolded", 0) + killed.get("unwritten", 0)),
        *((f"looks after each single store: {name}", count) for name, count in looks.items()),
        ("looks after a single store, in all", sum(looks.values())),
        (f"random mutations read, seed {FUZZ_SEED}", mutated[0]),
        ("of these still told something, the others were refused by an error of the library's", mutated[1]),
        ("inputs tried by atheris, guided by coverage", fuzzed[0] if fuzzed else "not run"),
        ("for so many seconds", fuzzed[1] if fuzzed else "not run"),
        ("**mismatches**", f"**{len(wrong)}**"),
    ]
    told = "".join(f"\n- {each}" for each in wrong)
    return f"""# Journals of processes that were killed

Written by `{command}` on {today}. Machine: {_machine()}; CPython {platform.python_version()}.

A *kill* is a signal to a real process with {kills.ACTORS} actors: a main loop, a thread that takes phases over,
{kills.WORKERS} threads and {kills.TASKS} asyncio tasks, which nest, fail, pause, retry, hand over and fill a journal of
1 MiB many times. Each call is confirmed over a pipe after it has returned; the kill comes after so many bytes of that
as chance decides. A *look* reads the journal right after one store of the writer's, for every store of a script of
boundaries; CI also kills real processes at some of them (`test_every_store.py`). How processes end otherwise is in
`test_endings.py`, `test_disks.py` and `test_interrupts_journal.py`.

A mismatch is a confirmed phase that is missing, wrong or told twice, a phase that nobody entered, a count that is not
that of the phases, or a reader that raises anything but its own errors.

| what | figure |
| --- | --- |
{_rows(rows)}
{told}"""


def main():
    """Run what the command line asks for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=KILLS, help=f"writers to kill (default {KILLS})")
    parser.add_argument("--first", type=int, default=0, help="seed of the first kill (default 0)")
    parser.add_argument("--mutations", type=int, default=100_000, help="journals to damage at random (default 100000)")
    parser.add_argument("--atheris-s", type=int, default=0, help="seconds for atheris (default 0: it is not run)")
    parser.add_argument("--no-page", action="store_true", help="print the page, and leave RESULTS.md as it is")
    asked = parser.parse_args()
    killed, wrong = random_kills(asked.kills, asked.first)
    print(f"{asked.kills} kills took {killed.pop('seconds'):.0f} s", flush=True)
    looks, wrong_looks = single_stores()
    told, wrong_mutations = mutations(asked.mutations)
    tried, wrong_inputs = atheris_for(asked.atheris_s) if asked.atheris_s else (0, [])
    wrong = [*map(str, wrong), *wrong_looks, *wrong_mutations, *wrong_inputs]
    command = " ".join(["python tests/faults/run.py", *sys.argv[1:]])
    fuzzed = (tried, asked.atheris_s) if asked.atheris_s else None
    page = _page(command, killed, looks, (asked.mutations, told), fuzzed=fuzzed, wrong=wrong)
    print(page)
    if not asked.no_page:
        PAGE.write_text(page, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
