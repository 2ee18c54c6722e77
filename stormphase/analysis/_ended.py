"""Rules on ranks that ended: by their own word, from outside, or in order and too early."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from stormphase.analysis._endings import HOSTS_NS, End, Nature, firsts_of
from stormphase.analysis._facts import LAUNCHER_NS, MAX_ERROR, Facts, Finding, end_text, finding, spot_of, who
from stormphase.analysis._ranks import RankState
from stormphase.analysis._waits import entries
from stormphase.analysis._words import counted, ranks_text, shown, span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Ranks that ended within this ended at one time.
SAME_TIME_NS: Final = 1_000_000_000
# How long before the end of the first node others may have waited already, as in any step.
LATE_NS: Final = 5_000_000_000


def one_cause_for_all(facts: Facts) -> Finding | None:
    """Suspect nobody where all ranks failed by the same error in the same phase at one time: they share its cause."""
    own = [end for end in facts.ended(Nature.OWN) if not end.is_echo]
    if not len(own) == len(facts.ranks) > 1:
        return None
    kinds = {end.error.partition(":")[0] for end in own}
    places = {phase.path if (phase := facts.places[end.rank].phase) is not None else () for end in own}
    clocks = {end.clock for end in own}
    apart_ns = max(end.to_ns for end in own) - min(end.to_ns for end in own)
    # Wherever it found them: as a handler exits that all have for a signal.
    is_one_exit = kinds == {"SystemExit"} and len({end.error for end in own}) == 1
    if len(kinds) > 1 or (len(places) > 1 and not is_one_exit) or (len(clocks) == 1 and apart_ns > SAME_TIME_NS):
        return None
    kind = shown(kinds.pop(), MAX_ERROR)
    where = " in one phase" if len(places) == 1 else ""
    return Finding((), f"all {len(own):,} ranks raised {kind}{where} within {span(apart_ns)}: they share its cause")


def left_before_the_others(facts: Facts) -> Finding | None:
    """Suspect who left in order before the others, which something ended from outside, or which lost it.

    It may have caught what went wrong, or have exited otherwise than the journal can know. Only few may have left so:
    where most did, they had done their work.
    """
    left = facts.ended(Nature.LEFT)
    others = [end for end in facts.ends.values() if end.nature is Nature.OUTSIDE or end.is_echo]
    failed = [end for end in facts.ended(Nature.OWN) if not end.is_echo]
    if not left or not others or failed or 2 * len(left) > len(facts.ranks):
        return None
    are_few = 2 * len(left) < len(facts.ranks)
    early = [end for end in left if _left_early(end, others) and (are_few or _did_less(end.rank, others, facts))]
    if not early:
        return None
    gap_ns = min(end.from_ns for end in others) - max(end.to_ns for end in early)
    before = f"{span(gap_ns)} " if gap_ns > 0 else ""
    ended = f"the other {counted(len(others), 'rank')} ended from outside" if len(others) > 1 else "the other was ended"
    return finding(early, f"{who(early, past=True)} gone, in order by its own word, {before}before {ended}")


def _left_early(end: End, others: Iterable[End]) -> bool:
    """Whether all others showed life after a rank had left, and none for longer than a launcher takes to end them."""
    gaps = []
    for other in others:
        is_one = end.clock is not None and end.clock == other.clock
        gap_ns = other.from_ns - other.clock_ns - (end.to_ns - end.clock_ns) if is_one else other.from_ns - end.to_ns
        if gap_ns <= (0 if is_one else -HOSTS_NS):
            return False
        gaps.append(gap_ns if is_one else max(0, gap_ns - HOSTS_NS))
    return min(gaps) <= LAUNCHER_NS


def _did_less(rank: int, others: Iterable[End], facts: Facts) -> bool:
    own = facts.ranks[rank].own
    if not own.has_exact_counts:
        return False
    for other in others:
        theirs = facts.ranks[other.rank].own
        paths = {*theirs.counts, *(phase.path for phase in theirs.open)}
        if any(entries(theirs, path) > entries(own, path) for path in paths):
            return True
    return False


def ended_by_one_hand(facts: Facts) -> Finding | None:
    """Suspect nobody where all ranks were ended from outside, the nodes one by one, or some of them by being asked to.

    A scheduler ends a job so, and Ctrl-C: who runs Python ends at once, and the others when they are killed.
    """
    ends = facts.ended(Nature.OUTSIDE, Nature.SILENT)
    if len(ends) < len(facts.ranks) or len(ends) == 1:
        return None
    nodes: dict[object, list[int]] = {}
    for end in ends:
        own = facts.ranks[end.rank].own
        nodes.setdefault((end.clock, own.process.host, own.identity.node_rank), []).append(end.from_ns)
    apart_ns = max(end.from_ns for end in ends) - min(end.from_ns for end in ends)
    late_ns = max((phase.for_ns for phase in facts.late.values()), default=0)
    if late_ns > apart_ns + LATE_NS or apart_ns > LAUNCHER_NS + HOSTS_NS:
        return None  # They had come to a stand before, or it took longer than one hand takes.
    asked = [end.rank for end in ends if facts.ranks[end.rank].own.asked_ns is not None]
    asked += [end.rank for end in ends if facts.ranks[end.rank].own.state is RankState.SIGNAL]
    all_ended = f"all {len(ends):,} ranks were ended from outside within {span(apart_ns)}, "
    if asked:
        return Finding((), f"{all_ended}{counted(len(set(asked)), 'rank')} by being asked to: so a whole job is ended")
    is_together = all(max(times) - min(times) <= 2 * SAME_TIME_NS for times in nodes.values())
    if len(nodes) == 1 or not is_together:
        return None
    how = f"one of {len(nodes)} nodes after another"
    return Finding((), f"{all_ended}{how}: so a scheduler ends a job, and one that lost a node")


def first_to_end(facts: Facts) -> Finding | None:
    """Suspect who ended first, by its own word to the nanosecond, else by its last sign of life.

    Of those whose ends overlap an echo is no cause, who failed by an error of its own is more than who was killed, and
    one that was killed is more than many that failed alike. Who had come to a stand together with others is none.
    """
    spots = Counter(spot_of(rank, facts) for rank in facts.ranks)
    ends = facts.ended(Nature.OWN, Nature.OUTSIDE, Nature.STOPPED, Nature.SILENT)
    ends = [end for end in ends if end.rank not in facts.victims]
    if any(end.nature is Nature.OWN and not end.is_echo for end in ends):
        ends = [
            end for end in ends if not end.is_echo
        ]  # Its end is noted when it has cleaned up, and echoes are quick.
    first = firsts_of(ends)
    first = [end for end in first if not end.is_echo] or first
    own = [end for end in first if end.nature is Nature.OWN]
    outside = [end for end in first if end.nature is not Nature.OWN]
    overlap = bool(own and outside)
    if overlap:
        first = _likelier(own, outside, facts)
    elif outside:
        first = _ahead_of_their_machine(outside, ends) or first
    # Or all lost a connection, where others did, and none shows to whom.
    paths = Counter(_path_of(end, facts) for end in ends)
    is_lost = all(end.is_echo for end in ends) and len(ends) == len(facts.ranks) > 1
    is_lost = is_lost and any(paths[_path_of(end, facts)] > 1 for end in first)
    if is_lost or any(spots[spot_of(end.rank, facts)] > 1 for end in first):
        return None
    lived = len(facts.ranks) - len(facts.ended(Nature.LEFT))
    if not first or (len(first) > 1 and (len(first) == lived or all(end.is_echo for end in first))):
        return None
    if len(first) > 1:
        return finding(first, f"{who(first, past=True)} the first to end, and clocks do not tell which before which")
    why = end_text(first[0])
    if overlap:
        odd = f", and {counted(len(own), 'rank')} failed about then by what may be its echo"
        killed = f", and that explains why {counted(len(outside), 'rank')} ended from outside about then"
        return finding(first, why + (killed if own[0] is first[0] else odd))
    one = [end for end in ends if end is not first[0] and end.clock is not None and end.clock == first[0].clock]
    gap_ns = min((end.from_ns - end.clock_ns for end in one), default=0) - (first[0].from_ns - first[0].clock_ns)
    if one and gap_ns > 0:
        return finding(first, f"{why}, {span(gap_ns)} before any other of its machine ended")
    return finding(first, f"{why}, and no other rank ended before it")


def _path_of(end: End, facts: Facts) -> tuple[str, ...]:
    phase = facts.places[end.rank].phase
    return () if phase is None else phase.path


def _likelier(own: list[End], outside: list[End], facts: Facts) -> list[End]:
    """Return which of the ends that overlap is the likelier reason; all of them if nothing tells."""
    kinds = {end.error.partition(":")[0] for end in own}
    if len(own) > len(outside) and len(kinds) == 1:
        return outside  # Many that failed alike, and one that was killed.
    are_at_points = all(facts.places[end.rank].point is not None for end in own)
    if are_at_points and len(outside) == 1 and facts.places[outside[0].rank].point is None:
        return outside  # What ranks fail of where they wait for each other may be what became of another one.
    return [*own, *outside] if len(own) == len(outside) == 1 else own


def _ahead_of_their_machine(first: Sequence[End], ends: Sequence[End]) -> list[End]:
    """Return those that ended before others of their own machine; between machines no order may be known."""
    clocks = {end.clock for end in ends}
    if len(clocks) == 1:
        return []
    last = {clock: max(end.from_ns - end.clock_ns for end in ends if end.clock == clock) for clock in clocks}
    return [end for end in first if end.to_ns - end.clock_ns < last[end.clock]]


def worker_died(facts: Facts) -> Finding | None:
    """Suspect whose worker process died, where nothing else speaks against anyone."""
    ranks = [rank for rank, report in facts.ranks.items() if any(each.has_died for each in report.processes[1:])]
    if not ranks or len(ranks) == len(facts.ranks) > 1:
        return None
    many = len(ranks) > 1
    return Finding(tuple(ranks), f"{'processes' if many else 'a process'} of rank{'s' * many} {ranks_text(ranks)} died")
