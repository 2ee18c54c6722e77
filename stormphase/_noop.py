"""The phase that is none: what `enter_phase` returns when there is nothing to record.

One shared object serves a disabled tracker, a library without an ambient tracker, a sink's own worker thread, and a
tracker that was told to record misuse and never raise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from stormphase._model import PhaseStatus
from stormphase._phase import PhaseHandle, PhaseToken

if TYPE_CHECKING:
    from types import TracebackType


class NoopPhase(PhaseHandle):
    """A handle that records nothing and refuses nothing. Stateless, so one serves all threads and processes."""

    __slots__ = ()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let every exception pass."""

    def close(self, *, error: BaseException | None = None) -> None:
        """Do nothing."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Do nothing."""

    def set_attributes(self, attributes: Any) -> None:
        """Do nothing."""

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Do nothing."""

    def pause(self) -> None:
        """Do nothing."""

    def resume(self) -> None:
        """Do nothing."""

    def release(self) -> PhaseToken:
        """Return a token that acquires nothing."""
        return NOOP_TOKEN

    @property
    def scope_id(self) -> str:
        """Zeros: no phase has them."""
        return "0" * 16

    @property
    def scope_id_number(self) -> int:
        """Zero: no phase has it."""
        return 0

    @property
    def name(self) -> str:
        """Blank: no phase has it."""
        return ""

    @property
    def path(self) -> tuple[str, ...]:
        """Empty."""
        return ()

    @property
    def phase_path(self) -> str:
        """Blank."""
        return ""

    @property
    def status(self) -> PhaseStatus:
        """Succeeded: there was nothing to fail."""
        return PhaseStatus.SUCCEEDED

    @property
    def closed(self) -> bool:
        """True: nothing is open."""
        return True

    @property
    def parent(self) -> PhaseHandle | None:
        """None."""
        return None

    @property
    def location(self) -> str:
        """Nowhere."""
        return "nowhere"

    def __reduce__(self) -> str:  # type: ignore[override]  # a phase refuses; this is none
        """Pickle as the one `NOOP`: a decorated function refers to it, and may be sent to another process."""
        return "NOOP"

    def __repr__(self) -> str:
        """Say what it is."""
        return "<no phase>"


NOOP = NoopPhase()
NOOP_TOKEN = PhaseToken(scope_id="0" * 16, session_id="", rank=0, thread_id=0, name="")
