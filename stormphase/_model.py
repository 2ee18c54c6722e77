"""The one vocabulary: statuses, errors and identities, all frozen; boundaries are in `_phase_boundary`.

Nothing here points at a recorder, a thread or an exception, so every value may be kept, sent and pickled.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

PHASE_ENTER: Final = "phase_enter"
PHASE_EXIT: Final = "phase_exit"
PHASE_MISUSE: Final = "phase_misuse"
PHASE_OVERDUE: Final = "phase_overdue"


class PhaseStatus(str, enum.Enum):
    """How a phase stands; lower case wherever it leaves Python. What may follow what: `stormphase._status`."""

    ACTIVE = "active"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"
    LOST = "lost"

    # Enum's own is a Python function; members equal their strings, and so must their hashes.
    __hash__ = str.__hash__

    def __str__(self) -> str:
        """Return the lower-case value, also on Pythons whose format() would give the member's name."""
        return self.value


class EndKind(str, enum.Enum):
    """How a process ended by its own word, as its journal has it.

    CLEAN: in order, or by an exit with status 0. ENDED: when its interpreter did, with a status that nobody knows.
    EXIT: by an exit with another status. SIGNAL: as a signal asked. EXCEPTION: by any other exception.
    """

    CLEAN = "clean"
    ENDED = "ended"
    EXIT = "exit"
    SIGNAL = "signal"
    EXCEPTION = "exception"

    __hash__ = str.__hash__

    def __str__(self) -> str:
        """Return the lower-case value, also on Pythons whose format() would give the member's name."""
        return self.value


@attrs.frozen
class PhaseError:
    """Why a phase failed or was cancelled.

    Attributes:
        type: qualified name of the exception's class.
        message: its text, bounded; `<unprintable ...>` if its `__str__` raised.
        traceback: the formatted traceback, bounded; None in every phase that the exception only passed through.
        root_cause_scope_id: the scope in which the exception arose; the phase's own id at the origin.
        root_cause_path: the path of that scope; empty where it is no phase, or unknown.
    """

    type: str
    message: str
    traceback: str | None
    root_cause_scope_id: str
    root_cause_path: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, str | None]:
        """Return the `error` of a boundary's payload."""
        return {
            "type": self.type,
            "message": self.message,
            "traceback": self.traceback,
            "root_cause_scope_id": self.root_cause_scope_id,
        }


@attrs.frozen
class RankIdentity:
    """Which process of which session this is.

    Attributes:
        session_id: one launch of the job, the same on all its ranks.
        attempt: counts the session's restarts, from 0.
        rank: this process among all, 0 <= rank < world_size.
        local_rank: this process among those of its host.
        world_size: how many processes the session has.
        local_world_size: how many of them are on this host, or None if the launcher does not say.
        node_rank: this host among the hosts, or None if the launcher does not say.
        host: the host's name.
        launcher: what told us, as docs/identity.md names them: "explicit", "torchrun", "slurm", ..., or "single".
    """

    session_id: str
    attempt: int
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int | None
    node_rank: int | None
    host: str
    launcher: str


@attrs.frozen(kw_only=True, cache_hash=True)  # Records are told apart by it, thousands by the same one.
class ProcessIdentity:
    """Which process on which machine, told apart also from one that was given the same pid later.

    Attributes:
        host: the machine's name.
        boot_id: what is new each time the machine boots, a UUID as `str(uuid.UUID)` writes it; None if unknown.
        pid: the process id, in its own pid namespace.
        started: when it started, field 22 of /proc/PID/stat; None if unknown.
        pid_namespace: inode of its pid namespace; None if unknown.
    """

    host: str
    boot_id: str | None
    pid: int
    started: int | None
    pid_namespace: int | None
