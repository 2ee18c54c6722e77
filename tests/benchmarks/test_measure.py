"""The timing core, with a clock that moves only when a subject works."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import measure
else:  # Benchmarks are scripts of one folder; the suite leaves sys.path alone, so the module is loaded by its path.
    _SPEC = importlib.util.spec_from_file_location("measure", Path(__file__).with_name("measure.py"))
    measure = importlib.util.module_from_spec(_SPEC)
    sys.modules.setdefault("measure", measure)  # dataclasses look their module up
    _SPEC.loader.exec_module(measure)


class Machine:
    """A clock whose time passes only by work."""

    def __init__(self):
        self.now_ns = 0
        self.log = []

    def read(self):
        """The time by now."""
        return self.now_ns


class Worker(measure.Subject):
    """A subject that takes so long per operation, and so long to settle."""

    def __init__(self, machine, name, operation_ns, *, settle_ns=0, largest_batch=1_000, extra_ns=()):
        self.machine = machine
        self.name = name
        self.operation_ns = operation_ns
        self.settle_ns = settle_ns
        self.largest_batch = largest_batch
        self.extra_ns = list(extra_ns)
        self.done = 0

    def prepare(self):
        """Note the turn."""
        self.machine.log.append(f"prepare {self.name}")

    def batch(self, count):
        """Let time pass."""
        self.machine.log.append(f"batch {self.name}")
        self.machine.now_ns += count * self.operation_ns + (self.extra_ns.pop(0) if self.extra_ns else 0)
        self.done += count

    def settle(self):
        """Let time pass after the batch."""
        self.machine.log.append(f"settle {self.name}")
        self.machine.now_ns += self.settle_ns

    def delivered_count(self):
        """As many as were owed."""
        return self.done * self.delivered_per_operation


PLAN = measure.Plan(rounds=5, sample_ns=1_000)


@pytest.fixture
def machine():
    """A machine that does nothing else."""
    return Machine()


def test_the_best_sample_counts(machine):
    """A disturbance adds time, so the cost is that of the least disturbed sample."""
    worker = Worker(machine, "w", 10, largest_batch=1, extra_ns=[0, 0, 0, 70, 30, 0, 50, 90])
    assert 10 == measure.costs([worker], PLAN, clock=machine.read)["w"].best_ns


def test_the_median_tells_how_busy_the_machine_was(machine):
    """The middle sample is reported beside the best one."""
    worker = Worker(machine, "w", 10, largest_batch=1, extra_ns=[0, 0, 0, 70, 30, 0, 50, 90])
    assert 60 == measure.costs([worker], PLAN, clock=machine.read)["w"].median_ns


def test_settling_is_not_timed_with_the_batch(machine):
    """What a subject does to hand over its work is no cost of the training thread."""
    worker = Worker(machine, "w", 10, settle_ns=5_000)
    assert 10 == measure.costs([worker], PLAN, clock=machine.read)["w"].best_ns


def test_settling_is_timed_with_the_delivery(machine):
    """The CPU of a delivery includes what the background did for it."""
    worker = Worker(machine, "w", 10, settle_ns=90, largest_batch=10)
    found = measure.costs([worker], PLAN, clock=machine.read, sample=measure.time_delivery)
    assert (100 + 90) / 10 == found["w"].best_ns


def test_each_subject_settles_before_the_next_one_starts(machine):
    """No subject works while another one is timed."""
    workers = [Worker(machine, name, 10, largest_batch=1) for name in "ab"]
    measure.costs(workers, PLAN, clock=machine.read)
    turns = [machine.log[index : index + 3] for index in range(0, len(machine.log), 3)]
    calibrations, rounds = "aaabbb", "abbaabbaab"
    assert [[f"prepare {name}", f"batch {name}", f"settle {name}"] for name in calibrations + rounds] == turns


def test_a_batch_takes_about_as_long_as_planned(machine):
    """The size of a batch is found by doubling and then cut to the sample's length."""
    assert 14 == measure.costs([Worker(machine, "w", 70)], PLAN, clock=machine.read)["w"].batch_count


def test_a_disturbance_does_not_shrink_a_batch(machine):
    """A garbage collection in the first sample says nothing of what an operation takes."""
    worker = Worker(machine, "w", 70, extra_ns=[50_000])
    assert 14 == measure.costs([worker], PLAN, clock=machine.read)["w"].batch_count


def test_a_batch_has_one_operation_at_least(machine):
    """An operation longer than a sample is measured one by one."""
    assert 1 == measure.costs([Worker(machine, "w", 10_000)], PLAN, clock=machine.read)["w"].batch_count


def test_a_batch_is_never_larger_than_the_subject_allows(machine):
    """A queue that holds 30 gets 30."""
    worker = Worker(machine, "w", 1, largest_batch=30)
    assert 30 == measure.costs([worker], PLAN, clock=machine.read)["w"].batch_count


def test_every_operation_is_counted(machine):
    """Those of the calibration are part of what has to be delivered."""
    worker = Worker(machine, "w", 70)
    assert measure.costs([worker], PLAN, clock=machine.read)["w"].operation_count == worker.done


def test_a_percentile_is_a_value_that_occurred():
    """Nearest rank: of a hundred values, the 99th; of one, that one."""
    assert [99, 50, 7] == [
        measure.percentile(range(1, 101), 99),
        measure.percentile(range(1, 101), 50),
        measure.percentile([7], 99),
    ]


def test_no_values_have_no_percentile():
    """Asking for it says what to do instead."""
    with pytest.raises(ValueError, match="measure at least one"):
        measure.percentile([], 99)


def test_the_tail_is_that_of_the_best_round(machine):
    """A round with outside noise does not count; what happens in every round does."""
    slow_once, slow_twice = [0] * 98 + [40, 0], [0] * 98 + [40, 900]
    worker = Worker(machine, "w", 10, extra_ns=slow_twice + slow_once + slow_twice)
    found = measure.tails([worker], rounds=3, operations=100, clock=machine.read)
    assert measure.Tail(p99_ns=10, p50_ns=10, operation_count=300) == found["w"]


def test_tails_take_turns(machine):
    """Subjects are measured in rounds, each starting with another one."""
    workers = [Worker(machine, name, 10) for name in "ab"]
    measure.tails(workers, rounds=2, operations=1, clock=machine.read)
    assert ["a", "b", "b", "a"] == [entry[-1] for entry in machine.log if entry.startswith("batch")]


def test_growth_is_relative_to_the_reference(machine):
    """A machine that slows down slows both: only what the subject gains on the reference is growth."""

    class Ageing(Worker):
        """Costs twice as much from its 2,000th operation on."""

        def batch(self, count):
            """Let time pass."""
            self.operation_ns = 10 if self.done < 2_000 else 20
            super().batch(count)

    sizes = iter([1_000, 1_500])
    found, done = measure.growth(
        subject := Ageing(machine, "ageing", 10),
        Worker(machine, "reference", 5),
        PLAN,
        operations=2_000,
        clock=machine.read,
        resident_bytes=lambda: next(sizes),
    )
    assert (measure.Growth(2.0, 4.0, 500, 2_000), subject.done) == (found, done)


def test_what_was_delivered_is_returned(machine):
    """Counts that agree are the proof that belongs to a figure."""
    worker = Worker(machine, "w", 10)
    worker.delivered_per_operation = 3
    worker.batch(4)
    assert 12 == measure.check_delivery(worker, 4)


@pytest.mark.parametrize("operation_count", [3, 5])
def test_a_delivery_that_is_not_exact_is_refused(machine, operation_count):
    """Too few and too many both make the figures worthless."""
    worker = Worker(machine, "w", 10)
    worker.delivered_per_operation = 1
    worker.batch(4)
    with pytest.raises(measure.UndeliveredError, match="largest_batch"):
        measure.check_delivery(worker, operation_count)
