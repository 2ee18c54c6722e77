"""The id generator for a user's own spans: proof against seeds and forks, and found by its entry point."""

from __future__ import annotations

import json
import random
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import TracerProvider

from stormphase.otel.id_generator import SeedProofIdGenerator

if TYPE_CHECKING:
    from conftest import RunPython

SEEDED = """
import json, random
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from stormphase.otel.id_generator import SeedProofIdGenerator
def ids(generator):
    random.seed(42)
    context = TracerProvider(id_generator=generator).get_tracer("t").start_span("s").get_span_context()
    return [context.trace_id, context.span_id]
print(json.dumps([ids(RandomIdGenerator()), ids(SeedProofIdGenerator())]))
"""

FORKED = """
import json, os
from stormphase.otel.id_generator import SeedProofIdGenerator
generator = SeedProofIdGenerator()
def draw():
    return [generator.generate_trace_id(), generator.generate_span_id()]
reading, writing = os.pipe()
for _ in range(2):
    if not os.fork():
        os.write(writing, (json.dumps(draw()) + "\\n").encode())  # shorter than PIPE_BUF: in one piece
        os._exit(0)
for _ in range(2):
    os.wait()
os.close(writing)
with open(reading) as pipe:
    print(json.dumps([draw(), *map(json.loads, pipe)]))
"""

CONFIGURED = """
import random
from opentelemetry import trace
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
_OTelSDKConfigurator().configure()
generator = trace.get_tracer_provider().id_generator
print(type(generator).__module__, type(generator).__name__)
"""


def test_two_ranks_with_one_seed_differ(run_python: RunPython) -> None:
    """Two processes after random.seed(42) have the same ids from the SDK's generator, and different ones from ours."""
    (sdk_one, ours_one), (sdk_other, ours_other) = (json.loads(run_python(SEEDED).stdout) for _ in range(2))
    assert sdk_one == sdk_other
    assert {True} == {one != other for one, other in zip(ours_one, ours_other, strict=True)}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_children_draw_their_own(run_python: RunPython) -> None:
    """A parent and two forked children that draw at the same point draw different ids."""
    drawn = json.loads(run_python(FORKED).stdout)
    assert 3 == len(drawn)
    assert (3, 3) == (len({trace_id for trace_id, _ in drawn}), len({span_id for _, span_id in drawn}))


def test_the_global_generator_is_left_alone() -> None:
    """Drawing ids does not move the generator that a training script has seeded."""
    before = random.getstate()
    SeedProofIdGenerator().generate_trace_id()
    SeedProofIdGenerator().generate_span_id()
    assert before == random.getstate()


def test_threads_draw_different_ids() -> None:
    """Ids drawn by several threads at once are all different, and none is zero."""
    generator = SeedProofIdGenerator()
    drawn: list[list[int]] = [[] for _ in range(4)]
    start = threading.Barrier(len(drawn))

    def draw(into: list[int]) -> None:
        start.wait()
        into.extend(generator.generate_span_id() for _ in range(5_000))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=draw, args=[into]) for into in drawn]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    ids = {number for into in drawn for number in into}
    assert 20_000 == len(ids)
    assert 0 < min(ids)
    assert max(ids) < 2**64


def test_zero_is_never_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw of zero, which OpenTelemetry forbids, becomes 1."""

    class Zero:
        def getrandbits(self, bits: int) -> int:
            return 0

    monkeypatch.setattr("stormphase.otel.id_generator._PRIVATE", Zero())
    generator = SeedProofIdGenerator()
    assert (1, 1) == (generator.generate_span_id(), generator.generate_trace_id())


def test_the_random_flag_is_set_where_the_sdk_asks() -> None:
    """Spans carry the W3C random flag exactly when the SDK's own generator would give it to them."""
    provider = TracerProvider(id_generator=SeedProofIdGenerator())
    plain = TracerProvider()
    try:
        flags = provider.get_tracer("t").start_span("s").get_span_context().trace_flags
        assert plain.get_tracer("t").start_span("s").get_span_context().trace_flags == flags
    finally:
        provider.shutdown()
        plain.shutdown()
    assert SeedProofIdGenerator().is_trace_id_random()


def test_the_sdk_finds_it_by_its_entry_point(run_python: RunPython) -> None:
    """OTEL_PYTHON_ID_GENERATOR=stormphase gives the SDK's own configurator this generator."""
    child = run_python(
        CONFIGURED,
        env={
            "OTEL_PYTHON_ID_GENERATOR": "stormphase",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        },
    )
    assert "stormphase.otel.id_generator SeedProofIdGenerator\n" == child.stdout
