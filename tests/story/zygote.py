"""Runs programs, each in a process of its own that it forks, and says how they ended: everything is imported once.

It reads one directory a line, in which `program.json` stands, and answers with one line of JSON a program. A program is
the leader of a process group; what is left of that when the program has ended is killed, and waited for.
"""

# ruff: noqa: TID251 - it waits for processes

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

import loading  # noqa: F401 - makes the modules beside this one importable
import story_play
import trio  # noqa: F401 - so that programs need not

LIMIT_S = 60.0
_PR_SET_CHILD_SUBREAPER = 36


def _become(directory):
    """Be the program: its own group, files for what it prints, nothing to read."""
    os.setpgid(0, 0)
    for number, path in ((0, os.devnull), (1, directory / "stdout"), (2, directory / "stderr")):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, number)
        os.close(fd)


def _log_of(directory):
    with contextlib.suppress(FileNotFoundError):
        return (directory / "did.jsonl").read_bytes()
    return b""


def _hold(directory):
    """Have whoever asked look at the running program, and let it go on."""
    _say({"holds": True})
    sys.stdin.readline()
    (directory / "go").touch()


def _say(answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _watch(pid, directory, after_lines):
    """Wait for the program, kill it after so many lines of its log if asked to; returns its status and what was odd."""
    has_held = False
    until = time.monotonic() + LIMIT_S
    problem = None
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status, problem
        log = _log_of(directory)
        if not has_held and b'"holds"' in log:
            has_held = True
            _hold(directory)
        if after_lines is not None and log.count(b"\n") >= after_lines:
            os.kill(pid, signal.SIGKILL)
            after_lines = None
        if time.monotonic() > until and problem is None:
            problem = "hangs"
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.0005 if after_lines is not None else 0.002)


def _end_group(pid):
    """Kill what is left of the program's group, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-pid, 0)


def run(directory):
    """Run one program; in the program's process this never returns."""
    program = json.loads((directory / "program.json").read_text())
    pid = os.fork()
    if not pid:
        _become(directory)
        story_play.run(program, directory)
        sys.exit(0)
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)
    began = time.monotonic()
    status, problem = _watch(pid, directory, program["end"].get("after_lines"))
    seconds = time.monotonic() - began
    _end_group(pid)
    return {"status": os.waitstatus_to_exitcode(status), "problem": problem, "seconds": seconds}


def main():
    """Run programs until there is no more input."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for line in iter(sys.stdin.readline, ""):
        answer = run(Path(line.strip()))
        _say(answer)


if __name__ == "__main__":
    import faulthandler

    faulthandler.enable()
    main()
