"""A recovery beside training: whatever goes wrong is one warning, and nobody waits for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from stormphase.exceptions import ConfigurationError
from stormphase.journal._marks import SessionLock
from stormphase.otel import OTelBridge, _background
from stormphase.otel._background import BackgroundRecovery
from stormphase.otel._recovery import Outcome, Recovery, Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Bridged


def made(directory: Path, **options: Any) -> BackgroundRecovery:
    """Return one of session "s" before its second attempt."""
    return BackgroundRecovery(directory, "s", 1, **{"endpoint": None, "environ": {}, **options})


def test_no_thread_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the system's limit of threads the session starts all the same."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    recovery = made(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        recovery.start()
    assert "no thread could be started" in caplog.text
    assert recovery.wait(0)
    recovery.stop()


def test_a_fault_of_ours_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is, it is told with its traceback and goes no further."""

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Recovery, "run", fail)
    recovery = made(tmp_path)
    recovery.start()
    assert recovery.wait(60)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert f"stormphase recover {tmp_path}" in record.getMessage()


def test_it_waits_for_another_hosts_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a shared file system each host's first rank has its turn."""
    looks: list[int] = []

    def run(*_: Any, **__: Any) -> Any:
        looks.append(1)
        result = Result.LOCKED if len(looks) < 3 else Result.NOTHING
        yield Outcome(file=tmp_path, result=result, problem="another one is at it")

    monkeypatch.setattr(Recovery, "run", run)
    monkeypatch.setattr(_background, "_LOCK_PAUSE_S", 0.001)
    recovery = made(tmp_path)
    recovery.start()
    assert recovery.wait(60)
    assert (3, []) == (len(looks), caplog.records)


def test_it_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody who holds the lock for good is named."""

    def run(*_: Any, **__: Any) -> Any:
        yield Outcome(file=tmp_path, result=Result.LOCKED, problem="process 5 is at it")

    monkeypatch.setattr(Recovery, "run", run)
    monkeypatch.setattr(_background, "_LOCK_PAUSE_S", 0.0)
    monkeypatch.setattr(_background, "_LOCK_TRIES", 3)
    recovery = made(tmp_path)
    recovery.start()
    assert recovery.wait(60)
    assert "process 5 is at it" in caplog.text


def test_a_stop_ends_it_between_two_journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that ends does not wait for thousands of journals."""
    looked: list[int] = []
    recovery = made(tmp_path)

    def run(*_: Any, **__: Any) -> Any:
        for number in range(1_000):
            looked.append(number)
            recovery._stopping.set()
            yield Outcome(file=tmp_path, result=Result.NOTHING)

    monkeypatch.setattr(Recovery, "run", run)
    recovery.start()
    recovery.stop()
    assert recovery.wait(60)
    assert [0] == looked


def test_a_logging_handler_that_raises_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the program's own, and may do anything."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(_background._log, "warning", fail)
    recovery = made(tmp_path / "gone")
    recovery.start()
    assert recovery.wait(60)


@pytest.mark.parametrize(
    ("session", "recover", "expected"),
    [
        ((1, 0), True, True),
        ((0, 0), True, False),
        ((1, 1), True, False),
        ((1, 0), False, False),
        ((1, 0), "x://c", True),
    ],
)
def test_who_recovers(
    bridged: Callable[..., Bridged], tmp_path: Path, session: tuple[int, int], recover: Any, expected: bool
) -> None:
    """The first rank of a host, if there was an attempt before, unless told not to."""
    attempt, rank = session
    rig = bridged(attempt=attempt, rank=rank, world_size=2, recover=recover)
    (tmp_path / "launch-1").mkdir()
    with SessionLock(tmp_path / "launch-1"):
        rig.bridge.recover(tmp_path)
    recovery = rig.bridge._recovery
    assert expected == (recovery is not None)
    rig.finish()
    if recovery is not None:
        assert recovery.wait(60)
        assert (tmp_path / "launch-1", None if recover is True else recover) == (
            recovery._directory,
            recovery._endpoint,
        )


def test_what_recover_may_be() -> None:
    """A wrong argument is an error that says what to write."""
    wrong: Any = 7
    with pytest.raises(ConfigurationError, match="recover=False"):
        OTelBridge(recover=wrong)
