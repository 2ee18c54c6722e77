"""The terminal view of a session: one row a path, whose times add up to the session's wall time to the nanosecond.

`SessionSummary` folds ended phases on its worker thread. `SummaryReport` is what it found, frozen and plain, and
`render` turns one into lines, the same way for every reader.

The lane that started the session is the main one: its own times, plus what no phase covered (*untracked*), plus what
could not be folded, are the wall time. Phases on other threads and tasks ran beside it, and stand in a tree of theirs.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._boundary import paused_ns, self_ns
from stormphase._render import render
from stormphase._totals import PathTotals

if TYPE_CHECKING:
    from typing import TextIO

    from stormphase._lanes import LaneSet
    from stormphase._model import RankIdentity
    from stormphase._phase import PhaseHandle

MAX_ROWS: Final = 4_096
OTHER: Final = ("(other paths)",)
DEFAULT_WIDTH: Final = 80

Path = tuple[str, ...]


@attrs.frozen
class SummaryReport:
    """What a session's phases took on one rank.

    Attributes:
        title: job, session and rank.
        wall_ns: from the session's start to its end.
        main: totals of the main lane, by path.
        beside: totals of all other lanes, by path.
        tracked_ns: how much of the wall time outermost phases covered on the main lane.
    """

    title: str
    wall_ns: int
    main: Mapping[Path, PathTotals]
    beside: Mapping[Path, PathTotals]
    tracked_ns: int

    @property
    def untracked_ns(self) -> int:
        """How much of the wall time no phase covered on the main lane."""
        return self.wall_ns - self.tracked_ns

    @property
    def unfolded_ns(self) -> int:
        """Tracked time whose phase is in no row: dropped from a full queue, or ended on another lane."""
        return self.tracked_ns - sum(totals.own_ns for totals in self.main.values())


class SessionSummary:
    """Folds the phases of one session and prints them at its end. `fold` is called on one worker thread only."""

    def __init__(self, name: str | None, identity: RankIdentity, lanes: LaneSet, *, started_ns: int) -> None:
        """Start empty; the calling thread's or task's lane is the main one."""
        self._title = f"{name or 'session'} {identity.session_id} rank {identity.rank}/{identity.world_size}"
        self._lanes = lanes
        self._main_lane = lanes.lane_of_caller()
        self._started_ns = started_ns
        self._ended_ns: int | None = None
        self._main: dict[Path, PathTotals] = {}
        self._beside: dict[Path, PathTotals] = {}
        self._lock = threading.Lock()

    def fold(self, phase: PhaseHandle) -> None:
        """Add one ended phase."""
        rows = self._main if phase._lane is self._main_lane else self._beside
        path = phase._path.names
        with self._lock:
            totals = rows.get(path)
            if totals is None:
                if len(rows) >= MAX_ROWS:
                    path = OTHER
                totals = rows.setdefault(path, PathTotals())
            paused = paused_ns(phase)
            totals.add(
                active_ns=phase._ended_ns - phase._entered_ns - paused,
                own_ns=self_ns(phase),
                paused_ns=paused,
                status=phase._status,
            )

    def note_end(self) -> None:
        """Take the session's end time: all phases have ended, and what follows is delivery."""
        self._ended_ns = self._lanes.now()

    def report(self) -> SummaryReport:
        """Return what was folded so far."""
        ended_ns = self._lanes.now() if self._ended_ns is None else self._ended_ns
        with self._lock:
            return SummaryReport(
                title=self._title,
                wall_ns=ended_ns - self._started_ns,
                main=dict(self._main),
                beside=dict(self._beside),
                tracked_ns=0 if self._main_lane is None else self._main_lane._children_ns,
            )

    def print(self, stream: TextIO | None = None) -> None:
        """Write the tree to `stream`, by default stdout; a closed or broken stream loses the tree and nothing else."""
        out = sys.stdout if stream is None else stream
        report = self.report()
        try:
            has_colour = out.isatty() and not os.environ.get("NO_COLOR")
            width = shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns if out.isatty() else DEFAULT_WIDTH
            out.write("\n".join(render(report, width=width, has_colour=has_colour)) + "\n")
            out.flush()
        except (OSError, ValueError, AttributeError):
            # A closed stdout, a broken pipe, or none at all (pythonw): the session ends all the same.
            return
