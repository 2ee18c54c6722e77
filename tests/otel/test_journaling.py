"""What the bridge gives to a journal: facts of the session, facts of few phases, and which ones it has handed over."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult

from stormphase import _bridge
from stormphase.otel import OTelBridge, ids
from stormphase.otel._journal_facts import MAX_JSON_BYTES, FactsError, Limits, PhaseTrace, SessionFacts
from stormphase.otel._provider import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Bridged

CALLER = "00-" + "a" * 32 + "-" + "b" * 16 + "-03"


def facts_of(rig: Bridged) -> SessionFacts:
    """Return the facts after a way through JSON, as a journal's header takes them."""
    return SessionFacts.from_json(json.loads(json.dumps(rig.bridge.journal_facts())))


def provider_with(attributes: dict[str, Any], **options: Any) -> TracerProvider:
    """Return an SDK provider with nothing but these resource attributes."""
    return TracerProvider(resource=Resource(attributes, "https://schema.example/1"), shutdown_on_exit=False, **options)


def test_the_session_says_where_its_spans_hang(bridged: Callable[..., Bridged]) -> None:
    """Ids, flags, scope, resource and limits come back from the header as the live bridge has them."""
    provider = provider_with(
        {"service.name": "resnet", "tags": ("a", "b"), "n": 3}, span_limits=SpanLimits(max_events=5)
    )
    rig = bridged(provider=provider, rank=1, world_size=2, trace_per="step", keep_failures=True)
    facts = facts_of(rig)
    assert ids.session_trace_id("launch-1", 0) == facts.trace_id
    assert ids.root_span_id("launch-1", 0) == facts.root_id
    assert ids.rank_span_id("launch-1", 0, 1) == facts.rank_id
    assert (3, True, None, None) == (facts.flags, facts.is_sampled, facts.caller_id, facts.previous_root)
    assert ("step", True, "off", True) == (
        facts.trace_per,
        facts.keep_failures,
        facts.span_events,
        facts.has_exceptions,
    )
    assert (SCOPE_NAME, SCOPE_VERSION, SCHEMA_URL) == (facts.scope_name, facts.scope_version, facts.schema_url)
    assert {"service.name": "resnet", "tags": ["a", "b"], "n": 3} == facts.resource
    assert "https://schema.example/1" == facts.resource_schema_url
    assert (5, 128, 0) == (facts.limits.events, facts.limits.attributes, facts.resource_dropped)


def test_a_caller_and_an_attempt_before_are_kept(bridged: Callable[..., Bridged]) -> None:
    """The root span of a session that has both is found again."""
    facts = facts_of(bridged(attempt=2, environ={"TRACEPARENT": CALLER, "TRACESTATE": "v=1"}))
    assert (0xA * (16**32 - 1) // 15, 0xB * (16**16 - 1) // 15) == (facts.trace_id, facts.caller_id)
    assert (facts.trace_id, ids.root_span_id("launch-1", 1)) == facts.previous_root
    assert "v=1" == facts.tracestate


def test_what_is_said_is_bounded(bridged: Callable[..., Bridged]) -> None:
    """Of a huge resource the small attributes are kept, and what has no form in JSON is counted as dropped."""
    attributes = {f"key.{index}": "x" * index * 40 for index in range(40)} | {"inf": float("inf"), "raw": b"bytes"}
    said = bridged(provider=provider_with(attributes)).bridge.journal_facts()
    assert len(json.dumps(said)) <= MAX_JSON_BYTES + 100
    kept = SessionFacts.from_json(said)
    assert "x" * 40 == kept.resource["key.1"]
    assert len(attributes) == len(kept.resource) + kept.resource_dropped
    assert "key.39" not in kept.resource


def test_where_spans_are_not_ours_there_is_nothing_to_keep(bridged: Callable[..., Bridged]) -> None:
    """Without an SDK provider no span can be sent again, so the journal keeps nothing of it."""

    class Foreign:
        def get_tracer(self, *_: Any, **__: Any) -> Any:
            from opentelemetry.trace import NoOpTracer

            return NoOpTracer()

    rig = bridged(provider=Foreign())
    assert None is rig.bridge.journal_facts()
    assert None is rig.bridge.phase_trace_facts
    assert None is OTelBridge().journal_facts()


def test_facts_from_a_file_are_checked(bridged: Callable[..., Bridged]) -> None:
    """Whatever is changed in the facts, reading them gives facts or the one error, and never anything else."""
    good = bridged(trace_per="step").bridge.journal_facts()
    chance = random.Random(7)
    values: list[Any] = [None, True, -1, 2**80, 1.5, "", "zz", "0" * 32, "é" * 5_000, [], ["a"], {}, {"a": {"b": 1}}]
    refused = 0
    for _ in range(2_000):
        facts = json.loads(json.dumps(good))
        target = facts if chance.random() < 0.8 else facts["limits"]
        target[chance.choice(sorted(target))] = chance.choice(values)
        try:
            SessionFacts.from_json(facts)
        except FactsError:
            refused += 1
    assert 500 < refused < 2_000
    for nothing in (None, [], "text", 1):
        with pytest.raises(FactsError):
            SessionFacts.from_json(nothing)


def test_facts_of_a_newer_version_are_refused_with_the_fix(bridged: Callable[..., Bridged]) -> None:
    """An old release does not guess what a newer one meant."""
    with pytest.raises(FactsError, match="upgrade"):
        SessionFacts.from_json({**bridged().bridge.journal_facts(), "version": 99})


def test_limits_that_nobody_set_are_none() -> None:
    """A missing limit is no limit."""
    facts = SessionFacts(trace_id=1, root_id=2, rank_id=3)
    assert Limits() == SessionFacts.from_json(facts.to_json()).limits


def test_plain_phases_say_nothing(bridged: Callable[..., Bridged]) -> None:
    """Where every phase is in the session's trace, the training thread is not even asked."""
    assert None is bridged().bridge.phase_trace_facts


@pytest.mark.parametrize("rank", [0, 1])
def test_a_phase_with_a_trace_of_its_own_says_so(bridged: Callable[..., Bridged], rank: int) -> None:
    """On rank 0 it is the root; on the others a child of that root; what is inside says nothing."""
    rig = bridged(rank=rank, world_size=2, trace_per="step")
    tell = rig.bridge.phase_trace_facts
    with rig.enter("train") as train, rig.enter("step") as step, rig.enter("forward") as forward:
        said = PhaseTrace.from_json(tell(step))
        assert None is tell(train)
        assert None is tell(forward)
    rig.finish()
    span = rig.spans["step"]
    assert span.context.trace_id == said.trace_id
    assert (True, None if rank == 0 else said.root_id) == (said.is_sampled, said.parent_id)
    assert span.context.span_id == (said.root_id if rank == 0 else step.scope_id_number)
    assert (None if span.parent is None else span.parent.span_id) == said.parent_id


def test_a_lane_that_may_outlive_its_trace_says_where_it_is(
    bridged: Callable[..., Bridged], step_thread: Callable[..., Any]
) -> None:
    """A phase on another thread knows its trace by itself, since its parent's record may be gone first."""
    import contextvars

    rig = bridged(trace_per="step")
    tell = rig.bridge.phase_trace_facts
    with rig.enter("step") as step:
        around = contextvars.copy_context()
        loader = step_thread()
        inner = loader.do(around.run, rig.enter, "load")
        said = PhaseTrace.from_json(tell(inner))
        loader.do(around.run, inner.close)
    rig.finish()
    assert (rig.spans["load"].context.trace_id, step.scope_id_number) == (said.trace_id, said.parent_id)


class BatchOfOthers(SpanProcessor):
    """Says what it is told to say when it is flushed."""

    answer = False

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Say it."""
        return self.answer


class OnlySteps(Sampler):
    """Samples what is not called `skip`, whatever its parent is."""

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *rest: Any, **more: Any) -> SamplingResult:
        """Look at the name only."""
        return SamplingResult(Decision.DROP if name == "skip" else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        """Say who it is."""
        return "OnlySteps"


def test_a_sampler_that_is_asked_each_time_is_heard(bridged: Callable[..., Bridged]) -> None:
    """Where the word on a phase differs from that on the phase around, the journal keeps it."""
    rig = bridged(sampler=OnlySteps())
    tell = rig.bridge.phase_trace_facts
    with rig.enter("train") as train, rig.enter("skip") as skip, rig.enter("inner") as inner:
        said = [tell(phase) for phase in (train, skip, inner)]
    assert [None, False, True] == [fact and fact["sampled"] for fact in said]
    assert [f"{train.scope_id}", skip.scope_id] == [fact["parent_id"] for fact in said if fact]
    assert facts_of(rig).trace_id == PhaseTrace.from_json(said[1]).trace_id


@pytest.mark.parametrize("options", [{}, {"sampler": ALWAYS_OFF}, {"span_budget": 1}])
def test_each_ended_phase_is_told_once(bridged: Callable[..., Bridged], options: dict[str, Any]) -> None:
    """Sent, not sampled or over the budget: recovery need not send any of them."""
    rig = bridged(**options)
    told: list[Any] = []
    finished: list[bool] = []
    assert _bridge.listen(rig.bridge, on_handed_over=told.extend, on_finished=lambda: finished.append(True))
    phases = [rig.enter("a"), rig.enter("b")]
    phases[1].close(error=ValueError("x"))
    phases[0].close()
    rig.deliver()
    assert phases[::-1] == told
    assert [] == finished
    rig.finish()
    assert [] == finished


def test_rank_and_session_are_sent_once_a_flush_was_good(bridged: Callable[..., Bridged]) -> None:
    """Until then a SIGKILL takes them along with the queue."""
    processor = BatchOfOthers()
    rig = bridged(processors=[processor])
    finished: list[bool] = []
    _bridge.listen(rig.bridge, on_handed_over=print, on_finished=lambda: finished.append(True))
    processor.answer = True
    assert rig.bridge.flush(1.0)
    processor.answer = False
    rig.finish()
    assert not rig.bridge.flush(1.0)
    assert [] == finished
    processor.answer = True
    assert rig.bridge.flush(1.0)
    assert [True] == finished


def test_a_phase_at_which_a_processor_raises_is_told_as_well(bridged: Callable[..., Bridged]) -> None:
    """The processor had it, and nothing is handed over twice."""

    class Raising:
        def on_end(self, span: Any) -> None:
            raise SystemExit(span.name)

    rig = bridged()
    told: list[Any] = []
    _bridge.listen(rig.bridge, on_handed_over=told.extend)
    rig.bridge._sdk.tracer.span_processor = Raising()
    with rig.enter("a") as phase:
        pass
    rig.deliver()
    assert [phase] == told


def test_what_waits_in_the_sdks_queue_is_told_once_it_was_exported(bridged: Callable[..., Bridged]) -> None:
    """At the next tick, or when all is flushed; what was not sampled never gets into the queue."""
    exporter = InMemorySpanExporter()
    batch = BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000)
    rig = bridged(processors=[batch])
    told: list[Any] = []
    _bridge.listen(rig.bridge, on_handed_over=told.extend)
    with rig.enter("outer") as outer, rig.enter("inner") as inner:
        pass
    rig.deliver()
    rig.bridge.tick()
    assert [] == told
    batch.force_flush()
    rig.bridge.tick()
    assert [inner, outer] == told
    with rig.enter("later") as later:
        pass
    rig.deliver()
    assert [inner, outer] == told
    assert rig.bridge.flush(1.0)
    assert [inner, outer, later] == told
    assert 3 == len(exporter.get_finished_spans())
    batch.shutdown()


def test_what_a_processor_was_given_after_its_shutdown_is_never_told(bridged: Callable[..., Bridged]) -> None:
    """It takes such a span, drops it and has an empty queue: recovery has to send it."""
    exporter = InMemorySpanExporter()
    batch = BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000)
    rig = bridged(processors=[batch])
    told: list[Any] = []
    _bridge.listen(rig.bridge, on_handed_over=told.extend)
    with rig.enter("before") as before:
        pass
    rig.deliver()
    assert rig.bridge.flush(1.0)
    batch.shutdown()
    with rig.enter("after"):
        pass
    rig.deliver()
    rig.bridge.tick()
    assert not rig.bridge.flush(1.0)
    assert ([before], ["before"]) == (told, [span.name for span in exporter.get_finished_spans()])


def test_a_failure_that_is_sent_unsampled_waits_in_the_queue_as_well(bridged: Callable[..., Bridged]) -> None:
    """With its ancestors; what went well never gets there."""
    batch = BatchSpanProcessor(InMemorySpanExporter(), schedule_delay_millis=3_600_000)
    rig = bridged(processors=[batch], sampler=ALWAYS_OFF, keep_failures=True)
    told: list[Any] = []
    _bridge.listen(rig.bridge, on_handed_over=told.extend)
    with rig.enter("outer") as outer:
        with rig.enter("well") as well:
            pass
        failed = rig.enter("failed")
        failed.close(error=ValueError("x"))
    rig.deliver()
    assert [well] == told
    assert rig.bridge.flush(1.0)
    assert [well, failed, outer] == told
    batch.shutdown()


def test_of_a_processor_that_shows_no_queue_a_good_flush_tells(bridged: Callable[..., Bridged]) -> None:
    """One that calls itself a batching one, and is not the SDK's."""
    processor = BatchOfOthers()
    rig = bridged(processors=[processor])
    told: list[Any] = []
    _bridge.listen(rig.bridge, on_handed_over=told.extend)
    with rig.enter("a") as phase:
        pass
    rig.deliver()
    assert not rig.bridge.flush(1.0)
    assert [] == told
    processor.answer = True
    assert rig.bridge.flush(1.0)
    assert [phase] == told


def test_a_forked_child_tells_its_parents_journal_nothing(bridged: Callable[..., Bridged]) -> None:
    """What a child hands over has no place in the file of the process that it was forked from."""
    rig = bridged()
    _bridge.listen(rig.bridge, on_handed_over=print, on_finished=print)
    rig.bridge.after_fork_in_child()
    assert (None, None) == (rig.bridge.on_handed_over, rig.bridge.on_finished)


class OwnBridge:
    """A user's bridge that knows nothing of journals."""


class BrokenBridge:
    """A user's bridge whose answer fails."""

    on_handed_over = None

    def journal_facts(self) -> Any:
        """Fail."""
        raise RuntimeError("no")


def test_a_users_own_bridge_need_not_know_journals(caplog: pytest.LogCaptureFixture) -> None:
    """Without our methods a bridge keeps nothing; one that raises costs a warning and no session."""
    own: Any = OwnBridge()
    assert None is _bridge.journal_facts_of(own)
    assert None is _bridge.phase_trace_of(own)
    assert not _bridge.listen(own, on_handed_over=print)
    assert None is _bridge.journal_facts_of(None)
    broken: Any = BrokenBridge()
    assert None is _bridge.journal_facts_of(broken)
    assert "could not say" in caplog.text
    assert _bridge.listen(broken, on_handed_over=print)
    assert print is broken.on_handed_over
