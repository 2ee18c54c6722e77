"""The vocabulary of captured output: one line, and all that is kept of one phase."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

STDOUT: Final = "stdout"
STDERR: Final = "stderr"
LOG: Final = "log"
WARNING: Final = "warning"
TRACEBACK: Final = "traceback"
CUT: Final = "cut"
STREAMS: Final = (STDOUT, STDERR, LOG, WARNING, TRACEBACK, CUT)


@attrs.frozen
class CapturedLine:
    r"""One line that was said while a phase was open.

    Attributes:
        time_ns: when it began, in nanoseconds since the Unix epoch; from the session's clock, so never before the
            phase's enter.
        stream: "stdout", "stderr", "log", "warning", "traceback", or "cut" for the line that says what was left out.
        text: without its newline; escape sequences are gone, other control characters and bytes that are no UTF-8 are
            written as `\x1f`.
        level: of a log record its number, as `logging` has it; else 0.
    """

    time_ns: int
    stream: str
    text: str
    level: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what records show of it: `time_ns`, `stream` and `text`."""
        return {"time_ns": self.time_ns, "stream": self.stream, "text": self.text}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CapturedLine:
        """Read back what `to_dict` wrote.

        Raises:
            KeyError: if one of the three is missing.
        """
        return cls(time_ns=int(values["time_ns"]), stream=str(values["stream"]), text=str(values["text"]))


@attrs.frozen
class CapturedOutput:
    """What is kept of one phase's output.

    Attributes:
        lines: in the order of their times. Where lines were cut, one of stream "cut" stands in their place and says how
            many.
        cut_lines: how many lines were left out.
        cut_bytes: how many bytes of UTF-8 they had.
    """

    lines: tuple[CapturedLine, ...] = ()
    cut_lines: int = 0
    cut_bytes: int = 0

    def to_list(self) -> list[dict[str, Any]]:
        """Return the `output` of a record."""
        return [line.to_dict() for line in self.lines]

    @property
    def text(self) -> str:
        """All lines of all streams as one text, each with its newline."""
        return "".join(f"{line.text}\n" for line in self.lines)


NOTHING: Final = CapturedOutput()
