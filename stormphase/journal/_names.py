"""The journal's strings as a reader has them: paths by number, and names of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stormphase.journal import _format

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stormphase.journal._copy import Segment
    from stormphase.journal._damage import Damage

OTHER: Final = ("(other)",)
UNREADABLE: Final = "(unreadable)"
# A chain of 8,192 names has 33 million in its paths together, and a file of 1 MiB room for a thousand chains.
_MAX_NAMES: Final = 1_000_000
_LEAST_NAMES: Final = 65_536
_CHARS_A_NAME: Final = 8


class PathBudget:
    """How much the paths of one journal may be, all together, so that what is read takes as long as the file is large.

    Args:
        size_bytes: how large that is.
    """

    def __init__(self, size_bytes: int) -> None:
        """Allow a name for each byte, and some characters for each name."""
        self._names_left = max(_LEAST_NAMES, min(size_bytes, _MAX_NAMES))
        self._chars_left = _CHARS_A_NAME * self._names_left

    @property
    def is_spent(self) -> bool:
        """Whether no path of more than one name may be made any more."""
        return self._names_left <= 0 or self._chars_left <= 0

    def spend(self, names: int, chars: int) -> None:
        """Count a path, or a part of one."""
        self._names_left -= names
        self._chars_left -= chars


class Names:
    """All strings of one journal."""

    def __init__(self, segments: Iterable[Segment], damage: Damage, budget: PathBudget) -> None:
        """Read the segments of strings, which are given by serial."""
        self._damage = damage
        self._budget = budget
        self._entries: list[tuple[int, str]] = []
        self._paths: dict[int, tuple[str, ...]] = {0: OTHER}
        for segment in segments:
            if not self._read(segment.data) or len(self._entries) > _format.MAX_STRINGS:
                # What follows cannot be numbered.
                damage.note("a segment of strings is damaged: some names are lost")
                break

    def path(self, number: int) -> tuple[str, ...]:
        """Return the path of a number; `("(other)",)` for 0, and `(unreadable)` in it for what cannot be read."""
        path = self._paths.get(number)
        if path is None:
            path = self._paths[number] = self._path(number)
        return path

    def thread(self, number: int) -> str | None:
        """Return the thread's name of a number, or None if it has none."""
        if not number:
            return None
        if number > len(self._entries) or self._entries[number - 1][0] != _format.THREAD_NAME:
            self._damage.note("the name of a thread is lost")
            return None
        return self._entries[number - 1][1]

    def _read(self, data: bytes) -> bool:
        (length,) = _format.SEGMENT_HEADER.unpack_from(data)[8:]
        at = _format.FIRST_SLOT
        end = at + length
        if end > len(data):
            return False
        while at < end:
            if at + _format.STRING.size > end:
                return False
            parent, size = _format.STRING.unpack_from(data, at)
            at += _format.STRING.size
            if size > end - at:
                return False
            self._entries.append((parent, _text(data[at : at + size])))
            at += size + -size % 8
        return True

    def _path(self, number: int) -> tuple[str, ...]:
        names = []
        while number:
            if number > len(self._entries) or self._budget.is_spent:
                self._damage.note("a path is lost")
                names.append(UNREADABLE)
                break
            parent, name = self._entries[number - 1]
            names.append(name)
            self._budget.spend(1, len(name))
            # A parent is always numbered first, so this ends.
            number = parent if parent < number else len(self._entries) + 1
        names.reverse()
        return tuple(names)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # cut in the middle of a character, if it is not damaged
        return data.decode("utf-8", "replace")
