"""A pipeline in which much goes wrong, and a report that says what was to blame and what that had said last.

Run it:      python examples/failures.py
With OTLP:   OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 python examples/failures.py

It loads handwritten digits, cleans them, trains a classifier and evaluates it. Five things fail, each in its own way:
the first try to fetch the digits, which is retried; a check of the images, whose failure is handled; a worker process,
which is killed by SIGKILL as if memory had run out; and two of three tests of the classifier, which run beside each
other. What ran, why it failed and what it printed is then in runs/failures.db, in the journals beside it, and in the
backend.
"""

from __future__ import annotations

import argparse
import contextvars
import logging
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn import datasets  # type: ignore[import-untyped]

import stormphase
from stormphase.otel import OTelBridge, configure
from stormphase.records import PhaseRecord, attribute, read_records
from stormphase.stores import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Labels = NDArray[np.int64]

    RecordKey = tuple[str, int, str]

BROKEN_IMAGES = 3
RATES = (0.1, 0.5, 2.0)
EPOCHS = 4
BATCH = 32
PROMISED = 0.8
FLUSH_S = 20.0
SAID_LINES = 2

log = logging.getLogger("pipeline")


class Digits(NamedTuple):
    """Images as rows of 64 intensities between 0 and 1, and the digit that each shows."""

    images: Array
    labels: Labels


# Load


def fetch(mirror: str) -> Digits:
    """Return the digits; the first mirror is one that does not answer."""
    print(f"asking {mirror} for the digits")
    if mirror == "mirror-1":
        raise TimeoutError(f"injected: no answer from {mirror}")
    images, labels = datasets.load_digits(return_X_y=True)
    images = images / 16.0
    images[:BROKEN_IMAGES, 0] = np.nan
    print(f"{len(images)} digits from {mirror}")
    return Digits(images, labels)


def load(tracker: stormphase.PhaseTracker) -> Digits:
    """Fetch the digits, and try again where that fails."""
    with tracker.enter_phase("load"):
        first_try = tracker.enter_phase("fetch", {"mirror": "mirror-1"})
        try:
            with first_try:
                return fetch("mirror-1")
        except TimeoutError:
            with tracker.retry(first_try, {"mirror": "mirror-2"}):
                return fetch("mirror-2")


# Clean


def check(tracker: stormphase.PhaseTracker, digits: Digits) -> None:
    """Look at every image.

    Raises:
        ValueError: if there are intensities that are no numbers.
    """
    with tracker.enter_phase("check", {"samples": len(digits.labels)}):
        broken = np.flatnonzero(np.isnan(digits.images).any(axis=1))
        for index in broken:
            log.warning("image %d has intensities that are no numbers", index)
        if len(broken):
            raise ValueError(f"{len(broken)} images cannot be used")


def clean(tracker: stormphase.PhaseTracker, digits: Digits) -> Digits:
    """Return the digits without those that cannot be used."""
    with tracker.enter_phase("clean"):
        try:
            check(tracker, digits)
        except ValueError:
            is_good = ~np.isnan(digits.images).any(axis=1)
            digits = Digits(digits.images[is_good], digits.labels[is_good])
        print(f"{len(digits.labels)} digits are left")
        return digits


# Train


def fit(digits: Digits, rate: float) -> Array:
    """Return the weights of a softmax regression."""
    weights = np.zeros((65, 10))
    inputs, wanted = with_bias(digits.images), np.eye(10)[digits.labels]
    for start in [*range(0, len(inputs), BATCH)] * EPOCHS:
        batch = inputs[start : start + BATCH]
        error = probabilities(batch, weights) - wanted[start : start + BATCH]
        weights -= rate * batch.T @ error / len(batch)
    return weights


def with_bias(images: Array) -> Array:
    """Return images as rows that end in a 1."""
    return np.hstack([images, np.ones((len(images), 1))])


def probabilities(inputs: Array, weights: Array) -> Array:
    """Return how probable each digit is."""
    scores = inputs @ weights
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return found


def fit_in_worker(tracker: stormphase.PhaseTracker, digits: Digits, rate: float, answer: Connection) -> None:
    """Fit with one learning rate, and answer how good that is; the last worker does not live so long."""
    # A forked process goes on with the tracker: its phases hang under the one that was open at the fork.
    with tracker.enter_phase("try_rate", {"rate": rate}), answer:
        found = accuracy(digits, fit(digits, rate))
        print(f"rate {rate}: {found:.0%} recognised")
        if rate == RATES[-1]:
            print("asking for 64 GiB", flush=True)
            tracker.flush(FLUSH_S)  # without it the journal would know of this phase, and the store perhaps not
            os.kill(os.getpid(), signal.SIGKILL)
        answer.send(found)


def accuracy(digits: Digits, weights: Array) -> float:
    """Return the share of digits that are recognised."""
    return float((probabilities(with_bias(digits.images), weights).argmax(axis=1) == digits.labels).mean())


def search(tracker: stormphase.PhaseTracker, digits: Digits) -> float:
    """Return the learning rate that is best; a worker process tries each.

    Raises:
        ChildProcessError: if one was killed.
    """
    context = multiprocessing.get_context("fork")
    with tracker.enter_phase("search", {"rates": list(RATES)}):
        workers = []
        for rate in RATES:
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=fit_in_worker, args=(tracker, digits, rate, sender))
            worker.start()
            sender.close()  # the worker has its own: nothing is to be expected once that is closed
            workers.append((rate, worker, receiver))
        found = {}
        for rate, worker, receiver in workers:
            with receiver, suppress(EOFError):
                found[rate] = receiver.recv()
            worker.join()
        for rate, worker, _ in workers:
            if worker.exitcode:
                raise ChildProcessError(f"the worker with rate {rate} ended by {signal.Signals(-worker.exitcode).name}")
        return max(found, key=found.__getitem__)


def train(tracker: stormphase.PhaseTracker, digits: Digits) -> Array:
    """Return a classifier; with a learning rate that is as good as any if the search for one fails."""
    with tracker.enter_phase("train"):
        try:
            rate = search(tracker, digits)
        except ChildProcessError:
            rate = RATES[0]
            log.warning("the search has failed; going on with rate %s", rate)
        with tracker.enter_phase("fit", {"rate": rate}):
            return fit(digits, rate)


# Evaluate


def plain(digits: Digits) -> Digits:
    """Return the digits as they are."""
    return digits


def noisy(digits: Digits) -> Digits:
    """Return the digits with much noise."""
    return Digits(digits.images + np.random.default_rng(0).normal(0, 2.0, digits.images.shape), digits.labels)


def shifted(digits: Digits) -> Digits:
    """Return the digits moved by half their width."""
    moved = np.roll(digits.images.reshape(-1, 8, 8), 4, axis=2)
    return Digits(moved.reshape(-1, 64), digits.labels)


def test(tracker: stormphase.PhaseTracker, digits: Digits, weights: Array, change: Callable[[Digits], Digits]) -> float:
    """Return the accuracy on changed digits.

    Raises:
        ValueError: if it is less than what was promised.
    """
    with tracker.enter_phase(change.__name__) as phase:
        found = accuracy(change(digits), weights)
        phase.set_attribute("accuracy", found)
        print(f"{change.__name__}: {found:.0%} of {len(digits.labels)} digits recognised")
        if found < PROMISED:
            raise ValueError(f"{found:.0%} are recognised, and {PROMISED:.0%} were promised")
        return found


def evaluate(tracker: stormphase.PhaseTracker, digits: Digits, weights: Array) -> None:
    """Test the classifier in three ways at a time.

    Raises:
        ValueError: if one of them fails; of several the first in this order.
    """
    with tracker.enter_phase("evaluate"), ThreadPoolExecutor(thread_name_prefix="test") as pool:
        tests = [
            # Each in a copy of this context, so that its phases hang under the one that is open here.
            pool.submit(contextvars.copy_context().run, test, tracker, digits, weights, change)
            for change in (plain, noisy, shifted)
        ]
        for each in tests:
            each.result()


# All of it, and what became of it


def run(database: Path, journals: Path, spans: Path) -> str:
    """Run the pipeline, which fails, and return its session's id."""
    with configure(service_name="failures", jsonl_dir=None if otlp_endpoint() else spans) as telemetry:
        tracker = stormphase.PhaseTracker(
            "failures",
            store=SqliteStore(database),
            journal=journals,
            capture=True,
            bridge=OTelBridge(telemetry.tracer_provider, telemetry.logger_provider),
        )
        try:
            with tracker:
                digits = clean(tracker, load(tracker))
                evaluate(tracker, digits, train(tracker, digits))
        except ValueError as error:
            print(f"the pipeline has failed: {error}")
        return tracker.session_id


def report(records: Sequence[PhaseRecord], in_journals: Mapping[RecordKey, PhaseRecord]) -> None:
    """Print what was to blame for what, in the order in which it happened, and what it had said last."""
    failures = attribute(records).failures
    print(f"\n{sum(record.kind == 'phase' for record in records)} phases, {len(failures)} root causes:")
    for number, failure in enumerate(failures, 1):
        record = failure.record
        why = record.evidence or f"{record.error_type}: {record.error_message}"
        print(f"{number}. {record.path_text} {record.status}: {why}")
        # Of a process that was killed, what it was saying is only in its journal.
        output = record.output or in_journals[record.key].output
        for line in [line.text for line in output if line.stream != "traceback"][-SAID_LINES:]:
            print(f"   last said: {line}")
        reached = ", ".join(other.path_text for other in failure.reached)
        print(f"   by that failed: {reached}" if reached else "   it was handled, or another one was first")
        for again in (other for other in records if other.retry_of_scope_id == record.scope_id):
            print(f"   it was tried again: {again.status}")


def stormphase_command(*arguments: object) -> None:
    """Show a command of stormphase as one would type it, and run it."""
    words = [*map(str, arguments)]
    print(f"\n$ {shlex.join(['stormphase', *words])}", flush=True)
    subprocess.run([sys.executable, "-m", "stormphase.cli", *words], check=True)  # noqa: S603


def otlp_endpoint() -> str | None:
    """Return where the environment says that spans go."""
    return os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None


def main() -> None:
    """Run the pipeline and report on it."""
    parser = argparse.ArgumentParser(description="A pipeline in which much goes wrong, and what was to blame.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="where records and journals go")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(message)s")
    database, journals = options.folder / "failures.db", options.folder / "journals"
    journals.mkdir(parents=True, exist_ok=True)

    session_id = run(database, journals, options.folder / "spans")
    in_journals = {record.key: record for record in read_records(journals / session_id)}
    report([*read_records(database, session_id=session_id)], in_journals)
    if otlp_endpoint() is not None:  # The backend has not heard of what the killed worker left open.
        stormphase_command("recover", journals / session_id, "--otlp", otlp_endpoint())
    print(f"\nall of it: stormphase records {shlex.quote(str(database))} --session {session_id}")


if __name__ == "__main__":
    main()
