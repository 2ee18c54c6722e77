"""Exit codes: what each command's code tells a script. docs/commands.md has the same table; a test compares them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

WELL: Final = 0
UNWELL: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130  # as shells have it

_NOT_READ: Final = "the command line is wrong, nothing can be read, or the output cannot be written"
_STOPPED: Final = "Ctrl-C ended it"

EXIT_CODES: Final[Mapping[str, Mapping[int, str]]] = {
    "postmortem": {
        WELL: "every rank runs or has ended in order, and nothing hangs",
        UNWELL: "a rank has not ended in order, something hangs, or a journal cannot be read",
        USAGE: _NOT_READ,
        INTERRUPTED: _STOPPED,
    },
    "recover": {
        WELL: "all was sent, now or before, or there was nothing to send",
        UNWELL: "something could not be sent",
        USAGE: _NOT_READ,
        INTERRUPTED: _STOPPED,
    },
    "top": {
        WELL: "the screen was shown",
        USAGE: _NOT_READ,
        INTERRUPTED: _STOPPED,
    },
    "records": {
        WELL: "the records were written, also if there are none",
        UNWELL: "they were, but for a journal or a row of a database that cannot be read",
        USAGE: f"{_NOT_READ}, or no record has such a path or attribute",
        INTERRUPTED: _STOPPED,
    },
}


def told(command: str) -> str:
    """Return the codes of one command in a line, for its `--help`."""
    return "exit codes: " + "; ".join(f"{code} if {meaning}" for code, meaning in EXIT_CODES[command].items())
