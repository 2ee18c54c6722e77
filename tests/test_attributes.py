"""Attributes: plain, bounded and counted, whatever comes in; arrays and plain values are tested through them."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import itertools
import json
import math
import pathlib
import threading
import types
import uuid
from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stormphase import _attributes, _plain_values
from stormphase._arrays import ELLIPSIS
from stormphase._attributes import MAX_ATTRIBUTES, MAX_JSON_CHARS, AttributeCounts, put, take, to_otel
from stormphase._plain_values import (
    BLANK_KEY,
    MAX_CHARS,
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_KEY_CHARS,
    MAX_NESTED_CHARS,
    MAX_NODES,
    normalise,
    normalise_key,
)
from stormphase._redaction import REDACTED, Redactor


@pytest.fixture
def counts() -> AttributeCounts:
    """Return counts that stand at zero."""
    return AttributeCounts()


def counted(counts: AttributeCounts) -> tuple[int, int, int]:
    """Return truncated, dropped and failed."""
    return counts.truncated, counts.dropped, counts.failed


def kind_of(value: object) -> str:
    """Return the id of a parameter, without asking it anything."""
    return f"{type.__dict__['__name__'].__get__(type(value))}{next(_serial)}"


_serial = itertools.count()


class PanicError(BaseException):
    """What a library written in Rust raises when it panics."""


class Hostile:
    """Raises wherever it can be asked anything."""

    def __init__(self, error: BaseException | None = None) -> None:
        object.__setattr__(self, "_error", error or RuntimeError("no"))

    def _raise(self, *args):
        raise object.__getattribute__(self, "_error")

    __str__ = __repr__ = __len__ = __iter__ = __getattr__ = __bool__ = __index__ = __float__ = __format__ = _raise
    __class__ = property(_raise)  # type: ignore[assignment]
    __hash__ = object.__hash__
    __eq__ = _raise


class HostileList(list):
    """A list whose own methods all raise."""

    def _raise(self, *args):
        raise PanicError

    __len__ = __iter__ = __getitem__ = __str__ = __repr__ = _raise


class HostileMapping(collections.abc.Mapping):
    """A mapping that breaks after its second item."""

    def __getitem__(self, key):
        return key

    def __iter__(self):
        yield from ("a", "b")
        raise PanicError

    def __len__(self):
        return 3


class HostileMeta(type):
    """Classes that cannot be asked their name, their bases or their hash."""

    __hash__ = None  # type: ignore[assignment]

    @property
    def __name__(cls):
        raise PanicError


class HostileClass(metaclass=HostileMeta):
    """Its class raises where its instances would not."""


class Unprintable:
    """Raises when it is printed."""

    def __str__(self) -> str:
        raise RuntimeError


class Colour(enum.Enum):
    """An enum of strings."""

    RED = "red"
    LOST = Unprintable()


class Level(enum.IntFlag):
    """An enum of numbers."""

    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    """A named tuple."""

    x: object
    y: object


@dataclasses.dataclass
class Config:
    """A data class with a secret."""

    rate: float
    key: str = dataclasses.field(default="secret", repr=False)
    device: str = "cuda"


@attrs.frozen
class Shape:
    """An attrs class with a secret."""

    width: int
    key: str = attrs.field(default="secret", repr=False)


class Device:
    """What torch calls a device."""

    def __init__(self, kind: str) -> None:
        self.type = kind

    def __str__(self) -> str:
        return f"{self.type}:0"


class Tensor:
    """Looks like a tensor, and notes when it is read."""

    shape: object = ()
    dtype: object = "float32"
    device: object = Device("cpu")

    def __init__(self, item: object = 1.5, **facts: object) -> None:
        self._item = item
        self.reads = 0
        self.__class__ = type("Tensor", (Tensor,), facts)

    def _read(self) -> object:
        self.reads += 1
        if isinstance(self._item, BaseException):
            raise self._item
        return self._item

    item = tolist = __str__ = __repr__ = __float__ = __len__ = __iter__ = __array__ = _read


# --- take -------------------------------------------------------------------------------------------------------------


def test_take_copies_plain_attributes(counts):
    """A dict of plain values is copied as it is, the first time and every time after."""
    given_ = {"epoch": 1, "loss": 0.5, "warm": True, "name": "resnet"}
    first, second = take(given_, counts), take(given_, counts)
    assert given_ == first == second
    assert first is not given_
    assert second is not given_
    assert (0, 0, 0) == counted(counts)


@pytest.mark.parametrize(
    "attributes",
    list(map(pytest.param, [None, 1, "ab", [("a", 1)], {"a"}, Hostile(), HostileClass(), HostileClass])),
    ids=kind_of,
)
def test_take_refuses_what_is_no_mapping(attributes, counts):
    """Whatever is not a mapping raises a TypeError that says what to write."""
    with pytest.raises(TypeError, match=r'must be a mapping, not .+ Write attributes=\{"epoch": 1\}'):
        take(attributes, counts)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2**63, str(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        ("é", "é"),
        ("\ud800", "\\ud800"),
        ([1], [1]),
        (None, None),
        ("x" * (MAX_CHARS + 1), "x" * (MAX_CHARS - 1) + ELLIPSIS),
    ],
)
def test_take_normalises_what_is_not_plain(value, expected, counts):
    """A value that is not plain is made so, also under a key seen before."""
    take({"seen": 1}, counts)
    assert {"seen": expected} == take({"seen": value}, counts)


def test_take_keeps_the_first_attributes_and_counts_the_others(counts):
    """More attributes than the limit are dropped, the last ones, each counted."""
    taken = take({f"k{number}": number for number in range(MAX_ATTRIBUTES + 9)}, counts)
    assert [f"k{number}" for number in range(MAX_ATTRIBUTES)] == list(taken)
    assert (0, 9, 0) == counted(counts)


def test_take_drops_none_at_the_limit(counts):
    """Exactly as many attributes as the limit are all kept."""
    assert MAX_ATTRIBUTES == len(take({str(number): number for number in range(MAX_ATTRIBUTES)}, counts))
    assert 0 == counts.dropped


def test_take_bounds_a_mapping_that_lies_about_its_length(counts):
    """A length beyond belief is counted only up to a bound."""

    class Liar(HostileMapping):
        __iter__ = dict.fromkeys("ab").__iter__

        def __len__(self):
            return 2**62

    assert {"a": "a", "b": "b"} == take(Liar(), counts)
    assert _attributes._MAX_COUNTED_DROPS == counts.dropped


def test_take_accepts_any_mapping(counts):
    """Views, chains and defaults are mappings as well."""
    for mapping in (
        types.MappingProxyType({"a": 1}),
        collections.ChainMap({"a": 1}),
        collections.OrderedDict(a=1),
        collections.UserDict(a=1),
    ):
        assert {"a": 1} == take(mapping, counts)


def test_take_keeps_what_a_breaking_mapping_gave(counts):
    """What was read before a mapping raised is kept, and the break counted."""
    assert {"a": "a", "b": "b"} == take(HostileMapping(), counts)
    assert (0, 0, 1) == counted(counts)


def dict_of_incomparable_keys(error: BaseException) -> dict[object, int]:
    """Return a dict with gaps, whose keys share a hash, so that a copy has to compare them, and that raises."""

    class Key:
        def __init__(self, number):
            self.number = number

        def __hash__(self):
            return 1

        def __eq__(self, other):
            if is_armed:
                raise error
            return self is other

        def __str__(self):
            return f"key {self.number}"

    is_armed = False
    attributes = {Key(number): number for number in range(20)}
    for key in list(attributes)[:-2]:
        del attributes[key]
    is_armed = True
    return attributes


def test_take_survives_keys_that_cannot_be_compared(counts):
    """A key whose comparison raises costs nothing but itself."""
    assert {"key 18": 18, "key 19": 19} == take(dict_of_incomparable_keys(PanicError()), counts)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_stop_passes_through(error, counts):
    """What stops a program is never taken for a bad attribute."""

    class Keys(collections.abc.Mapping):
        __len__ = __iter__ = __getitem__ = None  # type: ignore[assignment]

        def items(self):
            raise error

    class Meta(type):
        def __hash__(cls):
            raise error

    with pytest.raises(error):
        take({"a": Hostile(error())}, counts)
    with pytest.raises(error):
        take(dict_of_incomparable_keys(error()), counts)
    with pytest.raises(error):
        take(Keys(), counts)
    with pytest.raises(error):
        take(Meta("Strange", (), {})(), counts)
    with pytest.raises(error):
        normalise([Hostile(error())], counts)
    assert 0 == counts.failed


def test_take_copies_deeply(counts):
    """What the caller changes later changes nothing that was taken."""
    inner = [1, {"b": 2}]
    taken = take({"a": inner}, counts)
    inner[1]["b"] = 3
    inner.append(4)
    assert {"a": [1, {"b": 2}]} == taken


def test_nested_attributes_do_not_starve_those_after_them(counts):
    """The shared bounds are for what is nested: a plain attribute after a huge one is whole."""
    taken = take({"huge": [["x" * MAX_CHARS] * MAX_ITEMS] * MAX_ITEMS, "text": "y" * MAX_CHARS}, counts)
    assert "y" * MAX_CHARS == taken["text"]
    assert len(json.dumps(taken["huge"])) < 2 * MAX_NESTED_CHARS


def test_a_dict_written_to_by_another_thread_is_taken(counts):
    """Another thread may write to the dict all the time: nothing raises, nothing is torn."""
    attributes: dict[str, object] = {"a": 1}
    has_ended = threading.Event()

    def write():
        number = 0
        while not has_ended.is_set():
            number = (number + 1) % 50
            attributes[f"k{number}"] = [number]
            attributes.pop(f"k{(number + 25) % 50}", None)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2_000):
            assert 1 == take(attributes, counts)["a"]
    finally:
        has_ended.set()
        writer.join()
    assert 0 == counts.failed


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a", "a"),
        (" a ", " a "),
        ("", BLANK_KEY),
        (" \t\n", BLANK_KEY),
        (1, "1"),
        (None, "None"),
        (True, "True"),
        ((1, "a"), "[1, 'a']"),
        (b"ab", "ab"),
        (Colour.RED, "red"),
        ("\udcff", "\\udcff"),
        (Hostile(), "<unprintable Hostile>"),
        ("k" * MAX_KEY_CHARS, "k" * MAX_KEY_CHARS),
        ("k" * (MAX_KEY_CHARS + 1), "k" * (MAX_KEY_CHARS - 1) + ELLIPSIS),
    ],
    ids=kind_of,
)
def test_keys_become_short_strings(key, expected, counts):
    """A key of any kind becomes a string that is neither blank nor long, at the top, nested and alone."""
    assert {expected: 1} == take({key: 1}, counts)
    assert {expected: 1} == normalise({key: 1}, counts)
    assert expected == normalise_key(key, counts)


def test_keys_of_a_subclass_of_str_become_exact(counts):
    """No object of a user's class stays behind as a key, not even where an equal plain key was seen before."""

    class Key(str):
        __slots__ = ()

    taken = take({"epoch": 0}, counts) and take({Key("epoch"): 1}, counts)
    assert [str] == [type(key) for key in taken]


def test_of_keys_that_become_equal_the_first_is_kept(counts):
    """An attribute whose key is taken is dropped and counted, at the top and nested."""
    assert {"1": "a"} == take({1: "a", "1": "b"}, counts)
    assert 1 == counts.dropped
    assert {"1": "a"} == normalise({1: "a", "1": "b"}, counts)
    assert 2 == counts.dropped


def test_the_cache_of_keys_is_bounded(counts, monkeypatch):
    """A program that makes up keys for ever costs time and not memory."""
    seen = set()
    for module in (_attributes, _plain_values):
        monkeypatch.setattr(module, "plain_keys", seen)
    monkeypatch.setattr(_plain_values, "_MAX_PLAIN_KEYS", 10)
    for number in range(50):
        assert {f"k{number}": 1} == take({f"k{number}": 1}, counts)
    assert 10 == len(seen)


# --- put --------------------------------------------------------------------------------------------------------------


def test_put_sets_one_attribute(counts):
    """A late attribute is made plain like an early one."""
    attributes = take({}, counts)
    for key, value in (("a", 1.5), ("b", True), ("c", 2**64), (3, [Colour.RED]), ("a", 2.5)):
        put(attributes, key, value, counts)
    assert {"a": 2.5, "b": True, "c": str(2**64), "3": ["red"]} == attributes


def test_put_keeps_the_limit(counts):
    """A new attribute beyond the limit is dropped and counted, a new value of an old one is not."""
    attributes = take({str(number): number for number in range(MAX_ATTRIBUTES)}, counts)
    put(attributes, "late", 1, counts)
    put(attributes, "0", "changed", counts)
    assert MAX_ATTRIBUTES == len(attributes)
    assert "changed" == attributes["0"]
    assert (0, 1, 0) == counted(counts)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (-0.0, -0.0),
        (math.inf, math.inf),
        (Level.HIGH, 2),
        (Colour.RED, "red"),
        (type("Count", (int,), {})(7), 7),
        (type("Rate", (float,), {})(0.5), 0.5),
        (type("Name", (str,), {"__str__": lambda self: "lie"})("n"), "n"),
        ("", ""),
        ("\ud83d\ude00 \U0001f600", "\\ud83d\\ude00 \U0001f600"),
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        (bytearray(b"ab"), "ab"),
        (memoryview(b"ab"), "ab"),
        (memoryview(b"abcd").cast("B", (2, 2)), "<memoryview shape=(2, 2)>"),
        (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2026-01-02T03:04:05+00:00"),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (dt.time(1, 2), "01:02:00"),
        (dt.timedelta(seconds=90), "0:01:30"),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.50"), "1.50"),
        (fractions.Fraction(1, 3), "1/3"),
        (1 + 2j, "(1+2j)"),
        (ValueError("bad"), "ValueError: bad"),
        (PanicError(), "PanicError: "),
        (Colour, f"{__name__}.Colour"),
        (HostileClass, f"{__name__}.HostileClass"),
        (len, "builtins.len"),
        (Point(1, [2]), {"x": 1, "y": [2]}),
        (Config(0.1), {"rate": 0.1, "device": "cuda"}),
        (Shape(3), {"width": 3}),
        ((1, (2,)), [1, [2]]),
        (collections.deque([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        (array.array("i", [1, 2]), [1, 2]),
        ({"b": 1}.keys(), ["b"]),
        ({"b": 1}.values(), [1]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (iter([1]), "<list_iterator>"),
        ((item for item in [1]), "<generator>"),
        (types.SimpleNamespace(a=1), "namespace(a=1)"),
    ],
    ids=kind_of,
)
def test_values_become_plain(value, expected, counts):
    """Each kind of value has its plain form, of exactly the plain types."""
    plain = normalise(value, counts)
    assert (expected, type(expected)) == (plain, type(plain))
    assert (0, 0, 0) == counted(counts)


def test_negative_zero_keeps_its_sign(counts):
    """Not even the sign of a zero is lost."""
    assert -1.0 == math.copysign(1, normalise(type("Rate", (float,), {})(-0.0), counts))


@pytest.mark.parametrize("error", [RuntimeError("no"), PanicError(), GeneratorExit(), RecursionError(), MemoryError()])
def test_what_raises_is_unprintable(error, counts):
    """An object whose every method raises, with whatever error, becomes its type's name, and is counted."""
    assert ["<unprintable Hostile>", 1] == normalise([Hostile(error), 1], counts)
    assert (0, 0, 1) == counted(counts)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (HostileList(), "<unprintable HostileList>"),
        (HostileMapping(), "<unprintable HostileMapping>"),
        (Colour.LOST, "<unprintable Unprintable>"),
        (type("NoText", (), {"__str__": lambda self: 1})(), "<unprintable NoText>"),
        (type("Error", (ValueError,), {"__str__": lambda self: 1 / 0})(), "<unprintable Error>"),
        (type("T" * 100, (), {"__str__": None})(), f"<unprintable {'T' * 63}{ELLIPSIS}>"),
    ],
    ids=kind_of,
)
def test_what_raises_does_so_harmlessly(value, expected, counts):
    """Wherever the error arises, the value becomes its type's name, and is counted."""
    assert expected == normalise(value, counts)
    assert 1 == counts.failed


def test_an_object_with_a_strange_class_is_printed(counts):
    """A class that cannot be hashed is no reason to give up on its instances."""
    assert "HostileClass object at" in normalise(HostileClass(), counts)


def test_a_field_that_was_never_set_is_left_out(counts):
    """One field that cannot be read does not cost the others."""
    config = Config(0.1)
    del config.rate
    assert {"device": "cuda"} == normalise(config, counts)
    assert (0, 0, 1) == counted(counts)


def test_iterators_are_not_consumed(counts):
    """A generator given as an attribute still gives all its items."""
    generator = (item for item in range(3))
    normalise([generator, {"g": generator}], counts)
    assert [0, 1, 2] == list(generator)


def test_a_bytearray_stays_free_to_grow(counts):
    """No view of a bytearray is taken: its owner may be growing it in another thread."""
    data = bytearray(b"a" * 100_000)

    class Growing(bytearray):
        def __getitem__(self, key):
            raise AssertionError

    assert MAX_CHARS == len(normalise(data, counts))
    assert MAX_CHARS == len(normalise(Growing(data), counts))
    data.extend(b"b")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("character", ["a", "é", "€", "😀"])
def test_bytes_are_cut_between_characters(kind, character, counts):
    """Cutting long bytes leaves no half of a character behind, and is counted."""
    text = normalise(kind((character * (5 * MAX_CHARS)).encode()), counts)
    assert character * (MAX_CHARS - 1) + ELLIPSIS == text
    assert (1, 0, 0) == counted(counts)


def test_bytes_that_just_fit_are_whole(counts):
    """As many characters as the limit are kept, however many bytes they have."""
    assert "😀" * MAX_CHARS == normalise(("😀" * MAX_CHARS).encode(), counts)
    assert 0 == counts.truncated


def test_strings_grown_by_escapes_are_cut(counts):
    """Escaping lone surrogates makes a string longer, and the limit holds all the same."""
    assert MAX_CHARS == len(normalise("\ud800" * MAX_CHARS, counts))
    assert 1 == counts.truncated


@pytest.mark.parametrize(("bits", "is_cut"), [(2_047, False), (100_000, True)])
def test_huge_integers_are_strings(bits, is_cut, counts):
    """An integer too big to print at all is described."""
    number = 2**bits
    assert (f"<int of {bits + 1} bits>" if is_cut else str(number)) == normalise(number, counts)
    assert int(is_cut) == counts.truncated


@pytest.mark.parametrize("make", [list, tuple, set, dict.fromkeys, collections.deque], ids=kind_of)
def test_long_containers_are_cut(make, counts):
    """Of each container the first items are kept, and the cut is counted."""
    assert MAX_ITEMS == len(normalise(make(range(MAX_ITEMS + 1)), counts))
    assert (1, 0, 0) == counted(counts)


def test_named_tuples_with_many_fields_are_cut(counts):
    """A wide record is bounded like any container."""
    wide = NamedTuple("Wide", [(f"f{number}", int) for number in range(MAX_ITEMS + 9)])
    assert MAX_ITEMS == len(normalise(wide(*range(MAX_ITEMS + 9)), counts))
    assert 1 == counts.truncated


def test_deep_containers_are_cut(counts):
    """Nesting ends at the limit with the name of what was there."""
    deep: object = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    plain = normalise(deep, counts)
    for _ in range(MAX_DEPTH):
        (plain,) = plain
    assert f"<list {ELLIPSIS}>" == plain
    assert (1, 0, 0) == counted(counts)


def test_containers_within_the_depth_are_whole(counts):
    """Nesting up to the limit is kept."""
    deep: object = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert deep == normalise(deep, counts)
    assert 0 == counts.truncated


def test_containers_that_hold_themselves_end(counts):
    """A circle is cut where it closes; a value that merely stands twice is shown twice."""
    circle: list[object] = []
    twice = {"a": 1}
    circle.extend([twice, twice, circle])
    assert [twice, twice, f"<list {ELLIPSIS}>"] == normalise(circle, counts)
    assert 1 == counts.truncated


def test_the_number_of_nodes_is_bounded(counts):
    """Width times depth cannot multiply: all containers together share one budget."""
    plain = normalise([[0] * MAX_ITEMS] * MAX_ITEMS, counts)
    assert MAX_NODES == nodes(plain)
    assert counts.truncated > 0


def nodes(plain: object) -> int:
    """Return how many values stand inside a plain value."""
    if isinstance(plain, dict):
        plain = list(plain.values())
    return len(plain) + sum(map(nodes, plain)) if isinstance(plain, list) else 0


def test_the_text_of_unreadable_fields_is_bounded(counts):
    """`__str__` may return a gigantic string, and it is cut."""
    assert MAX_CHARS == len(normalise(type("Huge", (), {"__str__": lambda self: "x" * 1_000_000})(), counts))
    assert 1 == counts.truncated


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(-3), -3),
        (np.uint64(2**64 - 1), str(2**64 - 1)),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), "a"),
        (np.complex64(1j), "1j"),
        (np.longdouble(0.5), "0.5"),
        (np.datetime64("2026-01-02T03:04:05", "ns"), "2026-01-02T03:04:05.000000000"),
        (np.array(1.5), 1.5),
        (np.array([[7]]), 7),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([]), []),
        (np.zeros((100, 20), dtype=np.float32), "<ndarray shape=(100, 20) dtype=float32"),
    ],
    ids=kind_of,
)
def test_numpy_values_become_plain(value, expected, counts):
    """Scalars become numbers, short arrays lists, long ones a description."""
    plain = normalise(value, counts)
    # Since numpy 2 an array has a device.
    assert expected == (plain.split(" device=")[0].rstrip(">") if str(plain).startswith("<") else plain)
    assert 0 == counts.failed


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (Tensor(), 1.5),
        (Tensor([1, 2], shape=(2,)), [1, 2]),
        (Tensor(2, device="cpu"), 2),
        (Tensor(2, device="/job:localhost/replica:0/task:0/device:CPU:0"), 2),
        (Tensor(2, device=types.SimpleNamespace(platform="cpu"), is_ready=lambda self: True), 2),
    ],
    ids=kind_of,
)
def test_small_tensors_on_the_cpu_are_read(tensor, expected, counts):
    """A tensor that says it is on the CPU, as any library says it, is read once."""
    assert expected == normalise(tensor, counts)
    assert 1 == tensor.reads


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (Tensor(device=Device("cuda")), "<Tensor shape=() dtype=float32 device=cuda:0>"),
        (Tensor(device=Device("meta")), "<Tensor shape=() dtype=float32 device=meta:0>"),
        (Tensor(device="cuda:0"), "<Tensor shape=() dtype=float32 device=cuda:0>"),
        (Tensor(device=lambda: "cpu"), "<Tensor shape=() dtype=float32"),
        (Tensor(shape=(33,)), "<Tensor shape=(33,) dtype=float32 device=cpu:0>"),
        (Tensor(shape="?"), "<Tensor shape=? dtype=float32 device=cpu:0>"),
        (Tensor(device_mesh="ranks"), "<Tensor shape=() dtype=float32 device=cpu:0>"),
        (Tensor(is_ready=lambda self: False), "<Tensor shape=() dtype=float32 device=cpu:0>"),
        (Tensor(dtype=Hostile()), "<Tensor shape=() device=cpu:0>"),
        (Tensor(shape=(1,) * 40), f"<Tensor shape={str((1,) * 32)[:64]} dtype=float32 device=cpu:0>"),
    ],
    ids=kind_of,
)
def test_tensors_that_would_have_to_be_waited_for_are_described(tensor, expected, counts):
    """A tensor on an accelerator, spread over ranks, not yet computed or big is described and never read."""
    if isinstance(tensor.dtype, Hostile) or tensor.shape == (1,) * 40:
        tensor.__class__.device_mesh = "ranks"
    assert normalise([tensor], counts)[0].startswith(expected)
    assert 0 == tensor.reads


def test_arrays_that_no_host_memory_vouches_for_are_described(counts):
    """An array without a device is read only if it offers its memory as numpy does."""
    lazy = type("Lazy", (), {"shape": (), "dtype": "f4", "item": lambda self: 1 / 0})()
    assert "<Lazy shape=() dtype=f4>" == normalise(lazy, counts)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_tensors_that_refuse_to_be_read_are_described(shape, counts):
    """Sparse, fake and traced tensors raise on item(): their description does."""
    assert normalise(Tensor(RuntimeError("fake"), shape=shape), counts).startswith("<Tensor shape=")


def test_objects_on_an_accelerator_are_not_printed(counts):
    """Printing a module or a batch could read its tensors, so it is described by its device."""
    module = type("Batch", (), {"__str__": lambda self: 1 / 0})()
    module.device = "cuda:1"
    assert "<Batch device=cuda:1>" == normalise(module, counts)
    module.device = "cpu"
    assert "<unprintable Batch>" == normalise(module, counts)


# --- OpenTelemetry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], ()),
        ([1, 2], (1, 2)),
        ([True, False], (True, False)),
        (["a", "b"], ("a", "b")),
        ([1, 0.5], (1.0, 0.5)),
        ([math.inf, 0.5], (math.inf, 0.5)),
        ([True, 1], "[true,1]"),
        ([1, "é"], '[1,"é"]'),
        ([None, 1], "[null,1]"),
        ([[1], [2]], "[[1],[2]]"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (
            {"a": [math.nan, math.inf, -math.inf, 1.5], "b": "x", "c": None},
            '{"a":["NaN","Infinity","-Infinity",1.5],"b":"x","c":null}',
        ),
        (1.5, 1.5),
    ],
)
def test_values_as_opentelemetry_takes_them(value, expected, counts):
    """Lists of one type become tuples, all else that is nested JSON without NaN."""
    converted = to_otel({"n": None, "v": value}, counts)
    assert {"v": expected} == converted
    assert type(expected) is type(converted["v"])
    assert [type(item) for item in expected] == [type(item) for item in converted["v"]] if expected == () else True
    assert (0, 0, 0) == counted(counts)


def test_mixed_numbers_are_all_floats(counts):
    """OpenTelemetry refuses sequences of two types, so integers among floats become floats."""
    assert [float, float] == [type(item) for item in to_otel({"v": [1, 0.5]}, counts)["v"]]


def test_plain_attributes_pass_as_they_are(counts):
    """Primitives need no conversion, only a copy."""
    attributes = {"a": 1, "b": "x", "c": True, "d": 0.5}
    converted = to_otel(attributes, counts)
    assert attributes == converted
    assert converted is not attributes


def test_long_json_is_cut(counts):
    """A huge nested value is bounded for the backend too, and counted."""
    text = to_otel({"v": [["x" * MAX_JSON_CHARS]]}, counts)["v"]
    assert MAX_JSON_CHARS == len(text)
    assert text.endswith(ELLIPSIS)
    assert 1 == counts.truncated


# --- anything at all --------------------------------------------------------------------------------------------------

# Hypothesis prints and compares what it draws, which hostile objects do not bear: so it draws recipes.
MAKE_LEAF = {
    "hostile": Hostile,
    "panics": lambda: Hostile(PanicError()),
    "list": HostileList,
    "mapping": HostileMapping,
    "instance": HostileClass,
    "class": lambda: HostileClass,
    "member": lambda: Colour.LOST,
    "flag": lambda: Level.LOW | Level.HIGH,
    "remote": lambda: Tensor(device=Device("cuda")),
    "broken": lambda: Tensor(PanicError()),
    "number": lambda: np.float32("nan"),
    "array": lambda: np.zeros(1_000),
    "objects": lambda: np.array([Unprintable()], dtype=object),
    "iterator": lambda: iter([1]),
    "partial": lambda: functools.partial(print),
    "huge": lambda: 10**5_000,
    "text": lambda: "\udcff" * 5_000,
}
MAKE_CONTAINER = {
    "list": list,
    "tuple": tuple,
    "deque": collections.deque,
    "many": lambda items: items * 200,
    "dict": lambda items: dict(enumerate(items)),
    "identities": lambda items: {id(item): item for item in items},
    "point": lambda items: Point(items, items),
    "config": Config,
    "error": lambda items: ValueError(*items),
    "circle": lambda items: [items.append(items), items],
}
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec=None, exclude_categories=())),
    st.binary(),
    st.dates(),
    st.complex_numbers(),
    st.uuids(),
    st.sampled_from(sorted(MAKE_LEAF)).map(lambda name: ("leaf", name)),
)
recipes = st.recursive(
    leaves, lambda inner: st.tuples(st.sampled_from(sorted(MAKE_CONTAINER)), st.lists(inner)), max_leaves=30
)


def made(recipe: object) -> object:
    """Return what a recipe describes."""
    if not isinstance(recipe, tuple):
        return recipe
    name, parts = recipe
    return MAKE_LEAF[parts]() if name == "leaf" else MAKE_CONTAINER[name](list(map(made, parts)))


def is_plain(value: object) -> bool:
    """Return whether a value consists of the plain types alone."""
    if type(value) is list:
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    return value is None or type(value) in {bool, int, float, str}


@settings(max_examples=150)
@given(st.lists(st.tuples(leaves, recipes)))
def test_whatever_comes_in_plain_and_bounded_values_come_out(recipe):
    """Nothing raises, everything that comes out can be written as JSON in UTF-8 and is bounded."""
    counts = AttributeCounts()
    attributes = {}
    for key, value in recipe:
        made_key = made(key)
        attributes[made_key if type(made_key).__hash__ else id(made_key)] = made(value)
    taken = take(attributes, counts)
    assert is_plain(taken)
    text = json.dumps(taken, ensure_ascii=False).encode()
    assert taken == json.loads(text) or b"NaN" in text
    assert len(attributes) <= len(taken) + counts.dropped
    # At worst a character takes six bytes: an escaped control character.
    most_chars = MAX_ATTRIBUTES * (MAX_CHARS + MAX_KEY_CHARS) + MAX_NESTED_CHARS + MAX_NODES * MAX_KEY_CHARS
    assert len(text) <= 6 * most_chars
    for value in to_otel(taken, counts).values():
        assert type(value) in {bool, int, float, str} or len({type(item) for item in value}) <= 1


@pytest.fixture
def redactor() -> Redactor:
    """Return what knows one credential of the environment."""
    return Redactor(environ={"A_TOKEN": "correct-horse"})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("api_key", "x1", REDACTED),
        ("api_key", b"x2", REDACTED),
        ("api_keys", ["x1", {"a": "x2", "b": 3}], REDACTED),
        ("token_count", 3, 3),
        ("pwd", 3, REDACTED),
        ("pwd", 3.5, REDACTED),
        ("auth_token", True, REDACTED),
        ("secret", {"pin": 4711}, REDACTED),
        ("secret", {}, {}),
        ("password", None, None),
        ("note", "adam", "adam"),
        ("note", "is correct-horse", f"is {REDACTED}"),
        ("note", "ü correct-horse", f"ü {REDACTED}"),
        ("note", ValueError("correct-horse"), f"ValueError: {REDACTED}"),
        (
            "note",
            {"deep": [{"client_secret": "x1"}, "password=x1"]},
            {"deep": [{"client_secret": REDACTED}, f"password={REDACTED}"]},
        ),
        ("note", "." * (MAX_CHARS - 4) + " correct-horse", "." * (MAX_CHARS - 4) + " [r" + ELLIPSIS),
        ("note", "." * (MAX_CHARS - 12) + " password=x1", "." * (MAX_CHARS - 12) + " password=[" + ELLIPSIS),
    ],
)
def test_secrets_are_not_taken(
    counts: AttributeCounts, redactor: Redactor, key: str, value: Any, expected: Any
) -> None:
    """By key and by value, at enter and later, at once and again, however deep."""
    late: dict[str, Any] = {}
    put(late, key, value, counts, redactor)
    assert {key: expected} == late
    for _ in range(2):
        assert {key: expected} == take({key: value}, counts, redactor)
        assert {"lr": 0.5, key: expected} == take({"lr": 0.5, key: value}, counts, redactor)


def test_secrets_of_fields_are_not_taken(counts: AttributeCounts, redactor: Redactor) -> None:
    """A configuration object's fields are keys like others."""
    login = attrs.make_class("Login", ["user", "password"])
    assert {"login": {"user": "bob", "password": REDACTED}} == take({"login": login("bob", "x1")}, counts, redactor)


def test_keys_deep_inside_lose_secrets(counts: AttributeCounts, redactor: Redactor) -> None:
    """They are data, as in orders by customer; two that are the same then are one, and that is counted."""
    orders = {"correct-horse": {"password": "x1"}, "bob": {"correct-horse ": 2}}
    expected = {REDACTED: {"password": REDACTED}, "bob": {f"{REDACTED} ": 2}}
    assert {"orders": expected} == take({"orders": orders}, counts, redactor)
    assert {"orders": {REDACTED: 1}} == take({"orders": {"correct-horse": 1, REDACTED: 2}}, counts, redactor)
    assert 1 == counts.dropped


def test_a_text_full_of_secrets_is_cut_and_counted(counts: AttributeCounts, redactor: Redactor) -> None:
    """What is left of it may be short; that much of it was not looked at is counted all the same."""
    taken = take({"note": "correct-horse " * 2_000}, counts, redactor)
    assert taken["note"].endswith(ELLIPSIS)
    assert 1 == counts.truncated


def test_without_a_redactor_all_is_taken(counts: AttributeCounts) -> None:
    """A recorder by itself stores and sends nothing, so its caller gets what it gave."""
    assert {"api_key": "x1"} == take({"api_key": "x1"}, counts)
