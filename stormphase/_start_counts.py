"""How often a launcher has started a rank on this host, counted in a file of the temporary directory.

torchrun's agents restart all ranks, but each counts only the failures of its own: after a restart they name different
counts, and the same one twice. How often each has started its ranks is the same on all that were there from the start.
A file grows by a byte with each start, and belongs to one launcher process of one boot, so it is never taken for
another's; the directory is the user's own, and what is not as it was made is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

_DIRECTORY_MODE: Final = 0o700
_MODE: Final = 0o600

_counted: Final[dict[tuple[int, str], int]] = {}


def count_start(key: str) -> int | None:
    """Return how often processes were started with `key`, this one among them; None where that cannot be counted.

    A process counts once, however often it asks.
    """
    if not hasattr(os, "getuid"):
        return None
    here = (os.getpid(), key)
    if here not in _counted:
        with contextlib.suppress(OSError):
            _counted[here] = _add_one(
                _own_directory(), hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
            )
    return _counted.get(here)


def _own_directory() -> Path:
    directory = Path(tempfile.gettempdir()) / f"stormphase-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=_DIRECTORY_MODE)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(13, "Somebody else's", str(directory))
    return directory


def _add_one(directory: Path, name: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(directory / f"{name[:32]}.starts", flags, _MODE)
    try:
        os.write(descriptor, b".")
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
