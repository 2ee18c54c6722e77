"""A sink that writes what phases do to a log: their start and end, those that are slow, and each failure once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from stormphase._boundary import PHASE_SCOPE
from stormphase._filters import level_number
from stormphase._histogram import bucket_of, quantile
from stormphase._model import PHASE_ENTER, PHASE_EXIT, PHASE_OVERDUE, PhaseStatus
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._model import PhaseBoundary

LOGGER_NAME: Final = "stormphase.phases"
LEAST_OBSERVED: Final = 20
_USUAL: Final = 0.99
_MAX_PATHS: Final = 4_096
_MAX_ORIGINS: Final = 1_024
_NS: Final = 1_000_000_000
_FAILED: Final = PhaseStatus.FAILED.value
_SUCCEEDED: Final = PhaseStatus.SUCCEEDED.value


class LoggingSink:
    """Logs phases: `PhaseTracker(sinks=[LoggingSink()])`. Called on its own worker; give each tracker one of its own.

    Each line has a short text for people, and its facts as fields for machines: with `logging` as attributes of the
    record (`phase_path`, `phase_scope_id`, `phase_status`, `phase_duration_s`, ...), which any JSON formatter shows,
    with structlog as key-value pairs. A failure is told in full, at ERROR with its traceback, where it arose; what it
    passes through refers to that phase.

    Args:
        logger: a `logging.Logger`, a structlog logger, or None for the logger `stormphase.phases`.
        start_level: for the start of a phase; a number, or a name as in `logging`; None for no such line.
        end_level: for an end that is neither slow nor a failure; None for no such line.
        slow_s: a phase that took so many seconds or longer is told at WARNING.
        slow_factor: so is one that took this many times longer than the 99th percentile of its path, once 20 of that
            path have ended.

    Raises:
        ConfigurationError: if an argument cannot work.
    """

    def __init__(
        self,
        logger: Any = None,
        *,
        start_level: int | str | None = "DEBUG",
        end_level: int | str | None = "INFO",
        slow_s: float | None = None,
        slow_factor: float | None = None,
    ) -> None:
        """Check the arguments; nothing is logged yet."""
        self._logger = logging.getLogger(LOGGER_NAME) if logger is None else logger
        self._is_structured = not isinstance(self._logger, (logging.Logger, logging.LoggerAdapter))
        if self._is_structured and not callable(getattr(self._logger, "bind", None)):
            raise ConfigurationError(
                f"logger must be a logging.Logger or a structlog logger, not {type(logger).__name__}.",
                setting="logger",
                fix="Write LoggingSink(logging.getLogger('phases')) or LoggingSink(structlog.get_logger()).",
            )
        self._start_level = None if start_level is None else level_number(start_level)
        self._end_level = None if end_level is None else level_number(end_level)
        self._slow_ns = None if slow_s is None else int(_positive("slow_s", slow_s) * _NS)
        self._slow_factor = None if slow_factor is None else _positive("slow_factor", slow_factor)
        self._usual: dict[tuple[str, ...], dict[int, int]] = {}
        self._origins: OrderedDict[str, str] = OrderedDict()

    def __call__(self, boundary: PhaseBoundary) -> None:
        """Log one boundary."""
        scope = boundary.metadata.get(PHASE_SCOPE)
        if scope is None:
            return
        path = " / ".join(boundary.path)
        if boundary.event_type == PHASE_ENTER:
            if self._start_level is not None:
                self._log(self._start_level, "phase started: %s", (path,), _facts(boundary, scope))
        elif boundary.event_type == PHASE_EXIT:
            self._log_end(boundary, scope, path)
        elif boundary.event_type == PHASE_OVERDUE:
            facts = _facts(boundary, scope)
            facts.update(phase_open_s=scope["open_ns"] / _NS, phase_limit_s=scope["limit_ns"] / _NS)
            arguments = (path, scope["open_ns"] / _NS, scope["limit_ns"] / _NS)
            self._log(logging.WARNING, "phase overdue: %s, open for %.3f s, limit %.3f s", arguments, facts)

    def _log_end(self, boundary: PhaseBoundary, scope: Mapping[str, Any], path: str) -> None:
        facts = _facts(boundary, scope)
        duration_s = scope["duration_ns"] / _NS
        facts.update(phase_duration_s=duration_s, phase_self_s=scope["self_ns"] / _NS)
        error = scope.get("error")
        if error is not None:
            self._log_error(boundary, scope, path, facts)
            return
        limit_ns = self._limit_ns(boundary.path)
        self._learn(boundary.path, scope["duration_ns"])
        status = scope["status"]
        if limit_ns is not None and scope["duration_ns"] >= limit_ns:
            facts["phase_limit_s"] = limit_ns / _NS
            arguments: tuple[Any, ...] = (path, status, duration_s, limit_ns / _NS)
            self._log(logging.WARNING, "phase slow: %s %s after %.6f s, limit %.6f s", arguments, facts)
        elif status != _SUCCEEDED or self._end_level is not None:
            level = logging.WARNING if status != _SUCCEEDED else self._end_level
            arguments = (path, status, duration_s)
            self._log(level or logging.INFO, "phase ended: %s %s after %.6f s", arguments, facts)

    def _log_error(self, boundary: PhaseBoundary, scope: Mapping[str, Any], path: str, facts: dict[str, Any]) -> None:
        error = scope["error"]
        origin_id = error["root_cause_scope_id"]
        is_origin = origin_id == boundary.scope_id
        if is_origin:
            self._origins[origin_id] = path
            if len(self._origins) > _MAX_ORIGINS:
                self._origins.popitem(last=False)
        origin = self._origins.get(origin_id, origin_id)
        facts.update(
            error_type=error["type"],
            error_message=error["message"],
            root_cause_scope_id=origin_id,
            root_cause_path=self._origins.get(origin_id),
        )
        status = scope["status"]
        arguments: tuple[Any, ...]
        if is_origin and status == _FAILED:
            text = "phase failed: %s after %.6f s: %s: %s"
            arguments = (path, scope["duration_ns"] / _NS, error["type"], error["message"])
            if error["traceback"]:
                facts["traceback"] = error["traceback"]
                if not self._is_structured:
                    text += "\n%s"
                    arguments = (*arguments, error["traceback"].rstrip("\n"))
            self._log(logging.ERROR, text, arguments, facts)
        else:
            text = "phase %s: %s after %.6f s, by %s in %s"
            arguments = (status, path, scope["duration_ns"] / _NS, error["type"], origin)
            self._log(logging.WARNING, text, arguments, facts)

    def _limit_ns(self, path: tuple[str, ...]) -> float | None:
        limits = [] if self._slow_ns is None else [float(self._slow_ns)]
        buckets = self._usual.get(path)
        if self._slow_factor is not None and buckets is not None and sum(buckets.values()) >= LEAST_OBSERVED:
            limits.append((quantile(buckets, _USUAL) or 0.0) * self._slow_factor)
        return min(limits, default=None)

    def _learn(self, path: tuple[str, ...], duration_ns: int) -> None:
        if self._slow_factor is None:
            return
        buckets = self._usual.get(path)
        if buckets is None:
            if len(self._usual) >= _MAX_PATHS:
                return
            buckets = self._usual[path] = {}
        bucket = bucket_of(duration_ns)
        buckets[bucket] = buckets.get(bucket, 0) + 1

    def _log(self, level: int, text: str, arguments: tuple[Any, ...], facts: dict[str, Any]) -> None:
        if self._is_structured:
            self._logger.log(level, text % arguments, **facts)  # noqa: G002 - structlog's event is the whole text
        else:
            self._logger.log(level, text, *arguments, extra=facts)


def _facts(boundary: PhaseBoundary, scope: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every line says; no name of these is one that `logging` has itself."""
    return {
        "phase_event": boundary.event_type,
        "phase_path": list(boundary.path),
        "phase_scope_id": boundary.scope_id,
        "phase_parent_scope_id": scope["parent_scope_id"],
        "phase_status": scope["status"],
        "phase_step": scope["step"],
        "phase_rank": scope["rank"],
        "phase_session_id": scope["session_id"],
        "phase_thread_name": scope["thread_name"],
        "phase_time_ns": scope["timestamp_ns"],
        "phase_attributes": scope.get("attributes", {}),
    }


def _positive(setting: str, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return float(value)
    raise ConfigurationError(
        f"{setting} must be a number above 0, not {value!r:.40}.", setting=setting, fix=f"Leave {setting} out for none."
    )
