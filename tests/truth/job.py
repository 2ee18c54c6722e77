"""One planted job: its machines, its launcher, how its ranks hear of each other's death, and what is planted where."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import uuid

import attrs
from truth_machine import Epoch, Host, RankProcess, ask
from truth_simulation import Arrive, Await, Simulation, Work

SESSION = "job"


class DistBackendError(RuntimeError):
    """What NCCL's watchdog raises."""


class DistNetworkError(RuntimeError):
    """What a store of torch raises whose server is gone."""


class OutOfMemoryError(RuntimeError):
    """What CUDA's allocator raises."""


DistBackendError.__module__ = DistNetworkError.__module__ = "torch.distributed"
OutOfMemoryError.__module__ = "torch"

ECHOES = (
    lambda: ConnectionResetError(104, "Connection reset by peer"),
    lambda: BrokenPipeError(32, "Broken pipe"),
    lambda: RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:29981"),
    lambda: RuntimeError("[pair.cc:525] Read error [10.0.0.7]:4711: Connection reset by peer"),
    lambda: DistBackendError("NCCL error: remote process exited or there was a network error"),
)  # fmt: skip


def watchdog_error():
    """Return what a collective that took too long raises."""
    return DistBackendError("Watchdog caught collective operation timeout: WorkNCCL(OpType=ALLREDUCE) ran for too long")


@attrs.define(kw_only=True)
class Job:
    """A job as it is planned.

    Attributes:
        kind: of what is planted.
        seed: makes it the same job again.
        world_size: how many ranks.
        host_count: on how many machines.
        reader_is_elsewhere: whether the postmortem is read on a machine that has none of the ranks.
        marks: whether waiting points are marked with `sync=True`, or the names of those that are.
        shape: the step: "ddp", "buckets", "async", "pipeline", "fsdp", "groups".
        style: of the session: "with", "start stop", "start only", "caught", "finally".
        step_s: about how long a step takes.
        steps: how many there are.
        sets_step: whether the program says which step it is.
        epoch_steps: how many make an epoch, a phase of its own; 0 for none.
        prefetches: whether a thread of each rank has a phase open all the time.
        compile_s: how much longer the first step takes.
        checkpoint_every: steps, or 0.
        evaluate_every: likewise.
        echoes: whether a rank that waits for a dead one hears of it at once, as with gloo.
        watchdog_s: after how long a collective raises by itself, or None.
        watchdog_kills: whether that ends the process by SIGABRT instead.
        launcher_s: how long after a rank has failed the launcher ends the others, or None.
        stops_on_sigterm: whether trackers were made with `stop_on_sigterm`.
        starts: when each rank starts, in seconds; None if never.
        plants: what a rank does at a place of a step, (rank, place, step): a function of the context.
        script: called with the simulation before it runs, to plant what comes from outside.
        watch_after_s: how long after the last event the postmortem is read.
        watch_at_s: at which second of the job it is read instead.
        watch_s: at which second that came to be.
        begin_s: when it is launched.
        environ: what the launcher sets for a rank.
        arguments: of the command.
    """

    kind: str
    seed: int
    world_size: int
    rng: random.Random | None = None
    host_count: int = 1
    reader_is_elsewhere: bool = False
    marks: bool = True
    shape: str = "ddp"
    style: str = "with"
    step_s: float = 0.3
    steps: int = 30
    sets_step: bool = True
    epoch_steps: int = 0
    prefetches: bool = False
    compile_s: float = 2.0
    checkpoint_every: int = 0
    evaluate_every: int = 0
    echoes: bool = True
    watchdog_s: float | None = None
    watchdog_kills: bool = False
    launcher_s: float | None = None
    stops_on_sigterm: bool = False
    starts: dict = attrs.field(factory=dict)
    plants: dict = attrs.field(factory=dict)
    script: object = None
    watch_after_s: float = 300.0
    watch_at_s: float | None = None
    watch_s: float = 0.0
    begin_s: float = 0.0
    environ: object = None
    arguments: tuple = ()
    earlier: Job | None = None
    attempt: int | None = None
    lives: dict = attrs.field(factory=dict)
    hosts: list = attrs.field(factory=list)
    facts: dict = attrs.field(factory=dict)
    _is_ended: bool = attrs.field(init=False, default=False)

    @property
    def ranks(self):
        """All ranks."""
        return range(self.world_size)

    def is_marked(self, name):
        """Whether a waiting point is marked with `sync=True`."""
        return self.marks if isinstance(self.marks, bool) else name in self.marks

    def host_of(self, rank):
        """Return the number of a rank's machine."""
        return rank * self.host_count // self.world_size

    def on_host(self, number):
        """Return the ranks of a machine."""
        return [rank for rank in self.ranks if self.host_of(rank) == number]

    def simulate(self, program):
        """Find out what becomes of every rank."""
        self.rng = random.Random(f"{self.seed} {self.attempt} latencies")
        starts = {rank: self.starts.get(rank, self.begin_s + self.rng.uniform(0, 0.2)) for rank in self.ranks}
        simulation = Simulation(
            starts, lambda rank: program(Context(self, rank, None)), self.rng, self._on_end, self._on_wait
        )
        if self.script is not None:
            self.script(simulation)
        if self.watch_at_s is None:
            simulation.run(float("inf") if self.watch_after_s is not None else 50_000.0)
            if self.watch_after_s is None:
                last_end_s = max(life.end_s for life in simulation.lives.values() if life.is_over)
                self.watch_s = last_end_s + self.facts["watch after ends"]
            else:
                self.watch_s = simulation.last_s + self.watch_after_s
        else:
            self.watch_s = self.watch_at_s
            simulation.run(self.watch_s)
        simulation.close(self.watch_s)
        self.lives = simulation.lives
        return simulation

    def _on_end(self, simulation, rank):
        """Have the others hear of an end, and the launcher end them all if it was a failure."""
        if self.echoes:
            self._tell(simulation)
        if self.launcher_s is not None and simulation.lives[rank].failed and not self._is_ended:
            self._is_ended = True
            self._end_all(simulation)

    def _on_wait(self, simulation, rank):
        """Have a rank that begins to wait hear of those that are gone, and its watchdog look at it."""
        if self.echoes:
            self._tell(simulation)
        if self.watchdog_s is None:
            return
        late_s = self.watchdog_s * self.rng.uniform(1.0, 1.001)
        if self.watchdog_kills:
            op = simulation.waiters[rank]
            simulation.after(late_s, lambda _: self._abort(simulation, rank, op))
        else:
            simulation.raise_in(rank, late_s, watchdog_error)

    def _abort(self, simulation, rank, op):
        if simulation.waiters.get(rank) is op:
            simulation.kill(rank, 0.0, signal.SIGABRT)

    def _tell(self, simulation):
        """Have those who wait for a process that is gone hear of it."""
        gone = {rank for rank, life in simulation.lives.items() if life.end in {"ended", "killed"}}
        for rank, op in list(simulation.waiters.items()):
            if simulation.missing_at(op) & gone:
                simulation.raise_in(rank, self.rng.uniform(0.001, 0.05), self.rng.choice(ECHOES))

    def _end_all(self, simulation):
        for number in range(self.host_count):
            late = self.launcher_s + self.rng.uniform(0, 0.1)
            for rank in self.on_host(number):
                simulation.kill(rank, late + self.rng.uniform(0, 0.002), signal.SIGTERM)

    def live(self, directory, program):
        """Have real processes live all of it, and return what `stormphase postmortem` says."""
        epoch = Epoch()
        rng = random.Random(f"{self.seed} machines")
        self.hosts = [
            Host.make(number, rng, is_here=number == 0 and not self.reader_is_elsewhere)
            for number in range(self.host_count)
        ]
        processes = {}
        try:
            if self.earlier is not None:
                self.earlier.hosts = self.hosts
                self.earlier._live(directory, program, epoch, rng, processes)
            self._live(directory, program, epoch, rng, processes)
            return ask(directory, epoch, self.watch_s, *self.arguments)
        finally:
            for process in processes.values():
                process.clear_away()

    def _live(self, directory, program, epoch, rng, processes):
        """Start processes in the order of their starts; who starts after another's end finds it gone."""
        lives = {rank: life for rank, life in self.lives.items() if life.schedule}
        waiting = []
        for rank in sorted(lives, key=lambda each: lives[each].schedule[0].at_s):
            start_s = lives[rank].schedule[0].at_s
            gone = [each for each in waiting if lives[each].is_over and lives[each].end_s < start_s]
            self._let_live([processes[self.attempt, each] for each in gone])
            waiting = [each for each in waiting if each not in gone]
            processes[self.attempt, rank] = self._fork(rank, directory, program, epoch, rng)
            waiting.append(rank)
        self._let_live([processes[self.attempt, each] for each in waiting])

    @staticmethod
    def _let_live(processes):
        """Let processes live to where they end or stand, all at a time."""
        for step in (RankProcess.begin, RankProcess.go_on, RankProcess.finish):
            for process in processes:
                step(process)

    def _fork(self, rank, directory, program, epoch, rng):
        environ = {} if self.environ is None else self.environ(rank)
        return RankProcess(
            self.lives[rank],
            lambda seat: program(Context(self, rank, seat, directory)),
            host=self.hosts[self.host_of(rank)],
            epoch=epoch,
            environ=environ,
            heartbeat_phase_s=rng.uniform(0, 0.2),
        )


class Context:
    """What a rank's program is given: phases, work and meetings, and what is planted in it.

    Without a seat nothing is written: then it is planned.
    """

    def __init__(self, job, rank, seat, directory=None):
        self.job = job
        self.rank = rank
        self.rng = random.Random(f"{job.seed} {rank} {job.attempt}")
        self._seat = seat
        self._directory = directory
        self._rounds = {}
        self.step = None
        self.everyone = frozenset(job.ranks)

    @property
    def is_real(self):
        """Whether it is lived, and not planned."""
        return self._seat is not None

    def make_tracker(self):
        """Return the tracker, or what does nothing."""
        if self._seat is None:
            return _NoTracker()
        options = {}
        if self.job.environ is None:
            options = {"session_id": SESSION, "rank": self.rank, "world_size": self.job.world_size}
        if self.job.stops_on_sigterm:
            options["stop_on_sigterm"] = True
        return self._seat.make_tracker(journal=self._directory, **options)

    def set_step(self, step):
        """Set the step, or none."""
        self.step = step
        if self._seat is not None and self.job.sets_step:
            self._seat.tracker.set_step(step)

    def phase(self, name, *, sync=False):
        """Enter a phase; a context manager."""
        return contextlib.nullcontext() if self._seat is None else self._seat.tracker.enter_phase(name, sync=sync)

    def point(self, name):
        """Enter a phase in which ranks wait for each other, marked as such if the job marks them."""
        return self.phase(name, sync=self.job.is_marked(name))

    def jitter(self, seconds):
        """Return about so many seconds, as real work scatters."""
        slow = 1.0 if self.rng.random() > 0.02 else self.rng.uniform(1.2, 2.0)
        return seconds * self.rng.lognormvariate(0, 0.08) * slow

    def work(self, seconds):
        """Compute for about so long."""
        yield Work(self.jitter(seconds))

    def phase_work(self, name, seconds):
        """Compute for about so long in a phase, with what is planted there half way."""
        with self.phase(name):
            yield from self.work(seconds / 2)
            yield from self.spot(name)
            yield from self.work(seconds / 2)

    @contextlib.contextmanager
    def prefetching(self):
        """Have a thread that is in a phase of its own meanwhile, if ranks of the job have one."""
        if not (self.is_real and self.job.prefetches):
            yield
            return
        began, over = threading.Event(), threading.Event()

        def prefetch():
            with self.phase("prefetch"):
                began.set()
                over.wait()

        thread = threading.Thread(target=prefetch, name="prefetch", daemon=True)
        thread.start()
        began.wait()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def spot(self, place):
        """Do what is planted for this rank at this place of this step."""
        planted = self.job.plants.get((self.rank, place, self.step))
        if planted is not None:
            yield from planted(self)

    def meet(self, name, members=None, *, group="world"):
        """Wait for all members in a phase of that name."""
        yield from self.spot(f"before {name}")
        with self.point(name):
            key, members = self.next_key(name, members, group)
            yield from self.spot(f"in {name}")
            yield Work(2e-5)
            yield Arrive(key, members)
            yield from self.spot(f"joined {name}")
            yield Await(key, members)
            yield Work(2e-5)

    def next_key(self, name, members=None, group="world"):
        """Return the key of the next meeting of a group: they are matched in order, and must be of one name."""
        members = self.everyone if members is None else frozenset(members)
        number = self._rounds[group] = self._rounds.get(group, 0) + 1
        return (group, number, name), members


class _NoTracker:
    def start(self):
        return self

    def stop(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *details):
        pass


def torchrun(job, *, restarts=0, run_id=None):
    """Return what torchrun sets, as a function of the rank: one launch, this many restarts."""
    run_id = run_id or str(uuid.UUID(int=random.Random(f"{job.seed} run").getrandbits(128)))
    local = {number: job.on_host(number) for number in range(job.host_count)}

    def environ(rank):
        here = local[job.host_of(rank)]
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(here.index(rank)),
            "WORLD_SIZE": str(job.world_size),
            "LOCAL_WORLD_SIZE": str(len(here)),
            "GROUP_RANK": str(job.host_of(rank)),
            "GROUP_WORLD_SIZE": str(job.host_count),
            "MASTER_ADDR": "node0",
            "MASTER_PORT": "29500",
            "TORCHELASTIC_RUN_ID": run_id,
            "TORCHELASTIC_RESTART_COUNT": str(restarts),
            "TORCHELASTIC_MAX_RESTARTS": "3",
        }

    return environ
