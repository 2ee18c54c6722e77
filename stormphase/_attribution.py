"""Who is to blame: where each failure of a run first arose, from records alone.

Pure, and the same for live, stored and recovered records. What is gone by, in this order:

- A phase that an exception left says itself where that arose (`root_cause_scope_id`), since the exception carried it.
- A LOST phase was open when its process died. What the process was doing is what was open innermost, so that is the
  root cause of every LOST phase around it. A forked or worker process that had nothing open has not failed.
- A phase that failed by itself because another process had gone (its error says so: `BrokenProcessPool` and the like)
  has its root cause in a LOST phase beneath it, if there is one that was lost before; else in a failure beneath it that
  was the last thing that its process did. Where several processes were lost, and last seen at so nearly the same time
  that nobody can tell which went first (a pool kills the others), none of them is named, and all are listed.

Parents are found by scope id and never by name, so what a late child of a first try does is never put on the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._liveness import SEEN_EVERY_NS
from stormphase._model import PhaseStatus, ProcessIdentity
from stormphase._record import PhaseRecord, RecordKey, RecordKind
from stormphase._status import FAILURES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    # The cause of what went wrong, if its record is known, and the record that names it.
    _Found: TypeAlias = tuple[PhaseRecord | None, PhaseRecord]

# Errors by which one process learns that another one has gone, by the last part of their names.
GONE_ERRORS: Final = frozenset(
    {
        "ActorDiedError",
        "ActorUnavailableError",
        "BrokenExecutor",
        "BrokenPipeError",
        "BrokenProcessPool",
        "CalledProcessError",
        "ChildProcessError",
        "ConnectionAbortedError",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "EOFError",
        "NodeDiedError",
        "OwnerDiedError",
        "ProcessExitedException",
        "RayActorError",
        "WorkerCrashedError",
    }
)


@attrs.frozen
class Failure:
    """One thing that went wrong by itself.

    Attributes:
        record: where it arose.
        reached: the other records whose root cause it is, in the order in which they ended.
    """

    record: PhaseRecord
    reached: tuple[PhaseRecord, ...]

    @property
    def is_contained(self) -> bool:
        """Whether it went no further than where it arose: somebody handled it, or nobody asked."""
        return not self.reached


@attrs.frozen
class Cause:
    """Where that first arose by which one record went wrong; the attributes are those of `Blame`."""

    scope_id: str
    path: tuple[str, ...] | None
    record: PhaseRecord | None


@attrs.frozen
class Blame:
    """Why one record went wrong.

    Attributes:
        scope_id: where that first arose; the own id at the origin.
        path: the path there, or None if nothing says so.
        record: the record of that, or None if it was not among those given.
        others: the other failures beneath that had ended by then, in the order in which their phases ended.
    """

    scope_id: str
    path: tuple[str, ...] | None
    record: PhaseRecord | None
    others: tuple[PhaseRecord, ...]


@attrs.frozen
class Attribution:
    """The failures of some records.

    Attributes:
        failures: every root cause whose record is known, in the order in which their phases ended.
        blames: why each record went wrong, by its key; those in order are not in it.
    """

    failures: tuple[Failure, ...]
    blames: Mapping[RecordKey, Blame]

    def blame_of(self, record: PhaseRecord) -> Blame | None:
        """Return why `record` went wrong, or None if it did not."""
        return self.blames.get(record.key)


def attribute(records: Iterable[PhaseRecord]) -> Attribution:
    """Return where each failure among `records` first arose, what it reached, and what else failed beneath.

    A session is to blame for what its ranks failed by, also if rank 0, which writes its record, went well. Where one
    key comes twice, the later record counts. Pure; takes time and memory in proportion to the records, and to the
    `others` that all blames have together.
    """
    forest = _Forest(records)
    causes = _causes(forest)
    origins = {cause.key: cause for cause, _ in causes.values() if cause is not None}
    beneath = _beneath(forest, origins.values())
    blames: dict[RecordKey, Blame] = {}
    reached: dict[RecordKey, list[PhaseRecord]] = {key: [] for key in origins}
    for key, (cause, named) in causes.items():
        record = forest.records[key]
        others = [other for other in beneath.get(key, ()) if cause is None or other.key != cause.key]
        found = _cause(cause, named)
        blames[key] = Blame(found.scope_id, found.path, cause, tuple(sorted(others, key=_end_order)))
        if cause is not None and cause.key != key:
            reached[cause.key].append(record)
    failures = [Failure(record, tuple(sorted(reached[key], key=_end_order))) for key, record in origins.items()]
    failures.sort(key=lambda failure: _end_order(failure.record))
    return Attribution(tuple(failures), MappingProxyType(blames))


def causes_of(records: Iterable[PhaseRecord]) -> dict[RecordKey, Cause]:
    """Return where that first arose by which each of `records` went wrong, by key, as `attribute` says.

    Takes time and memory in proportion to the records, however they hang together.
    """
    return {key: _cause(cause, named) for key, (cause, named) in _causes(_Forest(records)).items()}


def _cause(cause: PhaseRecord | None, named: PhaseRecord) -> Cause:
    if cause is None:
        return Cause(named.root_cause_scope_id or named.scope_id, named.root_cause_path, None)
    return Cause(cause.scope_id, cause.path, cause)


class _Forest:
    """Records by key, each under its parent; a circle, which only a damaged file can have, is cut."""

    def __init__(self, records: Iterable[PhaseRecord]) -> None:
        self.records: dict[RecordKey, PhaseRecord] = {record.key: record for record in records}
        ranks: dict[tuple[str, int, int | None], RecordKey] = {}
        sessions: dict[tuple[str, int], RecordKey] = {}
        self._processes: dict[tuple[str, int, ProcessIdentity | None], RecordKey] = {}
        self._last_entered_ns: dict[tuple[str, int, ProcessIdentity | None], int] = {}
        for key, record in self.records.items():
            place = (record.session_id, record.session_attempt, record.process)
            self._last_entered_ns[place] = max(record.entered_ns, self._last_entered_ns.get(place, 0))
            if record.kind is RecordKind.RANK:
                ranks[record.session_id, record.session_attempt, record.rank] = key
            elif record.kind is RecordKind.SESSION:
                sessions[record.session_id, record.session_attempt] = key
            elif record.kind is RecordKind.PROCESS:
                self._processes[place] = key
        self.parents: dict[RecordKey, RecordKey] = {}
        children: dict[RecordKey, list[RecordKey]] = {}
        for key, record in self.records.items():
            parent = self._parent_of(record, ranks, sessions)
            if parent is not None and parent != key:
                self.parents[key] = parent
                children.setdefault(parent, []).append(key)
        # Parents before children; what is in a circle is never reached from a root, and becomes one.
        self.order: list[RecordKey] = [key for key in self.records if key not in self.parents]
        for key in self.order:
            self.order.extend(children.get(key, ()))
        from_roots = set(self.order)
        for key in [key for key in self.records if key not in from_roots]:
            del self.parents[key]
            self.order.append(key)

    def _parent_of(
        self,
        record: PhaseRecord,
        ranks: dict[tuple[str, int, int | None], RecordKey],
        sessions: dict[tuple[str, int], RecordKey],
    ) -> RecordKey | None:
        launch = (record.session_id, record.session_attempt)
        parent = None
        if record.parent_scope_id is not None:
            parent = self.records.get((*launch, record.parent_scope_id))
        process = self._processes.get((*launch, record.process)) if record.kind is RecordKind.PHASE else None
        # The outermost phases of a forked process hang under its parent's; the process itself stands between, unless it
        # has come to work for another phase.
        if process is not None and (parent is None or self._leads_into(parent, process)):
            return process
        if parent is not None:
            return parent.key
        if record.kind in (RecordKind.PHASE, RecordKind.PROCESS):
            return ranks.get((*launch, record.rank)) or sessions.get(launch)
        return sessions.get(launch) if record.kind is RecordKind.RANK else None

    def _leads_into(self, parent: PhaseRecord, process: RecordKey) -> bool:
        """Whether `parent` is the phase of another process under which this one stands."""
        found = self.records[process]
        return parent.process != found.process and found.parent_scope_id == parent.scope_id

    def ended_by(self, record: PhaseRecord) -> bool:
        """Whether a process that worked for another one did nothing more after this failure of its."""
        if record.status is not PhaseStatus.FAILED or record.parent_scope_id is None or record.ended_ns is None:
            return False
        above = self.records.get((record.session_id, record.session_attempt, record.parent_scope_id))
        if above is None or above.process == record.process:
            return False
        return self._last_entered_ns[record.session_id, record.session_attempt, record.process] <= record.ended_ns


def _causes(forest: _Forest) -> dict[RecordKey, _Found]:
    """Return for each record that went wrong its cause, if known, and the record that names it."""
    causes: dict[RecordKey, _Found] = {}
    lost: dict[RecordKey, PhaseRecord] = {}  # the LOST leaf beneath each in its own process, itself included
    dead: dict[RecordKey, _Dead] = {}  # those beneath each in all processes
    ended: dict[RecordKey, PhaseRecord] = {}  # what a process beneath each failed by, of several the last
    failed_ranks: dict[RecordKey, RecordKey] = {}  # the first rank of a session that went wrong
    for key in reversed(forest.order):  # children first
        record = forest.records[key]
        if record.status is PhaseStatus.LOST:
            lost.setdefault(key, record)
            dead.setdefault(key, _Dead(lost[key]))
        if record.status in FAILURES and not (_is_idle(record) and dead[key].first is record):
            causes[key] = _cause_of(record, forest, lost.get(key), dead.get(key), ended.get(key))
        elif key in failed_ranks:
            causes[key] = causes[failed_ranks[key]]
        parent = forest.parents.get(key)
        if parent is None:
            continue
        if key in lost and record.process == forest.records[parent].process:
            lost[parent] = min(lost[key], lost.get(parent, lost[key]), key=_lost_order)
        if key in dead:
            dead[parent] = dead[key].with_those_of(dead.get(parent))
        by = record if forest.ended_by(record) else ended.get(key)
        if by is not None and (parent not in ended or _end_order(ended[parent]) < _end_order(by)):
            ended[parent] = by
        if record.kind is RecordKind.RANK and key in causes:
            ranks = failed_ranks.get(parent, key), key
            failed_ranks[parent] = min(ranks, key=lambda rank: _end_order(forest.records[rank]))
    return _followed(causes)


@attrs.frozen
class _Dead:
    """Processes that were lost: the phase of the first one, and of the first of the others, if there are others."""

    first: PhaseRecord
    rival: PhaseRecord | None = None

    def with_those_of(self, other: _Dead | None) -> _Dead:
        """Return the same of both together."""
        if other is None:
            return self
        found = [each for each in (self.first, self.rival, other.first, other.rival) if each is not None]
        found.sort(key=_lost_order)
        return _Dead(found[0], next((each for each in found if each.process != found[0].process), None))

    def cause_of(self, record: PhaseRecord) -> PhaseRecord | None:
        """Return what `record` failed by, if it was lost before that, and nobody can have been lost as early."""
        if not _ended_by(self.first, record):
            return None
        rival = self.rival
        if rival is None or _is_idle(rival) > _is_idle(self.first) or not _ended_by(rival, record):
            return self.first
        return self.first if _is_clearly_later(rival, self.first) else None


def _is_idle(record: PhaseRecord) -> bool:
    """Whether a process has gone that had nothing open: pools end theirs every day, and nothing went wrong by that."""
    return (
        record.kind is RecordKind.PROCESS
        and record.status is PhaseStatus.LOST
        and record.root_cause_scope_id in (None, record.scope_id)
    )


def _is_clearly_later(record: PhaseRecord, other: PhaseRecord) -> bool:
    """Whether one was lost after another, and not only seen after it: a process is seen some time before it dies."""
    return (record.ended_ns or 0) - (other.ended_ns or 0) > SEEN_EVERY_NS


def _followed(causes: dict[RecordKey, _Found]) -> dict[RecordKey, _Found]:
    """Follow causes that have one themselves, as where it stands beside what it is the cause of, and came later.

    Of a circle, which only damage makes, each keeps its own.
    """
    ends: dict[RecordKey, _Found] = {}
    for key in causes:
        way: dict[RecordKey, None] = {}
        at = key
        while at not in ends and at not in way:
            way[at] = None
            cause, _ = causes[at]
            if cause is None or cause.key == at or cause.key not in causes:
                ends[at] = causes[at]
            else:
                at = cause.key
        if at in ends:
            ends.update(dict.fromkeys(way, ends[at]))
        else:
            ends.update((each, causes[each]) for each in way)
    return ends


def _cause_of(
    record: PhaseRecord, forest: _Forest, lost: PhaseRecord | None, dead: _Dead | None, ended: PhaseRecord | None
) -> _Found:
    named = record.root_cause_scope_id
    known = None
    if named is not None and named != record.scope_id:
        known = forest.records.get((record.session_id, record.session_attempt, named))
    if record.status is PhaseStatus.LOST and lost is not None and dead is not None:
        return known or _died_in(record, lost, dead), record
    is_of_gone = is_of_the_gone(record)
    if known is not None and known.status is PhaseStatus.LOST and is_of_gone:
        known = named = None  # An earlier look has named it, and may not have known of all that were lost.
    if named is not None and named != record.scope_id:
        return known, record
    if is_of_gone:
        if dead is not None and _ended_by(dead.first, record):
            return dead.cause_of(record) or record, record
        if ended is not None and _ended_by(ended, record):
            return ended, record
    return record, record


def _died_in(record: PhaseRecord, lost: PhaseRecord, dead: _Dead) -> PhaseRecord:
    """Return where a process was at work that is LOST, if its record does not name another one as that."""
    if record.kind is RecordKind.PHASE and record.root_cause_scope_id == record.scope_id:
        return record  # What was open beneath it was paused.
    is_own = lost is not record and not _is_clearly_later(lost, dead.first)
    return lost if is_own else dead.first


def _beneath(forest: _Forest, origins: Iterable[PhaseRecord]) -> dict[RecordKey, list[PhaseRecord]]:
    """Return for each record the root causes beneath it that had ended by its end."""
    found: dict[RecordKey, list[PhaseRecord]] = {}
    for origin in origins:
        key = forest.parents.get(origin.key)
        while key is not None:
            if _ended_by(origin, forest.records[key]):
                found.setdefault(key, []).append(origin)
            key = forest.parents.get(key)
    return found


def is_of_the_gone(record: PhaseRecord) -> bool:
    """Whether the record's error says that another process has gone."""
    return record.error_type is not None and record.error_type.rpartition(".")[2] in GONE_ERRORS


def _ended_by(record: PhaseRecord, other: PhaseRecord) -> bool:
    """Whether `record` had ended when `other` did."""
    if other.ended_ns is None:
        return True
    return record.ended_ns is not None and record.ended_ns <= other.ended_ns


def _end_order(record: PhaseRecord) -> tuple[bool, int, int, int]:
    """Return what sorts records by their end, those within others first, open ones last."""
    return (record.ended_ns is None, record.ended_ns or 0, -record.depth, record.sequence)


def _lost_order(record: PhaseRecord) -> tuple[bool, int, int, int]:
    """Return what finds the phase in which a process died: lost first, and of those entered last."""
    return (_is_idle(record), record.ended_ns or 0, -record.entered_ns, -record.sequence)


def corrections(records: Iterable[PhaseRecord]) -> dict[RecordKey, Cause]:
    """Return why those records FAILED that have a root cause in another process, which they could not see themselves.

    Stores and readers of journals put it into what they tell, so that both name the same root cause.

    Args:
        records: of whole sessions; at least what went wrong, what that hangs under, the records of ranks and processes,
            and the phase that each process entered last.
    """
    known = {record.key: record for record in records}
    return {
        key: cause
        for key, cause in causes_of(known.values()).items()
        if known[key].status is PhaseStatus.FAILED
        and cause.record is not None
        and cause.scope_id != known[key].root_cause_scope_id
    }
