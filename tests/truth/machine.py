"""Lives a rank's life again in a real process: the real tracker, the real journal, and the real signal at its end.

Each rank is forked from here. Only its clock is not real, and, for a rank of another host, what its machine says of
itself. It ends as its life says: by its program's own end, by a signal from the kernel, stopped by SIGSTOP, or not.
"""

from __future__ import annotations

import asyncio  # noqa: F401 - what every rank needs is here before they are forked
import atexit
import contextlib
import io
import json
import os
import select
import signal
import sys
import time
import traceback
import uuid

import attrs

from stormphase import PhaseTracker, _clock, _liveness, _process_facts
from stormphase.cli import _postmortem, main
from stormphase.testing import ManualClock

SECOND_NS = 1_000_000_000
HEARTBEAT_S = 0.2
CHILD_S = 60.0
_OWN_VARIABLES = ("STORMPHASE_", "SLURM_", "TORCHELASTIC_", "OMPI_", "PMI")


@attrs.frozen
class Host:
    """A machine: how far its wall clock is off, and where its monotonic clock stands."""

    name: str
    is_here: bool
    boot_id: str
    wall_off_ns: int
    monotonic_off_ns: int

    @classmethod
    def make(cls, number, rng, *, is_here):
        """Return a machine whose wall clock is some milliseconds off, as those that NTP keeps are."""
        off_s = 0.0 if is_here else rng.choice([rng.gauss(0, 0.002), rng.gauss(0, 0.01), rng.gauss(0, 0.03)])
        return cls(
            name=_liveness.own_process().host if is_here else f"node{number}",
            is_here=is_here,
            boot_id=str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            wall_off_ns=int(off_s * SECOND_NS),
            monotonic_off_ns=0 if is_here else rng.randrange(10**6) * SECOND_NS,
        )


class Epoch:
    """Where the job's second 0 lies on the real clocks."""

    def __init__(self):
        """Take now for it."""
        self.wall_ns = time.time_ns()  # noqa: TID251 - the job's clock starts on the real one
        self.monotonic_ns = time.perf_counter_ns()  # noqa: TID251 - likewise

    def clock_of(self, host):
        """Return the clock of a host's process at second 0."""
        return ManualClock(
            monotonic_ns=self.monotonic_ns + host.monotonic_off_ns, wall_ns=self.wall_ns + host.wall_off_ns
        )


class RankProcess:
    """One forked rank.

    Args:
        life: what becomes of it.
        program: called with a `Seat` in the process; returns the rank's generator.
        host: its machine.
        epoch: of the job.
        environ: what its launcher sets.
        heartbeat_phase_s: when within a fifth of a second its signs of life come.
    """

    def __init__(self, life, program, *, host, epoch, environ, heartbeat_phase_s):
        self.life = life
        self._go_read, self._go = os.pipe()
        self._news, self._news_write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(self._go_read)
            os.close(self._news_write)
            return
        code = 1
        try:
            os.close(self._go)
            os.close(self._news)
            _become(host, environ)
            code = _Child(
                life, host, epoch, go=self._go_read, news=self._news_write, heartbeat_phase_s=heartbeat_phase_s
            ).live(program)
        except BaseException:
            os.write(self._news_write, b"!" + traceback.format_exc().encode()[-3_000:])
        finally:
            os._exit(code)

    def hear(self, expected):
        """Wait for the process to say that it is so far; the end of the process is the end of what it says."""
        ready, _, _ = select.select([self._news], [], [], CHILD_S)
        said = os.read(self._news, 4_096) if ready else b"!nothing heard"
        if said[:1] == b"!":
            raise AssertionError(said[1:].decode())
        assert said == expected or not said, said

    def begin(self):
        """Wait until it has started its session."""
        self.hear(b"b")

    def go_on(self):
        """Let it live its life from there."""
        os.write(self._go, b"g")

    def finish(self):
        """Wait until it has come to where its life says it stands."""
        if self.life.end in {"running", "halted"}:
            self.hear(b"s")
        if self.life.end == "halted":
            os.waitpid(self.pid, os.WUNTRACED)
        elif self.life.end != "running":
            os.waitpid(self.pid, 0)
            self.pid = 0

    def clear_away(self):
        """End what is still there."""
        for fd in (self._go, self._news):
            os.close(fd)
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _become(host, environ):
    """Be a process of that host, started by a launcher: with its own environment, and nobody else's exit handlers."""
    atexit._clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith(_OWN_VARIABLES)]:
        del os.environ[name]
    os.environ.update(environ)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - to the process's end
    if host.is_here:
        return
    real, real_facts = _liveness.own_process, _process_facts.ProcessFacts.of_this_process

    def own_process():
        return attrs.evolve(real(), host=host.name, boot_id=host.boot_id)

    def facts():
        return attrs.evolve(real_facts(), host=host.name, boot_id=host.boot_id)

    for module in [module for name, module in sys.modules.items() if name.startswith("stormphase")]:
        for name, value in list(vars(module).items()):
            if value is real:
                setattr(module, name, own_process)
    _process_facts.ProcessFacts.of_this_process = staticmethod(facts)


class Seat:
    """What a rank's program has of the library: its tracker, with the clock of its host."""

    def __init__(self, clock):
        """Have no tracker yet."""
        self.clock = clock
        self.tracker = None

    def make_tracker(self, **options):
        """Return the rank's tracker."""
        self.tracker = PhaseTracker("job", bridge=None, clock=self.clock, **options)
        return self.tracker


class _Child:
    def __init__(self, life, host, epoch, *, go, news, heartbeat_phase_s):
        self._life = life
        self._epoch = epoch
        self._host = host
        self._clock = epoch.clock_of(host)
        self._now_ns = 0
        self._go = go
        self._news = news
        self._phase_s = heartbeat_phase_s
        _clock.SystemClock.wall_ns = staticmethod(self._clock.wall_ns)  # who reads it asks how old heartbeats are

    def live(self, program):
        seat = Seat(self._clock)
        generator = program(seat)
        script = compile("live()", "train.py", "exec")
        schedule = iter(self._life.schedule)

        def live():
            wake = next(schedule)
            self._set(wake.at_s)
            next(generator)  # Up to its start.
            os.write(self._news, b"b")
            os.read(self._go, 1)
            for wake in schedule:
                self._set(wake.at_s)
                if wake.error is None:
                    next(generator)
                else:
                    generator.throw(wake.error())
            self._stand(seat)

        try:
            exec(script, {"__name__": "__main__", "live": live})  # noqa: S102 - so that it is the main module's
        except StopIteration:
            return self._leave(None)
        except SystemExit as error:
            return self._leave(None, 0 if error.code is None else 1)
        except BaseException as error:
            return self._leave(error)
        return 0

    def _leave(self, error, code=0):
        """End as an interpreter does."""
        if error is not None:
            error.__traceback__ = error.__traceback__.tb_next  # without this module's frame
            sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
            sys.last_exc = error
            code = 1
        atexit._run_exitfuncs()
        return code

    def _set(self, at_s):
        ns = int(at_s * SECOND_NS)
        self._clock.advance(max(0, ns - self._now_ns))
        self._now_ns = max(ns, self._now_ns)

    def _stand(self, seat):
        """Give the last signs of life, and then end, halt or wait as the life says."""
        life = self._life
        until_s = life.end_s if life.silent_since_s is None else min(life.end_s, life.silent_since_s)
        beats = int((until_s - self._phase_s) / HEARTBEAT_S)
        session = None if seat.tracker is None else seat.tracker._session
        journal = None if session is None else session.journal._open
        if journal is not None:
            journal._worker.wait(journal._worker.ask(5.0, is_last=False), 5.0)
            self._set(beats * HEARTBEAT_S + self._phase_s)
            journal.file.beat(self._clock.monotonic_ns(), self._clock.wall_ns())
        if life.end == "killed":
            if life.signal in {signal.SIGTERM, signal.SIGINT}:
                self._set(life.end_s)
            os.kill(os.getpid(), life.signal)
        else:
            os.write(self._news, b"s")
            if life.end == "halted":
                os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            signal.pause()


@attrs.frozen
class Answer:
    """What `stormphase postmortem` says: its exit code, its text, its JSON, and the exit code of that."""

    code: int
    text: str
    json: dict
    json_code: int


def ask(directory, epoch, at_s, *arguments):
    """Run the command on the journals in this process, at that second of the job."""
    clock = ManualClock(
        monotonic_ns=epoch.monotonic_ns + int(at_s * SECOND_NS), wall_ns=epoch.wall_ns + int(at_s * SECOND_NS)
    )
    real = _postmortem.SystemClock
    _postmortem.SystemClock = lambda: clock
    try:
        return ask_now(directory, *arguments)
    finally:
        _postmortem.SystemClock = real


def ask_now(directory, *arguments):
    """Run the command on the journals in this process."""
    code, text = _run(["postmortem", str(directory), *arguments])
    json_code, told = _run(["postmortem", str(directory), "--json", *arguments])
    return Answer(code, text, json.loads(told), json_code)


def _run(arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(arguments)
    return code, out.getvalue()
