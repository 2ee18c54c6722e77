"""Where the spans of a dead process hang: in which trace, under which parent, and whether they are sampled.

A journal names the trace only of the phases that begin one, or that may outlive what they hang under; all others are
where the phase around them is, up to the session's trace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from stormphase._status import FAILURES
from stormphase.otel._journal_facts import SPAN_DIGITS, FactsError, PhaseTrace, SessionFacts, identity_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stormphase.journal._image import JournalPhase


@attrs.frozen(kw_only=True)
class Place:
    """The trace a phase belongs to, and the sampler's word; `root_id` is None in the session's trace."""

    trace_id: int
    is_sampled: bool
    root_id: int | None = None


class Places:
    """Knows the places of one journal's phases.

    Args:
        facts: the session's.
        known: all phases that the journal still has.
        to_send: those of them whose spans are to be sent.

    Attributes:
        known: all phases by their scope ids.
        session: the session's trace.
    """

    def __init__(self, facts: SessionFacts, known: Sequence[JournalPhase], to_send: Sequence[JournalPhase]) -> None:
        """Look at nothing yet."""
        self._facts = facts
        self._phases_to_send = to_send
        self.known: dict[str, JournalPhase] = {phase.scope_id: phase for phase in known}
        self._said: dict[str, PhaseTrace] = {}
        self._places: dict[str, Place | None] = {}
        self.session = Place(trace_id=facts.trace_id, is_sampled=facts.is_sampled)

    def said_by(self, phase: JournalPhase) -> PhaseTrace | None:
        """Return what the journal says of the phase's own trace, or None.

        Raises:
            FactsError: if that cannot be true.
        """
        if phase.trace is None:
            return None
        if phase.scope_id not in self._said:
            self._said[phase.scope_id] = PhaseTrace.from_json(phase.trace)
        return self._said[phase.scope_id]

    def of(self, phase: JournalPhase) -> Place | None:
        """Return the trace of a phase: what it says itself, else what the nearest phase around it says."""
        way: list[str] = []
        seen: set[str] = set()
        current: JournalPhase | None = phase
        place: Place | None = self.session
        while current is not None:
            if current.scope_id in seen:  # A circle: only damage makes one.
                place = None
                break
            seen.add(current.scope_id)
            if current.scope_id in self._places:
                place = self._places[current.scope_id]
                break
            way.append(current.scope_id)
            try:
                said = self.said_by(current)
            except FactsError:
                place = None
                break
            if said is not None:
                root_id = None if said.trace_id == self._facts.trace_id else said.root_id
                place = Place(trace_id=said.trace_id, is_sampled=said.is_sampled, root_id=root_id)
                break
            above = None if current.parent_scope_id is None else self.known.get(current.parent_scope_id)
            if self.may_begin(current) or (above is None and self._is_beneath(current)):
                place = None  # Its own record, or the one that named its trace, has not all of it any more.
                break
            current = above
        self._places.update(dict.fromkeys(way, place))
        return place

    def may_begin(self, phase: JournalPhase) -> bool:
        """Return whether the phase begins a trace of its own."""
        name = self._facts.trace_per
        return name is not None and phase.path[-1:] == (name,) and name not in phase.path[:-1]

    def _is_beneath(self, phase: JournalPhase) -> bool:
        """Return whether the phase may be in a trace that a phase around it began."""
        name = self._facts.trace_per
        return name is not None and not phase.is_lane_root and name in phase.path[:-1]

    def span_id(self, phase: JournalPhase) -> int:
        """Return the id of the phase's span: its scope id, but at the root of a trace that all ranks share."""
        said = self.said_by(phase)
        if said is not None and said.parent_id is None and said.root_id is not None:
            return said.root_id
        return identity_of(phase.scope_id, SPAN_DIGITS)

    def id_above(self, phase: JournalPhase) -> int:
        """Return the span id of the phase around, or of the rank."""
        if phase.parent_scope_id is None:
            return self._facts.rank_id
        above = self.known.get(phase.parent_scope_id)
        return identity_of(phase.parent_scope_id, SPAN_DIGITS) if above is None else self.span_id(above)

    def promoted(self) -> set[str]:
        """Return the failures that are sent although they are not sampled, and what they hang under."""
        found: set[str] = set()
        for phase in self._phases_to_send:
            place = self.of(phase)
            if place is None or place.is_sampled or phase.status not in FAILURES:
                continue
            current: JournalPhase | None = phase
            while current is not None and current.scope_id not in found:
                found.add(current.scope_id)
                above = current.parent_scope_id
                current = None if above is None else self.known.get(above)
        return found
