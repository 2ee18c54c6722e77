"""A running process's journal, as lanes and the session see it: opened at start, and renewed in a forked child."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from stormphase import _drain
from stormphase._counts import reading
from stormphase._model import EndKind
from stormphase._status import is_orderly_exit, session_status_of
from stormphase.journal import _format
from stormphase.journal._file import CHUNK_SEGMENTS, JournalFile
from stormphase.journal._fold import Folder
from stormphase.journal._phase_facts import has_more_to_say
from stormphase.journal._segments import Segments
from stormphase.journal._strings import StringTable
from stormphase.journal._totals import Totals
from stormphase.journal._writer import SCRATCH_SLOT, LostWriter, SegmentWriter, write_nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from stormphase._lane import Lane
    from stormphase._lanes import LaneSet
    from stormphase._model import PhaseError, ProcessIdentity
    from stormphase._phase import PhaseHandle
    from stormphase.journal._phase_facts import PhaseTrace

NAME: Final = "journal"
# So few free segments, and the worker is woken to see to it that there are more: a thread that does nothing but enter
# and exit phases uses up forty in the time for which CPython lets it keep the GIL.
_LOW: Final = 48
_ENOUGH: Final = 96
_HISTORY_SHARE: Final = 4
_FREE_SHARE: Final = 2
_TRIES: Final = 8
_FOLDS_IN_NEED: Final = 8
_CLEARED_AT_ONCE: Final = 2  # One goes, with each full segment, and another one, to make up for what was put off.
_NOTE_CHARS: Final = (4_096, 3_500, 2_000, 1_000, 500, 100)  # of each text, as many as there is room for
_RETRY_NS: Final = 5_000_000_000

_log = logging.getLogger("stormphase")


class OpenJournal:
    """The journal that a process writes. Phases are written on their own threads, all else on one worker.

    Args:
        path: the file; must not exist.
        max_bytes: how long it may become.
        lanes: whose phases are written.
        process: who writes.
        facts: what the header says of the session, as JSON goes.
        phase_trace: says which phases have a trace of their own; None if none has.
        counts_unsent: whether ended phases are to be handed over to a bridge.

    Raises:
        OSError: if the file cannot be made.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        lanes: LaneSet,
        process: ProcessIdentity,
        facts: Mapping[str, Any],
        *,
        phase_trace: PhaseTrace | None = None,
        counts_unsent: bool = False,
    ) -> None:
        """Create the file; `start` starts the worker."""
        self.file = file = JournalFile(path, max_bytes)
        self.lanes = lanes
        self.phase_trace = phase_trace
        self._is_over = False
        self._writers: set[SegmentWriter] = set()  # of living threads
        self.write_exit: Callable[..., None] = file.put_exit
        clock = lanes.clock
        file.complete(
            id_base=lanes.id_base,
            anchor=lanes.anchor,
            process=process,
            facts=encoded_facts(facts),
            now=(clock.monotonic_ns(), clock.wall_ns()),
        )
        self._segments = segments = Segments(file)
        self._strings = StringTable(file, segments)
        self._folder = Folder(
            file,
            segments,
            Totals(file, segments),
            lanes.open_phases,
            self._writer_of((0, 0, _format.MOVED)),
            counts_unsent=counts_unsent,
        )
        self._history = max(1, max_bytes // _format.SEGMENT // _HISTORY_SHARE)
        self._history = min(self._history, CHUNK_SEGMENTS)
        self._has_warned = False
        self._has_warned_of_deletion = False
        self._next_growth_ns = 0
        self._lost_writer = LostWriter(self.note_unwritten)
        self._unwritten = itertools.count()  # `next` on it is one C call: no count is lost between threads.
        self._put_off: deque[int] = deque()  # full segments that could not be folded yet
        self._visitors = threading.local()
        self._watches: list[Callable[[], object]] = []
        self._worker = _drain.SinkWorker(
            NAME,
            self._take,
            offered=lambda: 0,
            tick=self._tick,
            prepare=lanes.mute_this_thread,
            bound=max_bytes // _format.SEGMENT,
        )
        self._strings.number_paths(lanes.paths)
        self.note_step(lanes.step)

    # Called on threads that enter and exit phases

    @property
    def path(self) -> Path:
        """Where it stands."""
        return self.file.path

    def new_writer(self, lane: Lane) -> SegmentWriter | LostWriter:
        """Return what the thread of `lane`, which is new, writes with."""
        self._worker.start()
        if self.file.is_lost:
            return self._lost_writer
        is_main = lane.thread_id == threading.main_thread().ident
        number = self._strings.of_thread(lane.thread_name)
        return self._writer_of((lane.thread_id, number, _format.MAIN_THREAD if is_main else 0))

    def _writer_of(self, thread: tuple[int, int, int]) -> SegmentWriter:
        writer = SegmentWriter(self, thread)
        self._writers.add(writer)
        if self._is_over:  # Since before or after the last line: in between, `_let_go` may not have seen it.
            self.retire(writer)
        return writer

    def retire(self, writer: SegmentWriter | LostWriter) -> None:
        """Take over what the writer of an ended thread leaves."""
        segment = writer.segment
        writer.leave_segment()
        writer.let_go()
        self._writers.discard(writer)
        if segment is not None and not self._is_over:
            self.note_full(segment)

    def next_segment(self, writer: SegmentWriter, thread: tuple[int, int, int]) -> int | None:
        """Return a clean segment for `writer`, whose last one is full; None if there is none."""
        if self._is_over:
            return None
        segment = None
        with self._unless_cut():
            segment = self._next_segment(writer, thread)
        return segment  # noqa: RET504 - the block may be left by an error, and then it is None

    def _next_segment(self, writer: SegmentWriter, thread: tuple[int, int, int]) -> int | None:
        is_for_moving = thread[2] == _format.MOVED
        segment = self._segments.take(_format.PHASES, writer, thread=thread, is_for_moving=is_for_moving)
        # Once may not do: another thread, or what had to move, may take it.
        tries = 0 if is_for_moving else _TRIES
        while segment is None and tries and self._folder.make_room(self._worker.take_back):
            segment = self._segments.take(_format.PHASES, writer, thread=thread)
            tries -= 1
        if len(self._segments) < _LOW:
            self._worker.wake()
        return segment

    def note_unwritten(self) -> None:
        """Count a phase for which there was no room."""
        next(self._unwritten)
        if self.file.is_lost:
            return
        self.file.put_word(_format.UNWRITTEN, reading(self._unwritten))

    def note_full(self, segment: int) -> None:
        """Have a segment folded that its writer has left."""
        self._worker.publish(segment)

    def end(self, phase: PhaseHandle) -> None:
        """Write that a phase has ended in another way than `PhaseHandle.__exit__` does; from any thread."""
        if getattr(phase, "_slot", SCRATCH_SLOT) == SCRATCH_SLOT:
            return
        word = phase._sequence | _format.STATUS_CODES[phase._status] << _format.STATUS_SHIFT
        try:
            if has_more_to_say(phase):
                (self._writer_here() or self._new_visitor()).rewrite(phase, word=word)
                return
        except BaseException as error:
            self.write_exit(phase._slot, phase._ended_ns, phase._children_ns, word)
            if not isinstance(error, Exception):  # A signal handler raised.
                raise
            return  # No memory: then without details, and the program's own exception passes.
        self.write_exit(phase._slot, phase._ended_ns, phase._children_ns, word)

    def renew(self, phase: PhaseHandle) -> None:
        """Write what has changed of an open phase: it was paused, resumed, or is a retry."""
        writer = self._writer_here()
        if writer is not None and getattr(phase, "_slot", SCRATCH_SLOT) != SCRATCH_SLOT:
            with contextlib.suppress(Exception):  # No memory: it stands there as it was.
                writer.rewrite(phase)

    def take_back(self, phase: PhaseHandle) -> None:
        """Undo an enter into which a signal handler raised."""
        if self.file.is_lost:
            return
        slot = getattr(phase, "_slot", SCRATCH_SLOT)
        words = self.file.words
        if words[(slot + _format.SEQUENCE_AT) >> 3] == phase._sequence:  # Else it was not written.
            void = phase._sequence | _format.VOID << _format.STATUS_SHIFT
            words[(slot + _format.WORD_AT) >> 3] = void

    def note_step(self, step: int | None) -> None:
        """Write the step that was set."""
        if self.file.is_lost:
            return
        self.file.put_word(_format.STEP, _format.NO_STEP if step is None else step)

    def _writer_here(self) -> SegmentWriter | None:
        lane = self.lanes.lane_of_thread()
        writer = None if lane is None else lane.writer
        return writer if isinstance(writer, SegmentWriter) else None

    def _new_visitor(self) -> SegmentWriter:
        """Return what a thread without phases of its own writes with, as one that stops the session does."""
        visitor = getattr(self._visitors, "writer", None)
        if visitor is None:
            number = self._strings.of_thread(threading.current_thread().name)
            visitor = self._visitors.writer = SegmentWriter(self, (threading.get_ident(), number, 0))
        return visitor

    # Called by the session

    def start(self) -> None:
        """Start the worker."""
        self._worker.start()

    def watch(self, look: Callable[[], object]) -> None:
        """Have `look` called about every 0.2 s on the worker."""
        self._watches.append(look)

    def note_stop_signal(self, number: int) -> None:
        """Write that a signal asks the process to stop."""
        self.file.put_word(_format.STOP_ASKED_NS, self.lanes.now())
        self.file.put_word(_format.STOP_SIGNAL, number)

    def note_handed_over(self, phases: Sequence[PhaseHandle]) -> None:
        """Write that the bridge has some ended phases; on the bridge's worker."""
        if self.file.is_lost:
            return
        self._folder.note_handed_over(phases)

    def put_stacks(self, stacks: Mapping[str, Any]) -> bool:
        """Store the stacks of all threads; False if there is no room."""
        data = json.dumps(stacks).encode()
        if len(data) > _format.SEGMENT - _format.FIRST_SLOT or self.file.is_lost:
            return False
        segment = self._segments.take(_format.STACKS)
        if segment is None:
            return False
        self.file.put_bytes(segment + _format.FIRST_SLOT, data)
        self.file.put_word(segment + _format.TEXT_LENGTH, len(data))
        return True

    def note_owners_sent(self) -> None:
        """Write that the bridge has sent the spans of rank and session; on the bridge's worker."""
        self.file.put_word(_format.OWNERS_UNSENT, 0)

    def put_end_note(self, note: Mapping[str, Any], *, owners_are_unsent: bool = False) -> None:
        """Write how the process ended, and whether the bridge has yet to send the spans of rank and session."""
        self._look_at_file()
        self.file.put_end_note(encoded_note(note), owners_are_unsent=owners_are_unsent)

    def finish(self, timeout_s: float, *, lets_go: bool = True) -> None:
        """End the worker, and close the file; what is entered later goes nowhere, and what is open can still end.

        Args:
            timeout_s: how long the worker may take.
            lets_go: False where somebody may still have to note something about ended phases, as the exporter of a
                bridge that did not deliver in time: then the mapping stays until nobody holds the journal any more.
        """
        try:
            self._worker.wait(self._worker.ask(timeout_s, is_last=True), timeout_s)
        finally:  # Also when an impatient KeyboardInterrupt ends the wait.
            self._worker.give_up()
            self._look_at_file()
            clock = self.lanes.clock
            self.file.beat(clock.monotonic_ns(), clock.wall_ns())
            self.file.close()
            if lets_go:
                self._let_go()

    def _let_go(self) -> None:
        self._is_over = True
        for writer in tuple(self._writers):
            self.retire(writer)
        # Now no phase gets a place any more. One that another thread has entered while the session stopped has one.
        if all(getattr(phase, "_slot", SCRATCH_SLOT) == SCRATCH_SLOT for phase in self.lanes.open_phases()):
            self.file.let_go()

    def forget(self) -> None:
        """Leave the file to the process that made it: this one is its forked child."""
        self._worker.after_fork_in_child()
        self._worker.give_up()
        self._strings.leave_paths(self.lanes.paths)
        self._is_over = True
        for writer in tuple(self._writers):
            writer.let_go()
        self.file.forget()

    def stats(self) -> dict[str, int]:
        """Return counts: bytes on the disk, phases folded into totals, those not written, whether it is lost."""
        return {
            "bytes": self.file.segments * _format.SEGMENT,
            "folded": self._folder.folded_count,
            "unwritten": reading(self._unwritten),
            "lost": int(self.file.is_lost),
        }

    # On the worker

    def _take(self, segment: int) -> None:
        self._look_at_file()
        if self.file.is_lost:
            return
        with self._unless_cut():
            self._make_room()
            self._fold(segment)
            # Where room is short, a little more of the GIL rather than phases that nobody adds up.
            for _ in range(_FOLDS_IN_NEED):
                if len(self._segments) >= _LOW or (full := self._worker.take_back()) is None:
                    break
                self._fold(full)

    def _fold(self, segment: int) -> None:
        # Who waits for the end of it has more of that than of a worker that is polite.
        is_urgent = self._worker.is_awaited or len(self._segments) < _LOW
        is_folded = self._folder.fold(segment, is_urgent=is_urgent)
        if not is_folded and self._segments.is_left(segment):
            self._put_off.append(segment)

    def _tick(self) -> None:
        self._look_at_file()
        clock = self.lanes.clock
        self.file.beat(clock.monotonic_ns(), clock.wall_ns())
        if not self.file.is_lost:
            with self._unless_cut():
                self._keep_room()
        self.lanes.lanes()  # Looks for threads that have ended.
        for look in self._watches:
            look()

    def _keep_room(self) -> None:
        self._folder.note_tick()
        if not self._has_warned_of_deletion and self.file.is_deleted:
            self._has_warned_of_deletion = True
            _log.warning(
                "stormphase: the journal %s has been deleted, so nobody will learn from it how this process ended; "
                "training goes on. The next session makes a new one.",
                self.file.path,
            )
        self._make_room()
        for _ in range(len(self._put_off)):
            self._fold(self._put_off.popleft())
        if not self._worker.stats()["queued"]:
            # Those whose writer was interrupted just when it had left them.
            self._put_off.extend(set(filter(self._segments.is_left, tuple(self._segments.in_use))) - set(self._put_off))

    @contextlib.contextmanager
    def _unless_cut(self) -> Iterator[None]:
        """Let an error pass that came of a file that somebody was cutting short: what is gone reads as zeros."""
        try:
            yield
        except Exception:
            self._look_at_file()
            if not self.file.is_lost:
                raise

    def _look_at_file(self) -> None:
        """Have nobody touch the file any more if somebody has cut it short."""
        if not (self.file.is_lost or self.file.has_been_cut()):
            return
        if not self.file.is_lost:
            self.write_exit = write_nothing
            self.file.leave_lost(self.lanes.now())
            _log.warning(
                "stormphase: somebody has cut the journal %s short while it was written, so nothing more is written "
                "there; training goes on. Let no program truncate journals (logrotate, rsync --inplace, `: > file`); "
                "the next session makes a new one.",
                self.file.path,
            )
        for lane in self.lanes.lanes():  # Each time, since one may have come meanwhile.
            lane.write_exit = write_nothing
            lane.writer = self._lost_writer

    def _make_room(self) -> None:
        cleared = 0
        while (free := len(self._segments)) < _ENOUGH:
            if cleared >= _CLEARED_AT_ONCE and free >= _LOW:
                return  # The next full segment, or the next tick, goes on: training may want the GIL.
            cleared += 1
            if self._segments.folded_count > self._history:
                if not self._folder.clear_oldest_folded():
                    return
            elif not self._grow():
                # What ended last is worth as much as room for what comes.
                is_enough = free >= self.file.segments // _FREE_SHARE
                if is_enough or not self._folder.clear_oldest_folded():
                    return

    def _grow(self) -> bool:
        now_ns = self.lanes.now()
        if not self.file.may_grow or now_ns < self._next_growth_ns or self.file.has_been_cut():
            return False
        try:
            self._segments.add(self.file.grow())
        except OSError as error:
            self._next_growth_ns = now_ns + _RETRY_NS
            if not self._has_warned:
                self._has_warned = True
                _log.warning(
                    "stormphase: the journal %s cannot grow beyond %d KiB (%s); training goes on, and it keeps what is "
                    "open and the totals. Make room on that disk, or set another directory.",
                    self.file.path,
                    self.file.segments * _format.SEGMENT // 1024,
                    error.strerror,
                )
            return False
        return True


def encoded_facts(facts: Mapping[str, Any]) -> bytes:
    """Return the facts as JSON that fits into the header; what a bridge added goes first where it does not."""
    data = json.dumps(facts, sort_keys=True).encode()
    if len(data) > _format.MAX_FACTS:
        otel = facts.get("otel")
        slim = None if otel is None else {**otel, "resource": {}}
        data = json.dumps({**facts, "otel": slim}, sort_keys=True).encode()
    if len(data) > _format.MAX_FACTS:
        data = json.dumps({**facts, "otel": None}, sort_keys=True).encode()
    return data


def encoded_note(note: Mapping[str, Any]) -> bytes:
    """Return an end note as JSON that fits, its texts cut."""
    data = b""
    for most in _NOTE_CHARS:
        short = {key: _cut(value, most) if isinstance(value, str) else value for key, value in note.items()}
        # As it is, and not escaped: a text of any script has the same room. What is no character becomes JSON's escape.
        data = json.dumps(short, sort_keys=True, ensure_ascii=False).encode("utf-8", "backslashreplace")
        if len(data) <= _format.MAX_END_NOTE:
            break
    return data


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def end_note_of(
    outcome: BaseException | None,
    ended_ns: int,
    describe: Callable[[BaseException], PhaseError],
    *,
    is_known: bool = True,
) -> dict[str, Any]:
    """Return what a journal says of how its session ended.

    Args:
        outcome: the exception that ended it, or None.
        ended_ns: when, monotonic.
        describe: returns what the rank says of an exception, and never raises.
        is_known: whether no outcome means that all went well.
    """
    note: dict[str, Any] = {"ended_ns": ended_ns, "status": session_status_of(outcome).value}
    kind = EndKind.EXCEPTION
    if outcome is None:
        kind = EndKind.CLEAN if is_known else EndKind.ENDED
    elif is_orderly_exit(outcome):
        kind = EndKind.CLEAN
    elif isinstance(outcome, KeyboardInterrupt):
        kind, note["signal"] = EndKind.SIGNAL, 2
    elif isinstance(outcome, SystemExit):
        kind = EndKind.EXIT
        if outcome.code == "SIGTERM":
            kind, note["signal"] = EndKind.SIGNAL, 15
    note["kind"] = kind.value
    if outcome is not None and kind is not EndKind.CLEAN:
        error = describe(outcome)
        note.update(type=error.type, message=error.message, root=error.root_cause_scope_id)
    return note
