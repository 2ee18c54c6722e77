"""The table as plain text: every number in line, no line too long, whatever the names."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase import RankIdentity
from stormphase._render import columns, cut, padded, render
from stormphase._summary import SummaryReport, SummaryRow, SummaryTree
from stormphase._totals import PathFigures

MS = 1_000_000
NAMES = st.text(min_size=1, max_size=40)


def row(name: str, depth: int, count: int, total_ns: int, own_ns: int, **others: Any) -> SummaryRow:
    """Return a row."""
    known: dict[str, Any] = {"paused_ns": 0, "p50_ns": total_ns / count, "p95_ns": 9 * MS, "max_ns": 9 * MS}
    figures = PathFigures(count=count, total_ns=total_ns, own_ns=own_ns, **{**known, "unwell": {}, **others})
    return SummaryRow(name, depth, figures)


def report(
    main: list[SummaryRow], beside: list[SummaryRow], wall_ns: int = 20_000 * MS, dropped: int = 0
) -> SummaryReport:
    """Return a report in which nothing is in no row."""
    tree = SummaryTree(rows=tuple(main), other=None)
    return SummaryReport(
        name="digits",
        identity=RankIdentity("20240131-0815", 1, 2, 2, 8, 8, None, "host", "explicit"),
        wall_ns=wall_ns,
        tracked_ns=tree.own_ns,
        main=tree,
        beside=SummaryTree(rows=tuple(beside), other=None),
        dropped=dropped,
    )


FULL = report(
    [
        row("train", 1, 1, 19_000 * MS, 100 * MS),
        row("epoch", 2, 3, 18_900 * MS, 900 * MS, paused_ns=1_200 * MS),
        row("step", 3, 123_456, 18_000 * MS, 8_000 * MS, unwell={"failed": 2, "cancelled": 1}),
        row("データ読み込み", 4, 123_456, 10_000 * MS, 10_000 * MS),
    ],
    [SummaryRow("train", 1, None), row("prefetch", 2, 40, 70_000 * MS, 70_000 * MS)],
)
EXPECTED = """\
stormphase: digits, rank 2 of 8, wall 20.0s, 20240131-0815 attempt 1
phase                count total   own  share    p50    p95    max paused  fail
train                    1 19.0s 100ms  95.0%  19.0s 9.00ms 9.00ms
  epoch                  3 18.9s 900ms  94.5%  6.30s 9.00ms 9.00ms  1.20s
    step              123k 18.0s 8.00s  90.0%  146us 9.00ms 9.00ms        2F 1C
      データ読み込み  123k 10.0s 10.0s  50.0% 81.0us 9.00ms 9.00ms
(untracked)                      1.00s   5.0%
wall time                        20.0s 100.0%
beside, on other threads and tasks:
train / prefetch        40 1m10s 1m10s 350.0%  1.75s 9.00ms 9.00ms
paused: counted in p50, p95 and max (from enter to exit), and nowhere else
fail: F failed, C cancelled"""


def test_a_whole_table():
    """As a person reads it."""
    assert EXPECTED.splitlines() == render(FULL, width=80, has_colour=False)


def test_colour_changes_nothing_but_the_colour():
    """Failures are red, titles stand out, and nothing moves."""
    painted = render(FULL, width=80, has_colour=True)
    assert EXPECTED.splitlines() == [re.sub(r"\x1b\[\d+m", "", line) for line in painted]
    assert "\x1b[31m2F 1C\x1b[0m" in painted[4]


def test_a_narrow_terminal_loses_the_least_useful_columns_first():
    """Names, totals and own times stay."""
    heads = [render(FULL, width=width, has_colour=False)[1].split() for width in (66, 64, 40)]
    assert ["phase", "count", "total", "own", "share", "p95", "paused", "fail"] == heads[0]
    assert ["phase", "count", "total", "own", "share", "paused", "fail"] == heads[1]
    assert ["phase", "total", "own", "fail"] == heads[2]
    assert 40 >= max(map(columns, render(FULL, width=10, has_colour=False)))


def test_a_wide_terminal_does_not_tear_the_table_apart():
    """Names get what they need and no more."""
    assert render(FULL, width=120, has_colour=False) == render(FULL, width=160, has_colour=False)


@given(st.lists(NAMES, min_size=1, max_size=8), st.integers(40, 160), st.booleans())
def test_no_line_is_too_long_and_all_numbers_stand_in_line(names, width, is_deep):
    """Whatever the names are made of: wide, combining, control and right-to-left characters."""
    main = [row(name, depth if is_deep else 1, 1, MS, MS) for depth, name in enumerate(names, start=1)]
    lines = render(report(main, []), width=width, has_colour=False)
    assert max(map(columns, lines)) <= width
    assert all(line.isprintable() for line in lines)
    table = lines[1 : len(main) + 2]
    assert 1 == len({columns(line) for line in table})


def test_what_a_reader_has_to_know_is_not_cut():
    """A note that is too long for the terminal goes on in the next line."""
    drawn = render(report([row("a", 1, 1, 60 * MS, 60 * MS)], [], dropped=3), width=50, has_colour=False)
    assert "3 ended phases were dropped from a full queue: raise queue_bound" == " ".join(drawn[-2:])
    assert all(columns(line) <= 50 for line in drawn)


def test_deep_paths_keep_their_names_in_sight():
    """Where the indent would take half the room, the level stands for it."""
    main = [row(f"name {depth}", depth, 1, MS, MS) for depth in range(1, 40)]
    lines = render(report(main, []), width=80, has_colour=False)
    assert ("  name 2", "(39) name 39") == (lines[3][:8], lines[40][:12])


@pytest.mark.parametrize(
    ("text", "width"),
    [("abc", 3), ("データ", 6), ("e\u0301", 1), ("\u1112\u1161\u11ab", 2), ("\U0001f600", 2), ("", 0)],
)
def test_the_width_of_text_is_what_a_terminal_gives_it(text, width):
    """Wide characters take two columns, combining ones none."""
    assert width == columns(text)


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("データ", 5, "デー…"),
        ("データ", 4, "デ…"),
        ("abe\u0301f", 3, "ab…"),
        ("abe\u0301", 3, "abe\u0301"),
        ("ae\u0301bc", 3, "ae\u0301…"),
        ("abc", 0, "…"),
    ],
)
def test_text_is_cut_between_what_belongs_together(text, width, expected):
    """A mark stays with its letter, and half of a wide character is none."""
    assert expected == cut(text, width)


@given(NAMES, st.integers(1, 50))
def test_padded_text_is_exactly_as_wide_as_asked(text, width):
    """So that what follows stands in line."""
    assert width == columns(padded(text, width))
