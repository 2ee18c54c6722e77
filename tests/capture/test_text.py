"""Lines as a person would have seen them in the terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase._redaction import Redactor
from stormphase.capture._text import LONGEST_LINE, REWRITABLE_ROWS, LineBuilder, safe


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("plain é 漢", "plain é 漢"),
        ("tab\tstays", "tab\tstays"),
        ("windows\r", "windows"),
        (" 10%\r 20%\r100%", "100%"),
        ("100%    \r20%   ", "20%"),
        ("downloading\rdone", "doneloading"),
        ("downloading\r\x1b[Kdone", "done"),
        ("downloading\x1b[2K\rdone", "done"),
        ("abc\x1b[1Kd", "   d"),
        ("12\b\b34", "34"),
        ("ab\b\b\b\bc", "cb"),
        ("a\x1b[3Cb", "a   b"),
        ("abc\x1b[2Dx", "axc"),
        ("abc\x1b[1Gx", "xbc"),
        ("\x1b[1;31mred\x1b[0m text", "red text"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x1b(Btext", "text"),
        ("nul\x00bell\x07", "nul\\x00bell\\x07"),
        ("lone\x1b", "lone\\x1b"),
        ("c1\x9b31m", "c1\\x9b31m"),
        ("half\udcff", "half\\udcff"),
        ("line\u2028sep", "line\\u2028sep"),
        ("\x1b[" + "9" * 5000 + "Cx", " " * LONGEST_LINE + "x"),
    ],
)
def test_a_line_is_what_the_terminal_showed_in_the_end(written: str, expected: str) -> None:
    """Progress bars fold to their last state, colours go, and the rest of what is no text is escaped."""
    assert expected == safe(written)


@given(st.text(alphabet=st.characters() | st.sampled_from("\r\b\x1b[K0A"), max_size=60))
def test_a_safe_line_is_safe_whatever_was_written(written: str) -> None:
    """No control character and no half of a pair is left, so every store and terminal can take it."""
    line = safe(written.replace("\n", ""))
    line.encode("utf-8")
    assert [] == [
        character for character in line if character != "\t" and not character.isprintable() and ord(character) < 0xA0
    ]


def lines_of(*pieces: str) -> list[str]:
    """Return the lines that pieces make, written one by one."""
    builder = LineBuilder()
    lines = []
    for number, piece in enumerate(pieces):
        lines += builder.add(number, piece)
    return [text for _, text in lines + builder.end()]


def test_pieces_make_lines() -> None:
    """Each newline ends a line, and what is left at the end is one, too."""
    assert ["ab", "", "c", "d"] == lines_of("a", "b\n\nc", "\n", "d")


def test_a_line_has_the_time_of_its_first_piece() -> None:
    """A line that is written slowly began when it began."""
    builder = LineBuilder()
    builder.add(5, "a")
    builder.add(6, "b\nc")
    assert [(5, "ab"), (6, "c")] == builder.end()


def test_nested_progress_bars_keep_their_lines() -> None:
    """Where a bar moves the cursor up, the line above is written anew and not once more."""
    outer = [f"\router {number}" for number in range(3)]
    written = []
    for bar in outer:
        written += [bar, *(f"\n\rinner {number}\x1b[A" for number in range(4))]
    assert ["outer 2", "inner 3"] == lines_of(*written)


def test_cursor_up_goes_no_further_than_what_is_remembered() -> None:
    """However far a program moves up, the lines that were complete before stay as they are."""
    lines = [f"{number}" for number in range(40)]
    found = lines_of(*(f"{line}\n" for line in lines), "\x1b[" + "9" * 5000 + "Atop", "\x1b[99Bend")
    assert lines[: 40 - REWRITABLE_ROWS] == found[: 40 - REWRITABLE_ROWS]
    assert "top" in found


def test_a_line_without_end_is_kept_in_parts() -> None:
    """Binary output without newlines costs no more than other lines do."""
    written = "x" * (3 * LONGEST_LINE + 1)
    found = lines_of(written)
    assert 4 == len(found)
    assert max(map(len, found)) <= LONGEST_LINE
    assert written == "".join(found)
    assert written == "".join(lines_of(*[written[start : start + 999] for start in range(0, len(written), 999)]))


def test_a_progress_bar_without_end_stays_one_line() -> None:
    """A bar that is drawn a million times is as long as it looks."""
    assert ["bar 2999"] == lines_of(*(f"\rbar {number}" for number in range(3000)))


@given(st.lists(st.text(alphabet="ab\n\r\x1b[A", max_size=8), max_size=12))
def test_pieces_all_at_once_make_the_same_lines(pieces: list[str]) -> None:
    """The fast way of many pieces is the slow one, done at once."""
    slow, fast = LineBuilder(), LineBuilder()
    expected: list[tuple[int, str]] = []
    stamps = []
    when_ns = 0
    for number, piece in enumerate(pieces, 1):
        if piece != "\n":
            when_ns = number
            stamps.append(number)
        expected += slow.add(when_ns, piece)
    found = fast.add_all(pieces, stamps)
    assert expected + slow.end() == found + fast.end()


@given(st.lists(st.text(alphabet="ab\n", max_size=6), max_size=12), st.integers(0, 12))
def test_pieces_in_two_lots_make_the_same_lines(pieces: list[str], at: int) -> None:
    """Where a feed happens to be emptied shows nowhere."""
    once, twice = LineBuilder(), LineBuilder()
    stamps = [number for number, piece in enumerate(pieces) if piece != "\n"]
    first = len([piece for piece in pieces[:at] if piece != "\n"])
    expected = once.add_all(pieces, stamps) + once.end()
    found = twice.add_all(pieces[:at], stamps[:first]) + twice.add_all(pieces[at:], stamps[first:]) + twice.end()
    assert expected == found


def test_a_secret_that_was_drawn_over_in_part_does_not_show() -> None:
    """Of `password=...` the first letters may be gone, and with them what says that it is one."""
    builder = LineBuilder(Redactor().text)
    builder.add(0, "password=hunter2-hunter2\rok")
    assert ["okssword=[redacted]"] == [text for _, text in builder.end()]


@pytest.mark.parametrize("secret", ["password: hunter2-hunter2", "Bearer abcdefghijkl", '{"a":1,"token":"abcdefgh"}'])
def test_a_long_line_is_parted_where_no_secret_is(secret: str) -> None:
    """Wherever the secret stands in a line that is kept as several, none of them has a part of it."""
    redact = Redactor().text
    expected = redact(secret)
    for at in range(LONGEST_LINE - 2_100, LONGEST_LINE - 2_030, 3):
        builder = LineBuilder(redact)
        written = "-" * at + " " + secret + " " + "-" * LONGEST_LINE
        lines = [line for start in range(0, len(written), 500) for line in builder.add(0, written[start : start + 500])]
        texts = [text for _, text in lines + builder.end()]
        assert written == "".join(texts)
        assert "-" * at + " " + expected + " " + "-" * LONGEST_LINE == "".join(map(redact, texts))


def test_a_long_line_full_of_secrets_is_parted_all_the_same() -> None:
    """Where there is no place without one, the parts are those of the redacted line."""
    secret = "password=" + "x" * 1_500
    builder = LineBuilder(Redactor().text)
    builder.add(0, "-" * 5_500 + secret + "\n")
    assert ["-" * 5_500 + secret] == [text for _, text in builder.end()]
    builder.add(0, "-" * 5_500 + secret + ";" + "-" * 2_000)
    assert ["-" * 5_500 + "password=[redacted];" + "-" * 2_000] == ["".join(text for _, text in builder.end())]
