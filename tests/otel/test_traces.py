"""One trace for all ranks, traces of their own for steps, and the way into and out of the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, TraceIdRatioBased

from stormphase._paths import PathTable
from stormphase.otel import ids
from stormphase.otel._traces import Occurrences, caller_of, environment_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Bridged

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03"


def test_all_ranks_derive_one_trace(bridged: Callable[..., Bridged]) -> None:
    """The ids of trace, root and ranks are those that every rank derives alone."""
    rigs = [bridged(rank=rank, world_size=2) for rank in range(2)]
    for rig in rigs:
        with rig.enter("train"):
            pass
        rig.finish()
    assert {ids.session_trace_id("launch-1", 0)} == {span.context.trace_id for rig in rigs for span in rig.span_list}
    assert ids.root_span_id("launch-1", 0) == rigs[0].spans["session"].context.span_id
    for rank, rig in enumerate(rigs):
        assert ids.rank_span_id("launch-1", 0, rank) == rig.spans[f"rank {rank}"].context.span_id
        assert ids.rank_span_id("launch-1", 0, rank) == rig.spans["train"].parent.span_id


def test_a_restart_is_a_new_trace_whose_root_links_to_the_one_before(bridged: Callable[..., Bridged]) -> None:
    """The link names the root span of the attempt before by its derived ids."""
    first, second = bridged(attempt=0), bridged(attempt=1)
    first.finish()
    second.finish()
    before, after = first.spans["session"], second.spans["session"]
    assert before.context.trace_id != after.context.trace_id
    assert () == before.links
    assert [(before.context.trace_id, before.context.span_id)] == [
        (link.context.trace_id, link.context.span_id) for link in after.links
    ]
    assert (1, 1) == (
        after.attributes["stormphase.session.attempt"],
        second.spans["rank 0"].attributes["stormphase.session.attempt"],
    )


def test_the_session_and_rank_spans_say_who_they_are(bridged: Callable[..., Bridged]) -> None:
    """The root names the job; a rank's span its host and process."""
    rig = bridged(rank=0, world_size=1)
    rig.finish()
    assert {
        "stormphase.session.id": "launch-1",
        "stormphase.session.attempt": 0,
        "stormphase.world_size": 1,
        "stormphase.session.name": "job",
    } == dict(rig.spans["session"].attributes)
    rank = rig.spans["rank 0"].attributes
    assert ("host-1", 4711, 0) == (rank["host.name"], rank["process.pid"], rank["stormphase.rank"])


def test_traceparent_makes_the_session_a_child_of_the_caller(bridged: Callable[..., Bridged]) -> None:
    """Trace id, remote parent, trace state and flags are the caller's."""
    rig = bridged(environ={"TRACEPARENT": TRACEPARENT, "TRACESTATE": "vendor=1"})
    with rig.enter("train"):
        pass
    rig.finish()
    session = rig.spans["session"]
    assert (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331) == (session.parent.trace_id, session.parent.span_id)
    assert session.parent.is_remote
    assert {session.parent.trace_id} == {span.context.trace_id for span in rig.span_list}
    assert {"vendor": "1"} == dict(rig.spans["train"].context.trace_state)
    assert ids.root_span_id("launch-1", 0) == session.context.span_id


def test_a_caller_that_was_not_sampled_leaves_the_session_unsampled(bridged: Callable[..., Bridged]) -> None:
    """ParentBased follows the flag of TRACEPARENT."""
    rig = bridged(environ={"TRACEPARENT": TRACEPARENT[:-2] + "00"})
    with rig.enter("train") as phase:
        assert 0 == int(phase.get_span_context().trace_flags)
    rig.finish()
    assert [] == rig.span_list


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        TRACEPARENT.upper(),
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "ff" + TRACEPARENT[2:],
        TRACEPARENT + "-more",
    ],
)
def test_a_malformed_traceparent_is_none(header: str) -> None:
    """What is no trace context is as if it were not set."""
    assert None is caller_of({"TRACEPARENT": header})


def test_unknown_flags_of_the_caller_are_not_passed_on() -> None:
    """Bits that nobody has defined yet are masked."""
    assert 3 == int(caller_of({"TRACEPARENT": TRACEPARENT[:-2] + "ff"}).trace_flags)


def test_workers_get_the_current_phase_else_the_rank(bridged: Callable[..., Bridged]) -> None:
    """What a child process finds in its environment is the span it was started under."""
    rig = bridged()
    rank = rig.bridge._traces.rank
    assert environment_of(rank) == rig.bridge.environment()
    with rig.enter("train"), rig.enter("load") as phase:
        found = caller_of(rig.bridge.environment())
        assert (phase.get_span_context().trace_id, int(phase.scope_id, 16), 3) == (
            found.trace_id,
            found.span_id,
            int(found.trace_flags),
        )
    assert environment_of(rank) == rig.bridge.environment()


def test_workers_get_the_trace_state_or_an_empty_one(bridged: Callable[..., Bridged]) -> None:
    """A worker never reads the trace state of its grandparent with the parent of its parent."""
    with_state = bridged(environ={"TRACEPARENT": TRACEPARENT, "TRACESTATE": "vendor=1"})
    without = bridged(environ={"TRACESTATE": "vendor=1"})
    assert "vendor=1" == with_state.bridge.environment()["TRACESTATE"]
    assert "" == without.bridge.environment()["TRACESTATE"]


def test_trace_per_gives_each_step_one_trace_on_all_ranks(bridged: Callable[..., Bridged]) -> None:
    """Rank 0's step is the root, the other ranks' are its remote children, and each links to the session's trace."""
    rigs = [bridged(rank=rank, world_size=2, trace_per="step") for rank in range(2)]
    for rig in rigs:
        with rig.enter("train"):
            for step in range(2):
                rig.lanes.step = step
                with rig.enter("step"), rig.enter("forward"):
                    pass
        rig.finish()
    first, second = ([span for span in rig.span_list if span.name == "step"] for rig in rigs)
    assert [span.context.trace_id for span in first] == [span.context.trace_id for span in second]
    assert 2 == len({span.context.trace_id for span in first})
    assert [None, None] == [span.parent for span in first]
    assert [(span.context.trace_id, span.context.span_id, True) for span in first] == [
        (span.parent.trace_id, span.parent.span_id, span.parent.is_remote) for span in second
    ]
    for rig, steps in zip(rigs, (first, second), strict=True):
        train = rig.spans["train"].context
        assert ids.session_trace_id("launch-1", 0) == train.trace_id
        assert {(train.trace_id, train.span_id)} == {
            (link.context.trace_id, link.context.span_id) for span in steps for link in span.links
        }
        forwards = [span for span in rig.span_list if span.name == "forward"]
        assert [span.context.span_id for span in steps] == [span.parent.span_id for span in forwards]
        assert [span.context.trace_id for span in steps] == [span.context.trace_id for span in forwards]


def test_the_root_of_a_steps_trace_has_its_derived_id_as_scope_id(bridged: Callable[..., Bridged]) -> None:
    """Scope id and span id stay one, also where ranks derive it."""
    rig = bridged(trace_per="step")
    rig.lanes.step = 3
    with rig.enter("step") as phase:
        assert ids.phase_root_span_id("launch-1", 0, ("step",), 3, 0) == int(phase.scope_id, 16)
    assert int(phase.scope_id, 16) == rig.spans["step"].context.span_id
    assert ids.phase_trace_id("launch-1", 0, ("step",), 3, 0) == rig.spans["step"].context.trace_id


def test_users_spans_join_the_steps_trace(bridged: Callable[..., Bridged]) -> None:
    """What is current in a step is in the step's trace."""
    rig = bridged(trace_per="step")
    tracer = rig.provider.get_tracer("users")
    with rig.enter("train"), rig.enter("step"), tracer.start_as_current_span("own"), rig.enter("inner"):
        pass
    spans = rig.spans
    assert spans["step"].context.span_id == spans["own"].parent.span_id
    assert spans["own"].context.span_id == spans["inner"].parent.span_id
    assert {spans["step"].context.trace_id} == {spans[name].context.trace_id for name in ("own", "inner")}


def test_a_step_inside_a_step_stays_in_its_trace(bridged: Callable[..., Bridged]) -> None:
    """Only the outermost phase of the name begins a trace."""
    rig = bridged(trace_per="step")
    with rig.enter("step"), rig.enter("inner"), rig.enter("step"):
        pass
    assert 1 == len({span.context.trace_id for span in rig.span_list})


def test_steps_with_traces_of_their_own_have_no_budget(bridged: Callable[..., Bridged]) -> None:
    """The budget is the session trace's."""
    rig = bridged(trace_per="step", span_budget=1)
    for _ in range(5):
        with rig.enter("step"):
            pass
    assert 5 == len(rig.span_list)


def test_each_steps_trace_is_sampled_by_itself_and_alike_on_all_ranks(bridged: Callable[..., Bridged]) -> None:
    """A ratio keeps some steps, the same on each rank, with all that is in them."""
    kept = []
    for rank in range(2):
        rig = bridged(rank=rank, world_size=2, trace_per="step", sampler=TraceIdRatioBased(0.5))
        for step in range(40):
            rig.lanes.step = step
            with rig.enter("step"), rig.enter("inner"):
                pass
        steps = [span.attributes["stormphase.step"] for span in rig.span_list if span.name == "step"]
        inner = [span.attributes["stormphase.step"] for span in rig.span_list if span.name == "inner"]
        assert steps == inner
        kept.append(steps)
    assert kept[0] == kept[1]
    assert 5 < len(kept[0]) < 35


def test_an_unsampled_session_may_have_sampled_steps(bridged: Callable[..., Bridged]) -> None:
    """The sampler is asked once per trace root, so nothing is inherited across traces."""
    from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult

    class OnlySteps(Sampler):
        def should_sample(  # noqa: PLR0917 - OTel's signature
            self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None
        ):
            return SamplingResult(Decision.RECORD_AND_SAMPLE if name == "step" else Decision.DROP)

        def get_description(self) -> str:
            return "OnlySteps"

    rig = bridged(trace_per="step", sampler=ParentBased(OnlySteps()))
    with rig.enter("train"), rig.enter("step"), rig.enter("inner"):
        pass
    rig.finish()
    assert ["inner", "step"] == [span.name for span in rig.span_list]


def test_trace_per_with_a_sampler_that_drops_all(bridged: Callable[..., Bridged]) -> None:
    """No step is sent, and all are counted."""
    rig = bridged(trace_per="step", sampler=ALWAYS_OFF)
    with rig.enter("step"):
        pass
    assert [] == rig.span_list
    assert 1 == rig.bridge.stats()["dropped_unsampled"]


def test_occurrences_number_what_repeats_within_a_step() -> None:
    """The number starts anew with each step, and a path has its own numbers."""
    table = PathTable()
    one, two = table.child(table.root, "one"), table.child(table.root, "two")
    occurrences = Occurrences()
    assert [0, 1, 0, 0, 1] == [
        occurrences.next(one, 1),
        occurrences.next(one, 1),
        occurrences.next(two, 1),
        occurrences.next(one, 2),
        occurrences.next(one, 2),
    ]


def test_occurrences_never_repeat_when_steps_begin_anew() -> None:
    """An epoch that counts its steps from 0 again gives new numbers; without steps all phases are counted through."""
    path = PathTable().child(PathTable().root, "step")
    occurrences = Occurrences()
    seen = [(step, occurrences.next(path, step)) for _ in range(3) for step in range(4)]
    seen += [(None, occurrences.next(path, None)) for _ in range(3)]
    assert len(seen) == len(set(seen))


def test_a_quiet_step_leaves_its_trace_to_the_others(bridged: Callable[..., Bridged]) -> None:
    """What is in a step that a filter keeps back hangs under the root that all ranks share, in the step's trace."""
    rig = bridged(trace_per="step", rank=1, world_size=2)
    rig.lanes.step = 4
    with rig.enter("train"):
        step = rig.enter("step")
        step._extra_or_new().is_quiet = True
        with rig.enter("inner"):
            pass
        step.close()
    inner = rig.spans["inner"]
    place = ("launch-1", 0, ("train", "step"), 4, 0)
    assert (ids.phase_trace_id(*place), ids.phase_root_span_id(*place)) == (
        inner.context.trace_id,
        inner.parent.span_id,
    )


def test_a_trace_that_cannot_be_found_is_the_sessions(
    bridged: Callable[..., Bridged], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong at enter, training goes on and the phase is sent."""
    rig = bridged(trace_per="step")

    def fail(path: object, step: int | None) -> int:
        raise RuntimeError

    rig.lanes.carrier._next_occurrence = fail
    with rig.enter("step"):
        pass
    assert ids.session_trace_id("launch-1", 0) == rig.spans["step"].context.trace_id
    assert "finding the trace of 'step'" in caplog.text
