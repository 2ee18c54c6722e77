"""docs/journal.md and docs/journal-format.md say what the code does: programs run; options, bounds, fields are real."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stormphase._overdue import LEAST_LEARNT_NS, LEAST_OBSERVED
from stormphase.cli import COMMANDS
from stormphase.journal import _format, _header, _phase_facts, _said, _strings, read_directory
from stormphase.journal._file import MIN_BYTES
from stormphase.journal._format import MAX_PATHS, MAX_STRINGS
from stormphase.journal._marks import LOCK_NAME, MARK_SUFFIX
from stormphase.journal._options import DIRECTORY_VARIABLE, MAX_BYTES
from stormphase.otel import _journal_facts
from stormphase.otel._journal_facts import SessionFacts

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import RunPython

    from stormphase._tracker import PhaseTracker

    MakeTracker = Callable[..., PhaseTracker]

MIB = 1024 * 1024
PAGE = (Path(__file__).parents[2] / "docs" / "journal.md").read_text(encoding="utf-8")
FORMAT = (Path(__file__).parents[2] / "docs" / "journal-format.md").read_text(encoding="utf-8")
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


def test_every_field_of_a_header_stands_in_the_format_at_its_offset() -> None:
    """Each word that the writer stores in the first segment has a row."""
    offsets = {int(found) for found in re.findall(r"^\| (\d+) \|", FORMAT.split("## Segments from 4")[0], re.MULTILINE)}
    names = ("STEP", "UNWRITTEN", "FOLDS", "ALLOCATED", "END_NOTE", "STOP_SIGNAL", "STOP_ASKED_NS", "CLEARED_UNSENT")
    more = ("OWNERS_UNSENT", "IS_COMPLETE", "LOST_NS", "FACTS_AT", "END_NOTE_AT")
    words = {getattr(_format, name) for name in (*names, *more)}
    fixed = {0, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 72, 88, 92}
    assert _format.HEADER.size == 96
    assert fixed | words | set(_format.HEARTBEATS) == offsets


def test_every_key_that_is_written_stands_in_the_format(make_tracker: MakeTracker, tmp_path: Path) -> None:
    """Of the facts, of a trace's facts, of its limits, of an envelope, and every kind of an end note."""
    make_tracker(session_id="s", rank=0, world_size=1, journal=tmp_path).start().stop()
    (image,) = read_directory(tmp_path)
    of_trace = SessionFacts(
        trace_id=1, root_id=2, rank_id=3, caller_id=4, previous_root=(5, 6), trace_per="step"
    ).to_json()
    envelope = re.findall(r'envelope\["(\w+)"\]|^ +"(\w+)": ', inspect.getsource(_phase_facts), re.MULTILINE)
    keys = {key for pair in envelope for key in pair if key}
    assert {"attributes", "paused_ns", "trace", "thread_id", "root"} <= keys
    for key in (*image.facts, *of_trace, *of_trace["limits"], *keys, *_header._END_KINDS):
        assert f"`{key}`" in FORMAT, key


def test_bounds_of_the_format_are_the_real_ones() -> None:
    """How long blobs, names, facts and the file of last words may be."""
    for number in (
        _format.MAX_BLOB,
        _format.MAX_ENVELOPE,
        _format.MAX_FACTS,
        _format.MAX_END_NOTE,
        _format.MAX_REDO_PAIRS,
        _format.MAX_STRINGS,
        _format.MAX_PATHS,
        _strings._MAX_NAME_BYTES,
        _journal_facts.MAX_JSON_BYTES,
        64 + _said.LINES * 512,
    ):
        assert f"{number:,}" in FORMAT, number
    for number in (_phase_facts._MAX_PATH_DEPTH, _said.LINES, _said.MAX_LINE_BYTES):
        assert str(number) in FORMAT, number
    assert ", ".join(f"{number} {name}" for number, name in enumerate(_said.STREAMS)) in FORMAT
