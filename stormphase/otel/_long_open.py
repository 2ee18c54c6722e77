"""Finds open phases that are to be announced while they run: long ones, or all. For the bridge's worker thread."""

# ruff: noqa: SLF001 - a span is a phase: the bridge shares the slots of the core's handles and lanes

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stormphase.otel._span import PhaseSpan, is_quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stormphase._lanes import LaneSet

LONG_NS: Final = 1_000_000_000


class LongOpen:
    """Finds each phase once, when it has been open for `LONG_NS`, or for less if so asked."""

    def __init__(self) -> None:
        """Start with none found."""
        # By sequence number: a phase that moves to another thread gets a new handle.
        self._found: set[int] = set()

    def newly(self, lanes: LaneSet, open_for_ns: int = LONG_NS) -> Iterator[PhaseSpan]:
        """Yield the phases that are open for so long and were not found before, outermost first within each lane."""
        before_ns = lanes.now() - open_for_ns
        for lane in lanes.lanes():
            fresh = []
            node = lane.top
            while isinstance(node, PhaseSpan) and node._sequence not in self._found:
                # What lies beneath a found one was entered earlier, and found with it.
                fresh.append(node)
                node = node._below
            yield from self._long(reversed(fresh), before_ns)
        yield from self._long(iter([*lanes.parked]), before_ns)

    def _long(self, phases: Iterator[object], before_ns: int) -> Iterator[PhaseSpan]:
        for phase in phases:
            if not isinstance(phase, PhaseSpan) or phase._sequence in self._found:
                continue
            if phase._entered_ns <= before_ns and not phase.closed and not is_quiet(phase):
                self._found.add(phase._sequence)
                yield phase

    def has_found(self, phase: PhaseSpan) -> bool:
        """Return whether the phase was found."""
        return phase._sequence in self._found

    def forget(self, phase: PhaseSpan) -> bool:
        """Return whether the phase, which has ended, had been found."""
        if phase._sequence in self._found:
            self._found.discard(phase._sequence)
            return True
        return False
