"""Builds what the journals of a job would say: hand-made images of ranks, in few words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from stormphase._clock import ClockAnchor
from stormphase._histogram import bucket_of
from stormphase._liveness import Liveness, Verdict
from stormphase._model import PhaseStatus, ProcessIdentity, RankIdentity
from stormphase.analysis._postmortem import Postmortem, diagnose
from stormphase.analysis._ranks import ProcessReport, report_process
from stormphase.journal._image import EndNote, JournalImage, JournalPhase, PathTotals, StackDump

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SECOND = 1_000_000_000
NOW_NS = 100_000 * SECOND  # on the monotonic clock of every machine here
EPOCH_NS = 1_800_000_000 * SECOND  # what wall clocks showed at monotonic 0
NOW_WALL_NS = EPOCH_NS + NOW_NS
VERDICTS = {
    "alive": Verdict(Liveness.ALIVE, "process 100 is there on node0"),
    "dead": Verdict(Liveness.DEAD, "process 100 is gone from node0"),
    "host gone": Verdict(Liveness.DEAD, "node0 has booted since", is_host_gone=True),
    "unknown": Verdict(Liveness.UNKNOWN, "silent since 2027-01-15 08:00:00 UTC on node0"),
}
MAIN = 7


def path_of(text: str) -> tuple[str, ...]:
    """Return `a / b` as a path."""
    return tuple(name.strip() for name in text.split("/"))


def totals_of(path: str, durations_s: Sequence[float]) -> PathTotals:
    """Return the totals of phases of these durations."""
    durations = [int(each * SECOND) for each in durations_s]
    buckets: dict[int, int] = {}
    for each in durations:
        buckets[bucket_of(each)] = buckets.get(bucket_of(each), 0) + 1
    return PathTotals(
        path=path_of(path),
        count=len(durations),
        total_ns=sum(durations),
        min_ns=min(durations, default=0),
        max_ns=max(durations, default=0),
        buckets=buckets,
    )


class Job:
    """Journals of one job, made rank by rank; `diagnose` says what the library makes of them."""

    def __init__(self, world_size: int = 4) -> None:
        """Start with no journal."""
        self.world_size = world_size
        self.processes: list[ProcessReport] = []

    def rank(self, rank: int, *doing: str, verdict: str = "alive", now_ns: int | None = NOW_NS, **options: Any) -> None:
        """Add a journal; `doing` and `options` as for `image`."""
        image = self.image(rank, *doing, **options)
        self.processes.append(report_process(image, VERDICTS[verdict], now_ns=now_ns))

    def image(
        self,
        rank: int,
        *doing: str,
        step: int | None = 120,
        usual: Mapping[str, Sequence[float]] | None = None,
        heartbeat_s: float = 0.5,
        ended: Sequence[str] = (),
        left: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        note: EndNote | None = None,
        attempt: int = 0,
        pid: int | None = None,
        **more: Any,
    ) -> JournalImage:
        """Return a journal whose open phases are `doing`.

        Args:
            rank: whose it is.
            doing: each `path, seconds it is open` and any of the words `sync`, `paused`, `lane N`, `thread N`.
            step: the last step set.
            usual: seconds that phases of a path took before.
            heartbeat_s: how many seconds ago the last sign of life was.
            ended: paths of the last ended phases, each of 1 ms, the last one ended at the last sign of life.
            left: phases that what ended it has unwound, outermost first, each as one of `doing`; with `note`.
            facts: more of the header's facts.
            note: how it said that it ended.
            attempt: of the session.
            pid: of the process; 100 more than the rank if not given.
            more: whatever else the image shall say.
        """
        identity = RankIdentity(
            session_id="job-1",
            attempt=attempt,
            rank=rank,
            local_rank=rank,
            world_size=self.world_size,
            local_world_size=None,
            node_rank=None,
            host="node0",
            launcher="explicit",
        )
        heartbeat_ns = NOW_NS - int(heartbeat_s * SECOND)
        image = JournalImage(
            file=Path(f"rank-{rank:05}.journal"),
            identity=identity,
            process=ProcessIdentity(
                host="node0", boot_id="boot", pid=100 + rank if pid is None else pid, started=5, pid_namespace=6
            ),
            facts={"main_thread_id": MAIN, "forked_from": None, **(facts or {})},
            anchor=ClockAnchor(monotonic_ns=0, wall_ns=EPOCH_NS, uncertainty_ns=0),
            started_ns=SECOND,
            heartbeat_ns=heartbeat_ns,
            heartbeat_wall_ns=EPOCH_NS + heartbeat_ns,
            step=step,
            end_note=note,
            stop_signal=None,
            stop_asked_ns=None,
            open=tuple(_open(index, text, step) for index, text in enumerate(doing, 1)),
            ended=tuple(
                _ended(1_000 + index, path, heartbeat_ns - (len(ended) - 1 - index) * 2_000_000 - bool(left) * SECOND)
                for index, path in enumerate(ended)
            )
            + tuple(
                _left(index, text, step, 0 if note is None else note.ended_ns) for index, text in enumerate(left, 2_000)
            ),
            totals={path_of(path): totals_of(path, durations) for path, durations in (usual or {}).items()},
            unwritten=0,
            unfolded=0,
            cleared_unsent=0,
            stacks=(),
            damage=(),
        )
        return attrs.evolve(image, **more)

    def diagnose(self, **options: Any) -> Postmortem:
        """Return what the library makes of all journals."""
        return diagnose(self.processes, **options)


def said(kind: str, ago_s: float = 0.5, **more: Any) -> EndNote:
    """Return the note of a process that ended so many seconds ago."""
    return EndNote(kind=kind, ended_ns=NOW_NS - int(ago_s * SECOND), **more)


def stack(*frames: str, ago_s: float = 1) -> StackDump:
    """Return a dump of the main thread's stack."""
    threads = (
        {"thread_id": 1, "name": "other", "frames": ["x"]},
        {"thread_id": MAIN, "name": "m", "frames": [*frames]},
    )
    return StackDump(at_ns=NOW_NS - int(ago_s * SECOND), sequence=1, limit_ns=SECOND, threads=threads)


def _open(sequence: int, text: str, step: int | None) -> JournalPhase:
    path, seconds, *words = (part.strip() for part in text.split(","))
    numbers = {word.split()[0]: int(word.split()[1]) for word in words if " " in word}
    thread = numbers.get("thread", MAIN)
    return JournalPhase(
        sequence=sequence,
        scope_id=f"{sequence:016x}",
        parent_scope_id=f"{sequence - 1:016x}" if sequence > 1 else None,
        path=path_of(path),
        status=PhaseStatus.PAUSED if "paused" in words else PhaseStatus.ACTIVE,
        entered_ns=NOW_NS - int(float(seconds) * SECOND),
        step=step,
        lane=numbers.get("lane", 1),
        thread_id=thread,
        thread_name="MainThread" if thread == MAIN else f"thread-{thread}",
        is_main_thread=thread == MAIN,
        is_sync="sync" in words,
    )


def _left(sequence: int, text: str, step: int | None, ended_ns: int) -> JournalPhase:
    phase = _open(sequence, text, step)
    lasted_ns = NOW_NS - phase.entered_ns
    # The innermost first.
    ended_ns -= len(phase.path) * 1_000
    return attrs.evolve(phase, status=PhaseStatus.FAILED, entered_ns=ended_ns - lasted_ns, ended_ns=ended_ns)


def _ended(sequence: int, path: str, ended_ns: int) -> JournalPhase:
    return JournalPhase(
        sequence=sequence,
        scope_id=f"{sequence:016x}",
        parent_scope_id=None,
        path=path_of(path),
        status=PhaseStatus.SUCCEEDED,
        entered_ns=ended_ns - 1_000_000,
        ended_ns=ended_ns,
        step=119,
        lane=1,
        thread_id=MAIN,
        is_main_thread=True,
    )
