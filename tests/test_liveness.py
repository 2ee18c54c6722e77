"""Whether a process lives: proof where there is some, and honest doubt elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from stormphase import _liveness
from stormphase._liveness import FRESH_NS, Liveness, judge, own_process, utc
from stormphase._model import ProcessIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND = 1_000_000_000
NOW = 2_000_000_000 * SECOND  # in 2033: after any boot of the machine that runs this
LONG_AGO = SECOND  # in 1970: before any
ELSEWHERE = ProcessIdentity(host="node7", boot_id="another", pid=os.getpid(), started=1, pid_namespace=1)


def on_the_machine_itself() -> ProcessIdentity:
    """Return who this process would be outside of all containers."""
    return attrs.evolve(own_process(), pid_namespace=_liveness.MACHINE_PID_NAMESPACE)


@contextmanager
def child(source: str = "input()") -> Iterator[tuple[subprocess.Popen[bytes], ProcessIdentity]]:
    """Start a Python that tells who it is, and then waits; it is gone at the end."""
    tell = "import attrs, json; from stormphase._liveness import own_process as o; print(json.dumps(attrs.asdict(o())))"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{tell}\nimport sys; sys.stdout.flush()\n{source}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process, ProcessIdentity(**json.loads(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


def test_this_process_knows_itself() -> None:
    """Linux tells all that identifies a process."""
    this = own_process()
    assert (os.uname().nodename, os.getpid()) == (this.host, this.pid)
    assert None not in attrs.astuple(this)


def test_this_process_lives() -> None:
    """Who asks is alive, whatever its heartbeat says."""
    verdict = judge(own_process(), heartbeat_wall_ns=None, now_wall_ns=NOW)
    assert (Liveness.ALIVE, f"process {os.getpid()} is there on {os.uname().nodename}") == (
        verdict.state,
        verdict.evidence,
    )


def test_another_process_lives_until_it_ends() -> None:
    """A child is alive; killed it is gone, and nobody can tell by the words whether it was waited for."""
    with child() as (process, identity):
        assert Liveness.ALIVE is judge(identity, heartbeat_wall_ns=LONG_AGO, now_wall_ns=NOW).state
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        zombie = judge(identity, heartbeat_wall_ns=NOW, now_wall_ns=NOW)
        process.communicate()
        gone = judge(identity, heartbeat_wall_ns=NOW, now_wall_ns=NOW)
        expected = f"process {process.pid} is gone from {os.uname().nodename}"
        assert [(Liveness.DEAD, expected, False, "", False)] * 2 == [attrs.astuple(zombie), attrs.astuple(gone)]


def test_a_process_that_a_signal_stopped_is_alive() -> None:
    """SIGSTOP is a frequent reason of a hang: the evidence says it."""
    with child() as (process, identity):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        verdict = judge(identity, heartbeat_wall_ns=None, now_wall_ns=NOW)
    assert Liveness.ALIVE is verdict.state
    assert verdict.evidence.endswith(", stopped by a signal")
    assert "stopped by a signal" == verdict.kept_by


def test_a_reused_pid_is_no_proof_of_life() -> None:
    """Another process with the pid of a dead one started at another time; the words are those of any death."""
    verdict = judge(attrs.evolve(own_process(), started=1), heartbeat_wall_ns=NOW, now_wall_ns=NOW)
    expected = f"process {os.getpid()} is gone from {os.uname().nodename}"
    assert (Liveness.DEAD, expected) == (verdict.state, verdict.evidence)


def test_a_process_whose_first_thread_ended_goes_on() -> None:
    """The first thread's entry is a zombie then, and the process is none."""
    source = (
        "import ctypes, threading; threading.Thread(target=input).start(); "
        "ctypes.CDLL(None).syscall(60 if __import__('platform').machine() == 'x86_64' else 93, 0)"
    )
    with child(source) as (process, identity):
        while _liveness._read_stat(str(process.pid))[1].state != "S" or not _first_thread_ended(process.pid):
            pass
        assert Liveness.ALIVE is judge(identity, heartbeat_wall_ns=None, now_wall_ns=NOW).state


def _first_thread_ended(pid: int) -> bool:
    return Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    "other",
    [
        attrs.evolve(own_process(), pid_namespace=1, pid=2**22 + 1),
        attrs.evolve(own_process(), pid_namespace=None, pid=2**22 + 1),
        attrs.evolve(own_process(), boot_id=None, pid=2**22 + 1),
        attrs.evolve(own_process(), started=None),
        attrs.evolve(own_process(), pid=0),
        attrs.evolve(own_process(), pid=2**63),
        ELSEWHERE,
    ],
    ids=["namespace", "no namespace", "no boot", "no start", "pid 0", "huge pid", "elsewhere"],
)
def test_what_cannot_be_asked_is_never_said_to_be_dead(other: ProcessIdentity) -> None:
    """Without proof a process is silent since its last heartbeat, or alive if that is fresh."""
    silent = judge(other, heartbeat_wall_ns=LONG_AGO, now_wall_ns=NOW)
    assert (Liveness.UNKNOWN, "silent since 1970-01-01 00:00:01 UTC on") == (silent.state, silent.evidence[:39])
    assert Liveness.ALIVE is judge(other, heartbeat_wall_ns=NOW - FRESH_NS, now_wall_ns=NOW).state
    assert Liveness.UNKNOWN is judge(other, heartbeat_wall_ns=NOW - FRESH_NS - 1, now_wall_ns=NOW).state
    assert Liveness.UNKNOWN is judge(other, heartbeat_wall_ns=None, now_wall_ns=NOW).state


def test_a_clock_that_is_ahead_proves_nothing() -> None:
    """A heartbeat from the future says that the clocks differ, not that the process lives."""
    verdict = judge(ELSEWHERE, heartbeat_wall_ns=NOW + 60 * SECOND, now_wall_ns=NOW)
    assert Liveness.UNKNOWN is verdict.state
    assert verdict.evidence.startswith("its heartbeat is 60 s ahead of this clock")


def test_a_machine_that_booted_since_took_its_processes_along() -> None:
    """The same host with another boot, which began after the last heartbeat, is proof."""
    this = on_the_machine_itself()
    before = attrs.evolve(this, boot_id="another")
    verdict, earlier = (
        judge(before, heartbeat_wall_ns=alive_ns, now_wall_ns=NOW, this=this)
        for alive_ns in (LONG_AGO, LONG_AGO - 5 * SECOND)
    )
    assert (Liveness.DEAD, True) == (verdict.state, verdict.is_host_gone)
    assert "has booted since, at 20" in verdict.evidence
    assert verdict == earlier


@pytest.mark.parametrize("inside", ["process", "this"])
def test_containers_of_one_name_are_two(inside: str) -> None:
    """A pod that comes back on another machine keeps its name: that machine's boot proves nothing of the first."""
    this = before = on_the_machine_itself()
    if inside == "this":
        this = attrs.evolve(this, pid_namespace=7)
    else:
        before = attrs.evolve(before, pid_namespace=7)
    before = attrs.evolve(before, boot_id="another")
    assert Liveness.UNKNOWN is judge(before, heartbeat_wall_ns=LONG_AGO, now_wall_ns=NOW, this=this).state


def test_two_machines_of_one_name_are_two() -> None:
    """Who had a heartbeat while this machine was up already was on another one, or nobody knows."""
    this = on_the_machine_itself()
    before = attrs.evolve(this, boot_id="another")
    nameless = attrs.evolve(this, host="localhost")
    assert Liveness.UNKNOWN is judge(before, heartbeat_wall_ns=NOW - 60 * SECOND, now_wall_ns=NOW, this=this).state
    assert (
        Liveness.UNKNOWN
        is judge(
            attrs.evolve(nameless, boot_id="another"), heartbeat_wall_ns=LONG_AGO, now_wall_ns=NOW, this=nameless
        ).state
    )


def test_without_proc_nothing_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, or that of another namespace, this process knows less and claims less."""
    real = own_process()
    monkeypatch.setattr(_liveness, "_read_stat", lambda which: (os.getpid() + 1, None))
    this = own_process()
    assert (None, None) == (this.started, this.pid_namespace)
    gone = attrs.evolve(real, pid=2**22 + 1)
    assert Liveness.UNKNOWN is judge(gone, heartbeat_wall_ns=LONG_AGO, now_wall_ns=NOW).state


def test_hidden_processes_are_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc may hide the processes of others: only the kernel's own answer is proof."""
    monkeypatch.setattr(_liveness, "_read_stat", lambda which: (None, _liveness._Seen(is_there=True)))
    this = attrs.evolve(own_process(), pid_namespace=1)
    verdict = judge(this, heartbeat_wall_ns=LONG_AGO, now_wall_ns=NOW, this=this)
    assert (Liveness.UNKNOWN, "may be another one by now") == (verdict.state, verdict.evidence[-25:])


def test_a_damaged_time_is_shown_as_it_is() -> None:
    """A wall time that no calendar has is given in nanoseconds."""
    assert f"{2**63 - 1} ns" == utc(2**63 - 1) or utc(2**63 - 1).endswith("UTC")
    assert f"{-(2**80)} ns" == utc(-(2**80))
