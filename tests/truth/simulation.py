"""A discrete-event simulation of ranks: when each of them goes on, with what error, and how its process ends.

Every rank is a generator that yields what it does next: `Work`, `Arrive` and `Await` at a meeting of ranks, `Forever`,
`Die`. What comes out is each rank's schedule, its wake-ups in order. Whoever runs the same generator again along the
schedule, with real phases and a clock that is set, has that rank's life again.
"""

from __future__ import annotations

import heapq
import itertools

import attrs

LATENCY_S = 0.0005  # from the last arrival at a meeting until it goes on


@attrs.frozen
class Work:
    """The rank computes for so many seconds."""

    seconds: float


@attrs.frozen
class Arrive:
    """The rank comes to a meeting and goes on, as one that enqueues a collective or sends does."""

    key: object
    members: frozenset


@attrs.frozen
class Await:
    """The rank waits until all members of a meeting have arrived."""

    key: object
    members: frozenset


@attrs.frozen
class Forever:
    """The rank never goes on by itself; with `holds_gil` its process gives no sign of life meanwhile."""

    holds_gil: bool = False


@attrs.frozen
class Die:
    """A signal ends the process at once, without a word."""

    signal: int


@attrs.frozen
class Halt:
    """SIGSTOP: the process is there and does nothing."""


@attrs.define
class Wake:
    """One moment at which a rank goes on: when, in seconds of the job, and what is raised in it, if anything."""

    at_s: float
    error: object = None


@attrs.define
class Life:
    """What becomes of one rank.

    Attributes:
        schedule: its wake-ups.
        end: "running", "ended", "killed" or "halted".
        end_s: when that was.
        signal: what killed it.
        failed: whether it ended with another exit code than 0.
        silent_since_s: since when it gives no sign of life, although it is there.
    """

    schedule: list = attrs.field(factory=list)
    end: str = "running"
    end_s: float = 0.0
    signal: int = 0
    failed: bool = False
    silent_since_s: float | None = None

    @property
    def is_over(self):
        """Whether the process is gone."""
        return self.end in {"ended", "killed"}

    @property
    def last_s(self):
        """When it went on last."""
        return self.schedule[-1].at_s


class Simulation:
    """Runs all ranks of a job up to a moment.

    Args:
        starts: for each rank when it starts, in seconds, or None if never.
        program: returns a rank's generator.
        rng: for latencies.
        on_end: called with the simulation and a rank whose process has ended.
        on_wait: called with the simulation and a rank that begins to wait at a meeting.
    """

    def __init__(self, starts, program, rng, on_end, on_wait):
        self.now_s = self.last_s = 0.0  # now, and when something happened last
        self.lives = {rank: Life() for rank, start in starts.items() if start is not None}
        self.rng = rng
        self.on_end = on_end
        self._on_wait = on_wait
        self._program = program
        self._running = {}
        self._order = itertools.count()
        self._heap = []
        self._arrived = {}
        self.waiters = {}  # of each rank, the meeting that it waits at, with its number of sleeps
        self._sleeps = dict.fromkeys(self.lives, 0)
        for rank, start in starts.items():
            if start is not None:
                self._push(start, rank, "wake", None)

    def run(self, until_s):
        """Let time pass up to `until_s`, or until nothing more happens."""
        while self._heap and self._heap[0][0] <= until_s:
            self.now_s, _, rank, sleep, what, detail = heapq.heappop(self._heap)
            if what == "call":
                detail(self)
            elif self.is_alive(rank) and (sleep is None or sleep == self._sleeps[rank]):
                self.last_s = self.now_s
                self._do(rank, what, detail)

    def close(self, at_s):
        """Have those who still run do so up to `at_s`."""
        for life in self.lives.values():
            if life.end in {"running", "halted"}:
                life.end_s = at_s

    def is_alive(self, rank):
        """Whether the rank's process is there and goes on."""
        return rank in self.lives and self.lives[rank].end == "running"

    def after(self, seconds, call):
        """Call `call(simulation)` so many seconds from now."""
        self._push(self.now_s + seconds, -1, "call", call, any_sleep=True)

    def raise_in(self, rank, seconds, make_error):
        """Raise in a rank what `make_error()` returns, if by then it still waits where it waits now."""
        self._push(self.now_s + seconds, rank, "raise", make_error)

    def interrupt(self, rank, seconds, make_error):
        """Raise in a rank what `make_error()` returns, wherever it is by then."""
        self._push(self.now_s + seconds, rank, "raise", make_error, any_sleep=True)

    def kill(self, rank, seconds, signal):
        """Send a rank's process a signal that ends it."""
        self._push(self.now_s + seconds, rank, "kill", signal, any_sleep=True)

    def halt(self, rank, seconds):
        """Send a rank's process SIGSTOP."""
        self._push(self.now_s + seconds, rank, "halt", None, any_sleep=True)

    def _push(self, at_s, rank, what, detail, *, any_sleep=False):
        sleep = None if any_sleep or rank not in self._sleeps else self._sleeps[rank]
        heapq.heappush(self._heap, (at_s, next(self._order), rank, sleep, what, detail))

    def _do(self, rank, what, detail):
        if what == "kill":
            self._end(rank, "killed", signal=detail)
        elif what == "halt":
            self._end(rank, "halted")
        else:
            self._wake(rank, detail if what == "raise" else None)

    def _wake(self, rank, make_error):
        life = self.lives[rank]
        self._sleeps[rank] += 1
        self.waiters.pop(rank, None)
        life.schedule.append(Wake(self.now_s, make_error))
        if rank not in self._running:
            self._running[rank] = self._program(rank)
        generator = self._running[rank]
        try:
            op = next(generator) if make_error is None else generator.throw(make_error())
        except StopIteration:
            self._end(rank, "ended")
        except SystemExit as error:
            self._end(rank, "ended", failed=error.code not in {None, 0})
        except BaseException:
            self._end(rank, "ended", failed=True)
        else:
            self._begin(rank, op)

    def _begin(self, rank, op):
        if isinstance(op, Work):
            self._push(self.now_s + max(op.seconds, 2e-6), rank, "wake", None)
        elif isinstance(op, Arrive):
            self._arrive(op.key, op.members, rank)
            self._push(self.now_s + 5e-6, rank, "wake", None)
        elif isinstance(op, Await):
            if op.members <= self._arrived.get(op.key, set()):
                self._push(self.now_s + 5e-6, rank, "wake", None)
            else:
                self.waiters[rank] = op
                self._on_wait(self, rank)
        elif isinstance(op, Die):
            self._end(rank, "killed", signal=op.signal)
        elif isinstance(op, Halt):
            self._end(rank, "halted")
        elif op.holds_gil:
            self.lives[rank].silent_since_s = self.now_s

    def _arrive(self, key, members, rank):
        arrived = self._arrived.setdefault(key, set())
        arrived.add(rank)
        if members <= arrived:
            for each, op in list(self.waiters.items()):
                if op.key == key:
                    del self.waiters[each]
                    late = LATENCY_S * self.rng.uniform(0.5, 2)
                    self._push(self.now_s + late, each, "wake", None)

    def missing_at(self, op):
        """Return who has not arrived at a meeting."""
        return op.members - self._arrived.get(op.key, set())

    def _end(self, rank, end, *, signal=0, failed=None):
        life = self.lives[rank]
        life.end, life.end_s, life.signal = end, self.now_s, signal
        life.failed = end == "killed" if failed is None else failed
        if life.silent_since_s is None and end == "halted":
            life.silent_since_s = self.now_s
        self.waiters.pop(rank, None)
        self._sleeps[rank] += 1
        if end != "halted":
            self.on_end(self, rank)
