"""The store in a SQLite file: as every store, for SQL, and when the file is gone, locked, damaged or another's."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import attrs
import pytest

from stormphase import ConfigurationError
from stormphase._liveness import own_process
from stormphase._model import PhaseStatus, RankIdentity
from stormphase._record import OutputLine, RecordKind
from stormphase._store_conformance import as_ended, example_record
from stormphase.exceptions import StoreError
from stormphase.stores import SqliteStore, _sqlite_schema
from stormphase.testing import START_WALL_NS, RecordStoreConformance

RANK = RankIdentity("conformance", 0, 0, 0, 1, 1, None, "node-1", "single")
OUTPUT = (OutputLine(5, "stdout", "hello"), OutputLine(6, "stderr", "oh"))


class TestSqliteStore(RecordStoreConformance):
    """It does what every store must do."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def make_store(self):
        """Return one on a new file."""
        return SqliteStore(self.folder / "runs.db")

    def reopen_store(self, store):
        """Return another one on the same file."""
        return SqliteStore(store.path)


@pytest.fixture
def store(tmp_path, clock):
    """Return a new store that waits for nobody, closed with the test."""
    made = SqliteStore(tmp_path / "runs.db", busy_timeout_s=0, clock=clock)
    yield made
    made.close()


def ask(store, sql, *values):
    """Return what a person who asks in SQL gets, as dicts."""
    connection = sqlite3.connect(store.path)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(sql, values)]
    finally:
        connection.close()


# --- in SQL -----------------------------------------------------------------------------------------------------------


def test_attributes_are_columns_beside_ours(store):
    """Each key has its own; what is absent is NULL, and no key takes the place of a column of ours."""
    store.end(
        [
            as_ended(example_record(attributes={"loss": 0.5, "status": "mine", "best": True})),
            as_ended(example_record(attributes={"Loss": 1, "nested": {"a": [1, 2]}, "none": None})),
        ]
    )
    store.end([as_ended(example_record(attributes={"late": "x"}))])
    rows = ask(store, "SELECT * FROM phases ORDER BY entered_ns")
    assert [("succeeded", "mine", 0.5, None, 1, None), ("succeeded", None, None, 1, None, None)] == [
        tuple(row[name] for name in ("status", "attr_status", "attr_loss", "attr_Loss_2", "attr_best", "attr_late"))
        for row in rows[:2]
    ]
    assert ['{"a":[1,2]}', None, "x"] == [rows[1]["attr_nested"], rows[1]["attr_none"], rows[2]["attr_late"]]


OURS = [
    "status",
    "scope_id",
    "attributes",
    "path",
    "kind",
    "rank",
    "output_lines",
    "attr_status",
    "id",
    "rowid",
    "Status",
]


def test_keys_like_our_columns_take_the_place_of_none(store):
    """Each is a column beside ours, whatever its name, and ours say what they always say."""
    record = as_ended(example_record(attributes={key: f"my {key}" for key in OURS}))
    store.end([record])
    (row,) = ask(store, "SELECT * FROM phases")
    ours = {"status": "succeeded", "scope_id": record.scope_id, "path": "train / step", "kind": "phase", "rank": 0}
    assert ours == {name: row[name] for name in ours}
    mine = {name: value for name, value in row.items() if name.startswith("attr_")}
    assert [f"my {key}" for key in OURS] == list(mine.values())
    assert {f"attr_{key}" for key in OURS[:-1]} | {"attr_Status_2"} == set(mine)
    assert [record] == list(store.query(where={"status": "my status"}))


def test_absent_is_null_and_never_a_word(store):
    """What is not there, and what a program has as None, is NULL in every column of every view."""
    bare = {"thread_id": None, "thread_name": None, "entered_monotonic_ns": None, "process": None}
    store.begin([example_record(attributes={}, **bare)])
    store.end([as_ended(example_record(attributes={"none": None, "some": 1}, **bare))])
    opened, ended = ask(store, "SELECT * FROM phases ORDER BY entered_ns")
    always = {
        "kind",
        "session_id",
        "session_attempt",
        "rank",
        "scope_id",
        "path",
        "name",
        "depth",
        "sequence",
        "attempt",
    }
    always |= {"status", "entered_ns", "entered_at", "is_sync", "last_seen_ns", "output_lines"}
    assert always == {name for name, value in opened.items() if value is not None}
    at_end = {"ended_ns", "duration_ns", "ended_at", "self_ns", "paused_ns", "attributes", "attr_some"}
    assert always | at_end == {name for name, value in ended.items() if value is not None}
    with sqlite3.connect(store.path) as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    assert "'None'" not in dump


@pytest.mark.parametrize("key", ["a b", 'quote"d', "it's", "back\\slash", "a.b-c_d", "$", "ünï", "line\nbreak", "[0]"])
def test_any_key_can_be_asked_for(store, key):
    """A key may hold whatever Python's strings hold."""
    store.end([as_ended(example_record(attributes={key: 7}))])
    assert [7] == [list(row.values())[-1] for row in ask(store, "SELECT * FROM phases")]


def test_there_are_only_so_many_columns(store, monkeypatch):
    """A program that makes up a key for each phase does not break the view; all are still in the JSON."""
    monkeypatch.setattr(_sqlite_schema, "MAX_ATTRIBUTE_COLUMNS", 2)
    store.end([as_ended(example_record(attributes={f"key{number}": number})) for number in range(4)])
    (row,) = ask(store, "SELECT *, json_extract(attributes, '$.key3') AS fourth FROM phases WHERE fourth NOT NULL")
    assert (3, 0) == (row["fourth"], sum(1 for name in row if name in ("attr_key2", "attr_key3")))
    assert {"key3": 3} == next(store.query(where={"key3": 3})).attributes


def test_two_writers_may_see_a_key_first(store):
    """What another process has written of a key since this one looked is no damage: both are stored, in one column."""
    other = SqliteStore(store.path)
    store.end([as_ended(example_record(attributes={"mine": 0}))])
    other.end([as_ended(example_record(attributes={"rate": 1}))])
    store.end([as_ended(example_record(attributes={"rate": 2}))])
    other.close()
    assert [None, 1, 2] == [row["attr_rate"] for row in ask(store, "SELECT attr_rate FROM phases ORDER BY entered_ns")]


def test_sessions_and_ranks_add_no_columns(store):
    """What we say of a session is no attribute of the user's."""
    store.begin([example_record(kind=RecordKind.RANK, path=(), sequence=0, attributes={"stormphase.world_size": 2})])
    assert [] == store.attribute_keys()
    assert [("rank", "")] == [(row["kind"], row["path"]) for row in ask(store, "SELECT kind, path FROM records")]


def test_times_and_output_can_be_read_by_a_person(store):
    """UTC in ISO 8601 to the nanosecond, and each line beside its phase."""
    store.end([as_ended(example_record(entered_ns=1_000_000_000), output=OUTPUT)])
    (row,) = ask(store, "SELECT entered_at, ended_at, duration_ns FROM phases")
    assert ("1970-01-01T00:00:01.000000000Z", "1970-01-01T00:00:01.001000000Z", 1_000_000) == tuple(row.values())
    rows = ask(store, "SELECT path, stream, text FROM output ORDER BY line")
    assert [("train / step", "stdout", "hello"), ("train / step", "stderr", "oh")] == [tuple(r.values()) for r in rows]


def test_it_knows_its_paths_and_keys(store):
    """For who asks with a name that is not there."""
    assert ([], [], []) == (store.paths(), store.attribute_keys(), list(store.query()))
    store.begin([example_record(attributes={"b": 1, "a": 2}), example_record(path=("x",), attributes={})])
    assert ([("train", "step"), ("x",)], ["b", "a"]) == (store.paths(), store.attribute_keys())


def test_a_step_beyond_64_bits_is_kept(store):
    """A step may be any integer of Python's."""
    steps = [(1 << 70) + 1, -(1 << 70), 5, None]
    store.begin([example_record(step=step) for step in steps])
    assert steps == [record.step for record in store.query()]


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_is_its_owners(store):
    """Captured output may hold anything, so nobody else may read it; nor what SQLite puts beside it."""
    store.begin([example_record()])
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in store.path.parent.iterdir()}
    assert {"runs.db", "runs.db-wal", "runs.db-shm"} == {path.name for path in store.path.parent.iterdir()}


def test_nothing_is_touched_before_it_is_needed(tmp_path):
    """Making a store opens nothing, and asking an absent one makes no file."""
    store = SqliteStore(tmp_path / "runs.db")
    assert [] == list(store.query(rank=1))
    assert [] == list(tmp_path.iterdir())
    assert None is store.last_seen_ns(own_process())


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_memory_is_another_store(path):
    """With what to use instead."""
    with pytest.raises(ConfigurationError, match="MemoryStore"):
        SqliteStore(path)


@pytest.mark.parametrize("timeout_s", [-1, float("nan")])
def test_a_negative_wait_is_refused(tmp_path, timeout_s):
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match="Leave it out"):
        SqliteStore(tmp_path / "runs.db", busy_timeout_s=timeout_s)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    """The error says which file, and what to do."""
    with pytest.raises(StoreError, match=r"nowhere/runs\.db cannot be used.*directory that exists") as raised:
        SqliteStore(tmp_path / "nowhere" / "runs.db").open()
    assert str(tmp_path / "nowhere" / "runs.db") == raised.value.path


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to(os.devnull)])
def test_what_is_no_file_is_refused(store, make):
    """A directory, a pipe and a device are no place for a database, and nobody waits for them."""
    make(store.path)
    for call in (store.open, lambda: list(store.query()), lambda: store.begin([example_record()])):
        with pytest.raises(StoreError, match="no regular file"):
            call()


def test_a_file_system_without_hard_links_will_do(store, monkeypatch):
    """The file gets its name all the same; and where another process was first, its file is the one."""

    def link(_draft, _path):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", link)
    store.begin([example_record()])
    assert ["runs.db"] == [path.name for path in store.path.parent.iterdir() if "-" not in path.name]


@pytest.mark.parametrize("error", [FileExistsError, OSError])
def test_of_two_that_make_the_file_one_is_first(store, monkeypatch, error):
    """Whoever comes second uses what the first one has made, and leaves no draft."""
    first = SqliteStore(store.path, busy_timeout_s=0)

    def link(_draft, _path):
        monkeypatch.undo()
        first.begin([example_record()])
        raise error("another process was here")

    monkeypatch.setattr(os, "link", link)
    store.begin([example_record()])
    assert 2 == sum(1 for _ in store.query())
    assert ["runs.db"] == [path.name for path in store.path.parent.iterdir() if "-" not in path.name]


def test_an_old_sqlite_says_what_is_needed(store, monkeypatch):
    """Before it fails on some statement."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))
    with pytest.raises(StoreError, match=r"needs SQLite 3.33.0 or newer"):
        store.open()


def test_another_programs_database_is_left_alone(tmp_path):
    """Neither written nor read."""
    path = tmp_path / "theirs.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (a)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    store = SqliteStore(path)
    for call in (store.open, lambda: list(store.query()), store.paths):
        with pytest.raises(StoreError, match="another program"):
            call()
    assert before == path.read_bytes()


def test_a_newer_releases_database_is_left_alone(store):
    """An older release says so, and guesses at nothing."""
    store.begin([example_record()])
    store.close()
    connection = sqlite3.connect(store.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for call in (store.open, lambda: list(store.query())):
        with pytest.raises(StoreError, match="Install a newer stormphase"):
            call()


def test_an_older_releases_database_is_brought_up_to_date(store, monkeypatch):
    """All of a migration or nothing of it, and what was kept is still there."""
    store.begin([example_record()])
    kept = list(store.query())
    store.close()
    steps = [*_sqlite_schema.MIGRATIONS, ("ALTER TABLE stored_path ADD COLUMN color TEXT", "SELECT no_such_thing")]
    monkeypatch.setattr(_sqlite_schema, "MIGRATIONS", steps)
    with pytest.raises(StoreError, match="no_such_thing"):
        store.open()
    assert [{"user_version": 2}] == ask(store, "PRAGMA user_version")
    steps[-1] = steps[-1][:1]
    store.open()
    assert [{"user_version": 3}] == ask(store, "PRAGMA user_version")
    assert [{"color": None}] == ask(store, "SELECT color FROM stored_path")
    assert kept == list(store.query())


def test_a_database_of_version_1_knows_no_output_of_what_was_lost(store):
    """Who asks brings it up to date; what a LOST phase said is unknown where there is no line."""
    connection = sqlite3.connect(store.path)
    for statement in _sqlite_schema._VERSION_1:
        connection.execute(statement)
    connection.execute("INSERT INTO stored_owner (id, session_id, session_attempt, rank) VALUES (1, 's', 0, 0)")
    connection.execute("INSERT INTO stored_path VALUES (1, '[\"a\"]', 'a', 'a', 1)")
    for number, status in enumerate(("succeeded", "lost", "lost"), 1):
        row = (1 << 40 | number, "phase", f"{number:016x}", 1, 0, status, number, 9, 0)
        connection.execute(
            "INSERT INTO stored_record (id, kind, scope_id, path_id, attempt, status, entered_ns, ended_ns, is_sync)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )
    connection.execute("INSERT INTO stored_output VALUES (?, 0, 5, 'stdout', 'hello')", (1 << 40 | 3,))
    connection.execute(f"PRAGMA application_id = {_sqlite_schema.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    assert [(), None, OUTPUT[:1]] == [record.output for record in store.query()]
    assert [0, None, 1] == [row["output_lines"] for row in ask(store, "SELECT output_lines FROM phases")]


@pytest.mark.parametrize("garbage", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4_096])
def test_a_damaged_file_says_so(store, garbage):
    """And once it is moved away, the same store goes on with a new one."""
    store.path.write_bytes(garbage)
    with pytest.raises(StoreError, match="damaged or no SQLite database"):
        store.begin([example_record()])
    with pytest.raises(StoreError, match="damaged or no SQLite database"):
        list(store.query())
    store.path.unlink()
    record = example_record()
    store.begin([record])
    assert [record] == list(store.query())


DAMAGED = {
    "a path": "UPDATE stored_path SET names = '[\"train'",
    "a path of numbers": "UPDATE stored_path SET names = '[1, 2]'",
    "attributes": "UPDATE stored_record SET attributes = '[1]'",
    "deep attributes": "UPDATE stored_record SET attributes = replace(hex(zeroblob(100000)), '0', '[')",
    "a status": "UPDATE stored_record SET status = 'done'",
    "a kind": "UPDATE stored_record SET kind = 'thread'",
    "a time": "UPDATE stored_record SET entered_ns = 'soon'",
    "a step": "UPDATE stored_record SET step = 'x'",
    "a blob": "UPDATE stored_record SET scope_id = x'ff'",
    "a process": "UPDATE stored_owner SET pid = NULL",
    "a process of text": "UPDATE stored_owner SET pid = 'me'",
    "a session": "UPDATE stored_owner SET session_id = x'00'",
    "a cause": "UPDATE stored_record SET root_cause_path = '{}'",
    "a line": "UPDATE stored_output SET text = x'ff'",
}


@pytest.mark.parametrize("sql", DAMAGED.values(), ids=DAMAGED)
def test_what_no_record_can_say_is_no_record(store, sql):
    """A row that was damaged or crafted is passed over and told of, whoever asks, and never an exception."""
    store.end([as_ended(example_record(process=own_process()), output=OUTPUT)])
    connection = sqlite3.connect(store.path)
    connection.execute(sql)
    connection.commit()
    connection.close()
    unreadable = []
    assert [] == list(store.query(on_unreadable=unreadable.append))
    assert [(store.path, 1)] == [(each.file, each.count) for each in unreadable]
    assert "1 row is no record and was passed over" in str(unreadable[0].error)
    for call in (store.paths, store.close_lost, store.attribute_keys, lambda: store.next_attempt(RANK)):
        with contextlib.suppress(StoreError):
            call()


def test_half_a_surrogate_pair_is_stored_as_its_escape(store):
    """A file's or a thread's name may hold one: the record is kept, and what stands in JSON comes back as it was."""
    odd = dict.fromkeys(("session_id", "thread_name", "task_name", "error_message", "correlation_id"), "x\udcff")
    record = example_record(path=("a\udcff",), attributes={"file": "b\udcff", "k\udcff": 1}, **odd)
    ended = as_ended(record, output=(OutputLine(1, "stdout", "c\udcff"),), root_cause_path=("a\udcff",))
    store.begin([record])
    store.end([ended])
    (found,) = store.query(path=("a\udcff",))
    assert (record.path, record.attributes, record.path) == (found.path, found.attributes, found.root_cause_path)
    assert {"x\\udcff"} == {getattr(found, name) for name in odd}
    assert "c\\udcff" == found.output[0].text


def test_a_file_that_was_deleted_is_made_anew(store):
    """What is written to a deleted file is lost, so the store looks before each write."""
    first, second = example_record(path=("a",)), example_record(path=("a",))
    store.begin([first])
    for path in store.path.parent.iterdir():
        path.unlink()
    store.begin([second])
    store.end([as_ended(first)])
    assert [as_ended(first), second] == list(store.query())


def test_what_a_deleted_file_leaves_beside_it_goes_with_it(store):
    """SQLite would take the log of the file that was deleted for the new one's, and the new one would be damaged."""
    store.end([as_ended(example_record(attributes={"n": n})) for n in range(500)])
    answer = store.query()
    next(answer)  # Somebody reads, so that nobody clears the log up.
    other = sqlite3.connect(store.path)
    other.execute("PRAGMA wal_checkpoint(FULL)")
    store.end([as_ended(example_record(attributes={"n": n})) for n in range(500)])
    store.path.unlink()
    assert ["runs.db-shm", "runs.db-wal"] == sorted(path.name for path in store.path.parent.iterdir())
    records = [as_ended(example_record()) for _ in range(5)]
    store.end(records)
    assert records == list(store.query())
    answer.close()
    other.close()
    assert [{"integrity_check": "ok"}] == ask(store, "PRAGMA integrity_check")
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in store.path.parent.iterdir()}


def test_who_makes_the_file_waits_for_its_turn_and_not_for_ever(tmp_path, monkeypatch):
    """Whoever finds the directory taken makes the file all the same, but takes nothing away that may be another's."""
    removed = []
    monkeypatch.setattr(Path, "unlink", lambda path, **_: removed.append(path.name.lstrip(".").split(".db")[-1]))
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    for timeout_s in (0, 0.01):
        SqliteStore(tmp_path / f"{timeout_s}.db", busy_timeout_s=timeout_s).open()
    assert not {"-wal", "-shm"} & set(removed)
    patient = SqliteStore(tmp_path / "runs.db", busy_timeout_s=60)
    opening = threading.Thread(target=patient.open)
    opening.start()
    fcntl.flock(holder, fcntl.LOCK_UN)
    opening.join(60)
    os.close(holder)
    assert {"-wal", "-shm"} <= set(removed)


@pytest.mark.parametrize("what", ["lock", "look"])
def test_a_directory_that_cannot_be_locked_will_do(store, monkeypatch, what):
    """The file is made all the same: where the file system has no such locks, or nobody may read the directory."""
    open_file = os.open

    def flock(_fd, _how):
        raise OSError("no locks here")

    def open_but_directories(path, *arguments):
        if path == store.path.parent:
            raise PermissionError("nothing to see")
        return open_file(path, *arguments)

    if what == "lock":
        monkeypatch.setattr(fcntl, "flock", flock)
    else:
        monkeypatch.setattr(os, "open", open_but_directories)
    store.begin([example_record()])
    assert 1 == sum(1 for _ in store.query())


def test_a_locked_database_keeps_nothing_of_a_call(store):
    """The call raises, and made again once the lock is gone it does all of it."""
    store.open()
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    records = [example_record(path=(f"path{number}",), attributes={f"key{number}": 1}) for number in range(3)]
    with pytest.raises(StoreError, match=r"locked.*tried again"):
        store.begin(records)
    assert [] == list(store.query())
    other.execute("ROLLBACK")
    other.close()
    store.begin(records)
    assert records == list(store.query())


def test_a_call_that_fails_midway_keeps_nothing(store):
    """A record that cannot be written takes back the ones before it, and what was learnt of the file with them."""
    good, bad = example_record(path=("new",), attributes={"new": 1}), example_record(entered_ns=1 << 70)
    with pytest.raises(StoreError, match="too large"):
        store.begin([good, bad])
    assert ([], []) == (store.paths(), list(store.query()))
    store.begin([good])
    assert ([("new",)], [good]) == (store.paths(), list(store.query()))


def test_an_answer_is_one_moment(store):
    """What is written while the answer is read is not in it, and does not wait for it."""
    records = [example_record() for _ in range(600)]
    store.begin(records[:-1])
    answer = store.query()
    first = next(answer)
    store.begin(records[-1:])
    assert records[:-1] == [first, *answer]
    assert records == list(store.query())


def test_an_answer_may_be_left_early(store):
    """It lets go of the file."""
    store.begin([example_record() for _ in range(600)])
    answer = store.query()
    next(answer)
    answer.close()
    del answer
    gc.collect()
    assert 600 == sum(1 for _ in store.query())


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_forked_child_has_a_connection_of_its_own(store):
    """Parent and child write at once, and neither takes the other's locks away."""
    before, of_child, after = (example_record(process=own_process()) for _ in range(3))
    store.begin([before])
    child = os.fork()
    if child == 0:
        try:
            store.begin([attrs.evolve(of_child, process=own_process())])
            store.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    store.begin([after])
    assert [before.scope_id, of_child.scope_id, after.scope_id] == [record.scope_id for record in store.query()]
    assert 2 == len({record.process for record in store.query()})


def test_what_a_dead_process_left_open_becomes_lost(store, clock):
    """By the evidence that it is dead, when it was last known alive; the innermost phase is where it died."""
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = attrs.evolve(own_process(), pid=dead.pid, started=1)
    dead.communicate(b"\n")
    train = example_record(path=("train",), process=process, entered_ns=START_WALL_NS)
    step = example_record(parent_scope_id=train.scope_id, process=process, entered_ns=START_WALL_NS + 5)
    living = example_record(process=own_process())
    unknown = example_record(process=None)
    elsewhere = example_record(process=attrs.evolve(process, host="elsewhere", boot_id="other"))
    clock.advance(1_000)
    store.begin([train, step, living, unknown, elsewhere])
    store.end([as_ended(example_record(process=process))])
    clock.advance(10**12)
    lost = store.close_lost()
    assert [train.scope_id, step.scope_id] == [record.scope_id for record in lost]
    assert lost == list(store.query(status="lost"))
    assert {(PhaseStatus.LOST, START_WALL_NS + 1_000, step.scope_id, step.path)} == {
        (record.status, record.ended_ns, record.root_cause_scope_id, record.root_cause_path) for record in lost
    }
    assert f"process {process.pid} is gone" in lost[0].evidence
    assert [1_000, 995] == [
        record.ended_monotonic_ns - original.entered_monotonic_ns
        for record, original in zip(lost, (train, step), strict=True)
    ]
    assert [] == store.close_lost()
    assert 3 == len(list(store.query(status="active")))


WRITER = """
import sys
from stormphase._store_conformance import as_ended, example_record
from stormphase.stores import SqliteStore

store = SqliteStore(sys.argv[1])
while True:
    records = [example_record(attributes={"n": n}, path=("train", f"step{n % 7}")) for n in range(40)]
    store.begin(records)
    print("begun", *(record.scope_id for record in records), flush=True)
    store.end([as_ended(record) for record in records[:30]])
    print("ended", *(record.scope_id for record in records[:30]), flush=True)
"""


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 8, 13])
def test_what_was_confirmed_survives_a_kill(tmp_path, calls):
    """SIGKILL at any instant: the database is sound, every row is whole, and none that was confirmed is missing."""
    path = tmp_path / "runs.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    said = [writer.stdout.readline() for _ in range(calls)]
    writer.send_signal(signal.SIGKILL)
    said += writer.communicate()[0].splitlines(keepends=True)
    confirmed = {"begun": set(), "ended": set()}
    for line in said:
        if line.endswith("\n"):  # The last line may be torn; its call had returned, but nobody was told.
            word, *scope_ids = line.split()
            confirmed[word].update(scope_ids)
    store = SqliteStore(path)
    records = {record.scope_id: record for record in store.query()}
    assert calls <= len(said)
    assert confirmed["begun"] <= set(records)
    assert confirmed["ended"] <= {scope_id for scope_id, record in records.items() if record.is_ended}
    assert {("train", f"step{record.attributes['n'] % 7}") == record.path for record in records.values()} == {True}
    assert [{"integrity_check": "ok"}] == ask(store, "PRAGMA integrity_check")
    assert 0 == len(records) % 40


def test_several_processes_share_a_file(tmp_path):
    """Ranks of one machine write into one database, and all of it is there."""
    source = """
import sys
import attrs
from stormphase._liveness import own_process
from stormphase._store_conformance import as_ended, example_record
from stormphase.stores import SqliteStore

store, rank = SqliteStore(sys.argv[1], busy_timeout_s=60), int(sys.argv[2])
for n in range(20):
    shared = {"rank": rank, "process": own_process(), "path": (f"rank{rank}", f"{n}"), "attributes": {f"key{rank}": n}}
    records = [example_record(**shared) for _ in range(5)]
    store.begin(records)
    store.end([as_ended(record) for record in records])
store.close()
"""
    path = tmp_path / "runs.db"
    writers = [subprocess.Popen([sys.executable, "-c", source, str(path), str(rank)]) for rank in range(3)]
    assert [0, 0, 0] == [writer.wait(60) for writer in writers]
    store = SqliteStore(path)
    assert [100, 100, 100] == [sum(1 for _ in store.query(rank=rank, status="succeeded")) for rank in range(3)]
    assert {"key0", "key1", "key2"} == set(store.attribute_keys())
    assert {"attr_key0", "attr_key1", "attr_key2"} <= set(ask(store, "SELECT * FROM phases LIMIT 1")[0])


def test_one_store_serves_several_threads(store):
    """Each call is whole, and one after the other."""
    threads = [threading.Thread(target=lambda: [store.begin([example_record()]) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 80 == sum(1 for _ in store.query())
