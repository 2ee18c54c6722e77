"""One folder of journals, the launches that write there, and what their ranks said."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stormphase.cli import main

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROGRAMS = Path(__file__).parent / "programs"
LAUNCH_LIMIT_S = 120  # the ranks give up after 60 s, and imports of torch take their time
# A launcher that runs these tests is none of the ranks'.
_OTHERS_PREFIXES = (
    "OMPI_",
    "PMI",
    "SLURM",
    "TORCHELASTIC",
    "STORMPHASE_SESSION",
    "STORMPHASE_DIR",
    "STORMPHASE_ATTEMPT",
)
_OTHERS_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "PYTHONPATH")


class Job:
    """Launches one after another whose journals stand in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"

    def rank(self, label: str, ranks: int, deed: str, *, program: str = "planted") -> list[str]:
        """Return the command of one rank."""
        return [sys.executable, str(PROGRAMS / f"{program}.py"), str(self.folder), label, str(ranks), deed]

    def launch(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, check: bool = True
    ) -> str:
        """Run a launcher to its end; return what it and its ranks wrote."""
        (output,) = self.launch_together([command], environment=environment, check=check)
        return output

    def launch_together(
        self, commands: Sequence[Sequence[str]], *, environment: Mapping[str, str] | None = None, check: bool = True
    ) -> list[str]:
        """Run launchers at one time, as several hosts have one each; return what each wrote.

        With `check`, none may fail; without, the first must.
        """
        log_of = [self.folder / f"launcher-{number}.log" for number in range(len(commands))]
        with contextlib.ExitStack() as stack:
            started = []
            for command, log in zip(commands, log_of, strict=True):
                file = stack.enter_context(log.open("w"))
                process = subprocess.Popen(
                    dying_with_us(command, "TERM"),
                    env=clean_environment(environment),
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                stack.callback(end_group, process)
                started.append(process)
            codes = [process.wait(LAUNCH_LIMIT_S) for process in started]
        outputs = [log.read_text(errors="replace") for log in log_of]
        sys.stdout.writelines(outputs)  # Shown beside whatever fails later.
        assert check == (not any(codes)), (codes, *outputs, self.refused())
        return outputs

    def said(self, label: str, kind: str = "rank") -> list[dict[str, Any]]:
        """Return what the processes of one launch said, by rank."""
        found = [json.loads(path.read_text()) for path in (self.folder / label).glob(f"{kind}.*.json")]
        return sorted(found, key=lambda facts: facts.get("rank", 0))

    def refused(self) -> list[str]:
        """Return the errors of the trackers that could not start."""
        return [json.loads(path.read_text())["error"] for path in self.folder.glob("*/refused.*.json")]

    def postmortem(self, *arguments: str) -> dict[str, Any]:
        """Return what `stormphase postmortem --json` says of the journals."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main(["postmortem", str(self.runs), "--json", *arguments])
        return json.loads(out.getvalue())


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what a launcher says in it, and with `more`."""
    mine = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OTHERS_PREFIXES) and name not in _OTHERS_NAMES
    }
    return {**mine, **(more or {})}


def dying_with_us(command: Sequence[str], signal_name: str) -> list[str]:
    """Return a command that is sent a signal when this process ends, however it ends."""
    return ["setpriv", "--pdeathsig", signal_name, *command]


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a group, and all in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def free_ports(count: int) -> list[int]:
    """Return ports of this host that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
