"""Phases travel into Ray: a real cluster of two CPUs, whose workers are processes of their own.

Run by `.ci/run` in the stage `ray`, which has Ray installed; the rest of the suite does not.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import stormphase
from stormphase import PhaseTracker
from stormphase.integrations.ray import carried, carry
from stormphase.records import attribute, read_records
from stormphase.stores import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stormphase import PhaseRecord

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a cluster of this test alone; its workers are processes, and none is a thread of ours."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning", log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


class Job:
    """A session with a store and a journal, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tracker = PhaseTracker(
            "job", bridge=None, store=SqliteStore(folder / "runs.db"), journal=folder / "runs", capture=True
        )

    def records(self, *, as_is: bool = False) -> list[PhaseRecord]:
        """Return all records of the database; by default what the dead have left open in it is ended first."""
        assert self.tracker.flush(60)
        return list(read_records(self.folder / "runs.db", as_is=as_is))

    def phase(self, *path: str) -> PhaseRecord:
        """Return the one record with that path."""
        (found,) = [record for record in self.records() if record.path == path]
        return found


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """Run a tracker as a driver has one."""
    job = Job(tmp_path)
    with job.tracker:
        yield job


def test_what_the_page_shows_runs(repository, tmp_path):
    """docs/workers.md starts a cluster, and leaves the phases that it lists."""
    page = (repository / "docs" / "workers.md").read_text(encoding="utf-8").partition("## Ray")[2]
    (code,), (listed,) = (
        re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) for language in ("python", "text")
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path
    )
    assert 0 == child.returncode, child.stderr
    found = read_records(tmp_path / "runs.db", kind="phase")
    assert sorted(listed.splitlines()) == sorted(record.path_text for record in found)


def said(record: PhaseRecord) -> list[str]:
    """Return what the body of a phase printed."""
    return [line.text for line in record.output if line.stream == "stdout"]


def test_a_task_is_a_phase_under_the_one_that_called_it(ray, job):
    """Parent, session, rank, step and output are right, in a process of its own."""

    @ray.remote
    @carried
    def tokenize(shard, *, lower=True):
        print("tokenizing", shard)
        with stormphase.phase("split"):
            print("splitting")
        return os.getpid()

    job.tracker.set_step(3)
    with job.tracker.enter_phase("data"), job.tracker.enter_phase("load") as load:
        pid = ray.get(tokenize.remote("a", lower=False, **carry()))
    assert os.getpid() != pid
    task, split = job.phase("data", "load", "tokenize"), job.phase("data", "load", "tokenize", "split")
    assert (load.scope_id, task.scope_id) == (task.parent_scope_id, split.parent_scope_id)
    assert (pid, 0, 3, job.tracker.session_id) == (task.process.pid, task.rank, task.step, task.session_id)
    assert job.phase("data", "load").correlation_id == task.correlation_id
    assert (["tokenizing a"], ["splitting"]) == (said(task), said(split))
    assert {"ray.task_id", "ray.node_id"} == set(task.attributes)
    in_journals = {record.scope_id: record for record in read_records(job.folder / "runs" / job.tracker.session_id)}
    assert (task.parent_scope_id, task.path) == (
        in_journals[task.scope_id].parent_scope_id,
        in_journals[task.scope_id].path,
    )


def test_a_worker_serves_one_phase_after_another(ray, job):
    """Ray uses its processes again, also for the next session; each call says whose it is."""

    @ray.remote
    @carried(name="count")
    def task(number):
        print("number", number)
        return os.getpid()

    pids = []
    for number in range(4):
        with job.tracker.enter_phase(f"round{number}"):
            pids.append(ray.get(task.remote(number, **carry())))
    assert len(set(pids)) < 4
    for number in range(4):
        found = job.phase(f"round{number}", "count")
        assert (job.phase(f"round{number}").scope_id, [f"number {number}"]) == (found.parent_scope_id, said(found))
    assert len(set(pids)) == len([record for record in job.records() if record.kind == "process"])


def test_an_actors_methods_are_phases(ray, job):
    """Each call under the phase that made it; one without a carrier is only a call."""

    @ray.remote
    class Loader:
        def __init__(self):
            self.loaded = []

        @carried
        def load(self, shard):
            with stormphase.phase("read", attributes={"shard": shard}):
                print("reading", shard)
            self.loaded.append(shard)
            return len(self.loaded)

    loader = Loader.remote()
    with job.tracker.enter_phase("first"):
        assert 1 == ray.get(loader.load.remote("a", **carry()))
    with job.tracker.enter_phase("second"):
        assert 2 == ray.get(loader.load.remote("b", **carry(job.tracker)))
    assert 3 == ray.get(loader.load.remote("c"))
    for name, shard in (("first", "a"), ("second", "b")):
        load, read = job.phase(name, "load"), job.phase(name, "load", "read")
        assert (job.phase(name).scope_id, load.scope_id) == (load.parent_scope_id, read.parent_scope_id)
        assert ({"shard": shard}, [f"reading {shard}"]) == (read.attributes, said(read))
        assert {"ray.task_id", "ray.actor_id", "ray.node_id"} == set(load.attributes)
    assert 2 == len([record for record in job.records() if record.name == "load"])


def test_the_calls_of_an_async_actor_stand_apart(ray, job):
    """Two calls run in one process at one time, each under its own phase."""

    @ray.remote
    class Server:
        def __init__(self):
            import asyncio

            self.seen = 0
            self.both = asyncio.Event()

        @carried
        async def serve(self, name):
            self.seen += 1
            if self.seen == 2:
                self.both.set()
            await self.both.wait()
            with stormphase.phase("answer"):
                print("answer to", name)

    server = Server.remote()
    with job.tracker.enter_phase("a"):
        first = server.serve.remote("a", **carry())
    with job.tracker.enter_phase("b"):
        second = server.serve.remote("b", **carry())
    ray.get([first, second])
    for name in "ab":
        serve, answer = job.phase(name, "serve"), job.phase(name, "serve", "answer")
        assert (job.phase(name).scope_id, serve.scope_id) == (serve.parent_scope_id, answer.parent_scope_id)
        assert [f"answer to {name}"] == said(answer)


def test_tasks_that_call_tasks_nest(ray, job):
    """A worker carries on what it was given."""

    @ray.remote
    @carried
    def inner():
        print("deep")

    @ray.remote
    @carried
    def outer():
        import ray

        ray.get(inner.remote(**carry()))

    with job.tracker.enter_phase("train"):
        ray.get(outer.remote(**carry()))
    found = [job.phase("train"), job.phase("train", "outer"), job.phase("train", "outer", "inner")]
    assert [found[0].scope_id, found[1].scope_id] == [found[1].parent_scope_id, found[2].parent_scope_id]
    assert ["deep"] == said(found[2])


def test_a_task_that_fails_is_to_blame_in_the_driver(ray, job):
    """What `ray.get` raises is another exception, of another class; its root cause is the task's phase all the same."""

    @ray.remote
    @carried
    def parse(text):
        with stormphase.phase("number"):
            return int(text)

    with (
        pytest.raises(ValueError, match="invalid literal"),
        job.tracker.enter_phase("train") as train,
        job.tracker.enter_phase("data"),
    ):
        ray.get(parse.remote("x", **carry()))
    cause = job.phase("train", "data", "parse", "number")
    for path in (("train",), ("train", "data"), ("train", "data", "parse")):
        found = job.phase(*path)
        assert ("failed", cause.scope_id, cause.path) == (
            found.status.value,
            found.root_cause_scope_id,
            found.root_cause_path,
        )
    assert ("ValueError", True) == (cause.error_type, "invalid literal" in cause.traceback)
    assert train.scope_id != cause.root_cause_scope_id == cause.scope_id
    (failure,) = attribute(job.records()).failures
    assert (cause.key, 3) == (failure.record.key, len(failure.reached))


def test_a_killed_worker_is_lost_and_to_blame(ray, job):
    """Its open phase is unfinished, then LOST with its last words; the driver's failure names it."""

    @ray.remote(max_retries=0)
    @carried
    def train_shard():
        with stormphase.phase("step"):
            print("asking for 64 GiB", flush=True)
            stormphase._ambient.AMBIENT.source.flush(60)
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ray.exceptions.WorkerCrashedError), job.tracker.enter_phase("fit"):
        ray.get(train_shard.remote(**carry()))
    (unfinished,) = [record for record in job.records(as_is=True) if record.name == "step"]
    assert ("active", None) == (unfinished.status.value, unfinished.ended_ns)
    job.tracker.stop()
    step = job.phase("fit", "train_shard", "step")
    assert ("lost", "lost") == (step.status.value, job.phase("fit", "train_shard").status.value)
    assert ("failed", step.scope_id) == (job.phase("fit").status.value, job.phase("fit").root_cause_scope_id)
    (failure,) = attribute(job.records()).failures
    assert step.key == failure.record.key
    directory = job.folder / "runs" / job.tracker.session_id
    (in_journal,) = [record for record in read_records(directory) if record.path == step.path]
    assert ("lost", ["asking for 64 GiB"]) == (in_journal.status.value, said(in_journal))


def test_a_process_that_ray_ends_while_it_is_idle_is_no_failure(ray, job):
    """Ray ends its processes without a word when a job is over, or when there are too many."""

    @ray.remote
    class Loader:
        @carried
        def load(self):
            return os.getpid()

    loader = Loader.remote()
    with job.tracker.enter_phase("data"):
        process = os.pidfd_open(ray.get(loader.load.remote(**carry())))
    ray.kill(loader)  # Which only asks for it: until it has ended, the actor may serve another call.
    assert [process] == select.select([process], [], [], 60)[0]
    os.close(process)
    job.tracker.stop()
    assert () == attribute(job.records()).failures
    assert "succeeded" == job.phase("data", "load").status.value
