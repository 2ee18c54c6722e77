"""The kinds of planted jobs that issue 10 lists; each function returns a job that is not simulated yet, and its truth.

A truth that depends on when things happened is a function of the simulated job.
"""

from __future__ import annotations

import signal
import sys

import attrs
from truth_job import Job, torchrun
from truth_outcomes import MAY, NAMED, TIE, UNTOLD, Truth
from truth_simulation import Die, Forever, Halt, Work

WORLDS = (2, 2, 3, 4, 4, 4, 4, 6, 8, 8, 8, 8, 12, 16, 32, 64)
CLOCK_DOUBT_S = 0.1  # two hosts' clocks may well be so far apart
AT_WORK = ("data_loading", "forward", "backward", "optimizer")


def some_job(kind, seed, rng, **fixed):
    """Return a job of random size, shape and pace; what is fixed wins."""
    world_size = fixed.pop("world_size", None) or rng.choice(WORLDS)
    hosts = fixed.pop("host_count", None) or rng.choice([1, 1, 1, 2, 2, 4, 8])
    while hosts > 1 and (hosts > world_size // 2 or world_size % hosts):
        hosts //= 2
    options = {
        "marks": rng.choice([False, False, True, True, frozenset({"all_reduce", "reduce_scatter"})]),
        "sets_step": rng.random() < 0.75,
        "epoch_steps": rng.choice([0, 0, 5]),
        "prefetches": rng.random() < 0.2,
        "shape": rng.choice(["ddp", "ddp", "ddp", "buckets", "fsdp"]),
        "style": rng.choice(["with", "with", "finally"]),
        "step_s": rng.choice([0.08, 0.3, 0.3, 1.0, 2.5]),
        "steps": rng.randint(14, 36) if world_size < 32 else rng.randint(10, 16),
        "compile_s": rng.choice([0.0, 2.0, 10.0]),
        "echoes": rng.random() < 0.5,
        "reader_is_elsewhere": hosts > 1 and rng.random() < 0.2,
        "watch_after_s": rng.uniform(150, 900),
    }
    if world_size <= 4 and rng.random() < 0.1:  # so many that journals fold what has ended
        options["steps"], options["step_s"] = 400, 0.08
    if rng.random() < 0.3:
        options["checkpoint_every"] = rng.choice([4, 5])
    return Job(kind=kind, seed=seed, world_size=world_size, host_count=hosts, **{**options, **fixed})


def culprit_of(job, rng):
    """Return any rank."""
    return rng.randrange(job.world_size)


def late_step(job, rng):
    """Return a step by which it is known what is usual."""
    return rng.randrange(min(8, job.steps - 3), job.steps - 1)


def spots_of(job):
    """Return where ranks work in a step of the job's shape."""
    return ("data_loading", "optimizer", "forward", "backward") if job.shape == "fsdp" else AT_WORK


def forever(ctx):
    """Hang."""
    yield Forever()


def forever_in_c(ctx):
    """Hang in an extension that holds the GIL."""
    yield Forever(holds_gil=True)


def dies(number):
    """Return what ends the process by a signal."""

    def die(ctx):
        yield Die(number)

    return die


def raises(make_error):
    """Return what raises."""

    def fail(ctx):
        yield Work(1e-5)
        raise make_error()

    return fail


OWN_ERRORS = (
    lambda: ValueError("bad batch: label 1003 of 1000"),
    lambda: IndexError("list index out of range"),
    lambda: RuntimeError("CUDA error: device-side assert triggered"),
    AssertionError,
    lambda: KeyError("input_ids"),
    lambda: FileNotFoundError(2, "No such file or directory", "shard-00017.tar"),
)


def named(culprit, evidence):
    """Return the truth of one culprit that the journals show."""
    return Truth(NAMED, frozenset({culprit}), evidence=evidence)


def unmarked_dead(kind, seed, rng):
    """Nothing is marked, and one rank is killed at work; the others hang, or hear of it."""
    job = some_job(kind, seed, rng, marks=False)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, rng.choice(spots_of(job)), step] = dies(rng.choice([9, 9, 11, 6]))
    return job, named(culprit, "the only one that is dead or silent, or the others hear of its end")


def unmarked_stuck(kind, seed, rng):
    """Nothing is marked, and one rank hangs in a phase whose usual duration it knows."""
    job = some_job(kind, seed, rng, marks=False)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, rng.choice((*spots_of(job)[:2], "forward")), step] = forever
    return job, named(culprit, "the others are overdue in a path that it has entered less often")


def unmarked_odd_one(kind, seed, rng):
    """Nothing is marked, and rank 0 hangs in a phase that has no history, while the others wait for it."""
    where = rng.choice(["checkpoint", "evaluate"])
    every = {"checkpoint": "checkpoint_every", "evaluate": "evaluate_every"}[where]
    job = some_job(kind, seed, rng, marks=False, steps=16, **{"checkpoint_every": 0, every: 12})
    job.plants[0, where, 11] = forever
    job.watch_after_s = rng.uniform(1_500, 5_000)  # nobody writes a checkpoint of this model for so long
    return job, named(0, "it alone has never entered the path in which all the others are")


def async_collective(kind, seed, rng):
    """A marked enqueue and an unmarked wait: one rank hangs or dies before it enqueues."""
    job = some_job(kind, seed, rng, marks=True, shape="async")
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    plant = rng.choice([forever, forever, dies(signal.SIGKILL)])
    job.plants[culprit, rng.choice(("data_loading", "forward", "backward")), step] = plant
    return job, named(culprit, "it has entered the enqueue and the wait once less than all the others")


def unmarked_pipeline(kind, seed, rng):
    """Stages of a pipeline, nothing marked; one hangs or dies at work."""
    job = some_job(kind, seed, rng, marks=rng.random() < 0.25, shape="pipeline", world_size=rng.choice([2, 4, 4, 8]))
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    plant = rng.choice([forever, forever, dies(signal.SIGKILL)])
    job.plants[culprit, rng.choice(["forward", "backward"]), step] = plant

    def truth(job):
        life = job.lives[culprit]
        if (
            job.marks
            or life.is_over
            or all(life.last_s < job.lives[rank].last_s for rank in job.lives if rank != culprit)
        ):
            return named(culprit, "the only one at work, dead, or the first that went on no more")
        return Truth(MAY, frozenset({culprit}), evidence="stages wait in phases that nothing shows to be waiting")

    return job, truth


def hang_ended_later(kind, seed, rng):
    """A hang that a watchdog or a scheduler has ended minutes later: the evidence is still in the journals."""
    job = some_job(kind, seed, rng, echoes=False)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, rng.choice(spots_of(job)[:3]), step] = forever
    way = rng.choice(["watchdog", "abort", "scheduler"])
    if way == "scheduler":
        after_s = rng.uniform(120, 900)

        def script(simulation):
            def end(simulation):
                for rank in job.ranks:
                    simulation.kill(rank, job.rng.uniform(0, 0.05), signal.SIGKILL)

            simulation.after(after_s + 60, end)

        job.script = script
    else:
        job.watchdog_s = rng.uniform(60, 600)
        job.watchdog_kills = way == "abort"
        job.launcher_s = rng.uniform(0.1, 3)
    return job, named(culprit, "it alone was at work for minutes, while all others were in what it never entered")


def caught_and_stopped(kind, seed, rng):
    """An exception is caught and logged, then stop() and sys.exit(1): in order, and the launcher ends the others."""
    job = some_job(kind, seed, rng, style=rng.choice(["caught", "caught before stop"]))
    job.echoes = False
    job.launcher_s = rng.choice([rng.uniform(2.5, 10), rng.uniform(15, 60)])
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, rng.choice(spots_of(job)), step] = raises(rng.choice(OWN_ERRORS))
    return job, named(culprit, "it ended seconds before the others, its outermost phases failed")


def exits_without_with(kind, seed, rng):
    """start() without a with block, and sys.exit(3) somewhere; the launcher ends the others."""
    job = some_job(kind, seed, rng, style="start only")
    job.echoes = False
    job.launcher_s = rng.choice([rng.uniform(2.5, 10), rng.uniform(15, 60)])
    culprit, step = culprit_of(job, rng), late_step(job, rng)

    def leave(ctx):
        yield Work(1e-5)
        sys.exit(3)

    job.plants[culprit, rng.choice(spots_of(job)), step] = leave
    return job, named(culprit, "it ended seconds before the others, its phases cancelled")


def exact_times(kind, seed, rng):
    """One host: one rank raises, the others end milliseconds later, by errors of their own that are no echoes."""
    job = some_job(kind, seed, rng, host_count=1, echoes=False)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, rng.choice(spots_of(job)), step] = raises(rng.choice(OWN_ERRORS))
    errors = [
        lambda: RuntimeError("the queue is closed"),
        lambda: OSError("cannot read"),
        lambda: ValueError("stopped"),
    ]

    def script(simulation):
        def on_end(simulation, rank):
            if rank == culprit:
                for each in job.ranks:
                    simulation.interrupt(each, job.rng.uniform(0.003, 0.08), job.rng.choice(errors))

        simulation.on_end = on_end

    job.script = script
    return job, named(culprit, "on one boot its end is the first, to the microsecond")


def echoes(kind, seed, rng):
    """One rank raises; the others say that a connection was closed or reset."""
    job = some_job(kind, seed, rng, echoes=True)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, rng.choice(spots_of(job)), step] = raises(rng.choice(OWN_ERRORS))
    return job, named(culprit, "its error is its own, and theirs are echoes")


def killed_and_echoes(kind, seed, rng):
    """One rank is killed without a word; the others say that a connection was closed or reset."""
    job = some_job(kind, seed, rng, echoes=True, host_count=1)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, rng.choice(spots_of(job)), step] = dies(rng.choice([signal.SIGKILL, signal.SIGSEGV]))
    return job, named(culprit, "it went without a word, and the others heard of it")


def killed_together(kind, seed, rng):
    """All ranks are killed within milliseconds, wherever they are: no order, and nobody to name."""
    job = some_job(kind, seed, rng, echoes=False)
    at_s = rng.uniform(0.3, 0.65) * job.steps * job.step_s + job.compile_s + 1.3

    def script(simulation):
        for rank in job.ranks:
            simulation.kill(rank, at_s + job.rng.uniform(0, 0.02), signal.SIGKILL)

    job.script = script
    return job, Truth(UNTOLD, evidence="all are gone at one time, in the midst of ordinary steps")


def hang_in_destroy(kind, seed, rng):
    """The others have ended in order, and one is still in destroy or in its teardown."""
    job = some_job(kind, seed, rng, steps=10)
    culprit = culprit_of(job, rng)
    place = rng.choice(["joined destroy", "at the end"])
    job.plants[culprit, place, None] = forever
    return job, named(culprit, "all others ended in order minutes ago, and it is still there")


def hang_after_with(kind, seed, rng):
    """Every session has ended in order; one process is still there, after its with block, for a long time."""
    job = some_job(kind, seed, rng, steps=10, host_count=1, reader_is_elsewhere=False)
    culprit = culprit_of(job, rng)
    job.plants[culprit, "after", None] = forever
    job.watch_after_s = rng.uniform(400, 900)
    return job, Truth(
        NAMED, frozenset({culprit}), evidence="the kernel says that its process is there, and all others are gone"
    )


def stopped_in_collective(kind, seed, rng):
    """SIGSTOP inside the collective: it has entered it as all others have, and the kernel says that it is stopped."""
    job = some_job(kind, seed, rng, host_count=1, reader_is_elsewhere=False)
    culprit, step = culprit_of(job, rng), late_step(job, rng)

    def halt(ctx):
        yield Halt()

    name = {"fsdp": "reduce_scatter"}.get(job.shape, "all_reduce")
    job.plants[culprit, f"in {name}", step] = halt
    return job, named(culprit, "the kernel says that it is stopped by a signal")


def stopped_elsewhere(kind, seed, rng):
    """SIGSTOP on another host than the reader's: no sign of life since, while the others give theirs."""
    job = some_job(kind, seed, rng, world_size=rng.choice([4, 8, 16]), host_count=2, reader_is_elsewhere=False)
    culprit, step = rng.choice(job.on_host(1)), late_step(job, rng)

    def halt(ctx):
        yield Halt()

    job.plants[culprit, rng.choice(["forward", "backward", "optimizer"]), step] = halt
    return job, named(culprit, "it is silent, and has not entered what all the others wait in")


def died_before_others_began(kind, seed, rng):
    """One launch: a rank is dead before the last ones have begun; they are one attempt all the same."""
    job = some_job(kind, seed, rng, host_count=1, world_size=rng.choice([2, 3, 4, 8]), echoes=False)
    job.environ = torchrun(job)
    culprit = culprit_of(job, rng)
    job.starts = {rank: 0.2 + rng.uniform(2.0, 4.0) for rank in job.ranks}
    job.starts[culprit] = 0.1
    job.plants[culprit, "setup", None] = rng.choice([dies(signal.SIGKILL), raises(rng.choice(OWN_ERRORS))])
    job.watch_after_s = rng.uniform(150, 400)
    return job, named(
        culprit, "one launcher and one count of restarts: it died, and the others wait in its first meeting"
    )


def elastic_restart(kind, seed, rng):
    """A rank fails, all are ended and started again; in the second attempt another one fails."""
    world_size = rng.choice([2, 4, 8])
    first = some_job(kind, seed, rng, world_size=world_size, host_count=1)
    first.launcher_s, first.attempt = 0.3, 0
    first.plants[rng.randrange(world_size), "forward", 9] = raises(rng.choice(OWN_ERRORS))
    first.environ = torchrun(first)
    job = some_job(kind, seed, rng, world_size=world_size, host_count=1)
    job.earlier, job.attempt = first, 1
    job.environ = torchrun(job, restarts=1)
    culprit = rng.randrange(world_size)
    plant = rng.choice([forever, dies(signal.SIGKILL), raises(rng.choice(OWN_ERRORS))])
    job.plants[culprit, "data_loading", late_step(job, rng)] = plant
    return job, named(culprit, "as in one attempt; that before is another one's story")


def restart_dies_early(kind, seed, rng):
    """In the attempt after a restart a rank dies before the others have begun: they are that attempt, with it."""
    job, truth = elastic_restart(kind, seed, rng)
    job.plants.clear()
    (culprit,) = truth.culprits
    job.starts = {rank: rng.uniform(2.0, 4.0) for rank in job.ranks}
    job.starts[culprit] = 0.1
    job.echoes = False
    job.plants[culprit, "setup", None] = raises(rng.choice(OWN_ERRORS))
    job.facts["starts are after the earlier"] = True
    return job, named(culprit, "one launcher and one count of restarts: it died, and the others wait for it")


def uneven_compile(kind, seed, rng):
    """All are in their first step; one compiles for longer, and the others wait: nothing need be wrong."""
    job = some_job(kind, seed, rng, host_count=1)
    culprit = culprit_of(job, rng)
    job.compile_s = 20.0
    job.plants[culprit, "compile", 0] = lambda ctx: ctx.phase_work("compile", 10_000)
    job.watch_at_s = rng.uniform(60, 400)
    return job, Truth(
        UNTOLD, frozenset({culprit}), codes=(0, 1), evidence="nothing has a history; a first time may be slow"
    )


def node_by_node(kind, seed, rng):
    """A scheduler ends the job node by node, over seconds."""
    job = some_job(kind, seed, rng, world_size=rng.choice([8, 16, 32]), host_count=4, echoes=False)
    at_s = rng.uniform(0.3, 0.65) * job.steps * job.step_s + job.compile_s + 1.3
    gap_s = rng.uniform(0.3, 1.2)
    order = list(range(job.host_count))
    rng.shuffle(order)

    def script(simulation):
        for place, number in enumerate(order):
            for rank in job.on_host(number):
                simulation.kill(rank, at_s + gap_s * place + job.rng.uniform(0, 0.05), signal.SIGKILL)

    job.script = script
    return job, Truth(UNTOLD, evidence="all are gone, node after node, and nobody waited for anybody before")


def raised_by_all(kind, seed, rng):
    """A check that all ranks make together raises on all of them at once."""
    job = some_job(kind, seed, rng, echoes=False)
    step = late_step(job, rng)
    for rank in job.ranks:
        job.plants[rank, "optimizer", step] = raises(lambda: FloatingPointError("the loss is NaN"))
    ranks = frozenset(job.ranks)
    return job, Truth(TIE, ranks, tied=ranks, evidence="all raise the same, in the same phase, at one time")


def split_ends(kind, seed, rng):
    """Two hosts: two ranks raise at about one time; clocks cannot tell which was first."""
    job = some_job(kind, seed, rng, world_size=rng.choice([4, 8, 16]), host_count=2, echoes=False)
    first, second = rng.choice(job.on_host(0)), rng.choice(job.on_host(1))
    step = late_step(job, rng)
    error = rng.choice(OWN_ERRORS)
    for rank in (first, second):
        job.plants[rank, "forward", step] = raises(error)
    pair = frozenset({first, second})

    def truth(job):
        apart_s = abs(job.lives[first].end_s - job.lives[second].end_s)
        if apart_s < CLOCK_DOUBT_S:
            return Truth(TIE, pair, tied=pair, evidence="both raise the same at one time; the others wait for both")
        return Truth(NAMED, pair, evidence="both failed by themselves, and one of them plainly first")

    return job, truth


KINDS = {
    function.__name__.replace("_", " "): function
    for function in (
        unmarked_dead, unmarked_stuck, unmarked_odd_one, async_collective, unmarked_pipeline, hang_ended_later,
        caught_and_stopped, exits_without_with, exact_times, echoes, killed_and_echoes, killed_together,
        hang_in_destroy, hang_after_with, stopped_in_collective, stopped_elsewhere, died_before_others_began,
        elastic_restart, restart_dies_early, uneven_compile, node_by_node, raised_by_all, split_ends,
    )
}  # fmt: skip


def evolve(truth, **changes):
    """Return a truth with changes."""
    return attrs.evolve(truth, **changes)
