"""How a thread may keep its next text by itself: what the fast way of a captured `write` compares and calls."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from stormphase._model import PhaseStatus

if TYPE_CHECKING:
    from typing import TypeAlias

# Who continues a line with a lone newline: the thread's ident, and where to append it.
Line: TypeAlias = "tuple[int, Any]"
# What returns the current value of the session's variable, that value, the phase, the thread's ident, where to append
# the text and the time, the clock, what makes room when there is much, and how the line goes on.
Cell: TypeAlias = "tuple[Any, Any, Any, int, Any, Any, Any, Any, Line]"

ignore: Final = deque[Any](maxlen=0).append


class NoPhase:
    """Stands for the phase of what is said outside of all: open for as long as the session captures."""

    __slots__ = ("_status",)

    def __init__(self) -> None:
        """Be open."""
        self._status: PhaseStatus = PhaseStatus.ACTIVE


class _Never:
    """Stands for a phase that is not open."""

    __slots__ = ("_status",)

    def __init__(self) -> None:
        self._status = None


NO_LINE: Final[Line] = (0, ignore)
NO_CELL: Final[Cell] = (object, None, _Never(), 0, ignore, ignore, object, object, NO_LINE)
"""Matches no caller: what it calls for the current value never returns the value."""
