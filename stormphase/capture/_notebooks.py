"""Cells of IPython and Jupyter: while one runs, IPython has a `write` of its own on each stream, and then takes it off.

Ours goes with it, if capturing began in a cell. So it is put back in place at the begin of each cell.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_BEFORE_CELL: Final = "pre_execute"


class NotebookHooks:
    """Calls `before_cell` before each cell that IPython runs, where it runs, from `install` to `remove`."""

    def __init__(self, before_cell: Callable[[], object]) -> None:
        """Look for nothing yet."""
        self._before_cell = before_cell
        self._events: Any = None

    def install(self) -> None:
        """Ask IPython to tell of its cells, if it is what runs this program; never imports it."""
        get_shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", None)
        with contextlib.suppress(Exception):  # Whatever a program has put at that name.
            events = get_shell().events
            events.register(_BEFORE_CELL, self._on_cell)
            self._events = events

    def remove(self) -> None:
        """Hear of no more."""
        events, self._events = self._events, None
        if events is not None:
            with contextlib.suppress(Exception):  # It may have been unregistered with all others.
                events.unregister(_BEFORE_CELL, self._on_cell)

    def _on_cell(self) -> None:
        self._before_cell()
