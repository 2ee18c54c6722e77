"""Which ranks may be the reason, each with what speaks for it; those with the strongest evidence first."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._liveness import utc
from stormphase.analysis._places import LEAST_COUNT, SECOND_NS, Place, is_overdue
from stormphase.analysis._ranks import DEAD, IN_ORDER, SAID_SO, OpenPhase, ProcessReport, RankReport, RankState, Usual
from stormphase.analysis._words import counted, path_text, shown, span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stormphase.analysis._waits import Missing, Wait

# Heartbeats are a second apart, and clocks of hosts differ: closer deaths are in no order.
SAME_TIME_NS: Final = 2 * SECOND_NS

DEAD_AND_AWAITED, DIED_FIRST, AWAITED, DIED, CHILD_DIED, OVERDUE, BEHIND, SILENT, WAITS_ITSELF = range(9)
KINDS: Final = (
    "dead_and_awaited",
    "died_first",
    "awaited",
    "died",
    "child_died",
    "overdue",
    "behind",
    "silent",
    "waits_itself",
)


@attrs.frozen(kw_only=True)
class Suspect:
    """A rank that may be the reason.

    Attributes:
        rank: which.
        kind: the strongest of its reasons, one of `KINDS`, which stand in order.
        reason: the evidence, in one sentence that needs nothing beside it but the rank.
    """

    rank: int
    kind: str
    reason: str


def suspects_of(
    ranks: Mapping[int, RankReport], places: Mapping[int, Place], waits: Sequence[Wait], hang_ns: int
) -> tuple[Suspect, ...]:
    """Return the suspects, the strongest first; none for a rank that nothing speaks against."""
    hung = [wait for wait in waits if wait.is_hung]
    firsts = _died_first(ranks, places)
    leading_step = _common_step(places)
    victims = {rank for wait in hung for rank in wait.ranks}
    sufferers = {rank for rank in victims if ranks[rank].own.unwound or _waits_too_long(places[rank], hang_ns)}
    beside = {rank for rank in victims if places[rank].beside is not None}
    excused = {rank for wait in hung if wait.missing for rank in wait.ranks} & (sufferers | beside)
    found: list[tuple[int, int, int, Suspect]] = []
    for rank, report in ranks.items():
        place = places[rank]
        awaited = [(wait, each) for wait in hung for each in wait.missing if each.rank == rank]
        tier = _tier(report, place, bool(awaited), rank in firsts, hang_ns)
        if (tier is DIED and rank in victims) or (tier in {DIED_FIRST, OVERDUE} and rank in excused):
            continue  # It waited for another one, until something ended them all.
        if tier is DEAD_AND_AWAITED and rank in sufferers:
            tier = WAITS_ITSELF
        if tier is None and hung and rank not in excused and _is_behind(place, leading_step):
            tier = BEHIND
        if tier is None:
            continue
        words = [_where(report, place), *(_awaited(wait, each, place, report.own) for wait, each in awaited[:2])]
        if not awaited and _is_behind(place, leading_step):
            words.append(f"it is at step {place.step}, most are at {leading_step}")
        words += [_died_beside(each) for each in report.processes[1:] if each.has_died]
        reason = ": ".join([words[0], "; ".join(words[1:])]) if len(words) > 1 else words[0]
        # The first to die before those that died later, whatever else speaks against them; of the living the one that
        # most wait for. In two collectives at once the odd one out is the likelier reason.
        waiting = max((len(wait.ranks) for wait, _ in awaited), default=0)
        order = firsts.get(rank, (len(ranks) + 1, report.own.end_ns)) if report.own.has_died else (-waiting, 0)
        found.append((tier, *order, Suspect(rank=rank, kind=KINDS[tier], reason=reason)))
    return tuple(each[-1] for each in sorted(found, key=lambda each: (*each[:3], each[3].rank)))


def _tier(report: RankReport, place: Place, is_awaited: bool, is_first: bool, hang_ns: int) -> int | None:  # noqa: FBT001
    if report.own.has_died:
        return DEAD_AND_AWAITED if is_awaited else DIED_FIRST if is_first else DIED
    if is_awaited:
        return WAITS_ITSELF if place.sync is not None and not report.own.kept_by else AWAITED
    if place.state is RankState.SILENT:
        return SILENT
    if any(process.has_died for process in report.processes[1:]):
        return CHILD_DIED
    if place.phase is not None and place.sync is None and place.state is RankState.RUNNING:
        return OVERDUE if is_overdue(place.phase, hang_ns) else None
    return None


def _died_first(ranks: Mapping[int, RankReport], places: Mapping[int, Place]) -> dict[int, tuple[int, int]]:
    """Return the ranks that died first, those of one time together, each with what sorts it among them.

    If all died at one time there is no first. Among those of one time the odd one out comes first: one that was
    killed while many saw an exception, or one exception among many that were killed; and of equally odd ones those
    that were in no synchronisation point, where a rank may fail because of another one.
    """
    died = sorted((each.own.end_ns, rank) for rank, each in ranks.items() if each.own.has_died)
    together = [rank for end_ns, rank in died if end_ns - died[0][0] <= SAME_TIME_NS]
    ends = Counter((ranks[rank].own.state, ranks[rank].own.error_type) for rank in together)
    if len(together) == len(ranks) and len(ends) == 1 and len(ranks) > 1:
        return {}
    return {
        rank: (ends[ranks[rank].own.state, ranks[rank].own.error_type], int(places[rank].sync is not None))
        for rank in together
    }


def _waits_too_long(place: Place, hang_ns: int) -> bool:
    return place.sync is not None and is_overdue(place.sync, hang_ns)


def _common_step(places: Mapping[int, Place]) -> int | None:
    steps = Counter(place.step for place in places.values() if place.step is not None)
    # Of equally frequent ones the highest.
    return max(steps, key=lambda step: (steps[step], step), default=None)


def _is_behind(place: Place, leading_step: int | None) -> bool:
    return (
        leading_step is not None
        and place.step is not None
        and place.step < leading_step
        and place.state not in IN_ORDER
    )


def _where(report: RankReport, place: Place) -> str:
    """Say how a rank stands and what it was doing."""
    own = report.own
    words = []
    if own.state is not RankState.RUNNING:
        words.append(standing_text(own))
    elif own.kept_by:
        words.append(own.kept_by)
    if place.phase is not None:
        words.append(f"in {doing(place.phase, place.step)}")
    elif own.state is RankState.RUNNING or (own.state in DEAD and own.state not in SAID_SO):
        words.append("with no phase open" + ("" if place.step is None else f", after step {place.step}"))
    return ", ".join(words)


def doing(phase: OpenPhase, step: int | None) -> str:
    """Say in which phase, since when, and what is usual."""
    at = "" if step is None else f" (step {step})"
    paused = ", paused" if phase.is_paused else ""
    return f"{path_text(phase.path)}{at}{since_text(phase.for_ns)}{paused}{usual_text(phase.usual)}"


def since_text(for_ns: int) -> str:
    """Say how long a phase is open; a sign of life may be the very enter of it."""
    return f" for {span(for_ns)}" if for_ns else ", entered just then"


def usual_text(usual: Usual | None, *, is_short: bool = False) -> str:
    """Say what is usual, with how often it was measured; nothing where nothing is known."""
    if usual is None or usual.median_ns is None or usual.p99_ns is None:
        return ""
    if usual.count < LEAST_COUNT:
        return f" (before: {counted(usual.count, 'time')}, at most {span(usual.max_ns)})"
    times = f"{usual.count:,} times"
    if is_short:
        return f" (usually {span(usual.median_ns)}, longest {span(usual.max_ns)})"
    return f" (usually {span(usual.median_ns)}, p99 {span(usual.p99_ns)}, longest {span(usual.max_ns)}, {times})"


def _died_beside(process: ProcessReport) -> str:
    which = "its worker" if process.forked_from is not None else "another"
    return f"{which} process {process.process.pid}: {standing_text(process)}"


def standing_text(process: ProcessReport) -> str:
    """Say how a process stands and how that is known; of a silent one the evidence begins with that word."""
    state = str(process.state)
    return process.evidence if process.evidence.startswith(state) else f"{state}, {process.evidence}"


def _awaited(wait: Wait, missing: Missing, place: Place, own: ProcessReport) -> str:
    """Say what a rank did not enter, and who waits for it there."""
    point = path_text(wait.path)
    leaf = shown(wait.path[-1])
    if place.sync is not None and place.sync.path == wait.path:
        short = f"it is in its {_ordinal(missing.entries)} {leaf}, they are in the {_ordinal(wait.entries)}"
    elif missing.step is not None and missing.step == wait.step:
        short = f"it never entered that step's {leaf}"
    elif missing.step is not None and wait.step is not None and missing.step < wait.step:
        short = f"it is at step {missing.step} and never entered the {leaf} of step {wait.step}"
    elif missing.entries is not None:
        short = f"it entered {point} {counted(missing.entries, 'time')}, they {counted(wait.entries, 'time')}"
    else:
        short = f"it is not in {point}"
    others = counted(len(wait.ranks), "rank")
    verb = "waited" if wait.is_over else "wait" if len(wait.ranks) > 1 else "waits"
    if place.sync is not None and not own.kept_by:
        return (
            f"{short}, where {others} {verb} for {span(wait.for_ns)}; it {'waited' if wait.is_over else 'waits'} itself"
        )
    who = "the others" if len(wait.ranks) > 1 and len(wait.missing) == 1 else others
    until = ", until they died" if wait.is_over else " so far"
    return f"{short}, and is what {who} {verb} for ({span(wait.for_ns)}{until})"


def _ordinal(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}."


def died_together(ranks: Mapping[int, RankReport]) -> str | None:
    """Say that all that died did so at one time, if they did: then no order can be told."""
    ends = [each.own.end_ns for each in ranks.values() if each.own.has_died]
    if len(ends) < 2 or max(ends) - min(ends) > SAME_TIME_NS:  # noqa: PLR2004 - one alone has no order
        return None
    apart_ns = max(ends) - min(ends)
    when = f"within {span(apart_ns)}, about" if apart_ns else "at one time,"
    return (
        f"{counted(len(ends), 'rank')} died {when} {utc(min(ends))}: "
        "which was first cannot be told from their last signs of life"
    )
