"""A program that replaces itself by `exec` leaves its descriptors behind: before that they are put back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class ExecHooks:
    """Wraps `os.execv` and `os.execve`, through which all others of their kind go, from `install` to `remove`.

    Args:
        before: called before the program is replaced.
        after_failure: called if it was not.
    """

    def __init__(self, before: Callable[[], object], after_failure: Callable[[], object]) -> None:
        """Wrap nothing yet."""
        self._before = before
        self._after_failure = after_failure
        self._undo: list[tuple[str, Any, Any]] = []

    def install(self) -> None:
        """Wrap both."""
        for name in ("execv", "execve"):
            original = getattr(os, name)
            ours = self._wrapped(original)
            self._undo.append((name, original, ours))
            setattr(os, name, ours)

    def remove(self) -> None:
        """Put the originals back, unless somebody has wrapped ours since."""
        while self._undo:
            name, original, ours = self._undo.pop()
            if getattr(os, name) is ours:
                setattr(os, name, original)

    def _wrapped(self, original: Any) -> Any:
        def replace_program(*args: Any, **kwargs: Any) -> Any:
            if not self._undo:
                return original(*args, **kwargs)
            self._before()
            try:
                return original(*args, **kwargs)
            finally:
                self._after_failure()

        replace_program.__name__ = replace_program.__qualname__ = original.__name__
        replace_program.__doc__ = original.__doc__
        return replace_program
