"""What a bridge to another system must do, and what it learns of the session; the tracker knows no more of any."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from stormphase._clock import ClockAnchor
from stormphase._model import RankIdentity
from stormphase.typing import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from stormphase._lanes import ContextCarrier, LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase.capture import CapturedLine

_log = logging.getLogger("stormphase")


@attrs.frozen
class BridgeSession:
    """What a bridge learns of the session when it is attached.

    Attributes:
        name: the job's name, as given to the tracker.
        identity: session, attempt, rank, world size.
        pid: the process that started the session; a forked child sends no session or rank span.
        clock: where times come from.
        anchor: relates the clock's two times.
        started_ns: when the session started, monotonic.
        environ: the environment, as it was at start.
        is_worker: whether this process works for one that sends session and rank, and its phases may be of any trace.
    """

    name: str | None
    identity: RankIdentity
    pid: int
    clock: Clock
    anchor: ClockAnchor
    started_ns: int
    environ: Mapping[str, str]
    is_worker: bool = False


class Bridge(Protocol):
    """What turns phases into another system's spans: `stormphase.otel.OTelBridge`, or a user's own.

    `attach`, `bind` and `environment` are called on the caller's thread, `exit_hook` on every exiting one, the others
    on the bridge's own worker.
    """

    exit_hook: Callable[[PhaseHandle], object] | None

    def attach(self, session: BridgeSession) -> ContextCarrier:
        """Get ready, and return what carries the current phase."""
        ...

    def bind(self, lanes: LaneSet) -> None:
        """Learn the lanes, right after `attach`."""
        ...

    def take(self, phase: Any) -> object:
        """Take one ended phase, or the notice of one that is open for too long (`_overdue.OverdueNotice`)."""
        ...

    def tick(self) -> object:
        """Do what is due now and then."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Deliver what was taken; return whether all of it was."""
        ...

    def finish(self, outcome: BaseException | None, ended_ns: int) -> object:
        """Take note that the session has ended, and when on the monotonic clock."""
        ...

    def after_fork_in_child(self) -> None:
        """Forget what is the parent's."""
        ...

    def stats(self) -> dict[str, int]:
        """Return exact counts by name."""
        ...

    def environment(self) -> dict[str, str]:
        """Return the variables by which a child process finds its parent span."""
        ...


class JournalingBridge(Bridge, Protocol):
    """What a bridge may offer beyond `Bridge`, so that a journal can speak for it after its process has died.

    All of it is optional: of a bridge without it a journal keeps nothing, and nothing is recovered.
    """

    phase_trace_facts: Callable[[PhaseHandle], Mapping[str, Any] | None] | None
    on_handed_over: Callable[[Sequence[PhaseHandle]], object] | None
    on_finished: Callable[[], object] | None

    def journal_facts(self) -> Mapping[str, Any] | None:
        """Return what a journal's header must keep of the session, as JSON values of less than 8 KiB, or None."""
        ...

    def recover(self, directory: Path) -> object:
        """Begin to send, off this thread, what dead attempts of the session left in their journals' directory."""
        ...


def journal_facts_of(bridge: Bridge | None) -> Mapping[str, Any] | None:
    """Return what a journal keeps for the bridge; None if it has nothing to keep, cannot tell, or raises."""
    ask = getattr(bridge, "journal_facts", None)
    try:
        facts = None if ask is None else ask()
    except Exception:  # noqa: BLE001 - a user's own bridge may raise anything; the session must start all the same
        _log.warning("stormphase: the bridge could not say what the journal is to keep", exc_info=True)
        return None
    return facts if isinstance(facts, Mapping) else None


def phase_trace_of(bridge: Bridge | None) -> Callable[[PhaseHandle], Mapping[str, Any] | None] | None:
    """Return what tells a phase's trace to the journal at its enter; None where no phase has anything to say."""
    return getattr(bridge, "phase_trace_facts", None)


def listen(
    bridge: Bridge,
    *,
    on_handed_over: Callable[[Sequence[PhaseHandle]], object],
    on_finished: Callable[[], object] | None = None,
) -> bool:
    """Have a bridge tell of the phases that it has handed over; False if it cannot.

    Args:
        bridge: any.
        on_handed_over: called on the bridge's worker with ended phases that recovery need not send, each of them once.
        on_finished: called there once the rank's own span was handed over and flushed.
    """
    if not hasattr(bridge, "on_handed_over"):
        return False
    bridge.on_handed_over = on_handed_over
    if hasattr(bridge, "on_finished"):
        bridge.on_finished = on_finished
    return True


def tells_of_its_end(bridge: Bridge | None) -> bool:
    """Return whether a bridge that `listen` was called for says when it has sent the rank's own span."""
    return hasattr(bridge, "on_handed_over") and hasattr(bridge, "on_finished")


def give_output(bridge: Bridge | None, taker: Callable[..., Callable[[PhaseHandle], Sequence[CapturedLine]]]) -> None:
    """Let a bridge have what phases said, if it can do something with that.

    Args:
        bridge: any, or none; one that can has `use_output`, called on the thread that begins to capture, and perhaps
            `takes_output` to be asked.
        taker: makes what it takes output with; called with `wants`.
    """
    use = getattr(bridge, "use_output", None)
    if use is not None:
        use(taker(wants=lambda: bool(getattr(bridge, "takes_output", True))))


def recover_with(bridge: Bridge | None, directory: Path) -> None:
    """Have a bridge send what attempts before this one left in `directory`, if it can. Never raises, nor waits."""
    recover = getattr(bridge, "recover", None)
    try:
        if recover is not None:
            recover(directory)
    except Exception:  # noqa: BLE001 - as above
        _log.warning("stormphase: the bridge could not recover what earlier attempts left behind", exc_info=True)


class DefaultBridge:
    """Stands for the bridge on the globally set OTel providers; `stormphase/__init__` says how to make one."""

    make: Callable[[], Bridge] | None = None


DEFAULT_BRIDGE: Final = DefaultBridge()
