"""Users' attributes: taken as a dict of our own, set one by one, and handed to OpenTelemetry.

Each value is made plain by `_plain_values`: copied and bounded, and nothing is raised. How many attributes there may be
is decided here. Thread-, fork- and async-safe: no lock, and no state but the counts and a cache of well-formed keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from stormphase._arrays import ELLIPSIS, type_name
from stormphase._attribute_counts import AttributeCounts
from stormphase._plain_values import (
    MAX_CHARS,
    MAX_INT,
    MIN_INT,
    Normaliser,
    Value,
    first_items,
    is_kind_of,
    length,
    normalise,
    normalise_key,
    plain_keys,
)

if TYPE_CHECKING:
    from typing import TypeAlias

    from stormphase._redaction import Redactor

__all__ = ["MAX_ATTRIBUTES", "MAX_JSON_CHARS", "AttributeCounts", "put", "take", "to_otel"]

OTelValue: TypeAlias = (
    "bool | int | float | str | tuple[bool, ...] | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]"
)

MAX_ATTRIBUTES: Final = 64
MAX_JSON_CHARS: Final = 16_384

_MAX_FAST_ITEMS: Final = 32
_MAX_COUNTED_DROPS: Final = 1_000_000
_PRIMITIVES: Final = frozenset({bool, int, float, str})


def take(  # noqa: C901 - one piece, since each call more costs a tenth
    attributes: Mapping[str, Any], counts: AttributeCounts, redactor: Redactor | None = None
) -> dict[str, Value]:
    """Return the caller's attributes as a dict of our own, at most `MAX_ATTRIBUTES` of them, the first ones kept.

    Fast for a dict of a few plain values. What is cut, left out or unreadable is counted in `counts`; the secrets that
    `redactor` finds are not taken.

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
            return _take_slowly(attributes, counts, redactor)
        for key, value in taken.items():
            if type(key) is not str or key not in plain_keys:
                break
            kind = type(value)
            if kind is float or kind is bool:
                continue
            if kind is int:
                if MIN_INT <= value <= MAX_INT:
                    continue
                break
            # ASCII is known in constant time, and free of surrogates.
            if kind is not str or len(value) > MAX_CHARS or not value.isascii():
                break
            if redactor is not None and value not in redactor.innocent:
                clean = redactor.cleaned(value)
                if len(clean) > MAX_CHARS:
                    break
                taken[key] = clean
        else:
            return taken
    return _take_slowly(attributes, counts, redactor)


def _take_slowly(attributes: Mapping[str, Any], counts: AttributeCounts, redactor: Redactor | None) -> dict[str, Value]:
    if not is_kind_of(type(attributes), Mapping):
        message = f'attributes must be a mapping, not {type_name(attributes)}. Write attributes={{"epoch": 1}}.'
        raise TypeError(message)
    normaliser = Normaliser(counts, redactor)
    taken: dict[str, Value] = {}
    try:
        for key, value in first_items(attributes, MAX_ATTRIBUTES):
            clean = normaliser.key(key, 0)
            if clean in taken:
                counts.count_dropped()
            else:
                taken[clean] = normaliser.item(clean, value, 0)
        excess = length(attributes) - MAX_ATTRIBUTES
        if excess > 0:
            counts.count_dropped(min(excess, _MAX_COUNTED_DROPS))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - the mapping is the user's, and may do anything
        # What was read before it broke is kept.
        counts.count_failed()
    return taken


def put(
    attributes: dict[str, Value],
    key: object,
    value: object,
    counts: AttributeCounts,
    redactor: Redactor | None = None,
) -> None:
    """Set one attribute in a dict made by `take`; a new one beyond `MAX_ATTRIBUTES` is left out and counted."""
    kind: type | None = type(value)
    if type(key) is not str or key not in plain_keys:
        key = normalise_key(key, counts)
        kind = None  # It may be a credential's, of whatever kind.
    if len(attributes) >= MAX_ATTRIBUTES and key not in attributes:
        counts.count_dropped()
        return
    if kind is not float and kind is not bool:
        value = normalise(value, counts, redactor, key)
    attributes[key] = value  # type: ignore[assignment]


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
