"""What a type checker must say of the recorder: read by mypy in .ci/run, never run."""

from __future__ import annotations

from typing import Any, assert_type

from stormphase import PhaseBoundary, PhaseRecorder, PhaseToken


def enter_and_exit(recorder: PhaseRecorder) -> None:
    """A token and a boundary come out of an enter, a boundary out of an exit."""
    token, boundary = recorder.enter(session_id="s", rank=0, name="train", attrs={"epoch": 1})
    assert_type(token, PhaseToken)
    assert_type(boundary, PhaseBoundary)
    assert_type(recorder.exit(token), PhaseBoundary)


def enter_and_exit_by_id(recorder: PhaseRecorder) -> None:
    """The calls that know no token take and give plain values."""
    boundary = recorder.enter_phase(session_id="s", rank=0, name="train", metadata=None)
    assert_type(boundary.scope_id, str)
    assert_type(boundary.path, tuple[str, ...])
    assert_type(boundary.metadata, dict[str, Any])
    ended = recorder.exit_phase(session_id="s", rank=0, scope_id=boundary.scope_id, thread_id=1)
    assert_type(ended, PhaseBoundary)
    recorder.reset()


def facts_of_a_token(token: PhaseToken) -> None:
    """A token's facts are plain values."""
    assert_type((token.scope_id, token.session_id, token.rank), tuple[str, str, int])
    assert_type((token.thread_id, token.name), tuple[int, str])


def wrong_calls(recorder: PhaseRecorder) -> None:
    """What cannot work is refused before it runs; an ignore that is not needed fails mypy."""
    recorder.enter("s", 0, "train")  # type: ignore[call-arg]
    recorder.enter(session_id="s", rank="0", name="train")  # type: ignore[arg-type]
    recorder.exit("0123456789abcdef")  # type: ignore[arg-type]
