"""Lines as a person would have seen them: what was written is run through as much of a terminal as progress bars need.

A carriage return goes back to the line's begin, a backspace one column, and what follows overwrites what stood there;
"cursor up" goes back to a line above. Colours and titles are dropped. Whatever else a terminal, a database or a
browser could choke on is escaped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_LINE: Final = 8_192
"""A line with more characters is kept as several."""
REWRITABLE_ROWS: Final = 16
"""How many of the last lines "cursor up" can go back to: what nested progress bars need."""

_LOOK_CHARS: Final = 2_048  # on both sides of where a long line is parted: a secret there must not be cut in two
_MOST_PLACES: Final = 16
_PLACE: Final = re.compile(r"[\s,;&]")
_MOST_DIGITS: Final = 6  # int() refuses some thousand.
# What may stand in a line as it is: no control character but the tab, and no half of a surrogate pair.
_ODD: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_CONTROL: Final = re.compile(
    r"""
    (?P<csi>\x1b\[(?P<count>\d*)[0-9;:<=>?]*[ -/]*(?P<final>[@-~]))   # colours, cursor moves, erasing
  | \x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?                          # titles and links
  | \x1b[ -/]*[0-~]                                                  # other short sequences
  | (?P<move>[\r\b])
    """,
    re.VERBOSE,
)
_ROW_MOVE: Final = re.compile(r"(\n|\x1b\[\d*[ABF])")
_UP_OR_DOWN: Final = re.compile(r"\x1b\[\d*[ABF]")
_SHORT_ROW: Final = 512
_COLOUR: Final = re.compile(r"\x1b\[[0-9;:]*m")
_CLEARED: Final = ("\r\x1b[K", "\r\x1b[2K", "\x1b[2K\r")


def safe(text: str, redact: Callable[[str], str] = str) -> str:
    """Return one line as the terminal showed it in the end, without anything that is not text.

    What it drew over is redacted before: of a secret a part may still show, and not that it is one.
    """
    if _ODD.search(text) is None:
        return text
    text = text.removesuffix("\r")
    if _CONTROL.search(text) is not None:
        text = _shown(redact(text))
    return _ODD.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"  # noqa: PLR2004 - one byte


def moves_rows(text: str) -> bool:
    """Whether the text goes up to lines above, as nested progress bars do."""
    return "\x1b[" in text and _UP_OR_DOWN.search(text) is not None


def folded(row: str, redact: Callable[[str], str]) -> str:
    """Return a row that looks the same, also with what is yet to be written to it, without what was drawn over."""
    if len(row) < _SHORT_ROW:
        return row
    if "\x1b" in row:
        row = _COLOUR.sub("", row)
        row = row[max(0, *(row.rfind(cleared) for cleared in _CLEARED)) :]
    if "\r" not in row or ("\x1b" in row[1:] and not row.startswith(_CLEARED)) or "\b" in row:
        return row
    begin = next((cleared for cleared in _CLEARED if row.startswith(cleared)), "\r")
    states = row.removeprefix(begin).split("\r")
    if any("\x1b" in state for state in states):
        return row
    shown = _overlaid(states, redact)
    # The next text goes on where the last one ended.
    return f"{begin}{shown}" + (f"\r{states[-1]}" if len(states[-1]) < len(shown) else "")


def _overlaid(states: list[str], redact: Callable[[str], str] = str) -> str:
    """Return what is seen of texts that were drawn one over the other; what shows is redacted as it was drawn."""
    shown = ""
    for state in reversed(states):
        if len(state) > len(shown):
            shown += redact(state)[len(shown) :]
    return shown


def _shown(text: str) -> str:
    text = _COLOUR.sub("", text)
    if "\x1b" not in text and "\b" not in text:
        return _overlaid(text.split("\r")).rstrip(" ") if "\r" in text else text
    cells: list[str] = []
    column = 0
    position = 0
    was_moved = False
    for control in _CONTROL.finditer(text):
        column = _put(cells, column, text[position : control.start()])
        position = control.end()
        if control["move"]:
            was_moved = True
            column = 0 if control["move"] == "\r" else max(0, column - 1)
        elif control["csi"]:
            column = _obey(cells, column, control["final"], control["count"])
    _put(cells, column, text[position:])
    line = "".join(cells)
    return line.rstrip(" ") if was_moved else line  # A bar wipes the rest of a longer one with spaces.


def _put(cells: list[str], column: int, text: str) -> int:
    if text:
        cells.extend(" " * (column - len(cells)))
        cells[column : column + len(text)] = text
    return column + len(text)


def _obey(cells: list[str], column: int, final: str, count: str) -> int:
    """Do what a control sequence says about this line, and return the column."""
    number = min(int(count[:_MOST_DIGITS] or 0), LONGEST_LINE)
    if final == "K":
        if number == 0:
            del cells[column:]
        else:
            cells[:column] = " " * min(column, len(cells))
            if number == 2:  # noqa: PLR2004 - erase all of the line
                del cells[column:]
    elif final == "C":
        column += max(1, number)
    elif final == "D":
        column = max(0, column - max(1, number))
    elif final == "G":
        column = max(1, number) - 1
    return min(column, LONGEST_LINE)


def parted(text: str, at: int, redact: Callable[[str], str]) -> tuple[str, str]:
    """Return a text in two parts, the first of about `at` characters, so that no secret is cut in two.

    Where there is no such place near, they are the parts of the redacted text.
    """
    start = max(0, at - _LOOK_CHARS)
    near = text[start : at + _LOOK_CHARS]
    whole = redact(near)
    if whole == near:
        return text[:at], text[at:]
    places = [*(found.end() for found in _PLACE.finditer(near, 0, at - start)), at - start]
    for place in places[: -_MOST_PLACES - 1 : -1]:
        if redact(near[:place]) + redact(near[place:]) == whole:
            return text[: start + place], text[start + place :]
    text = redact(text)
    return text[:at], text[at:]


class LineBuilder:
    """Puts the pieces that one thread writes to one stream together to lines. Not thread-safe: its owner locks.

    Args:
        redact: returns a text without its secrets; a long line is parted where that cuts none in two.
    """

    __slots__ = ("_last_ns", "_redact", "_row", "_rows")

    def __init__(self, redact: Callable[[str], str] = str) -> None:
        """Start with an empty row."""
        self._redact = redact
        self._rows: list[tuple[int, str]] = []
        self._row = 0
        self._last_ns = 0

    @property
    def is_open(self) -> bool:
        """Whether the last line has no newline yet."""
        return self._row < len(self._rows)

    def add(self, when_ns: int, text: str) -> list[tuple[int, str]]:
        """Take one piece and return the lines that are complete, each with the time it began."""
        if "\x1b" not in text:
            pieces = text.split("\n")
            self._write(when_ns, pieces[0])
            for piece in pieces[1:]:
                self._go(when_ns, 1)
                self._write(when_ns, piece)
        else:
            for piece in _ROW_MOVE.split(text):
                if piece == "\n":
                    self._go(when_ns, 1)
                elif _ROW_MOVE.fullmatch(piece):
                    count = max(1, int(piece[2:-1][:_MOST_DIGITS] or 1))
                    self._go(when_ns, count if piece[-1] == "B" else -count)
                else:
                    self._write(when_ns, piece)
        return self._ready()

    def add_all(self, pieces: list[str], stamps: list[int]) -> list[tuple[int, str]]:
        """Take many pieces, with a time for each that is not a lone newline; return the lines that are complete."""
        text = "".join(pieces)
        lines = text.split("\n")
        is_plain = not ("\x1b" in text or "\r" in text or "\b" in text) and len(max(lines, key=len)) <= LONGEST_LINE
        if not is_plain or self._row < len(self._rows) - 1:
            return self._add_each(pieces, stamps)
        rows = self._rows
        goes_on = self._row < len(rows)
        times = line_times(pieces, stamps, goes_on=goes_on, last_ns=self._last_ns)
        self._last_ns = stamps[-1] if stamps else self._last_ns
        if goes_on:
            # It may have got long by now.
            self._write(stamps[0] if stamps else self._last_ns, lines.pop(0))
        rows += zip(times, lines, strict=False)  # What stands behind the last newline is no line.
        if text:
            self._row = len(rows) - (0 if text.endswith("\n") else 1)
        return self._ready()

    def _add_each(self, pieces: list[str], stamps: list[int]) -> list[tuple[int, str]]:
        times = iter(stamps)
        lines = []
        for piece in pieces:
            if piece != "\n":
                self._last_ns = next(times, self._last_ns)
            lines += self.add(self._last_ns, piece)
        return lines

    def end(self) -> list[tuple[int, str]]:
        """Return what is left, also a line without its newline, and start anew."""
        rows, self._rows, self._row = self._rows, [], 0
        return [(when_ns, safe(text, self._redact)) for when_ns, text in rows]

    def peek(self) -> list[tuple[int, str]]:
        """Return what is not complete yet, as it stands."""
        return [(when_ns, safe(text, self._redact)) for when_ns, text in self._rows]

    def _write(self, when_ns: int, text: str) -> None:
        if not text:
            return
        rows = self._rows
        if self._row == len(rows):
            rows.append((when_ns, ""))
        began_ns, before = rows[self._row]
        if not before:
            began_ns = when_ns
        whole = before + text
        if len(whole) > LONGEST_LINE:
            whole = self._bounded(began_ns, whole)
        rows[self._row] = (began_ns, whole)

    def _bounded(self, began_ns: int, text: str) -> str:
        """Fold a long row: a progress bar to what it shows, anything else into several rows."""
        if "\r" in text or "\b" in text:
            text = _shown(self._redact(text)) + "\r"
        while len(text) > LONGEST_LINE:
            begin, text = parted(text, LONGEST_LINE - _LOOK_CHARS, self._redact)
            self._rows.insert(self._row, (began_ns, begin))
            self._row += 1
        return text

    def _go(self, when_ns: int, count: int) -> None:
        rows = self._rows
        if self._row == len(rows):
            rows.append((when_ns, ""))
        row = self._row = max(0, min(self._row + count, len(rows)))
        if row < len(rows) and rows[row][1]:
            rows[row] = (rows[row][0], rows[row][1] + "\r")

    def _ready(self) -> list[tuple[int, str]]:
        count = min(len(self._rows) - REWRITABLE_ROWS, self._row)
        if count <= 0:
            return []
        ready = self._rows[:count]
        del self._rows[:count]
        self._row -= count
        return [(when_ns, safe(text, self._redact)) for when_ns, text in ready]


def line_times(pieces: list[str], stamps: list[int], *, goes_on: bool = False, last_ns: int = 0) -> list[int]:
    """Return when each line began that these pieces begin.

    Args:
        pieces: texts as they were written.
        stamps: when; one for each piece that is not a lone newline.
        goes_on: whether the first one goes on with a line that was begun before.
        last_ns: when the piece before was written.
    """
    times: list[int] = []
    stamp = iter(stamps)
    when_ns = last_ns
    is_open = goes_on
    for piece in pieces:
        if piece == "\n":
            if not is_open:
                times.append(when_ns)
            is_open = False
            continue
        when_ns = next(stamp, when_ns)
        if not piece:
            continue
        newlines = piece.count("\n")
        if not is_open:
            times.append(when_ns)
        is_open = not piece.endswith("\n")
        times += [when_ns] * (newlines if is_open else newlines - 1)
    return times
