"""Signal handlers that raise, or that use phases themselves, wherever they may run, while a journal is written."""

from __future__ import annotations

import contextlib

import interrupts
import pytest
from interrupts import Strike, no_trio, watched_code  # noqa: F401 - the latter are fixtures
from journal_writing import SLOTS, Writing, count_of

from stormphase._phase import FINAL
from stormphase.exceptions import PhaseProtocolError
from stormphase.journal._fold import ORPHAN_TICKS

LEAST_POINTS = 20
OTHERS_STEP = 7
SETTLE_EVERY = 24
LARGE = {f"k{number}": "x" * 900 for number in range(5)}


def nest_largely(lanes):
    """Nest phases whose attributes soon fill a segment, with one of a new name."""
    with lanes.enter_phase("a", LARGE), lanes.enter_phase("b", LARGE), lanes.enter_phase("c"):
        pass


def nest_without_room(lanes):
    """The same, where each further segment must be cleared by the thread itself."""
    nest_largely(lanes)
    nest_largely(lanes)


def retry_and_pause(lanes):
    """Write a phase anew several times."""
    with lanes.enter_phase("a", LARGE) as first:
        pass
    with lanes.retry(first, LARGE) as phase:
        phase.pause()
        phase.resume()
        phase.set_attribute("late", 1)


SCENARIOS = [
    interrupts.nest,
    interrupts.set_attributes,
    interrupts.fail,
    interrupts.close_by_hand,
    interrupts.pause,
    interrupts.hand_over,
    interrupts.reset,
    nest_largely,
    nest_without_room,
    retry_and_pause,
]
# The longest ones: what raises is tried at every so many places.
STEPS = {interrupts.hand_over: 3, interrupts.reset: 3, interrupts.fail: 2, interrupts.close_by_hand: 3}
STEPS |= {retry_and_pause: 3, interrupts.pause: 2, nest_without_room: 7}


class Play:
    """One journal that a scenario is played into many times."""

    def __init__(self, path):
        self.writing = Writing(path)
        self.lanes = self.writing.lanes
        self.entered = []
        self.ended = []
        self.lanes.enter_queues = (lambda one: self.entered.append(one[0]),)
        self.lanes.exit_queues = (self.ended.append,)
        self.count = 0
        self.in_limbo = set()

    def prepare(self, number, *, has_room):
        """Leave a few places in the current segment, so that some interrupts come where segments change."""
        while not has_room and len(self.writing.segments) > 4:
            self.writing.fill(count=SLOTS)
        writer = self.lanes.lane_of_caller().writer
        left = (writer.last_slot - writer.slot) // 72 + 1
        wanted = number % 5
        if left > wanted:
            self.writing.fill(count=left - wanted)
        self.count += len(self.ended)
        self.entered.clear()
        self.ended.clear()

    def finish(self, place, most_in_limbo):
        """End what is open, and compare what the journal says."""
        self.lanes.close("over")
        self.lanes.enter_phase("next").close()
        image = self.writing.read(ended_limit=40)
        ended = {phase.sequence: phase for phase in image.ended}
        opened = {phase.sequence for phase in image.open}
        assert () == image.damage, place
        assert len(ended) == len(image.ended), f"{place}: ended twice"
        for phase in self.ended:
            assert phase._status in FINAL
            if phase._sequence in ended and phase._sequence not in self.in_limbo:
                found = ended[phase._sequence]
                if found.status_text is None or "interrupt" not in found.status_text:
                    assert (phase._status, phase._ended_ns) == (found.status, found.ended_ns), place
        self.count += len(self.ended)
        self.in_limbo |= opened
        missing = self.count - self.told(image)
        unclear = len(self.in_limbo)
        assert -unclear <= missing <= unclear, f"{place}: {missing} are missing"
        assert unclear <= most_in_limbo, f"{place}: {len(image.open)} seem open"
        self.ended.clear()

    def settle(self):
        """Let the worker do all it can, and ten seconds pass."""
        self.writing.fill(count=2 * SLOTS)
        self.count += len(self.ended)
        self.ended.clear()
        self.writing.tick(ORPHAN_TICKS + 2)
        image = self.writing.read(ended_limit=0)
        assert () == image.open
        missing = self.count - self.told(image)
        assert -len(self.in_limbo) <= missing <= len(self.in_limbo)
        self.count = self.told(image)
        self.in_limbo.clear()

    @staticmethod
    def told(image):
        """Return of how many phases a journal knows: those for which there was no room are counted, too."""
        return count_of(image) + image.unwritten


@pytest.fixture
def play(tmp_path):
    """Return a journal to play into."""
    made = Play(tmp_path / "rank-0.journal")
    yield made
    made.writing.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_an_interrupt_at_any_place_costs_the_journal_at_most_that_phase(play, scenario):
    """What ended says so, nothing is told twice, and what the interrupt left unclear is cleared after a while."""
    number = limbo = tries = 0
    while True:
        play.prepare(number, has_room=scenario is not nest_without_room)
        interrupt = KeyboardInterrupt()

        def interrupt_now(interrupt=interrupt):
            raise interrupt

        strike = Strike(number, interrupt_now)
        with contextlib.suppress(KeyboardInterrupt), strike:
            scenario(play.lanes)
        if not strike.has_struck:
            break
        before = len(play.in_limbo)
        play.finish(f"place {number}: {strike.place}", before + 1)
        limbo += len(play.in_limbo) - before
        tries += 1
        if not tries % SETTLE_EVERY:
            play.settle()
        number += STEPS.get(scenario, 1)
    play.lanes.close("over")
    play.settle()
    assert number > LEAST_POINTS
    assert limbo <= number // 20


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_handler_that_uses_phases_at_any_place_costs_the_journal_nothing(play, scenario):
    """It fills segments, sees new names, and the worker folds at once: every phase is there, and once."""
    number = 0
    while True:
        play.prepare(number, has_room=scenario is not nest_without_room)

        def handle(number=number):
            with play.lanes.enter_phase(f"handler {number}", LARGE), play.lanes.enter_phase("inner", LARGE):
                play.writing.fill(count=3)
            if not play.writing.folder._owner:  # Else the worker would wait.
                play.writing.fold()

        strike = Strike(number, handle)
        with contextlib.suppress(PhaseProtocolError), strike:
            scenario(play.lanes)
        if not strike.has_struck:
            break
        play.finish(f"place {number}: {strike.place}", 0)
        number += OTHERS_STEP
    play.settle()
    assert number > LEAST_POINTS
