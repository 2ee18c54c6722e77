"""The table as rich draws it: the same numbers in the same lines, with guides, bars and colours."""

from __future__ import annotations

import re

import pytest

from stormphase import RankIdentity, _rich_view
from stormphase._render import columns
from stormphase._rich_view import can_draw, draw
from stormphase._summary import SummaryReport, SummaryRow, SummaryTree
from stormphase._totals import PathFigures

S = 1_000_000_000


def row(name: str, depth: int, total_ns: int, own_ns: int, failed: int = 0) -> SummaryRow:
    """Return a row."""
    unwell = {"failed": failed} if failed else {}
    return SummaryRow(name, depth, PathFigures(1, total_ns, own_ns, 0, total_ns, total_ns, total_ns, unwell))


MAIN = SummaryTree(
    rows=(
        row("train", 1, 10 * S, 1 * S),
        row("epoch", 2, 9 * S, 1 * S),
        row("step", 3, 5 * S, 5 * S, failed=2),
        row("[red]eval[/red]", 3, 3 * S, 3 * S),
        row("データ", 1, 2 * S, 2 * S),
    ),
    other=None,
)
BESIDE = SummaryTree(rows=(row("load", 1, 30 * S, 30 * S),), other=None)
REPORT = SummaryReport("job", RankIdentity("s", 0, 0, 0, 1, 1, None, "h", "single"), 16 * S, 12 * S, MAIN, BESIDE, 0)
EXPECTED = """\
stormphase: job, rank 0 of 1, wall 16.0s, s
phase               count total   own  share   p50   p95   max fail █ own ░ inner
train                   1 10.0s 1.00s  62.5% 10.0s 10.0s 10.0s      █░░░░░░░░░
└ epoch                 1 9.00s 1.00s  56.2% 9.00s 9.00s 9.00s      █░░░░░░░░
  ├ step                1 5.00s 5.00s  31.2% 5.00s 5.00s 5.00s   2F █████
  └ [red]eval[/red]     1 3.00s 3.00s  18.8% 3.00s 3.00s 3.00s      ███
データ                  1 2.00s 2.00s  12.5% 2.00s 2.00s 2.00s      ██
(untracked here)                4.00s  25.0%                        ████
wall time                       16.0s 100.0%                        ████████████████
beside, on other threads and tasks:
load                    1 30.0s 30.0s 187.5% 30.0s 30.0s 30.0s      ████████████████
(untracked here): phases on other threads and tasks may have run then
fail: F failed"""


def drawn(width: int, *, has_colour: bool = True) -> str:
    """Return what is written to a terminal."""
    return draw(REPORT, width=width, has_colour=has_colour)


def plain(text: str) -> list[str]:
    """Return lines without styles and without blanks at their ends."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]


def test_a_whole_table(monkeypatch):
    """Guides lead to children, solid bars are own time, light ones what ran on top; nothing in a name is markup."""
    monkeypatch.setattr(_rich_view, "_BARS", (16,))
    assert EXPECTED.splitlines() == plain(drawn(100))


@pytest.mark.parametrize("width", range(40, 161, 7))
def test_it_fits_its_terminal(width):
    """At any width; bars are drawn only where no number has to go for them."""
    assert max(map(columns, plain(drawn(width)))) <= width


def test_bars_take_no_column_of_numbers():
    """Eighty columns are for numbers first."""
    heads = plain(drawn(80))[1].split()
    assert ["phase", "count", "total", "own", "share", "p50", "p95", "max", "fail"] == heads[:9]


def test_failures_are_red():
    """And only they."""
    assert ["2F"] == re.findall(r"\x1b\[1;31m([^\x1b]*)\x1b", drawn(100))


def test_without_colour_nothing_is_coloured():
    """NO_COLOR takes the colours; what is bold or dim may stay."""
    assert [] == re.findall(r"\x1b\[[\d;]*(?:3|9)\dm", drawn(100, has_colour=False))


@pytest.mark.parametrize(
    ("encoding", "expected"), [("utf-8", True), ("ascii", False), ("latin-1", False), ("no", False)]
)
def test_terminals_that_cannot_show_guides_are_known(encoding, expected):
    """They get the plain table."""
    assert expected is can_draw(encoding)
