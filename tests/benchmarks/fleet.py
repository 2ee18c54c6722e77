"""Measures what it takes to look at many ranks: `postmortem` of dead ones, and a refresh of `top` over living ones.

    python tests/benchmarks/fleet.py                  # two minutes and 4 GiB of disk, on the stormphase this Python has
    python tests/benchmarks/fleet.py --ranks 512      # less of both

The dead: some real processes write journals of 1 MiB at full speed, and are killed by SIGKILL while they do; each is
then copied many times under other ranks. The living: so many forked processes that each run a training loop of some
hundred phases a second. `top` is measured in this process, from the look at the files to the lines of the screen.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from stormphase import PhaseTracker
from stormphase._clock import SystemClock
from stormphase.analysis._places import DEFAULT_HANG_NS
from stormphase.cli._top_view import Choices, screen_of
from stormphase.cli._top_watch import Watch
from stormphase.journal import JournalOptions
from stormphase.journal import _format as journal_format

MIB = 1024 * 1024
WRITERS = 8
LIVING = 64
REFRESHES = 30
POSTMORTEM_BUDGET = "< 20 s, < 300 MiB"
TOP_BUDGET = "< 100 ms"


def write_until_killed(directory: Path, rank: int, ready: int) -> None:
    """Write phases as fast as they can be written, and say so once the journal is full of them."""
    tracker = PhaseTracker(
        session_id="fleet", rank=rank, world_size=WRITERS, bridge=None, journal=JournalOptions(directory, max_bytes=MIB)
    ).start()
    tracker.enter_phase("train", {"epochs": 3})
    step = 0
    while True:
        tracker.set_step(step)
        with tracker.enter_phase("step"):
            for name in ("data_loading", "forward", "backward", "optimizer"):
                with tracker.enter_phase(name):
                    pass
        step += 1
        if step == 20_000:
            os.write(ready, b".")


def forked(work: object, *arguments: object) -> int:
    """Return the pid of a child that does some work for ever."""
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)  # type: ignore[operator]
        finally:
            os._exit(1)
    return pid


def make_dead(directory: Path, ranks: int) -> None:
    """Fill a directory with the journals of killed ranks."""
    written = directory / "written"
    started, ready = os.pipe()
    # All live until all are done: a rank that begins when no other lives begins the next attempt, not this one.
    pids = [forked(write_until_killed, written, rank, ready) for rank in range(WRITERS)]
    for _ in pids:
        os.read(started, 1)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    journals = sorted((written / "fleet").glob("*.journal"))
    fleet = directory / "dead" / "fleet"
    fleet.mkdir(parents=True)
    for rank in range(ranks):
        data = bytearray(journals[rank % len(journals)].read_bytes()[:MIB])
        give_rank(data, rank, ranks)
        (fleet / f"rank-{rank:05d}.attempt-0.pid-{rank + 1}.0.journal").write_bytes(data)
    shutil.rmtree(written)


def give_rank(data: bytearray, rank: int, ranks: int) -> None:
    """Make a journal that of another rank."""
    length = int.from_bytes(data[88:92], "little")
    facts = json.loads(data[journal_format.FACTS_AT : journal_format.FACTS_AT + length])
    raw = json.dumps({**facts, "rank": rank, "local_rank": rank, "world_size": ranks}).encode()
    data[journal_format.FACTS_AT : journal_format.FACTS_AT + len(raw)] = raw
    data[88:96] = len(raw).to_bytes(4, "little") + zlib.crc32(raw).to_bytes(4, "little")


def measure_postmortem(directory: Path, ranks: int) -> tuple[float, float]:
    """Return seconds of one `stormphase postmortem` of the dead, and the peak MiB of the largest of its processes."""
    command = [sys.executable, "-m", "stormphase.cli", "postmortem", str(directory / "dead")]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 1, process.returncode  # something died
    assert f"\n{ranks:,} killed\n" in said, said[:1_000]  # and all were looked at
    return seconds, usage.ru_maxrss / 1024


def train(directory: Path, rank: int, ready: int) -> None:
    """Run a training loop for ever."""
    tracker = PhaseTracker(session_id="living", rank=rank, world_size=LIVING, bridge=None, journal=directory).start()
    os.write(ready, b".")
    step = 0
    with tracker.enter_phase("train"):
        while True:
            tracker.set_step(step)
            with tracker.enter_phase("step"):
                for name in ("data_loading", "forward", "backward", "all_reduce"):
                    with tracker.enter_phase(name, sync=name == "all_reduce"):
                        time.sleep(0.01)
            step += 1


def measure_top(directory: Path) -> tuple[float, float, float]:
    """Return median and worst milliseconds of a refresh of `top`, and the median of its CPU time."""
    started, ready = os.pipe()
    pids = [forked(train, directory / "living", rank, ready) for rank in range(LIVING)]
    try:
        for _ in pids:
            os.read(started, 1)
        watch = Watch(directory / "living", SystemClock())
        walls, cpus = [], []
        for number in range(REFRESHES + 5):
            time.sleep(0.2)
            wall, cpu = time.perf_counter(), time.process_time()
            watch.look()
            lines = screen_of(watch.snapshot(), Choices(), width=120, height=40, hang_ns=DEFAULT_HANG_NS)
            assert len(lines) > 20, lines
            if number >= 5:  # The first ones read all there is.
                walls.append(time.perf_counter() - wall)
                cpus.append(time.process_time() - cpu)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return statistics.median(walls) * 1e3, max(walls) * 1e3, statistics.median(cpus) * 1e3


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=4_096)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        wall_ms, worst_ms, cpu_ms = measure_top(directory)
        make_dead(directory, arguments.ranks)
        runs = [measure_postmortem(directory, arguments.ranks) for _ in range(3)]
    print(f"CPython {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end\n")
    print("| what | budget | figure |\n| --- | --- | --- |")
    times = ", ".join(f"{seconds:.1f} s" for seconds, _ in runs)
    peak = max(mib for _, mib in runs)
    memory = f"{peak:.0f} MiB in the largest of its {1 + (os.cpu_count() or 1)} processes"
    print(f"| `postmortem` of {arguments.ranks:,} journals of 1 MiB | {POSTMORTEM_BUDGET} | {times}; {memory} |")
    refresh = f"median {wall_ms:.0f} ms, worst {worst_ms:.0f} ms, CPU {cpu_ms:.0f} ms"
    print(f"| refresh of `top` over {LIVING} living ranks, they and it on these cores | {TOP_BUDGET} | {refresh} |")


if __name__ == "__main__":
    main()
