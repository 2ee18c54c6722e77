"""What is shown of a summary: the costliest paths, sums that add up, and figures that a person can read."""

from __future__ import annotations

import re
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stormphase import RankIdentity
from stormphase._summary import SummaryReport, SummaryRow, SummaryTree
from stormphase._table import (
    BESIDE_ROWS,
    COUNT,
    FAIL,
    MAIN_ROWS,
    OWN,
    SHARE,
    TOTAL,
    amount,
    duration,
    percent,
    printable,
    table_of,
)
from stormphase._totals import PathFigures

EMPTY = SummaryTree(rows=(), other=None)
UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3_600 * 10**9, "d": 86_400 * 10**9}


def figures(total_ns: int = 0, own_ns: int = 0, **others: Any) -> PathFigures:
    """Return figures."""
    known: dict[str, Any] = {"count": 1, "paused_ns": 0, "p50_ns": 0, "p95_ns": 0, "max_ns": 0, "unwell": {}}
    return PathFigures(total_ns=total_ns, own_ns=own_ns, **{**known, **others})


def report(*rows: SummaryRow, **others: Any) -> SummaryReport:
    """Return a report of some rows of the main lane."""
    main = SummaryTree(rows=rows, other=None)
    known = {
        "name": "job",
        "identity": RankIdentity("s", 0, 0, 0, 1, 1, None, "host", "single"),
        "wall_ns": main.own_ns,
        "tracked_ns": main.own_ns,
        "main": main,
        "beside": EMPTY,
        "dropped": 0,
    }
    return SummaryReport(**{**known, **others})


def labels(lines: Any) -> list[str]:
    """Return labels behind their indent."""
    return ["  " * line.level + line.label for line in lines]


def nanoseconds(text: str) -> int:
    """Read a duration back."""
    return sum(round(float(number) * UNITS[unit]) for number, unit in re.findall(r"([\d.]+)([a-z]+)", text))


@given(st.one_of(st.integers(0, 10**7), st.integers(0, 10**18)))
def test_a_duration_has_three_digits_and_at_most_six_characters(ns):
    """From nothing to a century; its error is half of its last digit, or of its smaller unit."""
    text = duration(ns)
    assert len(text) <= 6
    smaller_unit = {"s": 10**9, "m": 60 * 10**9, "h": 3_600 * 10**9, "d": 86_400 * 10**9}
    is_long = ns >= 59_970_000_000
    assert abs(nanoseconds(text) - ns) <= (smaller_unit[text[-1]] / 2 + 1_000 if is_long else max(0.005 * ns, 0.5))


@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        (0, "0ns"),
        (999, "999ns"),
        (1_000, "1.00us"),
        (9_994, "9.99us"),
        (9_996, "10.0us"),
        (99_960, "100us"),
        (999_499, "999us"),
        (999_500, "1.00ms"),
        (999_999_999, "1.00s"),
        (59_960_000_000, "60.0s"),
        (59_999_999_999, "1m00s"),
        (3_599_600_000_000, "1h00m"),
        (86_399_600_000_000, "1d00h"),
        (100 * 86_400 * 10**9, "100d"),
        (-1_230_000, "-1.23ms"),
    ],
)
def test_durations_at_the_edges(ns, expected):
    """Rounding never gives four digits, sixty seconds or sixty minutes."""
    assert expected == duration(ns)


@given(st.integers(0, 10**12 - 10**9))
def test_a_count_has_at_most_five_characters(count):
    """Exact as long as it fits, then three digits."""
    text = amount(count)
    assert len(text) <= 5
    size = {"k": 10**3, "M": 10**6, "G": 10**9}.get(text[-1], 1)
    assert abs(float(text.rstrip("kMG")) * size - count) <= count * 0.005


def test_a_count_beyond_all_is_a_power():
    """A phase a nanosecond for an hour."""
    assert "4e+12" == amount(3_600 * 10**9)


@pytest.mark.parametrize(("share", "expected"), [(None, ""), (0.0, "0.0%"), (0.1234, "12.3%"), (1.0, "100.0%")])
def test_shares_have_one_digit(share, expected):
    """And are blank where there is no wall time to have a share of."""
    assert expected == percent(share)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\n", "\\x1b[31mred\\n"),
        ("\u202eright to left", "\\u202eright to left"),
        ("e" + "\u0301" * 100, "e\u0301\u0301"),
        ("データ", "データ"),
    ],
)
def test_nothing_in_a_name_moves_the_cursor(text, expected):
    """Controls, bidirectional ones included, are shown as escapes, and marks stay on their own line."""
    assert expected == printable(text)


def test_every_name_is_made_printable():
    """The job's as well as the phases'."""
    table = table_of(report(SummaryRow("a\x1b[2J", 1, figures(1, 1)), name="job\x07"))
    assert ("a\\x1b[2J", True) == (table.main[0].label, "job\\x07" in table.title)


def test_the_title_says_whose_table_it_is():
    """Job, rank, wall time and session; the attempt only where there was more than one."""
    one = report(SummaryRow("a", 1, figures(5, 5)), name=None)
    again = attrs.evolve(one, identity=attrs.evolve(one.identity, attempt=2, rank=3, world_size=8))
    assert "stormphase: session, rank 0 of 1, wall 5ns, s" == table_of(one).title
    assert "stormphase: session, rank 3 of 8, wall 5ns, s attempt 2" == table_of(again).title


def test_columns_with_nothing_to_say_are_left_out():
    """Most sessions have neither pauses nor failures."""
    plain = table_of(report(SummaryRow("a", 1, figures(5, 5))))
    busy = table_of(report(SummaryRow("a", 1, figures(5, 5, paused_ns=7, unwell={"failed": 2, "lost": 1}))))
    assert (COUNT, TOTAL, OWN, SHARE, "p50", "p95", "max") == plain.columns
    assert (*plain.columns, "paused", FAIL) == busy.columns
    assert ("2F 1L", "fail: F failed, L lost") == (busy.main[0].cells[FAIL], busy.notes[-1])
    assert busy.notes[0].startswith("paused: counted in p50, p95 and max")


def test_the_lines_end_with_what_adds_up():
    """Own times, the untracked rest, and the wall time that they make."""
    table = table_of(report(SummaryRow("a", 1, figures(60, 60)), wall_ns=100))
    assert ["a", "(untracked)", "wall time"] == labels(table.main)
    assert ["60ns", "40ns", "100ns"] == [line.cells[OWN] for line in table.main]
    assert ["60.0%", "40.0%", "100.0%"] == [line.cells[SHARE] for line in table.main]


def test_dropped_phases_have_a_row_with_their_count():
    """And a note says what to do, also where they took no time on the main lane."""
    row = SummaryRow("a", 1, figures(60, 60))
    table = table_of(report(row, wall_ns=100, tracked_ns=90, dropped=3))
    assert {OWN: "30ns", COUNT: "3", SHARE: "30.0%"} == table.main[2].cells
    assert ("3 ended phases were dropped from a full queue: raise queue_bound",) == table.notes
    assert "(not in a row)" in labels(table_of(report(row, dropped=1)).main)


def test_time_of_phases_that_moved_on_has_no_count_and_a_note():
    """It stands where it was spent; its quantiles are those of the phase, which ended elsewhere."""
    table = table_of(report(SummaryRow("a", 1, figures(60, 60, count=0)), wall_ns=100))
    assert {TOTAL: "60ns", OWN: "60ns", SHARE: "60.0%"} == table.main[0].cells
    assert ["without a count: spent there by phases that moved on, and are counted where they ended"] == [*table.notes]


def test_what_has_ended_and_is_in_no_row_yet_has_one_of_its_own():
    """Where a summary is asked for while its worker is behind, say."""
    table = table_of(report(SummaryRow("a", 1, figures(60, 60)), wall_ns=100, tracked_ns=90))
    assert ["a", "(untracked)", "(not in a row)", "wall time"] == labels(table.main)


def test_where_nothing_ran_on_the_main_lane_nothing_is_called_untracked():
    """What ran side by side covers the wall time, as far as anybody knows; without any phase all of it is untracked."""
    beside = SummaryTree(rows=(SummaryRow("a", 1, figures(60, 60)),), other=None)
    table = table_of(report(beside=beside, wall_ns=100))
    assert (["(only beside)", "wall time"], ["a"]) == (labels(table.main), labels(table.beside))
    assert [100, 100] == [int(line.cells[OWN][:-2]) for line in table.main]
    assert ("phases ran side by side on other threads and tasks only: their times are no sum",) == table.notes
    assert ["(untracked)", "wall time"] == labels(table_of(report(wall_ns=100)).main)


def test_where_others_hang_under_nothing_here_it_is_said_whose_time_is_untracked():
    """A thread of its own may have used it."""
    row = SummaryRow("a", 1, figures(60, 60))
    own = SummaryTree(rows=(row,), other=None)
    under = SummaryTree(rows=(SummaryRow("a", 1, None), SummaryRow("b", 2, figures(60, 60))), other=None)
    table = table_of(report(row, beside=own, wall_ns=100))
    assert "(untracked here)" in labels(table.main)
    assert ("(untracked here): phases on other threads and tasks may have run then",) == table.notes
    assert "(untracked)" in labels(table_of(report(row, beside=under, wall_ns=100)).main)


def test_the_session_s_start_is_a_line_of_its_own():
    """It is no time that the program forgot to track."""
    table = table_of(report(SummaryRow("a", 1, figures(60, 60)), wall_ns=100, starting_ns=30))
    assert [("a", "60ns"), ("(untracked)", "10ns"), ("(starting)", "30ns"), ("wall time", "100ns")] == [
        (line.label, line.cells[OWN]) for line in table.main
    ]


def test_the_costliest_paths_are_shown_and_the_others_summed_up_where_they_hang():
    """The column of own times still adds up to the wall time."""
    rows = [SummaryRow("train", 1, figures(100_000, 1))]
    rows += [SummaryRow(f"step {n:02}", 2, figures(1000 - n, 1000 - n, unwell={"failed": 1})) for n in range(90)]
    rows += [SummaryRow("deep", 2, figures(3, 1)), SummaryRow("deeper", 3, figures(2, 2))]
    table = table_of(report(*rows))
    shown = labels(table.main)
    assert ["train", "  step 00"] == shown[:2]
    assert MAIN_ROWS + 1 == shown.index("  (53 more)") + 1
    more = table.main[MAIN_ROWS]
    own_ns = sum(1000 - n for n in range(39, 90)) + 3
    assert {OWN: duration(own_ns), FAIL: "51F"} == {key: more.cells[key] for key in (OWN, FAIL)}


def test_a_single_path_that_would_be_hidden_is_shown():
    """To say that there is one more takes a line as well."""
    rows = []
    for n in range(60):
        rows += [SummaryRow(f"step {n:02}", 1, figures(1000 - n, 1000 - n)), SummaryRow("inner", 2, figures(1, 1))]
    shown = labels(table_of(report(*rows)).main)
    assert (["step 00", "  inner"], "(40 more)") == (shown[:2], shown[2 * MAIN_ROWS])


@settings(max_examples=30)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=200), st.lists(st.integers(1, 5), min_size=200))
def test_no_own_time_is_lost_by_hiding(owns, depths):
    """Whatever the tree, what its lines stand for is all that its rows have."""
    rows = []
    depth = 0
    for own_ns, wish in zip(owns, depths, strict=False):
        depth = min(depth + 1, wish)
        rows.append(SummaryRow("a", depth, figures(own_ns, own_ns)))
    table = table_of(report(*rows))
    assert sum(owns) == pytest.approx(sum(line.own_share or 0 for line in table.main[:-1]) * sum(owns))
    hidden = sum(int(label.strip(" (").split()[0]) for label in labels(table.main) if label.endswith(" more)"))
    assert len(rows) == hidden + sum(line.is_phase for line in table.main)


def test_ancestors_of_what_is_shown_are_shown():
    """Also where an ancestor has no figures; a chain of such is one label with its only child."""
    rows = [
        SummaryRow("train", 1, None),
        SummaryRow("step", 2, None),
        SummaryRow("load", 3, figures(9, 9)),
        SummaryRow("eval", 1, None),
        SummaryRow("one", 2, figures(5, 5)),
        SummaryRow("two", 2, figures(4, 4)),
    ]
    tree = SummaryTree(rows=tuple(rows), other=None)
    table = table_of(report(beside=tree, wall_ns=100))
    assert ["train / step / load", "eval", "  one", "  two"] == labels(table.beside)
    assert {} == table.beside[1].cells


def test_a_tree_of_thousands_of_lanes_is_bounded_too():
    """What ran beside has less room."""
    rows = tuple(SummaryRow(f"t{n}", 1, figures(1, 1)) for n in range(500))
    table = table_of(report(beside=SummaryTree(rows=rows, other=None), wall_ns=100))
    assert (BESIDE_ROWS + 1, "(480 more)") == (len(table.beside), table.beside[-1].label)


def test_paths_beyond_the_bound_have_a_row():
    """With their own time only: their totals may contain each other."""
    tree = SummaryTree(rows=(), other=figures(9, 4, count=7, unwell={"abandoned": 7}))
    table = table_of(report(main=tree, wall_ns=4, tracked_ns=4))
    assert {COUNT: "7", OWN: "4ns", SHARE: "100.0%", FAIL: "7A"} == table.main[0].cells


def test_a_chain_of_ten_thousand_is_cut():
    """Neither recursion nor ten thousand lines."""
    rows = [SummaryRow("deep", depth, figures(10_001 - depth, 1)) for depth in range(1, 10_001)]
    table = table_of(report(*rows))
    assert (MAIN_ROWS + 3, "(9960 more)") == (len(table.main), table.main[MAIN_ROWS].label)


def test_a_session_of_no_time_has_no_shares():
    """There is nothing to divide by."""
    table = table_of(report(SummaryRow("a", 1, figures(0, 0))))
    assert {""} == {line.cells[SHARE] for line in table.main}
