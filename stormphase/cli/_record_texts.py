"""Records as JSON in ASCII, which no terminal obeys; a long path is spelt out once for all who share it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stormphase._record import FIELDS, dumps_ascii

if TYPE_CHECKING:
    from stormphase._record import PhaseRecord

# A journal of 1 MiB may have 14,000 phases with a thousand names each, twice with what is to blame for them.
_MANY_NAMES: Final = 32
_KEPT_CHARS: Final = 1 << 25
_PATHS: Final = ("path", "root_cause_path")


class RecordTexts:
    """Writes records as JSON objects of one line.

    Args:
        sort_keys: whether keys are sorted, instead of in the order of `FIELDS`.
    """

    def __init__(self, *, sort_keys: bool = False) -> None:
        """Know no path yet."""
        self._sort_keys = sort_keys
        keys = sorted(FIELDS) if sort_keys else list(FIELDS)
        first, second = map(keys.index, _PATHS)  # In both orders this one is first.
        self._keys = keys[:first], keys[first + 1 : second], keys[second + 1 :]
        self._texts: dict[tuple[str, ...], str] = {}
        self._last: tuple[tuple[str, ...], str] = ((), "[]")
        self._chars = 0

    def text(self, record: PhaseRecord) -> str:
        """Return a record as JSON; numbers that JSON does not know become strings."""
        fields = record.to_dict()
        if max(record.depth, len(record.root_cause_path or ())) < _MANY_NAMES:
            return dumps_ascii(fields, sort_keys=self._sort_keys)
        before, between, after = ({key: fields[key] for key in keys} for keys in self._keys)
        path, cause = self._path(record.path), self._path(record.root_cause_path)
        return (
            f'{{{self._inside(before)}, "path": {path}, {self._inside(between)}, "root_cause_path": {cause}, '
            f"{self._inside(after)}}}"
        )

    def _inside(self, fields: dict[str, Any]) -> str:
        return dumps_ascii(fields, sort_keys=self._sort_keys)[1:-1]

    def _path(self, path: tuple[str, ...] | None) -> str:
        if path is None:
            return "null"
        if path is self._last[0]:
            return self._last[1]
        text = self._texts.get(path)
        if text is None:
            text = dumps_ascii(path)
            self._chars += len(text)
            if self._chars > _KEPT_CHARS:
                self._texts.clear()
                self._chars = len(text)
            self._texts[path] = text
        self._last = (path, text)
        return text
