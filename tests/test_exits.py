"""Ends that meet something in their middle: a handler, a reset or another owner between two instructions."""

from __future__ import annotations

import threading

import pytest

from stormphase import Misuse, PhaseProtocolError, _exits
from stormphase._boundary import duration_ns, paused_ns, self_ns
from stormphase._exits import restore_context
from stormphase._lane import Lane, ThreadGuard
from stormphase._lanes import ContextCarrier
from stormphase._model import PhaseStatus
from stormphase._recorder import PhaseRecorder
from stormphase.testing import ManualClock

ABANDONED, SUCCEEDED = PhaseStatus.ABANDONED, PhaseStatus.SUCCEEDED


class MeddlingClock(ManualClock):
    """Calls what is in `meddle` once, right after it was read: there a signal handler or a thread may come."""

    meddle = None

    def monotonic_ns(self):
        """Return the time as it was before the meddling."""
        now_ns = super().monotonic_ns()
        if self.meddle is not None:
            meddle, self.meddle = self.meddle, None
            meddle()
        return now_ns


class RaisingCarrier(ContextCarrier):
    """Raises a KeyboardInterrupt before or after it has put a phase into the context."""

    when = None

    def __init__(self):
        super().__init__()
        plain = self.put

        def put(phase):
            when, self.when = self.when, None
            if when == "before":
                raise KeyboardInterrupt
            token = plain(phase)
            if when == "after":
                raise KeyboardInterrupt
            return token

        self.put = put


@pytest.fixture
def clock():
    """Return a clock that can meddle."""
    return MeddlingClock()


@pytest.fixture
def use_phases(lanes, clock):
    """Return a handler that uses phases for 100 ns."""

    def use():
        with lanes.enter_phase("handler"):
            clock.advance(100)

    return use


@pytest.fixture
def reset(lanes):
    """Return a handler that resets."""
    return lambda: lanes.close("the recorder was reset")


def out_of_the_ordinary(phase):
    """Let the phase end the slow way."""
    phase.set_attribute("k", 1)
    return phase


@pytest.mark.parametrize("prepare", [lambda phase: phase, out_of_the_ordinary], ids=["plain", "slow"])
def test_a_handlers_phases_within_an_exit_are_the_phases_own(lanes, ended, clock, use_phases, prepare):
    """They run on top of it, so the clock is read again, and no time is counted twice."""
    with lanes.enter_phase("outer"), lanes.enter_phase("train") as train:
        prepare(train)
        clock.advance(1)
        clock.meddle = use_phases
    assert [("handler", 100), ("train", 1), ("outer", 0)] == [(phase.name, self_ns(phase)) for phase in ended]
    assert (101, 101) == (duration_ns(train), lanes.lane_of_caller()._children_ns)


def test_a_handlers_phases_within_an_enter_are_beside_it(lanes, ended, clock, use_phases):
    """They came before it."""
    with lanes.enter_phase("outer") as outer:
        clock.meddle = use_phases
        with lanes.enter_phase("train") as train:
            clock.advance(1)
    assert [("handler", 100), ("train", 1), ("outer", 0)] == [(phase.name, self_ns(phase)) for phase in ended]
    assert (1, 101, "test_exits.py") == (duration_ns(train), duration_ns(outer), train.location.partition(":")[0])


def test_a_handlers_phases_within_an_abandonment_are_the_phases_own(lanes, ended, clock, use_phases, reset):
    """A reset reads the clock again, too."""
    lanes.enter_phase("train")
    clock.meddle = use_phases
    reset()
    assert [("handler", 100), ("train", 0)] == [(phase.name, self_ns(phase)) for phase in ended]
    with lanes.enter_phase("next"):
        pass


def test_a_handlers_phases_within_a_pause_are_not_paused_time(lanes, clock, use_phases):
    """They run on top of what is about to be paused."""
    with lanes.enter_phase("train") as train:
        clock.meddle = use_phases
        train.pause()
        clock.advance(7)
        train.resume()
    assert (107, 7, 0) == (duration_ns(train), paused_ns(train), self_ns(train))


def test_a_handlers_phases_within_a_resume_are_before_it(lanes, ended, clock, use_phases):
    """They are still paused time."""
    with lanes.enter_phase("train") as train:
        train.pause()
        clock.meddle = use_phases
        train.resume()
        clock.advance(7)
    assert (107, 100, 7) == (duration_ns(train), paused_ns(train), self_ns(train))
    assert lanes.lane_of_caller()._children_ns == sum(self_ns(phase) for phase in ended)


@pytest.mark.parametrize("prepare", [lambda phase: phase, out_of_the_ordinary], ids=["plain", "slow"])
def test_a_reset_within_an_exit_ends_the_phase_once(lanes, ended, clock, reset, prepare):
    """The exit finds nothing left to end."""
    with lanes.enter_phase("train") as train:
        prepare(train)
        clock.meddle = reset
    assert ([train], ABANDONED) == (ended, train.status)
    assert None is lanes.carrier.current_phase()


def test_a_reset_within_a_close_over_others_ends_all_once(lanes, ended, clock, reset, monkeypatch):
    """What was looked for on the lane is not there any more."""
    outer = lanes.enter_phase("outer")
    lanes.enter_phase("inner")
    monkeypatch.setattr("stormphase._exits.inside_of", lambda lane, phase: reset())
    outer.close()
    assert [ABANDONED] * 2 == [phase.status for phase in ended]
    lanes.enter_phase("next").close()


def test_a_reset_within_a_reset_ends_all_once(lanes, ended, clock, reset):
    """Two at once share the work."""
    lanes.enter_phase("outer")
    lanes.enter_phase("inner")
    clock.meddle = reset
    reset()
    assert ["inner", "outer"] == [phase.name for phase in ended]
    lanes.enter_phase("next").close()


@pytest.mark.parametrize("action", ["pause", "resume", "close"])
def test_a_reset_within_a_move_ends_the_phase_once(lanes, ended, clock, reset, action):
    """The move comes too late."""
    train = lanes.enter_phase("train")
    if action != "pause":
        train.pause()
    clock.meddle = reset
    getattr(train, action)()
    assert ([train], ABANDONED, []) == (ended, train.status, list(lanes.open_phases()))
    assert set() == lanes.parked


def test_a_release_that_a_reset_overtook_returns_a_token_of_nothing(lanes, clock, reset):
    """It acquires nothing."""
    train = lanes.enter_phase("train")
    clock.meddle = reset
    token = train.release()
    with pytest.raises(PhaseProtocolError) as raised:
        lanes.acquire(token)
    assert Misuse.FORGED_TOKEN == raised.value.reason


def test_an_acquire_that_another_one_overtook_is_stale(lanes, clock):
    """Between its look at the token and its claim."""
    token = lanes.enter_phase("train").release()
    won = []
    clock.meddle = lambda: won.append(lanes.acquire(token))
    with pytest.raises(PhaseProtocolError) as raised:
        lanes.acquire(token)
    assert Misuse.STALE_TOKEN == raised.value.reason
    won[0].close()


def test_where_misuse_is_only_recorded_an_overtaken_acquire_is_counted(lenient, clock):
    """Who comes too late gets a phase of nothing, and the winner's is as it was."""
    token = lenient.enter_phase("train").release()
    won = []
    clock.meddle = lambda: won.append(lenient.acquire(token))
    lost = lenient.acquire(token)
    assert (lenient.noop, {Misuse.STALE_TOKEN: 1}) == (lost, lenient.counts.to_dict())
    assert won == list(lenient.open_phases())
    won[0].close()


def test_an_acquire_that_sees_the_fence_of_another_one_is_stale(lanes, monkeypatch):
    """Between the check of the token and the look at the phase."""
    token = lanes.enter_phase("train").release()
    won = []
    look = lanes.lane_of_caller

    def look_late(self):
        if not won:
            won.append(None)
            won[0] = lanes.acquire(token)
        return look()

    monkeypatch.setattr(type(lanes), "lane_of_caller", look_late)
    with pytest.raises(PhaseProtocolError) as raised:
        lanes.acquire(token)
    monkeypatch.undo()
    assert Misuse.STALE_TOKEN == raised.value.reason
    assert [won[0]] == list(lanes.open_phases())
    won[0].close()


def test_a_generator_closed_elsewhere_while_a_reset_comes_ends_once(lanes, ended, clock, reset, step_thread):
    """Whether the reset took its phase, or what was above it."""

    def generate():
        with lanes.enter_phase("items"):
            yield 1

    for has_more in (False, True):
        generator = generate()
        next(generator)
        if has_more:
            lanes.enter_phase("above")
        clock.meddle = reset
        step_thread().do(generator.close)
        assert [] == list(lanes.open_phases())
        lanes.enter_phase("next").close()
    assert ["items", "next", "above", "items", "next"] == [phase.name for phase in ended]


def test_a_generator_whose_neighbour_goes_meanwhile_is_left_to_the_reset(lanes, ended, step_thread, monkeypatch):
    """The test before the stores sees it."""

    def generate():
        with lanes.enter_phase("items"):
            yield 1

    generator = generate()
    next(generator)
    items = lanes.carrier.current_phase()
    above = lanes.enter_phase("above")

    def look(lane, phase):
        _exits._abandon(lanes, lane, above, "the recorder was reset")
        return [above]

    monkeypatch.setattr(_exits, "inside_of", look)
    step_thread().do(generator.close)
    assert ([above], [items]) == (ended, list(lanes.open_phases()))
    items.close()
    lanes.enter_phase("next").close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_enter_has_never_been(clock, when):
    """Lane and context are as they were, also where the variable's token was lost with the call."""
    carrier = RaisingCarrier()
    lanes = PhaseRecorder(clock=clock).lane_set("s", 0, carrier=carrier)
    with lanes.enter_phase("outer") as outer:
        carrier.when = when
        with pytest.raises(KeyboardInterrupt):
            lanes.enter_phase("inner")
        assert ([outer], outer) == (list(lanes.open_phases()), carrier.current_phase())
    assert None is carrier.current_phase()


def test_an_interrupted_enter_that_a_reset_ended_stays_ended(clock):
    """There is nothing left to take back."""
    carrier = RaisingCarrier()
    lanes = PhaseRecorder(clock=clock).lane_set("s", 0, carrier=carrier)
    plain = carrier.put

    def reset_and_raise(phase):
        lanes.close("the recorder was reset")
        plain(phase)
        raise KeyboardInterrupt

    carrier.put = reset_and_raise
    lanes = PhaseRecorder(clock=clock).lane_set("s", 0, carrier=carrier)
    with pytest.raises(KeyboardInterrupt):
        lanes.enter_phase("train")
    assert ([], None) == (list(lanes.open_phases()), carrier.current_phase())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("is_moved", [False, True])
def test_an_interrupted_resume_stays_paused(clock, when, is_moved):
    """The pause goes on as if nothing had been tried."""
    carrier = RaisingCarrier()
    lanes = PhaseRecorder(clock=clock).lane_set("s", 0, carrier=carrier)
    ended = []
    lanes.exit_queues = (ended.append,)
    with lanes.enter_phase("outer") as outer:
        phase = lanes.enter_phase("work")
        token = phase.release() if is_moved else phase.pause()
        clock.advance(20)
        carrier.when = when
        with pytest.raises(KeyboardInterrupt):
            lanes.acquire(token) if is_moved else phase.resume()
        assert outer is carrier.current_phase()
        clock.advance(300)
        parked = [each for each in lanes.open_phases() if each is not outer]
        assert [PhaseStatus.PAUSED] == [each.status for each in parked]
        parked[0].resume()
        clock.advance(4_000)
        parked[0].close()
    assert [(4_320, 320, 4_000), (4_320, 0, 320)] == [(duration_ns(p), paused_ns(p), self_ns(p)) for p in ended]


def test_a_context_that_was_restored_before_is_left_alone(lanes):
    """An exit that was interrupted right after it had restored it comes again."""
    phase = lanes.enter_phase("train")
    token = phase._context_token
    restore_context(lanes, phase)
    restore_context(lanes, phase)
    phase._context_token = token
    restore_context(lanes, phase)
    assert {} == lanes.counts.to_dict()
    phase._context_token = token
    phase.__exit__(None, None, None)
    assert SUCCEEDED is phase.status


def test_an_inner_phase_that_ended_without_its_exit_is_taken_out_of_the_context(lanes, reset):
    """Its own exit was interrupted; that of the phase around it clears it away."""
    with lanes.enter_phase("outer"):
        inner = lanes.enter_phase("inner")
        reset()
        assert inner is lanes.carrier.current_phase()
    assert None is lanes.carrier.current_phase()


def test_a_filtered_success_goes_to_the_quiet_queues_and_a_failure_to_all(lanes, ended):
    """What a filter keeps from the sinks is counted as filtered, and never a failure."""
    quiet = []
    lanes.quiet_queues = (quiet.append,)
    for error in (None, ValueError("x")):
        phase = lanes.enter_phase("train")
        phase._extra_or_new().is_quiet = True
        phase.close(error=error)
    assert ([SUCCEEDED], [PhaseStatus.FAILED]) == ([p.status for p in quiet], [p.status for p in ended])
    assert (1, (0, 1)) == (lanes.counts["filtered"], lanes.boundary_counts())


def test_a_handler_that_enters_before_the_threads_first_phase_makes_its_lane(recorder, clock):
    """The thread has one lane, whoever came first."""
    lanes = recorder.lane_set("first", 0)
    clock.meddle = lambda: lanes.enter_phase("handler").close()
    with lanes.enter_phase("train") as phase:
        assert [phase] == list(lanes.open_phases())
        assert phase._lane is lanes.lane_of_caller()


def test_an_interrupted_resume_that_a_reset_ended_stays_ended(clock):
    """There is nothing left to pause again."""
    carrier = RaisingCarrier()
    lanes = PhaseRecorder(clock=clock).lane_set("s", 0, carrier=carrier)
    phase = lanes.enter_phase("train")
    phase.pause()

    def reset_and_raise(phase):
        lanes.close("the recorder was reset")
        raise KeyboardInterrupt

    carrier.put = reset_and_raise
    with pytest.raises(KeyboardInterrupt):
        phase.resume()
    assert (ABANDONED, [], None) == (phase.status, list(lanes.open_phases()), carrier.current_phase())


def test_what_an_interrupted_first_sight_of_a_thread_leaves_does_no_harm(lanes):
    """A guard that was never finished, and a lane that was never kept, go in peace."""
    ThreadGuard.__new__(ThreadGuard).__del__()
    lanes._gone.append(Lane(lanes, 1, "never kept", None))
    assert ([], (0, 0)) == (lanes.lanes(), lanes.boundary_counts())


def test_each_new_thread_is_told_once(lanes, step_thread):
    """The tracker starts its workers then, in a forked child for one."""
    seen = []
    lanes.on_first_sight = lambda: seen.append(threading.current_thread().name) is None
    for name in ("one", "two"):
        thread = step_thread(name)
        for _ in range(2):
            thread.do(lambda: lanes.enter_phase("x").close())
    assert ["one", "two"] == seen


def test_a_pause_that_was_overtaken_parks_nothing(lanes, ended, clock):
    """The phase was taken off its lane between the look and the stores."""
    train = lanes.enter_phase("train")
    clock.meddle = lambda: _exits._abandon(lanes, train._lane, train, "the recorder was reset")
    train.pause()
    assert ([train], ABANDONED, set()) == (ended, train.status, lanes.parked)


def close_plainly(lanes, end_of):
    """Leave a block."""
    phase = lanes.enter_phase("train")
    end_of(lambda: phase.__exit__(None, None, None))


def close_the_slow_way(lanes, end_of):
    """Close a phase by its method."""
    end_of(lanes.enter_phase("train").close)


def close_while_paused(lanes, end_of):
    """Close a phase that is on no lane."""
    phase = lanes.enter_phase("train")
    phase.pause()
    end_of(phase.close)


def close_by_reset(lanes, end_of):
    """Have it abandoned."""
    lanes.enter_phase("train")
    end_of(lambda: lanes.close("the recorder was reset"))


def close_from_another_context(lanes, end_of):
    """Close a generator in another thread, from beneath what is open above its phase."""

    def generate():
        with lanes.enter_phase("train"):
            yield

    def close_in_a_thread():
        thread.start()
        thread.join()
        (error,) = raised
        raise error

    def close():
        try:
            generator.close()
        except KeyboardInterrupt as error:
            raised.append(error)

    raised = []
    generator = generate()
    thread = threading.Thread(target=close)
    next(generator)
    above = lanes.enter_phase("above")
    end_of(close_in_a_thread)
    lanes.exit_queues = ()
    above.close()


@pytest.mark.parametrize(
    "close",
    [close_plainly, close_the_slow_way, close_while_paused, close_by_reset, close_from_another_context],
    ids=lambda close: close.__name__,
)
def test_of_an_end_whose_telling_is_interrupted_the_others_are_told(lanes, close):
    """A signal handler raises while the first sink is told: it surfaces, and each other sink is told once."""
    first, second, third = [], [], []

    def interrupted(phase):
        first.append(phase)
        raise KeyboardInterrupt

    def end(call):
        lanes.exit_queues = (interrupted, second.append, third.append)
        with pytest.raises(KeyboardInterrupt):
            call()
        assert [["train"]] * 3 == [[phase.name for phase in told] for told in (first, second, third)]
        assert 1 == lanes.boundary_counts()[1]

    close(lanes, end)
    assert [] == list(lanes.open_phases())
    lanes.exit_queues = ()
    lanes.enter_phase("next").close()


class StopsMeanwhile(Exception):  # noqa: N818 - it is one of the program's
    """An error that lets somebody else end everything while it is looked at."""

    def __init__(self, lanes):
        """Keep what is to be closed."""
        super().__init__()
        self._lanes = lanes

    def __str__(self):
        """Close everything."""
        self._lanes.close("over")
        return "too late"


def test_an_error_that_comes_when_another_thread_has_ended_the_phase_is_not_noted_on_it(lanes, ended):
    """Who had been told of the end was told of none, and so is who looks later."""
    phase = lanes.enter_phase("train")
    with pytest.raises(StopsMeanwhile), phase:
        raise StopsMeanwhile(lanes)
    assert [phase] == ended
    assert (PhaseStatus.ABANDONED, None) == (phase.status, phase._extra.error)
