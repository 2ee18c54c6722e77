"""Phases in OTel's own context: current while open, in every task and thread, with the user's spans in between."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.context import Context

from stormphase.otel._carrier import SPAN_KEY, otel_variable

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Bridged, RunPython


def test_the_variable_is_otels_own() -> None:
    """What is set in it is what OTel's API reads, and looking for it leaves nothing behind."""
    before = context.get_current()
    variable = otel_variable()
    assert variable is not None
    assert before is context.get_current()
    token = variable.set(Context({"k": 1}))
    assert 1 == context.get_value("k")
    variable.reset(token)


def test_another_context_runtime_is_refused_with_a_warning(run_python: RunPython) -> None:
    """Where phases could not be kept current, the bridge is off, says so, and phases work without it."""
    source = """
import logging, threading
from unittest import mock
import opentelemetry.context as context
class Local:
    def __init__(self): self.local = threading.local()
    def get_current(self): return getattr(self.local, "context", context.Context())
    def attach(self, value):
        old = self.get_current(); self.local.context = value; return old
    def detach(self, token): self.local.context = token
context._RUNTIME_CONTEXT = Local()
logging.basicConfig(format="%(message)s")
from opentelemetry.sdk.trace import TracerProvider
from stormphase._tracker import PhaseTracker
from stormphase.otel import OTelBridge
bridge = OTelBridge(TracerProvider())
with PhaseTracker(session_id="s", rank=0, world_size=1, bridge=bridge) as tracker:
    with tracker.enter_phase("step") as phase:
        pass
print(phase.status, bridge.stats()["offered"], bridge.environment())
"""
    child = run_python(source)
    assert "succeeded 0 {}\n" == child.stdout
    assert "Unset OTEL_PYTHON_CONTEXT" in child.stderr


def test_the_users_spans_nest_in_phases_and_phases_in_them(bridged: Callable[..., Bridged]) -> None:
    """A span of the user's own inside a phase is its child, and a phase inside that span is the span's child."""
    rig = bridged()
    tracer = rig.provider.get_tracer("users")
    with rig.enter("outer"), tracer.start_as_current_span("own"), rig.enter("inner"):
        pass
    spans = rig.spans
    assert spans["outer"].context.span_id == spans["own"].parent.span_id
    assert spans["own"].context.span_id == spans["inner"].parent.span_id
    assert {spans["outer"].context.trace_id} == {span.context.trace_id for span in spans.values()}


def test_a_span_of_another_trace_is_linked_to(bridged: Callable[..., Bridged]) -> None:
    """A phase under a foreign span stays in the session's trace, and links to it; phases inside it do not."""
    rig = bridged()
    tracer = rig.provider.get_tracer("users")
    with tracer.start_as_current_span("request"), rig.enter("outer"), rig.enter("inner"):
        pass
    spans = rig.spans
    assert spans["request"].context.trace_id != spans["outer"].context.trace_id
    assert [spans["request"].context.span_id] == [link.context.span_id for link in spans["outer"].links]
    assert () == spans["inner"].links
    assert rig.bridge._traces.rank.span_id == spans["outer"].parent.span_id


def test_baggage_lives_on_inside_a_phase(bridged: Callable[..., Bridged]) -> None:
    """What else the context carries is still there in a phase, and what is added inside keeps the phase current."""
    rig = bridged()
    token = context.attach(baggage.set_baggage("user", "u1"))
    with rig.enter("step") as phase:
        assert "u1" == baggage.get_baggage("user")
        inner = context.attach(baggage.set_baggage("shard", "7"))
        assert phase is trace.get_current_span()
        assert phase is rig.lanes.carrier.current_phase()
        context.detach(inner)
    context.detach(token)


def test_baggage_reaches_every_phase_of_a_loop_and_none_after_it(bridged: Callable[..., Bridged]) -> None:
    """The short way for phases in a loop does not forget what somebody has attached in between."""
    rig = bridged()

    def seen() -> list[object]:
        found = []
        for _ in range(3):
            with rig.enter("step"):
                found.append(baggage.get_baggage("shard"))
                with rig.enter("inner"):
                    found.append(baggage.get_baggage("shard"))
        return found

    with rig.enter("train"):
        assert [None] * 6 == seen()
        token = context.attach(baggage.set_baggage("shard", "7"))
        assert ["7"] * 6 == seen()
        context.detach(token)
        assert [None] * 6 == seen()


def test_tasks_nest_under_the_phase_in_which_they_were_made(bridged: Callable[..., Bridged]) -> None:
    """Concurrent tasks on one thread have a current span each, and their spans hang under their maker's."""
    rig = bridged()

    async def work(name: str) -> None:
        with rig.enter(name) as phase:
            await asyncio.sleep(0)
            assert phase is trace.get_current_span()

    async def main() -> None:
        with rig.enter("main"):
            await asyncio.gather(work("a"), work("b"))

    asyncio.run(main())
    spans = rig.spans
    assert {spans["main"].context.span_id} == {spans["a"].parent.span_id, spans["b"].parent.span_id}


def test_a_thread_with_a_copied_context_nests_and_one_without_does_not(bridged: Callable[..., Bridged]) -> None:
    """The parent of a thread's outermost phase is what its context carries, else the rank's span."""
    rig = bridged()

    def work(name: str) -> None:
        with rig.enter(name):
            pass

    with rig.enter("main"):
        copied = contextvars.copy_context()
        for target in (lambda: copied.run(work, "copied"), lambda: work("bare")):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    spans = rig.spans
    assert spans["main"].context.span_id == spans["copied"].parent.span_id
    assert rig.bridge._traces.rank.span_id == spans["bare"].parent.span_id


def test_two_sessions_in_one_process_do_not_nest_in_each_other(bridged: Callable[..., Bridged]) -> None:
    """A phase of one tracker inside one of another stays in its own session, and links to it."""
    one, two = bridged(session_id="one"), bridged(session_id="two")
    with one.enter("outer"), two.enter("inner"):
        assert one.lanes.carrier.current_phase().name == "outer"
        assert two.lanes.carrier.current_phase().name == "inner"
    outer, inner = one.spans["outer"], two.spans["inner"]
    assert outer.context.trace_id != inner.context.trace_id
    assert [outer.context.span_id] == [link.context.span_id for link in inner.links]
    assert two.bridge._traces.rank.span_id == inner.parent.span_id


def test_a_phase_that_moves_to_another_thread_is_one_span_with_its_first_parent(
    bridged: Callable[..., Bridged],
) -> None:
    """Released here and acquired there, it keeps id, parent and enter, and is current where it is open."""
    rig = bridged()
    seen = []

    def finish(token: object) -> None:
        phase = rig.lanes.acquire(token)
        seen.append(trace.get_current_span() is phase)
        with rig.enter("there"):
            pass
        phase.close()
        seen.append(trace.get_current_span() is trace.INVALID_SPAN)

    with rig.enter("outer"):
        token = rig.enter("moving").release()
        assert "outer" == trace.get_current_span().name
        thread = threading.Thread(target=finish, args=(token,))
        thread.start()
        thread.join()
    spans = rig.spans
    assert [True, True] == seen
    assert spans["outer"].context.span_id == spans["moving"].parent.span_id
    assert spans["moving"].context.span_id == spans["there"].parent.span_id
    assert ["there", "moving", "outer"] == [span.name for span in rig.span_list]


def test_a_paused_phase_is_not_current_and_keeps_its_parent(bridged: Callable[..., Bridged]) -> None:
    """While it is paused others nest beside it; after resume it is current again."""
    rig = bridged()
    with rig.enter("outer"):
        phase = rig.enter("on and off")
        phase.pause()
        with rig.enter("beside"):
            assert "beside" == trace.get_current_span().name
        phase.resume()
        assert phase is trace.get_current_span()
        phase.close()
    spans = rig.spans
    assert {spans["outer"].context.span_id} == {spans["beside"].parent.span_id, spans["on and off"].parent.span_id}


def test_a_phase_kept_back_by_a_filter_leaves_nothing_dangling(bridged: Callable[..., Bridged]) -> None:
    """What is entered inside a quiet phase, spans of the user's own too, hangs under the next one that arrives."""
    rig = bridged()
    tracer = rig.provider.get_tracer("users")
    with rig.enter("outer"):
        quiet = rig.enter("quiet")
        quiet._extra_or_new().is_quiet = True
        with rig.enter("inner"), tracer.start_as_current_span("own"):
            pass
        with tracer.start_as_current_span("right inside"):
            pass
        quiet.close()
    spans = rig.spans
    assert "quiet" not in spans
    assert spans["outer"].context.span_id == spans["inner"].parent.span_id
    assert spans["outer"].context.span_id == spans["right inside"].parent.span_id
    assert spans["inner"].context.span_id == spans["own"].parent.span_id


def test_a_quiet_phase_that_fails_is_sent_under_its_own_id(bridged: Callable[..., Bridged]) -> None:
    """A filter may keep back successes only."""
    rig = bridged()
    with rig.enter("outer"):
        quiet = rig.enter("quiet")
        quiet._extra_or_new().is_quiet = True
        with pytest.raises(ValueError, match="boom"), quiet:
            raise ValueError("boom")
    spans = rig.spans
    assert int(quiet.scope_id, 16) == spans["quiet"].context.span_id
    assert spans["outer"].context.span_id == spans["quiet"].parent.span_id


def test_an_interrupted_enter_leaves_the_context_as_it_was(bridged: Callable[..., Bridged]) -> None:
    """A signal handler that raises in the middle of an enter takes nothing of the context with it."""
    rig = bridged()
    carrier = rig.lanes.carrier
    with rig.enter("outer") as outer:
        phase = type(outer)()
        phase._outer = context.get_current()
        assert context.get_current() is carrier.value_before(phase)
        assert outer is carrier.value_before(phase)[SPAN_KEY]


def test_in_a_trace_the_deepest_phase_has_as_many_ancestors_as_levels(bridged: Callable[..., Bridged]) -> None:
    """A thousand levels deep every parent is right."""
    rig = bridged(span_budget=None)
    phases = [rig.enter(f"level {level % 7}") for level in range(1_000)]
    for phase in reversed(phases):
        phase.close()
    by_id = {span.context.span_id: span for span in rig.span_list}
    span, depth = rig.span_list[0], 1
    while span.parent.span_id in by_id:
        span, depth = by_id[span.parent.span_id], depth + 1
    assert 1_000 == depth
