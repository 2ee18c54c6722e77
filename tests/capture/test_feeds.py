"""What a thread writes, as it is held until it is asked for: little of much, and what is left looks the same."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from stormphase._redaction import REACH, Redactor
from stormphase.capture._feeds import ROOM, Feed, newlines_in
from stormphase.capture._output import PhaseOutput
from stormphase.capture._text import folded, safe

STATE = st.text(alphabet="abc |", max_size=300)


def said(feed: Feed) -> list[str]:
    """Return all lines of a feed."""
    before, lines = feed.drained(ends=True)
    return [text for _, text in before + lines]


def filled(pieces: list[str | bytes], *, keep: int = 1_024, is_binary: bool = False) -> Feed:
    """Return a feed into which pieces were written, shrunk whenever it is full."""
    feed = Feed("stdout", Redactor().text, keep, is_binary=is_binary)
    for when_ns, piece in enumerate(pieces):
        if feed.add(when_ns, piece):
            assert [] == feed.make_room()
    return feed


@given(st.lists(STATE, min_size=1, max_size=8), STATE, st.sampled_from(["", "\r", "\n"]))
def test_a_folded_row_looks_the_same(states: list[str], rest: str, end: str) -> None:
    """Also with what is written to it afterwards, wherever the last state ended."""
    row = "\r".join(states)
    assert safe(row + rest + end) == safe(folded(row, str) + rest + end)


@given(st.lists(STATE, min_size=1, max_size=8), STATE, st.sampled_from(["\r\x1b[K", "\r\x1b[2K", "\x1b[2K\r"]))
def test_a_row_that_is_cleared_looks_the_same(states: list[str], rest: str, clear: str) -> None:
    """With the sequences by which bars clear their line, and with colours."""
    row = clear.join(f"\x1b[32m{state}\x1b[0m" for state in states)
    assert safe(row + rest) == safe(folded(row, str) + rest)


def test_a_bar_is_kept_as_it_last_looked_and_nothing_is_cut() -> None:
    """However often it was drawn; what was drawn over is not counted as left out."""
    feed = filled(["first\n", *(f"\r{number:6} of 20000 [{'#' * 40}]" for number in range(20_001)), "\n", "last\n"])
    assert ["first", f" 20000 of 20000 [{'#' * 40}]", "last"] == said(feed)
    assert (0, 0) == (feed.cut_lines, feed.cut_bytes)


def test_a_secret_that_a_bar_has_drawn_over_is_no_secret_in_part() -> None:
    """What still shows of it is redacted as it was drawn."""
    bars = [f"\r{'.' * 40}password: hunter2-hunter2", *("\rshort" for _ in range(30_000))]
    assert "unter2" not in "".join(said(filled(bars)))


def test_nested_bars_are_kept_as_they_last_looked() -> None:
    """With "cursor up" between their lines."""
    bars = [f"\n\rinner {number:6}{'.' * 40}\x1b[A\router {number // 1_000}" for number in range(10_000)]
    feed = Feed("stdout")
    lines = []
    for when_ns, piece in enumerate(bars):
        if feed.add(when_ns, piece):
            lines += feed.make_room()
    assert [] == lines
    assert ["outer 9", f"inner   9999{'.' * 40}"] == said(feed)


@given(st.lists(st.binary(max_size=6_000), max_size=60), st.integers(0, 5))
def test_bytes_are_shown_or_counted(chunks: list[bytes], seed: int) -> None:
    """Every line of binary output is either kept or counted, and so is every byte."""
    noise = random.Random(seed)
    written = [piece for chunk in chunks for piece in (chunk, noise.randbytes(3_000))]
    pieces = [piece.replace(b"\x1b", b".") for piece in written]  # "Cursor up" would make one line of two.
    output = PhaseOutput(None, 1_024)
    feed = output.feed(1, "stdout", is_binary=True)
    for when_ns, piece in enumerate(pieces):
        output.add(feed, when_ns, piece)
    kept = output.taken()
    whole = b"".join(pieces)
    lines = whole.count(b"\n") + (not whole.endswith(b"\n") and bool(whole))
    assert 0 <= len(kept.entries) + kept.cut_lines - lines <= 2  # A line whose middle is left out is two.


def test_megabytes_are_not_decoded_where_they_are_written() -> None:
    """What a feed holds of binary output is bounded, and is bytes until it is asked for."""
    chunk = random.Random(1).randbytes(65_536)
    feed = filled([chunk] * 100, keep=32_768, is_binary=True)
    assert feed.size <= ROOM + 3 * 32_768 + 3 * REACH
    assert feed.decoder is None
    assert chunk[-5:].decode("utf-8", "backslashreplace")[-1] == said(feed)[-1][-1]


def test_no_secret_is_cut_in_two_where_much_is_left_out() -> None:
    """Neither where what is kept of the begin ends, nor where what is kept of the end begins."""
    said_once = "password: hunter2-hunter2"
    for place in range(1_000, 1_060, 3):
        for is_binary in (False, True):
            for text in (
                f"{'-' * (place + REACH)} {said_once} {'.' * 300_000}",
                f"{'.' * 300_000} {said_once} {'-' * place}",
            ):
                feed = filled([text.encode() if is_binary else text], is_binary=is_binary)
                assert "unter2" not in "".join(said(feed))


@given(st.text(alphabet="a\n\xe9\u1234"), st.integers(0, 40), st.integers(0, 40))
def test_newlines_are_counted_between_two_places(text: str, start: int, end: int) -> None:
    """Of text of any width, and of bytes."""
    assert text.count("\n", start, end) == newlines_in(text, start, end)
    assert text.encode().count(b"\n", start, end) == newlines_in(text.encode(), start, end)
