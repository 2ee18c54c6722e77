"""The id generator for a user's own spans: `random.seed(42)` on every rank changes nothing, nor does a fork.

OpenTelemetry's default generator draws from Python's global generator, so ranks that seed it alike, as training scripts
do, give their spans the same ids, and a backend shows them as one. This one is chosen with
`OTEL_PYTHON_ID_GENERATOR=stormphase`, with `TracerProvider(id_generator=SeedProofIdGenerator())`, or by `configure()`.
"""

from __future__ import annotations

import os
import random
from typing import Final

from opentelemetry.sdk.trace.id_generator import IdGenerator

# A generator of our own, seeded by the operating system: `random.seed` reaches the global one only. One for all
# instances, since a fork hook can never be taken back.
_PRIVATE: Final = random.Random()  # noqa: S311 - ids need to be distinct, not secret
os.register_at_fork(after_in_child=_PRIVATE.seed)  # without an argument it asks the operating system again


class SeedProofIdGenerator(IdGenerator):
    """Draws ids from a generator that only this class reads, seeded by the operating system and again after a fork.

    Ids are never zero. Thread-safe (each id is one atomic call), fork-safe and async-safe; about as fast as the SDK's.
    """

    def generate_span_id(self) -> int:
        """Return a random 64-bit span id."""
        return _PRIVATE.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        """Return a random 128-bit trace id."""
        return _PRIVATE.getrandbits(128) or 1

    def is_trace_id_random(self) -> bool:
        """Return True, for the W3C random flag: all bits are random. Releases of the SDK that set no flag never ask."""
        return True
