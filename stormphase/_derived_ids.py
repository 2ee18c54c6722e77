"""Trace and span ids that every rank derives alone, so that all land in one trace with nobody talking to anybody.

Format, version 1. An id is the beginning of a SHA-256 digest: 16 bytes for a trace id, 8 for a span id, read as a
big-endian number; zero, which OpenTelemetry forbids, becomes 1. The digest is taken over a list of fields, each written
as its length in bytes (4 bytes, big-endian) and then its bytes, so no two lists are written alike. Text is UTF-8, with
lone surrogates passed through; a number is its decimal text; an absent step is an empty field. The fields:

    "stormphase", "1", session id, attempt, kind
    ... and for kind "rank": rank
    ... and for kinds "phase_trace" and "phase_root": number of path names, each path name, step, occurrence

Kinds are "trace" and "root" (the session's trace and its root span), "rank" (a rank's span under that root), and
"phase_trace" and "phase_root" (the trace of its own that `trace_per` gives a phase, and the span at its root).

A digest is uniform in all its bits, so a derived trace id may carry the W3C random flag: ratio samplers read its last
56 bits. Its price is that two launches with one session id and attempt share their ids: a session id must be unique per
launch.

This module needs neither OpenTelemetry nor an environment, and its functions may be called anywhere.
"""

from __future__ import annotations

import hashlib
from typing import Final

_NAMESPACE: Final = "stormphase"
_FORMAT_VERSION: Final = 1  # a change of anything above is a new version: ranks of one session may run mixed releases
_TRACE_ID_BYTES: Final = 16
_SPAN_ID_BYTES: Final = 8


def session_trace_id(session_id: str, attempt: int) -> int:
    """Return the 128-bit id of the trace that all ranks of one attempt share."""
    return _derived(_TRACE_ID_BYTES, session_id, attempt, "trace")


def root_span_id(session_id: str, attempt: int) -> int:
    """Return the 64-bit id of the session's root span, which rank 0 sends."""
    return _derived(_SPAN_ID_BYTES, session_id, attempt, "root")


def rank_span_id(session_id: str, attempt: int, rank: int) -> int:
    """Return the 64-bit id of a rank's span, which stands under the session's root span."""
    return _derived(_SPAN_ID_BYTES, session_id, attempt, "rank", rank)


def phase_trace_id(
    session_id: str, attempt: int, path_names: tuple[str, ...], step: int | None, occurrence: int
) -> int:
    """Return the 128-bit id of the trace that `trace_per` gives to one phase, the same on every rank.

    Args:
        session_id: the launch.
        attempt: its restarts, from 0.
        path_names: the names from the outermost phase to this one; `("a", "b")` and `("ab",)` differ.
        step: the step that the phase carries, or None.
        occurrence: how many phases with this path and this step the rank has entered before; from 0.
    """
    return _derived(_TRACE_ID_BYTES, session_id, attempt, "phase_trace", *_phase_fields(path_names, step, occurrence))


def phase_root_span_id(
    session_id: str, attempt: int, path_names: tuple[str, ...], step: int | None, occurrence: int
) -> int:
    """Return the 64-bit id of the span at the root of that trace: rank 0's; arguments as for `phase_trace_id`."""
    return _derived(_SPAN_ID_BYTES, session_id, attempt, "phase_root", *_phase_fields(path_names, step, occurrence))


def _phase_fields(path_names: tuple[str, ...], step: int | None, occurrence: int) -> tuple[str | int, ...]:
    return len(path_names), *path_names, "" if step is None else step, occurrence


def _derived(size_bytes: int, session_id: str, attempt: int, kind: str, *more: str | int) -> int:
    digest = hashlib.sha256()
    for field in (_NAMESPACE, _FORMAT_VERSION, session_id, attempt, kind, *more):
        text = field if isinstance(field, str) else f"{field:d}"
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return int.from_bytes(digest.digest()[:size_bytes], "big") or 1
