"""What the rules of evidence look at, what they conclude, and how they say it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import attrs

from stormphase.analysis._endings import End, Nature, ends_of
from stormphase.analysis._places import LEAST_OVERDUE_NS, Place, is_overdue
from stormphase.analysis._ranks import OpenPhase, RankReport, RankState
from stormphase.analysis._waits import Wait, entries
from stormphase.analysis._words import ranks_text, shown

# In which a launcher ends the other ranks after one has ended, and a scheduler one node after another.
LAUNCHER_NS: Final = 60_000_000_000
MAX_ERROR: Final = 80


class Answer(str, enum.Enum):
    """What the evidence shows; the text is what JSON and people get.

    WELL: nothing is wrong. NAMED: a culprit. TIE: several, of which one may be it. UNTOLD: none.
    """

    WELL = "well"
    NAMED = "named"
    TIE = "tie"
    UNTOLD = "cannot be told"

    def __str__(self) -> str:
        """Return the text."""
        return self.value


@attrs.frozen
class Finding:
    """What a rule concludes.

    Attributes:
        ranks: the suspects, of which none comes before another; none if it cannot be told.
        why: the evidence in one sentence with its numbers.
    """

    ranks: tuple[int, ...]
    why: str


@attrs.frozen(kw_only=True)
class Facts:
    """What the rules look at.

    Attributes:
        ranks: what each rank's journal says.
        places: what each is doing, or was when it ended.
        waits: the points that ranks are in.
        ends: how those stopped that do not run.
        late: of each rank the innermost phase that lasts far longer than ever, where there is one.
        hang_ns: how long waiting is no hang where nothing is known to be usual.
        hung: the waits that last too long, and whose missing ranks are not merely at work.
        late_spots: where those that are late stand, and how often they have come there.
        victims: the ranks that wait in those for others, which are known.
        absent: ranks of the attempt that have no journal here.
        at_work: the ranks that may be at work as far as is known, and those that wait for them.
    """

    ranks: Mapping[int, RankReport]
    places: Mapping[int, Place]
    waits: Sequence[Wait]
    ends: Mapping[int, End]
    late: Mapping[int, OpenPhase]
    hang_ns: int
    hung: Sequence[Wait]
    late_spots: Collection[tuple[tuple[str, ...], int]]
    victims: Collection[int]
    absent: Collection[int]
    at_work: Collection[int]

    @classmethod
    def of(
        cls,
        ranks: Mapping[int, RankReport],
        places: Mapping[int, Place],
        waits: Sequence[Wait],
        *,
        hang_ns: int,
        absent: Collection[int] = (),
    ) -> Facts:
        """Take them from what is known of each rank."""
        hung = [wait for wait in waits if wait.is_hung and not wait.may_go_on]
        patient = [wait for wait in waits if wait.may_go_on]
        late = {rank: phase for rank, place in places.items() if (phase := _late(place, hang_ns)) is not None}
        return cls(
            ranks=ranks,
            places=places,
            waits=waits,
            ends=ends_of(ranks, places),
            late=late,
            hang_ns=hang_ns,
            hung=hung,
            late_spots={(phase.path, entries(ranks[rank].own, phase.path)) for rank, phase in late.items()},
            absent=absent,
            victims={
                rank for wait in hung if wait.missing for rank in wait.ranks if _waited(ranks[rank], places[rank])
            },
            at_work={rank for wait in patient for rank in (*wait.ranks, *(each.rank for each in wait.missing))},
        )

    def ended(self, *natures: Nature) -> list[End]:
        """Return the ends of these kinds."""
        return [end for end in self.ends.values() if end.nature in natures]


def _waited(report: RankReport, place: Place) -> bool:
    """Whether a rank waited for long, gave up, or waits for one that is gone: else it may have ended like others."""
    point = place.point or place.late
    is_long = point is not None and point.for_ns > LEAST_OVERDUE_NS
    return is_long or bool(report.own.unwound) or report.own.state is RankState.RUNNING


def _late(place: Place, hang_ns: int) -> OpenPhase | None:
    point = place.point
    return point if place.late is None and point is not None and is_overdue(point, hang_ns) else place.late


Rule = Callable[[Facts], "Finding | None"]


def spot_of(rank: int, facts: Facts) -> object:
    """Return where a rank stands, and how often it has come there; of who has ended otherwise a spot of its own."""
    late, end, phase = facts.late.get(rank), facts.ends.get(rank), facts.places[rank].phase
    if late is not None:
        return late.path, entries(facts.ranks[rank].own, late.path)
    if phase is None or end is None or end.nature is Nature.OWN or end.stood_ns <= LEAST_OVERDUE_NS:
        return rank
    # Something ended it where it stood, as late as others that stood there, if not as late for what it knows.
    spot = phase.path, entries(facts.ranks[rank].own, phase.path)
    return spot if spot in facts.late_spots else rank


def finding(ends: Sequence[End], why: str) -> Finding:
    """Return the finding that these ranks are the suspects."""
    return Finding(tuple(sorted(end.rank for end in ends)), why)


def who(ends: Sequence[End], *, past: bool = False) -> str:
    """Say which ranks, with the verb that goes with them."""
    many = len(ends) > 1
    verb = ("were" if past else "are") if many else "was" if past else "is"
    return f"rank{'s' * many} {ranks_text(end.rank for end in ends)} {verb}"


def end_text(end: End) -> str:
    """Say how a rank ended, with its error."""
    error = f" ({shown(end.error, MAX_ERROR)})" if end.error else ""
    what = {
        Nature.OWN: f"failed by its own word{error}",
        Nature.OUTSIDE: f"was ended from outside{error}",
        Nature.STOPPED: "was stopped",
        Nature.SILENT: "went silent",
        Nature.LEFT: "left in order",
    }
    return f"rank {end.rank} {what[end.nature]}"
