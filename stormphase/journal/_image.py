"""What a journal says, as its reader gives it: frozen, and free of the file it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from stormphase._clock import ClockAnchor
from stormphase._model import EndKind, PhaseError, PhaseStatus, ProcessIdentity, RankIdentity


@attrs.frozen(kw_only=True)
class JournalPhase:
    """One phase in a journal, open or ended. Times are nanoseconds on the writer's monotonic clock.

    Attributes:
        sequence: the phase's number in its process, from 1.
        scope_id: its identity, 16 hex digits.
        parent_scope_id: the phase it hangs under, also one of another process; None at the root.
        path: the names from the outermost phase to this one.
        status: ACTIVE or PAUSED while it is open, else how it ended.
        entered_ns: when it was entered.
        ended_ns: when it ended; None while it is open.
        children_ns: how long phases ran on top of it on its lane; 0 while it is open, as only its exit says so.
        paused_ns: how long it was paused, the pause that still lasts not included.
        paused_since_ns: when the pause began that still lasts; None if none does.
        step: the step it carries, or None.
        lane: the number of its lane, unique in its process.
        thread_id: the thread's ident.
        thread_name: the thread's name, or None if it could not be kept.
        is_main_thread: whether that is the process's main thread.
        task_name: the task whose lane it is on, if it is a task's and the phase is that lane's outermost; else None.
        is_lane_root: whether it is the outermost of its lane, or its parent is on another lane.
        attributes: those given at enter, and those set later.
        is_sync: whether ranks wait for each other in it.
        attempt: how often it was retried, from 0.
        retry_of: scope id of the phase that it retries, or None.
        error: why it failed or was cancelled, if it did.
        status_text: what else is said of its end, such as why it was abandoned, or None.
        trace: trace facts of its own (`trace_id`, `root_id`, `parent_id`, `sampled`), or None for the session's trace.
        is_handed_over: whether the process's bridge is done with it: its span was exported, or is not to be sent.
        is_cut: whether something of it was left out for want of room.
    """

    sequence: int
    scope_id: str
    parent_scope_id: str | None
    path: tuple[str, ...]
    status: PhaseStatus
    entered_ns: int
    ended_ns: int | None = None
    children_ns: int = 0
    paused_ns: int = 0
    paused_since_ns: int | None = None
    step: int | None = None
    lane: int = 0
    thread_id: int = 0
    thread_name: str | None = None
    is_main_thread: bool = False
    task_name: str | None = None
    is_lane_root: bool = False
    attributes: Mapping[str, Any] = attrs.field(factory=dict)
    is_sync: bool = False
    attempt: int = 0
    retry_of: str | None = None
    error: PhaseError | None = None
    status_text: str | None = None
    trace: Mapping[str, Any] | None = None
    is_handed_over: bool = False
    is_cut: bool = False


@attrs.frozen(kw_only=True)
class PathTotals:
    """What is known of all ended phases of one path, long after their records are gone.

    Attributes:
        path: the names; `("(other)",)` for those that had no number left.
        count: how many ended.
        failed: how many of them FAILED.
        cancelled: how many were CANCELLED.
        abandoned: how many were ABANDONED.
        total_ns: the sum of their durations.
        self_ns: the sum of their own times.
        paused_ns: the sum of their pauses.
        min_ns: the shortest duration.
        max_ns: the longest duration.
        buckets: how many durations fell into each bucket of `stormphase._histogram`; mergeable by adding.
        unbucketed: how many durations found no room for a bucket.
    """

    path: tuple[str, ...]
    count: int = 0
    failed: int = 0
    cancelled: int = 0
    abandoned: int = 0
    total_ns: int = 0
    self_ns: int = 0
    paused_ns: int = 0
    min_ns: int = 0
    max_ns: int = 0
    buckets: Mapping[int, int] = attrs.field(factory=dict)
    unbucketed: int = 0


@attrs.frozen(kw_only=True)
class EndNote:
    """How a process said that its session ended.

    Attributes:
        kind: in order, by an exception, a signal or an exit, or at interpreter exit, with a status that nobody knows.
        ended_ns: when, on its monotonic clock.
        error_type: the exception's type, for an exception.
        error_message: its text, for an exception.
        signal: the signal's number, for a signal.
        root_cause_scope_id: where that exception arose, in whatever process; None in journals of older releases.
        status: how its session ended for it; None in journals of older releases.
    """

    kind: EndKind = attrs.field(converter=EndKind)
    ended_ns: int
    error_type: str | None = None
    error_message: str | None = None
    signal: int | None = None
    root_cause_scope_id: str | None = None
    status: PhaseStatus | None = None


@attrs.frozen(kw_only=True)
class StackDump:
    """Every thread's Python stack at the moment when a phase had been open too long.

    Attributes:
        at_ns: when, on the writer's monotonic clock.
        sequence: the phase's number.
        limit_ns: how long it may be open.
        threads: per thread `thread_id`, `name` and `frames`, innermost last.
    """

    at_ns: int
    sequence: int
    limit_ns: int
    threads: tuple[Mapping[str, Any], ...]


@attrs.frozen(kw_only=True)
class JournalImage:
    """One journal as it was when it was read.

    Attributes:
        file: where it was read from.
        identity: session, attempt, rank.
        process: who wrote it.
        id_base: what the scope ids of its phases count from.
        facts: the whole facts object of the header, `otel` included.
        anchor: relates the writer's monotonic clock to the wall clock.
        started_ns: when its session started, monotonic.
        heartbeat_ns: when it was last known alive, monotonic; never before any time in its phases.
        heartbeat_wall_ns: the writer's wall clock at its last heartbeat, ns since the Unix epoch.
        step: the last step set, or None.
        end_note: how the process said that it ended, or None.
        stop_signal: the signal that asked it to stop, or None.
        stop_asked_ns: when that was, monotonic, or None.
        open: the open phases: outermost first within a lane, the main thread's lane first, then lanes by number.
        ended: the ended phases whose records are still there, by end.
        totals: per path, the phases in `ended` included.
        unwritten: phases that were entered and not written, for want of room.
        unfolded: ended phases that are neither in `ended` nor in `totals`.
        cleared_unsent: ended phases whose records went before the bridge was given them.
        owners_are_unsent: whether it said how it ended, and its bridge has not said that rank and session are sent.
        stacks: stack dumps, oldest first.
        damage: what could not be read, in words; empty for a sound file.
    """

    file: Path
    identity: RankIdentity
    process: ProcessIdentity
    facts: Mapping[str, Any]
    anchor: ClockAnchor
    started_ns: int
    heartbeat_ns: int
    heartbeat_wall_ns: int
    step: int | None
    end_note: EndNote | None
    stop_signal: int | None
    stop_asked_ns: int | None
    open: tuple[JournalPhase, ...]
    ended: tuple[JournalPhase, ...]
    totals: Mapping[tuple[str, ...], PathTotals]
    unwritten: int
    unfolded: int
    cleared_unsent: int
    stacks: tuple[StackDump, ...]
    damage: tuple[str, ...]
    id_base: int = 0
    owners_are_unsent: bool = False
