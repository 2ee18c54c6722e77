"""Record stores: where ended and open phases are kept and asked for. SQLite is loaded only by who uses it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stormphase._lost import as_lost
    from stormphase.stores._lost import close_lost
    from stormphase.stores._memory import MemoryStore
    from stormphase.stores._query import RecordQuery, near_names
    from stormphase.stores._sqlite import SqliteStore
    from stormphase.stores._sqlite_rows import UnreadableRows
    from stormphase.stores._sqlite_schema import MAX_ATTRIBUTE_COLUMNS, attribute_columns

__all__ = [
    "MAX_ATTRIBUTE_COLUMNS",
    "MemoryStore",
    "RecordQuery",
    "SqliteStore",
    "UnreadableRows",
    "as_lost",
    "attribute_columns",
    "close_lost",
    "near_names",
]

_HOMES = {
    "MAX_ATTRIBUTE_COLUMNS": "stormphase.stores._sqlite_schema",
    "MemoryStore": "stormphase.stores._memory",
    "RecordQuery": "stormphase.stores._query",
    "SqliteStore": "stormphase.stores._sqlite",
    "UnreadableRows": "stormphase.stores._sqlite_rows",
    "as_lost": "stormphase._lost",
    "attribute_columns": "stormphase.stores._sqlite_schema",
    "close_lost": "stormphase.stores._lost",
    "near_names": "stormphase.stores._query",
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
