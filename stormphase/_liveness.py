"""Whether a process lives, as far as this one can prove it: what recovery, stores and `postmortem` go by.

A pid alone proves nothing: it is given to another process later, and means another one in a container or on another
machine. So a process is known by its machine's boot, its pid namespace, its pid and its start time together. Who is
not on this machine, or not in this namespace, is never said to be dead, only to be silent.
"""

from __future__ import annotations

import datetime as dt
import enum
import os
from typing import Final

import attrs

from stormphase._model import ProcessIdentity

# A heartbeat is written about once a second, by a thread that a busy process may keep waiting.
FRESH_NS: Final = 10 * 1_000_000_000
# A store is told less often that a process lives. Of two deaths that were last seen within this, none was the first.
SEEN_EVERY_NS: Final = 5 * 1_000_000_000

# The one that Linux boots with, outside of all containers (PROC_PID_INIT_INO in include/linux/proc_ns.h).
MACHINE_PID_NAMESPACE: Final = 0xEFFFFFFC

# Names that machines have which nobody named: two of them need not be the same machine.
_NAMELESS: Final = frozenset({"", "localhost", "localhost.localdomain", "unknown"})
_DOINGS: Final = {"T": "stopped by a signal", "t": "held by a debugger", "D": "waiting in the kernel"}
_STOPPED: Final = frozenset({_DOINGS["T"], _DOINGS["t"]})


class Liveness(str, enum.Enum):
    """What can be said of a process; DEAD only with proof."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        """Return the lower-case value, also on Pythons whose format() would give the member's name."""
        return self.value


@attrs.frozen
class Verdict:
    """Whether a process lives, and how that is known.

    Attributes:
        state: ALIVE, DEAD or UNKNOWN.
        evidence: one sentence without a full stop; it may hold the host's name as a journal had it.
        is_host_gone: whether it is dead because its machine has booted since.
        kept_by: what keeps a process that is there from running, such as "stopped by a signal"; "" if nothing does.
        is_seen: whether the kernel was asked, and has the process: it is there, and no heartbeat has to be believed.
    """

    state: Liveness
    evidence: str
    is_host_gone: bool = False
    kept_by: str = ""
    is_seen: bool = False

    @property
    def is_stopped(self) -> bool:
        """Whether the kernel does not let it run, until a signal or a debugger lets it go on."""
        return self.kept_by in _STOPPED


@attrs.frozen
class _Seen:
    """What the kernel says of a pid now: whether there is such a process, its start and its state, if readable."""

    is_there: bool
    started: int | None = None
    state: str = ""


def own_process() -> ProcessIdentity:
    """Return who this process is; what the platform does not tell is None. Never raises.

    Read anew at each call, so it is right in a forked child too. Linux tells all of it (proc(5), namespaces(7)).
    """
    started = pid_namespace = None
    shown_pid, seen = _read_stat("self")
    # Where /proc is that of another pid namespace, its numbers are not ours, and prove nothing.
    if shown_pid == os.getpid():
        started = seen.started
        try:
            pid_namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - a plain call, in a forked child too
        except OSError:
            pid_namespace = None
    return ProcessIdentity(
        host=_host(),
        boot_id=_text_of("/proc/sys/kernel/random/boot_id"),
        pid=os.getpid(),
        started=started,
        pid_namespace=pid_namespace,
    )


def judge(
    process: ProcessIdentity,
    *,
    heartbeat_wall_ns: int | None,
    now_wall_ns: int,
    this: ProcessIdentity | None = None,
) -> Verdict:
    """Return whether `process` lives. Asks the kernel only about a process of this machine and pid namespace.

    Proof of death is: the same boot and pid namespace, and the pid is gone, is a zombie or started at another time;
    or the same host's name with another boot, which began after the last heartbeat, both outside of containers.
    Otherwise a fresh heartbeat speaks for life, and an old one for nothing but silence.

    Args:
        process: who is asked about.
        heartbeat_wall_ns: its last sign of life on its own wall clock, ns since the Unix epoch; None if there is none.
        now_wall_ns: now on this machine's wall clock.
        this: this process, if the caller has it already; many questions are cheaper with it.
    """
    this = own_process() if this is None else this
    if process.boot_id is not None and process.boot_id == this.boot_id:
        if process.pid_namespace is not None and process.pid_namespace == this.pid_namespace:
            found = _judge_here(process, this)
            if found is not None:
                return found
            where = f"process {process.pid} may be another one by now"
        else:
            where = f"process {process.pid} is in another container or pid namespace, and cannot be asked from here"
    else:
        gone = _judge_reboot(process, this, heartbeat_wall_ns)
        if gone is not None:
            return gone
        where = f"it cannot be asked from here, host {this.host}"
    return _judge_by_heartbeat(process, heartbeat_wall_ns, now_wall_ns, where)


def _judge_here(process: ProcessIdentity, this: ProcessIdentity) -> Verdict | None:
    """Judge a process of this machine and namespace; None if the kernel cannot tell whether the pid is still its.

    The dead have one sentence. Whether the parent has taken note, or who has the pid now, is another one a moment
    later: a store keeps what it was told then, and a journal is judged anew by each reader.
    """
    pid = process.pid
    seen = _look_at(pid)
    gone = Verdict(Liveness.DEAD, f"process {pid} is gone from {this.host}")
    if not seen.is_there:
        return gone
    if seen.started is None or process.started is None:
        return None
    if seen.started != process.started or seen.state in ("Z", "X"):
        return gone
    kept_by = _DOINGS.get(seen.state, "")
    evidence = f"process {pid} is there on {this.host}" + (f", {kept_by}" if kept_by else "")
    return Verdict(Liveness.ALIVE, evidence, kept_by=kept_by, is_seen=True)


def _judge_reboot(process: ProcessIdentity, this: ProcessIdentity, heartbeat_wall_ns: int | None) -> Verdict | None:
    """Judge a process of another boot: dead if it was this machine's and this boot began after its last heartbeat.

    Two machines may have one name. If this boot was there while the process still lived, it is another machine's; and
    names of containers move from machine to machine, so both processes have to be outside of any.
    """
    if process.pid_namespace != MACHINE_PID_NAMESPACE or this.pid_namespace != MACHINE_PID_NAMESPACE:
        return None
    if process.boot_id is None or this.boot_id is None or heartbeat_wall_ns is None:
        return None
    if process.host != this.host or this.host in _NAMELESS:
        return None
    booted_ns = _boot_wall_ns()
    if booted_ns is None or booted_ns <= heartbeat_wall_ns:
        return None
    # Without the last sign of life, which a store and a journal have of different moments.
    return Verdict(Liveness.DEAD, f"{this.host} has booted since, at {utc(booted_ns)}", is_host_gone=True)


def _judge_by_heartbeat(
    process: ProcessIdentity, heartbeat_wall_ns: int | None, now_wall_ns: int, where: str
) -> Verdict:
    if heartbeat_wall_ns is None:
        return Verdict(Liveness.UNKNOWN, f"no sign of life on {process.host}; {where}")
    age_ns = now_wall_ns - heartbeat_wall_ns
    if abs(age_ns) <= FRESH_NS:
        return Verdict(Liveness.ALIVE, f"heartbeat {max(0, age_ns) / 1e9:.1f} s ago from {process.host}")
    if age_ns < 0:
        ahead = f"its heartbeat is {-age_ns / 1e9:.0f} s ahead of this clock"
        return Verdict(Liveness.UNKNOWN, f"{ahead}, so {process.host} has another time; {where}")
    return Verdict(Liveness.UNKNOWN, f"silent since {utc(heartbeat_wall_ns)} on {process.host}; {where}")


def utc(wall_ns: int) -> str:
    """Return a wall time as `2026-01-31 12:00:00 UTC`; whatever a damaged file says, it never raises."""
    try:
        moment = dt.datetime.fromtimestamp(wall_ns // 1_000_000_000, tz=dt.UTC)
    except (OverflowError, OSError, ValueError):
        return f"{wall_ns} ns"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _look_at(pid: int) -> _Seen:
    if pid <= 0:  # a damaged file
        return _Seen(is_there=True)
    # /proc may hide the processes of others (hidepid): only the kernel's "no such process" is proof that one is gone.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return _Seen(is_there=False)
    except OverflowError:  # no kernel has such a pid: a damaged file
        return _Seen(is_there=True)
    except OSError:
        pass
    return _read_stat(str(pid))[1]


def _read_stat(which: str) -> tuple[int | None, _Seen]:
    """Return the pid that /proc shows, and what it says of the process."""
    try:
        with open(f"/proc/{which}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a plain read
            text = file.read()
        # proc(5): "pid (name) state ppid ..."; the name may hold anything. Field 20 is how many threads, 22 the start.
        fields = text.rpartition(")")[2].split()
        state, threads, started = fields[0], int(fields[17]), int(fields[19])
        pid = int(text.split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return None, _Seen(is_there=True)
    # The first thread of a process may end before the others: then it is a zombie, and the process goes on.
    return pid, _Seen(is_there=True, started=started, state="S" if state == "Z" and threads > 1 else state)


def _boot_wall_ns() -> int | None:
    """Return when this machine booted, ns since the Unix epoch, to the second; None where that cannot be read."""
    text = _text_of("/proc/stat") or ""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "btime" and value.isdigit():
            return int(value) * 1_000_000_000
    return None


def _host() -> str:
    # Windows has no uname.
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return name or "localhost"


def _text_of(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - a plain read
            return file.read().strip() or None
    except OSError:
        return None
