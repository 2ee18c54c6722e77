"""What becomes of each journal: dead or alive, sent or not, and never without proof. Journals are real, senders too."""

from __future__ import annotations

import contextlib
import contextvars
import os
import shutil
import threading
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from stormphase._clock import SystemClock
from stormphase._liveness import Liveness, Verdict
from stormphase._model import PhaseStatus
from stormphase.exceptions import JournalError
from stormphase.journal._marks import mark_path, read_mark
from stormphase.journal._options import JournalOptions
from stormphase.journal._read import read_journal
from stormphase.otel import OTelBridge
from stormphase.otel._otlp_http import Endpoint
from stormphase.otel._otlp_protobuf import Answer
from stormphase.otel._recovered import rebuild
from stormphase.otel._recovery import Outcome, Recovery, Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stormphase import PhaseTracker

EVIDENCE = "process 4711 is gone from host-1"


def judging(state: Liveness) -> Callable[..., Verdict]:
    """Return a judge of one mind."""
    return lambda *_, **__: Verdict(state, EVIDENCE)


class Sender:
    """Takes requests, and gives the answers that it was told."""

    def __init__(self, *answers: Answer) -> None:
        """Answer in this order, then that all is well."""
        self.endpoint = Endpoint("http://user:secret@c/v1/traces")
        self.bodies: list[bytes] = []
        self._answers = list(answers)

    def send(self, body: bytes) -> Answer:
        """Note the request."""
        self.bodies.append(body)
        return self._answers.pop(0) if self._answers else Answer()


@pytest.fixture
def left_behind(tmp_path: Path, make_tracker: Callable[..., PhaseTracker], clean_environ: None) -> Callable[..., Path]:
    """Make a tracker, let it do something, and return its journals as they were before it stopped."""

    def make(*, provider: Any = None, session_id: str = "launch-1", work: Any = None, **options: Any) -> Path:
        live, left = tmp_path / "live", tmp_path / "left"
        bridge = OTelBridge(provider or TracerProvider(shutdown_on_exit=False), **options)
        journal = JournalOptions(live, max_bytes=1 << 20)
        tracker = make_tracker("job", session_id=session_id, journal=journal, bridge=bridge)
        with tracker:
            if work is None:
                with tracker.enter_phase("train"):
                    shutil.copytree(live, left, dirs_exist_ok=True)
            else:
                work(tracker, lambda: shutil.copytree(live, left, dirs_exist_ok=True))
        return left

    return make


def recover(runs: Path, sender: Any, *, state: Liveness = Liveness.DEAD, **options: Any) -> list[Outcome]:
    """Recover, on the word of a judge."""
    run = {key: options.pop(key) for key in ("session_id", "before_attempt") if key in options}
    recovery = Recovery(sender, clock=SystemClock(), judge_process=judging(state), **options)
    return list(recovery.run(runs, **run))


def test_a_dead_process_is_recovered_once(left_behind: Callable[..., Path]) -> None:
    """Its open phases are LOST by proof, sent, marked with what was sent, and never sent again."""
    runs, sender = left_behind(), Sender()
    (outcome,) = recover(runs, sender)
    assert (Result.SENT, 3, EVIDENCE, True) == (outcome.result, outcome.spans, outcome.evidence, outcome.is_finished)
    (record,) = outcome.lost
    assert (PhaseStatus.LOST, ("train",), EVIDENCE, "stormphase.Lost") == (
        record.status,
        record.path,
        record.evidence,
        record.error_type,
    )
    mark = read_mark(read_journal(outcome.file))
    assert mark is not None
    assert (3, "http://c/v1/traces", 64) == (mark.spans, mark.endpoint, len(mark.digest))
    (again,) = recover(runs, sender)
    assert (Result.ALREADY_SENT, 3, outcome.lost) == (again.result, again.spans, again.lost)
    assert 1 == len(sender.bodies)


@pytest.mark.parametrize(("state", "expected"), [("alive", Result.ALIVE), ("unknown", Result.UNPROVEN)])
def test_without_proof_nothing_is_touched(left_behind: Callable[..., Path], state: str, expected: Result) -> None:
    """A process that lives, or may, is left alone, whatever it has open."""
    runs, sender = left_behind(), Sender()
    (outcome,) = recover(runs, sender, state=Liveness(state))
    assert (expected, (), 0, []) == (outcome.result, outcome.lost, outcome.spans, sender.bodies)
    assert (state == "alive") == outcome.is_finished
    assert not list(runs.rglob("*.sent"))


def test_a_silent_host_is_dead_if_its_owner_says_so(left_behind: Callable[..., Path]) -> None:
    """The user's word is proof for silent processes of that host only, and never for one that lives."""
    runs, sender = left_behind(), Sender()
    host = os.uname().nodename
    for hosts, state, expected in (
        (["other"], Liveness.UNKNOWN, Result.UNPROVEN),
        ([host], Liveness.ALIVE, Result.ALIVE),
        ([host], Liveness.UNKNOWN, Result.SENT),
    ):
        (outcome,) = recover(runs, sender, state=state, assume_dead=hosts)
        assert expected is outcome.result
    assert f"taken for dead on the user's word; {EVIDENCE}" == outcome.evidence


def test_a_silent_process_that_had_ended_leaves_no_question(
    tmp_path: Path, make_tracker: Callable[..., PhaseTracker]
) -> None:
    """Whoever said that it ended has nothing open; whether it is dead does not matter then."""
    bridge = OTelBridge(TracerProvider(shutdown_on_exit=False))
    with make_tracker("job", session_id="s", journal=JournalOptions(tmp_path, max_bytes=1 << 20), bridge=bridge):
        pass
    for state in (Liveness.UNKNOWN, Liveness.DEAD):
        (outcome,) = recover(tmp_path, Sender(), state=state)
        assert (Result.NOTHING, True) == (outcome.result, outcome.is_finished)


def test_without_a_sender_nothing_changes(left_behind: Callable[..., Path]) -> None:
    """Looking takes no lock and leaves no file."""
    runs = left_behind()
    before = sorted(runs.rglob("*"))
    (outcome,) = recover(runs, None)
    assert (Result.WAITING, 3, False) == (outcome.result, outcome.spans, outcome.is_finished)
    assert before == sorted(runs.rglob("*"))


def test_a_process_without_spans_of_ours_is_told_apart(
    tmp_path: Path, make_tracker: Callable[..., PhaseTracker]
) -> None:
    """Without a bridge its phases are LOST all the same, in the records, and nothing is sent or left to do."""
    live, left, sender = tmp_path / "live", tmp_path / "left", Sender()
    tracker = make_tracker("job", session_id="s", journal=JournalOptions(live, max_bytes=1 << 20))
    with tracker, tracker.enter_phase("train"):
        shutil.copytree(live, left)
    (outcome,) = recover(left, sender)
    assert (Result.UNTRACED, [("train",)], True) == (
        outcome.result,
        [record.path for record in outcome.lost],
        outcome.is_finished,
    )
    assert [] == sender.bodies


def test_what_was_not_sampled_is_counted(left_behind: Callable[..., Path]) -> None:
    """An unsampled session leaves nothing to send, and says how many there would be."""
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    (outcome,) = recover(left_behind(provider=provider), Sender())
    assert (Result.NOTHING, 0, 3) == (outcome.result, outcome.spans, outcome.unsampled)


def test_records_can_be_left_out(left_behind: Callable[..., Path]) -> None:
    """Who does not show them does not hold them."""
    (outcome,) = recover(left_behind(), Sender(), wants_records=False)
    assert (Result.SENT, ()) == (outcome.result, outcome.lost)


def test_a_phase_that_was_moved_paused_and_told_more_is_recovered_whole(left_behind: Callable[..., Path]) -> None:
    """What the journal keeps of a phase is on its record: step, retry, pause and what it says of itself."""

    def work(tracker: PhaseTracker, leave: Callable[[], object]) -> None:
        tracker.set_step(4)
        with tracker.enter_phase("save", attributes={"n": [1, 2]}) as first:
            pass
        second = tracker.retry(first)
        second.pause()
        leave()
        second.resume()
        second.close()

    (outcome,) = recover(left_behind(work=work), Sender())
    (record,) = outcome.lost
    assert (4, 1, PhaseStatus.LOST) == (record.step, record.attempt, record.status)
    assert record.retry_of_scope_id is not None


def test_what_the_collector_says_of_a_success_is_passed_on(left_behind: Callable[..., Path]) -> None:
    """A warning is no failure."""
    (outcome,) = recover(left_behind(), Sender(Answer(message="slow down")))
    assert (Result.SENT, "it said: slow down") == (outcome.result, outcome.problem)


def test_rejected_spans_are_a_failure(left_behind: Callable[..., Path]) -> None:
    """What was not taken whole is not marked."""
    runs = left_behind()
    (outcome,) = recover(runs, Sender(Answer(rejected=1)))
    assert (Result.FAILED, "1 of 3 spans were rejected", False) == (
        outcome.result,
        outcome.problem,
        outcome.is_finished,
    )
    assert not mark_path(outcome.file).exists()


def test_damaged_facts_are_a_failure_of_their_journal_only(
    left_behind: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal whose facts cannot be true is said to be so, and no guess is sent."""
    from stormphase.otel import _recovery

    runs = left_behind()
    original = read_journal

    def damaged(*arguments: Any, **options: Any) -> Any:
        image = original(*arguments, **options)
        return attrs.evolve(image, facts={**image.facts, "otel": {"version": 1}})

    monkeypatch.setattr(_recovery, "read_journal", damaged)
    (outcome,) = recover(runs, Sender())
    assert (Result.FAILED, True) == (outcome.result, "what it says of its trace is wrong" in (outcome.problem or ""))


def test_a_journal_that_cannot_be_read_costs_no_other(left_behind: Callable[..., Path]) -> None:
    """Foreign files are passed over, damaged ones named, one that is only just there is none, and the rest is sent."""
    runs = left_behind()
    session = runs / "launch-1"
    (session / "notes.txt").write_text("mine")
    (session / "rank-00007.attempt-0.pid-1.0.journal").write_bytes(b"garbage" * 100)
    outcomes = {outcome.result: outcome for outcome in recover(runs, Sender())}
    assert {Result.SENT, Result.FAILED} == set(outcomes)
    assert "rank-00007" in outcomes[Result.FAILED].file.name


def test_a_directory_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """Nobody takes a wrong path for a job without losses."""
    with pytest.raises(JournalError):
        recover(tmp_path / "gone", Sender())


def test_where_nothing_can_be_noted_nothing_is_sent(
    left_behind: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only disk spans would be sent again and again."""
    from stormphase.otel import _recovery

    def read_only(_: Path) -> None:
        raise OSError(30, "Read-only file system")

    runs, sender = left_behind(), Sender()
    monkeypatch.setattr(_recovery, "SessionLock", read_only)
    (outcome,) = recover(runs, sender)
    assert (Result.FAILED, True, []) == (outcome.result, "Read-only" in (outcome.problem or ""), sender.bodies)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2),
        ({"session_id": "launch-1"}, 1),
        ({"session_id": "nobody"}, 0),
        ({"before_attempt": 0}, 0),
        ({"before_attempt": 1}, 2),
        ({"session_id": "launch-2", "before_attempt": 1}, 1),
    ],
)
def test_which_journals_are_looked_at(left_behind: Callable[..., Path], options: dict[str, Any], expected: int) -> None:
    """A session and the attempts before one can be chosen; others are not even locked."""
    left_behind()
    runs = left_behind(session_id="launch-2")
    assert expected == len(recover(runs, Sender(), **options))
    locked = {path.parent.name for path in runs.rglob("recover.lock")}
    assert expected == len(locked)


def test_what_cannot_be_read_of_others_is_theirs(left_behind: Callable[..., Path]) -> None:
    """A session asked for by name neither locks nor fails for a damaged journal of another one."""
    runs = left_behind()
    for name in ("launch-1", "launch-2"):
        (runs / name).mkdir(exist_ok=True)
        (runs / name / "rank-00007.attempt-0.pid-1.0.journal").write_bytes(b"garbage" * 100)
    assert [Result.SENT, Result.FAILED] == [each.result for each in recover(runs, Sender(), session_id="launch-1")]
    assert not (runs / "launch-2" / "recover.lock").exists()
    assert 3 == len(recover(runs, Sender()))


def test_the_mark_of_another_process_does_not_count(left_behind: Callable[..., Path]) -> None:
    """A file name may come again; a mark names the process whose journal it is about."""
    runs = left_behind()
    (outcome,) = recover(runs, Sender())
    mark = mark_path(outcome.file)
    mark.write_text(mark.read_text().replace(f'"pid": {os.getpid()}', '"pid": 1'))
    assert Result.SENT is recover(runs, Sender())[0].result
    mark.write_bytes(b"\xff" * 100)
    assert Result.SENT is recover(runs, Sender())[0].result


def place_of(span: Any) -> tuple[Any, ...]:
    """Return where a live span hangs: trace, id, parent and links."""
    parent = 0 if span.parent is None else span.parent.span_id
    links = [(link.context.trace_id, link.context.span_id) for link in span.links]
    return span.context.trace_id, span.context.span_id, parent, links


@pytest.mark.usefixtures("clean_environ")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("trace_per", [None, "step"])
def test_a_real_journal_places_spans_as_the_live_bridge_does(
    tmp_path: Path,
    make_tracker: Callable[..., PhaseTracker],
    step_thread: Callable[..., Any],
    trace_per: str | None,
    rank: int,
) -> None:
    """Through file and back: trace, id, parent and links of nested, retried and other threads' phases are the same."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    live, left = tmp_path / "live", tmp_path / "left"
    bridge = OTelBridge(provider, trace_per=trace_per)
    journal = JournalOptions(live, max_bytes=1 << 20)
    tracker = make_tracker("job", session_id="s", rank=rank, world_size=2, journal=journal, bridge=bridge)
    with tracker:
        tracker.set_step(7)
        with tracker.enter_phase("train"):
            step = tracker.enter_phase("step")
            around = contextvars.copy_context()
            loader = step_thread()
            loading = loader.do(around.run, tracker.enter_phase, "load")
            before = tracker.enter_phase("save")
            before.close()
            again = tracker.retry(before, {"n": 2})
            with tracker.enter_phase("write"):
                shutil.copytree(live, left)
            again.close()
            loader.do(around.run, loading.close)
            step.close()
    found = {span.context.span_id: place_of(span) for span in exporter.get_finished_spans()}
    (image,) = (read_journal(file, unsent_only=True) for file in left.rglob("*.journal"))
    recovered = rebuild(image).spans
    names = {"train", "step", "load", "save", "write", f"rank {rank}"} | ({"session"} if rank == 0 else set())
    assert names == {span.name for span in recovered}
    for span in recovered:
        links = [(link.trace_id, link.span_id) for link in span.links]
        assert found[span.span_id] == (span.trace_id, span.span_id, span.parent_id, links)


class Stuck(SpanProcessor):
    """A processor that hangs in its first span until it is let go."""

    def __init__(self) -> None:
        """Hang when the first span comes."""
        self.is_in = threading.Event()
        self.let_go = threading.Event()

    def on_end(self, span: Any) -> None:
        """Hang."""
        self.is_in.set()
        self.let_go.wait(60)


def test_what_had_ended_and_was_never_handed_over_is_sent_as_it_ended(left_behind: Callable[..., Path]) -> None:
    """A bridge that hangs when its process is killed costs no span: the journal still has what it never had."""
    stuck = Stuck()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(stuck)

    def work(tracker: PhaseTracker, leave: Callable[[], object]) -> None:
        with tracker.enter_phase("train"):
            for step in range(20):
                with contextlib.suppress(ValueError), tracker.enter_phase(f"step-{step}"):
                    if step % 2:
                        raise ValueError("odd")
            assert stuck.is_in.wait(60)
            leave()
            stuck.let_go.set()

    runs = left_behind(provider=provider, work=work)
    (file,) = runs.rglob("*.journal")
    sent = {span.name: span for span in rebuild(read_journal(file, unsent_only=True)).spans}
    assert {"session", "rank 0", "train", *(f"step-{step}" for step in range(20))} == set(sent)
    statuses = [sent[f"step-{step}"].attributes["stormphase.phase.status"] for step in range(20)]
    assert ["succeeded", "failed"] * 10 == statuses
    assert ["exception"] == [event.name for event in sent["step-1"].events]
    (outcome,) = recover(runs, Sender())
    assert (20, 23, ["train"]) == (outcome.unsent_phases, outcome.spans, [record.name for record in outcome.lost])
