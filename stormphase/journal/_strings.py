"""The journal's strings, each stored once: the names of paths, by number of the path above, and of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stormphase.journal import _format

if TYPE_CHECKING:
    from stormphase._paths import PathNode, PathTable
    from stormphase.journal._file import JournalFile
    from stormphase.journal._segments import Segments

UNNUMBERED: Final = 0
_MAX_THREAD_NAME_BYTES: Final = 1_024


class StringTable:
    """Numbers strings from 1 as they are first seen: under the lock that makes paths, but in signal handlers too."""

    def __init__(self, file: JournalFile, segments: Segments) -> None:
        """Start with none."""
        self._file = file
        self._segments = segments
        self._segment: int | None = None
        self._end = 0  # offset within the segment
        self._count = 0
        self._path_count = 0
        self._writers = 0
        self._thread_names: dict[str, int] = {}

    def number_paths(self, paths: PathTable) -> None:
        """Number what is known already, parents first, and from now on each path when it is first seen."""
        paths.on_new = self._number_path
        waiting = list(dict.fromkeys(paths.root.children.values()))
        while waiting:
            node = waiting.pop()
            self._number_path(node)
            waiting.extend(dict.fromkeys(node.children.values()))

    def _number_path(self, node: PathNode) -> None:
        """Give a path its number: 0 if there is no more, and then phases must say their name themselves."""
        parent = node.parent
        is_first = parent is None or parent.parent is None
        node.number = UNNUMBERED
        if self._path_count >= _format.MAX_PATHS or (not is_first and parent is not None and not parent.number):
            return
        self._path_count += 1
        node.number = self._append(0 if is_first or parent is None else parent.number, node.name)

    def of_thread(self, name: str) -> int:
        """Return the number of a thread's name, or 0 if there is none left."""
        number = self._thread_names.get(name)
        if number is None:
            number = self._append(_format.THREAD_NAME, name)
            if number:
                self._thread_names[name] = number
        return number

    def _append(self, parent: int, text: str) -> int:
        data = text.encode("utf-8", "surrogatepass")[:_MAX_THREAD_NAME_BYTES]
        entry = _format.STRING.pack(parent, len(data)) + data
        entry += bytes(-len(entry) % 8)
        if self._count >= _format.MAX_STRINGS:
            return UNNUMBERED
        if self._segment is None or self._end + len(entry) > _format.SEGMENT:
            segment = self._segments.take(_format.STRINGS)
            if segment is None:
                return UNNUMBERED
            self._segment = segment
            self._end = _format.FIRST_SLOT
        segment = self._segment
        # No call from here to the last store: a signal handler's entry comes before this one, or after it.
        start = self._end
        self._end = start + len(entry)
        self._count = number = self._count + 1
        self._writers += 1
        self._file.put_bytes(segment + start, entry)
        self._writers -= 1
        if not self._writers:  # Else a handler interrupted another entry, which then says how far it goes.
            self._file.put_word(segment + _format.TEXT_LENGTH, self._end - _format.FIRST_SLOT)
        return number
