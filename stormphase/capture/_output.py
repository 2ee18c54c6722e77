"""What is kept of one phase's output, from its first line until it is taken: bounded, and what was cut is counted.

A writing thread only appends to lists of its own, which is one C call; they become lines when they are taken, or when
they grow too long. So threads of one phase never tear each other's lines, and a print costs little.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from stormphase._redaction import REACH
from stormphase.capture._feeds import NEWLINE, Feed, cut_at_space, size_of
from stormphase.capture._lines import CUT, CapturedLine, CapturedOutput
from stormphase.capture._private_keys import PrivateKeys
from stormphase.capture._text import safe

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormphase._phase import PhaseHandle

_MANY_ENTRIES: Final = 256
_OVERHEAD_BYTES: Final = 64


class Entry(NamedTuple):
    """One line before anyone sees it: on the monotonic clock, and not yet redacted."""

    when_ns: int
    stream: str
    level: int
    text: str
    size: int


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
        "_is_head_over",
        "_is_settled",
        "_lock",
        "_redact",
        "_settled_size",
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
        self._is_head_over = False  # Something was left out behind what is kept of the begin.
        self._is_settled = False
        self._settled_size = 0
        self._lock = threading.Lock()

    def feed(self, thread_id: int, stream: str, *, is_binary: bool = False) -> Feed:
        """Return the lists into which a thread puts what it writes to a stream, or to the buffer beneath it."""
        key = (thread_id, stream, is_binary)
        feed = self._feeds.get(key)
        if feed is None:
            # Twice as much as is kept in the end, since what is drawn over is not known yet.
            feed = Feed(stream, self._redact, 2 * self._half, is_binary=is_binary)
        # One C call: a thread and a signal handler in it get the same.
        return self._feeds.setdefault(key, feed)

    def add(self, feed: Feed, when_ns: int, piece: str | bytes) -> None:
        """Take one piece on the slow way: not the one of a thread that has just written here."""
        if feed.add(when_ns, piece):
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
        """Bound what a phase that has ended still holds, once."""
        if not self._is_settled and self._lock.acquire(blocking=False):
            try:
                for feed in tuple(self._feeds.values()):
                    self._keep_all(feed, feed.shrink())
                self._is_settled = True
                self._settled_size = self._measured()
            finally:
                self._lock.release()

    @property
    def size(self) -> int:
        """About how many bytes it holds; of a phase that has ended, how many it held when it was settled."""
        return self._settled_size if self._is_settled else self._measured()

    def _measured(self) -> int:
        feeds = tuple(self._feeds.values())
        pieces = sum(len(feed.pieces) for feed in feeds)
        held = sum(feed.size for feed in feeds) if self._is_settled else 0
        return (
            self._head_bytes + self._tail_bytes + held + _OVERHEAD_BYTES * (pieces + len(self._head) + len(self._tail))
        )

    def make_room(self, feed: Feed | None) -> None:
        """Leave out of a feed what would be cut anyway, or make lines of what was logged; never waits."""
        # Who holds the lock empties it just now, or is what this signal handler interrupted.
        if self._lock.acquire(blocking=False):
            try:
                if feed is not None:
                    self._keep_all(feed, feed.make_room())
                elif self._tail:
                    self._drain_entries()
                else:
                    # What was printed before stands before: it has its share of the begin.
                    self._drain_all(ends=False)
            finally:
                self._lock.release()

    def _drain_all(self, *, ends: bool) -> None:
        """Make lines of all that is there, and keep them in the order of their times."""
        found = [(entry.when_ns, False, entry) for entry in self._drained_entries()]
        for feed in tuple(self._feeds.values()):
            before, lines = feed.drained(ends=ends)
            found += [(when_ns, False, _entry(when_ns, feed.stream, 0, text)) for when_ns, text in before]
            was_cut = feed.was_cut
            found += [(when_ns, was_cut, _entry(when_ns, feed.stream, 0, text)) for when_ns, text in lines]
            self._account_for(feed)
        found.sort(key=_when_said)
        for _, was_cut, entry in found:
            self._is_head_over |= was_cut
            self._keep(entry)

    def _account_for(self, feed: Feed) -> None:
        self._cut_lines += feed.cut_lines
        self._cut_bytes += feed.cut_bytes
        feed.cut_lines = feed.cut_bytes = 0

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
            self._cut_bytes += entry.size - size_of(text) - 1
            entry = _entry(entry.when_ns, entry.stream, entry.level, text)
        if not self._tail and not self._is_head_over and self._head_bytes + entry.size <= self._half:
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
        head, tail = cut_at_space(begin[: 2 * half]), cut_at_space(end[-2 * half :][::-1])[::-1]
        gone = text[len(head) : len(text) - len(tail)]
        self._cut_lines += gone.count(NEWLINE)
        self._cut_bytes += size_of(gone)
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


def _when_said(found: tuple[int, bool, Entry]) -> tuple[int, bool]:
    return found[:2]


def _entry(when_ns: int, stream: str, level: int, text: str) -> Entry:
    return Entry(when_ns, stream, level, text, size_of(text) + 1)


def _begin_of(text: str, size: int) -> str:
    return cut_at_space(text.encode()[:size].decode("utf-8", "ignore"))


def _end_of(text: str, size: int) -> str:
    return cut_at_space(text.encode()[-size:].decode("utf-8", "ignore")[::-1])[::-1]
