"""Who waits for whom: ranks in a synchronisation point, and the ranks that have not entered it as often."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

import attrs

from stormphase.analysis._places import Place, has_usual, is_overdue
from stormphase.analysis._ranks import DEAD, IN_ORDER, RankReport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Ranks that meet are not further apart: work that is only queued for a device runs ahead, but not by many rounds.
MAX_ROUNDS_APART: Final = 4
# Where no phase around them has ended, nobody can tell how many make a round.
MAX_POINTS_APART: Final = 64


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
    """Ranks in one synchronisation point.

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


def waits_of(ranks: Mapping[int, RankReport], places: Mapping[int, Place], hang_ns: int) -> tuple[Wait, ...]:
    """Return the synchronisation points that ranks are in, those of most ranks first."""
    by_path: dict[tuple[str, ...], list[Place]] = {}
    for place in places.values():
        if place.point is not None:
            by_path.setdefault(place.point.path, []).append(place)
    found = [_wait(path, members, ranks, places, hang_ns) for path, members in by_path.items()]
    return tuple(sorted(found, key=lambda wait: (-len(wait.ranks), wait.path)))


def _wait(
    path: tuple[str, ...],
    members: Sequence[Place],
    ranks: Mapping[int, RankReport],
    places: Mapping[int, Place],
    hang_ns: int,
) -> Wait:
    entered = {place.rank: _entries(ranks[place.rank], path) for place in members}
    most = max(entered.values())
    waiting = [place for place in members if entered[place.rank] == most]
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
        each = _missing(report, places[rank], path, most, most_apart, step)
        if each is not None:
            missing.append(each)
    phases = [place.point for place in waiting if place.point is not None]
    has_living = any(place.state not in DEAD for place in waiting)
    waits_for_dead = has_living and any(places[each.rank].state in DEAD for each in missing)
    is_proven = waits_for_dead or _was_broken(waiting, missing, ranks)
    # Of most of them: one rank with a history of its own must not speak for all.
    lasts_too_long = 2 * sum(is_overdue(phase, hang_ns) for phase in phases) > len(phases)
    return Wait(
        path=path,
        ranks=tuple(sorted(waiting_ranks)),
        entries=most,
        step=step,
        for_ns=int(median(phase.for_ns for phase in phases)),
        missing=tuple(sorted(missing, key=lambda each: each.rank)),
        is_hung=is_proven or lasts_too_long,
        is_over=not has_living,
        is_guess=lasts_too_long and not is_proven and 2 * sum(map(has_usual, phases)) <= len(phases),
    )


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
        entries = _entries(report, path)
        is_short = entries < most and (is_behind or most - entries <= most_apart)
        return Missing(rank=report.rank, entries=entries, step=place.step) if is_short else None
    # Part of its journal is gone: then only an earlier step tells.
    return Missing(rank=report.rank, entries=None, step=place.step) if is_behind else None


def _entries(report: RankReport, path: tuple[str, ...]) -> int:
    own = report.own
    return own.counts.get(path, 0) + sum(phase.path == path for phase in own.open)
