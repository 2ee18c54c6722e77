"""Marks on exceptions: what is remembered of an exception object, by identity, without holding it.

To hold an exception would hold its frames, and with them whatever they hold (GPU tensors, say). So:

- An exception that can be weakly referenced is left as it is. A side table has its marks, by its address, beside a weak
  reference whose callback takes the entry out before another object can have that address. The callback is C all the
  way (`dict.pop`), so no signal handler runs in it, and no lock is taken.
- One of a builtin type, or of slots alone, cannot be weakly referenced. Its marks stand in its `__dict__` under one
  key, and are pickled as a tuple of numbers and strings, so that a pickle loads where stormphase is not installed.
- A class with a `__setstate__`, `__setattr__` or the like of its own may make anything of a key that it does not know
  (a frozen dataclass of slots takes it for a field), so it gets none, and without a weak reference no marks.

Nothing here asks an exception's own class for anything, since that may be hostile.
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

KEY: Final = "__stormphase__"
# Past the class: a frozen exception refuses setattr, and one may have an attribute of its own of that name.
_made_attributes_of: Final[Callable[[BaseException], dict[str, Any]]] = BaseException.__dict__["__dict__"].__get__
_reduce: Final[Callable[[BaseException], tuple[Any, ...]]] = BaseException.__dict__["__reduce__"]
_OWN_WAYS: Final = frozenset({"__getstate__", "__reduce__", "__reduce_ex__", "__setattr__", "__setstate__"})
_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that was written in Python
_flags_of: Final[Callable[[type], int]] = type.__dict__["__flags__"].__get__
_names_of: Final[Callable[[type], Any]] = type.__dict__["__dict__"].__get__
_classes_of: Final[Callable[[type], tuple[type, ...]]] = type.__dict__["__mro__"].__get__


class Marks:
    """What is remembered of one exception.

    Attributes:
        origins: where it arose and what it has left since, as `_errors.Mark`s: one for each tracker whose phases it has
            left, that of the last one first.
        handled: the numbers of the sessions during whose start it was being handled.
        recorded: the id of the phase on whose span the user has recorded it last, or None.
        owner: the exception's address, if these stand in its `__dict__`: a shallow copy has the same object there.
    """

    __slots__ = ("handled", "origins", "owner", "recorded")

    def __init__(self) -> None:
        self.origins: tuple[Any, ...] = ()
        self.handled: tuple[int, ...] = ()
        self.recorded: str | None = None
        self.owner = 0

    def __reduce__(self) -> tuple[type[tuple[Any, ...]], tuple[Any, ...]]:
        """Pickle and copy as a builtin: where the exception arose, or an empty tuple."""
        return tuple, (self.origins[0].to_tuple() if self.origins else (),)


class _Entry(weakref.ref):  # type: ignore[type-arg]  # it is no generic class when it runs
    """A weak reference to an exception, and the marks that are its."""

    __slots__ = ("marks",)

    marks: Marks


_table: Final[dict[int, _Entry]] = {}


def attributes_of(exception: BaseException) -> dict[str, Any]:
    """Return what stands in an exception's `__dict__`, to be read only.

    To ask for the `__dict__` itself would make it one that has none yet, which shows: it is pickled, and given to a
    `__setstate__`.
    """
    reduced = _reduce(exception)
    return reduced[2] if len(reduced) > 2 else {}  # noqa: PLR2004 - class, arguments and, if there are any, attributes


def marks_of(exception: BaseException) -> Marks | None:
    """Return the marks of this very object, or None; never those of what it was copied from."""
    entry = _table.get(id(exception))
    if entry is not None and entry() is exception:
        return entry.marks
    found = dict.get(attributes_of(exception), KEY)
    return found if type(found) is Marks and found.owner == id(exception) else None


def marks_for(exception: BaseException) -> Marks:
    """Return the marks of this very object, made at first need."""
    marks = marks_of(exception)
    if marks is None:
        marks = Marks()
        key = id(exception)
        try:
            entry = _Entry(exception, functools.partial(_table.pop, key))
        except TypeError:
            if _takes_a_key(exception):
                marks.owner = key
                dict.__setitem__(_made_attributes_of(exception), KEY, marks)
        else:
            entry.marks = marks
            _table[key] = entry
    return marks


def carried_by(exception: BaseException) -> object:
    """Return what stands under the key in an exception that came from another process, or None."""
    return dict.get(attributes_of(exception), KEY)


def send_along(exception: BaseException) -> None:
    """Have the marks of an exception that leaves its process pickled with it, as others are that stand in it."""
    marks = marks_of(exception)
    if marks is not None and marks.origins and id(exception) in _table and _takes_a_key(exception):
        dict.__setitem__(_made_attributes_of(exception), KEY, marks.origins[0].to_tuple())


def take_off(exception: BaseException) -> None:
    """Leave an exception that came from another process as it was made, now that the table has its marks."""
    if id(exception) in _table:
        dict.pop(attributes_of(exception), KEY, None)


def _takes_a_key(exception: BaseException) -> bool:
    """Whether a key more in its `__dict__` changes nothing else, also when it is copied or pickled."""
    for each in _classes_of(type(exception)):
        if _flags_of(each) & _HEAP_TYPE and not _OWN_WAYS.isdisjoint(_names_of(each)):
            return False
    return True
