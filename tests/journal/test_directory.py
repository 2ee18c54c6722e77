"""Where journals lie, whose they are, and which attempt a new one begins."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import attrs
import pytest
from journal_sample import FACTS, journal

from stormphase import _liveness
from stormphase._attempts import Launched
from stormphase._liveness import Liveness, Verdict
from stormphase._model import RankIdentity
from stormphase._tracker import PhaseTracker
from stormphase.exceptions import ConfigurationError
from stormphase.journal import _directory, _file, read_directory
from stormphase.journal._directory import attempt_of, make_directory
from stormphase.journal._file import MIN_BYTES
from stormphase.journal._options import DIRECTORY_VARIABLE, JournalOptions, options_of

IDENTITY = RankIdentity(
    session_id="a-session",
    attempt=0,
    rank=0,
    local_rank=0,
    world_size=2,
    local_world_size=2,
    node_rank=0,
    host="node-1",
    launcher="none",
)


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Put journals of other processes into the directory, some of which live."""
    alive = set()
    monkeypatch.setattr(
        _liveness,
        "judge",
        lambda process, **_: Verdict(Liveness.ALIVE if process.pid in alive else Liveness.DEAD, "said so"),
    )

    def put_one(
        pid, *, rank=0, attempt=0, is_alive=False, forked_from=None, session_id="a-session", world_size=8, end=None,
        launch=None,
    ):  # fmt: skip
        facts = {**FACTS, "rank": rank, "attempt": attempt, "forked_from": forked_from, "session_id": session_id}
        facts["launch"] = launch
        note = None if end is None else {"kind": end, "ended_ns": 5_000}
        data = journal(facts={**facts, "world_size": world_size}, end_note=note)
        struct.pack_into("<Q", data, 48, pid)
        (tmp_path / f"rank-{rank}.attempt-{attempt}.pid-{pid}.0.journal").write_bytes(data)
        if is_alive:
            alive.add(pid)

    return put_one


def test_the_first_attempt_is_what_the_launcher_says(tmp_path):
    """Where there is no journal yet."""
    assert 0 == attempt_of(tmp_path, IDENTITY)
    assert 3 == attempt_of(tmp_path, attrs.evolve(IDENTITY, attempt=3))


def test_after_dead_ones_comes_the_next_attempt(tmp_path, put):
    """Whatever rank they were; the launcher's count wins if it is higher."""
    put(11, rank=1, attempt=2)
    put(12, rank=0, attempt=1)
    assert 3 == attempt_of(tmp_path, IDENTITY)
    assert 7 == attempt_of(tmp_path, attrs.evolve(IDENTITY, attempt=7))


def test_ranks_that_start_together_join_one_attempt(tmp_path, put):
    """The second rank finds the first one alive, and belongs to it."""
    put(10, rank=0, attempt=0)
    put(11, rank=1, attempt=1, is_alive=True)
    assert 1 == attempt_of(tmp_path, IDENTITY)


def test_a_rank_that_comes_when_others_are_done_joins_them(tmp_path, put):
    """A short job's first rank may have ended well before the last one has imported what it needs."""
    put(10, rank=0, attempt=0, world_size=2)
    put(11, rank=1, attempt=1, world_size=2, end="clean")
    assert 1 == attempt_of(tmp_path, IDENTITY)


@pytest.mark.parametrize("other", [{"end": "exception"}, {"end": None}, {"end": "clean", "world_size": 1}])
def test_a_rank_that_comes_after_a_failure_or_another_job_begins_the_next_attempt(tmp_path, put, other):
    """One rank of those before did not end well, or the job was of another size."""
    put(11, rank=1, attempt=1, world_size=3, end="clean")
    put(12, rank=2, attempt=1, **{"world_size": 3, **other})
    assert 2 == attempt_of(tmp_path, attrs.evolve(IDENTITY, world_size=3))


def test_a_rank_that_has_begun_that_attempt_before_begins_the_next(tmp_path, put):
    """One rank that is started again alone, while the others of its attempt still live."""
    put(10, rank=0, attempt=1)
    put(11, rank=1, attempt=1, is_alive=True)
    assert 2 == attempt_of(tmp_path, IDENTITY)


def test_a_living_process_of_that_rank_is_an_error(tmp_path, put):
    """It names the process; its forked children do not count."""
    put(10, is_alive=True)
    with pytest.raises(ConfigurationError, match="is running already, as process 10"):
        attempt_of(tmp_path, IDENTITY)


def test_a_rank_joins_those_that_were_launched_with_it(tmp_path, put):
    """Also when all of them are dead before it has begun."""
    put(11, rank=1, launch="a#0", end="exception")
    assert 0 == attempt_of(tmp_path, IDENTITY, Launched(launch="a#0"))
    assert 1 == attempt_of(tmp_path, IDENTITY, Launched(launch="b#0"))


def test_a_process_that_has_ended_its_session_does_not_run_it(tmp_path, put):
    """A notebook that goes on living refuses nobody."""
    put(10, is_alive=True, end="clean")
    assert 1 == attempt_of(tmp_path, IDENTITY)


def test_an_attempt_that_is_given_twice_is_refused(tmp_path, put):
    """Whoever gives it is told to give another one."""
    put(10, attempt=2)
    given = Launched(has_attempt=True)
    assert 1 == attempt_of(tmp_path, attrs.evolve(IDENTITY, attempt=1), given)
    with pytest.raises(ConfigurationError, match="Attempt 2 of session 'a-session', rank 0, was begun already"):
        attempt_of(tmp_path, attrs.evolve(IDENTITY, attempt=2), given)


def test_a_forked_child_that_outlives_its_parent_refuses_nobody(tmp_path, put):
    """The rank is dead, and its next attempt may begin."""
    put(10)
    put(11, forked_from=10, is_alive=True)
    assert 1 == attempt_of(tmp_path, IDENTITY)


def test_foreign_and_damaged_files_are_passed_over(tmp_path, put):
    """Another session's, an empty one, one that is cut, one that lies."""
    put(10, session_id="another", attempt=9)
    (tmp_path / "rank-0.journal").write_bytes(b"")
    (tmp_path / "rank-1.journal").write_bytes(bytes(journal())[:1_050])
    data = journal()
    struct.pack_into("<I", data, 88, 2**31)
    (tmp_path / "rank-2.journal").write_bytes(data)
    (tmp_path / "rank-3.journal").write_bytes(bytes(journal(facts={"session_id": "a-session"})))
    (tmp_path / "rank-4.journal").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert 0 == attempt_of(tmp_path, IDENTITY)
    assert 0 == attempt_of(tmp_path / "nowhere", IDENTITY)


HOSTILE = [
    {"rank": float("inf")},
    {"rank": float("nan")},
    {"rank": "0" * 5_000},
    {"attempt": 10**300},
    {"attempt": -7},
    {"attempt": 2**63},
    {"attempt": True},
    {"host": ["a"]},
    {"session_id": None},
]


@pytest.mark.parametrize("facts", HOSTILE)
def test_a_forged_journal_neither_stops_a_session_nor_sends_it_far_away(tmp_path, facts):
    """Its checksum fits, and what it says of itself cannot be: it is passed over."""
    (tmp_path / "rank-0.journal").write_bytes(journal(facts={**FACTS, "session_id": "a-session", **facts}))
    assert 0 == attempt_of(tmp_path, IDENTITY)


def test_a_pipe_that_is_called_a_journal_holds_nobody_up(tmp_path):
    """To open it would be to wait for whoever writes to it."""
    os.mkfifo(tmp_path / "rank-0.journal")
    assert 0 == attempt_of(tmp_path, IDENTITY)


def test_the_sessions_directory_is_absolute(tmp_path, monkeypatch):
    """A program that goes elsewhere and then forks finds it again."""
    monkeypatch.chdir(tmp_path)
    assert tmp_path / "runs" / "s" == make_directory(Path("runs"), "s")


def test_a_file_in_its_place_is_an_error_with_a_fix(tmp_path):
    """Nothing has begun then."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigurationError, match="Give a directory in which this process may make files"):
        make_directory(tmp_path / "runs", "s")


NO_ROOM = [
    (where, code)
    for where in ("mkdir", "open", "truncate", "allocate", "mmap")
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE)
]


@pytest.mark.parametrize("no_room", NO_ROOM)
def test_a_machine_that_has_no_room_costs_a_warning(make_tracker, tmp_path, monkeypatch, caplog, no_room):
    """For the directory, the file or its mapping: the session goes on without a journal."""

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    where, code = no_room
    functions = {"mkdir": (Path, "mkdir"), "open": (os, "open"), "mmap": (_file, "MappedFile")}
    functions |= {"truncate": (os, "ftruncate"), "allocate": (os, "posix_fallocate")}
    with monkeypatch.context() as context:
        context.setattr(*functions[where], refuse)
        tracker = make_tracker(session_id="s", rank=0, world_size=1, journal=tmp_path / "runs").start()
    with tracker.enter_phase("train"):
        pass
    assert {} == tracker.stats()["journal"]
    assert 1 == len([record for record in caplog.records if "no room for a journal" in record.getMessage()])
    assert [] == list(tmp_path.rglob("*.journal"))


def test_the_environment_names_the_directory(make_tracker, tmp_path, monkeypatch):
    """STORMPHASE_DIR, unless the tracker was told another one."""
    monkeypatch.setenv(DIRECTORY_VARIABLE, f" {tmp_path / 'env'} ")
    make_tracker(session_id="s", rank=0, world_size=1).start().stop()
    make_tracker(session_id="t", rank=0, world_size=1, journal=tmp_path / "given").start().stop()
    assert ["s"] == [image.identity.session_id for image in read_directory(tmp_path / "env")]
    assert ["t"] == [image.identity.session_id for image in read_directory(tmp_path / "given")]


def test_no_variable_and_no_argument_is_no_journal():
    """Nor is a blank one."""
    assert None is options_of(None, {})
    assert None is options_of(None, {DIRECTORY_VARIABLE: " "})
    options = JournalOptions("runs", max_bytes=MIN_BYTES)
    assert options is options_of(options, {DIRECTORY_VARIABLE: "other"})
    assert Path("runs") == options_of("runs", {}).directory


@pytest.mark.parametrize("journal", [7, b"runs", "", "a\0b", object()])
def test_what_is_no_directory_is_an_error(journal):
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match='Write journal="runs/"'):
        options_of(journal, {})


@pytest.mark.parametrize("max_bytes", [0, MIN_BYTES - 1, 2**40, 1.5e6, True, "64M"])
def test_a_length_that_cannot_work_is_an_error(max_bytes):
    """It says what is allowed."""
    with pytest.raises(ConfigurationError, match="max_bytes must be a whole number from 1048576"):
        JournalOptions("runs", max_bytes=max_bytes)


def test_a_directory_that_is_refused_leaves_nothing_running(tmp_path):
    """The tracker may be started again, once that is put right."""
    (tmp_path / "runs").write_text("")
    tracker = PhaseTracker(session_id="again", rank=0, world_size=1, bridge=None, journal=tmp_path / "runs")
    with pytest.raises(ConfigurationError):
        tracker.start()
    (tmp_path / "runs").unlink()
    tracker.start().stop()
    assert 1 == len(list(read_directory(tmp_path / "runs")))


def test_two_journals_of_one_name_are_two_files(tmp_path, make_tracker, monkeypatch):
    """As in two containers, where pids are the same: the second one counts on."""
    name = "rank-00000.attempt-0.pid-{}.{}.journal"
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name.format(os.getpid(), 0)).write_text("another's")
    make_tracker(session_id="s", rank=0, world_size=1, journal=tmp_path).start().stop()
    assert (tmp_path / "s" / name.format(os.getpid(), 1)).is_file()
    assert "another's" == (tmp_path / "s" / name.format(os.getpid(), 0)).read_text()
    assert _directory.file_name(IDENTITY, 5, 2) == "rank-00000.attempt-0.pid-5.2.journal"
