"""Journals made by hand: what their reader would give, without a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from stormphase._boundary import all_attributes
from stormphase._clock import ClockAnchor
from stormphase._model import PhaseStatus, ProcessIdentity, RankIdentity
from stormphase._phase import FINAL, PhaseHandle
from stormphase.journal._image import JournalImage, JournalPhase
from stormphase.otel._journal_facts import SessionFacts
from stormphase.otel._plain_span import HAS_IS_REMOTE, IS_REMOTE, RecoveredSpan

if TYPE_CHECKING:
    from conftest import Bridged
    from opentelemetry.sdk.trace import ReadableSpan

STARTED_NS = 1_000
ALIVE_NS = 5_000_000_000
WALL_NS = 1_700_000_000_000_000_000
FACTS = SessionFacts(
    trace_id=0xABC,
    root_id=0x1,
    rank_id=0x2,
    flags=3,
    scope_name="stormphase",
    scope_version="1.2",
    schema_url="https://schema.example/2",
    resource={"service.name": "resnet"},
)


def phase(sequence: int, *names: str, **more: Any) -> JournalPhase:
    """Return an open phase of a path, entered at its sequence."""
    return JournalPhase(
        **{
            "sequence": sequence,
            "scope_id": f"{sequence:016x}",
            "parent_scope_id": None,
            "path": names,
            "status": PhaseStatus.ACTIVE,
            "entered_ns": STARTED_NS + sequence,
            "thread_id": 77,
            "thread_name": "MainThread",
            **more,
        }
    )


def image(
    *open_phases: JournalPhase,
    ended: tuple[JournalPhase, ...] = (),
    otel: SessionFacts | dict[str, Any] | None = FACTS,
    rank: int = 0,
    header: dict[str, Any] | None = None,
    **more: Any,
) -> JournalImage:
    """Return the journal of a process that was last known alive at `ALIVE_NS`."""
    identity = RankIdentity(
        session_id="launch-1",
        attempt=0,
        rank=rank,
        local_rank=rank,
        world_size=2,
        local_world_size=None,
        node_rank=None,
        host="host-1",
        launcher="explicit",
    )
    facts = {"name": "job", "otel": attrs_or_json(otel), **(header or {})}
    fields: dict[str, Any] = {
        "file": Path(f"rank-{rank:05}.attempt-0.pid-4711.0.journal"),
        "identity": identity,
        "process": ProcessIdentity(host="host-1", boot_id="boot", pid=4711, started=1, pid_namespace=1),
        "facts": facts,
        "anchor": ClockAnchor(monotonic_ns=0, wall_ns=WALL_NS, uncertainty_ns=0),
        "started_ns": STARTED_NS,
        "heartbeat_ns": ALIVE_NS,
        "heartbeat_wall_ns": WALL_NS + ALIVE_NS,
        "step": None,
        "end_note": None,
        "stop_signal": None,
        "stop_asked_ns": None,
        "open": open_phases,
        "ended": ended,
        "totals": {},
        "unwritten": 0,
        "unfolded": 0,
        "cleared_unsent": 0,
        "stacks": (),
        "damage": (),
    }
    return JournalImage(**{**fields, **more})


def attrs_or_json(otel: SessionFacts | dict[str, Any] | None) -> dict[str, Any] | None:
    """Return facts as a header holds them."""
    return otel.to_json() if isinstance(otel, SessionFacts) else otel


def journalled(handle: PhaseHandle, rig: Bridged) -> JournalPhase:
    """Return what a journal would say of a phase, open or ended."""
    parent, extra, lane = handle.parent, handle._extra, handle._lane
    tell = rig.bridge.phase_trace_facts
    # The journal numbers phases; the id of a trace's root is not in it.
    number = PhaseHandle.scope_id_number.fget
    return JournalPhase(
        sequence=handle._sequence,
        scope_id=f"{number(handle):016x}",
        parent_scope_id=None if parent is None else f"{number(parent):016x}",
        path=handle.path,
        status=handle.status,
        entered_ns=handle._entered_ns,
        ended_ns=handle._ended_ns if handle.status in FINAL else None,
        children_ns=handle._children_ns,
        paused_ns=0 if extra is None else extra.paused_ns,
        step=handle._step,
        thread_id=lane.thread_id,
        thread_name=lane.thread_name,
        is_lane_root=not isinstance(handle._below, PhaseHandle),
        attributes=all_attributes(handle) or {},
        attempt=0 if extra is None else extra.attempt,
        retry_of=None if extra is None or extra.retry_of is None else extra.retry_of.scope_id,
        error=None if extra is None else extra.error,
        status_text=None if extra is None else extra.status_text,
        trace=None if tell is None else tell(handle),
    )


def image_of(rig: Bridged, *handles: PhaseHandle, **more: Any) -> JournalImage:
    """Return the journal of a bridged session that died now, with these phases in it."""
    phases = [journalled(handle, rig) for handle in handles]
    plain = image(
        *(found for found in phases if found.ended_ns is None),
        ended=tuple(found for found in phases if found.ended_ns is not None),
        otel=rig.bridge.journal_facts(),
        identity=rig.bridge._session.identity,
        process=ProcessIdentity(host="host-1", boot_id="boot", pid=4711, started=1, pid_namespace=1),
        anchor=rig.lanes.anchor,
        started_ns=rig.bridge._session.started_ns,
        heartbeat_ns=rig.clock.monotonic_ns(),
    )
    return attrs.evolve(plain, **more)


def as_live(span: ReadableSpan) -> dict[str, Any]:
    """Return what the live bridge sent, in the words of a recovered span."""
    parent = span.parent
    is_remote = parent is not None and parent.is_remote
    return {
        "trace_id": span.context.trace_id,
        "span_id": span.context.span_id,
        "parent_id": 0 if parent is None else parent.span_id,
        "flags": int(span.context.trace_flags) | HAS_IS_REMOTE | (IS_REMOTE if is_remote else 0),
        "name": span.name,
        "times": (span.start_time, span.end_time),
        "attributes": dict(span.attributes),
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "events": [(event.name, event.timestamp, dict(event.attributes)) for event in span.events],
        "links": [(link.context.trace_id, link.context.span_id) for link in span.links],
        "status": (span.status.status_code.value, span.status.description or ""),
    }


def as_sent(span: RecoveredSpan) -> dict[str, Any]:
    """Return a recovered span likewise."""
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "flags": span.flags,
        "name": span.name,
        "times": (span.started_ns, span.ended_ns),
        "attributes": dict(span.attributes),
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "events": [(event.name, event.time_ns, dict(event.attributes)) for event in span.events],
        "links": [(link.trace_id, link.span_id) for link in span.links],
        "status": (span.status, span.status_message),
    }
