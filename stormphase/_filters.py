"""Filters: which successes a user wants to see; a failure is always shown.

A filter is asked once, when its phase is entered. What it keeps from the sinks is recorded, timed and nested all the
same, since it may yet fail, and then it is shown like any other.
"""

from __future__ import annotations

import fnmatch
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import attrs

from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from stormphase._counts import Counts

AskFilter: TypeAlias = "Callable[[str, Mapping[str, Any]], object]"

FILTER_ERRORS: Final = "filter_errors"
# The names and numbers of the standard `logging`, which need not be imported for that.
LEVELS: Final = MappingProxyType({"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50})
_NO_ATTRIBUTES: Final[Mapping[str, Any]] = MappingProxyType({})


def level_number(level: object, setting: str = "level") -> int:
    """Return a level's number, given as a number or by name in any case.

    Raises:
        ConfigurationError: if it is neither.
    """
    if isinstance(level, int) and not isinstance(level, bool):
        return level
    number = LEVELS.get(level.lower()) if isinstance(level, str) else None
    if number is None:
        raise ConfigurationError(
            f"{setting} must be a number or one of {', '.join(LEVELS)}, not {level!r:.40}.",
            setting=setting,
            fix=f'Write {setting}="info", or a number as in logging.',
        )
    return number


@attrs.frozen
class Filter:
    """Says whether the success of a phase is worth showing; all that was given must agree.

    Attributes:
        pattern: matches the whole name; None for any.
        ask: the user's callable, given name and attributes (read-only); None if there is none.
        level: how important the phase is, or None if it is shown whatever the tracker's level.
    """

    pattern: re.Pattern[str] | None
    ask: AskFilter | None
    level: int | None

    @classmethod
    def of(cls, wish: object, level: object) -> Filter | None:
        """Return the filter that `filter=` and `level=` describe, or None if both are None.

        Raises:
            ConfigurationError: if `wish` is neither a string nor callable, or `level` is no level.
        """
        if wish is None and level is None:
            return None
        pattern, ask = None, None
        if isinstance(wish, str):
            pattern = re.compile(fnmatch.translate(wish))
        elif callable(wish):
            ask = wish
        elif wish is not None:
            raise ConfigurationError(
                f"filter must be a pattern of names or a callable, not {wish!r:.40}.",
                setting="filter",
                fix='Write filter="load*", or filter=lambda name, attributes: attributes["epoch"] == 0.',
            )
        return cls(pattern=pattern, ask=ask, level=None if level is None else level_number(level))

    def passes(self, name: str, attributes: Mapping[str, Any] | None, threshold: object, counts: Counts) -> bool:
        """Whether a success is shown. A filter that raises is counted, and shows it.

        Args:
            name: the phase's name.
            attributes: those given at enter, or None.
            threshold: the tracker's level; a phase below it is not shown.
            counts: where failures of the filter are counted.
        """
        try:
            if self.level is not None and self.level < level_number(threshold):
                return False
            if self.pattern is not None and self.pattern.match(name) is None:
                return False
            if self.ask is None:
                return True
            return bool(self.ask(name, _NO_ATTRIBUTES if attributes is None else MappingProxyType(attributes)))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - it is the user's, and may raise anything
            counts.add(FILTER_ERRORS)
            return True
