"""Which trace a phase belongs to: the session's, which all ranks derive alone, or one of its own with `trace_per`.

The session's root span is sent by rank 0 and each rank's span by itself; everybody knows their ids beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, TraceFlags, TraceState, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stormphase._model import RankIdentity
from stormphase.otel import ids

if TYPE_CHECKING:
    from stormphase._paths import PathNode

RANDOM_FLAG: Final = 0x02  # W3C Trace Context level 2; the API has a name for it from 1.42 on
NO_STATE: Final = TraceState()
_KNOWN_FLAGS: Final = TraceFlags.SAMPLED | RANDOM_FLAG
_MAX_OCCURRENCES: Final = 1 << 32


@attrs.frozen
class Trace:
    """One trace as this process sees it, with the sampler's word on it.

    Attributes:
        trace_id: 128 bits.
        flags: sampled and random.
        state: what the sampler or the caller put into `tracestate`.
        is_recording: whether spans are kept at all.
        is_sampled: whether they are exported.
        attributes: what the sampler added for the span it was asked about.
        asked_sequence: the phase that the sampler was asked about; None if that was the session.
        root_sequence: the phase that began this trace in this process; None for the session's trace.
        root_id: the span id at the trace's root, the same on all ranks.
        is_root_here: whether this process is the one that sends the root.
    """

    trace_id: int
    flags: TraceFlags
    state: TraceState = NO_STATE
    is_recording: bool = True
    is_sampled: bool = True
    attributes: Mapping[str, Any] = attrs.field(factory=dict)
    asked_sequence: int | None = None
    root_sequence: int | None = None
    root_id: int = 0
    is_root_here: bool = False

    @property
    def root_context(self) -> SpanContext:
        """The root span as a parent: remote where another process sends it."""
        return SpanContext(self.trace_id, self.root_id, not self.is_root_here, self.flags, self.state)


@attrs.define
class SessionTraces:
    """The traces of one session on one rank.

    Attributes:
        identity: session, attempt, rank.
        caller: the span that `TRACEPARENT` named, or None.
        session: the trace that all ranks share.
        root: the session's root span.
        rank: this rank's span.
        previous_root: the root span of the attempt before this one, or None for the first.
    """

    identity: RankIdentity
    caller: SpanContext | None
    session: Trace
    root: SpanContext
    rank: SpanContext
    previous_root: SpanContext | None

    @property
    def root_links(self) -> list[Link]:
        """The links of the session's root span: to the attempt before."""
        return [] if self.previous_root is None else [Link(self.previous_root)]


def session_trace_id(identity: RankIdentity, caller: SpanContext | None) -> int:
    """Return the id of the trace that all ranks share: the caller's, if there is one, else derived."""
    if caller is not None:
        return caller.trace_id
    return ids.session_trace_id(identity.session_id, identity.attempt)


def session_traces(identity: RankIdentity, caller: SpanContext | None, session: Trace) -> SessionTraces:
    """Return what a rank knows of its session's trace once the sampler has spoken."""
    is_first = identity.rank == 0
    root_id = ids.root_span_id(identity.session_id, identity.attempt)
    rank_id = ids.rank_span_id(identity.session_id, identity.attempt, identity.rank)
    return SessionTraces(
        identity=identity,
        caller=caller,
        session=session,
        root=SpanContext(session.trace_id, root_id, not is_first, session.flags, session.state),
        rank=SpanContext(session.trace_id, rank_id, False, session.flags, session.state),  # noqa: FBT003
        previous_root=previous_root(identity, caller),
    )


def previous_root(identity: RankIdentity, caller: SpanContext | None) -> SpanContext | None:
    """Return the root span of the attempt before this one, or None for the first."""
    if identity.attempt == 0:
        return None
    before = identity.attempt - 1
    trace_id = ids.session_trace_id(identity.session_id, before) if caller is None else caller.trace_id
    flags = TraceFlags(TraceFlags.SAMPLED | RANDOM_FLAG)
    return SpanContext(trace_id, ids.root_span_id(identity.session_id, before), True, flags)  # noqa: FBT003


def caller_of(environ: Mapping[str, str]) -> SpanContext | None:
    """Return the span that `TRACEPARENT` and `TRACESTATE` name, or None if there is none or it is malformed."""
    header = environ.get("TRACEPARENT", "").strip()
    if not header:
        return None
    carrier = {"traceparent": header, "tracestate": environ.get("TRACESTATE", "")}
    found = TraceContextTextMapPropagator().extract(carrier, context=Context())
    context = get_current_span(found).get_span_context() if found else None
    if context is None or not context.is_valid:
        return None
    flags = TraceFlags(context.trace_flags & _KNOWN_FLAGS)
    return SpanContext(context.trace_id, context.span_id, True, flags, context.trace_state)  # noqa: FBT003


def environment_of(context: SpanContext) -> dict[str, str]:
    """Return the variables that make a child process's session a child of this span."""
    if not context.is_valid:
        return {}
    trace_id, span_id, flags = context.trace_id, context.span_id, int(context.trace_flags)
    variables = {"TRACEPARENT": f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"}
    if context.trace_state:
        variables["TRACESTATE"] = context.trace_state.to_header()
    return variables


def environment_for(context: SpanContext, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the same, with what of our own caller a child must not read taken back."""
    variables = environment_of(context)
    if "TRACESTATE" in environ:
        variables.setdefault("TRACESTATE", "")
    return variables


class _Seen:
    """How often a path was entered in its current step, and how often its steps began anew."""

    __slots__ = ("count", "restarts", "step")

    def __init__(self, step: int | None) -> None:
        self.step = step
        self.count = 0
        self.restarts = 0


class Occurrences:
    """Numbers the phases that have a trace of their own, in the same way on every rank.

    The number restarts with each step, so that a rank that enters one phase more than the others in some step agrees
    with them again in the next. A step lower than the one before is a new round (an epoch that counts from 0 again),
    counted too, so that no number comes twice. Memory: one entry a path.
    """

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: dict[PathNode, _Seen] = {}

    def next(self, path: PathNode, step: int | None) -> int:
        """Return the number of the next phase with this path and step; from any thread, without a lock."""
        seen = self._seen.get(path)
        if seen is None:
            seen = self._seen.setdefault(path, _Seen(step))
        # No call from here to the last store, so no other thread comes between: see `stormphase._phase`.
        if seen.step is not step and seen.step != step:
            if seen.step is not None and (step is None or step < seen.step):
                seen.restarts += 1
            seen.step = step
            seen.count = 0
        count = seen.count
        seen.count = count + 1
        return seen.restarts * _MAX_OCCURRENCES + count
