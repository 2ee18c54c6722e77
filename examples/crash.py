"""Eight real ranks train together; one is killed, one hangs, six wait for them: who it was is in their journals.

Run it:      python examples/crash.py
With OTLP:   OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 python examples/crash.py
To watch it: python examples/crash.py runs --keep 60, and `stormphase top runs` in another terminal

The ranks share their gradients through a ring of sockets, as data-parallel training does. In one step rank 3 is killed
by SIGKILL, as if it had run out of memory, and rank 5 opens a file of its data that never opens, as on a storage that
does not answer. When every rank that lives has reported itself stuck, the launcher asks `stormphase postmortem`, and
ends them all. What they left open can then be sent to a backend with `stormphase recover`.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import stormphase
from stormphase.journal import JournalImage, read_directory
from stormphase.otel import OTelBridge, configure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RANKS = 8
KILLED, HUNG = 3, 5
BATCH = 16
LEARNING_RATE = 0.5
FLUSH_EVERY = 4  # steps: of what has ended, only what is still in OpenTelemetry's queue is left to recovery by a kill
LIMIT_S = 2.0  # how long loading and all-reduce may take before they are reported
START_LIMIT_S = 90.0
LOOK_S = 0.2


class Ring:
    """The sockets to the next rank and from the one before."""

    def __init__(self, rank: int, to_next: int, from_previous: int) -> None:
        self.rank = rank
        self.to_next = socket.socket(fileno=to_next)
        self.from_previous = socket.socket(fileno=from_previous)

    def all_reduce(self, gradient: Array) -> Array:
        """Return the mean of all ranks' gradients, the same to the bit on each; waits for all of them."""
        passed_on = gradient.tobytes()
        found = {self.rank: passed_on}
        for hop in range(1, RANKS):
            self.to_next.sendall(passed_on)
            passed_on = self._receive(len(passed_on))
            found[(self.rank - hop) % RANKS] = passed_on
        parts = [np.frombuffer(found[rank]) for rank in range(RANKS)]
        mean: Array = np.mean(parts, axis=0).reshape(gradient.shape)
        return mean

    def _receive(self, size_bytes: int) -> bytes:
        received = bytearray()
        while len(received) < size_bytes:
            chunk = self.from_previous.recv(size_bytes - len(received))
            if not chunk:
                raise ConnectionError("the rank before is gone")
            received += chunk
        return bytes(received)


class Shards:
    """One file a step with this rank's share of the digits: 64 intensities an image, and then the digit it shows."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.rank = rank

    def load(self, step: int) -> tuple[Array, Array]:
        """Return images, as rows that end in a 1 for the bias, and one row of ten for each that says what it shows."""
        rows = np.fromfile(shard(self.folder, self.rank, step)).reshape(-1, 65)
        images, labels = rows[:, :64] / 16.0, rows[:, 64].astype(int)
        return np.hstack([images, np.ones((len(rows), 1))]), np.eye(10)[labels]


def shard(folder: Path, rank: int, step: int) -> Path:
    """Return where a rank finds its digits of a step."""
    return folder / f"rank-{rank}.step-{step}"


def train(tracker: stormphase.PhaseTracker, ring: Ring, shards: Shards, last_step: int) -> None:
    """Train softmax regression, each rank on its own digits, until the step in which everything stops."""
    weights = np.zeros((65, 10))
    with tracker.enter_phase("rendezvous", sync=True):
        ring.all_reduce(weights)
    with tracker.enter_phase("train", {"batch": BATCH, "learning_rate": LEARNING_RATE}):
        for step in range(last_step + 1):
            if step and step % FLUSH_EVERY == 0:
                tracker.flush(timeout_s=5.0)
            tracker.set_step(step)
            with tracker.enter_phase("step"):
                with tracker.enter_phase("data_loading", timeout_s=LIMIT_S):
                    images, wanted = shards.load(step)  # for rank 5 the last one never opens
                with tracker.enter_phase("forward"):
                    scores = images @ weights
                    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
                    found = exponentials / exponentials.sum(axis=1, keepdims=True)
                with tracker.enter_phase("backward"):
                    gradient = images.T @ (found - wanted) / len(images)
                    if (ring.rank, step) == (KILLED, last_step):
                        os.kill(os.getpid(), signal.SIGKILL)
                # `sync`: ranks wait for each other here; with `timeout_s` they report it if they wait for long.
                with tracker.enter_phase("all_reduce", sync=True, timeout_s=LIMIT_S):
                    gradient = ring.all_reduce(gradient)
                with tracker.enter_phase("optimizer"):
                    weights -= LEARNING_RATE * gradient


def run_rank(directory: Path, folder: Path, last_step: int, to_next: int, from_previous: int) -> None:
    """Be one rank; who it is, its environment says."""
    threading.Thread(target=die_with_launcher, daemon=True).start()
    with (
        configure(service_name="crash", jsonl_dir=None if otlp_endpoint() else directory / "spans") as telemetry,
        stormphase.PhaseTracker(
            "crash", journal=directory, bridge=OTelBridge(telemetry.tracer_provider, telemetry.logger_provider)
        ) as tracker,
    ):
        rank = tracker.identity.rank
        train(tracker, Ring(rank, to_next, from_previous), Shards(folder, rank), last_step)


def otlp_endpoint() -> str | None:
    """Return where the environment says that spans go."""
    return os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None


def die_with_launcher() -> None:
    """Wait for the launcher to be gone, however it goes, and go too."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def write_shards(folder: Path, last_step: int) -> None:
    """Deal the digits of scikit-learn out to all ranks and steps; rank 5's last file is one that nobody fills."""
    from sklearn import datasets  # type: ignore[import-untyped]  # noqa: PLC0415 - not on the ranks: it takes a second

    images, labels = datasets.load_digits(return_X_y=True)
    rows = np.hstack([images, labels[:, None]]).astype(float)
    rng = np.random.default_rng(0)
    for step in range(last_step + 1):
        for rank in range(RANKS):
            shard(folder, rank, step).write_bytes(rng.choice(rows, BATCH).tobytes())
    shard(folder, HUNG, last_step).unlink()
    os.mkfifo(shard(folder, HUNG, last_step))  # opening a pipe for reading waits until somebody opens it for writing


class Job(NamedTuple):
    """What the launcher started."""

    directory: Path
    session_id: str
    processes: list[subprocess.Popen[bytes]]

    def journals(self) -> list[JournalImage]:
        """Return what the ranks' journals say now, of those that have one."""
        session = self.directory / self.session_id
        found = read_directory(session) if session.is_dir() else ()
        return [journal for journal in found if isinstance(journal, JournalImage)]


@contextmanager
def launched(directory: Path, folder: Path, last_step: int) -> Iterator[Job]:
    """Start all ranks, with the variables that torchrun would set; at the end of the block none of them is left."""
    session_id = f"crash-{secrets.token_hex(4)}"
    sizes = {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "STORMPHASE_SESSION_ID": session_id}
    # Each rank's spans leave within half a second, so that those of the waiting ranks are there before their end.
    common = {"OTEL_BSP_SCHEDULE_DELAY": "500", **os.environ, **sizes}
    with ExitStack() as stack:
        # Kept open here: as on a network that is down, nobody is told that the rank at the other end has died.
        links = [[stack.enter_context(end) for end in socket.socketpair()] for _ in range(RANKS)]
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(end, processes)
        for rank in range(RANKS):
            ring = links[rank][0].fileno(), links[rank - 1][1].fileno()
            arguments = [*map(str, (directory, "--rank-of", folder, "--step", last_step, "--ring", *ring))]
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, __file__, *arguments],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,  # which ends when this process does
                stderr=subprocess.STDOUT,
                pass_fds=ring,
                start_new_session=True,  # Ctrl-C is for the launcher, which ends the ranks
            )
            processes.append(process)
        yield Job(directory, session_id, processes)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End the ranks, each by its id, and wait until they are gone; hung ones would not hear of a gentler signal."""
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()


def wait_until_stuck(job: Job) -> None:
    """Wait until every rank that lives has reported that the phase it is in takes too long."""
    pause = threading.Event()
    for _ in range(int(START_LIMIT_S / LOOK_S)):
        dead = {rank for rank, process in enumerate(job.processes) if process.poll() is not None}
        if dead - {KILLED} or any(process.returncode not in (None, -signal.SIGKILL) for process in job.processes):
            break
        stuck = {journal.identity.rank for journal in job.journals() if is_overdue(journal)}
        if dead and len(stuck | dead) == RANKS:
            return
        pause.wait(LOOK_S)
    sys.exit(f"the ranks did not get stuck as they should; they ended with {[p.poll() for p in job.processes]}")


def is_overdue(journal: JournalImage) -> bool:
    """Return whether a phase that is open now has been reported for being so for too long."""
    reported = {stacks.sequence for stacks in journal.stacks}
    return any(phase.sequence in reported for phase in journal.open)


def stormphase_command(*arguments: object) -> None:
    """Show a command of stormphase as one would type it, and run it."""
    words = [*map(str, arguments)]
    print(f"\n$ {shlex.join(['stormphase', *words])}", flush=True)
    subprocess.run([sys.executable, "-m", "stormphase.cli", *words], check=False)  # noqa: S603 - it ends with 1: not well


def launch(directory: Path, last_step: int, keep_s: float) -> None:
    """Start the job, wait until it is stuck, say what became of it, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), last_step)
        with launched(directory, Path(folder), last_step) as job:
            print(f"session {job.session_id}: {RANKS} ranks are training", flush=True)
            wait_until_stuck(job)
            for rank, process in enumerate(job.processes):
                if process.returncode is not None:
                    print(f"rank {rank} was ended by {signal.Signals(-process.returncode).name}; no other rank moves")
            stormphase_command("postmortem", directory)
            if keep_s:
                keep(job, keep_s)
    print("\nall ranks have been ended. What they left open, their backend learns with")
    print(f"  stormphase recover {shlex.quote(str(directory))} --otlp {otlp_endpoint() or 'http://localhost:4318'}")


def keep(job: Job, seconds: float) -> None:
    """Leave the job as it is for a while, or until Ctrl-C."""
    command = shlex.join(["stormphase", "top", str(job.directory)])
    print(f"\nthe job stays for {seconds:g} s, or until Ctrl-C; watch it from another terminal with\n  {command}")
    sys.stdout.flush()
    with suppress(KeyboardInterrupt):
        threading.Event().wait(seconds)


def main() -> None:
    """Launch the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description="A training job that gets stuck, and how to find out why.")
    parser.add_argument("directory", nargs="?", type=Path, default=Path("runs"), help="where journals go")
    parser.add_argument("--step", type=int, default=40, help="the step in which it gets stuck")
    parser.add_argument("--keep", metavar="SECONDS", type=float, default=0.0, help="how long to leave it stuck")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ring", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of is not None:
        run_rank(options.directory, options.rank_of, options.step, *options.ring)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        launch(options.directory, options.step, options.keep)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
