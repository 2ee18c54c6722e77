"""What is kept of one phase: bounded, in whole lines, and what was cut is counted."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from stormphase._redaction import Redactor
from stormphase.capture._feeds import ROOM
from stormphase.capture._output import PhaseOutput


def finished(output: PhaseOutput, *, taken: bool = True):
    """Return what users would get, on a clock that is its own wall clock."""
    kept = output.taken() if taken else output.seen()
    kept.sort()
    return kept.finished(lambda when_ns: when_ns, lambda text: text)


def written(max_bytes: int, *texts: str) -> PhaseOutput:
    """Return an output into which one thread has written `texts`, one after the other."""
    output = PhaseOutput(None, max_bytes)
    feed = output.feed(1, "stdout")
    for when_ns, text in enumerate(texts):
        output.add(feed, when_ns, text)
    return output


def test_what_fits_is_kept_as_it_is() -> None:
    """Lines, times and blank lines stay; nothing is said to be cut."""
    output = finished(written(1_000, "a", "\n", "\n", "b\nc"))
    assert [("a", 0), ("", 2), ("b", 3), ("c", 3)] == [(line.text, line.time_ns) for line in output.lines]
    assert (0, 0) == (output.cut_lines, output.cut_bytes)


def test_head_and_tail_are_kept_and_the_cut_is_said() -> None:
    """Of much output the first and the last lines stay, with a line between that says what is missing."""
    output = finished(written(256, *(f"{number:03}\n" for number in range(1_000))))
    texts = [line.text for line in output.lines]
    assert ["000", "001"] == texts[:2]
    assert ["998", "999"] == texts[-2:]
    cut = [line for line in output.lines if line.stream == "cut"]
    assert [f"... {output.cut_bytes:,} bytes in {output.cut_lines:,} lines cut ..."] == [line.text for line in cut]
    assert 1_000 == len(texts) - 1 + output.cut_lines
    assert 4 * output.cut_lines == output.cut_bytes
    assert 256 >= 4 * (len(texts) - 1)


@given(st.lists(st.text(alphabet="ab \n", max_size=40), max_size=200), st.integers(256, 600))
def test_what_is_kept_and_what_is_cut_add_up(texts: list[str], max_bytes: int) -> None:
    """Every line is either shown or counted, and the bound holds."""
    output = finished(written(max_bytes, *texts))
    lines = "".join(texts).split("\n")
    kept = [line for line in output.lines if line.stream != "cut"]
    assert len(lines) - (lines[-1] == "") == len(kept) + output.cut_lines
    assert max_bytes >= sum(len(line.text) + 1 for line in kept)


def test_much_output_is_dropped_in_bulk_and_still_counted() -> None:
    """A phase that prints for hours holds no more than its bounds, and counts exactly."""
    total = 60_000
    output = PhaseOutput(None, 1_024)
    feed = output.feed(1, "stdout")
    for number in range(total):
        feed.stamps.append(number)  # as the fast way does
        feed.pieces.append(f"line {number}")
        feed.pieces.append("\n")
        if number % 5_000 == 0:
            output.make_room(feed)
            assert len(feed.pieces) < 10_001
    found = finished(output)
    kept = [line.text for line in found.lines if line.stream != "cut"]
    assert total == len(kept) + found.cut_lines
    assert "line 0" == kept[0]
    assert f"line {total - 1}" == kept[-1]
    assert sum(len(f"line {number}\n") for number in range(total)) == found.cut_bytes + sum(
        len(text) + 1 for text in kept
    )


def test_one_huge_text_keeps_its_begin_and_its_end() -> None:
    """Ten megabytes in one write cost what is kept of them."""
    text = "begin " + "x " * 5_000_000 + "end"
    output = finished(written(1_024, text))
    kept = [line.text for line in output.lines if line.stream != "cut"]
    assert kept[0].startswith("begin x")
    assert kept[-1].endswith("x end")
    assert len(text) == output.cut_bytes + sum(len(line) for line in kept)
    assert 1_024 >= sum(len(line) for line in kept)


def test_the_cut_of_one_huge_text_stands_in_its_middle() -> None:
    """All its lines have one time, and what is missing is told between the first and the last all the same."""
    output = finished(written(1_024, "".join(f"line {number}\n" for number in range(5_000))))
    cut = [line.stream for line in output.lines].index("cut")
    texts = [line.text for line in output.lines]
    assert "line 0" == texts[0]
    assert f"line {cut - 1}" == texts[cut - 1]
    assert "line 4999" == texts[-1]
    assert texts[cut + 1] == f"line {5_000 - (len(texts) - cut - 1)}"


def test_a_feed_never_holds_more_than_its_room() -> None:
    """Also what comes on the slow way, from many threads in turns, makes room."""
    output = PhaseOutput(None, 1_024)
    feeds = [output.feed(thread, "stdout") for thread in range(2)]
    for number in range(20_000):
        output.add(feeds[number % 2], number, "x" * 99 + "\n")
    assert all(sum(map(len, feed.pieces)) <= ROOM for feed in feeds)
    found = finished(output)
    assert 20_000 == len(found.lines) - 1 + found.cut_lines


def test_threads_do_not_tear_each_others_lines() -> None:
    """Each thread's pieces make that thread's lines, however they came between each other."""
    output = PhaseOutput(None, 1_024)
    one, two = output.feed(1, "stdout"), output.feed(2, "stdout")
    output.add(one, 1, "on")
    output.add(two, 2, "two\n")
    output.add(one, 3, "e\n")
    assert ["one", "two"] == [line.text for line in finished(output).lines]


def test_seeing_takes_nothing_away() -> None:
    """What was looked at is still there, and a line that was open goes on."""
    output = written(1_024, "a\nb")
    assert ["a", "b"] == [line.text for line in finished(output, taken=False).lines]
    output.add(output.feed(1, "stdout"), 9, "c\n")
    assert ["a", "bc"] == [line.text for line in finished(output).lines]


def test_bytes_of_one_character_in_two_writes_are_one_character() -> None:
    """Binary writes are put together before they are decoded; what is no UTF-8 is escaped."""
    output = PhaseOutput(None, 1_024)
    feed = output.feed(1, "stdout", is_binary=True)
    for data in (b"caf\xc3", b"\xa9 \xff\x00\n", b"\xe6\xbc"):
        output.add(feed, 1, data)
    assert ["café \\xff\\x00", "\\xe6\\xbc"] == [line.text for line in finished(output).lines]


def test_what_comes_after_all_was_taken_is_left_over() -> None:
    """A thread that was about to write when its phase was taken loses nothing: its line can be had afterwards."""
    output = written(1_024, "a\n")
    assert ["a"] == [line.text for line in finished(output).lines]
    assert [] == output.leftovers()
    output.add(output.feed(1, "stdout"), 9, "late\n")
    assert [(9, "stdout", "late")] == [(entry.when_ns, entry.stream, entry.text) for entry in output.leftovers()]
    assert [] == output.leftovers()


def test_a_writer_never_waits_for_a_reader() -> None:
    """While another thread holds the output, or in a signal handler that interrupted it, writing goes on."""
    output = PhaseOutput(None, 1_024)
    feed = output.feed(1, "stdout")
    done = threading.Event()
    with output._lock:

        def write() -> None:
            output.add(feed, 1, "x" * (2 * ROOM))
            for _ in range(300):
                output.add_lines(2, "log", 20, "log")
            output.settle()
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        assert done.wait(10)
    thread.join()
    assert "log" == finished(output).lines[-1].stream


def test_no_secret_is_cut_in_two() -> None:
    """What is too long to be kept is redacted before it is cut: the end of a secret does not say that it is one."""
    redact = Redactor().text
    for size in range(480, 520, 3):
        output = PhaseOutput(None, 1_024, redact)
        output.add(output.feed(1, "stdout"), 0, f"begin {'-' * size} password: hunter2-hunter2 {'.' * size} end\n")
        text = output.taken().finished(int, redact).text
        assert "unter2" not in text
        output = PhaseOutput(None, 1_024, redact)
        huge = f"{'-' * 20_000} password: hunter2-hunter2 {'.' * (1_500 + size)}"
        output.add(output.feed(1, "stdout"), 0, huge)
        output.add_lines(1, "log", 20, huge)
        text = output.taken().finished(int, redact).text
        assert "unter2" not in text
