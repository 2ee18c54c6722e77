"""The examples run, do what they say, and their files are what they showed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .backends.example import (
    check_digits,
    check_one_trace,
    logs_in_file,
    phases_by_path,
    printed_accuracy,
    printed_span_count,
    printed_trace_id,
    run_example,
    run_ranks,
    spans_in_file,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_digits_are_learned_and_the_file_is_the_tree_that_was_shown(tmp_path: Path) -> None:
    """The example reaches its accuracy, and its file has valid OTLP with every phase in place."""
    output = run_example("train_digits.py", cwd=tmp_path)

    assert printed_accuracy(output) > 0.95
    assert "; 12 checkpoints written\n" in output
    assert f"{printed_span_count(output)} spans in trace {printed_trace_id(output)}, 0 dropped\n" in output
    (traces,) = (tmp_path / "train_digits_spans").glob("traces-rank0-pid*.jsonl")
    (logs,) = (tmp_path / "train_digits_spans").glob("logs-rank0-pid*.jsonl")
    assert f"traces are in {traces.relative_to(tmp_path)}\nlogs are in {logs.relative_to(tmp_path)}\n" in output
    spans = spans_in_file(traces)
    check_digits(spans, output, epochs=12, steps_per_epoch=43)
    failed = phases_by_path(spans)["train", "epoch", "checkpoint"][-2]
    (event,) = [log for log in logs_in_file(logs) if log.severity == "ERROR"]
    assert ("stormphase.phase.exit", failed.trace_id, failed.span_id) == (
        event.event_name,
        event.trace_id,
        event.span_id,
    )


def test_a_shorter_run_goes_where_it_is_told(tmp_path: Path) -> None:
    """Epochs, batch size and folder are what the command line says."""
    output = run_example("train_digits.py", "--epochs=1", "--batch-size=449", "--folder=there", cwd=tmp_path)

    (traces,) = (tmp_path / "there").glob("traces-*.jsonl")
    check_digits(spans_in_file(traces), output, epochs=1, steps_per_epoch=3)


@pytest.mark.parametrize("switch", [{"STORMPHASE_DISABLED": "1"}, {"OTEL_SDK_DISABLED": "true"}])
def test_digits_are_learned_with_telemetry_off(tmp_path: Path, switch: dict[str, str]) -> None:
    """Switched off from outside, the example trains as well and says that there are no spans."""
    output = run_example("train_digits.py", "--epochs=2", cwd=tmp_path, environ=switch)

    assert printed_accuracy(output) > 0.8
    assert "no spans: the environment switches stormphase, or OpenTelemetry, off\n" in output
    assert not any(path.read_bytes() for path in tmp_path.rglob("*.jsonl"))


def test_four_ranks_are_one_trace(tmp_path: Path) -> None:
    """Four processes with the same seed and tokens across functions share one trace, and the parent shows it whole."""
    output = run_example("ranks.py", cwd=tmp_path)

    shown = [line.split() for line in output.splitlines() if line.endswith(" ms")]
    names = [words[0] if words[0] != "rank" else f"rank {words[1]}" for words in shown]
    a_rank = ["step", "compute"] * 3
    assert ["session", *(name for rank in range(4) for name in (f"rank {rank}", *a_rank))] == names
    assert 4 == len({words[words.index("process") + 1] for words in shown})
    assert f"29 spans of 4 processes, all in trace {printed_trace_id(output)}\n" in output
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("switch", [{"STORMPHASE_DISABLED": "1"}, {"OTEL_SDK_DISABLED": "true"}])
def test_ranks_work_with_telemetry_off(tmp_path: Path, switch: dict[str, str]) -> None:
    """Switched off from outside, four ranks do their steps as well, and say that they have no trace."""
    output = run_example("ranks.py", cwd=tmp_path, environ=switch)

    assert 4 == output.count(": no trace: the environment switches stormphase, or OpenTelemetry, off\n")


def test_ranks_of_any_launcher_write_files_that_join_up(tmp_path: Path) -> None:
    """Started as a launcher does it, each rank leaves a file; all of them together are one whole trace."""
    outputs = run_ranks(tmp_path, count=4)

    spans = [span for path in tmp_path.glob("traces-*.jsonl") for span in spans_in_file(path)]
    check_one_trace(spans, printed_trace_id("".join(outputs)), ranks=4)
    assert 4 == len({span.resource["process.pid"] for span in spans})
    assert {("step",): 12, ("step", "compute"): 12} == {
        path: len(found) for path, found in phases_by_path(spans).items()
    }
    assert {"UNSET"} == {span.status for span in spans}
