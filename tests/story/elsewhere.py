"""Interprets what goes on elsewhere: threads, tasks, moves to them, forked children, pools and other programs."""

# ruff: noqa: ASYNC110, ASYNC221, ASYNC222, ASYNC240, ASYNC251, TID251 - programs do what programs do

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
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
from story_interpreter import Interpreter, drive, may_wait

import stormphase

HOLD_S = 30.0
_PLAY = Path(__file__).with_name("play.py")


class Everywhere(Interpreter):
    """An interpreter of all operations."""

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
        while thread.is_alive() and may_wait():
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
            with self.is_open(key, handle):
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
            await self.body(
                [
                    {
                        "op": "phase",
                        "n": 0,
                        "how": "with",
                        "name": "wait",
                        "attributes": {},
                        "sync": False,
                        "in": [*body, {"op": "sleep", "n": 0, "ms": 60_000}],
                    }
                ]
            )

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
        command = [sys.executable, str(_PLAY), "--worker", json.dumps(op["in"]), os.environ["STORY_DIRECTORY"]]
        subprocess.run(command, env=self.tracker.environment(), check=False)

    async def do_hold(self, op):
        """Wait until whoever runs the program has looked at what is told of it so far."""
        self.log("holds")
        until = time.monotonic() + HOLD_S
        while not os.path.exists("go") and time.monotonic() < until:  # noqa: PTH110 - strings
            time.sleep(0.001)

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
    """Do a piece of work in a worker process; what is raised stays here: a pool waits for ever for a dead worker."""
    interpreter = _WORK["interpreter"]
    with contextlib.suppress(Exception, KeyboardInterrupt, SystemExit):
        if carrier is None:
            interpreter.sync_body(body)
        else:
            with stormphase.worker(carrier) as tracker:
                Everywhere(tracker, interpreter.log).sync_body(body)


def _call(function):
    function()
