"""Without the SDK's own tracer: a real span at enter, or nothing until there is a tracer."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from stormphase.otel import OTelBridge, ids
from stormphase.otel._provider import Way
from stormphase.records import read_records
from stormphase.stores import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Bridged

    from stormphase import PhaseTracker


class OtherTracer(trace.Tracer):
    """A tracer of somebody else's, around the SDK's."""

    def __init__(self, tracer: trace.Tracer) -> None:
        """Wrap one."""
        self.tracer = tracer
        self.is_broken = False

    def start_span(self, *args: Any, **more: Any) -> trace.Span:
        """Start a span, or fail."""
        if self.is_broken:
            raise RuntimeError("broken")
        return self.tracer.start_span(*args, **more)

    @contextlib.contextmanager
    def start_as_current_span(self, *args: Any, **more: Any) -> Iterator[trace.Span]:
        """Start one and make it current."""
        with self.tracer.start_as_current_span(*args, **more) as span:
            yield span


class OtherProvider(trace.TracerProvider):
    """A provider of somebody else's, around the SDK's."""

    def __init__(self) -> None:
        """Wrap one that exports to memory."""
        self.exporter = InMemorySpanExporter()
        self.sdk = TracerProvider(shutdown_on_exit=False)
        self.sdk.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracers: list[OtherTracer] = []

    def get_tracer(self, *args: Any, **more: Any) -> OtherTracer:
        """Return a tracer that is not the SDK's class."""
        self.tracers.append(OtherTracer(self.sdk.get_tracer(*args, **more)))
        return self.tracers[-1]


@pytest.fixture
def provider() -> OtherProvider:
    """A provider that is not the SDK's."""
    return OtherProvider()


def real(bridged: Callable[..., Bridged], provider: OtherProvider, **options: Any) -> Bridged:
    """Return a bridge on it."""
    rig = bridged(provider=provider, **options)
    rig.exporter = provider.exporter
    return rig


def test_a_real_span_lives_from_enter_to_exit(bridged: Callable[..., Bridged], provider: OtherProvider) -> None:
    """The tree, the times and the attributes are those of the SDK's own way; the ids are the tracer's."""
    rig = real(bridged, provider)
    assert Way.REAL is rig.bridge._way
    wall_ns = rig.clock.wall_ns()
    with rig.enter("outer", {"a": 1}) as outer:
        assert outer.is_recording()
        assert f"{outer.get_span_context().span_id:016x}" == outer.scope_id
        rig.clock.advance(10)
        with rig.enter("inner") as inner:
            inner.set_attribute("late", 2)
            inner.add_event("event")
            inner.update_name("renamed")
    assert not outer.is_recording()
    rig.finish()
    spans = rig.spans
    parents = {name: None if span.parent is None else span.parent.span_id for name, span in spans.items()}
    assert {
        "session": None,
        "rank 0": spans["session"].context.span_id,
        "outer": spans["rank 0"].context.span_id,
        "renamed": spans["outer"].context.span_id,
    } == parents
    assert (wall_ns, wall_ns + 10) == (spans["outer"].start_time, spans["outer"].end_time)
    assert (1, "outer", "succeeded") == (
        spans["outer"].attributes["a"],
        spans["outer"].attributes["stormphase.phase.path"],
        spans["outer"].attributes["stormphase.phase.status"],
    )
    assert (2, ["event"]) == (spans["renamed"].attributes["late"], [event.name for event in spans["renamed"].events])
    assert (4, 4) == (rig.bridge.stats()["offered"], rig.bridge.stats()["handed_over"])


def test_users_spans_nest_in_real_ones(bridged: Callable[..., Bridged], provider: OtherProvider) -> None:
    """The current span is the phase, with the real span's ids; spans of other traces are linked to."""
    rig = real(bridged, provider)
    tracer = provider.sdk.get_tracer("users")
    with tracer.start_as_current_span("request"), rig.enter("outer") as outer:
        assert outer is trace.get_current_span()
        with tracer.start_as_current_span("own"), rig.enter("inner"):
            pass
    spans = rig.spans
    assert spans["outer"].context.span_id == spans["own"].parent.span_id
    assert spans["own"].context.span_id == spans["inner"].parent.span_id
    assert [spans["request"].context.span_id] == [link.context.span_id for link in spans["outer"].links]


def test_a_failure_is_an_error_with_its_exception_once(
    bridged: Callable[..., Bridged], provider: OtherProvider
) -> None:
    """Status, error.type and one exception event, at the origin."""
    rig = real(bridged, provider)
    with pytest.raises(ValueError, match="boom"), rig.enter("outer"), rig.enter("inner"):
        raise ValueError("boom")
    spans = rig.spans
    assert [(StatusCode.ERROR, 1), (StatusCode.ERROR, 0)] == [
        (spans[name].status.status_code, len(spans[name].events)) for name in ("inner", "outer")
    ]


def test_links_given_later_are_added_once(bridged: Callable[..., Bridged], provider: OtherProvider) -> None:
    """What the tracer was given at start is not added again at the end."""
    rig = real(bridged, provider)
    tracer = provider.sdk.get_tracer("users")
    with tracer.start_as_current_span("request") as request, rig.enter("outer") as outer:
        outer.add_link(request.get_span_context(), {"again": True})
    assert 2 == len(rig.spans["outer"].links)


def test_the_ranks_of_several_share_the_derived_trace(
    bridged: Callable[..., Bridged],
) -> None:
    """Their root cannot be sent, as its id cannot be chosen; trace and parent are the same for all."""
    rigs = [real(bridged, OtherProvider(), rank=rank, world_size=2) for rank in range(2)]
    for rig in rigs:
        with rig.enter("train"):
            pass
        rig.finish()
    assert [["train", "rank 0"], ["train", "rank 1"]] == [[span.name for span in rig.span_list] for rig in rigs]
    assert {ids.session_trace_id("launch-1", 0)} == {span.context.trace_id for rig in rigs for span in rig.span_list}
    assert {ids.root_span_id("launch-1", 0)} == {rig.span_list[1].parent.span_id for rig in rigs}


def test_a_caller_in_the_environment_is_the_parent(bridged: Callable[..., Bridged], provider: OtherProvider) -> None:
    """TRACEPARENT holds for real spans too."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    rig = real(bridged, provider, environ={"TRACEPARENT": traceparent})
    with rig.enter("train") as train:
        assert f"00-0af7651916cd43dd8448eb211c80319c-{train.scope_id}" in rig.bridge.environment()["TRACEPARENT"]
    rig.finish()
    assert 0xB7AD6B7169203331 == rig.spans["session"].parent.span_id


def test_a_tracer_that_raises_never_hurts(
    bridged: Callable[..., Bridged], provider: OtherProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """The phase goes on without a span, its children hang under the next one, and it is counted."""
    rig = real(bridged, provider)
    with caplog.at_level(logging.WARNING, "stormphase"), rig.enter("outer"):
        provider.tracers[-1].is_broken = True
        with rig.enter("broken") as broken:
            provider.tracers[-1].is_broken = False
            assert not broken.is_recording()
            with rig.enter("inner"):
                pass
    spans = rig.spans
    assert ["inner", "outer"] == list(spans)
    assert spans["outer"].context.span_id == spans["inner"].parent.span_id
    stats = rig.bridge.stats()
    assert (3, 2, 1) == (stats["offered"], stats["handed_over"], stats["dropped_error"])
    assert (1, 1) == (stats["real_span_failures"], len(caplog.records))


def test_flush_is_the_providers_own(bridged: Callable[..., Bridged], provider: OtherProvider) -> None:
    """Flushed if it can be, with its answer; one that raises is a failed flush."""
    rig = real(bridged, provider)
    assert rig.bridge.flush(1)
    asked = []
    provider.force_flush = lambda timeout_ms: asked.append(timeout_ms) is not None
    assert not rig.bridge.flush(2)
    assert [2_000] == asked

    def fail(timeout_ms: int) -> bool:
        raise RuntimeError

    provider.force_flush = fail
    assert not rig.bridge.flush(1)


def test_a_moved_phase_has_one_real_span(bridged: Callable[..., Bridged], provider: OtherProvider) -> None:
    """Released and acquired, it is started once and ended once."""
    rig = real(bridged, provider)
    token = rig.enter("moving").release()
    thread = threading.Thread(target=lambda: rig.lanes.acquire(token).close())
    thread.start()
    thread.join()
    assert ["moving"] == [span.name for span in rig.span_list]


def test_trace_per_is_told_to_have_no_effect(
    bridged: Callable[..., Bridged], provider: OtherProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """The message says what to do."""
    with caplog.at_level(logging.WARNING, "stormphase"):
        real(bridged, provider, trace_per="step")
    assert "Give OTelBridge an SDK TracerProvider" in caplog.text


def test_failures_are_logged_with_real_spans_too(bridged: Callable[..., Bridged], provider: OtherProvider) -> None:
    """Events do not depend on how spans are made, and carry the real span's ids."""
    rig = real(bridged, provider)
    with pytest.raises(ValueError, match="boom"), rig.enter("bad"):
        raise ValueError("boom")
    (record,) = rig.events
    assert rig.spans["bad"].context.span_id == record.span_id
    assert "exception.message" not in record.attributes


def test_a_forked_child_ends_neither_rank_nor_session(bridged: Callable[..., Bridged], provider: OtherProvider) -> None:
    """They are the parent's."""
    rig = real(bridged, provider)
    rig.lanes.after_fork_in_child()
    rig.bridge.after_fork_in_child()
    with rig.enter("in child"):
        pass
    rig.finish()
    assert ["in child"] == [span.name for span in rig.span_list]
    assert 1 == rig.bridge.stats()["handed_over"]


def test_nothing_happens_until_a_global_provider_is_set(
    bridged: Callable[..., Bridged], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phases before have no span and are not current; those after have one, also under phases of before."""
    rig = bridged(provider=trace.ProxyTracerProvider())
    assert Way.LATE is rig.bridge._way
    outer = rig.enter("outer")
    with rig.enter("early") as early:
        assert trace.INVALID_SPAN is trace.get_current_span()
        assert early is rig.lanes.carrier.current_phase()
    assert {} == rig.bridge.environment()
    rig.bridge.tick()
    late = OtherProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: late.sdk)
    rig.bridge.tick()
    rig.exporter = late.exporter
    with rig.enter("late"):
        pass
    outer.close()
    rig.finish()
    spans = rig.spans
    assert ["late", "rank 0", "session"] == list(spans)
    assert spans["rank 0"].context.span_id == spans["late"].parent.span_id


def test_a_provider_that_does_nothing_costs_no_span(bridged: Callable[..., Bridged]) -> None:
    """With the no-op provider nothing is started, and log events still go out."""
    rig = bridged(provider=trace.NoOpTracerProvider(), events="all")
    with rig.enter("step"):
        assert trace.INVALID_SPAN is trace.get_current_span()
    rig.finish()
    assert 2 == len(rig.events)
    assert (0, {}) == (rig.bridge.stats()["offered"], rig.bridge.environment())


def test_a_tracer_that_raises_at_start_hurts_no_start(
    bridged: Callable[..., Bridged], provider: OtherProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session goes on without its own spans; phases have theirs as soon as the tracer works."""
    monkeypatch.setattr(OtherTracer, "start_span", lambda *args, **more: 1 / 0)
    rig = real(bridged, provider)
    monkeypatch.undo()
    with rig.enter("step"):
        pass
    rig.finish()
    assert ["step"] == [span.name for span in rig.span_list]
    stats = rig.bridge.stats()
    assert (3, 1, 2) == (stats["offered"], stats["handed_over"], stats["dropped_error"])


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()], ids=repr)
def test_a_real_span_that_cannot_be_ended_is_counted(
    bridged: Callable[..., Bridged], provider: OtherProvider, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Offered and dropped, for a phase as for rank and session; a user's interrupt passes."""
    rig = real(bridged, provider)

    def fail(*arguments: object) -> None:
        raise error

    phase = rig.enter("step")
    monkeypatch.setattr(phase._real, "end", fail)
    for span in (rig.bridge._real._rank, rig.bridge._real._session):
        monkeypatch.setattr(span, "end", fail)
    with contextlib.suppress(KeyboardInterrupt):
        phase.close()
    rig.finish()
    stats = rig.bridge.stats()
    assert (3, 0, 3) == (stats["offered"], stats["handed_over"], stats["dropped_error"])


def test_a_forked_child_that_gets_a_provider_hangs_under_no_span_that_never_ends(
    bridged: Callable[..., Bridged], provider: OtherProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set after the fork, it starts no session and rank in the child; the phases are in the session's trace."""
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    rig = bridged(provider=trace.ProxyTracerProvider())
    rig.lanes.after_fork_in_child()
    rig.bridge.after_fork_in_child()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    rig.bridge.tick()
    with rig.enter("in child"):
        pass
    rig.finish()
    (span,) = provider.exporter.get_finished_spans()
    assert (ids.session_trace_id("launch-1", 0), ids.rank_span_id("launch-1", 0, 0)) == (
        span.context.trace_id,
        span.parent.span_id,
    )


@pytest.mark.parametrize("made", [OtherProvider, trace.NoOpTracerProvider])
def test_journal_store_and_sink_have_the_ids_of_the_spans(
    make_tracker: Callable[..., PhaseTracker], tmp_path: Path, made: Callable[[], Any]
) -> None:
    """Of plain phases, of those with attributes, of failed and moved ones, and of their parents; as open ones, too."""
    told: list[Any] = []
    options = {"journal": tmp_path / "j", "store": SqliteStore(tmp_path / "runs.db"), "sinks": [told.append]}
    spans = made()
    with make_tracker(bridge=OTelBridge(spans), **options) as tracker, tracker.enter_phase("train"):
        for number in range(2):
            with tracker.enter_phase("step", {"number": number}), tracker.enter_phase("load"):
                pass
        with pytest.raises(ValueError, match="no"), tracker.enter_phase("failed"), tracker.enter_phase("inner"):
            raise ValueError("no")
        tracker.acquire(tracker.enter_phase("moved").release()).close()
        assert tracker.flush()
        is_open = {each.scope_id for each in read_records(tmp_path / "j", kind="phase") if each.name == "train"}
    expected = sorted(
        (
            scope["path"],
            scope["scope_id"],
            scope["parent_scope_id"],
            (scope.get("error") or {}).get("root_cause_scope_id"),
        )
        for scope in (each.metadata["phase_scope"] for each in told if each.event_type == "phase_exit")
    )
    for source in ("j", "runs.db"):
        records = read_records(tmp_path / source, kind="phase")
        assert expected == sorted(
            (list(each.path), each.scope_id, each.parent_scope_id, each.root_cause_scope_id) for each in records
        ), source
    assert {scope_id for path, scope_id, *_ in expected if path == ["train"]} == is_open
    if isinstance(spans, OtherProvider):
        ids = {f"{span.context.span_id:016x}" for span in spans.exporter.get_finished_spans()}
        assert {scope_id for _, scope_id, *_ in expected} <= ids
