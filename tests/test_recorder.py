"""The recorder as the field knows it: enter and exit with boundaries returned at once, by token or by id."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

import pytest

from stormphase import PHASE_ENTER, PHASE_EXIT, ConfigurationError, Misuse, PhaseProtocolError, PhaseRecorder
from stormphase._lanes import LaneSet
from stormphase._model import PHASE_MISUSE, PhaseStatus
from stormphase.testing import START_MONOTONIC_NS, START_WALL_NS

HERE = Path(__file__).name
S0 = {"session_id": "s", "rank": 0}


def scope_of(boundary):
    """Return what a boundary says of its phase."""
    return boundary.metadata["phase_scope"]


# --- boundaries -------------------------------------------------------------------------------------------------------


def test_an_enter_and_an_exit_say_all_that_the_contract_names(recorder, clock):
    """Both boundaries, word for word, with the exit's times to the nanosecond."""
    thread = threading.current_thread()
    outer, _ = recorder.enter(session_id="s", rank=0, name="train", attrs={"epoch": 1})
    clock.advance(10)
    token, entered = recorder.enter(session_id="s", rank=0, name="step")
    clock.advance(32)
    exited = recorder.exit(token)
    recorder.exit(outer)
    common = {
        "name": "step",
        "path": ["train", "step"],
        "depth": 2,
        "scope_id": token.scope_id,
        "parent_scope_id": outer.scope_id,
        "thread_id": thread.ident,
        "thread_name": thread.name,
        "sequence": 2,
        "step": None,
        "session_id": "s",
        "session_attempt": 0,
        "rank": 0,
        "attempt": 0,
    }
    assert {
        "phase_scope": {
            **common,
            "action": "enter",
            "timestamp_ns": START_WALL_NS + 10,
            "monotonic_ns": START_MONOTONIC_NS + 10,
            "status": "active",
        }
    } == entered.metadata
    assert {
        "phase_scope": {
            **common,
            "action": "exit",
            "timestamp_ns": START_WALL_NS + 42,
            "monotonic_ns": START_MONOTONIC_NS + 42,
            "status": "succeeded",
            "duration_ns": 32,
            "self_ns": 32,
            "paused_ns": 0,
        }
    } == exited.metadata
    assert (PHASE_ENTER, "Phase entered: train / step") == (entered.event_type, entered.context)
    assert (PHASE_EXIT, "Phase exited: train / step") == (exited.event_type, exited.context)
    assert {(token.scope_id, ("train", "step"))} == {(b.scope_id, b.path) for b in (entered, exited)}
    assert ("phase_enter", "phase_exit") == (PHASE_ENTER, PHASE_EXIT)


def test_a_token_says_what_it_stands_for(recorder):
    """Scope id, session, rank, thread and name, as the field has them."""
    token, boundary = recorder.enter(session_id="job", rank=3, name=" load ")
    assert (boundary.scope_id, "job", 3, threading.get_ident(), "load") == (
        token.scope_id,
        token.session_id,
        token.rank,
        token.thread_id,
        token.name,
    )
    assert re.fullmatch(r"[0-9a-f]{16}", token.scope_id)
    assert f"<PhaseToken 'load' {token.scope_id} session='job' rank=3>" == repr(token)
    recorder.exit(token)


def test_attributes_stand_in_both_boundaries(recorder):
    """Given at enter, copied then, and said at exit again."""
    given = {"epoch": 1, "tags": ["a"]}
    token, entered = recorder.enter(session_id="s", rank=0, name="train", attrs=given)
    given["epoch"] = 2
    given["tags"].append("b")
    exited = recorder.exit(token)
    assert [{"epoch": 1, "tags": ["a"]}] * 2 == [scope_of(b)["attributes"] for b in (entered, exited)]


def test_attributes_that_are_no_mapping_are_refused(recorder):
    """Nothing has been entered then."""
    with pytest.raises(TypeError):
        recorder.enter(session_id="s", rank=0, name="train", attrs=["epoch", 1])
    assert [] == list(recorder.lane_set("s", 0).open_phases())


def test_attributes_set_later_are_said_at_exit_only(recorder):
    """The enter boundary is what was known at enter; of two values of one key, the later one wins."""
    handle = recorder.lane_set("s", 0).enter_phase("train", {"a": 1, "b": 1})
    handle.set_attribute("b", 2)
    handle.set_attributes({"c": 3})
    boundary = recorder.exit_phase(**S0, scope_id=handle.scope_id, thread_id=threading.get_ident())
    assert {"a": 1, "b": 2, "c": 3} == scope_of(boundary)["attributes"]
    assert {"a": 1, "b": 1} == handle._attributes


def test_an_error_stands_in_the_exit(recorder):
    """Type, message, traceback and root cause, and the status says so."""
    token, _ = recorder.enter(session_id="s", rank=0, name="train")
    boundary = recorder.exit(token, error=ValueError("bad batch"))
    scope = scope_of(boundary)
    assert ("failed", "ValueError", "bad batch", token.scope_id) == (
        scope["status"],
        scope["error"]["type"],
        scope["error"]["message"],
        scope["error"]["root_cause_scope_id"],
    )
    assert "ValueError: bad batch" in scope["error"]["traceback"]


def test_boundaries_by_id_carry_the_callers_metadata(recorder):
    """`metadata` is returned in the enter boundary, beside `phase_scope`, and kept on the phase."""
    entered = recorder.enter_phase(session_id="s", rank=0, name="train", metadata={"epoch": 1})
    exited = recorder.exit_phase(**S0, scope_id=entered.scope_id, thread_id=threading.get_ident())
    assert [{"epoch": 1}] * 2 == [scope_of(boundary)["attributes"] for boundary in (entered, exited)]
    assert PhaseStatus.SUCCEEDED.value == scope_of(exited)["status"]


def test_the_step_is_stamped_at_enter(recorder):
    """A phase keeps the step it was entered in."""
    lanes = recorder.lane_set("s", 0)
    lanes.step = 7
    token, entered = recorder.enter(session_id="s", rank=0, name="step")
    lanes.step = 8
    assert [7, 7] == [scope_of(boundary)["step"] for boundary in (entered, recorder.exit(token))]


def test_phases_know_where_they_were_entered(recorder):
    """The line of the caller of `enter` and of `enter_phase`, not one of ours."""
    lanes = recorder.lane_set("s", 0)
    line = test_phases_know_where_they_were_entered.__code__.co_firstlineno
    token, _ = recorder.enter(session_id="s", rank=0, name="one")
    boundary = recorder.enter_phase(session_id="s", rank=0, name="two")
    by_token = lanes.enter("three")
    with lanes.enter_phase("four"):
        assert [f"{HERE}:{line + offset}" for offset in (4, 5, 6, 7)] == [p.location for p in lanes.open_phases()]
    lanes.exit(by_token)
    recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=threading.get_ident())
    recorder.exit(token)


# --- sessions and ranks -----------------------------------------------------------------------------------------------


def test_sessions_and_ranks_nest_each_for_themselves(recorder):
    """Phases of another session or rank are neither parents nor in the way."""
    keys = [("s", 0), ("s", 1), ("t", 0)]
    tokens = [recorder.enter(session_id=session_id, rank=rank, name="train") for session_id, rank in keys]
    assert [None] * 3 == [scope_of(boundary)["parent_scope_id"] for _, boundary in tokens]
    assert 3 == len({token.scope_id for token, _ in tokens})
    for token, _ in tokens:
        assert "succeeded" == scope_of(recorder.exit(token))["status"]


def test_lanes_of_a_session_are_made_once(recorder):
    """Also when many threads ask for them at once; attempt counts only the first time."""
    barrier = threading.Barrier(8)
    found = []

    def ask() -> None:
        barrier.wait()
        found.append(recorder.lane_set("s", 0, attempt=2))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 == len(set(map(id, found)))
    assert 2 == recorder.lane_set("s", 0, attempt=3).attempt


def test_only_the_first_sight_of_a_session_takes_a_lock(recorder):
    """From then on no thread waits for another one to enter a phase, to exit it or to reset."""

    class Held:
        def __enter__(self):
            raise AssertionError("it would have waited here")

        def __exit__(self, *exc):
            """Never come to."""

    recorder.exit(recorder.enter(session_id="s", rank=0, name="train")[0])
    recorder._lock = Held()
    recorder.exit(recorder.enter(session_id="s", rank=0, name="train")[0])
    boundary = recorder.enter_phase(session_id="s", rank=0, name="train")
    recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=threading.get_ident())
    recorder.reset()
    with pytest.raises(AssertionError, match="waited here"):
        recorder.enter(session_id="t", rank=0, name="train")


def test_an_unknown_way_with_misuse_is_refused_with_the_fix():
    """At construction, naming the setting."""
    with pytest.raises(ConfigurationError, match="on_misuse must be one of") as raised:
        PhaseRecorder(on_misuse="ignore")
    assert (
        "on_misuse",
        'Write on_misuse="raise" in development and on_misuse="record" in production.',
        f"on_misuse must be one of raise, record, not 'ignore'. {raised.value.fix}",
    ) == (raised.value.setting, raised.value.fix, str(raised.value))


def test_a_recorder_reads_the_machines_clocks_unless_told_otherwise(recorder, clock):
    """The anchor relates the clock's two times."""
    assert START_WALL_NS + 5 == recorder.anchor.to_wall_ns(clock.monotonic_ns() + 5)
    assert 0 < PhaseRecorder().anchor.wall_ns


# --- exit by id -------------------------------------------------------------------------------------------------------


def test_a_phase_beneath_is_found_by_its_id_and_refused(recorder):
    """Strict LIFO also by id, with the phases in the way named; a correct close works afterwards."""
    outer = recorder.enter_phase(session_id="s", rank=0, name="outer")
    inner = recorder.enter_phase(session_id="s", rank=0, name="inner")
    me = threading.get_ident()
    with pytest.raises(PhaseProtocolError, match=r"'inner' \(test_recorder.py:\d+\) is still open inside it") as raised:
        recorder.exit_phase(**S0, scope_id=outer.scope_id, thread_id=me)
    assert Misuse.STILL_OPEN_INSIDE == raised.value.reason
    for boundary in (inner, outer):
        assert boundary.scope_id == recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=me).scope_id


@pytest.mark.parametrize("key", [("s", 0), ("s", 1), ("t", 0)])
def test_an_id_that_is_not_open_is_refused(recorder, key):
    """On a lane without it, of a session that has none, and of one that there is not."""
    recorder.lane_set("s", 0)
    with pytest.raises(PhaseProtocolError, match=r"'0123456789abcdef': no such phase.*Give the scope_id") as raised:
        recorder.exit_phase(
            session_id=key[0], rank=key[1], scope_id="0123456789abcdef", thread_id=threading.get_ident()
        )
    assert (Misuse.UNKNOWN_SCOPE, "exit") == (raised.value.reason, raised.value.action)


def test_another_thread_cannot_exit_by_id(recorder, step_thread):
    """Neither honestly nor with the owner's thread id; the phase stays open."""
    boundary = recorder.enter_phase(session_id="s", rank=0, name="train")
    me = threading.get_ident()
    other = step_thread("thief")
    for thread_id in (me, other.thread.ident):
        with pytest.raises(
            PhaseProtocolError, match=r"'train'.*from thread 'thief'.*belongs to thread 'MainThread'"
        ) as e:
            other.do(lambda tid=thread_id: recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=tid))
        assert Misuse.FOREIGN_THREAD == e.value.reason
    recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=me)


def test_who_exits_another_threads_phase_by_its_id_is_told_what_was_tried(recorder, step_thread):
    """The error's action, and the words."""
    boundary = recorder.enter_phase(session_id="s", rank=0, name="train")
    thief = step_thread("thief")
    token = thief.do(recorder.lane_set("s", 0).enter, "other")
    with pytest.raises(PhaseProtocolError, match=r"^Cannot exit phase 'train' .* from thread 'thief'") as raised:
        thief.do(lambda: recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=1))
    assert "exit" == raised.value.action
    thief.do(recorder.exit, token)
    recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=threading.get_ident())


def test_another_task_cannot_exit_by_id(recorder):
    """On the same thread, too, a phase is its task's own, and the refusal says that it is the task that is wrong."""

    async def work(entered, may_end):
        boundary = recorder.enter_phase(session_id="s", rank=0, name="train")
        entered.set_result(boundary.scope_id)
        await may_end
        recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=threading.get_ident())

    async def main():
        entered, may_end = asyncio.get_running_loop().create_future(), asyncio.get_running_loop().create_future()
        worker = asyncio.ensure_future(work(entered, may_end))
        scope_id = await entered
        recorder.enter_phase(session_id="s", rank=0, name="other")
        with pytest.raises(PhaseProtocolError, match=r"'train'.*belongs to") as raised:
            recorder.exit_phase(**S0, scope_id=scope_id, thread_id=threading.get_ident())
        may_end.set_result(None)
        await worker
        return raised.value.reason

    assert Misuse.FOREIGN_TASK == asyncio.run(main())
    recorder.reset()


def test_an_id_from_the_right_lane_with_the_wrong_thread_is_refused(recorder):
    """The caller's thread id is checked, not believed."""
    boundary = recorder.enter_phase(session_id="s", rank=0, name="train")
    with pytest.raises(PhaseProtocolError, match="from thread 1: it belongs to") as raised:
        recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=1)
    assert Misuse.FOREIGN_THREAD == raised.value.reason
    recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=threading.get_ident())


@pytest.mark.parametrize(
    ("refused", "problem"),
    [
        (lambda r, s: r.exit("junk"), "Cannot exit with 'junk': it was not made by enter or release"),
        (
            lambda r, s: r.exit(PhaseRecorder().enter(session_id="s", rank=0, name="x")[0]),
            "Cannot exit with <PhaseToken 'x'",
        ),
        (lambda r, s: r.exit_phase(**S0, scope_id=s, thread_id=1), "Cannot exit phase 'train' ("),
        (
            lambda r, s: r.exit_phase(session_id="t", rank=1, scope_id=s, thread_id=1),
            "Cannot exit scope '0123456789abcdef': no such phase is open on any lane of session 't', rank 1. ",
        ),
    ],
    ids=["junk", "another recorder's", "another thread's", "unknown"],
)
def test_what_was_refused_is_said_to_be_an_exit(recorder, refused, problem):
    """In words, and in the error's action."""
    token, _ = recorder.enter(session_id="s", rank=0, name="train")
    scope_id = "0123456789abcdef" if "scope" in problem else token.scope_id
    with pytest.raises(PhaseProtocolError, match="Cannot exit ") as raised:
        refused(recorder, scope_id)
    assert ("exit", True) == (raised.value.action, str(raised.value).startswith(problem))
    recorder.exit(token)


def test_a_phase_that_a_signal_handler_ends_meanwhile_is_refused_by_its_id(recorder, monkeypatch):
    """Between the look at the lane and the exit; that it has ended already is never taken for an exit."""
    boundary = recorder.enter_phase(session_id="s", rank=0, name="train")
    leave = LaneSet.leave

    def reset_first(lanes, *arguments, **options):
        recorder.reset()
        leave(lanes, *arguments, **options)

    monkeypatch.setattr(LaneSet, "leave", reset_first)
    with pytest.raises(PhaseProtocolError, match="already ended as abandoned") as raised:
        recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=threading.get_ident())
    assert Misuse.ALREADY_ENDED == raised.value.reason


# --- where misuse is only recorded ------------------------------------------------------------------------------------


@pytest.fixture
def lenient_recorder(clock):
    """Return a recorder that never raises."""
    return PhaseRecorder(clock=clock, on_misuse="record")


def test_a_lenient_recorder_says_that_nothing_ended(lenient_recorder):
    """A refused exit is counted and returns a boundary that claims no exit."""
    token, _ = lenient_recorder.enter(session_id="s", rank=0, name="train")
    lenient_recorder.exit(token)
    again = lenient_recorder.exit(token)
    assert (PHASE_MISUSE, token.scope_id, ("train",)) == (again.event_type, again.scope_id, again.path)
    assert f"Cannot exit phase {token._handle.label}: see the misuse counts." == again.context
    assert {Misuse.ALREADY_ENDED: 1} == lenient_recorder.lane_set("s", 0).counts.to_dict()


def test_a_lenient_recorder_survives_whatever_is_no_token(lenient_recorder):
    """Counted with the recorder, since no session is at fault."""
    other = PhaseRecorder()
    foreign, _ = other.enter(session_id="s", rank=0, name="train")
    for token in (None, "token", foreign):
        boundary = lenient_recorder.exit(token)
        assert (PHASE_MISUSE, "") == (boundary.event_type, boundary.scope_id)
    assert {Misuse.FORGED_TOKEN: 2, Misuse.FOREIGN_TRACKER: 1} == lenient_recorder.counts.to_dict()
    other.exit(foreign)


def test_a_token_of_another_recorder_is_counted_with_the_session_that_it_names(lenient_recorder, clock):
    """Both recorders have that session and rank; the phase stays open, and nothing of it is told."""
    other = PhaseRecorder(clock=clock)
    foreign, _ = other.enter(session_id="s", rank=0, name="train")
    own, _ = lenient_recorder.enter(session_id="s", rank=0, name="train")
    boundary = lenient_recorder.exit(foreign)
    assert (PHASE_MISUSE, "", ()) == (boundary.event_type, boundary.scope_id, boundary.path)
    assert {Misuse.FOREIGN_TRACKER: 1} == lenient_recorder.lane_set("s", 0).counts.to_dict()
    assert {} == lenient_recorder.counts.to_dict()
    assert [PHASE_EXIT] * 2 == [other.exit(foreign).event_type, lenient_recorder.exit(own).event_type]


def test_a_sinks_thread_has_no_lane_to_exit_by_id_on(recorder, step_thread):
    """Nothing is entered there, so there is nothing to exit, and the phase stays open."""
    boundary = recorder.enter_phase(session_id="s", rank=0, name="train")
    worker = step_thread("sink")
    worker.do(recorder.lane_set("s", 0).mute_this_thread)
    with pytest.raises(PhaseProtocolError, match="any lane of session 's', rank 0") as raised:
        worker.do(lambda: recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=1))
    assert Misuse.UNKNOWN_SCOPE == raised.value.reason
    recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=threading.get_ident())


def test_a_lenient_recorder_survives_ids_of_nobody(lenient_recorder, step_thread):
    """Unknown, of another thread, with the wrong thread: counted, and the phase stays open until its owner ends it."""
    unknown = lenient_recorder.exit_phase(session_id="s", rank=0, scope_id="x", thread_id=1)
    boundary = lenient_recorder.enter_phase(session_id="s", rank=0, name="train")
    found = [
        unknown,
        lenient_recorder.exit_phase(**S0, scope_id="x", thread_id=1),
        lenient_recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=1),
        step_thread().do(lambda: lenient_recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=1)),
    ]
    assert [PHASE_MISUSE] * 4 == [each.event_type for each in found]
    assert {Misuse.UNKNOWN_SCOPE: 1, Misuse.FOREIGN_THREAD: 2} == lenient_recorder.lane_set("s", 0).counts.to_dict()
    assert {Misuse.UNKNOWN_SCOPE: 1} == lenient_recorder.counts.to_dict()
    exited = lenient_recorder.exit_phase(**S0, scope_id=boundary.scope_id, thread_id=threading.get_ident())
    assert PHASE_EXIT == exited.event_type


def test_a_lenient_recorder_closes_over_what_is_still_open(lenient_recorder):
    """The inner phase becomes ABANDONED, the outer one ends as asked."""
    outer, _ = lenient_recorder.enter(session_id="s", rank=0, name="outer")
    inner, _ = lenient_recorder.enter(session_id="s", rank=0, name="inner")
    assert PHASE_EXIT == lenient_recorder.exit(outer).event_type
    assert PhaseStatus.ABANDONED == inner._handle.status
    assert PHASE_MISUSE == lenient_recorder.exit(inner).event_type


def test_a_thief_of_a_token_gets_a_boundary_of_no_exit(lenient_recorder, step_thread):
    """Another thread's exit is counted, and the token still works for its owner."""
    token, _ = lenient_recorder.enter(session_id="s", rank=0, name="train")
    assert PHASE_MISUSE == step_thread().do(lenient_recorder.exit, token).event_type
    assert PHASE_EXIT == lenient_recorder.exit(token).event_type


# --- reset ------------------------------------------------------------------------------------------------------------


def test_reset_ends_all_that_is_open_and_fences_its_tokens_off(recorder, clock):
    """Of every session: ABANDONED, with the reason; a new phase of the same name is not closed by a stale token."""
    tokens = [recorder.enter(session_id=session_id, rank=0, name="train")[0] for session_id in ("s", "t")]
    clock.advance(5)
    recorder.reset()
    assert {PhaseStatus.ABANDONED} == {token._handle.status for token in tokens}
    assert {"the recorder was reset"} == {token._handle._extra.status_text for token in tokens}
    fresh, _ = recorder.enter(session_id="s", rank=0, name="train")
    with pytest.raises(PhaseProtocolError, match="already ended as abandoned") as raised:
        recorder.exit(tokens[0])
    assert Misuse.ALREADY_ENDED == raised.value.reason
    assert PhaseStatus.ACTIVE == fresh._handle.status
    recorder.exit(fresh)
    with pytest.raises(PhaseProtocolError):
        recorder.exit(tokens[1])


def test_a_reset_recorder_starts_at_the_root(recorder):
    """What was open before a reset is nobody's parent, also where its context was left behind."""
    stale, _ = recorder.enter(session_id="s", rank=0, name="train")
    recorder.reset()
    token, boundary = recorder.enter(session_id="s", rank=0, name="evaluate")
    assert (None, ("evaluate",)) == (scope_of(boundary)["parent_scope_id"], boundary.path)
    recorder.exit(token)
    handle = recorder.lane_set("s", 0).enter_phase("sync", None, True)
    assert (None, ("sync",)) == (handle.parent, handle.path)
    handle.close()
    with pytest.raises(PhaseProtocolError):
        recorder.exit(stale)


def test_reset_within_a_with_block_lets_the_block_end(recorder, ended):
    """The block's own exit has nothing left to end, raises nothing, and leaves the context right."""
    lanes = recorder.lane_set("s", 0)
    with lanes.enter_phase("train"), lanes.enter_phase("step"):
        recorder.reset()
    assert [("step", "abandoned"), ("train", "abandoned")] == [(p.name, p.status.value) for p in ended]
    assert None is lanes.carrier.current_phase()


def test_reset_reaches_paused_and_released_phases(recorder, ended):
    """They are on no lane, and end all the same, their paused time counted."""
    lanes = recorder.lane_set("s", 0)
    lanes.clock.advance(1)
    released = lanes.enter_phase("released")
    token = released.release()
    paused = lanes.enter_phase("paused")
    paused.pause()
    lanes.clock.advance(7)
    recorder.reset()
    assert {("released", "abandoned", 7), ("paused", "abandoned", 7)} == {
        (phase.name, phase.status.value, phase._extra.paused_ns) for phase in ended
    }
    with pytest.raises(PhaseProtocolError, match="already ended as abandoned"):
        lanes.acquire(token)


def test_a_reset_recorder_counts_what_it_ended(recorder, ended):
    """Offered and handed over stay equal."""
    lanes = recorder.lane_set("s", 0)
    for name in "abc":
        lanes.enter(name)
    recorder.reset()
    assert (0, 3) == lanes.boundary_counts()
    assert ["c", "b", "a"] == [phase.name for phase in ended]
    # A phase that had been current is forgotten with the next one that is entered and left here.
    with lanes.enter_phase("next"):
        pass
    assert None is lanes.carrier.current_phase()
