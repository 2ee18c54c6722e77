"""Random real programs: trees of operations as plain data, the same for the same seed, which `interpreter.py` runs.

An operation is a dict: `op` says what, `n` is its number in the tree, `in` has the operations inside it. Nothing here
knows stormphase.
"""

from __future__ import annotations

import random

NAMES = ("train", "epoch", "step", "forward", "backward", "load", "save", "evaluate", "all_reduce", "tokenize")
ERRORS = ("ValueError", "KeyError", "OSError", "Trouble", "Hostile")
FATAL = ("KeyboardInterrupt", "SystemExit")
HOWS = ("with", "with", "with", "late", "ambient", "token", "decorated")
ENDINGS = ("clean", "clean", "kill", "kill", "exception", "exit", "sigterm", "stop_on_sigterm", "parent_kill", "_exit")
MAX_DEPTH = 5
HELD = 0.2  # So many of the programs are also looked at while they run.
SYNC, LOOP, IN_LOOP = "sync", "loop", "in_loop"  # No event loop in this thread; a coroutine; a function beneath one.


class _Writer:
    """Writes one program; `left` is how many operations it may still have."""

    def __init__(self, seed, size):
        self.chance = random.Random(seed)
        self.left = size
        self.processes = 2  # Forks, pools and subprocesses cost time.
        self.threads = 4

    def number(self, op, **more):
        self.left -= 1
        return {"op": op, "n": -1, **more}

    def body(self, mode, depth, *, most=4):
        """Return some operations."""
        count = self.chance.randint(1, most) if self.left > 0 and depth < MAX_DEPTH else 0
        return [self.one(mode, depth) for _ in range(count)]

    def one(self, mode, depth):
        """Return one operation."""
        kinds = {"phase": 10, "sleep": 1, "step": 1, "late": 4, "try": 3, "retry": 1, "generator": 2, "pause": 2}
        kinds.update({"callback": 1, "iterator_end": 1, "flush": 0.4})
        if depth > 0:
            kinds["raise"] = 0.15
        if self.threads > 0:
            kinds.update({"thread": 2, "thread_pool": 1, "move": 2})
        if mode == SYNC:
            kinds["loop"] = 2
        if mode == LOOP:
            kinds.update({"tasks": 5, "async_generator": 2, "move_task": 2})
        if mode == SYNC and self.processes > 0 and depth < 3:
            kinds.update({"fork": 1, "process_pool": 0.7, "subprocess": 0.1})
        kind = self.chance.choices(list(kinds), list(kinds.values()))[0]
        return getattr(self, f"_{kind}")(mode, depth + 1)

    def _attributes(self):
        chance = self.chance
        values = (
            chance.randrange(100),
            chance.random(),
            True,
            "text",
            [1, 2, 3],
            ["a", "b"],
            "na\u00efve \u2713",
            2**40,
        )
        return {key: chance.choice(values) for key in chance.sample(("a", "b", "c", "loss"), chance.randrange(3))}

    def _phase(self, mode, depth, how=None):
        return self.number(
            "phase",
            how=how or self.chance.choice(HOWS),
            name=self.chance.choice(NAMES),
            attributes=self._attributes(),
            sync=self.chance.random() < 0.1,
            **{"in": self.body(mode, depth)},
        )

    def _sleep(self, mode, depth):
        return self.number("sleep", ms=self.chance.choice((0, 0, 1, 2, 5)))

    def _step(self, mode, depth):
        return self.number("step", step=self.chance.choice((None, 0, 1, 2, 77, 10**12)))

    def _late(self, mode, depth):
        way = self.chance.choice(("attribute", "attributes", "event"))
        return self.number("late", way=way, attributes=self._attributes() or {"loss": self.chance.random()})

    def _pause(self, mode, depth):
        return self.number("pause", ms=self.chance.choice((0, 1)))

    def _flush(self, mode, depth):
        return self.number("flush")

    def _raise(self, mode, depth):
        kind = self.chance.choice(FATAL if self.chance.random() < 0.1 else ERRORS)
        return self.number("raise", error=kind)

    def _try(self, mode, depth):
        then = self.chance.choice(("handle", "handle", "handle", "reraise", "from", "from_elsewhere", "anew"))
        inside = self.body(mode, depth)
        if self.chance.random() < 0.7:
            inside.append(self._failing(mode, depth))
        return self.number(
            "try", then=then, catches=self.chance.choice(("Exception", "BaseException")), **{"in": inside}
        )

    def _failing(self, mode, depth):
        phase = self._phase(mode, depth + 1)
        phase["in"].append(self._raise(mode, depth))
        return phase

    def _retry(self, mode, depth):
        return self.number(
            "retry",
            name=self.chance.choice(NAMES),
            tries=self.chance.randint(1, 3),
            **{"in": self.body(mode, depth, most=2)},
        )

    def _generator(self, mode, depth):
        inner = SYNC if mode == SYNC else IN_LOOP
        stop = self.chance.choice(("exhausted", "exhausted", "closed", "dropped", "consumer_raises", "raises"))
        return self.number(
            "generator",
            name=self.chance.choice(NAMES),
            items=self.chance.randint(1, 3),
            stop=stop,
            **{"in": self.body(inner, depth, most=2), "between": self.body(mode, depth, most=2)},
        )

    def _async_generator(self, mode, depth):
        return {
            **self._generator(mode, depth),
            "op": "async_generator",
            "stop": self.chance.choice(("exhausted", "closed", "raises")),
        }

    def _callback(self, mode, depth):
        return self.number(
            "callback",
            names=self.chance.choices(NAMES, k=self.chance.randint(1, 3)),
            fails=self.chance.random() < 0.6,
            **{"in": self.body(mode, depth, most=2)},
        )

    def _iterator_end(self, mode, depth):
        return self.number("iterator_end", kind=self.chance.choice(("StopIteration", "StopAsyncIteration")))

    def _thread(self, mode, depth):
        self.threads -= 1
        return self.number(
            "thread",
            copies=self.chance.random() < 0.5,
            passes=self.chance.random() < 0.5,
            **{"in": self.body(SYNC, depth)},
        )

    def _thread_pool(self, mode, depth):
        self.threads -= 1
        return self.number("thread_pool", bodies=[self.body(SYNC, depth, most=2) for _ in range(2)])

    def _move(self, mode, depth):
        self.threads -= 1
        inner = SYNC if mode == SYNC else IN_LOOP
        return self.number(
            "move",
            name=self.chance.choice(NAMES),
            attributes=self._attributes(),
            **{"in": self.body(inner, depth, most=2), "there": self.body(SYNC, depth, most=2)},
        )

    def _move_task(self, mode, depth):
        return self.number(
            "move_task",
            name=self.chance.choice(NAMES),
            attributes=self._attributes(),
            **{"in": self.body(mode, depth, most=2), "there": self.body(mode, depth, most=2)},
        )

    def _loop(self, mode, depth):
        return self.number(
            "loop", backend=self.chance.choice(("asyncio", "asyncio", "trio")), **{"in": self.body(LOOP, depth)}
        )

    def _tasks(self, mode, depth):
        how = self.chance.choice(("group", "group", "cancel", "nested"))
        return self.number("tasks", how=how, bodies=[self.body(LOOP, depth, most=3) for _ in range(3)])

    def _fork(self, mode, depth):
        self.processes -= 1
        return self.number(
            "fork",
            end=self.chance.choice(("flush", "_exit", "kill", "kill_open")),
            **{"in": self.body(SYNC, depth, most=3)},
        )

    def _process_pool(self, mode, depth):
        self.processes -= 1
        return self.number(
            "process_pool",
            how=self.chance.choice(("Pool", "Pool", "executor")),
            carried=self.chance.random() < 0.5,
            items=self.chance.randint(1, 4),
            **{"in": self.body(SYNC, depth, most=2)},
        )

    def _subprocess(self, mode, depth):
        self.processes -= 1
        return self.number("subprocess", **{"in": self.body(SYNC, depth, most=2)})


def operations(body):
    """Yield every operation of a tree, each before those inside it."""
    for op in body:
        yield op
        for part in ("in", "between", "there"):
            yield from operations(op.get(part, ()))
        for each in op.get("bodies", ()):
            yield from operations(each)


def numbered(body):
    """Give every operation its number, and return the tree."""
    for number, op in enumerate(operations(body)):
        op["n"] = number
    return body


def _bodies(body):
    """Yield every list of operations of a tree that runs in the program's own process."""
    yield body
    for op in body:
        if op["op"] not in ("fork", "process_pool", "subprocess"):
            for part in ("in", "between", "there"):
                if part in op:
                    yield from _bodies(op[part])
            for each in op.get("bodies", ()):
                yield from _bodies(each)


def _put_kill(chance, body, how):
    """Put an operation that ends the process somewhere into the tree, more often inside than at the top."""
    places = [place for place in _bodies(body) if place is not body] or [body]
    place = chance.choice(places)
    place.insert(chance.randint(0, len(place)), {"op": "kill", "n": -1, "how": how})


def _main_bodies(body):
    """Yield every list of operations that the main thread runs while nothing else does."""
    yield body
    for op in body:
        if op["op"] in ("phase", "try", "callback"):
            yield from _main_bodies(op["in"])


def _put_hold(chance, body):
    """Put an operation into the tree that waits until everybody has been asked about the program while it runs."""
    place = chance.choice(list(_main_bodies(body)))
    place.insert(chance.randint(0, len(place)), {"op": "hold", "n": -1})


def generate(seed, *, size=40):
    """Return the program of a seed."""
    writer = _Writer(seed, size)
    chance = writer.chance
    body = []
    while writer.left > 0:
        phase = writer._phase(SYNC, 1, how="with")
        is_careful = chance.random() < 0.9
        body.append(
            writer.number("try", then="handle", catches="Exception", **{"in": [phase]}) if is_careful else phase
        )
    ending = chance.choice(ENDINGS)
    end = {"how": ending}
    if ending in ("kill", "sigterm", "stop_on_sigterm", "exit", "_exit"):
        _put_kill(chance, body, ending)
    elif ending == "parent_kill":
        end["after_lines"] = chance.randint(1, 60)
    if chance.random() < HELD:
        _put_hold(chance, body)
    return {"seed": seed, "body": numbered(body), "end": end, **_settings(chance, ending)}


def _settings(chance, ending):
    """Return what the tracker and its bridge are told, and how the session starts."""
    tracker = {
        "summary": chance.choice((False, False, True)),
        "capture": chance.choice((False, False, True, "fd")),
        "stop_on_sigterm": ending == "stop_on_sigterm",
        "on_misuse": chance.choice(("raise", "record")),
    }
    bridge = chance.choice((None, {}, {"events": "all"}, {"events": "all", "events_to": "span"}, {"trace_per": "step"}))
    return {
        "tracker": tracker,
        "bridge": bridge,
        "store": chance.choice(("sqlite", "sqlite", "sqlite", "memory", None)),
        "journal": chance.random() < 0.9,
        "start": chance.choice(("with", "with", "start_stop", "start")),
        "environ": {},
        "pure": chance.random() < 0.3,
        "order": chance.choice(("journal_first", "store_first")),
    }
