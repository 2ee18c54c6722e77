"""The floor: what any context manager costs, and what every ratio is a multiple of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from measure import Subject

if TYPE_CHECKING:
    from types import TracebackType


class Empty:
    """A context manager that does nothing. Its `__exit__` names its three parameters: `*exc` would be slower."""

    __slots__ = ()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do nothing."""


class Floor(Subject):
    """A `with` on an empty slotted context manager, made anew each time."""

    name = "floor"

    def batch(self, count: int) -> None:
        """Enter and leave `count` of them."""
        for _ in range(count):
            with Empty():
                pass


class EmptyLoop(Subject):
    """A loop around nothing: what instructions.py takes off every count."""

    name = "empty loop"

    def batch(self, count: int) -> None:
        """Do nothing `count` times."""
        for _ in range(count):
            pass
