"""The descriptors 1 and 2 of this process while they are captured: put in place, marked at boundaries, and restored.

What is written to them goes through two pipes to a process of its own (`_tee`), which passes it on to where it was
bound for and tells us of what did not come from our own Python streams. One session at a time can have them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import secrets
import select
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from stormphase import _native
from stormphase._bell import Bell
from stormphase._clock import SystemClock
from stormphase.capture import _system, _tee

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Receive = Callable[[Any, int, int, bytes], object]

SETTLE_S: Final = 1.0
END_S: Final = 5.0
LOST_WAIT_S: Final = 0.2
MARK_EVERY_NS: Final = 100_000
_LINGER_S: Final = 0.5
_LINGER_PAUSE_S: Final = 0.001
_MOST_MARKS: Final = 8

_PLANS: Final[bool] = getattr(_native.speedups, "WRITES_FRAMES", 0) == 1
_lingering: Final[list[subprocess.Popen[bytes]]] = []
_stray: Final[list[Any]] = []
_guarded: Final[list[weakref.ref[Descriptors]]] = []


class Descriptors:
    """Descriptors 1 and 2 on their way through the tee, from `start` to `stop`.

    `set_owner` and the streams are for one thread at a time per pipe; the rest is thread- and fork-safe.

    Args:
        receive: called by a thread of ours with owner, monotonic ns, stream (0 or 1) and bytes that others wrote.
        now: the monotonic clock in ns.
        on_lost: called when the tee has died, after the descriptors were restored.
    """

    def __init__(self, receive: Receive, now: Callable[[], int], on_lost: Callable[[], object]) -> None:
        """Capture nothing yet."""
        self._receive = receive
        self._now = now
        self._on_lost = on_lost
        self.is_on = False
        self._is_begun = False
        self._is_over = False
        self.lost_bytes = 0
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._owners: dict[int, Any] = {}
        self._flush_c = _system.c_flush()
        self._pipes: list[tuple[int, int]] = []
        self._drained = threading.Event()  # Not while `stop` waits for the last words.
        self._drained.set()

    def start(self) -> None:
        """Put the pipes in place of the descriptors; nothing has changed if it raises.

        Raises:
            OSError: if the system has no process, descriptor or memory to give.
        """
        _reap()
        self._word = secrets.token_bytes(_tee.WORD_BYTES)
        self._owners.clear()
        self._is_over = False
        self._marks = 0
        self._marked_ns = 0
        self._taken = 0
        self._waiting: dict[int, tuple[threading.Event, set[int]]] = {}
        self._saved = [-1, -1]
        self._reads: list[int] = []
        self._writes: list[int] = []
        self._own: dict[int, tuple[int, int]] = {}
        opened: list[int] = []
        for descriptor in (1, 2):
            os.fstat(descriptor)  # Raises if it is closed.
        try:
            self.is_terminal = [os.isatty(1), os.isatty(2)]
            with _system.above_standard():
                self._open(opened)
            self._flush_c()
            if self.is_terminal[0]:
                _system.buffer_c_by_lines()
            self._pipes = [_system.identity(write) for write in self._writes]
            self._is_one_place = _tee.is_one_place(self._saved)
            _guard_forks(self)
            self.is_on = self._is_begun = True
            for stream in (0, 1):
                os.dup2(self._writes[stream], stream + 1)
        except BaseException:
            self.is_on = self._is_begun = False
            self._restore()
            for descriptor in opened:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            raise

    def _open(self, opened: list[int]) -> None:
        """Make pipes, shared page and process; `opened` has at any time what is to be closed if that fails."""
        for stream in (0, 1):
            self._saved[stream] = os.dup(stream + 1)
            opened.append(self._saved[stream])
            read, write = _system.pipe(_tee.PIPE_BYTES)
            self._reads.append(read)
            self._writes.append(write)
            opened += [read, write]
        self._back, back_write = os.pipe()
        opened += [self._back, back_write]
        page = _system.page(_tee.PAGE_BYTES)
        opened.append(page)
        self._page = memoryview(mmap.mmap(page, _tee.PAGE_BYTES)).cast("Q")
        self._tee = self._spawn([*self._reads, *self._saved, back_write, page])
        for descriptor in (page, back_write):
            os.close(descriptor)
            opened.remove(descriptor)
        self._ready, self._close_ready, self._epoll = _system.readiness(self._reads)
        own = (*self._reads, *self._writes, *self._saved, self._back)
        self._own = {descriptor: _system.identity(descriptor) for descriptor in own}
        self._reader = threading.Thread(target=self._read, name="stormphase-capture", daemon=True)
        self._reader.start()

    def _spawn(self, descriptors: list[int]) -> subprocess.Popen[bytes]:
        script = os.path.abspath(_tee.__file__)  # noqa: PTH100 - a string is what is wanted
        return subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-I", "-S", script, self._word.hex(), *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,  # A Ctrl-C is for the program, whose last words are still to be shown.
            env={**os.environ, "COVERAGE_PROCESS_START": "", "PYTHONDONTWRITEBYTECODE": "1"},
        )

    # What comes back

    def _read(self) -> None:
        """Take what the tee tells, until it says the end or is gone."""
        header = _tee.HEADER
        back = self._back
        data = b""
        ends: set[int] = set()
        while len(ends) < 2:  # noqa: PLR2004 - both pipes
            try:
                got = os.read(back, _tee.READ_BYTES) if self._is_ours(back) else b""
            except OSError:
                got = b""
            if not got:
                break
            data += got
            position = 0
            while len(data) - position >= header.size:
                kind, stream, when_ns, number, length = header.unpack_from(data, position)
                start = position + header.size
                if len(data) - start < length:
                    break
                position = start + length
                if kind == _tee.RAW:
                    with contextlib.suppress(Exception):
                        self._receive(self._owners.get(number), when_ns, stream, data[start:position])
                elif kind == _tee.LOST:
                    self.lost_bytes += number
                else:
                    self._note_sync(number, stream)
                    if kind == _tee.END:
                        ends.add(stream)
                # Only now, so that who finds that all was taken finds it there.
                self._taken += 1
            data = data[position:]
        if len(ends) < 2 and self.is_on and self._back == back:  # noqa: PLR2004 - as above
            self._lose()

    def _note_sync(self, number: int, stream: int) -> None:
        waiting = self._waiting.get(number)
        if waiting is not None:
            event, left = waiting
            left.discard(stream)
            if not left:
                event.set()

    def _lose(self) -> None:
        """The tee has died: let the descriptors lead where they led before, and show what it had not shown yet."""
        self._restore()
        self.is_on = False
        for event, _ in tuple(self._waiting.values()):
            event.set()
        with self._lock:
            writes, self._writes = self._writes, []
            self._close_ours(writes)
        if not all(map(self._is_ours, (*self._reads, *self._saved))):
            return  # The tee lives: the program has closed what is ours, and what it prints goes through it yet.
        self._on_lost()
        # Children may have the pipes yet: in the tee's place, until they end or the session does.
        ready, close, _ = _system.readiness(self._reads, LOST_WAIT_S)
        left = set(self._reads)
        while left:
            found = [read for read, _ in ready() if read in left]
            if not found and self._is_over:
                break
            for read in found:
                data = os.read(read, _tee.READ_BYTES)
                if not data:
                    left.discard(read)
                with contextlib.suppress(OSError):
                    os.write(self._saved[self._reads.index(read)], self._without_frames(data))
        close()

    def _without_frames(self, data: bytes) -> bytes:
        parts = data.split(self._word)
        return parts[0] + b"".join(part[_tee.HEADER.size :] for part in parts[1:])

    # What goes in

    def set_owner(self, owner: Any) -> None:
        """Say to whom belongs what is written from now on."""
        if not self.is_on:
            return
        self._flush_c()
        number = next(self._numbers)
        if self.is_quiet() or self._has_settled():
            # Nothing is under way: the tee may learn of it with the next text that it reads.
            self._marks = 0
            self._owners.clear()
            self._owners[number] = owner
            self._page[_tee.OWNER_NOW] = number
            return
        self._owners[number] = owner
        self._mark(number)
        self._marks += 1

    def _has_settled(self) -> bool:
        """Whether it was waited for that nothing is under way: else each mark would call for the next one."""
        return self._marks >= _MOST_MARKS and self.settle(SETTLE_S) and self.is_quiet()

    def is_quiet(self) -> bool:
        """Whether all that was written to the pipes so far has been taken from them, told of and kept."""
        # In this order: the tee says that it is idle before it looks, and that it is not before it takes.
        return not self._ready() and self._page[_tee.IS_IDLE] == 1 and self._page[_tee.TOLD] == self._taken

    def probe(self) -> tuple[int, Any]:
        """Return by what compiled code sees that nothing is under way: an epoll descriptor and the shared page."""
        return self._epoll, self._page

    def stream_of(self, descriptor: int) -> int | None:
        """Return to which of our pipes (0 or 1) a descriptor leads now; None for neither."""
        if not self.is_on:
            return None
        try:
            return self._pipes.index(_system.identity(descriptor))
        except (OSError, ValueError):
            return None

    def write_text(self, stream: int, data: Any) -> int | tuple[Any, ...] | None:
        """Write what a Python stream has for the descriptor: shown by the tee, and not told of; None if it is not on.

        Where both lead to one place, the text of both goes through the first pipe, so that its order is kept. Where
        compiled code writes, this returns by what: no handler of a signal may run between the write and the buffer
        above, which would write the same text again.
        """
        view = memoryview(data).cast("B")
        size = len(view)
        most = _tee.LONGEST_FRAME - _tee.FRAME_BYTES
        with self._lock:
            if not self.is_on:
                return None
            if self._page[_tee.IS_GONE + stream]:
                # Nobody reads there any more, and the program is to be told so, as it would be.
                self._restore()
                return None
            if self._is_one_place and self._is_second_busy():
                # What a C library has just said on stderr comes first, and the tee looks at the first pipe first.
                self.settle(SETTLE_S)
            pipe = 0 if self._is_one_place else stream
            try:
                if _PLANS:
                    write = self._writes[pipe]
                    return write, *self._own[write], self._word, stream, self._now(), self._page
                for start in range(0, size, most):
                    self._put(pipe, _tee.TEXT, data=bytes(view[start : start + most]), target=stream)
            except (LookupError, OSError) as error:
                if not self._is_over and getattr(error, "errno", None) != errno.EBADF:
                    raise
                return None  # A signal handler stopped it in between, or the program has closed what is ours.
        return size

    def _is_second_busy(self) -> bool:
        # In this order: the tee says that it is about to read before it does.
        return any(pipe == self._reads[1] for pipe, _ in self._ready()) or self._page[_tee.IS_SECOND_BUSY] == 1

    def _put(self, stream: int, kind: int, *, number: int = 0, data: bytes = b"", target: int = 0) -> None:
        header = _tee.HEADER.pack(kind, target, self._now(), number, len(data))
        frame = self._word + header + data
        write = self._writes[stream]
        if not self._is_ours(write):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._page[_tee.FRAMES_PUT] += 1
        while True:
            try:
                os.write(write, frame)
            except BlockingIOError:  # Some child made the shared pipe non-blocking.
                _tee._wait_for(write, select.POLLOUT)
            else:
                return

    def flush_c(self) -> None:
        """Have C's own buffers written, so that its text stands before what Python writes next."""
        self._flush_c()

    def begin_text(self, _text: object = None) -> None:
        """Part what C wrote until now from what a Python stream is about to write: that is earlier, whenever read."""
        with contextlib.suppress(Exception):  # It may have stopped in between; the text must be written all the same.
            self._flush_c()
            if not self.is_on or self.is_quiet():
                return
            now_ns = self._now()
            if self._page[_tee.FRAMES_SEEN] != self._page[_tee.FRAMES_PUT] and now_ns < self._marked_ns + MARK_EVERY_NS:
                return  # What is under way is most likely our own: as much as the tee is slow, and no more, is marked.
            self._marked_ns = now_ns
            self._mark(0)

    def _mark(self, owner_number: int) -> None:
        """Put a frame into each pipe: to say the time, and from which number on what follows belongs to whom."""
        with self._lock:
            for stream in (0, 1):
                if self._writes:
                    self._put(stream, _tee.OWNER, number=owner_number)

    def settle(self, timeout_s: float) -> bool:
        """Wait until all that was written so far was shown and kept; whether that was so in time."""
        if not self.is_on:
            return self._drained.wait(timeout_s)
        self._flush_c()
        if self.is_quiet():
            return True
        if threading.current_thread() is self._reader:
            return False
        return self._sync(_tee.SYNC, timeout_s)

    def _sync(self, kind: int, timeout_s: float, *, patiently: bool = False) -> bool:
        """Wait for the tee to say that it is there; patiently: for as long as its terminal takes anything."""
        number = next(self._numbers)
        event = threading.Event()
        self._waiting[number] = (event, {0, 1})
        with self._lock:
            for stream in (0, 1):
                if self._writes:
                    self._put(stream, kind, number=number)
        shown = self._page[_tee.SHOWN_BYTES]
        while not (was_in_time := event.wait(timeout_s)) and patiently:
            before, shown = shown, self._page[_tee.SHOWN_BYTES]
            if shown == before:
                break
        self._waiting.pop(number, None)
        return was_in_time

    # The end

    def stop(self) -> None:
        """Put the descriptors back where they led, once all that was written before is shown. Never raises."""
        self._is_over = True
        if not self.is_on:
            if self._is_begun:
                self._close()
            return
        self._drained.clear()
        try:
            with contextlib.suppress(Exception):
                self._flush_c()
            self._restore()
            self.is_on = False
            with contextlib.suppress(OSError):
                self._sync(_tee.END, END_S, patiently=True)
        finally:
            self._close()
            self._drained.set()

    def _restore(self) -> None:
        """Lead all descriptors where they led before; copies that the program has made of them, too."""
        own = {*self._writes, *self._reads}
        for stream, write in enumerate(self._writes):
            if not self._is_ours(self._saved[stream]):
                continue
            pipe = self._own[write]
            for descriptor in _system.descriptors():
                # Unless the program has led it elsewhere for good.
                if descriptor not in own and _system.leads_to(descriptor, pipe):
                    with contextlib.suppress(OSError):  # Another thread has just closed it.
                        os.dup2(self._saved[stream], descriptor, os.get_inheritable(descriptor))

    def _is_ours(self, descriptor: int) -> bool:
        """Whether a descriptor leads where it did when we made it: a program may close all, and open others."""
        made = self._own.get(descriptor)
        return made is not None and _system.leads_to(descriptor, made)

    def _close_ours(self, descriptors: Iterable[int]) -> None:
        for descriptor in descriptors:
            if self._is_ours(descriptor):
                with contextlib.suppress(OSError):  # Another thread has just closed it.
                    os.close(descriptor)
            self._own.pop(descriptor, None)

    def _close(self) -> None:
        self._is_begun = False
        if not all(map(self._is_ours, self._own)):
            # They have numbers that may be others' by now, and would close these when they go.
            _stray.append((self._page, self._close_ready))
            self._close_ready = _nothing
        with self._lock:  # Nobody is about to write to a descriptor that somebody else may have by then.
            writes, self._writes = self._writes, []
            self._close_ours(writes)
        self._close_ready()
        if threading.current_thread() is not self._reader:
            self._reader.join(END_S)
        self._forget_page()
        closing = (*self._reads, *self._saved, self._back)
        self._reads, self._saved = [], [-1, -1]
        self._close_ours(closing)
        if not _has_ended(self._tee, _LINGER_S):
            _lingering.append(self._tee)  # Some child still writes through it.

    def _forget_page(self) -> None:
        """Let go of the shared page, whose map has a descriptor: what stands in its place says that all is told."""
        # Replaced and not released: another thread may be about to look at it.
        page = memoryview(bytearray(_tee.PAGE_BYTES)).cast("Q")
        page[_tee.IS_IDLE] = 1
        page[_tee.TOLD] = self._taken
        self._page = page

    def after_fork_in_child(self) -> None:
        """Lead the child's descriptors where the parent's led before; the pipes and the tee are the parent's."""
        if not self._is_begun:
            return
        self.is_on = self._is_begun = False
        self._lock = threading.RLock()
        self._drained = threading.Event()
        self._drained.set()
        self._restore()
        self._forget_page()
        self._close_ready()
        self._close_ours((*self._writes, *self._reads, *self._saved, self._back))
        self._tee.returncode = 0  # Not this process's child: nothing to wait for, nothing to warn of.


def _nothing() -> None:
    """Do nothing."""


def _guard_forks(descriptors: Descriptors) -> None:
    """Have what was written before a fork shown before what the child writes, which goes straight to the terminal."""
    if not _guarded and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_settle_before_fork)
    _guarded[:] = [weakref.ref(descriptors)]


def _settle_before_fork() -> None:
    for reference in tuple(_guarded):
        descriptors = reference()
        if descriptors is not None:
            with contextlib.suppress(Exception):
                descriptors.settle(SETTLE_S)


def _has_ended(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait for a process to end; `Popen.wait` counts by a clock that a test may freeze, and would never give up."""
    now = SystemClock.monotonic_ns
    until_ns = now() + int(timeout_s * 1e9)
    pause = Bell()
    while process.poll() is None:
        if now() >= until_ns:
            return False
        pause.wait(_LINGER_PAUSE_S)
    return True


def _reap() -> None:
    _lingering[:] = [process for process in _lingering if process.poll() is None]
