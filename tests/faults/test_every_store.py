"""The writer stopped after each single store, whatever it is doing: what is open is found open, what has ended ended.

A process that is killed leaves its mapped file as it is at that instant. So the file is read after each store, and once
more from processes that are really killed there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import faults_scripts as scripts
import pytest
from faults_stores import DOORS

KILLS = 8  # of each script

told = {}  # by script and doors: what the journal said after each store


@pytest.fixture(autouse=True)
def no_trio(monkeypatch):
    """Where trio is loaded, each enter is the Python's; the processes that are killed have not loaded it."""
    monkeypatch.delitem(sys.modules, "trio", raising=False)


def summary(image):
    """Return what an image says, without what differs between two processes."""
    return (
        [(each.sequence, each.path, each.status, each.entered_ns, each.step, each.attributes) for each in image.open],
        [(each.sequence, each.path, each.status, each.entered_ns, each.ended_ns) for each in image.ended],
        {path: (totals.count, totals.total_ns, totals.buckets) for path, totals in image.totals.items()},
        (image.unfolded, image.unwritten, image.step, image.damage),
    )


@pytest.mark.parametrize("doors", DOORS)
@pytest.mark.parametrize("script", scripts.SCRIPTS, ids=lambda script: script.__name__)
def test_after_every_single_store_the_journal_tells_the_truth(tmp_path, script, doors):
    """Also in the middle of each: nothing confirmed is missing, nothing is told twice, nothing is invented."""
    looks = told[script.__name__, doors] = {}

    def look(play, store):
        image = scripts.image_of(play.file.content())
        play.truth.check(image, f"store {store}, {play.act}")
        looks[store] = summary(image)

    scripts.perform(script, tmp_path / "rank-0.journal", look, doors)
    assert len(looks) > 100


@pytest.mark.parametrize("doors", DOORS)
def test_a_process_that_is_killed_there_leaves_the_same(tmp_path, doors):
    """SIGKILL right after a store: the file on the disk says what the mapped one said."""
    stops = []
    for name in ("plain", "moves", "orphans"):
        if (name, doors) not in told:
            test_after_every_single_store_the_journal_tells_the_truth(tmp_path, getattr(scripts, name), doors)
            (tmp_path / "rank-0.journal").unlink()
        stores = sorted(told[name, doors])
        stops += [(name, store) for store in stores[:: -(-len(stores) // KILLS)]]
    arguments = [f"{name}:{store}:{doors}" for name, store in stops]
    program = Path(scripts.__file__)
    done = subprocess.run(
        [sys.executable, program, tmp_path, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    for name, store in stops:
        file = tmp_path / f"rank-{name}-{store}.journal"
        image = scripts.image_of(file.read_bytes())
        assert told[name, doors][store] == summary(image), f"{name}, store {store}"
    assert len(stops) > 2 * KILLS
