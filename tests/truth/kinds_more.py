"""More kinds of planted jobs: traps, in which who is first or last is innocent, and jobs without meetings."""

from __future__ import annotations

import signal

from truth_job import ECHOES, torchrun, watchdog_error
from truth_kinds_issue import OWN_ERRORS, culprit_of, dies, forever, late_step, named, raises, some_job, spots_of
from truth_outcomes import NAMED, UNTOLD, WELL, Truth
from truth_simulation import Work

_WELL = Truth(WELL, codes=(0,), evidence="all run or ended in order")
_OUTSIDE = Truth(UNTOLD, evidence="all were ended from outside, each in its own time")


def _some_second(job, rng):
    """Return a second in the midst of the steps."""
    return rng.uniform(0.3, 0.65) * job.steps * job.step_s + job.compile_s + 1.3


def suspended(kind, seed, rng):
    """Ctrl-Z: all ranks are stopped by a signal at one time."""
    job = some_job(kind, seed, rng, host_count=1, world_size=rng.choice([2, 4, 8]))
    at_s = _some_second(job, rng)

    def script(simulation):
        for rank in job.ranks:
            simulation.halt(rank, at_s + job.rng.uniform(0, 0.002))

    job.script = script
    return job, Truth(UNTOLD, evidence="the kernel says of all that they are stopped by a signal")


def failed_and_stays(kind, seed, rng):
    """One rank raises in a step, and hangs in the cleaning up; the others wait for it."""
    job = some_job(kind, seed, rng, echoes=False)
    culprit, step = culprit_of(job, rng), late_step(job, rng)

    def fail_and_hang(ctx):
        try:
            with ctx.phase("read_shard"):
                yield Work(1e-5)
                raise OSError(5, "Input/output error")
        finally:
            with ctx.phase("clean_up"):
                yield from forever(ctx)

    job.plants[culprit, "forward", step] = fail_and_hang
    return job, named(culprit, "the others are overdue in a path that it has entered less often")


def killed_in_first_step(kind, seed, rng):
    """One rank is killed while it compiles, before anything has a history; the others wait, or are ended later."""
    job = some_job(kind, seed, rng, compile_s=10.0, echoes=rng.random() < 0.3)
    culprit = culprit_of(job, rng)
    job.launcher_s = rng.choice([None, rng.uniform(20, 60)])
    job.plants[culprit, "compile", 0] = dies(signal.SIGKILL)
    return job, named(culprit, "it is dead or silent long before the others, or the others hear of its end")


def share_failed(kind, seed, rng):
    """Ranks without meetings, as in batch inference: one raises, and the others go on to their ends."""
    job = some_job(kind, seed, rng, shape="alone", echoes=False, world_size=rng.choice([4, 8, 16]))
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, "forward", step] = rng.choice([raises(rng.choice(OWN_ERRORS)), dies(signal.SIGKILL)])
    return job, named(culprit, "it alone has not ended in order")


def share_stuck(kind, seed, rng):
    """Ranks without meetings: one hangs, and the others have ended in order."""
    job = some_job(kind, seed, rng, shape="alone", echoes=False, world_size=rng.choice([4, 8, 16]))
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, "forward", step] = forever
    return job, named(culprit, "it is overdue, and all others have ended in order")


def share_is_larger(kind, seed, rng):
    """Ranks without meetings: one has more to do, and still does it; the others have ended in order."""
    job = some_job(kind, seed, rng, shape="alone", world_size=rng.choice([4, 8]), steps=200, step_s=1.0, epoch_steps=0)
    culprit = culprit_of(job, rng)
    job.facts["shorter"] = {rank: 180 for rank in job.ranks if rank != culprit}
    job.watch_at_s = job.compile_s + rng.uniform(100, 150)
    return job, _WELL


def last_one_saves(kind, seed, rng):
    """All others have ended in order; rank 0 still saves the model, for less than a minute so far."""
    job = some_job(kind, seed, rng, host_count=1, reader_is_elsewhere=False)
    job.facts["ends alone"] = True
    job.plants[0, "at the end", None] = lambda ctx: ctx.phase_work("save_model", 1_000_000)
    job.watch_after_s = None
    job.facts["watch after ends"] = rng.uniform(5, 45)
    return job, _WELL


def late_start(kind, seed, rng):
    """One rank is still importing, and the others wait for it in their first meeting, for less than a minute so far."""
    job = some_job(kind, seed, rng)
    job.starts[culprit_of(job, rng)] = 1_000.0
    job.watch_at_s = rng.uniform(5, 40)
    return job, Truth(WELL, codes=(0, 1), evidence="a start may take a while")


def network_timed_out(kind, seed, rng):
    """The network hangs: all have entered the collective, and the watchdog raises on all, one after the other."""
    job = some_job(kind, seed, rng, shape=rng.choice(["ddp", "buckets"]), echoes=False)
    step, after_s = late_step(job, rng), rng.uniform(60, 600)

    def time_out(ctx):
        yield Work(after_s * ctx.rng.uniform(1.0, 1.002))
        raise watchdog_error()

    for rank in job.ranks:
        job.plants[rank, "joined all_reduce", step] = time_out
    ranks = frozenset(job.ranks)
    return job, Truth(UNTOLD, tied=ranks, evidence="all entered the point equally often, and all timed out in it")


def network_reset(kind, seed, rng):
    """A switch resets all connections: all ranks that are in the collective fail with such an error."""
    job = some_job(kind, seed, rng, shape=rng.choice(["ddp", "buckets"]), echoes=False)
    step = late_step(job, rng)

    def lose(ctx):
        yield Work(ctx.rng.uniform(0.5, 0.7))
        error = ctx.rng.choice(ECHOES)()
        raise error

    for rank in job.ranks:
        job.plants[rank, "joined all_reduce", step] = lose
    return job, Truth(UNTOLD, evidence="all say that a connection was lost, and nobody ended for another reason")


def interrupted_unevenly(kind, seed, rng):
    """Ctrl-C: those that run Python end by it at once, and those within a collective are killed half a minute later."""
    job = some_job(kind, seed, rng, echoes=False, host_count=1, world_size=rng.choice([4, 8, 16]))
    at_s, grace_s = _some_second(job, rng), rng.uniform(10, 30)

    def script(simulation):
        def interrupt(simulation):
            for rank in job.ranks:
                if rank not in simulation.waiters:
                    simulation.interrupt(rank, job.rng.uniform(0, 0.05), KeyboardInterrupt)
                simulation.kill(rank, grace_s + job.rng.uniform(0, 0.05), signal.SIGKILL)

        simulation.after(at_s, interrupt)

    job.script = script
    return job, _OUTSIDE


def preempted_unevenly(kind, seed, rng):
    """SIGTERM to all, for which trackers stop; those within a collective are killed half a minute later."""
    job = some_job(kind, seed, rng, echoes=False, stops_on_sigterm=True, world_size=rng.choice([4, 8, 16]))
    at_s, grace_s = _some_second(job, rng), rng.uniform(10, 30)

    def script(simulation):
        def terminate(simulation):
            for rank in job.ranks:
                if rank not in simulation.waiters:
                    simulation.kill(rank, job.rng.uniform(0, 0.3), signal.SIGTERM)
                simulation.kill(rank, grace_s + job.rng.uniform(0, 0.05), signal.SIGKILL)

        simulation.after(at_s, terminate)

    job.script = script
    return job, _OUTSIDE


def memory_of_node(kind, seed, rng):
    """The kernel kills two ranks of one machine for their memory, a second or two apart; the others wait for both."""
    job = some_job(kind, seed, rng, world_size=rng.choice([8, 16]), echoes=False)
    step = late_step(job, rng)
    both = rng.sample(job.on_host(0), 2)
    gap_s = rng.uniform(0.5, 2.0)

    def later(ctx):
        yield Work(gap_s)
        yield from dies(signal.SIGKILL)(ctx)

    job.plants[both[0], "backward" if job.shape != "fsdp" else "forward", step] = dies(signal.SIGKILL)
    job.plants[both[1], "data_loading", step] = later
    return job, Truth(NAMED, frozenset(both), evidence="both are dead or silent, and the others wait for them")


def exit_hangs(kind, seed, rng):
    """One rank raises, its session ends by that, and its process hangs at exit; the others wait for it."""
    job = some_job(kind, seed, rng, echoes=False, style="with then hang")
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, rng.choice(spots_of(job)), step] = raises(rng.choice(OWN_ERRORS))
    return job, named(culprit, "its own word is that it failed, and the others wait in what it never entered")


def restarted_and_well(kind, seed, rng):
    """A rank failed, all were started again, and they run or have ended in order."""
    world_size = rng.choice([2, 4, 8])
    first = some_job(kind, seed, rng, world_size=world_size, host_count=1)
    first.launcher_s, first.attempt = 0.3, 0
    first.plants[rng.randrange(world_size), "forward", 9] = raises(rng.choice(OWN_ERRORS))
    first.environ = torchrun(first)
    job = some_job(kind, seed, rng, world_size=world_size, host_count=1)
    job.earlier, job.attempt = first, 1
    job.environ = torchrun(job, restarts=1)
    return job, _WELL


KINDS = {
    function.__name__.replace("_", " "): function
    for function in (
        suspended, failed_and_stays, killed_in_first_step, share_failed, share_stuck, share_is_larger, last_one_saves,
        late_start, network_timed_out, network_reset, interrupted_unevenly, preempted_unevenly, memory_of_node,
        exit_hangs, restarted_and_well,
    )
}  # fmt: skip
