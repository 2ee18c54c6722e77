"""docs/records.md: what it shows runs, and what it lists is all there is."""

from __future__ import annotations

import re
import sqlite3

import pytest

from stormphase._record import FIELDS
from stormphase.cli import main
from stormphase.testing import RecordStoreConformance


@pytest.fixture
def page(repository):
    """Return the page's text."""
    return (repository / "docs" / "records.md").read_text(encoding="utf-8")


def blocks(page, language):
    """Return the page's blocks of code of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_what_the_page_shows_runs(page, tmp_path, monkeypatch, make_tracker, capsys):
    """Python in one namespace, from the top, then SQL and the commands on what it left."""
    import stormphase

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stormphase, "PhaseTracker", make_tracker, raising=False)
    names = {}
    for code in blocks(page, "python"):
        exec(compile(code, "docs/records.md", "exec"), names)  # noqa: S102 - our own page
    assert issubclass(names["TestMyStore"], RecordStoreConformance)
    capsys.readouterr()
    connection = sqlite3.connect("runs.db")
    (sql,) = blocks(page, "sql")
    found = [connection.execute(statement).fetchall() for statement in sql.split(";") if statement.strip()]
    connection.close()
    assert [("train", 1, 1.0), ("train / step", 3, 1.0)] == [
        (path, count, loss or 1.0) for path, count, _, loss in found[0] if path != "train / upload"
    ]
    assert [("train / upload", "no route to host", "train / upload")] == found[1]
    assert [("step 0",), ("step 1",), ("step 2",)] == found[2]
    assert [("train", "digits", "succeeded"), ("train / step", "digits", "succeeded")] == [
        row[:3] for row in found[3][:2]
    ]
    assert [("train / upload", None, "succeeded")] == [row[:3] for row in found[3][2:]]  # Its first try had failed.
    (commands,) = blocks(page, "sh")
    for line in commands.splitlines():
        arguments = [part.strip("'") for part in line.partition("#")[0].split()]
        if "runs/" not in arguments:
            assert ("stormphase", 0) == (arguments[0], main(arguments[1:])), line
            said = capsys.readouterr().out
            # An example that answers nothing teaches nothing.
            assert ("parquet" in line) != ('"step"' in said or "train / upload" in said), line


def test_every_field_is_explained(page):
    """The table has the names that JSON has, and no others."""
    table = page.partition("## Fields")[2].partition("## Who")[0]
    names = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(FIELDS) == sorted(names)
