"""Scope ids: 64 bits, never zero, never twice, whatever is seeded and whoever forks."""

from __future__ import annotations

import os
import random

import pytest

from stormphase import _ids
from stormphase._ids import new_base, scope_id_number, to_hex
from stormphase._recorder import PhaseRecorder

TWO_TO_64 = 2**64


def test_ids_of_one_process_never_repeat():
    """A hundred thousand ids in a row are all different, and fit into 64 bits."""
    base = new_base()
    ids = {scope_id_number(base, sequence) for sequence in range(100_000)}
    assert 100_000 == len(ids)
    assert all(0 < number < TWO_TO_64 for number in ids)


def test_the_stride_is_odd_so_that_every_sequence_has_its_own_id():
    """An odd stride has an inverse modulo 2**64, so two sequences never share an id."""
    assert 1 == _ids._STRIDE % 2
    inverse = pow(_ids._STRIDE, -1, TWO_TO_64)
    base, sequence = 12_345, 987_654_321_987
    assert sequence == (scope_id_number(base, sequence) - base) * inverse % TWO_TO_64


def test_no_id_is_zero():
    """The one sequence whose id would be zero, which OpenTelemetry forbids, has another one."""
    base = -_ids._STRIDE * 5 % TWO_TO_64
    assert 0 == (base + 5 * _ids._STRIDE) % TWO_TO_64
    assert _ids._STRIDE == scope_id_number(base, 5)


@pytest.mark.parametrize(
    ("number", "digits"), [(1, "0" * 15 + "1"), (TWO_TO_64 - 1, "f" * 16), (0xABC << 52, "abc" + "0" * 13)]
)
def test_hex_ids_have_sixteen_lower_case_digits(number, digits):
    """Leading zeros stay."""
    assert digits == to_hex(number)


def test_bases_come_from_the_operating_system_whole(monkeypatch):
    """All 64 bits are asked for, and used in order."""
    asked = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes(range(1, size + 1))

    monkeypatch.setattr(os, "urandom", urandom)
    assert 0x0102030405060708 == new_base()
    assert [8] == asked


def test_the_same_seed_on_every_rank_gives_different_ids():
    """`random.seed(42)`, which training scripts call on every rank, changes nothing."""
    ids = []
    for _ in range(2):
        random.seed(42)
        recorder = PhaseRecorder()
        token, _ = recorder.enter(session_id="s", rank=0, name="train")
        recorder.exit(token)
        ids.append(token.scope_id)
    assert 2 == len(set(ids))


def test_taking_ids_does_not_move_the_users_random_numbers():
    """A seeded program draws the same numbers with phases as without."""
    random.seed(7)
    expected = random.random()
    random.seed(7)
    recorder = PhaseRecorder()
    recorder.exit(recorder.enter(session_id="s", rank=0, name="train")[0])
    assert expected == random.random()
