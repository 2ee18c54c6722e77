"""The session trace's span budget: backends cap traces, so we drop by rule and count, before they drop in silence."""

# ruff: noqa: SLF001 - a span is a phase: the bridge shares the slots of the core's handles and lanes

from __future__ import annotations

from typing import TYPE_CHECKING

from stormphase.otel._carrier import NEEDED, PROMOTED

if TYPE_CHECKING:
    from stormphase.otel._span import PhaseSpan


class SpanBudget:
    """This rank's share of the budget; for the bridge's worker thread.

    A span that is sent makes its open ancestors needed: they are paid for at once, and sent when they end, so nothing
    that arrives hangs under something that does not.

    Args:
        span_count: for all ranks together; None for no limit.
        world_size: how many share it.
    """

    def __init__(self, span_count: int | None, world_size: int) -> None:
        """Take the share."""
        self.left = None if span_count is None else max(1, span_count // world_size)

    def admits(self, phase: PhaseSpan, *, is_failure: bool) -> bool:
        """Return whether the span may be sent, and pay for it; a failure and its ancestors always may."""
        if self.left is None or getattr(phase, "_fate", None) in (NEEDED, PROMOTED):
            return True
        # A phase that moved has a new handle, which does not know whether a child of its old one was sent.
        has_moved = phase._extra is not None and phase._extra.resumed_ns is not None
        ancestors = unmarked_ancestors(phase)
        price = 1 + len(ancestors)
        if price > self.left and not (is_failure or has_moved):
            return False
        self.left = max(0, self.left - price)
        for ancestor in ancestors:
            ancestor._fate = NEEDED
        return True

    def admits_pending(self, phase: PhaseSpan) -> bool:
        """Return whether a pending span may be sent, and pay for it and for what it will hang under."""
        if self.left is None:
            return True
        unpaid = [] if hasattr(phase, "_fate") else [phase, *unmarked_ancestors(phase)]
        price = 1 + len(unpaid)
        if price > self.left:
            return False
        self.left -= price
        for needed in unpaid:
            needed._fate = NEEDED
        return True


def unmarked_ancestors(phase: PhaseSpan) -> list[PhaseSpan]:
    """Return the ancestors, nearest first, up to the first of which it is known what becomes of it."""
    found: list[PhaseSpan] = []
    carrier = phase.carrier
    parent = carrier.visible_parent(phase)
    while parent is not None and not hasattr(parent, "_fate"):
        found.append(parent)
        parent = carrier.visible_parent(parent)
    return found


def promote(phase: PhaseSpan) -> None:
    """Make the open ancestors of a failure in an unsampled trace be sent too."""
    carrier = phase.carrier
    parent = carrier.visible_parent(phase)
    while parent is not None and getattr(parent, "_fate", None) != PROMOTED:
        parent._fate = PROMOTED
        parent = carrier.visible_parent(parent)
