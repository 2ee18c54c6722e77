"""Who is to blame for a group of exceptions: the member that failed first, over all levels."""

# ruff: noqa: D103 - shapes are told by their names

from __future__ import annotations

import asyncio

import pytest

import stormphase

Tracker = stormphase.PhaseTracker


def fails(tracker: stormphase.PhaseTracker, name: str = "step", kind: type[Exception] = ValueError) -> None:
    """Fail in a phase."""
    with tracker.enter_phase(name):
        raise kind(name)


def failing(tracker: Tracker, *names: str) -> list[ValueError]:
    """Return the exceptions of phases that fail one after another."""
    errors = []
    for name in names:
        with pytest.raises(ValueError, match=name) as raised:
            fails(tracker, name)
        errors.append(raised.value)
    return errors


def nested(errors: list[ValueError]) -> Exception:
    first, second, third = errors
    return ExceptionGroup("outer", [third, ExceptionGroup("middle", [ExceptionGroup("inner", [first]), second])])


def from_another(errors: list[ValueError]) -> Exception:
    first, second, third = errors
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = first
    return ExceptionGroup("outer", [third, second, ExceptionGroup("inner", [wrapped])])


def wide(errors: list[ValueError]) -> Exception:
    first, second, third = errors
    return ExceptionGroup("outer", [third, *map(ValueError, range(200)), ExceptionGroup("inner", [second, first])])


@pytest.mark.parametrize("shape", [nested, from_another, wide])
def test_of_groups_in_groups_the_member_that_failed_first_is_the_cause(run, shape):
    """Over all levels, and whatever stands around it."""

    def body(tracker: Tracker) -> None:
        with tracker.enter_phase("outer"):
            raise shape(failing(tracker, "first", "second", "third"))

    assert ("failed", "outer / first", False) == run(body).told["outer"]


def test_a_clean_up_that_fails_later_is_not_the_cause(run):
    """A fails in an inner task group, B is cancelled for that, and fails as it cleans up."""

    async def fail(tracker: Tracker, has_begun: asyncio.Event) -> None:
        with tracker.enter_phase("fails first"):
            await has_begun.wait()
            raise ValueError("the cause")

    async def inner(tracker: Tracker, has_begun: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(tracker, has_begun))

    async def clean_up(tracker: Tracker, has_begun: asyncio.Event) -> None:
        with tracker.enter_phase("clean-up"):
            has_begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise OSError("failed later") from None

    async def main(tracker: Tracker) -> None:
        has_begun = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(inner(tracker, has_begun))
            group.create_task(clean_up(tracker, has_begun))

    def body(tracker: Tracker) -> None:
        with tracker.enter_phase("outer"):
            asyncio.run(main(tracker))

    found = run(body)
    assert ("failed", "outer / fails first", False) == found.told["outer"]
    assert ("failed", "outer / clean-up", True) == found.told["outer / clean-up"]
    assert "outer / fails first" == found.session_cause
