"""A process that said how it ended, and died before its bridge had sent the spans of its rank and session."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from stormphase._clock import SystemClock
from stormphase._liveness import Liveness, Verdict
from stormphase._model import EndKind, PhaseStatus
from stormphase.journal._image import EndNote
from stormphase.journal._options import JournalOptions
from stormphase.otel import OTelBridge
from stormphase.otel._recovered import rebuild
from stormphase.otel._recovery import Recovery, Result
from stormphase.records import read_records

from .images import STARTED_NS, as_live, as_sent, image, image_of, phase

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Bridged

    from stormphase import PhaseTracker


@pytest.mark.parametrize(
    ("outcome", "kind", "status"),
    [
        (None, EndKind.CLEAN, PhaseStatus.SUCCEEDED),
        (RuntimeError("x"), EndKind.EXCEPTION, PhaseStatus.FAILED),
        (KeyboardInterrupt(), EndKind.SIGNAL, PhaseStatus.CANCELLED),
    ],
)
def test_rank_and_session_look_as_the_live_bridge_sends_them(
    bridged: Callable[..., Bridged], outcome: BaseException | None, kind: EndKind, status: PhaseStatus
) -> None:
    """They ended as the journal says, field by field, and are not LOST."""
    rig = bridged(attempt=1)
    rig.clock.advance(50)
    error = None if outcome is None else type(outcome).__name__, None if outcome is None else str(outcome)
    ended_ns = rig.clock.monotonic_ns()
    note = EndNote(kind=kind, ended_ns=ended_ns, error_type=error[0], error_message=error[1], status=status)
    sent = {span.name: as_sent(span) for span in rebuild(image_of(rig, end_note=note, owners_are_unsent=True)).spans}
    rig.finish(outcome)
    assert {name: as_live(rig.spans[name]) for name in ("session", "rank 0")} == sent


def test_a_forked_child_has_none() -> None:
    """Session and rank are its parent's to send."""
    note = EndNote(kind=EndKind.CLEAN, ended_ns=STARTED_NS + 9)
    found = image(phase(1, "train"), header={"forked_from": 12}, end_note=note, owners_are_unsent=True)
    assert ["train"] == [span.name for span in rebuild(found).spans]


class Hangs(OTelBridge):
    """A bridge that sends rank and session only when it may."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Wait for a word."""
        super().__init__(*arguments, **options)
        self.may_send, self.has_sent = threading.Event(), threading.Event()

    def finish(self, outcome: BaseException | None, ended_ns: int) -> None:
        """Send them when it may."""
        self.may_send.wait(30)
        super().finish(outcome, ended_ns)
        self.has_sent.set()


@pytest.mark.parametrize(("state", "expected"), [("dead", Result.WAITING), ("unknown", Result.UNPROVEN)])
def test_a_journal_says_what_its_bridge_has_yet_to_send(
    tmp_path: Path, make_tracker: Callable[..., PhaseTracker], state: str, expected: Result
) -> None:
    """A stop that does not wait for its bridge leaves two spans to recovery, until the bridge has sent them."""
    bridge = Hangs(TracerProvider(shutdown_on_exit=False))
    tracker = make_tracker("job", session_id="s", journal=JournalOptions(tmp_path, max_bytes=1 << 20), bridge=bridge)
    tracker.start()
    tracker.stop(timeout_s=0.01)
    verdict = Verdict(Liveness(state), "a judge said so")
    recovery = Recovery(None, clock=SystemClock(), judge_process=lambda *_, **__: verdict)
    (before,) = recovery.run(tmp_path)
    assert {"session": "succeeded", "rank": "succeeded"} == {
        record.kind.value: record.status.value for record in read_records(tmp_path)
    }
    bridge.may_send.set()
    assert bridge.has_sent.wait(30)
    (after,) = recovery.run(tmp_path)
    assert (expected, Result.NOTHING) == (before.result, after.result)
    assert (2 if state == "dead" else 0, 0) == (before.spans, after.spans)
