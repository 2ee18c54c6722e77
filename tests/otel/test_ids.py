"""The ids that every rank derives alone: pinned, unambiguous, never zero."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormphase.otel.ids import phase_root_span_id, phase_trace_id, rank_span_id, root_span_id, session_trace_id

if TYPE_CHECKING:
    from conftest import RunPython

# Printed once from this format. A change here means that ranks of mixed releases land in different traces, and needs a
# new format version.
VECTORS = [
    (session_trace_id("job-7", 0), 0x8934D88DEBBAE6812FF7F7A5ACC07FAA),
    (root_span_id("job-7", 0), 0xF171741D3B887480),
    (rank_span_id("job-7", 0, 3), 0xFF59C51F4D193F30),
    (phase_trace_id("job-7", 0, ("train", "step"), 12, 0), 0x86FC1509494A0D6CBEB6F6A37F16DBB8),
    (phase_root_span_id("job-7", 0, ("train", "step"), None, 1), 0xD85EA18C3A995544),
]

texts = st.text(st.characters(), max_size=8)  # lone surrogates included
numbers = st.integers(0, 2**70)
phases = st.tuples(texts, numbers, st.lists(texts, max_size=4).map(tuple), st.none() | numbers, numbers)


@pytest.mark.parametrize(("derived", "pinned"), VECTORS)
def test_ids_are_pinned(derived: int, pinned: int) -> None:
    """The same session gives the same ids in every release of this format version."""
    assert pinned == derived


def test_the_format_is_the_documented_one() -> None:
    """Someone who writes the fields as the module says gets the same id, in any language."""
    fields = [b"stormphase", b"1", "j\u00f6b".encode(), b"2", b"phase_trace", b"2", b"train", b"step", b"", b"5"]
    digest = hashlib.sha256(b"".join(len(field).to_bytes(4, "big") + field for field in fields)).digest()
    assert int.from_bytes(digest[:16], "big") == phase_trace_id("j\u00f6b", 2, ("train", "step"), None, 5)


@given(phases, phases)
def test_different_phases_have_different_ids(
    one: tuple[str, int, tuple[str, ...], int | None, int], other: tuple[str, int, tuple[str, ...], int | None, int]
) -> None:
    """No two lists of fields are written alike, whatever stands in the names."""
    assert (one == other) == (phase_trace_id(*one) == phase_trace_id(*other))
    assert (one == other) == (phase_root_span_id(*one) == phase_root_span_id(*other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (phase_trace_id("s", 0, ("a", "b"), 1, 0), phase_trace_id("s", 0, ("ab",), 1, 0)),
        (phase_trace_id("s", 0, ("a", ""), 1, 0), phase_trace_id("s", 0, ("a",), 1, 0)),
        (phase_trace_id("s", 0, ("a",), None, 1), phase_trace_id("s", 0, ("a",), 1, 1)),
        (phase_trace_id("s", 0, ("a",), 0, 1), phase_trace_id("s", 0, ("a",), 1, 0)),
        (phase_trace_id("s", 1, ("a",), 0, 0), phase_trace_id("s1", 0, ("a",), 0, 0)),
        (session_trace_id("s", 11), session_trace_id("s1", 1)),
        (session_trace_id("s", 0), session_trace_id("s", 1)),
        (session_trace_id("s", 0) >> 64, root_span_id("s", 0)),
        (rank_span_id("s", 0, 0), root_span_id("s", 0)),
        (rank_span_id("s", 0, 0), rank_span_id("s", 0, 1)),
        (phase_trace_id("s", 0, (), None, 0) >> 64, phase_root_span_id("s", 0, (), None, 0)),
    ],
)
def test_neighbours_differ(one: int, other: int) -> None:
    """Fields that would run into each other without their lengths, and kinds that share their fields, differ."""
    assert one != other


@given(texts, numbers, numbers)
def test_ids_fit_and_are_valid(session_id: str, attempt: int, rank: int) -> None:
    """Trace ids have 128 bits and span ids 64, and none is zero."""
    assert 0 < session_trace_id(session_id, attempt) < 2**128
    assert 0 < root_span_id(session_id, attempt) < 2**64
    assert 0 < rank_span_id(session_id, attempt, rank) < 2**64


def test_a_digest_of_zeros_still_gives_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one digest in 2**64 that begins with zeros gives the id 1, since OpenTelemetry forbids zero."""

    class Zeros:
        def update(self, text: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return bytes(32)

    monkeypatch.setattr(hashlib, "sha256", Zeros)
    assert (1, 1) == (session_trace_id("s", 0), root_span_id("s", 0))


def test_deriving_needs_no_sdk(run_python: RunPython) -> None:
    """A process that only derives ids loads nothing of the SDK."""
    source = """
import sys
from stormphase.otel.ids import session_trace_id
print(session_trace_id("job-7", 0), [name for name in sys.modules if name.startswith("opentelemetry.sdk")])
"""
    assert f"{VECTORS[0][1]} []\n" == run_python(source).stdout
