"""`stormphase records`: what is asked for, in which format, and how it fails."""

from __future__ import annotations

import csv
import io
import json

import attrs
import pytest

from stormphase._liveness import own_process
from stormphase._model import PhaseStatus
from stormphase._record import FIELDS, OutputLine, PhaseRecord, RecordKind
from stormphase._store_conformance import as_ended, example_record
from stormphase.cli import _records, main
from stormphase.stores import SqliteStore

NOW_NS = 1_800_000_000_000_000_000  # 2027-01-15T08:00:00Z
HOUR_NS = 3_600_000_000_000
FAILED = as_ended(
    example_record(
        path=("train", "load"), attributes={"epoch": 1}, entered_ns=NOW_NS - HOUR_NS, step=7, attempt=1, rank=3
    ),
    status=PhaseStatus.FAILED,
    error_type="ValueError",
    error_message="bad batch",
    root_cause_scope_id="00000000000000ab",
    root_cause_path=("train", "load", "parse"),
    output=(
        OutputLine(5, "stdout", "reading"),
        OutputLine(6, "stderr", "it is broken"),
        OutputLine(7, "traceback", "ValueError: bad batch"),
    ),
)
TRAIN = as_ended(example_record(path=("train",), attributes={"epoch": 1}, entered_ns=NOW_NS - 2 * HOUR_NS))
OPEN = example_record(path=("evaluate",), attributes={"loss": float("nan")}, entered_ns=NOW_NS, process=own_process())


@pytest.fixture
def database(tmp_path, monkeypatch):
    """Return a database with three records, asked at a known time."""
    monkeypatch.setattr(_records.SystemClock, "wall_ns", staticmethod(lambda: NOW_NS))
    store = SqliteStore(tmp_path / "runs.db")
    store.begin([OPEN])
    store.end([TRAIN, FAILED])
    store.close()
    return str(store.path)


@pytest.fixture
def ask(capsys, database):
    """Run the command on the database; returns the exit code, what it printed, and what it complained of."""

    def run(*arguments):
        code = main(["records", database, *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def paths(out):
    """Return the paths in the JSON that was printed."""
    return ["/".join(record["path"]) for record in json.loads(out)]


def test_json_is_a_list_of_records(ask):
    """With the names of `PhaseRecord`, read back as they were; NaN is a string, since JSON has none."""
    code, out, err = ask("--format", "json")
    assert (0, "") == (code, err)
    found = json.loads(out)
    assert [TRAIN, FAILED] == [PhaseRecord.from_dict(fields) for fields in found[:2]]
    assert {"loss": "NaN"} == found[2]["attributes"]
    assert (["train", "load"], "failed", 3, 1, 7, ["train", "load", "parse"]) == tuple(
        found[1][name] for name in ("path", "status", "rank", "attempt", "step", "root_cause_path")
    )
    assert [{"time_ns": 5, "stream": "stdout", "text": "reading"}] == found[1]["output"][:1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["train", "train/load", "evaluate"]),
        (["--path", "train/*"], ["train/load"]),
        (["--path", "load"], ["train/load"]),
        (["--status", "failed"], ["train/load"]),
        (["--status", "failed", "--status", "active"], ["train/load", "evaluate"]),
        (["--rank", "3"], ["train/load"]),
        (["--where", "epoch=1"], ["train", "train/load"]),
        (["--where", "epoch=1", "--where", "epoch=2"], []),
        (["--since", "90m"], ["train/load", "evaluate"]),
        (["--since", "0.5h"], ["evaluate"]),
        (["--since", "2027-01-15T07:00:00Z"], ["train/load", "evaluate"]),
        (["--since", "2027-01-15T08:00:00+01:00"], ["train/load", "evaluate"]),
        (["--until", "2027-01-15T07:00:00"], ["train"]),
        (["--since", "2027-01-15"], ["train", "train/load", "evaluate"]),
        (["--kind", "rank"], []),
        (["--kind", "phase"], ["train", "train/load", "evaluate"]),
        (["--session", "other"], []),
        (["--attempt", "0"], ["train", "train/load", "evaluate"]),
        (["--latest"], ["train", "train/load", "evaluate"]),
        (["--latest", "--tag", "epoch"], ["train", "train/load", "evaluate"]),
    ],
    ids=" ".join,
)
def test_what_is_asked_for_is_shown(ask, arguments, expected):
    """All that is given must hold."""
    code, out, _ = ask("--format", "json", *arguments)
    assert (0, expected) == (code, paths(out))


def test_the_newest_is_asked_for(ask, database):
    """Of one path only what was entered last; with a tag, for each of its values."""
    store = SqliteStore(database)
    store.end([as_ended(example_record(path=("train",), attributes={"epoch": 2}, entered_ns=NOW_NS + 1))])
    store.close()
    assert ["train/load", "evaluate", "train"] == paths(ask("--format", "json", "--latest")[1])
    assert 4 == len(paths(ask("--format", "json", "--latest", "--tag", "epoch")[1]))


def test_a_table_is_for_people(ask):
    """A line a record, and beneath a failure why, where it first arose, and what it said last."""
    code, out, err = ask()
    assert (0, "") == (code, err)
    lines = out.splitlines()
    assert "entered (UTC)            duration  status     rank  path" == lines[0]
    assert "2027-01-15 06:00:00.000   1.00 ms  succeeded     0  train" == lines[1]
    assert "2027-01-15 07:00:00.000   1.00 ms  failed        3  train / load  step 7  attempt 1" == lines[2]
    assert ["ValueError: bad batch", "first arose in train / load / parse", "last said: it is broken"] == [
        line.strip() for line in lines[3:6]
    ]
    assert "2027-01-15 08:00:00.000            active        0  evaluate" == lines[6]


def test_what_arose_in_no_phase_arose_in_its_rank(make_tracker, tmp_path, capsys):
    """The session failed by its rank, which has no path; an id would tell nobody anything."""
    with pytest.raises(ValueError, match="outside"), make_tracker("job", journal=tmp_path / "runs"):
        raise ValueError("outside")
    assert 0 == main(["records", str(tmp_path / "runs")])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert ["ValueError: outside", "first arose in rank 0, in no phase"] == lines[2:4]
    assert ["ValueError: outside"] == lines[5:]


@pytest.mark.parametrize(("cause", "is_said"), [(None, True), ("00000000000000ab", False)])
def test_a_worker_that_its_pool_ended_is_told_from_one_that_died_at_work(tmp_path, capsys, cause, is_said):
    """Both are LOST, and only the second has lost something."""
    store = SqliteStore(tmp_path / "pool.db")
    process = example_record(kind=RecordKind.PROCESS, path=(), entered_ns=NOW_NS)
    store.end([as_ended(process, status=PhaseStatus.LOST, reason="its process died", root_cause_scope_id=cause)])
    store.close()
    assert 0 == main(["records", str(store.path)])
    said = "nothing is known to have been open in it: pools end their workers like that"
    assert is_said == (said in capsys.readouterr().out)


def test_a_long_table_is_shown_as_it_is_read(ask, database):
    """A page at a time; a time that no calendar has is shown as the number that it is."""
    store = SqliteStore(database)
    store.begin([example_record(entered_ns=(1 << 62) + number, process=own_process()) for number in range(450)])
    store.begin([example_record(entered_ns=(1 << 63) - 1, path=("late",), process=own_process())])
    store.close()
    _, out, _ = ask("--status", "active")
    assert 453 == len(out.splitlines())
    assert "2262-04-11 23:47:16.854" in out


def test_a_person_is_told_that_there_is_nothing(ask, monkeypatch):
    """On a terminal; a pipe gets nothing."""
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "no records" in ask("--session", "other")[1]


def test_csv_has_a_row_a_record(ask):
    """Lists as people read them, the rest as JSON."""
    _, out, _ = ask("--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(FIELDS) == list(rows[0])
    assert ["train", "train / load", "evaluate"] == [row["path"] for row in rows]
    assert ({"epoch": 1}, "", "failed") == (json.loads(rows[1]["attributes"]), rows[0]["error_type"], rows[1]["status"])


def test_absent_is_empty_and_never_a_word(ask, tmp_path):
    """What is absent is null in JSON and Parquet, and nothing at all in CSV; a blank is no zero."""
    _, out, _ = ask("--format", "csv")
    (row,) = [row for row in csv.DictReader(io.StringIO(out)) if row["path"] == "evaluate"]
    absent = {
        "parent_scope_id",
        "step",
        "ended_ns",
        "duration_ns",
        "error_type",
        "root_cause_path",
        "task_name",
        "reason",
    }
    assert {""} == {row[name] for name in absent}
    assert "None" not in out
    (record,) = [each for each in json.loads(ask("--format", "json")[1]) if each["path"] == ["evaluate"]]
    assert {None} == {record[name] for name in absent}
    file = tmp_path / "records.parquet"
    ask("--format", "parquet", "-o", str(file))
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file).to_pylist()
    assert {None} == {table[2][name] for name in absent} | {table[2]["attr_epoch"]}


def test_a_parquet_file_is_written(ask, tmp_path):
    """Where it is told to."""
    file = tmp_path / "records.parquet"
    assert (0, "", "") == ask("--format", "parquet", "--output", str(file))
    import pyarrow.parquet

    assert [["train"], ["train", "load"], ["evaluate"]] == pyarrow.parquet.read_table(file).column("path").to_pylist()


@pytest.mark.parametrize("how", ["table", "json", "csv"])
def test_output_goes_to_a_file(ask, tmp_path, how):
    """The same as on the terminal."""
    file = tmp_path / "out"
    _, printed, _ = ask("--format", how)
    assert (0, "", "") == ask("--format", how, "-o", str(file))
    assert printed == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["table", "json", "csv"])
def test_hostile_names_are_harmless(ask, database, how):
    """Escapes, newlines and formulas do nothing to the terminal, nor to a spreadsheet."""
    store = SqliteStore(database)
    evil = "\x1b[2J\u202e\nrm\r=1"
    store.end(
        [
            attrs.evolve(
                FAILED,
                scope_id="f" * 16,
                sequence=9_999,
                path=(evil,),
                error_message="=cmd()" + evil,
                error_type=evil,
                thread_name="=HYPERLINK()",
                attributes={evil: evil},
            )
        ]
    )
    store.close()
    _, out, _ = ask("--format", how)
    assert not [char for char in out if not char.isprintable() and char != "\n"]
    assert "'=HYPERLINK()" in out if how == "csv" else "'=" not in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--path", "trian"], "No record has the path 'trian'. Near it are 'train'"),
        (["--where", "epcoh=1"], "No record has the attribute 'epcoh'. Near it are 'epoch'."),
        (["--where", "epoch"], "--where needs ATTR=VALUE"),
        (["--status", "done"], "status must be one or several of active, paused"),
        (["--since", "yesterday"], "--since 'yesterday' is no time. Write 15m"),
        (["--format", "parquet"], "Give --output FILE as well."),
        (["--tag", "epoch"], "Give --latest as well."),
        (["-o", "/nowhere/at/all"], "/nowhere/at/all cannot be written"),
        (["--format", "parquet", "-o", "/nowhere/at/all"], "/nowhere/at/all cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_one_line(ask, arguments, problem):
    """Exit code 2, and what to write instead."""
    code, out, err = ask(*arguments)
    assert (2, "") == (code, out)
    assert problem in err
    assert 1 == err.count("\n")


def test_nothing_there_is_one_line(capsys, tmp_path):
    """Exit code 2, and what to give."""
    assert 2 == main(["records", str(tmp_path / "nowhere.db")])
    assert "Give the file of a SqliteStore, or the directory that was given as `journal`" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["table", "json"])
def test_a_directory_without_journals_is_one_line(capsys, tmp_path, how):
    """As `postmortem`, `top` and `recover` say it: exit code 2, and nothing that a program could take for an answer."""
    assert 2 == main(["records", str(tmp_path), "--format", how])
    said = capsys.readouterr()
    assert ("", 1) == (said.out, said.err.count("\n"))
    assert "No journal in" in said.err
    assert "STORMPHASE_DIR" in said.err


def test_no_records_are_no_error(ask):
    """An empty list, an empty table."""
    assert (0, "[]\n", "") == ask("--format", "json", "--session", "other")
    assert (0, "", "") == ask("--session", "other")


@pytest.mark.parametrize("options", [[], ["--as-is"]])
def test_what_a_dead_process_left_is_lost(ask, database, options):
    """With the evidence, and in the database too unless that is not wanted."""
    store = SqliteStore(database)
    gone = attrs.evolve(own_process(), pid=own_process().pid, started=1)
    store.begin([example_record(path=("orphan",), process=gone)])
    store.close()
    _, out, _ = ask("--path", "orphan", *options)
    assert ("is gone from" in out) == (not options)
    assert ["active" if options else "lost"] == [record.status.value for record in store.query(path="orphan")]


def test_a_busy_database_is_read_all_the_same(ask, database):
    """Another process holds it: it is shown as it stands."""
    import sqlite3

    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    code, out, _ = ask("--format", "json", "--status", "failed")
    other.execute("ROLLBACK")
    other.close()
    assert (0, ["train/load"]) == (code, paths(out))


def test_journals_are_read_alike(capsys, make_tracker, tmp_path):
    """The same command on a directory of journals; one that cannot be read is told, and the exit code is 1."""
    with make_tracker(session_id="s", journal=tmp_path / "runs") as tracker, tracker.enter_phase("train"):
        pass
    assert 0 == main(["records", str(tmp_path / "runs"), "--path", "train"])
    assert "succeeded     0  train" in capsys.readouterr().out
    assert 2 == main(["records", str(tmp_path / "runs"), "--path", "trian", "--format", "json"])
    said = capsys.readouterr()
    assert ("", True) == (said.out, "No record has the path 'trian'. Near it are 'train'" in said.err)
    (whole,) = (tmp_path / "runs").rglob("rank-*")
    (whole.parent / whole.name.replace("rank-0", "rank-1")).write_bytes(b"garbage" * 1_000)
    assert 1 == main(["records", str(tmp_path / "runs"), "--path", "train"])
    said = capsys.readouterr()
    assert ("succeeded     0  train" in said.out, "unreadable: " in said.err) == (True, True)
