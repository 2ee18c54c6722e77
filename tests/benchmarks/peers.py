"""The peers: what people use today, each in the cheapest way that its documentation offers.

A peer is imported when it is opened, and measured in a process without the others: several of them change the
interpreter (a trace function, global providers), and their figures would be each other's.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Subject
from workload import PHASE

if TYPE_CHECKING:
    from collections.abc import Iterator


class EmptyContextManager(Subject):
    """What `contextlib.contextmanager` costs before it does anything."""

    name = "empty @contextmanager"

    def batch(self, count: int) -> None:
        """Enter and leave `count` of them."""
        for _ in range(count):
            with _nothing():
                pass


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class Codetiming(Subject):
    """`codetiming.Timer`, without a logger."""

    name = "codetiming.Timer"

    def open(self) -> None:
        """Import it."""
        from codetiming import Timer

        self._timer = Timer

    def batch(self, count: int) -> None:
        """Time `count` empty blocks."""
        for _ in range(count):
            with self._timer(logger=None):
                pass


class Nvtx(Subject):
    """`nvtx.annotate` with no tool attached, as in a run that nobody profiles."""

    name = "nvtx.annotate, no tool attached"

    def open(self) -> None:
        """Import it."""
        import nvtx

        self._nvtx = nvtx

    def batch(self, count: int) -> None:
        """Annotate `count` empty blocks."""
        for _ in range(count):
            with self._nvtx.annotate(PHASE):
                pass


class Viztracer(Subject):
    """`VizTracer.log_event`, with its function tracing made as cheap as it gets; tracing is on in a batch only."""

    name = "viztracer log_event"
    largest_batch = 2_000  # its ring buffer keeps every event until cleared

    def open(self) -> None:
        """Make a tracer."""
        from viztracer import VizTracer

        self._tracer = VizTracer(verbose=0, ignore_c_function=True, max_stack_depth=1)

    def prepare(self) -> None:
        """Start tracing."""
        self._tracer.start()

    def batch(self, count: int) -> None:
        """Log `count` events of no length."""
        for _ in range(count):
            with self._tracer.log_event(PHASE):
                pass

    def settle(self) -> None:
        """Stop tracing and forget what was traced."""
        self._tracer.stop()
        self._tracer.clear()


class StormlogRecorder(Subject):
    """stormlog's `PhaseRecorder`, by token: it builds both boundaries and keeps nothing."""

    name = "stormlog PhaseRecorder.enter + exit"

    def open(self) -> None:
        """Make a recorder."""
        from stormlog.phases import PhaseRecorder

        self._recorder = PhaseRecorder()

    def batch(self, count: int) -> None:
        """Enter and exit `count` phases."""
        for _ in range(count):
            token, _boundary = self._recorder.enter(session_id="benchmark", rank=0, name=PHASE)
            self._recorder.exit(token)


class StormlogTracker(Subject):
    """stormlog's tracker: the same with its events kept in memory."""

    name = "stormlog tracker.phase"

    def open(self) -> None:
        """Start a tracker that samples as seldom as it can."""
        from stormlog.cpu_profiler import CPUMemoryTracker

        self._tracker = CPUMemoryTracker(sampling_interval=3600, enable_alerts=False)
        self._tracker.start_tracking()

    def batch(self, count: int) -> None:
        """Enter and leave `count` phases."""
        for _ in range(count):
            with self._tracker.phase(PHASE):
                pass

    def close(self) -> None:
        """Stop the tracker."""
        self._tracker.stop_tracking()


class OneLogger(Subject):
    """nv-one-logger's `timed_span` to a file."""

    name = "nv-one-logger timed_span to a file"
    delivered_per_operation = 1  # line: a span's start and stop are written together if nothing is between them

    def open(self) -> None:
        """Configure its one process-wide recorder to write into a temporary file."""
        from nv_one_logger.api.config import OneLoggerConfig
        from nv_one_logger.api.one_logger_provider import OneLoggerProvider
        from nv_one_logger.api.timed_span import timed_span
        from nv_one_logger.exporter.file_exporter import FileExporter
        from nv_one_logger.recorder.default_recorder import DefaultRecorder

        self._cleanup = ExitStack()
        folder = self._cleanup.enter_context(tempfile.TemporaryDirectory())
        self._path = Path(folder, "spans.jsonl")
        config = OneLoggerConfig(application_name="benchmark", session_tag_or_fn="benchmark", world_size_or_fn=1)
        self._recorder = DefaultRecorder(exporters=[FileExporter(self._path)])
        OneLoggerProvider.instance().configure(config, self._recorder)
        self._timed_span = timed_span

    def batch(self, count: int) -> None:
        """Enter and leave `count` spans."""
        for _ in range(count):
            with self._timed_span(PHASE):
                pass

    def close(self) -> None:
        """Close the file and count what it holds."""
        self._recorder.close()
        with self._path.open() as lines:
            self._arrived = sum('"type":"complete"' in line for line in lines)
        self._cleanup.close()

    def delivered_count(self) -> int:
        """How many spans the file had."""
        return self._arrived
