"""What a session's phases took, by path, so that their own times add up to its wall time to the nanosecond.

`SessionSummary` folds ended phases on its worker thread. `SummaryReport` is what it found, frozen and plain.

The lane that started the session is the main one: its rows' own times, plus what no phase covered (*untracked*), plus
what is in no row, are the wall time. Phases on other threads and tasks ran beside it, and stand in a tree of theirs.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._boundary import paused_ns, self_ns
from stormphase._model import RankIdentity
from stormphase._totals import PathFigures, PathTotals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stormphase._lane import Lane
    from stormphase._lanes import LaneSet
    from stormphase._paths import PathNode
    from stormphase._phase import PhaseHandle

MAX_ROWS: Final = 4_096


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
    """

    name: str | None
    identity: RankIdentity
    wall_ns: int
    tracked_ns: int
    main: SummaryTree
    beside: SummaryTree
    dropped: int

    @property
    def untracked_ns(self) -> int:
        """How much of the wall time no phase covered on the main lane."""
        return self.wall_ns - self.tracked_ns

    @property
    def unfolded_ns(self) -> int:
        """How much of the tracked time is in no row of the main lane: of phases dropped, or acquired by other lanes.

        Negative where phases that other lanes had released ended on the main one, and so brought their time with them.
        """
        return self.tracked_ns - self.main.own_ns


class SessionSummary:
    """Folds the phases of one session. `fold` is called on one worker thread only, the others from anywhere."""

    def __init__(self, name: str | None, identity: RankIdentity, lanes: LaneSet, *, started_ns: int) -> None:
        """Start empty; the main lane is still to be told: see `begin`."""
        self._name = name
        self._identity = identity
        self._lanes = lanes
        self._main_lane: Lane | None = None
        self._started_ns = started_ns
        self._ended_ns: int | None = None
        self._main = _Fold()
        self._beside = _Fold()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Take the calling thread's or task's lane for the main one, once the session is up."""
        self._main_lane = self._lanes.lane_of_caller()

    def fold(self, phase: PhaseHandle) -> None:
        """Add one ended phase."""
        fold = self._main if phase._lane is self._main_lane else self._beside
        with self._lock:
            fold.add(phase)

    def note_end(self, ended_ns: int) -> None:
        """Take the session's end time, monotonic: all phases have ended, and what follows is delivery."""
        self._ended_ns = ended_ns

    def report(self, *, dropped: int = 0) -> SummaryReport:
        """Return what was folded so far; `dropped` says how many phases never came here."""
        ended_ns = self._lanes.now() if self._ended_ns is None else self._ended_ns
        with self._lock:
            return SummaryReport(
                name=self._name,
                identity=self._identity,
                wall_ns=ended_ns - self._started_ns,
                tracked_ns=0 if self._main_lane is None else self._main_lane._children_ns,
                main=self._main.tree(),
                beside=self._beside.tree(),
                dropped=dropped,
            )


class _Fold:
    """Totals by path. Keyed by node, since the names of a path that is 10,000 deep are 10,000 names."""

    def __init__(self) -> None:
        self._totals: dict[PathNode, PathTotals] = {}
        self._other: PathTotals | None = None

    def add(self, phase: PhaseHandle) -> None:
        paused = paused_ns(phase)
        self._totals_of(phase._path).add(
            active_ns=phase._ended_ns - phase._entered_ns - paused,
            own_ns=self_ns(phase),
            paused_ns=paused,
            status=phase._status,
        )

    def _totals_of(self, path: PathNode) -> PathTotals:
        totals = self._totals.get(path)
        if totals is not None:
            return totals
        parent = path.parent
        # Nodes beyond the path table's bound are made anew each time, so they are no keys.
        is_kept = parent is not None and parent.children.get(path.name) is path
        if len(self._totals) < MAX_ROWS and is_kept:
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
