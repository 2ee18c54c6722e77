"""Lanes of threads: one stack each, also with copied contexts, reused thread ids, resets and a thousand threads."""

from __future__ import annotations

import concurrent.futures
import contextvars
import gc
import threading

import pytest

from stormphase import Misuse, PhaseProtocolError
from stormphase._boundary import exit_boundary, self_ns
from stormphase._model import PhaseStatus


def test_threads_nest_each_for_themselves(lanes, step_thread):
    """Interleaved in any way, nobody is another's parent."""
    first, second = step_thread("first"), step_thread("second")
    outer = [thread.do(lanes.enter_phase, "outer") for thread in (first, second)]
    inner = [thread.do(lanes.enter_phase, "inner") for thread in (second, first)]
    assert [None, None, outer[1], outer[0]] == [phase.parent for phase in (*outer, *inner)]
    for thread, phase in ((first, inner[1]), (second, inner[0]), (second, outer[1]), (first, outer[0])):
        thread.do(phase.close)


def test_a_new_thread_starts_at_the_root(lanes, step_thread):
    """Without a copied context, what another thread has open is not its parent."""
    with lanes.enter_phase("train"):
        phase = step_thread("loader").do(lanes.enter_phase, "load")
        assert (None, ("load",)) == (phase.parent, phase.path)
        lanes.close("test")


def test_a_thread_with_a_copied_context_hangs_under_where_it_was_copied(lanes, clock, step_thread):
    """Its path and parent say so; its time runs beside and is not subtracted."""
    with lanes.enter_phase("train") as train:
        context = contextvars.copy_context()
        loader = step_thread("loader")
        load = loader.do(context.run, lanes.enter_phase, "load")
        deeper = loader.do(context.run, lanes.enter_phase, "read")
        clock.advance(5)
        loader.do(context.run, deeper.close)
        loader.do(context.run, load.close)
        again = loader.do(context.run, lanes.enter_phase, "load")
        assert train is again.parent
        loader.do(context.run, again.close)
    assert (train, load) == (load.parent, deeper.parent)
    assert ("train", "load", "read") == deeper.path
    assert (5, 0, 5) == (self_ns(train), self_ns(load), self_ns(deeper))
    assert train.scope_id == exit_boundary(load).metadata["phase_scope"]["parent_scope_id"]


def test_a_context_adopts_a_phase_and_gives_it_back(lanes, step_thread):
    """What a worker enters hangs under the phase that it works for; without one, and afterwards, at the root."""
    parents = []

    def work(adopted):
        token = lanes.carrier.adopt(adopted, {})
        with lanes.enter_phase("work") as phase:
            parents.append(phase.parent)
        lanes.carrier.variable.reset(token)
        with lanes.enter_phase("own") as phase:
            parents.append(phase.parent)

    worker = step_thread("worker")
    with lanes.enter_phase("train") as train:
        worker.do(work, train)
        worker.do(work, None)
    assert [train, None, None, None] == parents


def test_a_copied_context_outlives_the_phase_it_was_copied_in(lanes, step_thread):
    """What was open where the context was copied stays the parent, also after it has ended."""
    with lanes.enter_phase("train") as train:
        context = contextvars.copy_context()
    late = step_thread().do(context.run, lanes.enter_phase, "late")
    assert (train, ("train", "late")) == (late.parent, late.path)
    lanes.close("test")


def test_a_sync_phase_hangs_under_where_its_threads_context_was_copied(lanes, step_thread):
    """The first phase of a thread keeps both: that ranks wait for each other in it, and its parent."""
    with lanes.enter_phase("train") as train:
        context = contextvars.copy_context()
        reduce = step_thread().do(context.run, lanes.enter_phase, "reduce", None, True)
        assert (True, train, "train / reduce") == (reduce._extra.is_sync, reduce.parent, reduce.phase_path)
    lanes.close("test")


def test_sync_phases_say_so_wherever_they_are(lanes):
    """At the root and nested, with the parent kept."""
    with lanes.enter_phase("reduce", None, True) as outer, lanes.enter_phase("reduce", sync=True) as inner:
        assert (True, True, None, outer) == (outer._extra.is_sync, inner._extra.is_sync, outer.parent, inner.parent)
    with lanes.enter_phase("plain") as plain:
        assert None is plain._extra


@pytest.mark.parametrize("action", ["close", "pause", "release"])
def test_only_the_owner_may_touch_a_phase(lanes, step_thread, action):
    """The message says who owns it, who tried, and how to move it; nothing has changed."""
    with lanes.enter_phase("train") as phase:
        name = "exit" if action == "close" else action
        with pytest.raises(
            PhaseProtocolError,
            match=rf"Cannot {name} phase 'train' \(test_lanes_threads.py:\d+\) from thread 'thief' \(\d+\): it belongs "
            r"to thread 'MainThread' \(\d+\)\. Do it in its owner, or move the phase: token = phase\.release\(\)",
        ) as raised:
            step_thread("thief").do(getattr(phase, action))
        assert (Misuse.FOREIGN_THREAD, name) == (raised.value.reason, raised.value.action)
        assert (PhaseStatus.ACTIVE, phase) == (phase.status, lanes.carrier.current_phase())


def test_another_thread_cannot_resume(lanes, step_thread):
    """A pause is not a release."""
    with lanes.enter_phase("train") as phase:
        phase.pause()
        with pytest.raises(PhaseProtocolError, match=r"Cannot resume phase 'train'.*from thread 'thief'"):
            step_thread("thief").do(phase.resume)
        assert PhaseStatus.PAUSED is phase.status


def test_a_thread_in_the_owners_context_is_still_another_thread(lanes, step_thread):
    """A context is no proof of ownership: a phase entered in one by this thread is not ended in it by that one."""
    context = contextvars.copy_context()
    phase = context.run(lanes.enter_phase, "train")
    thief = step_thread("thief")
    with pytest.raises(PhaseProtocolError, match="from thread 'thief'"):
        thief.do(context.run, phase.__exit__, None, None, None)
    assert PhaseStatus.ACTIVE is phase.status
    context.run(phase.close)


def test_a_generator_finished_by_another_thread_keeps_its_phase_open(lanes, step_thread):
    """Its block is left there without an exception: that is told, and its owner can still end the phase."""

    def generate():
        with lanes.enter_phase("items"):
            yield 1

    generator = generate()
    next(generator)
    (phase,) = lanes.open_phases()
    with pytest.raises(PhaseProtocolError, match="from thread 'other'"):
        step_thread("other").do(lambda: next(generator, None))
    phase.close()
    assert PhaseStatus.SUCCEEDED is phase.status


def test_a_generator_closed_by_another_thread_ends_its_phase(lanes, ended, clock, step_thread):
    """Nobody else would; it touches no context of its own thread, is counted, and what is open above it stays exact."""

    def generate():
        with lanes.enter_phase("items"):
            yield 1

    with lanes.enter_phase("outer") as outer:
        clock.advance(1)
        generator = generate()
        next(generator)
        items = lanes.carrier.current_phase()
        clock.advance(20)
        above = lanes.enter_phase("above")
        clock.advance(300)
        step_thread("other").do(generator.close)
        assert (PhaseStatus.CANCELLED, above) == (items.status, lanes.carrier.current_phase())
        assert [outer, above] == list(lanes.open_phases())
        assert items is above.parent
        clock.advance(4_000)
        above.close()
        clock.advance(50_000)
    assert [items, above, outer] == ended
    assert (320 - 300, 4_300, 50_001) == tuple(self_ns(phase) for phase in ended)
    assert 54_321 == lanes.lane_of_caller()._children_ns
    assert {Misuse.FOREIGN_CONTEXT: 1} == lanes.counts.to_dict()


def test_a_generator_on_top_closed_by_another_thread_ends_its_phase(lanes, ended, clock, step_thread):
    """With nothing above it, its parent gets all of its time."""

    def generate():
        with lanes.enter_phase("items"):
            yield 1

    with lanes.enter_phase("outer") as outer:
        generator = generate()
        next(generator)
        clock.advance(20)
        step_thread("other").do(generator.close)
        clock.advance(300)
    assert ["items", "outer"] == [phase.name for phase in ended]
    assert (20, 300) == tuple(self_ns(phase) for phase in ended)
    assert outer is ended[0].parent
    assert None is lanes.carrier.current_phase()


def test_a_paused_generator_closed_by_another_thread_ends_its_phase(lanes, ended, step_thread):
    """It is on no lane, and ends all the same."""

    def generate():
        with lanes.enter_phase("items") as phase:
            phase.pause()
            yield 1

    generator = generate()
    next(generator)
    step_thread("other").do(generator.close)
    assert [PhaseStatus.CANCELLED] == [phase.status for phase in ended]


def test_a_phase_left_in_another_context_is_counted(lanes, ended):
    """Entered in a copied context that was left since: it ends, by its owner, and this context is not touched."""
    with lanes.enter_phase("outer") as outer:
        with contextvars.copy_context().run(lanes.enter_phase, "inner"):
            assert outer is lanes.carrier.current_phase()
        assert outer is lanes.carrier.current_phase()
    assert ["inner", "outer"] == [phase.name for phase in ended]
    assert {Misuse.FOREIGN_CONTEXT: 1} == lanes.counts.to_dict()


# --- threads that end -------------------------------------------------------------------------------------------------


def test_a_reused_thread_id_is_a_new_lane(lanes, ended):
    """A thread that got the id of one that died with open phases neither nests in them nor can end them."""
    left = []
    ids = set()
    while True:
        thread = threading.Thread(target=lambda: left.append(lanes.enter_phase("left open")))
        thread.start()
        thread.join()
        if thread.ident in ids:
            break
        ids.add(thread.ident)
    assert {None} == {phase.parent for phase in left}
    assert {("left open",)} == {phase.path for phase in left}
    lanes.close("test")
    assert len(left) == len(ended)


def test_a_reused_thread_id_cannot_end_what_a_dead_thread_left(lanes):
    """Comparing thread ids alone would let it."""
    found = {}

    def leave() -> None:
        phase = lanes.enter_phase("left open")
        found.setdefault(threading.get_ident(), phase)

    refusals = []

    def steal() -> None:
        phase = found.get(threading.get_ident())
        if phase is None:
            leave()
            return
        for call in (phase.close, lambda: phase.__exit__(None, None, None)):
            try:
                call()
            except PhaseProtocolError as error:
                refusals.append(error.reason)

    while not refusals:
        thread = threading.Thread(target=steal)
        thread.start()
        thread.join()
    # A with block that is unwound on the same thread id looks like one in a foreign context, which ends its phase.
    assert Misuse.FOREIGN_TASK == refusals[0]
    lanes.close("test")


def test_lanes_of_ended_threads_are_forgotten(lanes, ended):
    """Their counts are kept; only those that still hold phases stay known."""
    lanes.enter_queues = ([].append,)

    def work() -> None:
        with lanes.enter_phase("work"):
            pass

    def leave() -> None:
        lanes.enter_phase("left open")

    for target in (work, work, leave, work):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    gc.collect()
    assert [["left open"]] == [[phase.name for phase in lane.phases()] for lane in lanes.lanes()]
    assert (4, 3) == lanes.boundary_counts()
    lanes.close("test")
    assert ([], (4, 4)) == (lanes.lanes(), lanes.boundary_counts())


def test_a_released_phase_of_an_ended_thread_is_counted_when_it_ends(lanes, ended):
    """Its lane is gone; offered and handed over stay equal, acquired or abandoned."""
    tokens = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: tokens.append(lanes.enter_phase("work").release()))
        thread.start()
        thread.join()
    assert [] == lanes.lanes()
    lanes.acquire(tokens[0]).close()
    lanes.close("test")
    assert [PhaseStatus.SUCCEEDED, PhaseStatus.ABANDONED] == [phase.status for phase in ended]
    assert (0, 2) == lanes.boundary_counts()


def test_a_thousand_threads(lanes, ended):
    """All alive at once, each with phases of its own; every record is right and every id different."""
    count = 1_000
    barrier = threading.Barrier(count)
    gate = threading.Event()

    def work() -> None:
        with lanes.enter_phase("outer"):
            barrier.wait()
            with lanes.enter_phase("inner"):
                gate.wait()

    threads = [threading.Thread(target=work) for _ in range(count)]
    stack_size = threading.stack_size(256 * 1024)
    try:
        for thread in threads:
            thread.start()
    finally:
        threading.stack_size(stack_size)
    gate.set()
    for thread in threads:
        thread.join()
    assert 2 * count == len(ended) == len({phase.scope_id for phase in ended})
    parents = {phase.scope_id: phase._lane for phase in ended if phase.name == "outer"}
    assert {True} == {parents[phase.parent.scope_id] is phase._lane for phase in ended if phase.name == "inner"}
    assert {PhaseStatus.SUCCEEDED} == {phase.status for phase in ended}


def test_pools_carry_nothing_over(lanes):
    """A pooled thread that serves one task after another starts each at the root."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        def work():
            with lanes.enter_phase("work") as phase:
                return phase.path

        assert {("work",)} == {pool.submit(work).result() for _ in range(5)}


# --- reset from elsewhere ---------------------------------------------------------------------------------------------


def test_reset_from_another_thread(lanes, ended, clock, step_thread):
    """Ends what is open as of now; the owner's blocks end in peace, and its next phase starts at the root."""
    with lanes.enter_phase("train") as train, lanes.enter_phase("step"):
        clock.advance(7)
        step_thread().do(lanes.close, "the recorder was reset")
        assert (PhaseStatus.ABANDONED, 7) == (train.status, train._ended_ns - train._entered_ns)
        clock.advance(100)
        with lanes.enter_phase("after") as after:
            assert (None, ("after",)) == (after.parent, after.path)
    assert ["step", "train", "after"] == [phase.name for phase in ended]
    assert None is lanes.carrier.current_phase()


def test_hammered_resets_end_every_phase_once(lanes):
    """Three threads nest as fast as they can while another one resets: each phase ends once, and every sum is right."""
    ended, entered = [], []
    lanes.exit_queues, lanes.enter_queues = (ended.append,), (entered.append,)
    stop = threading.Event()
    failures = []

    def work() -> None:
        try:
            while not stop.is_set():
                with lanes.enter_phase("a"), lanes.enter_phase("b", {"k": 1}) as phase:
                    phase.set_attribute("late", 1)
                    with lanes.enter_phase("c"):
                        pass
                if lanes.carrier.current_phase() is not None:
                    failures.append("context")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(400):
        lanes.close("the recorder was reset")
    stop.set()
    for thread in threads:
        thread.join()
    lanes.close("the session stopped")
    assert [] == failures
    numbers = [phase._sequence for phase in ended]
    assert len(set(numbers)) == len(numbers)
    assert set() == {phase[0]._sequence for phase in entered} - set(numbers)
    assert [] == [phase for phase in ended if self_ns(phase) < 0]
    assert (len(entered), len(ended)) == lanes.boundary_counts()
    walls = {phase._lane: phase._lane._children_ns for phase in ended}
    sums = dict.fromkeys(walls, 0)
    for phase in ended:
        sums[phase._lane] += self_ns(phase)
    assert walls == sums


def test_a_reset_between_the_look_at_the_lane_and_the_enter(lanes, monkeypatch, ended):
    """The phase is entered again, at the root, with its own place in the source."""
    is_first = [True]

    def path_at_first_sight(self, parent, name):
        if is_first:
            is_first.clear()
            self.close("the recorder was reset")
        return self.paths.child(parent, name)

    monkeypatch.setattr(type(lanes), "path_at_first_sight", path_at_first_sight)
    lanes.paths.child(lanes.paths.root, "train")
    with lanes.enter_phase("train"):
        phase = lanes.enter_phase("step")
        assert (("step",), None, "test_lanes_threads.py") == (
            phase.path,
            phase.parent,
            phase.location.partition(":")[0],
        )
        phase.close()
    assert ["train", "step"] == [each.name for each in ended]


# --- a sink's own thread ----------------------------------------------------------------------------------------------


def test_a_muted_thread_records_nothing(lanes, ended, step_thread):
    """A sink that enters phases must not feed itself; what others own it cannot touch."""
    worker = step_thread("worker")
    with lanes.enter_phase("train") as train:
        worker.do(lanes.mute_this_thread)
        phase = worker.do(lanes.enter_phase, "export")
        assert "<no phase>" == repr(phase)
        worker.do(phase.close)
        token = worker.do(lanes.enter, "export")
        assert None is worker.do(lanes.exit, token)
        assert phase is worker.do(lanes.retry, train, None)
        for call in (train.close, train.pause):
            with pytest.raises(PhaseProtocolError, match="from a sink's worker thread"):
                worker.do(call)
        train.pause()
        with pytest.raises(PhaseProtocolError, match="from a sink's worker thread"):
            worker.do(train.resume)
        train.resume()
        released = lanes.enter_phase("moved").release()
        assert phase is worker.do(lanes.acquire, released)
        lanes.acquire(released).close()
    assert ["moved", "train"] == [each.name for each in ended]
