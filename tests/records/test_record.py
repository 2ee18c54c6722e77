"""Records: what they say, and JSON both ways."""

from __future__ import annotations

import copy
import json
import math
import pickle

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase._model import PhaseStatus, ProcessIdentity
from stormphase._record import FIELDS, SCHEMA_VERSION, OutputLine, PhaseRecord, RecordKind

PROCESS = ProcessIdentity(host="node-1", boot_id="b", pid=7, started=42, pid_namespace=None)
FAILED = PhaseRecord(
    session_id="s",
    session_attempt=1,
    correlation_id="c",
    rank=3,
    scope_id="00000000000000ab",
    parent_scope_id="00000000000000aa",
    path=("train", "step"),
    sequence=2,
    attempt=1,
    retry_of_scope_id="00000000000000a9",
    step=17,
    status=PhaseStatus.FAILED,
    entered_ns=1_000,
    ended_ns=1_042,
    entered_monotonic_ns=0,
    ended_monotonic_ns=42,
    self_ns=40,
    paused_ns=2,
    thread_id=5,
    thread_name="MainThread",
    task_name="Task-1",
    attributes={"loss": 0.5, "tags": ["a", None]},
    error_type="ValueError",
    error_message="bad \udcff".encode("utf-8", "backslashreplace").decode(),
    traceback="Traceback ...",
    root_cause_scope_id="00000000000000ab",
    root_cause_path=("train", "step"),
    process=PROCESS,
    output=(OutputLine(1_001, "stdout", "x"),),
)
OPEN = PhaseRecord(
    session_id="s", rank=0, scope_id="0" * 16, path=("a",), sequence=1, status=PhaseStatus.ACTIVE, entered_ns=5
)


def test_a_record_says_what_follows_from_the_rest():
    """Name, path as people read it, depth, duration and key need no field of their own."""
    assert ("step", "train / step", 2, 42, True) == (
        FAILED.name,
        FAILED.path_text,
        FAILED.depth,
        FAILED.duration_ns,
        FAILED.is_ended,
    )
    assert ("s", 1, "00000000000000ab") == FAILED.key
    assert (None, False) == (OPEN.duration_ns, OPEN.is_ended)
    session = attrs.evolve(OPEN, kind=RecordKind.SESSION, rank=None, path=())
    assert ("session", "session", 0) == (session.name, session.path_text, session.depth)
    assert "session" == f"{session.kind}"


def test_a_record_is_frozen():
    """Nobody changes a story that others read."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        FAILED.status = PhaseStatus.SUCCEEDED


def test_json_has_the_names_that_the_documentation_promises():
    """One object on one line, lists for paths, lower-case statuses, and a schema version first."""
    fields = json.loads(FAILED.to_json())
    assert list(FIELDS) == list(fields)
    assert "\n" not in FAILED.to_json()
    assert (
        SCHEMA_VERSION,
        "phase",
        ["train", "step"],
        "failed",
        42,
        [{"time_ns": 1_001, "stream": "stdout", "text": "x"}],
    ) == tuple(fields[name] for name in ("schema_version", "kind", "path", "status", "duration_ns", "output"))
    assert {"host": "node-1", "boot_id": "b", "pid": 7, "started": 42, "pid_namespace": None} == fields["process"]


@pytest.mark.parametrize("record", [FAILED, OPEN], ids=["failed", "open"])
def test_a_record_comes_back_from_json_as_it_was(record):
    """Through JSON, a dict, a pickle and a copy."""
    assert record == PhaseRecord.from_json(record.to_json())
    assert record == PhaseRecord.from_dict(record.to_dict())
    assert record == pickle.loads(pickle.dumps(attrs.evolve(record, attributes=dict(record.attributes))))  # noqa: S301
    assert record == copy.copy(record)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES, max_size=4),
    st.lists(st.text(st.characters(codec="utf-8"))),
)
def test_any_attributes_and_names_come_back_from_json(attributes, names):
    """Whatever a user's attributes and names hold is the same after a round."""
    record = attrs.evolve(FAILED, attributes=attributes, path=tuple(names))
    assert record == PhaseRecord.from_json(record.to_json())


def test_what_json_says_can_be_written_as_utf_8():
    """A thread's or a job's name may hold what no file takes: it is escaped, and read back as it was."""
    record = attrs.evolve(FAILED, thread_name="t\ud800", attributes={"stormphase.session.name": "\udfffn"})
    text = record.to_json()
    assert record == PhaseRecord.from_json(text.encode("utf-8").decode("utf-8"))


def test_numbers_that_json_does_not_know_become_strings():
    """A loss may be NaN, and JSON that others can read has no NaN."""
    odd = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 1.5}
    text = attrs.evolve(FAILED, attributes=odd).to_json()
    assert {"a": "NaN", "b": ["Infinity", {"c": "-Infinity"}], "d": 1.5} == PhaseRecord.from_json(text).attributes
    with pytest.raises(ValueError, match="NaN is not JSON"):
        PhaseRecord.from_json(text.replace('"NaN"', "NaN"))


def test_fields_of_other_releases_are_left_out():
    """A field that this release does not know is no error while the schema is the same."""
    assert FAILED == PhaseRecord.from_dict({**FAILED.to_dict(), "something_new": 1})


def test_a_newer_schema_says_what_to_do():
    """Nobody guesses at a format of the future."""
    with pytest.raises(ValueError, match="Install a newer stormphase"):
        PhaseRecord.from_dict({**FAILED.to_dict(), "schema_version": SCHEMA_VERSION + 1})


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("name", "depth", "duration_ns")])
def test_a_missing_field_is_named(name):
    """Every field but those that follow from others must be there."""
    fields = FAILED.to_dict()
    del fields[name]
    with pytest.raises(ValueError, match=repr(name)):
        PhaseRecord.from_dict(fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schema_version", 0),
        ("schema_version", True),
        ("kind", "thread"),
        ("session_id", 5),
        ("session_attempt", -1),
        ("rank", "0"),
        ("scope_id", "abc"),
        ("scope_id", "0" * 15 + "G"),
        ("path", "train"),
        ("path", [1]),
        ("sequence", 1 << 40),
        ("sequence", None),
        ("step", 1.5),
        ("step", True),
        ("status", "done"),
        ("status", ["failed"]),
        ("entered_ns", None),
        ("ended_ns", 1 << 63),
        ("is_sync", 1),
        ("attributes", []),
        ("attributes", {1: 2}),
        ("root_cause_path", "x"),
        ("process", {"host": "a"}),
        ("process", {"host": 1, "boot_id": None, "pid": 1, "started": None, "pid_namespace": None}),
        ("output", "text"),
        ("output", ["text"]),
        ("output", [{"time_ns": 1, "stream": "stdout"}]),
        ("output", [{"time_ns": "1", "stream": "stdout", "text": ""}]),
    ],
)
def test_a_wrong_field_is_named(name, value):
    """What comes from a file is hostile: the message says which field is wrong and what it must be."""
    with pytest.raises(ValueError, match=f"'{name}.*must"):
        PhaseRecord.from_dict({**FAILED.to_dict(), name: value})


@pytest.mark.parametrize("text", ["", "[]", "5", "{", '{"schema_version": 1}', "[" * 100_000])
def test_what_is_no_record_is_refused(text):
    """Any text is read or refused with a ValueError, never anything else."""
    with pytest.raises(ValueError, match="record"):
        PhaseRecord.from_json(text)
