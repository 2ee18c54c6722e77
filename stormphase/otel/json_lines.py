"""Exporters that append OTLP in JSON to a file, one batch a line, for runs without a collector.

Every line is a request body that an OTLP/HTTP endpoint takes as `application/json`, so a file is imported by posting
its lines to `/v1/traces` or `/v1/logs`, or by a collector's OTLP JSON file receiver. One file holds one kind of data,
as the OTLP file exporter's specification asks.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from stormphase.exceptions import ConfigurationError
from stormphase.otel._otlp_json import encode_logs, encode_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
    from opentelemetry.sdk.trace import ReadableSpan
else:
    from opentelemetry.sdk._logs import export as _log_export

    if hasattr(_log_export, "LogRecordExporter"):
        LogRecordExporter = _log_export.LogRecordExporter
        LogRecordExportResult = _log_export.LogRecordExportResult
    else:  # their names before SDK 1.39
        LogRecordExporter = _log_export.LogExporter
        LogRecordExportResult = _log_export.LogExportResult

_log = logging.getLogger("stormphase")


@attrs.frozen
class JsonLinesCounts:
    """What became of the items given to an exporter: given = written + failed, exactly.

    Attributes:
        written: items whose line the operating system has taken.
        failed: items that were refused: the disk was full, the file closed, or the batch could not be encoded.
    """

    written: int
    failed: int


class JsonLinesSpanExporter(SpanExporter):
    """Appends spans to a file, one `TracesData` in OTLP's JSON encoding a line.

    The file is made readable and writable by its owner only (0600); one that exists keeps its mode and its lines. When
    `export` returns, the operating system has the line, so it survives the death of the process (not of the machine).
    Nothing is ever raised: a full disk gives `FAILURE`, is counted, and leaves no half line behind. One file has one
    writing process at a time; a forked child may write on, since each line is appended in one call.

    Thread-safe and fork-safe.

    Raises:
        ConfigurationError: the file cannot be opened for appending.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open `path` for appending; its folder is made if it is missing."""
        self._file = _LineFile(path)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append the spans as one line."""
        is_written = self._file.append(spans, encode_spans)
        return SpanExportResult.SUCCESS if is_written else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Return True: what was exported is with the operating system already."""
        return True

    def shutdown(self) -> None:
        """Close the file; what is exported later fails and is counted. May be called again."""
        self._file.close()

    def counts(self) -> JsonLinesCounts:
        """Return how many spans were written and how many failed."""
        return self._file.counts()


class JsonLinesLogExporter(LogRecordExporter):
    """Appends log records to a file, one `LogsData` a line; else like `JsonLinesSpanExporter`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open `path` for appending; its folder is made if it is missing."""
        self._file = _LineFile(path)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Append the records as one line."""
        is_written = self._file.append(batch, encode_logs)
        return LogRecordExportResult.SUCCESS if is_written else LogRecordExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Return True: what was exported is with the operating system already."""
        return True

    def shutdown(self) -> None:
        """Close the file; what is exported later fails and is counted. May be called again."""
        self._file.close()

    def counts(self) -> JsonLinesCounts:
        """Return how many records were written and how many failed."""
        return self._file.counts()


class _LineFile:
    """A file to which whole lines are appended, or nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._written = 0
        self._failed = 0
        self._has_warned = False
        self._descriptor: int | None = _open(self.path)
        # A fork may come while another thread holds the lock, and the child would wait for it for ever.
        renew = weakref.WeakMethod(self._renew_lock)
        os.register_at_fork(after_in_child=lambda: (method := renew()) is not None and method())

    def append(self, items: Sequence[Any], encode: Callable[[Sequence[Any]], bytes]) -> bool:
        """Encode the items, write them as one line, and return whether that succeeded; never raises."""
        try:
            line = encode(items)
            with self._lock:
                self._write(line)
                self._written += len(items)
        except Exception as error:  # noqa: BLE001 - an exporter must not raise into the SDK's worker
            with self._lock:
                self._failed += len(items)
                is_news, self._has_warned = not self._has_warned, True
            if is_news:  # once: a full disk stays full
                _log.warning("Cannot write OTLP JSON to %s: %s; what is lost is counted.", self.path, error)
            return False
        return True

    def close(self) -> None:
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)

    def counts(self) -> JsonLinesCounts:
        with self._lock:
            return JsonLinesCounts(written=self._written, failed=self._failed)

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            raise ValueError("the exporter was shut down")
        size_before = os.fstat(self._descriptor).st_size
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BaseException:  # Ctrl+C, too, if the SDK exports on the main thread
            taken = len(line) - len(rest)
            # A torn line would join the next one; but what a forked child has written meanwhile stays.
            if taken and os.fstat(self._descriptor).st_size == size_before + taken:
                os.ftruncate(self._descriptor, size_before)
            raise

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _end_torn_line(descriptor)
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        raise ConfigurationError(
            f"Cannot append OTLP JSON lines to {str(path)!r}: {error.strerror or error}.",
            setting="path",
            fix="Name a file in a folder that this process may write to.",
        ) from error
    return descriptor


def _end_torn_line(descriptor: int) -> None:
    """End the line that a killed process has left half-written, so that the next one starts on its own."""
    facts = os.fstat(descriptor)
    # Not cut off: the path may name a file that is not ours, and nothing of it may be lost.
    if stat.S_ISREG(facts.st_mode) and facts.st_size and os.pread(descriptor, 1, facts.st_size - 1) != b"\n":
        os.write(descriptor, b"\n")
