"""The reader on what a real process wrote: killed in full flight, still running, and read by another reader, too."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import journal_independent_reader as independent_reader
import pytest

from stormphase.journal import read_directory, read_journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WRITER = """
import json, sys, threading
from stormphase import PhaseTracker
from stormphase.journal._options import JournalOptions

journal = JournalOptions(sys.argv[1], max_bytes=int(sys.argv[2]) << 20)
tracker = PhaseTracker("job", journal=journal, bridge=None, session_id="s", rank=2, world_size=4)
tracker.start()
told = threading.Lock()
ROUNDS = float(sys.argv[3])

def tell(phase, **more):
    with told:
        print(json.dumps({"scope_id": phase.scope_id, "path": phase.path, **more}), flush=True)

def work(number):
    with tracker.enter_phase("worker", attributes={"number": number, "name": "w\\u00f6rker"}) as outer:
        tell(outer, number=number)
        count = 0
        while count < ROUNDS:
            count += 1
            with tracker.enter_phase("item", attributes={"count": count}) as phase:
                with tracker.enter_phase("deep"):
                    pass
                if count % 7 == 0:
                    phase.set_attribute("late", count)
                if count % 50 == 0:
                    phase.pause()
                    phase.resume()
        with tracker.enter_phase("last", attributes={"count": count}) as last:
            tell(last, number=number)
            threading.Event().wait()

with tracker.enter_phase("train") as train:
    tell(train)
    tracker.set_step(17)
    for number in range(2):
        threading.Thread(target=work, args=(number,), name=f"thread {number}", daemon=True).start()
    threading.Event().wait()
"""

Writer = "tuple[subprocess.Popen[str], Path]"


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[[int, float], Writer]]:
    """Start a process of three threads that writes a journal of so many MiB until it is killed.

    Two of its threads go so many rounds, and then wait in a last phase.
    """
    started: list[subprocess.Popen[str]] = []

    def start(mebibytes: int, rounds: float) -> Writer:
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(mebibytes), str(rounds)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, tmp_path

    yield start
    for process in started:
        process.kill()
        process.communicate()


def confirmed(process: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    """Return so many phases that the process says it has entered."""
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def as_the_page_has_it(image: Any) -> dict[int, dict[str, Any]]:
    """Return the phases of an image as the independent reader tells them."""
    return {
        phase.sequence: {
            "path": phase.path,
            "entered": phase.entered_ns,
            "ended": phase.ended_ns,
            "lane": phase.lane,
            "status": phase.status.value,
            "step": phase.step,
            "attributes": phase.attributes,
        }
        for phase in (*image.open, *image.ended)
    }


def test_a_killed_process_left_all_that_it_had_confirmed(writer: Callable[[int, float], Writer]) -> None:
    """Every confirmed phase is found open and whole; nothing twice, nothing invented; both readers agree."""
    process, folder = writer(16, 400)
    told = confirmed(process, 5)
    process.kill()
    process.wait()
    (image,) = read_directory(folder)
    assert () == image.damage
    assert (2, 17, None, process.pid) == (image.identity.rank, image.step, image.end_note, image.process.pid)
    assert sorted((each["scope_id"], tuple(each["path"])) for each in told) == sorted(
        (phase.scope_id, phase.path) for phase in image.open
    )
    by_id = {phase.scope_id: phase for phase in image.open}
    for each in told:
        phase = by_id[each["scope_id"]]
        if "number" in each:
            assert f"thread {each['number']}" == phase.thread_name
            assert not phase.is_main_thread
        assert ("train",) != phase.path or phase.is_main_thread
    assert [{"number": 0, "name": "w\u00f6rker"}, {"number": 1, "name": "w\u00f6rker"}] == sorted(
        (phase.attributes for phase in image.open if phase.path == ("worker",)), key=lambda each: each["number"]
    )
    assert (800, 800) == (image.totals["worker", "item"].count, image.totals["worker", "item", "deep"].count)
    assert (0, 0) == (image.unwritten, image.unfolded)
    facts, phases, by_path = independent_reader.read(bytearray(image.file.read_bytes()))
    assert (facts, phases) == (image.facts, as_the_page_has_it(image))
    assert by_path == {path: each.count for path, each in image.totals.items()}
    assert {17} == {phase.step for phase in image.open if phase.path == ("worker", "last")}


def test_a_running_process_can_be_read_at_any_moment(writer: Callable[[int, float], Writer]) -> None:
    """While threads write as fast as they can: no damage, what stays open is open, and no count goes back."""
    process, folder = writer(1, math.inf)
    confirmed(process, 3)
    (file,) = folder.rglob("*.journal")
    before = 0
    for _ in range(20):
        image = read_journal(file, ended_limit=16)
        assert () == image.damage
        paths = [phase.path for phase in image.open]
        assert (1, 2) == (paths.count(("train",)), paths.count(("worker",)))
        numbers = [phase.sequence for phase in (*image.open, *image.ended)]
        assert len(set(numbers)) == len(numbers)
        assert [] == [phase for phase in image.ended if phase.status == "abandoned"]
        count = sum(each.count for each in image.totals.values()) + image.unfolded
        assert before <= count
        before = count
