"""Real faults of a store's file: writers that are killed at random instants, and a database that somebody else holds.

    python tests/stores/ordeals.py kills 500         # a minute; ends with the seed at the first row that is not right
    python tests/stores/ordeals.py lock 60000 30     # phases, and for how many seconds another process holds the file

The suite runs a few kills, and locks without a wait. A *zygote* has imported everything and forks victims, so that a
kill costs a tenth of a second. What a victim confirms it says over a pipe, after the call that confirms has returned.
"""

# ruff: noqa: T201, TID251 - prints figures, and measures

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LONGEST_S = 60.0
EVERY = 100

# --- the victim -------------------------------------------------------------------------------------------------------


def work(directory, seed):
    """Run phases that print what they are into a store, and say after each flush how many are confirmed."""
    from stormphase import PhaseTracker
    from stormphase.stores import SqliteStore

    fd = os.open(directory / "report", os.O_WRONLY)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the process ends by a kill
    chance = random.Random(seed)
    tracker = PhaseTracker(bridge=None, summary=False, capture=True, store=SqliteStore(directory / "runs.db")).start()
    number = 0
    with tracker.enter_phase("train", {"n": -1}):
        while True:
            for _ in range(chance.choice((1, 3, 40, 700))):
                with tracker.enter_phase("step", {"n": number}):
                    print("line", number)
                    if number % 7 == 0:
                        with contextlib.suppress(ValueError), tracker.enter_phase("check", {"n": number}):
                            print("check", number)
                            raise ValueError(number)
                number += 1
            if tracker.flush(LONGEST_S):
                os.write(fd, b"%d\n" % number)


def step(directory, seed):
    """Write batches, and die at the one instruction of SQLite's machine that chance decides."""
    from stormphase._store_conformance import as_ended, example_record
    from stormphase.stores import SqliteStore

    fd = os.open(directory / "report", os.O_WRONLY)
    store = SqliteStore(directory / "runs.db")
    store.open()
    left = [random.Random(seed).randrange(1, 60_000)]

    def count():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    store._connection.set_progress_handler(count, 1)
    for batch in range(10**6):
        numbers = range(batch * 40, batch * 40 + 40)
        records = [example_record(path=("step",), attributes={"n": n}, sequence=n + 1, session_id="s") for n in numbers]
        store.begin(records)
        store.end([as_ended(record, output=_lines(f"line {record.attributes['n']}")) for record in records])
        os.write(fd, b"%d\n" % (batch * 40 + 40))


def _lines(text):
    from stormphase._record import OutputLine

    return (OutputLine(1, "stdout", text),)


VICTIMS = {"work": work, "step": step}


def zygote():
    """Fork a victim for each line, say its pid, and take note of its end."""
    import stormphase._capturing
    import stormphase._store_conformance
    import stormphase.stores._sqlite  # noqa: F401 - so that victims need not

    for line in sys.stdin:
        directory, seed, what = line.split()
        pid = os.fork()
        if not pid:
            try:
                VICTIMS[what](Path(directory), int(seed))
            finally:
                os._exit(9)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        os.waitpid(pid, 0)
        sys.stdout.write("ended\n")
        sys.stdout.flush()


# --- the killer -------------------------------------------------------------------------------------------------------


class Killer:
    """Starts victims, kills them at random instants, and compares what they had confirmed with what is stored."""

    def __enter__(self):
        """Start the zygote."""
        self._zygote = subprocess.Popen(
            [sys.executable, __file__, "zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
        return self

    def __exit__(self, *exc_info):
        self._zygote.stdin.close()
        self._zygote.wait(LONGEST_S)
        self._zygote.stdout.close()

    def kill_one(self, directory, seed, what):
        """Return how many phases a victim had confirmed, and which rows were seen committed, before it was killed."""
        directory.mkdir()
        os.mkfifo(directory / "report")
        fd = os.open(directory / "report", os.O_RDONLY | os.O_NONBLOCK)
        try:
            self._zygote.stdin.write(f"{directory} {seed} {what}\n")
            self._zygote.stdin.flush()
            pid = int(self._zygote.stdout.readline())
            chance = random.Random(seed)
            said = self._listen(fd, b"", 1)
            seen = set()
            if what == "work":
                said = self._listen(fd, said, chance.choice((1, 2, 5, 9)))
                select.select([], [], [], chance.random() * 0.02)
                seen = _committed(directory / "runs.db")
                select.select([], [], [], chance.random() * 0.005)
                os.kill(pid, signal.SIGKILL)
            assert self._zygote.stdout.readline() == "ended\n"
            said = self._listen(fd, said, None)
        finally:
            os.close(fd)
        lines = said.split(b"\n")[:-1]
        return int(lines[-1]) if lines else 0, seen

    @staticmethod
    def _listen(fd, said, lines):
        """Read until so many lines have come or, if None or the writer has gone, until the end."""
        has_begun = lines is None or bool(said)
        while lines is None or said.count(b"\n") < lines:
            ready, _, _ = select.select([fd], [], [], LONGEST_S)
            assert ready, "the victim does nothing any more"
            piece = os.read(fd, 65_536)
            said += piece
            has_begun = has_begun or bool(piece)
            if not piece:
                if has_begun or not _is_open(fd):
                    break
                select.select([], [], [], 0.001)  # Not opened yet.
        return said


def _is_open(fd):
    # A pipe that nobody has opened for writing yet reads as ended, too; one whose writer has gone hangs up.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return not any(event & select.POLLHUP for _, event in poll.poll(0))


def _committed(file):
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=LONGEST_S)
    try:
        return set(connection.execute("SELECT scope_id, status FROM phases"))
    finally:
        connection.close()


def check(directory, what, confirmed, seen):
    """Compare; returns how many rows there are, and how many of those are unfinished.

    Raises:
        AssertionError: if a row is not whole, one that was confirmed is missing, or the file is not sound.
    """
    from stormphase.stores import SqliteStore

    store = SqliteStore(directory / "runs.db")
    records = list(store.query(kind="phase"))
    stored = _committed(store.path)
    unfinished = [record for record in records if not record.is_ended]
    for record in records:
        number = record.attributes["n"]
        if record.is_ended:
            word = "check" if record.name == "check" else "line"
            assert [f"{word} {number}"] == [line.text for line in record.output if line.stream == "stdout"], record
            assert ("failed" if word == "check" else "succeeded") == record.status.value, record
            assert (word == "check") == (record.traceback is not None), record
        else:
            # A tracker's store does not know what an open phase has said; the other victim writes records of its own.
            known = () if what == "step" else None
            assert ("active", None, known) == (record.status.value, record.ended_ns, record.output), record
    ended = {record.attributes["n"] for record in records if record.is_ended and record.name == "step"}
    missing = set(range(confirmed)) - ended
    assert not missing, f"{len(missing)} of {confirmed} confirmed phases are missing: {sorted(missing)[:5]}"
    for scope_id, status in seen:
        # What was open may have ended since, what had ended is as it was.
        assert (scope_id, status) in stored or (status == "active" and scope_id in {each for each, _ in stored})
    assert [("ok",)] == store._read("PRAGMA integrity_check")
    if what == "work":
        lost = store.close_lost()
        assert {record.scope_id for record in unfinished} <= {record.scope_id for record in lost}
    return len(records), len(unfinished)


def run(directory, seeds, say=None):
    """Kill one victim for each seed, and compare; returns sums."""
    sums = {"kills": 0, "rows": 0, "confirmed": 0, "unfinished": 0}
    with Killer() as killer:
        for seed in seeds:
            what = "step" if seed % 2 else "work"
            confirmed, seen = killer.kill_one(directory / str(seed), seed, what)
            try:
                rows, unfinished = check(directory / str(seed), what, confirmed, seen)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, {what}: {error}") from error
            sums["kills"] += 1
            sums["rows"] += rows
            sums["confirmed"] += confirmed
            sums["unfinished"] += unfinished
            if say is not None:
                say(seed, sums)
    return sums


# --- a file that somebody else holds ----------------------------------------------------------------------------------

HOLDER = """
import sqlite3, sys

connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
connection.close()
"""


@contextlib.contextmanager
def held(file):
    """Have another process hold a database for as long as the block lasts, or until what is given is called."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"

    def let_go():
        if holder.poll() is None:
            holder.communicate("\n", LONGEST_S)

    try:
        yield let_go
    finally:
        let_go()


def exact(stats, rows):
    """Compare a tracker's counts of its store with the rows that are there, to the entry.

    Raises:
        AssertionError: if an entry is neither stored nor counted as dropped.
    """
    counts, store = stats["sinks"]["store"], stats["store"]
    assert counts["offered"] == counts["handed_over"] + counts["dropped"], counts
    assert counts["queued"] == 0, counts
    # A phase is two entries; of some the enter was dropped, of others the exit, which the phase itself still told.
    entries = 2 * rows - store["unknown_begins"] - store["recovered_ends"]
    assert counts["handed_over"] == entries, (counts, store, rows)


def hold(phases, hold_s):
    """Run phases while another process holds the database for so many seconds, and print what it did to them."""
    from stormphase import PhaseTracker
    from stormphase.stores import SqliteStore

    def burst(count):
        worst_s, began_s, cpu_s = 0.0, time.perf_counter(), time.thread_time()
        for _ in range(count):
            at_s = time.perf_counter()
            tracker.enter_phase("step").close()
            worst_s = max(worst_s, time.perf_counter() - at_s)
        each_us = (time.perf_counter() - began_s) / count * 1e6
        cpu_us = (time.thread_time() - cpu_s) / count * 1e6
        return f"{each_us:.2f} us a phase, {cpu_us:.2f} us of CPU time, the longest {worst_s * 1e3:.2f} ms"

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "runs.db"
        SqliteStore(file).open()
        tracker = PhaseTracker(bridge=None, store=SqliteStore(file), summary=False).start()
        burst(2_000)
        assert tracker.flush(LONGEST_S)
        print(f"free: {burst(20_000)}")
        assert tracker.flush(LONGEST_S)
        with held(file) as let_go:
            began_s = time.monotonic()
            print(f"held: {burst(phases)}")
            assert not tracker.flush(0.5)
            threading.Event().wait(max(0.0, hold_s - (time.monotonic() - began_s)))
            let_go()
            print(f"held for {time.monotonic() - began_s:.1f} s")
        began_s = time.monotonic()
        assert tracker.flush(LONGEST_S)
        print(f"all written {time.monotonic() - began_s:.1f} s later")
        tracker.stop()
        stats = tracker.stats()
        print(stats["sinks"]["store"], stats["store"])
        exact(stats, sum(1 for _ in SqliteStore(file).query(kind="phase", status="succeeded")))


def main(what, *numbers):
    """Do what the command line says."""
    if what == "zygote":
        zygote()
    elif what == "lock":
        hold(int(numbers[0]), float(numbers[1]))
    else:
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            sums = run(
                Path(directory),
                range(*map(int, numbers)),
                lambda seed, sums: print(f"{seed + 1}: {sums}", flush=True) if (seed + 1) % EVERY == 0 else None,
            )
        print(f"{sums}, {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
