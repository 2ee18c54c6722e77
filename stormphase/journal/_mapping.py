"""A file mapped for writing, which somebody may cut short: touching what is gone would kill the process by SIGBUS.

The compiled half has a handler for that (`_c/sigbus.h`): it puts zeros in the place of what is gone, and the program
goes on. Without it only those who look from time to time whether the file still is as long as it was can stop in time.
"""

from __future__ import annotations

import mmap
from typing import Self

from stormphase import _native

_UNGUARDED = -1


class MappedFile(mmap.mmap):
    """A mapped file of which a fault costs the contents and not the process, where the compiled half is there.

    Args:
        descriptor: the file, open for reading and writing.
        size_bytes: its length, all of which is mapped.
    """

    _number: int

    def __new__(cls, descriptor: int, size_bytes: int) -> Self:
        """Map it, and have it guarded."""
        mapped = super().__new__(cls, descriptor, size_bytes)
        # Windows does not shorten a file that is mapped.
        guard = getattr(_native.speedups, "guard", None)
        mapped._number = _UNGUARDED if guard is None else guard(mapped)
        return mapped

    def __del__(self) -> None:
        """Forget it just before it goes."""
        number, self._number = getattr(self, "_number", _UNGUARDED), _UNGUARDED
        if number != _UNGUARDED and _native.speedups is not None:
            _native.speedups.unguard(number)

    @property
    def is_guarded(self) -> bool:
        """Whether a fault in it is survived: not in Python alone, nor beyond a thousand of them in one process."""
        return self._number != _UNGUARDED

    @property
    def has_faulted(self) -> bool:
        """Whether somebody touched what had been cut off, so that zeros stand there now."""
        return self.is_guarded and _native.speedups is not None and bool(_native.speedups.has_faulted(self._number))

    def guard_again(self) -> None:
        """Take SIGBUS back where the program has taken it since: it gets all that is not ours."""
        if self.is_guarded and _native.speedups is not None:
            _native.speedups.guard_again()
