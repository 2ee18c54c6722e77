"""Asking the user's sampler: once per trace where that is enough, for every phase where it is not."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, TraceState, get_current_span

from stormphase.otel._sampling import children_inherit

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Bridged


class Asked(Sampler):
    """A sampler that notes what it is asked, and drops what it is told to drop."""

    def __init__(self, dropped: tuple[str, ...] = (), decision: Decision = Decision.DROP) -> None:
        """Note nothing yet."""
        self.questions: list[tuple[Any, ...]] = []
        self.dropped = dropped
        self.decision = decision

    def should_sample(  # noqa: PLR0917 - OTel's signature
        self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None
    ) -> SamplingResult:
        """Note the question."""
        self.questions.append((name, trace_id, dict(attributes), list(links), kind, parent_context))
        if name in self.dropped:
            return SamplingResult(self.decision)
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {"sampler": name}, TraceState([("rule", name.split()[0])]))

    def get_description(self) -> str:
        """Name it."""
        return "Asked"


class Broken(Sampler):
    """A sampler that raises."""

    def should_sample(self, *args: Any, **more: Any) -> SamplingResult:
        """Raise."""
        raise RuntimeError("broken")

    def get_description(self) -> str:
        """Name it."""
        return "Broken"


class Everything(SpanProcessor):
    """Keeps what it gets, sampled or not."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.names: list[str] = []

    def on_end(self, span: Any) -> None:
        """Keep its name."""
        self.names.append(span.name)

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Do nothing."""
        return True


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (ALWAYS_ON, True),
        (ALWAYS_OFF, True),
        (DEFAULT_ON, True),
        (DEFAULT_OFF, True),
        (TraceIdRatioBased(0.5), True),
        (ParentBasedTraceIdRatio(0.5), True),
        (ParentBased(Asked()), True),
        (ParentBased(ALWAYS_ON, remote_parent_sampled=ALWAYS_OFF), True),
        (ParentBased(ALWAYS_ON, local_parent_sampled=ALWAYS_OFF), False),
        (ParentBased(ALWAYS_ON, local_parent_not_sampled=ALWAYS_ON), False),
        (Asked(), False),
    ],
    ids=(
        "on",
        "off",
        "parent on",
        "parent off",
        "ratio",
        "parent ratio",
        "parent other",
        "remote",
        "local",
        "not",
        "other",
    ),
)
def test_which_samplers_are_asked_once(sampler: Sampler, *, expected: bool) -> None:
    """Those of the SDK by which a child is what its parent is."""
    assert expected is children_inherit(sampler)


def test_the_root_is_asked_once_with_what_the_root_span_says(bridged: Callable[..., Bridged]) -> None:
    """Name, kind, attributes, links and an empty context; the phases beneath inherit the answer."""
    asked = Asked()
    rig = bridged(sampler=ParentBased(asked), attempt=1)
    with rig.enter("train"), rig.enter("step"):
        pass
    rig.finish()
    ((name, trace_id, attributes, links, kind, context),) = asked.questions
    session = rig.spans["session"]
    assert ("session", session.context.trace_id, SpanKind.INTERNAL) == (name, trace_id, kind)
    assert {**attributes, "sampler": "session"} == dict(session.attributes)
    assert [link.context for link in session.links] == [link.context for link in links]
    assert not get_current_span(context).get_span_context().is_valid
    assert context is not None
    assert {"rule": "session"} == dict(rig.spans["step"].context.trace_state)


def test_every_rank_asks_the_same_question(bridged: Callable[..., Bridged]) -> None:
    """Ranks with the same sampler come to the same decision."""
    questions = []
    for rank in range(2):
        asked = Asked()
        bridged(sampler=ParentBased(asked), rank=rank, world_size=2)
        questions += [question[:5] for question in asked.questions]
    assert questions[0] == questions[1]


def test_an_unknown_sampler_is_asked_for_every_phase(bridged: Callable[..., Bridged]) -> None:
    """It sees the phase's attributes at enter, its parent, and may drop one and keep another; it may add attributes."""
    asked = Asked(dropped=("noise",))
    rig = bridged(sampler=asked)
    with rig.enter("train", {"epochs": 3}) as train:
        with rig.enter("noise") as noise:
            assert not noise.is_recording()
        with rig.enter("step"):
            pass
    rig.finish()
    assert ["session", "train", "noise", "step"] == [question[0] for question in asked.questions]
    assert {"epochs": 3} == asked.questions[1][2]
    parents = [get_current_span(question[5]).get_span_context() for question in asked.questions]
    assert [0, rig.bridge._traces.rank.span_id] + [int(train.scope_id, 16)] * 2 == [
        parent.span_id for parent in parents
    ]
    spans = rig.spans
    assert ["step", "train", "rank 0", "session"] == list(spans)
    assert ("step", {"rule": "step"}) == (spans["step"].attributes["sampler"], dict(spans["step"].context.trace_state))
    assert 1 == rig.bridge.stats()["dropped_unsampled"]


def test_a_phase_that_is_only_recorded_goes_to_processors_and_not_to_exporters(
    bridged: Callable[..., Bridged],
) -> None:
    """RECORD_ONLY is what the SDK makes of it."""
    everything = Everything()
    rig = bridged(sampler=Asked(dropped=("noise",), decision=Decision.RECORD_ONLY), processors=(everything,))
    with rig.enter("noise") as noise:
        assert noise.is_recording()
        assert not noise.get_span_context().trace_flags.sampled
    rig.finish()
    assert ["noise", "rank 0", "session"] == everything.names
    assert ["rank 0", "session"] == [span.name for span in rig.span_list]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_sampler_that_raises_samples_nothing(
    bridged: Callable[..., Bridged], caplog: pytest.LogCaptureFixture, *, is_known: bool
) -> None:
    """It never raises into training."""
    with caplog.at_level(logging.WARNING, "stormphase"):
        rig = bridged(sampler=ParentBased(Broken()) if is_known else Broken())
        with rig.enter("train"):
            pass
    assert [] == rig.span_list
    assert "the sampler" in caplog.text


def test_the_same_decision_holds_where_spans_are_started(bridged: Callable[..., Bridged]) -> None:
    """With a processor that sees starts the sampler is not asked again."""
    from opentelemetry.sdk.trace import SpanProcessor as Base

    class Starting(Base):
        def on_start(self, span, parent_context=None) -> None:
            span.set_attribute("started", True)

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    asked = Asked(dropped=("noise",))
    rig = bridged(sampler=asked, processors=(Starting(),))
    with rig.enter("train"), rig.enter("noise"):
        pass
    rig.finish()
    assert ["session", "train", "noise"] == [question[0] for question in asked.questions]
    assert ["train", "rank 0", "session"] == [span.name for span in rig.span_list]
    assert "train" == rig.spans["train"].attributes["sampler"]


@pytest.mark.parametrize("trace_per", [None, "step"])
def test_a_samplers_attributes_are_on_the_span_it_was_asked_about(
    bridged: Callable[..., Bridged], trace_per: str | None
) -> None:
    """As with the SDK's own spans, what lies beneath inherits the decision and nothing else."""
    from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult

    class Adding(Sampler):
        def should_sample(  # noqa: PLR0917 - OTel's signature
            self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None
        ):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, {"asked about": name})

        def get_description(self) -> str:
            return "Adding"

    rig = bridged(sampler=ParentBased(Adding()), trace_per=trace_per)
    with rig.enter("train"), rig.enter("step"), rig.enter("inner"):
        pass
    rig.finish()
    asked = {
        name: span.attributes["asked about"] for name, span in rig.spans.items() if "asked about" in span.attributes
    }
    assert ({"session": "session"} if trace_per is None else {"session": "session", "step": "step"}) == asked
