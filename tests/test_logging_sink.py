"""The sink that logs phases: starts, ends, slow ones, and each failure once, through logging and structlog."""

from __future__ import annotations

import io
import itertools
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from stormphase import LoggingSink, PhaseTracker
from stormphase.exceptions import ConfigurationError
from stormphase.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable

MS = 1_000_000
_numbers = itertools.count()


def run(sink: LoggingSink, work: Callable[[PhaseTracker, ManualClock], object]) -> None:
    """Do some work under a tracker with that sink, and wait until the sink has seen it all."""
    clock = ManualClock()
    with PhaseTracker(
        session_id=f"log-{next(_numbers)}", rank=3, world_size=4, bridge=None, sinks=[sink], clock=clock
    ) as tracker:
        work(tracker, clock)
        assert tracker.flush(30)
        assert 0 == tracker.stats()["sinks"]["0:LoggingSink"]["failed"]


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Return level and first line of what was logged."""
    return [(record.levelno, record.getMessage().splitlines()[0]) for record in caplog.records]


def one_step(tracker: PhaseTracker, clock: ManualClock) -> None:
    """One step of 20 ms with a forward of 5 ms in it."""
    tracker.set_step(7)
    with tracker.enter_phase("step", {"epoch": 1}):
        clock.advance(15 * MS)
        with tracker.enter_phase("forward"):
            clock.advance(5 * MS)


def failing(tracker: PhaseTracker, clock: ManualClock) -> None:
    """A step that fails in its backward."""

    def backward() -> None:
        with tracker.enter_phase("step"), tracker.enter_phase("backward"):
            clock.advance(MS)
            raise ValueError("no gradient")

    with pytest.raises(ValueError, match="no gradient"):
        backward()


def test_starts_and_ends_are_logged_with_their_durations(caplog: pytest.LogCaptureFixture) -> None:
    """Each at its own level, in the order in which they happened."""
    with caplog.at_level(logging.DEBUG, "stormphase.phases"):
        run(LoggingSink(), one_step)

    assert [
        (logging.DEBUG, "phase started: step"),
        (logging.DEBUG, "phase started: step / forward"),
        (logging.INFO, "phase ended: step / forward succeeded after 0.005000 s"),
        (logging.INFO, "phase ended: step succeeded after 0.020000 s"),
    ] == lines(caplog)


def test_a_record_has_the_facts_as_fields(caplog: pytest.LogCaptureFixture) -> None:
    """What a JSON formatter shows: path, times, step, rank, session, attributes."""
    with caplog.at_level(logging.INFO, "stormphase.phases"):
        run(LoggingSink(start_level=None), one_step)
    facts = vars(caplog.records[-1])

    assert (["step"], 0.02, 0.015, "succeeded") == (
        facts["phase_path"],
        facts["phase_duration_s"],
        facts["phase_self_s"],
        facts["phase_status"],
    )
    assert (7, 3, {"epoch": 1}) == (facts["phase_step"], facts["phase_rank"], facts["phase_attributes"])
    assert facts["phase_session_id"].startswith("log-")


def test_levels_of_none_log_neither_starts_nor_ends(caplog: pytest.LogCaptureFixture) -> None:
    """Then only what is slow or goes wrong is said."""
    with caplog.at_level(logging.DEBUG, "stormphase.phases"):
        run(LoggingSink(start_level=None, end_level=None), one_step)

    assert [] == caplog.records


def test_a_phase_over_the_threshold_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The one that took as long as the threshold, and not the shorter one inside it."""
    with caplog.at_level(logging.WARNING, "stormphase.phases"):
        run(LoggingSink(slow_s=0.02), one_step)

    assert [(logging.WARNING, "phase slow: step succeeded after 0.020000 s, limit 0.020000 s")] == lines(caplog)


@pytest.mark.parametrize(("last_ms", "slow"), [(29, []), (31, ["phase slow: step succeeded after 0.031000 s"])])
def test_what_is_slow_is_learnt(caplog: pytest.LogCaptureFixture, last_ms: int, slow: list[str]) -> None:
    """After twenty of 10 ms one of 31 ms is slow by a factor of three, and one of 29 ms is not."""

    def work(tracker: PhaseTracker, clock: ManualClock) -> None:
        for duration_ms in [*[10] * 20, last_ms]:
            with tracker.enter_phase("step"):
                clock.advance(duration_ms * MS)

    with caplog.at_level(logging.WARNING, "stormphase.phases"):
        run(LoggingSink(slow_factor=3), work)

    assert slow == [text.split(",")[0] for _, text in lines(caplog)]


def test_nothing_is_slow_before_enough_is_known(caplog: pytest.LogCaptureFixture) -> None:
    """Nineteen short ones tell nothing yet."""

    def work(tracker: PhaseTracker, clock: ManualClock) -> None:
        for duration_ms in [*[10] * 19, 10_000]:
            with tracker.enter_phase("step"):
                clock.advance(duration_ms * MS)

    with caplog.at_level(logging.WARNING, "stormphase.phases"):
        run(LoggingSink(slow_factor=2), work)

    assert [] == caplog.records


def test_a_failure_is_told_in_full_once_and_by_reference_above(caplog: pytest.LogCaptureFixture) -> None:
    """The origin at ERROR with its traceback, its parent at WARNING with the origin's path."""
    with caplog.at_level(logging.INFO, "stormphase.phases"):
        run(LoggingSink(start_level=None), failing)
    origin, above = caplog.records

    assert [
        (logging.ERROR, "phase failed: step / backward after 0.001000 s: ValueError: no gradient"),
        (logging.WARNING, "phase failed: step after 0.001000 s, by ValueError in step / backward"),
    ] == lines(caplog)
    assert "in backward" in origin.getMessage()
    assert "in backward" not in above.getMessage()
    assert "step / backward" == vars(above)["root_cause_path"]
    assert vars(origin)["phase_scope_id"] == vars(above)["root_cause_scope_id"]


def test_a_cancelled_phase_is_a_warning_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Who cancels knows why."""

    def work(tracker: PhaseTracker, clock: ManualClock) -> None:
        def step() -> None:
            with tracker.enter_phase("step"):
                clock.advance(MS)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            step()

    with caplog.at_level(logging.INFO, "stormphase.phases"):
        run(LoggingSink(start_level=None), work)

    assert [(logging.WARNING, "phase cancelled: step after 0.001000 s, by KeyboardInterrupt in step")] == lines(caplog)


def test_a_logger_of_the_program_s_own_is_used() -> None:
    """Its handlers and formatters decide what is shown, and hostile names stay one line."""
    stream = io.StringIO()
    logger = logging.Logger("mine")  # noqa: LOG001 - known to nobody else
    logger.addHandler(logging.StreamHandler(stream))

    def work(tracker: PhaseTracker, clock: ManualClock) -> None:
        with tracker.enter_phase("a\nb %s \x1b[31m"):
            clock.advance(MS)

    run(LoggingSink(logger, start_level=None), work)

    assert "phase ended: a\\nb %s \\x1b[31m succeeded after 0.001000 s\n" == stream.getvalue()


def test_structlog_gets_key_value_pairs() -> None:
    """The facts are pairs, the traceback one of them, and the event a short text."""
    stream = io.StringIO()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    run(LoggingSink(logger), failing)
    logged: list[dict[str, Any]] = [json.loads(line) for line in stream.getvalue().splitlines()]

    assert ["error", "warning"] == [line["level"] for line in logged]
    assert "phase failed: step / backward after 0.001000 s: ValueError: no gradient" == logged[0]["event"]
    assert "in backward" in logged[0]["traceback"]
    assert (["step"], "step / backward") == (logged[1]["phase_path"], logged[1]["root_cause_path"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"logger": "mine"}, "logger"),
        ({"slow_s": 0}, "slow_s"),
        ({"slow_factor": "two"}, "slow_factor"),
        ({"slow_s": True}, "slow_s"),
        ({"end_level": "LOUD"}, "level"),
    ],
)
def test_wrong_arguments_are_refused_with_a_fix(arguments: dict[str, Any], named: str) -> None:
    """The error names the argument."""
    with pytest.raises(ConfigurationError, match=named):
        LoggingSink(**arguments)
