"""Records as JSON: a path that many share is spelt out once, and nobody sees that."""

from __future__ import annotations

import gc
import json

import attrs
import pytest

from stormphase._record import FIELDS, dumps_ascii
from stormphase._store_conformance import example_record
from stormphase.cli import main
from stormphase.cli._record_texts import RecordTexts

LONG = tuple(f"n\\{number}\u2028" for number in range(1_000))


@pytest.mark.parametrize("sort_keys", [False, True])
@pytest.mark.parametrize("cause", [None, (), ("a",), LONG])
@pytest.mark.parametrize("path", [("a",), LONG])
def test_it_is_what_json_says(path, cause, sort_keys):
    """To the byte, also where a path comes again, with keys in either order and attributes named as fields are."""
    record = example_record(path=path, attributes={"path": [], "x": float("nan")})
    records = [attrs.evolve(record, root_cause_path=cause), record, attrs.evolve(record, path=tuple(path))]
    texts = RecordTexts(sort_keys=sort_keys)
    for each in records * 2:
        text = texts.text(each)
        assert dumps_ascii(each.to_dict(), sort_keys=sort_keys) == text
        assert (sorted(FIELDS) if sort_keys else list(FIELDS)) == list(json.loads(text))


def test_no_more_paths_are_kept_than_fit(monkeypatch):
    """However many there are, each is right."""
    monkeypatch.setattr("stormphase.cli._record_texts._KEPT_CHARS", 20_000)
    texts = RecordTexts()
    for number in range(10):
        path = (*LONG, str(number))
        assert list(path) == json.loads(texts.text(example_record(path=path)))["path"]


def test_the_collector_is_left_as_it_was(tmp_path):
    """By whoever runs a command within a program."""
    before = gc.get_threshold()
    main(["records", str(tmp_path)])
    assert before == gc.get_threshold()
