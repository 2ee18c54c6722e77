"""docs/journal.md says what the code does: its programs run, its options exist, its bounds are the real ones."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stormphase._overdue import LEAST_LEARNT_NS, LEAST_OBSERVED
from stormphase.cli import COMMANDS
from stormphase.journal import read_directory
from stormphase.journal._file import MIN_BYTES
from stormphase.journal._format import MAX_PATHS, MAX_STRINGS
from stormphase.journal._marks import LOCK_NAME, MARK_SUFFIX
from stormphase.journal._options import DIRECTORY_VARIABLE, MAX_BYTES

if TYPE_CHECKING:
    from conftest import RunPython

MIB = 1024 * 1024
PAGE = (Path(__file__).parents[2] / "docs" / "journal.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_the_page_leaves_a_journal(program: str, tmp_path: Path, run_python: RunPython) -> None:
    """Each block runs as it stands, and what it wrote can be read."""
    run_python(f"import os\nos.chdir({str(tmp_path)!r})\n{program}")

    (journal,) = read_directory(tmp_path / "runs")
    assert "clean" == journal.end_note.kind


def test_bounds_and_names_are_the_real_ones() -> None:
    """Sizes, counts and file names of the page are those of the code."""
    assert (1 * MIB, 64 * MIB) == (MIN_BYTES, MAX_BYTES)
    for said in (
        f"{MAX_PATHS:,} paths",
        f"{MAX_STRINGS:,} names",
        f"{LEAST_LEARNT_NS // 10**9} s at least, once {LEAST_OBSERVED} phases",
        f"`{LOCK_NAME}`",
        f"`{MARK_SUFFIX}`",
        f"`{DIRECTORY_VARIABLE}=runs/`",
    ):
        assert said in PAGE


def test_options_of_commands_are_real() -> None:
    """Whatever the page calls an option is one of the command that it is said of."""
    subparsers = argparse.ArgumentParser().add_subparsers()
    options = {
        parser.prog.split()[-1]: set(parser._option_string_actions)
        for parser in (command.add_parser(subparsers) for command in COMMANDS)
    }
    for section in PAGE.split("\n## ")[1:]:
        named = re.match(r"`stormphase (\w+) DIR`", section)
        if named is not None:
            assert set(re.findall(r"--[a-z-]+", section)) <= options[named[1]]
    assert {"postmortem", "recover", "top"} <= options.keys()
