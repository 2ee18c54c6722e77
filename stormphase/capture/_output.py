"""What is kept of one phase's output, from its first line until it is taken: bounded, and what was cut is counted.

A writing thread only appends to lists of its own, which is one C call; they become lines when they are taken, or when
they grow too long. So threads of one phase never tear each other's lines, and a print costs little.
"""

from __future__ import annotations

import bisect
import codecs
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stormphase._redaction import REACH
from stormphase.capture._lines import CUT, CapturedLine, CapturedOutput
from stormphase.capture._private_keys import PrivateKeys
from stormphase.capture._text import LineBuilder, safe

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormphase._phase import PhaseHandle

ROOM: Final = 131_072
"""How many characters a thread may put into one feed before it must make room; each piece counts for one more."""
NEWLINE: Final = "\n"
_MANY_ENTRIES: Final = 256
_FEW_PIECES: Final = 1_024
_FARTHEST_SPACE: Final = 4_096
_OVERHEAD_BYTES: Final = 64


class Entry(NamedTuple):
    """One line before anyone sees it: on the monotonic clock, and not yet redacted."""

    when_ns: int
    stream: str
    level: int
    text: str
    size: int


class Feed:
    """What one thread writes to one stream within one phase. Only that thread adds; whoever empties it locks."""

    __slots__ = ("builder", "decoder", "measured", "pieces", "size", "stamps", "stream")

    def __init__(self, stream: str, redact: Callable[[str], str] = str) -> None:
        """Start empty."""
        self.stream = stream
        self.pieces: list[str] = []
        # One for each piece that is not a lone newline. It is put there first, so there is never one missing.
        self.stamps: list[int] = []
        self.builder = LineBuilder(redact)
        self.decoder: codecs.IncrementalDecoder | None = None
        self.measured = 0
        self.size = 0

    def decoded(self, data: Any) -> str:
        """Return bytes as text; a character whose bytes come in two writes is put together."""
        if self.decoder is None:
            self.decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        return self.decoder.decode(bytes(data))

    def drained(self, *, ends: bool) -> list[tuple[int, str]]:
        """Take all pieces out and return the lines that they complete."""
        # What is appended meanwhile stays for the next time.
        pieces = self.pieces[:]
        del self.pieces[: len(pieces)]
        self.measured = self.size = 0
        # One was stamped whose text is yet to come, perhaps: stamps are counted, not taken by twos.
        count = len(pieces) - pieces.count(NEWLINE)
        stamps = self.stamps[:count]
        del self.stamps[:count]
        lines = self.builder.add_all(pieces, stamps)
        if ends:
            if self.decoder is not None:
                lines += self.builder.add_all([self.decoder.decode(b"", final=True)], stamps[-1:])
            lines += self.builder.end()
        return lines

    def is_full(self, added: int) -> bool:
        """Whether it holds more than it may, with so many characters added on the slow way.

        What was added on the fast way is looked at now and then: a thread whose writes take turns with other threads'
        gets to the bound of one way only after a while.
        """
        self.size += added + 1
        count = len(self.pieces)
        if count - self.measured >= _FEW_PIECES:
            self.size += sum(map(len, self.pieces[self.measured : count]))
            self.measured = count
        return self.size > ROOM


class PhaseOutput:
    """The output of one phase, or of what is outside of all. Thread- and signal-safe: no writer ever waits.

    Args:
        phase: whose output it is; None for what is outside of all phases.
        max_bytes: how much is kept, half of it from the begin and half from the end.
        redact: returns a text without its secrets; asked before anything is cut in two.
    """

    __slots__ = (
        "_cut_bytes",
        "_cut_lines",
        "_entries",
        "_feeds",
        "_half",
        "_head",
        "_head_bytes",
        "_lock",
        "_redact",
        "_tail",
        "_tail_bytes",
        "phase",
    )

    def __init__(self, phase: PhaseHandle | None, max_bytes: int, redact: Callable[[str], str] = str) -> None:
        """Start empty."""
        self.phase = phase
        self._redact = redact
        self._half = max_bytes // 2
        self._feeds: dict[tuple[int, str, bool], Feed] = {}
        self._entries: deque[tuple[int, str, int, str]] = deque()
        self._head: list[Entry] = []
        self._head_bytes = 0
        self._tail: list[Entry] = []  # by time
        self._tail_bytes = 0
        self._cut_lines = 0
        self._cut_bytes = 0
        self._lock = threading.Lock()

    def feed(self, thread_id: int, stream: str, *, is_binary: bool = False) -> Feed:
        """Return the lists into which a thread puts what it writes to a stream, or to the buffer beneath it."""
        key = (thread_id, stream, is_binary)
        feed = self._feeds.get(key)
        # One C call: a thread and a signal handler in it get the same.
        return feed if feed is not None else self._feeds.setdefault(key, Feed(stream, self._redact))

    def add(self, feed: Feed, when_ns: int, text: str) -> None:
        """Take one piece on the slow way: not the one of a thread that has just written here, or a long one."""
        text = self._bounded(text)
        feed.stamps.append(when_ns)
        if text == NEWLINE:
            feed.pieces.append("")  # A lone newline has no time of its own, and this may be an empty line.
        feed.pieces.append(text)
        if feed.is_full(len(text)):
            self.make_room(feed)

    def add_lines(self, when_ns: int, stream: str, level: int, text: str) -> None:
        """Take whole lines that are nobody's pieces: a log record, a warning."""
        text = self._bounded(text)
        self._entries.append((when_ns, stream, level, text))
        if len(self._entries) >= _MANY_ENTRIES or len(text) > self._half:
            self.make_room(None)

    def taken(self) -> CapturedLines:
        """Return all that is kept, for good; a line without its newline, too. What comes later: see `leftovers`."""
        with self._lock:
            self._drain_all(ends=True)
            return self._kept([*self._head, *self._tail])

    def seen(self) -> CapturedLines:
        """Return all that is kept so far, and go on; a line that has no newline yet is shown as it stands."""
        with self._lock:
            self._drain_all(ends=False)
            entries = [*self._head, *self._tail]
            for feed in tuple(self._feeds.values()):
                entries += [_entry(when_ns, feed.stream, 0, text) for when_ns, text in feed.builder.peek()]
            return self._kept(entries)

    def _kept(self, entries: list[Entry]) -> CapturedLines:
        kept = CapturedLines(entries, self._cut_lines, self._cut_bytes)
        if self._tail and self._cut_bytes:
            kept.cut_at_ns = when_ns = self._tail[0].when_ns
            kept.same_time_before_cut = sum(entry.when_ns == when_ns for entry in self._head)
        return kept

    def leftovers(self) -> list[Entry]:
        """Return what came after all was taken, from a thread that was about to write when the phase ended."""
        if not self._entries and not any(feed.pieces for feed in tuple(self._feeds.values())):
            return []
        with self._lock:
            self._head, self._tail = [], []
            self._head_bytes = self._tail_bytes = 0
            self._drain_all(ends=True)
            return [*self._head, *self._tail]

    def settle(self) -> None:
        """Bound what a phase that has ended still holds in pieces."""
        if self._lock.acquire(blocking=False):
            try:
                self._drain_entries()
                for feed in tuple(self._feeds.values()):
                    self._shrink(feed)
                    self._keep_all(feed, feed.drained(ends=False))
            finally:
                self._lock.release()

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        pieces = sum(len(feed.pieces) for feed in tuple(self._feeds.values()))
        return self._head_bytes + self._tail_bytes + _OVERHEAD_BYTES * (pieces + len(self._head) + len(self._tail))

    def make_room(self, feed: Feed | None) -> None:
        """Make lines of what a feed holds, or leave out what would be cut anyway; never waits."""
        # Who holds the lock empties it just now, or is what this signal handler interrupted.
        if self._lock.acquire(blocking=False):
            try:
                self._drain_entries()
                if feed is not None and not self._shrink(feed):
                    self._keep_all(feed, feed.drained(ends=False))
            finally:
                self._lock.release()

    def _shrink(self, feed: Feed) -> bool:
        """Leave out the older pieces of which the tail would keep nothing anyway; whether that was done."""
        pieces = feed.pieces
        count = len(pieces)
        if not self._tail:  # The head is not full yet.
            return False
        # By their mean length, so that nothing has to be done for each of them.
        keep = count * self._half // max(1, len("".join(pieces[:count])))
        if keep > count * 3 // 4:
            return False
        for cut in range(count - keep, max(0, count - keep - _FEW_PIECES), -1):
            if pieces[cut - 1].endswith(NEWLINE):
                break
        else:
            return False
        gone = pieces[:cut]
        del pieces[:cut]
        del feed.stamps[: cut - gone.count(NEWLINE)]
        feed.measured = feed.size = 0
        # A line whose begin was kept before ends in what is left out: it is one line, and that one is kept.
        goes_on = feed.builder.is_open
        self._keep_all(feed, feed.builder.end())
        text = "".join(gone)
        self._cut_lines += text.count(NEWLINE) - goes_on
        self._cut_bytes += _size(text)
        return True

    def _drain_all(self, *, ends: bool) -> None:
        """Make lines of all that is there, and keep them in the order of their times."""
        found = self._drained_entries()
        for feed in tuple(self._feeds.values()):
            found += [_entry(when_ns, feed.stream, 0, text) for when_ns, text in feed.drained(ends=ends)]
        found.sort(key=_when)
        for entry in found:
            self._keep(entry)

    def _drained_entries(self) -> list[Entry]:
        entries = self._entries
        found = []
        while entries:
            when_ns, stream, level, text = entries.popleft()
            found += [_entry(when_ns, stream, level, safe(line, self._redact)) for line in text.split(NEWLINE)]
        return found

    def _drain_entries(self) -> None:
        for entry in self._drained_entries():
            self._keep(entry)

    def _keep_all(self, feed: Feed, lines: list[tuple[int, str]]) -> None:
        for when_ns, text in lines:
            self._keep(_entry(when_ns, feed.stream, 0, text))

    def _keep(self, entry: Entry) -> None:
        if entry.size > self._half:
            # Of what is said first the begin, of what is said last the end.
            keeps_end = bool(self._head or self._tail)
            text = self._redact(entry.text)
            text = _end_of(text, self._half - 1) if keeps_end else _begin_of(text, self._half - 1)
            self._cut_bytes += entry.size - _size(text) - 1
            entry = _entry(entry.when_ns, entry.stream, entry.level, text)
        if not self._tail and self._head_bytes + entry.size <= self._half:
            self._head.append(entry)
            self._head_bytes += entry.size
            return
        if self._tail and entry.when_ns < self._tail[-1].when_ns:
            # Another thread's lines were looked at before: what is cut is what is oldest, whoever said it.
            bisect.insort_right(self._tail, entry, key=_when)
        else:
            self._tail.append(entry)
        self._tail_bytes += entry.size
        while self._tail_bytes > self._half:
            gone = self._tail.pop(0)
            self._tail_bytes -= gone.size
            self._cut_lines += 1
            self._cut_bytes += gone.size

    def _bounded(self, text: str) -> str:
        """Return a text whose middle is left out, if it is longer than all that may be kept."""
        half = self._half
        if len(text) <= 4 * half + 2 * REACH:
            return text
        # Redacted first: of "password: secret" the end may be all that is kept.
        begin, end = self._redact(text[: 2 * half + REACH]), self._redact(text[-2 * half - REACH :])
        head, tail = _cut_at_space(begin[: 2 * half]), _cut_at_space(end[-2 * half :][::-1])[::-1]
        gone = text[len(head) : len(text) - len(tail)]
        self._cut_lines += gone.count(NEWLINE)
        self._cut_bytes += _size(gone)
        return f"{head}{NEWLINE}{tail}"


class CapturedLines:
    """Lines of one phase on their way out: not yet in order, not yet redacted."""

    __slots__ = ("cut_at_ns", "cut_bytes", "cut_lines", "entries", "same_time_before_cut")

    def __init__(self, entries: list[Entry], cut_lines: int, cut_bytes: int) -> None:
        """Start with what was cut already."""
        self.entries = entries
        self.cut_lines = cut_lines
        self.cut_bytes = cut_bytes
        self.cut_at_ns: int | None = None
        self.same_time_before_cut = 0  # Lines of one huge write have one time.

    def bound_rate(self, allowed: Callable[[int, int], bool]) -> None:
        """Leave out the lines that `allowed(when_ns, bytes)` refuses, but for the last one."""
        kept = []
        last = len(self.entries) - 1
        for index, entry in enumerate(self.entries):
            if allowed(entry.when_ns, entry.size) or index == last:
                kept.append(entry)
                continue
            self.cut_lines += 1
            self.cut_bytes += entry.size
            if self.cut_at_ns is None:
                self.cut_at_ns = entry.when_ns
        self.entries = kept

    def sort(self) -> None:
        """Put the lines into the order of their times."""
        self.entries.sort(key=_when)

    def finished(self, to_wall_ns: Callable[[int], int], redacted: Callable[[str], str]) -> CapturedOutput:
        """Return what users get."""
        keys = PrivateKeys()
        lines = [
            CapturedLine(
                time_ns=to_wall_ns(entry.when_ns),
                stream=entry.stream,
                text=redacted(keys.redacted(entry.stream, entry.text)),
                level=entry.level,
            )
            for entry in self.entries
        ]
        if self.cut_bytes:
            at = self._place_of_cut()
            when_ns = lines[min(at, len(lines) - 1)].time_ns if lines else 0
            said = f"... {self.cut_bytes:,} bytes in {self.cut_lines:,} lines cut ..."
            lines.insert(at, CapturedLine(time_ns=when_ns, stream=CUT, text=said))
        return CapturedOutput(lines=tuple(lines), cut_lines=self.cut_lines, cut_bytes=self.cut_bytes)

    def _place_of_cut(self) -> int:
        if self.cut_at_ns is None:
            return len(self.entries)
        before = sum(entry.when_ns < self.cut_at_ns for entry in self.entries)
        return min(before + self.same_time_before_cut, len(self.entries))


def _when(entry: Entry) -> int:
    return entry.when_ns


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _entry(when_ns: int, stream: str, level: int, text: str) -> Entry:
    return Entry(when_ns, stream, level, text, _size(text) + 1)


def _begin_of(text: str, size: int) -> str:
    return _cut_at_space(text.encode()[:size].decode("utf-8", "ignore"))


def _end_of(text: str, size: int) -> str:
    return _cut_at_space(text.encode()[-size:].decode("utf-8", "ignore")[::-1])[::-1]


def _cut_at_space(text: str) -> str:
    """Return the text up to its last white space, so that no secret is cut in two and passes as half of one."""
    for end in range(len(text), max(0, len(text) - _FARTHEST_SPACE), -1):
        if text[end - 1].isspace():
            return text[:end]
    return text
