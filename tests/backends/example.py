"""Runs the examples as a user does, and compares what they printed with the spans that somebody received."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .received import logs_of, spans_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .received import ReceivedLog, ReceivedSpan

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
LIMIT_S = 100
BYTES_FIELDS = frozenset({"traceId", "spanId", "parentSpanId"})

# What another launcher, backend or session of whoever runs the tests would tell the example.
FOREIGN_PREFIXES = (
    "OTEL_",
    "STORMPHASE_",
    "TRACE",
    "SLURM_",
    "OMPI_",
    "PMI",
    "TORCHELASTIC_",
    "NO_COLOR",
    "FORCE_COLOR",
)
FOREIGN_NAMES = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"})

PathNames = tuple[str, ...]

# Paths of examples/train_digits.py by the lane that they are on.
EPOCH = ("train", "epoch")
STEP = (*EPOCH, "step")
MAIN_LANE = frozenset(
    {
        ("load_dataset",),
        ("train",),
        EPOCH,
        (*EPOCH, "wait_for_batch"),
        STEP,
        (*STEP, "forward"),
        (*STEP, "backward"),
        (*STEP, "update"),
        (*EPOCH, "checkpoint"),
    }
)
OTHER_LANES = frozenset({(*EPOCH, "load_batch"), (*EPOCH, "evaluate"), (*EPOCH, "evaluate", "shard")})


def example_environ(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what would configure an example, and with `changes`."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN_PREFIXES) and name not in FOREIGN_NAMES
    }
    return {**own, **(changes or {})}


def run_example(name: str, *arguments: str, cwd: Path, environ: Mapping[str, str] | None = None) -> str:
    """Run an example in a process of its own and return what it printed; it must end well and complain of nothing."""
    return _output_of([str(EXAMPLES / name), *arguments], cwd, environ)


def run_anywhere(name: str, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
    """Run an example so that its tracebacks say nothing of where the checkout is; else like `run_example`."""
    source = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return _output_of(["-c", source, f"{EXAMPLES.name}/{name}", *arguments], EXAMPLES.parent, environ)


def _output_of(arguments: Sequence[str], cwd: Path, environ: Mapping[str, str] | None) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=example_environ(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr), done.stdout
    return done.stdout


def run_ranks(folder: Path, count: int, environ: Mapping[str, str] | None = None) -> list[str]:
    """Run the ranks of examples/ranks.py as a launcher on one host does, and return what each printed."""
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), **(environ or {})}
    with ExitStack() as running:
        processes = [
            running.enter_context(
                subprocess.Popen(
                    [sys.executable, str(EXAMPLES / "ranks.py"), str(folder)],
                    env=example_environ({**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            for rank in range(count)
        ]
        outputs = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
    assert [0] * count == [process.returncode for process in processes], outputs
    return outputs


def spans_in_file(path: Path) -> list[ReceivedSpan]:
    """Read the spans of a file of OTLP JSON lines; a field that OTLP does not have is an error."""
    return [
        span
        for document in _documents(path)
        for span in spans_of(ParseDict(document, ExportTraceServiceRequest()))  # type: ignore[arg-type]
    ]


def logs_in_file(path: Path) -> list[ReceivedLog]:
    """Read the log records of a file of OTLP JSON lines; else like `spans_in_file`."""
    return [log for document in _documents(path) for log in logs_of(ParseDict(document, ExportLogsServiceRequest()))]


def _documents(path: Path) -> Iterator[Any]:
    for line in path.read_bytes().splitlines():
        yield _with_base64_ids(json.loads(line))


def _with_base64_ids(value: Any) -> Any:
    """Return a document whose ids are as protobuf's own JSON has bytes; OTLP has these in hex."""
    if isinstance(value, list):
        return [_with_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: base64.b64encode(bytes.fromhex(item)).decode() if name in BYTES_FIELDS else _with_base64_ids(item)
        for name, item in value.items()
    }


@frozen
class Shown:
    """What the terminal showed of one path."""

    count: int
    failed: int


def shown_tree(output: str) -> dict[PathNames, Shown]:
    """Read the printed tree: the paths that have a count, and how many failed; nothing if there is no tree."""
    lines = iter(line.rstrip() for line in output.splitlines())
    heading = next((line for line in lines if re.match(r"phase\s+count\b", line)), None)
    if heading is None:
        return {}
    fail_column = heading.index("fail") - 1 if "fail" in heading else len(heading)
    found: dict[PathNames, Shown] = {}
    above: list[str] = []
    for line in lines:
        match = re.match(r"( *)(\S.*?)(?: +(\d+) +[\d.]+(?:ns|us|ms|s)\b.*)?$", line)
        if match is None or line.startswith(("(", "wall time", "accuracy")):
            continue
        indent, label, count = match.groups()
        if label.startswith("beside"):
            above = []
            continue
        if line.startswith("fail:"):
            break
        del above[len(indent) // 2 :]
        # Levels that have no row of their own may stand on the line of their only child.
        above.append(label)
        if count is not None:
            failed = re.match(r" *(\d+)", line[fail_column:])
            path = tuple(name for names in above for name in names.split(" / "))
            found[path] = Shown(int(count), int(failed[1]) if failed else 0)
    return found


def printed_trace_id(output: str) -> str:
    """Return the trace id that an example printed."""
    found = set(re.findall(r"trace ([0-9a-f]{32})\b", output))
    assert 1 == len(found), output
    return str(found.pop())


def printed_span_count(output: str) -> int:
    """Return how many spans an example said it had sent."""
    match = re.search(r"^(\d+) spans ", output, re.MULTILINE)
    assert match is not None, output
    return int(match[1])


def printed_accuracy(output: str) -> float:
    """Return the accuracy that the example said it had reached."""
    match = re.search(r"^accuracy (\d\.\d+) on", output, re.MULTILINE)
    assert match is not None, output
    return float(match[1])


def phases_by_path(spans: Iterable[ReceivedSpan]) -> dict[PathNames, list[ReceivedSpan]]:
    """Group the phases among the spans by their path, which is read from parents and names, and nothing else."""
    spans = list(spans)
    by_id = {span.span_id: span for span in spans}
    found: dict[PathNames, list[ReceivedSpan]] = {}
    for span in sorted(spans, key=lambda span: span.started_ns):
        names = [span.name]
        parent = span
        while parent.parent_span_id is not None:
            parent = by_id[parent.parent_span_id]
            names.append(parent.name)
        if len(names) > 2:  # beneath session and rank
            found.setdefault(tuple(reversed(names[:-2])), []).append(span)
    return found


def once(spans: Sequence[ReceivedSpan]) -> list[ReceivedSpan]:
    """Return spans as a backend shows them that keeps one of each id, and see that all copies of one are the same.

    OTLP is at least once: an exporter whose collector answers too late, on a busy machine, sends a batch again.
    """
    kept = {span.span_id: span for span in reversed(spans)}
    assert [] == [span.name for span in spans if kept[span.span_id] != span]
    return [span for span in spans if kept.pop(span.span_id, None) is not None]


def check_one_trace(spans: Sequence[ReceivedSpan], trace_id: str, ranks: int) -> None:
    """Compare ids and parents with those of one whole trace of so many ranks."""
    assert {trace_id} == {span.trace_id for span in spans}
    ids = Counter(span.span_id for span in spans)
    assert 1 == max(ids.values())
    assert {None} == {span.parent_span_id for span in spans} - set(ids)
    (root,) = [span for span in spans if span.parent_span_id is None]
    beneath = sorted(span.name for span in spans if span.parent_span_id == root.span_id)
    assert ("session", [f"rank {rank}" for rank in range(ranks)]) == (root.name, beneath)


def check_digits(spans: Sequence[ReceivedSpan], output: str, *, epochs: int, steps_per_epoch: int) -> None:
    """Compare the spans of a run of examples/train_digits.py with the program, and with what it printed."""
    check_one_trace(spans, printed_trace_id(output), ranks=1)
    assert len(spans) == printed_span_count(output)
    phases = phases_by_path(spans)
    assert MAIN_LANE | OTHER_LANES == set(phases)
    counts = {path: len(found) for path, found in phases.items()}
    steps = epochs * steps_per_epoch
    assert {
        ("load_dataset",): 1,
        ("train",): 1,
        EPOCH: epochs,
        (*EPOCH, "load_batch"): steps,
        (*EPOCH, "wait_for_batch"): steps,
        STEP: steps,
        (*STEP, "forward"): steps,
        (*STEP, "backward"): steps,
        (*STEP, "update"): steps,
        (*EPOCH, "evaluate"): epochs,
        (*EPOCH, "evaluate", "shard"): 2 * epochs,
        (*EPOCH, "checkpoint"): epochs + 1,
    } == counts
    shown = shown_tree(output)
    assert counts == {path: row.count for path, row in shown.items()}
    assert {(*EPOCH, "checkpoint"): 1} == {path: row.failed for path, row in shown.items() if row.failed}
    _check_attributes(phases, output)
    _check_failure(spans, phases)
    _check_times(spans, phases)


def _check_attributes(phases: Mapping[PathNames, Sequence[ReceivedSpan]], output: str) -> None:
    for path, found in phases.items():
        assert {" / ".join(path)} == {span.attributes["stormphase.phase.path"] for span in found}
        assert {len(path)} == {span.attributes["stormphase.phase.depth"] for span in found}
        assert {"INTERNAL", "UNSPECIFIED"} >= {span.kind for span in found}
    steps = phases[STEP]
    assert list(range(len(steps))) == [span.attributes["stormphase.step"] for span in steps]
    losses = [span.attributes["loss"] for span in steps]
    assert losses[0] > losses[-1] > 0
    last = phases[(*EPOCH, "evaluate")][-1]
    assert f"{last.attributes['accuracy']:.3f}" == f"{printed_accuracy(output):.3f}"
    assert "evaluate" == str(last.attributes["code.function.name"]).rpartition(".")[2]
    (main_thread,) = {span.attributes["thread.id"] for path in MAIN_LANE for span in phases[path]}
    loads = phases[(*EPOCH, "load_batch")]
    assert main_thread not in {span.attributes["thread.id"] for span in loads}
    assert {"loader"} == {str(span.attributes["thread.name"]).partition("_")[0] for span in loads}


def _check_failure(spans: Sequence[ReceivedSpan], phases: Mapping[PathNames, Sequence[ReceivedSpan]]) -> None:
    """Look for the one failure, handled and tried again, which marks its own span and no other."""
    failed, retried = phases[(*EPOCH, "checkpoint")][-2:]
    assert [failed] == [span for span in spans if span.status != "UNSET"]
    assert ("ERROR", "OSError: [Errno 28] injected: no space left on device") == (failed.status, failed.status_message)
    assert ("failed", "OSError", 0) == tuple(
        failed.attributes[name] for name in ("stormphase.phase.status", "error.type", "stormphase.phase.attempt")
    )
    (event,) = failed.events
    assert ("exception", "OSError") == (event.name, event.attributes["exception.type"])
    assert "in write" in str(event.attributes["exception.stacktrace"])
    assert (failed.parent_span_id, 1, "succeeded") == (
        retried.parent_span_id,
        retried.attributes["stormphase.phase.attempt"],
        retried.attributes["stormphase.phase.status"],
    )
    assert [(failed.trace_id, failed.span_id)] == [(link.trace_id, link.span_id) for link in retried.links]
    assert [retried] == [span for span in spans if span.links]
    assert [failed] == [span for span in spans if span.events]


def _check_times(spans: Sequence[ReceivedSpan], phases: Mapping[PathNames, Sequence[ReceivedSpan]]) -> None:
    """Children lie within their parents and, on one lane, one after the other; with the own time they add up."""
    by_id = {span.span_id: span for span in spans}
    children: dict[str, list[ReceivedSpan]] = {}
    for path, found in phases.items():
        for span in found:
            parent = by_id[str(span.parent_span_id)]
            assert parent.started_ns <= span.started_ns <= span.ended_ns <= parent.ended_ns
            if path in MAIN_LANE:
                children.setdefault(parent.span_id, []).append(span)
    for path in MAIN_LANE:
        for span in phases[path]:
            beneath = sorted(children.get(span.span_id, []), key=lambda child: child.started_ns)
            for earlier, later in itertools.pairwise(beneath):
                assert earlier.ended_ns <= later.started_ns
            own_ns = span.duration_ns - sum(child.duration_ns for child in beneath)
            assert own_ns == round(float(span.attributes["stormphase.phase.self_time"]) * 1e9)
            assert 0 <= own_ns
