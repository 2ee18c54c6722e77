"""Counts the machine instructions of one operation, which no other load on the machine can change.

    python tests/benchmarks/instructions.py ours:Root ours:Nested
    python tests/benchmarks/instructions.py --with .venv/bin/python ours:Root       # an environment of your own

Wall time on a shared machine is only good for ratios, and two versions of a line may differ by less than its noise.
Instruction counts repeat to a few in a thousand: use them to compare two versions of the hot path, and `run.py` for
what is promised. They know nothing of caches and branches, so a count is no time.

A subject's operation is done 1,000 and 5,000 times under `valgrind --tool=callgrind`; start, imports and first sights
cancel out in the difference. The same for an empty loop is taken off. All threads count: with the bridge, that is the
whole process up to delivery. Needs valgrind; takes half a minute per subject. Subjects: see panels.py.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path

from environment import default_cache, make_environment

WORKER = Path(__file__).with_name("worker.py").resolve()
FEW, MANY = 1_000, 5_000
LOOP = "floor:EmptyLoop"
FLOOR = "floor:Floor"
_COLLECTED = re.compile(r"Collected : (\d+)")


class NoCountError(Exception):
    """valgrind said nothing of instructions."""


def instructions_per_operation(python: Path, subject: str) -> float:
    """Return the instructions of one operation of a subject, its share of the loop included.

    Raises:
        NoCountError: if the process failed; the message has its last output.
    """
    return (_instructions(python, subject, MANY) - _instructions(python, subject, FEW)) / (MANY - FEW)


def _instructions(python: Path, subject: str, count: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [str(python), str(WORKER), "--repeat", subject, str(count)]
    with tempfile.TemporaryDirectory() as folder:
        # The same hashes each time: else dicts collide differently, and the difference is not of the subject's making.
        environ = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environ)
    found = _COLLECTED.search(ran.stderr)
    if ran.returncode != 0 or found is None:
        raise NoCountError(f"{subject} cannot be counted: {ran.stderr[-2000:]}")
    return int(found[1])


def main() -> None:
    """Print one line per subject."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="+", help="module:Class, as in panels.py")
    parser.add_argument("--python", default="3.11", metavar="X.Y", help="a version of CPython; default: 3.11")
    parser.add_argument(
        "--with", dest="interpreter", type=Path, help="an interpreter that has stormphase, used as it is"
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the environments are kept")
    arguments = parser.parse_args()
    python = arguments.interpreter or make_environment(arguments.python, arguments.cache).python
    loop = instructions_per_operation(python, LOOP)
    floor = instructions_per_operation(python, FLOOR) - loop
    print(f"{'instructions':>12}  {'x floor':>7}  subject")
    print(f"{floor:12.0f}  {1:7.2f}  {FLOOR}")
    for subject in arguments.subjects:
        count = instructions_per_operation(python, subject) - loop
        print(f"{count:12.0f}  {count / floor:7.2f}  {subject}", flush=True)


if __name__ == "__main__":
    main()
