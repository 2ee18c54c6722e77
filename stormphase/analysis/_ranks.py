"""What is known of each process and each rank at one moment: a small, frozen extract of its journal."""

from __future__ import annotations

import enum
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase._histogram import GAMMA, bucket_of, quantile_between
from stormphase._liveness import FRESH_NS, Liveness, Verdict, utc
from stormphase._model import EndKind, PhaseStatus, ProcessIdentity, RankIdentity
from stormphase.analysis._failures import Failure, failure_of
from stormphase.analysis._unwinding import left_by_end
from stormphase.analysis._words import MAX_MESSAGE, shown, span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stormphase.journal._image import EndNote, JournalImage, JournalPhase, PathTotals

LAST_ENDED: Final = 16
MAX_COUNTS: Final = 512
MAX_USUALS: Final = 64
_MAX_FRAMES: Final = 12
_MAX_BUCKET: Final = 1_200  # beyond every duration that a journal can hold
_EMPTY: Final[Mapping[str, Any]] = {}


class RankState(str, enum.Enum):
    """How a process stands, as the evidence has it; the text is what JSON and people get."""

    RUNNING = "running"
    CLEAN = "clean"
    ENDED = "ended"
    EXIT = "exit"
    EXCEPTION = "exception"
    SIGNAL = "signal"
    KILLED = "killed"
    HOST_GONE = "host gone"
    SILENT = "silent"

    def __str__(self) -> str:
        """Return the text."""
        return self.value


SAID_SO: Final = frozenset({RankState.EXIT, RankState.EXCEPTION, RankState.SIGNAL})
DEAD: Final = SAID_SO | {RankState.KILLED, RankState.HOST_GONE}
IN_ORDER: Final = frozenset({RankState.CLEAN, RankState.ENDED})
WELL: Final = IN_ORDER | {RankState.RUNNING}


@attrs.frozen(kw_only=True)
class Usual:
    """How long a path took this rank before, pauses included, as the time for which an open phase is compared has them.

    Attributes:
        count: how often it ended.
        median_ns: the median, to within 2 %; None if no duration was bucketed.
        p99_ns: the 99th percentile, likewise.
        max_ns: the longest.
    """

    count: int
    median_ns: int | None
    p99_ns: int | None
    max_ns: int

    @classmethod
    def of(cls, totals: PathTotals) -> Usual:
        """Take the figures from a journal's totals."""
        least_ns, greatest_ns = totals.min_ns, totals.max_ns
        median_ns, p99_ns = (quantile_between(totals.buckets, q, least_ns, greatest_ns) for q in (0.5, 0.99))
        return cls(
            count=totals.count,
            median_ns=median_ns,
            p99_ns=p99_ns,
            max_ns=totals.max_ns,
        )


@attrs.frozen(kw_only=True)
class OpenPhase:
    """A phase that is open. `entered_ns` is nanoseconds since the Unix epoch, on the wall clock of its own host.

    Attributes:
        for_ns: how long it is open: until now for a live process of this machine, else until its last sign of life.
        usual: how long this path took the same process before; None if it never ended.
    """

    path: tuple[str, ...]
    scope_id: str
    entered_ns: int
    for_ns: int
    pid: int
    lane: int
    thread_id: int
    thread_name: str | None
    is_main_thread: bool
    task_name: str | None
    step: int | None
    is_sync: bool
    is_paused: bool
    attributes: Mapping[str, Any]
    usual: Usual | None


@attrs.frozen(kw_only=True)
class EndedPhase:
    """A phase that ended. Times are nanoseconds since the Unix epoch, on the wall clock of its own host."""

    path: tuple[str, ...]
    scope_id: str
    status: PhaseStatus
    entered_ns: int
    ended_ns: int
    step: int | None
    pid: int


@attrs.frozen(kw_only=True)
class Past:
    """What has ended in a process up to some moment, for a report on a look that did not ask for it.

    Attributes:
        usuals: what is usual, by path.
        counts: how often each path ended.
        ended_phases: how many phases ended in all.
        is_exact: whether nothing is missing, and nothing has ended since.
    """

    usuals: Mapping[tuple[str, ...], Usual]
    counts: Mapping[tuple[str, ...], int]
    ended_phases: int
    is_exact: bool

    @classmethod
    def of(cls, image: JournalImage, paths: dict[tuple[str, ...], tuple[str, ...]]) -> Past:
        """Take it from a journal that was read as a whole; of very many paths only the most frequent."""
        totals = image.totals
        return cls(
            usuals={path: Usual.of(totals[path]) for path in _most_frequent(totals, MAX_USUALS)},
            counts=_counts(image, paths),
            ended_phases=sum(each.count for each in totals.values()),
            is_exact=_has_all(image),
        )


@attrs.frozen(kw_only=True)
class ProcessReport:
    """One process of a rank.

    Attributes:
        identity: session, attempt and rank.
        process: which process it is.
        forked_from: the pid of the process of the same rank that it was forked from, or None.
        state: how it stands.
        evidence: how that is known, in one sentence.
        kept_by: what keeps a running one from going on, as its machine's kernel says; often "".
        step: the last step that it set, or None.
        started_ns: when its session started, ns since the Unix epoch on its host's wall clock.
        alive_until_ns: its last sign of life, likewise.
        ended_ns: when it said that it ended, likewise; None if it did not.
        measured_to: up to when open phases were measured, "now" or "last sign of life".
        measured_ns: when that was, likewise.
        open: its open phases, outermost first in a lane, the main thread's lane first.
        unwound: the phases that it left by what ended it, an exception or a signal, outermost first, down to where that
            arose, each with how long it was open; empty if it did not say that it ended so, or nothing shows where.
        error_type: the type of the exception that ended it, or None.
        error_message: its text, or None.
        failure: why its outermost phases ended otherwise than well, though it ended in order; None if they did not.
        clock_ns: what its times are ahead of its machine's monotonic clock: without that, those of one boot compare.
        asked_ns: when a signal asked it to stop, ns since the Unix epoch; None if none did.
        there_ns: when the kernel was asked and had the process, also one whose session has ended, ns since the Unix
            epoch; None if it was not, or had not.
        is_stopped: whether the kernel does not let it run, as a signal or a debugger has stopped it.
        has_sync: whether any phase of which there is a record is marked as a synchronisation point.
        last_ended: its last ended phases, oldest first.
        counts: how often each path ended.
        has_exact_counts: whether nothing that it entered is missing in `counts` and `open`.
        ended_phases: how many phases ended in all.
        stack: the main thread's innermost Python frames when a phase had been open too long, innermost last.
        stack_for_ns: how long before `alive_until_ns` that stack was taken; None without one.
        said: what it said last, oldest first, if that was captured.
        damage: what of its journal could not be read.
    """

    identity: RankIdentity
    process: ProcessIdentity
    forked_from: int | None
    state: RankState
    evidence: str
    step: int | None
    started_ns: int
    alive_until_ns: int
    ended_ns: int | None
    measured_to: str
    measured_ns: int
    open: tuple[OpenPhase, ...]
    last_ended: tuple[EndedPhase, ...]
    counts: Mapping[tuple[str, ...], int]
    has_exact_counts: bool
    ended_phases: int
    kept_by: str = ""
    unwound: tuple[OpenPhase, ...] = ()
    error_type: str | None = None
    error_message: str | None = None
    failure: Failure | None = None
    clock_ns: int = 0
    asked_ns: int | None = None
    there_ns: int | None = None
    is_stopped: bool = False
    has_sync: bool = False
    stack: tuple[str, ...] = ()
    stack_for_ns: int | None = None
    said: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()

    @property
    def end_ns(self) -> int:
        """When it ended by its own word, else its last sign of life."""
        return self.alive_until_ns if self.ended_ns is None else self.ended_ns

    @property
    def still_ns(self) -> int:
        """For how long one that is there has given no sign of life; 0 if that is no longer than usual, or not known."""
        since_ns = self.measured_ns - self.alive_until_ns
        return since_ns if self.state is RankState.RUNNING and since_ns > FRESH_NS else 0

    @property
    def is_there(self) -> bool:
        """Whether the kernel has the process, also where its session has ended."""
        return self.there_ns is not None

    @property
    def has_died(self) -> bool:
        """Whether it ended otherwise than in order; a forked child that vanished with nothing open lost nothing."""
        return self.state in DEAD and (self.forked_from is None or bool(self.open) or self.state in SAID_SO)


@attrs.frozen(kw_only=True)
class RankReport:
    """One rank of the attempt: its own process first, then those it forked."""

    rank: int
    processes: tuple[ProcessReport, ...]

    @property
    def own(self) -> ProcessReport:
        """The rank's own process."""
        return self.processes[0]

    @property
    def open(self) -> tuple[OpenPhase, ...]:
        """The open phases of all its processes, its own first."""
        return tuple(phase for process in self.processes for phase in process.open)

    @property
    def last_ended(self) -> tuple[EndedPhase, ...]:
        """The last ended phases of all its processes, by end."""
        return tuple(sorted((each for process in self.processes for each in process.last_ended), key=_ended_ns))


def report_process(
    image: JournalImage,
    verdict: Verdict,
    *,
    now_ns: int | None = None,
    last: int = LAST_ENDED,
    paths: dict[tuple[str, ...], tuple[str, ...]] | None = None,
    past: Past | None = None,
) -> ProcessReport:
    """Return what `image` says, small enough to keep for thousands of ranks.

    Args:
        image: the journal.
        verdict: whether its process lives.
        now_ns: now on the monotonic clock of its machine, if this is that machine; else None. Clocks of other
            machines are never compared with this one's: then its own last sign of life is as far as time is known.
        last: how many ended phases to keep.
        paths: the paths known so far; given to all reports of a job, each path is kept once.
        past: what is known of ended phases, if `image` has no totals.
    """
    known = {} if paths is None else paths
    state, evidence = state_of(image, verdict)
    is_now = state is RankState.RUNNING and now_ns is not None and now_ns >= image.heartbeat_ns
    until_ns = now_ns if is_now and now_ns is not None else image.heartbeat_ns
    if is_now and until_ns - image.heartbeat_ns > FRESH_NS:
        evidence += f"; no sign of life for {span(until_ns - image.heartbeat_ns)}"
    to_wall_ns = image.anchor.to_wall_ns
    stack, stack_at_ns = _stack(image)
    pid = image.process.pid
    return ProcessReport(
        identity=image.identity,
        process=image.process,
        forked_from=_number(image.facts.get("forked_from")),
        state=state,
        evidence=evidence,
        step=image.step,
        started_ns=to_wall_ns(image.started_ns),
        alive_until_ns=to_wall_ns(image.heartbeat_ns),
        ended_ns=None if image.end_note is None else to_wall_ns(image.end_note.ended_ns),
        measured_to="now" if is_now else "last sign of life",
        measured_ns=to_wall_ns(until_ns),
        open=tuple(_open(phase, image, until_ns, known, _usual(phase.path, image, past)) for phase in image.open),
        last_ended=tuple(
            EndedPhase(
                path=known.setdefault(phase.path, phase.path),
                scope_id=phase.scope_id,
                status=phase.status,
                entered_ns=to_wall_ns(phase.entered_ns),
                ended_ns=to_wall_ns(phase.entered_ns if phase.ended_ns is None else phase.ended_ns),
                step=phase.step,
                pid=pid,
            )
            for phase in (image.ended[-last:] if last else ())
        ),
        counts=_counts(image, known) if past is None else past.counts,
        has_exact_counts=_has_all(image) and (past is None or past.is_exact),
        ended_phases=sum(each.count for each in image.totals.values()) if past is None else past.ended_phases,
        unwound=_unwound(image, known) if state in SAID_SO else (),
        error_type=None if image.end_note is None else image.end_note.error_type,
        error_message=_message(None if image.end_note is None else image.end_note.error_message),
        failure=failure_of(image) if state in IN_ORDER else None,
        clock_ns=to_wall_ns(0),
        asked_ns=None if image.stop_asked_ns is None else to_wall_ns(image.stop_asked_ns),
        there_ns=to_wall_ns(now_ns) if verdict.is_seen and now_ns is not None else None,
        is_stopped=state is RankState.RUNNING and verdict.is_stopped,
        has_sync=any(phase.is_sync for phase in (*image.open, *image.ended)),
        kept_by=verdict.kept_by if state is RankState.RUNNING else "",
        stack=stack,
        stack_for_ns=None if stack_at_ns is None else max(0, until_ns - stack_at_ns),
        damage=image.damage,
    )


def state_of(image: JournalImage, verdict: Verdict) -> tuple[RankState, str]:
    """Return how the process stands, and the evidence: its own word first, then what the kernel says of it."""
    asked = "" if image.stop_signal is None else f"; {signal_name(image.stop_signal)} had asked it to stop"
    if image.end_note is not None:
        return _said(image.end_note, f"at {utc(image.anchor.to_wall_ns(image.end_note.ended_ns))}", asked)
    evidence = shown(verdict.evidence, MAX_MESSAGE)
    if verdict.state is Liveness.ALIVE:
        return RankState.RUNNING, evidence + asked
    if verdict.state is Liveness.UNKNOWN:
        return RankState.SILENT, evidence + asked
    last_sign = utc(image.anchor.to_wall_ns(image.heartbeat_ns))
    state = RankState.HOST_GONE if verdict.is_host_gone else RankState.KILLED
    return state, f"{evidence}; last sign of life at {last_sign}{asked}"


def _said(note: EndNote, at: str, asked: str) -> tuple[RankState, str]:
    """Return how a process said that it ended."""
    if note.kind is EndKind.CLEAN:
        return RankState.CLEAN, f"ended in order {at}"
    if note.kind is EndKind.ENDED:
        return RankState.ENDED, f"ended {at}, when its interpreter did, with an exit status that is not known{asked}"
    if note.kind is EndKind.SIGNAL:
        return RankState.SIGNAL, f"ended {at}, as {signal_name(note.signal)} asked"
    message = f": {shown(note.error_message, MAX_MESSAGE)}" if note.error_message else ""
    state = RankState.EXIT if note.kind is EndKind.EXIT else RankState.EXCEPTION
    return state, f"{shown(note.error_type or 'an exception')}{message}, {at}{asked}"


def signal_name(number: int | None) -> str:
    """Return `SIGTERM` for 15; whatever a file says, never raises."""
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"


def ranks_of(processes: Iterable[ProcessReport]) -> tuple[RankReport, ...]:
    """Return the processes of one attempt by rank, each rank's own process before those it forked."""
    by_rank: dict[int, list[ProcessReport]] = {}
    for process in processes:
        by_rank.setdefault(process.identity.rank, []).append(process)
    return tuple(
        RankReport(rank=rank, processes=tuple(sorted(by_rank[rank], key=_own_first))) for rank in sorted(by_rank)
    )


def _own_first(process: ProcessReport) -> tuple[bool, bool, int, int]:
    return process.forked_from is not None, process.state is RankState.CLEAN, process.started_ns, process.process.pid


def _ended_ns(phase: EndedPhase) -> int:
    return phase.ended_ns


def _open(
    phase: JournalPhase,
    image: JournalImage,
    until_ns: int,
    known: dict[tuple[str, ...], tuple[str, ...]],
    usual: Usual | None,
) -> OpenPhase:
    return OpenPhase(
        path=known.setdefault(phase.path, phase.path),
        scope_id=phase.scope_id,
        entered_ns=image.anchor.to_wall_ns(phase.entered_ns),
        for_ns=max(0, until_ns - phase.entered_ns),
        pid=image.process.pid,
        lane=phase.lane,
        thread_id=phase.thread_id,
        thread_name=phase.thread_name,
        is_main_thread=phase.is_main_thread,
        task_name=phase.task_name,
        step=phase.step,
        is_sync=phase.is_sync,
        is_paused=phase.status is PhaseStatus.PAUSED,
        attributes=phase.attributes or _EMPTY,
        usual=usual,
    )


def _unwound(image: JournalImage, known: dict[tuple[str, ...], tuple[str, ...]]) -> tuple[OpenPhase, ...]:
    """Return the phases that the end of the process has unwound, outermost first, down to where that arose."""
    return tuple(
        _open(phase, image, phase.ended_ns or 0, known, _usual_before(phase, image.totals.get(phase.path)))
        for phase in left_by_end(image)
    )


def _message(text: str | None) -> str | None:
    return None if text is None else shown(text, MAX_MESSAGE)


def _usual_before(phase: JournalPhase, totals: PathTotals | None) -> Usual | None:
    """Return what was usual before a phase that has ended, and is part of the totals."""
    lasted_ns = (phase.ended_ns or 0) - phase.entered_ns
    if totals is None or totals.count < 2:  # noqa: PLR2004 - itself, and one before
        return None
    buckets = dict(totals.buckets)
    buckets[bucket_of(lasted_ns)] = buckets.get(bucket_of(lasted_ns), 0) - 1
    buckets = {bucket: count for bucket, count in buckets.items() if count > 0}
    max_ns = totals.max_ns
    if lasted_ns >= max_ns and buckets:  # Then how long the others took at most only their buckets tell.
        max_ns = min(max_ns, int(GAMMA ** min(max(buckets), _MAX_BUCKET)))
    return Usual.of(attrs.evolve(totals, count=totals.count - 1, buckets=buckets, max_ns=max_ns))


def _usual(path: tuple[str, ...], image: JournalImage, past: Past | None) -> Usual | None:
    if past is not None:
        return past.usuals.get(path)
    totals = image.totals.get(path)
    return None if totals is None or not totals.count else Usual.of(totals)


def _has_all(image: JournalImage) -> bool:
    return not (image.unwritten or image.unfolded or image.damage or len(image.totals) > MAX_COUNTS)


def _most_frequent(totals: Mapping[tuple[str, ...], PathTotals], most: int) -> Iterable[tuple[str, ...]]:
    """Return the paths; of very many those that ended most often, as a file may claim any number of them."""
    return totals if len(totals) <= most else sorted(totals, key=lambda path: -totals[path].count)[:most]


def _counts(image: JournalImage, known: dict[tuple[str, ...], tuple[str, ...]]) -> Mapping[tuple[str, ...], int]:
    return {known.setdefault(path, path): image.totals[path].count for path in _most_frequent(image.totals, MAX_COUNTS)}


def _stack(image: JournalImage) -> tuple[tuple[str, ...], int | None]:
    """Return the main thread's innermost frames in the newest stack dump, and when it was taken."""
    if not image.stacks:
        return (), None
    dump = image.stacks[-1]
    main_id = image.facts.get("main_thread_id")
    for thread in dump.threads:
        if thread.get("thread_id") == main_id or thread.get("name") == "MainThread":
            frames = thread.get("frames")
            if isinstance(frames, (list, tuple)):
                return tuple(shown(str(frame), MAX_MESSAGE) for frame in frames[-_MAX_FRAMES:]), dump.at_ns
    return (), None


def _number(value: object) -> int | None:
    return value if type(value) is int else None
