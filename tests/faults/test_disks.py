"""Disks that are full, small, read-only or gone: training goes on, or an error at start says what to do.

What a quota says when it is used up is tested at every growth step in `tests/journal/test_writer_room.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from stormphase.journal import read_directory

BEGIN = """
import json, logging, os, resource, shutil, signal, subprocess, sys, threading
from pathlib import Path
from stormphase import PhaseTracker
from stormphase._drain import flush_all
from stormphase.journal import read_directory
from stormphase.journal._options import JournalOptions

MIB = 1 << 20
logs = []

class Keep(logging.Handler):
    def emit(self, record):
        logs.append(record.getMessage())

logging.getLogger("stormphase").addHandler(Keep())

def tracker_of(directory, session="s", max_bytes=8 * MIB):
    options = JournalOptions(directory, max_bytes=max_bytes)
    return PhaseTracker(session_id=session, rank=0, world_size=1, bridge=None, summary=False, journal=options).start()

def work(tracker, segments):
    for _ in range(segments * 226):
        with tracker.enter_phase("step"):
            pass
    return segments * 226

def fill(tracker):
    # With nobody to fold until the journal has grown as far as it can, then with the worker as it is.
    folder = tracker._session.journal._open._folder
    folder.fold = lambda segment, is_urgent: False
    ended = work(tracker, 1)
    while not logs and ended < 1_000_000:
        ended += work(tracker, 20)
    del folder.fold
    return ended + work(tracker, 100)

def told(directory, tracker=None):
    if tracker is not None:  # A journal whose worker folds one segment after the other never rests to be counted.
        flush_all([tracker._session.journal._open._worker], 30.0, is_last=False)
    (image,) = read_directory(directory)
    totals = sum(each.count for each in image.totals.values())
    return {
        "open": [phase.path for phase in image.open],
        "count": totals + image.unfolded,
        "unwritten": image.unwritten,
        "damage": image.damage,
        "bytes": None if tracker is None else tracker.stats()["journal"]["bytes"],
        "logs": len(logs),
        "text": " ".join(logs),
    }

def say(**what):
    print(json.dumps(what), flush=True)
"""

# A session on a disk of so many bytes; then whatever room is left is taken by another file.
ON_SMALL_DISKS = """
base = Path(sys.argv[1])
for mib in (0, 1, 2, 3):
    disk = base / f"disk-{mib}"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib * 1024 + 160}k", "none", str(disk)], check=True)
    logs.clear()
    tracker = tracker_of(disk, f"s{mib}")
    if mib == 0:
        tracker.enter_phase("train").close()
        tracker.stop()
        say(mib=mib, logs=len(logs), text=" ".join(logs), journals=len(list(disk.rglob("*.journal"))))
        continue
    tracker.enter_phase("train", {"k": 1})
    ended = fill(tracker)
    try:
        with open(disk / "ballast", "wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
    except OSError:
        pass
    ended += work(tracker, 100)
    say(mib=mib, ended=ended, **told(disk, tracker))
    tracker.stop()
    say(mib=mib, ended=ended + 1, **told(disk))
"""

UNDER_A_LIMIT = """
base = Path(sys.argv[1])
for kib in (2_600, 1_024, 1_000):
    logs.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, resource.RLIM_INFINITY))
    tracker = tracker_of(base / str(kib), f"s{kib}")
    tracker.enter_phase("train", {"k": 1})
    if kib == 1_000:
        say(logs=logs[:], journals=len(list((base / str(kib)).rglob("*.journal"))))
        continue
    ended = work(tracker, 300)
    say(ended=ended, length=next(base.rglob(f"s{kib}/*.journal")).stat().st_size, **told(base / str(kib), tracker))
"""


def said(done):
    """Return what the program printed."""
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_full(lines):
    """Check what a program said of disks that had room for a whole number of MiB."""
    for line in lines:
        assert (0, []) == (line["unwritten"], line["damage"]), line
        assert line["ended"] == line["count"], line
        assert 1 == line["logs"], line
        assert "cannot grow beyond" in line["text"]
        if line["bytes"] is not None:
            assert line["mib"] << 20 == line["bytes"], line
            assert [["train"]] == line["open"]


def _namespace():
    """Return the command that runs another one where it may mount, or None."""
    for command in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        trial = [*command, "sh", "-c", "mount -t tmpfs none /mnt"]
        if shutil.which("unshare") and not subprocess.run(trial, capture_output=True, check=False).returncode:
            return command
    return None


@pytest.fixture(scope="module")
def namespace():
    """Return a command's beginning: what it runs has mounts of its own."""
    command = _namespace()
    if command is None:
        pytest.skip("nothing can be mounted here; test_writer_room.py has the same errors without a disk")
    return command


def run_there(namespace, source, *arguments):
    """Run source text where it may mount."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [*namespace, sys.executable, "-c", source, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env=environ,
        cwd="/",
    )


def test_a_disk_that_is_full_at_any_growth_step_costs_a_warning(namespace, tmp_path):
    """A real one of 160 KiB, and of 1, 2 and 3 MiB: no SIGBUS, one line in the log, all counted, what is open kept."""
    first, *others = said(run_there(namespace, BEGIN + ON_SMALL_DISKS, tmp_path))
    assert (0, 1, 0) == (first["mib"], first["logs"], first["journals"])
    assert "no room for a journal" in first["text"]
    assert [1, 1, 2, 2, 3, 3] == [line["mib"] for line in others]
    check_full(others)


def test_a_limit_of_file_size_bounds_the_file(run_python, tmp_path):
    """No longer than the process may write; where that is too short for any, one line says that there is none."""
    *bounded, none = said(run_python(BEGIN + UNDER_A_LIMIT, str(tmp_path)))
    assert [162 * 16_384, 64 * 16_384] == [line["length"] for line in bounded]
    for line in bounded:
        assert (line["ended"], 0, 0, []) == (line["count"], line["unwritten"], line["logs"], line["damage"])
        assert [["train"]] == line["open"]
    assert (1, 0) == (len(none["logs"]), none["journals"])


def test_a_disk_that_is_read_only_is_an_error_at_start(namespace, tmp_path):
    """It names the directory and what to do, before anything has begun."""
    source = """
disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(disk)], check=True)
try:
    tracker_of(disk)
except Exception as error:
    say(error=type(error).__name__, text=str(error), setting=error.setting)
"""
    (line,) = said(run_there(namespace, BEGIN + source, tmp_path))
    assert ("ConfigurationError", "journal") == (line["error"], line["setting"])
    assert str(tmp_path) in line["text"]
    assert "Read-only file system" in line["text"]


def test_a_directory_without_permission_is_an_error_at_start(run_python, tmp_path):
    """As an ordinary user, who may read it and make nothing there."""
    source = """
from stormphase.exceptions import ConfigurationError
tracker_of(sys.argv[2], "before").stop()  # Whatever is imported late, root can read.
if not os.getuid():
    os.setuid(65534)
try:
    tracker_of(sys.argv[1])
except ConfigurationError as error:
    say(text=str(error))
"""
    with tempfile.TemporaryDirectory() as base:  # An ordinary user cannot come to where pytest makes its own.
        Path(base).chmod(0o755)
        (Path(base) / "runs").mkdir(mode=0o555)
        (line,) = said(run_python(BEGIN + source, f"{base}/runs", str(tmp_path / "before")))
    assert "Permission denied" in line["text"]
    assert "Give a directory in which this process may make files" in line["text"]


def test_a_directory_that_is_missing_is_made_for_its_owner_alone(run_python, tmp_path):
    """With all above it; the journal is the owner's alone as well."""
    directory = tmp_path / "a" / "b"
    source = "import os\nos.umask(0)\n" + BEGIN + "tracker_of(sys.argv[1]).stop()"
    run_python(source, str(directory))
    (file,) = directory.rglob("*.journal")
    assert (0o700, 0o600) == (file.parent.stat().st_mode & 0o777, file.stat().st_mode & 0o777)


def test_a_directory_that_is_deleted_while_it_is_used_costs_a_warning(run_python, tmp_path):
    """Nothing is lost but the journal: training goes on, the file grows, a forked child goes on without one."""
    source = """
tracker = tracker_of(sys.argv[1])
tracker.enter_phase("train")
shutil.rmtree(sys.argv[1])
for _ in range(600 * 226):
    with tracker.enter_phase("step"):
        pass
if not os.fork():
    with tracker.enter_phase("in the child"):
        say(child=logs)
        os._exit(0)
os.wait()
counts = tracker.stats()["journal"]
threading.Event().wait(0.6)
tracker.stop()
say(logs=logs, grown=counts["bytes"] > MIB, unwritten=counts["unwritten"])
"""
    child, parent = said(run_python(BEGIN + source, str(tmp_path / "runs"), env={"PYTHONWARNINGS": "ignore"}))
    assert (True, 0) == (parent["grown"], parent["unwritten"])
    assert ["has been deleted" in parent["logs"][0], len(parent["logs"])] == [True, 1]
    assert "a forked child goes on without a journal" in child["child"][-1]


def test_a_journal_in_shared_memory_is_one_like_any_other(run_python):
    """On tmpfs, where the pages are the file."""
    if not os.access("/dev/shm", os.W_OK):  # noqa: S108 - not for a temporary file of a fixed name
        pytest.skip("no tmpfs that is mounted already")
    source = """
import tempfile
with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
    tracker = tracker_of(directory)
    tracker.enter_phase("train", {"k": 1})
    ended = work(tracker, 100)
    say(ended=ended, **told(directory, tracker))
    tracker.stop()
"""
    (line,) = said(run_python(BEGIN + source))
    assert (line["ended"], [["train"]], 0) == (line["count"], line["open"], line["unwritten"])


TWICE = """
import stormphase._journaling as journaling

begun, go = os.pipe(), os.pipe()
open_journal = journaling.open_journal

def open_together(*arguments, **named):
    os.write(begun[1], b"!")
    os.read(go[0], 1)
    return open_journal(*arguments, **named)

journaling.open_journal = open_together
children = []
for number in range(2):
    if not (child := os.fork()):
        tracker = tracker_of(sys.argv[1])
        with tracker.enter_phase(f"process {number}"):
            for _ in range(1_000):
                tracker.enter_phase("step").close()
            os.kill(os.getpid(), signal.SIGKILL)
    children.append(child)
os.read(begun[0], 1), os.read(begun[0], 1)
os.write(go[1], b"!!")
for child in children:
    os.waitpid(child, 0)
"""


def test_two_processes_of_one_session_and_rank_at_the_same_instant_have_a_file_each(run_python, tmp_path):
    """Where the file system has no locks neither can know of the other, and nothing is mixed."""
    (tmp_path / "runs" / "s" / "rank-00000.start.lock").mkdir(parents=True)
    run_python(BEGIN + TWICE, str(tmp_path / "runs"))
    images = list(read_directory(tmp_path / "runs"))
    assert [("process 0",), ("process 1",)] == sorted(image.open[0].path for image in images)
    assert [1_000, 1_000] == [sum(each.count for each in image.totals.values()) for image in images]
    assert 2 == len({image.process.pid for image in images})
    assert {()} == {image.damage for image in images}


ALIVE = """
try:
    tracker = tracker_of(sys.argv[1])
except Exception as error:
    say(error=str(error))
else:
    say(attempt=tracker.identity.attempt)
    tracker.enter_phase("train")
    if sys.argv[2] == "stay":
        sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_second_process_is_refused_while_the_first_lives_and_is_the_next_attempt_after(run_python, tmp_path):
    """Whoever runs a job twice by mistake learns it at once; whoever starts it again gets the next attempt."""
    directory = str(tmp_path / "runs")
    first = subprocess.Popen(
        [sys.executable, "-c", BEGIN + ALIVE, directory, "stay"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    with first:
        assert {"attempt": 0} == json.loads(first.stdout.readline())
        (refused,) = said(run_python(BEGIN + ALIVE, directory, "go", check=False))
        assert f"is running already, as process {first.pid}" in refused["error"]
        first.stdin.write("\n")
    attempts = [said(run_python(BEGIN + ALIVE, directory, "go", check=False)) for _ in range(2)]
    assert [[{"attempt": 1}], [{"attempt": 2}]] == attempts
    assert [0, 1, 2] == sorted(image.identity.attempt for image in read_directory(directory))
