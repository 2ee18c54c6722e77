"""What the launchers start: a rank that writes down who it is, and then works, dies, fails or starts others.

    planted.py FOLDER LABEL RANKS DEED

Journals are in FOLDER/runs; what the processes say, and by what they wait for each other, is in FOLDER/LABEL.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from stormphase import ConfigurationError, PhaseTracker

if TYPE_CHECKING:
    from collections.abc import Callable

VICTIM = 1  # the rank that is killed, or fails
DEADLINE_S = 60  # for the other ranks: an importing one may need long on a machine that is busy
LOOK_S = 0.02
AGAIN = "PLANTED_AGAIN"
WITHOUT_JOURNAL = "PLANTED_WITHOUT_JOURNAL"


class Place:
    """Where the processes of one launch say who they are, and wait for each other."""

    def __init__(self, folder: str, label: str, ranks: str) -> None:
        self.runs = None if WITHOUT_JOURNAL in os.environ else Path(folder) / "runs"
        self.folder = Path(folder) / label
        self.ranks = int(ranks)
        self.folder.mkdir(parents=True, exist_ok=True)

    def tracker(self) -> PhaseTracker:
        """Return a tracker with nothing that would cost time but its journal."""
        return PhaseTracker("planted", journal=self.runs, bridge=None)

    def say(self, kind: str, **facts: object) -> None:
        """Write something down that others see wholly or not at all."""
        path = self.folder / f"{kind}.{os.getpid()}.json"
        path.with_suffix(".new").write_text(json.dumps(facts), encoding="utf-8")
        path.with_suffix(".new").rename(path)

    def say_who(self, tracker: PhaseTracker, kind: str = "rank") -> None:
        """Write down who this process is."""
        who = tracker.identity
        names = ("rank", "world_size", "local_rank", "node_rank", "launcher", "session_id", "attempt")
        self.say(kind, pid=os.getpid(), **{name: getattr(who, name) for name in names})

    def count(self, kind: str) -> int:
        """Return how many processes have said something of that kind."""
        return len(self.pids(kind))

    def pids(self, kind: str) -> list[str]:
        """Return which processes have said something of that kind."""
        return [path.name.split(".")[1] for path in self.folder.glob(f"{kind}.*.json")]

    def wait(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait until something is so."""
        never = threading.Event()
        for _ in range(int(DEADLINE_S / LOOK_S)):
            if is_so():
                return
            never.wait(LOOK_S)
        raise TimeoutError(f"{what} in {DEADLINE_S} s, of {self.ranks} ranks")

    def meet(self, kind: str = "rank") -> None:
        """Wait for the other ranks, so that all live at one time."""
        self.wait(lambda: self.count(kind) >= self.ranks, f"not every rank said {kind!r}")

    def wait_to_be_ended(self) -> None:
        """Wait as a rank does whose peer is gone."""
        self.wait(lambda: False, "the launcher did not end this rank")

    def wait_until_gone(self) -> None:
        """Wait until a rank was killed, and its process is no more."""
        self.wait(lambda: any(not Path(f"/proc/{pid}").exists() for pid in self.pids("killed")), "no rank is gone")


def work(place: Place) -> None:
    """Do what ranks do when all is well."""
    with place.tracker() as tracker, tracker.enter_phase("train"):
        place.say_who(tracker)
        place.meet()


def die(place: Place) -> None:
    """Have one rank killed in its step while the others wait for it, until the launcher ends them."""
    _have_one_killed(place, place.wait_to_be_ended)


def die_alone(place: Place) -> None:
    """Have one rank killed in its step; the others wait until it is gone, and go on without it."""
    _have_one_killed(place, place.wait_until_gone)


def _have_one_killed(place: Place, wait: Callable[[], None]) -> None:
    with place.tracker() as tracker, tracker.enter_phase("train"):
        place.say_who(tracker)
        place.meet()
        if tracker.identity.rank == VICTIM:
            with tracker.enter_phase("step"):
                place.wait(lambda: place.count("waiting") >= place.ranks - 1, "not every other rank waits")
                place.say("killed")
                os.kill(os.getpid(), signal.SIGKILL)
        with tracker.enter_phase("all_reduce", sync=True):
            place.say("waiting")
            wait()


def fail_once(place: Place) -> None:
    """Have one rank fail when all are there, and have all work well when they are started again."""
    _work_when_restarted(place, fails=True)


def work_when_restarted(place: Place) -> None:
    """Wait to be ended by somebody who says so first, and work well when started again."""
    _work_when_restarted(place, fails=False)


def _work_when_restarted(place: Place, *, fails: bool) -> None:
    kind = "again" if place.count("failed") else "rank"
    with place.tracker() as tracker, tracker.enter_phase("train"):
        place.say_who(tracker, kind)
        place.meet(kind)
        if kind == "again":
            return
        if fails and tracker.identity.rank == VICTIM:
            place.say("failed")
            raise ValueError("planted")
        place.wait_to_be_ended()


def start_programs(place: Place) -> None:
    """Have each rank start two programs that have trackers of their own."""
    with place.tracker() as tracker, tracker.enter_phase("train"):
        place.say_who(tracker)
        place.meet()
        for kind, environment in (("carried", tracker.environment()), ("plain", dict(os.environ))):
            command = [sys.executable, __file__, place.folder.parent, f"{place.folder.name}-{kind}", "1", "work"]
            subprocess.run(command, env=environment, check=False)


def replace_itself(place: Place) -> None:
    """Be another program in the same process, once, while phases are open."""
    kind = "again" if AGAIN in os.environ else "rank"
    with place.tracker() as tracker, tracker.enter_phase("train"):
        place.say_who(tracker, kind)
        place.meet(kind)
        if kind == "rank":
            os.environ[AGAIN] = "1"
            os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606 - what is tested


DEEDS = {
    deed.__name__: deed
    for deed in (work, die, die_alone, fail_once, work_when_restarted, start_programs, replace_itself)
}


def main(folder: str, label: str, ranks: str, deed: str) -> None:
    """Do one deed; a start that is refused is written down as well."""
    place = Place(folder, label, ranks)
    try:
        DEEDS[deed](place)
    except ConfigurationError as error:
        place.say("refused", error=str(error))
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
