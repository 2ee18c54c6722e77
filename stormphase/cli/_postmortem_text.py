"""A postmortem in plain text: what the ranks were doing, who may be the reason, and the details of those."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Final

from stormphase._liveness import utc
from stormphase._render import columns, padded
from stormphase.analysis._postmortem import Postmortem, group_text, title_text
from stormphase.analysis._ranks import DEAD, EndedPhase, OpenPhase, ProcessReport, RankReport, RankState
from stormphase.analysis._suspects import DIED, DIED_FIRST, KINDS, Suspect, since_text, standing_text, usual_text
from stormphase.analysis._words import counted, path_text, plain, ranks_text, shown, span
from stormphase.cli._output import BOLD, DIM, GREEN, RED, YELLOW, Page

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any

    from stormphase.analysis._verdict import Verdict

MAX_GROUPS: Final = 12
MAX_SUSPECTS: Final = 8
MAX_ALIKE: Final = 2
MAX_FIRST: Final = 3
MAX_DETAILED: Final = 4
MAX_LANE: Final = 24
MAX_ENDED: Final = 5
MAX_ATTRIBUTES: Final = 120
LEAST_TELLING: Final = KINDS[DIED]
_MOST_OF_A_KIND: Final = {LEAST_TELLING: MAX_ALIKE, KINDS[DIED_FIRST]: MAX_FIRST}
_MAX_LINES_OF_NOTES: Final = 10
_SUSPECTS: Final = "suspects, those with the strongest evidence first"


def write_postmortem(page: Page, postmortem: Postmortem, now_wall_ns: int, wanted: Collection[int] | None) -> None:
    """Add the text to `page`; `wanted` ranks in detail, or those of the first suspects if it is None."""
    page.wrapped(f"stormphase postmortem: {title_text(postmortem)}", indent="  ", style=BOLD)
    page.line(f"read at {utc(now_wall_ns)}", style=DIM)
    page.wrapped(_states_text(postmortem), style=_verdict_style(postmortem))
    page.wrapped(verdict_text(postmortem.verdict), indent="  ", style=_verdict_style(postmortem))
    page.line()
    page.line("what the ranks were doing", style=BOLD)
    for group in postmortem.groups[:MAX_GROUPS]:
        usual = usual_text(group.usual, is_short=True)
        page.wrapped(group_text(group) + usual, first="  ", indent="    ", style=_state_style(group.state))
    rest = postmortem.groups[MAX_GROUPS:]
    if rest:
        left = sum(len(group.ranks) for group in rest)
        page.line(f"  and {counted(left, 'rank')} in {counted(len(rest), 'group')} more: see --json", style=DIM)
    _write_suspects(page, postmortem.suspects)
    for note in postmortem.notes[:_MAX_LINES_OF_NOTES]:
        page.wrapped(note, first="  note: ", indent="    ", style=DIM)
    unknown = set(wanted or ()) - {rank.rank for rank in postmortem.ranks}
    if unknown:
        page.line()
        page.wrapped(f"no journal of rank {ranks_text(unknown)} in attempt {postmortem.attempt}", style=YELLOW)
    for rank in _detailed(postmortem, wanted):
        page.line()
        _write_rank(page, rank)


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict in words: `named, rank 2: 3 ranks wait in ..., and rank 2 has not entered it as often`."""
    named = f", rank{'s' * (len(verdict.ranks) > 1)} {ranks_text(verdict.ranks)}" if verdict.ranks else ""
    return f"{verdict.answer}{named}: {verdict.why}"


def _write_suspects(page: Page, suspects: Sequence[Suspect]) -> None:
    if not suspects:
        return
    page.line()
    page.line(_SUSPECTS, style=BOLD)
    told = 0
    for (kind, _), alike in groupby(suspects, key=lambda suspect: (suspect.kind, suspect.is_tied)):
        same = list(alike)
        # Who merely died is a fact, and thousands of the same say no more than one.
        most = min(MAX_SUSPECTS - told, _MOST_OF_A_KIND.get(kind, MAX_SUSPECTS))
        for suspect in same[: max(0, most)]:
            told += 1
            tied = "tied, " * suspect.is_tied
            page.wrapped(f"{tied}rank {suspect.rank}: {suspect.reason}", first=f"{suspect.place:3}. ")
        hidden = same[max(0, most) :]
        if hidden:
            ranks = ranks_text(suspect.rank for suspect in hidden)
            page.wrapped(f"and {len(hidden):,} more, {kind.replace('_', ' ')}: {ranks}", first="     ", style=DIM)


def _states_text(postmortem: Postmortem) -> str:
    states = Counter(str(rank.own.state) for rank in postmortem.ranks)
    parts = [f"{count:,} {state}" for state, count in sorted(states.items(), key=lambda each: (-each[1], each[0]))]
    if postmortem.is_hung:
        parts.append("something hangs")
    if postmortem.newer_attempts:
        parts.append(f"newer attempts: {ranks_text(postmortem.newer_attempts)}")
    if postmortem.older_attempts:
        parts.append(f"older attempts: {ranks_text(postmortem.older_attempts)}")
    return ", ".join(parts)


def _detailed(postmortem: Postmortem, wanted: Collection[int] | None) -> Iterable[RankReport]:
    if wanted is not None:
        return [rank for rank in postmortem.ranks if rank.rank in wanted]
    by_rank: Mapping[int, RankReport] = {rank.rank: rank for rank in postmortem.ranks}
    telling = [suspect for suspect in postmortem.suspects if suspect.kind != LEAST_TELLING] or postmortem.suspects[:1]
    return [by_rank[suspect.rank] for suspect in telling[:MAX_DETAILED]]


def _write_rank(page: Page, rank: RankReport) -> None:
    for process in rank.processes:
        who = f"rank {rank.rank}"
        if process is not rank.own:
            who += f", {'another' if process.forked_from is None else 'worker'} process {process.process.pid}"
        page.wrapped(f"{who}: {standing_text(process)}", indent="  ", style=_state_style(process.state))
        _write_open(page, process)
        _write_ended(page, process)
        if process.stack:
            taken = f", {span(process.stack_for_ns)} before" if process.stack_for_ns else ""
            page.line(f"  Python stack of its main thread when a phase was open too long{taken}:")
            for frame in process.stack:
                page.line(f"    {frame}", style=DIM)
        if process.said:
            page.line("  said last:")
            for line in process.said:
                page.line(f"    {line}", style=DIM)
        for note in process.damage:
            page.wrapped(f"damage: {shown(note, MAX_ATTRIBUTES)}", first="  ", style=YELLOW)


def _write_open(page: Page, process: ProcessReport) -> None:
    if not process.open:
        page.line("  nothing open", style=DIM)
        return
    page.line(f"  open, up to {'now' if process.measured_to == 'now' else 'its last sign of life'}:")
    for _, phases in groupby(process.open, key=lambda phase: phase.lane):
        lane = list(phases)
        page.line(f"    {_lane_text(lane[0])}:", style=DIM)
        hidden = max(0, len(lane) - MAX_LANE)
        base = len(lane[0].path) - 1
        for index, phase in enumerate(lane):
            if hidden and index == MAX_LANE // 2:
                page.line(f"      and {hidden:,} more in between: see --json", style=DIM)
            if not hidden or index < MAX_LANE // 2 or index >= len(lane) - MAX_LANE // 2:
                _write_phase(page, phase, phase.path if index == 0 else phase.path[-1:], len(phase.path) - 1 - base)


def _write_phase(page: Page, phase: OpenPhase, names: tuple[str, ...], level: int) -> None:
    indent = "      " + "  " * min(level, MAX_LANE)
    step = "" if phase.step is None else f" (step {phase.step})"
    marks = ", sync" * phase.is_sync + ", paused" * phase.is_paused
    text = f"{path_text(names)}{step}{since_text(phase.for_ns)}{marks}{usual_text(phase.usual, is_short=True)}"
    page.wrapped(text, first=indent, indent=f"{indent}    ")
    if phase.attributes:
        page.line(f"{indent}    {_attributes_text(phase.attributes)}", style=DIM)


def _attributes_text(attributes: Mapping[str, Any]) -> str:
    # Each bounded before all are joined: one may be megabytes.
    parts = [f"{shown(str(key))}={shown(str(plain(value))[:1_000])}" for key, value in list(attributes.items())[:16]]
    return shown(", ".join(parts), MAX_ATTRIBUTES)


def _lane_text(phase: OpenPhase) -> str:
    name = f"thread {shown(phase.thread_name or str(phase.thread_id))}"
    task = "" if phase.task_name is None else f", task {shown(phase.task_name)}"
    return f"{name}{' (main)' if phase.is_main_thread and phase.thread_name != 'MainThread' else ''}{task}"


def _write_ended(page: Page, process: ProcessReport) -> None:
    if not process.last_ended:
        return
    earlier = "ago" if process.measured_to == "now" else "before its last sign of life"
    page.line(f"  ended last, of {counted(process.ended_phases, 'phase')} (how, its duration, {earlier}):")
    shown_last = process.last_ended[-MAX_ENDED:]
    for phase in shown_last:
        ago = max(0, process.measured_ns - phase.ended_ns)
        figures = f"{phase.status!s:9} {span(phase.ended_ns - phase.entered_ns):>8} {span(ago):>8}"
        room = page.facts.width - len(figures) - 8
        page.line(f"      {padded(path_text(phase.path), min(room, _longest(shown_last)))}  {figures}")


def _longest(phases: Iterable[EndedPhase]) -> int:
    return max(columns(path_text(phase.path)) for phase in phases)


def _state_style(state: RankState) -> str:
    return RED if state in DEAD else YELLOW if state is RankState.SILENT else ""


def _verdict_style(postmortem: Postmortem) -> str:
    return GREEN if postmortem.is_well else RED
