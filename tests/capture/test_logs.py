"""Log records and warnings are seen where they are made; what handlers show does not change."""

from __future__ import annotations

import contextlib
import io
import logging
import logging.config
import logging.handlers
import queue
import warnings
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stormphase._lanes import LaneSet

Make = "Callable[..., object]"
FORMAT = "%(levelname)s %(name)s %(funcName)s:%(lineno)d %(message)s"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Return a logger of this test's own, at WARNING, whose one handler shows what it gets."""
    made = logging.Logger("app")  # noqa: LOG001 - no other test ever sees it
    made.parent = logging.getLogger()
    made.manager = logging.root.manager
    made.setLevel(logging.WARNING)
    made.stream = io.StringIO()
    handler = logging.StreamHandler(made.stream)
    handler.setFormatter(logging.Formatter(FORMAT))
    made.addHandler(handler)
    yield made
    made.handlers.clear()


@pytest.fixture
def logged(lanes: LaneSet, capture_on: Make) -> Callable[..., list[tuple[str, str]]]:
    """Call something in a captured phase, and return the lines."""

    def run(call: Callable[[], object], **options: object) -> list[tuple[str, str, int]]:
        capture = capture_on(**options)
        with lanes.enter_phase("phase") as phase:
            call()
        capture.remove()
        return [(line.stream, line.text, line.level) for line in capture.take(phase).lines]

    return run


def every_way(logger: logging.Logger) -> None:
    """Log at every level, in every way."""
    logger.debug("debug %s", 1)
    logger.info("info %(a)s", {"a": 2})
    logger.warning("warning")
    logger.error("error")
    logger.critical("critical")
    logger.log(15, "fifteen %d%%", 3)
    logging.LoggerAdapter(logger, {}).info("adapter %s", "x")


def test_all_levels_are_seen_and_handlers_show_what_they_did(logger, logged) -> None:
    """INFO under a WARNING logger is captured and not shown; the lines that handlers name are the caller's."""
    every_way(logger)
    without = logger.stream.getvalue()
    found = logged(lambda: every_way(logger))
    assert [
        ("log", "DEBUG app: debug 1", 10),
        ("log", "INFO app: info 2", 20),
        ("log", "WARNING app: warning", 30),
        ("log", "ERROR app: error", 40),
        ("log", "CRITICAL app: critical", 50),
        ("log", "Level 15 app: fifteen 3%", 15),
        ("log", "INFO app: adapter x", 20),
    ] == found
    assert 2 * without == logger.stream.getvalue()
    assert logging.WARNING == logger.level


def test_loggers_that_do_not_propagate_or_were_disabled_are_seen(logger, logged) -> None:
    """`propagate=False`, `logger.disabled` and `logging.disable` hide a record from handlers, not from its phase."""

    def log() -> None:
        logger.propagate = False
        logger.warning("quiet")
        logger.disabled = True
        logger.error("disabled")
        logger.disabled = False
        logging.disable(logging.CRITICAL)
        try:
            logger.critical("all disabled")
        finally:
            logging.disable(logging.NOTSET)

    assert ["WARNING app: quiet", "ERROR app: disabled", "CRITICAL app: all disabled"] == [
        text for _, text, _ in logged(log)
    ]
    assert ["WARNING"] == [line.split()[0] for line in logger.stream.getvalue().splitlines()]


def test_what_dictconfig_puts_in_place_later_changes_nothing(logged) -> None:
    """A configuration that removes handlers and disables loggers after we began hides nothing from us."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    early = logging.getLogger("stormphase-test.early")
    known = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    disabled = {logger.name: logger.disabled for logger in known}
    try:

        def log() -> None:
            logging.config.dictConfig({"version": 1, "root": {"level": "ERROR", "handlers": []}})
            early.info("early")
            logging.getLogger("stormphase-test.late").info("late")

        assert ["INFO stormphase-test.early: early", "INFO stormphase-test.late: late"] == [
            text for _, text, _ in logged(log)
        ]
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        for name, was_disabled in disabled.items():  # dictConfig disables every logger there is.
            logging.getLogger(name).disabled = was_disabled


def test_a_program_that_asks_gets_the_truth(logger, logged) -> None:
    """Expensive messages that are guarded stay unmade, whether a logger or an adapter is asked."""
    answers = []
    assert [] == logged(
        lambda: answers.extend(
            (logger.isEnabledFor(logging.DEBUG), logging.LoggerAdapter(logger, {}).isEnabledFor(logging.INFO))
        )
    )
    assert [False, False] == answers


def test_a_handler_that_prints_is_not_seen_twice(logged, terminal) -> None:
    """A record that a handler writes to stderr or stdout is one line: that of the log."""
    handler = logging.StreamHandler(terminal)
    logger = logging.Logger("printing")  # noqa: LOG001 - as above
    logger.addHandler(handler)
    assert [("log", "INFO printing: once", 20)] == logged(lambda: logger.info("once"))
    terminal.flush()
    assert b"once\n" == terminal.buffer.getvalue()


def test_what_filters_take_out_is_not_kept(logger, logged) -> None:
    """A filter that cleans a record does so for us as well."""

    def clean(record: logging.LogRecord) -> bool:
        record.msg, record.args = "cleaned", ()
        return True

    logger.addFilter(clean)
    assert ["WARNING app: cleaned"] == [text for _, text, _ in logged(lambda: logger.warning("dirty"))]


def test_exceptions_are_logged_with_their_traceback(logger, logged) -> None:
    """As the handlers show it, also where the record is shown by none."""

    def log() -> None:
        for write in (logger.exception, logger.debug):
            try:
                1 / 0
            except ZeroDivisionError as error:
                write("failed", exc_info=error)
            write("no error", exc_info=(None, None, None))

    texts = [text for _, text, _ in logged(log)]
    assert 2 == texts.count("ZeroDivisionError: division by zero")
    assert 2 == len([text for text in texts if text.endswith("app: no error")])


class Hostile:
    """Raises wherever it is shown."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_messages_that_cannot_be_formatted_do_no_harm(logger, logged, monkeypatch) -> None:
    """Neither a hidden record nor a shown one raises because we look at it."""
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def log() -> None:
        for write in (logger.debug, logger.warning):
            write("%d", "no number")
            write(Hostile())
            write("%s", Hostile())

    assert ["%d tuple", "<unprintable Hostile>", "%s tuple"] == [text.partition(": ")[2] for _, text, _ in logged(log)][
        :3
    ]


def test_a_handler_that_raises_raises(logger, logged) -> None:
    """The program's own error passes, and the record is kept all the same."""

    class Raising(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("handler")

    logger.addHandler(Raising())

    def log() -> None:
        with pytest.raises(RuntimeError, match="handler"):
            logger.warning("kept")

    assert ["WARNING app: kept"] == [text for _, text, _ in logged(log)]


def test_a_record_that_is_queued_belongs_to_the_phase_that_logged_it(logger, logged) -> None:
    """A listener's thread shows it later; it is known before."""
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    logger.handlers[:] = [logging.handlers.QueueHandler(waiting)]
    assert [("log", "WARNING app: queued 1", 30)] == logged(lambda: logger.warning("queued %d", 1))
    assert "queued 1" == waiting.get_nowait().getMessage()


def test_log_level_sets_the_least_level(logger, logged) -> None:
    """Noisy libraries can be left out."""
    found = logged(lambda: every_way(logger), log_level="warning")
    assert [30, 40, 50] == [level for _, _, level in found]


def test_records_outside_of_captured_phases_cost_no_formatting(logger, lanes: LaneSet, capture_on: Make) -> None:
    """Where nothing is captured, a hidden record's arguments are never shown."""
    capture_on(captures_all=False)
    with lanes.enter_phase("phase"):
        logger.debug(Hostile())
    assert "" == logger.stream.getvalue()


def test_warnings_are_lines_of_their_own(logged) -> None:
    """A warning that is shown is captured, once, whoever shows it; what the filters hide is not."""
    shown = []

    def warn() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda *args, **kwargs: shown.append(args)
            warnings.warn("shown", stacklevel=1)
            warnings.simplefilter("ignore")
            warnings.warn("hidden", stacklevel=1)
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            warnings.warn("recorded", DeprecationWarning, stacklevel=1)
        assert 1 == len(record)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserWarning, match="raised"):
                warnings.warn("raised", stacklevel=1)

    found = logged(warn)
    assert {("warning", 30)} == {(stream, level) for stream, _, level in found}
    texts = [text for _, text, _ in found if "Warning: " in text]
    assert ["UserWarning: shown", "DeprecationWarning: recorded"] == [text.partition(": ")[2] for text in texts]
    assert 1 == len(shown)


def test_warnings_that_are_logged_are_one_line(logged) -> None:
    """With `logging.captureWarnings(True)` a warning is both; it is captured as a warning."""

    def warn() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            with contextlib.suppress(ValueError):
                warnings.warn("logged", stacklevel=1)
            logging.captureWarnings(False)

    assert {"warning"} == {stream for stream, _, _ in logged(warn)}


def test_a_log_handler_that_enters_phases_and_prints_is_safe(
    lanes: LaneSet, capture_on: Make, logger, terminal
) -> None:
    """Re-entrance: what a handler says while it handles is the handler's affair."""
    capture = capture_on()

    class Busy(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with lanes.enter_phase("handling"):
                print("handling", record.getMessage())

    logger.addHandler(Busy())
    with lanes.enter_phase("phase") as phase:
        logger.warning("a")
        print("b")
    assert ["WARNING app: a", "b"] == [line.text for line in capture.take(phase).lines]
