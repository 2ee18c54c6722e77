"""The example in which much fails: one story, as it printed it, in SQL, in JSON, and as a real collector has it."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

from stormphase.cli import main

from .example import check_one_trace, once, phases_by_path, run_example
from .received import ReceivedLog, ReceivedSpan

if TYPE_CHECKING:
    from .collector import Collector

FETCH = "load / fetch"
CHECK = "clean / check"
TRY_RATE = "train / search / try_rate"
NOISY, SHIFTED = "evaluate / noisy", "evaluate / shifted"
# What went wrong, and because of what: the first of each pair is the second where it went wrong by itself.
BLAMES = {
    (FETCH, FETCH),
    (CHECK, CHECK),
    (TRY_RATE, TRY_RATE),
    ("train / search", TRY_RATE),
    (NOISY, NOISY),
    (SHIFTED, SHIFTED),
    ("evaluate", NOISY),
}
WELL = ["load", "clean", "train", "train / fit", "evaluate / plain"]
SAID = {
    FETCH: ["asking mirror-1 for the digits"],
    CHECK: [f"WARNING pipeline: image {number} has intensities that are no numbers" for number in range(3)],
    TRY_RATE: ["asking for 64 GiB"],
    NOISY: ["digits recognised"],
    SHIFTED: ["digits recognised"],
}


@frozen
class Ran:
    """The one run of the example that all tests look at."""

    folder: Path
    output: str
    spans: list[ReceivedSpan]
    logs: list[ReceivedLog]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, _shared_collector: Collector) -> Ran:
    """Run the example once, with a collector as its backend."""
    folder = tmp_path_factory.mktemp("failures")
    _shared_collector.clear()
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": _shared_collector.http_endpoint, "OTEL_METRICS_EXPORTER": "none"}
    output = run_example("failures.py", cwd=folder, environ=environ)
    return Ran(folder, output, once(_shared_collector.spans()), _shared_collector.logs())


def test_the_report_names_the_true_causes(ran: Ran) -> None:
    """Five causes, in the order of their ends, each with what it said last, what it made fail, and its retry."""
    report = ran.output[ran.output.index("root causes:") :]
    causes = re.findall(r"^\d\. (.*?) (failed|lost): (.*)$", report, re.MULTILINE)
    assert [FETCH, CHECK, TRY_RATE, {NOISY, SHIFTED}] == [
        *(path for path, _, _ in causes[:3]),
        {c[0] for c in causes[3:]},
    ]
    assert ["failed", "failed", "lost", "failed", "failed"] == [status for _, status, _ in causes]
    parts = dict(zip((path for path, _, _ in causes), re.split(r"^\d\. ", report, flags=re.MULTILINE)[1:], strict=True))
    assert "it was tried again: succeeded" in parts[FETCH]
    assert "by that failed: process, train / search" in parts[TRY_RATE]
    assert "by that failed: evaluate, rank, session" in parts[NOISY]
    assert {FETCH, CHECK, SHIFTED} == {path for path, part in parts.items() if "by that failed" not in part}
    for path, said in SAID.items():
        last = re.findall(r"last said: (.*)", parts[path])[-1]
        assert last.endswith(said[-1])


def test_the_readme_shows_this_report(ran: Ran, repository: Path) -> None:
    """Line for line, but for numbers and for which of two evaluations ended first."""
    blocks = re.findall(r"```text\n(.*?)```", (repository / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (shown,) = [block for block in blocks if "root causes:" in block]
    (printed,) = [block for block in ran.output.split("\n\n") if "root causes:" in block]
    assert _without_numbers(printed) == _without_numbers(shown)


def _without_numbers(text: str) -> list[str]:
    return sorted(re.sub(r"\d+", "N", line) for line in text.splitlines())


def test_sql_tells_the_same_story(ran: Ran) -> None:
    """Statuses, root causes, attempts and output in the views of the database, which is whole."""
    assert "the pipeline has failed: " in ran.output
    with closing(sqlite3.connect(ran.folder / "runs" / "failures.db")) as database:
        ask = database.execute
        bad = ask(
            "SELECT p.path, c.path FROM phases p LEFT JOIN phases c ON c.scope_id = p.root_cause_scope_id"
            " WHERE p.status IN ('failed', 'lost')"
        )
        assert BLAMES == set(bad)
        well = ask(
            "SELECT path FROM phases WHERE status = 'succeeded' AND path NOT LIKE '%try_rate' ORDER BY entered_ns"
        )
        assert sorted([*WELL, FETCH]) == sorted(path for (path,) in well)
        owners = ask("SELECT kind, status, error_type, root_cause_path FROM records WHERE kind IN ('session', 'rank')")
        assert {(kind, "failed", "ValueError", NOISY) for kind in ("session", "rank")} == set(owners)
        retries = ask("SELECT attempt, status, attr_mirror FROM phases WHERE path = ? ORDER BY attempt", [FETCH])
        assert [(0, "failed", "mirror-1"), (1, "succeeded", "mirror-2")] == retries.fetchall()
        rates = ask("SELECT attr_rate, status, evidence IS NOT NULL FROM phases WHERE path = ? ORDER BY 1", [TRY_RATE])
        assert [(0.1, "succeeded", 0), (0.5, "succeeded", 0), (2.0, "lost", 1)] == rates.fetchall()
        assert 4 == ask("SELECT count(DISTINCT pid) FROM records").fetchone()[0]
        for path in (FETCH, CHECK, NOISY, SHIFTED):
            said = ask(
                "SELECT o.text FROM output o JOIN phases p USING (scope_id)"
                " WHERE p.path = ? AND p.status = 'failed' AND o.stream IN ('stdout', 'log') ORDER BY o.time_ns",
                [path],
            ).fetchall()
            assert len(SAID[path]) == len(said)
            assert all(text.endswith(expected) for (text,), expected in zip(said, SAID[path], strict=True))
        assert [("ok",)] == ask("PRAGMA integrity_check").fetchall()


def test_json_tells_the_same_story(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    """`stormphase records --format json`, with the command that the example printed."""
    (command,) = re.findall(r"^all of it: stormphase (records .*)$", ran.output, re.MULTILINE)
    words = command.replace("runs/", f"{ran.folder}/runs/").split()
    assert 0 == main([*words, "--status", "failed", "--status", "lost", "--kind", "phase", "--format", "json"])
    records: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    by_scope = {record["scope_id"]: " / ".join(record["path"]) for record in records}
    assert BLAMES == {(" / ".join(record["path"]), by_scope[record["root_cause_scope_id"]]) for record in records}
    assert BLAMES == {(" / ".join(record["path"]), " / ".join(record["root_cause_path"])) for record in records}
    for record in records:
        streams = {line["stream"] for line in record["output"]}
        assert ("traceback" in streams) == (record["traceback"] is not None)


def test_the_collector_has_the_same_story_with_logs_beside_spans(ran: Ran) -> None:
    """One trace in which what failed is red, the retry links to what it retries, and each span has what it said."""
    assert "\n$ stormphase recover " in ran.output
    (trace_id,) = {span.trace_id for span in ran.spans}
    check_one_trace(ran.spans, trace_id, ranks=1)
    phases = phases_by_path(ran.spans)
    bad = {" / ".join(path) for path, found in phases.items() for span in found if span.status == "ERROR"}
    assert {path for path, _ in BLAMES} == bad
    (lost,) = [span for span in phases["train", "search", "try_rate"] if span.status == "ERROR"]
    assert "lost" == lost.attributes["stormphase.phase.status"]
    failed, retried = phases["load", "fetch"]
    assert [failed.span_id] == [link.span_id for link in retried.links]
    check_causes(phases)
    logs = [log for log in ran.logs if not log.event_name]
    for path in (FETCH, CHECK, NOISY, SHIFTED):
        (span,) = [span for span in phases[tuple(path.split(" / "))] if span.status == "ERROR"]
        said = [log for log in logs if (log.trace_id, log.span_id) == (span.trace_id, span.span_id)]
        assert len(SAID[path]) == len(said)
        assert all(str(log.body).endswith(text) for log, text in zip(said, SAID[path], strict=True))
        assert {"WARN" if path == CHECK else "INFO"} == {log.severity for log in said}
        assert all(span.started_ns <= log.time_ns <= span.ended_ns for log in said)


def check_causes(phases: dict[tuple[str, ...], list[ReceivedSpan]]) -> None:
    """Compare the root causes that spans name by id."""
    (noisy,) = phases["evaluate", "noisy"]
    (evaluate,) = phases["evaluate",]
    assert noisy.span_id == evaluate.attributes["stormphase.phase.root_cause_scope_id"]
