"""Asking the user's sampler: once per trace root where that is as good as asking for every span, else for every one."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, TraceFlags, set_span_in_context

from stormphase.otel._outlet import root_attributes
from stormphase.otel._traces import (
    NO_STATE,
    RANDOM_FLAG,
    SessionTraces,
    Trace,
    caller_of,
    previous_root,
    session_trace_id,
    session_traces,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.trace import SpanContext

    from stormphase._bridge import BridgeSession

_log = logging.getLogger("stormphase")

_INHERITING_END: Final = (
    "localParentSampled:AlwaysOnSampler,localParentNotSampled:AlwaysOffSampler}"  # how a plain ParentBased ends
)


def children_inherit(sampler: Any) -> bool:
    """Return whether a child of a sampled span is sampled and one of an unsampled span is not, whatever it is.

    True for the SDK's own samplers: constant ones, those that look at nothing but the trace id, and ParentBased unless
    it was given other delegates for local parents.
    """
    sampling = sys.modules.get("opentelemetry.sdk.trace.sampling")
    if sampling is None:
        return False
    if type(sampler) in (sampling.ParentBased, sampling.ParentBasedTraceIdRatio):
        return bool(sampler.get_description().endswith(_INHERITING_END))
    return type(sampler) in (sampling.StaticSampler, sampling.TraceIdRatioBased)


class SamplerQuestions:
    """Asks one sampler; from any thread, without a lock. One that raises samples nothing, and is told once.

    Args:
        sampler: the provider's, or None where there is no SDK: then everything is sampled.
    """

    def __init__(self, sampler: Any) -> None:
        """Ask nothing yet."""
        self._sampler = sampler
        self._has_warned = False

    def ask(
        self,
        *,
        trace_id: int,
        context: Context,
        parent: SpanContext | None,
        name: str,
        attributes: Mapping[str, Any],
        links: Sequence[Link],
    ) -> Trace:
        """Return the trace with the sampler's word on it.

        Args:
            trace_id: of the span asked about.
            context: given to the sampler; empty for a root.
            parent: the parent's context, or None for a root; its random flag is inherited.
            name: the span's.
            attributes: the span's, as they are at enter.
            links: the span's.
        """
        is_random = parent is None or bool(parent.trace_flags & RANDOM_FLAG)
        random_flag = RANDOM_FLAG if is_random else 0
        if self._sampler is None:
            return Trace(trace_id=trace_id, flags=TraceFlags(TraceFlags.SAMPLED | random_flag))
        try:
            result = self._sampler.should_sample(context, trace_id, name, SpanKind.INTERNAL, attributes, links)
            is_sampled = result.decision.is_sampled()
            return Trace(
                trace_id=trace_id,
                flags=TraceFlags((TraceFlags.SAMPLED if is_sampled else 0) | random_flag),
                state=NO_STATE if result.trace_state is None else result.trace_state,
                is_recording=result.decision.is_recording(),
                is_sampled=is_sampled,
                attributes=_added(result.attributes, attributes),
            )
        except Exception:  # noqa: BLE001 - a user's sampler may raise anything
            self._warn()
            return Trace(trace_id=trace_id, flags=TraceFlags(random_flag), is_recording=False, is_sampled=False)

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning("stormphase: the sampler raised, so spans are not sampled; told once", exc_info=True)


def ask_for_session(session: BridgeSession, questions: SamplerQuestions) -> SessionTraces:
    """Ask the sampler about the session's root span, on every rank alike."""
    identity = session.identity
    caller = caller_of(session.environ)
    around = Context() if caller is None else set_span_in_context(NonRecordingSpan(caller), Context())
    previous = previous_root(identity, caller)
    trace = questions.ask(
        trace_id=session_trace_id(identity, caller),
        context=around,
        parent=caller,
        name="session",
        attributes=root_attributes(session.name, identity.session_id, identity.attempt, identity.world_size),
        links=[] if previous is None else [Link(previous)],
    )
    return session_traces(identity, caller, trace)


def _added(result: Mapping[str, Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (result or {}).items() if key not in given or given[key] != value}
