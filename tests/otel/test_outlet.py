"""Which spans are sent: exact counts, the session's budget, sampling, failures that are kept, processors that raise."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Bridged


class Raising(SpanProcessor):
    """A processor that fails."""

    def on_end(self, span: Any) -> None:
        """Raise."""
        raise RuntimeError("no room")


def fail(rig: Bridged, name: str) -> None:
    """Let a phase fail."""
    with pytest.raises(ValueError, match="boom"), rig.enter(name):
        raise ValueError("boom")


def assert_balanced(rig: Bridged) -> dict[str, int]:
    """Check that offered is handed over plus dropped, and return the counts."""
    stats = rig.bridge.stats()
    reasons = sum(count for name, count in stats.items() if name.startswith("dropped_"))
    assert stats["offered"] == stats["handed_over"] + stats["dropped"]
    assert stats["dropped"] == reasons
    return stats


def test_every_span_is_counted_once(bridged: Callable[..., Bridged]) -> None:
    """Phases, the rank's span and the session's are offered and handed over."""
    rig = bridged()
    for _ in range(5):
        with rig.enter("outer"), rig.enter("inner"):
            pass
    rig.finish()
    stats = assert_balanced(rig)
    assert (12, 12, 12) == (stats["offered"], stats["handed_over"], len(rig.span_list))


def test_a_processor_that_raises_costs_its_span_and_no_more(
    bridged: Callable[..., Bridged], caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted, told once, and never raised."""
    rig = bridged(processors=(Raising(),))
    with caplog.at_level(logging.WARNING, "stormphase"):
        with rig.enter("outer"):
            for _ in range(3):
                with rig.enter("step"):
                    pass
        rig.finish()
    stats = assert_balanced(rig)
    assert (6, 0, 6) == (stats["offered"], stats["handed_over"], stats["dropped_error"])
    assert 1 == len(caplog.records)


def test_the_budget_keeps_every_parent_of_what_is_sent(
    bridged: Callable[..., Bridged], caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the budget spans are dropped and counted; no span that arrives hangs under one that does not."""
    rig = bridged(span_budget=6)
    with caplog.at_level(logging.WARNING, "stormphase"):
        with rig.enter("train"):
            for _ in range(5):
                with rig.enter("step"), rig.enter("forward"):
                    pass
                rig.deliver()
        rig.finish()
    names = [span.name for span in rig.span_list]
    assert ["forward", "step", "forward", "step", "train", "rank 0", "session"] == [
        name for index, name in enumerate(names) if index < 4 or name in ("train", "rank 0", "session")
    ]
    phases = [name for name in names if name not in ("rank 0", "session")]
    assert 6 >= len(phases)
    ids = {span.context.span_id for span in rig.span_list}
    assert [] == [span.name for span in rig.span_list if span.parent is not None and span.parent.span_id not in ids]
    stats = assert_balanced(rig)
    assert 13 - len(names) == stats["dropped_over_budget"]
    assert 1 == len(caplog.records)
    assert 'trace_per="step"' in caplog.text


def test_the_budget_is_shared_by_all_ranks(bridged: Callable[..., Bridged]) -> None:
    """Each of four ranks may send a quarter."""
    rig = bridged(span_budget=8, rank=3, world_size=4)
    for _ in range(5):
        with rig.enter("step"):
            pass
    assert 2 == len(rig.span_list)


def test_failures_and_their_ancestors_are_sent_over_the_budget(bridged: Callable[..., Bridged]) -> None:
    """What went wrong is never what is left out."""
    rig = bridged(span_budget=1)
    with rig.enter("filler"):
        pass
    rig.deliver()
    with rig.enter("train"):
        with rig.enter("fine"):
            pass
        fail(rig, "bad")
    assert ["filler", "bad", "train"] == [span.name for span in rig.span_list]
    assert 1 == rig.bridge.stats()["dropped_over_budget"]


def test_a_phase_that_outlives_its_dropped_parent_hangs_under_the_next_one(bridged: Callable[..., Bridged]) -> None:
    """A failure on another lane, after its parent was dropped, still finds an ancestor that arrived."""
    import contextvars
    import threading

    rig = bridged(span_budget=1)
    with rig.enter("train"):
        with rig.enter("filler"):
            pass
        parent = rig.enter("launch")
        copied = contextvars.copy_context()
        parent.close()
        rig.deliver()
        thread = threading.Thread(target=lambda: copied.run(fail, rig, "late"))
        thread.start()
        thread.join()
    spans = rig.spans
    assert "launch" not in spans
    assert spans["train"].context.span_id == spans["late"].parent.span_id


def test_no_limit_is_no_limit(bridged: Callable[..., Bridged]) -> None:
    """span_budget=None sends all."""
    rig = bridged(span_budget=None)
    for _ in range(6_000):
        with rig.enter("step"):
            pass
    assert 6_000 == len(rig.span_list)


def test_an_unsampled_trace_sends_nothing_and_counts(bridged: Callable[..., Bridged]) -> None:
    """The sampler's word is final for spans."""
    rig = bridged(sampler=ALWAYS_OFF)
    with rig.enter("outer"):
        fail(rig, "bad")
    rig.finish()
    assert [] == rig.span_list
    stats = assert_balanced(rig)
    assert (4, 4) == (stats["offered"], stats["dropped_unsampled"])


def test_failures_are_kept_against_the_sampler_if_asked(bridged: Callable[..., Bridged]) -> None:
    """The failed phase, its ancestors, and the rank's and session's spans are sent, sampled and marked."""
    rig = bridged(sampler=ALWAYS_OFF, keep_failures=True)
    with rig.enter("train") as train:
        assert train.is_recording()
        with rig.enter("fine"):
            pass
        with rig.enter("step"):
            fail(rig, "bad")
    with rig.enter("other"):
        pass
    rig.finish()
    spans = rig.span_list
    assert ["bad", "step", "train", "rank 0", "session"] == [span.name for span in spans]
    assert all(span.attributes["stormphase.phase.promoted"] for span in spans)
    assert all(span.context.trace_flags.sampled for span in spans)
    stats = assert_balanced(rig)
    assert 2 == stats["dropped_unsampled"]


def test_a_scope_that_is_switched_off_sends_nothing(bridged: Callable[..., Bridged]) -> None:
    """Where the SDK can disable a tracer, ours is disabled too, at any time."""
    rig = bridged()
    if not hasattr(rig.bridge._tracer, "_is_enabled"):
        assert rig.bridge._sdk.is_enabled()
        return
    with rig.enter("on"):
        pass
    rig.deliver()
    rig.bridge._tracer._is_enabled = lambda: False
    rig.bridge.tick()
    with rig.enter("off"):
        pass
    rig.finish()
    assert ["on"] == [span.name for span in rig.span_list]
    assert 3 == assert_balanced(rig)["dropped_disabled"]


def test_only_rank_0_sends_the_session(bridged: Callable[..., Bridged]) -> None:
    """Every rank sends its own span, under a root that one of them sends."""
    rigs = [bridged(rank=rank, world_size=3) for rank in range(3)]
    for rig in rigs:
        rig.finish()
    assert [["rank 0", "session"], ["rank 1"], ["rank 2"]] == [[span.name for span in rig.span_list] for rig in rigs]
    root = rigs[0].spans["session"].context
    parents = [rig.span_list[0].parent for rig in rigs]
    assert {(root.trace_id, root.span_id)} == {(parent.trace_id, parent.span_id) for parent in parents}
    assert [False, True, True] == [parent.is_remote for parent in parents]


def test_a_forked_child_leaves_the_session_to_its_parent(bridged: Callable[..., Bridged]) -> None:
    """The child sends its own phases under its parent's, and neither rank's nor session's span; it counts from 0."""
    rig = bridged()
    outer = rig.enter("outer")
    with rig.enter("before"):
        pass
    rig.deliver()
    rig.lanes.after_fork_in_child()
    rig.bridge.after_fork_in_child()
    assert not outer.is_recording()
    with rig.enter("in child"):
        pass
    rig.finish()
    spans = rig.spans
    assert ["before", "in child"] == list(spans)
    assert outer.get_span_context().span_id == spans["in child"].parent.span_id
    assert (1, 1) == (rig.bridge.stats()["offered"], rig.bridge.stats()["handed_over"])
    outer.__exit__(None, None, None)


def test_counts_stay_exact_whatever_goes_wrong(bridged: Callable[..., Bridged]) -> None:
    """A phase that cannot be described is a drop like any other."""
    rig = bridged()

    def fail(*args: Any, **more: Any) -> None:
        raise RuntimeError

    rig.bridge._outlet._facts.span = rig.bridge._outlet._facts.plain_attributes = fail
    with rig.enter("outer"), rig.enter("inner"):
        pass
    rig.deliver()
    stats = assert_balanced(rig)
    assert (2, 2) == (stats["offered"], stats["dropped_error"])


class FailsAtStart(SpanProcessor):
    """A processor that fails when a span of one name starts."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Raise for that name."""
        if span.name == "train":
            raise RuntimeError("no room")

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Do nothing."""
        return True


def test_a_processor_that_fails_at_a_start_costs_that_span(bridged: Callable[..., Bridged]) -> None:
    """Its children and its parents are sent."""
    rig = bridged(processors=(FailsAtStart(),))
    with rig.enter("train"), rig.enter("step"):
        pass
    rig.finish()
    assert ["step", "rank 0", "session"] == [span.name for span in rig.span_list]
    stats = assert_balanced(rig)
    assert (4, 1) == (stats["offered"], stats["dropped_error"])


def test_a_forked_child_starts_no_span_of_its_parent(bridged: Callable[..., Bridged]) -> None:
    """Where starts are seen, those of the session, the rank and the parent's open phases are the parent's."""
    seen: list[str] = []

    class Starting(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            seen.append(span.name)

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    rig = bridged(processors=(Starting(),))
    outer = rig.enter("outer")
    rig.lanes.after_fork_in_child()
    rig.bridge.after_fork_in_child()
    with rig.enter("in child"):
        pass
    rig.finish()
    assert ["in child"] == seen
    outer.__exit__(None, None, None)


def test_a_moved_phase_is_sent_over_the_budget(bridged: Callable[..., Bridged]) -> None:
    """Its new handle does not know whether a child of the old one was sent, so it is sent in any case."""
    rig = bridged(span_budget=2)
    moving = rig.enter("moving")
    with rig.enter("child"):
        pass
    token = moving.release()
    rig.deliver()
    with rig.enter("filler"):
        pass
    rig.lanes.acquire(token).close()
    spans = rig.spans
    assert "filler" not in spans
    assert spans["moving"].context.span_id == spans["child"].parent.span_id


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("hook", ["on_start", "on_end"])
def test_a_processor_that_would_end_the_program_costs_its_span_and_no_more(
    bridged: Callable[..., Bridged], error: BaseException, hook: str
) -> None:
    """On the worker it is one more processor that raises: counted, also on the quick way."""

    class Leaving(SpanProcessor):
        pass

    def leave(self: object, span: Any, parent_context: object = None) -> None:
        raise error

    setattr(Leaving, hook, leave)
    rig = bridged(processors=(Leaving(),))
    with rig.enter("outer"), rig.enter("plain"):
        pass
    rig.finish()
    stats = assert_balanced(rig)
    assert (4, 4) == (stats["offered"], stats["dropped_error"])


def test_a_pending_span_that_cannot_be_built_is_counted(bridged: Callable[..., Bridged]) -> None:
    """Offered and dropped, so that the counts stay exact."""
    rig = bridged(pending=True)

    def fail_to_build(*arguments: object) -> None:
        raise RuntimeError

    with rig.enter("long") as phase:
        rig.bridge._outlet._facts.started_span = fail_to_build
        rig.bridge._outlet.send_pending(phase, 0)
    assert_balanced(rig)
    assert (1, 1) == (rig.bridge.stats()["offered"], rig.bridge.stats()["dropped_error"])
