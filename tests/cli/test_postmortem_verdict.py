"""The verdict of `stormphase postmortem`: text, JSON and exit code say one thing, of hand-made and of real ranks."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from stormphase.cli._output import Page
from stormphase.cli._postmortem import write_json
from stormphase.cli._postmortem_text import write_postmortem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

jobs = sys.modules["jobs"]
USUAL = {"train / step": [0.35] * 119, "train / step / all_reduce": [0.012] * 119}


def named(job: Any) -> None:
    """One rank raised, and the others were ended."""
    for rank in range(3):
        job.rank(rank, "train,9", verdict="dead", heartbeat_s=3)
    job.rank(3, note=jobs.said("exception", 5, error_type="ValueError", error_message="x"), verdict="dead")


def tied(job: Any) -> None:
    """Two were killed at one time, and the others live."""
    for rank in range(4):
        job.rank(rank, "train,9", verdict="dead" if rank < 2 else "alive")


def untold(job: Any) -> None:
    """All were killed at one time."""
    for rank in range(4):
        job.rank(rank, "train,9", verdict="dead")


def hung_together(job: Any) -> None:
    """All have come to one point, and none leaves it."""
    for rank in range(4):
        job.rank(rank, "train,999", "train / step,400", "train / step / all_reduce,399,sync", usual=USUAL)


def well(job: Any) -> None:
    """All walk their steps."""
    for rank in range(4):
        job.rank(rank, "train,9", "train / step,0.1", usual=USUAL)


class _Selection:
    """Nothing but this attempt."""

    other_sessions = unreadable_others = stray_ranks = ()


@pytest.mark.parametrize("make", [named, tied, untold, hung_together, well], ids=lambda make: make.__name__)
def test_text_and_json_say_one_thing(job: Any, make: Callable[[Any], None]) -> None:
    """The answer, whom it names, why, and the place of each suspect; who is named is the head of the suspects."""
    make(job)
    postmortem = job.diagnose()
    stream, told = io.StringIO(), io.StringIO()
    page = Page(stream, {"COLUMNS": "100"})
    write_postmortem(page, postmortem, jobs.NOW_WALL_NS, None)
    page.show()
    write_json(told, postmortem, _Selection(), [])  # type: ignore[arg-type]
    found = json.loads(told.getvalue())
    verdict, suspects = found["verdict"], found["suspects"]
    text = " ".join(stream.getvalue().split())
    ranks = ", ".join(map(str, verdict["ranks"])) if len(verdict["ranks"]) < 2 else f"{verdict['ranks'][0]}-"
    assert f"{verdict['answer']}" in text
    assert verdict["why"] in text
    assert ranks in text
    assert sorted(verdict["ranks"]) == sorted(each["rank"] for each in suspects if each["place"] == 1)
    assert {len(verdict["ranks"]) > 1} >= {each["tied"] for each in suspects if each["place"] == 1}
    assert bool(suspects) == (verdict["answer"] in {"named", "tie"})
    assert (verdict["answer"] == "well") == postmortem.is_well
    first = [line for line in stream.getvalue().splitlines() if line.startswith("  1. ")]
    assert len(verdict["ranks"]) == len(first)
    assert all(("tied" in line) == (verdict["answer"] == "tie") for line in first)


RANK = """
import os, signal, sys
from stormphase import PhaseTracker

directory, rank, world_size, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
tracker = PhaseTracker("job", session_id="job-1", rank=rank, world_size=world_size, journal=directory, bridge=None)
tracker.start()
print("started", flush=True)
sys.stdin.readline()
if how == "left":
    tracker.stop()
elif how == "exits":
    tracker.enter("train")
    sys.exit(3)
elif how == "lives on":
    tracker.stop()
    print("stopped", flush=True)
    sys.stdin.readline()
elif how == "caught":
    try:
        with tracker.enter_phase("train"), tracker.enter_phase("step"):
            raise ValueError("bad batch")
    except ValueError:
        pass
    tracker.stop()
    sys.exit(1)
else:
    tracker.enter("train")
    tracker.enter("all_reduce", sync=True)
    print("waits", flush=True)
    sys.stdin.readline()
"""


class Ranks:
    """Real ranks of one job, each of which goes on when it is told."""

    def __init__(self, runs: Path, *hows: str) -> None:
        """Start them; each waits before it does anything."""
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(runs), str(rank), str(len(hows)), how],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, how in enumerate(hows)
        ]
        for rank in range(len(hows)):
            self.heard(rank)

    def heard(self, rank: int) -> str:
        """Return the next line that a rank prints."""
        stream = self.processes[rank].stdout
        assert stream is not None
        return stream.readline().strip()

    def go_on(self, rank: int) -> None:
        """Let a rank go on."""
        stream = self.processes[rank].stdin
        assert stream is not None
        stream.write("\n")
        stream.flush()

    def ended(self, rank: int) -> int:
        """Let a rank go on to its end; return its exit code."""
        self.go_on(rank)
        return self.processes[rank].wait(60)

    def kill(self, rank: int) -> None:
        """End a rank as a launcher does."""
        self.processes[rank].kill()
        self.processes[rank].wait(60)


@contextmanager
def ranks(runs: Path, *hows: str) -> Iterator[Ranks]:
    """Have real ranks, and none of them afterwards."""
    with ExitStack() as stack:
        found = Ranks(runs, *hows)
        for process in found.processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        yield found


@pytest.mark.parametrize(
    ("how", "code", "rule"), [("caught", 1, "first_to_end"), ("exits", 3, "left_before_the_others")]
)
def test_a_rank_that_left_in_order_is_named(
    runs: Path, command_json: Callable[..., Any], how: str, code: int, rule: str
) -> None:
    """It caught what failed, or exited without `with`; the launcher then killed the others, which are none."""
    with ranks(runs, "waits", how, "waits") as found:
        for rank in (0, 2):
            found.go_on(rank)
            assert "waits" == found.heard(rank)
        assert code == found.ended(1)
        # Their workers write signs of life five times a second: wait until they have shown some after its end.
        _, before = command_json()
        ended_ns = before["ranks"][1]["ended_ns"]
        while min(command_json()[1]["ranks"][rank]["alive_until_ns"] for rank in (0, 2)) <= ended_ns:
            pass
        for rank in (0, 2):
            found.kill(rank)
        exit_code, told = command_json()
    assert (1, "named", [1], rule) == (exit_code, *(told["verdict"][key] for key in ("answer", "ranks", "rule")))
    assert (1, 1, False) == tuple(told["suspects"][0][key] for key in ("rank", "place", "tied"))


def test_a_stopped_rank_is_named(runs: Path, command_json: Callable[..., Any]) -> None:
    """All are in the collective, and the kernel says which of them may not run."""
    with ranks(runs, "waits", "waits", "waits") as found:
        for rank in range(3):
            found.go_on(rank)
            assert "waits" == found.heard(rank)
        stopped = found.processes[1].pid
        os.kill(stopped, signal.SIGSTOP)
        os.waitid(os.P_PID, stopped, os.WSTOPPED | os.WNOWAIT)
        exit_code, told = command_json()
        os.kill(stopped, signal.SIGCONT)
    assert (1, True, "named", [1]) == (exit_code, told["is_hung"], told["verdict"]["answer"], told["verdict"]["ranks"])
    assert "rank 1 is stopped by a signal, as the kernel says" == told["verdict"]["why"]


def test_a_rank_that_is_still_there_after_all_others_is_named(runs: Path, command_json: Callable[..., Any]) -> None:
    """Its session has ended in order like theirs, and its process has not."""
    with ranks(runs, "left", "lives on", "left") as found:
        for rank in (0, 2):
            assert 0 == found.ended(rank)
        found.go_on(1)
        assert "stopped" == found.heard(1)
        exit_code, told = command_json("--hang-s", "0")
        assert (1, "named", [1], "still_there") == (
            exit_code,
            *(told["verdict"][key] for key in ("answer", "ranks", "rule")),
        )
        exit_code, told = command_json()
        assert (0, "well") == (exit_code, told["verdict"]["answer"])
        found.ended(1)
    exit_code, told = command_json("--hang-s", "0")
    assert (0, "well", []) == (exit_code, told["verdict"]["answer"], told["suspects"])
