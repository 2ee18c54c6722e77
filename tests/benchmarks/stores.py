"""Measures what a SqliteStore takes in a second on its own thread, and that its memory stays flat.

    python tests/benchmarks/stores.py                      # half a minute, on the stormphase that this Python has
    python tests/benchmarks/stores.py --records 10000000   # for the memory

The first two rows are one thread that hands over phases which ended before, as the drain thread does: wall time, and
its own CPU time, which other work on the machine disturbs less. In the third another thread runs Python without a pause
meanwhile, so every statement waits for the GIL. The last is the whole way, from the phases of a training thread that
enters them in bursts to the row on disk. Each figure is the best of some rounds; rows are counted at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stormphase import PhaseTracker, RankIdentity
from stormphase._recorder import PhaseRecorder
from stormphase.stores import SqliteStore
from stormphase.stores._feed import StoreFeed
from stormphase.stores._owners import SessionFacts

if TYPE_CHECKING:
    from collections.abc import Iterator

BUDGET = 50_000
ATTRIBUTES = {"loss": 0.5, "epoch": 3, "lr": 0.001}
BLOCK = 20_000
IDENTITY = RankIdentity("bench", 0, 0, 0, 1, 1, None, "here", "single")


def feed_phases(folder: Path, records: int, attributes: dict[str, Any] | None) -> dict[str, float]:
    """Hand over phases that have ended, block by block; returns seconds, CPU seconds and the growth of memory."""
    lanes = PhaseRecorder().lane_set("bench", 0)
    store = SqliteStore(folder / "runs.db")
    feed = StoreFeed(store, lanes, SessionFacts.of(IDENTITY, name=None, started_ns=0, environ={}, wish=None))
    feed.flush(10)
    taken: list[Any] = []
    lanes.enter_queues = lanes.exit_queues = (taken.append,)
    wall_s = cpu_s = 0.0
    warm_kib = 0
    for start in range(0, records, BLOCK):
        for _ in range(BLOCK):
            lanes.enter_phase("step", attributes).close()
        wall, cpu = time.perf_counter(), time.thread_time()
        for entry in taken:
            feed.take(entry)
        if not feed.flush(60):
            raise SystemExit("the store did not take all")
        wall_s += time.perf_counter() - wall
        cpu_s += time.thread_time() - cpu
        taken.clear()
        if start == 0:
            warm_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - warm_kib
    store.close()
    check(folder / "runs.db", records)
    return {"wall": records / wall_s, "cpu": records / cpu_s, "grown_kib": grown_kib}


@contextlib.contextmanager
def busy_thread() -> Iterator[None]:
    """Run Python in another thread without a pause."""
    stop: list[bool] = []

    def run() -> None:
        total = 0
        while not stop:
            for number in range(1_000):
                total += number

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.append(True)
        thread.join()


def track(folder: Path, records: int) -> dict[str, float]:
    """Enter and exit phases on this thread in bursts that the queue holds; returns how many a second reach the disk."""
    store = SqliteStore(folder / "runs.db")
    tracker = PhaseTracker(bridge=None, store=store).start()
    began = time.perf_counter()
    for _ in range(0, records, BLOCK):
        for _ in range(BLOCK):
            tracker.enter_phase("step", ATTRIBUTES).close()
        if not tracker.flush(60):
            raise SystemExit("the store did not take all")
    wall_s = time.perf_counter() - began
    tracker.stop()
    check(folder / "runs.db", records)
    return {"wall": records / wall_s}


def check(file: Path, records: int) -> None:
    """Count the rows, and have SQLite look at the file."""
    connection = sqlite3.connect(file)
    (found,) = connection.execute("SELECT count(*) FROM phases WHERE status = 'succeeded'").fetchone()
    (sound,) = connection.execute("PRAGMA quick_check").fetchone()
    connection.close()
    if (found, sound) != (records, "ok"):
        raise SystemExit(f"{found} rows of {records}, and the file is {sound}")


def best(rounds: int, measure: Any, *arguments: Any) -> dict[str, float]:
    """Return the best of each figure; of memory the worst."""
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), *arguments))
    return {name: max(each[name] for each in found) for name in found[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000, help="in each round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the best counts (default: %(default)s)")
    options = parser.parse_args()
    records = max(BLOCK, options.records // BLOCK * BLOCK)
    print(f"records a second, best of {options.rounds} rounds of {records:,}; the budget is {BUDGET:,}")
    for name, attributes in (("no attributes", None), ("three attributes", ATTRIBUTES)):
        found = best(options.rounds, feed_phases, records, attributes)
        print(
            f"  drain thread, {name}: {found['wall']:,.0f} wall, {found['cpu']:,.0f} of CPU time; "
            f"memory grew by {found['grown_kib']:,.0f} KiB"
        )
    with busy_thread():
        found = best(options.rounds, feed_phases, records, ATTRIBUTES)
    print(f"  the same beside a thread that runs Python without a pause: {found['wall']:,.0f} wall")
    found = best(options.rounds, track, records)
    print(f"  tracker, three attributes, from enter to disk: {found['wall']:,.0f} wall")


if __name__ == "__main__":
    main()
