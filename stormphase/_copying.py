"""Copies: of what there is one of in its process, which is itself; and of frozen values with some fields changed."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

_Frozen = TypeVar("_Frozen")
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


def changed(value: _Frozen, **changes: Any) -> _Frozen:
    """Return a copy of a frozen value of ours with some fields changed: `attrs.evolve` in half the time.

    For values all of whose fields are arguments of the same names.
    """
    kind: Any = type(value)
    names, values_of = _fields_of(kind)
    return cast("_Frozen", kind(**{**dict(zip(names, values_of(value), strict=True)), **changes}))


@functools.cache
def _fields_of(kind: Any) -> tuple[tuple[str, ...], Callable[[object], tuple[Any, ...]]]:
    names = tuple(field.name for field in attrs.fields(kind))
    return names, operator.attrgetter(*names)
