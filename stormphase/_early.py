"""Phases that are entered before a session is up: kept with all that happens to them, and told as soon as it is."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from stormphase._phase import FINAL
from stormphase.journal._writer import SCRATCH_SLOT, LostWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stormphase._lane import PhaseWriter
    from stormphase._lanes import LaneSet, Publish
    from stormphase._phase import PhaseHandle

EARLY_LANE: Final = "early_lane"
START_WAIT_S: Final = 5.0  # for another thread that asks for a lane while the session starts
EARLY_LANE_MESSAGE: Final = (
    "A lane was asked for before the session was up: there is no journal yet for what is entered on it, and no sink. "
    "Ask for it in `Session._let_phases_in`, or later. (Without these checks it is repaired, and counted.)"
)
_QUEUES: Final = ("enter_queues", "exit_queues", "quiet_queues")


class EarlyPhases(LostWriter):
    """Stands where the journal's writer and the sinks' queues of a session will stand, until `tell`.

    A lane that is made meanwhile is given this for its writer. Used by the thread that brings the session up, and by
    signal handlers on it; other threads wait until it is up.
    """

    __slots__ = ("_entered", "_lanes", "_notes", "_sinks", "_untold")

    def __init__(self, lanes: LaneSet) -> None:
        """Keep what is entered on lanes that are made from now on, unless `tell` is called first."""
        super().__init__(_count_nothing)
        self._lanes = lanes
        self._entered: list[PhaseHandle] = []
        self._untold: deque[tuple[str, Any]] = deque()
        self._notes: dict[str, Publish] = {}
        self._sinks: Mapping[str, tuple[Publish, ...]] = {}
        lanes.early = self

    def stand_for_sinks(self) -> None:
        """Keep also what the sinks are to be told: they are not connected yet."""
        for queues in _QUEUES:
            self._notes[queues] = functools.partial(self._note, queues)
            setattr(self._lanes, queues, (self._notes[queues],))

    def give_way_to(self, sinks: Mapping[str, tuple[Publish, ...]]) -> None:
        """Put the sinks' queues where this one's stand; what captured descriptors have put beside them stays."""
        self._sinks = sinks
        for queues, note in self._notes.items():
            now = getattr(self._lanes, queues)
            setattr(
                self._lanes,
                queues,
                tuple(itertools.chain(*(sinks[queues] if each is note else (each,) for each in now))),
            )

    def _note(self, queues: str, entry: Any) -> None:
        self._untold.append((queues, entry))

    def enter(self, phase: PhaseHandle) -> None:
        """Keep a phase that has just been entered."""
        phase._slot = SCRATCH_SLOT
        self._entered.append(phase)

    @property
    def first_entered_ns(self) -> int | None:
        """When the first of them was entered, monotonic; None if there is none."""
        return min((phase._entered_ns for phase in self._entered), default=None)

    def tell(self) -> int:
        """Give the lanes their journal, write there what was entered, and tell the sinks, which are connected now.

        Returns:
            How many lanes were made too early.
        """
        lanes = self._lanes
        lanes.early = None
        repaired = self._give_writers()
        self._write()
        while self._untold:
            queues, entry = self._untold.popleft()
            for append in self._sinks[queues]:
                append(entry)
        return repaired

    def _give_writers(self) -> int:
        journal = self._lanes.journal
        writers: dict[int, PhaseWriter] = {}  # One a thread, which its tasks share.
        repaired = 0
        # Those of tasks that have ended are not listed any more.
        for lane in dict.fromkeys((*self._lanes.lanes(), *(phase._lane for phase in self._entered))):
            if lane.writer is not self:
                continue
            repaired += 1
            self._lanes.counts.add(EARLY_LANE)
            lane.writer = None
            if journal is not None:
                if lane.thread_id not in writers:
                    writers[lane.thread_id] = journal.new_writer(lane)
                lane.writer = writers[lane.thread_id]
                lane.write_exit = journal.write_exit
        return repaired

    def _write(self) -> None:
        journal = self._lanes.journal
        if journal is None:
            return
        is_open = {phase._sequence: phase for phase in self._lanes.open_phases()}
        ended = {entry._sequence: entry for queues, entry in self._untold if queues != "enter_queues"}
        for entered in tuple(self._entered):
            number = entered._sequence
            phase = is_open.get(number) or ended.get(number) or entered  # Not the same if it was acquired since.
            if (phase._status not in FINAL and number not in is_open) or phase._lane.writer is None:
                continue  # A signal handler raised into its enter, which was taken back.
            phase._lane.writer.enter(phase)
            if phase._status in FINAL:
                journal.end(phase)
            elif phase._extra is not None:
                journal.renew(phase)


def _count_nothing() -> None:
    """Count no phase as unwritten: it will be written."""
