"""The example that crashes: what its journals tell while it hangs, and what a collector has once it was recovered."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .example import EXAMPLES, LIMIT_S, check_one_trace, example_environ, once, phases_by_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .collector import Collector
    from .received import ReceivedSpan

RANKS = range(8)
KILLED, HUNG = 3, 5
WAITING = [0, 1, 2, 4, 6, 7]
LAST_STEP = 16
STEP = ("train", "step")
PLACES = {**dict.fromkeys(RANKS, "all_reduce"), KILLED: "backward", HUNG: "data_loading"}
IN_A_STEP = ["data_loading", "forward", "backward", "all_reduce", "optimizer"]


@contextmanager
def crashing(cwd: Path, environ: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run the example with a job that stays until Ctrl-C, in a process that is gone at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "crash.py"), "runs", f"--step={LAST_STEP}", f"--keep={10 * LIMIT_S}"],
        cwd=cwd,
        env=example_environ(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def read_until(process: subprocess.Popen[str], beginning: str) -> list[str]:
    """Return the lines that a process prints, up to one that begins so."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith(beginning):
            return lines
    raise AssertionError(lines)


def stormphase(cwd: Path, *arguments: str) -> tuple[int, str]:
    """Run the command in a process of its own; return its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "stormphase.cli", *arguments],
        cwd=cwd,
        env=example_environ({"COLUMNS": "400"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert "" == done.stderr
    return done.returncode, done.stdout


def test_who_died_who_hangs_and_who_waits_is_told_and_then_sent(collector: Collector, tmp_path: Path) -> None:
    """Of eight ranks the one that was killed and the one that hangs are named with phase and step, and what was open
    arrives as LOST, once, beside what had ended, in one trace; Ctrl-C leaves no process behind.
    """
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint, "OTEL_METRICS_EXPORTER": "none"}
    with crashing(tmp_path, environ) as process:
        lines = read_until(process, "the job stays for ")
        code, told = stormphase(tmp_path, "postmortem", "runs", "--json")
        top_code, top = stormphase(tmp_path, "top", "runs", "--once")
        process.send_signal(signal.SIGINT)
        # Every rank has the other end of this pipe: it ends with the last of them.
        rest, _ = process.communicate(timeout=LIMIT_S)

    assert (1, 0, 0) == (code, top_code, process.returncode)
    assert "rank 3 was ended by SIGKILL; no other rank moves" in lines
    assert "$ stormphase postmortem runs" in lines
    check_notices(lines)
    check_readme(lines)
    check_postmortem(json.loads(told))
    rows = [line.split() for line in top.splitlines() if line[:1].isdigit() and " step / " in line]
    assert PLACES == {int(words[0]): words[-1] for words in rows}
    assert f"  stormphase recover runs --otlp {collector.http_endpoint}\n" in rest

    check_handed_over(once(collector.spans()))
    assert 0 == stormphase(tmp_path, "recover", "runs", "--otlp", collector.http_endpoint)[0]
    received = collector.spans()
    check_recovered(once(received))
    assert (0, "nothing left to send") == last_line(tmp_path, "recover", "runs", "--otlp", collector.http_endpoint)
    assert received == collector.spans()
    code, told = stormphase(tmp_path, "postmortem", "runs", "--json")
    assert (1, {"killed"}) == (code, {rank["state"] for rank in json.loads(told)["ranks"]})
    assert [KILLED, HUNG] == [suspect["rank"] for suspect in json.loads(told)["suspects"]]


def last_line(cwd: Path, *arguments: str) -> tuple[int, str]:
    """Run the command; return its exit code and the last line that it printed."""
    code, output = stormphase(cwd, *arguments)
    return code, output.splitlines()[-1]


def check_notices(lines: list[str]) -> None:
    """Look for one line of each rank that lives, which says where it has been for too long."""
    notices = [line.split(", longer than ")[0] for line in lines if ", longer than its limit of 2.0 s; " in line]
    assert sorted(f"rank {rank} has been in train / step / {PLACES[rank]}" for rank in (*WAITING, HUNG)) == sorted(
        notice.removeprefix("stormphase: ").rpartition(" for ")[0] for notice in notices
    )


def check_readme(lines: list[str]) -> None:
    """Look for what README shows of `postmortem`, whatever the figures, and wherever lines end."""
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    shown = re.findall(
        r"^```text\n((?:stormphase postmortem:|  Python stack of ).*?)^```$", readme, re.MULTILINE | re.DOTALL
    )
    assert 2 == len(shown)
    printed = without_figures("\n".join(lines))
    assert [] == [text for text in map(without_figures, shown) if text not in printed], printed


def without_figures(text: str) -> str:
    """Return a text on one line, with ids, figures, hosts and folders all alike."""
    text = re.sub(r"crash-[0-9a-f]{8}", "ID", " ".join(text.split()))
    text = re.sub(r"\S+/(\w+\.py):\d+", r"\1", text)
    text = re.sub(r"is gone from \S+;", "is gone;", text)
    text = re.sub(r"\d+(\.\d+)?( (us|ms|s)\b)?", "#", text)
    return text.replace(" (# to #)", "")


def check_postmortem(told: dict[str, Any]) -> None:
    """Compare what `postmortem` tells with what the ranks really did."""
    ranks = {rank["rank"]: rank for rank in told["ranks"]}
    states = {**dict.fromkeys(RANKS, "running"), KILLED: "killed"}
    assert (states, LAST_STEP) == ({rank: each["state"] for rank, each in ranks.items()}, ranks[KILLED]["step"])
    assert {rank: ["train", "step", place] for rank, place in PLACES.items()} == {
        rank: each["open"][-1]["path"] for rank, each in ranks.items()
    }
    assert told["is_hung"]
    assert [WAITING, [KILLED], [HUNG]] == [group["ranks"] for group in told["groups"]]
    killed, hung = told["suspects"]
    assert (KILLED, "dead_and_awaited", HUNG, "awaited") == (
        killed["rank"], killed["kind"], hung["rank"], hung["kind"]
    )  # fmt: skip
    for suspect in (killed, hung):
        where = f"in train / step / {PLACES[suspect['rank']]} (step {LAST_STEP})"
        assert where in suspect["reason"]
        assert "it never entered that step's all_reduce, and is what 6 ranks wait for" in suspect["reason"]


def check_handed_over(spans: list[ReceivedSpan]) -> None:
    """Compare what ranks sent of themselves with what had ended: nothing is missing but what the kill caught."""
    assert {"UNSET"} == {span.status for span in spans}
    counts = Counter((span.attributes["stormphase.rank"], span.name) for span in spans)
    for rank, place in PLACES.items():
        ended = {"rendezvous": 1, **dict.fromkeys(["step", *IN_A_STEP], LAST_STEP)}
        before = IN_A_STEP[: IN_A_STEP.index(place)]
        found = {name: counts[rank, name] for name in ended}
        if rank == KILLED:  # Nobody knows how far what ended in its last step had got.
            found.update({name: min(found[name], LAST_STEP) for name in before})
            before = []
        assert {name: count + (name in before) for name, count in ended.items()} == found


def check_recovered(spans: list[ReceivedSpan]) -> None:
    """Look for one whole trace, in which exactly what was open is LOST."""
    (trace_id,) = {span.trace_id for span in spans}
    check_one_trace(spans, trace_id, ranks=len(RANKS))
    lost = [span for span in spans if span.status == "ERROR"]
    assert {"stormphase.Lost"} == {span.attributes["error.type"] for span in lost}
    assert sorted(["session", *(f"rank {rank}" for rank in RANKS), *["train", "step"] * 8, *PLACES.values()]) == sorted(
        span.name for span in lost
    )
    phases = phases_by_path(spans)
    for rank, place in PLACES.items():
        (last,) = [span for span in phases[(*STEP, place)] if span in lost and is_of(span, rank)]
        assert (LAST_STEP, "lost") == tuple(last.attributes[f"stormphase.{name}"] for name in ("step", "phase.status"))
        (step,) = [span for span in phases[STEP] if span.span_id == last.parent_span_id]
        assert step in lost
        assert LAST_STEP == sum(span not in lost and is_of(span, rank) for span in phases[STEP])


def is_of(span: ReceivedSpan, rank: int) -> bool:
    """Return whether a span is a rank's."""
    return span.attributes["stormphase.rank"] == rank


def test_no_rank_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    """When the launcher is killed by SIGKILL, which it cannot react to, its ranks end all the same."""
    with crashing(tmp_path) as process:
        read_until(process, "session ")
        process.kill()
        # It ends with the last process that has the other end of it.
        process.communicate(timeout=LIMIT_S)

    assert -signal.SIGKILL == process.returncode
