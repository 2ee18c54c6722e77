"""The process between the descriptors 1 and 2 and the terminal: a script of its own, on the standard library only.

A process and not a thread: a C library that writes much while it holds the GIL would otherwise wait for ever for a
reader that waits for the GIL; and what a killed process had written still reaches its terminal. It passes everything on
at once, in the order of each pipe, and tells the captured process what came from elsewhere than its Python streams.

Into each pipe the captured process puts frames between what others write: a random word that nobody else knows, then a
header. A frame is written in one piece of at most `PIPE_BUF` bytes, so nobody's text can tear it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import signal
import struct
import sys
import time
from collections import deque

WORD_BYTES = 16
HEADER = struct.Struct("<BBQQI")
"""kind, stream (0 or 1), when in monotonic ns, number, bytes that follow."""
FRAME_BYTES = WORD_BYTES + HEADER.size
LONGEST_FRAME = min(4_096, select.PIPE_BUF) if hasattr(select, "PIPE_BUF") else 512

# To the tee
TEXT = 1  # what a Python stream writes: shown, and known already
OWNER = 2  # what follows belongs to owner `number`
SYNC = 3  # say so when everything before this was shown and told
END = 4  # likewise, and tell nothing more
# From the tee
RAW = 5  # what others wrote, of owner `number`
LOST = 6  # so many bytes (`number`) could not be told, since nobody took them

# Words of the shared page
IS_IDLE = 0
TOLD = 1
OWNER_NOW = 2
IS_SECOND_BUSY = 3  # something was taken from the second pipe and is not shown yet
IS_GONE = 4  # and 5: whether nobody takes what is shown on this stream
FRAMES_PUT = 6  # by the captured process, and
FRAMES_SEEN = 7  # by the tee: what is under way between the two is known
SHOWN_BYTES = 8  # how much was shown so far: what is slow is no dead end
PAGE_BYTES = 4_096

READ_BYTES = 65_536
LONGEST_WRITE = 16_384  # so that who waits sees a slow terminal take it
MOST_READS = 64  # of one pipe before the other one, and before what was read is told
PIPE_BYTES = 262_144  # as the captured process asks for: it goes on while this one waits for a core or its terminal
PIPES_UNSETTLED = 2  # of a pipe, more than it holds before the frame that says when that was written
MAX_UNTOLD_BYTES = 8_388_608


class Message:
    """Something that the captured process is to be told."""

    __slots__ = ("data", "kind", "number", "stream", "when_ns")

    def __init__(self, kind: int, stream: int, when_ns: int, number: int, data: bytes) -> None:
        """Keep its parts, since the time may yet change."""
        self.kind = kind
        self.stream = stream
        self.when_ns = when_ns
        self.number = number
        self.data = data

    def packed(self) -> bytes:
        """Return it as it is sent."""
        return HEADER.pack(self.kind, self.stream, self.when_ns, self.number, len(self.data)) + self.data


class Source:
    """One pipe: a descriptor, where its text is shown, and what stands in it."""

    def __init__(self, stream: int, pipe: int, terminal: int) -> None:
        """Start at its begin."""
        self.stream = stream
        self.pipe = pipe
        self.terminal = terminal
        self.owner = 0
        self.rest = b""
        self.text_left = 0
        self.text_terminal = terminal
        self.has_ended = False
        self.unsettled_bytes = PIPES_UNSETTLED * _size_of(pipe)
        # What was told since the last frame: it was written before the next one, however late it is read.
        self.since_frame: list[Message] = []


class Tee:
    """Passes two pipes on until nobody can write to them any more."""

    def __init__(self, word: bytes, pipes: list[int], terminals: list[int], told: int, page: memoryview) -> None:
        """Pass nothing on yet."""
        self.word = word
        self.sources = [Source(stream, pipes[stream], terminals[stream]) for stream in (0, 1)]
        self.terminals = terminals
        self.is_one_place = is_one_place(terminals)
        self.told: int | None = told
        self.page = page
        self.fresh: list[Message] = []
        self.untold: deque[bytes] = deque()
        self.untold_bytes = 0
        self.lost_bytes = 0
        for descriptor in (*pipes, told):
            os.set_blocking(descriptor, False)

    def run(self) -> None:
        """Work until both pipes are closed at their other ends, and all is told."""
        page = self.page
        poll = select.poll()
        for source in self.sources:
            poll.register(source.pipe, select.POLLIN)
        has_room_asked = False
        while any(not source.has_ended for source in self.sources) or (self.untold and self.told is not None):
            if bool(self.untold) != has_room_asked and self.told is not None:
                has_room_asked = not has_room_asked
                if has_room_asked:
                    poll.register(self.told, select.POLLOUT)
                else:
                    poll.unregister(self.told)
            page[IS_IDLE] = not (self.untold or self.fresh)
            ready = {descriptor for descriptor, _ in poll.poll()}
            page[IS_IDLE] = 0
            owner = page[OWNER_NOW]
            for source in self.sources:
                # A frame may have said a later one.
                source.owner = max(source.owner, owner)
            # The first one to its end: the Python streams' text stands there, and what is in the second is later.
            for source in self.sources:
                # Who writes to the first pipe waits while this one is busy: so only where there is something.
                page[IS_SECOND_BUSY] = is_second = source.stream == 1 and source.pipe in ready
                for _ in range(MOST_READS if source.stream == 0 or is_second else 0):
                    if source.has_ended or not self.read(source):
                        source.since_frame.clear()
                        break
                source.since_frame = _last(source.since_frame, source.unsettled_bytes)
                if source.has_ended:
                    with contextlib.suppress(KeyError):
                        poll.unregister(source.pipe)
            page[IS_SECOND_BUSY] = 0
            self.settle()
            self.tell_rest()

    def settle(self) -> None:
        """Send what nothing can change any more: but for the last text of a pipe that is not empty yet."""
        unsettled = {id(message) for source in self.sources for message in source.since_frame}
        count = next((index for index, message in enumerate(self.fresh) if id(message) in unsettled), len(self.fresh))
        self.untold.extend(message.packed() for message in self.fresh[:count])
        del self.fresh[:count]

    def read(self, source: Source) -> bool:
        """Take one piece out of a pipe; whether there may be more."""
        try:
            data = os.read(source.pipe, READ_BYTES)
        except BlockingIOError:
            return False
        except InterruptedError:
            return True
        when_ns = time.monotonic_ns()
        if not data:
            source.has_ended = True
            self.raw(source, source.rest, when_ns)
            source.rest = b""
            return False
        if source.stream == 1 and self.is_one_place:
            # What stands in the first pipe by now was written before.
            self.read_rest_of_first()
        self.take(source, source.rest + data, when_ns)
        # Until there is nothing: a frame that was written before the time was read must be seen before that is told.
        return True

    def read_rest_of_first(self) -> None:
        """Show what is in the first pipe."""
        first = self.sources[0]
        for _ in range(MOST_READS):
            if first.has_ended or not self.read(first):
                return

    def take(self, source: Source, data: bytes, when_ns: int) -> None:
        """Part what was read into frames and what is between them."""
        word = self.word
        position = 0
        size = len(data)
        while position < size:
            if source.text_left:
                end = min(size, position + source.text_left)
                source.text_left -= end - position
                self.show(source.text_terminal, data[position:end])
                position = end
                continue
            start = data.find(word, position)
            if start < 0:
                start = size - _length_of_begin(word, data[position:])
                self.raw(source, data[position:start], when_ns)
                position = start
                break
            if size - start < FRAME_BYTES:
                self.raw(source, data[position:start], when_ns)
                position = start
                break
            kind, stream, said_ns, number, length = HEADER.unpack_from(data, start + WORD_BYTES)
            self.raw(source, data[position:start], when_ns)
            for message in source.since_frame:
                message.when_ns = min(message.when_ns, said_ns)
            source.since_frame.clear()
            self.page[FRAMES_SEEN] += 1
            position = start + FRAME_BYTES
            if kind == TEXT:
                source.text_left = length
                source.text_terminal = self.terminals[stream]
            elif kind == OWNER:
                source.owner = max(source.owner, number)
            else:
                self.tell(kind, source.stream, when_ns, number, b"")
        source.rest = data[position:]

    def raw(self, source: Source, data: bytes, when_ns: int) -> None:
        """Show what others wrote, and tell of it."""
        if data:
            self.show(source.terminal, data)
            message = self.tell(RAW, source.stream, when_ns, source.owner, data)
            if message is not None:
                source.since_frame.append(message)

    def show(self, terminal: int, data: bytes) -> None:
        """Write to the terminal, all of it, however slow that is; a terminal that is gone shows nothing."""
        left = memoryview(data)
        while left:
            try:
                written = os.write(terminal, left[:LONGEST_WRITE])
                self.page[SHOWN_BYTES] += written
                left = left[written:]
            except BlockingIOError:
                _wait_for(terminal, select.POLLOUT)
            except InterruptedError:
                continue
            except OSError:
                self.page[IS_GONE + self.terminals.index(terminal)] = 1
                return

    def tell(self, kind: int, stream: int, when_ns: int, number: int, data: bytes) -> Message | None:
        """Put a message behind those that the captured process has not taken yet; never waits for it."""
        if self.told is None:
            return None
        if kind == RAW and self.untold_bytes + len(data) > MAX_UNTOLD_BYTES:
            self.lost_bytes += len(data)
            return None
        self.page[TOLD] += 1
        message = Message(kind, stream, when_ns, number, data)
        self.fresh.append(message)
        self.untold_bytes += HEADER.size + len(data)
        return message

    def tell_rest(self) -> None:
        """Hand over as much as is taken now."""
        while self.untold and self.told is not None:
            message = self.untold[0]
            try:
                written = os.write(self.told, message)
            except BlockingIOError:
                return
            except InterruptedError:
                continue
            except OSError:
                # It is gone, or wants to know no more; the terminal still has its readers.
                os.close(self.told)
                self.told = None
                self.untold.clear()
                return
            self.untold_bytes -= written
            if written < len(message):
                self.untold[0] = message[written:]
                continue
            self.untold.popleft()
            if not self.untold and self.lost_bytes:
                lost, self.lost_bytes = self.lost_bytes, 0
                self.page[TOLD] += 1
                self.untold.append(Message(LOST, 0, 0, lost, b"").packed())
                self.untold_bytes += HEADER.size


def _length_of_begin(word: bytes, data: bytes) -> int:
    """Return how many bytes at the end of `data` may be the begin of a word that was cut in two by the read."""
    for length in range(min(len(word) - 1, len(data)), 0, -1):
        if data.endswith(word[:length]):
            return length
    return 0


def _last(messages: list[Message], size_bytes: int) -> list[Message]:
    """Return the last of the messages, as many as have `size_bytes` together."""
    left = size_bytes
    for start in range(len(messages), 0, -1):
        left -= len(messages[start - 1].data)
        if left < 0:
            return messages[start:]
    return messages


def _size_of(pipe: int) -> int:
    """Return how many bytes a pipe holds; where the system does not say, as many as it may have been made to hold."""
    try:
        return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
    except (AttributeError, OSError):
        return PIPE_BYTES


def is_one_place(terminals: list[int]) -> bool:
    """Whether both streams are shown in one place, so that their order shows, too."""
    places = [os.fstat(terminal) for terminal in terminals]
    return len({(place.st_dev, place.st_ino) for place in places}) == 1


def _wait_for(descriptor: int, event: int) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    poll.poll()


def main(arguments: list[str]) -> None:
    """Run with a word in hex and the descriptors: two pipes, two terminals, where to tell, and the shared page."""
    # They are for the captured process, which then ends in its own time; this one ends after it.
    for number in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGTSTP"):
        signal.signal(getattr(signal, number), signal.SIG_IGN)
    word = bytes.fromhex(arguments[0])
    descriptors = [int(argument) for argument in arguments[1:]]
    page = memoryview(mmap.mmap(descriptors[5], PAGE_BYTES)).cast("Q")
    Tee(word, descriptors[0:2], descriptors[2:4], descriptors[4], page).run()


if __name__ == "__main__":
    main(sys.argv[1:])
