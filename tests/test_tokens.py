"""Tokens: proof of an open phase, its own object, fenced off by whatever moves or ends the phase."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest

from stormphase import Misuse, PhaseProtocolError, PhaseRecorder, PhaseToken
from stormphase._model import PhaseStatus


def refused(call, *arguments):
    """Return the reason for which a call is refused, after checking that the message names a fix."""
    with pytest.raises(PhaseProtocolError) as raised:
        call(*arguments)
    assert str(raised.value).endswith(raised.value.fix)
    return raised.value.reason


def test_a_token_ends_its_phase_once(lanes, ended):
    """The second exit says that the phase has ended, and how."""
    token = lanes.enter("train")
    lanes.exit(token)
    with pytest.raises(
        PhaseProtocolError, match=r"Cannot exit phase 'train' \(test_tokens.py:\d+\): it has already ended as succeeded"
    ) as raised:
        lanes.exit(token)
    assert (Misuse.ALREADY_ENDED, "exit", 1) == (raised.value.reason, raised.value.action, len(ended))


@pytest.mark.parametrize(
    "twin_of",
    [
        copy.copy,
        copy.deepcopy,
        lambda token: pickle.loads(pickle.dumps(token)),  # noqa: S301 - our own bytes
        lambda token: PhaseToken(
            scope_id=token.scope_id,
            session_id=token.session_id,
            rank=token.rank,
            thread_id=token.thread_id,
            name=token.name,
        ),
    ],
    ids=["copy", "deepcopy", "pickle", "forgery"],
)
@pytest.mark.parametrize("action", ["exit", "acquire"])
def test_a_twin_proves_nothing(lanes, twin_of, action):
    """A copy, an unpickled twin and one built by hand look the same and are refused; the token still works."""
    token = lanes.enter("train")
    twin = twin_of(token)
    assert repr(token) == repr(twin)
    assert Misuse.FORGED_TOKEN == refused(getattr(lanes, action), twin)
    assert PhaseStatus.ACTIVE == token._handle.status
    lanes.exit(token)


@pytest.mark.parametrize("junk", [None, 7, "0123456789abcdef", object()], ids=["None", "int", "str", "object"])
def test_what_is_no_token_is_refused(lanes, junk):
    """Whatever is given, a message and no AttributeError."""
    assert Misuse.FORGED_TOKEN == refused(lanes.exit, junk)


def test_a_subclass_of_the_token_is_a_forgery(lanes):
    """Only the class itself proves anything."""

    class Sly(PhaseToken):
        __slots__ = ()

    token = lanes.enter("train")
    sly = Sly(scope_id=token.scope_id, session_id="s", rank=0, thread_id=1, name="train")
    object.__setattr__(sly, "_handle", token._handle)
    assert Misuse.FORGED_TOKEN == refused(lanes.exit, sly)
    lanes.exit(token)


def test_a_token_cannot_be_changed(lanes):
    """No field, no new one."""
    token = lanes.enter("train")
    for field in ("scope_id", "_handle", "anything"):
        with pytest.raises(AttributeError, match=f"cannot be changed: '{field}' stays"):
            setattr(token, field, None)
    lanes.exit(token)


@pytest.mark.parametrize("key", [("other", 0), ("s", 1)])
def test_a_token_of_another_session_or_rank_is_refused(recorder, lanes, key):
    """Sessions and ranks are fenced off from each other."""
    token = lanes.enter("train")
    assert Misuse.FOREIGN_TRACKER == refused(recorder.lane_set(*key).exit, token)
    lanes.exit(token)


def test_a_token_of_another_recorder_is_refused(recorder, lanes):
    """Also within the same session id and rank."""
    other = PhaseRecorder()
    token, _ = other.enter(session_id="s", rank=0, name="train")
    assert [Misuse.FOREIGN_TRACKER] * 2 == [refused(lanes.exit, token), refused(recorder.exit, token)]
    other.exit(token)


def test_a_token_of_a_reset_session_is_refused_and_closes_nothing_new(recorder, lanes):
    """A new phase of the same name, under the same session id, is not closed by a stale token."""
    stale = lanes.enter("train")
    recorder.reset()
    fresh = lanes.enter("train")
    assert Misuse.ALREADY_ENDED == refused(lanes.exit, stale)
    assert PhaseStatus.ACTIVE == fresh._handle.status
    lanes.exit(fresh)


def test_the_newest_token_of_a_phase_is_the_one(lanes):
    """A release fences the enter's token off; an acquire the release's."""
    entered = lanes.enter("train")
    released = entered._handle.release()
    assert entered.scope_id == released.scope_id
    assert Misuse.STALE_TOKEN == refused(lanes.exit, entered)
    assert Misuse.STALE_TOKEN == refused(lanes.acquire, entered)
    phase = lanes.acquire(released)
    assert [Misuse.STALE_TOKEN] * 3 == [
        refused(lanes.exit, entered),
        refused(lanes.exit, released),
        refused(lanes.acquire, released),
    ]
    phase.close()


def test_another_thread_cannot_exit_with_the_token(lanes, step_thread):
    """The token proves the phase, not the ownership."""
    token = lanes.enter("train")
    assert Misuse.FOREIGN_THREAD == refused(step_thread("other").do, lanes.exit, token)
    assert PhaseStatus.ACTIVE == token._handle.status
    lanes.exit(token)


def test_a_released_token_does_not_exit_but_acquire(lanes):
    """Whoever wants to end a released phase has to own it first."""
    token = lanes.enter_phase("train").release()
    with pytest.raises(PhaseProtocolError, match=r"it was released.*tracker.acquire") as raised:
        lanes.exit(token)
    assert Misuse.STALE_TOKEN == raised.value.reason
    lanes.acquire(token).close()


def test_a_token_of_a_phase_that_was_not_released_cannot_acquire(lanes):
    """An open phase is not up for grabs."""
    token = lanes.enter("train")
    assert Misuse.NOT_PAUSED == refused(lanes.acquire, token)
    lanes.exit(token)
    assert Misuse.ALREADY_ENDED == refused(lanes.acquire, token)


def test_of_two_threads_that_acquire_at_once_one_gets_the_phase(lanes, ended):
    """Many races: one handle each time, and the others are told that the token is stale."""
    threads_count, rounds = 4, 40
    barrier = threading.Barrier(threads_count)
    tokens = [lanes.enter_phase("train").release() for _ in range(rounds)]
    outcomes = []

    def race() -> None:
        for token in tokens:
            barrier.wait()
            try:
                lanes.acquire(token).close()
                outcomes.append("won")
            except PhaseProtocolError as error:
                outcomes.append(error.reason)

    threads = [threading.Thread(target=race) for _ in range(threads_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rounds == outcomes.count("won")
    assert {"won", Misuse.STALE_TOKEN} >= set(outcomes) - {Misuse.ALREADY_ENDED}
    assert [PhaseStatus.SUCCEEDED] * rounds == [phase.status for phase in ended]


def test_where_misuse_is_only_recorded_bad_tokens_are_counted(lenient):
    """Nothing is raised, nothing ends, and acquire gives a handle that does nothing."""
    token = lenient.enter("train")
    assert None is lenient.exit(copy.copy(token))
    assert "<no phase>" == repr(lenient.acquire(token))
    assert "<no phase>" == repr(lenient.acquire("junk"))
    released = token._handle.release()
    assert None is lenient.exit(token)
    lenient.acquire(released).close()
    lenient.acquire(released)
    assert {
        Misuse.FORGED_TOKEN: 2,
        Misuse.NOT_PAUSED: 1,
        Misuse.STALE_TOKEN: 2,
    } == lenient.counts.to_dict()


def test_where_misuse_is_only_recorded_a_token_of_a_reset_session_acquires_nothing(lenient):
    """The released phase ended with the reset; that is counted, and the handle does nothing."""
    released = lenient.enter_phase("train").release()
    lenient.close("the recorder was reset")
    assert "<no phase>" == repr(lenient.acquire(released))
    assert {Misuse.ALREADY_ENDED: 1} == lenient.counts.to_dict()


def test_a_token_of_nothing_ends_nothing(lenient, step_thread):
    """A release that was refused returns a token that looks like one."""
    phase = lenient.enter_phase("train")
    token = step_thread().do(phase.release)
    assert (phase.scope_id, "train") == (token.scope_id, token.name)
    assert None is lenient.exit(token)
    assert {Misuse.FOREIGN_THREAD: 1, Misuse.FORGED_TOKEN: 1} == lenient.counts.to_dict()
    phase.close()
