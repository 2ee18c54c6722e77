"""Boundaries as events: log-based with the phase's own time and span, or on spans; pending spans."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry._logs import NoOpLoggerProvider, SeverityNumber
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Bridged

ENTER, EXIT = "stormphase.phase.enter", "stormphase.phase.exit"
SECOND = 1_000_000_000


def fail(rig: Bridged, name: str) -> None:
    """Let a phase fail."""
    with pytest.raises(ValueError, match="boom"), rig.enter(name):
        raise ValueError("boom")


def test_all_boundaries_with_their_own_times_and_spans(bridged: Callable[..., Bridged]) -> None:
    """Event name, time of the boundary, ids of the phase's span, INFO, no body, no severity text."""
    rig = bridged(events="all")
    wall_ns = rig.clock.wall_ns()
    with rig.enter("outer", {"a": 1}) as outer:
        rig.clock.advance(5)
        outer.set_attribute("b", 2)
    rig.clock.advance(100)
    enter, exit_ = rig.events
    assert [(ENTER, wall_ns), (EXIT, wall_ns + 5)] == [(record.event_name, record.timestamp) for record in rig.events]
    for record in (enter, exit_):
        context = outer.get_span_context()
        assert (context.trace_id, context.span_id) == (record.trace_id, record.span_id)
        assert (SeverityNumber.INFO, None, None) == (record.severity_number, record.severity_text, record.body)
        assert wall_ns + 105 == record.observed_timestamp
    common = {"stormphase.session.id": "launch-1", "stormphase.rank": 0, "stormphase.phase.path": "outer", "a": 1}
    assert {**common, "stormphase.phase.status": "active"} == dict(enter.attributes)
    assert {
        **common,
        "b": 2,
        "stormphase.phase.status": "succeeded",
        "stormphase.phase.duration": 5e-9,
    } == dict(exit_.attributes)


def test_scope_and_resource_of_events(bridged: Callable[..., Bridged]) -> None:
    """Events come from the same scope as spans, on the logger provider's resource."""
    rig = bridged(events="all")
    with rig.enter("step"):
        pass
    rig.deliver()
    item = rig.log_exporter.get_finished_logs()[0]
    scope = item.instrumentation_scope
    assert ("stormphase", rig.spans["step"].instrumentation_scope.schema_url) == (scope.name, scope.schema_url)
    assert rig.bridge._logger_provider.resource is (getattr(item, "resource", None) or item.log_record.resource)


@pytest.mark.parametrize(
    ("error", "severity"),
    [
        (None, SeverityNumber.INFO),
        (ValueError(), SeverityNumber.ERROR),
        (KeyboardInterrupt(), SeverityNumber.WARN),
    ],
)
def test_severities(bridged: Callable[..., Bridged], error: BaseException | None, severity: SeverityNumber) -> None:
    """Failures are errors, cancelled phases warnings."""
    rig = bridged(events="all")
    rig.enter("step").close(error=error)
    assert [SeverityNumber.INFO, severity] == [record.severity_number for record in rig.events]


def test_an_abandoned_phase_is_a_warning(bridged: Callable[..., Bridged]) -> None:
    """So is one that was closed over."""
    rig = bridged(events="all", on_misuse="record")
    outer = rig.enter("outer")
    rig.enter("inner")
    outer.close()
    assert SeverityNumber.WARN is next(
        record.severity_number for record in rig.events if record.attributes["stormphase.phase.status"] == "abandoned"
    )


def test_long_phases_are_announced_while_they_run(bridged: Callable[..., Bridged]) -> None:
    """By default: an enter once a phase has been open for a second, with the time of its enter, and its exit."""
    rig = bridged()
    wall_ns = rig.clock.wall_ns()
    with rig.enter("train"):
        rig.clock.advance(SECOND - 1)
        rig.bridge.tick()
        assert [] == rig.events
        rig.clock.advance(1)
        with rig.enter("short"):
            rig.bridge.tick()
            rig.bridge.tick()
            assert [(ENTER, "train")] == rig.event_names
            assert wall_ns == rig.events[0].timestamp
    assert [(ENTER, "train"), (EXIT, "train")] == rig.event_names


def test_a_long_phase_that_no_tick_saw_still_has_both_events(bridged: Callable[..., Bridged]) -> None:
    """The worker may be busy."""
    rig = bridged()
    with rig.enter("train"):
        rig.clock.advance(SECOND)
    assert [(ENTER, "train"), (EXIT, "train")] == rig.event_names


def test_failures_always_have_an_exit(bridged: Callable[..., Bridged]) -> None:
    """Also short ones."""
    rig = bridged()
    with rig.enter("train"):
        fail(rig, "bad")
    assert [(EXIT, "train / bad")] == rig.event_names
    assert "ValueError" == rig.events[0].attributes["error.type"]


def test_all_emits_no_enter_twice(bridged: Callable[..., Bridged]) -> None:
    """A phase that was announced while it ran has one enter event."""
    rig = bridged(events="all")
    with rig.enter("train"):
        rig.clock.advance(SECOND)
        rig.bridge.tick()
    assert [(ENTER, "train"), (EXIT, "train")] == rig.event_names


def test_all_have_their_enter_out_when_a_flush_has_returned(bridged: Callable[..., Bridged]) -> None:
    """Also of what is still open, however short; its exit comes alone then, and a tick does not repeat it."""
    rig = bridged(events="all", pending=True)
    outer, inner = rig.enter("outer"), rig.enter("inner")
    rig.bridge.flush(1)
    entered = [(ENTER, "outer"), (ENTER, "outer / inner")]
    assert entered == rig.event_names
    inner.close()
    rig.clock.advance(SECOND)
    rig.bridge.tick()
    outer.close()
    assert [*entered, (EXIT, "outer / inner"), (EXIT, "outer")] == rig.event_names
    assert [True, None, None] == [span.attributes.get("stormphase.phase.pending") for span in rig.span_list]


def test_long_phases_are_found_on_every_lane_and_while_paused(bridged: Callable[..., Bridged]) -> None:
    """Threads, and phases that nobody runs at the moment."""
    import threading

    rig = bridged()
    entered, done = threading.Event(), threading.Event()

    def work() -> None:
        with rig.enter("loader"):
            entered.set()
            done.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait(10)
    paused = rig.enter("paused")
    paused.pause()
    rig.clock.advance(SECOND)
    rig.bridge.tick()
    assert {(ENTER, "loader"), (ENTER, "paused")} == set(rig.event_names)
    done.set()
    thread.join()
    paused.resume()
    paused.close()


def test_off_emits_nothing(bridged: Callable[..., Bridged]) -> None:
    """Not even of failures."""
    rig = bridged(events="off")
    with rig.enter("train"):
        rig.clock.advance(SECOND)
        rig.bridge.tick()
        fail(rig, "bad")
    assert [] == rig.events


@pytest.mark.parametrize(
    ("mode", "on_train", "on_step"),
    [("all", ["enter", "exit"], ["enter", "exit"]), ("long", ["enter", "exit"], []), ("off", [], [])],
)
def test_events_on_spans(bridged: Callable[..., Bridged], mode: str, on_train: list[str], on_step: list[str]) -> None:
    """For backends without logs the boundaries are on the phase's span, and no log event goes out."""
    rig = bridged(events=mode, events_to="span")
    with rig.enter("train"):
        with rig.enter("step"):
            rig.clock.advance(3)
        rig.clock.advance(SECOND)
        rig.bridge.tick()
    spans = rig.spans
    for name, expected in (("train", on_train), ("step", on_step)):
        events = spans[name].events
        assert [f"stormphase.phase.{what}" for what in expected] == [event.name for event in events]
        if events:
            assert [spans[name].start_time, spans[name].end_time] == [event.timestamp for event in events]
            assert {"stormphase.phase.status": "succeeded"} == dict(events[1].attributes)
    assert [] == rig.events


def test_every_phase_of_a_loop_has_its_boundaries_on_its_span(bridged: Callable[..., Bridged]) -> None:
    """The quick way for ordinary phases leaves out neither."""
    rig = bridged(events="all", events_to="span")
    with rig.enter("train"):
        for _ in range(3):
            with rig.enter("step"):
                rig.clock.advance(3)
    for span in rig.span_list:
        assert [(ENTER, span.start_time, {}), (EXIT, span.end_time, {"stormphase.phase.status": "succeeded"})] == [
            (event.name, event.timestamp, dict(event.attributes)) for event in span.events
        ]


def test_every_phase_of_a_loop_has_its_log_events(bridged: Callable[..., Bridged]) -> None:
    """Likewise where they go to logs."""
    rig = bridged(events="all")
    with rig.enter("train"):
        for _ in range(3):
            with rig.enter("step"):
                pass
    assert [(ENTER, "train / step"), (EXIT, "train / step")] * 3 == rig.event_names[:6]


def test_an_unsampled_failure_is_never_silent(bridged: Callable[..., Bridged]) -> None:
    """Its exit event goes out at ERROR, with the exception that no span will show."""
    for to in ("logs", "span"):
        rig = bridged(sampler=ALWAYS_OFF, events_to=to)
        fail(rig, "bad")
        (record,) = rig.events
        assert (EXIT, SeverityNumber.ERROR, "boom") == (
            record.event_name,
            record.severity_number,
            record.attributes["exception.message"],
        )
        assert "Traceback" in record.attributes["exception.stacktrace"]
        assert not record.trace_flags.sampled
        assert [] == rig.span_list


@pytest.mark.parametrize(
    ("opt_in", "on_span", "in_log"),
    [("", True, False), ("logs", False, True), ("logs/dup", True, True), ("http, logs", False, True)],
)
def test_where_exceptions_go(bridged: Callable[..., Bridged], opt_in: str, *, on_span: bool, in_log: bool) -> None:
    """OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN decides: on the span, in the log event, or both."""
    rig = bridged(environ={"OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN": opt_in})
    fail(rig, "bad")
    assert on_span is ("exception" in [event.name for event in rig.spans["bad"].events])
    assert in_log is ("exception.message" in rig.events[0].attributes)
    assert "ValueError" == rig.events[0].attributes["error.type"]


def test_an_exception_in_logs_only_at_its_origin(bridged: Callable[..., Bridged]) -> None:
    """The phases that it passes refer to that one."""
    rig = bridged(environ={"OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN": "logs"})
    with pytest.raises(ValueError, match="boom"), rig.enter("outer"), rig.enter("inner") as inner:
        raise ValueError("boom")
    assert [True, False] == ["exception.message" in record.attributes for record in rig.events]
    assert {inner.scope_id} == {record.attributes["stormphase.phase.root_cause_scope_id"] for record in rig.events}


def test_without_logs_nothing_is_emitted(bridged: Callable[..., Bridged]) -> None:
    """A provider that takes nothing costs nothing."""
    rig = bridged(events="all", logger_provider=NoOpLoggerProvider())
    with rig.enter("step"):
        pass
    rig.finish()
    assert "events_emitted" not in rig.bridge.stats()
    assert not rig.bridge._events.has_logger


def test_a_logger_that_says_no_gets_nothing(bridged: Callable[..., Bridged]) -> None:
    """What `enabled()` refuses is not built, and counted."""
    rig = bridged(events="all")
    rig.bridge._events._sink._enabled = lambda **question: question["event_name"] == EXIT
    with rig.enter("step"):
        pass
    assert [(EXIT, "step")] == rig.event_names
    assert 1 == rig.bridge.stats()["events_not_enabled"]


def test_a_log_processor_that_raises_is_counted_and_told_once(
    bridged: Callable[..., Bridged], caplog: pytest.LogCaptureFixture
) -> None:
    """Spans arrive all the same."""
    rig = bridged(events="all")

    def broken(**fields: Any) -> None:
        raise RuntimeError

    rig.bridge._events._sink.emit = broken
    with caplog.at_level(logging.WARNING, "stormphase"):
        with rig.enter("step"):
            pass
        rig.deliver()
    assert (2, 1) == (rig.bridge.stats()["events_failed"], len(caplog.records))
    assert ["step"] == [span.name for span in rig.span_list]


def test_pending_spans_show_a_phase_while_it_runs(bridged: Callable[..., Bridged]) -> None:
    """After a second: a span of a new id beneath the phase's own, marked, and the real one when it ends."""
    rig = bridged(pending=True)
    with rig.enter("train", {"epochs": 3}) as phase:
        rig.clock.advance(SECOND)
        rig.bridge.tick()
        rig.bridge.tick()
        (pending,) = rig.span_list
        own = phase.get_span_context()
        assert ("train", own.trace_id, own.span_id) == (pending.name, pending.context.trace_id, pending.parent.span_id)
        assert own.span_id != pending.context.span_id
        assert (True, "active", 3) == tuple(
            pending.attributes[key] for key in ("stormphase.phase.pending", "stormphase.phase.status", "epochs")
        )
        assert SECOND == pending.end_time - pending.start_time
    rig.finish()
    assert ["train", "train", "rank 0", "session"] == [span.name for span in rig.span_list]
    assert "stormphase.phase.pending" not in rig.spans["train"].attributes
    assert (4, 4) == (rig.bridge.stats()["offered"], rig.bridge.stats()["handed_over"])


def test_pending_spans_are_within_the_budget(bridged: Callable[..., Bridged]) -> None:
    """A pending span is paid for together with what it hangs under; what does not fit is counted."""
    rig = bridged(pending=True, span_budget=3)
    with rig.enter("outer"), rig.enter("inner"):
        rig.clock.advance(SECOND)
        rig.bridge.tick()
    rig.finish()
    ids = {span.context.span_id for span in rig.span_list}
    assert [] == [span.name for span in rig.span_list if span.parent is not None and span.parent.span_id not in ids]
    stats = rig.bridge.stats()
    assert stats["offered"] == stats["handed_over"] + stats["dropped_over_budget"]


def test_an_unsampled_phase_has_no_pending_span(bridged: Callable[..., Bridged]) -> None:
    """The sampler's word is final."""
    rig = bridged(pending=True, sampler=ALWAYS_OFF)
    with rig.enter("outer"):
        rig.clock.advance(SECOND)
        rig.bridge.tick()
    assert [] == rig.span_list
