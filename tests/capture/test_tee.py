"""The process between the descriptors and the terminal parts frames from text, however the reads cut them."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase.capture import _tee

WORD = bytes(range(200, 216))


def frame(kind: int, *, stream: int = 0, when_ns: int = 5, number: int = 0, data: bytes = b"") -> bytes:
    """Return one frame as the captured process writes it."""
    return WORD + _tee.HEADER.pack(kind, stream, when_ns, number, len(data)) + data


class Listening(_tee.Tee):
    """Keeps what it would show and tell."""

    def __init__(self) -> None:
        self.word = WORD
        self.terminals = [10, 11]
        self.page = memoryview(bytearray(_tee.PAGE_BYTES)).cast("Q")
        self.sources = [_tee.Source(stream, stream, 10 + stream) for stream in (0, 1)]
        self.shown: list[tuple[int, bytes]] = []
        self.messages: list[_tee.Message] = []

    def show(self, terminal: int, data: bytes) -> None:
        """Keep what is shown."""
        self.shown.append((terminal, data))

    def tell(self, kind: int, stream: int, when_ns: int, number: int, data: bytes) -> _tee.Message:
        """Keep what is told."""
        message = _tee.Message(kind, stream, when_ns, number, data)
        self.messages.append(message)
        return message

    @property
    def told_of(self) -> list[tuple[int, int, int, int, bytes]]:
        """Return what was told."""
        return [(each.kind, each.stream, each.when_ns, each.number, each.data) for each in self.messages]

    def text(self, terminal: int) -> bytes:
        """Return all that a terminal was shown."""
        return b"".join(data for shown_at, data in self.shown if shown_at == terminal)


@given(st.data())
def test_frames_are_found_wherever_a_read_ends(data: st.DataObject) -> None:
    """Text of others is shown and told with its owner; text of Python's streams is shown; nothing else is seen."""
    pieces = data.draw(
        st.lists(
            st.tuples(st.sampled_from(["raw", "text", "owner", "sync"]), st.binary(max_size=20), st.integers(1, 99)),
            max_size=12,
        )
    )
    written, terminals, told, owner = b"", [b"", b""], [], 0
    for kind, body, number in pieces:
        if kind == "raw":
            written += body
            terminals[0] += body
            told += [(owner, byte) for byte in body]
        elif kind == "text":
            stream = number % 2
            written += frame(_tee.TEXT, stream=stream, data=body)
            terminals[stream] += body
        elif kind == "owner":
            owner = max(owner, number)
            written += frame(_tee.OWNER, number=number)
        else:
            written += frame(_tee.SYNC, number=number)
            told.append(("sync", number))
    tee = Listening()
    source = tee.sources[0]
    position = 0
    while position < len(written):
        end = position + data.draw(st.integers(1, 50))
        tee.take(source, source.rest + written[position:end], 9)
        position = end
    tee.raw(source, source.rest, 9)
    assert terminals == [tee.text(10), tee.text(11)]
    found = []
    for kind, _, _, number, body in tee.told_of:
        found += [("sync", number)] if kind == _tee.SYNC else [(number, byte) for byte in body]
    assert told == found


def test_what_stands_before_a_frame_is_not_later_than_it() -> None:
    """Text that is read late was written before the frame behind it, and so has at most its time."""
    tee = Listening()
    tee.take(tee.sources[0], b"before" + frame(_tee.OWNER, when_ns=3, number=1) + b"after", 9)
    assert [(_tee.RAW, 0, 3, 0, b"before"), (_tee.RAW, 0, 9, 1, b"after")] == tee.told_of


@pytest.fixture
def running():
    """Run a real tee in a thread, on pipes; return the ends that the captured process has."""
    pipes = [os.pipe() for _ in range(2)]
    terminals = [os.pipe() for _ in range(2)]
    told = os.pipe()
    page = memoryview(bytearray(_tee.PAGE_BYTES)).cast("Q")
    tee = _tee.Tee(WORD, [read for read, _ in pipes], [write for _, write in terminals], told[1], page)
    thread = threading.Thread(target=tee.run)
    thread.start()
    opened = {*[end for pair in (*pipes, *terminals, told) for end in pair]}

    def close(descriptor: int) -> None:
        opened.discard(descriptor)
        os.close(descriptor)

    ends = SimpleNamespace(tee=tee, thread=thread, back=told[0], close=close)
    ends.writes = [write for _, write in pipes]
    ends.screens = [read for read, _ in terminals]
    yield ends
    for write in ends.writes:
        if write in opened:
            close(write)
    thread.join(10)
    for descriptor in opened - ({told[1]} if tee.told is None else set()):
        os.close(descriptor)
    assert not thread.is_alive()


def messages(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Return what was told: kind, stream, number and text."""
    found = []
    while data:
        kind, stream, _, number, length = _tee.HEADER.unpack_from(data)
        start = _tee.HEADER.size
        found.append((kind, stream, number, data[start : start + length]))
        data = data[start + length :]
    return found


def test_everything_is_passed_on_and_told(running) -> None:
    """Both pipes reach their terminals, and the captured process hears of what it did not write itself."""
    os.write(running.writes[0], b"out" + frame(_tee.TEXT, stream=1, data=b"python") + frame(_tee.END, number=4))
    assert b"out" == os.read(running.screens[0], 100)
    assert b"python" == os.read(running.screens[1], 100)
    os.write(running.writes[1], b"err")
    assert b"err" == os.read(running.screens[1], 100)
    for write in running.writes:
        running.close(write)
    running.thread.join(10)
    expected = [(_tee.RAW, 0, 0, b"out"), (_tee.END, 0, 4, b""), (_tee.RAW, 1, 0, b"err")]
    assert expected == messages(os.read(running.back, 10_000))
    assert 3 == running.tee.page[_tee.TOLD]


def test_a_captured_process_that_does_not_listen_costs_the_terminal_nothing(running, monkeypatch) -> None:
    """What it does not take is kept up to a bound and then counted; the terminal has it all."""
    monkeypatch.setattr(_tee, "MAX_UNTOLD_BYTES", 200_000)
    size = 1_000_000
    seen = bytearray()

    def watch() -> None:
        while len(seen) < size:
            seen.extend(os.read(running.screens[0], 65_536))

    screen = threading.Thread(target=watch)
    screen.start()
    for _ in range(size // 10_000):
        os.write(running.writes[0], b"x" * 10_000)
    screen.join(10)
    assert size == len(seen)
    told = bytearray()

    ears = threading.Thread(target=_drain_until, args=(running, told, size + 4))
    ears.start()
    os.write(running.writes[0], b"more")
    ears.join(10)
    kinds = {kind for kind, *_ in messages(bytes(told))}
    assert {_tee.RAW, _tee.LOST} == kinds


def _drain_until(running, told: bytearray, size: int) -> None:
    """Read what is told until it accounts for `size` bytes."""
    while True:
        told.extend(os.read(running.back, 65_536))
        position = accounted = 0
        while len(told) - position >= _tee.HEADER.size:
            kind, _, _, number, length = _tee.HEADER.unpack_from(told, position)
            if len(told) - position - _tee.HEADER.size < length:
                break
            position += _tee.HEADER.size + length
            accounted += number if kind == _tee.LOST else length
        if accounted == size and position == len(told):
            return


def test_a_terminal_that_is_gone_stops_nothing(running) -> None:
    """What cannot be shown is told all the same."""
    running.close(running.screens[0])
    os.write(running.writes[0], b"unseen")
    assert [(_tee.RAW, 0, 0, b"unseen")] == messages(os.read(running.back, 100))


def test_a_captured_process_that_is_gone_stops_nothing(running) -> None:
    """Its children's text still reaches the terminal."""
    running.close(running.back)
    os.write(running.writes[0], b"one")
    assert b"one" == os.read(running.screens[0], 100)
    os.write(running.writes[0], b"two")
    assert b"two" == os.read(running.screens[0], 100)
