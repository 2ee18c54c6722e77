"""What recovery sends of a dead process looks like what the live bridge would have sent, and hangs where that does."""

from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from stormphase._model import PhaseError, PhaseStatus
from stormphase.journal._image import EndNote, StackDump
from stormphase.otel import ids
from stormphase.otel._journal_facts import FactsError, Limits
from stormphase.otel._otlp_protobuf import requests_of
from stormphase.otel._places import Places
from stormphase.otel._plain_span import HAS_IS_REMOTE, IS_REMOTE, RANDOM, SAMPLED, STATUS_ERROR, RecoveredSpan
from stormphase.otel._recovered import rebuild

from .images import ALIVE_NS, FACTS, STARTED_NS, WALL_NS, as_live, as_sent, image, image_of, phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Bridged

SPAN_FLAGS = SAMPLED | RANDOM | HAS_IS_REMOTE
LOST_EXCEPTION = {
    "exception.type": "stormphase.Lost",
    "exception.message": "the process died while this was open",
}


def spans_of(journal: Any) -> dict[str, RecoveredSpan]:
    """Return what is sent, by name."""
    return {span.name: span for span in rebuild(journal).spans}


def live_run(rig: Bridged) -> list[Any]:
    """Run phases of all kinds, and return those that ended."""
    phases: list[Any] = []
    rig.lanes.step = 3
    with rig.enter("train", {"epochs": 3, "shape": [1, 2.5], "nested": {"a": [None]}}) as train:
        rig.clock.advance(10)
        for name in ("step", "step"):
            with rig.enter(name) as step:
                step.set_attribute("loss", 0.5)
                rig.clock.advance(2_000_000_000)
                with rig.enter("forward") as forward:
                    rig.clock.advance(7)
                phases += [forward, step]
        before = rig.enter("save")
        with pytest.raises(ValueError, match="full"), before:
            raise ValueError("disk full")
        again = rig.lanes.retry(before, None)
        again.pause()
        rig.clock.advance(100)
        again.resume()
        again.close(error=KeyboardInterrupt())
        phases += [before, again]
    return [*phases, train]


LIMITS = SpanLimits(max_attributes=16, max_attribute_length=9, max_events=1, max_links=1, max_event_attributes=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 1, "world_size": 2, "trace_per": "step"},
        {"trace_per": "step"},
        {"trace_per": "step", "events": "all", "events_to": "span"},
        {"events_to": "span"},
        {"events_to": "span", "events": "off"},
        {"limits": LIMITS},
        {"sampler": ALWAYS_OFF, "keep_failures": True},
        {"environ": {"TRACEPARENT": "00-" + "a" * 32 + "-" + "b" * 16 + "-03", "TRACESTATE": "v=1"}},
    ],
)
def test_ended_phases_look_as_the_live_bridge_sends_them(bridged: Callable[..., Bridged], options: Any) -> None:
    """Whatever the bridge's options, a span that recovery sends in its place is the same, field by field."""
    rig = bridged(**options)
    phases = live_run(rig)
    journal = image_of(rig, *phases, end_note=EndNote(kind="clean", ended_ns=rig.clock.monotonic_ns()))
    live = {span.context.span_id: as_live(span) for span in rig.span_list}
    sent = {span.span_id: as_sent(span) for span in rebuild(journal).spans}
    assert live == sent
    assert (2 if options.get("keep_failures") else len(phases)) == len(sent)


def test_a_dead_rank_0_leaves_rank_and_session_as_lost(bridged: Callable[..., Bridged]) -> None:
    """Ids, parents, links and attributes are those that the bridge would have sent; their end is the heartbeat."""
    rig = bridged(attempt=1)
    rig.clock.advance(50)
    sent = spans_of(image_of(rig))
    rig.finish(RuntimeError("x"))
    for name in ("session", "rank 0"):
        live, lost = as_live(rig.spans[name]), as_sent(sent[name])
        assert live["attributes"].pop("error.type") == "RuntimeError"
        assert lost["attributes"].pop("error.type") == "stormphase.Lost"
        assert (STATUS_ERROR, "stormphase.Lost: the process died while this was open") == lost.pop("status")
        assert (2, "RuntimeError: x") == live.pop("status")
        assert [("exception", lost["times"][1], LOST_EXCEPTION)] == lost.pop("events")
        assert [] == live.pop("events")
        assert live == lost
    assert [(ids.session_trace_id("launch-1", 0), ids.root_span_id("launch-1", 0))] == as_sent(sent["session"])["links"]


def test_what_was_open_around_says_where_the_process_died() -> None:
    """As a live span says of the phase in which its error arose; the innermost one is its own root cause."""
    sent = spans_of(image(phase(1, "train"), phase(2, "train", "step", parent_scope_id=f"{1:016x}")))
    key = "stormphase.phase.root_cause_scope_id"
    assert [f"{2:016x}", None] == [sent[name].attributes.get(key) for name in ("train", "step")]


def test_open_phases_end_when_the_process_was_last_known_alive() -> None:
    """LOST, with what was known at enter and set since, an error status and why."""
    step = phase(2, "train", "step", parent_scope_id=f"{1:016x}", step=9, attributes={"loss": 0.5})
    sent = spans_of(image(phase(1, "train"), step))
    found = sent["step"]
    assert {
        "trace_id": 0xABC,
        "span_id": 2,
        "parent_id": 1,
        "flags": SPAN_FLAGS,
        "name": "step",
        "times": (WALL_NS + STARTED_NS + 2, WALL_NS + ALIVE_NS),
        "attributes": {
            "loss": 0.5,
            "stormphase.session.id": "launch-1",
            "stormphase.session.attempt": 0,
            "stormphase.rank": 0,
            "stormphase.local_rank": 0,
            "stormphase.world_size": 2,
            "stormphase.phase.path": "train / step",
            "stormphase.phase.status": "lost",
            "stormphase.phase.depth": 2,
            "stormphase.phase.sequence": 2,
            "stormphase.phase.attempt": 0,
            "stormphase.phase.reason": "its process died",
            "stormphase.step": 9,
            "thread.id": 77,
            "thread.name": "MainThread",
            "error.type": "stormphase.Lost",
        },
        "dropped": (0, 0, 0),
        "events": [("exception", WALL_NS + ALIVE_NS, LOST_EXCEPTION)],
        "links": [],
        "status": (STATUS_ERROR, "stormphase.Lost: the process died while this was open"),
    } == as_sent(found)
    assert {("exception", WALL_NS + ALIVE_NS)} == {
        (event.name, event.time_ns) for span in sent.values() for event in span.events
    }
    assert (0x2, 0x1, 0) == (sent["train"].parent_id, sent["rank 0"].parent_id, sent["session"].parent_id)
    assert ["rank 0", "session", "train", "step"] == sorted(sent, key=lambda name: (sent[name].started_ns, name))


def test_where_a_phase_hung_is_the_stack_of_its_exception() -> None:
    """A LOST phase that had been noticed for being open too long has its own thread's stack, the newest one."""
    own, other = (
        {"thread_id": 77, "frames": ["a.py:1 in f", "b.py:2 in g"]},
        {"thread_id": 78, "frames": ["c.py:3 in h"]},
    )
    dumps = [
        StackDump(at_ns=STARTED_NS + at_ns, sequence=sequence, limit_ns=1, threads=threads)
        for at_ns, sequence, threads in (
            (1_000_000_001, 1, (other,)),
            (2_000_000_001, 1, (own, other)),
            (3_000_000_001, 2, (other,)),
        )
    ]
    found = spans_of(image(phase(1, "train"), phase(2, "train", "step"), stacks=tuple(dumps)))
    stack = "Python stack after 2.0 s, innermost last:\na.py:1 in f\nb.py:2 in g"
    assert [{**LOST_EXCEPTION, "exception.stacktrace": stack}] == [event.attributes for event in found["train"].events]
    assert [LOST_EXCEPTION] == [event.attributes for event in found["step"].events]


def test_lost_spans_have_no_exception_where_exceptions_are_no_events() -> None:
    """What the user chose for exceptions holds for those of recovery, too."""
    found = spans_of(image(phase(1, "train"), otel=attrs.evolve(FACTS, has_exceptions=False)))
    assert {"train": (), "rank 0": (), "session": ()} == {name: span.events for name, span in found.items()}


@pytest.mark.parametrize(("number", "words"), [(signal.SIGTERM, "SIGTERM"), (200, "signal 200")])
def test_a_signal_that_asked_the_process_to_stop_is_named(number: int, words: str) -> None:
    """Who was asked to stop and died on the way is told from who was simply killed."""
    found = spans_of(image(phase(1, "train"), stop_signal=int(number)))["train"]
    assert f"its process died after {words} had asked it to stop" == found.attributes["stormphase.phase.reason"]


@pytest.mark.parametrize(
    "more", [{"end_note": EndNote(kind="clean", ended_ns=5)}, {"header": {"forked_from": 12}}, {"rank": 3}]
)
def test_who_sends_the_spans_above_the_phases(more: Any) -> None:
    """A process that said that it ended has sent them, a forked child has none, and the root is rank 0's."""
    expected = {"train", "rank 3"} if "rank" in more else {"train"}
    assert expected == set(spans_of(image(phase(1, "train"), **more)))


def test_what_was_handed_over_is_not_sent_again() -> None:
    """Of the ended phases only those go out that the bridge never had."""
    known = phase(1, "a", status=PhaseStatus.SUCCEEDED, ended_ns=STARTED_NS + 5, is_handed_over=True)
    fresh = phase(2, "b", status=PhaseStatus.ABANDONED, ended_ns=STARTED_NS + 9, status_text="the session stopped")
    sent = spans_of(image(ended=(known, fresh), end_note=EndNote(kind="clean", ended_ns=5)))
    assert {"b"} == set(sent)
    assert ("the session stopped", 7e-9) == (
        sent["b"].attributes["stormphase.phase.reason"],
        sent["b"].attributes["stormphase.phase.self_time"],
    )


def test_the_same_journal_gives_the_same_bytes() -> None:
    """What must be sent again is the same to the byte, whatever order the reader found the phases in."""
    phases = [phase(number, "train", f"p{number}", attributes={"n": number}) for number in range(1, 30)]
    bodies = list(requests_of(FACTS, rebuild(image(*phases)).spans))
    random.Random(3).shuffle(phases)
    assert bodies == list(requests_of(FACTS, rebuild(image(*phases)).spans))


def test_an_unsampled_session_sends_nothing_but_says_how_much() -> None:
    """The sampler's word is final for spans, also after death."""
    facts = attrs.evolve(FACTS, is_sampled=False, flags=2)
    found = rebuild(image(phase(1, "train"), otel=facts))
    assert ((), 3, 0) == (found.spans, found.unsampled, found.unplaced)


def test_kept_failures_are_sent_with_what_they_hang_under() -> None:
    """With `keep_failures` a LOST phase of an unsampled trace goes out, marked, up to the root; a success does not."""
    facts = attrs.evolve(FACTS, is_sampled=False, flags=2, keep_failures=True)
    done = phase(3, "train", "load", parent_scope_id=f"{1:016x}", status=PhaseStatus.SUCCEEDED, ended_ns=STARTED_NS + 9)
    found = rebuild(image(phase(1, "train"), ended=(done,), otel=facts))
    assert ["rank 0", "session", "train"] == sorted(span.name for span in found.spans)
    assert {True} == {span.attributes["stormphase.phase.promoted"] for span in found.spans}
    assert {SPAN_FLAGS} == {span.flags for span in found.spans}
    assert 1 == found.unsampled


def test_phases_follow_the_trace_of_the_phase_around() -> None:
    """On rank 0 the phase that begins a trace is its root, by the id that all ranks know; on others it is remote."""
    facts = attrs.evolve(FACTS, trace_per="step")
    train = phase(1, "train")
    inner = phase(3, "train", "step", "forward", parent_scope_id=f"{2:016x}")
    for rank, parent in ((0, None), (1, f"{9:016x}")):
        said = {"trace_id": f"{0xDEF:032x}", "root_id": f"{9:016x}", "parent_id": parent, "sampled": True}
        step = phase(2, "train", "step", parent_scope_id=f"{1:016x}", trace=said)
        sent = spans_of(image(train, step, inner, otel=facts, rank=rank))
        own_id = 9 if rank == 0 else 2
        assert (0xDEF, own_id, 0 if rank == 0 else 9) == (
            sent["step"].trace_id,
            sent["step"].span_id,
            sent["step"].parent_id,
        )
        assert (rank != 0) == bool(sent["step"].flags & IS_REMOTE)
        assert [(0xABC, 1)] == as_sent(sent["step"])["links"]
        assert (0xDEF, own_id) == (sent["forward"].trace_id, sent["forward"].parent_id)
        assert 0xABC == sent["train"].trace_id


def test_a_phase_whose_trace_nobody_knows_any_more_is_counted() -> None:
    """Where the record that named the trace is gone or cut, a span is not put into a wrong one."""
    facts = attrs.evolve(FACTS, trace_per="step")
    orphan = phase(3, "train", "step", "forward", parent_scope_id=f"{2:016x}")
    cut = phase(4, "train", "step", is_cut=True)
    found = rebuild(image(orphan, cut, otel=facts))
    assert (2, ["rank 0", "session"]) == (found.unplaced, sorted(span.name for span in found.spans))


@pytest.mark.parametrize(
    "trace",
    [{}, {"trace_id": "x"}, {"trace_id": f"{1:032x}", "root_id": None, "parent_id": None, "sampled": True}, "text"],
)
def test_a_damaged_trace_costs_its_phase_only(trace: Any) -> None:
    """What cannot be true is not sent, and everything else is."""
    found = rebuild(image(phase(1, "a", trace=trace), phase(2, "b"), phase(3, "a", "c", parent_scope_id=f"{1:016x}")))
    assert (2, ["b", "rank 0", "session"]) == (found.unplaced, sorted(span.name for span in found.spans))


def test_a_parent_with_an_impossible_id_costs_its_phase_only() -> None:
    """The id of a parent in another process comes from the file, so it is checked."""
    found = rebuild(image(phase(1, "a", parent_scope_id="../etc"), phase(2, "b", parent_scope_id=f"{99:016x}")))
    assert 1 == found.unplaced
    assert {"b": 99, "rank 0": 1, "session": 0} == {span.name: span.parent_id for span in found.spans}


def test_phases_in_a_circle_are_no_trap() -> None:
    """Damage that makes two phases each other's parent ends neither in a loop nor in a trace."""
    one = phase(1, "a", parent_scope_id=f"{2:016x}")
    other = phase(2, "a", parent_scope_id=f"{1:016x}")
    assert 2 == rebuild(image(one, other)).unplaced


def test_a_retry_is_linked_where_its_first_try_is_known() -> None:
    """In the session's trace always; elsewhere only if the first try's record is still there."""
    facts = attrs.evolve(FACTS, trace_per="step")
    first, second = f"{1:016x}", f"{2:016x}"
    lost = spans_of(image(phase(5, "save", attempt=1, retry_of=first), otel=facts))["save"]
    assert ([(0xABC, 1)], 1) == (as_sent(lost)["links"], lost.attributes["stormphase.phase.attempt"])
    said = {"trace_id": f"{0xDEF:032x}", "root_id": f"{9:016x}", "parent_id": None, "sampled": True}
    again = phase(3, "step", trace={**said, "trace_id": f"{0xFED:032x}"}, retry_of=second)
    alone = spans_of(image(again, otel=facts))["step"]
    assert [(0xABC, 0x2)] == as_sent(alone)["links"]
    tried = phase(2, "step", trace=said, status=PhaseStatus.FAILED, ended_ns=STARTED_NS + 3, is_handed_over=True)
    both = spans_of(image(again, ended=(tried,), otel=facts))["step"]
    assert [(0xABC, 0x2), (0xDEF, 9)] == as_sent(both)["links"]


def test_what_a_phase_says_of_its_error() -> None:
    """At its origin an exception is an event; where it only passed, the phase refers to the origin."""
    error = PhaseError(type="E", message="m", traceback="tb", root_cause_scope_id=f"{2:016x}")
    ended = {"status": PhaseStatus.FAILED, "ended_ns": STARTED_NS + 9, "error": error}
    outer, origin = phase(1, "a", **ended), phase(2, "a", "b", parent_scope_id=f"{1:016x}", **ended)
    sent = spans_of(image(ended=(origin, outer)))
    assert f"{2:016x}" == sent["a"].attributes["stormphase.phase.root_cause_scope_id"]
    assert (["exception"], []) == ([event.name for event in sent["b"].events], list(sent["a"].events))
    quiet = spans_of(image(ended=(origin,), otel=attrs.evolve(FACTS, has_exceptions=False)))
    assert [] == list(quiet["b"].events)


def test_limits_of_the_provider_hold() -> None:
    """The last of everything is kept, strings are cut, and what was dropped is counted."""
    limits = Limits(attributes=2, attribute_chars=3, events=1, links=0, event_attributes=1, event_attribute_chars=2)
    facts = attrs.evolve(FACTS, limits=limits, span_events="all", previous_root=(7, 8))
    sent = spans_of(image(phase(1, "train", attributes={"a": ["long", "longer"]}), otel=facts))
    found = sent["train"]
    assert {"stormphase.phase.reason": "its", "error.type": "sto"} == found.attributes
    assert [("stormphase.phase.exit", {"stormphase.phase.status": "lo"})] == [
        (event.name, event.attributes) for event in found.events
    ]
    assert 2 == found.dropped_events
    assert ((), 1) == (sent["session"].links, sent["session"].dropped_links)


def test_lists_are_cut_as_well() -> None:
    """A limit on lengths holds for the strings in a list."""
    facts = attrs.evolve(FACTS, limits=Limits(attribute_chars=3))
    found = spans_of(image(phase(1, "train", attributes={"a": ["long", "longer"], "n": [1, 2]}), otel=facts))["train"]
    assert (("lon", "lon"), (1, 2)) == (found.attributes["a"], found.attributes["n"])


@pytest.mark.parametrize(
    "odd",
    [
        {"entered_ns": -(2**63)},
        {"entered_ns": 2**63 - 1},
        {"thread_id": 2**64 - 1},
        {"path": ()},
        {"path": ("\ud800",)},
        {"attributes": {"": None, "a\ud800": ["\ud800", 2**70], "b": {"c": float("nan")}}},
    ],
)
def test_hostile_numbers_and_texts_can_be_sent(odd: dict[str, Any]) -> None:
    """Whatever a damaged file says, a collector can read the request, and no end is before its start."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans = rebuild(image(phase(1, "train", **{k: v for k, v in odd.items() if k != "path"}))).spans
    if "path" in odd:
        spans = rebuild(image(phase(1, *odd["path"]))).spans
    (body,) = requests_of(FACTS, spans)
    read = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans
    assert 3 == len(read)
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano < 2**63 for span in read)


def test_a_journal_without_facts_is_refused() -> None:
    """Where no bridge was on, or the facts are damaged, nothing is guessed."""
    for otel in (None, {}, {"version": 1}):
        with pytest.raises(FactsError):
            rebuild(image(phase(1, "train"), otel=otel))


def test_deep_stacks_take_no_recursion() -> None:
    """Thousands of open phases inside each other are walked, not recursed into, and each once."""
    deep = [
        phase(number, *["p"] * 3, parent_scope_id=f"{number - 1:016x}" if number > 1 else None)
        for number in range(1, 5_001)
    ]
    places = Places(FACTS, deep, deep)
    assert {0xABC} == {places.of(found).trace_id for found in reversed(deep)}


def test_no_story_breaks_it() -> None:
    """Whatever phases a damaged journal holds, recovery ends, sends what a collector can read, and counts the rest."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    chance = random.Random(5)
    numbers = [0, 1, -1, 2**63 - 1, -(2**63), 10**18]
    words = ["", "x", "step", "\x1b", "é", f"{1:016x}", f"{2:016x}", f"{3:016x}", f"{9:032x}", "0" * 16, None]

    def odd_trace() -> Any:
        keys = ("trace_id", "root_id", "parent_id", "sampled")
        return {key: chance.choice([*words, True, False, 1]) for key in keys} if chance.random() < 0.3 else None

    for _ in range(300):
        story = [
            phase(
                number,
                *[str(chance.choice(words)) for _ in range(chance.randrange(4))],
                parent_scope_id=chance.choice(words),
                retry_of=chance.choice(words),
                entered_ns=chance.choice(numbers),
                paused_ns=chance.choice(numbers),
                trace=odd_trace(),
                is_cut=chance.random() < 0.2,
            )
            for number in range(1, chance.randrange(2, 8))
        ]
        facts = attrs.evolve(
            FACTS,
            trace_per=chance.choice([None, "step"]),
            is_sampled=chance.random() < 0.7,
            keep_failures=chance.random() < 0.5,
        )
        journal = image(*story, otel=facts, rank=chance.randrange(2), started_ns=chance.choice(numbers))
        found = rebuild(journal)
        assert len(story) + (2 if journal.identity.rank == 0 else 1) == (
            len(found.spans) + found.unsampled + found.unplaced
        )
        bodies = list(requests_of(facts, found.spans))
        assert bodies == list(requests_of(facts, rebuild(journal).spans))
        for body in bodies:
            ExportTraceServiceRequest.FromString(body)
