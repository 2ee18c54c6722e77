"""Who is to blame: the first failure and not the last, each apart, and from records alone."""

# ruff: noqa: PT012 - phases nest in blocks that fail

from __future__ import annotations

import asyncio
import contextlib
import itertools

import attrs
import pytest

from stormphase import _errors
from stormphase._attribution import attribute
from stormphase._boundary import exit_boundary
from stormphase._liveness import own_process
from stormphase._model import PhaseStatus
from stormphase._record import PhaseRecord, RecordKind
from stormphase._recording import record_of

FAILED, LOST, SUCCEEDED, CANCELLED = (
    PhaseStatus.FAILED,
    PhaseStatus.LOST,
    PhaseStatus.SUCCEEDED,
    PhaseStatus.CANCELLED,
)
_numbers = itertools.count(1)


def record(path, parent=None, *, status=SUCCEEDED, ended_ns=100, kind=RecordKind.PHASE, error=None, cause=None, **more):
    """Return a record under another one; `cause` is the record that it names as its root cause."""
    number = next(_numbers)
    scope_id = f"{number:016x}"
    is_failed = status is FAILED
    root = None if not is_failed else cause or None
    return PhaseRecord(
        **{
            "session_id": "s",
            "kind": kind,
            "rank": None if kind is RecordKind.SESSION else 0,
            "scope_id": scope_id,
            "parent_scope_id": None if parent is None else parent.scope_id,
            "path": tuple(path.split("/")) if path else (),
            "sequence": number,
            "status": status,
            "entered_ns": 0,
            "ended_ns": ended_ns,
            "error_type": error or ("ValueError" if is_failed else None),
            "root_cause_scope_id": (scope_id if root is None else root.scope_id) if is_failed else None,
            "root_cause_path": (tuple(path.split("/")) if root is None else root.path) if is_failed else None,
            **more,
        }
    )


def names(records):
    """Return the names of records, in their order."""
    return [each.name for each in records]


def blamed(attribution, each):
    """Return the name of what a record is to blame for, or None."""
    blame = attribution.blame_of(each)
    return None if blame is None or blame.record is None else blame.record.name


def of_phases(phases):
    """Return the records of ended phases, in the order in which they ended."""
    return [record_of(exit=exit_boundary(phase)) for phase in phases]


# --- what really ran --------------------------------------------------------------------------------------------------


def test_a_failure_shows_on_every_phase_that_it_passed(lanes, ended):
    """The innermost is the root cause of all; nothing else is listed."""
    with pytest.raises(ValueError, match="x"), lanes.enter_phase("train"), lanes.enter_phase("step"):
        with lanes.enter_phase("load"):
            pass
        with lanes.enter_phase("forward"):
            raise ValueError("x")
    records = of_phases(ended)
    found = attribute(records)
    assert [None, "forward", "forward", "forward"] == [blamed(found, each) for each in records]
    (failure,) = found.failures
    assert ("forward", ["step", "train"], False) == (
        failure.record.name,
        names(failure.reached),
        failure.is_contained,
    )
    assert {()} == {found.blame_of(each).others for each in records[1:]}
    assert {("train", "step", "forward")} == {found.blame_of(each).path for each in records[1:]}


def test_a_handled_failure_stays_where_it_was(lanes, ended):
    """Its phase failed, the one around it has nothing to do with it."""
    with lanes.enter_phase("train"), contextlib.suppress(ValueError), lanes.enter_phase("clean"):
        raise ValueError("x")
    found = attribute(of_phases(ended))
    clean, train = of_phases(ended)
    assert ("clean", None) == (blamed(found, clean), blamed(found, train))
    assert [("clean", True)] == [(failure.record.name, failure.is_contained) for failure in found.failures]


def test_an_ancestor_that_fails_by_itself_is_its_own_cause(lanes, ended):
    """What was handled beneath it is listed, and is not why it failed."""
    with pytest.raises(KeyError), lanes.enter_phase("train"):
        with contextlib.suppress(ValueError), lanes.enter_phase("clean"):
            raise ValueError("x")
        raise KeyError("y")
    clean, train = of_phases(ended)
    found = attribute([clean, train])
    assert ("train", ["clean"]) == (blamed(found, train), names(found.blame_of(train).others))
    assert ["clean", "train"] == names(failure.record for failure in found.failures)


def test_parallel_failures_stay_apart_and_are_all_listed(lanes, ended, clock):
    """Two tasks fail: the exception that reached the parent is its cause, the other one is listed beside it."""

    async def branch(name, go_on):
        with lanes.enter_phase(name):
            await go_on.wait()
            raise ValueError(name)

    async def main():
        slow, quick = asyncio.Event(), asyncio.Event()
        with lanes.enter_phase("train"):
            both = [asyncio.create_task(branch("slow", slow)), asyncio.create_task(branch("quick", quick))]
            quick.set()
            with contextlib.suppress(ValueError):
                await both[1]
            clock.advance(1)
            slow.set()
            with contextlib.suppress(ValueError):
                await both[0]
            await both[1]

    with pytest.raises(ValueError, match="quick"):
        asyncio.run(main())
    records = of_phases(ended)
    found = attribute(records)
    assert ["quick", "slow", "train"] == names(records)
    assert ["quick", "slow"] == names(failure.record for failure in found.failures)
    assert ["quick", "slow", "quick"] == [blamed(found, each) for each in records]
    assert ["slow"] == names(found.blame_of(records[2]).others)


def test_raise_from_and_groups_are_followed(lanes, ended):
    """A group raised from inside an error raised from another one: the first of all is the root cause."""
    with pytest.raises(ExceptionGroup) as group, lanes.enter_phase("train"):
        caught = []
        for name in ("first", "second"):
            with pytest.raises(RuntimeError) as failure, lanes.enter_phase(name), lanes.enter_phase(f"{name} inner"):
                try:
                    raise ValueError(name)
                except ValueError as error:
                    raise RuntimeError(name) from error
            caught.append(failure.value)
        raise ExceptionGroup("both", caught[::-1])
    records = of_phases(ended)
    found = attribute(records)
    assert ["first inner", "first inner", "second inner", "second inner", "first inner"] == [
        blamed(found, each) for each in records
    ]
    assert ["second inner"] == names(found.blame_of(records[-1]).others)
    told = _errors.describe_for_session(group.value, lanes, "0" * 16, _errors.FULL)
    assert records[0].scope_id == told.root_cause_scope_id


def test_a_late_child_never_marks_the_next_attempt(lanes, ended, step_thread, clock):
    """It belongs to the first try, which had ended before: neither try is to blame for it."""
    worker = step_thread()
    with contextlib.suppress(OSError), lanes.enter_phase("load") as first:
        worker.do(lambda: None)
        late = worker.do(lanes.enter_phase, "late")
        late._extra_or_new().origin = first
        raise OSError("first")
    clock.advance(1)
    with lanes.retry(first, None):
        worker.do(lambda: late.close(error=ValueError("late")))
    records = of_phases(ended)
    found = attribute(records)
    assert ["load", "late", "load"] == names(records)
    assert ["load", "late", None] == [blamed(found, each) for each in records]
    assert () == found.blame_of(records[0]).others
    assert [0, 0, 1] == [each.attempt for each in records]


# --- what was recovered -----------------------------------------------------------------------------------------------


def test_a_process_died_in_its_innermost_phase():
    """All that was open is LOST, and the innermost of it is where it happened; rank and session show it."""
    session = record("", kind=RecordKind.SESSION, status=LOST)
    rank = record("", session, kind=RecordKind.RANK, status=LOST)
    train = record("train", status=LOST)
    step = record("train/step", train, status=LOST, entered_ns=5)
    done = record("train/step/load", step, ended_ns=7)
    forward = record("train/step/forward", step, status=LOST, entered_ns=9)
    records = [session, rank, train, step, done, forward]
    found = attribute(records)
    assert ["forward", "forward", "forward", "forward", None, "forward"] == [blamed(found, each) for each in records]
    assert ["forward"] == names(failure.record for failure in found.failures)


def test_of_several_lanes_the_newest_phase_is_where_it_died():
    """Which lane killed it nobody knows: what was entered last is taken, and the others are listed."""
    rank = record("", kind=RecordKind.RANK, status=LOST)
    load, train = record("load", status=LOST, entered_ns=1), record("train", status=LOST, entered_ns=2)
    found = attribute([load, rank, train])
    assert "train" == blamed(found, rank)
    assert ["load", "train"] == [blamed(found, each) for each in (load, train)]


def test_a_pool_that_broke_was_broken_by_the_worker_that_was_lost():
    """The parent's error says that a process has gone; the LOST phase beneath is the cause of it, all the way up."""
    train = record("train", status=FAILED)
    fit = record("train/fit", train, status=FAILED, error="concurrent.futures.process.BrokenProcessPool")
    train = attrs.evolve(train, root_cause_scope_id=fit.scope_id)
    submit = record("train/fit/submit", fit, ended_ns=50)
    worker = record("train/fit/submit/worker", submit, status=LOST, ended_ns=60)
    found = attribute([train, fit, submit, worker])
    assert ["worker", "worker", None, "worker"] == [blamed(found, each) for each in (train, fit, submit, worker)]
    assert ["fit", "train"] == names(found.failures[0].reached)


@pytest.mark.parametrize(
    ("error", "lost_ns"), [("ValueError", 60), ("BrokenPipeError", 101), (None, 60)], ids=["other", "later", "unsaid"]
)
def test_a_lost_phase_is_no_cause_without_evidence(error, lost_ns):
    """An error of another kind, or from before the loss, is the phase's own; the loss is listed if it was before."""
    train = attrs.evolve(record("train", status=FAILED), error_type=error)
    worker = record("train/worker", train, status=LOST, ended_ns=lost_ns)
    found = attribute([train, worker])
    assert ("train", "worker") == (blamed(found, train), blamed(found, worker))
    assert ([worker] if lost_ns < 100 else []) == list(found.blame_of(train).others)


def test_a_session_is_to_blame_for_its_ranks():
    """Rank 0 went well and wrote so; rank 1 did not: the session shows the failure that came first."""
    session = record("", kind=RecordKind.SESSION)
    ranks = [record("", session, kind=RecordKind.RANK, rank=number) for number in range(3)]
    train = [record("train", rank=number, status=FAILED, ended_ns=90 - number) for number in (1, 2)]
    for index, cause in zip((1, 2), train, strict=True):
        ranks[index] = attrs.evolve(
            ranks[index], status=FAILED, root_cause_scope_id=cause.scope_id, ended_ns=95 - index
        )
    found = attribute([session, *ranks, *train])
    assert [2, None, 1, 2] == [
        None if (blame := found.blame_of(each)) is None else blame.record.rank for each in (session, *ranks)
    ]
    assert [1] == [other.rank for other in found.blame_of(session).others]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_several_ranks_the_first_to_fail_is_the_sessions_cause(order):
    """In whatever order they come."""
    session = record("", kind=RecordKind.SESSION)
    ranks = [
        record("", session, kind=RecordKind.RANK, rank=number, status=FAILED, ended_ns=50 - number)
        for number in range(2)
    ]
    found = attribute([session, *(ranks[index] for index in order)])
    assert 1 == found.blame_of(session).record.rank


def test_restarts_of_a_session_are_apart():
    """The same scope ids under another attempt of the session are other phases."""
    first = record("train", status=FAILED)
    again = attrs.evolve(first, session_attempt=1, status=SUCCEEDED, root_cause_scope_id=None)
    found = attribute([first, again])
    assert ("train", None) == (blamed(found, first), blamed(found, again))


def test_a_cause_whose_record_is_missing_is_named_all_the_same():
    """Its id and path are known from the phases it passed."""
    gone = record("train/step", status=FAILED)
    train = record("train", status=FAILED, cause=gone)
    fit = record("fit", status=FAILED, cause=train)
    found = attribute([train, fit])
    assert [(gone.scope_id, ("train", "step"), None)] * 2 == [
        (blame.scope_id, blame.path, blame.record) for blame in map(found.blame_of, (train, fit))
    ]
    assert () == found.failures


def test_a_cancelled_phase_may_be_the_cause():
    """A timeout is raised from the cancellation of what took too long: that is where it arose."""
    load = record("train/load", status=CANCELLED)
    train = record("train", status=FAILED, error="TimeoutError", cause=load)
    found = attribute([load, train])
    assert (None, "load") == (blamed(found, load), blamed(found, train))


def test_of_two_records_with_one_key_the_later_counts():
    """A history holds a phase as it was when open and as it ended."""
    train = record("train", status=FAILED)
    still_open = attrs.evolve(train, status=PhaseStatus.ACTIVE, ended_ns=None, root_cause_scope_id=None)
    assert 1 == len(attribute([still_open, train]).failures)
    assert 0 == len(attribute([train, still_open]).failures)


def test_parents_in_a_circle_end():
    """A damaged file may say anything."""
    first = record("a", status=FAILED)
    second = record("b", first, status=FAILED)
    first = attrs.evolve(first, parent_scope_id=second.scope_id)
    own = record("c", status=FAILED)
    own = attrs.evolve(own, parent_scope_id=own.scope_id)
    assert ["b", "a", "c"] == sorted(names(f.record for f in attribute([first, second, own]).failures), key="bac".index)


def test_an_open_phase_lists_what_failed_beneath_it_once_it_has():
    """A process that lives: nothing is said of what is open, though a phase beneath it failed."""
    train = record("train", status=PhaseStatus.ACTIVE, ended_ns=None)
    step = record("train/step", train, status=FAILED)
    found = attribute([train, step])
    assert (None, "step") == (blamed(found, train), blamed(found, step))
    assert attribute([]).failures == ()


def test_a_forked_process_died_in_its_innermost_phase():
    """Its record stands between its phases and the one that was open at the fork, and has the same cause as they."""
    train = record("train", status=FAILED, error="BrokenProcessPool")
    process = attrs.evolve(own_process(), pid=1)
    child = record("", train, kind=RecordKind.PROCESS, status=LOST, process=process)
    load = record("train/load", train, status=LOST, entered_ns=1, process=process)
    parse = record("train/load/parse", load, status=LOST, entered_ns=2, process=process)
    found = attribute([train, child, load, parse])
    assert ["parse"] * 4 == [blamed(found, each) for each in (train, child, load, parse)]


# --- workers ----------------------------------------------------------------------------------------------------------


def process_of(pid):
    """Return which process that is."""
    return attrs.evolve(own_process(), pid=pid)


def worker_of(parent, **more):
    """Return the record of a worker process of the rank, and what all its phases share."""
    process = process_of(next(_numbers))
    made = record("", parent, kind=RecordKind.PROCESS, process=process, **more)
    return made, {"process": process}


@pytest.mark.parametrize("error", ["subprocess.CalledProcessError", "ChildProcessError", "ValueError"])
def test_what_a_process_failed_by_last_broke_what_waited_for_it(error):
    """Only its exit code came back, so the error must say so: any other one is a failure by itself."""
    rank = record("", kind=RecordKind.RANK, process=process_of(1))
    _, worker = worker_of(rank)
    train = record("train", rank, status=FAILED, error=error, process=process_of(1))
    inner = record("train/work/inner", status=FAILED, ended_ns=40, **worker)
    work = record("train/work", train, status=FAILED, ended_ns=50, cause=inner, **worker)
    inner = attrs.evolve(inner, parent_scope_id=work.scope_id)
    found = attribute([rank, train, work, inner])
    assert ("train" if error == "ValueError" else "inner") == blamed(found, train)


@pytest.mark.parametrize("way", ["it went on", "it failed later", "it is the caller's own"])
def test_a_failure_that_ended_no_process_broke_nothing(way):
    """A worker that went on has handled it; what fails later cannot have been the cause; nor a phase of one's own."""
    rank = record("", kind=RecordKind.RANK, process=process_of(1))
    _, worker = worker_of(rank)
    train = record("train", rank, status=FAILED, error="ChildProcessError", process=process_of(1))
    at_ns = 150 if way == "it failed later" else 50
    if way == "it is the caller's own":
        worker = {"process": process_of(1)}
    work = record("train/work", train, status=FAILED, ended_ns=at_ns, **worker)
    more = [record("train/next", train, ended_ns=70, **{**worker, "entered_ns": 60})] if way == "it went on" else []
    found = attribute([rank, train, work, *more])
    assert "train" == blamed(found, train)


def test_of_several_processes_that_failed_the_last_one_ended_the_phase():
    """As of several commands that are run one after the other."""
    rank = record("", kind=RecordKind.RANK, process=process_of(1))
    train = record("train", rank, status=FAILED, error="subprocess.CalledProcessError", process=process_of(1))
    tries = [record(f"train/{at}", train, status=FAILED, ended_ns=at, process=process_of(at)) for at in (30, 10, 20)]
    assert "30" == blamed(attribute([rank, train, *tries]), train)


def test_a_process_that_had_nothing_open_has_not_failed():
    """Pools end theirs without a word; one that broke what waited for it is its cause all the same."""
    rank = record("", kind=RecordKind.RANK, process=process_of(1))
    train = record("train", rank, status=SUCCEEDED, process=process_of(1))
    idle, _ = worker_of(train, status=LOST, ended_ns=50)
    assert () == attribute([rank, train, idle]).failures
    train = attrs.evolve(
        train, status=FAILED, error_type="BrokenProcessPool", root_cause_scope_id=train.scope_id, ended_ns=60
    )
    assert "process" == blamed(attribute([rank, train, idle]), train)


def test_a_process_of_a_pool_is_lost_in_the_phase_that_it_worked_for():
    """It began under another one, or under the rank: that went well, and the process names what it was lost in."""
    rank = record("", kind=RecordKind.RANK, process=process_of(1))
    first = record("first", rank, process=process_of(1))
    second = record("second", rank, status=FAILED, error="BrokenProcessPool", process=process_of(1))
    for began_under in (first, rank):
        worker, its = worker_of(began_under, status=LOST, ended_ns=50)
        work = record("second/work", second, status=LOST, ended_ns=50, **its)
        worker = attrs.evolve(worker, root_cause_scope_id=work.scope_id)
        found = attribute([rank, first, second, worker, work])
        (failure,) = found.failures
        assert ("work", {"second", "process"}) == (failure.record.name, set(names(failure.reached)))
        assert None is found.blame_of(first)


SECOND = 1_000_000_000


def pool_of(*ended_s, cause=None):
    """Return a phase that a pool broke, and the LOST phases of workers that were last seen at these seconds."""
    rank = record("", kind=RecordKind.RANK, process=process_of(1))
    fit = record("fit", rank, status=FAILED, error="BrokenProcessPool", process=process_of(1), ended_ns=100 * SECOND)
    lost = [
        record(f"fit/{number}", fit, status=LOST, ended_ns=int(at_s * SECOND), process=process_of(10 + number))
        for number, at_s in enumerate(ended_s)
    ]
    if cause is not None:
        fit = attrs.evolve(fit, root_cause_scope_id=lost[cause].scope_id, root_cause_path=lost[cause].path)
    return rank, fit, *lost


@pytest.mark.parametrize("named_before", [None, 0, 1], ids=["fresh", "first was named", "second was named"])
@pytest.mark.parametrize("apart_s", [0, 0.2, 5])
def test_of_two_workers_that_died_at_one_time_none_is_named(apart_s, named_before):
    """A pool whose worker dies kills the others, and which was last seen first says nothing: both are listed."""
    rank, fit, *lost = pool_of(50, 50 + apart_s, cause=named_before)
    found = attribute([rank, fit, *lost])
    assert ("fit", ["0", "1"]) == (blamed(found, fit), names(found.blame_of(fit).others))
    assert ["0", "1", "fit"] == names(failure.record for failure in found.failures)


def test_a_worker_that_died_clearly_before_the_others_is_named():
    """Longer before than a process is silent at most."""
    rank, fit, *lost = pool_of(50, 57, 40)
    found = attribute([rank, fit, *lost])
    assert ("2", ["0", "1"]) == (blamed(found, fit), names(found.blame_of(fit).others))


def test_a_worker_that_died_after_the_failure_is_no_rival():
    """What came later has not broken it."""
    rank, fit, *lost = pool_of(98, 101)
    assert "0" == blamed(attribute([rank, fit, *lost]), fit)


def test_an_idle_worker_is_no_rival():
    """The pool has ended it, as it does every day."""
    rank, fit, lost = pool_of(50)
    idle = record("", rank, kind=RecordKind.PROCESS, status=LOST, ended_ns=49 * SECOND, process=process_of(9))
    found = attribute([rank, fit, lost, idle])
    assert ("0", None) == (blamed(found, fit), found.blame_of(idle))


def test_a_rank_that_was_lost_with_its_workers_was_lost_where_it_was_itself():
    """Whoever killed them all: what the rank had open says more than what a worker had."""
    rank = record("", kind=RecordKind.RANK, status=LOST, process=process_of(1), ended_ns=51 * SECOND)
    fit = record("fit", rank, status=LOST, process=process_of(1), ended_ns=51 * SECOND)
    wait = record("fit/wait", fit, status=LOST, process=process_of(1), ended_ns=51 * SECOND, entered_ns=5)
    work = record("fit/work", fit, status=LOST, process=process_of(2), ended_ns=50 * SECOND)
    found = attribute([rank, fit, wait, work])
    assert ["wait", "wait", "wait", "work"] == [blamed(found, each) for each in (rank, fit, wait, work)]


def test_a_circle_of_causes_leaves_each_its_own():
    """Only damage makes one; what leads into it ends there."""
    first, second, third = (record(f"train/{name}", status=FAILED) for name in ("first", "second", "third"))
    first = attrs.evolve(first, root_cause_scope_id=second.scope_id)
    second = attrs.evolve(second, root_cause_scope_id=first.scope_id)
    third = attrs.evolve(third, root_cause_scope_id=first.scope_id)
    found = attribute([third, first, second])
    assert second.scope_id == found.blame_of(first).scope_id
    assert first.scope_id == found.blame_of(second).scope_id
    assert found.blame_of(third).scope_id in {first.scope_id, second.scope_id}
