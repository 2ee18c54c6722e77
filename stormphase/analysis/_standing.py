"""Rules on ranks that came to a stand: who is missing, who was stopped, who was the first, and who is still there."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import TYPE_CHECKING

import attrs

from stormphase.analysis._endings import HOSTS_NS, End, Nature, came_before, firsts_of
from stormphase.analysis._facts import LAUNCHER_NS, Facts, Finding, end_text, finding, spot_of, who
from stormphase.analysis._places import LEAST_OVERDUE_NS, TIMES_MAX, has_usual
from stormphase.analysis._ranks import IN_ORDER, ProcessReport, RankState
from stormphase.analysis._waits import UNMEASURED_NS, entries
from stormphase.analysis._words import counted, path_text, ranks_text, span

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from stormphase.analysis._waits import Missing, Wait


def suspended(facts: Facts) -> Finding | None:
    """Suspect nobody where all ranks are stopped: a scheduler suspends a job so, and Ctrl-Z."""
    stopped = facts.ended(Nature.STOPPED)
    if not len(stopped) == len(facts.ranks) > 1:
        return None
    kept_by = facts.ranks[stopped[0].rank].own.kept_by
    return Finding((), f"all {len(stopped):,} ranks are {kept_by}, as a job is that was suspended")


def missing_where_others_wait(facts: Facts) -> Finding | None:
    """Suspect who has not entered the point in which others are far longer than ever, though it lived meanwhile.

    One that ended before they came, or as they did, is for the rules on ends: it may have been ended like them.
    """
    absent: dict[int, list[tuple[Wait, Missing]]] = {}
    for wait in facts.hung:
        ends = [facts.ends.get(each.rank) for each in wait.missing]
        if len(ends) > len(wait.ranks) and all(end is not None and end.nature is Nature.LEFT for end in ends):
            continue  # Most are done: then it is the ones that are not.
        if any(_lived_meanwhile(wait, end, facts) for end in ends):
            for each in wait.missing:
                absent.setdefault(each.rank, []).append((wait, each))
    if not absent:
        return None
    waits_itself = {rank for rank in absent if _waits_itself(rank, facts)}
    ranks = absent.keys() - waits_itself
    if not ranks:
        awaited_by = {rank: max(len(wait.ranks) for wait, _ in found) for rank, found in absent.items()}
        most = max(awaited_by.values())
        ranks = {rank for rank, count in awaited_by.items() if count == most}
        if most <= len(ranks) and len(facts.hung) > 1:
            parts = " and ".join(f"rank {ranks_text(wait.ranks)} in {path_text(wait.path)}" for wait in facts.hung)
            return Finding((), f"{parts} wait for each other: which of them went another way nothing tells")
    stands = [stand for rank in ranks if (stand := _stand_of(rank, facts)) is not None] if len(ranks) > 1 else []
    if any(stand.nature is not Nature.STOOD for stand in stands):
        stands = [_widened(stand) for stand in stands]
    # Who is late, or ended, before who may be at work; of two of those what came first.
    ranks = {end.rank for end in firsts_of(stands)} or ranks
    wait, missing = max((absent[rank][0] for rank in sorted(ranks)), key=lambda each: len(each[0].ranks))
    return Finding(tuple(sorted(ranks)), _awaited_text(wait, missing, ranks))


def _awaited_text(wait: Wait, missing: Missing, ranks: Collection[int]) -> str:
    verb, tense = ("waited", "had") if wait.is_over else ("wait", "has")
    if len(wait.ranks) == 1 and not wait.is_over:
        verb = "waits"
    often = "" if missing.entries is None else f" ({missing.entries:,} of {counted(wait.entries, 'time')})"
    shows = "" if wait.is_marked else ", which nobody marked as a point where they do"
    late = "have not" if len(ranks) > 1 else f"{tense} not"
    named = f"rank{'s' * (len(ranks) > 1)} {ranks_text(ranks)}"
    return (
        f"{counted(len(wait.ranks), 'rank')} {verb} in {path_text(wait.path)} for {span(wait.for_ns)}{shows}, "
        f"and {named} {late} entered it as often{often}"
    )


def _lived_meanwhile(wait: Wait, end: End | None, facts: Facts) -> bool:
    """Whether a rank that is missing lived while the others waited, for long enough to say that it hung."""
    if end is None or end.nature in {Nature.LEFT, Nature.STOPPED}:
        return True  # Who left in order did not come, and that is all there is to it.
    if wait.for_ns <= LEAST_OVERDUE_NS:
        return False
    if 2 * end.stood_ns >= wait.for_ns:
        return True
    owns = [facts.ranks[rank].own for rank in wait.ranks]
    one = [wait.entered_ns[own.identity.rank] - own.clock_ns for own in owns if own.process.boot_id == end.clock]
    if one and end.clock is not None:
        return end.from_ns - end.clock_ns - median(one) > LEAST_OVERDUE_NS
    return end.from_ns - median(wait.entered_ns.values()) > HOSTS_NS


def _waits_itself(rank: int, facts: Facts) -> bool:
    if facts.ranks[rank].own.is_stopped:
        return False
    return facts.places[rank].sync is not None or any(
        rank in wait.ranks and not wait.is_marked and wait.missing for wait in facts.hung
    )


def stopped_by_the_kernel(facts: Facts) -> Finding | None:
    """Suspect who is there and may not run, as the kernel says: a signal or a debugger has stopped it."""
    failed = [end for end in facts.ended(Nature.OWN, Nature.OUTSIDE) if not end.is_echo and end.rank not in facts.late]
    stopped = [end for end in facts.ended(Nature.STOPPED) if not any(came_before(each, end) for each in failed)]
    if not stopped:
        return None
    kept_by = facts.ranks[stopped[0].rank].own.kept_by
    return finding(stopped, f"{who(stopped)} {kept_by}, as the kernel says")


def first_to_stand(facts: Facts) -> Finding | None:
    """Suspect who first stopped doing as usual: by its end, or by being in a phase for longer than it ever took.

    Only where a rank is late in what was measured before. Ranks that are in one phase for as often wait for each other,
    or for another one: they are suspects only if all others are, and then it tells of none.
    """
    stands = [stand for rank in facts.ranks if (stand := _stand_of(rank, facts)) is not None]
    # Who ended may have been where another one stands, and is by itself; the other one waits there for it.
    ended_in = Counter(_place_of(stand.rank, facts) for stand in stands if stand.nature is not Nature.STOOD)
    spots = Counter(_spot_of(stand, facts) for stand in stands) + ended_in
    alone = [stand for stand in stands if spots[_spot_of(stand, facts)] == 1]
    if not facts.late or not alone:
        return None
    alone = _in_time(alone, stands, facts)
    first = _ended_first(alone, facts) or firsts_of(alone)
    if not first or _tells_nothing(first, facts):
        return None
    latest = "" if len(stands) == 1 else ", before any other rank came to a stand"
    if len(first) > 1:
        return finding(first, f"{who(first)} the first to come to a stand, and clocks do not tell which before which")
    (stand,) = first
    late = facts.late.get(stand.rank)
    if late is not None:
        where = f"{path_text(late.path)} for {span(late.for_ns)}"
        return finding(first, f"{who(first)} in {where}, far longer than ever before{latest}")
    if stand.rank in facts.ends:
        return finding(first, end_text(facts.ends[stand.rank]) + latest)
    phase = facts.places[stand.rank].phase
    where = "" if phase is None else f" in {path_text(phase.path)}, which was never measured, for {span(phase.for_ns)}"
    return finding(first, f"{who(first)}{where}, and others came to a stand after it")


def _ended_first(alone: Sequence[End], facts: Facts) -> list[End]:
    """Return those that ended before others had stood for long: that is why these stand, and not the other way round.

    But if all have ended from outside: then one hand may have ended them.
    """
    widened = [_widened(stand) for stand in alone]
    ended = [stand for stand in firsts_of(widened) if stand.nature is not Nature.STOOD]
    own = [stand for stand in ended if stand.nature is Nature.OWN]
    is_any_running = any(report.own.state is RankState.RUNNING for report in facts.ranks.values())
    return own or (ended if is_any_running else [])


def _widened(stand: End) -> End:
    """Return when a rank came to a stand for certain: to be late by less happens now and then."""
    if stand.nature is not Nature.STOOD:
        return stand
    return attrs.evolve(stand, to_ns=max(stand.to_ns, stand.from_ns + LEAST_OVERDUE_NS))


def _tells_nothing(first: Sequence[End], facts: Facts) -> bool:
    """Whether these are most of the ranks, or wait for others while nothing is known of those that have no journal."""
    if len(first) > 1 and 2 * len(first) > len(facts.ranks):
        return True
    return bool(facts.absent) and all(facts.places[stand.rank].point is not None for stand in first)


def _spot_of(stand: End, facts: Facts) -> object:
    """Return where a rank stands and how often it came there; one that ended before it was late is by itself."""
    phase = facts.places[stand.rank].phase
    if stand.rank in facts.late or stand.nature is not Nature.STOOD or phase is None:
        return spot_of(stand.rank, facts)
    return _place_of(stand.rank, facts)


def _place_of(rank: int, facts: Facts) -> object:
    """Return in which phase a rank is, or was when it ended, and how often it came there."""
    phase = facts.places[rank].phase
    return rank if phase is None else (phase.path, entries(facts.ranks[rank].own, phase.path))


def _in_time(alone: Sequence[End], stands: Sequence[End], facts: Facts) -> list[End]:
    """Return those that did not still go on when ranks that stand together were late: else they held up none."""
    apart = {end.rank for end in alone}
    together = firsts_of(_widened(end) for end in stands if end.rank not in apart)
    return [end for end in alone if not any(came_before(each, _began(end, facts)) for each in together)]


def _began(stand: End, facts: Facts) -> End:
    """Return when a rank did something for the last time: it ended, or entered the phase in which it stands."""
    late = facts.late.get(stand.rank)
    if late is None or stand.nature is not Nature.STOOD:
        return stand
    return attrs.evolve(stand, from_ns=late.entered_ns, to_ns=late.entered_ns)


def no_sign_of_life(facts: Facts) -> Finding | None:
    """Suspect who is there and gives no sign of life, where others that hang give theirs."""
    still = [rank for rank, report in facts.ranks.items() if report.own.still_ns]
    if not (facts.hung or facts.late) or not still or 2 * len(still) > len(facts.ranks):
        return None
    least = min(facts.ranks[rank].own.still_ns for rank in still)
    many = len(still) > 1
    who = f"rank{'s' * many} {ranks_text(still)} {'are' if many else 'is'}"
    return Finding(tuple(still), f"{who} there without a sign of life for {span(least)}, and the others give theirs")


def still_there(facts: Facts) -> Finding | None:
    """Suspect who is still there when the others have ended in order, longer ago than a hang takes."""
    left = [end for end in facts.ended(Nature.LEFT) if not facts.ranks[end.rank].own.is_there]
    here = [rank for rank in facts.ranks if _is_still_there(rank, facts)]
    if facts.absent or not left or not here or len(left) + len(here) < len(facts.ranks):
        return None
    since_ns = min(_since(left, rank, facts) for rank in here)
    if since_ns <= max(_patience_ns(left, rank, facts) for rank in here):
        return None
    many = len(here) > 1
    who = f"rank{'s' * many} {ranks_text(here)} {'are' if many else 'is'}"
    rest = f"the other {counted(len(left), 'rank')}" if len(left) > 1 else "the other rank"
    have = "have" if len(left) > 1 else "has"
    return Finding(tuple(here), f"{who} still there {span(since_ns)} after {rest} {have} ended in order")


def _patience_ns(left: Sequence[End], rank: int, facts: Facts) -> int:
    """Return for how long a rank may stay after the others: the limit, or less if they have left its phase before."""
    phase = facts.places[rank].phase
    if phase is None or facts.ranks[rank].own.state in IN_ORDER:
        return facts.hang_ns
    ended = (each for end in left for each in facts.ranks[end.rank].own.last_ended if each.path == phase.path)
    longest_ns = max((each.ended_ns - each.entered_ns for each in ended), default=facts.hang_ns)
    return min(facts.hang_ns, max(UNMEASURED_NS, TIMES_MAX * longest_ns))


def _is_still_there(rank: int, facts: Facts) -> bool:
    own, place = facts.ranks[rank].own, facts.places[rank]
    if own.state in IN_ORDER:
        return own.is_there
    goes_on = place.phase is not None and has_usual(place.phase) and rank not in facts.late
    return own.state is RankState.RUNNING and not goes_on


def _since(left: Sequence[End], rank: int, facts: Facts) -> int:
    """Return for how long at least the last of those that left is gone, as a rank's machine tells."""
    own = facts.ranks[rank].own
    now_ns = max(own.measured_ns, own.there_ns or 0)
    gaps = []
    for end in left:
        is_one = end.clock is not None and end.clock == own.process.boot_id
        gap_ns = now_ns - own.clock_ns - (end.to_ns - end.clock_ns) if is_one else now_ns - end.to_ns - HOSTS_NS
        gaps.append(gap_ns)
    return min(gaps)


def _stand_of(rank: int, facts: Facts) -> End | None:
    """Return when a rank stopped doing as usual; None if it goes on, or waits for one that is known."""
    if rank in facts.victims or rank in facts.at_work:
        return None
    end, late, own, place = facts.ends.get(rank), facts.late.get(rank), facts.ranks[rank].own, facts.places[rank]
    if late is not None:
        usual = late.usual
        least_ns, most_ns = (0, LEAST_OVERDUE_NS) if usual is None else (usual.median_ns or 0, usual.max_ns)
        stand = _stood(own, rank, (late.entered_ns + least_ns, late.entered_ns + most_ns), late.for_ns)
        return end if end is not None and not end.is_echo and came_before(end, stand) else stand
    if end is not None:
        may_be = not end.is_echo and (end.nature is not Nature.LEFT or _left_as_one_of_few(end, facts))
        return end if may_be else None
    phase = place.phase
    if phase is None or has_usual(phase) or own.state is not RankState.RUNNING:
        return None
    last_ns = max(phase.entered_ns, own.last_ended[-1].ended_ns if own.last_ended else 0)
    between = (last_ns, last_ns + LEAST_OVERDUE_NS)
    return _stood(own, rank, between, phase.for_ns) if between[1] <= own.measured_ns else None


def _left_as_one_of_few(end: End, facts: Facts) -> bool:
    """Whether a rank left as one of few, and not so long before others came to a stand that they went on without it."""
    if 2 * len(facts.ended(Nature.LEFT)) >= len(facts.ranks):
        return False
    began = [phase.entered_ns for phase in facts.late.values()]
    return not began or min(began) - end.to_ns <= LAUNCHER_NS


def _stood(own: ProcessReport, rank: int, between: tuple[int, int], stood_ns: int) -> End:
    """Return when a rank came to a stand: after as long as its phase usually takes, or as long as it ever took."""
    return End(
        rank=rank,
        nature=Nature.STOOD,
        from_ns=between[0],
        to_ns=between[1],
        clock=own.process.boot_id,
        clock_ns=own.clock_ns,
        stood_ns=stood_ns,
    )
