"""Kinds of planted jobs beyond the issue's, from how distributed training really fails, or does not."""

from __future__ import annotations

import os
import signal
import threading

from truth_job import OutOfMemoryError
from truth_kinds_issue import (
    OWN_ERRORS,
    culprit_of,
    dies,
    forever,
    forever_in_c,
    late_step,
    named,
    raises,
    some_job,
    spots_of,
)  # fmt: skip
from truth_outcomes import MAY, NAMED, TIE, UNTOLD, WELL, Truth
from truth_simulation import Work

_WELL = Truth(WELL, codes=(0,), evidence="all run or ended in order")


def straggler_and_watchdog(kind, seed, rng):
    """One rank is a hundred times slower in a step; the watchdog of the others raises, and it is ended later."""
    job = some_job(kind, seed, rng, echoes=False)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.watchdog_s = rng.uniform(60, 300)
    job.launcher_s = rng.uniform(0.2, 5)
    slow_s = job.watchdog_s + 600
    job.plants[culprit, rng.choice(spots_of(job)[:3]), step] = lambda ctx: iter([Work(slow_s)])
    return job, named(culprit, "the others timed out in what it never entered")


def loader_starved(kind, seed, rng):
    """One rank waits for its data for ever; points are marked."""
    job = some_job(kind, seed, rng, marks=True)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, "data_loading", step] = forever
    return job, named(culprit, "it is the only one that is not in the point")


def _odd_one_out(job, culprit, evidence):
    """Return the truth of one rank that does otherwise than all others; of two, nobody can tell which is right."""
    return Truth(NAMED if job.world_size > 2 else MAY, frozenset({culprit}), evidence=evidence)


def two_orders(kind, seed, rng):
    """One rank calls another collective than all others: a branch that only it takes."""
    job = some_job(kind, seed, rng, world_size=rng.choice([4, 8, 16]), shape=rng.choice(["ddp", "buckets"]))
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, "optimizer", step] = lambda ctx: ctx.meet("broadcast")
    return job, Truth(MAY, frozenset({culprit}), evidence="all wait, one of them elsewhere than the others")


def two_orders_in_halves(kind, seed, rng):
    """Half of the ranks call one collective, and half another: nothing says which half is right."""
    job = some_job(kind, seed, rng, world_size=rng.choice([4, 8, 16]), shape="ddp")
    step = late_step(job, rng)
    half = frozenset(rng.sample(list(job.ranks), job.world_size // 2))
    for rank in half:
        job.plants[rank, "optimizer", step] = lambda ctx: ctx.meet("broadcast")
    if not isinstance(job.marks, bool):  # by what is marked only one of the halves waits
        return job, Truth(MAY, half, evidence="one half waits in a marked point, and the other is elsewhere")
    return job, Truth(UNTOLD, evidence="two halves wait for each other")


def killed_for_memory(kind, seed, rng):
    """The kernel kills one rank for its memory; the launcher ends the others seconds later."""
    job = some_job(kind, seed, rng, echoes=False)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.launcher_s = rng.choice([rng.uniform(0.1, 0.3), rng.uniform(5, 30)])
    job.plants[culprit, rng.choice(spots_of(job)), step] = dies(signal.SIGKILL)

    def truth(job):
        if job.launcher_s < 1:
            return Truth(MAY, frozenset({culprit}), evidence="all are gone within moments; it had entered less")
        return named(culprit, "it gave no sign of life for seconds, while the others waited for it")

    return job, truth


def memory_of_all(kind, seed, rng):
    """All ranks run out of device memory in the same phase of the same step."""
    job = some_job(kind, seed, rng, echoes=False, shape="ddp")
    step = late_step(job, rng)
    for rank in job.ranks:
        job.plants[rank, "backward", step] = raises(
            lambda: OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        )
    ranks = frozenset(job.ranks)
    return job, Truth(
        TIE, ranks, tied=ranks, evidence="all raise the same in the same phase, within what steps scatter"
    )


def disk_full(kind, seed, rng):
    """The disk is full at the checkpoint that rank 0 writes, while the others wait in a barrier."""
    job = some_job(kind, seed, rng, checkpoint_every=6, steps=16)
    job.plants[0, "checkpoint", rng.choice([5, 11])] = raises(lambda: OSError(28, "No space left on device"))
    job.launcher_s = None if job.echoes else rng.uniform(3, 30)
    return job, named(0, "its error is its own, the others wait in what it never entered, or hear of its end")


def interrupted(kind, seed, rng):
    """Ctrl-C: SIGINT to the whole group."""
    job = some_job(kind, seed, rng, echoes=False, host_count=1)
    at_s = rng.uniform(0.3, 0.65) * job.steps * job.step_s + job.compile_s + 1.3

    def script(simulation):
        for rank in job.ranks:
            simulation.interrupt(rank, at_s + job.rng.uniform(0, 0.01), KeyboardInterrupt)

    job.script = script
    ranks = frozenset(job.ranks)
    return job, Truth(UNTOLD, tied=ranks, evidence="all were interrupted together")


def preempted(kind, seed, rng):
    """SIGTERM to all, with or without a tracker that stops for it."""
    job = some_job(kind, seed, rng, echoes=False, stops_on_sigterm=rng.random() < 0.5)
    at_s = rng.uniform(0.3, 0.65) * job.steps * job.step_s + job.compile_s + 1.3

    def script(simulation):
        for rank in job.ranks:
            simulation.kill(rank, at_s + job.rng.uniform(0, 0.3), signal.SIGTERM)

    job.script = script
    return job, Truth(UNTOLD, evidence="all were ended together, from outside")


def node_lost(kind, seed, rng):
    """One machine is gone with all its ranks; the others wait for them for minutes."""
    job = some_job(kind, seed, rng, world_size=rng.choice([8, 16, 32]), host_count=4, echoes=False)
    number = rng.randrange(job.host_count)
    if not job.reader_is_elsewhere and number == 0:
        number = 1
    at_s = rng.uniform(0.3, 0.65) * job.steps * job.step_s + job.compile_s + 1.3

    def script(simulation):
        for rank in job.on_host(number):
            simulation.kill(rank, at_s, signal.SIGKILL)

    job.script = script
    return job, Truth(NAMED, frozenset(job.on_host(number)), evidence="its ranks are silent, the others wait for them")


def thread_failed(kind, seed, rng):
    """A thread that loads data has died of an exception; the rank waits for its queue, the others for the rank."""
    job = some_job(kind, seed, rng)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, "data_loading", step] = _fail_in_thread
    return job, named(culprit, "it is overdue in data_loading, and a phase of its thread has failed")


def _fail_in_thread(ctx):
    if ctx._seat is not None:

        def load():
            try:
                with ctx.phase("read_shard"):
                    raise OSError(5, "Input/output error")
            except OSError:
                pass  # What it is about: nobody hears of it.

        thread = threading.Thread(target=load, name="prefetch")
        thread.start()
        thread.join()
    yield from forever(ctx)


def evaluation_failed(kind, seed, rng):
    """Rank 0 alone evaluates, and raises; the others wait in the barrier behind it, until they are ended."""
    job = some_job(kind, seed, rng, evaluate_every=6, steps=14)
    job.plants[0, "evaluate", rng.choice([5, 11])] = raises(rng.choice(OWN_ERRORS))
    job.launcher_s = None if job.echoes else rng.uniform(3, 30)
    return job, named(0, "its error is its own, and the others wait in what it never entered")


def never_started(kind, seed, rng):
    """One rank has never begun; the others wait in the first meeting."""
    job = some_job(kind, seed, rng)
    culprit = culprit_of(job, rng)
    job.starts[culprit] = None
    job.watch_after_s = rng.uniform(1_500, 5_000)
    codes = (1,) if job.is_marked("init_process_group") else (0, 1)  # else nothing says that they wait
    return job, Truth(
        NAMED, frozenset({culprit}), codes=codes, evidence="it has no journal, and all others wait in the first meeting"
    )


def failed_in_setup(kind, seed, rng):
    """One rank raises in its setup; the others wait in the first meeting."""
    job = some_job(kind, seed, rng, echoes=False)
    culprit = culprit_of(job, rng)
    job.plants[culprit, "setup", None] = raises(rng.choice(OWN_ERRORS))
    job.launcher_s = rng.choice([None, rng.uniform(3, 30)])
    return job, named(culprit, "it failed by itself, and the others wait in what it never entered")


def uneven_inputs(kind, seed, rng):
    """One rank has fewer batches: it goes on to its teardown or its end, and the others wait in a step."""
    job = some_job(kind, seed, rng, echoes=False, checkpoint_every=0)
    culprit = culprit_of(job, rng)
    job.facts["shorter"] = {culprit: rng.choice([1, 2])}
    job.facts["ends alone"] = rng.random() < 0.5
    return job, _odd_one_out(
        job, culprit, "it is past all steps, or ended in order, and has entered the point less often"
    )


def retried(kind, seed, rng):
    """Errors that were handled and retried; all ended or still run."""
    job = some_job(kind, seed, rng)
    for rank in rng.sample(list(job.ranks), max(1, job.world_size // 3)):
        job.plants[rank, "data_loading", late_step(job, rng)] = _retry
    if rng.random() < 0.5:
        job.watch_at_s = job.compile_s + 1.5 + rng.uniform(0.3, 0.7) * job.steps * job.step_s
    return job, _WELL


def _retry(ctx):
    for attempt in range(3):
        try:
            with ctx.phase("read"):
                yield from ctx.work(0.02)
                if attempt < 2:
                    raise ConnectionResetError(104, "Connection reset by peer")
        except ConnectionResetError:
            yield from ctx.work(0.02)


def finished(kind, seed, rng):
    """A job that has ended in order."""
    return some_job(kind, seed, rng, style=rng.choice(["with", "start stop", "start only", "finally"])), _WELL


def running(kind, seed, rng):
    """A job that runs, seen at any moment."""
    job = some_job(kind, seed, rng, checkpoint_every=rng.choice([0, 4]), evaluate_every=rng.choice([0, 3]))
    job.watch_at_s = 0.5 + rng.random() * (job.compile_s + 0.9 * job.steps * job.step_s)
    return job, _WELL


def slow_but_well(kind, seed, rng):
    """A job that runs, one rank of which is a little late: a pause of the collector, a slow disk."""
    job = some_job(kind, seed, rng)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, rng.choice(spots_of(job)), step] = lambda ctx: iter([Work(1.2)])

    job.watch_at_s = job.compile_s + 1.6 + step * job.step_s * 1.1 + rng.uniform(0, 0.5)
    return job, _WELL


def handled_then_another(kind, seed, rng):
    """One rank fails, handles it and goes on; later another one dies."""
    job = some_job(kind, seed, rng, world_size=rng.choice([4, 8, 16]))
    first, culprit = rng.sample(list(job.ranks), 2)
    job.plants[first, "data_loading", 4] = _retry
    plant = rng.choice([dies(signal.SIGKILL), raises(rng.choice(OWN_ERRORS)), forever])
    job.plants[culprit, "forward", late_step(job, rng)] = plant
    return job, named(culprit, "what the other one handled was long ago")


def two_failures(kind, seed, rng):
    """Two failures that have nothing to do with each other, seconds apart."""
    job = some_job(kind, seed, rng, world_size=rng.choice([4, 8, 16]), echoes=False, host_count=1)
    first, second = rng.sample(list(job.ranks), 2)
    step = late_step(job, rng)
    job.plants[first, "data_loading", step] = raises(rng.choice(OWN_ERRORS))
    after_s = rng.uniform(4, 9)

    def late(ctx):
        yield Work(after_s)
        raise MemoryError("cannot allocate 96 GiB")

    job.plants[second, "forward", step] = late
    return job, Truth(
        NAMED, frozenset({first}), tied=frozenset({second}), evidence="the first is seconds before the second"
    )


def waiters_time_out(kind, seed, rng):
    """The watchdog raises on all that wait, who say so and end; the culprit still hangs."""
    job = some_job(kind, seed, rng, echoes=False)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.watchdog_s = rng.uniform(30, 300)
    job.plants[culprit, rng.choice(spots_of(job)[:3]), step] = forever
    return job, named(culprit, "all others timed out in what it never entered, and it is still there")


def alone(kind, seed, rng):
    """A job of one rank that raises, or is killed."""
    job = some_job(kind, seed, rng, world_size=1, host_count=1, reader_is_elsewhere=False)
    plant = rng.choice([dies(signal.SIGKILL), raises(rng.choice(OWN_ERRORS))])
    job.plants[0, rng.choice(spots_of(job)), late_step(job, rng)] = plant
    return job, named(0, "there is no other")


def stuck_with_gil(kind, seed, rng):
    """One rank hangs in an extension that holds the GIL: it is there, and gives no sign of life."""
    job = some_job(kind, seed, rng)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    name = {"fsdp": "reduce_scatter"}.get(job.shape, "all_reduce")
    job.plants[culprit, rng.choice([f"in {name}", "forward", "data_loading"]), step] = forever_in_c
    return job, named(culprit, "it alone has given no sign of life for minutes, though it is there")


def network_stuck(kind, seed, rng):
    """All ranks have entered the collective, and nobody comes out: a network or a device hangs."""
    job = some_job(kind, seed, rng, shape=rng.choice(["ddp", "buckets"]))
    step = late_step(job, rng)
    for rank in job.ranks:
        job.plants[rank, "joined all_reduce", step] = forever
    return job, Truth(UNTOLD, evidence="all are in one point, and entered it equally often")


def storage_stuck(kind, seed, rng):
    """All ranks hang in their data loading: a shared file system is gone."""
    job = some_job(kind, seed, rng, world_size=rng.choice([4, 8, 16]))
    step = late_step(job, rng)
    for rank in job.ranks:
        job.plants[rank, "data_loading", step] = forever
    return job, Truth(UNTOLD, evidence="all are in one phase, since about one time")


def skipped_a_step(kind, seed, rng):
    """One rank skips a collective, as by `continue` on a bad batch, and is ahead ever since; the end never comes."""
    job = some_job(kind, seed, rng, shape="ddp", checkpoint_every=0, echoes=False)
    culprit, step = culprit_of(job, rng), rng.randrange(3, job.steps - 3)
    job.facts["skips"] = {culprit: step}
    return job, _odd_one_out(job, culprit, "it has entered the point once less, and is past all steps")


def own_connection_error(kind, seed, rng):
    """One host: a rank loses the connection to a data server, which is its own error; the others echo it."""
    job = some_job(kind, seed, rng, echoes=True, host_count=1)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, "data_loading", step] = raises(lambda: ConnectionResetError(104, "Connection reset by peer"))
    return job, named(culprit, "on one boot its end is the first, and it was in no waiting point")


def groups_stuck(kind, seed, rng):
    """Tensor and data parallel groups: one rank hangs at work, its pair waits for it, and the others for those."""
    job = some_job(kind, seed, rng, shape="groups", marks=True, world_size=rng.choice([4, 8, 16]), checkpoint_every=0)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, rng.choice(["data_loading", "forward", "backward"]), step] = rng.choice([forever, dies(9)])
    return job, named(culprit, "it is the only one at work, or dead")


def dead_in_collective(kind, seed, rng):
    """A rank is killed within the collective that all others are in, too; they stay in it."""
    job = some_job(kind, seed, rng, echoes=False, host_count=1, reader_is_elsewhere=False)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    name = {"fsdp": "reduce_scatter"}.get(job.shape, "all_reduce")
    job.plants[culprit, f"in {name}", step] = dies(signal.SIGKILL)
    return job, named(culprit, "it is the only one that is dead")


def failed_everywhere_but_one_first(kind, seed, rng):
    """One host: a rank raises, and the launcher ends the others at once by SIGTERM, for which their trackers stop."""
    job = some_job(kind, seed, rng, echoes=False, host_count=1, stops_on_sigterm=True)
    job.launcher_s = rng.uniform(0.1, 3)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, rng.choice(spots_of(job)), step] = raises(rng.choice(OWN_ERRORS))
    return job, named(culprit, "its error is its own, the others say that SIGTERM ended them, and later")


def worker_killed(kind, seed, rng):
    """A worker process that loads data for one rank is killed; the rank waits for it, and the others for the rank."""
    job = some_job(kind, seed, rng, host_count=1, reader_is_elsewhere=False)
    culprit, step = culprit_of(job, rng), late_step(job, rng)
    job.plants[culprit, "data_loading", step] = _lose_worker
    return job, named(culprit, "its worker is dead, and it is overdue in data_loading")


def _lose_worker(ctx):
    if ctx.is_real:
        pid = os.fork()
        if not pid:
            ctx.phase("read_shard").__enter__()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
    yield from forever(ctx)


def straggler_that_is_well(kind, seed, rng):
    """A job that runs, one rank of which is always twice as slow as the others."""
    job = some_job(kind, seed, rng)
    culprit = culprit_of(job, rng)
    job.watch_at_s = job.compile_s + 1.5 + rng.uniform(0.3, 0.7) * job.steps * job.step_s
    for step in range(job.steps):
        job.plants[culprit, "backward", step] = lambda ctx: ctx.work(ctx.job.step_s)
    return job, _WELL


def first_meeting_stuck(kind, seed, rng):
    """All ranks are in their first meeting, and nobody comes out: a port is closed."""
    job = some_job(kind, seed, rng, marks=True)
    for rank in job.ranks:
        job.plants[rank, "joined init_process_group", None] = forever
    job.watch_after_s = rng.uniform(1_500, 5_000)
    return job, Truth(UNTOLD, evidence="all are in one point, and entered it equally often")


def stuck_in_setup(kind, seed, rng):
    """One rank hangs in its setup, for an hour, and the others wait in the first meeting."""
    job = some_job(kind, seed, rng, marks=True)
    culprit = culprit_of(job, rng)
    job.plants[culprit, "setup", None] = forever
    job.watch_after_s = rng.uniform(3_600, 9_000)
    return job, Truth(MAY, frozenset({culprit}), evidence="it alone is not there, but a first time may be slow")


def several_stuck(kind, seed, rng):
    """Two ranks hang at work, on one disk; the others wait for both."""
    job = some_job(kind, seed, rng, world_size=rng.choice([6, 8, 16]), marks=rng.random() < 0.5)
    step = late_step(job, rng)
    both = frozenset(rng.sample(list(job.ranks), 2))
    for rank in both:
        job.plants[rank, "data_loading", step] = forever
    return job, Truth(NAMED, both, evidence="the others are overdue in a path that these have entered less often")


KINDS = {
    function.__name__.replace("_", " "): function
    for function in (
        straggler_and_watchdog, loader_starved, two_orders, two_orders_in_halves, killed_for_memory, memory_of_all,
        disk_full, interrupted, preempted, node_lost, thread_failed, evaluation_failed, never_started, failed_in_setup,
        uneven_inputs, retried, finished, running, slow_but_well, handled_then_another, two_failures, waiters_time_out,
        alone, stuck_with_gil, network_stuck, storage_stuck, skipped_a_step, own_connection_error, groups_stuck,
        dead_in_collective, failed_everywhere_but_one_first, worker_killed, straggler_that_is_well,
        first_meeting_stuck, stuck_in_setup, several_stuck,
    )
}  # fmt: skip
