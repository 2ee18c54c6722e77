"""What each rank is doing, as one phase, and the ranks that are doing the same."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

import attrs

from stormphase.analysis._ranks import IN_ORDER, OpenPhase, RankReport, RankState, Usual

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SECOND_NS: Final = 1_000_000_000
DEFAULT_HANG_NS: Final = 60 * SECOND_NS
# A phase whose usual duration is known is overdue only after all of these.
LEAST_OVERDUE_NS: Final = 2 * SECOND_NS
LEAST_COUNT: Final = 3
TIMES_MAX: Final = 3
TIMES_P99: Final = 10
MAX_STEPS: Final = 4


@attrs.frozen(kw_only=True)
class Place:
    """Where a rank is.

    Attributes:
        rank: the rank.
        state: how it stands.
        phase: the innermost phase of the lane that says most of it, or the one that the process left by the exception
            or signal which ended it; None if there is none.
        sync: the innermost synchronisation point on that lane in which it may wait, `phase` itself or one around it;
            None outside of any.
        step: the step that the phase carries, else the last that the rank set.
        beside: outside of any, a point on another lane in which the rank is for far longer than ever before: what it
            does meanwhile may well wait for that.
        lane: the phases of that lane, outermost first.
    """

    rank: int
    state: RankState
    phase: OpenPhase | None
    sync: OpenPhase | None
    step: int | None
    beside: OpenPhase | None = None
    lane: tuple[OpenPhase, ...] = ()

    @property
    def late(self) -> OpenPhase | None:
        """The innermost phase that was measured before, if it lasts far longer than ever."""
        phase = next((each for each in reversed(self.lane) if has_usual(each)), None)
        return phase if phase is not None and is_overdue(phase, 0) else None

    @property
    def point(self) -> OpenPhase | None:
        """The synchronisation point in which the rank waits, if it waits in any."""
        return self.sync or self.beside


@attrs.frozen(kw_only=True)
class Group:
    """Ranks that stand alike and are in phases of one path.

    Attributes:
        ranks: which, in order.
        state: how they stand.
        path: where they are; empty with nothing open.
        is_sync: whether they wait for each other there.
        least_step: the lowest of their steps; None if none has one.
        greatest_step: the highest.
        least_ns: how long the one that entered last is there.
        median_ns: the median.
        greatest_ns: how long the one that entered first is there.
        usual: what is usual for the one that is there longest, or None.
    """

    ranks: tuple[int, ...]
    state: RankState
    path: tuple[str, ...]
    is_sync: bool
    least_step: int | None
    greatest_step: int | None
    least_ns: int
    median_ns: int
    greatest_ns: int
    usual: Usual | None


def place_of(rank: RankReport) -> Place:
    """Return what the rank's own process is doing: the main thread's lane, down into a task that runs under it."""
    own = rank.own
    lane = list(own.unwound) or _telling_lane(own.open)
    phase = lane[-1] if lane else None
    sync = next((each for each in reversed(lane) if each.is_sync), None)
    step = own.step if phase is None or phase.step is None else phase.step
    beside = _point_beside(own.open, lane) if sync is None and not own.unwound else None
    return Place(rank=rank.rank, state=own.state, phase=phase, sync=sync, step=step, beside=beside, lane=tuple(lane))


def places_of(ranks: Iterable[RankReport]) -> dict[int, Place]:
    """Return what each rank is doing.

    Of points within a point: who is at work in the outer one, while others have come to the inner one, does not wait in
    it, since they are past what it stands for.
    """
    places = {rank.rank: place_of(rank) for rank in ranks}
    points = {place.sync.path for place in places.values() if place.sync is not None}
    outer = {path[:length] for path in points for length in range(1, len(path))} & points
    for place in places.values() if outer else ():
        if place.sync is not None and place.sync.path in outer and place.phase is not place.sync:
            places[place.rank] = attrs.evolve(place, sync=None)
    return places


def is_overdue(phase: OpenPhase, hang_ns: int) -> bool:
    """Whether a phase is open far longer than it ever took this rank before.

    Where it is known what is usual, that is 3 times the longest, or 10 times the 99th percentile if that is less, but
    never before the longest itself, and 2 s at least. Where it is not, a synchronisation point is overdue after
    `hang_ns`, and another phase never: it may well be meant to last.
    """
    usual = phase.usual
    if usual is None or not has_usual(phase):
        return phase.is_sync and phase.for_ns > max(hang_ns, 0 if usual is None else TIMES_MAX * usual.max_ns)
    limit = float(TIMES_MAX * usual.max_ns)
    if usual.p99_ns is not None:
        # What one in a thousand takes, while a checkpoint is written, is no hang the next time either.
        limit = min(limit, max(TIMES_P99 * usual.p99_ns, usual.max_ns))
    return phase.for_ns > max(limit, LEAST_OVERDUE_NS)


def has_usual(phase: OpenPhase) -> bool:
    """Whether a phase has been measured often enough to say what is usual."""
    return phase.usual is not None and phase.usual.count >= LEAST_COUNT


def groups_of(places: Iterable[Place]) -> tuple[Group, ...]:
    """Return the groups, the largest first; split by step as long as that makes few of them."""
    alike: dict[tuple[RankState, tuple[str, ...]], list[Place]] = {}
    for place in places:
        path = place.phase.path if place.phase is not None else ()
        alike.setdefault((place.state, path), []).append(place)
    groups = []
    for (state, path), members in alike.items():
        by_step: dict[int | None, list[Place]] = {}
        if state not in IN_ORDER:
            for member in members:
                by_step.setdefault(member.step, []).append(member)
        parts = list(by_step.values()) if 0 < len(by_step) <= MAX_STEPS else [members]
        groups += [_group(part, state, path) for part in parts]
    return tuple(sorted(groups, key=lambda group: (-len(group.ranks), group.ranks)))


def _group(members: Sequence[Place], state: RankState, path: tuple[str, ...]) -> Group:
    phases = [place.phase for place in members if place.phase is not None]
    times = [phase.for_ns for phase in phases] or [0]
    steps = [place.step for place in members if place.step is not None]
    longest = max(phases, key=lambda phase: phase.for_ns, default=None)
    return Group(
        ranks=tuple(sorted(place.rank for place in members)),
        state=state,
        path=path,
        is_sync=any(phase.is_sync for phase in phases),
        least_step=min(steps, default=None),
        greatest_step=max(steps, default=None),
        least_ns=min(times),
        median_ns=int(median(times)),
        greatest_ns=max(times),
        usual=None if longest is None else longest.usual,
    )


def _point_beside(phases: Iterable[OpenPhase], lane: Iterable[OpenPhase]) -> OpenPhase | None:
    """Return the point of another lane that is open for far longer than ever before; of several the first entered."""
    told = {phase.lane for phase in lane}
    # The innermost of each lane.
    points = {phase.lane: phase for phase in phases if phase.is_sync and phase.lane not in told}
    overdue = [phase for phase in points.values() if has_usual(phase) and is_overdue(phase, 0)]
    return min(overdue, key=lambda phase: phase.entered_ns, default=None)


def _telling_lane(phases: Sequence[OpenPhase]) -> list[OpenPhase]:
    """Return the lane that says what a process is doing, with the lanes above that it hangs under."""
    if not phases:
        return []
    lanes: dict[int, list[OpenPhase]] = {}
    # In what is paused, a suspended generator say, nothing happens.
    for phase in [each for each in phases if not each.is_paused] or phases:
        lanes.setdefault(phase.lane, []).append(phase)
    order = list(lanes.values())
    lane = next((each for each in order if each[0].is_main_thread), order[0])
    rest = [each for each in order if each is not lane]
    while True:
        # The tasks of this very thread, whose phases hang under this one: of several, the one that waits longest.
        leaf = lane[-1]
        beneath = [
            each
            for each in rest
            if each[0].thread_id == leaf.thread_id
            and len(each[0].path) > len(leaf.path)
            and each[0].path[: len(leaf.path)] == leaf.path
        ]
        if not beneath:
            return lane
        below = min(beneath, key=lambda each: each[-1].entered_ns)
        rest.remove(below)
        lane = [*lane, *below]
