"""Which phase a line belongs to, when it is captured, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from stormphase._recorder import PhaseRecorder
from stormphase.capture import CapturedLine
from stormphase.capture import _session as session_module
from stormphase.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import StepThread

    from stormphase._lanes import LaneSet
    from stormphase.capture import CaptureSession

Make = "Callable[..., CaptureSession]"


def shown(stream: io.TextIOWrapper) -> str:
    """Return what a terminal at the stream's end has got."""
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", "surrogateescape")


def said(output) -> list[tuple[str, str]]:
    """Return stream and text of each line."""
    return [(line.stream, line.text) for line in output.lines]


def texts(capture: CaptureSession, phase) -> list[str]:
    """Take a phase's output and return its texts."""
    return [line.text for line in capture.take(phase).lines]


def test_a_line_belongs_to_the_innermost_open_phase(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """Exclusive is the default: what a child says is not its parent's, and the terminal shows all in order."""
    capture = capture_on()
    with lanes.enter_phase("outer") as outer:
        print("before")
        with lanes.enter_phase("inner") as inner:
            print("inside")
        print("after")
    print("outside")
    assert ["before", "after"] == texts(capture, outer)
    assert ["inside"] == texts(capture, inner)
    assert "outside\n" == capture.output_of(None).text
    assert "before\ninside\nafter\noutside\n" == shown(terminal)


def test_inclusive_lines_stand_at_every_phase_around(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """With `inclusive=True` a phase's output is all that was said until it ended."""
    capture = capture_on(inclusive=True)
    with lanes.enter_phase("outer") as outer:
        print("before")
        with lanes.enter_phase("inner") as inner:
            print("inside")
            logging.getLogger("x").warning("logged")
        print("after")
    assert ["before", "inside", "WARNING x: logged", "after"] == texts(capture, outer)
    assert ["inside", "WARNING x: logged"] == texts(capture, inner)


def test_a_line_has_its_time_on_the_sessions_clock(capture_on: Make) -> None:
    """Lines and phases can be put side by side: one clock, one anchor."""
    clock = ManualClock()
    lanes = PhaseRecorder(clock=clock).lane_set("s", 0)
    capture = capture_on(lanes)
    with lanes.enter_phase("phase") as phase:
        clock.advance(7)
        print("a")
        clock.advance(5)
        print("b")
    began_ns = lanes.anchor.to_wall_ns(phase._entered_ns)
    expected = (CapturedLine(began_ns + 7, "stdout", "a"), CapturedLine(began_ns + 12, "stdout", "b"))
    assert expected == capture.take(phase).lines


def test_one_phase_may_be_captured_alone(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """A phase that says so is captured, with those inside but for one that says no."""
    capture = capture_on(captures_all=False)
    with lanes.enter_phase("outer") as outer:
        print("outer")
        with lanes.enter_phase("on") as on:
            on._extra_or_new().capture = True
            print("on")
            with lanes.enter_phase("within") as within:
                print("within")
            with lanes.enter_phase("off") as off:
                off._extra_or_new().capture = False
                print("off")
    assert [[], ["on"], ["within"], []] == [texts(capture, phase) for phase in (outer, on, within, off)]
    assert 0 == capture.stats()["outputs"]


def test_what_was_taken_can_be_had_again_soon(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """Two sinks may ask for the same phase; the session itself lets go of it."""
    capture = capture_on()
    with lanes.enter_phase("phase") as phase:
        print("a")
    assert capture.take(phase) is capture.take(phase)
    assert 0 == capture.stats()["outputs"]


def test_a_failure_ends_with_its_traceback(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """The phase in which the exception arose has its traceback, also if it said nothing; the others have not."""
    capture = capture_on()
    with pytest.raises(ZeroDivisionError), lanes.enter_phase("outer") as outer, lanes.enter_phase("inner") as inner:
        print("dividing")
        1 / 0
    assert [] == texts(capture, outer)
    lines = capture.take(inner).lines
    assert "stdout" == lines[0].stream
    assert {"traceback"} == {line.stream for line in lines[1:]}
    assert "ZeroDivisionError: division by zero" == lines[-1].text
    with pytest.raises(KeyError), lanes.enter_phase("silent") as silent:
        raise KeyError("x")
    assert "KeyError: 'x'" == texts(capture, silent)[-1]


def test_tasks_have_phases_of_their_own(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """A hundred tasks print and log at once: every line is whole and at its own phase."""
    capture = capture_on()
    ended = []

    async def work(number: int) -> None:
        with lanes.enter_phase("task") as phase:
            for step in range(5):
                print(f"task {number}", end=" ")
                await asyncio.sleep(0)
                print(f"step {step}")
                logging.getLogger("tasks").info("task %d step %d", number, step)
        ended.append((number, phase))

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(100)))

    asyncio.run(main())
    for number, phase in ended:
        found = said(capture.take(phase))
        assert [f"task {number} step {step}" for step in range(5)] == [
            text for stream, text in found if stream == "stdout"
        ]
        assert 5 == len([text for stream, text in found if stream == "log"])


def test_threads_have_phases_of_their_own(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """A hundred threads print and log at once: every line is whole, at its own phase and in the terminal."""
    capture = capture_on()
    ended = []
    begin = threading.Barrier(100)

    def work(number: int) -> None:
        begin.wait(60)
        with lanes.enter_phase("thread") as phase:
            for step in range(20):
                print(f"thread {number} step {step}")
                logging.getLogger("threads").debug("thread %d step %d", number, step)
        ended.append((number, phase))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 100 == len(ended)
    for number, phase in ended:
        found = said(capture.take(phase))
        printed = [text for stream, text in found if stream == "stdout"]
        assert [f"thread {number} step {step}" for step in range(20)] == printed
        assert 20 == len([text for stream, text in found if stream == "log"])
    assert 2_000 == shown(terminal).count("\n")


def test_threads_of_one_phase_do_not_tear_lines(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """Threads without phases of their own print into the one in which they were started, line by line."""
    capture = capture_on(max_bytes=1_000_000)
    begin = threading.Barrier(8)

    def work(number: int) -> None:
        begin.wait(60)
        for step in range(100):
            print("thread", number, "step", step)

    with lanes.enter_phase("phase") as phase:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = sorted(f"thread {number} step {step}" for number in range(8) for step in range(100))
    assert expected == sorted(texts(capture, phase))


def test_child_tasks_and_copied_contexts_belong_to_the_phase_around(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """A task, `asyncio.to_thread`, and a context run by hand carry the phase in which they were made."""
    capture = capture_on()

    async def child() -> None:
        print("task")
        await asyncio.to_thread(print, "to_thread")

    async def main() -> None:
        await asyncio.create_task(child())

    with lanes.enter_phase("phase") as phase:
        asyncio.run(main())
        contextvars.copy_context().run(print, "context")
    assert ["task", "to_thread", "context"] == [
        text for stream, text in said(capture.take(phase)) if stream == "stdout"
    ]


def test_work_of_executors_belongs_to_the_phase_that_submitted_it(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """Not to the one in which the pool's thread happened to be started."""
    capture = capture_on()
    with ThreadPoolExecutor(1) as pool:
        with lanes.enter_phase("first") as first:
            pool.submit(print, "first").result()
        with lanes.enter_phase("second") as second:
            assert [None] == list(pool.map(print, ["second"]))
        pool.submit(print, "outside").result()
    assert ["first"] == texts(capture, first)
    assert ["second"] == texts(capture, second)
    assert "outside\n" == capture.output_of(None).text


def test_run_in_executor_belongs_to_the_phase_of_the_task(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """The loop's own pool copies no context, and is found all the same."""
    capture = capture_on()

    async def main():
        with lanes.enter_phase("phase") as phase:
            await asyncio.get_running_loop().run_in_executor(None, print, "pool")
        return phase

    phase = asyncio.run(main())
    assert ["pool"] == [text for stream, text in said(capture.take(phase)) if stream == "stdout"]


def test_a_thread_that_outlives_its_phase_speaks_for_the_one_above(
    lanes: LaneSet, capture_on: Make, terminal, step_thread: Callable[..., StepThread]
) -> None:
    """Its lines go to the nearest open phase above the one it was started in, and in the end to none."""
    capture = capture_on()
    with lanes.enter_phase("outer") as outer:
        with lanes.enter_phase("inner") as inner:
            thread = step_thread()
            thread.do(print, "in time")
        thread.do(print, "late")
    thread.do(print, "too late")
    assert ["in time"] == texts(capture, inner)
    assert ["late"] == texts(capture, outer)
    assert "too late\n" == capture.output_of(None).text


def test_a_task_that_outlives_its_phase_speaks_for_the_one_above(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """A phase that has ended hears nothing more, also if nobody has taken its output yet."""
    capture = capture_on()

    async def late(ready: asyncio.Event) -> None:
        print("in time")
        await ready.wait()
        print("late")
        print("later")

    async def main():
        ready = asyncio.Event()
        with lanes.enter_phase("outer") as outer:
            with lanes.enter_phase("inner") as inner:
                task = asyncio.create_task(late(ready))
                await asyncio.sleep(0)
            ready.set()
            await task
        return outer, inner

    outer, inner = asyncio.run(main())
    assert ["in time"] == texts(capture, inner)[-1:]
    assert ["late", "later"] == texts(capture, outer)


def test_a_cancelled_task_leaves_nothing(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """Cancellation inside a captured phase ends it, and the next line is where it should be."""
    capture = capture_on()

    async def work(found: list) -> None:
        with lanes.enter_phase("work") as phase:
            found.append(phase)
            print("working")
            await asyncio.Event().wait()

    async def main():
        found: list = []
        with lanes.enter_phase("main") as phase:
            task = asyncio.create_task(work(found))
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            print("cancelled")
        return phase, found[0]

    phase, inner = asyncio.run(main())
    assert ["cancelled"] == texts(capture, phase)
    assert "working" == texts(capture, inner)[0]


def test_generators_speak_for_the_phase_that_is_open(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """A generator's phase is open while that is suspended; finalised in another context it neither leaks nor raises."""
    capture = capture_on()
    handles = []

    def items():
        with lanes.enter_phase("items") as phase:
            handles.append(phase)
            print("item")
            yield 1
            print("never")

    with lanes.enter_phase("consumer") as consumer:
        generator = items()
        next(generator)
        print("between")
        generator.close()
        print("closed")
    assert ["item", "between"] == texts(capture, handles[0])
    assert ["closed"] == texts(capture, consumer)

    async def agen():
        with lanes.enter_phase("agen") as phase:
            handles.append(phase)
            print("async item")
            yield 1

    async def main() -> None:
        iterator = agen()
        await asyncio.create_task(iterator.__anext__())
        await asyncio.create_task(iterator.aclose())
        print("after")

    asyncio.run(main())
    assert ["async item"] == [text for stream, text in said(capture.take(handles[1])) if stream == "stdout"]
    assert "after\n" in capture.output_of(None).text


def test_a_phase_entered_in_another_context_of_the_lane_is_found(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """A token that a copied context entered is on the lane, and what is said outside of that context is its."""
    capture = capture_on()
    token = contextvars.copy_context().run(lanes.enter, "token")
    print("said")
    phase = token._handle
    lanes.exit(token)
    print("outside")
    assert ["said"] == texts(capture, phase)
    assert "outside\n" == capture.output_of(None).text


def test_a_released_phase_speaks_through_its_next_owner(
    lanes: LaneSet, capture_on: Make, terminal, step_thread: Callable[..., StepThread]
) -> None:
    """What was said before and after the move is one output; what is said in between is not its."""
    capture = capture_on()
    phase = lanes.enter_phase("phase")
    print("one")
    token = phase.release()
    print("between")
    thread = step_thread()
    phase = thread.do(lanes.acquire, token)
    thread.do(print, "two")
    thread.do(phase.close)
    assert ["one", "two"] == texts(capture, phase)
    assert "between\n" == capture.output_of(None).text


def test_two_sessions_capture_side_by_side(lanes: LaneSet, lenient: LaneSet, capture_on: Make, terminal) -> None:
    """Each has its own phases; the terminal shows each line once."""
    one, two = capture_on(lanes), capture_on(lenient)
    with lanes.enter_phase("one") as first:
        print("a")
        with lenient.enter_phase("two") as second:
            print("b")
    assert ["a", "b"] == texts(one, first)
    assert ["b"] == texts(two, second)
    assert "a\nb\n" == shown(terminal)
    two.remove()
    with lanes.enter_phase("alone") as alone:
        print("c")
    assert ["c"] == texts(one, alone)


def test_install_and_remove_may_be_called_again(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """Neither counts, and a session that was removed can capture anew."""
    capture = capture_on()
    capture.install()
    capture.remove()
    capture.remove()
    assert not capture.is_installed
    with lanes.enter_phase("off") as off:
        print("off")
    capture.install()
    with lanes.enter_phase("on") as on:
        print("on")
    assert [[], ["on"]] == [texts(capture, phase) for phase in (off, on)]


def test_the_rate_is_bounded_and_the_last_line_stays(
    lanes: LaneSet, capture_on: Make, terminal, clock: ManualClock
) -> None:
    """Many small phases together keep no more per second than allowed; each still has its last words."""
    capture = capture_on(max_bytes_per_s=256)
    phases = []
    for number in range(10):
        with lanes.enter_phase("step") as phase:
            for line in range(10):
                print(f"{number} {line} " + "x" * 20)
        phases.append(phase)
    outputs = [capture.take(phase) for phase in phases]
    assert 10 == len(outputs[0].lines) or outputs[0].cut_lines
    assert all(output.lines[-1].text.startswith(f"{number} 9") for number, output in enumerate(outputs))
    assert 9 == outputs[-1].cut_lines
    assert "cut" == outputs[-1].lines[0].stream
    clock.advance(2_000_000_000)
    with lanes.enter_phase("later") as later:
        print("x")
    assert ["x"] == texts(capture, later)


def test_a_phase_that_prints_for_long_is_bounded(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """What the fast way has put aside never grows beyond its room, and every line is kept or counted."""
    capture = capture_on(max_bytes=1_000)
    most = 0
    with lanes.enter_phase("phase") as phase:
        for number in range(30_000):
            print("line", number)
            if number % 1_000 == 0:
                feeds = capture._outputs[phase._sequence]._feeds.values()
                most = max(most, *(sum(map(len, feed.pieces)) for feed in feeds))
    output = capture.take(phase)
    kept = [line.text for line in output.lines if line.stream != "cut"]
    assert ("line 0", "line 29999") == (kept[0], kept[-1])
    assert 30_000 == len(kept) + output.cut_lines
    assert 200_000 > most
    assert 30_000 == shown(terminal).count("\n")


def test_what_nobody_takes_is_bounded(lanes: LaneSet, capture_on: Make, terminal, monkeypatch) -> None:
    """The oldest outputs of ended phases go, and are counted; one that is still open stays."""
    monkeypatch.setattr(session_module, "MAX_OUTPUTS", 128)
    capture = capture_on()
    with lanes.enter_phase("outer") as outer:
        print("outer")
        for number in range(1_000):
            with lanes.enter_phase("step"):
                print(number)
        stats = capture.stats()
        assert 128 >= stats["outputs"]
        assert 1_001 == stats["outputs"] + stats["dropped_outputs"]
    assert ["outer"] == texts(capture, outer)


def test_secrets_are_not_kept(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """What a line, a log or a traceback says of a credential is redacted; the terminal shows what it did before."""
    capture = capture_on(redact=(r"customer-\d+",))
    with pytest.raises(ValueError, match="password"), lanes.enter_phase("phase") as phase:
        print("token=abc customer-17")
        logging.getLogger("x").warning("Authorization: Bearer %s", "abcdefgh")
        raise ValueError("password=hunter2")
    text = capture.take(phase).text
    assert not [secret for secret in ("abc", "customer-17", "hunter2") if secret in text.replace("abcde", "")]
    assert "token=[redacted] [redacted]" in text
    assert "token=abc customer-17\n" == shown(terminal)


def test_a_private_key_is_not_kept(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """Its lines look like any others; they go for what stands around them, and other streams stay."""
    capture = capture_on()
    with lanes.enter_phase("phase") as phase:
        print("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC")
        logging.getLogger("x").warning("meanwhile")
        print("AQEA\n-----END RSA PRIVATE KEY-----\nafter")
    found = texts(capture, phase)
    assert 3 == found.count("[redacted]")
    assert ["WARNING x: meanwhile", "after"] == [text for text in found if "PRIVATE" not in text and "red" not in text]


def test_a_tap_hears_everything_at_once(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """What must survive a kill is told at the write, by the writing thread."""
    capture = capture_on()
    heard = []
    capture.tap(lambda phase, when_ns, stream, text: heard.append((phase and phase.name, stream, text)))
    with lanes.enter_phase("phase"):
        print("a")
        logging.getLogger("x").error("b")
    print("outside")
    expected = [("phase", "stdout", "a"), ("phase", "stdout", "\n"), ("phase", "log", "ERROR x: b")]
    assert [*expected, (None, "stdout", "outside"), (None, "stdout", "\n")] == heard
    capture.tap(None)
    print("unheard")
    assert 5 == len(heard)


def test_a_tap_that_raises_is_counted(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """Nothing of ours ever raises into a print."""
    capture = capture_on()
    capture.tap(lambda *_: 1 / 0)
    print("a")
    logging.getLogger("x").error("b")
    assert 3 == capture.stats()["errors"]


def test_late_lines_are_not_lost(lanes: LaneSet, capture_on: Make, terminal) -> None:
    """What was written in the very moment in which its phase was taken goes to the phase above, and is counted."""
    capture = capture_on()
    with lanes.enter_phase("outer") as outer:
        with lanes.enter_phase("inner") as inner:
            print("a")
        output = capture._outputs[inner._sequence]
        capture.take(inner)
        output.add(output.feed(1, "stdout"), 1, "late\n")
        assert 1 == capture.stats()["late_lines"]
    assert ["late"] == texts(capture, outer)


def test_capture_costs_a_silent_phase_nothing(lanes: LaneSet, capture_on: Make) -> None:
    """Nothing is hooked into enter and exit: the queues that these call stay as they were."""
    before = (lanes.enter_queues, lanes.exit_queues, lanes.enter_phase)
    capture_on()
    assert before == (lanes.enter_queues, lanes.exit_queues, lanes.enter_phase)


def test_a_forked_child_keeps_its_own(run_python) -> None:
    """What the parent said is the parent's, what the child says the child's, and all reaches the terminal."""
    child = run_python(
        """
import os, sys
from stormphase._recorder import PhaseRecorder
from stormphase.capture import CaptureOptions, CaptureSession

lanes = PhaseRecorder().lane_set("s", 0)
capture = CaptureSession(lanes, CaptureOptions())
capture.install()
os.register_at_fork(after_in_child=lanes.after_fork_in_child)
os.register_at_fork(after_in_child=capture.after_fork_in_child)
with lanes.enter_phase("parent") as parent:
    print("before")
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        print("child")
        with lanes.enter_phase("in child") as phase:
            print("child's phase")
        found = (capture.take(phase).text, capture.output_of(parent.scope_id).text, capture.output_of(None).text)
        sys.stderr.write(repr(found))
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    print("after")
capture.remove()
sys.stderr.write(repr(capture.take(parent).text))
"""
    )
    assert "before\nchild\nchild's phase\nafter\n" == child.stdout
    assert repr(("child's phase\n", "", "child\n")) + repr("before\nafter\n") == child.stderr


def test_a_stream_of_another_kind_is_captured_too(lanes: LaneSet, capture_on: Make, monkeypatch) -> None:
    """A StringIO at `sys.stdout`, as `redirect_stdout` puts it there, shows and keeps what is printed."""
    capture = capture_on()
    with lanes.enter_phase("phase") as phase, contextlib.redirect_stdout(io.StringIO()) as buffer:
        print("redirected")
    assert "redirected\n" == buffer.getvalue()
    assert ["redirected"] == texts(capture, phase)
    assert {} == vars(buffer)
    assert buffer is not sys.stdout
