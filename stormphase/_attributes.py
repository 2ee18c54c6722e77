"""Users' attributes: copied, bounded and made plain, so that they can be kept, sent and written down. Never raises.

What comes out is only None, bool, int, float, str, list and dict with string keys: a deep copy that shares nothing with
what came in, encodes to UTF-8 and goes through `json.dumps`. What comes in may be anything at all.

Nothing here waits for an accelerator: whatever has a `device` that is not the CPU is described by type, shape and dtype
and never read. No iterator is consumed. Types are asked by `type(value)` and never by `__class__`, which can lie.

An exception out of a user's `__str__`, `__len__`, `__iter__` and the like becomes `<unprintable TypeName>` and is
counted. That goes for every BaseException (libraries written in Rust panic with one) but KeyboardInterrupt and
SystemExit: those are how signal handlers stop a program; they have nothing to do with the value, and pass.

Thread-, fork- and async-safe: no lock, and no state but the counts and a cache of well-formed keys.
"""

from __future__ import annotations

import codecs
import datetime as dt
import enum
import itertools
import json
import math
import sys
import types
from collections import deque
from collections.abc import Mapping, MappingView, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
OTelValue: TypeAlias = (
    "bool | int | float | str | tuple[bool, ...] | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]"
)

MAX_ATTRIBUTES: Final = 64
MAX_KEY_CHARS: Final = 256
MAX_CHARS: Final = 4_096
MAX_DEPTH: Final = 8
MAX_ITEMS: Final = 128
# All attributes of one call share these, so that nesting cannot multiply the other bounds.
MAX_NODES: Final = 1_024
MAX_NESTED_CHARS: Final = 65_536
MAX_JSON_CHARS: Final = 16_384

BLANK_KEY: Final = "(blank)"
ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"

_MAX_INT: Final = 2**63 - 1
_MIN_INT: Final = -(2**63)
# Beyond this, `str(int)` can fail: Python limits it to as few as 640 digits.
_MAX_INT_BITS: Final = 2_048
_MAX_LISTED_ELEMENTS: Final = 32
_MAX_PART_CHARS: Final = 64
_MAX_DIMENSIONS: Final = 32
_MAX_FAST_ITEMS: Final = 32
_MAX_PLAIN_KEYS: Final = 4_096
_MAX_COUNTED_DROPS: Final = 1_000_000

# Keys seen to be exact, non-blank, short and encodable: one look-up instead of four checks.
_plain_keys: set[str] = set()
# The plain descriptor: a metaclass may define a `__name__` of its own, and that may raise.
_name_of: Final = type.__dict__["__name__"].__get__
_PRIMITIVES: Final = frozenset({bool, int, float, str})


class AttributeCounts:
    """How many attributes were cut, left out or could not be read; exact over all threads, readable at any time.

    Counting is one C call on an `itertools.count`: no lock that a signal handler or a forked child could find held.
    """

    __slots__ = ("_dropped", "_failed", "_truncated")

    def __init__(self) -> None:
        """Start at zero."""
        self._truncated = itertools.count()
        self._dropped = itertools.count()
        self._failed = itertools.count()

    @property
    def truncated(self) -> int:
        """How many strings, keys or containers were cut."""
        return _reading(self._truncated)

    @property
    def dropped(self) -> int:
        """How many attributes were left out: over the limit, or with a key that was already taken."""
        return _reading(self._dropped)

    @property
    def failed(self) -> int:
        """How many values raised when they were read."""
        return _reading(self._failed)

    def count_truncated(self) -> None:
        """Count one value as cut."""
        next(self._truncated)

    def count_dropped(self, attributes: int = 1) -> None:
        """Count attributes as left out."""
        deque(itertools.islice(self._dropped, attributes), maxlen=0)

    def count_failed(self) -> None:
        """Count one value as unreadable."""
        next(self._failed)

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return {"truncated": self.truncated, "dropped": self.dropped, "failed": self.failed}


def _reading(counter: itertools.count[int]) -> int:
    # "count(5)": the only way to read a counter without moving it.
    return int(repr(counter)[6:-1])


def take(attributes: Mapping[str, Any], counts: AttributeCounts) -> dict[str, Value]:
    """Return the caller's attributes as a dict of our own, at most `MAX_ATTRIBUTES` of them, the first ones kept.

    Fast for a dict of a few plain values. What is cut, left out or unreadable is counted in `counts`.

    Raises:
        TypeError: if `attributes` is not a mapping; nothing else is ever raised.
    """
    if type(attributes) is dict and len(attributes) <= _MAX_FAST_ITEMS:
        try:
            # Copied before it is looked at: another thread may be writing to it.
            taken = attributes.copy()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - a key's own __eq__ may raise
            return _take_slowly(attributes, counts)
        for key, value in taken.items():
            if type(key) is not str or key not in _plain_keys:
                break
            kind = type(value)
            if kind is float or kind is bool:
                continue
            if kind is int:
                if _MIN_INT <= value <= _MAX_INT:
                    continue
                break
            # ASCII is known in constant time, and free of surrogates.
            if kind is not str or len(value) > MAX_CHARS or not value.isascii():
                break
        else:
            return taken
    return _take_slowly(attributes, counts)


def _take_slowly(attributes: Mapping[str, Any], counts: AttributeCounts) -> dict[str, Value]:
    if not _is_kind_of(type(attributes), Mapping):
        message = f'attributes must be a mapping, not {_type_name(attributes)}. Write attributes={{"epoch": 1}}.'
        raise TypeError(message)
    normaliser = _Normaliser(counts)
    taken: dict[str, Value] = {}
    try:
        for key, value in _first_items(attributes, MAX_ATTRIBUTES):
            clean = normaliser.key(key, 0)
            if clean in taken:
                counts.count_dropped()
            else:
                taken[clean] = normaliser.value(value, 0)
        excess = _length(attributes) - MAX_ATTRIBUTES
        if excess > 0:
            counts.count_dropped(min(excess, _MAX_COUNTED_DROPS))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - the mapping is the user's, and may do anything
        # What was read before it broke is kept.
        counts.count_failed()
    return taken


def put(attributes: dict[str, Value], key: object, value: object, counts: AttributeCounts) -> None:
    """Set one attribute in a dict made by `take`; a new one beyond `MAX_ATTRIBUTES` is left out and counted."""
    if type(key) is not str or key not in _plain_keys:
        key = normalise_key(key, counts)
    if len(attributes) >= MAX_ATTRIBUTES and key not in attributes:
        counts.count_dropped()
        return
    kind = type(value)
    if kind is not float and kind is not bool:
        value = normalise(value, counts)
    attributes[key] = value  # type: ignore[assignment]


def normalise_key(key: object, counts: AttributeCounts) -> str:
    """Return an attribute's key as a string that is not blank, not too long and encodes to UTF-8."""
    return _Normaliser(counts).key(key, 0)


def normalise(value: object, counts: AttributeCounts) -> Value:
    """Return a plain, bounded deep copy of `value`.

    Strings are cut to `MAX_CHARS`, containers to `MAX_ITEMS` each, `MAX_NODES` together and `MAX_DEPTH` deep. Integers
    beyond 64 bits, bytes, dates, paths, exceptions and whatever else has no form of its own become strings; enum
    members their value; named tuples and data classes dicts (without the fields whose `repr` is off); sets sorted
    lists; arrays on the CPU a number if they have one element, a list if they have a few, else a description.
    """
    return _Normaliser(counts).value(value, 0)


@attrs.define(eq=False)
class _Normaliser:
    """The walk over the values of one call, and what it may still spend."""

    counts: AttributeCounts
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
            return f"<unprintable {_type_name(value)}>"

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
        if len(_plain_keys) < _MAX_PLAIN_KEYS:
            _plain_keys.add(text)
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
            return self._text(f"{_type_name(value)}: {self._text(str(value), depth)}", depth)
        if issubclass(kind, (type, types.FunctionType, types.BuiltinFunctionType)):
            return self._text(f"{value.__module__}.{value.__qualname__}", depth)
        fields = _field_names(kind)
        if fields is not None:
            return self._inside(value, depth, lambda: self._fields(value, fields, depth))
        if _is_kind_of(kind, Mapping):
            return self._inside(value, depth, lambda: self._dict(value, depth))
        if _has(kind, "__next__"):
            return f"<{_type_name(value)}>"
        if _has(kind, "shape") and _has(kind, "dtype"):
            return self._array(value, kind, depth)
        if issubclass(kind, (list, tuple, deque)) or _is_kind_of(kind, (Sequence, MappingView)):
            return self._inside(value, depth, lambda: self._list(value, depth))
        if _is_kind_of(kind, AbstractSet):
            # By the plain form's repr: members need not be comparable, nor printable.
            return self._inside(value, depth, lambda: sorted(self._list(value, depth), key=repr))
        if _has_device(value, kind) and not _is_on_cpu(value):
            return _described(value)
        return self._text(str(value), depth)

    def _inside(self, value: object, depth: int, read: Callable[[], Value]) -> Value:
        """Read what a container holds, unless that would go too deep or round in a circle."""
        if depth >= MAX_DEPTH or id(value) in self.open_ids:
            self.counts.count_truncated()
            return f"<{_type_name(value)} {ELLIPSIS}>"
        self.open_ids.add(id(value))
        try:
            return read()
        finally:
            self.open_ids.discard(id(value))

    def _list(self, values: Iterable[Any], depth: int) -> list[Value]:
        limit = self._spend(_length(values))
        return [self.value(value, depth + 1) for value in list(itertools.islice(values, limit))]

    def _dict(self, mapping: Any, depth: int) -> dict[str, Value]:
        plain: dict[str, Value] = {}
        for key, value in _first_items(mapping, self._spend(_length(mapping))):
            clean = self.key(key, depth)
            if clean in plain:
                self.counts.count_dropped()
            else:
                plain[clean] = self.value(value, depth + 1)
        return plain

    def _fields(self, value: Any, names: list[str], depth: int) -> dict[str, Value]:
        plain: dict[str, Value] = {}
        for name in names[: self._spend(len(names))]:
            try:
                field = getattr(value, name)
            except Exception:  # noqa: BLE001 - never set, or a property that raises: the other fields still count
                self.counts.count_failed()
                continue
            plain[self.key(name, depth)] = self.value(field, depth + 1)
        return plain

    def _spend(self, length: int) -> int:
        """Return how many items of a container may be read, and take them off what is left."""
        limit = min(length, MAX_ITEMS, self.nodes_left)
        if limit < length:
            self.counts.count_truncated()
        self.nodes_left -= limit
        return limit

    def _integer(self, number: int) -> Value:
        if _MIN_INT <= number <= _MAX_INT:
            return number
        if number.bit_length() <= _MAX_INT_BITS:
            return str(number)
        self.counts.count_truncated()
        return f"<int of {number.bit_length()} bits>"

    def _text(self, text: str, depth: int) -> str:
        if depth == 0:
            return self._cut(text, MAX_CHARS)
        cut = self._cut(text, max(1, min(MAX_CHARS, self.chars_left)))
        self.chars_left -= len(cut)
        return cut

    def _cut(self, text: str, limit: int) -> str:
        """Return an exact, encodable string of at most `limit` characters; `text` may be of a subclass of str."""
        clean = _encodable(str.__getitem__(text, slice(0, limit)))
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
        size = _size(value)
        if size is None or size > _MAX_LISTED_ELEMENTS or not _is_readable(value, kind):
            return _described(value)
        if getattr(value.dtype, "kind", "") in ("m", "M"):
            # numpy's times: as items, those in nanoseconds are bare integers.
            return self._text(str(value), depth)
        try:
            plain = value.item() if size == 1 else value.tolist()
        except Exception:  # noqa: BLE001 - sparse, fake and traced tensors say that they cannot
            return _described(value)
        if type(plain) is kind:
            # numpy's long doubles are their own items.
            return self._text(str(value), depth)
        return self._inside(value, depth, lambda: self.value(plain, depth + 1))


def _is_kind_of(kind: type, bases: Any) -> bool:
    """Return whether instances of `kind` are of one of the abstract `bases`; False where a metaclass raises."""
    try:
        return issubclass(kind, bases)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - an unhashable metaclass, for one
        return False


def _has(kind: type, name: str) -> bool:
    """Return whether a class defines an attribute, without running anybody's `__getattr__`."""
    return any(name in vars(base) for base in kind.__mro__)


def _first_items(mapping: Any, limit: int) -> Iterable[tuple[Any, Any]]:
    """Return the first items of a mapping; of a dict in one go, while no other thread can write to it."""
    items = itertools.islice(mapping.items(), limit)
    return list(items) if type(mapping) is dict else items


def _length(value: Any) -> int:
    return len(value)


def _type_name(value: object) -> str:
    name: str = _name_of(type(value))
    return name if len(name) <= _MAX_PART_CHARS else name[: _MAX_PART_CHARS - 1] + ELLIPSIS


def _encodable(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def _field_names(kind: Any) -> list[str] | None:
    """Return the fields of a named tuple, data class or attrs class that its author lets be printed, else None."""
    if issubclass(kind, tuple):
        return list(itertools.islice(kind._fields, MAX_ITEMS + 1)) if _has(kind, "_fields") else None
    if _has(kind, "__dataclass_fields__"):
        # Imported by whoever made the class.
        return [field.name for field in sys.modules["dataclasses"].fields(kind) if field.repr]
    if _has(kind, "__attrs_attrs__"):
        return [field.name for field in attrs.fields(kind) if field.repr]
    return None


def _has_device(value: object, kind: type) -> bool:
    return _has(kind, "device") or (_has(kind, "__dict__") and "device" in object.__getattribute__(value, "__dict__"))


def _is_on_cpu(value: Any) -> bool:
    """Return whether an object says that it is on the CPU, as torch, JAX, TensorFlow and the array API say it."""
    device = value.device
    if callable(device):
        # A method, as JAX once had: even its text would hold the array's elements.
        return False
    for name in ("type", "platform"):
        text = getattr(device, name, None)
        if isinstance(text, str):
            return text.lower() == "cpu"
    text = str(device).lower()
    return text == "cpu" or "device:cpu:" in text


def _is_readable(value: Any, kind: type) -> bool:
    """Return whether an array's elements can be read without waiting: for an accelerator, or for other ranks."""
    if _has(kind, "device_mesh"):
        # A distributed tensor: reading it may be a collective.
        return False
    if _has(kind, "is_ready") and not value.is_ready():
        # JAX computes in the background on the CPU, too.
        return False
    return _is_on_cpu(value) if _has(kind, "device") else _has(kind, "__array_interface__")


def _size(value: Any) -> int | None:
    shape = value.shape
    if not isinstance(shape, tuple) or not all(type(length) is int for length in shape):
        return None
    return math.prod(shape)


def _described(value: Any) -> str:
    parts = [_type_name(value)]
    for name in ("shape", "dtype", "device"):
        try:
            part = getattr(value, name)
            if callable(part):
                continue
            # As a plain tuple: torch prints its own kind with its name.
            text = str(tuple(map(int, part[:_MAX_DIMENSIONS])) if isinstance(part, tuple) else part)
        except Exception:  # noqa: BLE001, S112 - not every object has, or can say, all three
            continue
        parts.append(f"{name}={_encodable(text[:_MAX_PART_CHARS])}")
    return f"<{' '.join(parts)}>"


def to_otel(attributes: Mapping[str, Value], counts: AttributeCounts) -> dict[str, OTelValue]:
    """Return attributes as OpenTelemetry takes them.

    Lists of one primitive type become tuples, with integers among floats made floats. Whatever else is nested becomes
    compact JSON of at most `MAX_JSON_CHARS` characters, in which NaN and infinities are strings. An attribute that is
    None is not set, as OpenTelemetry knows no null; that counts as no drop.
    """
    for value in attributes.values():
        if type(value) not in _PRIMITIVES:
            break
    else:
        return dict(attributes)  # type: ignore[arg-type]
    converted: dict[str, OTelValue] = {}
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, list):
            converted[key] = _sequence(value, counts)
        elif isinstance(value, dict):
            converted[key] = _json(value, counts)
        else:
            converted[key] = value
    return converted


def _sequence(values: list[Value], counts: AttributeCounts) -> OTelValue:
    kinds = set(map(type, values))
    if kinds == {int, float}:
        return tuple(map(float, values))  # type: ignore[arg-type]
    if len(kinds) <= 1 and kinds <= _PRIMITIVES:
        return tuple(values)  # type: ignore[return-value]
    return _json(values, counts)


def _json(value: Value, counts: AttributeCounts) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    if len(text) <= MAX_JSON_CHARS:
        return text
    counts.count_truncated()
    return text[: MAX_JSON_CHARS - 1] + ELLIPSIS


def _finite(value: Value) -> Value:
    """Return a copy in which the floats that JSON does not know are strings."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
