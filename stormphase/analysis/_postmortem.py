"""What happened to one attempt of a session: its ranks, what they were doing together, and who may be the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase.analysis._endings import Nature
from stormphase.analysis._facts import Answer, Facts
from stormphase.analysis._places import DEFAULT_HANG_NS, Group, Place, groups_of, has_usual, places_of
from stormphase.analysis._ranks import DEAD, WELL, OpenPhase, ProcessReport, RankReport, RankState, Usual, ranks_of
from stormphase.analysis._standing import still_there
from stormphase.analysis._suspects import Suspect, since_text, suspects_of
from stormphase.analysis._verdict import Verdict, verdict_of
from stormphase.analysis._waits import Wait, waits_of
from stormphase.analysis._words import MAX_MESSAGE, counted, path_text, plain, ranks_text, shown, span

if TYPE_CHECKING:
    from collections.abc import Iterable

# A worker gives signs of life five times a second, and needs the GIL for it.
_NO_GIL: Final = "something holds the GIL, or exec has put another program in its place"


_NOT_MARKED: Final = (
    "no phase is marked as a point where ranks wait for each other: mark each, as in "
    'tracker.enter_phase("all_reduce", sync=True), and who waits can be told from who is waited for'
)


@attrs.frozen(kw_only=True)
class Postmortem:
    """What is known of an attempt, and how.

    Attributes:
        session_id: the session.
        attempt: the attempt.
        older_attempts: those before it of which there are journals, newest first.
        newer_attempts: those after it, newest first.
        world_size: how many ranks the attempt has, as they say themselves.
        ranks: those that have a journal, in order.
        places: what each is doing.
        groups: who does the same, the largest group first.
        waits: the synchronisation points that ranks are in.
        verdict: whether a culprit is shown, and why.
        suspects: whom the verdict names, then others that something speaks against; none if it cannot be told.
        absent: ranks that have no journal here.
        notes: what else has to be known to judge; often nothing.
        is_hung: whether a rank that lives is far longer in a phase than usual, waits for one that is dead, was stopped,
            or is still there long after all others have ended.
    """

    session_id: str
    attempt: int
    older_attempts: tuple[int, ...]
    newer_attempts: tuple[int, ...]
    world_size: int
    ranks: tuple[RankReport, ...]
    places: Mapping[int, Place]
    groups: tuple[Group, ...]
    waits: tuple[Wait, ...]
    verdict: Verdict
    suspects: tuple[Suspect, ...]
    absent: tuple[int, ...]
    notes: tuple[str, ...]
    is_hung: bool

    @property
    def is_well(self) -> bool:
        """Whether every rank runs or has ended in order, and nothing hangs."""
        return not self.is_hung and all(
            rank.own.state in WELL and not any(process.has_died for process in rank.processes) for rank in self.ranks
        )


def diagnose(
    processes: Iterable[ProcessReport], *, other_attempts: Iterable[int] = (), hang_ns: int = DEFAULT_HANG_NS
) -> Postmortem:
    """Return what happened to one attempt.

    Args:
        processes: of one session and attempt, at least one.
        other_attempts: attempts of which there are journals too.
        hang_ns: how long a synchronisation point may last of which it is not known what is usual.
    """
    reports = ranks_of(processes)
    by_rank = {report.rank: report for report in reports}
    places = places_of(reports)
    waits = waits_of(by_rank, places, hang_ns)
    world_size = max(process.identity.world_size for report in reports for process in report.processes)
    # As many as the files that were read may speak for: a damaged one may claim a world of any size.
    absent = [rank for rank in range(min(world_size, 2 * len(reports) + 1_000)) if rank not in by_rank]
    facts = Facts.of(by_rank, places, waits, hang_ns=hang_ns, absent=absent)
    verdict = verdict_of(facts)
    identity = reports[0].own.identity
    others = sorted(set(other_attempts), reverse=True)
    return Postmortem(
        session_id=identity.session_id,
        attempt=identity.attempt,
        older_attempts=tuple(each for each in others if each < identity.attempt),
        newer_attempts=tuple(each for each in others if each > identity.attempt),
        world_size=world_size,
        ranks=reports,
        places=places,
        groups=groups_of(places.values()),
        waits=waits,
        verdict=verdict,
        suspects=suspects_of(facts, verdict),
        absent=tuple(absent),
        notes=tuple(_notes(facts, absent, verdict)),
        is_hung=_is_hung(facts, verdict),
    )


def _is_hung(facts: Facts, verdict: Verdict) -> bool:
    if verdict.rule == still_there.__name__ or facts.ended(Nature.STOPPED):
        return True
    waiting = {rank for wait in facts.waits if wait.is_hung for rank in wait.ranks}
    if any(facts.places[rank].state is RankState.RUNNING for rank in waiting):
        return True
    return any(facts.places[rank].state is RankState.RUNNING and rank not in facts.at_work for rank in facts.late)


def _notes(facts: Facts, absent: list[int], verdict: Verdict) -> Iterable[str]:
    ranks, places, waits, hang_ns = facts.ranks, facts.places, facts.waits, facts.hang_ns
    for wait in waits:
        if wait.is_hung and not wait.missing:
            everyone = "all ranks that have a journal" if absent else f"all {counted(len(ranks), 'rank')}"
            is_alone = len(wait.ranks) == 1
            named = f"rank{'' if is_alone else 's'} {ranks_text(wait.ranks)}"
            who = everyone if len(wait.ranks) == len(ranks) > 1 else named
            gone = [rank for rank in wait.ranks if ranks[rank].own.state in DEAD]
            ended = f", rank {ranks_text(gone)} ended in it" if gone and not wait.is_over else ""
            have, now, before = ("has", "is", "was") if is_alone else ("have", "are", "were")
            verb = before if wait.is_over else "others are" if ended else now
            yield (
                f"{who} {have} entered {path_text(wait.path)}{ended} and {verb} in it for {span(wait.for_ns)}: "
                "no journal shows one that is missing there"
            )
        if wait.is_guess:
            yield (
                f"how long {path_text(wait.path)} usually takes is not known yet, so more than {span(hang_ns)} "
                "counted as a hang (--hang-s): a first time that is slow, as while code is compiled, looks the same"
            )
        at_work = [each.rank for each in wait.missing if _may_be_at_work(places[each.rank])]
        if wait.is_hung and wait.missing and len(at_work) == len(wait.missing):
            plural, verb, it = ("s", "are", "they") if len(at_work) > 1 else ("", "is", "it")
            yield (
                f"how long what rank{plural} {ranks_text(at_work)} {verb} in usually takes is not known: "
                f"{it} may be slow there, and not stuck"
            )
        if wait.may_go_on and not wait.is_hung:
            yield (
                f"{counted(len(wait.ranks), 'rank')} wait in {path_text(wait.path)} for {span(wait.for_ns)}, longer "
                f"than ever, and rank {ranks_text([each.rank for each in wait.missing])} may be at work meanwhile"
            )
    if verdict.answer is not Answer.WELL and not any(report.own.has_sync for report in ranks.values()):
        yield _NOT_MARKED
    yield from _still(ranks.values())
    if absent:
        are_awaited = any(wait.is_hung and not wait.missing for wait in waits)
        plural = "s" if len(absent) > 1 else ""
        yield f"no journal of rank{plural} {ranks_text(absent)}" + (
            ": what has not begun, or writes elsewhere, may be what the others wait for" if are_awaited else ""
        )
    hosts = {process.process.boot_id for report in ranks.values() for process in report.processes}
    if len(hosts) > 1:
        yield (
            f"{len(hosts)} machines (or boots): times are each machine's own, durations are right, "
            "and what happened first on different machines is only as sure as their clocks"
        )
    damaged = sorted(rank for rank, report in ranks.items() if any(process.damage for process in report.processes))
    if damaged:
        first = next(process.damage[0] for process in ranks[damaged[0]].processes if process.damage)
        yield f"the journals of rank {ranks_text(damaged)} are damaged in part: {shown(first, MAX_MESSAGE)}"


def _still(ranks: Iterable[RankReport]) -> Iterable[str]:
    """Say who is there without a sign of life, and why that may be: for each reason in one sentence."""
    by_reason: dict[str, list[RankReport]] = {}
    for rank in ranks:
        if rank.own.still_ns:
            by_reason.setdefault(rank.own.kept_by or _NO_GIL, []).append(rank)
    for reason, still in by_reason.items():
        plural, verb = ("s", "are") if len(still) > 1 else ("", "is")
        least, most = (span(choose(rank.own.still_ns for rank in still)) for choose in (min, max))
        since = least if least == most else f"{least} to {most}"
        who = ranks_text([rank.rank for rank in still])
        yield f"rank{plural} {who} {verb} there without a sign of life for {since}: {reason}"


def _may_be_at_work(place: Place) -> bool:
    return place.state is RankState.RUNNING and place.phase is not None and not has_usual(place.phase)


def rank_to_dict(report: RankReport) -> dict[str, Any]:
    """Return one rank as JSON has it: the fields of its own process, and every process's beneath `processes`."""
    own = report.own
    return {
        "rank": report.rank,
        "state": str(own.state),
        "evidence": own.evidence,
        "step": own.step,
        "host": own.process.host,
        "pid": own.process.pid,
        "started_ns": own.started_ns,
        "alive_until_ns": own.alive_until_ns,
        "ended_ns": own.ended_ns,
        "measured_to": own.measured_to,
        "measured_ns": own.measured_ns,
        "open": [_open_to_dict(phase) for phase in report.open],
        "last_ended": [
            {
                "path": list(phase.path),
                "scope_id": phase.scope_id,
                "status": str(phase.status),
                "entered_ns": phase.entered_ns,
                "ended_ns": phase.ended_ns,
                "step": phase.step,
                "pid": phase.pid,
            }
            for phase in report.last_ended
        ],
        "processes": [
            {
                "pid": process.process.pid,
                "forked_from": process.forked_from,
                "state": str(process.state),
                "evidence": process.evidence,
                "alive_until_ns": process.alive_until_ns,
                "said": list(process.said),
            }
            for process in report.processes
        ],
        "stack": list(own.stack),
        "said": list(own.said),
        "damage": [note for process in report.processes for note in process.damage],
    }


def _open_to_dict(phase: OpenPhase) -> dict[str, Any]:
    return {
        "path": list(phase.path),
        "scope_id": phase.scope_id,
        "entered_ns": phase.entered_ns,
        "for_ns": phase.for_ns,
        "thread_name": phase.thread_name,
        "attributes": plain(phase.attributes),
        "step": phase.step,
        "is_sync": phase.is_sync,
        "is_paused": phase.is_paused,
        "lane": phase.lane,
        "task_name": phase.task_name,
        "pid": phase.pid,
        "usual": _usual_to_dict(phase.usual),
    }


def _usual_to_dict(usual: Usual | None) -> dict[str, Any] | None:
    return None if usual is None else attrs.asdict(usual)


def group_to_dict(group: Group) -> dict[str, Any]:
    """Return a group as JSON has it."""
    return {
        "ranks": list(group.ranks),
        "state": str(group.state),
        "path": list(group.path),
        "is_sync": group.is_sync,
        "step": [group.least_step, group.greatest_step],
        "for_ns": {"min": group.least_ns, "median": group.median_ns, "max": group.greatest_ns},
        "text": group_text(group),
    }


def group_text(group: Group) -> str:
    """Return a group in words: `62 ranks (0-16, 18-62) running in train / step / all_reduce (step 120) for 312 s`."""
    many = len(group.ranks) > 1
    who = f"{len(group.ranks):,} ranks ({ranks_text(group.ranks)})" if many else f"rank {group.ranks[0]}"
    if not group.path:
        return f"{who} {group.state}" + (", no phase open" if group.state in (RankState.RUNNING, *DEAD) else "")
    text = f"{who} {group.state} in {path_text(group.path)}"
    if group.least_step is not None:
        last = "" if group.greatest_step == group.least_step else f" to {group.greatest_step}"
        text += f" (step{'s' if last else ''} {group.least_step}{last})"
    text += since_text(group.median_ns)
    least, greatest = span(group.least_ns), span(group.greatest_ns)
    return text if least == greatest else f"{text} ({least} to {greatest})"


def suspect_to_dict(suspect: Suspect) -> dict[str, Any]:
    """Return a suspect as JSON has it."""
    return {
        "rank": suspect.rank,
        "kind": suspect.kind,
        "reason": suspect.reason,
        "place": suspect.place,
        "tied": suspect.is_tied,
    }


def title_text(postmortem: Postmortem) -> str:
    """Return what the postmortem is of, in one line."""
    return (
        f"session {shown(postmortem.session_id)}, attempt {postmortem.attempt}, "
        f"{len(postmortem.ranks):,} of {counted(postmortem.world_size, 'rank')}"
    )
