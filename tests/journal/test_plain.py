"""The parser of the values in a journal: all that a writer writes, and nothing else, whatever the bytes."""

from __future__ import annotations

import contextlib
import marshal
import struct
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase.journal._plain import MAX_DEPTH, PlainError, parse

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters(), max_size=9), inner, max_size=5)
    ),
    max_leaves=30,
)


@given(VALUES)
def test_what_a_writer_writes_is_read_back(value):
    """Every value that a phase's attributes may have comes back with value and type, lone surrogates included."""
    read = parse(marshal.dumps(value, 2))
    assert value == read
    assert repr(value) == repr(read)


@given(VALUES, st.data())
def test_a_value_cut_anywhere_is_refused(value, data):
    """What lacks its last bytes is no value, and is said to be none."""
    blob = marshal.dumps(value, 2)
    with pytest.raises(PlainError):
        parse(blob[: data.draw(st.integers(0, len(blob) - 1))])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_an_error(data):
    """Nothing but a value or PlainError comes of any bytes."""
    with contextlib.suppress(PlainError):
        parse(data)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "cut"),
        (b"N0", "1 bytes follow"),
        (b"u\xff\xff\xff\xffab", "a string of 4294967295 bytes in 2"),
        (b"[\xff\xff\xff\xff", "cut"),
        (b"l\x0a\0\0\0" + bytes(20), "an integer of 10 digits"),
        (b"l\x00\0\0\x80", "an integer of 2147483648 digits"),
        (b"{N" + b"N0", "a key of type NoneType"),
        (b"{i\1\0\0\0N0", "a key of type int"),
        (b"u\1\0\0\0\xff", "garbled"),
        (b"(\0\0\0\0", "no type is called 0x28"),
        (b"c", "no type is called 0x63"),
        (b"r\0\0\0\0", "no type is called 0x72"),
        (b"\xce", "no type is called 0xce"),
        (b"0", "no type is called 0x30"),
    ],
)
def test_what_no_writer_writes_is_refused(data, match):
    """Code objects, references, tuples, keys that are no strings and lengths that lie are refused, by name."""
    with pytest.raises(PlainError, match=match):
        parse(data)


def test_nesting_ends_at_a_fixed_depth():
    """Attributes are at most 8 deep; a stranger's thousand levels must not reach Python's recursion limit."""
    blob = b"[\1\0\0\0"
    assert [[]] == parse(blob + b"[\0\0\0\0")
    deepest = parse(blob * (MAX_DEPTH - 1) + b"[\0\0\0\0")
    assert isinstance(deepest, list)
    for opening in (blob, b"{u\0\0\0\0"):
        with pytest.raises(PlainError, match="nested deeper than 32"):
            parse(opening * 10 * sys.getrecursionlimit())


def test_no_length_is_believed():
    """A list that promises four billion values, and a string as long, cost no more memory than they have bytes."""
    tracemalloc.start()
    try:
        for data in (b"[" + struct.pack("<I", 2**32 - 1) + b"N" * 1_000, b"u" + struct.pack("<I", 2**32 - 1)):
            with pytest.raises(PlainError):
                parse(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
