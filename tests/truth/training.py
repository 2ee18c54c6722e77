"""The training programs that the ranks of planted jobs run: setup, steps of several shapes, and teardown."""

from __future__ import annotations

import contextlib
import sys

from truth_simulation import Arrive, Await, Forever, Work


def program(ctx):
    """Run the session in the style of the job."""
    yield from STYLES[ctx.job.style](ctx, ctx.make_tracker())
    yield from ctx.spot("after")


def _with(ctx, tracker):
    with tracker:
        yield from body(ctx)


def _with_then_hang(ctx, tracker):
    """Have a failure caught around the block, and never come to the process's end."""
    try:
        yield from _with(ctx, tracker)
    except Exception:
        yield Forever()


def _finally(ctx, tracker):
    tracker.start()
    try:
        yield from body(ctx)
    finally:
        tracker.stop()


def _caught(ctx, tracker):
    """Stop within the block that catches, and exit."""
    tracker.start()
    try:
        yield from body(ctx)
    except Exception:
        tracker.stop()
        sys.exit(1)
    tracker.stop()


def _caught_before_stop(ctx, tracker):
    """Stop once the exception is done with, and exit."""
    tracker.start()
    failed = False
    try:
        yield from body(ctx)
    except Exception:
        failed = True
    tracker.stop()
    if failed:
        sys.exit(1)


def _start_stop(ctx, tracker):
    tracker.start()
    yield from body(ctx)
    tracker.stop()


def _start_only(ctx, tracker):
    tracker.start()
    yield from body(ctx)


STYLES = {
    "with": _with,
    "with then hang": _with_then_hang,
    "finally": _finally,
    "caught": _caught,
    "caught before stop": _caught_before_stop,
    "start stop": _start_stop,
    "start only": _start_only,
}


def body(ctx):
    """Set up, train and tear down."""
    job = ctx.job
    yield Work(1e-4)
    with ctx.phase("setup"):
        yield from ctx.work(1.0)
        yield from ctx.spot("setup")
        if job.shape != "alone":
            yield from ctx.meet("init_process_group")
    with ctx.prefetching(), ctx.phase("train"):
        steps = range(job.steps - job.facts.get("shorter", {}).get(ctx.rank, 0))
        for first in range(0, len(steps), job.epoch_steps or len(steps)):
            with ctx.phase("epoch") if job.epoch_steps else contextlib.nullcontext():
                for step in steps[first : first + (job.epoch_steps or len(steps))]:
                    yield from _step(ctx, step)
        yield from ctx.spot("end of train")
    ctx.set_step(None)
    with ctx.phase("teardown"):
        yield from ctx.work(0.05)
        yield from ctx.spot("teardown")
        if not job.facts.get("ends alone") and job.shape != "alone":
            yield from ctx.meet("destroy")
    yield from ctx.spot("at the end")


def _step(ctx, step):
    job = ctx.job
    ctx.set_step(step)
    with ctx.phase("step"):
        if step == 0:
            yield from ctx.spot("compile")
        yield from STEPS[job.shape](ctx, job.compile_s if step == 0 else 0.0)
    yield from _between(ctx, step)


def _between(ctx, step):
    job = ctx.job
    if job.shape == "alone":
        return
    if job.evaluate_every and step % job.evaluate_every == job.evaluate_every - 1:
        if ctx.rank == 0:
            yield from ctx.phase_work("evaluate", 3 * job.step_s)
        yield from ctx.meet("eval_barrier")
    if job.checkpoint_every and step % job.checkpoint_every == job.checkpoint_every - 1:
        if ctx.rank == 0:
            yield from ctx.phase_work("checkpoint", 4 * job.step_s)
        yield from ctx.meet("barrier")


def _ddp(ctx, extra_s):
    unit_s = ctx.job.step_s
    yield from ctx.phase_work("data_loading", 0.1 * unit_s)
    yield from ctx.phase_work("forward", 0.3 * unit_s + extra_s * ctx.rng.uniform(0.95, 1.05))
    yield from ctx.phase_work("backward", 0.5 * unit_s)
    if ctx.job.facts.get("skips", {}).get(ctx.rank) == ctx.step:
        return  # As `continue` does.
    yield from ctx.meet("all_reduce")
    yield from ctx.phase_work("optimizer", 0.05 * unit_s)


def _buckets(ctx, extra_s):
    """Overlap: several all-reduces within backward."""
    unit_s = ctx.job.step_s
    yield from ctx.phase_work("data_loading", 0.1 * unit_s)
    yield from ctx.phase_work("forward", 0.3 * unit_s + extra_s * ctx.rng.uniform(0.95, 1.05))
    with ctx.phase("backward"):
        yield from ctx.spot("backward")
        for _ in range(3):
            yield from ctx.work(0.15 * unit_s)
            yield from ctx.meet("all_reduce")
    yield from ctx.phase_work("optimizer", 0.05 * unit_s)


def _async(ctx, extra_s):
    """Enqueue the collective in a point that is marked, and wait for it in a phase that is not."""
    unit_s = ctx.job.step_s
    yield from ctx.phase_work("data_loading", 0.1 * unit_s)
    yield from ctx.phase_work("forward", 0.3 * unit_s + extra_s * ctx.rng.uniform(0.95, 1.05))
    yield from ctx.phase_work("backward", 0.5 * unit_s)
    yield from ctx.spot("before all_reduce")
    with ctx.point("all_reduce"):
        key, members = ctx.next_key("all_reduce")
        yield Work(3e-5)
        yield Arrive(key, members)
        yield Work(1e-5)
    with ctx.phase("synchronize"):
        yield Await(key, members)
        yield Work(2e-5)
    yield from ctx.phase_work("optimizer", 0.05 * unit_s)


def _fsdp(ctx, extra_s):
    unit_s = ctx.job.step_s
    yield from ctx.phase_work("data_loading", 0.1 * unit_s)
    with ctx.phase("forward"):
        for _ in range(2):
            yield from ctx.meet("all_gather")
            yield from ctx.work(0.15 * unit_s + extra_s / 2 * ctx.rng.uniform(0.95, 1.05))
        yield from ctx.spot("forward")
    with ctx.phase("backward"):
        for _ in range(2):
            yield from ctx.work(0.25 * unit_s)
            yield from ctx.meet("reduce_scatter")
        yield from ctx.spot("backward")
    yield from ctx.phase_work("optimizer", 0.05 * unit_s)


def _groups(ctx, extra_s):
    """Tensor parallel pairs within data parallel groups."""
    unit_s = ctx.job.step_s
    pair = {ctx.rank - ctx.rank % 2, ctx.rank - ctx.rank % 2 + 1}
    like = {rank for rank in ctx.job.ranks if rank % 2 == ctx.rank % 2}
    yield from ctx.phase_work("data_loading", 0.1 * unit_s)
    yield from ctx.phase_work("forward", 0.2 * unit_s + extra_s * ctx.rng.uniform(0.95, 1.05))
    yield from ctx.meet("tp_all_reduce", pair, group=f"tp {min(pair)}")
    yield from ctx.phase_work("backward", 0.5 * unit_s)
    yield from ctx.meet("all_reduce", like, group=f"dp {ctx.rank % 2}")
    yield from ctx.phase_work("optimizer", 0.05 * unit_s)


def _alone(ctx, extra_s):
    """Work on one's own share, without any other rank, as batch inference does."""
    unit_s = ctx.job.step_s
    yield from ctx.phase_work("data_loading", 0.1 * unit_s)
    yield from ctx.phase_work("forward", 0.8 * unit_s + extra_s)


def _pipeline(ctx, extra_s):
    """One stage a rank: activations go down, gradients come up, two micro batches a step."""
    unit_s, last = ctx.job.step_s, ctx.job.world_size - 1
    if ctx.rank == 0:
        yield from ctx.phase_work("data_loading", 0.05 * unit_s)
    for batch in range(2):
        if ctx.rank > 0:
            yield from _receive(ctx, "recv_forward", ctx.rank - 1, batch)
        yield from ctx.phase_work("forward", 0.2 * unit_s + extra_s / 2 * ctx.rng.uniform(0.95, 1.05))
        if ctx.rank < last:
            yield from _send(ctx, "send_forward", batch)
    for batch in range(2):
        if ctx.rank < last:
            yield from _receive(ctx, "recv_backward", ctx.rank + 1, batch)
        yield from ctx.phase_work("backward", 0.3 * unit_s)
        if ctx.rank > 0:
            yield from _send(ctx, "send_backward", batch)
    yield from ctx.phase_work("optimizer", 0.05 * unit_s)


def _send(ctx, name, batch):
    with ctx.phase(name):
        yield Work(5e-5)
        yield Arrive((name, ctx.rank, ctx.step, batch), frozenset({ctx.rank}))


def _receive(ctx, name, source, batch):
    with ctx.point(name):
        yield Work(1e-5)
        sent = name.replace("recv", "send")
        yield Await((sent, source, ctx.step, batch), frozenset({source}))


STEPS = {
    "ddp": _ddp,
    "buckets": _buckets,
    "async": _async,
    "fsdp": _fsdp,
    "groups": _groups,
    "pipeline": _pipeline,
    "alone": _alone,
}
