"""Scope ids: 64-bit, unique over processes, proof against `random.seed` and against fork.

A process draws one random base from the operating system; the n-th phase has base + n * an odd constant, modulo 2**64.
An odd constant makes that a permutation, so a process never repeats an id, and two processes collide only if their
bases happen to lie a small multiple of the constant apart.
"""

from __future__ import annotations

import os

# 2**64 divided by the golden ratio, made odd: successive ids differ in all their digits (Knuth, TAOCP vol. 3, 6.4).
_STRIDE = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def new_base() -> int:
    """Return 64 bits from the operating system's random source; call it again in a forked child."""
    return int.from_bytes(os.urandom(8), "big")


def scope_id_number(base: int, sequence: int) -> int:
    """Return the id of the `sequence`-th phase of the process that drew `base`; never zero, which OTel forbids."""
    return (base + sequence * _STRIDE) & _MASK or _STRIDE


def scope_id(base: int, sequence: int) -> str:
    """Return that id as its 16 lower-case hex digits; in one step, since every boundary has two of them."""
    return f"{(base + sequence * _STRIDE) & _MASK or _STRIDE:016x}"


def to_hex(number: int) -> str:
    """Return an id as its 16 lower-case hex digits."""
    return f"{number:016x}"
