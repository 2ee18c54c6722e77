"""What is measured together: one panel is one process, and what it compares takes turns in it.

Subjects are named `module:Class` and imported by the process that measures them, so that no panel imports, configures
or starts what another one needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FLOOR = "floor:Floor"
SKELETON = "skeleton:Skeleton"
MILLISECOND = 1_000_000


@dataclass(frozen=True)
class Panel:
    """One process of measurements.

    Attributes:
        kind: how: "cost" (wall time of the calling thread, without delivery), "cpu" (of the whole process, with
            delivery), "family_cpu" (and of the processes that it has started), "tail", "growth" or "imports".
        subjects: whom, as `module:Class`, or modules to import.
        rounds: how many samples of each.
        sample_ns: how long a sample should take.
        operations: how many operations a round of a tail has, or lie between the two ends of a growth.
        environ: variables set for the process.
    """

    kind: str
    subjects: tuple[str, ...]
    rounds: int = 600
    sample_ns: int = MILLISECOND
    operations: int = 0
    environ: dict[str, str] = field(default_factory=dict)


def _cost(*subjects: str, rounds: int = 600, sample_ns: int = MILLISECOND, **environ: str) -> Panel:
    return Panel("cost", (FLOOR, *subjects), rounds=rounds, sample_ns=sample_ns, environ=environ)


def _cpu(*subjects: str) -> Panel:
    # A sample is one batch as large as the SDK's queue allows, whatever it takes: flushing has its share of the cost.
    return Panel("cpu", subjects, rounds=60, sample_ns=1_000 * MILLISECOND)


_LOCAL = ("ours:Root", "ours:Nested", "ours:NestedWithAttributes", SKELETON)
_JOURNAL = (
    "ours:Nested",
    "ours:NestedWithAttributes",
    "ours_journaled:Journaled",
    "ours_journaled:JournaledWithAttributes",
    SKELETON,
)
_BRIDGE = ("ours_bridged:Bridged", "sdk:SdkSpan", SKELETON)
_BRIDGE_JOURNAL = ("ours_journaled:BridgedAndJournaled", "sdk:SdkSpan", SKELETON)
_PURE = {"STORMPHASE_PURE": "1"}  # As where there was no C compiler.

PANELS: dict[str, Panel] = {
    "contextmanager": _cost("peers:EmptyContextManager"),
    "codetiming": _cost("peers:Codetiming"),
    "nvtx": _cost("peers:Nvtx"),
    "viztracer": _cost("peers:Viztracer"),
    "stormlog_recorder": _cost("peers:StormlogRecorder"),
    "stormlog_tracker": _cost("peers:StormlogTracker"),
    "one_logger": _cost("peers:OneLogger"),
    "logfire": _cost("sdk:Logfire"),
    "local": _cost(*_LOCAL, rounds=1_500),
    "journal": _cost(*_JOURNAL, rounds=1_500),
    "recorder": _cost("ours:RecorderByToken"),
    "bridge": _cost(*_BRIDGE, rounds=1_500),
    "bridge_journal": _cost(*_BRIDGE_JOURNAL, rounds=1_500),
    "local_pure": _cost(*_LOCAL, rounds=1_500, **_PURE),
    "journal_pure": _cost(*_JOURNAL, rounds=1_500, **_PURE),
    "bridge_pure": _cost(*_BRIDGE, rounds=1_500, **_PURE),
    "bridge_journal_pure": _cost(*_BRIDGE_JOURNAL, rounds=1_500, **_PURE),
    "bridge_attributes": _cost("ours_bridged:BridgedWithAttributes", "sdk:SdkSpanWithAttributes"),
    "cpu_default": _cpu("sdk:SdkSpanDelivered", "ours_bridged:BridgedDelivered"),
    "cpu_span_events": _cpu(
        "sdk:SdkSpanWithTwoEvents", "sdk:SdkSpanWithTwoRichEvents", "ours_bridged:BridgedWithSpanEvents"
    ),
    "cpu_log_events": _cpu("sdk:SdkSpanWithTwoLogs", "ours_bridged:BridgedWithLogs"),
    "tail": Panel("tail", ("ours:PlainStep", "ours_bridged:BridgedStep", "sdk:SdkStep"), rounds=24, operations=1_000),
    "tail_journal": Panel(
        "tail", ("ours:PlainStep", "ours_journaled:BridgedAndJournaledStep", "sdk:SdkStep"), rounds=24, operations=1_000
    ),
    "capture": _cost("ours:Root", "ours_captured:Silent", rounds=1_500),
    "print": _cost("ours_captured:PlainPrint", "ours_captured:CapturedPrint"),
    "print_bytes": _cost("ours_printing:BytesLines", "ours_printing:CapturedBytesLines"),
    "print_binary": _cost("ours_printing:Binary", "ours_printing:CapturedBinary"),
    "print_bar": _cost("ours_printing:Bar", "ours_printing:CapturedBar"),
    "print_fd": _cost("ours_printing:Lines", "ours_printing:CapturedDescriptor"),
    "print_fd_bytes": _cost("ours_printing:BytesLines", "ours_printing:CapturedDescriptorBytes"),
    "print_fd_cpu": Panel(
        "family_cpu",
        ("ours_printing:Lines", "ours_printing:CapturedDescriptor"),
        rounds=60,
        sample_ns=1_000 * MILLISECOND,
    ),
    "disabled": _cost("ours:Disabled", STORMPHASE_DISABLED="1"),
    "depth": _cost("ours:Shallow", "ours:Deep"),
    # Longer samples: a thread keeps the GIL for 5 ms, and each of the sixteen should have lost it to another.
    "threads": _cost("ours:OneThread", "ours:SixteenThreads", rounds=20, sample_ns=200 * MILLISECOND),
    "growth": Panel("growth", (FLOOR, "ours:Root"), operations=10_000_000),
    "growth_journal": Panel("growth", (FLOOR, "ours_journaled:JournaledAtRoot"), operations=10_000_000),
    "imports": Panel("imports", ("attrs", "stormphase"), rounds=25),
}

# What `import stormphase` must not bring along.
FORBIDDEN_AT_IMPORT = ("asyncio", "opentelemetry.sdk", "rich", "sqlite3", "torch")
