"""The timing core: who is measured when, and which of many figures counts. It reads no clock; it is given one.

Three rules, and what follows from each:

- Ratios in one run. Every subject is measured in the same process as what it is compared with, in rounds that take
  turns: whatever the machine does to one of them, it does to the other.
- Best of many. Noise only ever adds, so the smallest of many short samples is the nearest to what the code costs.
- Each while the others are quiet. A subject hands over what it holds in `settle`, before the next one has its turn.

The standard library only, so that any interpreter with any peers can run it.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Clock = Callable[[], int]
    Sample = Callable[["Subject", int, Clock], int]


# A single sample may meet a garbage collection, and a batch cut short for that measures the loop's first turn only.
_CALIBRATION_TRIES = 3


class UndeliveredError(Exception):
    """What a subject should have delivered and what arrived are not the same: its figures prove nothing."""


class Subject(Protocol):
    """One thing to measure. A class that derives from this has to write `name` and `batch` only.

    Attributes:
        name: what the results call it.
        largest_batch: how many operations one batch may have; a queue that may not overflow sets it.
        delivered_per_operation: how many things have to arrive for each operation; 0 if nothing leaves the process.
    """

    name: str
    largest_batch: int = 20_000
    delivered_per_operation: int = 0

    def open(self) -> None:
        """Make what all batches share; called once, before the first."""

    def prepare(self) -> None:
        """Set the scene of one batch; not timed."""

    def batch(self, count: int) -> None:
        """Do the operation `count` times, in a loop of its own: a call for each would count as its cost."""
        ...

    def settle(self) -> None:
        """Hand over everything the batch left behind, and be quiet; timed only where delivery is measured."""

    def close(self) -> None:
        """Give back what `open` took; called once, after the last batch."""

    def delivered_count(self) -> int:
        """How many things have arrived since `open`; asked after `close`."""
        return 0


@dataclass(frozen=True)
class Cost:
    """What one operation of a subject costs.

    Attributes:
        best_ns: in the best sample.
        median_ns: in the middle one; far above `best_ns` means that the machine was busy.
        batch_count: how many operations a sample had.
        operation_count: how many operations were done in all.
    """

    best_ns: float
    median_ns: float
    batch_count: int
    operation_count: int


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: how many samples of each subject.
        sample_ns: how long a sample should take; short ones fit between two disturbances.
    """

    rounds: int
    sample_ns: int


def time_batch(subject: Subject, count: int, clock: Clock) -> int:
    """Return the time of a batch on the calling thread, in the clock's units; what it left behind settles untimed."""
    subject.prepare()
    started = clock()
    subject.batch(count)
    elapsed = clock() - started
    subject.settle()
    return elapsed


def time_delivery(subject: Subject, count: int, clock: Clock) -> int:
    """Return the time of a batch up to the delivery of all of it, in the clock's units."""
    subject.prepare()
    started = clock()
    subject.batch(count)
    subject.settle()
    return clock() - started


def costs(subjects: Sequence[Subject], plan: Plan, *, clock: Clock, sample: Sample = time_batch) -> dict[str, Cost]:
    """Measure subjects that are open, in rounds that take turns, and return each one's cost by name.

    Each round starts with another subject, so that none always follows the same one.
    """
    counts = [calibrated_count(subject, plan.sample_ns, clock=clock, sample=sample) for subject in subjects]
    samples: list[list[int]] = [[] for _ in subjects]
    for round_number in range(plan.rounds):
        for turn in range(len(subjects)):
            index = (round_number + turn) % len(subjects)
            samples[index].append(sample(subjects[index], counts[index].batch, clock))
    return {
        subject.name: Cost(
            best_ns=min(taken) / count.batch,
            median_ns=statistics.median(taken) / count.batch,
            batch_count=count.batch,
            operation_count=count.spent + count.batch * plan.rounds,
        )
        for subject, count, taken in zip(subjects, counts, samples, strict=True)
    }


@dataclass(frozen=True)
class CalibratedCount:
    """How many operations a batch should have, and how many it took to find out."""

    batch: int
    spent: int


def calibrated_count(subject: Subject, sample_ns: int, *, clock: Clock, sample: Sample) -> CalibratedCount:
    """Find the batch that takes about `sample_ns`, by doubling; it warms the subject up as well."""
    count, spent = 1, 0
    while True:
        elapsed = min(sample(subject, count, clock) for _ in range(_CALIBRATION_TRIES))
        spent += count * _CALIBRATION_TRIES
        if elapsed >= sample_ns or count >= subject.largest_batch:
            break
        count = min(count * 2, subject.largest_batch)
    if elapsed > sample_ns:
        count = max(1, count * sample_ns // elapsed)
    return CalibratedCount(batch=count, spent=spent)


@dataclass(frozen=True)
class Tail:
    """How long single operations of a subject take.

    Attributes:
        p99_ns: the 99th percentile in the best round.
        p50_ns: the median in the best round by that measure.
        operation_count: how many operations were done in all.
    """

    p99_ns: float
    p50_ns: float
    operation_count: int


def tails(subjects: Sequence[Subject], *, rounds: int, operations: int, clock: Clock) -> dict[str, Tail]:
    """Time single operations of subjects that are open, and return the percentiles of each one's best round.

    A round is long, so that whatever works in the background does so in each of them, and is part of the figure.
    """
    p99: list[list[float]] = [[] for _ in subjects]
    p50: list[list[float]] = [[] for _ in subjects]
    for round_number in range(rounds):
        for turn in range(len(subjects)):
            index = (round_number + turn) % len(subjects)
            taken = _single_times(subjects[index], operations, clock)
            p99[index].append(percentile(taken, 99))
            p50[index].append(percentile(taken, 50))
    return {
        subject.name: Tail(p99_ns=min(p99[index]), p50_ns=min(p50[index]), operation_count=rounds * operations)
        for index, subject in enumerate(subjects)
    }


def _single_times(subject: Subject, operations: int, clock: Clock) -> list[int]:
    subject.prepare()
    taken = []
    for _ in range(operations):
        started = clock()
        subject.batch(1)
        taken.append(clock() - started)
    subject.settle()
    return taken


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: a value that did occur.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("There is no percentile of no values: measure at least one operation.")
    rank = max(1, math.ceil(len(values) * percent / 100))
    return sorted(values)[rank - 1]


@dataclass(frozen=True)
class Growth:
    """What many operations do to the cost of one, and to memory.

    Attributes:
        first_ratio: the cost of one operation before, in units of the reference's at that time.
        last_ratio: the same after `operation_count` more.
        grown_bytes: how much larger the process is.
        operation_count: how many operations lie between.
    """

    first_ratio: float
    last_ratio: float
    grown_bytes: int
    operation_count: int


def growth(
    subject: Subject,
    reference: Subject,
    plan: Plan,
    *,
    operations: int,
    clock: Clock,
    resident_bytes: Callable[[], int],
) -> tuple[Growth, int]:
    """Measure before and after many operations, each time against `reference`, since a machine changes its pace.

    Returns the growth and the number of operations done in all, those of the measurements included.
    """
    before = costs([reference, subject], plan, clock=clock)
    batch_count = before[subject.name].batch_count
    resident_before = resident_bytes()
    done = 0
    while done < operations:
        time_batch(subject, batch_count, clock)
        done += batch_count
    resident_after = resident_bytes()
    after = costs([reference, subject], plan, clock=clock)
    return (
        Growth(
            first_ratio=before[subject.name].best_ns / before[reference.name].best_ns,
            last_ratio=after[subject.name].best_ns / after[reference.name].best_ns,
            grown_bytes=resident_after - resident_before,
            operation_count=done,
        ),
        before[subject.name].operation_count + done + after[subject.name].operation_count,
    )


def check_delivery(subject: Subject, operation_count: int) -> int:
    """Return how many things a closed subject delivered, once that is exactly what its operations owe.

    Raises:
        UndeliveredError: if more or fewer arrived.
    """
    delivered = subject.delivered_count()
    owed = operation_count * subject.delivered_per_operation
    if delivered != owed:
        message = (
            f"{subject.name}: {operation_count} operations owe {owed} deliveries, and {delivered} arrived. "
            "Make its batches fit its queues (largest_batch), or its settle() wait until all has arrived."
        )
        raise UndeliveredError(message)
    return delivered
