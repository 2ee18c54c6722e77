"""From a phase to the span that processors get: the same by both ways, with the provider's limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from stormphase.otel._provider import Way

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Bridged


class Starting(SpanProcessor):
    """A processor that wants to see spans start, as Sentry's and the baggage one do."""

    def __init__(self) -> None:
        """Note nothing yet."""
        self.started: list[tuple[str, Any]] = []
        self.ended: list[str] = []
        self.parents: list[int | None] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Note it, and set an attribute from the context's baggage."""
        self.started.append((span.name, baggage.get_baggage("user", parent_context)))
        self.parents.append(None if span.parent is None else span.parent.span_id)
        span.set_attribute("seen.at.start", True)

    def on_end(self, span: Any) -> None:
        """Note it."""
        self.ended.append(span.name)

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Do nothing."""
        return True


@pytest.fixture(params=["direct", "started"])
def rig(request: pytest.FixtureRequest, bridged: Callable[..., Bridged]) -> Bridged:
    """A bridge of each way."""
    rig = bridged(processors=() if request.param == "direct" else (Starting(),))
    assert Way(request.param) is rig.bridge._way
    return rig


def test_ids_times_and_scope(rig: Bridged) -> None:
    """Integer times on the wall clock, to the nanosecond; own ids; our scope; the provider's resource."""
    wall_ns = rig.clock.wall_ns()
    rig.clock.advance(1_000)
    with rig.enter("outer") as outer:
        rig.clock.advance(10)
        with rig.enter("inner") as inner:
            rig.clock.advance(100)
    rig.finish()
    spans = rig.spans
    assert [outer.scope_id, inner.scope_id] == [f"{spans[name].context.span_id:016x}" for name in ("outer", "inner")]
    assert (wall_ns + 1_000, wall_ns + 1_110) == (spans["outer"].start_time, spans["outer"].end_time)
    assert (wall_ns + 1_010, wall_ns + 1_110) == (spans["inner"].start_time, spans["inner"].end_time)
    assert (wall_ns, wall_ns + 1_110) == (spans["rank 0"].start_time, spans["rank 0"].end_time)
    scope = spans["inner"].instrumentation_scope
    assert ("stormphase", rig.bridge._tracer._instrumentation_scope) == (scope.name, scope)
    assert rig.provider.resource is spans["inner"].resource
    assert SpanKind.INTERNAL is spans["inner"].kind
    assert all(type(span) is ReadableSpan for span in spans.values())


def test_the_tree_of_one_rank(rig: Bridged) -> None:
    """One trace has session / rank 0 / outer / inner, each with all that it has to say."""
    rig.lanes.step = 7
    with rig.enter("outer"), rig.enter("inner", {"loss": 0.5, "shape": [1, 2], "nested": {"a": [1]}}):
        rig.clock.advance(2_000_000_000)
    rig.finish()
    spans = rig.spans
    parents = {name: None if span.parent is None else span.parent.span_id for name, span in spans.items()}
    assert {
        "session": None,
        "rank 0": spans["session"].context.span_id,
        "outer": spans["rank 0"].context.span_id,
        "inner": spans["outer"].context.span_id,
    } == parents
    assert 1 == len({span.context.trace_id for span in spans.values()})
    attributes = dict(spans["inner"].attributes)
    attributes.pop("seen.at.start", None)
    lane = rig.lanes.lanes()[0]
    assert {
        "loss": 0.5,
        "shape": (1, 2),
        "nested": '{"a":[1]}',
        "stormphase.session.id": "launch-1",
        "stormphase.session.attempt": 0,
        "stormphase.rank": 0,
        "stormphase.local_rank": 0,
        "stormphase.world_size": 1,
        "stormphase.step": 7,
        "stormphase.phase.path": "outer / inner",
        "stormphase.phase.status": "succeeded",
        "stormphase.phase.depth": 2,
        "stormphase.phase.sequence": 2,
        "stormphase.phase.attempt": 0,
        "stormphase.phase.self_time": 2.0,
        "thread.id": lane.thread_id,
        "thread.name": lane.thread_name,
    } == attributes
    assert 0.0 == spans["outer"].attributes["stormphase.phase.self_time"]


def test_a_plain_phase_says_what_any_other_says(rig: Bridged) -> None:
    """The quick way for ordinary phases leaves out nothing."""
    with rig.enter("outer"):
        with rig.enter("first"):
            pass
        with rig.enter("x", {"a": 1}):
            rig.clock.advance(3)
        rig.deliver()
        with rig.enter("x", {"a": 1}) as phase:
            phase._extra_or_new()
            rig.clock.advance(3)
    quick, slow = rig.span_list[1:3]
    different = {"stormphase.phase.sequence"}
    assert {key: value for key, value in slow.attributes.items() if key not in different} == {
        key: value for key, value in quick.attributes.items() if key not in different
    }
    assert (slow.name, slow.status.status_code, slow.parent) == (quick.name, quick.status.status_code, quick.parent)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (None, "succeeded", StatusCode.UNSET),
        (ValueError("boom"), "failed", StatusCode.ERROR),
        (KeyboardInterrupt(), "cancelled", StatusCode.UNSET),
        (SystemExit(3), "cancelled", StatusCode.UNSET),
    ],
)
def test_statuses(rig: Bridged, error: BaseException | None, status: str, code: StatusCode) -> None:
    """Only failures are errors to a backend; cancelled ones say so in an attribute."""
    phase = rig.enter("step")
    phase.close(error=error)
    span = rig.spans["step"]
    assert (status, code) == (span.attributes["stormphase.phase.status"], span.status.status_code)
    assert ("ValueError" if status == "failed" else None) == span.attributes.get("error.type")
    assert (["exception"] if status == "failed" else []) == [event.name for event in span.events]


def test_an_abandoned_phase_says_why(bridged: Callable[..., Bridged]) -> None:
    """A phase that was closed over is no error, and names what closed over it."""
    rig = bridged(on_misuse="record")
    outer = rig.enter("outer")
    rig.enter("forgotten")
    outer.close()
    span = rig.spans["forgotten"]
    assert ("abandoned", StatusCode.UNSET) == (span.attributes["stormphase.phase.status"], span.status.status_code)
    assert "was closed over it" in span.attributes["stormphase.phase.reason"]


def test_the_session_fails_with_its_outcome(rig: Bridged) -> None:
    """What left the tracker's block is the status of the rank's span and of the session's."""
    rig.finish(ValueError("boom"))
    for name in ("rank 0", "session"):
        status = rig.spans[name].status
        assert (StatusCode.ERROR, "ValueError: boom") == (status.status_code, status.description)
        assert "ValueError" == rig.spans[name].attributes["error.type"]


def test_an_interrupted_session_is_no_error(rig: Bridged) -> None:
    """Ctrl-C is not a failure."""
    rig.finish(KeyboardInterrupt())
    assert StatusCode.UNSET is rig.spans["rank 0"].status.status_code


def test_a_processor_sees_the_start_with_the_context_of_the_enter(bridged: Callable[..., Bridged]) -> None:
    """A processor that reads baggage at start finds what was there when the phase was entered, parents first."""
    processor = Starting()
    rig = bridged(processors=(processor,))
    token = context.attach(baggage.set_baggage("user", "u1"))
    with rig.enter("outer"), rig.enter("inner"):
        pass
    context.detach(token)
    rig.finish()
    assert [("session", None), ("rank 0", None), ("outer", "u1"), ("inner", "u1")] == processor.started
    assert ["inner", "outer", "rank 0", "session"] == processor.ended
    ids = {span.name: span.context.span_id for span in rig.span_list}
    assert [None, ids["session"], ids["rank 0"], ids["outer"]] == processor.parents
    assert all(span.attributes["seen.at.start"] for span in rig.span_list)


def test_what_becomes_known_after_the_start_is_on_the_span(bridged: Callable[..., Bridged]) -> None:
    """A span started for its child's sake still gets its late attributes, links, events, name and end."""
    rig = bridged(processors=(Starting(),))
    with rig.enter("outer") as outer:
        with rig.enter("inner"):
            pass
        rig.deliver()
        outer.set_attribute("late", 1)
        outer.add_link(rig.spans["inner"].context)
        outer.add_event("late event")
        outer.update_name("renamed")
        rig.clock.advance(9)
    span = rig.spans["renamed"]
    assert (1, 1, ["late event"], 9) == (
        span.attributes["late"],
        len(span.links),
        [event.name for event in span.events],
        span.end_time - span.start_time,
    )


def test_a_processor_added_later_is_served(bridged: Callable[..., Bridged]) -> None:
    """The way is chosen anew when a processor is added that wants to see starts."""
    rig = bridged()
    with rig.enter("before"):
        pass
    rig.deliver()
    processor = Starting()
    rig.provider.add_span_processor(processor)
    rig.bridge.tick()
    with rig.enter("after"):
        pass
    rig.finish()
    assert ["session", "rank 0", "after"] == [name for name, _ in processor.started]
    assert ["before", "after", "rank 0", "session"] == [span.name for span in rig.span_list]


def test_the_tracers_own_generator_and_sampler_serve_everybody_else(bridged: Callable[..., Bridged]) -> None:
    """Whoever else uses a tracer of our very scope gets the provider's ids and the provider's sampling."""
    rig = bridged(processors=(Starting(),))
    with rig.enter("step"):
        pass
    rig.deliver()
    tracer = rig.bridge._tracer
    spans = [tracer.start_span("foreign") for _ in range(3)]
    assert 3 == len({span.get_span_context().trace_id for span in spans} - {rig.spans["step"].context.trace_id})
    assert rig.provider.sampler.get_description() == tracer.sampler.get_description()


@pytest.mark.parametrize("way", ["direct", "started"])
def test_the_providers_limits_hold(bridged: Callable[..., Bridged], way: str) -> None:
    """Counts, lengths and the numbers of what was dropped are those that the SDK's own span would have."""
    limits = SpanLimits(
        max_span_attributes=20,
        max_span_attribute_length=6,
        max_events=2,
        max_links=1,
        max_event_attributes=1,
        max_link_attributes=1,
        max_attribute_length=4,
    )
    rig = bridged(limits=limits, processors=() if way == "direct" else (Starting(),))
    elsewhere = rig.bridge._traces.root
    with rig.enter("step", {f"user.{number}": "long text" for number in range(10)}) as phase:
        for number in range(3):
            phase.add_event(f"event {number}", {"a": "abcdefgh", "b": 2})
            phase.add_link(elsewhere, {"a": "abcdefgh", "b": 2})
    span = rig.spans["step"]
    assert 20 == len(span.attributes)
    assert "succee" == span.attributes["stormphase.phase.status"]
    assert (["event 1", "event 2"], 1) == ([event.name for event in span.events], span.dropped_events)
    assert (1, 2) == (len(span.links), span.dropped_links)
    assert [{"b": 2}] * 2 == [dict(event.attributes) for event in span.events]
    assert [1] == [len(link.attributes) for link in span.links]
    assert span.dropped_attributes > 0


def test_users_attributes_do_not_hide_our_own(bridged: Callable[..., Bridged]) -> None:
    """A user's attribute of one of our names is left out, and counted."""
    rig = bridged()
    with rig.enter("step", {"stormphase.rank": 99, "mine": 1}):
        pass
    span = rig.spans["step"]
    assert (0, 1) == (span.attributes["stormphase.rank"], span.attributes["mine"])
    assert 1 == rig.lanes.attribute_counts.dropped


def test_names_without_end_cost_no_memory_without_end(
    bridged: Callable[..., Bridged], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of paths is bounded, and right all the same."""
    from stormphase.otel import _facts

    monkeypatch.setattr(_facts, "MAX_CACHED_PATHS", 3)
    rig = bridged()
    with rig.enter("train"):
        for number in range(8):
            with rig.enter(f"step {number}"):
                pass
    facts = rig.bridge._outlet._facts
    assert [f"train / step {number}" for number in range(8)] == [
        span.attributes["stormphase.phase.path"] for span in rig.span_list[:8]
    ]
    assert (True, True) == (len(facts._paths) <= 3, len(facts._plain) <= 3)


def test_a_processor_that_raises_on_a_plain_span_is_counted(bridged: Callable[..., Bridged]) -> None:
    """The quick way counts as the other does."""

    class Raising(SpanProcessor):
        def on_end(self, span: Any) -> None:
            if span.name == "step":
                raise RuntimeError

    rig = bridged(processors=(Raising(),))
    with rig.enter("train"), rig.enter("step"):
        pass
    rig.finish()
    stats = rig.bridge.stats()
    assert (4, 3, 1) == (stats["offered"], stats["handed_over"], stats["dropped_error"])


def test_two_trackers_on_one_provider_keep_their_ids(bridged: Callable[..., Bridged]) -> None:
    """The SDK gives both the same tracer; each span has its own phase's ids all the same."""
    first = bridged(processors=(Starting(),))
    second = bridged(provider=first.provider, session_id="launch-2")
    for rig in (first, second, first, second):
        with rig.enter("step") as phase:
            pass
        rig.deliver()
        sent = first.exporter.get_finished_spans()[-1].context
        assert (phase.get_span_context().trace_id, phase.get_span_context().span_id) == (sent.trace_id, sent.span_id)
