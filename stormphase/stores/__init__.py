"""Record stores: where ended and open phases are kept and asked for. SQLite is loaded only by who uses it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stormphase.stores._lost import close_lost
    from stormphase.stores._memory import MemoryStore
    from stormphase.stores._query import RecordQuery
    from stormphase.stores._sqlite import SqliteStore

__all__ = ["MemoryStore", "RecordQuery", "SqliteStore", "close_lost"]

_HOMES = {
    "MemoryStore": "stormphase.stores._memory",
    "RecordQuery": "stormphase.stores._query",
    "SqliteStore": "stormphase.stores._sqlite",
    "close_lost": "stormphase.stores._lost",
}


def __getattr__(name: str) -> Any:
    """Load the module that a public name lives in, the first time it is asked for."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    """Show the public names, loaded or not."""
    return sorted({*globals(), *__all__})
