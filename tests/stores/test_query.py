"""Questions: patterns of paths, values that a command line gives, near names."""

from __future__ import annotations

import pytest

from stormphase import ConfigurationError
from stormphase.stores import RecordQuery
from stormphase.stores._query import is_value, near_names


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("train", ("train",), True),
        ("train / step", ("train", "step"), True),
        ("train/step", ("train", "step"), True),
        ("train/*", ("train", "step", "load"), True),
        ("train/*", ("train",), False),
        ("step", ("train", "step"), True),
        ("st?p", ("train", "step"), True),
        ("train", ("train", "step"), False),
        ("*/load", ("train", "step", "load"), True),
        ("[ab]", ("b",), True),
        ("Train", ("train",), False),
        ("*", (), False),
        (("train", "step"), ("train", "step"), True),
        (["train"], ("train", "step"), False),
        (None, (), True),
    ],
)
def test_paths_are_matched_as_people_write_them(pattern, path, expected):
    """Blanks around "/" do not matter, "*" runs over it, and a name alone stands for any path that ends in it."""
    assert expected == RecordQuery(path=pattern).matches_path(path)


@pytest.mark.parametrize(
    ("actual", "wanted", "expected"),
    [
        (1, 1, True),
        (1, "1", True),
        (1.5, "1.50", True),
        (10**18 + 1, "1000000000000000001", True),
        (1, "one", False),
        (1, True, False),
        (True, True, True),
        (True, "true", True),
        (True, "TRUE", True),
        (False, "0", True),
        (True, "2", False),
        ("1", 1, False),
        ("1", "1", True),
        ("a", "A", False),
        (None, "none", True),
        (None, None, True),
        (None, "x", False),
        ([1], [1], True),
        ([1], "[1]", False),
    ],
    ids=repr,
)
def test_a_string_may_stand_for_a_number(actual, wanted, expected):
    """A command line has only strings; what is no string is compared as it is, and true is no 1."""
    assert expected == is_value(actual, wanted)


@pytest.mark.parametrize(("setting", "value"), [("status", "done"), ("kind", "thread"), ("status", ["failed", "x"])])
def test_an_unknown_word_lists_the_known(setting, value):
    """The error names what may be written."""
    with pytest.raises(ConfigurationError, match=f'Write {setting}="'):
        RecordQuery(**{setting: value})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trian / step", ["train / step"]),
        ("LOAD", ["load"]),
        ("step", ["train / step"]),
        ("zzzz", []),
    ],
)
def test_near_names_are_found(name, expected):
    """Slips, another case, and a part of a name."""
    assert expected == near_names(name, ["train", "train / step", "load"])
