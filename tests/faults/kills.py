"""Kills real writers at random instants and asks their journals for the truth.

A *zygote* has imported everything and forks victims: each is a process of its own with a tracker of its own, a small
journal, threads, tasks, deep nesting and what else there is (`victim`). After each call has returned it says so over a
pipe. At some instant it is killed; then what it confirmed is compared with what its journal says.

As a program: `python kills.py zygote`, which reads `PATH SEED` lines and answers with pids.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SESSION = "killed"
MAX_BYTES = 1024 * 1024
LONGEST_S = 60.0
WORKERS = 2
TASKS = 3
DEEP = 40
BURST = 60
BULK = 700
LARGE_BULK = 30_000
# By whatever ends a process at once: the kernel delivers them alike, and none of them runs any code of the victim's.
SIGNALS = (signal.SIGKILL,) * 5 + (signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT)
ACTORS = 2 + WORKERS + TASKS


# --- the victim -------------------------------------------------------------------------------------------------------


class Report:
    """Says over the pipe what has been done, line by line, after the call that a line tells of has returned."""

    def __init__(self, fd):
        self._fd = fd
        self._lock = threading.Lock()

    def say(self, *what):
        """Write one line."""
        line = (json.dumps(what) + "\n").encode()
        with self._lock:
            while line:
                line = line[os.write(self._fd, line) :]


class Actor:
    """Does something with phases on one lane, by chance, and reports all of it; or only every so often."""

    def __init__(self, tracker, report, chance):
        self.tracker = tracker
        self.report = report
        self.chance = chance

    def enter(self, name, attributes=None):
        """Enter a phase and say so."""
        phase = self.tracker.enter_phase(name, attributes, sync=self.chance.random() < 0.1)
        self.report.say("entered", *self.facts(phase))
        return phase

    def facts(self, phase):
        """Return what is to be found in the journal."""
        parent = phase.parent
        attributes = phase._attributes or {}
        where = [phase._lane.thread_name, None if parent is None else parent.scope_id]
        return [phase._sequence, list(phase.path), phase._entered_ns, phase._step, attributes, *where]

    def exit(self, phase, error=None):
        """Say that the exit begins, end the phase, and say that."""
        self.report.say("exits", phase._sequence)
        phase.__exit__(None if error is None else type(error), error, None)
        self.report.say("ended", phase._sequence, phase._status.value, phase._ended_ns, self.late(phase))

    def late(self, phase):
        """Return what was set after enter."""
        return (phase._extra.late if phase._extra else None) or {}

    def attributes(self):
        """Return none, a few or many."""
        kind = self.chance.random()
        if kind < 0.4:
            return None
        if kind < 0.9:
            return {"batch": self.chance.randrange(1_000), "file": "x\u00e9" * 5, "rate": self.chance.random()}
        return {f"k{number}": "y" * 500 for number in range(self.chance.randrange(1, 12))}

    def burst(self):
        """Do many boundaries that are reported afterwards, if there is time for it."""
        ended = []
        count = self.chance.randrange(5, BURST)
        self.report.say("will", 2 * count)
        for _ in range(count):
            with self.tracker.enter_phase("burst"), self.tracker.enter_phase("inner", self.attributes()) as phase:
                pass
            ended.append([*self.facts(phase), phase._status.value, phase._ended_ns])
        self.report.say("burst", ended)

    def bulk(self):
        """Use up room quickly: boundaries of which only the number is reported."""
        count = self.chance.randrange(1, LARGE_BULK if self.chance.random() < 0.1 else BULK)
        self.report.say("will", count)
        for _ in range(count):
            with self.tracker.enter_phase("bulk"):
                pass
        self.report.say("bulk", count)

    def nest(self):
        """Nest deeply, and unwind."""
        phases = [self.enter(f"level {depth % 7}") for depth in range(self.chance.randrange(2, DEEP))]
        while phases:
            self.exit(phases.pop())

    def fail(self):
        """Fail, with late attributes."""
        phase = self.enter("load", self.attributes())
        phase.set_attribute("late", self.chance.randrange(100))
        self.exit(phase, ValueError("bad batch"))

    def pause(self):
        """Pause, do something else, resume."""
        phase = self.enter("paused", self.attributes())
        phase.pause()
        self.exit(self.enter("between"))
        phase.resume()
        self.exit(phase)

    def retry(self):
        """Try once more."""
        first = self.enter("try")
        self.exit(first, OSError("gone"))
        second = self.tracker.retry(first)
        self.report.say("entered", *self.facts(second))
        self.exit(second)

    def new_name(self):
        """See a name for the first time."""
        self.exit(self.enter(f"name {self.chance.randrange(10**9)} {'z' * self.chance.randrange(200)}"))

    def act(self):
        """Do one of these."""
        often = (self.burst, self.bulk)
        kinds = (*often, *often, *often, self.nest, self.fail, self.pause, self.retry, self.new_name)
        self.chance.choice(kinds)()


def _main_loop(tracker, report, seed):
    actor = Actor(tracker, report, random.Random(seed))
    with ThreadPoolExecutor(1, thread_name_prefix="taker") as pool:
        train = actor.enter("train", {"epochs": 3})
        for step in range(10**9):
            tracker.set_step(step)
            outer = actor.enter("step")
            for _ in range(3):
                actor.act()
            handed = actor.enter("handed over", {"step": step})
            report.say("exits", handed._sequence)
            token = handed.release()
            pool.submit(lambda token=token: tracker.acquire(token).close()).result()
            report.say("ended", handed._sequence, None, None, {})
            actor.exit(outer)
        actor.exit(train)


def _thread_loop(tracker, report, seed):
    actor = Actor(tracker, report, random.Random(seed))
    actor.enter("load", {"worker": seed})
    while True:
        actor.act()


async def _task_loop(tracker, report, seed):
    actor = Actor(tracker, report, random.Random(seed))
    actor.enter("fetch", {"task": seed})
    while True:
        phase = actor.enter("request")
        await asyncio.sleep(0)
        actor.act()
        await asyncio.sleep(0)
        actor.exit(phase)


async def _tasks(tracker, report, seed):
    await asyncio.gather(*(_task_loop(tracker, report, seed + number) for number in range(TASKS)))


def victim(directory, seed):
    """Work until somebody ends this process."""
    from stormphase import PhaseTracker
    from stormphase.journal._options import JournalOptions

    fd = os.open(Path(directory) / "report", os.O_WRONLY)
    report = Report(fd)
    tracker = PhaseTracker(
        session_id=SESSION,
        rank=0,
        world_size=1,
        bridge=None,
        summary=False,
        journal=JournalOptions(directory, max_bytes=MAX_BYTES),
    ).start()
    report.say("started")
    chance = random.Random(seed)
    for _ in range(WORKERS):
        threading.Thread(target=_thread_loop, args=(tracker, report, chance.randrange(10**6)), daemon=True).start()
    threading.Thread(
        target=asyncio.run, args=(_tasks(tracker, report, chance.randrange(10**6)),), name="loop", daemon=True
    ).start()
    _main_loop(tracker, report, seed)


def zygote():
    """Fork a victim for each line, say its pid, and take note of its end."""
    import stormphase._tracker
    import stormphase.journal._options  # noqa: F401 - so that victims need not

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        directory, seed = line.split()
        pid = os.fork()
        if not pid:
            os.close(0)
            os.close(1)
            try:
                victim(directory, int(seed))
            finally:
                os._exit(9)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        os.waitpid(pid, 0)


# --- the killer -------------------------------------------------------------------------------------------------------


class Killer:
    """Starts victims, kills them and reads what they had confirmed."""

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

    def kill_one(self, directory, seed):
        """Return the lines that a victim had written before it was killed, after so many of them as chance decides."""
        directory.mkdir()
        pipe = directory / "report"
        os.mkfifo(pipe)
        fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            self._zygote.stdin.write(f"{directory} {seed}\n")
            self._zygote.stdin.flush()
            pid = int(self._zygote.stdout.readline())
            return _lines(fd, pid, random.Random(seed), signal_of(seed))
        finally:
            os.close(fd)


def signal_of(seed):
    """Return the signal that ends the victim of a seed."""
    return SIGNALS[seed % len(SIGNALS)]


def _lines(fd, pid, chance, number):
    """Read until so many bytes have come, kill, and read the rest."""
    # Kills come between two bytes of a report and, by the moment the scheduler lets pass, anywhere after them.
    limit = int(2 ** chance.uniform(6, 18))
    data = bytearray()
    is_killed = False
    while True:
        ready, _, _ = select.select([fd], [], [], LONGEST_S)
        assert ready, "the victim does nothing any more"
        piece = os.read(fd, 1 + chance.randrange(65_536))
        data += piece
        if not is_killed and len(data) >= limit:
            select.select([], [], [], chance.random() * 0.002)
            os.kill(pid, number)
            is_killed = True
        if not piece and is_killed:
            break
        if not piece:
            select.select([], [], [], 0.001)  # Not opened yet.
        assert piece or is_killed or not data, f"the victim ended by itself: {bytes(data[-500:])}"
    return [json.loads(line) for line in bytes(data).split(b"\n")[:-1]]


class Confirmed:
    """What a victim had said."""

    def __init__(self, lines):
        self.open = {}
        self.ending = {}
        self.ended = {}
        self.bulk = 0
        self.announced = 0
        for line in lines:
            getattr(self, "_" + line[0])(*line[1:])

    def _started(self):
        pass

    def _entered(self, *facts):
        self.open[facts[0]] = facts

    def _will(self, count):
        self.announced += count

    def _bulk(self, count):
        self.bulk += count
        self.announced -= count

    def _exits(self, sequence):
        self.ending[sequence] = self.open.pop(sequence)

    def _ended(self, sequence, status, ended_ns, late):
        self.ended[sequence] = (*self.ending.pop(sequence), status, ended_ns, late)

    def _burst(self, phases):
        self._bulk(2 * len(phases))
        self.bulk -= len(phases)
        for facts in phases:
            self.ended[facts[0]] = (*facts, {})


def check(lines, file, where):
    """Compare; return how much was compared and what the journal holds."""
    from stormphase._model import PhaseStatus
    from stormphase.journal import read_journal

    confirmed = Confirmed(lines)
    image = read_journal(file)
    opened = {phase.sequence: phase for phase in image.open}
    ended = {phase.sequence: phase for phase in image.ended}
    assert (len(image.open), len(image.ended)) == (len(opened), len(ended)), f"{where}: a phase is told twice"
    assert not opened.keys() & ended.keys(), f"{where}: a phase is open and has ended"
    assert () == image.damage, where
    for sequence, facts in confirmed.open.items():
        assert sequence in opened, f"{where}: {facts[1]} is not open"
        phase = opened[sequence]
        found = [phase.sequence, list(phase.path), phase.entered_ns, phase.step]
        found += [dict(phase.attributes), phase.thread_name, phase.parent_scope_id]
        assert list(facts) == found, f"{where}: {facts[1]}"
        assert phase.status in (PhaseStatus.ACTIVE, PhaseStatus.PAUSED), where
    for sequence, facts in confirmed.ended.items():
        _, path, entered_ns, step, attributes, _, _, status, ended_ns, late = facts
        assert sequence not in opened, f"{where}: {path} has ended, and is open"
        if sequence in ended:
            phase = ended[sequence]
            found = [list(phase.path), phase.entered_ns, phase.step, dict(phase.attributes)]
            assert [path, entered_ns, step, {**attributes, **late}] == found, f"{where}: {path}"
            if status is not None:
                assert (status, ended_ns) == (phase.status.value, phase.ended_ns), f"{where}: {path}"
    spare = ACTORS + confirmed.announced + len(confirmed.ending)
    known = {**opened, **ended}.keys()
    unknown = known - confirmed.open.keys() - confirmed.ended.keys() - confirmed.ending.keys()
    assert len(unknown) <= spare + confirmed.bulk, f"{where}: {len(unknown)} phases were invented"
    total = sum(totals.count for totals in image.totals.values()) + image.unfolded
    least = len(confirmed.ended) + confirmed.bulk
    assert least <= total + image.unwritten <= least + spare, f"{where}: {total} ended, {least} were confirmed"
    if not image.unfolded and not image.unwritten:
        counts = {}
        for facts in confirmed.ended.values():
            counts[tuple(facts[1])] = counts.get(tuple(facts[1]), 0) + 1
        for path, count in counts.items():
            found = image.totals[path].count if path in image.totals else 0
            assert count <= found <= count + spare, f"{where}: {path} ended {found} times, {count} were confirmed"
    return {
        "open": len(confirmed.open),
        "ended": least,
        "in records": len(ended),
        "folded": total - image.unfolded - len(ended),
        "unfolded": image.unfolded,
        "unwritten": image.unwritten,
        "amid an exit": bool(confirmed.ending),
    }


def run(directory, seeds, say=None, on_mismatch=None):
    """Kill a victim for each seed, and return what was compared, added up.

    Args:
        directory: where.
        seeds: what chance is made of.
        say: called after each with its seed and what was compared so far.
        on_mismatch: called with what is wrong, instead of raising it.
    """
    sums = {}
    with Killer() as killer:
        for seed in seeds:
            place = directory / f"seed-{seed}"
            lines = killer.kill_one(place, seed)
            files = list((place / SESSION).glob("*.journal"))
            found = {"kills": 1, f"by {signal_of(seed).name}": 1}
            if lines:
                try:
                    assert 1 == len(files), f"seed {seed}: {len(files)} journals"
                    found |= check(lines, files[0], f"seed {seed}")
                except Exception as error:
                    if on_mismatch is None:
                        raise
                    on_mismatch(f"seed {seed}: {error!r}")
            else:
                found["before the first phase"] = 1
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value
            for file in (*files, place / "report"):
                file.unlink()
            if say is not None:
                say(seed, sums)
    return sums


if __name__ == "__main__":
    zygote()
