"""`stormphase postmortem` on real journals: of this process, of one that was killed, and of strangers."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import RunPython

    from stormphase._tracker import PhaseTracker

    Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tracker(make_tracker: Callable[..., PhaseTracker], runs: Path) -> PhaseTracker:
    """Return rank 0 of session job-1, running in this process."""
    tracker = make_tracker("job", session_id="job-1", rank=0, world_size=2, journal=runs)
    tracker.start()
    return tracker


def wait_in_all_reduce(tracker: PhaseTracker) -> None:
    """Walk as the killed rank did, and then wait in the all_reduce of step 20."""
    tracker.enter("train")
    for step in range(20):
        tracker.set_step(step)
        with tracker.enter_phase("step"), tracker.enter_phase("all_reduce", sync=True):
            pass
    tracker.set_step(20)
    tracker.enter("step")
    tracker.enter("all_reduce", sync=True)


def test_a_killed_rank_is_what_the_others_wait_for(
    tracker: PhaseTracker, killed_rank: None, command_json: Callable[..., Any]
) -> None:
    """One real rank waits in all_reduce, the other was killed before it came there: all of it in JSON."""
    wait_in_all_reduce(tracker)
    code, found = command_json()
    assert (1, "job-1", 0, True) == (code, found["session_id"], found["attempt"], found["is_hung"])
    waiting, dead = found["ranks"]
    assert (0, "running", 20, "now") == tuple(waiting[key] for key in ("rank", "state", "step", "measured_to"))
    assert (1, "killed", 20) == (dead["rank"], dead["state"], dead["step"])
    assert dead["evidence"].startswith(f"process {dead['pid']} is gone from ")
    assert [["train"], ["train", "step"], ["train", "step", "data_loading"]] == [each["path"] for each in dead["open"]]
    assert {"epochs": 3, "evil\x1b[31m": "\x1b[2J"} == dead["open"][0]["attributes"]
    assert "MainThread" == dead["open"][0]["thread_name"]
    assert 16 == len({each["scope_id"] for each in dead["last_ended"]})
    assert {"succeeded"} == {each["status"] for each in dead["last_ended"]}
    assert [["train", "step", "all_reduce"], ["train", "step"]] * 8 == [each["path"] for each in dead["last_ended"]]
    (suspect,) = found["suspects"]
    assert (1, "dead_and_awaited") == (suspect["rank"], suspect["kind"])
    assert "it never entered that step's all_reduce, and is what 1 rank waits for" in suspect["reason"]
    assert [["train", "step", "all_reduce"], ["train", "step", "data_loading"]] == [
        group["path"] for group in found["groups"]
    ]


def test_json_has_sorted_keys_and_only_ascii(tracker: PhaseTracker, killed_rank: None, command: Command) -> None:
    """No terminal can take a name in it for a command; every key is where it is looked for."""
    _, out, _ = command("postmortem", "--json")
    assert out.isascii()
    assert "\x1b" not in out
    assert {"session_id", "attempt", "ranks", "groups", "suspects"} <= json.loads(out).keys()

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert sorted(key for key, _ in pairs) == [key for key, _ in pairs]
        return dict(pairs)

    json.loads(out, object_pairs_hook=check)


def test_people_read_the_same_story(tracker: PhaseTracker, killed_rank: None, command: Command) -> None:
    """Plain text: groups, suspects, and the details of those; hostile names are harmless."""
    wait_in_all_reduce(tracker)
    code, out, _ = command("postmortem")
    assert 1 == code
    assert "\x1b" not in out
    for line in (
        "stormphase postmortem: session job-1, attempt 0, 2 of 2 ranks",
        "1 killed, 1 running, something hangs",
        "  rank 1 killed in train / step / data_loading (step 20)",
        "  1. rank 1: killed, process ",
        "  open, up to its last sign of life:",
        "          epochs=3, evil\\x1b[31m=\\x1b[2J",
        "  ended last, of 40 phases (how, its duration, before its last sign of life):",
    ):
        assert f"\n{line}" in f"\n{out}"
    assert all(len(line) <= 80 for line in out.splitlines())


def test_a_sound_job_is_zero(tracker: PhaseTracker, command_json: Callable[..., Any]) -> None:
    """Running in order, and then ended in order, with one rank's journal elsewhere."""
    with tracker.enter_phase("train"):
        code, found = command_json()
        assert (0, [], [1]) == (code, found["suspects"], found["absent_ranks"])
    tracker.stop()
    code, found = command_json()
    assert (0, "clean", []) == (code, found["ranks"][0]["state"], found["ranks"][0]["open"])


def test_an_exception_is_told(make_tracker: Callable[..., Any], runs: Path, command_json: Callable[..., Any]) -> None:
    """How a process ended by its own word."""
    with pytest.raises(ValueError, match="bad batch"), make_tracker("job", rank=0, world_size=1, journal=runs):
        raise ValueError("bad batch")
    code, found = command_json()
    assert (1, "exception") == (code, found["ranks"][0]["state"])
    assert found["ranks"][0]["evidence"].startswith("ValueError: bad batch, at ")


def train_until_step_20_fails(tracker: PhaseTracker) -> None:
    """Walk 20 steps, and lose the connection in the next one's all_reduce."""
    with tracker.enter_phase("train"):
        for step in range(21):
            tracker.set_step(step)
            with tracker.enter_phase("step"), tracker.enter_phase("all_reduce", sync=True):
                if step == 20:
                    raise ConnectionError("peer is gone")


def test_ranks_that_fail_as_another_was_killed_are_not_to_blame(
    make_tracker: Callable[..., Any], runs: Path, kill_rank: Callable[[int], None], command_json: Callable[..., Any]
) -> None:
    """Their exceptions say that a connection was lost; in which phase they were then says to whom."""
    trackers = [make_tracker("job", session_id="job-1", rank=rank, world_size=3, journal=runs) for rank in (0, 2)]
    running = [ExitStack() for _ in trackers]
    for stack, tracker in zip(running, trackers, strict=True):
        stack.enter_context(tracker)
    kill_rank(3)
    for stack, tracker in zip(running, trackers, strict=True):
        with pytest.raises(ConnectionError), stack:
            train_until_step_20_fails(tracker)
    code, found = command_json()
    assert (1, ["exception", "killed", "exception"]) == (code, [rank["state"] for rank in found["ranks"]])
    (suspect,) = found["suspects"]
    assert (1, "dead_and_awaited") == (suspect["rank"], suspect["kind"])
    assert "it never entered that step's all_reduce, and is what the others waited for" in suspect["reason"]
    assert ([0, 2], ["train", "step", "all_reduce"]) == tuple(found["groups"][0][key] for key in ("ranks", "path"))


FORKING = """
import os, sys
from stormphase import PhaseTracker
from stormphase.cli import main

tracker = PhaseTracker("job", session_id="job-1", rank=0, world_size=1, journal=sys.argv[1], bridge=None)
tracker.start()
tracker.enter("train")
child = os.fork()
if child == 0:
    tracker.enter("load")
    os.kill(os.getpid(), 9)
os.waitpid(child, 0)
print(child)
code = main(["postmortem", sys.argv[1], "--json"])
tracker.stop()
sys.exit(code)
"""


def test_a_forked_child_is_a_process_of_its_parents_rank(runs: Path, run_python: RunPython) -> None:
    """It was killed while its parent goes on: one rank, two processes, and the reason is told."""
    child = run_python(FORKING, str(runs), check=False)
    assert 1 == child.returncode, child.stderr
    pid, _, out = child.stdout.partition("\n")
    found = json.loads(out)
    (rank,) = found["ranks"]
    assert (0, "running") == (rank["rank"], rank["state"])
    assert [None, rank["pid"]] == [each["forked_from"] for each in rank["processes"]]
    assert [("running", rank["pid"]), ("killed", int(pid))] == [
        (each["state"], each["pid"]) for each in rank["processes"]
    ]
    assert [(["train"], rank["pid"]), (["train", "load"], int(pid))] == [
        (phase["path"], phase["pid"]) for phase in rank["open"]
    ]
    assert ["child_died"] == [suspect["kind"] for suspect in found["suspects"]]


def test_no_damage_breaks_it(killed_rank: None, runs: Path, command: Command) -> None:
    """Whatever bytes of a journal are wrong, it is told what is left, or an error of ours."""
    (file,) = (runs / "job-1").iterdir()
    data = file.read_bytes()[: 8 * 16_384]
    random = Random(17)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(random.randint(1, 30)):
            at = random.choice([random.randrange(128, 192), random.randrange(4 * 16_384, len(data))])
            damaged[at] = random.randrange(256)
        file.write_bytes(damaged)
        for arguments in (["--rank", "1"], ["--json"]):
            code, out, err = command("postmortem", *arguments)
            assert (code, bool(out), bool(err)) in ((1, True, False), (2, False, True))
            assert all(char.isprintable() or char == "\n" for char in out + err)


def test_a_rank_is_shown_in_detail_on_demand(tracker: PhaseTracker, command: Command) -> None:
    """Also one that nothing speaks against."""
    tracker.enter("train", attributes={"epochs": 3})
    code, out, _ = command("postmortem", "--rank", "0")
    assert 0 == code
    assert "rank 0: running, process " in out
    assert "  open, up to now:\n    thread MainThread:\n      train for " in out
    assert "suspects" not in out


def test_the_session_that_began_last_is_meant(make_tracker: Callable[..., Any], runs: Path, command: Command) -> None:
    """Others are named, and can be asked for; so can older attempts."""
    for session in ("first", "second"):
        make_tracker(session_id=session, rank=0, world_size=1, journal=runs).start()
    _, out, _ = command("postmortem", "--json")
    assert ("second", ["first"]) == (json.loads(out)["session_id"], json.loads(out)["other_sessions"])
    _, out, _ = command("postmortem", "--session", "first", "--attempt", "0")
    assert "session first, attempt 0" in out
    assert "other sessions here: second (--session)" in out
    code, _, err = command("postmortem", "--session", "third")
    assert 2 == code
    assert "the newest are 'second', 'first'" in err
    code, _, err = command("postmortem", "--attempt", "7")
    assert 2 == code
    assert "No journal of attempt 7 of session 'second'" in err


def test_the_newest_attempt_is_meant(killed_rank: None, make_tracker: Any, runs: Path, command_json: Any) -> None:
    """After a restart the dead attempt is only mentioned."""
    make_tracker(session_id="job-1", rank=1, world_size=2, journal=runs).start()
    code, found = command_json()
    assert (0, 1, [0]) == (code, found["attempt"], found["older_attempts"])
    code, found = command_json("--attempt", "0")
    assert (1, 0, [], [1]) == (code, found["attempt"], found["older_attempts"], found["newer_attempts"])


def test_a_directory_without_journals_is_an_error(runs: Path, command: Command) -> None:
    """It says which directory is meant."""
    code, _, err = command("postmortem")
    assert 2 == code
    assert "No such file or directory" in err
    runs.mkdir()
    (runs / "system.journal").write_bytes(b"LPKSHHRH")
    code, _, err = command("postmortem")
    assert 2 == code
    assert "Give the directory that was given as `journal`, or as STORMPHASE_DIR." in err


def test_a_journal_that_cannot_be_read_is_named(tracker: PhaseTracker, runs: Path, command: Command) -> None:
    """The others are told all the same; nobody can say that all is well then."""
    (runs / "job-1" / "rank-00001.attempt-0.pid-5.0.journal").write_bytes(b"\x89SPJ\r\n\x1a\n broken")
    code, out, _ = command("postmortem")
    assert 1 == code
    assert "unreadable: Cannot read " in out
    _, out, _ = command("postmortem", "--json")
    (unreadable,) = json.loads(out)["unreadable"]
    assert unreadable["file"].endswith("rank-00001.attempt-0.pid-5.0.journal")


def test_a_journal_of_another_session_that_cannot_be_read_is_its_own_affair(
    tracker: PhaseTracker, runs: Path, command: Command
) -> None:
    """Users share a directory, and cannot look into each other's sessions."""
    (runs / "job-0").mkdir()
    (runs / "job-0" / "rank-00001.attempt-0.pid-5.0.journal").write_bytes(b"\x89SPJ\r\n\x1a\n broken")
    code, out, _ = command("postmortem")
    assert (0, True) == (code, "  1 journal of other sessions unreadable" in out)
    code, out, _ = command("postmortem", "--json")
    assert (0, 1) == (code, len(json.loads(out)["unreadable"]))


def test_only_damaged_journals_are_an_error(runs: Path, command: Command) -> None:
    """Nothing can be said then, so it is no answer but an error."""
    (runs / "job-1").mkdir(parents=True)
    (runs / "job-1" / "rank-00001.attempt-0.pid-5.0.journal").write_bytes(b"\x89SPJ\r\n\x1a\n broken")
    code, _, err = command("postmortem")
    assert (2, "stormphase: Cannot read ") == (code, err[:24])


def test_a_reader_that_has_read_enough_is_no_error(tracker: PhaseTracker, runs: Path) -> None:
    """`| head -1` ends quietly."""
    for _ in range(60):
        tracker.enter("deep" * 60)
    with subprocess.Popen(
        [sys.executable, "-m", "stormphase.cli", "postmortem", str(runs), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"" == process.stderr.read()
    assert 2 == process.returncode


@pytest.mark.parametrize(
    ("command", "redirection", "said"),
    [
        ("postmortem", "> /dev/full", "No space left"),
        ("postmortem --json", "> /dev/full", "No space left"),
        ("top --once", ">&-", ""),
        ("recover --dry-run", ">&- 2>&-", ""),
    ],
)
def test_an_output_that_cannot_be_written_is_no_death(
    tracker: PhaseTracker, runs: Path, command: str, redirection: str, said: str
) -> None:
    """A full disk is 2, since 1 says that a rank died; where nobody listens the exit code still tells."""
    name, _, option = command.partition(" ")
    line = f'exec "$0" -m stormphase.cli {name} "$1" {option} {redirection}'
    child = subprocess.run(["/bin/sh", "-c", line, sys.executable, runs], capture_output=True, text=True, check=False)
    assert (2 if said else 0, "Traceback" in child.stderr) == (child.returncode, False)
    assert said in child.stderr


def test_what_a_killed_process_said_last_is_told(
    run_python: RunPython, runs: Path, command: Command, command_json: Callable[..., Any]
) -> None:
    """Its newest lines, harmless in a terminal, in the text and in JSON."""
    killed = """
import os, signal, sys
from stormphase import PhaseTracker

tracker = PhaseTracker(session_id="job-1", bridge=None, journal=sys.argv[1], capture=True).start()
tracker.enter("train")
for line in range(9):
    print("line", line, "\x1b]0;evil\x07", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert -9 == run_python(killed, str(runs), check=False).returncode
    _, found = command_json()
    assert [f"line {line}" for line in range(1, 9)] == [line.strip() for line in found["ranks"][0]["said"]]
    _, out, _ = command("postmortem")
    assert "  said last:\n    line 1" in out
    assert "line 0" not in out
    assert "\x1b" not in out
