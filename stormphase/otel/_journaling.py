"""What the bridge gives to a journal, for recovery: once of the session, and of the few phases that say more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stormphase.otel._journal_facts import MAX_FLAGS, Limits, SessionFacts
from stormphase.otel._provider import SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION
from stormphase.otel._span import PhaseSpan

if TYPE_CHECKING:
    from pathlib import Path

    from stormphase._bridge import BridgeSession
    from stormphase._phase import PhaseHandle
    from stormphase.otel._background import BackgroundRecovery
    from stormphase.otel._provider import SdkTracer
    from stormphase.otel._traces import SessionTraces


def session_facts(traces: SessionTraces, sdk: SdkTracer, **options: Any) -> SessionFacts:
    """Return the facts of a session whose spans go to an SDK's provider, with the resource as it is now.

    Args:
        traces: the session's.
        sdk: the provider and its tracer.
        options: the bridge's, by the names of `SessionFacts`.
    """
    session, caller, previous = traces.session, traces.caller, traces.previous_root
    limits, resource = sdk.limits, sdk.resource
    return SessionFacts(
        trace_id=session.trace_id,
        root_id=traces.root.span_id,
        rank_id=traces.rank.span_id,
        caller_id=None if caller is None else caller.span_id,
        previous_root=None if previous is None else (previous.trace_id, previous.span_id),
        flags=int(session.flags) & MAX_FLAGS,
        tracestate=session.state.to_header(),
        is_sampled=session.is_sampled,
        limits=Limits(
            attributes=limits.max_span_attributes,
            attribute_chars=limits.max_span_attribute_length,
            events=limits.max_events,
            links=limits.max_links,
            event_attributes=limits.max_event_attributes,
            link_attributes=limits.max_link_attributes,
            event_attribute_chars=limits.max_attribute_length,
        ),
        scope_name=SCOPE_NAME,
        scope_version=SCOPE_VERSION,
        schema_url=SCHEMA_URL,
        resource=dict(resource.attributes),
        resource_schema_url=str(resource.schema_url or ""),
        root_attributes=dict(session.attributes),
        **options,
    )


def phase_trace_facts(phase: PhaseHandle) -> dict[str, Any] | None:
    """Return what a journal must keep of a phase's trace; None where the phase around tells, or it is the session's.

    `parent_id` is None for the root of its trace, whose span has `root_id`; all other phases have their scope id.
    """
    if not isinstance(phase, PhaseSpan):
        return None
    trace = phase.trace
    parent = phase.parent
    outer = getattr(parent, "_trace", None) or phase.carrier.traces.session
    begins = trace.root_sequence == phase._sequence  # noqa: SLF001 - a span is a phase
    is_as_outer = trace.trace_id == outer.trace_id and trace.is_sampled == outer.is_sampled
    # One that may outlive the phase it hangs under says it itself: that one's record may be gone by then.
    is_on_its_own = parent is not phase._below and trace.root_sequence is not None  # noqa: SLF001 - likewise
    if is_as_outer and not begins and not is_on_its_own:
        return None
    above, _ = phase.carrier.above(phase, trace)
    return {
        "trace_id": f"{trace.trace_id:032x}",
        "root_id": f"{trace.root_id:016x}" if trace.root_id else None,
        "parent_id": None if above is None else f"{above.span_id:016x}",
        "sampled": trace.is_sampled,
    }


def start_recovery(directory: Path, session: BridgeSession, *, recover: bool | str) -> BackgroundRecovery | None:
    """Start a recovery of the attempts before this one on a host's first rank; None where there is nothing to do.

    Args:
        directory: the journals' directory.
        session: this session.
        recover: whether to, or also where to.
    """
    identity = session.identity
    if recover is False or not identity.attempt or identity.local_rank:
        return None
    # TLS and an HTTP client: only for a session that had an attempt before.
    from stormphase.otel._background import BackgroundRecovery  # noqa: PLC0415 - see above

    own = directory / identity.session_id
    recovery = BackgroundRecovery(
        own if own.is_dir() else directory,
        identity.session_id,
        identity.attempt,
        endpoint=recover if isinstance(recover, str) else None,
        environ=session.environ,
    )
    recovery.start()
    return recovery
