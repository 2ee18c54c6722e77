"""Shows a summary on a stream: which stream, how wide, whether in colour, with rich or without."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import attrs

from stormphase import _rich_view
from stormphase._render import render

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    from stormphase._summary import SummaryReport

DEFAULT_WIDTH: Final = 80
MAX_WIDTH: Final = 160


@attrs.frozen
class StreamFacts:
    """What a stream can show.

    Attributes:
        is_terminal: whether a person reads it there, rather than a file or a pipe.
        width: how many columns to use; 80 unless it is a terminal.
        has_colour: whether to use colours: on a terminal that is not dumb, unless `NO_COLOR` is set, whatever to; or
            with `FORCE_COLOR`. See no-color.org and force-color.org.
        encoding: what the stream can encode.
    """

    is_terminal: bool
    width: int
    has_colour: bool
    encoding: str

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str]) -> StreamFacts:
        """Look at a stream and at the environment."""
        is_terminal = bool(stream.isatty())
        is_dumb = environ.get("TERM", "") == "dumb"
        forces = bool(environ.get("FORCE_COLOR"))
        return cls(
            is_terminal=is_terminal and not is_dumb,
            width=min(MAX_WIDTH, _columns_of(stream, environ)) if is_terminal else DEFAULT_WIDTH,
            has_colour=not environ.get("NO_COLOR") and (forces or (is_terminal and not is_dumb)),
            encoding=getattr(stream, "encoding", None) or "ascii",
        )


def show(report: SummaryReport, stream: TextIO | None, environ: Mapping[str, str]) -> None:
    """Write the tree to `stream`; a closed or broken one, or none at all, loses the tree and nothing else."""
    if stream is None:  # A process without a console.
        return
    try:
        facts = StreamFacts.of(stream, environ)
        # A name may have what the stream cannot encode: a question mark is better than no tree.
        stream.write(_text(report, facts).encode(facts.encoding, "replace").decode(facts.encoding))
        stream.flush()
    except Exception:  # noqa: BLE001 - a stream may be the program's own; whatever it raises, the session has ended
        return


def _text(report: SummaryReport, facts: StreamFacts) -> str:
    if facts.is_terminal and _rich_view.can_draw(facts.encoding):
        with contextlib.suppress(ImportError):
            return _rich_view.draw(report, width=facts.width, has_colour=facts.has_colour)
    return "\n".join(render(report, width=facts.width, has_colour=facts.has_colour)) + "\n"


def _columns_of(stream: TextIO, environ: Mapping[str, str]) -> int:
    """Return the terminal's width: what `COLUMNS` says, else what the terminal itself does."""
    wish = environ.get("COLUMNS", "")
    if wish.isascii() and wish.isdigit() and int(wish) > 0:
        return int(wish)
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_WIDTH
    except (OSError, ValueError, AttributeError):
        return DEFAULT_WIDTH
