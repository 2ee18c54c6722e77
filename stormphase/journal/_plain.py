"""Parses the values in a journal's blobs: a subset of marshal's version 2, read as what a stranger may have written.

`marshal.loads` may crash the interpreter on bytes that no writer of ours produced. This reads only the types that ours
produces, allocates nothing by a length that it has not compared with what is there, and refuses what is nested deeper
than any writer nests. Format: docs/journal-format.md; CPython's is in `Python/marshal.c`.
"""

from __future__ import annotations

import struct
from typing import Any, Final

MAX_DEPTH: Final = 32  # attributes are at most 8 deep, in an envelope
_MAX_DIGITS: Final = 9  # of 15 bits: more than any 64-bit number needs

_NONE, _TRUE, _FALSE, _INT, _BIG_INT, _FLOAT, _TEXT, _LIST, _DICT, _END = b"NTFilgu[{0"
_I32: Final = struct.Struct("<i")
_U32: Final = struct.Struct("<I")
_F64: Final = struct.Struct("<d")
_SINGLES: Final = {_NONE: None, _TRUE: True, _FALSE: False}


class PlainError(ValueError):
    """The bytes are no value that a journal may hold."""


def parse(data: bytes) -> Any:
    """Return the one value that all of `data` encodes: None, a bool, an int, a float, a str, a list or a dict.

    Raises:
        PlainError: if it is anything else.
    """
    try:
        value, end = _parse(data, 0, MAX_DEPTH)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise PlainError(f"cut or garbled: {error}") from None
    if end != len(data):
        raise PlainError(f"{len(data) - end} bytes follow the value")
    return value


def _parse(data: bytes, at: int, depth: int) -> tuple[Any, int]:  # noqa: C901, PLR0911 - one branch a type
    """Return the value that begins at `at`, and where it ends."""
    kind = data[at]
    at += 1
    if kind == _TEXT:
        start = at + 4
        (length,) = _U32.unpack_from(data, at)
        end = start + length
        if end > len(data):
            raise PlainError(f"a string of {length} bytes in {len(data) - start}")
        return str(data[start:end], "utf-8", "surrogatepass"), end
    if kind == _INT:
        return _I32.unpack_from(data, at)[0], at + 4
    if kind == _FLOAT:
        return _F64.unpack_from(data, at)[0], at + 8
    if kind in _SINGLES:
        return _SINGLES[kind], at
    if kind == _BIG_INT:
        return _big_int(data, at)
    if not depth:
        raise PlainError(f"nested deeper than {MAX_DEPTH}")
    if kind == _DICT:
        mapping = {}
        while data[at] != _END:
            key, at = _parse(data, at, depth - 1)
            if type(key) is not str:
                raise PlainError(f"a key of type {type(key).__name__}")
            mapping[key], at = _parse(data, at, depth - 1)
        return mapping, at + 1
    if kind == _LIST:
        (count,) = _U32.unpack_from(data, at)
        at += 4
        values = []
        # Grows as values are found, whatever the count promises.
        for _ in range(count):
            value, at = _parse(data, at, depth - 1)
            values.append(value)
        return values, at
    raise PlainError(f"no type is called {kind:#04x}")


def _big_int(data: bytes, at: int) -> tuple[int, int]:
    (count,) = _I32.unpack_from(data, at)
    at += 4
    if abs(count) > _MAX_DIGITS:
        raise PlainError(f"an integer of {abs(count)} digits")
    number = 0
    for place, digit in enumerate(struct.unpack_from(f"<{abs(count)}H", data, at)):
        number |= (digit & 0x7FFF) << 15 * place
    return (-number if count < 0 else number), at + 2 * abs(count)
