"""The journal: a file that says after any death what a rank was doing.

`read_journal` and `read_directory` read what a `PhaseTracker(journal=...)` wrote, also while it is written. Importing
this reads no file; each public name is loaded when it is first used.
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
    from stormphase.journal._read import UnreadableJournal, read_directory, read_journal

__all__ = [
    "EndNote",
    "JournalImage",
    "JournalPhase",
    "PathTotals",
    "StackDump",
    "UnreadableJournal",
    "read_directory",
    "read_journal",
]

_IN_READ = ("UnreadableJournal", "read_directory", "read_journal")


def __getattr__(name: str) -> Any:
    """Load the module that a public name lives in, the first time it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"stormphase.journal.{'_read' if name in _IN_READ else '_image'}"), name)


def __dir__() -> list[str]:
    """Show the public names, loaded or not."""
    return sorted({*globals(), *__all__})
