"""The mark that a rank leaves in its environment, so that a program which it starts knows that it is no rank itself.

Launchers say by variables which rank a process is, and every program that a rank starts inherits them. The mark,
`STORMPHASE_STARTED_BY`, names the process that has started a tracker, and what it was: who finds the mark of another
process, and the same rank of the same launch in its variables, was started by that rank. Who finds its own has replaced
itself by `exec`, and is the next attempt.

The mark stands in `os.environ` while a tracker runs, and for the rest of the process's life in the environment that
the C library hands to subprocesses. `STORMPHASE_CARRIER`, which `tracker.environment(environ)` adds, says as much.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._carried import Carried, carrier_in
from stormphase._session_id import SESSION_VARIABLE
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._launchers import Launch

VARIABLE: Final = "STORMPHASE_STARTED_BY"
_FIELDS: Final = 10
_MAX_DIGITS: Final = 18
_UNKNOWN: Final = "-"
_ANY: Final = "?"  # the job of a process that has not said which it has

_running: Final[list[Starter]] = []
_first: Final[list[Starter]] = []
_inherited: Final[list[str | None]] = []


@attrs.frozen
class Starter:
    """A process that has started a tracker, and what it was then.

    Attributes:
        pid: its process id.
        started: when it started, in the machine's own count, or None.
        rank: which rank it was.
        world_size: of how many.
        job: the launcher's id of the job, as a digest, or None.
        attempt: which attempt of its session.
        session_id: its session.
        session_variable: what `STORMPHASE_SESSION_ID` was there, or None.
        started_by: the session of the rank that has started it, if it is such a program; then rank, size and job are
            those of that rank, whose variables its own programs inherit as well.
        runs: whether its tracker runs, as far as the mark tells.
    """

    pid: int
    started: str | None
    rank: int
    world_size: int
    job: str | None
    attempt: int
    session_id: str
    session_variable: str | None
    started_by: str | None = None
    runs: bool = True

    def to_text(self) -> str:
        """Return it as the variable holds it."""
        fields = (*attrs.astuple(self)[:-1], int(self.runs))
        return ":".join(_UNKNOWN if field is None else str(field) for field in fields)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Starter | None:
        """Return the mark that an environment has, or None if there is none that can be read."""
        fields = environ.get(VARIABLE, "").split(":")
        if len(fields) != _FIELDS:
            return _carrier_in(environ)
        pid, started, rank, world_size, job, attempt, session_id, session_variable, started_by, runs = (
            None if field == _UNKNOWN else field for field in fields
        )
        numbers = [_number(text) for text in (pid, rank, world_size, attempt)]
        if None in numbers or session_id is None:
            return None
        return cls(
            pid=numbers[0] or 0,
            started=started,
            rank=numbers[1] or 0,
            world_size=numbers[2] or 1,
            job=job,
            attempt=numbers[3] or 0,
            session_id=session_id,
            session_variable=session_variable,
            started_by=started_by,
            runs=runs == "1",
        )

    def is_process(self, pid: int, started: str | None) -> bool:
        """Whether it is the process with this id and start."""
        return self.pid == pid and (self.started == started or self.started is None)

    def has_launch(self, launch: Launch | None, job: str | None) -> bool:
        """Whether a process that a launcher gave this place is one that this rank has started.

        It is where nothing gives it another rank, or another job: between the two there was no launcher then.
        """
        if launch is None or (launch.world_size == 1 and job is None):
            return True
        is_same_job = job is None or self.job in (_ANY, job)
        return is_same_job and (launch.rank, launch.world_size) == (self.rank, self.world_size)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


def _carrier_in(environ: Mapping[str, str]) -> Starter | None:
    """Return who has made an environment by `tracker.environment(environ)`; None if nobody has."""
    try:
        carried = Carried.of(carrier_in(environ))
    except ConfigurationError:
        return None
    if carried is None:
        return None
    identity = carried.identity
    return Starter(
        pid=carried.pid,
        started=None,
        rank=identity.rank,
        world_size=identity.world_size,
        job=_ANY,
        attempt=identity.attempt,
        session_id=identity.session_id,
        session_variable=environ.get(SESSION_VARIABLE) or None,
    )


def enter(starter: Starter) -> None:
    """Mark this process, in which a tracker starts; of several sessions that run the mark is the first one's."""
    is_only = not _running
    if is_only:
        _inherited[:] = [os.environ.get(VARIABLE)]
    _running.append(starter)
    if is_only or not _first or _first[0].pid != starter.pid or _first[0].session_id == starter.session_id:
        _first[:] = [starter]  # The latest attempt of it.
    os.environ[VARIABLE] = _first[0].to_text()


def leave(starter: Starter) -> None:
    """Take the mark out of `os.environ` with the last tracker that stops; subprocesses inherit it all the same."""
    if starter not in _running:
        return
    _running.remove(starter)
    if _running:
        return
    before = _inherited[0]
    if before is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = before
    if _first[0].pid == os.getpid():
        # os.environ does not see this, and exec and subprocesses do.
        os.putenv(VARIABLE, attrs.evolve(_first[0], runs=False).to_text())


def first_here() -> Starter | None:
    """Return who has started a tracker first in this process or, before a fork, in its parent; None if nobody has."""
    return attrs.evolve(_first[0], runs=bool(_running)) if _first else None


def mark() -> dict[str, str]:
    """Return the mark as a variable for a subprocess; empty if this process has started no tracker."""
    starter = first_here()
    return {} if starter is None else {VARIABLE: starter.to_text()}
