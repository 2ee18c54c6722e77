"""Runs one random program (see `programs.py`) with the public API, and writes down what it does, before and after.

What it writes is the oracle: one line of JSON each, by one `os.write` to a file opened for appending, so that a line
that stands there was true whatever killed the process afterwards. A phase is known there by its attribute `op`.

`main` takes a directory with `program.json`, and leaves `did.jsonl`, `sink.jsonl`, `memory.jsonl`, `stats.json`, the
journal below `runs/`, `runs.db` and the spans and logs below `spans/`.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import gc
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio

import stormphase
from stormphase import PhaseTracker
from stormphase.otel import OTelBridge, configure
from stormphase.stores import MemoryStore, SqliteStore

FLUSH_S = 20.0
LOOP_ENDS = (StopIteration, StopAsyncIteration)


class Trouble(Exception):
    """An error of the program's own."""


class Hostile(Exception):
    """An error that cannot be printed."""

    def __str__(self):
        """Fail."""
        raise RuntimeError("no text")


ERRORS = {
    each.__name__: each
    for each in (ValueError, KeyError, OSError, Trouble, Hostile, KeyboardInterrupt, SystemExit, StopIteration,
                 StopAsyncIteration)
}


def drive(coroutine):
    """Run a coroutine that never waits, here and now, without a loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


class Log:
    """Appends lines of JSON to a file, each by one system call, in any process."""

    def __init__(self, path):
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, did, **facts):
        """Write a line."""
        line = json.dumps({"did": did, "pid": os.getpid(), **facts}, default=str)
        os.write(self._fd, line.encode() + b"\n")


def expected_status(error):
    """Return the status of a phase that such an exception leaves."""
    if error is None or isinstance(error, LOOP_ENDS):
        return "succeeded"
    return "failed" if isinstance(error, Exception) and not isinstance(error, asyncio.CancelledError) else "cancelled"


class Interpreter:
    """Runs operations; one for a process, and copied by a fork."""

    def __init__(self, tracker, log):
        self.tracker = tracker
        self.log = log
        self.numbers = itertools.count()
        self.origins = {}  # An exception's text: the phase that it left first, and in which order, or None if unknown.
        self.order = itertools.count()
        self.steps = {}
        self.handles = contextvars.ContextVar("handles", default=())

    # What the oracle notes

    def key(self, op):
        """Return a new name for a phase."""
        return f"{op['n']}:{os.getpid()}:{next(self.numbers)}"

    def entered(self, key, handle, **facts):
        """Note that a phase is open."""
        scope = None if handle is None else handle.scope_id
        path = None if handle is None else list(handle.path)
        self.log("entered", key=key, scope=scope, path=path or None, **facts)

    def ended(self, key, error, *, did="ended", status=None):
        """Note that a phase has ended by an exception or without, and where that exception arose."""
        cause = None
        if error is not None and expected_status(error) == "failed":
            cause = self.cause_of(error, key)
        kind = None if error is None else type(error).__name__
        self.log(did, key=key, status=status or expected_status(error), error=kind, cause=cause)

    def cause_of(self, error, key):
        """Return the key of the phase in which an exception arose, None where this cannot tell."""
        text = _text(error)
        known = self.origins.get(text)
        if known is None and text not in self.origins:
            leaves = [self.origins[each] for each in map(_text, _leaves(error)) if self.origins.get(each)]
            unknown = any(_text(each) in self.origins and self.origins[_text(each)] is None for each in _leaves(error))
            known = None if unknown else min(leaves, default=(next(self.order), key))
            self.origins[text] = known
        return None if known is None else known[1]

    # Running

    async def body(self, operations):
        """Run operations one after another."""
        for op in operations:
            await getattr(self, f"do_{op['op']}")(op)

    def sync_body(self, operations):
        """Run operations that wait for nothing."""
        drive(self.body(operations))

    async def do_phase(self, op):
        """Enter a phase in one of the ways that there are."""
        key = self.key(op)
        attributes = {"op": key, **op["attributes"]}
        name = op["name"]
        if op["how"] == "token":
            await self._token(op, key, name, attributes)
            return
        if op["how"] == "decorated":
            await self._decorated(op, key)
            return
        ways = {
            "with": lambda: self.tracker.enter_phase(name, attributes, sync=op["sync"]),
            "late": lambda: self.tracker.phase(name, attributes=attributes, sync=op["sync"]),
            "ambient": lambda: stormphase.phase(name, attributes=attributes),
        }
        await self._within(key, ways[op["how"]](), op, attributes)

    async def _within(self, key, block, op, attributes, **facts):
        error = None
        try:
            with block as handle:
                self.entered(key, handle, attributes=attributes, **facts)
                with self._open(key, handle):
                    await self.body(op["in"])
                self.log("ending", key=key)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.ended(key, error)

    @contextlib.contextmanager
    def _open(self, key, handle):
        token = self.handles.set((*self.handles.get(), (key, handle, _lane())))
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                self.handles.reset(token)

    async def _token(self, op, key, name, attributes):
        token = self.tracker.enter(name, attributes, sync=op["sync"])
        self.log("entered", key=key, scope=token.scope_id, path=None, attributes=attributes)
        error = None
        try:
            with self._open(key, None):
                await self.body(op["in"])
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.log("ending", key=key)
            self.tracker.exit(token, error=error)
            self.ended(key, error)

    async def _decorated(self, op, key):
        interpreter = self

        @self.tracker.phase(op["name"], arguments=["op"], attributes=op["attributes"])
        async def function(op):
            interpreter.entered(key, None, attributes={"op": key, **operation["attributes"]})
            with interpreter._open(key, None):
                await interpreter.body(operation["in"])

        operation = op
        error = None
        try:
            await function(key)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.ended(key, error)

    async def do_sleep(self, op):
        """Wait a moment."""
        await self.wait(op["ms"] / 1000)

    async def wait(self, seconds):
        """Wait, in a loop by letting others run."""
        if _has_loop():
            await anyio.sleep(seconds)
        else:
            time.sleep(seconds)

    async def do_step(self, op):
        """Set the step."""
        self.tracker.set_step(op["step"])

    async def do_late(self, op):
        """Say more of the innermost phase whose handle is at hand."""
        key, handle, _ = self.handles.get()[-1] if self.handles.get() else (None, None, None)
        if handle is None:
            return
        self.log("setting", key=key, attributes=op["attributes"] if op["way"] != "event" else {})
        if op["way"] == "event":
            handle.add_event("checked", op["attributes"])
        elif op["way"] == "attributes":
            handle.set_attributes(op["attributes"])
        else:
            for name, value in op["attributes"].items():
                handle.set_attribute(name, value)

    async def do_pause(self, op):
        """Pause the innermost phase for a moment, if it is this lane's and its handle is at hand."""
        _, handle, lane = self.handles.get()[-1] if self.handles.get() else (None, None, None)
        if handle is not None and lane == _lane():
            handle.pause()
            time.sleep(op["ms"] / 1000)
            handle.resume()

    async def do_flush(self, op):
        """Wait until all sinks have all."""
        self.log("flushing")
        self.log("flushed", ok=self.tracker.flush(FLUSH_S))

    async def do_raise(self, op):
        """Raise."""
        raise ERRORS[op["error"]](f"trouble {next(self.numbers)} of {os.getpid()}")

    async def do_try(self, op):
        """Handle what is raised inside, or raise it again in one of the usual ways."""
        catches = {"Exception": Exception, "BaseException": BaseException}[op["catches"]]
        try:
            await self.body(op["in"])
        except GeneratorExit:
            raise
        except catches as error:
            if _must_pass(error) or op["then"] == "reraise":
                raise
            if op["then"] == "handle":
                return
            other = Trouble(f"trouble {next(self.numbers)} of {os.getpid()}")
            if op["then"] == "from":
                self.origins[_text(other)] = self.origins.get(_text(error))
                raise other from error
            if op["then"] == "from_elsewhere":
                await self._raise_in_a_phase(op, other, error)
            self.origins[_text(other)] = None
            raise other  # noqa: B904 - as programs do

    async def _raise_in_a_phase(self, op, other, error):
        key = self.key(op)
        try:
            with self.tracker.enter_phase("clean_up", {"op": key}) as handle:
                self.entered(key, handle, attributes={"op": key})
                raise other from error
        finally:
            self.ended(key, other)

    async def do_retry(self, op):
        """Try, fail and try again."""
        previous = None
        for attempt in range(op["tries"] + 1):
            key = self.key(op)
            attributes = {"op": key, "try": attempt}
            if previous is None:
                phase = self.tracker.enter_phase(op["name"], attributes)
            else:
                phase = self.tracker.retry(previous, attributes)
            last = previous
            previous = phase
            inside = {"in": op["in"] if attempt == op["tries"] else [{"op": "raise", "n": op["n"], "error": "OSError"}]}
            retried = None if last is None else last.scope_id
            with contextlib.suppress(OSError) if attempt < op["tries"] else contextlib.nullcontext():
                await self._within(key, phase, inside, attributes, attempt=attempt, retry_of=retried)

    async def do_generator(self, op):
        """Go through a decorated generator, to its end or not."""
        key = self.key(op)
        interpreter = self

        @self.tracker.phase(op["name"], arguments=["key"])
        def items(key):
            interpreter.entered(key, None, attributes={"key": key, "op": key}, moves=True)
            for number in range(op["items"]):
                interpreter.sync_body(op["in"])
                yield number
            if op["stop"] == "raises":
                raise Trouble(f"trouble {next(interpreter.numbers)} of {os.getpid()}")

        await self._consume(op, key, items(key))

    async def _consume(self, op, key, made):
        status, error = "succeeded", None
        try:
            for _ in made:
                await self.body(op["between"])
                if op["stop"] in ("closed", "dropped"):
                    status = "cancelled"
                    break
                if op["stop"] == "consumer_raises":
                    raise Trouble(f"trouble {next(self.numbers)} of {os.getpid()}")
        except BaseException as raised:
            error = raised
            raise
        finally:
            is_over = getattr(made, "gi_frame", made) is None
            self.log("ending", key=key)
            if not is_over:
                made.close()
                status, error = "cancelled", None
            self.ended(key, error, status=status if error is None else None)

    async def do_async_generator(self, op):
        """Go through a decorated async generator, to its end or not."""
        key = self.key(op)
        interpreter = self

        @self.tracker.phase(op["name"], arguments=["key"])
        async def items(key):
            interpreter.entered(key, None, attributes={"key": key, "op": key}, moves=True)
            for number in range(op["items"]):
                await interpreter.body(op["in"])
                yield number
            if op["stop"] == "raises":
                raise Trouble(f"trouble {next(interpreter.numbers)} of {os.getpid()}")

        made = items(key)
        status, error = "succeeded", None
        try:
            async for _ in made:
                await self.body(op["between"])
                if op["stop"] == "closed":
                    status = "cancelled"
                    break
        except BaseException as raised:
            error = raised
            raise
        finally:
            is_over = getattr(made, "ag_frame", made) is None
            self.log("ending", key=key)
            if not is_over:
                await made.aclose()
                status, error = "cancelled", None
            self.ended(key, error, status=status if error is None else None)

    async def do_callback(self, op):
        """Begin and end phases in callbacks, which are not called when an exception passes."""
        outer = self.key(op)
        left = []
        try:
            with self.tracker.enter_phase("fit", {"op": outer}) as handle:
                self.entered(outer, handle, attributes={"op": outer})
                for name in op["names"]:
                    key = self.key(op)
                    left.append((key, self.tracker.enter(name, {"op": key})))
                    self.log("entered", key=key, scope=left[-1][1].scope_id, path=None, attributes={"op": key})
                await self.body(op["in"])
                if op["fails"]:
                    raise Trouble(f"trouble {next(self.numbers)} of {os.getpid()}")
                while left:
                    key, token = left.pop()
                    self.tracker.exit(token)
                    self.ended(key, None)
        except BaseException as error:
            for key, _ in reversed(left):
                self.ended(key, error)
            self.ended(outer, error)
            if op["fails"] and isinstance(error, Trouble):
                return
            raise
        self.ended(outer, None)

    async def do_iterator_end(self, op):
        """Reach the end of an iterator inside a phase."""
        key = self.key(op)
        try:
            with self.tracker.enter_phase("next", {"op": key}) as handle:
                self.entered(key, handle, attributes={"op": key})
                raise ERRORS[op["kind"]]
        except LOOP_ENDS as error:
            self.ended(key, error)

    async def do_thread(self, op):
        """Run operations in a thread and wait for it; what it raises may come out here."""
        raised = []

        def target():
            try:
                self.sync_body(op["in"])
            except BaseException as error:
                raised.append(error)

        call = contextvars.copy_context().run if op["copies"] else _call
        thread = threading.Thread(target=call, args=(target,), name=f"thread-{op['n']}")
        thread.start()
        await self._joined(thread)
        if raised and op["passes"] and isinstance(raised[0], Exception):
            raise raised[0]

    async def _joined(self, thread):
        while thread.is_alive() and _has_loop():
            await anyio.sleep(0.001)
        thread.join()

    async def do_thread_pool(self, op):
        """Run operations in a pool of threads, and let the first exception out."""
        with concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix=f"pool-{op['n']}") as pool:
            futures = [pool.submit(self._caught, body) for body in op["bodies"]]
            for future in futures:
                future.result()

    def _caught(self, body):
        try:
            self.sync_body(body)
        except Exception:
            raise
        except BaseException:  # noqa: S110 - a pool would die of it
            pass

    async def do_move(self, op):
        """Enter a phase here, and end it in another thread."""
        key, token = await self._released(op)

        def target():
            handle = self.tracker.acquire(token)
            error = None
            try:
                with handle:
                    self.log("moved", key=key)
                    self.sync_body(op["there"])
                    self.log("ending", key=key)
            except BaseException as raised:
                error = raised
            self.ended(key, error)

        thread = threading.Thread(target=target, name=f"taker-{op['n']}")
        thread.start()
        await self._joined(thread)

    async def _released(self, op):
        key = self.key(op)
        attributes = {"op": key, **op["attributes"]}
        handle = self.tracker.enter_phase(op["name"], attributes)
        self.entered(key, handle, attributes=attributes, moves=True)
        try:
            with self._open(key, handle):
                await self.body(op["in"])
        except BaseException as error:
            handle.close(error=error)
            self.ended(key, error)
            raise
        return key, handle.release()

    async def do_move_task(self, op):
        """Enter a phase in this task, and end it in another one."""
        key, token = await self._released(op)

        async def target():
            handle = self.tracker.acquire(token)
            error = None
            try:
                with handle:
                    self.log("moved", key=key)
                    await self.body(op["there"])
                    self.log("ending", key=key)
            except BaseException as raised:
                error = raised
                if not isinstance(raised, Exception):
                    raise
            finally:
                self.ended(key, error)

        async with anyio.create_task_group() as group:
            group.start_soon(target, name=f"taker-{next(self.numbers)}")

    async def do_loop(self, op):
        """Run operations in a loop of their own."""
        anyio.run(self.body, op["in"], backend=op["backend"])

    async def do_tasks(self, op):
        """Run operations in tasks, side by side."""
        async with anyio.create_task_group() as group:
            for number, body in enumerate(op["bodies"]):
                name = f"task-{next(self.numbers)}"
                if op["how"] == "nested" and number == 0:
                    inner = {"how": "group", "bodies": [body, op["bodies"][-1]], "n": op["n"]}
                    group.start_soon(self.do_tasks, inner, name=name)
                else:
                    group.start_soon(self.body if op["how"] != "cancel" else self._waiting, body, name=name)
            if op["how"] == "cancel":
                await anyio.sleep(0.002)
                group.cancel_scope.cancel()

    async def _waiting(self, body):
        with contextlib.suppress(Exception):
            await self.body([{"op": "phase", "n": 0, "how": "with", "name": "wait", "attributes": {}, "sync": False,
                              "in": [*body, {"op": "sleep", "n": 0, "ms": 60_000}]}])

    # Other processes

    async def do_fork(self, op):
        """Fork, run operations in the child, and wait for it."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
        code = 0
        try:
            self.sync_body([*op["in"], *([{"op": "kill", "n": op["n"], "how": "kill"}] if op["end"] == "kill" else [])])
            if op["end"] == "kill_open":
                self.tracker.enter_phase("dies", {"op": self.key(op)})
                os.kill(os.getpid(), signal.SIGKILL)
            if op["end"] == "flush":
                drive(self.do_flush(op))
        except BaseException:
            code = 1
        finally:
            os._exit(code)

    async def do_process_pool(self, op):
        """Give work to a pool of processes, with a carrier or without."""
        carriers = [self.tracker.carrier() if op["carried"] else None] * op["items"]
        context = multiprocessing.get_context("fork")
        _WORK["interpreter"] = self
        sys.stdout.flush()
        if op["how"] == "Pool":
            with context.Pool(2) as pool:
                pool.starmap(work, [(carrier, op["in"]) for carrier in carriers])
            return
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            list(pool.map(work, carriers, [op["in"]] * len(carriers)))

    async def do_subprocess(self, op):
        """Run operations in another program that works for this one."""
        command = [sys.executable, __file__, "--worker", json.dumps(op["in"]), os.environ["STORY_DIRECTORY"]]
        subprocess.run(command, env=self.tracker.environment(), check=False)

    async def do_kill(self, op):
        """End the process, in one of the ways that there are."""
        self.log("killing", how=op["how"])
        if op["how"] == "exit":
            sys.exit(3)
        if op["how"] == "_exit":
            os._exit(4)
        os.kill(os.getpid(), signal.SIGKILL if op["how"] == "kill" else signal.SIGTERM)
        await self.wait(0)


_WORK = {}


def work(carrier, body):
    """Do a piece of work in a worker process; what is raised stays here."""
    interpreter = _WORK["interpreter"]
    with contextlib.suppress(Exception):
        if carrier is None:
            interpreter.sync_body(body)
        else:
            with stormphase.worker(carrier) as tracker:
                Interpreter(tracker, interpreter.log).sync_body(body)


def _call(function):
    function()


def _has_loop():
    try:
        anyio.get_current_task()
    except RuntimeError:
        return False
    return True


def _lane():
    """Return what tells this thread and task from others."""
    return threading.get_ident(), anyio.get_current_task().id if _has_loop() else None


def _text(error):
    return f"{type(error).__name__} {error.args!r} {id(error) if not error.args or _is_group(error) else ''}"


def _is_group(error):
    return hasattr(error, "exceptions")


def _leaves(error):
    if not _is_group(error):
        return []
    return [leaf for each in error.exceptions for leaf in (_leaves(each) if _is_group(each) else [each])]


def _must_pass(error):
    """Return whether a program has to let such an exception through: a loop's own way to cancel a task."""
    return not isinstance(error, (Exception, KeyboardInterrupt, SystemExit)) and not _is_group(error)


# --- one program ------------------------------------------------------------------------------------------------------


def _sink(path):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def sink(boundary):
        facts = {"event": boundary.event_type, "scope": boundary.scope_id, "path": boundary.path,
                 "metadata": boundary.metadata}
        os.write(fd, json.dumps(facts, default=str).encode() + b"\n")

    return sink


def _bridge(program, directory):
    if program["bridge"] is None:
        return None
    telemetry = configure("story", jsonl_dir=directory / "spans")
    atexit.register(telemetry.shutdown)  # After the tracker's own, which is registered later.
    options = {"recover": False, **program["bridge"]}
    return OTelBridge(telemetry.tracer_provider, telemetry.logger_provider, telemetry.meter_provider, **options)


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
    os.environ.update({"STORY_DIRECTORY": str(directory), **program["environ"]})
    log = Log(directory / "did.jsonl")
    store = _store(program["store"], directory)
    tracker = PhaseTracker(
        "story",
        bridge=_bridge(program, directory),
        store=store,
        journal=directory / "runs" if program["journal"] else None,
        sinks=[_sink(directory / "sink.jsonl")],
        **program["tracker"],
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
        Interpreter(tracker, log).sync_body(program["body"])
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
        with contextlib.suppress(Exception), stormphase.worker() as tracker:
            Interpreter(tracker, Log(Path(arguments[2]) / "did.jsonl")).sync_body(json.loads(arguments[1]))
        return
    directory = Path(arguments[0])
    run(json.loads((directory / "program.json").read_text()), directory)


if __name__ == "__main__":
    main(sys.argv[1:])
