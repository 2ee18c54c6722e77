"""Phase names and paths: normalised once, at first sight, and interned from then on.

A `PathNode` is one name under one parent. Entering a phase looks its name up in the parent's dict; only a name never
seen there takes the slow way, which strips, checks, escapes and bounds it under a lock.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from stormphase.exceptions import PhaseNameError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_NAME_CHARS: Final = 256
MAX_PATHS: Final = 65_536
UNNAMED: Final = "(unnamed)"


class PathNode:
    """One phase name under its parent; `children` maps names as callers give them to nodes.

    `helped` does for names that small helpers of the user's enter: see `_sites`. Thread-safe to read. Only `PathTable`
    adds children.
    """

    __slots__ = ("_names", "_text", "children", "depth", "helped", "is_helped", "name", "number", "parent")

    def __init__(self, name: str, parent: PathNode | None) -> None:
        """Make a node that is not yet linked from its parent."""
        self.name = name
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.number = 0  # In the journal's table of strings; 0 if it has none.
        self.children: dict[str, PathNode] = {}
        self.helped: dict[str, PathNode] | None = None
        self.is_helped = False
        self._names: tuple[str, ...] | None = None
        self._text: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names from the outermost phase to this one; built at first use, since deep stacks seldom need it."""
        if self._names is None:
            names = []
            node: PathNode = self
            while node.parent is not None:
                names.append(node.name)
                node = node.parent
            self._names = tuple(reversed(names))
        return self._names

    @property
    def text(self) -> str:
        """The path as people read it, `train / step / forward`; built at first use, too."""
        if self._text is None:
            self._text = " / ".join(self.names)
        return self._text

    @property
    def below(self) -> dict[str, PathNode]:
        """The nodes right below it, by each name that callers give."""
        return {**self.children, **(self.helped or {})}

    @property
    def is_kept(self) -> bool:
        """Whether the table has it, and does not make it anew each time."""
        parent = self.parent
        return parent is not None and parent.find(self.name) is self

    def find(self, name: str) -> PathNode | None:
        """Return the node of a name as a caller gives it, or None."""
        return self.children.get(name) or (None if self.helped is None else self.helped.get(name))

    def __str__(self) -> str:
        """Return the path as people read it."""
        return self.text


class PathTable:
    """All paths of one recorder, at most `max_paths` of them kept; beyond that nodes are made anew each time.

    A program that puts a step number into a name thus pays with speed and not with memory.
    """

    def __init__(self, max_paths: int = MAX_PATHS) -> None:
        """Start with the root, which is no phase and has depth 0."""
        self.root = PathNode("", None)
        self.on_new: Callable[[PathNode], object] | None = None  # Told of each path that is kept, before it is used.
        self._max_paths = max_paths
        self._kept = 0
        self._lock = threading.RLock()  # A signal handler may enter phases, too.

    def child(self, parent: PathNode, name: str, *, is_helped: bool = False) -> PathNode:
        """Return the node of `name` under `parent`, making it at first sight; `is_helped` if a helper enters it.

        Raises:
            PhaseNameError: if `name` is blank or not a string.
        """
        clean = normalise_name(name)
        with self._lock:
            node = parent.find(clean)
            if node is None:
                node = PathNode(clean, parent)
                node.is_helped = is_helped
                if self._kept >= self._max_paths:
                    return node
                self._kept += 1
                if self.on_new is not None:
                    self.on_new(node)
                self._put(node, clean)
            if name != clean and self._kept < self._max_paths:
                # A caller's odd spelling finds its node at once the next time.
                self._kept += 1
                self._put(node, name)
            return node

    @staticmethod
    def _put(node: PathNode, name: str) -> None:
        parent = node.parent
        assert parent is not None  # noqa: S101 - only the root has none
        if not node.is_helped:
            parent.children[name] = node
            return
        if parent.helped is None:
            parent.helped = {}
        parent.helped[name] = node

    def renew_lock(self) -> None:
        """Replace the lock in a forked child: another thread of the parent may have held it."""
        self._lock = threading.RLock()


def normalise_name(name: object) -> str:
    """Return `name` stripped, with unprintable characters escaped, and cut to `MAX_NAME_CHARS` characters.

    Raises:
        PhaseNameError: if `name` is blank or not a string.
    """
    if not isinstance(name, str):
        message = f"A phase name must be a string, not {type(name).__name__}. Write enter_phase('step', ...)."
        raise PhaseNameError(message, name=name)
    clean = str.__str__(name).strip()
    if not clean:
        message = f"A phase name must not be blank, and {str.__str__(name)[:20]!r} is. Write enter_phase('step', ...)."
        raise PhaseNameError(message, name=name)
    if len(clean) > MAX_NAME_CHARS:
        clean = clean[: MAX_NAME_CHARS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    if not clean.isprintable():
        clean = "".join(char if char.isprintable() else escaped(char) for char in clean)
        if len(clean) > MAX_NAME_CHARS:
            clean = clean[: MAX_NAME_CHARS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return clean


def escaped(char: str) -> str:
    """Return a character as its Python escape, which no terminal, page or encoder takes for anything else."""
    return ascii(char)[1:-1]
