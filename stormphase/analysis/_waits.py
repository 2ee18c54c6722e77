"""Who waits for whom: ranks in a point where they wait for each other, and those that have not entered it as often."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Final

import attrs

from stormphase.analysis._places import LEAST_COUNT, Place, has_usual, is_overdue
from stormphase.analysis._ranks import DEAD, IN_ORDER, RankReport, RankState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stormphase.analysis._ranks import OpenPhase, ProcessReport

# Ranks that meet are not further apart: work that is only queued for a device runs ahead, but not by many rounds.
MAX_ROUNDS_APART: Final = 4
# Where no phase around them has ended, nobody can tell how many make a round.
MAX_POINTS_APART: Final = 64
# What a rank that others wait for may take where nobody knows what is usual: collectives give up after ten minutes.
PATIENCE_TIMES: Final = 10
# And where only what it does was never measured, as a first checkpoint.
UNMEASURED_NS: Final = 10_000_000_000
_MOST_UNMARKED: Final = 16
_TWO: Final = 2


@attrs.frozen(kw_only=True)
class Missing:
    """A rank that is not where others wait.

    Attributes:
        rank: the rank.
        entries: how often it has entered that path; None if its journal cannot tell.
        step: its step.
    """

    rank: int
    entries: int | None
    step: int | None


@attrs.frozen(kw_only=True)
class Wait:
    """Ranks in one point where they wait for each other.

    Attributes:
        path: the point.
        ranks: who is in it, having entered it equally often.
        entries: how often, this time included.
        step: their step; None if they have none or not the same.
        for_ns: the median of how long they are in it.
        missing: the ranks of the attempt that have not entered it so often.
        is_hung: whether it lasts far longer than usual, waits for a rank that is dead while others live, or failed most
            of those in it after a rank had ended that never entered it.
        is_over: whether they are all dead.
        is_guess: whether it is hung only by the limit for what has not been measured yet.
        may_go_on: whether those missing are all at work, as far as is known, and not for long enough to say they hang.
        is_marked: whether it is marked as a synchronisation point; else that more ranks are late in it than have not
            entered it says so.
        entered_ns: when each rank entered it, nanoseconds since the Unix epoch on its host's wall clock.
    """

    path: tuple[str, ...]
    ranks: tuple[int, ...]
    entries: int
    step: int | None
    for_ns: int
    missing: tuple[Missing, ...]
    is_hung: bool
    is_over: bool
    is_guess: bool
    may_go_on: bool = False
    is_marked: bool = True
    entered_ns: Mapping[int, int] = attrs.field(factory=dict)


def waits_of(ranks: Mapping[int, RankReport], places: Mapping[int, Place], hang_ns: int) -> tuple[Wait, ...]:
    """Return the points that ranks are in: marked ones first, those of most ranks first, then what shows to be one."""
    by_path: dict[tuple[str, ...], dict[int, OpenPhase]] = {}
    late: dict[tuple[str, ...], dict[int, OpenPhase]] = {}
    for place in places.values():
        if place.point is not None:
            by_path.setdefault(place.point.path, {})[place.rank] = place.point
        elif (phase := place.late or place.phase) is not None and _is_too_long(phase, hang_ns):
            late.setdefault(phase.path, {})[place.rank] = phase
    marked = [_wait(path, members, ranks, places, hang_ns) for path, members in by_path.items()]
    largest = sorted(late.items(), key=lambda each: (-len(each[1]), each[0]))[:_MOST_UNMARKED]
    unmarked = (_wait(path, members, ranks, places, hang_ns, is_marked=False) for path, members in largest)
    shown = [wait for wait in unmarked if _shows_itself(wait, ranks, places)]
    # Of two ranks either may be the one that waits.
    shown = [attrs.evolve(wait, may_go_on=wait.may_go_on or (wait.is_guess and len(ranks) == _TWO)) for wait in shown]
    found = [*marked, *shown]
    return tuple(sorted(found, key=lambda wait: (not wait.is_marked, -len(wait.ranks), wait.path)))


def _is_too_long(phase: OpenPhase, hang_ns: int) -> bool:
    """Whether a phase lasts too long for a rank that goes on as usual; one that was never measured for the limit."""
    if has_usual(phase):
        return is_overdue(phase, hang_ns)
    return is_overdue(attrs.evolve(phase, is_sync=True), hang_ns)


def _shows_itself(wait: Wait, ranks: Mapping[int, RankReport], places: Mapping[int, Place]) -> bool:
    """Whether a phase that nobody marked is one in which ranks wait: more are late in it than have not entered it.

    Of two ranks the one that has not entered it must be late in nothing that the other has not come to: else each may
    wait for the other.
    Where it was never measured, they must have done until then what the others did: there are programs in which ranks
    have duties of their own.
    """
    if not wait.missing or len(wait.ranks) < len(wait.missing):
        return False
    if len(wait.ranks) == len(wait.missing) and len(ranks) > _TWO:
        return False
    one = ranks[wait.ranks[0]].own
    if wait.is_guess:
        others = (ranks[each.rank].own for each in wait.missing)
        return all(_went_along(one, other) for other in others)
    return len(wait.ranks) > len(wait.missing) or all(
        (late := places[each.rank].late) is None or entries(ranks[each.rank].own, late.path) <= entries(one, late.path)
        for each in wait.missing
    )


def _went_along(one: ProcessReport, other: ProcessReport) -> bool:
    """Whether two ranks have been in one phase about as often, and more than once or twice."""
    counts = ((count, other.counts.get(path, 0)) for path, count in one.counts.items())
    return any(min(pair) >= LEAST_COUNT and max(pair) - min(pair) <= MAX_ROUNDS_APART for pair in counts)


def _wait(
    path: tuple[str, ...],
    members: Mapping[int, OpenPhase],
    ranks: Mapping[int, RankReport],
    places: Mapping[int, Place],
    hang_ns: int,
    *,
    is_marked: bool = True,
) -> Wait:
    entered = {rank: entries(ranks[rank].own, path) for rank in members}
    most = max(entered.values())
    waiting = [places[rank] for rank in members if entered[rank] == most]
    waiting_ranks = {place.rank for place in waiting}
    steps = {place.step for place in waiting}
    step = steps.pop() if len(steps) == 1 else None
    # How often they came here in one round of the phase around it: a step may have many of them.
    rounds = max(ranks[place.rank].own.counts.get(path[:-1], 0) for place in waiting) + 1
    most_apart = MAX_ROUNDS_APART * -(-most // rounds) if rounds > 1 else MAX_POINTS_APART
    missing = []
    for rank, report in ranks.items():
        if rank in waiting_ranks:
            continue
        each = _missing(report, places[rank], path, most, most_apart, step if is_marked else None)
        if each is not None:
            missing.append(each)
    phases = [members[place.rank] for place in waiting]
    for_ns = int(median(phase.for_ns for phase in phases))
    has_living = any(place.state not in DEAD for place in waiting)
    is_running = any(place.state is RankState.RUNNING for place in waiting)
    waits_for_dead = is_marked and is_running and any(places[each.rank].state in DEAD for each in missing)
    is_proven = waits_for_dead or _was_broken(waiting, missing, ranks)
    # Of most of them: one rank with a history of its own must not speak for all.
    is_late = is_overdue if is_marked else _is_too_long
    lasts_too_long = 2 * sum(is_late(phase, hang_ns) for phase in phases) > len(phases)
    is_guess = lasts_too_long and not is_proven and 2 * sum(map(has_usual, phases)) <= len(phases)
    has_given_up = 2 * sum(bool(ranks[place.rank].own.unwound) for place in waiting) > len(waiting)
    patience_ns = 0 if is_proven or has_given_up else _patience_ns(missing, ranks, places, hang_ns, is_guess=is_guess)
    may_go_on = for_ns <= patience_ns
    return Wait(
        path=path,
        ranks=tuple(sorted(waiting_ranks)),
        entries=most,
        step=step,
        for_ns=for_ns,
        missing=tuple(sorted(missing, key=lambda each: each.rank)),
        is_hung=is_proven or (lasts_too_long and (is_guess or not may_go_on)),
        is_over=not has_living,
        is_guess=is_guess,
        may_go_on=lasts_too_long and may_go_on,
        is_marked=is_marked,
        entered_ns={place.rank: members[place.rank].entered_ns for place in waiting},
    )


def _patience_ns(
    missing: Sequence[Missing],
    ranks: Mapping[int, RankReport],
    places: Mapping[int, Place],
    hang_ns: int,
    *,
    is_guess: bool,
) -> int:
    """Return for how long those missing may be at work, and not stuck; 0 if one is known to be late, ended or stopped.

    Where nothing is known to be usual, as in a first step that compiles: ten times the limit for a hang. Where the
    others usually wait for less: the limit itself for who goes on as usual, and less for who is in what was never
    measured.
    """
    patience_ns = 0
    for each in missing:
        own, place = ranks[each.rank].own, places[each.rank]
        is_at_work = place.state is RankState.RUNNING and not own.is_stopped and place.point is None
        was_at_work = is_guess and place.state is RankState.KILLED and place.point is None
        is_late = place.phase is not None and has_usual(place.phase) and is_overdue(place.phase, hang_ns)
        if is_late or not (is_at_work or was_at_work):
            return 0
        if is_guess:
            patience_ns = PATIENCE_TIMES * hang_ns
        elif place.phase is not None and has_usual(place.phase):
            patience_ns = max(patience_ns, hang_ns)
        else:
            patience_ns = max(patience_ns, min(UNMEASURED_NS, hang_ns))
    return patience_ns


def _was_broken(waiting: Sequence[Place], missing: Sequence[Missing], ranks: Mapping[int, RankReport]) -> bool:
    """Whether ranks failed in a point since others, that have not entered it, had ended before.

    Those must be fewer than the ones that failed, and show no later sign of life: else they may well have been ended
    because of one that failed in the point by itself.
    """
    failed_ns = [ranks[place.rank].own.end_ns for place in waiting if ranks[place.rank].own.unwound]
    absent = [ranks[each.rank].own for each in missing]
    if not absent or len(failed_ns) <= max(len(absent), len(waiting) // 2):
        return False
    return all(each.state in DEAD | IN_ORDER and each.end_ns < min(failed_ns) for each in absent)


def _missing(  # noqa: PLR0917 - one rank against what the others have in common
    report: RankReport, place: Place, path: tuple[str, ...], most: int, most_apart: int, step: int | None
) -> Missing | None:
    """Return how a rank falls short of `most` entries, or None if it does not, or nothing proves that it does.

    One that falls short by more than `most_apart`, and is not at an earlier step either, does not take part: had they
    waited for it each time, they would never have come so far. Tensor- and pipeline-parallel ranks meet in groups.
    """
    is_behind = step is not None and place.step is not None and place.step < step
    if report.own.has_exact_counts:
        count = entries(report.own, path)
        is_short = count < most and (is_behind or most - count <= most_apart)
        return Missing(rank=report.rank, entries=count, step=place.step) if is_short else None
    # Part of its journal is gone: then only an earlier step tells.
    return Missing(rank=report.rank, entries=None, step=place.step) if is_behind else None


def entries(own: ProcessReport, path: tuple[str, ...]) -> int:
    """Return how often a process has entered a path, what is open included."""
    return own.counts.get(path, 0) + sum(phase.path == path for phase in own.open)
