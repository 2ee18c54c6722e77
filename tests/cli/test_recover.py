"""`stormphase recover`: what it says to people and to programs, whatever stands in a journal, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from opentelemetry.sdk.trace import TracerProvider

from stormphase._clock import ClockAnchor
from stormphase._model import PhaseStatus, ProcessIdentity, RankIdentity
from stormphase.cli import _recover, main
from stormphase.cli._output import Page
from stormphase.journal._image import JournalImage, JournalPhase
from stormphase.journal._options import JournalOptions
from stormphase.journal._records import lost_records
from stormphase.otel import OTelBridge
from stormphase.otel._otlp_http import Endpoint
from stormphase.otel._recovery import Outcome, Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormphase import PhaseTracker

EVIL = "\x1b[2J[red]\n\u202eevil\u0301\x00"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the environment name no endpoint."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "STORMPHASE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def left_behind(runs: Path, tmp_path: Path, make_tracker: Callable[..., PhaseTracker]) -> Path:
    """The journals of a process with a phase open, which is this one, and lives."""
    bridge = OTelBridge(TracerProvider(shutdown_on_exit=False))
    journal = JournalOptions(tmp_path / "live", max_bytes=1 << 20)
    tracker = make_tracker("job", session_id="launch-1", journal=journal, bridge=bridge)
    with tracker, tracker.enter_phase("train"):
        shutil.copytree(tmp_path / "live", runs)
    return runs


def outcome_of(result: Result, **more: Any) -> Outcome:
    """Return an outcome of a hostile journal."""
    identity = RankIdentity(
        session_id=EVIL, attempt=2, rank=1, local_rank=1, world_size=2, local_world_size=None, node_rank=None,
        host=EVIL, launcher="explicit",
    )  # fmt: skip
    process = ProcessIdentity(host=EVIL, boot_id=None, pid=5, started=None, pid_namespace=None)
    phase = JournalPhase(
        sequence=1, scope_id="0" * 15 + "1", parent_scope_id=None, path=(EVIL, EVIL * 3_000),
        status=PhaseStatus.ACTIVE, entered_ns=0,
        step=3, attributes={EVIL: [EVIL, float("nan")]}, thread_name=EVIL,
    )  # fmt: skip
    image = JournalImage(
        file=Path(EVIL.replace("\0", "")), identity=identity, process=process, facts={},
        anchor=ClockAnchor(monotonic_ns=0, wall_ns=0, uncertainty_ns=0), started_ns=0, heartbeat_ns=2_000_000_000,
        heartbeat_wall_ns=0, step=None, end_note=None, stop_signal=None, stop_asked_ns=None,
        open=tuple(attrs.evolve(phase, sequence=number) for number in range(1, 12)), ended=(), totals={}, unwritten=0,
        unfolded=0, cleared_unsent=0, stacks=(), damage=(),
    )  # fmt: skip
    return Outcome(
        **{
            "file": image.file,
            "result": result,
            "identity": identity,
            "process": process,
            "evidence": EVIL,
            "lost": lost_records(image, EVIL),
            "problem": EVIL,
            "spans": 3,
            "unsampled": 1,
            "unplaced": 2,
            "cleared_unsent": 4,
            "damage": (EVIL,),
            **more,
        }
    )


@pytest.mark.parametrize("result", list(Result))
@pytest.mark.parametrize("is_dry_run", [True, False])
def test_whatever_a_journal_holds_is_shown_harmlessly(
    capsys: pytest.CaptureFixture[str], result: Result, is_dry_run: bool
) -> None:
    """Neither text nor JSON has a control character, and no line is endless."""
    endpoint = Endpoint("http://user:secret@c/v1/traces")
    page = Page(sys.stdout, {})
    outcomes = [outcome_of(result), Outcome(file=outcome_of(result).file, result=result, problem=EVIL)]
    _recover.write_text(page, outcomes, endpoint, is_dry_run=is_dry_run)
    page.show()
    text = capsys.readouterr().out
    assert None is CONTROL.search(text.replace("\n", ""))
    assert max(map(len, text.splitlines())) <= 200
    _recover.write_json(sys.stdout, outcomes, endpoint, is_dry_run=is_dry_run)
    raw = capsys.readouterr().out
    assert raw.isascii()
    assert None is CONTROL.search(raw.replace("\n", ""))
    assert "secret" not in text + raw
    found = json.loads(raw)
    assert sorted(found) == list(found)
    assert 11 == len(found["journals"][0]["lost"])
    assert (result.value, "lost", "NaN") == (
        found["journals"][0]["result"],
        found["journals"][0]["lost"][0]["status"],
        found["journals"][0]["lost"][0]["attributes"][EVIL][1],
    )


def test_people_are_told_what_was_lost_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Each journal that is not simply in order has its lines, the last line sums up."""
    page = Page(sys.stdout, {})
    plain = {"evidence": None, "lost": (), "damage": (), "unsampled": 0, "unplaced": 0, "cleared_unsent": 0}
    outcomes = [
        outcome_of(Result.NOTHING, **plain),
        outcome_of(Result.ALREADY_SENT, **plain),
        outcome_of(Result.UNPROVEN, **plain),
        outcome_of(Result.WAITING),
    ]
    _recover.write_text(page, outcomes, None, is_dry_run=False)
    page.show()
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "attempt 2, rank 1, process 5 on",
        "3 spans sent before",
        "it may be alive, and is left alone",
        "3 spans to send",
        "LOST after 2.00 s, step 3: ",
        "and 3 more (--json has all)",
        "1 span not sent, as they were not sampled",
        "2 phases not sent, as nothing says any more in which trace they were",
        "4 ended phases lost, as the journal had no room to keep them",
        "damaged: ",
        "3 spans of 1 process to send, and no endpoint was given: use --otlp http://collector:4318",
        "nothing proves that 1 process died",
    ):
        assert words in text
    assert "nothing to send" not in text


def test_a_living_process_is_left_alone(command: Callable[..., tuple[int, str, str]], left_behind: Path) -> None:
    """There is nothing to do for it, and that is no failure."""
    code, out, _ = command("recover")
    assert (0, True) == (code, "it lives, and is left alone" in out)
    assert "nothing left to send" in out


def test_programs_get_json(command: Callable[..., tuple[int, str, str]], left_behind: Path) -> None:
    """One object with what became of each journal."""
    code, out, _ = command("recover", "--json", "--otlp", "http://c:4318")
    found = json.loads(out)
    assert (0, "http://c:4318/v1/traces", True, 0) == (
        code,
        found["endpoint"],
        found["is_complete"],
        found["sent_spans"],
    )
    assert ["alive"] == [journal["result"] for journal in found["journals"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--otlp", "nonsense"], "--otlp"),
        (["--header", "a\nb=c"], "--header"),
        (["--session", "nobody"], "No journal of session 'nobody'"),
    ],
)
def test_what_cannot_work_is_said(
    command: Callable[..., tuple[int, str, str]], left_behind: Path, arguments: list[str], words: str
) -> None:
    """A wrong argument is one line on stderr, and exit code 2."""
    code, out, err = command("recover", *arguments)
    assert (2, "", True) == (code, out, words in err)


def test_an_empty_or_missing_directory_is_an_error(command: Callable[..., tuple[int, str, str]], runs: Path) -> None:
    """A wrong path is not taken for a job without losses."""
    assert 2 == command("recover")[0]
    runs.mkdir()
    code, _, err = command("recover")
    assert (2, True) == (code, "No journal in" in err)


@pytest.mark.parametrize("text", ["-1", "nan", "1e9", "soon"])
def test_a_timeout_that_cannot_be_waited_for_is_refused(text: str, runs: Path) -> None:
    """As any wrong argument, before anything is done."""
    with pytest.raises(SystemExit) as caught:
        main(["recover", str(runs), "--timeout-s", text])
    assert 2 == caught.value.code
