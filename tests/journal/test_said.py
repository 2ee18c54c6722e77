"""What a process says last: kept in a ring of lines, read back in order, whatever the file holds."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase.journal._said import LINES, MAX_LINE_BYTES, STREAMS, LastLines, SaidLine, read_said, said_path


@pytest.fixture
def journal(tmp_path):
    """Return where a journal would be."""
    return tmp_path / "rank-0.journal"


def test_lines_come_back_in_order(journal):
    """With their times, phases and streams; the file is its owner's alone."""
    lines = LastLines(said_path(journal))
    expected = [SaidLine(number, number * 2, stream, f"{stream} ü") for number, stream in enumerate(STREAMS)]
    for line in expected:
        lines.put(line.time_ns, line.sequence, line.stream, line.text)
    assert expected == read_said(journal)
    assert 0o600 == stat.S_IMODE(said_path(journal).stat().st_mode)


def test_the_last_lines_stay(journal):
    """Of many the newest are kept, and a long one is cut between characters."""
    lines = LastLines(said_path(journal))
    for number in range(3 * LINES):
        lines.put(number, 1, "stdout", "ü" * MAX_LINE_BYTES)
    found = read_said(journal)
    assert list(range(2 * LINES, 3 * LINES)) == [line.time_ns for line in found]
    assert {"ü" * (MAX_LINE_BYTES // 2)} == {line.text for line in found}


def test_a_file_that_is_there_is_left_alone(journal):
    """It may be another process's."""
    said_path(journal).write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        LastLines(said_path(journal))
    assert b"mine" == said_path(journal).read_bytes()


def test_nothing_there_is_nothing_said(journal):
    """A journal without such a file, or a directory in its place, is no error."""
    assert [] == read_said(journal)
    said_path(journal).mkdir()
    assert [] == read_said(journal)


@given(st.data())
def test_whatever_the_file_holds_is_read(tmp_path_factory, data):
    """Cut anywhere and with any bytes changed it raises nothing, and gives no more than it can hold."""
    journal = tmp_path_factory.mktemp("said") / "rank-0.journal"
    lines = LastLines(said_path(journal))
    for number in range(5):
        lines.put(number, 1, "stdout", "hello")
    content = bytearray(said_path(journal).read_bytes())
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 255)), max_size=20)):
        content[at] = value
    said_path(journal).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert len(read_said(journal)) <= LINES
