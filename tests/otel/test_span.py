"""The open phase as the API's whole Span: what is said to it is kept, bounded, and counted once."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, TraceFlags

from stormphase.otel._span import MAX_EXCEPTIONS, MAX_LINKS, PhaseSpan

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Bridged

ELSEWHERE = SpanContext(0x1234, 0x5678, is_remote=True, trace_flags=TraceFlags(1))


class UnprintableError(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        """Raise."""
        raise RuntimeError


def test_a_phase_is_a_span_of_the_api(bridged: Callable[..., Bridged]) -> None:
    """The handle is an instance of the API's Span, and the current span while it is open."""
    rig = bridged()
    with rig.enter("step") as phase:
        assert isinstance(phase, Span)
        assert trace.get_current_span() is phase
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.parametrize(
    "name", sorted(name for name in vars(Span) if not name.startswith("_") or name in ("__enter__", "__exit__"))
)
def test_every_method_of_the_api_is_ours_with_its_signature(name: str) -> None:
    """No method of the API's Span is inherited from it, and each takes what the API's takes."""
    ours, theirs = getattr(PhaseSpan, name), getattr(Span, name)
    assert ours is not theirs
    known = list(inspect.signature(ours).parameters)
    if name != "__exit__":
        assert list(inspect.signature(theirs).parameters) == known[: len(inspect.signature(theirs).parameters)]


def test_the_context_has_the_scope_id_and_the_sampled_and_random_flags(bridged: Callable[..., Bridged]) -> None:
    """Scope id and span id are one, and the derived trace id may be called random."""
    rig = bridged()
    with rig.enter("step") as phase:
        context = phase.get_span_context()
        assert phase.scope_id == f"{context.span_id:016x}"
        assert (3, False, True) == (int(context.trace_flags), context.is_remote, context.is_valid)
        assert context is phase.get_span_context()


def test_attributes_events_and_links_of_the_open_phase_are_on_its_span(bridged: Callable[..., Bridged]) -> None:
    """What libraries say to the current span arrives with the phase."""
    rig = bridged()
    with rig.enter("step", {"a": 1}):
        span = trace.get_current_span()
        span.set_attribute("b", 2)
        span.set_attributes({"c": [1, 2], "a": 9})
        rig.clock.advance(5)
        span.add_event("cache miss", {"key": "k"})
        span.add_event("earlier", timestamp=7)
        span.add_link(ELSEWHERE, {"why": "batch"})
        span.update_name("renamed")
    span = rig.spans["renamed"]
    assert (9, 2, (1, 2)) == (span.attributes["a"], span.attributes["b"], span.attributes["c"])
    assert [("earlier", 7, {}), ("cache miss", span.end_time, {"key": "k"})] == [
        (event.name, event.timestamp, dict(event.attributes)) for event in span.events
    ]
    assert [(ELSEWHERE, {"why": "batch"})] == [(link.context, dict(link.attributes)) for link in span.links]
    assert "step" == span.attributes["stormphase.phase.path"]


def test_end_is_ignored_and_counted(bridged: Callable[..., Bridged]) -> None:
    """A library that ends the current span does not end the phase."""
    rig = bridged()
    with rig.enter("step") as phase:
        phase.end()
        phase.end(12)
        assert phase.is_recording()
    assert 2 == rig.lanes.counts["span_end_ignored"]
    assert ["step"] == [span.name for span in rig.span_list]


def test_nothing_is_recorded_once_the_phase_has_ended(bridged: Callable[..., Bridged]) -> None:
    """A span kept beyond its phase records no more, and what is said to it is counted."""
    rig = bridged()
    with rig.enter("step") as phase:
        assert phase.is_recording()
    assert not phase.is_recording()
    phase.set_attribute("late", 1)
    phase.add_event("late")
    phase.add_link(ELSEWHERE)
    phase.update_name("late")
    phase.set_status(StatusCode.ERROR)
    phase.record_exception(ValueError())
    span = rig.spans["step"]
    assert ("late" not in span.attributes, (), (), StatusCode.UNSET) == (
        True,
        span.events,
        span.links,
        span.status.status_code,
    )
    counts = rig.lanes.counts
    assert (1, 1, 1, 3) == (
        counts["attributes_after_end"],
        counts["events_dropped"],
        counts["links_dropped"],
        counts["span_calls_after_end"],
    )


def test_an_unsampled_phase_does_not_record(bridged: Callable[..., Bridged]) -> None:
    """Libraries that ask is_recording() save themselves the work, as with the SDK's own spans."""
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    rig = bridged(sampler=ALWAYS_OFF)
    with rig.enter("step") as phase:
        assert not phase.is_recording()
        assert (2, True) == (int(phase.get_span_context().trace_flags), phase.get_span_context().is_valid)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], (StatusCode.UNSET, None)),
        ([(StatusCode.ERROR, "bad")], (StatusCode.ERROR, "bad")),
        ([(Status(StatusCode.ERROR, "bad"), None)], (StatusCode.ERROR, "bad")),
        ([(StatusCode.OK, "text that OK cannot have")], (StatusCode.OK, None)),
        ([(StatusCode.OK, None), (StatusCode.ERROR, "too late")], (StatusCode.OK, None)),
        ([(StatusCode.ERROR, "bad"), (StatusCode.OK, None)], (StatusCode.OK, None)),
        ([(StatusCode.ERROR, "bad"), (StatusCode.UNSET, None)], (StatusCode.ERROR, "bad")),
    ],
)
def test_a_status_set_by_the_user_is_the_spans(
    bridged: Callable[..., Bridged],
    said: list[tuple[Status | StatusCode, str | None]],
    expected: tuple[StatusCode, str],
) -> None:
    """The rules are the SDK's: OK is final, UNSET is nothing."""
    rig = bridged()
    with rig.enter("step") as phase:
        for status, description in said:
            phase.set_status(status, description)
    status = rig.spans["step"].status
    assert expected == (status.status_code, status.description)
    assert "succeeded" == rig.spans["step"].attributes["stormphase.phase.status"]


@pytest.mark.parametrize("status", ["ERROR", 2, None])
def test_a_status_that_is_none_is_ignored(bridged: Callable[..., Bridged], status: object) -> None:
    """As by the SDK's own spans; it could not be sent, and nothing of its batch."""
    rig = bridged()
    with rig.enter("step"):
        trace.get_current_span().set_status(status)  # type: ignore[arg-type]
    assert StatusCode.UNSET is rig.spans["step"].status.status_code


class Unprintable:
    """An object whose text cannot be had."""

    def __str__(self) -> str:
        """Raise."""
        raise RuntimeError

    __repr__ = __str__


def test_a_name_without_text_never_raises_into_training(bridged: Callable[..., Bridged]) -> None:
    """Nor does an event's, nor a description; the span is sent."""
    rig = bridged()
    with rig.enter("step"):
        span = trace.get_current_span()
        span.update_name(Unprintable())  # type: ignore[arg-type]
        span.add_event(Unprintable())  # type: ignore[arg-type]
        span.set_status(StatusCode.ERROR, Unprintable())  # type: ignore[arg-type]
    sent = rig.spans["<unprintable Unprintable>"]
    assert ["<unprintable Unprintable>"] * 2 == [sent.events[0].name, sent.status.description]


def test_attributes_of_links_and_exceptions_that_are_no_mapping(bridged: Callable[..., Bridged]) -> None:
    """With `on_misuse="record"` they are left out and counted, as at enter; the link and the exception are there."""
    rig = bridged(on_misuse="record")
    with rig.enter("step"):
        span = trace.get_current_span()
        span.add_link(ELSEWHERE, 3)  # type: ignore[arg-type]
        span.record_exception(ValueError("x"), 3)  # type: ignore[arg-type]
    sent = rig.spans["step"]
    assert [{}] == [dict(link.attributes or {}) for link in sent.links]
    assert ["exception"] == [event.name for event in sent.events]
    assert 2 == rig.lanes.attribute_counts.failed


def test_a_failure_outranks_a_status_set_by_the_user(bridged: Callable[..., Bridged]) -> None:
    """A phase that failed is an error, whatever was said to its span."""
    rig = bridged()
    phase = rig.enter("step")
    phase.set_status(StatusCode.OK)
    with pytest.raises(ValueError, match="boom"), phase:
        raise ValueError("boom")
    status = rig.spans["step"].status
    assert (StatusCode.ERROR, "ValueError: boom") == (status.status_code, status.description)


def test_an_exception_that_use_span_records_and_that_ends_the_phase_counts_once(
    bridged: Callable[..., Bridged],
) -> None:
    """`use_span` on the current phase and the phase itself see the same exception: one event, with its traceback."""
    rig = bridged()
    with pytest.raises(ValueError, match="boom"), rig.enter("step") as phase, trace.use_span(phase):
        raise ValueError("boom")
    events = rig.spans["step"].events
    assert ["exception"] == [event.name for event in events]
    assert ("ValueError", "boom") == (events[0].attributes["exception.type"], events[0].attributes["exception.message"])
    assert "in test_an_exception" in events[0].attributes["exception.stacktrace"]


def test_an_exception_from_inside_is_not_recorded_again_outside(bridged: Callable[..., Bridged]) -> None:
    """The phase in which it arose has it in full; those that it passes refer to that one."""
    rig = bridged()
    with (
        pytest.raises(ValueError, match="boom"),
        rig.enter("outer") as outer,
        trace.use_span(outer),
        rig.enter("inner"),
    ):
        raise ValueError("boom")
    assert ["exception"] == [event.name for event in rig.spans["inner"].events]
    outer = rig.spans["outer"]
    assert () == outer.events
    assert rig.spans["inner"].context.span_id == int(outer.attributes["stormphase.phase.root_cause_scope_id"], 16)
    assert (StatusCode.ERROR, "ValueError") == (outer.status.status_code, outer.attributes["error.type"])


def test_an_exception_that_was_handled_is_an_event_and_no_failure(bridged: Callable[..., Bridged]) -> None:
    """What the user records by hand is shown with its attributes, and the phase succeeds."""
    rig = bridged()
    with rig.enter("step") as phase:
        try:
            raise KeyError("k")
        except KeyError as error:
            phase.record_exception(error, {"retry": True}, timestamp=5)
    span = rig.spans["step"]
    assert [("exception", 5, "KeyError", "'k'", True)] == [
        (
            event.name,
            event.timestamp,
            event.attributes["exception.type"],
            event.attributes["exception.message"],
            event.attributes["retry"],
        )
        for event in span.events
    ]
    assert StatusCode.UNSET is span.status.status_code


def test_an_exception_without_text_is_no_exception_to_this(bridged: Callable[..., Bridged]) -> None:
    """An exception whose __str__ raises is recorded and never replaces the user's."""
    rig = bridged()
    with rig.enter("step") as phase:
        phase.record_exception(UnprintableError())
    assert "<unprintable UnprintableError>" == rig.spans["step"].events[0].attributes["exception.message"]


def test_links_and_exceptions_are_bounded_and_drops_counted(bridged: Callable[..., Bridged]) -> None:
    """A loop that links or records without end costs no memory without end; invalid links are dropped."""
    rig = bridged()
    with rig.enter("step") as phase:
        phase.add_link(trace.INVALID_SPAN_CONTEXT)
        for number in range(max(MAX_LINKS, MAX_EXCEPTIONS) + 2):
            phase.add_link(ELSEWHERE)
            phase.record_exception(ValueError(number))
    span = rig.spans["step"]
    assert (MAX_LINKS, MAX_EXCEPTIONS) == (len(span.links), len(span.events))
    assert 3 == rig.lanes.counts["links_dropped"]
    assert MAX_LINKS + 2 - MAX_EXCEPTIONS == rig.lanes.counts["events_dropped"]


def test_a_retried_phase_links_to_the_one_before(bridged: Callable[..., Bridged]) -> None:
    """The second attempt's span says which span it repeats, and its number."""
    rig = bridged()
    with pytest.raises(ValueError, match="boom"), rig.enter("load") as first:
        raise ValueError("boom")
    with rig.lanes.retry(first, None):
        pass
    second = rig.span_list[-1]
    assert [Link(first.get_span_context()).context] == [link.context for link in second.links]
    assert (0, 1) == tuple(span.attributes["stormphase.phase.attempt"] for span in rig.span_list)


def test_handled_exceptions_that_read_like_the_last_one_stay_events(bridged: Callable[..., Bridged]) -> None:
    """A retry loop that records each try and gives up: only the last record is taken for what ended the phase."""
    rig = bridged()
    phase = rig.enter("step")
    for _ in range(3):
        phase.record_exception(OSError("busy"))
        rig.clock.advance(5)
    phase.close(error=OSError("busy"))
    assert ["exception"] * 3 == [event.name for event in rig.spans["step"].events]


def test_one_exception_recorded_twice_counts_once(bridged: Callable[..., Bridged]) -> None:
    """By `use_span` around `use_span`, say."""
    rig = bridged()
    with rig.enter("step") as phase:
        error = ValueError("handled")
        phase.record_exception(error)
        phase.record_exception(error)
        phase.record_exception(ValueError("handled"))
    assert ["exception"] * 2 == [event.name for event in rig.spans["step"].events]


@pytest.mark.parametrize("timestamp", ["soon", -1, 1 << 64, 1.5], ids=repr)
def test_a_time_that_no_backend_takes_becomes_that_of_the_end(
    bridged: Callable[..., Bridged], timestamp: object
) -> None:
    """It costs neither the span nor the batch that an exporter would send with it."""
    rig = bridged()
    with rig.enter("step") as phase:
        phase.add_event("event", timestamp=timestamp)
        phase.record_exception(ValueError(), timestamp=timestamp)
        rig.clock.advance(5)
    span = rig.spans["step"]
    assert [("event", span.end_time), ("exception", span.end_time)] == [
        (event.name, event.timestamp) for event in span.events
    ]
