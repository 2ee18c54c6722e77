"""How numbers, ranks, names and values are said."""

from __future__ import annotations

import json
import math

import pytest

from stormphase.analysis._words import MAX_PATH, counted, path_text, plain, ranks_text, shown, span


@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        (0, "0 s"),
        (5, "0.01 us"),
        (850_000, "850 us"),
        (999_600, "1.00 ms"),
        (12_345_678, "12.3 ms"),
        (1_234_000_000, "1.23 s"),
        (312_000_000_000, "312 s"),
        (11_520 * 10**9, "3h12m"),
        (100 * 3_600 * 10**9, "4d04h"),
        (-1_234_000_000, "-1.23 s"),
    ],
)
def test_a_duration_has_three_digits(ns: int, expected: str) -> None:
    """Seconds stay seconds up to hours, since people compare them."""
    assert expected == span(ns)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([5], "5"),
        ([0, 1, 2, 4], "0-2, 4"),
        ([2, 0, 1], "0-2"),
        (range(4_096), "0-4095"),
        (range(0, 40, 2), "0, 2, 4, 6, 8, 10, 12, 14, …"),
    ],
)
def test_ranks_are_folded_into_runs(ranks: list[int], expected: str) -> None:
    """Thousands of ranks fit into a few words."""
    assert expected == ranks_text(ranks)


def test_hostile_names_are_harmless_and_short() -> None:
    """ANSI, line ends, bidi marks and thousands of combining marks become visible escapes or go."""
    assert "\\x1b[31mred\\nline\\u202e" == shown("\x1b[31mred\nline\u202e")
    assert "a" + 2 * "\u0301" + "…" == shown("a" + 10_000 * "\u0301", 4)
    assert 60 == len(shown("x" * 10_000))
    assert "[bold]x[/bold]" == shown("[bold]x[/bold]")


def test_of_a_long_path_the_end_is_shown() -> None:
    """The innermost names say most."""
    assert "train / step" == path_text(("train", "step"))
    long = path_text(["outer"] * 100 + ["inner"])
    assert (MAX_PATH, "…", " / inner") == (len(long), long[0], long[-8:])


def test_counts_agree_with_their_noun() -> None:
    """One rank, two ranks."""
    assert ["1 rank", "4,096 ranks"] == [counted(1, "rank"), counted(4_096, "rank")]


def test_any_value_becomes_strict_json() -> None:
    """Numbers that JSON has not, keys that are no strings and nesting without end are said in words."""
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    value = {1: [math.nan, math.inf, 1.5, True, None, "x"], None: 2**5_000, "t": (1, b"\xff"), "deep": deep}
    found = plain(value)
    assert ["NaN", "Infinity", 1.5, True, None, "x"] == found["1"]
    assert (hex(2**5_000), [1, "b'\\xff'"]) == (found["None"], found["t"])
    json.dumps(found, allow_nan=False, sort_keys=True)
