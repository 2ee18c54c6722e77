"""A long error message is the same text in a store and in a journal, which has less room."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from stormphase import PhaseTracker
from stormphase.records import read_records
from stormphase.stores import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES = {
    "ascii": "x" * 5_000,
    "two bytes": "\N{LATIN SMALL LETTER E WITH ACUTE}" * 5_000,
    "three bytes": "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 5_000,
    "four bytes": "\N{GRINNING FACE}" * 5_000,
    "surrogates": "\ud800" * 5_000,
    "as long as may be": "x" * 4_096,
    "short": "loss is NaN",
}


@pytest.mark.parametrize("has_phase", [True, False])
@pytest.mark.parametrize("message", MESSAGES)
def test_a_long_message_is_the_same_in_store_and_journal(tmp_path: Path, message: str, has_phase: bool) -> None:
    """Of the phase in which it arose, of the rank and of the session."""
    store = MemoryStore()
    with (
        contextlib.suppress(RuntimeError),
        PhaseTracker(
            session_id=f"{message}-{has_phase}".replace(" ", "-"),
            rank=0,
            world_size=1,
            journal=tmp_path,
            store=store,
            bridge=None,
        ) as t,
        t.enter_phase("train") if has_phase else contextlib.nullcontext(),
    ):
        raise RuntimeError(MESSAGES[message])
    stored = {record.scope_id: record.error_message for record in store.query()}
    assert stored == {record.scope_id: record.error_message for record in read_records(tmp_path)}
    assert 2 + has_phase == len(stored)
    assert all(text and text.rstrip("\N{HORIZONTAL ELLIPSIS}")[:11] for text in stored.values())
