"""Interprets a random program (see `programs.py`) with the public API, and writes down what it does, before and after.

What it writes is the oracle: see `Log` in `play.py`. A phase is known there by its attribute `op`.
"""

# ruff: noqa: ASYNC251, TID251 - programs do what programs do

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import os
import threading
import time

import anyio

import stormphase

_held = []
_numbers = itertools.count()  # One for a process: workers of a pool make an interpreter for each piece of work.
_driven = contextvars.ContextVar("driven", default=())  # The task, or None, that runs a coroutine by hand.
FLUSH_S = 20.0
LOOP_ENDS = (StopIteration, StopAsyncIteration)


class Trouble(Exception):  # noqa: N818 - programs name theirs as they like
    """An error of the program's own."""


class Hostile(Exception):  # noqa: N818 - likewise
    """An error that cannot be printed."""

    def __str__(self):
        """Fail."""
        raise RuntimeError("no text")


ERRORS = {
    each.__name__: each
    for each in (
        ValueError,
        KeyError,
        OSError,
        Trouble,
        Hostile,
        KeyboardInterrupt,
        SystemExit,
        StopIteration,
        StopAsyncIteration,
    )
}


def drive(coroutine):
    """Run a coroutine that never waits, here and now, without a loop."""
    token = _driven.set(_task_here())
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    finally:
        _driven.reset(token)
    raise AssertionError("it waited")


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
        self.numbers = _numbers
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
        thread = threading.current_thread().name
        self.log("entered", key=key, scope=scope, path=path or None, thread=thread, **facts)

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
            known = None if unknown else min(leaves, default=(next(self.order), key, lane_here()))
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
            "quiet": lambda: self.tracker.phase(name, attributes=attributes, level="DEBUG"),
        }
        is_quiet = op["how"] == "quiet" and self.tracker.level is not None
        await self.within(key, ways[op["how"]](), op, attributes, quiet=is_quiet)

    async def within(self, key, block, op, attributes, **facts):
        """Run operations inside a block that gives a handle, and note its enter and its end."""
        error = None
        try:
            with block as handle:
                self.entered(key, handle, attributes=attributes, **facts)
                with self.is_open(key, handle):
                    await self.body(op["in"])
                self.log("ending", key=key)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.ended(key, error)

    @contextlib.contextmanager
    def is_open(self, key, handle):
        """Have a phase, and its handle if there is one, at hand for the operations inside it."""
        token = self.handles.set((*self.handles.get(), (key, handle, lane_here())))
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                self.handles.reset(token)

    async def _token(self, op, key, name, attributes):
        token = self.tracker.enter(name, attributes, sync=op["sync"])
        thread = threading.current_thread().name
        self.log("entered", key=key, scope=token.scope_id, path=None, thread=thread, attributes=attributes)
        error = None
        try:
            with self.is_open(key, None):
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
            with interpreter.is_open(key, None):
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
        if may_wait():
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
            self.log("saying", key=key, attributes=op["attributes"])
            handle.add_event("checked", op["attributes"])
        elif op["way"] == "attributes":
            handle.set_attributes(op["attributes"])
        else:
            for name, value in op["attributes"].items():
                handle.set_attribute(name, value)

    async def do_pause(self, op):
        """Pause the innermost phase for a moment, if it is this lane's and its handle is at hand."""
        _, handle, lane = self.handles.get()[-1] if self.handles.get() else (None, None, None)
        if handle is not None and lane == lane_here():
            handle.pause()
            time.sleep(op["ms"] / 1000)
            handle.resume()

    async def do_say(self, op):
        """Print a line in the innermost phase."""
        key = self.handles.get()[-1][0]
        self.log("printing", key=key, text=f"said in {key}")
        print(f"said in {key}")  # noqa: T201 - captured, or not

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
        origin = self.origins.get(_text(error))
        if origin is None or origin[2] != lane_here():
            self.origins[_text(other)] = None  # What came from another thread or task may be the cause of both.
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
                phase = self.tracker.enter_phase(op["name"], attributes, sync=op["tries"] % 2 == 0)
            else:
                phase = self.tracker.retry(previous, attributes)
            last = previous
            previous = phase
            raises = [{"op": "raise", "n": op["n"], "error": "OSError"}]
            if attempt:  # A try after the first one fails by what is inside it.
                raises = [
                    {**op, "op": "phase", "how": "with", "name": "write", "attributes": {}, "sync": False, "in": raises}
                ]
            inside = {"in": op["in"] if attempt == op["tries"] else raises}
            retried = None if last is None else last.scope_id
            with contextlib.suppress(OSError) if attempt < op["tries"] else contextlib.nullcontext():
                await self.within(key, phase, inside, attributes, attempt=attempt, retry_of=retried)

    async def do_generator(self, op):
        """Go through a decorated generator, to its end or not."""
        key = self.key(op)
        interpreter = self

        @self.tracker.phase(op["name"], arguments=["key"])
        def items(key):
            interpreter.entered(key, None, attributes={"key": key}, moves=True)
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
            interpreter.entered(key, None, attributes={"key": key}, moves=True)
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
                    scope, thread = left[-1][1].scope_id, threading.current_thread().name
                    self.log("entered", key=key, scope=scope, path=None, thread=thread, attributes={"op": key})
                with self.is_open(outer, None):
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


def may_wait():
    """Return whether the caller is a task and can let others run: not so in a function beneath it, a generator say."""
    return _task_here() not in (None, _driven.get())


def lane_here():
    """Return what tells this thread and task from others, those of other processes too."""
    return os.getpid(), threading.get_ident(), _task_here()


def _task_here():
    try:
        return anyio.get_current_task().id
    except RuntimeError:
        return None


def _text(error):
    if type(error).__name__ in ERRORS and error.args and not _is_group(error):
        return f"{type(error).__name__} {error.args!r}"
    _held.append(error)  # So that no other one has its id.
    return f"{type(error).__name__} {id(error)}"


def _is_group(error):
    return hasattr(error, "exceptions")


def _leaves(error):
    if not _is_group(error):
        return []
    return [leaf for each in error.exceptions for leaf in (_leaves(each) if _is_group(each) else [each])]


def _must_pass(error):
    """Return whether a program has to let such an exception through: a loop's own way to cancel a task."""
    return not isinstance(error, (Exception, KeyboardInterrupt, SystemExit)) and not _is_group(error)
