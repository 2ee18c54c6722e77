"""How and when each rank stopped, as exactly as its journal tells, and which of two ends came first."""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final

import attrs

from stormphase.analysis._ranks import IN_ORDER, SAID_SO, RankState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stormphase.analysis._places import Place
    from stormphase.analysis._ranks import ProcessReport, RankReport

# A sign of life is written five times a second, by a thread that may have to wait: a killed rank ended this soon after.
LAST_SIGN_NS: Final = 1_000_000_000
# From elsewhere a journal looks some seconds old, so one that is silent is not known to have ended so soon.
SILENT_NS: Final = 10_000_000_000
# How far clocks of two machines may be apart, and the ends of their ranks when one hand ends them all.
HOSTS_NS: Final = 30_000_000_000

# What a rank sees of another one's end, as the libraries say it that ranks talk through.
_ECHO: Final = re.compile(
    r"connection\W+(?:was\W+)?(?:forcibly\W+)?(?:closed|reset|aborted|refused|lost|broken)"
    r"|connection(?:reset|aborted|refused)error|^connectionerror\b|brokenpipe|broken pipe|econnreset|epipe\b"
    r"|peer (?:is |has |was )?(?:gone|closed|died|exited|disconnected)|closed by (?:the )?(?:peer|remote)"
    r"|remote (?:process|peer|rank|end|host)\W+(?:has )?(?:exited|closed|died|hung|terminated|failed)"
    r"|ncclremoteerror|ncclsystemerror|nccl.*(?:time.?out|timed out|abort|network error|remote)"
    r"|gloo.*(?:time.?out|timed out|closed|reset|broken|connect)|watchdog caught collective"
    r"|collective operation time.?out|timed out waiting .*(?:recv|send|barrier|operation)|caused pair closure"
    r"|socket (?:is |was )?(?:closed|hung)|rank \d+ (?:is |has )?(?:died|gone|exited|dead)"
    r"|^eoferror:?\s*$|distnetworkerror|diststoreerror|horovodinternalerror|coordination service.*(?:died|unavailable)",
    re.IGNORECASE,
)
# A connection to a store, a hub or a database is none to another rank.
_ELSEWHERE: Final = re.compile(
    r"^(?:requests|urllib3|http|httpx|aiohttp|boto|botocore|boto3|s3fs|gcsfs|fsspec|google|azure|smart_open|datasets"
    r"|huggingface_hub|openai|pymongo|redis|psycopg|psycopg2|sqlalchemy|mysql|kafka)\b"
)
_IN_ORDER_EXITS: Final = frozenset({"", "0", "None"})


class Nature(str, enum.Enum):
    """What made a rank stop."""

    OWN = "failed by its own word"
    OUTSIDE = "ended from outside"
    STOPPED = "stopped from outside"
    SILENT = "silent"
    LEFT = "left in order"
    STOOD = "came to a stand"

    def __str__(self) -> str:
        """Return the text."""
        return self.value


@attrs.frozen(kw_only=True)
class End:
    """When and how one rank stopped. Times are nanoseconds since the Unix epoch, on the wall clock of its own host.

    Attributes:
        rank: which.
        nature: what made it stop.
        from_ns: the earliest moment at which it can have been.
        to_ns: the latest; the same where its own word tells.
        clock: the boot whose monotonic clock it was told by; None if that is not known.
        clock_ns: what its times are ahead of that clock.
        stood_ns: how long it had been in its innermost phase.
        is_echo: whether its error is what a rank sees of another one's end.
        error: type and text of its error, "" without one.
    """

    rank: int
    nature: Nature
    from_ns: int
    to_ns: int
    clock: str | None
    clock_ns: int
    stood_ns: int = 0
    is_echo: bool = False
    error: str = ""


def ends_of(ranks: Mapping[int, RankReport], places: Mapping[int, Place]) -> dict[int, End]:
    """Return how each rank stopped; one that runs is not among them."""
    found = {rank: end_of(report.own, places[rank]) for rank, report in ranks.items()}
    return {rank: end for rank, end in found.items() if end is not None}


def end_of(own: ProcessReport, place: Place) -> End | None:
    """Return when and how a process stopped; None if it runs."""
    nature, from_ns, to_ns = _stopped(own)
    if nature is None:
        return None
    kind, message = _error_of(own)
    error = f"{kind}: {message}" if message else kind
    return End(
        rank=own.identity.rank,
        nature=nature,
        from_ns=from_ns,
        to_ns=to_ns,
        clock=own.process.boot_id,
        clock_ns=own.clock_ns,
        stood_ns=_stood_ns(own, place, from_ns),
        is_echo=nature is Nature.OWN and is_echo(error),
        error=error,
    )


def is_echo(error: str) -> bool:
    """Whether an error says that another rank is gone, or did not come: it is that one's echo, and no cause."""
    return _ECHO.search(error) is not None and _ELSEWHERE.search(error) is None


def came_before(one: End, other: End) -> bool:
    """Whether one end precedes another beyond doubt.

    On one boot the monotonic clock tells. Between machines the wall clocks do where they are further apart than
    `HOSTS_NS`, and the other rank had come to a stand meanwhile: else it was not held up, or its clock is wrong.
    """
    if one.clock is not None and one.clock == other.clock:
        return one.to_ns - one.clock_ns < other.from_ns - other.clock_ns
    apart_ns = other.from_ns - one.to_ns
    return apart_ns > HOSTS_NS and 2 * other.stood_ns >= apart_ns


def firsts_of(ends: Iterable[End]) -> list[End]:
    """Return the ends that none of the others came before: one if the order is known, else those that overlap."""
    by_clock: dict[str | None, End] = {}
    every = list(ends)
    for end in every:
        known = by_clock.get(end.clock)
        if known is None or end.to_ns - end.clock_ns < known.to_ns - known.clock_ns:
            by_clock[end.clock] = end
    # On each clock the first to have ended for certain; a machine of its own each time where that is not known.
    first = sorted(by_clock.values(), key=lambda end: end.to_ns)[:2]
    return [
        end
        for end in every
        if not any(came_before(each, end) for each in {id(x): x for x in (*first, by_clock[end.clock])}.values())
    ]


def _stood_ns(own: ProcessReport, place: Place, end_ns: int) -> int:
    """Return for how long nothing had begun or ended where a process was, when it stopped."""
    if place.phase is None:
        return 0
    last_ns = own.last_ended[-1].ended_ns if own.last_ended and not own.unwound else place.phase.entered_ns
    return min(place.phase.for_ns, max(0, end_ns - last_ns))


def _stopped(own: ProcessReport) -> tuple[Nature | None, int, int]:
    """Return what made a process stop, and between which moments that was."""
    alive_ns, end_ns = own.alive_until_ns, own.end_ns
    if own.state in SAID_SO or own.failure is not None:
        from_ns, to_ns = _failed_between(own)
        was_asked = own.state is RankState.SIGNAL or _error_of(own)[0].endswith("KeyboardInterrupt")
        if was_asked or (own.asked_ns is not None and own.asked_ns <= to_ns):
            from_ns = to_ns if own.asked_ns is None else own.asked_ns
            return Nature.OUTSIDE, from_ns, from_ns + LAST_SIGN_NS
        if own.state in SAID_SO or _error_of(own) not in _ORDERLY:
            return Nature.OWN, from_ns, to_ns
    if own.state in IN_ORDER:
        return Nature.LEFT, end_ns, end_ns
    if own.state is RankState.SILENT:
        return Nature.SILENT, alive_ns, alive_ns + SILENT_NS
    if own.state is RankState.RUNNING:
        return (Nature.STOPPED if own.is_stopped else None), alive_ns, alive_ns + LAST_SIGN_NS
    return Nature.OUTSIDE, alive_ns, alive_ns + LAST_SIGN_NS


_ORDERLY: Final = frozenset(("SystemExit", message) for message in _IN_ORDER_EXITS)


def _failed_between(own: ProcessReport) -> tuple[int, int]:
    """Return between which moments what ended a process arose: one moment where the innermost phase tells that."""
    if own.state in IN_ORDER and own.failure is not None:
        return own.failure.at_ns, own.failure.at_ns
    if own.unwound:
        at_ns = own.unwound[-1].entered_ns + own.unwound[-1].for_ns
        return at_ns, at_ns
    # Outside of all phases: after the last one, and not later than its word.
    last_ns = own.last_ended[-1].ended_ns if own.last_ended else own.end_ns
    return min(last_ns, own.end_ns), own.end_ns


def _error_of(own: ProcessReport) -> tuple[str, str]:
    if own.state in IN_ORDER:
        return ("", "") if own.failure is None else (own.failure.error_type, own.failure.error_message)
    return own.error_type or "", own.error_message or ""
