"""What a running session gives to a process that is to work for it: the caller's phase, and where everything goes."""

from __future__ import annotations

import contextvars
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import attrs

from stormphase import _starters
from stormphase._carried import MAX_ANCESTORS, TRACE_KEYS, Carried
from stormphase._errors import ids_up_from

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stormphase._bridge import Bridge
    from stormphase._configuration import Settings
    from stormphase._session import Session
    from stormphase._tracker import PhaseTracker


def environment(self: PhaseTracker, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a copy of the environment for a process that is started in the caller's current phase.

    A tracker that starts there begins a session of its own, a child of that phase's span (`TRACEPARENT`);
    `stormphase.worker()` works for this session instead, under that phase (`STORMPHASE_CARRIER`).
    """
    copy = dict(os.environ if environ is None else environ)
    session = self._session
    if environ is None:
        copy.update(_starters.mark())
    if session is not None and session.bridge is not None:
        copy.update(session.bridge.environment())
    if session is not None and session.is_running:
        copy.update(_carried_from(session, self._settings).to_environment())
    return copy


def carrier(self: PhaseTracker) -> dict[str, str]:
    """Return the caller's current phase, else the rank, as strings that `stormphase.worker` takes in another process.

    It may be pickled and sent to any process of one's own; `traceparent` and `tracestate` in it are those of W3C
    Trace Context. Empty while the tracker does not run. Thread-, task- and fork-safe.
    """
    session = self._session
    if session is None or not session.is_running:
        return {}
    return _carried_from(session, self._settings).to_carrier()


def _carried_from(session: Session, settings: Settings) -> Carried:
    phase = session.lanes.carrier.current_phase()
    return Carried(
        identity=session.identity,
        pid=os.getpid(),
        scope_ids=() if phase is None else tuple(reversed(ids_up_from(phase)[:MAX_ANCESTORS])),
        path=() if phase is None else phase.path,
        step=session.lanes.step,
        name=session.name,
        correlation_id=session.correlation_id,
        level=settings.level,
        on_misuse=settings.on_misuse,
        trace=_trace_here(session.bridge),
        # Where no phase is current, a bridge tells of the rank.
        session_trace=contextvars.Context().run(_trace_here, session.bridge),
        store=_store_of(settings),
        journal=session.journal.place_to_carry(),
        capture=_capture_of(settings),
        redact=_as_json(settings.redact),
    )


def _trace_here(bridge: Bridge | None) -> dict[str, str]:
    variables = {} if bridge is None else bridge.environment()
    return {name: variables[name.upper()] for name in TRACE_KEYS if name.upper() in variables}


def _store_of(settings: Settings) -> dict[str, Any] | None:
    """Return how to make a store on the same file; None for one that is at hand in this process only."""
    sqlite = sys.modules.get("stormphase.stores._sqlite")
    store: Any = settings.store
    if sqlite is None or type(store) is not sqlite.SqliteStore:
        return None
    return {"path": str(store.path), "busy_timeout_s": store._busy_timeout_s}


def _capture_of(settings: Settings) -> dict[str, Any] | None:
    if settings.capture is None:
        return None
    found = attrs.asdict(settings.capture, recurse=False)
    return {**found, "redact": _as_json(settings.capture.redact)}


def _as_json(patterns: Iterable[str | re.Pattern[str]]) -> list[tuple[str, int]]:
    compiled: list[re.Pattern[str]] = [re.compile(pattern) for pattern in patterns]
    return [(pattern.pattern, pattern.flags) for pattern in compiled]
