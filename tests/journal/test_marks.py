"""One recovery of a session at a time, and marks that are there wholly or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stormphase.journal import _marks
from stormphase.journal._marks import (
    LOCK_NAME,
    Mark,
    RecoveryLockedError,
    SessionLock,
    mark_path,
    read_mark,
    write_mark,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = Mark(digest="d" * 64, spans=3, endpoint="http://c/v1/traces")


def journal(directory: Path, **more: Any) -> Any:
    """Return as much of a journal's image as a mark is about."""
    facts: dict[str, Any] = {"session_id": "s", "attempt": 0, "rank": 1, "host": "h", "pid": 5, "started": 6, **more}
    return SimpleNamespace(
        file=directory / "rank-00001.attempt-0.pid-5.0.journal",
        identity=SimpleNamespace(**{key: facts[key] for key in ("session_id", "attempt", "rank")}),
        process=SimpleNamespace(**{key: facts[key] for key in ("host", "pid", "started")}),
        started_ns=more.get("started_ns", 7),
    )


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    """A second one fails at once and names the holder; after the first is released it can be had."""
    first = SessionLock(tmp_path)
    with pytest.raises(RecoveryLockedError, match=f"process {os.getpid()}") as caught:
        SessionLock(tmp_path)
    assert f"process {os.getpid()}" in caught.value.holder
    first.release()
    first.release()
    with SessionLock(tmp_path):
        assert 0o600 == (tmp_path / LOCK_NAME).stat().st_mode & 0o777


def test_a_holder_that_says_nothing_is_a_holder(tmp_path: Path) -> None:
    """Whoever is just taking it has not said who it is; and whatever stands there is shown harmlessly."""
    with SessionLock(tmp_path):
        for text, shown in ((b"", "is running."), (b"\x1b[2J\xff", "?[2J")):
            (tmp_path / LOCK_NAME).write_bytes(text)
            with pytest.raises(RecoveryLockedError) as caught:
                SessionLock(tmp_path)
            assert shown in str(caught.value)
            assert "\x1b" not in str(caught.value)


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    """A link in its place could make it write elsewhere."""
    target = tmp_path / "precious"
    target.write_text("data")
    (tmp_path / LOCK_NAME).symlink_to(target)
    with pytest.raises(OSError, match="ymbolic link"):
        SessionLock(tmp_path)
    assert "data" == target.read_text()


def test_a_failure_on_the_way_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot say who it is does not hold it."""

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(_marks.os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            SessionLock(tmp_path)
    SessionLock(tmp_path).release()


def test_a_mark_is_read_back(tmp_path: Path) -> None:
    """What was sent, how much and where to."""
    assert None is read_mark(journal(tmp_path))
    write_mark(journal(tmp_path), MARK)
    assert MARK == read_mark(journal(tmp_path))
    assert 0o600 == mark_path(journal(tmp_path).file).stat().st_mode & 0o777


@pytest.mark.parametrize(
    "other",
    [{"session_id": "t"}, {"attempt": 1}, {"rank": 2}, {"host": "i"}, {"pid": 6}, {"started": 7}, {"started_ns": 8}],
)
def test_a_mark_counts_for_its_own_process_only(tmp_path: Path, other: dict[str, Any]) -> None:
    """A pid comes again, and so does a file name."""
    write_mark(journal(tmp_path), MARK)
    assert None is read_mark(journal(tmp_path, **other))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"version": 2}', b"[" * 60_000])
def test_a_damaged_mark_is_none(tmp_path: Path, content: bytes) -> None:
    """What cannot be read proves nothing, and sending again is harmless."""
    mark_path(journal(tmp_path).file).write_bytes(content)
    assert None is read_mark(journal(tmp_path))


@pytest.mark.parametrize("name", ["spans", "digest", "endpoint"])
def test_a_forged_mark_is_none(tmp_path: Path, name: str) -> None:
    """Whose it is fits, and one of its values cannot be."""
    write_mark(journal(tmp_path), MARK)
    path = mark_path(journal(tmp_path).file)
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, name: float("inf")}))
    assert (None if name == "spans" else "inf") == getattr(read_mark(journal(tmp_path)), name, None)


def test_a_pipe_in_place_of_a_mark_holds_nobody_up(tmp_path: Path) -> None:
    """To open it would be to wait for whoever writes to it."""
    os.mkfifo(mark_path(journal(tmp_path).file))
    assert None is read_mark(journal(tmp_path))


def test_a_recovery_killed_while_marking_leaves_no_mark(tmp_path: Path) -> None:
    """What it had begun is no obstacle to the next one."""
    path = mark_path(journal(tmp_path).file)
    half = path.with_name(path.name + ".new")
    half.write_text('{"vers')
    assert None is read_mark(journal(tmp_path))
    write_mark(journal(tmp_path), MARK)
    assert MARK == read_mark(journal(tmp_path))
    assert not half.exists()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Half a mark is none, and the error is the caller's to tell."""

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(_marks.os, call, full)
        with pytest.raises(OSError, match="No space"):
            write_mark(journal(tmp_path), MARK)
    assert [] == list(tmp_path.iterdir())


def test_a_file_system_that_cannot_sync_directories_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is there all the same."""
    real: Callable[[int], None] = os.fsync

    def files_only(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(_marks.os, "fsync", files_only)
    write_mark(journal(tmp_path), MARK)
    assert MARK == read_mark(journal(tmp_path))
