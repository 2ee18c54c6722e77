"""Any object as a plain value: copied, bounded, never raising.

What comes out is only None, bool, int, float, str, list and dict with string keys: a deep copy that shares nothing with
what came in, encodes to UTF-8 and goes through `json.dumps`. What comes in may be anything at all.

Nothing here waits for an accelerator (see `_arrays`), and no iterator is consumed. Types are asked by `type(value)` and
never by `__class__`, which can lie.

An exception out of a user's `__str__`, `__len__`, `__iter__` and the like becomes `<unprintable TypeName>` and is
counted. That goes for every BaseException (libraries written in Rust panic with one) but KeyboardInterrupt and
SystemExit: those are how signal handlers stop a program; they have nothing to do with the value, and pass.
"""

from __future__ import annotations

import codecs
import datetime as dt
import enum
import itertools
import sys
import types
from collections import deque
from collections.abc import Mapping, MappingView, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._arrays import (
    ELLIPSIS,
    described,
    encodable,
    has,
    has_device,
    is_on_cpu,
    is_readable,
    size_of,
    type_name,
)
from stormphase._attribute_counts import AttributeCounts
from stormphase._redaction import REACH, Redactor, hidden, is_credential_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

MAX_KEY_CHARS: Final = 256
MAX_CHARS: Final = 4_096
MAX_DEPTH: Final = 8
MAX_ITEMS: Final = 128
# All values of one walk share these, so that nesting cannot multiply the other bounds.
MAX_NODES: Final = 1_024
MAX_NESTED_CHARS: Final = 65_536
MAX_INT: Final = 2**63 - 1
MIN_INT: Final = -(2**63)

BLANK_KEY: Final = "(blank)"

# Beyond this, `str(int)` can fail: Python limits it to as few as 640 digits.
_MAX_INT_BITS: Final = 2_048
_MAX_LISTED_ELEMENTS: Final = 32
_MAX_PLAIN_KEYS: Final = 4_096

# Keys seen to be exact, non-blank, short, encodable and no credential's: one look-up instead of five checks.
plain_keys: set[str] = set()


def normalise_key(key: object, counts: AttributeCounts) -> str:
    """Return an attribute's key as a string that is not blank, not too long and encodes to UTF-8."""
    return Normaliser(counts).key(key, 0)


def normalise(value: object, counts: AttributeCounts, redactor: Redactor | None = None, key: str = "") -> Value:
    """Return a plain, bounded deep copy of `value`, which stands at `key`, without the secrets that `redactor` finds.

    Strings are cut to `MAX_CHARS`, containers to `MAX_ITEMS` each, `MAX_NODES` together and `MAX_DEPTH` deep. Integers
    beyond 64 bits, bytes, dates, paths, exceptions and whatever else has no form of its own become strings; enum
    members their value; named tuples and data classes dicts (without the fields whose `repr` is off); sets sorted
    lists; arrays on the CPU a number if they have one element, a list if they have a few, else a description.
    """
    return Normaliser(counts, redactor).item(key, value, 0)


@attrs.define(eq=False)
class Normaliser:
    """The walk over the values of one call, and what it may still spend."""

    counts: AttributeCounts
    redactor: Redactor | None = None
    nodes_left: int = MAX_NODES
    chars_left: int = MAX_NESTED_CHARS
    open_ids: set[int] = attrs.field(factory=set)

    def value(self, value: Any, depth: int) -> Value:
        """Return the plain form of any object."""
        try:
            return self._plain(value, type(value), depth)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - the value is the user's, and may do anything
            self.counts.count_failed()
            return f"<unprintable {type_name(value)}>"

    def item(self, key: str, value: Any, depth: int) -> Value:
        """Return the plain form of what stands at a key; of a credential's it is not told."""
        plain = self.value(value, depth)
        if self.redactor is None or not is_credential_name(key):
            return plain
        return hidden(plain)  # type: ignore[no-any-return]

    def key(self, key: Any, depth: int) -> str:
        """Return the plain form of any object that stands as a key."""
        if type(key) is str:
            text = key
        else:
            # By way of the plain value, so that no key is read that a value would not be.
            plain = self.value(key, depth + 1)
            text = plain if isinstance(plain, str) else str(plain)
        if not text or text.isspace():
            return BLANK_KEY
        text = self._cut(text, MAX_KEY_CHARS)
        if len(plain_keys) < _MAX_PLAIN_KEYS and not is_credential_name(text):
            plain_keys.add(text)
        return text

    def _plain(self, value: Any, kind: type, depth: int) -> Value:  # noqa: C901, PLR0911, PLR0912 - one flat list of kinds, in order
        if value is None or kind is bool:
            return value  # type: ignore[no-any-return]
        if issubclass(kind, enum.Enum):
            return self._inside(value, depth, lambda: self.value(value.value, depth + 1))
        # The bases' own methods: a subclass may have overridden them.
        if issubclass(kind, int):
            return self._integer(int.__int__(value))
        if issubclass(kind, float):
            return float.__float__(value)
        if issubclass(kind, str):
            return self._text(value, depth)
        if issubclass(kind, (bytes, bytearray, memoryview)):
            return self._decoded(value, depth)
        if issubclass(kind, (dt.date, dt.time)):
            return self._text(value.isoformat(), depth)
        if issubclass(kind, BaseException):
            return self._text(f"{type_name(value)}: {self._text(str(value), depth)}", depth)
        if issubclass(kind, (type, types.FunctionType, types.BuiltinFunctionType)):
            return self._text(f"{value.__module__}.{value.__qualname__}", depth)
        fields = _field_names(kind)
        if fields is not None:
            return self._inside(value, depth, lambda: self._fields(value, fields, depth))
        if is_kind_of(kind, Mapping):
            return self._inside(value, depth, lambda: self._dict(value, depth))
        if has(kind, "__next__"):
            return f"<{type_name(value)}>"
        if has(kind, "shape") and has(kind, "dtype"):
            return self._array(value, kind, depth)
        if issubclass(kind, (list, tuple, deque)) or is_kind_of(kind, (Sequence, MappingView)):
            return self._inside(value, depth, lambda: self._list(value, depth))
        if is_kind_of(kind, AbstractSet):
            # By the plain form's repr: members need not be comparable, nor printable.
            return self._inside(value, depth, lambda: sorted(self._list(value, depth), key=repr))
        if has_device(value, kind) and not is_on_cpu(value):
            return described(value)
        return self._text(str(value), depth)

    def _inside(self, value: object, depth: int, read: Callable[[], Value]) -> Value:
        """Read what a container holds, unless that would go too deep or round in a circle."""
        if depth >= MAX_DEPTH or id(value) in self.open_ids:
            self.counts.count_truncated()
            return f"<{type_name(value)} {ELLIPSIS}>"
        self.open_ids.add(id(value))
        try:
            return read()
        finally:
            self.open_ids.discard(id(value))

    def _list(self, values: Iterable[Any], depth: int) -> list[Value]:
        limit = self._spend(length(values))
        return [self.value(value, depth + 1) for value in list(itertools.islice(values, limit))]

    def _dict(self, mapping: Any, depth: int) -> dict[str, Value]:
        plain: dict[str, Value] = {}
        for key, value in first_items(mapping, self._spend(length(mapping))):
            clean = self.key(key, depth)
            # Deep inside, a key is no name that the program gave: it may be a customer's.
            told = clean if self.redactor is None else self.redactor.begin(clean, MAX_KEY_CHARS)
            if told in plain:
                self.counts.count_dropped()
            else:
                plain[told] = self.item(clean, value, depth + 1)
        return plain

    def _fields(self, value: Any, names: list[str], depth: int) -> dict[str, Value]:
        plain: dict[str, Value] = {}
        for name in names[: self._spend(len(names))]:
            try:
                field = getattr(value, name)
            except Exception:  # noqa: BLE001 - never set, or a property that raises: the other fields still count
                self.counts.count_failed()
                continue
            clean = self.key(name, depth)
            plain[clean] = self.item(clean, field, depth + 1)
        return plain

    def _spend(self, length: int) -> int:
        """Return how many items of a container may be read, and take them off what is left."""
        limit = min(length, MAX_ITEMS, self.nodes_left)
        if limit < length:
            self.counts.count_truncated()
        self.nodes_left -= limit
        return limit

    def _integer(self, number: int) -> Value:
        if MIN_INT <= number <= MAX_INT:
            return number
        if number.bit_length() <= _MAX_INT_BITS:
            return str(number)
        self.counts.count_truncated()
        return f"<int of {number.bit_length()} bits>"

    def _text(self, text: str, depth: int) -> str:
        limit = MAX_CHARS if depth == 0 else max(1, min(MAX_CHARS, self.chars_left))
        if self.redactor is not None:
            is_long = str.__len__(text) > limit + REACH
            text = self.redactor.begin(text, limit)
            if is_long and len(text) <= limit:
                self.counts.count_truncated()
        cut = self._cut(text, limit)
        if depth:
            self.chars_left -= len(cut)
        return cut

    def _cut(self, text: str, limit: int) -> str:
        """Return an exact, encodable string of at most `limit` characters; `text` may be of a subclass of str."""
        clean = encodable(str.__getitem__(text, slice(0, limit)))
        if str.__len__(text) <= limit and len(clean) <= limit:
            return clean
        self.counts.count_truncated()
        return clean[: limit - 1] + ELLIPSIS

    def _decoded(self, value: bytes | bytearray | memoryview, depth: int) -> str:
        # Enough for one character more than is kept, so that what was cut is seen to be.
        first = slice(0, 4 * MAX_CHARS + 4)
        if isinstance(value, memoryview):
            if value.ndim != 1:
                return f"<memoryview shape={value.shape}>"
            data, is_whole = value[first].tobytes(), len(value) <= first.stop
        else:
            # Copied, not viewed: while somebody views a bytearray, its owner cannot grow it.
            base: Any = bytes if isinstance(value, bytes) else bytearray
            data, is_whole = bytes(base.__getitem__(value, first)), base.__len__(value) <= first.stop
        # Incremental, so that a character cut in two at the end leaves no half.
        return self._text(codecs.getincrementaldecoder("utf-8")("backslashreplace").decode(data, final=is_whole), depth)

    def _array(self, value: Any, kind: type, depth: int) -> Value:
        size = size_of(value)
        if size is None or size > _MAX_LISTED_ELEMENTS or not is_readable(value, kind):
            return described(value)
        if getattr(value.dtype, "kind", "") in ("m", "M"):
            # numpy's times: as items, those in nanoseconds are bare integers.
            return self._text(str(value), depth)
        try:
            plain = value.item() if size == 1 else value.tolist()
        except Exception:  # noqa: BLE001 - sparse, fake and traced tensors say that they cannot
            return described(value)
        if type(plain) is kind:
            # numpy's long doubles are their own items.
            return self._text(str(value), depth)
        return self._inside(value, depth, lambda: self.value(plain, depth + 1))


def is_kind_of(kind: type, bases: Any) -> bool:
    """Return whether instances of `kind` are of one of the abstract `bases`; False where a metaclass raises."""
    try:
        return issubclass(kind, bases)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - an unhashable metaclass, for one
        return False


def first_items(mapping: Any, limit: int) -> Iterable[tuple[Any, Any]]:
    """Return the first items of a mapping; of a dict in one go, while no other thread can write to it."""
    items = itertools.islice(mapping.items(), limit)
    return list(items) if type(mapping) is dict else items


def length(value: Any) -> int:
    """Return what an object says of its length: `len`, typed for anything."""
    return len(value)


def _field_names(kind: Any) -> list[str] | None:
    """Return the fields of a named tuple, data class or attrs class that its author lets be printed, else None."""
    if issubclass(kind, tuple):
        return list(itertools.islice(kind._fields, MAX_ITEMS + 1)) if has(kind, "_fields") else None
    if has(kind, "__dataclass_fields__"):
        # Imported by whoever made the class.
        return [field.name for field in sys.modules["dataclasses"].fields(kind) if field.repr]
    if has(kind, "__attrs_attrs__"):
        return [field.name for field in attrs.fields(kind) if field.repr]
    return None
