"""What is said to a caller who breaks a rule: what was tried, where the phases were entered, why it may be, the fix."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Final

from stormphase.exceptions import Misuse, PhaseProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stormphase._counts import Counts
    from stormphase._phase import PhaseHandle

MAX_NAMED: Final = 8
_log: Final = logging.getLogger("stormphase")
_USE_WITH: Final = 'use "with tracker.enter_phase(...)"'
_MOVE: Final = "token = phase.release() in its owner, then tracker.acquire(token) where it goes on"


def tell(problem: PhaseProtocolError, counts: Counts, pending: BaseException | None, *, raises: bool) -> None:
    """Count a misuse, and raise it if `raises`; with an exception in flight log it instead, once a reason and phase.

    That exception is the user's, and is not touched.

    Raises:
        PhaseProtocolError: `problem`, if nothing is in flight and `raises` is true.
    """
    counts.add(problem.reason)
    if pending is None and sys.exc_info()[1] is None:
        if raises:
            raise problem
        return
    if counts.is_news(f"{problem.reason} {problem.phase}"):
        with contextlib.suppress(Exception):  # A handler of the user's may raise, and so hide why it was called.
            _log.warning("stormphase: not raised, since an exception is in flight: %s", problem)


def still_open_inside(phase: PhaseHandle, inside: Sequence[PhaseHandle], action: str) -> PhaseProtocolError:
    """Say which phases are open inside the one that was to be exited, paused or released."""
    labels = [inner.label for inner in inside]
    shown = ", ".join(labels[:MAX_NAMED]) + (f" and {len(labels) - MAX_NAMED} more" if len(labels) > MAX_NAMED else "")
    verb = "is" if len(labels) == 1 else "are"
    first = "it first" if len(labels) == 1 else "them first, from the innermost outwards"
    return PhaseProtocolError(
        f"Cannot {action} phase {phase.label}: {shown} {verb} still open inside it. "
        "Likely causes: an exit that an early return skipped, a generator that yields inside a phase, "
        "or a callback that ends what another one began.",
        action=action,
        reason=Misuse.STILL_OPEN_INSIDE,
        phase=phase.label,
        open_inside=labels,
        fix=f"Exit {first}, or {_USE_WITH}.",
    )


def already_ended(phase: PhaseHandle, action: str) -> PhaseProtocolError:
    """Say that the phase has ended, and how."""
    return PhaseProtocolError(
        f"Cannot {action} phase {phase.label}: it has already ended as {phase.status}.",
        action=action,
        reason=Misuse.ALREADY_ENDED,
        phase=phase.label,
        fix=f"End a phase once, from one place: {_USE_WITH}.",
    )


def foreign_owner(phase: PhaseHandle, caller: str, action: str, reason: str) -> PhaseProtocolError:
    """Say who owns the phase and who tried."""
    return PhaseProtocolError(
        f"Cannot {action} phase {phase.label} from {caller}: it belongs to {phase._lane.label}.",
        action=action,
        reason=reason,
        phase=phase.label,
        fix=f"Do it in its owner, or move the phase: {_MOVE}.",
    )


def foreign_process(phase: PhaseHandle, pid: int, action: str) -> PhaseProtocolError:
    """Say that a forked child tried to end what its parent has open."""
    return PhaseProtocolError(
        f"Cannot {action} phase {phase.label} in process {pid}: it belongs to the process this one was forked from.",
        action=action,
        reason=Misuse.FOREIGN_PROCESS,
        phase=phase.label,
        fix="Let the parent end it; phases entered after the fork are the child's own.",
    )


def not_active(phase: PhaseHandle, action: str) -> PhaseProtocolError:
    """Say that only an active phase can be paused or released."""
    return PhaseProtocolError(
        f"Cannot {action} phase {phase.label}: it is {phase.status}.",
        action=action,
        reason=Misuse.NOT_ACTIVE,
        phase=phase.label,
        fix="Pause or release a phase once, while it is active.",
    )


def not_paused(phase: PhaseHandle) -> PhaseProtocolError:
    """Say that only a paused phase can be resumed."""
    return PhaseProtocolError(
        f"Cannot resume phase {phase.label}: it is {phase.status}.",
        action="resume",
        reason=Misuse.NOT_PAUSED,
        phase=phase.label,
        fix="Pause it first, with phase.pause().",
    )


def released(phase: PhaseHandle, action: str) -> PhaseProtocolError:
    """Say that the handle or token is of before a release."""
    return PhaseProtocolError(
        f"Cannot {action} phase {phase.label}: it was released, and this handle or token is of before that.",
        action=action,
        reason=Misuse.STALE_TOKEN,
        phase=phase.label,
        fix="Use the handle that tracker.acquire(token) returned.",
    )


def bad_token(token: object, action: str, reason: str) -> PhaseProtocolError:
    """Say why a token proves nothing."""
    why = {
        Misuse.FORGED_TOKEN: "it was not made by enter or release (a copy, an unpickled twin or a forgery is no proof)",
        Misuse.STALE_TOKEN: "the phase has been released, acquired, ended or reset since it was made",
        Misuse.FOREIGN_TRACKER: "it belongs to another tracker",
    }[reason]
    return PhaseProtocolError(
        f"Cannot {action} with {token!r:.120}: {why}.",
        action=action,
        reason=reason,
        fix="Keep the very object that enter or release returned, and give it back once to the same tracker.",
    )


def unknown_scope(scope_id: object, where: str) -> PhaseProtocolError:
    """Say that nothing with this id is open on the lane."""
    return PhaseProtocolError(
        f"Cannot exit scope {scope_id!r:.40}: no such phase is open on {where}.",
        action="exit",
        reason=Misuse.UNKNOWN_SCOPE,
        fix="Give the scope_id that the enter boundary carries, once, from the lane that entered it.",
    )


def not_running(action: str, *, has_stopped: bool) -> PhaseProtocolError:
    """Say that the tracker has not started, or has stopped."""
    state = "has stopped" if has_stopped else "has not started"
    return PhaseProtocolError(
        f"Cannot {action} a phase: the tracker {state}.",
        action=action,
        reason=Misuse.STOPPED if has_stopped else Misuse.NOT_STARTED,
        fix=(
            'Make a new PhaseTracker, and use "with PhaseTracker(...) as tracker:" around all phases.'
            if has_stopped
            else 'Use "with PhaseTracker(...) as tracker:" around all phases, or call tracker.start() first.'
        ),
    )
