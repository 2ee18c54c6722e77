"""The long fault runs, whose figures stand in RESULTS.md: `python tests/faults/run.py [KILLS]`, 1,000 if not said.

Needs the package and its extra `test`. Ends with 1 and the seed at the first journal that does not tell the truth.
"""

# ruff: noqa: T201, TID251 - prints figures, and measures

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

_spec = importlib.util.spec_from_file_location("faults_conftest", Path(__file__).with_name("conftest.py"))
_spec.loader.exec_module(importlib.util.module_from_spec(_spec))

import faults_kills as kills  # noqa: E402 - made importable above

EVERY = 100


def _say(seed, sums):
    if (seed + 1) % EVERY == 0:
        print(f"{seed + 1}: {sums}", flush=True)


def main(count=1_000, first=0):
    """Kill so many writers, and print what was compared."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        sums = kills.run(Path(directory), range(first, first + count), _say)
    print(f"CPython {platform.python_version()}, {platform.system()} {platform.release()}, {os.cpu_count()} cores")
    print(f"seeds {first} to {first + count - 1}, {time.monotonic() - began:.0f} s")
    for name, value in sums.items():
        print(f"{name}: {value:,}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
