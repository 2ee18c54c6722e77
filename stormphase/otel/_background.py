"""A next attempt sends what the attempts before it left behind: once, at its start, on a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Final

from stormphase._clock import SystemClock
from stormphase.exceptions import ConfigurationError, StormphaseError
from stormphase.otel._otlp_http import Endpoint, OtlpSender
from stormphase.otel._recovery import Recovery, Result

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stormphase.otel._recovery import Outcome

TIMEOUT_S: Final = 60.0
_LAST_WORDS_S: Final = 1.0
_PAUSE_S: Final = 0.005
_LOCK_TRIES: Final = 60
_LOCK_PAUSE_S: Final = 2.0

_log = logging.getLogger("stormphase")


class BackgroundRecovery:
    """A recovery of one session's attempts before this one, on a daemon thread from `start` to its end or `stop`.

    Whatever goes wrong is one warning; nothing is raised, and training never waits. Killed on the way, it leaves
    nothing that the next recovery would not send again, the same to the byte.

    Args:
        directory: the journals' directory, or the session's in it.
        session_id: which session.
        before_attempt: only attempts before this one.
        endpoint: where to, as a base address; None for what the environment says.
        environ: the environment.
        timeout_s: for how long one request is tried again.
    """

    def __init__(
        self,
        directory: Path,
        session_id: str,
        before_attempt: int,
        *,
        endpoint: str | None,
        environ: Mapping[str, str],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Do nothing yet."""
        self._directory = directory
        self._session_id = session_id
        self._before_attempt = before_attempt
        self._endpoint = endpoint
        self._environ = environ
        self._timeout_s = timeout_s
        self._stopping = threading.Event()
        self._why_not = "no OTLP endpoint is set"
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; where the system has no thread to give, nothing is recovered, and a warning says so."""
        thread = threading.Thread(target=self._run, name="stormphase-recover", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._warn("no thread could be started")
            return
        self._thread = thread

    def stop(self) -> None:
        """End it soon: what is not confirmed by then is left to the next recovery. Waits for a second at most."""
        self._stopping.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_LAST_WORDS_S)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; False if it has not within `timeout_s` seconds."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        try:
            sender = self._make_sender()
            for _ in range(_LOCK_TRIES):
                outcomes = self._recover(sender)
                # On a shared file system another host's first rank may be at its own.
                if not any(found.result is Result.LOCKED for found in outcomes) or self._stopping.wait(_LOCK_PAUSE_S):
                    break
            self._report(outcomes)
        except (StormphaseError, OSError) as error:
            self._warn(str(error))
        except Exception:  # noqa: BLE001 - telemetry never hurts training
            self._warn("it failed", has_error=True)

    def _recover(self, sender: OtlpSender | None) -> list[Outcome]:
        found = []
        recovery = Recovery(sender, clock=SystemClock(), wants_records=False)
        for outcome in recovery.run(self._directory, session_id=self._session_id, before_attempt=self._before_attempt):
            found.append(outcome)
            # The GIL is training's first of all.
            if self._stopping.wait(_PAUSE_S):
                break
        return found

    def _make_sender(self) -> OtlpSender | None:
        try:
            endpoint = Endpoint.of(self._endpoint, self._environ)
            if endpoint is None:
                return None
            return OtlpSender(endpoint, clock=SystemClock(), timeout_s=self._timeout_s, stopping=self._stopping)
        except ConfigurationError as error:
            self._why_not = str(error)
            return None

    def _report(self, outcomes: list[Outcome]) -> None:
        sent = sum(outcome.spans for outcome in outcomes if outcome.result is Result.SENT)
        if sent:
            with contextlib.suppress(Exception):  # A handler of the program's own may raise anything.
                _log.info("stormphase: sent %d spans that earlier attempts of this session had left behind", sent)
        waiting = sum(outcome.spans for outcome in outcomes if outcome.result is Result.WAITING)
        if waiting:
            self._warn(f"{waiting} spans wait: {self._why_not}")
        failed = [outcome for outcome in outcomes if outcome.result in (Result.FAILED, Result.LOCKED)]
        if failed:
            self._warn(f"{failed[0].problem}")

    def _warn(self, problem: str, *, has_error: bool = False) -> None:
        with contextlib.suppress(Exception):  # As above.
            _log.warning(
                "stormphase: what earlier attempts of this session left behind was not all sent (%s). Run: "
                "stormphase recover %s --otlp http://collector:4318",
                problem,
                self._directory,
                exc_info=has_error,
            )
