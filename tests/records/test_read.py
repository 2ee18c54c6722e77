"""Reading records: one question for a database, a directory of journals, a store and a list."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from stormphase._record import RecordKind
from stormphase._store_conformance import as_ended, example_record
from stormphase.exceptions import JournalError, StoreError, UnknownNameError
from stormphase.records import RecordQuery, attribute, latest_records, read_records
from stormphase.stores import MemoryStore, SqliteStore

RECORDS = [
    as_ended(example_record(path=("train",), attributes={"epoch": 1, "dataset": "a"})),
    as_ended(example_record(path=("train", "step"), attributes={"loss": 0.5})),
    example_record(path=("evaluate",), attributes={}),
]


@pytest.fixture(params=["file", "store", "memory", "list", "iterator"])
def source(request, tmp_path):
    """Return the same records in every place that they may be in."""
    if request.param == "list":
        return RECORDS
    if request.param == "iterator":
        return iter(RECORDS)
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "runs.db")
    store.begin(RECORDS[2:])
    store.end(RECORDS[:2])
    store.close()
    return str(store.path) if request.param == "file" else store


def test_every_source_answers_alike(source):
    """The very same records."""
    assert RECORDS == list(read_records(source))


def test_questions_are_asked_by_keywords_or_by_an_object(source):
    """But not by both."""
    with pytest.raises(TypeError, match="not by both"):
        read_records(source, RecordQuery(), rank=1)
    assert RECORDS[1:2] == list(read_records(source, path="train/*", where={"loss": "0.5"}))


@pytest.mark.parametrize(
    ("filters", "what", "near"),
    [
        ({"path": "trian"}, "path", ("train",)),
        ({"path": "train/setp"}, "path", ("train / step",)),
        ({"path": ("train", "stop")}, "path", ("train / step",)),
        ({"where": {"epcoh": 1}}, "attribute", ("epoch",)),
        ({"path": "zzzz"}, "path", ()),
        ({"where": {"qqqq": 1}}, "attribute", ()),
    ],
    ids=repr,
)
def test_an_unknown_name_lists_near_ones(source, filters, what, near):
    """A slip is no empty answer."""
    with pytest.raises(UnknownNameError, match=r"Near it are|There are") as raised:
        list(read_records(source, **filters))
    assert what == raised.value.what
    assert near == raised.value.near[: len(near)]


def test_where_nothing_is_an_unknown_name_says_so():
    """There is nothing to list."""
    with pytest.raises(UnknownNameError, match="none at all"):
        list(read_records([], path="train"))


def test_a_known_name_without_a_match_is_an_empty_answer(source):
    """The path is there, only not on that rank."""
    assert [] == list(read_records(source, path="train", rank=7))


def test_sessions_attributes_may_be_asked_for(tmp_path):
    """They are ours, and no column of the view."""
    store = SqliteStore(tmp_path / "runs.db")
    attributes = {"stormphase.world_size": 2}
    store.begin([example_record(kind=RecordKind.RANK, path=(), sequence=0, attributes=attributes)])
    assert 1 == len(list(read_records(store, where={"stormphase.world_size": 2})))


def test_nothing_at_a_path_is_an_error(tmp_path):
    """With what to give."""
    with pytest.raises(StoreError, match="Give the file of a SqliteStore, or the directory"):
        read_records(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "problem"), [("empty", "is an empty file"), ("", "No journal in")])
def test_a_place_without_any_records_is_an_error(tmp_path, name, problem):
    """An empty directory and an empty file are another place than the one that was meant: no empty answer."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("not ours")
    (tmp_path / "empty").touch()
    with pytest.raises(StoreError, match=f"{problem}.*Give the file of a SqliteStore, or the directory"):
        read_records(tmp_path / (name or "runs"))


def test_what_is_no_database_is_an_error(tmp_path):
    """And nothing is written into it."""
    file = tmp_path / "notes.txt"
    file.write_text("hello " * 1_000)
    with pytest.raises(StoreError, match="no SQLite database"):
        list(read_records(file))
    assert "hello " * 1_000 == file.read_text()


# --- the newest -------------------------------------------------------------------------------------------------------


def test_the_newest_of_each_path_and_tags():
    """History has all; of it the newest, by what was entered last, for each value of a tag, absence included."""
    history = [
        as_ended(example_record(path=("load",), attributes=attributes))
        for attributes in ({"dataset": "a"}, {"dataset": "b"}, {}, {"dataset": "a", "rows": 5}, {})
    ]
    assert [history[4]] == latest_records(reversed(history))
    assert [history[1], history[3], history[4]] == latest_records(history, ["dataset"])
    assert [] == latest_records([])


# --- journals ---------------------------------------------------------------------------------------------------------

STORY = """
import sys
from stormphase import PhaseTracker
from stormphase.stores import SqliteStore

options = {"bridge": None, "session_id": "s", "journal": sys.argv[1], "store": SqliteStore(sys.argv[2])}
with PhaseTracker("job", **options) as tracker:
    tracker.set_step(3)
    with tracker.enter_phase("train", {"epoch": 1}):
        try:
            with tracker.enter_phase("load") as load:
                load.set_attribute("rows", 10)
                raise ValueError("bad")
        except ValueError:
            pass
        with tracker.retry(load):
            pass
        with tracker.enter_phase("step", sync=True):
            if sys.argv[3] == "fail":
                raise RuntimeError("broken")
            if sys.argv[3] == "kill":
                assert tracker.flush(30)
                print("ready", flush=True)
                input()
"""
# What a journal does not keep, or keeps in another way.
UNLIKE = (
    "output",
    "correlation_id",
    "traceback",
    "ended_ns",
    "duration_ns",
    "ended_monotonic_ns",
    "evidence",
    "attributes",
)


def run_story(tmp_path, how):
    """Run the program, to its end or until it is killed; returns the directory and the database."""
    child = subprocess.Popen(
        [sys.executable, "-c", STORY, str(tmp_path / "journals"), str(tmp_path / "runs.db"), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    if how == "kill":
        assert b"ready\n" == child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    child.communicate()
    return tmp_path / "journals", tmp_path / "runs.db"


@pytest.mark.parametrize("how", ["end", "fail", "kill"])
def test_a_journal_tells_the_same_story_as_a_store(tmp_path, how):
    """The same records from both, of a program that ended and of one that was killed; and the same one is to blame."""
    journals, database = run_story(tmp_path, how)
    SqliteStore(database).close_lost()
    stories = []
    for source in (journals, database):
        found = {record.scope_id: record.to_dict() for record in read_records(source)}
        stories.append(
            {
                key: {name: value for name, value in fields.items() if name not in UNLIKE}
                for key, fields in found.items()
            }
        )
    from_journal, from_store = stories
    for fields in (*from_journal.values(), *from_store.values()):
        if fields["kind"] != "phase":
            fields["entered_ns"] = fields["entered_monotonic_ns"] = fields["process"] = None
    assert from_store == from_journal
    assert ["load"] + ["step"] * (how != "end") == sorted(
        failure.record.name for failure in attribute(read_records(journals)).failures
    )


def test_an_exception_outside_of_all_phases_is_the_ranks_own(run_python, tmp_path):
    """In a journal as in a store: the rank is its own root cause, and the session refers to the rank."""
    source = """
import sys
from stormphase import PhaseTracker
from stormphase.stores import SqliteStore

store = SqliteStore(sys.argv[1] + "/runs.db")
with PhaseTracker(session_id="s", bridge=None, journal=sys.argv[1] + "/runs", store=store):
    raise ValueError("bad")
"""
    run_python(source, str(tmp_path), check=False)
    for name in ("runs", "runs.db"):
        session, rank = read_records(tmp_path / name)
        assert {(rank.scope_id, "ValueError", None)} == {
            (record.root_cause_scope_id, record.error_type, record.root_cause_path) for record in (session, rank)
        }


FORKING = """
import os, sys
from stormphase import PhaseTracker

with PhaseTracker(session_id="s", bridge=None, journal=sys.argv[1]) as tracker:
    with tracker.enter_phase("train"):
        child = os.fork()
        if child == 0:
            tracker.enter_phase("in child").close()
            tracker.stop()
            os._exit(0)
        os.waitpid(child, 0)
    if sys.argv[2] == "fail":
        raise RuntimeError("outside of all phases")
"""


@pytest.mark.parametrize(("how", "status"), [("end", "succeeded"), ("fail", "failed")])
def test_a_forked_process_has_a_record_of_its_own(run_python, tmp_path, how, status):
    """The same each time it is read; an exception outside of all phases is the rank's own."""
    run_python(FORKING, str(tmp_path), how, check=False)
    records = list(read_records(tmp_path))
    assert records == list(read_records(tmp_path))
    by_name = {record.name: record for record in records}
    assert {"session", "rank", "process", "train", "in child"} == set(by_name)
    assert [status] * 2 == [by_name[name].status.value for name in ("session", "rank")]
    assert by_name["process"].process == by_name["in child"].process != by_name["rank"].process
    if how == "fail":
        assert ("RuntimeError", by_name["rank"].scope_id) == (
            by_name["rank"].error_type,
            by_name["rank"].root_cause_scope_id,
        )


def test_only_so_many_names_are_kept(monkeypatch):
    """A list of records may have a path each: near names are then of the first ones."""
    monkeypatch.setattr("stormphase.records._read._MAX_NAMES", 1)
    with pytest.raises(UnknownNameError, match="'train'"):
        list(read_records(RECORDS, path="trian"))
    with pytest.raises(UnknownNameError, match="epoch"):
        list(read_records(RECORDS, where={"epcoh": 1}))


def test_a_killed_ranks_journal_has_lost_records(tmp_path):
    """LOST with evidence, on the way up from where it died."""
    journals, _ = run_story(tmp_path, "kill")
    lost = list(read_records(journals, status="lost"))
    assert {"session", "rank", "train", "step"} == {record.name for record in lost}
    assert {("train", "step")} == {record.root_cause_path for record in lost}
    assert all("is gone" in record.evidence and record.is_ended for record in lost)


def test_a_journal_that_cannot_be_read_is_told(tmp_path):
    """The others are read."""
    journals, _ = run_story(tmp_path, "end")
    (whole,) = journals.rglob("rank-*")
    (whole.parent / whole.name.replace("rank-0", "rank-1")).write_bytes(b"garbage" * 1_000)
    told = []
    assert 6 == len(list(read_records(journals, on_unreadable=told.append)))
    assert 6 == len(list(read_records(journals)))
    assert 1 == len(told)


def test_a_directory_that_is_not_there_is_an_error(tmp_path):
    """Or that cannot be read."""
    with pytest.raises((StoreError, JournalError)):
        list(read_records(tmp_path / "nowhere"))
