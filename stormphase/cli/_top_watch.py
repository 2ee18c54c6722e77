"""Looks at a running job's journals again and again, from outside: what each rank does now, and its steps a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs

from stormphase._liveness import own_process
from stormphase.analysis._places import DEFAULT_HANG_NS, SECOND_NS
from stormphase.analysis._postmortem import Postmortem, diagnose
from stormphase.analysis._ranks import Past, ProcessReport, RankState
from stormphase.cli._journals import Selection, report_of, select
from stormphase.exceptions import JournalError
from stormphase.journal._glance import Glance
from stormphase.journal._read import read_journal

if TYPE_CHECKING:
    from pathlib import Path

    from stormphase._model import ProcessIdentity
    from stormphase.analysis._ranks import EndedPhase
    from stormphase.journal._image import JournalImage
    from stormphase.typing import Clock

    Paths = dict[tuple[str, ...], tuple[str, ...]]

# Steps a second are taken over so long: shorter and they jump, longer and a hang shows late.
WINDOW_NS: Final = 10 * SECOND_NS
LEAST_WINDOW_NS: Final = SECOND_NS // 4
# A rank stands still once nothing moves for so long, and for so many of its steps.
STILL_NS: Final = 2 * SECOND_NS
STILL_STEPS: Final = 3
# A moving rank's medians are renewed so often, and a look spends at most so long on whole readings.
RENEWED_NS: Final = 15 * SECOND_NS
READING_NS: Final = SECOND_NS // 20
_FIRST_ENDED: Final = 16
_MAY_GO_ON: Final = frozenset({RankState.RUNNING, RankState.SILENT})


class Pace:
    """How fast one rank walks: when it was first seen at each of its last steps."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._changes: deque[tuple[int, int]] = deque()
        self._guess: float | None = None
        self._seen_ns = 0
        self._still_ns = 0

    def note(self, at_ns: int, report: ProcessReport) -> None:
        """Take a step that was seen at `at_ns`; the first time, guess from the records what it was before."""
        step = report.step
        if step is None:
            return
        changes = self._changes
        if not changes:
            self._guess, self._still_ns = _pace_in(report)
        if changes and step < changes[-1][1]:
            changes.clear()  # A new epoch counts anew.
        if not changes or step != changes[-1][1]:
            if changes:
                self._still_ns = 0
            changes.append((at_ns, step))
        else:
            self._still_ns += at_ns - self._seen_ns
        self._seen_ns = at_ns
        # Steps may take longer than the window: then the last two are known all the same.
        while len(changes) > 2 and at_ns - changes[1][0] >= WINDOW_NS:  # noqa: PLR2004 - a difference needs two
            changes.popleft()

    def per_second(self) -> float | None:
        """Return steps a second, 0 for a rank that stands still for far longer than its steps took; None if unknown."""
        if not self._changes:
            return None
        (began_ns, first), (last_ns, last) = self._changes[0], self._changes[-1]
        is_measured = last_ns - began_ns >= LEAST_WINDOW_NS
        pace = (last - first) * SECOND_NS / (last_ns - began_ns) if is_measured else self._guess
        if pace is None:
            return 0.0 if self._still_ns >= WINDOW_NS else None
        return 0.0 if self._still_ns > max(STILL_NS, STILL_STEPS * SECOND_NS / pace) else pace


def _pace_in(report: ProcessReport) -> tuple[float | None, int]:
    """Return steps a second in what ended last, and for how long nothing has ended since: it may hang.

    Measured from one end of a path to a later end of the same one: a whole number of steps.
    """
    ended = sorted((phase for phase in report.last_ended if phase.step is not None), key=lambda phase: phase.ended_ns)
    if not ended:
        return None, 0
    pace, longest_ns = None, 0
    firsts: dict[tuple[str, ...], EndedPhase] = {}
    for phase in ended:
        first = firsts.setdefault(phase.path, phase)
        steps, lasted_ns = (phase.step or 0) - (first.step or 0), phase.ended_ns - first.ended_ns
        if steps > 0 and lasted_ns > longest_ns:
            pace, longest_ns = steps * SECOND_NS / lasted_ns, lasted_ns
    return pace, max(0, report.measured_ns - ended[-1].ended_ns)


@attrs.frozen(kw_only=True)
class Snapshot:
    """What is shown at one moment.

    Attributes:
        postmortem: what is known of the job.
        paces: steps a second by rank; None where unknown.
        unreadable: how many journals cannot be read.
        at_ns: when, ns since the Unix epoch.
        reading_ns: how long the last look took.
        oldest_ns: how old the oldest of what is shown is.
    """

    postmortem: Postmortem
    paces: Mapping[int, float | None]
    unreadable: int
    at_ns: int
    reading_ns: int
    oldest_ns: int


class _Rank:
    """One journal that is watched: glanced at each time, and read as a whole when it stands still, or now and then."""

    def __init__(self, file: Path) -> None:
        """Nothing read yet."""
        self.report: ProcessReport | None = None
        self.seen_ns = -1
        self.pace = Pace()
        self._file = file
        self._glance = Glance(file)
        self._past: Past | None = None
        self._read_ns = 0
        self._moved_ns = 0
        self._doing: tuple[object, ...] = ()
        self._known_ns = 0

    @property
    def may_go_on(self) -> bool:
        """Whether there may be something new in it."""
        return self.report is None or self.report.state in _MAY_GO_ON

    def look(self, clock: Clock, this: ProcessIdentity, paths: Paths, *, may_read: bool) -> bool:
        """Look at it again; return whether all of it was read.

        A whole reading takes three times as long, and tells how often each path ended. That is needed to say who
        waits for whom, which nobody asks of a rank that is on its way.

        Raises:
            JournalError: as `read_journal`.
        """
        now_ns = clock.monotonic_ns()
        past = self._past
        if past is None:
            self._read(now_ns, clock, this, paths, last=_FIRST_ENDED)
            return True
        image = self._glance.look()
        doing = _doing_in(image)
        # What began and ended between two looks shows only in when that was.
        if doing != self._doing or self._glance.latest_ns > self._known_ns:
            self._doing = doing
            self._known_ns = max(self._known_ns, self._glance.latest_ns)
            self._moved_ns = now_ns
        has_moved = self._read_ns < self._moved_ns
        is_due = self._moved_ns < now_ns or now_ns - self._read_ns > RENEWED_NS
        if image.end_note is not None or (may_read and has_moved and is_due):
            # Of one that has ended, the last phases say where it was then.
            self._read(now_ns, clock, this, paths, last=0 if image.end_note is None else _FIRST_ENDED)
            return True
        # Counts are as of the last whole reading: exact only if it has not moved since.
        past = past if self._moved_ns <= self._read_ns else attrs.evolve(past, is_exact=False)
        self._take(report_of(image, clock, this, last=0, paths=paths, past=past), now_ns)
        return False

    def _read(self, now_ns: int, clock: Clock, this: ProcessIdentity, paths: Paths, *, last: int) -> None:
        image = read_journal(self._file, ended_limit=last)
        self._past = Past.of(image, paths)
        self._doing = _doing_in(image)
        self._known_ns = image.heartbeat_ns
        self._read_ns = now_ns
        self._take(report_of(image, clock, this, last=last, paths=paths), now_ns)

    def _take(self, report: ProcessReport, now_ns: int) -> None:
        self.report = report
        self.seen_ns = now_ns
        self.pace.note(now_ns, report)


def _doing_in(image: JournalImage) -> tuple[object, ...]:
    return (image.step, image.end_note is None, *(phase.sequence for phase in image.open))


class Watch:
    """The journals of one attempt, or of whichever is the newest. Not thread-safe.

    Args:
        directory: the directory of journals.
        session_id: the session, or None for the newest.
        attempt: its attempt, or None for the newest.
        clock: where times come from.
        hang_ns: see `diagnose`.

    Raises:
        StormphaseError: if there is nothing to watch.
    """

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        *,
        session_id: str | None = None,
        attempt: int | None = None,
        hang_ns: int = DEFAULT_HANG_NS,
    ) -> None:
        """Find the journals; `look` reads them."""
        self._directory = directory
        self._wanted = (session_id, attempt)
        self._clock = clock
        self._hang_ns = hang_ns
        self._this = own_process()
        self._watched: dict[Path, _Rank] = {}
        self._failed: dict[Path, JournalError] = {}
        self._paths: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._reading_ns = 0
        self._selection = self._select()

    def find(self) -> None:
        """Look for journals that are new: of ranks that came later, of forked children, of the next attempt.

        Raises:
            StormphaseError: if none is left.
        """
        self._selection = self._select()
        files = set(self._selection.files)
        for file in self._watched.keys() - files:
            del self._watched[file]
        for file in self._failed.keys() - files:
            del self._failed[file]

    def look(self, budget_ns: int | None = None) -> None:
        """Read the journals of all that may go on, those first that were not read for the longest.

        Args:
            budget_ns: stop after so long, and go on from there the next time; None to read all.
        """
        began_ns = self._clock.monotonic_ns()
        reading_ns = 0
        for file in sorted(self._selection.files, key=self._last_seen_ns):
            rank = self._watched.get(file)
            if rank is None:
                rank = self._watched[file] = _Rank(file)
            if not rank.may_go_on:
                continue
            looked_ns = self._clock.monotonic_ns()
            try:
                has_read = rank.look(self._clock, self._this, self._paths, may_read=reading_ns < READING_NS)
                self._failed.pop(file, None)
            except JournalError as error:
                self._failed[file] = error
                del self._watched[file]
                continue
            now_ns = self._clock.monotonic_ns()
            reading_ns += now_ns - looked_ns if has_read else 0
            if budget_ns is not None and now_ns - began_ns > budget_ns:
                break
        self._reading_ns = self._clock.monotonic_ns() - began_ns

    def snapshot(self) -> Snapshot:
        """Return what is known now.

        Raises:
            JournalError: if no journal could be read.
        """
        known = [(rank.report, rank) for rank in self._watched.values() if rank.report is not None]
        if not known:
            raise next(iter(self._failed.values()))
        postmortem = diagnose(
            [report for report, _ in known], other_attempts=self._selection.other_attempts, hang_ns=self._hang_ns
        )
        paces = {report.process: rank.pace for report, rank in known}
        now_ns = self._clock.monotonic_ns()
        return Snapshot(
            postmortem=postmortem,
            paces={rank.rank: paces[rank.own.process].per_second() for rank in postmortem.ranks},
            unreadable=len(self._failed) + len(self._selection.unreadable),
            at_ns=self._clock.wall_ns(),
            reading_ns=self._reading_ns,
            oldest_ns=now_ns - min((rank.seen_ns for _, rank in known if rank.may_go_on), default=now_ns),
        )

    def _select(self) -> Selection:
        session_id, attempt = self._wanted
        return select(self._directory, session_id=session_id, attempt=attempt)

    def _last_seen_ns(self, file: Path) -> int:
        rank = self._watched.get(file)
        return -1 if rank is None else rank.seen_ns
