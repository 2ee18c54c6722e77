"""Phases that stay open too long: one notice each, to the sinks, to the log and to the journal, and training goes on.

A phase is overdue when it has been open for its `timeout_s`, or, if limits are learnt, many times longer than its path
usually takes. A thread of its own looks about five times a second and takes every thread's Python stack along. It needs
the GIL for that: code that holds it for good stops the notices, too, and then the journal's heartbeat falls silent.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._bell import Bell
from stormphase._boundary import open_boundary
from stormphase._histogram import bucket_of, quantile
from stormphase._model import PHASE_OVERDUE
from stormphase._phase import FINAL, PhaseHandle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

    from stormphase._lanes import LaneSet
    from stormphase._paths import PathNode
    from stormphase._phase_boundary import PhaseBoundary
    from stormphase._redaction import Redactor

LOOK_S: Final = 0.2
LEAST_LEARNT_NS: Final = 10_000_000_000
LEAST_OBSERVED: Final = 20
MAX_FRAMES: Final = 64
MAX_LEARNT_PATHS: Final = 4_096
_USUAL: Final = 0.99
_MAX_STACK_BYTES: Final = 12_000

_log = logging.getLogger("stormphase")


@attrs.frozen(eq=False)
class OverdueNotice:
    """One phase that is open for too long.

    Attributes:
        phase: the phase.
        at_ns: when that was found, monotonic.
        limit_ns: how long it may be open.
    """

    phase: PhaseHandle
    at_ns: int
    limit_ns: int

    def boundary(self) -> PhaseBoundary:
        """Return what a sink is told: `phase_scope` has `open_ns` and `limit_ns`."""
        return open_boundary(self.phase, PHASE_OVERDUE, self.at_ns, self.limit_ns)


class LearntLimits:
    """How long each path usually takes, from what has ended; fed by a worker, asked by the watch.

    Args:
        factor: how many times the 99th percentile of its path a phase may be open, and at least 10 s.
    """

    def __init__(self, factor: float) -> None:
        """Start knowing nothing."""
        self._factor = factor
        self._buckets: dict[PathNode, dict[int, int]] = {}

    def learn(self, phase: PhaseHandle) -> None:
        """Take one ended phase in."""
        path = phase._path
        buckets = self._buckets.get(path)
        if buckets is None:
            if len(self._buckets) >= MAX_LEARNT_PATHS:
                return
            buckets = self._buckets[path] = {}
        bucket = bucket_of(phase._ended_ns - phase._entered_ns)
        buckets[bucket] = buckets.get(bucket, 0) + 1

    def limit_ns(self, path: PathNode) -> int | None:
        """Return how long a phase of this path may be open; None if too few have ended to tell."""
        buckets = self._buckets.get(path)
        if buckets is None or sum(buckets.copy().values()) < LEAST_OBSERVED:
            return None
        usual_ns = quantile(buckets.copy(), _USUAL)
        return None if usual_ns is None else max(LEAST_LEARNT_NS, int(usual_ns * self._factor))


class OverdueWatch:
    """Looks for overdue phases, from the first one that could be; its thread is a daemon. Thread- and fork-safe.

    Args:
        lanes: whose phases.
        publish: takes each notice to the sinks.
        put_stacks: stores every thread's stack; False if it could not.
        learnt: what is learnt of the paths, or None.
    """

    def __init__(
        self,
        lanes: LaneSet,
        publish: Callable[[OverdueNotice], object],
        put_stacks: Callable[[Mapping[str, Any]], bool],
        learnt: LearntLimits | None,
    ) -> None:
        """Look at nothing yet."""
        self._lanes = lanes
        self._publish = publish
        self._put_stacks = put_stacks
        self._learnt = learnt
        self._noticed: set[int] = set()
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Start anew: the parent's thread is not here, nor are its phases."""
        self._noticed.clear()
        self._bell = Bell()
        self._is_over = False
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.noticed_count = 0

    def start(self) -> None:
        """See to it that the thread runs; from any thread, and never waits."""
        if self._thread is not None or self._is_over or not self._start_lock.acquire(blocking=False):
            return
        try:
            self._thread = threading.Thread(target=self._run, name="stormphase-watch", daemon=True)
            self._thread.start()
        except RuntimeError:  # no thread to be had now; the next phase that needs it tries again
            self._thread = None
        finally:
            self._start_lock.release()

    def stop(self) -> None:
        """Look no more."""
        self._is_over = True
        self._bell.ring()

    def _run(self) -> None:
        self._lanes.mute_this_thread()
        while not self._is_over:
            self._bell.wait(LOOK_S)
            try:
                self.look()
            except Exception:  # noqa: BLE001 - a handler of the program's own log may raise, and the watch must go on
                with contextlib.suppress(Exception):
                    _log.warning("stormphase: looking for overdue phases failed", exc_info=True)

    def look(self) -> None:
        """Give notice of every phase that has become overdue since the last look."""
        still_open: set[int] = set()
        for phase in self._lanes.open_phases():
            limit_ns = self._limit_ns(phase)
            if limit_ns is None:
                continue
            still_open.add(phase._sequence)
            at_ns = self._lanes.now()
            if phase._sequence not in self._noticed and at_ns - phase._entered_ns >= limit_ns and not self._is_over:
                self._noticed.add(phase._sequence)
                self._give_notice(OverdueNotice(phase, at_ns, limit_ns))
        self._noticed &= still_open

    def _limit_ns(self, phase: PhaseHandle) -> int | None:
        extra = phase._extra
        if extra is not None and extra.timeout_ns is not None:
            return extra.timeout_ns
        return None if self._learnt is None else self._learnt.limit_ns(phase._path)

    def _give_notice(self, notice: OverdueNotice) -> None:
        phase = notice.phase
        lane = phase._lane
        threads = stacks_of_all_threads(lane.thread_id, self._lanes.redactor)
        if phase._status in FINAL:
            return
        self.noticed_count += 1
        self._publish(notice)
        self._put_stacks(
            {"at_ns": notice.at_ns, "sequence": phase._sequence, "limit_ns": notice.limit_ns, "threads": threads}
        )
        here = next((thread["frames"][-1] for thread in threads if thread["thread_id"] == lane.thread_id), "no frame")
        _log.warning(
            "stormphase: rank %d has been in %s for %.1f s, longer than its limit of %.1f s; %s is at %s",
            self._lanes.rank,
            phase.phase_path,
            (notice.at_ns - phase._entered_ns) / 1e9,
            notice.limit_ns / 1e9,
            lane.label,
            here,
        )


def stacks_of_all_threads(first_thread_id: int, redactor: Redactor | None = None) -> list[dict[str, Any]]:
    """Return every thread's Python stack as `thread_id`, `name` and `frames`, innermost last; some 12 kB at most.

    The thread `first_thread_id` comes first and is cut last. No source file is read. Names are told without what
    `redactor` finds in them.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    order = sorted(frames, key=lambda thread_id: (thread_id != first_thread_id, thread_id))
    stacks: list[dict[str, Any]] = []
    left = _MAX_STACK_BYTES
    for thread_id in order:
        stack = _stack_of(frames[thread_id], left)
        left -= sum(map(len, stack))
        if not stack:
            break
        name = names.get(thread_id, "")
        told = name if redactor is None else redactor.text(name)
        stacks.append({"thread_id": thread_id, "name": told[:100], "frames": stack})
    return stacks


def _stack_of(frame: FrameType | None, max_chars: int) -> list[str]:
    """Return the innermost frames of a stack that fit into so many characters, as `file.py:12 in name`."""
    lines: list[str] = []
    while frame is not None and len(lines) < MAX_FRAMES:
        code = frame.f_code
        line = ascii(f"{code.co_filename[-120:]}:{frame.f_lineno} in {code.co_name[-80:]}")[1:-1]
        max_chars -= len(line)
        if max_chars < 0:
            break
        lines.append(line)
        frame = frame.f_back
    lines.reverse()
    return lines
