"""Log records and warnings, seen where they are made, so that no configuration of handlers hides or changes them.

A record that is enabled is seen when the logger hands it to its handlers, whatever these are, whether it propagates and
whoever configured them since. One that is not enabled is read from the call that asks whether it is, and stays not
enabled: no handler, filter or factory ever hears of it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any, Final

from stormphase.capture._lines import LOG, WARNING
from stormphase.capture._state import STATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from stormphase.capture._board import Board

_LOGGING_FILE: Final = logging.Logger.debug.__code__.co_filename
_ASKS: Final = "isEnabledFor"
_LONGEST_MESSAGE: Final = 65_536
_getframe = sys._getframe


class LogHooks:
    """Wraps `Logger.handle`, `Logger.isEnabledFor` and what shows warnings, from `install` to `remove`."""

    def __init__(self, board: Board) -> None:
        """Wrap nothing yet."""
        self._board = board
        self._undo: list[tuple[Any, str, Any, Any]] = []

    def install(self) -> None:
        """Wrap all of it."""
        self._wrap(logging.Logger, "handle", self._handle_of)
        self._wrap(logging.Logger, _ASKS, self._asked_of)
        # Not `showwarning`, which each `catch_warnings` sets back to the original.
        self._wrap(warnings, "_showwarnmsg" if hasattr(warnings, "_showwarnmsg") else "showwarning", self._shown_of)

    def remove(self) -> None:
        """Put the originals back, unless somebody has wrapped ours since: then it does nothing from now on."""
        while self._undo:
            owner, name, original, ours = self._undo.pop()
            if owner.__dict__.get(name) is ours:
                setattr(owner, name, original)

    def _wrap(self, owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
        original = owner.__dict__[name]
        ours = wrapper(original)
        ours.__name__ = original.__name__
        ours.__qualname__ = original.__qualname__
        ours.__doc__ = original.__doc__
        self._undo.append((owner, name, original, ours))
        setattr(owner, name, ours)

    def _handle_of(self, original: Any) -> Any:
        board = self._board

        def handle(self: logging.Logger, record: logging.LogRecord) -> Any:
            if not board.sessions:
                return original(self, record)
            board.forget()
            # Here and not in a context manager: an interrupt between its begin and ours would leave it silent.
            STATE.silent += 1
            try:
                return original(self, record)
            finally:
                STATE.silent -= 1
                # Afterwards: what filters took out of it, secrets say, is gone.
                _note_record(board, record)

        return handle

    def _asked_of(self, original: Any) -> Any:
        board = self._board

        def is_enabled_for(self: logging.Logger, level: int) -> Any:
            is_enabled = original(self, level)
            if not is_enabled and board.sessions and isinstance(level, int):
                call = _logging_call(_getframe(1))
                if call is not None:
                    _note_call(board, self, level, call)
            return is_enabled

        return is_enabled_for

    def _shown_of(self, original: Any) -> Any:
        board = self._board

        def show(*args: Any, **kwargs: Any) -> Any:
            if not board.sessions:
                return original(*args, **kwargs)
            board.forget()
            STATE.silent += 1
            try:
                return original(*args, **kwargs)
            finally:
                STATE.silent -= 1
                board.note_lines(WARNING, logging.WARNING, _text_of_warning(args, kwargs))

        return show


def _note_record(board: Board, record: logging.LogRecord) -> None:
    # A record may be of a class of the user's own: whatever it does, it was handled.
    with contextlib.suppress(Exception):
        if board.wants_log(record.levelno):
            board.note_lines(LOG, record.levelno, _text_of(record))


def _note_call(board: Board, logger: logging.Logger, level: int, call: FrameType) -> None:
    with contextlib.suppress(Exception):
        if board.wants_log(level):
            STATE.silent += 1
            try:
                text = _text_of_call(logger, level, call)
            finally:
                STATE.silent -= 1
            board.note_lines(LOG, level, text)


def _logging_call(frame: FrameType | None) -> FrameType | None:
    """Return the frame of `Logger.debug`, `LoggerAdapter.log` and the like that asks whether to go on; else None.

    A program that asks by itself is not about to log, and an adapter's logger is asked again.
    """
    if frame is not None and frame.f_code.co_name == _ASKS and frame.f_code.co_filename == _LOGGING_FILE:
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename != _LOGGING_FILE or frame.f_code.co_name == _ASKS:
        return None
    return frame


def _text_of_call(logger: logging.Logger, level: int, call: FrameType) -> str:
    values = call.f_locals
    if "msg" not in values:
        return f"{logging.getLevelName(level)} {logger.name}:"
    keywords: Any = values.get("kwargs", {})
    exc_info: Any = keywords.get("exc_info", values.get("exc_info"))
    message = _formatted(values["msg"], values.get("args", ()))
    return _with_exception(logging.getLevelName(level), logger.name, message, exc_info)


def _text_of(record: logging.LogRecord) -> str:
    STATE.silent += 1
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit the message; its handlers have said so
        message = _formatted(record.msg, ())
    finally:
        STATE.silent -= 1
    return _with_exception(record.levelname, record.name, message, record.exc_info or record.exc_text)


def _formatted(message: Any, args: Any) -> str:
    """Return the text of a message that `logging` would have formatted; never raises."""
    try:
        text = str(message)
        if args:
            # As `LogRecord` does it: a single mapping is meant for %(name)s.
            is_mapping = len(args) == 1 and isinstance(args[0], dict) and args[0]
            text %= args[0] if is_mapping else args
    except Exception:  # noqa: BLE001 - the user's objects may raise anything when they are shown
        try:
            return f"{message!s} {type(args).__name__}"
        except Exception:  # noqa: BLE001 - likewise
            return f"<unprintable {type(message).__name__}>"
    return text


def _with_exception(level: str, name: str, message: str, exc_info: Any) -> str:
    text = f"{level} {name}: {message}"[:_LONGEST_MESSAGE]
    if not exc_info:
        return text
    if isinstance(exc_info, str):
        return f"{text}\n{exc_info}"
    try:
        if isinstance(exc_info, BaseException):
            error: BaseException | None = exc_info
        else:
            error = exc_info[1] if isinstance(exc_info, tuple) else sys.exc_info()[1]
        if error is None:
            return text
        story = traceback.TracebackException(type(error), error, error.__traceback__)
        return f"{text}\n{''.join(story.format())}".rstrip("\n")
    except Exception:  # noqa: BLE001 - formatting calls the user's __str__ and reads source files
        return text


def _text_of_warning(args: Any, kwargs: Any) -> str:
    try:
        if args and hasattr(args[0], "category") and hasattr(args[0], "lineno"):
            shown = args[0]
            return warnings.formatwarning(
                shown.message, shown.category, shown.filename, shown.lineno, shown.line
            ).rstrip("\n")
        return warnings.formatwarning(*args[:4], **{key: kwargs[key] for key in ("line",) if key in kwargs}).rstrip(
            "\n"
        )
    except Exception:  # noqa: BLE001 - a user's formatwarning or message may raise anything
        return "<unprintable warning>"
