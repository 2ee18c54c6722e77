"""Exit codes: docs/commands.md has the code's table, `--help` says the same, and each is what a run ends with."""

from __future__ import annotations

import re
import sys
import tarfile
from pathlib import Path

import pytest

from stormphase import cli
from stormphase.cli._exit_codes import EXIT_CODES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
OLD = ROOT / "tests" / "compat" / "made_by_0_1_0.tar.xz"
NOWHERE = "http://127.0.0.1:9"  # where nobody listens
SITUATIONS = {
    ("postmortem", 0): ["postmortem", "clean"],
    ("postmortem", 1): ["postmortem", "killed"],
    ("postmortem", 2): ["postmortem", "empty"],
    ("recover", 0): ["recover", "clean", "--otlp", NOWHERE, "--timeout-s", "1"],
    ("recover", 1): ["recover", "killed", "--otlp", NOWHERE, "--timeout-s", "1"],
    ("recover", 2): ["recover", "missing", "--otlp", NOWHERE],
    ("top", 0): ["top", "clean", "--once"],
    ("top", 2): ["top", "missing", "--once"],
    ("records", 0): ["records", "clean"],
    ("records", 1): ["records", "damaged"],
    ("records", 2): ["records", "clean", "--path", "zzzz"],
}


@pytest.fixture
def places(tmp_path, make_tracker, monkeypatch):
    """Go to a folder with a journal that ended in order, one of a rank that was killed, and one that is damaged."""
    for name in ("clean", "damaged"):
        with make_tracker(session_id=name, rank=0, world_size=1, journal=tmp_path / name) as tracker:
            tracker.enter_phase("train").close()
    (tmp_path / "damaged" / "damaged" / "rank-00001.attempt-0.pid-1.0.journal").write_bytes(b"\xff" * 8192)
    (tmp_path / "empty").mkdir()
    with tarfile.open(OLD) as tar:
        tar.extractall(tmp_path / "old", filter="data")
    (tmp_path / "old" / "journals" / "killed").rename(tmp_path / "killed")
    (tmp_path / "killed" / "killed").mkdir()
    for path in list((tmp_path / "killed").glob("*.journal*")):
        path.rename(tmp_path / "killed" / "killed" / path.name)
    monkeypatch.chdir(tmp_path)


def test_the_table_of_the_page_is_the_code_s():
    """Every command, every code, word for word, and nothing else."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert [(command, str(code), when) for command, codes in EXIT_CODES.items() for code, when in codes.items()] == rows
    assert {command.__name__.rpartition("._")[2] for command in cli.COMMANDS} == EXIT_CODES.keys()


@pytest.mark.parametrize("command", EXIT_CODES)
def test_help_says_the_same(command, capsys):
    """The codes stand at its end, and help itself is 0."""
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert 0 == ended.value.code
    told = " ".join(capsys.readouterr().out.split())
    for code, when in EXIT_CODES[command].items():
        assert f"{code} if {when}".lower() in told.lower()


@pytest.mark.parametrize(("command", "code"), SITUATIONS, ids=str)
def test_a_run_ends_with_the_code_of_its_situation(places, command, code):
    """Each code of the table but Ctrl-C's."""
    assert code == cli.main(SITUATIONS[command, code])


def test_every_code_has_a_situation_here():
    """None stands in the table that no run was seen to end with."""
    codes = {(command, code) for command, codes in EXIT_CODES.items() for code in codes}
    assert codes == SITUATIONS.keys() | {(command, 130) for command in EXIT_CODES}


@pytest.mark.parametrize("command", EXIT_CODES)
def test_ctrl_c_is_130(command, monkeypatch):
    """As shells have it, whatever it was about."""

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[f"stormphase.cli._{command}"], "run", interrupted)
    assert 130 == cli.main([command, "anywhere"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["unknown"], 2),
        (["--unknown"], 2),
        (["--help"], 0),
        (["--version"], 0),
        *(([command], 2) for command in EXIT_CODES),
        *(([command, "d", "--unknown"], 2) for command in EXIT_CODES),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_the_command_line_itself_ends_with(arguments, code, capsys):
    """Argparse's own exits are those of the table."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert code == ended.value.code
