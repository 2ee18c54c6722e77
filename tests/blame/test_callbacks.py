"""Tokens and handles that are open when an exception passes the block around them, as those of callbacks are."""

# ruff: noqa: D102 - hooks are told by their names

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

import stormphase

Tracker = stormphase.PhaseTracker


class BadCastError(Exception):
    """The user's own kind, which can be weakly referenced."""


def fails(tracker: stormphase.PhaseTracker, name: str = "step", kind: type[Exception] = ValueError) -> None:
    """Fail in a phase."""
    with tracker.enter_phase(name):
        raise kind(name)


class Callbacks:
    """Tokens that hooks enter and exit, as a trainer calls them."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.open: dict[str, Any] = {}

    def begin(self, name: str) -> None:
        self.open[name] = self.tracker.enter(name)

    def end(self, name: str) -> None:
        self.tracker.exit(self.open.pop(name))


def train(tracker: Tracker, error: BaseException) -> None:
    """Train for two steps, and fail in the second."""
    hooks = Callbacks(tracker)
    hooks.begin("epoch")
    for step in range(2):
        tracker.set_step(step)
        hooks.begin("step")
        hooks.begin("forward")
        hooks.end("forward")
        hooks.begin("backward")
        if step == 1:
            raise error
        hooks.end("backward")
        hooks.end("step")


@pytest.mark.parametrize("has_block", [True, False], ids=["in a phase", "in the session"])
@pytest.mark.parametrize("kind", [ValueError, BadCastError])
def test_what_callbacks_have_open_ends_by_the_exception(run, caplog, has_block, kind):
    """The innermost open phase is where it arose, those around it refer to that, and nothing is said of misuse."""
    error = kind("x")

    def body(tracker: Tracker) -> None:
        with tracker.enter_phase("fit") if has_block else contextlib.nullcontext():
            train(tracker, error)

    found = run(body)
    prefix = "fit / " if has_block else ""
    cause = f"{prefix}epoch / step / backward"
    told = found.told
    assert {("failed", cause)} == {
        told[path][:2] for path in (prefix + "epoch", cause, *(["fit"] if has_block else []))
    }
    assert [cause] == [path for path, (_, _, has_traceback) in told.items() if has_traceback]
    assert (cause, error) == (found.session_cause, found.raised)
    assert ({}, [], False) == (found.misuse, caplog.records, hasattr(error, "__notes__"))


def test_what_arose_in_a_phase_within_refers_to_that(run):
    """A token that is left open around it is no origin."""

    def body(tracker: Tracker) -> None:
        with tracker.enter_phase("fit"):
            tracker.enter("epoch")
            fails(tracker)

    assert {"fit", "fit / epoch", "fit / epoch / step"} == set(run(body).told)
    assert {"fit / epoch / step"} == {cause for _, cause, _ in run(body).told.values()}


@pytest.mark.parametrize("end", ["close", "exit"])
def test_an_exit_that_is_given_the_exception_ends_what_is_open_inside_by_it(run, end):
    """As a block would: a trainer's `on_exception` hook is given it."""

    def body(tracker: Tracker) -> None:
        token = tracker.enter("fit")
        handle = tracker.enter_phase("epoch")
        tracker.enter("step")
        if end == "close":
            handle.close(error=ValueError("x"))
        tracker.exit(token, error=ValueError("x"))

    found = run(body)
    assert {"failed"} == {status for status, _, _ in found.told.values()}
    assert ("failed", "fit / epoch / step", True) == found.told["fit / epoch / step"]
    assert {} == found.misuse


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_what_callbacks_have_open_is_cancelled_by_what_cancels(run, kind):
    """They end as the block around them does."""

    def body(tracker: Tracker) -> None:
        with tracker.enter_phase("fit"):
            train(tracker, kind())

    found = run(body)
    last = ("fit", "fit / epoch", "fit / epoch / step / backward")
    assert {"cancelled"} == {found.told[path][0] for path in last}


def test_without_an_exception_what_is_left_open_is_abandoned(run):
    """As before; and so it is where only an iterator has come to its end, which is then logged."""

    def body(tracker: Tracker) -> None:
        tracker.enter_phase("fit")
        tracker.enter("left")

    assert {"abandoned"} == {status for status, _, _ in run(body).told.values()}


def test_what_the_end_of_an_iterator_leaves_open_is_abandoned_and_logged(run, caplog):
    """It is no failure; what forgot its exit is misuse all the same, and the loop goes on."""

    def body(tracker: Tracker) -> None:
        with contextlib.suppress(StopIteration), tracker.enter_phase("next batch"):
            tracker.enter("left")
            next(iter(()))

    found = run(body)
    assert ["abandoned", "succeeded"] == sorted(status for status, _, _ in found.told.values())
    assert {"still_open_inside": 1} == found.misuse
    assert ["stormphase"] == [record.name for record in caplog.records]


@pytest.mark.parametrize("has_phase", [True, False])
def test_what_a_workers_block_leaves_open_ends_by_the_exception(run, has_phase):
    """That is a block as well, and what is around it is none of its."""

    def body(tracker: Tracker) -> None:
        with tracker.enter_phase("fit") if has_phase else contextlib.nullcontext():
            carrier = tracker.carrier()
            with contextlib.suppress(ValueError), stormphase.worker(carrier) as same:
                same.enter("work")
                same.enter("step")
                raise ValueError("x")
            tracker.enter_phase("next").close()

    found = run(body)
    prefix = "fit / " if has_phase else ""
    cause = f"{prefix}work / step"
    failed = {f"{prefix}work": ("failed", cause, False), cause: ("failed", cause, True)}
    succeeded = dict.fromkeys((f"{prefix}next", *(["fit"] if has_phase else [])), ("succeeded", None, False))
    assert {**failed, **succeeded} == found.told
    assert {} == found.misuse
