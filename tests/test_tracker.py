"""The tracker as users meet it: start and stop, phases, tokens, steps, flags, and what it says when misused."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

import stormphase
from stormphase import (
    ConfigurationError,
    Misuse,
    PhaseBoundary,
    PhaseNameError,
    PhaseProtocolError,
    PhaseStatus,
    PhaseTracker,
)
from stormphase._bridge import DEFAULT_BRIDGE
from stormphase._lanes import ContextCarrier
from stormphase._noop import NOOP, NOOP_TOKEN


def scopes(boundaries: list[PhaseBoundary]) -> list[dict[str, Any]]:
    """Return what boundaries say of their phases."""
    return [boundary.metadata["phase_scope"] for boundary in boundaries]


def told(boundaries: list[PhaseBoundary]) -> list[tuple[str, str, str]]:
    """Return action, name and status of each boundary."""
    return [(scope["action"], scope["name"], scope["status"]) for scope in scopes(boundaries)]


class FakeBridge:
    """Notes what the tracker asks of a bridge."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.exit_hook = None
        self.session: Any = None

    def attach(self, session: Any) -> ContextCarrier:
        """Note the session."""
        self.session = session
        return ContextCarrier()

    def bind(self, lanes: Any) -> None:
        """Note it."""
        self.calls.append("bind")

    def take(self, phase: Any) -> None:
        """Note the phase."""
        self.calls.append(phase.name)

    def tick(self) -> None:
        """Do nothing."""

    def flush(self, timeout_s: float) -> bool:
        """Note it."""
        self.calls.append("flush")
        return True

    def finish(self, outcome: BaseException | None, ended_ns: int) -> None:
        """Note the outcome."""
        self.calls.append(("finish", outcome))

    def after_fork_in_child(self) -> None:
        """Do nothing."""

    def stats(self) -> dict[str, int]:
        """Return a count."""
        return {"offered": 1}

    def environment(self) -> dict[str, str]:
        """Return a variable."""
        return {"TRACEPARENT": "00-1-2-01"}


def test_the_boundaries_of_a_session_reach_a_sink(make_tracker):
    """Each enter and each exit is one boundary, in order, with the session's identity."""
    seen: list[PhaseBoundary] = []
    with (
        make_tracker("job", session_id="boundaries", rank=1, world_size=2, sinks=[seen.append]) as tracker,
        tracker.enter_phase("train", {"epochs": 3}),
    ):
        tracker.set_step(7)
        with tracker.enter_phase("step"):
            pass
    assert [
        ("enter", "train", "active"),
        ("enter", "step", "active"),
        ("exit", "step", "succeeded"),
        ("exit", "train", "succeeded"),
    ] == told(seen)
    assert {("boundaries", 1)} == {(scope["session_id"], scope["rank"]) for scope in scopes(seen)}
    assert [None, 7, 7, None] == [scope["step"] for scope in scopes(seen)]
    assert {"epochs": 3} == scopes(seen)[0]["attributes"]


def test_a_token_ends_its_phase_elsewhere(make_tracker):
    """Enter and exit may stand in different functions, with an error or without."""
    seen: list[PhaseBoundary] = []
    with make_tracker(sinks=[seen.append]) as tracker:
        token = tracker.enter("all_reduce", sync=True)
        tracker.exit(token)
        token = tracker.enter("load")
        tracker.exit(token, error=OSError("gone"))
    assert ["succeeded", "failed"] == [status for action, _, status in told(seen) if action == "exit"]


def test_what_is_open_at_stop_is_abandoned(make_tracker):
    """Stop ends all that is open, in this thread and in others, and whoever was inside goes on."""
    seen: list[PhaseBoundary] = []
    inside, leave = threading.Event(), threading.Event()
    tracker = make_tracker(sinks=[seen.append]).start()

    def work() -> None:
        with tracker.enter_phase("load"):
            inside.set()
            leave.wait(30)

    worker = threading.Thread(target=work)
    worker.start()
    inside.wait(30)
    phase = tracker.enter_phase("train")
    tracker.stop()
    leave.set()
    worker.join()
    assert {("load", "abandoned"), ("train", "abandoned")} == {
        (name, status) for action, name, status in told(seen) if action == "exit"
    }
    assert PhaseStatus.ABANDONED is phase.status
    assert {} == tracker.stats()["misuse"]
    with pytest.raises(PhaseProtocolError, match="already ended as abandoned"):
        phase.close()


def test_the_outcome_of_the_block_is_the_sessions(make_tracker):
    """The bridge learns how the session ended, and the exception passes as it is."""
    bridge = FakeBridge()
    error = ValueError("training diverged")

    def train() -> None:
        with make_tracker(bridge=bridge) as tracker, tracker.enter_phase("train"):
            raise error

    with pytest.raises(ValueError, match="training diverged") as raised:
        train()
    assert raised.value is error
    assert ["bind", "train", ("finish", error), "flush"] == bridge.calls


def test_the_outcome_is_not_kept(make_tracker):
    """An exception holds its frames, and with them tensors: the tracker lets go of it at once."""

    class Tensor:
        pass

    def train() -> weakref.ref[Tensor]:
        tensor = Tensor()
        try:
            with make_tracker(sinks=[lambda _: None]) as tracker, tracker.enter_phase("train"):
                raise ValueError("training diverged")
        except ValueError:
            return weakref.ref(tensor)

    reference = train()
    gc.collect()
    assert None is reference()


def test_a_bridge_learns_the_session_and_takes_phases(make_tracker, clock):
    """It is attached with all it must know, and asked for what child processes need."""
    bridge = FakeBridge()
    with make_tracker("job", bridge=bridge, clock=clock, session_id="bridged") as tracker:
        with tracker.enter_phase("train"):
            pass
        found = tracker.environment({"HOME": "/"})
        assert {"TRACEPARENT": "00-1-2-01", "HOME": "/", "STORMPHASE_CARRIER": tracker.carrier()["stormphase"]} == found
        assert {"offered": 1} == tracker.stats()["bridge"]
    assert ("job", "bridged", clock) == (bridge.session.name, bridge.session.identity.session_id, bridge.session.clock)
    assert bridge.session.started_ns == clock.monotonic_ns()


def test_the_default_bridge_is_made_at_start(make_tracker, monkeypatch):
    """Not at import and not at construction: the providers set until then count."""
    made: list[FakeBridge] = []
    monkeypatch.setattr(DEFAULT_BRIDGE, "make", lambda: made.append(FakeBridge()) or made[0])
    tracker = make_tracker(bridge=DEFAULT_BRIDGE)
    assert [] == made
    with tracker:
        pass
    assert [("finish", None)] == [call for call in made[0].calls if call[0] == "finish"]


def test_importing_and_making_a_tracker_starts_nothing(make_tracker):
    """Threads and handlers come with start."""
    before = threading.active_count()
    tracker = make_tracker(sinks=[print], stop_on_sigterm=True, summary=True)
    assert (before, False, None) == (threading.active_count(), tracker.is_running, tracker.lane_set)


def test_workers_end_with_the_session(make_tracker):
    """After stop no thread is left."""
    before = threading.active_count()
    with make_tracker(sinks=[lambda _: None], summary=False):
        assert before + 1 == threading.active_count()
    # The worker says that it is done, and then it goes.
    for thread in threading.enumerate():
        if thread.name.startswith("stormphase-"):
            thread.join(30)
    assert before == threading.active_count()


def test_flush_says_that_all_sinks_have_all(make_tracker):
    """After a good flush every boundary so far has been handed over."""
    seen: list[PhaseBoundary] = []
    with make_tracker(sinks=[seen.append]) as tracker:
        with tracker.enter_phase("step"):
            pass
        assert True is tracker.flush(30)
        assert 2 == len(seen)


def test_flush_before_start_and_after_stop(make_tracker):
    """Where nothing is to be delivered nothing is missing."""
    tracker = make_tracker(sinks=[lambda _: None])
    before = tracker.flush(0)
    with tracker, tracker.enter_phase("step"):
        pass
    assert (True, True) == (before, tracker.flush(0))


# Start and stop, misused


def test_a_tracker_starts_once(make_tracker):
    """A second start says to make a new tracker, also after stop."""
    tracker = make_tracker().start()
    with pytest.raises(ConfigurationError, match="Make a new PhaseTracker for each session"):
        tracker.start()
    tracker.stop()
    with pytest.raises(ConfigurationError, match="Make a new PhaseTracker for each session"):
        tracker.start()


def test_of_two_threads_that_start_one_does(make_tracker, step_thread):
    """The other one is told."""
    tracker = make_tracker()
    starts = [step_thread().begin(tracker.start) for _ in range(4)]
    errors = [start.exception(30) for start in starts]
    assert 1 == sum(error is None for error in errors)
    assert 3 == sum(isinstance(error, ConfigurationError) for error in errors)


def test_stop_before_start_does_nothing(make_tracker):
    """So a `finally` may always stop, and a tracker that was stopped too early still starts."""
    tracker = make_tracker()
    tracker.stop()
    assert True is tracker.start().is_running


def test_stop_twice_is_stop_once(make_tracker):
    """The second one does nothing."""
    seen: list[PhaseBoundary] = []
    tracker = make_tracker(sinks=[seen.append]).start()
    tracker.enter_phase("train")
    tracker.stop()
    tracker.stop()
    assert 2 == len(seen)


def test_a_second_stop_waits_for_the_first(make_tracker, step_thread):
    """Whoever returns from stop knows that the session has stopped: the interpreter may exit now."""
    taking, leave = threading.Event(), threading.Event()

    def slow(_: Any) -> None:
        taking.set()
        leave.wait(30)

    tracker = make_tracker(sinks=[slow]).start()
    with tracker.enter_phase("train"):
        taking.wait(30)
        first = step_thread().begin(tracker.stop)
        second = step_thread().begin(tracker.stop)
        third = step_thread().begin(tracker.stop, 0.0)
        third.result(30)
        waiting = (first.done(), second.done())
        leave.set()
        first.result(30)
        second.result(30)
    assert (False, False) == waiting
    assert 2 == tracker.stats()["sinks"]["0:slow"]["handed_over"]


def test_stop_within_stop_returns_at_once(make_tracker):
    """A signal handler may stop a tracker that the interrupted thread is stopping."""
    tracker = make_tracker().start()
    original = tracker._session._on_stop

    def stop_again() -> None:
        tracker.stop()
        original()

    tracker._session._on_stop = stop_again
    tracker.stop()
    assert False is tracker.is_running


def test_what_fails_in_stop_does_not_mask_the_users_exception(make_tracker, caplog):
    """The block's own exception passes; ours is logged."""
    tracker = make_tracker()

    def fail(*_: Any) -> None:
        raise OSError("internal")

    def train() -> None:
        with tracker:
            tracker._session.sinks.finish = fail
            raise ValueError("the user's")

    with pytest.raises(ValueError, match="the user's"):
        train()
    assert ["stormphase: the session could not be stopped in order"] == caplog.messages


def test_a_start_that_fails_may_be_repeated(make_tracker, monkeypatch):
    """Nothing is left of it: no thread, no claimed session, and the environment can be put right."""
    tracker = make_tracker(session_id="repeated", sinks=[lambda _: None])
    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setenv("STORMPHASE_SUMMARY", "perhaps")
        with pytest.raises(ConfigurationError, match="STORMPHASE_SUMMARY must be 1, 0 or all, not 'perhaps'"):
            tracker.start()
    assert before == threading.active_count()
    assert "repeated" == tracker.start().session_id


def test_a_bridge_that_fails_to_start_leaves_nothing(make_tracker):
    """What was begun before it failed is taken back."""

    class Failing(FakeBridge):
        def bind(self, lanes: Any) -> None:
            raise RuntimeError("no backend")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no backend"):
        make_tracker(session_id="failing", bridge=Failing()).start()
    assert before == threading.active_count()
    assert True is make_tracker(session_id="failing").start().is_running


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"sinks": print}, r"Write sinks=\[sink\]"),
        ({"sinks": 3}, r"Write sinks=\[sink\]"),
        ({"sinks": [3]}, "Give a function that takes one PhaseBoundary"),
        ({"summary": "yes"}, 'Write summary=True for rank 0 only, or summary="all"'),
        ({"queue_bound": 0}, "Leave it out for 131072"),
        ({"queue_bound": True}, "Leave it out for 131072"),
        ({"queue_bound": "10"}, "Leave it out for 131072"),
        ({"on_misuse": "ignore"}, 'Write on_misuse="raise" in development'),
        ({"level": "loud"}, 'Write level="info"'),
        ({"bridge": 5}, r"Write bridge=OTelBridge\(...\)"),
        ({"bridge": FakeBridge}, r"Write bridge=OTelBridge\(...\)"),
        ({"name": 5}, r'Write PhaseTracker\("resnet"\)'),
    ],
)
def test_a_wrong_argument_fails_at_once(make_tracker, options, fix):
    """The message says what to write instead."""
    with pytest.raises(ConfigurationError, match=fix):
        make_tracker(**options)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"rank": 5, "world_size": 2}, "rank must be less than world_size"),
        ({"rank": 5}, "Give world_size as well, or neither"),
        ({"session_id": "a/b"}, "Use 1 to 128 of the characters"),
        ({"session_id": ".."}, "Use 1 to 128 of the characters"),
        ({"session_id": "a\0"}, "Use 1 to 128 of the characters"),
        ({"session_id": "x" * 300}, "Use 1 to 128 of the characters"),
        ({"rank": 0, "world_size": 2}, "Set STORMPHASE_SESSION_ID to one value on all ranks"),
    ],
)
def test_a_wrong_identity_fails_at_start(make_tracker, options, fix):
    """The message says what to write or set instead."""
    with pytest.raises(ConfigurationError, match=fix):
        make_tracker(**options).start()


@pytest.mark.parametrize(("variable", "value"), [("STORMPHASE_DISABLED", "maybe"), ("STORMPHASE_SUMMARY", "2")])
def test_a_wrong_flag_fails_at_start(make_tracker, monkeypatch, variable, value):
    """A switch that is neither on nor off is a mistake, and which one it was meant to be cannot be known."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"Set {variable}=1, or unset it"):
        make_tracker().start()


# Phases, misused


def call_everything(tracker: PhaseTracker) -> None:
    """Use a tracker in every way in which training does."""
    with tracker.enter_phase("train", {"epochs": 3}, sync=True) as phase:
        phase.set_attribute("loss", 1)
        phase.add_event("checkpoint")
        phase.pause()
        phase.resume()
    token = tracker.enter("load")
    tracker.exit(token, error=OSError())
    released = tracker.enter_phase("hand over").release()
    tracker.acquire(released).close()
    tracker.retry(phase).close()
    tracker.set_step(3)
    with tracker.phase("late"):
        pass
    assert 5 == tracker.phase("decorated")(lambda: 5)()
    with stormphase.phase("ambient"):
        pass
    tracker.stats()
    tracker.environment({})
    tracker.flush(0)


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize("action", ["enter_phase", "enter", "exit", "acquire", "retry"])
def test_a_tracker_that_does_not_run_refuses(make_tracker, is_stopped, action):
    """The error says whether it has not started or has stopped, and what to do."""
    tracker = make_tracker()
    argument: Any = "train"
    if is_stopped:
        with tracker:
            phase = tracker.enter_phase("done")
            argument = {"exit": tracker.enter("token"), "acquire": "token", "retry": phase}.get(action, "train")
    expected = "stopped|already ended" if is_stopped else "not started"
    with pytest.raises(PhaseProtocolError, match=expected) as raised:
        getattr(tracker, action)(argument)
    assert raised.value.reason in (Misuse.STOPPED, Misuse.NOT_STARTED, Misuse.ALREADY_ENDED)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_recording_tracker_that_does_not_run_counts(make_tracker, is_stopped):
    """In production nothing is raised into training: phases are no-ops, and the misuse is counted."""
    tracker = make_tracker(on_misuse="record")
    if is_stopped:
        tracker.start().stop()
    call_everything(tracker)
    reason = Misuse.STOPPED if is_stopped else Misuse.NOT_STARTED
    assert 4 <= tracker.stats()["misuse"][reason]


def test_a_recording_tracker_never_raises_into_training(make_tracker):
    """Every misuse is recovered from and counted."""
    other = make_tracker().start()
    foreign = other.enter("foreign")
    with make_tracker(on_misuse="record") as tracker:
        tracker.exit(foreign)
        tracker.exit("no token")
        tracker.acquire(foreign).close()
        outer = tracker.enter("outer")
        tracker.enter("inner")
        tracker.exit(outer)
        tracker.exit(outer)
        tracker.enter_phase(" ").close()
        tracker.enter_phase(5).close()
        tracker.set_step("three")
        phase = tracker.enter_phase("paused")
        phase.resume()
        phase.pause()
        phase.pause()
        phase.close()
        phase.close()
        counted = tracker.stats()["misuse"]
    other.exit(foreign)
    assert {
        Misuse.FOREIGN_TRACKER: 2,
        Misuse.FORGED_TOKEN: 1,
        Misuse.STILL_OPEN_INSIDE: 1,
        Misuse.ALREADY_ENDED: 2,
        Misuse.BAD_NAME: 2,
        Misuse.NOT_PAUSED: 1,
        Misuse.NOT_ACTIVE: 1,
        "bad_step": 1,
    } == counted


def test_tokens_of_another_tracker_are_refused(make_tracker):
    """Each names its own tracker, also where name and rank are the same."""
    with make_tracker(session_id="tokens-one") as one, make_tracker(session_id="tokens-two") as two:
        token = one.enter("train")
        with pytest.raises(PhaseProtocolError, match="it belongs to another tracker") as raised:
            two.exit(token)
        one.exit(token)
    assert Misuse.FOREIGN_TRACKER == raised.value.reason


@pytest.mark.parametrize(("name", "error"), [("", PhaseNameError), (None, PhaseNameError)])
def test_a_bad_name_is_refused(make_tracker, name, error):
    """The error says how a phase is named."""
    with make_tracker() as tracker, pytest.raises(error, match="Write enter_phase"):
        tracker.enter_phase(name)


def test_a_subclass_may_override_and_phases_know_their_place(make_tracker):
    """Its method is called, and what it hands on is entered at its own line."""

    class Mine(PhaseTracker):
        def enter_phase(self, name: str, attributes: Any = None, sync: bool = False) -> Any:
            return super().enter_phase(f"my {name}", attributes, sync)

        def enter(self, name: str, attributes: Any = None, sync: bool = False) -> Any:
            return super().enter(f"my {name}", attributes, sync)

    with Mine(bridge=None) as tracker:
        with tracker.enter_phase("step") as phase:
            assert ("my step", "test_tracker.py") == (phase.name, phase.location.partition(":")[0])
        tracker.exit(tracker.enter("load"))


def test_phases_know_where_they_were_entered(make_tracker):
    """Errors name the user's own file and line."""
    with make_tracker() as tracker, tracker.enter_phase("step") as phase:
        assert "test_tracker.py" == phase.location.partition(":")[0]


class WholeNumber:
    """An integer of another kind, as NumPy has them."""

    def __index__(self) -> int:
        """Return the number."""
        return 4


def test_steps_are_integers(make_tracker):
    """Integers of any kind become Python's own, so that no array is kept alive; anything else is refused."""
    with make_tracker() as tracker:
        tracker.set_step(WholeNumber())
        with tracker.enter_phase("step") as phase:
            assert (4, int) == (phase._step, type(phase._step))
        with pytest.raises(TypeError, match=r"Write tracker.set_step\(int\(step\)\)"):
            tracker.set_step(1.5)
        tracker.set_step(None)
        with tracker.enter_phase("step") as phase:
            assert None is phase._step


def test_a_step_set_before_start_counts_from_the_start_on(make_tracker):
    """A loop that resumes at step 1000 may say so first."""
    tracker = make_tracker()
    tracker.set_step(1000)
    with tracker, tracker.enter_phase("step") as phase:
        assert 1000 == phase._step


def test_identity_before_start_says_to_start(make_tracker):
    """Only a running session has one."""
    with pytest.raises(PhaseProtocolError, match="the tracker has not started"):
        assert make_tracker().session_id


def test_the_level_is_what_filters_compare_with(make_tracker):
    """A phase of a lower level is kept from the sinks if it succeeds."""
    seen: list[PhaseBoundary] = []
    with make_tracker(level="info", sinks=[seen.append]) as tracker:
        with tracker.phase("chatty", level="debug"):
            pass
        with tracker.phase("loud", level="warning"):
            pass
    assert 20 == tracker.level
    assert ["loud"] == [name for action, name, _ in told(seen) if action == "exit"]


def test_the_ambient_tracker_is_the_last_started_that_runs(make_tracker):
    """Libraries find it while it runs, and the one around it afterwards."""
    outer_seen: list[PhaseBoundary] = []
    inner_seen: list[PhaseBoundary] = []
    with make_tracker(sinks=[outer_seen.append]):
        with make_tracker(sinks=[inner_seen.append]), stormphase.phase("inner"):
            pass
        with stormphase.phase("outer"):
            pass
    with stormphase.phase("nowhere"):
        pass
    assert (["inner"] * 2, ["outer"] * 2) == ([n for _, n, _ in told(inner_seen)], [n for _, n, _ in told(outer_seen)])


# Two trackers in one process


def test_nested_trackers_have_sessions_of_their_own(make_tracker, monkeypatch):
    """The second one of a session that was found, and not given, gets a number, the same on every rank."""
    monkeypatch.setenv("STORMPHASE_SESSION_ID", "nested")
    with make_tracker() as outer, make_tracker() as inner:
        with outer.enter_phase("outer"), inner.enter_phase("inner") as phase:
            assert ("inner",) == phase.path
        assert ("nested", "nested.2") == (outer.session_id, inner.session_id)


def test_trackers_may_follow_each_other(make_tracker, monkeypatch):
    """A notebook that runs a cell again gets a session of its own each time."""
    monkeypatch.setenv("STORMPHASE_SESSION_ID", "sequential")
    found = []
    for _ in range(3):
        with make_tracker() as tracker, tracker.enter_phase("step"):
            found.append(tracker.session_id)
    assert ["sequential", "sequential.2", "sequential.3"] == found


def test_the_same_explicit_session_twice_at_a_time_is_refused(make_tracker):
    """Two trackers with one session and rank would write one trace: the caller chose so, and is told."""
    with (
        make_tracker(session_id="twice"),
        pytest.raises(ConfigurationError, match="Give each PhaseTracker of a process its own session_id"),
    ):
        make_tracker(session_id="twice").start()


def test_two_ranks_of_a_session_may_share_a_process(make_tracker):
    """Tests and thread-per-rank runtimes do that."""
    with (
        make_tracker(session_id="ranks", rank=0, world_size=2) as zero,
        make_tracker(session_id="ranks", rank=1, world_size=2) as one,
        zero.enter_phase("step"),
        one.enter_phase("step") as phase,
    ):
        assert ("step",) == phase.path


# Disabled


def test_disabled_everything_is_one_shared_no_op(make_tracker, monkeypatch):
    """No thread, no handler, no bridge, no summary; every call works and does nothing."""
    monkeypatch.setenv("STORMPHASE_DISABLED", "1")
    bridge = FakeBridge()
    seen: list[PhaseBoundary] = []
    before = threading.active_count()
    tracker = make_tracker(bridge=bridge, sinks=[seen.append], summary=True, stop_on_sigterm=True)
    with tracker:
        call_everything(tracker)
        assert (NOOP, NOOP, NOOP_TOKEN) == (tracker.enter_phase("a"), tracker.enter_phase(""), tracker.enter("b"))
        assert ("disabled", 0, 1) == (tracker.session_id, tracker.identity.rank, tracker.identity.world_size)
        assert (False, None, before) == (tracker.is_running, tracker.lane_set, threading.active_count())
    call_everything(tracker)
    tracker.stop()
    assert ([], [], None) == (bridge.calls, seen, bridge.session)
    nothing = {"truncated": 0, "dropped": 0, "failed": 0}
    assert {"sinks": {}, "bridge": {}, "journal": {}, "misuse": {}, "attributes": nothing} == tracker.stats()
    with pytest.raises(ConfigurationError, match="can be started once"):
        tracker.start()


def test_what_reads_the_counts_finds_their_places_when_disabled_and_before_the_start(make_tracker, monkeypatch):
    """A program that looks at one of them does not fail where there is nothing to count."""
    with make_tracker(bridge=None) as running:
        places = running.stats()
    for value in ("1", "0"):
        monkeypatch.setenv("STORMPHASE_DISABLED", value)
        tracker = make_tracker(bridge=None)
        before = tracker.stats()
        with tracker:
            assert places.keys() == before.keys() == tracker.stats().keys()
        assert places["attributes"].keys() == before["attributes"].keys()


def test_disabled_in_a_subclass(make_tracker, monkeypatch):
    """A subclass keeps its method, and what that calls is a no-op."""
    monkeypatch.setenv("STORMPHASE_DISABLED", "true")

    class Mine(PhaseTracker):
        def enter_phase(self, name: str, attributes: Any = None, sync: bool = False) -> Any:
            return super().enter_phase(name, attributes, sync)

    with Mine(bridge=None) as tracker:
        assert NOOP is tracker.enter_phase("step")


# Summary


@pytest.mark.parametrize(
    ("summary", "variable", "rank", "is_printed"),
    [
        (None, "", 0, False),
        (None, "1", 0, True),
        (None, "1", 1, False),
        (None, "all", 1, True),
        (None, "0", 0, False),
        (True, "0", 0, True),
        (True, "", 1, False),
        ("all", "", 1, True),
        (False, "1", 0, False),
    ],
)
def test_the_summary_is_printed_where_it_was_asked_for(  # noqa: PLR0917 - a table's columns and three fixtures
    make_tracker, monkeypatch, capsys, summary, variable, rank, is_printed
):
    """By the argument, else by the environment; on rank 0, or on all."""
    monkeypatch.setenv("STORMPHASE_SUMMARY", variable)
    session_id = f"summary-{summary}-{variable}-{rank}"
    tracker = make_tracker("job", session_id=session_id, rank=rank, world_size=2, summary=summary)
    with tracker, tracker.enter_phase("train"):
        pass
    output = capsys.readouterr().out
    assert is_printed == ("train" in output)
    assert is_printed == (f"stormphase: job, rank {rank} of 2" in output)


def test_the_summary_counts_what_its_queue_dropped(make_tracker, capsys):
    """A phase that is in no row has a row of its own, and says how many."""
    with make_tracker(summary=True, queue_bound=1) as tracker:
        worker = tracker._session.sinks._summary
        gate = threading.Event()
        worker._take, take = lambda phase: (gate.wait(30), take(phase)), worker._take
        for _ in range(10):
            with tracker.enter_phase("step"):
                pass
        gate.set()
    dropped = tracker.stats()["sinks"]["summary"]["dropped"]
    output = capsys.readouterr().out
    assert 8 <= dropped
    assert f"{dropped} ended phases were dropped from a full queue: raise queue_bound" in output
    assert "(not in a row)" in output
