"""Plays one random program as a process of its own would: makes the tracker and its sinks, and leaves files.

`main` takes a directory with `program.json`, and leaves `did.jsonl`, `sink.jsonl`, `memory.jsonl`, `stats.json`, the
journal below `runs/`, `runs.db` and the spans and logs below `spans/`.
"""

# ruff: noqa: TID251 - a clock of the program's own

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    import loading  # noqa: F401 - makes the modules beside this one importable

from story_elsewhere import Everywhere
from story_interpreter import Trouble

import stormphase
from stormphase import PhaseTracker
from stormphase.capture import CaptureOptions
from stormphase.journal import JournalOptions
from stormphase.otel import OTelBridge, configure
from stormphase.stores import MemoryStore, SqliteStore


class Log:
    """Appends lines of JSON to a file, each by one system call, in any process."""

    def __init__(self, path):
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, did, **facts):
        """Write a line."""
        line = json.dumps({"did": did, "pid": os.getpid(), "parent": os.getppid(), **facts}, default=str)
        os.write(self._fd, line.encode() + b"\n")


def _sink(path):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def sink(boundary):
        facts = {
            "event": boundary.event_type,
            "scope": boundary.scope_id,
            "path": boundary.path,
            "metadata": boundary.metadata,
        }
        os.write(fd, json.dumps(facts, default=str).encode() + b"\n")

    return sink


class OwnClock:
    """A clock of the program's own."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)


def _bridge(program, directory):
    wanted = program["bridge"]
    if wanted is None:
        return {"bridge": None}
    is_default = wanted == "default"
    providers = () if is_default else ("tracer_provider", "logger_provider", "meter_provider")
    chosen = {name: wanted.get(name, "own") for name in providers}
    needs_globals = is_default or "global" in chosen.values()
    telemetry = configure("story", jsonl_dir=directory / "spans", set_globals=needs_globals)
    atexit.register(telemetry.shutdown)  # After the tracker's own, which is registered later.
    if is_default:
        return {}
    given = {name: getattr(telemetry, name) if choice == "own" else None for name, choice in chosen.items()}
    return {"bridge": OTelBridge(**{"recover": False, **wanted, **given})}


def _journal(kind, directory):
    if kind == "options":
        return JournalOptions(directory / "runs")
    return directory / "runs" if kind else None


def _sinks(kind, directory):
    sinks = [_sink(directory / "sink.jsonl"), lambda _: 1 / 0]
    return sinks[: ("none", "one", "two").index(kind)]


def _store(kind, directory):
    if kind == "sqlite":
        return SqliteStore(directory / "runs.db")
    return MemoryStore() if kind == "memory" else None


def _dump(tracker, store, directory):
    tracker.stop()
    (directory / "stats.json").write_text(json.dumps(tracker.stats(), default=str))
    if isinstance(store, MemoryStore):
        (directory / "memory.jsonl").write_text("".join(record.to_json() + "\n" for record in store.query()))


def run(program, directory):
    """Run a program in this process, to its end."""
    directory = Path(directory)
    os.environ.update({"STORY_DIRECTORY": str(directory), "OTEL_METRICS_EXPORTER": "none", **program["environ"]})
    os.chdir(directory)
    log = Log(directory / "did.jsonl")
    store = _store(program["store"], directory)
    options = {"name": "story", **program["tracker"], **_bridge(program, directory)}
    if options["capture"] == "options":
        options["capture"] = CaptureOptions()
    tracker = PhaseTracker(
        options.pop("name"),
        store=store,
        journal=_journal(program["journal"], directory),
        sinks=_sinks(program.get("sinks", "one"), directory),
        clock=OwnClock() if program.get("clock") == "own" else None,
        **options,
    )
    atexit.register(_dump, tracker, store, directory)
    if program["start"] == "with":
        with tracker:
            _play(tracker, log, program)
    elif program["start"] == "start_stop":
        tracker.start()
        try:
            _play(tracker, log, program)
        finally:
            tracker.stop()
    else:
        tracker.start()
        _play(tracker, log, program)


def _play(tracker, log, program):
    log("started", session=tracker.session_id)
    print("the program says something")  # noqa: T201 - captured, or not
    try:
        Everywhere(tracker, log).sync_body(program["body"])
    except BaseException as error:
        log("raised", error=f"{type(error).__name__}: {error.args}")
        raise
    if program["end"]["how"] == "exception":
        log("raised", error="Trouble: at the end")
        raise Trouble("at the end")
    log("over")
    gc.collect()


def main(arguments):
    """Run the program of a directory; or, as a worker, operations for the session that started this process."""
    if arguments[0] == "--worker":
        log = Log(Path(arguments[2]) / "did.jsonl")
        log("works")
        with contextlib.suppress(Exception), stormphase.worker() as tracker:
            Everywhere(tracker, log).sync_body(json.loads(arguments[1]))
        return
    directory = Path(arguments[0])
    run(json.loads((directory / "program.json").read_text()), directory)


if __name__ == "__main__":
    main(sys.argv[1:])
