"""What programs do with phases, boundary by boundary, and the truth about it; as a program, killed at some store."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    _spec = importlib.util.spec_from_file_location("faults_conftest", Path(__file__).with_name("conftest.py"))
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))

from faults_stores import DOORS
from faults_truth import Truth
from journal_writing import Writing

from stormphase._model import PhaseStatus
from stormphase.journal import _format, _journal
from stormphase.journal._file import CHUNK_SEGMENTS, MIN_BYTES
from stormphase.journal._source import BytesSource
from stormphase.journal._story import read_source

LARGE = {f"k{number}": "x" * 900 for number in range(5)}  # three such phases fill a segment
MAX_ENDED = 16
LONG = 2 * MIN_BYTES + _format.SEGMENT


class Play:
    """Does what a program does with phases, and keeps the truth about it."""

    def __init__(self, path, max_bytes=MIN_BYTES, doors="python"):
        self.truth = Truth()
        self.is_quiet = False
        self.act = "make"
        self._other = None
        with mock.patch.object(_journal, "JournalFile", DOORS[doors]):
            self.writing = Writing(path, max_bytes)
        self.lanes = self.writing.lanes
        self.journal = self.writing.journal
        self.file = self.writing.file

    def note(self, phase, **facts):
        """Remember what is true of an open phase from now on."""
        known = self.truth.open.setdefault(phase._sequence, {})
        known.update(
            path=phase.path,
            entered_ns=phase._entered_ns,
            step=phase._step,
            attributes=phase._attributes or {},
            parent_scope_id=None if phase.parent is None else phase.parent.scope_id,
            thread_name=phase._lane.thread_name,
            status=PhaseStatus.ACTIVE,
        )
        known.update(facts)

    def enter(self, name, attributes=None, **options):
        """Enter a phase."""
        self.act = f"enter {name}"
        lane = self.lanes.lane_of_caller()
        self.truth.entering.append((*lane.top._path.names, name))
        phase = self.lanes.enter_phase(name, attributes, **options)
        self.truth.entering.clear()
        self.note(phase)
        return phase

    def exit(self, phase, error=None):
        """End a phase."""
        self.act = f"exit {phase.name}"
        self.truth.pending.add(phase._sequence)
        phase.__exit__(type(error) if error else None, error, None)
        facts = self.truth.open.pop(phase._sequence)
        late = (phase._extra.late if phase._extra else None) or {}
        attributes = {**facts["attributes"], **late}
        self.truth.ended[phase._sequence] = {
            **facts,
            "status": phase._status,
            "ended_ns": phase._ended_ns,
            "attributes": attributes,
        }
        self.truth.pending.clear()

    def change(self, phase, call, *arguments, **facts):
        """Do something to an open phase that it then tells of."""
        self.act = call.__name__
        self.truth.changing.add(phase._sequence)
        result = call(*arguments)
        self.truth.open[phase._sequence].update(facts)
        self.truth.changing.clear()
        return result

    def do(self, name, call, *arguments):
        """Do what changes no phase."""
        self.act = name
        return call(*arguments)

    def fill(self, segments, name="filler"):
        """Fill so many segments, three phases each."""
        for _ in range(3 * segments):
            self.exit(self.enter(name, LARGE))

    def fold(self):
        """Fold what is full."""
        self.do("fold", self.writing.fold)

    def tick(self, times=1):
        """Let some fifths of a second pass."""
        self.do("tick", self.writing.tick, times)

    def elsewhere(self, call, *arguments):
        """Do something in another thread, always the same one."""
        if self._other is None:
            self._other = ThreadPoolExecutor(1, thread_name_prefix="other")
        return self._other.submit(call, *arguments).result()

    def quietly(self, call, *arguments):
        """Do something after whose stores nobody looks."""
        self.is_quiet = True
        call(*arguments)
        self.is_quiet = False


def plain(play):
    """Nesting, steps, attributes, failures, late attributes, and the words of the header."""
    play.lanes.step = 3
    play.do("step", play.journal.note_step, 3)
    train = play.enter("train", {"epochs": 3, "name": "r\u00e9snet"})
    for number in range(3):
        with_error = play.enter("step")
        deep = [play.enter(name, sync=True) for name in ("forward", "layer", "attention")]
        for phase in reversed(deep):
            play.exit(phase)
        failing = play.enter("load", {"batch": number})
        failing.set_attribute("late", [number])
        play.exit(failing, ValueError("bad batch"))
        play.exit(with_error, KeyboardInterrupt() if number == 2 else None)
    play.do("beat", play.file.beat, 5, 6)
    play.do("beat", play.file.beat, 7, 8)
    play.do("stop signal", play.journal.note_stop_signal, 15)
    play.do("stacks", play.journal.put_stacks, {"at_ns": 1, "sequence": 1, "limit_ns": 1, "threads": []})
    play.exit(train)
    play.do("end note", play.file.put_end_note, b'{"kind": "clean", "ended_ns": 5}')


def moves(play):
    """Pauses, retries and changes of hands, with folds that move phases before and after each."""
    train = play.enter("train", {"k": 1})
    play.fill(1)
    play.fold()
    paused = play.enter("load", {"k": [1, 2]})
    play.change(paused, paused.pause, status=PhaseStatus.PAUSED)
    play.fill(2)
    play.fold()
    play.change(paused, paused.resume, status=PhaseStatus.ACTIVE)
    play.fill(1)
    play.fold()
    play.exit(paused)
    play.truth.entering.append(("train", "load"))
    again = play.do("retry", play.lanes.retry, paused, {"k": 2})
    play.truth.entering.clear()
    play.note(again, attempt=1)
    token = play.change(again, again.release, status=PhaseStatus.PAUSED)
    play.fill(2)
    play.fold()
    taken = play.change(again, play.elsewhere, play.lanes.acquire, token)
    play.note(taken, thread_name="other_0", attempt=1, parent_scope_id=train.scope_id)
    play.elsewhere(play.fill, 2)
    play.fold()
    play.elsewhere(play.exit, taken, ValueError("bad"))
    play.fill(3)
    play.fold()
    play.tick(2)
    play.exit(train)


def names(play):
    """Names that fill segments of strings, paths and buckets that fill segments of totals."""
    chars = "".join(chr(ord("a") + number % 26) for number in range(200))
    play.quietly(lambda: [play.exit(play.enter(f"{number}{chars}")) for number in range(74)])
    for number in range(80, 86):
        play.exit(play.enter(f"{number}{chars}"))
    play.fold()
    for number in range(8):
        phase = play.enter(f"{number % 2}")
        play.lanes.now.__self__.now_ns += 30**number
        play.exit(phase)
    play.fill(2)
    play.fold()


def room(play):
    """Segments that are used again, and discards where nobody folds; the file is as long as it may be."""
    train = play.enter("train", {"k": 1})
    play.quietly(play.fill, CHUNK_SEGMENTS)
    play.fill(1)  # The thread makes room itself.
    play.fold()
    play.fill(1)
    play.exit(train)


def growth(play):
    """The file becomes longer, up to its limit, and what comes then."""
    train = play.enter("train", {"k": 1})
    play.do("grow", play.journal._make_room)
    assert 2 * CHUNK_SEGMENTS == play.file.segments
    play.exit(play.enter("load", LARGE))
    play.do("grow", play.journal._grow)
    assert 2 * CHUNK_SEGMENTS + 1 == play.file.segments
    play.exit(train)


def orphans(play):
    """An enter that is taken back, and a slot that nobody knows of any more."""
    phase = play.enter("train")
    lane = phase._lane
    lane.top = lane
    play.truth.pending.add(phase._sequence)
    play.do("take back", play.journal.take_back, phase)
    del play.truth.open[phase._sequence]
    play.truth.pending.clear()
    lost = play.enter("lost")
    lane.top = lane
    play.truth.pending.add(lost._sequence)
    for _ in range(6):
        play.truth.entering.append(("load",))
        play.lanes.enter_phase("load", LARGE).close()
    play.tick(52)


SCRIPTS = [plain, moves, names, room, growth, orphans]


def perform(script, path, told, doors="python"):
    """Run a script, and call `told` with the play and the number of each store through such doors, right after it."""
    play = Play(path, LONG if script is growth else MIN_BYTES, doors)
    wrong = []

    def look(store):
        if play.is_quiet or wrong:
            return
        try:
            told(play, store)
        except BaseException as error:  # Raised here, it could be taken for the journal's own, which hurts nobody.
            wrong.append(error)

    play.file.told = look
    try:
        script(play)
    finally:
        play.file.told = None
        play.file.let_go()
        play.lanes.close("over")
        play.writing.close()
        if play._other is not None:
            play._other.shutdown()
        if wrong:
            raise wrong[0]


def image_of(content):
    """Return what a dead process's file says."""
    return read_source(BytesSource(content), Path("rank-0.journal"), ended_limit=MAX_ENDED)


def _kill_at(number):
    def told(_, store):
        if store == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return told


def main(directory, *stops):
    """Leave journals of processes that were killed: each stop is `SCRIPT:STORE:DOORS`."""
    for stop in stops:
        name, number, doors = stop.split(":")
        pid = os.fork()
        if not pid:
            perform(globals()[name], Path(directory) / f"rank-{name}-{number}.journal", _kill_at(int(number)), doors)
            os._exit(1)
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            raise AssertionError(f"{stop} was not killed")


if __name__ == "__main__":
    main(*sys.argv[1:])
