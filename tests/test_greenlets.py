"""Greenlets, by themselves and gevent's, without patches: each has a lane, and what one enters another one may end."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import types

import gevent
import greenlet
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import stormphase
from stormphase import PhaseProtocolError, PhaseRecorder, PhaseStatus
from stormphase.otel import OTelBridge
from stormphase.stores import MemoryStore

BRIDGES = pytest.mark.parametrize(
    "make_bridge",
    [lambda: None, lambda: OTelBridge(tracer_provider=TracerProvider()), OTelBridge],
    ids=["no bridge", "SDK", "no SDK"],
)


def within(call, *arguments):
    """Call in a greenlet of its own and return what it returns."""
    return greenlet.greenlet(call).switch(*arguments)


def spawned(call, *arguments):
    """Call in a greenlet of gevent's and return what it returns."""
    return gevent.spawn(call, *arguments).get()


ELSEWHERE = pytest.mark.parametrize("elsewhere", [within, spawned], ids=["greenlet", "gevent"])


@pytest.fixture
def run(make_tracker):
    """Start a tracker with a store; return a function that does so and what says what is stored."""

    def start(make_bridge=lambda: None, **options):
        return make_tracker(store=MemoryStore(), bridge=make_bridge(), **options).start()

    return start


def told(tracker):
    """Return path and status of each phase in the order of entering; nothing was misused, and no context keeps one."""
    assert tracker.flush()
    assert ({}, None) == (tracker.stats()["misuse"], tracker.lane_set.carrier.current_phase())
    records = tracker._settings.store.query(kind="phase")
    return [(record.path_text, record.status) for record in records]


def names(tracker):
    """Return the paths of the phases in the order of entering, all of which have succeeded."""
    assert {PhaseStatus.SUCCEEDED} == {status for _, status in told(tracker)}
    return [path for path, _ in told(tracker)]


@BRIDGES
@ELSEWHERE
def test_what_one_greenlet_enters_another_one_ends(run, make_bridge, elsewhere):
    """By token, handle and block, from the first greenlet of the thread and into it; nothing is refused or counted."""
    tracker = run(make_bridge)
    token = elsewhere(tracker.enter, "token")
    elsewhere(tracker.exit, token)
    tracker.exit(elsewhere(tracker.enter, "into the first"))
    with tracker.enter_phase("train"):
        handle = tracker.enter_phase("out of the first")
        elsewhere(handle.close)
        with tracker.enter_phase("after"):
            pass
        block = tracker.phase("block")
        elsewhere(lambda: block.__enter__().path)
        elsewhere(lambda: block.__exit__(None, None, None))
    found = names(tracker)
    block_path = "train / block" if elsewhere is within else "block"
    assert ["token", "into the first", "train", "train / out of the first", "train / after", block_path] == found


@BRIDGES
@ELSEWHERE
def test_what_one_greenlet_enters_fails_pauses_and_moves_in_others(run, make_bridge, elsewhere):
    """The error that ends a phase is its own, wherever it arose; and its owner is who resumed or acquired it."""
    tracker = run(make_bridge)

    def fail(phase):
        try:
            raise ValueError("no")
        except ValueError as error:
            phase.__exit__(ValueError, error, error.__traceback__)

    failing = tracker.enter_phase("failing")
    elsewhere(fail, failing)
    paused = tracker.enter_phase("paused")
    elsewhere(paused.pause)
    elsewhere(paused.resume)
    paused.close()
    token = elsewhere(tracker.enter_phase("moved").release)
    elsewhere(tracker.acquire, token).close()
    elsewhere(tracker.retry, failing).close()
    done = PhaseStatus.SUCCEEDED
    expected = [("failing", PhaseStatus.FAILED), ("paused", done), ("moved", done), ("failing", done)]
    assert expected == told(tracker)


@BRIDGES
def test_greenlets_that_take_turns_do_not_nest_in_each_other(run, make_bridge):
    """As two threads or tasks would not; under the phase that their parent had open when it first ran them."""
    tracker = run(make_bridge)

    def work(name):
        with tracker.enter_phase(name, {"name": name}):
            first.switch()
            with tracker.enter_phase("inner"):
                first.switch()

    first = greenlet.getcurrent()
    with tracker.enter_phase("train"):
        greenlets = [greenlet.greenlet(work) for _ in "ab"]
        for each, name in zip(greenlets, "ab", strict=True):
            each.switch(name)
        for each in greenlets:
            each.switch()
        with tracker.enter_phase("between"):
            for each in greenlets:
                each.switch()
    paths = ["train", "train / a", "train / b", "train / a / inner", "train / b / inner", "train / between"]
    assert paths == names(tracker)


@BRIDGES
def test_gevents_greenlets_take_turns_at_every_wait(run, make_bridge):
    """Those given the context they were spawned in hang under its phase; those given none are roots, as threads are."""
    tracker = run(make_bridge)

    def work(name):
        with tracker.enter_phase(name):
            gevent.sleep(0)
            with tracker.enter_phase("inner"):
                gevent.sleep(0)

    with tracker.enter_phase("train"):
        greenlets = [gevent.spawn(work, "a"), gevent.spawn(contextvars.copy_context().run, work, "b")]
        gevent.joinall(greenlets, raise_error=True)
    assert ["train", "a", "train / b", "a / inner", "train / b / inner"] == names(tracker)


def test_a_callback_of_the_hub_ends_what_a_greenlet_left_open(run):
    """The hub calls it in a greenlet of its own."""
    tracker = run()
    request = gevent.spawn(tracker.enter_phase, "request")
    request.link(lambda done: done.value.close())
    request.join()
    gevent.sleep(0)
    assert ["request"] == names(tracker)


@pytest.mark.parametrize("end", ["kill", "throw", "drop"])
def test_a_greenlet_that_is_killed_cancels_its_phase(run, end):
    """On its own lane, whatever else is open; also one that nobody holds any more."""
    tracker = run()

    def work():
        with tracker.enter_phase("work"):
            gevent.sleep(100) if end == "kill" else greenlet.getcurrent().parent.switch()

    with tracker.enter_phase("main"):
        each = gevent.spawn(work) if end == "kill" else greenlet.greenlet(work)
        gevent.sleep(0) if end == "kill" else each.switch()
        if end == "kill":
            each.kill()
        elif end == "throw":
            each.throw(greenlet.GreenletExit)
        del each
    path = "work" if end == "kill" else "main / work"
    assert [("main", PhaseStatus.SUCCEEDED), (path, PhaseStatus.CANCELLED)] == told(tracker)


def test_a_generator_goes_on_in_another_greenlet(run):
    """Its phases are on the lane of whoever asks for the next item."""
    tracker = run()

    @tracker.phase("batches")
    def batches():
        with tracker.enter_phase("load"):
            yield 1
            yield 2

    items = batches()
    assert [1, 2, []] == [within(next, items), within(next, items), within(list, items)]
    assert ["batches", "batches / load"] == names(tracker)


def test_the_innermost_one_first_in_every_greenlet(run):
    """Order is asked for as ever: what has others open inside it cannot be ended from elsewhere either."""
    tracker = run()
    outer = tracker.enter_phase("outer")
    inner = tracker.enter_phase("inner")
    with pytest.raises(PhaseProtocolError, match="still open inside"):
        within(outer.close)
    within(inner.close)
    within(outer.close)
    assert {"still_open_inside": 1} == tracker.stats()["misuse"]


def test_another_threads_phase_is_another_threads(run, step_thread):
    """Greenlets of one thread share what they own; two threads do not, and nor do asyncio's tasks."""
    tracker = run()
    theirs = step_thread().do(tracker.enter_phase, "theirs")
    with pytest.raises(PhaseProtocolError, match="it belongs to thread"):
        within(theirs.close)

    async def main():
        async def enter():
            return tracker.enter_phase("of a task")

        return await asyncio.create_task(enter())

    of_a_task = asyncio.run(main())
    with pytest.raises(PhaseProtocolError, match="it belongs to task"):
        within(of_a_task.close)


def test_a_greenlet_within_a_task_is_a_part_of_that(run):
    """As SQLAlchemy runs blocking code of a session under asyncio: in the task's own context."""
    tracker = run()

    async def main():
        with tracker.enter_phase("query"):
            blocking = greenlet.greenlet(tracker.enter_phase)
            blocking.gr_context = greenlet.getcurrent().gr_context
            blocking.switch("connect").close()

    asyncio.run(main())
    assert ["query", "query / connect"] == names(tracker)


def test_a_greenlet_may_call_us_first_of_all(run):
    """Then no frame of the program's is there to be named, and it is our own."""
    tracker = run()
    handle = within(tracker.enter_phase, "handle")
    within(tracker.exit, within(tracker.enter, "token"))
    within(tracker.retry, handle).close()
    handle.close()
    assert "_enter.py" == handle.location.partition(":")[0]
    assert ["handle", "token", "handle"] == names(tracker)


def test_a_recorder_ends_by_its_id_what_another_greenlet_entered():
    """`exit_phase` looks on the lanes of all greenlets of the thread."""
    recorder = PhaseRecorder()

    def enter():
        return recorder.enter_phase(session_id="s", rank=0, name="x").metadata["phase_scope"]

    def leave(scope):
        return recorder.exit_phase(
            session_id="s", rank=0, scope_id=scope["scope_id"], thread_id=threading.get_ident()
        ).event_type

    assert ["phase_exit"] * 3 == [within(leave, within(enter)), within(leave, enter()), leave(within(enter))]


def test_spans_of_the_program_are_under_the_phase_of_their_own_greenlet(run):
    """Also in the greenlet that entered one which another one has ended."""
    provider = TracerProvider()
    tracker = run(lambda: OTelBridge(tracer_provider=provider))
    tracer = provider.get_tracer("of the program")

    def parent_here():
        with tracer.start_as_current_span("user") as span:
            return None if span.parent is None else span.parent.span_id

    with tracker.enter_phase("train") as train:
        handle = tracker.enter_phase("x")
        found = [within(parent_here), parent_here()]
        within(handle.close)
        found.append(parent_here())
        with tracker.enter_phase("y") as y:
            found += [within(lambda: tracker.enter_phase("z").parent.scope_id_number)]
    x = handle.scope_id_number
    assert [None, x, train.scope_id_number, y.scope_id_number] == found
    assert not trace.get_current_span().get_span_context().is_valid


def test_libraries_find_the_tracker_of_their_greenlet(run):
    """Of two that run: the context of a greenlet that hangs under a phase says which."""
    first, second = run(), run()
    with first.enter_phase("train"):

        def work():
            with first.enter_phase("work"), stormphase.phase("library"):
                pass

        within(work)
    assert (["train", "train / work", "train / work / library"], []) == (names(first), told(second))


LATE = """
import sys
from stormphase import PhaseTracker

with PhaseTracker("late", bridge=None) as tracker, tracker.enter_phase("train"):
    with tracker.enter_phase("before"):
        print("greenlet" in sys.modules)
    import greenlet

    def work(first):
        with tracker.enter_phase("work"):
            first.switch()

    working = greenlet.greenlet(work)
    working.switch(greenlet.getcurrent())
    with tracker.enter_phase("between") as between:
        print(between.path)
    working.switch()
"""


@pytest.mark.parametrize("half", ["", "1"], ids=["compiled", "Python alone"])
def test_greenlets_that_come_when_phases_have_run_are_seen(run_python, half):
    """The program may import the library at any time; from then on each of its greenlets has a lane."""
    child = run_python(LATE, env={"STORMPHASE_PURE": half, "STORMPHASE_DISABLED": ""})
    assert ["False", "('train', 'between')"] == child.stdout.splitlines()


def test_a_library_that_is_half_imported_has_no_greenlets_yet(run, monkeypatch):
    """Another thread may be importing it just now: phases are entered and ended all the same."""
    tracker = run()
    monkeypatch.setitem(sys.modules, "greenlet", types.ModuleType("greenlet"))
    tracker.exit(tracker.enter("step"))
    assert ["step"] == names(tracker)
