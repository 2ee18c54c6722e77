"""What is written of a phase, read back by the reader and by the page of the format alone."""

# ruff: noqa: SIM117 - phases nest

from __future__ import annotations

import asyncio
import threading

import journal_independent_reader as independent_reader
import pytest
from journal_writing import Writing, count_of

from stormphase._model import PhaseStatus


@pytest.fixture
def writing(tmp_path):
    """Return lanes that are written to a journal by hand."""
    made = Writing(tmp_path / "rank-00000.attempt-0.pid-1.0.journal")
    yield made
    made.close()


def only_open(writing):
    """Return the one open phase in the journal."""
    (phase,) = writing.read().open
    return phase


def only_ended(writing):
    """Return the one ended phase in the journal."""
    (phase,) = writing.read().ended
    return phase


def test_an_open_phase_stands_with_all_that_enter_knew(writing):
    """Path, times, step, parent, thread and attributes, at once."""
    writing.lanes.step = 7
    outer = writing.lanes.enter_phase("train", {"epochs": 3, "name": "r\u00e9snet", "rates": [0.1, None, True]})
    inner = writing.lanes.enter_phase("step", sync=True)
    image = writing.read()
    assert [("train",), ("train", "step")] == [phase.path for phase in image.open]
    first, second = image.open
    assert {"epochs": 3, "name": "r\u00e9snet", "rates": [0.1, None, True]} == first.attributes
    assert (outer.scope_id, None) == (first.scope_id, first.parent_scope_id)
    assert (inner.scope_id, outer.scope_id) == (second.scope_id, second.parent_scope_id)
    assert (outer._entered_ns, 7, PhaseStatus.ACTIVE) == (first.entered_ns, first.step, first.status)
    assert (False, True) == (first.is_sync, second.is_sync)
    assert (True, "MainThread", outer._lane.number) == (first.is_main_thread, first.thread_name, first.lane)
    assert () == image.damage
    writing.lanes.close("over")


@pytest.mark.parametrize(("error", "is_settled"), [(None, True), (ValueError("bad batch"), False)])
def test_a_success_that_a_filter_keeps_back_is_nobody_s_to_recover(writing, error, is_settled):
    """It counts as handed over, as no bridge is offered it; a failure is not kept back."""
    phase = writing.lanes.enter_phase("step")
    phase._extra_or_new().is_quiet = True
    phase.close(error=error)

    assert is_settled == only_ended(writing).is_handed_over


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, PhaseStatus.SUCCEEDED),
        (ValueError("bad batch"), PhaseStatus.FAILED),
        (asyncio.CancelledError(), PhaseStatus.CANCELLED),
    ],
)
def test_an_ended_phase_says_how_and_when(writing, error, status):
    """The slot is flipped in place; an error stands beside it."""
    handle = writing.lanes.enter_phase("load", {"k": 1})
    with writing.lanes.enter_phase("inner"):
        pass
    handle.close(error=error)
    image = writing.read()
    (phase,) = [each for each in image.ended if each.path == ("load",)]
    assert (status, handle._ended_ns, handle._children_ns) == (phase.status, phase.ended_ns, phase.children_ns)
    assert {"k": 1} == phase.attributes
    assert (None if error is None else type(error).__name__) == (phase.error and phase.error.type.rsplit(".")[-1])
    assert () == image.open


def test_attributes_set_later_are_written_at_the_end(writing):
    """They win over those given at enter."""
    with writing.lanes.enter_phase("load", {"k": 1, "kept": 2}) as phase:
        phase.set_attribute("k", 3)
    assert {"k": 3, "kept": 2} == only_ended(writing).attributes


def test_a_pause_is_written_when_it_begins_and_when_it_is_over(writing):
    """A paused phase says since when; a resumed one how long it was."""
    phase = writing.lanes.enter_phase("load")
    phase.pause()
    paused = only_open(writing)
    assert (PhaseStatus.PAUSED, phase._extra.paused_since_ns) == (paused.status, paused.paused_since_ns)
    phase.resume()
    resumed = only_open(writing)
    assert (PhaseStatus.ACTIVE, None) == (resumed.status, resumed.paused_since_ns)
    assert phase._extra.paused_ns == resumed.paused_ns > 0
    phase.close()
    assert phase._extra.paused_ns == only_ended(writing).paused_ns
    (totals,) = writing.read().totals.values()
    assert totals.total_ns - totals.paused_ns == totals.self_ns


def test_a_retry_names_what_it_retries(writing):
    """Attempt and scope id of the one before."""
    with writing.lanes.enter_phase("load") as first:
        pass
    second = writing.lanes.retry(first, None)
    assert (1, first.scope_id) == (only_open(writing).attempt, only_open(writing).retry_of)
    second.close()


def test_a_phase_that_changes_hands_is_one_phase(writing, step_thread):
    """Released in one thread and acquired in another: one sequence, the new owner's thread, no copy left behind."""
    token = writing.lanes.enter_phase("load", {"k": 1}).release()
    other = step_thread("loader")
    taken = other.do(writing.lanes.acquire, token)
    phase = only_open(writing)
    assert ("loader", False, {"k": 1}) == (phase.thread_name, phase.is_main_thread, phase.attributes)
    other.do(taken.close)
    image = writing.read()
    assert ((), 1) == (image.open, count_of(image))


def test_a_phase_that_the_folder_moves_while_it_changes_hands_is_one_phase(writing, step_thread, monkeypatch):
    """The handle of the next owner learns where the phase stands by then."""
    token = writing.lanes.enter_phase("load").release()
    writing.fill(count=300)
    other = step_thread()
    original = type(token._handle).clone

    def clone_and_fold(self):
        twin = original(self)
        writing.fold()
        return twin

    monkeypatch.setattr(type(token._handle), "clone", clone_and_fold)
    taken = other.do(writing.lanes.acquire, token)
    assert [("load",)] == [phase.path for phase in writing.read().open]
    other.do(taken.close)
    writing.fold()
    image = writing.read()
    assert ((), 301, 0) == (image.open, count_of(image), image.unfolded)


def test_what_another_thread_abandons_keeps_its_thread(writing, step_thread):
    """At a stop the main thread ends the phases of all threads; each still says whose it was."""
    other = step_thread("loader")
    other.do(writing.lanes.enter_phase, "load")
    writing.lanes.enter_phase("train")
    writing.lanes.close("the session stopped")
    phases = {phase.path: phase for phase in writing.read().ended}
    assert {"loader", "MainThread"} == {phase.thread_name for phase in phases.values()}
    assert "the session stopped" == phases["load",].status_text
    assert (PhaseStatus.ABANDONED, False) == (phases["load",].status, phases["load",].is_main_thread)


def test_a_task_names_itself_where_its_lane_begins(writing):
    """The outermost phase of a task's lane says which task it is, for all that are inside it."""

    async def work():
        with writing.lanes.enter_phase("fetch"):
            with writing.lanes.enter_phase("read"):
                return writing.read()

    async def main():
        return await asyncio.create_task(work(), name="fetcher")

    image = asyncio.run(main())
    assert [("fetcher", True), ("fetcher", False)] == [(phase.task_name, phase.is_lane_root) for phase in image.open]


def test_every_task_of_a_thread_names_itself(writing):
    """Not only the first, whose phase takes a segment and is written with all there is to say anyway."""

    async def work():
        with writing.lanes.enter_phase("fetch"):
            await asyncio.sleep(0)
            return [phase.task_name for phase in writing.read().open]

    async def gather():
        return await asyncio.gather(*(asyncio.create_task(work(), name=name) for name in "abc"))

    with writing.lanes.enter_phase("before"):
        pass
    assert ["a", "b", "c"] == asyncio.run(gather())[0]


def test_attributes_beyond_a_blob_are_left_out_and_that_is_said(writing):
    """The first ones that fit are kept."""
    attributes = {f"k{number}": "x" * 900 for number in range(40)}
    phase = writing.lanes.enter_phase("load", attributes)
    found = only_open(writing)
    assert found.is_cut
    assert found.attributes.items() <= attributes.items()
    assert 2 <= len(found.attributes)
    phase.close()


def test_attributes_that_fitted_at_enter_fit_whatever_comes(writing):
    """A pause, a long error and a move add to them and cost none of them."""
    attributes = {f"k{number}": "x" * 900 for number in range(8)}
    phase = writing.lanes.enter_phase("load", attributes)
    assert not only_open(writing).is_cut
    phase.pause()
    assert attributes == only_open(writing).attributes
    phase.resume()
    writing.fill(count=300)
    writing.fold()
    assert attributes == only_open(writing).attributes
    phase.close(error=ValueError("y" * 5_000))
    (found,) = [each for each in writing.read().ended if each.error]
    assert attributes == found.attributes


def test_what_an_ended_thread_wrote_is_folded_and_stays(writing):
    """Its segment goes to the worker with the first phase of a later thread, and nothing of it is lost."""
    for name in ("first", "second"):
        thread = threading.Thread(target=writing.fill, args=(name, 3))
        thread.start()
        thread.join()
    assert 1 == len(writing.journal._worker._queue)
    writing.fold()
    image = writing.read()
    assert ((), 6) == (image.open, count_of(image))
    assert {("first",): 3, ("second",): 3} == {path: totals.count for path, totals in image.totals.items()}


def test_a_path_without_a_number_is_told_in_full(tmp_path, monkeypatch):
    """Beyond 4,096 paths each phase says its own name."""
    monkeypatch.setattr("stormphase.journal._format.MAX_PATHS", 1)
    writing = Writing(tmp_path / "rank-0.journal")
    with writing.lanes.enter_phase("a"), writing.lanes.enter_phase("b"), writing.lanes.enter_phase("c", {"k": 1}):
        image = writing.read()
    assert [("a",), ("a", "b"), ("a", "b", "c")] == [phase.path for phase in image.open]
    assert {"k": 1} == image.open[2].attributes
    totals = writing.read().totals
    assert {("a",): 1, ("(other)",): 2} == {path: each.count for path, each in totals.items()}
    writing.close()


def test_an_enter_that_a_signal_handler_breaks_off_leaves_nothing(writing):
    """The phase is taken back: it is neither open nor counted."""

    def raise_now(*_):
        raise KeyboardInterrupt

    writing.lanes.enter_phase("warm").close()
    writing.lanes.enter_queues = (raise_now,)
    with pytest.raises(KeyboardInterrupt):
        writing.lanes.enter_phase("load")
    writing.lanes.enter_queues = ()
    # The queues come last: what they raise leaves the phase entered, as the lane says.
    writing.lanes.close("over")
    image = writing.read()
    assert ((), 2, ()) == (image.open, count_of(image), image.damage)


def test_an_enter_whose_writing_a_signal_handler_breaks_off_has_never_been(writing, monkeypatch):
    """Neither the lane nor the journal has the phase, and the next one gets its place."""

    def raise_now(*_):
        raise KeyboardInterrupt

    with writing.lanes.enter_phase("train") as train:
        with monkeypatch.context() as patch:
            patch.setattr(train._lane.writer, "write_enter", raise_now)
            with pytest.raises(KeyboardInterrupt):
                writing.lanes.enter_phase("train")
        assert [train] == list(writing.lanes.open_phases())
        assert [("train",)] == [each.path for each in writing.read().open]
    assert ((), 1) == (writing.read().open, count_of(writing.read()))


def test_an_end_whose_writing_a_signal_handler_breaks_off_is_told_all_the_same(writing):
    """Sinks hear of it once, and it is counted as offered."""

    def raise_now(*_):
        raise KeyboardInterrupt

    told = []
    writing.lanes.exit_queues = (told.append,)
    phase = writing.lanes.enter_phase("load")
    phase._lane.write_exit = raise_now
    with pytest.raises(KeyboardInterrupt):
        phase.__exit__(None, None, None)
    assert ([phase], (0, 1)) == (told, writing.lanes.boundary_counts())
    assert PhaseStatus.SUCCEEDED == phase.status


def test_a_generator_closed_elsewhere_has_ended_in_the_journal_too(writing, step_thread):
    """Its phase ends from beneath what is open above it, which stays open."""

    def generate():
        with writing.lanes.enter_phase("items"):
            yield 1

    generator = generate()
    next(generator)
    above = writing.lanes.enter_phase("above")
    step_thread().do(generator.close)
    image = writing.read()
    assert ([("items", "above")], 1) == ([each.path for each in image.open], count_of(image))
    above.close()
    assert ((), 2) == (writing.read().open, count_of(writing.read()))


def test_no_memory_for_the_details_costs_no_end(writing, monkeypatch):
    """A phase that fails while nothing can be allocated has ended all the same, and its own error surfaces."""

    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr("stormphase.journal._writer.all_facts", no_memory)
    with pytest.raises(ValueError, match="bad batch"), writing.lanes.enter_phase("load"):
        raise ValueError("bad batch")
    assert PhaseStatus.FAILED == only_ended(writing).status
    phase = writing.lanes.enter_phase("load")
    phase.pause()
    phase.close()
    assert ((), 2) == (writing.read().open, count_of(writing.read()))


def test_the_page_of_the_format_reads_what_is_written(writing):
    """A reader that knows that page alone finds the same phases, totals and names."""
    writing.lanes.step = 3
    outer = writing.lanes.enter_phase("train", {"k": [1, {"a": 2}]})
    with writing.lanes.enter_phase("step") as step:
        step.set_attribute("late", 2**40)
    paused = writing.lanes.enter_phase("load")
    paused.pause()
    writing.fill(count=500)
    writing.fold()
    facts, phases, counts = independent_reader.read(writing.path.read_bytes())
    assert "a-session" == facts["session_id"]
    image = writing.read()
    expected = {phase.sequence: phase.path for phase in (*image.open, *image.ended)}
    assert expected == {number: phase["path"] for number, phase in phases.items()}
    assert {path: totals.count for path, totals in image.totals.items()} == counts
    assert "paused" == phases[paused._sequence]["status"]
    assert {"k": [1, {"a": 2}]} == phases[outer._sequence]["attributes"]
    assert (3, {"late": 2**40}) == (phases[step._sequence]["step"], phases[step._sequence]["attributes"])
    writing.lanes.close("over")
