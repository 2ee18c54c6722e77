"""What a phase writes to a descriptor last, before the session ends, is kept with it."""

from __future__ import annotations

import pytest

PROGRAM = """
import os, subprocess, sys
from stormphase import PhaseTracker
from stormphase.stores import MemoryStore

store = MemoryStore()
try:
    with PhaseTracker("x", bridge=None, store=store, capture="fd") as tracker:
        with tracker.enter_phase("train"), tracker.enter_phase("step"):
            LAST
except (RuntimeError, SystemExit, KeyboardInterrupt):
    pass
outside = tracker.capture.output_of(None).lines
assert not outside, outside
print([line.text for record in store.query(kind="phase") for line in record.output if line.stream != "traceback"])
"""

LAST = {
    "a failure": "os.write(2, b'last words\\n'); raise RuntimeError",
    "an exit": "os.write(1, b'last words\\n'); sys.exit(1)",
    "an interrupt": "subprocess.run(['echo', 'last words']); raise KeyboardInterrupt",
    "a stop inside": "os.write(1, b'last words\\n'); tracker.stop()",
    "the end": "os.write(2, b'last words\\n')",
    "much": "os.write(1, b'x' * 30_000 + b'\\n'); os.write(2, b'last words\\n'); raise RuntimeError",
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_words_are_kept_with_their_phase(run_python, name: str) -> None:
    """However the phase ends that ends the session, the store has what it wrote, and nothing is outside of all."""
    for _ in range(2):
        done = run_python(PROGRAM.replace("LAST", LAST[name]), check=False)
        assert "last words" in done.stdout.splitlines()[-1]
