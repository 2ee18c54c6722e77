"""Lines and outputs are plain values."""

from __future__ import annotations

import pytest

from stormphase.capture import CapturedLine, CapturedOutput


def test_a_line_survives_json() -> None:
    """What records show of a line is read back; the level of a log record stays here."""
    line = CapturedLine(7, "log", "WARNING x: y", level=30)
    assert {"time_ns": 7, "stream": "log", "text": "WARNING x: y"} == line.to_dict()
    assert CapturedLine(7, "log", "WARNING x: y") == CapturedLine.from_dict(line.to_dict())
    with pytest.raises(KeyError):
        CapturedLine.from_dict({"time_ns": 7})


def test_an_output_is_a_list_and_a_text() -> None:
    """A record takes the list, a person the text."""
    output = CapturedOutput((CapturedLine(1, "stdout", "a"), CapturedLine(2, "stderr", "b")))
    expected = [{"time_ns": 1, "stream": "stdout", "text": "a"}, {"time_ns": 2, "stream": "stderr", "text": "b"}]
    assert expected == output.to_list()
    assert "a\nb\n" == output.text
