"""What the tests of the OpenTelemetry room share: a clean environment, packages that offer entry points, a bridge."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase.otel import OTelBridge
    from stormphase.testing import ManualClock

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "TORCHELASTIC_", "OMPI_", "PMI", "SLURM_", "RAY_", "JAX_")


class OfferPackage(Protocol):
    """Makes a package that offers components to OpenTelemetry by name."""

    def __call__(self, source: str, entry_points: Mapping[str, str]) -> None:
        """Install a module `offered` with this source; `entry_points` maps `group/name` to what is in it."""


@pytest.fixture
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away every variable that would configure OpenTelemetry or tell a rank."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "STORMPHASE_", "TRACEPARENT", *LAUNCHERS)):
            monkeypatch.delenv(name)


@pytest.fixture
def offer_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OfferPackage]:
    """Install a package for one test, so that its entry points are found as those of any other."""
    site = tmp_path / "site"

    def offer(source: str, entry_points: Mapping[str, str]) -> None:
        facts = site / "offered-1.0.dist-info"
        facts.mkdir(parents=True)
        (site / "offered.py").write_text(source, encoding="utf-8")
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n", encoding="utf-8")
        lines = []
        for place, what in entry_points.items():
            group, name = place.split("/")
            lines.append(f"[{group}]\n{name} = offered:{what}\n")
        (facts / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        monkeypatch.syspath_prepend(site)
        importlib.invalidate_caches()

    yield offer
    sys.modules.pop("offered", None)


class Bridged:
    """A bridge with the lanes that it serves, driven by hand: `deliver` does what the tracker's worker does."""

    def __init__(self, bridge: OTelBridge, lanes: LaneSet, provider: Any, exporter: Any, log_exporter: Any) -> None:
        """Collect what the lanes end."""
        self.bridge = bridge
        self.lanes = lanes
        self.provider = provider
        self.exporter = exporter
        self.log_exporter = log_exporter
        self.clock: ManualClock = lanes.clock
        self.ended: list[PhaseHandle] = []
        self.enter = lanes.enter_phase
        hooks = () if bridge.exit_hook is None else (bridge.exit_hook,)
        lanes.exit_queues = (*hooks, self.ended.append)

    def deliver(self) -> None:
        """Give all ended phases to the bridge."""
        for phase in self.ended:
            self.bridge.take(phase)
        self.ended.clear()

    def finish(self, outcome: BaseException | None = None) -> None:
        """Deliver, and end the session."""
        self.deliver()
        self.bridge.finish(outcome, self.clock.monotonic_ns())

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """What the exporter got, by span name; the last one of a name."""
        self.deliver()
        return {span.name: span for span in self.exporter.get_finished_spans()}

    @property
    def span_list(self) -> list[ReadableSpan]:
        """What the exporter got, in order."""
        self.deliver()
        return list(self.exporter.get_finished_spans())

    @property
    def events(self) -> list[Any]:
        """The log records that the log exporter got."""
        self.deliver()
        return [item.log_record for item in self.log_exporter.get_finished_logs()]

    @property
    def event_names(self) -> list[tuple[str, str]]:
        """The log records as (event, phase path)."""
        return [(record.event_name, record.attributes["stormphase.phase.path"]) for record in self.events]


def logs_to_memory() -> tuple[Any, Any]:
    """Return a logger provider and the exporter that keeps what it gets, by the names of this release."""
    from opentelemetry.sdk import _logs
    from opentelemetry.sdk._logs import export

    kind = getattr(export, "InMemoryLogRecordExporter", None) or export.InMemoryLogExporter
    exporter = kind()
    provider = _logs.LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(export.SimpleLogRecordProcessor(exporter))
    return provider, exporter


@pytest.fixture
def bridged(clock: ManualClock) -> Callable[..., Bridged]:
    """Make a bridge on an SDK provider that exports to memory, with lanes on the manual clock.

    `sampler`, `limits` and `processors` go to the provider; `provider` replaces it; `rank`, `world_size`, `attempt`,
    `session_id`, `name`, `environ` and `on_misuse` to the session; all else to the bridge.
    """
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from stormphase._bridge import BridgeSession
    from stormphase._clock import ClockAnchor
    from stormphase._lanes import LaneSet
    from stormphase._model import RankIdentity
    from stormphase._paths import PathTable
    from stormphase.otel import OTelBridge

    def make(
        *,
        provider: Any = None,
        sampler: Any = None,
        limits: Any = None,
        processors: tuple[Any, ...] = (),
        rank: int = 0,
        world_size: int = 1,
        attempt: int = 0,
        session_id: str = "launch-1",
        name: str | None = "job",
        environ: Mapping[str, str] | None = None,
        on_misuse: str = "raise",
        **options: Any,
    ) -> Bridged:
        exporter = InMemorySpanExporter()
        if provider is None:
            provider = TracerProvider(sampler=sampler, span_limits=limits, shutdown_on_exit=False)
            for processor in (*processors, SimpleSpanProcessor(exporter)):
                provider.add_span_processor(processor)
        log_provider, log_exporter = logs_to_memory()
        options.setdefault("logger_provider", log_provider)
        bridge = OTelBridge(provider, **options)
        anchor = ClockAnchor.take(clock)
        identity = RankIdentity(
            session_id=session_id,
            attempt=attempt,
            rank=rank,
            local_rank=rank,
            world_size=world_size,
            local_world_size=None,
            node_rank=None,
            host="host-1",
            launcher="explicit",
        )
        session = BridgeSession(
            name=name,
            identity=identity,
            pid=4711,
            clock=clock,
            anchor=anchor,
            started_ns=clock.monotonic_ns(),
            environ=environ or {},
        )
        carrier = bridge.attach(session)
        lanes = LaneSet(
            session_id,
            rank,
            clock=clock,
            anchor=anchor,
            paths=PathTable(),
            on_misuse=on_misuse,
            attempt=attempt,
            carrier=carrier,
        )
        bridge.bind(lanes)
        return Bridged(bridge, lanes, provider, exporter, log_exporter)

    return make
