"""The design's budget table: what is promised, where its figure comes from, and why one is missed.

Edit `REASONS` after a run: the reason why a budget is missed is a person's to say, the rest is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import panels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Found = Mapping[str, Mapping[str, Mapping[str, Any]]]

# Budget's key -> why it is missed. A reason is shown only while its budget is missed.
REASONS: dict[str, str] = {
    "threads": "other work ran on the machine's two cores",
    "import": "47 modules of its own, and hashlib, json and logging of the standard library",
}

FLAT_KIB = 1024


@dataclass(frozen=True)
class Budget:
    """One promise.

    Attributes:
        key: its name in `REASONS`.
        what: as the design says it.
        limit: the largest figure that holds.
        figure: reads it from what the panels found; KeyError if a panel was not run.
        unit: what the figure is a multiple of.
    """

    key: str
    what: str
    limit: float
    figure: Callable[[Found], float]
    unit: str = "x floor"


def _ratio(panel: str, subject: str, reference: str, value: str = "best_ns") -> Callable[[Found], float]:
    return lambda found: found[panel][subject][value] / found[panel][reference][value]


def _difference(subject: str, without: str, unit: str = "floor", panel: str = "journal") -> Callable[[Found], float]:
    return lambda found: (
        (found[panel][subject]["best_ns"] - found[panel][without]["best_ns"]) / found[panel][unit]["best_ns"]
    )


BRIDGE_COST = "stormphase with bridge"
SDK = "OTel SDK start_as_current_span + BatchSpanProcessor"

BUDGETS = (
    Budget("root", "no journal, no bridge, at the root", 5, _ratio("local", "stormphase, at the root", "floor")),
    Budget("nested", "no journal, no bridge, nested", 5.5, _ratio("local", "stormphase, nested", "floor")),
    Budget("bridge", "bridge on a real SDK provider, training thread", 9, _ratio("bridge", BRIDGE_COST, "floor")),
    Budget(
        "bridge_of_sdk",
        "the same against the SDK's `start_as_current_span` with a BatchSpanProcessor",
        1 / 6,
        _ratio("bridge", BRIDGE_COST, SDK),
        "x SDK",
    ),
    Budget(
        "cpu_default",
        "CPU of the whole process, spans delivered, default events, against the SDK's plain span",
        1 / 2,
        _ratio("cpu_default", "stormphase with bridge, default events, delivered", "OTel SDK, plain span, delivered"),
        "x SDK",
    ),
    Budget(
        "cpu_span_events",
        "the same with two span events each, against the SDK's that say the same",
        1 / 3,
        _ratio(
            "cpu_span_events",
            "stormphase with bridge, two span events, delivered",
            "OTel SDK, span with two span events, delivered",
        ),
        "x SDK",
    ),
    Budget(
        "cpu_log_events",
        "the same with two log events each",
        1,
        _ratio(
            "cpu_log_events",
            "stormphase with bridge, two log events, delivered",
            "OTel SDK, span with two log events, delivered",
        ),
        "x SDK",
    ),
    Budget(
        "tail",
        "wall p99 of a short step that releases the GIL, nine phases in it, with bridge",
        1.5,
        _ratio("tail", "step of 8 pieces, 9 phases with bridge", "step of 8 pieces, no phases", "p99_ns"),
        "x without",
    ),
    Budget(
        "journal",
        "journal adds",
        3,
        _difference("stormphase, nested, with journal", "stormphase, nested"),
    ),
    Budget(
        "journal_attributes",
        "journal adds with 3 attributes at enter",
        8,
        _difference("stormphase, nested, with journal and 3 attributes", "stormphase, nested, with 3 attributes"),
    ),
    Budget(
        "bridge_journal",
        "bridge and journal, training thread",
        12,
        _ratio("bridge_journal", "stormphase with bridge and journal", "floor"),
    ),
    Budget(
        "bridge_journal_of_sdk",
        "the same against the SDK's `start_as_current_span` with a BatchSpanProcessor",
        1 / 6,
        _ratio("bridge_journal", "stormphase with bridge and journal", SDK),
        "x SDK",
    ),
    Budget(
        "tail_journal",
        "wall p99 of a short step that releases the GIL, nine phases in it, with bridge and journal",
        1.5,
        _ratio(
            "tail_journal",
            "step of 8 pieces, 9 phases with bridge and journal",
            "step of 8 pieces, no phases",
            "p99_ns",
        ),
        "x without",
    ),
    Budget(
        "capture",
        "capture on, nothing printed: more per phase",
        2,
        lambda found: (
            (
                found["capture"]["stormphase, at the root, capture on"]["best_ns"]
                - found["capture"]["stormphase, at the root"]["best_ns"]
            )
            / found["capture"]["floor"]["best_ns"]
        ),
    ),
    Budget(
        "print",
        "a captured `print` of one argument, to the same file",
        3,
        _ratio("print", "print to a file, captured", "print to a file"),
        "x plain",
    ),
    Budget(
        "print_bytes",
        "a captured line of bytes, to a file",
        3,
        _ratio("print_bytes", "lines of bytes to a file, captured", "lines of bytes to a file"),
        "x plain",
    ),
    Budget(
        "print_binary",
        "64 KiB of binary data, captured, to a file",
        3,
        _ratio("print_binary", "64 KiB of binary data to a file, captured", "64 KiB of binary data to a file"),
        "x plain",
    ),
    Budget(
        "print_bar",
        "a captured update of a progress bar that flushes, to a file",
        3,
        _ratio("print_bar", "updates of a progress bar in a file, captured", "updates of a progress bar in a file"),
        "x plain",
    ),
    Budget(
        "print_fd",
        'a `print` under `capture="fd"`, stdout on a file, training thread',
        5,
        _ratio("print_fd", "print to a file, descriptor captured", "print to a file of its own"),
        "x plain",
    ),
    Budget(
        "print_fd_bytes",
        'a line of bytes under `capture="fd"`, stdout on a file, training thread',
        5,
        _ratio("print_fd_bytes", "lines of bytes to a file, descriptor captured", "lines of bytes to a file"),
        "x plain",
    ),
    Budget(
        "print_fd_cpu",
        'the `print` under `capture="fd"`: CPU of the program and of the process between',
        10,
        _ratio("print_fd_cpu", "print to a file, descriptor captured", "print to a file of its own"),
        "x plain",
    ),
    Budget("disabled", "disabled", 1.2, _ratio("disabled", "stormphase, disabled", "floor")),
    Budget(
        "depth",
        "depth 1,000 against 1",
        1.3,
        _ratio("depth", "stormphase, depth 1,000", "stormphase, depth 1"),
        "x depth 1",
    ),
    Budget(
        "threads",
        "16 threads against 1",
        1.3,
        _ratio("threads", "stormphase, 16 threads", "stormphase, 1 thread"),
        "x 1 thread",
    ),
    Budget(
        "growth",
        "the 10,000,000th against the first",
        1.3,
        lambda found: _grown(found)["last_ratio"] / _grown(found)["first_ratio"],
        "x first",
    ),
    Budget(
        "memory",
        "memory after ten million",
        FLAT_KIB,
        lambda found: _grown(found)["grown_bytes"] / 1024,
        "KiB more",
    ),
    Budget(
        "memory_journal",
        "memory after ten million with a journal",
        FLAT_KIB,
        lambda found: found["growth_journal"]["stormphase, at the root, with journal"]["grown_bytes"] / 1024,
        "KiB more",
    ),
    Budget(
        "import", "`import stormphase` against `import attrs`", 2, _ratio("imports", "stormphase", "attrs"), "x attrs"
    ),
    Budget(
        "import_brings",
        f"of {', '.join(panels.FORBIDDEN_AT_IMPORT)}, what it brings along",
        0,
        lambda found: len(found["imports"]["stormphase"]["brought"]),
        "modules",
    ),
)

SKELETON = "bare skeleton of a phase"
IN_PYTHON = "{}, in Python alone"
# The same where the package was built without a C compiler, in multiples of a skeleton, and why: docs/decisions.md, 22.
PURE = (
    Budget(
        "s_root",
        IN_PYTHON.format(BUDGETS[0].what),
        1.6,
        _ratio("local_pure", "stormphase, at the root", SKELETON),
        "x skeleton",
    ),
    Budget(
        "s_nested",
        IN_PYTHON.format(BUDGETS[1].what),
        1.7,
        _ratio("local_pure", "stormphase, nested", SKELETON),
        "x skeleton",
    ),
    Budget(
        "s_bridge",
        IN_PYTHON.format(BUDGETS[2].what),
        2.4,
        _ratio("bridge_pure", BRIDGE_COST, SKELETON),
        "x skeleton",
    ),
    Budget(
        "s_journal",
        "journal adds, in Python alone",
        0.9,
        _difference("stormphase, nested, with journal", "stormphase, nested", SKELETON, "journal_pure"),
        "x skeleton",
    ),
    Budget(
        "s_journal_attributes",
        "journal adds with 3 attributes at enter, in Python alone",
        2.4,
        _difference(
            "stormphase, nested, with journal and 3 attributes",
            "stormphase, nested, with 3 attributes",
            SKELETON,
            "journal_pure",
        ),
        "x skeleton",
    ),
    Budget(
        "s_bridge_journal",
        "bridge and journal, training thread, in Python alone",
        3.2,
        _ratio("bridge_journal_pure", "stormphase with bridge and journal", SKELETON),
        "x skeleton",
    ),
    Budget(
        "s_bridge_journal_of_sdk",
        "the same against the SDK's `start_as_current_span` with a BatchSpanProcessor, in Python alone",
        1 / 5,
        _ratio("bridge_journal_pure", "stormphase with bridge and journal", SDK),
        "x SDK",
    ),
)


def _grown(found: Found) -> Mapping[str, Any]:
    return found["growth"]["stormphase, at the root"]


def missed_by(budget: Budget, figure: float) -> str | None:
    """Say by how much a figure misses its budget; None if it holds."""
    if figure <= budget.limit:
        return None
    return f"{figure:g}" if budget.limit == 0 else f"{(figure / budget.limit - 1) * 100:.0f}%"


def verdict(budget: Budget, figures: Mapping[str, float]) -> str:
    """Say of figures by version whether they hold their budget, and if not which miss it, by how much and why."""
    if not figures:
        return "not measured"
    missed = [f"{version} by {much}" for version, figure in figures.items() if (much := missed_by(budget, figure))]
    if not missed:
        return "held"
    held = [version for version, figure in figures.items() if not missed_by(budget, figure)]
    parts = [f"missed on {', '.join(missed)}", *([f"held on {', '.join(held)}"] if held else [])]
    return f"{'; '.join(parts)}: {REASONS.get(budget.key, 'not yet explained')}"
