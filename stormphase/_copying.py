"""What belongs to its process, and there is one of: a copy of it is itself."""

from __future__ import annotations

from typing import TypeVar

_Same = TypeVar("_Same", bound="CopiesToItself")  # typing.Self needs CPython 3.11


class CopiesToItself:
    """Is what `copy.copy` and `copy.deepcopy` return of it: a model that holds it is copied, and goes on using it."""

    __slots__ = ()

    def __copy__(self: _Same) -> _Same:  # noqa: PYI019 - see there
        """Return itself."""
        return self

    def __deepcopy__(self: _Same, memo: object) -> _Same:  # noqa: PYI019 - see there
        """Return itself."""
        return self
