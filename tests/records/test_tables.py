"""Records as Arrow tables and DataFrames."""

from __future__ import annotations

import sys

import pytest

from stormphase import ConfigurationError
from stormphase._record import FIELDS, OutputLine
from stormphase._store_conformance import as_ended, example_record
from stormphase.records import to_arrow, to_pandas

RECORDS = [
    as_ended(
        example_record(attributes={"loss": 0.5, "best": True, "n": 1, "odd": "a", "status": "mine"}, step=3),
        output=(OutputLine(5, "stdout", "hello"),),
    ),
    example_record(attributes={"loss": 1, "odd": 2, "nested": {"a": [1]}, "Loss": None}, process=None, path=("x",)),
]


def test_an_arrow_table_has_the_names_of_records_and_attributes():
    """Typed, with null where something is absent, and none of ours taken by a user's."""
    table = to_arrow(RECORDS)
    names = [name for name in FIELDS if name != "attributes"]
    assert [*names, "attr_loss", "attr_best", "attr_n", "attr_odd", "attr_status", "attr_nested", "attr_Loss_2"] == (
        table.column_names
    )
    first, second = table.to_pylist()
    assert (["train", "step"], "succeeded", 3, 1_000_000, "mine") == tuple(
        first[name] for name in ("path", "status", "step", "duration_ns", "attr_status")
    )
    assert [{"time_ns": 5, "stream": "stdout", "text": "hello"}] == first["output"]
    assert ("node-1", None, None, None) == (
        first["process"]["host"],
        second["process"],
        second["step"],
        second["ended_ns"],
    )
    assert [(0.5, 1.0), (True, None), (1, None), ("a", "2"), (None, '{"a":[1]}'), (None, None)] == [
        (first[name], second[name])
        for name in ("attr_loss", "attr_best", "attr_n", "attr_odd", "attr_nested", "attr_Loss_2")
    ]


def test_output_that_nobody_knows_is_null():
    """And output of which there was none is an empty list."""
    records = [example_record(), example_record(output=None)]
    assert [[], None] == to_arrow(records).column("output").to_pylist()


def test_no_records_are_an_empty_table():
    """With all columns of ours, so that what reads it later needs no special case."""
    table = to_arrow([])
    assert (0, len(FIELDS) - 1) == (table.num_rows, table.num_columns)


def test_half_a_surrogate_pair_becomes_its_escape():
    """Names and values may come from files' names, and Arrow's texts are UTF-8."""
    odd = example_record(path=("a\udcff",), attributes={"k\udcff": ["b\udcff"]}, thread_name="t\udcff")
    (row,) = to_arrow([odd]).to_pylist()
    assert (["a\\udcff"], "t\\udcff", '["b\\\\udcff"]') == (row["path"], row["thread_name"], row["attr_k\\udcff"])


def test_a_step_beyond_64_bits_is_null():
    """Arrow's whole numbers end there."""
    assert [None] == to_arrow([example_record(step=1 << 70)]).column("step").to_pylist()


def test_whole_numbers_stay_whole_in_pandas():
    """A column with an absent one is not made one of floats."""
    frame = to_pandas(RECORDS)
    assert ("Int64", 3) == (str(frame["step"].dtype), frame["step"][0])
    assert frame["step"].isna()[1]
    assert "boolean" == str(frame["attr_best"].dtype)


@pytest.mark.parametrize(("package", "call"), [("pyarrow", to_arrow), ("pandas", to_pandas)])
def test_without_the_extra_the_error_names_it(monkeypatch, package, call):
    """What to install."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'stormphase\[arrow\]'"):
        call(RECORDS)
