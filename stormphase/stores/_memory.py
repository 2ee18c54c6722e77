"""A store in memory: for tests, notebooks, and whoever wants the records of this process at hand."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final

from stormphase._record import entering_order
from stormphase.exceptions import ConfigurationError
from stormphase.stores._query import RecordQuery, query_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stormphase._record import PhaseRecord, RecordKey

MAX_RECORDS: Final = 100_000


class MemoryStore:
    """Keeps records in this process, the newest `max_records` of them. Thread-safe; a forked child has a copy.

    Args:
        max_records: how many are kept; beyond that the oldest that have ended go, and are counted in `forgotten`.

    Raises:
        ConfigurationError: if `max_records` is not a whole number above 0.
    """

    def __init__(self, *, max_records: int = MAX_RECORDS) -> None:
        """Start empty."""
        if type(max_records) is not int or max_records < 1:
            raise ConfigurationError(
                f"max_records must be a whole number above 0, not {max_records!r:.40}.",
                setting="max_records",
                fix=f"Leave it out for {MAX_RECORDS}.",
            )
        self.forgotten = 0
        self._max_records = max_records
        self._open: dict[RecordKey, PhaseRecord] = {}
        self._ended: dict[RecordKey, PhaseRecord] = {}
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def begin(self, records: Sequence[PhaseRecord], /) -> None:
        """Keep what has begun; what is known already stays as it is."""
        with self._own_lock():
            for record in records:
                if record.key not in self._ended:
                    self._open.setdefault(record.key, record)

    def end(self, records: Sequence[PhaseRecord], /) -> None:
        """Keep what has ended; the first end of a record counts."""
        with self._own_lock():
            for record in records:
                self._open.pop(record.key, None)
                self._ended.setdefault(record.key, record)
            excess = len(self._ended) - self._max_records
            if excess > 0:
                for key in list(self._ended)[:excess]:
                    del self._ended[key]
                self.forgotten += excess

    def query(self, wanted: RecordQuery | None = None, /, **filters: Any) -> Iterator[PhaseRecord]:
        """Return the records that are wanted, as they are now, in the order in which they were entered.

        Args:
            wanted: which; by default all.
            filters: the attributes of a `RecordQuery`, instead of one.
        """
        asked = query_of(wanted, filters)
        with self._own_lock():
            found = [*self._ended.values(), *self._open.values()]
        return iter(sorted(filter(asked.matches, found), key=entering_order))

    def close(self) -> None:
        """Do nothing: there is nothing to release, and what is kept can still be asked for."""

    def _own_lock(self) -> threading.Lock:
        """Return the lock, a new one in a forked child: another thread of the parent may have held it."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.Lock()
        return self._lock
