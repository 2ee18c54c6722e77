"""A Slurm cluster of this machine alone, of two nodes that are two daemons: as a context manager.

All of it listens on ports and in a folder of its own, with a key of its own. It needs no systemd, and no root unless
others than its user should run jobs.
"""

from __future__ import annotations

import getpass
import os
import pty
import select
import subprocess
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .job import LAUNCH_LIMIT_S, clean_environment, dying_with_us, end_group, free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Self

START_LIMIT_S = 30
_LOOK_S = 0.1
_PROMPT = "planted> "

CONFIGURATION = """\
ClusterName=planted
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
# Each node may have more CPUs than this machine.
SlurmdParameters=config_overrides
# `salloc` opens a shell on the first node, as most sites have it.
LaunchParameters=use_interactive_step
KillWait=5
NodeName={nodes[0]} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName={nodes[1]} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE
"""
NODES = ("n1", "n2")


class Slurm:
    """A running cluster.

    Attributes:
        environment: what its commands need.
    """

    def __init__(self, folder: Path) -> None:
        """Write down the configuration."""
        self._folder = folder
        self._daemons = ExitStack()
        configuration = folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(configuration)}
        configuration.write_text(
            CONFIGURATION.format(ports=free_ports(3), user=getpass.getuser(), folder=folder, nodes=NODES)
        )
        for name in ("state", *(f"spool/{node}" for node in NODES)):
            (folder / name).mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)

    def __enter__(self) -> Self:
        """Start the daemons, and wait until both nodes are ready."""
        with ExitStack() as starting:
            self._daemons = starting
            folder = self._folder
            self._start(
                *("munged", "--foreground", "--force", "--num-threads=4", f"--key-file={folder}/munge.key"),
                *(f"--{kind}={folder}/munge.{end}" for kind, end in (("socket", "sock"), ("pid-file", "pid"))),
                *(f"--{kind}={folder}/munge.{end}" for kind, end in (("log-file", "log"), ("seed-file", "seed"))),
            )
            self.wait((folder / "munge.sock").exists, "munged has no socket")
            self._start("slurmctld", "-D", "-i")
            for node in NODES:
                self._start("slurmd", "-D", "-N", node)
            self.wait(lambda: ["idle"] * len(NODES) == self._states(), "the nodes are not idle")
            self._daemons = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End what jobs there are, whose processes are no children of the daemons, and then the daemons."""
        with self._daemons:
            self.do("scancel", f"--user={getpass.getuser()}")
            self.wait(lambda: not self.do("squeue", "--noheader"), "the jobs do not end")

    def do(self, *command: str) -> str:
        """Run one of Slurm's short commands; return what it wrote."""
        done = subprocess.run(
            command,
            env=clean_environment(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
            check=False,
        )
        assert 0 == done.returncode, (command, done.stdout, done.stderr)
        return done.stdout

    def wait(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait until something is so."""
        never = threading.Event()
        for _ in range(int(START_LIMIT_S / _LOOK_S)):
            if is_so():
                return
            never.wait(_LOOK_S)
        raise TimeoutError(f"{what} after {START_LIMIT_S} s: {self._logs()}")

    def submit(self, *command: str, output: Path, options: Sequence[str] = ()) -> str:
        """Hand a batch script in that runs one command; return its job's id."""
        return self.do("sbatch", "--parsable", f"--output={output}", "--open-mode=append", *options, *command).strip()

    def type_in_shell(self, opens: Sequence[str], lines: Sequence[str]) -> str:
        """Type lines in the interactive shell that a command opens at a terminal; return what is seen there."""
        mine, its = pty.openpty()
        with ExitStack() as stack:
            stack.callback(os.close, mine)
            shell = subprocess.Popen(
                ["setsid", "--ctty", *opens],
                env=clean_environment({**self.environment, "SHELL": "/bin/sh", "PS1": _PROMPT}),
                stdin=its,
                stdout=its,
                stderr=its,
            )
            os.close(its)
            stack.callback(_end, shell)
            seen = ""
            for line in (*lines, "exit"):
                seen += _read_until_prompt(mine)
                os.write(mine, line.encode() + b"\n")
            shell.wait(START_LIMIT_S)
        return seen

    def _start(self, *command: str) -> None:
        log = self._daemons.enter_context((self._folder / f"{command[0]}{command[-1]}.out".replace("/", "_")).open("w"))
        daemon = subprocess.Popen(
            dying_with_us(command, "KILL"),
            env=clean_environment(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._daemons.callback(end_group, daemon)

    def _states(self) -> list[str]:
        return self.do("sinfo", "--noheader", "--Node", "--format=%T").split()

    def _logs(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in self._folder.glob("*.out"))


def _read_until_prompt(terminal: int) -> str:
    """Return what comes at a terminal, up to the shell's next prompt."""
    seen = b""
    while not seen.endswith(_PROMPT.encode()):
        if not select.select([terminal], [], [], LAUNCH_LIMIT_S)[0]:
            raise TimeoutError(f"no prompt after {seen!r}")
        try:
            seen += os.read(terminal, 65536)
        except OSError:
            raise TimeoutError(f"the shell ended after {seen!r}") from None
    return seen.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process by its id, if it has not ended."""
    process.kill()
    process.wait(10)
