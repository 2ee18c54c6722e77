"""The command line itself: help, version, usage."""

from __future__ import annotations

import subprocess
import sys

import pytest

import stormphase
from stormphase.cli import main

NO_SECONDS = [
    [command, "d", option, value]
    for command, option in (("postmortem", "--hang-s"), ("top", "--hang-s"), ("top", "--interval-s"))
    for value in ("nan", "-1", "x")
]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """`stormphase --version` and `python -m stormphase.cli --version`."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (0, f"stormphase {stormphase.__version__}\n") == (ended.value.code, capsys.readouterr().out)
    child = subprocess.run([sys.executable, "-m", "stormphase.cli", "--version"], capture_output=True, check=True)
    assert f"stormphase {stormphase.__version__}".encode() == child.stdout.strip()


@pytest.mark.parametrize(
    "arguments", [[], ["unknown"], ["postmortem"], ["postmortem", "d", "--rank", "x"], *NO_SECONDS]
)
def test_wrong_usage_is_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As shells and argparse have it."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert 2 == ended.value.code
    assert "usage: stormphase" in capsys.readouterr().err


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` names every command."""
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "postmortem" in capsys.readouterr().out
