"""docs/logging.md: its program prints what it shows, and its fields and options are all there are."""

from __future__ import annotations

import inspect
import logging
import re
from typing import TYPE_CHECKING

import pytest

from stormphase import LoggingSink

if TYPE_CHECKING:
    from conftest import RunPython


@pytest.fixture
def page(repository):
    """Return the page's text."""
    return (repository / "docs" / "logging.md").read_text(encoding="utf-8")


def block(page: str, language: str) -> str:
    """Return the page's one block of that language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return found


def without_times(text: str) -> str:
    """Return the lines without durations, and without the carets and paths of a Python's own tracebacks."""
    lines = [line for line in text.splitlines() if set(line.strip()) - set("~^")]
    return re.sub(r"\d+\.\d{6} s", "S s", "\n".join(lines)).strip()


def test_the_program_of_the_page_prints_what_it_shows(page: str, run_python: RunPython, tmp_path) -> None:
    """Run as the file that the traceback names; only times differ."""
    (tmp_path / "train.py").write_text(block(page, "python"))
    child = run_python("import runpy; runpy.run_path('train.py', run_name='__main__')")
    assert without_times(block(page, "text")) == without_times(child.stderr)


def test_every_field_of_the_page_is_one_and_none_is_missing(page, make_tracker, caplog):
    """Of a phase that ended, was slow and failed; an overdue one has two more."""
    caplog.set_level("DEBUG", "stormphase.phases")
    with make_tracker(sinks=[LoggingSink(slow_s=1e-9)]) as tracker:
        tracker.enter_phase("slow").close()
        with pytest.raises(ValueError, match="bad"), tracker.enter_phase("fails"):
            raise ValueError("bad")
        tracker.flush()
    plain = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    found = {name for record in caplog.records if record.name == "stormphase.phases" for name in vars(record)} - plain
    table = page.split("| field | on |")[1]
    assert found | {"phase_open_s"} == set(re.findall(r"`(\w+)`", table.split("\n\n")[0]))


def test_every_option_stands_on_the_page(page):
    """By its name."""
    for name in inspect.signature(LoggingSink).parameters:
        assert f"`{name}`" in page or f"LoggingSink({name}" in page
