"""From a dead process's journal to the spans that it never sent: what was open as LOST, what had ended as it ended.

A function of the journal alone: no clock, no environment, nothing of this process, so that a span that must be sent
again is sent the same to the byte. Names, ids and attributes are those of the live bridge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._attribute_counts import AttributeCounts
from stormphase._attributes import take, to_otel
from stormphase._lost import LOST_ERROR_TYPE, LOST_MESSAGE, lost_reason
from stormphase._model import PhaseStatus
from stormphase._status import FAILURES
from stormphase.journal._lost import lost_phases, unsent_phases
from stormphase.journal._records import end_status, lost_records
from stormphase.otel._journal_facts import ALL, LONG, OFF, SPAN_DIGITS, FactsError, SessionFacts, identity_of
from stormphase.otel._places import Place, Places
from stormphase.otel._plain_span import (
    HAS_IS_REMOTE,
    IS_REMOTE,
    RANDOM,
    SAMPLED,
    STATUS_ERROR,
    STATUS_UNSET,
    RecoveredSpan,
    SpanEvent,
    SpanLink,
    limited,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stormphase._record import PhaseRecord
    from stormphase.journal._image import EndNote, JournalImage, JournalPhase

PROMOTED_ATTRIBUTE: Final = "stormphase.phase.promoted"

_LONG_NS: Final = 1_000_000_000
_MAX_TIME_NS: Final = 2**63 - 1
_NS: Final = 1e9


@attrs.frozen(kw_only=True)
class Rebuilt:
    """What recovery makes of one dead process's journal.

    Attributes:
        spans: those to send, in order of their start.
        unsampled: how many are not sent, as the sampler said.
        unplaced: how many cannot be sent, since it is no longer known which trace they belong to.
    """

    spans: tuple[RecoveredSpan, ...]
    unsampled: int = 0
    unplaced: int = 0


def rebuild(image: JournalImage, lost: Iterable[PhaseRecord] | None = None) -> Rebuilt:
    """Return the spans of a process that is known to be dead.

    Args:
        image: its journal.
        lost: the records of what it left open, where the caller has them already.

    Raises:
        FactsError: if the journal does not say how its spans look, or what it says cannot be true.
    """
    facts = SessionFacts.from_json(image.facts.get("otel"))
    return _Builder(image, facts, lost_records(image, LOST_MESSAGE) if lost is None else lost).build()


class _Builder:
    """Builds the spans of one journal."""

    def __init__(self, image: JournalImage, facts: SessionFacts, lost: Iterable[PhaseRecord]) -> None:
        self._image = image
        self._facts = facts
        self._lost_causes = {record.scope_id: record.root_cause_scope_id for record in lost}
        self._to_send = (*lost_phases(image), *unsent_phases(image))
        self._places = Places(facts, (*image.ended, *self._to_send), self._to_send)
        identity = image.identity
        self._common: dict[str, Any] = {
            "stormphase.session.id": identity.session_id,
            "stormphase.session.attempt": identity.attempt,
            "stormphase.rank": identity.rank,
            "stormphase.local_rank": identity.local_rank,
            "stormphase.world_size": identity.world_size,
        }
        self._reason = lost_reason(image.stop_signal)
        self._last_path: tuple[tuple[str, ...], str] = ((), "")
        self._stacks = {
            (dump.sequence, thread["thread_id"]): (dump.at_ns, thread["frames"])
            for dump in image.stacks
            for thread in reversed(dump.threads)
        }

    def build(self) -> Rebuilt:
        spans: list[RecoveredSpan] = []
        unsampled = unplaced = 0
        promoted = self._places.promoted() if self._facts.keep_failures else set()
        for phase in self._to_send:
            place = self._places.of(phase)
            if place is None:
                unplaced += 1
            elif not place.is_sampled and phase.scope_id not in promoted:
                unsampled += 1
            else:
                try:
                    spans.append(self._phase_span(phase, place, is_promoted=not place.is_sampled))
                except FactsError:
                    unplaced += 1
        own = self._session_spans(is_promoted=bool(promoted))
        if self._facts.is_sampled or promoted:
            spans += own
        else:
            unsampled += len(own)
        spans.sort(key=lambda span: (span.started_ns, span.span_id))
        return Rebuilt(spans=tuple(spans), unsampled=unsampled, unplaced=unplaced)

    def _phase_span(self, phase: JournalPhase, place: Place, *, is_promoted: bool) -> RecoveredSpan:
        said = self._places.said_by(phase)
        begins = said is not None and self._places.may_begin(phase)
        parent_id = self._places.id_above(phase) if said is None else said.parent_id or 0
        started_ns, ended_ns = self._times(phase.entered_ns, phase.ended_ns)
        links: list[SpanLink] = []
        if begins:
            links.append(self._link(self._places.session, self._places.id_above(phase)))
        retried = self._retried(phase, place)
        if retried is not None:
            links.append(retried)
        return self._span(
            place,
            span_id=self._places.span_id(phase),
            parent_id=parent_id,
            # The root of a trace of its own, on all ranks but the first.
            is_parent_remote=begins and parent_id != 0,
            is_promoted=is_promoted,
            name=phase.path[-1] if phase.path else "",
            times=(started_ns, ended_ns),
            attributes=self._attributes(phase),
            events=self._events(phase, started_ns, ended_ns),
            links=links,
            error=self._error(phase),
        )

    def _attributes(self, phase: JournalPhase) -> dict[str, Any]:
        own: dict[str, Any] = {
            **self._common,
            "stormphase.phase.path": self._path_text(phase.path),
            "stormphase.phase.status": phase.status.value,
            "stormphase.phase.depth": len(phase.path),
            "stormphase.phase.sequence": phase.sequence,
            "stormphase.phase.attempt": phase.attempt,
            "thread.id": phase.thread_id,
        }
        if phase.thread_name is not None:
            own["thread.name"] = phase.thread_name
        if phase.step is not None:
            own["stormphase.step"] = phase.step
        if phase.status is PhaseStatus.LOST:
            own["stormphase.phase.reason"] = self._reason
            own["error.type"] = LOST_ERROR_TYPE
            cause = self._lost_causes.get(phase.scope_id, phase.scope_id)
            if cause != phase.scope_id:
                own["stormphase.phase.root_cause_scope_id"] = cause
        else:
            duration_ns = (phase.ended_ns or 0) - phase.entered_ns
            own["stormphase.phase.self_time"] = (duration_ns - phase.paused_ns - phase.children_ns) / _NS
            if phase.status_text is not None:
                own["stormphase.phase.reason"] = phase.status_text
            if phase.error is not None and phase.status in FAILURES:
                own["error.type"] = phase.error.type
                if phase.error.root_cause_scope_id != phase.scope_id:
                    own["stormphase.phase.root_cause_scope_id"] = phase.error.root_cause_scope_id
        counts = AttributeCounts()
        return {**to_otel(take(dict(phase.attributes), counts), counts), **own}

    def _path_text(self, path: tuple[str, ...]) -> str:
        """Return a path as people read it; many phases may share one of a thousand names."""
        if path is not self._last_path[0]:
            self._last_path = (path, " / ".join(path))
        return self._last_path[1]

    def _error(self, phase: JournalPhase) -> str | None:
        if phase.status is PhaseStatus.LOST:
            return f"{LOST_ERROR_TYPE}: {LOST_MESSAGE}"
        if phase.status is not PhaseStatus.FAILED:
            return None
        return "" if phase.error is None else f"{phase.error.type}: {phase.error.message}"

    def _events(self, phase: JournalPhase, started_ns: int, ended_ns: int) -> list[SpanEvent]:
        """Return what the live bridge would have put on the span: its exception, and its boundaries if asked to."""
        events: list[SpanEvent] = []
        error = phase.error
        if phase.status is PhaseStatus.LOST:
            events += self._lost_events(ended_ns, self._stack_of(phase))
        elif (
            self._facts.has_exceptions
            and error is not None
            and phase.status in FAILURES
            and error.root_cause_scope_id == phase.scope_id
        ):
            attributes = {"exception.type": error.type, "exception.message": error.message}
            if error.traceback is not None:
                attributes["exception.stacktrace"] = error.traceback
            events.append(SpanEvent(name="exception", time_ns=ended_ns, attributes=attributes))
        wish = self._facts.span_events
        is_long = wish == ALL or (wish == LONG and ended_ns - started_ns >= _LONG_NS)
        if is_long:
            events.insert(0, SpanEvent(name="stormphase.phase.enter", time_ns=started_ns))
        if is_long or (wish != OFF and phase.status in FAILURES):
            status = {"stormphase.phase.status": phase.status.value}
            events.append(SpanEvent(name="stormphase.phase.exit", time_ns=ended_ns, attributes=status))
        return events

    def _lost_events(self, ended_ns: int, stack: str | None = None) -> list[SpanEvent]:
        """Return the exception that a LOST span has, since backends (MLflow) mark only spans that have one."""
        if not self._facts.has_exceptions:
            return []
        attributes = {"exception.type": LOST_ERROR_TYPE, "exception.message": LOST_MESSAGE}
        if stack is not None:
            attributes["exception.stacktrace"] = stack
        return [SpanEvent(name="exception", time_ns=ended_ns, attributes=attributes)]

    def _stack_of(self, phase: JournalPhase) -> str | None:
        """Return its thread's Python stack, if it was noticed that the phase was open for too long."""
        at_ns, frames = self._stacks.get((phase.sequence, phase.thread_id), (0, None))
        if frames is None:
            return None
        after_s = max(0, at_ns - phase.entered_ns) / _NS
        return "\n".join([f"Python stack after {after_s:.1f} s, innermost last:", *frames])

    def _retried(self, phase: JournalPhase, place: Place) -> SpanLink | None:
        """Return the link to the try before, if it is known in which trace that was."""
        if phase.retry_of is None:
            return None
        before = self._places.known.get(phase.retry_of)
        if before is not None:
            where = self._places.of(before)
            return None if where is None else self._link(where, self._places.span_id(before))
        if place.root_id is not None and phase.trace is not None:
            return None
        return self._link(place, identity_of(phase.retry_of, SPAN_DIGITS))

    def _session_spans(self, *, is_promoted: bool) -> list[RecoveredSpan]:
        """Return the rank's span and, on rank 0, the session's, unless the process said that its bridge has sent them.

        They are LOST, but if it said how it ended.
        """
        image, facts, note = self._image, self._facts, self._image.end_note
        if (note is not None and not image.owners_are_unsent) or image.facts.get("forked_from") is not None:
            return []
        identity = image.identity
        times = self._times(image.started_ns, image.heartbeat_ns if note is None else note.ended_ns)
        error = _owners_error(note)
        error_type = {} if error is None else {"error.type": error[0]}
        error_text = None if error is None else ": ".join(error)
        events = self._lost_events(times[1]) if note is None else []
        own = {**self._common, "host.name": identity.host, "process.pid": image.process.pid}
        spans = [
            self._span(
                self._places.session,
                span_id=facts.rank_id,
                parent_id=facts.root_id,
                is_parent_remote=identity.rank != 0,
                is_promoted=is_promoted and not facts.is_sampled,
                name=f"rank {identity.rank}",
                times=times,
                attributes={**own, **error_type},
                events=events,
                error=error_text,
            )
        ]
        if identity.rank == 0:
            spans.append(
                self._span(
                    self._places.session,
                    span_id=facts.root_id,
                    parent_id=facts.caller_id or 0,
                    is_parent_remote=facts.caller_id is not None,
                    is_promoted=is_promoted and not facts.is_sampled,
                    name="session",
                    times=times,
                    attributes={**self._root_attributes(), **error_type},
                    events=events,
                    links=[] if facts.previous_root is None else [_link_to(*facts.previous_root)],
                    error=error_text,
                )
            )
        return spans

    def _root_attributes(self) -> dict[str, Any]:
        identity = self._image.identity
        attributes: dict[str, Any] = {
            **self._facts.root_attributes,
            "stormphase.session.id": identity.session_id,
            "stormphase.session.attempt": identity.attempt,
            "stormphase.world_size": identity.world_size,
        }
        name = self._image.facts.get("name")
        if isinstance(name, str):
            attributes["stormphase.session.name"] = name
        return attributes

    def _span(
        self,
        place: Place,
        *,
        span_id: int,
        parent_id: int,
        is_parent_remote: bool,
        is_promoted: bool,
        name: str,
        times: tuple[int, int],
        attributes: dict[str, Any],
        events: Sequence[SpanEvent] = (),
        links: Sequence[SpanLink] = (),
        error: str | None = None,
    ) -> RecoveredSpan:
        flags = self._flags(place) | (SAMPLED if is_promoted else 0) | HAS_IS_REMOTE
        span = RecoveredSpan(
            trace_id=place.trace_id,
            span_id=span_id,
            parent_id=parent_id,
            flags=flags | (IS_REMOTE if is_parent_remote else 0),
            tracestate=self._facts.tracestate if place.trace_id == self._facts.trace_id else "",
            name=name,
            started_ns=times[0],
            ended_ns=times[1],
            attributes={**attributes, PROMOTED_ATTRIBUTE: True} if is_promoted else attributes,
            events=tuple(events),
            links=tuple(links),
            status=STATUS_UNSET if error is None else STATUS_ERROR,
            status_message=error or "",
        )
        return limited(span, self._facts.limits)

    def _flags(self, place: Place) -> int:
        random = self._facts.flags & RANDOM if place.trace_id == self._facts.trace_id else RANDOM
        return (SAMPLED if place.is_sampled else 0) | random

    def _link(self, place: Place, span_id: int) -> SpanLink:
        return SpanLink(trace_id=place.trace_id, span_id=span_id, flags=self._flags(place) | HAS_IS_REMOTE)

    def _times(self, started_ns: int, ended_ns: int | None) -> tuple[int, int]:
        """Return start and end on the wall clock, the end never before the start."""
        to_wall_ns = self._image.anchor.to_wall_ns
        start_ns = min(max(0, to_wall_ns(started_ns)), _MAX_TIME_NS)
        end_ns = to_wall_ns(started_ns if ended_ns is None else ended_ns)
        return start_ns, min(max(start_ns, end_ns), _MAX_TIME_NS)


def _owners_error(note: EndNote | None) -> tuple[str, str] | None:
    """Return type and message of the error on the spans of rank and session, if there is one."""
    if note is None:
        return LOST_ERROR_TYPE, LOST_MESSAGE
    if end_status(note) not in FAILURES:
        return None
    return note.error_type or "", note.error_message or ""


def _link_to(trace_id: int, span_id: int) -> SpanLink:
    flags = SAMPLED | RANDOM | HAS_IS_REMOTE | IS_REMOTE
    return SpanLink(trace_id=trace_id, span_id=span_id, flags=flags)
