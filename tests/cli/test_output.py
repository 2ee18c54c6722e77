"""How commands write to a stream."""

from __future__ import annotations

import io

from stormphase.cli._output import Page


def test_a_number_and_its_unit_stay_on_one_line() -> None:
    """Text is wrapped between words, but not between a number and its unit, and only blanks are written."""
    stream = io.StringIO()
    page = Page(stream, {})
    page.wrapped(f"{'x' * 68} for 3.16 s (3.14 s to 3.18 s)", first="  ", indent="    ")
    page.show()
    assert [f"  {'x' * 68} for", "    3.16 s (3.14 s to 3.18 s)"] == stream.getvalue().splitlines()
