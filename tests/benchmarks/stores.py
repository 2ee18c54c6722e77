"""Measures what a SqliteStore takes in a second on its own thread, that its memory stays flat, and what training pays.

    python tests/benchmarks/stores.py                      # half a minute, on the stormphase that this Python has
    python tests/benchmarks/stores.py --records 10000000   # for the memory

The first two rows are one thread that hands over phases which ended before, as the drain thread does: wall time, and
its own CPU time, which other work on the machine disturbs less. In the third another thread runs Python without a pause
meanwhile, so every statement waits for the GIL. The last is the whole way, from the phases of a training thread that
enters them in bursts to the row on disk. Each figure is the best of some rounds; rows are counted at the end.

The second panel is what one enter and exit costs the thread that does it: without a store, with a sink that does
nothing, and with a SqliteStore, in rounds that take turns in one process. Its wall time is how long the phases take
while the store's thread works beside them; its CPU time is what the training thread itself has to do. A sink has two
calls a phase, each one append to a queue, and a store is to cost nothing beyond that.
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

from measure import Plan, Subject, costs

from stormphase import PhaseTracker, RankIdentity
from stormphase._owner_records import SessionFacts
from stormphase._recorder import PhaseRecorder
from stormphase.stores import SqliteStore
from stormphase.stores._feed import StoreFeed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BUDGET = 50_000
ATTRIBUTES = {"loss": 0.5, "epoch": 3, "lr": 0.001}
BLOCK = 20_000
TURNS = 40
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


class Trained(Subject):
    """Phases at the root of a tracker."""

    def __init__(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Remember what the tracker is to have besides."""
        self.name = name
        self._make = make

    def open(self) -> None:
        """Start it."""
        self._tracker = PhaseTracker(bridge=None, summary=False, **self._make()).start()

    def batch(self, count: int) -> None:
        """Enter and exit `count` phases."""
        enter_phase = self._tracker.enter_phase
        for _ in range(count):
            enter_phase("step").close()

    def settle(self) -> None:
        """Have all of it stored."""
        if not self._tracker.flush(60):
            raise SystemExit("the store did not take all")

    def close(self) -> None:
        """Stop it; nothing may have been dropped."""
        self._tracker.stop()
        for name, counts in self._tracker.stats()["sinks"].items():
            if counts["dropped"]:
                raise SystemExit(f"{name} dropped {counts['dropped']}")


def train(rounds: int) -> dict[str, tuple[float, float]]:
    """Return what a phase costs the thread that enters it, in ns of wall time and of CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        subjects = [
            Trained("without a store", dict),
            Trained("a sink that does nothing", lambda: {"sinks": [lambda _: None]}),
            Trained("SqliteStore", lambda: {"store": SqliteStore(Path(folder) / "runs.db")}),
        ]
        for subject in subjects:
            subject.open()
        try:
            plan = Plan(rounds=rounds, sample_ns=5_000_000)
            wall = costs(subjects, plan, clock=time.perf_counter_ns)
            cpu = costs(subjects, plan, clock=time.thread_time_ns)
        finally:
            for subject in subjects:
                subject.close()
    return {name: (wall[name].best_ns, cpu[name].best_ns) for name in wall}


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
    turns = TURNS * options.rounds
    print(f"one enter and exit on the training thread, best of {turns} turns")
    paid = train(turns)
    base = paid["without a store"]
    for name, (wall_ns, cpu_ns) in paid.items():
        ratios = f"{wall_ns / base[0]:.2f} x, {cpu_ns / base[1]:.2f} x of CPU time"
        print(f"  {name}: {wall_ns:,.0f} ns wall, {cpu_ns:,.0f} ns of CPU time; {ratios}")


if __name__ == "__main__":
    main()
