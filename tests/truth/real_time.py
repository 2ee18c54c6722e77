"""Small jobs in real time, with nothing simulated: three Python processes each, and a launcher that they talk to."""

# ruff: noqa: TID251 - real time is what it is about

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
import time

WORLD_SIZE = 3
CULPRIT = 1
FAILED = {"caught": 1, "exits": 3}  # exit codes
SETTLE_S = 60.0
OVERDUE_S = 3.2  # longer than the 2 s for which nothing is overdue
LAUNCHER_S = 2.5  # until the launcher ends the others

RANK = """
import os, signal, sys, threading
from stormphase import PhaseTracker

directory, rank, event, marks = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "marked"

def meet(tracker, name):
    with tracker.enter_phase(name, sync=marks):
        if rank == 1 and step == 8 and event == "stopped":
            print("stuck", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        print("arrive", flush=True)
        if not sys.stdin.readline():
            raise ConnectionResetError(104, "Connection reset by peer")

def plant():
    if event == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if event == "segmentation fault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if event in ("raises", "caught"):
        raise ValueError("bad batch")
    if event == "exits":
        sys.exit(3)
    if event == "stuck":
        print("stuck", flush=True)
        threading.Event().wait()

def train(tracker):
    global step
    with tracker.enter_phase("train"):
        for step in range(10):
            tracker.set_step(step)
            with tracker.enter_phase("step"):
                with tracker.enter_phase("data_loading"):
                    pass
                with tracker.enter_phase("forward"):
                    if rank == 1 and step == 8:
                        plant()
                meet(tracker, "all_reduce")
    with tracker.enter_phase("teardown"):
        meet(tracker, "destroy")
        if rank == 1 and event == "stuck at the end":
            print("stuck", flush=True)
            threading.Event().wait()

tracker = PhaseTracker("job", session_id="job", rank=rank, world_size=3, journal=directory, bridge=None)
if event == "exits":
    tracker.start()
    train(tracker)
elif event == "caught":
    tracker.start()
    failed = False
    try:
        train(tracker)
    except ValueError:
        failed = True
    tracker.stop()
    sys.exit(failed)
else:
    with tracker:
        train(tracker)
    if rank == 1 and event == "stuck after its with":
        print("stuck", flush=True)
        threading.Event().wait()
"""

# What is planted, and whether peers hear of an end, and whether the launcher ends them.
EVENTS = {
    "killed": {"hear": False, "ends": False},
    "segmentation fault": {"hear": True, "ends": False},
    "stopped": {"hear": False, "ends": False},
    "raises": {"hear": True, "ends": False},
    "caught": {"hear": False, "ends": True},
    "exits": {"hear": False, "ends": True},
    "stuck": {"hear": False, "ends": False},
    "stuck at the end": {"hear": False, "ends": False},
    "stuck after its with": {"hear": False, "ends": False},
    "nothing": {"hear": False, "ends": False},
}


class RealJob:
    """Three ranks, and the launcher to which each says that it has arrived, and which says when all may go on."""

    def __init__(self, directory, event, marks):
        """Start the ranks."""
        self.directory = directory
        self.event = event
        self._how = EVENTS[event]
        self._arrived = set()
        self._settled = set()  # Who waits for the others, does nothing more, or is gone.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("STORMPHASE_")}
        self.ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(directory), str(rank), event, marks],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environ,
                cwd=directory,
            )
            for rank in range(WORLD_SIZE)
        ]

    def serve(self):
        """Let the ranks go on until each of them waits in vain, hangs, or is gone."""
        with selectors.DefaultSelector() as selector:
            for rank, process in enumerate(self.ranks):
                selector.register(process.stdout, selectors.EVENT_READ, rank)
            until_s = time.monotonic() + SETTLE_S
            while len(self._settled) < WORLD_SIZE and time.monotonic() < until_s:
                for key, _ in selector.select(1.0):
                    line = key.fileobj.readline()
                    if not line:
                        selector.unregister(key.fileobj)
                    self._take(key.data, line.strip())

    def _take(self, rank, line):
        self._settled.add(rank)
        if line == b"arrive":
            self._arrived.add(rank)
            if len(self._arrived) == WORLD_SIZE:
                self._arrived.clear()
                self._settled.clear()
                for process in self.ranks:
                    process.stdin.write(b"go\n")
                    process.stdin.flush()
        elif not line:
            self.ranks[rank].wait(SETTLE_S)
            if self._how["hear"]:
                for process in self.ranks:
                    process.stdin.close()
            if self._how["ends"] and self.ranks[rank].returncode == FAILED[self.event]:
                threading.Event().wait(LAUNCHER_S)
                for process in self.ranks:
                    process.send_signal(signal.SIGTERM)

    def end(self):
        """End what is still there."""
        for process in self.ranks:
            process.kill()
            process.wait(SETTLE_S)
            process.stdout.close()
            process.stdin.close()
