"""Trace and span ids that every rank derives alone; stores use them too, so `stormphase._derived_ids` has them."""

from __future__ import annotations

from stormphase._derived_ids import (
    phase_root_span_id,
    phase_trace_id,
    rank_span_id,
    root_span_id,
    session_trace_id,
)

__all__ = ["phase_root_span_id", "phase_trace_id", "rank_span_id", "root_span_id", "session_trace_id"]
