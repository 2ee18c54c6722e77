"""Measures how long hostile journals keep the commands that read them.

    python tests/benchmarks/hostile.py            # some minutes; the seconds a MiB of each kind of journal, by command
    python tests/benchmarks/hostile.py --only circles --sizes 16 32 64 128

A size is in segments of 16 KiB beside the first four. Figures are CPU time of this one process, without what a small
sane journal takes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stormphase.cli import main as stormphase

JOURNALS = Path(__file__).resolve().parent.parent / "journal"
COMMANDS = {
    "postmortem": ["postmortem"],
    "postmortem --json": ["postmortem", "--json"],
    "top": ["top", "--once"],
    "records": ["records"],
    "records as JSON": ["records", "--format", "json"],
    "recover": ["recover", "--dry-run", "--json", "--assume-dead", "node-1"],
}
BUDGET_S = 1.0
MIB = 1 << 20


def shared(name: str) -> Any:
    """Return a module that the tests of the journal share."""
    spec = importlib.util.spec_from_file_location(f"journal_{name}", JOURNALS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def cpu_s(directory: Path, arguments: list[str]) -> float:
    """Return what a command takes on the journals in a directory."""
    command, *options = arguments
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        began = time.process_time()
        stormphase([command, str(directory), *options])
        return time.process_time() - began


def measure(data: bytes) -> dict[str, float]:
    """Return what each command takes on one journal."""
    with tempfile.TemporaryDirectory() as folder:
        session = Path(folder, "a-session")
        session.mkdir()
        session.joinpath("rank-00000.attempt-0.pid-4242.0.journal").write_bytes(data)
        return {name: cpu_s(Path(folder), arguments) for name, arguments in COMMANDS.items()}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--sizes", nargs="*", type=int, default=[60, 124])
    arguments = parser.parse_args()
    sample, hostile = shared("sample"), shared("hostile")
    for _ in range(2):
        floor = measure(sample.small())
    sizes = " and ".join(f"{(4 + size) / 64:g}" for size in arguments.sizes)
    print(f"| kind of journal, {sizes} MiB | {' | '.join(COMMANDS)} |")
    print("| --- " * (1 + len(COMMANDS)) + "|")
    worst = 0.0
    for kind in arguments.only or hostile.KINDS:
        rows: list[dict[str, float]] = []
        for size in arguments.sizes:
            data = hostile.hostile(kind, size)
            found = measure(data)
            rows.append({name: (found[name] - floor[name]) / (len(data) / MIB) for name in COMMANDS})
        worst = max(worst, *(max(row.values()) for row in rows))
        cells = (", ".join(f"{row[name]:.2f}" for row in rows) for name in COMMANDS)
        print(f"| {kind.replace('_', ' ')} | {' | '.join(cells)} |", flush=True)
    print(f"\nworst: {worst:.2f} s per MiB; budget {BUDGET_S:g}")


if __name__ == "__main__":
    main()
