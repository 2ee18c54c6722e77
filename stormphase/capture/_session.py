"""One session's captured output: which phase a text belongs to, and what is kept of it until it is taken."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections import deque
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from stormphase._clock import SystemClock
from stormphase._model import PhaseStatus
from stormphase._phase import FINAL
from stormphase._redaction import Redactor
from stormphase.capture._board import BOARD
from stormphase.capture._cells import NO_CELL, NoPhase, ignore
from stormphase.capture._lines import NOTHING, STDERR, STDOUT, TRACEBACK, CapturedOutput
from stormphase.capture._options import DESCRIPTORS, CaptureOptions
from stormphase.capture._output import PhaseOutput
from stormphase.capture._whose import is_captured, open_above, phase_here

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stormphase._lanes import LaneSet
    from stormphase._phase import PhaseHandle
    from stormphase.capture._cells import Cell
    from stormphase.capture._output import Entry
    from stormphase.capture._raw import RawCapture

MAX_OUTPUTS: Final = 4_096
MAX_TOTAL_BYTES: Final = 67_108_864
_SWEEP_EVERY: Final = 64
_RECENT: Final = 256
_LOOK_BACK_EVERY: Final = 64
_SECONDS_KEPT: Final = 64
_TAPPED_BYTES: Final = 65_536
SETTLE_S: Final = 1.0
_RAW_STREAMS: Final = (STDOUT, STDERR)
_OUTSIDE: Final = 0  # Sequences start at 1.


_log = logging.getLogger("stormphase")


class CaptureSession:
    """Captures for one session, from `install` to `remove`. Thread-, task-, signal- and fork-safe.

    To which phase a line belongs: see `_whose.phase_here`.

    Args:
        lanes: the session's lanes.
        options: how to capture.
        captures_all: whether phases are captured unless they say otherwise, or only those that say so.
        environ: whose credentials must not be stored; by default the process's.
        keeps_outside: whether what is said outside of all phases is kept as well: `output_of(None)`.
    """

    def __init__(
        self,
        lanes: LaneSet,
        options: CaptureOptions,
        *,
        captures_all: bool = True,
        environ: Mapping[str, str] | None = None,
        keeps_outside: bool = True,
    ) -> None:
        """Capture nothing yet."""
        self.options = options
        self.captures_all = captures_all
        self.log_level = options.log_level
        # A session's redacts what the tracker and the options were told; lanes by themselves have none.
        self.redactor = lanes.redactor or Redactor(
            environ=os.environ if environ is None else environ, patterns=options.redact
        )
        self._keeps_outside = keeps_outside
        self._lanes = lanes
        self._now = lanes.now
        self._value: Callable[[], Any] = lanes.carrier.variable.get
        self._no_phase = NoPhase()
        self._raw: RawCapture | None = None
        self._tap: Callable[[PhaseHandle | None, int, str, str], object] | None = None
        self._reset()

    def _reset(self) -> None:
        self._outputs: dict[int, PhaseOutput] = {}
        self._finished: dict[int, CapturedOutput] = {}
        self._recent: deque[PhaseOutput] = deque(maxlen=_RECENT)
        self._made = 0
        self._taken = 0
        self._take_lock = threading.RLock()  # A signal handler may stop the session while it is asked.
        self._bytes_by_second: dict[int, int] = {}
        self._dropped_outputs = 0
        self._cut_lines = 0
        self._cut_bytes = 0
        self._late_lines = 0
        self._errors = 0

    # From install to remove

    def install(self) -> None:
        """Begin to capture: the first session of a process hooks into streams, logging, warnings and threads.

        A second call does nothing.
        """
        self._no_phase._status = PhaseStatus.ACTIVE
        BOARD.install(self)
        try:
            self.use_mode(self.options.mode)
        except BaseException:
            BOARD.remove(self)
            raise

    def remove(self) -> None:
        """Capture no more; the last session of a process leaves everything as it was. What is kept can be taken yet."""
        if self._raw is not None:
            self._raw.stop()
        BOARD.remove(self)
        with self._take_lock:
            self._forward_late()
        self._no_phase._status = PhaseStatus.ABANDONED

    @property
    def is_installed(self) -> bool:
        """Whether it captures now."""
        return self in BOARD.sessions

    def use_mode(self, mode: str) -> None:
        """Capture in this mode from now on, if that sees more than the present one; until `remove`.

        Raises:
            ConfigurationError: if descriptors are to be captured, and another session of this process does that.
        """
        if mode != DESCRIPTORS:
            return
        if self._raw is None:
            from stormphase.capture._raw import RawCapture  # noqa: PLC0415 - subprocess and ctypes, for few programs

            self._raw = RawCapture(self._lanes, self._note_raw, self._on_lost_tee)
        self._raw.start()

    def after_fork_in_child(self) -> None:
        """Start anew in a forked child: what was said until then is the parent's."""
        BOARD.after_fork_in_child()
        self._reset()
        if self._raw is not None:
            self._raw.after_fork_in_child()
        BOARD.forget()

    def tap(self, listener: Callable[[PhaseHandle | None, int, str, str], object] | None) -> None:
        """Have every text told to `listener` at once, by the thread that says it: what must survive a SIGKILL.

        It is called with the phase (None outside of all), the monotonic time in ns, the stream and the text as it was
        written, not redacted: pieces of lines for "stdout" and "stderr". It must not write to either. Printing is
        slower while there is one.
        """
        self._tap = listener
        BOARD.forget()

    # What was said

    def note_text(self, stream: str, text: Any, *, is_binary: bool) -> Cell:
        """Keep what the calling thread has written, and return how it may do so itself the next time; never raises."""
        try:
            return self._note_text(stream, text, is_binary=is_binary)
        except Exception:  # noqa: BLE001 - a str or bytes class of the user's own may do anything
            self._errors += 1
            return NO_CELL

    def _note_text(self, stream: str, text: Any, *, is_binary: bool) -> Cell:
        value = self._value()
        phase, is_of_context = self._phase_here()
        outputs = self._outputs_for(phase)
        when_ns = self._now()
        thread_id = get_ident()
        feed = None
        piece = bytes(text) if is_binary else str.__str__(text)
        for output in outputs:
            feed = output.feed(thread_id, stream, is_binary=is_binary)
            output.add(feed, when_ns, piece)
        if outputs and self._tap is not None:
            self._tap(phase, when_ns, stream, _tapped(piece))
        if not is_of_context or self._tap is not None or len(outputs) > 1:
            return NO_CELL
        holder: Any = self._no_phase if phase is None else phase
        if feed is None:
            return (self._value, value, holder, thread_id, ignore, ignore, self._now, object, (thread_id, ignore))
        add = feed.pieces.append
        make_room = functools.partial(outputs[0].make_room, feed)
        return (
            self._value,
            value,
            holder,
            thread_id,
            add,
            feed.stamps.append,
            self._now,
            make_room,
            (thread_id, add),
        )

    def note_lines(self, stream: str, level: int, text: str) -> None:
        """Keep whole lines that the calling thread has said: a log record, a warning; never raises."""
        try:
            phase, _ = self._phase_here()
            when_ns = self._now()
            outputs = self._outputs_for(phase)
            for output in outputs:
                output.add_lines(when_ns, stream, level, text)
            if outputs and self._tap is not None:
                self._tap(phase, when_ns, stream, text)
        except Exception:  # noqa: BLE001 - as above
            self._errors += 1

    def _note_raw(self, phase: PhaseHandle | None, when_ns: int, stream: int, data: bytes) -> None:
        """Keep what came through a descriptor from elsewhere than Python; on the thread that reads it."""
        if phase is not None and phase._sequence in self._finished:
            phase = open_above(phase)
        if self._now is not SystemClock.monotonic_ns:
            when_ns = self._now()
        if phase is not None and phase._status in FINAL:
            # Read after the end and written before it, and before the traceback.
            when_ns = min(when_ns, max(phase._entered_ns, phase._ended_ns - 1))
        name = _RAW_STREAMS[stream]
        outputs = self._outputs_for(phase)
        for output in outputs:
            output.add(output.feed(-1, name, is_binary=True), when_ns, data)
        if outputs and self._tap is not None:
            self._tap(phase, when_ns, name, _tapped(data))

    def _on_lost_tee(self) -> None:
        self._errors += 1
        _log.warning(
            'stormphase: the process behind capture="fd" has died; the descriptors are as they were, and what C '
            "libraries and subprocesses write is captured no more"
        )

    def wants_here(self) -> bool:
        """Whether what the caller says would be kept."""
        return bool(self._outputs_for(self._phase_here()[0]))

    def phase_here(self) -> PhaseHandle | None:
        """Return the phase to which what the caller says belongs; None outside of all."""
        return self._phase_here()[0]

    def _phase_here(self) -> tuple[PhaseHandle | None, bool]:
        return phase_here(self._lanes, id(self))

    # Where it is kept

    def _outputs_for(self, phase: PhaseHandle | None) -> tuple[PhaseOutput, ...]:
        if phase is None:
            # What a sink says of phases is none of theirs, and would drown what was said outside of all.
            is_kept = self.captures_all and self._keeps_outside and not self._lanes.mutes_this_thread()
            return (self._output(None),) if is_kept else ()
        if not self._is_captured(phase):
            return ()
        if not self.options.inclusive:
            return (self._output(phase),)
        found = []
        above: PhaseHandle | None = phase
        while above is not None:
            if (above is phase or above._status not in FINAL) and self._is_captured(above):
                found.append(self._output(above))
            above = above.parent
        return tuple(found)

    def _is_captured(self, phase: PhaseHandle) -> bool:
        return is_captured(phase, by_default=self.captures_all)

    def _output(self, phase: PhaseHandle | None) -> PhaseOutput:
        key = _OUTSIDE if phase is None else phase._sequence
        output = self._outputs.get(key)
        if output is None:
            self._made += 1
            if self._made % _SWEEP_EVERY == 0:
                self._sweep()
            output = self._outputs.setdefault(key, self._new_output(phase))
        output.phase = phase  # Another thread or task may have acquired it: its new handle says when it ends.
        return output

    def _new_output(self, phase: PhaseHandle | None) -> PhaseOutput:
        return PhaseOutput(phase, self.options.max_bytes, self.redactor.text)

    def _sweep(self) -> None:
        """Bound what nobody takes: the oldest outputs of phases that have ended go, and are counted."""
        outputs = list(self._outputs.items())
        total = 0
        for _, output in outputs:
            if _has_ended(output):
                output.settle()
            total += output.size
        count = len(outputs)
        for key, output in outputs:
            if count <= MAX_OUTPUTS - _SWEEP_EVERY and total <= MAX_TOTAL_BYTES:
                return
            if _has_ended(output) and self._outputs.pop(key, None) is not None:
                self._dropped_outputs += 1
                count -= 1
                total -= output.size

    # What becomes of it

    def take(self, phase: PhaseHandle) -> CapturedOutput:
        """Return the output of a phase that has ended, with the traceback if it failed by itself, and let go of it.

        For sinks' workers, with the handle that they were given. Another sink that asks for the same phase soon after
        gets the same; later it gets an output without lines. Never raises, and never waits for a thread that writes.
        """
        if self._raw is not None:
            self._raw.settle(SETTLE_S)
        sequence = phase._sequence
        if sequence not in self._outputs and sequence not in self._finished and _traceback_of(phase) is None:
            return NOTHING  # As most phases, which must cost a store next to nothing.
        with self._take_lock:
            known = self._finished.get(sequence)
            if known is not None:
                return known
            output = self._outputs.pop(sequence, None)
            if output is None and not self._is_captured(phase):
                return NOTHING
            finished = self._finish(output or self._new_output(phase), phase)
            if output is not None:
                self._recent.append(output)
                self._taken += 1
                if self._taken % _LOOK_BACK_EVERY == 0:
                    self._forward_late()
            self._finished[sequence] = finished
            if len(self._finished) > _RECENT:
                self._finished.pop(next(iter(self._finished)))
            return finished

    def _finish(self, output: PhaseOutput, phase: PhaseHandle) -> CapturedOutput:
        traceback = _traceback_of(phase)
        if traceback is not None:
            output.add_lines(phase._ended_ns, TRACEBACK, 0, traceback.rstrip("\n"))
        kept = output.taken()
        kept.sort()
        kept.bound_rate(self._is_within_rate)
        self._cut_lines += kept.cut_lines
        self._cut_bytes += kept.cut_bytes
        return kept.finished(self._lanes.anchor.to_wall_ns, self.redactor.text)

    def output_of(self, scope_id: str | None) -> CapturedOutput:
        """Return what is kept of a phase so far, open or ended, without letting go of it; None for outside of all.

        Without lines if nothing is known of it. For people and tests; costs a look at every phase that has output.
        """
        for output in tuple(self._outputs.values()):
            phase = output.phase
            if (None if phase is None else phase.scope_id) == scope_id:
                kept = output.seen()
                kept.sort()
                return kept.finished(self._lanes.anchor.to_wall_ns, self.redactor.text)
        return NOTHING

    def _is_within_rate(self, when_ns: int, size: int) -> bool:
        second = when_ns // 1_000_000_000
        spent = self._bytes_by_second.get(second, 0)
        if spent + size > self.options.max_bytes_per_s:
            return False
        self._bytes_by_second[second] = spent + size
        if len(self._bytes_by_second) > _SECONDS_KEPT:
            del self._bytes_by_second[min(self._bytes_by_second)]
        return True

    def _forward_late(self) -> None:
        """Give what a thread wrote while its phase was being taken to the nearest open phase above."""
        for output in tuple(self._recent):
            entries: list[Entry] = output.leftovers()
            if not entries:
                continue
            self._late_lines += len(entries)
            above = None if output.phase is None else open_above(output.phase)
            for entry in entries:
                for target in self._outputs_for(above)[:1]:
                    target.add_lines(entry.when_ns, entry.stream, entry.level, entry.text)

    def stats(self) -> dict[str, int]:
        """Return counts: outputs kept, and dropped since nobody took them; lines and bytes cut; late lines; errors."""
        with self._take_lock:
            self._forward_late()
        return {
            "outputs": len(self._outputs),
            "dropped_outputs": self._dropped_outputs,
            "cut_lines": self._cut_lines,
            "cut_bytes": self._cut_bytes,
            "late_lines": self._late_lines,
            "lost_bytes": 0 if self._raw is None else self._raw.lost_bytes,
            "errors": self._errors,
        }


def _tapped(piece: str | bytes) -> str:
    """Return a piece as text; of many bytes the end, since the last lines are what a listener is for."""
    return piece if isinstance(piece, str) else piece[-_TAPPED_BYTES:].decode("utf-8", "backslashreplace")


def _has_ended(output: PhaseOutput) -> bool:
    return output.phase is not None and output.phase._status in FINAL


def _traceback_of(phase: PhaseHandle) -> str | None:
    extra = phase._extra
    return None if extra is None or extra.error is None else extra.error.traceback
