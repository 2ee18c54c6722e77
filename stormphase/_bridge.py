"""What a bridge to another system must do, and what it learns of the session; the tracker knows no more of any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from stormphase._clock import ClockAnchor
from stormphase._model import RankIdentity
from stormphase.typing import Clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormphase._lanes import ContextCarrier, LaneSet
    from stormphase._phase import PhaseHandle


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
    """

    name: str | None
    identity: RankIdentity
    pid: int
    clock: Clock
    anchor: ClockAnchor
    started_ns: int
    environ: Mapping[str, str]


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

    def take(self, phase: PhaseHandle) -> object:
        """Take one ended phase."""
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


class DefaultBridge:
    """Stands for the bridge on the globally set OTel providers; `stormphase/__init__` says how to make one."""

    make: Callable[[], Bridge] | None = None


DEFAULT_BRIDGE: Final = DefaultBridge()
