"""A really killed process's spans reach real backends once, whatever these do: down, throttling, rejecting, silent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stormphase._clock import SystemClock
from stormphase.cli import _recover, main
from stormphase.journal._marks import SessionLock, mark_path
from stormphase.journal._read import find_journals
from stormphase.otel import OTelBridge
from stormphase.otel._background import BackgroundRecovery
from stormphase.otel._otlp_http import Endpoint, OtlpSender
from stormphase.otel._recovery import Outcome, Recovery, Result

from .faulty import Behaviour
from .received import by_name, outline

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import RunPython

    from stormphase import PhaseTracker
    from stormphase.testing import ManualClock

    from .collector import Collector
    from .faulty import FaultyEndpoint
    from .mlflow_server import MlflowServer

# A rank that has handed over all that had ended, and dies inside its fourth step.
VICTIM = """
import os, signal, sys
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from stormphase import PhaseTracker
from stormphase.journal._options import JournalOptions
from stormphase.otel import OTelBridge

runs, rank, endpoint = sys.argv[1], int(sys.argv[2]), sys.argv[3]
provider = TracerProvider(resource=Resource({"service.name": "victim"}), shutdown_on_exit=False)
if endpoint:
    headers = {"x-mlflow-experiment-id": "0"}
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint, headers=headers)))
tracker = PhaseTracker(
    "job", session_id="launch-1", rank=rank, world_size=2, journal=JournalOptions(runs, max_bytes=1 << 20),
    bridge=OTelBridge(provider),
)
tracker.start()
tracker.enter("train", attributes={"lr": 0.5})
for step in range(3):
    tracker.set_step(step)
    with tracker.enter_phase("step"):
        pass
assert tracker.flush(60)
tracker.set_step(3)
tracker.enter("step", attributes={"n": 1})
tracker.enter("forward")
os.kill(os.getpid(), signal.SIGKILL)
"""
LOST_SPANS = ["forward", "rank 0", "session", "step", "train"]


def kill(run_python: RunPython, runs: Path, *, rank: int = 0, endpoint: str = "") -> None:
    """Let a real process be killed in train / step / forward."""
    assert -signal.SIGKILL == run_python(VICTIM, str(runs), str(rank), endpoint, check=False).returncode


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journals of a process that was really killed; copy them."""
    import subprocess
    import sys

    runs = tmp_path_factory.mktemp("killed")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "STORMPHASE_"))}
    child = subprocess.run(
        [sys.executable, "-c", VICTIM, str(runs), "0", ""], cwd=runs, env=environ, timeout=100, check=False
    )
    assert -signal.SIGKILL == child.returncode
    return runs


@pytest.fixture
def runs(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The killed process's journals, of this test alone; no endpoint is in the environment."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "STORMPHASE_")):
            monkeypatch.delenv(name)
    return shutil.copytree(killed, tmp_path / "runs")


class MovingClock(threading.Event):
    """What a sender waits on: time passes at once, and how long it would have been is noted."""

    def __init__(self, clock: ManualClock) -> None:
        """Note nothing yet."""
        super().__init__()
        self._clock = clock
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Move the clock."""
        self.waits.append(timeout or 0.0)
        self._clock.advance(int((timeout or 0.0) * 1e9))
        return self.is_set()


@pytest.fixture
def waiting(clock: ManualClock) -> MovingClock:
    """What the test's senders wait on."""
    return MovingClock(clock)


@pytest.fixture
def recover(runs: Path, clock: ManualClock, waiting: MovingClock) -> Callable[..., list[Outcome]]:
    """Recover the test's journals to an endpoint; time is moved by hand."""

    def run(endpoint: str, *, timeout_s: float = 30.0, **options: Any) -> list[Outcome]:
        found = Endpoint.of(endpoint, {})
        assert found is not None
        sender = OtlpSender(found, clock=clock, timeout_s=timeout_s, stopping=waiting)
        return list(Recovery(sender, clock=SystemClock(), **options).run(runs))

    return run


def result_of(outcomes: list[Outcome]) -> tuple[Result, str | None]:
    """Return what became of the one journal."""
    (outcome,) = outcomes
    return outcome.result, outcome.problem


def test_lost_spans_stand_next_to_the_others(collector: Collector, run_python: RunPython, tmp_path: Path) -> None:
    """A real collector gets the tree of a killed run whole: what had ended from the run, the rest from recovery."""
    runs = tmp_path / "runs"
    kill(run_python, runs, endpoint=f"{collector.http_endpoint}/v1/traces")
    assert ["step (parent missing)"] * 3 == outline(collector.spans())

    assert 0 == main(["recover", str(runs), "--otlp", collector.http_endpoint])

    spans = collector.spans()
    assert ["session", "  rank 0", "    train", *["      step"] * 4, "        forward"] == outline(spans)
    lost = [span for span in spans if span.status == "ERROR"]
    assert LOST_SPANS == sorted(span.name for span in lost)
    assert {"stormphase.Lost"} == {span.attributes["error.type"] for span in lost}
    assert {"victim"} == {span.resource["service.name"] for span in spans}
    assert 1 == len({(span.trace_id, repr(span.scope)) for span in spans})
    train = by_name(spans, "train")
    assert (0.5, "lost", "its process died") == (
        train.attributes["lr"],
        train.attributes["stormphase.phase.status"],
        train.attributes["stormphase.phase.reason"],
    )
    assert max(span.ended_ns for span in spans) == train.ended_ns

    assert 0 == main(["recover", str(runs), "--otlp", collector.http_endpoint])
    assert len(spans) == len(collector.spans())


def test_a_collector_that_is_down_is_no_loss(
    recover: Callable[..., list[Outcome]], faulty: FaultyEndpoint, waiting: MovingClock
) -> None:
    """Nothing is marked as sent that was not answered; run again, all arrive, and once."""
    faulty.stop()
    result, problem = result_of(recover(faulty.http_endpoint, timeout_s=10))
    assert (Result.FAILED, True) == (result, "refused" in (problem or ""))
    assert [0.5, 1.0, 2.0, 4.0] == waiting.waits
    faulty.start()
    assert (Result.SENT, None) == result_of(recover(faulty.http_endpoint))
    assert LOST_SPANS == sorted(span.name for span in faulty.spans)
    assert (Result.ALREADY_SENT, None) == result_of(recover(faulty.http_endpoint))
    assert 1 == faulty.totals.requests


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_be_tried_again_is(
    recover: Callable[..., list[Outcome]], faulty: FaultyEndpoint, waiting: MovingClock, status: int
) -> None:
    """A collector that is throttled is asked again when it says so, with the same bytes."""
    faulty.behave(Behaviour.failing(status, retry_after_s=7), requests=2)
    assert (Result.SENT, None) == result_of(recover(faulty.http_endpoint))
    assert [7.0, 7.0] == waiting.waits
    assert (3, 1) == (len(faulty.bodies), len(set(faulty.bodies)))
    assert 5 == faulty.totals.accepted_spans


def test_a_collector_that_wants_more_time_than_there_is(
    recover: Callable[..., list[Outcome]], faulty: FaultyEndpoint, waiting: MovingClock
) -> None:
    """A pause that is longer than the time allowed is not begun."""
    faulty.behave(Behaviour.failing(503, retry_after_s=3_600))
    result, problem = result_of(recover(faulty.http_endpoint))
    assert (Result.FAILED, True, []) == (result, "503" in (problem or ""), waiting.waits)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500, 501, 307])
def test_what_may_not_be_tried_again_is_not(
    recover: Callable[..., list[Outcome]], faulty: FaultyEndpoint, status: int
) -> None:
    """A refusal is final for this run, and the next run asks anew; a redirect is not followed."""
    faulty.behave(Behaviour.failing(status))
    result, problem = result_of(recover(faulty.http_endpoint))
    assert (Result.FAILED, True, 1) == (result, str(status) in (problem or ""), faulty.totals.requests)
    faulty.behave()
    assert (Result.SENT, None) == result_of(recover(faulty.http_endpoint))


# A rank that dies with spans in the SDK's queue, and perhaps on their way out of it.
QUEUED = """
import os, signal, sys, threading
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from stormphase import PhaseTracker
from stormphase.otel import OTelBridge

runs, hangs = sys.argv[1], sys.argv[2] == "hangs"
exporting = threading.Event()

class Exporter(SpanExporter):
    def export(self, spans):
        if hangs and any(span.name == "late" for span in spans):
            exporting.set()
            threading.Event().wait()
        for span in spans:
            print(span.name, span.attributes["stormphase.step"], flush=True)
        return SpanExportResult.SUCCESS

processor = BatchSpanProcessor(Exporter(), schedule_delay_millis=3_600_000)
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(processor)
tracker = PhaseTracker("job", session_id="launch-1", rank=1, world_size=2, journal=runs, bridge=OTelBridge(provider))
tracker.start()
tracker.enter("train")
for step in range(5):
    tracker.set_step(step)
    with tracker.enter_phase("late" if step > 2 else "step"):
        pass
    if step == 2:
        assert tracker.flush(60)
queue = processor._batch_processor._queue
while len(queue) < 2:
    threading.Event().wait(0.005)
if hangs:
    threading.Thread(target=processor.force_flush, daemon=True).start()
    exporting.wait(60)
    assert not queue
threading.Event().wait(0.5)  # for more than one tick of the bridge
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["waits", "hangs"])
def test_what_waited_in_the_sdks_queue_is_sent_and_what_had_left_it_is_not(
    run_python: RunPython, faulty: FaultyEndpoint, tmp_path: Path, how: str
) -> None:
    """The live process had handed over five spans: three arrived then, and the two that the kill took arrive now."""
    runs = tmp_path / "queued"
    done = run_python(QUEUED, str(runs), how, check=False)
    assert (-signal.SIGKILL, ["step 0", "step 1", "step 2"]) == (done.returncode, done.stdout.split("\n")[:-1])
    assert 0 == main(["recover", str(runs), "--otlp", faulty.http_endpoint])
    found = sorted((span.name, span.attributes["stormphase.phase.status"]) for span in faulty.spans[1:])
    assert [("late", "succeeded"), ("late", "succeeded"), ("train", "lost")] == found
    assert "rank 1" == faulty.spans[0].name


# A rank that walks until it is killed, and says which phases it has ended, and which spans its exporter has taken.
WALKING = """
import os, sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from stormphase import PhaseTracker
from stormphase.otel import OTelBridge

runs, taken = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)

class Exporter(SpanExporter):
    def export(self, spans):
        os.write(taken, b"".join(b"%016x\\n" % span.context.span_id for span in spans))
        return SpanExportResult.SUCCESS

provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(BatchSpanProcessor(Exporter(), schedule_delay_millis=20, max_export_batch_size=64))
bridge = OTelBridge(provider, span_budget=None)
tracker = PhaseTracker("job", session_id="launch-1", rank=1, world_size=2, journal=runs, bridge=bridge)
tracker.start()
tracker.enter("train")
while True:
    with tracker.enter_phase("step") as phase:
        pass
    os.write(1, phase.scope_id.encode() + b"\\n")
"""


@pytest.mark.parametrize("ended", [300, 3_000])
def test_whenever_it_is_killed_no_ended_phase_is_missing(faulty: FaultyEndpoint, tmp_path: Path, ended: int) -> None:
    """Each one that the process knew to have ended was exported by it, or is recovered; neither has any twice."""
    import subprocess
    import sys

    runs, taken = tmp_path / "runs", tmp_path / "taken"
    with subprocess.Popen([sys.executable, "-c", WALKING, str(runs), str(taken)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(ended)]
        process.kill()
        told += [line for line in process.stdout if len(line) == len(told[0])]
    assert 0 == main(["recover", str(runs), "--otlp", faulty.http_endpoint])
    exported = taken.read_text().split()
    recovered = [span.span_id for span in faulty.spans]
    assert set() == {line.decode().strip() for line in told} - {*exported, *recovered}
    assert (len(exported), len(recovered)) == (len(set(exported)), len(set(recovered)))


def test_a_partial_success_is_none(recover: Callable[..., list[Outcome]], faulty: FaultyEndpoint) -> None:
    """Where some spans were rejected nothing is marked, and nothing is sent again at once, as OTLP asks."""
    faulty.behave(Behaviour.partial(2, "too old\x1b[2J"))
    assert (Result.FAILED, "2 of 5 spans were rejected: too old\\x1b[2J") == result_of(recover(faulty.http_endpoint))
    assert 1 == faulty.totals.requests
    faulty.behave()
    assert (Result.SENT, None) == result_of(recover(faulty.http_endpoint))
    assert 1 == len(set(faulty.bodies))


def test_an_answer_that_is_lost_after_delivery_costs_a_copy_only(
    recover: Callable[..., list[Outcome]], faulty: FaultyEndpoint
) -> None:
    """Nobody knows then whether it arrived, so it goes out again, the same to the byte: every backend shows one."""
    faulty.behave(Behaviour.losing_answer(), requests=2)
    assert (Result.SENT, None) == result_of(recover(faulty.http_endpoint))
    assert (3, 1, 15) == (len(faulty.bodies), len(set(faulty.bodies)), faulty.totals.accepted_spans)
    copies = {(span.span_id, repr(span)) for span in faulty.spans}
    assert 5 == len(copies)


def test_a_run_that_is_killed_before_its_mark_is_repeated_to_the_byte(
    recover: Callable[..., list[Outcome]], faulty: FaultyEndpoint, runs: Path
) -> None:
    """Between the answer and the mark a recovery may die: the next one sends the same bytes."""
    recover(faulty.http_endpoint)
    (journal,) = find_journals(runs)
    assert isinstance(journal, Path)
    mark = mark_path(journal)
    first = json.loads(mark.read_text())
    mark.unlink()
    recover(faulty.http_endpoint)
    assert 1 == len(set(faulty.bodies))
    assert first == json.loads(mark.read_text())
    assert 0o600 == mark.stat().st_mode & 0o777


def test_again_sends_to_another_backend(recover: Callable[..., list[Outcome]], faulty: FaultyEndpoint) -> None:
    """What was confirmed is sent once more only if a user says so."""
    recover(faulty.http_endpoint)
    assert (Result.SENT, None) == result_of(recover(faulty.http_endpoint, again=True))
    assert (2, 1) == (len(faulty.bodies), len(set(faulty.bodies)))


def test_a_mark_that_cannot_be_written_is_said(
    recover: Callable[..., list[Outcome]], faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All arrived, but the next run will not know it: that is no success."""
    from stormphase.otel import _recovery

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_recovery, "write_mark", full)
    result, problem = result_of(recover(faulty.http_endpoint))
    assert (Result.FAILED, True) == (result, "No space left" in (problem or "") and "again" in (problem or ""))


def test_two_recoveries_never_run_at_once(
    recover: Callable[..., list[Outcome]], faulty: FaultyEndpoint, runs: Path
) -> None:
    """The second one says who is at it, sends nothing, and works once the first has ended."""
    with SessionLock(runs / "launch-1"):
        result, problem = result_of(recover(faulty.http_endpoint))
        assert (Result.LOCKED, True) == (result, f"process {os.getpid()}" in (problem or ""))
    assert 0 == faulty.totals.requests
    assert (Result.SENT, None) == result_of(recover(faulty.http_endpoint))


HOLDER = """
import sys
from pathlib import Path
from stormphase.journal._marks import SessionLock

lock = SessionLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_dead_holder_is_no_obstacle(
    recover: Callable[..., list[Outcome]], faulty: FaultyEndpoint, runs: Path
) -> None:
    """The lock goes with the process that held it, however that ended."""
    import subprocess
    import sys

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(runs / "launch-1")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert b"held\n" == holder.stdout.readline()
        assert Result.LOCKED is result_of(recover(faulty.http_endpoint))[0]
        holder.kill()
    assert (Result.SENT, None) == result_of(recover(faulty.http_endpoint))


def test_after_one_that_was_not_reached_no_other_is_tried(
    run_python: RunPython,
    runs: Path,
    recover: Callable[..., list[Outcome]],
    faulty: FaultyEndpoint,
    waiting: MovingClock,
) -> None:
    """A job of thousands of ranks does not wait thousands of times for a collector that is down."""
    kill(run_python, runs, rank=1)
    faulty.stop()
    first, second = recover(faulty.http_endpoint, timeout_s=1)
    assert (Result.FAILED, Result.FAILED) == (first.result, second.result)
    assert "not tried" in (second.problem or "")
    assert [0.5] == waiting.waits
    faulty.start()
    assert [Result.SENT, Result.SENT] == [outcome.result for outcome in recover(faulty.http_endpoint)]
    assert sorted([*LOST_SPANS, "forward", "rank 1", "step", "train"]) == sorted(span.name for span in faulty.spans)


def test_the_command_says_what_it_did(
    runs: Path, faulty: FaultyEndpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an endpoint it lists and fails, with one in the environment it sends and is content."""
    assert 1 == main(["recover", str(runs)])
    said = capsys.readouterr().out
    assert "step 3: train / step / forward\n" in said
    assert "5 spans of 1 process to send, and no endpoint was given" in said
    assert 0 == main(["recover", str(runs), "--dry-run"])
    assert not list(runs.rglob("*.sent"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", faulty.http_endpoint)
    assert 0 == main(["recover", str(runs), "--dry-run"])
    assert 0 == faulty.totals.requests
    assert 0 == main(["recover", str(runs)])
    assert f"5 spans of 1 process sent to {faulty.http_endpoint}/v1/traces" in capsys.readouterr().out
    assert 0 == main(["recover", str(runs)])
    assert "nothing left to send" in capsys.readouterr().out


def test_the_next_attempt_recovers_by_itself(
    runs: Path, faulty: FaultyEndpoint, make_tracker: Callable[..., PhaseTracker], caplog: pytest.LogCaptureFixture
) -> None:
    """The session started again on the same directory sends what was left, on its own thread, and itself as before."""
    bridge = OTelBridge(_sdk_provider(), recover=faulty.http_endpoint)
    with caplog.at_level("INFO", logger="stormphase"):
        tracker = make_tracker("job", session_id="launch-1", rank=0, world_size=2, journal=runs, bridge=bridge)
        with tracker:
            assert 1 == tracker.identity.attempt
            assert faulty.wait_for_spans(5)
            assert bridge._recovery is not None
            assert bridge._recovery.wait(60)
    assert LOST_SPANS == sorted(span.name for span in faulty.spans)
    assert "sent 5 spans that earlier attempts" in caplog.text


def test_the_next_attempt_does_not_if_it_is_told_so(
    runs: Path, faulty: FaultyEndpoint, make_tracker: Callable[..., PhaseTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With recover=False an endpoint in the environment is left alone."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", faulty.http_endpoint)
    bridge = OTelBridge(_sdk_provider(), recover=False)
    with make_tracker("job", session_id="launch-1", rank=0, world_size=2, journal=runs, bridge=bridge):
        assert None is bridge._recovery
    assert 0 == faulty.totals.requests


def test_a_next_attempt_with_nowhere_to_send_says_so_once(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where no endpoint is set, one warning names the command; nothing is marked."""
    recovery = BackgroundRecovery(runs, "launch-1", 1, endpoint=None, environ={})
    recovery.start()
    assert recovery.wait(60)
    assert "5 spans wait: no OTLP endpoint is set" in caplog.text
    assert f"stormphase recover {runs}" in caplog.text
    assert not list(runs.rglob("*.sent"))


def test_a_next_attempt_stops_when_its_session_does(
    runs: Path, faulty: FaultyEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """A collector that is down holds up no end of a session."""
    faulty.stop()
    recovery = BackgroundRecovery(runs, "launch-1", 1, endpoint=faulty.http_endpoint, environ={}, timeout_s=3_600)
    recovery.start()
    recovery.stop()
    assert recovery.wait(60)
    assert not list(runs.rglob("*.sent"))


def test_only_attempts_before_this_one_are_touched(runs: Path, faulty: FaultyEndpoint) -> None:
    """A session never takes its own attempt's journals, nor another session's."""
    for session, attempt in (("launch-1", 0), ("launch-2", 9)):
        recovery = BackgroundRecovery(runs, session, attempt, endpoint=faulty.http_endpoint, environ={})
        recovery.start()
        assert recovery.wait(60)
    assert 0 == faulty.totals.requests


def test_a_failing_attempt_to_recover_never_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A directory that is gone, or an address that is none, is one warning."""
    recovery = BackgroundRecovery(tmp_path / "gone", "s", 1, endpoint="nonsense", environ={})
    recovery.start()
    assert recovery.wait(60)
    assert 1 == len(caplog.records)


@pytest.mark.backend
def test_mlflow_shows_the_lost_spans_among_the_others(
    mlflow_server: MlflowServer, run_python: RunPython, tmp_path: Path
) -> None:
    """MLflow has the whole tree once recovery has run, with the killed run's own spans, and its state is ERROR."""
    runs = tmp_path / "runs"
    kill(run_python, runs, endpoint=mlflow_server.traces_endpoint)
    headers = [f"{name}={value}" for name, value in mlflow_server.headers.items()]
    command = ["recover", str(runs), "--otlp", mlflow_server.traces_endpoint, "--header", *headers]
    assert 0 == main(command)
    assert 0 == main([*command, "--again"])
    from stormphase.otel import ids

    trace = mlflow_server.trace(f"{ids.session_trace_id('launch-1', 0):032x}")
    assert ["session", "  rank 0", "    train", *["      step"] * 4, "        forward"] == outline(trace.spans)
    assert "ERROR" == trace.state


def _sdk_provider() -> Any:
    from opentelemetry.sdk.trace import TracerProvider

    return TracerProvider(shutdown_on_exit=False)


def test_the_registry_has_the_command() -> None:
    """`stormphase recover` is one of the commands."""
    from stormphase.cli import COMMANDS

    assert _recover in COMMANDS
