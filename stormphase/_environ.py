"""Reads variables of one environment: an empty one counts as none, and a number is a number or an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SHOWN_CHARS: Final = 60

_MAX_DIGITS: Final = 18


def value(environ: Mapping[str, str], name: str) -> str | None:
    """Return a variable's value, or None."""
    return environ.get(name) or None


def first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """Return the value of the first of `names` that is set, or None."""
    return next((environ[name] for name in names if environ.get(name)), None)


def first_name(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    """Return the first of `names` that is set, or else the first."""
    return next((name for name in names if environ.get(name)), names[0])


def integer(environ: Mapping[str, str], *names: str) -> int | None:
    """Return the first of `names` that is set, as a number from 0, or None.

    Raises:
        ConfigurationError: if it is no such number.
    """
    for name in names:
        text = environ.get(name, "").strip()
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
            raise ConfigurationError(
                f"{name} is {ascii(text)[:MAX_SHOWN_CHARS]}.",
                setting=name,
                fix="Set it to an integer from 0, or unset it.",
            )
        return int(text)
    return None
