"""What the evidence across ranks shows: a culprit, a tie, or that it cannot be told, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._liveness import utc
from stormphase.analysis._ended import (
    ended_by_one_hand,
    first_to_end,
    left_before_the_others,
    one_cause_for_all,
    worker_died,
)
from stormphase.analysis._endings import Nature
from stormphase.analysis._facts import Answer, Facts, Rule
from stormphase.analysis._ranks import WELL, RankState
from stormphase.analysis._standing import (
    first_to_stand,
    missing_where_others_wait,
    no_sign_of_life,
    still_there,
    stopped_by_the_kernel,
    suspended,
)
from stormphase.analysis._words import counted, path_text, ranks_text, span

if TYPE_CHECKING:
    from collections.abc import Iterator


# In this order: the first that has something to say decides. docs/blame.md has the reasons.
RULES: Final[tuple[Rule, ...]] = (
    suspended,
    missing_where_others_wait,
    stopped_by_the_kernel,
    ended_by_one_hand,
    first_to_stand,
    one_cause_for_all,
    left_before_the_others,
    first_to_end,
    no_sign_of_life,
    still_there,
    worker_died,
)


@attrs.frozen(kw_only=True)
class Verdict:
    """What all rules together conclude.

    Attributes:
        answer: whether a culprit is shown, several tie, it cannot be told, or nothing is wrong.
        ranks: the culprit, or those that tie.
        why: the evidence in one sentence with its numbers, or why it cannot be told.
        rule: the name of the rule that decided, "" if none did.
    """

    answer: Answer
    ranks: tuple[int, ...]
    why: str
    rule: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "answer": str(self.answer),
            "ranks": list(self.ranks),
            "why": self.why,
            "rule": self.rule,
        }


def verdict_of(facts: Facts) -> Verdict:
    """Return what the first rule concludes that has something to say."""
    for rule in RULES:
        finding = rule(facts)
        if finding is None:
            continue
        kinds = (Answer.UNTOLD, Answer.NAMED, Answer.TIE)
        answer = kinds[min(len(finding.ranks), 2)]
        return Verdict(answer=answer, ranks=finding.ranks, why=finding.why, rule=rule.__name__)
    why = next(_unknown(facts), None)
    if why is not None:
        return Verdict(answer=Answer.UNTOLD, ranks=(), why=why, rule="")
    return Verdict(answer=Answer.WELL, ranks=(), why=_well_text(facts), rule="")


def _unknown(facts: Facts) -> Iterator[str]:
    """Yield why it cannot be told, the most telling reason first; nothing if nothing is wrong."""
    for wait in facts.waits:
        if wait.is_hung and wait.may_go_on:
            ranks = [each.rank for each in wait.missing]
            yield (
                f"{counted(len(wait.ranks), 'rank')} wait in {path_text(wait.path)} for {span(wait.for_ns)}, and what "
                f"rank {ranks_text(ranks)} does meanwhile was never measured: it may be at work, as while code is "
                "compiled, or stuck"
            )
    plural = "s" * (len(facts.absent) > 1)
    absent = f", and there is no journal of rank{plural} {ranks_text(facts.absent)}" if facts.absent else ""
    for wait in facts.hung:
        if not wait.missing:
            yield (
                f"{counted(len(wait.ranks), 'rank')} came to {path_text(wait.path)} equally often and stand there for "
                f"{span(wait.for_ns)}: no journal shows one that is missing{absent}"
            )
    outside = facts.ended(Nature.OUTSIDE, Nature.SILENT)
    if len(outside) > 1:
        first_ns = min(end.from_ns for end in outside)
        apart_ns = max(end.from_ns for end in outside) - first_ns
        when = f"within {span(apart_ns)}, about" if apart_ns else "at one time,"
        yield (
            f"{counted(len(outside), 'rank')} ended from outside {when} {utc(first_ns)}: "
            "which was first cannot be told from their last signs of life"
        )
    late = {rank: phase for rank, phase in facts.late.items() if rank not in facts.at_work}
    if late:
        most_ns = max(phase.for_ns for phase in late.values())
        paths = {phase.path for phase in late.values()}
        where = path_text(next(iter(paths))) if len(paths) == 1 else f"{len(paths)} phases"
        yield (
            f"rank {ranks_text(late)} stand in {where} for up to {span(most_ns)}, far longer than ever before, "
            "and nothing tells who waits for whom"
        )
    if any(not _is_well(rank, facts) for rank in facts.ranks):
        yield "nothing speaks against one rank more than against another"


def _is_well(rank: int, facts: Facts) -> bool:
    report = facts.ranks[rank]
    return report.own.state in WELL and not any(process.has_died for process in report.processes)


def _well_text(facts: Facts) -> str:
    running = sum(report.own.state is RankState.RUNNING for report in facts.ranks.values())
    parts = [f"{counted(running, 'rank')} as usual at work"] * bool(running)
    parts += [f"{counted(len(facts.ranks) - running, 'rank')} ended in order"] * (running < len(facts.ranks))
    return ", ".join(parts)
