"""Trains a small network on handwritten digits, with a phase around everything it does.

Run it:      python examples/train_digits.py
With OTLP:   OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 python examples/train_digits.py

It prints the tree of its phases, the accuracy it reached, and where the spans went: to the OTLP endpoint if there is
one, else to a file of OTLP JSON lines in train_digits_spans/, which OpenTelemetry backends can import.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn import datasets, model_selection  # type: ignore[import-untyped]

import stormphase
from stormphase.otel import OTelBridge, Telemetry, configure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Labels = NDArray[np.int64]

HIDDEN = 128
LEARNING_RATE = 0.1
MOMENTUM = 0.9


class Digits(NamedTuple):
    """Images as rows of 64 intensities between 0 and 1, and the digit that each shows."""

    images: Array
    labels: Labels


class Network:
    """One hidden layer, trained by stochastic gradient descent with momentum."""

    def __init__(self, rng: np.random.Generator) -> None:
        w1, w2 = rng.normal(0, 0.1, (64, HIDDEN)), rng.normal(0, 0.1, (HIDDEN, 10))
        self.weights = [w1, np.zeros(HIDDEN), w2, np.zeros(10)]
        self.velocities = [np.zeros_like(weight) for weight in self.weights]

    def forward(self, images: Array) -> tuple[Array, Array]:
        """Return the hidden activations and the probability of each digit."""
        w1, b1, w2, b2 = self.weights
        hidden = np.maximum(images @ w1 + b1, 0)
        scores = hidden @ w2 + b2
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        return hidden, exponentials / exponentials.sum(axis=1, keepdims=True)

    def backward(self, batch: Digits, hidden: Array, probabilities: Array) -> list[Array]:
        """Return the gradient of the mean cross-entropy, one array a weight."""
        error = (probabilities - np.eye(10)[batch.labels]) / len(batch.labels)
        hidden_error = (error @ self.weights[2].T) * (hidden > 0)
        return [batch.images.T @ hidden_error, hidden_error.sum(axis=0), hidden.T @ error, error.sum(axis=0)]

    def update(self, gradients: list[Array]) -> None:
        """Move the weights down the gradient."""
        for weight, velocity, gradient in zip(self.weights, self.velocities, gradients, strict=True):
            velocity[:] = MOMENTUM * velocity - LEARNING_RATE * gradient
            weight[:] += velocity


def load_dataset() -> tuple[Digits, Digits]:
    """Return training and test digits, from the data set that comes with scikit-learn."""
    images, labels = datasets.load_digits(return_X_y=True)
    parts = model_selection.train_test_split(images / 16.0, labels, test_size=0.25, random_state=0, stratify=labels)
    return Digits(parts[0], parts[2]), Digits(parts[1], parts[3])


def load_batch(tracker: stormphase.PhaseTracker, digits: Digits, chosen: Labels, rng: np.random.Generator) -> Digits:
    """Return the chosen digits with some noise, so that the network never sees quite the same twice."""
    with tracker.enter_phase("load_batch", {"samples": len(chosen)}):
        images = digits.images[chosen]
        return Digits(images + rng.normal(0, 0.1, images.shape), digits.labels[chosen])


def batches(tracker: stormphase.PhaseTracker, digits: Digits, size: int, rng: np.random.Generator) -> Iterator[Digits]:
    """Yield shuffled batches; a worker thread prepares the next one while the caller trains on this one."""
    order = rng.permutation(len(digits.labels))
    parts = np.split(order, range(size, len(order), size))
    # In a copy of this context the worker's phases hang under the phase that is open here.
    context = contextvars.copy_context()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
        upcoming = pool.submit(context.run, load_batch, tracker, digits, parts[0], rng)
        for following in [*parts[1:], None]:
            with tracker.enter_phase("wait_for_batch"):
                batch = upcoming.result()
            if following is not None:
                upcoming = pool.submit(context.run, load_batch, tracker, digits, following, rng)
            yield batch


def train_step(tracker: stormphase.PhaseTracker, network: Network, batch: Digits) -> None:
    """Train on one batch."""
    with tracker.enter_phase("step") as phase:
        with tracker.enter_phase("forward"):
            hidden, probabilities = network.forward(batch.images)
        with tracker.enter_phase("backward"):
            gradients = network.backward(batch, hidden, probabilities)
        with tracker.enter_phase("update"):
            network.update(gradients)
        loss = -np.log(probabilities[np.arange(len(batch.labels)), batch.labels] + 1e-12).mean()
        phase.set_attribute("loss", float(loss))


# The tracker that runs is found when `evaluate` is called: code of a library needs no tracker at hand.
@stormphase.phase("evaluate", result="accuracy")
async def evaluate(network: Network, digits: Digits) -> float:
    """Return the share of digits that are recognised; two tasks take half of them each."""

    async def count_right(images: Array, labels: Labels) -> int:
        with stormphase.phase("shard", attributes={"samples": len(labels)}):
            _, probabilities = network.forward(images)
            await asyncio.sleep(0)  # here the other task goes on; its phases stay its own
            return int((probabilities.argmax(axis=1) == labels).sum())

    halves = (count_right(digits.images[part::2], digits.labels[part::2]) for part in range(2))
    return sum(await asyncio.gather(*halves)) / len(digits.labels)


def write(network: Network, path: Path, *, is_disk_full: bool = False) -> None:
    """Write the weights to a file, or fail as it would on a full disk."""
    if is_disk_full:
        raise OSError(errno.ENOSPC, "injected: no space left on device")
    np.savez(path, *network.weights)


def save(tracker: stormphase.PhaseTracker, network: Network, path: Path, *, is_disk_full: bool) -> None:
    """Write a checkpoint. A try that fails is a failed phase; since that is handled here, its parents are none."""
    first_try = tracker.enter_phase("checkpoint", {"file": path.name})
    try:
        with first_try:
            write(network, path, is_disk_full=is_disk_full)
    except OSError:
        with tracker.retry(first_try, {"file": path.name}):  # its span links to the one that failed
            write(network, path)


def train(tracker: stormphase.PhaseTracker, epochs: int, batch_size: int, checkpoints: Path) -> float:
    """Train, and return the accuracy on digits that were not trained on."""
    rng = np.random.default_rng(0)
    accuracy, step = 0.0, 0
    with tracker.enter_phase("load_dataset"):
        training, test = load_dataset()
    with tracker.enter_phase("train", {"epochs": epochs, "batch_size": batch_size}):
        network = Network(rng)
        for epoch in range(epochs):
            with tracker.enter_phase("epoch", {"epoch": epoch}):
                for batch in batches(tracker, training, batch_size, rng):
                    tracker.set_step(step)  # stamped on every phase from here on
                    train_step(tracker, network, batch)
                    step += 1
                accuracy = asyncio.run(evaluate(network, test))
                is_last = epoch == epochs - 1
                save(tracker, network, checkpoints / f"epoch-{epoch}.npz", is_disk_full=is_last)
    return accuracy


def otlp_endpoint() -> str | None:
    """Return where the environment says that spans go."""
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")


def report(tracker: stormphase.PhaseTracker, telemetry: Telemetry, traceparent: str) -> None:
    """Say how many spans there were, and where to look for them."""
    stats = tracker.stats()
    bridge, queue = stats["bridge"], stats["sinks"].get("bridge", {})
    if not bridge.get("handed_over"):
        print("no spans: the environment switches stormphase, or OpenTelemetry, off")
        return
    dropped = bridge["dropped"] + queue["dropped"]
    print(f"{bridge['handed_over']} spans in trace {traceparent.split('-')[1]}, {dropped} dropped")
    for path in telemetry.jsonl_paths:
        print(f"{path.stem.partition('-')[0]} are in {path}")
    if not telemetry.jsonl_paths:
        print(f"they were handed to the OTLP exporter for {otlp_endpoint()}, which logs what it cannot send")


def main() -> None:
    """Train, and show the phases and where their spans went."""
    parser = argparse.ArgumentParser(description="Train on handwritten digits, with phases.")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--folder", default="train_digits_spans", help="where spans go if there is no OTLP endpoint")
    options = parser.parse_args()

    telemetry = configure(service_name="train-digits", jsonl_dir=None if otlp_endpoint() else options.folder)
    bridge = OTelBridge(telemetry.tracer_provider, telemetry.logger_provider)
    with telemetry, tempfile.TemporaryDirectory() as folder:
        with stormphase.PhaseTracker("train-digits", bridge=bridge, summary=True) as tracker:
            traceparent = tracker.environment().get("TRACEPARENT", "")
            accuracy = train(tracker, options.epochs, options.batch_size, Path(folder))
        checkpoints = list(Path(folder).glob("*.npz"))
    print(f"accuracy {accuracy:.3f} on digits it had not seen; {len(checkpoints)} checkpoints written")
    report(tracker, telemetry, traceparent)


if __name__ == "__main__":
    main()
