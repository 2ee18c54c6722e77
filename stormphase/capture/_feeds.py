"""What one thread writes to one stream within one phase, as it was written: lines are made of it when it is asked for.

Of much the begin and the end are kept, and states of a progress bar that others were drawn over are left out. That is
all that a thread which trains does for what it says; the rest is done by whoever takes the output.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any, Final

from stormphase import _native
from stormphase._redaction import REACH
from stormphase.capture._text import LineBuilder, folded, line_times, moves_rows

if TYPE_CHECKING:
    from collections.abc import Callable

ROOM: Final = 131_072
"""How many characters a thread may put into one feed before it must make room; each piece counts for one more."""
NEWLINE: Final = "\n"
_FEW_PIECES: Final = 1_024
_FARTHEST_SPACE: Final = 4_096

Lines = list[tuple[int, str]]


class Feed:
    """What one thread writes to one stream within one phase. Only that thread adds; whoever empties it locks.

    Args:
        stream: "stdout" or "stderr".
        redact: returns a text without its secrets; asked before anything is cut in two.
        keep: how many characters of the begin are kept, and as many of the end.
        is_binary: whether its pieces are bytes.

    Attributes:
        pieces: what was written.
        stamps: when, one for each piece that is not a lone newline; put there first, so that none is ever missing.
        cut_lines: how many lines were left out and are not accounted for yet.
        cut_bytes: how many bytes these had.
        was_cut: whether something was left out between its begin and what it holds.
    """

    __slots__ = (
        "_begin",
        "_context",
        "_ended",
        "_held",
        "_keep",
        "_measured",
        "_redact",
        "_since",
        "_size",
        "builder",
        "cut_bytes",
        "cut_lines",
        "decoder",
        "is_binary",
        "pieces",
        "stamps",
        "stream",
        "was_cut",
    )

    def __init__(
        self, stream: str, redact: Callable[[str], str] = str, keep: int = ROOM, *, is_binary: bool = False
    ) -> None:
        """Start empty."""
        self.stream = stream
        self.is_binary = is_binary
        self.pieces: list[Any] = []
        self.stamps: list[int] = []
        self.builder = LineBuilder(redact)
        self.decoder: codecs.IncrementalDecoder | None = None
        self.cut_lines = 0
        self.cut_bytes = 0
        self.was_cut = False
        self._redact = redact
        self._keep = keep
        self._begin: tuple[list[Any], list[int], bool] | None = None
        self._context: Any = b"" if is_binary else ""
        self._ended: Lines = []
        self._measured = 0
        self._size = 0
        self._since = 0
        self._held = 0

    def add(self, when_ns: int, piece: Any) -> bool:
        """Take one piece on the slow way; whether it holds more than it may.

        What was added on the fast way is looked at now and then: a thread whose writes take turns with other threads'
        gets to the bound of one way only after a while.
        """
        self.stamps.append(when_ns)
        if piece == NEWLINE:
            self.pieces.append("")  # A lone newline has no time of its own, and this may be an empty line.
        self.pieces.append(piece)
        self._size += len(piece) + 1
        count = len(self.pieces)
        if count - self._measured >= _FEW_PIECES:
            self._size += sum(map(len, self.pieces[self._measured : count]))
            self._measured = count
        return self._size > ROOM

    @property
    def size(self) -> int:
        """How many characters it holds, as they were written."""
        begin = 0 if self._begin is None else sum(map(len, self._begin[0]))
        return begin + sum(map(len, self.pieces[:])) + len(self._context)

    # What is left out of much

    def make_room(self) -> Lines:
        """Shrink, if there is much more than the last time; returns as `shrink` does."""
        # Where much is to be kept it is not looked at again for each little that is added.
        self._since += ROOM
        return [] if self._since < self._held else self.shrink()

    def shrink(self) -> Lines:
        """Leave out what would be cut or drawn over anyway; returns lines of what cannot be kept as it is."""
        pieces = self.pieces[:]
        stamps = self.stamps[: self._stamp_count(pieces)]
        text = self._context[:0].join(pieces)
        self._measured = self._size = 0
        count, stamp_count = len(pieces), len(stamps)
        if not self.is_binary and ("\r" in text or "\b" in text or "\x1b" in text):
            if moves_rows(text):
                return [line for lines in self._drained(pieces, stamps, ends=False) for line in lines]
            pieces, stamps = self._folded(pieces, stamps)
            text = "".join(pieces)
        if len(text) > 2 * (self._keep + REACH):
            pieces, stamps = self._cut(pieces, stamps, text)
        self.pieces[:count] = pieces
        self.stamps[:stamp_count] = stamps
        self._measured = len(pieces)
        self._since, self._held = 0, sum(map(len, pieces))
        return []

    def _stamp_count(self, pieces: list[Any]) -> int:
        return len(pieces) if self.is_binary else len(pieces) - pieces.count(NEWLINE)

    def _folded(self, pieces: list[str], stamps: list[int]) -> tuple[list[str], list[int]]:
        rows = "".join(pieces).split(NEWLINE)
        times = line_times(pieces, stamps)
        if len(times) < len(rows):
            rows.pop()  # Behind the last newline nothing was begun.
        found: list[str] = []
        last = len(rows) - 1
        ends = pieces[-1].endswith(NEWLINE)
        for index, row in enumerate(rows):
            piece = folded(row, self._redact) + (NEWLINE if index < last or ends else "")
            if piece == NEWLINE:
                found.append("")
            found.append(piece)
        return found, times

    def _cut(self, pieces: list[Any], stamps: list[int], text: Any) -> tuple[list[Any], list[int]]:
        """Leave out the middle, in whole lines where there are any near."""
        newline = b"\n" if self.is_binary else NEWLINE
        at = 0
        goes_on = self.builder.is_open
        if not self.was_cut:
            at = text.find(newline, self._keep - 1, self._keep + REACH) + 1
            is_whole = at > 0
            goes_on = not is_whole
            at = at or self._keep + REACH
            self._begin = (*self._until(pieces, stamps, at), is_whole)
        elif goes_on:
            self._ended += self.builder.end()
        start = max(at, len(text) - self._keep)
        found = text.find(newline, start - 1, start + REACH) + 1
        self._context = text[:0] if found else (self._context + text[at:start])[-REACH:]
        start = found or start
        lines = newlines_in(text, at, start)
        # A line whose begin is kept, and that ends in what is left out, is not left out.
        self.cut_lines += lines - (goes_on and lines > 0)
        # Nothing of it is copied: it may be megabytes.
        self.cut_bytes += start - at if self.is_binary or text.isascii() else size_of(text[at:start])
        self.was_cut = True
        return self._from(pieces, stamps, len(text) - start)

    def _until(self, pieces: list[Any], stamps: list[int], length: int) -> tuple[list[Any], list[int]]:
        """Return the first `length` characters of the pieces, and their times."""
        left = length
        index = 0
        while left > 0:
            left -= len(pieces[index])
            index += 1
        found = pieces[:index]
        times = stamps[: self._stamp_count(found)]
        if left < 0:
            found[-1] = found[-1][:left]
            if found[-1] == NEWLINE:
                found.insert(-1, "")
        return found, times

    def _from(self, pieces: list[Any], stamps: list[int], length: int) -> tuple[list[Any], list[int]]:
        """Return the last `length` characters of the pieces, and their times."""
        left = length
        index = len(pieces)
        while left > 0:
            index -= 1
            left -= len(pieces[index])
        found = pieces[index:]
        times = stamps[len(stamps) - self._stamp_count(found) :]
        if left < 0:
            found[0] = found[0][-left:]
            if found[0] == NEWLINE:
                found.insert(0, "")
        return found, times

    # What becomes of it

    def drained(self, *, ends: bool) -> tuple[Lines, Lines]:
        """Take all out and return the lines: those before what was left out, and those since."""
        early = self.shrink() if self._is_long() else []
        pieces = self.pieces[:]
        before, lines = self._drained(pieces, self.stamps[: self._stamp_count(pieces)], ends=ends)
        return before, early + lines

    def _is_long(self) -> bool:
        return sum(map(len, self.pieces[:])) > ROOM

    def _drained(self, pieces: list[Any], stamps: list[int], *, ends: bool) -> tuple[Lines, Lines]:
        # What is appended meanwhile stays for the next time.
        del self.pieces[: len(pieces)]
        # One was stamped whose text is yet to come, perhaps: stamps are counted, not taken by twos.
        del self.stamps[: len(stamps)]
        self._measured = self._size = 0
        before: Lines = []
        if self._begin is not None:
            (begin, begin_stamps, is_whole), self._begin = self._begin, None
            texts = self._texts(begin)
            if not is_whole:
                self._cut_end(texts)
            before = self.builder.add_all(texts, begin_stamps) + self.builder.end()
            self.decoder = None
        lines, self._ended = self._ended, []
        context, self._context = self._context, self._context[:0]
        before_texts = "".join(self._texts([context])) if context else ""
        texts = self._texts(pieces)
        if before_texts and texts:
            self._cut_begin(before_texts, texts)
        lines += self.builder.add_all(texts, stamps)
        if ends:
            if self.decoder is not None:
                lines += self.builder.add_all([self.decoder.decode(b"", final=True)], stamps[-1:])
            lines += self.builder.end()
        return before, lines

    def _texts(self, pieces: list[Any]) -> list[str]:
        if not self.is_binary:
            return pieces
        if self.decoder is None:
            # A character whose bytes come in two writes is put together.
            self.decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        texts: list[str] = []
        for piece in pieces:
            text = self.decoder.decode(piece)
            if text == NEWLINE:
                texts.append("")
            texts.append(text)
        return texts

    def _cut_end(self, texts: list[str]) -> None:
        """Cut the last line so that no secret is cut in two: of what was kept for that the last part goes."""
        index = len(texts) - 1
        while index > 0 and NEWLINE not in texts[index]:
            index -= 1
        lines, newline, last = "".join(texts[index:]).rpartition(NEWLINE)
        redacted = self._redact(last)
        kept = redacted[: max(0, len(redacted) - REACH)]
        kept = kept if redacted == last else cut_at_space(kept)
        self.cut_bytes += max(0, size_of(last) - size_of(kept))
        if lines + newline + kept == NEWLINE:
            texts[index:] = ["", NEWLINE]
        else:
            texts[index:] = [lines + newline + kept]

    def _cut_begin(self, context: str, texts: list[str]) -> None:
        """Cut the first line where no secret is cut in two, looking at what stood before it."""
        index = 0
        while index < len(texts) - 1 and NEWLINE not in texts[index]:
            index += 1
        first, newline, lines = "".join(texts[: index + 1]).partition(NEWLINE)
        redacted = self._redact(context + first)
        if redacted == context + first:
            return
        kept = cut_at_space(redacted[-len(first) :][::-1])[::-1] if first else ""
        self.cut_bytes += max(0, size_of(first) - size_of(kept))
        # Times are one for each piece: that stays so.
        texts[0] = kept + newline + lines
        texts[1 : index + 1] = [""] * (sum(text != NEWLINE for text in texts[: index + 1]) - 1)
        if texts[0] == NEWLINE:
            texts[0:1] = ["", NEWLINE]


def newlines_in(text: Any, start: int, end: int) -> int:
    """Return how many newlines stand between two places of a text or of bytes."""
    if _native.speedups is not None:
        return int(_native.speedups.count_newlines(text, start, end))
    return int(text.count(b"\n" if isinstance(text, bytes) else NEWLINE, start, end))


def size_of(text: str) -> int:
    """Return how many bytes of UTF-8 a text has."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def cut_at_space(text: str) -> str:
    """Return the text up to its last white space, so that no secret is cut in two and passes as half of one."""
    for end in range(len(text), max(0, len(text) - _FARTHEST_SPACE), -1):
        if text[end - 1].isspace():
            return text[:end]
    return text
