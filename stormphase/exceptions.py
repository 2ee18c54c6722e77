"""Every error that stormphase raises; each message names what, where and the fix.

Facts stand in attributes, so that a program can decide by them and never has to parse a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class StormphaseError(Exception):
    """Base of all errors raised by this library; catching it never catches an error of the user's own code."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as what it is now; an error of a worker that its pool cannot read would have that wait for ever."""
        return _unpickled, (type(self), self.args), vars(self)


def _unpickled(kind: type[StormphaseError], args: tuple[Any, ...]) -> StormphaseError:
    """Return an error without its facts: pickle sets them next, and `__init__` would want them by name."""
    return kind.__new__(kind, *args)


class ConfigurationError(StormphaseError, ValueError):
    """Something was configured in a way that cannot work; raised at construction or at start, never in a training loop.

    Attributes:
        setting: the parameter or environment variable at fault.
        fix: one sentence that says what to write instead.
    """

    def __init__(self, problem: str, *, setting: str, fix: str) -> None:
        """Join `problem` and `fix` into the message."""
        super().__init__(f"{problem} {fix}")
        self.setting = setting
        self.fix = fix


class PhaseNameError(StormphaseError, ValueError):
    """A phase name is blank or not a string.

    Attributes:
        name: what was given.
    """

    def __init__(self, message: str, *, name: object) -> None:
        """Keep `name` beside the message."""
        super().__init__(message)
        self.name = name


class PhaseProtocolError(StormphaseError, RuntimeError):
    """A phase was entered, exited, paused or moved against the rules of its lane; nothing has changed.

    Attributes:
        action: what was tried: "enter", "exit", "pause", "resume", "release", "acquire" or "reset".
        phase: the phase it was tried on, as `name (file:line)`; where that line stands in a small helper, as
            `name (file:line, called at file:line)`.
        open_inside: the phases still open inside it, outermost first, each as `name (file:line)`.
        reason: the broken rule, one of the constants of `Misuse`.
        fix: what to do instead.
    """

    def __init__(
        self,
        problem: str,
        *,
        action: str,
        reason: str,
        fix: str,
        phase: str = "",
        open_inside: Sequence[str] = (),
    ) -> None:
        """Join `problem` and `fix` into the message."""
        super().__init__(f"{problem} {fix}")
        self.action = action
        self.phase = phase
        self.open_inside = tuple(open_inside)
        self.reason = reason
        self.fix = fix


class Misuse:
    """The rules that a caller can break: values of `PhaseProtocolError.reason` and keys of the misuse counts."""

    STILL_OPEN_INSIDE = "still_open_inside"
    ALREADY_ENDED = "already_ended"
    FOREIGN_THREAD = "foreign_thread"
    FOREIGN_TASK = "foreign_task"
    FOREIGN_PROCESS = "foreign_process"
    FOREIGN_TRACKER = "foreign_tracker"
    FOREIGN_CONTEXT = "foreign_context"
    FORGED_TOKEN = "forged_token"  # noqa: S105 - the name of a rule, not a secret
    STALE_TOKEN = "stale_token"  # noqa: S105 - the name of a rule, not a secret
    UNKNOWN_SCOPE = "unknown_scope"
    NOT_ACTIVE = "not_active"
    NOT_PAUSED = "not_paused"
    NOT_STARTED = "not_started"
    STOPPED = "stopped"
    BAD_NAME = "bad_name"


class _ChangeError(StormphaseError):
    """A phase's status was not changed: all that there is to know of the attempt."""

    def __init__(
        self,
        message: str,
        *,
        current: str,
        wanted: str,
        allowed: Sequence[str],
        owner: str | None = None,
        actor: str | None = None,
    ) -> None:
        """Keep the facts beside the message."""
        super().__init__(message)
        self.current = current
        self.wanted = wanted
        self.allowed = tuple(allowed)
        self.owner = owner
        self.actor = actor


class StatusError(_ChangeError):
    """The status table does not allow a change.

    Attributes:
        current: the status the phase has.
        wanted: the status that was asked for.
        allowed: the statuses that the table allows from `current`.
        owner: who owns the phase, or None if nobody does or nobody was asked about.
        actor: who asked, or None.
    """


class OwnershipError(_ChangeError):
    """The status table allows a change, but not to this actor.

    Attributes:
        current: the status the phase has.
        wanted: the status that was asked for.
        allowed: the statuses that the table allows from `current`.
        owner: who owns the phase, or None.
        actor: who asked, or None.
    """


class JournalError(StormphaseError):
    """A journal, or a directory of journals, cannot be read.

    Attributes:
        file: its path.
        problem: what is the matter.
        fix: what can be done.
    """

    def __init__(self, problem: str, *, file: str, fix: str) -> None:
        """Join `file`, `problem` and `fix` into the message, with what does not print escaped."""
        super().__init__(f"Cannot read {file!a}: {problem} {fix}")
        self.file = file
        self.problem = problem
        self.fix = fix


class JournalIncompleteError(JournalError):
    """A process is just creating the journal, or died while it did: there is nothing in it yet."""


class JournalDamagedError(JournalError):
    """The file is no journal, or so much of it is damaged or missing that it cannot be said whose it is."""


class JournalVersionError(JournalError):
    """The journal was written in a newer format than this release knows.

    Attributes:
        version: the format's version in the file.
        supported: the highest version that can be read.
    """

    def __init__(self, problem: str, *, file: str, fix: str, version: int, supported: int) -> None:
        """Keep the versions beside the message."""
        super().__init__(problem, file=file, fix=fix)
        self.version = version
        self.supported = supported


class StoreError(StormphaseError):
    """A record store cannot be used or written; nothing of what was asked was done, and it may be asked again.

    Attributes:
        path: the store's file, or what else it is known by.
        fix: what to do.
        may_pass: whether it may work later by itself, as when another process holds the file.
    """

    def __init__(self, problem: str, *, path: str, fix: str, may_pass: bool = False) -> None:
        """Join `problem` and `fix` into the message."""
        super().__init__(f"{problem} {fix}")
        self.path = path
        self.fix = fix
        self.may_pass = may_pass


class UnknownNameError(StormphaseError, LookupError):
    """A path or an attribute was asked for that no record has.

    Attributes:
        what: "path" or "attribute".
        name: what was asked for.
        near: known names that may have been meant, the nearest first.
    """

    def __init__(self, message: str, *, what: str, name: str, near: Sequence[str]) -> None:
        """Keep the facts beside the message."""
        super().__init__(message)
        self.what = what
        self.name = name
        self.near = tuple(near)
