"""What is asked of records: one question for stores, journals and lists; near names where one is unknown."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import attrs

from stormphase._model import PhaseStatus
from stormphase._record import PhaseRecord, RecordKind
from stormphase.exceptions import ConfigurationError

MAX_NEAR: Final = 5
_CUTOFF: Final = 0.5
_TRUE: Final = frozenset({"true", "1"})
_FALSE: Final = frozenset({"false", "0"})

_Member = TypeVar("_Member", PhaseStatus, RecordKind)


def _members(kind: type[_Member], setting: str, wish: Any) -> frozenset[_Member] | None:
    if wish is None:
        return None
    wishes = [wish] if isinstance(wish, str) else list(wish)
    try:
        return frozenset(kind(each) for each in wishes)
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise ConfigurationError(
            f"{setting} must be one or several of {known}, not {wish!r:.60}.",
            setting=setting,
            fix=f'Write {setting}="{next(iter(kind)).value}".',
        ) from None


def _statuses(wish: Any) -> frozenset[PhaseStatus] | None:
    return _members(PhaseStatus, "status", wish)


def _kinds(wish: Any) -> frozenset[RecordKind] | None:
    return _members(RecordKind, "kind", wish)


def _path(wish: Any) -> str | tuple[str, ...] | None:
    return wish if wish is None or isinstance(wish, str) else tuple(wish)


def _where(wish: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(wish.items() if isinstance(wish, Mapping) else wish)


@attrs.frozen(kw_only=True)
class RecordQuery:
    """Which records are wanted; all that is given must hold, and what is None does not matter.

    Attributes:
        session_id: the launch.
        session_attempt: its restarts.
        rank: the process among the session's.
        kind: one or several of "session", "rank", "process" and "phase".
        status: one or several statuses.
        path: a tuple of names for exactly that path; or a pattern with `*`, `?` and `[...]` over the names joined by
            "/" (blanks around it do not matter), where `*` also runs over "/". A pattern without "/" matches the last
            name as well.
        where: attributes and the values they must have. A string also matches the number, true or false that it reads
            as.
        since_ns: entered at this time or later, nanoseconds since the Unix epoch.
        until_ns: entered before this time.
        scope_id: that very phase.
    """

    session_id: str | None = None
    session_attempt: int | None = None
    rank: int | None = None
    kind: frozenset[RecordKind] | None = attrs.field(default=None, converter=_kinds)
    status: frozenset[PhaseStatus] | None = attrs.field(default=None, converter=_statuses)
    path: str | tuple[str, ...] | None = attrs.field(default=None, converter=_path)
    where: tuple[tuple[str, Any], ...] = attrs.field(default=(), converter=_where)
    since_ns: int | None = None
    until_ns: int | None = None
    scope_id: str | None = None
    _pattern: re.Pattern[str] | None = attrs.field(init=False, eq=False, repr=False)

    @_pattern.default
    def _compiled(self) -> re.Pattern[str] | None:
        if not isinstance(self.path, str):
            return None
        return re.compile(fnmatch.translate(re.sub(r"\s*/\s*", "/", self.path.strip())))

    def matches_path(self, path: tuple[str, ...]) -> bool:
        """Whether a path is wanted; what is no phase has none, and so no path."""
        if self.path is None:
            return True
        if self._pattern is None:
            return path == self.path
        if not path:
            return False
        if self._pattern.match("/".join(path)):
            return True
        return "/" not in str(self.path) and self._pattern.match(path[-1]) is not None

    def matches_attributes(self, attributes: Mapping[str, Any]) -> bool:
        """Whether all attributes that are asked for are there, with the wanted values."""
        return all(key in attributes and is_value(attributes[key], wanted) for key, wanted in self.where)

    def matches(self, record: PhaseRecord) -> bool:
        """Whether a record is wanted."""
        return (
            (self.session_id is None or record.session_id == self.session_id)
            and (self.session_attempt is None or record.session_attempt == self.session_attempt)
            and (self.rank is None or record.rank == self.rank)
            and (self.kind is None or record.kind in self.kind)
            and (self.status is None or record.status in self.status)
            and (self.since_ns is None or record.entered_ns >= self.since_ns)
            and (self.until_ns is None or record.entered_ns < self.until_ns)
            and (self.scope_id is None or record.scope_id == self.scope_id)
            and self.matches_path(record.path)
            and self.matches_attributes(record.attributes)
        )


def query_of(wanted: RecordQuery | None, filters: Mapping[str, Any]) -> RecordQuery:
    """Return the question that a caller asks, by an object or by keywords.

    Raises:
        TypeError: if both are given, or a keyword is unknown.
    """
    if wanted is None:
        return RecordQuery(**filters)
    if filters:
        message = "Ask by a RecordQuery or by keywords, not by both."
        raise TypeError(message)
    return wanted


def is_value(actual: Any, wanted: Any) -> bool:
    """Whether an attribute has the wanted value; a string, as a command line gives it, may also stand for a number."""
    if type(wanted) is not str or type(actual) is str:
        return _same(actual, wanted)
    text = wanted.strip().lower()
    if isinstance(actual, bool):
        return text in (_TRUE if actual else _FALSE)
    if isinstance(actual, (int, float)):
        try:
            return int(text) == actual
        except ValueError:
            pass
        try:
            return float(text) == actual
        except ValueError:
            return False
    return actual is None and text in ("none", "null")


def _same(actual: Any, wanted: Any) -> bool:
    # True is no 1 here.
    return isinstance(actual, bool) == isinstance(wanted, bool) and bool(actual == wanted)


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that a person may have meant, the nearest first."""
    names = sorted(set(known))
    lower = {each.lower(): each for each in reversed(names)}
    near = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, MAX_NEAR, _CUTOFF)]
    within = [each for each in names if name.lower() in each.lower() and each not in near]
    return (near + within)[:MAX_NEAR]
