"""Work in other processes, however they were started: what it does comes back to the phase that it is for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from stormphase import PhaseTracker, worker
from stormphase._carried import CARRIER_VARIABLE, MAX_ANCESTORS, Carried
from stormphase.exceptions import ConfigurationError
from stormphase.records import attribute, read_records
from stormphase.stores import MemoryStore, SqliteStore
from stormphase.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import RunPython

    from stormphase import PhaseRecord

WAYS = ("fork", "spawn", "forkserver")
TRACED = """
import contextlib, json, os, signal, subprocess, sys, multiprocessing
from concurrent.futures import ProcessPoolExecutor
import stormphase
from stormphase.otel import OTelBridge, configure
from stormphase.stores import SqliteStore

telemetry = configure(service_name="test", jsonl_dir="spans")  # a child imports this script again, or is forked

def bridge():
    return OTelBridge(telemetry.tracer_provider)

def work(carrier, name, fails=False):
    with stormphase.worker(carrier, bridge=bridge()) as tracker, tracker.enter_phase(name, {"pid": os.getpid()}):
        print(name, "speaks")
        with stormphase.phase("inner"):
            if fails:
                raise ValueError(name)
    return os.getpid()

def new_tracker():
    return stormphase.PhaseTracker(
        "workers", store=SqliteStore("runs.db"), journal="runs", capture=True, bridge=bridge(), session_id="s"
    )
"""
POOL = """
if __name__ == "__main__":
    with new_tracker() as tracker, ProcessPoolExecutor(1, multiprocessing.get_context(sys.argv[1])) as pool:
        try:
            for number in range(3):
                with tracker.enter_phase(f"round{number}"):
                    pool.submit(work, tracker.carrier(), f"work{number}", number == 2).result()
        except ValueError as error:
            print("came back:", error)
"""
PROCESS = """
if __name__ == "__main__":
    with new_tracker() as tracker:
        try:
            with tracker.enter_phase("round"):
                arguments = (tracker.carrier(), "work", True)
                process = multiprocessing.get_context(sys.argv[1]).Process(target=work, args=arguments)
                process.start()
                process.join()
                if process.exitcode:
                    raise ChildProcessError("the worker has failed")
        except ChildProcessError as error:
            print("came back:", error)
"""
SUBPROCESS = """
if __name__ == "__main__":
    if len(sys.argv) > 2:
        work(None, "work", True)
    with new_tracker() as tracker:
        try:
            with tracker.enter_phase("round"):
                tracker.set_step(7)
                subprocess.run([sys.executable, __file__, "child", "child"], env=tracker.environment(), check=True)
        except subprocess.CalledProcessError as error:
            print("came back:", error.returncode)
"""
OWN_KIND = """
class OwnError(Exception):
    pass

def fail(carrier):
    block = contextlib.nullcontext() if carrier is None else stormphase.worker(carrier, bridge=bridge())
    with block, stormphase.phase("work"), stormphase.phase("inner"):
        raise OwnError("x")

if __name__ == "__main__":
    way = "fork" if sys.argv[1] == "forked" else sys.argv[1]
    with new_tracker() as tracker:
        try:
            with tracker.enter_phase("round"), ProcessPoolExecutor(1, multiprocessing.get_context(way)) as pool:
                pool.submit(fail, None if sys.argv[1] == "forked" else tracker.carrier()).result()
        except OwnError as error:
            print("came back:", error.args, vars(error))
"""
KILLED = """
def be_killed(carrier):
    with stormphase.worker(carrier, bridge=bridge()) as tracker:
        tracker.enter("killed")
        print("last words", flush=True)
        tracker.flush(60)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    with new_tracker() as tracker, ProcessPoolExecutor(1, multiprocessing.get_context(sys.argv[1])) as pool:
        with tracker.enter_phase("first"):
            pool.submit(work, tracker.carrier(), "work").result()
        try:
            with tracker.enter_phase("second"):
                pool.submit(be_killed, tracker.carrier()).result()
        except Exception as error:
            print("came back:", type(error).__name__)
"""


class Run:
    """What a script has left: its printed lines, records from database and journals, and spans by name."""

    def __init__(self, folder: Path, lines: list[str]) -> None:
        self.lines = lines
        self.records = list(read_records(folder / "runs.db"))
        self.in_journals = list(read_records(folder / "runs" / "s"))
        self.journals = sorted((folder / "runs" / "s").glob("*.journal"))
        spans = [
            span
            for file in (folder / "spans").glob("traces-*")
            for line in file.read_text("utf-8").splitlines()
            for resource in json.loads(line)["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]
        self.spans = {span["name"]: span for span in spans}
        self.trace_of = {span["spanId"]: span["traceId"] for span in spans}

    def phase(self, *path: str) -> PhaseRecord:
        """Return the record of the one phase with that path, by the database."""
        (found,) = [record for record in self.records if record.path == path]
        return found


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., Run]:
    """Run source text as a script, which its children can import again, and return what it has left."""

    def run(source: str, *arguments: str) -> Run:
        script = tmp_path / "script.py"
        script.write_text(TRACED + source, encoding="utf-8")
        child = subprocess.run(
            [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(script), *arguments],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            cwd=tmp_path,
        )
        assert 0 == child.returncode, child.stderr
        return Run(tmp_path, child.stdout.splitlines())

    return run


def assert_is_beneath(run: Run, parent: tuple[str, ...], name: str) -> None:
    """Check that a worker's phase hangs under its parent's in the database, the journals and the trace."""
    above, below = run.phase(*parent), run.phase(*parent, name)
    assert above.scope_id == below.parent_scope_id
    assert (above.session_id, above.session_attempt, above.rank) == (
        below.session_id,
        below.session_attempt,
        below.rank,
    )
    assert above.correlation_id == below.correlation_id
    assert above.process != below.process
    assert [f"{name} speaks"] == [line.text for line in below.output if line.stream == "stdout"]
    (in_journal,) = [record for record in run.in_journals if record.scope_id == below.scope_id]
    assert (above.scope_id, below.path) == (in_journal.parent_scope_id, in_journal.path)
    spans = run.spans[parent[-1]], run.spans[name], run.spans["inner"]
    assert 1 == len({span["traceId"] for span in spans})
    assert (above.scope_id, below.scope_id) == (spans[1]["parentSpanId"], spans[1]["spanId"])
    assert {record.kind.value for record in run.records} >= {"session", "rank", "process", "phase"}


@pytest.mark.parametrize("way", WAYS)
def test_a_process_of_a_pool_works_for_one_phase_after_another(run_script, way):
    """What it does hangs under the phase that asked for it, in one trace, and a failure comes back with its cause."""
    run = run_script(POOL, way)
    for number in range(3):
        assert_is_beneath(run, (f"round{number}",), f"work{number}")
    assert "came back: work2" in run.lines
    assert 2 == len(run.journals)
    assert 1 == len([record for record in run.records if record.kind == "process"])
    cause = run.phase("round2", "work2", "inner")
    failed = [record for record in run.records if record.status == "failed"]
    assert ["round2", "work2", "inner"] == sorted((r.name for r in failed), key=["round2", "work2", "inner"].index)
    assert {(cause.scope_id, cause.path)} == {(r.root_cause_scope_id, r.root_cause_path) for r in failed}
    assert [cause.name] == [record.name for record in failed if record.traceback]
    (failure,) = attribute(run.records).failures
    assert (cause.key, {"round2", "work2"}) == (failure.record.key, {record.name for record in failure.reached})


@pytest.mark.parametrize("way", ["fork", "spawn", "forked"])
def test_a_kind_of_exception_of_the_users_own_comes_back_with_its_cause(run_script, way):
    """Where it arose travels in it from the last phase of its process on, and is taken off once it has arrived."""
    run = run_script(OWN_KIND, way)
    assert "came back: ('x',) {}" in run.lines
    cause = run.phase("round", "work", "inner")
    failed = [record for record in run.records if record.status == "failed"]
    assert {"round", "work", "inner"} == {record.name for record in failed}
    assert {(cause.scope_id, cause.path)} == {(r.root_cause_scope_id, r.root_cause_path) for r in failed}


@pytest.mark.parametrize("way", WAYS)
def test_a_process_of_multiprocessing_fails_by_its_own_phase(run_script, way):
    """Its exception does not come back, only its exit code: that it was the cause is known by the records of both."""
    run = run_script(PROCESS, way)
    assert_is_beneath(run, ("round",), "work")
    assert "came back: the worker has failed" in run.lines
    cause = run.phase("round", "work", "inner")
    assert ("failed", "ChildProcessError") == (run.phase("round").status.value, run.phase("round").error_type)
    assert (cause.scope_id, cause.path) == (run.phase("round").root_cause_scope_id, run.phase("round").root_cause_path)


def test_a_subprocess_finds_its_phase_in_the_environment(run_script):
    """`tracker.environment()` is all that it needs: parent, trace, step, store and journal are those of the phase."""
    run = run_script(SUBPROCESS, "parent")
    assert_is_beneath(run, ("round",), "work")
    assert "came back: 1" in run.lines
    assert 7 == run.phase("round", "work").step
    cause = run.phase("round", "work", "inner")
    assert cause.scope_id == run.phase("round").root_cause_scope_id
    (failure,) = attribute(run.records).failures
    assert cause.key == failure.record.key


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_killed_worker_is_lost_in_the_phase_that_it_worked_for_last(run_script, way):
    """Its open phase is LOST and the cause of what its death broke; the phase before, which went well, stays so."""
    run = run_script(KILLED, way)
    assert "came back: BrokenProcessPool" in run.lines
    killed, second = run.phase("second", "killed"), run.phase("second")
    assert ("lost", second.scope_id) == (killed.status.value, killed.parent_scope_id)
    assert killed.evidence
    assert ("failed", killed.scope_id) == (second.status.value, second.root_cause_scope_id)
    assert ("succeeded", "succeeded") == (run.phase("first").status.value, run.phase("first", "work").status.value)
    (failure,) = attribute(run.records).failures
    assert (killed.key, {"second", "process"}) == (failure.record.key, {record.name for record in failure.reached})
    (in_journal,) = [record for record in run.in_journals if record.path == killed.path]
    assert ("lost", ["last words"]) == (in_journal.status.value, [line.text for line in in_journal.output])


TRACE_PER = """
def bridge():
    return OTelBridge(telemetry.tracer_provider, trace_per="step")

if __name__ == "__main__":
    with new_tracker() as tracker, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for number in range(2):
            tracker.set_step(number)
            with tracker.enter_phase("step"):
                pool.submit(work, tracker.carrier(), f"work{number}").result()
        pool.submit(work, tracker.carrier(), "alone").result()
"""


def test_each_piece_of_work_is_in_the_trace_of_its_phase(run_script):
    """With a trace a step one process works in several; what is for no phase is in the session's, under the rank."""
    run = run_script(TRACE_PER)
    steps = {record.step: record.scope_id for record in run.records if record.name == "step"}
    for number in range(2):
        span = run.spans[f"work{number}"]
        assert steps[number] == span["parentSpanId"]
        assert run.trace_of[steps[number]] == span["traceId"]
    assert 3 == len({run.spans[name]["traceId"] for name in ("work0", "work1", "alone")})
    rank = run.spans["rank 0"]
    assert (rank["traceId"], rank["spanId"]) == (run.spans["alone"]["traceId"], run.spans["alone"]["parentSpanId"])


# The page


@pytest.mark.parametrize("number", [0, 1], ids=["pool", "subprocess"])
def test_what_the_page_shows_runs(repository, tmp_path, number):
    """Each block is a script, and the records that it prints stand beneath it."""
    page = (repository / "docs" / "workers.md").read_text(encoding="utf-8")
    script = tmp_path / "script.py"
    script.write_text(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[number], encoding="utf-8")
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(script)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path)
    assert (0, "") == (child.returncode, child.stderr)
    # What two workers print at one time may be mixed in a pipe; in the records it is not.
    shown = re.findall(r"^load / .*$", page, re.MULTILINE)[:2] if number == 0 else []
    assert shown == sorted(line for line in child.stdout.splitlines() if line.startswith("load /"))


# In one process


@pytest.fixture
def tracker(make_tracker: Callable[..., PhaseTracker]) -> PhaseTracker:
    """Return a started tracker with a store at hand."""
    return make_tracker("job", store=MemoryStore(), session_id="s", clock=ManualClock()).start()


def fields(carrier: dict[str, str]) -> dict[str, Any]:
    """Return what a carrier says beyond the trace."""
    found: dict[str, Any] = json.loads(carrier["stormphase"])
    return found


def test_a_carrier_names_the_phase_and_all_it_hangs_under(tracker):
    """It is strings by name, which any queue, task or environment takes."""
    assert ([], []) == (fields(tracker.carrier())["scope_ids"], fields(tracker.carrier())["path"])
    with tracker.enter_phase("train") as train, tracker.enter_phase("step") as step:
        carrier = tracker.carrier()
    assert {"stormphase"} == set(carrier)
    assert ([train.scope_id, step.scope_id], ["train", "step"]) == (
        fields(carrier)["scope_ids"],
        fields(carrier)["path"],
    )
    assert (os.getpid(), None, None) == (fields(carrier)["pid"], fields(carrier)["store"], fields(carrier)["journal"])


def test_a_carrier_is_bounded(tracker):
    """However deep the phase: the environment of a process has its bounds. The innermost ids and names are kept."""
    for depth in range(100):
        tracker.enter(f"{depth:02}" + "x" * 300)
    found = fields(tracker.carrier())
    assert MAX_ANCESTORS == len(found["scope_ids"])
    assert len(tracker.carrier()["stormphase"]) < 32_768
    assert ("\N{HORIZONTAL ELLIPSIS}", "99") == (found["path"][0], found["path"][-1][:2])


def test_in_the_process_that_gave_it_a_carrier_is_its_own_tracker(tracker):
    """A thread or an in-process executor may be given one as well; nothing is started, flushed or stopped for it."""
    with tracker.enter_phase("train") as train:
        carrier = tracker.carrier()
    with worker(carrier) as same, same.enter_phase("late") as late:
        assert (tracker, train.scope_id, ("train", "late")) == (same, late.parent.scope_id, late.path)
    with tracker.enter_phase("after") as after:
        assert (None, ("after",)) == (after.parent, after.path)
    assert tracker.is_running


def test_the_phase_that_is_stood_in_for_cannot_be_ended_here(tracker):
    """It belongs to the process that opened it."""
    from stormphase import PhaseProtocolError

    with tracker.enter_phase("train"):
        carrier = tracker.carrier()
    with worker(carrier) as same, same.enter_phase("work") as work:
        with pytest.raises(PhaseProtocolError, match="Let the parent end it"):
            work.parent.close()
        with pytest.raises(PhaseProtocolError, match="Let the parent end it"):
            work.parent.pause()


def test_a_carrier_without_a_phase_is_that_of_the_rank(tracker):
    """Whatever phase is open in the worker's own context, its phases then hang under none."""
    carrier = tracker.carrier()
    with worker(carrier) as same, same.enter_phase("work") as work:
        assert (None, ("work",)) == (work.parent, work.path)


def test_an_empty_carrier_records_nothing(make_tracker):
    """A tracker that does not run gives one, and the worker's code runs all the same."""
    assert {} == make_tracker().carrier()
    with worker({}) as tracker, tracker.enter_phase("work"):
        assert (False, {}) == (tracker.is_running, tracker.carrier())


def test_disabled_a_worker_records_nothing(monkeypatch):
    """Neither a carrier nor an environment is looked at."""
    monkeypatch.setenv("STORMPHASE_DISABLED", "1")
    with worker() as tracker, tracker.enter_phase("work"):
        assert not tracker.is_running


def test_a_worker_without_a_carrier_says_what_to_do(monkeypatch):
    """A script that is started by hand finds none in its environment."""
    monkeypatch.delenv(CARRIER_VARIABLE, raising=False)
    with pytest.raises(ConfigurationError, match=r"Start the process with env=tracker.environment\(\)"), worker():
        raise AssertionError


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"session_id": "../up"},
        {"session_id": None},
        {"rank": "0"},
        {"pid": True},
        {"scope_ids": ["0" * 16]},
        {"scope_ids": ["x"]},
        {"scope_ids": [1]},
        {"scope_ids": ["a" * 16], "path": []},
        {"path": "train"},
        {"path": [None]},
        {"session_trace": {"traceparent": 1}},
        {"store": "runs.db"},
        {"name": 1},
    ],
    ids=str,
)
def test_what_no_tracker_wrote_is_refused(tracker, change):
    """It may come from an environment: it is read with care, and the error says where a good one comes from."""
    carrier = {"stormphase": json.dumps(fields(tracker.carrier()) | change)}
    with pytest.raises(ConfigurationError), worker(carrier):
        raise AssertionError


@pytest.mark.parametrize("carrier", [{"stormphase": "{"}, {"stormphase": "[]"}, {"stormphase": 1}, 1], ids=str)
def test_what_is_no_carrier_is_refused(carrier):
    """Neither JSON of ours nor a mapping."""
    with pytest.raises(ConfigurationError, match=r"Give what tracker.carrier\(\) returned"), worker(carrier):
        raise AssertionError


def test_a_carrier_reads_back(make_tracker, tmp_path):
    """All that it says of phase, store, journal and capture is there again."""
    from stormphase.capture import CaptureOptions

    options = CaptureOptions(max_bytes=1_000, redact=["customer (?P<secret>[0-9]+)"])
    store = SqliteStore(tmp_path / "runs.db", busy_timeout_s=2.0)
    make = {"journal": tmp_path / "runs", "capture": options, "correlation_id": "c", "level": 10}
    with make_tracker("job", store=store, on_misuse="record", **make) as tracker, tracker.enter_phase("train") as train:
        found = Carried.of(tracker.carrier())
        assert found is not None
        assert ("job", "c", 10, "record", tracker.identity) == (
            found.name,
            found.correlation_id,
            found.level,
            found.on_misuse,
            found.identity,
        )
        assert ((train.scope_id,), ("train",)) == (found.scope_ids, found.path)
        assert {"path": str(tmp_path / "runs.db"), "busy_timeout_s": 2.0} == found.store
        assert str(tmp_path / "runs") == found.journal["directory"]
        assert (1_000, [["customer (?P<secret>[0-9]+)", 32]]) == (found.capture["max_bytes"], found.capture["redact"])


def test_a_worker_redacts_as_its_session_does(run_python: RunPython, tmp_path: Path):
    """Patterns and all other options of capture travel along."""
    source = """
import os, stormphase
with stormphase.worker() as tracker, tracker.enter_phase("work"):
    print("customer 17")
"""
    from stormphase.capture import CaptureOptions

    store = SqliteStore(tmp_path / "runs.db")
    options = CaptureOptions(redact=["customer (?P<secret>[0-9]+)"])
    with PhaseTracker("job", bridge=None, store=store, capture=options) as tracker, tracker.enter_phase("train"):
        run_python(source, env=tracker.environment({}))
    (work,) = store.query(path="work")
    assert ["customer [redacted]"] == [line.text for line in work.output]


def test_one_process_works_for_several_sessions(run_python: RunPython, tmp_path: Path):
    """The tracker of the one before stops when it has nothing to do, and may start again."""
    source = """
import json, sys, stormphase
for carrier in json.loads(sys.argv[1]):
    with stormphase.worker(carrier, bridge=None) as tracker, tracker.enter_phase("work"):
        print(tracker.session_id, stormphase._workers._crew.started == [tracker])
"""
    store = SqliteStore(tmp_path / "runs.db")
    with (
        PhaseTracker(bridge=None, session_id="a", store=store) as first,
        PhaseTracker(bridge=None, session_id="b") as second,
    ):
        carriers = [first.carrier(), second.carrier(), first.carrier(), first.carrier()]
        said = run_python(source, json.dumps(carriers)).stdout.splitlines()
    assert ["a True", "b True", "a True", "a True"] == said
    assert 3 == len(list(store.query(path="work")))
    assert {"succeeded"} == {record.status.value for record in store.query(kind="process")}


def test_an_async_block_works_as_well(run_python: RunPython, tmp_path: Path):
    """Each task has its own parent, as the actors of some frameworks run many in one process."""
    source = """
import asyncio, json, sys, stormphase

async def work(carrier, ready, other):
    async with stormphase.worker(carrier, bridge=None) as tracker:
        ready.set()
        await other.wait()
        with tracker.enter_phase("work") as phase:
            print(" / ".join(phase.path))

async def main():
    first, second = asyncio.Event(), asyncio.Event()
    one, two = json.loads(sys.argv[1])
    await asyncio.gather(work(one, first, second), work(two, second, first))

asyncio.run(main())
"""
    store = SqliteStore(tmp_path / "runs.db")
    with PhaseTracker(bridge=None, store=store) as tracker:
        with tracker.enter_phase("a"):
            one = tracker.carrier()
        with tracker.enter_phase("b"):
            two = tracker.carrier()
        said = run_python(source, json.dumps([one, two])).stdout.splitlines()
    assert ["a / work", "b / work"] == sorted(said)
    parents = {record.scope_id: record.path for record in store.query(kind="phase")}
    assert {("a",), ("b",)} == {parents[record.parent_scope_id] for record in store.query(path="work")}


def test_a_worker_outlives_the_phase_that_it_works_for(run_python: RunPython, tmp_path: Path):
    """Its phases hang under it all the same, and leave it as it ended."""
    source = """
import sys, stormphase
sys.stdin.readline()
with stormphase.worker(bridge=None) as tracker, tracker.enter_phase("late"):
    raise SystemExit(3)
"""
    store = SqliteStore(tmp_path / "runs.db")
    with PhaseTracker(bridge=None, store=store) as tracker:
        with tracker.enter_phase("train") as train:
            command = [sys.executable, "-c", source]
            child = subprocess.Popen(command, env=tracker.environment(), stdin=subprocess.PIPE, cwd=tmp_path)
        child.communicate(b"go\n", timeout=100)
    assert 3 == child.returncode
    (late,) = store.query(path="late")
    assert (train.scope_id, "cancelled") == (late.parent_scope_id, late.status.value)
    (record,) = store.query(path="train")
    assert "succeeded" == record.status.value


def test_on_another_host_only_a_directory_that_is_there_is_the_same(run_python: RunPython, tmp_path: Path):
    """A path says nothing there; a session's directory on a shared disk is told by its being there."""
    source = """
import json, sys, stormphase
with stormphase.worker(json.loads(sys.argv[1]), bridge=None) as tracker, tracker.enter_phase("work"):
    session = tracker._session
    print(tracker._settings.store, session.journal.place_to_carry() is not None, tracker.identity.host != "elsewhere")
"""
    store = SqliteStore(tmp_path / "runs.db")
    with PhaseTracker(bridge=None, store=store, journal=tmp_path / "runs") as tracker:
        here = fields(tracker.carrier()) | {"host": "elsewhere"}
        there = here | {"session_id": "t"}
        for found, has_journal in ((here, "True"), (there, "False")):
            said = run_python(source, json.dumps({"stormphase": json.dumps(found)})).stdout.split()
            assert ["None", has_journal, "True"] == said


def test_a_fork_in_a_workers_block_goes_on_with_its_tracker(run_python: RunPython, tmp_path: Path):
    """The child's phases hang under what was open in the worker, with ids and rows of its own."""
    source = """
import os, stormphase
with stormphase.worker(bridge=None) as tracker, tracker.enter_phase("work"):
    pid = os.fork()
    if pid == 0:
        with stormphase.worker(tracker.carrier()) as same, same.enter_phase("deeper"):
            assert same is tracker
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""
    store = SqliteStore(tmp_path / "runs.db")
    with PhaseTracker(bridge=None, store=store) as tracker, tracker.enter_phase("train"):
        run_python("import warnings; warnings.simplefilter('ignore')\n" + source, env=tracker.environment({}))
    (work,), (deeper,) = store.query(path="work"), store.query(path="deeper")
    assert (work.scope_id, ("train", "work", "deeper")) == (deeper.parent_scope_id, deeper.path)
    assert 3 == len({record.process for record in store.query()})
