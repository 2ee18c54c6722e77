"""What a session's phases took, by path, so that their own times add up to its wall time to the nanosecond.

`SessionSummary` folds ended phases on its worker thread. `SummaryReport` is what it found, frozen and plain.

The lane that started the session is the main one: its rows' own times, plus what no phase covered (*untracked*), plus
what is in no row, plus the session's own start, are the wall time. Phases on other threads and tasks ran beside it, and
stand in a tree of theirs; but for tasks that ran on its thread one after another, which are its continuation.

Times add up, so they are without pauses: a generator's phase while its consumer works. Durations, of which there are
quantiles and the longest, go from enter to exit, as everywhere else.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._boundary import paused_ns, self_ns
from stormphase._model import RankIdentity
from stormphase._phase import PhaseHandle
from stormphase._totals import PathFigures, PathTotals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stormphase._lane import Lane
    from stormphase._lanes import LaneSet
    from stormphase._paths import PathNode

MAX_ROWS: Final = 4_096
MAX_LANES: Final = 32  # that are one course; more stand beside


@attrs.frozen
class SummaryRow:
    """One path in a tree that is read from the top: parents first, of siblings the costliest first.

    Attributes:
        name: the path's last name.
        depth: how many names the path has, from 1.
        figures: what its phases took; None if none of them is in this tree, only some beneath.
    """

    name: str
    depth: int
    figures: PathFigures | None


@attrs.frozen
class SummaryTree:
    """The paths of some lanes.

    Attributes:
        rows: one a path, in reading order.
        other: phases of paths beyond the first `MAX_ROWS`, folded into one; None if there are none.
    """

    rows: tuple[SummaryRow, ...]
    other: PathFigures | None

    @property
    def own_ns(self) -> int:
        """All own times together."""
        figures = [row.figures for row in self.rows] + [self.other]
        return sum(each.own_ns for each in figures if each is not None)


@attrs.frozen
class SummaryReport:
    """What a session's phases took on one rank.

    Attributes:
        name: the job's name, or None.
        identity: session, attempt, rank and world size.
        wall_ns: from the session's start to its end.
        tracked_ns: how much of the wall time outermost phases covered on the main lane.
        main: the main lane's phases.
        beside: those of all other lanes.
        dropped: how many phases are in no row, since their queue was full.
        starting_ns: how much of the wall time the session's start took, before the first phase could begin.
    """

    name: str | None
    identity: RankIdentity
    wall_ns: int
    tracked_ns: int
    main: SummaryTree
    beside: SummaryTree
    dropped: int
    starting_ns: int = 0

    @property
    def untracked_ns(self) -> int:
        """How much of the wall time since the start no phase covered on the main lane."""
        return self.wall_ns - self.starting_ns - self.tracked_ns

    @property
    def unfolded_ns(self) -> int:
        """How much of the tracked time is in no row of the main lane: that of dropped phases."""
        return self.tracked_ns - self.main.own_ns


class SessionSummary:
    """Folds the phases of one session. `fold` is called on one worker thread only, the others from anywhere."""

    def __init__(self, name: str | None, identity: RankIdentity, lanes: LaneSet, *, started_ns: int) -> None:
        """Start empty; the main lane is still to be told: see `begin`."""
        self._name = name
        self._identity = identity
        self._lanes = lanes
        self._started_ns = started_ns
        self._begun_ns = started_ns
        self._ended_ns: int | None = None
        self._program = _Program(None)
        self._lock = threading.Lock()

    def begin(self, first_entered_ns: int | None = None) -> None:
        """Take the calling thread's or task's lane for the main one, and now for the end of the session's start.

        Args:
            first_entered_ns: when a phase was entered before that, and so ended the start; None if none was.
        """
        self._program = _Program(self._lanes.lane_of_caller())
        self._begun_ns = self._lanes.now() if first_entered_ns is None else first_entered_ns

    def fold(self, phase: PhaseHandle) -> None:
        """Add one ended phase."""
        with self._lock:
            self._program.add(phase)

    def note_end(self, ended_ns: int) -> None:
        """Take the session's end time, monotonic: all phases have ended, and what follows is delivery."""
        self._ended_ns = ended_ns

    def report(self, *, dropped: int = 0) -> SummaryReport:
        """Return what was folded so far; `dropped` says how many phases never came here."""
        ended_ns = self._lanes.now() if self._ended_ns is None else self._ended_ns
        with self._lock:
            program = self._program
            return SummaryReport(
                name=self._name,
                identity=self._identity,
                wall_ns=ended_ns - self._started_ns,
                starting_ns=self._begun_ns - self._started_ns,
                tracked_ns=program.tracked_ns,
                main=program.main().tree(),
                beside=program.beside.tree(),
                dropped=dropped,
            )


class _Program:
    """Sorts phases into those of the program's own course and those that ran beside it.

    The program is the lane that started the session, and each task on its thread whose outermost phases begin and end
    while no other lane's of the program is open, as with one `asyncio.run` after another. Two that overlap are no one
    course; then the one that did not start the session stands beside.
    """

    def __init__(self, lane: Lane | None) -> None:
        self._lane = lane
        self.beside = _Fold()
        self._folds: dict[Lane, _Fold] = {} if lane is None else {lane: _Fold()}
        self._ends: dict[Lane, int] = {}  # When the last outermost phase of each of the program's lanes ended.
        self._outside: weakref.WeakSet[Lane] = weakref.WeakSet()
        self._outside_until_ns = 0  # The latest end of an outermost phase that overlapped another one.

    @property
    def tracked_ns(self) -> int:
        """How much time the outermost phases of the program's lanes took."""
        return sum(lane._children_ns for lane in self._folds)

    def main(self) -> _Fold:
        """Return all phases of the program's course."""
        merged = _Fold()
        for fold in self._folds.values():
            merged.merge(fold)
        return merged

    def add(self, phase: PhaseHandle) -> None:
        lane = phase._lane
        fold = self._folds.get(lane)
        if fold is None:
            fold = self._join(phase, lane)
        extra = phase._extra
        stints = None if extra is None else extra.stints
        if stints:
            self._add_moved(phase, lane, stints)
            return
        fold.add(phase)
        if phase._below is lane and fold is not self.beside:
            self._note_outermost(phase, lane)

    def _add_moved(self, phase: PhaseHandle, lane: Lane, stints: Mapping[Lane | None, tuple[int, int]]) -> None:
        """Add a phase that was on several lanes: to each the time it spent there, and the phase itself to the last."""
        for each in (lane, *stints):
            if each is not None:  # When it was where is not known well enough to be sure of one course.
                self._leave(each, phase._ended_ns)
        elsewhere_ns = elsewhere_own_ns = 0
        for each, (active_ns, children_ns) in stints.items():
            if each is not lane:
                elsewhere_ns += active_ns
                elsewhere_own_ns += active_ns - children_ns
                fold = self.beside if each is None else self._folds.get(each, self.beside)
                fold.add_time(phase._path, active_ns, active_ns - children_ns)
        self._folds.get(lane, self.beside).add(phase, elsewhere_ns, elsewhere_own_ns)
        if phase._below is lane and lane in self._folds:
            self._note_outermost(phase, lane)

    def _join(self, phase: PhaseHandle, lane: Lane) -> _Fold:
        """Return where the first phase of a lane belongs."""
        main = self._lane
        if main is None or lane.thread_id != main.thread_id or lane in self._outside or len(self._folds) >= MAX_LANES:
            return self.beside
        outermost = phase
        while isinstance(outermost._below, PhaseHandle):
            outermost = outermost._below
        if outermost.parent is not None or outermost._entered_ns < self._outside_until_ns:
            self._outside.add(lane)
            return self.beside
        fold = self._folds[lane] = _Fold()
        return fold

    def _note_outermost(self, phase: PhaseHandle, lane: Lane) -> None:
        if phase.parent is not None and lane is not self._lane:
            self._leave(lane, phase._ended_ns)
            return
        begun_ns = phase._entered_ns
        overlapped = [other for other, ended_ns in self._ends.items() if other is not lane and ended_ns > begun_ns]
        self._ends[lane] = phase._ended_ns
        for other in overlapped:
            self._leave(other, self._ends[other])
        if overlapped or begun_ns < self._outside_until_ns:
            self._leave(lane, phase._ended_ns)

    def _leave(self, lane: Lane, ended_ns: int) -> None:
        """Put a lane beside the program, with all that is known of it; the one that started the session stays."""
        if lane is self._lane:
            return
        self._outside.add(lane)
        fold = self._folds.pop(lane, None)
        if fold is not None:
            self.beside.merge(fold)
        if self._ends.pop(lane, None) is not None or fold is not None:
            self._outside_until_ns = max(self._outside_until_ns, ended_ns)


class _Fold:
    """Totals by path. Keyed by node, since the names of a path that is 10,000 deep are 10,000 names."""

    def __init__(self) -> None:
        self._totals: dict[PathNode, PathTotals] = {}
        self._other: PathTotals | None = None

    def add(self, phase: PhaseHandle, elsewhere_ns: int = 0, elsewhere_own_ns: int = 0) -> None:
        """Add an ended phase, without what it spent on other lanes."""
        paused = paused_ns(phase)
        duration_ns = phase._ended_ns - phase._entered_ns
        self._totals_of(phase._path).add(
            duration_ns=duration_ns,
            active_ns=duration_ns - paused - elsewhere_ns,
            own_ns=self_ns(phase) - elsewhere_own_ns,
            paused_ns=paused,
            status=phase._status,
        )

    def add_time(self, path: PathNode, active_ns: int, own_ns: int) -> None:
        """Add the time that a phase which ended elsewhere spent here."""
        self._totals_of(path).add_time(active_ns=active_ns, own_ns=own_ns)

    def merge(self, other: _Fold) -> None:
        """Add all that `other` holds."""
        for path, totals in other._totals.items():
            self._totals_of(path).merge(totals)
        if other._other is not None:
            if self._other is None:
                self._other = PathTotals()
            self._other.merge(other._other)

    def _totals_of(self, path: PathNode) -> PathTotals:
        totals = self._totals.get(path)
        if totals is not None:
            return totals
        # Nodes beyond the path table's bound are made anew each time, so they are no keys.
        if len(self._totals) < MAX_ROWS and path.is_kept:
            totals = self._totals[path] = PathTotals()
            return totals
        if self._other is None:
            self._other = PathTotals()
        return self._other

    def tree(self) -> SummaryTree:
        figures = {path: totals.figures() for path, totals in self._totals.items()}
        children: dict[PathNode, list[PathNode]] = {}
        for path in _with_ancestors(figures):
            if path.parent is not None:
                children.setdefault(path.parent, []).append(path)
        cost = _costs(figures, children)
        rows: list[SummaryRow] = []
        # A stack and no recursion: paths may be thousands deep. Popped from its end, so the costliest is pushed last.
        waiting = [path for path in children if path.parent is None]
        while waiting:
            path = waiting.pop()
            if path.parent is not None:
                rows.append(SummaryRow(name=path.name, depth=path.depth, figures=figures.get(path)))
            waiting += sorted(children.get(path, ()), key=lambda child: (-cost[child], child.name), reverse=True)
        return SummaryTree(rows=tuple(rows), other=None if self._other is None else self._other.figures())


def _with_ancestors(paths: Iterable[PathNode]) -> Iterable[PathNode]:
    """Yield each path and each of its ancestors, once."""
    seen: set[PathNode] = set()
    for path in paths:
        node: PathNode | None = path
        while node is not None and node not in seen:
            seen.add(node)
            yield node
            node = node.parent


def _costs(figures: Mapping[PathNode, PathFigures], children: Mapping[PathNode, list[PathNode]]) -> dict[PathNode, int]:
    """Return what each path took in all; one that has no figures of its own took what its children did."""
    costs = {path: each.total_ns for path, each in figures.items()}
    for parent in sorted(children, key=lambda path: path.depth, reverse=True):
        if parent not in costs:
            costs[parent] = sum(costs[child] for child in children[parent])
    return costs
