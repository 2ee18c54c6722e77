"""Which ranks may be the reason, each with what speaks for it; those with the strongest evidence first."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs

from stormphase.analysis._facts import Facts, spot_of
from stormphase.analysis._places import LEAST_COUNT, Place
from stormphase.analysis._ranks import DEAD, IN_ORDER, SAID_SO, OpenPhase, ProcessReport, RankReport, RankState, Usual
from stormphase.analysis._words import counted, path_text, shown, span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase.analysis._verdict import Verdict
    from stormphase.analysis._waits import Missing, Wait

KINDS: Final = (
    "dead_and_awaited",
    "died_first",
    "stopped",
    "left_early",
    "awaited",
    "still_there",
    "died",
    "child_died",
    "overdue",
    "stands",
    "behind",
    "silent",
    "waits_itself",
)
(
    DEAD_AND_AWAITED,
    DIED_FIRST,
    STOPPED,
    LEFT_EARLY,
    AWAITED,
    STILL_THERE,
    DIED,
    CHILD_DIED,
    OVERDUE,
    STANDS,
    BEHIND,
    SILENT,
    WAITS_ITSELF,
) = range(len(KINDS))


@attrs.frozen
class Suspect:
    """A rank that may be the reason.

    Attributes:
        rank: which.
        kind: the strongest of its reasons, one of `KINDS`, which stand in order.
        reason: the evidence, in one sentence that needs nothing beside it but the rank.
        place: 1 for the suspects that the verdict names, then 2 and so on.
        is_tied: whether others share its place, since nothing tells them apart.
    """

    rank: int
    kind: str
    reason: str
    place: int = 1
    is_tied: bool = False


def suspects_of(facts: Facts, verdict: Verdict) -> tuple[Suspect, ...]:
    """Return whom the verdict names, then others that something speaks against; none if it cannot be told."""
    named = frozenset(verdict.ranks)
    if not named:
        return ()
    leading_step = _common_step(facts.places)
    hung = facts.hung
    victims = {rank for wait in hung for rank in wait.ranks}
    sufferers = {rank for rank in victims if facts.ranks[rank].own.unwound or rank in facts.late}
    spots = Counter(spot_of(rank, facts) for rank in facts.ranks)
    found: list[tuple[bool, int, int, Suspect]] = []
    for rank, report in facts.ranks.items():
        place = facts.places[rank]
        awaited = [(wait, each) for wait in hung for each in wait.missing if each.rank == rank]
        tier = _tier(report, place, is_awaited=bool(awaited), is_named=rank in named, is_late=rank in facts.late)
        if tier is DEAD_AND_AWAITED and rank in sufferers and place.sync is not None:
            tier = WAITS_ITSELF
        if rank not in named:
            is_excused = (tier is DIED and rank in victims) or (tier is OVERDUE and spots[spot_of(rank, facts)] > 1)
            if is_excused or tier is None:
                continue
        if rank in named and tier in {None, STANDS} and hung and _is_behind(place, leading_step):
            tier = BEHIND
        words = [_where(report, place), *(_awaited(wait, each, place, report.own) for wait, each in awaited[:2])]
        if not awaited and _is_behind(place, leading_step):
            words.append(f"it is at step {place.step}, most are at {leading_step}")
        words += [_died_beside(each) for each in report.processes[1:] if each.has_died]
        reason = ": ".join([words[0], "; ".join(words[1:])]) if len(words) > 1 else words[0]
        kind = KINDS[STANDS if tier is None else tier]
        waiting = max((len(wait.ranks) for wait, _ in awaited), default=0)
        when = report.own.end_ns if report.own.has_died else -waiting
        found.append((rank not in named, STANDS if tier is None else tier, when, Suspect(rank, kind, reason)))
    found.sort(key=lambda each: (*each[:3], each[3].rank))
    ties = len(named) > 1
    return tuple(
        attrs.evolve(
            each, place=1 if each.rank in named else index - len(named) + 2, is_tied=ties and each.rank in named
        )
        for index, (*_, each) in enumerate(found)
    )


def _tier(report: RankReport, place: Place, *, is_awaited: bool, is_named: bool, is_late: bool) -> int | None:
    """Return what speaks against a rank most; None if nothing does."""
    own = report.own
    if own.has_died:
        return DEAD_AND_AWAITED if is_awaited else DIED_FIRST if is_named else DIED
    if is_awaited:
        return WAITS_ITSELF if place.sync is not None and not own.is_stopped else AWAITED
    if place.state in IN_ORDER:
        left = STILL_THERE if own.is_there and own.failure is None else LEFT_EARLY
        return left if is_named else None
    is_overdue = is_late and (place.sync is None or is_named) and place.state is RankState.RUNNING
    has_lost_a_worker = any(process.has_died for process in report.processes[1:])
    tiers = (
        (STOPPED, own.is_stopped and is_named),
        (SILENT, place.state is RankState.SILENT),
        (CHILD_DIED, has_lost_a_worker),
        (OVERDUE, is_overdue),
        (STANDS, is_named),
    )
    return next((tier for tier, is_so in tiers if is_so), None)


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
    if own.failure is not None:
        failure = own.failure
        words.append(
            f"after {failure.error_type}: {failure.error_message} had {failure.status} {path_text(failure.path)}"
        )
    if own.state in IN_ORDER and own.there_ns is not None:
        words.append(f"its process {own.process.pid} was still there {span(own.there_ns - own.end_ns)} later")
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
    if place.sync is not None and not own.is_stopped:
        return (
            f"{short}, where {others} {verb} for {span(wait.for_ns)}; it {'waited' if wait.is_over else 'waits'} itself"
        )
    who = "the others" if len(wait.ranks) > 1 and len(wait.missing) == 1 else others
    until = ", until they died" if wait.is_over else " so far"
    return f"{short}, and is what {who} {verb} for ({span(wait.for_ns)}{until})"


def _ordinal(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}."
