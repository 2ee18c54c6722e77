"""The journal: a file that says after any death what a rank was doing.

`JournalOptions` says how a `PhaseTracker(journal=...)` keeps one; `read_journal` and `read_directory` read it, also
while it is written. Importing this reads no file; each public name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stormphase.journal._image import (
        EndNote,
        JournalImage,
        JournalPhase,
        PathTotals,
        StackDump,
    )
    from stormphase.journal._options import JournalOptions
    from stormphase.journal._read import UnreadableJournal, read_directory, read_journal

__all__ = [
    "EndNote",
    "JournalImage",
    "JournalOptions",
    "JournalPhase",
    "PathTotals",
    "StackDump",
    "UnreadableJournal",
    "read_directory",
    "read_journal",
]

_HOMES = dict.fromkeys(("UnreadableJournal", "read_directory", "read_journal"), "_read")
_HOMES["JournalOptions"] = "_options"


def __getattr__(name: str) -> Any:
    """Load the module that a public name lives in, the first time it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"stormphase.journal.{_HOMES.get(name, '_image')}"), name)


def __dir__() -> list[str]:
    """Show the public names, loaded or not."""
    return sorted({*globals(), *__all__})
