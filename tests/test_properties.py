"""Any interleaving of threads and tasks, failures, pauses, hand-overs, resets and misuse gives a well-formed forest.

Real threads and real tasks do one thing at a time, as they are told. Beside them a model keeps what must be true: whose
stack has what, who hangs under whom, and where each nanosecond went.
"""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import Future

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from stormphase import Misuse, PhaseProtocolError
from stormphase._boundary import duration_ns, exit_boundary, paused_ns, self_ns
from stormphase._model import PhaseStatus
from stormphase._recorder import PhaseRecorder
from stormphase.testing import ManualClock

WAIT_S = 10
MOST_ACTORS = 7
PICK = st.integers(0, 10**6)


class Actor:
    """A thread or a task that does what it is told, and what the model knows of it."""

    def __init__(self, do, origin):
        self.do = do
        self.origin = origin  # the model's phase in whose context it was made
        self.stack = []
        self.busy_ns = 0
        self.is_stale = False  # whether a reset may have left its context behind


class Known:
    """What the model knows of one phase."""

    def __init__(self, handle, token, name, parent, owner):
        self.handle = handle
        self.token = token
        self.path = (*(parent.path if parent else ()), name)
        self.parent = parent
        self.owner = owner
        self.own_ns = 0
        self.paused_ns = 0
        self.status = PhaseStatus.ACTIVE
        self.sequence = handle._sequence


class LoopActors:
    """Tasks of one loop that runs in one thread."""

    def __init__(self, make_thread):
        self.loop = asyncio.new_event_loop()
        self.thread = make_thread("loop", lambda serve: self.loop.run_forever())
        self.tasks = []

    def spawn(self, within=None):
        """Make a task, in a copy of the context of the task whose `do` is given, and return its `do`."""
        box = []

        def make():
            queue = asyncio.Queue()
            self.tasks.append(asyncio.ensure_future(self._serve(queue), loop=self.loop))
            box.append(queue)

        if within is None:
            self.loop.call_soon_threadsafe(make)
            self._settle()
        else:
            within(make)
        return lambda call, *arguments: self._do(box[0], call, arguments)

    def end(self):
        """Cancel all tasks and end the loop's thread."""

        def stop():
            for task in self.tasks:
                task.cancel()
            self.loop.call_soon(self.loop.stop)

        self.loop.call_soon_threadsafe(stop)
        self.thread.end()
        self.loop.close()

    def _settle(self):
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop).result(WAIT_S)

    def _do(self, queue, call, arguments):
        outcome = Future()
        self.loop.call_soon_threadsafe(queue.put_nowait, (call, arguments, outcome))
        return outcome.result(WAIT_S)

    async def _serve(self, queue):
        while True:
            call, arguments, outcome = await queue.get()
            try:
                outcome.set_result(call(*arguments))
            except BaseException as error:
                outcome.set_exception(error)


def raise_in(handle, error):
    """Leave the handle's block by `error`."""
    with handle:
        raise error


class Interleavings(RuleBasedStateMachine):
    """The machine that hypothesis drives."""

    def __init__(self, make_thread):
        super().__init__()
        self.make_thread = make_thread
        self.clock = ManualClock()
        self.threads = []
        self.actors = []
        self.parked = []  # paused or released: (known, is_released)
        self.spent_tokens = []
        self.ended_known = {}
        self.ended = []

    @initialize(is_lenient=st.booleans())
    def begin(self, is_lenient):
        """Start two threads and two tasks, strict or lenient."""
        self.is_lenient = is_lenient
        recorder = PhaseRecorder(clock=self.clock, on_misuse="record" if is_lenient else "raise")
        self.lanes = recorder.lane_set("s", 0)
        self.lanes.exit_queues = (self.ended.append,)
        self.loop = LoopActors(self.make_thread)
        for _ in range(2):
            self.threads.append(self.make_thread())
            self.actors.append(Actor(self.threads[-1].do, None))
            self.actors.append(Actor(self.loop.spawn(), None))
            self.actors[-1].is_task = True

    def actor(self, pick):
        """Return one of the actors."""
        return self.actors[pick % len(self.actors)]

    def note_end(self, known, status):
        """Let the model end a phase."""
        known.status = status
        self.ended_known[known.sequence] = known

    # What actors do

    @rule(
        pick=PICK,
        name=st.sampled_from(["a", " b ", "c\x07"]),
        is_sync=st.booleans(),
        how=st.sampled_from(["handle", "token"]),
    )
    def enter(self, pick, name, is_sync, how):
        """Enter a phase."""
        actor = self.actor(pick)
        if actor.stack:
            parent = actor.stack[-1]
        else:
            parent, actor.is_stale = actor.origin, False
        token = None
        if how == "token":
            token = actor.do(lambda: self.lanes.enter(name, {"k": 1}, sync=is_sync))
            handle = token._handle
        else:
            handle = actor.do(lambda: self.lanes.enter_phase(name, None, is_sync))
        clean = {"a": "a", " b ": "b", "c\x07": r"c\x07"}[name]
        actor.stack.append(Known(handle, token, clean, parent, actor))

    @rule(pick=PICK, how=st.sampled_from(["close", "with", "fail", "cancel", "error", "token"]))
    def leave(self, pick, how):
        """End an actor's innermost phase."""
        actor = self.actor(pick)
        if not actor.stack:
            return
        known = actor.stack.pop()
        handle, status = known.handle, PhaseStatus.SUCCEEDED
        if how == "with":
            actor.do(handle.__exit__, None, None, None)
        elif how in ("fail", "cancel"):
            error = ValueError("x") if how == "fail" else SystemExit()
            with pytest.raises(type(error)) as raised:
                actor.do(raise_in, handle, error)
            assert error is raised.value
            assert [] == getattr(error, "__notes__", [])
            status = PhaseStatus.FAILED if how == "fail" else PhaseStatus.CANCELLED
        elif how == "error":
            actor.do(lambda: handle.close(error=KeyError("x")))
            status = PhaseStatus.FAILED
        elif how == "token" and known.token is not None:
            actor.do(self.lanes.exit, known.token)
        else:
            actor.do(handle.close)
        self.note_end(known, status)

    @rule(pick=PICK)
    def pause(self, pick):
        """Pause an actor's innermost phase."""
        actor = self.actor(pick)
        if actor.stack:
            actor.do(actor.stack[-1].handle.pause)
            self.parked.append((actor.stack.pop(), None))

    @rule(pick=PICK)
    def resume(self, pick):
        """Resume a paused phase, by the one who paused it."""
        paused = [entry for entry in self.parked if entry[1] is None]
        if paused:
            entry = paused[pick % len(paused)]
            self.parked.remove(entry)
            entry[0].owner.do(entry[0].handle.resume)
            entry[0].owner.stack.append(entry[0])

    @rule(pick=PICK)
    def release(self, pick):
        """Release an actor's innermost phase."""
        actor = self.actor(pick)
        if actor.stack:
            known = actor.stack.pop()
            self.parked.append((known, actor.do(known.handle.release)))
            self.spent_tokens += [known.token] if known.token else []
            known.token = None

    @rule(pick=PICK, by=PICK)
    def acquire(self, pick, by):
        """Acquire a released phase, by anybody."""
        released = [entry for entry in self.parked if entry[1] is not None]
        if released:
            entry = released[pick % len(released)]
            self.parked.remove(entry)
            known, token = entry
            known.owner = self.actor(by)
            known.handle = known.owner.do(self.lanes.acquire, token)
            known.owner.stack.append(known)
            self.spent_tokens.append(token)

    @rule(pick=PICK)
    def end_paused(self, pick):
        """End a phase while it is paused, by the one who paused it."""
        paused = [entry for entry in self.parked if entry[1] is None]
        if paused:
            entry = paused[pick % len(paused)]
            self.parked.remove(entry)
            entry[0].owner.do(entry[0].handle.close)
            self.note_end(entry[0], PhaseStatus.SUCCEEDED)

    @rule(pick=PICK)
    def reset(self, pick):
        """Reset, from anywhere."""
        self.actor(pick).do(self.lanes.close, "the recorder was reset")
        for actor in self.actors:
            actor.is_stale = actor.is_stale or bool(actor.stack)
            while actor.stack:
                self.note_end(actor.stack.pop(), PhaseStatus.ABANDONED)
        while self.parked:
            self.note_end(self.parked.pop()[0], PhaseStatus.ABANDONED)

    @rule(pick=PICK)
    def spawn(self, pick):
        """Start a thread with a copied context, or a child task, beneath what the actor has open."""
        actor = self.actor(pick)
        if len(self.actors) >= MOST_ACTORS or actor.is_stale:
            return
        origin = actor.stack[-1] if actor.stack else actor.origin
        if hasattr(actor, "is_task"):
            self.actors.append(Actor(self.loop.spawn(actor.do), origin))
            self.actors[-1].is_task = True
            return
        context = actor.do(contextvars.copy_context)
        self.threads.append(self.make_thread(None, context.run))
        self.actors.append(Actor(self.threads[-1].do, origin))

    @rule(ns=st.integers(1, 10**9))
    def pass_time(self, ns):
        """Let time pass, for everybody."""
        self.clock.advance(ns)
        for actor in self.actors:
            if actor.stack:
                actor.busy_ns += ns
                actor.stack[-1].own_ns += ns
        for known, _ in self.parked:
            known.paused_ns += ns

    # What they should not do

    @rule(pick=PICK, by=PICK, action=st.sampled_from(["close", "pause", "release"]))
    def steal(self, pick, by, action):
        """Let an actor touch what another one has open: refused, and nothing changes."""
        actor, thief = self.actor(pick), self.actor(by)
        if actor is not thief and actor.stack:
            handle = actor.stack[-1].handle
            self.refused(thief, getattr(handle, action), {Misuse.FOREIGN_THREAD, Misuse.FOREIGN_TASK})

    @rule(pick=PICK)
    def close_over(self, pick):
        """Close an outer phase: refused, or, if lenient, what is open inside is abandoned."""
        actor = self.actor(pick)
        if len(actor.stack) < 2:
            return
        place = pick % (len(actor.stack) - 1)
        self.refused(actor, actor.stack[place].handle.close, {Misuse.STILL_OPEN_INSIDE})
        if self.is_lenient:
            while len(actor.stack) > place + 1:
                self.note_end(actor.stack.pop(), PhaseStatus.ABANDONED)
            self.note_end(actor.stack.pop(), PhaseStatus.SUCCEEDED)

    @rule(pick=PICK, by=PICK)
    def use_what_is_over(self, pick, by):
        """Close an ended phase again, or use a spent token."""
        over = list(self.ended_known.values())
        if over and pick % 2:
            # Closing again is told to whoever does it; an old handle of a phase that moved is stale instead.
            handle = over[pick % len(over)].handle
            self.refused(self.actor(by), handle.close, {Misuse.ALREADY_ENDED})
        elif self.spent_tokens:
            token = self.spent_tokens[pick % len(self.spent_tokens)]
            stale = {Misuse.STALE_TOKEN, Misuse.ALREADY_ENDED}
            self.refused(self.actor(by), lambda: self.lanes.acquire(token), stale)

    def refused(self, actor, call, reasons):
        """Check that a call is refused, for one of the reasons: raised, or counted if lenient."""
        before = self.lanes.counts.to_dict()
        if self.is_lenient:
            actor.do(call)
        else:
            with pytest.raises(PhaseProtocolError) as raised:
                actor.do(call)
            assert raised.value.reason in reasons
        after = self.lanes.counts.to_dict()
        assert 1 == sum(after.get(reason, 0) - before.get(reason, 0) for reason in reasons)

    # What is always true

    @invariant()
    def the_forest_is_what_the_model_says(self):
        """Stacks, parents, paths, contexts and endings."""
        for actor in self.actors:
            handles = [known.handle for known in actor.stack]
            lane, current = actor.do(lambda: (self.lanes.lane_of_caller(), self.lanes.carrier.current_phase()))
            assert handles == lane.phases()
            if not actor.stack:
                assert actor.busy_ns == lane._children_ns
            if not actor.is_stale:
                expected = actor.stack[-1] if actor.stack else actor.origin
                assert (expected and expected.sequence) == (current and current._sequence)
            for known in actor.stack:
                self.check(known)
                assert PhaseStatus.ACTIVE is known.handle.status
        for known, token in self.parked:
            self.check(known)
            assert (PhaseStatus.PAUSED, token is not None) == (known.handle.status, known.handle.closed)

    @invariant()
    def every_phase_ends_once_and_every_nanosecond_is_somebodys(self):
        """What has ended is what the model says, with its own, its paused and its whole time."""
        assert len(self.ended) == len(self.ended_known)
        for phase in self.ended[-3:]:
            known = self.ended_known[phase._sequence]
            self.check(known)
            assert known.status is phase.status
            assert (known.own_ns, known.paused_ns) == (self_ns(phase), paused_ns(phase))
            assert duration_ns(phase) >= known.own_ns + known.paused_ns
            scope = exit_boundary(phase).metadata["phase_scope"]
            assert (known.parent and known.parent.handle.scope_id) == scope["parent_scope_id"]

    def check(self, known):
        """Check a phase's place in the forest."""
        parent = known.handle.parent
        assert known.path == known.handle.path
        assert (known.parent and known.parent.sequence) == (parent and parent._sequence)

    def teardown(self):
        """Stop, and check the sums of all lanes once more."""
        if not self.actors:
            return
        self.reset(0)
        self.the_forest_is_what_the_model_says()
        self.every_phase_ends_once_and_every_nanosecond_is_somebodys()
        assert len(self.ended) == len({phase._sequence for phase in self.ended})
        assert sum(actor.busy_ns for actor in self.actors) == sum(self_ns(phase) for phase in self.ended)
        assert (0, len(self.ended)) == self.lanes.boundary_counts()
        for thread in self.threads:
            thread.end()
        self.loop.end()


def test_any_interleaving_gives_a_well_formed_forest(step_thread):
    """Hypothesis looks for the one that does not."""
    run_state_machine_as_test(
        lambda: Interleavings(step_thread),
        settings=settings(
            max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
