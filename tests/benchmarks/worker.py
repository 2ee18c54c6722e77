"""Measures one panel in this process and writes what it found as JSON; `run.py` starts it in an environment of its own.

    python tests/benchmarks/worker.py PANEL OUTPUT [--rounds N]
    python tests/benchmarks/worker.py --repeat SUBJECT COUNT

The second form only does an operation COUNT times, for tools that watch a process from outside: see instructions.py.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import Plan, check_delivery, costs, growth, tails, time_delivery
from panels import FORBIDDEN_AT_IMPORT, PANELS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from measure import Subject
    from panels import Panel

PAGE_BYTES = 4096
_CPU_CLOCK = 2  # of another process: what `clock_getcpuclockid` makes of its number

# Run by a fresh interpreter each time: how long an import took, and what came with it.
IMPORT_PROBE = """
import json, sys, time
started = time.perf_counter_ns()
import {module}
elapsed = time.perf_counter_ns() - started
print(json.dumps([elapsed, [name for name in {forbidden!r} if name in sys.modules]]))
"""


def measure_panel(panel: Panel) -> dict[str, Any]:
    """Return what a panel's kind of measurement found, by subject."""
    return _KINDS[panel.kind](panel)


def measure_cost(panel: Panel) -> dict[str, Any]:
    """Measure wall time on the calling thread."""
    plan = Plan(panel.rounds, panel.sample_ns)
    return _measured(panel, lambda subjects: costs(subjects, plan, clock=time.perf_counter_ns))


def measure_cpu(panel: Panel) -> dict[str, Any]:
    """Measure the CPU time of all threads until everything was delivered."""
    plan = Plan(panel.rounds, panel.sample_ns)
    return _measured(panel, lambda subjects: costs(subjects, plan, clock=time.process_time_ns, sample=time_delivery))


def measure_family_cpu(panel: Panel) -> dict[str, Any]:
    """Measure the CPU time of this process and of those that it has started, until everything was delivered."""
    plan = Plan(panel.rounds, panel.sample_ns)
    return _measured(panel, lambda subjects: costs(subjects, plan, clock=family_time_ns, sample=time_delivery))


def family_time_ns() -> int:
    """Return the CPU time of this process, and of its children, those that ended included; Linux only."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time_ns() + int((ended.ru_utime + ended.ru_stime) * 1e9)
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with suppress(OSError):  # It has ended by now, and is among the others.
                total += time.clock_gettime_ns((~int(child) << 3) | _CPU_CLOCK)
    return total


def measure_tail(panel: Panel) -> dict[str, Any]:
    """Measure single steps on the wall clock."""
    return _measured(
        panel,
        lambda subjects: tails(subjects, rounds=panel.rounds, operations=panel.operations, clock=time.perf_counter_ns),
    )


def measure_growth(panel: Panel) -> dict[str, Any]:
    """Measure before and after many operations."""
    reference, subject = load(panel.subjects)
    reference.open()
    subject.open()
    found, operation_count = growth(
        subject,
        reference,
        Plan(panel.rounds, panel.sample_ns),
        operations=panel.operations,
        clock=time.perf_counter_ns,
        resident_bytes=resident_bytes,
    )
    subject.close()
    reference.close()
    return {subject.name: {**asdict(found), "delivered": check_delivery(subject, operation_count)}}


def measure_imports(panel: Panel) -> dict[str, Any]:
    """Import each module in fresh interpreters, taking turns."""
    found: dict[str, Any] = {module: {"best_ns": None, "brought": []} for module in panel.subjects}
    for _ in range(panel.rounds):
        for module in panel.subjects:
            probe = IMPORT_PROBE.format(module=module, forbidden=FORBIDDEN_AT_IMPORT)
            # Isolated: neither the working directory nor the user's own packages are what an import finds.
            ran = subprocess.run([sys.executable, "-I", "-c", probe], check=True, capture_output=True, text=True)
            elapsed, brought = json.loads(ran.stdout)
            best = found[module]["best_ns"]
            found[module] = {"best_ns": elapsed if best is None else min(best, elapsed), "brought": brought}
    return found


_KINDS: dict[str, Callable[[Panel], dict[str, Any]]] = {
    "cost": measure_cost,
    "cpu": measure_cpu,
    "family_cpu": measure_family_cpu,
    "tail": measure_tail,
    "growth": measure_growth,
    "imports": measure_imports,
}


def load(names: Sequence[str]) -> list[Subject]:
    """Import and make subjects from their `module:Class` names."""
    subjects = []
    for name in names:
        module, _, attribute = name.partition(":")
        subjects.append(getattr(importlib.import_module(module), attribute)())
    return subjects


def resident_bytes() -> int:
    """Return how much memory this process has resident; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def repeat(name: str, count: int) -> None:
    """Do a subject's operation `count` times and let it deliver."""
    (subject,) = load([name])
    subject.open()
    subject.prepare()
    subject.batch(count)
    subject.settle()
    subject.close()


def _measured(panel: Panel, measured: Callable[[Sequence[Subject]], dict[str, Any]]) -> dict[str, Any]:
    subjects = load(panel.subjects)
    with ExitStack() as opened:
        for subject in subjects:
            subject.open()
            opened.callback(subject.close)
        found = measured(subjects)
    return {
        subject.name: {
            **asdict(found[subject.name]),
            "delivered": check_delivery(subject, found[subject.name].operation_count),
        }
        for subject in subjects
    }


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", help="a panel's name, or a subject's with --repeat")
    parser.add_argument("where_or_count", help="the file to write, or how often with --repeat")
    parser.add_argument("--repeat", action="store_true")
    parser.add_argument("--rounds", type=int, help="instead of the panel's own")
    arguments = parser.parse_args()
    if arguments.repeat:
        repeat(arguments.what, int(arguments.where_or_count))
        return
    panel = PANELS[arguments.what]
    if arguments.rounds is not None:
        panel = replace(panel, rounds=arguments.rounds)
    Path(arguments.where_or_count).write_text(json.dumps(measure_panel(panel)))


if __name__ == "__main__":
    main()
