"""One story, whoever tells it: sinks, stores, journals, `records`, `postmortem`, `recover`, summary and spans agree.

What two of them know of a phase is the same in both. Absent is None: one that knows less says less.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from stormphase import PhaseRecord
from stormphase.records import read_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

# What each program begins with: a tracker with everything that tells, and how what is told live is kept.
HEAD = '''
import asyncio, contextlib, json, multiprocessing, os, signal, sys, threading, time
import stormphase
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from stormphase import PhaseTracker, record_of
from stormphase.otel import OTelBridge
from stormphase.stores import MemoryStore, SqliteStore

class Both(SqliteStore):
    """A store in a file that keeps all in memory, too."""
    memory = MemoryStore()
    def begin(self, records, /):
        super().begin(records)
        self.memory.begin(records)
    def end(self, records, /):
        super().end(records)
        self.memory.end(records)

entered, told = {}, open("live", "a")
def live(boundary):
    if boundary.event_type == "phase_enter":
        entered[boundary.scope_id] = boundary
        record = record_of(boundary, output=None)
    elif boundary.event_type == "phase_exit":
        record = record_of(entered.pop(boundary.scope_id, None), boundary, output=None)
    else:
        return
    told.write(record.to_json() + "\\n")
    told.flush()

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
store = Both("runs.db")
tracker = PhaseTracker("job", session_id="s", rank=0, world_size=1, correlation_id="c-7", journal="runs", store=store,
                       sinks=[live], bridge=OTelBridge(provider, span_budget=None), summary=True)

def kept():
    with open("memory", "w") as file:
        file.writelines(record.to_json() + "\\n" for record in store.memory.query())
    with open("spans", "w") as file:
        file.writelines(span.to_json(indent=None) + "\\n" for span in exporter.get_finished_spans())

def die():
    os.kill(os.getpid(), signal.SIGKILL)
'''

PROGRAMS = {
    "clean": """
async def reader(number):
    with tracker.enter_phase("read", {"number": number}):
        await asyncio.sleep(0.001)
@tracker.phase("batches")
def batches():
    yield from range(3)
with tracker:
    with tracker.enter_phase("train", {"epochs": 1}) as train:
        for step in batches():
            tracker.set_step(step)
            with tracker.enter_phase("step", sync=True) as phase:
                phase.set_attribute("loss", 0.5)
        train.pause()
        time.sleep(0.002)
        train.resume()
        thread = threading.Thread(target=lambda: tracker.enter_phase("aside").close(), name="other")
        thread.start()
        thread.join()
        asyncio.run(asyncio.wait_for(reader(1), 9))
        token = tracker.enter("all_reduce")
        tracker.exit(token)
    far = float("inf")
    tracker.enter_phase("left open", {"nan": far - far, "far": far, "nested": {"minus": [-far]}})
kept()
""",
    "failing": """
def fail(text):
    raise ValueError(text)
try:
    with tracker, tracker.enter_phase("train"):
        with contextlib.suppress(ValueError), tracker.enter_phase("handled"):
            fail("small")
        first = tracker.enter_phase("load")
        first.close(error=OSError("gone"))
        tracker.retry(first).close()
        try:
            with tracker.enter_phase("inner"):
                fail("long " * 500)
        except ValueError as error:
            raise RuntimeError("wrapped") from error
except RuntimeError:
    pass
kept()
""",
    "exit with a status": """
try:
    with tracker, tracker.enter_phase("train"):
        sys.exit(3)
except SystemExit:
    kept()
""",
    "exit in order": """
try:
    with tracker, tracker.enter_phase("train"):
        sys.exit(0)
except SystemExit:
    kept()
""",
    "cancelled": """
try:
    with tracker, tracker.enter_phase("train"):
        raise asyncio.CancelledError
except asyncio.CancelledError:
    kept()
""",
    "interrupted": """
try:
    with tracker, tracker.enter_phase("train"):
        raise KeyboardInterrupt
except KeyboardInterrupt:
    kept()
""",
    "outside of all phases": """
try:
    with tracker:
        tracker.enter_phase("train").close()
        raise LookupError("nothing is open")
except LookupError:
    kept()
""",
    "killed at once": """
tracker.start()
train = tracker.enter_phase("train", {"epochs": 3})
tracker.enter_phase("load").close()
try:
    with tracker.enter_phase("handled"):
        raise ValueError("small")
except ValueError:
    pass
tracker.set_step(4)
tracker.enter_phase("step", {"n": 1})
die()
""",
    "killed later": """
tracker.start()
train = tracker.enter_phase("train", {"epochs": 3})
def wait():
    tracker.enter_phase("aside", {"why": "not"})
    is_in.set()
    threading.Event().wait()
is_in = threading.Event()
threading.Thread(target=wait, daemon=True).start()
is_in.wait()
for step in range(3):
    tracker.set_step(step)
    with tracker.enter_phase("step"):
        pass
train.set_attribute("loss", 1.5)
tracker.flush(9)
step = tracker.enter_phase("step", {"n": 1})
tracker.enter_phase("forward", {"deep": [1, 2]})
tracker.flush(9)
die()
""",
    "a child is killed": """
with tracker, tracker.enter_phase("train"):
    child = os.fork()
    if not child:
        tracker.enter_phase("before").close()
        tracker.enter_phase("load", {"n": 1})
        tracker.enter_phase("parse")
        die()
    os.waitpid(child, 0)
    child = os.fork()
    if not child:
        with contextlib.suppress(OSError), tracker.enter_phase("fails"):
            raise OSError("disk")
        tracker.stop()
        os._exit(0)
    os.waitpid(child, 0)
kept()
""",
    "a pool ends its workers": """
def work(number):
    with stormphase.phase("item", attributes={"number": number}):
        if number == 5:
            raise ValueError("five")
    return number
with tracker, tracker.enter_phase("pool"), contextlib.suppress(ValueError):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(work, range(8), chunksize=1)
kept()
""",
}

BROKEN_POOL = """
from concurrent.futures import ProcessPoolExecutor
def work(number):
    with stormphase.phase("item", attributes={"number": number}):
        if number == 2:
            die()
with contextlib.suppress(Exception), tracker, tracker.enter_phase("pool"):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(work, range(4)))
"""

# What a record has that is no field of the phase but of the file it is in.
DERIVED = {"schema_version", "duration_ns", "name", "depth"}


def run(tmp_path: Path, name: str) -> None:
    """Run a program to its end or death."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", HEAD + PROGRAMS[name]], cwd=tmp_path, check=False, timeout=60)


@pytest.fixture(scope="module", params=PROGRAMS)
def story(request, tmp_path_factory) -> Path:
    """Return where one of the programs has run."""
    path = tmp_path_factory.mktemp("story")
    run(path, request.param)
    return path


def lines_of(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; none if it is not there."""
    if file.exists():
        yield from map(json.loads, file.read_text().splitlines())


def by_scope(records: Any) -> dict[str, dict[str, Any]]:
    """Return what is known of each phase, by its scope id; what was told last counts."""
    return {record["scope_id"]: record for record in records}


def from_live(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a sink of the user's heard."""
    return by_scope(lines_of(path / "live"))


def from_memory(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a store in memory had in the end."""
    return by_scope(lines_of(path / "memory"))


def from_database(path: Path) -> dict[str, dict[str, Any]]:
    """Return what `records` finds in the database."""
    return by_scope(json.loads(record.to_json()) for record in read_records(path / "runs.db"))


def from_journals(path: Path) -> dict[str, dict[str, Any]]:
    """Return what `records` finds in the journals."""
    return by_scope(json.loads(record.to_json()) for record in read_records(path / "runs"))


def from_recover(path: Path) -> dict[str, dict[str, Any]]:
    """Return what `recover --json` says was lost."""
    found = json.loads(command(path, "recover", "runs", "--json", "--dry-run"))
    return by_scope(record for journal in found["journals"] for record in journal["lost"])


def from_postmortem(path: Path) -> dict[str, dict[str, Any]]:
    """Return what `postmortem --json` says of what is open and of what ended last."""
    found = json.loads(command(path, "postmortem", "runs", "--json"))
    phases: list[dict[str, Any]] = []
    for rank in found["ranks"]:
        keys = ("path", "scope_id", "entered_ns", "thread_name", "attributes", "step", "is_sync", "task_name")
        phases += [{key: phase[key] for key in keys} for phase in rank["open"]]
        keys = ("path", "scope_id", "status", "entered_ns", "ended_ns", "step")
        phases += [{key: phase[key] for key in keys} for phase in rank["last_ended"]]
    return by_scope(phases)


def from_spans(path: Path) -> dict[str, dict[str, Any]]:
    """Return what the spans say of phases, in the words of records."""
    return by_scope(map(span_record, lines_of(path / "spans")))


def span_record(span: dict[str, Any]) -> dict[str, Any]:
    """Return what one span says; the parent of an outermost phase is the rank there, and not said."""
    attributes = span["attributes"]
    shown = attributes.get("stormphase.phase.path")
    own = {  # What OTel cannot hold is text there.
        key: value
        for key, value in attributes.items()
        if not key.startswith(("stormphase.", "thread.", "error.")) and type(value) is not str and math.isfinite(value)
    }
    scope_id = span["context"]["span_id"].removeprefix("0x")
    return {
        "scope_id": scope_id,
        "path": None if shown is None else shown.split(" / "),
        "status": attributes.get("stormphase.phase.status"),
        "attempt": attributes.get("stormphase.phase.attempt"),
        "sequence": attributes.get("stormphase.phase.sequence"),
        "step": attributes.get("stormphase.step"),
        "thread_name": attributes.get("thread.name"),
        "reason": attributes.get("stormphase.phase.reason"),
        "error_type": attributes.get("error.type"),
        "root_cause_scope_id": attributes.get("stormphase.phase.root_cause_scope_id"),
        "attributes": own if shown is not None else {},
    }


def command(path: Path, *arguments: str) -> str:
    """Run the command line and return what it prints."""
    whole = [sys.executable, "-m", "stormphase.cli", *arguments]
    return subprocess.run(whole, cwd=path, capture_output=True, text=True, check=False, timeout=60).stdout


TELLERS: dict[str, Callable[[Path], dict[str, dict[str, Any]]]] = {
    "live": from_live,
    "memory": from_memory,
    "database": from_database,
    "journals": from_journals,
    "recover": from_recover,
    "postmortem": from_postmortem,
    "spans": from_spans,
}


def is_open(record: dict[str, Any]) -> bool:
    """Whether a teller knows no end: one that hears no more of a process that was killed says nothing of its end."""
    return record.get("status") in ("active", "paused")


def unlike(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the fields that both know and that differ."""
    passed_over = DERIVED | ({"status", "self_ns", "paused_ns"} if is_open(one) or is_open(other) else set())
    found = {}
    for key in (one.keys() & other.keys()) - passed_over:
        left, right = one[key], other[key]
        if key == "attributes":
            both = left.keys() & right.keys()
            left, right = ({name: each[name] for name in both} for each in (left, right))
        if left is not None and right is not None and left != right:
            found[key] = (left, right)
    return found


def test_what_two_tellers_know_of_a_phase_is_the_same(story):
    """Of every phase, rank and session, in every field that both have."""
    told = {teller: tell(story) for teller, tell in TELLERS.items()}
    disagreements = {}
    for one, other in itertools.combinations(told, 2):
        for scope_id in told[one].keys() & told[other].keys():
            found = unlike(told[one][scope_id], told[other][scope_id])
            if found:
                disagreements[one, other, "/".join(told[one][scope_id]["path"] or ())] = found
    assert {} == disagreements
    assert told["database"].keys() == told["journals"].keys()
    assert told["live"].keys() <= told["journals"].keys()
    assert told["recover"].keys() == {key for key, each in told["journals"].items() if each["status"] == "lost"} - {
        key for key, each in told["journals"].items() if each["kind"] != "phase"
    }


def test_records_come_in_the_order_of_entering_from_everywhere(story):
    """A session before its rank, and what is around before what is in it; also of several processes."""
    from_database, from_journals = ([*read_records(story / source)] for source in ("runs.db", "runs"))
    assert [record.scope_id for record in from_database] == [record.scope_id for record in from_journals]
    backwards = [PhaseRecord.from_json(record.to_json()) for record in reversed(from_journals)]
    forwards = [record.to_json() for record in read_records(backwards)]
    assert [record.to_json() for record in from_journals] == forwards
    assert sorted(record.entered_ns for record in from_journals) == [record.entered_ns for record in from_journals]


def test_a_killed_rank_died_in_the_innermost_phase_that_was_open(tmp_path):
    """Says everybody, with the same error and reason; what it had ended well is nobody's loss."""
    run(tmp_path, "killed at once")
    for teller in ("database", "journals", "recover"):
        told = TELLERS[teller](tmp_path)
        lost = [each for each in told.values() if each["status"] == "lost"]
        assert {("train", "step")} == {tuple(each["root_cause_path"]) for each in lost}, teller
        assert {("stormphase.Lost", "its process died", "c-7")} == {
            (each["error_type"], each["reason"], each["correlation_id"]) for each in lost
        }
        assert [{"epochs": 3}, {"n": 1}] == [each["attributes"] for each in lost if each["kind"] == "phase"]


@pytest.mark.parametrize("name", ["a pool ends its workers", "a child is killed"])
def test_what_a_dead_worker_had_ended_is_not_lost(tmp_path, name):
    """Items that succeeded have, and the one failure is there, whatever the store's queue held at the kill."""
    run(tmp_path, name)
    phases = list(read_records(tmp_path / "runs.db", kind="phase"))
    statuses = sorted((record.name, record.status.value) for record in phases if record.name in ("item", "before"))
    failed = [(record.name, record.error_message) for record in phases if record.status == "failed"]
    if name == "a child is killed":
        assert ([("before", "succeeded")], [("fails", "disk")]) == (statuses, failed)
    else:
        assert [("item", "failed"), *[("item", "succeeded")] * 7] == statuses
        assert [("item", "five")] == failed


def test_what_failed_by_the_death_of_a_process_says_so_from_everywhere(tmp_path):
    """A pool that is broken was so by the item in which its worker died: in a database and in journals."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", HEAD + BROKEN_POOL], cwd=tmp_path, check=False, timeout=60)
    for source in ("runs.db", "runs"):
        (pool,) = read_records(tmp_path / source, path="pool")
        assert ("failed", ("pool", "item")) == (pool.status.value, pool.root_cause_path), source
        session, rank = read_records(tmp_path / source, kind=["session", "rank"])
        assert (pool.root_cause_scope_id,) * 2 == (session.root_cause_scope_id, rank.root_cause_scope_id)


def test_summary_and_postmortem_have_the_same_quantiles(run_python, tmp_path):
    """Of the same durations, as both show them, from one histogram."""
    source = """
import os, random, signal
from stormphase import PhaseTracker
from stormphase.testing import ManualClock
random.seed(4)
clock = ManualClock()
options = {"rank": 0, "world_size": 1, "bridge": None, "clock": clock}
durations_ns = [int(random.lognormvariate(12, 1)) for _ in range(200)]
def step(tracker, duration_ns):
    with tracker.enter_phase("step"):
        clock.advance(duration_ns)
with PhaseTracker("job", session_id="s", summary=True, **options) as tracker:
    for duration_ns in durations_ns:
        step(tracker, duration_ns)
tracker = PhaseTracker("job", session_id="t", journal="runs", **options).start()
for duration_ns in durations_ns:
    step(tracker, duration_ns)
tracker.enter_phase("step")
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = run_python(source, check=False)
    (row,) = [line.split() for line in child.stdout.splitlines() if line.startswith("step")]
    (rank,) = json.loads(command(tmp_path, "postmortem", "runs", "--json"))["ranks"]
    median_ns = rank["open"][0]["usual"]["median_ns"]
    assert row[-3] == f"{median_ns / 1e3:.0f}us"
